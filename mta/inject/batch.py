"""Read a `.bsmtp` file: SMTP transactions one after the other, as a client would have said them.

    HELO client.example          (or EHLO, or neither)
    MAIL FROM:<a@example.org> RET=HDRS
    RCPT TO:<b@example.net> NOTIFY=NEVER
    DATA
    Subject: ...
    .
    MAIL FROM:... and so on; RSET, NOOP and QUIT are understood

The commands go through the same machine as those of SMTP clients, so parameters, limits and checks are the same, and
whatever it would refuse is an error with its line. Content is dot-stuffed as on the wire.

All lines end alike, LF or CRLF, and the first one of the file says how. A line end of the other kind is an error: a
program that writes CRLF may have let LF through in the text of a message, and `LF . LF` in it must not become the end
of one message and the begin of another (SMTP smuggling).

Memory is bounded by one message (`smtp.message_size`), whatever the length of the file. After each transaction
`position` says where the next one begins, in a form that can be kept and given to another reader of the same file.
"""

from __future__ import annotations

import functools
import re
from typing import BinaryIO, Final, NamedTuple

from mta.config.schema import SmtpIn
from mta.inject.formats import FormatError, Submission, check_lines, line_at
from mta.smtp import data
from mta.smtp.reply import Reply
from mta.smtp.server import MAIL, RCPT, Closed, MessageReceived, Peer, Server, ServerSettings

_CHUNK: Final = 262_144
_TAKEN: Final = Reply(250, "2.0.0", ("Ok",))
_FAULT: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")
_ALLOWED: Final = frozenset((b"HELO", b"EHLO", b"MAIL", b"RCPT", b"DATA", b"RSET", b"NOOP", b"QUIT"))


class Position(NamedTuple):
    """A place between two transactions."""

    offset: int = 0
    line: int = 1


BEGIN: Final = Position()


class BatchReader:
    """Reads the transactions of one open file. The file must be seekable; reading blocks."""

    def __init__(self, file: BinaryIO, limits: SmtpIn, hostname: str, position: Position = BEGIN) -> None:
        """Begin at `position`, which an earlier reader of this file had."""
        self._file = file
        self._limits = limits
        self._settings = _settings(hostname, limits)
        self._buffer = bytearray()
        self._used = 0  # octets of the buffer that were read, the line end before them included
        self._at_end = False
        self._server = self._new_session()
        file.seek(0)
        self._newline = b"\r\n" if file.readline(limits.command_length + 2).endswith(b"\r\n") else b"\n"
        file.seek(position.offset)
        self._offset = position.offset  # of the next octet to use
        self._line = position.line  # of that octet
        self.position = position
        self.begin = position.line  # line of the MAIL command of the last transaction

    def next(self) -> Submission | None:
        """The next transaction, or None at the end of the file. Raises FormatError."""
        while True:
            line = self._line
            command = self._take_line()
            if command is None:
                if self._server.state in (MAIL, RCPT):
                    raise FormatError(line, "the file ends inside a transaction: DATA is missing")
                return None
            verb = command.partition(b" ")[0].upper()
            if not command and self._server.state not in (MAIL, RCPT):
                continue  # an empty line between transactions
            if verb not in _ALLOWED:
                raise FormatError(line, f"expected an SMTP command, found {_shown(command)}")
            if verb == b"MAIL":
                self.begin = line
            if verb == b"QUIT":
                self._server = self._new_session()
            elif verb == b"DATA" and self._server.state == RCPT:
                return self._content(command, line)
            else:
                self._say(command, line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _content(self, command: bytes, line: int) -> Submission:
        self._say(command, line)
        raw = self._take_content(line)
        first_line = line + 1
        if self._newline == b"\n":
            raw = raw.replace(b"\n", b"\r\n")
        content = data.unstuff(raw)
        check_lines(content, self._limits.line_length, first_line)
        wrong = data.fault(content, self._limits.line_length)
        if wrong:
            match = _FAULT.search(content)
            raise FormatError(line_at(content, match.start() if match else 0, first_line), wrong)
        if len(content) > self._limits.message_size:
            raise FormatError(first_line, f"the message is larger than smtp.message_size ({self._limits.message_size})")
        # The machine is told of an empty message: the envelope is what we want of it.
        for event in self._server.receive(b".\r\n"):
            if isinstance(event, MessageReceived):
                self._server.answer(_TAKEN)
                self._server.output()
                self.position = Position(self._offset, self._line)
                event.envelope.dotless = len(content) == len(raw)  # the machine saw no content
                event.envelope.eight_bit = event.envelope.eight_bit or not content.isascii()
                return Submission(event.envelope, content)
        raise FormatError(line, _said(self._server))

    def _new_session(self) -> Server:
        server = Server(self._settings, Peer("", 0, True))
        server.receive(b"EHLO batch\r\n")
        server.output()
        return server

    def _say(self, command: bytes, line: int) -> None:
        events = self._server.receive(command + b"\r\n")
        reply = self._server.output()
        if reply[:1] not in (b"2", b"3") or any(isinstance(event, Closed) for event in events):
            raise FormatError(line, f"{_shown(command)}: {reply.decode('ascii', 'replace').strip()}")

    # -- the file ---------------------------------------------------------------------------------------------------

    def _take_line(self) -> bytes | None:
        """The next line without its line end, or None at the end of the file. Raises FormatError."""
        limit = self._limits.command_length
        while True:
            end = self._buffer.find(self._newline, self._used)
            if end >= 0 and end - self._used <= limit:
                line = bytes(self._buffer[self._used : end])
                self._use(end + len(self._newline), 1)
                if b"\n" in line or b"\r" in line:
                    raise FormatError(self._line - 1, "a line end of another kind than that of the first line")
                return line
            if end >= 0 or len(self._buffer) - self._used > limit:
                raise FormatError(self._line, f"a command longer than smtp.command_length ({limit})")
            if not self._fill():
                if len(self._buffer) == self._used:
                    return None
                raise FormatError(self._line, "the last line has no end; the file may be incomplete")

    def _take_content(self, line: int) -> bytes:
        """The content up to the line that is a dot, its last line end included."""
        newline = self._newline
        end_mark = newline + b"." + newline
        search = self._used - len(newline)  # the end of the DATA line begins the mark when the content is empty
        while True:
            found = self._buffer.find(end_mark, search)
            if found >= 0:
                content = bytes(self._buffer[self._used : found + len(newline)]) if found >= self._used else b""
                lines = content.count(b"\n") + 1
                if newline == b"\n" and b"\r" in content:
                    at = content.index(b"\r")
                    raise FormatError(
                        line + 1 + content.count(b"\n", 0, at), "a carriage return in a file whose lines end with LF"
                    )
                self._use(found + len(end_mark), lines)
                return content
            # Stuffing makes at most three octets of two.
            if len(self._buffer) - self._used > self._limits.message_size * 3 // 2 + _CHUNK:
                raise FormatError(
                    line + 1, f"the message is larger than smtp.message_size ({self._limits.message_size})"
                )
            search = max(search, len(self._buffer) - len(end_mark))
            if not self._fill():
                raise FormatError(line + 1, "the file ends inside this message: the line with a dot is missing")

    def _use(self, end: int, lines: int) -> None:
        self._offset += end - self._used
        self._line += lines
        self._used = end
        if end > _CHUNK:
            keep = end - len(self._newline)
            del self._buffer[:keep]
            self._used = len(self._newline)

    def _fill(self) -> bool:
        if not self._at_end:
            chunk = self._file.read(_CHUNK)
            self._at_end = not chunk
            self._buffer += chunk
        return not self._at_end


@functools.lru_cache(maxsize=4)
def _settings(hostname: str, limits: SmtpIn) -> ServerSettings:
    return ServerSettings(
        hostname,
        message_size=limits.message_size,
        recipients=limits.recipients,
        line_length=limits.line_length,
        command_length=limits.command_length,
    )


def _shown(command: bytes) -> str:
    return ascii(command[:60].decode("utf-8", "replace"))


def _said(server: Server) -> str:
    return server.output().decode("ascii", "replace").strip()
