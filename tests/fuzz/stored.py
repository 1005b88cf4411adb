"""What lies on disk, as a disk may give it back: frames of the journal, operations in them, records of the index."""

from __future__ import annotations

import os
import struct
from functools import cache
from typing import Final

from mta.queue import encoding, journal, transaction
from mta.queue.effects import Effects
from mta.queue.encoding import Position
from mta.queue.fileops import FileOps
from mta.queue.records import Attempt, BodyRef, Delivery, Message, Recipient, Wishes

NONSENSE: Final = (ValueError, TypeError, LookupError, StopIteration)
"""What recovery takes for an operation that makes no sense (`mta.queue.recovery`)."""
UNREADABLE: Final = (ValueError, TypeError, struct.error)
"""What the index takes for a damaged record (`mta.queue.index`)."""

_SALT: Final = b"saltsalt"
_CONTENT: Final = b"Subject: x\r\n\r\nx\r\n"


def _message(wishes: Wishes | None = None) -> Message:
    return Message(
        (1 << 40) + 7, "a@example.com", 1_700_000_000_000_000, _CONTENT, 12, "<x@y>", 3, "FULL", "id",
        "smtp 192.0.2.9:1 c", "tenant", "campaign", "pool", size=len(_CONTENT), deliveries=2, wishes=wishes)


def _delivery(message: Message, index: int) -> Delivery:
    return Delivery(
        message, index, "campaign:tenant@example.org/pool", "example.org",
        [Recipient("b@example.org"), Recipient("c@example.org", 5, "rfc822;c")], 1_700_000_000_000_001, 2, True,
        [Attempt(1, "mx [192.0.2.1]:25", "451 4.7.1 no")], True, 1, "source", ("host:x",))


@cache
def _operations() -> tuple[bytes, ...]:
    """The operations of some transactions, as the store writes them."""
    plain, wishing = _message(), _message(Wishes(5, "for;60", 6, "R", 3))
    one, two = _delivery(plain, 0), _delivery(wishing, 1)
    found = (
        transaction.Transaction(accepts=[(plain, [one, _delivery(plain, 1)])], events=[b"{}"]),
        transaction.Transaction(accepts=[(wishing, [two])], marks=[(b"key", b"value")], unmarks=[b"other"]),
        transaction.Transaction(updates=[one], removes=[two], events=[b'{"a":1}', b"{}"]),
    )
    moves = transaction.encode_moves([transaction.Move(5, BodyRef(1, 4096, 5, 6), b"hello")])
    encoded = [transaction.encode(one) for one in found] + [moves]
    return tuple(one.operations + transaction.encode_events(one.events) for one in encoded)


def _frame(operations: bytes, contents: list[bytes], offset: int = journal.PAGE) -> bytes:
    """A frame, and what follows it up to the page."""
    table = b"".join(journal._BLOB.pack(len(one), journal.content_crc(one)) for one in contents)
    head = journal._frame_head(_SALT, offset, operations, table, len(contents), 1_700_000_000_000_000)
    raw = head + operations + table + b"".join(contents)
    return raw + bytes(-len(raw) % journal.PAGE)


@cache
def frame_seeds() -> tuple[bytes, ...]:
    """Positions and octets to be changed in a frame; the first one says which."""
    return (b"\0", b"\1\0\x10\xff", b"\2\0\x20\1\0\x18\2", b"\3\1\0\0")


def run_frame(data: bytes) -> None:
    """A frame is read whole as it was written, or not at all, whatever became of it on disk."""
    if not data:
        return
    operations = _operations()[data[0] % 4]
    contents = [_CONTENT] * (1 if data[0] % 4 != 2 else 0)
    header = journal._segment_header(1, _SALT, Position(0, 0))
    frame = _frame(operations, contents)
    segment = bytearray(header + bytes(journal.PAGE - len(header)) + frame)
    size = journal._FRAME_HEADER.size + len(operations) + 8 * len(contents) + sum(map(len, contents))
    for at in range(1, len(data) - 2, 3):
        position = (data[at] << 8 | data[at + 1]) % (size + 1)
        segment[journal.PAGE + position] ^= data[at + 2]
    whole = segment[journal.PAGE :] == frame
    cut = len(segment) - (data[-1] if data[0] & 128 else 0)
    fd = os.memfd_create("segment")
    try:
        os.write(fd, segment[:cut])
        one = journal.Segment(fd, 1, _SALT, Position(0, 0), FileOps())
        found = one.frame(journal.PAGE)
        checked = segment[journal.PAGE : journal.PAGE + size - sum(map(len, contents))]
        if found is None:
            assert checked != frame[: len(checked)] or cut < len(segment)
            return
        assert found.operations == operations
        assert checked == frame[: len(checked)], "a damaged frame was read"
        if one.is_whole(found):
            assert [one.content(blob) for blob in found.blobs] == contents
        else:
            assert not whole or cut < len(segment)
    finally:
        os.close(fd)


def run_operations(data: bytes) -> None:
    """Operations that no store wrote raise what recovery waits for, and nothing else."""
    places = [BodyRef(1, 4096 * number, 10, 0) for number in range(1, 4)]
    for effects in (Effects(), None):
        try:
            lines = transaction.replay(data, places, effects)
            assert isinstance(lines, bytes)
        except NONSENSE:
            pass
    try:
        list(transaction.contents(data, places))
    except NONSENSE:
        pass


def run_records(data: bytes) -> None:
    """A record of the index is read or raises what the readers of damaged shards wait for."""
    message = _message()
    for read in (lambda: encoding.unpack_message(data, 5), lambda: encoding.unpack_delivery(data, message, 1),
                 lambda: encoding.unpack_queue(data), lambda: encoding.unpack_state(data),
                 lambda: encoding.message_head(data), lambda: encoding.summary_of(data)):
        try:
            read()
        except UNREADABLE:
            pass


@cache
def operation_seeds() -> tuple[bytes, ...]:
    """What the store writes."""
    return _operations()


@cache
def record_seeds() -> tuple[bytes, ...]:
    """What the store writes."""
    message = _message(Wishes(5, "for;60", 6, "R", 3))
    return (
        encoding.message_value(encoding.pack_message(message), BodyRef(1, 2, 3, 4), 2),
        encoding.delivery_value(encoding.pack_delivery(_delivery(message, 1)), 3, 4, 5),
        encoding.pack_queue(encoding.QueueInfo("example.org", 1, 2, 3, Attempt(1, "x", "y"))),
        encoding.pack_state(encoding.ShardState()), encoding.pack_delivery(_delivery(message, 1)),
    )
