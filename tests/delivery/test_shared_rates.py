"""Rates in the table of limits: several workers in one process, with a given clock."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from mta.delivery import limit_table, shared_rates
from mta.delivery.limits import Limits
from mta.delivery.rates import Bucket


class Clock:
    """The monotonic clock, standing still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Limits]]:
    """Three workers on one environment, as LMDB allows one per process."""
    env = limit_table.open_table(tmp_path / "limits")
    monkeypatch.setattr(limit_table, "open_table", lambda directory: env)
    yield [Limits(str(tmp_path), worker) for worker in range(3)]
    env.close()


def levels(limits: Limits) -> int:
    """How many buckets the table knows."""
    return sum(len(piece) for piece in limit_table.walk(limits._env, limit_table.LEVEL, 100))


def test_workers_take_turns(crew: list[Limits], clock: Clock) -> None:
    """Each has its own place; who asks too early gets the same answer; who comes new goes behind."""
    bucket = (Bucket("path", 1, 10.0),)
    assert crew[0].reserve(bucket) == 0.0
    times = [worker.reserve(bucket) for worker in crew]
    assert times == sorted(times)
    assert times[1] - times[0] == pytest.approx(bucket[0].spacing)
    assert [worker.reserve(bucket) for worker in crew] == times
    for number in (0, 1, 2):
        clock.now = times[number]
        assert [not worker.reserve(bucket) for worker in crew] == [one == number for one in range(3)]


def test_asking_early_costs_no_look_at_the_table(crew: list[Limits], clock: Clock,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Many connections may ask for the same path while its place is not due."""
    bucket = (Bucket("path", 1, 10.0),)
    crew[0].reserve(bucket)
    at = crew[0].reserve(bucket)
    monkeypatch.setattr(crew[0]._rates, "_env", None)
    assert crew[0].reserve(bucket) == at


def test_a_place_of_a_dead_worker_is_lost_once(crew: list[Limits], clock: Clock) -> None:
    """The line behind it goes on, and the place after it is not delayed."""
    bucket = (Bucket("path", 1, 10.0),)
    crew[0].reserve(bucket)
    dead, alive = crew[1].reserve(bucket), crew[2].reserve(bucket)
    clock.now = alive
    assert crew[2].reserve(bucket) == 0.0
    clock.now += bucket[0].spacing
    assert crew[0].reserve(bucket) == 0.0
    assert dead < alive


def test_who_waits_for_the_table_takes_what_is_due_then(crew: list[Limits], clock: Clock) -> None:
    """Others may have the table for long: a message goes when it is had, and the next one so much later."""
    bucket = (Bucket("path", 10, 1.0),)
    env = crew[0]._rates._env

    class Busy:
        def begin(self, write: bool) -> Any:
            clock.now += 0.09
            return env.begin(write=write)

    crew[0]._rates._env = Busy()
    assert crew[0].reserve(bucket) == 0.0
    sent = clock.now
    assert crew[1].reserve(bucket) >= sent + 0.09
    crew[0].charge(bucket)
    assert crew[2].reserve(bucket) >= clock.now + 0.09


def test_what_is_handed_back_is_free(crew: list[Limits], clock: Clock) -> None:
    """A message that was let through and not sent, and a place: both, unless others came after."""
    bucket = (Bucket("path", 1, 10.0), Bucket("source", 1, 5.0))
    assert crew[0].reserve(bucket) == 0.0
    crew[0].hand_back(bucket)
    assert crew[1].reserve(bucket) == 0.0
    place = crew[0].reserve(bucket)
    crew[0].hand_back(bucket)
    assert crew[2].reserve(bucket) == pytest.approx(place)
    behind = crew[0].reserve(bucket)
    crew[2].hand_back(bucket)  # somebody has come after: it is lost
    assert crew[1].reserve(bucket) == pytest.approx(behind + bucket[0].spacing)


def test_what_is_handed_back_late_is_no_later_one(crew: list[Limits], clock: Clock) -> None:
    """A message was let through, then another one; the first is not sent after all: its time is over, and the second
    was sent. So the next one is not let through sooner."""
    bucket = (Bucket("path", 10, 1.0),)
    times = []
    for _ in range(2):
        assert crew[0].reserve(bucket) == 0.0
        times.append(clock.now)
        clock.now += bucket[0].spacing
    crew[0].hand_back(bucket, since=times[0])
    clock.now = times[1] + 0.01
    assert crew[0].reserve(bucket) > clock.now
    crew[0].hand_back(bucket)
    clock.now = times[1] + bucket[0].spacing
    assert crew[0].reserve(bucket) == 0.0
    crew[0].hand_back(bucket, since=clock.now)
    assert crew[0].reserve(bucket) == 0.0


def test_what_is_handed_back_late_leaves_a_place_also_at_another_rate(crew: list[Limits], clock: Clock) -> None:
    """A reload in between makes it no younger: the place that was given since is kept."""
    slow, fast = (Bucket("path", 1, 10.0),), (Bucket("path", 1, 5.0),)
    assert crew[0].reserve(slow) == 0.0
    since = clock.now
    clock.now += 1.0
    crew[0].reserve(slow)
    place = crew[0].reserve(fast)
    crew[0].hand_back(fast, since=since)
    assert crew[0].reserve(fast) == place


def test_a_change_of_the_rate_moves_those_who_wait(crew: list[Limits], clock: Clock) -> None:
    """A reload from one a minute to ten a second, and back: asked again, they are told the new time."""
    slow, fast = (Bucket("path", 1, 60.0),), (Bucket("path", 10, 1.0),)
    crew[0].reserve(slow)
    assert crew[0].reserve(slow) > clock.now + 59
    assert crew[0].reserve(fast) < clock.now + 0.3
    clock.now += 0.3
    assert crew[0].reserve(fast) == 0.0
    assert crew[1].reserve(slow) > clock.now + 10


def test_a_rate_that_changes_all_the_time_is_used(crew: list[Limits], clock: Clock) -> None:
    """As adaptation changes it: those who wait keep their order, and no time is lost to places that nobody has any
    more. Each worker hears of a change at another time."""
    def rate() -> tuple[Bucket]:
        return (Bucket("path pace", 1 + int(clock.now / 7) % 5 / 50, 1.0),)

    rates, begin, granted = [rate() for _ in crew], clock.now, []
    while clock.now < begin + 100:
        clock.now += 0.02
        for number, worker in enumerate(crew):
            if int(clock.now * 50) % 10 == 3 * number:
                rates[number] = rate()
            if worker.reserve(rates[number]) == 0.0:
                granted.append(number)
    assert len(granted) >= 0.95 * 100
    assert min(granted.count(number) for number in range(len(crew))) >= 0.2 * 100


def test_a_fast_rate_is_taken_in_batches_while_one_has_to_wait(crew: list[Limits], clock: Clock,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """At a thousand per second a worker that sends without end looks at the table less often than it sends."""
    bucket = (Bucket("path", 1000, 1.0),)
    looks = 0
    real = shared_rates.take

    def counted(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        return real(*args)

    monkeypatch.setattr(shared_rates, "take", counted)
    sent = 0
    while clock.now < 1002.0:
        at = crew[0].reserve(bucket)
        if at:
            clock.now = at
        else:
            sent += 1
    assert sent >= 0.95 * 2000
    assert looks < sent / 2.5


def test_who_is_a_little_late_for_a_fast_rate_loses_nothing(crew: list[Limits], clock: Clock) -> None:
    """A loop that is 8 ms late every other time, at a thousand per second: of the 9 ms that are forgiven none go for
    the wait until several can be taken together."""
    bucket = (Bucket("path", 1000, 1.0),)
    began, sent = clock.now, []
    late_s = itertools.cycle((0.0, 0.008))
    while clock.now < began + 10.0:
        at = crew[0].reserve(bucket)
        if at:
            clock.now = at + next(late_s)
        else:
            sent.append(clock.now)
    assert len(sent) >= 0.965 * 10_000
    assert all(later - first >= 1.0 for first, later in zip(sent, sent[1000:], strict=False))


@pytest.mark.parametrize("late_s", [0.0, 0.015, 0.06])
def test_who_is_late_keeps_the_order_of_those_who_wait(crew: list[Limits], clock: Clock, late_s: float) -> None:
    """All workers are late for their places, on a machine that is busy: who took the slot stands behind the others for
    the next one, although their places were due and it was the first to ask again."""
    bucket = (Bucket("tenant", 20, 1.0),)
    told = [0.0] * 3
    sent: list[int] = []
    while len(sent) < 60:
        for worker in sorted(range(3), key=told.__getitem__):
            while told[worker] <= clock.now:
                told[worker] = crew[worker].reserve(bucket)
                sent += [worker] if not told[worker] else []
        clock.now = min(told) + late_s
    assert all(19 <= sent.count(worker) <= 21 for worker in range(3)), Counter(sent)


def test_what_is_in_hand_is_kept_by_its_time_and_not_by_when_it_was_taken(crew: list[Limits], clock: Clock) -> None:
    """Who is not late takes before the time for which a message is reckoned, and may keep it until a little after."""
    bucket = (Bucket("path", 1000, 1.0),)
    hand = None
    while hand is None or hand.left == 0:
        clock.now = max(clock.now, crew[0].reserve(bucket))
        hand = crew[0]._rates._hands["path",]
    first = hand.used[0] - (1 + hand.left) * bucket[0].spacing
    assert hand.good_until == pytest.approx(first + bucket[0].keep)
    assert hand.good_until >= clock.now + 0.008
    left, clock.now = hand.left, hand.good_until - 1e-6
    assert crew[0].reserve(bucket) == 0.0
    assert hand.left == left - 1


def test_what_was_kept_too_long_is_not_used(crew: list[Limits], clock: Clock) -> None:
    """Messages in hand are good for some milliseconds: later they would come on top of those of others."""
    bucket = (Bucket("path", 1000, 1.0),)
    while crew[0]._rates._hands == {} or crew[0]._rates._hands[("path",)].left == 0:
        at = crew[0].reserve(bucket)
        clock.now = max(clock.now, at)
    hand = crew[0]._rates._hands[("path",)]
    clock.now = hand.good_until + 0.1
    used_before = hand.used
    assert crew[0].reserve(bucket) == 0.0
    assert hand.used[0] > used_before[0]


def test_what_is_used_late_counts_from_then(crew: list[Limits], clock: Clock) -> None:
    """A right that waited for a disk: the next message is reckoned from its use, whoever stands in line for it; and
    when others have gone since it is lost."""
    bucket = (Bucket("path", 1, 1.0),)
    begun = clock.now
    assert crew[0].reserve(bucket) == 0.0
    place = crew[1].reserve(bucket)
    assert place == clock.now + bucket[0].spacing - bucket[0].ahead
    clock.now += 0.5
    assert crew[0].use_late(bucket, begun)
    clock.now = place
    again = crew[1].reserve(bucket)
    assert again == place + 0.5
    assert not crew[1].use_late(bucket, place)  # a place is no right
    clock.now = again
    assert crew[1].reserve(bucket) == 0.0
    assert not crew[0].use_late(bucket, begun)


def test_what_is_used_late_does_not_come_on_top_of_another_of_the_same_worker(
        crew: list[Limits], clock: Clock) -> None:
    """Two connections, two rights, and the disk is slow for the first: when it has its content the second has gone, of
    which its own right says nothing. At a thousand per second the disk stands still, and then all come at once."""
    bucket = (Bucket("path", 10, 1.0),)
    first = clock.now
    assert crew[0].reserve(bucket) == 0.0
    second = clock.now = crew[0].reserve(bucket)
    assert crew[0].reserve(bucket) == 0.0
    clock.now += 0.007
    assert not crew[0].use_late(bucket, first)
    clock.now += 0.05
    assert crew[0].use_late(bucket, second)
    assert crew[0].reserve(bucket) == pytest.approx(clock.now + bucket[0].spacing - bucket[0].ahead)

    fast = (Bucket("fast", 1000, 1.0),)
    begun, rights, sent = clock.now, [], []
    while clock.now < begun + 0.1:
        at = crew[0].reserve(fast)
        rights += [clock.now] if not at else []
        clock.now = max(clock.now, at)
    sent = [clock.now for since in rights if crew[0].use_late(fast, since)]
    while clock.now < begun + 2.0:
        at = crew[0].reserve(fast)
        sent += [clock.now] if not at else []
        clock.now = max(clock.now, at)
    assert all(later - one >= 1.0 for one, later in zip(sent, sent[1000:], strict=False))
    assert len(sent) >= 0.95 * 1900


def test_what_went_unasked_is_reckoned_whoever_has_a_place(crew: list[Limits], clock: Clock) -> None:
    """A receiver took a probe, and by that its rate is known: the next message goes a spacing later, though workers had
    places in line from the time before, which come sooner; also when several say that it went."""
    before, bucket = (Bucket("path", 1, 12.0),), (Bucket("path", 1, 15.0),)
    begun = clock.now
    assert crew[0].reserve(before) == 0.0
    assert [worker.reserve(before) > clock.now for worker in crew[:2]] == [True, True]  # then the receiver refuses
    clock.now += 11.0
    crew[0].charge(bucket)
    clock.now += 0.01
    crew[1].charge(bucket)
    sent = [clock.now]
    while len(sent) < 4:
        clock.now += 0.1
        sent += [clock.now for worker in crew[:2] if not worker.reserve(bucket)]
    spacing = bucket[0].spacing - bucket[0].ahead
    assert [after - one > spacing for one, after in itertools.pairwise([begun + 11.0, *sent[1:]])] == [True] * 3
    assert sent[-1] - begun < 11.0 + 3 * bucket[0].spacing + 1.0


def test_urgent_mail_of_any_worker_goes_first(crew: list[Limits], clock: Clock) -> None:
    """Nobody is told of it: who has the next place finds that it was pushed back by one, and so do those behind him."""
    own = [(Bucket(f"path{number}", 1000, 1.0), Bucket("provider", 1, 10.0)) for number in range(10)]
    crew[0].reserve(own[0])
    places = [crew[number % 2].reserve(buckets) for number, buckets in enumerate(own)]
    spacing = own[0][1].spacing
    urgent = (Bucket("path of another one", 1000, 1.0), own[0][1])
    at = crew[2].reserve(urgent, urgent=True)
    assert places[0] - 1.0 < at < places[0]
    clock.now = places[0] - 0.01
    assert crew[2].reserve(urgent, urgent=True) == 0.0
    order = []
    for moment in range(13):
        clock.now = places[0] + moment * spacing
        order += [number for number, buckets in enumerate(own) if not crew[number % 2].reserve(buckets)]
    assert order == [*range(10), 0, 1]  # the first ones went and stood in line again


def test_who_waits_keeps_his_place_while_urgent_mail_goes(crew: list[Limits], clock: Clock) -> None:
    """For a path that waits with bulk mail a transactional message comes: it goes next, and the bulk mail in its turn,
    also when the message comes at that very time."""
    path = (Bucket("path", 1000, 1.0), Bucket("provider", 1, 10.0))
    others = [(Bucket(f"path{number}", 1000, 1.0), path[1]) for number in range(4)]
    crew[0].reserve(path)
    for buckets in others:
        crew[0].reserve(buckets)
    place = crew[0].reserve(path)
    at = crew[0].reserve(path, urgent=True)
    assert at < clock.now + 11 < place
    assert crew[0].reserve(path, urgent=True) == at
    assert crew[0].reserve(path) == place
    clock.now = at
    assert crew[0].reserve(path, urgent=True) == 0.0
    assert crew[0].reserve(path) == place
    clock.now = place
    pushed = crew[0].reserve(path)
    assert pushed == pytest.approx(place + path[1].spacing)
    behind = [crew[1].reserve(buckets) for buckets in others]
    clock.now = pushed + 0.01
    assert crew[0].reserve(path, urgent=True) == 0.0
    assert crew[0].reserve(path) == pytest.approx(pushed + path[1].spacing)
    assert max(behind) > pushed + 3 * path[1].spacing


def test_what_urgent_mail_does_not_use_is_free(crew: list[Limits], clock: Clock) -> None:
    """A place among urgent ones; and a right that is handed back does not take the path's other place along."""
    path, other = ((Bucket(name, 1000, 1.0), Bucket("provider", 1, 10.0)) for name in ("path", "other"))
    crew[0].reserve(path)
    place = crew[0].reserve(path)
    at = crew[1].reserve(other, urgent=True)
    crew[1].hand_back(other)
    assert crew[0].reserve(path, urgent=True) == at
    clock.now = at
    assert crew[0].reserve(path, urgent=True) == 0.0
    crew[0].hand_back(path)
    assert crew[0].reserve(path) == place
    faster = (path[0], Bucket("provider", 1, 9.0))
    place = crew[0].reserve(faster)
    crew[0].hand_back(faster)  # nothing was taken
    assert crew[0].reserve(faster) == place


def test_urgent_mail_that_waits_is_moved_to_another_rate(crew: list[Limits], clock: Clock) -> None:
    """As all places are."""
    slow, fast = (Bucket("path", 1, 60.0),), (Bucket("path", 10, 1.0),)
    crew[0].reserve(slow)
    crew[0].reserve(slow)
    assert crew[1].reserve(slow, urgent=True) > clock.now + 59
    assert crew[1].reserve(fast, urgent=True) < clock.now + 0.3
    clock.now += 0.3
    assert crew[1].reserve(fast, urgent=True) == 0.0


def test_a_table_from_before_there_was_urgent_mail(crew: list[Limits], clock: Clock) -> None:
    """Its records are shorter: what was used of a rate is known all the same."""
    bucket = (Bucket("path", 1, 3600.0),)
    crew[0].reserve(bucket)
    place = crew[1].reserve(bucket)
    with crew[0]._env.begin(write=True) as txn:
        key = limit_table.LEVEL + limit_table.key_of("path")
        txn.put(key, txn.get(key)[:32])
    assert crew[2].reserve(bucket) == pytest.approx(place + bucket[0].spacing)


def test_unused_buckets_leave_the_table(crew: list[Limits], clock: Clock) -> None:
    """However many paths there were in the course of time: those of today and some of yesterday are in it."""
    for number in range(2000):
        clock.now += 1.0
        crew[0].reserve((Bucket(f"path{number}", 10, 1.0),))
    assert levels(crew[0]) < 200


def test_a_table_of_another_boot_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its times say nothing: the monotonic clock began anew."""
    monkeypatch.setattr(limit_table, "boot_id", lambda: b"yesterday")
    limits = Limits(str(tmp_path), 0)
    bucket = (Bucket("path", 1, 86_400.0),)
    limits.reserve(bucket)
    assert limits.reserve(bucket) > time.monotonic() + 1000
    limits.close()
    again = Limits(str(tmp_path), 0)
    assert again.reserve(bucket) > time.monotonic() + 1000
    again.close()
    monkeypatch.setattr(limit_table, "boot_id", lambda: b"today")
    today = Limits(str(tmp_path), 0)
    assert today.reserve(bucket) == 0.0
    today.close()


def test_a_table_that_cannot_be_written_sends_nothing(crew: list[Limits], clock: Clock,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds, and it is tried again after a while."""

    class Full:
        def begin(self, **_: Any) -> Any:
            raise lmdb.DiskError("No space left on device")

    bucket = (Bucket("path", 10, 1.0),)
    with monkeypatch.context() as patch:
        patch.setattr(crew[0]._rates, "_env", Full())
        assert crew[0].reserve(bucket) == clock.now + shared_rates.AGAIN_S
    assert crew[0].reserve(bucket) == 0.0


def test_the_table_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full is one operation put off, in the worker that finds it so and in one that hears of it later."""
    monkeypatch.setattr(limit_table, "SIZE_FIRST", 1 << 16)
    limits = Limits(str(tmp_path), 0)
    refused = 0
    for number in range(3000):
        if limits.reserve((Bucket(f"path{number}", 1, 3600.0),)):
            refused += 1
    assert 0 < refused < 10
    assert levels(limits) == 3000 - refused
    assert (tmp_path / "limits" / "data.mdb").stat().st_size > 1 << 17
    limits.close()
