"""Runs one scenario with real workers in a network namespace of its own, where addresses and ports are ours to change.

    unshare --net python -m tests.integration.namespace_program NAME

Nothing leaves it: there is no interface but `lo`. Prints nothing and ends with 0 when the rule held.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mta.sandbox.client import Sandbox
from tests.integration.support import Injector, Mta, message


def ip(*arguments: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *arguments], check=True)


def events_of(mta: Mta) -> Counter[str]:
    """How many of each kind."""
    return Counter(event["event"] for event in mta.events())


def an_address_that_is_removed_while_it_runs(directory: Path) -> None:
    """The address of a source goes while its connections are open and at work: an alarm of each worker, and all mail
    leaves from the other source of the pool; none bounces, and none is deferred but for those whose end was under way,
    which may have arrived. When it is back it is used again."""
    for last in (11, 12):
        ip("address", "add", f"192.0.2.{last}/32", "dev", "lo")
    sources = {"a": {"ipv4": "192.0.2.11"}, "b": {"ipv4": "192.0.2.12"}}
    with Sandbox() as sandbox:
        sandbox.set("slow.test", {"latency": "300ms"})
        with Mta(directory, sandbox.dns, sandbox.smtp_port, sources=sources,
                 shaping={"default": {"idle": "60s", "connections": 4, "timeouts": {"dot": "15s"}}}) as mta:
            injector = Injector(mta, ["d.test", "slow.test"], 4)
            injector.start(60)
            mta.wait_until(lambda: any(event["event"] == "delivered" and event["source_address"] == "192.0.2.11"
                                       for event in mta.events()), "mail from a")
            ip("address", "del", "192.0.2.11/32", "dev", "lo")
            injector.wait()
            begun = time.monotonic()
            mta.wait_until(lambda: mta.queued() == 0, "an empty queue", 100)
            assert time.monotonic() - begun < 90  # and not after the five minutes that a host has to answer MAIL
            # Where all connections from it were between two messages just then, the next look finds out.
            mta.wait_until(lambda: events_of(mta)["alarm"] > 0, "an alarm", 60)
            kinds = events_of(mta)
            assert kinds["bounced"] == kinds["suspended"] == kinds["expired"] == 0, kinds
            assert 1 <= kinds["alarm"] <= 2, kinds
            # Of those whose end was under way nobody knows whether they arrived.
            assert {event["failure"] for event in mta.events() if event["event"] == "deferred"} <= {"unknown"}
            doubtful = sum(event["maybe_duplicate"] for event in mta.events() if event["event"] == "delivered")
            assert kinds["delivered"] == 60, kinds
            assert sandbox.stats()["duplicates"] <= doubtful == kinds["deferred"]
            assert "this machine does not have the address 192.0.2.11" in mta.command("status")
            ip("address", "add", "192.0.2.11/32", "dev", "lo")

            def back() -> bool:
                mta.send("x@x.test", [f"u@n{time.monotonic_ns()}.test"], message(time.monotonic_ns(), "u@n.test"))
                return "does not have the address" not in mta.command("status")

            mta.wait_until(back, "the source is back", 60)


def more_connections_than_ports(directory: Path) -> None:
    """1,200 connections from one source at once, where the kernel has 300 ports to give: a port serves one connection
    to each host (IP_BIND_ADDRESS_NO_PORT)."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40299")
    domains = [f"d{number}.test" for number in range(8)]
    shaping: dict[str, Any] = {"connections": 200, "adaptive": {"enabled": False}, "messages_per_connection": 1}
    with Sandbox() as sandbox:
        for name in domains:
            sandbox.set(name, {"rules": [{"at": "dot", "delay": "100s"}]})
        with Mta(directory, sandbox.dns, sandbox.smtp_port, sources={"a": {"ipv4": "127.0.0.2"}},
                 shaping={"default": shaping}) as mta:
            injector = Injector(mta, domains, 8)
            injector.start(3000)
            mta.wait_until(lambda: sum(site["open"] for site in sandbox.sites().values()) >= 1200,
                           "1,200 connections at once", 60)
            clients = {client for site in sandbox.sites().values() for client in site["clients"]}
            assert clients == {"127.0.0.2"}, clients
            injector.wait()
            mta.kill()


SCENARIOS = (an_address_that_is_removed_while_it_runs, more_connections_than_ports)


def main(name: str) -> None:
    """Run the scenario."""
    ip("link", "set", "lo", "up")
    scenario = next(one for one in SCENARIOS if one.__name__ == name)
    with tempfile.TemporaryDirectory(prefix="mta-") as path:
        scenario(Path(path, "m"))


if __name__ == "__main__":
    main(sys.argv[1])
