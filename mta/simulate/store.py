"""The queue of a simulation: what the engine asks of `mta.queue.store.Store`, in memory, for millions of messages.

Mail that nothing was done with yet is no more than a flow and a number, made when it is loaded; mail that waits for its
next attempt is one integer each, which holds due time, number, attempts and source. As with the real store, what was
loaded stays in the queue until something about it is submitted, and is given out again if the scheduler has dropped it.
Answers come later, never inside of the question.
"""

from __future__ import annotations

import bisect
import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, NamedTuple

from mta.queue.ids import SHARD_BITS
from mta.queue.records import Delivery, Message, Recipient
from mta.queue.store import Transaction
from mta.simulate.campaign import Flow
from mta.simulate.kernel import BEGIN_US, VirtualHub

CHECKPOINT_S: Final = 1.0
NUMBER_BITS: Final = 40
ATTEMPT_BITS: Final = 12
SOURCE_BITS: Final = 12
ATTEMPTS_MOST: Final = (1 << ATTEMPT_BITS) - 1
FOREVER_US: Final = 1 << 62

Key = tuple[int, int]
Touched = list[tuple[str, int | None]]


class _Rest(NamedTuple):
    """What the integer of a delivery cannot hold, for the few that have such."""

    recipients: tuple[str, ...]
    losses: int
    maybe_duplicate: bool
    avoid: tuple[str, ...]


def number_of(delivery: Delivery) -> int:
    """Which of all messages it is."""
    return delivery.message.id >> SHARD_BITS


class SimulatedQueue:
    """One queue. Times are microseconds since the beginning."""

    __slots__ = ("_later", "domain", "due", "flows", "heads", "name", "oldest_us", "out", "touched")

    def __init__(self, name: str, domain: str) -> None:
        self.name = name
        self.domain = domain
        self.flows: list[Flow] = []
        self.heads: list[int] = []  # of each flow, how many of its messages were loaded
        self.due: deque[int] = deque()  # were deferred and may go again
        self._later: list[int] = []  # were deferred and wait, a heap
        self.out: dict[int, int] = {}  # loaded, and nothing was submitted about them yet; by number
        self.oldest_us = FOREVER_US  # nothing that is left came before
        self.touched = False

    def add(self, flow: Flow) -> None:
        """So much mail more."""
        self.flows.append(flow)
        self.heads.append(0)
        self.oldest_us = min(self.oldest_us, flow.start_us)

    def defer(self, entry: int) -> None:
        """One waits for its due time."""
        heapq.heappush(self._later, entry)

    def come_due(self, now_us: int) -> None:
        """Move what waited until now."""
        later = self._later
        while later and later[0] >> _DUE <= now_us:
            self.due.append(heapq.heappop(later))

    def fresh(self, now_us: int) -> int:
        """How many have come and were never loaded."""
        return sum([flow.arrived(now_us) - head for flow, head in zip(self.flows, self.heads, strict=True)])

    def is_quiet(self, now_us: int) -> bool:
        """Whether nothing is here now, though something may come. Hot path: there may be many such."""
        if self.out or self._later or self.due:
            return False
        for flow, head in zip(self.flows, self.heads, strict=True):
            if head < flow.count and flow.at_us(head) <= now_us:
                return False
        return True

    @property
    def waiting(self) -> int:
        """How many wait for their due time."""
        return len(self._later)

    @property
    def left(self) -> int:
        """How many there are and will be."""
        fresh = sum([flow.count - head for flow, head in zip(self.flows, self.heads, strict=True)])
        return fresh + len(self.due) + len(self._later) + len(self.out)

    def next_us(self, now_us: int) -> int:
        """When the first one is due that is not loaded, of those that have come, or come all at once."""
        soonest = self._later[0] >> _DUE if self._later else FOREVER_US
        if self.due:
            soonest = min(soonest, self.due[0] >> _DUE)
        for flow, head in zip(self.flows, self.heads, strict=True):
            if head < flow.count:
                at_us = flow.at_us(head)
                if at_us < soonest and (at_us <= now_us or not flow.spacing_us):
                    soonest = at_us
        return soonest

    def take(self, now_us: int) -> int | None:
        """Load the first one that is due: its entry."""
        best, best_us = -1, now_us + 1
        for number, flow in enumerate(self.flows):
            head = self.heads[number]
            if head < flow.count:
                at_us = flow.at_us(head)
                if at_us < best_us:
                    best, best_us = number, at_us
        if self.due and self.due[0] >> _DUE <= best_us:
            return self.due.popleft()
        if best < 0:
            return None
        head = self.heads[best]
        self.heads[best] = head + 1
        return best_us << _DUE | (self.flows[best].first + head) << _NUMBER

    def take_all(self, wanted: Callable[[int], bool], now_us: int, limit: int) -> list[int]:
        """Load up to `limit` that were deferred, or have come, and are wanted."""
        found = [entry for entry in (*self.due, *self._later) if wanted(_number(entry))][:limit]
        if found:
            gone = set(found)
            self.due = deque(entry for entry in self.due if entry not in gone)
            self._later = [entry for entry in self._later if entry not in gone]
            heapq.heapify(self._later)
        for place, flow in enumerate(self.flows):
            while (len(found) < limit and self.heads[place] < flow.arrived(now_us)
                   and wanted(flow.first + self.heads[place])):
                head = self.heads[place]
                self.heads[place] = head + 1
                found.append(flow.at_us(head) << _DUE | (flow.first + head) << _NUMBER)
        return found


_NUMBER: Final = ATTEMPT_BITS + SOURCE_BITS
_DUE: Final = _NUMBER + NUMBER_BITS


def _number(entry: int) -> int:
    return entry >> _NUMBER & (1 << NUMBER_BITS) - 1


class SimulatedStore:
    """One shard: all there is."""

    choked = False
    damage = ""
    last_id = 0

    def __init__(self, hub: VirtualHub, flows: Iterable[Flow]) -> None:
        self._hub = hub
        self.on_checkpoint: Callable[[Touched], None] = _nobody
        self.queues: dict[str, SimulatedQueue] = {}
        self._flows: list[Flow] = []
        self._rests: dict[int, _Rest] = {}
        self._sources: list[str] = [""]
        self._touched: list[SimulatedQueue] = []
        self.expires_s: Callable[[str], float] = lambda domain: float("inf")  # at what age mail is given up
        for flow in flows:
            self._flows.append(flow)
            queue = self.queues.get(flow.queue)
            if queue is None:
                queue = self.queues[flow.queue] = SimulatedQueue(flow.queue, flow.domain)
            queue.add(flow)
        self._firsts = [flow.first for flow in self._flows]
        self._add: Callable[[int, Delivery], bool] = _not_kept
        # What comes one by one, a heap: when, which of all flows, its queue and place in that, message of the flow.
        self._coming = [(flow.at_us(0), number, self.queues[flow.queue], self.queues[flow.queue].flows.index(flow), 0)
                        for number, flow in enumerate(self._flows) if flow.spacing_us and flow.count]
        heapq.heapify(self._coming)

    @property
    def left(self) -> int:
        """Messages that are there or will come."""
        return sum([queue.left for queue in self.queues.values()])

    def elapsed_us(self) -> int:
        """Microseconds since the beginning, by the wall clock."""
        return self._hub.clock_us() - BEGIN_US

    def flow_of(self, number: int) -> Flow:
        """The flow of a message."""
        return self._flows[bisect.bisect_right(self._firsts, number) - 1]

    # -- arrivals --------------------------------------------------------------------------------------------------

    def open_doors(self, add: Callable[[int, Delivery], bool]) -> None:
        """Mail that comes one by one is given to `add` as it comes, as that of a real door: it is not read from disk.
        """
        self._add = add
        self._arrive()

    def _arrive(self) -> None:
        """What comes now, and a call for what comes next. Hot path."""
        coming, now_us = self._coming, self.elapsed_us()
        while coming and coming[0][0] <= now_us:
            at_us, number, queue, place, k = coming[0]
            flow = queue.flows[place]
            if k + 1 < flow.count:
                heapq.heapreplace(coming, (flow.at_us(k + 1), number, queue, place, k + 1))
            else:
                heapq.heappop(coming)
            head = queue.heads[place]
            if head == k:
                message = flow.first + k
                entry = queue.out[message] = at_us << _DUE | message << _NUMBER
                queue.heads[place] = k + 1
                if self._add(0, self._made(queue, entry)):
                    continue
                del queue.out[message]
                queue.heads[place] = k
            if head <= k:  # it waits on disk
                self._touch(queue)
        if coming:
            self._hub.call_later((coming[0][0] - now_us) / 1e6, self._arrive)

    # -- changes ---------------------------------------------------------------------------------------------------

    def submit(self, tx: Transaction, done: Callable[[None], None] | None = None) -> None:
        """As `Store.submit`. Events are not kept, notifications are not made (`Bounces.send` is off). Hot path."""
        for delivery in tx.removes:
            number = delivery.message.id >> SHARD_BITS
            del self.queues[delivery.queue].out[number]
            if self._rests:
                self._rests.pop(number, None)
        for delivery in tx.updates:
            self._update(delivery)
        if done is not None:
            self._hub.call_later(0.0, done, None)

    def _update(self, delivery: Delivery) -> None:
        queue = self.queues[delivery.queue]
        number = number_of(delivery)
        recipients = tuple([one.address for one in delivery.recipients])
        if (delivery.losses or delivery.avoid or delivery.maybe_duplicate
                or len(recipients) < self.flow_of(number).part.recipients):
            self._rests[number] = _Rest(recipients, delivery.losses, delivery.maybe_duplicate, delivery.avoid)
        else:
            self._rests.pop(number, None)
        if delivery.source not in self._sources:
            self._sources.append(delivery.source)
        due_us = delivery.due_us - BEGIN_US
        entry = ((due_us << NUMBER_BITS | number) << ATTEMPT_BITS | min(delivery.attempts, ATTEMPTS_MOST)) \
            << SOURCE_BITS | self._sources.index(delivery.source)
        if due_us <= self.elapsed_us():
            queue.out[number] = entry  # it is tried again now, or given out again
        else:
            del queue.out[number]
            queue.defer(entry)
        self._touch(queue)

    def _touch(self, queue: SimulatedQueue) -> None:
        """The next checkpoint tells of it."""
        if not queue.touched:
            queue.touched = True
            if not self._touched:
                self._hub.call_later(CHECKPOINT_S, self._checkpoint)
            self._touched.append(queue)

    def _checkpoint(self) -> None:
        touched, self._touched = self._touched, []
        report: Touched = []
        for queue in touched:
            queue.touched = False
            due_us = queue.next_us(self.elapsed_us())
            report.append((queue.name, due_us + BEGIN_US if due_us < FOREVER_US else None))
        self.on_checkpoint(report)

    def mark_inflight(self, delivery: Delivery) -> None:
        """Nothing crashes here."""

    def clear_inflight(self, delivery: Delivery) -> None:
        """Nothing crashes here."""

    # -- reads -----------------------------------------------------------------------------------------------------

    def load_due(self, queue: str, before_us: int, limit: int, exclude: Collection[Key],
                 done: Callable[[list[Delivery], int | None], None]) -> None:
        """As `Store.load_due`."""
        self._hub.call_later(0.0, self._load, self.queues[queue], before_us - BEGIN_US, limit, exclude, done)

    def _load(self, queue: SimulatedQueue, before_us: int, limit: int, exclude: Collection[Key],
              done: Callable[[list[Delivery], int | None], None]) -> None:
        queue.come_due(before_us)
        # First what was loaded before and dropped from memory.
        numbers = [number for number in queue.out if (number << SHARD_BITS, 0) not in exclude][:limit]
        found = [self._made(queue, queue.out[number]) for number in numbers]
        out = queue.out
        while len(found) < limit:
            entry = queue.take(before_us)
            if entry is None:
                break
            out[_number(entry)] = entry
            found.append(self._made(queue, entry))
        next_us = queue.next_us(self.elapsed_us())
        done(found, next_us + BEGIN_US if next_us < FOREVER_US else None)

    def _made(self, queue: SimulatedQueue, entry: int) -> Delivery:
        """The delivery of an entry. Hot path."""
        number = entry >> _NUMBER & (1 << NUMBER_BITS) - 1
        flow = queue.flows[0] if len(queue.flows) == 1 else self.flow_of(number)
        part = flow.part
        arrival_us = BEGIN_US + flow.at_us(number - flow.first)
        message = Message(number << SHARD_BITS, part.sender, arrival_us, None, size=part.size, tenant=part.tenant,
                          campaign=part.campaign, pool=part.pool, deliveries=1)
        rest = self._rests.get(number) if self._rests else None
        if rest is not None:
            recipients = [Recipient(address) for address in rest.recipients]
        elif part.recipients == 1:
            recipients = [Recipient(f"u{number}@{queue.domain}")]
        else:
            recipients = [Recipient(f"u{number}.{k}@{queue.domain}") for k in range(part.recipients)]
        delivery = Delivery(message, 0, queue.name, queue.domain, recipients, (entry >> _DUE) + BEGIN_US,
                            entry >> SOURCE_BITS & ATTEMPTS_MOST)
        source = entry & (1 << SOURCE_BITS) - 1
        if source:
            delivery.source = self._sources[source]
        if rest is not None:
            delivery.losses, delivery.maybe_duplicate, delivery.avoid = rest.losses, rest.maybe_duplicate, rest.avoid
        return delivery

    def due_queues(self, after: bytes, limit: int,
                   done: Callable[[list[tuple[int, str]], bytes | None], None]) -> None:
        """As `Store.due_queues`."""
        rows = []
        for queue in self.queues.values():
            due_us = min([queue.next_us(self.elapsed_us()), *(entry >> _DUE for entry in queue.out.values())])
            if due_us < FOREVER_US:
                rows.append((due_us + BEGIN_US, queue.name))
        rows.sort()
        if after:
            rows = rows[bisect.bisect_right(rows, (int.from_bytes(after[:8], "big"), after[8:].decode())):]
        found = rows[:limit]
        last = found[-1][0].to_bytes(8, "big") + found[-1][1].encode() if len(rows) > limit else None
        self._hub.call_later(0.0, done, found, last)

    def arrived_before(self, before_us: int, limit: int, done: Callable[[list[Delivery]], None]) -> None:
        """As `Store.arrived_before`, of what is so old that its domain gives it up: the rest stays where it is."""
        self._hub.call_later(0.0, done, self._expired(before_us - BEGIN_US, limit))

    def arrived_between(self, after: bytes, before_us: int, limit: int,
                        done: Callable[[list[Delivery], bytes | None], None]) -> None:
        """As `Store.arrived_between`, with the same difference. Nothing is kept of how far it was looked."""
        self._hub.call_later(0.0, done, self._expired(before_us - BEGIN_US, limit), b"")

    def _expired(self, before_us: int, limit: int) -> list[Delivery]:
        """Load what came before and is to be given up. Looks at all that waits in queues that can have such."""
        now_us = self.elapsed_us()
        found: list[Delivery] = []
        for queue in self.queues.values():
            if before_us <= queue.oldest_us:
                continue
            limit_us = min(before_us, now_us - int(min(self.expires_s(queue.domain), 1e9) * 1e6))
            if limit_us <= queue.oldest_us:
                continue

            def old(number: int, limit_us: int = limit_us) -> bool:
                flow = self.flow_of(number)
                return flow.at_us(number - flow.first) < limit_us

            entries = [entry for number, entry in queue.out.items() if old(number)][:limit - len(found)]
            for entry in queue.take_all(old, now_us, limit - len(found) - len(entries)):
                queue.out[_number(entry)] = entry
                entries.append(entry)
            found += [self._made(queue, entry) for entry in entries]
            if len(found) >= limit:
                break
            queue.oldest_us = limit_us
        return found

    def has_mark(self, key: bytes, done: Callable[[bytes | None], None]) -> None:
        """There are none."""
        self._hub.call_later(0.0, done, None)

    def list_marks(self, after: bytes, limit: int, done: Callable[[list[tuple[bytes, bytes]]], None]) -> None:
        """There are none."""
        self._hub.call_later(0.0, done, [])

    def count_of_tenants(self, tenants: Iterable[str], done: Callable[[dict[str, int]], None]) -> None:
        """Limits on the size of a queue are for the door, which is not simulated."""
        self._hub.call_later(0.0, done, dict.fromkeys(tenants, 0))

    def trouble(self) -> str | None:
        """None."""
        return None

    def due_after(self, after_us: int, start: bytes, limit: int, done: Callable[..., Any]) -> None:
        """Nothing is due too late, as the clock is never set."""
        self._hub.call_later(0.0, done, [], None)


def _not_kept(shard: int, delivery: Delivery) -> bool:
    """Before the doors open."""
    return False


def _nobody(touched: Touched) -> None:
    """The default of `on_checkpoint`."""
