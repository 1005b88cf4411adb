"""Opening connections is bounded, and nobody who waits for it is forgotten."""

from __future__ import annotations

from mta.delivery.openings import Line, Room


def test_the_bound_holds_and_places_go_on_in_order() -> None:
    """Above the limit one stands in line; each free place calls the next, first come first served."""
    line: Line[str] = Line(2)
    for who in ("a", "b"):
        assert line.has_room(who)
        line.begin()

    assert not line.has_room("c")
    assert not line.has_room("d")
    assert not line.has_room("c"), "asking twice gives no second place"
    assert line.next() is None
    line.end()
    assert line.next() == "c"
    assert line.has_room("c")
    line.begin()
    assert line.next() is None
    line.end()
    assert line.next() == "d"
    assert line.next() is None


def test_who_is_urgent_stands_before_the_others() -> None:
    """Also one that stood in line already."""
    line: Line[str] = Line(0)
    for name in ("a", "b", "c"):
        assert not line.has_room(name)
    assert not line.has_room("urgent", urgent=True)
    assert not line.has_room("c", urgent=True)
    line._limit = 9
    assert [line.next() for _ in range(4)] == ["c", "urgent", "a", "b"]


def test_a_place_that_the_next_one_has_no_use_for_goes_on() -> None:
    """Whoever is called may have nothing to open a connection for any more: the one behind is called as well."""
    line: Line[str] = Line(1)
    line.begin()
    assert not line.has_room("a")
    assert not line.has_room("b")
    line.end()
    assert [line.next(), line.next(), line.next()] == ["a", "b", None]


def test_who_comes_at_a_free_moment_leaves_the_line() -> None:
    """One that waited and then found room is not called again."""
    line: Line[str] = Line(1)
    line.begin()
    assert not line.has_room("a")
    assert not line.has_room("b")
    line.end()
    assert line.next() == "a"
    assert line.has_room("b")
    line.begin()
    assert "b" not in line
    line.end()
    assert line.next() is None


def test_room_shrinks_to_what_there_is_and_grows_again() -> None:
    """After a refusal there are as many as there could be; each step allows twice as many, until nobody waits."""
    room: Room[str] = Room()
    room.most = 20
    for _ in range(10):
        room.begin()
    for _ in range(4):  # that many of them have found no socket
        room.lacks("Too many open files")
        room.end()
    assert room.shortage == "Too many open files"
    assert not room.has_room("a")
    assert room.next() is None
    assert not room.grow()
    assert room.next() == "a"
    for _ in range(6):
        room.end()
    assert room.grow()
    assert room.shortage == ""


def test_room_without_any_tries_one() -> None:
    """When not even one could be had, one is tried at the next step, not before."""
    room: Room[str] = Room()
    room.begin()
    room.lacks("Too many open files in system")
    room.end()
    assert not room.has_room("a")
    room.grow()
    assert room.next() == "a"
