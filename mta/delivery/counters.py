"""Numbers that all workers count together: what passed in a day (or another period), and how many there are now.

Pure arithmetic on one record of the table of limits. With a *period* the count begins again at 0 when a new one begins:
periods are counted from the epoch, so a day is a calendar day in UTC, which is what operators and mailbox providers
mean by "per day" (a rate such as 1000/d is the rolling kind). Without one it goes up and down, and each worker's part
is kept apart. A *level* is what workers have in hand, as sessions: the part of one which has died falls away. A *stock*
lies on their disks: the part stays until the worker that comes after has counted again and says how much it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgpack

DAY_S: Final = 86_400
LEVEL: Final = 0  # the period of a count that does not begin again
STOCK: Final = -1  # the same of one that outlives the worker


def window_of(now_us: int, period_s: int) -> int:
    """The number of the period in which a time of the wall clock lies."""
    return now_us // (period_s * 1_000_000)


def ends_us(now_us: int, period_s: int) -> int:
    """When that period ends: for mail that has to wait for the next one."""
    return (window_of(now_us, period_s) + 1) * period_s * 1_000_000


@dataclass(slots=True)
class Counter:
    """One count. `parts` are by worker number; with a period there is one part for all, of worker -1."""

    name: str
    period_s: int
    window: int = 0
    parts: dict[int, int] = field(default_factory=dict)

    @classmethod
    def decode(cls, record: bytes) -> Counter:
        """From the form in the table."""
        name, period_s, window, parts = msgpack.unpackb(record, strict_map_key=False)
        return cls(name, period_s, window, parts)

    def encode(self) -> bytes | None:
        """The form in the table; None when it is no more than 0. Of a stock 0 is known, too."""
        parts = {worker: part for worker, part in self.parts.items() if part or self.period_s == STOCK}
        if not parts:
            return None
        packed: bytes = msgpack.packb([self.name, self.period_s, self.window, parts])
        return packed

    @property
    def total(self) -> int:
        """Over all workers."""
        return sum(self.parts.values())

    def begin(self, now_us: int) -> None:
        """Begin again if a new period has begun. A clock that is set back over the end of a period ends none."""
        if self.period_s > 0:
            window = window_of(now_us, self.period_s)
            if window != self.window and window != self.window - 1:
                self.window = window
                self.parts.clear()

    def is_over(self, now_us: int) -> bool:
        """Whether it is of a period that has passed."""
        return self.period_s > 0 and window_of(now_us, self.period_s) > self.window

    def add(self, worker: int, count: int, limit: int | None) -> bool:
        """Count so many more, or fewer, which is never refused. False when the total would be above the limit."""
        if count > 0 and limit is not None and self.total + count > limit:
            return False
        part = -1 if self.period_s > 0 else worker
        self.parts[part] = max(self.parts.get(part, 0) + count, 0)
        return True
