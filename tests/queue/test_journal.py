"""Segments: how they are made, filled, given back and used again."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from mta.queue.encoding import Position
from mta.queue.errors import BodyDamaged
from mta.queue.fileops import Buffer, FileOps
from mta.queue.ids import format_id
from mta.queue.journal import PAGE, Journal, Segment, content_crc, segment_numbers
from mta.queue.records import Delivery
from mta.queue.store import Counts, Transaction
from tests.queue.faults import Counting, Failing, Unsynced
from tests.queue.helpers import START_US, Bench, config, removal


@pytest.mark.parametrize(("content", "crc"), [
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (bytes([0xFF] * 32), 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
])
def test_the_checksum_is_a_crc32c(content: bytes, crc: int) -> None:
    """RFC 3720 appendix B.4 has the last three."""
    assert content_crc(content) == crc


def test_a_frame_is_one_write_and_one_sync(tmp_path: Path) -> None:
    """However many messages a group has, it costs one system call to write it and one to sync it."""
    files = Counting()
    journal = Journal(tmp_path, 1_000_000, files, Position(0, 0))
    journal.prepare()
    before = files.calls.copy()
    journal.append(b"operations", [bytes(100)] * 500, START_US)
    assert files.calls - before == {"pwritev": 1, "fdatasync": 1}
    journal.close()


def test_frames_begin_on_pages(tmp_path: Path) -> None:
    """No page that is durable is written again, so that no torn write can reach what was confirmed."""
    writes: list[tuple[int, int]] = []

    class Watching(Unsynced):
        """Takes down where is written."""

        def pwritev(self, fd: int, buffers: object, offset: int) -> int:
            """Take it down."""
            data = b"".join(buffers)
            writes.append((offset, len(data)))
            return os.pwrite(fd, data, offset)

    journal = Journal(tmp_path, 1_000_000, Watching(), Position(0, 0))
    sizes = [0, 1, PAGE - 60, PAGE, 10_000]
    for size in sizes:
        journal.append(b"x", [bytes(size)], START_US)
    assert all(offset % PAGE == 0 and length % PAGE == 0 for offset, length in writes)
    assert [offset for offset, _ in writes[1:]] == [offset + length for offset, length in writes[:-1]]
    journal.close()


class Ahead(Counting):
    """Takes down where zeros are written ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead: list[tuple[int, int]] = []

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Only what is written ahead is all zeros."""
        data = b"".join(buffers)
        if not any(data):
            self.ahead.append((offset, offset + len(data)))
        return super().pwritev(fd, buffers, offset)


def test_the_place_of_small_frames_is_written_ahead(tmp_path: Path) -> None:
    """A mebibyte at once in a new segment, with a sync of its own, when there is little left of the one before; never
    where a frame is, and not behind the segment's end."""
    files, size = Ahead(), 2_500_000 // PAGE * PAGE
    journal = Journal(tmp_path, size, files, Position(0, 0))
    frames = []
    while not frames or frames[-1].end.segment == 1:
        frames.append(journal.append(b"operations", [bytes([1]) * 5000], START_US))
        syncs, rounds = files.calls["fdatasync"], len(files.ahead)
        journal.write_ahead()
        assert files.calls["fdatasync"] - syncs == len(files.ahead) - rounds
        if frames[-1].end.segment == 1:
            assert files.ahead[-1][1] - frames[-1].end.offset >= min(32 << 10, size - frames[-1].end.offset)
            assert len(files.ahead) == rounds or files.ahead[-1][0] >= frames[-1].end.offset
    *first, last = files.ahead
    assert [end for _, end in first] == [begin for begin, _ in first[1:]] + [size]
    assert last[0] == frames[-1].end.offset
    journal.close()
    segment = Segment.open(tmp_path, 1, FileOps())
    assert segment is not None
    offset = PAGE
    for _ in frames[:-1]:
        frame = segment.frame(offset)
        assert frame is not None
        assert segment.is_whole(frame)
        offset = frame.end.offset
    assert segment.frame(offset) is None
    segment.close()


def test_nothing_is_written_ahead_for_large_frames_or_in_a_file_used_before(tmp_path: Path) -> None:
    """Zeros would cost more there than they save, or were written long ago."""
    files = Ahead()
    journal = Journal(tmp_path, 4_000_000, files, Position(0, 0))
    for _ in range(20):
        journal.append(b"x", [bytes([1]) * 100_000], START_US)
        journal.write_ahead()
    assert files.ahead == []
    journal.append(b"x", [], START_US)
    journal.write_ahead()
    assert len(files.ahead) == 1
    journal.append(b"x", [bytes([1]) * 3_000_000], START_US)  # in the second segment, which is new
    journal.retire(1)
    journal.append(b"x", [bytes([1]) * 3_000_000], START_US)
    assert journal.end.segment == 3
    for _ in range(20):
        journal.append(b"x", [], START_US)
        journal.write_ahead()
    assert len(files.ahead) == 1
    journal.close()


@pytest.mark.parametrize("name", ["pwritev", "fdatasync"])
def test_what_cannot_be_written_ahead_is_left(tmp_path: Path, name: str) -> None:
    """No frame fails for it, and in that segment it is not tried again."""
    files = Failing(name)
    journal = Journal(tmp_path, 1_000_000, files, Position(0, 0))
    for number in range(5):
        frame = journal.append(b"x", [b"content"], START_US)
        files.error = errno.EIO
        journal.write_ahead()
        files.error = 0
        assert (files.failures, frame.end.segment) == (1, 1), number
    journal.close()


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    """Operations, time and contents, over several segments and with contents larger than one."""
    rng = random.Random(1)
    journal = Journal(tmp_path, 1_000_000, Unsynced(), Position(0, 0))
    written = []
    for size in (10, 300_000, 800_000, 5, 2_500_000, 100):
        contents = [rng.randbytes(size), b"", b"end"]
        operations = rng.randbytes(size % 1000 + 1)
        written.append((operations, contents, START_US + size, journal.append(operations, contents, START_US + size)))
    journal.close()
    assert segment_numbers(tmp_path) == [1, 2, 3, 4]
    frames = []
    for number in segment_numbers(tmp_path):
        segment = Segment.open(tmp_path, number, FileOps())
        assert segment is not None
        offset = PAGE
        while (frame := segment.frame(offset)) is not None:
            assert segment.is_whole(frame)
            frames.append((frame.operations, [segment.content(blob) for blob in frame.blobs], frame.time_us, frame.end))
            offset = frame.end.offset
        segment.close()
    assert frames == [(operations, contents, time_us, result.end) for operations, contents, time_us, result in written]


def test_the_next_segment_is_ready_before_it_is_needed(tmp_path: Path) -> None:
    """Nobody waits for the allocation of a segment."""
    files = Counting()
    bench = Bench(tmp_path / "000", files=files)
    assert segment_numbers(bench.directory / "journal") == [1]
    bench.accept("a.test", content=bytes(600_000))
    bench.store._disk_thread.call(lambda: None)
    assert segment_numbers(bench.directory / "journal") == [1, 2]
    before = files.calls["fsync_directory"]
    bench.accept("a.test", content=bytes(450_000))  # the beginning of segment 2, and less than half of it
    assert files.calls["fsync_directory"] == before
    bench.close()


def disk_use(bench: Bench) -> int:
    """Bytes of the journal's files."""
    return sum(path.stat().st_size for path in (bench.directory / "journal").iterdir())


def test_the_space_of_mail_that_is_gone_comes_back(tmp_path: Path) -> None:
    """A journal through which mail passes does not grow, and its files are used again."""
    bench = Bench(tmp_path / "000")
    inodes = set()
    for _ in range(60):
        bench.commit(removal(bench.accept("a.test", content=bytes(300_000))))
        bench.accept("b.test", content=b"")
        bench.checkpoint()
        bench.commit(removal(bench.load("b.test")))
        bench.checkpoint()
        assert disk_use(bench) <= 5_000_000
        inodes |= {path.stat().st_ino for path in (bench.directory / "journal").iterdir()}
    assert segment_numbers(bench.directory / "journal")[-1] > 18
    assert len(inodes) < 10
    bench.close()


def test_a_segment_stays_as_long_as_a_message_needs_it(tmp_path: Path) -> None:
    """Old mail can be read however much has passed since, over checkpoints and crashes."""
    bench = Bench(tmp_path / "000")
    [old] = bench.accept("old.test", content=b"old" * 1000)
    for n in range(20):
        bench.commit(removal(bench.accept("a.test", content=bytes(400_000))))
        bench.accept("b.test")
        bench.checkpoint()
        bench.commit(removal(bench.load("b.test")))
        if n % 5 == 0:
            bench = bench.crash()
    [found] = bench.load("old.test")
    assert found.key == old.key
    assert bench.store.body(found.message) == b"old" * 1000
    assert 1 in segment_numbers(bench.directory / "journal")
    bench.commit(removal([found]))
    bench.checkpoint()
    assert len(segment_numbers(bench.directory / "journal")) <= 4
    bench.close()


def test_dead_space_is_won_back_by_copying(tmp_path: Path) -> None:
    """Segments kept for a few old messages are copied together; the mail is the same, also for holders of old records.
    """
    bench = Bench(tmp_path / "000")
    kept: list[Delivery] = []
    for _ in range(30):
        [stays] = bench.accept("stays.test", content=os.urandom(20_000))
        kept.append(stays)
        for _ in range(2):
            bench.commit(removal(bench.accept("goes.test", content=bytes(450_000))))
    contents = {d.key: d.message.content for d in kept}
    assert disk_use(bench) > 30_000_000
    for _ in range(60):
        [tick] = bench.accept("tick.test")
        bench.checkpoint()
        bench.commit(removal([tick]))
        bench.until(lambda: not bench.store._compacting)
    bench.checkpoint()
    assert disk_use(bench) < 10_000_000
    for delivery in kept:  # these know the old places
        delivery.message.content = None
        assert bench.store.body(delivery.message) == contents[delivery.key]
    for _ in range(2):
        assert {d.key: bench.store.body(d.message) for d in bench.load("stays.test")} == contents
        assert sum(use.messages for use in bench.store._index.segments.values()) == 30
        bench = bench.crash()
    bench.commit(removal(bench.load("stays.test")))
    bench.checkpoint()
    assert bench.counts() == Counts(0, 0, 0)
    assert bench.store._index.segments == {}
    bench.close()


def test_mail_that_leaves_while_it_is_copied_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A move of what was removed meanwhile, or moved already, changes nothing."""
    monkeypatch.setattr("mta.queue.compaction._WASTE_ALLOWED", 0)
    bench = Bench(tmp_path / "000")
    one, two = (bench.accept("a.test", content=bytes(1000))[0] for _ in range(2))
    bench.commit(removal(bench.accept("b.test", content=bytes(900_000))))
    bench.commit(removal(bench.accept("b.test", content=bytes(900_000))))
    bench.store.submit(removal([one]))  # in the line before the moves that this checkpoint leads to
    bench.checkpoint()
    bench.until(lambda: not bench.store._compacting)
    bench.accept("c.test")
    bench.checkpoint()
    assert {d.key for d in bench.load("a.test")} == {two.key}
    assert bench.counts() == Counts(2, 2, 2)
    assert sum(use.messages for use in bench.store._index.segments.values()) == 2
    bench = bench.crash()
    [found] = bench.load("a.test")
    assert found.message.body is not None
    assert found.message.body.segment > 1
    assert bench.store.body(found.message) == bytes(1000)
    bench.close()


def damage(bench: Bench, delivery: Delivery) -> None:
    """Change one byte of a content on disk."""
    place = delivery.message.body
    assert place is not None
    with (bench.directory / "journal" / f"{place.segment:08d}.seg").open("r+b") as file:
        file.seek(place.offset + 5)
        file.write(b"?")
    delivery.message.content = None


def test_damaged_content_is_noticed_and_set_aside(tmp_path: Path) -> None:
    """A content that is not what was accepted is never sent; what is readable is kept, and the others go on."""
    bench = Bench(tmp_path / "000")
    bad, good = (bench.accept("a.test", content=b"Subject: hello\r\n\r\n%d" % n)[0] for n in range(2))
    damage(bench, bad)
    good.message.content = None
    aside = bench.directory / "quarantine" / f"{format_id(bad.message.id)}.eml"
    with pytest.raises(BodyDamaged, match=str(aside)):
        bench.store.body(bad.message)
    assert aside.read_bytes() == b"Subje?t: hello\r\n\r\n0"
    assert bench.store.body(good.message) == b"Subject: hello\r\n\r\n1"
    bench.close()


def test_a_damaged_message_leaves_the_queue_whole(tmp_path: Path) -> None:
    """`quarantine` takes all deliveries of a message out, with the caller's event."""
    bench = Bench(tmp_path / "000")
    bad = bench.accept("a.test", "b.test")[0]
    [good] = bench.accept("a.test")
    damage(bench, bad)
    assert bench.answer(bench.store.quarantine, bad.message, [b'{"event":"quarantined"}']) is None
    assert bench.queued() == [good.key]
    bench.close()
    assert bench.events() == b'{"event":"quarantined"}\n'
    assert len(list((bench.directory / "quarantine").iterdir())) == 1


def test_a_missing_segment_is_damage_of_its_messages(tmp_path: Path) -> None:
    """Mail whose content is gone does not stop the rest."""
    bench = Bench(tmp_path / "000")
    [bad] = bench.accept("a.test", content=bytes(900_000))
    [good] = bench.accept("b.test", content=bytes(900_000))
    bench.close()
    (bench.directory / "journal" / "00000001.seg").unlink()
    bench = Bench(bench.directory)
    assert bench.queued() == [bad.key, good.key]
    with pytest.raises(BodyDamaged):
        bench.store.body(bench.load("a.test")[0].message)
    assert bench.store.body(bench.load("b.test")[0].message) == bytes(900_000)
    bench.close()


def test_a_message_larger_than_a_segment(tmp_path: Path) -> None:
    """It gets a segment of its size."""
    bench = Bench(tmp_path / "000", config(segment_size=1_000_000))
    content = random.Random(2).randbytes(5_000_000)
    bench.commit(Transaction([(d.message, [d]) for d in bench.make("a.test", content=content)]))
    bench = bench.crash()
    [found] = bench.queue()
    assert bench.store.body(found.message) == content
    bench.close()
