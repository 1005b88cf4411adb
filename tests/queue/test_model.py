"""The store against a model: after any history it holds what a dictionary would."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from mta.queue.records import Attempt, Delivery, Recipient
from mta.queue.store import Counts, Key, StoreFull, Transaction
from tests.queue.faults import NO_SPACE, Failing
from tests.queue.helpers import START_US, Bench

QUEUES = ["a.test", "b.test", "c:t@c.test/p"]
TIMES = st.integers(0, 20)


@dataclass
class State:
    """What a queue holds."""

    deliveries: dict[Key, Delivery]
    marks: dict[bytes, bytes]

    def copy(self) -> State:
        """Another one like it."""
        return State(dict(self.deliveries), dict(self.marks))

    def apply(self, tx: Transaction) -> None:
        """What a transaction does."""
        for _, deliveries in tx.accepts:
            self.deliveries.update({d.key: d for d in deliveries})
        for delivery in tx.updates:
            if delivery.key in self.deliveries:
                self.deliveries[delivery.key] = delivery
        for delivery in tx.removes:
            self.deliveries.pop(delivery.key, None)
        self.marks.update(tx.marks)
        for key in tx.unmarks:
            self.marks.pop(key, None)

    def counts(self) -> Counts:
        """Messages, deliveries, recipients."""
        return Counts(len({key[0] for key in self.deliveries}), len(self.deliveries),
                      sum(len(d.recipients) for d in self.deliveries.values()))


def shown(deliveries: Iterable[Delivery]) -> list[Any]:
    """What is compared of deliveries."""
    return [(d.key, d.queue, d.domain, d.due_us, d.recipients, d.attempts, d.history, d.warned, d.maybe_duplicate)
            for d in deliveries]


class StoreMachine(RuleBasedStateMachine):
    """Does the same to a store and to a model."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.root = Path(tempfile.mkdtemp(prefix="mta-model-", dir=memory if memory.is_dir() else None))
        self.files = Failing("pwritev")
        self.bench = Bench(self.root / "000", files=self.files)
        self.durable = State({}, {})
        self.indexed = State({}, {})
        self.touched: set[Key] = set()  # since the index was written
        self.noted: dict[Key, str] = {}  # what a checkpoint that failed would have written, and its queues
        self.submitted: list[tuple[Transaction, list[object]]] = []
        self.known: list[Delivery] = []
        self.events = b""
        self.event = 0

    def teardown(self) -> None:
        """Remove the files."""
        try:
            self.bench.store.abandon()
        except OSError:
            pass  # it failed in `close`, which let go of it
        shutil.rmtree(self.root)

    # -- changes -----

    def _make(self, queues: list[str], due: int, recipients: int) -> list[Delivery]:
        deliveries = self.bench.make(*queues, content=b"%d" % due * recipients, due_us=START_US + due,
                                     recipients=recipients)
        self.known += deliveries
        return deliveries

    def _submit(self, tx: Transaction) -> None:
        self.event += 1
        tx.events = [b"%d" % self.event]
        told: list[object] = []
        self.bench.store.submit(tx, told.append)
        self.submitted.append((tx, told))
        self.touched |= {d.key for d in (*tx.updates, *tx.removes)}

    def _happened(self, tx: Transaction) -> None:
        self.durable.apply(tx)
        self.events += b"".join(line + b"\n" for line in tx.events)

    def _settle(self) -> None:
        """Wait for all that was submitted."""
        self.bench.store.flush()
        self.bench.until(lambda: all(told for _, told in self.submitted))
        for tx, told in self.submitted:
            assert told == [None]
            self._happened(tx)
        self.submitted.clear()

    @initialize()
    def something(self) -> None:
        """There is some mail to begin with."""
        self.accept(QUEUES, 5, 2)

    @rule(queues=st.lists(st.sampled_from(QUEUES), min_size=1, max_size=3), due=TIMES, recipients=st.integers(1, 3))
    def accept(self, queues: list[str], due: int, recipients: int) -> None:
        """Mail comes in."""
        deliveries = self._make(queues, due, recipients)
        self._submit(Transaction([(deliveries[0].message, deliveries)]))

    @rule(data=st.data(), due=TIMES, queue=st.sampled_from([*QUEUES, ""]), flag=st.booleans())
    def update(self, data: st.DataObject, due: int, queue: str, flag: bool) -> None:
        """An attempt failed, perhaps of a delivery that has ended already; perhaps it goes to another queue."""
        old = data.draw(st.sampled_from(self.known))
        new = replace(old, due_us=START_US + due, queue=queue or old.queue, attempts=old.attempts + 1, warned=flag,
                      maybe_duplicate=not flag, recipients=[*old.recipients[:1], Recipient("x@x.test", 1)],
                      history=[Attempt(START_US + due, "mx", "451 4.0.0 no")])
        self._submit(Transaction(updates=[new]))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Deliveries end, perhaps not for the first time."""
        self._submit(Transaction(removes=data.draw(st.lists(st.sampled_from(self.known), min_size=1, max_size=4))))

    @rule(data=st.data(), key=st.sampled_from([b"k1", b"k2"]), value=st.binary(max_size=3))
    def bounce(self, data: st.DataObject, key: bytes, value: bytes) -> None:
        """Several things at once: a notification comes in for what ends, with a mark."""
        ended = data.draw(st.sampled_from(self.known))
        deliveries = self._make(["s.test"], 1, 1)
        self._submit(Transaction([(deliveries[0].message, deliveries)], removes=[ended], marks=[(key, value)]))

    @rule(key=st.sampled_from([b"k1", b"k2"]))
    def unmark(self, key: bytes) -> None:
        """A mark is not needed any more."""
        self._submit(Transaction(unmarks=[key]))

    @rule()
    def settle(self) -> None:
        """The disk does its work."""
        self._settle()

    # -- disasters -----

    @rule()
    def crash(self) -> None:
        """What was submitted and never given to the disk is gone; nothing else is."""
        store = self.bench.store
        given = len(store._commits._writing or ()) + sum(bool(told) for _, told in self.submitted)
        for tx, _ in self.submitted[:given]:
            self._happened(tx)
        self.submitted.clear()
        self.bench = self.bench.crash(files=self.files)
        self.indexed = self.durable.copy()
        self.touched.clear()
        self.noted = {}

    @rule()
    def crash_unheard(self) -> None:
        """The disk has been given its work, but the hub dies before it hears of it."""
        self.bench.store.flush()
        self.crash()

    @rule()
    def close(self) -> None:
        """A clean end writes everything."""
        self.bench.close()
        for tx, told in self.submitted:
            assert told == [None]
            self._happened(tx)
        self.submitted.clear()
        assert self.bench.events() == self.events
        self.bench = Bench(self.root / "000", files=self.files)
        self.indexed = self.durable.copy()
        self.touched.clear()
        self.noted = {}

    @rule()
    def full_disk(self) -> None:
        """While the disk is full mail is refused, and what settles waits."""
        self._settle()
        self.files.error = NO_SPACE
        refused = self._make(["a.test"], 3, 1)
        for delivery in refused:
            self.known.remove(delivery)
        self._submit(Transaction(removes=self.known[-1:]))
        error = self.bench.commit(Transaction([(refused[0].message, refused)]))
        assert isinstance(error, StoreFull)
        self.files.error = 0
        self._settle()

    @rule()
    def failed_checkpoint(self) -> None:
        """The index cannot be written: nothing changes, and nothing is lost."""
        self._settle()
        self.bench.store._checkpoint_not_before = 0.0
        self.files.names, self.files.error = {"commit"}, NO_SPACE
        self.bench.checkpoint()
        self.files.names, self.files.error = {"pwritev"}, 0
        self.bench.store._checkpoint_not_before = 1e300  # it is for `checkpoint` to try again
        self.noted = {key: delivery.queue for key, delivery in self.durable.deliveries.items()
                      if key in self.touched or key not in self.indexed.deliveries}

    # -- looks -----

    @rule()
    def checkpoint(self) -> None:
        """The index has exactly what is in the queue."""
        self._settle()
        self.bench.store._checkpoint_not_before = 0.0
        self.bench.checkpoint()
        self.indexed = self.durable.copy()
        self.touched.clear()
        self.noted = {}
        queue = self.durable.deliveries
        assert shown(self.bench.queue()) == shown(sorted(queue.values(), key=lambda d: d.key))
        assert self.bench.counts() == self.durable.counts()
        listed, _ = self.bench.answer(self.bench.store.list_queues, "", 100)
        names = {d.queue for d in queue.values()}
        assert {(q.name, q.deliveries, q.recipients, q.next_due_us) for q in listed} == {
            (name, len(own), sum(len(d.recipients) for d in own), min(d.due_us for d in own))
            for name in names for own in [[d for d in queue.values() if d.queue == name]]}
        due, _ = self.bench.answer(self.bench.store.due_queues, b"", 100)
        assert due == sorted(due, key=lambda entry: entry[0])
        assert {name: due_us for due_us, name in due} == {q.name: q.next_due_us for q in listed}
        assert dict(self.bench.answer(self.bench.store.list_marks, b"", 100)) == self.durable.marks
        in_segments = self.bench.store._index.segments.values()
        assert sum(use.messages for use in in_segments) == self.durable.counts().messages

    @rule(queue=st.sampled_from([*QUEUES, "s.test", "none.test"]), before=TIMES, limit=st.integers(0, 5),
          data=st.data())
    def load(self, queue: str, before: int, limit: int, data: st.DataObject) -> None:
        """A load finds what is in the index, due, not excluded and not touched since; and what the index would have if
        the last checkpoint had not failed, as it is now."""
        exclude = set(data.draw(st.lists(st.sampled_from([d.key for d in self.known]), max_size=4)))
        pending = {d.key for tx, told in self.submitted if not told for d in (*tx.updates, *tx.removes)}
        found, next_us = self.bench.answer(self.bench.store.load_due, queue, START_US + before, limit, exclude)

        def expected(hidden: set[Key]) -> tuple[list[Any], int | None]:
            there = sorted((d for d in self.indexed.deliveries.values() if d.queue == queue and d.key not in hidden),
                           key=lambda d: (d.due_us, d.key))
            due = [d for d in there if d.due_us <= START_US + before][:limit]
            rest = there[len(due):]
            found = sorted([*(d for d in due if d.key not in pending), *late[:limit + 1]], key=lambda d: d.due_us)
            following = [d.due_us for d in (*rest[:1], *found[limit:limit + 1])]
            return shown(found[:limit]), min(following, default=None)

        late = sorted((d for key, d in self.durable.deliveries.items()
                       if self.noted.get(key) == d.queue == queue and d.due_us <= START_US + before
                       and key not in exclude | pending), key=lambda d: (d.due_us, d.key))

        # What is on its way to the disk is never in the result, but may have taken a place in it.
        outcomes = [expected(exclude | self.touched), expected((exclude | self.touched) - (pending - exclude))]
        assert (shown(found), next_us) in outcomes
        for delivery in found:
            assert len(self.bench.store.body(delivery.message)) == delivery.message.size

    @rule(key=st.sampled_from([b"k1", b"k2"]))
    def look_at_mark(self, key: bytes) -> None:
        """A mark is there when it is durable."""
        self._settle()
        assert self.bench.answer(self.bench.store.has_mark, key) == self.durable.marks.get(key)

    @invariant()
    def bounded(self) -> None:
        """The counts never lose a delivery."""
        if not self.submitted:
            assert self.bench.counts().deliveries <= len(self.known)


def test_the_store_holds_what_the_model_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any sequence of accepts, updates, removals, checkpoints, failures, crashes and restarts."""
    monkeypatch.setattr("mta.queue.commits.RETRY_S", 0.002)
    run_state_machine_as_test(StoreMachine, settings=settings(
        max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)))
