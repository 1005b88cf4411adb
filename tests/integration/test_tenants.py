"""Labels and the limits of tenants, from the door to the receiver, with two workers."""

from __future__ import annotations

import datetime
import re
import smtplib
from collections.abc import Callable
from typing import Any

from mta.sandbox.client import Sandbox
from tests.integration.support import Mta, message

SOURCES = {"a": {"ipv4": "127.0.0.2"}, "b": {"ipv4": "127.0.0.3"}}


def with_fields(number: int, recipient: str, *fields: str) -> bytes:
    """A message with these lines first."""
    return "".join(f"{line}\r\n" for line in fields).encode() + message(number, recipient)


def submit(address: tuple[str, int], sender: str, recipient: str, content: bytes) -> tuple[int, bytes]:
    """The answer to one message, on a connection of its own."""
    with smtplib.SMTP(*address, timeout=30) as client:
        client.ehlo()
        client.mail(sender)
        client.rcpt(recipient)
        return client.data(content)


def test_labels_from_every_place_reach_the_wire(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Configured header fields, the listener, the sender's domain, the tenant, the default: each makes the queue, its
    pool decides from where it leaves, and none of the fields goes out."""
    sandbox.stop()
    with Sandbox({"log_content": "1MB"}) as recording:
        mta = make_mta(
            dns={"servers": [recording.dns]}, shaping={"default": {"port": recording.smtp_port}},
            sources=SOURCES, pools={"default": {"a": 1}, "p": {"b": 1}},
            labels={"tenant": ["X-Customer"], "campaign": ["X-Job"], "pool": ["X-Exit"], "priority": ["X-Urgency"],
                    "senders": {"news.test": {"tenant": "newsie"}}, "default": {"campaign": "rest"}},
            tenants={"newsie": {"pool": "p", "priority": "bulk"}},
            listeners=[{"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.0/8"]},
                       {"smtp": "127.0.0.5:0", "relay_from": ["127.0.0.0/8"], "label_headers": False,
                        "labels": {"tenant": "door", "priority": "transactional"}}])
        with mta:
            ready = next(line for line in mta.log if "ready:" in line)
            first, second = ((host, int(port)) for host, port in re.findall(r"(127\.0\.0\.\d):(\d+)", ready))
            every = ("x-customer: acme", "X-Job: j1", "X-Exit: p", "X-Urgency: Transactional", "X-Tenant: stays")
            assert submit(first, "x@x.test", "u1@d.test", with_fields(1, "u1@d.test", *every))[0] == 250
            assert submit(second, "x@x.test", "u2@d.test", with_fields(2, "u2@d.test", *every))[0] == 250
            assert submit(first, "x@news.test", "u3@d.test", with_fields(3, "u3@d.test"))[0] == 250
            assert submit(first, "x@x.test", "u4@d.test", with_fields(4, "u4@d.test"))[0] == 250
            mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        sent = {entry["recipients"][0]: entry["content"] for entry in recording.log()}
    delivered = {event["recipients"][0]: (event["queue"], event["source_address"])
                 for event in mta.events() if event["event"] == "delivered"}
    assert delivered == {
        "u1@d.test": ("j1:acme@d.test/p^transactional", "127.0.0.3"),
        "u2@d.test": ("rest:door@d.test^transactional", "127.0.0.2"),
        "u3@d.test": ("rest:newsie@d.test/p^bulk", "127.0.0.3"),
        "u4@d.test": ("rest:@d.test", "127.0.0.2"),
    }
    for content in sent.values():
        assert not re.search(r"(?im)^x-(customer|job|exit|urgency):", content)
    assert "X-Tenant: stays" in sent["u1@d.test"]


def overlap(events: list[dict[str, Any]]) -> int:
    """The largest number of transactions at the same time, by the events of their ends."""
    changes: list[tuple[float, int]] = []
    for event in events:
        end = datetime.datetime.fromisoformat(event["time"]).timestamp()
        changes += [(end - event["duration_s"] + 0.02, 1), (end - 0.02, -1)]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def test_a_tenants_concurrency_holds_over_all_workers(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Three in flight at once, over two workers and four domains; they are used, and others are not held up."""
    sandbox.set("*.slow.test", {"rules": [{"at": "dot", "delay": "200ms"}]})
    with make_mta(tenants={"small": {"concurrency": 3}}) as mta:
        mta.command("pause", "domain=*.slow.test", "--yes")  # else a slow client leaves nothing to hold back
        for number in range(24):
            to = f"u{number}@d{number % 4}.slow.test"
            mta.send("x@x.test", [to], with_fields(number, to, f"X-Tenant: {'small' if number % 2 else 'other'}"))
        mta.command("resume", "--all")
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    delivered = [event for event in mta.events() if event["event"] == "delivered"]
    assert len(delivered) == 24
    assert overlap([event for event in delivered if event["queue"].startswith("small@")]) == 3


def test_what_a_tenant_may_have_holds_over_workers_and_restarts(make_mta: Callable[..., Mta],
                                                                sandbox: Sandbox) -> None:
    """Six in the queue, and ten a day: the seventh gets `452 4.2.2` whichever worker it meets, also after a restart;
    when there is room again, the eleventh of the day gets `452 4.7.1`, also after a restart. Others are taken."""
    sandbox.set("busy.test", {"rules": [{"at": "rcpt", "reply": "451 4.3.2 not now"}]})
    mta = make_mta(tenants={"t": {"queue_size": 6, "daily_volume": 10}}, retry={"first": "1h", "cap": "1h"})
    number = 0

    def offer(domain: str, tenant: str = "t") -> tuple[int, bytes]:
        nonlocal number
        number += 1
        code, text = submit(mta.smtp, "x@x.test", f"u@{domain}", with_fields(number, "u", f"X-Tenant: {tenant}"))
        return code, text[:5]

    with mta:
        assert [offer("busy.test")[0] for _ in range(6)] == [250] * 6
        assert [offer("busy.test") for _ in range(4)] == [(452, b"4.2.2")] * 4
        assert offer("busy.test", "other")[0] == 250
    with mta:
        mta.command("queue")  # answered behind the counts of the start, for which the doors do not wait
        assert offer("busy.test") == (452, b"4.2.2")
        mta.command("delete", "tenant=t", "--reason", "room", "--yes")
        mta.wait_until(lambda: mta.queued() == 1, "room")
        assert [offer("d.test")[0] for _ in range(4)] == [250] * 4
        assert offer("d.test") == (452, b"4.7.1")
        mta.wait_until(lambda: mta.queued() == 1, "delivery")
    with mta:
        assert [offer("d.test") for _ in range(3)] == [(452, b"4.7.1")] * 3
        assert offer("d.test", "other")[0] == 250
