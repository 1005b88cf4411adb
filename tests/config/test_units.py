"""Units: what is read, what is refused with which words, and that what is written is read as the same."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mta.config import units
from mta.config.units import Endpoint, Rate


@pytest.mark.parametrize(("text", "seconds"), [
    ("0", 0), ("0s", 0), ("250ms", 0.25), ("30s", 30), ("1.5s", 1.5), ("10m", 600), ("4h", 14_400), ("5d", 432_000),
    ("2w", 1_209_600), ("1h30m", 5400), ("1h 30m", 5400), ("1d12h30m15s", 131_415), (" 5d ", 432_000),
])
def test_durations(text: str, seconds: float) -> None:
    """A duration is one number with a unit, or several from large to small."""
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "message"), [
    ("300", "a duration needs a unit, as in 300s or 300m"),
    ("12:30", "a duration is written with units, as in 12h30m or 12m30s"),
    ("1:02:03", "a duration is written with units, as in 1h02m03s"),
    ("5D", "units of time are lower case, as in 5d"),
    ("30m1h", "from large to small"), ("1m1m", "each once"), ("0.5ms", "whole number of milliseconds"),
    ("40000d", "at most 36525d"), ("-5s", "not a duration such as"), ("", "not a duration"),
    ("5 min", "not a duration"),
    ("1e3s", "not a duration"), ("٣s", "not a duration"), ("nan", "not a duration"),
    ("9" * 5000 + "s", "not a duration"),
])
def test_refused_durations(text: str, message: str) -> None:
    """A number without unit, a clock time and everything odd is refused, with what was probably meant."""
    with pytest.raises(ValueError, match=message):
        units.parse_duration(text)


@pytest.mark.parametrize(("text", "size"), [
    ("0", 0), ("512B", 512), ("64KB", 64_000), ("64kb", 64_000), ("25MB", 25_000_000), ("25 MB", 25_000_000),
    ("1.5GB", 1_500_000_000), ("2GiB", 2 * 2**30), ("1TB", 10**12),
])
def test_sizes(text: str, size: int) -> None:
    """KB is a thousand bytes and KiB is 1024; case does not matter."""
    assert units.parse_size(text) == size


@pytest.mark.parametrize(("text", "message"), [
    ("25", "a size needs a unit, as in 25B or 25MB"), ("25M", "'m' is no unit of size, write 25MB or 25MiB"),
    ("25X", "no unit of size"), ("0.5B", "whole number of bytes"), ("-1MB", "not a size"), ("", "not a size"),
    ("9999999999TB", "at most"), ("1" * 5000 + "B", "not a size"),
])
def test_refused_sizes(text: str, message: str) -> None:
    """A number without unit, or with half a unit, is refused, with what was probably meant."""
    with pytest.raises(ValueError, match=message):
        units.parse_size(text)


@pytest.mark.parametrize(("text", "rate"), [
    ("100/s", Rate(100, 1)), ("50/min", Rate(50, 60)), ("50/m", Rate(50, 60)), ("1000/h", Rate(1000, 3600)),
    ("5000/d", Rate(5000, 86_400)), ("100/30s", Rate(100, 30)), ("3 / 5m", Rate(3, 300)),
    ("0.5/s", Rate(1, 2)), ("2.5/min", Rate(5, 120)), ("1,000/hr", Rate(1000, 3600)),
    ("10_000/d", Rate(10_000, 86_400)),
    ("100/min, burst 20", Rate(100, 60, 20)), ("1/s,burst 1,000", Rate(1, 1, 1000)),
])
def test_rates(text: str, rate: Rate) -> None:
    """A rate is a count per second, minute, hour or day, or per any duration; whole numbers, and a burst if wanted."""
    assert Rate.parse(text) == rate
    assert rate.per_second == rate.count / rate.per_s


@pytest.mark.parametrize("text", [
    "", "100", "0/s", "-1/s", "5/0s", "5/x", "/s", "5/s/s", "1,00/s", "1.5.5/s", "burst 5", "5/s, burst 0",
    "5/s burst 5", "0.5/h, burst", "1/36526d", "0.0/s",
])
def test_refused_rates(text: str) -> None:
    """A rate has a count above zero and a period above zero."""
    with pytest.raises(ValueError, match=r".+"):
        units.parse_rate(text)


@pytest.mark.parametrize(("text", "endpoint"), [
    ("127.0.0.1:25", Endpoint("127.0.0.1", 25)), ("[::1]:25", Endpoint("::1", 25)),
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
    assert units.parse_network(text) == ipaddress.ip_network(network)


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
        units.parse_network(text)


@pytest.mark.parametrize(("text", "domain"), [
    ("EXAMPLE.org", "example.org"), ("example.org.", "example.org"), ("bücher.example", "xn--bcher-kva.example"),
    ("Bücher.Example", "xn--bcher-kva.example"), ("faß.de", "xn--fa-hia.de"), ("localhost", "localhost"),
    ("_dmarc.example.org", "_dmarc.example.org"), ("[192.0.2.1]", "[192.0.2.1]"),
    ("[IPv6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
    ("[2001:db8::1]", "[IPv6:2001:db8::1]"), ("例え。jp", "xn--r8jz45g.jp"),
])
def test_domains(text: str, domain: str) -> None:
    """A domain is compared in lower case and A-labels, so that it is written in that form once and for all."""
    assert units.parse_domain(text) == domain
    assert units.parse_domain(domain) == domain


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
        units.parse_domain(text)


def test_invisible_characters_in_domains() -> None:
    """UTS 46 drops invisible characters, so that two names that look the same are the same."""
    assert units.parse_domain("exa\u200bmple.org") == "example.org"


def test_route_keys() -> None:
    """The one pattern is `*`."""
    assert units.parse_route_key("*") == "*"
    assert units.parse_route_key("Example.ORG") == "example.org"
    with pytest.raises(ValueError, match="there is no other wildcard"):
        units.parse_route_key("*.example.org")


def test_host_names() -> None:
    """Our own names are fully qualified names, no addresses."""
    assert units.parse_host_name("MTA1.Example.net.") == "mta1.example.net"
    with pytest.raises(ValueError, match=r"fully qualified, as in mta1.example.net"):
        units.parse_host_name("mta1")
    with pytest.raises(ValueError, match="no address"):
        units.parse_host_name("192.0.2.1")


_DURATIONS = st.integers(0, 36_525 * 86_400_000).map(lambda ms: ms / 1000)
_ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(_DURATIONS)
def test_durations_round_trip(duration: float) -> None:
    """A duration that is written is read as exactly the same number."""
    assert units.parse_duration(units.format_duration(duration)) == duration


@given(st.one_of(st.integers(0, 2**62), st.integers(0, 4000).map(lambda n: n * 2**20)))
def test_sizes_round_trip(size: int) -> None:
    """A size that is written is read as the same number."""
    assert units.parse_size(units.format_size(size)) == size


@given(st.integers(1, 10**12 - 1), _DURATIONS.filter(bool))
def test_rates_round_trip(count: int, period: float) -> None:
    """A rate that is written is read as the same."""
    assert Rate.parse(str(Rate(count, period))) == Rate(count, period)


@given(_ADDRESSES.map(str), st.integers(0, 65_535))
def test_endpoints_round_trip(host: str, port: int) -> None:
    """An endpoint that is written is read as the same, IPv6 too."""
    assert Endpoint.parse(str(Endpoint(host, port))) == Endpoint(host, port)


@given(_ADDRESSES, st.integers(0, 128))
def test_networks_round_trip(address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int) -> None:
    """A network that is written is read as the same."""
    network = ipaddress.ip_network((address, min(length, address.max_prefixlen)), strict=False)
    assert units.parse_network(units.format_network(network)) == network


@pytest.mark.parametrize("parse", [units.parse_name, units.parse_host_name, units.parse_domain])
def test_no_name_is_an_address(parse: Callable[[str], str]) -> None:
    """Not with other dots either, of which IDNA makes ordinary ones."""
    with pytest.raises(ValueError, match="address"):
        parse("192.0.2\u30021")


@given(st.text(max_size=80))
@example("0" * 30 + "\x1f" * 18 + "\U0001004e" * 13)  # ten characters each where a report shows them
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes a reader raise anything but ValueError, and what it says fits into one line of a report."""
    for kind in units.KINDS.values():
        value, refusal = None, ""
        try:
            value = kind.parse(text)
        except ValueError as error:
            refusal = str(error)
        assert len(refusal) < 300
        assert refusal or kind.parse(kind.format(value)) == value
