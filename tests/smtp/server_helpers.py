"""What the tests of the server machine share."""

from __future__ import annotations

from collections.abc import Iterable

from mta.smtp.server import Envelope, MessageReceived, Server
from tests.smtp.helpers import QUEUED

TRANSACTION = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"


def outcome(server: Server, chunks: Iterable[bytes]) -> tuple[bytes, list[tuple[Envelope, bytes]], bool]:
    """Feed chunks, accepting every message: all replies, the messages, and whether the session is over."""
    replies = b""
    messages = []
    over = False
    for chunk in chunks:
        pending = server.receive(chunk)
        while pending:
            event = pending.pop(0)
            if isinstance(event, MessageReceived):
                messages.append((event.envelope, event.content))
                pending += server.answer(QUEUED)
            else:
                over = True
        replies += server.output()
    return replies, messages, over
