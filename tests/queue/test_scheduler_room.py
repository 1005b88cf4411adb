"""The scheduler shares memory between sites: a slow one leaves room for all others, and what found none is called."""

from __future__ import annotations

import pytest

from mta.config.schema import Memory
from mta.config.units import Size
from mta.queue.parts import Part, Parts
from mta.queue.scheduler import Scheduler
from tests.queue.shelf import SECOND, Shelf, delivery, indexed


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


def test_places_in_line_are_shared_by_sites() -> None:
    """One alone has half of them, two have a third each, and each has a few whatever the others have."""
    parts = Parts(9000)

    def fill(part: Part) -> int:
        for number in range(10_000):
            parts.line_up(part, (0, f"{part.name}{number}.org"))
        return len(part.line)

    one, two = parts.join("one"), parts.join("two")
    assert (fill(one), one.more) == (4500, True)
    assert (fill(two), fill(parts.join("three")), fill(parts.join("four"))) == (2250, 1125, 1000)
    assert parts.next_in_line(two) == (0, "two0.org")
    parts.dissolve(one)
    assert (len(one.line), one.more, fill(parts.join("five"))) == (0, True, 2313)


def test_more_queues_than_there_are_places_in_line_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three sites that have the memory among them; what found no place is looked for when a line is empty."""
    monkeypatch.setattr("mta.queue.parts.FEW", 5)
    shelf = Shelf(Memory(bodies=Size(1000), deliveries=160, window=10))
    scheduler = shelf.scheduler
    scheduler._parts = Parts(30)
    indexed(shelf, *(delivery(number, f"s{number:03}.org") for number in range(400)))
    shelf.parts = {f"s{number:03}.org": f"slow site {number % 3}" for number in range(400)}
    scheduler.run()
    longest = taken = 0
    for turn in range(3000):  # time passes: looks rest, and the index follows
        shelf.now_us += SECOND // 10
        if turn % 10 == 0:
            shelf.checkpoint()
        shelf.answer()
        shelf.keep_time()
        longest = max(longest, sum(len(part.line) for part in scheduler._parts._parts.values()))
        for queue in shelf.offered[:1]:
            one = scheduler.pop(queue)
            if one is None:
                shelf.offered.remove(queue)
                continue
            taken += 1
            del shelf.stored[one.key]
            shelf.changed.add(one.queue)
            scheduler.done(queue, one)
        if not shelf.stored:
            break
    assert taken == 400
    assert 15 <= longest <= 30


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
