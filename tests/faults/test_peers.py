"""Hosts that break the protocol, each in its own way at its own stage: all of them at once against one MTA.

While they misbehave every queue says why it waits, and mail to others moves. When they have recovered each message is
delivered, once; twice only where the MTA could not know, and said so.
"""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mta.sandbox.certificate import server_context
from mta.sandbox.client import Sandbox
from tests.faults import peers
from tests.faults.books import assert_balanced, assert_no_bug, number_of, queued, rows
from tests.faults.peers import Fault, Peer, Peers
from tests.integration.support import Mta, message

PATIENCE_S = 180.0  # only a failing test waits so long
EACH = 3  # messages to each
LARGE = 3_000_000  # more than the buffers of both sides hold

GONE = "connection closed|connection lost|Connection reset"
SIGNS: dict[Fault, str] = {
    peers.reset: GONE,
    peers.close: GONE,
    peers.close_inside: GONE,
    peers.silent: "timeout while waiting for",
    peers.drip: "timeout while waiting for",
    peers.endless: "a reply of more than 128 lines|a reply to nothing|more than 4096",
    peers.long_line: "a reply line of more than 4096 octets",
    peers.other_code: "a reply that .* cannot have|content was accepted before",
    peers.no_code: "not an SMTP reply",
    peers.mixed_codes: "different codes",
    peers.bare_lf: "bare line feed|not an SMTP reply",
    peers.tls_garbage: "not an SMTP reply|more than 4096 octets|bare line feed",
    peers.goes_down: "4.3.2 going down",
    peers.twice: "a reply to nothing|a reply that .* cannot have",
    peers.before_content: "content was accepted before it was sent",
}
"""What an operator reads about it."""

REPLIED = ("connect", "ehlo", "mail", "rcpt", "data", "dot")
CASES: dict[str, tuple[str, Fault]] = {
    f"{fault.__name__.replace('_', '-')}-at-{stage}": (stage, fault)
    for stage, faults in {
        **{stage: [fault for fault in SIGNS if fault not in (peers.twice, peers.before_content)] for stage in REPLIED},
        "body": [peers.reset, peers.close, peers.silent, peers.drip, peers.endless, peers.no_code, peers.goes_down],
        "after": [peers.reset, peers.close, peers.silent, peers.drip, peers.no_code, peers.goes_down],
    }.items() for fault in faults
}
CASES |= {f"twice-at-{stage}": (stage, peers.twice) for stage in ("connect", "ehlo", "mail", "rcpt", "data")}
CASES["before-content-at-data"] = ("data", peers.before_content)
TLS_CASES: dict[str, tuple[str, Fault]] = {
    f"{fault.__name__.replace('_', '-')}-at-starttls": ("starttls", fault)
    for fault in (peers.reset, peers.close, peers.silent, peers.no_code, peers.plaintext, peers.injected)
}
TLS_CASES["breaks-tls-at-mail"] = ("mail", peers.breaks_tls)
TLS_CASES["breaks-tls-at-dot"] = ("dot", peers.breaks_tls)


@dataclass
class Story:
    """What was seen, by domain."""

    signs: dict[str, list[str]] = field(default_factory=dict)  # texts of suspensions and deferrals before the recovery
    reasons: dict[str, str] = field(default_factory=dict)  # what `mta queue` said
    early: set[int] = field(default_factory=set)  # messages that were delivered before the recovery
    events: list[dict[str, Any]] = field(default_factory=list)
    peers: dict[str, Peer] = field(default_factory=dict)
    numbers: dict[str, range] = field(default_factory=dict)


def domain_of(event: dict[str, Any]) -> str:
    return str(event["path"].removeprefix("mx.") if event["event"] == "suspended" else event["queue"])


def read_signs(mta: Mta) -> dict[str, list[str]]:
    signs: dict[str, list[str]] = {}
    for event in mta.events():
        if event["event"] in ("suspended", "deferred"):
            signs.setdefault(domain_of(event), []).append(event["text"])
    return signs


def without_sign(signs: dict[str, list[str]]) -> list[str]:
    """The domains about which nothing tells yet what their hosts do. A host that is slow to do it, as its thread has
    to wait for a processor, may time out before."""
    return [f"{name}.test" for name, (stage, fault) in CASES.items()
            if stage != "after" and not any(re.search(SIGNS[fault], text) for text in signs.get(f"{name}.test", ()))]


def read_delivered(mta: Mta) -> set[int]:
    return {number_of(event["message_id"]) for event in mta.events() if event["event"] == "delivered"}


@pytest.fixture(scope="module")
def story() -> Story:
    """All of it happens once."""
    story = Story()
    for name, (stage, fault) in {**CASES, **TLS_CASES}.items():
        context = server_context() if fault is peers.breaks_tls else None
        story.peers[f"{name}.test"] = Peer(stage, fault, starttls=name in TLS_CASES, context=context)
    for number, domain in enumerate([*story.peers, "fine.test"]):
        story.numbers[domain] = range(number * EACH, (number + 1) * EACH)
    with tempfile.TemporaryDirectory(prefix="mta-") as directory, Sandbox() as sandbox:
        timeouts = dict.fromkeys(("connect", "greeting", "ehlo", "starttls", "mail", "rcpt", "data", "block"), "1s")
        mta = Mta(Path(directory), sandbox.dns, sandbox.smtp_port, workers=1,
                  shaping={"default": {"timeouts": {**timeouts, "dot": "2s"}, "idle": "2s"}},
                  retry={"first": "1s", "cap": "1s", "site_first": "1s", "site_cap": "1s"})
        with Peers(story.peers, sandbox.smtp_port) as hosts, mta:
            for domain, address in hosts.addresses.items():
                sandbox.set(domain, {"dns": {"mx": [f"10 mx.{domain} {address}"]}})
            for domain, numbers in story.numbers.items():
                large = domain in story.peers and story.peers[domain].stage == "body"
                for number in numbers:
                    mta.send("", [f"u@{domain}"], message(number, f"u@{domain}", LARGE if large else 300))
            deadline = time.monotonic() + PATIENCE_S
            in_clear = {number for name in TLS_CASES for number in story.numbers[f"{name}.test"]}
            while (missing := without_sign(signs := read_signs(mta))) or not in_clear <= read_delivered(mta):
                assert time.monotonic() < deadline, (
                    {domain: signs.get(domain) for domain in missing}, in_clear - read_delivered(mta))
                time.sleep(0.2)
            sandbox.wait_for(lambda stats: bool(stats["distinct"] == EACH))
            story.signs = read_signs(mta)
            story.early = read_delivered(mta)
            story.reasons = {name: row.reason or row.last_reply for name, row in rows(mta).items() if not row.in_flight}
            hosts.heal()
            mta.wait_until(lambda: queued(mta) == 0, "an empty queue", PATIENCE_S)
            mta.stop()
            story.events = list(mta.events())
            assert_balanced(mta, range(len(story.numbers) * EACH), [*hosts.received(), *sandbox.received()])
            assert_no_bug(mta)
    return story


@pytest.mark.parametrize("name", [name for name, (stage, _) in CASES.items() if stage != "after"])
def test_a_host_that_breaks_the_protocol_pauses_and_recovers(name: str, story: Story) -> None:
    """Its mail waits with the reason; before the dot was sent nothing can be a duplicate, after it only what is said
    to be may."""
    stage, fault = CASES[name]
    domain = f"{name}.test"
    assert any(re.search(SIGNS[fault], text) for text in story.signs.get(domain, [])), story.signs.get(domain)
    assert story.reasons.get(domain, "in flight")

    delivered = [event for event in story.events if event["event"] == "delivered" and event["queue"] == domain]
    assert len(delivered) == EACH
    unknown = any(event["event"] == "deferred" and event["failure"] == "unknown" for event in story.events
                  if event.get("queue") == domain)
    if stage == "dot":
        assert unknown is (fault is not peers.goes_down)
    if stage not in ("dot", "body"):
        assert not unknown
        assert not any(event["maybe_duplicate"] for event in delivered)
        assert max(story.peers[domain].taken.values()) == 1


@pytest.mark.parametrize("name", [name for name, (stage, _) in CASES.items() if stage == "after"])
def test_what_a_host_does_after_its_answer_undoes_nothing(name: str, story: Story) -> None:
    """The reply to the dot counts, whatever comes behind it; the other messages go over other connections."""
    domain = f"{name}.test"
    delivered = [event for event in story.events if event["event"] == "delivered" and event["queue"] == domain]
    assert len(delivered) == EACH
    assert set(story.peers[domain].taken.values()) == {1}
    assert not any(event["maybe_duplicate"] for event in delivered)


@pytest.mark.parametrize("name", TLS_CASES)
def test_mail_goes_in_clear_where_tls_is_broken(name: str, story: Story) -> None:
    """TLS is opportunistic: a host that offers it and breaks it gets its mail all the same while it does so; at the
    first attempt, or after one when it broke what had begun."""
    domain = f"{name}.test"
    delivered = [event for event in story.events if event["event"] == "delivered" and event["queue"] == domain]
    assert len(delivered) == EACH
    assert story.peers[domain].faults > 0
    assert len(story.signs.get(domain, [])) <= EACH * (TLS_CASES[name][1] is peers.breaks_tls)
    assert story.early >= set(story.numbers[domain])
    assert delivered[-1]["tls"] == ""
