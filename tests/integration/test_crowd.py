"""A long queue for one slow provider, beside it all other mail: nobody but the slow provider's queue waits.

Facts, not times: what arrived while the backlog waited, and how many of the backlog went before what should overtake
it. `bench/crowd.py` has the times, with a million.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

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
    of its connections is free: between its `250` and its arrival come few more than are on the connections already."""
    for number in range(5):
        to = f"late{number}@d{number}.slow"
        content = b"X-Tenant: shop\r\nX-Priority-Class: transactional\r\n" + message(number, to)
        crowded.send("a@shop.test", [to], content)
        before = sandbox.log()[-1]["number"]

        def arrived(to: str = to) -> list[int]:
            return [one["number"] for one in sandbox.log() if to in one["recipients"]]

        crowded.wait_until(arrived, f"the arrival of {to}")
        # Each connection has one in hand and one sent ahead, and it may be the turn of those that were overtaken; on a
        # busy machine some more go by before the worker has it. The others are 20,000.
        assert arrived()[0] - before <= 6 * CONNECTIONS
    assert waiting(crowded) > BACKLOG * 19 / 20
