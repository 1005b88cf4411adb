"""Rules of event lines: they are JSON, complete, documented, and remote text stays inside of its string."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.queue import events
from mta.queue.events import FIELDS, KINDS, Remote
from mta.queue.ids import format_id
from mta.queue.orders import Change, Order
from mta.queue.records import Attempt, Delivery, Message, Recipient
from mta.smtp.reply import Reply

ARRIVAL_US = 1_136_214_245_000_000
NOW_US = ARRIVAL_US + 1_500_000
REMOTE = Remote("site", "mx1.example.org", "[2001:db8::1]:25", "2001:db8::9", "TLSv1.3", "TLS_AES_256_GCM_SHA384")
REPLY = Reply(451, "4.7.1", ("Greylisted,", "come back"))


def delivery(text: str = "") -> Delivery:
    """A delivery to two recipients whose every text ends in `text`."""
    message = Message(
        1 << 60, f"alice@sender.example{text}", ARRIVAL_US, b"", message_id=f"<one@sender.example>{text}", size=1234,
        origin=f"smtp 192.0.2.9:4711 client.example{text}",
    )
    recipients = [Recipient(f"bob@example.org{text}"), Recipient("carol@example.org")]
    history = [Attempt(ARRIVAL_US, "mx1.example.org [192.0.2.1]:25", f"451 4.7.1 Greylisted{text}")]
    return Delivery(message, 0, f"example.org{text}", "example.org", recipients, 0, 3, history=history)


def one_of_each(text: str = "") -> dict[str, bytes]:
    """An event of every kind, with `text` in every place that takes text from outside."""
    one = delivery(text)
    reply = Reply(451, "4.7.1", (f"Greylisted{text}",))
    remote = Remote(f"site{text}", f"mx1.example.org{text}", "192.0.2.1:25", "192.0.2.9", f"TLSv1.3{text}", text)
    return {
        "received": events.received(one.message, [one]),
        "delivered": events.delivered(
            one, one.recipients, reply, remote, attempt=4, time_us=NOW_US, duration_s=0.25
        ),
        "deferred": events.deferred(
            one, one.recipients, reply, remote, failure="recipient", kind="greylist",
            rule="greylist", attempt=4, time_us=NOW_US, duration_s=0.25,
            next_us=NOW_US + 1,
        ),
        "bounced": events.bounced(
            one, one.recipients, reply, remote, failure="recipient", kind="greylist",
            rule="greylist", attempt=4, time_us=NOW_US, duration_s=0.25
        ),
        "expired": events.expired(one, one.recipients, time_us=NOW_US),
        "deleted": events.deleted(one, one.recipients, reason=f"spam{text}", operator=f"root{text}",
                                  order="7", time_us=NOW_US),
        "quarantined": events.quarantined(one.message, [one], text=f"CRC{text}", time_us=NOW_US),
        "notified": events.notified(
            one.message, one.queue, one.recipients, action="failed", notification=7, time_us=NOW_US
        ),
        "order": events.order(Change(8, "given", Order(
            7, "pause", f"root{text}", NOW_US, f"tenant=x{text}", until_us=NOW_US, reason=f"spam{text}"),
            f"root{text}", NOW_US)),
        "suspended": events.suspended(f"site{text}", text=f"refused{text}", until_us=NOW_US, time_us=NOW_US),
        "alarm": events.alarm(f"source{text}", text=f"gone{text}", time_us=NOW_US),
        "login": events.login(user=f"acme{text}", client="192.0.2.7", listener="[::]:587", via="scram", count=1,
                              time_us=NOW_US),
        "refused": events.refused(what="login", user=f"acme{text}", client="192.0.2.7", listener="[::]:587",
                                  text=f"wrong password{text}", count=7, time_us=NOW_US),
    }


def test_a_deferral_tells_all() -> None:
    """Every field of the kind that is richest, with its value."""
    one = delivery()
    one.maybe_duplicate = True
    line = events.deferred(
        one, one.recipients[:1], REPLY, REMOTE, failure="recipient", kind="greylist",
            rule="greylist", attempt=4, time_us=NOW_US, duration_s=0.1239,
        next_us=NOW_US + 300_000_000, avoid=("source:a", 'host:"mx1"'),
    )
    event = json.loads(line)
    assert event.pop("id")
    assert event == {
        "time": "2006-01-02T15:04:06.500000Z",
        "event": "deferred",
        "message": format_id(1 << 60),
        "queue": "example.org",
        "sender": "alice@sender.example",
        "recipients": ["bob@example.org"],
        "size": 1234,
        "message_id": "<one@sender.example>",
        "attempt": 4,
        "age_s": 1.5,
        "duration_s": 0.124,
        "path": "site",
        "remote_host": "mx1.example.org",
        "remote_address": "[2001:db8::1]:25",
        "source_address": "2001:db8::9",
        "tls": "TLSv1.3",
        "tls_cipher": "TLS_AES_256_GCM_SHA384",
        "code": 451,
        "enhanced": "4.7.1",
        "text": "Greylisted, come back",
        "maybe_duplicate": True,
        "failure": "recipient",
        "class": "greylist",
        "rule": "greylist",
        "next_attempt": "2006-01-02T15:09:06.500000Z",
        "avoid": ["source:a", 'host:"mx1"'],
    }


def test_an_expiry_tells_the_last_attempt() -> None:
    """An end by age is of little use without what was wrong; without an attempt the fields are empty."""
    one = delivery()
    event = json.loads(events.expired(one, one.recipients, time_us=NOW_US))
    assert event["attempt"] == 3
    assert event["last_reply"] == "451 4.7.1 Greylisted"
    assert event["last_remote"] == "mx1.example.org [192.0.2.1]:25"
    one.history = []
    event = json.loads(events.expired(one, one.recipients, time_us=NOW_US))
    assert (event["last_reply"], event["last_remote"]) == ("", "")


def test_received_names_the_queue_if_there_is_one() -> None:
    """With several deliveries all recipients are listed and the queue is empty."""
    one, two = delivery(), delivery()
    assert json.loads(events.received(one.message, [one]))["queue"] == "example.org"
    event = json.loads(events.received(one.message, [one, two]))
    assert event["queue"] == ""
    assert event["recipients"] == ["bob@example.org", "carol@example.org"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_exactly_its_documented_fields(kind: str) -> None:
    """Names and types are those of the table, no more and no fewer."""
    event = json.loads(one_of_each()[kind])
    assert event["event"] == kind
    expected = {field.name: field.type for field in FIELDS if kind in events.kinds_of(field)}
    assert {name: type(content) for name, content in event.items()} == expected


def test_field_names_are_unique_and_their_kinds_exist() -> None:
    """The table itself is sound."""
    names = [field.name for field in FIELDS]
    assert len(set(names)) == len(names)
    assert all(events.kinds_of(field) for field in FIELDS)
    assert set(one_of_each()) == set(KINDS)


def test_the_documentation_holds_the_tables() -> None:
    """docs/events.md says what the code says."""
    page = Path(__file__).parents[2].joinpath("docs/events.md").read_text()
    assert events.markdown() in page, "copy the output of mta.queue.events.markdown() into docs/events.md"


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_text_from_outside_stays_in_its_string(text: str) -> None:
    """Whatever hosts, clients and operators say, a line is one line of ASCII and means what it meant (I7)."""
    plain = one_of_each()
    for kind, line in one_of_each(text).items():
        assert line.isascii()
        assert b"\n" not in line
        assert b"\r" not in line
        event = json.loads(line)
        assert set(event) == set(json.loads(plain[kind]))
        assert event["event"] == kind
    assert json.loads(one_of_each(text)["bounced"])["text"] == f"Greylisted{text}"


def test_long_texts_are_cut() -> None:
    """No reply makes a line of unbounded length."""
    lines = one_of_each("x" * 5000)
    for kind, name in [("bounced", "text"), ("expired", "last_reply"), ("deleted", "reason")]:
        assert len(json.loads(lines[kind])[name]) == events.TEXT_LIMIT


def test_ids_are_unique_also_after_a_fork() -> None:
    """Every event of a process has another id, and a forked child does not go on with its parent's."""
    ids = [json.loads(line)["id"] for _ in range(100) for line in one_of_each().values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", text) for text in ids)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, one_of_each()["suspended"])
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert json.loads(pipe.read())["id"].split("-")[0] != ids[0].split("-")[0]


def test_a_clock_that_was_set_back_makes_no_negative_age() -> None:
    """Ages are never below zero."""
    one = delivery()
    assert json.loads(events.expired(one, one.recipients, time_us=ARRIVAL_US - 5))["age_s"] == 0


def test_parse_reads_lines_and_refuses_others() -> None:
    """Readers get mappings, and ValueError for what is no event, such as a line that a crash cut off."""
    line = one_of_each()["bounced"]
    assert events.parse(line)["event"] == "bounced"
    for bad in (line[:-5], b"[]", b"{}", b'{"event":"other"}', b"\xff", b""):
        with pytest.raises(ValueError):  # noqa: PT011 - json's own message varies
            events.parse(bad)
