"""What a receiver bears, found out by sending to it: how many connections, and how many messages in a time.

Pure arithmetic on one record per path, which all workers share (`mta.delivery.limits`); the clock is given, in seconds,
and may be any that does not go back. Always within what the configuration allows. Two parts:

**Window**: connections at once. It starts small and grows with every message that the receiver takes; a reply by which
it asks for less halves it, and from there it grows slowly (TCP's congestion avoidance; Postfix' concurrency feedback).
How many connections a receiver takes when it refuses one more is not found here but where connections are counted
(`mta.delivery.leases`).

**Pace**: messages per second. Nothing holds them back until the receiver refuses one for its rate. Then nobody sends
but for a probe, at intervals that grow with the time that has passed, until one is taken. The messages that were taken
divided by the time that they and the pause took are what the receiver takes in the long run, whatever its window is:
"200 per minute" sent in a second and refused for the rest of the minute are 200 per minute. That rate is held to, a
little less at first. As long as nothing is refused and all of it is used it grows in *periods*: quickly up to where
it was refused; there it tries a little more, after ever longer periods as it finds the same rate again and again; and
once it is beyond, in short periods and ever larger steps, so that a receiver that has opened is found out soon (the
shape is that of CUBIC, RFC 9438).

    open ──refused──▶ blocked ──probe taken──▶ paced ──refused──▶ blocked ...
                                               paced ──nothing is held back for long──▶ open
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final

import msgpack

WINDOW_FIRST: Final = 5.0  # connections to a receiver of which nothing is known
CUT_AGAIN_S: Final = 5.0  # what was under way when the window was halved does not halve it again
FORGET_S: Final = 86_400.0  # after a day without a message or a refusal nothing is known any more

PROBE_FIRST_S: Final = 1.0
PROBE_SHARE: Final = 0.2  # of the time that a receiver has refused, until it is asked again
PROBE_CAP_S: Final = 600.0
SLOT_S: Final = 60.0  # an estimate is made from what was taken in one or two such times; they are longer after a long
# refusal, and where few messages are taken
SLOT_MESSAGES: Final = 20
BELOW: Final = 0.95  # of what was found, to begin with
BEYOND: Final = 1.05  # times what was refused: then it is another limit, or none
PERIOD_S: Final = 30.0  # the shortest time after which the rate grows
TRY_MESSAGES: Final = 50  # taken at a rate near the one that was refused, before more is tried
TRY_LONGEST_S: Final = 450.0  # how long that takes at most, for rates that are very low
DOUBLINGS: Final = 2  # of those, when the same rate is found again and again
USED: Final = 0.7  # of what the rate allows has to be sent, else it says nothing
SAME: Final = 0.15  # two rates that differ by no more are the same
STEP_FIRST: Final = 0.02  # by how much more is tried; at least two messages a minute, or nobody would notice
STEP_FACTOR: Final = 1.6  # how that grows beyond
STEP_CAP: Final = 0.5
OPEN_AT: Final = 16.0  # times what was once refused: then it is not held back any more


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
class Pace:
    """How many messages in a time. Rates are messages per second; 0: not known."""

    rate: float = 0.0  # what is held to
    ceiling: float = 0.0  # at what rate it refused
    blocked_at: float = 0.0  # since when it refuses; 0: it does not
    probe_at: float = 0.0  # when it may be asked again
    asked_at: float = 0.0  # when it was; 0: nobody waits for the answer
    refused_at: float = 0.0  # when it last refused
    slot_at: float = 0.0  # beginning of the slot of time that is counted; 0: nothing was taken
    slot: int = 0  # messages taken in it
    before_at: float = 0.0  # the same of the slot before; 0: there is none
    before: int = 0
    period_at: float = 0.0  # beginning of the period after which the rate may grow
    period: int = 0  # messages taken in it
    step: float = STEP_FIRST
    block_s: float = 0.0  # how long it refused
    found: int = 0  # how often in a row the same rate was found

    @property
    def is_blocked(self) -> bool:
        """Whether only probes may be sent."""
        return self.blocked_at > 0

    def take_probe(self, now: float) -> bool:
        """Whether a message may be sent as a probe now. Whoever is told so has to send it: nobody else is."""
        if not self.is_blocked or now < self.probe_at:
            return False
        self.asked_at = now
        self.probe_at = now + self._wait(now)
        return True

    def taken(self, messages: int, now: float, begun: float, since: float | None = None) -> None:
        """The receiver took so many messages, the last of which was begun at `begun` and the first at `since`."""
        if not self.slot_at:
            self.slot_at = begun if since is None else since
        if not self.is_blocked:
            enough_s = max(SLOT_S, self.block_s, SLOT_MESSAGES / self.rate if self.rate else 0.0)
            if now - self.slot_at >= enough_s:
                self.before_at, self.before = self.slot_at, self.slot
                self.slot_at, self.slot = now, 0
            self.slot += messages
            if self.rate:
                self.period += messages
                self._grow(now)
        else:
            self.slot += messages
            if self.asked_at and begun >= self.asked_at:
                self._resume(now)

    def refused(self, now: float, begun: float) -> None:
        """The receiver refused a message, begun at `begun`, for its rate."""
        if self.is_blocked:
            if self.asked_at and begun >= self.asked_at:  # the probe
                self.asked_at = 0.0
                self.refused_at = now
                self.probe_at = now + self._wait(now)
            return
        self.blocked_at = self.refused_at = now
        self.asked_at = 0.0
        self.probe_at = now + self._wait(now)

    def _wait(self, now: float) -> float:
        least = max(PROBE_FIRST_S, 1.0 / self.rate if self.rate else 0.0)
        return min(max(least, PROBE_SHARE * (now - self.blocked_at)), PROBE_CAP_S)

    def _resume(self, now: float) -> None:
        """A probe was taken: now it is known how long the receiver needed for what it took."""
        opened = (self.refused_at + now) / 2  # somewhen in between
        # The probe itself belongs to what comes.
        rate = max(self.before + self.slot - 1, 1) / max(opened - (self.before_at or self.slot_at), PROBE_FIRST_S / 2)
        if self.rate:
            rate = min(rate, self.rate)
        same = self.ceiling > 0 and abs(rate - self.ceiling) <= SAME * self.ceiling
        self.found = self.found + 1 if same else 0
        self.ceiling = rate
        self.rate = BELOW * rate
        self.step = STEP_FIRST
        self.block_s = max(now - self.blocked_at, self.block_s / 2)
        self.blocked_at = self.asked_at = self.probe_at = 0.0
        self.slot_at, self.slot = now, 1
        self.before_at, self.before = 0.0, 0
        self.period_at, self.period = now, 0

    def _grow(self, now: float) -> None:
        """The end of a period: more, if all that was allowed has been taken."""
        lasted = now - self.period_at
        at_ceiling = BELOW * self.ceiling <= self.rate <= BEYOND * self.ceiling
        wanted = PERIOD_S
        if at_ceiling:
            wanted = max(wanted, min(TRY_MESSAGES / self.rate, TRY_LONGEST_S)) * 2 ** min(self.found, DOUBLINGS)
        if lasted < max(wanted, self.block_s):
            return
        if self.period >= USED * self.rate * lasted:
            if self.rate < BELOW * self.ceiling:
                self.rate += (self.ceiling - self.rate) / 2
            else:
                if not at_ceiling:
                    self.step *= STEP_FACTOR
                self.rate *= 1 + min(max(self.step, 2 / (self.rate * SLOT_S)), STEP_CAP)
                if self.rate > OPEN_AT * self.ceiling:
                    self.rate = self.ceiling = 0.0
                    self.found = 0
        self.period_at, self.period = now, 0


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
        if pace.rate:
            return f"held to {per_time(pace.rate)} since the receiver refused {per_time(pace.ceiling)}"
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


def per_time(rate: float) -> str:
    """A rate (per second) in the unit in which it is easily read."""
    for seconds, unit in ((1, "s"), (60, "min"), (3600, "h")):
        if rate * seconds >= 1 or unit == "h":
            return f"{rate * seconds:.3g}/{unit}"
    raise AssertionError
