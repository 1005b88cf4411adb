"""The books after a fault: what was accepted, what the events say, what the receivers have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mta.control.client import ControlClient
from mta.control.protocol import QueueRow
from mta.sandbox.client import Received
from tests.integration.support import Mta, ends_of


def assert_balanced(mta: Mta, accepted: Iterable[int], received: Iterable[Received], waiting: int = 0) -> None:
    """Every message that was accepted arrived, but `waiting` recipients that are in the queue; each (message,
    recipient) has one end; what arrived twice was announced as a possible duplicate. `mta` has stopped, its spool is
    as it was left. Messages are those of `support.message`, for one recipient each.
    """
    arrived = {int(item.key): item.count for item in received}
    ends, last = ends_of(mta.events())
    delivered = {number_of(event["message_id"]): event for event in last.values() if event["event"] == "delivered"}
    lost = set(accepted) - set(delivered)
    assert len(lost) <= waiting, f"accepted, but without an end: {sorted(lost)[:10]}"
    assert {key: count for key, count in ends.items() if count != 1} == {}, "more than one end"
    assert set(delivered) - set(arrived) == set(), "said to be delivered, but not received"
    repeated = {number for number, count in arrived.items() if count > 1}
    # An arrival without an event is one whose answer was lost: it will be sent again.
    unannounced = [number for number in repeated if number in delivered and not delivered[number]["maybe_duplicate"]]
    assert unannounced == [], "received twice without a warning"


def assert_no_bug(mta: Mta) -> None:
    """Nothing in the log is a bug of ours or a traceback, whatever was done to it."""
    bugs = [line for line in mta.log if "bug:" in line or "Traceback" in line]
    assert bugs == [], "\n".join(mta.log[-200:])


def number_of(message_id: str) -> int:
    """The number in the Message-ID of `support.message`."""
    return int(message_id[1:].partition("@")[0])


def events_by_kind(mta: Mta) -> Counter[str]:
    """How many events of each kind there are."""
    return Counter(event["event"] for event in mta.events())


def rows(mta: Mta) -> dict[str, QueueRow]:
    """The queues by name, as `mta queue` shows them."""
    with ControlClient(mta.config["run"]) as client:
        return {row.name: row for row in client.queues("", 1000, "name").rows}


def queued(mta: Mta) -> int:
    """Recipients in the queue; -1 while not all workers answer."""
    with ControlClient(mta.config["run"]) as client:
        status = client.status()
    return -1 if status.missing else sum(worker.queued_recipients for worker in status.workers)
