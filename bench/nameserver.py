"""Name service of a load test: domains d0, d1, ... of a zone, each with an MX of its own on a loopback address.

    python -m bench.nameserver -a 127.0.0.1:5353 -f FIRST_IP -k HOW_MANY_IPS

`dK.test` has the MX `mx.dK.test`, whose address is number K, modulo their count, of the sink's. The domains `dK.dead`
are like them, but nobody listens at their address, and the domains `dK.slow` are those of one provider: all have the
MX `mx.slow`. Nothing else exists: other names are NXDOMAIN, other types NODATA. UDP only; every answer fits.
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
import sys
from collections.abc import Mapping, Sequence

from bench.loopback import Stop, announce, consecutive, cpu_s, endpoint, raise_descriptor_limit, write_result

_A, _SOA, _MX, _ANY = 1, 6, 15, 255
_TTL_S = 3600
DEAD_ADDRESS = "127.0.0.9"
"""Where no load program accepts connections."""
SLOW_ADDRESS = "127.0.0.8"
"""Where the hosts of the zone `slow` are."""
_ANSWER, _NXDOMAIN, _NOT_IMPLEMENTED, _FORMAT_ERROR = 0, 3, 4, 1
_AUTHORITATIVE = 0x8400
_RECURSION = 0x0180  # desired (copied) and available
_REMEMBERED = 20_000
_TO_QUESTION = b"\xc0\x0c"
_POINTER = 0xC000
_QUESTION = 12  # where it begins


class Zones:
    """What exists: the addresses of each top-level zone's hosts."""

    def __init__(self, zones: Mapping[str, Sequence[str]], shared: Sequence[str] = ()) -> None:
        """In the zones named in `shared` one host, `mx.ZONE`, is the MX of all domains."""
        self._shared = {zone.lower().encode("ascii") for zone in shared}
        self._zones = {zone.lower().encode("ascii"): [socket.inet_aton(address) for address in addresses]
                       for zone, addresses in zones.items()}
        self._made: dict[bytes, bytes] = {}
        # The root speaks for all: MNAME and RNAME are the root too, the last number is the negative TTL (RFC 2308 5).
        data = b"\0\0" + struct.pack("!5I", 1, _TTL_S, _TTL_S, _TTL_S, _TTL_S)
        self._soa = b"\0" + struct.pack("!HHIH", _SOA, 1, _TTL_S, len(data)) + data

    def answer(self, query: bytes) -> bytes | None:
        """The response to `query`, or None when it is none (RFC 1035 4.1)."""
        if len(query) < 17 or query[2] & 0x80:
            return None
        # Postfix asks the same two questions for every message.
        made = self._made.get(query[2:])
        if made is None:
            made = self._make(query)[2:]
            if len(self._made) < _REMEMBERED:
                self._made[query[2:]] = made
        return query[:2] + made

    def _make(self, query: bytes) -> bytes:
        name, end = _labels(query)
        if end + 4 > len(query) or query[4:6] != b"\0\1":
            return query[:2] + struct.pack("!H", _AUTHORITATIVE | _FORMAT_ERROR) + bytes(8)
        kind, = struct.unpack_from("!H", query, end)
        question = query[12:end + 4]
        host, address = self._find(name)
        records = b""
        code = _ANSWER if address else _NXDOMAIN
        if query[2] & 0x78:
            code = _NOT_IMPLEMENTED
        elif address and host and kind in (_A, _ANY):
            records = struct.pack("!2sHHIH", _TO_QUESTION, _A, 1, _TTL_S, 4) + address
        elif address and not host and kind in (_MX, _ANY):
            of = _QUESTION + (1 + len(name[0]) if name[1] in self._shared else 0)
            records = struct.pack("!2sHHIHH3sH", _TO_QUESTION, _MX, 1, _TTL_S, 7, 10, b"\2mx", _POINTER | of)
        flags = _AUTHORITATIVE | _RECURSION | code
        authority = b"" if records else self._soa
        return (query[:2] + struct.pack("!HHHHH", flags, 1, bool(records), bool(authority), 0)
                + question + records + authority)

    def _find(self, name: list[bytes]) -> tuple[bool, bytes]:
        """Whether `name` is a host's, and the address of that host; empty when the name does not exist."""
        host = name[:1] == [b"mx"]
        if host and len(name) == 2 and name[1] in self._shared:
            return host, self._zones[name[1]][0]
        domain = name[1:] if host else name
        addresses = self._zones.get(domain[1]) if len(domain) == 2 else None
        digits = domain[0][1:] if addresses else b""
        if not addresses or domain[0][:1] != b"d" or not digits.isdigit() or len(digits) > 9:
            return host, b""
        return host, addresses[int(digits) % len(addresses)]


def _labels(query: bytes) -> tuple[list[bytes], int]:
    """The lower-cased labels of the first question, and where its type begins; beyond the end if it is broken."""
    labels: list[bytes] = []
    position = 12
    while position < len(query):
        length = query[position]
        position += 1
        if not length:
            return labels, position
        if length > 63:
            break
        labels.append(query[position:position + length].lower())
        position += length
    return labels, len(query)


def serve(address: tuple[str, int], zones: Zones) -> dict[str, int | float]:
    """Answer until SIGTERM; the counts."""
    poll = select.epoll()
    stop = Stop(poll)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(address)
        udp.setblocking(False)
        poll.register(udp.fileno(), select.EPOLLIN)
        announce("{}:{}".format(*udp.getsockname()))
        queries = 0
        while not stop.asked:
            poll.poll()
            while True:
                try:
                    query, client = udp.recvfrom(4096)
                except BlockingIOError:
                    break
                response = zones.answer(query)
                if response is not None:
                    queries += 1
                    udp.sendto(response, client)
    return {"queries": queries, "cpu_s": round(cpu_s(), 3)}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.nameserver", description="MX records that point at the sink.")
    parser.add_argument("-a", dest="address", type=endpoint, default=("127.0.0.1", 0), metavar="IP:PORT",
                        help="where to listen (a free port of 127.0.0.1)")
    parser.add_argument("-f", dest="first", default="127.0.0.10", metavar="IP", help="first address (%(default)s)")
    parser.add_argument("-k", dest="addresses", type=int, default=1, metavar="N", help="consecutive addresses")
    parser.add_argument("-o", dest="output", metavar="FILE", help="result as JSON; stdout without it")
    return parser


def main() -> int:
    """Run the name server."""
    options = arguments().parse_args()
    raise_descriptor_limit()
    try:
        zones = Zones({"test": consecutive(options.first, options.addresses), "dead": [DEAD_ADDRESS],
                       "slow": [SLOW_ADDRESS]}, shared=["slow"])
        result = serve(options.address, zones)
    except (ValueError, OSError) as error:
        print(f"bench.nameserver: {error}", file=sys.stderr)
        return 2
    write_result(options.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
