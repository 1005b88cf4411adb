"""What the SMTP machines cost: `python -m tests.smtp.timing`. Not a test; run it on a quiet machine.

One transaction of a 5 KB message with one recipient, in microseconds of CPU; the best of many runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mta.queue.records import Recipient
from mta.smtp.client import Client, Transaction
from mta.smtp.data import DataReader, fault, stuff
from mta.smtp.peer import ALL_RIGHTS, SameForAll
from mta.smtp.reply import Reply
from mta.smtp.server import MessageReceived, Peer, Server, ServerSettings

CONTENT = b"From: sender@example.com\r\nSubject: timing\r\n\r\n" + (b"x" * 68 + b"\r\n") * 71
WITH_DOT = CONTENT + b".\r\n"
ENVELOPE = (
    b"MAIL FROM:<sender@example.com> SIZE=%d\r\n" % len(CONTENT),
    b"RCPT TO:<user@example.org>\r\n",
    b"DATA\r\n",
)
TAKEN = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"


def best_us(function: Callable[[], object], runs: int = 200, calls: int = 100) -> float:
    """The least time of one call, over many runs, so that other work on the machine counts little."""
    best = float("inf")
    for _ in range(runs):
        began = time.process_time_ns()
        for _ in range(calls):
            function()
        best = min(best, time.process_time_ns() - began)
    return best / calls / 1000


def server_step(across: bool) -> Callable[[], object]:
    """One transaction of the server: in four reads, or in one read together with its successor's envelope."""
    server = Server(ServerSettings("mx.example.net", permissions=SameForAll(ALL_RIGHTS)), Peer("192.0.2.9", 4711))
    server.receive(b"EHLO client.example\r\n")
    reads = [CONTENT + b".\r\n" + b"".join(ENVELOPE)] if across else [*ENVELOPE, CONTENT + b".\r\n"]
    if across:
        server.receive(b"".join(ENVELOPE))
    server.output()
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        for data in reads:
            for event in server.receive(data):
                assert isinstance(event, MessageReceived)
                server.answer(Reply(250, "2.0.0", (f"Ok: queued as {number}",)))
            server.output()

    return step


def chunk_step() -> Callable[[], object]:
    """One transaction of the server, its content in one chunk, in one read."""
    server = Server(ServerSettings("mx.example.net", permissions=SameForAll(ALL_RIGHTS)), Peer("192.0.2.9", 4711))
    server.receive(b"EHLO client.example\r\n")
    server.output()
    data = b"".join(ENVELOPE[:2]) + b"BDAT %d LAST\r\n" % len(CONTENT) + CONTENT

    def step() -> None:
        for event in server.receive(data):
            assert isinstance(event, MessageReceived)
            server.answer(Reply(250, "2.0.0", ("Ok: queued as 1",)))
        server.output()

    return step


def client_step(across: bool, chunks: bool = False) -> Callable[[], object]:
    """One transaction of the client: pipelined across messages, or one command at a time; by DATA or in chunks."""
    client = Client("client.example")
    client.receive(b"220 mx.example.net\r\n")
    client.receive(b"250-mx.example.net\r\n" + b"250-PIPELINING\r\n" * across
                   + b"250-CHUNKING\r\n" * chunks + b"250 SIZE 10000000\r\n")
    recipients = [Recipient("user@example.org")]
    taken = b"".join(TAKEN.splitlines(keepends=True)[:2]) if chunks else TAKEN
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        replies = [b"250 2.0.0 Ok: queued as %d\r\n" % number]
        client.send(Transaction("sender@example.com", recipients, CONTENT))
        if across:
            replies[0] += taken
        else:
            replies = [*taken.splitlines(keepends=True), *replies]
        for reply in replies:
            client.output()
            client.receive(reply)

    if across:
        client.send(Transaction("sender@example.com", recipients, CONTENT))
        client.output()
        client.receive(taken)
    return step


def read_content() -> None:
    """Find the end of data, and everything that may be wrong with it."""
    reader = DataReader(10**7, 998)
    reader.feed(WITH_DOT)
    reader.content()


def main() -> None:
    """Print all figures."""
    print(f"message of {len(CONTENT)} octets")
    for name, function in (
        ("server, four reads", server_step(across=False)),
        ("server, one read", server_step(across=True)),
        ("server, one read, BDAT", chunk_step()),
        ("client, pipelined across", client_step(across=True)),
        ("client, without pipelining", client_step(across=False)),
        ("client, chunks, pipelined across", client_step(across=True, chunks=True)),
        ("client, chunks, without pipelining", client_step(across=False, chunks=True)),
        ("content: all of reading", read_content),
        ("content: bare CR, LF, NUL, long lines", lambda: fault(CONTENT, 998)),
        ("content: stuffing", lambda: stuff(CONTENT)),
    ):
        print(f"{best_us(function):6.1f} us  {name}")


if __name__ == "__main__":
    main()
