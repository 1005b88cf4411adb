"""Every option of shaping, each in every place: it can be set and unset, is shown with its line, and is documented."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta.config.loader import loads
from mta.config.shaping import TOTALS, Shaping
from tests.cli.test_shaping import ROOT, mta

VALUES: dict[str, str] = {
    "connections": "3", "connection_rate": '["2/s, burst 5", 100/min]', "message_rate": '[3/s, "200/h, burst 2"]',
    "messages_per_connection": "11", "recipients_per_connection": "33", "recipients_per_message": "22",
    "connection_age": "77s", "idle": "2s", "tls": "required", "pipelining": "false", "chunking": '"off"',
    "eight_bit": "return", "deliver_by": "handover", "port": "2525",
    "families": "ipv6-first", "mx": "sticky", "addresses": "2", "skip_hosts": '["*.slow.example"]',
    "prohibited_hosts": "[192.0.2.7]", "expires": "1d", "retry.first": "7m", "retry.factor": "1.7", "retry.cap": "5h",
    "retry.schedule": "[5m, 1h]", "retry.site_first": "61s", "retry.site_cap": "31m", "retry.jitter": "0.3",
    "adaptive.enabled": "false", "adaptive.connections_first": "2", "adaptive.connections_least": "2",
    "adaptive.rate_least": "1/min",
    **{f"timeouts.{phase}": "41s" for phase in ("connect", "greeting", "ehlo", "starttls", "mail", "rcpt", "data",
                                                "block", "dot")},
}
BY_DESTINATION = ("port", "prohibited_hosts", "retry", "expires")  # not by source
PLACES = {
    "default": ("", "google", "d.example"), "providers.google": ("", "google", ""),
    "domains.d.example": ("", "", "d.example"), "sources.s": ("s", "", ""),
    "sources.s.providers.google": ("s", "google", ""), "sources.s.domains.d.example": ("s", "", "d.example"),
}


def options(section: Any = Shaping, prefix: str = "") -> Iterator[str]:
    """The names of all options."""
    for one in dataclasses.fields(section):
        if dataclasses.is_dataclass(one.default):
            yield from options(type(one.default), f"{prefix}{one.name}.")
        elif dataclasses.is_dataclass(one.default_factory):
            yield from options(one.default_factory, f"{prefix}{one.name}.")
        else:
            yield prefix + one.name


def nested(place: str, option: str, value: str) -> str:
    """`shaping` with one option, in the form of a block; the option is in the last line."""
    names = place.replace("d.example", "d/example").split(".")
    keys = ["shaping", *(name.replace("/", ".") for name in names), *option.split(".")]
    lines = [f"{'  ' * depth}{key}:" for depth, key in enumerate(keys)]
    return "\n".join(lines) + f" {value}\n"


def test_the_list_is_complete() -> None:
    """A new option has to be named here."""
    assert sorted(options()) == sorted(VALUES)


@pytest.mark.parametrize("place", PLACES)
def test_each_can_be_set_and_unset(place: str) -> None:
    """In every layer, the products included; unset it has the built-in value, and the line is that of the unsetting."""
    built_in = Shaping()
    for option, value in VALUES.items():
        if place.startswith("sources") and option.startswith(BY_DESTINATION):
            continue
        head = "hostname: mta.example.net\nproviders: none\nsources: {s: {}}\n"
        text = nested(place, option, value)
        if place == "providers.google":
            text = text.replace("    google:\n", "    google:\n      match: {mx: '*.google.example'}\n")
        elif "google" in place:
            text = text.replace("shaping:\n", "shaping:\n  providers: {google: {match: {mx: '*.google.example'}}}\n")
        line = (head + text).count("\n")
        source, provider, domain = PLACES[place]

        def get(shaping: Any, option: str = option) -> Any:
            for name in option.split("."):
                shaping = getattr(shaping, name)
            return shaping

        rules = loads(head + text).shaping
        found = get(rules.effective(source, provider, domain))
        assert found != get(built_in), (place, option)
        origin = rules.origin(option, source, provider, domain)
        assert origin.place is not None, (place, option)
        assert (origin.layer, origin.place.line) == (f"shaping.{place}", line), (place, option)
        assert get(rules.effective("other", "", "other.example")) == get(built_in) or place == "default"

        # The default says it, this place unsets it.
        if place == "default":
            continue
        below = nested("default", option, value).replace("shaping:\n", "")
        unset = text.replace(f" {value}\n", " ~\n").replace("shaping:\n", f"shaping:\n{below}")
        rules = loads(head + unset).shaping
        assert get(rules.effective("other", "", "other.example")) == found, (place, option)
        assert get(rules.effective(source, provider, domain)) == get(built_in), (place, option)
        assert rules.origin(option, source, provider, domain).layer == f"built-in, unset in shaping.{place}"


def test_each_is_shown_with_file_and_line(tmp_path: Path) -> None:
    """`mta shaping show` has all of them, with where they are from."""
    path = tmp_path / "mta.yaml"
    lines = ["hostname: mta.example.net", "shaping:", "  providers:", "    google:"]
    expected = {}
    section = ""
    for option, value in (VALUES | {"adaptive.enabled": "true"}).items():  # off it would make the others useless
        if option in ("retry.first", "retry.factor", "retry.cap"):
            continue  # a written schedule is in their place
        name, _, inner = option.rpartition(".")
        if name != section and name:
            lines.append(f"      {name}:")
        section = name
        lines.append(f"{'        ' if name else '      '}{inner}: {value}")
        expected[option] = len(lines)
    path.write_text("\n".join(lines) + "\n")
    code, out, err = mta("show", "google", "-c", str(path), "--json")
    assert code == 0, err
    shown = {one["option"]: one for one in json.loads(out)["options"]}
    assert sorted(shown) == sorted(VALUES)
    assert {option: shown[option]["line"] for option in expected} == expected
    assert {shown[option]["file"] for option in expected} == {str(path)}
    assert {shown[option]["layer"] for option in expected} == {"shaping.providers.google"}


def test_each_is_in_the_reference() -> None:
    """docs/configuration.md is generated (test_reference); this says that nothing is left out of it."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    missing = [option for option in (*VALUES, *TOTALS) if f"**`{option.rpartition('.')[2]}`**" not in page]
    assert missing == []
