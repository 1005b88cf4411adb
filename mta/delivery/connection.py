"""One outgoing connection: the greenlet that opens it, carries delivery after delivery, and closes it.

The protocol is `mta.smtp.client` (bytes in, events and bytes out), waiting is `mta.delivery.wire`; here they meet the
engine, which hands out deliveries (`next_job`), judges what came of them (`settle`) and is told how the connection
began and ended. While the peer works on the content of one message the envelope of the next is already under way, so
in steady state a message takes one round trip (RFC 2920).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta.delivery.settle import Peer
from mta.delivery.wire import WOKEN, Wire, WireError
from mta.queue import events
from mta.queue.records import EIGHT_BIT, SMTPUTF8, Delivery
from mta.queue.scheduler import Queue
from mta.smtp import client as smtp
from mta.smtp.errors import RemoteProtocolError
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.config.schema import DeliveryTimeouts
    from mta.delivery.engine import Engine
    from mta.delivery.path import Path
    from mta.delivery.routing import Host

AF_INET6 = 10


@dataclass(slots=True)
class Job:
    """One transaction of one delivery on this connection."""

    queue: Queue
    delivery: Delivery
    transaction: smtp.Transaction
    started_s: float
    untried: int  # recipients of the delivery beyond those in this transaction
    marked: bool = False  # its content was sent: after a crash it may be a duplicate


@dataclass(slots=True)
class Target:
    """One address to try."""

    host: Host
    family: int
    address: str

    def __str__(self) -> str:
        shown = f"[{self.address}]" if self.family == AF_INET6 else self.address
        return f"{shown}:{self.host.port}"


class Refusal(Exception):
    """An address did not give us a session; the reply is the peer's or our own description."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class Connection:
    """A connection of `path`. Made by the engine, which spawns `run`."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self.engine = engine
        self.path = path
        self.wire: Wire | None = None
        self.client: smtp.Client | None = None
        self.target: Target | None = None
        self.peer = Peer(events.Remote(path.name))
        self.opened_s = time.monotonic()
        self.messages = 0  # handed to the peer
        self.completed = 0  # transactions that came to a verdict
        self.jobs: list[Job] = []
        self.established = False
        self.idle = False
        self.stopping = False

    def __repr__(self) -> str:
        state = "idle" if self.idle else f"{len(self.jobs)} under way" if self.established else "opening"
        return f"<Connection to {self.remote_name}: {state}, {self.messages} messages>"

    @property
    def remote_name(self) -> str:
        """Host and address, as in `mx1.example.org [192.0.2.1:25]`."""
        return f"{self.target.host.name} [{self.target}]" if self.target is not None else ""

    # -- called by the engine ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Open, converse, close. Never raises but for a bug."""
        try:
            failure = self._open()
            if failure is not None:
                self.engine.connection_failed(self, failure)
                return
            self.established = True
            self.engine.established(self)
            self._converse()
        finally:
            if self.wire is not None:
                self.wire.close()
            self.engine.closed(self)

    def wake(self) -> None:
        """There may be work, or it is time to close."""
        if self.wire is not None:
            self.wire.wake()

    # -- opening -------------------------------------------------------------------------------------------------

    def _open(self) -> Reply | None:
        """Try addresses in order of preference until one gives a session; else what the best of them said."""
        failure: Reply | None = None
        for target in self._targets():
            try:
                self._open_one(target)
                return None
            except Refusal as refusal:
                # What a mail server says tells more than that another one could not be reached.
                if failure is None or refusal.reply.code != 450:
                    failure = refusal.reply
            if self.stopping:
                break
        return failure or Reply(450, "4.4.1", (self.engine.no_address(self.path),))

    def _targets(self) -> Iterator[Target]:
        """Addresses of the hosts by preference, equal ones in random order, at most `delivery.addresses`."""
        route = self.path.route
        assert route is not None
        left = self.engine.config.delivery.addresses
        hosts = sorted(route.hosts, key=lambda host: (host.preference, random.random()))
        for host in hosts:
            for family, address in self.engine.router.addresses(host).addresses:
                if left == 0:
                    return
                left -= 1
                yield Target(host, family, address)

    def _open_one(self, target: Target) -> None:
        """A session with `target`. Raises Refusal. Falls back to clear text where policy and the peer demand it."""
        now_s = time.monotonic()
        tls = self.path.shaping.tls
        if tls == "opportunistic" and self.engine.broken_tls.has(target.address, now_s):
            tls = "off"
        try:
            self._session(target, tls)
        except _HandshakeFailed as failed:
            if tls != "opportunistic":
                raise
            self.engine.log.info("%s: %s; going on in clear", self.remote_name, failed.reply.text)
            self.engine.broken_tls.add(target.address, now_s)
            self._session(target, "off")

    def _session(self, target: Target, tls: str) -> None:
        """Connect, greet and wait for Ready. Raises Refusal."""
        engine = self.engine
        timeouts = engine.config.delivery.timeouts
        if self.wire is not None:
            self.wire.close()
        wire = self.wire = Wire(engine.sweeper)
        self.target = target
        client = self.client = smtp.Client(
            engine.ehlo_name, tls=tls, pipelining=self.path.shaping.pipelining,  # type: ignore[arg-type]
        )
        client.pipeline_across = not engine.no_pipelining.has(target.address, time.monotonic())
        wire.deadline = time.monotonic() + timeouts.connect
        wire.waiting_for = "the connection"
        handshaking = False
        try:
            wire.connect(target.family, target.address, target.host.port, engine.source_address(target.family))
            while True:
                wire.write(client.output(), timeouts.block)
                self._set_deadline(timeouts)
                data = wire.read()
                if data is WOKEN:
                    if self.stopping:
                        raise Refusal(Reply(421, "4.3.2", ("we are shutting down",)))
                    continue
                assert isinstance(data, bytes)
                for event in client.receive(data) if data else client.lost("connection closed by the peer"):
                    if isinstance(event, smtp.Refused):
                        raise Refusal(event.reply)
                    if isinstance(event, smtp.StartTls):
                        handshaking = True
                        wire.deadline = time.monotonic() + timeouts.starttls
                        wire.waiting_for = "the TLS handshake"
                        wire.start_tls(engine.tls_context, target.host.name)
                        handshaking = False
                        client.tls_established()
                    elif isinstance(event, smtp.Ready):
                        self._describe(target)
                        return
                if not data:
                    raise WireError(f"connection closed by the peer while waiting for {wire.waiting_for}")
        except (WireError, RemoteProtocolError) as error:
            text = f"{target.host.name} [{target}]: {error}"
            if handshaking:
                raise _HandshakeFailed(Reply(450, "4.7.5", (text,))) from None
            raise Refusal(Reply(450, "4.4.1", (text,))) from None

    def _describe(self, target: Target) -> None:
        assert self.wire is not None
        assert self.client is not None
        version, cipher = self.wire.tls_facts() or ("", "")
        source = self.engine.source_address(target.family) or ""
        remote = events.Remote(self.path.name, target.host.name, str(target), source, version, cipher)
        self.peer = Peer(remote, target.host.name, str(target), "DSN" in self.client.capabilities)

    # -- conversation --------------------------------------------------------------------------------------------

    def _converse(self) -> None:
        """Carry deliveries until there is none, or the peer or a limit ends it. Hot path (bench S1, S2, S8)."""
        wire, client = self.wire, self.client
        assert wire is not None
        assert client is not None
        timeouts = self.engine.config.delivery.timeouts
        try:
            while True:
                self._fill()
                if not self.jobs:
                    if not self._rest():
                        return
                    continue
                self._set_deadline(timeouts)
                data = wire.read()
                if data is WOKEN:
                    continue
                if not data:
                    self._handle(client.lost("connection closed by the peer"))
                    return
                self._handle(client.receive(data))  # type: ignore[arg-type]
                if client.phase == "closed":
                    return
                for job in self.jobs:
                    if job.transaction.dot_sent and not job.marked:
                        job.marked = True
                        self.engine.mark_in_flight(job)
        except WireError as error:
            self._handle(client.lost(str(error)))
        except RemoteProtocolError as error:
            self._handle(client.lost(f"protocol error: {error}"))
        finally:
            if client.pipelining_suspect and self.target is not None:
                self.engine.no_pipelining.add(self.target.address, time.monotonic())

    def _fill(self) -> None:
        """Give the machine what it can take, and the wire what the machine has to say."""
        wire, client, engine = self.wire, self.client, self.engine
        assert wire is not None
        assert client is not None
        block_s = engine.config.delivery.timeouts.block
        while client.can_send:
            job = engine.next_job(self)
            if job is None:
                break
            if job.transaction.content is None:
                wire.write(client.output(), block_s)  # what the peer waits for does not wait for our disk
                if not engine.read_content(job):
                    continue
            self.jobs.append(job)
            self.messages += 1
            self._handle(client.send(job.transaction))
        wire.write(client.output(), block_s)

    def _rest(self) -> bool:
        """Nothing to do: wait for work, the peer, or the end of patience. Whether the connection goes on."""
        wire, client, engine = self.wire, self.client, self.engine
        assert wire is not None
        assert client is not None
        if not engine.may_rest(self):
            client.quit()
            wire.write(client.output(), 1.0)  # and the answer is not waited for
            return False
        wire.deadline = time.monotonic() + engine.config.delivery.idle
        wire.waiting_for = "work"
        try:
            data = wire.read()
        except WireError:
            data = b"timeout"
        finally:
            engine.rested(self)
        if data is WOKEN:
            return True
        if data == b"timeout":
            client.quit()
            wire.write(client.output(), 1.0)
        # Otherwise the peer has closed or says why it will: a session that ends between messages is no failure.
        return False

    def _handle(self, happened: list[smtp.ClientEvent]) -> None:
        for event in happened:
            if isinstance(event, smtp.Finished):
                job = next(job for job in self.jobs if job.transaction is event.transaction)
                self.jobs.remove(job)
                self.engine.settle(self, job)

    def _set_deadline(self, timeouts: DeliveryTimeouts) -> None:
        """The deadline of the phase whose reply is awaited; set anew only when something was received or sent."""
        wire, client = self.wire, self.client
        assert wire is not None
        assert client is not None
        phase = client.phase
        seconds, wire.waiting_for = self.engine.patience[phase]
        wire.deadline = time.monotonic() + seconds


class _HandshakeFailed(Refusal):
    """TLS could not be established on a connection that offered it."""


def transaction_for(delivery: Delivery, at_most: int) -> tuple[smtp.Transaction, int]:
    """The next transaction of `delivery`, and how many untried recipients do not fit into it."""
    message = delivery.message
    untried = delivery.recipients[: len(delivery.recipients) - delivery.tried]
    chunk = untried[:at_most]
    transaction = smtp.Transaction(
        sender=message.sender,
        recipients=chunk,
        content=message.content,  # type: ignore[arg-type]  # read before it is sent
        eight_bit=bool(message.flags & EIGHT_BIT),
        smtputf8=bool(message.flags & SMTPUTF8),
        ret=message.ret,
        envid=message.envid,
    )
    return transaction, len(untried) - len(chunk)
