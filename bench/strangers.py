"""Clients that send no mail: many that are idle, or floods from one address.

    python -m bench.strangers -a IP:PORT -k idle -n 8000            from 127.16.0.1 on, 100 of each address
    python -m bench.strangers -a IP:PORT -k close -R 2000           2,000 connections a second from 127.66.6.6

Kinds: `idle` says EHLO and nothing more; of the floods `close` closes at once, `hold` stays as long as it is let,
`garbage` sends a megabyte of random octets, `login` guesses passwords, one after the other, and `tls` begins a
handshake and leaves. A flood has at most `-n` connections open. Ends by SIGTERM; the result has what became of them.
One process, one epoll loop.
"""

from __future__ import annotations

import argparse
import base64
import os
import select
import socket
import sys
import time
from collections import Counter

from bench.loopback import Stop, announce, consecutive, cpu_s, endpoint, raise_descriptor_limit, write_result
from bench.tlsclient import TlsClient, TlsEnd

KINDS = ("idle", "close", "hold", "garbage", "login", "tls")
FLOOD_ADDRESS = "127.66.6.6"
IDLE_FIRST = "127.16.0.1"
_PER_ADDRESS = 100
_OPENING = 200
"""Idle clients whose greeting is waited for at once."""
_GARBAGE = os.urandom(65_536)
_GARBAGE_EACH = 16  # times that
_STEP_S = 0.02
_IP_BIND_ADDRESS_NO_PORT = 24


class Client:
    """One connection."""

    __slots__ = ("left", "phase", "sock", "tls")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.phase = 0
        """Replies that came."""
        self.left = _GARBAGE_EACH
        self.tls: TlsEnd | None = None


class Strangers:
    """The loop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._kind: str = options.kind
        self._to: tuple[str, int] = options.address
        self._most: int = options.number
        self._rate: float = options.rate
        self._addresses = consecutive(IDLE_FIRST, self._most // _PER_ADDRESS + 1) if self._kind == "idle" \
            else [FLOOD_ADDRESS]
        self._poll = select.epoll()
        self._stop = Stop(self._poll)
        self._clients: dict[int, Client] = {}
        self._tls = TlsClient(False) if options.tls or self._kind == "tls" else None
        self._begun = 0
        self._settled = 0
        self._ready = False
        self.found: Counter[str] = Counter()

    def run(self, limit_s: float) -> None:
        """Go on until SIGTERM, or for so long."""
        began_s = time.monotonic()
        if self._kind != "idle":
            announce("flooding")
        while not self._stop.asked and time.monotonic() - began_s < limit_s:
            if self._kind == "idle":
                while self._begun < self._most and self._begun - self._settled < _OPENING:
                    self._open()
                if self._settled == self._most and not self._ready:
                    self._ready = True
                    announce(f"{self.found['idle']} are idle")
            else:
                due = int((time.monotonic() - began_s) * self._rate)
                while self._begun < due:
                    self._begun += 1
                    if len(self._clients) < self._most:
                        self._open()
                    else:
                        self.found["held back"] += 1
            for fd, mask in self._poll.poll(_STEP_S if self._kind != "idle" or self._begun < self._most else 1.0):
                client = self._clients.get(fd)
                if client is not None:
                    self._act(client, mask)
        self.found["open"] = len(self._clients)

    def _open(self) -> None:
        if self._kind == "idle":
            self._begun += 1
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        try:
            sock.bind((self._addresses[self._begun % len(self._addresses)], 0))
            sock.connect(self._to)
        except BlockingIOError:
            pass
        except OSError:
            self.found["not connected"] += 1
            self._settled += 1
            sock.close()
            return
        self.found["begun"] += 1
        if self._kind == "close":
            sock.close()
            return
        client = self._clients[sock.fileno()] = Client(sock)
        if self._tls is not None:
            client.tls = self._tls.connect()
            client.tls.decrypt(b"")
            self._send(client, client.tls.output())
        if self._kind == "tls":
            self._end(client, "handshake begun")
            return
        self._poll.register(sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if self._kind == "garbage" else 0))

    def _act(self, client: Client, mask: int) -> None:
        if mask & select.EPOLLOUT and self._kind == "garbage":
            self._send(client, _GARBAGE)
            client.left -= 1
            if not client.left:
                self._poll.modify(client.sock.fileno(), select.EPOLLIN)
        if not mask & ~select.EPOLLOUT:
            return
        try:
            data = client.sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            self._end(client, "reset")
            return
        if not data:
            self._end(client, "ended")
            return
        if client.tls is not None:
            data = client.tls.decrypt(data)
            self._send(client, client.tls.output())
        for line in data.splitlines():
            if line[3:4] != b"-":
                self._reply(client, line)

    def _reply(self, client: Client, line: bytes) -> None:
        code = line[:3].decode("ascii", "replace")
        if client.phase == 0 or code == "421":
            self.found[f"told {code}"] += 1
        if code == "421":
            self._end(client, "refused")
            return
        client.phase += 1
        if client.phase == 1 and self._kind in ("idle", "login"):
            self._say(client, b"EHLO stranger.test\r\n")
        elif self._kind == "idle" and client.phase == 2:
            self.found["idle"] += 1
            self._settled += 1
        elif self._kind == "login":
            self.found[f"login {code}"] += client.phase > 2
            guess = base64.b64encode(b"\0acme\0guess%d" % self._begun)
            self._say(client, b"AUTH PLAIN %b\r\n" % guess)

    def _say(self, client: Client, data: bytes) -> None:
        self._send(client, data if client.tls is None else client.tls.encrypt(data))

    def _send(self, client: Client, data: bytes) -> None:
        """What the socket takes of it; a stranger does not mind the rest."""
        try:
            if data:
                client.sock.send(data)
        except OSError:
            pass  # the reading side says why

    def _end(self, client: Client, how: str) -> None:
        self.found[how] += 1
        if self._kind == "idle" and client.phase < 2:
            self._settled += 1
        if self._clients.pop(client.sock.fileno(), None) is not None:
            client.sock.close()


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.strangers", description="Clients that send no mail.")
    parser.add_argument("-a", dest="address", type=endpoint, required=True, metavar="IP:PORT", help="where to connect")
    parser.add_argument("-k", dest="kind", choices=KINDS, required=True, help="what they do")
    parser.add_argument("-n", dest="number", type=int, default=2000, metavar="N", help="connections (%(default)s)")
    parser.add_argument("-R", dest="rate", type=float, default=2000, metavar="N", help="a second (%(default)s)")
    parser.add_argument("-S", dest="tls", action="store_true", help="TLS from the first byte")
    parser.add_argument("-T", dest="limit_s", type=float, default=600, metavar="S", help="end after S")
    parser.add_argument("-o", dest="output", metavar="FILE", help="result as JSON; stdout without it")
    return parser


def main() -> int:
    """Run them."""
    options = arguments().parse_args()
    raise_descriptor_limit()
    strangers = Strangers(options)
    strangers.run(options.limit_s)
    write_result(options.output, {**strangers.found, "cpu_s": round(cpu_s(), 3)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
