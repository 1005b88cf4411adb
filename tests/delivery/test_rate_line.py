"""The order in which paths that wait for the same rates are called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mta.delivery.rate_line import RateLine
from mta.delivery.rates import Bucket


class Site(SimpleNamespace):
    """What is asked of a path."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def line_of(*names: str, rate: int = 60) -> tuple[RateLine, dict[str, Any]]:
    """A line in which so many stand, in this order."""
    line = RateLine(("shared",), [Bucket("shared", rate, 60.0)], urgent=False)
    paths: dict[str, Any] = {name: Site(name=name) for name in names}
    for path in paths.values():
        line.hold(path, 0.0)
    return line, paths


def called(line: RateLine, now_s: float) -> str:
    path: Any = line.call(now_s)
    return path.name if path is not None else ""


def test_who_comes_first_is_called_first_and_told_when() -> None:
    """Nobody who stands behind may ask, at any time; the first may when the place is due."""
    line, paths = line_of("a", "b", "c")
    line.at_s = 10.0
    assert [round(line.hold(path, 5.0) - 10.0) for path in paths.values()] == [0, 1, 2]
    assert not any(line.may_ask(path, 9.9) for path in paths.values())
    assert [line.may_ask(path, 10.0) for path in paths.values()] == [True, False, False]
    assert called(line, 10.0) == "a"
    line.leave(paths["a"])
    assert [line.may_ask(path, 10.0) for path in paths.values()] == [False, True, False]
    line.hold(paths["a"], 10.0)
    assert [called(line, 10.0) for _ in range(4)] == ["b", "c", "a", ""]


def test_who_was_called_too_early_stands_before_those_who_were_not() -> None:
    """In the order of their coming to the line, not of their coming back: none is left behind."""
    line, paths = line_of("a", "b", "c", "d")
    assert [called(line, 0.0) for _ in range(3)] == ["a", "b", "c"]
    for name in "cab":
        line.hold(paths[name], 0.0)
    assert [called(line, 0.0) for _ in range(4)] == ["a", "b", "c", "d"]


def test_who_does_not_come_is_not_waited_for_and_may_still_come() -> None:
    """Then it has its turn before those who came to the line after it."""
    line, paths = line_of("a", "b", "c")
    assert called(line, 0.0) == "a"
    line.give_up(line.patience_s - 0.1)
    assert line.called
    line.give_up(line.patience_s)
    assert not line.called
    assert line.may_ask(paths["a"], 5.0)
    line.hold(paths["a"], 5.0)
    assert called(line, 5.0) == "a"


def test_few_are_called_ahead() -> None:
    """Those who open their connections meanwhile are as many as have a turn while that may take."""
    line, paths = line_of(*map(str, range(50)), rate=10)
    for path in paths.values():
        if line.call_ahead(0.0) is not None:
            line.hold(path, 0.0)
    assert line.call_ahead(0.0) is None
    assert called(line, 0.0) == "0"


def test_a_line_that_nobody_stands_in_lets_everybody_ask() -> None:
    """Also while one that was called and not waited for has not come."""
    line, paths = line_of("a")
    new: Any = Site(name="new")
    assert not line.may_ask(new, 0.0)
    assert called(line, 0.0) == "a"
    assert not line.may_ask(new, 0.0)
    line.give_up(60.0)
    assert not line.has_any
    assert line.may_ask(new, 60.0)
    assert line.may_ask(paths["a"], 60.0)
