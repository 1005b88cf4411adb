"""What an operator ordered done to all mail that matches: retry, expire, delete, the release of what was held, and the
move of single deliveries that are rerouted, which an order that stands begins with.

One sweep at a time in each shard, in the order in which they were given, over the index in small pieces with a rest
after each, a long one while the worker is busy, so that other mail goes on. What is done is committed piece by piece,
together with how far the sweep has come: a mark in the store, from which it goes on after a restart. While it lasts,
mail that matches and whose turn comes is ended before it is tried (`Controls.stops`); what was in flight is found by
another pass. Records of the index that cannot be read are passed over and counted. A sweep is about the messages that
were accepted before the shard knew of it; the largest id of those is in the mark, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import gevent.pool
from gevent.event import AsyncResult, Event

from mta.delivery.routing import Route
from mta.delivery.settle import Verdict
from mta.queue import sweeping
from mta.queue.encoding import pack, unpack
from mta.queue.filter import Filter, QueueFacts
from mta.queue.orders import ENDS, HELD_US, Meant, Order, facts_of, queue_facts
from mta.queue.records import Delivery, detour
from mta.queue.scheduler import Queue
from mta.queue.store import StoreError, Transaction

if TYPE_CHECKING:
    from mta.delivery.engine import Engine

NAMES: Final = 500  # queues looked at in one piece
PIECE: Final = 100  # deliveries
REST_S: Final = 0.005  # after a piece at least; else as long as it took
BUSY: Final = 0.3  # share of a rest that the loop works for others: with more, the next one is twice as long,
RESTS: Final = 8  # up to so many times as long as the piece took
AGAIN_S: Final = (0.1, 5.0)  # before another pass, for what was in flight: the first time, at most
ROUTES: Final = 50  # looked up at the same time, for filters that ask for the provider
TROUBLE_S: Final = 60.0  # before a sweep that met a bug is tried again
SURVEY_S: Final = 3.0  # and so many seconds are spent on counting what an order would touch
MARKS: Final = 2000  # read at once; there are not so many orders
MARK: Final = b"order/%d"

Taken = list[tuple[Queue, Delivery]]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """How far one sweep has come in one shard."""

    bound: int  # it is about messages up to this id
    after: bytes = b""  # the key of the queue up to which this pass has come
    again: bool = False  # it met mail that was in flight, or may have missed some: another pass has to follow
    passes: int = 0  # that are complete
    deliveries: int = 0  # done
    recipients: int = 0
    finished: bool = False
    unreadable: int = 0  # records of the index that this pass could not read, or the last one

    def pack(self) -> bytes:
        """For the mark."""
        return pack(astuple(self))

    @classmethod
    def unpack(cls, value: bytes) -> Progress:
        """From the mark."""
        return cls(*unpack(value)[:len(cls.__slots__)])


class Touched(NamedTuple):
    """What an order would touch in one shard."""

    rows: list[tuple[str, int, int]]  # queue, deliveries, recipients
    exact: bool  # it was not cut short


class Sweeps:
    """All sweeps of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.progress: dict[tuple[int, int], Progress] = {}  # by shard and number of the order
        self._meant: dict[int, Meant] = {}
        self._running: set[int] = set()  # shards
        self._rests: float = 1  # how long a rest is, in times of the piece before
        self.quick = False  # without rests, for tests that count and do not measure

    # -- what is to be done --------------------------------------------------------------------------------------

    def adopt(self, meant: Meant, last_id: Callable[[int], int], restart: bool) -> list[AsyncResult]:
        """Take over a sweep, from where it was left if this is a restart. What is returned is to be waited for: then it
        is durable."""
        waits = []
        order = meant.order
        self._meant[order.number] = meant
        for shard, store in self._engine.stores.items():
            if (shard, order.number) in self.progress:
                continue
            value = ask(store.has_mark, MARK % order.number)[0] if restart else None
            if value is not None:
                self.progress[(shard, order.number)] = Progress.unpack(value)
                continue
            progress = self.progress[(shard, order.number)] = Progress(last_id(shard))
            durable: AsyncResult = AsyncResult()
            store.submit(Transaction(marks=[(MARK % order.number, progress.pack())]), durable.set)
            waits.append(durable)
        return waits

    def forget_others(self, numbers: set[int]) -> None:
        """Drop the marks of sweeps that ended while nobody was here."""
        for store in self._engine.stores.values():
            marks: list[tuple[bytes, bytes]] = ask(store.list_marks, b"order/", MARKS)[0]
            old = [key for key, _ in marks if key.startswith(b"order/") and key[6:].isdigit()
                   and int(key[6:]) not in numbers]
            if old:
                store.submit(Transaction(unmarks=old))

    def keep(self, numbers: set[int]) -> None:
        """Forget all sweeps but these."""
        for shard, number in [key for key in self.progress if key[1] not in numbers]:
            del self.progress[(shard, number)]
            self._engine.stores[shard].submit(Transaction(unmarks=[MARK % number]))
        for number in self._meant.keys() - numbers:
            del self._meant[number]

    def start(self) -> None:
        """Begin what is to be done."""
        for shard in self._engine.stores:
            if shard not in self._running and self._next(shard) is not None:
                self._running.add(shard)
                self._engine.hub.spawn(self._run, shard)

    def unsettle(self, shard: int, message_id: int = 0) -> None:
        """Deliveries were made due sooner than they were, or have got another queue: a sweep, which goes by queue and
        due time, may have missed them. The next mark says so, before it can say that their queue was passed: a restart
        in between forgets nothing. `message_id`: the least one of them, where a sweep may be about older mail alone."""
        for (where, _), progress in self.progress.items():
            if where == shard and not progress.finished and message_id <= progress.bound:
                progress.again = True

    def bound(self, shard: int, number: int) -> int:
        """The largest id of a message that the sweep is about; 0 when it is not known."""
        found = self.progress.get((shard, number))
        return found.bound if found is not None else 0

    def _next(self, shard: int) -> int | None:
        return min((number for (where, number), progress in self.progress.items()
                    if where == shard and not progress.finished), default=None)

    def _run(self, shard: int) -> None:
        try:
            while not self._engine.stopping and (number := self._next(shard)) is not None:
                try:
                    self._sweep(shard, self._meant[number], self.progress[(shard, number)])
                except StoreError:
                    return  # it is closed: we stop
                except Exception:
                    log.exception("bug: order %d in shard %d", number, shard)
                    self._engine.hub.sleep(TROUBLE_S)
        finally:
            self._running.discard(shard)

    # -- doing it ------------------------------------------------------------------------------------------------

    def _sweep(self, shard: int, meant: Meant, progress: Progress) -> None:
        """All of one sweep in one shard, as far as it is not done and stays in force."""
        wait_s = AGAIN_S[0]
        while self._goes_on(shard, meant):
            if meant.message:
                self._one_message(shard, meant, progress)
            elif not self._pass(shard, meant, progress):
                return
            progress.passes += 1
            progress.after = b""
            if not progress.again or meant.order.kind == "retry":  # what is being tried need not be tried again
                progress.finished = True
            progress.again = False
            unreadable = progress.unreadable
            if not progress.finished:
                progress.unreadable = 0
            self._commit(shard, meant.order, progress, [])
            if progress.finished:
                if unreadable:
                    log.error("order %d (%s) is done in shard %d but for %d records of the index that cannot be read, "
                              "whatever they say: `mta spool verify`", meant.order.number, meant.order.kind, shard,
                              unreadable)
                return
            self._engine.hub.sleep(0 if self.quick else wait_s)
            wait_s = min(2 * wait_s, AGAIN_S[1])

    def _goes_on(self, shard: int, meant: Meant) -> bool:
        return not self._engine.stopping and (shard, meant.order.number) in self.progress

    def _pass(self, shard: int, meant: Meant, progress: Progress) -> bool:
        """Look at all queues once. False when it was broken off."""
        last: bytes | None = progress.after
        while last is not None:
            queues, last, unreadable = ask(self._engine.stores[shard].sweep_queues, progress.after, NAMES)
            progress.unreadable += unreadable
            known = self.providers([info.name for _, info in queues]) if meant.by_provider else {}
            for key, info in queues:
                facts = queue_facts(info.name, known.get(info.name))
                is_out = meant.filter.of_queue(facts) is False
                if not is_out and not self._one_queue(shard, meant, key, facts, progress):
                    return False
                progress.after = key
            if last is not None:
                progress.after = last
                self._commit(shard, meant.order, progress, [])
        return True

    def _one_queue(self, shard: int, meant: Meant, key: bytes, facts: QueueFacts, progress: Progress) -> bool:
        start: bytes | None = sweeping.held_key(key, HELD_US) if meant.order.kind == "release" else b""
        while start is not None:
            if not self._goes_on(shard, meant):
                return False
            began_s = self._engine.hub.monotonic()
            pick = partial(self._pick, shard, meant, facts, progress)
            taken, start = ask(partial(_picked, self._engine.stores[shard].sweep_queue, pick), key, start, PIECE)
            self._settle(shard, meant, progress, taken)
            if not self.quick:
                self._rest(max(self._engine.hub.monotonic() - began_s, REST_S))
        return True

    def _rest(self, took_s: float) -> None:
        """Let others have their turn: as long as the last piece took, longer while the loop is busy. There is no hurry:
        none of the mail is tried, whatever the sweep has come to."""
        rest_s = took_s * self._rests
        used_s = time.thread_time()
        self._engine.hub.sleep(rest_s)
        busy = time.thread_time() - used_s > BUSY * rest_s
        self._rests = min(self._rests * 2, RESTS) if busy else max(self._rests / 2, 1)

    def _one_message(self, shard: int, meant: Meant, progress: Progress) -> None:
        pick = partial(self._pick, shard, meant, None, progress)
        taken, _ = ask(partial(_picked, self._engine.stores[shard].sweep_message, pick), meant.message)
        self._settle(shard, meant, progress, taken)

    def _pick(self, shard: int, meant: Meant, facts: QueueFacts | None, progress: Progress,
              found: sweeping.Piece) -> Taken:
        """Take those that are meant into flight. It runs while the store answers: a moment later one of them may have
        been delivered."""
        scheduler = self._engine.scheduler
        now_us = self._engine.clock_us()

        def wants(one: Delivery) -> bool:
            try:
                return self._wants(meant, facts or queue_facts(one.queue), one, progress, now_us)
            except Exception:
                log.exception("bug: order %d and %s", meant.order.number, one.message.text_id)
                progress.unreadable += 1
                return False

        progress.unreadable += found.unreadable
        wanted = [one for one in found.deliveries if wants(one)]
        taken = scheduler.take(shard, wanted)
        taken += scheduler.take_waiting(shard, wanted)
        if len(taken) < len(wanted) or any(map(wants, found.changing)):
            progress.again = True
        return taken

    def _settle(self, shard: int, meant: Meant, progress: Progress, taken: Taken) -> None:
        """Do it to what was taken."""
        if taken:
            progress.deliveries += len(taken)
            progress.recipients += sum(len(one.recipients) for _, one in taken)
            try:
                self._commit(shard, meant.order, progress, taken)
            except Exception:  # nothing was submitted: they are in the index as they were
                for queue, delivery in taken:
                    if delivery.key in queue.in_flight:
                        self._engine.scheduler.let_go(queue, delivery)
                raise

    def _wants(self, meant: Meant, facts: QueueFacts, one: Delivery, progress: Progress, now_us: int) -> bool:
        order = meant.order
        if order.kind == "release":
            book = self._engine.controls.book
            return one.due_us >= HELD_US and (book is None or book.holds_singly(facts, one, now_us) is None)
        if order.kind == "reroute":
            book = self._engine.controls.book
            found = book.detour(facts, one, now_us) if book is not None else None
            return found is not None and found.number == order.number
        if one.message.id > progress.bound:
            return False
        if order.kind == "retry" and one.message.is_held(now_us):
            return False  # its sender said when
        if order.kind == "retry" and not (
                now_us < one.due_us < HELD_US and not (one.history and one.history[-1].time_us >= order.at_us)):
            return False
        return meant.filter.matches(facts, facts_of(one, order.at_us))

    def _commit(self, shard: int, order: Order, progress: Progress, taken: Taken) -> None:
        """Do it to `taken`, and note how far we are, in one transaction. Waits until that is durable."""
        verdict = Verdict()
        for _, delivery in taken:
            one = self.carry_out(order, delivery)
            verdict.events += one.events
            verdict.updates += one.updates
            verdict.removes += one.removes
            verdict.notices += one.notices
        commit = verdict.commit()
        if (shard, order.number) in self.progress:
            commit.marks = [(MARK % order.number, progress.pack())]
        durable: AsyncResult = AsyncResult()

        def done(error: StoreError | None) -> None:
            # At once, not when we are awake: by then a load could have found them, too, and they would go twice.
            if error is None:
                for notice in verdict.notices:
                    self._engine.scheduler.add(shard, notice)
            durable.set(error)

        self._engine.stores[shard].submit(commit, done)
        for queue, delivery in taken:
            if queue.tenant and order.kind in ENDS:
                self._engine.pacing.left(queue.tenant)
            self._engine.scheduler.done(queue, delivery)
        durable.get()

    def carry_out(self, order: Order, delivery: Delivery) -> Verdict:
        """What an order does to a delivery that it is about."""
        settler = self._engine.settler
        if order.kind == "delete":
            return settler.delete(delivery, order)
        if order.kind == "expire":
            return settler.expire(delivery, order.reason or f"given up by {order.by}", order.id)
        if order.kind == "reroute":
            delivery.queue = detour(delivery.queue, order.number)
            return Verdict(updates=[delivery])
        delivery.due_us = delivery.due_us - HELD_US if order.kind == "release" else self._engine.clock_us()
        return Verdict(updates=[delivery])

    # -- providers -----------------------------------------------------------------------------------------------

    def providers(self, names: list[str]) -> dict[str, str]:
        """The providers of these queues, as far as there are routes. Waits for DNS."""
        return self._providers(names, None)[0]

    def _providers(self, names: list[str], wait_s: float | None) -> tuple[dict[str, str], bool]:
        """The same, but waits no longer than that; and whether DNS had answered for all of them."""
        facts = [queue_facts(name) for name in names]
        domains = list({one.domain for one in facts})
        found: dict[str, str | None] = {}

        def look(domain: str) -> None:
            found[domain] = self._provider(domain)

        with gevent.Timeout(wait_s, False):  # those that are asked go on, and their answers are known the next time
            gevent.pool.Pool(ROUTES).map(look, domains)
        known = {one.name: provider for one in facts if (provider := found.get(one.domain)) is not None}
        return known, len(found) == len(domains)

    def _provider(self, domain: str) -> str | None:
        try:
            route = self._engine.router.route(domain)
        except Exception:
            log.exception("bug: the route of %s", domain)
            return None
        return route.provider if isinstance(route, Route) else None

    # -- counting ------------------------------------------------------------------------------------------------

    def survey(self, shard: int, expression: Filter) -> Touched:
        """What an order with this filter would touch now. Reads for a bounded time."""
        store, rows, end_s = self._engine.stores[shard], [], self._engine.hub.monotonic() + SURVEY_S
        now_us, known, exact = self._engine.clock_us(), dict[str, str](), True
        after: bytes | None = b""
        while after is not None:
            queues, after, unreadable = ask(store.sweep_queues, after, NAMES)
            exact = exact and not unreadable
            if "provider" in expression.fields:
                wait_s = max(end_s - self._engine.hub.monotonic(), 0.0)
                known, complete = self._providers([info.name for _, info in queues], wait_s)
                exact = exact and complete
            for key, info in queues:
                facts = queue_facts(info.name, known.get(info.name))
                verdict = expression.of_queue(facts)
                if verdict:
                    rows.append((info.name, info.deliveries, info.recipients))
                elif verdict is None and not expression.on_queues:
                    start: bytes | None = b""
                    deliveries = recipients = 0
                    while start is not None and self._engine.hub.monotonic() < end_s:
                        found: sweeping.Piece = ask(store.sweep_queue, key, start, PIECE)[0]
                        start = found.last
                        exact = exact and not found.unreadable
                        for one in (*found.deliveries, *found.changing):
                            if expression.matches(facts, facts_of(one, now_us)):
                                deliveries += 1
                                recipients += len(one.recipients)
                    if deliveries:
                        rows.append((info.name, deliveries, recipients))
                    if start is not None:
                        return Touched(rows, False)
            if after is not None and self._engine.hub.monotonic() >= end_s:
                return Touched(rows, False)
        return Touched(rows, exact)


def _picked(read: Callable[..., None], pick: Callable[[sweeping.Piece], Taken], *arguments: Any) -> None:
    """Have a store read, and `pick` look at the answer at once; the last argument gets what that took, and where the
    reading goes on."""
    *rest, done = arguments
    read(*rest, lambda found: done(pick(found), found.last))


def ask(question: Callable[..., None], *arguments: Any) -> tuple[Any, ...]:
    """Ask a store, and wait for the values of its answer."""
    answered = Event()
    values: list[tuple[Any, ...]] = []

    def done(*answer: Any) -> None:
        values.append(answer)
        answered.set()

    question(*arguments, done)
    answered.wait()
    return values[0]
