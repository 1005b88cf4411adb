"""`mta limit` on domains and tenants, end to end: two workers, real receivers, and what `mta explain` says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mta.sandbox.client import Sandbox
from tests.integration.support import Injector, Mta, message

MAKE = Callable[..., Mta]
STUCK: dict[str, Any] = {"rules": [{"at": "dot", "hang": True}]}


def fill(mta: Mta, count: int, domains: list[str]) -> None:
    """Send so many messages."""
    injector = Injector(mta, domains)
    injector.start(count)
    injector.wait()
    assert len(injector.accepted) == count


def causes(mta: Mta, what: str) -> set[tuple[str, str]]:
    """What `mta explain` says of it: kinds and words."""
    return {(one["kind"], one["text"]) for line in mta.command("explain", what, "--json").splitlines()
            for one in json.loads(line)["reasons"]}


def says(mta: Mta, what: str, kind: str, words: str) -> bool:
    """Whether it names this cause."""
    return any(one == kind and words in text for one, text in causes(mta, what))


def test_a_domain_is_limited_in_connections(make_mta: MAKE, sandbox: Sandbox) -> None:
    """One connection over both workers and over a site that it shares with another domain, which goes on; explained;
    kept over a restart; and lifted it has as many as ever. The other one is paused by then: of a receiver that hangs it
    would keep the five connections that there are at first."""
    shared = {"dns": {"mx": ["10 mx1.shared.test"]}}
    for domain in ("a.test", "b.test", "shared.test"):
        sandbox.set(domain, {**shared, **STUCK})
    with make_mta() as mta:
        mta.command("limit", "domain=a.test", "connections=1", "--reason", "ticket 9", "--yes")
        assert "limit domain=a.test connections=1" in mta.command("limit")
        assert "limit domain=a.test connections=1" in mta.command("orders")
        fill(mta, 40, ["a.test", "b.test"])
        words = "limit of 1 connections in all to domain:a.test is reached, over all workers: ticket 9 (by order 1"
        mta.wait_until(lambda: says(mta, "a.test", "limit", words), "its limit as the cause")
        mta.wait_until(lambda: connections(mta, "b.test") > 1, "more connections for the other one")
        assert connections(mta, "a.test") == 1
        assert "mta limit domain=a.test off" in mta.command("explain", "a.test")
        mta.command("pause", "domain=b.test", "--yes")
        mta.stop()
        mta.start()
        kept = "domain:a.test is held to 1 connection: ticket 9 (by order 1"
        mta.wait_until(lambda: says(mta, "domain=a.test", "limit", kept), "the same after a restart")
        assert connections(mta, "a.test") <= 1
        mta.command("limit", "domain=a.test", "off")
        mta.wait_until(lambda: not says(mta, "domain=a.test", "limit", "is held to"), "no such limit")
        # More connections than one: that of before still has its lease, until it ends.
        mta.wait_until(lambda: connections(mta, "a.test") > 1, "more connections")


def connections(mta: Mta, domain: str) -> int:
    """How many connections a domain has, over all workers."""
    return sum(json.loads(line)["connections"] for line in mta.command("queue", "list", domain, "--json").splitlines())


def test_a_domain_and_a_tenant_are_limited_in_rate(make_mta: MAKE, sandbox: Sandbox) -> None:
    """One message goes, the others wait, and the cause is told; after the end of the order all go at once."""
    with make_mta() as mta:
        mta.command("limit", "domain=a.test", "rate=1/h", "--yes")
        assert causes(mta, "domain=a.test") == {("limit", "domain:a.test is held to 1/h: by order 1 of root")}
        assert "until" not in mta.command("explain", "domain=a.test")  # nobody said when it ends
        mta.command("limit", "tenant=acme", "rate=1/h", "--reason", "ticket 3", "--yes")
        fill(mta, 20, ["a.test"])
        for number in range(20):
            mta.send("a@x.test", [f"v{number}@b.test"], b"X-Tenant: acme\r\n" + message(1000 + number, "v@b.test"))
        mta.wait_until(lambda: mta.queued() == 38, "one of each delivered")
        mta.wait_until(lambda: says(mta, "a.test", "rate", "domain:a.test is held to"), "the domain's rate")
        mta.wait_until(lambda: says(mta, "b.test", "tenant-rate", "tenant:acme is limited: ticket 3 (by order 2"),
                       "the tenant's rate")
        assert "mta limit tenant=acme off" in mta.command("explain", "b.test")
        assert says(mta, "domain=a.test", "limit", "domain:a.test is held to")
        mta.command("limit", "domain=a.test", "off")
        mta.command("limit", "tenant=acme", "off")
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert sandbox.stats()["distinct"] == 40


def test_a_tenant_is_limited_in_messages_in_flight(make_mta: MAKE, sandbox: Sandbox) -> None:
    """A lower limit of the operator counts while the configured one is higher; what was taken under it is given back
    when it has ended in between, so that the next order finds all of it free. The receiver takes its time until the
    limit was told, so that there is mail to tell it of."""
    with make_mta(tenants={"acme": {"concurrency": 50}}) as mta:
        for _ in range(2):
            sandbox.set("a.test", {"latency": "2s"})
            mta.command("limit", "tenant=acme", "connections=1", "--yes")
            for number in range(30):
                mta.send("a@x.test", [f"v{number}@a.test"], b"X-Tenant: acme\r\n" + message(number, "v@a.test"))
            mta.wait_until(lambda: says(mta, "a.test", "tenant-concurrency", "limit of 1 messages of tenant acme"),
                           "its limit as the cause")
            mta.command("limit", "tenant=acme", "off")
            sandbox.set("a.test", {})
            mta.wait_until(lambda: mta.queued() == 0, "an empty queue")


def test_a_source_is_limited_over_all_its_paths(make_mta: MAKE, sandbox: Sandbox) -> None:
    """Two connections from it to ten sites, over both workers, though it had more; another source goes on; the reason
    names the order and what ends it; kept over a restart. The receivers take their time, half a minute for all of it,
    until everything was told."""
    domains = [f"d{number}.test" for number in range(10)]
    for domain in domains:
        sandbox.set(domain, {"latency": "3s"})
    sources = {"a": {"ipv4": "127.0.0.2"}, "b": {"ipv4": "127.0.0.3"}}
    with make_mta(sources=sources, pools={"default": {"a": 1}, "b": {"b": 1}},
                  shaping={"default": {"connections": 5}}) as mta:
        fill(mta, 500, domains)
        mta.wait_until(lambda: leaving(mta, "a") > 4, "many connections")
        mta.command("limit", "source=a", "connections=2", "--reason", "ticket 8", "--yes")
        mta.wait_until(lambda: leaving(mta, "a") <= 2, "as few as ordered, while there is mail")
        assert mta.queued() > 0
        words = "limit of 2 connections in all to source:a is reached, over all workers: ticket 8 (by order 1"
        mta.wait_until(lambda: any(says(mta, domain, "limit", words) for domain in domains), "its limit as the cause")
        mta.send("a@x.test", ["u@other.test"], b"X-Pool: b\r\n" + message(9000, "u@other.test"))
        sandbox.wait({"messages": 1}, domain="other.test")
        mta.stop()
        mta.start()
        mta.wait_until(lambda: says(mta, "source=a", "limit", "source:a is held to 2 connections"), "the same")
        for _ in range(5):
            assert leaving(mta, "a") <= 2
        mta.command("limit", "source=a", "off")
        for domain in domains:
            sandbox.set(domain, {})
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")


def leaving(mta: Mta, source: str) -> int:
    """How many connections leave from a source, over all workers."""
    return sum(row["connections"] for worker in mta.status()["workers"] for row in worker["sources"]
               if row["name"] == source)
