"""Make a message of what a program writes to sendmail: lines, missing header fields, recipients, Bcc.

What arrives is sent byte for byte but for this, each because there is no way to send it as it is, or because every
sendmail does it and programs count on it:

* Lines end with CRLF; a carriage return at the end of a line is part of its end. Without `-i` a line that is a dot
  ends the message.
* A carriage return elsewhere, and a NUL, becomes a space in the body (Postfix: `cleanup_replace_stray_cr_lf`); in the
  header it is an error, because there it is mostly an attempt to smuggle in a field.
* A line longer than the limit (998 octets, RFC 5322 2.1.1) is folded: a line end and a space are put in, at white
  space in the header, never within a UTF-8 character.
* A mailbox separator (`From somebody Mon ...`) before the header is dropped. The first line that is neither a header
  field nor its continuation ends the header, also without an empty line.
* Missing From, Date and Message-ID are added at the top, the date being that of now: the MTA may be down for long.
* Bcc, Resent-Bcc and Return-Path are removed with `-t`.

Nobody knows what a caller writes, so all of it is data: no header field but those above is looked at.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mta.control import exits
from mta.inject import addresses
from mta.message import checks, headers, trace
from mta.queue.records import SMTPUTF8, Recipient
from mta.sendmail.settings import Settings
from mta.smtp.address import AddressError, domain_to_ascii, parse_address
from mta.smtp.envelope import Envelope

_FIELD: Final = re.compile(rb"[!-9;-~]+[ \t]*:")
_PLAIN_PHRASE: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")
_RECIPIENTS: Final = (b"to", b"cc", b"bcc")


class MessageError(exits.OperatorError):
    """The message cannot be sent as it is."""

    def __init__(self, text: str) -> None:
        super().__init__(exits.DATA, text)


@dataclass(frozen=True, slots=True)
class Author:
    """Who sends, as far as the system knows."""

    login: str
    full_name: str = ""


def lines_of(raw: bytes, *, dots_are_text: bool) -> bytes:
    """What was read, with CRLF line ends and up to the line that ends it."""
    if not dots_are_text:
        match = re.search(rb"^\.\r?$", raw, re.MULTILINE)
        if match:
            raw = raw[: match.start()]
    if raw and not raw.endswith(b"\n"):
        raw += b"\n"
    return raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def with_header(content: bytes) -> tuple[bytes, int]:
    """Content with an empty line behind its header, and the length of the header. Raises MessageError."""
    if content.startswith((b"From ", b">From ")):
        content = content[content.index(b"\r\n") + 2 :]
    position = 0
    while position < len(content):
        end = content.index(b"\r\n", position) + 2
        if end == position + 2:
            break
        if not (_FIELD.match(content, position, end) or (position and content[position] in b" \t")):
            content = content[:position] + b"\r\n" + content[position:]
            break
        position = end
    else:
        content += b"\r\n"
    if position > headers.HEADER_LIMIT:
        raise MessageError(f"the header is larger than {headers.HEADER_LIMIT} octets")
    bad = re.search(rb"\r(?!\n)|\0", content[:position])
    if bad:
        what = "a NUL" if bad[0] == b"\0" else "a carriage return"
        line = content.count(b"\r\n", 0, bad.start()) + 1
        raise MessageError(f"line {line}: {what} in the header")
    return content, position


def without_strays(content: bytes, end: int) -> bytes:
    """Content whose body, from `end` on, has no NUL and no carriage return of its own."""
    body = content[end:]
    if body.count(b"\r") != body.count(b"\r\n") or b"\0" in body:
        body = re.sub(rb"\r(?!\n)|\0", b" ", body)
        return content[:end] + body
    return content


def folded(content: bytes, end: int, limit: int) -> bytes:
    """Content without lines longer than `limit`."""
    if max(map(len, content.split(b"\r\n"))) <= limit:
        return content
    result: list[bytes] = []
    position = 0
    for line in content.split(b"\r\n"):
        in_header = position < end
        position += len(line) + 2
        result += _pieces(line, limit, at_space=in_header)
    return b"\r\n".join(result)


def _pieces(line: bytes, limit: int, *, at_space: bool) -> Iterator[bytes]:
    """A line in pieces of at most `limit` octets, each but the first with white space in front: what was there, or a
    space. It may be one line of all the message, so nothing but the piece is copied."""
    start, space = 0, b""
    while len(space) + len(line) - start > limit:
        end = start + limit - len(space)
        if at_space:
            first = start + 1 - len(space)
            cut = max(line.rfind(b" ", first, end), line.rfind(b"\t", first, end))
            if cut >= first and line[start:cut].strip(b" \t"):
                yield space + line[start:cut]
                start, space = cut, b""
                continue
        earliest = end - 4
        while end > earliest and line[end] & 0xC0 == 0x80:  # within a character
            end -= 1
        yield space + line[start:end]
        start, space = end, b" "
    yield space + line[start:]


def recipients_in(content: bytes, end: int, domain: str) -> list[str]:
    """The addresses in To, Cc and Bcc; of a message that was resent those in the Resent- fields of the last time, which
    come first (RFC 5322 3.6.6). Raises MessageError."""
    fields = list(headers.fields(content, end))
    resent: list[headers.Field] = []
    for field in fields:
        if field.name.startswith(b"resent-"):
            if field.name in [one.name for one in resent]:
                break
            resent.append(field)
    prefix, chosen = (b"resent-", resent) if resent else (b"", fields)
    found: list[str] = []
    for field in chosen:
        if field.name in [prefix + name for name in _RECIPIENTS]:
            text = content[field.value : headers.value_end(content, field)].decode("utf-8", "surrogateescape")
            line = content.count(b"\r\n", 0, field.start) + 1
            found += _addresses(text, domain, f"line {line}: {field.name.decode().title()}")
    return found


def _addresses(text: str, domain: str, where: str) -> list[str]:
    try:
        return [mailbox.address for mailbox in addresses.parse_list(text, domain)]
    except addresses.AddressError as error:
        raise MessageError(f"{where}: {error}") from None


def add_recipients(envelope: Envelope, texts: list[str], domain: str) -> None:
    """Put the addresses of an argument or a field into the envelope, each once. Raises MessageError."""
    seen = {recipient.address for recipient in envelope.recipients}
    for text in texts:
        for one in _addresses(text, domain, ascii(text[:80])):
            address = canonical(one, envelope)
            if address not in seen:
                seen.add(address)
                envelope.recipients.append(Recipient(address))


def canonical(text: str, envelope: Envelope) -> str:
    """An address as it goes into the envelope, which learns what it needs. Raises MessageError."""
    try:
        address = parse_address(text)
        if not address.domain:
            raise AddressError("the domain is missing")
        if not address.local.isascii():
            envelope.flags |= SMTPUTF8
        elif not address.domain.isascii():
            address.domain = domain_to_ascii(address.domain)
    except AddressError as error:
        raise MessageError(f"{text[:80]!a}: {error}") from None
    return address.text


def sender(text: str | None, author: Author, domain: str, envelope: Envelope) -> str:
    """The sender of the envelope: what `-f` says, or who calls. Raises MessageError."""
    if text is None:
        return canonical(f"{_local(author.login)}@{domain}", envelope)
    if text.strip() in ("", "<>"):
        return ""
    found = _addresses(text, domain, f"-f {text[:80]!a}")
    if len(found) != 1:
        raise MessageError(f"-f {text[:80]!a}: expected one address")
    return canonical(found[0], envelope)


def with_missing_fields(
    content: bytes, end: int, author: Author, full_name: str | None, envelope: Envelope, settings: Settings
) -> bytes:
    """Content with From, Date and Message-ID."""
    present = {field.name for field in headers.fields(content, end)}
    resent = any(name.startswith(b"resent-") for name in present)
    added = ""
    if b"from" not in present and not resent:
        address = envelope.sender or canonical(f"{_local(author.login)}@{settings.hostname}", envelope)
        name = author.full_name if full_name is None else full_name
        added += f"From: {_phrase(name)} <{address}>\r\n" if name.strip() else f"From: {address}\r\n"
    if b"date" not in present:
        added += f"Date: {trace.date(time.time_ns() // 1000)}\r\n"
    if b"message-id" not in present:
        unique = f"{time.time_ns() // 1000:x}.{os.getpid():x}.{os.urandom(4).hex()}"
        added += f"Message-ID: <{unique}@{settings.hostname}>\r\n"
    return added.encode("utf-8", "replace") + content


def fault(content: bytes, settings: Settings) -> str:
    """What the MTA would refuse about the header section, when nobody is there to be told any more; else nothing."""
    scan = headers.scan(content)
    if scan.end <= 0:
        return ""
    most = sys.maxsize
    found = checks.size_fault(content, scan.end, settings.header_size or most, settings.field_size or most,
                              settings.fields or most)
    if not found and settings.repeated and scan.repeated:
        found = checks.repeated_fault(scan.repeated)
    if not found and settings.from_domains:
        found = checks.from_fault(content, scan.end, settings.from_domains)
    return found


def _local(login: str) -> str:
    """A login name as a local part; those that are none are quoted."""
    if re.fullmatch(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*", login):
        return login
    return '"' + re.sub(r'(["\\])', r"\\\1", login) + '"'


def _phrase(name: str) -> str:
    """A name before an address (RFC 5322 3.2.5), encoded by RFC 2047 when it is not ASCII."""
    # Octets that are no UTF-8 come as surrogates: from a program that writes Latin-1, mostly.
    name = "".join(c if c.isprintable() else "\ufffd" if c >= "\ud800" else " " for c in name).strip()
    if not name.isascii():
        from email.header import Header  # here, because few need it

        return Header(name, "utf-8").encode(linesep="\r\n")
    if _PLAIN_PHRASE.fullmatch(name):
        return name
    return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
