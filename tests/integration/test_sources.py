"""Sources, pools, labels and tenants with real workers."""

from __future__ import annotations

import json
import signal
import smtplib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from mta.sandbox.client import Sandbox
from tests.integration.support import Injector, Mta, message

SOURCES: dict[str, Any] = {
    "a": {"ipv4": "127.0.0.2", "ehlo": "a.mta.test"}, "b": {"ipv4": "127.0.0.3", "ehlo": "b.mta.test"},
    "gone": {"ipv4": "192.0.2.77"},
}


def labelled(number: int, recipient: str, **fields: str) -> bytes:
    """A message with these header fields before the others."""
    lines = "".join(f"X-{name.title()}: {value}\r\n" for name, value in fields.items())
    return lines.encode() + message(number, recipient)


def test_mail_leaves_from_the_sources_of_its_pool(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Over two workers: by label, else by the default pool; an address that is not there is told once by each worker,
    and costs no message."""
    with make_mta(sources=SOURCES, pools={"default": {"gone": 3, "a": 1}, "p": {"b": 1}}) as mta:
        injector = Injector(mta, ["d.test", "e.test"], 4)
        injector.start(100)
        injector.wait()
        for number in range(20):
            mta.send("x@x.test", ["u@d.test"], labelled(1000 + number, "u@d.test", pool="p", tenant="t"))
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        status = mta.command("status")

    events = list(mta.events())
    delivered = [event for event in events if event["event"] == "delivered"]
    by_queue: dict[str, Counter[str]] = {}
    for event in delivered:
        by_queue.setdefault(event["queue"], Counter())[event["source_address"]] += 1
    assert by_queue == {"d.test": {"127.0.0.2": 50}, "e.test": {"127.0.0.2": 50}, "t@d.test/p": {"127.0.0.3": 20}}
    assert {event["path"].partition(">")[0] for event in delivered} == {"a", "b"}
    kinds = Counter(event["event"] for event in events)
    assert (kinds["alarm"], kinds["deferred"], kinds["suspended"]) == (2, 0, 0)
    assert "this machine does not have the address 192.0.2.77" in status
    assert sandbox.stats()["duplicates"] == 0


def test_a_retry_leaves_from_the_same_source_also_after_a_restart(
        make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Greylisting: what was deferred comes back from the address that it came from."""
    sandbox.set("grey.test", {"greylist": "2s"})
    mta = make_mta(sources={name: SOURCES[name] for name in "ab"}, retry={"first": "4s", "jitter": 0},
                   shaping={"default": {"messages_per_connection": 1}})
    with mta:
        for number in range(20):  # each to a recipient of its own: what comes later to the same one is not greylisted
            mta.send("x@x.test", [f"u{number}@grey.test"], message(number, "u@grey.test"))
        mta.wait_until(lambda: sum(event["event"] == "deferred" for event in mta.events()) == 20, "deferrals")
    with mta:
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")

    first = {event["message"]: event["source_address"] for event in mta.events() if event["event"] == "deferred"}
    second = {event["message"]: event["source_address"] for event in mta.events() if event["event"] == "delivered"}
    assert first == second
    assert set(first.values()) == {"127.0.0.2", "127.0.0.3"}


def test_a_pool_that_is_changed_moves_mail_that_waits(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Deferred for an hour from one source; after a reload with another one in the pool the next attempt leaves from
    that, although greylisting would have the same one again."""
    sandbox.set("grey.test", {"rules": [{"at": "rcpt", "times": 1, "reply": "451 4.7.1 come back later"}]})
    mta = make_mta(sources={name: SOURCES[name] for name in "ab"}, pools={"p": {"a": 1}},
                   retry={"first": "1h", "cap": "1h"})
    with mta:
        for number in range(10):
            to = f"u{number}@grey.test"
            mta.send("x@x.test", [to], labelled(number, to, pool="p"))
        mta.wait_until(lambda: sum(event["event"] == "deferred" for event in mta.events()) == 10, "deferrals")
        mta.config["pools"] = {"p": {"b": 1}}
        mta.write_config()
        assert mta.process is not None
        mta.process.send_signal(signal.SIGHUP)
        mta.wait_until(lambda: sum("configuration reloaded" in line for line in mta.log) >= 2, "a reload")
        mta.command("retry", "domain=grey.test", "--yes")
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    by_kind = {kind: {event["source_address"] for event in mta.events() if event["event"] == kind}
               for kind in ("deferred", "delivered")}
    assert by_kind == {"deferred": {"127.0.0.2"}, "delivered": {"127.0.0.3"}}


def test_labels_are_refused_or_removed_at_the_door(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """A pool that does not exist is `550 5.7.1`; the fields of labels do not go out."""
    sandbox.stop()
    with Sandbox({"log_content": "1MB"}) as recording:
        mta = make_mta(dns={"servers": [recording.dns]}, shaping={"default": {"port": recording.smtp_port}},
                       listeners=[{"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.0/8"], "labels": {"tenant": "door"}}])
        with mta:
            with smtplib.SMTP(*mta.smtp) as client:
                client.ehlo()
                client.mail("x@x.test")
                client.rcpt("u@d.test")
                code, text = client.data(labelled(1, "u@d.test", pool="none"))
            assert (code, text[:6]) == (550, b"5.7.1 ")
            mta.send("x@x.test", ["u@d.test"], labelled(2, "u@d.test", campaign="c1"))
            recording.wait_for(lambda stats: bool(stats["messages"] == 1))
            mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        assert "X-Campaign" not in recording.log()[-1]["content"]
    assert [event["queue"] for event in mta.events() if event["event"] == "received"] == ["c1:door@d.test"]


def test_the_rate_of_a_tenant_holds_over_all_workers(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Ten in a second, over two workers that share the mail, by when the receiver hears of them; others are not held
    up. Its bound on the queue is told at the door as `452 4.2.2`."""
    sandbox.stop()
    with Sandbox({"times": 1000}) as timing:
        mta = make_mta(dns={"servers": [timing.dns]}, shaping={"default": {"port": timing.smtp_port}},
                       tenants={"slow": {"message_rate": ["10/s"], "queue_size": 30}})
        with mta:
            taken = _send_to_slow_and_quick(mta)
        times = [arrival.mail_at for arrival in timing.arrivals() if arrival.domain != "quick.test"]
    assert len(times) == taken
    seconds = Counter(map(int, times))
    assert max(seconds.values()) <= 11, seconds


def _send_to_slow_and_quick(mta: Mta) -> int:
    """Until there is no room for more of `slow`, then of others, and wait for all of it; how many of `slow` were
    taken."""
    sent = refused = 0
    with smtplib.SMTP(*mta.smtp) as first, smtplib.SMTP(*mta.smtp) as second:
        first.ehlo()
        second.ehlo()
        begun = time.monotonic()
        while sent < 40 or not refused:  # on a busy machine some are delivered before all are sent
            client = (first, second)[sent % 2]
            client.mail("x@x.test")
            client.rcpt(f"u@d{sent % 4}.test")
            code, text = client.data(labelled(sent, "u@d.test", tenant="slow"))
            refused += code == 452 and text.startswith(b"4.2.2")
            sent += 1
    injector = Injector(mta, ["quick.test"], 2)
    injector.start(50)
    injector.wait()
    mta.wait_until(lambda: sum(event["event"] == "delivered" and event["queue"] == "quick.test"
                               for event in mta.events()) == 50, "mail of others")
    waiting = [json.loads(line) for line in mta.command("queue", "--json").splitlines()]
    if time.monotonic() - begun < 2.0:
        assert any("rate of tenant slow (10/s) is used up" in row["reason"] for row in waiting), waiting
    mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert 0 < refused <= 10
    return sent - refused
