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
    """One connection's encryption. `output` is to be sent after each call of another method; `encrypt` has it in it."""

    __slots__ = ("_contexts", "_incoming", "_object", "_outgoing", "_put", "_read", "_take", "_write", "done")

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = contexts.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._put, self._take = self._incoming.write, self._outgoing.read
        self._read, self._write = self._object.read, self._object.write
        self.done = False
        """The handshake is."""

    def shake_hands(self, data: bytes) -> bool:
        """Take ciphertext during the handshake; whether it is done. Raises TlsError."""
        self._put(data)
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
        size = len(data)
        if size > _PIECE:
            return self._decrypt_pieces(data)
        # OpenSSL takes no more from the buffer than the record that it is at. So when that is empty and the record was
        # read to its end there is nothing to be read, and asking would cost an exception for each command.
        self._put(data)
        text = b""
        try:
            while piece := self._read(size or _RECORD):
                text += piece
                if len(piece) < size and not self._incoming.pending:
                    return text, False
                size = _RECORD  # what has come may end a record that is longer
        except ssl.SSLWantReadError:
            return text, False
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as error:
            raise TlsError(_reason(error)) from None
        return text, True

    def _decrypt_pieces(self, data: bytes) -> tuple[bytes, bool]:
        """What has been in a buffer once it keeps room for: 64 KB in each session that ever sent as much at once."""
        found = [self.decrypt(data[start : start + _PIECE]) for start in range(0, len(data), _PIECE)]
        return b"".join([text for text, _ in found]), found[-1][1]

    def encrypt(self, data: bytes) -> bytes:
        """Ciphertext to be sent, behind what TLS itself had to send. Hot path. Raises TlsError."""
        try:
            self._write(data)
        except ssl.SSLError as error:
            raise TlsError(_reason(error)) from None
        return self._take()

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
