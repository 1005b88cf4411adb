"""One outgoing TCP connection as a greenlet sees it: read, write, encrypt, be woken, run out of time.

A connection that has nothing to send waits for the peer and for new work at once, so `read` can end in three ways:
with bytes, with `WOKEN`, or by an error. Deadlines cost nothing per wait: the connection sets `deadline`, and one
`Sweeper` per process looks at all of them once a second.

The socket is a plain non-blocking one; only waiting involves the gevent hub. TLS runs on memory buffers
(`ssl.MemoryBIO`), so it needs no second kind of socket. Many sockets that are ready at once share turns of the loop
(`mta.loop.burst`).
"""

from __future__ import annotations

import errno
import os
import ssl
import time
from collections.abc import Generator, Iterable
from typing import Any, Final

import gevent
from gevent import monkey
from gevent.hub import get_hub

from mta.delivery.proxy import ProxyError
from mta.loop.burst import Burst
from mta.queue.shortage import SHORTAGE

socket = monkey.get_original("socket", "socket")

AF_INET6 = 10
SOCK_STREAM = 1
IPPROTO_TCP = 6
TCP_NODELAY = 1
SOL_SOCKET = 1
SO_ERROR = 4
IP_BIND_ADDRESS_NO_PORT = 24  # ip(7): choose the port at connect, so that ports are shared between destinations

READ = 1  # libev's EV_READ and EV_WRITE
WRITE = 2
CHUNK = 65_536
_RECORD: Final = 16_384  # the most plain text that one of TLS holds (RFC 8446 5.1)

WOKEN: Final = object()
_EXPIRED: Final = object()


class WireError(Exception):
    """The connection is of no more use; the text says why, in words for an operator."""


class WireTimeoutError(WireError):
    """The deadline passed."""


class TlsError(WireError):
    """The peer sent what is no TLS, or ended the session by an alert, after the handshake."""


class HandshakeError(WireError):
    """There is no TLS with this peer, or not as we want it: that is no matter of the network."""


class SourceError(WireError):
    """The connection cannot leave from its source: its address is not there, or its proxy fails. No fault of the peer.
    """


class ShortageError(Exception):
    """This machine has no socket for a connection now; the text says what is lacking. No fault of the peer's."""


class Wire:
    """One connection. Used by one greenlet; `wake` and `expire` may be called by any."""

    __slots__ = ("_burst", "_early", "_greenlet", "_hub", "_incoming", "_io", "_outgoing", "_sock", "_sweeper", "_tls",
                 "_token", "_watched", "deadline", "unsent", "waiting_for")

    def __init__(self, sweeper: Sweeper) -> None:
        self._sock: Any = None
        self._hub = get_hub()
        self._io: Any = None
        self._watched = 0  # what the watcher runs for
        self._greenlet: Any = None  # while it waits
        self._token = 0  # counts waits, so that a late wake cannot end the wrong one
        self._early = b""  # read while writing
        self._tls: ssl.SSLObject | None = None
        self._incoming: Any = None  # of TLS: what came and what is to go, encrypted
        self._outgoing: Any = None
        self._sweeper = sweeper
        self._burst = sweeper.burst
        self.unsent = 0  # octets at the end of the last `write` that certainly did not leave
        self.deadline = 0.0  # monotonic seconds
        self.waiting_for = ""  # the phase, for the text of a timeout

    # -- life ---------------------------------------------------------------------------------------------------

    def connect(self, family: int, address: str, port: int, source: str | None) -> None:
        """Connect before the deadline. Raises WireError (SourceError when we do not have the address `source`), and
        ShortageError."""
        try:
            sock = self._sock = socket(family, SOCK_STREAM)
        except OSError as error:  # no IPv6 in this kernel, say
            if error.errno in SHORTAGE:
                raise ShortageError(str(error.strerror)) from None
            raise WireError(f"socket: {error.strerror or error}") from None
        sock.setblocking(False)
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        self._sweeper.add(self)
        try:
            if source is not None:
                sock.setsockopt(0, IP_BIND_ADDRESS_NO_PORT, 1)  # also of IPv6
                self._bind(sock, source)
            code = sock.connect_ex((address, port))
        except OSError as error:
            raise WireError(f"connect from {source}: {error.strerror or error}") from None
        if code == errno.EINPROGRESS:
            if self._wait(WRITE) is WOKEN:
                raise WireError("connect: interrupted")
            code = sock.getsockopt(SOL_SOCKET, SO_ERROR)
        if code in SHORTAGE:
            raise ShortageError(os.strerror(code))
        if code:
            raise WireError(f"connect: {os.strerror(code)}")

    @staticmethod
    def _bind(sock: Any, source: str) -> None:
        try:
            sock.bind((source, 0))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise SourceError(f"this machine does not have the address {source}") from None
            raise

    def through(self, steps: Generator[tuple[bytes, int], bytes, None]) -> None:
        """Have a proxy connect us further, before the deadline (`mta.delivery.proxy`). Raises WireError: SourceError
        when that is the proxy's fault."""
        try:
            data, wanted = next(steps)
            while True:
                self.write([data], self.deadline - time.monotonic())
                data, wanted = steps.send(self._exactly(wanted))
        except StopIteration:
            return
        except ProxyError as error:
            raise (WireError if error.by_peer else SourceError)(str(error)) from None

    def _exactly(self, wanted: int) -> bytes:
        """So many octets from the proxy; what comes behind them is the peer's."""
        while len(self._early) < wanted:
            early, self._early = self._early, b""
            data = self.read()
            if not isinstance(data, bytes):
                raise WireError("connect: interrupted")
            if not data:
                raise SourceError("the proxy closed the connection")
            self._early = early + data
        data, self._early = self._early[:wanted], self._early[wanted:]
        return data

    def close(self) -> None:
        """Close now; bytes that were written still go out."""
        self._sweeper.discard(self)
        if self._io is not None:
            self._io.close()
            self._io = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    @property
    def encrypted(self) -> bool:
        """Whether TLS is established."""
        return self._tls is not None

    def tls_facts(self) -> tuple[str, str] | None:
        """Protocol and cipher, as in ("TLSv1.3", "TLS_AES_256_GCM_SHA384"); None in clear."""
        if self._tls is None:
            return None
        cipher = self._tls.cipher()
        return (self._tls.version() or "", cipher[0] if cipher else "")

    # -- waiting ------------------------------------------------------------------------------------------------

    def _wait(self, events: int) -> object:
        """Give way to others until the socket is ready for `events`, or `wake`, or the deadline. Hot path.

        The watcher goes on between waits, as the next one is mostly for the same.
        """
        if self._watched != events:
            self._watch(events)
        self._greenlet = gevent.getcurrent()
        self._token += 1
        try:
            why: object = self._hub.switch()
        finally:
            self._greenlet = None
        if why is _EXPIRED:
            raise WireTimeoutError(f"timeout while waiting for {self.waiting_for}")
        return why

    def _watch(self, events: int) -> None:
        io = self._io
        if io is None:
            io = self._io = self._hub.loop.io(self._sock.fileno(), events)
        else:
            io.stop()
            io.events = events
        io.start(self._ready)
        self._watched = events

    def _ready(self) -> None:
        greenlet = self._greenlet
        if greenlet is not None and not self._burst.is_over():
            greenlet.switch(None)
            return
        self._io.stop()
        self._watched = 0
        if greenlet is not None:
            self._burst.later(self._resume, self._token, None)
        # Else it is about something else: once it waits for the socket, it will be told.

    def _resume(self, token: int, why: object) -> None:
        greenlet = self._greenlet
        if greenlet is not None and token == self._token:
            greenlet.switch(why)

    def wake(self) -> None:
        """End the peer's `read` with WOKEN, if it is waiting."""
        if self._greenlet is not None:
            self._hub.loop.run_callback(self._resume, self._token, WOKEN)

    def expire(self) -> None:
        """End the current wait with WireTimeoutError, if there is one."""
        if self._greenlet is not None:
            self._hub.loop.run_callback(self._resume, self._token, _EXPIRED)

    # -- bytes --------------------------------------------------------------------------------------------------

    def read(self) -> bytes | object:
        """Wait for bytes: those, or b"" at the end of the stream, or WOKEN. Raises WireError. Hot path."""
        if self._early:
            early, self._early = self._early, b""
            return early
        while True:
            if self._wait(READ) is WOKEN:
                return WOKEN
            data = self._receive()
            if data is not None:
                return data

    def _receive(self) -> bytes | None:
        """What the kernel has, decrypted; None when that is not a whole TLS record yet."""
        try:
            data: bytes = self._sock.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError as error:
            raise WireError(f"connection lost: {error.strerror or error}") from None
        return self._decrypted(data) if self._tls is not None and data else data

    def _decrypted(self, data: bytes) -> bytes | None:
        """Hot path. Room for as much as has come, first: a reply does not need what a record may hold. OpenSSL takes no
        more from the buffer than the record that it is at. So when that is empty, and there was more room than text,
        there is nothing to be read, and asking would cost an exception for each reply.
        """
        assert self._tls is not None
        incoming, read = self._incoming, self._tls.read
        incoming.write(data)
        room = len(data) or _RECORD
        plain: list[bytes] = []
        try:
            while piece := read(room):
                plain.append(piece)
                if len(piece) < room and not incoming.pending:
                    break
                room = _RECORD  # the last octet of a large one may have come alone
        except ssl.SSLWantReadError:
            return b"".join(plain) or None
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as error:
            if not plain:
                raise TlsError(f"TLS: {_reason(error)}") from None
        return b"".join(plain)

    def write(self, buffers: Iterable[bytes], block_s: float) -> None:
        """Send all of `buffers`. The peer must take some of it every `block_s` seconds. Raises WireError. Hot path.

        What the peer says meanwhile is kept for the next `read`, so a peer that answers before it has read everything
        cannot make both sides wait for each other (RFC 2920 3.1).
        """
        data = b"".join(buffers)
        if not data:
            return
        self.unsent = len(data)
        if self._tls is not None:
            try:
                self._tls.write(data)
            except ssl.SSLError as error:  # the peer has ended the TLS session
                raise TlsError(f"TLS: {_reason(error)}") from None
            data = self._outgoing.read()
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise WireError(f"connection lost: {error.strerror or error}") from None
        if sent < len(data):
            self._write_rest(memoryview(data)[sent:], block_s)
        self.unsent = 0

    def _write_rest(self, data: memoryview, block_s: float) -> None:
        reading = READ
        self.waiting_for = "the peer to take the content"
        while data:
            self.unsent = len(data) if self._tls is None else 0  # what a part of the records holds is not known
            self.deadline = time.monotonic() + block_s
            self._wait(WRITE | reading)
            if reading:
                early = self._receive()
                if early is not None:
                    self._early += early
                    if not early or len(self._early) > CHUNK:
                        reading = 0  # the end, or a peer that only talks: the machine will judge it
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                continue
            except OSError as error:
                raise WireError(f"connection lost: {error.strerror or error}") from None
            data = data[sent:]

    def early(self) -> bytes:
        """What the peer had said while we wrote, when the writing failed: often why it hung up."""
        early, self._early = self._early, b""
        return early

    def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """Do the TLS handshake before the deadline. Raises WireError, as HandshakeError when it is TLS that fails;
        the connection is then of no more use."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
            except (ssl.SSLError, ValueError) as error:
                raise HandshakeError(f"TLS handshake: {_reason(error)}") from None
            self._flush_handshake()
            self._wait(READ)
            try:
                data = self._sock.recv(CHUNK)
            except BlockingIOError:
                continue
            except OSError as error:
                raise WireError(f"TLS handshake: {error.strerror or error}") from None
            if not data:
                raise WireError("TLS handshake: connection closed by the peer")
            self._incoming.write(data)
        self._flush_handshake()
        self._tls = tls

    def _flush_handshake(self) -> None:
        data = self._outgoing.read()
        while data:
            try:
                data = data[self._sock.send(data):]
            except BlockingIOError:
                self._wait(WRITE)
            except OSError as error:
                raise WireError(f"TLS handshake: {error.strerror or error}") from None


class Sweeper:
    """Ends the waits of connections whose deadline has passed; looks once a second, for all of a process."""

    def __init__(self) -> None:
        self.burst = Burst()
        self._wires: set[Wire] = set()
        self._greenlet = gevent.spawn(self._run)

    def add(self, wire: Wire) -> None:
        """Watch `wire` until `discard`."""
        self._wires.add(wire)

    def discard(self, wire: Wire) -> None:
        """Stop watching `wire`."""
        self._wires.discard(wire)

    def _run(self) -> None:
        while True:
            gevent.sleep(1.0)
            now = time.monotonic()
            for wire in [wire for wire in self._wires if wire.deadline <= now]:
                wire.expire()


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else str(error)
