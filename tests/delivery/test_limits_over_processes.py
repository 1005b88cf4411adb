"""Limits over real processes, which are killed; and a table that cannot be written, or is full."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from mta.delivery import learnt, limit_table
from mta.delivery.counters import LEVEL, STOCK
from mta.delivery.limits import Limits
from mta.delivery.pathstate import Hold, PathState
from tests.delivery.limits_table import Table, usage

pytestmark = pytest.mark.usefixtures("no_trouble")

PROGRAM = Path(__file__).with_name("limits_program.py")


def test_a_table_that_cannot_be_written_delays_and_recovers(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk full: no lease is taken, none is lost, nothing is raised; when space is back all is as it should be."""
    table.take(0, "path", 1)
    env = table[0]._env

    class Full:
        def begin(self, **_: Any) -> Any:
            raise lmdb.DiskError("No space left on device")

    owners = [owner for worker in (0, 1) for owner in (table[worker], table[worker]._leases)]
    for owner in owners:
        monkeypatch.setattr(owner, "_env", Full())
    assert table[1].acquire([("path", 1)]) == "path"
    table[0].release(["path"])
    assert table[0].recv_nudges() == []
    assert table[1].recv_nudges() == ["path"]  # try again
    for owner in owners:
        monkeypatch.setattr(owner, "_env", env)
    assert table[1].acquire([("path", 1)]) == "path"
    assert table[0].recv_nudges() == ["path"]  # told that worker 1 waits; and what was owed is given back
    assert table[1].recv_nudges() == ["path"]
    assert table[1].acquire([("path", 1)]) is None


class Crew:
    """Worker processes on one table."""

    def __init__(self, run: Path) -> None:
        self.run = run
        (run / "watch").write_bytes(bytes(256))
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, worker: int, limit: int, mode: str, seconds: float) -> None:
        self.processes[worker] = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(self.run), str(worker), "path", str(limit), mode, str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    def begin(self, *workers: int) -> None:
        """Let these begin together, all if none is named."""
        processes = [self.processes[worker] for worker in workers or self.processes]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.close()

    def result(self, worker: int) -> tuple[int, int, float]:
        """Leases taken, most leases seen at once, longest wait in seconds."""
        process = self.processes.pop(worker)
        assert process.stdout is not None
        turns, most, longest = process.stdout.readline().split()
        process.stdout.close()
        assert process.wait(60) == 0
        return int(turns), int(most), float(longest)

    def race(self, limit: int, mode: str) -> tuple[list[int], int]:
        """Four of them for 0.7 s: the leases that each took, and the most that one saw at once."""
        for worker in range(4):
            self.start(worker, limit, mode, 0.7)
        self.begin()
        results = [self.result(worker) for worker in range(4)]
        return [turns for turns, _, _ in results], max(most for _, most, _ in results)

    def kill(self, worker: int) -> None:
        process = self.processes.pop(worker)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    crew = Crew(tmp_path)
    yield crew
    for worker in list(crew.processes):
        crew.kill(worker)


def test_four_processes_never_hold_more_than_the_limit(crew: Crew) -> None:
    """Take and give back without a pause, limit 3: no instant with 4, everybody gets its share, nothing is left."""
    turns, most = crew.race(3, "hammer")
    assert most == 3
    assert min(turns) > 50
    assert min(turns) * 5 > max(turns)
    supervisor = Limits(str(crew.run), None)
    assert usage(supervisor) == []
    supervisor.close()


def test_a_limit_of_one_goes_round(crew: Crew) -> None:
    """Each holds the lease until it should give way: four workers take turns, none waits for ever."""
    turns, most = crew.race(1, "turns")
    assert most == 1
    assert min(turns) >= 5
    assert min(turns) * 3 > max(turns)


def test_products_of_limits_go_round(crew: Crew) -> None:
    """Sets of up to four limits that overlap, given in different orders: nobody waits in a circle, none is left out,
    nothing is left over."""
    for worker in range(4):
        crew.start(worker, 3, "products", 1.5)
    crew.begin()
    results = [crew.result(worker) for worker in range(4)]
    turns = [turns for turns, _, _ in results]
    assert max(most for _, most, _ in results) <= 3
    assert min(turns) >= 10
    assert min(turns) * 4 > max(turns)
    supervisor = Limits(str(crew.run), None)
    assert usage(supervisor) == []
    supervisor.close()


def test_killed_holders_leave_the_table_usable(crew: Crew) -> None:
    """kill -9 at any instant, inside a transaction or with a lease in hand: the others go on, the limit holds."""
    supervisor = Limits(str(crew.run), None)
    for worker in range(4):
        crew.start(worker, 3, "hammer", 2.0)
    crew.begin()
    chance = random.Random(4711)
    for victim in (0, 1, 2):
        time.sleep(chance.uniform(0.02, 0.2))
        crew.kill(victim)
        with contextlib.closing((crew.run / "watch").open("r+b")) as watch:  # what it held is closed by the kernel
            watch.seek(victim)
            watch.write(b"\0")
        supervisor.clear_worker(victim)
        crew.start(victim, 3, "hammer", 0.5)
        crew.begin(victim)
    results = [crew.result(worker) for worker in (0, 1, 2, 3)]
    assert max(most for _, most, _ in results) <= 3
    assert min(turns for turns, _, _ in results) > 20
    assert usage(supervisor) == []
    supervisor.close()


def test_counts_pass_a_table_that_cannot_be_written_and_are_made_up_for(
        table: Table, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is refused because it cannot be known how many there are; it is told once, and counted when it can be."""
    assert table[0].count("day:t", 3, 10)
    assert table[0].count("in", 1, 1, LEVEL)
    env = table[0]._env

    class Broken:
        def begin(self, **_: Any) -> Any:
            raise lmdb.CorruptedError("a page is damaged")

    for owner in (table[0], table[0]._leases, table[0]._counters):
        monkeypatch.setattr(owner, "_env", Broken())
    for _ in range(7):
        assert table[0].count("day:t", 1, 10)
    assert table[0].count("in", -1, None, LEVEL)
    assert table[0].counted("day:t") == 0
    assert table[0].holders("path") == {}
    assert table[0].trouble == "a page is damaged"
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1
    for owner in (table[0], table[0]._leases, table[0]._counters):
        monkeypatch.setattr(owner, "_env", env)
    table[0].recv_nudges()
    assert table[0].trouble
    monkeypatch.setattr(limit_table, "QUIET_S", 0.0)
    table[0].recv_nudges()
    assert not table[0].trouble
    assert (table[0].counted("day:t"), table[0].counted("in")) == (10, 0)
    assert not table[0].count("day:t", 1, 10)
    assert table[0].count("in", 1, 1, LEVEL)


def test_a_lease_is_granted_once_though_the_table_fails(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nudge is still there after a transaction that failed, and is not counted twice."""
    table.take(0, "path", 1)
    assert table[1].acquire([("path", 1)]) == "path"
    table[0].release(["path"])
    env = table[1]._env

    class Failing:
        def begin(self, **options: Any) -> Any:
            return Transaction(env.begin(**options))

        def path(self) -> str:
            return str(env.path())

    class Transaction:
        def __init__(self, txn: Any) -> None:
            self._txn = txn

        def __enter__(self) -> Any:
            return self._txn.__enter__()

        def __exit__(self, *_: object) -> None:
            self._txn.abort()
            raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr(table[1], "_env", Failing())
    table[1].recv_nudges()
    monkeypatch.setattr(table[1], "_env", env)
    assert table[1].recv_nudges() == ["path"]
    assert table[1].acquire([("path", 1)]) is None
    assert table[1].acquire([("path", 1)]) == "path"


def test_a_full_table_refuses_until_it_has_room(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """All of it is used and it may not grow: leases wait, counts pass; the end of a worker is cleared as soon as there
    is room, and what waited goes on."""
    monkeypatch.setattr(limit_table, "SIZE_FIRST", 1 << 16)
    monkeypatch.setattr(limit_table, "SIZE_MOST", 1 << 16)
    limits = Limits(str(tmp_path), 0)
    refused: list[str] = []
    for number in range(5000):
        name = f"path{number}" + "x" * 300
        if limits.acquire([(name, 1)]) is not None:
            refused.append(name)
            assert limits.trouble
            limits.recv_nudges()  # which succeeds
    assert refused
    for _ in range(100):
        assert limits.count("queue:t", 1, None)
    monkeypatch.setattr(limit_table, "SIZE_MOST", 1 << 24)
    for name in refused:
        if limits.acquire([(name, 1)]) is not None:  # what finds it full gives it more room
            assert name in limits.recv_nudges()
            assert limits.acquire([(name, 1)]) is None
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1
    assert not any("again" in record.getMessage() for record in caplog.records)
    monkeypatch.setattr(limit_table, "QUIET_S", 0.0)
    limits.recv_nudges()
    assert not limits.trouble
    assert limits.counted("queue:t") == 100
    limits.clear_worker(0)
    assert limits.acquire([("path0" + "x" * 300, 1)]) is None
    limits.close()


def test_what_was_learnt_fits_a_table_that_has_to_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is put into the new table as a whole, which begins small."""
    monkeypatch.setattr(limit_table, "SIZE_FIRST", 1 << 16)
    now_us = time.time_ns() // 1000
    hold = Hold("all", now_us + 3_600_000_000, "rule a", "x" * 200, now_us)
    found = learnt.Learnt()
    found.states = [(f"path{number}", PathState((hold,)).encode(0)) for number in range(2000)]
    learnt.write(str(tmp_path), found.encode(now_us))
    learnt.restore(str(tmp_path), str(tmp_path), now_us)
    limits = Limits(str(tmp_path), 0)
    assert sum(bool(state.holds) for _, state in limits.states()) == 2000
    limits.close()


def test_what_lies_on_disk_is_not_gone_with_its_worker(table: Table) -> None:
    """A stock stays when a worker dies, until the next one has counted; what was in its hands does not."""
    table[0].stock("queue:t", 7)
    table[1].stock("queue:t", 0)
    assert table[1].stocked("queue:t") == 2
    assert table[0].count("sessions", 2, None, LEVEL)
    table[1].clear_worker(0)
    assert (table[1].counted("queue:t"), table[1].counted("sessions")) == (7, 0)
    assert not table[1].count("queue:t", 2, 8, STOCK)
    table[0].stock("queue:t", 5)
    assert table[1].count("queue:t", 3, 8, STOCK)
    table[0].stock("queue:t", None)
    table[1].stock("queue:t", None)
    assert table[1].stocked("queue:t") == 0
