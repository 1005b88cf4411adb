"""Receivers with limits that nobody tells, as a model: what they take at a time that is given."""

from __future__ import annotations

import random
from collections import deque


class FixedWindow:
    """So many in each minute, or hour, of the clock."""

    def __init__(self, limit: int, period_s: float) -> None:
        self._limit, self._period_s = limit, period_s
        self._window = -1
        self._count = 0

    def takes(self, now: float) -> bool:
        """Whether it takes one more."""
        window = int(now // self._period_s)
        if window != self._window:
            self._window, self._count = window, 0
        self._count += 1
        return self._count <= self._limit


class SlidingWindow:
    """So many in any time of that length."""

    def __init__(self, limit: int, period_s: float) -> None:
        self._limit, self._period_s = limit, period_s
        self._taken: deque[float] = deque()

    def takes(self, now: float) -> bool:
        """Whether it takes one more."""
        while self._taken and self._taken[0] <= now - self._period_s:
            self._taken.popleft()
        if len(self._taken) < self._limit:
            self._taken.append(now)
            return True
        return False


class TokenBucket:
    """So many a second in the long run, and a burst."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, 0.0

    def takes(self, now: float) -> bool:
        """Whether it takes one more."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return True
        return False


class Open:
    """Takes everything."""

    def takes(self, now: float) -> bool:
        """Whether it takes one more."""
        return True


class AtRandom:
    """It refuses this share, whatever the rate."""

    def __init__(self, share: float, seed: int) -> None:
        self._share, self._dice = share, random.Random(seed)

    def takes(self, now: float) -> bool:
        """Whether it takes one more."""
        return self._dice.random() >= self._share
