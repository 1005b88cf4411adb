"""Transactions, and the operations of the journal that they become.

An operation is a few msgpack objects in a row, the first of which is an array that begins with its code. Those that
bring content (`ACCEPT`, `MOVE`) use up the blobs of their frame in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from mta.queue.effects import DeliveryState, Effects, Key, NewMessage
from mta.queue.encoding import pack, pack_delivery, pack_message, summary_of, unpacker
from mta.queue.errors import StoreError
from mta.queue.records import BodyRef, Delivery, Message

ACCEPT: Final = 1  # (code, message id, (index of each delivery...)), message record, delivery records
UPDATE: Final = 2  # (code, message id, index), delivery record
REMOVE: Final = 3  # (code, message id, index)
EVENTS: Final = 4  # (code, lines)
MARK: Final = 5  # (code, key, value)
UNMARK: Final = 6  # (code, key)
MOVE: Final = 7  # (code, message id, place the content is moved from...)

Done = Callable[[StoreError | None], None]

NOWHERE: Final = BodyRef(0, 0, 0, 0)

_MAX_INDEX: Final = 65_535
_MAX_ID: Final = (1 << 64) - 1
_MAX_TIME: Final = (1 << 63) - 1
_MAX_MARK: Final = 500


@dataclass(slots=True)
class Transaction:
    """Changes that become durable together or not at all.

    The deliveries that are accepted have distinct indexes below 65,536, and there is at least one for each message.
    """

    accepts: Sequence[tuple[Message, Sequence[Delivery]]] = ()
    updates: Sequence[Delivery] = ()
    removes: Sequence[Delivery] = ()
    events: Sequence[bytes] = ()  # one JSON line each, without the newline
    marks: Sequence[tuple[bytes, bytes]] = ()  # keys to remember, each with a value: `Store.has_mark`
    unmarks: Sequence[bytes] = ()


@dataclass(slots=True)
class Move:
    """Content that is copied from an old segment to the end of the journal, so that the old one can go."""

    message_id: int
    old: BodyRef
    content: bytes


@dataclass(slots=True)
class Encoded:
    """A transaction as it goes to the disk, and what is to be done when it is there."""

    operations: bytes  # all but the events: those of a group become one operation
    blobs: list[bytes]
    size: int
    events: bytes  # each line with its newline
    must: bool  # it settles something: no failure may drop it
    changed: Sequence[Key]  # the deliveries that were there before and change by this
    done: Done | None = None
    accepts: Sequence[tuple[Message, NewMessage, list[DeliveryState]]] = ()
    updates: Sequence[DeliveryState] = ()
    removes: Sequence[Key] = ()
    marks: Sequence[tuple[bytes, bytes | None]] = ()
    moves: Sequence[Move] = ()

    def apply(self, effects: Effects, places: Iterator[BodyRef]) -> None:
        """Enter what is durable now into `effects`; `places` goes on with where the blobs are.

        Hot path (bench/store.py).
        """
        for message, new, states in self.accepts:
            message.body = new.body = next(places)
            effects.accept(new, states)
        for state in self.updates:
            effects.update(state)
        for key in self.removes:
            effects.remove(key)
        for name, value in self.marks:
            effects.mark(name, value)
        for move in self.moves:
            effects.move(move.message_id, move.old, next(places))


def encode(tx: Transaction, done: Done | None = None) -> Encoded:
    """Take down `tx` as it is now. Hot path (bench/store.py).

    Raises ValueError or UnicodeError for what the index could not hold; then nothing has happened.
    """
    parts: list[bytes] = []
    blobs: list[bytes] = []
    changed: list[Key] = []
    accepts = []
    updates = []
    removes = []
    for message, deliveries in tx.accepts:
        accepts.append(_encode_accept(message, deliveries, parts, blobs))
    for delivery in tx.updates:
        state = _state(delivery, False)
        parts.append(pack((UPDATE, *state.key)))
        parts.append(state.record)
        updates.append(state)
        changed.append(state.key)
    for delivery in tx.removes:
        key = delivery.key
        parts.append(pack((REMOVE, *key)))
        removes.append(key)
        changed.append(key)
    marks = _encode_marks(tx, parts) if tx.marks or tx.unmarks else ()
    lines = tx.events
    events = b"" if not lines else lines[0] + b"\n" if len(lines) == 1 else b"\n".join((*lines, b""))
    operations = b"".join(parts)
    size = len(operations) + len(events)
    for content in blobs:
        size += len(content)
    must = bool(changed or tx.unmarks or not accepts)
    return Encoded(operations, blobs, size, events, must, changed, done, accepts, updates, removes, marks)


def _encode_accept(message: Message, deliveries: Sequence[Delivery], parts: list[bytes], blobs: list[bytes]
                   ) -> tuple[Message, NewMessage, list[DeliveryState]]:
    content = message.content
    if content is None or not deliveries:
        raise ValueError("a message is accepted with its content and at least one delivery")
    record = pack_message(message)
    states = [_state(delivery, True) for delivery in deliveries]
    indexes = [delivery.index for delivery in deliveries]
    if len(indexes) > 1 and len(set(indexes)) < len(indexes):
        raise ValueError("two deliveries of one message have the same index")
    parts.append(pack((ACCEPT, message.id, indexes)))
    parts.append(record)
    parts.extend([state.record for state in states])
    blobs.append(content)
    return message, NewMessage(message.id, record, len(states), NOWHERE), states


def _encode_marks(tx: Transaction, parts: list[bytes]) -> list[tuple[bytes, bytes | None]]:
    parts.extend([pack((MARK, _mark_key(key), value)) for key, value in tx.marks])
    parts.extend([pack((UNMARK, _mark_key(key))) for key in tx.unmarks])
    return [*tx.marks, *((key, None) for key in tx.unmarks)]


def encode_events(lines: bytes) -> bytes:
    """The operation that brings the event lines of a group, after those that it tells of."""
    return pack((EVENTS, lines)) if lines else b""


def encode_moves(moves: list[Move], done: Done | None = None) -> Encoded:
    """The transaction that copies content to the end of the journal."""
    operations = b"".join(pack((MOVE, move.message_id, *move.old)) for move in moves)
    blobs = [move.content for move in moves]
    size = len(operations) + sum(map(len, blobs))
    return Encoded(operations, blobs, size, b"", False, (), done, moves=moves)


def _state(delivery: Delivery, born: bool) -> DeliveryState:
    message_id = delivery.message.id
    index = delivery.index
    due_us = delivery.due_us
    if not (0 <= index <= _MAX_INDEX and 0 < message_id <= _MAX_ID and 0 <= due_us <= _MAX_TIME):
        raise ValueError(f"message id {message_id}, index {index} or due time {due_us} is out of range")
    history = delivery.history
    return DeliveryState((message_id, index), delivery.queue, due_us, len(delivery.recipients),
                         pack_delivery(delivery), history[-1] if history else None, born)


def _mark_key(key: bytes) -> bytes:
    if not 0 < len(key) <= _MAX_MARK:
        raise ValueError(f"the key of a mark has 1 to {_MAX_MARK} bytes")
    return key


# -- reading them back -------------------------------------------------------------------------------------------------


def replay(operations: bytes, blobs: Sequence[BodyRef], effects: Effects | None) -> bytes:
    """Enter the operations of a frame into `effects`, as `Encoded.apply` did; returns the event lines in them.

    `blobs` is where the contents of the frame are. Without `effects` only the events are looked for.
    """
    events = []
    place = iter(blobs)
    for head, records in _split(operations):
        code, *values = head
        if code == EVENTS:
            events.append(values[0])
        elif effects is None:
            continue
        elif code == ACCEPT:
            message_id, indexes = values
            states = [_replayed((message_id, index), record, True)
                      for index, record in zip(indexes, records[1:], strict=True)]
            effects.accept(NewMessage(message_id, records[0], len(states), next(place)), states)
        elif code == UPDATE:
            effects.update(_replayed((values[0], values[1]), records[0], False))
        elif code == REMOVE:
            effects.remove((values[0], values[1]))
        elif code == MOVE:
            effects.move(values[0], BodyRef(*values[1:]), next(place))
        elif code == MARK:
            effects.mark(values[0], values[1])
        elif code == UNMARK:
            effects.mark(values[0], None)
        else:
            raise ValueError(f"unknown operation {code} in the journal")
    return b"".join(events)


def contents(operations: bytes, blobs: Sequence[BodyRef]) -> Iterator[tuple[int, BodyRef]]:
    """The message ids whose contents a frame brings, and where they are."""
    place = iter(blobs)
    for head, _ in _split(operations):
        if head[0] in (ACCEPT, MOVE):
            blob = next(place, None)
            if blob is None:
                raise ValueError("a frame with fewer contents than messages")
            yield head[1], blob


def _split(operations: bytes) -> Iterator[tuple[tuple[Any, ...], list[bytes]]]:
    """Each operation's array and the records after it. Raises ValueError and the like for what is none."""
    stream = unpacker(operations)
    end = stream.tell()
    while end < len(operations):
        records = []
        try:
            head = stream.unpack()
            end = stream.tell()
            for _ in range(1 + len(head[2]) if head[0] == ACCEPT else head[0] == UPDATE):
                start = end
                stream.skip()
                end = stream.tell()
                records.append(operations[start:end])
        except msgpack.OutOfData:  # which is no ValueError
            raise ValueError("an operation without its end") from None
        yield head, records


def _replayed(key: Key, record: bytes, born: bool) -> DeliveryState:
    queue, due_us, recipients, last = summary_of(record)
    return DeliveryState(key, queue, due_us, recipients, record, last, born)
