"""Matches of rules counted by all workers together, and over the end of the instance."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from mta.config.reply_book import read_file
from mta.config.reply_rules import ReplyRule
from mta.delivery import learnt, limit_table
from mta.delivery.limits import Limits
from mta.delivery.rule_counts import ALARM_S, ASK_S, Fired, Place, RuleCounts
from mta.delivery.tally import EXACT, Tally

PATH = Place("mx.test", "out1")
DAY_US = 86_400_000_000


def rule(after: str, actions: str = "suspend: path for 1h") -> ReplyRule:
    text = f"rules:\n  - {{name: a, code: '550', samples: ['550 no'], after: {after}, {actions}}}\n"
    rules, problems = read_file(text, "r")
    assert problems == []
    return rules[0]


class Worker:
    """The counts of one worker, what it does later, and what came of it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.fired: list[Fired] = []
        self.outcomes = 0
        self.counts = RuleCounts(limits, lambda seconds, run: self.later.append((seconds, run)), self.fired.extend)

    def refused(self, one: ReplyRule, now_s: float, place: Place = PATH) -> bool:
        """One more refusal. Whether actions begin at once."""
        self.outcomes += 1
        return bool(self.counts.match(one, place, "550 no", self.outcomes, now_s))

    def answers(self) -> bool:
        """It looks at its bell. Whether it was asked."""
        if not select.select([self.limits.fileno()], [], [], 0)[0]:
            return False
        self.limits.recv_nudges()
        asked = self.limits.asked()
        for path in asked:
            self.counts.tell(path, self.outcomes)
        return bool(asked)

    def looks(self) -> int:
        """What was put off is done. How many actions came of it."""
        due, self.later = self.later, []
        before = len(self.fired)
        for seconds, run in due:
            assert seconds == ASK_S
            run()
        return len(self.fired) - before


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Worker]]:
    """Three workers on one environment, as LMDB allows one per process."""
    env = limit_table.open_table(tmp_path / "limits")
    monkeypatch.setattr(limit_table, "open_table", lambda directory: env)
    yield [Worker(Limits(str(tmp_path), number)) for number in range(3)]
    env.close()


def everyone(crew: list[Worker]) -> int:
    """All answer, then all look. How many actions came of it."""
    for worker in crew:
        worker.answers()
    return sum(worker.looks() for worker in crew)


def test_a_number_is_counted_over_all_workers(crew: list[Worker]) -> None:
    """`3 in 1h` is three, whoever had them, and the count begins anew for all."""
    one = rule("3 in 1h")
    assert [crew[number % 3].refused(one, 1000.0 + number) for number in range(7)] == [
        False, False, True, False, False, True, False]
    assert not any(worker.answers() for worker in crew)  # nobody has to be asked for that


def test_an_alarm_is_told_once_by_all_workers(crew: list[Worker]) -> None:
    """Once in an hour; and who has told it, or heard that it was, does not look into the table again."""
    one = rule("1 in 1h", "alarm: true")
    bare = rule("1 in 1h", "alarm: true")._replace(after=None)
    assert [worker.refused(one, 1000.0) for worker in crew] == [True, False, False]
    assert [worker.refused(one, 1000.0 + ALARM_S) for worker in crew] == [True, False, False]
    looked: list[str] = []
    for worker in crew:
        worker.limits.tally = lambda *_: looked.append("")
        assert not worker.refused(bare, 1001.0 + ALARM_S)
    assert looked == []


def test_a_share_is_of_the_outcomes_of_all_workers(crew: list[Worker]) -> None:
    """One worker's refusals, however many, are no share while the others deliver; what they had before the first match
    does not count."""
    one = rule("20% of 50 in 10m")
    crew[1].outcomes = 10_000
    assert not crew[0].refused(one, 1000.0)
    assert everyone(crew) == 0
    crew[1].outcomes += 500
    for second in range(60):
        assert not crew[0].refused(one, 1000.0 + second * 0.5)
    assert everyone(crew) == 0  # 61 of 561

    crew[2].outcomes += 100
    for _ in range(80):
        crew[0].refused(one, 1040.0)
    assert everyone(crew) == 0  # 141 of 741; it had looked like 141 of 641
    for _ in range(20):
        crew[0].refused(one, 1041.0)
    assert everyone(crew) == 1  # 161 of 761
    assert [fired.key for fired in crew[0].fired] == ["mx.test"]
    crew[1].refused(one, 1041.0)
    assert everyone(crew) == 0  # anew


def test_a_share_that_two_workers_see_acts_once(crew: list[Worker]) -> None:
    """Both have asked; the first one that looks takes it."""
    one = rule("50% of 10 in 10m")
    for number in range(20):
        crew[number % 2].refused(one, 1000.0)
    assert everyone(crew) == 1


def test_each_part_of_the_time_begins_with_what_all_had(crew: list[Worker]) -> None:
    """Outcomes of others from before a part of the time do not count when older parts have fallen out."""
    one = rule("20% of 50 in 10m")
    crew[0].refused(one, 6000.0)
    everyone(crew)
    crew[1].outcomes += 5000
    crew[0].refused(one, 6500.0)  # a part that stays
    everyone(crew)
    for _ in range(60):
        crew[0].refused(one, 6650.0)  # the first has fallen out, and the 5000 with it
    assert everyone(crew) == 1


def test_a_worker_that_is_new_tells_only_what_it_had_since(crew: list[Worker], tmp_path: Path) -> None:
    """Numbers of outcomes begin at 0 with the worker; the book's only grow."""
    one = rule("50% of 20 in 10m")
    for _ in range(5):
        crew[0].refused(one, 1000.0)
    everyone(crew)
    crew[0] = Worker(crew[0].limits)
    for _ in range(14):
        crew[0].refused(one, 1000.0)
    assert everyone(crew) == 0
    crew[0].refused(one, 1000.0)
    assert everyone(crew) == 1


def test_a_table_that_cannot_be_written_stops_nothing(crew: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is counted, and nothing raised."""
    class Full:
        def begin(self, **_: object) -> Any:
            raise lmdb.DiskError("no space")

    monkeypatch.setattr(limit_table, "cope", lambda env, error: None)
    monkeypatch.setattr(crew[0].limits._tallies, "_env", Full())
    assert not crew[0].refused(rule("2 in 1h"), 1000.0)
    assert not crew[0].refused(rule("50% of 2 in 1h"), 1000.0)


# --- the record ----------------------------------------------------------------------------------------------------


def test_a_tally_is_small_whatever_it_counts() -> None:
    """Times one by one as far as a hundred, then a hundredth of the time is as one; none is counted too long."""
    many = rule("9999 in 1h").after
    assert many is not None
    tally = Tally("a", "p")
    for number in range(9998):
        assert not tally.number(many, 10_000.0 + number * 0.2)
    assert len(tally.runs) <= 2 * EXACT
    assert len(tally.encode() or b"") < 4000
    assert not tally.number(many, 10_000.0 + 3601.0)  # the first have fallen out
    again = Tally.decode(tally.encode() or b"")
    assert again == tally
    with pytest.raises(ValueError, match="no tally"):
        Tally.decode(b"\x93\x01\x02\x03")


# --- a restart -----------------------------------------------------------------------------------------------------


def test_counts_go_on_after_a_restart(crew: list[Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, shares and alarms; what is over is not kept, and gone from the table."""
    now_s = time.time()
    number, share, alarm, short = (rule("3 in 1h"), rule("20% of 50 in 1h")._replace(name="b"),
                                   rule("1 in 1h", "alarm: true")._replace(name="c"),
                                   rule("3 in 10s")._replace(name="d"))
    for _ in range(2):
        crew[0].refused(number, now_s - 60)
    for _ in range(47):
        crew[0].refused(share, now_s - 60)
    everyone(crew)
    assert crew[1].refused(alarm, now_s - 60)
    assert not crew[1].refused(short, now_s - 60)
    spool = tmp_path / "spool"
    spool.mkdir()
    now_us = int(now_s * 1e6)
    found = learnt.gather(crew[0].limits, now_us)
    assert sorted(Tally.decode(record).rule for record in found.tallies) == ["a", "b", "c"]
    assert learnt.gather(crew[0].limits, now_us) == found
    left = [record for piece in limit_table.walk(crew[0].limits.table, limit_table.TALLY, 10) for record in piece]
    assert len(left) == 3
    learnt.write(str(spool), found.encode(now_us))

    monkeypatch.undo()
    run = tmp_path / "run"
    run.mkdir()
    learnt.restore(str(run), str(spool), now_us)
    new = Worker(Limits(str(run), 0))
    assert not new.refused(alarm, now_s)
    assert new.refused(number, now_s)
    assert [new.refused(share, now_s) for _ in range(4)] == [False, False, True, False]
    new.limits.close()


def test_a_clock_that_was_set_back_moves_counts_along(
        crew: list[Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted a minute ago was counted a minute ago."""
    now_s = time.time()
    for _ in range(2):
        crew[0].refused(rule("3 in 1h"), now_s - 60)
    spool = tmp_path / "spool"
    spool.mkdir()
    learnt.write(str(spool), learnt.gather(crew[0].limits, int(now_s * 1e6)).encode(int(now_s * 1e6)))
    monkeypatch.undo()
    run = tmp_path / "run"
    run.mkdir()
    learnt.restore(str(run), str(spool), int(now_s * 1e6) - DAY_US)
    new = Worker(Limits(str(run), 0))
    assert new.refused(rule("3 in 1h"), now_s - 86_400)
    new.limits.close()


def test_tallies_are_bounded(crew: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many those that would be over first are forgotten."""
    monkeypatch.setattr(learnt, "TALLIES", 5)
    now_s = time.time()
    for number in range(10):
        crew[0].refused(rule("3 in 1h"), now_s + number, Place(f"p{number}"))
    found = learnt.gather(crew[0].limits, int(now_s * 1e6))
    assert sorted(Tally.decode(record).key for record in found.tallies) == ["p5", "p6", "p7", "p8", "p9"]
