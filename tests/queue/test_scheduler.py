"""The scheduler loses nothing and keeps its bounds, whatever the order of events; its store is a `Shelf`."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mta.config.schema import Memory
from mta.config.units import Size
from mta.queue.records import Delivery
from mta.queue.scheduler import FOREVER_US, Queue, domain_of, tenant_of
from tests.queue.shelf import SECOND, Shelf, delivery, indexed


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
