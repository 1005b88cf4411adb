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
reported in `problems`, so that the others are delivered. Raises lmdb.Error and OSError.
"""

from __future__ import annotations

import heapq
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from fnmatch import translate
from pathlib import Path
from struct import Struct
from typing import Any, Final, NamedTuple

import lmdb

from mta.queue.effects import Key
from mta.queue.encoding import (
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
from mta.queue.scheduler import tenant_of

MESSAGE_KEY: Final = Struct(">Q")
DELIVERY_KEY: Final = Struct(">QH")
SCHEDULE_KEY: Final = Struct(">QQQH")
DUE_KEY: Final = Struct(">QQ")
QUEUE_KEY: Final = Struct(">Q")
SEGMENT_KEY: Final = Struct(">I")
SEGMENT_USE: Final = Struct(">IQ")
STATE_KEY: Final = b"state"

DATABASES: Final = ("state", "messages", "schedule", "queues", "names", "due", "segments", "marks")
_SLICE: Final = 5000  # entries looked at in one piece of a long listing

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
            raw = txn.get(STATE_KEY, db=self.db["state"])
            self.state = ShardState() if raw is None else unpack_state(raw)
            self.segments: dict[int, SegmentUse] = {
                SEGMENT_KEY.unpack(key)[0]: SegmentUse(*SEGMENT_USE.unpack(value))
                for key, value in txn.cursor(self.db["segments"])
            }

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
        """The next `limit` queues by due time after the key `after`, and the key of the last; None if that was all."""
        found: list[tuple[int, str]] = []
        last = after
        with self.env.begin() as txn:
            cursor = txn.cursor(self.db["due"])
            more = cursor.set_range(after) if after else cursor.first()
            if more and cursor.key() == after:
                more = cursor.next()
            while more and len(found) < limit:
                last, name = cursor.item()
                found.append((DUE_KEY.unpack(last)[0], name.decode("utf-8", "surrogateescape")))
                more = cursor.next()
        return found, last if more else None

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
            return None if value is None else message_head(value)[0]

    def places(self, message_ids: list[int]) -> dict[int, BodyRef]:
        """The same of those that are there."""
        with self.env.begin() as txn:
            values = txn.cursor(self.db["messages"]).getmulti([MESSAGE_KEY.pack(number) for number in message_ids])
            return {MESSAGE_KEY.unpack(key)[0]: message_head(value)[0] for key, value in values}

    def has_delivery(self, key: Key) -> bool:
        """Whether a delivery is in the queue."""
        with self.env.begin() as txn:
            return txn.get(DELIVERY_KEY.pack(*key), db=self.db["messages"]) is not None

    def mark(self, key: bytes) -> bytes | None:
        """The value of a mark."""
        with self.env.begin() as txn:
            return txn.get(key, db=self.db["marks"])

    def marks(self, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """The first `limit` marks with keys above `after`."""
        found: list[tuple[bytes, bytes]] = []
        with self.env.begin() as txn:
            cursor = txn.cursor(self.db["marks"])
            more = cursor.set_range(after) if after else cursor.first()
            if more and cursor.key() == after:
                more = cursor.next()
            while more and len(found) < limit:
                found.append(cursor.item())
                more = cursor.next()
        return found

    # -- for operators -------------------------------------------------------------------------------------------------

    def message(self, message_id: int) -> tuple[Message | None, list[Delivery]]:
        """A message and its deliveries."""
        prefix = MESSAGE_KEY.pack(message_id)
        deliveries = []
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

    def listing(self, pattern: str, limit: int) -> Listing:
        """Begin to list the `limit` largest queues whose names match the shell pattern ("": all)."""
        return Listing(self, re.compile(translate(pattern or "*"), re.DOTALL | re.IGNORECASE), limit)

    def count_of_tenants(self, tenants: Collection[str]) -> TenantCount:
        """Begin to count the deliveries of these tenants."""
        return TenantCount(self, tenants)

    # -- inside --------------------------------------------------------------------------------------------------------

    def message_in(self, txn: Any, message_id: int, known: dict[int, Message | None]) -> Message | None:
        """One message in a transaction on the index, without content; `known` keeps those that were read in it."""
        if message_id not in known:
            known[message_id] = None
            value = txn.get(MESSAGE_KEY.pack(message_id), db=self.db["messages"])
            if value is not None:
                try:
                    known[message_id] = unpack_message(value, message_id)
                except (ValueError, TypeError, struct.error) as error:
                    self.problems.append(f"the record of message {format_id(message_id)} is damaged: {error}")
        return known[message_id]

    def delivery(self, txn: Any, message_id: int, index: int, known: dict[int, Message | None]) -> Delivery | None:
        """One delivery in a transaction on the index; `known` keeps the messages that were read in it."""
        value = txn.get(DELIVERY_KEY.pack(message_id, index), db=self.db["messages"])
        message = self.message_in(txn, message_id, known)
        if value is None or message is None:
            self.problems.append(f"delivery {index} of message {format_id(message_id)} has no record")
            return None
        try:
            delivery = unpack_delivery(value, message, index)
        except (ValueError, TypeError, struct.error) as error:
            self.problems.append(f"the record of delivery {index} of {format_id(message_id)} is damaged: {error}")
            return None
        if delivery.due_us <= self.state.dup_before_us or (message_id, index) in self.suspects:
            delivery.maybe_duplicate = True
        return delivery


class QueueTotals(NamedTuple):
    """The sums over all queues that a listing matched, shown or not."""

    queues: int
    deliveries: int
    recipients: int


class Pass(ABC):
    """A look at all queues, made in pieces, as there may be a million of them."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._after = b""

    def go_on(self) -> bool:
        """Look at the next piece; whether there is more."""
        with self._index.env.begin() as txn:
            cursor = txn.cursor(self._index.db["queues"])
            more = cursor.set_range(self._after) if self._after else cursor.first()
            looked_at = 0
            while more and looked_at < _SLICE:
                looked_at += 1
                self.look(unpack_queue(cursor.value()))
                more = cursor.next()
            if more:
                self._after = cursor.key()
        return more

    @abstractmethod
    def look(self, queue: QueueInfo) -> None:
        """What is wanted of each."""


class Listing(Pass):
    """The largest queues whose names match, and the sums over all that do."""

    def __init__(self, index: Index, pattern: re.Pattern[str], limit: int) -> None:
        super().__init__(index)
        self._pattern = pattern
        self._limit = limit
        self._largest: list[tuple[int, str, QueueInfo]] = []
        self._queues = 0
        self._deliveries = 0
        self._recipients = 0

    def result(self) -> tuple[list[QueueInfo], QueueTotals]:
        """The queues, the largest first, and the sums over all that match."""
        rows = [queue for _, _, queue in sorted(self._largest, key=lambda entry: (-entry[0], entry[1]))]
        return rows, QueueTotals(self._queues, self._deliveries, self._recipients)

    def look(self, queue: QueueInfo) -> None:
        """Count it, and keep it while it is among the largest."""
        if not self._pattern.match(queue.name):
            return
        self._queues += 1
        self._deliveries += queue.deliveries
        self._recipients += queue.recipients
        entry = (queue.deliveries, queue.name, queue)
        if len(self._largest) < self._limit:
            heapq.heappush(self._largest, entry)
        elif self._largest and entry[:2] > self._largest[0][:2]:
            heapq.heapreplace(self._largest, entry)


class TenantCount(Pass):
    """How many deliveries tenants have."""

    def __init__(self, index: Index, tenants: Collection[str]) -> None:
        super().__init__(index)
        self.found = dict.fromkeys(tenants, 0)

    def look(self, queue: QueueInfo) -> None:
        """Add it to its tenant's."""
        tenant = tenant_of(queue.name)
        if tenant in self.found:
            self.found[tenant] += queue.deliveries
