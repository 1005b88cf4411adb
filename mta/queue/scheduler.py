"""Which deliveries are in memory, and when the others come back: the scheduler of one worker.

No I/O and no clock of its own: the clock is given, and I/O is asked for through `SchedulerIO`. What it knows:

* A `Queue` object exists for a queue that has something to do now. It holds a bounded window of deliveries (`ready`);
  the rest of the queue waits in the store's index and is loaded when the window runs low.
* What the queues of one site may hold together is bounded by what is free (`mta.queue.parts`), so that the backlog of a
  slow one leaves room for all others; some room is for transactional mail alone.
* All other queues are known by name and time only: the soonest of them in `wakes`, a bounded heap; those later than
  `horizon` in the store's index alone. Nothing here grows with the number of queued messages or queues.

Everything that is due is either in a window, or in a queue whose `more` flag says that the index holds more, or
behind a wake. Three things feed that invariant: fresh mail (`add`), loads (`loaded`), and the report that the store
makes after every checkpoint of what is first due in each queue that it touched (`checkpoint`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from mta.config.schema import Memory
from mta.queue.orders import HELD_US, Book, Meant
from mta.queue.parts import GREED, RESERVED, Part, Parts
from mta.queue.records import Delivery

FOREVER_US = 1 << 62
NORMAL = 1
_NOBODY = Part("")
_PRIORITIES = {"transactional": 0, "bulk": 2}


class SchedulerIO(Protocol):
    """What the scheduler asks of the worker. Answers come later, through `loaded` and `scanned`."""

    def load(self, queue: Queue, limit: int) -> None:
        """Read up to `limit` deliveries of `queue` that are due and not in memory."""

    def scan(self, shard: int, after: bytes, limit: int) -> None:
        """Read the next `limit` queues of `shard` in the order of their first due time, after the key `after`."""

    def alarm(self) -> None:
        """`next_wake_us` has become sooner."""

    def part_of(self, queue: Queue) -> str:
        """The name of what `queue` shares memory with: its site, or the domain while that is not known."""

    def stands_still(self, name: str) -> int:
        """Until when it is known that nothing of the queue `name` may go; 0: it may, as far as is known. Asked for each
        queue that comes back, before anything is read."""

    def offer(self, queue: Queue) -> None:
        """`queue` has deliveries in its window: bring it to its lane."""

    def withdraw(self, queue: Queue) -> None:
        """`queue` leaves memory: its lane forgets it."""


class Queue:
    """The part of one queue, in one shard, that is in memory."""

    __slots__ = ("behind", "book", "domain", "each", "in_flight", "lane", "loading", "more", "name", "part", "pool",
                 "priority", "ready", "shard", "tenant", "way")

    def __init__(self, shard: int, name: str, domain: str, tenant: str, pool: str = "",
                 priority: int = NORMAL) -> None:
        self.shard = shard
        self.name = name
        self.domain = domain
        self.tenant = tenant
        self.pool = pool
        self.priority = priority
        self.way = f"{domain}/{pool}" if pool else domain  # what decides on its lane
        self.part: Part = _NOBODY  # the scheduler's
        self.ready: deque[Delivery] = deque()
        self.in_flight: dict[tuple[int, int], Delivery] = {}
        self.more = False  # the index may hold due deliveries that are not in memory
        self.behind = False  # it certainly does: fresh mail goes to the end of that line
        self.loading = 0  # how many deliveries the load under way may bring
        self.lane: object | None = None  # the delivery engine's
        self.book: Book | None = None  # the operator's orders by which it was decided that it may be tried
        self.each: tuple[Meant, ...] = ()  # those of them that have to be asked of each delivery

    def go_by(self, pool: str) -> None:
        """Use another pool from now on."""
        self.pool = pool
        self.way = f"{self.domain}/{pool}" if pool else self.domain

    def __repr__(self) -> str:
        more = "+" if self.more else ""
        return f"<Queue {self.name}#{self.shard} {len(self.ready)}{more} ready, {len(self.in_flight)} in flight>"


def domain_of(name: str) -> str:
    """The recipient domain in a queue name (`mta.queue.records.queue_name`)."""
    return name.rpartition("@")[2].partition("^")[0].partition("/")[0]


def tenant_of(name: str) -> str:
    """The tenant in a queue name, empty when it has none."""
    return name.rpartition("@")[0].rpartition(":")[2]


def pool_of(name: str) -> str:
    """The pool in a queue name, empty when it has none."""
    return name.rpartition("@")[2].partition("^")[0].partition("/")[2].partition("/")[0]


def priority_of(name: str) -> int:
    """The priority in a queue name by number: 0 transactional, 1 normal, 2 bulk."""
    return _PRIORITIES.get(name.rpartition("@")[2].partition("^")[2], NORMAL)


def _made(shard: int, name: str, domain: str) -> Queue:
    """The queue of this name. Hot path: most names are a domain alone."""
    if name == domain:
        return Queue(shard, name, domain, "")
    return Queue(shard, name, domain, tenant_of(name), pool_of(name), priority_of(name))


class Scheduler:
    """The queues of one worker, over all its shards."""

    WAKES = 10_000  # wakes kept in memory; the bound that makes the horizon move
    AT_ONCE = 500  # queues brought back in one call of `run`
    FIRST = 20  # deliveries read of a queue that comes back; the next load fills its window
    REST = 20  # times as long as a look at all that is due took nothing is looked for again

    def __init__(self, io: SchedulerIO, memory: Memory, shards: Iterable[int], clock_us: Callable[[], int]) -> None:
        self._io = io
        self._memory = memory
        self._clock_us = clock_us
        self.queues: dict[tuple[int, str], Queue] = {}
        self.deliveries = 0  # in windows and in flight
        self.body_bytes = 0  # content held for them
        self.starved = False  # something is due that memory had no room for: `alarm` is called when there is some
        self._parts = Parts()
        self._coming = 0  # deliveries that the loads under way may bring
        self._wakes: list[tuple[int, int, str]] = []
        self._wake_at: dict[tuple[int, str], int] = {}
        self._parked: set[tuple[int, str]] = set()  # of those, the ones that nothing may wake earlier
        self._horizon = dict.fromkeys(shards, 0)
        self._scan_from = dict.fromkeys(self._horizon, b"")  # key in the index of due queues where the horizon is
        self._scanning: set[int] = set()
        self._reserved = memory.deliveries // RESERVED
        self._rescan_us = FOREVER_US  # when parked queues that fell out of the heap have to be looked for again
        self._rescan_now = False  # without a rest
        self._rescan_began_us = 0  # of the look under way; 0: there is none
        self._rest_until_us = 0

    def configure(self, memory: Memory) -> None:
        """Take new bounds; they hold for what comes next."""
        self._memory = memory
        self._reserved = memory.deliveries // RESERVED

    # -- what comes in ------------------------------------------------------------------------------------------

    def add(self, shard: int, delivery: Delivery) -> bool:
        """Fresh, durable mail. Kept in memory for immediate delivery when there is room, else it waits on disk. Whether
        it is kept.

        Hot path (bench/throughput.py S1, S2).
        """
        if (shard, delivery.queue) in self._parked:
            return False  # it is found when the queue wakes
        queue = self.queues.get((shard, delivery.queue))
        if queue is None:
            if self.deliveries >= self._memory.deliveries:
                return False  # it is found by the report of the next checkpoint
            queue = self._open(shard, delivery.queue, delivery.domain)
            if not self._has_room(queue):
                self._close(queue)  # likewise
                return False
        elif queue.behind or len(queue.ready) >= self._memory.window or not self._has_room(queue):
            queue.more = queue.behind = True  # it is found by the report of the next checkpoint
            return False
        self._hold(queue, delivery)
        queue.ready.append(delivery)
        self._io.offer(queue)
        return True

    def loaded(self, queue: Queue, deliveries: list[Delivery], next_us: int | None) -> None:
        """The answer to `load`: `deliveries`, and when the first one that was left out is due (None: there is none).
        """
        part = queue.part
        self._coming -= queue.loading
        part.coming -= queue.loading
        queue.loading = 0
        if part.line and not part.is_empty:
            self._call(part)
        if self.starved:
            self._io.alarm()  # the load may have brought less than room was kept for
        if self.queues.get((queue.shard, queue.name)) is not queue:
            if part.line and part.is_empty:
                self._call(part)
            self._parts.tidy(part)
            return  # parked meanwhile; they are still on disk
        queue.behind = False
        for delivery in deliveries:
            if self.deliveries >= self._memory.deliveries:
                queue.more = queue.behind = True  # fresh mail has taken the room
                break
            if delivery.key not in queue.in_flight:  # else `take` was faster
                self._hold(queue, delivery)
                queue.ready.append(delivery)
        if part.line and part.is_empty:
            self._call(part)
        # `more` may have become true while the index was read: a checkpoint came in between.
        if next_us is not None and next_us <= self._clock_us():
            queue.more = queue.behind = True
        elif next_us is not None:
            self._wake(queue.shard, queue.name, next_us)
        if queue.ready:
            self._io.offer(queue)
        self._tidy(queue)

    def checkpoint(self, shard: int, touched: Iterable[tuple[str, int | None]]) -> None:
        """The store's report: for each touched queue, when its first delivery in the index is due."""
        now_us = self._clock_us()
        for name, due_us in touched:
            if due_us is None or (shard, name) in self._parked:
                continue
            queue = self.queues.get((shard, name))
            if queue is not None and due_us <= now_us:
                queue.more = True
                self._refill(queue)
            elif due_us <= self._horizon[shard]:
                self._wake(shard, name, due_us)

    def scanned(self, shard: int, found: list[tuple[int, str]], last: bytes | None) -> None:
        """The answer to `scan`: (first due time, queue) in order, and the key of the last; None when that was all."""
        self._scanning.discard(shard)
        self._horizon[shard] = found[-1][0] if last is not None else FOREVER_US
        self._scan_from[shard] = last or b""
        now_us = self._clock_us()
        if self._rescan_began_us and min(self._horizon.values()) > now_us:
            self._rest_until_us = now_us + self.REST * max(now_us - self._rescan_began_us, 0)
            self._rescan_began_us = 0
        for due_us, name in found:
            # Also of a queue that is in memory: it may be there for fresh mail only, and leave without another look.
            self._wake(shard, name, due_us)
        self.run()

    # -- what goes out ------------------------------------------------------------------------------------------

    def pop(self, queue: Queue) -> Delivery | None:
        """Take the next delivery of `queue` into flight; None when its window is empty. Hot path."""
        if not queue.ready:
            return None
        delivery = queue.ready.popleft()
        queue.in_flight[delivery.key] = delivery
        if queue.more and len(queue.ready) * 2 < self._memory.window:
            self._refill(queue)
        return delivery

    def take(self, shard: int, deliveries: Iterable[Delivery]) -> list[tuple[Queue, Delivery]]:
        """Take those of `deliveries`, just read from the index, into flight that are not in memory: to be ended without
        an attempt. Nobody else gets them meanwhile."""
        taken = []
        held: dict[str, set[tuple[int, int]]] = {}
        for delivery in deliveries:
            queue = self.queues.get((shard, delivery.queue)) or self._open(shard, delivery.queue, delivery.domain)
            keys = held.get(queue.name)
            if keys is None:
                keys = held[queue.name] = {other.key for other in queue.ready}
                keys.update(queue.in_flight)
            if delivery.key not in keys:
                self._hold(queue, delivery)
                queue.in_flight[delivery.key] = delivery
                taken.append((queue, delivery))
        return taken

    def take_waiting(self, shard: int, deliveries: Iterable[Delivery]) -> list[tuple[Queue, Delivery]]:
        """Take those of which `deliveries` are copies into flight that are in a window. They are to be put back."""
        wanted: dict[str, set[tuple[int, int]]] = {}
        for delivery in deliveries:
            wanted.setdefault(delivery.queue, set()).add(delivery.key)
        taken: list[tuple[Queue, Delivery]] = []
        for name, keys in wanted.items():
            queue = self.queues.get((shard, name))
            found = [one for one in queue.ready if one.key in keys] if queue is not None else []
            if queue is not None and found:
                queue.ready = deque(one for one in queue.ready if one.key not in keys)
                queue.in_flight.update((one.key, one) for one in found)
                taken.extend((queue, one) for one in found)
        return taken

    def put_back(self, queue: Queue, delivery: Delivery) -> None:
        """A delivery in flight goes back to the head of its queue, untouched or with recipients left to do."""
        del queue.in_flight[delivery.key]
        queue.ready.appendleft(delivery)
        self._io.offer(queue)

    def done(self, queue: Queue, delivery: Delivery) -> None:
        """A delivery in flight has ended, or waits in the index for its next attempt. Hot path."""
        del queue.in_flight[delivery.key]
        self._drop(queue, delivery)
        if not queue.ready:
            self._tidy(queue)

    def let_go(self, queue: Queue, delivery: Delivery) -> None:
        """A delivery in flight is to be read again from the index, where it is as it was."""
        queue.more = True
        self.done(queue, delivery)

    def park(self, queue: Queue, until_us: int) -> None:
        """Nothing of `queue` moves before `until_us`: its window leaves memory and costs nothing until then."""
        self._clear(queue)
        queue.more = queue.behind = False
        if queue.in_flight:  # known until they have ended, so that they are not loaded a second time
            self._io.withdraw(queue)
        else:
            self._close(queue)
        self._park(queue.shard, queue.name, until_us)

    def share(self, queue: Queue, name: str) -> bool:
        """`queue` is of the part `name`, as is known now. False: that one has its share; the queue has left memory, and
        stands in line."""
        count = len(queue.ready) + len(queue.in_flight)
        old, part = queue.part, self._parts.join(name)
        old.held -= count
        old.coming -= queue.loading
        part.held += count
        part.coming += queue.loading
        queue.part = part
        if old.line:
            self._call(old)
        self._parts.leave(old)
        if part.held == count or self._room_for(queue) >= 0:
            return True
        self._clear(queue)
        queue.more = True
        if queue.in_flight or queue.loading:  # it lines up when they have ended
            self._io.withdraw(queue)
        else:
            self._line_up(queue)
        return False

    def parked(self) -> list[str]:
        """The names of the queues that are parked, as far as they are in memory."""
        return [name for _, name in self._parked]

    # -- time ---------------------------------------------------------------------------------------------------

    def next_wake_us(self) -> int:
        """When `run` has to be called next; FOREVER_US when nothing waits for a time."""
        if self.starved:
            return self._next_rescan_us()
        soonest = self._wakes[0][0] if self._wakes else FOREVER_US
        unknown = [horizon for shard, horizon in self._horizon.items() if shard not in self._scanning]
        return min([soonest, self._next_rescan_us(), *unknown])

    def _next_rescan_us(self) -> int:
        """When all that is due is looked at again. That costs a little for each queue that stands still, so it rests in
        between: how often it is done must not grow with their number. A look under way, or a page of the index, is
        awaited: what is begun anew each time never comes to its end, and a page of before is not where it begins."""
        if self._rescan_began_us or self._scanning:
            return FOREVER_US
        return self._rescan_us if self._rescan_now else max(self._rescan_us, self._rest_until_us)

    def repark(self, until_us: Callable[[str, int], int]) -> None:
        """Have parked queues wait until another time: `until_us` gives it for a name and the time so far."""
        wakes = []
        for due_us, shard, name in self._wakes:
            key = (shard, name)
            if key in self._parked and self._wake_at.get(key) == due_us:
                due_us = self._wake_at[key] = until_us(name, due_us)
            wakes.append((due_us, shard, name))
        heapq.heapify(wakes)
        self._wakes = wakes
        now_us = self._clock_us()
        if self._rescan_us < FOREVER_US or self._rescan_began_us:
            self._rescan_us = now_us  # some have fallen out of the heap
            self._rescan_now = True
        # The clock may have been set: a rest would last for as long as that was, or twenty times as long.
        self._rest_until_us = 0
        if self._rescan_began_us:
            self._rescan_began_us = now_us
        self._io.alarm()

    def run(self) -> bool:
        """Bring back the queues whose time has come, as far as there is room in memory. Whether there are more of them:
        then others have a turn first."""
        now_us = self._clock_us()
        self.starved = False
        left = self.AT_ONCE
        while self._wakes and self._wakes[0][0] <= now_us and left:
            left -= 1
            if self._room() <= self._reserved:
                self.starved = True
                break
            due_us, shard, name = heapq.heappop(self._wakes)
            if self._wake_at.get((shard, name)) != due_us:
                continue  # superseded
            del self._wake_at[(shard, name)]
            self._parked.discard((shard, name))
            queue = self.queues.get((shard, name))
            if queue is None:
                still_us = self._io.stands_still(name)
                if still_us > now_us:  # there is nothing to read it for
                    self._park(shard, name, still_us)
                    continue
                queue = self._open(shard, name, domain_of(name))
            queue.more = True
            self._refill(queue)
        if self._next_rescan_us() <= now_us:
            self._rescan_us = FOREVER_US
            self._rescan_now = False
            self._rescan_began_us = now_us
            for shard in self._horizon:
                self._horizon[shard] = 0
                self._scan_from[shard] = b""
        # What is due is looked for even if there are many wakes: those of sites that stand still come again and again.
        has_place = len(self._wakes) < self.WAKES // 2
        for shard, horizon in self._horizon.items():
            if (horizon < FOREVER_US and shard not in self._scanning
                    and (has_place or (horizon <= now_us and not self.starved))):
                self._scanning.add(shard)
                self._io.scan(shard, self._scan_from[shard], self.WAKES // 2)
        return not left and bool(self._wakes) and self._wakes[0][0] <= now_us and not self.starved

    # -- inside -------------------------------------------------------------------------------------------------

    def _open(self, shard: int, name: str, domain: str) -> Queue:
        queue = self.queues[(shard, name)] = _made(shard, name, domain)
        queue.part = self._parts.join(self._io.part_of(queue))
        return queue

    def _close(self, queue: Queue) -> None:
        del self.queues[(queue.shard, queue.name)]
        self._io.withdraw(queue)
        self._parts.leave(queue.part)

    def _clear(self, queue: Queue) -> None:
        """Let the window of `queue` leave memory."""
        for delivery in queue.ready:
            self._drop(queue, delivery)
        queue.ready.clear()

    def _line_up(self, queue: Queue) -> None:
        """Its part has its share of memory: it comes back when that has room."""
        self._parts.line_up(queue.part, (queue.shard, queue.name))
        self._close(queue)

    def _call(self, part: Part) -> None:
        """A queue in line for room in `part` may come back, if there is some by now.

        When the part holds nothing any more all of them come back: nobody would call the next one, should the memory be
        full of what others have, or the first one stand still.
        """
        if not part.is_empty and not part.is_low(self._room() - self._reserved):
            return
        left = self.AT_ONCE if part.is_empty else 1
        while part.line and left:
            left -= 1
            shard, name = self._parts.next_in_line(part)
            self._wake(shard, name, self._clock_us())
        if part.is_empty and part.line:
            self._parts.dissolve(part)
        if not part.line and part.more:  # those that found no place in the line are looked for
            part.more = False
            self._rescan_us = self._clock_us()
            self._rescan_now = True
            self._io.alarm()

    def _tidy(self, queue: Queue) -> None:
        """Forget a queue that has nothing to do."""
        if not (queue.ready or queue.in_flight or queue.more or queue.loading):
            if self.queues.get((queue.shard, queue.name)) is queue:
                self._close(queue)
        elif queue.more and not queue.ready and not queue.loading:
            self._refill(queue)

    def _room(self) -> int:
        """How many more deliveries memory may hold."""
        return self._memory.deliveries - self.deliveries - self._coming

    def _has_room(self, queue: Queue) -> bool:
        """Whether one fresh delivery of `queue` may be held. What loads may bring does not stand in its way. Hot path.
        """
        free = self._memory.deliveries - self.deliveries
        if queue.priority:
            free -= self._reserved
        return free > 0 and GREED * free > queue.part.held

    def _room_for(self, queue: Queue) -> int:
        """The same as `_room` of `queue`: its part has a share, and some is reserved."""
        free = self._memory.deliveries - self.deliveries - self._coming
        if queue.priority:
            free -= self._reserved
        part = queue.part
        return min(free, GREED * free - part.held - part.coming)

    def _refill(self, queue: Queue) -> None:
        if queue.loading:
            return
        # Who knows whether anything goes: a site that is tried again mostly fails again, and the rest was read in vain.
        wanted = self._memory.window - len(queue.ready) if queue.ready or queue.in_flight else self.FIRST
        room = min(wanted, self._memory.window, self._room_for(queue))
        if room > 0:
            queue.loading = room
            self._coming += room
            queue.part.coming += room
            queue.more = False
            self._io.load(queue, room)
        elif queue.ready or queue.in_flight:
            pass  # as they go it is tried again
        elif self._room() > self._reserved:
            self._line_up(queue)
        else:
            # No room for a single delivery: it lines up for when there is.
            self.starved = True
            self._close(queue)
            self._wake(queue.shard, queue.name, self._clock_us())

    def _wake(self, shard: int, name: str, due_us: int) -> None:
        if due_us >= HELD_US:
            return  # all that it has left is held by an operator's order
        known = self._wake_at.get((shard, name))
        if known is not None and (known <= due_us or (shard, name) in self._parked):
            return
        self._wake_at[(shard, name)] = due_us
        heapq.heappush(self._wakes, (due_us, shard, name))
        if self._wakes[0][0] == due_us:
            self._io.alarm()
        if len(self._wakes) > 2 * self.WAKES:
            self._shorten()

    def _park(self, shard: int, name: str, until_us: int) -> None:
        """Nothing wakes this queue earlier, as long as its wake is in memory."""
        self._wake(shard, name, until_us)
        if (shard, name) in self._wake_at:
            self._parked.add((shard, name))

    def _shorten(self) -> None:
        """Keep the soonest WAKES wakes; the index remembers the others."""
        # Some are there twice: a time that was superseded by a sooner one, and came again.
        live = sorted({wake for wake in self._wakes if self._wake_at.get((wake[1], wake[2])) == wake[0]})
        self._wakes, dropped = live[: self.WAKES], live[self.WAKES:]
        for due_us, shard, name in dropped:
            del self._wake_at[(shard, name)]
            self._parked.discard((shard, name))
            # A parked queue is due in the index already, so the horizon alone would not find it again.
            self._rescan_us = min(self._rescan_us, due_us)

    def _hold(self, queue: Queue, delivery: Delivery) -> None:
        self.deliveries += 1
        queue.part.held += 1
        message = delivery.message
        if message.content is None:
            return
        if message.held == 0:
            if self.body_bytes + message.size > self._memory.bodies:
                message.content = None  # read back from disk when its turn comes
                return
            self.body_bytes += message.size
        message.held += 1

    def _drop(self, queue: Queue, delivery: Delivery) -> None:
        self.deliveries -= 1
        part = queue.part
        part.held -= 1
        if part.line:
            self._call(part)
        if self.starved:
            self._io.alarm()
        message = delivery.message
        if message.held:
            message.held -= 1
            if message.held == 0:
                self.body_bytes -= message.size
                message.content = None
