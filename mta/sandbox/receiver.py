"""The MX hosts' side of the network: listening sockets that come and go, sessions, and what sessions share."""

from __future__ import annotations

import socket
import ssl
import sys
import time
from typing import Final

import gevent

from mta.sandbox.capture import Capture
from mta.sandbox.certificate import NAME, Authority, server_context
from mta.sandbox.connection import Connection
from mta.sandbox.internet import Host, Internet
from mta.sandbox.ledger import Ledger
from mta.sandbox.quota import Quotas
from mta.sandbox.session import Session
from mta.sandbox.settings import HOME, HOME_IPV6, Settings

BACKLOG: Final = 1024
ACCEPT_PAUSE_S: Final = 0.1  # after accept() failed for want of file descriptors
MAX_GREYLISTED: Final = 1_000_000  # triplets; then all are strangers again


class Receiver:
    """All MX hosts of one sandbox."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        """Raises OSError when the capture directory or the authority's file cannot be made."""
        self.ledger = ledger
        self.internet = Internet(settings, ledger, self._apply)
        self.port = settings.smtp_port
        self.logs = settings.log > 0
        self.log_content = settings.log_content
        self.checks = settings.check
        self.times = settings.times > 0
        self.capture = Capture(settings.capture) if settings.capture is not None else None
        self._self_signed = server_context()
        self._authority = Authority()
        self._certified: dict[str, ssl.SSLContext] = {}  # by the name in the certificate
        if settings.authority is not None:
            self._authority.write(settings.authority)
        self.sessions: set[Session] = set()
        self._listeners: dict[str, Listener] = {}
        self._greylist: dict[tuple[str, bytes, bytes], float] = {}
        self._messages = Quotas()
        self._connections = Quotas()

    def start(self) -> None:
        """Find the port if any will do, and open the home host. Raises OSError when the port is taken."""
        with socket.socket() as holder:  # until the home host listens: nobody else is given the port in between
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((HOME, self.port))
            self.port = holder.getsockname()[1]
            self.internet.host(HOME)

    # --- listening -------------------------------------------------------------------------------------------------

    def _apply(self, host: Host) -> None:
        """Make the listening socket of a host what its state asks for."""
        wanted = "open" if host.open else "unreachable" if host.state == "unreachable" else ""
        listener = self._listeners.get(host.address)
        if listener is not None and listener.kind != wanted:
            self._listeners.pop(host.address).close()
            listener = None
            if not host.open:
                for session in [session for session in self.sessions if session.host is host]:
                    session.wire.cut()
        if listener is None and wanted:
            try:
                self._listeners[host.address] = Listener(self, host, wanted)
            except OSError as error:
                print(f"sandbox: {host.name} [{host.address}]:{self.port}: {error}", file=sys.stderr, flush=True)

    def serve(self, host: Host, accepted: socket.socket, client: tuple[str, int]) -> None:
        """Begin a session."""
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = Session(self, host, Connection(accepted, host, self.times), client,
                          self.ledger.totals.connections + 1)
        self.sessions.add(session)
        gevent.spawn(session.run)

    def tls_of(self, host: Host) -> ssl.SSLContext:
        """The TLS of a host."""
        kind = host.conduct.behaviour.certificate
        if kind == "self-signed":
            return self._self_signed
        name = host.name if kind == "trusted" else NAME
        context = self._certified.get(name)
        if context is None:
            context = self._certified[name] = self._authority.context(name)
        return context

    # --- what sessions ask -----------------------------------------------------------------------------------------

    def greylists(self, client: str, sender: bytes, recipient: bytes, wait_s: float) -> bool:
        """Whether this triplet is to come again later."""
        triplet = (client, sender, recipient)
        now = time.monotonic()
        if len(self._greylist) >= MAX_GREYLISTED:
            self._greylist.clear()
        return now < self._greylist.setdefault(triplet, now) + wait_s

    def within_rate(self, host: Host, client: str) -> bool:
        """Whether one more message of a client is within the site's rate; it is counted if so."""
        behaviour = host.conduct.behaviour
        return behaviour.rate is None or self._messages.takes(
            host.site, client, behaviour.rate, behaviour.rate_window, time.monotonic())

    def within_connection_rate(self, host: Host, client: str) -> bool:
        """The same for one more connection."""
        behaviour = host.conduct.behaviour
        return behaviour.connection_rate is None or self._connections.takes(
            host.site, client, behaviour.connection_rate, behaviour.rate_window, time.monotonic())

    def forget(self) -> None:
        """Forget greylisted triplets and spent rates."""
        self._greylist.clear()
        self._messages.clear()
        self._connections.clear()


class Listener:
    """One listening socket, with the greenlet that accepts; or one that is full, so that a connect gets no answer."""

    def __init__(self, receiver: Receiver, host: Host, kind: str) -> None:
        """Raises OSError when the address cannot be bound."""
        self.kind = kind
        self._filler: socket.socket | None = None
        self._accepting: gevent.Greenlet | None = None
        self._socket = socket.socket(socket.AF_INET6 if host.address == HOME_IPV6 else socket.AF_INET)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host.address, receiver.port))
            self._socket.listen(0 if kind == "unreachable" else BACKLOG)
            if kind == "unreachable":
                # A backlog of 0 has room for one; Linux drops the SYN of the next.
                self._filler = socket.create_connection((host.address, receiver.port), 1.0)
        except OSError:
            self.close()
            raise
        if kind == "open":
            self._accepting = gevent.spawn(self._accept, receiver, host)

    def _accept(self, receiver: Receiver, host: Host) -> None:
        while True:
            try:
                accepted, client = self._socket.accept()
            except OSError as error:
                print(f"sandbox: accept: {error}", file=sys.stderr, flush=True)
                gevent.sleep(ACCEPT_PAUSE_S)
                continue
            receiver.serve(host, accepted, client[:2])

    def close(self) -> None:
        """Refuse connections from now on."""
        if self._accepting is not None:
            self._accepting.kill()
        if self._filler is not None:
            self._filler.close()
        self._socket.close()
