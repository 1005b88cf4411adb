"""What a receiver bears is found out (mta.delivery.adaptive): connections, and the record of all. test_pace.py has the
messages in a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.delivery.adaptive import FORGET_S, WINDOW_FIRST, Adaptive, Window
from mta.delivery.pace import Pace

START_S = 100_000.0


def test_the_window_starts_small_and_grows_with_what_is_taken() -> None:
    """As in slow start, up to what is configured."""
    found = Adaptive()
    assert found.connections(20) == WINDOW_FIRST
    assert found.connections(3) == 3
    for _ in range(30):
        found.taken(1, 1.0, 0.9, 20)
    assert found.connections(20) == 20
    assert found.connections(1000) == 20


def test_the_window_is_halved_once_for_one_crowd() -> None:
    """What was under way when it was cut does not cut it again; it never falls below one; then it grows slowly."""
    window = Window(16.0)
    for _ in range(5):
        window.cut(100.0)
    assert window.size == 8.0
    window.taken(8, 20)
    assert window.size == 9.0
    for second in range(100):
        window.cut(200.0 + 10 * second)
    assert window.size == 1.0


def test_it_is_forgotten_after_a_day() -> None:
    """What nobody has seen for a day means nothing."""
    found = Adaptive(seen_at=10.0)
    assert not found.is_forgotten(10.0 + FORGET_S - 1)
    assert found.is_forgotten(10.0 + FORGET_S)


def test_more_than_was_refused_is_said_to_be_tried() -> None:
    """Nobody is told that a path is held to 66 a minute because the receiver refused 55; both are in one unit."""
    found = Adaptive(pace=Pace(rate=0.925, ceiling=0.925))
    assert found.why(10.0) == "held to 55.5/min since the receiver refused 55.5/min"
    found.pace.held, found.pace.rate = 0.888, 1.11  # a step
    assert found.why(10.0) == "66.6/min is tried, as the receiver took 53.3/min for a while"


@given(st.lists(st.tuples(st.sampled_from(["taken", "refused", "burdened", "probe"]),
                          st.floats(0.001, 1000), st.floats(0, 50)), max_size=60))
def test_any_history_survives_the_disk(history: list[tuple[str, float, float]]) -> None:
    """Whatever happened: rates are sane, and what is written and read on another clock says the same."""
    found, now = Adaptive(), START_S
    for what, later, before in history:
        now += later
        if what == "taken":
            found.taken(3, now, now - before, 20)
        elif what == "refused":
            found.refused(now, now - before)
        elif what == "burdened":
            found.burdened(now)
        else:
            found.pace.take_probe(now)
        if "since the receiver refused" in found.why(now):
            assert found.pace.rate <= found.pace.ceiling
        assert 1 <= found.connections(20) <= 20
        assert 0 <= found.pace.rate < 10_000
        assert not found.pace.is_blocked or found.pace.probe_at > 0
    again = Adaptive.decode(found.encode(now), now + 5000.0)
    assert again.connections(20) == found.connections(20)
    assert again.pace.rate == found.pace.rate
    assert again.pace.is_blocked == found.pace.is_blocked
    assert again.pace.probe_at == pytest.approx(found.pace.probe_at + 5000.0 if found.pace.probe_at else 0.0)
    assert again.why(now + 5000.0) == found.why(now)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x91\xc0", b"\x92\x80\x80"])
def test_garbage_is_refused(data: bytes) -> None:
    """A damaged record is told by ValueError."""
    with pytest.raises(ValueError, match="no record"):
        Adaptive.decode(data, 1.0)
