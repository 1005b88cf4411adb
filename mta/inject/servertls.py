"""The server's side of TLS on one connection, without the connection: ciphertext in, plain text out, and the reverse.

On memory buffers, so that a session does the same on its socket whether it is encrypted or not. Costs two copies, next
to the encryption itself nothing.
"""

from __future__ import annotations

import ssl
from typing import Final

from mta.inject.certificates import Contexts, names_of_client
from mta.smtp.peer import Tls

_RECORD: Final = 16_384  # the most that one holds (RFC 8446 5.1); what is read is one at most
_PIECE: Final = 8_192  # ciphertext in the buffer at once


class TlsError(OSError):
    """The other side does not speak TLS as it should, and there is no connection any more; the text says why."""


class ServerTls:
    """One connection's encryption. `output` is to be sent after each call of another method."""

    __slots__ = ("_contexts", "_incoming", "_object", "_outgoing", "done")

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = contexts.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.done = False
        """The handshake is."""

    def shake_hands(self, data: bytes) -> bool:
        """Take ciphertext during the handshake; whether it is done. Raises TlsError."""
        self._incoming.write(data)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TlsError(_reason(error)) from None
        self.done = True
        return True

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """Plain text of what has come, and whether the client has said that no more will. Hot path. Raises TlsError."""
        pieces: list[bytes] = []
        ended = False
        if len(data) <= _PIECE:
            ended = self._decrypt(data, pieces)
        else:
            # What has been in a buffer once it keeps room for: 64 KB in each session that ever sent as much at once.
            for start in range(0, len(data), _PIECE):
                ended = self._decrypt(data[start : start + _PIECE], pieces)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), ended

    def _decrypt(self, data: bytes, pieces: list[bytes]) -> bool:
        """Hot path. OpenSSL takes no more from the buffer than the record that it is at. So when that is empty there is
        nothing to be read, and asking would cost an exception for each command."""
        incoming, read = self._incoming, self._object.read
        incoming.write(data)
        try:
            while piece := read(_RECORD):
                pieces.append(piece)
                if not incoming.pending:
                    return False
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as error:
            raise TlsError(_reason(error)) from None
        return True

    def encrypt(self, data: bytes) -> bytes:
        """Ciphertext to be sent. Hot path. Raises TlsError."""
        try:
            self._object.write(data)
        except ssl.SSLError as error:
            raise TlsError(_reason(error)) from None
        return self._outgoing.read()

    def output(self) -> bytes:
        """Ciphertext of TLS itself that is to be sent: handshake, alerts."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def farewell(self) -> bytes:
        """What tells the client that nothing more comes, so that it can tell our end from somebody's cut."""
        try:
            self._object.unwrap()
        except ssl.SSLError:
            pass  # it waits for the client's, or there was no session
        return self._outgoing.read()

    def description(self) -> tuple[Tls, tuple[str, ...]]:
        """What was agreed on, and the names in the client's certificate that may be a user."""
        cipher = self._object.cipher()
        names = names_of_client(self._object.getpeercert())
        end_point = self._contexts.end_point(self._object.context)
        bindings = {"tls-server-end-point": end_point} if end_point else {}
        return Tls(self._object.version() or "", cipher[0] if cipher else "", bindings), names


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or type(error).__name__).lower().replace("_", " ")
