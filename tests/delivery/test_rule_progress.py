"""What `mta explain` says of rules that count: how far they are, over all workers, and nothing of those at 0."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mta.config.reply_book import ReplyRules
from mta.config.reply_rules import ReplyRule
from mta.control.explanation import Explained, Explanation, merged
from mta.delivery import limit_table, rule_progress
from mta.delivery.limits import Limits
from mta.delivery.rule_counts import Place
from tests.delivery.test_tallies import Worker, everyone, rule

NOW_S = 1_000_000.0
PLACE = Place("out1>mx.test", "out1", "big")


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Worker]]:
    """Two workers on one environment."""
    env = limit_table.open_table(tmp_path / "limits")
    monkeypatch.setattr(limit_table, "open_table", lambda directory: env)
    yield [Worker(Limits(str(tmp_path), number)) for number in range(2)]
    env.close()


def engine_of(crew: list[Worker], number: int, rules: list[ReplyRule], now_s: float = NOW_S) -> Any:
    """What is asked of an engine; when it waits the others answer."""
    worker = crew[number]
    path = SimpleNamespace(name=PLACE.path, source=SimpleNamespace(name="out1"), provider="big", domain="",
                           outcomes=worker.outcomes)

    def wait(seconds: float) -> None:
        for one in crew:
            one.answers()

    return SimpleNamespace(
        config=SimpleNamespace(rules=ReplyRules(rules)), limits=worker.limits, clock_us=lambda: int(now_s * 1e6),
        paths={PLACE.path: path}, reactions=SimpleNamespace(counts=worker.counts), hub=SimpleNamespace(sleep=wait))


def test_matches_of_all_workers_are_told_until_they_are_forgotten(crew: list[Worker]) -> None:
    """Two of three, one by each worker; at the path and at the provider by what the rule would hold. A rule without a
    match is not told of, nor is one that has acted or whose matches are too old."""
    few = rule("3 in 1h")
    wide = rule("3 in 1h", "suspend: provider for 2h")._replace(name="wide")
    never = rule("3 in 1h")._replace(name="never")
    others = rule("3 in 1h")._replace(name="others", providers=("other",))
    rules = [few, wide, never, others]
    for number, worker in enumerate(crew):
        worker.refused(few, NOW_S - 60 + number, PLACE)
        worker.refused(wide, NOW_S - 60 + number, PLACE)
    engine = engine_of(crew, 0, rules)
    told = rule_progress.of_path(engine, engine.paths[PLACE.path])
    assert [(one.rule, one.key, one.matches, one.number) for one in told] == [
        ("a", "out1>mx.test", 2, 3), ("wide", "provider:big", 2, 3)]
    assert told[0].text == ("rule a has 2 of 3 matches for out1>mx.test within 1h; with the last of them: "
                            "suspend path for 1h")
    assert (told[0].since_us, told[0].until_us) == (int((NOW_S - 60) * 1e6), int((NOW_S - 60 + 3600) * 1e6))
    assert [one.rule for one in rule_progress.of_name(engine, "provider:big")] == ["wide"]
    assert rule_progress.of_name(engine, "provider:other") == []
    assert [one.rule for one in rule_progress.of_path_name(engine, PLACE.path)] == ["a"]

    later = engine_of(crew, 1, rules, NOW_S + 3541.5)
    assert rule_progress.of_path(later, later.paths[PLACE.path]) == []
    assert crew[0].refused(few, NOW_S, PLACE)
    assert [one.rule for one in rule_progress.of_path(engine, engine.paths[PLACE.path])] == ["wide"]


def test_a_share_is_told_of_what_all_workers_had(crew: list[Worker]) -> None:
    """Those who have not told their outcomes are asked first."""
    part = rule("20% of 50 in 10m")
    crew[1].outcomes = 100  # before, and no part of it
    for _ in range(4):
        crew[0].refused(part, NOW_S - 5, PLACE)
    everyone(crew)
    crew[0].outcomes += 6
    crew[1].outcomes += 30
    engine = engine_of(crew, 0, [part])
    rule_progress.ask(engine, [PLACE.path])
    [told] = rule_progress.of_path(engine, engine.paths[PLACE.path])
    assert (told.matches, told.outcomes, told.number, told.share) == (4, 4 + 6 + 30, 50, 0.2)
    assert told.text == ("rule a took 4 of 40 outcomes (10%) for out1>mx.test within 10m; from 20% of 50 on: "
                         "suspend path for 1h")


def test_workers_that_say_the_same_are_one(crew: list[Worker]) -> None:
    """Each rule once, from the worker that knows of more; a rule that one of them alone tells is there."""
    few, wide = rule("3 in 1h"), rule("3 in 1h", "suspend: provider for 2h")._replace(name="wide")
    crew[0].refused(few, NOW_S - 60, PLACE)
    engine = engine_of(crew, 0, [few, wide])
    first = rule_progress.of_path(engine, engine.paths[PLACE.path])
    for one in (few, wide):
        crew[1].refused(one, NOW_S - 50, PLACE)
    second = rule_progress.of_path(engine, engine.paths[PLACE.path])
    both = merged([Explanation([Explained("path", PLACE.path, "idle", rules=first)]),
                   Explanation([Explained("path", PLACE.path, "active", rules=second)])], [])
    assert [(one.rule, one.matches) for one in both.rows[0].rules] == [("a", 2), ("wide", 1)]
