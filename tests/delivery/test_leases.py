"""The arithmetic of one limit, alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.delivery.leases import Leases, Refusal


def leases(limit: int, *shares: tuple[int, int, float]) -> Leases:
    """Workers 0, 1, ... with (held, want, since)."""
    state = Leases("x", limit)
    for worker, (held, want, since) in enumerate(shares):
        share = state.of(worker)
        share.held, share.want, share.since = held, want, since
    return state


def test_record_in_the_table() -> None:
    """What is stored is read back; a limit that nobody holds or wants leaves no record."""
    state = leases(3, (2, 0, 0.0), (0, 1, 5.5), (0, 0, 9.0))
    packed = state.encode()
    assert packed is not None
    again = Leases.decode(packed)
    assert (again.name, again.limit, sorted(again.shares)) == ("x", 3, [0, 1])
    assert (again.shares[1].want, again.shares[1].since) == (1, 5.5)
    assert leases(3, (0, 0, 1.0)).encode() is None


def waiting(state: Leases) -> list[int]:
    """The workers that want more, the one that is served next first."""
    return [worker for _, _, worker in sorted(
        (share.held, share.since, worker) for worker, share in state.shares.items() if share.want)]


def test_a_free_lease_goes_to_the_poorest_then_to_the_longest_waiting() -> None:
    """Held first, then the time of waiting; each grant counts at once."""
    state = leases(10, (3, 1, 1.0), (1, 2, 9.0), (1, 1, 5.0), (2, 0, 0.0))
    assert state.grant() == [2, 1, 1]
    assert state.held == 10
    assert waiting(state) == [0]


def test_nobody_passes_those_who_wait() -> None:
    """A newcomer gets what is left after all who wait have been served."""
    state = leases(3, (1, 0, 0.0), (0, 1, 5.0), (0, 1, 4.0))
    assert state.take(3, 9.0) == (False, [2, 1])
    assert waiting(state) == [3]
    state = leases(4, (1, 0, 0.0), (0, 1, 5.0), (0, 1, 4.0))
    assert state.take(3, 9.0) == (True, [2, 1])


def test_place_in_the_line_is_kept_while_wanting() -> None:
    """Asking again does not send a worker back to the end."""
    state = leases(1, (1, 0, 0.0))
    state.take(1, 5.0)
    state.take(2, 6.0)
    state.take(1, 7.0)
    state.want(1, 3, 8.0)
    assert waiting(state) == [1, 2]
    state.want(1, 0, 9.0)
    state.want(1, 1, 9.0)
    assert waiting(state) == [2, 1]


@pytest.mark.parametrize(("limit", "shares", "resting", "yields"), [
    (1, [(1, 0), (0, 1)], False, True),  # the limit goes round
    (1, [(1, 1), (0, 1)], False, True),
    (1, [(1, 1), (0, 0)], False, False),  # nobody else wants
    (3, [(2, 1), (1, 1)], False, False),  # as even as can be
    (4, [(3, 1), (1, 1)], False, True),
    (4, [(2, 1), (2, 1)], False, False),
    (9, [(3, 0), (1, 1)], False, False),  # there are free ones
    (3, [(1, 1), (1, 1), (1, 1), (0, 1)], False, True),
    (2, [(1, 0), (1, 1)], True, True),  # what rests goes to whoever can use it
    (2, [(1, 1), (1, 0)], True, True),  # also to another path of the same worker
    (2, [(1, 0), (1, 0)], True, False),
    (2, [(0, 1), (2, 0)], True, False),  # has none
    (2, [(3, 1), (1, 1)], False, True),  # above a limit that was lowered
    (2, [(1, 0), (3, 0), (0, 1)], False, False),  # that has no more than its part; the other one gives way
    (2, [(1, 0), (3, 0)], True, True),  # but for what rests
])
def test_giving_way(limit: int, shares: list[tuple[int, int]], resting: bool, yields: bool) -> None:
    """Worker 0 gives way when that makes the shares more even, or serves one that has none."""
    state = leases(limit, *((held, want, 0.0) for held, want in shares))
    assert state.should_yield(0, resting) is yields


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 12), min_size=1, max_size=6), st.booleans())
def test_a_limit_that_was_lowered_is_come_down_to_and_not_below(limit: int, held: list[int], waits: bool) -> None:
    """All workers with more than the limit together are asked at once, and none knows yet what the others answer. In
    some rounds they hold no more than the limit; and none of them gives up more than is more than its part."""
    state = leases(limit, *((count, int(waits), 0.0) for count in held))
    for _ in range(20):
        if state.held <= limit:
            break
        holders = sum(count > 0 for count in held)
        before = [state.of(worker).held for worker in range(len(held))]
        after = []
        for worker in range(len(held)):
            alone = leases(limit, *((count, 0, 0.0) for count in before))
            while alone.should_yield(worker, resting=False):
                alone.give_back(worker)
            after.append(alone.of(worker).held)
            assert after[-1] >= min(before[worker], limit // holders)
        for worker, count in enumerate(after):
            state.of(worker).held = count
        if min(before) >= limit:
            assert state.held == limit
    assert state.held <= limit


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.lists(st.tuples(st.sampled_from(["take", "back", "want", "drop"]), st.integers(0, 4)),
                                   max_size=60))
def test_the_limit_holds_and_no_lease_lies_idle(limit: int, steps: list[tuple[str, int]]) -> None:
    """Whatever the workers do: never more than the limit is held, and none is free while somebody waits."""
    state: Any = Leases("x", limit)
    for now, (what, worker) in enumerate(steps):
        if what == "take":
            state.take(worker, float(now))
        elif what == "back":
            state.give_back(worker)
            state.grant()
        elif what == "want":
            state.want(worker, 2, float(now))
            state.grant()
        else:
            state.shares.pop(worker, None)
            state.grant()
        assert state.held <= limit
        assert state.held == limit or not waiting(state)
        packed = state.encode()
        state = Leases.decode(packed) if packed else Leases("x", limit)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(2, 6), st.integers(0, 5))
def test_greedy_workers_end_with_equal_shares(limit: int, workers: int, first: int) -> None:
    """All want as many as they can get, one had them all before: giving way leads to equal parts, and then it stops.

    Where there are fewer leases than workers it does not stop: everybody has one in turn.
    """
    state = Leases("x", limit)
    state.of(first % workers).held = limit
    for worker in range(workers):
        state.want(worker, 1, float(worker))
    served = {first % workers}
    for now in range(300):
        rich = max(range(workers), key=lambda worker: (state.of(worker).held, -state.of(worker).since))
        if not state.should_yield(rich, resting=False):
            break
        state.give_back(rich)
        for granted in state.grant():
            served.add(granted)
            state.want(granted, 1, 100.0 + now)
        state.want(rich, 0, 0.0)
        state.want(rich, 1, 100.0 + now)  # it was served: to the end of the line
    held = [state.of(worker).held for worker in range(workers)]
    assert sum(held) == limit
    assert max(held) - min(held) <= 1
    assert served == set(range(workers))


# --- what a receiver takes -----------------------------------------------------------------------------------------


def served(held: dict[int, int], now: float = 100.0) -> Leases:
    """Workers that hold leases of a limit of 20, of a receiver that took a connection just now."""
    state = leases(20)
    for worker, count in held.items():
        state.of(worker).held = count
    state.now = now
    state.served()
    return state


def later(state: Leases, seconds: float) -> Leases:
    """The record as it is read some time later."""
    packed = state.encode()
    assert packed is not None
    return Leases.decode(packed, state.now + seconds)


def test_a_refusal_beside_other_connections_is_a_limit_for_all() -> None:
    """Three are served, of two workers; a third one's is refused: it waits for one of those, nobody takes a fourth."""
    state = served({0: 2, 1: 1, 2: 1})
    assert state.refused(2, state.now - 0.1, serves_us=False) is Refusal.BEYOND
    state.give_back(2)
    assert state.grant() == []
    assert state.take(2, state.now) == (False, [])
    assert state.take(1, state.now) == (False, [])
    assert state.should_yield(0, resting=False)
    state.give_back(0)
    assert state.grant() == [2]


def test_one_more_is_tried_after_a_while_and_later_each_time() -> None:
    """A second at first, doubled up to a minute while the receiver goes on refusing."""
    state = served({0: 3, 1: 1})
    waits = []
    for _ in range(8):
        assert state.refused(1, state.now - 0.01, serves_us=False) is Refusal.BEYOND
        state.give_back(1)
        waits.append(state.firm_until - state.now)
        state = later(state, waits[-1] - 0.01)
        assert state.room == 3
        state = later(state, 0.02)
        assert state.room == 4
        assert state.take(1, state.now)[0]
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60])


def test_what_is_taken_beyond_raises_the_limit_step_by_step() -> None:
    """Each connection that the receiver takes after all lets one more be tried, up to our own limit."""
    state = served({0: 18, 1: 1})
    state.refused(1, state.now - 0.01, serves_us=False)
    state.give_back(1)
    for room in (19, 20):
        state = later(state, 5.0)
        assert state.room == room
        assert state.take(0, state.now)[0]
        assert not state.take(0, state.now)[0]
        state.served()
    assert (state.taken, state.room) == (0, 20)


def test_refusals_of_connections_tried_together_count_as_one() -> None:
    """Five are opened at once and three refused: the limit is what is left, the wait is the first one."""
    state = served({0: 5})
    begun = state.now - 0.1
    for _ in range(3):
        assert state.refused(0, begun, serves_us=True) is Refusal.BEYOND
        state.give_back(0)
        state = later(state, 0.01)
    assert (state.taken, state.firm_s) == (2, 1.0)


def test_a_refusal_within_what_was_taken_is_told_apart() -> None:
    """The receiver takes no new connection just now, however few there are: waiting for a lease would not help."""
    state = served({0: 3, 1: 1})
    state.refused(1, state.now - 0.01, serves_us=False)
    state.give_back(1)
    state = later(state, 0.5)
    state.give_back(0)
    assert state.take(1, state.now)[0]
    state = later(state, 0.1)
    assert state.refused(1, state.now - 0.05, serves_us=False) is Refusal.WITHIN


@pytest.mark.parametrize(("held", "served_ago", "took_s", "expected"), [
    ({0: 1}, 1.0, 0.1, Refusal.ALONE),  # nobody else has one
    ({0: 2}, 1.0, 0.1, Refusal.ALONE),  # two of ours, none of them taken
    ({0: 1, 1: 1}, 1.0, 0.1, Refusal.BEYOND),
    ({0: 1, 1: 1}, 1000.0, 0.1, Refusal.UNCLEAR),  # perhaps the other one will be taken
    ({0: 1, 1: 1}, 1000.0, 15.0, Refusal.ALONE),  # a timeout: the host is dead
])
def test_whom_a_receiver_serves(held: dict[int, int], served_ago: float, took_s: float, expected: Refusal) -> None:
    """A refusal of a receiver that serves nobody is an outage, and leaves the limit as it is."""
    state = served(held, 10_000.0 - served_ago)
    state.now = 10_000.0
    assert state.refused(0, state.now - took_s, serves_us=False) is expected
    assert bool(state.taken) is (expected is Refusal.BEYOND)


def test_a_receiver_that_never_served_does_not_soon_after_the_machine_started() -> None:
    """The clock begins with the machine: in its first minutes no time is long ago, and "never" is none of them."""
    state = served({0: 2, 1: 2})
    state.now, state.served_at = 20.0, Leases("path", 20).served_at
    assert state.refused(0, state.now - 0.1, serves_us=False) is Refusal.UNCLEAR
    assert not state.taken
