"""What a sweep remembers of itself over a restart; `tests/integration/test_orders.py` has sweeps in a whole MTA."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import gevent.event
import pytest

from mta.delivery import sweeps as module
from mta.delivery.sweeps import MARK, Progress, Sweeps
from mta.queue.filter import Filter


class OfTwoShards(Sweeps):
    """Whose passes find nothing."""

    def __init__(self, marks: dict[bytes, bytes]) -> None:
        store: Any = SimpleNamespace(
            has_mark=lambda key, done: done(marks.get(key)), submit=lambda commit, done: None)
        hub = SimpleNamespace(sleep=lambda seconds: None)
        engine: Any = SimpleNamespace(stores={0: store, 1: store}, stopping=False, hub=hub)
        super().__init__(engine)
        self.passed = 0

    def _pass(self, shard: int, meant: Any, progress: Progress) -> bool:
        self.passed += 1
        return True

    def _commit(self, shard: int, order: Any, progress: Progress, taken: Any) -> None:
        """Durable at once."""


def order() -> Any:
    """To delete what a filter names."""
    return SimpleNamespace(message=0, order=SimpleNamespace(number=1, kind="delete"))


def test_what_may_have_been_missed_is_looked_for_after_a_restart_too() -> None:
    """Deliveries that were made due sooner lie behind a sweep in their queue. The mark that says that the queue was
    passed says that another pass is due, so a kill in between forgets none of them."""
    before = OfTwoShards({})
    before.progress = {(0, 1): Progress(9), (1, 1): Progress(9), (0, 2): Progress(9, finished=True)}
    before.unsettle(0)
    before.progress[(0, 1)].after = b"queue"
    assert [one.again for one in before.progress.values()] == [True, False, False]

    after = OfTwoShards({MARK % 1: before.progress[(0, 1)].pack()})
    after.adopt(order(), lambda shard: 9, restart=True)
    after._sweep(0, order(), after.progress[(0, 1)])
    assert (after.passed, after.progress[(0, 1)].finished) == (2, True)


def test_one_shard_takes_nothing_from_another() -> None:
    """The end of a pass in one shard says nothing about what another shard may have missed."""
    sweeps = OfTwoShards({})
    sweeps.progress = {(0, 1): Progress(9), (1, 1): Progress(9)}
    sweeps.unsettle(1)
    sweeps._sweep(0, order(), sweeps.progress[(0, 1)])
    sweeps._sweep(1, order(), sweeps.progress[(1, 1)])
    assert sweeps.passed == 1 + 2


def test_what_an_order_would_touch_is_counted_without_waiting_for_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter by provider needs routes. A domain whose servers are silent keeps nobody waiting: what is
    known is counted, and the count says that it is not all."""
    monkeypatch.setattr(module, "SURVEY_S", 0.05)
    silent = gevent.event.Event()

    def look(domain: str) -> Any:
        if domain == "silent.test":
            silent.wait()
        return SimpleNamespace(provider="big")

    rows = [(b"1", SimpleNamespace(name="a.test", deliveries=3, recipients=4)),
            (b"2", SimpleNamespace(name="silent.test", deliveries=1, recipients=1))]
    store: Any = SimpleNamespace(sweep_queues=lambda after, limit, done: done(rows, None, 0))
    hub = SimpleNamespace(monotonic=time.monotonic)
    engine: Any = SimpleNamespace(stores={0: store}, hub=hub, clock_us=lambda: 0, router=SimpleNamespace(route=look))
    monkeypatch.setattr(module, "Route", SimpleNamespace)
    found = Sweeps(engine).survey(0, Filter.parse("provider=big"))
    assert (found.rows, found.exact) == ([("a.test", 3, 4)], False)


def test_what_is_younger_than_a_sweep_does_not_keep_it_going() -> None:
    """Mail that got another queue behind a sweep counts when the sweep may be about it: without end comes younger."""
    sweeps = OfTwoShards({})
    sweeps.progress = {(0, 1): Progress(9)}
    sweeps.unsettle(0, 10)
    assert not sweeps.progress[(0, 1)].again
    sweeps.unsettle(0, 9)
    assert sweeps.progress[(0, 1)].again
