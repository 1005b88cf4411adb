"""What is written down while a simulation runs: what became of the mail, how fast, and what held the rest.

Ends are counted when the engine decides them. What holds mail is looked at now and then, at times that lie further
apart the longer the run: each message that waits then counts with the time since the last look, by its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mta.delivery import explain
from mta.delivery.engine import Engine
from mta.delivery.outcome import End, Outcome
from mta.delivery.path import Path
from mta.delivery.settle import Peer, Settler, Verdict
from mta.queue.records import Delivery
from mta.simulate.kernel import VirtualHub
from mta.simulate.store import SimulatedQueue, SimulatedStore
from mta.smtp.reply import Reply

LOOK_FIRST_S: Final = 1.0
LOOK_SHARE: Final = 0.02  # of the time that has passed

LATELY_S: Final = 0.5  # ago something was held by a rate
_SOON: Final = frozenset(("limit", "learned-limit", "opening", "openings", "turn", "total"))  # if not for a rate


@dataclass(slots=True)
class Ends:
    """What became of recipients."""

    recipients: int = 0  # in all
    delivered: int = 0
    deferred: int = 0  # attempts
    bounced: int = 0
    expired: int = 0
    last_s: float = 0.0  # when the last one was delivered

    @property
    def left(self) -> int:
        """Still in the queue."""
        return self.recipients - self.delivered - self.bounced - self.expired


@dataclass(slots=True)
class Books:
    """All that is counted."""

    hub: VirtualHub
    total: Ends = field(default_factory=Ends)
    domains: dict[str, Ends] = field(default_factory=dict)
    tenants: dict[str, Ends] = field(default_factory=dict)
    priorities: dict[str, Ends] = field(default_factory=dict)
    reached_s: dict[int, float] = field(default_factory=dict)  # by share of the recipients, percent
    held_s: dict[str, float] = field(default_factory=dict)  # by kind of reason, message-seconds
    domain_held_s: dict[str, dict[str, float]] = field(default_factory=dict)
    # By site, over the time in which mail was due without a break: what it took, and what its rate lets through.
    taken: dict[str, int] = field(default_factory=dict)
    possible: dict[str, float] = field(default_factory=dict)
    series: list[tuple[float, int, int, int]] = field(default_factory=list)  # seconds, delivered, due, waiting
    of_queue: dict[str, tuple[Ends, ...]] = field(default_factory=dict)  # where mail of a queue counts
    on_end: Callable[[], None] = lambda: None
    _marks: list[tuple[int, int]] = field(default_factory=list)

    def begin(self, shares: tuple[int, ...]) -> None:
        """All mail is known: note when these percentages of it are delivered."""
        recipients = self.total.recipients
        self._marks = [(share, -(-recipients * share // 100)) for share in sorted(shares, reverse=True)]

    def delivered(self, delivery: Delivery, count: int) -> None:
        """Hot path."""
        now_s = self.hub.elapsed
        for ends in self.of_queue[delivery.queue]:
            ends.delivered += count
            ends.last_s = now_s
        marks, done = self._marks, self.total.delivered
        while marks and done >= marks[-1][1]:
            self.reached_s[marks.pop()[0]] = now_s
        if not self.total.left:
            self.on_end()

    def judged(self, delivery: Delivery, outcome: Outcome) -> None:
        """A transaction that did not simply succeed."""
        delivered = 0
        for result in outcome.results:
            if result.end is End.DELIVERED:
                delivered += 1
            elif result.end is End.FAILED:
                for ends in self.of_queue[delivery.queue]:
                    ends.bounced += 1
            elif result.end is End.DEFERRED:
                for ends in self.of_queue[delivery.queue]:
                    ends.deferred += 1
        self.delivered(delivery, delivered)

    def expired(self, delivery: Delivery) -> None:
        """It was given up for its age."""
        for ends in self.of_queue[delivery.queue]:
            ends.expired += len(delivery.recipients)
        if not self.total.left:
            self.on_end()


class SimulatedSettler(Settler):
    """The engine's settler, which also counts. Events of successes are not written out."""

    books: Books

    def deliver(self, delivery: Delivery, reply: Reply, peer: Peer, duration_s: float) -> Verdict:
        """See `Settler.deliver`. Hot path."""
        count = len(delivery.recipients)
        self.counters.delivered += count
        delivery.recipients = []
        self.books.delivered(delivery, count)
        return Verdict(removes=[delivery])

    def settle(self, delivery: Delivery, outcome: Outcome, peer: Peer, duration_s: float) -> Verdict:
        """See `Settler.settle`."""
        verdict = super().settle(delivery, outcome, peer, duration_s)
        self.books.judged(delivery, outcome)
        return verdict

    def expire(self, delivery: Delivery, reason: str, order: str = "") -> Verdict:
        """See `Settler.expire`."""
        self.books.expired(delivery)
        return super().expire(delivery, reason, order)


class Looks:
    """Looks at what holds the mail, as long as the simulation runs."""

    def __init__(self, books: Books, engine: Engine, store: SimulatedStore,
                 rate_of: Callable[[str, str], tuple[str, float, int] | None]) -> None:
        """`rate_of`: of a domain and a pool, the site and the messages per second that its hosts take, and how many
        they took so far; None when they have no rate."""
        self._books = books
        self._engine = engine
        self._store = store
        self._rate_of = rate_of
        self._last_s = 0.0
        self._taken: dict[str, int] = {}  # at the last look, by sites that had mail then

    def look(self) -> None:
        """Look now, and again."""
        hub = self._books.hub
        self.count()
        hub.call_later(max(LOOK_FIRST_S, LOOK_SHARE * hub.elapsed), self.look)

    def count(self) -> None:
        """What waits now has waited since the last look."""
        books = self._books
        passed_s = books.hub.elapsed - self._last_s
        self._last_s = books.hub.elapsed
        now_us = self._store.elapsed_us()
        taken: dict[str, int] = {}
        due = waiting = 0
        for queue in self._store.queues.values():
            if queue.is_quiet(now_us):
                continue
            queue.come_due(now_us)
            engines = self._engine.scheduler.queues.get((0, queue.name))
            under_way = len(engines.in_flight) if engines is not None else 0
            ready = queue.fresh(now_us) + len(queue.due) + len(queue.out) - under_way
            if not ready and not queue.waiting:
                continue
            held = books.domain_held_s.setdefault(queue.domain, {})
            if queue.waiting:
                waiting += queue.waiting
                self._hold(held, "retry", queue.waiting * passed_s)
            if ready > 0:
                due += ready
                self._hold(held, self._why(queue), ready * passed_s)
                found = self._rate_of(queue.domain, _pool_of(queue))
                if found is not None and found[0] not in taken:
                    site, rate, taken[site] = found
                    if site in self._taken:
                        books.taken[site] = books.taken.get(site, 0) + taken[site] - self._taken[site]
                        books.possible[site] = books.possible.get(site, 0.0) + rate * passed_s
        self._taken = taken
        books.series.append((books.hub.elapsed, books.total.delivered, due, waiting))

    def _hold(self, held: dict[str, float], reason: str, message_s: float) -> None:
        for one in (held, self._books.held_s):
            one[reason] = one.get(reason, 0.0) + message_s

    def _why(self, queue: SimulatedQueue) -> str:
        """Why what is due of a queue is not being sent: the kind of reason that `mta explain` gives."""
        engine = self._engine
        state, reasons = explain.of_due(engine, 0, queue.name)
        kind = explain.main_of(state, reasons).kind
        if kind not in _SOON:
            return kind
        lane = engine.ways.lane_of(queue.domain, _pool_of(queue))
        rates = [self._rate_lately(path) for path in lane.paths] if lane is not None else []
        return rates[0] if rates and all(rates) else kind

    def _rate_lately(self, path: Path) -> str:
        """Which kind of rate held a path until a moment ago; "" for none. The next wait is as long as the last one."""
        if not path.not_before_s:
            return ""
        spacing_s = max([bucket.spacing for bucket in path.message_rates], default=0.0)
        if path.not_before_s <= self._engine.monotonic() - LATELY_S - spacing_s:
            return ""
        return "adaptation" if path.blocked or (path.paced and not path.own_rates) else "rate"


def _pool_of(queue: SimulatedQueue) -> str:
    return queue.flows[0].part.pool


def begin_books(books: Books, store: SimulatedStore) -> None:
    """Enter all mail that there will be."""
    for queue in store.queues.values():
        for flow in queue.flows:
            part = flow.part
            where = (books.total, books.domains.setdefault(flow.domain, Ends()),
                     books.tenants.setdefault(part.tenant, Ends()),
                     books.priorities.setdefault(part.priority, Ends()))
            books.of_queue[queue.name] = where
            for ends in where:
                ends.recipients += flow.count * part.recipients
    books.begin((50, 90, 99, 100))

