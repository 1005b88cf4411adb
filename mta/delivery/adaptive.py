"""What a receiver bears, found out by sending to it: how many connections, and how many messages in a time.

Pure arithmetic on one record per path, which all workers share (`mta.delivery.limits`); the clock is given, in seconds,
and may be any that does not go back. Always within what the configuration allows. Two parts:

**Window**: connections at once. It starts small and grows with every message that the receiver takes; a reply by which
it asks for less halves it, and from there it grows slowly (TCP's congestion avoidance; Postfix' concurrency feedback).
How many connections a receiver takes when it refuses one more is not found here but where connections are counted
(`mta.delivery.leases`).

**Pace**: messages per second, once the receiver has refused one for its rate (`mta.delivery.pace`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final

import msgpack

from mta.delivery.pace import Pace, per_time

WINDOW_FIRST: Final = 5.0  # connections to a receiver of which nothing is known
CUT_AGAIN_S: Final = 5.0  # what was under way when the window was halved does not halve it again
FORGET_S: Final = 86_400.0  # after a day without a message or a refusal nothing is known any more


@dataclass(slots=True)
class Window:
    """How many connections at once."""

    size: float = WINDOW_FIRST
    cut_at: float = 0.0  # 0: never

    def taken(self, messages: int, at_most: int) -> None:
        """The receiver took so many messages while up to `at_most` connections were allowed."""
        grown = self.size + (messages / self.size if self.cut_at else messages)
        self.size = min(grown, max(float(at_most), 1.0))

    def cut(self, now: float) -> None:
        """It asked for less."""
        if not self.cut_at or now - self.cut_at >= CUT_AGAIN_S:
            self.size = max(self.size / 2, 1.0)
            self.cut_at = now


@dataclass(slots=True)
class Adaptive:
    """All that was found out about one path."""

    window: Window = field(default_factory=Window)
    pace: Pace = field(default_factory=Pace)
    seen_at: float = 0.0  # when anything was last heard

    def taken(self, messages: int, now: float, begun: float, at_most: int, since: float | None = None) -> None:
        """The receiver took so many messages, the last of them begun at `begun`, the first at `since`; `at_most`:
        connections that the configuration allows."""
        self.seen_at = now
        self.window.taken(messages, at_most)
        self.pace.taken(messages, now, begun, since)

    def refused(self, now: float, begun: float) -> None:
        """It refused a message, begun at `begun`, because there are too many in too short a time."""
        self.seen_at = now
        if not self.pace.slot_at:
            self.window.cut(now)  # nothing was taken yet from which a pace could be reckoned
        self.pace.refused(now, begun)

    def burdened(self, now: float) -> None:
        """It asked for less, in whatever words: fewer at once."""
        self.seen_at = now
        self.window.cut(now)

    def is_forgotten(self, now: float) -> bool:
        """Whether this is too old to mean anything."""
        return now - self.seen_at >= max(FORGET_S, 2 * self.pace.block_s)

    def connections(self, at_most: int, at_least: int = 1) -> int:
        """How many connections there may be, where these bounds are configured."""
        return min(max(int(self.window.size), at_least), at_most)

    def why(self, now: float) -> str:
        """What is held back and since when, for people; empty when nothing is."""
        pace = self.pace
        if pace.is_blocked:
            asked = f"asked again in {max(pace.probe_at - now, 0):.0f} s"
            return f"the receiver has refused more messages for {now - pace.blocked_at:.0f} s; {asked}"
        if pace.held and (pace.leaps or pace.rate > pace.ceiling):
            took = per_time(pace.held, pace.rate)
            return f"{per_time(pace.rate, pace.held)} is tried, as the receiver took {took} for a while"
        if pace.rate:
            refused = per_time(pace.ceiling, pace.rate)
            return f"held to {per_time(pace.rate, pace.ceiling)} since the receiver refused {refused}"
        return ""

    def encode(self, now: float) -> bytes:
        """For the shared table and for the disk: times become ages, so that another clock can take over."""
        packed: bytes = msgpack.packb([_ages(self.window, now), _ages(self.pace, now), now - self.seen_at])
        return packed

    @classmethod
    def decode(cls, data: bytes, now: float) -> Adaptive:
        """What `encode` made. Raises ValueError for anything else, which is as good as knowing nothing."""
        try:
            window, pace, age = msgpack.unpackb(data)
            made = cls(Window(**_times(window, now)), Pace(**_times(pace, now)), now - age)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of what a receiver bears: {error}") from None
        return made


def _ages(part: Window | Pace, now: float) -> dict[str, float | bool | None]:
    """The fields of `part`; of times how long ago they are, None for those that are not set."""
    values = {one.name: getattr(part, one.name) for one in fields(part)}
    return {name: (now - value if value else None) if name.endswith("_at") else value
            for name, value in values.items()}


def _times(ages: dict[str, Any], now: float) -> dict[str, Any]:
    return {name: (now - value if value is not None else 0.0) if name.endswith("_at") else value
            for name, value in ages.items()}
