"""What the tests of both SMTP machines share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat

import pytest

from mta.queue.records import Recipient
from mta.smtp.client import Client, ClientEvent, Finished, Transaction
from mta.smtp.errors import RemoteProtocolError
from mta.smtp.peer import ALL_RIGHTS, NO_RIGHTS, Rights
from mta.smtp.reply import Reply
from mta.smtp.server import MessageReceived, Peer, Server, ServerEvent, ServerSettings, TakesLong

TRUSTED = Peer("192.0.2.9", 4711)
STRANGER = Peer("198.51.100.7", 4711)


class TrustsOne:
    """Permissions of TRUSTED's address alone."""

    def rights_of(self, peer: Peer) -> Rights:
        """All or none."""
        return ALL_RIGHTS if peer.address == TRUSTED.address else NO_RIGHTS


def server_settings(**options: object) -> ServerSettings:
    """Settings of mx.example.net, with which TRUSTED may relay."""
    return ServerSettings("mx.example.net", **{"permissions": TrustsOne(), **options})


CONTENT = b"From: a@example.com\r\nSubject: hello\r\n\r\nhello\r\n"

EHLO = (
    b"250-mx.example.net\r\n250-PIPELINING\r\n250-SIZE 10000000\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n"
    b"250 ENHANCEDSTATUSCODES\r\n"
)
PLAIN_EHLO = b"250-mx.example.net\r\n250 HELP\r\n"


def new_server(peer: Peer = TRUSTED, **options: object) -> Server:
    """A session that has said EHLO."""
    server = Server(server_settings(**options), peer)
    assert talk(server, b"EHLO client.example\r\n")[0].startswith(b"250-mx.example.net")
    return server


def talk(server: Server, data: bytes) -> tuple[bytes, list[ServerEvent]]:
    """Give the server `data`: its replies and events."""
    events = server.receive(data)
    return server.output(), events


def say(server: Server, *lines: str) -> list[str]:
    """Give the server command lines one by one: the replies, decoded, without the last line end."""
    replies = []
    for line in lines:
        output, _ = talk(server, line.encode() + b"\r\n")
        replies.append(output.decode().removesuffix("\r\n"))
    return replies


def open_transaction(server: Server) -> None:
    """MAIL, RCPT and DATA: the content comes next."""
    replies = say(server, "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA")
    assert replies[2].startswith("354")


def deliver(server: Server, content: bytes = CONTENT) -> MessageReceived:
    """A whole transaction, accepted."""
    open_transaction(server)
    (event,) = server.receive(content + b".\r\n")
    assert isinstance(event, MessageReceived)
    assert server.output() == b""
    assert server.answer(QUEUED) == []
    assert server.output() == QUEUED.to_bytes()
    return event


QUEUED = Reply(250, "2.0.0", ("Ok: queued as 1",))


def new_client(ehlo: bytes = EHLO, **options: object) -> Client:
    """A session that is open."""
    client = Client("client.example", **options)
    client.receive(b"220 mx.example.net ESMTP\r\n")
    assert wire(client) == b"EHLO client.example\r\n"
    client.receive(ehlo)
    assert client.phase == "ready"
    return client


def wire(client: Client) -> bytes:
    """Everything the client wants to write now."""
    return b"".join(client.output())


def transaction(*recipients: str, content: bytes = CONTENT, sender: str = "a@example.com") -> Transaction:
    """A transaction to `recipients`, or to one."""
    return Transaction(sender, [Recipient(address) for address in recipients or ("b@example.org",)], content)


def finished(events: Iterable[ClientEvent]) -> list[Transaction]:
    """The transactions that the events finish."""
    return [event.transaction for event in events if isinstance(event, Finished)]


def exchange(client: Client, *replies: bytes) -> list[ClientEvent]:
    """Give the client replies one by one, fetching its output in between."""
    events = []
    for reply in replies:
        client.output()
        events += client.receive(reply)
    client.output()
    return events


def fails(client: Client, data: bytes) -> list[ClientEvent]:
    """Give the client something that must be a protocol error: the events that `lost` gives then."""
    with pytest.raises(RemoteProtocolError) as error:
        client.receive(data)
    assert str(error.value).isprintable()
    return client.lost(str(error.value))


def pieces(data: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    """Cut `data` into pieces of these sizes, the rest in one."""
    position = 0
    for size in sizes:
        if position >= len(data):
            break
        yield data[position : position + size]
        position += size
    if position < len(data):
        yield data[position:]


def converse(
    server: Server, client: Client, answer: Callable[[MessageReceived], Reply], cut: int = 1 << 30
) -> list[ClientEvent]:
    """Carry bytes between the machines, in pieces of `cut` octets, until the client has nothing to say."""
    events: list[ClientEvent] = []
    while said := wire(client):
        for piece in pieces(said, repeat(cut)):
            pending = server.receive(piece)
            while pending:
                event = pending.pop(0)
                if isinstance(event, MessageReceived):
                    pending += server.answer(answer(event))
                elif isinstance(event, TakesLong):
                    pending += server.go_on()
        for piece in pieces(server.output(), repeat(cut)):
            events += client.receive(piece)
    return events
