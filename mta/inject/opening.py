"""What comes before the conversation with a client: the PROXY header of its load balancer, and TLS."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mta.inject import proxyheader
from mta.inject.connection import CHUNK, Connection
from mta.inject.proxyheader import V2_LIMIT, ProxyHeaderError
from mta.inject.servertls import ServerTls, TlsError
from mta.smtp.events import ServerEvent
from mta.smtp.peer import Identity, Peer
from mta.smtp.reply import Reply
from mta.smtp.server import TLS, Server

if TYPE_CHECKING:
    from mta.inject.listener import SmtpListener

log = logging.getLogger(__name__)


class Opening(Connection):
    """Finds out who the client is before it talks, and makes that private. Not made by itself: see `Session`."""

    __slots__ = ("_balancer", "_contexts", "_implicit_tls", "_input", "client")

    def __init__(self, listener: SmtpListener, sock: Any, peer: Peer, *, balancer: bool) -> None:
        """`balancer`: it is a load balancer, which is going to say who the client is."""
        super().__init__(listener, sock, peer)
        self.client = peer.address  # by which it is counted; what the machine knows may become another one
        self._balancer = balancer
        self._contexts = listener.contexts
        self._implicit_tls = listener.implicit_tls
        self._input = b""  # of a PROXY header, which is not whole yet; then what came behind it

    @abstractmethod
    def _took(self, data: bytes) -> None:
        """The client's words."""

    @abstractmethod
    def _act(self, events: list[ServerEvent]) -> None:
        """Something has happened."""

    @abstractmethod
    def _enter_as(self, identity: Identity | None) -> Reply | None:
        """Count the session for a user, or for none any more; the refusal if it has too many."""

    # -- the load balancer ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Greet, and listen; but for who has to say something first."""
        if self._balancer:
            self._await(self._proxy_readable)
        else:
            self._guard(self._begin)

    def start_as(self, user: str) -> None:
        """As `start`, of who has opened a Unix socket: now we know its name."""
        if self._sock is not None:  # else we did not want to wait for that
            self.machine = Server(self._settings, replace(self.machine.peer, identity=Identity(user, "socket")))
            self._guard(self._begin)

    def _proxy_readable(self) -> None:
        """A piece of the PROXY header. No more is read than there can be of it: what follows may be TLS."""
        self._guard(self._read_proxy_header)

    def _read_proxy_header(self) -> None:
        try:
            data = self._sock.recv(V2_LIMIT)
        except BlockingIOError:
            return
        self._input += data
        try:
            header = proxyheader.read(self._input)
        except ProxyHeaderError as error:
            log.warning("[%s] is in proxy_from: %s", self.client, error)
            self._end()
            return
        if header is None:
            if not data:
                self._end()
            return
        self._input = self._input[header.size :]
        if header.client is not None and not self._listener.entered(self, *header.client):
            return
        self._balancer = False
        self._begin()

    def _begin(self) -> None:
        """The client is known: greet, or do the handshake first. A client that has nothing to say goes by itself."""
        identity = self.machine.peer.identity  # who has one already has opened a Unix socket
        if identity is not None and (refusal := self._enter_as(identity)) is not None:
            self.turn_away(refusal.to_bytes())
            return
        if self._contexts is not None and self._implicit_tls:
            self._tls = ServerTls(self._contexts)
            self._await(self._handshake_readable)
            self._shake_hands(self._input)
            return
        if self._reading:
            self._io.stop()
            self._reading = False
            self._on_readable = self._readable
        self._talks = True
        rest, self._input = self._input, b""
        self.machine.greet()
        self._go_on()
        if rest:  # it did not wait for the greeting: as with others, that is read as if it had
            self._took(rest)

    def turn_away(self, reply: bytes) -> None:
        """There is no room for the client of the balancer, or for one more session of the user."""
        self._send(reply)
        self._end()

    def is_from(self, peer: Peer) -> None:
        """The balancer has said for whom it speaks."""
        self.client = peer.address
        self.machine = Server(self._settings, peer)

    # -- TLS --------------------------------------------------------------------------------------------------------

    def _start_tls(self) -> None:
        """STARTTLS: our last words in clear, then the handshake. Nothing of it was read yet: what stood behind the
        command was refused by the machine (RFC 3207 6, CVE-2011-0411)."""
        assert self._contexts is not None
        self._go_on()
        self._talks = False
        self._tls = ServerTls(self._contexts)
        if self._unsent:
            self._on_readable = self._handshake_readable  # once the client has taken them
        else:
            self._await(self._handshake_readable)

    def _handshake_readable(self) -> None:
        """A quarter of a millisecond: when hundreds begin at once, they stand in line, and others have their turns."""
        burst = self._listener.burst
        if burst.is_over():
            self._io.stop()
            self._reading = False
            burst.later(self._handshake_in_turn)
        else:
            self._guard(self._read_handshake)

    def _handshake_in_turn(self) -> None:
        if self._sock is not None:
            self._reading = True
            self._io.start(self._on_readable)
            self._guard(self._read_handshake)

    def _read_handshake(self) -> None:
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        if data:
            self._shake_hands(data)
        else:
            self._end()

    def _shake_hands(self, data: bytes) -> None:
        assert self._tls is not None
        self._input = b""
        try:
            done = self._tls.shake_hands(data)
        except TlsError as error:
            log.info("no TLS with [%s]: %s", self.client, error)
            self._send_own(self._tls)
            self._end()
            return
        self._send_own(self._tls)
        if done and self._sock is not None:
            self._handshake_done(self._tls)

    def _handshake_done(self, session: ServerTls) -> None:
        tls, names = session.description()
        before = self.machine.peer
        peer = replace(before, tls=tls, identity=None)
        identity = self._listener.user_of_certificate(names, peer)
        refusal = self._enter_as(identity)  # a login in clear is void now
        self._await(self._readable)
        self._talks = True
        if self.machine.state == TLS:
            self._act(self.machine.tls_started(tls, identity))
        else:
            self.machine = Server(self._settings, replace(peer, identity=identity))
            if refusal is None:
                self.machine.greet()
        if refusal is not None:
            self.machine.close(refusal)
        if not self._storing:
            self._go_on(anew=True)
        if not self._parting:
            self._take_ciphertext(b"")  # what came with the last of the handshake

    def _take_ciphertext(self, data: bytes) -> None:
        assert self._tls is not None
        if self._sock is None:
            return
        try:
            text, ended = self._tls.decrypt(data)
        except TlsError as error:
            log.info("TLS with [%s] ends: %s", self.client or "local", error)
            self._end()
            return
        self._send_own(self._tls)  # each time: a client that asks for handshakes in the midst of a line gets no reply
        if text:
            self._took(text)
        if ended and not self._storing:  # else it is owed an answer first, as who has shut its side without TLS
            self._end()
