"""Limits as the receiver counts them: audits of what the sandbox wrote down, with its times. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mta.sandbox.ledger import Visit


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows of one length, wherever they begin."""

    most: int  # events in the fullest
    spare_s: float  # by how much longer than a window it took, at the least, until one more than allowed had come
    exceeded: int  # windows, beginning with an event, in which more than allowed came


def windows(times: Iterable[float], allowed: int, period_s: float) -> Windows:
    """Count in windows of `period_s`; the end does not belong to a window."""
    ordered = sorted(times)
    spans = [beyond - first for first, beyond in zip(ordered, ordered[allowed:], strict=False)]
    most = first = 0
    for number, time in enumerate(ordered):
        while time - ordered[first] >= period_s:
            first += 1
        most = max(most, number - first + 1)
    return Windows(most, min(spans, default=period_s) - period_s, sum(span < period_s for span in spans))


def used(times: Iterable[float], per_second: float, begin: float, end: float) -> float:
    """The share of a rate that was used between two times, reckoned from the first event in them to the last."""
    inside = sorted(time for time in times if begin <= time <= end)
    if len(inside) < 2 or inside[-1] == inside[0]:
        return 0.0
    return (len(inside) - 1) / ((inside[-1] - inside[0]) * per_second)


def open_share(visits: Iterable[Visit], limit: int, begin: float, end: float) -> float:
    """The share of `limit` connections that was open between two times, on average."""
    total = sum(max(min(visit.closed_at or end, end) - max(visit.opened_at, begin), 0.0) for visit in visits)
    return total / (limit * (end - begin))


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything (Jain, Chiu, Hawe 1984)."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0
