"""A verdict on a delivery becomes durable whatever goes wrong beside it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mta.delivery import dispatch as dispatch_module
from mta.delivery.dispatch import PUT_OFF_S, Dispatch
from mta.delivery.settle import Verdict
from mta.queue.records import Delivery, Message, Recipient
from mta.queue.scheduler import Queue
from mta.smtp.client import Transaction
from mta.smtp.reply import Reply


class BrokenError(Exception):
    """A bug."""


def broken(*_: object, **__: object) -> Any:
    raise BrokenError


def engine() -> tuple[Any, list[Delivery], list[tuple[Any, ...]]]:
    """An engine of which adaptation and rules are broken; the deliveries that left the queue, and timers."""
    removed: list[Delivery] = []
    timers: list[tuple[Any, ...]] = []
    made: Any = SimpleNamespace(
        monotonic=lambda: 10.0, adapting=SimpleNamespace(taken=broken, to=broken),
        reactions=SimpleNamespace(judge_of=broken), hub=SimpleNamespace(later=lambda *call: timers.append(call)),
        scheduler=SimpleNamespace(done=lambda queue, delivery: None, let_go=None),
        settler=SimpleNamespace(deliver=lambda delivery, *_: Verdict(removes=[delivery])),
        stores={0: SimpleNamespace(submit=lambda commit, done: removed.extend(commit.removes))})
    return made, removed, timers


def job() -> Any:
    message = Message(1, "a@b.test", 0, b"x", size=1)
    delivery = Delivery(message, 0, "d.test", "d.test", [Recipient("u@d.test")], 0)
    queue = Queue(0, "d.test", "d.test", "")
    queue.in_flight[delivery.key] = delivery
    return SimpleNamespace(queue=queue, delivery=delivery, started_s=9.9, right=None, marked=True,
                           transaction=Transaction("a@b.test", delivery.recipients, b"x"))


def connection() -> Any:
    path = SimpleNamespace(succeeded=lambda now_s: None, prompt=True, failures=0)
    return SimpleNamespace(path=path, completed=0, peer=None)


def test_what_was_delivered_leaves_the_queue_though_adaptation_has_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would stay in flight until a restart, and go a second time then."""
    monkeypatch.setattr(dispatch_module, "delivered_to_all", lambda transaction: Reply(250, "2.0.0", ("ok",)))
    made, removed, _ = engine()
    carried = job()
    with pytest.raises(BrokenError):
        Dispatch(made).settle(connection(), carried)
    assert removed == [carried.delivery]


def test_what_cannot_be_judged_for_a_bug_is_read_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would stay in flight, and not be tried again, until a restart."""
    monkeypatch.setattr(dispatch_module, "delivered_to_all", lambda transaction: None)
    made, removed, timers = engine()
    carried = job()
    with pytest.raises(BrokenError):
        Dispatch(made).settle(connection(), carried)
    assert not removed
    assert [(call[0], *call[2:]) for call in timers] == [(PUT_OFF_S, carried.queue, carried.delivery)]
