"""What is queued in a shard: the index, and beyond its checkpoint the journal, put together in memory.

Nothing is written: `recover` would take the rest of the journal into the index, here it stays beside it (`Effects`).
That rest is what two checkpoints may have: some 40,000 changed deliveries, if the store wrote it.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from mta.queue.effects import Effects, Key
from mta.queue.encoding import (
    UNREADABLE,
    ShardState,
    delivery_value,
    message_head,
    message_value,
    unpack_delivery,
    unpack_message,
)
from mta.queue.fileops import FileOps
from mta.queue.ids import SHARD_BITS
from mta.queue.index import DATABASES, DELIVERY_KEY, MESSAGE_KEY, STATE_KEY, Index
from mta.queue.records import BodyRef, Delivery, Message
from mta.queue.shard import boot_id


class ReadOnlyIndex(Index):
    """An index that is opened without writing a byte, and without a lock file. Raises lmdb.Error and OSError."""

    def _open(self) -> None:
        self.env = lmdb.open(
            str(self._path), map_size=self._map_size, subdir=True, lock=False, max_dbs=len(DATABASES), readonly=True,
            create=False, readahead=True, lib_version=0,
        )
        self.db: dict[str, Any] = {name: self.env.open_db(name.encode(), create=False) for name in DATABASES}
        self.state = ShardState()
        self.segments = {}

    @classmethod
    def of(cls, path: Path) -> ReadOnlyIndex:
        """The index in the directory `path`."""
        size = (path / "data.mdb").stat().st_size
        return cls(path, max(size, 1 << 20), FileOps())

    def raw_state(self) -> bytes | None:
        """The record of the state."""
        with self.env.begin() as txn:
            value: bytes | None = txn.get(STATE_KEY, db=self.db["state"])
            return value


@dataclass(slots=True)
class Held:
    """A message in the queue, with those of its deliveries that are readable."""

    message: Message
    place: BodyRef
    deliveries: list[Delivery]


class Truth:
    """What the store would have in its queue if it were started now."""

    def __init__(self, index: Index, state: ShardState, effects: Effects, where: str,
                 suspects: set[Key]) -> None:
        """`where` is the place of the index, for people; `suspects` are marked as possibly delivered."""
        self.where = where
        self.state = state
        self.effects = effects
        self._suspects = suspects
        self._suspect_before_us = state.dup_before_us
        if not state.clean and state.boot_id != boot_id():
            self._suspect_before_us = max(time.time_ns() // 1000, state.last_id >> SHARD_BITS)  # as `begin_life` has it
        self._index = index
        self._gone: Counter[int] = Counter()  # deliveries of messages in the index that the journal removes
        self._born: dict[int, list[int]] = {}  # those of messages that are not in the index
        for key, delivery in effects.deliveries.items():
            if delivery is not None and delivery.born:
                self._born.setdefault(key[0], []).append(key[1])
            elif delivery is None and index.has_delivery(key):
                self._gone[key[0]] += 1

    def may_have_been_delivered(self, delivery: Delivery) -> bool:
        """Whether the next attempt would be announced as a possible duplicate."""
        return (delivery.maybe_duplicate or delivery.key in self._suspects
                or delivery.due_us <= self._suspect_before_us)

    def places(self, message_ids: list[int]) -> dict[int, BodyRef]:
        """Where the contents of those messages lie that are in the queue."""
        found: dict[int, BodyRef] = {}
        with self._index.env.begin() as txn:
            cursor = txn.cursor(self._index.db["messages"])
            for raw_key, value in cursor.getmulti([MESSAGE_KEY.pack(number) for number in message_ids]):
                message_id = MESSAGE_KEY.unpack(raw_key)[0]
                place, left = self._head(value)
                if place is not None and self._gone.get(message_id, 0) < left:
                    found[message_id] = self._moved(message_id, place)
        for message_id in message_ids:
            new = self.effects.messages.get(message_id)
            if new is not None:
                found[message_id] = new.body
        return found

    def messages(self) -> Iterator[Held]:
        """Every message in the queue. Records that are damaged are left out."""
        yield from self._indexed()
        for new in self.effects.messages.values():
            message = self._message(message_value(new.record, new.body, new.left), new.id)
            if message is not None:
                yield Held(message, new.body, list(self._new_deliveries(message)))

    def _indexed(self) -> Iterator[Held]:
        held: Held | None = None
        with self._index.env.begin() as txn:
            for key, value in txn.cursor(self._index.db["messages"]):
                if len(key) == MESSAGE_KEY.size:
                    if held is not None and held.deliveries:
                        yield held
                    held = None
                    message_id = MESSAGE_KEY.unpack(key)[0]
                    message = self._message(value, message_id)
                    if message is not None and message.body is not None:
                        message.body = self._moved(message_id, message.body)
                        held = Held(message, message.body, [])
                elif len(key) == DELIVERY_KEY.size and held is not None:
                    message_id, number = DELIVERY_KEY.unpack(key)
                    if message_id == held.message.id:
                        delivery = self._delivery(value, held.message, number)
                        if delivery is not None:
                            held.deliveries.append(delivery)
            if held is not None and held.deliveries:
                yield held

    def _delivery(self, value: bytes, message: Message, number: int) -> Delivery | None:
        """The delivery in a value of the index, as the journal has it; None when it is gone or damaged."""
        key = (message.id, number)
        if key in self.effects.deliveries:
            state = self.effects.deliveries[key]
            if state is None:
                return None
            value = delivery_value(state.record, 0, state.due_us, state.recipients)
        try:
            return unpack_delivery(value, message, number)
        except UNREADABLE:
            return None

    def _new_deliveries(self, message: Message) -> Iterator[Delivery]:
        for number in self._born.get(message.id, ()):
            delivery = self._delivery(b"", message, number)
            if delivery is not None:
                yield delivery

    def _message(self, value: bytes, message_id: int) -> Message | None:
        try:
            return unpack_message(value, message_id)
        except UNREADABLE:
            return None

    @staticmethod
    def _head(value: bytes) -> tuple[BodyRef | None, int]:
        try:
            return message_head(value)
        except struct.error:
            return None, 0

    def _moved(self, message_id: int, place: BodyRef) -> BodyRef:
        moved = self.effects.moves.get(message_id)
        return moved[1] if moved is not None and moved[0] == place else place
