"""Rules of reading the index in pieces: nothing is passed over, nothing read twice, what is changing is told apart."""

from __future__ import annotations

from pathlib import Path

from mta.queue import sweeping
from mta.queue.orders import HELD_US
from mta.queue.records import Delivery
from mta.queue.store import Transaction
from tests.queue.helpers import START_US, Bench, outcome, removal


def sweep(bench: Bench, names: int, piece: int) -> list[Delivery]:
    """All deliveries, in pieces of this size."""
    found: list[Delivery] = []
    after: bytes | None = b""
    while after is not None:
        queues, after = bench.answer(bench.store.sweep_queues, after, names)
        for key, info in queues:
            start: bytes | None = b""
            before = len(found)
            while start is not None:
                got = bench.answer(bench.store.sweep_queue, key, start, piece)
                assert len(got.deliveries) <= piece
                found += got.deliveries
                start = got.last
            assert {one.queue for one in found[before:]} == {info.name}
    return found


def test_every_delivery_is_found_once(tmp_path: Path) -> None:
    """Whatever the size of the pieces."""
    bench = Bench(tmp_path / "000")
    keys = sorted(one.key for n in range(60) for one in bench.accept(f"d{n % 7}.test", due_us=START_US + n % 5))
    for names, piece in ((1, 1), (3, 4), (100, 1000)):
        assert sorted(one.key for one in sweep(bench, names, piece)) == keys
    bench.close()


def test_what_left_the_queue_is_left_out_and_what_changed_is_told_apart(tmp_path: Path) -> None:
    """As of now, though the index is older."""
    bench = Bench(tmp_path / "000")
    [gone], [changed], [same] = (bench.accept("d.test") for _ in range(3))
    bench.checkpoint()
    [(key, _)], _ = bench.answer(bench.store.sweep_queues, b"", 10)
    bench.commit(removal([gone]))
    bench.commit(Transaction(updates=[outcome(changed, due_us=START_US + 5)]))
    got = bench.answer(bench.store.sweep_queue, key, b"", 10)
    assert [one.key for one in got.deliveries] == [same.key]
    assert [one.key for one in got.changing] == [changed.key]
    bench.close()


def test_what_is_held_singly_is_found_by_itself_and_by_no_look_at_what_is_due(tmp_path: Path) -> None:
    """A sweep can begin where the held ones do; neither loads nor the search for what is due too late see them."""
    bench = Bench(tmp_path / "000")
    [held], [free] = bench.accept("d.test"), bench.accept("d.test", due_us=START_US + 10)
    bench.commit(Transaction(updates=[outcome(held, due_us=START_US + HELD_US)]))
    [(key, _)], _ = bench.answer(bench.store.sweep_queues, b"", 10)
    got = bench.answer(bench.store.sweep_queue, key, sweeping.held_key(key, HELD_US), 10)
    assert [one.key for one in got.deliveries] == [held.key]
    assert [one.key for one in bench.load("d.test", START_US + 1000)] == [free.key]
    assert [one.key for one in bench.answer(bench.store.due_after, START_US, b"", 10)[0]] == [free.key]
    bench.close()
