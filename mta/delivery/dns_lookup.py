"""How one question is settled: which server is asked when, and what its answers, errors and silence lead to.

No I/O and no clock. A `Lookup` is told what happened and says what to do next: an `Ask` (send this), an `Answer` (it
is over), or None (go on waiting). Servers are asked in turn, one at a time; an earlier one may still answer while a
later one is asked. Each question is asked at most `dns.attempts` times, so a lookup always ends.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mta.config.hosts import Endpoint
from mta.config.schema import Dns
from mta.config.units import format_duration
from mta.delivery import dns_wire
from mta.delivery.dns_answer import MOST_ALIASES, Answer, believe_s, describe_aliases, judge
from mta.delivery.dns_wire import MessageError, RecordType

SILENT_AFTER: Final = 3  # unanswered questions in a row after which a server is asked last
REST_S: Final = 5.0  # before it is tried first again, by one question; doubles up to MOST_REST_S
MOST_REST_S: Final = 60.0
PLAIN_S: Final = 3600.0  # for how long a server that does not know EDNS is asked without


@dataclass(slots=True, eq=False)
class Server:
    """One recursive server and how it fared, over all lookups."""

    endpoint: Endpoint
    unanswered: int = 0  # in a row
    rests: int = 0  # in a row
    rests_until: float = 0.0  # monotonic seconds
    plain_until: float = 0.0  # no EDNS before

    def answered(self) -> None:
        """It lives."""
        self.unanswered = 0
        self.rests = 0
        self.rests_until = 0.0

    def silent(self, now: float, refused: bool = False) -> None:
        """It did not answer in time, or its machine said that nobody listens."""
        self.unanswered += 1
        if (refused or self.unanswered >= SILENT_AFTER) and now >= self.rests_until:
            self.rest(now)

    def rest(self, now: float) -> None:
        """Not to be asked first for a while, longer each time."""
        self.rests_until = now + min(REST_S * 2**self.rests, MOST_REST_S)
        self.rests = min(self.rests + 1, 10)


class Servers:
    """The servers in the order of the configuration, those that do not answer last."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.all = [Server(endpoint) for endpoint in endpoints]

    def in_order(self, now: float) -> list[Server]:
        """For one lookup. A server whose rest is over is tried in its place by this lookup only, until it answers."""
        ready = []
        resting = []
        for server in self.all:
            if server.rests_until > now:
                resting.append(server)
                continue
            if server.rests_until:
                server.rest(now)
            ready.append(server)
        return ready + sorted(resting, key=lambda server: server.rests_until)


@dataclass(slots=True, eq=False)
class Ask:
    """One question on its way to one server."""

    server: Server
    identifier: int
    wire: bytes
    over_tcp: bool = False
    edns: bool = True
    due: float = 0.0  # when its time is over; monotonic
    unsent: bool = False  # there was no socket for it: it has all the time until there is one


@dataclass(slots=True, eq=False)
class Lookup:
    """The search for the records of one type of one name. Raises ValueError for a name that cannot be."""

    name: str
    record_type: RecordType
    settings: Dns
    servers: list[Server]  # those asked longest ago first
    current: Ask | None = None  # the one whose time is running; earlier ones may still be answered
    _question: bytes = b""
    _questions: int = 0
    _problems: dict[Server, str] = field(default_factory=dict)
    _broken: Ask | None = None  # the last one that the network refused to carry
    _useless: set[Server] = field(default_factory=set)  # answered, and that was of no use: not to be asked again
    _names: list[str] = field(default_factory=list)  # followed from CNAME to CNAME over several questions
    _alias_ttl: int | None = None
    _authentic: bool = True  # what was said so far was

    def __post_init__(self) -> None:
        self._question = dns_wire.question(self.name, self.record_type)
        self._names.append(self.name.lower().removesuffix("."))

    def begin(self, now: float) -> Ask | Answer[Any]:
        """The first thing to do."""
        return self._next(now)

    def received(self, ask: Ask, wire: bytes, now: float) -> Ask | Answer[Any] | None:
        """Bytes came back on the way that `ask` went."""
        if len(wire) < 2 or int.from_bytes(wire[:2], "big") != ask.identifier:
            return None  # not ours: forged, or long late; the true answer may still come
        try:
            message = dns_wire.read(wire)
        except MessageError as error:
            return self._useless_answer(ask, f"unreadable answer ({error})", now)
        if message.question != self._question and (message.question or message.rcode == dns_wire.NOERROR):
            return None
        ask.server.answered()
        if message.truncated and not ask.over_tcp:
            if self.current is not None and self.current.over_tcp:
                return None
            return self._ask(ask.server, now, over_tcp=True)
        if ask.edns and message.rcode in (dns_wire.FORMERR, dns_wire.NOTIMP, dns_wire.BADVERS):
            ask.server.plain_until = now + PLAIN_S
            return self._ask(ask.server, now, ask.over_tcp)
        if message.truncated:
            return self._useless_answer(ask, "truncated answer over TCP", now)
        verdict = judge(message, self._names[-1], self.record_type)
        if verdict.kind == "unusable":
            return self._useless_answer(ask, verdict.text, now)
        ttl = verdict.ttl or 0
        self._authentic = self._authentic and message.authentic and self.settings.validates
        if self._alias_ttl is not None:
            ttl = min(ttl, self._alias_ttl)
        if verdict.kind == "alias":
            return self._follow(verdict.text, ttl, now)
        self.current = None
        proven = verdict.kind != "nodata" or message.soa_ttl is not None
        return Answer(verdict.kind, verdict.records, now + believe_s(verdict.kind, ttl, self.settings), proven=proven,
                      authentic=self._authentic)

    def timed_out(self, ask: Ask, now: float) -> Ask | Answer[Any] | None:
        """`dns.timeout` has passed since `ask` was sent."""
        if ask is not self.current:
            return None
        if ask.over_tcp:
            return self._useless_answer(ask, "no answer over TCP", now)
        ask.server.silent(now)
        if ask is not self._broken:
            self._problems[ask.server] = f"no answer in {format_duration(self.settings.timeout)}"
        return self._next(now)

    def broken(self, ask: Ask, why: str, now: float) -> Ask | Answer[Any] | None:
        """The network refused to carry `ask`, or its TCP connection ended early.

        With nobody else to turn to the lookup waits for its time: a server that is being restarted comes back.
        """
        if ask is not self.current:
            return None
        if ask.over_tcp:
            return self._useless_answer(ask, f"{why}, over TCP", now)
        ask.server.silent(now, refused=True)
        self._problems[ask.server] = why
        self._broken = ask
        fresh = any(server not in self._problems for server in self.servers)
        return self._next(now) if fresh else None

    def _useless_answer(self, ask: Ask, why: str, now: float) -> Ask | Answer[Any] | None:
        self._problems[ask.server] = why
        self._useless.add(ask.server)
        waiting_for = self.current.server if self.current is not None else ask.server
        return self._next(now) if waiting_for is ask.server else None

    def _next(self, now: float) -> Ask | Answer[Any]:
        """Ask the server that was not asked for longest, or give up."""
        server = next((server for server in self.servers if server not in self._useless), None)
        if server is None or self._questions >= self.settings.attempts:
            return self._give_up(now)
        self._questions += 1
        self.servers.remove(server)
        self.servers.append(server)
        return self._ask(server, now)

    def _ask(self, server: Server, now: float, over_tcp: bool = False) -> Ask:
        edns = now >= server.plain_until
        identifier = secrets.randbits(16)
        wire = dns_wire.query(identifier, self._question, edns, self.settings.validates)
        self.current = Ask(server, identifier, wire, over_tcp, edns)
        return self.current

    def _follow(self, target: str, ttl: int, now: float) -> Ask | Answer[Any]:
        """A server left the CNAME to us: ask for what it points at."""
        if target in self._names or len(self._names) > MOST_ALIASES:
            return self._failure(describe_aliases([*self._names, target]), now)
        try:
            self._question = dns_wire.question(target, self.record_type)
        except ValueError as error:
            return self._failure(f"CNAME to {error}", now)
        self._names.append(target)
        self._alias_ttl = ttl
        self._questions = 0
        self._useless.clear()
        return self._next(now)

    def _give_up(self, now: float) -> Answer[Any]:
        told = [f"{server.endpoint}: {why}" for server, why in self._problems.items()]
        return self._failure("; ".join(told), now)

    def _failure(self, detail: str, now: float) -> Answer[Any]:
        self.current = None
        return Answer("failure", (), now + self.settings.failure_ttl, detail)
