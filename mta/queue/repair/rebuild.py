"""Makes an index anew: from what is readable of the old one, and from the journal.

For a message that the old index has whole, its records count, and what the journal has beyond the checkpoint. For the
others the journal is read from its beginning: a segment stays as long as a message in it is queued, so the frame by
which that was accepted is there, unless its content was copied forward since. What happened to such a message in
segments that are gone is not known here: ends are in the event files (`mta.queue.repair.books`), attempts are
forgotten. When it is not sure up to where the old index had read the journal, all of it is read.

Memory is bounded as in recovery: the new index is written in pieces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from mta.queue.checkpoint import write_checkpoint
from mta.queue.effects import DeliveryState, Effects, NewMessage
from mta.queue.encoding import Position, ShardState
from mta.queue.index import Index
from mta.queue.journal import PAGE, Frame, Segment, is_spare, segment_numbers, segment_path
from mta.queue.records import BodyRef
from mta.queue.repair.salvage import Remains
from mta.queue.transaction import contents, replay
from mta.queue.verify.journal import NONSENSE, ToleratingReader, nonsense
from mta.queue.verify.problems import Findings

_ENTRIES: Final = 5000  # effects gathered before they go into the index


class NewIndex(Index):
    """An index that nobody relies on before it is whole; `sync` makes it durable."""

    _synced = False

    def sync(self) -> None:
        """All that was committed is on stable storage. Raises OSError."""
        fd = self.files.open(self._path / "data.mdb", os.O_RDWR)
        try:
            self.files.fdatasync(fd)
        finally:
            self.files.close(fd)


class SalvagingReader(ToleratingReader):
    """Reads also segments whose header is damaged, if their frames are newer than those of the one before."""

    def _segment(self, number: int) -> Segment | None:
        segment = super()._segment(number)
        path = segment_path(self._directory, number)
        if segment is not None or not path.exists() or is_spare(self._directory, number, self._files):
            return segment
        segment = Segment.without_header(self._directory, number, self._files)
        if segment is None:
            return None
        before = Segment.open(self._directory, number - 1, self._files)
        if before is not None:
            first, its_first = before.next_frame(PAGE, before.size), segment.next_frame(PAGE, segment.size)
            before.close()
            if first is not None and its_first is not None and its_first.time_us < first.time_us:
                segment.close()
                return None
        self._findings.damaged(number)
        return segment


class Rebuild:
    """One index in the making."""

    def __init__(self, index: Index, remains: Remains, journal: Path, findings: Findings) -> None:
        """`index` is new and empty. What is damaged in the journal is told to `findings`."""
        self.index = index
        self.replayed: set[int] = set()  # messages that were taken from the journal, not from the old index
        self.doubtful: set[int] = set()  # messages that the old index does not have whole
        self.last_id = 0  # the largest one seen
        self._remains = remains
        self._journal = journal
        self._findings = findings
        self._effects = Effects()
        self.state = remains.state or ShardState()
        self.end = Position(0, 0)  # of the journal, behind its last frame that can be read
        self.unsure = not self._is_boundary(self.state.position)
        """What was settled may be queued again: a part of the journal that tells of it cannot be read."""

    def run(self) -> None:
        """Fill it. Raises OSError and lmdb.Error."""
        remains = self._remains
        for found in remains.messages(self._findings.doubtful):
            self._accept(found.message(), found.deliveries)
        self.doubtful |= {found.id for found in remains.fragments} | self._findings.doubtful
        doubtful = self.doubtful
        for key, value in remains.marks():
            self._effects.mark(key, value)
        places = self.places(doubtful) if doubtful else {}
        for found in remains.fragments:
            accepted, place = places.get(found.id, (False, None))
            if not accepted and found.value is not None and found.deliveries:
                self._accept(found.message(place), found.deliveries)
        from_start = self.unsure or bool(doubtful or remains.gaps or remains.marks_lost)
        position = self.state.position
        gaps = Findings(self._findings.summary, self._findings.progress)
        reader = SalvagingReader(self._journal, gaps)
        if from_start and self._journal.is_dir():
            numbers = segment_numbers(self._journal)
            for frame in self._reader().frames(Position(numbers[0] if numbers else 0, 0)):
                if self.unsure:
                    self._replay(frame, None)
                elif frame.start < position:
                    self._replay(frame, doubtful)
        if not self.unsure:
            for frame in reader.frames(position):
                self._replay(frame, None)
            for number, ranges in gaps.damage.items():
                self._findings.damage.setdefault(number, set()).update(ranges)
            self.unsure = bool(gaps.problems)
        self._flush()

    def find(self, wanted: set[int]) -> Effects:
        """What the journal as a whole knows of these messages, in the queue or not. Raises OSError."""
        effects = Effects()
        for frame in self._reader().frames(Position(0, 0)):
            one = self._effects_of(frame)
            if one is not None and (self._of(one, wanted) or one.messages or one.deliveries):
                effects.follow(one)
        return effects

    def is_doubtful(self, message_id: int) -> bool:
        """Whether it may have been settled without that the new index knows of it."""
        return self.unsure or message_id in self.replayed or message_id in self.doubtful

    def frames(self, start: Position) -> Iterator[tuple[Frame, bytes]]:
        """Every frame that can be read from `start` on, and its event lines. Raises OSError."""
        for frame in self._reader().frames(start):
            try:
                yield frame, replay(frame.operations, frame.blobs, None)
            except NONSENSE:
                continue

    def _reader(self) -> SalvagingReader:
        return SalvagingReader(self._journal, self._findings, needed=lambda number: True)

    def _is_boundary(self, position: Position) -> bool:
        """Whether the journal has a frame that begins or ends here; then the index is right about it."""
        if self._remains.state is None:
            return False
        if not position.segment:
            return True
        reader = ToleratingReader(self._journal, Findings(self._findings.summary, self._findings.progress),
                                  needed=position.segment.__eq__)
        return any(position in (frame.start, frame.end) for frame in reader.frames(Position(position.segment, 0)))

    def places(self, wanted: set[int]) -> dict[int, tuple[bool, BodyRef | None]]:
        """Of those messages that the journal has: whether it has them with their records, and the last content.

        Raises OSError.
        """
        found: dict[int, tuple[bool, BodyRef | None]] = {}
        for frame in self._reader().frames(Position(0, 0)):
            one = self._effects_of(frame)
            if one is not None:
                for message_id, place in contents(frame.operations, frame.blobs):
                    if message_id in wanted:
                        accepted = message_id not in one.moves or found.get(message_id, (False,))[0]
                        found[message_id] = (accepted, place)
        return found

    def _effects_of(self, frame: Frame) -> Effects | None:
        """What a frame does by itself; None when it makes no sense."""
        one = Effects()
        try:
            replay(frame.operations, frame.blobs, one)
        except NONSENSE as error:
            nonsense(self._journal, frame, self._findings, error)
            return None
        return one

    def _replay(self, frame: Frame, doubtful: set[int] | None) -> None:
        """Take a frame in; of one that the old index had read (`doubtful`) only what that has lost."""
        self.end = max(self.end, frame.end)
        one = self._effects_of(frame)
        if one is None:
            return
        self.last_id = max(self.last_id, one.last_id)
        if doubtful is not None:
            self._of(one, {message_id for message_id in self._ids(one)
                           if message_id in doubtful or self._remains.misses(message_id)})
            if not self._remains.marks_lost:
                one.marks.clear()
        for message_id in [message_id for message_id in one.messages if self._has(message_id)]:
            del one.messages[message_id]  # the old index has it, as it was later
            for key in [key for key, state in one.deliveries.items() if key[0] == message_id and state is not None]:
                del one.deliveries[key]
        if doubtful is not None or self.unsure:
            self.replayed.update(one.messages)
        one.born = sum(1 for state in one.deliveries.values() if state is not None and state.born)
        self._effects.follow(one)
        if self._effects.size > _ENTRIES:
            self._flush()

    @staticmethod
    def _ids(one: Effects) -> set[int]:
        return {*one.messages, *one.moves, *(key[0] for key in one.deliveries)}

    @staticmethod
    def _of(one: Effects, wanted: set[int]) -> bool:
        """Leave only what concerns the messages `wanted`, in `one`; whether that is something."""
        one.messages = {number: message for number, message in one.messages.items() if number in wanted}
        one.deliveries = {key: state for key, state in one.deliveries.items() if key[0] in wanted}
        one.moves = {number: move for number, move in one.moves.items() if number in wanted}
        return bool(one.messages or one.deliveries or one.moves)

    def _has(self, message_id: int) -> bool:
        return message_id in self._effects.messages or self.index.place(message_id) is not None

    def _accept(self, message: NewMessage, deliveries: list[DeliveryState]) -> None:
        self._effects.accept(message, deliveries)
        if self._effects.size > _ENTRIES:
            self._flush()

    def _flush(self) -> None:
        self.last_id = max(self.last_id, self._effects.last_id)
        self.take(self._effects)
        self._effects = Effects()

    def take(self, effects: Effects) -> None:
        """Take `effects` into the new index. Raises OSError and lmdb.Error."""
        write_checkpoint(self.index, effects, replace(self.index.state))
