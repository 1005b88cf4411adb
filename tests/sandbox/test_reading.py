"""The sandbox's file: errors are told with their place, and personalities take over what they leave out."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta.config.problems import ConfigError
from mta.sandbox.client import Sandbox, SandboxError
from mta.sandbox.draws import chosen
from mta.sandbox.reading import read_personality, read_settings, read_text
from mta.sandbox.reference import markdown
from mta.sandbox.settings import Settings

ROOT = Path(__file__).parents[2]


def problems(text: str) -> list[str]:
    """What is wrong with a text."""
    with pytest.raises(ConfigError) as caught:
        read_text(text, "f")
    return [str(problem) for problem in caught.value.problems]


def test_nothing_is_all_defaults() -> None:
    """An empty file is a sandbox that accepts everything."""
    assert read_text("") == Settings()


def test_all_errors_at_once_with_their_places() -> None:
    """Each error has its line and column and says what was expected."""
    assert problems("""\
dns: here
smtp_ports: 1
default: {latency: 5}
domains:
  a..test: {connection: 3}
  b.test:
    starttls: offer
    dns: {mx: ["x"], answer: nx}
    rules:
    - {at: rcpt, share: 2, reply: hello, after: 1KB}
    - {match: "(", at: dot, drop: fin}
    - {reply: "550 no"}
    - {at: dot}
    phases: {since: 4s, until: 2s}
""") == [
        'f:1:6: dns: "here": a port is missing, as in here:25',
        'f:2:1: smtp_ports: unknown option; did you mean "smtp_port"?',
        'f:3:20: default.latency: "5": a duration needs a unit, as in 5s or 5m',
        'f:5:3: domains: "a..test": a name has an empty label, two dots in a row',
        'f:5:13: domains[a..test].connection: unknown option; did you mean "connections"?',
        ('f:7:15: domains[b.test].starttls: "offer", expected off, offered, required, refused or broken; '
        'did you mean "offered"?'),
        ('f:8:16: domains[b.test].dns.mx[0]: "x": an MX host is written "PREFERENCE HOST [STATE]", '
        'as in "10 mx1.{domain} closed"'),
        ('f:8:30: domains[b.test].dns.answer: "nx", expected normal, nxdomain, servfail, refused, formerr, timeout, '
        "garbage or wrong-id"),
        "f:10:7: domains[b.test].rules[0]: after is for rules at body",
        "f:10:7: domains[b.test].rules[0]: does nothing, expected delay, reply, raw, drop or hang",
        'f:10:25: domains[b.test].rules[0].share: "2", expected a number from 0.0 to 1.0',
        'f:10:35: domains[b.test].rules[0].reply: "hello": a reply begins with its code, as in "451 4.7.1 try later"',
        'f:11:15: domains[b.test].rules[1].match: "(": missing ), unterminated subpattern at position 0',
        ("f:12:7: domains[b.test].rules[2].at: missing, expected connect, ehlo, starttls, mail, rcpt, data, body, dot, "
        "rset or quit"),
        "f:13:7: domains[b.test].rules[3]: does nothing, expected delay, reply, raw, drop or hang",
        "f:14:13: domains[b.test].phases[0]: ends before it begins",
    ]


def test_personalities_that_are_not_there_or_like_themselves() -> None:
    """A name that nobody has, and a circle."""
    found = problems("personalities: {a: {like: b}, b: {like: a}, slow: {}}\ndomains: {x.test: slwo}\n")
    assert 'f:2:19: domains[x.test]: there is no personality "slwo"; did you mean "slow"?' in found
    assert any("a like b like a" in problem for problem in found)


def test_what_is_left_out_comes_from_the_other_personality() -> None:
    """From the one it is like, else from the default; sections option by option; phases over the heir's options."""
    settings = read_text("""\
default: {latency: 1ms, dns: {ttl: 5s}}
personalities:
  far: {latency: 2s, dns: {mx: 2}, phases: [{since: 1s, listening: false}]}
domains:
  a.test: {connections: 3}
  b.test: far
  c.test: {like: far, banner: mine}
  "*.d.test": {like: far, phases: []}
""")
    a, b, c, d = (settings.domains[name] for name in ("a.test", "b.test", "c.test", "*.d.test"))
    assert (a.latency, a.connections, a.dns.ttl) == (0.001, 3, 5.0)
    assert (b.latency, b.connections, b.dns.ttl, b.dns.mx) == (2.0, None, 5.0, 2)
    assert (c.latency, c.banner, c.phases[0].banner, c.phases[0].listening) == (2.0, "mine", "mine", False)
    assert d.phases == ()


def test_phases_hold_in_their_time() -> None:
    """The first phase whose time it is; the personality itself otherwise."""
    phases = [{"since": "1s", "until": "2s", "latency": "1s"}, {"until": "3s", "latency": "2s"}]
    personality = read_personality({"phases": phases}, Settings())
    assert [personality.at(at).latency for at in (0, 0.99, 1, 1.99, 2, 3)] == [2.0, 2.0, 1.0, 1.0, 2.0, 0]
    assert personality.changes() == [1.0, 2.0, 3.0]


def test_the_file_of_settings_on_disk(tmp_path: Path) -> None:
    """A file that cannot be read is said to be so."""
    with pytest.raises(ConfigError, match="there is no such file"):
        read_settings(str(tmp_path / "none.yaml"))


def test_bad_configuration_does_not_start() -> None:
    """The client raises with every problem."""
    with pytest.raises(SandboxError, match=r"latency: \"5\": a duration needs a unit[^\0]*listen: unknown option"):
        Sandbox({"default": {"latency": "5", "listen": True}})


def test_bad_personality_changes_nothing(sandbox: Sandbox) -> None:
    """A personality with an error is refused whole."""
    sandbox.set("kept.test", {"banner": "before"})
    with pytest.raises(SandboxError, match="unknown option"):
        sandbox.set("kept.test", {"banner": "after", "nonsense": 1})
    with pytest.raises(SandboxError, match='no personality "nobody"'):
        sandbox.set("kept.test", "nobody")
    assert sandbox.host("mx1.kept.test")["open"]


def test_the_example_is_right() -> None:
    """conf/sandbox.yaml is a file without errors."""
    settings = read_settings(str(ROOT / "conf" / "sandbox.yaml"))
    assert len(settings.domains) > 10


def test_the_documentation_has_all_options() -> None:
    """The reference in docs/sandbox.md is what `mta sandbox options` prints."""
    assert markdown() in (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")


def test_draws() -> None:
    """A share is about as large as it says, the same without regard to case, and independent between rules."""
    names = [f"user{number}@d.test" for number in range(4000)]
    first = {name for name in names if chosen(0.25, name, 0)}
    second = {name for name in names if chosen(0.25, name, 1)}
    assert 900 < len(first) < 1100
    assert 180 < len(first & second) < 320
    assert {name for name in names if chosen(0.25, name.upper(), 0)} == first
    assert not any(chosen(0.0, name) for name in names)
    assert all(chosen(1.0, name) for name in names)
