"""The records of the queue as bytes: msgpack arrays behind fixed-width fields, on disk for years.

Every array begins with the version of its layout. Fields are only ever appended, and a reader takes what is missing
from the defaults, so that a newer program reads older records. Strings may hold bytes that are no UTF-8
(surrogate escapes), as envelope addresses do.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from struct import Struct
from typing import Any, Final, NamedTuple

import msgpack

from mta.queue.records import Attempt, BodyRef, Delivery, Message, Recipient, Wishes

LAYOUT: Final = 1

# One packer for all: a packer must not be entered twice, and it never is, as its calls do not give up the GIL.
pack: Final[Callable[[object], bytes]] = msgpack.Packer(unicode_errors="surrogateescape").pack

UNREADABLE: Final = (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error)
"""What reading a damaged record may raise."""

_WARNED: Final = 1
_MAYBE_DUPLICATE: Final = 2


def _are(values: Iterable[object], kind: type) -> bool:
    """Whether all are of that kind: who reads a damaged record is told so here, and not wherever a field is used."""
    return {kind}.issuperset(map(type, values))


def unpack(raw: bytes) -> Any:
    """The value of one msgpack object."""
    return msgpack.unpackb(raw, use_list=False, unicode_errors="surrogateescape")


def unpacker(raw: bytes) -> msgpack.Unpacker:
    """An iterator over the msgpack objects in `raw`."""
    stream = msgpack.Unpacker(use_list=False, unicode_errors="surrogateescape", max_buffer_size=len(raw) + 1)
    stream.feed(raw)
    return stream


class Position(NamedTuple):
    """A place in the journal."""

    segment: int
    offset: int


class EventMark(NamedTuple):
    """How far the journal's event lines have got into the event files."""

    journal: Position  # the events of all frames before it are written
    file: str  # to this file, "" when there is none yet
    length: int  # up to this length


# -- messages ----------------------------------------------------------------------------------------------------------

_MESSAGE_HEAD: Final = Struct(">IQIII")  # segment, offset, length, CRC-32C, deliveries left


def pack_message(message: Message) -> bytes:
    """What does not change while a message is queued. Hot path (bench/store.py)."""
    record = (
        LAYOUT, message.sender, message.arrival_us, message.header_size, message.message_id, message.flags,
        message.ret, message.envid, message.origin, message.tenant, message.campaign, message.pool, message.size,
        message.deliveries,
    )
    return pack(record if message.wishes is None else (*record, message.wishes))


def message_value(record: bytes, body: BodyRef, left: int) -> bytes:
    """The value of a message in the index: where its content lies, how many deliveries are left, and its record."""
    return _MESSAGE_HEAD.pack(*body, left) + record


def message_head(value: bytes) -> tuple[BodyRef, int]:
    """The content's place and the number of deliveries left, from a value of the index."""
    segment, offset, length, crc, left = _MESSAGE_HEAD.unpack_from(value)
    return BodyRef(segment, offset, length, crc), left


def message_record(value: bytes) -> bytes:
    """The record in a value of the index."""
    return value[_MESSAGE_HEAD.size:]


def unpack_message(value: bytes, message_id: int) -> Message:
    """The message in a value of the index, without content. Raises ValueError when it is none."""
    return read_message(message_record(value), message_id, message_head(value)[0])


def read_message(record: bytes, message_id: int, body: BodyRef) -> Message:
    """The message with this record and its content at `body`. Raises ValueError, or another of UNREADABLE, when it is
    none."""
    (_, sender, arrival_us, header_size, name, flags, ret, envid, origin, tenant, campaign, pool, size,
     deliveries, *later) = unpack(record)
    if not _are((sender, name, ret, origin, tenant, campaign, pool), str) or not _are(
            (arrival_us, header_size, flags, size, deliveries), int):
        raise ValueError("a field of another kind than it has")
    return Message(
        id=message_id, sender=sender, arrival_us=arrival_us, content=None, header_size=header_size, message_id=name,
        flags=flags, ret=ret, envid=envid, origin=origin, tenant=tenant, campaign=campaign, pool=pool, body=body,
        size=size, deliveries=deliveries, wishes=_read_wishes(later[0]) if later else None,
    )


def _read_wishes(fields: object) -> Wishes:
    if not isinstance(fields, tuple):
        raise ValueError("wishes that are none")
    return Wishes(*fields[:len(Wishes._fields)])


# -- deliveries --------------------------------------------------------------------------------------------------------

_DELIVERY_HEAD: Final = Struct(">QQI")  # queue id, due time, recipients


def pack_delivery(delivery: Delivery) -> bytes:
    """All of a delivery but its key. Hot path (bench/store.py)."""
    return pack((
        LAYOUT, delivery.queue, None if delivery.domain == delivery.queue else delivery.domain, delivery.due_us,
        [r.address if not r.notify and r.orcpt is None else (r.address, r.notify, r.orcpt)
         for r in delivery.recipients],
        delivery.attempts,
        (_WARNED if delivery.warned else 0) | (_MAYBE_DUPLICATE if delivery.maybe_duplicate else 0),
        delivery.history, delivery.losses, delivery.source, delivery.avoid,
    ))


def delivery_value(record: bytes, queue_id: int, due_us: int, recipients: int) -> bytes:
    """The value of a delivery in the index: what the index itself needs, and the record."""
    return _DELIVERY_HEAD.pack(queue_id, due_us, recipients) + record


def delivery_head(value: bytes) -> tuple[int, int, int]:
    """Queue id, due time and number of recipients, from a value of the index."""
    head: tuple[int, int, int] = _DELIVERY_HEAD.unpack_from(value)
    return head


def delivery_record(value: bytes) -> bytes:
    """The record in a value of the index."""
    return value[_DELIVERY_HEAD.size:]


def unpack_delivery(value: bytes, message: Message, index: int) -> Delivery:
    """The delivery in a value of the index. Raises ValueError when it is none."""
    return read_delivery(delivery_record(value), message, index)


def read_delivery(record: bytes, message: Message, index: int) -> Delivery:
    """The delivery with this record. Raises ValueError, or another of UNREADABLE, when it is none."""
    _, queue, domain, due_us, recipients, attempts, flags, history, *later = unpack(record)
    found = Delivery(
        message=message, index=index, queue=queue, domain=queue if domain is None else domain,
        recipients=[Recipient(r) if isinstance(r, str) else Recipient(*r) for r in recipients],
        due_us=due_us, attempts=attempts, warned=bool(flags & _WARNED),
        history=[Attempt(*attempt) for attempt in history], maybe_duplicate=bool(flags & _MAYBE_DUPLICATE),
        losses=later[0] if later else 0, source=later[1] if len(later) > 1 else "",
        avoid=tuple(later[2]) if len(later) > 2 else (),
    )
    words = [found.queue, found.domain, found.source, *found.avoid]
    words += [one.address for one in found.recipients]
    numbers = [due_us, attempts, found.losses]
    for attempt in found.history:
        numbers.append(attempt.time_us)
        words += attempt[1:]
    if not _are(words, str) or not _are(numbers, int):
        raise ValueError("a field of another kind than it has")
    return found


def summary_of(record: bytes) -> tuple[str, int, int, Attempt | None]:
    """Queue, due time, number of recipients and last failed attempt in a delivery's record."""
    _, queue, _, due_us, recipients, _, _, history = unpack(record)[:8]
    return queue, due_us, len(recipients), Attempt(*history[-1]) if history else None


# -- queues ------------------------------------------------------------------------------------------------------------

_LONGEST_NAME: Final = 440  # LMDB's keys end at 511 bytes


@dataclass(slots=True)
class QueueInfo:
    """One queue in the index. It is there as long as it has deliveries."""

    name: str
    deliveries: int = 0
    recipients: int = 0
    next_due_us: int = -1  # of its first delivery; -1 before it has one
    last: Attempt | None = None  # the last failed attempt of any of its deliveries


def name_key(name: str) -> bytes:
    """The key of a queue name in the index."""
    raw = name.encode("utf-8", "surrogateescape")
    if 0 < len(raw) <= _LONGEST_NAME:
        return raw
    return raw[:_LONGEST_NAME] + b"\0" + hashlib.sha256(raw).hexdigest().encode()


def pack_queue(queue: QueueInfo) -> bytes:
    """The value of a queue."""
    return pack((LAYOUT, queue.name, queue.deliveries, queue.recipients, queue.next_due_us, queue.last))


def unpack_queue(value: bytes) -> QueueInfo:
    """The queue in a value. Raises ValueError when it is none."""
    _, name, deliveries, recipients, next_due_us, last = unpack(value)[:6]
    attempt = None if last is None else Attempt(*last)
    if name.__class__ is not str or not _are((deliveries, recipients, next_due_us), int) or (
            attempt is not None and not (_are(attempt[:1], int) and _are(attempt[1:], str))):
        raise ValueError("a field of another kind than it has")
    return QueueInfo(name, deliveries, recipients, next_due_us, attempt)


# -- the state of the shard --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ShardState:
    """What one checkpoint says of the whole shard. Written in the same commit as the checkpoint."""

    number: int = 0  # of the checkpoint
    segment: int = 0  # the journal up to here is in the index
    offset: int = 0
    events_segment: int = 0  # the events of the journal up to here are in the event files
    events_offset: int = 0
    event_file: str = ""
    event_length: int = 0
    last_id: int = 0  # the largest message id ever accepted
    next_queue_id: int = 1
    messages: int = 0
    deliveries: int = 0
    recipients: int = 0
    clean: bool = True  # the owner went away in good order
    boot_id: str = ""  # of the machine, when it was opened last
    dup_before_us: int = 0  # a power failure left open what became of deliveries due before this

    @property
    def position(self) -> Position:
        """The journal up to here is in the index."""
        return Position(self.segment, self.offset)

    @property
    def events(self) -> EventMark:
        """The event files as of this checkpoint."""
        return EventMark(Position(self.events_segment, self.events_offset), self.event_file, self.event_length)

    def move_to(self, position: Position, events: EventMark) -> None:
        """Set both."""
        self.segment, self.offset = position
        (self.events_segment, self.events_offset), self.event_file, self.event_length = events


def pack_state(state: ShardState) -> bytes:
    """The value of the state."""
    return pack((LAYOUT, *astuple(state)))


def unpack_state(value: bytes) -> ShardState:
    """The state in a value."""
    fields = unpack(value)[1:]
    return ShardState(*fields[:len(ShardState.__slots__)])
