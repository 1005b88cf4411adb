"""From a campaign file to flows of mail."""

from __future__ import annotations

import random

import pytest

from mta.config.problems import ConfigError
from mta.simulate.campaign import flows_of, read_text


def test_mail_is_shared_by_weight_and_none_is_lost() -> None:
    """Sums are exact, whatever the weights; a range of domains shares one weight."""
    campaign = read_text('parts: [{messages: 10}, {domains: {a.test: 1, "d{1-30}.test": 2}}]')
    flows = flows_of(campaign, 1011, ["x.test", "y.test", "z.test"], random.Random(1))
    assert sum(flow.count for flow in flows) == 1011
    assert sum(flow.count for flow in flows if flow.domain in ("x.test", "y.test", "z.test")) == 10
    counts = {flow.domain: flow.count for flow in flows}
    assert counts["a.test"] in (333, 334)
    assert {counts[f"d{n}.test"] for n in range(1, 31)} <= {22, 23}
    firsts = [flow.first for flow in flows]
    assert firsts == [sum(flow.count for flow in flows[:n]) for n in range(len(flows))]


def test_arrivals_are_even_and_can_be_counted_at_any_time() -> None:
    """`arrived` says how many `at_us` are past, at every microsecond around each of them."""
    campaign = read_text("parts: [{messages: 7, domains: {a.test: 1}, start: 10s, over: 1s}]")
    (flow,) = flows_of(campaign, None, [], random.Random(3))
    times = [flow.at_us(k) for k in range(flow.count)]
    assert times == sorted(times)
    assert times[0] >= 10_000_000
    assert times[-1] < 11_000_000
    for moment in {at + off for at in times for off in (-1, 0, 1)}:
        assert flow.arrived(moment) == sum(at <= moment for at in times)


def test_a_rate_is_a_time() -> None:
    """`rate: 100/s` of 500 messages is five seconds."""
    (flow,) = flows_of(read_text("parts: [{messages: 500, domains: {a.test: 1}, rate: 100/s}]"), None, [],
                       random.Random(1))
    assert flow.spacing_us == 10_000


@pytest.mark.parametrize(("text", "said"), [
    ("parts: [{domains: {'d{9-1}.test': 1}}]", "no range"),
    ("parts: [{priority: high}]", "priority"),
    ("parts: [{mesages: 3}]", "messages"),
    ("parts: [{over: 5}]", "unit"),
    ("- 1", "expected"),
])  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(text: str, said: str) -> None:
    """As for the configuration."""
    with pytest.raises(ConfigError) as failure:
        read_text(text, "c.yaml")
    assert said in str(failure.value)
    assert str(failure.value).startswith("c.yaml:1:")
