"""Find and edit the header section of a message, by offsets in its bytes.

`scan` tells what intake wants to know and is a hot path (bench/throughput.py watches it): one search for the empty
line, one compiled expression over the header section, the body is never looked at. `fields`, `get` and `remove` are
the plain tools for everything else. None of them decodes or rewrites what it does not have to: what comes in goes
out byte for byte.

Content has CRLF line ends and ends with one. The *header section* (RFC 5322 2.2) is what precedes the first empty
line; its length counts the CRLF of the last field, not the empty line. A message whose first line is no field has no
header section: it is all body. A line inside the section that is neither field nor continuation stays with the field
before it when that is edited, but is no part of its value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

HEADER_LIMIT = 262_144
"""Largest header section in bytes. Large receivers refuse more, and it bounds the time of a scan to about 1 ms."""

MESSAGE_ID_LIMIT = 998
"""Characters kept of a Message-ID: a whole line of RFC 5322. It is stored with the message and in every event."""

_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")  # RFC 5322 2.2 and, for the space before the colon, 4.5
ONCE = (b"date", b"from", b"message-id", b"subject", b"to", b"cc", b"bcc", b"sender", b"reply-to", b"in-reply-to",
        b"references")
"""The fields that a message has at most once (RFC 5322 3.6)."""


# These are for a section in lower case, which is cheaper to have than a search in any case. A search for a literal CRLF
# is four times as fast as (?m)^; names are cheaper to have than matches.
_SCANNED = re.compile(rb"\r\n(%b)[ \t]*:" % b"|".join((*ONCE, b"received", b"return-path")))
_MESSAGE_ID = re.compile(rb"\r\nmessage-id[ \t]*:")
_EMPTY = re.compile(rb"\r\n(date|from|message-id)[ \t]*+:[ \t]*+(?:\r\n[ \t]++){0,100}(?=\r\n(?![ \t]))")
_BEHIND_NOTHING = re.compile(rb"\r\n(?<=[: \t]\r\n)")  # a line end where nothing that can be seen stands before it
_ENDS_OF_VALUE = re.compile(rb"\r\n(?![ \t])")


class HeaderScan(NamedTuple):
    """What `scan` found."""

    end: int  # length of the header section, 0 when there is none, -1 when it is longer than HEADER_LIMIT
    received: int  # how many Received fields
    has_date: bool  # one with something in it, as with From
    message_id: str  # value of the first Message-ID that is not empty, unfolded and cut to MESSAGE_ID_LIMIT; or ""
    has_return_path: bool
    has_from: bool = True
    repeated: str = ""  # a field of ONCE that is there more than once, in lower case
    empty: tuple[str, ...] = ()  # which of date, from, message-id have nothing in them; not looked for when `repeated`


class Field(NamedTuple):
    """One header field: `content[start:end]` with its continuation lines and last CRLF; `value` is where it begins."""

    name: bytes  # lower case
    start: int
    value: int
    end: int


_NO_SECTION = HeaderScan(0, 0, False, "", False, False)
_TOO_LONG = HeaderScan(-1, 0, False, "", False, False)


def section_end(content: bytes) -> int:
    """Length of the header section: 0 when there is none, -1 when it is longer than HEADER_LIMIT."""
    end = content.find(b"\r\n\r\n", 0, HEADER_LIMIT + 2)
    if not _FIELD.match(content):
        return 0
    if end >= 0:
        return end + 2
    return len(content) if len(content) <= HEADER_LIMIT else -1


def scan(content: bytes) -> HeaderScan:
    """Look through the header section once."""
    end = section_end(content)
    if end <= 0:
        return _NO_SECTION if end == 0 else _TOO_LONG
    section = b"\r\n" + content[:end]
    lower = section.lower()
    names = _SCANNED.findall(lower)
    present = set(names)
    received = names.count(b"received")
    repeated = ""
    if len(names) != len(present) and len(names) - received != len(present) - (received > 0):
        # The first in the order of ONCE is told. Return-Path may be there more than once: all are removed.
        repeated = next((name.decode() for name in ONCE if names.count(name) > 1), "")
    message_id = ""
    if b"message-id" in present:
        start = lower.find(b"\r\nmessage-id:") + 13
        if start < 13 or (repeated and names.count(b"message-id") > 1):
            message_id = _message_id(section, lower)
        else:
            message_id = _text(section, start, _end_of_value(section, start))
    empty: tuple[str, ...] = ()
    if not repeated and _BEHIND_NOTHING.search(section) is not None:
        nothing = _EMPTY.findall(lower)  # few have that
        present.difference_update(nothing)
        empty = tuple(map(bytes.decode, nothing))
    return HeaderScan(end, received, b"date" in present, message_id, b"return-path" in present, b"from" in present,
                      repeated, empty)


def _message_id(section: bytes, lower: bytes) -> str:
    """The first that is not empty, in whatever case."""
    for match in _MESSAGE_ID.finditer(lower):
        text = _text(section, match.end(), _end_of_value(section, match.end()))
        if text:
            return text
    return ""


def fields(content: bytes, end: int | None = None) -> Iterator[Field]:
    """The fields of the header section in order; `end` is its length when it is known."""
    if end is None:
        end = max(section_end(content), 0)
    position = 0
    current: Field | None = None
    while position < end:
        line_end = content.find(b"\r\n", position, end)
        line_end = end if line_end < 0 else line_end + 2
        match = _FIELD.match(content, position, line_end)
        if match:
            if current is not None:
                yield current
            name = content[position : match.end() - 1].rstrip(b" \t").lower()
            current = Field(name, position, match.end(), line_end)
        elif current is not None:
            current = current._replace(end=line_end)
        position = line_end
    if current is not None:
        yield current


def value(content: bytes, field: Field) -> bytes:
    """The value of `field`, unfolded (RFC 5322 2.2.3) and without outer white space."""
    return content[field.value : value_end(content, field)].replace(b"\r\n", b"").strip(b" \t")


def value_end(content: bytes, field: Field) -> int:
    """Where the value of `field` ends: before the CRLF of its last continuation line."""
    return _end_of_value(content, field.value)


def get(content: bytes, name: str) -> bytes | None:
    """The unfolded value of the first field called `name`, in whatever case; None when there is none."""
    wanted = name.lower().encode("ascii")
    for field in fields(content):
        if field.name == wanted:
            return value(content, field)
    return None


def remove(content: bytes, names: Collection[str]) -> bytes:
    """`content` without the fields of these names, in whatever case. Everything else stays byte for byte."""
    unwanted = {name.lower().encode("ascii") for name in names}
    kept: list[bytes] = []
    position = 0
    for field in fields(content):
        if field.name in unwanted:
            kept.append(content[position : field.start])
            position = field.end
    if not kept:
        return content
    kept.append(content[position:])
    return b"".join(kept)


def unfolded(section: bytes, start: int) -> bytes:
    """The value that begins at `start`, unfolded (RFC 5322 2.2.3) and without outer white space."""
    return section[start : _end_of_value(section, start)].replace(b"\r\n", b"").strip(b" \t\r\n")


def _end_of_value(section: bytes, start: int) -> int:
    match = _ENDS_OF_VALUE.search(section, start)
    return match.start() if match else len(section)


def _text(section: bytes, start: int, end: int) -> str:
    raw = section[start:end]
    if b"\r\n" in raw:
        raw = raw.replace(b"\r\n", b"")
    return raw.strip(b" \t\r\n").decode("utf-8", "replace")[:MESSAGE_ID_LIMIT]
