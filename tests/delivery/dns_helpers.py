"""A DNS server that does what a test says, and a process that runs the resolver against it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

ROOT = Path(__file__).resolve().parents[2]
SOA = "ns.{0}. admin.{0}. 1 7200 900 1209600 {1}"


@dataclass
class Question:
    """One question as the server got it."""

    message: dns.message.Message
    over_tcp: bool
    number: int  # of the questions for this name and type, from 1

    @property
    def name(self) -> str:
        return self.message.question[0].name.to_text(omit_final_dot=True)

    @property
    def type(self) -> str:
        return dns.rdatatype.to_text(self.message.question[0].rdtype)


Behaviour = Callable[[Question], "bytes | Sequence[bytes] | None"]


def response(question: dns.message.Message, rcode: int = 0, *, soa: int | None = None, ra: bool = True,
             aa: bool = False, tc: bool = False, ad: bool = False,
             answer: Sequence[tuple[str, int, str, str]] = ()) -> bytes:
    """A response with `answer` of (name, ttl, type, text); `soa`: the minimum of an SOA in the authority section."""
    message = dns.message.make_response(question)
    message.set_rcode(dns.rcode.Rcode.make(rcode))
    if ra:
        message.flags |= dns.flags.RA
    if aa:
        message.flags |= dns.flags.AA
    if tc:
        message.flags |= dns.flags.TC
    if ad:
        message.flags |= dns.flags.AD
    for name, ttl, kind, text in answer:
        message.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", kind, text))
    if soa is not None:
        message.authority.append(dns.rrset.from_text("example.", 3600, "IN", "SOA", SOA.format("example", soa)))
    return message.to_wire(max_size=65_535)


@dataclass
class DnsServer:
    """A server on loopback, one thread. `zone` answers by name and type, `behaviour` of a name goes before it.

    A behaviour returns the bytes of the reply, several of them, or None for silence.
    """

    zone: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    behaviour: dict[str, Behaviour] = field(default_factory=dict)
    asked: list[tuple[str, str, bool, int]] = field(default_factory=list)  # name, type, over TCP, client's port
    ttl: int = 300
    udp_limit: int = 1232
    address: str = "127.0.0.1"

    def __enter__(self) -> DnsServer:
        while True:  # UDP and TCP on the same free port
            self._tcp = socket.create_server((self.address, 0))
            self.port: int = self._tcp.getsockname()[1]
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                self._udp.bind((self.address, self.port))
                break
            except OSError:
                self._tcp.close()
                self._udp.close()
        self._threads = [threading.Thread(target=self._serve_udp), threading.Thread(target=self._serve_tcp)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._udp.sendto(b"", (self.address, self.port))
        with contextlib.suppress(OSError):
            socket.create_connection((self.address, self.port)).close()
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.port}"

    def count(self, name: str, kind: str) -> int:
        """Questions for `name` and type."""
        return sum(1 for asked in self.asked if asked[:2] == (name, kind))

    def _serve_udp(self) -> None:
        while True:
            wire, client = self._udp.recvfrom(65_535)
            if not wire:
                return
            for reply in self._replies(wire, client[1], over_tcp=False):
                with contextlib.suppress(OSError):
                    self._udp.sendto(reply, client)

    def _serve_tcp(self) -> None:
        while True:
            connection, client = self._tcp.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                length = connection.recv(2, socket.MSG_WAITALL)
                if not length:
                    return
                wire = connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
                for reply in self._replies(wire, client[1], over_tcp=True):
                    framed = len(reply).to_bytes(2, "big") + reply
                    for part in (framed[:1], framed[1:300], framed[300:]):  # TCP has no messages
                        connection.sendall(part)
                        time.sleep(0.005)

    def _replies(self, wire: bytes, port: int, over_tcp: bool) -> Sequence[bytes]:
        message = dns.message.from_wire(wire)
        name = message.question[0].name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(message.question[0].rdtype)
        self.asked.append((name, kind, over_tcp, port))
        question = Question(message, over_tcp, self.count(name, kind))
        behaviour = self.behaviour.get(name)
        reply = behaviour(question) if behaviour is not None else self.answer(question)
        if reply is None:
            return []
        return [reply] if isinstance(reply, bytes) else reply

    def answer(self, question: Question) -> bytes:
        """What the zone says: records, or no data, or no such name; TC where UDP is too small."""
        name, kind = question.name, question.type
        texts = self.zone.get((name, kind))
        if texts is not None:
            wire = response(question.message, answer=[(name, self.ttl, kind, text) for text in texts])
            if len(wire) > self.udp_limit and not question.over_tcp:
                return response(question.message, tc=True)
            return wire
        known = any(name == other for other, _ in self.zone)
        return response(question.message, 0 if known else dns.rcode.NXDOMAIN, soa=60)


def rcode(code: int) -> Behaviour:
    """A server that always answers with this code."""
    return lambda question: response(question.message, code)


def silent(question: Question) -> None:
    """A server that never answers."""


def late(wait_s: float, then: Behaviour) -> Behaviour:
    """A server that is slow."""
    def behave(question: Question) -> Any:
        time.sleep(wait_s)
        return then(question)
    return behave


class ResolverProcess:
    """A process with a resolver, patched by gevent as a worker is. Each `run` has a resolver of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("dns_program.py"))], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )

    def run(self, settings: dict[str, Any], steps: list[list[Any]]) -> list[Any]:
        """Let the program do `steps` (see there) by one resolver; what each of them gave."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"settings": settings, "steps": steps}) + "\n")
        self._process.stdin.flush()
        results: list[Any] = json.loads(self._process.stdout.readline())
        return results

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@contextlib.contextmanager
def resolver_process() -> Iterator[ResolverProcess]:
    """A `ResolverProcess` that ends with the block."""
    process = ResolverProcess()
    try:
        yield process
    finally:
        process.close()
