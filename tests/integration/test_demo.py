"""`mta demo` as a newcomer runs it: the whole of it, interrupted, out of time; nothing is left behind."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIMIT_S = 90.0


@pytest.fixture
def room() -> Iterator[Path]:
    """The directory for temporary files that the demo is told to use."""
    with tempfile.TemporaryDirectory(prefix="mta-") as path:
        yield Path(path)


def environment(room: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    return {**kept, "TMPDIR": str(room), "TERM": "xterm"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mta", "demo", *arguments]


def processes_of(room: Path) -> list[str]:
    """Command lines and environments tell who belongs to a demo."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={room}\0".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def wait_until_alone(room: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while processes_of(room):
        assert time.monotonic() < deadline, processes_of(room)
        time.sleep(0.05)


def test_every_message_is_accounted_for(room: Path) -> None:
    """Exit code 0, and the books agree: accepted = delivered + bounced + expired, and the receivers have the same."""
    done = subprocess.run(command("--messages", "200", "--json"), env=environment(room), capture_output=True, text=True,
                          timeout=LIMIT_S)

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["accounted_for"] is True
    assert told["messages_accepted"] == 200
    assert told["accepted"] == told["delivered"] + told["bounced"] + told["expired"] >= 200
    assert told["queued"] == 0
    assert told["arrived"] == told["delivered"]
    assert told["notices"] == told["notices_arrived"] > 0
    assert told["twice"] == 0
    by_key = {row["key"]: row for row in told["receivers"]}
    assert by_key["grey"]["deferrals"] >= by_key["grey"]["recipients"] == by_key["grey"]["delivered"] > 0
    assert by_key["outage"]["delivered"] == by_key["outage"]["recipients"] > 0
    assert by_key["typo"]["failed"] == by_key["typo"]["recipients"] > 0
    assert by_key["big"]["most_connections"] <= 8
    assert any("Greylisted" in reason["reply"] for reason in told["deferred_by"])
    assert " s  accepted 200 " in done.stderr  # a line from time to time
    assert "\x1b" not in done.stderr
    assert list(room.iterdir()) == []
    assert processes_of(room) == []


def test_out_of_time_it_says_what_waits_and_why(room: Path) -> None:
    """`--limit` ends it with 75 while greylisted mail and that of the dead site still wait."""
    done = subprocess.run(command("--messages", "100", "--limit", "2s"), env=environment(room), capture_output=True,
                          text=True, timeout=LIMIT_S)

    assert done.returncode == 75, done.stdout + done.stderr
    assert "Time was over before everything had an end." in done.stdout
    assert "Greylisted" in done.stdout
    assert "site paused: connect: Connection refused" in done.stdout
    assert "Every message is accounted for." not in done.stdout
    assert list(room.iterdir()) == []


@contextmanager
def on_a_terminal(room: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The demo with a terminal of its own, and our end of it."""
    ours, theirs = pty.openpty()
    # On a terminal Ctrl-C counts, also when the tests run in the background of a shell, which has SIGINT ignored.
    with subprocess.Popen(["env", "--default-signal=INT", *command(*arguments)], env=environment(room), stdin=theirs,
                          stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


def read_until(terminal: int, text: bytes) -> bytes:
    """What is shown until `text` is, or until the end when it is empty."""
    shown = b""
    while not text or text not in shown:
        try:
            shown += os.read(terminal, 65_536)
        except OSError:  # the other end is closed
            assert not text, shown
            return shown
    return shown


@pytest.mark.parametrize("moment", ["Starting the MTA", "queues "], ids=["start", "middle"])
def test_ctrl_c_leaves_nothing_behind(moment: str, room: Path) -> None:
    """Whenever it comes: no process, no file, the terminal as it was, exit code 130."""
    with on_a_terminal(room) as (process, terminal):
        shown = read_until(terminal, moment.encode())
        process.send_signal(signal.SIGINT)
        shown += read_until(terminal, b"")
        assert process.wait(LIMIT_S) == 130

    assert shown.count(b"\x1b[?1049h") == shown.count(b"\x1b[?1049l") == (moment == "queues ")
    assert b"Stopped: all processes of the demo have ended" in shown
    assert list(room.iterdir()) == []
    assert processes_of(room) == []


def test_kept_it_takes_mail_until_ctrl_c(room: Path) -> None:
    """`--keep` prints commands that work, as they are printed."""
    with on_a_terminal(room, "--messages", "5", "--keep", "--limit", "1s") as (process, terminal):
        shown = read_until(terminal, b"small --stats").decode().replace("\r", "")
        shown = shown.partition("In another terminal:")[2].rpartition("\n")[0]
        printed = {line.partition(" -m mta ")[2].split()[0]: line for line in shown.splitlines() if " -m mta " in line}
        assert set(printed) == {"send", "status", "queue", "events", "sandbox"}
        del printed["events"]  # it follows for ever
        for line in printed.values():
            subprocess.run(line, shell=True, env=environment(room), timeout=LIMIT_S, check=True, capture_output=True)
        process.send_signal(signal.SIGTERM)
        read_until(terminal, b"")
        process.wait(LIMIT_S)

    assert list(room.iterdir()) == []


def test_killed_it_takes_its_processes_along(room: Path) -> None:
    """kill -9 gives it no time to clean up; the MTA and the sandbox end all the same."""
    with on_a_terminal(room) as (process, terminal):
        read_until(terminal, b"queues ")
        process.kill()
        process.wait(LIMIT_S)

    wait_until_alone(room)
