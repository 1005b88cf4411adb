"""What happens in the store while something else is under way."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from mta.queue.records import BodyRef
from mta.queue.store import Counts, Transaction
from mta.queue.transaction import Move, encode_moves
from tests.queue.faults import Unsynced
from tests.queue.helpers import START_US, Bench, outcome, removal


class Gate(Unsynced):
    """Commits of the index wait at a gate, and fail if they are told to."""

    def __init__(self) -> None:
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.arrived = threading.Event()
        self.fails = False

    def commit(self, transaction: Any) -> None:
        """Wait."""
        self.arrived.set()
        self.open_gate.wait(20)
        if self.fails:
            raise OSError(5, os.strerror(5))
        super().commit(transaction)


@pytest.mark.parametrize("fails", [False, True])
def test_changes_during_a_checkpoint(tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What becomes durable while a checkpoint is written is in the next one, whether the first succeeds or not."""
    monkeypatch.setattr("mta.queue.checkpointing.RETRY_S", 0.01)
    files = Gate()
    bench = Bench(tmp_path / "000", files=files)
    stored = bench.accept("a.test", "b.test", recipients=2)
    bench.commit(Transaction(marks=[(b"old", b"1")]))
    bench.checkpoint()
    born = bench.accept("a.test", "b.test", "c.test")
    bench.commit(Transaction(updates=[outcome(stored[0], due_us=START_US + 1)]))
    files.open_gate.clear()
    files.arrived.clear()
    answers: list[object] = []
    bench.store.list_marks(b"", 10, answers.append)
    assert files.arrived.wait(20)

    assert bench.counts() == Counts(2, 5, 7)
    bench.commit(removal([born[0], stored[1]]))
    bench.commit(Transaction(updates=[outcome(born[1], due_us=START_US + 2), outcome(stored[0], due_us=START_US + 3)],
                             marks=[(b"new", b"2")], unmarks=[b"old"]))
    [late] = bench.accept("d.test")
    bench.commit(removal(bench.accept("e.test")))
    assert bench.counts() == Counts(3, 4, 8)
    loaded: list[Any] = []
    bench.store.load_due("a.test", 1 << 62, 10, (), lambda found, next_us: loaded.append((found, next_us)))

    files.fails = fails
    files.open_gate.set()
    bench.until(lambda: answers and loaded)
    assert answers == [[(b"old", b"1")]]
    assert loaded == [([], None)]
    files.fails = False
    expected = {stored[0].key: START_US + 3, born[1].key: START_US + 2, born[2].key: START_US, late.key: START_US}
    assert {d.key: d.due_us for d in bench.queue()} == expected
    assert bench.counts() == Counts(3, 4, 5)
    assert bench.answer(bench.store.list_marks, b"", 10) == [(b"new", b"2")]
    bench = bench.crash()
    assert {d.key: d.due_us for d in bench.queue()} == expected
    assert bench.counts() == Counts(3, 4, 5)
    bench.close()


def test_a_checkpoint_behind_the_disk(tmp_path: Path) -> None:
    """Groups that the hub has not heard of are not in a checkpoint, though their events may be in the files already."""
    bench = Bench(tmp_path / "000")
    [one] = bench.accept("a.test")
    bench.commit(Transaction(events=[b"1"]))
    [two] = bench.make("b.test")
    bench.store.submit(Transaction([(two.message, [two])], removes=[one], events=[b"2"]))
    bench.store.flush()
    bench.store._disk_thread.call(lambda: None)
    bench.store._begin_checkpoint()
    bench.store._index_thread.call(lambda: None)
    state = bench.store._index.state
    assert state.position < state.events.journal
    bench = bench.crash()
    assert bench.queued() == [two.key]
    assert bench.events() == b"1\n2\n"
    bench.close()


def test_a_crash_during_a_checkpoint(tmp_path: Path) -> None:
    """What was confirmed while a checkpoint was written is recovered, however far that came."""
    for fails in (False, True):
        files = Gate()
        bench = Bench(tmp_path / f"{fails}", files=files)
        [one, two] = bench.accept("a.test", "b.test")
        files.open_gate.clear()
        files.arrived.clear()
        bench.store.list_marks(b"", 10, lambda _: None)
        assert files.arrived.wait(20)
        bench.commit(removal([one]))
        [three] = bench.accept("c.test")
        files.fails = fails
        files.open_gate.set()
        bench = bench.crash()
        assert bench.queued() == [two.key, three.key]
        assert bench.counts() == Counts(2, 2, 2)
        bench.close()


def test_what_is_settled_after_the_index_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that has found a delivery already does not bring it back when it was settled in the meantime."""
    bench = Bench(tmp_path / "000")
    one, two = (bench.accept("a.test")[0] for _ in range(2))
    bench.checkpoint()
    index = bench.store._index
    due, was_read, go_on = index.due, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        result = due(*arguments)
        was_read.set()
        go_on.wait(20)
        return result

    monkeypatch.setattr(index, "due", slow)
    loaded: list[Any] = []
    bench.store.load_due("a.test", 1 << 62, 10, (), lambda found, _: loaded.append([d.key for d in found]))
    assert was_read.wait(20)
    bench.commit(removal([one]))
    go_on.set()
    bench.until(lambda: loaded)
    assert loaded == [[two.key]]
    bench.close()


def test_what_is_on_its_way_to_the_disk_takes_no_place(tmp_path: Path) -> None:
    """What was settled and is not durable yet does not stand in the way of what comes after it: a read that found
    nothing else would be asked for again at once, and again, until it is."""
    bench = Bench(tmp_path / "000")
    first = [bench.accept("a.test")[0] for _ in range(3)]
    last = bench.accept("a.test")[0]
    bench.checkpoint()
    bench.store.patient = True
    bench.store.submit(removal(first))
    loaded: list[Any] = []
    bench.store.load_due("a.test", 1 << 62, 2, (), lambda *found: loaded.append(found))
    bench.until(lambda: loaded)
    assert bench.store.pending, "it was written before"
    [(found, next_us)] = loaded
    assert [one.key for one in found] == [last.key]
    assert next_us is None
    bench.close()


class Untouchable(list[Any]):
    """Nobody goes through it."""

    def __iter__(self) -> Any:
        raise AssertionError("it was gone through")


def test_a_read_does_not_go_through_what_waits_for_the_disk(tmp_path: Path) -> None:
    """A hundred thousand outcomes may wait for a disk that is full, and as many queues come back meanwhile: each read
    asks of what it finds alone whether that is on its way, and what was submitted twice is until both are durable."""
    bench = Bench(tmp_path / "000")
    stored = [bench.accept("a.test")[0] for _ in range(3)]
    bench.checkpoint()
    bench.store.patient = True
    bench.store.submit(Transaction(updates=[outcome(stored[0], due_us=START_US + 1)]))
    bench.store.flush()
    bench.store.submit(Transaction(updates=[outcome(stored[0], due_us=START_US + 2)]))
    bench.until(lambda: bench.store._commits.changing == {stored[0].key: 1})
    bench.store.submit(Transaction(updates=[outcome(stored[1], due_us=START_US + 1)]))
    waiting = bench.store._commits._pending
    changed = [one.changed for one in waiting]
    assert len(changed) == 2
    for one in waiting:
        one.changed = Untouchable(one.changed)
    loaded: list[Any] = []
    bench.store.load_due("a.test", 1 << 62, 10, (), lambda *found: loaded.append(found))
    bench.until(lambda: loaded)
    assert [one.key for one in loaded[0][0]] == [stored[2].key]
    for one, was in zip(waiting, changed, strict=True):
        one.changed = was
    bench.store.flush()
    bench.until(lambda: not bench.store._commits.changing)
    assert {one.key: one.due_us - START_US for one in bench.queue()} == {
        stored[0].key: 2, stored[1].key: 1, stored[2].key: 0}
    bench.close()


def test_exclusion_is_looked_at_until_the_end(tmp_path: Path) -> None:
    """A delivery that came into memory while the read was under way is not given twice."""
    bench = Bench(tmp_path / "000")
    one, two = (bench.accept("a.test")[0] for _ in range(2))
    bench.checkpoint()
    exclude: set[tuple[int, int]] = set()
    loaded: list[Any] = []
    bench.store.load_due("a.test", 1 << 62, 10, exclude, lambda found, _: loaded.append([d.key for d in found]))
    bench.store._index_thread.call(lambda: None)
    exclude.add(one.key)
    bench.until(lambda: loaded)
    assert loaded == [[two.key]]
    bench.close()


def test_a_late_move_changes_nothing(tmp_path: Path) -> None:
    """Content that was copied from a place where it is not any more stays where it is, counted once."""
    bench = Bench(tmp_path / "000")
    [one] = bench.accept("a.test", content=b"content")
    assert one.message.body is not None
    stale = BodyRef(one.message.body.segment, one.message.body.offset + 4096, 5, 0)
    for checkpoint_first in (False, True):
        if checkpoint_first:
            bench.checkpoint()
        bench.store._commits.add(encode_moves([Move(one.message.id, stale, b"wrong")]))
        bench.commit(Transaction(events=[b"{}"]))
        [found] = bench.queue()
        assert bench.store.body(found.message) == b"content"
        assert sum(use.bytes for use in bench.store._index.segments.values()) == 7
    bench.close()


def test_two_moves_in_a_row(tmp_path: Path) -> None:
    """Content may be copied on before the index has heard of the first copy."""
    bench = Bench(tmp_path / "000")
    [one] = bench.accept("a.test", content=b"content")
    bench.checkpoint()
    place = one.message.body
    assert place is not None
    for _ in range(2):
        bench.store._commits.add(encode_moves([Move(one.message.id, place, b"content")]))
        bench.commit(Transaction(events=[b"{}"]))
        before, place = place, bench.store._effects.moves[one.message.id][1]
        assert place.offset > before.offset
    for _ in range(2):
        [found] = bench.queue()
        assert found.message.body == place
        assert bench.store.body(found.message) == b"content"
        assert sum(use.bytes for use in bench.store._index.segments.values()) == 7
        bench = bench.crash()
    bench.close()
