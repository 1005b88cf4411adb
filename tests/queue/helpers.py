"""A store driven by hand, and mail to put into it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mta.config import schema
from mta.config.units import Duration, Size
from mta.queue.eventlog import event_files
from mta.queue.fileops import FileOps
from mta.queue.ids import IdSource
from mta.queue.records import Delivery, Message, Recipient
from mta.queue.store import Counts, Key, Store, StoreError, Transaction
from tests.queue.faults import Unsynced

START_US = 1_700_000_000_000_000
PATIENCE_S = 20.0


def empty_spool(directory: Path) -> Path:
    """Make `directory` a spool without shards, as a start does."""
    (directory / "version").write_text("1\n")
    (directory / "lock").write_text("4711\n")
    (directory / "shards").mkdir()
    return directory


def config(**store: Any) -> schema.Config:
    """A configuration with small files, and checkpoints only when they are asked for."""
    options: dict[str, Any] = {
        "segment_size": Size(1_000_000), "map_size": Size(1_000_000_000), "reserve": Size(0),
        "checkpoint": Duration(3600),
    }
    options.update(store)
    return schema.Config(hostname="mta.example.org", store=schema.Store(**options))


class Clock:
    """A wall clock that stands still."""

    def __init__(self, now_us: int = START_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us


class Bench:
    """A store, and the loop that a hub would be: every call waits until what it asked for has happened."""

    def __init__(self, directory: Path, settings: schema.Config | None = None, files: FileOps | None = None,
                 boot_id: str = "boot 1", now_us: int = START_US) -> None:
        self.directory = directory
        self.clock = Clock(now_us)
        self._woken = threading.Event()
        self.store = Store.open(directory, settings or config(), 0, self._woken.set, clock_us=self.clock,
                                files=files or Unsynced(), boot_id=boot_id)
        self.ids = IdSource(0, self.store.last_id, self.clock)
        self.checkpoints: list[list[tuple[str, int | None]]] = []
        self.store.on_checkpoint = self.checkpoints.append

    def until(self, condition: Callable[[], object]) -> None:
        """Serve the store until `condition` holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._woken.wait(deadline - time.monotonic()), "nothing happened"
            self._woken.clear()
            self.store.collect()

    def answer(self, ask: Callable[..., None], *arguments: Any) -> Any:
        """What `ask` gives to its `done`: the only argument, or the tuple of them."""
        answers: list[Any] = []
        ask(*arguments, lambda *values: answers.append(values))
        self.store.flush()
        self.until(lambda: answers)
        return answers[0][0] if len(answers[0]) == 1 else answers[0]

    def commit(self, tx: Transaction) -> StoreError | None:
        """Submit and wait; the error, if any."""
        error: StoreError | None = self.answer(self.store.submit, tx)
        return error

    def accept(self, *domains: str, content: bytes = b"Subject: x\r\n\r\nbody\r\n", due_us: int | None = None,
               recipients: int = 1, **fields: Any) -> list[Delivery]:
        """A message accepted and durable, one delivery for each domain."""
        deliveries = self.make(*domains, content=content, due_us=due_us, recipients=recipients, **fields)
        assert self.commit(Transaction([(deliveries[0].message, deliveries)])) is None
        return deliveries

    def make(self, *domains: str, content: bytes = b"Subject: x\r\n\r\nbody\r\n", due_us: int | None = None,
             recipients: int = 1, **fields: Any) -> list[Delivery]:
        """The same, not submitted."""
        now_us = self.clock()
        message = Message(self.ids.next(), "sender@example.org", now_us, content, size=len(content),
                          deliveries=len(domains), **fields)
        return [
            Delivery(message, index, domain, domain, [Recipient(f"u{n}@{domain}") for n in range(recipients)],
                     now_us if due_us is None else due_us)
            for index, domain in enumerate(domains)
        ]

    def checkpoint(self) -> None:
        """All that is durable is in the index."""
        self.answer(self.store.find_message, 0)

    def load(self, queue: str, before_us: int = 1 << 62, limit: int = 1000,
             exclude: Container[Key] = ()) -> list[Delivery]:
        """What `load_due` finds."""
        found: list[Delivery] = self.answer(self.store.load_due, queue, before_us, limit, exclude)[0]
        return found

    def queue(self) -> list[Delivery]:
        """Every delivery in the index, in all queues, by key."""
        self.checkpoint()
        found, last = self.answer(self.store.due_queues, b"", 10_000)
        assert last is None
        return sorted((d for _, name in found for d in self.load(name)), key=lambda delivery: delivery.key)

    def queued(self) -> list[Key]:
        """The keys of all deliveries."""
        return [delivery.key for delivery in self.queue()]

    def counts(self) -> Counts:
        """What the store says of itself."""
        return self.store.counts()

    def events(self) -> bytes:
        """All event files, one after the other."""
        events = self.directory / "events"
        return b"".join((events / name).read_bytes() for name in event_files(events))

    def crash(self, **changes: Any) -> Bench:
        """The owner is killed; the next one opens the shard."""
        self.store.abandon()
        return Bench(self.directory, **changes)

    def close(self) -> None:
        """A clean end."""
        self.store.close()


def outcome(delivery: Delivery, **changes: Any) -> Delivery:
    """A copy of `delivery` as it is after an attempt."""
    return replace(delivery, **changes)


def removal(deliveries: Sequence[Delivery], *events: bytes) -> Transaction:
    """The transaction that ends deliveries."""
    return Transaction(removes=deliveries, events=events)
