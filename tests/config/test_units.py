"""Durations, sizes, rates: what is read, what is refused with which words, and that what is written reads the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.config import units
from mta.config.units import Rate


@pytest.mark.parametrize(("text", "seconds"), [
    ("0", 0), ("0s", 0), ("250ms", 0.25), ("30s", 30), ("1.5s", 1.5), ("10m", 600), ("4h", 14_400), ("5d", 432_000),
    ("2w", 1_209_600), ("1h30m", 5400), ("1h 30m", 5400), ("1d12h30m15s", 131_415), (" 5d ", 432_000),
])
def test_durations(text: str, seconds: float) -> None:
    """A duration is one number with a unit, or several from large to small."""
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "message"), [
    ("300", "a duration needs a unit, as in 300s or 300m"),
    ("12:30", "a duration is written with units, as in 12h30m or 12m30s"),
    ("1:02:03", "a duration is written with units, as in 1h02m03s"),
    ("5D", "units of time are lower case, as in 5d"),
    ("30m1h", "from large to small"), ("1m1m", "each once"), ("0.5ms", "whole number of milliseconds"),
    ("40000d", "at most 36525d"), ("-5s", "not a duration such as"), ("", "not a duration"),
    ("5 min", "not a duration"),
    ("1e3s", "not a duration"), ("٣s", "not a duration"), ("nan", "not a duration"),
    ("9" * 5000 + "s", "not a duration"),
])
def test_refused_durations(text: str, message: str) -> None:
    """A number without unit, a clock time and everything odd is refused, with what was probably meant."""
    with pytest.raises(ValueError, match=message):
        units.parse_duration(text)


@pytest.mark.parametrize(("text", "size"), [
    ("0", 0), ("512B", 512), ("64KB", 64_000), ("64kb", 64_000), ("25MB", 25_000_000), ("25 MB", 25_000_000),
    ("1.5GB", 1_500_000_000), ("2GiB", 2 * 2**30), ("1TB", 10**12),
])
def test_sizes(text: str, size: int) -> None:
    """KB is a thousand bytes and KiB is 1024; case does not matter."""
    assert units.parse_size(text) == size


@pytest.mark.parametrize(("text", "message"), [
    ("25", "a size needs a unit, as in 25B or 25MB"), ("25M", "'m' is no unit of size, write 25MB or 25MiB"),
    ("25X", "no unit of size"), ("0.5B", "whole number of bytes"), ("-1MB", "not a size"), ("", "not a size"),
    ("9999999999TB", "at most"), ("1" * 5000 + "B", "not a size"),
])
def test_refused_sizes(text: str, message: str) -> None:
    """A number without unit, or with half a unit, is refused, with what was probably meant."""
    with pytest.raises(ValueError, match=message):
        units.parse_size(text)


@pytest.mark.parametrize(("text", "rate"), [
    ("100/s", Rate(100, 1)), ("50/min", Rate(50, 60)), ("50/m", Rate(50, 60)), ("1000/h", Rate(1000, 3600)),
    ("5000/d", Rate(5000, 86_400)), ("100/30s", Rate(100, 30)), ("3 / 5m", Rate(3, 300)),
    ("0.5/s", Rate(1, 2)), ("2.5/min", Rate(5, 120)), ("1,000/hr", Rate(1000, 3600)),
    ("10_000/d", Rate(10_000, 86_400)),
    ("100/min, burst 20", Rate(100, 60, 20)), ("1/s,burst 1,000", Rate(1, 1, 1000)),
])
def test_rates(text: str, rate: Rate) -> None:
    """A rate is a count per second, minute, hour or day, or per any duration; whole numbers, and a burst if wanted."""
    assert Rate.parse(text) == rate
    assert rate.per_second == rate.count / rate.per_s


@pytest.mark.parametrize("text", [
    "", "100", "0/s", "-1/s", "5/0s", "5/x", "/s", "5/s/s", "1,00/s", "1.5.5/s", "burst 5", "5/s, burst 0",
    "5/s burst 5", "0.5/h, burst", "1/36526d", "0.0/s",
])
def test_refused_rates(text: str) -> None:
    """A rate has a count above zero and a period above zero."""
    with pytest.raises(ValueError, match=r".+"):
        units.parse_rate(text)


_DURATIONS = st.integers(0, 36_525 * 86_400_000).map(lambda ms: ms / 1000)


@given(_DURATIONS)
def test_durations_round_trip(duration: float) -> None:
    """A duration that is written is read as exactly the same number."""
    assert units.parse_duration(units.format_duration(duration)) == duration


@given(st.one_of(st.integers(0, 2**62), st.integers(0, 4000).map(lambda n: n * 2**20)))
def test_sizes_round_trip(size: int) -> None:
    """A size that is written is read as the same number."""
    assert units.parse_size(units.format_size(size)) == size


@given(st.integers(1, 10**12 - 1), _DURATIONS.filter(bool))
def test_rates_round_trip(count: int, period: float) -> None:
    """A rate that is written is read as the same."""
    assert Rate.parse(str(Rate(count, period))) == Rate(count, period)
