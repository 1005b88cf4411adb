"""The table of limits: several workers on one table, in this process and in four that run at once."""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import pytest

from mta.delivery import learnt, limit_table
from mta.delivery import limits as module
from mta.delivery.counters import LEVEL, STOCK
from mta.delivery.leases import Refusal
from mta.delivery.limits import Limits, limited
from mta.delivery.pathstate import Hold, PathState

PROGRAM = Path(__file__).with_name("limits_program.py")


class Table:
    """A table with workers that all live in this process, over one environment (LMDB allows one per process)."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.workers: dict[int | None, Limits] = {}

    def __getitem__(self, worker: int | None) -> Limits:
        if worker not in self.workers:
            self.workers[worker] = Limits(str(self.run), worker)
        return self.workers[worker]

    def take(self, worker: int, name: str, limit: int, count: int = 1) -> None:
        for _ in range(count):
            assert self[worker].acquire([(name, limit)]) is None


@pytest.fixture(autouse=True)
def no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the table of an earlier test."""
    monkeypatch.setattr(limit_table, "_trouble", limit_table._Trouble())


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    opened: list[Any] = []
    real = lmdb.open

    def open_once(*args: Any, **options: Any) -> Any:
        if not opened:
            opened.append(real(*args, **options))
        return opened[0]

    monkeypatch.setattr(lmdb, "open", open_once)
    yield Table(tmp_path)
    opened[0].close()


class Usage(NamedTuple):
    """What the table says of one limit."""

    name: str
    limit: int
    held: dict[int, int]  # by worker
    waiting: set[int]


def usage(limits: Limits) -> list[Usage]:
    """All limits of which anybody holds or wants a lease."""
    with limits._env.begin(write=True) as txn:
        states, more = limit_table.some_limits(txn, limit_table.FIRST_LIMIT, 1000)
    assert more is None
    return [
        Usage(state.name, state.limit, {worker: share.held for worker, share in state.shares.items() if share.held},
              {worker for worker, share in state.shares.items() if share.want})
        for state in states
    ]


def nudged(worker: Limits) -> bool:
    """Whether the worker's bell has rung, without waiting."""
    return bool(select.select([worker.fileno()], [], [], 0)[0])


def test_a_limit_holds_over_workers(table: Table) -> None:
    """Three leases, whoever takes them; a fourth is refused by name."""
    table.take(0, "path", 3, 2)
    table.take(1, "path", 3)
    assert table[2].acquire([("path", 3), ("total", 100)]) == "path"
    assert [(use.name, use.limit, use.held, use.waiting) for use in usage(table[None])] == [
        ("path", 3, {0: 2, 1: 1}, {2})]


def test_all_or_nothing(table: Table) -> None:
    """When one limit of several is full none is taken, whichever stands first."""
    table.take(0, "total", 2, 2)
    for order in ([("path", 5), ("total", 2)], [("total", 2), ("other", 1)]):
        assert table[1].acquire(order) == "total"
    assert [use.name for use in usage(table[None])] == ["total"]


def test_the_smallest_limit_refuses_first(table: Table) -> None:
    """A path that is full waits for its own lease, not for one of the total that many others wait for."""
    table.take(0, "total", 5, 5)
    table.take(0, "path", 2, 2)
    assert table[1].acquire([("total", 5), ("path", 2)]) == "path"


def test_release_wakes_the_one_who_waits(table: Table) -> None:
    """The lease is granted at once; the bell rings; the next acquire takes it. Nobody else can come in between."""
    table.take(0, "path", 1)
    assert table[1].acquire([("path", 1)]) == "path"
    assert not nudged(table[1])
    table[0].release(["path"])
    assert nudged(table[1])
    assert table[0].acquire([("path", 1)]) == "path"  # quick, but the lease is not free any more
    assert table[1].recv_nudges() == ["path"]
    assert not nudged(table[1])
    assert table[1].acquire([("path", 1)]) is None
    assert usage(table[None])[0].held == {1: 1}


def test_a_refused_set_does_not_undo_what_others_got(table: Table) -> None:
    """The first limit of a set was raised, so one who waits gets a lease of it; then the second limit refuses us."""
    table.take(0, "path", 1)
    assert table[1].acquire([("path", 1)]) == "path"
    table.take(0, "total", 5, 5)
    assert table[2].acquire([("path", 3), ("total", 5)]) == "total"
    assert table[1].recv_nudges() == ["path"]
    assert table[1].acquire([("path", 3)]) is None
    held = {use.name: use.held for use in usage(table[None])}
    assert held["path"] == {0: 1, 1: 1}


def test_waiting_costs_nothing(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once refused, a worker is refused again without a look at the table, until it is nudged or the limit changes."""
    table.take(0, "path", 1)
    assert table[1].acquire([("path", 1)]) == "path"
    with monkeypatch.context() as patch:
        patch.setattr(table[1], "_env", None)
        for _ in range(3):
            assert table[1].acquire([("path", 1), ("total", 10)]) == "path"
    assert table[1].acquire([("path", 2)]) is None  # a reload raised the limit


def test_holders_are_told_when_somebody_waits(table: Table) -> None:
    """A connection at rest makes room only if its worker hears of the need; it hears once, not at every question."""
    table.take(0, "path", 2, 2)
    assert table[1].acquire([("path", 2)]) == "path"
    assert table[0].recv_nudges() == ["path"]
    assert table[0].should_yield("path", 2)
    assert table[1].acquire([("path", 2)]) == "path"
    assert not nudged(table[0])
    table[0].release(["path"])
    assert table[1].recv_nudges() == ["path"]
    assert table[1].acquire([("path", 2)]) is None
    assert not table[0].should_yield("path", 2)


def test_one_lease_is_given_for_one_that_is_wanted(table: Table) -> None:
    """Many connections end a message at the same time: only as many give way as there is need for."""
    table.take(0, "path", 6, 6)
    assert table[1].acquire([("path", 6)]) == "path"
    assert [table[0].should_yield("path", 6) for _ in range(6)] == [True, False, False, False, False, False]
    table[0].release(["path"])
    assert table[1].recv_nudges() == ["path"]
    assert table[1].acquire([("path", 6)]) is None
    assert table[1].acquire([("path", 6)]) == "path"
    assert [table[0].should_yield("path", 6) for _ in range(5)] == [True, False, False, False, False]


def test_own_resting_connections_make_room_for_own_paths(table: Table) -> None:
    """One worker alone fills the total: it tells itself, so that what rests on one path serves another."""
    table.take(0, "total", 2, 2)
    assert table[0].acquire([("other", 5), ("total", 2)]) == "total"
    assert table[0].recv_nudges() == ["total"]
    assert not table[0].should_yield("total", 2)
    assert table[0].should_yield("total", 2, resting=True)
    table[0].release(["total"])
    assert table[0].recv_nudges() == ["total"]
    assert table[0].acquire([("other", 5), ("total", 2)]) is None


def test_who_waits_no_more_passes_the_lease_on(table: Table) -> None:
    """`want(name, 0)` leaves the line, and gives a granted lease to the next in it."""
    table.take(0, "path", 1)
    for worker in (1, 2, 3):
        assert table[worker].acquire([("path", 1)]) == "path"
    table[1].want("path", 0)
    assert usage(table[0])[0].waiting == {2, 3}
    table[0].release(["path"])
    assert table[2].recv_nudges() == ["path"]
    table[2].want("path", 0)
    assert table[3].recv_nudges() == ["path"]
    assert table[3].acquire([("path", 1)]) is None


def test_a_granted_lease_that_is_not_taken_goes_on(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose need has passed unnoticed does not keep a lease from the others."""
    table.take(0, "path", 1)
    assert table[1].acquire([("path", 1)]) == "path"
    assert table[2].acquire([("path", 1)]) == "path"
    table[0].release(["path"])
    assert table[1].recv_nudges() == ["path"]
    assert table[1].recv_nudges() == []  # a heartbeat: it is not late yet
    assert not nudged(table[2])
    with monkeypatch.context() as patch:
        patch.setattr(module, "GRANT_S", -1.0)
        table[1].recv_nudges()
    assert table[2].recv_nudges() == ["path"]
    assert usage(table[None])[0].held == {2: 1}


def test_want_says_how_many(table: Table) -> None:
    """With a count of 3 three free leases are granted at once, and `acquire` takes one at a time."""
    table.take(0, "path", 3, 3)
    assert table[1].acquire([("path", 3)]) == "path"
    table[1].want("path", 3)
    for _ in range(3):
        table[0].release(["path"])
    assert table[1].recv_nudges() == ["path"]
    table.take(1, "path", 3, 3)
    assert table[1].acquire([("path", 3)]) == "path"


def test_a_killed_worker_is_cleared(table: Table) -> None:
    """What it held is granted to those who wait; what it wanted and its nudges are forgotten."""
    table.take(0, "path", 2, 2)
    assert table[1].acquire([("path", 2)]) == "path"
    assert table[2].acquire([("path", 2)]) == "path"
    table[1].release([])
    table[None].clear_worker(0)
    assert table[1].recv_nudges() == ["path"]
    assert table[2].recv_nudges() == ["path"]
    table[None].clear_worker(1)
    table[None].clear_worker(2)
    assert usage(table[None]) == []


def test_a_worker_starts_with_nothing(table: Table) -> None:
    """A restarted worker does not inherit what its predecessor held."""
    table.take(0, "path", 1)
    del table.workers[0]
    assert table[1].acquire([("path", 1)]) == "path"
    assert table[0].acquire([("path", 1)]) == "path"  # the new one: its lease went to worker 1
    assert table[1].recv_nudges() == ["path"]


def test_clearing_reaches_all_limits(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when they are many: the table is gone through in parts, so that nobody waits long for it."""
    monkeypatch.setattr(module, "BATCH", 7)
    for number in range(50):
        table.take(0, f"path{number}", 1)
        assert table[1].acquire([(f"path{number}", 1)]) == f"path{number}"
    table[None].clear_worker(0)
    assert sorted(table[1].recv_nudges()) == sorted(f"path{number}" for number in range(50))
    assert len(usage(table[None])) == 50


def test_nudges_survive_a_killed_nudger(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after its transaction and before the bell: whoever clears it rings, and a heartbeat sees it as well."""
    table.take(0, "path", 1)
    assert table[1].acquire([("path", 1)]) == "path"
    monkeypatch.setattr(table[0], "_ring", lambda workers: None)
    table[0].release(["path"])
    assert not nudged(table[1])
    table[None].clear_worker(0)
    assert nudged(table[1])
    assert table[1].recv_nudges() == ["path"]


def test_a_full_bell_loses_nothing(table: Table) -> None:
    """A worker that does not answer its bell for long finds every nudge when it does."""
    names = [f"path{number}" for number in range(40)]
    for name in names:
        table.take(0, name, 1)
        assert table[1].acquire([(name, 1)]) == name
    for _ in range(70_000):  # more than the pipe holds
        table[0]._ring([1])
    table[0].release(names)
    assert sorted(table[1].recv_nudges()) == sorted(names)


def test_a_worker_that_is_gone_is_no_obstacle(table: Table) -> None:
    """A bell that nobody listens to is passed over, and found again when the worker is back."""
    table.take(0, "path", 1)
    assert table[1].acquire([("path", 1)]) == "path"
    gone = table.workers.pop(1)
    os.close(gone.fileno())
    table[0].release(["path"])
    assert table[0].acquire([("path", 1)]) == "path"
    assert table[1].recv_nudges() == []  # the new worker 1: cleared at its start
    assert table[0].recv_nudges() == ["path"]


def test_a_receivers_own_limit_is_shared(table: Table) -> None:
    """It refuses the connection of one worker while it serves another's: the refused one waits in line, the other hears
    of it and makes room."""
    table.take(0, "path", 20, 2)
    table[0].served("path")
    table.take(1, "path", 20)
    assert table[1].refused("path", time.monotonic(), serves_us=False) is Refusal.BEYOND
    table[1].release(["path"])
    assert table[1].acquire([("path", 20)]) == "path"
    assert table[1].learned("path") == 2
    assert table[0].recv_nudges() == ["path"]
    assert table[0].should_yield("path", 20)
    table[0].release(["path"])
    assert table[1].recv_nudges() == ["path"]
    assert table[1].acquire([("path", 20)]) is None
    table[1].release(["path"])
    assert table[1].learned("path") == 0


def test_a_receivers_own_limit_is_tried_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says when a receiver takes more: who waits looks again when it is time, without a nudge."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    table.take(0, "path", 20, 2)
    table[0].served("path")
    table.take(1, "path", 20)
    table[1].refused("path", 1000.0, serves_us=False)
    table[1].release(["path"])
    for now[0] in (1000.0, 1000.9):
        assert table[1].acquire([("path", 20)]) == "path"
    now[0] = 1001.1
    assert table[1].acquire([("path", 20)]) is None
    table[1].served("path")
    assert table[1].acquire([("path", 20)]) is None


@pytest.mark.parametrize("name", ["x" * 5000, "söte@größe", ""])
def test_any_name_will_do(table: Table, name: str) -> None:
    """Names longer than a key of LMDB, or with other letters, are limits like any other."""
    table.take(0, name, 1)
    table.take(0, name + "y", 1)
    assert table[1].acquire([(name, 1)]) == name
    table[0].release([name])
    assert table[1].recv_nudges() == [name]


def test_a_table_that_cannot_be_written_delays_and_recovers(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk full: no lease is taken, none is lost, nothing is raised; when space is back all is as it should be."""
    table.take(0, "path", 1)
    env = table[0]._env

    class Full:
        def begin(self, **_: Any) -> Any:
            raise lmdb.DiskError("No space left on device")

    for worker in (0, 1):
        monkeypatch.setattr(table[worker], "_env", Full())
    assert table[1].acquire([("path", 1)]) == "path"
    table[0].release(["path"])
    assert table[0].recv_nudges() == []
    assert table[1].recv_nudges() == ["path"]  # try again
    for worker in (0, 1):
        monkeypatch.setattr(table[worker], "_env", env)
    assert table[1].acquire([("path", 1)]) == "path"
    assert table[0].recv_nudges() == ["path"]  # told that worker 1 waits; and what was owed is given back
    assert table[1].recv_nudges() == ["path"]
    assert table[1].acquire([("path", 1)]) is None


# --- several limits at once ----------------------------------------------------------------------------------------


def test_no_limit_costs_nothing(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is no limit: it is not even looked at; 0 lets nobody through."""
    leases = [("path", None), ("source", None)]
    monkeypatch.setattr(table[0], "_env", None)
    assert table[0].acquire(leases) is None
    table[0].release(limited(leases))
    monkeypatch.undo()


def test_who_has_come_half_way_keeps_what_it_has(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was granted the smaller limit and finds the next one full keeps its place in both: it is not sent
    back to the end of the first line when the second one takes long."""
    leases = [("provider:google", 3), ("path", 1)]
    table.take(0, "path", 1)
    table.take(0, "provider:google", 3, 3)
    assert table[1].acquire(leases) == "path"
    assert table[2].acquire(leases) == "path"
    table[0].release(["path"])
    assert table[1].recv_nudges() == ["path"]
    assert table[1].acquire(leases) == "provider:google"
    monkeypatch.setattr(module, "GRANT_S", -1.0)
    assert table[1].recv_nudges() == []
    assert table[2].recv_nudges() == []
    monkeypatch.undo()
    table[0].release(["provider:google"])
    assert table[1].recv_nudges() == ["provider:google"]
    assert table[1].acquire(leases) is None
    table[1].release(limited(leases))
    assert table[2].recv_nudges() == ["path"]
    assert table[2].acquire(leases) is None


def test_who_gives_up_half_way_gives_all_back(table: Table) -> None:
    """When it does not want the second limit any more the first one goes on to the next in line."""
    leases = [("provider:google", 3), ("path", 1)]
    table.take(0, "path", 1)
    table.take(0, "provider:google", 3, 3)
    assert table[1].acquire(leases) == "path"
    assert table[2].acquire(leases) == "path"
    table[0].release(["path"])
    table[1].recv_nudges()
    assert table[1].acquire(leases) == "provider:google"
    table[1].want("provider:google", 0)
    assert table[2].recv_nudges() == ["path"]
    held = {use.name: use.held for use in usage(table[None])}
    assert held == {"path": {2: 1}, "provider:google": {0: 3}}


def test_who_has_nothing_of_a_provider_gets_a_part(table: Table) -> None:
    """Another worker holds all of it over many paths: it hears of the need, and its connections give way one by one."""
    for number in range(4):
        assert table[0].acquire([(f"path{number}", 10), ("source:a", 50), ("provider:google", 4)]) is None
    assert table[1].acquire([("path9", 10), ("source:a", 50), ("provider:google", 4)]) == "provider:google"
    assert table[0].recv_nudges() == ["provider:google"]
    sets = [[(f"path{number}", 10), ("source:a", 50), ("provider:google", 4)] for number in range(4)]
    assert [table[0].gives_way(one) for one in sets] == ["provider:google", None, None, None]
    table[0].release(limited(sets[0]))
    assert table[1].recv_nudges() == ["provider:google"]
    assert table[1].acquire([("path9", 10), ("source:a", 50), ("provider:google", 4)]) is None


def test_everybody_takes_in_the_same_order(table: Table) -> None:
    """Two that want the same two limits cannot each hold one and wait for the other, however they name them."""
    table.take(0, "a", 1)
    table.take(0, "b", 1)
    assert table[1].acquire([("b", 1), ("a", 1)]) == "a"
    assert table[2].acquire([("a", 1), ("b", 1)]) == "a"
    table[0].release(["b"])
    table[0].release(["a"])
    assert table[1].recv_nudges() == ["a"]
    assert table[1].acquire([("b", 1), ("a", 1)]) is None
    assert table[2].recv_nudges() == []
    table[1].release(["a", "b"])
    assert table[2].recv_nudges() == ["a"]
    assert table[2].acquire([("a", 1), ("b", 1)]) is None


# --- several processes ---------------------------------------------------------------------------------------------


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
        assert process.wait(10) == 0
        return int(turns), int(most), float(longest)

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
    for worker in range(4):
        crew.start(worker, 3, "hammer", 0.7)
    crew.begin()
    results = [crew.result(worker) for worker in range(4)]
    turns = [turns for turns, _, _ in results]
    assert max(most for _, most, _ in results) == 3
    assert min(turns) > 50
    assert min(turns) * 5 > max(turns)
    supervisor = Limits(str(crew.run), None)
    assert usage(supervisor) == []
    supervisor.close()


def test_a_limit_of_one_goes_round(crew: Crew) -> None:
    """Each holds the lease until it should give way: four workers take turns, none waits for ever."""
    for worker in range(4):
        crew.start(worker, 1, "turns", 0.7)
    crew.begin()
    results = [crew.result(worker) for worker in range(4)]
    turns = [turns for turns, _, _ in results]
    assert max(most for _, most, _ in results) == 1
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

    for owner in (table[0], table[0]._counters):
        monkeypatch.setattr(owner, "_env", Broken())
    for _ in range(7):
        assert table[0].count("day:t", 1, 10)
    assert table[0].count("in", -1, None, LEVEL)
    assert table[0].counted("day:t") == 0
    assert table[0].holders("path") == {}
    assert table[0].trouble == "a page is damaged"
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1
    for owner in (table[0], table[0]._counters):
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


def test_what_is_in_use_when_a_limit_comes_counts(table: Table) -> None:
    """Five are adopted by a limit of two: no lease until four have gone, and never fewer than none."""
    assert table[0].adopt("tenant:t", 2, 5)
    assert table[0].holders("tenant:t") == {0: 5}
    assert table[1].acquire([("tenant:t", 2)]) == "tenant:t"
    for _ in range(3):
        table[0].release(["tenant:t"])
        assert table[1].recv_nudges() == []
    table[0].release(["tenant:t"])
    assert table[1].recv_nudges() == ["tenant:t"]
    assert table[1].acquire([("tenant:t", 2)]) is None
    for _ in range(3):
        table[0].release(["tenant:t"])
    assert table[0].holders("tenant:t") == {1: 1}


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
