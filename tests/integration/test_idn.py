"""A domain beyond ASCII is found by its U-labels and by its A-labels, at every door of the operator."""

from __future__ import annotations

import json
import smtplib
from collections.abc import Callable
from typing import Any

import pytest

from mta.sandbox.client import Sandbox
from tests.integration.support import Mta, message

MAKE = Callable[..., Mta]
U, A = "BÜCHER.test", "xn--Bcher-kva.TEST"
QUEUE = "xn--bcher-kva.test"
TARGETS = ("suspend", "limit")


def send(mta: Mta) -> None:
    """A message to the domain in each form, and one to another domain, each from one of the forms."""
    with smtplib.SMTP(*mta.smtp, timeout=30) as client:
        client.ehlo()
        for number, domain in enumerate(("bücher.test", QUEUE, "other.test")):
            options = ["SMTPUTF8", "BODY=8BITMIME"] if not domain.isascii() else []
            assert client.mail(f"news@{domain}", options)[0] == 250
            assert client.rcpt(f"u{number}@{domain}")[0] == 250
            assert client.data(message(number, "someone"))[0] == 250


def rows(mta: Mta, *words: str) -> list[dict[str, Any]]:
    """What a command says, a line of JSON each."""
    return [json.loads(line) for line in mta.command(*words, "--json").splitlines()]


@pytest.fixture
def mta(make_mta: MAKE, sandbox: Sandbox) -> Mta:
    """One whose mail has been tried, and waits for an hour."""
    for domain in (QUEUE, "other.test"):
        sandbox.set(domain, {"rules": [{"at": "rcpt", "reply": "450 4.2.1 later"}]})
    running = make_mta(workers=1, retry={"first": "1h", "cap": "1h"}, sources={"one": {}, "two": {}},
                       pools={"default": {"one": 1}, "two": {"two": 1}})
    running.start()
    send(running)
    running.wait_until(lambda: sum(event["event"] == "deferred" for event in running.events()) == 3, "three attempts")
    return running


@pytest.mark.parametrize("domain", [U, A])
def test_commands_find_it(mta: Mta, sandbox: Sandbox, domain: str) -> None:
    """Each command that takes a domain, or an expression, or the name of a queue, means the two messages to it."""
    assert [one["name"] for one in rows(mta, "queue", "list", domain)] == [QUEUE]
    assert [one["name"] for one in rows(mta, "queue", "list", f"*{domain[4:]}")][:1] == [QUEUE]
    assert len(rows(mta, "queue", "show", domain)) == 2
    for what in (domain, f"domain={domain}", f"queue={domain}"):
        assert [one["what"] for one in rows(mta, "explain", what)][:3] == ["queue", "delivery", "delivery"], what
    for text in (f"domain={domain} and age>0s", f"recipient=@{domain}", f"sender=news@{domain}",
                 f"domain=*.{domain} or sender=*@{domain}"):
        assert len(rows(mta, "explain", text)) == 2, text
    for command in (["pause"], ["retry"], ["expire"], ["delete"], ["reroute", "two"], ["suspend"], ["limit"]):
        mail = [f"domain={domain}"]
        more = ["connections=1"] if command == ["limit"] else []
        found = json.loads(mta.command(*command, *mail, *more, "--dry-run", "--json"))
        assert (found["touched"]["deliveries"], found["touched"]["queues"]) == (2, 1), command
    for command, end in ((["pause"], ["resume"]), (["reroute", "two"], ["reroute", "off"]),
                         (["suspend"], ["unsuspend"]), (["limit"], ["limit"])):
        more, off = (["connections=1"], ["off"]) if command == ["limit"] else ([], [])
        mta.command(*command, f"domain={domain}", *more, "--yes")
        state = rows(mta, "queue", "show", QUEUE)[0]
        said = mta.command("explain", f"domain={QUEUE}")
        if command == ["pause"]:
            assert "paused by order" in state["reason"]
        if command[0] in TARGETS:
            assert f"domain:{QUEUE} is " in said
        if command[0] == "reroute":
            assert "goes by pool two" in said
        other = U if domain == A else A  # what was ordered by one form is ended by the other
        assert "is ended" in mta.command(*end, f"domain={other}", *off)
    mta.command("retry", f"--domain={domain}", "--yes")
    mta.wait_until(lambda: sum(event["event"] == "deferred" for event in mta.events()) == 5, "another attempt of two")
    mta.command("delete", f"domain={domain}", "--yes")
    mta.wait_until(lambda: mta.queued() == 1, "two are deleted")
    mta.stop()
    assert {one for event in mta.events() if event["event"] == "deleted" for one in event["recipients"]} == {
        "u0@bücher.test", f"u1@{QUEUE}"}


@pytest.mark.parametrize("domain", [U, A])
def test_the_configuration_finds_it(make_mta: MAKE, sandbox: Sandbox, domain: str) -> None:
    """Routes, shaping of a domain, of a source's mail to one, a provider by domains, and labels by the sender's."""
    shaping = {"domains": {domain: {"connections": 3}}, "sources": {"one": {"domains": {domain: {"idle": "7s"}}}},
               "providers": {"books": {"match": {"domains": [domain]}, "message_rate": ["9/s"]}}}
    mta = make_mta(workers=1, sources={"one": {}}, shaping=shaping, labels={"senders": {domain: {"tenant": "acme"}}},
                   routes={f"Relay.{domain}": {"relay": f"127.0.0.1:{sandbox.smtp_port}"}, "*": "mx"})
    with mta:
        mta.command("pause", "queue=*", "--yes")
        send(mta)
        mta.wait_until(lambda: mta.queued() == 3, "three in the queue")
        assert {one["name"]: one["deliveries"] for one in rows(mta, "queue")} == {f"acme@{QUEUE}": 2, "other.test": 1}
        for written in (U, A):
            said = mta.command("shaping", "show", written)
            for value in ("3", "9/s", "books"):
                assert value in said
            assert json.loads(mta.command("dns", written, "--json"))["provider"] == "books"
            assert json.loads(mta.command("dns", f"relay.{written}", "--json"))["fixed"] is True
