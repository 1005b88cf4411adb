"""The index of one shard: an LMDB environment that holds the state of the queue as of the last checkpoint.

All use of an index is on one thread at a time: there are no locks in it. `mta.queue.checkpoint` writes it, in one
transaction per checkpoint; here it is opened and read.

    state      b"state" -> ShardState
    messages   message id 8 -> place of the content, deliveries left, record
               message id 8, index 2 -> queue id, due time, recipients, record of the delivery
    schedule   queue id 8, due time 8, message id 8, index 2 -> b""
    queues     queue id 8 -> QueueInfo
    names      queue name -> queue id 8
    due        due time 8, queue id 8 -> queue name: each queue once, by the first of its deliveries
    segments   segment number 4 -> messages 4, bytes 8 in it that are still needed
    marks      key -> value

Whatever is read leaves out nothing but what `hidden` names. A record that cannot be read back is left out and
told (`Index.damaged`), so that the others are delivered. Raises lmdb.Error and OSError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Any, Final, NamedTuple

import lmdb

from mta.queue.effects import Key
from mta.queue.encoding import (
    UNREADABLE,
    QueueInfo,
    ShardState,
    message_head,
    name_key,
    unpack_delivery,
    unpack_message,
    unpack_queue,
    unpack_state,
)
from mta.queue.fileops import FileOps
from mta.queue.ids import SHARD_BITS, format_id
from mta.queue.orders import HELD_US
from mta.queue.records import BodyRef, Delivery, Message

MESSAGE_KEY: Final = Struct(">Q")
DELIVERY_KEY: Final = Struct(">QH")
SCHEDULE_KEY: Final = Struct(">QQQH")
DUE_KEY: Final = Struct(">QQ")
QUEUE_KEY: Final = Struct(">Q")
SEGMENT_KEY: Final = Struct(">I")
SEGMENT_USE: Final = Struct(">IQ")
STATE_KEY: Final = b"state"

DATABASES: Final = ("state", "messages", "schedule", "queues", "names", "due", "segments", "marks")
DAMAGE: Final = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.BadTxnError, struct.error)
"""What a damaged page raises, or a key of another length than it has: it does not go away by itself."""
REPAIR: Final = "stop the MTA and run `mta spool verify --repair`"
_SLICE: Final = 5000  # entries looked at in one piece of a long listing
_TOLD: Final = 100  # damaged records that the operator is told of
_LOST: Final = 1000  # messages on damaged pages that are passed over, one read for each

Hidden = Callable[[Key], bool]
"""Whether a delivery is to be left out."""


class SegmentUse(NamedTuple):
    """What of a segment is still needed."""

    messages: int
    bytes: int


class Index:
    """One environment, open, with what is read at every start: a bounded amount."""

    _synced = True  # a commit is durable when it returns

    def __init__(self, path: Path, map_size: int, files: FileOps) -> None:
        """Open, or create."""
        self.files = files
        self.problems: list[str] = []
        self.damage = ""  # what the operator has to know and to do, when something in it was found damaged
        self._told: set[str] = set()
        self.lost: set[int] = set()  # messages with records on damaged pages, which are passed over
        self.suspects: set[Key] = set()  # deliveries that a crash may have interrupted after the final dot
        self._path = path
        self._map_size = map_size
        self._open()
        self.is_open = True

    def _open(self) -> None:
        path = self._path / "data.mdb"
        if not path.exists():
            self._create(path)
        self.env = self._environment(path)
        self.db: dict[str, Any] = {name: self.env.open_db(name.encode()) for name in DATABASES}
        with self.env.begin() as txn:
            txn.cursor(self.db["marks"]).first()  # a start that asks for orders would wait for ever
            raw = txn.get(STATE_KEY, db=self.db["state"])
            try:
                self.state = ShardState() if raw is None else unpack_state(raw)
                self.segments: dict[int, SegmentUse] = {
                    SEGMENT_KEY.unpack(key)[0]: SegmentUse(*SEGMENT_USE.unpack(value))
                    for key, value in txn.cursor(self.db["segments"])
                }
            except UNREADABLE as error:
                raise lmdb.CorruptedError("what it says of the journal makes no sense: "
                                          f"{str(error) or type(error).__name__}") from None

    def _create(self, path: Path) -> None:
        """Make it beside its place: LMDB cannot open a file that it was killed in when it began it."""
        new = path.with_name(path.name + ".new")
        if new.exists():
            self.files.unlink(new)
        with self._environment(new) as env:
            for name in DATABASES:
                env.open_db(name.encode())
        self.files.rename(new, path)
        self.files.fsync_directory(self._path)

    def _environment(self, path: Path) -> lmdb.Environment:
        return lmdb.open(
            str(path), map_size=self._map_size, subdir=False, lock=False, max_dbs=len(DATABASES), mode=0o600,
            readahead=False, sync=self._synced, metasync=self._synced, lib_version=0,
        )

    def reopen(self) -> None:
        """Open it again, with what is on disk now. Raises lmdb.Error; then it is closed."""
        self.close()
        self._open()
        self.is_open = True

    def close(self) -> None:
        """Close the environment."""
        self.is_open = False
        self.env.close()

    def damaged(self, what: str, error: Exception | None = None) -> None:
        """Something in the index is damaged: tell the operator, each thing once, and first of all what to do."""
        if error is not None:
            what += f": {str(error) or type(error).__name__}"
        if what in self._told or len(self._told) >= _TOLD:
            return
        if not self.damage:
            self.damage = (f"{self._path / 'data.mdb'} is damaged: {what}; what can be read goes on, the rest waits "
                           f"where it is until you {REPAIR}")
        self.problems.append(what if self._told else self.damage)
        self._told.add(what)

    def used_share(self) -> float:
        """How much of the map is in use, 0 to 1. Free pages inside the file are not in use."""
        pages = 0
        with self.env.begin() as txn:
            for db in self.db.values():
                usage = txn.stat(db)
                pages += usage["branch_pages"] + usage["leaf_pages"] + usage["overflow_pages"]
        return pages * self.env.stat()["psize"] / self.env.info()["map_size"]

    # -- for the scheduler ---------------------------------------------------------------------------------------------

    def due(self, queue: str, before_us: int, limit: int, hidden: Hidden) -> tuple[list[Delivery], int | None]:
        """The first `limit` deliveries of a queue due at or before `before_us`, and when the next one is due."""
        found: list[Delivery] = []
        with self.env.begin() as txn:
            queue_id = txn.get(name_key(queue), db=self.db["names"])
            if queue_id is None:
                return found, None
            if len(queue_id) != QUEUE_KEY.size:
                raise lmdb.CorruptedError(f"the number of the queue {queue}")
            messages: dict[int, Message | None] = {}
            cursor = txn.cursor(self.db["schedule"])
            more = cursor.set_range(queue_id)
            while more:
                key = cursor.key()
                if not key.startswith(queue_id):
                    break
                _, due_us, message_id, index = SCHEDULE_KEY.unpack(key)
                if not hidden((message_id, index)):
                    if due_us > before_us or len(found) >= limit:
                        return found, due_us
                    delivery = self.delivery(txn, message_id, index, messages)
                    if delivery is not None:
                        found.append(delivery)
                more = cursor.next()
        return found, None

    def due_queues(self, after: bytes, limit: int) -> tuple[list[tuple[int, str]], bytes | None]:
        """The next `limit` queues by due time after the key `after`, and the key of the last; None if that was all.

        Those behind a damaged page are left out: they are found when a checkpoint changes them.
        """
        items: list[tuple[bytes, bytes]] = []
        last = None
        while limit:
            try:
                items, last = self.page("due", after, limit)
                break
            except DAMAGE as error:  # LMDB does not read on behind it: what is before it, at least
                self.damaged("queues that are due later are not found", error)
                limit //= 2
        return [(DUE_KEY.unpack(key)[0], name.decode("utf-8", "surrogateescape")) for key, name in items
                if len(key) == DUE_KEY.size], last

    def arrived_before(self, before_us: int, limit: int, hidden: Hidden) -> list[Delivery]:
        """The first `limit` deliveries of messages accepted before `before_us`, the oldest message first."""
        return self.arrived_between(b"", before_us, limit, hidden)[0]

    def arrived_between(self, after: bytes, before_us: int, limit: int,
                        hidden: Hidden) -> tuple[list[Delivery], bytes | None]:
        """The same behind the key `after` (b"": from the start), and the key of the last; None when none was left."""
        found: list[Delivery] = []
        last = None
        with self.env.begin() as txn:
            messages: dict[int, Message | None] = {}
            cursor = txn.cursor(self.db["messages"])
            more = cursor.set_range(after) if after else cursor.first()
            if more and cursor.key() == after:
                more = cursor.next()
            while more and len(found) < limit:
                key = cursor.key()
                if MESSAGE_KEY.unpack_from(key)[0] >> SHARD_BITS >= before_us:
                    break
                last = key
                if len(key) == DELIVERY_KEY.size:
                    message_id, index = DELIVERY_KEY.unpack(key)
                    if not hidden((message_id, index)):
                        delivery = self.delivery(txn, message_id, index, messages)
                        if delivery is not None:
                            found.append(delivery)
                more = cursor.next()
        return found, last

    def due_after(self, after_us: int, start: bytes, limit: int,
                  hidden: Hidden) -> tuple[list[Delivery], bytes | None]:
        """Up to `limit` deliveries of any queue due after `after_us`, from the key `start` on (b"": the first).

        Also returns the key to go on from; None at the end. It costs two seeks for every queue.
        """
        found: list[Delivery] = []
        with self.env.begin() as txn:
            messages: dict[int, Message | None] = {}
            cursor = txn.cursor(self.db["schedule"])
            more = cursor.set_range(start) if start else cursor.first()
            looked_at = 0
            while more:
                key = cursor.key()
                if len(found) >= limit or looked_at >= _SLICE:
                    return found, key
                looked_at += 1
                queue_id, due_us, message_id, index = SCHEDULE_KEY.unpack(key)
                if due_us <= after_us:
                    more = cursor.set_range(SCHEDULE_KEY.pack(queue_id, after_us + 1, 0, 0))
                    continue
                if due_us >= HELD_US:  # an operator wants it so
                    more = cursor.set_range(QUEUE_KEY.pack(queue_id + 1))
                    continue
                if not hidden((message_id, index)):
                    delivery = self.delivery(txn, message_id, index, messages)
                    if delivery is not None:
                        found.append(delivery)
                more = cursor.next()
        return found, None

    # -- for the store -------------------------------------------------------------------------------------------------

    def place(self, message_id: int) -> BodyRef | None:
        """Where the content of a message lies now."""
        with self.env.begin() as txn:
            value = txn.get(MESSAGE_KEY.pack(message_id), db=self.db["messages"])
            return None if value is None else self._place(message_id, value)

    def places(self, message_ids: list[int]) -> dict[int, BodyRef]:
        """The same of those that are there."""
        with self.env.begin() as txn:
            values = txn.cursor(self.db["messages"]).getmulti([MESSAGE_KEY.pack(number) for number in message_ids])
            found = [(MESSAGE_KEY.unpack(key)[0], value) for key, value in values]
        return {one: place for one, value in found if (place := self._place(one, value)) is not None}

    def _place(self, message_id: int, value: bytes) -> BodyRef | None:
        try:
            return message_head(value)[0]
        except struct.error as error:
            self.damaged(f"the record of message {format_id(message_id)}", error)
            return None

    def has_delivery(self, key: Key) -> bool:
        """Whether a delivery is in the queue. Raises lmdb.Error."""
        with self.env.begin() as txn:
            return txn.get(DELIVERY_KEY.pack(*key), db=self.db["messages"]) is not None

    def mark(self, key: bytes) -> bytes | None:
        """The value of a mark."""
        with self.env.begin() as txn:
            return txn.get(key, db=self.db["marks"])

    def marks(self, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """The first `limit` marks with keys above `after`."""
        return self.page("marks", after, limit)[0]

    def page(self, database: str, after: bytes, limit: int) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """The next `limit` entries behind the key `after` (b"": the first), and the last key; None if that was all."""
        found: list[tuple[bytes, bytes]] = []
        with self.env.begin() as txn:
            cursor = txn.cursor(self.db[database])
            more = cursor.set_range(after) if after else cursor.first()
            if more and cursor.key() == after:
                more = cursor.next()
            while more and len(found) < limit:
                found.append(cursor.item())
                more = cursor.next()
        return found, found[-1][0] if found and more else None

    # -- for operators -------------------------------------------------------------------------------------------------

    def message(self, message_id: int) -> tuple[Message | None, list[Delivery]]:
        """A message and its deliveries."""
        prefix = MESSAGE_KEY.pack(message_id)
        deliveries = []
        if message_id in self.lost:
            raise lmdb.CorruptedError(f"message {format_id(message_id)} is on a damaged page")
        with self.env.begin() as txn:
            messages: dict[int, Message | None] = {}
            message = self.message_in(txn, message_id, messages)
            if message is not None:
                cursor = txn.cursor(self.db["messages"])
                cursor.set_range(prefix)
                while cursor.next() and cursor.key().startswith(prefix):
                    delivery = self.delivery(txn, message_id, DELIVERY_KEY.unpack(cursor.key())[1], messages)
                    if delivery is not None:
                        deliveries.append(delivery)
        return message, deliveries

    # -- inside --------------------------------------------------------------------------------------------------------

    def message_in(self, txn: Any, message_id: int, known: dict[int, Message | None]) -> Message | None:
        """One message in a transaction on the index, without content; `known` keeps those that were read in it."""
        if message_id not in known:
            known[message_id] = None
            value = self.record(txn, message_id, MESSAGE_KEY.pack(message_id))
            if value is not None:
                try:
                    known[message_id] = unpack_message(value, message_id)
                except UNREADABLE as error:
                    self.damaged(f"the record of message {format_id(message_id)}", error)
        return known[message_id]

    def delivery(self, txn: Any, message_id: int, index: int, known: dict[int, Message | None]) -> Delivery | None:
        """One delivery in a transaction on the index; `known` keeps the messages that were read in it."""
        if message_id in self.lost:
            return None
        value = self.record(txn, message_id, DELIVERY_KEY.pack(message_id, index))
        message = self.message_in(txn, message_id, known)
        if value is None or message is None:
            self.damaged(f"delivery {index} of message {format_id(message_id)} has no record")
            return None
        try:
            delivery = unpack_delivery(value, message, index)
        except UNREADABLE as error:
            self.damaged(f"the record of delivery {index} of message {format_id(message_id)}", error)
            return None
        if delivery.due_us <= self.state.dup_before_us or (message_id, index) in self.suspects:
            delivery.maybe_duplicate = True
        return delivery

    def record(self, txn: Any, message_id: int, key: bytes) -> bytes | None:
        """A record of a message in a transaction on the index; None if it is not there, or the message is `lost`."""
        if message_id in self.lost:
            return None
        try:
            value: bytes | None = txn.get(key, db=self.db["messages"])
            return value
        except DAMAGE:
            if len(self.lost) < _LOST:
                self.lost.add(message_id)
            raise

    def queue(self, key: bytes, value: bytes) -> QueueInfo | None:
        """The queue with this key and value; None when that is damaged."""
        try:
            return unpack_queue(value)
        except UNREADABLE as error:
            self.damaged(f"the record of queue {int.from_bytes(key, 'big')}", error)
            return None
