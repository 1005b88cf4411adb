"""The spool directory in real processes, with the real store and kill -9."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.inject.pickup_helpers import drop, left, message, transactions

ROOT = Path(__file__).parents[2]


class Taker:
    """A running `pickup_process`."""

    def __init__(self, base: Path, shard: int, *foreign: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.inject.pickup_process", str(base / "in"), str(base / "spool"), str(shard),
             *map(str, foreign)],
            cwd=ROOT, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self._end()

    def stop(self) -> None:
        """SIGTERM; it must end well."""
        self.process.terminate()
        assert self._end() == 0

    def _end(self) -> int:
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(30)


@contextmanager
def taker(base: Path, shard: int = 0, *foreign: int) -> Iterator[Taker]:
    """A process that is gone afterwards, whatever happens."""
    one = Taker(base, shard, *foreign)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.kill()


def accepted(base: Path) -> list[str]:
    """The recipients of all messages ever accepted, from the events."""
    return sorted(
        recipient
        for path in base.glob("spool/*/events/*.jsonl")
        for line in path.read_text().split("\n")[:-1]  # of the last one there may be a part only
        for recipient in json.loads(line)["recipients"]
    )


def until(condition: Callable[[], bool], seconds: float = 30.0) -> float:
    """Wait for another process; returns how long it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, "it did not happen"
        time.sleep(0.01)
    return time.monotonic() - begun


def test_a_file_is_taken_when_it_is_renamed_in(tmp_path: Path) -> None:
    """The kernel announces it: no scan (30 s) is waited for. Before the start, while it runs, and bad ones too."""
    place = tmp_path / "in"
    drop(place, "before", message("0@x.example"))
    with taker(tmp_path) as one:
        until(lambda: accepted(tmp_path) == ["0@x.example"])
        for number in range(1, 4):
            drop(place, f"{number}", message(f"{number}@x.example"))
            until(lambda number=number: f"{number}@x.example" in accepted(tmp_path), 10.0)
        drop(place, "bad", "bad")
        until(lambda: (place / "failed/bad").exists(), 10.0)
        until(lambda: left(place) == ["failed/bad", "failed/bad.error"])
        one.stop()
    assert accepted(tmp_path) == [f"{number}@x.example" for number in range(4)]


def test_a_bug_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an exception that should not be the directory is looked at again."""
    monkeypatch.setenv("FAIL_ONCE", "")
    drop(tmp_path / "in", "before", message("0@x.example"))
    with taker(tmp_path) as one:
        until(lambda: accepted(tmp_path) == ["0@x.example"])
        one.stop()


def test_nothing_is_lost_or_repeated_by_kill(tmp_path: Path) -> None:
    """Rounds of kill -9 at random moments while messages and batches stream in: each is accepted once."""
    place = tmp_path / "in"
    chance = random.Random(2)
    expected: list[str] = []
    for rounds in range(6):
        with taker(tmp_path) as one:
            for number in range(40):
                name = f"{rounds}-{number}"
                if number % 10 == 9:
                    recipients = [f"{name}-{part}@y.example" for part in range(150)]
                    drop(place, f"{name}.bsmtp", transactions(*recipients))
                    expected += recipients
                else:
                    drop(place, name, message(f"{name}@x.example"))
                    expected.append(f"{name}@x.example")
            time.sleep(chance.uniform(0.0, 0.15))  # the moment of death is the input of this test
            one.kill()
    with taker(tmp_path) as one:
        until(lambda: left(place) == [])
        one.stop()
    assert accepted(tmp_path) == sorted(expected)


def test_another_worker_finishes_what_a_dead_one_began(tmp_path: Path) -> None:
    """Claims of a shard that is left over are finished by whoever owns it, and new files go to the own shard."""
    place = tmp_path / "in"
    recipients = [f"{number}@x.example" for number in range(3000)]
    drop(place, "many.bsmtp", transactions(*recipients))
    with taker(tmp_path, 1) as one:
        until(lambda: any("many" in name for name in left(place) if name.startswith(".claimed/001/")))
        one.kill()
    drop(place, "new", message("new@x.example"))
    with taker(tmp_path, 0, 1) as one:
        until(lambda: left(place) == [])
        one.stop()
    assert accepted(tmp_path) == sorted([*recipients, "new@x.example"])
    assert not [name for name in (tmp_path / "spool/001/events").iterdir() if "new@" in name.read_text()]


def test_two_processes_share_a_directory(tmp_path: Path) -> None:
    """Every file is taken by one of them."""
    place = tmp_path / "in"
    for number in range(300):
        drop(place, f"{number}", message(f"{number}@x.example"))
    with taker(tmp_path, 0) as one, taker(tmp_path, 1) as two:
        until(lambda: left(place) == [])
        one.stop()
        two.stop()
    assert accepted(tmp_path) == sorted(f"{number}@x.example" for number in range(300))


def test_a_directory_that_is_moved_away_is_made_again(tmp_path: Path) -> None:
    """The service notices, makes what is missing, and goes on with what is there now."""
    place = tmp_path / "in"
    with taker(tmp_path) as one:
        drop(place, "one", message("1@x.example"))
        until(lambda: accepted(tmp_path) == ["1@x.example"])
        place.rename(tmp_path / "away")
        until(lambda: (place / ".claimed/000").is_dir())
        drop(place, "two", message("2@x.example"))
        until(lambda: accepted(tmp_path) == ["1@x.example", "2@x.example"], 10.0)
        one.stop()
