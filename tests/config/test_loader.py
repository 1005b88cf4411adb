"""From text to `Config`: defaults, how values are read, what is said about faults, and that nothing else is raised."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mta.config import loader
from mta.config.describe import options_of, section_of
from mta.config.hosts import Endpoint, parse_network
from mta.config.loader import ConfigError, load, loads, read, read_text
from mta.config.schema import Config, Route
from mta.config.shaping import DomainLayer
from tests.config.helpers import HOSTNAME, problems, problems_after_hostname

ROOT = Path(__file__).parents[2]


def test_defaults() -> None:
    """`hostname` is all that has to be given; the rest are the schema's defaults."""
    assert loads(HOSTNAME) == Config(hostname="mta.example.net")


def test_the_names_of_the_issue() -> None:
    """The names that were promised to operators hold."""
    config = loads("""
hostname: mta1.example.net
workers: 3
spool: /var/spool/x
run: /run/x
listeners: [{smtp: "127.0.0.1:2525", relay_from: [127.0.0.0/8]}]
pickup: [{directory: /var/spool/pickup}]
dns: {servers: ["127.0.0.1:5353"]}
routes: {example.org: {relay: "127.0.0.1:2626"}, "*": mx}
delivery: {allow_loopback: true}
shaping: {default: {port: 2600, connections: 20}, domains: {example.org: {connections: 3}}}
retry: {first: 1m}
expires: 4h
""")
    assert config.workers == 3
    assert config.listeners[0].smtp == Endpoint("127.0.0.1", 2525)
    assert config.listeners[0].relay_from == (parse_network("127.0.0.0/8"),)
    assert config.pickup[0].directory == "/var/spool/pickup"
    assert config.dns.servers == (Endpoint("127.0.0.1", 5353),)
    assert config.routes == {"example.org": Route(relay=(Endpoint("127.0.0.1", 2626),)), "*": Route()}
    assert config.shaping.effective().port == 2600
    assert config.delivery.allow_loopback is True
    assert config.shaping.effective(domain="example.org").connections == 3
    assert config.shaping.effective(domain="example.com").connections == 20
    assert config.retry.first == 60
    assert config.expires == 14_400


def test_domains_inherit() -> None:
    """What an entry of `shaping.domains` does not set is that of `shaping.default`, wherever that stands."""
    config = loads(HOSTNAME + """
shaping:
  domains: {a.example: {connections: 3}, b.example: , c.example: {tls: off}}
  default: {connections: 7, tls: required}
""")
    found = {domain: config.shaping.effective(domain=domain) for domain in config.shaping.domains}
    assert {domain: (one.connections, one.tls) for domain, one in found.items()} == {
        "a.example": (3, "required"), "b.example": (7, "required"), "c.example": (7, "off")}


def test_domains_are_normalised() -> None:
    """Domains are kept in lower case and A-labels, as they are looked up."""
    config = loads(HOSTNAME + "routes: {Bücher.Example: mx}\nshaping: {domains: {EXAMPLE.org.: {connections: 1}}}\n")
    assert list(config.routes) == ["xn--bcher-kva.example"]
    assert list(config.shaping.domains) == ["example.org"]


@pytest.mark.parametrize(("written", "value"), [
    ("true", True), ("yes", True), ("on", True), ("True", True), ("YES", True), ("'true'", True),
    ("false", False), ("no", False), ("off", False), ("OFF", False), ('"no"', False),
])
def test_truth(written: str, value: bool) -> None:
    """Where truth is meant the words of YAML 1.1 are read as meant, in quotes too."""
    assert loads(HOSTNAME + f"bounces: {{send: {written}}}").bounces.send is value


@pytest.mark.parametrize(("option", "value"), [
    ("user: no", "no"), ("user: on", "on"), ("user: 1.10", "1.10"), ("user: 12:30", "12:30"), ("user: 0x1f", "0x1f"),
    ("user: 2024-01-01", "2024-01-01"), ("user: ~", None), ("user:", None), ("user: '~'", "~"),
    ("user: 'null'", "null"),
])
def test_texts_are_not_guessed_at(option: str, value: str | None) -> None:
    """Where a text is meant, `no` is a text; only nothing, `~` and `null` unset it."""
    assert loads(HOSTNAME + option).user == value


@pytest.mark.parametrize(("option", "value"), [
    ("retry: {factor: 1.10}", 1.1), ("retry: {factor: 2}", 2.0), ("retry: {factor: '3.5'}", 3.5),
])
def test_numbers(option: str, value: float) -> None:
    """`1.10` is a number where one is meant."""
    assert loads(HOSTNAME + option).retry.factor == value


def test_grouped_digits() -> None:
    """Long numbers may be grouped."""
    assert loads(HOSTNAME + "dns: {cache: 1_000_000}").dns.cache == 1_000_000


@pytest.mark.parametrize("port", [1, 65_535])
def test_bounds_are_allowed(port: int) -> None:
    """The smallest and the largest value are allowed themselves."""
    assert loads(HOSTNAME + f"shaping: {{default: {{port: {port}}}}}").shaping.effective().port == port


@pytest.mark.parametrize(("written", "value"), [
    ("off", None), ("never", None), ("no", None), ("~", None), ("4h", 14_400),
])
def test_optional_durations(written: str, value: float | None) -> None:
    """A duration that may be missing is switched off in words."""
    assert loads(HOSTNAME + f"bounces: {{delay_warning: {written}}}").bounces.delay_warning == value


def test_words_of_choice() -> None:
    """`off` is a word where words are meant."""
    assert loads(HOSTNAME + "shaping: {default: {tls: off}}").shaping.effective().tls == "off"


def test_empty_sections() -> None:
    """A section or list whose options are all commented out is one without options."""
    config = loads(HOSTNAME + "smtp:\nlisteners:\nroutes:\nshaping:\n  default:\n  domains:\ndns:\n  servers:\n")
    assert config == Config(hostname="mta.example.net")


def test_lists_of_one() -> None:
    """One item needs no brackets, be it a value or a section."""
    config = loads(
        HOSTNAME + "listeners: {smtp: 127.0.0.1:25, relay_from: 10.0.0.0/8}\nroutes: {a.b: {relay: h.test}}\n")
    assert config.listeners[0].relay_from == (parse_network("10.0.0.0/8"),)
    assert config.routes["a.b"].relay == (Endpoint("h.test", 25),)


def test_usual_ports() -> None:
    """Resolvers are at port 53 and relays at 25 unless another is written."""
    config = loads(HOSTNAME + 'dns: {servers: [192.0.2.1, "[::1]:54"]}\nroutes: {"*": {relay: relay.test}}\n')
    assert config.dns.servers == (Endpoint("192.0.2.1", 53), Endpoint("::1", 54))
    assert config.routes["*"].relay == (Endpoint("relay.test", 25),)


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative directories lie beside the file, wherever the process was started; `~` is the home directory."""
    monkeypatch.setenv("HOME", "/home/x")
    path = tmp_path / "mta.yaml"
    path.write_text(HOSTNAME + "spool: a/../spool/\nrun: ~/run\npickup: [{directory: /p//q}]\n")
    config = load(str(path))
    assert (config.spool, config.run, config.pickup[0].directory) == (f"{tmp_path}/spool", "/home/x/run", "/p/q")


def test_anchors() -> None:
    """Common options may be written once."""
    config = loads(HOSTNAME + """
shaping:
  domains:
    a.example: &slow {connections: 1, connection_age: 1m}
    b.example: *slow
    c.example: {<<: *slow, connections: 2}
""")
    assert config.shaping.domains["b.example"] == DomainLayer.of(connections=1, connection_age=60)
    assert config.shaping.domains["c.example"] == DomainLayer.of(connections=2, connection_age=60)


@pytest.mark.parametrize(("text", "message"), [
    # names
    ("workrs: 4", '2:1: workrs: unknown option; did you mean "workers"?'),
    ("smtp: {message-size: 1MB}", '2:8: smtp.message-size: unknown option; did you mean "message_size"?'),
    ("port: 25", "2:1: port: unknown option here; it belongs to sources, shaping.default, shaping.providers"),
    ("smtp: {x: 1}", "2:8: smtp.x: unknown option, expected message_size, recipients, "),
    ("delivery: {CONNECTIONS: 1}", '2:12: delivery.CONNECTIONS: unknown option; did you mean "connections"?'),
    ("listeners: [{smpt: 127.0.0.1:25}]", '2:14: listeners[0].smpt: unknown option; did you mean "smtp"?'),
    # truth
    ("bounces: {send: y}", '2:17: bounces.send: "y", expected true or false; did you mean "yes"?'),
    ("bounces: {send: 1}", '2:17: bounces.send: "1", expected true or false; did you mean "true"?'),
    ("bounces: {send: flase}", '2:17: bounces.send: "flase", expected true or false; did you mean "false"?'),
    ("bounces: {send: }", "2:17: bounces.send: no value, expected true or false; without the line the default holds"),
    ("bounces: {send: [true]}", "2:17: bounces.send: a list, expected true or false"),
    # numbers
    ("shaping: {default: {port: 0}}", '2:27: shaping.default.port: "0" is too small, expected 1 or more'),
    ("shaping: {default: {port: 65536}}", '2:27: shaping.default.port: "65536" is too large, expected 65535 or less'),
    ("shaping: {default: {port: smtp}}", '2:27: shaping.default.port: "smtp", expected a whole number from 1 to 65535'),
    ("shaping: {default: {port: 25.0}}", '2:27: shaping.default.port: "25.0", expected a whole number from 1 to 65535'),
    ("shaping: {default: {port: 12:30}}",
     '2:27: shaping.default.port: "12:30", expected a whole number from 1 to 65535'),
    ("shaping: {default: {port: 0x19}}", '2:27: shaping.default.port: "0x19", expected a whole number from 1 to 65535'),
    ("shaping: {default: {port: 025}}",
     '2:27: shaping.default.port: "025", expected a whole number from 1 to 65535; did you mean 25?'),
    ("dns: {cache: '50,000'}", '"50,000", expected a whole number from 100 up; did you mean 50_000?'),
    ("dns: {cache: " + "9" * 5000 + "}", "expected a whole number from 100 up"),
    ("workers: many", '2:10: workers: "many", expected a whole number from 1 to 256 or auto'),
    ("workers: 257", '2:10: workers: "257" is too large, expected 256 or less'),
    ("workers: 0", '2:10: workers: "0" is too small, expected 1 or more'),
    ("retry: {jitter: 20%}", '2:17: retry.jitter: "20%", expected a number from 0.0 to 0.9; did you mean 0.2?'),
    ("retry: {factor: .nan}", '2:17: retry.factor: ".nan", expected a number from 1.0 to 10.0'),
    ("retry: {factor: 1e999}", '2:17: retry.factor: "1e999", expected a number from 1.0 to 10.0'),
    # units
    ("expires: 300", '2:10: expires: "300": a duration needs a unit, as in 300s or 300m'),
    ("expires: 12:30", '2:10: expires: "12:30": a duration is written with units, as in 12h30m or 12m30s'),
    ("expires: {days: 5}", "2:10: expires: options, expected a duration (30s, 10m, 4h, 5d)"),
    ("dns: {timeout: 0s}", '2:16: dns.timeout: "0s" is too small, expected 1ms or more'),
    ("smtp: {message_size: 25}", '2:22: smtp.message_size: "25": a size needs a unit, as in 25B or 25MB'),
    ("smtp: {message_size: 0B}", '2:22: smtp.message_size: "0B" is too small, expected 1B or more'),
    ("store: {segment_size: 1KB}", '2:23: store.segment_size: "1KB" is too small, expected 1MB or more'),
    # addresses and names
    ("listeners: [{smtp: localhost:25}]",
     '2:20: listeners[0].smtp: "localhost:25": a host name, expected an address; did you mean 127.0.0.1:25?'),
    ("listeners: [{smtp: '*:25'}]", "all addresses are written 0.0.0.0:25"),
    ("listeners: [{relay_from: []}]", "2:13: listeners[0].smtp: missing, expected host:port, as in 127.0.0.1:2525"),
    ("listeners: [5]",
     '2:13: listeners[0]: "5", expected options such as smtp, relay_from, tls, each as name: value'),
    ("listeners: [{smtp: 127.0.0.1:25, relay_from: [10.1.2.3/8]}]",
     "2:47: listeners[0].relay_from[0]: \"10.1.2.3/8\": 10.1.2.3 is not where a /8 begins: write 10.0.0.0/8"),
    ("listeners: [{smtp: 127.0.0.1:25, relay_from: 10.0.0.1 10.0.0.2}]",
     '2:46: listeners[0].relay_from: "10.0.0.1 10.0.0.2", expected a list; did you mean [10.0.0.1, 10.0.0.2]?'),
    ("listeners: [{smtp: 127.0.0.1:25, relay_from: [10.0.0.1, 10.0.0.1/32]}]", "10.0.0.1 is in the list already"),
    ("dns: {servers: [localhost]}", '"localhost": a host name, expected an address; did you mean 127.0.0.1:53?'),
    ("dns: {servers: ['127.0.0.1:0']}", '"127.0.0.1:0": port 0 cannot be connected to'),
    ("dns: 127.0.0.1",
     '2:6: dns: "127.0.0.1", expected options such as servers, timeout, attempts, each as name: value'),
    ("sources: {a: {ipv4: '::1'}}", '2:21: sources.a.ipv4: "::1": not an IPv4 address such as 192.0.2.1'),
    ("sources: {a: {ehlo: mta1}}", '"mta1": a host name is fully qualified, as in mta1.example.net'),
    ("spool: ''", '2:8: spool: "": a path is empty'),
    ("spool: ~nobody-has-this-name/x", "there is no such home directory"),
    ('user: "a\\nb"', r'2:7: user: "a\nb" has line breaks or invisible characters, expected plain text'),
    # words
    ("shaping: {default: {tls: no}}", '"no", expected opportunistic, required or off; did you mean "off"?'),
    ("shaping: {default: {tls: require}}", 'expected opportunistic, required or off; did you mean "required"?'),
    ("log: verbose", '2:6: log: "verbose", expected debug, info, warning or error'),
    # routes and domains
    ("routes: {a.b: direct}",
     '2:15: routes[a.b]: "direct", expected mx or {relay: host:port}; did you mean {relay: "direct:25"}?'),
    ("routes: {a.b: [mx]}", "2:15: routes[a.b]: a list, expected mx or {relay: host:port}, each as name: value"),
    ("routes: {a.b: 10.0.0.1:26}", 'did you mean {relay: "10.0.0.1:26"}?'),
    ("routes: {a.b: {}}", "2:15: routes[a.b]: no relay, expected mx or {relay: host:port}"),
    ("routes: {a.b: {relay: []}}", "2:23: routes[a.b].relay: an empty list, expected host:port or several"),
    ("routes: {'*.b': mx}", '2:10: routes: "*.b": not a domain: "*" alone stands for all domains without an entry'),
    ("routes: {10.0.0.1: mx}", 'an address as a domain is written in brackets, "[10.0.0.1]"'),
    ("routes: [a.b]", "2:9: routes: a list, expected domains, each with its options, each as name: value"),
    ("shaping: {domains: {'*': {}}}", '2:21: shaping.domains: "*": not a domain; shaping.default holds for all others'),
    ("shaping: {domains: {a@b.example: {}}}", "a domain is what follows the @, 'b.example'"),
    ("shaping: {domains: {a.example: 5}}",
     '2:32: shaping.domains[a.example]: "5", expected options such as connections, '),
    ("routes:\n  A.example: mx\n  a.example: mx\n",
     '4:3: routes: "a.example" is a.example, which is given already in line 3'),
    ("shaping: {domains: {bücher.example: {}, xn--bcher-kva.example: {}}}", "which is given already in line 2"),
    # YAML
    ("workers: 2\nworkers: 3", '3:1: "workers" is given twice, first in line 2'),
    ("workers: *x", '2:10: the alias "*x" has no anchor'),
    ("? [a]\n: 1", "a list or mapping stands where a name is expected"),
])
def test_messages(text: str, message: str) -> None:
    """Each fault gives one message with its place, what is wrong, what is expected and what was probably meant."""
    found = problems_after_hostname(text)
    assert len(found) == 1, found
    assert message in found[0]


def test_all_at_once() -> None:
    """Nothing hides behind another fault: different parts, both ends of a list, and what contradicts each other."""
    assert problems("""\
workers: none
listeners:
  - smtp: 127.0.0.1:x
    relay_from: [10.0.0.0/33, 0.0.0.0/0]
  - {smtp: 127.0.0.1:25}
  - {smtp: 0.0.0.0:25}
retry: {first: 2h, cap: 1h, jitter: 5}
x: 1
""") == [
        "1:1: hostname: missing, expected a host name, as in mta1.example.net",
        '1:10: workers: "none", expected a whole number from 1 to 256 or auto',
        "3:11: listeners[0].smtp: \"127.0.0.1:x\": 'x' is no port, a number up to 65535",
        ("4:5: listeners[0].relay_from: 0.0.0.0/0 is much of the Internet and makes an open relay, which is soon used "
         "by everybody who sends spam; expected the networks of your own clients"),
        '4:18: listeners[0].relay_from[0]: "10.0.0.0/33": the length of an IPv4 network is at most 32',
        "6:12: listeners[2].smtp: 0.0.0.0:25 is taken already by listeners[1], 127.0.0.1:25",
        "7:25: retry.cap: retry.first (2h) is above retry.cap (1h)",
        '7:37: retry.jitter: "5" is too large, expected 0.9 or less',
        ("8:1: x: unknown option, expected hostname, workers, user, spool, run, listeners, certificates, access, "
         "users, smtp, checks, pickup, dns, routes, delivery, sources, pools, labels, tenants, turns, "
         "providers, shaping, rules, rules_file, retry, expires, bounces, events, store, memory, shutdown or log"),
    ]


@pytest.mark.parametrize(("text", "message"), [
    ("", "1:1: hostname: missing, expected a host name, as in mta1.example.net"),
    ("# nothing\n", "1:1: hostname: missing, expected a host name, as in mta1.example.net"),
    ("--- ~\n", "1:5: hostname: missing, expected a host name, as in mta1.example.net"),
    ("- a\n", "1:1: a list, expected options such as hostname, workers, user, each as name: value"),
    ("mta\n", '1:1: "mta", expected options such as hostname, workers, user, each as name: value'),
])
def test_no_configuration(text: str, message: str) -> None:
    """An empty file and one that is something else are told apart."""
    assert problems(text) == [message]


def test_too_many_problems() -> None:
    """A file that is no configuration at all ends the report at a number that can be read."""
    found = problems("".join(f"option{n}: 1\n" for n in range(5000)))
    assert len(found) == 501
    assert any("too many problems" in line for line in found)


def test_remote_text_in_messages() -> None:
    """What is quoted from the file cannot break a line, hide, or be endless."""
    (found,) = problems_after_hostname('log: "a\\nb\\e[31m\\u202e' + "x" * 500 + '"')
    assert r'"a\nb\x1b[31m\u202exxx' in found
    assert found.isprintable()
    assert len(found) < 200


def test_domains_in_great_number() -> None:
    """A table of 20,000 domains is read within a few seconds and within the bounds."""
    table = "".join(f"  d{n}.test: {{connections: 3}}\n" for n in range(20_000))
    config = loads(HOSTNAME + "shaping:\n domains:\n" + table)
    assert len(config.shaping.domains) == 20_000


# --- files


def test_errors_are_raised_together(tmp_path: Path) -> None:
    """`load` raises all problems as one error, printed one per line with the file."""
    path = tmp_path / "mta.yaml"
    path.write_text("a: 1\nb: 2\n")
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert len(caught.value.problems) == 3
    assert str(caught.value).splitlines()[0] == f"{path}:1:1: {caught.value.problems[0].message}"
    assert loader.check(str(path)) == (None, caught.value.problems)


@pytest.mark.parametrize(("content", "place", "message"), [
    (b"a: 1\nb: caf\xe9\n", (2, 7), "the byte 0xe9 is not UTF-8, expected a file in UTF-8"),
    ("hostname: é".encode("utf-16"), (1, 1), "the byte 0xff is not UTF-8, expected a file in UTF-8"),
    (b"\xc3\xa9\xc3", (1, 2), "the byte 0xc3 is not UTF-8"),
])
def test_not_utf8(tmp_path: Path, content: bytes, place: tuple[int, int], message: str) -> None:
    """The first byte that is not UTF-8 is shown with its place."""
    path = tmp_path / "mta.yaml"
    path.write_bytes(content)
    (problem,) = read(str(path)).problems
    assert (problem.line, problem.column) == place
    assert message in problem.message


def test_unreadable(tmp_path: Path) -> None:
    """A file that is missing, a directory, or too large is one problem without a place."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(20_000_000)
    for path, message in (
        (tmp_path / "none.yaml", "there is no such file"), (tmp_path, "is a directory, expected a file"),
        (large, "larger than 16000000 bytes"), (tmp_path / "a\0b", "cannot be read: embedded null byte"),
    ):
        (problem,) = read(str(path)).problems
        assert (problem.line, problem.message) == (0, message)
        assert str(problem).endswith(f": {message}")


@pytest.mark.skipif(os.geteuid() != 0, reason="the check is for root alone")
def test_file_that_anybody_may_write(tmp_path: Path) -> None:
    """Root does not take orders from a file that anybody could have written."""
    path = tmp_path / "mta.yaml"
    path.write_text(HOSTNAME)
    path.chmod(0o666)
    (problem,) = read(str(path)).problems
    assert "anybody may write to it" in problem.message


# --- whatever the text


def _options(section: Any) -> st.SearchStrategy[Any]:
    """Values for the options of a section: mostly of the right shape, with all kinds of wrong ones."""
    words = st.sampled_from([
        "", "no", "yes", "off", "auto", "mx", "*", "1", "0", "-1", "1.10", "12:30", "5m", "25MB", "10.0.0.0/8", "::/0",
        "1/s", "127.0.0.1:25", "[::1]:25", "example.org", "EXAMPLE.org", "bücher.example", "/tmp", "~", "~x", "\0",
        "\ud800", "&a", "*a",
    ])
    leaf = st.one_of(words, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
    entries: dict[str, st.SearchStrategy[Any]] = {}
    for name, option in options_of(section).items():
        inner = section_of(option.type)
        value = leaf
        if inner is not None:
            sections = st.deferred(lambda inner=inner: _options(inner))
            value = st.one_of(
                sections, st.lists(sections, max_size=2), st.dictionaries(words, sections, max_size=2), leaf)
        entries[name] = st.one_of(value, st.lists(leaf, max_size=3))
    return st.fixed_dictionaries({}, optional=entries)


def _config_or_problems(text: str) -> None:
    reading = read_text(text)
    assert isinstance(reading.config, Config) != bool(reading.problems)
    for problem in reading.problems:
        assert str(problem).isprintable()
        assert problem.line >= 1
        assert problem.column >= 1


@given(st.text(st.characters(), max_size=60))
@example("a: \ud800")
@settings(deadline=None)
def test_any_text(text: str) -> None:
    """Whatever the text, it is a configuration or problems with places; nothing else is raised."""
    _config_or_problems(text)
    _config_or_problems(HOSTNAME + text)


@given(st.lists(st.sampled_from([
    "hostname", "smtp", "routes", "shaping", "domains", "a.b", ": ", ":\n", "\n", "  ", "- ", "[", "]", "{", "}", ", ",
    "&a ", "*a ", "<<", "?", "!", "!!str ", "|", ">", "'", '"', "\\", "#", "%", "@", "`", "---\n", "...", "\t", "~",
    "x", "1", "\u2028", "\ufeff",
]), max_size=30))
@settings(deadline=None, max_examples=300)
def test_any_yaml(parts: list[str]) -> None:
    """Whatever the syntax."""
    _config_or_problems("".join(parts))


@given(st.data())
@settings(deadline=None)
def test_damaged_example(data: st.DataObject) -> None:
    """Whatever is cut out of or put into a real file."""
    text = (ROOT / "conf" / "mta.yaml").read_text("utf-8").replace("#", "")
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(begin + 40, len(text))))
    _config_or_problems(text[:begin] + data.draw(st.text(max_size=5)) + text[end:])


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_any_values(data: st.DataObject) -> None:
    """Whatever the values of real options."""
    value = data.draw(_options(Config))
    _config_or_problems(yaml.safe_dump(value, allow_unicode=True))


@given(st.binary(max_size=40))
@settings(deadline=None, max_examples=50)
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever the bytes of a file."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    reading = read(str(path))
    assert (reading.config is None) == bool(reading.problems)
