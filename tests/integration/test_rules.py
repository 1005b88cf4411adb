"""Rules on replies with real workers."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from mta.sandbox.client import Sandbox
from tests.integration.support import Injector, Mta, message


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
        said = mta.command("explain", "mx1.strict.test", check=False)
        assert "rule odd has 3 of 5 matches for mx1.strict.test within 1h" in said, said
        assert "with the last of them: suspend path for 1h" in said, said
        victim = mta.children()["worker"][0]
        os.kill(victim, signal.SIGKILL)
        mta.wait_until(lambda: victim not in mta.children()["worker"] and len(mta.children()["worker"]) == 2,
                       "another worker")
        mta.send("x@x.test", ["u@strict.test"], message(3, "u@strict.test"))
        mta.wait_until(lambda: bounced() == 4, "the fourth refusal")
    assert not any(event["event"] == "suspended" for event in mta.events())
    with mta:
        [row] = [json.loads(line) for line in mta.command("explain", "mx1.strict.test", "--json").splitlines()]
        [odd] = row["rules"]
        assert (odd["rule"], odd["matches"], odd["number"], odd["key"]) == ("odd", 4, 5, "mx1.strict.test")
        mta.send("x@x.test", ["u@strict.test"], message(4, "u@strict.test"))
        mta.wait_until(lambda: any(event["event"] == "suspended" for event in mta.events()), "the suspension")
    assert bounced() == 5
    assert [event["text"] for event in mta.events() if event["event"] == "suspended"] == [
        "rule odd: 550 5.7.1 your mail is odd"]


def test_an_operator_ends_what_a_rule_decided(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """The listing is over: `mta explain` names the command that ends the suspension, in both workers, and the log who
    gave it; a limit of a rule is ended likewise. A part of a queue's name finds it."""
    sandbox.set("strict.test", {"rules": [{"at": "mail", "reply": "550 5.7.1 you are listed"}]})
    mta = make_mta(retry={"first": "1h", "cap": "1h"}, rules=[
        {"name": "listing", "text": "you are listed", "class": "blocklist", "message": "defer",
         "suspend": "path for 1h", "slow": "1/h for 1h", "samples": ["550 5.7.1 you are listed"]}])

    def row() -> dict[str, object]:
        [line] = mta.command("queue", "list", "stric", "--json").splitlines()
        return dict(json.loads(line))

    with mta:
        for number in range(2):
            mta.send("x@x.test", ["u@strict.test"], message(number, "u@strict.test"))
            mta.wait_until(lambda: row()["state"] == "suspended", "the suspension")
        assert "`mta unsuspend 'mx1.strict.test'` ends it before" in mta.command("explain", "strict.test")
        sandbox.set("strict.test", {})
        for words in (["unsuspend", "mx1.strict.test"], ["limit", "mx1.strict.test", "off"]):
            assert mta.command(*words, "--dry-run").startswith("would be ended: ")
        assert row()["state"] == "suspended"
        rows = [json.loads(line) for line in mta.command("orders", "--json").splitlines()]
        assert sorted((one["kind"], one["target"], one["by"], one["reason"]) for one in rows) == [
            (kind, "mx1.strict.test", "rule listing", "550 5.7.1 you are listed") for kind in ("limit", "suspend")]
        said = mta.command("unsuspend", "mx1.strict.test")
        assert said == "ended: suspension of mx1.strict.test by rule listing: 550 5.7.1 you are listed\n"
        assert mta.command("unsuspend", "mx1.strict.test", check=False) == ""  # there is nothing to end
        assert "ended: limit of mx1.strict.test by rule listing" in mta.command("limit", "mx1.strict.test", "off")
        assert mta.command("orders") == "no orders are in force\n"
        mta.wait_until(lambda: row()["state"] != "suspended", "that nothing is suspended")
        assert "suspended" not in mta.command("explain", "strict.test")
        mta.command("retry", "domain=strict.test", "--yes")
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    ended = [(event["state"], event["order"], event["command"], event["target"], event["limit"], event["rule"],
              event["reason"]) for event in mta.events()
             if event["event"] == "order" and event["command"] != "retry"]
    said = "550 5.7.1 you are listed"
    assert ended == [("ended", "", "suspend", "mx1.strict.test", "", "listing", said),
                     ("ended", "", "limit", "mx1.strict.test", "rate=1/h", "listing", said)]
    assert any("has ended the suspension of mx1.strict.test by rule listing" in line for line in mta.log)


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_silent_close_of_yahoo_counts_no_failure(make_mta: Callable[..., Mta], sandbox: Sandbox,
                                                   pipelining: bool) -> None:
    """Its hosts close after five messages, without a word, also with the next envelope under way: new connections take
    the rest at once, no attempt is counted, no path stands still, each message arrives once."""
    sandbox.set("y.test", {"messages": 5, "messages_reply": "", "pipelining": pipelining,
                           "dns": {"mx": ["10 mta5.am0.yahoodns.net"]}})
    hourly = {"first": "1h", "cap": "1h", "site_first": "1h", "site_cap": "1h"}
    with make_mta(retry=hourly, shaping={"default": {"connections": 2}}) as mta:
        injector = Injector(mta, ["y.test"], 4)
        injector.start(100)
        injector.wait()
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        assert "yahoo" in mta.command("shaping", "show", "y.test", check=False)
    events = list(mta.events())
    kinds = Counter(event["event"] for event in events)
    assert (kinds["delivered"], kinds["deferred"], kinds["suspended"], kinds["bounced"]) == (100, 0, 0, 0)
    assert {event["attempt"] for event in events if event["event"] == "delivered"} == {1}
    stats = sandbox.stats()
    assert stats["duplicates"] == 0
    assert stats["connections"] >= 20


def test_mail_that_is_sent_elsewhere_leaves_from_another_source(make_mta: Callable[..., Mta],
                                                                sandbox: Sandbox) -> None:
    """`message: elsewhere`: a second later from the other source and, with `host`, to the other MX host, though the
    schedule says an hour; the events say what was avoided."""
    sandbox.set("picky.test", {"rules": [{"at": "rcpt", "times": 1, "reply": "451 4.7.1 try another address"}],
                               "dns": {"mx": ["10 mx1.{domain}", "20 mx2.{domain}"]}})
    with make_mta(sources={"a": {"ipv4": "127.0.0.2"}, "b": {"ipv4": "127.0.0.3"}}, retry={"first": "1h", "cap": "1h"},
                  rules=[{"name": "try-another", "text": "try another", "message": "elsewhere host",
                          "samples": ["451 4.7.1 try another address"]}]) as mta:
        for number in range(20):
            mta.send("x@x.test", [f"u{number}@picky.test"], message(number, f"u{number}@picky.test"))
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    names = {"127.0.0.2": "source:a", "127.0.0.3": "source:b"}
    deferred = {event["message"]: event for event in mta.events() if event["event"] == "deferred"}
    delivered = [event for event in mta.events() if event["event"] == "delivered"]
    assert len(deferred) == len(delivered) == 20
    for event in delivered:
        before = deferred[event["message"]]
        assert before["avoid"] == [names[before["source_address"]], f"host:{before['remote_host']}"]
        assert (before["source_address"], before["remote_host"]) != (event["source_address"], event["remote_host"])
        assert before["source_address"] != event["source_address"]
        assert before["remote_host"] != event["remote_host"]
