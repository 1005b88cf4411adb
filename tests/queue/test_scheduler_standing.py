"""The scheduler finds again what stands still or waits for its time, however much there is, at little cost."""

from __future__ import annotations

import pytest

from mta.config.schema import Memory
from mta.config.units import Size
from tests.queue.shelf import SECOND, Shelf, delivery, indexed


def test_more_queues_than_wakes_are_all_found_again(monkeypatch: object) -> None:
    """Wakes are bounded; what falls out of the heap comes back from the index, parked queues too."""
    shelf = Shelf()
    shelf.scheduler.WAKES = 8
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
    shelf.scheduler.WAKES = 100
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
    shelf.scheduler.WAKES = 100
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
    shelf.scheduler.WAKES = 30
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
    shelf.scheduler.WAKES = 30
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
    shelf.scheduler.WAKES = 20
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
