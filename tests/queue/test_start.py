"""Starting costs the same whatever is queued."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mta.queue.records import Delivery, Message, Recipient
from mta.queue.store import Transaction
from tests.queue.faults import Counting
from tests.queue.helpers import START_US, Bench


def fill(bench: Bench, messages: int) -> None:
    """Accept `messages` in a few transactions, over 50 queues."""
    for start in range(0, messages, 10_000):
        accepts = []
        for n in range(start, min(messages, start + 10_000)):
            message = Message(bench.ids.next(), "s@example.org", START_US, b"x", deliveries=1)
            accepts.append((message, [Delivery(message, 0, f"d{n % 50}.test", f"d{n % 50}.test",
                                               [Recipient("u@d.test")], START_US + n)]))
        assert bench.commit(Transaction(accepts)) is None
        bench.checkpoint()


def calls_of_a_start(directory: Path) -> tuple[int, int]:
    """How many functions, Python's and others, and how many reads of files a start makes."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    files = Counting()
    sys.setprofile(count)
    try:
        bench = Bench(directory, files=files)
    finally:
        sys.setprofile(None)
    bench.store.abandon()
    return calls, files.calls["pread"]


def test_a_start_does_not_depend_on_the_number_of_messages(tmp_path: Path) -> None:
    """With 20,000 messages in the queue as much is done as with 300, after a clean end and after a crash (I4)."""
    costs = []
    for messages in (300, 20_000):
        bench = Bench(tmp_path / f"{messages}")
        fill(bench, messages)
        bench.close()
        clean = calls_of_a_start(bench.directory)
        bench = Bench(bench.directory)
        for _ in range(10):
            bench.accept("a.test")
        bench.store.abandon()
        costs.append((clean, calls_of_a_start(bench.directory)))
    (few_clean, few_crashed), (many_clean, many_crashed) = costs
    assert many_clean[0] <= few_clean[0] * 1.2
    assert many_crashed[0] <= few_crashed[0] * 1.2
    assert many_clean[1] <= few_clean[1] + 5
    assert many_crashed[1] <= few_crashed[1] + 5
