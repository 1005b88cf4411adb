"""The PROXY header, version 1 and 2, that a load balancer puts before a connection to say who the client is.

Source: haproxy's doc/proxy-protocol.txt. Bytes in, an address out. It is asked for from those in `proxy_from` alone,
and then it must be there: nothing is guessed from what a client sends. UNKNOWN, LOCAL and families that are no TCP mean
the connection of the balancer itself, such as a health check. The values behind the addresses of version 2 (TLVs) are
read over.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass
from typing import Final

V1_LIMIT: Final = 107  # octets with CRLF, section 2.1
V2_LIMIT: Final = 16 + 2048  # ours: addresses of Unix sockets have 216 octets, the rest would be TLVs
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"

_V1: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: [\x20-\x7e]*)?"
    rb"|TCP([46]) ([0-9A-Fa-f:.]{1,45}) ([0-9A-Fa-f:.]{1,45}) ([0-9]{1,5}) ([0-9]{1,5}))")


class ProxyHeaderError(ValueError):
    """Not a PROXY header; the text says why and holds nothing that was sent."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a whole header says."""

    client: tuple[str, int] | None  # address and port; None: it is the balancer itself
    size: int  # octets; what follows them is the client's


def read(data: bytes) -> ProxyHeader | None:
    """The header that `data` begins with; None when it is not whole yet. Raises ProxyHeaderError."""
    if data.startswith(_SIGNATURE[: len(data)]) and data[:1] == b"\r":
        return _read_v2(data)
    if not data.startswith(b"PROXY "[: len(data)]):
        raise ProxyHeaderError("no PROXY header")
    end = data.find(b"\r\n", 0, V1_LIMIT)
    if end < 0:
        if len(data) >= V1_LIMIT:
            raise ProxyHeaderError(f"a PROXY header of more than {V1_LIMIT} octets")
        if b"\n" in data:
            raise ProxyHeaderError("a PROXY header that does not end with CR LF")
        return None
    return _read_v1(data[:end])


def _read_v1(line: bytes) -> ProxyHeader:
    match = _V1.fullmatch(line)
    if match is None:
        raise ProxyHeaderError("a PROXY header that has not the form of version 1")
    size = len(line) + 2
    if match[1] is None:
        return ProxyHeader(None, size)
    try:
        kind = ipaddress.IPv4Address if match[1] == b"4" else ipaddress.IPv6Address
        source, _ = kind(match[2].decode()), kind(match[3].decode())
    except ValueError:
        raise ProxyHeaderError("a PROXY header whose addresses are none") from None
    port, own_port = int(match[4]), int(match[5])
    if port > 65_535 or own_port > 65_535:
        raise ProxyHeaderError("a PROXY header whose ports are none")
    return ProxyHeader((_text(source), port), size)


def _read_v2(data: bytes) -> ProxyHeader | None:
    if len(data) >= 16:
        version, family, length = struct.unpack_from("!BBH", data, 12)
        if version not in (0x20, 0x21):
            raise ProxyHeaderError("a PROXY header of another version or command")
        if 16 + length > V2_LIMIT:
            raise ProxyHeaderError(f"a PROXY header of more than {V2_LIMIT} octets")
        if len(data) >= 16 + length:
            return ProxyHeader(_v2_client(version & 15, family, data[16 : 16 + length]), 16 + length)
    return None


def _v2_client(command: int, family: int, body: bytes) -> tuple[str, int] | None:
    if command == 0 or family not in (0x11, 0x21):
        return None
    size = 4 if family == 0x11 else 16
    if len(body) < 2 * size + 4:
        raise ProxyHeaderError("a PROXY header that is too short for its addresses")
    return _text(ipaddress.ip_address(body[:size])), int.from_bytes(body[2 * size : 2 * size + 2])


def _text(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """As accepted connections have it: IPv4 in IPv6 is IPv4."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
