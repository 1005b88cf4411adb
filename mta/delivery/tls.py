"""TLS for outgoing connections: the contexts, and which hosts are known to be broken.

Opportunistic TLS asks for no certificate: it protects against listeners, not against an active attacker, and an
expired or self-signed certificate must not make mail wait (RFC 7435). A context costs tens of milliseconds to make
with the system's CA file, so there are few and they are shared.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict

BROKEN_FOR_S = 3600.0
BROKEN_KEPT = 10_000


def opportunistic_context() -> ssl.SSLContext:
    """Encrypt, whatever the certificate says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def verifying_context(ca_file: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    """Verify that the host has a certificate for its name from an authority in `ca_file`, or of the system's. With a
    `certificate` of our own for who asks for one. Takes tens of milliseconds. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which verifies
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(ca_file)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


class HostMemory:
    """Addresses remembered for a time: those whose TLS fails, or that do not bear pipelining or chunks. Bounded."""

    def __init__(self, keep_s: float = BROKEN_FOR_S, at_most: int = BROKEN_KEPT) -> None:
        self._keep_s = keep_s
        self._at_most = at_most
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, address: str, now_s: float) -> None:
        """Remember `address` from now on."""
        self._until[address] = now_s + self._keep_s
        self._until.move_to_end(address)
        if len(self._until) > self._at_most:
            self._until.popitem(last=False)

    def has(self, address: str, now_s: float) -> bool:
        """Whether `address` is remembered."""
        until = self._until.get(address)
        return until is not None and until > now_s
