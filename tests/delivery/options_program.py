"""Runs one scenario of an option of shaping that is not the subject of another program, with a real engine.

    python -m tests.delivery.options_program NAME [ARGUMENT]

Prints nothing and ends with 0 when the rule held.
"""

from tests.delivery.sited import Sited, quick  # noqa: I001 - patches first

import socket
import ssl
import sys
import tempfile
import time
from typing import Any

import gevent
from gevent.server import StreamServer

from mta.config.schema import ShapingRules
from mta.config.shaping import DefaultLayer, DomainLayer
from mta.config.units import Duration
from mta.queue.records import Recipient
from tests.delivery.exits_program import certificate
from tests.delivery.world import shaping


class Noting(Sited):
    """A host that notes what it reads, for each connection, and when that ended. It can do TLS, and hang."""

    tls: ssl.SSLContext | None = None

    def __init__(self, **options: Any) -> None:
        self.seen: list[list[bytes]] = []  # the commands of each connection; with what came in one go in one piece
        self.ended_s: list[float] = []
        self.hangs = ""
        self.chunks = ""  # offered if not empty; "unknown": but answered 502
        super().__init__(**options)

    def converse(self, sock: Any) -> None:
        said: list[bytes] = []
        self.seen.append(said)
        try:
            self._converse(sock, said)
        finally:
            self.ended_s.append(time.monotonic())

    def _hang(self, sock: Any, stage: str) -> None:
        while stage == self.hangs and sock.recv(65536):
            pass

    def _converse(self, sock: Any, said: list[bytes]) -> None:
        self._hang(sock, "greeting")
        sock.sendall(b"220 mx\r\n")
        held = b""
        body = False
        while True:
            while b"\r\n" not in held:
                data = sock.recv(65536)
                if not data:
                    return
                held += data
            line, _, held = held.partition(b"\r\n")
            if body:
                body = line != b"."
                if not body:
                    self._hang(sock, "dot")
                    sock.sendall(b"250 ok\r\n")
                continue
            said.append(line + (b" +" if held else b""))
            verb = line[:4].upper()
            self._hang(sock, verb.decode().lower())
            if verb == b"EHLO":
                offers = b"250-mx\r\n250-PIPELINING\r\n" + (b"250-STARTTLS\r\n" if self.tls else b"")
                if self.chunks:
                    offers += b"250-CHUNKING\r\n"
                sock.sendall(offers + b"250 OK\r\n")
            elif verb == b"STAR" and self.tls:
                sock.sendall(b"220 go\r\n")
                sock = self.tls.wrap_socket(sock, server_side=True)
            elif verb == b"BDAT" and self.chunks == "unknown":
                sock.sendall(b"502 what\r\n")
            elif verb == b"BDAT":
                octets = int(line.split()[1])
                while len(held) < octets:
                    held += sock.recv(65536)
                held = held[octets:]
                sock.sendall(b"250 ok\r\n")
            elif verb == b"DATA":
                sock.sendall(b"354 go\r\n")
                if self.hangs == "block":
                    gevent.sleep(3600)
                body = True
            else:
                sock.sendall(b"250 ok\r\n")
                if verb == b"QUIT":
                    return

    def count(self, verb: bytes) -> list[int]:
        """How many of a command each connection had."""
        return [sum(line.startswith(verb) for line in said) for said in self.seen]


def messages_per_connection() -> None:
    """At most so many on each."""
    world = Noting(shaping=quick(connections=1, messages_per_connection=4))
    for _ in range(10):
        world.make()
    world.until(world.over)
    assert world.count(b"MAIL") == [4, 4, 2], world.seen


def connection_age() -> None:
    """After that time a connection takes no further message, however few it has had; the others go over a new one."""
    world = Noting(shaping=shaping(connections=1, connection_age=Duration(60), idle=Duration(3600)))
    now_s = world.engine.monotonic()
    world.engine.monotonic = lambda: now_s
    world.make()
    world.until(world.drained)
    now_s += 59.9
    world.make()
    world.until(world.drained)
    assert world.count(b"MAIL") == [2]
    now_s += 0.2
    world.make()
    world.until(world.drained)
    assert world.count(b"MAIL") == [2, 1], world.seen


def idle() -> None:
    """So long a connection without work stays, and then ends with QUIT."""
    world = Noting(shaping=ShapingRules(default=DefaultLayer.of(idle=Duration(0.2)),
                                        domains={"long.test": DomainLayer.of(idle=Duration(60))}))
    world.make()
    world.make(domain="long.test")
    world.until(lambda: len(world.ended_s) == 1)
    gevent.sleep(0.3)
    assert len(world.ended_s) == 1
    assert sorted(world.count(b"QUIT")) == [0, 1]


def recipients_per_message() -> None:
    """A delivery to more recipients is carried in several transactions, one after the other; none is left out."""
    world = Noting(shaping=quick(connections=1, recipients_per_message=3))
    one = world.make(fresh=False)
    one.recipients = [Recipient(f"u{number}@d.test") for number in range(8)]
    world.engine.scheduler.add(0, one)
    world.until(world.drained)
    assert (world.count(b"MAIL"), world.count(b"RCPT")) == ([3], [8])
    assert world.shelf.told("delivered") == 8


def pipelining() -> None:
    """Off: one command at a time, though the host offers it."""
    for wanted in (True, False):
        world = Noting(shaping=quick(connections=1, pipelining=wanted))
        for _ in range(3):
            world.make()
        world.until(world.over)
        together = [line for said in world.seen for line in said if line.endswith(b" +")]
        assert bool(together) == wanted, world.seen


def chunking() -> None:
    """`auto`: BDAT where it is offered; a host that does not know it is asked once, and no message suffers for it.
    `off`: never."""
    for wanted, chunks, data, bdat in (("auto", "", 3, 0), ("auto", "taken", 0, 3), ("off", "taken", 3, 0),
                                       ("auto", "unknown", 3, 1)):
        world = Noting(shaping=quick(connections=1, chunking=wanted), pause=60)
        world.chunks = chunks
        for _ in range(3):
            world.make()
        world.until(world.drained)
        assert (sum(world.count(b"DATA")), sum(world.count(b"BDAT"))) == (data, bdat), (wanted, world.seen)
        assert (world.shelf.told("delivered"), world.shelf.told("deferred")) == (3, 0), world.shelf.events


def tls() -> None:
    """`off` never asks for it, `opportunistic` where it is offered, `required` waits for a host that does not offer."""
    with tempfile.TemporaryDirectory() as directory:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(directory, "mx.d.test"))
        for policy, offered, asked, sent in (
                ("off", True, 0, 1), ("opportunistic", True, 1, 1), ("opportunistic", False, 0, 1),
                ("required", True, 1, 1), ("required", False, 0, 0)):
            world = Noting(shaping=quick(tls=policy), pause=60)
            world.tls = context if offered else None
            world.make()
            world.until(world.drained if sent else lambda world=world: world.shelf.told("suspended"))
            assert (sum(world.count(b"STARTTLS")), sum(world.count(b"MAIL"))) == (asked, sent), (policy, world.seen)
            if not sent:
                assert "TLS" in next(event["text"] for event in world.shelf.events), world.shelf.events
                assert len(world.shelf.stored) == 1


TIMEOUTS = {"connect": ("", "the connection"), "greeting": ("greeting", "the greeting"), "ehlo": ("ehlo", ""),
            "starttls": ("star", ""), "mail": ("mail", "the answer to MAIL"), "rcpt": ("rcpt", "the answer to RCPT"),
            "data": ("data", "the answer to DATA"), "block": ("block", "the peer to take the content"),
            "dot": ("dot", "the answer to the content")}  # where the host hangs; what is said then


def timeouts(phase: str) -> None:
    """A host that falls silent in one phase is given up after the time of that phase, and of no other."""
    options = dict.fromkeys(TIMEOUTS, Duration(300)) | {phase: Duration(1)}
    world = Noting(shaping=quick(timeouts=options, pipelining=False), pause=60)
    world.hangs, told = TIMEOUTS[phase]
    large = b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n"
    if phase == "block":
        world.original = lambda message: large * 200_000
    if phase == "connect":
        full = socket.socket()
        full.bind(("127.0.0.7", 0))
        full.listen(0)
        fillers = [gevent.spawn(socket.create_connection, full.getsockname(), 5) for _ in range(2)]
        gevent.sleep(0.1)
        world.port = full.getsockname()[1]
        world.addresses_found = [(2, "127.0.0.7")]
        assert fillers
    if phase == "starttls":
        world.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    one = world.make(fresh=False)
    if phase == "block":
        one.message.content = large * 200_000
    begun = time.monotonic()
    world.engine.scheduler.add(0, one)
    world.until(lambda: world.shelf.events)
    assert time.monotonic() - begun >= 0.9
    text = world.shelf.events[0]["text"]
    if told:
        assert f"timeout while waiting for {told}" in text, text
    else:  # it is gone on in clear, or with HELO
        assert world.shelf.events[0]["event"] == "delivered", world.shelf.events
        assert len(world.seen) >= 2, world.seen


def families() -> None:
    """`ipv6` uses only that, `ipv6-first` that before the other."""
    for wanted, clients in (("ipv6", {"::1"}), ("ipv4", {"127.0.0.1"}), ("ipv6-first", {"::1"}),
                            ("ipv4-first", {"127.0.0.1"})):
        world = Sited(shaping=quick(families=wanted))
        StreamServer(("::1", world.port), world.serve).start()
        found = [(2, "127.0.0.1"), (10, "::1")]
        # What the router leaves of them (tests/delivery/test_routing_addresses.py).
        world.addresses_found = [one for one in found if wanted[:4] == {2: "ipv4", 10: "ipv6"}[one[0]] or "-" in wanted]
        world.make()
        world.until(world.over)
        assert set(world.clients) == clients, (wanted, world.clients)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
