"""The durable queue of one shard: the journal is the truth, the index is its checkpoint. (API first; body follows.)"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mta.config.schema import Config
from mta.queue.errors import (
    BodyDamaged,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreUnusable,
    StoreVersion,
)
from mta.queue.records import Attempt, Delivery, Message

__all__ = [
    "BodyDamaged", "Counts", "Key", "QueueInfo", "Store", "StoreError", "StoreFull", "StoreLocked", "StoreUnusable",
    "StoreVersion", "Transaction",
]

Key = tuple[int, int]
"""Delivery.key: message id and index."""


@dataclass(slots=True)
class Transaction:
    """Changes that become durable together or not at all."""

    accepts: Sequence[tuple[Message, Sequence[Delivery]]] = ()
    updates: Sequence[Delivery] = ()
    removes: Sequence[Delivery] = ()
    events: Sequence[bytes] = ()  # one JSON line each, without the newline
    marks: Sequence[tuple[bytes, bytes]] = ()  # keys to remember, with a value: `Store.has_mark`
    unmarks: Sequence[bytes] = ()


class Counts(NamedTuple):
    """How much is in the queue."""

    messages: int
    deliveries: int
    recipients: int


@dataclass(slots=True)
class QueueInfo:
    """One queue as the index knows it."""

    name: str
    deliveries: int
    recipients: int
    next_due_us: int
    last: Attempt | None  # the last failed attempt of any of its deliveries


class Store:
    """One shard. All methods belong to the hub's thread, but `body`."""

    on_checkpoint: Callable[[list[tuple[str, int | None]]], None]
    """Called in `collect` after each checkpoint: touched queues, and when their first indexed delivery is due."""
    last_id: int
    """The largest id ever accepted here, for `IdSource`."""

    @classmethod
    def open(cls, directory: Path, config: Config, shard: int, wake: Callable[[], None], *,
             clock_us: Callable[[], int]) -> Store:
        """Open (or create) and recover. Raises StoreLocked, StoreVersion, StoreUnusable."""
        raise NotImplementedError

    def submit(self, tx: Transaction, done: Callable[[StoreError | None], None] | None = None) -> None:
        """Queue `tx` for the next group commit. It is encoded now; `done` runs in `collect`."""
        raise NotImplementedError

    def flush(self) -> None:
        """Hand what is pending to the disk thread, if that is idle. Call it at the end of each loop iteration."""
        raise NotImplementedError

    def collect(self) -> None:
        """Run what has completed (after a `wake`), then flush."""
        raise NotImplementedError

    def load_due(self, queue: str, before_us: int, limit: int, exclude: Container[Key],
                 done: Callable[[list[Delivery], int | None], None]) -> None:
        """Up to `limit` indexed deliveries of `queue` due at or before `before_us`, the soonest first, without content.

        Left out: keys in `exclude` (looked at until `done` runs) and what has changed since the last checkpoint.
        `done` gets them, and when the next one that was not returned for want of room or time is due (None: no more).
        """
        raise NotImplementedError

    def due_queues(self, after: bytes, limit: int, done: Callable[[list[tuple[int, str]], bytes | None], None]) -> None:
        """The next `limit` queues in the order of (first due time, queue), after the key `after` (b"": from the start).

        `done` gets [(due_us, name)] and the key of the last, or None when that was all.
        """
        raise NotImplementedError

    def body(self, message: Message) -> bytes:
        """The content. Blocking, from any thread. Raises BodyDamaged."""
        raise NotImplementedError

    def mark_inflight(self, delivery: Delivery) -> None:
        """The final dot of `delivery` is about to be sent. Ends when an update or remove of it is durable."""
        raise NotImplementedError

    def clear_inflight(self, delivery: Delivery) -> None:
        """The attempt ended without a final dot and without an update."""
        raise NotImplementedError

    def quarantine(self, message: Message, reason: str, events: Sequence[bytes],
                   done: Callable[[StoreError | None], None] | None = None) -> None:
        """Take a damaged message out of the queue; what is readable goes to `quarantine/`."""
        raise NotImplementedError

    def room(self) -> str | None:
        """None, or why no new mail may be taken."""
        raise NotImplementedError

    def counts(self) -> Counts:
        """What is in the queue, O(1)."""
        raise NotImplementedError

    def has_mark(self, key: bytes, done: Callable[[bytes | None], None]) -> None:
        """The value of a mark, or None."""
        raise NotImplementedError

    def list_marks(self, after: bytes, limit: int, done: Callable[[list[tuple[bytes, bytes]]], None]) -> None:
        """Up to `limit` marks in the order of their keys, after the key `after`."""
        raise NotImplementedError

    def list_queues(self, pattern: str, limit: int, done: Callable[[list[QueueInfo]], None]) -> None:
        """The `limit` largest queues whose name matches the shell pattern ("" : all), after a checkpoint."""
        raise NotImplementedError

    def list_deliveries(self, queue: str, limit: int, done: Callable[[list[Delivery]], None]) -> None:
        """The first `limit` deliveries of a queue by due time, after a checkpoint."""
        raise NotImplementedError

    def find_message(self, message_id: int, done: Callable[[Message | None, list[Delivery]], None]) -> None:
        """A message and its deliveries, after a checkpoint."""
        raise NotImplementedError

    def close(self) -> None:
        """Flush, checkpoint, mark the end as clean, release. Blocks. Raises StoreError when something stays behind."""
        raise NotImplementedError
