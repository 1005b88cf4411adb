"""Who has leases of a limit is known without a look at those who have none."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from mta.delivery.holders import Holders, Named


@dataclass(eq=False)
class One:
    """A connection of the path `mx`."""

    leases: list[str]
    shared: tuple[str, ...] = ()
    path: Named = field(default_factory=lambda: SimpleNamespace(name="mx"))


def test_holders_are_known_by_limit_from_their_first_moment_to_their_last() -> None:
    """But not by the limit of their path, nor by the total, nor by a probe's lease, which is given back earlier."""
    holders: Holders[One] = Holders()
    first, third = One(["mx", "source:a", "*", "site:mx"]), One(["mx", "*"])
    second = One(["mx", "source:a", "provider:p"])
    for one in (first, second, third):
        holders.opened(one)
    assert [holders.holds(name) for name in ("source:a", "provider:p", "mx", "*", "source:b")] == [
        True, True, False, False, False]
    first.leases.remove("site:mx")
    for one in (second, first, third):
        holders.rests(one)
    assert list(holders.resting("source:a")) == [second, first]
    assert list(holders.resting("provider:p")) == [second]
    assert list(holders.resting("*")) == []
    holders.works(second)
    assert (list(holders.resting("source:a")), list(holders.resting("provider:p"))) == ([first], [])
    holders.works(first)
    for one in (first, second, third):
        holders.closed(one)
    assert not holders.holds("source:a")
    assert (holders._count, holders._resting) == ({}, {})


def test_who_gets_one_more_lease_holds_it_to_its_last_moment() -> None:
    """A limit that is new counts who is there, at rest or not, as if it had been there before."""
    holders: Holders[One] = Holders()
    first, second = One(["mx"]), One(["mx"])
    for one in (first, second):
        holders.opened(one)
    holders.rests(second)
    for one in (first, second):
        holders.joined(one, "source:a", rests=one is second)
    assert holders.holds("source:a")
    assert list(holders.resting("source:a")) == [second]
    holders.works(second)
    holders.closed(second)
    assert holders.holds("source:a")
    holders.closed(first)
    assert (holders._count, holders._resting) == ({}, {})
