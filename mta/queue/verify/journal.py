"""Reads the journal of a shard as recovery does, but goes on where that gives up, and tells of what is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from mta.queue.effects import Effects
from mta.queue.encoding import UNREADABLE, Position
from mta.queue.fileops import FileOps
from mta.queue.journal import Frame, Segment, segment_path
from mta.queue.recovery import JournalReader
from mta.queue.transaction import replay
from mta.queue.verify.problems import Findings

NONSENSE = (*UNREADABLE, StopIteration)
"""What the operations of a frame may raise that is whole but was not written by the store."""


class ToleratingReader(JournalReader):
    """Steps over what is missing or damaged."""

    def __init__(self, directory: Path, findings: Findings, needed: Callable[[int], bool] | None = None) -> None:
        """`needed` chooses segments; without it all are read, and none may be missing in between."""
        super().__init__(directory, directory, FileOps(), lambda line: None)
        self._findings = findings
        self._needed = needed

    def frames(self, start: Position) -> Iterator[Frame]:
        """As it is, also when there is no journal at all. Raises OSError."""
        if self._directory.is_dir():
            yield from super().frames(start)
        elif self._needed is None:
            self._check([], start)

    def has_begun(self, number: int) -> bool:
        """Whether something was written to a segment. Raises OSError."""
        segment = self._segment(number)
        if segment is not None:
            segment.close()
        return segment is not None

    def _segment(self, number: int) -> Segment | None:
        return super()._segment(number) if self._needed is None or self._needed(number) else None

    def _check(self, chain: list[int], start: Position) -> None:
        if self._needed is not None:
            return
        expected = max(start.segment, 1)
        if not chain and start.segment:
            chain = [expected + 1]  # the one that the index goes on from is missing
        for number in chain:
            for missing in range(expected, number):
                self._findings.add("segment", str(segment_path(self._directory, missing)),
                                   "the segment is missing, or its header is damaged")
            expected = number + 1

    def _set_aside(self, segment: Segment, start: int, end: int) -> None:
        self._findings.add("frame", f"{segment_path(self._directory, segment.number)}:{start}",
                           f"the frames from here to {end} are damaged")
        self._findings.damaged(segment.number, start, end)


def replayed(directory: Path, start: Position, findings: Findings) -> tuple[Effects, Position]:
    """The net effect of the journal from `start` on, and where it ends."""
    effects = Effects()
    end = start
    for frame in ToleratingReader(directory, findings).frames(start):
        end = frame.end
        try:
            replay(frame.operations, frame.blobs, effects)
        except NONSENSE as error:
            nonsense(directory, frame, findings, error)
    return effects, end


def event_lines(directory: Path, start: Position, findings: Findings) -> Iterator[tuple[Frame, bytes]]:
    """The event lines of every frame from `start` on; of a damaged one none."""
    for frame in ToleratingReader(directory, findings).frames(start):
        try:
            yield frame, replay(frame.operations, frame.blobs, None)
        except NONSENSE as error:
            nonsense(directory, frame, findings, error)


def nonsense(directory: Path, frame: Frame, findings: Findings, error: Exception) -> None:
    """Report a frame that is whole and cannot be understood."""
    findings.damaged(frame.start.segment, frame.start.offset, frame.end.offset)
    findings.add("frame", place_of(directory, frame.start), f"the frame is whole but makes no sense: {error!r}")


def place_of(directory: Path, position: Position) -> str:
    """A place in the journal, for people."""
    return f"{segment_path(directory, position.segment)}:{position.offset}"
