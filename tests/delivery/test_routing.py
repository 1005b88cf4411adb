"""From domains to hosts and addresses, by every rule; the answers of DNS are the test's own."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from mta.config.loader import loads
from mta.config.schema import Config, Delivery, Listener, ShapingRules
from mta.config.schema import Route as RouteRule
from mta.config.shaping import DefaultLayer, Shaping
from mta.config.units import Endpoint
from mta.delivery.dns_answer import Answer
from mta.delivery.dns_wire import MailHost
from mta.delivery.ourselves import family_of, is_local_address
from mta.delivery.routing import FOREVER, Host, Route, RouteFailure, Router, site_name

OURS = "198.51.100.25"
V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)
USUAL = Shaping()


class FakeResolver:
    """Answers from a table; what is not in it has no such name. `FAILS` as records: the servers failed."""

    def __init__(self, table: dict[tuple[str, str], Any]) -> None:
        self.table = table
        self.asked: list[tuple[str, str]] = []
        self.expires: dict[tuple[str, str], float] = {}
        self.unproven: set[tuple[str, str]] = set()
        self.authentic: set[tuple[str, str]] = set()
        self.shortage = ""

    def query(self, name: str, record_type: str) -> Any:
        self.asked.append((name, record_type))
        records = self.table.get((name, record_type))
        if records is FAILS:
            return Answer("failure", (), 30.0, "192.0.2.53:53: SERVFAIL")
        if records:
            return Answer("ok", tuple(records), self.expires.get((name, record_type), 300.0),
                          authentic=(name, record_type) in self.authentic)
        known = any(name == other for other, _ in self.table)
        proven = (name, record_type) not in self.unproven
        return Answer("nodata" if known else "nxdomain", (), 60.0, proven=proven,
                      authentic=(name, record_type) in self.authentic)

    def prefetch(self, name: str, record_type: str) -> None:
        """Nothing: the table has it all."""


FAILS = object()


def mx(*hosts: tuple[int, str]) -> list[MailHost]:
    return [MailHost(*host) for host in hosts]


def router(table: dict[tuple[str, str], Any], config: Config | None = None,
           is_local: Callable[[str], bool] = lambda address: address == OURS) -> Router:
    return Router(config or Config(hostname="mta.example.net"), FakeResolver(table), is_local)


def shaped(**options: Any) -> Config:
    """A configuration with these options of shaping for all."""
    return Config(hostname="mta.example.net", shaping=ShapingRules(default=DefaultLayer.of(**options)))


def listening(*endpoints: str, port: int = 25, **delivery: Any) -> Config:
    """A configuration that listens, and delivers to `port`."""
    listeners = tuple(Listener(smtp=Endpoint.parse(text)) for text in endpoints)
    shaping = ShapingRules(default=DefaultLayer.of(port=port))
    return Config(hostname="mta.example.net", listeners=listeners, delivery=Delivery(**delivery), shaping=shaping)


def hosts(found: Route | RouteFailure) -> list[tuple[int, str]]:
    assert isinstance(found, Route), found
    return [(host.preference, host.name) for host in found.hosts]


def failure(found: Route | RouteFailure) -> tuple[bool, int, str]:
    assert isinstance(found, RouteFailure), found
    return found.permanent, found.code, found.enhanced


# --- by MX ---------------------------------------------------------------------------------------------------------


def test_mx_hosts_by_preference() -> None:
    """The hosts of the MX records in their order, on the port for delivery, for as long as DNS says."""
    found = router({("a.org", "MX"): mx((10, "x.net"), (20, "y.net"))}).route("a.org")
    assert isinstance(found, Route)
    assert found.hosts == (Host("x.net", 25, 10), Host("y.net", 25, 20))
    assert (found.expires, found.fixed, found.notes) == (300.0, False, ())


def test_domain_is_looked_up_as_dns_knows_it() -> None:
    """Upper case, a final dot and U-labels lead to the A-label (RFC 5891 4); no search list is applied."""
    table = {("xn--bcher-kva.example", "MX"): mx((10, "x.net")), ("a.org", "MX"): mx((10, "y.net"))}
    assert hosts(router(table).route("bücher.example")) == [(10, "x.net")]
    assert hosts(router(table).route("BÜCHER.example")) == [(10, "x.net")]
    assert hosts(router(table).route("A.org.")) == [(10, "y.net")]


def test_no_mx_means_the_address_of_the_domain() -> None:
    """RFC 5321 5.1: the implicit MX, of preference 0."""
    found = router({("a.org", "A"): ["192.0.2.1"]}).route("a.org")
    assert hosts(found) == [(0, "a.org")]
    assert isinstance(found, Route)
    assert found.site == "a.org"
    assert found.expires == 60.0  # the absence of MX records holds no longer
    assert hosts(router({("a.org", "AAAA"): ["2001:db8::1"]}).route("a.org")) == [(0, "a.org")]


def test_a_route_is_believed_as_long_as_all_that_it_rests_on() -> None:
    """The address of a domain without MX, and the addresses that showed who is us, expire earlier than the rest."""
    resolver = FakeResolver({("a.org", "A"): ["192.0.2.1"]})
    resolver.expires[("a.org", "A")] = 20.0
    found = Router(Config(hostname="mta.example.net"), resolver).route("a.org")
    assert found.expires == 20.0
    resolver = FakeResolver(THREE)
    resolver.expires[("best.net", "A")] = 20.0
    found = Router(listening("0.0.0.0:25"), resolver, lambda address: address == OURS).route("a.org")
    assert found.expires == 20.0


def test_no_mx_and_no_address_is_permanent() -> None:
    """The domain exists and has no way in: 5.4.4."""
    found = router({("a.org", "TXT"): ["v=spf1 -all"]}).route("a.org")
    assert failure(found) == (True, 550, "5.4.4")
    assert isinstance(found, RouteFailure)
    assert found.text == "domain a.org has neither MX nor address records"


@pytest.mark.parametrize("unproven", ["MX", "A", "AAAA"])
def test_empty_answers_without_proof_are_no_bounce(unproven: str) -> None:
    """Without an SOA (RFC 2308 2.2) an empty answer may be a resolver's own doing: the mail waits, and says so."""
    resolver = FakeResolver({("a.org", "TXT"): [1]})
    resolver.unproven = {("a.org", unproven)}
    found = Router(Config(hostname="mta.example.net"), resolver, lambda address: False).route("a.org")
    assert failure(found) == (False, 451, "4.4.4")
    assert isinstance(found, RouteFailure)
    assert "the SOA that would prove it is not in its answer" in found.text


def test_no_mx_and_a_failing_address_waits() -> None:
    """A failing lookup of the address is no absence of it."""
    found = router({("a.org", "A"): FAILS}).route("a.org")
    assert failure(found) == (False, 451, "4.4.3")
    assert failure(router({("a.org", "AAAA"): FAILS, ("a.org", "TXT"): [1]}).route("a.org")) == (False, 451, "4.4.3")


def test_no_mx_and_only_a_family_that_is_off_waits() -> None:
    """That we do not speak IPv6 is no fault of the domain: its mail waits, with a text for the operator."""
    config = shaped(families="ipv4")
    found = router({("a.org", "AAAA"): ["2001:db8::1"]}, config).route("a.org")
    assert failure(found) == (False, 451, "4.4.4")
    assert isinstance(found, RouteFailure)
    assert found.text == "MX host a.org has no address (shaping's families is ipv4)"


def test_unknown_domain_is_permanent() -> None:
    """NXDOMAIN: 5.1.2."""
    found = router({}).route("missing.org")
    assert failure(found) == (True, 550, "5.1.2")
    assert isinstance(found, RouteFailure)
    assert found.text == "domain missing.org does not exist"
    assert found.expires == 60.0


def test_failing_mx_waits_and_is_no_absence_of_mx() -> None:
    """RFC 5321 5.1: after an error of the MX lookup the address record is not used, the mail waits."""
    found = router({("a.org", "MX"): FAILS, ("a.org", "A"): ["192.0.2.1"]}).route("a.org")
    assert failure(found) == (False, 451, "4.4.3")
    assert isinstance(found, RouteFailure)
    assert found.text == "MX of a.org cannot be looked up: 192.0.2.53:53: SERVFAIL"
    assert found.expires == 30.0


def test_null_mx_is_permanent() -> None:
    """RFC 7505: the domain takes no mail; its address is not tried."""
    found = router({("a.org", "MX"): mx((0, ".")), ("a.org", "A"): ["192.0.2.1"]}).route("a.org")
    assert failure(found) == (True, 556, "5.1.10")
    assert failure(router({("a.org", "MX"): mx((10, "."))}).route("a.org")) == (True, 556, "5.1.10")


def test_null_mx_beside_others_is_ignored() -> None:
    """RFC 7505 3 forbids the mixture; the hosts that are named get the mail."""
    found = router({("a.org", "MX"): mx((0, "."), (10, "x.net"))}).route("a.org")
    assert hosts(found) == [(10, "x.net")]
    assert isinstance(found, Route)
    assert "null MX" in found.notes[0]


@pytest.mark.parametrize(("domain", "why"), [
    ("x" * 64 + ".org", "at most 63"), ("a..org", "empty label"), ("192.0.2.1", "in brackets"), ("", "empty"),
    ("a b.org", "no label"), ("[not.an.address]", "address literal"), ("[192.0.2.300]", "address literal"),
    (".".join(["abcdefgh"] * 29), "253"), ("-a.org", "no label"),
])
def test_impossible_domains_are_permanent_without_a_question(domain: str, why: str) -> None:
    """What cannot be a domain is not asked for: numeric names, too long ones, broken literals."""
    resolver = FakeResolver({})
    found = Router(Config(hostname="mta.example.net"), resolver).route(domain)
    assert failure(found) == (True, 550, "5.1.2")
    assert isinstance(found, RouteFailure)
    assert why in found.text
    assert resolver.asked == []


# --- ourselves among the MX hosts ----------------------------------------------------------------------------------

THREE = {
    ("a.org", "MX"): mx((10, "best.net"), (20, "us.net"), (20, "equal.net"), (30, "worse.net")),
    ("best.net", "A"): ["192.0.2.1"], ("us.net", "A"): ["192.0.2.2", OURS], ("equal.net", "A"): ["192.0.2.3"],
    ("worse.net", "A"): ["192.0.2.4"],
}


@pytest.mark.parametrize("listener", [f"{OURS}:25", "0.0.0.0:25", "[::]:25"])
def test_ourselves_and_no_better_hosts_are_left_out(listener: str) -> None:
    """RFC 5321 5.1: only hosts that are preferred to us are tried, or mail goes in circles."""
    found = router(THREE, listening(listener)).route("a.org")
    assert hosts(found) == [(10, "best.net")]
    assert isinstance(found, Route)
    assert found.site == "best.net"
    assert found.notes == ("MX host us.net is this MTA: it is skipped, and those that are no better",)


def test_best_host_is_us() -> None:
    """Nothing better than us is left: the mail would come back, 5.4.6."""
    table = {("a.org", "MX"): mx((10, "us.net"), (20, "x.net")), ("us.net", "A"): [OURS], ("x.net", "A"): ["192.0.2.1"]}
    found = router(table, listening("0.0.0.0:25")).route("a.org")
    assert failure(found) == (True, 550, "5.4.6")
    assert isinstance(found, RouteFailure)
    assert found.text == "mail for a.org loops back to us: its best MX host us.net is this MTA"


def test_domain_without_mx_at_our_address_is_a_loop() -> None:
    """The implicit MX is compared, too."""
    assert failure(router({("a.org", "A"): [OURS]}, listening("0.0.0.0:25")).route("a.org")) == (True, 550, "5.4.6")


def test_our_name_is_us_behind_nat() -> None:
    """Where DNS shows the address of a NAT, the name of the host tells."""
    table = {("a.org", "MX"): mx((10, "mta.example.net")), ("mta.example.net", "A"): ["203.0.113.1"]}
    assert failure(router(table, listening("10.0.0.5:25")).route("a.org")) == (True, 550, "5.4.6")


@pytest.mark.parametrize("config", [
    listening(f"{OURS}:2525"), listening("127.0.0.1:25"), listening("0.0.0.0:2525"), listening(),
    listening(f"{OURS}:25", port=2500),
])
def test_another_server_at_our_address_is_not_us(config: Config) -> None:
    """Only who listens on the port for delivery can be sent to: an inbound MTA on the same machine gets its mail."""
    table = {("a.org", "MX"): mx((10, "mta.example.net")), ("mta.example.net", "A"): [OURS]}
    assert hosts(router(table, config).route("a.org")) == [(10, "mta.example.net")]


def test_hosts_are_not_resolved_for_the_route_when_none_can_be_us() -> None:
    """A pure sender asks for the addresses of those hosts only that it connects to."""
    resolver = FakeResolver(THREE)
    Router(listening("127.0.0.1:2525"), resolver).route("a.org")
    assert resolver.asked == [("a.org", "MX")]


def test_hosts_that_may_be_better_than_us_stay_when_they_fail() -> None:
    """A better host that does not resolve now is no loop: it stays, and the mail waits for it."""
    table = {**THREE, ("best.net", "A"): FAILS, ("best.net", "AAAA"): FAILS}
    found = router(table, listening("0.0.0.0:25"))
    assert hosts(found.route("a.org")) == [(10, "best.net")]
    assert found.addresses(Host("best.net", 25, 10), USUAL).enhanced == "4.4.3"


def test_loopback_with_our_port_is_us() -> None:
    """Where loopback is believed, a listener on all addresses is reached by any of it; one on 127.0.0.1 is not."""
    table = {("a.org", "MX"): mx((10, "x.net")), ("x.net", "A"): ["127.0.0.5"]}
    on_all = listening("0.0.0.0:2525", port=2525, allow_loopback=True)
    assert failure(router(table, on_all).route("a.org")) == (True, 550, "5.4.6")
    on_one = listening("127.0.0.1:2525", port=2525, allow_loopback=True)
    assert hosts(router(table, on_one).route("a.org")) == [(10, "x.net")]


def test_the_kernel_knows_our_addresses() -> None:
    """By default the kernel is asked: its own address is local, a documentation address is not."""
    assert is_local_address("127.0.0.1")
    assert not is_local_address("192.0.2.1")
    assert not is_local_address("mx.example.org")


@pytest.mark.parametrize("listed", [[(10, "mx.example.net")], []])
def test_who_named_the_hosts(listed: list[tuple[int, str]]) -> None:
    """Hosts are authentic when the answer about the domain's MX is, also when it says that there are none; their
    addresses are another matter, about which the certificate tells (RFC 8689 4.2.1)."""
    resolver = FakeResolver({("a.org", "MX"): mx(*listed), ("a.org", "A"): ["192.0.2.1"],
                             ("mx.example.net", "A"): ["192.0.2.1"]})
    subject = Router(Config(hostname="mta.example.net"), resolver, lambda address: False)
    assert subject.route("a.org").authentic is False  # type: ignore[union-attr]
    resolver.authentic = {("mx.example.net", "A"), ("a.org", "A")}
    assert subject.route("a.org").authentic is False  # type: ignore[union-attr]
    resolver.authentic = {("a.org", "MX")}
    assert subject.route("a.org").authentic is True  # type: ignore[union-attr]


def test_nobody_is_asked_for_a_relay_or_a_literal() -> None:
    """They are what the configuration or the address itself says."""
    rule = RouteRule(relay=(Endpoint("relay.net", 25),))
    config = Config(hostname="mta.example.net", routes={"a.org": rule})
    subject = Router(config, FakeResolver({}), lambda address: False)
    assert subject.route("a.org").authentic is True  # type: ignore[union-attr]
    assert subject.route("[192.0.2.1]").authentic is True  # type: ignore[union-attr]


# --- relays and literals -------------------------------------------------------------------------------------------


def test_relays_are_tried_in_their_order() -> None:
    """A route names hosts; MX is not asked, loopback is no question, and the order is as written."""
    rule = RouteRule(relay=(Endpoint("127.0.0.1", 2626), Endpoint("relay.net", 25)))
    resolver = FakeResolver({})
    found = Router(Config(hostname="mta.example.net", routes={"a.org": rule}), resolver)
    route = found.route("A.org")
    assert isinstance(route, Route)
    assert route.hosts == (Host("127.0.0.1", 2626, 0, fixed=True), Host("relay.net", 25, 1, fixed=True))
    assert (route.site, route.expires, route.fixed) == ("relay:127.0.0.1:2626,relay.net:25", FOREVER, True)
    assert found.addresses(route.hosts[0], USUAL).addresses == [(V4, "127.0.0.1")]
    assert resolver.asked == []


def test_star_is_for_all_other_domains() -> None:
    """`*` holds where no entry does; an entry `mx` brings a domain back to its MX, literals are domains like others."""
    rules = {"*": RouteRule(relay=(Endpoint("192.0.2.9", 25),)), "a.org": RouteRule()}
    config = Config(hostname="mta.example.net", routes=rules)
    table = {("a.org", "MX"): mx((10, "x.net"))}
    assert hosts(router(table, config).route("a.org")) == [(10, "x.net")]
    assert hosts(router(table, config).route("b.org")) == [(0, "192.0.2.9")]
    assert hosts(router(table, config).route("[203.0.113.1]")) == [(0, "192.0.2.9")]


def test_a_relay_that_is_us_is_left_out() -> None:
    """Our own configuration sends mail to ourselves: it waits (4.3.5) instead of being returned for our mistake."""
    config = Config(
        hostname="mta.example.net", listeners=(Listener(smtp=Endpoint("127.0.0.1", 2525)),),
        routes={"a.org": RouteRule(relay=(Endpoint("127.0.0.1", 2525), Endpoint("192.0.2.9", 25))),
                "b.org": RouteRule(relay=(Endpoint("127.0.0.1", 2525),))},
    )
    found = router({}, config).route("a.org")
    assert hosts(found) == [(1, "192.0.2.9")]
    assert isinstance(found, Route)
    assert found.notes == ("relay 127.0.0.1:2525 is skipped: it is this MTA itself",)
    assert failure(router({}, config).route("b.org")) == (False, 451, "4.3.5")


def test_relay_names_that_fail_only_delay() -> None:
    """A relay whose name does not exist is our mistake, too."""
    found = router({}).addresses(Host("relay.net", 25, 0, fixed=True), USUAL)
    assert (found.addresses, found.failure, found.enhanced) == ([], "relay relay.net does not exist", "4.4.4")


def test_address_literals() -> None:
    """RFC 5321 4.1.3: the address itself is the host, in either family."""
    found = router({}).route("[192.0.2.1]")
    assert hosts(found) == [(0, "192.0.2.1")]
    assert isinstance(found, Route)
    assert found.site == "[192.0.2.1]"
    assert hosts(router({}).route("[IPv6:2001:DB8::1]")) == [(0, "2001:db8::1")]


def test_address_literals_that_lead_nowhere() -> None:
    """Loopback waits with a reason, our own listener is a loop, a family that is off waits."""
    found = router({}).route("[127.0.0.1]")
    assert failure(found) == (False, 451, "4.4.4")
    assert isinstance(found, RouteFailure)
    assert found.text == "address 127.0.0.1 is not connected to: loopback, and delivery.allow_loopback is off"
    assert failure(router({}, listening(f"{OURS}:25")).route(f"[{OURS}]")) == (True, 550, "5.4.6")
    off = shaped(families="ipv4")
    assert failure(router({}, off).route("[IPv6:2001:db8::1]")) == (False, 451, "4.4.4")


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
