"""The way to a session with a site: its addresses in turn, TLS, and the plainer forms that some hosts need.

The ground that a connection stands on (`mta.delivery.connection`), which carries mail once there is a session.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, Final

from mta.config.shaping import DeliveryTimeouts, Shaping, TlsPolicy
from mta.delivery.protection import not_offered, shortcoming
from mta.delivery.proxy import negotiate
from mta.delivery.routing import Host
from mta.delivery.settle import Peer
from mta.delivery.targets import Target, targets
from mta.delivery.wire import HandshakeError, SourceError, Wire, WireError
from mta.queue import events
from mta.smtp.client import Client, ClientEvent, Greeted, Ready, Refused, StartTls
from mta.smtp.errors import RemoteProtocolError
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.path import Path

USUAL: Final = Shaping()  # for the way to a proxy
QUIT_S = 1.0  # for QUIT to leave, and for the answer if that is waited for at all

log = logging.getLogger(__name__)


class RefusalError(Exception):
    """An address gave us no session; `reply` is the peer's or our own description."""

    def __init__(self, reply: Reply, phase: str) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.phase = phase


class LateError(Exception):
    """It took so long until the connection could be opened that its rate is used up. Nobody's fault."""


class Approach:
    """A connection of `path` that has no session yet. Not made by itself: see `Connection`."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self.engine = engine
        self.path = path
        self.wire = Wire(engine.sweeper)
        self.client = Client("")
        self.target: Target | None = None
        self.peer = Peer(events.Remote(path.name))
        self.opened_s = engine.monotonic()  # when it was begun
        self.protected = False  # it may carry mail that requires TLS (`mta.delivery.protection`)
        self.shortcoming: Reply | None = None  # why no host of the site gives such a session; None: not asked
        self.vouched: dict[str, Reply | None] = {}  # by domain, what is wrong with how its hosts came to be known
        self.stopping = False
        self.abandoned = False
        self._patience = patience(path.shaping.timeouts)
        self._waited_for: tuple[str, int] | None = None  # phase, and replies before it, that the deadline is for

    @property
    def name(self) -> str:
        """Host and address, as in `mx1.example.org [192.0.2.1:25]`."""
        return f"{self.target.host.name} [{self.target}]" if self.target is not None else self.path.name

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
            enhanced = "4.7.5" if isinstance(error, HandshakeError) else "4.4.1"
            reply = Reply(451, enhanced, (f"{self.name}: {error}",), local=True)
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
            can = self.client.capabilities
            self.peer = Peer(remote, self.name, can.dsn, self.path.source.name, can.deliver_by is not None)
            return True
        else:
            assert isinstance(event, StartTls), event
        return False

    # -- bytes and time ------------------------------------------------------------------------------------------

    def _send(self, output: list[bytes], block_s: float) -> None:
        if output:
            self._waited_for = None
            self.wire.write(output, block_s)

    def _set_deadline(self, phase: str) -> None:
        """A phase has its time from what we sent last and from the last whole reply; parts of one buy no more."""
        waited_for = (phase, self.client.answers)
        if waited_for != self._waited_for:
            self._waited_for = waited_for
            seconds, self.wire.waiting_for = self._patience[phase]
            self.wire.deadline = time.monotonic() + seconds


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
