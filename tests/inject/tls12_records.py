"""A client's end of TLS 1.2 that can write any record, which no library lets a client do."""

from __future__ import annotations

import hmac
import ssl
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

HANDSHAKE, APPLICATION, ALERT = 22, 23, 21


class Records:
    """It shakes hands by `ssl`, and takes the keys over from there (RFC 5246 6.3, RFC 7905)."""

    def __init__(self, context: ssl.SSLContext, keys: Path, server_name: str) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE+CHACHA20")
        context.keylog_filename = str(keys)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=server_name)
        self._keys = keys
        self._hellos = [b"", b""]  # the client's, the server's
        self._number = 1  # the first was the end of the handshake

    def shake_hands(self, received: bytes) -> tuple[bytes, bool]:
        """Take what has come; what is to be sent, and whether the handshake is done."""
        self.incoming.write(received)
        self._hellos[1] = self._hellos[1] or received
        try:
            self._tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        sent = self.outgoing.read()
        self._hellos[0] = self._hellos[0] or sent
        if done:
            lines = [line.split() for line in self._keys.read_text().splitlines()]
            [secret] = [line[2] for line in lines if line[0] == "CLIENT_RANDOM"]
            client, server = (hello[11:43] for hello in self._hellos)
            block = _expanded(bytes.fromhex(secret), b"key expansion" + server + client, 88)
            self._cipher, self._nonce = ChaCha20Poly1305(block[:32]), block[64:76]
        return sent, done

    def record(self, kind: int, content: bytes) -> bytes:
        """The next one."""
        nonce = bytes(one ^ other for one, other in zip(self._nonce, self._number.to_bytes(12, "big"), strict=True))
        head = bytes([kind, 3, 3])
        about = self._number.to_bytes(8, "big") + head + len(content).to_bytes(2, "big")
        encrypted = self._cipher.encrypt(nonce, content, about)
        self._number += 1
        return head + len(encrypted).to_bytes(2, "big") + encrypted


def _expanded(secret: bytes, seed: bytes, size: int) -> bytes:
    """The pseudorandom function of TLS 1.2 (RFC 5246 5)."""
    link, found = seed, b""
    while len(found) < size:
        link = hmac.digest(secret, link, "sha256")
        found += hmac.digest(secret, link + seed, "sha256")
    return found[:size]
