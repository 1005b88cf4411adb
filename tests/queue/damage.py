"""Stores with a past, and ways to damage what they leave on disk."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lmdb

from mta.queue import events
from mta.queue.encoding import pack_queue, pack_state, unpack_queue, unpack_state
from mta.queue.eventlog import event_files
from mta.queue.index import (
    DATABASES,
    DELIVERY_KEY,
    DUE_KEY,
    MESSAGE_KEY,
    QUEUE_KEY,
    SCHEDULE_KEY,
    SEGMENT_KEY,
    STATE_KEY,
)
from mta.queue.journal import PAGE, segment_path
from mta.queue.records import Delivery, Message
from mta.queue.store import Transaction
from mta.smtp.reply import Reply
from tests.queue.helpers import Bench, outcome

INDEX_PAGE: Final = 4096
REMOTE = events.Remote("path", "mx.test", "192.0.2.1:25")
TAKEN = Reply(250, "2.0.0", ("Ok",))


def accept(bench: Bench, *domains: str, size: int = 1000, recipients: int = 1) -> list[Delivery]:
    """A message in the queue, with its event."""
    deliveries = bench.make(*domains, content=b"x" * size, recipients=recipients)
    message = deliveries[0].message
    bench.commit(Transaction([(message, deliveries)], events=[events.received(message, deliveries)]))
    return deliveries


def deliver(bench: Bench, delivery: Delivery) -> None:
    """All of its recipients have their end."""
    event = events.delivered(delivery, delivery.recipients, TAKEN, REMOTE, attempt=1, time_us=bench.clock(),
                             duration_s=0.1)
    bench.commit(Transaction(removes=[delivery], events=[event]))


def used(directory: Path) -> Bench:
    """A store with a past, in the index and beyond it."""
    bench = Bench(directory)
    sent = [delivery for n in range(20) for delivery in accept(bench, "a.test", "b.test", size=50_000, recipients=2)]
    for delivery in sent[::3]:
        deliver(bench, delivery)
    bench.checkpoint()
    deliver(bench, sent[1])
    bench.commit(Transaction(updates=[outcome(sent[2], due_us=bench.clock() + 5)]))
    accept(bench, "c.test")
    return bench


def flip(path: Path, offset: int, size: int = 1) -> None:
    """Change some bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(size)
        file.seek(offset)
        file.write(bytes(byte ^ 0x55 for byte in before))


@contextmanager
def records(directory: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A write transaction on the index of a shard, and its databases."""
    env = lmdb.open(str(directory / "queue.mdb"), map_size=1 << 30, max_dbs=len(DATABASES), lock=False)
    try:
        databases = {name: env.open_db(name.encode()) for name in DATABASES}
        with env.begin(write=True) as txn:
            yield txn, databases
    finally:
        env.close()


def pages_with(directory: Path, key: bytes) -> list[int]:
    """Where the leaf pages begin, in the file of a shard's index, that have this key; also those that are free by now
    (LMDB's mdb.c: a header of 16 bytes, offsets of nodes up to `lower`, nodes of 8 bytes and their key)."""
    data = (directory / "queue.mdb" / "data.mdb").read_bytes()
    found = []
    for page in range(0, len(data), INDEX_PAGE):
        flags, lower = struct.unpack_from("<HH", data, page + 10)
        if flags == 2 and 16 <= lower <= INDEX_PAGE:
            for (offset,) in struct.iter_unpack("<H", data[page + 16:page + lower]):
                node = page + offset
                size = int.from_bytes(data[node + 6:node + 8], "little")
                if data[node + 8:node + 8 + size] == key:
                    found.append(page)
                    break
    return found


def overwrite_pages(directory: Path, key: bytes, filling: bytes = b"\xff") -> None:
    """Damage them; without `filling` by noise that is no kind of page. Pure noise is one now and then: LMDB follows
    that and ends the process by an assertion."""
    with (directory / "queue.mdb" / "data.mdb").open("r+b") as file:
        for page in pages_with(directory, key):
            file.seek(page)
            noise = os.urandom(10) + b"\xff\xff" + os.urandom(INDEX_PAGE - 12)
            file.write(filling * INDEX_PAGE if filling else noise)


def segment(bench: Bench, number: int = 1) -> Path:
    """The file of a segment."""
    return segment_path(bench.directory / "journal", number)


def a_message(bench: Bench) -> Message:
    """One that is in the index, with its content."""
    message: Message | None = bench.answer(bench.store.find_message, bench.queue()[5].message.id)[0]
    assert message is not None
    return message


def event_file(bench: Bench) -> Path:
    """The event file that is current."""
    return bench.directory / "events" / event_files(bench.directory / "events")[-1]


# -- what may be wrong in an index; each says what the checker tells of it --------------------------------------------


def _without_schedule(txn: Any, db: dict[str, Any]) -> str:
    key = next(iter(txn.cursor(db["schedule"]).iternext(values=False)))
    txn.delete(key, db=db["schedule"])
    return "not in the schedule"


def _without_delivery(txn: Any, db: dict[str, Any]) -> str:
    key = next(key for key, _ in txn.cursor(db["messages"]) if len(key) == DELIVERY_KEY.size)
    txn.delete(key, db=db["messages"])
    return "a delivery is scheduled that has no record"


def _without_message(txn: Any, db: dict[str, Any]) -> str:
    key = next(key for key, _ in txn.cursor(db["messages"]) if len(key) == MESSAGE_KEY.size)
    txn.delete(key, db=db["messages"])
    return "the delivery has no message"


def _with_another_due_time(txn: Any, db: dict[str, Any]) -> str:
    key, value = next((key, value) for key, value in txn.cursor(db["messages"]) if len(key) == DELIVERY_KEY.size)
    txn.put(key, value[:8] + bytes(8) + value[16:], db=db["messages"])
    return "another due time"


def _with_garbage(txn: Any, db: dict[str, Any]) -> str:
    key, value = next((key, value) for key, value in txn.cursor(db["messages"]) if len(key) == DELIVERY_KEY.size)
    txn.put(key, value[:20] + b"\xc1" + value[21:], db=db["messages"])
    return "the record of the delivery is damaged"


def _with_garbage_for_a_message(txn: Any, db: dict[str, Any]) -> str:
    key, value = next((key, value) for key, value in txn.cursor(db["messages"]) if len(key) == MESSAGE_KEY.size)
    txn.put(key, value[:15], db=db["messages"])
    return "the record of the message is damaged"


def _with_another_content(txn: Any, db: dict[str, Any]) -> str:
    found = [(key, value) for key, value in txn.cursor(db["messages"]) if len(key) == MESSAGE_KEY.size]
    txn.put(found[0][0], found[1][1][:20] + found[0][1][20:], db=db["messages"])
    return "the journal has none of this message here"


def _without_queue(txn: Any, db: dict[str, Any]) -> str:
    txn.delete(QUEUE_KEY.pack(1), db=db["queues"])
    return "in a queue that is not there"


def _with_wrong_counts(txn: Any, db: dict[str, Any]) -> str:
    key = QUEUE_KEY.pack(1)
    queue = unpack_queue(txn.get(key, db=db["queues"]))
    queue.deliveries += 1
    txn.put(key, pack_queue(queue), db=db["queues"])
    return "the queue is said to have"


def _with_wrong_due(txn: Any, db: dict[str, Any]) -> str:
    key, value = next(iter(txn.cursor(db["due"])))
    due_us, queue_id = DUE_KEY.unpack(key)
    txn.delete(key, db=db["due"])
    txn.put(DUE_KEY.pack(due_us + 1, queue_id), value, db=db["due"])
    return "it might wait for ever"


def _with_a_stray_name(txn: Any, db: dict[str, Any]) -> str:
    txn.put(b"nobody.test", QUEUE_KEY.pack(99), db=db["names"])
    return "entries for"


def _with_wrong_use(txn: Any, db: dict[str, Any]) -> str:
    txn.delete(SEGMENT_KEY.pack(1), db=db["segments"])
    return "contents are said to be needed"


def _with_wrong_totals(txn: Any, db: dict[str, Any]) -> str:
    state = unpack_state(txn.get(STATE_KEY, db=db["state"]))
    state.recipients += 1
    txn.put(STATE_KEY, pack_state(state), db=db["state"])
    return "the shard is said to hold"


def _with_an_old_last_id(txn: Any, db: dict[str, Any]) -> str:
    state = unpack_state(txn.get(STATE_KEY, db=db["state"]))
    state.last_id = 1
    txn.put(STATE_KEY, pack_state(state), db=db["state"])
    return "the largest id is said to be"


def _with_a_wrong_position(txn: Any, db: dict[str, Any]) -> str:
    state = unpack_state(txn.get(STATE_KEY, db=db["state"]))
    state.offset += PAGE
    txn.put(STATE_KEY, pack_state(state), db=db["state"])
    return "where no frame ends"


def _with_a_damaged_state(txn: Any, db: dict[str, Any]) -> str:
    txn.put(STATE_KEY, b"\xc1", db=db["state"])
    return "the state is damaged"


def _with_a_stray_schedule(txn: Any, db: dict[str, Any]) -> str:
    txn.put(SCHEDULE_KEY.pack(1, 5, 77 << 10, 0), b"", db=db["schedule"])
    return "that has no record"


INDEX_DAMAGES: Final[tuple[Callable[..., str], ...]] = (
    _without_schedule,
    _without_delivery,
    _without_message,
    _with_another_due_time,
    _with_garbage,
    _with_garbage_for_a_message,
    _with_another_content,
    _without_queue,
    _with_wrong_counts,
    _with_wrong_due,
    _with_a_stray_name,
    _with_wrong_use,
    _with_wrong_totals,
    _with_an_old_last_id,
    _with_a_wrong_position,
    _with_a_damaged_state,
    _with_a_stray_schedule,
)
