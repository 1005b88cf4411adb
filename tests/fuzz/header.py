"""Header sections: what is found in them, what is taken out, and what is put before them at the door."""

from __future__ import annotations

import email
import email.policy
import json
import re
from functools import cache
from typing import Final

from mta.config.checks import Checks
from mta.config.schema import Config, LabelValues
from mta.inject.intake import Accepted, Intake, Source
from mta.message import checks, headers
from mta.queue.ids import parse_id
from mta.queue.records import SMTPUTF8, Recipient
from mta.smtp.envelope import Envelope
from mta.smtp.reply import Reply

SEEDS: Final = (
    b"From: a@example.com\nDate: Mon, 02 Jan 2006 15:04:05 +0000\nMessage-ID: <a@b>\nSubject: x\n\nbody\n",
    b"Received: from a\n\tby b\nReceived: by c\nReturn-Path: <x@y>\nFROM : a@b.example\nmessage-id:\n <folded@id>\n\n",
    b"Subject: no empty line\nfrom: a@b.example\n", b"\nbody only\n", b"From somebody Mon Jan 2\nSubject: x\n\nbody\n",
    b"no header\n", b"A: 1\nnot a field\nB: 2\n\n", b"From: a@b.example\nFrom: c@d.example\nDate:\nDate: x\n\n",
    b"X-Job: one\nX-Virtual-MTA: default\nX-Tenant: a b\nX-Priority-Class: bulk\n\n",
    b"List-Unsubscribe: <https://x.example/>, <mailto:u@x>\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\n\n",
    b"From: \"A, B\" <a@b.example>,\n (c) d@e.example\nMessage-ID: <1>\nMessage-ID: <2>\n\nx\n",
    b"Subject: \xff\xfe\n\n",
)  # fmt: skip
WORDS: Final = (
    b"From:", b"Date:", b"Message-ID:", b"Subject:", b"To:", b"Cc:", b"Bcc:", b"Sender:", b"Received:", b"Return-Path:",
    b"Reply-To:", b"References:", b"X-Job:", b"X-Virtual-MTA:", b"List-Unsubscribe:", b"List-Unsubscribe-Post:",
    b"\n ", b"\n\t", b"\n\n", b" :", b"<a@b.example>", b"From ", b">From ", b"One-Click", b"https://",
)  # fmt: skip

_LEGAL_LINE: Final = re.compile(rb"[!-9;-~]+:[\t -~]*|[\t ]+[!-~][\t -~]*")
_NAMES: Final = ("Return-Path", "bcc", "X-JOB", "Subject")


def as_content(data: bytes) -> bytes:
    """Content as it comes to the door: lines end with CRLF, and there is no CR, LF or NUL beside."""
    text = data.replace(b"\r", b"").replace(b"\0", b"").replace(b"\n", b"\r\n")
    return text if text.endswith(b"\r\n") or not text else text + b"\r\n"


def run(data: bytes) -> None:
    """Fields are found in order and whole, the fast look and the plain one agree, and Python's reader finds the same in
    what is legal. What is removed is gone, and nothing else is."""
    content = as_content(data)
    end = headers.section_end(content)
    found = list(headers.fields(content))
    scan = headers.scan(content)
    if end <= 0:
        assert not found
        return
    assert scan.end == end
    assert content[:end].endswith(b"\r\n")
    assert found[0].start == 0
    position = 0
    for field in found:
        assert field.start == position < field.value <= field.end
        assert headers.value_end(content, field) + 2 <= field.end
        position = field.end
    assert position == end
    names = [field.name for field in found]
    assert scan.received == names.count(b"received")
    told = {field.name for field in found if scan.repeated or headers.value(content, field)}
    assert set(scan.empty) == {
        name.decode() for name in (b"date", b"from", b"message-id") if name in names and name not in told}
    assert scan.has_date == (b"date" in told)
    assert scan.has_from == (b"from" in told)
    assert scan.has_return_path == (b"return-path" in names)
    repeated = [name.decode() for name in headers.ONCE if names.count(name) > 1]
    assert scan.repeated == (repeated[0] if repeated else "")
    ids = [headers.value(content, field) for field in found if field.name == b"message-id"]
    first = next((one for one in ids if one), b"").decode("utf-8", "replace")
    assert scan.message_id == first[: headers.MESSAGE_ID_LIMIT]
    _check_removal(content, end, found)
    section = content[:end]
    if all(map(_LEGAL_LINE.fullmatch, section.split(b"\r\n")[:-1])):
        _compare_with_python(content, found)
    for option in (checks.unsubscribe_fault(checks.unsubscribe_fields(content, end)),
                   checks.from_fault(content, end, ("b.example",)), checks.size_fault(content, end, 500, 100, 9)):
        assert option.isprintable()
        assert len(option) < 400


def _check_removal(content: bytes, end: int, found: list[headers.Field]) -> None:
    less = headers.remove(content, _NAMES)
    unwanted = {name.lower().encode() for name in _NAMES}
    kept = [content[field.start : field.end] for field in found if field.name not in unwanted]
    assert less == b"".join(kept) + content[end:]
    assert headers.remove(content, ()) is content
    if headers.section_end(less) > 0 and kept:
        assert headers.remove(less, _NAMES) == less


def _compare_with_python(content: bytes, found: list[headers.Field]) -> None:
    theirs = email.message_from_bytes(content, policy=email.policy.compat32)
    assert [name.lower() for name, _ in theirs.raw_items()] == [field.name.decode() for field in found]
    for field, (_, value) in zip(found, theirs.raw_items(), strict=True):
        ours = headers.value(content, field).decode("ascii")
        assert ours == str(value).replace("\r\n", "").strip(" \t")


@cache
def _doors() -> tuple[Intake, ...]:
    strict = Checks(
        missing_from="warn", repeated="warn", from_domains=("b.example",), foreign_from="warn",
        unsubscribe="add", unsubscribe_for="all", unsubscribe_uri="https://x.example/{id}",
    )
    number = parse_id("0kx8zzg800001")
    return tuple(
        Intake(config, lambda: number, lambda: 1_136_214_245_123_456)
        for config in (Config(hostname="mta.example"), Config(hostname="mta.example", checks=strict))
    )


def run_intake(data: bytes) -> None:
    """What the door adds stands before all that was there, which stays as it was but for what it removes. Its event is
    one line."""
    if len(data) < 2:
        return
    flags, content = data[0], as_content(data[1:])
    source = Source.smtp("2001:db8::1", 4711, "c.example") if flags & 1 else Source.pickup(
        "/spool/\n\x85file", 1000, LabelValues(campaign="c") if flags & 2 else None)
    sender = ("", "a@b.example", "ä@bücher.example", "postmaster")[flags >> 2 & 3]
    recipients = [Recipient("r@example.org"), Recipient("R@EXAMPLE.org"), Recipient("ü@bücher.example"),
                  Recipient("r@xn--bcher-kva.example"), Recipient("postmaster")]
    envelope = Envelope(sender, recipients[: 1 + (flags >> 4 & 7) % 5], helo="c.example", esmtp=True, flags=SMTPUTF8)
    accepted = _doors()[flags >> 7].prepare(envelope, content, source)
    if isinstance(accepted, Reply):
        assert 400 <= accepted.code < 600
        assert accepted.to_bytes().count(b"\r\n") == 1
        return
    _check_accepted(accepted, content)
    first = {(to.address.rpartition("@")[0], _domain(to.address)): to.address for to in reversed(envelope.recipients)}
    taken = [to.address for one in accepted.deliveries for to in one.recipients]
    assert sorted(taken) == sorted(first.values()), "each mailbox once"


def _domain(address: str) -> str:
    domain = address.rpartition("@")[2].lower()
    return "xn--bcher-kva.example" if domain == "bücher.example" else domain


def _check_accepted(accepted: Accepted, content: bytes) -> None:
    message = accepted.message
    stored = message.content
    assert stored is not None
    assert message.size == len(stored)
    assert stored.startswith(b"Received: ")
    assert headers.section_end(stored) == message.header_size
    fields = list(headers.fields(stored))
    names = [field.name for field in fields]
    before = headers.section_end(content)
    removed = ("return-path", "x-virtual-mta", "x-job", "x-tenant", "x-campaign", "x-pool", "x-priority-class")
    if before > 0:
        empty = headers.scan(content).empty
        kept = [content[field.start : field.end] for field in headers.fields(content)
                if field.name.decode() not in (*removed, *empty)]
        whole = [stored[field.start : field.end] for field in fields]
        assert kept == whole[len(whole) - len(kept) :], "the fields are not what they were"
        assert stored[message.header_size :] == content[before:], "the body is another one"
    else:
        assert stored.endswith(content) or content.startswith((b"From ", b">From "))
    assert b"date" in names
    assert b"message-id" in names
    if not message.is_held(0):
        parsed = json.loads(accepted.event)
        assert parsed["message"] == message.text_id
    assert b"\n" not in accepted.event
    assert accepted.event.isascii()
    for line in stored[: message.header_size].split(b"\r\n"):
        assert b"\n" not in line
        assert b"\r" not in line
    for delivery in accepted.deliveries:
        assert delivery.queue.isprintable()
