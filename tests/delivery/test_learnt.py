"""What was learnt, on its way to the disk and back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from mta.delivery import learnt, limit_table
from mta.delivery.counters import DAY_S, LEVEL
from mta.delivery.limits import Limits
from mta.delivery.pathstate import Hold, PathState
from mta.delivery.rates import Bucket

HOUR_US = 3_600_000_000


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "spool"
    path.mkdir()
    return path


@pytest.fixture
def limits(tmp_path: Path) -> Iterator[Limits]:
    limits = Limits(str(tmp_path), 0)
    yield limits
    limits.close()


def now() -> int:
    return time.time_ns() // 1000


def save(limits: Limits, spool: Path, at_us: int | None = None) -> None:
    at_us = at_us or now()
    learnt.write(str(spool), learnt.gather(limits, at_us).encode(at_us))


def again(tmp_path: Path, spool: Path, at_us: int | None = None) -> Limits:
    """A new instance."""
    run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
    run.mkdir()
    learnt.restore(str(run), str(spool), at_us or now())
    return Limits(str(run), 0)


def test_a_restart_changes_nothing(tmp_path: Path, spool: Path, limits: Limits) -> None:
    """Suspensions, what adaptation found, today's volume and a slow rate are as they were."""
    until_us = now() + HOUR_US
    held = Hold("all", until_us, "rule listed", "550 listed", now())
    limits.update("google", lambda state: replace(state.with_hold(held), adaptive=b"blob", adaptive_us=now(),
                                                  connections=7, rate=2.5))
    limits.count("volume:acme", 90, 100, DAY_S)
    hourly = (Bucket("path", 1, 3600.0),)
    limits.reserve(hourly)
    save(limits, spool)

    new = again(tmp_path, spool)
    state = new.state("google")
    assert state.holds == (held,)
    assert (state.adaptive, state.connections, state.rate) == (b"blob", 7, 2.5)
    assert not new.count("volume:acme", 20, 100, DAY_S)
    assert new.reserve(hourly) == pytest.approx(time.monotonic() + 3600, abs=30)
    new.close()


def test_what_is_over_or_belongs_to_others_is_left_out(tmp_path: Path, spool: Path, limits: Limits) -> None:
    """Ended suspensions, the operator's, levels of workers, fast rates, adaptation of long ago, yesterday's volume."""
    limits.update("ended", lambda state: state.with_hold(Hold("all", now() - 1, "failures", "", 0)))
    limits.update("ordered", lambda state: state.with_hold(Hold("all", now() + HOUR_US, "operator", "", now())))
    limits.update("old", lambda state: replace(state, adaptive=b"x", adaptive_us=now() - 25 * HOUR_US, rate=1.0))
    limits.count("queue:acme", 5, None, LEVEL)
    limits.count("volume:acme", 5, None, DAY_S)
    limits.reserve((Bucket("path", 10, 1.0),))
    found = learnt.gather(limits, now())
    assert (found.states, len(found.counters), found.levels) == ([], 1, [])
    assert sorted(name for name, _ in limits.states()) == ["old", "ordered"]  # what is over has gone from the table

    save(limits, spool)
    tomorrow = again(tmp_path, spool, now() + 25 * HOUR_US)
    assert list(limit_table.walk(tomorrow.table, limit_table.COUNTER, 10)) == [[]]
    tomorrow.close()


def test_pauses_of_failing_sites_are_found_out_again(tmp_path: Path, spool: Path, limits: Limits) -> None:
    """They may be this machine's own fault. The table has them until an hour after the pause: a probe is due."""
    for name, ended_us in (("lasts", -60_000_000), ("due", 60_000_000), ("old", HOUR_US + 60_000_000)):
        hold = Hold("all", now() - ended_us, "failures", "421 busy", now(), 3.0)
        limits.update(f"site:{name}", lambda state, hold=hold: state.with_hold(hold))
    assert learnt.gather(limits, now()).states == []
    assert sorted(name for name, _ in limits.states()) == ["site:due", "site:lasts"]

    save(limits, spool)
    new = again(tmp_path, spool)
    assert list(new.states()) == []
    new.close()


def test_the_same_is_the_same_whenever_it_is_gathered(limits: Limits) -> None:
    """So that a file is only written when there is something new in it."""
    limits.update("google", lambda state: replace(state, adaptive=b"blob", adaptive_us=now()))
    limits.reserve((Bucket("path", 1, 3600.0),))
    first = learnt.gather(limits, now())
    second = learnt.gather(limits, now())
    assert first.states == second.states
    assert [key for key, *_ in first.levels] == [key for key, *_ in second.levels]
    assert first == second
    limits.update("google", lambda state: replace(state, adaptive=b"more"))
    assert learnt.gather(limits, now()) != first


def test_a_clock_that_was_set_back_moves_all_along(tmp_path: Path, spool: Path, limits: Limits) -> None:
    """A machine that comes up in another year does not suspend a path until then."""
    later_us = now() + 365 * 24 * HOUR_US
    limits.update("google", lambda state: state.with_hold(Hold("all", later_us + HOUR_US, "failures", "", later_us)))
    save(limits, spool, later_us)
    new = again(tmp_path, spool)
    assert new.state("google").holds[0].until_us == pytest.approx(now() + HOUR_US, abs=60_000_000)
    new.close()


@pytest.mark.parametrize("harm", ["empty", "torn", "flipped", "other version", "not ours", "directory"])
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, spool: Path, limits: Limits, harm: str,
                                            caplog: pytest.LogCaptureFixture) -> None:
    """And the start goes on without it."""
    limits.update("google", lambda state: replace(state, rate=1.0, adaptive=b"x", adaptive_us=now()))
    save(limits, spool)
    path = learnt.path_of(str(spool))
    data = path.read_bytes()
    match harm:
        case "empty":
            path.write_bytes(b"")
        case "torn":
            path.write_bytes(data[:-1])
        case "flipped":
            path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
        case "other version":
            path.write_bytes(data.replace(b"learnt 1", b"learnt 2"))
        case "not ours":
            path.write_bytes(b"\x00" * 100)
        case "directory":
            path.unlink()
            path.mkdir()
    with caplog.at_level(logging.INFO):
        new = again(tmp_path, spool)
    assert new.state("google") == PathState()
    assert len(caplog.records) == 1
    assert "going on without" in caplog.text
    new.close()


def test_no_file_is_nothing_to_tell(tmp_path: Path, spool: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first start."""
    with caplog.at_level(logging.INFO):
        again(tmp_path, spool).close()
    assert caplog.records == []


def test_there_is_always_a_whole_file(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed or out of space while it is written: the one before is still there."""
    learnt.write(str(spool), b"before")

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        learnt.write(str(spool), b"after")
    assert [(path.name, path.read_bytes()) for path in spool.iterdir()] == [("learnt", b"before")]


def test_a_table_that_can_be_written_again_is_told_of(limits: Limits, monkeypatch: pytest.MonkeyPatch,
                                                      caplog: pytest.LogCaptureFixture) -> None:
    """Also in the process that does nothing with the table but keep what was learnt."""
    monkeypatch.setattr(limit_table, "_trouble", limit_table._Trouble())
    monkeypatch.setattr(limit_table, "QUIET_S", 0.0)
    assert not limit_table.cope(limits.table, lmdb.DiskError("no space"))
    assert limits.trouble
    learnt.gather(limits, now())
    assert not limits.trouble
    assert [record.getMessage() for record in caplog.records][-1].startswith("the table of limits can be written again")
