"""`mta shaping` as an operator meets it, with a DNS server of the test."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.dns_helpers import ROOT, DnsServer, rcode

ZONE = {
    ("example.org", "MX"): ["10 aspmx.l.google.com.", "20 alt1.aspmx.l.google.com."],
    ("other.org", "MX"): ["10 mx.other.org."],
    ("special.org", "MX"): ["10 mx.other.org."],
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with DnsServer(ZONE, {"failing.org": rcode(2)}) as server:
        path = tmp_path_factory.mktemp("shaping") / "mta.yaml"
        path.write_text(f"""\
hostname: mta.example.net
dns: {{servers: ['{server.endpoint}'], timeout: 1s}}
retry: {{first: 2m}}
shaping:
  default: {{connections: 7}}
  providers:
    google: {{connections: 3, tls: ~, message_rate: [2/s, "1000/h, burst 9"]}}
    acme: {{match: {{mx: "*.acme.example", networks: 192.0.2.0/24}}}}
  domains:
    special.org: {{total_connections: 2, connections: 1}}
""")
        yield str(path)


def mta(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    done = subprocess.run([sys.executable, "-m", "mta", "shaping", *arguments], cwd=ROOT, capture_output=True,
                          text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


def shown(config: str, *arguments: str) -> dict[str, Any]:
    code, out, err = mta("show", *arguments, "-c", config, "--json")
    assert code in (0, 75), err
    found: dict[str, Any] = json.loads(out)
    found["from"] = {one["option"]: (one["value"], one["layer"], one["line"]) for one in found["options"]}
    return found


def test_a_domain(config: str) -> None:
    """Provider and why, each value with file, line and section, and what holds besides."""
    code, out, _ = mta("show", "somebody@Example.ORG", "-c", config)
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "example.org"
    assert "provider google, MX aspmx.l.google.com matches *.google.com" in lines
    assert f"connections 3 {config}:7, shaping.providers.google" in lines
    assert f'message_rate [2/s, "1000/h, burst 9"] {config}:7, shaping.providers.google' in lines
    assert f"tls opportunistic {config}:7, built-in, unset in shaping.providers.google" in lines
    assert f"retry.first 2m {config}:3, retry" in lines
    assert "timeouts.dot 10m built-in" in lines
    shipped = next(line for line in lines if line.startswith("messages_per_connection"))
    assert shipped.startswith("messages_per_connection 50 /")
    assert shipped.endswith(", providers.google")
    besides = lines.index("besides, over more than this path:")
    assert lines[besides + 1].startswith("source:>provider:google 5 connections /")
    assert max(map(len, lines)) < 160


def test_for_programs(config: str) -> None:
    """The same, with places apart; of a domain with connections of its own, too."""
    found = shown(config, "special.org")
    assert (found["provider"], found["why"], found["site"]) == (None, None, "mx.other.org")
    assert found["from"]["connections"] == (1, "shaping.domains.special.org", 10)
    assert found["from"]["idle"] == ("5s", "built-in", None)
    assert found["totals"] == [{
        "limit": "domain:special.org", "connections": 2, "message_rate": [],
        "layer": "shaping.domains.special.org", "file": config, "line": 10}]
    assert shown(config, "other.org")["from"]["connections"] == (7, "shaping.default", 5)


def test_a_provider_and_a_path(config: str) -> None:
    """By their names, without a question to DNS; the site of a path tells its provider."""
    assert shown(config, "google")["from"]["connections"][0] == 3
    path = shown(config, ">aspmx.l.google.com+1~0a1b2c3d")
    assert (path["provider"], path["source"], path["site"]) == ("google", None, "aspmx.l.google.com+1~0a1b2c3d")
    own = shown(config, "mx.other.org+1~0a1b2c3d+Special.org")
    assert own["from"]["connections"] == (1, "shaping.domains.special.org", 10)
    assert shown(config, "relay:mx.acme.example:25")["provider"] == "acme"


def test_when_dns_does_not_tell(config: str) -> None:
    """What is known is shown, the exit code says that it is not all, and why."""
    code, out, _ = mta("show", "failing.org", "-c", config)
    assert code == 75
    assert "provider                    not known: MX of failing.org cannot be looked up" in out
    assert f"{config}:5, shaping.default" in out


@pytest.mark.parametrize(("arguments", "message"), [
    (["gogle"], 'there is no provider "gogle"; did you mean "google"?'),
    (["a b.example"], "is no label of a name"),
    (["google", "--source", "out1"], 'there is no source "out1"'),
])
def test_what_does_not_exist(config: str, arguments: list[str], message: str) -> None:
    """Is said, with the nearest name."""
    code, out, err = mta("show", *arguments, "-c", config)
    assert (code, out) == (64, "")
    assert message in err


def test_the_list(config: str) -> None:
    """All sections with their lines, the shipped ones first."""
    code, out, _ = mta("list", "-c", config)
    assert code == 0
    sections = [line for line in out.splitlines() if not line.startswith(" ")]
    assert sections[:2] == ["default", "providers.google"]
    assert sections[-4:] == [
        "shaping.default", "shaping.providers.google", "shaping.providers.acme", "shaping.domains.special.org"]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert f"tls ~ {config}:7" in lines
    assert "mx *.acme.example" in lines
    found = {one["section"]: one for one in map(json.loads, mta("list", "-c", config, "--json")[1].splitlines())}
    assert found["shaping.providers.acme"]["match"] == {"mx": ["*.acme.example"], "networks": ["192.0.2.0/24"]}
    assert found["shaping.default"]["options"] == [{"option": "connections", "value": 7, "file": config, "line": 5}]


def test_a_configuration_with_errors(tmp_path: Path) -> None:
    """Its problems are printed, and nothing else."""
    path = tmp_path / "mta.yaml"
    path.write_text("hostname: mta.example.net\nshaping: {default: {connections: 0}}\n")
    code, out, err = mta("show", "example.org", "-c", str(path))
    assert (code, out) == (78, "")
    assert f"{path}:2:34: shaping.default.connections" in err
