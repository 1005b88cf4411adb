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


@pytest.mark.parametrize("later_s", [FORGET_S + 60, 2.0])
def test_a_refusal_that_is_long_past_holds_nobody_back(later_s: float) -> None:
    """Blocked, then no mail for over a day: the path is free again, not blocked for ever. Soon after: one probe."""
    now = SimpleNamespace(s=1000.0)
    nothing: Any = lambda *args, **options: None  # noqa: E731
    engine: Any = SimpleNamespace(
        monotonic=lambda: now.s, clock_us=lambda: int(now.s * 1e6), limits=Table(),
        pacing=SimpleNamespace(wait=nothing), holds=SimpleNamespace(apply=nothing),
        connecting=SimpleNamespace(kick_path=nothing))
    context: Any = None
    path = Path("mx", sources.Source("", Source(), "mta.test", context), Shaping())
    adapting = Adapting(engine)
    adapting.adopt(path)
    adapting._learn(path, refused_s=999.9)
    assert path.blocked
    now.s += later_s
    assert adapting.may_probe(path)
    assert path.blocked == (later_s < FORGET_S)
    assert adapting.may_probe(path) == (later_s > FORGET_S)
