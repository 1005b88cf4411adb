"""SMTP replies: code, enhanced status code, text; written to the wire and read from it (RFC 5321 4.2, RFC 3463).

`ReplyParser` is lenient where hosts differ and nothing is at stake (a code without text, an enhanced code of the
wrong class or in the second line only, bytes that do not print), and strict where the meaning hangs on it: anything
that is not a line of a reply, a line that ends in a bare LF, lines of one reply with different codes, lines or
replies without end raise RemoteProtocolError. Text of a reply has no control characters, whatever the peer sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from mta.smtp.errors import RemoteProtocolError

LINE_LIMIT = 4096  # octets of a reply line; RFC 5321 4.5.3.1.5 says 512, some hosts say more
LINES_LIMIT = 128
KEPT_LIMIT = 8192  # octets of a reply behind which none of its lines are kept: a hundred replies are, at times
TEXT_LIMIT = 2048  # characters kept of a line, and of a reply in `str()`
_OUR_LINE = 490  # characters of text in a line that we send, so that it stays within 512 octets


class Reply(NamedTuple):
    """One reply of a server, ours or the peer's; or, `local`, what we say ourselves about a peer that said nothing."""

    code: int
    enhanced: str  # "2.1.5"; empty when there is none
    lines: tuple[str, ...] = ("",)  # text without the codes, at least one line
    local: bool = False  # no host said it: a description of ours, with the code that fits

    @property
    def text(self) -> str:
        """The text of all lines as one."""
        return " ".join(self.lines)

    @property
    def positive(self) -> bool:
        """Whether it says yes, 2xx."""
        return self.code // 100 == 2

    def __str__(self) -> str:
        """The whole reply in one line, as in `550 5.1.1 No such user`, at most TEXT_LIMIT characters.

        A local one is without the code, as in `4.4.2 connection lost`: a code is what a host has said.
        """
        head = f"{self.code} {self.enhanced} " if self.enhanced else f"{self.code} "
        if self.local:
            head = head[4:]
        return f"{head}{self.text}"[:TEXT_LIMIT].rstrip()

    def to_bytes(self) -> bytes:
        """The reply as it is sent; every line carries the enhanced code (RFC 2034 4)."""
        enhanced = f"{self.enhanced} " if self.enhanced else ""
        lines = self.lines
        if len(lines) == 1 and lines[0].isprintable() and len(lines[0]) <= _OUR_LINE:
            return f"{self.code} {enhanced}{lines[0]}\r\n".encode("ascii", "replace")
        *before, last = [printable(line)[:_OUR_LINE] for line in lines]
        text = "".join(f"{self.code}-{enhanced}{line}\r\n" for line in before)
        return f"{text}{self.code} {enhanced}{last}\r\n".encode("ascii", "replace")


class ReplyParser:
    """Reads replies from a stream of bytes that comes in any pieces. Memory is bounded by the limits above."""

    __slots__ = ("_code", "_count", "_kept", "_lines", "_rest")

    def __init__(self) -> None:
        self._rest = b""  # the line that is not complete
        self._code = b""  # of the reply that is not complete
        self._lines: list[bytes] = []
        self._count = 0  # of its lines, and the octets in those
        self._kept = 0

    @property
    def pending(self) -> bool:
        """Whether a reply has begun that did not end yet."""
        return bool(self._rest or self._lines)

    def feed(self, data: bytes) -> Iterator[Reply]:
        """Take `data` and give the replies that end in it, one by one.

        Raises RemoteProtocolError where sense ends, after the replies before that place were given; use the parser no
        more. Hot path: the replies to MAIL, RCPT and DATA are the same for every message, so they are remembered.
        """
        if self._rest:
            data = self._rest + data
        lines = data.split(b"\r\n")
        rest = self._rest = lines.pop()
        for line in lines:
            if not self._lines and line[3:4] != b"-":
                yield _single(line) if len(line) <= 200 else _parse([line])
                continue
            _check_line(line)
            if self._lines and line[:3] != self._code:
                raise RemoteProtocolError(f"lines of one reply with different codes: {_shown(line)}")
            self._code = line[:3]
            self._count += 1
            if self._count > LINES_LIMIT:
                raise RemoteProtocolError(f"a reply of more than {LINES_LIMIT} lines")
            if self._kept < KEPT_LIMIT:
                self._lines.append(line)
            self._kept += len(line)
            if line[3:4] != b"-":
                reply = _parse(self._lines)
                self._lines = []
                self._count = self._kept = 0
                yield reply
        if len(rest) > LINE_LIMIT or b"\n" in rest:
            _check_line(rest)


def printable(text: str) -> str:
    """The text with a space for every tab, and `?` for other characters that do not print (line ends, escapes, ...)."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "?" for char in text.replace("\t", " "))


_LINE = re.compile(rb"[2-5][0-9][0-9](?:[ -]|\Z)")
_ENHANCED = re.compile(r"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?: +|\Z)")


def _parse(lines: list[bytes]) -> Reply:
    """One reply from its lines, without their line ends. Raises RemoteProtocolError."""
    _check_line(lines[0])
    first_digit = chr(lines[0][0])
    enhanced = ""
    texts = []
    for line in lines:
        text = printable(line[4:].decode(errors="replace"))[:TEXT_LIMIT]
        # RFC 3463 2, but hosts do otherwise: a class that contradicts the code says nothing.
        match = _ENHANCED.match(text)
        if match is not None and match[1] == first_digit:
            found = match[0].rstrip()
            if not enhanced or enhanced == found:
                enhanced = found
                text = text[match.end() :]
        texts.append(text.rstrip())
    return Reply(int(lines[0][:3]), enhanced, tuple(texts))


@lru_cache(maxsize=1024)
def _single(line: bytes) -> Reply:
    return _parse([line])


def _check_line(line: bytes) -> None:
    if len(line) > LINE_LIMIT:
        raise RemoteProtocolError(f"a reply line of more than {LINE_LIMIT} octets")
    if _LINE.match(line) is None:
        raise RemoteProtocolError(f"not an SMTP reply: {_shown(line)}")
    if b"\n" in line:
        raise RemoteProtocolError(f"a reply line with a bare line feed: {_shown(line)}")


def _shown(line: bytes) -> str:
    """The beginning of a line as it may appear in a log."""
    return ascii(line[:60])[1:]
