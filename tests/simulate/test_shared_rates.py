"""Many sites that share a rate, on the virtual clock: what a message costs, and who has a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mta.simulate.result import Result
from tests.simulate.helpers import simulation

USED = 0.95


def run(sites: int, mail: str, hours: float, own: str = "", latency: str = "100ms",
        sources: int = 1) -> tuple[Result, float]:
    """A provider of so many sites that takes a message a second; the result, and the asks of the table per message."""
    sim = simulation(f"""shaping:
  default: {{adaptive: {{enabled: no}}, {own}}}
  providers: {{p: {{match: {{mx: "*.p.test"}}, total_message_rate: 60/min}}}}
sources: {{{", ".join(f"s{number}: {{}}" for number in range(sources))}}}
""", f'domains: {{"*.p.test": {{latency: {latency}}}}}',
                     f'parts: [{{{mail}, domains: {{"d{{1-{sites}}}.p.test": 1}}}}]')
    asks = 0
    reserve = sim.engine.limits.reserve

    def counted(buckets: Sequence[Any], count: int = 1, urgent: bool = False) -> float:
        nonlocal asks
        asks += 1
        return reserve(buckets, count, urgent)

    sim.engine.limits.reserve = counted
    result = sim.run(hours)
    return result, asks / result.delivered


@pytest.mark.parametrize("own", ["", "message_rate: 1/s"])
@pytest.mark.parametrize("sites", [20, 100, 400])
def test_a_message_costs_two_asks_however_many_sites_wait(sites: int, own: str) -> None:
    """Not one for each site that waits for the same rate."""
    result, asks = run(sites, "messages: 1200", 0.25, own)
    assert asks <= 2.6
    assert result.delivered >= USED * 900


@pytest.mark.parametrize(("mail", "sources"), [
    ("messages: 8000", 1), ("messages: 4000, over: 1h", 1), ("messages: 4000, over: 1h", 2)])
def test_sites_have_turns_and_the_rate_is_used(mail: str, sources: int) -> None:
    """For an hour 400 sites with mail without end get the same, also over two sources of which each could take it."""
    result, asks = run(400, mail, 1.0, sources=sources)
    assert USED * 3600 <= result.delivered <= 3600
    assert asks <= 2.6
    got = [site.delivered for site in result.sites]
    assert len(got) == 400
    assert max(got) - min(got) <= 4 * sources, (min(got), max(got))


@pytest.mark.parametrize(("latency", "used"), [("100ms", USED), ("1s", USED), ("3s", 0.9)])
def test_each_site_has_a_single_message(latency: str, used: float) -> None:
    """And gets it off in its turn, though its connection has to be opened for that, which takes seconds."""
    result, asks = run(900, "messages: 900", 0.25, latency=latency)
    assert used * 900 <= result.delivered <= 900
    assert asks <= 2.6


@pytest.mark.parametrize(("latency", "sources", "used"), [("1s", 1, USED), ("3s", 1, USED), ("1s", 2, 0.85)])
def test_paths_with_a_rate_of_their_own_come_in_time(latency: str, sources: int, used: float) -> None:
    """Each has a place of its own in the shared rate, which is kept while the connection for it is opened."""
    result, asks = run(400, "messages: 4000", 0.5, "message_rate: 1/s", latency, sources)
    assert used * 1800 <= result.delivered <= 1800
    assert asks <= 20


def test_sites_that_stand_still_cost_no_slot() -> None:
    """A third of those in line cannot be reached: the others have the rate."""
    sim = simulation("""shaping:
  default: {adaptive: {enabled: no}}
  sources: {out: {total_message_rate: 60/min}}
sources: {out: {}}
""", 'domains: {"d*.test": {latency: 10ms}, "gone*.test": {listening: no}}',
                     'parts: [{messages: 6000, domains: {"d{1-100}.test": 100, "gone{1-50}.test": 50}}]')
    result = sim.run(0.5)
    assert result.delivered >= USED * 1800


@pytest.mark.parametrize("sites", [1, 20])
def test_mail_that_comes_singly_does_not_exceed_a_rate(sites: int) -> None:
    """A connection that finds no more mail after a message hands nothing back: that was used."""
    result, _ = run(sites, "messages: 900, over: 10m", 1 / 6, latency="10ms")
    assert USED * 600 <= result.delivered <= 601
