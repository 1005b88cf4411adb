"""Rules of message files: where their envelope is, what is removed, and what is refused with its line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mta.config.schema import SmtpIn
from mta.config.units import Size
from mta.inject.formats import FormatError, Submission, parse_message
from mta.message.headers import HEADER_LIMIT
from mta.queue.records import EIGHT_BIT, NOTIFY_FAILURE, NOTIFY_NEVER, NOTIFY_SUCCESS, SMTPUTF8, Recipient

LIMITS = SmtpIn()


def parse(data: bytes, **limits: Any) -> Submission:
    """Parse with the default limits but for `limits`."""
    return parse_message(data, SmtpIn(**limits))


def envelope(data: bytes) -> tuple[str, list[str]]:
    """Sender and recipients of a file."""
    found = parse(data).envelope
    return found.sender, [recipient.address for recipient in found.recipients]


def problem(data: bytes, **limits: Any) -> FormatError:
    """The error that this file must raise."""
    with pytest.raises(FormatError) as caught:
        parse(data, **limits)
    return caught.value


EXPLICIT = b"X-Sender: alice@sender.example\nX-Receiver: bob@example.org\nx-RECEIVER: <carol@example.org>\n"
MESSAGE = b"From: A <a@a.example>\nTo: b@b.example\nSubject: x\n\n.body\n"
STORED = MESSAGE.replace(b"\n", b"\r\n")


def test_the_envelope_lines_are_read_and_removed() -> None:
    """X-Sender and each X-Receiver, in any case, with and without brackets; the rest stays, header addresses unread."""
    submission = parse(EXPLICIT + MESSAGE)
    assert submission.envelope.sender == "alice@sender.example"
    assert [one.address for one in submission.envelope.recipients] == ["bob@example.org", "carol@example.org"]
    assert submission.content == STORED


def test_the_envelope_lines_come_in_any_order() -> None:
    """A receiver may stand before the sender."""
    assert envelope(b"X-Receiver: b@b.example\nX-Sender: a@a.example\n\n") == ("a@a.example", ["b@b.example"])


def test_the_null_sender_is_empty_brackets() -> None:
    """`<>`, which differs from an empty value: that is a mistake."""
    assert envelope(b"X-Sender: <>\nX-Receiver: b@b.example\n\n")[0] == ""
    assert "X-Sender" in problem(b"X-Sender:\nX-Receiver: b@b.example\n\n").what


def test_an_envelope_id_is_kept_in_xtext() -> None:
    """X-Envid is the ENVID of RFC 3461."""
    assert parse(b"X-Sender: <>\nX-Receiver: b@b.example\nX-Envid: QQ =1\n\n").envelope.envid == "QQ+20+3D1"


def test_wishes_for_notifications() -> None:
    """X-Ret, and X-Notify for all receivers but those that say it themselves, in the words of RCPT (RFC 3461)."""
    found = parse(
        b"x-sender: <a@a.example> RET=FULL BODY=8BITMIME\nx-receiver: <b@b.example>\n"
        b"x-notify: success, Failure\nx-receiver: <c@c.example> NOTIFY=NEVER\n\tORCPT=rfc822;d@d.example\n"
        b"x-ret: hdrs\nx-job: j1\nx-virtual-mta: v\nSubject: x\n\n"
    )
    assert (found.envelope.sender, found.envelope.ret) == ("a@a.example", "HDRS")
    assert found.envelope.recipients == [
        Recipient("b@b.example", NOTIFY_SUCCESS | NOTIFY_FAILURE),
        Recipient("c@c.example", NOTIFY_NEVER, "rfc822;d@d.example"),
    ]
    assert found.content == b"x-job: j1\r\nx-virtual-mta: v\r\nSubject: x\r\n\r\n"


def test_an_override_of_the_sender_wins() -> None:
    """X-Sender-Override, wherever it stands among them, and without an X-Sender, too."""
    assert envelope(b"X-Sender-Override: o@o.example\nX-Sender: a@a.example\nX-Receiver: b@b.example\n\n")[0] == (
        "o@o.example")
    assert envelope(b"X-Sender-Override: <>\nX-Receiver: b@b.example\n\n")[0] == ""


def test_x_sender_elsewhere_is_an_ordinary_header() -> None:
    """Mail programs write X-Sender too. Only as the first header line is it the envelope."""
    data = b"From: a@a.example\nX-Sender: other@x.example\nTo: b@b.example\n\n"
    assert envelope(data) == ("a@a.example", ["b@b.example"])
    assert b"X-Sender: other@x.example\r\n" in parse(data).content


def test_without_them_the_header_is_the_envelope() -> None:
    """Sender from Return-Path; recipients from To, Cc and Bcc; Return-Path and Bcc are removed, the rest is not."""
    data = (
        b"Return-Path: <bounces@sender.example>\nFrom: A <a@a.example>, B <b@a.example>\nTo: One <1@x.example>,\n"
        b"\t2@x.example\nCC: Team: 3@x.example, 4@x.example;\nBcc: 5@x.example,\n 6@x.example\nSubject: x\n\n"
        b"Bcc: body\n"
    )
    submission = parse(data)
    assert envelope(data) == ("bounces@sender.example", [f"{n}@x.example" for n in range(1, 7)])
    assert submission.content == (
        b"From: A <a@a.example>, B <b@a.example>\r\nTo: One <1@x.example>,\r\n\t2@x.example\r\n"
        b"CC: Team: 3@x.example, 4@x.example;\r\nSubject: x\r\n\r\nBcc: body\r\n"
    )


@pytest.mark.parametrize(
    ("header", "sender"),
    [
        (b"Return-Path: <>\nFrom: a@a.example\n", ""),
        (b"Return-Path: r@r.example\nSender: s@s.example\nFrom: a@a.example\n", "r@r.example"),
        (b"Sender: S <s@s.example>\nFrom: a@a.example, b@a.example\n", "s@s.example"),
        (b"From: A (comment) <a@a.example>\n", "a@a.example"),
    ],
)
def test_where_the_sender_comes_from(header: bytes, sender: str) -> None:
    """Return-Path, else Sender, else the only address in From."""
    assert envelope(header + b"To: b@b.example\n\n")[0] == sender


@pytest.mark.parametrize(
    ("data", "line", "what"),
    [
        (b"", 1, "expected a header line"),
        (b"just text\n", 1, "expected a header line"),
        (b"\nTo: b@b.example\n", 1, "expected a header line"),
        (b"\xef\xbb\xbfTo: b@b.example\n", 1, "expected a header line"),
        (b"From x Mon\njust text\n", 2, "expected a header line"),
        (b"To: b@b.example\n\n", 1, "no sender"),
        (b"From: a@a.example\nSubject: x\n\n", 1, "no recipient"),
        (b"From: a@a.example\nTo: undisclosed-recipients:;\n\n", 1, "no recipient"),
        (b"From: a@a.example, b@a.example\nTo: b@b.example\n\n", 1, "found 2; say the sender with Return-Path"),
        (b"From: nobody:;\nTo: b@b.example\n\n", 1, "found 0"),
        (b"From: a@a.example\nFrom: b@a.example\nTo: b@b.example\n\n", 2, "a second From"),
        (b"Subject: x\nFrom: Smith, A <a@a.example>\nTo: b@b.example\n\n", 2, "From: expected an address"),
        (b"From: a@a.example\nTo: b@b.example,\n c@c.example\n d@d.example\n\n", 4, "To: expected a comma"),
        (b"From: a@a.example\nTo: b@b.example,\n c@-c.example\n\n", 3, "To: 'c@-c.example': "),
        (b"From: a@a.example\nCc: b@b.example\n (\xff)\n\n", 3, "Cc: neither ASCII nor UTF-8"),
        (b"From: a@a.example\nTo: b@127.0.0.1\n\n", 2, "domain"),
        (b"From: a@a.example\nTo: b@b.example\nResent-To: c@c.example\n\n", 3, "Resent-To"),
        (b"X-Sender: a@a.example\nSubject: x\n\n", 1, "X-Receiver is missing"),
        (b"X-Receiver: b@b.example\nSubject: x\n\n", 1, "X-Sender is missing"),
        (b"X-Sender: a@a.example\nX-Sender: b@a.example\nX-Receiver: b@b.example\n\n", 2, "a second X-Sender"),
        (b"X-Sender: a@a.example\nX-Receiver: b@b.example, c@c.example\n\n", 2, "X-Receiver"),
        (b"X-Sender: a@a.example\nX-Receiver: <b@b.example\n\n", 2, "X-Receiver"),
        (b"X-Sender: a@a.example\nX-Receiver: B <b@b.example>\n\n", 2, "X-Receiver"),
        (b"X-Sender: a@a.example\nX-Receiver: <>\n\n", 2, "X-Receiver"),
        (b"X-Sender: a@a.example\nX-Receiver: b\n\n", 2, "domain is missing"),
        (b"X-Sender: a@a.example\nX-Receiver: b@b.example\nX: y\nX-Receiver: c@c.example\n\n", 4, "before all other"),
        (b"X-Sender: a@a.example\nX-Receiver: b@b.example\nX-Envid: \n\n", 3, "X-Envid"),
        (b"X-Sender: a@a.example\nX-Receiver: b@b.example\nX-Envid: a\nX-Envid: b\n\n", 4, "a second X-Envid"),
        (b"X-Sender: <a@a.example> ENVID=\nX-Receiver: b@b.example\n\n", 1, "Bad value of ENVID"),
        (b"X-Sender: <a@a.example>x\nX-Receiver: b@b.example\n\n", 1, "Text behind the address"),
        (b"X-Sender: a@a.example\nX-Receiver: <b@b.example> NOTIFY=OFTEN\n\n", 2, "Bad value of NOTIFY"),
        (b"X-Sender: a@a.example\nX-Receiver: <b@b.example> WISH=1\n\n", 2, "Parameter WISH is not known"),
        (b"X-Sender: a@a.example\nX-Notify: never, failure\nX-Receiver: b@b.example\n\n", 2, "X-Notify must be NEVER"),
        (b"X-Sender: a@a.example\nX-Notify:\nX-Receiver: b@b.example\n\n", 2, "X-Notify must be NEVER"),
        (b"X-Sender: a@a.example\nX-Ret: body\nX-Receiver: b@b.example\n\n", 2, "X-Ret must be FULL or HDRS"),
        (b"X-Sender: a@a.example\nX-Ret: FULL\nX-RET: FULL\nX-Receiver: b@b.example\n\n", 3, "a second X-Ret"),
        (b"X-Sender: a@a.example\nX-Receiver: b@b.example\nHello you\n\nthere\n", 3, "found 'Hello you'"),
        (b"X-Sender: a@a.example\njunk\nX-Receiver: b@b.example\n\n", 2, "an empty line, found 'junk'"),
        (b"From: a@a.example\nBcc: b@b.example,\n c@c.example\njunk\nSubject: x\n\n", 4, "found 'junk'"),
        (b"From: a@a.example\nTo: b@b.example\nX-Receiver: c@c.example\n\n", 3, "before all other"),
        (b"From: a@a.example\nTo: b@b.example\n\none\rtwo\n", 4, "carriage return"),
        (b"From: a@a.example\r\nTo: b@b.example\r\n\r\none\r\r\n", 4, "carriage return"),
        (b"From: a@a.example\nTo: b@b.example\n\none\n\x00", 5, "NUL"),
        (b"From: a@a.example\nTo: b@b.example\n\n" + b"x" * 999 + b"\n", 4, "longer than 998"),
        (b"From m Mon\nFrom: a@a.example\nTo: b@b.example\n\n" + b"x" * 999, 5, "longer than 998"),
    ],
)
def test_errors_name_the_line(data: bytes, line: int, what: str) -> None:
    """Whoever wrote the file learns what is wrong and where; nothing is guessed."""
    error = problem(data)
    assert error.line == line
    assert what in error.what
    assert str(error) == f"line {line}: {error.what}"


def test_limits_of_smtp_hold_for_files() -> None:
    """Size, recipients and header section have the limits that they have by SMTP; at the limit is within."""
    data = b"From: a@a.example\r\nTo: b@b.example, c@b.example\r\n\r\n"
    assert "smtp.message_size" in problem(data, message_size=Size(len(data) - 1)).what
    assert "2 recipients" in problem(data, recipients=1).what
    assert parse(data, message_size=Size(len(data)), recipients=2).content == data
    assert "header section" in problem(data[:-2] + b"X: x\r\n" * (HEADER_LIMIT // 6) + b"\r\n").what


@pytest.mark.parametrize("data", [MESSAGE, STORED, STORED.replace(b"x\r\n", b"x\n"), MESSAGE[:-1], STORED[:-2]])
def test_line_ends_become_crlf(data: bytes) -> None:
    """LF, CRLF, both in one file, or none at the end: stored is always CRLF."""
    assert parse(data).content == STORED


def test_lines_of_998_octets_are_taken() -> None:
    """The limit counts no line end, and every line is looked at."""
    long = b"".join(b"y" * n + b"\n" for n in (998, 1, 998, 0, 997, 998))
    assert parse(b"From: a@a.example\nTo: b@b.example\n\n" + long).content.endswith(long.replace(b"\n", b"\r\n"))


def test_a_mailbox_separator_is_dropped() -> None:
    """A message cut out of a mailbox file begins with a line that is none of it; line numbers count it."""
    assert parse(b"From someone Mon Jan  2\n" + MESSAGE).content == STORED


def test_eight_bit_and_utf8() -> None:
    """The envelope says what the content and the addresses need."""
    plain = parse(MESSAGE).envelope
    assert (plain.flags, plain.esmtp) == (0, True)
    eight = parse(MESSAGE + b"\xfc\n").envelope
    assert eight.flags == EIGHT_BIT
    local = parse("X-Sender: <>\nX-Receiver: jürgen@bücher.example\n\n".encode()).envelope
    assert local.flags & SMTPUTF8
    assert local.recipients[0].address == "jürgen@bücher.example"


def test_an_internationalized_domain_alone_needs_no_smtputf8() -> None:
    """With an ASCII local part the address is written with A-labels and reaches every host."""
    found = parse("From: a@bücher.example\nTo: Jürgen <b@Bücher.example>\n\n".encode()).envelope
    assert found.sender == "a@xn--bcher-kva.example"
    assert found.recipients[0].address == "b@xn--bcher-kva.example"
    assert not found.flags & SMTPUTF8


pieces = st.sampled_from(
    [b"X-Sender: ", b"X-Receiver:", b"To: ", b"From: ", b"Bcc:", b"Return-Path: ", b"a@b.example", b"<c@d.example>",
     b", ", b"\n", b"\r\n", b"\r", b"\n ", b"\n\n", b"(", b'"', b"\xff", "ü".encode(), b"\0", b"Subject", b":",
     b"From x", b"<>", b";", b"x" * 500, b"X-Notify: ", b"X-Ret: ", b"X-Envid: ", b" NOTIFY=NEVER",
     b"X-Sender-Override: "]
)  # fmt: skip


@given(st.one_of(st.lists(pieces, max_size=20).map(b"".join), st.binary(max_size=200)))
@example(b"From \r")
@example(b"From x")
@settings(max_examples=600, deadline=None)
def test_any_file_is_read_or_refused(data: bytes) -> None:
    """Nothing but FormatError comes out of any file, and what is accepted is sound."""
    try:
        submission = parse(data)
    except FormatError as error:
        after_last = data.count(b"\n") + 2  # where something is missing
        assert 1 <= error.line <= after_last  # noqa: PT017 - it need not be raised
        return
    assert submission.envelope.recipients
    content = submission.content
    assert content == b"" or content.endswith(b"\r\n")
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert b"\0" not in content
    assert not content.lower().startswith((b"x-sender:", b"x-receiver:"))
