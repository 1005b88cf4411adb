"""The scheduler loses nothing and keeps its bounds, whatever the order of events.

The store is played by `Shelf`: a list of deliveries with due times, of which some are "indexed" (visible to loads)
and the others become visible at the next checkpoint, exactly as the real store behaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mta.config.schema import Memory
from mta.config.units import Size
from mta.queue.records import Delivery, Message, Recipient
from mta.queue.scheduler import FOREVER_US, Queue, Scheduler, domain_of, tenant_of

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


def test_names_say_domain_and_tenant() -> None:
    """`campaign:tenant@domain/pool` with parts left out."""
    assert [domain_of(name) for name in ("a.org", "t@a.org", "c:t@a.org/p", "a.org/p")] == ["a.org"] * 4
    assert [tenant_of(name) for name in ("a.org", "t@a.org", "c:t@a.org/p", "a.org/p")] == ["", "t", "t", ""]


def test_fresh_mail_is_offered_at_once_in_order() -> None:
    """What comes in goes out, first in, first out, without a look at the disk."""
    shelf = Shelf()
    keys = [shelf.accept("a.org").key for _ in range(5)]

    assert not shelf.pending
    assert shelf.deliver_all() == keys
    assert not shelf.scheduler.queues


def test_fresh_mail_does_not_wait_for_the_retry_of_other_mail() -> None:
    """A queue with a deferred delivery takes new ones into memory and out at once."""
    shelf = Shelf()
    shelf.scheduler.run()
    old = shelf.accept("a.org")
    shelf.scheduler.pop(shelf.offered[0])
    shelf.stored[old.key].due_us = 60 * SECOND
    shelf.scheduler.done(shelf.offered[0], old)
    shelf.checkpoint()
    shelf.settle()
    assert shelf.scheduler.next_wake_us() == 60 * SECOND

    fresh = shelf.accept("a.org")

    assert shelf.deliver_all() == [fresh.key]


def test_fresh_mail_does_not_wait_for_a_look_at_the_index() -> None:
    """After a checkpoint the scheduler looks what else is due in each queue that has something in flight. So many looks
    reserve all the room there is; those that have to wait for their look take fresh mail all the same."""
    shelf = Shelf()  # room for ten windows
    names = [f"d{number}.org" for number in range(15)]
    for name in names:
        shelf.accept(name)
    for queue in shelf.offered:
        shelf.scheduler.pop(queue)
    shelf.checkpoint()

    fresh = {name: shelf.accept(name) for name in names}

    assert [list(queue.ready) for queue in shelf.offered] == [[fresh[name]] for name in names]


def test_a_full_window_leaves_the_rest_on_disk_and_fetches_it_in_order() -> None:
    """The window bounds what one queue has in memory; the rest follows from the index, oldest first."""
    shelf = Shelf()
    keys = []
    for _ in range(35):
        shelf.now_us += 1
        keys.append(shelf.accept("a.org").key)
    assert shelf.scheduler.deliveries == 10
    shelf.checkpoint()

    assert shelf.deliver_all() == keys


def test_content_is_kept_within_the_bound() -> None:
    """Above `memory.bodies` a delivery stays in memory but its content does not."""
    shelf = Shelf(Memory(bodies=Size(250), deliveries=100, window=10))
    kept = [shelf.accept("a.org").message.content is not None for _ in range(4)]

    assert kept == [True, True, False, False]
    assert shelf.scheduler.body_bytes == 200
    shelf.deliver_all()
    assert shelf.scheduler.body_bytes == 0


def test_a_parked_queue_costs_nothing_until_its_time() -> None:
    """While a path is suspended its mail is not read, not woken by checkpoints, and in full afterwards."""
    shelf = Shelf()
    shelf.scheduler.run()
    shelf.settle()
    shelf.suspended_until["a.org"] = 60 * SECOND
    keys = [shelf.accept("a.org").key for _ in range(12)]
    shelf.checkpoint()
    keys += [shelf.accept("a.org").key for _ in range(3)]
    shelf.checkpoint()
    assert shelf.pending == []
    assert shelf.scheduler.deliveries == 0
    assert shelf.scheduler.next_wake_us() == 60 * SECOND

    shelf.now_us = 60 * SECOND
    shelf.scheduler.run()

    assert sorted(shelf.deliver_all()) == sorted(keys)


def test_start_up_reads_due_queues_only() -> None:
    """A new scheduler asks for the first queues by due time, wakes those that are due, and sleeps until the next."""
    shelf = Shelf()
    for number, (name, due) in enumerate([("due.org", 0), ("later.org", 50 * SECOND)]):
        one = delivery(number, name, due)
        shelf.stored[one.key] = one
    shelf.indexed = {key: (one.queue, one.due_us) for key, one in shelf.stored.items()}

    shelf.scheduler.run()

    assert shelf.deliver_all() == [(0, 0)]
    assert shelf.scheduler.next_wake_us() == 50 * SECOND
    shelf.now_us = 50 * SECOND
    shelf.scheduler.run()
    assert shelf.deliver_all() == [(1, 0)]


def test_more_queues_than_wakes_are_all_found_again(monkeypatch: object) -> None:
    """Wakes are bounded; what falls out of the heap comes back from the index, parked queues too."""
    shelf = Shelf()
    shelf.scheduler.WAKES = 8  # type: ignore[misc]
    for index in range(60):
        shelf.suspended_until[f"d{index:02d}.org"] = (10 + index) * SECOND
        shelf.accept(f"d{index:02d}.org")
    shelf.checkpoint()
    shelf.settle()
    assert len(shelf.scheduler._wakes) <= 17

    taken = 0
    for _ in range(200):
        shelf.now_us += SECOND
        shelf.scheduler.run()
        taken += len(shelf.deliver_all())

    assert taken == 60


def test_queues_that_wake_for_the_same_time_again_are_all_found_again() -> None:
    """Each queue has something due later, and its site stands still for a shorter time: after each look the same later
    time is a wake once more, so the heap has it twice. When the heap is shortened no queue is forgotten."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=1000, window=10))
    shelf.scheduler.WAKES = 100  # type: ignore[misc]
    names = [f"d{number:02d}.org" for number in range(60)]
    for number, name in enumerate(names):
        indexed(shelf, delivery(number, name, SECOND), delivery(100 + number, name, (30 + number) * SECOND))
    for _ in range(2):
        shelf.suspended_until = dict.fromkeys(names, shelf.now_us + 2 * SECOND)
        shelf.scheduler.run()
        shelf.settle()
        shelf.now_us += 2 * SECOND
    shelf.suspended_until = {}
    shelf.scheduler.run()
    shelf.settle()

    shelf.scheduler.checkpoint(0, [(f"x{number}.org", 20 * SECOND) for number in range(60)])

    assert len(shelf.scheduler._wakes) <= 200
    taken = len(shelf.deliver_all())
    for _ in range(120):
        shelf.now_us += SECOND
        shelf.scheduler.run()
        taken += len(shelf.deliver_all())
    assert taken == 2 * len(names)


def test_more_queues_stand_still_than_there_are_wakes_and_others_get_what_is_due() -> None:
    """400 sites take nothing, and their queues come back as long as they are there, which keeps the heap of 100 wakes
    full. Each is tried all the same, and so is what others have due, also what waits for a retry."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=5000, window=10))
    shelf.scheduler.WAKES = 100  # type: ignore[misc]
    dead = {f"dead{number}.org" for number in range(400)}
    for number, name in enumerate(sorted(dead)):
        indexed(shelf, *[delivery(1000 * turn + number, name, (1 + 40 * turn) * SECOND) for turn in range(3)])
    indexed(shelf, delivery(90_000, "live.org", 30 * SECOND))
    tried: dict[str, int] = {}  # when last
    shelf.scheduler.run()
    for second in range(1, 150):
        if second == 50:  # a first attempt was deferred
            retry = delivery(90_001, "greylists.org", 70 * SECOND)
            shelf.stored[retry.key] = retry
            shelf.changed.add(retry.queue)
            shelf.checkpoint()
        shelf.keep_time()
        while shelf.pending or shelf.offered:
            shelf.settle()
            for queue in list(shelf.offered):
                tried[queue.name] = second
                if queue.name in dead:
                    shelf.suspended_until[queue.name] = shelf.now_us + 20 * SECOND
                    shelf.scheduler.park(queue, shelf.now_us + 20 * SECOND)
                elif (one := shelf.scheduler.pop(queue)) is not None:
                    del shelf.stored[one.key]
                    shelf.changed.add(one.queue)
                    shelf.scheduler.done(queue, one)
            shelf.keep_time()
        shelf.checkpoint()
        assert len(shelf.scheduler._wakes) <= 200
        shelf.now_us += SECOND

    assert (tried["live.org"], tried["greylists.org"]) == (30, 70)
    assert dead <= tried.keys()
    assert min(tried.values()) >= 30
    assert sum(second >= 100 for second in tried.values()) > 300  # not the same few all the time


def test_what_stands_still_is_not_read_however_often_it_is_looked_for() -> None:
    """500 queues before sites that stand still, each for another time, of which 30 fit into the heap: those that fell
    out of it are looked for again and again, and read when their site may be tried; in time."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=5000, window=10))
    shelf.scheduler.WAKES = 30  # type: ignore[misc]
    names = [f"d{number}.org" for number in range(500)]
    for number, name in enumerate(names):
        indexed(shelf, delivery(number, name, SECOND))
        shelf.suspended_until[name] = (10 + number % 50) * SECOND
    taken: list[int] = []
    for second in range(1, 70):
        shelf.now_us = second * SECOND
        shelf.keep_time()
        while shelf.pending or shelf.alarmed or shelf.scheduler.next_wake_us() <= shelf.now_us:
            shelf.answer()
            shelf.keep_time()
        taken += [second - shelf.suspended_until[f"d{key[0]}.org"] // SECOND for key in shelf.deliver_all()]
        shelf.checkpoint()
        assert len(shelf.scheduler._wakes) <= 60
        assert len(shelf.scheduler._parked) <= 60
    assert len(taken) == 500
    assert max(taken) <= 1
    assert shelf.loads <= 1.5 * len(names), shelf.loads


def test_looking_for_what_stands_still_rests() -> None:
    """A look at all that is due takes its time for each queue. However many there are, it is one part of twenty of all
    time, and each site is tried after that rest at the latest."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=5000, window=10))
    shelf.scheduler.WAKES = 30  # type: ignore[misc]
    names = [f"d{number}.org" for number in range(500)]
    for number, name in enumerate(names):
        indexed(shelf, delivery(number, name, 1))
        shelf.suspended_until[name] = (10 + number) * SECOND
    looking_us = 0
    late: list[int] = []
    while shelf.now_us < 700 * SECOND:
        shelf.now_us += SECOND // 2
        shelf.keep_time()
        while shelf.pending or shelf.alarmed or shelf.scheduler.next_wake_us() <= shelf.now_us:
            for kind, *_ in shelf.pending:
                if kind == "scan":
                    looking_us += SECOND // 4
                    shelf.now_us += SECOND // 4
            shelf.answer()
            shelf.keep_time()
        late += [shelf.now_us - shelf.suspended_until[f"d{key[0]}.org"] for key in shelf.deliver_all()]
        shelf.checkpoint()
    assert len(late) == 500
    assert looking_us < shelf.now_us // 12, looking_us // SECOND
    assert max(late) < 300 * SECOND, max(late) // SECOND


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_a_look_that_is_asked_for_all_the_time_comes_to_its_end(every: int) -> None:
    """Sites are freed all the time, at each of which all that is due is to be looked at again, in the middle of a look
    and while a page of the index is read. Whatever stands in that index is found in time: no look is begun anew from
    where a page ended that was asked for before, and none is begun anew for ever."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=5000, window=10))
    shelf.scheduler.WAKES = 20  # type: ignore[misc]
    names = [f"d{number:03}.org" for number in range(120)]
    for number, name in enumerate(names):
        indexed(shelf, delivery(number, name, 1))
        shelf.suspended_until[name] = (10 + number % 7) * SECOND
    for step in range(200):
        shelf.now_us += SECOND // 4
        if step % every == 0:
            shelf.scheduler.repark(lambda name, until_us: until_us)
        shelf.keep_time()
        shelf.answer()
        shelf.keep_time()
        for queue in list(shelf.offered):
            one = shelf.scheduler.pop(queue)
            if one is None:
                shelf.offered.remove(queue)
            else:
                del shelf.stored[one.key]
                shelf.changed.add(one.queue)
                shelf.scheduler.done(queue, one)
        shelf.checkpoint()
    assert len(shelf.stored) == 0


def test_a_clock_that_is_set_makes_no_rest_of_days() -> None:
    """The rest after a look is reckoned from how long that took. If the clock was set forward in it by a day it would
    be twenty days, and what falls out of the heap from then on would wait for it."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=5000, window=10))
    scheduler = shelf.scheduler
    scheduler.run()
    shelf.answer()
    scheduler._rescan_us = shelf.now_us
    scheduler.run()
    assert scheduler._rescan_began_us
    shelf.now_us += 86_400 * SECOND
    shelf.answer()
    assert not scheduler._rescan_began_us
    scheduler.repark(lambda name, until_us: until_us + 86_400 * SECOND)  # the engine has noticed
    scheduler._rescan_us = shelf.now_us
    assert scheduler.next_wake_us() <= shelf.now_us


def indexed(shelf: Shelf, *deliveries: Delivery) -> None:
    """Put deliveries where only loads and scans find them."""
    for one in deliveries:
        shelf.stored[one.key] = one
        shelf.indexed[one.key] = (one.queue, one.due_us)


def test_a_slow_site_leaves_room_for_all_others() -> None:
    """A backlog of many queues of one slow site, as after a start: it has two thirds of memory at most. Fresh mail of
    others, and what is due of it on disk, gets in and out meanwhile; when the site takes mail all of it goes."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=1000, window=50))
    shelf.number = 100_000
    slow = [delivery(number, f"s{number % 300}.org") for number in range(20_000)]
    shelf.parts = {f"s{number}.org": "slow site" for number in range(300)}
    due = [delivery(30_000 + number, f"due{number}.org") for number in range(200)]
    indexed(shelf, *slow, *due)

    shelf.scheduler.run()
    stuck = shelf.scheduler
    for _ in range(50):  # nothing of the slow site moves
        shelf.settle()
        for queue in [queue for queue in shelf.offered if not queue.name.startswith("s")]:
            shelf.offered.remove(queue)
            while (one := stuck.pop(queue)) is not None:
                del shelf.stored[one.key]
                shelf.changed.add(one.queue)
                stuck.done(queue, one)
        shelf.keep_time()
    assert not [one for one in shelf.stored.values() if one.queue.startswith("due")]
    assert 500 <= stuck.deliveries <= 667
    before = stuck.deliveries
    for number in range(10_000):
        shelf.accept(f"fresh{number}.org")
        fresh = [queue for queue in shelf.offered if queue.name.startswith("fresh")]
        assert [len(queue.ready) for queue in fresh] == [1]
        shelf.offered.remove(fresh[0])
        one = stuck.pop(fresh[0])
        assert one is not None
        del shelf.stored[one.key]
        stuck.done(fresh[0], one)
    assert stuck.deliveries == before
    assert len(shelf.deliver_all()) == 20_000
    assert (len(stuck._parts), stuck.queues) == (0, {})


@pytest.mark.parametrize("paused", [False, True])
def test_those_in_line_are_called_by_the_last_that_leaves(paused: bool) -> None:
    """Queues wait for room that their site may have, and the last of its mail that is in memory goes while all of that
    is full of others' mail, or the first ones in line stand still by themselves. The others come back all the same, as
    there is nothing left that would call them later."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=160, window=10))
    shelf.number = 10_000
    indexed(shelf, *(delivery(number, f"s{number:03}.org") for number in range(400)))
    shelf.parts = {f"s{number:03}.org": "slow site" for number in range(400)}
    scheduler = shelf.scheduler
    scheduler.run()
    while shelf.pending or shelf.alarmed:
        shelf.settle()
        shelf.keep_time()
    part = scheduler._parts._parts["slow site"]
    assert len(part.line) > 3 * part.held > 0 == part.coming
    others = 0
    if paused:
        shelf.suspended_until = {name: 86_400 * SECOND for _, name in list(part.line)[:-10]}
    while part.held:
        while not paused and scheduler.deliveries < 160:
            others += 1
            shelf.accept(f"other{others}.org^transactional")
        queue = next(queue for queue in shelf.offered if queue.name.startswith("s"))
        if (one := scheduler.pop(queue)) is None:
            shelf.offered.remove(queue)
            continue
        del shelf.stored[one.key]
        shelf.changed.add(one.queue)
        scheduler.done(queue, one)
        if not paused:
            shelf.keep_time()
            shelf.settle()

    shelf.deliver_all()
    assert {one.queue for one in shelf.stored.values()} == shelf.suspended_until.keys()
    shelf.now_us = 86_400 * SECOND
    shelf.keep_time()
    shelf.deliver_all()
    assert (shelf.stored, len(scheduler._parts)) == ({}, 0)


def test_a_queue_whose_site_turns_out_to_have_its_share_leaves_memory_again() -> None:
    """What a queue belongs to may be known only after it was loaded."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=60, window=40))
    indexed(shelf, *(delivery(number, f"s{number // 40}.org") for number in range(120)))
    shelf.scheduler.run()
    shelf.settle()
    known = list(shelf.offered)
    assert len(known) >= 2
    shares = [shelf.scheduler.share(queue, "slow site") for queue in known]
    assert shares[0]
    assert not all(shares)
    assert shelf.scheduler.deliveries <= 40
    shelf.parts = {f"s{number}.org": "slow site" for number in range(3)}
    assert len(shelf.deliver_all()) == 120


def test_room_is_reserved_for_transactional_mail() -> None:
    """However many sites are slow: fresh transactional mail is held and goes out at once."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=160, window=40))
    for number in range(400):
        shelf.accept(f"d{number}.org")
    assert shelf.scheduler.deliveries == 150
    shelf.accept("d1.org^transactional")
    assert [queue.name for queue in shelf.offered if queue.priority == 0] == ["d1.org^transactional"]
    shelf.checkpoint()
    assert len(shelf.deliver_all()) == 401


def test_a_queue_that_comes_back_is_read_in_full_only_when_mail_of_it_goes() -> None:
    """A site that is tried again mostly fails again: a thousand deliveries would be read for nothing each time."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=10_000, window=1000))
    indexed(shelf, *(delivery(number, "dead.org") for number in range(500)))
    shelf.scheduler.run()
    shelf.settle()
    assert shelf.scheduler.deliveries == Scheduler.FIRST
    shelf.scheduler.park(shelf.offered[0], shelf.now_us + SECOND)
    shelf.now_us += SECOND
    shelf.keep_time()
    shelf.settle()
    assert shelf.scheduler.deliveries == Scheduler.FIRST
    first = shelf.scheduler.pop(shelf.offered[0])
    assert first is not None
    shelf.settle()
    assert shelf.scheduler.deliveries == 500


def test_loads_at_the_same_time_stay_within_the_bound_together() -> None:
    """Many long queues that are due at once, as after a start, bring no more into memory than one would."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=25, window=10))
    indexed(shelf, *(delivery(number, f"d{number % 20}.org") for number in range(400)))

    shelf.scheduler.run()
    while shelf.pending:
        shelf.answer()
        assert shelf.scheduler.deliveries <= 25

    assert len(shelf.deliver_all()) == 400


def test_room_that_a_suspended_site_leaves_is_used_at_once() -> None:
    """When memory is full of mail that gets parked, what waited for room is called for."""
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=10, window=10))
    indexed(shelf, *(delivery(number, "dead.org") for number in range(10)), delivery(10, "live.org", 1))
    shelf.scheduler.run()
    shelf.settle()
    assert shelf.scheduler.starved

    shelf.suspended_until["dead.org"] = 3600 * SECOND
    shelf.scheduler.park(shelf.offered[0], 3600 * SECOND)

    assert shelf.deliver_all() == [(10, 0)]


def test_a_retry_is_not_forgotten_for_fresh_mail_in_memory() -> None:
    """A queue that the scan of the index finds while fresh mail of it is in memory is woken for its retry."""
    shelf = Shelf()
    indexed(shelf, delivery(0, "a.org", 50 * SECOND))
    shelf.scheduler.run()
    shelf.number = 1
    fresh = shelf.accept("a.org")  # before the scan is answered
    assert shelf.deliver_all() == [fresh.key]

    shelf.now_us = 50 * SECOND

    assert shelf.deliver_all() == [(0, 0)]


def test_what_was_taken_to_be_ended_is_given_to_nobody_else() -> None:
    """`take` leaves out what is in memory, and what it takes is not loaded meanwhile, even by a load under way."""
    shelf = Shelf()
    indexed(shelf, *(delivery(number, "a.org") for number in range(3)))
    shelf.scheduler.run()
    shelf.answer()
    shelf.answer()
    assert shelf.scheduler.deliveries == 3
    assert shelf.scheduler.take(0, [delivery(1, "a.org")]) == []

    indexed(shelf, delivery(7, "b.org"), delivery(8, "b.org"))
    shelf.scheduler.checkpoint(0, [("b.org", 0)])
    shelf.scheduler.run()
    shelf.read()  # the load of b.org
    (queue, one), = shelf.scheduler.take(0, [delivery(7, "b.org")])
    shelf.tell()

    assert [other.key for other in queue.ready] == [(8, 0)]
    del shelf.stored[one.key]
    shelf.scheduler.done(queue, one)
    assert sorted(shelf.deliver_all()) == [(0, 0), (1, 0), (2, 0), (8, 0)]


def test_what_waits_in_memory_can_be_taken_and_put_back() -> None:
    """`take_waiting` finds what is in a window by copies of it; nothing is lost, and all of it is given out once."""
    shelf = Shelf()
    indexed(shelf, *(delivery(number, "a.org") for number in range(4)))
    shelf.scheduler.run()
    shelf.answer()
    shelf.answer()
    (queue,) = shelf.scheduler.queues.values()
    flying = shelf.scheduler.pop(queue)
    waiting = [one for one in queue.ready if one.key in ((1, 0), (3, 0))]

    taken = shelf.scheduler.take_waiting(0, [delivery(0, "a.org"), delivery(1, "a.org"), delivery(3, "a.org"),
                                             delivery(9, "other.org")])

    assert flying is not None
    assert flying.key == (0, 0)
    assert [one for _, one in taken] == waiting
    assert [one.key for one in queue.ready] == [(2, 0)]
    for _, one in taken:
        shelf.scheduler.put_back(queue, one)
    shelf.scheduler.put_back(queue, flying)
    assert sorted(shelf.deliver_all()) == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_a_parked_queue_in_flight_is_not_read() -> None:
    """While a delivery of a parked queue is still in flight, checkpoints and fresh mail cause no reads either."""
    shelf = Shelf()
    shelf.accept("a.org")
    shelf.accept("a.org")
    queue = shelf.offered[0]
    shelf.scheduler.pop(queue)
    shelf.suspended_until["a.org"] = 60 * SECOND
    shelf.scheduler.park(queue, 60 * SECOND)
    shelf.scheduler.run()
    shelf.settle()

    shelf.checkpoint()
    shelf.accept("a.org")
    shelf.checkpoint()

    assert shelf.pending == []
    assert shelf.scheduler.deliveries == 1


class Traffic(RuleBasedStateMachine):
    """Random traffic; in the end every delivery was taken exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf(Memory(bodies=Size(400), deliveries=12, window=4))
        self.shelf.parts = dict.fromkeys(("a.org", "b.org"), "site")
        self.shelf.scheduler.run()  # as the engine does at its start
        self.flying: list[tuple[Queue, Delivery]] = []
        self.ended: list[tuple[int, int]] = []

    @rule(name=st.sampled_from(["a.org", "b.org", "t@c.org"]), count=st.integers(1, 8))
    def accept(self, name: str, count: int) -> None:
        for _ in range(count):
            self.shelf.now_us += 1
            self.shelf.accept(name)

    @rule()
    def take(self) -> None:
        for queue in list(self.shelf.offered):
            one = self.shelf.scheduler.pop(queue)
            if one is None:
                self.shelf.offered.remove(queue)
            else:
                assert one.key not in [other.key for _, other in self.flying], "taken twice"
                assert one.key not in self.ended, "taken after its end"
                self.flying.append((queue, one))

    @rule(last=st.booleans())
    def finish(self, last: bool) -> None:
        if self.flying:
            queue, one = self.flying.pop(-1 if last else 0)
            del self.shelf.stored[one.key]
            self.shelf.changed.add(one.queue)
            self.ended.append(one.key)
            self.shelf.scheduler.done(queue, one)

    @rule(wait=st.integers(1, 5))
    def defer(self, wait: int) -> None:
        if self.flying:
            queue, one = self.flying.pop(0)
            stored = self.shelf.stored[one.key]
            stored.due_us = self.shelf.now_us + wait * SECOND
            self.shelf.changed.add(one.queue)
            self.shelf.scheduler.done(queue, one)

    @rule()
    def put_back(self) -> None:
        if self.flying:
            self.shelf.scheduler.put_back(*self.flying.pop())

    @rule(name=st.sampled_from(["a.org", "b.org"]), wait=st.integers(1, 4))
    def suspend(self, name: str, wait: int) -> None:
        self.shelf.suspended_until[name] = self.shelf.now_us + wait * SECOND
        for queue in [queue for queue in self.shelf.offered if queue.name == name]:
            self.shelf.scheduler.park(queue, self.shelf.suspended_until[name])

    @rule()
    def begin_checkpoint(self) -> None:
        if self.shelf.report is None:
            self.shelf.begin_checkpoint()

    @rule()
    def end_checkpoint(self) -> None:
        self.shelf.end_checkpoint()

    @rule()
    def answer(self) -> None:
        self.shelf.answer()

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds: int) -> None:
        self.shelf.now_us += seconds * SECOND
        self.shelf.keep_time()

    @invariant()
    def within_bounds(self) -> None:
        scheduler = self.shelf.scheduler
        held = sum(len(queue.ready) + len(queue.in_flight) for queue in scheduler.queues.values())
        assert held == scheduler.deliveries <= 12
        assert scheduler.body_bytes <= 400

    def teardown(self) -> None:
        shelf = self.shelf
        for queue, one in self.flying:
            shelf.scheduler.put_back(queue, one)
        self.flying = []
        for _ in range(40):
            shelf.end_checkpoint()
            shelf.checkpoint()
            self.ended += shelf.deliver_all()
            shelf.now_us += SECOND
            shelf.keep_time()
        assert not shelf.stored, f"left behind: {list(shelf.stored)}"
        assert len(set(self.ended)) == len(self.ended)
        assert not shelf.scheduler.queues
        assert shelf.scheduler.deliveries == 0
        assert shelf.scheduler.body_bytes == 0


Traffic.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestTraffic = Traffic.TestCase


def test_nothing_to_wait_for_means_forever() -> None:
    """Without work the scheduler asks for no wake-up at all."""
    shelf = Shelf()
    shelf.scheduler.run()
    shelf.settle()

    assert shelf.scheduler.next_wake_us() == FOREVER_US
