"""A client's side of SCRAM-SHA-256 for tests, written from RFC 5802 and with nothing of ours."""

from __future__ import annotations

import base64
import hashlib
import hmac


class ScramClient:
    """One exchange."""

    def __init__(self, user: str, password: str, flag: str = "n", binding: bytes = b"", nonce: str = "client") -> None:
        """`flag`: what the GS2 header begins with, `n`, `y` or `p=NAME`."""
        self._password = password
        self._header = f"{flag},,".encode()
        self._binding = binding
        self._bare = f"n={user},r={nonce}".encode()
        self._signature = b""

    def first(self) -> bytes:
        """The first message."""
        return self._header + self._bare

    def final(self, challenge: bytes) -> bytes:
        """The final message."""
        values = dict(item.split(b"=", 1) for item in challenge.split(b","))
        salt, rounds = base64.b64decode(values[b"s"]), int(values[b"i"])
        salted = hashlib.pbkdf2_hmac("sha256", self._password.encode(), salt, rounds)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        unproved = b"c=" + base64.b64encode(self._header + self._binding) + b",r=" + values[b"r"]
        text = b",".join((self._bare, challenge, unproved))
        signature = hmac.digest(hashlib.sha256(client_key).digest(), text, "sha256")
        self._signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), text, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        return unproved + b",p=" + base64.b64encode(proof)

    def is_satisfied(self, last_words: bytes) -> bool:
        """Whether the server has proved that it knows the keys."""
        return last_words == b"v=" + base64.b64encode(self._signature)
