"""After any end, good or bad: what the journal has beyond the last checkpoint is brought into the index.

The journal is read from the place that the index names, so the work is bounded by the interval of checkpoints and does
not depend on how much is queued. Reading ends at the first frame that is not whole, the torn tail of a crash: nothing
in it had been confirmed to anyone.

Damage looks different: behind a frame that cannot be read there are others, which were written only after it was
durable. Then what can be read is used, what cannot be is copied to `quarantine/`, and the operator is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Final

from mta.queue.checkpoint import write_checkpoint
from mta.queue.effects import Effects
from mta.queue.encoding import Position
from mta.queue.errors import StoreUnusable
from mta.queue.eventlog import EventLog
from mta.queue.fileops import FileOps
from mta.queue.ids import SHARD_BITS
from mta.queue.index import Index
from mta.queue.journal import PAGE, Frame, Segment, segment_numbers, segment_path
from mta.queue.transaction import replay

_ENTRIES: Final = 5000  # effects gathered before they go into the index
_COPY: Final = 1 << 20
_NOWHERE: Final = Position(0, 0)

Report = Callable[[str], None]
"""Tells the operator, in one line."""


def recover(index: Index, events: EventLog, reader: JournalReader) -> Position:
    """Bring the index and the event files up to the end of the journal, which is returned.

    Raises StoreUnusable, OSError and lmdb.Error; then a later attempt starts where this one did.
    """
    state = index.state
    position, copied = state.position, state.events.journal
    if state.clean and position.segment:
        return position
    reader.sync(min(position, copied))
    end = max(position, copied)
    effects = Effects()
    for frame in reader.frames(min(position, copied)):
        end = max(end, frame.end)
        try:
            lines = replay(frame.operations, frame.blobs, effects if frame.start >= position else None)
        except (ValueError, TypeError, LookupError, StopIteration) as error:
            raise StoreUnusable(f"segment {frame.start.segment} of the journal: the frame at {frame.start.offset} is "
                                f"whole but makes no sense: {error}") from None
        if frame.start >= copied:
            events.append(lines, frame.time_us, frame.end)
            if events.error is not None and events.is_choked:
                raise events.error  # less than that can be written when there is space again
        if effects.size > _ENTRIES:
            _take_in(index, effects, frame.end, events)
            effects = Effects()
    _take_in(index, effects, end, events)
    return end


def begin_life(index: Index, boot_id: str, now_us: int) -> None:
    """Note durably, before anything else happens, that the shard is in use. Raises OSError and lmdb.Error.

    Marks of what was in flight outlive a process (`mta.queue.inflight`), but not the machine. After a power failure
    any delivery that was due may have been under way.
    """
    state = replace(index.state, clean=False, boot_id=boot_id)
    if not index.state.clean and index.state.boot_id != boot_id:
        # The battery of the clock may have failed, too: it was at least as late as when the last message came.
        state.dup_before_us = max(now_us, state.last_id >> SHARD_BITS)
    write_checkpoint(index, Effects(), state)


def _take_in(index: Index, effects: Effects, end: Position, events: EventLog) -> None:
    events.sync(events.mark)
    state = replace(index.state)
    state.move_to(end, events.mark)
    write_checkpoint(index, effects, state)


class JournalReader:
    """Reads what is durable in the journal of a shard that nobody writes.

    It sets aside what is damaged, in `quarantine`, and tells of it by `report`.
    """

    def __init__(self, directory: Path, quarantine: Path, files: FileOps, report: Report) -> None:
        self._directory = directory
        self._quarantine = quarantine
        self._files = files
        self._report = report

    def frames(self, start: Position) -> Iterator[Frame]:
        """All durable frames from `start` on, in order. Raises StoreUnusable and OSError."""
        chain: list[tuple[int, Position]] = []  # segments, and where each says that the one before it ended
        for number in segment_numbers(self._directory):
            if number >= start.segment and (segment := self._segment(number)) is not None:
                chain.append((number, segment.before))
                segment.close()
        self._check([number for number, _ in chain], start)
        for (number, _), (_, before) in zip_longest(chain, chain[1:], fillvalue=(0, _NOWHERE)):
            segment = self._segment(number)
            if segment is None:
                raise StoreUnusable(f"{segment_path(self._directory, number)} went away while it was to be read")
            try:
                offset = max(start.offset, PAGE) if number == start.segment else PAGE
                yield from self._frames_of(segment, offset, before.offset if before.segment == number else None)
            finally:
                segment.close()

    def sync(self, start: Position) -> None:
        """What can be read from `start` on is durable: a process that was killed may not have come to that.

        Raises OSError.
        """
        for number in segment_numbers(self._directory):
            if number >= start.segment and (segment := self._segment(number)) is not None:
                try:
                    segment.sync()
                finally:
                    segment.close()

    def _segment(self, number: int) -> Segment | None:
        return Segment.open(self._directory, number, self._files)

    def _check(self, chain: list[int], start: Position) -> None:
        """Nothing is missing in between."""
        expected = max(start.segment, 1)
        if start.segment and not chain:
            raise StoreUnusable(f"{segment_path(self._directory, expected)} is missing or damaged")
        for number in chain:
            if number != expected:
                raise StoreUnusable(f"{segment_path(self._directory, expected)} is missing or damaged, but the segment "
                                    f"{number} after it is there; or the index is older than the journal")
            expected += 1

    def _frames_of(self, segment: Segment, offset: int, limit: int | None) -> Iterator[Frame]:
        """The frames of one segment, which ended at `limit`; None when it is the last and nobody knows."""
        frame = segment.frame(offset)
        while limit is None or offset < limit:
            if frame is None:
                frame = segment.next_frame(offset + PAGE, segment.size if limit is None else limit)
                if frame is not None:
                    self._set_aside(segment, offset, frame.start.offset)
                elif limit is not None:
                    self._set_aside(segment, offset, limit)
                if frame is None:
                    return
            offset = frame.end.offset
            following = segment.frame(offset)
            if limit is None and following is None and self._is_torn(segment, frame):
                return
            yield frame
            frame = following

    def _is_torn(self, segment: Segment, frame: Frame) -> bool:
        """Whether a frame that has none right after it lacks some of its contents.

        If there is one further on, it was durable, and a content in it was damaged later: whoever reads that finds out.
        """
        return not segment.is_whole(frame) and segment.next_frame(frame.end.offset + PAGE, segment.size) is None

    def _set_aside(self, segment: Segment, start: int, end: int) -> None:
        target = self._quarantine / f"journal-{segment.number:08d}-{start}.bin"
        self._report(f"segment {segment.number} of the journal is damaged from {start} to {end}: what was accepted or "
                     f"settled there is lost; the bytes are in {target}")
        fd = self._files.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            for offset in range(start, end, _COPY):
                piece = segment.raw(offset, min(_COPY, end - offset))
                self._files.write_all(fd, [piece], offset - start)
            self._files.fdatasync(fd)
        finally:
            self._files.close(fd)
