"""Results on the wire, and what several workers say about one queue."""

from __future__ import annotations

import pytest

from mta.control import protocol
from mta.control.channel import FrameReader, encode
from mta.control.protocol import (
    AttemptRow,
    DeliveryList,
    DeliveryRow,
    Family,
    Member,
    MessageDetail,
    Missing,
    QueueRow,
    RecipientRow,
    RequestError,
    Status,
    WorkerStatus,
    from_wire,
    to_wire,
)

DELIVERY = DeliveryRow(
    "0abc", 0, "q", "d", "s@x", [RecipientRow("a@d", "NEVER")], 10, 1, 2, history=[AttemptRow(1, "mx", "451 later")]
)
RESULTS = [
    Status("1", "h", Family(1, 2, [Member("worker", 0, 3, "ready", [0, 2])]), [WorkerStatus(0, 3, 1.5)],
           [Missing(1, "gone")]),
    DeliveryList(QueueRow("q", "d", 1, 1), [DELIVERY], True),
    DeliveryList(),
    MessageDetail("0abc", 0, "", 1, 2, deliveries=[DELIVERY], headers=b"A: \xff\r\n"),
]  # fmt: skip


@pytest.mark.parametrize("result", RESULTS)
def test_a_result_comes_back_the_same(result: object) -> None:
    """Nested rows, bytes and None included."""
    (fields,) = FrameReader(100_000).feed(encode(to_wire(result)))
    assert from_wire(type(result), fields) == result


def test_fields_may_come_and_go_between_versions() -> None:
    """Unknown fields are ignored, missing ones take their default, an integer will do for a float."""
    fields = {"worker": 1, "pid": 2, "uptime_s": 3, "from_the_future": 4}
    assert from_wire(WorkerStatus, fields) == WorkerStatus(1, 2, 3.0)


@pytest.mark.parametrize("fields", [{}, {"worker": "one", "pid": 2, "uptime_s": 3.0}, [], None])
def test_a_result_that_is_none_is_refused(fields: object) -> None:
    """A missing required field, a wrong type, no map at all."""
    with pytest.raises(RequestError, match="not understood"):
        from_wire(WorkerStatus, fields)  # what a wrong peer sends


def test_rows_of_one_queue_are_one_row() -> None:
    """Counts are summed, the earliest time, the latest reply and the liveliest state are kept."""
    rows = [
        QueueRow("q", "d", 1, 2, next_due_us=50, last_reply="old", last_reply_us=1),
        QueueRow("q", "d", 3, 4, next_due_us=40, in_flight=2, state="active", last_reply="new", last_reply_us=2),
        QueueRow("q", "d", 5, 6, state="suspended", reason="limit reached"),
    ]
    assert protocol.merged(rows) == [
        QueueRow("q", "d", 9, 12, next_due_us=40, in_flight=2, state="active", last_reply="new", last_reply_us=2)
    ]


def test_orders() -> None:
    """Most deliveries first; next due first, with queues that have nothing due last; by name."""
    rows = [QueueRow("a", "a", 1, 1, next_due_us=0), QueueRow("b", "b", 2, 1, next_due_us=9),
            QueueRow("c", "c", 1, 1, next_due_us=5)]  # fmt: skip
    assert [row.name for row in protocol.merged(rows, "deliveries")] == ["b", "a", "c"]
    assert [row.name for row in protocol.merged(rows, "next")] == ["c", "b", "a"]
    assert [row.name for row in protocol.merged(rows[::-1], "name")] == ["a", "b", "c"]
