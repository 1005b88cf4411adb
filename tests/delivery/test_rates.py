"""The arithmetic of rates, with a virtual clock."""

from __future__ import annotations

import bisect
import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.delivery.rates import Bucket, Level, Place, is_at_rest, take


class Crowd:
    """Askers who want to send without end, each with the buckets that it takes from, on a clock that is not real. The
    last `urgent` ones of them have urgent mail, every `every_s` seconds."""

    def __init__(self, askers: list[list[Bucket]], late_s: float = 0.0, seed: int = 1, urgent: int = 0,
                 every_s: float = 1e-6) -> None:
        self.askers = askers
        self.levels = {bucket.name: Level() for buckets in askers for bucket in buckets}
        self.late_s = late_s
        self.chance = random.Random(seed)
        self.sent: dict[str, list[float]] = {name: [] for name in self.levels}
        self.by_asker = [0] * len(askers)
        self.asked: list[float] = []
        self.waited_s: list[list[float]] = [[] for _ in askers]
        self.every_s = every_s
        self._places = [Place(urgent=number >= len(askers) - urgent) for number in range(len(askers))]
        self._since = [0.0] * len(askers)
        self._due = [(0.0, number) for number in range(len(askers))]

    def run(self, until: float, deaths: float = 0.0) -> None:
        """Go on to a time. With each question an asker dies with this likelihood, and begins anew."""
        while self._due and self._due[0][0] < until:
            now, number = heapq.heappop(self._due)
            buckets, place = self.askers[number], self._places[number]
            if deaths and self.chance.random() < deaths:
                place.turns.clear()
                heapq.heappush(self._due, (now + self.chance.expovariate(1.0), number))
                continue
            self.asked.append(now)
            if take(buckets, [self.levels[bucket.name] for bucket in buckets], 1, place, now) is None:
                self.by_asker[number] += 1
                for bucket in buckets:
                    self.sent[bucket.name].append(now)
                self.waited_s[number].append(now - self._since[number])
                at = self._since[number] = now + (self.every_s if place.urgent else 1e-6)
            else:
                at = place.at + self.chance.uniform(0, self.late_s)
            heapq.heappush(self._due, (at, number))


def ask(bucket: Bucket, level: Level, count: int, now: float) -> float:
    """When so many may go that one who comes new asks for: now, or the time of the place that he gets."""
    place = Place()
    return now if take([bucket], [level], count, place, now) is None else place.at


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
    assert len(crowd.asked) < 2.5 * len(sent)  # once to be told when, once then; more when one came in before the late
    assert max(crowd.by_asker) - min(crowd.by_asker) <= max(1, len(sent) * 0.05)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(RATES), st.integers(1, 6), st.floats(0, 0.3), st.floats(0, 0.4), st.integers(0, 10**6),
    st.integers(0, 6), st.floats(1e-6, 10.0),
)
def test_nothing_makes_a_rate_exceeded(rate: tuple[float, float], askers: int, late_s: float, deaths: float,
                                       seed: int, urgent: int, every_s: float) -> None:
    """Not lateness, not death at any moment, not who overtakes."""
    bucket = Bucket("b", *rate)
    crowd = Crowd([[bucket]] * askers, late_s, seed, min(urgent, askers), every_s)
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


SHARED = Bucket("shared", 10, 60.0)


def most_at_once(asked: list[float], span_s: float) -> int:
    """How many questions there were in any span of this length."""
    return max(number - bisect.bisect_left(asked, at - span_s) + 1 for number, at in enumerate(asked))


def test_an_urgent_one_waits_for_a_slot_and_not_for_the_line() -> None:
    """A hundred others stand in line for ten minutes; one urgent message a minute leaves within a spacing, and the
    others go on in their order, one spacing later for each."""
    crowd = Crowd([[SHARED]] * 101, 0.05, urgent=1, every_s=60.0)
    crowd.run(1800.0)
    sent = crowd.sent["shared"]
    assert len(crowd.waited_s[-1]) >= 28
    assert max(crowd.waited_s[-1]) <= SHARED.spacing + 0.05
    assert excess(sent, SHARED) == []
    assert share(sent, SHARED) >= 0.95
    assert max(crowd.by_asker[:-1]) - min(crowd.by_asker[:-1]) <= 1
    assert most_at_once(crowd.asked[101:], SHARED.spacing / 2) <= 4


@pytest.mark.parametrize("urgent", [1, 20])
def test_urgent_ones_without_end_leave_a_tenth_to_the_others(urgent: int) -> None:
    """However many there are; the others have it in turn. Nobody asks more often for it than a few times in a slot."""
    crowd = Crowd([[SHARED]] * (100 + urgent), 0.05, urgent=urgent)
    crowd.run(6 * 3600.0)
    sent = crowd.sent["shared"]
    assert excess(sent, SHARED) == []
    assert share(sent, SHARED) >= 0.95
    assert sum(crowd.by_asker[:100]) / len(sent) == pytest.approx(0.1, abs=0.01)
    assert max(crowd.by_asker[:100]) - min(crowd.by_asker[:100]) <= 1
    assert max(crowd.by_asker[100:]) - min(crowd.by_asker[100:]) <= 1
    assert len(crowd.asked) < 10 * len(sent)


def test_who_is_pushed_back_again_and_again_asks_seldom() -> None:
    """Half of the slots go to urgent ones while a thousand others wait: each asks some log(1000) times, in place of
    once more for each one that went before him, and they keep their order."""
    crowd = Crowd([[SHARED]] * 1001, 0.05, urgent=1, every_s=1.5 * SHARED.spacing)
    crowd.run(2050 * SHARED.spacing)
    sent = crowd.sent["shared"]
    assert 0.45 < crowd.by_asker[-1] / len(sent) < 0.55
    assert max(crowd.by_asker[:-1]) - min(crowd.by_asker[:-1]) <= 2
    assert len(crowd.asked) / len(sent) < 12
    assert most_at_once(crowd.asked[1001:], SHARED.spacing) <= 40


def test_an_urgent_one_that_waited_elsewhere_stands_in_line_with_the_others() -> None:
    """Its path has a rate of its own, for which it has waited: in the shared one other urgent ones come before it. It
    would ask for the same slots as they, and take the part that is left to the rest."""
    own = Bucket("own", 1, 60.0)
    slow, shared, place = Level(), Level(), Place(urgent=True)
    assert take([own, SHARED], [slow, shared], 1, place, 0.0) is None
    assert take([own, SHARED], [slow, shared], 1, place, 0.0) is own
    now = place.at
    ask(SHARED, shared, 1, now)
    others = [Place(urgent=True) for _ in range(5)]
    assert [take([SHARED], [shared], 1, one, now) for one in others] == [SHARED] * 5
    assert take([own, SHARED], [slow, shared], 1, place, now) is SHARED
    assert place.at > max(one.at for one in others) + 0.9 * SHARED.spacing
    assert place.turns.keys() == {"own", "shared"}


def test_a_burst_is_on_top_after_a_rest() -> None:
    """Five at once, then paced; after a rest five again, and not before."""
    bucket = Bucket("b", 10, 1.0, burst=5)
    level = Level()
    assert [ask(bucket, level, 1, 100.0) for _ in range(5)] == [100.0] * 5
    at = ask(bucket, level, 1, 100.0)
    assert at == pytest.approx(100.0 + bucket.spacing - (bucket.ahead - 4 * bucket.spacing))
    level = Level.decode(level.encode(bucket), bucket, 200.0)
    assert [ask(bucket, level, 1, 200.0) for _ in range(5)] == [200.0] * 5


def test_many_at_once_count_as_many() -> None:
    """A message of fifty recipients goes when there is room, and holds up the next one by fifty spacings."""
    bucket = Bucket("recipients", 100, 60.0)
    level = Level()
    assert ask(bucket, level, 50, 100.0) == 100.0
    at = ask(bucket, level, 50, 100.0)
    assert at == pytest.approx(100.0 + 50 * bucket.spacing, abs=2 * bucket.ahead)


@pytest.mark.parametrize(("before", "after"), [((1, 60.0), (10, 1.0)), ((10, 1.0), (1, 60.0)), ((1000, 1.0), (1, 1.0))])
def test_a_change_is_in_force_at_once_and_without_a_burst(before: tuple[int, float], after: tuple[int, float]) -> None:
    """One that waits for a slot of the old rate waits for one of the new rate."""
    old, new = Bucket("b", *before), Bucket("b", *after)
    level = Level()
    now = 100.0
    while ask(old, level, 1, now) == now:
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
    ask(bucket, level, 1, 100.0)
    assert not is_at_rest(level.encode(bucket), 105.0)
    ask(bucket, level, 1, 100.0)  # a place
    assert not is_at_rest(level.encode(bucket), 111.0)
    assert is_at_rest(level.encode(bucket), 121.0)


@pytest.mark.parametrize(("count", "period_s", "burst"), [(0, 1.0, 1), (1, 0.0, 1), (1, 1.0, 0)])
def test_what_is_no_rate(count: float, period_s: float, burst: int) -> None:
    """Nothing in a time, or something in no time."""
    with pytest.raises(ValueError, match="not a rate"):
        Bucket("b", count, period_s, burst)
