"""The arithmetic of rates that all workers share: when the next message may go. Pure; the clock is given.

A *bucket* is one rate: so many in every period, over everything that names it. It is kept to in the form of GCRA (ITU-T
I.371): times instead of a count, so that it is exact below a millisecond and costs the same at any rate.

* `used` is when the bucket is at rest again, if nothing more is taken. What is taken is taken at the moment of its use.
  That alone holds the limit: whoever is late, was killed or has wrong ideas cannot make it exceeded.
* `line` is the end of the line of those who wait. Who cannot go at once gets a *place*: a time at which to ask
  again, a spacing after the place before. So nobody polls, and at each moment only the one whose turn it is asks. A
  place that is not used (its worker was killed, or has no more mail) is lost once. Who comes new goes behind the line.

With several buckets all have to let one through at the same moment, and then all are charged. A place is kept in the
one that holds up longest. Who comes back when it is due need not stand in line in the others; they are charged for
it, and their lines grow by it. So a path of one message a minute does not hold up the source that it shares with fast
ones, and a busy source does not send it back to the end each time.

**Urgent ones go first**, over all workers. They have a line of their own (`urgent`), and may ask a moment sooner
(`Bucket.sooner`, part of what lateness is allowed): so the next slot is theirs, whoever has waited for it, and nobody
has to be told. What they take *pushes* the other line back: places in it are times on a clock that stands still
meanwhile (`Level.pushed`). Whose place comes due and was pushed asks again as much later, behind those who were before
him, as ever; so order is kept, each slot is asked for by one of either line and a few, and one place is asked for some
log(places before it) times. While others wait the places of urgent ones are a little further apart than slots
(`OVERTAKING`): a tenth of the slots come before the next urgent one is due, and are the others', however many urgent
ones there are. Who has a place and comes upon urgent mail takes an urgent place besides, and keeps the other.

Dropped: to exchange places with a less urgent one of the same worker (a worker without bulk mail has nothing to give,
and who was overtaken would go to the end); to let urgent ones in at the head of the one line (all those that they push
would ask for the same slot, and the more the longer it goes on).

**In any period no more than the rate.** Messages are spaced by a little more than the period divided by the rate: `N`
spacings are the period and `MARGIN` of it. The margin is for a worker that comes a little late (its message does not
move those behind it) or, with urgent mail, a little sooner, for several messages that a worker takes together, the
first of which waits for the last, for the milliseconds that it keeps them (`keep`), and for the way to the receiver.
It costs 3 percent of a rate per second, 1.6 of one per minute, nothing of one per day. By the same tolerance some 15 ms
of a high rate may go at once after a rest. A burst that the operator asks for is on top.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MARGIN: Final = 0.03  # of the period
MARGIN_CAP_S: Final = 1.0
LATE: Final = 0.3  # of the margin; what this, SOONER, TOGETHER and KEEP leave is for the way to the receiver
LATE_S: Final = 0.01  # late is at most this, or a quarter of the spacing where that is more
SOONER: Final = 0.1
TOGETHER: Final = 0.2  # from the first to the last that are taken together; besides LATE, or who waits for them is late
KEEP: Final = 0.1
KEEP_CAP_S: Final = 0.1
FRESH: Final = 0.35  # what had to wait for a disk or connection is still used then; out of the way to the receiver
BATCH: Final = 8
FORGIVEN_S: Final = 15.0  # a place for which one comes later than this, or than the next one's time, is lost; so long
# may it take to open a connection when the place is due
OVERTAKING: Final = 10 / 9  # spacings from one urgent one to the next while others wait; as `turns.ageing` by default

_RECORD: Final = struct.Struct("<dddddd")
_DUE: Final = -math.inf  # a turn that has come


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
    ahead: float = field(init=False)  # seconds by which one may come before its time: what burst, batch, lateness allow
    sooner: float = field(init=False)  # seconds by which an urgent one may come before that
    most: int = field(init=False)  # how many may go at once
    keep: float = field(init=False)  # seconds after its time that a worker may keep what it took
    fresh: float = field(init=False)  # seconds after which what was taken is too late to be used
    batch: int = field(init=False)  # how many a worker may take to keep

    def __post_init__(self) -> None:
        if not (self.count > 0 and self.period_s > 0 and self.burst > 0):
            raise ValueError(f"not a rate: {self.count} in {self.period_s} s, burst {self.burst}")
        count, period = max(self.count, 1.0), self.period_s / min(self.count, 1.0)
        margin = min(period * MARGIN, MARGIN_CAP_S)
        spacing = (period + margin) / count
        late = min(margin * LATE, max(LATE_S, spacing / 4))
        batch = min(int(margin * TOGETHER / spacing) + 1, BATCH)
        ahead = late + (batch - 1 + self.burst - 1) * spacing
        for name, value in (("spacing", spacing), ("ahead", ahead), ("most", int(ahead / spacing) + 1),
                            ("sooner", min(margin * SOONER, spacing / 4)),
                            ("keep", min(margin * KEEP, KEEP_CAP_S)), ("fresh", margin * FRESH),
                            ("batch", batch)):
            object.__setattr__(self, name, value)


class Record(NamedTuple):
    """A level as it is in the table."""

    used: float
    line: float
    spacing: float  # by which these were reckoned
    ahead: float
    urgent: float = 0.0
    pushed: float = 0.0

    @classmethod
    def decode(cls, record: bytes) -> Record:
        """From its bytes."""
        return cls(*_unpacked(record))

    def encode(self) -> bytes:
        """Its bytes."""
        return _RECORD.pack(*self)


def _unpacked(record: bytes) -> tuple[float, ...]:
    """The numbers of a record. Hot path. A table may have been written before there was a line of urgent ones."""
    return _RECORD.unpack(record if len(record) == _RECORD.size else record.ljust(_RECORD.size, b"\0"))


@dataclass(slots=True)
class Level:
    """The state of one bucket in the table of limits. All times are monotonic seconds."""

    used: float = -math.inf
    line: float = -math.inf
    urgent: float = -math.inf  # the end of the line of urgent ones
    pushed: float = 0.0  # by how much urgent ones have pushed the other line back, in all

    @classmethod
    def decode(cls, record: bytes, bucket: Bucket, now: float) -> Level:
        """From the form in the table. If the rate is another one now, as many wait as before, at the new rate; the
        first of them, or who comes, waits for one spacing at most. What was a burst is none at the new rate."""
        used, line, spacing, ahead, urgent, pushed = _unpacked(record)
        if spacing != bucket.spacing:
            if used > now:
                taken = (used - now) / spacing
                used = now + bucket.ahead + max(min(taken, 1.0), taken - ahead / spacing) * bucket.spacing
            if line > now:
                line = now + (line - now) / spacing * bucket.spacing
            if urgent > now:
                urgent = now + (urgent - now) / spacing * bucket.spacing
        return cls(used, line, urgent, pushed)

    def encode(self, bucket: Bucket) -> bytes:
        """The form in the table; `bucket`: by which the times were reckoned."""
        return _RECORD.pack(self.used, self.line, bucket.spacing, bucket.ahead, self.urgent, self.pushed)


def is_at_rest(record: bytes, now: float) -> bool:
    """Whether a record says no more than none would."""
    used, line, _, _, urgent, _ = _unpacked(record)
    return used <= now and line <= now and urgent <= now


class Place:
    """Where one who waits for a set of buckets stands in line. `take` gives it."""

    __slots__ = ("at", "count", "end", "turns", "urgent")

    def __init__(self, urgent: bool = False) -> None:
        self.urgent = urgent
        self.turns: dict[str, float] = {}  # by bucket: on the clock of its line, which stands still while it is pushed
        self.at = 0.0  # when to ask again
        self.count = 1  # for how many it is
        self.end = 0.0  # of the line, when we had joined it

    def leave(self, bucket: Bucket, level: Level) -> None:
        """Not wanted any more. Others can have it if nobody has come after, or was late before."""
        if bucket.name in self.turns:
            if self.urgent:
                if level.urgent == self.end:
                    level.urgent = self.at
            elif level.line == self.end:
                level.line -= self.count * bucket.spacing

    def move(self, at: float) -> None:
        """As the rate is another one, ask at this time."""
        for name in self.turns:
            self.turns[name] += at - self.at
        self.at = at


def take(buckets: Sequence[Bucket], levels: Sequence[Level], count: int, place: Place, now: float) -> Bucket | None:
    """Take `count` of every bucket if all let them through now, else a place. Hot path (`bench/limits.py`).

    `place`: empty, or one that is due. Returns None when it is done, and the place is used up; else the bucket in the
    line of which it is now. Changes `levels`.

    More than may ever go at once go when as many as may go at once could.
    """
    at = now
    holding: tuple[Bucket, Level] | None = None
    turns, urgent = place.turns, place.urgent
    for bucket, level in zip(buckets, levels, strict=True):
        opens = level.used - bucket.ahead
        if count > 1:
            opens += (min(count, bucket.most) - 1) * bucket.spacing
        if urgent:
            opens -= bucket.sooner
            if level.urgent > opens and bucket.name not in turns:
                opens = level.urgent
        elif not turns:
            if level.line > opens:
                opens = level.line
        elif bucket.name in turns and turns[bucket.name] + level.pushed > opens:
            opens = turns[bucket.name] + level.pushed
        if opens > at:
            at, holding = opens, (bucket, level)
    if holding is None:
        for bucket, level in zip(buckets, levels, strict=True):
            took = count * bucket.spacing
            turn = turns.get(bucket.name, _DUE)
            if turn != _DUE and not urgent:
                # Late: the slots of those behind come later by as much, and who comes new still goes behind them.
                level.line += max(min(now - level.used, now - turn - level.pushed), 0.0)
            level.used = max(level.used, now) + took
            if level.line > now:
                if urgent:
                    level.line += took
                    level.pushed += took
                    if bucket.name not in turns:
                        level.urgent = _after(level, now, took, bucket)
                elif bucket.name not in turns:
                    level.line += took
        if turns:
            turns.clear()
        return None
    bucket, level = holding
    place.at, place.count = at, count
    if urgent:
        if bucket.name not in turns:
            took = count * bucket.spacing
            level.urgent = _after(level, at, took, bucket) if level.line > now else max(level.urgent, at) + took
        place.end = level.urgent
    else:
        if bucket.name not in turns:
            # One that comes from a place elsewhere does not go behind the line, but makes it longer.
            level.line = max(level.line, at) + count * bucket.spacing
        place.end = level.line
    for name in turns:
        turns[name] = _DUE  # it has waited for these
    turns[bucket.name] = at - level.pushed
    return bucket


def _after(level: Level, at: float, took: float, bucket: Bucket) -> float:
    """When the next urgent one is due after one that goes at `at`, while others wait. Slots and these times do not fall
    together: one that had to wait for its slot does not put off the next one for that."""
    return max(level.urgent, at - bucket.spacing) + took * OVERTAKING
