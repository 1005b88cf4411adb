"""Rules of `checks`: what is refused, told of or mended, and for whom."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from mta.config.checks import CheckChanges, Checks
from mta.config.loader import loads
from mta.config.schema import Config, Tenant
from mta.config.units import Size
from mta.inject.checking import WARNINGS, Checker
from mta.inject.intake import Accepted, Intake, Source
from mta.inject.labels import NO_LABELS, Labels
from mta.message import headers
from mta.queue.records import Recipient
from mta.smtp.envelope import Asked, Envelope
from mta.smtp.reply import Reply

SOURCE = Source.smtp("192.0.2.9", 4711, "client.example")
WHOLE = b"Date: Mon, 02 Jan 2006 15:04:05 +0000\r\nMessage-ID: <one@sender.example>\r\nFrom: a@example.org\r\n"
LIST = b"List-Unsubscribe: <https://x.example/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
BULK = b"X-Priority-Class: bulk\r\n"


def prepare(content: bytes, changes: CheckChanges | None = None, *, sender: str = "alice@sender.example",
            recipients: int = 1, tenants: dict[str, Tenant] | None = None, **options: Any) -> Accepted | Reply:
    """What the door makes of a message by these options."""
    config = Config(hostname="mta.example", checks=Checks(**options), tenants=tenants or {})
    envelope = Envelope(sender, [Recipient(f"b{number}@example.org") for number in range(recipients)],
                        helo="client.example", esmtp=True)
    source = SOURCE if changes is None else SOURCE.checked(changes)
    intake = Intake(config, lambda: 1 << 10, lambda: 1_700_000_000_000_000)
    return intake.prepare(envelope, content + b"\r\nx\r\n", source)


def taken(*arguments: Any, **options: Any) -> tuple[bytes, list[str]]:
    """Content and warnings of a message that must be accepted."""
    accepted = prepare(*arguments, **options)
    assert isinstance(accepted, Accepted), accepted
    assert accepted.message.content is not None
    assert accepted.message.size == len(accepted.message.content)
    assert accepted.message.content[accepted.message.header_size :] == b"\r\nx\r\n"
    return accepted.message.content, json.loads(accepted.event)["warnings"]


def refused(*arguments: Any, **options: Any) -> str:
    """The reply to a message that must be refused."""
    reply = prepare(*arguments, **options)
    assert isinstance(reply, Reply), reply
    return str(reply)


def test_what_is_missing_is_refused_by_name() -> None:
    """`refuse`: 550 5.6.0 with the field and what to do; one that is there is not missed."""
    for field, option in (("Date", "missing_date"), ("Message-ID", "missing_message_id"), ("From", "missing_from")):
        others = b"".join(line + b"\r\n" for line in WHOLE.split(b"\r\n")[:-1] if not line.startswith(field.encode()))
        assert refused(others, **{option: "refuse"}).startswith(f"550 5.6.0 {field}: it is missing, add it")
        assert taken(WHOLE, **{option: "refuse"})[1] == []


def test_from_is_added_as_the_sender() -> None:
    """`add`: the envelope sender; the null sender gives none, which is told."""
    kept, warnings = taken(b"Subject: x\r\n")
    assert headers.get(kept, "From") == b"alice@sender.example"
    assert warnings == []
    assert headers.get(taken(b"Subject: x\r\n", sender="postmaster")[0], "From") == b"postmaster@mta.example"
    kept, warnings = taken(b"Subject: x\r\n", sender="")
    assert headers.get(kept, "From") is None
    assert warnings == ["from"]


@pytest.mark.parametrize("nothing", [b"", b" ", b"\t ", b" \r\n ", b"\r\n\t\r\n  "])
def test_what_is_there_with_nothing_in_it_is_missing(nothing: bytes) -> None:
    """A Date, From or Message-ID without a value is none: it makes way for the one that is added, or is refused."""
    for field, option in ((b"Date", "missing_date"), (b"Message-ID", "missing_message_id"), (b"From", "missing_from")):
        lines = [line for line in WHOLE.split(b"\r\n")[:-1] if not line.startswith(field)]
        content = b"\r\n".join([field.lower() + b":" + nothing, *lines, b"Subject:", b""])
        assert refused(content, **{option: "refuse"}).startswith(f"550 5.6.0 {field.decode()}: it is missing")
        mended, warnings = taken(content)
        assert [one.name for one in headers.fields(mended)].count(field.lower()) == 1
        assert headers.get(mended, field.decode())
        assert headers.get(mended, "Subject") == b""
        assert warnings == []


def test_from_may_be_told_of_or_let_be() -> None:
    """`warn` and `accept` add nothing."""
    for word, warnings in (("warn", ["from"]), ("accept", [])):
        kept, told = taken(b"Subject: x\r\n", missing_from=word)
        assert headers.get(kept, "From") is None
        assert told == warnings


@pytest.mark.parametrize("field", [b"From: b@x.example", b"DATE: x", b"message-id: <two@x.example>"])
def test_a_field_that_may_be_there_once(field: bytes) -> None:
    """RFC 5322 3.6; Received may repeat."""
    name = {b"F": "From", b"D": "Date", b"m": "Message-ID"}[field[:1]]
    content = WHOLE + field + b"\r\n"
    assert refused(content).startswith(f"550 5.6.0 {name}: it is there more than once, leave one")
    assert taken(content, repeated="warn")[1] == ["repeated"]
    assert taken(content, repeated="accept")[1] == []
    assert taken(b"Received: x\r\nReceived: y\r\n" + WHOLE)[1] == []


def test_sizes() -> None:
    """Each limit of the header section."""
    content = WHOLE + b"X: " + b"y" * 5000 + b"\r\n"
    assert taken(content)[1] == []
    assert refused(content, header_size=3000).startswith("550 5.6.0 The header section is larger than 3000 octets")
    assert refused(content, field_size=3000).startswith("550 5.6.0 A header field is larger than 3000 octets")
    assert refused(WHOLE + b"X: y\r\n" * 30, fields=30).startswith("550 5.6.0 The header section has more than 30")


def test_what_is_told_and_taken() -> None:
    """`warn` of what could be refused: the message is taken, with what is missing added; 256 KiB or 5,000 lines are
    the end."""
    big = WHOLE + b"X: " + b"y" * 5000 + b"\r\n"
    for options in ({"header_size": 3000}, {"field_size": 3000}):
        assert taken(big, oversized="warn", **options)[1] == ["size"]
    assert refused(WHOLE + b"X: y\r\n" * 50_000, oversized="warn").startswith("550 5.6.0 The header section is larger")
    assert taken(WHOLE + b"X: y\r\n" * 4990, oversized="warn")[1] == ["size"]
    assert refused(WHOLE + b"X: y\r\n" * 5000, oversized="warn").startswith("550 5.6.0 The header section has more")
    date, message_id, sender = WHOLE.split(b"\r\n")[:3]
    content, warnings = taken(message_id + b"\r\n" + sender + b"\r\n", missing_date="warn")
    assert (headers.get(content, "Date") is not None, warnings) == (True, ["date"])
    content, warnings = taken(date + b"\r\n" + sender + b"\r\n", missing_message_id="warn")
    assert (headers.get(content, "Message-ID") is not None, warnings) == (True, ["message-id"])


def test_sizes_of_a_listener_and_a_tenant() -> None:
    """The sizes are what somebody changes, too."""
    big = WHOLE + b"X: " + b"y" * 5000 + b"\r\n"
    assert refused(big, CheckChanges(field_size=Size(3000))).startswith("550 5.6.0 A header field is larger than 3000")
    assert taken(big, CheckChanges(header_size=Size(3000), oversized="warn"))[1] == ["size"]
    assert taken(big, CheckChanges(header_size=Size(6000)), header_size=3000)[1] == []
    tenants = {"acme": Tenant(checks=CheckChanges(fields=20))}
    many = WHOLE + b"X: y\r\n" * 30
    assert taken(many, tenants=tenants)[1] == []
    assert refused(many + b"X-Tenant: acme\r\n", tenants=tenants).startswith("550 5.6.0 The header section has more")


def test_from_domains() -> None:
    """A From of other domains: 550 5.7.1, or a warning."""
    assert taken(WHOLE, from_domains=("example.org",))[1] == []
    assert refused(WHOLE, from_domains=("acme.example",)).startswith("550 5.7.1 From: not allowed to send")
    assert taken(WHOLE, from_domains=("acme.example",), foreign_from="warn")[1] == ["from-domain"]


def test_from_domains_hold_for_a_from_that_is_added() -> None:
    """With domains to check there is nothing to be guessed: it must be there."""
    assert refused(b"Subject: x\r\n", from_domains=("sender.example",)).startswith("550 5.7.1 From: it is missing")


def test_unsubscription_of_bulk_mail() -> None:
    """Only mail of the priority bulk is looked at, or all; it may be refused or taken with a warning."""
    assert taken(WHOLE)[1] == []
    assert taken(WHOLE + BULK)[1] == ["unsubscribe"]
    assert taken(WHOLE + BULK + LIST)[1] == []
    assert taken(WHOLE + BULK, unsubscribe="accept")[1] == []
    assert taken(WHOLE, unsubscribe="refuse")[1] == []
    assert refused(WHOLE + BULK, unsubscribe="refuse").startswith("550 5.6.0 List-Unsubscribe: it is missing, add it")
    assert taken(WHOLE, unsubscribe_for="all")[1] == ["unsubscribe"]


def test_bulk_by_mt_priority_is_bulk() -> None:
    """What makes mail bulk does not matter."""
    for priority, warnings in ((-3, ["unsubscribe"]), (3, []), (0, [])):
        envelope = Envelope("a@sender.example", [Recipient("b@example.org")], asked=Asked(priority=priority))
        accepted = Intake(Config(hostname="mta.example"), lambda: 1 << 10, lambda: 1_700_000_000_000_000).prepare(
            envelope, WHOLE + b"\r\nx\r\n", SOURCE)
        assert isinstance(accepted, Accepted)
        assert json.loads(accepted.event)["warnings"] == warnings


def test_unsubscription_is_added() -> None:
    """Both fields, for one recipient; with several, or with half of it there, only the sender can do it right."""
    options = {"unsubscribe": "add", "unsubscribe_uri": "https://x.example/{tenant}/{campaign}/{id}"}
    content = WHOLE + BULK + b"X-Tenant: acme\r\nX-Job: may\r\n"
    accepted = prepare(content, **options)
    assert isinstance(accepted, Accepted)
    kept, warnings = taken(content, **options)
    assert headers.get(kept, "List-Unsubscribe") == f"<https://x.example/acme/may/{accepted.message.text_id}>".encode()
    assert headers.get(kept, "List-Unsubscribe-Post") == b"List-Unsubscribe=One-Click"
    assert warnings == []
    assert taken(content + LIST, **options)[0].count(b"List-Unsubscribe: ") == 1
    assert refused(content, recipients=2, **options).startswith("550 5.6.0 List-Unsubscribe: it is missing")
    half = content + b"List-Unsubscribe: <mailto:x@x.example>\r\n"
    assert refused(half, **options).startswith("550 5.6.0 List-Unsubscribe: expected one https URI")


def test_who_changes_what() -> None:
    """A tenant changes `checks`, a listener changes that: a client may only claim to be a tenant."""
    tenants = {"acme": Tenant(checks=CheckChanges(repeated="accept", from_domains=("acme.example",)))}
    checker = Checker(Config(hostname="mta.example", checks=Checks(missing_from="warn"), tenants=tenants))
    place = CheckChanges(repeated="warn", unsubscribe="refuse")
    assert checker.rules(None, "") == Checks(missing_from="warn")
    assert checker.rules(None, "other") == checker.rules(None, "")
    of_tenant = checker.rules(None, "acme")
    assert (of_tenant.repeated, of_tenant.from_domains, of_tenant.missing_from) == ("accept", ("acme.example",), "warn")
    both = checker.rules(place, "acme")
    assert (both.repeated, both.from_domains, both.unsubscribe) == ("warn", ("acme.example",), "refuse")
    assert checker.rules(place, "").from_domains == ()


def test_a_listener_and_a_tenant_have_their_way() -> None:
    """Through the door: what they change holds for their mail."""
    twice = WHOLE + b"From: b@example.org\r\n"
    assert taken(twice, CheckChanges(repeated="warn"))[1] == ["repeated"]
    tenants = {"acme": Tenant(checks=CheckChanges(repeated="accept"))}
    assert taken(twice + b"X-Tenant: acme\r\n", tenants=tenants)[1] == []
    assert refused(twice + b"X-Tenant: acme\r\n", CheckChanges(repeated="refuse"), tenants=tenants)
    assert refused(twice, tenants=tenants)


def test_the_log_has_one_line_for_many(caplog: pytest.LogCaptureFixture) -> None:
    """The first of each fault, then one line in ten minutes with the number; the counts have all."""
    now_s = [0.0]
    checker = Checker(Config(hostname="mta.example"), lambda: now_s[0])
    envelope = Envelope("a@b.example", [Recipient("c@d.example")], helo="x", esmtp=True)

    def check(content: bytes, labels: Labels = NO_LABELS) -> None:
        checker.check(content, headers.scan(content), envelope, labels, None, "smtp x\ny")

    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            check(WHOLE, Labels(priority="bulk"))
            check(WHOLE + WHOLE)
        assert len(caplog.messages) == 2
        now_s[0] = 600.0
        check(WHOLE, Labels(priority="bulk"))
    assert len(caplog.messages) == 3
    assert caplog.messages[-1].startswith("checks: warning, unsubscribe, 50 of them since the last line: smtp x")
    assert "\n" not in caplog.text.strip().split("WARNING")[-1].strip()
    assert (checker.warned, checker.refused) == (51, 50)


def test_warnings_are_the_words_that_the_page_names() -> None:
    """docs/events.md has them from `FIELDS`."""
    from mta.queue.events import FIELDS
    (field,) = (one for one in FIELDS if one.name == "warnings")
    assert all(f"`{word}`" in field.doc for word in WARNINGS)


@pytest.mark.parametrize(("checks", "fault"), [
    ("{unsubscribe: add}", "checks.unsubscribe: add has nothing to add without unsubscribe_uri"),
    ("{unsubscribe_uri: 'http://x.example/{id}'}", "checks.unsubscribe_uri: expected a URI that begins with https://"),
    ("{unsubscribe_uri: 'https://x.example/'}", "checks.unsubscribe_uri: expected {id} in it"),
    ("{unsubscribe_uri: 'https://x.example/{id}/{email}'}", "only {id}, {tenant}, {campaign} are known"),
    ("{unsubscribe_uri: 'https://x.example/{id}>'}", "expected a URI of ASCII without"),
    ("{field_size: 20KB, header_size: 10KB}", "checks.field_size (20KB) is above checks.header_size (10KB)"),
    ("{header_size: 1MB}", "is too large"),
])
def test_contradictions(checks: str, fault: str) -> None:
    """What cannot work is told before it is used (I8)."""
    with pytest.raises(Exception, match="mta") as raised:
        loads(f"hostname: mta.example\nchecks: {checks}\n", "mta.yaml")
    assert fault in str(raised.value)


def test_contradictions_of_a_listener() -> None:
    """A change is looked at together with what it changes."""
    text = "hostname: mta.example\nchecks: {{{}}}\nlisteners: [{{smtp: '[::1]:25', checks: {{unsubscribe: add}}}}]"
    assert loads(text.format("unsubscribe_uri: 'https://x.example/{id}'")).listeners[0].checks.unsubscribe == "add"
    with pytest.raises(Exception, match=r"listeners\[0\].checks.unsubscribe: add has nothing to add"):
        loads(text.format(""))
    text = text.format("").replace("unsubscribe: add", "field_size: 50KB, header_size: 20KB")
    with pytest.raises(Exception, match=r"listeners\[0\].checks.field_size: 50KB is above header_size \(20KB\)"):
        loads(text)
