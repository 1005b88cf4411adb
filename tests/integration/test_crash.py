"""Kill -9 at random moments loses nothing, and repeats only what I2 allows."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from collections.abc import Callable

import pytest

from mta.queue.verify import verify_spool
from mta.sandbox.client import Sandbox
from tests.integration.support import Injector, Mta, ends_of

ROUNDS = int(os.environ.get("MTA_CRASH_ROUNDS", "30"))
SEED = int(os.environ.get("MTA_CRASH_SEED", "0")) or random.randrange(1 << 30)


@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_kill_at_random_moments(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Workers, supervisor or everything killed under load: every accepted message arrives, ends once, and what
    arrives twice was announced as a possible duplicate."""
    print(f"seed {SEED}, {ROUNDS} rounds")
    dice = random.Random(SEED)
    sandbox.set("slow.test", {"latency": "30ms"})
    sandbox.set("grey.test", {"greylist": "1s"})
    mta = make_mta(workers=2, shaping={"default": {"connections": 6}}).start()
    domains = ["a.test", "b.test", "c.test", "slow.test", "grey.test"]
    injector = Injector(mta, domains, sessions=6)
    injector.start(limit=1_000_000)

    for _ in range(ROUNDS):
        # The pause is the experiment: the moment of the kill has to be any moment.
        injector._stop.wait(dice.uniform(0.05, 0.6))
        target = dice.choice(["worker", "workers", "supervisor", "everything"])
        workers = mta.children()["worker"]
        if target in ("worker", "workers"):
            for pid in workers if target == "workers" else dice.sample(workers, min(len(workers), 1)):
                with contextlib.suppress(ProcessLookupError):  # one that was killed before may have been there still
                    os.kill(pid, signal.SIGKILL)
        elif target == "supervisor":
            assert mta.process is not None
            mta.process.kill()
            mta.process.wait()
            mta.start()
        else:
            mta.kill()
            assert verify_spool(mta.directory / "spool", complete=True) == []
            mta.start()
    injector.finish()
    try:
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue", 120)
    except AssertionError:
        print(mta.command("status", check=False), mta.command("explain", "--all", check=False))  # what is left, and why
        raise
    assert mta.stop() == 0

    counts = mta.directory / "received"
    counts.write_text("".join(f"{json.dumps([item.key, item.recipient, item.count])}\n" for item in sandbox.received()))
    assert verify_spool(mta.directory / "spool", complete=True, received=counts) == []
    received = {(int(item.key), item.recipient): item.count for item in sandbox.received()}
    arrived = {number for number, _ in received}
    assert len(injector.accepted) > ROUNDS
    assert injector.accepted - arrived == set(), "accepted, but lost"
    assert arrived - injector.offered == set()

    ends, last = ends_of(mta.events())
    assert [key for key, count in ends.items() if count != 1] == [], "more than one end"
    delivered = {int(event["message_id"][1:].partition("@")[0]): event for event in last.values()}
    assert set(delivered) == arrived
    repeated = {number for (number, _), count in received.items() if count > 1}
    unannounced = {number for number in repeated if not delivered[number]["maybe_duplicate"]}
    assert unannounced == set(), "repeated without warning"
    print(f"{len(injector.accepted)} accepted, {len(repeated)} arrived twice, all of them announced")
