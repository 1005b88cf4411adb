"""Rules of reading the index in pieces: nothing is passed over, nothing read twice, what is changing is told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mta.queue import sweeping
from mta.queue.encoding import pack, unpack
from mta.queue.index import DELIVERY_KEY, MESSAGE_KEY
from mta.queue.orders import HELD_US
from mta.queue.records import Delivery
from mta.queue.store import Transaction
from tests.queue.damage import records
from tests.queue.helpers import START_US, Bench, outcome, removal


def sweep(bench: Bench, names: int, piece: int) -> list[Delivery]:
    """All deliveries, in pieces of this size."""
    found: list[Delivery] = []
    after: bytes | None = b""
    while after is not None:
        queues, after, _ = bench.answer(bench.store.sweep_queues, after, names)
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


def _garbage(value: bytes) -> bytes:
    return value[:20] + b"\xc1" + value[21:]


def _of_another_kind(value: bytes) -> bytes:
    """Whole, but with a number where the last reply is a text: it fails only whoever uses it, far from here."""
    fields = list(unpack(value[20:]))
    fields[7] = [(1, "mx", 451)]
    return value[:20] + pack(fields)


@pytest.mark.parametrize("damage", [_garbage, _of_another_kind])
def test_what_cannot_be_read_is_passed_over_and_counted(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """A delivery, a message, a whole queue: the others are found, and the answer comes."""
    bench = Bench(tmp_path / "000")
    mail = [bench.accept(f"d{n % 4}.test")[0] for n in range(20)]
    bench.close()
    with records(tmp_path / "000") as (txn, db):
        for one in (mail[0], mail[5]):
            key = DELIVERY_KEY.pack(*one.key)
            txn.put(key, damage(txn.get(key, db=db["messages"])), db=db["messages"])
        key = MESSAGE_KEY.pack(mail[9].message.id)
        txn.put(key, txn.get(key, db=db["messages"])[:30] + b"\xc1", db=db["messages"])
        key = txn.get(b"d3.test", db=db["names"])
        txn.put(key, b"\x90", db=db["queues"])
    bench = Bench(tmp_path / "000")
    queues, last, unreadable = bench.answer(bench.store.sweep_queues, b"", 10)
    assert ([info.name for _, info in queues], last, unreadable) == (["d0.test", "d1.test", "d2.test"], None, 1)
    found, unreadable = [], 0
    for key, _ in queues:
        piece = bench.answer(bench.store.sweep_queue, key, b"", 100)
        found += [one.key for one in piece.deliveries]
        unreadable += piece.unreadable
    whole = [one.key for n, one in enumerate(mail) if n % 4 != 3 and n not in (0, 5, 9)]
    assert (sorted(found), unreadable) == (whole, 3)
    assert bench.answer(bench.store.sweep_message, mail[5].message.id) == ([], [], None, 1)
    assert bench.answer(bench.store.list_queues, "", 10)[1].queues == 3
    bench.close()


def test_a_page_of_queues_goes_on_behind_what_cannot_be_read(tmp_path: Path) -> None:
    """Also when that is all there is on it."""
    bench = Bench(tmp_path / "000")
    for n in range(6):
        bench.accept(f"d{n}.test")
    bench.close()
    with records(tmp_path / "000") as (txn, db):
        for n in (1, 2, 3):
            txn.put(txn.get(b"d%d.test" % n, db=db["names"]), b"", db=db["queues"])
    bench = Bench(tmp_path / "000")
    names, broken = [], 0
    after: bytes | None = b""
    while after is not None:
        queues, after, unreadable = bench.answer(bench.store.sweep_queues, after, 1)
        names += [info.name for _, info in queues]
        broken += unreadable
    assert (names, broken) == (["d0.test", "d4.test", "d5.test"], 3)
    bench.close()


def test_what_left_the_queue_is_left_out_and_what_changed_is_told_apart(tmp_path: Path) -> None:
    """As of now, though the index is older."""
    bench = Bench(tmp_path / "000")
    [gone], [changed], [same] = (bench.accept("d.test") for _ in range(3))
    bench.checkpoint()
    [(key, _)], _, _ = bench.answer(bench.store.sweep_queues, b"", 10)
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
    [(key, _)], _, _ = bench.answer(bench.store.sweep_queues, b"", 10)
    got = bench.answer(bench.store.sweep_queue, key, sweeping.held_key(key, HELD_US), 10)
    assert [one.key for one in got.deliveries] == [held.key]
    assert [one.key for one in bench.load("d.test", START_US + 1000)] == [free.key]
    assert [one.key for one in bench.answer(bench.store.due_after, START_US, b"", 10)[0]] == [free.key]
    bench.close()
