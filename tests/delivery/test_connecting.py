"""Paths that wait for a lease: each is called when there may be one, whatever the others do meanwhile."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

from mta.delivery.connecting import Connecting


class One:
    """A path, as far as it waits."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting_for = ""
        self.connections: set[object] = set()
        self.lanes: tuple[object, ...] = ()


class Kicked(Connecting):
    """Calls come to `kicks`."""

    kicks: dict[str, Any]

    def kick_path(self, path: Any, others: Any = ()) -> None:
        self.kicks[path.name](path)


def waiting(*names: str) -> tuple[Kicked, dict[str, Any], list[str]]:
    """Paths that wait for the limit `all`, and the limits that nobody of them waits for any more."""
    given_up: list[str] = []
    engine: Any = SimpleNamespace(
        connections=set(), limits=SimpleNamespace(want=lambda name, count: given_up.append(name)))
    connecting = Kicked(engine)
    paths: dict[str, Any] = {name: One(name) for name in names}
    for path in paths.values():
        wait(connecting, path)
    return connecting, paths, given_up


def wait(connecting: Connecting, path: Any) -> None:
    """What `_open` does when it lacks a lease."""
    path.waiting_for = "all"
    connecting._waiting.setdefault("all", OrderedDict())[path] = None


def test_a_path_that_is_called_may_end_the_wait_of_the_last_one() -> None:
    """Two sources of one lane wait for the same limit. The first is called, and its lane opens over the second, too."""
    connecting, paths, given_up = waiting("a", "b")
    connecting.kicks = {"a": lambda path: connecting.stop_waiting(paths["b"])}
    connecting._serve_waiting("all")
    assert not connecting._waiting
    assert given_up == ["all"]


def test_a_path_that_is_called_may_wait_again_alone() -> None:
    """The same, and the first one is refused another lease: it is the next to be called."""
    connecting, paths, given_up = waiting("a", "b", "c")

    def kick(path: Any) -> None:
        connecting.stop_waiting(paths["b"])
        connecting.stop_waiting(paths["c"])
        wait(connecting, path)

    connecting.kicks = {"a": kick}
    connecting._serve_waiting("all")
    assert list(connecting._waiting["all"]) == [paths["a"]]
    assert given_up == ["all"]
