"""The store, path and clock of a scheduler under test, played by `Shelf`.

A list of deliveries with due times, of which some are "indexed" (visible to loads) and the others become visible at the
next checkpoint, exactly as the real store behaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from mta.config.schema import Memory
from mta.config.units import Size
from mta.queue.records import Delivery, Message, Recipient
from mta.queue.scheduler import Queue, Scheduler, domain_of

SECOND = 1_000_000


def delivery(number: int, queue: str = "example.org", due_us: int = 0, size: int = 100) -> Delivery:
    message = Message(number, "a@b.test", due_us, b"x" * size, size=size)
    return Delivery(message, 0, queue, domain_of(queue), [Recipient(f"u@{domain_of(queue)}")], due_us)


@dataclass
class Shelf:
    """The store, the path and the clock around a scheduler under test."""

    memory: Memory = field(default_factory=lambda: Memory(bodies=Size(1000), deliveries=100, window=10))
    now_us: int = SECOND
    stored: dict[tuple[int, int], Delivery] = field(default_factory=dict)
    indexed: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)  # key: (queue, due)
    changed: set[str] = field(default_factory=set)
    pending: list[tuple[str, Queue | bytes, int]] = field(default_factory=list)
    offered: list[Queue] = field(default_factory=list)
    suspended_until: dict[str, int] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)  # by queue
    knows_sites: bool = True  # that stand still; else that is found out by a look
    loads: int = 0
    scheduler: Scheduler = field(init=False)
    number: int = 0
    alarmed: bool = False
    dirty: dict[tuple[int, int], tuple[str, int] | None] = field(default_factory=dict)  # being written by a checkpoint
    report: list[tuple[str, int | None]] | None = None  # of a checkpoint that was begun
    results: list[Callable[[], None]] = field(default_factory=list)  # of requests, read and not told yet

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self, self.memory, [0], lambda: self.now_us)

    # SchedulerIO
    def load(self, queue: Queue, limit: int) -> None:
        self.loads += 1
        self.pending.append(("load", queue, limit))

    def scan(self, shard: int, after: bytes, limit: int) -> None:
        self.pending.append(("scan", after, limit))

    def alarm(self) -> None:
        self.alarmed = True

    def keep_time(self) -> None:
        """Call the scheduler when it asked for it, and only then."""
        if self.alarmed or self.scheduler.next_wake_us() <= self.now_us:
            self.alarmed = False
            self.scheduler.run()

    def part_of(self, queue: Queue) -> str:
        return self.parts.get(queue.name, queue.name)

    def stands_still(self, name: str) -> int:
        return self.suspended_until.get(name, 0) if self.knows_sites else 0

    def offer(self, queue: Queue) -> None:
        until = self.suspended_until.get(queue.name, 0)
        if until > self.now_us:
            self.scheduler.park(queue, until)
        elif queue not in self.offered:
            self.offered.append(queue)

    def withdraw(self, queue: Queue) -> None:
        if queue in self.offered:
            self.offered.remove(queue)

    # the store
    def accept(self, queue: str) -> Delivery:
        self.number += 1
        fresh = delivery(self.number, queue, self.now_us)
        self.stored[fresh.key] = fresh
        self.changed.add(queue)
        self.scheduler.add(0, fresh)
        return fresh

    def checkpoint(self) -> None:
        self.begin_checkpoint()
        self.end_checkpoint()

    def begin_checkpoint(self) -> None:
        """Write what changed into the index. The scheduler is not told yet: reads from now on see the new index, but
        what the checkpoint took in still counts as changed."""
        self.answer()  # requests and checkpoints are one line
        self.dirty = {key: (one.queue, one.due_us) for key, one in self.stored.items()
                      if self.indexed.get(key) != (one.queue, one.due_us)}
        self.indexed = {key: (one.queue, one.due_us) for key, one in self.stored.items()}
        self.report = [(name, min((due for queue, due in self.indexed.values() if queue == name), default=None))
                       for name in sorted(self.changed)]
        self.changed.clear()

    def end_checkpoint(self) -> None:
        """Tell of the checkpoint, and after it of what was read meanwhile."""
        if self.report is not None:
            self.read()
            self.dirty = {}
            report, self.report = self.report, None
            self.scheduler.checkpoint(0, report)
            self.tell()

    def visible(self, key: tuple[int, int]) -> bool:
        """In the index, and unchanged since."""
        stored = self.stored.get(key)
        return stored is not None and self.indexed[key] == (stored.queue, stored.due_us) and key not in self.dirty

    def answer(self) -> None:
        """Read and answer the requests made so far, in order; not before a checkpoint that was begun is told of."""
        self.read()
        if self.report is None:
            self.tell()

    def tell(self) -> None:
        results, self.results = self.results, []
        for result in results:
            result()

    def read(self) -> None:
        requests, self.pending = self.pending, []
        for kind, what, limit in requests:
            if kind == "load":
                assert isinstance(what, Queue)
                exclude = {one.key for one in what.ready} | set(what.in_flight)
                found = sorted((due, key) for key, (name, due) in self.indexed.items()
                               if name == what.name and self.visible(key) and key not in exclude)
                due_now = [key for due, key in found if due <= self.now_us][:limit]
                rest = min((due for due, key in found if key not in due_now), default=None)
                self.results.append(partial(self.loaded, what, due_now, rest))
            else:
                assert isinstance(what, bytes)
                queues = sorted((min(due for name, due in self.indexed.values() if name == queue), queue)
                                for queue in {name for name, _ in self.indexed.values()})
                after = (int(what.split()[0]), what.split()[1].decode()) if what else (-1, "")
                page = [entry for entry in queues if entry > after][:limit]
                last = f"{page[-1][0]} {page[-1][1]}".encode() if len(page) == limit else None
                self.results.append(partial(self.scheduler.scanned, 0, page, last))

    def loaded(self, queue: Queue, keys: list[tuple[int, int]], rest: int | None) -> None:
        copies = []
        for key in keys:
            if self.visible(key):  # what was settled meanwhile is left out, as the store does
                one = self.stored[key]
                copies.append(Delivery(Message(key[0], "a@b.test", 0, None, size=100), 0, one.queue, one.domain,
                                       one.recipients, one.due_us))
        self.scheduler.loaded(queue, copies, rest)

    def settle(self) -> None:
        while self.pending:
            self.answer()

    def deliver_all(self) -> list[tuple[int, int]]:
        """Take what can be taken until nothing moves any more; everything is removed at once."""
        taken = []
        while True:
            self.settle()
            for queue in list(self.offered):
                one = self.scheduler.pop(queue)
                if one is None:
                    self.offered.remove(queue)
                    continue
                taken.append(one.key)
                del self.stored[one.key]
                self.changed.add(one.queue)
                self.scheduler.done(queue, one)
            self.keep_time()
            if not self.offered and not self.pending:
                return taken


def indexed(shelf: Shelf, *deliveries: Delivery) -> None:
    """Put deliveries where only loads and scans find them."""
    for one in deliveries:
        shelf.stored[one.key] = one
        shelf.indexed[one.key] = (one.queue, one.due_us)
