"""The retry clock keeps to its schedule."""

from __future__ import annotations

import random

from mta.config.schema import Retry
from mta.config.units import Duration
from mta.queue.retry import RetryClock

CLOCK = RetryClock(random.Random(1))


def test_waits_grow_by_the_factor_up_to_the_cap() -> None:
    """Each wait is `factor` times the one before, and never longer than `cap`."""
    retry = Retry(first=Duration(300), factor=2.0, cap=Duration(1000), jitter=0.0)

    waits = [CLOCK.wait_s(retry, attempt) for attempt in (1, 2, 3, 4, 1_000_000)]

    assert waits == [300, 600, 1000, 1000, 1000]


def test_a_written_schedule_replaces_the_formula_and_its_last_wait_repeats() -> None:
    """`schedule` lists the waits in order."""
    retry = Retry(schedule=(Duration(60), Duration(600)), jitter=0.0)

    assert [CLOCK.wait_s(retry, attempt) for attempt in (1, 2, 3, 99)] == [60, 600, 600, 600]


def test_jitter_stays_within_its_share_and_spreads() -> None:
    """Waits vary by at most the jitter, and they do vary: an outage's mail must not come due together."""
    retry = Retry(first=Duration(100), jitter=0.2)
    waits = [RetryClock(random.Random(seed)).wait_s(retry, 1) for seed in range(200)]

    assert all(80 <= wait <= 120 for wait in waits)
    assert max(waits) - min(waits) > 30


def test_due_time_counts_from_now() -> None:
    """`next_us` is in microseconds after the time given."""
    retry = Retry(first=Duration(2), jitter=0.0)

    assert CLOCK.next_us(retry, 1, 5_000_000) == 7_000_000


def test_a_wait_that_a_rule_asks_for_is_not_cut_short() -> None:
    """A greylist of five minutes refuses who comes a second earlier; jitter only adds."""
    retry = Retry(first=Duration(300), cap=Duration(1000), jitter=0.2)
    waits = [RetryClock(random.Random(seed)).after_us(retry, 310.0, 0) / 1e6 for seed in range(200)]

    assert all(310 <= wait <= 372 for wait in waits)
    assert max(waits) - min(waits) > 40
