"""Writing a checkpoint: the net effect of a stretch of the journal enters the index.

One write transaction, synced: the records, the counts, the `due` entries and the place in the journal that they belong
to change together or not at all. The work is proportional to what has changed since the last checkpoint.

A record that makes no sense stops nothing. What follows from other records is made anew from them: that of a queue,
its number by its name, where in the schedule a delivery was. What does not is left where it is, for the repair
(`mta.queue.repair`). Either is told (`Index.damaged`), and costs one look through the schedule, or all queues.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any, Final

import lmdb

from mta.queue.effects import DeliveryState, Effects, Key
from mta.queue.encoding import (
    UNREADABLE,
    QueueInfo,
    ShardState,
    delivery_head,
    delivery_record,
    delivery_value,
    message_head,
    message_record,
    message_value,
    name_key,
    pack_queue,
    pack_state,
    summary_of,
    unpack_queue,
)
from mta.queue.ids import format_id
from mta.queue.index import (
    DELIVERY_KEY,
    DUE_KEY,
    MESSAGE_KEY,
    QUEUE_KEY,
    SCHEDULE_KEY,
    SEGMENT_KEY,
    SEGMENT_USE,
    STATE_KEY,
    Index,
    SegmentUse,
)
from mta.queue.records import BodyRef

_DELIVERY_IN_PLACE: Final = SCHEDULE_KEY.size - DELIVERY_KEY.size
_AT_ONCE: Final = 1000  # records read by one call

Touched = list[tuple[str, int | None]]
"""Queues that a checkpoint changed, and when the first of their deliveries is due (None: the queue is gone)."""


def write_checkpoint(index: Index, effects: Effects, state: ShardState) -> Touched:
    """Take `effects` into the index, and with them `state`, of which the counts and the number are kept here.

    Raises lmdb.Error or OSError; then the index is as it was.
    """
    if not index.is_open:
        number = index.state.number
        index.reopen()
        if index.state.number != number:
            index.close()
            raise lmdb.Error("a commit that seemed to fail has happened; a restart will put things in order")
    txn = index.env.begin(write=True)
    try:
        checkpoint = _Checkpoint(index, txn, replace(state, number=index.state.number + 1))
        checkpoint.take(effects)
    except BaseException:
        txn.abort()
        raise
    try:
        index.files.commit(txn)
    except BaseException as error:
        txn.abort()
        if not isinstance(error, (OSError, lmdb.Error)):
            raise
        # A commit whose last sync failed may have happened all the same, and LMDB wants the environment reopened.
        index.reopen()
        if index.state.number != checkpoint.state.number:
            raise
    index.state = checkpoint.state
    index.segments = checkpoint.segments
    for problem in checkpoint.damaged:
        index.damaged(problem)
    return checkpoint.touched


@dataclass(slots=True)
class _Stored:
    """A message that is in the index, as it changes."""

    body: BodyRef
    left: int
    value: bytes


class _Checkpoint:
    """One checkpoint at work."""

    def __init__(self, index: Index, txn: Any, state: ShardState) -> None:
        self.state = state
        self.segments = dict(index.segments)
        self.touched: Touched = []
        self.damaged: list[str] = []  # records, for the operator
        self._txn = txn
        self._db = index.db
        self._queues: dict[int, QueueInfo] = {}
        self._queue_ids: dict[str, int] = {}
        self._stored: dict[int, _Stored | None] = {}
        self._records: list[tuple[bytes, bytes]] = []
        self._schedule: list[tuple[bytes, bytes]] = []
        self._came_or_went: dict[int, SegmentUse] = {}
        self._concerned: Collection[Key] = ()  # deliveries
        self._scheduled: dict[Key, list[bytes]] | None = None  # where they are, when that had to be looked for
        self._lost: set[int] = set()  # queues whose record has to be made anew

    def take(self, effects: Effects) -> None:
        """All of it, except for the commit."""
        self._concerned = effects.deliveries.keys()
        for key, delivery in effects.deliveries.items():
            if delivery is None:
                self._remove(key)
            elif delivery.born:
                self._add(delivery)
            else:
                self._change(delivery)
        for message in effects.messages.values():
            self._records.append((MESSAGE_KEY.pack(message.id),
                                  message_value(message.record, message.body, message.left)))
            self._use(message.body, 1)
            self.state.messages += 1
        for message_id, (old, new) in effects.moves.items():
            self._move(message_id, old, new)
        self._settle_messages()
        # In the order of the keys neighbours share pages: half the time of any other order.
        self._records.sort()
        self._schedule.sort()
        self._txn.cursor(self._db["messages"]).putmulti(self._records)
        self._txn.cursor(self._db["schedule"]).putmulti(self._schedule)
        self._settle_queues()
        self._settle_segments()
        for mark, content in effects.marks.items():
            if content is None:
                self._txn.delete(mark, db=self._db["marks"])
            else:
                self._txn.put(mark, content, db=self._db["marks"])
        self.state.last_id = max(self.state.last_id, effects.last_id)
        self._txn.put(STATE_KEY, pack_state(self.state), db=self._db["state"])

    # -- deliveries ----------------------------------------------------------------------------------------------------

    def _add(self, delivery: DeliveryState) -> None:
        queue_id = self._queue_id(delivery.queue)
        queue = self._queue(queue_id)
        queue.deliveries += 1
        queue.recipients += delivery.recipients
        self.state.deliveries += 1
        self.state.recipients += delivery.recipients
        self._schedule.append((SCHEDULE_KEY.pack(queue_id, delivery.due_us, *delivery.key), b""))
        self._put(delivery, queue_id, queue)

    def _change(self, delivery: DeliveryState) -> None:
        value = self._txn.get(DELIVERY_KEY.pack(*delivery.key), db=self._db["messages"])
        if value is None:
            return  # it has left the queue: nothing brings it back
        queue_id = self._queue_id(delivery.queue)
        self.state.recipients += delivery.recipients - self._unschedule(delivery.key, value)
        self._schedule.append((SCHEDULE_KEY.pack(queue_id, delivery.due_us, *delivery.key), b""))
        queue = self._queue(queue_id)
        queue.deliveries += 1
        queue.recipients += delivery.recipients
        self._put(delivery, queue_id, queue)

    def _unschedule(self, key: Key, value: bytes) -> int:
        """Take a delivery with this value out of the schedule and of its queue's counts. How many recipients it had."""
        try:
            queue_id, due_us, recipients = delivery_head(value)
            there = self._txn.delete(SCHEDULE_KEY.pack(queue_id, due_us, *key), db=self._db["schedule"])
        except struct.error:
            there = False
        if not there:
            self.damaged.append(f"the record of delivery {key[1]} of message {format_id(key[0])}, which does not say "
                                "where in the schedule it is")
            queue_id, recipients = 0, 1
            for place in self._places(key):
                self._txn.delete(place, db=self._db["schedule"])
                queue_id = SCHEDULE_KEY.unpack(place)[0]
        if queue_id:
            queue = self._queue(queue_id)
            queue.deliveries -= 1
            queue.recipients -= recipients
        return recipients

    def _places(self, key: Key) -> list[bytes]:
        """The keys of a delivery in the schedule. The first time in a checkpoint it is read from end to end."""
        if self._scheduled is None:
            self._scheduled = {}
            for place in self._txn.cursor(self._db["schedule"]).iternext(values=False):
                if len(place) == SCHEDULE_KEY.size:
                    one = SCHEDULE_KEY.unpack(place)[2:]
                    if one in self._concerned:
                        self._scheduled.setdefault(one, []).append(place)
        return self._scheduled.get(key, [])

    def _put(self, delivery: DeliveryState, queue_id: int, queue: QueueInfo) -> None:
        self._records.append((DELIVERY_KEY.pack(*delivery.key),
                              delivery_value(delivery.record, queue_id, delivery.due_us, delivery.recipients)))
        last = delivery.last
        if last is not None and (queue.last is None or last.time_us >= queue.last.time_us):
            queue.last = last

    def _remove(self, key: Key) -> None:
        value = self._txn.pop(DELIVERY_KEY.pack(*key), db=self._db["messages"])
        if value is None:
            return
        self.state.deliveries -= 1
        self.state.recipients -= self._unschedule(key, value)
        message = self._message(key[0])
        if message is not None:
            message.left -= 1

    # -- messages ------------------------------------------------------------------------------------------------------

    def _message(self, message_id: int) -> _Stored | None:
        if message_id not in self._stored:
            value = self._txn.get(MESSAGE_KEY.pack(message_id), db=self._db["messages"])
            try:
                self._stored[message_id] = None if value is None else _Stored(*message_head(value), value)
            except struct.error:
                self._stored[message_id] = None  # what is left of it keeps its segment
                self.damaged.append(f"the record of message {format_id(message_id)}")
        return self._stored[message_id]

    def _move(self, message_id: int, old: BodyRef, new: BodyRef) -> None:
        message = self._message(message_id)
        if message is not None and message.body == old:
            self._use(old, -1)
            self._use(new, 1)
            message.body = new

    def _settle_messages(self) -> None:
        for message_id, message in self._stored.items():
            if message is None:
                continue
            key = MESSAGE_KEY.pack(message_id)
            if message.left > 0:
                self._records.append((key, message_value(message_record(message.value), message.body, message.left)))
            else:
                self._txn.delete(key, db=self._db["messages"])
                self._use(message.body, -1)
                self.state.messages -= 1

    # -- queues --------------------------------------------------------------------------------------------------------

    def _queue_id(self, name: str) -> int:
        queue_id = self._queue_ids.get(name)
        if queue_id is None:
            key = name_key(name)
            value = self._txn.get(key, db=self._db["names"])
            if value is not None and len(value) != QUEUE_KEY.size:
                self.damaged.append(f"the number of the queue {name}, which is looked for")
                value = self._number(name)
                if value is not None:
                    self._txn.put(key, value, db=self._db["names"])
            if value is not None:
                queue_id = QUEUE_KEY.unpack(value)[0]
            else:
                queue_id = self.state.next_queue_id
                self.state.next_queue_id += 1
                self._txn.put(key, QUEUE_KEY.pack(queue_id), db=self._db["names"])
                self._queues[queue_id] = QueueInfo(name)
            self._queue_ids[name] = queue_id
        return queue_id

    def _number(self, name: str) -> bytes | None:
        """What `names` should have for this queue. Reads through all queues that have mail."""
        raw = name.encode("utf-8", "surrogateescape")
        for key, found in self._txn.cursor(self._db["due"]):
            if found == raw:
                return QUEUE_KEY.pack(DUE_KEY.unpack(key)[1])
        return None

    def _queue(self, queue_id: int) -> QueueInfo:
        queue = self._queues.get(queue_id)
        if queue is None:
            value = self._txn.get(QUEUE_KEY.pack(queue_id), db=self._db["queues"])
            try:
                queue = unpack_queue(value or b"")
            except UNREADABLE:
                self.damaged.append(f"the record of queue {queue_id}, which is made anew")
                self._lost.add(queue_id)
                queue = QueueInfo("")
            self._queues[queue_id] = queue
        return queue

    def _make_anew(self, queue_id: int, queue: QueueInfo) -> None:
        """All but its name and its last failed attempt, as the schedule and the records of deliveries now say, through
        which this reads. Without a name it gets that of a delivery, if one says it."""
        prefix = QUEUE_KEY.pack(queue_id)
        queue.deliveries, queue.recipients, queue.next_due_us = 0, 0, -1
        schedule, messages = self._txn.cursor(self._db["schedule"]), self._txn.cursor(self._db["messages"])
        schedule.set_range(prefix)
        places = takewhile(lambda place: place.startswith(prefix), schedule.iternext(values=False))
        while some := [place[_DELIVERY_IN_PLACE:] for place in islice(places, _AT_ONCE)]:
            queue.deliveries += len(some)
            queue.recipients += len(some)  # at least one each, for those that cannot be read
            for _, value in messages.getmulti(some):
                with contextlib.suppress(*UNREADABLE):
                    queue.recipients += delivery_head(value)[2] - 1
                    if not queue.name and isinstance(name := summary_of(delivery_record(value))[0], str):
                        queue.name = name

    def _take_from_due(self) -> None:
        """Give the queues that are made anew the names that `due` has for them, and take them out there. Reads through
        all queues that have mail."""
        for key, name in list(filter(self._is_lost, self._txn.cursor(self._db["due"]))):
            self._queues[DUE_KEY.unpack(key)[1]].name = name.decode("utf-8", "surrogateescape")
            self._txn.delete(key, db=self._db["due"])

    def _is_lost(self, entry: tuple[bytes, bytes]) -> bool:
        return len(entry[0]) == DUE_KEY.size and DUE_KEY.unpack(entry[0])[1] in self._lost

    def _settle_queues(self) -> None:
        if self._lost:
            self._take_from_due()
        schedule = self._txn.cursor(self._db["schedule"])
        for queue_id, queue in self._queues.items():
            if queue_id in self._lost:
                self._make_anew(queue_id, queue)
                if not queue.name:
                    continue
            key = QUEUE_KEY.pack(queue_id)
            name = queue.name.encode("utf-8", "surrogateescape")
            due_us = -1
            if schedule.set_range(key) and schedule.key().startswith(key):
                due_us = SCHEDULE_KEY.unpack(schedule.key())[1]
            if due_us != queue.next_due_us:
                if queue.next_due_us >= 0:
                    self._txn.delete(DUE_KEY.pack(queue.next_due_us, queue_id), db=self._db["due"])
                if due_us >= 0:
                    self._txn.put(DUE_KEY.pack(due_us, queue_id), name, db=self._db["due"])
            queue.next_due_us = due_us
            if due_us >= 0:
                self._txn.put(key, pack_queue(queue), db=self._db["queues"])
            else:
                self._txn.delete(key, db=self._db["queues"])
                self._txn.delete(name_key(queue.name), db=self._db["names"])
            self.touched.append((queue.name, due_us if due_us >= 0 else None))

    # -- segments ------------------------------------------------------------------------------------------------------

    def _use(self, place: BodyRef, messages: int) -> None:
        """A message comes into a segment (1), or leaves it (-1)."""
        use = self._came_or_went.get(place.segment, SegmentUse(0, 0))
        self._came_or_went[place.segment] = SegmentUse(use.messages + messages, use.bytes + messages * place.length)

    def _settle_segments(self) -> None:
        for number, change in self._came_or_went.items():
            use = self.segments.get(number, SegmentUse(0, 0))
            use = SegmentUse(use.messages + change.messages, max(0, use.bytes + change.bytes))
            key = SEGMENT_KEY.pack(number)
            if use.messages > 0:
                self.segments[number] = use
                self._txn.put(key, SEGMENT_USE.pack(*use), db=self._db["segments"])
            else:
                self.segments.pop(number, None)
                self._txn.delete(key, db=self._db["segments"])
