"""A life of a store that is meant to end badly, and what a shard must hold after it.

`live` does everything a worker does to its store, from a seed, and writes down in a diary what it submits, what is
confirmed to it and what it says to remote hosts. `Account` reads the diary and says what the shard may hold now.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from mta.config import schema
from mta.config.units import Size
from mta.queue import compaction
from mta.queue.fileops import FileOps
from mta.queue.records import Delivery
from mta.queue.store import Counts, Key, StoreError, StoreUnusable, Transaction
from tests.queue.faults import Unsynced
from tests.queue.helpers import START_US, Bench, config, outcome

SEGMENT: Final = 64 * 1024
EVENT_FILE: Final = 600
ALL: Final = 10**6
DOMAINS: Final = ("a.test", "b.test", "c.test", "d.test")
SIZES: Final = (10, 10, 500, 6000, 30_000, 50_000)
LATER_US: Final = 10**9
OUTSTANDING: Final = 12
TIDE: Final = 14  # rounds of mostly arrivals, then as many of mostly departures


def settings(keep: int = ALL) -> schema.Config:
    """Small segments and event files, so that a short life sees them change."""
    return replace(config(segment_size=Size(SEGMENT)), events=schema.Events(size=Size(EVENT_FILE), keep=keep))


class Diary:
    """Where a life says what it does: a line each, before it does it or after it was told."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def say(self, what: str, *values: object) -> None:
        """One line, in one write."""
        os.write(self._fd, json.dumps([what, *values]).encode() + b"\n")


class _Life:
    """One life."""

    def __init__(self, bench: Bench, diary: Diary, seed: int) -> None:
        self._bench = bench
        self._store = bench.store
        self._diary = diary
        self._dice = random.Random(seed)
        self._name = f"life {seed}"
        self._number = 0
        self._outstanding = 0
        self._asked = 0
        self._mine: dict[Key, Delivery] = {}  # what can be worked on
        self._flying: list[Delivery] = []
        self._marks: list[bytes] = []
        self._ebb = False

    def run(self, rounds: int) -> None:
        """Take over what is there, work on it and on more for `rounds`, and come to an end."""
        self._mine = {delivery.key: delivery for delivery in self._bench.queue()}
        self._marks = [key for key, _ in self._bench.answer(self._store.list_marks, b"", 1000)]
        for number in range(rounds):
            self._ebb = number // TIDE % 2 > 0
            for _ in range(self._dice.choice((1, 1, 1, 2, 3))):
                self._step()
            self._store.flush()
            if self._dice.random() < 0.12:
                self._asked += 1
                self._store.find_message(0, self._answered)
            self._wait(self._dice.choice((0, 0, 1, OUTSTANDING)))
            if self._dice.random() < 0.1:
                self._bench.clock.now_us += LATER_US
                self._diary.say("clock", self._bench.clock.now_us)
        self._wait(0)

    def _wait(self, outstanding: int) -> None:
        self._bench.until(lambda: self._outstanding <= outstanding and self._asked <= 1)

    def _answered(self, *_: object) -> None:
        self._asked -= 1

    def _step(self) -> None:
        dice = self._dice
        kind = dice.random()
        leave = 0.55 if self._ebb else 0.15
        due = self._due()
        if self._flying and kind < leave:
            self._land(self._flying.pop(dice.randrange(len(self._flying))))
        elif due and (kind < 1.6 * leave or len(due) > 25):
            self._take_off(self._mine.pop(dice.choice(due)))
        elif self._mine and kind > (0.92 if self._ebb else 0.97):
            # An operator removes several at once.
            gone = [self._mine.pop(key) for key in dice.sample(list(self._mine), min(6, len(self._mine)))]
            self._submit(Transaction(removes=gone))
        elif self._marks and kind > 0.93:
            self._submit(Transaction(unmarks=[self._marks.pop()]))
        else:
            marks = []
            if dice.random() < 0.2:
                self._marks.append(b"file %d" % (self._number + 1))
                marks = [(self._marks[-1], b"%d" % self._number)]
            new = self._new(dice.sample(DOMAINS, dice.choice((1, 1, 2, 4))))
            self._submit(Transaction([(new[0].message, new)], marks=marks), new)

    def _due(self) -> list[Key]:
        return [key for key, delivery in self._mine.items() if delivery.due_us <= self._bench.clock()]

    def _new(self, domains: list[str]) -> list[Delivery]:
        size = self._dice.choice(SIZES)
        content = self._dice.randbytes(size) if self._dice.random() < 0.5 else bytes(size)
        return self._bench.make(*domains, content=content, recipients=self._dice.choice((1, 1, 3)))

    def _take_off(self, delivery: Delivery) -> None:
        self._diary.say("fly", delivery.key)
        self._store.mark_inflight(delivery)
        self._diary.say("sent", delivery.key)
        self._flying.append(delivery)

    def _land(self, delivery: Delivery) -> None:
        kind = self._dice.random()
        if kind < 0.6:
            self._submit(Transaction(removes=[delivery]))
        elif kind < 0.85:
            later = outcome(delivery, due_us=delivery.due_us + LATER_US, attempts=delivery.attempts + 1,
                            queue=self._dice.choice((delivery.queue, f"moved@{delivery.domain}")))
            self._submit(Transaction(updates=[later]), [later])
        elif kind < 0.95:
            notice = self._new(["sender.test"])
            self._submit(Transaction([(notice[0].message, notice)], removes=[delivery]), notice)
        else:
            self._diary.say("clear", delivery.key)
            self._store.clear_inflight(delivery)
            self._mine[delivery.key] = delivery

    def _submit(self, tx: Transaction, then: list[Delivery] | None = None) -> None:
        self._number += 1
        number = self._number
        line = json.dumps({"n": f"{self._name}, {number}", "text": "x" * self._dice.choice((0, 40))})
        tx.events = [line.encode()]
        self._diary.say(
            "tx", number, line,
            [[m.id, len(m.content or b""), crc32(m.content or b""), [_row(d) for d in ds]] for m, ds in tx.accepts],
            [_row(delivery) for delivery in tx.updates], [delivery.key for delivery in tx.removes],
            [[key.decode(), value.decode()] for key, value in tx.marks], [key.decode() for key in tx.unmarks])
        self._outstanding += 1

        def done(error: StoreError | None) -> None:
            self._outstanding -= 1
            self._diary.say("failed" if error else "done", number, str(error or ""))
            if error is None:
                for delivery in then or ():
                    delivery.message.content = None
                    self._mine[delivery.key] = delivery

        self._store.submit(tx, done)


def _row(delivery: Delivery) -> list[Any]:
    return [delivery.message.id, delivery.index, delivery.queue, delivery.due_us, len(delivery.recipients),
            delivery.maybe_duplicate]


def live(directory: Path, diary: Path, seed: int, rounds: int, *, boot: str = "boot 1", files: FileOps | None = None,
         keep: int = 0, close: bool = True, now_us: int = START_US) -> None:
    """One life of the shard in `directory`; no two have the same `seed`."""
    # A short life has few segments: it copies them when half of one is needed, not a quarter of several.
    compaction._NEEDED_AT_MOST, compaction._WASTE_ALLOWED = 2, 0
    said = Diary(diary)
    for attempt in range(3):
        try:
            bench = Bench(directory, settings(keep or ALL), files or FileOps(), boot, now_us)
            break
        except StoreUnusable:
            if attempt == 2:
                raise
    said.say("open")
    _Life(bench, said, seed).run(rounds)
    if close:
        try:
            bench.close()
        except StoreError as error:
            said.say("not closed", str(error))
        else:
            said.say("closed")
    else:
        bench.store.abandon()


# -- the account -------------------------------------------------------------------------------------------------------


@dataclass
class Content:
    """What a shard holds."""

    deliveries: dict[Key, tuple[str, int, int]] = field(default_factory=dict)  # queue, due time, recipients
    messages: dict[int, tuple[int, int]] = field(default_factory=dict)  # length and sum of the content
    marks: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)  # of the event files, those that were pruned included
    warned: set[Key] = field(default_factory=set)  # deliveries that a remote host may have already

    def copy(self) -> Content:
        """Another one like it."""
        return Content(dict(self.deliveries), dict(self.messages), dict(self.marks), list(self.lines),
                       set(self.warned))

    def apply(self, tx: list[Any]) -> None:
        """What a transaction of a diary does."""
        _, line, accepts, updates, removes, marks, unmarks = tx
        for message_id, size, crc, deliveries in accepts:
            self.messages[message_id] = size, crc
            self.deliveries.update({(d[0], d[1]): (d[2], d[3], d[4]) for d in deliveries})
        for message_id, index, *rest in updates:
            assert (message_id, index) in self.deliveries
            self.deliveries[message_id, index] = (rest[0], rest[1], rest[2])
            if rest[3]:
                self.warned.add((message_id, index))
        for message_id, index in removes:
            del self.deliveries[message_id, index]
        for key, value in marks:
            self.marks[key] = value
        for key in unmarks:
            self.marks.pop(key, None)
        self.lines.append(line)


class Account:
    """What may be in a shard that held `base` before the life that the lines of `diary` tell of.

    A transaction is atomic and has one event line, so the event files say which of those that were not confirmed have
    happened, and in which order; from that follows all the rest.
    """

    def __init__(self, base: Content, diary: bytes, *, suspects: set[Key] | None = None,
                 now_us: int = START_US) -> None:
        """`suspects` are deliveries that an earlier life may have left in flight."""
        self.base = base
        self.transactions: dict[str, list[Any]] = {}  # by event line, in the order of submission
        self.confirmed: list[str] = []  # in the order in which they became durable
        self.failed: set[str] = set()
        self.opened = self.closed = False
        self.now_us = now_us
        self.flown: set[Key] = set(suspects or ())  # may be marked
        self._sent: dict[Key, int] = {}  # the final dot was sent before transaction number ...
        by_number: dict[int, str] = {}
        for raw in diary.splitlines(keepends=True):
            if not raw.endswith(b"\n"):
                break  # the life ended in this line
            what, *values = json.loads(raw)
            if what == "tx":
                by_number[values[0]] = values[1]
                self.transactions[values[1]] = values
            elif what == "done":
                self.confirmed.append(by_number[values[0]])
            elif what == "failed":
                self.failed.add(by_number[values[0]])
            elif what == "fly":
                self.flown.add((values[0][0], values[0][1]))
            elif what == "sent":
                self._sent[values[0][0], values[0][1]] = len(by_number)
            elif what == "clear":
                self._sent.pop((values[0][0], values[0][1]), None)
            elif what == "clock":
                self.now_us = values[0]
            elif what == "open":
                self.opened = True
            elif what == "closed":
                self.closed = True

    def check(self, bench: Bench, *, in_order: bool = True, keep: int = 0, power: bool = False,
              refused_may_return: bool = False) -> Content:
        """Compare with what is in an open shard, which is returned.

        `in_order`: the disk failed nothing, so what was not confirmed happened in the order of submission or not at
        all. `keep`: closed event files but the last so many may be gone. `power`: the marks of what was in flight may
        be anything.
        `refused_may_return`: the process died while the disk was failing, which may bring back what it refused.
        """
        found = bench.events().decode().splitlines()
        expected = self._expected(found, in_order, keep, refused_may_return)
        deliveries = bench.queue()
        marks = dict(bench.answer(bench.store.list_marks, b"", 10_000))
        assert {d.key: (d.queue, d.due_us, len(d.recipients)) for d in deliveries} == expected.deliveries
        assert {key.decode(): value.decode() for key, value in marks.items()} == expected.marks
        messages = {d.message.id: d.message for d in deliveries}
        for number, message in messages.items():
            content = bench.store.body(message)
            assert (len(content), crc32(content)) == expected.messages[number], "another content"
        assert bench.counts() == Counts(len(messages), len(deliveries), sum(len(d.recipients) for d in deliveries))
        assert sum(use.messages for use in bench.store._index.segments.values()) == len(messages)
        assert not list((bench.directory / "quarantine").iterdir()), "taken for damaged"
        self._check_duplicates(deliveries, expected, power)
        expected.messages = {number: expected.messages[number] for number in messages}
        return expected

    def _expected(self, found: list[str], in_order: bool, keep: int, refused_may_return: bool) -> Content:
        """The content that goes with the event lines that were found."""
        old = self.base.lines
        if keep:
            # Closed files were removed, the oldest first; of those removals some may be undone.
            assert in_order
            written = [*old, *self.transactions]
            places = [written.index(line) for line in found]
            start = len(places)
            while start and (start == len(places) or places[start] == places[start - 1] + 1):
                start -= 1
            if places and places[start]:
                size = sum(len(line) + 1 for line in found[start:])
                assert size >= keep * EVENT_FILE, "events that are kept are gone"
            found = written[:places[start]] + found[start:] if places else []
        assert found[:len(old)] == old, "events of earlier lives are missing"
        happened = found[len(old):]
        assert len(set(happened)) == len(happened), "an event is there twice"
        assert set(happened) <= self.transactions.keys(), "events of something else"
        assert set(self.confirmed) <= set(happened), "confirmed, and lost"
        assert [line for line in happened if line in set(self.confirmed)] == self.confirmed
        if not refused_may_return:
            assert not set(happened) & self.failed, "refused, and there"
        if in_order:
            assert happened == list(self.transactions)[:len(happened)]
        if self.closed:
            assert len(happened) + len(self.failed) == len(self.transactions), "a clean end forgot something"
        content = self.base.copy()
        for line in happened:
            content.apply(self.transactions[line])
        return content

    def _check_duplicates(self, deliveries: list[Delivery], content: Content, power: bool) -> None:
        """What may have been delivered says so until it leaves; when only the process died, nothing else does."""
        lines = set(content.lines)
        settled: dict[Key, int] = {}
        for line, tx in self.transactions.items():
            if line in lines:
                for message_id, index, *_ in tx[3]:
                    settled[message_id, index] = tx[0]
        for delivery in deliveries:
            key = delivery.key
            sent_after = self._sent.get(key)
            if sent_after is not None and settled.get(key, 0) <= sent_after:
                content.warned.add(key)
            if key in content.warned:
                assert delivery.maybe_duplicate, "may be repeated without a warning"
            if delivery.maybe_duplicate and not power:
                assert key in self.flown or key in content.warned, "a warning without reason"


def examine(directory: Path, account: Account, *, boot: str = "boot 1", keep: int = 0, **options: bool) -> Content:
    """Open the shard after a life, check it, see that it works, and leave it as it was but for that."""
    bench = Bench(directory, settings(keep or ALL), Unsynced(), boot, account.now_us)
    try:
        content = account.check(bench, keep=keep, power=boot != "boot 1", **options)
        [new] = bench.accept("works.test")
        bench.commit(Transaction(removes=[new]))
        assert [d.key for d in bench.queue()] == sorted(content.deliveries)
    finally:
        bench.store.abandon()
    return content
