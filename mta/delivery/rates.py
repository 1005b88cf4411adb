"""The arithmetic of rates that all workers share: when the next message may go. Pure; the clock is given.

A *bucket* is one rate: so many in every period, over everything that names it. It is kept to in the form of GCRA (ITU-T
I.371): two times instead of a count, so that it is exact below a millisecond and costs the same at any rate.

* `used` is when the bucket is at rest again, if nothing more is taken. What is taken is taken at the moment of its use.
  That alone holds the limit: whoever is late, was killed or has wrong ideas cannot make it exceeded.
* `line` is the end of the line of those who wait. Who cannot go at once gets a *place*: a time at which to ask
  again, a spacing after the place before. So nobody polls, and at each moment only the one whose turn it is asks. A
  place that is not used (its worker was killed, or has no more mail) is lost once. Who comes new goes behind the line.

With several buckets all have to let one through at the same moment, and then all are charged. A place is kept in the
one that holds up longest. Who comes back when it is due need not stand in line in the others; they are charged for
it, and their lines grow by it. So a path of one message a minute does not hold up the source that it shares with fast
ones, and a busy source does not send it back to the end each time.

**In any period no more than the rate.** Messages are spaced by a little more than the period divided by the rate: `N`
spacings are the period and `MARGIN` of it. The margin is for a worker that comes a little late (its message does not
move those behind it), for messages that a worker keeps in hand for some milliseconds (`keep`), and for the way to the
receiver. It costs 3 percent of a rate per second, 1.6 of one per minute, nothing of one per day. By the same
tolerance some 10 ms of a high rate may go at once after a rest. A burst that the operator asks for is on top.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MARGIN: Final = 0.03  # of the period
MARGIN_CAP_S: Final = 1.0
LATE: Final = 0.4  # of the margin; what this and KEEP leave is for the way to the receiver
LATE_S: Final = 0.01  # late is at most this, or a quarter of the spacing where that is more
KEEP: Final = 0.3
KEEP_CAP_S: Final = 0.1
FRESH: Final = 0.5
BATCH: Final = 8

_RECORD: Final = struct.Struct("<dddd")


@dataclass(frozen=True, slots=True)
class Bucket:
    """A rate with a name: all that take from the same name are held to it together.

    `count` in every `period_s` seconds; both may be fractions, neither is 0. `burst`: how many may go at once after a
    rest. Make it once per rate rather than for each message.
    """

    name: str
    count: float
    period_s: float
    burst: int = 1
    spacing: float = field(init=False)  # seconds from one to the next
    ahead: float = field(init=False)  # seconds by which one may come before its time: what burst and lateness allow
    most: int = field(init=False)  # how many may go at once
    keep: float = field(init=False)  # seconds that a worker may keep what it took
    fresh: float = field(init=False)  # seconds after which what was taken is too late to be used
    batch: int = field(init=False)  # how many a worker may take to keep

    def __post_init__(self) -> None:
        if not (self.count > 0 and self.period_s > 0 and self.burst > 0):
            raise ValueError(f"not a rate: {self.count} in {self.period_s} s, burst {self.burst}")
        count, period = max(self.count, 1.0), self.period_s / min(self.count, 1.0)
        margin = min(period * MARGIN, MARGIN_CAP_S)
        spacing = (period + margin) / count
        late = min(margin * LATE, max(LATE_S, spacing / 4))
        ahead = late + (self.burst - 1) * spacing
        for name, value in (("spacing", spacing), ("ahead", ahead), ("most", int(ahead / spacing) + 1),
                            ("keep", min(margin * KEEP, KEEP_CAP_S)), ("fresh", margin * FRESH),
                            ("batch", min(int(late / spacing) + 1, BATCH))):
            object.__setattr__(self, name, value)


class Record(NamedTuple):
    """A level as it is in the table."""

    used: float
    line: float
    spacing: float  # by which these were reckoned
    ahead: float

    @classmethod
    def decode(cls, record: bytes) -> Record:
        """From its bytes."""
        return cls(*_RECORD.unpack(record))

    def encode(self) -> bytes:
        """Its bytes."""
        return _RECORD.pack(*self)


@dataclass(slots=True)
class Level:
    """The state of one bucket in the table of limits. All times are monotonic seconds."""

    used: float = -math.inf
    line: float = -math.inf

    @classmethod
    def decode(cls, record: bytes, bucket: Bucket, now: float) -> Level:
        """From the form in the table. If the rate is another one now, as many wait as before, at the new rate; the
        first of them, or who comes, waits for one spacing at most. What was a burst is none at the new rate."""
        used, line, spacing, ahead = _RECORD.unpack(record)
        if spacing != bucket.spacing:
            if used > now:
                taken = (used - now) / spacing
                used = now + bucket.ahead + max(min(taken, 1.0), taken - ahead / spacing) * bucket.spacing
            if line > now:
                line = now + (line - now) / spacing * bucket.spacing
        return cls(used, line)

    def encode(self, bucket: Bucket) -> bytes:
        """The form in the table; `bucket`: by which the times were reckoned."""
        return _RECORD.pack(self.used, self.line, bucket.spacing, bucket.ahead)


def is_at_rest(record: bytes, now: float) -> bool:
    """Whether a record says no more than none would."""
    used, line, _, _ = _RECORD.unpack(record)
    return bool(used <= now and line <= now)


def take(buckets: Sequence[Bucket], levels: Sequence[Level], count: int, places: Collection[str], now: float,
         ) -> tuple[float, Bucket | None]:
    """Take `count` of every bucket if all let them through now, else a place. Hot path (`bench/limits.py`).

    `places`: names of the buckets in which we hold a place that is due. Returns `now` and None when it is done; else
    the time at which to ask again, and the bucket in which we have a place until then. Changes `levels`.

    More than may ever go at once go when as many as may go at once could.
    """
    at = now
    holding: tuple[Bucket, Level] | None = None
    for bucket, level in zip(buckets, levels, strict=True):
        opens = level.used - bucket.ahead
        if count > 1:
            opens += (min(count, bucket.most) - 1) * bucket.spacing
        if not places and level.line > opens:
            opens = level.line
        if opens > at:
            at, holding = opens, (bucket, level)
    if holding is None:
        for bucket, level in zip(buckets, levels, strict=True):
            took = count * bucket.spacing
            level.used = max(level.used, now) + took
            if level.line > now and bucket.name not in places:
                level.line += took
        return now, None
    bucket, level = holding
    if bucket.name not in places:
        # One that comes from a place elsewhere does not go behind the line, but makes it longer.
        level.line = max(level.line, at) + count * bucket.spacing
    return at, bucket
