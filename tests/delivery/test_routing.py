"""From a domain to its hosts: by MX, relays, address literals; ourselves among them."""

from __future__ import annotations

import pytest

from mta.config.hosts import Endpoint
from mta.config.schema import Config, Listener
from mta.config.schema import Route as RouteRule
from mta.delivery.ourselves import is_local_address
from mta.delivery.routing import FOREVER, Host, Route, RouteFailure, Router
from tests.delivery.routing_helpers import (
    FAILS,
    OURS,
    USUAL,
    V4,
    FakeResolver,
    failure,
    hosts,
    listening,
    mx,
    router,
    shaped,
)

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
    assert subject.route("a.org").authentic is False
    resolver.authentic = {("mx.example.net", "A"), ("a.org", "A")}
    assert subject.route("a.org").authentic is False
    resolver.authentic = {("a.org", "MX")}
    assert subject.route("a.org").authentic is True


def test_nobody_is_asked_for_a_relay_or_a_literal() -> None:
    """They are what the configuration or the address itself says."""
    rule = RouteRule(relay=(Endpoint("relay.net", 25),))
    config = Config(hostname="mta.example.net", routes={"a.org": rule})
    subject = Router(config, FakeResolver({}), lambda address: False)
    assert subject.route("a.org").authentic is True
    assert subject.route("[192.0.2.1]").authentic is True


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
    found = router({}).route("[IPv6:2001:DB8::1]")
    assert hosts(found) == [(0, "2001:db8::1")]
    assert isinstance(found, Route)
    assert found.site == "[ipv6:2001:db8::1]"


def test_address_literals_that_lead_nowhere() -> None:
    """Loopback waits with a reason, our own listener is a loop, a family that is off waits."""
    found = router({}).route("[127.0.0.1]")
    assert failure(found) == (False, 451, "4.4.4")
    assert isinstance(found, RouteFailure)
    assert found.text == "address 127.0.0.1 is not connected to: loopback, and delivery.allow_loopback is off"
    assert failure(router({}, listening(f"{OURS}:25")).route(f"[{OURS}]")) == (True, 550, "5.4.6")
    off = shaped(families="ipv4")
    assert failure(router({}, off).route("[IPv6:2001:db8::1]")) == (False, 451, "4.4.4")


def test_what_is_at_hand() -> None:
    """Relays, literals, names that cannot be, and what was asked for: nobody is asked for their hosts."""
    table = {("a.org", "MX"): mx((10, "x.net"))}
    mine = router(table)
    assert [mine.is_at_hand(name) for name in ("a.org", "[192.0.2.1]", "a..b")] == [False, True, True]
    mine.route("a.org")
    assert [mine.is_at_hand(name) for name in ("A.org", "b.org")] == [True, False]
