"""From a host to its addresses, to the name of a site, and to a provider; hosts that are prohibited or skipped."""

from __future__ import annotations

from typing import Any

import pytest

from mta.config.loader import loads
from mta.config.schema import Config, Delivery
from mta.config.shaping import Shaping
from mta.delivery.ourselves import family_of
from mta.delivery.routing import Host, Route, RouteFailure, Router, site_name
from tests.delivery.routing_helpers import FAILS, USUAL, V4, V6, FakeResolver, failure, hosts, mx, router

# --- addresses -----------------------------------------------------------------------------------------------------


HOST = Host("x.net", 25, 10)


def addresses(records_a: Any = None, records_aaaa: Any = None, shaping: Shaping = USUAL, **delivery: Any) -> Any:
    table = {("x.net", "TXT"): [1], ("x.net", "A"): records_a, ("x.net", "AAAA"): records_aaaa}
    return router(table, Config(hostname="mta.example.net", delivery=Delivery(**delivery))).addresses(HOST, shaping)


def test_addresses_of_both_families_take_turns() -> None:
    """A family that does not work costs every second try, not all five; either may come first."""
    first = set()
    for _ in range(60):
        found = addresses([f"192.0.2.{n}" for n in range(1, 4)], [f"2001:db8::{n}" for n in range(1, 3)])
        families = [family for family, _ in found.addresses]
        assert families in ([V4, V6, V4, V6, V4], [V6, V4, V6, V4, V4])
        first.add(families[0])
    assert first == {V4, V6}


def test_addresses_are_drawn_anew_each_time() -> None:
    """The load is spread over the addresses of a host, also within one worker."""
    firsts = {addresses([f"192.0.2.{n}" for n in range(1, 5)]).addresses[0][1] for _ in range(200)}
    assert len(firsts) == 4


def test_one_failing_family_is_no_obstacle() -> None:
    """What is known is used: many servers of old fail at AAAA."""
    assert addresses(["192.0.2.1"], FAILS).addresses == [(V4, "192.0.2.1")]
    assert addresses(FAILS, ["2001:db8::1"]).addresses == [(V6, "2001:db8::1")]


def test_a_family_that_is_off_is_not_asked_for() -> None:
    """No question and no connection."""
    resolver = FakeResolver({("x.net", "A"): ["192.0.2.1"], ("x.net", "AAAA"): ["2001:db8::1"]})
    only = Shaping(families="ipv4")
    assert Router(Config(hostname="mta.example.net"), resolver).addresses(HOST, only).addresses == [(V4, "192.0.2.1")]
    assert resolver.asked == [("x.net", "A")]


@pytest.mark.parametrize("address", ["127.0.0.5", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"])
def test_loopback_needs_permission(address: str) -> None:
    """Loopback in all its forms is not connected to unless `delivery.allow_loopback` is on; the text says which."""
    records = (None, [address]) if ":" in address else ([address], None)
    found = addresses(*records)
    assert found.addresses == []
    assert found.failure == (
        f"MX host x.net resolves only to loopback addresses ({address}); delivery.allow_loopback is off")
    assert found.enhanced == "4.4.4"
    allowed = addresses(*records, allow_loopback=True)
    assert len(allowed.addresses) == 1
    assert allowed.failure == ""


def test_mapped_addresses_are_connected_to_as_ipv4() -> None:
    """RFC 4291 2.5.5.2: an IPv4 address in an AAAA record is one."""
    assert addresses(None, ["::ffff:192.0.2.1"]).addresses == [(V4, "192.0.2.1")]


@pytest.mark.parametrize("address", ["224.0.0.1", "255.255.255.255", "0.1.2.3", "ff02::1", "fe80::1"])
def test_addresses_of_no_host_are_skipped(address: str) -> None:
    """Multicast, broadcast, link-local: never a mail host, and said so."""
    ipv4, ipv6 = ([], [address]) if ":" in address else ([address], [])
    found = addresses(["192.0.2.1", *ipv4], ipv6)
    assert found.addresses == [(V4, "192.0.2.1")]
    assert found.skipped[0].startswith(f"{address}: ")
    alone = addresses(ipv4, ipv6)
    assert alone.failure.startswith(f"MX host x.net resolves only to unusable addresses ({address})")


def test_hosts_without_address() -> None:
    """Each case has its own text; all are temporary, a failing server is told apart from an absent record."""
    assert addresses().failure == "MX host x.net has no address"
    assert addresses().enhanced == "4.4.4"
    assert router({}).addresses(HOST, USUAL).failure == "MX host x.net does not exist"
    failing = addresses(FAILS)
    assert failing.failure == "the address of MX host x.net cannot be looked up: 192.0.2.53:53: SERVFAIL"
    assert (failing.enhanced, failing.expires) == ("4.4.3", 30.0)


def test_an_address_as_mx_host_is_tried() -> None:
    """Not allowed by RFC 1035, but seen, and it works with others; noted for the operator."""
    found = router({("a.org", "MX"): mx((10, "192.0.2.7"))})
    route = found.route("a.org")
    assert isinstance(route, Route)
    assert "192.0.2.7" in route.notes[0]
    assert found.addresses(route.hosts[0], USUAL).addresses == [(V4, "192.0.2.7")]


# --- sites ---------------------------------------------------------------------------------------------------------


def _hosts(*given: tuple[int, str]) -> list[Host]:
    return [Host(name, 25, preference) for preference, name in given]


def test_site_of_one_host_is_its_name() -> None:
    """Readable where it can be."""
    assert site_name(_hosts((10, "mx.example.org"))) == "mx.example.org"


def test_same_hosts_are_the_same_site() -> None:
    """Two domains at one provider share connections; how the preferences are numbered does not matter."""
    one = site_name(_hosts((1, "a.net"), (5, "b.net"), (5, "c.net")))
    assert one == site_name(_hosts((10, "a.net"), (20, "c.net"), (20, "b.net")))
    assert one.startswith("a.net+2~")


def test_other_hosts_or_another_order_are_another_site() -> None:
    """Limits must not be shared by what is served by others, or in another order."""
    sites = {
        site_name(_hosts((1, "a.net"), (2, "b.net"))), site_name(_hosts((1, "b.net"), (2, "a.net"))),
        site_name(_hosts((1, "a.net"), (1, "b.net"))), site_name(_hosts((1, "a.net"), (2, "c.net"))),
        site_name(_hosts((1, "a.net"))),
    }
    assert len(sites) == 5


@pytest.mark.parametrize(("text", "family"), [
    ("192.0.2.1", V4), ("2001:db8::1", V6), ("mx1", None), ("1.2.3", None), ("mx.example.org", None), ("::g", None),
    ("", None), ("a.b.c.1", None),
])
def test_addresses_are_told_from_names(text: str, family: int | None) -> None:
    """Strictly: what inet_pton does not take is a name."""
    assert family_of(text) == family


# --- shaping -------------------------------------------------------------------------------------------------------


def shaping_of(text: str) -> Config:
    return loads("hostname: mta.example.net\nproviders: none\nshaping:\n" + text)


BIG = """
  providers: {big: {match: {mx: "*.big.example", domains: own.example, networks: 192.0.2.0/24}, port: 26}}
  domains: {special.example: {port: 27}}
"""


def provider(table: dict[tuple[str, str], Any], domain: str = "a.org", text: str = BIG) -> tuple[str, int]:
    """Provider, and port of the first host."""
    found = router(table, shaping_of(text)).route(domain)
    assert isinstance(found, Route), found
    return found.provider, found.hosts[0].port


def test_the_route_knows_the_provider() -> None:
    """By the hosts of the best preference, all of which have to be its own; and so the port is known."""
    assert provider({("a.org", "MX"): mx((10, "mx1.big.example"), (20, "mx.spare.example"))}) == ("big", 26)
    assert provider({("a.org", "MX"): mx((10, "mx1.big.example"), (10, "mx.other.example"))}) == ("", 25)
    assert provider({("a.org", "MX"): mx((10, "mx.other.example"), (20, "mx1.big.example"))}) == ("", 25)
    assert provider({("own.example", "MX"): mx((10, "mx.other.example"))}, "own.example") == ("big", 26)
    assert provider({("special.example", "MX"): mx((10, "mx1.big.example"))}, "special.example") == ("big", 27)


def test_the_provider_by_addresses() -> None:
    """When names do not tell: all addresses of the best hosts, over both families, and of a literal."""
    hosts = {("a.org", "MX"): mx((10, "x.net")), ("x.net", "A"): ["192.0.2.1", "192.0.2.2"]}
    assert provider(hosts) == ("big", 26)
    assert provider({**hosts, ("x.net", "AAAA"): ["2001:db8::1"]}) == ("", 25)
    assert provider({("a.org", "A"): ["192.0.2.9"]}) == ("big", 26)
    assert provider({}, "[192.0.2.9]") == ("big", 26)
    assert provider({}, "[198.51.100.9]") == ("", 25)


def test_a_relay_is_judged_by_itself() -> None:
    """Who takes the mail counts, not for whom it is; its port is its own."""
    text = BIG + "routes: {own.example: {relay: 'h.test:2525'}, b.org: {relay: relay.big.example}}"
    assert provider({}, "own.example", text) == ("", 2525)
    assert provider({}, "b.org", text) == ("big", 25)


def test_no_question_is_asked_for_providers_known_by_name() -> None:
    """The usual route costs one MX question."""
    resolver = FakeResolver({("a.org", "MX"): mx((10, "mx1.big.example"))})
    Router(shaping_of(BIG), resolver).route("a.org")
    assert resolver.asked == [("a.org", "MX")]


def test_the_provider_of_a_domain_is_remembered() -> None:
    """For retries and expiry, as its route last said; None as long as there was none."""
    found = router({("a.org", "MX"): mx((10, "mx1.big.example")), ("b.org", "MX"): mx((10, "x.net"))}, shaping_of(BIG))
    assert found.provider_of("a.org") is None
    for domain in ("a.org", "b.org", "c.org"):
        found.route(domain)
    assert [found.provider_of(domain) for domain in ("a.org", "b.org", "c.org")] == ["big", "", None]


@pytest.mark.parametrize("prohibited", ["'*.parked.example'", "mx.parked.example", "192.0.2.0/24", "'2001:db8::1'"])
def test_prohibited_hosts_condemn_the_domain(prohibited: str) -> None:
    """One such host, of whatever preference, by name or address: the mail fails, and the text says why."""
    table = {("a.org", "MX"): mx((10, "x.net"), (20, "mx.parked.example")), ("x.net", "A"): ["198.51.100.1"],
             ("mx.parked.example", "A"): ["192.0.2.1"], ("mx.parked.example", "AAAA"): ["2001:db8::1"]}
    found = router(table, shaping_of(f"  default: {{prohibited_hosts: {prohibited}}}")).route("a.org")
    assert failure(found) == (True, 550, "5.4.4")
    assert isinstance(found, RouteFailure)
    assert found.text.startswith("MX host mx.parked.example")
    assert "prohibited" in found.text
    other = router(table, shaping_of("  default: {prohibited_hosts: [203.0.113.1, '*.other.example']}")).route("a.org")
    assert hosts(other) == [(10, "x.net"), (20, "mx.parked.example")]


def test_prohibited_addresses_without_mx() -> None:
    """The domain's own address, and a literal."""
    config = shaping_of("  default: {prohibited_hosts: 192.0.2.0/24}")
    assert failure(router({("a.org", "A"): ["192.0.2.1"]}, config).route("a.org")) == (True, 550, "5.4.4")
    assert failure(router({}, config).route("[192.0.2.1]")) == (True, 550, "5.4.4")


def test_skipped_hosts_are_passed_over() -> None:
    """By name without asking for its address, or those addresses alone; what is left is tried, else the mail waits."""
    skip = Shaping(skip_hosts=("slow.net", "*.bad.net", "192.0.2.0/24"))
    found = router({("x.net", "A"): ["192.0.2.1", "198.51.100.1"], ("slow.net", "A"): ["198.51.100.2"]})
    one = found.addresses(Host("x.net", 25, 10), skip)
    assert one.addresses == [(V4, "198.51.100.1")]
    assert one.skipped == ("192.0.2.1: of shaping's skip_hosts",)
    for name in ("slow.net", "mx.bad.net"):
        none = found.addresses(Host(name, 25, 10), skip)
        assert (none.addresses, none.failure) == ([], f"MX host {name} is passed over: of shaping's skip_hosts")
