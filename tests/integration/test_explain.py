"""`mta explain` against the truth: for every delivery that waits it names the trouble that its domain was given."""

from __future__ import annotations

import json
import os
import smtplib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from mta.control.causes import CauseRow, Causes
from mta.control.client import ControlClient
from mta.control.explanation import Explained, subject_of
from mta.control.protocol import from_wire
from mta.delivery.reason import Reason
from mta.sandbox.client import Sandbox
from tests.integration.support import Mta, message

MAKE = Callable[..., Mta]
MESSAGES = int(os.environ.get("EXPLAIN_MESSAGES", "400"))
PATIENCE_S = 60.0
STUCK: dict[str, Any] = {"rules": [{"at": "dot", "hang": True}]}


class Trouble(NamedTuple):
    """What is wrong with one domain, and what may be said of its mail: kinds of reason, each with words of it."""

    receiver: dict[str, Any]
    truth: dict[str, str]
    shaping: Mapping[str, Any] = MappingProxyType({})
    order: tuple[str, ...] = ()
    tenant: str = ""
    pool: str = ""


def answers(at: str, reply: str) -> dict[str, Any]:
    """A receiver that says so at a stage."""
    return {"rules": [{"at": at, "reply": reply}]}


def host(state: str) -> dict[str, Any]:
    """A receiver whose only MX host is in this state."""
    return {"dns": {"mx": [f"10 mx1.{{domain}} {state}"]}}


IN_FLIGHT = {"in-flight": "being delivered"}
TROUBLES: dict[str, Trouble] = {
    "servfail": Trouble({"dns": {"answer": "servfail"}}, {"dns": "SERVFAIL"}),
    "dnsrefused": Trouble({"dns": {"answer": "refused"}}, {"dns": "REFUSED"}),
    "dnssilent": Trouble({"dns": {"answer": "timeout"}}, {"routing": "looked up", "dns": "no answer"}),
    "hostless": Trouble(host("servfail"), {"site": "SERVFAIL"}),
    "closed": Trouble({"listening": False}, {"site": "refused"}),
    "greeting": Trouble(answers("connect", "421 4.3.2 System not accepting messages"),
                        {"site": "System not accepting messages"}),
    "breaks": Trouble({"rules": [{"at": "ehlo", "drop": "rst"}]}, {"site": "mx1.breaks.test"}),
    "silent": Trouble({"rules": [{"at": "connect", "hang": True}]}, {"opening": "waits for the greeting"}),
    "grey": Trouble({"greylist": "1h"}, {"retry": "Greylisted"}),
    "full": Trouble(answers("rcpt", "452 4.2.2 Mailbox full"), {"retry": "Mailbox full"}),
    "later": Trouble(answers("dot", "451 4.3.0 Try again later"), {"retry": "Try again later"}),
    "data": Trouble(answers("data", "451 4.3.0 No data now"), {"retry": "No data now"}),
    "plain": Trouble({"starttls": "off"}, {"retry": "TLS", "site": "TLS"}, {"tls": "required"}),
    "badtls": Trouble({"starttls": "refused"}, {"retry": "TLS", "site": "TLS"}, {"tls": "required"}),
    "rate": Trouble({}, {"rate": "1/h"}, {"message_rate": ["1/h"]}),
    "opens": Trouble({}, {"connection-rate": "1/h"}, {"connection_rate": ["1/h"], "messages_per_connection": 1}),
    "narrow": Trouble(STUCK, {**IN_FLIGHT, "limit": "limit of 1 connections"}, {"connections": 1}),
    "both": Trouble(STUCK, {**IN_FLIGHT, "limit": "limit of 1 connections in all to domain:both.test"},
                    {"total_connections": 1}),
    "hiddenrate": Trouble({"rate": "1/h"}, {"adaptation": "refused", "retry": "Unusual rate"}),
    "listed": Trouble(answers("mail", "450 4.7.77 your address is listed"),
                      {"suspension": "by rule test-listed", "retry": "your address is listed"}),
    "domain": Trouble({}, {"suspension": "domain:domain.test is suspended: ticket 1 (by order"},
                      order=("suspend", "domain=domain.test", "--reason", "ticket 1")),
    "queue": Trouble({}, {"order": "paused by order"}, order=("pause", "--domain", "queue.test")),
    "single": Trouble({}, {"order": "paused by order"}, order=("pause", "recipient=u*@single.test")),
    "tpaused": Trouble({}, {"order": "paused by order"}, order=("pause", "--tenant", "quiet"), tenant="quiet"),
    "tsuspended": Trouble({}, {"suspension": "tenant:bad is suspended: ticket 2"},
                          order=("suspend", "tenant=bad", "--reason", "ticket 2"), tenant="bad"),
    "trate": Trouble({}, {"tenant-rate": "rate of tenant slow (1/h)"}, tenant="slow"),
    "tnarrow": Trouble(STUCK, {**IN_FLIGHT, "tenant-concurrency": "limit of 1 messages of tenant narrow"},
                       tenant="narrow"),
    "nosource": Trouble({}, {"source": "does not have the address 192.0.2.77"}, pool="lost"),
    "offsource": Trouble({}, {"suspension": "source:b is suspended: ticket 3"}, pool="b",
                         order=("suspend", "source=b", "--reason", "ticket 3")),
}
SUSPENDED_RULE = {"name": "test-listed", "code": 450, "text": "your address is listed", "suspend": "path for 1h",
                  "class": "reputation", "samples": ["450 4.7.77 your address is listed"]}


def send(mta: Mta, count: int) -> None:
    """So many messages, to all domains in turn, each in one session."""
    with smtplib.SMTP(*mta.smtp, timeout=30) as client:
        for number in range(count):
            name, trouble = list(TROUBLES.items())[number % len(TROUBLES)]
            to = f"u{number}@{name}.test"
            labels = f"X-Tenant: {trouble.tenant}\r\n" if trouble.tenant else ""
            labels += f"X-Pool: {trouble.pool}\r\n" if trouble.pool else ""
            client.sendmail("x@client.test", [to], labels.encode() + message(number, to))


def waiting(client: ControlClient) -> list[Explained]:
    """What is said about each delivery of the queue."""
    return [from_wire(Explained, json.loads(line))
            for page in client.pages("", causes=False) for line in page.lines.splitlines()]


def asked_one_by_one(client: ControlClient, rows: list[Explained]) -> list[Explained]:
    """What is said about the same deliveries, message by message."""
    return [row for one in rows for row in client.explain("message", one.message.partition("/")[0]).rows]


def wrong(rows: list[Explained]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Those of which something else than the truth is said."""
    found = []
    for row in rows:
        truth = TROUBLES[row.recipients[0].partition("@")[2].removesuffix(".test")].truth
        said = [(one.kind, one.text) for one in row.reasons]
        if not said or not all(kind in truth and truth[kind] in text for kind, text in said):
            found.append((row.recipients[0], said))
    return found


def causes_of(client: ControlClient) -> list[CauseRow]:
    """The causes of all that waits, with their numbers."""
    causes = Causes()
    for page in client.pages("", causes=True):
        causes.add(page.causes)
    return causes.rows


def agree(causes: list[CauseRow], rows: list[Explained]) -> bool:
    """Whether the counts are those of the deliveries, but for a few that changed their state between the two looks."""
    told, counted = Counter[str](), Counter[str]()
    for row in rows:
        common = row.reasons[1:] if len(row.reasons) > 1 else row.reasons
        told[common[0].kind] += 1
    for cause in causes:
        counted[cause.kind] += cause.deliveries
    return sum(((told - counted) + (counted - told)).values()) <= len(rows) // 10


def check_causes(causes: list[CauseRow], rows: list[Explained]) -> None:
    """None is missed; each with a remedy; what is told in the same words is counted together."""
    assert sum(cause.deliveries for cause in causes) == len(rows)
    assert all(cause.remedy and cause.example and cause.queues for cause in causes if cause.kind != "in-flight")
    replies = {cause.text: cause.deliveries for cause in causes if cause.kind == "retry"}
    assert any("Mailbox full" in text and count > 1 for text, count in replies.items()), replies


@pytest.mark.timeout(120 + MESSAGES // 10)
def test_the_cause_of_every_delivery_that_waits(make_mta: MAKE, sandbox: Sandbox) -> None:
    """Some thirty kinds of trouble over two workers; for every delivery that waits the reason is the true one."""
    for name, trouble in TROUBLES.items():
        sandbox.set(f"{name}.test", trouble.receiver)
    shaping = {f"{name}.test": dict(trouble.shaping) for name, trouble in TROUBLES.items() if trouble.shaping}
    causes: list[CauseRow] = []
    mta = make_mta(
        retry={"first": "1h", "cap": "2h", "site_first": "1h", "site_cap": "2h"}, shaping={"domains": shaping},
        sources={"a": {"ipv4": "127.0.0.2"}, "b": {"ipv4": "127.0.0.3"}, "gone": {"ipv4": "192.0.2.77"}},
        pools={"default": {"a": 1}, "b": {"b": 1}, "lost": {"gone": 1}}, rules=[SUSPENDED_RULE],
        tenants={"slow": {"message_rate": ["1/h"]}, "narrow": {"concurrency": 1}})
    with mta:
        for trouble in TROUBLES.values():
            if trouble.order:
                mta.command(*trouble.order, "--yes")
        send(mta, MESSAGES)
        with ControlClient(mta.config["run"]) as client:
            # Until all has been tried, and what has more than one true reason has the same in both looks; then nothing
            # moves for an hour.
            deadline = time.monotonic() + PATIENCE_S
            while wrong(rows := waiting(client)) or not agree(causes := causes_of(client), rows):
                assert time.monotonic() < deadline, (wrong(rows), causes)
                time.sleep(0.2)
            by_trouble = {(row.name, row.reasons[0].kind): row for row in rows}
            assert wrong(asked_one_by_one(client, list(by_trouble.values()))) == []
            check_causes(causes, rows)
        seen = Counter(row.recipients[0].partition("@")[2].removesuffix(".test") for row in rows)
        assert set(seen) == set(TROUBLES), set(TROUBLES) - set(seen)
        assert len(rows) > MESSAGES * 0.8
        assert all(reason.remedy for row in rows for reason in row.reasons if reason.kind != "in-flight")

        summary = mta.command("explain", "--all")
        assert "ticket 1" in summary
        assert f"{len(rows):,} deliveries" in summary
        some = mta.command("explain", "domain=full.test and age<1d", "--json").splitlines()
        assert {json.loads(line)["name"] for line in some} == {"full.test"}
        assert len(some) == seen["full"]
        text = mta.command("explain", "full.test")
        assert "Mailbox full" in text
        assert "to change it: `mta retry message=" in text
        kinds = {one["kind"] for line in mta.command("explain", "tenant=bad", "--json").splitlines()
                 for one in json.loads(line)["reasons"]}
        assert kinds == {"suspension"}
        assert "ticket 3" in mta.command("explain", "source=b")
        assert "refused" in mta.command("explain", "a>mx1.closed.test")
        mta.command("explain", "nobody.test", check=False)


def suspensions(client: ControlClient, what: str) -> list[Reason]:
    """The reasons of that kind that are told of what a person writes."""
    if " and " in what:
        rows = [from_wire(Explained, json.loads(line)) for page in client.pages(what, causes=False)
                for line in page.lines.splitlines()]
    else:
        rows = client.explain(*subject_of(what)).rows
    return [one for row in rows for one in row.reasons if one.kind == "suspension"]


def questions(sandbox: Sandbox, domain: str) -> dict[str, int]:
    """What DNS was asked about `domain`."""
    return {one: count for one, count in sandbox.questions().items() if domain in one}


def test_a_suspension_is_told_at_once_after_a_restart(make_mta: MAKE, sandbox: Sandbox) -> None:
    """Mail that waits for its retry has no lane yet in a process that has just begun. All the same each door says which
    suspension of its path, source or provider it would meet: by whom, since when, until when, and what lifts it, until
    it is lifted; mail that could go another way is not said to stand still. Each door comes first for some mail, and
    nothing is asked about other mail."""
    targets = {"listed": "a>mx1.listed.test", "path": "a>mx1.path.test", "provider": "provider=books",
               "source": "source=b"}
    names = (*targets, "free")
    for name in names:
        reply = "450 4.7.77 your address is listed" if name == "listed" else "450 4.2.1 later"
        sandbox.set(f"{name}.test", answers("rcpt", reply))
    mta = make_mta(
        retry={"first": "1h", "cap": "1h"}, rules=[SUSPENDED_RULE],
        sources={"a": {"ipv4": "127.0.0.2"}, "b": {"ipv4": "127.0.0.3"}},
        pools={"default": {"a": 1}, "b": {"b": 1}, "both": {"a": 1, "b": 1}},
        shaping={"providers": {"books": {"match": {"domains": ["provider.test"]}}}})
    with mta:
        with smtplib.SMTP(*mta.smtp, timeout=30) as client:
            for number, name in enumerate(names):
                pool = {"source": "X-Pool: b\r\n", "free": "X-Pool: both\r\n"}.get(name, "")
                client.sendmail("x@client.test", [f"u@{name}.test"], pool.encode() + message(number, "u"))
        mta.wait_until(lambda: sum(one["event"] == "deferred" for one in mta.events()) == len(names), "all are tried")
        for name in ("path", "provider", "source"):
            mta.command("suspend", targets[name], "--for", "2h", "--reason", f"ticket of {name}", "--yes")
        ids = {one["recipients"][0]: one["message"] for one in mta.events() if one["event"] == "deferred"}
        began_us = time.time_ns() // 1000
        mta.stop()
        before = questions(sandbox, "free.test")
        mta.start()
        with ControlClient(mta.config["run"]) as control:
            for number, (name, target) in enumerate(targets.items()):
                domain, queue = f"{name}.test", f"{name}.test" + ("/b" if name == "source" else "")
                doors = [ids[f"u@{domain}"], domain, f"queue={queue}", f"domain={domain} and age<1d"]
                for what in doors[number:] + doors[:number]:
                    if " and " in what:  # of many it waits for a moment only
                        mta.wait_until(lambda what=what: suspensions(control, what), "the answer of DNS")
                    found = suspensions(control, what)
                    assert found, what
                    for one in found:
                        assert one.text.startswith(f"{target.replace('=', ':')} is suspended"), (what, one)
                        assert ("by rule test-listed" if name == "listed" else "by order") in one.text, (what, one)
                        assert f"mta unsuspend {target}" in one.remedy.replace("'", ""), (what, one)
                        assert 0 < one.since_us < began_us < one.until_us, (what, one)
                assert control.queues(queue, 1, "name").rows[0].state == "suspended"
                if ">" in target:
                    assert suspensions(control, f"path={target}")
            assert questions(sandbox, "free.test") == before  # it is in none of these lists
            assert suspensions(control, "free.test") == []
            mta.command("unsuspend", *targets.values())
            assert [suspensions(control, f"{name}.test") for name in names] == [[]] * len(names)
