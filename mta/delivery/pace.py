"""How many messages in a time a receiver bears: found out from what it takes and refuses. Pure arithmetic.

Nothing holds messages back until the receiver refuses one for its rate. Then nobody sends but for a probe, at intervals
that grow with the time that has passed, until one is taken. The messages that were taken divided by the time that they
and the pause took are what the receiver takes in the long run, whatever its window is: "200 per minute" sent in a
second and refused for the rest of the minute are 200 per minute. That rate is held to, a little less at first.

    open ──refused──▶ blocked ──probe taken: reckoned──▶ held ──refused──▶ blocked ...
                                                         held ──try──▶ leaps ──nothing is held back for long──▶ open
                                                                         └──refused: silence, then held as before

**A try** is how more is found, and costs a refusal where there is no more. So it has a price: each refusal is paid with
`HOLD_MESSAGES` taken before the next try may be over, and in the long run less than one message in so many is refused,
however the receiver counts. A try begins with a *step* of a few percent, unless as much was refused before; a step that
is borne is held to. Then the rate *leaps*: trebled, and trebled again in short periods. So a receiver that has opened
is found out within minutes, and any other one refuses soon, which costs no more than if it were asked timidly.

**A try that failed** says nothing about what was borne before, so nothing is reckoned anew: the path is silent until no
more was taken, on average over the try, than at the old rate; then it goes on at that. A receiver that counts by the
clock, over any minute, or with a bucket takes messages again by then, so the refusal stays the only one. Only where
more was taken beyond the old rate than a minute's window explains is something proven, and the rate stays higher.

**Who refuses at any rate** does not count, whatever its reply says. Where single messages are refused, some taken
before and one right after, and it is so again at half of that rate, a lower one does not help: a limit that is passed
by as much lets no row of messages through, but for what was saved up, and refuses probes, too. Who refuses at any rate
is sent what was sent before, for `ALIKE_HOLDS` such refusals or until it refuses a probe; then it is seen anew.

A receiver that refused for long counts over a long time: periods are never shorter than it refused. The clock is given,
in seconds, and may be any that does not go back. tests/simulate/test_hidden.py has the bounds for all kinds of limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PROBE_FIRST_S: Final = 1.0
PROBE_SHARE: Final = 0.2  # of the time that a receiver has refused, until it is asked again
PROBE_SLOT: Final = 0.1  # of the time over which was counted, until it is asked first: by so much it is often too high
PROBE_CAP_S: Final = 600.0
PERIOD_OVER_S: Final = 0.5
PERIODS_S: Final = (60.0, 3600.0)  # by which receivers count: when one is over it is asked at once
SLOT_S: Final = 60.0  # an estimate is made from what was taken in one or two such times; they are longer after a long
# refusal, and where few messages are taken
SLOT_MESSAGES: Final = 20
FEW: Final = 5  # taken between two refusals, they are not enough for an estimate by themselves
LONG_S: Final = 300.0  # who refuses for so long counts over a long time; nothing is tried for less than that
BELOW: Final = 0.96  # of what was found, to begin with
UNSEEN: Final = 0.2  # share of the time in which it may have opened unseen: what was found may be too little
DOUBT: Final = 0.02  # less is none
DOUBT_CAP: Final = 0.5
HOLD_MESSAGES: Final = 64  # taken from a refusal to the next one that a try may bring
HOLD_FIRST: Final = 60  # after the first estimate,
HOLD_RECKONED: Final = 90  # and after a new one, at most: what it cost to find it need not be paid for
HOLD_CAP: Final = 320  # of what several refusals at once cost
HOLD_S: Final = 40.0  # no try before that, however fast
STEP_MESSAGES: Final = 20  # of these, taken at a step
DOUBT_MESSAGES: Final = 45  # so many of these where little was seen: the rate may well be too low
STEP_S: Final = 75.0  # how long one takes at least: a receiver that counts by the minute has noticed by then
STEP: Final = 0.06  # by which share it is more, to begin with; twice as much when it was borne
STEP_CAP: Final = 0.25
TOP: Final = 0.98  # of a rate that was refused: so much is no step
FORGET: Final = 6  # tries in vain, after which that rate is forgotten
LEAP: Final = 3.0  # times
LEAP_FIRST_S: Final = 55.0  # how long the first leap takes, and those that follow
LEAP_S: Final = 15.0
LEAP_MESSAGES: Final = 6
LONGEST_S: Final = 3600.0  # until more is tried, where that many messages take longer; twice as long after each in vain
DOUBLINGS: Final = 10
PROOF: Final = 1.5  # times what is saved up
SAVED: Final = 1.6  # times the old rate, or that part of it: it is the same
SAVED_CAP_S: Final = 7200.0
PROOF_S: Final = 100.0  # for so many seconds what was taken beyond a rate would have been enough: it is not the limit
OWING: Final = 0.95  # of the old rate, on average over a try that failed
SAME: Final = 0.15  # two rates that differ by no more are the same
USED: Final = 0.7  # of what the rate allows has to be sent, else it says nothing
ALIKE: Final = 3  # refusals, each of a single message after more than a limit by far would let through: `FEW`,
ALIKE_SAVED: Final = 3  # and so many times what a bucket saves up while nothing is sent
ALIKE_LESS: Final = 0.5  # of the highest rate at one of them
ALIKE_HOLDS: Final = 40  # such refusals, for which nothing is made slower then; others count for ten
OPEN_AT: Final = 16.0  # times what was once refused: when not even that is used, nothing is held back any more


@dataclass(slots=True)
class Pace:
    """How many messages in a time. Rates are messages per second; 0: not known."""

    rate: float = 0.0  # what is held to
    ceiling: float = 0.0  # at what rate it refused
    blocked_at: float = 0.0  # since when it refuses; 0: it does not
    probe_at: float = 0.0  # when it may be asked again
    asked_at: float = 0.0  # when it was; 0: nobody waits for the answer
    unasked_s: float = 0.0  # since it last refused: how long it might have been asked, and there was no mail for it
    refused_at: float = 0.0  # when it last refused
    slot_at: float = 0.0  # beginning of the slot of time that is counted; 0: nothing was taken
    slot: int = 0  # messages taken in it
    taken_at: float = 0.0  # when one was last taken
    before_at: float = 0.0  # the same of the slot before; 0: there is none
    before: int = 0
    period_at: float = 0.0  # beginning of the period after which the rate may grow
    period: int = 0  # messages taken in it
    due: int = 0  # messages to be taken until a try may be over
    doubt: float = 0.0  # by which share the rate may be too low, as little was seen
    step: float = STEP  # by which share the next step is more
    top: float = 0.0  # a rate that was refused after a while
    held: float = 0.0  # in a try: the rate to go back to; 0: there is none
    borne: float = 0.0  # the highest rate of this try that was borne for a period
    before_try: float = 0.0  # the rate from which it, or the last one, began
    tried_at: float = 0.0  # when it began
    tried: int = 0  # messages taken since
    leaps: int = 0  # made in it
    vain: int = 0  # tries in a row that brought nothing
    block_s: float = 0.0  # how long it refused
    span_s: float = 0.0  # over how long it seems to count, when it refused for very long
    saved_s: float = 0.0  # for how long it lets what was not sent be sent later, as was seen
    alike: int = 0  # refusals of a single message; below 0: so many more are not for the rate
    alike_from: float = 0.0  # the highest rate at one of them
    row: int = 0  # messages taken since it last refused
    paused_s: float = 0.0  # for how long then nothing was sent

    @property
    def is_blocked(self) -> bool:
        """Whether only probes may be sent."""
        return self.blocked_at > 0

    def take_probe(self, now: float) -> bool:
        """Whether a message may be sent as a probe now. Whoever is told so has to send it: nobody else is."""
        if not self.is_blocked or now < self.probe_at:
            return False
        self.unasked_s += max(now - self.probe_at - self._enough_s(), 0.0)
        self.asked_at = now
        self.probe_at = now + self._wait(now)
        return True

    def taken(self, messages: int, now: float, begun: float, since: float | None = None) -> None:
        """The receiver took so many messages, the last of which was begun at `begun` and the first at `since`."""
        if not self.slot_at:
            self.slot_at = begun if since is None else since
        self.tried += messages
        self.row += messages
        self.due -= messages
        if not self.is_blocked:
            enough_s = self._enough_s()
            self._leave_out(begun if since is None else since, enough_s)
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
        self.taken_at = now

    def refused(self, now: float, begun: float) -> None:
        """The receiver refused a message, begun at `begun`, for its rate."""
        self.due = min(max(self.due, 0) + HOLD_MESSAGES, HOLD_CAP)
        if self.is_blocked:
            # The probe, or a connection that was to carry it.
            if (self.asked_at and begun >= self.asked_at) or begun >= self.probe_at:
                self.asked_at = self.unasked_s = 0.0
                self.refused_at = now
                self.probe_at = now + self._wait(now)
            return
        self._leave_out(begun, self._enough_s())
        self.blocked_at = self.refused_at = now
        self.asked_at = self.unasked_s = 0.0
        self.probe_at = now + (self._silence(now) if self.held else self._wait(now))

    def _enough_s(self) -> float:
        """How long a slot is."""
        return max(SLOT_S, self.block_s, self.span_s, SLOT_MESSAGES / self.rate if self.rate else 0.0)

    def _leave_out(self, begun: float, enough_s: float) -> None:
        """A message was begun at `begun`. When there was none to send for longer than a slot before it, no more than
        that counts: else a receiver would seem to take as little as there was for it."""
        idle_s = begun - self.taken_at - enough_s
        if self.taken_at and idle_s > 0:
            self._move_slots(idle_s)

    def _move_slots(self, idle_s: float) -> None:
        if self.slot_at:
            self.slot_at += idle_s
        if self.before_at:
            self.before_at += idle_s

    # -- refused ---------------------------------------------------------------------------------------------------

    def _wait(self, now: float) -> float:
        """How long until it is asked, or asked again."""
        since = self.before_at or self.slot_at
        least = max(PROBE_FIRST_S, 1.0 / self.rate if self.rate else 0.0)
        if self.rate and now == self.blocked_at:
            least = max(least, PROBE_SLOT * (now - since))
        wait_s = min(max(least, PROBE_SHARE * (now - self.blocked_at)), PROBE_CAP_S)
        for period_s in PERIODS_S:
            left_s = since + period_s + PERIOD_OVER_S - now if since else 0.0
            if 0.0 < left_s < wait_s:
                return left_s
        return wait_s

    def _silence(self, now: float) -> float:
        """How long nothing is sent after a try that failed: until no more was taken, on average, than is borne."""
        if self._is_proven(now):
            self.held = max(self.held, self.borne)
        owing_s = (self.tried + 1) / (OWING * self.held) - (now - self.tried_at)
        return min(max(PROBE_FIRST_S, 1.0 / self.held, owing_s), max(PROBE_CAP_S, self.span_s))

    def _resume(self, now: float) -> None:
        """A probe was taken. When there was nothing to ask with for longer than a slot, no more than that counts as
        refused: it may have opened at any time."""
        self._move_slots(self.unasked_s)
        self.blocked_at += self.unasked_s
        self.refused_at += self.unasked_s
        self.unasked_s = 0.0
        counted = self.before + self.slot - 1  # the probe itself belongs to what comes
        if not counted and not self.rate:  # nothing was taken before: that says nothing about a rate
            self.blocked_at = self.asked_at = self.probe_at = 0.0
            return
        if self.held and (self.refused_at == self.blocked_at  # the first one, or soon after it
                          or self.tried >= (1 - SAME) * self.held * (now - self.tried_at)):
            self._fall_back()
        else:
            self._reckon(now, counted)
            self._compare()
        self.row, self.paused_s = 0, now - self.blocked_at
        self.held = 0.0
        self.blocked_at = self.asked_at = self.probe_at = 0.0
        self.period_at, self.period = now, 0

    def _fall_back(self) -> None:
        """A try has failed: what was borne before is held to. What is counted goes on, as it was no more than that."""
        if not self.leaps:
            self.top, self.step, self.doubt = self.rate, STEP, 0.0
        elif self.borne:  # more than before, but not so much more
            self.top, self.step = 0.0, STEP_CAP
        self.vain += 1
        if self.vain % FORGET == 0:
            self.top = 0.0
        self.rate = self.held

    def _reckon(self, now: float, counted: int) -> None:
        """Now it is known how long the receiver needed for what it took."""
        since = self.before_at or self.slot_at
        opened = (self.refused_at + now) / 2  # somewhen in between
        lasted = max(opened - since, PROBE_FIRST_S / 2)
        messages = max(counted, 1)
        unseen = (now - self.refused_at) / 2 / lasted
        rate = messages / lasted
        if self.rate:
            rate = min(rate, self.rate)
        if self.leaps and self.before_try / SAVED < rate < SAVED * self.before_try:
            # It had not opened, but let us have what it had saved up. All of these refusals are paid for.
            self.saved_s = min(max(self.saved_s, self.tried / self.before_try - (now - self.tried_at)), SAVED_CAP_S)
        else:
            self.due = min(self.due, HOLD_RECKONED) if self.rate else HOLD_FIRST
        self.top = self.rate
        self.ceiling = rate
        self.rate = BELOW * rate
        self.step = STEP
        self.vain += 1
        self.doubt = min(max(1 / messages**2, unseen if unseen > UNSEEN else 0.0), DOUBT_CAP)
        self.block_s = max(now - self.blocked_at, self.block_s / 2)
        if now - self.blocked_at >= LONG_S:
            self.span_s = max(self.span_s, now - since)
        self.before_at, self.before = 0.0, 0
        if counted < FEW and self.top:
            self.slot_at, self.slot = since, counted + 1
        else:
            self.slot_at, self.slot = now, 1

    def _compare(self) -> None:
        """Whether the refusal is like those before, though the rate is less."""
        is_alone = self.refused_at == self.blocked_at  # the probe was taken
        is_alike = is_alone and self.top > 0 and self.row >= FEW + ALIKE_SAVED * self.rate * self.paused_s
        if self.alike < 0 and not is_alone:
            self.alike = 0
        elif self.alike < 0:
            self.alike = min(self.alike + (1 if is_alike else ALIKE_HOLDS // 4), 0)
            self._hold_up()
        elif not is_alone:
            self.alike = max(self.alike - 1, 0)
        elif is_alike:
            self.alike_from = max(self.alike_from, self.top) if self.alike else self.top
            self.alike += 1
            if self.alike >= ALIKE and self.rate < ALIKE_LESS * self.alike_from:
                self.alike = -ALIKE_HOLDS
                self._hold_up()

    def _hold_up(self) -> None:
        """It refuses at any rate: no slower, and nothing to be paid for."""
        self.due = max(self.due - HOLD_MESSAGES, 0)
        self.rate = self.ceiling = self.alike_from = max(self.rate, self.alike_from)

    # -- more ------------------------------------------------------------------------------------------------------

    def _grow(self, now: float) -> None:
        """The end of a period: more, if all that was allowed has been taken."""
        lasted = now - self.period_at
        step = self._next_step()
        if not self.held:
            wanted, least_s = self.due + self.period, max(HOLD_S, self.block_s)
            if step:
                wanted -= DOUBT_MESSAGES if self.doubt >= DOUBT else STEP_MESSAGES
        elif not self.leaps:
            wanted, least_s = STEP_MESSAGES, max(STEP_S, self.block_s)
        elif self.leaps == 1:
            wanted, least_s = LEAP_MESSAGES, max(LEAP_FIRST_S, self.block_s)
        else:
            wanted, least_s = LEAP_MESSAGES, LEAP_S
        longest_s = LONGEST_S * 2 ** min(self.vain, DOUBLINGS)
        if lasted < max(least_s, self.span_s, min(wanted / self.rate, longest_s)):
            return
        if self.period < USED * self.rate * lasted:
            self._unused(now)
        elif self.held and self.leaps:
            self._leap_again(now)
        elif not self.held and step:
            self._try(now)
            self.leaps = 0
            self.rate *= 1 + step
        else:
            self._leap(now, step)
        self.period_at, self.period = now, 0

    def _next_step(self) -> float:
        """The share by which a step is more; 0: none, as so much was refused."""
        for step in (self.doubt, self.step):
            if step >= DOUBT and (not self.top or self.rate * (1 + step) < TOP * self.top):
                return step
        return 0.0

    def _leap(self, now: float, step: float) -> None:
        """A step was borne, or there is none: now much more. But where little was seen another step comes first."""
        if self.held:
            self.ceiling = max(self.ceiling, self.rate)
            if self.doubt >= DOUBT:
                self.doubt /= 4
            else:
                self.step = min(2 * self.step, STEP_CAP)
        if step and self.doubt >= DOUBT:
            self.held = 0.0
            return
        self._try(now)
        self.rate *= LEAP
        self.leaps = 1

    def _leap_again(self, now: float) -> None:
        """A leap was borne."""
        if self._is_proven(now):
            self.vain, self.top = 0, 0.0
            self.held = max(self.held, self.borne or self.rate)
        self.borne = self.rate
        self.rate *= LEAP
        self.leaps += 1
        self.span_s /= 2

    def _try(self, now: float) -> None:
        """More than this rate is sent from now on."""
        self.held = self.before_try = self.rate
        self.borne = 0.0
        self.tried_at, self.tried = now, 0

    def _is_proven(self, now: float) -> bool:
        """Whether more was taken in this try beyond what is borne than the window of the old limit explains."""
        beyond_s = self.tried / self.before_try - (now - self.tried_at)
        return beyond_s >= max(PROOF_S, self.block_s, self.span_s, PROOF * self.saved_s)

    def _unused(self, now: float) -> None:
        """There was less to send: that says nothing, unless it was far beyond all that was ever refused."""
        if self.rate > OPEN_AT * self.ceiling:
            self.rate = self.ceiling = self.held = self.top = 0.0
            self.vain = self.leaps = 0
        elif self.held:
            self.tried_at, self.tried = now, 0


def per_time(rate: float, beside: float = 0.0) -> str:
    """A rate (per second) in the unit in which it is easily read, `beside` another one in a unit that suits both."""
    smaller = min(rate, beside) if beside else rate
    for seconds, unit in ((1, "s"), (60, "min"), (3600, "h")):
        if smaller * seconds >= 1 or unit == "h":
            value = rate * seconds
            return f"{value:,.0f}/{unit}" if value >= 1000 else f"{value:.3g}/{unit}"
    raise AssertionError
