"""Who is behind a site: by domain, by names of MX hosts, by addresses; and the file of providers that is shipped."""

from __future__ import annotations

import fnmatch
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.config.hosts import parse_network
from mta.config.loader import SHIPPED_PROVIDERS, load, loads, read, read_providers
from mta.config.problems import ConfigError
from mta.config.providers import Providers
from mta.config.shaping import Match, ProviderLayer, ShapingRules
from tests.config.helpers import HOSTNAME


def providers(**match: Match) -> Providers:
    return Providers(ShapingRules(providers={name: ProviderLayer({}, {}, one) for name, one in match.items()}))


SOME = providers(
    big=Match(mx=("*.big.example",), domains=("big.example", "mail.example")),
    small=Match(mx=("*.eu.big.example", "mx-eu*.big.example", "mx*.small.example", "relay.small.example"),
                networks=(parse_network("192.0.2.0/24"), parse_network("2001:db8::/32"))),
    inner=Match(networks=(parse_network("192.0.2.128/25"), parse_network("198.51.100.7"))),
)


@pytest.mark.parametrize(("hosts", "domain", "provider"), [
    (["mx1.big.example"], "x.org", "big"),
    (["a.b.c.big.example"], "x.org", "big"),
    (["big.example"], "x.org", ""),  # the pattern asks for something before the dot
    (["notbig.example"], "x.org", ""),
    (["mx1.big.example.net"], "x.org", ""),
    (["mx1.eu.big.example"], "x.org", "small"),  # the longer pattern
    (["mx-eu1.big.example"], "x.org", "small"),
    (["mx17.small.example"], "x.org", "small"),
    (["mx.a.small.example"], "x.org", "small"),  # a star stands for anything
    (["smtp.small.example"], "x.org", ""),
    (["relay.small.example"], "x.org", "small"),
    (["mx1.big.example", "mx2.big.example"], "x.org", "big"),
    (["mx1.big.example", "mx.elsewhere.example"], "x.org", ""),
    (["mx.elsewhere.example", "mx1.big.example"], "x.org", ""),
    (["mx1.big.example", "mx1.small.example"], "x.org", ""),
    (["mx.elsewhere.example"], "mail.example", "big"),  # the domain tells, whatever its hosts
    (["mx1.small.example"], "big.example", "big"),
    (["mx.elsewhere.example"], "sub.mail.example", ""),
    ([], "x.org", ""),
])
def test_by_name(hosts: list[str], domain: str, provider: str) -> None:
    """A site is a provider's when all its hosts of the best preference are; domains first, then the longest pattern."""
    assert SOME.of(hosts, domain) == provider


@pytest.mark.parametrize(("addresses", "provider"), [
    (["192.0.2.1"], "small"),
    (["192.0.2.1", "2001:db8:ffff::1"], "small"),
    (["192.0.2.200"], "inner"),  # the narrower network
    (["192.0.2.1", "192.0.2.200"], ""),
    (["198.51.100.7"], "inner"),
    (["198.51.100.8"], ""),
    (["192.0.2.1", "203.0.113.1"], ""),
    (["2001:db9::1"], ""),
    ([], ""),
])
def test_by_address(addresses: list[str], provider: str) -> None:
    """All addresses have to lie in networks of one provider."""
    assert SOME.of(["mx.elsewhere.example"], "x.org", addresses) == provider
    assert SOME.of(["mx1.big.example"], "x.org", addresses) == "big"  # names tell more


def test_a_pattern_beyond_ascii_finds_hosts() -> None:
    """DNS has A-labels, and so has what is read; dots of IDNA are dots."""
    shaping = loads(HOSTNAME + """
shaping:
  providers:
    books: {match: {mx: ["*.Bücher.example", "mx*\uff0eshelf.example"], domains: "[IPv6:2001:DB8:0::1]"}}
""").shaping
    known = Providers(shaping)
    assert known.of(["mx1.xn--bcher-kva.example"], "x.org") == known.of(["mx1.shelf.example"], "x.org") == "books"
    assert known.of(["2001:db8::1"], "[ipv6:2001:db8::1]") == "books"


def test_why() -> None:
    """What made a site a provider's is said, for operators."""
    def why(hosts: list[str], domain: str, *addresses: str) -> str:
        found = SOME.find(hosts, domain, lambda: addresses)
        assert found is not None
        return found.why

    assert why([], "big.example") == "the domain is big.example"
    assert why(["mx1.big.example"], "x.org") == "MX mx1.big.example matches *.big.example"
    assert why(["mx1.small.example", "mx2.small.example"], "x.org") == (
        "MX mx1.small.example matches mx*.small.example, and so for 1 more")
    assert why(["x.example"], "x.org", "192.0.2.1") == "address 192.0.2.1 is in 192.0.2.0/24"


def test_addresses_are_not_asked_for_without_need() -> None:
    """A question to DNS is made only when names do not tell and there are networks."""
    def never() -> list[str]:
        raise AssertionError

    found = SOME.find(["mx1.big.example"], "x.org", never)
    assert found is not None
    assert providers(big=Match(mx=("*.big.example",))).find(["x.example"], "x.org", never) is None


_HOSTS = st.lists(st.sampled_from(["a", "b", "mx1", "com", "net"]), min_size=1, max_size=5).map(".".join)
_PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "mx*", "*1"]), min_size=1, max_size=3).map(
    lambda labels: ".".join(labels) + ".net.com")


@given(_HOSTS, st.lists(_PATTERNS, min_size=1, max_size=6, unique=True))
def test_the_index_finds_what_looking_through_all_finds(host: str, patterns: list[str]) -> None:
    """However many there are, and whatever they look like."""
    many = providers(**{f"p{index}": Match(mx=(pattern,)) for index, pattern in enumerate(patterns)})
    fitting = {f"p{index}" for index, pattern in enumerate(patterns) if fnmatch.fnmatchcase(host, pattern)}
    found = many.of([host], "x.org")
    assert found in fitting if fitting else found == ""


def test_yours_before_the_shipped() -> None:
    """The same pattern or domain is yours; a `match` for a provider that is shipped replaces the shipped one."""
    shaping = loads(HOSTNAME + """
shaping:
  providers:
    mine: {match: {mx: "*.google.com"}}
    apple: {match: {mx: "*.orchard.example"}}
    gmx: {connections: 1}
""").shaping
    known = Providers(shaping)
    assert known.of(["aspmx.l.google.com"], "x.org") == "mine"
    assert known.of(["aspmx2.googlemail.com"], "x.org") == "google"
    assert known.of(["mx.orchard.example"], "x.org") == "apple"
    assert known.of(["mx01.mail.icloud.com"], "icloud.com") == ""
    assert known.of(["mx00.gmx.net"], "gmx.net") == "gmx"


# --- the shipped file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("provider", "hosts"), [
    ("google", ["gmail-smtp-in.l.google.com"]), ("google", ["aspmx.l.google.com"]), ("google", ["smtp.google.com"]),
    ("google", ["aspmx2.googlemail.com", "aspmx3.googlemail.com"]),
    ("microsoft", ["hotmail-com.olc.protection.outlook.com"]),
    ("microsoft", ["outlook-com.olc.protection.outlook.com"]),
    ("microsoft365", ["contoso-com.mail.protection.outlook.com"]), ("microsoft365", ["contoso-com.x-v1.mx.microsoft"]),
    ("yahoo", ["mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net", "mta7.am0.yahoodns.net"]),
    ("yahoo", ["mx-aol.mail.gm0.yahoodns.net"]), ("yahoo-japan", ["mx1.mail.yahoo.co.jp"]),
    ("apple", ["mx01.mail.icloud.com", "mx02.mail.icloud.com"]),
    ("comcast", ["mx1a1.comcast.net"]), ("gmx", ["mx00.gmx.net", "mx01.gmx.net"]), ("gmx", ["mx-ha02.web.de"]),
    ("t-online", ["mx00.t-online.de"]), ("orange", ["smtp-in.orange.fr"]), ("libero", ["smtp-in.libero.it"]),
    ("mailru", ["mxs.mail.ru"]), ("yandex", ["mx.yandex.ru"]), ("yandex", ["mx.yandex.net"]),
    ("qq", ["mx1.qq.com", "mx2.qq.com", "mx3.qq.com"]), ("qq", ["mxbiz1.qq.com"]),
    ("netease", ["163mx01.mxmail.netease.com"]), ("proofpoint", ["mxa-00123456.gslb.pphosted.com"]),
    ("mimecast", ["eu-smtp-inbound-1.mimecast.com"]), ("barracuda", ["d1234a.ess.barracudanetworks.com"]),
])
def test_large_receivers_are_known_by_their_hosts(provider: str, hosts: list[str]) -> None:
    """The names of MX hosts as DNS shows them."""
    assert Providers(loads(HOSTNAME).shaping).of(hosts, "x.org") == provider


def test_the_shipped_file_is_correct() -> None:
    """No problem, each provider known by something, each with limits; and its place is the one of the source tree."""
    rules, problems = read_providers(Path(SHIPPED_PROVIDERS).read_text("utf-8"), SHIPPED_PROVIDERS)
    assert problems == []
    assert len(rules.providers) >= 17
    for name, layer in rules.providers.items():
        assert layer.match is not None, name
        assert layer.options, name
    assert rules.default.options["connections"] == 20
    assert SHIPPED_PROVIDERS.endswith("conf/providers.yaml")


def test_every_figure_says_where_it_is_from() -> None:
    """Above each provider a comment names the kind of its figures, official ones with page and date."""
    text = Path(SHIPPED_PROVIDERS).read_text("utf-8")
    rules, _ = read_providers(text, "f")
    lines = text.splitlines()
    for name in rules.providers:
        index = lines.index(f"  {name}:")
        comment = ""
        while lines[index - 1].startswith("  #"):
            index -= 1
            comment = lines[index] + comment
        assert any(word in comment for word in ("Official", "Production", "Careful")), name
        if "Official: at most" in comment:
            assert "20" in comment, name


def test_it_is_in_the_wheel(tmp_path: Path) -> None:
    """The file is a link in the source tree; a wheel has its content."""
    hatch = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    root = Path(__file__).parents[2]
    [wheel] = hatch.WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("mta/config/providers.yaml") == (root / "conf" / "providers.yaml").read_bytes()


# --- a file of one's own ---------------------------------------------------------------------------------------------


def test_a_file_of_your_own(tmp_path: Path) -> None:
    """It stands for the shipped one, its name is taken from the configuration's directory, and lines are its own."""
    (tmp_path / "mine.yaml").write_text(
        "default: {connections: 4}\nproviders:\n  p: {match: {mx: '*.p.example'}, connections: 2}\n")
    path = tmp_path / "mta.yaml"
    path.write_text(HOSTNAME + "providers: mine.yaml\nshaping: {providers: {p: {idle: 1s}}}\n")
    shaping = load(str(path)).shaping
    assert (shaping.effective("", "p").connections, shaping.effective("", "p").idle) == (2, 1)
    assert shaping.effective().connections == 4
    assert str(shaping.origin("connections", "", "p")) == f"{tmp_path}/mine.yaml:3, providers.p"
    assert Providers(shaping).of(["aspmx.l.google.com"], "x.org") == ""


def test_mistakes_in_it_are_problems_of_the_configuration(tmp_path: Path) -> None:
    """All of them, with the file's own lines, together with those of the configuration."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("""\
default: {connections: 0}
providers:
  p: {connections: 1}
  q: {match: {mx: "*.com"}}
  r: {match: {mx: ["*.r.example", "*.s.example"]}, conections: 1, message_rate: [1/s, 10/s]}
  s: {match: {mx: "*.s.example"}, expires: 5}
sources: {}
""")
    path = tmp_path / "mta.yaml"
    path.write_text(HOSTNAME + "workrs: 2\nproviders: mine.yaml\nshaping: {providers: {google: {connections: 1}}}\n")
    reading = read(str(path))
    assert reading.config is None
    assert [(problem.file.rpartition("/")[2], problem.line, problem.column) for problem in reading.problems] == [
        ("mta.yaml", 2, 1), ("mine.yaml", 1, 24), ("mine.yaml", 3, 3), ("mine.yaml", 4, 19), ("mine.yaml", 5, 52),
        ("mine.yaml", 5, 67), ("mine.yaml", 6, 19), ("mine.yaml", 6, 44), ("mine.yaml", 7, 1)]
    assert [problem.message for problem in reading.problems][2:4] == [
        "providers.p: a provider without match is known by nothing",
        'providers.q.match.mx[0]: "*.com": too wide a pattern, expected one that ends in a domain, as in *.example.net']


@pytest.mark.parametrize(("content", "message"), [
    (None, "there is no such file"), (b"\xff", "the byte 0xff is not UTF-8"), (b"a: [", "not closed"),
    (b"- a", "a list, expected options"),
])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    """Is one problem; whether providers exist is then not judged."""
    mine = tmp_path / "mine.yaml"
    if content is not None:
        mine.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        loads(HOSTNAME + f"providers: {mine}\nshaping: {{providers: {{p: {{connections: 1}}}}}}")
    assert len(caught.value.problems) == 1
    assert message in str(caught.value)
