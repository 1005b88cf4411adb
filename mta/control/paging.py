"""A worker's part of `mta explain` for all mail, or what a filter means: page by page, each in a bounded time.

The place between two pages is `SHARD:QUEUE:START`, in the order of the index (`mta.queue.sweeping`): nothing is kept
here. Mail that comes or goes meanwhile may be told or not. Causes are told without reading what need not be read: a
queue that is paused or stands still as a whole is one number, and so is what is due of any queue.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Final

from mta.control.causes import MOST, Causes, Page
from mta.control.explaining import delivery_row
from mta.delivery import explain
from mta.delivery.sweeps import ask
from mta.queue import sweeping
from mta.queue.encoding import QueueInfo
from mta.queue.filter import Filter, QueueFacts
from mta.queue.ids import format_id
from mta.queue.orders import facts_of, queue_facts

if TYPE_CHECKING:
    from mta.control.worker import Worker

PAGE_S: Final = 0.5  # a page ends after that
TURN_S: Final = 0.002  # and others have their turn meanwhile
LINES_MAX: Final = 4_000_000  # bytes of a page
NAMES: Final = 200  # queues read at once
PIECE: Final = 100  # deliveries
COUNTED: Final = 20_000  # keys


class Paging:
    """Makes one page."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._engine = worker.engine
        self._now_us = self._engine.clock_us()
        self._began_s = self._turn_s = self._engine.monotonic()
        self._causes = Causes()
        self._lines: list[str] = []
        self._size = 0
        self._told = 0

    def answer(self, expression: Filter | None, after: str, causes: bool) -> Page:
        """The page behind `after` ("": the first): causes, or lines. Waits. Raises ValueError."""
        first, key, start = _place(after)
        for shard in sorted(shard for shard in self._worker.stores if shard >= first):
            place = self._shard(shard, key, start, expression, causes)
            if place is not None:
                return self._page(f"{shard}:{place[0].hex()}:{place[1].hex()}")
            key = start = b""
        return self._page("")

    def _page(self, after: str) -> Page:
        return Page(after, self._told, "".join(self._lines).encode(), self._causes.rows)

    def _is_full(self) -> bool:
        return (self._engine.monotonic() - self._began_s > PAGE_S or self._size > LINES_MAX
                or len(self._causes) >= MOST)

    def _rest(self) -> None:
        """Let others have their turn, now and then."""
        now_s = self._engine.monotonic()
        if now_s - self._turn_s > TURN_S:
            self._engine.hub.sleep(0)
            self._turn_s = self._engine.monotonic()

    def _shard(self, shard: int, after: bytes, start: bytes, expression: Filter | None, causes: bool
               ) -> tuple[bytes, bytes] | None:
        """Go on behind the queue `after`, of which what comes from `start` on is left. Where the next one goes on; None
        at the end."""
        store, engine = self._worker.stores[shard], self._engine
        by_provider = expression is not None and "provider" in expression.fields
        if start:  # the queue itself once more
            after = max(int.from_bytes(after, "big") - 1, 0).to_bytes(len(after), "big")
        last: bytes | None = after
        while last is not None:
            queues, last, _ = ask(store.sweep_queues, after, NAMES)
            known = engine.controls.sweeps.providers([info.name for _, info in queues]) if by_provider else {}
            asked = []
            for key, info in queues:
                facts = queue_facts(info.name, known.get(info.name))
                asked.append((key, info, facts, expression.of_queue(facts) if expression is not None else True))
            explain.foresee(engine, [info.name for _, info, _, verdict in asked if verdict is not False], in_list=True)
            for key, info, facts, verdict in asked:
                if verdict is not False:
                    left = self._queue(shard, key, info, start, causes, facts, expression if verdict is None else None)
                    if left is not None:
                        return key, left
                start = b""
                after = key
                self._rest()
                if self._is_full():
                    return (after, b"") if last is not None or key != queues[-1][0] else None
            after = last if last is not None else after
        return None

    def _queue(self, shard: int, key: bytes, info: QueueInfo, start: bytes, causes: bool, facts: QueueFacts,
               expression: Filter | None) -> bytes | None:
        """One queue from `start` on. Where it goes on when the page is full; None when all of it was told."""
        engine, store = self._engine, self._worker.stores[shard]
        look = explain.Look(engine, shard, info.name)
        place: bytes | None = start
        if causes and not start and expression is None and not self._asks_each(facts):
            if look.whole()[0] in ("paused", "suspended"):
                self._count_whole(look, info)
                return None
            place = self._count_due(shard, key, look, info)
        while place is not None:
            found: sweeping.Piece = ask(store.sweep_queue, key, place, PIECE)[0]
            for one in (*found.deliveries, *found.changing):
                if expression is None or expression.matches(facts, facts_of(one, self._now_us)):
                    self._told += 1
                    state, reasons = look.of(one)
                    if causes:
                        self._causes.count(explain.main_of(state, reasons), info.name,
                                           f"{format_id(one.message.id)}/{one.index}", len(one.recipients))
                    else:
                        line = json.dumps(dataclasses.asdict(delivery_row(engine, one, state, reasons))) + "\n"
                        self._lines.append(line)
                        self._size += len(line)
                self._rest()
            place = found.last
            if place is not None and self._is_full():
                return place
        return None

    def _asks_each(self, facts: QueueFacts) -> bool:
        book = self._engine.controls.book
        return book is not None and any(one.order.kind != "reroute" for one in book.ruling(facts, self._now_us).each)

    def _count_whole(self, look: explain.Look, info: QueueInfo) -> None:
        """All of a queue that nothing of may go."""
        flying = min(look.in_flight, info.deliveries)
        if info.deliveries > flying:
            share = info.recipients * (info.deliveries - flying) // info.deliveries
            self._causes.count(explain.main_of(*look.whole()), info.name, info.name, share, info.deliveries - flying)
        if flying:
            self._causes.count(explain.in_flight(flying), info.name, info.name, flying, flying)
        self._told += info.deliveries

    def _count_due(self, shard: int, key: bytes, look: explain.Look, info: QueueInfo) -> bytes | None:
        """What is due of a queue, all at once; where the rest begins, None when that was all."""
        count, rest = ask(self._worker.stores[shard].sweep_due, key, self._now_us, COUNTED)
        flying = min(look.in_flight, count)
        if flying:
            self._causes.count(explain.in_flight(flying), info.name, info.name, flying, flying)
        if count > flying:
            self._causes.count(explain.main_of(*look.due()), info.name, info.name, count - flying, count - flying)
        self._told += count
        place: bytes | None = rest
        return place


def _place(after: str) -> tuple[int, bytes, bytes]:
    if not after:
        return 0, b"", b""
    shard, key, start = after.split(":")
    return int(shard), bytes.fromhex(key), bytes.fromhex(start)
