"""A disk that is broken, or a machine without descriptors: nothing is lost or damaged, and it recovers by itself."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mta.config import schema
from mta.config.units import Size
from mta.queue.records import Delivery
from mta.queue.store import BodyUnreadable, Counts, StoreError, StoreFull, StoreUnusable, Transaction
from tests.queue.faults import BROKEN, NO_SPACE, Failing
from tests.queue.helpers import START_US, Bench, config, outcome, removal

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.parametrize("operation", ["pwritev", "fdatasync"])
def test_a_broken_segment_is_given_up(tmp_path: Path, operation: str) -> None:
    """After a failed sync nobody knows what is on the disk: what follows goes to another segment."""
    files = Failing(operation)
    bench = Bench(tmp_path / "000", files=files)
    [one] = bench.accept("a.test")
    files.error = BROKEN
    error = bench.commit(Transaction([(d.message, [d]) for d in bench.make("b.test")]))
    assert isinstance(error, StoreError)
    assert not isinstance(error, StoreFull)
    assert "Input/output error" in str(error)
    files.error = 0
    [two] = bench.accept("c.test")
    assert one.message.body is not None
    assert two.message.body is not None
    assert (one.message.body.segment, two.message.body.segment) == (1, 2)
    bench = bench.crash()
    assert bench.queued() == [one.key, two.key]
    assert (bench.directory / "journal" / "00000001.seg").stat().st_size <= 8192
    bench.close()


def test_a_frame_that_was_refused_does_not_come_back(tmp_path: Path) -> None:
    """A frame that was written whole, but whose sync failed, is void also when nothing could be cut off."""
    files = Failing("fdatasync", "truncate")
    bench = Bench(tmp_path / "000", files=files)
    bench.accept("a.test")
    files.error = BROKEN
    assert bench.commit(Transaction([(d.message, [d]) for d in bench.make("refused.test")])) is not None
    files.error = 0
    bench.accept("b.test")
    assert [d.domain for d in bench.crash().queue()] == ["a.test", "b.test"]


def test_checkpoints_that_fail_are_made_up_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the index cannot be written all goes on in memory, and afterwards it has everything, once."""
    files = Failing("commit")
    bench = Bench(tmp_path / "000", files=files)
    old = bench.accept("a.test", "b.test", recipients=2)
    bench.checkpoint()
    files.error = NO_SPACE
    bench.commit(Transaction(updates=[outcome(old[0], due_us=START_US + 5)], marks=[(b"k", b"v")]))
    new = bench.accept("a.test", "c.test")
    bench.checkpoint()  # answered as of the last one that succeeded
    assert [d.key for d in bench.load("c.test")] == [new[1].key]
    bench.commit(removal([old[1], new[0]]))
    bench.commit(Transaction(updates=[outcome(new[1], due_us=START_US + 7)]))
    bench.checkpoint()
    bench.commit(Transaction(updates=[outcome(old[0], due_us=START_US + 6)]))
    assert "the index cannot be written" in caplog.text
    assert "the index of the spool cannot be written: " in (bench.store.trouble() or "")
    bench.checkpoint()
    assert [(d.key, d.due_us) for d in bench.load("a.test")] == [(old[0].key, START_US + 6)]
    files.error = 0
    bench.until(lambda: bench.store.trouble() is None)
    expected = [(old[0].key, START_US + 6), (new[1].key, START_US + 7)]
    assert [(d.key, d.due_us) for d in bench.queue()] == expected
    assert bench.counts() == Counts(2, 2, 3)
    bench = bench.crash()
    assert [(d.key, d.due_us) for d in bench.queue()] == expected
    assert bench.answer(bench.store.has_mark, b"k") == b"v"
    assert bench.counts() == Counts(2, 2, 3)
    bench.close()


def test_mail_is_found_although_the_index_cannot_be_written(tmp_path: Path) -> None:
    """What left memory is reported and loaded from the journal's record: new mail, and what was deferred or is in part
    in the index; in the order of time, each once, none that is over; and once the index is there again, from there."""
    files = Failing("commit")
    bench = Bench(tmp_path / "000", files=files)
    [old] = bench.accept("a.test", content=b"old\r\n", due_us=START_US + 3)
    bench.checkpoint()
    files.error = NO_SPACE
    bench.commit(Transaction(updates=[outcome(old, due_us=START_US + 7, attempts=1, source="one")]))
    new = [bench.accept("a.test", "b.test", content=b"new %d\r\n" % n, due_us=START_US + n)[0] for n in (6, 5, 8)]
    bench.checkpoints.clear()
    bench.checkpoint()
    assert dict(bench.checkpoints[0]) == {"a.test": START_US + 5, "b.test": START_US + 5}
    found, next_us = bench.answer(bench.store.load_due, "a.test", START_US + 7, 10, [])
    assert [one.key for one in found] == [new[1].key, new[0].key, old.key]
    assert next_us is None  # of what is due later the next report tells
    assert (found[2].attempts, found[2].source, found[2].message.sender) == (1, "one", "sender@example.org")
    assert [bench.store.body(one.message) for one in found] == [b"new 5\r\n", b"new 6\r\n", b"old\r\n"]
    found, next_us = bench.answer(bench.store.load_due, "a.test", START_US + 9, 2, [new[1].key])
    assert ([one.key for one in found], next_us) == ([new[0].key, old.key], START_US + 8)

    answers: list[list[Delivery]] = []  # it is settled while it is read
    bench.store.load_due("a.test", START_US + 9, 10, [], lambda deliveries, _: answers.append(deliveries))
    bench.store.submit(removal([new[1]]))
    bench.until(lambda: answers)
    assert [one.key for one in answers[0]] == [new[0].key, old.key, new[2].key]
    bench.commit(Transaction(updates=[outcome(new[0], due_us=START_US + 20)]))
    assert [one.key for one in bench.load("a.test", START_US + 9)] == [old.key, new[2].key]
    files.error = 0
    bench.until(lambda: bench.store.trouble() is None)
    assert [(one.key, one.due_us) for one in bench.load("a.test")] == [
        (old.key, START_US + 7), (new[2].key, START_US + 8), (new[0].key, START_US + 20)]
    bench.close()


def test_what_has_ended_is_not_found_while_the_index_cannot_be_written(tmp_path: Path) -> None:
    """A late update does not bring back what the index knows to be gone, nor what was removed since."""
    files = Failing("commit")
    bench = Bench(tmp_path / "000", files=files)
    gone, stays = bench.accept("a.test", "b.test")
    ending, _ = bench.accept("a.test", "b.test")
    bench.commit(removal([gone]))
    bench.checkpoint()
    files.error = NO_SPACE
    bench.commit(removal([ending]))
    bench.commit(Transaction(updates=[outcome(gone, attempts=1), outcome(ending, attempts=1)]))
    bench.checkpoint()
    assert bench.checkpoints[-1] == [("a.test", START_US)]  # only the index could know
    assert bench.load("a.test") == []
    files.error = 0
    bench.until(lambda: bench.store.trouble() is None)
    assert bench.queued()[0] == stays.key
    assert len(bench.queued()) == 2
    bench.close()


def test_a_failing_index_is_tried_again_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every turn: with each attempt the work of it grows."""
    monkeypatch.setattr("mta.queue.checkpointing.RETRY_S", 3600)
    files = Failing("commit")
    bench = Bench(tmp_path / "000", config(checkpoint=0.0), files)
    files.error = NO_SPACE
    for _ in range(20):
        bench.accept("a.test")
    bench.store._index_thread.call(lambda: None)
    assert files.failures == 1
    bench.store.abandon()


def test_a_commit_that_only_seemed_to_fail_counts_once(tmp_path: Path) -> None:
    """The last sync of a commit may fail although it has happened: then nothing is entered twice."""
    files = Failing("committed")
    bench = Bench(tmp_path / "000", files=files)
    one, two = bench.accept("a.test", "b.test")
    files.error = BROKEN
    bench.checkpoint()
    files.error = 0
    assert bench.queued() == [one.key, two.key]
    bench.commit(removal([one]))
    bench.checkpoint()
    assert bench.counts() == Counts(1, 1, 1)
    bench.close()


def test_an_event_file_that_cannot_be_synced_is_copied_again(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a failed sync the journal is kept from there on, and the next start writes the events anew."""

    class EventSyncFails(Failing):
        """Fails when the index thread syncs the event file, which it does by a descriptor of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.own: set[int] = set()

        def open(self, path: Path, flags: int) -> int:
            """Remember that descriptor."""
            fd = super().open(path, flags)
            if path.suffix == ".jsonl" and flags == os.O_WRONLY:
                self.own.add(fd)
            else:
                self.own.discard(fd)
            return fd

        def fdatasync(self, fd: int) -> None:
            """Fail for it."""
            if fd in self.own:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    bench = Bench(tmp_path / "000", files=EventSyncFails())
    for n in range(6):
        [sent] = bench.accept("a.test")
        bench.commit(removal(bench.accept("b.test", content=bytes(900_000))))
        bench.commit(Transaction(events=[b"%d" % n]))
        bench.checkpoint()
        bench.commit(removal([sent]))
    assert "cannot be made durable" in caplog.text
    assert caplog.text.count("cannot be made durable") == 1
    assert bench.store._index.state.events.length == 0
    bench.store.abandon()
    for path in (bench.directory / "events").iterdir():
        path.write_bytes(b"what a disk leaves")
    bench = Bench(bench.directory)
    assert bench.events() == b"0\n1\n2\n3\n4\n5\n"
    assert bench.queued() == []
    bench.close()


@pytest.mark.parametrize("in_rotation", [False, True])
def test_events_whose_sync_failed_are_written_again(tmp_path: Path, in_rotation: bool) -> None:
    """The kernel reports a failed sync once and forgets what it was about: the next checkpoint writes it once more,
    over several files too, before it relies on it. Readers of the files see the same bytes."""

    class EventSyncFails(Failing):
        """Fails once for an event file, and what was written since the last checkpoint is gone from it."""

        def __init__(self) -> None:
            super().__init__()
            self.paths: dict[int, Path] = {}
            self.durable = 0

        def open(self, path: Path, flags: int) -> int:
            """Remember the path."""
            fd = super().open(path, flags)
            self.paths[fd] = path
            return fd

        def fdatasync(self, fd: int) -> None:
            """Lose the end of the file."""
            path = self.paths[fd]
            if self.error and path.suffix == ".jsonl":
                self.error = 0
                self.failures += 1
                lost = bytes(path.stat().st_size - self.durable)
                with path.open("r+b") as file:
                    file.seek(self.durable)
                    file.write(lost)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    files = EventSyncFails()
    bench = Bench(tmp_path / "000", replace(config(), events=schema.Events(size=Size(20))), files)
    bench.commit(Transaction(events=[b"0123456"]))
    bench.store._disk_thread.call(lambda: None)
    bench.accept("a.test")
    bench.checkpoint()
    files.durable = bench.store._index.state.events.length
    assert files.durable == 8
    files.error = BROKEN
    for n in range(5 if in_rotation else 1):
        bench.commit(Transaction(events=[b"%d123456" % n]))
    for _ in range(2):
        bench.store._disk_thread.call(lambda: None)
        bench.accept("a.test")
        bench.checkpoint()
    assert files.failures == 1
    expected = b"0123456\n" + b"".join(b"%d123456\n" % n for n in range(5 if in_rotation else 1))
    assert bench.events() == expected
    assert bench.store._index.state.events.journal == bench.store._index.state.position
    bench.crash().close()
    assert bench.events() == expected


def test_too_few_descriptors_are_no_damage(tmp_path: Path) -> None:
    """A content that cannot be opened now is not given up: it is read when descriptors are free again."""
    files = Failing("open")
    bench = Bench(tmp_path / "000", files=files)
    [one] = bench.accept("a.test", content=b"Subject: x\r\n\r\n")
    one.message.content = None
    files.error = errno.EMFILE
    with pytest.raises(BodyUnreadable, match="Too many open files"):
        bench.store.body(one.message)
    files.error = 0
    assert not list((bench.directory / "quarantine").iterdir())
    assert bench.store.body(one.message) == b"Subject: x\r\n\r\n"
    bench.close()


def test_events_are_synced_when_there_are_descriptors_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That the event file could not be opened for a sync is not a sync that failed: the next checkpoint does it."""
    files = Failing("open")
    bench = Bench(tmp_path / "000", files=files)
    bench.accept("a.test")
    bench.checkpoint()
    bench.commit(Transaction(events=[b"1"]))
    files.error = errno.EMFILE
    bench.checkpoint()
    assert bench.store._index.state.events.length == 0
    files.error = 0
    bench.accept("a.test")
    bench.checkpoint()
    assert bench.store._index.state.events.length == len(b"1\n")
    assert "cannot be made durable" not in caplog.text
    bench.close()


def test_a_file_that_cannot_be_removed_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried at each checkpoint, one a second: the log has a line for each time that it begins to fail."""
    files = Failing("unlink")
    bench = Bench(tmp_path / "000", config(segment_size=Size(1_000_000)), files=files)

    def pass_through() -> None:
        for _ in range(8):
            bench.commit(removal(bench.accept("a.test", content=b"x" * 400_000 + b"\r\n")))
        for _ in range(4):
            bench.accept("b.test")
            bench.checkpoint()

    def told() -> int:
        return sum("cannot be removed" in record.getMessage() for record in caplog.records)

    for times in (1, 2):
        files.error = BROKEN
        pass_through()
        assert told() == times
        files.error = 0
        bench.accept("b.test")
        bench.checkpoint()
    bench.close()


def test_close_says_what_stays_behind(tmp_path: Path) -> None:
    """An end on a full disk is not a clean one."""
    files = Failing("pwritev")
    bench = Bench(tmp_path / "000", files=files)
    [one] = bench.accept("a.test")
    files.error = NO_SPACE
    bench.store.submit(removal([one]))
    with pytest.raises(StoreError, match="1 transactions could not be written"):
        bench.close()
    bench = Bench(bench.directory, boot_id="boot 2")
    assert [d.maybe_duplicate for d in bench.queue()] == [True]
    bench.close()


def test_a_start_on_a_broken_disk_says_so(tmp_path: Path) -> None:
    """And it can be tried again."""
    files = Failing("commit")
    files.error = BROKEN
    with pytest.raises(StoreUnusable, match=r"cannot be opened: .*Input/output error"):
        Bench(tmp_path / "000", files=files)
    files.error = 0
    Bench(tmp_path / "000", files=files).close()


def test_whoever_asks_an_index_that_cannot_be_read_gets_the_answer_later(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed reopening the index is closed until the next checkpoint: a read meanwhile waits for that."""
    monkeypatch.setattr("mta.queue.checkpointing.RETRY_S", 0.01)
    bench = Bench(tmp_path / "000")
    one, = bench.accept("a.test")
    bench.checkpoint()
    bench.store._index.close()

    assert [found.key for found in bench.load("a.test")] == [one.key]
    assert bench.answer(bench.store.has_mark, b"x") is None
    bench.close()
