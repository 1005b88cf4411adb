"""Hosts, domains, addresses, endpoints, networks: what is read, what is refused with which words, what is written."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.config import hosts
from mta.config.hosts import Endpoint

_ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@pytest.mark.parametrize(("text", "endpoint"), [
    ("127.0.0.1:25", Endpoint("127.0.0.1", 25)), ("127.0.0.1 :25", Endpoint("127.0.0.1", 25)),
    ("[::1]:25", Endpoint("::1", 25)),
    ("[2001:DB8:0::1]:25", Endpoint("2001:db8::1", 25)),
    ("Relay.Example.NET:2525", Endpoint("relay.example.net", 2525)),
    ("0.0.0.0:0", Endpoint("0.0.0.0", 0)), ("bücher.example:25", Endpoint("xn--bcher-kva.example", 25)),
])
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    """An endpoint is host:port, IPv6 in brackets; addresses and names come out in canonical form."""
    assert Endpoint.parse(text) == endpoint


def test_default_port() -> None:
    """Where a port is usual it may be left out."""
    assert Endpoint.parse("127.0.0.1", 53) == Endpoint("127.0.0.1", 53)
    assert Endpoint.parse("[::1]", 53) == Endpoint("::1", 53)
    assert Endpoint.parse("relay.example.net", 25) == Endpoint("relay.example.net", 25)


@pytest.mark.parametrize(("text", "message"), [
    ("127.0.0.1", "a port is missing, as in 127.0.0.1:25"), ("::1", "IPv6 address is written in brackets"),
    ("::1:25", "IPv6 address is written in brackets"), ("[::1", "not host:port"), ("[::1]25", "not host:port"),
    ("127.0.0:25", "no address"), (":25", "the host is missing"), ("*:25", "all addresses are written 0.0.0.0:25"),
    ("a:65536", "no port"), ("a:-1", "no port"), ("a:x", "no port"), ("a b:1", "no label"),
    ("[fe80::1%eth0]:1", "not an IPv6"),
])
def test_refused_endpoints(text: str, message: str) -> None:
    """What is wrong with an endpoint is said."""
    with pytest.raises(ValueError, match=message):
        Endpoint.parse(text)


@pytest.mark.parametrize(("text", "network"), [
    ("10.0.0.0/8", "10.0.0.0/8"), ("192.0.2.1", "192.0.2.1/32"), ("2001:DB8::/32", "2001:db8::/32"), ("::1", "::1/128"),
])
def test_networks(text: str, network: str) -> None:
    """One address is a network of one."""
    assert hosts.parse_network(text) == ipaddress.ip_network(network)


@pytest.mark.parametrize(("text", "message"), [
    ("10.1.2.3/8", "10.1.2.3 is not where a /8 begins: write 10.0.0.0/8 for that network, or 10.1.2.3 for the one"),
    ("10.0.0.0/33", "at most 32"), ("10.0.0.0/255.0.0.0", "a number of bits, as in 10.0.0.0/24"),
    ("10.0.0.0/", "a number of bits"), ("010.0.0.0/8", "not a network"), ("10.0.0/8", "not a network"),
    ("x", "not a network"),
    ("fe80::1%eth0", "not a network"),
])
def test_refused_networks(text: str, message: str) -> None:
    """Host bits that are set are explained: the reader cannot know whether the network or the host was meant."""
    with pytest.raises(ValueError, match=message):
        hosts.parse_network(text)


@pytest.mark.parametrize(("text", "domain"), [
    ("EXAMPLE.org", "example.org"), ("example.org.", "example.org"), ("bücher.example", "xn--bcher-kva.example"),
    ("Bücher.Example", "xn--bcher-kva.example"), ("faß.de", "xn--fa-hia.de"), ("localhost", "localhost"),
    ("_dmarc.example.org", "_dmarc.example.org"), ("[192.0.2.1]", "[192.0.2.1]"),
    ("[IPv6:2001:DB8::1]", "[ipv6:2001:db8::1]"), ("[IPV6:2001:db8:0:0::0:1]", "[ipv6:2001:db8::1]"),
    ("[2001:db8::1]", "[ipv6:2001:db8::1]"), ("例え。jp", "xn--r8jz45g.jp"),
])
def test_domains(text: str, domain: str) -> None:
    """A domain is compared in lower case and A-labels, so that it is written in that form once and for all."""
    assert hosts.parse_domain(text) == domain
    assert hosts.parse_domain(domain) == domain


@pytest.mark.parametrize(("text", "message"), [
    ("", "empty"), (".", "empty"), ("a..b", "two dots"), ("*.example.org", "no wildcards"),
    ("user@example.org", "what follows the @"),
    ("192.0.2.1", r"in brackets, \"\[192.0.2.1\]\""), ("-a.org", "no label"), ("a b", "no label"),
    ("a" * 64 + ".org", "63"),
    (".".join(["abcdefgh"] * 40), "253"), ("xn--" + "ü", "internationalised"), ("[1.2.3]", "not an address literal"),
    ("[IPv6:1.2.3.4]", "not an IPv6"), ("a\nb", "no label"),
])
def test_refused_domains(text: str, message: str) -> None:
    """Addresses, patterns and mail addresses are no domains."""
    with pytest.raises(ValueError, match=message):
        hosts.parse_domain(text)


def test_invisible_characters_in_domains() -> None:
    """UTS 46 drops invisible characters, so that two names that look the same are the same."""
    assert hosts.parse_domain("exa\u200bmple.org") == "example.org"


def test_route_keys() -> None:
    """The one pattern is `*`."""
    assert hosts.parse_route_key("*") == "*"
    assert hosts.parse_route_key("Example.ORG") == "example.org"
    with pytest.raises(ValueError, match="there is no other wildcard"):
        hosts.parse_route_key("*.example.org")


def test_host_names() -> None:
    """Our own names are fully qualified names, no addresses."""
    assert hosts.parse_host_name("MTA1.Example.net.") == "mta1.example.net"
    with pytest.raises(ValueError, match=r"fully qualified, as in mta1.example.net"):
        hosts.parse_host_name("mta1")
    with pytest.raises(ValueError, match="no address"):
        hosts.parse_host_name("192.0.2.1")


@given(_ADDRESSES.map(str), st.integers(0, 65_535))
def test_endpoints_round_trip(host: str, port: int) -> None:
    """An endpoint that is written is read as the same, IPv6 too."""
    assert Endpoint.parse(str(Endpoint(host, port))) == Endpoint(host, port)


@given(_ADDRESSES, st.integers(0, 128))
def test_networks_round_trip(address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int) -> None:
    """A network that is written is read as the same."""
    network = ipaddress.ip_network((address, min(length, address.max_prefixlen)), strict=False)
    assert hosts.parse_network(hosts.format_network(network)) == network


@pytest.mark.parametrize("parse", [hosts.parse_name, hosts.parse_host_name, hosts.parse_domain])
def test_no_name_is_an_address(parse: Callable[[str], str]) -> None:
    """Not with other dots either, of which IDNA makes ordinary ones."""
    with pytest.raises(ValueError, match="address"):
        parse("192.0.2\u30021")
