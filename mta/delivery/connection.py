"""One outgoing connection: the greenlet that opens it, carries delivery after delivery, and closes it.

The protocol is `mta.smtp.client` (bytes in, events and bytes out), waiting is `mta.delivery.wire`; here they meet the
engine, which hands out deliveries (`next_job`), judges what came of them (`settle`) and is told how the connection
began and ended. While the peer works on the content of one message the envelope of the next is already under way, so
in steady state a message takes one round trip (RFC 2920).
"""

from __future__ import annotations

import functools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mta.config.shaping import DeliveryTimeouts, Shaping, TlsPolicy
from mta.delivery.protection import not_offered, shortcoming
from mta.delivery.proxy import negotiate
from mta.delivery.routing import Host
from mta.delivery.settle import Peer
from mta.delivery.targets import Target, targets
from mta.delivery.wire import ShortageError, SourceError, TlsError, Wire, WireError
from mta.queue import events
from mta.queue.records import BINARY, DOTLESS, EIGHT_BIT, REQUIRE_TLS, SMTPUTF8, Delivery
from mta.queue.scheduler import Queue
from mta.smtp.client import Client, ClientEvent, Finished, Greeted, Ready, Refused, StartTls, Transaction
from mta.smtp.errors import RemoteProtocolError
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.lane import Lane
    from mta.delivery.openings import Line
    from mta.delivery.path import Path

USUAL: Final = Shaping()  # for the way to a proxy
QUIT_S = 1.0  # for QUIT to leave, and for the answer if that is waited for at all
QUIT_READS = 10

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """One transaction of one delivery on this connection."""

    queue: Queue
    delivery: Delivery
    transaction: Transaction
    started_s: float
    cold: bool  # its content has to be read from disk
    tenant: str = ""  # whose limits it was taken by; empty when there are none
    marked: bool = False  # its content was sent: after a crash it may be a duplicate


class RefusalError(Exception):
    """An address gave us no session; `reply` is the peer's or our own description."""

    def __init__(self, reply: Reply, phase: str) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.phase = phase


class LateError(Exception):
    """It took so long until the connection could be opened that its rate is used up. Nobody's fault."""


class Connection:
    """A connection of `path` that pulls from `lane`. Made by `Connecting`, which spawns `run`."""

    def __init__(self, engine: Engine, path: Path, lane: Lane) -> None:
        self.engine = engine
        self.path = path
        self.lane = lane
        self.leases = [name for name, _ in path.leases]
        self.wire = Wire(engine.sweeper)
        self.client = Client("")
        self.target: Target | None = None
        self.peer = Peer(events.Remote(path.name))
        self.opened_s = self.turn_s = engine.monotonic()  # the latter is when its turn among the workers began
        self.opening_s = 0.0  # how long it took until the session was open
        self.messages = 0  # transactions begun
        self.recipients = 0  # in these
        self.completed = 0  # of those, the ones that came to a verdict
        self.jobs: list[Job] = []
        self.established = False
        self.line: Line[Path] | None = None  # where it counts while it is being opened; the engine's
        self.protected = False  # it may carry mail that requires TLS (`mta.delivery.protection`)
        self.shortcoming: Reply | None = None  # why no host of the site gives such a session; None: not asked
        self.idle = False
        self.stopping = False
        self.abandoned = False
        self._patience = patience(path.shaping.timeouts)
        self._waited_for: tuple[str, int] | None = None  # phase, and replies before it, that the deadline is for

    def __repr__(self) -> str:
        state = "idle" if self.idle else f"{len(self.jobs)} under way" if self.established else "opening"
        return f"<Connection to {self.name}: {state}, {self.messages} messages>"

    @property
    def name(self) -> str:
        """Host and address, as in `mx1.example.org [192.0.2.1:25]`."""
        return f"{self.target.host.name} [{self.target}]" if self.target is not None else self.path.name

    def run(self) -> None:
        """Open, converse, close."""
        try:
            failure = self._open()
            if failure is not None:
                self.engine.keeper.connection_failed(self, failure)
                return
            self.established = True
            self.engine.connecting.established(self)
            self._converse()
        except ShortageError as shortage:
            self.engine.connecting.lacking(str(shortage))
        except LateError:
            pass
        except MemoryError:
            raise  # the process ends and starts anew
        except Exception as error:
            log.exception("bug: connection to %s ends", self.name)
            if not self.established:
                reply = Reply(451, "4.3.5", (f"internal error: {error}",), local=True)
                self.engine.keeper.connection_failed(self, reply)
        finally:
            self.wire.close()
            self.engine.connecting.closed(self)

    def wake(self) -> None:
        """There may be work, or it is time to close."""
        self.wire.wake()

    def abandon(self) -> None:
        """The address that it leaves from is gone: no answer will come. What it carries goes back to its queue, as no
        attempt; but for a message of which the end was sent, which may have arrived: that waits for its time."""
        if not any(job.transaction.dot_sent for job in self.jobs):
            self.stopping = self.abandoned = True
            jobs, self.jobs = self.jobs, []
            for job in reversed(jobs):
                self.engine.dispatch.untouched(job)
        self.wire.wake()

    # -- opening -------------------------------------------------------------------------------------------------

    def _open(self) -> Reply | None:
        """Try addresses in order of preference until one gives a session; else what the most telling of them said.
        Raises LateError and ShortageError."""
        best: RefusalError | None = None
        engine, path = self.engine, self.path
        assert path.route is not None
        if engine.protection.is_wanted(path):
            failure = self._open_protected()
            if self.protected or failure is not None:
                return failure
        for target in targets(path.name, path.route, path.shaping, engine.router.addresses, path.source.serves,
                              engine.reachability, engine.monotonic()):
            if best is None and not engine.pacing.await_opening(path, self.opened_s):
                raise LateError
            try:
                self._open_one(target)
                engine.reachability.served(path.name, target)
                return None
            except RefusalError as refusal:
                if refusal.phase in ("connect", "greeting") and refusal.reply.local and not self.stopping:
                    engine.reachability.failed(target, engine.monotonic())
                # What a mail server says tells more than that another one could not be reached.
                if best is None or best.reply.local or not refusal.reply.local:
                    best = refusal
            if self.stopping or self.path.source.lost:
                break
        return best.reply if best is not None else self.engine.keeper.no_address(self.path)

    def _open_protected(self) -> Reply | None:
        """Try for a protected session. Without one `shortcoming` says why, and an ordinary one is to be opened; but
        when no host could be reached at all what that was is returned. Raises LateError and ShortageError."""
        engine, path, protection = self.engine, self.path, self.engine.protection
        assert path.route is not None
        unreachable: Reply | None = None
        reached = False
        for target in targets(path.name, path.route, path.shaping, engine.router.addresses, path.source.serves,
                              engine.reachability, engine.monotonic()):
            found = protection.unfit(target)
            if found is None:
                if not reached and unreachable is None and not engine.pacing.await_opening(path, self.opened_s):
                    raise LateError
                try:
                    self._session(target, "required", verify=True)
                    if self.client.capabilities.require_tls:
                        self.protected = True
                        engine.reachability.served(path.name, target)
                        return None
                    found = not_offered(target)
                    self.client.quit()
                    self.wire.write(self.client.output(), QUIT_S)
                except WireError as error:
                    found = found or shortcoming(target, "ready", Reply(451, "4.4.2", (str(error),), local=True))
                except RefusalError as refusal:
                    found = shortcoming(target, refusal.phase, refusal.reply)
                    if found.code < 500:
                        unreachable = unreachable or refusal.reply
                    if refusal.phase in ("connect", "greeting") and refusal.reply.local and not self.stopping:
                        engine.reachability.failed(target, engine.monotonic())
                if found.code >= 500:
                    log.info("%s: %s", self.name, found.text)
                    protection.found_unfit(target, found)
            reached = reached or found.code >= 500
            # Mail waits for a host that may yet give it; what one lacks is told only when all lack something.
            if self.shortcoming is None or found.code < self.shortcoming.code:
                self.shortcoming = found
            if self.stopping or path.source.lost:
                break
        if self.shortcoming is None:
            return engine.keeper.no_address(path)
        return unreachable if not reached else None

    def _open_one(self, target: Target) -> None:
        """A session with `target`, in the plainer forms that some hosts need. Raises RefusalError."""
        policy: TlsPolicy = self.path.shaping.tls
        tls = policy
        if policy == "opportunistic" and self.engine.broken_tls.has(target.address, self.engine.monotonic()):
            tls = "off"
        try:
            self._session(target, tls)
        except RefusalError as refusal:
            if refusal.phase == "ehlo" and refusal.reply.local:
                self._session(target, tls, esmtp=False)  # some hosts hang up at EHLO
            elif refusal.phase in ("starttls", "handshake") and refusal.reply.local and policy == "opportunistic":
                log.info("%s; going on in clear", refusal.reply.text)
                self.engine.broken_tls.add(target.address, self.engine.monotonic())
                self._session(target, "off")
            else:
                raise

    def _session(self, target: Target, tls: TlsPolicy, esmtp: bool = True, verify: bool = False) -> None:
        """Connect, greet and wait for Ready; `verify`: the host's certificate, too. Raises RefusalError."""
        engine, shaping = self.engine, self.path.shaping
        try:
            context = engine.protection.context(self.path.source) if verify else self.path.source.tls_context
        except OSError as error:
            text = f"certificates cannot be read, so none can be verified: {error}"
            raise RefusalError(Reply(451, "4.3.5", (text,), local=True), "source") from None
        timeouts = shaping.timeouts
        self.wire.close()
        wire = self.wire = Wire(engine.sweeper)
        self.target = target
        now_s = time.monotonic()
        client = self.client = Client(
            self.path.source.ehlo, tls=tls, esmtp=esmtp,
            pipelining=shaping.pipelining and not engine.no_pipelining.has(target.address, now_s),
            chunking=shaping.chunking == "auto" and not engine.no_chunking.has(target.address, now_s))
        client.pipeline_across = not engine.no_pipelining_across.has(target.address, now_s)
        self._waited_for = None
        wire.deadline = now_s + timeouts.connect
        wire.waiting_for = "the connection"
        phase = "connect"
        try:
            self._connect(target)
            while True:
                self._send(client.output(), timeouts.block)
                phase = client.phase
                self._set_deadline(phase)
                data = wire.read()
                if isinstance(data, bytes):
                    for event in client.receive(data) if data else client.eof():
                        if self._opening(target, event):
                            return
                    if not data:
                        raise WireError(f"connection closed by the host while waiting for {wire.waiting_for}")
                    if client.phase == "handshake":
                        phase = "handshake"
                        wire.start_tls(context, target.host.name)
                        client.tls_established()
                elif self.stopping:
                    raise WireError("its source is gone" if self.abandoned else "we are shutting down")
        except SourceError as error:
            self.engine.keeper.source_failed(self.path.source, target.family, str(error))
            raise RefusalError(Reply(451, "4.3.5", (str(error),), local=True), "source") from None
        except (WireError, RemoteProtocolError) as error:
            reply = Reply(451, "4.4.1", (f"{self.name}: {error}",), local=True)
            raise RefusalError(reply, phase) from None

    def _connect(self, target: Target) -> None:
        """TCP from the source to the target, by the way of its proxy. Raises WireError."""
        source, wire = self.path.source, self.wire
        port = target.host.port if source.port is None or target.host.fixed else source.port
        proxy = source.proxy
        if proxy is None:
            wire.connect(target.family, target.address, port, source.address(target.family))
            return
        failure = "no address"
        host = Host(proxy.host, proxy.port, 0, fixed=True)
        for family, address in self.engine.router.addresses(host, USUAL).addresses:
            try:
                wire.connect(family, address, proxy.port, None)
                break
            except WireError as error:
                failure = str(error)
                wire.close()
        else:
            raise SourceError(f"the proxy {proxy.host}:{proxy.port} cannot be reached: {failure}")
        wire.waiting_for = "the proxy"
        wire.through(negotiate(proxy, target.family, target.address, port, source.address(target.family)))

    def _opening(self, target: Target, event: ClientEvent) -> bool:
        """One event before the session is open. Whether it is open now. Raises RefusalError."""
        if isinstance(event, Refused):
            raise RefusalError(event.reply, event.phase)
        if isinstance(event, Greeted):
            greeter = event.reply.lines[0].partition(" ")[0].lower()
            if greeter == self.engine.config.hostname and not target.host.fixed:
                text = f"{self.name} greets us with our own name: a loop"
                raise RefusalError(Reply(451, "4.4.6", (text,), local=True), "greeting")
        elif isinstance(event, Ready):
            version, cipher = self.wire.tls_facts() or ("", "")
            source = self.path.source.address(target.family) or ""
            remote = events.Remote(self.path.name, target.host.name, str(target), source, version, cipher)
            self.peer = Peer(remote, self.name, self.client.capabilities.dsn, self.path.source.name)
            return True
        else:
            assert isinstance(event, StartTls), event
        return False

    # -- conversation --------------------------------------------------------------------------------------------

    def _converse(self) -> None:
        """Carry deliveries until there is none, or the peer or a limit ends it. Hot path (bench S1, S2, S8)."""
        wire, client = self.wire, self.client
        try:
            while not self.abandoned:
                self._fill()
                if not self.jobs:
                    if not self._rest():
                        return
                    continue
                self._set_deadline(client.phase)
                data = wire.read()
                if isinstance(data, bytes):
                    self._handle(client.receive(data) if data else client.eof())
                    if client.phase == "closed":
                        return
        except WireError as error:
            if isinstance(error, TlsError) and self.path.shaping.tls == "opportunistic":
                assert self.target is not None
                self.engine.broken_tls.add(self.target.address, self.engine.monotonic())
            client.unsent(wire.unsent)
            try:
                early = wire.early()
                self._handle(client.receive(early) if early else [])
            except RemoteProtocolError:
                pass
            self._handle(client.lost(str(error)))
        except RemoteProtocolError as error:
            self._handle(client.lost(f"protocol error: {error}"))
        except MemoryError:
            raise
        except Exception as error:
            log.exception("bug: the conversation with %s ends", self.name)
            self._handle(client.lost(f"internal error: {error}"))
        finally:
            if client.pipelining_suspect or client.chunking_suspect:
                self._remember_suspect()

    def _fill(self) -> None:
        """Give the machine what it can take, and the wire what the machine has to say."""
        client, dispatch, path = self.client, self.engine.dispatch, self.path
        while client.can_send and (self.lane.turns.count or path.claims or len(path.lanes) > 1):
            if self.jobs and not path.prompt:
                break
            job = dispatch.next_job(self)
            if job is None:
                break
            if job.transaction.require_tls and not self.engine.protection.admits(self, job):
                continue
            if job.cold:
                try:
                    self._write()  # what the peer waits for does not wait for our disk
                except WireError:
                    dispatch.untouched(job)
                    raise
                if not dispatch.read_content(job):
                    continue
                if not client.can_send:
                    dispatch.untouched(job)
                    break
            self.jobs.append(job)
            self.messages += 1
            self.recipients += len(job.transaction.recipients)
            self._handle(client.send(job.transaction))
        self._write()

    def _write(self) -> None:
        """Send what the machine has to say; before the end of a message leaves, the mark that it may have arrived."""
        output = self.client.output()
        if output:
            for job in self.jobs:
                if job.transaction.dot_sent and not job.marked:
                    job.marked = True
                    self.engine.dispatch.mark_in_flight(job)
            self._send(output, self.path.shaping.timeouts.block)

    def _send(self, output: list[bytes], block_s: float) -> None:
        if output:
            self._waited_for = None
            self.wire.write(output, block_s)

    def _rest(self) -> bool:
        """Nothing to do: wait for work, the peer, or the end of patience. Whether the connection goes on."""
        wire, connecting = self.wire, self.engine.connecting
        if connecting.may_rest(self):
            self._waited_for = None
            wire.deadline = time.monotonic() + self.path.shaping.idle
            wire.waiting_for = "work"
            try:
                # Bytes: the peer closes, or says why it will. A session that ends between messages is no failure.
                return not isinstance(wire.read(), bytes)
            except WireError:
                pass
            finally:
                connecting.rested(self)
        self.client.quit()
        wire.write(self.client.output(), QUIT_S)
        if connecting.is_wanted(self):
            self._await_end()
        return False

    def _await_end(self) -> None:
        """Let the peer close, which it should do after its answer to QUIT (RFC 5321 4.1.1.10), but not for long: then
        it does not count this connection any more when another one comes."""
        wire = self.wire
        wire.deadline = time.monotonic() + QUIT_S
        wire.waiting_for = "the answer to QUIT"
        try:
            for _ in range(QUIT_READS):
                if not wire.read():
                    break
        except WireError:
            pass

    def _handle(self, happened: list[ClientEvent]) -> None:
        for event in happened:
            if isinstance(event, Finished):
                for position, job in enumerate(self.jobs):
                    if job.transaction is event.transaction:
                        del self.jobs[position]
                        self.engine.dispatch.settle(self, job)
                        break

    def _set_deadline(self, phase: str) -> None:
        """A phase has its time from what we sent last and from the last whole reply; parts of one buy no more."""
        waited_for = (phase, self.client.answers)
        if waited_for != self._waited_for:
            self._waited_for = waited_for
            seconds, self.wire.waiting_for = self._patience[phase]
            self.wire.deadline = time.monotonic() + seconds

    def _remember_suspect(self) -> None:
        """The host did not bear a form of pipelining, or chunks: it gets the next plainer one for a while."""
        assert self.target is not None
        if self.client.chunking_suspect:
            log.info("%s does not bear BDAT; it gets DATA for a while", self.name)
            self.engine.no_chunking.add(self.target.address, time.monotonic())
        if not self.client.pipelining_suspect:
            return
        log.info("%s does not bear pipelining %s messages; not used for a while", self.name,
                 "inside" if self.client.pipelining_suspect == "inside" else "across")
        memory = (self.engine.no_pipelining if self.client.pipelining_suspect == "inside"
                  else self.engine.no_pipelining_across)
        memory.add(self.target.address, time.monotonic())


def transaction_for(delivery: Delivery, at_most: int) -> Transaction:
    """The next transaction of `delivery`: those of its recipients that this attempt has not tried, up to `at_most`."""
    message = delivery.message
    recipients = delivery.recipients
    untried = len(recipients) - delivery.tried
    if untried > at_most or delivery.tried:
        recipients = recipients[: min(untried, at_most)]
    return Transaction(
        sender=message.sender,
        recipients=recipients,
        content=message.content or b"",
        eight_bit=bool(message.flags & EIGHT_BIT),
        smtputf8=bool(message.flags & SMTPUTF8),
        ret=message.ret,
        envid=message.envid,
        priority=None if message.wishes is None else message.wishes.priority,
        binary=bool(message.flags & BINARY),
        require_tls=bool(message.flags & REQUIRE_TLS),
        dotless=bool(message.flags & DOTLESS),
    )


@functools.lru_cache(maxsize=256)
def patience(timeouts: DeliveryTimeouts) -> dict[str, tuple[float, str]]:
    """Deadline and description of each phase of the client machine."""
    return {
        "greeting": (timeouts.greeting, "the greeting"),
        "ehlo": (timeouts.ehlo, "the answer to EHLO"),
        "helo": (timeouts.ehlo, "the answer to HELO"),
        "starttls": (timeouts.starttls, "the answer to STARTTLS"),
        "handshake": (timeouts.starttls, "the TLS handshake"),
        "ready": (timeouts.mail, "work"),
        "mail": (timeouts.mail, "the answer to MAIL"),
        "rcpt": (timeouts.rcpt, "the answer to RCPT"),
        "data": (timeouts.data, "the answer to DATA"),
        "body": (timeouts.block, "the peer to take the content"),
        "dot": (timeouts.dot, "the answer to the content"),
        "rset": (timeouts.mail, "the answer to RSET"),
        "quit": (timeouts.mail, "the answer to QUIT"),
        "closed": (timeouts.mail, "nothing"),
    }
