"""`sendmail -bs`: SMTP on standard input and output, into the pickup directory.

The machine is that of our listeners. `250` is said when the message is on stable storage, whether the MTA runs or not.
"""

from __future__ import annotations

import logging
import os

from mta.control import exits
from mta.sendmail import drop
from mta.sendmail.settings import Settings
from mta.smtp.reply import Reply
from mta.smtp.server import Closed, MessageReceived, Peer, Server, ServerSettings

log = logging.getLogger(__name__)


def run(settings: Settings, read: int, write: int) -> int:
    """One session between two descriptors. Returns the exit code."""
    server = Server(
        ServerSettings(
            settings.hostname,
            message_size=settings.message_size,
            recipients=settings.recipients,
            line_length=settings.line_length,
            command_length=settings.command_length,
        ),
        Peer("", 0, True),
    )
    try:
        _write(write, server.greeting())
        while data := os.read(read, 65_536):
            events = server.receive(data)
            while events:
                event, *events = events
                if isinstance(event, MessageReceived):
                    events += server.answer(_keep(settings, event))
                elif isinstance(event, Closed):
                    _write(write, server.output())
                    return exits.OK if event.by_client else exits.DATA
            _write(write, server.output())
    except (BrokenPipeError, ConnectionResetError):
        return exits.IO_ERROR
    return exits.OK


def _keep(settings: Settings, event: MessageReceived) -> Reply:
    content, envelope = event.content, event.envelope
    envelope.eight_bit = envelope.eight_bit or not content.isascii()
    try:
        name = drop.put(settings.directory, drop.batch(envelope, content, settings.recipients))
    except exits.OperatorError as error:
        log.error("%s", error)
        if error.exit_code == exits.DATA:
            return Reply(554, "5.6.0", (str(error),))
        return Reply(451, "4.3.0", ("The message could not be stored, try again later",))
    return Reply(250, "2.0.0", (f"Ok: queued as {name}",))


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
