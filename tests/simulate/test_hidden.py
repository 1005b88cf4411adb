"""Receivers with limits that nobody tells: the engine finds them, uses them, and notices when they are gone.

The scaled-down bench.hidden: the real engine with the shipped rules, on the virtual clock.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from mta.config.units import parse_rate
from mta.sandbox.quota import Quota
from mta.sandbox.rules import ReadyRule
from mta.simulate.simulation import Simulation
from tests.simulate.helpers import simulation

SLOW = "latency: 1s"
SITE = "d.test"


class Course(NamedTuple):
    """What happened in a time, in messages and connections."""

    taken: int
    refused: int
    most_open: int


def begun(*phases: tuple[int, str], messages: int = 20_000) -> Simulation:
    """A receiver with these behaviours, each for so many minutes, and more mail for it than it takes."""
    texts, minute = [], 0
    for minutes, behaviour in phases:
        texts.append(f"{{since: {minute}m, until: {minute + minutes}m, {behaviour}}}")
        minute += minutes
    return simulation("shaping: {default: {connections: 100}}",
                      f"domains: {{d.test: {{phases: [{', '.join(texts)}]}}}}",
                      f"parts: [{{messages: {messages}, domains: {{d.test: 1}}}}]")


def until(sim: Simulation, minute: float) -> Course:
    """What happens from now on."""
    before = sim.receivers.site(SITE)
    taken, refused = before.taken, before.throttled + before.refused_connections
    before.most_open = 0
    sim.run(minute / 60)
    site = sim.receivers.site(SITE)
    return Course(site.taken - taken, site.throttled + site.refused_connections - refused, site.most_open)


def assert_found(course: Course, possible: int) -> None:
    """At least 85 % of what was possible was taken, and less than 2 % refused."""
    assert course.taken >= 0.85 * possible
    assert course.refused < 0.02 * (course.taken + course.refused)


def test_a_limit_on_connections_then_rates_are_tracked() -> None:
    """20 connections, then 200 messages a minute, then 5: each is found within two minutes; from then on at least 85 %
    of it is used and less than 2 % is refused."""
    sim = begun((5, f"{SLOW}, connections: 20"), (8, "latency: 20ms, rate: 200/min"),
                (30, "latency: 20ms, rate: 5/min"))
    until(sim, 2)
    connections = until(sim, 5)
    until(sim, 7)
    fast = until(sim, 13)
    until(sim, 15)
    slow = until(sim, 43)
    assert connections.most_open == 20
    assert_found(connections, 20 * 180)
    assert_found(fast, 200 * 6)
    assert_found(slow, 5 * 28)


@pytest.mark.parametrize("window", ["bucket", "fixed", "sliding"])
@pytest.mark.parametrize(("rate", "per_minute"), [
    ("200/min", 200), ("60/min", 60), ("20/min", 20), ("5/min", 5), ("20/10s", 120), ("5/10s", 30),
    ("100/10s", 600)])
def test_every_way_of_counting_is_found(rate: str, per_minute: int, window: str) -> None:
    """Buckets, times by the clock and any such time: the same bounds, over half an hour."""
    sim = begun((32, f"latency: 20ms, rate: {rate}, rate_window: {window}"))
    until(sim, 2)
    steady = until(sim, 32)
    assert_found(steady, per_minute * 30)


@pytest.mark.parametrize(("rate", "per_minute"), [
    ("200/min, burst 20", 200), ("60/min, burst 6", 60), ("20/min, burst 2", 20), ("15/min, burst 3", 15)])
def test_small_bursts_are_found(rate: str, per_minute: int) -> None:
    """A bucket that holds little: the same bounds."""
    sim = begun((32, f'latency: 20ms, rate: "{rate}"'))
    until(sim, 2)
    steady = until(sim, 32)
    assert_found(steady, per_minute * 30)


@pytest.mark.parametrize("rate", ["15/min, burst 3", "30/2m, burst 3"])
def test_small_bursts_after_a_faster_limit_are_found(rate: str) -> None:
    """A pause fills such a bucket, so a probe and some messages more are taken: that is not refusing at any rate."""
    sim = begun((5, f"{SLOW}, connections: 20"), (6, "latency: 20ms, rate: 200/min"),
                (34, f'latency: 20ms, rate: "{rate}"'))
    until(sim, 13)
    steady = until(sim, 43)
    assert_found(steady, 15 * 30)


@pytest.mark.parametrize("window", ["bucket", "fixed", "sliding"])
@pytest.mark.parametrize(("rate", "per_minute"), [("300/100s", 180), ("30/100s", 18), ("200/2m", 100), ("30/2m", 15)])
def test_windows_longer_than_a_minute_are_found(rate: str, per_minute: int, window: str) -> None:
    """These take three windows to find; then the same bounds, over half an hour."""
    sim = begun((37, f"latency: 20ms, rate: {rate}, rate_window: {window}"))
    until(sim, 6)
    steady = until(sim, 36)
    assert_found(steady, per_minute * 30)


@pytest.mark.parametrize("code", ["451 4.7.0", "421 4.7.0", "550 5.7.1"])
@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "body", "dot"])
def test_a_rate_may_be_told_at_any_stage(stage: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever command the refusal answers, with whatever code: the same bounds, and no breaker trips."""
    refusal = f"{code} too many messages from your address, slow down"
    sim = begun((32, f'latency: 20ms, rules: [{{at: {stage}, reply: "{refusal}"}}]'))
    quota = Quota(parse_rate("20/min"), "fixed", sim.hub.now)
    asked: list[bool] = []

    def holds(rule: ReadyRule, subject: str, counted: str) -> bool:
        asked.append(quota.takes(sim.hub.now))
        return not asked[-1]

    monkeypatch.setattr(ReadyRule, "holds", holds)
    until(sim, 2)
    asked.clear()
    steady = until(sim, 32)
    (path,) = sim.engine.paths.values()
    assert path.suspended_until_us == path.failures == 0
    assert steady.taken >= 0.85 * 20 * 30
    assert asked.count(False) < 0.02 * len(asked)


def test_a_slow_receiver_gets_all_that_its_rate_allows() -> None:
    """1,000 a minute, with 0.6 s for each message: many connections are busy, and whoever is free asks for the next."""
    sim = begun((12, "latency: 300ms, rate: 1000/min, rate_window: fixed"))
    until(sim, 2)
    steady = until(sim, 12)
    assert steady.taken >= 0.9 * 1000 * 10
    assert steady.refused < 0.02 * (steady.taken + steady.refused)


def test_an_hourly_limit_is_spread_over_the_hour() -> None:
    """The first hour's messages go at once, then it refuses; later hours are used evenly, with a few refusals."""
    sim = begun((600, "latency: 20ms, rate: 600/h, rate_window: fixed"))
    assert until(sim, 60).taken >= 0.95 * 600
    until(sim, 180)
    later = until(sim, 600)
    assert_found(later, 600 * 7)


@pytest.mark.parametrize(("before", "minutes"), [("200/min", 8), ("20/min", 8), ("5/min", 20)])
@pytest.mark.parametrize("window", ["bucket", "fixed"])
def test_a_receiver_that_opens_is_found_out(before: str, minutes: int, window: str) -> None:
    """More is tried for each 64 messages, for which 200 a minute take no time and 5 a minute 14 minutes; within some
    more the rate is twenty times as high."""
    sim = begun((10, f"latency: 20ms, rate: {before}, rate_window: {window}"), (60, SLOW), messages=40_000)
    until(sim, 10)
    per_minute = int(before.partition("/")[0])
    courses: list[Course] = []
    while not courses or courses[-1].taken < 20 * min(per_minute, 100):
        courses.append(until(sim, 11 + len(courses)))
        assert len(courses) <= minutes
    assert sum(course.refused for course in courses) == 0


def test_a_paced_receiver_has_few_connections() -> None:
    """What a rate holds back needs no connections: not one for each that might have been used."""
    sim = begun((20, "latency: 20ms, rate: 60/min"))
    until(sim, 2)
    assert until(sim, 20).most_open <= 4


@pytest.mark.parametrize("reply", [
    "421 4.7.0 Too many messages from 192.0.2.25, slow down", "421 4.7.0 Error: too many connections from 192.0.2.25"])
def test_a_limit_told_at_the_greeting_is_no_fault_of_the_site(reply: str) -> None:
    """A receiver that refuses all connections for some minutes, for rate or number: it is asked now and then, by one
    connection; no breaker trips; when it opens the mail goes on."""
    sim = begun((2, f"{SLOW}, connections: 20"), (12, f'{SLOW}, rules: [{{at: connect, reply: "{reply}"}}]'),
                (60, f"{SLOW}, connections: 20"))
    until(sim, 10)  # those that were open have come to their end
    site = sim.receivers.site(SITE)
    before = site.connections
    for minute in (11, 12, 13, 14):
        until(sim, minute)
        (path,) = sim.engine.paths.values()
        assert path.suspended_until_us == path.failures == 0
    assert 1 <= site.connections - before <= 10
    assert until(sim, 16).taken > 0


def test_a_rate_of_connections_costs_few_refusals() -> None:
    """Ten connections a minute of one message each are used, with fewer refusals than messages."""
    sim = begun((60, "latency: 50ms, messages: 1, connection_rate: 10/min, rate_window: fixed"))
    until(sim, 2)
    steady = until(sim, 60)
    assert steady.taken >= 0.85 * 10 * 58
    assert steady.refused < steady.taken


@pytest.mark.parametrize(("greylist", "deferrals"), [("1m", 1), ("5m", 1), ("10m", 2), ("25m", 3)])
def test_greylisting_is_met_by_the_shipped_rule(greylist: str, deferrals: int) -> None:
    """As few attempts as can be at the usual lengths of a greylist, five minutes to the second included."""
    sim = simulation("", f"domains: {{g.test: {{greylist: {greylist}}}}}",
                     "parts: [{messages: 500, domains: {g.test: 1}, over: 5m}]")
    result = sim.run(3)
    assert (result.delivered, result.deferred) == (500, 500 * deferrals)
