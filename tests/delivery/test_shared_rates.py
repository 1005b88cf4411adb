"""Rates in the table of limits: several workers in one process with a given clock, and several processes."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from mta.delivery import limit_table, shared_rates
from mta.delivery.limits import Limits
from mta.delivery.rates import Bucket
from tests.delivery.rates_program import ANSWER

PROGRAM = Path(__file__).with_name("rates_program.py")
FOR_EVER_S = 600.0  # until it is killed
RATES = ((0.5, 1.0), (10.0, 1.0), (1000.0, 1.0))


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
    assert looks < sent / 3


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
    assert crew[0].reserve(bucket) == 0.0
    place = crew[1].reserve(bucket)
    assert place == clock.now + bucket[0].spacing - bucket[0].ahead
    clock.now += 0.5
    assert crew[0].use_late(bucket)
    clock.now = place
    again = crew[1].reserve(bucket)
    assert again == place + 0.5
    assert not crew[1].use_late(bucket)  # a place is no right
    clock.now = again
    assert crew[1].reserve(bucket) == 0.0
    assert not crew[0].use_late(bucket)


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


# --- several processes ---------------------------------------------------------------------------------------------


class Senders:
    """Worker processes that send as fast as the rates allow."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, worker: int, seconds: float) -> None:
        process = self.processes[worker] = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(self.run), str(worker), str(seconds),
             *(f"{count}/{period}" for count, period in RATES)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def begin(self, worker: int) -> None:
        stdin = self.processes[worker].stdin
        assert stdin is not None
        stdin.close()

    def end(self, worker: int, kill: bool = False) -> None:
        process = self.processes.pop(worker)
        if kill:
            process.kill()
        code = process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
        assert code == (-9 if kill else 0)

    def answers(self, number: int) -> list[list[tuple[float, float]]]:
        """Of one rate, by worker: when a question had its answer, and the answer."""
        files = [list(ANSWER.iter_unpack(path.read_bytes())) for path in self.run.glob("answers-*")]
        return [[(now, at) for which, now, at in rows if which == number] for rows in files]

    def grants(self, number: int) -> list[float]:
        """Of one rate: when messages were let through."""
        return sorted(now for rows in self.answers(number) for now, at in rows if not at)

    def held_up_s(self, number: int, bucket: Bucket) -> float:
        """Of one rate: the time in which somebody waited for his turn that had not come, less what those came late
        whose turn had. In the rest all were late or not running at all, which is the machine's fault."""
        total = reached = 0.0
        for now, at in sorted(row for rows in self.answers(number) for row in rows):
            total += max(at - max(now, reached), 0.0)
            reached = max(reached, at)
        for rows in self.answers(number):
            for (_, told), (now, _) in itertools.pairwise(rows):
                if told:
                    total -= max(now - told - bucket.ahead, 0.0)
        return total


@pytest.fixture
def senders(tmp_path: Path) -> Iterator[Senders]:
    senders = Senders(tmp_path)
    yield senders
    for process in senders.processes.values():
        process.kill()
        process.wait()


def exceeded(grants: list[float], bucket: Bucket) -> list[float]:
    """By how many seconds a period was too short for the messages in it."""
    count = round(max(bucket.count, 1.0))
    period = bucket.period_s / min(bucket.count, 1.0)
    return [period - (beyond - first) for first, beyond in zip(grants, grants[count:], strict=False)
            if beyond - first < period]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_processes_keep_to_the_rates_and_use_them(senders: Senders, workers: int) -> None:
    """Half a message, ten and a thousand per second at the same time: in no period more, and 95 percent of that in the
    time in which anybody was held up."""
    for worker in range(workers):
        senders.start(worker, 6.5)
    for worker in range(workers):
        senders.begin(worker)
    for worker in range(workers):
        senders.end(worker)
    for number, rate in enumerate(RATES):
        bucket, grants = Bucket("b", *rate), senders.grants(number)
        assert exceeded(grants, bucket) == []
        held_up_s = min(senders.held_up_s(number, bucket), grants[-1] - grants[0])
        assert len(grants) - 1 >= int(0.95 * held_up_s * bucket.count / bucket.period_s)


def test_killed_senders_make_no_rate_exceeded(senders: Senders) -> None:
    """kill -9 at any moment, with a place, with messages in hand, inside a transaction; and the others go on."""
    supervisor = Limits(str(senders.run), None)
    chance = random.Random(4711)
    for worker in range(4):
        senders.start(worker, FOR_EVER_S)
        senders.begin(worker)
    for victim in (0, 1, 2, 0, 1, 2):
        time.sleep(chance.uniform(0.05, 0.4))
        senders.end(victim, kill=True)
        supervisor.clear_worker(victim)
        senders.start(victim, FOR_EVER_S)
        senders.begin(victim)
    time.sleep(1.0)
    for worker in range(4):
        senders.end(worker, kill=True)
    supervisor.close()
    for number, rate in enumerate(RATES):
        grants = senders.grants(number)
        assert exceeded(grants, Bucket("b", *rate)) == []
        assert len(grants) >= rate[0]  # of the slow one, the dead took some places with them
