"""Checks one shard that nobody uses: everything in it, against everything else in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import Final

import lmdb

from mta.queue.effects import Effects
from mta.queue.encoding import ShardState, unpack_state
from mta.queue.errors import StoreLocked, StoreVersion
from mta.queue.ids import format_id, shard_of
from mta.queue.journal import segment_numbers
from mta.queue.shard import VERSION
from mta.queue.verify.contents import ContentCheck
from mta.queue.verify.events import EventCheck
from mta.queue.verify.journal import ToleratingReader, place_of, replayed
from mta.queue.verify.problems import Findings
from mta.queue.verify.records import RecordCheck
from mta.queue.verify.truth import UNREADABLE, ReadOnlyIndex, Truth

_SLOT: Final = Struct("<QII")


@contextmanager
def held(lock: Path, what: str) -> Iterator[None]:
    """Nobody begins to use what is locked by this file meanwhile. Raises StoreLocked when somebody does.

    A file that does not exist was never locked, and is not made.
    """
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
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
                 complete: bool = False) -> None:
        """`quick`: contents are not read. `events`: whether the lines in the event files are events of ours."""
        self._directory = directory
        self._journal = directory / "journal"
        self._where = str(directory / "queue.mdb")
        self._findings = findings
        self._quick = quick
        self._events = events
        self._complete = complete

    def run(self) -> None:
        """Check all of it. Raises StoreLocked, StoreVersion and OSError: then nothing was found out."""
        with held(self._directory / "shard.lock", str(self._directory)):
            if not any((self._directory / name).exists() for name in ("journal", "queue.mdb", "version")):
                return  # its first owner had no time to begin with it
            self._check_version()
            index = self._open_index()
            try:
                self._check(index)
            finally:
                if index is not None:
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
        elif int(text) > VERSION:
            raise StoreVersion(f"{self._directory} was written by a newer version of this program (format {text}, this "
                               f"one knows {VERSION})")

    def _open_index(self) -> ReadOnlyIndex | None:
        """The index, if it can be read; one that was never written is not missing."""
        path = self._directory / "queue.mdb"
        if not (path / "data.mdb").exists() and not any(self._begun()):
            return None
        try:
            return ReadOnlyIndex.of(path)
        except (OSError, lmdb.Error) as error:
            self._findings.add("index", self._where, f"the index cannot be opened: {error}")
            return None

    def _begun(self) -> Iterator[int]:
        """The segments that something was written to."""
        reader = ToleratingReader(self._journal, self._findings, needed=lambda number: True)
        for number in segment_numbers(self._journal) if self._journal.is_dir() else ():
            segment = reader.segment(number)
            if segment is not None:
                segment.close()
                yield number

    def _check(self, index: ReadOnlyIndex | None) -> None:
        state = self._state(index)
        if index is not None:
            try:
                RecordCheck(index, state, self._where, self._findings).run()
            except lmdb.Error as error:
                self._findings.add("index", self._where, f"the index cannot be read: {error}")
                index = None
        effects, end = Effects(), state.position
        if self._journal.is_dir():
            effects, end = replayed(self._journal, state.position, self._findings)
        if state.clean and state.position.segment and end > state.position:
            self._findings.add("checkpoint", place_of(self._journal, state.position),
                               f"the index says that it ended in good order here, but the journal goes on to {end}: "
                               "what is there would not be read")
        truth = Truth(index, state, effects, self._where)
        self._count(truth)
        if self._journal.is_dir():
            ContentCheck(self._journal, truth, self._findings, self._quick).run()
        if self._events:
            EventCheck(self._directory / "events", self._journal, truth, self._findings, self._complete).run()
        self._check_inflight(max(state.last_id, effects.last_id))

    def _state(self, index: ReadOnlyIndex | None) -> ShardState:
        if index is None:
            return ShardState()
        raw = index.raw_state()
        if raw is None:
            return ShardState()
        try:
            return unpack_state(raw)
        except UNREADABLE as error:
            self._findings.add("checkpoint", f"{self._where} state", f"the state is damaged: {error!r}")
            return ShardState()

    def _count(self, truth: Truth) -> None:
        summary = self._findings.summary
        for one in truth.messages():
            summary.messages += 1
            summary.deliveries += len(one.deliveries)
            summary.recipients += sum(len(delivery.recipients) for delivery in one.deliveries)

    def _check_inflight(self, last_id: int) -> None:
        """Marks of what may have been delivered; those of deliveries that are gone are remains of a crash."""
        path = self._directory / "inflight"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return
        number = int(self._directory.name) if self._directory.name.isdecimal() else None
        for offset in range(0, len(raw) - _SLOT.size + 1, _SLOT.size):
            message_id, index, nothing = _SLOT.unpack_from(raw, offset)
            if not message_id:
                continue
            if nothing or index > 0xFFFF or message_id > last_id or number not in (None, shard_of(message_id)):
                self._findings.add("inflight", f"{path}:{offset}", f"this marks {format_id(message_id)}/{index}, which "
                                   "cannot be a delivery of this shard")

