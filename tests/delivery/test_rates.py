"""The arithmetic of rates, with a virtual clock."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.delivery.rates import Bucket, Level, is_at_rest, take


class Crowd:
    """Askers who want to send without end, each with the buckets that it takes from, on a clock that is not real."""

    def __init__(self, askers: list[list[Bucket]], late_s: float = 0.0, seed: int = 1) -> None:
        self.askers = askers
        self.levels = {bucket.name: Level() for buckets in askers for bucket in buckets}
        self.late_s = late_s
        self.chance = random.Random(seed)
        self.sent: dict[str, list[float]] = {name: [] for name in self.levels}
        self.by_asker = [0] * len(askers)
        self.asked = 0
        self._places: list[set[str]] = [set() for _ in askers]
        self._due = [(0.0, number) for number in range(len(askers))]

    def run(self, until: float, deaths: float = 0.0) -> None:
        """Go on to a time. With each question an asker dies with this likelihood, and begins anew."""
        while self._due and self._due[0][0] < until:
            now, number = heapq.heappop(self._due)
            buckets, places = self.askers[number], self._places[number]
            if deaths and self.chance.random() < deaths:
                places.clear()
                heapq.heappush(self._due, (now + self.chance.expovariate(1.0), number))
                continue
            self.asked += 1
            at, holding = take(buckets, [self.levels[bucket.name] for bucket in buckets], 1, places, now)
            if holding is None:
                places.clear()
                self.by_asker[number] += 1
                for bucket in buckets:
                    self.sent[bucket.name].append(now)
                at = now + 1e-6
            else:
                places.add(holding.name)
                at += self.chance.uniform(0, self.late_s)
            heapq.heappush(self._due, (at, number))


def excess(sent: list[float], bucket: Bucket) -> list[float]:
    """Times at which a period begins that has more than the rate allows."""
    count = round(max(bucket.count, 1.0))
    period = bucket.period_s / min(bucket.count, 1.0)
    return [first for first, beyond in zip(sent, sent[count:], strict=False) if beyond - first < period]


def share(sent: list[float], bucket: Bucket) -> float:
    """How much of the rate was used from the first to the last."""
    return (len(sent) - 1) / (sent[-1] - sent[0]) / (bucket.count / bucket.period_s)


RATES = [(0.5, 1.0), (1, 2.0), (10, 1.0), (1000, 1.0), (200, 60.0), (1000, 60.0), (50, 3600.0),
         (1000, 86_400.0), (7, 5.0)]


@pytest.mark.parametrize(("count", "period_s"), RATES)
@pytest.mark.parametrize("askers", [1, 2, 4])
def test_a_rate_is_used_and_never_exceeded(count: float, period_s: float, askers: int) -> None:
    """In any period no more than the rate, and over a long time at least 95 percent of it, by askers that come late."""
    bucket = Bucket("b", count, period_s)
    crowd = Crowd([[bucket]] * askers, late_s=min(0.005, bucket.ahead))
    crowd.run(max(3 * period_s, 100 * bucket.spacing))
    sent = crowd.sent["b"]
    assert excess(sent, bucket) == []
    assert share(sent, bucket) >= 0.95
    assert crowd.asked < 2.5 * len(sent)  # once to be told when, once then; more when one came in before the late
    assert max(crowd.by_asker) - min(crowd.by_asker) <= max(1, len(sent) * 0.05)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(RATES), st.integers(1, 6), st.floats(0, 0.3), st.floats(0, 0.4), st.integers(0, 10**6),
)
def test_nothing_makes_a_rate_exceeded(rate: tuple[float, float], askers: int, late_s: float, deaths: float,
                                       seed: int) -> None:
    """Not lateness, not death at any moment."""
    bucket = Bucket("b", *rate)
    crowd = Crowd([[bucket]] * askers, late_s, seed)
    crowd.run(60 * bucket.spacing + 2.5 * min(bucket.period_s, 1.0), deaths)
    assert excess(crowd.sent["b"], bucket) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(RATES[:6]), min_size=3, max_size=5), st.floats(0, 0.02), st.integers(0, 10**6))
def test_all_buckets_of_a_set_hold(rates: list[tuple[float, float]], late_s: float, seed: int) -> None:
    """Paths of a source with a rate of its own, and tenants across: each bucket is held to, and none stands still."""
    source, tenant, *paths = [Bucket(f"b{number}", *rate) for number, rate in enumerate(rates)]
    askers = [[path, source] for path in paths] + [[path, source, tenant] for path in paths]
    crowd = Crowd(askers, late_s, seed)
    crowd.run(20.0)
    for bucket in (source, tenant, *paths):
        assert excess(crowd.sent[bucket.name], bucket) == []
    tight = min((source, *paths), key=lambda bucket: bucket.count / bucket.period_s)
    assert sum(crowd.by_asker) + 1 >= 0.5 * 20.0 * tight.count / tight.period_s


def test_a_slow_path_does_not_hold_up_its_source() -> None:
    """One path of a message in ten seconds, one without a rate of its own: the source's rate is used all the time."""
    source, slow = Bucket("source", 100, 1.0), Bucket("slow", 6, 60.0)
    crowd = Crowd([[slow, source], [source]], late_s=0.001)
    crowd.run(60.0)
    assert share(crowd.sent["source"], source) >= 0.95
    assert len(crowd.sent["slow"]) == 6


def test_a_busy_source_does_not_starve_a_slow_path() -> None:
    """A hundred others stand in line for the source: who has waited for its path's turn is let through at that time."""
    source, slow = Bucket("source", 100, 1.0), Bucket("slow", 6, 60.0)
    crowd = Crowd([[slow, source]] + [[source]] * 100, late_s=0.001)
    crowd.run(120.0)
    assert len(crowd.sent["slow"]) >= 11
    assert share(crowd.sent["source"], source) >= 0.95
    assert excess(crowd.sent["source"], source) == []
    others = crowd.by_asker[1:]
    assert max(others) - min(others) <= 3


def test_a_burst_is_on_top_after_a_rest() -> None:
    """Five at once, then paced; after a rest five again, and not before."""
    bucket = Bucket("b", 10, 1.0, burst=5)
    level = Level()
    assert [take([bucket], [level], 1, (), 100.0)[0] for _ in range(5)] == [100.0] * 5
    at, _ = take([bucket], [level], 1, (), 100.0)
    assert at == pytest.approx(100.0 + bucket.spacing - (bucket.ahead - 4 * bucket.spacing))
    level = Level.decode(level.encode(bucket), bucket, 200.0)
    assert [take([bucket], [level], 1, (), 200.0)[0] for _ in range(5)] == [200.0] * 5


def test_many_at_once_count_as_many() -> None:
    """A message of fifty recipients goes when there is room, and holds up the next one by fifty spacings."""
    bucket = Bucket("recipients", 100, 60.0)
    level = Level()
    assert take([bucket], [level], 50, (), 100.0) == (100.0, None)
    at, _ = take([bucket], [level], 50, (), 100.0)
    assert at == pytest.approx(100.0 + 50 * bucket.spacing, abs=2 * bucket.ahead)


@pytest.mark.parametrize(("before", "after"), [((1, 60.0), (10, 1.0)), ((10, 1.0), (1, 60.0)), ((1000, 1.0), (1, 1.0))])
def test_a_change_is_in_force_at_once_and_without_a_burst(before: tuple[int, float], after: tuple[int, float]) -> None:
    """One that waits for a slot of the old rate waits for one of the new rate."""
    old, new = Bucket("b", *before), Bucket("b", *after)
    level = Level()
    now = 100.0
    while take([old], [level], 1, (), now)[1] is None:
        pass
    level = Level.decode(level.encode(old), new, now)
    crowd = Crowd([[new]])
    crowd.levels["b"] = level
    crowd._due = [(now, 0)]
    crowd.run(now + 10 * new.spacing)
    sent = crowd.sent["b"]
    assert sent[0] <= now + 2 * new.spacing + new.ahead
    assert excess([now, *sent], new) == []


def test_a_level_at_rest_says_nothing() -> None:
    """When all spacings are over a record is as good as none."""
    bucket = Bucket("b", 1, 10.0)
    level = Level()
    take([bucket], [level], 1, (), 100.0)
    assert not is_at_rest(level.encode(bucket), 105.0)
    take([bucket], [level], 1, (), 100.0)  # a place
    assert not is_at_rest(level.encode(bucket), 111.0)
    assert is_at_rest(level.encode(bucket), 121.0)


@pytest.mark.parametrize(("count", "period_s", "burst"), [(0, 1.0, 1), (1, 0.0, 1), (1, 1.0, 0)])
def test_what_is_no_rate(count: float, period_s: float, burst: int) -> None:
    """Nothing in a time, or something in no time."""
    with pytest.raises(ValueError, match="not a rate"):
        Bucket("b", count, period_s, burst)
