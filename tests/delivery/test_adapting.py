"""Paths adapt (mta.delivery.adapting): what the record in the table of limits says, on a given clock."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mta.config.schema import Shaping, Source
from mta.delivery import sources
from mta.delivery.adapting import Adapting
from mta.delivery.adaptive import FORGET_S
from mta.delivery.leases import Refusal
from mta.delivery.path import Path
from mta.delivery.pathstate import PathState


class Table:
    """The states, of one worker."""

    def __init__(self) -> None:
        self.states: dict[str, PathState] = {}

    def state(self, name: str) -> PathState:
        return self.states.get(name, PathState())

    def update(self, name: str, change: Callable[[PathState], PathState]) -> PathState:
        self.states[name] = change(self.state(name))
        return self.states[name]


def adapted(now: SimpleNamespace) -> tuple[Adapting, Path]:
    """The adaptation of an engine by the clock `now.s`, and a path of which nothing is known."""
    nothing: Any = lambda *args, **options: None  # noqa: E731
    engine: Any = SimpleNamespace(
        monotonic=lambda: now.s, clock_us=lambda: int(now.s * 1e6), limits=Table(),
        pacing=SimpleNamespace(wait=nothing), holds=SimpleNamespace(apply=nothing),
        connecting=SimpleNamespace(kick_path=nothing), hub=SimpleNamespace(later=nothing))
    engine.limits.charge = nothing
    context: Any = None
    path = Path("mx", sources.Source("", Source(), "mta.test", context), Shaping())
    adapting = Adapting(engine)
    adapting.adopt(path)
    return adapting, path


@pytest.mark.parametrize("later_s", [FORGET_S + 60, 2.0])
def test_a_refusal_that_is_long_past_holds_nobody_back(later_s: float) -> None:
    """Blocked, then no mail for over a day: the path is free again, not blocked for ever. Soon after: one probe."""
    now = SimpleNamespace(s=1000.0)
    adapting, path = adapted(now)
    adapting._learn(path, refused_s=999.9)
    assert path.blocked
    now.s += later_s
    assert adapting.may_probe(path)
    assert path.blocked == (later_s < FORGET_S)
    assert adapting.may_probe(path) == (later_s > FORGET_S)


@pytest.mark.parametrize(("up_s", "learnt_ago_s"), [(40.0, 0.0), (40_000.0, 0.0), (40_000.0, 3600.0)])
def test_what_was_taken_counts_from_the_first_message(up_s: float, learnt_ago_s: float) -> None:
    """30 messages within three seconds, then a refusal, and one more is taken a second later: some eight a second. Also
    in the first minute of a machine, with which the clock begins; and where another limit was told an hour before."""
    now = SimpleNamespace(s=up_s)
    adapting, path = adapted(now)
    if learnt_ago_s:
        adapting._learn(path, burdened=True)
        now.s += learnt_ago_s
    for _ in range(30):
        now.s += 0.1
        adapting.taken(path, now.s - 0.05, now.s)
    adapting._learn(path, refused_s=now.s)
    now.s += 1.0
    assert adapting.may_probe(path)
    now.s += 0.01
    adapting.taken(path, now.s - 0.01, now.s)
    assert not path.blocked
    assert [1 / bucket.spacing for bucket in path.paced] == [pytest.approx(8.0, rel=0.1)]


def test_connections_that_are_refused_together_are_one_reason_to_wait() -> None:
    """While another worker is opening one, too: five at once, or one for which the path waits already, are a second and
    not a minute; and then two."""
    now = SimpleNamespace(s=1000.0)
    adapting, path = adapted(now)
    for wait_s in (1.0, 2.0):
        for _ in range(5):
            assert adapting.to_refusal(path, "connections", now.s - 0.1, alone=False)
        assert path.hold_until_s - now.s == wait_s
        now.s = path.hold_until_s
    assert not path.refused("421 too many connections", now.s, Refusal.UNCLEAR)
    assert adapting.to_refusal(path, "connections", now.s - 0.1, alone=False)
    assert path.hold_until_s - now.s == 4.0


def test_a_worker_alone_that_is_refused_many_at_once_waits_seconds() -> None:
    """Each counts, but not for a minute: others may be served meanwhile. What is refused after the wait doubles it."""
    now = SimpleNamespace(s=1000.0)
    adapting, path = adapted(now)
    for wait_s in (8.0, 16.0, 32.0, 60.0):
        for _ in range(8):
            assert adapting.to_refusal(path, "connections", now.s - 0.1, alone=True)
        assert path.hold_until_s - now.s == wait_s
        now.s = path.hold_until_s
