"""`mta spool verify`."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mta.control import exits
from mta.queue import events
from mta.queue.store import Transaction
from mta.smtp.reply import Reply
from tests.cli.conftest import Result
from tests.queue.helpers import Bench, empty_spool

Mta = Callable[..., Result]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A spool with one message in the queue and one that was delivered."""
    bench = Bench(empty_spool(tmp_path) / "shards" / "000")
    for domain in ("waits.test", "done.test"):
        [delivery] = bench.make(domain, message_id=f"<{domain}@x>")
        message = delivery.message
        bench.commit(Transaction([(message, [delivery])], events=[events.received(message, [delivery])]))
    event = events.delivered(delivery, delivery.recipients, Reply(250, "2.0.0", ("Ok",)), events.Remote(""), attempt=1,
                             time_us=bench.clock(), duration_s=0.1)
    bench.commit(Transaction(removes=[delivery], events=[event]))
    bench.close()
    return tmp_path


def test_a_sound_spool(mta: Mta, spool: Path) -> None:
    """It says what was looked at, and ends with 0."""
    found = mta("spool", "verify", "--spool", spool)
    assert (found.code, found.err) == (exits.OK, "")
    assert "shard 000: 1 message, 1 delivery to 1 recipient in the queue; " in found.out
    assert "1 content read" in found.out
    assert found.out.endswith(f"{spool}: sound\n")
    assert "1 content found" in mta("spool", "verify", "--spool", spool, "--quick").out


def test_a_damaged_spool(mta: Mta, spool: Path) -> None:
    """A problem per line, with its place and what to do; the exit code is 1."""
    (spool / "shards" / "000" / "version").write_text("x")
    (spool / "version").write_text("y")
    found = mta("spool", "verify", "--spool", spool)
    assert found.code == exits.DAMAGED == 1
    assert found.out.startswith(f"{spool}/version: 'y' is no version; ")
    assert f"\n{spool}/shards/000/version: 'x' is no version; " in found.out
    assert found.out.endswith("2 problems\n")
    report = json.loads(mta("spool", "verify", "--spool", spool, "--json").out)
    assert report["sound"] is False
    assert [set(problem) for problem in report["problems"]] == [{"kind", "place", "text", "advice"}] * 2
    assert [(shard["messages"], shard["events"]) for shard in report["shards"]] == [(1, 3)]


def test_a_spool_that_cannot_be_looked_at(mta: Mta, spool: Path, tmp_path: Path) -> None:
    """In use, of a newer version, no spool, or not there: one line, and a code for each."""
    with (spool / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = mta("spool", "verify", "--spool", spool)
        assert (found.code, found.out) == (exits.TEMPORARY, "")
        assert "is in use by process 4711" in found.err
    (spool / "version").write_text("7\n")
    assert mta("spool", "verify", "--spool", spool).code == exits.DATA
    (tmp_path / "other").mkdir()
    assert mta("spool", "verify", "--spool", tmp_path / "other").code == exits.DATA
    assert mta("spool", "verify", "--spool", tmp_path / "none").code == exits.NO_INPUT
    assert mta("spool").code == exits.USAGE


def test_nothing_is_changed(mta: Mta, spool: Path) -> None:
    """Not a byte, and no file."""
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in spool.rglob("*") if path.is_file()}
    mta("spool", "verify", "--spool", spool)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in spool.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("lines", "problem"), [
    (['["<done.test@x>", "u0@done.test", 1]'], ""),
    (['["done.test", "u0@done.test", 1]'], ""),
    ([], "received 0 times"),
    (['["done.test", "u0@done.test", 2]'], "received 2 times, but 1 events"),
])
def test_what_was_received_has_to_agree(mta: Mta, spool: Path, tmp_path: Path, lines: list[str], problem: str) -> None:
    """The receivers' counts against the events."""
    (tmp_path / "received").write_text("\n".join([*lines, ""]))
    found = mta("spool", "verify", "--spool", spool, "--received", tmp_path / "received")
    assert found.code == (exits.DAMAGED if problem else exits.OK)
    assert problem in found.out


def test_a_list_of_receipts_that_is_none(mta: Mta, spool: Path, tmp_path: Path) -> None:
    """It is said, with its place."""
    (tmp_path / "received").write_text("x\n")
    found = mta("spool", "verify", "--spool", spool, "--received", tmp_path / "received")
    assert found.code == exits.DATA
    assert f"{tmp_path}/received:0: " in found.err


def test_a_repair(mta: Mta, spool: Path) -> None:
    """It says what was found and what was done, then what is left; a dry run only what would be done."""
    (spool / "version").write_text("y")
    (spool / "shards" / "000" / "queue.mdb" / "data.mdb").unlink()
    before = {path: path.read_bytes() for path in spool.rglob("*") if path.is_file()}
    dry = mta("spool", "verify", "--spool", spool, "--repair", "--dry-run")
    assert dry.code == exits.DAMAGED
    assert "queue.mdb/data.mdb: the index is missing\n" in dry.out
    assert f"would be done: {spool}/version: is written: 1\n" in dry.out
    assert dry.out.endswith(f"{spool}: 2 problems\n")
    assert {path: path.read_bytes() for path in spool.rglob("*") if path.is_file()} == before
    done = mta("spool", "verify", "--spool", spool, "--repair", "--json")
    assert (done.code, done.err) == (exits.OK, "")
    report = json.loads(done.out)
    assert (report["sound"], report["problems"], len(report["found"])) == (True, [], 2)
    assert {"place": f"{spool}/version", "text": "is written: 1"} in report["actions"]
    again = mta("spool", "verify", "--spool", spool, "--repair")
    assert "done" not in again.out
    assert again.out.endswith(f"{spool}: sound\n")


def test_a_repair_of_a_spool_in_use(mta: Mta, spool: Path) -> None:
    """Nothing is done; and what does not go together is said."""
    with (spool / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert mta("spool", "verify", "--spool", spool, "--repair").code == exits.TEMPORARY
        assert mta("spool", "verify", "--spool", spool, "--repair", "--dry-run").code == exits.OK
    assert mta("spool", "verify", "--spool", spool, "--dry-run").code == exits.USAGE
    assert mta("spool", "verify", "--spool", spool, "--repair", "--quick").code == exits.USAGE


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to give files away")
def test_a_repair_by_root_leaves_files_to_the_owner(spool: Path) -> None:
    """The MTA has to be able to open them."""
    nobody = pwd.getpwnam("nobody")
    for path in (spool, *spool.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    spool.parent.chmod(0o755)
    for parent in spool.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    data = spool / "shards" / "000" / "queue.mdb" / "data.mdb"
    data.write_bytes(b"x" * 9000)
    done = subprocess.run([sys.executable, "-m", "mta", "spool", "verify", "--spool", spool, "--repair"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == exits.OK, done.stderr
    assert {path.stat().st_uid for path in spool.rglob("*")} == {nobody.pw_uid}
