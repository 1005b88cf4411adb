"""Event files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.config import schema
from mta.config.units import Size
from mta.queue.encoding import EventMark, Position
from mta.queue.eventlog import EventLog, event_files, next_name
from mta.queue.store import Transaction
from tests.queue.faults import NO_SPACE, Failing, Unsynced
from tests.queue.helpers import START_US, Bench, config

NOTHING = EventMark(Position(0, 0), "", 0)
SECOND = 1_000_000


def test_a_file_is_named_by_its_time() -> None:
    """UTC, to the second, with a number within it."""
    assert next_name(START_US, "") == "20231114-221320-000.jsonl"
    assert next_name(START_US, "20231114-221320-000.jsonl") == "20231114-221320-001.jsonl"
    assert next_name(START_US, "20231114-221320-999.jsonl") == "20231114-221321-000.jsonl"
    assert next_name(START_US, "20231114-235959-999.jsonl") == "20231115-000000-000.jsonl"


@given(st.lists(st.integers(0, 4_000_000_000 * SECOND), max_size=30))
def test_names_increase_whatever_the_clock_does(times: list[int]) -> None:
    """Sorted by name the files are in the order in which they were written."""
    names = [""]
    for time_us in times:
        names.append(next_name(time_us, names[-1]))
    assert names == sorted(set(names))


def small(size: int, keep: int = 50) -> schema.Config:
    """A configuration with small event files."""
    return replace(config(), events=schema.Events(size=Size(size), keep=keep))


def test_files_are_rotated_and_old_ones_go(tmp_path: Path) -> None:
    """A file that has reached its size is closed; of the closed ones the last `keep` stay."""
    bench = Bench(tmp_path / "000", small(100, keep=2))
    for n in range(10):
        bench.clock.now_us += SECOND
        bench.commit(Transaction(events=[b"%099d" % n]))
        bench.accept("a.test", content=bytes(400_000))
        bench.checkpoint()
    bench.close()
    files = event_files(bench.directory / "events")
    assert files[-1] == "20231114-221330-000.jsonl"
    assert 2 <= len(files) <= 5
    lines = b"".join((bench.directory / "events" / name).read_bytes() for name in files).splitlines()
    assert [int(line) for line in lines] == list(range(10))[-len(lines):]


@pytest.mark.parametrize(("group_readable", "modes"), [(False, (0o700, 0o600)), (True, (0o750, 0o640))])
def test_who_may_read_them(tmp_path: Path, group_readable: bool, modes: tuple[int, int]) -> None:
    """The owner alone; with `events.group_readable` the group, whatever the umask."""
    before = os.umask(0o077)
    try:
        bench = Bench(tmp_path / "000", replace(config(), events=schema.Events(group_readable=group_readable)))
        bench.commit(Transaction(events=[b"1"]))
        bench.close()
    finally:
        os.umask(before)
    events = bench.directory / "events"
    [name] = event_files(events)
    assert tuple(path.stat().st_mode & 0o777 for path in (events, events / name)) == modes


def test_recovery_writes_the_same_bytes_into_the_same_files(tmp_path: Path) -> None:
    """A reader that follows the files sees nothing change when a crash takes the end of them away."""
    bench = Bench(tmp_path / "000", small(200))
    for n in range(4):
        bench.commit(Transaction(events=[b"%050d" % n]))
    bench.accept("a.test")
    bench.checkpoint()
    for n in range(4, 20):
        bench.clock.now_us += SECOND // 3
        bench.commit(Transaction(events=[b"%050d" % n, b"second"]))
    bench.store.abandon()
    events = bench.directory / "events"
    before = {name: (events / name).read_bytes() for name in event_files(events)}
    assert len(before) > 4
    for name in list(before)[2:]:
        (events / name).unlink()
    with (events / list(before)[1]).open("r+b") as file:
        file.truncate(30)
    bench = Bench(bench.directory, small(200))
    assert {name: (events / name).read_bytes() for name in event_files(events)} == before
    bench.close()


def test_what_a_power_failure_leaves_behind_is_cut_off(tmp_path: Path) -> None:
    """Behind the durable end of a file there may be anything."""
    bench = Bench(tmp_path / "000")
    bench.commit(Transaction(events=[b"first"]))
    bench.accept("a.test")
    bench.checkpoint()
    bench.store.abandon()
    [name] = event_files(bench.directory / "events")
    with (bench.directory / "events" / name).open("ab") as file:
        file.write(bytes(1000))
    bench = Bench(bench.directory)
    bench.commit(Transaction(events=[b"second"]))
    bench.close()
    assert bench.events() == b"first\nsecond\n"


def test_files_that_an_operator_takes_away_are_not_missed(tmp_path: Path) -> None:
    """The next line begins a new file, and nothing fails."""
    bench = Bench(tmp_path / "000")
    bench.commit(Transaction(events=[b"1"]))
    bench.close()
    [name] = event_files(bench.directory / "events")
    (bench.directory / "events" / name).unlink()
    bench = Bench(bench.directory)
    bench.commit(Transaction(events=[b"2"]))
    bench.accept("a.test")
    bench.checkpoint()
    bench.close()
    [other] = event_files(bench.directory / "events")
    assert other > name
    assert bench.events() == b"2\n"


@pytest.mark.parametrize("operation", ["pwritev", "create", "fsync_directory"])
def test_a_file_whose_first_line_fails_is_known(tmp_path: Path, operation: str) -> None:
    """However the beginning of a file fails, what is written at the next attempt is where the mark says."""
    files = Failing(operation, error=NO_SPACE)
    log = EventLog(tmp_path, 100, files, NOTHING)
    log.append(b"line\n", START_US, Position(1, 4096))
    assert log.error is not None
    assert log.mark.journal == NOTHING.journal
    files.error = 0
    log.append(b"next\n", START_US, Position(1, 8192))
    assert log.mark == EventMark(Position(1, 8192), "20231114-221320-000.jsonl", 10) or operation == "pwritev"
    assert (tmp_path / log.mark.file).read_bytes() == b"line\nnext\n"
    assert log.mark.length == 10
    log.close()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Only names of our form are event files."""
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "20231114-221320-000.jsonl.gz").write_text("")
    log = EventLog(tmp_path, 100, Unsynced(), NOTHING)
    log.append(b"line\n", START_US, Position(1, 4096))
    log.prune("99999999-000000-000.jsonl", 1)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "20231114-221320-000.jsonl", "20231114-221320-000.jsonl.gz", "notes.txt"]
    assert log.mark == EventMark(Position(1, 4096), "20231114-221320-000.jsonl", 5)
