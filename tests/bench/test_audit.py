"""Windows, use and fairness, reckoned from given times."""

from __future__ import annotations

import pytest

from bench.audit import jain, open_share, used, windows
from mta.sandbox.ledger import Visit


def test_any_window_counts_wherever_it_begins() -> None:
    """Three in one second, though no second of the clock has more than two."""
    found = windows([0.0, 0.9, 1.0, 1.8, 3.0], 2, 1.0)
    assert (found.most, found.exceeded) == (3, 1)
    assert found.spare_s == pytest.approx(-0.1)


def test_the_end_does_not_belong_to_a_window() -> None:
    """One a second, to the point: kept to, and nothing to spare."""
    found = windows([0.0, 1.0, 2.0], 1, 1.0)
    assert (found.most, found.exceeded, found.spare_s) == (1, 0, 0.0)


def test_use_is_reckoned_between_events() -> None:
    """Ten in nine intervals of 0.1 s are ten a second, whenever the time that is looked at begins."""
    assert used([number / 10 for number in range(10)], 10.0, -5.0, 5.0) == pytest.approx(1.0)
    assert used([1.0], 10.0, 0.0, 5.0) == 0.0


def test_a_connection_counts_for_as_long_as_it_is_open() -> None:
    """One that has not been closed is open to the end."""
    visits = [Visit(1, 0.0, 5.0, "a", "c"), Visit(2, 5.0, 0.0, "a", "c")]
    assert open_share(visits, 2, 0.0, 10.0) == pytest.approx(0.5)


def test_jain() -> None:
    """Equal shares are 1, one that has all of four is a quarter."""
    assert jain([2.0, 2.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
