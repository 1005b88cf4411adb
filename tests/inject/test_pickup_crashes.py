"""The spool directory takes every message once, wherever the process dies, and whoever shares it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mta.config.schema import SmtpIn
from mta.inject import pickup as pickup_module
from mta.inject import reading
from mta.inject.claims import DirectoryError, SpoolDirectory
from mta.inject.formats import Submission, parse_message
from mta.inject.intake import Accepted, Intake, Source
from mta.inject.pickup import BATCH, Stopping
from mta.queue.errors import StoreFull
from mta.smtp.envelope import Envelope
from mta.smtp.reply import Reply
from tests.inject.pickup_helpers import (
    TOLERANT,
    Crash,
    MemoryStore,
    Steps,
    drop,
    finish,
    left,
    make,
    message,
    transactions,
)

pytestmark = pytest.mark.usefixtures("disks_are_fast")


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


def test_small_batches_are_taken_once_wherever_the_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several batches in one commit: each goes on by its own mark."""
    monkeypatch.setattr(pickup_module, "BATCH", 3)
    files = {f"{n}.bsmtp": transactions(f"{n}@x.example", f"{n}@y.example") for n in range(4)}
    accepted = sorted(f"{n}@{domain}.example" for n in range(4) for domain in "xy")
    assert all(names == [] for names in crash_everywhere(tmp_path, monkeypatch, files, accepted))


def test_refused_recipients_are_put_aside_once_wherever_the_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file with them, however often it was written."""
    monkeypatch.setattr(pickup_module, "BATCH", 2)
    remains = crash_everywhere(tmp_path, monkeypatch, {"many.bsmtp": TOLERANT}, ["1@x.example", "2@x.example"])
    assert all(len(names) == 1 for names in remains)


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
