"""Checks one shard that nobody uses: everything in it, against everything else in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import lmdb

from mta.queue.effects import Key
from mta.queue.encoding import UNREADABLE, Position, ShardState, unpack_state
from mta.queue.errors import StoreLocked
from mta.queue.ids import format_id, shard_of
from mta.queue.index import DATABASES
from mta.queue.inflight import LAST_INDEX, SLOT
from mta.queue.journal import segment_numbers
from mta.queue.shard import boot_id, check_format
from mta.queue.verify.contents import ContentCheck
from mta.queue.verify.events import EventCheck
from mta.queue.verify.journal import ToleratingReader, place_of, replayed
from mta.queue.verify.pages import PageFile, Unusable
from mta.queue.verify.problems import Findings
from mta.queue.verify.receipts import Receipts
from mta.queue.verify.records import RecordCheck
from mta.queue.verify.truth import ReadOnlyIndex, Truth


@contextmanager
def held(lock: Path, what: str, *, exclusive: bool = False) -> Iterator[None]:
    """Nobody begins to use what is locked by this file meanwhile. Raises StoreLocked when somebody does.

    `exclusive`: nobody looks at it, either.

    A file that does not exist was never locked, and is not made.
    """
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            raise StoreLocked(f"{what} is in use by process {owner}: what is read while it changes would make no "
                              "sense; stop it first") from None
        yield
    finally:
        os.close(fd)


class ShardCheck:
    """The checks of one shard, from the journal up."""

    def __init__(self, directory: Path, findings: Findings, *, quick: bool = False, events: bool = True,
                 complete: bool = False, receipts: Receipts | None = None, locked: bool = False) -> None:
        """`quick`: contents are not read. `events`: whether the lines in the event files are events of ours.

        `receipts`, if given, is told what the events say. `locked`: the caller holds the lock.
        """
        self._directory = directory
        self._journal = directory / "journal"
        self._where = str(directory / "queue.mdb")
        self._findings = findings
        self._quick = quick
        self._events = events
        self._complete = complete
        self._receipts = receipts
        self._locked = locked

    def run(self) -> None:
        """Check all of it. Raises StoreLocked, StoreVersion and OSError: then nothing was found out."""
        with nullcontext() if self._locked else held(self._directory / "shard.lock", str(self._directory)):
            if not any((self._directory / name).exists() for name in ("journal", "queue.mdb", "version")):
                return  # its first owner had no time to begin with it
            self._check_version()
            index = self._check_index()
            if index is None:
                for _ in self._reader().frames(Position(0, 0)):
                    pass  # damaged frames are reported; without the index nothing more is known
                return
            try:
                self._check_queue(index)
            finally:
                index.close()

    def _check_version(self) -> None:
        path = self._directory / "version"
        try:
            text = path.read_text("ascii", "replace").strip()
        except FileNotFoundError:
            self._findings.add("version", str(path), "the file is missing")
            return
        if not text.isdecimal():
            self._findings.add("version", str(path), f"{text[:20]!r} is no version")
        else:
            check_format(self._directory, int(text))

    def _check_index(self) -> ReadOnlyIndex | None:
        """The index, open, if it can be used; with it the check of its databases has been done."""
        data = self._directory / "queue.mdb" / "data.mdb"
        if not data.exists():
            if self._has_begun():
                self._findings.add("index", str(data), "the index is missing")
            return None
        self._check_pages(data)
        if self._findings.has("index"):
            return None  # LMDB would follow the damage, perhaps to the end of this process
        index = None
        try:
            index = ReadOnlyIndex.of(data.parent)
            index.state = self._state(index)
            if not self._findings.has("state"):
                RecordCheck(index, index.state, self._where, self._findings).run()
                return index
        except lmdb.Error as error:
            self._findings.add("index", self._where, f"the index cannot be read: {error}")
        if index is not None:
            index.close()
        return None

    def _check_pages(self, data: Path) -> None:
        def report(offset: int, text: str) -> None:
            self._findings.add("index", f"{data}:{offset}", text)

        try:
            pages = PageFile(data, report)
        except Unusable as error:
            report(0, str(error))
            return
        try:
            pages.check()
            for name in DATABASES:
                if name.encode() not in pages.trees:
                    report(0, f"the database `{name}` is missing")
        finally:
            pages.close()

    def _state(self, index: ReadOnlyIndex) -> ShardState:
        raw = index.raw_state()
        if raw is None:
            return ShardState()  # before the first checkpoint
        try:
            return unpack_state(raw)
        except UNREADABLE as error:
            self._findings.add("state", f"{self._where} state", f"the state is damaged: {error!r}")
            return ShardState()

    def _has_begun(self) -> bool:
        """Whether anything was written to the journal."""
        reader = self._reader()
        return self._journal.is_dir() and any(reader.has_begun(number) for number in segment_numbers(self._journal))

    def _reader(self) -> ToleratingReader:
        return ToleratingReader(self._journal, self._findings, needed=lambda number: True)

    # -- what it says, with the journal ----------------------------------------------------------------------------

    def _check_queue(self, index: ReadOnlyIndex) -> None:
        """All that takes the index to judge it."""
        state = index.state
        effects, end = replayed(self._journal, state.position, self._findings)
        if state.clean and state.position.segment and end > state.position:
            self._findings.add("state", place_of(self._journal, state.position),
                               "the index says that the shard was left in good order here, but the journal goes on to "
                               f"{end.segment}:{end.offset}: what is there would not be read")
        truth = Truth(index, state, effects, self._where, self._suspects(state, effects.last_id))
        self._count(truth)
        ContentCheck(self._journal, truth, self._findings, self._quick).run()
        if self._events:
            EventCheck(self._directory / "events", self._journal, truth, self._findings, self._complete,
                       self._receipts).run()

    def _count(self, truth: Truth) -> None:
        summary = self._findings.summary
        for one in truth.messages():
            summary.messages += 1
            summary.deliveries += len(one.deliveries)
            summary.recipients += sum(len(delivery.recipients) for delivery in one.deliveries)

    def _suspects(self, state: ShardState, last_id: int) -> set[Key]:
        """Marks of what may have been delivered. Those of deliveries that are gone are remains of a crash.

        They are not synced while the shard is in use: after a loss of power they may be anything, and do not count.
        """
        path = self._directory / "inflight"
        found: set[Key] = set()
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return found
        number = int(self._directory.name) if self._directory.name.isdecimal() else None
        last_id = max(last_id, state.last_id)
        garbled = not state.clean and state.boot_id != boot_id()
        for offset in range(0, len(raw) - SLOT.size + 1, SLOT.size):
            message_id, index, nothing = SLOT.unpack_from(raw, offset)
            if not message_id:
                continue
            if nothing or index > LAST_INDEX or message_id > last_id or number not in (None, shard_of(message_id)):
                if not garbled:
                    self._findings.add("inflight", f"{path}:{offset}", f"this marks {format_id(message_id)}/{index}, "
                                       "which cannot be a delivery of this shard")
            else:
                found.add((message_id, index))
        return found
