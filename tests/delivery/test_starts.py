"""Lookups begin in portions, and slow ones hold up nobody else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mta.delivery import ways
from mta.delivery.starts import YOUNG_S, Starts


def test_what_lasts_gives_its_place_to_others_up_to_the_bound_on_all() -> None:
    """Young ones are bounded; an old one counts for all of them alone; who ends makes room at once."""
    starts = Starts(2, 3)
    first, second = starts.begin(0.0), starts.begin(0.1)
    assert not starts.has_room(0.1)
    assert round(starts.next_s(0.1) or 0, 6) == YOUNG_S - 0.1
    assert starts.has_room(YOUNG_S)
    third = starts.begin(YOUNG_S)
    assert not starts.has_room(10.0), "all of them"
    assert starts.next_s(10.0) is None
    starts.end(first)
    assert starts.has_room(10.0)
    starts.begin(10.0)
    assert round(starts.next_s(10.1) or 0, 6) == YOUNG_S - 0.1
    assert starts.next_s(10.0 + YOUNG_S) is None, "though nobody asked for room"
    starts.end(second)
    starts.end(third)
    assert starts.under_way == 1
    starts = Starts(2, 3)
    one, _ = starts.begin(20.0), starts.begin(20.0)
    assert not starts.has_room(20.0)
    starts.end(one)
    assert starts.has_room(20.0)
    starts.begin(20.0)
    assert not starts.has_room(20.0)
    assert starts.has_room(20.0 + YOUNG_S)


def test_routes_are_looked_up_in_portions() -> None:
    """Of a thousand domains a hundred at once; each that is known makes room for one, and what nobody answers for makes
    room after a moment. In the order in which they came."""
    spawned: list[tuple[Any, ...]] = []
    later: list[tuple[Any, ...]] = []
    clock = SimpleNamespace(now_s=0.0)
    engine: Any = SimpleNamespace(
        config=SimpleNamespace(routes={}), monotonic=lambda: clock.now_s,
        router=SimpleNamespace(is_at_hand=lambda domain: domain == "known.test"),
        hub=SimpleNamespace(spawn=lambda *what: spawned.append(what), later=lambda *what: later.append(what)))
    found: list[str] = []

    class Known(ways.Ways):
        def _route(self, domain: str) -> None:
            found.append(domain)

    known = Known(engine)
    names = [f"d{number}.test" for number in range(1000)]
    for name in names:
        known.find(SimpleNamespace(way=name, domain=name))

    def begun() -> list[str]:
        return [domain for _, domain, *_ in spawned]

    assert begun() == names[:100]
    assert [seconds for seconds, _ in later] == [YOUNG_S]
    assert [known.ahead_of(name) for name in (names[99], names[100], names[999], "else.test")] == [0, 100, 100, 0]
    known.find(SimpleNamespace(way="known.test", domain="known.test"))
    assert spawned.pop()[1] == "known.test", "what is at hand does not wait for the others"
    for run, *what in spawned[:10]:
        run(*what)
    assert found == names[:10]
    assert begun() == names[:110]
    clock.now_s = YOUNG_S  # nobody answers
    later.pop()[1]()
    assert begun() == names[:210]
    assert len(later) == 1
