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


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "next"]), st.integers(0, 5)), max_size=80))
def test_exactly_the_members_are_served(steps: list[tuple[str, int]]) -> None:
    """Whatever the order of calls, `next` gives members only, and None only when there is none."""
    lines = [Line(str(index % 3), str(index)) for index in range(6)]
    turns: Turns[Line] = Turns({"1": 2})
    members: set[Line] = set()
    for step, index in steps:
        if step == "add":
            turns.add(lines[index])
            members.add(lines[index])
        elif step == "discard":
            turns.discard(lines[index])
            members.discard(lines[index])
        else:
            line = turns.next()
            assert (line in members) if members else line is None
        assert set(turns) == members
        assert bool(turns) == bool(members)
