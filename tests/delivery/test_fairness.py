"""Turns are taken fairly: by weight among tenants, equally among a tenant's queues."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from mta.delivery.fairness import Turns


@dataclass(eq=False)
class Line:
    tenant: str
    name: str = ""
    priority: int = 1


def test_queues_of_one_tenant_take_turns() -> None:
    """With one tenant it is a plain round robin in order of arrival."""
    turns: Turns[Line] = Turns()
    lines = [Line("", name) for name in "abc"]
    for line in lines:
        turns.add(line)

    assert [turns.next() for _ in range(6)] == lines * 2


def test_a_tenant_with_many_queues_gets_no_more_than_one_with_a_single_queue() -> None:
    """Fairness is first over tenants."""
    turns: Turns[Line] = Turns()
    for index in range(50):
        turns.add(Line("big", str(index)))
    turns.add(Line("small"))

    served = Counter(line.tenant for _ in range(1000) if (line := turns.next()))

    assert served == {"big": 500, "small": 500}


def test_weights_divide_the_turns() -> None:
    """A tenant of weight 3 gets three turns for each one of weight 1."""
    turns: Turns[Line] = Turns({"heavy": 3})
    turns.add(Line("heavy"))
    turns.add(Line("light"))

    served = Counter(line.tenant for _ in range(400) if (line := turns.next()))

    assert served == {"heavy": 300, "light": 100}


def test_what_was_shrunk_takes_turns_again() -> None:
    """And shares nothing with others; with something in it nothing happens, and what is held comes back."""
    turns: Turns[Line] = Turns()
    other: Turns[Line] = Turns()
    line, held = Line("", "a"), Line("held", "b")
    turns.add(line)
    turns.shrink()
    assert turns.next() is line
    turns.add(held)
    turns.hold("held")
    turns.discard(line)
    turns.shrink()
    assert (turns.next(), len(turns)) == (None, 1)
    turns.free("held")
    assert turns.next() is held
    turns.discard(held)
    turns.shrink()
    assert turns.next() is None
    turns.add(line)
    assert turns.next() is line
    assert (other.next(), other.count, other.best) == (None, 0, 3)


def test_adding_twice_gives_no_second_place() -> None:
    """A queue that is offered again while it waits keeps its one place; after a discard it starts anew."""
    turns: Turns[Line] = Turns()
    first, second = Line("", "a"), Line("", "b")
    turns.add(first)
    turns.add(second)
    turns.add(first)
    turns.discard(first)
    turns.add(first)

    assert [turns.next() for _ in range(4)] == [second, first, second, first]
    assert len(turns) == 2


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "next", "hold", "free"]), st.integers(0, 8)), max_size=80))
def test_exactly_the_members_are_served(steps: list[tuple[str, int]]) -> None:
    """Whatever the order of calls, `next` gives members that are not held only, and None only when there is none."""
    lines = [Line(str(index % 3), str(index), index // 3) for index in range(9)]
    turns: Turns[Line] = Turns({"1": 2})
    members: set[Line] = set()
    held: set[str] = set()
    for step, index in steps:
        if step == "add":
            turns.add(lines[index])
            members.add(lines[index])
        elif step == "discard":
            turns.discard(lines[index])
            members.discard(lines[index])
        elif step == "hold":
            turns.hold(lines[index].tenant)
            held.add(lines[index].tenant)
        elif step == "free":
            turns.free(lines[index].tenant)
            held.discard(lines[index].tenant)
        else:
            line = turns.next()
            able = {one for one in members if one.tenant not in held}
            assert (line in able) if able else line is None
        assert turns.count == len([one for one in members if one.tenant not in held])
        assert set(turns.active()) == {one for one in members if one.tenant not in held}
        assert set(turns) == members
        assert bool(turns) == bool(members)


def served(turns: Turns[Line], count: int) -> Counter[int]:
    return Counter(line.priority for _ in range(count) if (line := turns.next()))


def test_priorities_are_strict_but_for_a_share_of_ageing() -> None:
    """Of ten turns one goes to the lower priorities that wait, shared by them; who is alone has all."""
    turns: Turns[Line] = Turns()
    lines = [Line("", str(priority), priority) for priority in (2, 1, 0)]
    for line in lines:
        turns.add(line)
    assert served(turns, 1000) == {0: 900, 1: 50, 2: 50}
    turns.discard(lines[2])
    assert served(turns, 1000) == {1: 900, 2: 100}
    turns.discard(lines[1])
    assert served(turns, 10) == {2: 10}
    assert turns.best == 2


def test_without_ageing_priorities_are_strict() -> None:
    """`turns.ageing: 0`."""
    turns: Turns[Line] = Turns(ageing=0)
    turns.add(Line("a", "", 2))
    turns.add(Line("a", "", 0))
    assert served(turns, 50) == {0: 50}


def test_what_is_held_is_passed_over_and_comes_back_behind_the_others() -> None:
    """Also what is added while the tenant is held; other tenants share its turns meanwhile."""
    turns: Turns[Line] = Turns()
    first, second, other = Line("a", "1"), Line("a", "2", 0), Line("b")
    turns.add(first)
    turns.add(other)
    turns.hold("a")
    turns.add(second)
    assert (turns.count, len(turns)) == (1, 3)
    assert [turns.next() for _ in range(3)] == [other] * 3
    turns.discard(first)
    turns.free("a")
    assert turns.next() is second
    assert set(turns) == {second, other}


def test_weights_may_change() -> None:
    """A reload is in force at once, also for who waits."""
    turns: Turns[Line] = Turns({"heavy": 100})
    turns.add(Line("heavy"))
    turns.add(Line("light"))
    turns.configure({"light": 3}, 10)
    counts = Counter(line.tenant for _ in range(400) if (line := turns.next()))
    assert 295 <= counts["light"] <= 305
