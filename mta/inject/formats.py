"""Read a file of the spool directory as a message with its envelope.

A file is a message (RFC 5322) in one of two forms; a name that ends in `.bsmtp` is a batch (`mta.inject.batch`).

* *Envelope first.* The first header lines are `X-Sender: ADDRESS` and one `X-Receiver: ADDRESS` per recipient, in any
  order and case, with or without angle brackets. The null sender is `<>`. Among them may stand `X-Sender-Override:
  ADDRESS`, which wins over X-Sender, and what RFC 3461 knows: `X-Envid: TEXT`, `X-Ret: FULL` or `HDRS`, and `X-Notify:
  NEVER` or a list of `SUCCESS, FAILURE, DELAY`, for all receivers. Behind an address in brackets may stand what MAIL
  and RCPT take: `X-Receiver: <a@b.example> NOTIFY=NEVER ORCPT=rfc822;c@d.example`. They are removed. The usual label
  fields (`X-Virtual-MTA`, `X-Job`, ...) may stand among them; intake reads and removes those. This is the form of
  the pickup directories of PowerMTA, IIS and Exchange.
* *Envelope from the header.* Sender is the address in Return-Path, else in Sender, else the only one in From;
  recipients are the addresses in To, Cc and Bcc. Return-Path and Bcc are removed. A message with Resent- fields is
  refused: it has two sets of recipients, and which is meant nobody can tell.

Lines may end with LF or CRLF. A bare CR, NUL, or a line longer than `smtp.line_length` is refused, as by SMTP. The
other limits of `smtp` hold likewise. An address with an internationalized domain and an ASCII local part goes with
A-labels, so that it reaches hosts without SMTPUTF8; one with a UTF-8 local part needs SMTPUTF8 on its way.

Nothing here guesses: whatever is not clear raises FormatError with the line and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mta.config.schema import SmtpIn
from mta.inject import addresses
from mta.message import headers
from mta.message.headers import Field
from mta.queue.records import EIGHT_BIT, SMTPUTF8, Recipient
from mta.smtp import xtext
from mta.smtp.address import Address, AddressError, domain_to_ascii, parse_address, parse_path
from mta.smtp.envelope import (
    ENVID_LIMIT,
    Envelope,
    ParameterError,
    read_mail_parameters,
    read_rcpt_parameters,
)

_BARE_CR = re.compile(rb"\r(?!\n)")
_ENVELOPE_FIELDS = frozenset((b"x-sender", b"x-sender-override", b"x-receiver", b"x-envid", b"x-ret", b"x-notify"))
LABEL_FIELDS = frozenset(
    (b"x-virtual-mta", b"x-job", b"x-pool", b"x-tenant", b"x-campaign", b"x-priority-class"))
"""Those of PowerMTA, and of `labels` when nothing is configured; in lower case."""


class FormatError(Exception):
    """The file is not what it should be. `line` counts from 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line
        self.what = what


@dataclass(slots=True)
class Submission:
    """One message to be accepted. `content` has CRLF line ends and no envelope lines."""

    envelope: Envelope
    content: bytes


def parse_message(data: bytes, limits: SmtpIn, label_fields: frozenset[bytes] = LABEL_FIELDS) -> Submission:
    """The message in a file. `label_fields` may stand among those of the envelope. Raises FormatError."""
    if len(data) > limits.message_size:
        raise FormatError(1, f"the message has {len(data)} octets, more than smtp.message_size ({limits.message_size})")
    content = with_crlf(data, 1)
    first_line = 1
    if content.startswith((b"From ", b">From ")):  # a mailbox separator, as in files cut out of a mailbox
        content = content[content.index(b"\r\n") + 2 :]
        first_line = 2
    check_lines(content, limits.line_length, first_line)
    end = headers.section_end(content)
    if end < 0:
        raise FormatError(first_line, f"the header section is larger than {headers.HEADER_LIMIT} octets")
    reader = _HeaderReader(content, end, first_line, label_fields)
    if end == 0:
        raise FormatError(first_line, "expected a header line, as in `Subject: text`")
    first = next((field.name for field in reader.fields if field.name not in label_fields), b"")
    submission = reader.explicit_envelope() if first in _ENVELOPE_FIELDS else reader.envelope_from_header()
    envelope = submission.envelope
    if len(envelope.recipients) > limits.recipients:
        raise FormatError(
            first_line, f"{len(envelope.recipients)} recipients, more than smtp.recipients ({limits.recipients})"
        )
    envelope.esmtp = True
    if not submission.content.isascii():
        envelope.flags |= EIGHT_BIT
    return submission


def with_crlf(data: bytes, first_line: int) -> bytes:
    """Content with CRLF at the end of every line, whether it had LF or CRLF. Raises FormatError for bare CR and NUL."""
    pairs = data.count(b"\r\n")
    if data.count(b"\r") != pairs:
        match = _BARE_CR.search(data)
        assert match is not None
        raise FormatError(line_at(data, match.start(), first_line), "a carriage return without line feed")
    nul = data.find(b"\0")
    if nul >= 0:
        raise FormatError(line_at(data, nul, first_line), "a NUL character")
    if data.count(b"\n") != pairs:
        data = (data.replace(b"\r\n", b"\n") if pairs else data).replace(b"\n", b"\r\n")
    return data if data.endswith(b"\r\n") or not data else data + b"\r\n"


def check_lines(content: bytes, limit: int, first_line: int) -> None:
    """Raise FormatError if a line, without its CRLF, has more than `limit` octets."""
    # From the start of a line, the last line end within reach: if there is none, this line is too long.
    start, reach = 0, limit + 2
    while len(content) - start > reach:
        end = content.rfind(b"\n", start, start + reach)
        if end < 0:
            raise FormatError(line_at(content, start, first_line), f"a line longer than {limit} octets")
        start = end + 1


def line_at(data: bytes, offset: int, first_line: int) -> int:
    """Number of the line at `offset`."""
    return first_line + data.count(b"\n", 0, offset)


class _HeaderReader:
    """Reads an envelope out of a header section."""

    def __init__(self, content: bytes, end: int, first_line: int, label_fields: frozenset[bytes]) -> None:
        self.content = content
        self.label_fields = label_fields
        self.end = end
        self.first_line = first_line
        self.fields: list[Field] = list(headers.fields(content, end))
        self.envelope = Envelope()
        self.seen: dict[bytes, str] = {}  # fields of the envelope that stand there once
        self.notify = 0  # for all recipients that say nothing themselves
        self.a_labels: dict[str, str] = {}  # of the domains of addresses that are beyond ASCII

    def explicit_envelope(self) -> Submission:
        """The envelope in the lines before the message."""
        envelope = self.envelope
        body_start = self.end
        labels: list[bytes] = []
        for field in self.fields:
            if field.name in self.label_fields:
                if field.start < body_start:
                    labels.append(self.content[field.start : field.end])
                continue
            if field.name not in _ENVELOPE_FIELDS:
                body_start = min(body_start, field.start)
                continue
            if field.start > body_start:
                raise self.misplaced(field)
            self.check_whole(field)
            if field.name == b"x-receiver":
                envelope.recipients.append(self.receiver(field))
            elif field.name in self.seen:
                raise self.error(field, f"a second {_name(field)}")
            else:
                self.seen[field.name] = self.once(field)
        override, sender = self.seen.get(b"x-sender-override"), self.seen.get(b"x-sender")
        if sender is None and override is None:
            raise FormatError(self.first_line, "X-Sender is missing; the null sender is `X-Sender: <>`")
        if not envelope.recipients:
            raise FormatError(self.first_line, "X-Receiver is missing")
        envelope.sender = override if override is not None else sender or ""
        for recipient in envelope.recipients:
            recipient.notify = recipient.notify or self.notify
            recipient.a_labels = self.a_labels.get(recipient.address, "")
        return Submission(envelope, b"".join(labels) + self.content[body_start:])

    def once(self, field: Field) -> str:
        """Read a field of the envelope that is there once; a sender's address is returned."""
        if field.name in (b"x-sender", b"x-sender-override"):
            return self.mailbox(field, lambda text: read_mail_parameters(self.envelope, text))
        text = self.text(field).replace("\r\n", "").strip()
        if field.name == b"x-envid":
            self.envelope.envid = self.envid(field, text)
        elif field.name == b"x-ret":
            if text.upper() not in ("FULL", "HDRS"):
                raise self.error(field, f"X-Ret must be FULL or HDRS, not {text[:40]!r}")
            self.envelope.ret = text.upper()
        else:
            wishes = Recipient("")
            try:
                read_rcpt_parameters(wishes, b" NOTIFY=" + text.replace(" ", "").encode(), utf8=True)
            except ParameterError:
                expected = "NEVER or a list of SUCCESS, FAILURE and DELAY"
                raise self.error(field, f"X-Notify must be {expected}, not {text[:40]!r}") from None
            self.notify = wishes.notify
        return ""

    def receiver(self, field: Field) -> Recipient:
        """The recipient in an X-Receiver field."""
        recipient = Recipient("")
        recipient.address = self.mailbox(field, lambda text: read_rcpt_parameters(recipient, text, utf8=True))
        if not recipient.address:
            raise self.error(field, "X-Receiver: the null path takes no mail")
        if recipient.orcpt and not recipient.orcpt.isascii():
            self.envelope.flags |= SMTPUTF8
        return recipient

    def mailbox(self, field: Field, read: Callable[[bytes], None]) -> str:
        """The address in an envelope field, in brackets or without. `read` is given what stands behind the brackets."""
        text = self.text(field).strip()
        if not text.startswith("<"):
            return self.address(field, 0, text)
        raw = text.replace("\r\n", "").replace("\t", " ").encode()
        try:
            address, end = parse_path(raw)
            result = "" if end == 2 else self.canonical(address)
        except AddressError as error:
            raise self.error(field, f"{_name(field)}: {text[:80]!r}: {error}") from None
        if end < len(raw):
            try:
                read(raw[end:])
            except ParameterError as error:
                raise self.error(field, f"{_name(field)}: {error}") from None
        return result

    def envelope_from_header(self) -> Submission:
        """The envelope from the addresses of sender and recipients in the header."""
        for field in self.fields:
            if field.name.startswith(b"resent-"):
                raise self.error(field, f"{_name(field)}: say the recipients of a resent message with X-Receiver")
            if field.name == b"x-receiver":
                raise self.misplaced(field)
        self.envelope.sender = self.sender()
        for field in self.fields:
            if field.name in (b"bcc", b"return-path"):
                self.check_whole(field)
            if field.name in (b"to", b"cc", b"bcc"):
                self.envelope.recipients.extend(Recipient(address, a_labels=self.a_labels.get(address, ""))
                                                for address in self.addresses(field))
        if not self.envelope.recipients:
            raise FormatError(self.first_line, "no recipient: there is no address in To, Cc and Bcc, and no X-Receiver")
        return Submission(self.envelope, headers.remove(self.content, ("return-path", "bcc")))

    def sender(self) -> str:
        for name in (b"return-path", b"sender", b"from"):
            found = [field for field in self.fields if field.name == name]
            if not found:
                continue
            if len(found) > 1:
                raise self.error(found[1], f"a second {_name(found[1])}")
            if name == b"return-path" and self.text(found[0]).strip() == "<>":
                return ""
            senders = list(self.addresses(found[0]))
            if len(senders) != 1:
                hint = "; say the sender with Return-Path" if name == b"from" else ""
                raise self.error(found[0], f"expected one address in {_name(found[0])}, found {len(senders)}{hint}")
            return senders[0]
        raise FormatError(self.first_line, "no sender: expected Return-Path, Sender or From, or X-Sender first")

    def addresses(self, field: Field) -> Iterator[str]:
        """The addresses in a field, checked."""
        text = self.text(field)
        try:
            mailboxes = addresses.parse_list(text)
        except addresses.AddressError as error:
            line = self.line(field) + text.count("\n", 0, error.position)
            raise FormatError(line, f"{_name(field)}: {error}") from None
        for mailbox in mailboxes:
            yield self.address(field, text.count("\n", 0, mailbox.position), mailbox.address)

    def address(self, field: Field, line: int, text: str) -> str:
        """An address in its canonical form; `line` is counted from the first line of the field."""
        try:
            return self.canonical(parse_address(text))
        except AddressError as error:
            raise FormatError(self.line(field) + line, f"{_name(field)}: {text[:80]!r}: {error}") from None

    def canonical(self, address: Address) -> str:
        """An address as it goes into the envelope, which learns what it needs. Raises AddressError."""
        if not address.domain:
            raise AddressError("the domain is missing")
        if not address.local.isascii():
            self.envelope.flags |= SMTPUTF8
            if address.a_labels:
                self.a_labels[address.text] = address.a_labels
        elif not address.domain.isascii():
            address.domain = domain_to_ascii(address.domain)
        return address.text

    def envid(self, field: Field, text: str) -> str:
        if not (text and text.isascii() and text.isprintable() and len(xtext.encode(text)) <= ENVID_LIMIT):
            raise self.error(field, f"X-Envid must be 1 to {ENVID_LIMIT} printable ASCII characters")
        return xtext.encode(text)

    def text(self, field: Field) -> str:
        """The value as it stands, folding included, without its last line end."""
        try:
            return self.content[field.value : headers.value_end(self.content, field)].decode()
        except UnicodeDecodeError as error:
            line = self.line(field) + self.content.count(b"\n", field.value, field.value + error.start)
            raise FormatError(line, f"{_name(field)}: neither ASCII nor UTF-8") from None

    def line(self, field: Field) -> int:
        return line_at(self.content, field.start, self.first_line)

    def check_whole(self, field: Field) -> None:
        """A field that is removed must not take with it lines that are none of it."""
        end = headers.value_end(self.content, field) + 2
        if end < field.end:
            text = self.content[end : end + 40].partition(b"\r\n")[0].decode("utf-8", "replace")
            line = line_at(self.content, end, self.first_line)
            raise FormatError(line, f"expected a header field or an empty line, found {text!r}")

    def misplaced(self, field: Field) -> FormatError:
        return self.error(field, f"{_name(field)} must come before all other header lines")

    def error(self, field: Field, what: str) -> FormatError:
        return FormatError(self.line(field), what)


def _name(field: Field) -> str:
    return field.name.decode().title()
