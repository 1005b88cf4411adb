"""What a receiver takes in a time is found out (mta.delivery.pace), by a given clock, from receivers that say nothing.

tests/simulate/test_hidden.py does the same with the whole engine.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from typing import Protocol

import pytest

from mta.delivery import pace as rules
from mta.delivery.pace import Pace, per_time
from tests.delivery.receivers import AtRandom, FixedWindow, Open, SlidingWindow, TokenBucket

START_S = 100_000.0
CONNECTIONS = 10
LATENCY_S = 0.05


class Receiver(Protocol):
    """One of `tests.delivery.receivers`."""

    def takes(self, now: float) -> bool:
        """Whether it takes one more."""


@dataclass
class Minute:
    """What happened in one minute."""

    taken: int = 0
    refused: int = 0


def send(phases: list[tuple[int, Receiver]], pace: Pace | None = None) -> list[Minute]:
    """Send as fast as `pace` allows over ten connections; each phase lasts so many minutes."""
    rng = random.Random(1)
    pace = pace or Pace()
    minutes = [Minute() for _ in range(sum(length for length, _ in phases))]
    receivers = [receiver for length, receiver in phases for _ in range(length)]
    free = [START_S] * CONNECTIONS
    under_way: list[tuple[float, float, bool]] = []
    next_slot = 0.0
    while (now := free[0]) < START_S + 60 * len(minutes):
        minute = int((now - START_S) // 60)
        while under_way and under_way[0][0] <= now:
            ended, begun, taken = heapq.heappop(under_way)
            if taken:
                was_blocked = pace.is_blocked
                pace.taken(1, ended, begun)
                if was_blocked and not pace.is_blocked:
                    next_slot = ended + 1 / pace.rate  # the probe is the first of the new pace
                minutes[minute].taken += 1
            else:
                pace.refused(ended, begun)
                minutes[minute].refused += 1
        if pace.is_blocked:
            if not pace.take_probe(now):
                heapq.heapreplace(free, min(max(pace.probe_at, now + 1e-6), now + LATENCY_S))
                continue
        elif pace.rate:
            if next_slot > now + 1e-9:
                heapq.heapreplace(free, min(next_slot, now + 1.0))
                continue
            next_slot = now + 1 / pace.rate
        ended = now + LATENCY_S * rng.uniform(0.8, 1.2)
        heapq.heappush(under_way, (ended, now, receivers[minute].takes(now)))
        heapq.heapreplace(free, ended)
    return minutes


@pytest.mark.parametrize(("receiver", "possible"), [
    pytest.param(FixedWindow(200, 60), 200, id="200 in each minute"),
    pytest.param(SlidingWindow(200, 60), 200, id="200 in any minute"),
    pytest.param(TokenBucket(200 / 60, 20), 200, id="200 a minute, bursts of 20"),
    pytest.param(FixedWindow(10, 1), 600, id="10 in each second"),
    pytest.param(TokenBucket(10, 100), 600, id="10 a second, bursts of 100"),
    pytest.param(TokenBucket(1000 / 60, 1000), 1000, id="1,000 a minute, bursts of 1,000"),
    pytest.param(FixedWindow(5, 60), 5, id="5 in each minute"),
    pytest.param(SlidingWindow(5, 60), 5, id="5 in any minute"),
    pytest.param(TokenBucket(5 / 60, 5), 5, id="5 a minute, bursts of 5"),
    pytest.param(TokenBucket(5 / 60, 1), 5, id="one in 12 seconds"),
])
def test_a_rate_is_found_and_used(receiver: Receiver, possible: int) -> None:
    """After two minutes at least 85 % of what a receiver takes is sent, and less than 2 % of it is refused."""
    steady = send([(32, receiver)])[2:]
    taken, refused = sum(one.taken for one in steady), sum(one.refused for one in steady)
    assert taken >= 0.85 * possible * len(steady)
    assert refused < 0.02 * (taken + refused)


@pytest.mark.parametrize("receiver", [
    FixedWindow(5, 60), FixedWindow(30, 100), TokenBucket(10 / 120, 10), SlidingWindow(20, 60)],
    ids=["5 a minute", "30 in 100 s", "bucket of two minutes", "20 in any minute"])
def test_a_try_costs_one_refusal_and_is_paid_for(receiver: Receiver) -> None:
    """In the long run, ten hours, there is one refusal for each `HOLD_MESSAGES` at most, but for a few by which the
    rate was found again; and not much less: more is tried all the time."""
    later = send([(600, receiver)])[30:]
    taken, refused = sum(one.taken for one in later), sum(one.refused for one in later)
    assert 0.3 * taken / rules.HOLD_MESSAGES < refused <= 1.1 * taken / rules.HOLD_MESSAGES


def test_a_try_that_failed_is_made_up_for_by_silence() -> None:
    """Trebled for 20 s and refused: silence for 43 s, a probe, and the old rate; nothing is reckoned anew."""
    pace = Pace(rate=1.0, ceiling=1.0, slot_at=900.0, period_at=900.0, top=1.01)
    now = 1000.0
    while not pace.leaps:
        now += 1.0
        pace.taken(1, now, now)
    began = now
    for _ in range(59):
        now += 1 / 3
        pace.taken(1, now, now)
    pace.refused(now + 0.3, now + 0.2)
    assert pace.probe_at - began == pytest.approx(60 / rules.OWING)
    assert pace.take_probe(pace.probe_at)
    pace.taken(1, pace.asked_at + 0.1, pace.asked_at)
    assert (pace.rate, pace.ceiling, pace.is_blocked) == (1.0, 1.0, False)


def test_what_was_saved_up_is_no_opening_twice() -> None:
    """A bucket that holds what eight minutes bring, and is full, lets leaps pass for long. Once that is taken for an
    opening, and costs refusals until the old rate is found again; then more has to be taken to be believed."""
    pace = Pace(rate=0.06, ceiling=0.0625, slot_at=START_S, period_at=START_S)
    minutes = send([(400, TokenBucket(5 / 60, 40))], pace)
    assert max(one.refused for one in minutes[:20]) > 2
    assert pace.saved_s >= 480
    assert max(one.refused for one in minutes[20:]) == 1


def test_an_hourly_limit_is_not_tested_every_minute() -> None:
    """What was refused for an hour is paced over the hour: no burst, few refusals."""
    minutes = send([(300, FixedWindow(1000, 3600))])
    later = minutes[120:]
    assert max(one.taken for one in later) < 200
    assert sum(one.taken for one in later) >= 0.6 * 1000 * 3
    assert sum(one.refused for one in later) <= 0.03 * sum(one.taken for one in later)


def test_a_lower_limit_is_found() -> None:
    """From 200 to 5 a minute: near it after two minutes."""
    minutes = send([(10, FixedWindow(200, 60)), (20, FixedWindow(5, 60))])[12:]
    assert sum(one.taken for one in minutes) >= 0.8 * 5 * len(minutes)
    assert sum(one.refused for one in minutes[3:]) <= 3


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("share", "in_half_an_hour"), [(0.005, 4_000), (0.01, 2_500), (0.02, 800), (0.03, 500)])
def test_who_refuses_at_any_rate_is_not_slowed_down_for_ever(share: float, in_half_an_hour: int, seed: int) -> None:
    """Refusals for the rate, it says, but they come as often at half of it: mail still moves after three hours. Each
    time a little less would be next to nothing by then."""
    minutes = send([(180, AtRandom(share, seed))])[150:]
    assert sum(one.taken for one in minutes) >= in_half_an_hour


def test_a_limit_among_refusals_at_any_rate_is_found() -> None:
    """Who is believed to refuse at any rate, and has a limit then, is slowed down to it as soon as another one."""
    minutes = send([(60, AtRandom(0.01, 3)), (20, FixedWindow(60, 60))])[63:]
    assert sum(one.taken for one in minutes) >= 0.8 * 60 * len(minutes)
    assert sum(one.refused for one in minutes) <= 0.05 * 60 * len(minutes)


def test_a_receiver_that_opens_is_found_out() -> None:
    """When 200 a minute become any number, the rate is let go within some minutes."""
    minutes = send([(10, FixedWindow(200, 60)), (30, Open())])
    full = 60 * CONNECTIONS / LATENCY_S
    assert minutes[-1].taken > 0.9 * full
    assert sum(one.refused for one in minutes[11:]) == 0


def test_nothing_is_sent_while_it_refuses_but_probes() -> None:
    """Refused: one probe at a time, at intervals that grow with the time since."""
    pace = Pace()
    pace.taken(1, 100.0, 99.9)
    pace.refused(100.1, 100.0)
    assert pace.is_blocked
    assert not pace.take_probe(100.5)
    assert pace.take_probe(101.2)
    assert not pace.take_probe(101.3)
    pace.refused(101.4, 101.2)
    for _ in range(20):
        assert pace.take_probe(pace.probe_at)
        pace.refused(pace.probe_at - 0.1, pace.asked_at)
    assert pace.probe_at - pace.asked_at > 3 * rules.PROBE_FIRST_S


def test_what_was_under_way_is_no_answer_to_a_probe() -> None:
    """Messages begun before the refusal, taken or not, decide nothing."""
    pace = Pace()
    pace.taken(50, 100.0, 99.0)
    pace.refused(101.0, 100.9)
    pace.refused(101.1, 100.95)
    pace.taken(1, 101.2, 100.8)
    assert pace.is_blocked
    assert pace.take_probe(103.0)
    pace.taken(1, 103.1, 100.85)
    assert pace.is_blocked
    pace.taken(1, 103.2, 103.0)
    assert not pace.is_blocked
    assert 0 < pace.rate < 30


def test_a_rate_that_is_not_used_does_not_grow() -> None:
    """No evidence, no growth: a quiet hour does not make a rate of ten that was refused a rate of a hundred."""
    pace = Pace(rate=10.0, ceiling=10.5, slot_at=1.0, period_at=1.0)
    for minute in range(60):
        pace.taken(1, 60.0 * minute + 2, 60.0 * minute + 1)
    assert pace.rate == 10.0


@pytest.mark.parametrize("idle_s", [0.0, 59.0, 180.0, 10_000.0])
@pytest.mark.parametrize("more", [0, 200])
def test_a_time_without_mail_is_no_low_rate(idle_s: float, more: int) -> None:
    """60 messages in three seconds, none for a while, 200 more or none, then refusals for a minute. That is 60 in three
    minutes to 260 in one, for however long there was nothing to send."""
    pace, now = Pace(), START_S
    for messages in (60, more):
        for _ in range(messages):
            now += 0.05
            pace.taken(1, now, now - 0.05)
        now += idle_s if messages == 60 else 0.0
    pace.refused(now + 0.05, now)
    while now < pace.blocked_at + 60:
        now = pace.probe_at
        assert pace.take_probe(now)
        pace.refused(now, now)
    now = pace.probe_at
    assert pace.take_probe(now)
    pace.taken(1, now, now)
    assert 0.9 * 60 / 180 <= pace.rate <= 1.5 * 260 / 60


@pytest.mark.parametrize("idle_s", [0.0, 59.0, 600.0, 10_000.0])
@pytest.mark.parametrize("asked", [0, 3])
def test_a_time_without_mail_is_no_long_refusal(idle_s: float, asked: int) -> None:
    """200 messages in ten seconds, then it refuses, also when it is asked again; then there is none to ask it with for
    a while. That is 200 in ten seconds to 200 in a minute and a half, and no long refusal after which little is tried.
    """
    pace, now = Pace(), START_S
    for _ in range(200):
        now += 0.05
        pace.taken(1, now, now - 0.05)
    pace.refused(now, now)
    for _ in range(asked):
        now = pace.probe_at
        assert pace.take_probe(now)
        pace.refused(now, now)
    now = pace.probe_at + idle_s
    assert pace.take_probe(now)
    pace.taken(1, now, now)
    assert 0.9 * 200 / 90 <= pace.rate <= 200 / 10
    assert (pace.block_s < 90, pace.span_s) == (True, 0.0)


def test_rates_are_written_as_people_say_them() -> None:
    """In the unit in which the number is at least one."""
    assert [per_time(rate) for rate in (12.34, 3.33, 0.08, 0.0001)] == ["12.3/s", "3.33/s", "4.8/min", "0.36/h"]
    assert per_time(1234.5) == "1,234/s"
    assert (per_time(1.11, 0.925), per_time(0.925, 1.11)) == ("66.6/min", "55.5/min")  # two that are compared
