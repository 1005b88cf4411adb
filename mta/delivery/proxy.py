"""What is said to a proxy before the peer is there: SOCKS5 (RFC 1928, user and password RFC 1929), PROXY v2 (HAProxy).

No I/O: `negotiate` is a generator that yields the bytes to send with the number of octets that must come back, and is
sent those. It ends when the connection to the peer stands, or raises ProxyError with words for an operator.

A SOCKS5 proxy chooses the address to leave from by itself, by who asks it: port or user. A proxy of HAProxy's kind
(`source 0.0.0.0 usesrc clientip`, KumoMTA's proxy) takes it from the header: source and destination of the connection.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Generator
from typing import Final

from mta.config.hosts import Proxy
from mta.delivery.ourselves import AF_INET6

Steps = Generator[tuple[bytes, int], bytes, None]

# RFC 1928, section 6
_REPLIES: Final = {
    1: "general failure", 2: "not allowed by its rules", 3: "network unreachable", 4: "host unreachable",
    5: "connection refused", 6: "TTL expired", 7: "command not supported", 8: "address type not supported",
}
_PROXY_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"


class ProxyError(Exception):
    """There is no connection through the proxy. `by_peer`: it is the peer, not the proxy, that could not be reached."""

    def __init__(self, text: str, by_peer: bool = False) -> None:
        super().__init__(text)
        self.by_peer = by_peer


def negotiate(proxy: Proxy, family: int, address: str, port: int, source: str | None) -> Steps:
    """Ask `proxy` for a connection to `address`, from `source` where it can be told so."""
    if proxy.kind == "haproxy":
        return _haproxy(family, address, port, source)
    return _socks5(proxy, family, address, port)


def _haproxy(family: int, address: str, port: int, source: str | None) -> Steps:
    """The header of PROXY protocol version 2 (HAProxy's proxy-protocol.txt, 2.2). Nothing comes back."""
    if source is None:
        raise ProxyError("the source has no address of this family to tell the proxy")
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, address) + struct.pack("!HH", 0, port)
    kind = 0x21 if family == AF_INET6 else 0x11  # over TCP
    yield _PROXY_V2 + struct.pack("!BBH", 0x21, kind, len(addresses)) + addresses, 0


def _socks5(proxy: Proxy, family: int, address: str, port: int) -> Steps:
    methods = b"\x02" if proxy.user else b"\x00"  # only what is configured: no password is sent to who does not ask
    version, method = yield b"\x05\x01" + methods, 2
    if version != 5:
        raise ProxyError("the proxy does not speak SOCKS5")
    if method == 0xFF or bytes([method]) != methods:
        wants = "no user and password" if proxy.user else "user and password"
        raise ProxyError(f"the proxy wants {wants}" if method in (0, 0xFF) else f"the proxy wants method {method}")
    if proxy.user:
        user, password = proxy.user.encode(), proxy.password.encode()
        answer = yield b"\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password, 2
        if answer[1]:
            raise ProxyError("the proxy refuses user and password")
    kind = b"\x04" if family == AF_INET6 else b"\x01"
    head = yield b"\x05\x01\x00" + kind + socket.inet_pton(family, address) + struct.pack("!H", port), 4
    if head[0] != 5:
        raise ProxyError("the proxy does not speak SOCKS5")
    if head[1]:
        said = _REPLIES.get(head[1], f"reply {head[1]}")
        raise ProxyError(f"the proxy could not connect: {said}", by_peer=head[1] in (3, 4, 5, 6))
    if head[3] == 3:
        length = yield b"", 1
        yield b"", length[0] + 2
    elif head[3] in (1, 4):
        yield b"", (4 if head[3] == 1 else 16) + 2
    else:
        raise ProxyError("the proxy gives an address of an unknown kind")
