"""The configuration as it holds: values with their source, written so that it loads again, and compared."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.config import effective
from mta.config.effective import as_yaml, changes
from mta.config.loader import loads, read_text
from mta.config.problems import path_text
from tests.config.helpers import HOSTNAME

TEXT = HOSTNAME + """\
user: "no"
listeners:
  - {smtp: 127.0.0.1:2525, relay_from: [10.0.0.0/8, "::1"]}
  - smtp: "[::1]:2525"
pickup: [{directory: /a b}, {directory: "/c:"}]
routes: {"*": mx, a.example: {relay: [h.test, "[::1]:26"]}, "[192.0.2.1]": mx}
shaping:
  default: {connections: 7}
  domains:
    b.example: {tls: off, connections: 3}
    c.example:
  providers: {x: {match: {mx: "*.x.example"}, message_rate: [2/s, "1,000/h, burst 3"], idle: ~, timeouts: ~}}
retry: {schedule: [5m, 1h30m]}
bounces: {from_name: 'Mail "Daemon"', delay_warning: 4h}
smtp:
"""


def sources(text: str) -> dict[str, tuple[str, str]]:
    reading = read_text(text, "f")
    assert reading.config is not None
    return {
        path_text(setting.path): (setting.text, setting.source("f"))
        for setting in effective.settings(reading.config, reading.given)
    }


def test_sources() -> None:
    """Each value says whether it is a default or set in the file, and in which line; shaping has what is set alone."""
    found = sources(TEXT)
    assert found["hostname"] == ("mta.example.net", "f:1")
    assert found["user"] == ('"no"', "f:2")
    assert found["log"] == ("info", "default")
    assert found["listeners[0].relay_from"] == ('[10.0.0.0/8, "::1"]', "f:4")
    assert found["listeners[1].relay_from"] == ("[]", "default")
    assert found["routes[a.example]"] == ('{relay: [h.test:25, "[::1]:26"]}', "f:7")
    assert found["shaping.default.connections"] == ("7", "f:9")
    assert found["shaping.domains[b.example].connections"] == ("3", "f:11")
    assert found["shaping.domains[c.example]"] == ("{}", "f:12")
    assert found["shaping.domains[b.example].tls"] == ("off", "f:11")
    assert found["shaping.providers.x.match.mx"] == ('["*.x.example"]', "f:13")
    assert found["shaping.providers.x.idle"] == ("~", "f:13")
    assert found["shaping.providers.x.timeouts.connect"] == ("~", "f:13")
    assert found["shaping.providers.x.timeouts.dot"] == ("~", "f:13")
    assert "shaping.domains[b.example].pipelining" not in found
    assert found["bounces.delay_warning"] == ("4h", "f:15")


@pytest.mark.parametrize("only_given", [False, True])
@pytest.mark.parametrize("text", [
    TEXT, HOSTNAME,
    HOSTNAME + "smtp: {sessions: 10}\ndelivery: {connections: 3}\nshaping: {domains: {a.example: {}}}\n",
])
def test_yaml_loads_to_the_same(text: str, only_given: bool) -> None:
    """What is shown is itself a configuration, the same one; also when only what is set is shown."""
    reading = read_text(text, "f")
    assert reading.config is not None
    shown = as_yaml(reading.config, reading.given, "f", only_given)
    assert loads(shown) == reading.config
    assert ("# default" in shown) != only_given


def test_sections_without_options_are_shown() -> None:
    """A domain with an entry has connections of its own, even when the entry sets nothing."""
    reading = read_text(TEXT, "f")
    assert reading.config is not None
    assert "    c.example: {}  " in as_yaml(reading.config, reading.given, "f", only_given=True)


@given(st.text(st.characters(codec="utf-8"), max_size=20))
@settings(deadline=None)
def test_any_text_is_shown_so_that_it_loads(text: str) -> None:
    """Texts that YAML would read as something else come out in quotes."""
    reading = read_text(f"{HOSTNAME}user: {json.dumps(text)}", "f")
    if reading.config is not None:
        assert loads(as_yaml(reading.config, reading.given, "f\n")).user == reading.config.user


def test_json() -> None:
    """For programs, units stay as they are written and the rest is of its own type."""
    reading = read_text(TEXT, "f")
    assert reading.config is not None
    shown = {
        setting["option"]: setting
        for setting in (one.for_json("f") for one in effective.settings(reading.config, reading.given))
    }
    assert shown["expires"] == {"option": "expires", "value": "5d", "source": "default"}
    assert shown["retry.schedule"]["value"] == ["5m", "1h30m"]
    assert shown["dns.cache"]["value"] == 50_000
    assert shown["labels.default.pool"]["value"] is None
    assert shown["bounces.send"]["value"] is True
    assert shown["routes[*]"] == {
        "option": "routes[*]", "value": "mx", "source": "file", "file": "f", "line": 7, "column": 10}
    assert shown["shaping.providers.x.message_rate"]["value"] == ["2/s", "1000/h, burst 3"]
    assert shown["shaping.providers.x.idle"]["value"] == "~"
    json.dumps(list(shown.values()))


def test_changes() -> None:
    """A change names the option, both values, and whether the MTA must be started anew for it. Of a listener that is
    new only what it says is told."""
    old = loads(HOSTNAME + "workers: 2\nlisteners: [{smtp: 127.0.0.1:25}]\nroutes: {a.example: mx}\n")
    new = loads(
        HOSTNAME + "listeners: [{smtp: 127.0.0.1:26, relay_from: 10.0.0.0/8}, {smtp: '[::1]:26'}]\nexpires: 4d\n")
    assert [(path_text(c.path), c.old, c.new, c.needs_restart) for c in changes(old, new)] == [
        ("workers", "2", "auto", True),
        ("listeners[0].smtp", "127.0.0.1:25", "127.0.0.1:26", True),
        ("listeners[0].relay_from", "[]", "[10.0.0.0/8]", False),
        ("listeners[1].smtp", "", '"[::1]:26"', True),
        ("expires", "5d", "4d", False),
        ("routes[a.example]", "mx", "", False),
    ]
    assert changes(old, old) == []
