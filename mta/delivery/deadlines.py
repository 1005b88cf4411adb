"""Mail that is to be delivered by a time (DELIVERBY, RFC 2852): then it is returned (mode R), or its sender is told
that it is late and it goes on (mode N).

Such mail may be anywhere then: in memory, in the index, behind a site that stands still. So its time is kept apart from
its schedule, as a mark in the store that is committed with the message, in the order of times. One timer for each shard
waits for the first of them. A mark goes when all of its message was seen to. What is in flight at that moment, or left
alone because of a bug, is looked at again a little later; a look that the store does not answer is begun anew.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from mta.delivery.hub import Timer
from mta.delivery.settle import Verdict
from mta.queue.records import Delivery, Message
from mta.queue.scheduler import Queue
from mta.queue.store import Transaction
from mta.queue.sweeping import Piece
from mta.queue.transaction import Done

if TYPE_CHECKING:
    from mta.delivery.engine import Engine

PREFIX: Final = b"by/"
_KEY: Final = struct.Struct(">3sQQ")  # PREFIX, time in microseconds, message
BATCH: Final = 100  # messages looked at together
AGAIN_S: Final = 2.0  # before mail that was in flight is looked at again
LOST_S: Final = 60.0  # after which a look that had no end has none: a record that cannot be read has no answer
NEVER_US: Final = 1 << 62

Conclude = Callable[[Queue, Delivery, Callable[[], Verdict]], bool]


def mark(message: Message) -> list[tuple[bytes, bytes]]:
    """The mark to be committed with `message`; none when it has no time, or that was over when it came (RFC 2852 4:
    then somebody else has told its sender)."""
    by_us = 0 if message.wishes is None else message.wishes.by_us
    return [(_KEY.pack(PREFIX, by_us, message.id), b"")] if by_us > message.arrival_us else []


class Deadlines:
    """Keeps the times of the mail of one engine."""

    def __init__(self, engine: Engine, conclude: Conclude) -> None:
        """`conclude` commits the verdict on a delivery in flight; False when a bug kept it from that."""
        self._engine = engine
        self._conclude = conclude
        self._next_us: dict[int, int] = {}  # by shard, when it is looked at; 0 while it is
        self._came_us: dict[int, int] = {}  # by shard, the soonest of what came while it was looked at
        self._looks: dict[int, _Look] = {}  # by shard, the last one
        self._timers: dict[int, Timer] = {}

    def start(self) -> None:
        """Find the first time of each shard."""
        for shard in self._engine.stores:
            self._look(shard)

    def accepted(self, shard: int, message: Message) -> None:
        """`message`, which has wishes, is in the store of `shard`."""
        by_us = 0 if message.wishes is None else message.wishes.by_us
        if by_us <= message.arrival_us:
            return
        next_us = self._next_us.get(shard, NEVER_US)
        if next_us == 0:
            self._came_us[shard] = min(by_us, self._came_us.get(shard, NEVER_US))
        elif by_us < next_us:
            self._arm(shard, by_us)

    def clock_was_set(self) -> None:
        """The wall clock is another one now."""
        for shard, next_us in list(self._next_us.items()):
            if next_us:
                self._arm(shard, min(next_us, self._engine.clock_us()))

    def _arm(self, shard: int, at_us: int) -> None:
        if shard in self._timers:
            self._timers.pop(shard).cancel()
        at_us = min(at_us, self._came_us.pop(shard, NEVER_US))
        self._next_us[shard] = at_us
        if at_us < NEVER_US:
            wait_s = max((at_us - self._engine.clock_us()) / 1_000_000, 0.0)
            self._timers[shard] = self._engine.hub.later(wait_s, self._due, shard)

    def _due(self, shard: int) -> None:
        self._timers.pop(shard, None)
        self._look(shard)

    def _look(self, shard: int) -> None:
        look = self._looks[shard] = _Look()
        if shard in self._timers:
            self._timers.pop(shard).cancel()
        self._timers[shard] = self._engine.hub.later(LOST_S, self._lost, shard, look)
        self._next_us[shard] = 0
        self._engine.stores[shard].list_marks(PREFIX, BATCH, partial(self._found, shard, look))

    def _lost(self, shard: int, look: _Look) -> None:
        self._unmark(shard, look)
        self._due(shard)

    def _found(self, shard: int, look: _Look, marks: list[tuple[bytes, bytes]]) -> None:
        if self._looks[shard] is not look:
            return
        now_us = self._engine.clock_us()
        keys = [key for key, _ in marks if key.startswith(PREFIX)]
        due = [key for key in keys if _KEY.unpack(key)[1] <= now_us]
        if not due:
            self._arm(shard, _KEY.unpack(keys[0])[1] if keys else NEVER_US)
            return
        look.count = len(due)
        for key in due:
            store = self._engine.stores[shard]
            store.sweep_message(_KEY.unpack(key)[2], partial(self._end, shard, key, look))

    def _end(self, shard: int, key: bytes, look: _Look, found: Piece) -> None:
        """The time of a message is over. It runs while the store answers: what it takes nobody else gets."""
        if self._looks[shard] is not look:
            return
        scheduler, settler = self._engine.scheduler, self._engine.settler
        now_us = self._engine.clock_us()
        concerned = [one for one in found.deliveries if _is_concerned(one)]
        wanted = [one for one in concerned if settler.is_past(one.message, now_us)]  # else the clock was set forward
        idle = scheduler.take(shard, wanted)
        waiting = scheduler.take_waiting(shard, wanted)
        is_all = len(idle) + len(waiting) == len(concerned) and not any(map(_is_concerned, found.changing))
        self._engine.hub.spawn(self._conclude_all, shard, look, key if is_all else None, idle, waiting)

    def _conclude_all(self, shard: int, look: _Look, key: bytes | None, idle: list[tuple[Queue, Delivery]],
                      waiting: list[tuple[Queue, Delivery]]) -> None:
        """`key`: of the mark that is of no more use when this is done."""
        ageing, concluded = self._engine.ageing, True
        for again, taken in ((False, idle), (True, waiting)):
            for queue, delivery in taken:
                assert delivery.message.wishes is not None
                if delivery.message.wishes.returns:
                    concluded &= self._conclude(queue, delivery, partial(ageing.expire, delivery))
                else:
                    concluded &= self._conclude(queue, delivery, partial(ageing.tell, delivery, again))
        if key is not None and concluded:
            look.done.append(key)
        look.count -= 1
        if look.count or self._looks[shard] is not look:
            return
        if look.done:
            # The next look when they are gone: while the disk takes nothing it would find them again, at once, always.
            self._timers.pop(shard).cancel()
            self._unmark(shard, look, lambda error: self._look(shard))
        else:  # all in flight
            self._arm(shard, self._engine.clock_us() + int(AGAIN_S * 1_000_000))

    def _unmark(self, shard: int, look: _Look, done: Done | None = None) -> None:
        """Behind what was decided about these messages, so that no mark is gone before."""
        if look.done:
            self._engine.stores[shard].submit(Transaction(unmarks=look.done), done)


class _Look:
    """One look at the times that are over."""

    __slots__ = ("count", "done")

    def __init__(self) -> None:
        self.count = 0  # messages that have not been seen to
        self.done: list[bytes] = []  # keys of marks that are of no more use


def _is_concerned(delivery: Delivery) -> bool:
    """Whether it is to be returned, or its sender told of it; who was told that it is late is told once."""
    wishes = delivery.message.wishes
    return wishes is not None and (wishes.returns or not delivery.warned)
