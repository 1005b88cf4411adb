"""MX hosts on raw sockets that break the protocol at one stage, until they are healed; then they take mail as any host.

They do what the sandbox's hosts cannot.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mta.sandbox.client import Received

DRIP_S = 0.2
TLS_GARBAGE = bytes.fromhex("160303003a020000360303") + bytes(range(51))
_NUMBER = re.compile(rb"X-Test-Id: (\d+)")


class Gone(Exception):  # noqa: N818 -- the end of a conversation
    """The connection is over."""


class Talk:
    """One connection of a client, blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lines = sock.makefile("rb")

    def close(self) -> None:
        self._lines.close()
        self.sock.close()

    def secure(self, context: ssl.SSLContext) -> None:
        """Do the TLS handshake."""
        self._lines.close()
        self.sock = context.wrap_socket(self.sock, server_side=True)
        self._lines = self.sock.makefile("rb")

    @property
    def secured(self) -> bool:
        """Whether it was done."""
        return isinstance(self.sock, ssl.SSLSocket)

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def line(self) -> bytes:
        line = self._lines.readline(100_000)
        if not line.endswith(b"\n"):
            raise Gone
        return line

    def read(self, size: int) -> None:
        if len(self._lines.read(size)) < size:
            raise Gone

    def content(self) -> bytes:
        lines = []
        while (line := self.line()) != b".\r\n":
            lines.append(line)
        return b"".join(lines)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Gone

    def hang(self) -> None:
        """Say nothing more, and leave unread what comes, until the client has gone."""
        poll = selectors.DefaultSelector()
        with contextlib.closing(poll):
            poll.register(self.sock, selectors.EVENT_READ)
            while True:
                poll.select()
                if not self.sock.recv(65_536, socket.MSG_PEEK):
                    raise Gone
                self.sock.recv(65_536)


Fault = Callable[[Talk, bytes], None]
"""What a host does instead of sending a reply. It raises Gone when that was the end."""


def reset(talk: Talk, reply: bytes) -> None:
    talk.reset()


def close(talk: Talk, reply: bytes) -> None:
    raise Gone


def close_inside(talk: Talk, reply: bytes) -> None:
    talk.say(reply[:2])
    raise Gone


def silent(talk: Talk, reply: bytes) -> None:
    talk.hang()


def drip(talk: Talk, reply: bytes) -> None:
    """One octet at a time, without end."""
    while True:
        for octet in reply[:3] + b"-more\r\n":
            talk.say(bytes((octet,)))
            with contextlib.suppress(TimeoutError):
                talk.sock.settimeout(DRIP_S)
                if not talk.sock.recv(65_536):
                    raise Gone


def endless(talk: Talk, reply: bytes) -> None:
    while True:
        talk.say((reply[:3] + b"-and more\r\n") * 100)


def long_line(talk: Talk, reply: bytes) -> None:
    """10 MB."""
    talk.say(reply[:4])
    for _ in range(1000):
        talk.say(b"x" * 10_000)
    talk.say(b"\r\n")


def other_code(talk: Talk, reply: bytes) -> None:
    """A code that answers another question."""
    talk.say(b"250 yes\r\n" if reply.startswith(b"354") else b"354 go on\r\n")
    talk.hang()


def no_code(talk: Talk, reply: bytes) -> None:
    talk.say(b"999 beyond\r\n")
    talk.hang()


def mixed_codes(talk: Talk, reply: bytes) -> None:
    talk.say(reply[:3] + b"-one\r\n550 another\r\n")
    talk.hang()


def bare_lf(talk: Talk, reply: bytes) -> None:
    talk.say(reply.replace(b"\r\n", b"\n"))
    talk.hang()


def tls_garbage(talk: Talk, reply: bytes) -> None:
    talk.say(TLS_GARBAGE * 50)
    talk.hang()


def goes_down(talk: Talk, reply: bytes) -> None:
    talk.say(b"421 4.3.2 going down\r\n")
    raise Gone


def twice(talk: Talk, reply: bytes) -> None:
    """A reply to nothing behind the right one."""
    talk.say(reply * 2)


def before_content(talk: Talk, reply: bytes) -> None:
    """Content is accepted that was not sent."""
    talk.say(reply + b"250 2.0.0 got it\r\n")
    talk.hang()


def plaintext(talk: Talk, reply: bytes) -> None:
    """Goes on in clear where the handshake should be."""
    talk.say(reply)
    talk.read(1)
    talk.say(b"250 what was that?\r\n")
    talk.hang()


def injected(talk: Talk, reply: bytes) -> None:
    """CVE-2021-38371: replies behind the one to STARTTLS, in clear."""
    talk.say(reply + b"250 peer.test\r\n")
    talk.hang()


def breaks_tls(talk: Talk, reply: bytes) -> None:
    """In the middle of a TLS session, something that is none."""
    if talk.secured:
        talk.sock = socket.socket(fileno=talk.sock.detach())
        talk.say(b"what was that?\r\n" * 10)
        talk.hang()
    talk.say(reply)


@dataclass
class Peer:
    """One host. `stage` is where `fault` happens: `connect`, `ehlo`, `starttls`, `mail`, `rcpt`, `data`, `body` (after
    the first octets of content), `dot`, or `after` (in the place of nothing, behind the reply to the dot)."""

    stage: str
    fault: Fault
    starttls: bool = False
    context: ssl.SSLContext | None = None  # with it the handshake is done
    healed: bool = False
    faults: int = 0  # how often it happened
    taken: Counter[tuple[int, str]] = field(default_factory=Counter)  # messages whose dot was read, and recipients

    def serve(self, talk: Talk) -> None:
        """One conversation, to its end. Raises Gone or OSError."""
        self._say(talk, "connect", b"220 peer.test ESMTP\r\n")
        recipients: list[str] = []
        while True:
            line = talk.line()
            verb = line[:4].upper().strip()
            if verb == b"DATA":
                self._say(talk, "data", b"354 go ahead\r\n")
                if self._is_due("body"):
                    talk.read(20)
                    self.fault(talk, b"250 2.0.0 got it\r\n")
                number = _NUMBER.search(talk.content())
                assert number is not None
                if not (self._is_due("dot") and self.fault in (goes_down,)):  # else it was not taken
                    self.taken.update((int(number[1]), to) for to in recipients)
                self._say(talk, "dot", b"250 2.0.0 got it\r\n")
                self._say(talk, "after", b"")
            elif verb == b"EHLO":
                offered = b"250-STARTTLS\r\n" if self.starttls and not talk.secured else b""
                self._say(talk, "ehlo", b"250-peer.test\r\n" + offered + b"250 PIPELINING\r\n")
            elif verb == b"HELO":
                self._say(talk, "ehlo", b"250 peer.test\r\n")
            elif verb == b"STAR":
                self._say(talk, "starttls", b"220 go ahead\r\n")
                if self.context is not None:
                    talk.secure(self.context)
            elif verb == b"MAIL":
                recipients = []
                self._say(talk, "mail", b"250 2.1.0 ok\r\n")
            elif verb == b"RCPT":
                recipients.append(line[line.index(b"<") + 1 : line.index(b">")].decode())
                self._say(talk, "rcpt", b"250 2.1.5 ok\r\n")
            elif verb == b"QUIT":
                talk.say(b"221 2.0.0 bye\r\n")
                raise Gone
            else:
                talk.say(b"250 2.0.0 ok\r\n")

    def _is_due(self, stage: str) -> bool:
        if stage != self.stage or self.healed:
            return False
        self.faults += 1
        return True

    def _say(self, talk: Talk, stage: str, reply: bytes) -> None:
        if self._is_due(stage):
            self.fault(talk, reply)
        elif reply:
            talk.say(reply)

    def received(self) -> Iterator[Received]:
        """What it has, as the sandbox tells it."""
        for (number, recipient), count in self.taken.items():
            yield Received(str(number), recipient, count)


class Peers:
    """Several hosts, each at an address of its own (127.1.0.1 and so on), all at one port."""

    def __init__(self, peers: dict[str, Peer], port: int) -> None:
        """`peers` by domain."""
        self.peers = peers
        self.addresses = {domain: f"127.1.{number // 250}.{number % 250 + 1}" for number, domain in enumerate(peers)}
        self._selector = selectors.DefaultSelector()
        self._stop, self._stopped = socket.socketpair()
        self._selector.register(self._stopped, selectors.EVENT_READ)
        self._open: set[Talk] = set()
        self._lock = threading.Lock()
        for domain, address in self.addresses.items():
            self._selector.register(socket.create_server((address, port)), selectors.EVENT_READ, peers[domain])
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Peers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        with self._lock:
            for talk in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(talk.sock, socket.SHUT_RDWR)

    def heal(self) -> None:
        """From now on all of them do what they should; conversations under way go on as they are."""
        for peer in self.peers.values():
            peer.healed = True

    def received(self) -> Iterator[Received]:
        """What all of them have."""
        for peer in self.peers.values():
            yield from peer.received()

    def _accept(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stopped:
                    return
                assert isinstance(key.fileobj, socket.socket)
                sock, _ = key.fileobj.accept()
                threading.Thread(target=self._serve, args=(key.data, sock), daemon=True).start()

    def _serve(self, peer: Peer, sock: socket.socket) -> None:
        talk = Talk(sock)
        with self._lock:
            self._open.add(talk)
        try:
            peer.serve(talk)
        except (Gone, OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._open.discard(talk)
                talk.close()
