"""Rules of the spool directory: every message once, whatever happens; nothing but honest files is read."""

from __future__ import annotations

import errno
import json
import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta.config import schema
from mta.config.checks import NO_CHANGES, CheckChanges
from mta.config.schema import Config, Labels, SmtpIn, Tenant
from mta.config.units import Directory, Domain, HeaderName, Size
from mta.inject import claims, reading
from mta.inject import pickup as pickup_module
from mta.inject.claims import DirectoryError, SpoolDirectory
from mta.inject.formats import Submission, parse_message
from mta.inject.intake import Accepted, Intake, Source
from mta.inject.pickup import BATCH, Stopping
from mta.queue.errors import StoreError, StoreFull
from mta.smtp.envelope import Envelope
from mta.smtp.reply import Reply
from tests.inject.pickup_helpers import Crash, MemoryStore, Steps, drop, finish, left, make, message, transactions


@pytest.fixture(autouse=True)
def _disks_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of syncs matters here, not that they reach a disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_files_are_taken_and_removed(tmp_path: Path) -> None:
    """Messages of either form and batches; nothing of them stays, neither on disk nor in the marks."""
    drop(tmp_path, "one.eml", message("1@x.example"))
    drop(tmp_path, "two", "From: a@a.example\nTo: 2@x.example\n\nbody\n")
    drop(tmp_path, "three.BSMTP", transactions("3@x.example", "4@y.example"))
    store = MemoryStore()
    one = make(tmp_path, store)
    finish(one)
    assert store.recipients() == ["1@x.example", "2@x.example", "3@x.example", "4@y.example"]
    assert left(tmp_path) == []
    assert store.kept_marks == {}
    assert (one.statistics.messages, one.statistics.files, one.statistics.failed) == (4, 3, 0)


def test_the_message_says_where_it_came_from(tmp_path: Path) -> None:
    """Its origin is the file, as it was named, and its trace line says spool directory."""
    drop(tmp_path, "odd\n\udcffname", message("1@x.example"))
    store = MemoryStore()
    finish(make(tmp_path, store))
    (accepted,) = store.accepted
    assert accepted.message.origin == f"pickup {tmp_path}/odd\\x0a\\xffname uid {os.getuid()}"
    assert accepted.message.content is not None
    assert f"by mta.example (spool directory, userid {os.getuid()}) id ".encode() in accepted.message.content


def test_hidden_names_and_directories_are_left_alone(tmp_path: Path) -> None:
    """Dot-files, tmp/, failed/ and other directories, with what is in them."""
    for name in (".hidden", "tmp/being-written", "failed/old", "sub/file"):
        tmp_path.joinpath(name).parent.mkdir(exist_ok=True)
        tmp_path.joinpath(name).write_text(message("1@x.example"))
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert store.accepted == []
    assert left(tmp_path) == [".hidden", "failed/old", "sub/file", "tmp/being-written"]


def test_a_bad_file_goes_aside_with_the_reason(tmp_path: Path) -> None:
    """It is moved to failed/ as it is, beside a `.error` with file, time, line and what was expected."""
    bad = "X-Sender: a@a.example\nX-Receiver: nobody\n\n"
    drop(tmp_path, "bad.eml", bad)
    drop(tmp_path, "good.eml", message("1@x.example"))
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert store.recipients() == ["1@x.example"]
    assert left(tmp_path) == ["failed/bad.eml", "failed/bad.eml.error"]
    assert (tmp_path / "failed/bad.eml").read_text() == bad
    report = (tmp_path / "failed/bad.eml.error").read_text().splitlines()
    assert report[0] == f"file: {tmp_path}/bad.eml"
    assert report[1].startswith("time: 20")
    assert report[2] == "line 2: X-Receiver: 'nobody': the domain is missing"


def test_what_intake_refuses_is_a_bad_file(tmp_path: Path) -> None:
    """A loop is refused with the reply that SMTP would give."""
    drop(tmp_path, "loop", message("1@x.example").replace("Subject", "Received: x\n" * 6 + "Subject"))
    finish(make(tmp_path, MemoryStore(), hops=5))
    assert "554 5.4.6 Too many hops" in (tmp_path / "failed/loop.error").read_text()


def test_a_directory_has_checks_of_its_own(tmp_path: Path) -> None:
    """Files and batches: what `checks` would take, it may refuse, and the reason says the field."""
    pickup = make(tmp_path, MemoryStore())
    checks = CheckChanges(from_domains=("acme.example",))
    pickup.configure(Config(hostname="mta.example", pickup=(schema.Pickup(directory=str(tmp_path), checks=checks),)))
    drop(tmp_path, "one", "x-sender: a@acme.example\nx-receiver: b@x.example\nFrom: a@evil.example\n\nx\n")
    drop(tmp_path, "two.bsmtp",
         "MAIL FROM:<a@acme.example>\nRCPT TO:<b@x.example>\nDATA\nFrom: a@evil.example\n\nx\n.\n")
    finish(pickup)
    for name in ("one", "two.bsmtp"):
        assert "550 5.7.1 From: not allowed to send as evil" in (tmp_path / f"failed/{name}.error").read_text()


def test_a_name_in_failed_is_never_taken_twice(tmp_path: Path) -> None:
    """A second bad file of the same name gets another one; a `.error` or a file that is there stays."""
    one = make(tmp_path, MemoryStore())
    for content in ("one", "two", "three"):
        drop(tmp_path, "bad", content)
        finish(one)
        if content == "two":
            (tmp_path / "failed/bad.error").unlink()
    contents = sorted(path.read_text() for path in (tmp_path / "failed").iterdir() if path.suffix != ".error")
    assert contents == ["one", "three", "two"]
    assert (tmp_path / "failed/bad").read_text() == "one"


def test_a_batch_is_accepted_up_to_the_first_error(tmp_path: Path) -> None:
    """What stands before stays accepted; the rest goes to failed/, and the reason names both places."""
    content = transactions("1@x.example", "2@x.example") + transactions("bad") + transactions("4@x.example")
    drop(tmp_path, "many.bsmtp", content)
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert store.recipients() == ["1@x.example", "2@x.example"]
    assert store.kept_marks == {}
    rest, report = sorted((tmp_path / "failed").iterdir())
    assert rest.name.startswith("many.")
    assert rest.suffix == ".bsmtp"
    assert report.name == rest.name + ".error"
    assert rest.read_text() == transactions("bad") + transactions("4@x.example")
    assert "line 14: " in report.read_text()
    assert "before line 13 was accepted, this file has the rest (line 14 is its line 2)" in report.read_text()
    assert left(tmp_path) == [f"failed/{rest.name}", f"failed/{report.name}"]


def test_a_batch_that_is_wrong_from_the_start_goes_aside_whole(tmp_path: Path) -> None:
    """Under its own name; so does one without a transaction."""
    drop(tmp_path, "bad.bsmtp", transactions("bad"))
    drop(tmp_path, "empty.bsmtp", "HELO x\nQUIT\n")
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert left(tmp_path) == [f"failed/{name}.bsmtp{end}" for name in ("bad", "empty") for end in ("", ".error")]
    assert "there is no transaction in it" in (tmp_path / "failed/empty.bsmtp.error").read_text()
    assert store.accepted == []


def test_a_refused_transaction_ends_a_batch_too(tmp_path: Path) -> None:
    """What intake refuses counts like an error of the format, at its line."""
    looped = transactions("2@x.example").replace("Subject", "Received: x\n" * 6 + "Subject")
    drop(tmp_path, "many.bsmtp", transactions("1@x.example") + looped + transactions("3@x.example"))
    store = MemoryStore()
    finish(make(tmp_path, store, hops=5))
    assert store.recipients() == ["1@x.example"]
    (report,) = (tmp_path / "failed").glob("*.error")
    assert "line 7: 554 5.4.6" in report.read_text()


HOSTILE: dict[str, Callable[[Path], None]] = {
    "symlink": lambda path: path.symlink_to("/etc/passwd"),
    "dangling": lambda path: path.symlink_to("/nowhere"),
    "fifo": os.mkfifo,
    "link.bsmtp": lambda path: path.symlink_to("/etc/passwd"),
    "pipe.bsmtp": os.mkfifo,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_file_is_not_opened(tmp_path: Path, name: str) -> None:
    """Links are not followed, pipes do not block; they go aside like any bad file."""
    HOSTILE[name](tmp_path / name)
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert left(tmp_path) == [f"failed/{name}", f"failed/{name}.error"]
    assert "not a regular file" in (tmp_path / f"failed/{name}.error").read_text()
    assert store.accepted == []


def test_sockets_are_not_opened_either(tmp_path: Path) -> None:
    """Their path may be long, so they are made from within."""
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        finish(make(tmp_path, MemoryStore()))
    assert left(tmp_path) == ["failed/socket", "failed/socket.error"]


def test_a_file_with_other_names_is_refused(tmp_path: Path) -> None:
    """A hard link may be somebody else's file, or change while it is read."""
    secret = tmp_path / ".secret"
    secret.write_text(message("1@x.example"))
    os.link(secret, tmp_path / "linked")
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert store.accepted == []
    assert "hard links" in (tmp_path / "failed/linked.error").read_text()
    assert secret.read_text() == message("1@x.example")


def test_an_unreadable_file_goes_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permission denied is told; the next files go on."""
    drop(tmp_path, "secret", message("1@x.example"))
    drop(tmp_path, "good", message("2@x.example"))
    store = MemoryStore()
    one = make(tmp_path, store)
    really_open = os.open

    def refusing(path: str, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith("-secret"):
            raise PermissionError(13, "Permission denied", path)
        return really_open(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)
    finish(one)
    assert store.recipients() == ["2@x.example"]
    assert "it cannot be read: Permission denied" in (tmp_path / "failed/secret.error").read_text()


@pytest.mark.parametrize("name", ["one.eml", "one.bsmtp"])
@pytest.mark.parametrize("lacking", [OSError(errno.EMFILE, "Too many open files"), MemoryError()], ids=str)
def test_what_we_lack_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lacking: Exception
) -> None:
    """Without a descriptor or memory to read it a file stays claimed, and is taken when there is."""
    drop(tmp_path, name, transactions("1@x.example") if name.endswith("bsmtp") else message("1@x.example"))
    store = MemoryStore()
    process = make(tmp_path, store)

    class Scarce:
        """The os module, without descriptors for files."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def open(self, path: str, flags: int, *mode: int) -> int:
            if flags & os.O_NOFOLLOW:
                raise lacking
            return os.open(path, flags, *mode)

    with monkeypatch.context() as patch:
        patch.setattr(claims, "os", Scarce())
        with pytest.raises(OSError, match=r"Too many open files|Cannot allocate memory"):
            process.step()
    assert os.listdir(tmp_path / "failed") == []
    process.adopt()
    finish(process)
    assert store.recipients() == ["1@x.example"]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not renamed in. Half a message is never sent."""
    drop(tmp_path, "growing", message("1@x.example"))
    store = MemoryStore()
    one = make(tmp_path, store)
    fstat = os.fstat
    calls: list[int] = []

    def growing(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        calls.append(descriptor)
        if len(calls) == 2:  # the size is known, the content not yet read
            with open(f"/proc/self/fd/{descriptor}", "a") as writer:
                writer.write("more\n")
        return status

    monkeypatch.setattr(os, "fstat", growing)
    finish(one)
    assert store.accepted == []
    assert "it changed while it was read" in (tmp_path / "failed/growing.error").read_text()


def test_a_file_that_vanishes_is_forgotten(tmp_path: Path) -> None:
    """Whoever removes it from under us wins; nothing fails, nothing is accepted."""
    drop(tmp_path, "one", message("1@x.example"))
    drop(tmp_path, "two.bsmtp", transactions("2@x.example"))
    drop(tmp_path, "three", message("3@x.example"))
    store = MemoryStore()
    one = make(tmp_path, store)
    claim = one.directory.claim

    def claim_and_lose(limit: int) -> list[object]:
        claims = claim(limit)
        for lost in claims:
            if lost.name in ("one", "two.bsmtp"):
                os.unlink(one.directory.path(lost))
        return list(claims)

    one.directory.claim = claim_and_lose  # type: ignore[method-assign,assignment]  # somebody else at work
    finish(one)
    assert store.recipients() == ["3@x.example"]
    assert left(tmp_path) == []


def test_files_wait_while_there_is_no_room(tmp_path: Path) -> None:
    """Nothing is claimed, the reason is told, and when there is room again all goes on."""
    drop(tmp_path, "one", message("1@x.example"))
    store = MemoryStore()
    store.full = "12 MB free, 500 MB are kept"
    waits: list[str] = []

    def pause(seconds: float) -> None:
        waits.append(one.statistics.waiting)
        assert left(tmp_path) == ["one"]
        if len(waits) == 3:
            store.full = ""

    one = make(tmp_path, store, pause=pause)
    finish(one)
    assert waits == ["12 MB free, 500 MB are kept"] * 3
    assert one.statistics.waiting == ""
    assert store.recipients() == ["1@x.example"]


def test_a_failed_commit_is_tried_again(tmp_path: Path) -> None:
    """The store said no and did nothing: the same messages are committed later, once."""
    drop(tmp_path, "one", message("1@x.example"))
    drop(tmp_path, "two.bsmtp", transactions("2@x.example", "3@x.example"))
    store = MemoryStore()
    store.errors = [StoreFull("disk full"), StoreError("input/output error")]
    pauses: list[float] = []
    finish(make(tmp_path, store, pause=pauses.append))
    assert store.recipients() == ["1@x.example", "2@x.example", "3@x.example"]
    assert len(pauses) == 2
    assert left(tmp_path) == []


def test_stopping_leaves_claims_for_the_next_start(tmp_path: Path) -> None:
    """A stop while the store is full loses nothing."""
    drop(tmp_path, "one", message("1@x.example"))
    store = MemoryStore()
    store.errors = [StoreFull("disk full")]

    def stop(seconds: float) -> None:
        raise Stopping

    one = make(tmp_path, store, pause=stop)
    with pytest.raises(Stopping):
        finish(one)
    one.close()
    finish(make(tmp_path, store))
    assert store.recipients() == ["1@x.example"]
    assert left(tmp_path) == []


def crash_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], accepted: list[str]
) -> list[list[str]]:
    """Crash once before and once after every step, start again, and check; returns what was left over each time."""
    remains = []
    for before in (True, False):
        for number in range(10_000):
            place = tmp_path / f"{before}-{number}"
            for name, content in files.items():
                drop(place, name, content)
            steps = Steps()
            store = MemoryStore(steps)
            with monkeypatch.context() as patch:
                steps.watch_files(patch)
                one = make(place, store)
                steps.count, steps.crash_at, steps.before = 0, number, before
                try:
                    finish(one)
                except Crash as crash:
                    crashed = str(crash)
                else:
                    crashed = ""
                steps.crash_at = -1
                one.close()
                again = make(place, store)
                finish(again)
                again.close()
            context = f"crash {'before' if before else 'after'} step {number} ({crashed})"
            assert store.recipients() == accepted, context
            assert store.kept_marks == {}, context
            assert [name for name in left(place) if not name.startswith("failed/")] == [], context
            remains.append([name for name in left(place) if not name.endswith(".error")])
            if not crashed:
                break
    assert len(remains) > 10
    return remains


def test_each_file_is_taken_once_wherever_the_process_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crashes before and after every rename, sync, commit and removal: nothing lost, nothing twice, nothing left."""
    files = {f"{n}.eml": message(f"{n}@x.example") for n in range(3)}
    remains = crash_everywhere(tmp_path, monkeypatch, files, [f"{n}@x.example" for n in range(3)])
    assert all(names == [] for names in remains)


def test_each_transaction_is_taken_once_wherever_the_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for a batch of several portions: it goes on where it was."""
    monkeypatch.setattr(pickup_module, "BATCH", 2)
    recipients = [f"{n}@x.example" for n in range(7)]
    remains = crash_everywhere(tmp_path, monkeypatch, {"many.bsmtp": transactions(*recipients)}, recipients)
    assert all(names == [] for names in remains)


def test_the_rest_of_a_bad_batch_is_put_aside_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the process dies there is one file with the rest, so that nobody sends it twice."""
    monkeypatch.setattr(pickup_module, "BATCH", 2)
    content = transactions("1@x.example", "2@x.example", "3@x.example", "bad", "5@x.example")
    remains = crash_everywhere(
        tmp_path, monkeypatch, {"many.bsmtp": content}, ["1@x.example", "2@x.example", "3@x.example"]
    )
    assert all(len(names) == 1 for names in remains)


def test_a_bad_file_is_put_aside_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the process dies there is one copy of it."""
    remains = crash_everywhere(tmp_path, monkeypatch, {"bad": "bad", "good": message("1@x.example")}, ["1@x.example"])
    assert all(len(names) == 1 for names in remains)


def test_a_rename_that_was_not_synced_is_harmless(tmp_path: Path) -> None:
    """Power loss may undo a claim before its sync: then nothing was accepted, and the file is taken as new."""
    drop(tmp_path, "one", message("1@x.example"))
    store = MemoryStore()
    first = SpoolDirectory(str(tmp_path), 0)
    first.open()
    (claim,) = first.claim(1)
    os.rename(first.path(claim), tmp_path / "one")
    first.close()
    finish(make(tmp_path, store))
    assert store.recipients() == ["1@x.example"]


def test_several_workers_share_a_directory(tmp_path: Path) -> None:
    """Each file goes to one of them; claims of one are not touched by another."""
    for number in range(3 * BATCH):
        drop(tmp_path, f"{number}", message(f"{number:03}@x.example"))
    stores = [MemoryStore(), MemoryStore()]
    workers = [make(tmp_path, store, shard=shard) for shard, store in enumerate(stores)]
    for worker in workers:
        worker.adopt()
    while [worker.step() for worker in workers].count(True):
        pass
    taken = [store.recipients() for store in stores]
    assert sorted(taken[0] + taken[1]) == [f"{number:03}@x.example" for number in range(3 * BATCH)]
    assert taken[0]
    assert taken[1]


def test_a_reload_holds_for_all_that_is_taken_after_it(tmp_path: Path) -> None:
    """Also what the intake decides: the name in `Received`, the number of hops."""
    store = MemoryStore()
    pickup = make(tmp_path, store)
    pickup.configure(Config(hostname="new.example", smtp=SmtpIn(hops=5)))
    drop(tmp_path, "one", message("1@x.example"))
    drop(tmp_path, "two", message("2@x.example").replace("\n\n", "\n" + "Received: x\n" * 6 + "\n", 1))
    finish(pickup)
    [accepted] = store.accepted
    assert b"by new.example" in (accepted.message.content or b"")
    assert left(tmp_path) == ["failed/two", "failed/two.error"]


def test_a_shard_that_is_only_emptied_takes_nothing_new(tmp_path: Path) -> None:
    """Its claims are finished, batches to their end, and new files are left to the others."""
    drop(tmp_path, "one", message("1@x.example"))
    drop(tmp_path, "two.bsmtp", transactions(*[f"{n}@y.example" for n in range(BATCH + 1)]))
    dead = SpoolDirectory(str(tmp_path), 7)
    dead.open()
    assert len(dead.claim(10)) == 2
    dead.close()
    drop(tmp_path, "new", message("2@x.example"))
    store = MemoryStore()
    finish(make(tmp_path, store, shard=7, takes_new=False))
    assert len(store.recipients()) == BATCH + 2
    assert left(tmp_path) == ["new"]


def test_claims_have_one_owner(tmp_path: Path) -> None:
    """A second instance with the same shard number and another spool is told to go away."""
    make(tmp_path, MemoryStore())
    with pytest.raises(DirectoryError, match="in use by another instance"):
        make(tmp_path, MemoryStore())


@pytest.mark.parametrize("name", [".claimed", ".claimed/000", "failed"])
def test_directories_of_somebody_else_are_not_used(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may only put files in cannot have them moved to a place of its own by being first."""
    place = tmp_path / name
    place.mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(place, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(DirectoryError, match="expected the user of the MTA"):
        SpoolDirectory(str(tmp_path), 0).open()


def test_an_unusable_directory_is_one_clear_line(tmp_path: Path) -> None:
    """A file in its place, for instance."""
    tmp_path.joinpath("spool").write_text("")
    with pytest.raises(DirectoryError, match="spool"):
        make(tmp_path / "spool" / "in", MemoryStore())


def test_marks_of_other_directories_are_kept(tmp_path: Path) -> None:
    """Only marks of this directory whose file is gone are forgotten: another's claims may still be there."""
    store = MemoryStore()
    store.kept_marks = {
        b"pickup:00ff": f"done 0 {tmp_path}/a".encode(),
        b"pickup:11ff": f"10 2 {tmp_path}/a b".encode(),
        b"other": b"x",
    }
    finish(make(tmp_path / "a", store))
    assert set(store.kept_marks) == {b"pickup:11ff", b"other"}


def test_what_failed_to_be_put_aside_is_tried_again(tmp_path: Path) -> None:
    """When the disk fails in the middle, `adopt` brings back what was claimed, and batches under way go on."""
    drop(tmp_path, "bad", "bad")
    drop(tmp_path, "good", message("1@x.example"))
    store = MemoryStore()
    one = make(tmp_path, store)
    (tmp_path / "failed").rename(tmp_path / ".away")
    with pytest.raises(FileNotFoundError):
        finish(one)
    (tmp_path / ".away").rename(tmp_path / "failed")
    finish(one)
    assert store.recipients() == ["1@x.example"]
    assert left(tmp_path) == ["failed/bad", "failed/bad.error"]


def test_a_batch_goes_on_behind_what_was_accepted(tmp_path: Path) -> None:
    """When something fails between reading and accepting, what was read is read again, not skipped."""
    recipients = [f"{number:03}@x.example" for number in range(2 * BATCH + 5)]
    drop(tmp_path, "many.bsmtp", transactions(*recipients))
    store = MemoryStore()
    one = make(tmp_path, store)
    one.adopt()
    one.step()
    store.errors = [OSError(5, "Input/output error")]
    with pytest.raises(OSError, match="Input/output"):
        one.step()
    finish(one)
    assert store.recipients() == recipients


def test_a_backlog_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files cost one pass over the directory and bounded lists of names (I4)."""
    for number in range(400):
        drop(tmp_path, f"{number}", message("1@x.example"))
    store = MemoryStore()
    one = make(tmp_path, store)
    scans = 0
    scandir = os.scandir

    def counted(path: str) -> object:
        nonlocal scans
        scans += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    finish(one)
    assert len(store.accepted) == 400
    assert store.commits <= 400 // BATCH + 1
    assert scans == 1


def test_a_huge_batch_does_not_keep_others_waiting(tmp_path: Path) -> None:
    """Portions of batches and other files take turns."""
    drop(tmp_path, "huge.bsmtp", transactions(*[f"{n}@huge.example" for n in range(5 * BATCH)]))
    store = MemoryStore()
    one = make(tmp_path, store)
    one.adopt()
    one.step()
    assert len(store.accepted) == BATCH
    drop(tmp_path, "small", message("1@small.example"))
    one.step()  # ends the pass over the directory that was begun before
    one.step()
    assert "1@small.example" in store.recipients()
    assert len(store.accepted) == 3 * BATCH + 1
    while one.step():
        pass
    assert len(store.accepted) == 5 * BATCH + 1


def test_what_writers_want_to_know_is_published(tmp_path: Path) -> None:
    """Name and limits, for everybody to read; again after a reload; in the way of no mail when it cannot be written."""
    one = make(tmp_path, MemoryStore())
    finish(one)
    path = tmp_path / ".settings"
    assert json.loads(path.read_text())["hostname"] == "mta.example"
    assert path.stat().st_mode & 0o777 == 0o644
    one.configure(Config(hostname="new.example", smtp=SmtpIn(recipients=7)))
    path.unlink()
    path.mkdir()
    drop(tmp_path, "a", message("1@x.example"))
    finish(one)
    assert left(tmp_path) == []
    path.rmdir()
    one.adopt()
    finish(one)
    found = json.loads(path.read_text())
    assert (found["hostname"], found["recipients"], found["message_size"]) == ("new.example", 7, SmtpIn().message_size)


def test_what_is_refused_for_sure_is_published(tmp_path: Path) -> None:
    """What `checks` refuses here of any tenant's mail: what one of them might send is not told as refused."""
    def told(**options: Any) -> dict[str, Any]:
        pickup = (schema.Pickup(directory=Directory(str(tmp_path)), checks=options.pop("place", NO_CHANGES)),)
        one = make(tmp_path, MemoryStore())
        one.configure(Config(hostname="mta.example", pickup=pickup, **options))
        finish(one)
        found: dict[str, Any] = json.loads((tmp_path / ".settings").read_text())["refused"]
        one.close()
        return found

    sizes = {"header_size": 262_144, "field_size": 102_400, "fields": 1000}
    assert told() == {"repeated": True, **sizes}
    place = CheckChanges(from_domains=(Domain("a.example"),), fields=50)
    assert told(place=place) == {"repeated": True, **sizes, "fields": 50, "from_domains": ["a.example"]}
    changes = CheckChanges(repeated="warn", foreign_from="warn", header_size=Size(262_000), fields=70)
    acme = {"acme": Tenant(checks=changes)}
    assert told(place=place, tenants=acme) == {"repeated": False, **sizes, "fields": 50}
    assert told(place=CheckChanges(oversized="warn", repeated="refuse"), tenants=acme) == {"repeated": True}


def test_label_fields_of_ones_own_among_those_of_the_envelope(tmp_path: Path) -> None:
    """Whatever they are called in `labels`: it is the same form of file."""
    store = MemoryStore()
    one = make(tmp_path, store)
    one.configure(Config(hostname="mta.example", labels=Labels(tenant=(HeaderName("X-Customer"),))))
    drop(tmp_path, "one.eml", f"X-Customer: acme\nX-Job: may\n{message('1@x.example')}")
    finish(one)
    (accepted,) = store.accepted
    assert accepted.deliveries[0].queue == "may:acme@x.example"
    assert b"X-Customer" not in (accepted.message.content or b"")
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", ["{}.eml", "{}.bsmtp"])
def test_messages_with_many_recipients_are_taken_a_few_at_a_time(tmp_path: Path, name: str) -> None:
    """A thousand deliveries are what the hub makes at once, for whatever number of messages; none is left out."""
    for number in range(5):
        to = [f"{number}-{one}@x.example" for one in range(400)]
        if name.endswith(".eml"):
            text = "X-Sender: a@a.example\n" + "".join(f"X-Receiver: {one}\n" for one in to) + "Subject: x\n\nbody\n"
        else:
            text = "MAIL FROM:<a@a.example>\n" + "".join(f"RCPT TO:<{one}>\n" for one in to) + "DATA\nSubject: x\n\n.\n"
        drop(tmp_path, name.format(number), text)
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert len(store.recipients()) == len(set(store.recipients())) == 2000
    assert store.commits == 2
    assert left(tmp_path) == []


def test_small_batches_share_a_commit(tmp_path: Path) -> None:
    """Many short batches cost what many files cost; each has a mark of its own, and a bad one spoils only itself."""
    for number in range(20):
        drop(tmp_path, f"{number}.bsmtp", transactions(f"{number:02}@x.example", f"{number:02}@y.example"))
    drop(tmp_path, "bad.bsmtp", transactions("98@x.example", "bad", "99@x.example"))
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert len(store.recipients()) == 41
    assert store.commits == 1
    assert store.kept_marks == {}
    assert [name.partition(".")[0] for name in left(tmp_path)] == ["failed/bad"] * 2


def test_small_batches_are_taken_once_wherever_the_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several batches in one commit: each goes on by its own mark."""
    monkeypatch.setattr(pickup_module, "BATCH", 3)
    files = {f"{n}.bsmtp": transactions(f"{n}@x.example", f"{n}@y.example") for n in range(4)}
    accepted = sorted(f"{n}@{domain}.example" for n in range(4) for domain in "xy")
    assert all(names == [] for names in crash_everywhere(tmp_path, monkeypatch, files, accepted))


class Forgetful(MemoryStore):
    """A store that counts what it accepts and keeps none of it."""

    count = 0

    def _commit(self, accepted: list[Accepted], marks: dict[bytes, bytes]) -> None:
        self.count += len(accepted)
        self.kept_marks |= marks


@pytest.mark.parametrize("kind", ["files", "batches", "batch"])
def test_memory_does_not_grow_with_the_number_of_messages(tmp_path: Path, kind: str) -> None:
    """Four times as many files, or transactions in a file, need what a commit of them needs: no name is kept."""
    peaks = []
    for number in (1, 4):
        count = number * 5 * BATCH
        place = tmp_path / str(number)
        text = ("x" * 70 + "\n") * 40
        if kind == "batch":
            batch = transactions(*(f"{n}@x.example" for n in range(count)))
            drop(place, "one.bsmtp", batch.replace("\n\n", "\n\n" + text))
        for n in range(count if kind != "batch" else 0):
            if kind == "files":
                drop(place, f"{n}.eml", message(f"{n}@x.example") + text)
            else:
                drop(place, f"{n}.bsmtp", transactions(f"{n}@x.example"))
        store = Forgetful()
        one = make(place, store)
        tracemalloc.start()
        finish(one)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert store.count == count
    assert peaks[1] < 1.2 * peaks[0]


TOLERANT = (
    "XACK OFF\n" + transactions("1@x.example", "bad").replace("RCPT TO:<1@x", "RCPT TO:<worse>\nRCPT TO:<1@x")
    + transactions("2@x.example").replace("Subject: x", "Subject: x\n..")
)


def test_refused_recipients_are_put_aside_with_their_messages(tmp_path: Path) -> None:
    """XACK OFF: the others are accepted; what is put aside can be mended and renamed in again as it is."""
    drop(tmp_path, "many.bsmtp", TOLERANT)
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert store.recipients() == ["1@x.example", "2@x.example"]
    names = [name for name in left(tmp_path) if not name.endswith(".error")]
    assert len(names) == 1
    error = (tmp_path / f"{names[0]}.error").read_text()
    assert "line 3: 'RCPT TO:<worse>': 501 5.1.3" in error
    assert "line 10: 'RCPT TO:<bad>': 501 5.1.3" in error
    mended = (tmp_path / names[0]).read_text().replace("<bad>", "<3@x.example>").replace("<worse>", "<4@x.example>")
    drop(tmp_path, "mended.bsmtp", mended)
    finish(make(tmp_path, store, shard=1))
    assert store.recipients() == [f"{number}@x.example" for number in range(1, 5)]
    assert store.accepted[2].message.content[-14:] == store.accepted[0].message.content[-14:]


def test_the_rest_of_a_tolerant_batch_is_tolerant(tmp_path: Path) -> None:
    """It says XACK OFF again, and its report counts that line."""
    drop(tmp_path, "many.bsmtp", "XACK OFF\n" + transactions("1@x.example") + "MAIL FROM:<>\nNONSENSE\n")
    finish(make(tmp_path, MemoryStore()))
    (rest,) = (name for name in left(tmp_path) if name.endswith(".bsmtp"))
    assert (tmp_path / rest).read_text() == "XACK OFF\nMAIL FROM:<>\nNONSENSE\n"
    assert "line 9 is its line 3" in (tmp_path / f"{rest}.error").read_text()


def test_refused_recipients_are_put_aside_once_wherever_the_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file with them, however often it was written."""
    monkeypatch.setattr(pickup_module, "BATCH", 2)
    remains = crash_everywhere(tmp_path, monkeypatch, {"many.bsmtp": TOLERANT}, ["1@x.example", "2@x.example"])
    assert all(len(names) == 1 for names in remains)


def test_long_names_are_shortened_at_the_front(tmp_path: Path) -> None:
    """A name of 255 octets can be claimed and put aside; its suffix still says what it is."""
    drop(tmp_path, "x" * 249 + ".bsmtp", transactions("1@x.example") + transactions("bad"))
    drop(tmp_path, "y" * 255, "bad")
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert store.recipients() == ["1@x.example"]
    assert len(left(tmp_path)) == 4


def test_a_bug_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that should not be sets that file aside; the queue goes on."""
    drop(tmp_path, "odd", message("1@x.example"))
    drop(tmp_path, "good", message("2@x.example"))

    def breaking(data: bytes, limits: SmtpIn, label_fields: frozenset[bytes]) -> Submission:
        if b"1@x" in data:
            raise KeyError("bug")
        return parse_message(data, limits, label_fields)

    monkeypatch.setattr(reading, "parse_message", breaking)
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert store.recipients() == ["2@x.example"]
    assert "internal error" in (tmp_path / "failed/odd.error").read_text()


def test_a_bug_of_the_intake_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise for what happens to a message behind its format, in files and in batches."""
    drop(tmp_path, "odd", message("1@x.example"))
    drop(tmp_path, "good", message("2@x.example"))
    drop(tmp_path, "some.bsmtp", transactions("3@x.example", "1@x.example"))
    prepare = Intake.prepare

    def breaking(intake: Intake, envelope: Envelope, content: bytes, source: Source) -> Accepted | Reply:
        if envelope.recipients[0].address == "1@x.example":
            raise KeyError("bug")
        return prepare(intake, envelope, content, source)

    monkeypatch.setattr(Intake, "prepare", breaking)
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert store.recipients() == ["2@x.example", "3@x.example"]
    errors = [path.read_text() for path in (tmp_path / "failed").glob("*.error")]
    assert len(errors) == 2
    assert all("Internal error; the log has more" in error for error in errors)
