"""Name service of a load test: domains d0, d1, ... of one zone, each with an MX of its own on a loopback address.

    python -m bench.nameserver -a 127.0.0.1:5353 -f FIRST_IP -k HOW_MANY_IPS

`dK.test` has the MX `mx.dK.test`, whose address is number K, modulo their count, of the sink's. Nothing else exists:
other names are NXDOMAIN, other types NODATA. UDP only; every answer fits.
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
import sys

from bench.loopback import Stop, announce, consecutive, cpu_s, endpoint, raise_descriptor_limit, write_result

_A, _SOA, _MX, _ANY = 1, 6, 15, 255
_TTL_S = 3600
_ANSWER, _NXDOMAIN, _NOT_IMPLEMENTED, _FORMAT_ERROR = 0, 3, 4, 1
_AUTHORITATIVE = 0x8400
_RECURSION = 0x0180  # desired (copied) and available
_REMEMBERED = 20_000
_TO_QUESTION = b"\xc0\x0c"


class Zone:
    """What exists."""

    def __init__(self, zone: str, addresses: list[str]) -> None:
        self._suffix = [label.encode("ascii") for label in zone.lower().split(".")]
        self._addresses = [socket.inet_aton(address) for address in addresses]
        name = b"".join(bytes([len(label)]) + label for label in self._suffix) + b"\0"
        # MNAME and RNAME are the zone itself; the last number is the negative TTL (RFC 2308 5).
        data = name + name + struct.pack("!5I", 1, _TTL_S, _TTL_S, _TTL_S, _TTL_S)
        self._made: dict[bytes, bytes] = {}
        self._soa = name + struct.pack("!HHIH", _SOA, 1, _TTL_S, len(data)) + data

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
        host, number = self._find(name)
        records = b""
        code = _ANSWER if number >= 0 else _NXDOMAIN
        if query[2] & 0x78:
            code = _NOT_IMPLEMENTED
        elif number >= 0 and host and kind in (_A, _ANY):
            records = struct.pack("!2sHHIH", _TO_QUESTION, _A, 1, _TTL_S, 4)
            records += self._addresses[number % len(self._addresses)]
        elif number >= 0 and not host and kind in (_MX, _ANY):
            records = struct.pack("!2sHHIHH3s2s", _TO_QUESTION, _MX, 1, _TTL_S, 7, 10, b"\2mx", _TO_QUESTION)
        flags = _AUTHORITATIVE | _RECURSION | code
        authority = b"" if records else self._soa
        return (query[:2] + struct.pack("!HHHHH", flags, 1, bool(records), bool(authority), 0)
                + question + records + authority)

    def _find(self, name: list[bytes]) -> tuple[bool, int]:
        """Whether `name` is a host's, and K; -1 when it does not exist."""
        host = name[0] == b"mx" if name else False
        if host:
            name = name[1:]
        digits = name[0][1:] if name and name[0][:1] == b"d" else b""
        return host, int(digits) if name[1:] == self._suffix and digits.isdigit() and len(digits) < 10 else -1


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


def serve(address: tuple[str, int], zone: Zone) -> dict[str, int | float]:
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
                response = zone.answer(query)
                if response is not None:
                    queries += 1
                    udp.sendto(response, client)
    return {"queries": queries, "cpu_s": round(cpu_s(), 3)}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.nameserver", description="MX records that point at the sink.")
    parser.add_argument("-a", dest="address", type=endpoint, default=("127.0.0.1", 0), metavar="IP:PORT",
                        help="where to listen (a free port of 127.0.0.1)")
    parser.add_argument("-z", dest="zone", default="test", help="the zone (%(default)s)")
    parser.add_argument("-f", dest="first", default="127.0.0.10", metavar="IP", help="first address (%(default)s)")
    parser.add_argument("-k", dest="addresses", type=int, default=1, metavar="N", help="consecutive addresses")
    parser.add_argument("-o", dest="output", metavar="FILE", help="result as JSON; stdout without it")
    return parser


def main() -> int:
    """Run the name server."""
    options = arguments().parse_args()
    raise_descriptor_limit()
    try:
        result = serve(options.address, Zone(options.zone, consecutive(options.first, options.addresses)))
    except (ValueError, OSError) as error:
        print(f"bench.nameserver: {error}", file=sys.stderr)
        return 2
    write_result(options.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
