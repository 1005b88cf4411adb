"""Rules on replies with real workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from mta.sandbox.client import Sandbox
from tests.integration.support import Mta, message


def test_matches_are_counted_over_workers_and_restarts(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """`after: 5 in 1h`: four of two workers, one of which is killed, then a restart; the fifth suspends."""
    sandbox.set("strict.test", {"rules": [{"at": "dot", "reply": "550 5.7.1 your mail is odd"}]})
    mta = make_mta(rules=[{"name": "odd", "text": "mail is odd", "class": "policy", "after": "5 in 1h",
                           "suspend": "path for 1h", "samples": ["550 5.7.1 your mail is odd"]}])

    def bounced() -> int:
        return sum(event["event"] == "bounced" for event in mta.events())

    with mta:
        for number in range(3):
            mta.send("x@x.test", ["u@strict.test"], message(number, "u@strict.test"))
        mta.wait_until(lambda: bounced() == 3, "three refusals")
        victim = mta.children()["worker"][0]
        os.kill(victim, signal.SIGKILL)
        mta.wait_until(lambda: victim not in mta.children()["worker"] and len(mta.children()["worker"]) == 2,
                       "another worker")
        mta.send("x@x.test", ["u@strict.test"], message(3, "u@strict.test"))
        mta.wait_until(lambda: bounced() == 4, "the fourth refusal")
    assert not any(event["event"] == "suspended" for event in mta.events())
    with mta:
        mta.send("x@x.test", ["u@strict.test"], message(4, "u@strict.test"))
        mta.wait_until(lambda: any(event["event"] == "suspended" for event in mta.events()), "the suspension")
    assert bounced() == 5
    assert [event["text"] for event in mta.events() if event["event"] == "suspended"] == [
        "rule odd: 550 5.7.1 your mail is odd"]
