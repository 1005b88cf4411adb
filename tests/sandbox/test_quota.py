"""How a receiver counts (mta.sandbox.quota), on a given clock."""

from __future__ import annotations

import pytest

from mta.config.units import Rate, parse_rate
from mta.sandbox.quota import Quota, Quotas, Window


def taken(quota: Quota, times: list[float]) -> list[bool]:
    """Which of the messages at these times are within it."""
    return [quota.takes(time) for time in times]


@pytest.mark.parametrize(("window", "rate", "times", "expected"), [
    ("bucket", "2/10s", [0, 0, 0, 5, 5, 20, 20, 20], "110101 10".replace(" ", "") + ""),
    ("bucket", "60/min, burst 2", [0, 0, 0, 1, 1], "11010"),
    ("fixed", "2/10s", [1, 9, 9.5, 11, 11, 11.5, 35], "1101101"),
    ("sliding", "2/10s", [0, 9, 9.5, 10.5, 11, 19.5], "110101"),
])
def test_each_kind_counts_its_way(window: Window, rate: str, times: list[float], expected: str) -> None:
    """A bucket fills evenly up to a period's or its burst; fixed periods begin anew; a sliding one looks back."""
    quota = Quota(parse_rate(rate), window, times[0])
    assert "".join("01"[one] for one in taken(quota, times)) == expected


def test_another_rate_is_in_force_at_once() -> None:
    """A bucket keeps what is in it, up to the new size: nothing is given for the change."""
    quotas = Quotas()
    assert all(quotas.takes("site", "client", Rate(10, 60.0), "bucket", 0.0) for _ in range(10))
    assert not quotas.takes("site", "client", Rate(100, 60.0), "bucket", 0.1)
    assert quotas.takes("site", "client", Rate(100, 60.0), "bucket", 1.1)
    assert quotas.takes("site", "other", Rate(100, 60.0), "bucket", 1.1)
    quotas.clear()
    assert sum(quotas.takes("site", "client", Rate(3, 60.0), "fixed", 2.0) for _ in range(9)) == 3
