"""How a receiver counts what it takes in a time: by the clock, over any time of that length, or with a bucket. Pure."""

from __future__ import annotations

from collections import deque
from typing import Literal, TypeAlias

from mta.config.units import Rate

Window: TypeAlias = Literal["bucket", "fixed", "sliding"]


class Quota:
    """What one client has had of a rate. Times are seconds of any clock that does not go back.

    `bucket`: fills evenly, and holds what a period brings, or the rate's burst (rspamd's ratelimit module is one).
    `fixed`: so many in each period, the next one begins when it is over (Postfix' anvil(8) counts so). `sliding`: so
    many in any time as long as the period.
    """

    __slots__ = ("_begun", "_count", "_level", "_rate", "_taken", "_then", "_window")

    def __init__(self, rate: Rate, window: Window, now: float) -> None:
        self._rate, self._window = rate, window
        self._level, self._then = float(self._most), now
        self._begun, self._count = now, 0
        self._taken: deque[float] = deque()

    @property
    def _most(self) -> int:
        return self._rate.burst or self._rate.count

    def adopt(self, rate: Rate, window: Window, now: float) -> None:
        """The receiver counts otherwise from now on. What a bucket holds stays in it; windows begin anew."""
        if (rate, window) == (self._rate, self._window):
            return
        self._fill(now)
        level = self._level
        Quota.__init__(self, rate, window, now)
        self._level = min(level, self._level)

    def takes(self, now: float) -> bool:
        """Whether one more is within the rate; it is counted if so."""
        rate = self._rate
        if self._window == "bucket":
            self._fill(now)
            if self._level < 1.0:
                return False
            self._level -= 1.0
            return True
        if self._window == "fixed":
            if now >= self._begun + rate.per_s:
                self._begun += (now - self._begun) // rate.per_s * rate.per_s
                self._count = 0
            if self._count >= rate.count:
                return False
            self._count += 1
            return True
        taken = self._taken
        while taken and taken[0] <= now - rate.per_s:
            taken.popleft()
        if len(taken) >= rate.count:
            return False
        taken.append(now)
        return True

    def _fill(self, now: float) -> None:
        self._level = min(float(self._most), self._level + (now - self._then) * self._rate.per_second)
        self._then = now


class Quotas:
    """The quotas of all clients at all sites."""

    def __init__(self) -> None:
        self._quotas: dict[tuple[str, str], Quota] = {}

    def takes(self, site: str, client: str, rate: Rate, window: Window, now: float) -> bool:
        """Whether one more of a client is within a site's rate; it is counted if so."""
        quota = self._quotas.get((site, client))
        if quota is None:
            quota = self._quotas[site, client] = Quota(rate, window, now)
        else:
            quota.adopt(rate, window, now)
        return quota.takes(now)

    def clear(self) -> None:
        """Forget what was counted."""
        self._quotas.clear()
