"""Rules of who is notified of what (RFC 3461 5.2, 6)."""

from __future__ import annotations

import dataclasses
import email
import json
from typing import Any

import pytest

from mta.config.schema import Bounces, Config
from mta.config.units import Size
from mta.message.dsn import Action
from mta.queue import notices
from mta.queue.notices import Fate, Notification
from mta.queue.records import (
    BINARY,
    EIGHT_BIT,
    NOTIFICATION,
    NOTIFY_DELAY,
    NOTIFY_FAILURE,
    NOTIFY_NEVER,
    NOTIFY_SUCCESS,
    REQUIRE_TLS,
    SMTPUTF8,
    Attempt,
    Message,
    Recipient,
)
from mta.smtp.reply import Reply

CONFIG = Config(hostname="mta.example")
NOW_US = 1_136_214_245_000_000
HEADER = b"Subject: hello\r\n"
CONTENT = HEADER + b"\r\nThe body.\r\n"
REFUSED = Reply(550, "5.1.1", ("No such user",))


def message(**changes: Any) -> Message:
    """An ordinary message."""
    base = Message(
        1 << 60, "alice@Sender.example", NOW_US - 5_000_000, None, len(HEADER), "<one@sender.example>",
        size=len(CONTENT),
    )
    return dataclasses.replace(base, **changes)


def notify(
    original: Message, *fates: Fate, action: Action = "failed", config: Config = CONFIG, content: bytes = CONTENT
) -> Notification | None:
    """`notices.notify` with ids that count from 7 and a fixed time."""
    ids = iter(range(7, 100))
    return notices.notify(
        action, original, content, fates, queue="example.org", config=config, next_id=lambda: next(ids), time_us=NOW_US
    )


def sent(original: Message, *fates: Fate, **arguments: Any) -> Notification:
    """The notification that must have been made."""
    made = notify(original, *fates, **arguments)
    assert made is not None
    return made


def status_part(made: Notification) -> str:
    """The machine-readable part, unfolded."""
    assert made.message.content is not None
    parts: Any = email.message_from_bytes(made.message.content).get_payload()
    return str(parts[1].as_string()).replace("\n ", " ")


NEVER, SUCCESS, FAILURE, DELAY = NOTIFY_NEVER, NOTIFY_SUCCESS, NOTIFY_FAILURE, NOTIFY_DELAY


@pytest.mark.parametrize(
    ("notify_bits", "failed", "delayed", "relayed"),
    [
        (0, True, True, False),
        (NEVER, False, False, False),
        (SUCCESS, False, False, True),
        (FAILURE, True, False, False),
        (DELAY, False, True, False),
        (SUCCESS | FAILURE, True, False, True),
        (FAILURE | DELAY, True, True, False),
        (SUCCESS | FAILURE | DELAY, True, True, True),
    ],
)
def test_notify_decides(notify_bits: int, failed: bool, delayed: bool, relayed: bool) -> None:
    """RFC 3461 5.2.2, 5.2.5, 5.2.6: what is sent for each NOTIFY; without it, failures and delays."""
    recipient = Recipient("bob@example.org", notify_bits)
    actions: tuple[Action, ...] = ("failed", "delayed", "relayed")
    wanted = {action: notices.wanted(message(), recipient, action) for action in actions}
    assert wanted == {"failed": failed, "delayed": delayed, "relayed": relayed}
    for action, expected in wanted.items():
        assert (notify(message(), Fate(recipient, REFUSED), action=action) is not None) is expected


def test_the_null_sender_gets_nothing() -> None:
    """Not even when NOTIFY asks for it: no notification answers a notification (RFC 5321 4.5.5)."""
    assert notify(message(sender=""), Fate(Recipient("bob@example.org", FAILURE), REFUSED)) is None


def test_notifications_can_be_turned_off() -> None:
    """`bounces.send: false`: the events tell of every failure anyway."""
    config = Config(hostname="mta.example", bounces=Bounces(send=False))
    assert notify(message(), Fate(Recipient("bob@example.org"), REFUSED), config=config) is None


def test_those_who_did_not_ask_are_not_told_of() -> None:
    """One notification for those who share a fate, without the recipients who did not want it (RFC 3461 5.2.8)."""
    made = sent(
        message(), Fate(Recipient("bob@example.org"), REFUSED), Fate(Recipient("never@example.org", NEVER), REFUSED),
        Fate(Recipient("carol@example.org", FAILURE), REFUSED),
    )
    assert made.message.content is not None
    assert b"never@example.org" not in made.message.content
    assert b"bob@example.org" in made.message.content
    assert b"carol@example.org" in made.message.content


def test_the_notification_is_a_message_of_the_queue() -> None:
    """Null sender, the original's sender as its recipient with NOTIFY=NEVER (RFC 3461 6.1), due at once."""
    made = sent(message(), Fate(Recipient("bob@example.org"), REFUSED))
    note, delivery = made.message, made.delivery
    assert (note.id, note.sender, note.arrival_us, note.flags, note.origin) == (7, "", NOW_US, NOTIFICATION, "dsn")
    assert note.content is not None
    assert note.size == len(note.content)
    assert note.content[note.header_size : note.header_size + 2] == b"\r\n"
    assert note.message_id.encode() in note.content
    assert note.deliveries == 1
    assert delivery.recipients == [Recipient("alice@Sender.example", NEVER)]
    assert (delivery.queue, delivery.domain, delivery.due_us) == ("sender.example", "sender.example", NOW_US)
    assert delivery.message is note


def test_the_events_tell_of_both_messages() -> None:
    """`received` for the notification, `notified` for the original, linked by its id."""
    made = sent(message(), Fate(Recipient("bob@example.org"), REFUSED))
    received, notified = [json.loads(line) for line in made.events]
    assert (received["event"], notified["event"]) == ("received", "notified")
    assert received["origin"] == "dsn"
    assert notified["notification"] == received["message"]
    assert notified["recipients"] == ["bob@example.org"]
    assert (notified["queue"], notified["action"]) == ("example.org", "failed")


@pytest.mark.parametrize(
    ("ret", "returned", "full_size", "action", "full"),
    [
        ("", "headers", 10_000, "failed", False),
        ("", "full", 10_000, "failed", True),
        ("HDRS", "full", 10_000, "failed", False),
        ("FULL", "headers", 10_000, "failed", True),
        ("FULL", "full", len(CONTENT), "failed", True),
        ("FULL", "full", len(CONTENT) - 1, "failed", False),
        ("FULL", "full", 10_000, "delayed", False),
    ],
)
def test_what_is_returned(ret: str, returned: Any, full_size: int, action: Action, full: bool) -> None:
    """RET, else the configuration; never a large one, and the whole only for a failure (RFC 3461 6.2)."""
    config = Config(hostname="mta.example", bounces=Bounces(returned=returned, full_size=Size(full_size)))
    made = sent(message(ret=ret), Fate(Recipient("bob@example.org"), REFUSED), config=config, action=action)
    assert made.message.content is not None
    assert (b"The body." in made.message.content) is full
    assert b"Subject: hello" in made.message.content


def test_what_is_no_text_is_not_returned() -> None:
    """A binary message comes back as its header lines, whatever was asked: the notification is to be text."""
    config = Config(hostname="mta.example", bounces=Bounces(returned="full"))
    original = message(ret="FULL", flags=BINARY | EIGHT_BIT)
    content = HEADER + b"\r\n\0\xff\n\r"
    made = sent(original, Fate(Recipient("bob@example.org"), REFUSED), config=config, content=content)
    assert made.message.content is not None
    assert b"Subject: hello" in made.message.content
    assert b"\0" not in made.message.content
    assert not made.message.flags & (BINARY | EIGHT_BIT)


def test_what_required_tls_still_does() -> None:
    """The notification requires TLS, too, and RET=FULL is disregarded (RFC 8689 5)."""
    config = Config(hostname="mta.example", bounces=Bounces(returned="full"))
    made = sent(message(ret="FULL", flags=REQUIRE_TLS), Fate(Recipient("bob@example.org"), REFUSED), config=config)
    assert made.message.flags & REQUIRE_TLS
    assert made.message.content is not None
    assert b"The body." not in made.message.content


def test_envid_and_orcpt_come_back_decoded() -> None:
    """Both travel in xtext and are reported without it (RFC 3461 6.3)."""
    recipient = Recipient("bob@example.org", orcpt="rfc822;Bob+2BTag@example.net")
    status = status_part(sent(message(envid="QQ+3D1"), Fate(recipient, REFUSED)))
    assert "Original-Envelope-Id: QQ=1\n" in status
    assert "Original-Recipient: rfc822;Bob+Tag@example.net\n" in status


def test_values_that_cannot_be_decoded_are_left_out() -> None:
    """A record with a malformed value makes a notification without it, not an error."""
    recipient = Recipient("bob@example.org", orcpt="rfc822;+0D+0A")
    status = status_part(sent(message(envid="+zz"), Fate(recipient, REFUSED)))
    assert "Original-" not in status


@pytest.mark.parametrize(
    ("reply", "action", "status"),
    [
        (Reply(550, "5.1.1", ("x",)), "failed", "5.1.1"),
        (Reply(550, "", ("x",)), "failed", "5.0.0"),
        (Reply(451, "4.7.1", ("x",)), "failed", "4.7.1"),
        (Reply(451, "", ("x",)), "failed", "4.4.7"),
        (Reply(451, "", ("x",)), "delayed", "4.0.0"),
        (None, "failed", "4.4.7"),
        (None, "delayed", "4.0.0"),
        (Reply(451, "4.7.1", ("x",)), "delayed", "4.7.1"),
        (Reply(550, "5.7.1", ("x",)), "delayed", "4.0.0"),
        (Reply(250, "2.1.5", ("x",)), "relayed", "2.1.5"),
        (Reply(250, "", ("x",)), "relayed", "2.0.0"),
    ],
)
def test_status_codes(reply: Reply | None, action: Action, status: str) -> None:
    """The host's code, else the general one of the class; a delay is never permanent."""
    made = sent(message(), Fate(Recipient("bob@example.org", SUCCESS | FAILURE | DELAY), reply), action=action)
    assert f"\nStatus: {status}\n" in status_part(made)


def test_a_reply_is_quoted_as_on_the_wire() -> None:
    """Lines with their code, hyphen and enhanced code (RFC 3461 9.2), and who said it."""
    reply = Reply(550, "5.7.1", ("Blocked", "see https://example.org"))
    fate = Fate(Recipient("bob@example.org"), reply, "mx.example [192.0.2.1]:25", NOW_US)
    status = status_part(sent(message(), fate))
    assert "Remote-MTA: dns; mx.example\n" in status
    assert "Diagnostic-Code: smtp; 550-5.7.1 Blocked 550 5.7.1 see https://example.org\n" in status
    assert "Last-Attempt-Date: Mon, 02 Jan 2006 15:04:05 +0000\n" in status


def test_a_fate_from_history_is_that_of_the_last_attempt() -> None:
    """What expires or is late is explained by its last failed attempt, with the host and the time."""
    recipient = Recipient("bob@example.org")
    assert notices.fate(recipient, None) == Fate(recipient, None)
    attempt = Attempt(NOW_US, "mx.example [192.0.2.1]:25", "451 4.7.1 Greylisted, wait")
    assert notices.fate(recipient, attempt) == Fate(
        recipient, Reply(451, "4.7.1", ("Greylisted, wait",)), "mx.example [192.0.2.1]:25", NOW_US
    )


@pytest.mark.parametrize("reply", [
    Reply(451, "4.7.1", ("Greylisted, wait",)), Reply(421, "", ("busy",)), Reply(450, "4.2.0", ("",)), Reply(450, ""),
    Reply(451, "4.4.2", ("connection lost",), local=True), Reply(451, "", ("no route to host",), local=True),
], ids=str)
def test_history_keeps_whose_words_a_reply_is(reply: Reply) -> None:
    """A host's reply comes back with its code, our own description as such: the record of an attempt tells them apart.
    """
    attempt = Attempt(NOW_US, "mx.example [192.0.2.1]:25", str(reply))
    assert notices.fate(Recipient("bob@example.org"), attempt).reply == reply


def test_our_own_words_are_not_put_into_the_mouth_of_a_host() -> None:
    """A lost connection, or a message that the host could not take, was not replied by it: no Remote-MTA, no SMTP code,
    a diagnostic type of our own (RFC 3464 2.3.5, 2.3.6). The host is named as what the words are about."""
    reply = Reply(550, "5.6.7", ("The message needs SMTPUTF8, which the host does not offer",), local=True)
    made = sent(message(), Fate(Recipient("bob@example.org"), reply, "mx.example [192.0.2.1]:25", NOW_US))
    status = status_part(made)
    assert "Remote-MTA" not in status
    assert "\nStatus: 5.6.7\n" in status
    assert "Diagnostic-Code: x-mta; The message needs SMTPUTF8, which the host does not offer\n" in status
    assert b"Our own mail system said about mx.example [192.0.2.1]:\r\n" in (made.message.content or b"")


def test_flags_follow_the_content() -> None:
    """8-bit content returned whole makes an 8-bit notification; a UTF-8 sender address makes it SMTPUTF8."""
    config = Config(hostname="mta.example", bounces=Bounces(returned="full"))
    made = sent(
        message(), Fate(Recipient("bob@example.org"), REFUSED), config=config, content=HEADER + b"\r\n\xfc\r\n"
    )
    assert made.message.flags == NOTIFICATION | EIGHT_BIT
    made = sent(
        message(sender="älice@bücher.example", flags=SMTPUTF8 | EIGHT_BIT), Fate(Recipient("bob@example.org"), REFUSED)
    )
    assert made.message.flags == NOTIFICATION | EIGHT_BIT | SMTPUTF8
    assert made.delivery.domain == "xn--bcher-kva.example"
    assert made.delivery.recipients[0].address == "älice@bücher.example"


def test_a_lost_original_returns_nothing_but_is_told_of() -> None:
    """When the content cannot be read the sender still learns of the failure."""
    made = sent(message(), Fate(Recipient("bob@example.org"), REFUSED), content=b"")
    assert made.message.content is not None
    assert b"rfc822-headers" not in made.message.content
    assert b"No such user" in made.message.content
