"""The client's end of TLS in the load programs: memory buffers, any certificate, sessions resumed if asked. And what it
takes of a client, without TLS: who encrypts pauses longer before each command, which makes a message dearer for the MTA
in clear, too, as the worker has slept and the caches hold other things. What TLS costs the MTA is what it costs more
than that.
"""

from __future__ import annotations

import contextlib
import ssl
from collections import deque

_READ_SIZE = 65_536
_REPLY = b"250 2.1.0 OK, and thirty octets\r\n"


class TlsClient:
    """What all connections of a program share: the context, and the session that the next connection resumes."""

    def __init__(self, resume: bool) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._resume = resume
        self._session: ssl.SSLSession | None = None
        self.resumed = 0
        """Handshakes that were short."""

    def connect(self) -> TlsEnd:
        """A new connection's."""
        return TlsEnd(self, self._context, self._session)

    def keep(self, end: ssl.SSLObject) -> None:
        """A connection is at its end: what it knows may save the next one a handshake."""
        self.resumed += bool(end.session_reused)
        if self._resume:
            self._session = end.session


class TlsEnd:
    """One connection's. `output` is to be sent after each call of `decrypt`."""

    __slots__ = ("_client", "_incoming", "_object", "_outgoing", "done")

    def __init__(self, client: TlsClient, context: ssl.SSLContext, session: ssl.SSLSession | None) -> None:
        self._client = client
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, session=session)
        self.done = False
        """The handshake is."""

    def decrypt(self, data: bytes) -> bytes:
        """Plain text of what has come; the handshake goes on with it first. Raises ssl.SSLError."""
        self._incoming.write(data)
        if not self.done:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                return b""
            self.done = True
        pieces = []
        try:
            while piece := self._object.read(_READ_SIZE):
                pieces.append(piece)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        return b"".join(pieces)

    def encrypt(self, data: bytes) -> bytes:
        """Ciphertext to be sent. Raises ssl.SSLError."""
        self._object.write(data)
        return self._outgoing.read()

    def output(self) -> bytes:
        """What TLS itself has to send."""
        return self._outgoing.read()

    def close(self) -> None:
        """The connection is over."""
        if self.done:
            self._client.keep(self._object)


class ForNobody:
    """A session in clear that costs its client as much as one in TLS: it encrypts all that it sends and decrypts as
    much as it hears, for nobody. As a `TlsEnd`."""

    __slots__ = ("_incoming", "_nobody", "_object", "_outgoing", "_replies")

    def __init__(self, certificate: str, replies: int) -> None:
        """`certificate` is a file, with the key. `replies` are prepared."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._replies: deque[bytes] = deque()
        ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ours.check_hostname = False
        ours.verify_mode = ssl.CERT_NONE
        theirs.load_cert_chain(certificate)
        self._object = ours.wrap_bio(self._incoming, self._outgoing)
        self._nobody = theirs.wrap_bio(self._outgoing, self._incoming, server_side=True)
        for end in (self._object, self._nobody, self._object, self._nobody):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        self._hear()  # the tickets
        self.prepare(replies)

    def prepare(self, replies: int) -> None:
        """Have so many replies to decrypt; beyond them nothing is."""
        while len(self._replies) < replies:
            self._nobody.write(_REPLY)
            self._replies.append(self._incoming.read())

    def decrypt(self, data: bytes) -> bytes:
        """`data`, after a reply was decrypted."""
        if self._replies:
            self._incoming.write(self._replies.popleft())
            self._hear()
        return data

    def encrypt(self, data: bytes) -> bytes:
        """`data`, after it was encrypted."""
        self._object.write(data)
        self._outgoing.read()
        return data

    def output(self) -> bytes:
        """Nothing to be sent."""
        return b""

    def close(self) -> None:
        """The connection is over."""

    def _hear(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            while self._object.read(_READ_SIZE):
                pass
