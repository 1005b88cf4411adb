"""A long queue for one slow provider, beside it all other mail: nobody but the slow provider's queue waits.

Facts, not times: what arrived while the backlog waited, and how many of the backlog went before what should overtake
it. `bench/crowd.py` has the times, with a million.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import pytest

from bench.fill import fill as fill_spool
from mta.sandbox.client import Sandbox
from tests.integration.support import Injector, Mta, ends_of, message

BACKLOG = 20_000
FRESH_DOMAINS = 300
CONNECTIONS = 4
SLOW = {"shaping": {"providers": {"slow": {
    "match": {"mx": "mx.provider.test"}, "connections": CONNECTIONS, "adaptive": {"enabled": False}}}}}


@pytest.fixture
def crowded(make_mta: Callable[..., Mta], sandbox: Sandbox) -> Mta:
    """An MTA that has 20,000 messages for 20 domains of a provider that takes a few a second, and is at it."""
    sandbox.set("*.slow", {"dns": {"mx": ["10 mx.provider.test"]}, "latency": "300ms"})
    mta = make_mta(**SLOW)
    fill_spool(mta.directory / "spool", BACKLOG, 20, 2, size=500, spread_s=0, zone="slow", tenant="bulk")
    mta.start()
    sandbox.wait_for(lambda stats: bool(stats["messages"] >= 2 * CONNECTIONS))
    return mta


def waiting(mta: Mta) -> int:
    """Deliveries of the backlog."""
    return sum(json.loads(line)["deliveries"] for line in mta.command("queue", "list", "bulk@*", "--json").splitlines())


def test_fresh_mail_to_many_domains_does_not_wait(crowded: Mta, sandbox: Sandbox) -> None:
    """All of it arrives while 19 of 20 of the backlog wait; the provider is used meanwhile, up to its limit and never
    beyond; what is counted in the end balances."""
    domains = [f"d{number}.test" for number in range(FRESH_DOMAINS)]
    injector = Injector(crowded, domains)
    injector.start(3 * FRESH_DOMAINS)
    injector.wait()
    assert len(injector.accepted) == 3 * FRESH_DOMAINS
    crowded.wait_until(lambda: not crowded.command("queue", "list", "*.test", "--json"), "the end of the fresh mail")
    left = waiting(crowded)
    assert left > BACKLOG * 19 / 20
    assert sandbox.sites()["*.slow"]["max_open"] == CONNECTIONS
    crowded.stop()
    received = Counter(one.recipient.rpartition(".")[2] for one in sandbox.received())
    assert received["test"] == 3 * FRESH_DOMAINS
    ends, last = ends_of(crowded.events())
    assert set(ends.values()) == {1}
    assert {event["event"] for event in last.values()} == {"delivered"}
    assert len(ends) == received["test"] + received["slow"]


def test_transactional_mail_overtakes_the_backlog_of_its_path(crowded: Mta, sandbox: Sandbox) -> None:
    """Another tenant's transactional mail to the slow provider goes before 20,000 others of the same path, though none
    of its connections is free: between its `250` and its turn no more are begun than the connections have already."""
    late = [f"late{number}@d{number}.slow" for number in range(5)]
    for number, to in enumerate(late):
        content = b"X-Tenant: shop\r\nX-Priority-Class: transactional\r\n" + message(number, to)
        crowded.send("a@shop.test", [to], content)
        crowded.wait_until(partial(delivered, crowded, to), f"the end of {to}")
    assert waiting(crowded) > BACKLOG * 19 / 20

    taken = {event["recipients"][0]: seconds(event) for event in crowded.events() if event["event"] == "received"}
    begun = {event["recipients"][0]: seconds(event) - event["duration_s"]
             for event in crowded.events() if event["event"] == "delivered"}
    for to in late:
        # Each connection has one in hand and one sent ahead; and it may be the turn of those that were overtaken.
        assert sum(taken[to] < one < begun[to] for one in begun.values()) <= 2 * CONNECTIONS + 2


def delivered(mta: Mta, recipient: str) -> bool:
    """Whether it has ended so."""
    return any(event["event"] == "delivered" and recipient in event["recipients"] for event in mta.events())


def seconds(event: dict[str, Any]) -> float:
    """When it was."""
    return datetime.fromisoformat(event["time"]).timestamp()
