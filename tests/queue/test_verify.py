"""The checker of a spool: what is sound passes, every kind of damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta.queue import events
from mta.queue.errors import StoreLocked
from mta.queue.records import Delivery
from mta.queue.store import Transaction
from mta.queue.verify import verify_shard
from mta.smtp.reply import Reply
from tests.queue.helpers import Bench, outcome

REMOTE = events.Remote("path", "mx.test", "192.0.2.1:25")
TAKEN = Reply(250, "2.0.0", ("Ok",))


def accept(bench: Bench, *domains: str, size: int = 1000, recipients: int = 1) -> list[Delivery]:
    """A message in the queue, with its event."""
    deliveries = bench.make(*domains, content=b"x" * size, recipients=recipients)
    message = deliveries[0].message
    bench.commit(Transaction([(message, deliveries)], events=[events.received(message, deliveries)]))
    return deliveries


def deliver(bench: Bench, delivery: Delivery) -> None:
    """All of its recipients have their end."""
    event = events.delivered(delivery, delivery.recipients, TAKEN, REMOTE, attempt=1, time_us=bench.clock(),
                             duration_s=0.1)
    bench.commit(Transaction(removes=[delivery], events=[event]))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A store with a past, in the index and beyond it."""
    bench = Bench(tmp_path / "000")
    sent = [delivery for n in range(20) for delivery in accept(bench, "a.test", "b.test", size=50_000, recipients=2)]
    for delivery in sent[::3]:
        deliver(bench, delivery)
    bench.checkpoint()
    deliver(bench, sent[1])
    bench.commit(Transaction(updates=[outcome(sent[2], due_us=bench.clock() + 5)]))
    accept(bench, "c.test")
    return bench


def test_a_store_is_sound_at_any_time(bench: Bench) -> None:
    """After a kill, after the recovery from it, and after a clean end."""
    bench.store.abandon()
    assert verify_shard(bench.directory, complete=True) == []
    bench = Bench(bench.directory)
    bench.store.abandon()
    assert verify_shard(bench.directory, complete=True) == []
    Bench(bench.directory).close()
    assert verify_shard(bench.directory, complete=True) == []


def test_a_shard_in_use_is_not_looked_at(bench: Bench) -> None:
    """What is read while it changes would make no sense."""
    with pytest.raises(StoreLocked, match="is in use by process"):
        verify_shard(bench.directory)
    bench.close()
