"""The sandbox's books: what arrived, how often, over how many connections at once, and what clients did wrong.

A message is counted the moment it is accepted, before the reply leaves: a client that is killed while it waits for the
`250` has delivered. Memory is bounded by `remember` and `log` of the settings, and by `MAX_DOMAINS`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

MAX_DOMAINS: Final = 100_000
OTHER_DOMAINS: Final = "(other)"
MAX_EXACT: Final = 1000
MAX_QUESTIONS: Final = 100_000  # names for which DNS questions are counted one by one


class Visitor(Protocol):
    """A session, as far as it is counted."""

    def has_left(self) -> bool:
        """Whether the client has closed the connection, be it that we have not read that far."""

    def leave(self) -> None:
        """Be counted no more, anywhere."""


class Presence:
    """How many sessions are open at once, exactly as the client sees it: one that it has closed does not count.

    Counting by when the sandbox *reads* the end would see four connections where a client closed its third and opened
    the next. Above `MAX_EXACT` it is counted like that all the same, since looking at each costs 0.5 us.
    """

    __slots__ = ("_exact", "maximum", "sessions", "total")

    def __init__(self, exact: bool = True) -> None:
        self._exact = exact
        self.sessions: set[Visitor] = set()
        self.maximum = 0
        self.total = 0

    def enter(self, session: Visitor) -> None:
        """Count a session as open."""
        if session in self.sessions:
            return
        if self._exact and self.maximum <= len(self.sessions) <= MAX_EXACT:
            self.sweep()
        self.sessions.add(session)
        self.total += 1
        if len(self.sessions) > self.maximum:
            self.maximum = len(self.sessions)

    def sweep(self) -> int:
        """Let those go that have left; returns how many are open."""
        for session in [session for session in self.sessions if session.has_left()]:
            session.leave()
        return len(self.sessions)

    def reset(self) -> None:
        """Count anew; who is here stays."""
        self.total = self.maximum = len(self.sessions)


@dataclass(slots=True)
class DomainCounts:
    """What became of the mail of one recipient domain. Recipients count once per transaction."""

    messages: int = 0  # accepted
    recipients: int = 0  # accepted, duplicates included
    distinct: int = 0  # different pairs of message and recipient among them
    duplicates: int = 0
    unanswered: int = 0  # of the accepted: those whose client was not told, by a rule with `keep`
    deferred: int = 0  # recipients refused for now, at any stage
    rejected: int = 0  # recipients refused for good
    dropped: int = 0  # recipients whose transaction ended without a reply, and were not kept
    octets: int = 0  # content accepted
    replies: Counter[int] = field(default_factory=Counter)  # from RCPT to the final dot, by code
    presence: Presence = field(default_factory=Presence)  # connections with mail for it, or to a host of its own

    def reset(self) -> None:
        """Count anew, in place, since open sessions hold on to it."""
        self.messages = self.recipients = self.distinct = self.duplicates = self.unanswered = 0
        self.deferred = self.rejected = self.dropped = self.octets = 0
        self.replies.clear()
        self.presence.reset()


@dataclass(slots=True)
class SiteCounts:
    """Connections to one site: the hosts of one domain, or of a list of MX hosts that domains share."""

    refused: int = 0  # connections above the limit
    replies: Counter[int] = field(default_factory=Counter)  # all that its hosts gave, by code
    presence: Presence = field(default_factory=Presence)
    clients: dict[str, Presence] = field(default_factory=dict)

    def client(self, address: str) -> Presence:
        """The connections of one client."""
        presence = self.clients.get(address)
        if presence is None:
            presence = self.clients[address] = Presence()
        return presence

    def reset(self) -> None:
        """Count anew, in place."""
        self.refused = 0
        self.replies.clear()
        self.presence.reset()
        for presence in self.clients.values():
            presence.reset()


@dataclass(slots=True)
class Transaction:
    """One transaction as it is kept in the log."""

    number: int
    time: float  # seconds since the epoch, at its end
    client: str
    server: str
    host: str  # name of the MX host
    connection: int
    helo: str
    esmtp: bool
    tls: str  # protocol version, or ""
    sender: str
    parameters: dict[str, str]  # of MAIL
    recipients: list[str]  # accepted
    answers: list[tuple[str, str, str]]  # to each RCPT: address, parameters, reply
    replies: tuple[str, str, str]  # to MAIL, DATA and the final dot; "" where there was none
    end: str  # accepted, refused, dropped (by the sandbox), abandoned (by the client)
    key: str
    size: int
    pipelined: bool  # RCPT came in one go with MAIL
    pipelined_across: bool  # MAIL came in one go with the body before
    content: str | None = None  # as much as `log_content` says, in latin-1


class Arrival(NamedTuple):
    """When a message came. Times are seconds since the epoch; without TLS they are the kernel's."""

    mail_at: float  # MAIL
    dot_at: float  # the end of the content
    domain: str  # of the first recipient
    recipient: str
    connection: int
    client: str
    asked_at: float  # when the content was asked for, by the reply to DATA

    @property
    def end_at(self) -> float:
        """When the content would have ended, had it been asked for as soon as MAIL came: what a receiver without a
        processor to spare waits for is none of the client's time."""
        return self.dot_at - max(self.asked_at - self.mail_at, 0.0)


@dataclass(slots=True)
class Visit:
    """When a connection came and went."""

    number: int
    opened_at: float
    closed_at: float  # when its end was read; 0: it has not
    site: str
    client: str


@dataclass(slots=True)
class Violation:
    """One kind of thing that clients should not do, and the last example."""

    count: int = 0
    example: str = ""


@dataclass(slots=True)
class Totals:
    """The sums over everything."""

    connections: int = 0
    tls_connections: int = 0
    commands: int = 0
    transactions: int = 0  # ended after MAIL, whatever the end
    pipelined: int = 0
    pipelined_across: int = 0
    messages: int = 0  # accepted
    distinct_messages: int = 0
    recipients: int = 0  # accepted, duplicates included
    distinct: int = 0
    duplicates: int = 0
    unanswered: int = 0
    deferred: int = 0
    rejected: int = 0
    dropped: int = 0
    damaged: int = 0  # accepted messages whose `X-Test-Crc32` does not fit their body
    octets: int = 0
    forgotten: int = 0  # pairs of message and recipient that `remember` left no room for
    dns_udp: int = 0
    dns_tcp: int = 0


class Ledger:
    """All counts of one sandbox."""

    def __init__(self, remember: int, log: int, times: int = 0) -> None:
        self._times = times
        self._generation = max(1, remember // 2)
        self._log_size = log
        self.domains: dict[str, DomainCounts] = {}
        self.sites: dict[str, SiteCounts] = {}
        self.presence = Presence(exact=False)
        self.watchers: list[Callable[[], None]] = []  # called when a transaction has ended
        self.reset()

    def reset(self) -> None:
        """Forget everything but the connections that are open."""
        self.totals = Totals()
        self.started = time.monotonic()
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.violations: dict[str, Violation] = {}
        self.dns_answers: Counter[str] = Counter()
        self.questions: Counter[str] = Counter()
        self.log: deque[Transaction] = deque(maxlen=self._log_size)
        self.arrivals: deque[Arrival] = deque(maxlen=self._times)
        self.visits: deque[Visit] = deque(maxlen=self._times)
        for domain in self.domains.values():
            domain.reset()
        for site in self.sites.values():
            site.reset()
        self.presence.reset()
        # Two generations each, so that forgetting the older half is one assignment.
        self._pairs: dict[bytes, int] = {}
        self._old_pairs: dict[bytes, int] = {}
        self._keys: set[int] = set()
        self._old_keys: set[int] = set()

    def domain(self, name: str) -> DomainCounts:
        """The counts of a recipient domain."""
        counts = self.domains.get(name)
        if counts is None:
            if len(self.domains) >= MAX_DOMAINS:
                name = OTHER_DOMAINS
            counts = self.domains.setdefault(name, DomainCounts())
        return counts

    def site(self, name: str) -> SiteCounts:
        """The counts of a site."""
        counts = self.sites.get(name)
        if counts is None:
            counts = self.sites[name] = SiteCounts()
        return counts

    def question(self, text: str) -> None:
        """Count a DNS question, given as name and type."""
        if text in self.questions or len(self.questions) < MAX_QUESTIONS:
            self.questions[text] += 1

    def record(self, pipelined: bool, pipelined_across: bool) -> int:
        """Count a transaction that has ended; returns its number."""
        totals = self.totals
        totals.transactions += 1
        totals.pipelined += pipelined
        totals.pipelined_across += pipelined_across
        for watcher in self.watchers:
            watcher()
        return totals.transactions

    def violation(self, kind: str, example: str) -> None:
        """Count something that a client should not have done."""
        entry = self.violations.setdefault(kind, Violation())
        entry.count += 1
        entry.example = example[:500]

    def accept(self, key: bytes, recipients: list[tuple[bytes, DomainCounts]], size: int) -> None:
        """Count one message as delivered. Hot path (`bench/throughput.py`)."""
        now = time.monotonic()
        if self.first_at is None:
            self.first_at = now
        self.last_at = now
        totals = self.totals
        totals.messages += 1
        totals.octets += size
        totals.recipients += len(recipients)
        pairs = self._pairs
        for address, domain in recipients:
            domain.recipients += 1
            pair = b"%b\0%b" % (key, address)
            seen = pairs.get(pair)
            if seen is None:
                seen = self._old_pairs.pop(pair, 0) if self._old_pairs else 0
                if len(pairs) >= self._generation:
                    totals.forgotten += len(self._old_pairs)
                    self._old_pairs = pairs
                    pairs = self._pairs = {}
            if seen:
                totals.duplicates += 1
                domain.duplicates += 1
            else:
                totals.distinct += 1
                domain.distinct += 1
            pairs[pair] = seen + 1
        domains = (domain,) if len(recipients) == 1 else {id(counts): counts for _, counts in recipients}.values()
        for domain in domains:
            domain.messages += 1
            domain.octets += size
        mark = hash(key)
        if mark not in self._keys and mark not in self._old_keys:
            totals.distinct_messages += 1
            if len(self._keys) >= self._generation:
                self._old_keys, self._keys = self._keys, set()
            self._keys.add(mark)

    def received(self) -> Iterator[list[tuple[str, str, int]]]:
        """All remembered (message key, recipient, times accepted), as of the first call, in portions."""
        snapshot = [list(self._old_pairs.items()), list(self._pairs.items())]
        for pairs in snapshot:
            for start in range(0, len(pairs), 1000):
                portion = []
                for pair, count in pairs[start : start + 1000]:
                    key, _, address = pair.rpartition(b"\0")
                    portion.append((key.decode("utf-8", "replace"), address.decode("utf-8", "replace"), count))
                yield portion
