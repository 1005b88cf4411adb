"""The client's end of TLS in the load programs: memory buffers, any certificate, sessions resumed if asked."""

from __future__ import annotations

import ssl

_READ_SIZE = 65_536


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
