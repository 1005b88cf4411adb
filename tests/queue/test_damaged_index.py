"""An index with damage in it, under a running store: the rest goes on, the operator is told, a repair finds all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta.queue.index import DELIVERY_KEY, DUE_KEY, MESSAGE_KEY, SCHEDULE_KEY, SEGMENT_KEY, STATE_KEY
from mta.queue.inflight import Inflight
from mta.queue.reads import UNREADABLE_US
from mta.queue.records import Attempt, Delivery
from mta.queue.repair import repair_spool
from mta.queue.store import StoreError, StoreUnusable, Transaction
from mta.queue.verify import verify_shard
from mta.queue.verify.spool import Options
from tests.queue.damage import accept, deliver, overwrite_pages, records
from tests.queue.faults import Unsynced
from tests.queue.helpers import START_US, Bench, outcome

NOW_US = START_US + 60_000_000
REPLY = Attempt(START_US, "mx.test", "451 4.7.1 Greylisted")
REPAIR = "stop the MTA and run `mta spool verify --repair`"

Damage = Callable[[Any, dict[str, Any], Delivery], None]


@pytest.fixture
def bench(spool: Path) -> Bench:
    """Two queues in the index: five messages for the first one, one for the other."""
    bench = Bench(spool / "shards" / "000")
    for _ in range(5):
        accept(bench, "a.test", recipients=2)
    accept(bench, "b.test")
    bench.checkpoint()
    return bench


def a_number(txn: Any, db: dict[str, Any]) -> bytes:
    """The id of the queue that is damaged."""
    number: bytes = txn.get(b"a.test", db=db["names"])
    return number


def _queue_of_garbage(txn: Any, db: dict[str, Any], one: Delivery) -> None:
    txn.put(a_number(txn, db), b"\xc1garbage", db=db["queues"])


def _queue_of_another_shape(txn: Any, db: dict[str, Any], one: Delivery) -> None:
    txn.put(a_number(txn, db), b"\x93\x01\x02\x03", db=db["queues"])


def _queue_with_a_field_of_another_kind(txn: Any, db: dict[str, Any], one: Delivery) -> None:
    txn.put(a_number(txn, db), b"\x96\x01\xa6a.test\xa1x\x01\xff\xc0", db=db["queues"])


def _queue_with_a_reply_of_another_kind(txn: Any, db: dict[str, Any], one: Delivery) -> None:
    txn.put(a_number(txn, db), b"\x96\x01\xa6a.test\x05\x0a\x01\x93\xa1x\x01\xc0", db=db["queues"])


def _no_queue(txn: Any, db: dict[str, Any], one: Delivery) -> None:
    txn.delete(a_number(txn, db), db=db["queues"])


def _no_queue_and_no_time(txn: Any, db: dict[str, Any], one: Delivery) -> None:
    number = a_number(txn, db)
    txn.put(number, b"", db=db["queues"])
    for key in [key for key, _ in txn.cursor(db["due"]) if key.endswith(number)]:
        txn.delete(key, db=db["due"])


def _name_of_garbage(txn: Any, db: dict[str, Any], one: Delivery) -> None:
    txn.put(b"a.test", b"xx", db=db["names"])


def _delivery_cut_off(txn: Any, db: dict[str, Any], one: Delivery) -> None:
    txn.put(DELIVERY_KEY.pack(*one.key), b"xx", db=db["messages"])


def _delivery_of_garbage(txn: Any, db: dict[str, Any], one: Delivery) -> None:
    txn.put(DELIVERY_KEY.pack(*one.key), b"\xff" * 80, db=db["messages"])


def _message_cut_off(txn: Any, db: dict[str, Any], one: Delivery) -> None:
    txn.put(MESSAGE_KEY.pack(one.message.id), b"xx", db=db["messages"])


MADE_ANEW = (_queue_of_garbage, _queue_of_another_shape, _queue_with_a_field_of_another_kind,
             _queue_with_a_reply_of_another_kind, _no_queue, _no_queue_and_no_time, _name_of_garbage)
LEFT = (_delivery_cut_off, _delivery_of_garbage, _message_cut_off)


def damaged(bench: Bench, how: Damage, *some: Delivery) -> Bench:
    """The same store, with a damage in the file of its index."""
    bench.close()
    with records(bench.directory) as (txn, db):
        for one in some:
            how(txn, db, one)
    return Bench(bench.directory)


def go_on(bench: Bench, queued: list[Delivery]) -> set[tuple[int, int]]:
    """One delivery ends, the next is deferred, one comes to each queue; the keys that are there then."""
    gone, deferred = queued[:2]
    deliver(bench, gone)
    bench.commit(Transaction(updates=[outcome(deferred, due_us=START_US + 5, attempts=1, history=[REPLY])]))
    new = [*accept(bench, "a.test", recipients=2), *accept(bench, "b.test")]
    return {one.key for one in [*queued[1:], *new]}


@pytest.mark.parametrize("how", [*MADE_ANEW, *LEFT])
@pytest.mark.parametrize("number", [0, 1, 2], ids=["ends", "deferred", "waits"])
def test_a_damaged_record_stops_no_checkpoint(spool: Path, bench: Bench, how: Damage, number: int) -> None:
    """Whatever happens to the delivery, or to others of its queue: all is taken into the index, which a restart finds
    as well. Nothing is forgotten: the repair has all that was queued."""
    queued = bench.queue()
    bench = damaged(bench, how, queued[number])
    keys = go_on(bench, queued)
    bench.checkpoint()
    bench.load("a.test")
    assert bench.store.trouble() is None
    assert bench.store.room() is None
    bench.store.close()
    bench = Bench(bench.directory)
    bench.store.abandon()
    repair_spool(spool, Options(complete=True), files=Unsynced(), time_us=NOW_US)
    assert verify_shard(bench.directory, complete=True) == []
    after = Bench(bench.directory, now_us=NOW_US)
    assert set(after.queued()) == keys
    assert after.counts().deliveries == len(keys)


@pytest.mark.parametrize("how", MADE_ANEW)
def test_the_record_of_a_queue_is_made_anew(bench: Bench, caplog: pytest.LogCaptureFixture, how: Damage) -> None:
    """By the checkpoint that needs it, from the schedule and the deliveries: then the index is sound, and the operator
    was told once which file has a damage and what to do."""
    queued = bench.queue()
    bench = damaged(bench, how, queued[0])
    keys = go_on(bench, queued)
    bench.checkpoint()
    bench.store.collect()
    bench.store.abandon()
    assert verify_shard(bench.directory) == []
    [alarm] = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert f"{bench.directory / 'queue.mdb' / 'data.mdb'} is damaged: " in alarm
    assert REPAIR in alarm
    assert bench.store.damage in alarm
    assert set(Bench(bench.directory).queued()) == keys


@pytest.mark.parametrize("how", [*MADE_ANEW, *LEFT])
def test_a_restart_takes_the_journal_in_past_a_damaged_record(bench: Bench, how: Damage) -> None:
    """What was not in the index at the kill gets there, as at any start."""
    queued = bench.queue()
    keys = go_on(bench, queued)
    bench.store.abandon()
    with records(bench.directory) as (txn, db):
        how(txn, db, queued[0])
    bench = Bench(bench.directory)
    assert set(bench.queued()) == keys
    bench.close()


def test_the_last_one_of_a_damaged_queue(bench: Bench) -> None:
    """The queue is gone with it, name and all; the next message makes it again."""
    [last] = bench.load("b.test")
    bench = damaged(bench, lambda txn, db, one: txn.put(txn.get(b"b.test", db=db["names"]), b"", db=db["queues"]), last)
    deliver(bench, last)
    bench.checkpoint()
    accept(bench, "b.test")
    bench.checkpoint()
    bench.store.abandon()
    assert verify_shard(bench.directory) == []


def test_each_damage_is_told_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A queue is read again and again, and its damaged record with it: that is no reason to fill a log."""
    queued = bench.queue()
    bench = damaged(bench, _delivery_cut_off, queued[0])
    bench = damaged(bench, _message_cut_off, queued[1])
    for _ in range(5):
        assert len(bench.load("a.test")) == 3
    told = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert len(told) == len(set(told)) == 3
    assert sum(REPAIR in one for one in told) == 1


@pytest.mark.parametrize("place", [("state", STATE_KEY), ("segments", SEGMENT_KEY.pack(1))])
def test_what_nothing_goes_without_is_named_at_the_start(bench: Bench, place: tuple[str, bytes]) -> None:
    """Without the place in the journal no store is opened: one line says which file, and what to do."""
    bench.close()
    with records(bench.directory) as (txn, db):
        txn.put(place[1], b"\xc1", db=db[place[0]])
    with pytest.raises(StoreUnusable, match=r"data\.mdb is damaged: .*; stop the MTA and run `mta spool verify"):
        Bench(bench.directory)


@pytest.mark.parametrize("key", [b"a mark", b"a.test", SEGMENT_KEY.pack(1)], ids=["marks", "names", "segments"])
def test_the_root_of_a_database_is_named_at_the_start(bench: Bench, key: bytes) -> None:
    """As long as it is small that is all of it. Without marks a worker that asks for them would hang instead."""
    bench.commit(Transaction(marks=[(b"a mark", b"")]))
    bench.close()
    overwrite_pages(bench.directory, key)
    with pytest.raises(StoreUnusable, match=r"data\.mdb is damaged: .*; stop the MTA and run `mta spool verify"):
        Bench(bench.directory)


def test_a_queue_of_unknown_name_is_left_to_the_repair(bench: Bench) -> None:
    """When nothing readable says what a queue is called nobody guesses: it stays as it is, and others go on."""
    queued = bench.queue()
    bench = damaged(bench, _no_queue_and_no_time, queued[0])
    bench = damaged(bench, _delivery_of_garbage, *queued[1:5])
    deliver(bench, queued[0])
    accept(bench, "b.test")
    bench.checkpoint()
    assert len(bench.load("b.test")) == 2
    assert bench.store.trouble() is None


# -- pages -------------------------------------------------------------------------------------------------------------

def with_damaged_page(bench: Bench, key: bytes) -> Bench:
    """The same store, with a damage of the page that has this key."""
    bench.close()
    overwrite_pages(bench.directory, key)
    return Bench(bench.directory)


@pytest.fixture
def large(spool: Path) -> Bench:
    """Two queues with some pages of records each, the one older than the other."""
    bench = Bench(spool / "shards" / "000")
    for name in ("a.test", "b.test"):
        for _ in range(100):
            accept(bench, name, recipients=2)
    bench.checkpoint()
    return bench


def test_mail_on_a_damaged_page_is_passed_over(spool: Path, large: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The rest of its queue is found, and others are; checkpoints go on. The repair has all of it."""
    keys = set(large.queued())
    bench = with_damaged_page(large, DELIVERY_KEY.pack(*sorted(keys)[50]))
    found = bench.load("a.test")
    assert 50 < len(found) < 100
    assert len(bench.load("b.test")) == 100
    deliver(bench, found[0])
    [new] = accept(bench, "a.test")
    bench.checkpoint()
    assert bench.store.room() is None
    assert len(bench.load("a.test")) == len(found)
    [alarm] = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert REPAIR in alarm
    bench.close()
    repair_spool(spool, Options(complete=True), files=Unsynced(), time_us=NOW_US)
    assert set(Bench(bench.directory, now_us=NOW_US).queued()) == keys - {found[0].key} | {new.key}


def test_no_answer_is_made_up(large: Bench) -> None:
    """Whether something was accepted already, or there is a message, is not told from a page that cannot be read; and
    it is not asked for again and again."""
    one = large.queue()[50]
    bench = with_damaged_page(large, DELIVERY_KEY.pack(*one.key))
    answers: list[object] = []
    for _ in range(2):
        bench.store.find_message(one.message.id, lambda *found: answers.append(found))
        bench.checkpoint()
    checkpoints = bench.store.statistics.checkpoints
    bench.checkpoint()
    assert answers == []
    assert bench.store.statistics.checkpoints == checkpoints
    assert bench.store.damage


def test_an_index_that_takes_nothing_more(spool: Path, large: Bench, caplog: pytest.LogCaptureFixture,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """No new mail is taken, and what becomes of the rest is safe in the journal; when memory holds no more of that no
    delivery is begun. It is told once. After the repair all is as it was settled."""
    monkeypatch.setattr("mta.queue.checkpointing.ENTRIES_MAX", 20)
    monkeypatch.setattr("mta.queue.checkpointing.DAMAGED_RETRY_S", 0.01)
    queued = large.queue()
    bench = with_damaged_page(large, SCHEDULE_KEY.pack(1, START_US, *queued[0].key))
    for one in queued[:15]:
        deliver(bench, one)
    bench.store.list_marks(b"", 1, lambda found: None)
    bench.until(bench.store.room)
    assert bench.store.room() == "the index of the spool is damaged"
    assert bench.store.trouble() == bench.store.damage
    assert not bench.store.choked
    for one in queued[15:20]:
        deliver(bench, one)
    assert bench.store.choked
    with pytest.raises(StoreError, match="the index could not be written"):
        bench.close()
    assert sum(REPAIR in one.getMessage() for one in caplog.records) == 1
    with pytest.raises(StoreUnusable, match=REPAIR):
        Bench(bench.directory)
    repair_spool(spool, Options(complete=True), files=Unsynced(), time_us=NOW_US)
    assert Bench(bench.directory, now_us=NOW_US).queued() == [one.key for one in queued[20:]]


def test_a_load_behind_a_damaged_page_keeps_nothing_waiting(large: Bench) -> None:
    """Who loads keeps room in memory for what may come: it is told that there is nothing before a later time, each time
    it asks. Never told, a few hundred queues of such pages took the room of all others."""
    bench = with_damaged_page(large, SCHEDULE_KEY.pack(1, START_US, *large.queue()[0].key))
    for _ in range(2):
        assert bench.answer(bench.store.load_due, "a.test", NOW_US, 20, ()) == ([], NOW_US + UNREADABLE_US)
    assert bench.store.damage


def test_queues_before_a_damaged_page_are_found(spool: Path) -> None:
    """By the time of their first delivery, as at the start; that look ends there and does not keep others waiting."""
    bench = Bench(spool / "shards" / "000")
    for number in range(300):
        bench.accept(f"d{number:03d}.test", due_us=START_US + number)
    bench.checkpoint()
    bench = with_damaged_page(bench, DUE_KEY.pack(START_US + 299, 300))
    found: list[str] = []
    after: bytes | None = b""
    while after is not None:
        queues, after = bench.answer(bench.store.due_queues, after, 200)
        found += [name for _, name in queues]
    assert 100 < len(found) < 300
    assert found == [f"d{number:03d}.test" for number in range(len(found))]
    assert bench.store.damage


def test_what_a_crash_interrupted_on_a_damaged_page_stays_suspect(large: Bench) -> None:
    """The shard is opened all the same, and the mark is kept for when a repair has found the delivery again."""
    one = large.queue()[50]
    large.store.mark_inflight(one)
    large.store.abandon()
    overwrite_pages(large.directory, DELIVERY_KEY.pack(*one.key))
    bench = Bench(large.directory)
    assert len(bench.load("b.test")) == 100
    bench.store.abandon()
    assert Inflight(bench.directory / "inflight", Unsynced()).left_over == {one.key}


def test_mail_beside_a_damaged_page_is_found_without_the_index(large: Bench) -> None:
    """While nothing can be written to the index, what has changed since is found although the schedule of its queue is
    damaged; and what lies on a damaged page is passed over there, too: the rest of its queue is found."""
    queued = large.queue()
    large.close()
    overwrite_pages(large.directory, SCHEDULE_KEY.pack(2, START_US, *queued[-1].key))
    overwrite_pages(large.directory, DELIVERY_KEY.pack(*queued[50].key))
    bench = Bench(large.directory)
    bench.commit(Transaction(updates=[outcome(queued[50], due_us=START_US + 5), outcome(queued[-1], attempts=1)]))
    bench.store.list_marks(b"", 1, lambda found: None)
    bench.until(bench.store.room)
    assert 50 < len(bench.load("a.test")) < 100
    assert [(one.key, one.attempts) for one in bench.load("b.test")] == [(queued[-1].key, 1)]


def test_a_checkpoint_goes_past_a_page_that_it_does_not_need(bench: Bench) -> None:
    """What is counted afterwards, the use of the map, does not keep it from being reported: none was begun after it."""
    queued = bench.queue()
    checkpoints = bench.store.statistics.checkpoints
    overwrite_pages(bench.directory, b"a.test")
    for number in range(2):
        deliver(bench, queued[number])
        bench.checkpoint()
        assert bench.store.statistics.checkpoints == checkpoints + 1 + number
    assert "queue.mdb/data.mdb is damaged" in bench.store.damage
    bench.store.abandon()


def test_an_attempt_in_vain_lets_nothing_more_in(large: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a checkpoint is tried again memory holds what it has tried to write as well: that counts, so the bound
    holds however often it is tried."""
    monkeypatch.setattr("mta.queue.checkpointing.ENTRIES_MAX", 20)
    monkeypatch.setattr("mta.queue.checkpointing.DAMAGED_RETRY_S", 0.0)
    queued = large.queue()
    bench = with_damaged_page(large, SCHEDULE_KEY.pack(1, START_US, *queued[0].key))
    deliver(bench, queued[0])
    bench.store.list_marks(b"", 1, lambda found: None)
    bench.until(bench.store.room)
    for one in queued[1:20]:
        deliver(bench, one)
    assert all(bench.store.choked for _ in range(3) if bench.store.collect() is None)  # each call begins an attempt
    bench.store.abandon()
