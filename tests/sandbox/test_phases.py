"""Phases begin and end, however close together they lie."""

from __future__ import annotations

from mta.config.units import Duration
from mta.sandbox.internet import Internet
from mta.sandbox.ledger import Ledger
from mta.sandbox.settings import Personality, Phase, Settings


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """What it was set to."""
        return self.now


def test_a_change_that_comes_due_while_another_is_applied_is_not_forgotten() -> None:
    """Looking at a thousand hosts takes time; what changes meanwhile is still due afterwards."""
    clock = Clock()
    internet = Internet(Settings(), Ledger(1000, 0), lambda host: None, clock.monotonic)
    down = Personality(phases=(Phase(until=Duration(8), listening=False),))
    internet.set("one.test", down)
    clock.now = 100.002
    internet.set("two.test", down)
    assert internet.next_change() == 108.0

    clock.now = 108.001
    internet.refresh()
    assert not internet.entry("two.test").behaviour().listening
    clock.now = 108.050  # the refresh took so long

    due = internet.next_change()
    assert due is not None
    assert due < clock.now
    internet.refresh()
    assert internet.next_change() is None
