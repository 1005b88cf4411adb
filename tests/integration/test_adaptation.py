"""Real workers find what a receiver bears: a scaled-down bench.hidden. tests/simulate/test_hidden.py has the bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mta.delivery.limits import Limits
from mta.delivery.pathstate import PathState
from mta.sandbox.client import Sandbox
from tests.integration.support import Injector, Mta

A_LONG_TIME = {"site_first": "1h", "site_cap": "1h"}  # whoever pauses a site fails the test


def learnt(mta: Mta) -> list[PathState]:
    """What all workers have found out about paths."""
    limits = Limits(str(mta.directory / "run"), None)
    try:
        return [state for _, state in limits.states() if state.adaptive]
    finally:
        limits.close()


def refused(sandbox: Sandbox) -> int:
    """Refusals so far, at the greeting and later."""
    return sum(count for site in sandbox.sites().values() for code, count in site["replies"].items()
               if str(code)[0] in "45")


def inject(mta: Mta, messages: int, domain: str) -> None:
    """All of them are accepted."""
    injector = Injector(mta, [domain])
    injector.start(messages)
    injector.wait()
    assert len(injector.accepted) == messages


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hidden_rate_is_found_by_all_workers_and_held_to(
        workers: int, make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """A receiver takes 60 messages in 3 seconds by its clock. It refuses when the first 60 are through; from then on
    all workers together hold to what it takes, and hardly anything is refused. What was refused arrives as well."""
    sandbox.set("paced.test", {"rate": "60/3s", "rate_window": "fixed"})
    with make_mta(workers=workers, retry=A_LONG_TIME) as mta:
        inject(mta, 300, "paced.test")
        sandbox.wait({"messages": 130}, domain="paced.test", timeout_s=60)
        mta.wait_until(lambda: any(state.rate > 0 for state in learnt(mta)), "a rate that is held to")
        (found,) = learnt(mta)
        before = refused(sandbox)
        sandbox.wait({"messages": 250}, domain="paced.test", timeout_s=60)
        later = refused(sandbox)
        sandbox.wait({"messages": 300}, domain="paced.test", timeout_s=90)

    assert before >= 1
    assert found.rate < 1.2 * 20
    assert later - before <= 20  # of 120: a minute, which two workers have to agree upon, is three seconds here
    assert [event for event in mta.events() if event["event"] == "suspended"] == []
    assert sandbox.stats()["distinct"] == 300


@pytest.mark.parametrize("reply", ["421 4.7.0 Too many connections from your address",
                                   "421 4.7.0 Too many messages from your address, slow down"])
def test_a_limit_told_at_the_greeting_pauses_no_site(
        reply: str, make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """The first three connections are refused for number or rate. The path gives less for a moment and goes on; its
    site is not taken for one that fails, whose pause is an hour here.

    Three are all that both workers may have at once to begin with, so there is no further one, that is served, before
    a worker has heard of a refusal: beside one that is served it would be told from the number, and nothing learnt.
    """
    sandbox.set("busy.test", {"rules": [{"at": "connect", "times": 3, "reply": reply}]})
    with make_mta(workers=2, retry=A_LONG_TIME, shaping={"default": {"adaptive": {"connections_first": 3}}}) as mta:
        inject(mta, 40, "busy.test")
        sandbox.wait({"messages": 40}, domain="busy.test", timeout_s=60)
        found = learnt(mta)

    assert refused(sandbox) == 3
    assert [event for event in mta.events() if event["event"] == "suspended"] == []
    assert len(found) == 1


def test_a_hidden_number_of_connections_is_found_by_all_workers(
        make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """A receiver takes four connections where thirty are allowed: four are used, few more are tried."""
    sandbox.set("narrow.test", {"connections": 4, "latency": "50ms"})
    with make_mta(workers=2, retry=A_LONG_TIME, shaping={"default": {"connections": 30}}) as mta:
        inject(mta, 400, "narrow.test")
        sandbox.wait({"messages": 400}, domain="narrow.test", timeout_s=90)

    assert sandbox.domain("narrow.test")["max_open"] == 4
    assert 1 <= refused(sandbox) <= 60
    assert [event for event in mta.events() if event["event"] == "suspended"] == []
