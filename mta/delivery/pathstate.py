"""What all workers know of a path, or of whatever else may stand still: suspensions, lower limits, what was learnt.

A pure record. A *hold* keeps something back until a time: all of it (`what="all"`: a suspension), or what is above a
value (`rate`: messages per second; `connections`). Several may be in force: of suspensions the one that ends last
counts, of the others the lowest. Each has a reason and an author: `failures`, `rule NAME`, `operator`.

Times are wall clock, microseconds since the epoch, as they outlive the process. The record keeps by how much wall and
monotonic clock differed when it was written: if the wall clock was set since then, all times are moved along with it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final, Literal, cast, get_args

import msgpack

from mta.queue.orders import RULE

SET_US: Final = 1_000_000  # a smaller difference is drift of the clocks
What = Literal["all", "rate", "connections"]
KINDS: Final[frozenset[str]] = frozenset(get_args(What))
HOLDS_KEPT: Final = 16  # of one path; those that end first fall out
SITE: Final = "site:"  # before the name of a path: of its site as such, which fails (`mta.delivery.breaker`)


@dataclass(frozen=True, slots=True)
class Hold:
    """One reason for which less may be done than is configured."""

    what: What
    until_us: int
    by: str  # `failures`, `rule NAME`, `operator`
    reason: str  # for people: the reply, what the operator said
    since_us: int
    value: float = 0.0  # messages per second, or connections

    @property
    def by_rule(self) -> str:
        """The rule on replies that decided it; empty when it was something else."""
        return self.by.removeprefix(RULE) if self.by.startswith(RULE) else ""


@dataclass(frozen=True, slots=True)
class PathState:
    """Shared state. Do not change it: `replace` it, in a change that is given to `Limits.update`."""

    holds: tuple[Hold, ...] = ()
    connections: int = 0  # what adaptation allows now; 0: what is configured
    rate: float = 0.0  # messages per second, likewise
    adaptive: bytes = b""  # `mta.delivery.adaptive.Adaptive`, encoded at `adaptive_us`
    adaptive_us: int = 0
    version: int = 0  # one more with each change; 0: nobody has changed anything

    def suspension(self, now_us: int) -> Hold | None:
        """The suspension that is in force at `now_us` and ends last."""
        found = None
        for hold in self.holds:
            if hold.what == "all" and hold.until_us > now_us and (found is None or hold.until_us > found.until_us):
                found = hold
        return found

    def lowest(self, what: Literal["rate", "connections"], now_us: int) -> Hold | None:
        """The hold with the lowest value that is in force at `now_us`."""
        found = None
        for hold in self.holds:
            if hold.what == what and hold.until_us > now_us and (found is None or hold.value < found.value):
                found = hold
        return found

    def with_hold(self, hold: Hold) -> PathState:
        """One more, in the place of an earlier one of the same kind by the same author. What is over falls out."""
        others = [one for one in self.holds
                  if (one.what, one.by) != (hold.what, hold.by) and one.until_us > hold.since_us]
        kept = sorted([*others, hold], key=lambda one: one.until_us)[-HOLDS_KEPT:]
        return replace(self, holds=tuple(kept))

    def without(self, by: str, what: What | None = None) -> PathState:
        """Without the holds of an author, of one kind or all."""
        left = tuple(one for one in self.holds if one.by != by or what not in (None, one.what))
        return self if left == self.holds else replace(self, holds=left)

    def without_rules(self, whats: Collection[str]) -> PathState:
        """Without the holds of these kinds that rules on replies decided."""
        left = tuple(one for one in self.holds if one.what not in whats or not one.by_rule)
        return self if left == self.holds else replace(self, holds=left)

    def is_bare(self, now_us: int) -> bool:
        """Whether it says no more than none would."""
        return (not self.connections and not self.rate and not self.adaptive
                and all(hold.until_us <= now_us for hold in self.holds))

    def differs(self, other: PathState) -> bool:
        """Whether another worker has to act on the difference. It need not know how the same limits are reckoned."""
        return (self.holds, self.connections, self.rate) != (other.holds, other.connections, other.rate)

    def encode(self, clocks_us: int) -> bytes:
        """For the table and the disk; `clocks_us` is wall clock less monotonic clock."""
        holds = [[hold.what, hold.until_us, hold.by, hold.reason, hold.since_us, hold.value] for hold in self.holds]
        packed: bytes = msgpack.packb(
            [self.version, clocks_us, holds, self.connections, self.rate, self.adaptive, self.adaptive_us])
        return packed

    @classmethod
    def decode(cls, record: bytes, clocks_us: int | None = None) -> PathState:
        """From `encode`; moved along with the wall clock if that was set since, unless `clocks_us` is None.

        Raises ValueError for what it cannot be.
        """
        try:
            version, before_us, rows, connections, rate, adaptive, adaptive_us = msgpack.unpackb(record)
            step_us = 0 if clocks_us is None else clocks_us - before_us
            if abs(step_us) < SET_US:
                step_us = 0
            holds = tuple(_hold(row, step_us) for row in rows)
            return cls(holds, int(connections), float(rate), bytes(adaptive),
                       adaptive_us + step_us if adaptive_us else 0, int(version))
        except (ValueError, TypeError) as error:
            raise ValueError(f"no state of a path: {error}") from None


def _hold(row: list[object], step_us: int) -> Hold:
    match row:
        case [str(what), int(until_us), str(by), str(reason), int(since_us), float() | int() as value] if what in KINDS:
            return Hold(cast(What, what), until_us + step_us, by, reason, since_us + step_us, float(value))
    raise ValueError("a hold is [what, until, by, reason, since, value]")
