"""`mta status`, `mta queue`, `mta message` against a control process of canned answers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta.control import exits
from mta.control.protocol import (
    BODY_CHUNK,
    AttemptRow,
    DeliveryList,
    DeliveryRow,
    Family,
    Member,
    MessageDetail,
    Missing,
    QueueList,
    QueueRow,
    RecipientRow,
    RequestError,
    SourceRow,
    Status,
    WorkerStatus,
)
from mta.queue.ids import format_id

NOW_US = time.time_ns() // 1000
MINUTE_US = 60_000_000
ID = format_id((NOW_US << 10) | 1)
EVIL = "550 gone\x1b[2J\x1b]0;title\x07 \u202eevil\r\nnext line"
MTA = Callable[..., Any]
CONTROL = Callable[..., Any]


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock stands at NOW_US."""
    monkeypatch.setattr(time, "time_ns", lambda: NOW_US * 1000)
    monkeypatch.setattr(time, "time", lambda: NOW_US / 1e6)


def delivery(**changes: Any) -> DeliveryRow:
    """A delivery that failed once."""
    row = DeliveryRow(
        ID, 0, "example.org", "example.org", "sender@example.com", [RecipientRow("a@example.org", "NEVER")], 5123,
        NOW_US - 90 * MINUTE_US, NOW_US + 5 * MINUTE_US, attempts=1,
        history=[AttemptRow(NOW_US - MINUTE_US, "mx1.example.org [192.0.2.1]:25", EVIL)],
    )  # fmt: skip
    for name, value in changes.items():
        setattr(row, name, value)
    return row


QUEUES = QueueList(
    [
        QueueRow("gmail.com", "gmail.com", 12_345, 15_000, NOW_US + 245_000_000, in_flight=20, state="active",
                 reason="limit of 20 connections reached", last_reply="421 too fast"),
        QueueRow("example.org", "example.org", 1, 1, NOW_US - 1, state="suspended", last_reply=EVIL),
    ],
    queues=3, deliveries=12_400, recipients=15_100,
)  # fmt: skip


def test_queues_are_listed_with_what_holds_them_up(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Counts, next attempt, state, and the reason, or else the last reply; the totals below."""
    asked = control(lambda *_: QUEUES)
    result = mta("queue", "--run", tmp_path)
    title, gmail, example, *rest = result.out.splitlines()
    assert title.split() == ["QUEUE", "DELIVERIES", "RCPTS", "ACTIVE", "NEXT", "STATE", "WHY"]
    assert gmail.split(maxsplit=7) == [
        "gmail.com", "12,345", "15,000", "20", "in", "4m05s", "active", "limit of 20 connections reached"
    ]  # fmt: skip
    assert example.split()[4] == "-"  # suspended, and nobody knows until when
    assert rest == ["", "2 of 3 queues are shown (--limit)", "3 queues, 12,400 deliveries, 15,100 recipients"]
    assert (result.code, result.err) == (0, "")
    assert asked.requests == [("queues", {"pattern": "", "limit": 50, "order": "deliveries"})]


def test_what_waits_for_its_retry_time_says_the_last_reply(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """And what an operator paused without an end has no next attempt, though its retry time is past."""
    control(lambda *_: QueueList([
        QueueRow("a.test", "a.test", 1, 1, NOW_US + 245_000_000, state="waiting", reason="for its retry time",
                 last_reply="452 4.2.2 Mailbox full"),
        QueueRow("b.test", "b.test", 1, 1, NOW_US - 1, state="paused", reason="paused by order 1", last_reply="450 no"),
    ], queues=2, deliveries=2, recipients=2))
    _, waiting, paused, *_ = mta("queue", "--run", tmp_path).out.splitlines()
    assert waiting.split(maxsplit=7)[4:] == ["in", "4m05s", "waiting", "452 4.2.2 Mailbox full"]
    assert paused.split(maxsplit=6)[4:] == ["-", "paused", "paused by order 1"]


def test_remote_text_cannot_speak_to_the_terminal(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Control characters, overrides of direction and line ends of a reply come out as escapes, on one line."""
    control(lambda command, _: QUEUES if command == "queues" else DeliveryList(QUEUES.rows[1], [delivery()]))
    for arguments in (("queue",), ("queue", "show", "example.org")):
        out = mta(*arguments, "--run", tmp_path).out
        assert r"550 gone\x1b[2J\x1b]0;title\x07 \u202eevil\r\nnext line" in out
        assert all(char == "\n" or char.isprintable() for char in out)


def test_queue_options(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Options before the verb hold for it; a pattern, an order and a limit are passed on."""
    asked = control(lambda *_: QueueList())
    assert mta("queue", "--run", tmp_path, "--limit", "7", "list", "gmail").out == "no queue matches 'gmail'\n"
    assert mta("queue", "list", "--sort", "next", "--run", tmp_path).out == "the queue is empty\n"
    assert asked.requests == [
        ("queues", {"pattern": "gmail", "limit": 7, "order": "deliveries"}),
        ("queues", {"pattern": "", "limit": 50, "order": "next"}),
    ]
    assert mta("queue", "--limit", "0").code == exits.USAGE


def test_queues_as_json(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """One object per line, text unchanged (escaped as JSON does)."""
    control(lambda *_: QUEUES)
    rows = [json.loads(line) for line in mta("queue", "--json", "--run", tmp_path).out.splitlines()]
    assert [row["name"] for row in rows] == ["gmail.com", "example.org"]
    assert rows[1]["last_reply"] == EVIL


def test_an_incomplete_answer_says_so(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """On stderr, with exit code 75; what is known is shown."""
    control(lambda *_: QueueList(QUEUES.rows, 2, 2, 2, [Missing(3, "does not answer within 5 s")]))
    result = mta("queue", "--run", tmp_path)
    assert "gmail.com" in result.out
    assert result.err == "mta: incomplete: worker 3 does not answer within 5 s\n"
    assert result.code == exits.TEMPORARY


def test_nobody_says_that_the_queue_is_empty_who_does_not_know(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """A worker that is starting may have a million messages."""
    control(lambda *_: QueueList([], 0, 0, 0, [Missing(3, "is starting")]))
    assert mta("queue", "--run", tmp_path).out == ""


def test_one_queue_is_shown_with_its_deliveries(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Each with its message, when it is tried next, for whom, and how it failed."""
    busy = delivery(in_flight=True, history=[], attempts=0, maybe_duplicate=True)
    busy.recipients = [RecipientRow(f"{number}@example.org") for number in range(12)]
    control(lambda *_: DeliveryList(QUEUES.rows[1], [delivery(), busy], more=True))
    out = mta("queue", "show", "example.org", "--run", tmp_path).out
    assert f"{ID}  from sender@example.com, 5.1 KB, 1h30m old" in out
    assert "  next attempt in " in out
    assert "1 failed attempt" in out
    assert "  to a@example.org  (NOTIFY=NEVER)" in out
    assert "mx1.example.org [192.0.2.1]:25: 550 gone" in out
    assert "  being delivered, not tried yet, a crash left it open" in out
    assert "  to 9@example.org\n  and 2 more recipients\n" in out
    assert "2 of 1 deliveries are shown" in out


def test_a_queue_that_is_not_there(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Said on stderr, exit code 66; nothing on stdout for a program."""
    control(lambda *_: DeliveryList())
    result = mta("queue", "show", "nope.example", "--run", tmp_path, "--json")
    assert (result.code, result.out) == (exits.NO_INPUT, "")
    assert "there is no queue 'nope.example'" in result.err


def detail(**changes: Any) -> MessageDetail:
    """A message of which one of two deliveries is left."""
    found = MessageDetail(
        ID, 1, "sender@example.com", NOW_US - 90 * MINUTE_US, 5123, "<1@example.com>", "smtp 127.0.0.1:4711 client",
        ["8BITMIME"], "HDRS", "env", 2, [delivery()], b"Subject: =?x?\x1b[2J\r\n\tfolded \xff\r\n",
    )  # fmt: skip
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def test_a_message_is_shown(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Envelope, deliveries with history, headers; the id in either case."""
    asked = control(lambda *_: detail())
    result = mta("message", ID.upper(), "--run", tmp_path)
    assert result.code == 0
    assert asked.requests == [("message", {"id": ID})]
    for text in (
        f"message    {ID}\n", "from       sender@example.com\n", ", 1h30m ago\n", "size       5.1 KB\n",
        "origin     smtp 127.0.0.1:4711 client\n", "asked for  8BITMIME RET=HDRS ENVID=env\n",
        "done       1 delivery of 2, see `mta events",
        "queue example.org\n  next attempt in ", "Subject: =?x?\\x1b[2J\n    folded \N{REPLACEMENT CHARACTER}\n",
    ):  # fmt: skip
        assert text in result.out


def test_a_message_that_is_due_says_why_it_waits(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """The reason that the worker gives, which may hold remote text; from an older MTA, which gives none, nothing."""
    due = delivery(due_us=NOW_US - 1, reason=f"mx is suspended for another 8 s: {EVIL}")
    control(lambda *_: detail(deliveries=[due, delivery(due_us=NOW_US - 1)]))
    out = mta("message", ID, "--run", tmp_path).out
    assert "  due, 1 failed attempt\n  waits: mx is suspended for another 8 s: 550 gone\\x1b[2J" in out
    assert out.count("waits:") == 1


def test_a_message_as_json(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Everything that is shown and more."""
    control(lambda *_: detail(sender=""))
    found = json.loads(mta("message", ID, "--run", tmp_path, "--json").out)
    assert (found["sender"], found["deliveries"][0]["history"][0]["reply"]) == ("", EVIL)
    assert found["headers"].startswith("Subject: ")


def test_a_body_comes_byte_by_byte(control: CONTROL, tmp_path: Path) -> None:
    """Into a pipe it is what is stored, in as many pieces as it takes."""
    content = bytes(range(256)) * (BODY_CHUNK // 256 + 1)

    def answer(_command: str, arguments: dict[str, Any]) -> bytes:
        return content[arguments["offset"] : arguments["offset"] + arguments["length"]]

    asked = control(answer)
    result = subprocess.run([sys.executable, "-m", "mta", "message", ID, "--body", "--run", str(tmp_path)],
                            capture_output=True, check=True, cwd=Path(__file__).parents[2])  # fmt: skip
    assert result.stdout == content
    assert len(asked.requests) == 2


def test_a_body_that_vanishes(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """A message that is delivered while it is read, or was before."""
    control(lambda _, arguments: b"x" * BODY_CHUNK if arguments["offset"] == 0 else None)
    assert "left the queue while it was read" in mta("message", ID, "--body", "--run", tmp_path).err


def test_a_message_that_is_done_shows_its_events(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Not in the queue any more: what became of it, and exit code 66."""
    control(lambda *_: None)
    assert mta("message", ID, "--body", "--run", tmp_path).code == exits.NO_INPUT
    config = tmp_path / "mta.yaml"
    config.write_text(f"hostname: mta.example.net\nrun: {tmp_path}\nspool: {tmp_path}/spool\n")
    events = tmp_path / "spool" / "shards" / "001" / "events"
    events.mkdir(parents=True)
    (events / "20200101-000000-000.jsonl").write_text(
        json.dumps({"id": "1", "time": "2999-01-01T00:00:00.000000Z", "event": "bounced", "message": ID,
                    "recipients": ["a@b"], "code": 550, "text": "no such user"}, separators=(",", ":")) + "\n"
    )  # fmt: skip
    result = mta("message", ID, "-c", config)
    assert result.code == exits.NO_INPUT
    assert f"message {ID} is not in the queue" in result.err
    assert "2999-01-01T00:00:00.000Z  bounced    " in result.out
    assert "550 no such user" in result.out
    assert json.loads(mta("message", ID, "-c", config, "--json").out)["code"] == 550


def test_no_message_id(mta: MTA) -> None:
    """Said before anybody is asked."""
    result = mta("message", "nonsense")
    assert result.code == exits.USAGE
    assert "is no message id" in result.err


STATUS = Status(
    "0.1.0", "mta.example.net",
    Family(4711, NOW_US - 90_000 * 1_000_000, [
        Member("worker", 0, 4712, "ready", [0, 2], NOW_US - 3600 * 1_000_000),
        Member("worker", 1, 0, "waiting", [1], 0, 3, NOW_US + 2_500_000, "killed by SIGKILL\x1b"),
        Member("control", 0, 4714, "ready", [], NOW_US - 61 * 1_000_000),
    ]),
    [WorkerStatus(0, 4712, 3600.0, [0, 2], 48_000_000, 12.5, 10, 11, 12, 2, 3, 4, "disk has 1 MB left", 1000, 2000, 5,
                  loop_lag_p99_ms=7.2, doors=["/var/spool/in: Permission denied\x1b"])],
    [Missing(1, "is not running (killed by SIGKILL)")],
)  # fmt: skip


def test_status_shows_every_process(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """What it does, what waits, why no mail is taken, which process is down since when and why."""
    control(lambda *_: STATUS)
    result = mta("status", "--run", tmp_path)
    assert result.code == exits.TEMPORARY
    assert "worker 1 is not running" in result.err
    out = result.out
    assert "mta.example.net: mta 0.1.0, up 1d01h, pid 4711" in out
    assert "10 messages, 11 deliveries to 12 recipients; 2 being delivered" in out
    assert "3 in, 4 out" in out
    assert "worker 0 takes no new mail: disk has 1 MB left" in out
    assert "worker 0: /var/spool/in: Permission denied\\x1b" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["worker", "0", "4712", "ready", "1h00m", "0", "2", "48", "MB", "12s", "7ms", "3", "4", "10", "0"] in rows
    assert any(row[:6] == ["worker", "1", "-", "restart", "in", "2s"] for row in rows)
    assert "worker 1 ended last time: killed by SIGKILL\\x1b" in out


def test_status_shows_sources(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Each over all workers, with what it lacks; nothing of them where none is configured."""
    plain = WorkerStatus(0, 1, 1.0, sources=[SourceRow("", 3, 2)])
    status = Status("0", "mta.test", Family(1, NOW_US), [plain])
    control(lambda *_: status)
    assert "SOURCE" not in mta("status", "--run", tmp_path).out
    status.workers = [WorkerStatus(number, 1, 1.0, sources=[
        SourceRow("out1", 3, 2, 1), SourceRow("out2", trouble=f"this machine does not have the address {EVIL}")])
        for number in (0, 1)]
    out = mta("status", "--run", tmp_path).out
    assert "out1" in out
    assert next(line for line in out.splitlines() if line.startswith("out1")).split() == ["out1", "6", "2", "1", "-"]
    assert r"does not have the address 550 gone\x1b[2J" in out


def test_status_as_json(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """With the sums over the workers."""
    control(lambda *_: STATUS)
    found = json.loads(mta("status", "--json", "--run", tmp_path).out)
    assert (found["total"]["queued_messages"], found["total"]["shards"]) == (10, [0, 2])
    assert found["family"]["members"][1]["restarts"] == 3


def test_it_says_that_the_mta_is_not_running(mta: MTA, tmp_path: Path) -> None:
    """No socket, or one that nobody serves: exit code 69 and how to start it."""
    for attempt in range(2):
        result = mta("status", "--run", tmp_path)
        assert result.code == exits.UNAVAILABLE
        assert result.err.startswith("mta: the MTA is not running: ")
        assert "mta run" in result.err
        if attempt == 0:
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(tmp_path / "control.sock"))


@pytest.mark.ordinary_user
def test_it_says_who_may_ask(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """A socket of others: exit code 77 and the group that one has to be in."""
    control(lambda *_: STATUS)
    (tmp_path / "control.sock").chmod(0)
    result = mta("status", "--run", tmp_path)
    assert result.code == exits.NO_PERMISSION
    assert "member of the group" in result.err


def test_an_answer_that_is_an_error(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Its text, cleaned, and exit code 69."""

    def answer(*_: object) -> object:
        raise RequestError("worker 1, which has this message, is \x1bnot running")

    control(answer)
    result = mta("message", ID, "--run", tmp_path)
    assert (result.code, result.err) == (69, "mta: worker 1, which has this message, is \\x1bnot running\n")


def test_a_broken_configuration_names_the_way_around(mta: MTA, tmp_path: Path) -> None:
    """The first problem, and that --run does without; the environment names the file."""
    config = tmp_path / "mta.yaml"
    config.write_text("hostnam: x\nworkers: 1.10\n")
    result = mta("queue", "-c", config)
    assert result.code == exits.CONFIG
    assert f"{config}:1:1: " in result.err
    assert "--run DIRECTORY does without" in result.err
