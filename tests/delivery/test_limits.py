"""Leases over workers that live in this process: never more than the limit, given on at once, shared by rules."""

from __future__ import annotations

import os
import time

import pytest

from mta.delivery import limits as module
from mta.delivery import shared_leases
from mta.delivery.leases import Refusal
from mta.delivery.limits import limited
from tests.delivery.limits_table import Table, nudged, usage

pytestmark = pytest.mark.usefixtures("no_trouble")


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
        patch.setattr(shared_leases, "GRANT_S", -1.0)
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
    monkeypatch.setattr(table[0]._leases, "_ring", lambda workers: None)
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
        table[0]._bells.ring([1])
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
    monkeypatch.setattr(shared_leases, "GRANT_S", -1.0)
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
