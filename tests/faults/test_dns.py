"""DNS that is dead, slow, broken or lying, each in its own way for its own domain: all of it at once against one MTA.

Real datagrams and connections. While they misbehave every queue says what is wrong with DNS, nothing bounces, and mail
to others moves. When DNS is well again each message is delivered, once.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.programs import free_port
from mta.queue.verify import verify_spool
from mta.sandbox.client import Sandbox
from tests.faults import nameserver
from tests.faults.books import assert_balanced, assert_no_bug, number_of, queued, rows
from tests.faults.nameserver import EVIL, Fault, NameServer
from tests.integration.support import Mta, message

ROUNDS = int(os.environ.get("MTA_FAULT_ROUNDS", "1"))
PATIENCE_S = 180.0  # only a failing test waits so long
EACH = 3
TIMEOUT_S = 1.0
ATTEMPTS = 3
PAUSE_S = 3.0  # fifty domains are asked for again and again, which is not to be all that the machine does

DNS = {"timeout": f"{TIMEOUT_S:.0f}s", "attempts": ATTEMPTS, "failure_ttl": "1s", "min_ttl": "0s",
       "max_ttl": "1s", "negative_ttl": "1s"}
RETRY = {"first": "1s", "cap": "1s", "site_first": f"{PAUSE_S:.0f}s", "site_cap": f"{PAUSE_S:.0f}s"}

SILENT = f"no answer in {TIMEOUT_S:.0f}s"
SIGNS: dict[str, tuple[Fault, str]] = {
    "dead": (nameserver.dead, SILENT),
    "too-late": (nameserver.too_late, SILENT),
    "wrong-id": (nameserver.wrong_id, SILENT),
    "wrong-question": (nameserver.wrong_question, SILENT),
    "wrong-port": (nameserver.wrong_port, SILENT),
    "wrong-address": (nameserver.wrong_address, SILENT),
    "refused": (nameserver.refused, "REFUSED"),
    "servfail": (nameserver.servfail, "SERVFAIL"),
    "formerr": (nameserver.formerr, "FORMERR"),
    "notimp": (nameserver.notimp, "NOTIMP"),
    "garbage": (nameserver.garbage, "unreadable answer"),
    "nothing": (nameserver.nothing, f"unreadable answer|{SILENT}"),
    "referral": (nameserver.referral, "it only refers to other servers"),
    "alias-loop": (nameserver.alias_loop, "a loop of CNAMEs"),
    "endless-aliases": (nameserver.endless_aliases, "more than 10 CNAMEs"),
    "tc-dead": (nameserver.truncated(nameserver.dead), "no answer over TCP"),
    "tc-late": (nameserver.truncated(nameserver.late), "no answer over TCP"),
    "tc-hangs-up": (nameserver.truncated(nameserver.hangs_up), "connection closed, over TCP"),
    "tc-garbage": (nameserver.truncated(nameserver.garbage), "unreadable answer"),
    "tc-wrong-id": (nameserver.truncated(nameserver.wrong_id), "TCP"),
    "tc-cut-short": (nameserver.truncated(nameserver.cut_short), "connection closed, over TCP"),
    "tc-endless": (nameserver.truncated(nameserver.endless), "no answer over TCP"),
    "tc-truncated": (nameserver.truncated(nameserver.again_truncated), "truncated answer over TCP"),
    "tc-servfail": (nameserver.truncated(nameserver.servfail), "SERVFAIL"),
}
"""The faults that keep mail waiting, and what an operator reads about them."""

WORKS: dict[str, Fault] = {
    "late": nameserver.late,
    "tc-right": nameserver.truncated(nameserver.right),
    "tc-huge": nameserver.truncated(nameserver.huge),
}
"""What is odd, and no obstacle."""

WAITING = [*(f"{name}.mx.test" for name in SIGNS), *(f"{name}.a.test" for name in SIGNS), "empty.mx.test"]
"""Domains, by where the fault is: in the answers about the domain itself, or about its MX host."""


@dataclass
class Story:
    """What was seen, by domain."""

    reasons: dict[str, str] = field(default_factory=dict)  # what `mta queue` said
    detail: str = ""  # what `mta message` said of one
    early: set[int] = field(default_factory=set)  # delivered before DNS was well
    events: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    thefts: int = 0
    most_asked: dict[str, int] = field(default_factory=dict)  # questions about a domain and what is below
    lasted_s: float = 0.0
    memory: tuple[int, int] = (0, 0)
    log: list[str] = field(default_factory=list)


def faults_by_name() -> dict[str, Fault]:
    faults: dict[str, Fault] = {}
    for name, (fault, _) in SIGNS.items():
        faults[f"{name}.mx.test"] = fault
        faults[f"mx1.{name}.a.test"] = fault
    for name, fault in WORKS.items():
        faults[f"{name}.works.test"] = fault
        faults[f"mx1.{name}.works.test"] = nameserver.late if fault is nameserver.late else nameserver.right
    faults["empty.mx.test"] = nameserver.empty
    faults["mx1.empty.mx.test"] = nameserver.right
    return faults


def is_sign(domain: str, text: str) -> bool:
    """Whether an operator who reads this about a domain of `WAITING` knows what is wrong with its DNS."""
    sign = SIGNS[domain.partition(".")[0]][1] if not domain.startswith("empty") else "the SOA that would prove it"
    return re.search(sign, text) is not None


def delivered(mta: Mta) -> set[int]:
    return {number_of(event["message_id"]) for event in mta.events() if event["event"] == "delivered"}


@pytest.fixture(scope="module")
def story() -> Story:
    """All of it happens once, or as often as is asked for."""
    story = Story()
    fine = [*(f"{name}.works.test" for name in WORKS), *(f"d{number}.fine.test" for number in range(5))]
    counter = iter(range(1 << 30))
    with tempfile.TemporaryDirectory(prefix="mta-") as directory, Sandbox() as sandbox, \
            NameServer(sandbox.dns, {}) as server, socket.create_server((EVIL, sandbox.smtp_port)) as thief:
        threading.Thread(target=_count_thefts, args=(thief, story), daemon=True).start()
        mta = Mta(Path(directory), server.endpoint, sandbox.smtp_port, workers=1,
                  dns=DNS, retry=RETRY, shaping={"default": {"idle": "0s"}})
        with mta:
            for round_ in range(ROUNDS):
                if round_:
                    time.sleep(1.2)  # what was right is forgotten
                server.faults = faults_by_name()
                server.asked.clear()
                began = time.monotonic()
                memory = mta.status()["workers"][0]["memory"]
                mine: dict[str, list[int]] = {}
                for domain in [*WAITING, *fine]:
                    mine[domain] = [next(counter) for _ in range(EACH)]
                    for number in mine[domain]:
                        mta.send("", [f"u@{domain}"], message(number, f"u@{domain}"))
                expected = {number for domain in fine for number in mine[domain]}
                mta.wait_until(lambda e=expected: e <= delivered(mta), "mail to others", PATIENCE_S)
                reasons = {}
                deadline = time.monotonic() + PATIENCE_S
                while missing := [domain for domain in WAITING if domain not in reasons]:
                    said = {name: row.reason or row.last_reply for name, row in rows(mta).items()}
                    assert time.monotonic() < deadline, {domain: said.get(domain) for domain in missing}
                    # An answer of this process may come later than it is waited for; then that is said first.
                    reasons |= {name: text for name, text in said.items() if name in missing and is_sign(name, text)}
                    time.sleep(0.1)
                story.reasons |= reasons
                story.numbers |= {domain: [*story.numbers.get(domain, []), *found] for domain, found in mine.items()}
                story.early |= delivered(mta) & {number for numbers in mine.values() for number in numbers}
                mta.wait_until(lambda: note_detail(mta, story), "the reason in `mta message`", PATIENCE_S)
                story.lasted_s = time.monotonic() - began
                story.memory = (memory, mta.status()["workers"][0]["memory"])
                for name, count in server.asked.items():
                    labels = name.split(".")
                    domain = ".".join(labels[-3:])
                    story.most_asked[domain] = story.most_asked.get(domain, 0) + count
                server.heal()
                mta.wait_until(lambda: queued(mta) == 0, "an empty queue", PATIENCE_S)
                if round_ < ROUNDS - 1:
                    story.most_asked.clear()
        story.events = list(mta.events())
        story.log = mta.log
        numbers = [number for found in story.numbers.values() for number in found]
        assert_balanced(mta, numbers, sandbox.received())
        assert_no_bug(mta)
        assert verify_spool(Path(mta.config["spool"])) == []
    return story


def _count_thefts(listener: socket.socket, story: Story) -> None:
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return
        story.thefts += 1


def note_detail(mta: Mta, story: Story) -> bool:
    """Note what `mta message` says of the first delivery of a queue; whether that is the reason, and not that it is
    just being looked up again."""
    found = re.search(r'"message": "([^"]+)"',
                      mta.command("queue", "show", "servfail.mx.test", "--json", "--limit", "1"))
    assert found is not None
    story.detail = mta.command("message", found[1])
    return "SERVFAIL" in story.detail


def test_the_only_server_goes_away_and_comes_back(directory: Path, sandbox: Sandbox) -> None:
    """Nobody listens where the resolver should be: mail is accepted and waits with that reason, nothing bounces; it
    goes when there is one again. What DNS says for good is believed before and after, and only that bounces."""
    sandbox.set("gone.test", {"dns": {"answer": "nxdomain"}})
    sandbox.set("null.test", {"dns": {"mx": ["0 ."]}})
    port = free_port(["127.0.0.1"])
    mta = Mta(directory / "mta", f"127.0.0.1:{port}", sandbox.smtp_port, workers=1, dns={**DNS, "attempts": 2},
              retry=RETRY)
    domains = [*(f"d{number}.test" for number in range(20)), "gone.test", "null.test"]
    with mta:
        for number, domain in enumerate(domains):
            mta.send("", [f"u@{domain}"], message(number, f"u@{domain}"))
        mta.wait_until(lambda: all("connection refused" in found.reason for found in rows(mta).values())
                       and len(rows(mta)) == len(domains), "the reason", PATIENCE_S)
        assert {event["event"] for event in mta.events()} <= {"received", "suspended"}
        with NameServer(sandbox.dns, {}, port):
            mta.wait_until(lambda: queued(mta) == 0, "an empty queue", PATIENCE_S)
            sandbox.set("gone.test", {})
            time.sleep(1.1)  # as long as it is believed that it does not exist
            mta.send("", ["u@gone.test"], message(100, "u@gone.test"))
            mta.wait_until(lambda: queued(mta) == 0, "an empty queue", PATIENCE_S)
    bounced = {event["queue"]: event["enhanced"] for event in mta.events() if event["event"] == "bounced"}
    assert bounced == {"gone.test": "5.1.2", "null.test": "5.1.10"}
    assert_balanced(mta, [*range(20), 100], sandbox.received())
    assert_no_bug(mta)


@pytest.mark.parametrize("domain", WAITING)
def test_mail_waits_and_says_what_is_wrong_with_dns(domain: str, story: Story) -> None:
    """No bounce, no delivery before DNS is well, the reason in `mta queue`; then each message once, at the first
    attempt."""
    assert is_sign(domain, story.reasons[domain]), story.reasons[domain]
    assert not set(story.numbers[domain]) & story.early
    ends = [event for event in story.events if event.get("queue") == domain and event["event"] in (
        "delivered", "bounced", "expired", "deferred")]
    assert [event["event"] for event in ends] == ["delivered"] * EACH * ROUNDS
    assert {(event["attempt"], event["maybe_duplicate"]) for event in ends} == {(1, False)}


def test_the_message_says_it_too(story: Story) -> None:
    """`mta message` has the reason."""
    assert re.search(r"waits: .*SERVFAIL", story.detail), story.detail


@pytest.mark.parametrize("name", WORKS)
def test_what_is_odd_is_no_obstacle(name: str, story: Story) -> None:
    """Answers that come late but in time, by TCP, or very long: the mail went before DNS was well."""
    assert set(story.numbers[f"{name}.works.test"]) <= story.early


def test_no_forged_answer_is_believed(story: Story) -> None:
    """Nobody ever connected to where the lies lead."""
    assert story.thefts == 0


def test_questions_and_memory_are_bounded(story: Story) -> None:
    """A name that fails is asked for as often as attempts and pauses allow, not for each message and not in a circle;
    what is remembered of hostile answers is little; the log tells of each domain once."""
    lookups = story.lasted_s / PAUSE_S + 2  # of one name; the address of an MX host has two types
    for domain in WAITING:
        questions = ATTEMPTS * 2 * (12 if domain.startswith("endless") else 2)  # each may go by TCP, or on to an alias
        assert story.most_asked[domain] <= 3 * lookups * questions, (domain, story.most_asked[domain])
    before, after = story.memory
    assert after - before < 40_000_000
    for domain in WAITING:
        assert sum(f"?{domain}:" in line or f"mx1.{domain}:" in line for line in story.log) <= ROUNDS + 1
