"""A lane chooses a source for each connection by weight, and stands still only when all its paths do."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

from mta.config.schema import Shaping, Source
from mta.delivery import sources
from mta.delivery.lane import Lane
from mta.delivery.path import Path


def paths(phase: int = 0, **weights: int) -> Lane:
    """A lane with a path from each of these sources, at the beginning of their turns or so many further."""
    lane = Lane("pool/mx", "pool", "d.test")
    context: Any = None
    made = [Path(f"{name}>mx", sources.Source(name, Source(), "mta.test", context), Shaping()) for name in weights]
    with patch("random.randrange", lambda phases: phase):
        lane.lead_to(made, list(weights.values()))
    return lane


def draw(lane: Lane, unusable: tuple[str, ...] = ()) -> str:
    """The source of one more connection."""
    candidates = lane.candidates(lambda path: path.source.name not in unusable)
    if not candidates:
        return ""
    lane.took(candidates[0], candidates[1:])
    return candidates[0].source.name


def test_sources_get_connections_by_weight_and_not_in_bursts() -> None:
    """Weights 5, 1, 1: in seven the heavy one has five, and the others come in between."""
    lane = paths(a=5, b=1, c=1)
    drawn = "".join(draw(lane) for _ in range(14))
    assert drawn == "aabacaa" * 2


def test_lanes_begin_with_any_of_the_sources() -> None:
    """Where most domains get one message, their first connections are shared by weight, too."""
    assert Counter(draw(paths(phase, a=5, b=1, c=1)) for phase in range(7)) == {"a": 5, "b": 1, "c": 1}


def test_a_weight_of_zero_is_not_chosen() -> None:
    """It is in the pool only for mail that left from it before."""
    lane = paths(a=1, b=0)
    assert {draw(lane) for _ in range(5)} == {"a"}
    assert lane.path_from("b") is lane.paths[1]


def test_a_source_that_cannot_be_used_is_passed_over_and_not_made_up_for() -> None:
    """The others share by their weights; when it is back it has its share from then on, not what it missed."""
    lane = paths(a=2, b=1, c=1)
    assert Counter(draw(lane, ("a",)) for _ in range(20)) == {"b": 10, "c": 10}
    assert Counter(draw(lane) for _ in range(20)) == {"a": 10, "b": 5, "c": 5}
    assert draw(lane, ("a", "b", "c")) == ""


def test_a_path_that_was_refused_a_lease_loses_no_turn() -> None:
    """The next one is taken instead; only what could have had the connection takes part in the draw."""
    lane = paths(a=1, b=1)
    for _ in range(10):
        first, second = lane.candidates(lambda path: True)
        lane.took(second, [])  # the first one had no lease
    assert Counter(draw(lane) for _ in range(10)) == {"a": 5, "b": 5}
    assert first is not second


def test_a_lane_stands_still_when_all_its_paths_do_until_the_first_may_go() -> None:
    """A path with weight 0 does not count."""
    lane = paths(a=1, b=1, c=0)
    a, b, _ = lane.paths
    assert lane.suspended(100) == 0
    a.suspend(500, "421", "site")
    assert lane.suspended(100) == 0
    b.suspend(300, "421", "site")
    assert lane.suspended(100) == 300
    assert lane.suspended(300) == 0


def test_other_paths_after_a_reload() -> None:
    """What is no longer led to is told, and no longer knows the lane."""
    lane = paths(a=1, b=1)
    a, b = lane.paths
    assert lane.lead_to([b], [3]) == [a]
    assert (list(a.lanes), list(b.lanes)) == ([], [lane])
