"""When messages and connections may go: rates over all workers, of paths and of tenants, and what tenants may have.

What may not go yet has a place in line (`Limits.reserve`), and one timer for each path or tenant says when that is due.
Until then its mail costs nothing: a paced path has its connections at rest, or closed when the wait is longer than
they would rest; a tenant that may not send is passed over by all lanes. Nothing polls.

Of a limited tenant the queue is counted in deliveries, each worker its own part; a part is counted again at the start,
and when a reload gives it a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from mta.config.schema import Tenant
from mta.config.units import Rate
from mta.delivery.counters import LEVEL
from mta.delivery.path import Path
from mta.delivery.rates import Bucket
from mta.delivery.reason import Reason
from mta.queue.index import QueueTotals
from mta.queue.store import QueueInfo
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.lane import Lane

EARLY_S: Final = 0.001  # a timer may be so much early
OPENING_S: Final = 5.0  # that a connection, or a message, which holds all it needs may wait for its rate
UNCOUNTED: Final = 1 << 40  # more than any queue has


def buckets(name: str, rates: Sequence[Rate]) -> tuple[Bucket, ...]:
    """The rates of what is called `name`, as the table of limits has them."""
    return tuple(Bucket(f"{name} {rate}", rate.count, rate.per_s, getattr(rate, "burst", 1) or 1) for rate in rates)


class Limited:
    """A tenant with limits, by the configuration or an operator."""

    __slots__ = ("buckets", "concurrency", "held", "name", "not_before_s", "rates", "waits_for")

    def __init__(self, name: str, options: Tenant | None, most: int | None, rate: float | None) -> None:
        """`most` messages in flight and `rate` of them per second is what an operator lowered it to."""
        self.name = name
        options = options or Tenant()
        self.concurrency = min((one for one in (options.concurrency, most) if one is not None), default=None)
        self.buckets = buckets(f"tenant:{name}", options.message_rate)
        self.rates = list(map(str, options.message_rate))
        if rate is not None and rate > 0:
            self.buckets += (Bucket(f"tenant:{name} held", rate, 1.0),)
            self.rates.append(f"{rate:g}/s" if rate >= 1 else f"{rate * 60:g}/min")
        self.held: set[Lane] = set()  # lanes that pass it over
        self.not_before_s = 0.0
        self.waits_for = ""  # why it may not send, in words


class Pacing:
    """The rates of one engine, and the limits of its tenants."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tenants: dict[str, Limited] = {}  # those that have a limit on what leaves
        self._leased: dict[str, int] = {}  # leases that we hold, by tenant, whatever its limits are by now
        self._counts: set[str] = set()  # those whose queue is counted
        self._started = False

    def configure(self) -> None:
        """Take other tenants. Those that are held are looked at anew."""
        for name in {**self.tenants, **self._engine.config.tenants}:
            self.held(name)
        counted = {name for name, options in self._engine.config.tenants.items() if options.queue_size is not None}
        if self._started:
            for name in counted - self._counts:
                self._count_queue(name)
        self._counts = counted

    def held(self, name: str) -> None:
        """The limits of a tenant may be others now, by the configuration or an operator."""
        engine, target = self._engine, (f"tenant:{name}",)
        most, rate = engine.holds.lowest("connections", target), engine.holds.lowest("rate", target)
        limited = Limited(name, engine.config.tenants.get(name), max(int(most[1].value), 1) if most else None,
                          rate[1].value if rate else None)
        before = self.tenants.pop(name, None)
        if limited.buckets or limited.concurrency is not None:
            self.tenants[name] = limited
        if before is not None:
            if limited.concurrency is None:
                engine.limits.want(f"tenant:{name}", 0)
            self._free(before)

    # -- paths ---------------------------------------------------------------------------------------------------

    def may_send(self, path: Path) -> bool:
        """Take the right to one message over a path that has a rate; if there is none now, wait for it."""
        if path.not_before_s > self._engine.monotonic():
            return False
        if path.blocked and not self._engine.adapting.may_probe(path):
            return False
        at_s = self._engine.limits.reserve(path.message_rates)
        if not at_s:  # a time that has just come is still a place, for which nothing was taken
            return True
        self.wait(path, at_s)
        return False

    def wait(self, path: Path, until_s: float) -> None:
        """No message goes over `path` before that; then it is looked at again."""
        if path.not_before_s != until_s:
            path.not_before_s = until_s
            self._call(path, until_s)

    def send_back(self, path: Path) -> None:
        """What `may_send` took was not used."""
        self._engine.limits.hand_back(path.message_rates)

    def await_sending(self, path: Path, tenant: str, taken_s: float) -> bool:
        """A message is about to go by the rights taken at `taken_s`, which waited for the disk. Late ones count from
        now on; where others have gone meanwhile they are taken once more, and waited for, as the content is here now.
        False: that would be long, so they are lost."""
        limited = self.tenants.get(tenant) if tenant else None
        for rates in (path.message_rates, limited.buckets if limited is not None else ()):
            if rates and self._engine.monotonic() - taken_s > min([bucket.fresh for bucket in rates]) and not (
                    self._engine.limits.use_late(rates) or self._retake(rates)):
                return False
        return True

    def _retake(self, rates: Sequence[Bucket]) -> bool:
        engine = self._engine
        until_s = engine.monotonic() + OPENING_S
        while at_s := engine.limits.reserve(rates):
            if at_s > until_s or engine.stopping:
                return False
            engine.hub.sleep(max(at_s - engine.monotonic(), 0.0) + EARLY_S)
        return True

    def may_open(self, path: Path) -> bool:
        """The same for a new connection."""
        if path.open_not_before_s > self._engine.monotonic():
            return False
        at_s = self._engine.limits.reserve(path.connection_rates)
        if not at_s:
            return True
        path.open_not_before_s = at_s
        self._call(path, at_s)
        return False

    def await_opening(self, path: Path, granted_s: float) -> bool:
        """A new connection is about to be opened, by the right taken at `granted_s`. If that was so long ago, because
        of DNS or a busy event loop, that it would come on top of others, it is taken once more and waited for. False:
        that would be long, with leases and a place among those that are opened; the path is called then."""
        rates, engine = path.connection_rates, self._engine
        if not rates or engine.monotonic() - granted_s <= min(bucket.fresh for bucket in rates):
            return True
        while at_s := engine.limits.reserve(rates):
            wait_s = max(at_s - engine.monotonic(), 0.0)
            if wait_s > OPENING_S or engine.stopping:
                path.open_not_before_s = at_s
                self._call(path, at_s)
                return False
            engine.hub.sleep(wait_s + EARLY_S)
        return True

    def _call(self, path: Path, until_s: float) -> None:
        wait_s = max(until_s - self._engine.monotonic(), 0.0)
        self._engine.hub.later(wait_s + EARLY_S, self._called, path, until_s)

    def _called(self, path: Path, until_s: float) -> None:
        if until_s > self._engine.monotonic():
            self._call(path, until_s)  # who asks too early gets no answer, and nobody would call again
        elif not self._engine.stopping:
            self._engine.connecting.kick_path(path)

    # -- tenants -------------------------------------------------------------------------------------------------

    def take(self, name: str, lane: Lane) -> bool:
        """Take the right to one message of a limited tenant, in `lane`. If there is none now it is passed over."""
        tenant, limits = self.tenants[name], self._engine.limits
        if tenant.not_before_s > self._engine.monotonic():
            self._hold(tenant, lane)
            return False
        concurrency = tenant.concurrency
        if concurrency is not None and limits.acquire([(f"tenant:{name}", concurrency)]) is not None:
            tenant.waits_for = f"limit of {concurrency} messages of tenant {name} in flight is reached"
            self._hold(tenant, lane)
            return False
        if tenant.buckets:
            at_s = limits.reserve(tenant.buckets)
            if at_s:
                if concurrency is not None:
                    limits.release([f"tenant:{name}"])
                tenant.waits_for = f"rate of tenant {name} ({', '.join(tenant.rates)}) is used up"
                tenant.not_before_s = at_s
                self._hold(tenant, lane)
                self._engine.hub.later(
                    max(at_s - self._engine.monotonic(), 0.0) + EARLY_S, self._due, tenant)
                return False
        if concurrency is not None:
            self._leased[name] = self._leased.get(name, 0) + 1
        return True

    def ended(self, name: str) -> None:
        """A message for which `take` said yes is not in flight any more."""
        leased = self._leased.pop(name, 0)
        if leased > 1:
            self._leased[name] = leased - 1
        if leased:
            self._engine.limits.release([f"tenant:{name}"])

    def give_back(self, name: str) -> None:
        """What `take` took was not used."""
        tenant = self.tenants.get(name)  # None: it was freed meanwhile
        if tenant is not None and tenant.buckets:
            self._engine.limits.hand_back(tenant.buckets)
        self.ended(name)

    def nudged(self, limit: str) -> None:
        """A lease of this limit was granted to us, which may be a tenant's; or others want one, and get it when a
        message has ended, as none of a tenant's rests."""
        kind, _, name = limit.partition(":")
        if kind == "tenant" and name in self.tenants and not self._engine.limits.waits(limit):
            self._free(self.tenants[name])
            if not self.tenants[name].held:
                self._engine.limits.want(limit, 0)

    def why(self, name: str) -> Reason | None:
        """Why the mail of a tenant may not go now; None when it may."""
        tenant, engine = self.tenants.get(name), self._engine
        if tenant is None or not tenant.held:
            return None
        wait_s = tenant.not_before_s - engine.monotonic()
        if wait_s > 0:
            return Reason("tenant-rate", tenant.waits_for, 0, engine.clock_us() + int(wait_s * 1e6),
                          f"`tenants.{name}.message_rate`")
        limit = tenant.concurrency or 0
        return Reason("tenant-concurrency", tenant.waits_for, remedy=f"`tenants.{name}.concurrency`",
                      numbers={"limit": limit})

    @staticmethod
    def _hold(tenant: Limited, lane: Lane) -> None:
        lane.turns.hold(tenant.name)
        tenant.held.add(lane)

    def _due(self, tenant: Limited) -> None:
        tenant.not_before_s = 0.0
        self._free(tenant)

    def _free(self, tenant: Limited) -> None:
        lanes, tenant.held = tenant.held, set()
        for lane in lanes:
            lane.turns.free(tenant.name)
            if lane.turns.count and not self._engine.stopping:
                self._engine.connecting.kick(lane)

    # -- what tenants may have in the queue ----------------------------------------------------------------------

    def admit(self, name: str, deliveries: int) -> Reply | None:
        """Count a message of a tenant that comes in; or why it is not taken now. Hot path: most have no limits."""
        options = self._engine.config.tenants.get(name)
        if options is None:
            return None
        limits = self._engine.limits
        if options.daily_volume is not None and not limits.count(f"day:{name}", 1, options.daily_volume):
            return Reply(452, "4.7.1", (f"Tenant {name} has sent its {options.daily_volume} messages of this day",))
        if options.queue_size is not None and not limits.count(f"queue:{name}", deliveries, options.queue_size, LEVEL):
            if options.daily_volume is not None:
                limits.count(f"day:{name}", -1, None)
            return Reply(452, "4.2.2", (f"Tenant {name} has {options.queue_size} messages in the queue",))
        return None

    def took(self, name: str, deliveries: int) -> None:
        """Count a message of a tenant that came in by a door that refuses none."""
        options = self._engine.config.tenants.get(name)
        if options is None:
            return
        if options.daily_volume is not None:
            self._engine.limits.count(f"day:{name}", 1, None)
        self.left(name, -deliveries)

    def not_stored(self, name: str, deliveries: int) -> None:
        """What was admitted could not be stored."""
        options = self._engine.config.tenants.get(name)
        if options is not None and options.daily_volume is not None:
            self._engine.limits.count(f"day:{name}", -1, None)
        self.left(name, deliveries)

    def left(self, name: str, deliveries: int = 1) -> None:
        """So many deliveries of a tenant have left the queue. Hot path: most have no limits."""
        options = self._engine.config.tenants.get(name)
        if options is not None and options.queue_size is not None:
            self._engine.limits.count(f"queue:{name}", -deliveries, None, LEVEL)

    def count_queues(self) -> None:
        """At the start: what there is of limited tenants."""
        self._started = True
        for name in self._counts:
            self._count_queue(name)

    def _count_queue(self, name: str) -> None:
        self._engine.limits.count(f"queue:{name}", -UNCOUNTED, None, LEVEL)  # what there was before it was not counted
        for store in self._engine.stores.values():
            for pattern in (f"{name}@*", f"*:{name}@*"):
                store.list_queues(pattern, 1, partial(self._counted, name))

    def _counted(self, name: str, rows: list[QueueInfo], totals: QueueTotals) -> None:
        if totals.deliveries:
            self._engine.limits.count(f"queue:{name}", totals.deliveries, None, LEVEL)
