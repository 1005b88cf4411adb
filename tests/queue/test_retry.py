"""The retry clock keeps to its schedule."""

from __future__ import annotations

import random

from mta.config.schema import Retry
from mta.config.units import Duration
from mta.queue.retry import RetryClock


def clock(retry: Retry) -> RetryClock:
    return RetryClock(retry, random.Random(1))


def test_waits_grow_by_the_factor_up_to_the_cap() -> None:
    """Each wait is `factor` times the one before, and never longer than `cap`."""
    retry = Retry(first=Duration(300), factor=2.0, cap=Duration(1000), jitter=0.0)

    waits = [clock(retry).wait_s(attempt) for attempt in (1, 2, 3, 4, 1_000_000)]

    assert waits == [300, 600, 1000, 1000, 1000]


def test_no_wait_is_longer_than_the_longest() -> None:
    """By this bound a due time is known that no right clock can have given."""
    for retry in (Retry(), Retry(schedule=(Duration(7), Duration(300), Duration(60))), Retry(first=Duration(99_999))):
        waits = [clock(retry).wait_s(attempts) for attempts in range(1, 1000)]
        assert max(waits) <= clock(retry).longest_s < 2 * max(waits)


def test_a_written_schedule_replaces_the_formula_and_its_last_wait_repeats() -> None:
    """`schedule` lists the waits in order."""
    retry = Retry(schedule=(Duration(60), Duration(600)), jitter=0.0)

    assert [clock(retry).wait_s(attempt) for attempt in (1, 2, 3, 99)] == [60, 600, 600, 600]


def test_jitter_stays_within_its_share_and_spreads() -> None:
    """Waits vary by at most the jitter, and they do vary: an outage's mail must not come due together."""
    retry = Retry(first=Duration(100), jitter=0.2)
    waits = [RetryClock(retry, random.Random(seed)).wait_s(1) for seed in range(200)]

    assert all(80 <= wait <= 120 for wait in waits)
    assert max(waits) - min(waits) > 30


def test_due_time_counts_from_now() -> None:
    """`next_us` is in microseconds after the time given."""
    retry = Retry(first=Duration(2), jitter=0.0)

    assert clock(retry).next_us(1, 5_000_000) == 7_000_000
