"""Lanes and paths are forgotten when they have nothing to do, and only then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mta.config.schema import Shaping, Source
from mta.delivery import sources, ways
from mta.delivery.lane import Lane
from mta.delivery.path import Path


def engine_with(sites: int) -> Any:
    """An engine that knows so many sites, each by two sources, of which the first failed."""
    engine: Any = SimpleNamespace(paths={}, lanes={}, config=SimpleNamespace(routes={}),
                                  connecting=SimpleNamespace(stop_waiting=lambda path: None))
    context: Any = None
    for number in range(sites):
        lane = engine.lanes[f"mx{number}"] = Lane(f"mx{number}", "", f"d{number}.test")
        made = []
        for name in ("a", "b"):
            path = Path(f"{name}>mx{number}", sources.Source(name, Source(), "mta.test", context), Shaping())
            engine.paths[path.name] = path
            made.append(path)
        made[0].failures = 1
        lane.lead_to(made, [1, 1])
    return engine


def test_too_many_paths_that_failed_are_forgotten_with_their_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go, and with a lane those of its paths that nobody else needs, which may be among the oldest, too."""
    monkeypatch.setattr(ways, "PATHS_KEPT", 20)
    engine = engine_with(12)
    ways.Ways(engine)._forget_paths()
    assert list(engine.lanes) == [f"mx{number}" for number in range(3, 12)]
    assert list(engine.paths) == [f"{name}>mx{number}" for number in range(3, 12) for name in ("a", "b")]


def test_a_path_whose_lane_has_a_connection_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lane may use it at any moment; who is held looks for paths by name."""
    monkeypatch.setattr(ways, "PATHS_KEPT", 20)
    engine = engine_with(12)
    engine.lanes["mx0"].connections.add(object())
    ways.Ways(engine)._forget_paths()
    assert "mx0" in engine.lanes
    assert {"a>mx0", "b>mx0"} <= engine.paths.keys()
    assert len(engine.paths) == 18
