"""The delivery engine of a worker: brings queues to lanes, opens connections, and settles what they did.

It is the active side of scheduler (`mta.queue.scheduler`: which deliveries are in memory), router (where a domain's
mail goes), lanes and paths (whose turn it is, how each site is treated) and limits (what all workers may do together).
Everything happens on an event: a delivery that became ready, a route that was found, a transaction that ended, a lease
that became free, a time that came. Nothing looks around for work.

This module joins the rooms of the house and is the scheduler's I/O:

| room                          | what is done there                                                         |
|-------------------------------|----------------------------------------------------------------------------|
| `ways` (`Ways`)               | from a queue to its lane: routes, pools, paths                             |
| `connecting` (`Connecting`)   | when a connection is opened, rests and ends; leases                        |
| `dispatch` (`Dispatch`)       | which delivery goes next over a connection, and what its outcome commits   |
| `pacing` (`Pacing`)           | rates of paths and tenants, what tenants may have                          |
| `holds` (`Holds`)             | suspensions and lower limits by rules and operators, over all workers      |
| `keeper` (`PathKeeper`)       | when a path stands still                                                   |
| `breakers` (`Breakers`)       | what all workers know of failing sites, and which of them probes           |
| `reactions` (`Reactions`)     | what refusals mean by the rules on replies, and what the rules do then     |
| `controls` (`Controls`)       | what an operator holds back, ends, or sends another way                    |
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from mta.config.schema import Config
from mta.delivery.adapting import Adapting
from mta.delivery.ageing import Ageing
from mta.delivery.breaker import Breakers
from mta.delivery.connecting import Connecting
from mta.delivery.connection import Connection
from mta.delivery.controls import LONG_US, Controls
from mta.delivery.deadlines import Deadlines
from mta.delivery.dispatch import Dispatch
from mta.delivery.foresight import Foresight
from mta.delivery.holds import Holds, names_of
from mta.delivery.hub import Event, GeventHub, Hub
from mta.delivery.lane import Lane
from mta.delivery.limits import Limits
from mta.delivery.pacing import Pacing
from mta.delivery.path import Path
from mta.delivery.pathkeeping import PathKeeper
from mta.delivery.protection import Protection
from mta.delivery.reactions import Reactions
from mta.delivery.routing import Router
from mta.delivery.settle import Settler
from mta.delivery.sources import Sources
from mta.delivery.targets import Reachability
from mta.delivery.tls import HostMemory
from mta.delivery.ways import Ways
from mta.delivery.wire import Sweeper
from mta.queue.checkpoint import Touched
from mta.queue.ids import SHARD_BITS
from mta.queue.orders import HELD_US
from mta.queue.records import Delivery, Message
from mta.queue.scheduler import FOREVER_US, Queue, Scheduler, domain_of, tenant_of
from mta.queue.store import Store

BRING_BATCH = 500
REPORT = 2000  # queues of a checkpoint's report that are looked at in one turn
LOOK_S = 1.0  # how often it is asked whether the clock was set
LOOKS_FOR_LATE_S = (0.0, 5.0, 60.0)  # after it was set back; the later ones find what was not on disk yet

log = logging.getLogger(__name__)


class Engine:
    """One per worker."""

    def __init__(self, config: Config, stores: dict[int, Store], router: Router, limits: Limits, settler: Settler,
                 read_body: Callable[[Store, Message], bytes], clock_us: Callable[[], int], hub: Hub | None = None,
                 connect: Callable[[Engine, Path, Lane], Connection] = Connection) -> None:
        """`read_body` waits for the disk without blocking the hub, which is gevent's unless another one is given;
        `connect` makes a connection that is not open yet."""
        self.hub = hub or GeventHub()
        self.monotonic = self.hub.monotonic
        self.connect = connect
        self.stores = stores
        self.config = config
        self.router = router
        self.limits = limits
        self.settler = settler
        self.clock_us = clock_us
        self.read_body = read_body
        self.scheduler = Scheduler(self, config.memory, stores, clock_us)
        self.sweeper = Sweeper()
        self.reachability = Reachability()
        self.broken_tls = HostMemory()
        self.no_pipelining = HostMemory()
        self.no_pipelining_across = HostMemory()
        self.no_chunking = HostMemory()
        self.lanes: dict[str, Lane] = {}
        self.paths: dict[str, Path] = {}
        self.connections: set[Connection] = set()
        self.stopping = False
        self.sources = Sources(config)
        self.ways = Ways(self)
        self.foresight = Foresight(self)
        self.connecting = Connecting(self)
        self.dispatch = Dispatch(self)
        self.pacing = Pacing(self)
        self.adapting = Adapting(self)
        self.holds = Holds(self)
        self.breakers = Breakers(self)
        self.keeper = PathKeeper(self)
        self.protection = Protection(self)
        self.reactions = Reactions(self)
        self.controls = Controls(self)
        self.ageing = Ageing(self, self.dispatch.conclude)
        self.deadlines = Deadlines(self, self.dispatch.conclude)
        self._bringing: set[int] = set()  # shards that are being looked through for what is due too late
        self._alarm = self.hub.event()
        self.empty = self.hub.event()  # it stops, and the last connection has ended
        self.configure(config)

    def configure(self, config: Config, router: Router | None = None) -> None:
        """Take a new configuration; connections under way go on as they were begun."""
        self.config = config
        self.router = router or self.router
        self.settler.config = config
        before = self.sources
        self.sources = Sources(config, before.all)
        self.sources.changed = {name for name in {"", *before.pools, *config.pools}
                                if self.sources.pool(name) != before.pool(name)}
        self.weights = {name: tenant.weight for name, tenant in config.tenants.items()}
        self.scheduler.configure(config.memory)
        self.reactions.configure()
        self.protection.configure(config)
        self.ways.configure()
        self.foresight.configure()
        self.pacing.configure()
        for source in self.sources.all.values():
            source.look()
            if source.lost or source.absent:
                self.keeper.miss(source)

    def start(self) -> None:
        """Begin: find what is due in the stores, and keep time."""
        for shard, store in self.stores.items():
            store.on_checkpoint = partial(self._checkpointed, shard)
            if store.last_id >> SHARD_BITS > self.clock_us():  # it was set back while nobody watched
                self._bring_forward(shard)
        self.settler.watch.on_step = self._clock_was_set
        self.hub.spawn(self._keep_time)
        self.hub.spawn(self.ageing.run)
        self.deadlines.start()
        if not self.pacing.has_begun:  # else that was waited for
            self.pacing.begin()
        self.holds.start()
        self.keeper.start()
        self._alarm.set()

    def stop(self) -> Event:
        """Take no more deliveries. The event is set when the last connection has ended."""
        self.stopping = True
        for connection in list(self.connections):
            connection.stopping = True
            if not connection.jobs:
                connection.wake()
        if not self.connections:
            self.empty.set()
        return self.empty

    def choked(self) -> bool:
        """Whether outcomes cannot be written down: what is delivered now would be delivered again after a crash."""
        for store in self.stores.values():  # noqa: SIM110 - asked for every message, and a generator costs
            if store.choked:
                return True
        return False

    # -- the scheduler's I/O -------------------------------------------------------------------------------------

    def load(self, queue: Queue, limit: int) -> None:
        """Scheduler: read what is due of `queue`."""
        exclude = {delivery.key for delivery in queue.ready}
        exclude.update(queue.in_flight)
        self.stores[queue.shard].load_due(
            queue.name, self.clock_us(), limit, exclude,
            lambda deliveries, next_us: self.scheduler.loaded(queue, deliveries, next_us))

    def scan(self, shard: int, after: bytes, limit: int) -> None:
        """Scheduler: read the next queues in the order of their due time."""
        self.stores[shard].due_queues(after, limit, partial(self._scanned, shard))

    def _scanned(self, shard: int, found: list[tuple[int, str]], last: bytes | None) -> None:
        if found and self._latest_due_us() < found[-1][0] < HELD_US:
            self._bring_forward(shard)
        self.scheduler.scanned(shard, found, last)

    def _checkpointed(self, shard: int, touched: Touched) -> None:
        """The store's report, a part in each turn: one message may have brought as many queues as it had recipients.
        The rest may come behind the next report: what is no longer true wakes a queue for nothing."""
        self.scheduler.checkpoint(shard, touched[:REPORT])
        if len(touched) > REPORT:
            self.hub.later(0.0, self._checkpointed, shard, touched[REPORT:])

    def alarm(self) -> None:
        """Scheduler: something is due sooner than was known."""
        self._alarm.set()

    def part_of(self, queue: Queue) -> str:
        """Scheduler: what `queue` shares memory with. Hot path."""
        return self.ways.part_of(queue)

    def stands_still(self, name: str) -> int:
        """Scheduler: until when nothing of the queue `name` may go, as far as is known; 0: it may."""
        now_us, domain = self.clock_us(), domain_of(name)
        order = self.controls.held(name)
        if order is not None:
            return order.until_us or now_us + LONG_US
        lane = self.ways.lane_of(domain, self.controls.pool_of(name))
        until_us = self._stands_still(lane) if lane is not None else 0
        if self.holds.on_queues:
            found = self.holds.suspension((f"domain:{domain}", f"tenant:{tenant_of(name)}"))
            return until_us if found is None else max(until_us, found[1].until_us)
        return until_us

    def _stands_still(self, lane: Lane) -> int:
        """Until when all paths of `lane` stand still; 0: one does not. A path that was forgotten, as it had nothing to
        do, knows nothing of what was decided since: the holds do."""
        now_us, untils = self.clock_us(), []
        for path, weight in zip(lane.paths, lane.weights, strict=True):
            if not weight:
                continue
            if self.paths.get(path.name) is path:
                until_us = path.suspended_until_us
            else:
                found = self.holds.suspension(names_of(path))
                until_us = found[1].until_us if found is not None else 0
            if until_us <= now_us:
                return 0
            untils.append(until_us)
        return min(untils, default=0)

    def offer(self, queue: Queue) -> None:
        """Scheduler: `queue` has deliveries in memory. Hot path."""
        if queue.book is not self.controls.book and not self.controls.admits(queue):
            return
        lane = queue.lane
        if isinstance(lane, Lane) and lane.route is not None and lane.route.expires > self.monotonic():
            self.ways.bring(queue, lane)
        else:
            self.ways.find(queue)

    def withdraw(self, queue: Queue) -> None:
        """Scheduler: `queue` has nothing in memory any more."""
        if isinstance(queue.lane, Lane):
            queue.lane.turns.discard(queue)

    # -- time ----------------------------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        while True:
            soonest_us = self.scheduler.next_wake_us()
            wait_s = None if soonest_us == FOREVER_US else max((soonest_us - self.clock_us()) / 1e6, 0.0)
            self._alarm.wait(LOOK_S if wait_s is None else min(wait_s, LOOK_S))
            self._alarm.clear()
            try:
                self.settler.watch.look()
                while self.scheduler.run():
                    self.hub.sleep(0)
            except Exception:
                log.exception("bug: queues whose time has come")
                self.hub.sleep(1.0)

    def _clock_was_set(self, step_us: int) -> None:
        """The wall clock is another one now (`mta.delivery.clock` has the rules)."""
        log.warning("the clock was set %s by %.0f s", "forward" if step_us > 0 else "back", abs(step_us) / 1e6)
        for path in self.paths.values():
            if path.suspended_until_us:
                path.suspended_until_us += step_us
        self.scheduler.repark(lambda name, until_us: until_us + step_us)
        self.holds.clock_was_set()
        self.deadlines.clock_was_set()
        if step_us < 0:
            for wait_s in LOOKS_FOR_LATE_S:
                for shard in self.stores:
                    self.hub.later(wait_s, self._bring_forward, shard)

    def _latest_due_us(self) -> int:
        return self.clock_us() + int(self.config.shaping.longest_wait_s * 1_000_000)

    def _bring_forward(self, shard: int, start: bytes = b"") -> None:
        """Find the deliveries that are due later than the retry schedule can say, and let them wait less long."""
        if start or shard not in self._bringing:
            self._bringing.add(shard)
            self.stores[shard].due_after(self._latest_due_us(), start, BRING_BATCH, partial(self._found_late, shard))

    def _found_late(self, shard: int, deliveries: list[Delivery], go_on: bytes | None) -> None:
        now_us = self.clock_us()
        late = [one for one in deliveries if not one.message.is_held(now_us)]
        self.controls.sweeps.unsettle(shard)
        for queue, delivery in self.scheduler.take(shard, late):
            self.dispatch.conclude(queue, delivery, partial(self.settler.bring_forward, delivery))
        self._bringing.discard(shard)
        if go_on is not None:
            self._bring_forward(shard, go_on)
