"""A dead site and real workers: one of them asks whether it is back, for all."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from mta.sandbox.client import Sandbox
from tests.integration.support import Injector, Mta

DEAD = {"rules": [{"at": "connect", "drop": "fin"}]}  # takes connections, so that they are counted
MARGIN_S = 0.5  # the receiver's times are good to some milliseconds, and no pause is shorter than twice this


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """It notes when connections come."""
    with Sandbox({"times": 10_000}) as running:
        yield running


def suspended(mta: Mta) -> list[dict[str, Any]]:
    """The pauses that were told, in order."""
    return sorted((event for event in mta.events() if event["event"] == "suspended"), key=lambda event: event["time"])


def costs(pauses: list[dict[str, Any]], sandbox: Sandbox) -> list[int]:
    """How many connections came from the end of one pause to the end of the next one."""
    ends_s = [datetime.fromisoformat(event["next_attempt"]).timestamp() - MARGIN_S for event in pauses]
    came_s = [visit.opened_at for visit in sandbox.visits()]
    return [sum(begin_s <= at_s < end_s for at_s in came_s) for begin_s, end_s in pairwise(ends_s)]


def inject(mta: Mta, domain: str, messages: int) -> int:
    """Mail for one domain in all workers: so many messages, again until each worker has some, as it is the kernel that
    decides who accepts a session. Returns how many there are."""
    accepted = 0
    while not all(worker["queued_recipients"] for worker in mta.status()["workers"]):
        assert accepted < 20 * messages, mta.status()["workers"]
        injector = Injector(mta, [domain], 16)
        injector.start(messages)
        injector.wait()
        assert len(injector.accepted) == messages
        accepted += messages
    return accepted


def test_a_dead_site_sees_one_probe_for_all_workers(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Four workers have mail for a site that ends each connection at once. They pause it together: each pause is told
    once, begins when the last one is over, and costs one connection. When it is back all have their mail taken."""
    sandbox.set("dead.test", DEAD)
    with make_mta(workers=4, retry={"site_first": "1s", "site_cap": "1s"}) as mta:
        messages = inject(mta, "dead.test", 200)
        mta.wait_until(lambda: len(suspended(mta)) >= 10, "ten pauses")
        sandbox.set("dead.test", {})
        sandbox.wait({"messages": messages}, domain="dead.test", timeout_s=60)
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        delivering = [worker["worker"] for worker in mta.status()["workers"] if worker["delivered"]]

    pauses = suspended(mta)
    assert set(costs(pauses[1:], sandbox)) == {1}  # to find out at first each worker may have needed its own
    assert all(later["time"] >= before["next_attempt"] for before, later in pairwise(pauses))
    assert delivering == [0, 1, 2, 3]
    assert {event["attempt"] for event in mta.events() if event["event"] == "delivered"} == {1}


def test_a_worker_that_is_killed_while_it_probes(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """The site answers nobody: one worker waits for its greeting, the others for that one. Killed, it leaves the probe
    to another one, which finds the site in order: all goes, and no pause comes of it."""
    sandbox.set("dead.test", DEAD)
    with make_mta(workers=4, retry={"site_first": "3s", "site_cap": "3s"}) as mta:
        messages = inject(mta, "dead.test", 100)
        mta.wait_until(lambda: suspended(mta), "a pause")
        sandbox.set("dead.test", {"rules": [{"at": "connect", "hang": True}]})

        def probers() -> list[int]:
            return [worker["pid"] for worker in mta.status()["workers"] if worker["connections"]]

        found: list[int] = []

        def one_is_told() -> bool:
            # Both, one after the other: a probe from before, that the site ended, may just be seen by one of them.
            found[:] = probers()
            return len(found) == 1 and "is being tried by worker" in mta.command("explain", "dead.test", check=False)

        mta.wait_until(one_is_told, "others that wait for the probe")
        [prober] = found
        sandbox.set("dead.test", {})
        before = suspended(mta)
        os.kill(prober, signal.SIGKILL)
        sandbox.wait({"messages": messages}, domain="dead.test", timeout_s=60)
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        assert suspended(mta) == before
