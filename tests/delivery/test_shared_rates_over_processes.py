"""Rates in the table of limits over real processes, by the machine's clock, some of which are killed."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from mta.delivery.limits import Limits
from mta.delivery.rates import Bucket
from tests.delivery.rates_program import ANSWER

PROGRAM = Path(__file__).with_name("rates_program.py")
FOR_EVER_S = 600.0  # until it is killed
RATES = ((0.5, 1.0), (10.0, 1.0), (1000.0, 1.0))


class Senders:
    """Worker processes that send as fast as the rates allow."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, worker: int, seconds: float, *more: str, rates: Iterable[tuple[float, float]] = RATES) -> None:
        process = self.processes[worker] = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(self.run), str(worker), str(seconds),
             *more, *(f"{count}/{period}" for count, period in rates)],
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
        files = [list(ANSWER.iter_unpack(path.read_bytes())) for path in sorted(self.run.glob("answers-*"))]
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


def test_urgent_mail_of_another_process_goes_first(senders: Senders) -> None:
    """Two send without end at a rate of ten a second, one of them urgent mail: it has most of it, the other one a
    part, and both together have no more than there is."""
    rate = (100.0, 10.0)
    senders.start(0, 6.0, rates=[rate])
    senders.start(1, 6.0, "urgent", rates=[rate])
    for worker in range(2):
        senders.begin(worker)
    for worker in range(2):
        senders.end(worker)
    bucket, grants = Bucket("b", *rate), senders.grants(0)
    assert exceeded(grants, bucket) == []
    assert all(after - one > bucket.spacing - bucket.ahead - bucket.sooner for one, after in itertools.pairwise(grants))
    other, urgent = [sum(not at for _, at in rows) for rows in senders.answers(0)]
    assert 2 <= other <= urgent / 2, (other, urgent)
