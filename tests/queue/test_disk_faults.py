"""A disk that is full, or slow to come back: nothing is lost, nothing is damaged, and it recovers by itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from mta.queue.fileops import Buffer
from mta.queue.store import StoreError, StoreFull, Transaction
from tests.queue.faults import BROKEN, NO_SPACE, Failing
from tests.queue.helpers import START_US, Bench, config, outcome, removal

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.parametrize("partial", [0, 1, 100, 5000])
def test_a_full_disk_refuses_mail_and_settles_later(tmp_path: Path, partial: int) -> None:
    """Accepts fail with StoreFull, so that clients are told to come back; removals and updates are done in the end."""
    files = Failing("pwritev")
    bench = Bench(tmp_path / "000", files=files)
    one, two = bench.accept("a.test", "b.test")
    files.error, files.partial = NO_SPACE, partial
    told: list[object] = []
    bench.store.submit(removal([one], b'{"n":1}'), told.append)
    bench.store.submit(Transaction(updates=[outcome(two, due_us=START_US + 9)], events=[b'{"n":2}']), told.append)
    bench.store.flush()
    error = bench.commit(Transaction([(d.message, [d]) for d in bench.make("c.test", content=bytes(9000))]))
    assert isinstance(error, StoreFull)
    assert "no space left" in str(error)
    why = f"{error}; nothing is sent while what becomes of it cannot be written down"
    assert bench.store.room() == bench.store.trouble() == why
    assert bench.store.choked
    bench.until(lambda: files.failures > 5)
    assert told == []
    files.error = 0
    bench.until(lambda: len(told) == 2)
    assert told == [None, None]
    assert not bench.store.choked
    assert bench.store.room() is None
    assert bench.store.trouble() is None
    [three] = bench.accept("c.test")
    assert [(d.key, d.due_us) for d in bench.crash().queue()] == [(two.key, START_US + 9), (three.key, START_US)]


def test_mail_that_is_refused_holds_up_no_delivery(tmp_path: Path) -> None:
    """A disk that takes no more content, but what becomes of mail, is not choked."""
    files = Failing("pwritev")
    bench = Bench(tmp_path / "000", files=files)
    files.error = NO_SPACE
    assert isinstance(bench.commit(Transaction([(d.message, [d]) for d in bench.make("c.test")])), StoreFull)
    assert bench.store.room() == "no space left on the disk of the spool"
    assert not bench.store.choked
    bench.close()


def test_no_end_of_a_message_without_its_mark(tmp_path: Path) -> None:
    """When a full disk has no room for one more mark nothing more is begun until one is free."""
    files = Failing("allocate")
    bench = Bench(tmp_path / "000", files=files)
    marked = bench.accept(*["a.test"] * 4097)
    files.error = NO_SPACE
    for one in marked[:-1]:
        bench.store.mark_inflight(one)
    assert not bench.store.choked
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be marked: No space left on device"):
            bench.store.mark_inflight(marked[-1])
        assert bench.store.choked
        assert "no space left on the disk of the spool to mark" in str(bench.store.trouble())
    bench.store.submit(removal([marked[0]]))
    bench.until(lambda: not bench.store.choked)
    bench.store.mark_inflight(marked[-1])
    assert bench.store.trouble() is None
    bench.close()


def test_what_waits_for_the_disk_keeps_its_order(tmp_path: Path) -> None:
    """A later change of a delivery is done after an earlier one that the disk did not take at first."""
    files = Failing("pwritev")
    bench = Bench(tmp_path / "000", files=files)
    [one] = bench.accept("a.test")
    files.error = NO_SPACE
    told: list[object] = []
    bench.store.submit(Transaction(updates=[outcome(one, due_us=START_US + 1)]), told.append)
    bench.store.flush()
    bench.store.submit(Transaction(updates=[outcome(one, due_us=START_US + 2)]), told.append)
    bench.until(lambda: files.failures)
    files.error = 0
    bench.until(lambda: len(told) == 2)
    assert [d.due_us for d in bench.crash().queue()] == [START_US + 2]


def test_a_segment_that_could_not_be_begun_leaves_the_old_one_closed(tmp_path: Path) -> None:
    """A header may tell already where the segment before it ended: nothing is put behind that place any more."""

    class Torn(Failing):
        """Large writes fail after their first three pages, and nothing can be removed."""

        def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            """Tear it."""
            data = b"".join(buffers)
            os.pwrite(fd, data[:3 * 4096], offset)
            if len(data) > 3 * 4096:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return len(data)

    bench = Bench(tmp_path / "000", files=Torn("unlink", error=BROKEN))
    [one] = bench.accept("a.test")
    error = bench.commit(Transaction([(d.message, [d]) for d in bench.make("b.test", content=bytes(999_000))]))
    assert isinstance(error, StoreFull)
    [two] = bench.accept("c.test")
    assert bench.crash().queued() == [one.key, two.key]


def test_what_settles_fits_where_mail_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that is too large for the disk is tried again without its mail, at once."""
    monkeypatch.setattr("mta.queue.commits.RETRY_S", 3600)

    class Nearly(Failing):
        """A disk on which only small writes succeed."""

        def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            """Fails above 10 kB."""
            data = b"".join(buffers)
            if len(data) > 10_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return os.pwrite(fd, data, offset)

    bench = Bench(tmp_path / "000", files=Nearly())
    [one] = bench.accept("a.test")
    told: list[object] = []
    new = bench.make("b.test", content=bytes(20_000))
    bench.store.submit(Transaction([(new[0].message, new)]), told.append)
    bench.store.submit(removal([one]), told.append)
    bench.store.flush()
    bench.until(lambda: len(told) == 2)
    assert sorted(map(type, told), key=str) == [type(None), StoreFull]
    assert bench.queued() == []
    bench.close()


def test_a_notification_is_not_dropped(tmp_path: Path) -> None:
    """A transaction that accepts a DSN and removes what it is about is kept as a whole."""
    files = Failing("pwritev")
    bench = Bench(tmp_path / "000", files=files)
    [bounced] = bench.accept("a.test")
    [dsn] = bench.make("sender.test")
    files.error = NO_SPACE
    told: list[object] = []
    bench.store.submit(Transaction([(dsn.message, [dsn])], removes=[bounced]), told.append)
    bench.store.flush()
    bench.until(lambda: files.failures > 2)
    files.error = 0
    bench.until(lambda: told)
    assert told == [None]
    assert bench.crash().queued() == [dsn.key]


def test_what_the_disk_did_not_take_is_not_loaded(tmp_path: Path) -> None:
    """While a removal waits for the disk, its delivery does not come back, nor hide others behind it."""
    files = Failing("pwritev")
    bench = Bench(tmp_path / "000", files=files)
    first, second = (bench.accept("a.test", due_us=START_US + n)[0] for n in range(2))
    bench.checkpoint()
    files.error = NO_SPACE
    bench.store.submit(removal([first]))
    bench.store.flush()
    bench.until(lambda: files.failures)
    assert [d.key for d in bench.load("a.test", limit=1)] == [second.key]
    files.error = 0
    assert bench.commit(Transaction(events=[b"{}"])) is None
    bench.close()


def test_a_crash_on_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """What was refused is not there, what was confirmed is, what was being settled is still queued."""
    for partial in (0, 300, 4096, 8192):
        files = Failing("pwritev", "truncate", "allocate")
        bench = Bench(tmp_path / f"{partial}", files=files)
        [one] = bench.accept("a.test")
        files.error, files.partial = NO_SPACE, partial
        new = bench.make("b.test", content=bytes(6000))
        bench.store.submit(removal([one]))
        assert isinstance(bench.commit(Transaction([(new[0].message, new)])), StoreFull)
        files.partial = 0
        bench.until(lambda files=files: files.failures > 4)
        bench = bench.crash()
        assert bench.queued() == [one.key]
        bench.close()


@pytest.mark.parametrize("operation", ["allocate", "create", "fsync_directory"])
def test_no_new_segment(tmp_path: Path, operation: str) -> None:
    """When the next segment cannot be made, mail is refused until it can."""
    files = Failing(operation)
    bench = Bench(tmp_path / "000", files=files)
    bench.accept("a.test", content=bytes(400_000))
    files.error = NO_SPACE
    bench.accept("a.test", content=bytes(500_000))
    error = bench.commit(Transaction([(d.message, [d]) for d in bench.make("b.test", content=bytes(500_000))]))
    assert isinstance(error, StoreFull)
    files.error = 0
    bench.accept("c.test", content=bytes(500_000))
    assert len(bench.crash().queued()) == 3


def test_a_small_segment_is_better_than_none(tmp_path: Path) -> None:
    """With too little space for a whole segment, what settles mail still finds a place."""

    class Small(Failing):
        """A disk that has room for two megabytes only."""

        def allocate(self, fd: int, size: int) -> None:
            """Fails above that."""
            if self.error and size > 2_000_000:
                raise OSError(self.error, os.strerror(self.error))
            super().allocate(fd, size)

    files = Small()
    bench = Bench(tmp_path / "000", config(segment_size=8_000_000), files)
    sent = bench.accept("a.test", content=bytes(7_900_000))
    bench.store._journal._drop_spare()
    files.error = NO_SPACE
    bench.commit(removal(bench.accept("b.test", content=bytes(200_000))))
    bench.commit(removal(sent))
    assert bench.crash().queued() == []


def test_events_that_cannot_be_written_are_written_later(tmp_path: Path) -> None:
    """Event lines wait while their file cannot be written; none is lost, repeated or out of order."""

    class EventsFail(Failing):
        """Fails for small writes, which those to the journal are not."""

        def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            """Event lines are short."""
            if len(b"".join(buffers)) < 4096:
                self._fail("pwritev")
            return os.pwrite(fd, b"".join(buffers), offset)

    files = EventsFail("pwritev")
    bench = Bench(tmp_path / "000", files=files)
    bench.commit(Transaction(events=[b"0"]))
    bench.store._disk_thread.call(lambda: None)
    files.error = NO_SPACE
    for n in range(1, 5):
        bench.commit(Transaction(events=[b"%d" % n]))
    bench.accept("a.test")
    bench.checkpoint()  # of the queue: the events stay behind
    assert bench.store._index.state.events.journal < bench.store._index.state.position
    assert bench.events() == b"0\n"
    bench = bench.crash()
    assert bench.events() == b"0\n1\n2\n3\n4\n"
    bench.commit(Transaction(events=[b"5"]))
    bench.close()
    assert bench.events() == b"0\n1\n2\n3\n4\n5\n"


def test_a_start_on_a_full_disk(tmp_path: Path) -> None:
    """A shard opens when there is no space at all: its events and its next segment come when there is."""
    bench = Bench(tmp_path / "000")
    [one] = bench.accept("a.test")
    bench.commit(Transaction(events=[b"1"]))
    bench.store._disk_thread.call(lambda: None)
    files = Failing("pwritev", "create", "allocate")
    files.error = NO_SPACE
    bench.store.abandon()
    for path in (bench.directory / "events").iterdir():
        path.unlink()
    bench = Bench(bench.directory, files=files)
    assert bench.queued() == [one.key]
    assert isinstance(bench.commit(Transaction([(d.message, [d]) for d in bench.make("b.test")])), StoreFull)
    files.error = 0
    bench.commit(removal([one], b"2"))
    bench.close()
    assert bench.events() == b"1\n2\n"


def test_the_journal_waits_for_the_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that wait in memory are bounded: then mail is refused until they can be written."""
    monkeypatch.setattr("mta.queue.eventlog._BACKLOG", 10)
    files = Failing("create")
    bench = Bench(tmp_path / "000", files=files)
    files.error = NO_SPACE
    bench.commit(Transaction(events=[b"0123456789"]))
    assert isinstance(bench.commit(Transaction([(d.message, [d]) for d in bench.make("a.test")])), StoreFull)
    files.error = 0
    told: list[object] = []
    bench.store.submit(Transaction(events=[b"1"]), told.append)
    bench.store.flush()
    bench.until(lambda: told)
    bench.close()
    assert bench.events() == b"0123456789\n1\n"
