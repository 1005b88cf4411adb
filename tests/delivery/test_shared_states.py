"""What workers know together of paths, and what they count together."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest

from mta.delivery import limit_table, shared_states
from mta.delivery.counters import DAY_S, LEVEL, Counter, ends_us
from mta.delivery.limits import Limits
from mta.delivery.pathstate import HOLDS_KEPT, Hold, PathState

NOW_US = 1_800_000_000_000_000
HOUR_US = 3_600_000_000


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Limits]]:
    """Three workers and the control process (-1) on one environment, as LMDB allows one per process."""
    env = limit_table.open_table(tmp_path / "limits")
    monkeypatch.setattr(limit_table, "open_table", lambda directory: env)
    yield {worker: Limits(str(tmp_path), None if worker < 0 else worker) for worker in (-1, 0, 1, 2)}
    env.close()


def suspension(until_us: int, by: str = "failures", reason: str = "421 busy", since_us: int = NOW_US) -> Hold:
    return Hold("all", until_us, by, reason, since_us)


def heard(worker: Limits) -> list[str]:
    """What a worker is told of states, if its bell rings."""
    if not select.select([worker.fileno()], [], [], 0)[0]:
        return []
    assert worker.recv_nudges() == []
    return worker.changed()


# --- the record ----------------------------------------------------------------------------------------------------


def test_holds_of_several_authors_stand_beside_each_other() -> None:
    """The suspension that ends last is in force; each author can take back what is his own."""
    state = PathState().with_hold(suspension(NOW_US + 10)).with_hold(suspension(NOW_US + 50, "rule listed"))
    state = state.with_hold(Hold("rate", NOW_US + 90, "rule slow", "too fast", NOW_US, 2.0))
    state = state.with_hold(Hold("rate", NOW_US + 90, "operator", "by hand", NOW_US, 0.5))
    found = state.suspension(NOW_US)
    assert found is not None
    assert found.by == "rule listed"
    assert state.suspension(NOW_US + 50) is None
    slow = state.lowest("rate", NOW_US)
    assert slow is not None
    assert slow.value == 0.5
    assert state.lowest("connections", NOW_US) is None
    rest = state.without("rule listed").suspension(NOW_US)
    assert rest is not None
    assert rest.by == "failures"
    assert state.without("operator", "all") is state


def test_an_author_has_one_hold_of_a_kind() -> None:
    """The later one replaces the earlier, also a longer one; what is over falls out; their number is bounded."""
    state = PathState().with_hold(suspension(NOW_US + 50)).with_hold(suspension(NOW_US + 20))
    assert [hold.until_us for hold in state.holds] == [NOW_US + 20]
    assert len(state.with_hold(suspension(NOW_US + 90, "rule x", since_us=NOW_US + 30)).holds) == 1
    for number in range(50):
        state = state.with_hold(suspension(NOW_US + 100 + number, f"rule {number}"))
    assert len(state.holds) == HOLDS_KEPT


def test_an_operator_ends_what_rules_decided_and_nothing_else() -> None:
    """Of the kinds that are named; what operators ordered and failures taught stays."""
    rule, own = Hold("all", 9, "rule listed", "listed", 1), Hold("all", 9, "operator", "ticket", 1)
    slow = Hold("rate", 9, "rule listed", "listed", 1, 0.1)
    state = PathState().with_hold(rule).with_hold(own).with_hold(slow)
    assert set(state.without_rules(("all",)).holds) == {own, slow}
    assert set(state.without_rules(("rate", "connections")).holds) == {rule, own}


def test_a_state_is_read_back() -> None:
    """Everything that was written; and other bytes are no state."""
    state = PathState((suspension(NOW_US + HOUR_US), Hold("connections", NOW_US, "operator", "", NOW_US, 2.0)), 7, 2.5,
                      b"blob", NOW_US, 3)
    assert PathState.decode(state.encode(55), 55) == state
    for wrong in (b"", b"\x93\x01\x02\x03", b"\xc1", state.encode(5)[:-3]):
        with pytest.raises(ValueError, match="no state"):
            PathState.decode(wrong)


def test_times_move_with_the_wall_clock() -> None:
    """Set back by an hour: what was to last ten minutes lasts ten minutes. Drift is not taken for that."""
    state = PathState((suspension(NOW_US + HOUR_US),), adaptive=b"x", adaptive_us=NOW_US)
    moved = PathState.decode(state.encode(0), -HOUR_US)
    assert moved.holds[0].until_us == NOW_US
    assert moved.adaptive_us == NOW_US - HOUR_US
    assert PathState.decode(state.encode(0), 400_000) == state


# --- the table -----------------------------------------------------------------------------------------------------


def test_a_suspension_by_one_holds_for_all(crew: dict[int, Limits]) -> None:
    """Others are nudged, their copies are new; who made it is not told."""
    for worker in (0, 1):
        assert crew[worker].state("path") == PathState()
    made = crew[0].update("path", lambda state: state.with_hold(suspension(NOW_US)))
    assert made.version == 1
    assert crew[0].state("path") == made
    assert heard(crew[1]) == ["path"]
    assert heard(crew[1]) == []
    assert crew[1].state("path") == made
    assert heard(crew[2]) == ["path"]
    assert crew[2].state("path") == made
    assert heard(crew[0]) == []


def test_reading_is_free(crew: dict[int, Limits], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once known, a state is looked up in memory, also that there is none."""
    crew[0].state("path")
    crew[1].update("other", lambda state: replace(state, rate=1.0))
    monkeypatch.setattr(crew[0]._states, "_env", None)
    monkeypatch.setattr(crew[1]._states, "_env", None)
    assert crew[0].state("path") == PathState()
    assert crew[1].state("other").rate == 1.0


def test_what_others_need_not_act_on_does_not_wake_them(crew: dict[int, Limits]) -> None:
    """How adaptation reckons is theirs to read when they reckon next; what it allows is told."""
    crew[1].state("path")
    crew[0].update("path", lambda state: replace(state, adaptive=b"1", adaptive_us=NOW_US))
    assert heard(crew[1]) == []
    seen = []

    def change(state: PathState) -> PathState:
        seen.append(state.adaptive)
        return replace(state, adaptive=b"2", connections=3)

    crew[1].update("path", change)
    assert seen == [b"1"]
    assert heard(crew[0]) == ["path"]
    assert crew[0].state("path").connections == 3


def test_no_change_is_none(crew: dict[int, Limits]) -> None:
    """Nothing is written, nobody is woken."""
    assert crew[0].update("path", lambda state: state).version == 0
    assert heard(crew[1]) == []
    assert list(crew[-1].states()) == []


def test_the_control_process_sees_and_changes(crew: dict[int, Limits]) -> None:
    """It hears no nudges, so it reads each time; what it changes is told to all workers."""
    crew[0].update("path", lambda state: state.with_hold(suspension(NOW_US)))
    assert crew[-1].state("path").holds != ()
    crew[0].update("path", lambda state: state.without("failures"))
    assert crew[-1].state("path").holds == ()
    crew[-1].update("x" * 3000, lambda state: replace(state, rate=1.0))
    assert "x" * 3000 in heard(crew[1])
    assert sorted(name for name, _ in crew[-1].states()) == ["path", "x" * 3000]


def test_the_dead_are_told_nothing(crew: dict[int, Limits]) -> None:
    """No nudges gather for a worker that is gone."""
    crew[-1].clear_worker(2)
    crew[0].update("path", lambda state: replace(state, rate=1.0))
    with crew[0].table.begin(write=True) as txn:
        assert limit_table.nudged_workers(txn) == [1]


def test_copies_are_bounded_and_can_be_dropped(crew: dict[int, Limits], monkeypatch: pytest.MonkeyPatch) -> None:
    """What falls out is read again."""
    monkeypatch.setattr(shared_states, "KEPT", 10)
    crew[1].update("path0", lambda state: replace(state, rate=1.0))
    for number in range(100):
        crew[0].state(f"path{number}")
    assert len(crew[0]._states._copies) == 10
    assert crew[0].state("path0").rate == 1.0
    crew[0].forget("path0")
    crew[0].forget()
    assert crew[0]._states._copies == {}


def test_a_full_table_still_stops_this_worker(crew: dict[int, Limits], monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be shared holds at least where it was seen."""

    class Full:
        def begin(self, **_: Any) -> Any:
            raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr(crew[0]._states, "_env", Full())
    crew[0].update("path", lambda state: state.with_hold(suspension(NOW_US)))
    assert crew[0].state("path").holds != ()


# --- counters ------------------------------------------------------------------------------------------------------


def test_a_daily_volume_holds_over_workers(crew: dict[int, Limits], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever counts; what is refused is not counted; at midnight UTC it begins again."""
    noon_us = NOW_US - NOW_US % (DAY_S * 1_000_000) + DAY_S * 500_000
    clock = [noon_us * 1000]
    monkeypatch.setattr(time, "time_ns", lambda: clock[0])
    assert crew[0].count("volume:acme", 60, 100)
    assert not crew[1].count("volume:acme", 60, 100)
    assert crew[1].count("volume:acme", 40, 100)
    assert not crew[2].count("volume:acme", 1, 100)
    assert crew[2].count("volume:acme", 1, 150)
    assert crew[2].count("volume:acme", 1, None)
    assert crew[-1].counted("volume:acme") == 102
    crew[-1].clear_worker(0)
    assert crew[-1].counted("volume:acme") == 102
    clock[0] = (ends_us(noon_us, DAY_S) - 1) * 1000
    assert not crew[0].count("volume:acme", 1, 100)
    clock[0] += 1000
    assert crew[-1].counted("volume:acme") == 0
    assert crew[0].count("volume:acme", 100, 100)


def test_a_clock_set_back_gives_no_second_day() -> None:
    """Over midnight and back: the day that has begun goes on."""
    counter = Counter("x", DAY_S)
    counter.begin(NOW_US)
    assert counter.add(0, 10, 10)
    counter.begin(NOW_US - DAY_S * 1_000_000)
    assert not counter.add(0, 1, 10)


def test_a_level_goes_with_its_worker(crew: dict[int, Limits]) -> None:
    """As sessions: up and down, over all workers; a dead one's part falls away, as the new one counts again."""
    assert crew[0].count("queue:acme", 5, 10, LEVEL)
    assert crew[1].count("queue:acme", 5, 10, LEVEL)
    assert not crew[1].count("queue:acme", 1, 10, LEVEL)
    assert crew[1].count("queue:acme", -2, 10, LEVEL)
    assert crew[-1].counted("queue:acme") == 8
    crew[-1].clear_worker(0)
    assert crew[-1].counted("queue:acme") == 3
    assert crew[1].count("queue:acme", -3, 10, LEVEL)
    assert list(limit_table.walk(crew[0].table, limit_table.COUNTER, 10)) == [[]]
