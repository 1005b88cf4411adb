"""When messages and connections may go: rates over all workers, of paths and of tenants, and what tenants may have.

What may not go yet has a place in line (`Limits.reserve`), and one timer for each set of rates says when that is due;
the paths that share them stand in a line (`RateLines`). Until then their mail costs nothing: a paced path has its
connections at rest, or closed when the wait is longer than they would rest; a tenant that may not send is passed over
by all lanes, which stand in its line (`Limited`). Both are called in turn. Nothing polls.

Of a tenant with a bound on its queue that is counted in deliveries, each worker its own part. A worker counts at its
start, before its doors open (`begin`); a dead one's part stays in the table meanwhile. A bound that comes by a reload
is in force when all workers have counted, and the part is reckoned from what came and left since the count was asked
for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import lmdb

from mta.config.units import Rate
from mta.delivery.calling import CALLED_MOST
from mta.delivery.counters import STOCK
from mta.delivery.hub import Event
from mta.delivery.limited import Limited
from mta.delivery.path import Path
from mta.delivery.rate_lines import RateLines
from mta.delivery.rates import Bucket
from mta.delivery.reason import Reason
from mta.queue.scheduler import Queue
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.lane import Lane

EARLY_S: Final = 0.001  # a timer may be so much early
OPENING_S: Final = 5.0  # that a connection, or a message, which holds all it needs may wait for its rate
COUNTS_S: Final = 20.0  # that a start waits until all workers have counted what tenants have in the queue
COUNTS_LOOK_S: Final = 0.02

log = logging.getLogger(__name__)


def buckets(name: str, rates: Sequence[Rate]) -> tuple[Bucket, ...]:
    """The rates of what is called `name`, as the table of limits has them."""
    return tuple(Bucket(f"{name} {rate}", rate.count, rate.per_s, getattr(rate, "burst", 1) or 1) for rate in rates)


class Right:
    """What one message of a limited tenant has taken."""

    __slots__ = ("leased", "rated", "taken_s", "tenant")

    def __init__(self, tenant: str, leased: bool, rated: bool, taken_s: float = 0.0) -> None:
        self.tenant = tenant
        self.taken_s = taken_s
        self.leased = leased  # it counts as in flight
        self.rated = rated


class _Count:
    """A count of what some tenants have in the queue, under way."""

    __slots__ = ("found", "left", "since")

    def __init__(self, tenants: Iterable[str], shards: int) -> None:
        self.found = dict.fromkeys(tenants, 0)
        self.since = dict.fromkeys(self.found, 0)  # what came, less what left, since it was begun
        self.left = shards


class Pacing:
    """The rates of one engine, and the limits of its tenants."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lines = RateLines(engine)
        self.tenants: dict[str, Limited] = {}  # those that have a limit on what leaves
        self._counts: set[str] = set()  # those whose queue is counted
        self._counting: dict[str, _Count] = {}  # of those, the ones that are being counted
        self._counted: Event | None = None  # set when none is; made at the start

    def configure(self) -> None:
        """Take other tenants. Those that are held are looked at anew."""
        for name in {**self.tenants, **self._engine.config.tenants}:
            self.held(name)
        counted = {name for name, options in self._engine.config.tenants.items() if options.queue_size is not None}
        before, self._counts = self._counts, counted
        if self._counted is not None:
            for name in before - counted:
                self._counting.pop(name, None)
                self._stock(name, None)
            self._count_queues(counted - before, self._counted)

    def held(self, name: str) -> None:
        """The limits of a tenant may be others now, by the configuration or an operator."""
        engine, target = self._engine, (f"tenant:{name}",)
        most, rate = engine.holds.lowest("connections", target), engine.holds.lowest("rate", target)
        options = engine.config.tenants.get(name)
        limited = Limited(
            name, options, buckets(f"tenant:{name}", options.message_rate) if options is not None else (),
            max(int(most[1].value), 1) if most else None, rate[1].value if rate else None)
        before = self.tenants.pop(name, None)
        if limited.buckets or limited.concurrency is not None:
            self.tenants[name] = limited
        if limited.concurrency is not None and (before is None or before.concurrency is None):
            self._adopt(name, limited.concurrency)
        if before is not None:
            if limited.concurrency is None:
                engine.limits.want(f"tenant:{name}", 0)
            if name in self.tenants:
                limited.take_over(before)
                self._call_lanes(limited, anew=True)
            else:
                self._free(before)

    def _adopt(self, name: str, concurrency: int) -> None:
        """A bound on messages in flight is new: those that are count, also above it. One that waits for the disk with
        its content does not: it is put back by `lacks`. Looks at all connections."""
        jobs = [job for connection in self._engine.connections for job in connection.jobs
                if job.queue.tenant == name and not (job.right is not None and job.right.leased)]
        if jobs and self._engine.limits.adopt(f"tenant:{name}", concurrency, len(jobs)):
            for job in jobs:
                if job.right is None:
                    job.right = Right(name, True, False)
                else:
                    job.right.leased = True

    def lacks(self, tenant: str, right: Right | None) -> bool:
        """Whether a message that is about to be sent has to count as in flight, and does not: the bound is new."""
        limited = self.tenants.get(tenant)
        return limited is not None and limited.concurrency is not None and not (right is not None and right.leased)

    # -- paths ---------------------------------------------------------------------------------------------------

    def may_send(self, path: Path, urgent: bool = False) -> bool:
        """Take the right to one message over a path that has a rate; if there is none now, wait for it. `urgent`: that
        is transactional, and goes before the others that wait for a rate."""
        urgent = urgent and not path.blocked
        if path.not_before_s > self._engine.monotonic() and (path.overtakes or not urgent):
            return False
        limits, rates, line = self._engine.limits, path.message_rates, None
        if not path.blocked:
            line, urgent = self._lines.of(path, urgent)
            if line is not None and self._lines.stands(line, path):
                return False
        at_s = limits.reserve(rates, urgent=urgent)
        if not at_s and path.blocked:  # the probe last: who is given it has to send it, and nobody else may
            granted = self._engine.adapting.may_probe(path)
            if granted and path.blocked:
                return True
            limits.hand_back(rates)
            if not granted:
                return False
            at_s = limits.reserve(path.message_rates, urgent=urgent)  # it was free meanwhile, at a rate
        if not at_s:  # a time that has just come is still a place, for which nothing was taken
            if line is not None:
                self._lines.went(line, path)
            return True
        if path.blocked:
            path.overtakes = False
            self.wait(path, at_s)
        else:
            self._lines.wait(path, urgent, at_s)
        return False

    def hasten(self, path: Path) -> None:
        """Transactional mail came for `path`. If it waits for its turn with other mail it is to ask anew."""
        if path.not_before_s > self._engine.monotonic() and not path.overtakes and not path.blocked:
            path.not_before_s = 0.0

    def wait(self, path: Path, until_s: float) -> None:
        """No message goes over `path` before that; then it is looked at again."""
        if path.not_before_s != until_s:
            path.not_before_s = until_s
            self._call(path, until_s)

    def send_back(self, path: Path, since_s: float = math.inf) -> None:
        """What `may_send` took, just now or at `since_s`, was not used."""
        self._engine.limits.hand_back(path.message_rates, since=since_s)

    def await_sending(self, path: Path, right: Right | None, taken_s: float, urgent: bool = False) -> bool:
        """A message is about to go by the rights taken at `taken_s`, which waited for the disk. Late ones count from
        now on; where others have gone meanwhile they are taken once more, and waited for, as the content is here now.
        False: that would be long, so they are lost."""
        limited = self.tenants.get(right.tenant) if right is not None and right.rated else None
        for rates in (path.message_rates, limited.buckets if limited is not None else ()):
            if rates and self._engine.monotonic() - taken_s > min([bucket.fresh for bucket in rates]) and not (
                    self._engine.limits.use_late(rates, taken_s) or self._retake(rates, urgent)):
                return False
        return True

    def _retake(self, rates: Sequence[Bucket], urgent: bool) -> bool:
        engine = self._engine
        until_s = engine.monotonic() + OPENING_S
        while at_s := engine.limits.reserve(rates, urgent=urgent):
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

    def take(self, queue: Queue, lane: Lane) -> Right | None:
        """Take the right to one message of a limited tenant, of `queue` in `lane`. If there is none now, or it is the
        turn of another lane, the tenant is passed over."""
        name = queue.tenant
        tenant, limits = self.tenants[name], self._engine.limits
        if tenant.not_before_s > self._engine.monotonic() or not tenant.may_ask(lane):
            tenant.hold(lane)
            return None
        concurrency = tenant.concurrency
        if concurrency is not None and limits.acquire([(f"tenant:{name}", concurrency)]) is not None:
            tenant.hold(lane)
            return None
        if tenant.buckets:
            at_s = limits.reserve(tenant.buckets)
            if at_s:
                if concurrency is not None:
                    limits.release([f"tenant:{name}"])
                tenant.not_before_s = at_s
                tenant.hold(lane)
                self._engine.hub.later(
                    max(at_s - self._engine.monotonic(), 0.0) + EARLY_S, self._due, tenant)
                return None
        tenant.sent(lane, queue.priority)
        if tenant.held:
            self._call_lanes(tenant)
        return Right(name, concurrency is not None, bool(tenant.buckets), self._engine.monotonic())

    def came(self, queue: Queue, lane: Lane) -> None:
        """Mail of a limited tenant came to `lane`. Hot path."""
        self.tenants[queue.tenant].came(lane, queue.priority)

    def ended(self, right: Right) -> None:
        """The message that had it is not in flight any more. Whatever the limits of its tenant are by now, what it
        counts for ends with it, once."""
        if right.leased:
            right.leased = False
            self._engine.limits.release([f"tenant:{right.tenant}"])

    def give_back(self, right: Right) -> None:
        """What `take` took was not used."""
        tenant = self.tenants.get(right.tenant)  # None: it was freed meanwhile
        if right.rated and tenant is not None and tenant.buckets:
            self._engine.limits.hand_back(tenant.buckets, since=right.taken_s)
        right.rated = False
        self.ended(right)

    def nudged(self, limit: str) -> None:
        """A lease of this limit was granted to us, which may be a tenant's; or others want one, and get it when a
        message has ended, as none of a tenant's rests."""
        kind, _, name = limit.partition(":")
        tenant = self.tenants.get(name) if kind == "tenant" else None
        if tenant is None or self._engine.limits.waits(limit):
            return
        if tenant.not_before_s > self._engine.monotonic():
            self._engine.limits.want(limit, 0)  # others can use it meanwhile
            return
        self._call_lanes(tenant)
        self._want_no_more(tenant)

    def why(self, name: str) -> Reason | None:
        """Why the mail of a tenant may not go now; None when it may."""
        tenant, engine = self.tenants.get(name), self._engine
        if tenant is None or not tenant.held:
            return None
        wait_s = tenant.not_before_s - engine.monotonic()
        limit = tenant.concurrency
        if limit is not None and wait_s <= 0 and (not tenant.buckets or engine.limits.waits(f"tenant:{name}")):
            return Reason("tenant-concurrency", f"limit of {limit} messages of tenant {name} in flight is reached",
                          remedy=f"`tenants.{name}.concurrency`", numbers={"limit": limit})
        until_us = engine.clock_us() + int(wait_s * 1e6) if wait_s > 0 else 0
        return Reason("tenant-rate", f"rate of tenant {name} ({', '.join(tenant.rates)}) is used up", 0, until_us,
                      f"`tenants.{name}.message_rate`", {"sites": len(tenant.held)})

    def _due(self, tenant: Limited) -> None:
        """The place in line that a rate gave is due."""
        if tenant.not_before_s <= self._engine.monotonic():
            tenant.not_before_s = 0.0
            self._call_lanes(tenant)

    def _call_lanes(self, tenant: Limited, anew: bool = False) -> None:
        """Have lanes ask for what may be sent now, in their turn: one that has a connection at rest will do so at once,
        and so tell whether there is more; of the others as many as could send while their connections are opened. Those
        that their own rates hold back are not waited for. `anew`: the limits are others than those that were waited
        for.
        """
        engine = self._engine
        if self.tenants.get(tenant.name) is not tenant or engine.stopping:
            return
        now_s = engine.monotonic()
        if tenant.not_before_s > now_s or (
                not anew and tenant.concurrency is not None and engine.limits.waits(f"tenant:{tenant.name}")):
            return  # it will be heard of
        passed = 0
        while len(tenant.called) < tenant.at_once:
            if passed == CALLED_MOST:  # the event loop is not to be held up
                engine.hub.spawn(self._call_lanes, tenant, anew)
                break
            lane = tenant.call(engine.config.turns.ageing, now_s)
            if lane is None:
                break
            may_send = [path for path in lane.paths if path.not_before_s <= now_s]
            rests = any(path.idle for path in may_send)
            if not may_send:
                tenant.pass_over(lane)
                passed += 1
            engine.connecting.kick(lane)
            if rests:
                break
        if tenant.called and not tenant.looks:
            tenant.looks = True
            engine.hub.later(tenant.patience_s, self._look, tenant)

    def _look(self, tenant: Limited) -> None:
        """Some may have been called and not have come: their sites stand still, or are slow. Others go on."""
        tenant.looks = False
        tenant.give_up(self._engine.monotonic())
        self._call_lanes(tenant)
        self._want_no_more(tenant)

    def _want_no_more(self, tenant: Limited) -> None:
        if not tenant.held and not tenant.called and tenant.concurrency is not None:
            self._engine.limits.want(f"tenant:{tenant.name}", 0)

    def _free(self, tenant: Limited) -> None:
        """It has no limits any more."""
        for lane in tenant.let_go():
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
        if options.queue_size is not None and not self._came(
                name, deliveries, options.queue_size):
            if options.daily_volume is not None:
                limits.count(f"day:{name}", -1, None)
            return Reply(452, "4.2.2", (f"Tenant {name} has {options.queue_size} messages in the queue",))
        return None

    def _came(self, name: str, deliveries: int, limit: int | None) -> bool:
        """So many more deliveries are in the queue, or fewer, if `limit` allows."""
        if self._counting and (count := self._counting.get(name)) is not None:
            count.since[name] += deliveries  # what is there is not known yet
            limit = None
        return self._engine.limits.count(f"queue:{name}", deliveries, limit, STOCK)

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
            self._came(name, -deliveries, None)

    def begin(self) -> Event:
        """At the start, before anything comes or goes: count what there is of tenants with a bound. The event is set
        when that is done."""
        self._counted = counted = self._engine.hub.event()
        self._count_queues(self._counts, counted)
        return counted

    def await_counts(self, workers: int) -> None:
        """Wait until all workers have counted, those with a part of a tenant's queue that is not known yet would let in
        more than its bound; not for ever, as one of them may not come up."""
        engine, until_s = self._engine, self._engine.monotonic() + COUNTS_S
        if self._counted is not None:
            self._counted.wait(COUNTS_S)
        while any(engine.limits.stocked(f"queue:{name}") < workers for name in self._counts):
            if engine.monotonic() >= until_s:
                log.warning("what tenants have in the queue is not counted after %.0f s; going on", COUNTS_S)
                return
            engine.hub.sleep(COUNTS_LOOK_S)

    @property
    def has_begun(self) -> bool:
        """Whether `begin` was called."""
        return self._counted is not None

    def _count_queues(self, names: set[str], counted: Event) -> None:
        if not names:
            if not self._counting:
                counted.set()
            return
        counted.clear()
        stores = self._engine.stores
        count = _Count(names, len(stores))
        for name in names:
            self._counting[name] = count
        for store in stores.values():
            store.count_of_tenants(names, partial(self._found, count))

    def _found(self, count: _Count, found: dict[str, int]) -> None:
        """What one shard has."""
        for name, number in found.items():
            count.found[name] += number
        count.left -= 1
        if count.left:
            return
        for name, number in count.found.items():
            if self._counting.get(name) is count:  # else another count was begun, or nobody asks any more
                del self._counting[name]
                self._stock(name, max(number + count.since[name], 0))
        if not self._counting and self._counted is not None:
            self._counted.set()

    def _stock(self, name: str, number: int | None) -> None:
        try:
            self._engine.limits.stock(f"queue:{name}", number)
        except lmdb.Error as error:
            log.error("what tenant %s has in the queue is not counted: %s", name, error)
