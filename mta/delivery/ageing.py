"""Mail that grows old while nothing tries it, such as that of a site that stays dead: its senders are warned when it is
late (`bounces.delay_warning`), and it is given up in the end (`expires`).

Once a minute each shard is asked for mail that has become old enough, the oldest first. What is given up is gone; for
warnings the store remembers, over restarts too, up to which message all have been looked at. So each message is read
once for it, and a queue of any length costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from mta.config.schema import Config
from mta.delivery.settle import Verdict
from mta.queue.records import Delivery
from mta.queue.scheduler import Queue
from mta.queue.store import Transaction

if TYPE_CHECKING:
    from mta.delivery.engine import Engine

SWEEP_S: Final = 60.0
BATCH: Final = 500  # deliveries read at once
AT_ONCE: Final = 100  # settled without a break
LOST_S: Final = 600.0  # after which a read has no answer, as of a record that cannot be read
WARNED: Final = b"warned"  # the mark in the store: the key in its index up to which senders have been warned

log = logging.getLogger(__name__)

Conclude = Callable[[Queue, Delivery, Callable[[], Verdict]], object]


class Ageing:
    """Looks after the age of the mail of one engine."""

    def __init__(self, engine: Engine, conclude: Conclude) -> None:
        """`conclude` commits the verdict on a delivery in flight."""
        self._engine = engine
        self._conclude = conclude
        self._config: Config | None = None  # that the following is for
        self._looked: dict[tuple[int, float], bytes] = {}  # by shard and age, up to which message all were looked at
        self._warned: dict[int, bytes] = {}  # by shard, the mark
        self._warning: dict[int, float] = {}  # shards where that is under way, and when they last answered; monotonic

    def run(self) -> None:
        """Sweep for ever."""
        while True:
            self._engine.hub.sleep(SWEEP_S)
            for shard in self._engine.stores:
                try:
                    self.give_up(shard)
                    self.warn(shard)
                except Exception:
                    log.exception("bug: looking for old mail")

    # -- giving up -----------------------------------------------------------------------------------------------

    def give_up(self, shard: int) -> None:
        """Give up the mail of a shard that is too old.

        What is older than the longest age that shaping allows leaves, whatever it is. For each shorter age that it
        allows somewhere the mail is looked at once, when it comes to it.
        """
        engine = self._engine
        if engine.config is not self._config:
            self._config = engine.config
            self._looked.clear()
        *shorter, longest_s = engine.config.shaping.expiries
        before_us = engine.clock_us() - int(longest_s * 1_000_000)
        engine.stores[shard].arrived_before(before_us, BATCH, partial(self._found_expired, shard))
        for expires_s in shorter:
            self._look_at(shard, expires_s)

    def _found_expired(self, shard: int, deliveries: list[Delivery]) -> None:
        taken = self._take_expired(shard, deliveries)
        if taken:
            go_on = partial(self.give_up, shard) if len(deliveries) == BATCH else None
            self._engine.hub.spawn(self._give_up, taken, go_on)

    def _look_at(self, shard: int, expires_s: float) -> None:
        engine = self._engine
        before_us = engine.clock_us() - int(expires_s * 1_000_000)
        engine.stores[shard].arrived_between(
            self._looked.get((shard, expires_s), b""), before_us, BATCH, partial(self._found_aged, shard, expires_s))

    def _found_aged(self, shard: int, expires_s: float, deliveries: list[Delivery], looked_to: bytes | None) -> None:
        engine = self._engine
        now_us = engine.clock_us()
        if any(not engine.settler.is_older(one.message, expires_s, now_us) for one in deliveries):
            looked_to = None  # the clock was set forward: these are to be read again
        if looked_to is not None:
            # Those in flight are given up by their next attempt, or when they are older than anything may be.
            self._looked[shard, expires_s] = looked_to
        go_on = partial(self._look_at, shard, expires_s) if looked_to is not None and len(deliveries) == BATCH else None
        self._engine.hub.spawn(self._give_up, self._take_expired(shard, deliveries), go_on)

    def _take_expired(self, shard: int, deliveries: list[Delivery]) -> list[tuple[Queue, Delivery]]:
        """All at once: giving them up waits for the disk, and meanwhile nobody else may end them."""
        engine = self._engine
        now_us = engine.clock_us()
        return engine.scheduler.take(shard, [one for one in deliveries if engine.settler.expired(one, now_us)])

    def _give_up(self, taken: list[tuple[Queue, Delivery]], go_on: Callable[[], None] | None) -> None:
        for count, (queue, delivery) in enumerate(taken, 1):
            self._conclude(queue, delivery, partial(self.expire, delivery))
            if count % AT_ONCE == 0:
                self._engine.hub.sleep(0)
        if go_on is not None:
            go_on()

    def expire(self, delivery: Delivery) -> Verdict:
        """The verdict on mail that is given up."""
        return self._engine.settler.expire(delivery, self.reason(delivery))

    # -- warning -------------------------------------------------------------------------------------------------

    def warn(self, shard: int) -> None:
        """Warn the senders of mail that is late and has not been looked at for it."""
        bounces = self._engine.config.bounces
        if bounces.delay_warning is None or not bounces.send:
            return
        now_s = self._engine.monotonic()
        if now_s - self._warning.get(shard, -LOST_S) < LOST_S:
            return
        self._warning[shard] = now_s
        if shard in self._warned:
            self._look(shard)
        else:
            self._engine.stores[shard].has_mark(WARNED, partial(self._begin, shard))

    def _begin(self, shard: int, mark: bytes | None) -> None:
        self._warned[shard] = mark or b""
        self._look(shard)

    def _look(self, shard: int) -> None:
        engine = self._engine
        wait_s = engine.config.bounces.delay_warning
        if wait_s is None:  # a reload has turned it off
            self._warning.pop(shard, None)
            return
        self._warning[shard] = engine.monotonic()
        before_us = engine.clock_us() - int(wait_s * 1_000_000)
        engine.stores[shard].arrived_between(
            self._warned[shard], before_us, BATCH, partial(self._found_late, shard))

    def _found_late(self, shard: int, deliveries: list[Delivery], looked_to: bytes | None) -> None:
        settler, scheduler = self._engine.settler, self._engine.scheduler
        now_us = self._engine.clock_us()
        if any(not settler.late(one, now_us) for one in deliveries):
            looked_to = None  # the clock was set forward: these are to be read again
        wanted = [one for one in deliveries if settler.wants_warning(one, now_us)]
        # Those in flight are warned of by `Settler.settle` if they fail.
        idle = scheduler.take(shard, wanted)
        waiting = scheduler.take_waiting(shard, wanted)
        self._engine.hub.spawn(self._warn, shard, idle, waiting, looked_to)

    def _warn(self, shard: int, idle: list[tuple[Queue, Delivery]], waiting: list[tuple[Queue, Delivery]],
              looked_to: bytes | None) -> None:
        """`idle` go back to the disk, `waiting` to their places in memory."""
        for again, taken in ((False, idle), (True, waiting)):
            for count, (queue, delivery) in enumerate(taken, 1):
                self._conclude(queue, delivery, partial(self.tell, delivery, again))
                if count % AT_ONCE == 0:
                    self._engine.hub.sleep(0)
        if looked_to is None:
            self._warning.pop(shard, None)
            return
        self._warned[shard] = looked_to
        self._engine.stores[shard].submit(Transaction(marks=[(WARNED, looked_to)]))
        self._look(shard)

    def tell(self, delivery: Delivery, again: bool) -> Verdict:
        """The verdict on mail whose sender is told that it is late. `again`: it goes back to its place in memory."""
        return self._engine.settler.warn(delivery, self.reason(delivery), again)

    def reason(self, delivery: Delivery) -> str:
        """Why it waits, as far as its lane knows."""
        engine = self._engine
        lane = engine.ways.lane_of(delivery.domain, engine.controls.pool_of(delivery.queue))
        return lane.reason if lane is not None else ""
