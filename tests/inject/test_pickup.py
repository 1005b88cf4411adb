"""Rules of the spool directory: what is taken and what goes aside; nothing but honest files is read."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta.config import schema
from mta.config.checks import NO_CHANGES, CheckChanges
from mta.config.forms import Directory, HeaderName
from mta.config.hosts import Domain
from mta.config.schema import Config, Labels, SmtpIn, Tenant
from mta.config.units import Size
from mta.inject import claims
from mta.inject.claims import DirectoryError, SpoolDirectory
from mta.inject.pickup import BATCH
from mta.queue.errors import StoreError, StoreFull
from tests.inject.pickup_helpers import MemoryStore, drop, finish, left, make, message, transactions

pytestmark = pytest.mark.usefixtures("disks_are_fast")


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

    one.directory.claim = claim_and_lose  # somebody else at work
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
