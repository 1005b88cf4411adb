"""`mta events`: the files of all shards as one stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta.cli.eventreader import EventReader
from mta.control import exits
from mta.queue import events as vocabulary
from mta.queue.ids import format_id
from mta.queue.orders import Change, Order
from mta.queue.records import Delivery, Message, Recipient
from mta.smtp.reply import Reply

MTA = Callable[..., Any]
START_US = 1_790_000_000_000_000  # 2026-09-21T14:13:20Z
SECOND_US = 1_000_000


def number(shard: int, second: int) -> int:
    """The id of a message accepted by `shard` at a second."""
    return (START_US + second * SECOND_US) << 10 | shard


def delivery(shard: int, second: int, address: str = "a@example.org") -> Delivery:
    """A delivery of a message accepted by `shard` at a second."""
    message = Message(number(shard, second), "s@example.com", START_US + second * SECOND_US, b"", size=100,
                      origin="smtp 127.0.0.1:1 c", message_id="<1@x>")  # fmt: skip
    domain = address.rpartition("@")[2]
    return Delivery(message, 0, domain, domain, [Recipient(address)], 0)


def received(shard: int, second: int, address: str = "a@example.org") -> bytes:
    """An event line."""
    one = delivery(shard, second, address)
    return vocabulary.received(one.message, [one])


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A spool with two shards."""
    for shard in ("000", "001"):
        (tmp_path / "shards" / shard / "events").mkdir(parents=True)
    return tmp_path


def line_of(shard: int, second: int) -> bytes:
    """The line of `received` without what is new in each event, its identity."""
    return received(shard, second).partition(b",")[2]


def told(line: bytes) -> bytes:
    """A line that was read, likewise."""
    return line.rstrip(b"\n").partition(b",")[2]


def write(spool: Path, shard: int, name: str, *lines: bytes) -> Path:
    """Append lines to an event file."""
    path = spool / "shards" / f"{shard:03d}" / "events" / name
    with path.open("ab") as file:
        file.writelines(line + b"\n" for line in lines)
    return path


def ids(out: str) -> list[str]:
    """The message ids in the output of --json."""
    return [json.loads(line)["message"] for line in out.splitlines()]


FIRST, SECOND = "20260921-141320-000.jsonl", "20260921-141320-001.jsonl"


def test_events_of_all_shards_come_in_order_of_time(mta: MTA, spool: Path) -> None:
    """Over shards and rotated files; other files in the directory are none."""
    write(spool, 0, FIRST, received(0, 1), received(0, 3))
    write(spool, 0, SECOND, received(0, 5))
    write(spool, 1, FIRST, received(1, 2), received(1, 4), received(1, 6))
    write(spool, 1, "notes.txt", b"not an event")
    result = mta("events", "--spool", spool, "--json")
    expected = [format_id(number(second % 2 == 0, second)) for second in range(1, 7)]
    assert (result.code, ids(result.out)) == (0, expected)
    assert ids(mta("events", "--spool", spool, "--json", "-n", "2").out) == expected[-2:]


def test_filters(mta: MTA, spool: Path) -> None:
    """By kind, by domain of a recipient, by message, by time."""
    late = delivery(0, 3, "b@Example.NET")
    bounced = _bounced(late)
    write(spool, 0, FIRST, received(0, 1), received(0, 3, "b@Example.NET"), bounced)
    write(spool, 1, FIRST, received(1, 2, "c@sub.example.net"), received(1, 2, "ü@bücher.example"))

    def found(*arguments: str) -> list[str]:
        lines = mta("events", "--spool", spool, "--json", *arguments).out.splitlines()
        return [f"{json.loads(line)['event']} {json.loads(line)['recipients'][0]}" for line in lines]

    both = ["received b@Example.NET", "bounced b@Example.NET"]
    assert found("--domain", "example.net") == both
    for spelled in ("Bücher.example", "xn--bcher-kva.EXAMPLE."):
        assert found("--domain", spelled) == ["received ü@bücher.example"]
    assert found("--event", "bounced") == both[1:]
    assert found("--event", "bounced", "--event", "received", "--message", format_id(number(0, 3)).upper()) == both
    books = "received ü@bücher.example"
    assert found("--since", "2026-09-21T14:13:22") == ["received c@sub.example.net", books, *both]
    assert found("--since", "2026-09-21T16:13:22+02:00", "--event", "received")[0] == "received c@sub.example.net"
    assert found("--since", "5m") == []
    assert found("--message", format_id(number(7, 1))) == []


def test_an_order_is_told_with_what_it_says(mta: MTA, spool: Path) -> None:
    """Number, what became of it, command, which mail or what, who, until when, why."""
    pause = Order(7, "pause", "root", 0, "campaign=spring", until_us=1_800_000_000_000_000, reason="ticket 1")
    suspend = Order(8, "suspend", "root", 0, target="source:out1")
    limit = Order(10, "limit", "bob", 0, target="provider:google", connections=2, rate=0.5)
    ruled = Order(0, "suspend", "rule listing", 0, target="mx.test", reason="550 you are listed")
    write(spool, 0, FIRST, vocabulary.order(Change(7, "given", pause, "ann", 1)),
          vocabulary.order(Change(9, "ended", suspend, "bob", 2)),
          vocabulary.order(Change(10, "given", limit, "bob", 3)),
          vocabulary.order(Change(11, "ended", ruled, "bob", 4)))
    lines = mta("events", "--spool", spool, "--event", "order").out.splitlines()
    assert [line.split("  ", 1)[1].strip() for line in lines] == [
        "order      7 given: pause campaign=spring  by ann  until 2027-01-15T08:00:00.000Z  ticket 1",
        "order      8 ended: suspend source:out1  by bob",
        "order      10 given: limit provider:google connections=2 rate=30/min  by bob",
        "order      of rule listing ended: suspend mx.test  by bob  550 you are listed"]


def _bounced(one: Delivery) -> bytes:
    line = json.loads(vocabulary.received(one.message, [one]))
    line |= {"event": "bounced", "time": "2026-09-21T14:13:29.000000Z", "remote_host": "mx.example.net",
             "remote_address": "192.0.2.1:25", "code": 550, "enhanced": "5.1.1", "text": "no\x1b[2J such\r\nuser",
             "attempt": 1, "duration_s": 0.25, "maybe_duplicate": True}  # fmt: skip
    return json.dumps(line, separators=(",", ":")).encode()


def test_one_line_for_people(mta: MTA, spool: Path) -> None:
    """When, what, which message, for whom, where, the reply; harmless to the terminal."""
    one = delivery(0, 3)
    write(spool, 0, FIRST, received(0, 3), _bounced(one))
    first, second = mta("events", "--spool", spool).out.splitlines()
    identity = format_id(number(0, 3))
    assert first == (f"2026-09-21T14:13:23.000Z  received   {identity}  from s@example.com  to a@example.org  100 bytes"
                     "  smtp 127.0.0.1:1 c")
    assert second == (f"2026-09-21T14:13:29.000Z  bounced    {identity}  to a@example.org  via mx.example.net "
                      r"[192.0.2.1:25]  550 5.1.1 no\x1b[2J such\r\nuser  attempt 1, 0.2s  maybe a duplicate")


def test_a_deferral_says_what_the_next_attempt_avoids(mta: MTA, spool: Path) -> None:
    """Beside the time of that."""
    one = delivery(0, 0)
    write(spool, 0, FIRST, vocabulary.deferred(
        one, one.recipients, Reply(451, "4.7.1", ("try another",)), vocabulary.Remote("a>mx"), failure="message",
        kind="policy", rule="other", attempt=1, time_us=START_US, duration_s=0.1, next_us=START_US + SECOND_US,
        avoid=("source:a", "host:mx1")))
    line, = mta("events", "--spool", spool).out.splitlines()
    assert line.endswith("next 2026-09-21T14:13:21.000Z, not by source:a, host:mx1")


def test_every_kind_can_be_printed(mta: MTA, spool: Path) -> None:
    """Also by a version whose events have fewer fields."""
    lines = [json.dumps({"time": f"2026-09-21T14:13:2{index}.000000Z", "event": kind}, separators=(",", ":")).encode()
             for index, kind in enumerate(vocabulary.KINDS)]  # fmt: skip
    write(spool, 0, FIRST, *lines)
    assert [line.split()[1] for line in mta("events", "--spool", spool).out.splitlines()] == list(vocabulary.KINDS)


def test_lines_that_are_no_events_are_skipped(mta: MTA, spool: Path) -> None:
    """And said on stderr; the rest is shown."""
    write(spool, 0, FIRST, b"\x00\x00\x00", received(0, 1))
    result = mta("events", "--spool", spool, "--json")
    assert ids(result.out) == [format_id(number(0, 1))]
    assert "skipped a line that is no event" in result.err


def test_files_before_the_time_are_not_opened(spool: Path) -> None:
    """`since` begins in the file that was begun before it; older ones are not read."""
    write(spool, 0, "20260921-141310-000.jsonl", b"never read")
    fifth, seventh = received(0, 5), received(0, 7)
    write(spool, 0, "20260921-141320-000.jsonl", received(0, 0), fifth)
    write(spool, 0, "20260921-141327-000.jsonl", seventh)
    (spool / "shards/000/events/20260921-141310-000.jsonl").chmod(0)
    lines = list(EventReader(str(spool), "2026-09-21T14:13:25.000000Z").read())
    assert lines == [fifth + b"\n", seventh + b"\n"]


def test_a_follower_sees_each_event_once(spool: Path) -> None:
    """Lines as they come, whole ones only, over rotation, over new shards, and over a crash that cuts the file."""
    lines = [b"", *(received(0, second) for second in range(1, 7))]
    path = write(spool, 0, FIRST, lines[1])
    reader = EventReader(str(spool))
    assert list(reader.read()) == [lines[1] + b"\n"]
    stream = reader.follow()
    with path.open("ab") as file:
        file.write(lines[2][:20])
    other = received(1, 3)
    write(spool, 1, FIRST, other)
    assert next(stream) == other + b"\n"
    with path.open("ab") as file:
        file.write(lines[2][20:] + b"\n")
    assert next(stream) == lines[2] + b"\n"
    os.truncate(path, 10)  # a crash: what was not synced is written again, the same bytes
    path.write_bytes(b"\n".join([lines[1], lines[2], lines[4], b""]))
    assert next(stream) == lines[4] + b"\n"
    write(spool, 0, FIRST, lines[5])
    write(spool, 0, SECOND, lines[6])
    assert [next(stream), next(stream)] == [lines[5] + b"\n", lines[6] + b"\n"]


def test_a_follower_finds_the_shards_that_more_workers_make(spool: Path) -> None:
    """A restart with more workers makes new shards; who follows needs no restart for it."""
    stream = EventReader(str(spool)).follow()
    write(spool, 0, FIRST, received(0, 1))
    assert told(next(stream)) == line_of(0, 1)
    (spool / "shards/002/events").mkdir(parents=True)
    write(spool, 2, FIRST, received(2, 2))
    assert told(next(stream)) == line_of(2, 2)
    only = EventReader(str(spool), shard=1).follow()
    write(spool, 1, FIRST, received(1, 3))
    assert told(next(only)) == line_of(1, 3)


def test_events_that_were_removed_unread_are_told_of(spool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads more slowly than old files are removed learns that something is missing, and goes on."""
    path = write(spool, 0, FIRST, received(0, 1))
    reader = EventReader(str(spool))
    assert [told(line) for line in reader.read()] == [line_of(0, 1)]
    path.unlink()  # a crash: it will be written again
    stream = reader.follow()
    write(spool, 1, FIRST, received(1, 1))
    assert told(next(stream)) == line_of(1, 1)
    assert capsys.readouterr().err == ""
    write(spool, 0, SECOND, received(0, 2))
    assert told(next(stream)) == line_of(0, 2)
    assert f"{FIRST} was removed before it was read to its end (events.keep)" in capsys.readouterr().err


def test_follow_begins_with_the_last_ten(spool: Path) -> None:
    """As `tail -f`, and prints what comes at once."""
    write(spool, 0, FIRST, *(received(0, second) for second in range(30)))
    with subprocess.Popen(
        [sys.executable, "-m", "mta", "events", "--spool", str(spool), "--follow", "--json"],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        assert process.stdout is not None
        begun = [json.loads(process.stdout.readline())["message"] for _ in range(10)]
        assert begun == [format_id(number(0, second)) for second in range(20, 30)]
        write(spool, 0, FIRST, received(0, 30))
        assert json.loads(process.stdout.readline())["message"] == format_id(number(0, 30))
        process.terminate()


def test_what_cannot_be_read_is_said(mta: MTA, tmp_path: Path) -> None:
    """No spool, a wrong time, a wrong id."""
    assert mta("events", "--spool", tmp_path / "nope").code == exits.NO_INPUT
    (tmp_path / "shards").mkdir()
    for arguments in (("--since", "yesterday"), ("--since", "2026-13-01"), ("--message", "nope"), ("--event", "born")):
        result = mta("events", "--spool", tmp_path, *arguments)
        assert result.code == exits.USAGE
        assert "mta" in result.err


@pytest.mark.ordinary_user
def test_events_of_another_user(mta: MTA, spool: Path) -> None:
    """Exit code 77 and who may."""
    write(spool, 0, FIRST, received(0, 1)).parent.chmod(0)
    result = mta("events", "--spool", spool)
    assert result.code == exits.NO_PERMISSION
    assert "be root, or the user that the MTA runs as" in result.err
