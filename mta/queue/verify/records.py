"""Checks that the databases of an index agree with each other: records, schedule, queues, due times, use of segments.

Everything in an index but the database `messages` follows from that one. Three passes in the order of keys, each with
one look-up per delivery; memory is that of one message and one queue at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mta.queue.encoding import (
    UNREADABLE,
    QueueInfo,
    ShardState,
    delivery_head,
    message_head,
    name_key,
    unpack_delivery,
    unpack_message,
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
    SegmentUse,
)
from mta.queue.records import Message
from mta.queue.verify.problems import Findings
from mta.queue.verify.truth import ReadOnlyIndex

_TOLD_EVERY = 20_000


class RecordCheck:
    """One index, open for reading, as of its checkpoint."""

    def __init__(self, index: ReadOnlyIndex, state: ShardState, where: str, findings: Findings) -> None:
        """`where` is the index's place, for people."""
        self._db = index.db
        self._env = index.env
        self._state = state
        self._where = where
        self._findings = findings
        self._messages = 0
        self._recipients = 0
        self._deliveries = 0
        self._uses: dict[int, SegmentUse] = {}

    def run(self) -> None:
        """Check all of it. Raises lmdb.Error."""
        with self._env.begin() as txn:
            self._check_messages(txn)
            scheduled = self._check_schedule(txn)
            if scheduled != self._deliveries:
                self._find_unscheduled(txn)
            self._check_names(txn)
            self._check_segments(txn)
        self._check_state()

    def _add(self, kind: str, database: str, key: str, text: str) -> None:
        self._findings.add(kind, f"{self._where} {database} {key}".rstrip(), text)

    # -- messages and their deliveries ---------------------------------------------------------------------------------

    def _check_messages(self, txn: Any) -> None:
        message: Message | None = None
        left = found = 0
        total = txn.stat(self._db["messages"])["entries"]
        last_id = 0
        for count, (key, value) in enumerate(txn.cursor(self._db["messages"])):
            if count % _TOLD_EVERY == 0:
                self._findings.progress("index", count, total)
            if len(key) == MESSAGE_KEY.size:
                self._ended(message, left, found)
                last_id = MESSAGE_KEY.unpack(key)[0]
                message, left = self._message(last_id, value)
                found = 0
            elif len(key) == DELIVERY_KEY.size:
                message_id, number = DELIVERY_KEY.unpack(key)
                name = f"{format_id(message_id)}/{number}"
                if message_id != last_id:
                    self._add("record", "messages", name, "the delivery has no message")
                elif message is not None:
                    found += 1
                    self._delivery(txn, name, value, message, number)
            else:
                self._add("record", "messages", key.hex(), f"a key of {len(key)} bytes is none of a record")
        self._ended(message, left, found)
        if last_id > self._state.last_id:
            self._add("counts", "state", "last_id", f"the largest id is said to be {format_id(self._state.last_id)}, "
                      f"but there is {format_id(last_id)}")

    def _message(self, message_id: int, value: bytes) -> tuple[Message | None, int]:
        try:
            message = unpack_message(value, message_id)
            place, left = message_head(value)
        except UNREADABLE as error:
            self._add("record", "messages", format_id(message_id), f"the record of the message is damaged: {error!r}")
            return None, 0
        self._messages += 1
        use = self._uses.get(place.segment, SegmentUse(0, 0))
        self._uses[place.segment] = SegmentUse(use.messages + 1, use.bytes + place.length)
        if message.size not in (place.length, 0):
            self._add("record", "messages", format_id(message_id),
                      f"the message is said to have {message.size} bytes, its content {place.length}")
        return message, left

    def _ended(self, message: Message | None, left: int, found: int) -> None:
        """All deliveries of a message have been seen."""
        if message is not None and left != found:
            self._add("counts" if found else "record", "messages", format_id(message.id),
                      f"the message is said to have {left} deliveries left, but has {found}")

    def _delivery(self, txn: Any, name: str, value: bytes, message: Message, number: int) -> None:
        try:
            delivery = unpack_delivery(value, message, number)
            queue_id, due_us, recipients = delivery_head(value)
        except UNREADABLE as error:
            self._add("record", "messages", name, f"the record of the delivery is damaged: {error!r}")
            return
        self._deliveries += 1
        self._recipients += recipients
        if (due_us, recipients) != (delivery.due_us, len(delivery.recipients)):
            self._add("record", "messages", name, "the head of the record says another due time or number of "
                      "recipients than the record")
        if txn.get(name_key(delivery.queue), db=self._db["names"]) != QUEUE_KEY.pack(queue_id):
            self._add("record", "messages", name, f"its queue {delivery.queue!r} has not the number {queue_id}")

    def _find_unscheduled(self, txn: Any) -> None:
        """The numbers of records and of entries in the schedule differ: say which have none."""
        for key, value in txn.cursor(self._db["messages"]):
            if len(key) == DELIVERY_KEY.size and len(value) >= SCHEDULE_KEY.size:
                message_id, number = DELIVERY_KEY.unpack(key)
                queue_id, due_us, _ = delivery_head(value)
                if txn.get(SCHEDULE_KEY.pack(queue_id, due_us, message_id, number), db=self._db["schedule"]) is None:
                    self._add("record", "messages", f"{format_id(message_id)}/{number}",
                              "the delivery is not in the schedule: it would never be tried")

    # -- the schedule, queue by queue ----------------------------------------------------------------------------------

    def _check_schedule(self, txn: Any) -> int:
        """Compare what the schedule has of each queue with what the queue says; how many entries there are."""
        scheduled = 0
        queues = self._queues(txn)
        counted = self._counted(txn)
        known, real = next(queues, None), next(counted, None)
        while known is not None or real is not None:
            if real is None or (known is not None and known[0] < real[0]):
                assert known is not None
                self._add("counts", "queues", str(known[0]), f"queue {known[1].name!r} has no delivery")
                known = next(queues, None)
                continue
            scheduled += real[1].deliveries
            if known is None or real[0] < known[0]:
                self._add("record", "queues", str(real[0]), f"{real[1].deliveries} deliveries are scheduled in a queue "
                          "that is not there")
            else:
                self._compare(txn, known[0], known[1], real[1])
                known = next(queues, None)
            real = next(counted, None)
        return scheduled

    def _queues(self, txn: Any) -> Iterator[tuple[int, QueueInfo]]:
        for key, value in txn.cursor(self._db["queues"]):
            try:
                yield QUEUE_KEY.unpack(key)[0], unpack_queue(value)
            except UNREADABLE as error:
                self._add("counts", "queues", key.hex(), f"the record of the queue is damaged: {error!r}")

    def _counted(self, txn: Any) -> Iterator[tuple[int, QueueInfo]]:
        """What the schedule and the deliveries in it make of each queue."""
        queue_id, queue = -1, QueueInfo("")
        total = txn.stat(self._db["schedule"])["entries"]
        for count, key in enumerate(txn.cursor(self._db["schedule"]).iternext(keys=True, values=False)):
            if count % _TOLD_EVERY == 0:
                self._findings.progress("schedule", count, total)
            if len(key) != SCHEDULE_KEY.size:
                self._add("record", "schedule", key.hex(), f"a key of {len(key)} bytes is none of the schedule")
                continue
            its_queue, due_us, message_id, number = SCHEDULE_KEY.unpack(key)
            if its_queue != queue_id:
                if queue.deliveries:
                    yield queue_id, queue
                queue_id, queue = its_queue, QueueInfo("", next_due_us=due_us)
            queue.deliveries += 1
            value = txn.get(DELIVERY_KEY.pack(message_id, number), db=self._db["messages"])
            name = f"{format_id(message_id)}/{number}"
            if value is None or len(value) < SCHEDULE_KEY.size:
                self._add("record", "schedule", name, "a delivery is scheduled that has no record")
                continue
            at_queue, at_us, recipients = delivery_head(value)
            queue.recipients += recipients
            if (at_queue, at_us) != (queue_id, due_us):
                self._add("record", "schedule", name, "the delivery is scheduled for another queue or time than its "
                          "record says")
        if queue.deliveries:
            yield queue_id, queue

    def _compare(self, txn: Any, queue_id: int, known: QueueInfo, real: QueueInfo) -> None:
        name = f"{queue_id} ({known.name!r})"
        if (known.deliveries, known.recipients) != (real.deliveries, real.recipients):
            self._add("counts", "queues", name, f"the queue is said to have {known.deliveries} deliveries to "
                      f"{known.recipients} recipients, but has {real.deliveries} to {real.recipients}")
        if known.next_due_us != real.next_due_us:
            self._add("counts", "queues", name, f"the next delivery is said to be due at {known.next_due_us}, but is "
                      f"due at {real.next_due_us}")
        text = known.name.encode("utf-8", "surrogateescape")
        if txn.get(DUE_KEY.pack(real.next_due_us, queue_id), db=self._db["due"]) != text:
            self._add("counts", "due", name, "the queue is not where its next delivery is due: it might wait for ever")
        if txn.get(name_key(known.name), db=self._db["names"]) != QUEUE_KEY.pack(queue_id):
            self._add("counts", "names", name, "the name does not lead to the queue")
        if queue_id >= self._state.next_queue_id:
            self._add("counts", "state", "next_queue_id", f"it is {self._state.next_queue_id}, but there is a queue "
                      f"{queue_id}")

    # -- what is derived -----------------------------------------------------------------------------------------------

    def _check_names(self, txn: Any) -> None:
        """Each queue was found in `due` and `names`; so if the numbers agree, nothing else is there."""
        queues, due, names = (txn.stat(self._db[name])["entries"] for name in ("queues", "due", "names"))
        if due != queues:
            self._add("counts", "due", "", f"{due} entries for {queues} queues")
        if names != queues:
            self._add("counts", "names", "", f"{names} entries for {queues} queues")

    def _check_segments(self, txn: Any) -> None:
        said: dict[int, SegmentUse] = {}
        for key, value in txn.cursor(self._db["segments"]):
            try:
                said[SEGMENT_KEY.unpack(key)[0]] = SegmentUse(*SEGMENT_USE.unpack(value))
            except UNREADABLE as error:
                self._add("counts", "segments", key.hex(), f"the record is damaged: {error!r}")
        nothing = SegmentUse(0, 0)
        for number in sorted(said.keys() | self._uses.keys()):
            if said.get(number, nothing) != (real := self._uses.get(number, nothing)):
                self._add("counts", "segments", str(number), f"{said.get(number, nothing).messages} contents are said "
                          f"to be needed in the segment, but {real.messages} are")

    def _check_state(self) -> None:
        said = (self._state.messages, self._state.deliveries, self._state.recipients)
        real = (self._messages, self._deliveries, self._recipients)
        if said != real:
            self._add("counts", "state", "", f"the shard is said to hold {said[0]} messages, {said[1]} deliveries and "
                      f"{said[2]} recipients, but holds {real[0]}, {real[1]} and {real[2]}")
