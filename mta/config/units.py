"""Quantities of the configuration that carry a unit, durations, sizes and rates: how they are written and read.

Every `parse_*` raises ValueError with a text for the operator ("... needs a unit, as in 300s"); what a `format_*`
writes parses to the same value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import NewType

Duration = NewType("Duration", float)
"""A length of time in seconds, a whole number of milliseconds."""

Size = NewType("Size", int)
"""A number of bytes."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` things in every `per_s` seconds, evenly, or up to `burst` of them at once (0: nothing was said)."""

    count: int
    per_s: float
    burst: int = 0

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read `100/s`. Raises ValueError."""
        return parse_rate(text)

    @property
    def per_second(self) -> float:
        """The same as a number per second."""
        return self.count / self.per_s

    def __str__(self) -> str:
        """As it is written in the configuration."""
        return format_rate(self)


# --- durations -----------------------------------------------------------------------------------------------------

_MS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[wdhms]) ?)+", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[wdhms])", re.ASCII)
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_CLOCK = re.compile(r"[0-9]+:[0-5]?[0-9](?::[0-5]?[0-9])?", re.ASCII)
_MAX_DURATION_MS = 36_525 * _MS["d"]
_TOO_LONG = 64  # characters; more is no number that anybody meant


def parse_duration(text: str) -> Duration:
    """Read `30s`, `1h30m`, `1.5d`; units ms, s, m, h, d, w. Raises ValueError."""
    text = text.strip()
    if _NUMBER.fullmatch(text) and len(text) <= _TOO_LONG:
        if not Decimal(text):
            return Duration(0.0)
        raise ValueError(f"a duration needs a unit, as in {text}s or {text}m")
    if _CLOCK.fullmatch(text) and len(text) <= _TOO_LONG:
        parts = text.split(":")
        readings = ["hms"] if len(parts) == 3 else ["hm", "ms"]
        written = ["".join(map("".join, zip(parts, units, strict=True))) for units in readings]
        raise ValueError(f"a duration is written with units, as in {' or '.join(written)}")
    if not _DURATION.fullmatch(text) or len(text) > _TOO_LONG:
        if _DURATION.fullmatch(text.lower()) and len(text) <= _TOO_LONG:
            raise ValueError(f"units of time are lower case, as in {text.lower()}")
        raise ValueError("not a duration such as 30s, 10m, 4h or 5d")
    total = Decimal(0)
    last = max(_MS.values()) + 1
    for number, unit in _DURATION_PART.findall(text):
        if _MS[unit] >= last:
            raise ValueError("units of a duration go from large to small, each once, as in 1h30m")
        last = _MS[unit]
        total += Decimal(number) * last
    if total != int(total):
        raise ValueError("a duration is a whole number of milliseconds")
    if total > _MAX_DURATION_MS:
        raise ValueError("a duration is at most 36525d, a hundred years")
    return Duration(int(total) / 1000)


def format_duration(duration: float) -> str:
    """Write a duration so that `parse_duration` reads the same: `1h30m`."""
    ms = round(duration * 1000)
    if ms == 0:
        return "0s"
    parts = []
    for unit, length in _MS.items():
        if unit == "w":  # days are plainer: 30d, not 4w2d
            continue
        count, ms = divmod(ms, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


# --- sizes ---------------------------------------------------------------------------------------------------------

_BYTES = {
    "TB": 10**12, "TiB": 2**40, "GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20, "KB": 10**3, "KiB": 2**10, "B": 1,
}
_SIZE_UNITS = {unit.lower(): length for unit, length in _BYTES.items()}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]+)", re.ASCII)
_MAX_SIZE = 2**62


def parse_size(text: str) -> Size:
    """Read `25MB` (decimal) or `64MiB` (binary); units B, KB, MB, GB, TB and KiB, MiB, GiB, TiB. Raises ValueError."""
    text = text.strip()
    if _NUMBER.fullmatch(text) and len(text) <= _TOO_LONG:
        if not Decimal(text):
            return Size(0)
        raise ValueError(f"a size needs a unit, as in {text}B or {text}MB")
    match = _SIZE.fullmatch(text.lower())
    if match is None or len(text) > _TOO_LONG:
        raise ValueError("not a size such as 64KB, 25MB or 2GiB")
    number, unit = match.groups()
    if unit not in _SIZE_UNITS:
        letter = unit.upper()
        wanted = f"{number}{letter}B or {number}{letter}iB" if unit in "kmgt" else "KB, MB, GB or KiB, MiB, GiB"
        raise ValueError(f"{unit!r} is no unit of size, write {wanted}")
    size = Decimal(number) * _SIZE_UNITS[unit]
    if size != int(size):
        raise ValueError("a size is a whole number of bytes")
    if size > _MAX_SIZE:
        raise ValueError("a size is at most 4194304TiB")
    return Size(int(size))


def format_size(size: int) -> str:
    """Write a size with the largest unit that needs no fraction."""
    for unit, length in _BYTES.items():
        if size and size % length == 0:
            return f"{size // length}{unit}"
    return f"{size}B"


# --- rates ---------------------------------------------------------------------------------------------------------

_RATE = re.compile(
    r"([0-9][0-9_,]{0,15}(?:\.[0-9]{1,6})?) ?/ ?([^,]{1,32})(?:, ?burst ([0-9][0-9_,]{0,15}))?", re.ASCII)
_GROUPED = re.compile(r"[0-9]{1,12}|[0-9]{1,3}(?:[,_][0-9]{3})+", re.ASCII)
_PER = {
    "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "hr": 3600.0, "hour": 3600.0, "d": 86_400.0,
    "day": 86_400.0,
}
_PER_NAMES = {1.0: "s", 60.0: "min", 3600.0: "h", 86_400.0: "d"}
_MAX_COUNT = 10**12


def parse_rate(text: str) -> Rate:
    """Read `100/s`, `0.5/s`, `1,000/h`, `100/30s`, or with a burst, `100/min, burst 20`. Raises ValueError."""
    text = text.strip()
    match = _RATE.fullmatch(text)
    if match is None:
        if text.lower().startswith("burst"):
            raise ValueError(f'a burst belongs to its rate, in quotes, as in "100/min, {text.lower()}"')
        raise ValueError("not a rate such as 100/s, 0.5/s, 50/min or 1000/h")
    number, period, burst = match.groups()
    count = _count(number)
    if not count:
        raise ValueError("a rate is above zero, as in 1/h")
    period = period.strip()
    per = Decimal(_PER[period] if period in _PER else parse_duration(period))
    if not per:
        raise ValueError("the period of a rate is not 0")
    if count != int(count):  # 0.5/s is one in two seconds
        numerator, denominator = count.as_integer_ratio()
        count, per = Decimal(numerator), per * denominator
    if per > _MAX_DURATION_MS // 1000:
        raise ValueError("a rate is at least one in 36525d, a hundred years")
    at_once = _count(burst) if burst is not None else Decimal(0)
    if burst is not None and not at_once:
        raise ValueError("a burst is at least 1")
    return Rate(int(count), float(per), int(at_once))


def _count(text: str) -> Decimal:
    """`10`, `0.5`, `1,000` or `1_000`."""
    whole, point, rest = text.partition(".")
    if not _GROUPED.fullmatch(whole):
        raise ValueError(f"{text!r} is no number")
    count = Decimal(whole.replace(",", "").replace("_", "") + point + rest)
    if count > _MAX_COUNT:
        raise ValueError("a rate is at most 1000000000000 in its period")
    return count


def format_rate(rate: Rate) -> str:
    """Write a rate so that `parse_rate` reads the same."""
    burst = f", burst {rate.burst}" if rate.burst else ""
    return f"{rate.count}/{_PER_NAMES.get(rate.per_s) or format_duration(rate.per_s)}{burst}"
