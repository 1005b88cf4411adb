"""The table of limits of a simulation does what the one that workers share does."""

from __future__ import annotations

import random

from mta.delivery.limits import Limits
from mta.delivery.rates import Bucket
from mta.simulate.kernel import VirtualHub
from mta.simulate.limits import SimulatedLimits

PATHS = 5
OF_PROCESSES = {"table", "close", "fileno", "recv_nudges", "clear_worker", "stocked", "tallied", "use_late"}
"""What a process does with the table, or who reads content from a disk, or counts before its doors open."""


def test_it_has_all_that_an_engine_asks_for() -> None:
    """A method that is missing ends the simulation when it is first needed, which may be hours in."""
    wanted = {name for name in dir(Limits) if not name.startswith("_")}
    assert wanted - set(dir(SimulatedLimits)) == OF_PROCESSES


def test_a_rate_that_changes_all_the_time_is_used() -> None:
    """As adaptation changes it. Who waits keeps its place, so that no path goes without and no time is lost."""
    hub, dice = VirtualHub(), random.Random(1)
    limits = SimulatedLimits(hub)
    granted, at = [0] * PATHS, [hub.now] * PATHS
    begin = hub.now
    while hub.now < begin + 300:
        changes = hub.now - hub.now % 2 + 2
        hub.now = min(changes, *at)
        source = Bucket("source", 1 + int(hub.now / 2) % 5 / 50, 1.0)
        for number in dice.sample(range(PATHS), PATHS):
            if hub.now == changes or at[number] <= hub.now:
                not_before = limits.reserve((Bucket(f"path{number}", 10, 1.0), source))
                granted[number] += not not_before
                at[number] = not_before or hub.now
    assert sum(granted) >= 0.95 * 300
    assert min(granted) >= 0.8 * 300 / PATHS


def test_a_change_of_the_rate_moves_those_who_wait() -> None:
    """To a faster rate: asked again they are told the new time, in the order in which they came."""
    hub = VirtualHub()
    limits = SimulatedLimits(hub)

    def ask(number: int, count: float) -> float:
        return limits.reserve((Bucket(f"path{number}", 1000, 1.0), Bucket("source", count, 60.0)))

    assert ask(0, 1) == 0.0
    slow = [ask(number, 1) for number in range(PATHS)]
    fast = [ask(number, 60) for number in reversed(range(PATHS))][::-1]
    assert (slow, fast) == (sorted(slow), sorted(fast))
    assert slow[0] > hub.now + 59
    assert fast[-1] < hub.now + 6


def test_what_is_handed_back_late_is_no_later_one() -> None:
    """As of the table: its time is over."""
    hub = VirtualHub()
    limits = SimulatedLimits(hub)
    path = (Bucket("path", 10, 1.0),)
    assert limits.reserve(path) == 0.0
    since = hub.now
    hub.now = limits.reserve(path)
    assert limits.reserve(path) == 0.0
    limits.hand_back(path, since=since)
    assert limits.reserve(path) > hub.now


def test_a_place_that_is_handed_back_moves_nobody_behind_it() -> None:
    """The others have their times."""
    limits = SimulatedLimits(VirtualHub())
    source = Bucket("source", 1, 60.0)
    sets = [(Bucket(f"path{number}", 1000, 1.0), source) for number in range(3)]
    assert limits.reserve(sets[0]) == 0.0
    limits.reserve(sets[1])
    last = limits.reserve(sets[2])
    limits.hand_back(sets[1])
    assert limits.reserve(sets[0]) > last
