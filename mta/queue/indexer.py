"""The index thread's work around a checkpoint: sync the events, commit, give back the space of what is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import lmdb

from mta.queue.checkpoint import Touched, write_checkpoint
from mta.queue.compaction import Compactor
from mta.queue.effects import Effects
from mta.queue.encoding import EventMark, Position, ShardState
from mta.queue.eventlog import EventLog
from mta.queue.index import DAMAGE, Index
from mta.queue.journal import Journal, durable_frames, segment_numbers
from mta.queue.shard import Shard
from mta.queue.transaction import Move, replay

CANNOT_REMOVE: Final = "files that are not needed any more cannot be removed"
CANNOT_COPY: Final = "a segment of the journal cannot be copied"


@dataclass(slots=True)
class Checkpoint:
    """What became of a checkpoint."""

    error: str  # why nothing of it was done; empty when it was
    damaged: bool  # for a damage of the index, which stays
    touched: Touched
    state: ShardState
    used_share: float  # of the index's map
    seconds: float


class Indexer:
    """Keeps the index and the files that depend on it. All of it belongs to the index thread."""

    def __init__(self, shard: Shard, index: Index, journal: Journal, events: EventLog, compactor: Compactor,
                 keep: int) -> None:
        self.keep = keep  # how many closed event files
        self.problems = index.problems  # for the operator; the hub takes them out
        self._shard = shard
        self._index = index
        self._journal = journal
        self._events = events
        self._compactor = compactor
        self._events_lost = False  # and the operator was told
        self._told: dict[str, str] = {}  # by what cannot be done, what the operator was told of it
        self._retired: set[int] = set()
        self._swept_at = 0
        self._used_share = index.used_share()

    def checkpoint(self, effects: Effects, position: Position, mark: EventMark, *, clean: bool = False) -> Checkpoint:
        """Take `effects` in; with them the journal is in the index up to `position`, and in the events up to `mark`.

        `clean` says that this is the end of it, and that all is there.
        """
        started = time.monotonic()
        mark = self._synced(mark)
        state = replace(self._index.state, clean=clean and position == mark.journal)
        state.move_to(position, mark)
        segments = self._index.segments
        try:
            touched = write_checkpoint(self._index, effects, state)
        except Exception as error:
            # Whatever it is: the mail is in the journal, and mail that is in memory is delivered while this is tried
            # again. The operator is told.
            damaged = isinstance(error, DAMAGE)
            if damaged:
                self._index.damaged("nothing more can be written to it", error)
            return Checkpoint(f"{type(error).__name__}: {error}", damaged, [], self._index.state, self._used_share, 0.0)
        try:
            self._tidy(segments.keys() - self._index.segments.keys())
            self._told.pop(CANNOT_REMOVE, None)
        except (OSError, lmdb.Error) as error:
            self._tell(CANNOT_REMOVE, error)
        try:
            self._used_share = self._index.used_share()
        except lmdb.Error as error:  # of a database that this checkpoint had nothing for: it is done all the same
            self._index.damaged("a part of it cannot be read", error)
        return Checkpoint("", False, touched, self._index.state, self._used_share, time.monotonic() - started)

    def compact(self) -> list[Move] | None:
        """The next contents to copy; None when there is nothing to do."""
        try:
            moves = self._compactor.piece()
            self._told.pop(CANNOT_COPY, None)
            return moves
        except (OSError, lmdb.Error) as error:
            self._compactor.close()
            self._tell(CANNOT_COPY, error)
            return None

    def _tell(self, what: str, error: Exception) -> None:
        """Once: it is tried again at every checkpoint."""
        if self._told.get(what) != str(error):
            self._told[what] = str(error)
            self.problems.append(f"{what}: {error}")

    def close(self) -> None:
        """Close what is open for copying."""
        self._compactor.close()

    def sweep(self) -> None:
        """Remove all segments that nothing needs. Raises OSError."""
        state = self._index.state
        before = min(state.segment, state.events_segment)
        present = segment_numbers(self._shard.journal)
        self._retired.intersection_update(present)
        for number in present:
            if number < before and number not in self._index.segments and number not in self._retired:
                self._journal.retire(number)
                self._retired.add(number)
        self._swept_at = before

    def _synced(self, mark: EventMark) -> EventMark:
        """The place up to which the events are durable: `mark`, or one before it."""
        events = self._events
        try:
            if events.in_doubt:
                events.restore(self._index.state.events, self._event_lines)
            if events.sync(mark):
                self._events_lost = False
                return mark
        except OSError as error:
            if not self._events_lost:
                self._events_lost = True
                self.problems.append(f"the event files cannot be made durable: {error}; as long as that is so their "
                                     "end is safe in the journal only, which is kept")
        return self._index.state.events

    def _event_lines(self, start: Position, end: Position) -> Iterator[bytes]:
        for frame in durable_frames(self._shard.journal, start, end, self._index.files):
            lines = replay(frame.operations, frame.blobs, None)
            if lines:
                yield lines

    def _tidy(self, emptied: set[int]) -> None:
        state = self._index.state
        if emptied or min(state.segment, state.events_segment) != self._swept_at:
            self.sweep()
            if state.event_file:
                self._events.prune(state.event_file, self.keep)
