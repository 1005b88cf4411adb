"""`mta dns`, the command, against a DNS server of the test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.dns_helpers import ROOT, DnsServer, rcode

ZONE = {
    ("example.org", "MX"): ["20 backup.example.org.", "10 mx1.example.org."],
    ("mx1.example.org", "A"): ["192.0.2.2", "192.0.2.1"],
    ("mx1.example.org", "AAAA"): ["2001:db8::1"],
    ("backup.example.org", "A"): ["127.0.0.5"],
    ("half.org", "MX"): ["10 half.org."],
    ("half.org", "A"): ["192.0.2.7", "127.0.0.1"],
    ("null.org", "MX"): ["0 ."],
    ("four.org", "MX"): ["0 four.org."],
    ("four.org", "A"): ["192.0.2.4", "192.0.2.5"],
    ("loopback.org", "MX"): ["10 backup.example.org."],
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with DnsServer(ZONE, {"failing.org": rcode(2)}) as server:
        path = tmp_path_factory.mktemp("dns") / "mta.yaml"
        path.write_text(
            f"hostname: mta.example.net\ndns: {{servers: ['{server.endpoint}'], timeout: 1s}}\n"
            f"routes: {{relayed.org: {{relay: ['192.0.2.9:2525', '127.0.0.1:2626']}}}}\n"
            f"shaping: {{domains: {{four.org: {{skip_hosts: 192.0.2.5}}}}}}\n"
        )
        yield str(path)


def mta_dns(config: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    done = subprocess.run(
        [sys.executable, "-m", "mta", "dns", *arguments, "-c", config], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_shows_the_way_and_what_is_skipped(config: str) -> None:
    """Hosts by preference with addresses and reasons, the site, how long it is believed; several domains at once."""
    code, out, _ = mta_dns(config, "Example.org", "somebody@half.org", "relayed.org")
    assert code == 0
    site = out.split("site")[1].split()[0]
    assert site.startswith("mx1.example.org+1~")
    out = re.sub(r"for 4m5\d+s", "for 5m", out)  # of five minutes, when they were asked for a moment ago
    assert out == f"""\
Example.org
  MX       10  mx1.example.org     port 25  192.0.2.1, 192.0.2.2, 2001:db8::1
           20  backup.example.org  port 25  MX host backup.example.org resolves only to loopback addresses \
(127.0.0.5); delivery.allow_loopback is off
  site         {site}
  believed     for 5m

half.org
  MX       10  half.org  port 25  192.0.2.7
               skipped 127.0.0.1: loopback, and delivery.allow_loopback is off
  site         half.org
  believed     for 5m

relayed.org
  relay        192.0.2.9  port 2525  192.0.2.9
               127.0.0.1  port 2626  127.0.0.1
  site         relay:192.0.2.9:2525,127.0.0.1:2626
"""


def test_options_of_the_domain_hold_however_it_is_written(config: str) -> None:
    """What is not connected to is told as delivery would have it."""
    code, out, _ = mta_dns(config, "Four.Org", "--json")
    (host,) = json.loads(out)["hosts"]
    assert (code, host["addresses"], len(host["skipped"])) == (0, ["192.0.2.4"], 1)


def test_failures_are_shown_as_the_sender_would_get_them(config: str) -> None:
    """The reply, and what becomes of the mail; 75 when it would wait."""
    code, out, _ = mta_dns(config, "failing.org", "loopback.org", "[127.0.0.1]")
    assert code == 75
    failing, loopback, literal = (text.splitlines() for text in out.split("\n\n"))
    assert failing[1].startswith("  451 4.4.3 MX of failing.org cannot be looked up: ")
    assert failing[2] == "  mail waits"
    assert loopback[1].endswith("(127.0.0.5); delivery.allow_loopback is off")
    assert "  no host can be reached: mail waits" in loopback
    assert literal[1].startswith("  451 4.4.4 address 127.0.0.1 is not connected to")


def test_the_worst_domain_makes_the_exit_code(config: str) -> None:
    """69 when the mail of any of them would be returned."""
    code, out, _ = mta_dns(config, "example.org", "null.org", "failing.org")
    assert code == 69
    assert out.split("\n\n")[1].splitlines()[1:3] == [
        "  556 5.1.10 domain null.org takes no mail (null MX)", "  mail is returned to its sender"]


def test_json(config: str) -> None:
    """One object per domain and line, with everything that the text has."""
    code, out, _ = mta_dns(config, "example.org", "missing.org", "--json")
    assert code == 69
    found, missing = map(json.loads, out.splitlines())
    assert set(found) == set(missing) == {
        "domain", "site", "provider", "fixed", "hosts", "notes", "failure", "believed_s"}
    best: dict[str, Any] = found["hosts"][0]
    assert best == {
        "name": "mx1.example.org", "port": 25, "preference": 10,
        "addresses": ["192.0.2.1", "192.0.2.2", "2001:db8::1"], "skipped": [], "failure": None,
    }
    assert found["hosts"][1]["skipped"] == ["127.0.0.5: loopback, and delivery.allow_loopback is off"]
    assert 290 < found["believed_s"] <= 300
    assert missing["failure"] == {
        "permanent": True, "code": 550, "enhanced": "5.1.2", "text": "domain missing.org does not exist"}


def test_wrong_configuration(tmp_path: Path) -> None:
    """All problems with their places, exit code 78."""
    path = tmp_path / "mta.yaml"
    path.write_text("hostname: mta.example.net\ndns: {server: ['127.0.0.1']}\n")
    code, out, errors = mta_dns(str(path), "example.org")
    assert (code, out) == (78, "")
    assert f"{path}:2:" in errors
