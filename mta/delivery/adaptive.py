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
little less at first; where little was seen it is raised once or twice. Then, after every sixty messages, or a hundred
and twenty if that was in vain, a rate a little higher is *tried*: one refusal in so many says that nothing has changed,
and what was borne before holds again. If nothing is refused for a while it is doubled, again and again, in short
periods: so a receiver that has opened is found out soon. After a growth that was too much the next one is smaller.
A receiver that refused for long counts over a long time: periods are never shorter than it refused.

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
PERIOD_OVER_S: Final = 0.5
PERIODS_S: Final = (60.0, 3600.0)  # by which receivers count: when one is over it is asked at once
SLOT_S: Final = 60.0  # an estimate is made from what was taken in one or two such times; they are longer after a long
# refusal, and where few messages are taken
SLOT_MESSAGES: Final = 20
LONG_S: Final = 300.0  # who refuses for so long counts over a long time; nothing is tried for less than that
BELOW: Final = 0.95  # of what was found, to begin with
UNSEEN: Final = 0.2  # share of the time in which it may have opened unseen: what was found may be too little
DOUBT: Final = 0.02  # less is none
DOUBT_CAP: Final = 0.5
NEAR: Final = 0.98  # of it: no more is wanted without a try
BEYOND: Final = 1.05  # times what was refused: then it is another limit, or none
PERIOD_S: Final = 15.0  # the shortest time after which the rate grows
NEARER_MESSAGES: Final = 15  # taken below what was found, before it grows
TRY_MESSAGES: Final = 60  # taken at what was found, before more is tried: one in so many is refused
TRY_LONGEST_S: Final = 900.0  # how long that takes at most, for rates that are very low
DOUBLINGS: Final = 1  # of those, when the same rate is found again and again
BEYOND_MESSAGES: Final = 6  # taken beyond, before still more is tried
BEYOND_S: Final = 75.0  # how long a first try lasts: a receiver that counts by the minute has noticed by then
TRIED: Final = 1.5  # times what was found: no first try any more
USED: Final = 0.7  # of what the rate allows has to be sent, else it says nothing
SAME: Final = 0.15  # two rates that differ by no more are the same
STEP: Final = 0.06  # by how much more is tried; at least two messages a minute, or nobody would notice
GROWTH: Final = 2.0  # times, beyond
GROWN: Final = 1.2  # times what was borne: it was grown too far, and next time by less
OPEN_AT: Final = 16.0  # times what was once refused: when not even that is used, nothing is held back any more


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
    doubt: float = 0.0  # by which share that may be too little, as little was seen
    held: float = 0.0  # a rate that was borne for a while; 0: not known yet
    growth: float = GROWTH  # times, when it grows beyond what was found
    block_s: float = 0.0  # how long it refused
    span_s: float = 0.0  # over how long it seems to count, when it refused for very long
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
            enough_s = max(SLOT_S, self.block_s, self.span_s, SLOT_MESSAGES / self.rate if self.rate else 0.0)
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
            # The probe, or a connection that was to carry it.
            if (self.asked_at and begun >= self.asked_at) or begun >= self.probe_at:
                self.asked_at = 0.0
                self.refused_at = now
                self.probe_at = now + self._wait(now)
            return
        self.blocked_at = self.refused_at = now
        self.asked_at = 0.0
        self.probe_at = now + self._wait(now)

    def _wait(self, now: float) -> float:
        least = max(PROBE_FIRST_S, 1.0 / self.rate if self.rate else 0.0)
        wait_s = min(max(least, PROBE_SHARE * (now - self.blocked_at)), PROBE_CAP_S)
        since = self.before_at or self.slot_at
        for period_s in PERIODS_S:
            left_s = since + period_s + PERIOD_OVER_S - now if since else 0.0
            if 0.0 < left_s < wait_s:
                return left_s
        return wait_s

    def _resume(self, now: float) -> None:
        """A probe was taken: now it is known how long the receiver needed for what it took."""
        counted = self.before + self.slot - 1  # the probe itself belongs to what comes
        if not counted and not self.rate:  # nothing was taken before: that says nothing about a rate
            self.blocked_at = self.asked_at = self.probe_at = 0.0
            return
        opened = (self.refused_at + now) / 2  # somewhen in between
        lasted = max(opened - (self.before_at or self.slot_at), PROBE_FIRST_S / 2)
        messages = max(counted, 1)
        unseen = (now - self.refused_at) / 2 / lasted
        rate = messages / lasted
        if self.rate:
            rate = min(rate, self.rate)
        was_try = 0 < self.held < self.rate
        same = self.ceiling > 0 and abs(rate - self.ceiling) <= SAME * self.ceiling
        self.found = self.found + 1 if same or was_try else 0
        self.ceiling = rate
        self.doubt = min(max(1 / messages**2, unseen if unseen > UNSEEN else 0.0), DOUBT_CAP)
        self.growth = 1 + (self.growth - 1) / 2 if was_try and self.rate > GROWN * self.held else GROWTH
        self.rate = BELOW * rate
        if was_try and self.held > self.rate:
            self.rate = self.held
            self.ceiling = max(self.held / NEAR, rate)
            self.doubt = 0.0
        self.held = 0.0
        self.block_s = max(now - self.blocked_at, self.block_s / 2)
        if now - self.blocked_at >= LONG_S:
            self.span_s = max(self.span_s, now - (self.before_at or self.slot_at))
        self.blocked_at = self.asked_at = self.probe_at = 0.0
        self.slot_at, self.slot = now, 1
        self.before_at, self.before = 0.0, 0
        self.period_at, self.period = now, 0

    def _grow(self, now: float) -> None:
        """The end of a period: more, if all that was allowed has been taken."""
        lasted = now - self.period_at
        wanted = NEARER_MESSAGES
        is_near = NEAR * self.ceiling <= self.rate
        is_beyond = self.rate > BEYOND * self.ceiling
        least_s = PERIOD_S
        if is_beyond:
            wanted = BEYOND_MESSAGES
            if self.rate < TRIED * self.ceiling:
                least_s = BEYOND_S
        elif is_near and self.doubt < DOUBT:
            wanted = TRY_MESSAGES * 2 ** min(self.found, DOUBLINGS)
            least_s = SLOT_S
        if lasted < max(least_s, self.block_s, self.span_s, min(wanted / self.rate, TRY_LONGEST_S)):
            return
        if self.period >= USED * self.rate * lasted:
            if not is_beyond or lasted >= SLOT_S:
                self.held = self.rate
            if self.doubt >= DOUBT and not is_beyond:
                self.ceiling *= 1 + self.doubt
                self.doubt /= 4
                self.rate = NEAR * self.ceiling
            elif not is_near:
                self.rate = NEAR * self.ceiling
            elif is_beyond:
                self.rate *= self.growth
                self.span_s /= 2
            else:
                self.rate *= 1 + max(STEP, 2 / (self.rate * SLOT_S))
        elif self.rate > OPEN_AT * self.ceiling:
            self.rate = self.ceiling = self.held = 0.0
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
