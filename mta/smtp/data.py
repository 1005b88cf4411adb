"""Message content on the wire: dot-stuffing, the end of data, and what content may not contain.

Content is `bytes` with CRLF line ends, the last line included, never stuffed; stuffing exists between the two ends of
a connection only (RFC 5321 4.5.2). Only CRLF.CRLF ends data. Everything that other software might take for a line
end - bare CR, bare LF - or for the end of a string - NUL - is refused once the end of data was read (`fault`), never
repaired and never passed on, so that no two hosts can disagree on where a message ends (SMTP smuggling,
CVE-2023-51764 and its kin).

With BDAT (RFC 3030) content comes in chunks of a size that is told before, without stuffing and end; it is examined in
the same way, unless it is declared to be no text (BODY=BINARYMIME).

All of it runs at the speed of the C functions of `bytes`; nothing here looks at single lines or bytes.
"""

from __future__ import annotations

import re

END = b"\r\n.\r\n"
_SMALL = 4096  # octets
_ORDINARY = bytes(byte for byte in range(256) if byte not in b"\0\r\n")
# Searches that begin with one literal octet are as fast as memchr(3): half the time of counting CR LF.
_BARE_CR = re.compile(rb"\r(?!\n)")
_ODD = re.compile(rb"\r(?!\n(?!\.))")  # a bare CR, or the end of a line before one that begins with a dot


def stuff(content: bytes) -> bytes:
    """Content as it goes over the wire, without the final dot; the very same object when nothing is to be changed."""
    if content.rfind(b"\r\n.") >= 0:  # `rfind` takes half the time of `in`
        content = content.replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    if content and not content.endswith(b"\r\n"):
        content += b"\r\n"
    return content


def unstuff(content: bytes) -> bytes:
    """Content as it was before it was stuffed: the first dot of every line that begins with one is removed."""
    if content.rfind(b"\r\n.") >= 0:
        content = content.replace(b"\r\n.", b"\r\n")
    return content[1:] if content.startswith(b".") else content


def fault(content: bytes, line_length: int, *, no_bare_cr: bool = False) -> str:
    """What is wrong with content that was received, in words for the sender; empty when nothing is.

    `line_length` is the longest line allowed, without its CRLF. `no_bare_cr`: that there is none is known. Hot path: 4
    to 6 µs for 5 KB (tests/smtp/timing.py).
    """
    ends = content.translate(None, _ORDINARY)
    if 0 in ends:
        return "NUL in the message"
    if not no_bare_cr and _BARE_CR.search(content) is not None:
        return "Bare carriage return in the message; lines end with CR LF"
    # Every CR is followed by an LF; so if there are as many of both, every LF follows a CR.
    if 2 * ends.count(b"\n") != len(ends):
        return "Bare line feed in the message; lines end with CR LF"
    # From the start of a line, the last line end within reach: if there is none, this line is too long.
    start, reach = 0, line_length + 2
    last = len(content) - reach
    while start < last:
        start = content.rfind(b"\n", start, start + reach) + 1
        if start == 0:
            return _too_long(line_length)
    return ""


def header_fault(content: bytes, line_length: int) -> str:
    """What is wrong with the header section of content that is no text, as of `fault`: header lines are text in any
    case, and are quoted in notifications. What has no empty line is header to its end."""
    end = -2 if content.startswith(b"\r\n") else content.find(b"\r\n\r\n")
    return fault(content if end == -1 else content[: end + 2], line_length)


class _Reader:
    """Keeps and examines the content of one message as it comes.

    Whole lines are handled as they come, so that no piece costs more than its size (a large message must not hold up
    the hub at its end); most content comes in one piece. Memory is bounded: of content that will be refused nothing is
    kept, but it is read to its end, so that the session stays in step.
    """

    __slots__ = ("_blocks", "_limit", "_line", "_line_length", "_size", "dotless", "fault")

    def __init__(self, limit: int, line_length: int) -> None:
        """`limit`: octets of content, as RFC 1870 counts them, without stuffing. `line_length`: see `fault`."""
        self._limit = limit
        self._line_length = line_length
        self._blocks: list[bytes] = []  # whole lines, not stuffed
        self._size = 0  # of all blocks there were
        self._line = b""  # the line that is not complete, as it came
        self.fault = ""  # what is wrong with the content
        self.dotless = True  # no line was found that begins with a dot: content that needs no stuffing

    @property
    def too_big(self) -> bool:
        """Whether there was more content than the limit."""
        return self._size > self._limit

    @property
    def kept(self) -> int:
        """Octets in memory."""
        return 0 if self.fault or self._size > self._limit else self._size + len(self._line)

    def drop(self) -> None:
        """Keep nothing from now on. Only the end of the content is still of interest."""
        self._limit = -1
        self._blocks.clear()

    def content(self) -> bytes:
        """All of it, not stuffed, once the end is there and there is nothing wrong with it."""
        return self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)

    def _add(self, block: bytes) -> None:
        """Keep a block. Small ones are joined, or those of a client that sends single lines would take up many times
        the octets that count."""
        blocks = self._blocks
        if blocks and len(blocks[-1]) < _SMALL:
            block = blocks.pop() + block
        blocks.append(block)


class DataReader(_Reader):
    """Content that comes by DATA: finds its end in the stream."""

    __slots__ = ()

    def feed(self, data: bytes, start: int = 0) -> int:
        """Take `data[start:]`. The offset behind the end of data when it is there, else -1 (and all is taken).

        Hot path: 7 µs for 5 KB with all that is to be found out about it (tests/smtp/timing.py).
        """
        begun = len(self._line)
        block = self._line + data[start:]  # it begins at the start of a line
        odd = _ODD.search(block) if not block.startswith(b".") else None
        if odd is not None and block.startswith(END, odd.start()):
            # All lines of it are there, and none begins with a dot but the last.
            end = odd.end() + 1
            self._keep(block[:end], plain=True)
            return start + end + 3 - begun
        if odd is not None or block.startswith(b"."):
            last = -2 if block.startswith(b".\r\n") else block.find(END)  # -2: the CRLF before it was an earlier one
            if last != -1:
                self._keep(block[: last + 2])
                return start + last + len(END) - begun
        whole = block.rfind(b"\r\n") + 2
        if whole > 1:
            self._keep(block[:whole], plain=odd is None and not block.startswith(b"."))
            block = block[whole:]
        self._line = self._cut_short(block)
        return -1

    def _keep(self, block: bytes, *, plain: bool = False) -> None:
        """Take whole lines. `plain`: there is no bare CR in them, and none begins with a dot."""
        if not plain:
            stuffed = len(block)
            block = unstuff(block)
            if len(block) != stuffed:
                self.dotless = False
        self._size += len(block)
        if not self.fault and self._size <= self._limit:
            self.fault = fault(block, self._line_length, no_bare_cr=plain)
            self._add(block)
        if self.fault or self._size > self._limit:
            self._blocks.clear()

    def _cut_short(self, line: bytes) -> bytes:
        """A line that has begun; when it is too long already, something shorter that will end in the same way."""
        if len(line) <= self._line_length + 2:  # a dot of stuffing, and the first half of the line end
            return line
        self.fault = self.fault or _too_long(self._line_length)
        self._size += len(unstuff(line)) - 2
        return b"x\r" if line.endswith(b"\r") else b"xx"


class ChunkReader(_Reader):
    """Content that comes by BDAT: it has neither stuffing nor an end of its own."""

    __slots__ = ("_binary",)

    def __init__(self, limit: int, line_length: int, *, binary: bool = False) -> None:
        """`binary`: it is no text, and may contain anything."""
        super().__init__(limit, line_length)
        self._binary = binary
        self.dotless = not binary

    def feed(self, piece: bytes) -> None:
        """Take a piece of a chunk."""
        if self._binary:
            self._keep(piece)
            return
        block = self._line + piece if self._line else piece  # it begins at the start of a line
        whole = block.rfind(b"\r\n") + 2
        if whole > 1:
            self._keep(block[:whole])
            block = block[whole:]
        if len(block) > self._line_length + 1:  # and the first half of its end
            self.fault = self.fault or _too_long(self._line_length)
            self._size += len(block) - 2
            block = b"x\r" if block.endswith(b"\r") else b"xx"
        self._line = block

    def end(self) -> None:
        """The last chunk has come. Text ends with a line end: a last line without one gets it, as it would on the way
        to any host that takes no chunks."""
        if self._line:
            self._keep(self._line + b"\r\n")
            self._line = b""

    def _keep(self, block: bytes) -> None:
        self._size += len(block)
        if not self.fault and self._size <= self._limit:
            if not self._binary:
                self.fault = fault(block, self._line_length)
                if self.dotless and (block.startswith(b".") or block.rfind(b"\r\n.") >= 0):
                    self.dotless = False
            self._add(block)
        if self.fault or self._size > self._limit:
            self._blocks.clear()


def _too_long(line_length: int) -> str:
    return f"A line is longer than {line_length} octets"
