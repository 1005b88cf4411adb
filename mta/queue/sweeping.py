"""Reading the whole index in pieces, queue by queue, for what is done to all mail that an operator means.

`names` gives the queues in the order of their numbers, which stays as it is: a place between two of them is where a
sweep goes on after a restart. `piece` gives a stretch of one queue as it was at the last checkpoint. Both look at a
bounded number of entries, on the index thread. A record that cannot be read stops none of them: it is counted.
"""

from __future__ import annotations

from typing import NamedTuple

from mta.queue.encoding import QueueInfo
from mta.queue.index import DELIVERY_KEY, MESSAGE_KEY, SCHEDULE_KEY, Index
from mta.queue.records import Delivery, Message


class Piece(NamedTuple):
    """A stretch of a queue."""

    deliveries: list[Delivery]  # without content
    changing: list[Delivery]  # of which more is known than the index has: as they were
    last: bytes | None  # where it goes on; None at the end of the queue
    unreadable: int = 0  # records that are damaged, or are not there


Found = tuple[list[tuple[bytes, QueueInfo]], bytes | None, int]


def names(index: Index, after: bytes, limit: int) -> Found:
    """The next `limit` queues behind the key `after` (b"": the first) with their keys, and the last key; None when that
    was all. And how many of them cannot be read: nothing is known of those."""
    items, last = index.page("queues", after, limit)
    found = [(key, info) for key, value in items if (info := index.queue(key, value)) is not None]
    return found, last, len(items) - len(found)


def piece(index: Index, queue: bytes, start: bytes, limit: int) -> tuple[list[Delivery], bytes | None, int]:
    """Up to `limit` deliveries of the queue with the key `queue` from the key `start` on (b"": the first), by due time;
    and the key to go on from, None at the end. And how many of them cannot be read."""
    found: list[Delivery] = []
    with index.env.begin() as txn:
        messages: dict[int, Message | None] = {}
        cursor = txn.cursor(index.db["schedule"])
        more = cursor.set_range(start or queue)
        looked_at = 0
        while more:
            key = cursor.key()
            if not key.startswith(queue):
                break
            if looked_at >= limit:
                return found, key, looked_at - len(found)
            looked_at += 1
            _, _, message_id, number = SCHEDULE_KEY.unpack(key)
            delivery = index.delivery(txn, message_id, number, messages)
            if delivery is not None:
                found.append(delivery)
            more = cursor.next()
        return found, None, looked_at - len(found)


def of_message(index: Index, message_id: int) -> tuple[list[Delivery], None, int]:
    """The same of the deliveries of one message."""
    found: list[Delivery] = []
    prefix, there = MESSAGE_KEY.pack(message_id), 0
    with index.env.begin() as txn:
        messages: dict[int, Message | None] = {}
        cursor = txn.cursor(index.db["messages"])
        more = cursor.set_range(prefix)
        while more and cursor.key().startswith(prefix):
            if len(cursor.key()) == DELIVERY_KEY.size:
                there += 1
                number = DELIVERY_KEY.unpack(cursor.key())[1]
                delivery = index.delivery(txn, message_id, number, messages)
                if delivery is not None:
                    found.append(delivery)
            more = cursor.next()
    return found, None, there - len(found)


def count_due(index: Index, queue: bytes, before_us: int, limit: int) -> tuple[int, bytes | None]:
    """How many deliveries of the queue with this key are due before that, as of the last checkpoint, counted up to
    `limit`; and the key of the first one that was not counted, None at the end. Reads keys alone."""
    count = 0
    with index.env.begin() as txn:
        cursor = txn.cursor(index.db["schedule"])
        more = cursor.set_range(queue)
        while more:
            key = cursor.key()
            if not key.startswith(queue):
                return count, None
            if count >= limit or SCHEDULE_KEY.unpack(key)[1] >= before_us:
                return count, key
            count += 1
            more = cursor.next()
    return count, None


def held_key(queue: bytes, from_us: int) -> bytes:
    """Where in the queue with the key `queue` what is due from a time on begins."""
    number = int.from_bytes(queue, "big")
    return SCHEDULE_KEY.pack(number, from_us, 0, 0)
