"""Read a `.bsmtp` file: SMTP transactions one after the other, as a client would have said them.

    HELO client.example          (or EHLO, or neither)
    MAIL FROM:<a@example.org> RET=HDRS
    RCPT TO:<b@example.net> NOTIFY=NEVER
    DATA
    Subject: ...
    .
    MAIL FROM:... and so on; RSET, NOOP, VRFY, HELP and QUIT are understood

The commands go through the same machine as those of SMTP clients, so parameters, limits and checks are the same, and
whatever it would refuse is an error with its line. Content is dot-stuffed as on the wire, or stands behind `BDAT SIZE
LAST`, in as many octets of the file, in one chunk or several (RFC 3030). RFC 2442 is about such batches. Behind
PowerMTA's `XACK OFF` a recipient that is refused does not end the file: `refused` has what is to be put aside. Its
merge commands are not supported.

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
from mta.queue.records import DOTLESS, EIGHT_BIT
from mta.smtp import data
from mta.smtp.peer import ALL_RIGHTS, SameForAll
from mta.smtp.reply import Reply
from mta.smtp.server import MAIL, RCPT, Closed, MessageReceived, Peer, Server, ServerSettings

_CHUNK: Final = 262_144
_ERRORS: Final = 1_000_000  # refused recipients in a row behind XACK OFF
_TAKEN: Final = Reply(250, "2.0.0", ("Ok",))
_FAULT: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")
_ALLOWED: Final = frozenset(
    (b"HELO", b"EHLO", b"MAIL", b"RCPT", b"DATA", b"BDAT", b"RSET", b"NOOP", b"VRFY", b"HELP", b"QUIT"))
_NOT_IN_FILES: Final = {
    **dict.fromkeys((b"XMRG", b"XDFN", b"XPRT"), "mail merge is not supported: write one transaction per message"),
    **dict.fromkeys((b"STARTTLS", b"AUTH"), "it has no meaning in a file"),
}
_BDAT: Final = re.compile(rb"(?i:BDAT) +(\d{1,20})( +(?i:LAST))? *")


class Position(NamedTuple):
    """A place between two transactions."""

    offset: int = 0
    line: int = 1
    goes_on: bool = False  # XACK OFF was said before


BEGIN: Final = Position()
_EVERYTHING: Final = SameForAll(ALL_RIGHTS)  # who may write into the directory may send


class Refused(NamedTuple):
    """A recipient that was refused behind `XACK OFF`."""

    line: int
    command: bytes
    reply: str


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
        self.mail = b""  # that command
        self.refused: list[Refused] = []  # recipients of the last transaction; it may have no others
        self._goes_on = position.goes_on

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
            if verb == b"XACK":
                self._acknowledge(command, line)
                continue
            if verb not in _ALLOWED:
                why = _NOT_IN_FILES.get(verb, "")
                what = f"{_shown(command)}: {why}" if why else f"expected an SMTP command, found {_shown(command)}"
                raise FormatError(line, what)
            if verb == b"MAIL":
                self.begin = line
                self.mail = command
                self.refused = []
            if verb == b"QUIT":
                self._server = self._new_session()
            elif verb == b"RCPT" and self._goes_on and self._server.state in (MAIL, RCPT):
                self._try(command, line)
            elif self.refused and self._server.state == MAIL and verb in (b"DATA", b"BDAT"):
                return self._for_nobody(command, line)
            elif verb == b"DATA" and self._server.state == RCPT:
                self._say(command, line)
                return self._content(self._take_content(line), line, stuffed=True)
            elif verb == b"BDAT":
                self._say(b"DATA", line)  # the machine refuses it where content has no place
                return self._content(self._take_chunks(command, line), line, stuffed=False)
            else:
                self._say(command, line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _acknowledge(self, command: bytes, line: int) -> None:
        """XACK OFF: a recipient that is refused does not end the file."""
        wanted = command.partition(b" ")[2].strip().upper()
        if wanted not in (b"ON", b"OFF"):
            raise FormatError(line, f"{_shown(command)}: expected XACK ON or XACK OFF")
        self._goes_on = wanted == b"OFF"

    def _try(self, command: bytes, line: int) -> None:
        """RCPT behind XACK OFF."""
        try:
            self._say(command, line)
        except FormatError as error:
            if self._server.state not in (MAIL, RCPT):  # that was one error too many for the machine
                raise
            self.refused.append(Refused(line, command, error.what))

    def _for_nobody(self, command: bytes, line: int) -> Submission:
        """The content of a transaction whose recipients were all refused."""
        self._say(b"RCPT TO:<postmaster>", line)
        self._say(b"DATA", line)
        stuffed = command[:4].upper() == b"DATA"
        raw = self._take_content(line) if stuffed else self._take_chunks(command, line)
        submission = self._content(raw, line, stuffed=stuffed)
        submission.envelope.recipients.clear()
        return submission

    def _content(self, raw: bytes, line: int, *, stuffed: bool) -> Submission:
        first_line = line + 1
        if self._newline == b"\n":
            raw = raw.replace(b"\n", b"\r\n")
        content = data.unstuff(raw) if stuffed else raw
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
                self.position = Position(self._offset, self._line, self._goes_on)
                if not stuffed or len(content) != len(raw):
                    event.envelope.flags &= ~DOTLESS  # which the empty message is that the machine saw
                if not content.isascii():
                    event.envelope.flags |= EIGHT_BIT
                return Submission(event.envelope, content)
        raise FormatError(line, _said(self._server))

    def _new_session(self) -> Server:
        server = Server(self._settings, Peer("", 0))
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

    def _take_chunks(self, command: bytes, line: int) -> bytes:
        """The content in this BDAT command and those that follow it."""
        chunks: list[bytes] = []
        size = 0
        while True:
            match = _BDAT.fullmatch(command)
            if match is None:
                raise FormatError(line, f"expected BDAT with a number of octets, and LAST at the last one, found "
                                  f"{_shown(command)}")
            octets, last = int(match[1]), match[2]
            size += octets
            if size > self._limits.message_size:
                raise FormatError(line, f"the message is larger than smtp.message_size ({self._limits.message_size})")
            while len(self._buffer) - self._used < octets:
                if not self._fill():
                    raise FormatError(line, f"the file ends inside this chunk of {octets} octets")
            chunk = bytes(self._buffer[self._used : self._used + octets])
            if self._newline == b"\n" and b"\r" in chunk:
                at = line + 1 + chunk.count(b"\n", 0, chunk.index(b"\r"))
                raise FormatError(at, "a carriage return in a file whose lines end with LF")
            self._use(self._used + octets, chunk.count(b"\n"))
            chunks.append(chunk)
            if last:
                content = b"".join(chunks)
                return content if content.endswith(self._newline) or not content else content + self._newline
            line = self._line
            following = self._take_line()
            if following is None:
                raise FormatError(line, "the file ends inside a message: a BDAT command with LAST is missing")
            command = following

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
        errors=_ERRORS,
        permissions=_EVERYTHING,
    )


def _shown(command: bytes) -> str:
    return ascii(command[:60].decode("utf-8", "replace"))


def _said(server: Server) -> str:
    return server.output().decode("ascii", "replace").strip()
