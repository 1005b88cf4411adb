"""Checks that every message in the queue has its content, and that the checksums of frames and contents hold.

The segments are read once, from the first to the last. Which contents are needed is asked of the index, frame by
frame, so that memory does not depend on how many there are. Messages that no frame has a content for are looked for
in a second pass, over the segments concerned alone.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mta.queue.encoding import Position
from mta.queue.fileops import FileOps
from mta.queue.ids import format_id
from mta.queue.journal import Frame, Segment, content_crc, segment_path
from mta.queue.records import BodyRef
from mta.queue.transaction import contents
from mta.queue.verify.journal import NONSENSE, ToleratingReader, nonsense, place_of
from mta.queue.verify.problems import Findings
from mta.queue.verify.truth import Truth

NOWHERE: Final = Position(0, 0)
_TOLD_EVERY: Final = 200  # frames
_AT_ONCE: Final = 200_000  # contents that the second pass has in mind


class ContentCheck:
    """One pass over the journal of a shard."""

    def __init__(self, directory: Path, truth: Truth, findings: Findings, quick: bool) -> None:
        """`quick`: it is enough that a whole frame says where a content is; its bytes are not read."""
        self._directory = directory
        self._truth = truth
        self._findings = findings
        self._quick = quick
        self._files = FileOps()

    def run(self) -> None:
        """Check all of it. Raises OSError."""
        if not self._quick:
            self._findings.contents = set()
        wanted = Counter(held.place.segment for held in self._truth.messages())
        total = wanted.total()
        needed_from = min(self._truth.state.position, self._truth.state.events.journal).segment
        boundaries = {self._truth.state.position, self._truth.state.events.journal} - {Position(0, 0)}
        seen: Counter[int] = Counter()
        segment: Segment | None = None
        reader = ToleratingReader(self._directory, self._findings,
                                  needed=lambda number: number >= needed_from or number in wanted)
        for count, frame in enumerate(reader.frames(NOWHERE)):
            number = frame.start.segment
            if segment is None or segment.number != number:
                segment = self._next(segment, number)
            if count % _TOLD_EVERY == 0:
                self._findings.progress("contents", seen.total(), total)
            self._findings.summary.frames += 1
            boundaries -= {frame.start, frame.end}
            for message_id, place in self._needed(frame):
                seen[number] += 1
                self._look(segment, message_id, place)
        self._next(segment, None)
        self._findings.progress("contents", seen.total(), total)
        for position in boundaries:
            self._findings.add("state", place_of(self._directory, position),
                               "the index says that the journal was read up to here, where no frame ends")
        strays = [number for number, count in wanted.items() if seen[number] != count]
        while strays:
            self._look_for_some(strays)

    def _next(self, segment: Segment | None, number: int | None) -> Segment | None:
        if segment is not None:
            segment.close()
        if number is None:
            return None
        self._findings.summary.segments += 1
        return Segment.open(self._directory, number, self._files)

    def _needed(self, frame: Frame) -> list[tuple[int, BodyRef]]:
        """The messages in the queue that have their content in a frame, and where."""
        try:
            found = list(contents(frame.operations, frame.blobs))
        except NONSENSE as error:
            nonsense(self._directory, frame, self._findings, error)
            return []
        places = self._truth.places(list(dict.fromkeys(message_id for message_id, _ in found)))
        return [(message_id, place) for message_id, place in found if places.get(message_id) == place]

    def _look(self, segment: Segment | None, message_id: int, place: BodyRef) -> None:
        """Read a content and compare it with its checksum."""
        if not self._quick:
            content = self._read(segment, place)
            if len(content) != place.length or content_crc(content) != place.crc:
                self._damaged(message_id)
                self._findings.add("content", place_of(self._directory, Position(*place[:2])),
                                   f"the content of message {format_id(message_id)}, {place.length} bytes, does not "
                                   "agree with its checksum")
                return
        self._findings.summary.contents += 1
        self._findings.summary.content_bytes += place.length

    @staticmethod
    def _read(segment: Segment | None, place: BodyRef) -> bytes:
        """The bytes of a content, as far as the disk gives them."""
        try:
            return b"" if segment is None else segment.content(place)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""

    # -- messages whose content is in no frame -------------------------------------------------------------------------

    def _look_for_some(self, strays: list[int]) -> None:
        """Look at contents of these segments by their place alone, where no frame has them; takes segments away."""
        known: dict[int, set[tuple[int, BodyRef]]] = {}
        size = 0
        while strays and size < _AT_ONCE:
            number = strays.pop()
            known[number] = set()
            for frame in self._frames(number):
                known[number].update(self._needed(frame))
            size += len(known[number])
        for held in self._truth.messages():
            number, place = held.place.segment, held.place
            if number in known and (held.message.id, place) not in known[number]:
                self._look_outside(held.message.id, place)

    def _frames(self, number: int) -> Iterator[Frame]:
        return ToleratingReader(self._directory, self._findings, needed=number.__eq__).frames(Position(number, 0))

    def _look_outside(self, message_id: int, place: BodyRef) -> None:
        path = segment_path(self._directory, place.segment)
        name = f"message {format_id(message_id)}"
        try:
            fd = self._files.open(path, 0)
        except FileNotFoundError:
            self._damaged(message_id)
            self._findings.add("segment", str(path), "the segment is missing")
            self._findings.add("content", place_of(self._directory, Position(*place[:2])),
                               f"the content of {name} is missing with its segment")
            return
        try:
            content = self._files.pread(fd, place.length, place.offset)
        finally:
            self._files.close(fd)
        if len(content) != place.length or content_crc(content) != place.crc:
            self._damaged(message_id)
            self._findings.add("content", place_of(self._directory, Position(*place[:2])),
                               f"the content of {name}, {place.length} bytes, is not there")
            return
        self._findings.summary.contents += 1
        self._findings.summary.content_bytes += place.length
        if not self._is_damaged(place.segment):
            self._findings.doubtful.add(message_id)
            self._findings.add("record", f"{place_of(self._directory, Position(*place[:2]))} ({name})",
                               "the index has the content here, but the journal has none of this message here")

    def _damaged(self, message_id: int) -> None:
        if self._findings.contents is not None:
            self._findings.contents.add(message_id)

    def _is_damaged(self, number: int) -> bool:
        """Whether the segment is known to have frames that cannot be read, so that contents may lie in them."""
        path = segment_path(self._directory, number)
        segment = Segment.open(self._directory, number, self._files)
        if segment is None:
            self._findings.add("frame", f"{path}:0", "the header of the segment is damaged")
            self._findings.damaged(number)
            return True
        segment.close()
        return self._findings.has_place("frame", f"{path}:")
