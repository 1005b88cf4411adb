"""What is there after an end that nobody planned."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mta.config import schema
from mta.config.units import Size
from mta.queue.encoding import Position
from mta.queue.fileops import FileOps
from mta.queue.journal import PAGE, Segment
from mta.queue.records import Delivery
from mta.queue.recovery import JournalReader
from mta.queue.store import Counts, StoreError, StoreUnusable, Transaction
from tests.queue.faults import Deadly, Killed
from tests.queue.helpers import START_US, Bench, config, outcome, removal

NO_START = Position(0, 0)


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one, as these tests sync a lot."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="mta-test-", dir=memory if memory.is_dir() else tmp_path) as name:
        yield Path(name)


def segment_file(bench: Bench, number: int = 1) -> Path:
    """A segment of a shard."""
    return bench.directory / "journal" / f"{number:08d}.seg"


def read(bench: Bench) -> list[bytes]:
    """The operations of all frames that a reader finds in the journal of a shard that is closed."""
    reader = JournalReader(bench.directory / "journal", bench.directory / "quarantine", FileOps(), lambda _: None)
    return [frame.operations for frame in reader.frames(NO_START)]


def test_a_torn_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    """Wherever the last write was torn, all frames before it are read, and nothing of it."""
    bench = Bench(tmp_path / "000")
    bench.accept("a.test", content=b"one")
    bench.accept("b.test", content=b"two" * 1500)
    end = bench.store._position.offset
    bench.accept("c.test", "d.test", content=b"x" * 300)
    bench.store.abandon()
    path = segment_file(bench)
    whole = path.read_bytes()
    frames = read(bench)
    assert len(frames) == 3
    used = len(whole[end:end + PAGE].rstrip(b"\0"))
    assert used > 400
    for tail in (bytes(PAGE), b"\xff" * PAGE, whole[PAGE:2 * PAGE]):
        for cut in range(used):
            torn = whole[end:end + cut] + tail[cut:]
            with path.open("r+b") as file:
                file.seek(end)
                file.write(torn)
            assert read(bench) == frames[:2], (cut, tail[:1])
    with path.open("r+b") as file:
        file.seek(end)
        file.write(whole[end:end + used] + b"\xff" * (PAGE - used))
    assert read(bench) == frames
    for size in (end + used - 1, end + 1, end):
        with path.open("r+b") as file:
            file.truncate(size)
        assert read(bench) == frames[:2]


def test_a_torn_frame_counts_for_nothing(tmp_path: Path) -> None:
    """After the crash the store goes on as if the torn group had never been, and its place is used for nothing."""
    bench = Bench(tmp_path / "000")
    [kept] = bench.accept("a.test", content=b"one")
    end = bench.store._position.offset
    bench.commit(Transaction([(d.message, [d]) for d in bench.make("b.test", content=b"two" * 9000)], removes=[kept],
                             events=[b"{}"]))
    bench.store.abandon()
    with segment_file(bench).open("r+b") as file:
        file.seek(end + 2 * PAGE)  # the head is there, the content is not
        file.write(bytes(PAGE))
    bench = Bench(bench.directory)
    assert bench.queued() == [kept.key]
    assert bench.events() == b""
    [new] = bench.accept("c.test")
    bench = bench.crash()
    assert bench.queued() == [kept.key, new.key]
    bench.close()


def test_damage_is_not_taken_for_a_torn_tail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is behind a damaged frame was durable: it is recovered, the damage is set aside, and the operator told."""
    bench = Bench(tmp_path / "000")
    [first] = bench.accept("a.test")
    end = bench.store._position.offset
    bench.accept("b.test")
    [third] = bench.accept("c.test")
    bench.store.abandon()
    with segment_file(bench).open("r+b") as file:
        file.seek(end + 20)
        file.write(b"\0\0\0\0")
    bench = Bench(bench.directory)
    assert bench.queued() == [first.key, third.key]
    assert f"damaged from {end} to {end + PAGE}" in caplog.text
    [aside] = (bench.directory / "quarantine").iterdir()
    assert b"b.test" in aside.read_bytes()
    bench.close()


def test_damage_in_an_older_segment_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next segment says where the one before ended, so a damaged last frame there is no torn tail."""
    bench = Bench(tmp_path / "000")
    [first] = bench.accept("a.test")
    end = bench.store._position.offset
    bench.accept("b.test", content=bytes(100))
    [third] = bench.accept("c.test", content=bytes(995_000))
    assert third.message.body is not None
    assert third.message.body.segment == 2
    bench.store.abandon()
    with segment_file(bench).open("r+b") as file:
        file.seek(end + 20)
        file.write(b"\0\0\0\0")
    bench = Bench(bench.directory)
    assert bench.queued() == [first.key, third.key]
    assert f"segment 1 of the journal is damaged from {end} to {end + PAGE}" in caplog.text
    bench.close()


def test_mail_that_looks_like_a_frame_is_mail(tmp_path: Path) -> None:
    """A sender who knows the format cannot forge a frame: the salt is unknown until it is too late."""
    bench = Bench(tmp_path / "000")
    bench.accept("a.test")
    end = bench.store._position.offset
    frame = segment_file(bench).read_bytes()[PAGE:end]
    other = Bench(tmp_path / "001")
    other.accept("b.test", content=b"x" * 3800 + frame * 3)
    [mine] = other.queued()
    other.store.abandon()
    with segment_file(other).open("r+b") as file:
        file.seek(PAGE)
        file.write(b"\0" * 8)  # the frame with the forged ones in it is torn
    after = Bench(other.directory)
    assert after.queued() == [mine] or after.queued() == []
    after.close()
    bench.close()


def test_a_missing_segment_is_not_passed_over(tmp_path: Path) -> None:
    """A gap in the journal is for the operator to decide on."""
    bench = Bench(tmp_path / "000")
    for _ in range(3):
        bench.accept("a.test", content=bytes(600_000))
    bench.store.abandon()
    segment_file(bench, 2).unlink()
    with pytest.raises(StoreUnusable, match=r"00000002\.seg is missing or damaged"):
        Bench(bench.directory)


def test_a_lost_index_is_made_again_from_the_journal(tmp_path: Path) -> None:
    """As long as all segments are there, the journal is all that is needed."""
    bench = Bench(tmp_path / "000")
    sent = [bench.accept("a.test", "b.test", content=bytes(300_000)) for _ in range(5)]
    bench.checkpoint()
    bench.commit(removal([sent[0][0]], b'{"n":1}'))
    bench.close()
    shutil.rmtree(bench.directory / "queue.mdb")
    bench = Bench(bench.directory)
    assert bench.queued() == [d.key for pair in sent for d in pair][1:]
    assert bench.counts() == Counts(5, 9, 9)
    assert bench.events() == b'{"n":1}\n'
    bench.close()


def test_an_index_older_than_the_journal_is_refused(tmp_path: Path) -> None:
    """When segments that the index would need are gone, nothing is guessed."""
    bench = Bench(tmp_path / "000")
    for _ in range(4):
        bench.commit(removal(bench.accept("a.test", content=bytes(600_000))))
    bench.accept("a.test")
    bench.checkpoint()
    bench.close()
    shutil.rmtree(bench.directory / "queue.mdb")
    with pytest.raises(StoreUnusable, match="missing or damaged"):
        Bench(bench.directory)


def test_unknown_operations_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is whole but not understood stops the start: skipping it could lose mail."""
    bench = Bench(tmp_path / "000")
    monkeypatch.setattr("mta.queue.transaction.MARK", 99)
    bench.commit(Transaction(marks=[(b"x", b"y")]))
    bench.store.abandon()
    monkeypatch.undo()
    with pytest.raises(StoreUnusable, match="makes no sense"):
        Bench(bench.directory)


def test_recovery_takes_long_journals_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has to be held in memory for a recovery is bounded, and the result is the same."""
    monkeypatch.setattr("mta.queue.recovery._ENTRIES", 3)
    bench = Bench(tmp_path / "000")
    for n in range(10):
        one, two = bench.accept("a.test", "b.test")
        bench.commit(removal([one], b"%d" % n))
        bench.commit(Transaction(updates=[outcome(two, due_us=START_US + n)]))
    bench = bench.crash()
    assert [d.due_us for d in bench.load("b.test")] == [START_US + n for n in range(10)]
    assert bench.load("a.test") == []
    assert bench.counts() == Counts(10, 10, 10)
    assert bench.events() == b"".join(b"%d\n" % n for n in range(10))
    bench.close()


def test_a_start_after_a_clean_end_reads_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean end leaves nothing to recover, and no delivery under suspicion."""
    bench = Bench(tmp_path / "000")
    bench.accept("a.test")
    bench.close()
    monkeypatch.setattr(JournalReader, "frames", lambda *_: pytest.fail("the journal was read"))
    bench = Bench(bench.directory, boot_id="boot 2")
    assert [d.maybe_duplicate for d in bench.queue()] == [False]
    bench.close()


def test_segments_that_nothing_needs_are_gone_after_a_start(tmp_path: Path) -> None:
    """Files that were about to be removed, or made in vain, do not pile up over crashes."""
    bench = Bench(tmp_path / "000")
    for _ in range(30):
        bench.commit(removal(bench.accept("a.test", content=bytes(200_000))))
        bench = bench.crash()
    assert len(list((bench.directory / "journal").iterdir())) <= 4
    bench.close()


# -- duplicates -------------------------------------------------------------------------------------------------------


def test_a_crash_after_the_final_dot_is_remembered(tmp_path: Path) -> None:
    """A delivery that was in flight is marked as a possible duplicate, and no other one (I2)."""
    bench = Bench(tmp_path / "000")
    [flying, _] = bench.accept("a.test", "b.test")
    bench.store.mark_inflight(flying)
    for _ in range(2):  # it stays so over a second crash
        bench = bench.crash()
        assert [(d.domain, d.maybe_duplicate) for d in bench.queue()] == [("a.test", True), ("b.test", False)]
    bench.close()


@pytest.mark.parametrize("how", ["removed", "updated"])
def test_a_mark_goes_with_the_outcome(tmp_path: Path, how: str) -> None:
    """When the outcome is durable there is no suspicion left, also in a marked delivery that was recovered."""
    bench = Bench(tmp_path / "000")
    flying, other = bench.accept("a.test", "b.test")
    bench.store.mark_inflight(flying)
    bench = bench.crash()
    [found, _] = bench.queue()
    if how == "removed":
        bench.commit(removal([found]))
    else:
        bench.commit(Transaction(updates=[outcome(found, maybe_duplicate=False)]))
    assert len(bench.store._inflight) == 0
    bench = bench.crash()
    assert [d.maybe_duplicate for d in bench.queue()] == [False] * (1 if how == "removed" else 2)
    assert other.key in bench.queued()
    bench.close()


def test_an_attempt_without_outcome_leaves_only_older_suspicion(tmp_path: Path) -> None:
    """When nothing is written down of an attempt its mark goes, unless the attempt before may have delivered (I2)."""
    bench = Bench(tmp_path / "000")
    flying, other = bench.accept("a.test", "b.test")
    bench.store.mark_inflight(flying)
    bench.store.mark_inflight(other)
    bench.store.clear_inflight(other)
    for _ in range(2):
        bench = bench.crash()
        found, fresh = bench.queue()
        assert (found.maybe_duplicate, fresh.maybe_duplicate) == (True, False)
        bench.store.mark_inflight(found)
        bench.store.clear_inflight(found)
    bench.close()


def test_a_mark_without_its_delivery_goes_away(tmp_path: Path) -> None:
    """The mark of a delivery whose removal was durable when the process died is not kept for ever."""
    bench = Bench(tmp_path / "000")
    [flying] = bench.accept("a.test")
    bench.store._inflight.mark(flying.key)
    bench.store._inflight.mark((12345 << 10, 0))
    bench.store.submit(removal([flying]))
    bench.store.flush()
    bench.store._disk_thread.call(lambda: None)  # durable, but the hub never heard of it
    bench = bench.crash()
    assert len(bench.store._inflight) == 0
    bench.close()


def test_a_power_failure_makes_all_due_deliveries_suspect(tmp_path: Path) -> None:
    """The marks do not outlive the machine; what was due may have been under way."""
    bench = Bench(tmp_path / "000")
    bench.accept("due.test", due_us=START_US)
    bench.accept("later.test", due_us=START_US + 10**9)
    bench = bench.crash(boot_id="boot 2")
    assert {d.domain: d.maybe_duplicate for d in bench.queue()} == {"due.test": True, "later.test": False}
    bench.clock.now_us += 5
    [new] = bench.accept("new.test")
    bench = bench.crash(boot_id="boot 2")  # only the process this time: the old suspicion stays, no new one comes
    assert {d.domain: d.maybe_duplicate for d in bench.queue()} == {
        "due.test": True, "later.test": False, "new.test": False}
    assert new.key in bench.queued()
    bench.close()


def test_a_clock_that_fails_with_the_power_hides_no_suspect(tmp_path: Path) -> None:
    """What was due when the power failed is so by the time of the last message, whatever the clock says now."""
    bench = Bench(tmp_path / "000")
    bench.clock.now_us += 10**12
    bench.accept("due.test")
    bench = bench.crash(boot_id="boot 2")
    assert [d.maybe_duplicate for d in bench.queue()] == [True]
    bench.close()


# -- kills and power failures at every step ---------------------------------------------------------------------------


SMALL_EVENT_FILES = replace(config(), events=schema.Events(size=Size(25)))


class Workload:
    """A life of a store in single transactions, and what the store must hold after each of them."""

    def __init__(self) -> None:
        self.queue: dict[tuple[int, int], int] = {}  # due time of each delivery
        self.marks: dict[bytes, bytes] = {}
        self.events = b""
        self.states: list[object] = [self._state()]
        self.confirmed = 0
        self._event = 0

    def _state(self) -> object:
        return dict(self.queue), dict(self.marks), self.events

    def apply(self, bench: Bench, tx: Transaction) -> None:
        """Submit `tx`; when this returns it is confirmed."""
        self._event += 1
        tx.events = [b'{"n":%d}' % self._event]
        for _, deliveries in tx.accepts:
            self.queue.update({d.key: d.due_us for d in deliveries})
        self.queue.update({d.key: d.due_us for d in tx.updates})
        for delivery in tx.removes:
            del self.queue[delivery.key]
        self.marks.update(tx.marks)
        for key in tx.unmarks:
            del self.marks[key]
        self.events += b"".join(line + b"\n" for line in tx.events)
        self.states.append(self._state())
        assert bench.commit(tx) is None
        self.confirmed = len(self.states) - 1

    def run(self, bench: Bench) -> None:
        """All of it."""

        def accept(*domains: str, size: int = 10, marks: tuple[tuple[bytes, bytes], ...] = ()) -> list[Delivery]:
            deliveries = bench.make(*domains, content=bytes(size))
            self.apply(bench, Transaction([(deliveries[0].message, deliveries)], marks=marks))
            return deliveries

        one, two = accept("a.test", "b.test", marks=((b"file", b"1"),))
        [three] = accept("a.test", size=300_000)
        bench.checkpoint()
        [four] = accept("c.test", size=400_000)
        self.apply(bench, Transaction(updates=[outcome(two, due_us=START_US + 60)], unmarks=[b"file"]))
        self.apply(bench, Transaction(removes=[three]))
        [five] = accept("d.test", size=500_000)  # the journal goes on in segment 2
        self.apply(bench, Transaction(removes=[one]))
        bench.checkpoint()
        self.apply(bench, Transaction(updates=[outcome(five, due_us=START_US + 90)]))
        self.apply(bench, Transaction(removes=[two, four]))
        bench.checkpoint()  # segment 1 is empty
        [_, seven] = accept("e.test", "f.test", size=600_000)  # segment 3
        self.apply(bench, Transaction(removes=[seven]))
        bench.close()

    def check(self, bench: Bench) -> None:
        """What was confirmed is there, what was under way is there or not, and nothing else."""
        marks = dict(bench.answer(bench.store.list_marks, b"", 100))
        deliveries = bench.queue()
        found = ({d.key: d.due_us for d in deliveries}, marks, bench.events())
        assert found in self.states[self.confirmed:self.confirmed + 2]
        self.queue, self.marks, self.events = dict(found[0]), dict(found[1]), found[2]
        self.states, self.confirmed = [self._state()], 0
        messages = {d.message.id: d.message for d in deliveries}
        assert bench.counts() == Counts(len(messages), len(deliveries), len(deliveries))
        for message in messages.values():
            assert len(bench.store.body(message)) == message.size
        assert sum(use.messages for use in bench.store._index.segments.values()) == len(messages)


def live_and_die(directory: Path, files: Deadly) -> Workload:
    """Run the workload until it is killed, or ends."""
    workload = Workload()
    try:
        bench = Bench(directory, SMALL_EVENT_FILES, files)
    except Killed:
        return workload
    store = bench.store
    try:
        workload.run(bench)
    except (Killed, StoreError):
        store.abandon()
    return workload


def steps(directory: Path) -> int:
    """How many operations the workload has."""
    files = Deadly()
    live_and_die(directory, files)
    return files.operations


DISASTERS: dict[str, Callable[[Deadly, random.Random], None]] = {
    "kill": lambda files, chance: files.bury(),
    "power": lambda files, chance: files.power_off(lambda: chance.random() < 0.5),
    "power, all lost": lambda files, chance: files.power_off(lambda: False),
}


@pytest.mark.parametrize("disaster", DISASTERS)
def test_nothing_is_lost_at_any_step(quick: Path, disaster: str) -> None:
    """Killed in any operation on the files, or with the power cut in it, the store has all that was confirmed.

    And nothing that was not submitted, no event twice or missing, and it works. Also when the same happens again in
    the recovery.
    """
    total = steps(quick / "steps")
    assert total > 60
    for at in range(1, total + 1):
        directory = quick / f"{at}"
        chance = random.Random(at)
        files = Deadly(at)
        workload = live_and_die(directory, files)
        assert files.dead
        DISASTERS[disaster](files, chance)
        again = Deadly(chance.randrange(1, 12))
        try:
            Bench(directory, SMALL_EVENT_FILES, again).store.abandon()
        except Killed:
            pass
        DISASTERS[disaster](again, chance)
        bench = Bench(directory, SMALL_EVENT_FILES)
        workload.check(bench)
        workload.apply(bench, Transaction([(d.message, [d]) for d in bench.make("z.test")]))
        bench.close()
        bench = Bench(directory, SMALL_EVENT_FILES)
        workload.check(bench)
        bench.close()
        shutil.rmtree(directory)


def test_a_segment_that_was_begun_in_vain_is_used_again(tmp_path: Path) -> None:
    """The header may be on disk without the first frame: the journal ends in the segment before it."""
    bench = Bench(tmp_path / "000")
    [first] = bench.accept("a.test")
    bench.accept("b.test", content=bytes(999_000))
    bench.store.abandon()
    with segment_file(bench, 2).open("r+b") as file:
        file.seek(PAGE)
        file.write(bytes(PAGE))
    begun = Segment.open(bench.directory / "journal", 2, FileOps())
    assert begun is not None
    begun.close()
    bench = Bench(bench.directory)
    assert bench.queued() == [first.key]
    [third] = bench.accept("c.test")
    bench = bench.crash()
    assert bench.queued() == [first.key, third.key]
    bench.close()


def test_configuration_may_change_between_lives(tmp_path: Path) -> None:
    """Segments of another size, and another size of event files, are no obstacle."""
    bench = Bench(tmp_path / "000")
    sent = [bench.accept("a.test", content=bytes(400_000))[0].key for _ in range(4)]
    bench = bench.crash(settings=config(segment_size=3_000_000))
    sent += [bench.accept("a.test", content=bytes(400_000))[0].key for _ in range(4)]
    bench = bench.crash()
    assert bench.queued() == sent
    bench.close()


def test_an_outcome_does_not_take_the_mark_of_a_later_attempt(tmp_path: Path) -> None:
    """An attempt may begin before the outcome of the one before it is durable: its own mark stays (I2)."""
    bench = Bench(tmp_path / "000")
    [flying] = bench.accept("a.test")
    bench.store.mark_inflight(flying)
    bench.store.submit(Transaction(updates=[flying]))
    bench.store.mark_inflight(flying)  # the next transaction of the same delivery
    assert bench.commit(Transaction(events=[b"{}"])) is None  # and everything before it is durable
    assert len(bench.store._inflight) == 1

    bench.commit(Transaction(updates=[flying]))
    assert len(bench.store._inflight) == 0
    bench.close()
