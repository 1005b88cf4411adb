"""The virtual clock: order, waiting, waking, cancelling."""

from __future__ import annotations

import pytest

from mta.simulate.kernel import VirtualHub


def test_things_happen_in_the_order_of_time_and_then_of_asking() -> None:
    """Two runs that ask the same see the same."""
    hub, seen = VirtualHub(), []
    for name, at in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        hub.later(at, lambda name=name: seen.append((name, hub.elapsed)))
    hub.spawn(lambda: seen.append(("now", hub.elapsed)))
    hub.run(10)
    assert seen == [("now", 0.0), ("a", 1.0), ("b", 1.0), ("c", 2.0)]
    assert hub.elapsed == 10


def test_a_greenlet_sleeps_while_others_run() -> None:
    """Years cost nothing."""
    hub, seen = VirtualHub(), []

    def ticks(name: str, every_s: float) -> None:
        for _ in range(3):
            hub.sleep(every_s)
            seen.append((name, hub.elapsed))

    hub.spawn(ticks, "a", 2.0)
    hub.spawn(ticks, "b", 3e7)
    hub.run(1e9)
    assert seen == [("a", 2.0), ("a", 4.0), ("a", 6.0), ("b", 3e7), ("b", 6e7), ("b", 9e7)]


def test_an_event_wakes_once_or_times_out() -> None:
    """A wait ends when the event is set, else in time; what was set later does not end another wait."""
    hub, seen = VirtualHub(), []
    event = hub.event()

    def wait() -> None:
        seen.append((event.wait(5.0), hub.elapsed))
        event.clear()
        seen.append((event.wait(5.0), hub.elapsed))
        seen.append((event.wait(5.0), hub.elapsed))

    hub.spawn(wait)
    hub.later(1.0, event.set)
    hub.later(13.0, event.set)
    hub.run(100)
    assert seen == [(True, 1.0), (False, 6.0), (False, 11.0)]


def test_what_is_cancelled_does_not_happen() -> None:
    """Neither once nor twice."""
    hub, seen = VirtualHub(), []
    timer = hub.later(1.0, seen.append, "x")
    timer.cancel()
    timer.cancel()
    hub.run(2)
    assert seen == []


def test_an_error_ends_the_run() -> None:
    """A simulation with a bug in it says so."""
    hub = VirtualHub()
    hub.later(1.0, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        hub.run(2)
