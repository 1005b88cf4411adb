"""`sendmail -bs`: SMTP on standard input and output, into the pickup directory.

The machine is that of our listeners. `250` is said when the message is on stable storage, whether the MTA runs or not.

A script may write all commands and messages at once, which the machine, made for the network, takes for an attack:
it is given one command at a time. What makes that one is heeded nevertheless: when DATA is refused the session ends,
because what comes next might be a message that was meant for it, full of commands.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from mta.control import exits
from mta.queue.records import EIGHT_BIT
from mta.sendmail import drop, message
from mta.sendmail.settings import Settings
from mta.smtp.data import END
from mta.smtp.peer import ALL_RIGHTS, SameForAll
from mta.smtp.reply import Reply
from mta.smtp.server import (
    CHUNK,
    CHUNKED,
    CLOSED,
    CONTENT,
    MAIL,
    RCPT,
    READY,
    START,
    MessageReceived,
    Peer,
    Server,
    ServerSettings,
)

_CHUNK: Final = 65_536
_COMMANDS: Final = (START, READY, MAIL, RCPT, CHUNKED)  # states in which one is expected
_NO_DATA: Final = Reply(421, "4.7.0", ("DATA was refused, closing the connection",))

log = logging.getLogger(__name__)


class Session:
    """One session between two descriptors."""

    def __init__(self, settings: Settings, read: int, write: int) -> None:
        self._settings = settings
        self._read = read
        self._write = write
        self._server = Server(
            ServerSettings(
                settings.hostname,
                message_size=settings.message_size,
                recipients=settings.recipients,
                line_length=settings.line_length,
                command_length=settings.command_length,
                permissions=SameForAll(ALL_RIGHTS),  # who may write into the directory may send
            ),
            Peer("", 0),
        )
        self._buffer = b""  # what the machine has not seen
        self._has_quit = False
        self._begun = False  # the next octet is the first of the content of a message

    def run(self) -> int:
        """Until the client says QUIT or goes away, or is sent away; returns the exit code."""
        try:
            self._server.greet()
            self._say(self._server.output())
            while data := os.read(self._read, _CHUNK):
                self._buffer += data
                while self._server.state != CLOSED and (piece := self._next()):
                    self._take(piece)
                self._say(self._server.output())
                if self._server.state == CLOSED:
                    return exits.OK if self._has_quit else exits.DATA
        except (BrokenPipeError, ConnectionResetError):
            return exits.IO_ERROR
        return exits.OK

    def _next(self) -> bytes:
        """A command, or a piece of a message that does not go beyond its end. Empty when more input is needed."""
        state = self._server.state
        if state in _COMMANDS:
            end = self._buffer.find(b"\n") + 1 or (len(self._buffer) if len(self._buffer) > _CHUNK else 0)
        elif state == CHUNK:
            end = min(self._server.chunk_left, len(self._buffer))
        elif self._begun and self._buffer.startswith(END[2:]):
            end = 3
        elif self._begun and END[2:].startswith(self._buffer):
            end = 0
        else:
            found = self._buffer.find(END)
            # The last octets may be the begin of its end.
            end = found + len(END) if found >= 0 else max(len(self._buffer) - len(END) + 1, 0)
        piece, self._buffer = self._buffer[:end], self._buffer[end:]
        return piece

    def _take(self, piece: bytes) -> None:
        was_content = self._server.state in (CONTENT, CHUNK)
        verb = b"" if was_content else piece[:5].strip().upper()
        self._has_quit = verb == b"QUIT"
        for event in self._server.receive(piece):
            if isinstance(event, MessageReceived):
                self._server.answer(self._keep(event))
        self._begun = not was_content and self._server.state == CONTENT
        if verb == b"DATA" and not self._begun:
            self._server.close(_NO_DATA)

    def _keep(self, event: MessageReceived) -> Reply:
        content, envelope = event.content, event.envelope
        if fault := message.fault(content, self._settings):
            return Reply(550, "5.6.0", (fault,))
        if not content.isascii():
            envelope.flags |= EIGHT_BIT
        try:
            pieces = drop.batch(envelope, content, self._settings.recipients)
            name = drop.put(self._settings.directory, pieces)
        except exits.OperatorError as error:
            log.error("%s", error)
            if error.exit_code == exits.DATA:
                return Reply(554, "5.6.0", (str(error),))
            return Reply(451, "4.3.0", ("The message could not be stored, try again later",))
        return Reply(250, "2.0.0", (f"Ok: queued as {name}",))

    def _say(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._write, data) :]
