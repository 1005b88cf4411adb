"""The operator's hand in a worker: which mail may be tried, by which pool, and what is ended instead.

The engine asks in few places, and pays one comparison where there are no orders:

    offer, bring    may this queue be tried, and by which pool (`admits`)? One that is held leaves memory until released
    next_job        the same when the orders have changed since; of queues where it depends on the delivery, `stops`
    direct          what is accepted or deferred is written into the queue that reroutes of single deliveries want it in

A queue keeps the decision with the book of orders that it was made by. A new book is in force the moment that it is in
place; what is in memory is then looked through in pieces, to let go what is held and to wake what was released.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from gevent.event import AsyncResult
from gevent.lock import RLock

from mta.delivery.pathstate import Hold, PathState
from mta.delivery.settle import Verdict
from mta.delivery.sweeps import Sweeps, ask
from mta.queue import events
from mta.queue import scheduler as names
from mta.queue.filter import QueueFacts
from mta.queue.ids import SHARD_BITS
from mta.queue.orders import ENDS, HELD_US, Book, Change, Meant, Order, Orders, facts_of, queue_facts
from mta.queue.records import Delivery, detour
from mta.queue.scheduler import Queue
from mta.queue.store import Transaction

if TYPE_CHECKING:
    from mta.delivery.engine import Engine

OPERATOR: Final = "operator"
LONG_US: Final = 10 * 365 * 86_400 * 1_000_000  # of what has no end
AT_ONCE: Final = 200  # queues looked at without a break
TOLD: Final = b"order/told"  # mark: the serial up to which changes have been told as events
SETTLE_S: Final = 2.0  # how long a confirmation waits for what is in flight
LOOK_S: Final = 0.02

log = logging.getLogger(__name__)


class Controls:
    """The orders of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.orders = Orders()
        self.book: Book | None = None  # None: no order is about any queue
        self.sweeps = Sweeps(engine)
        self._before: list[Book] = []  # books whose effects in memory have not been looked through
        self._looking = False
        self._taking = RLock()

    # -- what the engine asks ------------------------------------------------------------------------------------

    def admits(self, queue: Queue) -> bool:
        """Whether `queue` may be tried the way it is. If not, it has been parked, or brought to where it belongs."""
        book = self.book
        if book is None:
            pool = None
            queue.each = ()
            queue.book = None
        else:
            ruling = book.ruling(queue_facts(queue.name, self._provider(queue.domain)), self._engine.clock_us())
            if ruling.held is not None:
                queue.book = None
                self._park(queue, ruling.held)
                return False
            queue.each = ruling.each
            queue.book = None if ruling.open else book
            pool = ruling.pool
        if pool is None:
            pool = names.pool_of(queue.name)
        if pool == queue.pool:
            return True
        self._engine.withdraw(queue)
        queue.lane = None
        queue.go_by(pool)
        if queue.ready:
            self._engine.offer(queue)
        return False

    def stops(self, queue: Queue, delivery: Delivery) -> bool:
        """Whether an order keeps `delivery`, whose turn has come, from being tried; then that is done. For queues with
        orders to be asked of `each`."""
        now_us = self._engine.clock_us()
        facts = None
        for one in queue.each:
            order, message = one.order, delivery.message
            if (one.message and one.message != message.id) or not order.in_force(now_us):
                continue
            is_end = order.kind in ENDS
            if is_end and message.id > self.sweeps.bound(queue.shard, order.number):
                continue
            facts = facts or queue_facts(queue.name, self._provider(queue.domain))
            if not one.filter.matches(facts, facts_of(delivery, order.at_us if is_end else now_us)):
                continue
            does = is_end or order.kind == "reroute"
            work = partial(self.sweeps.carry_out, order, delivery) if does else partial(_hold, delivery)
            self._engine.dispatch.conclude(queue, delivery, work)
            return True
        return False

    def direct(self, deliveries: Iterable[Delivery]) -> bool:
        """Put deliveries that are about to be written, and are in no window, into the queues that reroutes want them
        in. Whether one has got another queue. A bug here costs none its acceptance or outcome: they stay where they
        are, and `stops` looks again. Hot path."""
        book = self.book
        if book is None or not book.has_detours:
            return False
        now_us, moved = self._engine.clock_us(), False
        try:
            for one in deliveries:
                order = book.detour(self._facts(one.queue), one, now_us)
                if order is not None:
                    one.queue = detour(one.queue, order.number)
                    moved = True
        except Exception:
            log.exception("bug: deliveries that may be rerouted")
        return moved

    def pool_of(self, name: str) -> str:
        """The pool that a queue goes by."""
        order = self.rerouted(name)
        return names.pool_of(name) if order is None else order.pool

    def rerouted(self, name: str) -> Order | None:
        """The order by whose pool a queue goes."""
        if self.book is None:
            return None
        return self.book.ruling(self._facts(name), self._engine.clock_us()).reroute

    def held(self, name: str, delivery: Delivery | None = None) -> Order | None:
        """The order that holds a queue, or one delivery of it."""
        if self.book is None:
            return None
        facts, now_us = self._facts(name), self._engine.clock_us()
        if delivery is not None:
            return self.book.holds_singly(facts, delivery, now_us)
        return self.book.ruling(facts, now_us).held

    def _facts(self, name: str) -> QueueFacts:
        return queue_facts(name, self._provider(names.domain_of(name)) if self.book is not None else None)

    def _provider(self, domain: str) -> str | None:
        return self._engine.settler.provider_of(domain)

    def _park(self, queue: Queue, order: Order) -> None:
        self._engine.scheduler.park(queue, order.until_us or self._engine.clock_us() + LONG_US)

    # -- new orders ----------------------------------------------------------------------------------------------

    def begin(self, orders: Orders) -> None:
        """The orders that stand when the worker starts, before anything is tried. Waits for the disk."""
        with self._taking:
            self._free_forgotten(orders)
            self.sweeps.forget_others({one.number for one in orders.orders})
            self._take(orders, restart=True)
            if 0 in self._engine.stores:
                self._tell(orders.changes, ask(self._engine.stores[0].has_mark, TOLD)[0])

    def take(self, orders: Orders) -> int:
        """Obey these from now on. When it returns that is durable; the number of deliveries in flight that are meant by
        new orders and could not be waited for. Waits."""
        with self._taking:
            if orders.serial <= self.orders.serial:
                return 0
            known = {one.number for one in self.orders.orders}
            changes = [one for one in orders.changes if one.serial > self.orders.serial]
            self._take(orders, restart=False)
            self._tell(changes, None)
        return self._wait_for_flights({one.number for one in orders.orders} - known)

    def _take(self, orders: Orders, restart: bool) -> None:
        old, new = self.orders, Book(orders)
        sweeps = [one for one in new.meant.values() if one.is_swept]
        waits: list[AsyncResult] = []
        self.sweeps.keep({one.order.number for one in sweeps})
        for one in sweeps:
            waits += self.sweeps.adopt(one, self._last_id, restart)
        self.orders = orders
        if self.book is not None or not new.is_empty:
            self._before.append(self.book or Book(Orders()))
        self.book = None if new.is_empty else new
        for path in list(self._engine.paths.values()):
            if path.claims:
                self._engine.dispatch.return_claims(path)
        self._hold_targets(old.orders, orders.orders)
        if self._before and not self._looking:
            self._looking = True
            self._engine.hub.spawn(self._look_through)
        for durable in waits:
            durable.get()
        self.sweeps.start()
        for one in sweeps:
            if one.order.now and not restart and one.order.number > old.serial:
                self._engine.hub.spawn(self._probe_now, one)

    def _last_id(self, shard: int) -> int:
        """The largest message id so far, or by the clock: what comes later has a larger one."""
        newest = self._engine.settler.watch.newest_ids().get(shard, 0)
        return max(newest, self._engine.clock_us() << SHARD_BITS)

    def _tell(self, changes: Iterable[Change], told: bytes | None) -> None:
        """Events for what was ordered, each once: the worker of the first shard tells."""
        stores = self._engine.stores
        if 0 not in stores:
            return
        after = int(told) if told is not None else 0
        fresh = [one for one in changes if one.serial > after]
        if fresh:
            stores[0].submit(Transaction(
                events=[events.order(one) for one in fresh], marks=[(TOLD, b"%d" % fresh[-1].serial)]))

    def _wait_for_flights(self, numbers: set[int]) -> int:
        """Wait for what is in flight and meant by new orders to come to its end, for a short time. How many are left.

        It looks, as no delivery knows who waits for it, and an operator does so seldom.
        """
        meant = [one for number, one in (self.book.meant if self.book else {}).items()
                 if number in numbers and one.order.kind != "release" and one.order.kind not in ("retry", "reroute")]
        if not meant:
            return 0
        now_us = self._engine.clock_us()
        flying: list[tuple[Queue, Delivery]] = []
        for count, queue in enumerate(list(self._engine.scheduler.queues.values()), 1):
            if queue.in_flight:
                facts = queue_facts(queue.name, self._provider(queue.domain))
                for one in meant:
                    if one.filter.of_queue(facts) is not False:
                        flying += [(queue, delivery) for delivery in queue.in_flight.values()
                                   if one.filter.matches(facts, facts_of(delivery, now_us))]
            if count % AT_ONCE == 0:
                self._engine.hub.sleep(0)
        looks = int(SETTLE_S / LOOK_S)
        while looks and (flying := [one for one in flying if one[0].in_flight.get(one[1].key) is one[1]]):
            self._engine.hub.sleep(LOOK_S)
            looks -= 1
        return len(flying)

    def _look_through(self) -> None:
        """Let go what is held, and wake what was released, in pieces."""
        scheduler = self._engine.scheduler
        while self._before:
            before, self._before = self._before, []
            book = self.book
            for count, queue in enumerate(list(scheduler.queues.values()), 1):
                if scheduler.queues.get((queue.shard, queue.name)) is queue and queue.book is not self.book \
                        and queue.ready:
                    self.admits(queue)
                if count % AT_ONCE == 0:
                    self._engine.hub.sleep(0)
            awake = set()
            for count, name in enumerate(scheduler.parked(), 1):
                if any(_changed(one, book, self._facts(name), self._engine.clock_us()) for one in before):
                    awake.add(name)
                if count % AT_ONCE == 0:
                    self._engine.hub.sleep(0)
            now_us = self._engine.clock_us()
            scheduler.repark(lambda name, until_us: now_us if name in awake else until_us)  # noqa: B023 - called now
        self._looking = False

    def _probe_now(self, found: Meant) -> None:
        """`mta retry --now`: paths that stand still for their failures get another chance at once."""
        engine = self._engine
        paths: set[str] = set()  # by name: a lane that has nothing to do is forgotten, and a path does not know it then
        for count, name in enumerate(engine.scheduler.parked(), 1):
            if found.filter.of_queue(self._facts(name)) is not False:
                lane = engine.ways.likely_lane_of(names.domain_of(name), self.pool_of(name))
                if lane is not None:
                    paths.update(path.name for path in lane.paths)
            if count % AT_ONCE == 0:
                self._engine.hub.sleep(0)
        engine.keeper.free("site", lambda path: path.name in paths)

    # -- paths and the like --------------------------------------------------------------------------------------

    def _hold_targets(self, old: Iterable[Order], new: Iterable[Order]) -> None:
        """Write suspensions and limits into the table that all workers share. Each does; the first one counts."""
        before, after = _targets(old), _targets(new)
        changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        for name in changed:
            self._engine.limits.update(name, partial(_with_holds, after.get(name, ()), self._engine.clock_us()))
        self._engine.holds.changed(changed)

    def _free_forgotten(self, orders: Orders) -> None:
        """What an operator ended while nobody was there to take it out of the table."""
        wanted = _targets(orders.orders)
        for name, state in list(self._engine.limits.states()):
            if name not in wanted and any(hold.by == OPERATOR for hold in state.holds):
                self._engine.limits.update(name, partial(_with_holds, (), self._engine.clock_us()))


def _hold(delivery: Delivery) -> Verdict:
    """No look at what is due finds it any more, until it is released."""
    delivery.due_us += HELD_US
    return Verdict(updates=[delivery])


def _changed(before: Book, after: Book | None, facts: QueueFacts, now_us: int) -> bool:
    """Whether a parked queue has to be looked at again: it is not held any more, or goes another way."""
    old = before.ruling(facts, now_us)
    if after is None:
        return old.held is not None or old.pool is not None or old.open
    new = after.ruling(facts, now_us)
    return (old.held is not None and new.held is None) or old.pool != new.pool or old.open


def _targets(orders: Iterable[Order]) -> dict[str, tuple[Order, ...]]:
    found: dict[str, tuple[Order, ...]] = {}
    for one in orders:
        if one.target:
            found[one.target] = (*found.get(one.target, ()), one)
    return found


def _with_holds(orders: Iterable[Order], now_us: int, state: PathState) -> PathState:
    """`state` with these orders and no others."""
    state = state.without(OPERATOR)
    for one in orders:
        until_us = one.until_us or one.at_us + LONG_US
        reason = one.reason or f"order {one.number} of {one.by}"
        if not one.in_force(now_us):
            continue
        if one.kind == "suspend":
            state = state.with_hold(Hold("all", until_us, OPERATOR, reason, one.at_us))
        if one.connections is not None:
            state = state.with_hold(Hold("connections", until_us, OPERATOR, reason, one.at_us, float(one.connections)))
        if one.rate is not None:
            state = state.with_hold(Hold("rate", until_us, OPERATOR, reason, one.at_us, one.rate))
    return state
