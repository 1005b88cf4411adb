"""A name server on loopback that spoils its answers, per name, until it is healed: real datagrams and connections.

What is right it knows from the sandbox, which it asks itself. It does what the sandbox's own DNS cannot.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

EVIL_HOST = "evil.invalid"  # where forged answers lead
EVIL = "127.66.6.6"
HUGE = 2500
LATE_S = 1.5  # later than one question is waited for
TOO_LATE_S = 6.0  # than all of them


@dataclass
class Talk:
    """One question, and the ways to answer it. `raw` writes to a connection without the length that belongs there."""

    query: bytes
    ask: Callable[[bytes], bytes]  # who knows
    over_tcp: bool
    client: tuple[str, int]
    say: Callable[[bytes], None]
    raw: Callable[[bytes], None]

    @property
    def answer(self) -> bytes:
        """The right one, which is asked for when somebody wants it: most faults do not, and come often."""
        return self.ask(self.query)

    @property
    def message(self) -> dns.message.Message:
        """The question, read."""
        return dns.message.from_wire(self.query)

    @property
    def name(self) -> str:
        """Of the question, without the final dot."""
        return self.message.question[0].name.to_text(omit_final_dot=True)

    def response(self, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, *, tc: bool = False) -> dns.message.Message:
        """An empty response to it."""
        message = dns.message.make_response(self.message, recursion_available=True)
        message.set_rcode(rcode)
        if tc:
            message.flags |= dns.flags.TC
        return message


def forged(query: bytes) -> bytes:
    """An answer to `query` as a thief of mail would like it."""
    message = dns.message.make_response(dns.message.from_wire(query), recursion_available=True)
    question = message.question[0]
    data = {"MX": f"0 {EVIL_HOST}.", "A": EVIL, "AAAA": f"::ffff:{EVIL}"}[dns.rdatatype.to_text(question.rdtype)]
    message.answer = [dns.rrset.from_text(question.name, 3600, "IN", question.rdtype, data)]
    return message.to_wire()


Fault = Callable[[Talk], None]
"""What is done instead of answering, in a thread of its own. OSError ends a connection."""


def dead(talk: Talk) -> None:
    """Nothing."""


def late(talk: Talk) -> None:
    time.sleep(LATE_S)
    talk.say(talk.answer)


def too_late(talk: Talk) -> None:
    time.sleep(TOO_LATE_S)
    talk.say(talk.answer)


def wrong_id(talk: Talk) -> None:
    answer = forged(talk.query)
    for off in range(1, 20):
        talk.say(((talk.message.id + off) & 0xFFFF).to_bytes(2, "big") + answer[2:])


def wrong_question(talk: Talk) -> None:
    """The right id, and a question that was not asked."""
    other = dns.message.make_query("other.test", talk.message.question[0].rdtype, id=talk.message.id)
    talk.say(forged(other.to_wire()))


def _from_elsewhere(talk: Talk, address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))
        sock.sendto(forged(talk.query), talk.client)


def wrong_port(talk: Talk) -> None:
    _from_elsewhere(talk, "127.0.0.1")


def wrong_address(talk: Talk) -> None:
    _from_elsewhere(talk, "127.0.0.77")


def refused(talk: Talk) -> None:
    talk.say(talk.response(dns.rcode.REFUSED).to_wire())


def servfail(talk: Talk) -> None:
    talk.say(talk.response(dns.rcode.SERVFAIL).to_wire())


def formerr(talk: Talk) -> None:
    talk.say(talk.response(dns.rcode.FORMERR).to_wire())


def notimp(talk: Talk) -> None:
    talk.say(talk.response(dns.rcode.NOTIMP).to_wire())


def garbage(talk: Talk) -> None:
    talk.say(talk.query[:2] + random.randbytes(random.randrange(10, 200)))


def nothing(talk: Talk) -> None:
    """A datagram without octets, and others that end in the middle."""
    answer = talk.answer
    for size in (0, 1, 2, 11, len(answer) - 3):
        talk.say(answer[:size])


def empty(talk: Talk) -> None:
    """No error, no records, and no SOA to prove that there are none."""
    talk.say(talk.response().to_wire())


def referral(talk: Talk) -> None:
    """Ask somebody else."""
    message = talk.response()
    message.flags &= ~dns.flags.RA
    message.authority = [dns.rrset.from_text("test.", 3600, "IN", "NS", "ns.evil.test.")]
    talk.say(message.to_wire())


def alias_loop(talk: Talk) -> None:
    message = talk.response()
    name = talk.name
    message.answer = [dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", f"loop.{name}."),
                      dns.rrset.from_text(f"loop.{name}.", 60, "IN", "CNAME", f"{name}.")]
    talk.say(message.to_wire())


def endless_aliases(talk: Talk) -> None:
    """Each leads to a new one."""
    message = talk.response()
    number, _, rest = talk.name.partition(".")
    follower = f"{int(number) + 1}.{rest}" if number.isdigit() else f"1.{talk.name}"
    message.answer = [dns.rrset.from_text(f"{talk.name}.", 60, "IN", "CNAME", f"{follower}.")]
    talk.say(message.to_wire())


def truncated(over_tcp: Fault) -> Fault:
    """TC, and what happens to the connection that follows."""
    def behave(talk: Talk) -> None:
        if talk.over_tcp:
            over_tcp(talk)
        else:
            talk.say(talk.response(tc=True).to_wire())
    return behave


def hangs_up(talk: Talk) -> None:
    raise OSError("hangs up")


def cut_short(talk: Talk) -> None:
    """Less than the length says, and the end."""
    answer = talk.answer
    talk.raw(struct.pack("!H", len(answer)) + answer[:-5])
    raise OSError("hangs up")


def endless(talk: Talk) -> None:
    """The longest length, and octets one by one."""
    talk.raw(b"\xff\xff")
    while True:
        talk.raw(b"x")
        time.sleep(0.05)


def again_truncated(talk: Talk) -> None:
    talk.say(talk.response(tc=True).to_wire())


def right(talk: Talk) -> None:
    talk.say(talk.answer)


def huge(talk: Talk) -> None:
    """An answer of some 60 KB: more MX hosts than anybody has, the right one first."""
    message = talk.response()
    name = f"{talk.name}."
    hosts = [f"{10 + number} h{number}.{name}" for number in range(HUGE)]
    message.answer = [dns.rrset.from_text(name, 60, "IN", "MX", f"1 mx1.{name}", *hosts)]
    talk.say(message.to_wire(max_size=65_535))


class NameServer:
    """The server, UDP and TCP at one port. `faults` by name: of a domain, or of its MX host (`mx1.DOMAIN`); those of a
    name hold for the names below it that have none of their own, so for what its aliases lead to."""

    def __init__(self, upstream: str, faults: dict[str, Fault], port: int = 0) -> None:
        """`upstream` is the DNS of the sandbox, `host:port`. Without `port` it takes a free one."""
        host, _, its_port = upstream.rpartition(":")
        self._upstream = (host, int(its_port))
        self.faults = dict(faults)
        self.asked: Counter[str] = Counter()  # questions by name
        self._open: set[socket.socket] = set()
        while True:
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
            self._udp.bind(("127.0.0.1", port))
            self.port: int = self._udp.getsockname()[1]
            try:
                self._tcp = socket.create_server(("127.0.0.1", self.port), backlog=100)
                break
            except OSError:
                self._udp.close()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._serve_udp, self._serve_tcp)]

    def __enter__(self) -> NameServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._udp, self._tcp, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._udp.close()
        self._tcp.close()

    @property
    def endpoint(self) -> str:
        """Where it is."""
        return f"127.0.0.1:{self.port}"

    def heal(self) -> None:
        """From now on every answer is right."""
        self.faults.clear()

    def _serve_udp(self) -> None:
        while True:
            try:
                query, client = self._udp.recvfrom(4096)
            except OSError:
                return
            threading.Thread(target=self._answer_datagram, args=(query, client), daemon=True).start()

    def _answer_datagram(self, query: bytes, client: tuple[str, int]) -> None:
        def say(answer: bytes) -> None:
            self._udp.sendto(answer, client)

        with contextlib.suppress(OSError, dns.exception.DNSException):
            self._answer(query, client, False, say, say)

    def _serve_tcp(self) -> None:
        while True:
            try:
                sock, client = self._tcp.accept()
            except OSError:
                return
            threading.Thread(target=self._answer_connection, args=(sock, client), daemon=True).start()

    def _answer_connection(self, sock: socket.socket, client: tuple[str, int]) -> None:
        def say(answer: bytes) -> None:
            sock.sendall(struct.pack("!H", len(answer)) + answer)

        self._open.add(sock)
        with sock, contextlib.suppress(OSError, struct.error, dns.exception.DNSException):
            length = struct.unpack("!H", sock.recv(2, socket.MSG_WAITALL))[0]
            self._answer(sock.recv(length, socket.MSG_WAITALL), client, True, say, sock.sendall)
            sock.recv(1)  # stays as long as the client does
        self._open.discard(sock)

    def _answer(self, query: bytes, client: tuple[str, int], over_tcp: bool, say: Callable[[bytes], None],
                raw: Callable[[bytes], None]) -> None:
        question = dns.message.from_wire(query).question[0]
        name = question.name.to_text(omit_final_dot=True)
        self.asked[name] += 1
        if name == EVIL_HOST:
            say(forged(query))
            return
        fault = self._fault(name)
        (fault or right)(Talk(query, self._right, over_tcp, client, say, raw))

    def _fault(self, name: str) -> Fault | None:
        while name:
            if name in self.faults:
                return self.faults[name]
            name = name.partition(".")[2]
        return None

    def _right(self, query: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(query, self._upstream)
            return sock.recv(65_535)
