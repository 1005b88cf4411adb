"""Files of the spool directory, and what programs write to the sendmail command."""

from __future__ import annotations

import io
import re
from typing import Final

from mta.config.schema import SmtpIn
from mta.config.units import Size
from mta.control.exits import OperatorError
from mta.inject.batch import BEGIN, BatchReader, Position
from mta.inject.formats import FormatError, Submission, parse_message
from mta.message import headers
from mta.queue.records import EIGHT_BIT, SMTPUTF8, Recipient
from mta.sendmail import drop
from mta.sendmail import message as sendmail
from mta.sendmail import options as sendmail_options
from mta.smtp import data as smtp_data
from mta.smtp.address import parse_address
from mta.smtp.envelope import Envelope
from tests.fuzz.script import expand

LIMITS: Final = SmtpIn(message_size=Size(3000), recipients=4, line_length=300, command_length=600)

_TWICE: Final = SmtpIn(message_size=Size(6000), recipients=4, line_length=300, command_length=600)

MESSAGE_SEEDS: Final = (
    (b"X-Sender: <a@example.com>\nX-Receiver: <b@example.org> NOTIFY=NEVER ORCPT=rfc822;c@d.example\n"
     b"X-Receiver: c@example.org\nX-Envid: x+y\nX-Ret: HDRS\nX-Notify: SUCCESS, DELAY\nX-Job: j\nSubject: x\n\nbody\n"),
    b"x-virtual-mta: default\nX-RECEIVER: b@example.org\nx-sender: <>\nX-Sender-Override: o@example.com\n\nbody\n",
    b"From: A <a@example.com>\nTo: B <b@example.org>, c@example.org\nCc: (x) d@example.org\nBcc: e@f.example\n\nbody\n",
    b"From x Mon\r\nReturn-Path: <>\r\nTo: g: a@b.example;\r\n\r\nbody\r\n",
    "X-Sender: ü@example.com\nX-Receiver: b@bücher.example\n\nü\n".encode(),
    b"Resent-To: a@b.example\nFrom: x@y.example\n\n",
    b"From: a@b.example\nTo: b@c.example\nnot a field\n\n",
    b"X-Sender: a@b.example\n\tfolded\nX-Receiver:\n b@c.example\n\n",
)  # fmt: skip
MESSAGE_WORDS: Final = (
    b"X-Sender: ", b"X-Receiver: ", b"X-Sender-Override: ", b"X-Envid: ", b"X-Ret: ", b"X-Notify: ", b"X-Job: ",
    b"X-Virtual-MTA: ", b"From: ", b"To: ", b"Bcc: ", b"Return-Path: ", b"Sender: ", b"Resent-To: ", b"<a@b.example>",
    b"\n ", b"\n\n", b"\r\n", b" NOTIFY=", b" ORCPT=rfc822;", b" SIZE=", b" SMTPUTF8", b"HDRS", b"NEVER", b"<>",
    b"From x\n", b"\r", b"\0", b"\xff",
)  # fmt: skip

_BARE: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")


def run_message(data: bytes) -> None:
    """A file is read or refused with its line; with either line end it is the same message; no line of the envelope is
    left in the header, and content is fit for the queue."""
    try:
        found = parse_message(data, LIMITS)
    except FormatError as error:
        _check_error(error, data)
        return
    _check(found)
    if b"\r" not in data:
        assert parse_message(data.replace(b"\n", b"\r\n"), _TWICE) == found
    body = data.replace(b"\r\n", b"\n").partition(b"\n\n")[2].removesuffix(b"\n").replace(b"\n", b"\r\n")
    assert found.content.removesuffix(b"\r\n").endswith(body)
    names = [field.name for field in headers.fields(found.content)]
    assert not {b"bcc", b"return-path"}.intersection(names) or b"x-receiver" in data.lower()
    assert b"x-receiver" not in names


def _check_error(error: FormatError, data: bytes) -> None:
    assert 1 <= error.line <= data.count(b"\n") + 2
    assert "\n" not in str(error)


def _check(found: Submission) -> None:
    envelope, content = found.envelope, found.content
    assert 0 < len(envelope.recipients) <= LIMITS.recipients
    for address in (envelope.sender, *(to.address for to in envelope.recipients)):
        if address and address.lower() != "postmaster":
            assert parse_address(address).text == address
        assert envelope.flags & SMTPUTF8 or address.rpartition("@")[0].isascii()
    assert not _BARE.search(content.replace(b"\r\n", b""))
    assert not content or content.endswith(b"\r\n")
    assert max(map(len, content.split(b"\r\n"))) <= LIMITS.line_length
    assert envelope.flags & EIGHT_BIT or content.isascii()


# Octets from 128 on stand for these (`tests.fuzz.script`).
SNIPPETS: Final = (
    b"MAIL FROM:<a@example.com>\n", b"RCPT TO:<b@example.org>\n", b"DATA\n", b".\n", b"Subject: x\n\nbody\n", b"..\n",
    b"HELO c\n", b"EHLO c\n", b"RSET\n", b"NOOP\n", b"QUIT\n", b"XACK OFF\n", b"XACK ON\n", b"\n", b"\r\n",
    b"MAIL FROM:<a@example.com>\r\n", b"RCPT TO:<b@example.org>\r\n", b"DATA\r\n", b".\r\n",
    b"Subject: x\r\n\r\nbody\r\n",
    b"BDAT 5 LAST\nabcde", b"BDAT 6\nabcde\nBDAT 2 LAST\nx\n", b"BDAT 0 LAST\r\n", b"BDAT 7 LAST\r\nabcde\r\n",
    b"BDAT 9999 LAST\n",
    b"RCPT TO:<x>\n", b"RCPT TO:<x>\r\n", b"MAIL FROM:<> RET=HDRS ENVID=x SMTPUTF8\n",
    b"RCPT TO:<c@d.example> NOTIFY=NEVER\n",
    b"XMRG x\n", b"STARTTLS\n", b"x" * 400 + b"\n", b"x" * 700 + b"\n", (b"y" * 250 + b"\n") * 14, b"\xff", b"\r",
    b"\0",
    "RCPT TO:<ü@bücher.example>\n".encode(), b"MAIL FROM:<a@example.com>\nRCPT TO:<b@example.org>\nDATA\nx\n.\n",
    b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\nx\r\n.\r\n",
    b"MAIL FROM:<a@example.com>\nRCPT TO:<x>\nDATA\nx\n.\n",
)  # fmt: skip
BATCH_SEEDS: Final = (
    bytes((128, 129, 130, 132, 131, 166, 166)), bytes((143, 144, 145, 147, 146, 167, 138)), bytes((139, 166, 168, 166)),
    bytes((134, 128, 129, 148, 128, 129, 149, 166)), bytes((155, 156, 130, 133, 131, 137, 136)),
    b"\x80\x81\x82.x\n\x83",
)  # fmt: skip
BATCH_WORDS: Final = (b"\n.\n", b"\r\n.\r\n", b"\n.\r\n", b"BDAT ", b" LAST", b"XACK OFF", b"MAIL FROM:", b"RCPT TO:")


def _read(data: bytes, position: Position) -> tuple[list[tuple[Submission, Position, int]], str]:
    reader = BatchReader(io.BytesIO(data), LIMITS, "mta.example", position)
    found = []
    try:
        while True:
            submission = reader.next()
            if submission is None:
                return found, ""
            assert reader.position.offset > (found[-1][1].offset if found else position.offset)
            submission.envelope.helo, submission.envelope.esmtp = "", True  # of which nobody is told
            found.append((submission, reader.position, reader.begin))
            assert len(found) <= data.count(b"\n")
            assert submission.envelope.recipients or reader.refused
    except FormatError as error:
        _check_error(error, data)
        return found, str(error)


def run_batch(data: bytes) -> None:
    """Transactions are read in order up to an error with its line; who begins behind any of them reads the same."""
    stream = expand(data, SNIPPETS)
    found, failure = _read(stream, BEGIN)
    for number, (submission, position, _) in enumerate(found):
        if submission.envelope.recipients:
            _check(submission)
        assert len(submission.content) <= LIMITS.message_size
        if number in (0, len(found) // 2):
            rest, same_failure = _read(stream, position)
            assert [(one, place) for one, place, _ in rest] == [(one, place) for one, place, _ in found[number + 1 :]]
            # An empty session does not know how many commands came before.
            assert same_failure == failure or "421" in failure


SENDMAIL_SEEDS: Final = (
    b"\0From: a@b.example\nTo: root, b@c.example\nBcc: d@e.example\n\nbody\n.\nmore\n", b"\1Subject: x\n\n.\nbody\r\n",
    b"\2no header\n", b"\3From x\nSubject: " + b"x " * 200 + b"\n\n" + b"y" * 700,
    b"\7Resent-To: a@b.example\nResent-Cc: c@d.example\n\n",
    b"\4Bcc: \xff\n\xff\n\0\r\n", b"\5To: \xc3\xbc@b\xc3\xbccher.example\n folded\n\nx\n", b"\x0f\n\nx",
    b"\x08Subject: a\rb\n\n",
)  # fmt: skip
SENDMAIL_WORDS: Final = (*MESSAGE_WORDS, b"\n.\n", b"Resent-Bcc: ", b"Resent-From: ", b"Message-ID: ")

def run_sendmail(data: bytes) -> None:
    """What a program writes becomes a batch that the spool directory reads as what was meant, or it is refused."""
    if not data:
        return
    flags, raw = data[0], data[1:]
    content = sendmail.lines_of(raw, dots_are_text=bool(flags & 1))
    envelope = Envelope(esmtp=True)
    try:
        content, end = sendmail.with_header(content)
        if flags & 2:
            envelope.recipients.append(Recipient("x@example.org"))
        if flags & 4 or not flags & 2:
            sendmail.add_recipients(envelope, sendmail.recipients_in(content, end, "local.example"), "local.example")
        envelope.sender = sendmail.sender(("", "<>", "a@b.example", None)[flags >> 3 & 3],
                                          sendmail.Author("tim\x01", 'T "x" ü\n'), "local.example", envelope)
    except sendmail.MessageError as error:
        assert error.exit_code
        return
    content = sendmail.folded(sendmail.without_strays(content, end), end, 300)
    if not envelope.recipients or len(content) > 3000:
        return
    try:
        batch = b"".join(drop.batch(envelope, content, 4))
    except OperatorError:
        return
    found, failure = _read(batch, BEGIN)
    assert not failure, failure
    assert b"".join(one.content for one, _, _ in found[:1]) == content
    assert [to.address for one, _, _ in found for to in one.envelope.recipients] == [
        to.address for to in envelope.recipients]
    assert {one.envelope.sender for one, _, _ in found} == {envelope.sender}


def run_stuffing(data: bytes) -> None:
    """Stuffed content is read as what it was, by DATA in any pieces and by one look."""
    size = data[0] if data else 0
    content = data[1:].replace(b"\n", b"\r\n")
    stuffed = smtp_data.stuff(content)
    assert smtp_data.unstuff(stuffed).removesuffix(b"\r\n") == content.removesuffix(b"\r\n")
    stream = stuffed + b".\r\n"
    one = smtp_data.DataReader(2000, 200)
    end = one.feed(stream)
    many = smtp_data.DataReader(2000, 200)
    position, other = 0, -1
    while other < 0:
        piece = stream[position : position + 1 + size]
        other = many.feed(piece)
        other = position + other if other >= 0 else -1
        position += len(piece)
        assert position < len(stream) or other >= 0
    assert other == end
    assert end <= len(stream)
    assert (one.too_big, bool(one.fault)) == (many.too_big, bool(many.fault)) or one.too_big
    if not (one.too_big or one.fault):
        assert (one.content(), one.dotless) == (many.content(), many.dotless)
        assert smtp_data.fault(one.content(), 200) == ""
        assert smtp_data.stuff(one.content()) + b".\r\n" == stream[:end] or b"\r" in content.replace(b"\r\n", b"")


STUFFING_SEEDS: Final = (
    b"\0a\n.b\n..\n", b"\1.\n.\n\n", b"\2" + b"x" * 199 + b"\n." + b"y" * 250, b"\3a\rb\n\r\n.\r\n", b"\xff",
)  # fmt: skip
STUFFING_WORDS: Final = (b"\n.", b"\n..", b"\r\n.\r\n", b"\r\r\n", b"\n.\r", b"\0", b"x" * 100)


def run_options(data: bytes) -> None:
    """A command line is read or refused."""
    arguments = data.decode("utf-8", "surrogateescape").split("\0")
    try:
        found = sendmail_options.parse(arguments[0], arguments[1:])
    except sendmail_options.UsageError:
        return
    assert found.mode in ("send", "smtp", "queue", "aliases", "flush")
    if found.envid is not None:
        assert found.envid.isascii()


OPTIONS_SEEDS: Final = (
    b"sendmail\0-tif\0me@x\0--\0a", b"mailq", b"sendmail\0-bs\0-v", b"s\0-N\0success,delay\0-R\0hdrs\0-V\0x\0a@b",
    b"s\0-q15m", b"s\0-oi\0-OIgnoreDots=true\0-Fname\0r",
)
