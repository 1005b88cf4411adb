"""What strangers wrote, where people read it: on the terminal, in the log, in events and in notifications.

Every text field of every answer of a control process holds the same hostile text (CVE-2011-1764, CVE-2020-8794; escape
sequences, line ends of all kinds, marks that turn the direction of writing). No command may print any of it but as
escapes, on as many lines as for harmless text.
"""

from __future__ import annotations

import dataclasses
import email
import email.policy
import json
import logging
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from mta.cli import main
from mta.cli.events import print_event
from mta.config.problems import printable
from mta.control.causes import Page
from mta.control.explanation import Explanation
from mta.control.log import LineFormatter
from mta.control.protocol import (
    DeliveryList,
    MessageDetail,
    OrderAnswer,
    OrderList,
    QueueList,
    RequestError,
    Status,
    TouchList,
)  # fmt: skip
from mta.message import dsn
from mta.queue import events
from mta.queue.orders import Change, Order
from mta.queue.records import Attempt, Delivery, Message, Recipient
from mta.smtp.reply import Reply, ReplyParser
from tests.cli.helpers import FakeControl
from tests.hostile import bombs

EVIL = ("\x1b[2J\x1b]0;title\x07%s%n{}{0.__class__}\r\n. \n\x85\u2028\u2029\x00\x7f\x9b31m\u202e\u2066\u200f"
        "\ufeff\ud800 =?utf-8?q?x?= </td>")
HARMLESS = "harmless"
ID = "01hq3z8k2v4x0"


def filled(kind: Any, text: str) -> Any:
    """A value of a type with `text` in all its texts."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{field.name: filled(hints[field.name], text) for field in dataclasses.fields(kind)})
    if origin is list:
        return [filled(arguments[0], text)]
    if origin is dict:
        return {text: 1.5}
    if origin in (types.UnionType, typing.Union):
        return filled(arguments[0], text)
    return {str: text, int: 1, float: 1.5, bool: True, bytes: text.encode(errors="replace")}[kind]


KINDS = {
    "status": Status, "queues": QueueList, "queue": DeliveryList, "message": MessageDetail, "explain": Explanation,
    "page": Page, "touched": TouchList, "orders": OrderList, "order": OrderAnswer, "end": OrderAnswer,
}  # fmt: skip
COMMANDS = [
    ["status"], ["queue"], ["queue", "show", "d.example"], ["message", ID], ["explain", "d.example"], ["explain", ID],
    ["explain", "--all"], ["orders"], ["orders", "cancel", "1"], ["orders", "cancel", "7"], ["suspend"], ["limit"],
    ["pause", "tenant=acme", "--yes"], ["delete", "queue=*", "--yes"], ["suspend", "out1>mx", "--yes"],
]  # fmt: skip


def run(run_directory: Path, text: str, command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints, on both streams, when all that it is told is `text`."""
    def answer(asked: str, arguments: dict[str, Any]) -> object:
        found = filled(KINDS[asked], text)
        return dataclasses.replace(found, after="", lines=b"") if asked == "page" else found

    run_directory.mkdir()
    fake = FakeControl(run_directory, answer)
    try:
        capsys.readouterr()
        main([*command, "--run", str(run_directory)])
        return "".join(capsys.readouterr())
    finally:
        fake.close()


def assert_harmless(out: str) -> None:
    """Nothing but printable characters and line ends."""
    assert all(char == "\n" or char.isprintable() for char in out), ascii(out)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_lets_text_speak_to_the_terminal(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    """Whatever the fields hold: only what prints, and as many lines as with harmless text. The lines of a header
    section are its own."""
    text = EVIL.replace("\ud800", "")
    harmless, evil = (run(tmp_path / str(len(one)), one, command, capsys) for one in (HARMLESS, text))
    assert len(harmless) > 10
    assert_harmless(evil)
    more = text.count("\n") if command[0] == "message" else 0
    assert evil.count("\n") == harmless.count("\n") + more


def test_refusals_of_the_control_process_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They quote what was asked."""
    def refuse(asked: str, arguments: dict[str, Any]) -> object:
        raise RequestError(EVIL.replace("\ud800", ""))

    fake = FakeControl(tmp_path, refuse)
    assert main(["status", "--run", str(tmp_path)]) != 0
    out, err = capsys.readouterr()
    fake.close()
    assert_harmless(out + err)
    assert err.count("\n") == 1


# -- events ---------------------------------------------------------------------------------------------------------


def lines() -> dict[str, bytes]:
    """An event of each kind that quotes somebody, all of it hostile."""
    message = Message(1 << 20, EVIL, 1, b"", 0, EVIL, 0, "", None, EVIL, EVIL, EVIL, EVIL, size=1, deliveries=1)
    recipients = [Recipient(EVIL, 0, EVIL)]
    delivery = Delivery(message, 0, EVIL, EVIL, recipients, 1)
    delivery.history = [Attempt(1, EVIL, EVIL)]
    remote = events.Remote(EVIL, EVIL, EVIL, EVIL, EVIL, EVIL)
    reply = Reply(550, "5.1.1", (EVIL, EVIL))
    attempt: dict[str, Any] = {"attempt": 1, "time_us": 1, "duration_s": 0.1}
    failed = {**attempt, "failure": "recipient", "kind": "unknown-user", "rule": ""}
    return {
        "received": events.received(message, [delivery]),
        "delivered": events.delivered(delivery, recipients, reply, remote, **attempt),
        "deferred": events.deferred(delivery, recipients, reply, remote, next_us=1, avoid=(EVIL,), **failed),
        "bounced": events.bounced(delivery, recipients, reply, remote, **failed),
        "expired": events.expired(delivery, recipients, order=EVIL, time_us=1),
        "deleted": events.deleted(delivery, recipients, reason=EVIL, operator=EVIL, order=EVIL, time_us=1),
        "quarantined": events.quarantined(message, [delivery], text=EVIL, time_us=1),
        "suspended": events.suspended(EVIL, text=EVIL, until_us=1, time_us=1),
        "alarm": events.alarm(EVIL, text=EVIL, time_us=1),
        "notified": events.notified(message, EVIL, recipients, action="failed", notification=1, time_us=1),
        "order": events.order(Change(1, "given", Order(1, "pause", EVIL, 1, EVIL, EVIL, 1, EVIL, EVIL), EVIL, 1)),
        "login": events.login(user=EVIL, client=EVIL, listener=EVIL, via=EVIL, count=1, time_us=1),
        "refused": events.refused(what=EVIL, user=EVIL, client=EVIL, listener=EVIL, text=EVIL, count=1, time_us=1),
    }


@pytest.mark.parametrize("kind", lines())
def test_an_event_is_one_line_of_json_in_ascii(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """For whoever ships or greps it; and `mta events` prints it harmless."""
    line = lines()[kind]
    assert line.isascii()
    assert line.decode().isprintable()
    event = json.loads(line)
    assert event["event"] == kind
    print_event(event)
    out = capsys.readouterr().out
    assert_harmless(out)
    assert out.count("\n") == 1


def test_every_kind_of_event_is_looked_at() -> None:
    """A new one needs a row above."""
    assert set(lines()) == set(events.KINDS)


# -- the log --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("journal", [False, True])
def test_a_record_of_the_log_is_one_record(journal: bool) -> None:
    """Text in it cannot begin another one, nor format anything: with the words of the MTA, or in a traceback."""
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    formatter = LineFormatter("worker-1", journal)
    for extra in (None, info):
        record = logging.LogRecord("x", logging.WARNING, "x", 1, "login of %s refused", (EVIL,), extra)
        first, *others = formatter.format(record).split("\n")
        assert_harmless(first + "".join(others))
        assert r"%s%n{}{0.__class__}" in first
        assert all(line.startswith("<7>    " if journal else "    ") for line in others)


def test_a_giant_refused_message_gives_a_short_line(caplog: pytest.LogCaptureFixture) -> None:
    """CVE-2010-4344: what is logged of a message that is refused does not grow with it."""
    giant = b"Subject: " + b"x\r\n " * 30_000 + b"\r\n\r\nx\r\n"
    bombs.prepare(giant)
    (record,) = caplog.records
    assert len(record.getMessage()) < 500


# -- notifications --------------------------------------------------------------------------------------------------


def notice(**changes: Any) -> dsn.Notice:
    """About a recipient of whom all is hostile."""
    report = dsn.Report(EVIL, "5.1.1", (EVIL, f"550 {EVIL}"), EVIL, EVIL, 1, f"rfc822;{EVIL}")
    made = dsn.Notice("failed", [report], "1", 1, "mx.example.net", EVIL, "2", "a@example.com", 1, b"Subject: x\r\n",
                      12, EVIL, EVIL)
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("utf8", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_what_hosts_said_adds_nothing_to_a_notification(utf8: bool, local: bool) -> None:
    """No field, no part, no line of its own, and no mark of direction; whatever the receiver's reader is."""
    reports = [dataclasses.replace(notice().reports[0], local=local)]
    content = dsn.build(notice(original_smtputf8=utf8, reports=reports)).content
    assert not {0, 0x1B, 0x7F} & set(content)
    assert content.count(b"\r\n") == content.count(b"\n") == content.count(b"\r")
    found = email.message_from_bytes(content, policy=email.policy.SMTP)
    assert next(found.iter_parts()).get_content_type() == "text/plain"
    assert len(list(found.iter_parts())) == 3
    text = next(found.iter_parts()).get_payload(decode=True).decode()
    assert_harmless(text.replace("\r", ""))
    harmless = dsn.build(notice(reports=[dsn.Report("a", "5.1.1", ("x", "y"), "b", "c", 1, "rfc822;d", local)],
                                original_smtputf8=utf8, from_name="x", original_message_id="x",
                                original_envelope_id="x")).content
    wanted = email.message_from_bytes(harmless, policy=email.policy.SMTP)
    assert list(map(str.lower, found)) == list(map(str.lower, wanted))


def test_what_a_host_said_is_printable_from_the_start() -> None:
    """CVE-2020-8794: a reply of several lines with anything in them is text without a line end when it comes in."""
    text = EVIL.replace("\n", " ").replace("\r", " ").encode("utf-8", "replace")
    for evil in (text, bytes(set(range(256)) - {10, 13})):
        (reply,) = ReplyParser().feed(b"550-" + evil + b"\r\n550 " + evil + b"\r\n")
        assert reply.text.isprintable()
        assert str(reply).isprintable()
    assert printable(EVIL).isprintable()
