"""The wall clock jumps, by hours and days, forward and back, while the MTA runs by it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mta.queue.eventlog import event_files
from mta.sandbox.client import Sandbox
from tests.faults.books import assert_balanced, assert_no_bug, queued, rows
from tests.faults.clock import DAY_S, HOUR_S, Clock
from tests.integration.support import Injector, Mta, message

ROUNDS = int(os.environ.get("MTA_FAULT_ROUNDS", "4"))
SEED = int(os.environ.get("MTA_FAULT_SEED", "0")) or random.randrange(1 << 30)
GREY = {"rules": [{"at": "rcpt", "reply": "451 4.7.1 come back later"}]}


@pytest.fixture
def clock(directory: Path) -> Clock:
    """The clock of the MTAs of a test."""
    return Clock(directory)


def send(mta: Mta, domain: str, numbers: range) -> None:
    for number in numbers:
        mta.send("sender@client.test", [f"u{number}@{domain}"], message(number, f"u{number}@{domain}"))


def told(mta: Mta, kind: str) -> int:
    return sum(event["event"] == kind for event in mta.events())


def assert_in_order(mta: Mta) -> None:
    """Ids go up in the order in which messages were accepted, and so do the names of event files with their content."""
    for directory in (mta.directory / "spool" / "shards").glob("*/events"):
        began = [(directory / name).stat().st_ino for name in event_files(directory)]
        assert len(began) == len(set(began))
    ids = [(event["message"][-2:], event["message"]) for event in mta.events() if event["event"] == "received"]
    assert len(set(ids)) == len(ids)
    for shard in {shard for shard, _ in ids}:
        of_shard = [one for other, one in ids if other == shard]
        assert of_shard == sorted(of_shard)


def test_a_jump_that_comes_back_does_no_harm(clock: Clock, make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """A day forward: what waits for its retry is tried, once; nothing expires. Back: nothing waits for a day, neither
    what was deferred meanwhile nor a path that was suspended, and all of it is delivered once."""
    sandbox.set("grey.test", GREY)
    sandbox.set("dead.test", {"listening": False})
    retry = {"first": "10m", "cap": "1h", "jitter": 0.0, "site_first": "1s", "site_cap": "1s"}
    with clock.rule(make_mta(workers=1, retry=retry, expires="12h")) as mta:
        send(mta, "grey.test", range(5))
        send(mta, "dead.test", range(5, 10))
        mta.wait_until(lambda: told(mta, "deferred") == 5 and told(mta, "suspended"), "mail that waits")

        clock.step(DAY_S)
        mta.wait_until(lambda: told(mta, "deferred") == 10, "another attempt at all")
        mta.wait_until(lambda: rows(mta)["grey.test"].state == "waiting", "rest")
        pauses = told(mta, "suspended")
        mta.wait_until(lambda: told(mta, "suspended") > pauses, "a pause by the new time")
        send(mta, "plain.test", range(10, 15))

        clock.step(-DAY_S)
        mta.wait_until(lambda: rows(mta)["grey.test"].next_due_us < (time.time() + 2 * HOUR_S) * 1e6, "sane due times")
        send(mta, "plain.test", range(15, 20))
        sandbox.set("dead.test", {})
        sandbox.wait_for(lambda stats: bool(stats["distinct"] == 15))

        sandbox.set("grey.test", {})
        clock.step(11 * 60)  # the wait after the second attempt is 20 minutes: it was counted from the step back
        assert rows(mta)["grey.test"].deliveries == 5
        clock.step(10 * 60)
        sandbox.wait_for(lambda stats: bool(stats["distinct"] == 20))
        mta.wait_until(lambda: queued(mta) == 0, "an empty queue")

    assert told(mta, "deferred") == 10
    assert_balanced(mta, range(20), sandbox.received())
    assert sandbox.stats()["duplicates"] == 0
    assert_in_order(mta)
    assert_no_bug(mta)


def test_mail_from_a_time_when_the_clock_was_wrong(
        clock: Clock, make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Accepted and deferred while the clock was a month ahead, found at a start with the right time, delivered by the
    retry schedule; and ids go on from where they were."""
    sandbox.set("grey.test", GREY)
    mta = clock.rule(make_mta(workers=1, retry={"first": "10m", "cap": "1h"}))
    clock.set(30 * DAY_S)
    with mta:
        send(mta, "grey.test", range(5))
        mta.wait_until(lambda: told(mta, "deferred") == 5, "five deferrals")
    clock.set(0)
    sandbox.set("grey.test", {})
    with mta:
        mta.wait_until(lambda: rows(mta)["grey.test"].next_due_us < (time.time() + 2 * HOUR_S) * 1e6, "sane due times")
        send(mta, "plain.test", range(5, 10))
        clock.step(HOUR_S)
        sandbox.wait_for(lambda stats: bool(stats["distinct"] == 10))
        mta.wait_until(lambda: queued(mta) == 0, "an empty queue")

    assert_balanced(mta, range(10), sandbox.received())
    assert_in_order(mta)
    assert_no_bug(mta)


@pytest.mark.timeout(60 + 10 * ROUNDS)
def test_jumps_at_random(clock: Clock, make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Under load, with mail that is deferred and sites that fail: nothing is lost, expires or ends twice, and when the
    clock is right again everything is delivered."""
    print(f"seed {SEED}, {ROUNDS} rounds")
    dice = random.Random(SEED)
    sandbox.set("grey.test", {"greylist": "1s"})
    sandbox.set("flaky.test", {"rules": [{"at": "mail", "share": 0.3, "times": 2, "drop": "rst"}]})
    sandbox.set("dead.test", {"listening": False})
    domains = ["a.test", "b.test", "grey.test", "flaky.test", "dead.test"]
    retry = {"first": "5m", "cap": "1h", "site_first": "1s", "site_cap": "1s"}
    with clock.rule(make_mta(workers=2, retry=retry, expires="2h", events={"size": "20KB", "keep": 100_000})) as mta:
        injector = Injector(mta, domains, sessions=4)
        injector.start(limit=1_000_000)
        for _ in range(ROUNDS):
            injector._stop.wait(dice.uniform(1.1, 2.0))  # any moment, but each time is to be noticed
            clock.step(dice.choice([-1, 1]) * dice.choice([2, 60, 600, HOUR_S, 5 * HOUR_S, DAY_S, 30 * DAY_S]))
        injector.finish()
        sandbox.set("dead.test", {})
        clock.set(0)
        mta.wait_until(lambda: all(row.next_due_us < (time.time() + 2 * HOUR_S) * 1e6 for row in rows(mta).values()),
                       "sane due times")
        while queued(mta):  # each attempt may be deferred once more, until the schedule's longest wait is reached
            clock.step(2 * HOUR_S)
            mta.wait_until(lambda: all(row.state != "ready" for row in rows(mta).values()), "rest")

    assert len(injector.accepted) > 10 * ROUNDS
    expired = [event for event in mta.events() if event["event"] == "expired"]
    assert expired == [], mta.log[-40:]
    assert_balanced(mta, injector.accepted, sandbox.received())
    assert_in_order(mta)
    assert_no_bug(mta)
    print(f"{len(injector.accepted)} accepted")
