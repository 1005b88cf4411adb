"""The DNS of the sandbox: answers for every name that exists, over UDP and TCP, as a recursive resolver would.

Answers that depend on nothing but the question are kept as bytes, by the bytes of the question, until something
changes; a repeated question costs a dictionary look-up.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import gevent

from mta.config.hosts import Endpoint
from mta.sandbox.internet import Internet
from mta.sandbox.ledger import Ledger
from mta.sandbox.settings import HOME_IPV6, Dns, on_loopback

PAYLOAD: Final = 1232  # the largest UDP answer we offer to take and to give (DNS flag day 2020)
MAX_CACHED: Final = 100_000
MAX_ALIASES: Final = 8
SOA: Final = "ns.sandbox.invalid. hostmaster.sandbox.invalid. 1 3600 600 86400"
_GARBAGE: Final = b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\xc0\xff\xc0\x0c\x3f garbage"


@dataclass(slots=True)
class Answer:
    """What is to be said about one question."""

    behaviour: Dns
    kind: str = "normal"  # as `settings.DnsAnswer`
    records: list[tuple[str, int, str, list[str]]] = field(default_factory=list)  # name, ttl, type, data

    @property
    def label(self) -> str:
        """For the counts."""
        return self.kind if self.kind != "normal" else "answered" if self.records else "nodata"


class NameServer:
    """The DNS server. `start` binds, answering begins at once."""

    def __init__(self, internet: Internet, ledger: Ledger) -> None:
        self.internet = internet
        self.ledger = ledger
        self._cache: dict[bytes, tuple[bytes, str, str]] = {}
        self._udp: socket.socket
        internet.on_change.append(self._cache.clear)

    def start(self, wanted: Endpoint) -> Endpoint:
        """Bind UDP and TCP on one port and begin to answer; returns where. Raises OSError when it is taken, ValueError
        when it is not on loopback."""
        on_loopback(wanted)
        family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
        for attempt in range(20):
            self._udp = socket.socket(family, socket.SOCK_DGRAM)
            tcp = socket.socket(family, socket.SOCK_STREAM)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._udp.bind((wanted.host, wanted.port))
                port = self._udp.getsockname()[1]
                tcp.bind((wanted.host, port))
                tcp.listen(100)
                break
            except OSError:
                self._udp.close()
                tcp.close()
                if wanted.port != 0 or attempt == 19:
                    raise
        gevent.spawn(self._serve_udp)
        gevent.spawn(self._serve_tcp, tcp)
        return Endpoint(wanted.host, port)

    # --- the network -----------------------------------------------------------------------------------------------

    def _serve_udp(self) -> None:
        """Hot path."""
        udp, cache, ledger = self._udp, self._cache, self.ledger
        while True:
            try:
                query, peer = udp.recvfrom(4096)
                ledger.totals.dns_udp += 1
                cached = cache.get(query[2:])
                if cached is None:
                    self._answer_udp(query, peer)
                    continue
                rest, question, label = cached
                ledger.questions[question] += 1
                ledger.dns_answers[label] += 1
                udp.sendto(query[:2] + rest, peer)
            except OSError:  # the peer of an earlier answer is gone
                continue

    def _answer_udp(self, query: bytes, peer: tuple[str, int]) -> None:
        message = _read(query)
        if message is None:
            return
        answer = self._answer(message)
        reply = _write(query, message, answer, udp=True)
        if reply is None:
            return
        if answer.behaviour.delay:
            gevent.spawn_later(answer.behaviour.delay, self._udp.sendto, reply, peer)
            return
        if answer.kind != "wrong-id":
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[query[2:]] = (reply[2:], _question(message), answer.label)
        self._udp.sendto(reply, peer)

    def _serve_tcp(self, listener: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                gevent.sleep(0.1)
                continue
            gevent.spawn(self._converse, accepted)

    def _converse(self, accepted: socket.socket) -> None:
        """Questions by TCP, one after the other (RFC 7766)."""
        with accepted, accepted.makefile("rb") as stream:
            try:
                while len(prefix := stream.read(2)) == 2:
                    query = stream.read(struct.unpack("!H", prefix)[0])
                    self.ledger.totals.dns_tcp += 1
                    message = _read(query)
                    if message is None:
                        return
                    answer = self._answer(message)
                    if not answer.behaviour.tcp:
                        return
                    gevent.sleep(answer.behaviour.delay)
                    reply = _write(query, message, answer, udp=False)
                    if reply is not None:
                        accepted.sendall(struct.pack("!H", len(reply)) + reply)
            except OSError:
                return

    # --- answers ---------------------------------------------------------------------------------------------------

    def _answer(self, message: dns.message.Message) -> Answer:
        question = message.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        answer = self.resolve(name, dns.rdatatype.to_text(question.rdtype))
        self.ledger.question(_question(message))
        self.ledger.dns_answers[answer.label] += 1
        return answer

    def resolve(self, name: str, rdtype: str, aliases: int = 0) -> Answer:
        """What the sandbox's DNS says about a name."""
        if name.endswith(".in-addr.arpa"):
            return self._reverse(name, rdtype)
        entry, site, state = self.internet.locate(name)
        behaviour = entry.behaviour().dns
        ttl = int(behaviour.ttl)
        if site == name:
            asks_address = rdtype in ("A", "AAAA")
            kind = behaviour.address_answer if asks_address and behaviour.answer != "nxdomain" else behaviour.answer
            if kind != "normal":
                return Answer(behaviour, kind)
            if behaviour.cname is not None:
                answer = Answer(behaviour, records=[(name, ttl, "CNAME", [behaviour.cname.rstrip(".") + "."])])
                if aliases < MAX_ALIASES and behaviour.cname.rstrip(".") != name:
                    further = self.resolve(behaviour.cname.rstrip("."), rdtype, aliases + 1)
                    answer.kind = further.kind
                    answer.records += further.records
                return answer
        if rdtype in ("A", "AAAA"):
            return self._address(name, rdtype, state, behaviour)
        answer = Answer(behaviour)
        exchanges = self.internet.exchanges(name) if rdtype == "MX" else []
        if exchanges:
            data = [f"{exchange.preference} {exchange.host.rstrip('.')}." for exchange in exchanges]
            answer.records.append((name, ttl, "MX", data))
        elif rdtype == "SOA":
            answer.records.append((name, ttl, "SOA", [f"{SOA} {ttl}"]))
        return answer

    def _address(self, name: str, rdtype: str, state: str, behaviour: Dns) -> Answer:
        if state in ("nxdomain", "servfail", "timeout"):
            return Answer(behaviour, state)
        answer = Answer(behaviour)
        ttl = int(behaviour.ttl)
        if state == "noaddress":
            return answer
        if state not in ("up", "closed", "unreachable", "cname"):
            addresses = [address for address in state.split(",") if (":" in address) == (rdtype == "AAAA")]
        elif rdtype == "A":
            addresses = [self.internet.host(name).address] if behaviour.ipv4 else []
        else:
            addresses = [self.internet.host(HOME_IPV6).address] if behaviour.ipv6 else []
        if state == "cname":
            answer.records.append((name, ttl, "CNAME", [f"alias.{name}."]))
            name = f"alias.{name}"
        if addresses:
            answer.records.append((name, ttl, rdtype, addresses))
        return answer

    def _reverse(self, name: str, rdtype: str) -> Answer:
        address = ".".join(reversed(name.removesuffix(".in-addr.arpa").split(".")))
        host = self.internet.host_at(address)
        if host is None:
            return Answer(Dns(), "nxdomain")
        records = [(name, 60, "PTR", [f"{host.name}."])] if rdtype == "PTR" and host.name != address else []
        return Answer(Dns(), records=records)


def _read(query: bytes) -> dns.message.Message | None:
    try:
        message = dns.message.from_wire(query)
    except (dns.exception.DNSException, ValueError):
        return None
    return message if len(message.question) == 1 and not message.flags & dns.flags.QR else None


def _question(message: dns.message.Message) -> str:
    question = message.question[0]
    return f"{question.name.to_text(omit_final_dot=True).lower()} {dns.rdatatype.to_text(question.rdtype)}"


def _write(query: bytes, message: dns.message.Message, answer: Answer, udp: bool) -> bytes | None:
    """The bytes of the answer; None when there is to be none."""
    if answer.kind == "timeout":
        return None
    if answer.kind == "garbage":
        return query[:2] + _GARBAGE
    reply = dns.message.make_response(message, recursion_available=True, our_payload=PAYLOAD)
    if answer.kind in ("nxdomain", "servfail", "refused", "formerr"):
        reply.set_rcode(dns.rcode.from_text(answer.kind))
    if answer.kind == "wrong-id":
        reply.id ^= 1
    if answer.behaviour.authentic:
        reply.flags |= dns.flags.AD
    truncated = udp and answer.behaviour.truncate
    if truncated:
        reply.flags |= dns.flags.TC
    else:
        try:
            reply.answer = [dns.rrset.from_text(f"{name}.", ttl, "IN", rdtype, *data)
                            for name, ttl, rdtype, data in answer.records]
        except dns.exception.DNSException:  # the name of its MX host would be too long
            reply.set_rcode(dns.rcode.SERVFAIL)
        if answer.kind == "nxdomain" or answer.label == "nodata":  # RFC 2308: how long to believe it
            ttl = int(answer.behaviour.ttl)
            reply.authority = [dns.rrset.from_text(message.question[0].name, ttl, "IN", "SOA", f"{SOA} {ttl}")]
    try:
        return reply.to_wire(max_size=max(512, message.payload) if udp else 65_535)
    except dns.exception.TooBig:
        reply.answer, reply.authority = [], []
        reply.flags |= dns.flags.TC
        return reply.to_wire()
