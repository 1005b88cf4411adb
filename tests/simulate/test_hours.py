"""Hours of the engine's life in a moment: retries, suspensions, greylisting, expiry, priorities, fairness, outages."""

from __future__ import annotations

from typing import Any

import pytest

from mta.delivery.reason import KINDS
from mta.delivery.settle import Verdict
from mta.queue.records import Delivery
from mta.simulate.kernel import BEGIN_US
from tests.simulate.helpers import HOUR, by_site, simulation


def test_retries_follow_the_schedule() -> None:
    """Of mail that is deferred each time there are as many attempts as the schedule has until the end."""
    sim = simulation(
        "retry: {schedule: [10m, 20m, 1h], jitter: 0}",
        'domains: {full.test: {rules: [{at: rcpt, reply: "452 4.2.2 full"}]}}',
        "parts: [{messages: 50, domains: {full.test: 1}}]")
    result = sim.run(5)
    # At 0, 10 and 30 minutes, and each hour from 1.5 on: 1.5, 2.5, 3.5, 4.5.
    assert result.deferred == 50 * 7
    assert (result.left, result.delivered) == (50, 0)
    assert list(result.held_h) == ["retry"]
    assert result.held_h["retry"] == pytest.approx(50 * 5, rel=0.01)


def test_mail_expires_by_its_age() -> None:
    """What nobody takes is given up when it is that old, not at its next attempt, which may be long after."""
    sim = simulation(
        "retry: {schedule: [5h], jitter: 0}\nexpires: 6h",
        'domains: {full.test: {rules: [{at: rcpt, reply: "452 4.2.2 full"}]}, dead.test: {listening: no}}',
        "parts: [{messages: 1200, domains: {full.test: 1, dead.test: 1}}]")
    assert sim.run(5.9).expired == 0
    assert sim.run(6.1).expired == 1200
    assert sim.store.left == 0


def test_a_dead_site_is_asked_by_one_probe_at_a_time() -> None:
    """A site is down for an hour: pauses double, one connection goes first after each, the mail keeps its place and its
    attempts, and all of it goes when the site is back."""
    sim = simulation(
        "retry: {site_first: 60s, site_cap: 30m}",
        "domains: {d.test: {latency: 10ms, phases: [{until: 1h, listening: no}]}}",
        "parts: [{messages: 5000, domains: {d.test: 1}}]")
    tries: list[float] = []
    reach = sim.receivers.internet.host_at

    def counted(address: str) -> object:
        tries.append(sim.hub.elapsed)
        return reach(address)

    sim.receivers.internet.host_at = counted
    result = sim.run(1)
    first = [at for at in tries if at < 1]
    later = [at for at in tries if at >= 1]
    assert len(first) <= 20
    assert later == sorted(set(later)), "a probe goes alone"
    assert [round((b - a) / 60) for a, b in zip([0.0, *later], later, strict=False)] == [1, 2, 4, 8, 16]
    assert result.delivered == 0
    assert result.held_h.keys() <= {"site", "opening", "openings"}

    result = sim.run(3)
    assert (result.delivered, result.deferred) == (5000, 0)
    last = result.sites[0].last_s
    assert 1 * HOUR < last < 1 * HOUR + 30 * 60 + 60


def test_greylisting_passes_at_the_second_attempt_from_the_same_source() -> None:
    """With several sources a retry leaves from where the first attempt did, or it would be a stranger again."""
    sim = simulation(
        "sources: {a: {}, b: {}, c: {}}\nretry: {first: 6m, jitter: 0.1}",
        "domains: {g.test: {greylist: 4m}}",
        "parts: [{messages: 900, domains: {g.test: 1}}]")
    result = sim.run(2)
    assert (result.delivered, result.deferred) == (900, 900)
    assert result.sites[0].greylisted == 900
    assert result.reached_s["100"] is not None
    assert result.reached_s["100"] < 8 * 60


def test_transactional_mail_overtakes_and_bulk_does_not_starve() -> None:
    """Behind a backlog of bulk a transactional message waits for one transaction, not for the backlog; and of ten turns
    one is for bulk, however much transactional mail there is."""
    internet = "domains: {s.test: {latency: 100ms}}"
    limits = "shaping: {default: {connections: 1}}"
    sim = simulation(limits, internet, """parts:
      - {messages: 20000, domains: {s.test: 1}, priority: bulk}
      - {messages: 100, domains: {s.test: 1}, priority: transactional, start: 60s, over: 100s}""")
    result = sim.run(0.1)
    assert result.priorities["transactional"]["delivered"] == 100
    assert result.priorities["transactional"]["last_s"] < 162
    assert result.priorities["bulk"]["left"] > 10_000

    sim = simulation(limits, internet, """parts:
      - {messages: 20000, domains: {s.test: 1}, priority: bulk}
      - {messages: 20000, domains: {s.test: 1}, priority: transactional}""")
    result = sim.run(0.1)
    share = result.priorities["bulk"]["delivered"] / result.delivered
    assert share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("own", ["", "message_rate: 1/s"])
def test_transactional_mail_overtakes_in_a_rate_that_sites_share(own: str) -> None:
    """A hundred sites with bulk mail wait for ten messages a minute, whether each has a rate besides or not: two
    transactional messages a minute to yet another one leave within two spacings each, the bulk mail has the rest."""
    sim = simulation(f"""shaping:
  default: {{adaptive: {{enabled: no}}, {own}}}
  sources: {{out: {{total_message_rate: 10/min}}}}
sources: {{out: {{}}}}
""", 'domains: {"d*.test": {latency: 10ms}, u.test: {latency: 10ms}}', """parts:
      - {messages: 5000, domains: {"d{1-100}.test": 1}, priority: bulk}
      - {messages: 40, over: 20m, start: 5m, domains: {u.test: 1}, priority: transactional}""")
    waited: list[float] = []
    deliver = sim.engine.settler.deliver

    def noted(delivery: Delivery, *rest: Any) -> Verdict:
        if delivery.domain == "u.test":
            waited.append((sim.hub.clock_us() - delivery.message.arrival_us) / 1e6)
        return deliver(delivery, *rest)

    sim.engine.settler.deliver = noted
    result = sim.run(0.5)
    assert len(waited) == 40
    assert max(waited) <= 2 * 6.1, sorted(waited)[-5:]
    assert result.priorities["bulk"]["delivered"] + 40 >= 0.95 * 30 * 10


def test_bulk_mail_has_its_part_of_a_rate_that_sites_share() -> None:
    """Transactional mail to ten sites without end, beside bulk mail to thirty others."""
    sim = simulation("""shaping:
  default: {adaptive: {enabled: no}}
  sources: {out: {total_message_rate: 60/min}}
sources: {out: {}}
""", 'domains: {"d*.test": {latency: 10ms}, "u*.test": {latency: 10ms}}', """parts:
      - {messages: 5000, domains: {"d{1-30}.test": 1}, priority: bulk}
      - {messages: 9000, domains: {"u{1-10}.test": 1}, priority: transactional}""")
    result = sim.run(0.5)
    assert result.priorities["bulk"]["delivered"] / result.delivered == pytest.approx(0.1, abs=0.02)
    assert result.delivered >= 0.95 * 1800


@pytest.mark.parametrize("limit", ["message_rate: 2/s", "concurrency: 2"])
def test_a_limited_tenant_has_all_of_its_mail_in_turn(limit: str) -> None:
    """Its domains get the same of what it may send, one that answers slowly too, as far as that goes; transactional
    mail to yet another one waits for none of them, and lower priorities have their part besides."""
    sim = simulation(
        f"tenants: {{t: {{{limit}}}}}", """
        domains:
          "d{1-5}.test": {latency: 10ms}
          slow.test: {latency: 300ms}
          quick.test: {latency: 10ms}
        """.replace('"d{1-5}.test"', "d*.test"), """
        parts:
          - {messages: 50000, domains: {"d{1-5}.test": 5, slow.test: 1}, tenant: t, priority: bulk}
          - {messages: 120, over: 10m, domains: {quick.test: 1}, tenant: t, priority: transactional}""")
    result = sim.run(0.25)
    sites = by_site(result.sites)
    assert result.priorities["transactional"]["delivered"] == 120
    assert result.priorities["transactional"]["last_s"] < 10 * 60 + 5
    bulk = [site.delivered for name, site in sites.items() if "quick" not in name]
    assert len(bulk) == 6
    assert min(bulk) >= 0.75 * max(bulk), bulk


def test_tenants_share_a_site_by_weight_however_much_they_send() -> None:
    """Jain's index over what tenants got for their weight is 1, whether they have one queue or many, a thousand
    messages or fifty thousand."""
    parts = "\n".join(
        f"      - {{messages: {messages}, domains: {{s.test: 1}}, tenant: t{number}, campaign: c{campaign}}}"
        for number, (messages, campaigns) in enumerate(((50_000, 1), (3000, 1), (20_000, 5), (3000, 2)))
        for campaign in range(campaigns))
    sim = simulation("tenants: {t3: {weight: 2}}\nshaping: {default: {connections: 4}}",
                     "domains: {s.test: {latency: 50ms}}", f"parts:\n{parts}")
    result = sim.run(0.01)
    got = [result.tenants[f"t{number}"]["delivered"] / weight for number, weight in enumerate((1, 1, 1, 2))]
    assert min(got) > 200
    jain = sum(got) ** 2 / (len(got) * sum(one * one for one in got))
    assert jain > 0.999


def test_an_outage_of_one_provider_leaves_the_mail_of_others_alone() -> None:
    """A provider with most of the mail is down for an hour. Fresh mail to 300 other domains goes out within a second of
    its arrival, and the provider's goes when it is back."""
    sim = simulation(
        "retry: {site_first: 1m, site_cap: 5m}",
        """domains:
          big.test: {latency: 50ms, phases: [{since: 10m, until: 70m, listening: no}]}
          "*.other.test": {latency: 50ms}""",
        """parts:
          - {messages: 60000, domains: {big.test: 1}, over: 1h}
          - {messages: 9000, domains: {"d{1-300}.other.test": 1}, over: 2h, tenant: fresh}""")
    result = sim.run(1)
    assert result.tenants[""]["left"] > 45_000
    arrived = sum(flow.arrived(sim.store.elapsed_us()) for flow in sim.store._flows if flow.part.tenant)
    assert arrived - result.tenants["fresh"]["delivered"] <= 5
    result = sim.run(4)
    assert result.left == 0
    assert result.tenants[""]["last_s"] < 70 * 60 + 15 * 60
    assert result.tenants["fresh"]["last_s"] < 2 * HOUR + 1
    big = by_site(result.sites)["big.test"]
    others = [hours for site in result.sites if site.site != "big.test" for hours in site.held_h.values()]
    assert big.held_h["site"] > 20_000
    assert sum(others) < 1


def test_limits_on_connections_hold() -> None:
    """The receiver never sees more than are configured, for a domain or in all."""
    sim = simulation(
        "shaping: {default: {connections: 3}}\ndelivery: {connections: 10}",
        'domains: {"*.test": {latency: 20ms}}',
        'parts: [{messages: 5000, domains: {"d{1-9}.test": 1}}]')
    most = 0
    enter = sim.receivers.enter

    def counted(session: object) -> None:
        nonlocal most
        enter(session)
        most = max(most, sum(map(len, sim.receivers._sessions.values())))

    sim.receivers.enter = counted
    result = sim.run(1)
    assert result.delivered == 5000
    assert max(site.most_open for site in result.sites) == 3
    assert most == 10


@pytest.mark.parametrize(("rate", "per_s"), [("30/min", 0.5), ("10/s", 10.0), ("1000/s", 1000.0)])
def test_rates_are_kept_and_used(rate: str, per_s: float) -> None:
    """A rate that we are to keep is never exceeded in any of its periods, and at least 95 percent of it are used."""
    sim = simulation(f"shaping: {{default: {{message_rate: {rate}}}}}",
                     "domains: {d.test: {latency: 3ms, rate: 1000000/s}}",
                     "parts: [{messages: 40000, domains: {d.test: 1}}]")
    began: list[float] = []
    within_rate = sim.receivers.within_rate

    def counted(host: object, client: str) -> bool:
        began.append(sim.hub.elapsed)
        return within_rate(host, client)

    sim.receivers.within_rate = counted
    hours = 0.01 if per_s > 100 else 0.2
    result = sim.run(hours)
    count, period_s = (30, 60.0) if per_s < 1 else (int(per_s), 1.0)
    assert len(began) >= result.delivered
    assert min(later - at for at, later in zip(began, began[count:], strict=False)) >= period_s
    assert 0.95 < result.delivered / (per_s * hours * 3600) <= 1.001
    assert result.held_h["rate"] == pytest.approx(sum(result.held_h.values()), rel=0.01)


def test_a_receiver_that_throttles_is_left_alone_in_between() -> None:
    """The share of the receiver's own rate is reckoned over the time in which mail was due; refusals count."""
    sim = simulation("", "domains: {t.test: {latency: 20ms, rate: 120/min}}",
                     "parts: [{messages: 3000, domains: {t.test: 1}}]")
    result = sim.run(1)
    site = result.sites[0]
    assert site.throttled > 0
    assert site.share is not None
    assert 0.3 < site.share <= 1.02
    assert site.delivered <= 7200 + 120


def test_every_recipient_ends_once() -> None:
    """Whatever receivers do, recipients are delivered, bounced, expired or still there, and the store agrees."""
    sim = simulation(
        "expires: 20h\nretry: {first: 10m, cap: 2h}",
        """domains:
          mixed.test: {latency: 5ms, messages: 7, rules: [
            {at: rcpt, share: 0.1, reply: "550 5.1.1 nobody"}, {at: rcpt, share: 0.1, reply: "452 4.2.2 full"},
            {at: dot, share: 0.1, times: 1, drop: rst}, {at: dot, share: 0.1, times: 1, reply: "421 4.3.2 bye"},
            {at: mail, share: 0.2, times: 2, raw: "what?"}]}
          few.test: {recipients: 3, connections: 2}
          slow.test: {rules: [{at: data, share: 0.02, times: 1, hang: true}]}
          gone.test: {dns: {answer: nxdomain}}
          sick.test: {dns: {answer: servfail}}
          flaps.test: {phases: [{since: 1m, until: 2m, listening: no}, {since: 5m, until: 9m, listening: no}]}""",
        "parts: [{messages: 3000, recipients: 4, over: 10m, sender: a@b.test}]")
    result = sim.run(12)
    assert result.recipients == result.delivered + result.bounced + result.expired + result.left
    assert result.delivered > 0.6 * result.recipients
    result = sim.run(24)
    assert result.left == 0
    assert sim.store.left == 0
    assert sim.engine.scheduler.deliveries == 0
    sites = by_site(result.sites)
    assert sites["gone.test"].bounced == sites["gone.test"].recipients
    assert sites["sick.test"].expired == sites["sick.test"].recipients
    assert sites["few.test"].most_open <= 2


def test_the_clock_stands_where_it_was_told_to_stop() -> None:
    """Also when nothing happens any more; and wall and steady clock go together."""
    sim = simulation("", "domains: {d.test: {}}", "parts: [{messages: 0}]")
    assert sim.run(7).elapsed_s == 7 * HOUR
    assert sim.hub.clock_us() == BEGIN_US + 7 * 3600 * 1_000_000


def test_what_holds_mail_is_told_as_by_explain() -> None:
    """The causes are those of `mta explain`: a hidden rate is the adaptation's, a lack of connections the limit's."""
    kinds = {}
    for name, config, receiver, campaign in (
            ("hidden", "{}", "{rate: 1/min}", "domains: {d.test: 1}"),
            ("narrow", "{default: {connections: 1}}", "{latency: 1s}", "domains: {d.test: 1}"),
            ("nowhere", "{}", "{dns: {answer: servfail}}", "domains: {d.test: 1}"),
            ("tenant", "{}", "{}", "domains: {d.test: 1}, tenant: slow")):
        sim = simulation(f"shaping: {config}\ntenants: {{slow: {{message_rate: 1/min}}}}",
                         f"domains: {{d.test: {receiver}}}", f"parts: [{{messages: 500, {campaign}}}]")
        kinds[name] = sim.run(1.0).held_h
        assert kinds[name].keys() <= set(KINDS)
    most = {name: next(iter(held)) for name, held in kinds.items()}
    assert most == {"hidden": "adaptation", "narrow": "limit", "nowhere": "dns", "tenant": "tenant-rate"}
