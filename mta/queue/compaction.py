"""Getting back the space of segments that are kept for a few old messages.

A segment whose messages are nearly all gone is copied: what is still needed goes to the end of the journal by an
ordinary transaction of `Move`s, and the old file is free at the checkpoint after it. Copied are segments of which at
most a quarter is needed, and only while more than half of the space of all segments is waste; so each byte that mail
brings is copied a third of a time at most on the average, and the journal is at most about four times as large as
what is queued.

All of it belongs to the index thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mta.queue.fileops import FileOps
from mta.queue.index import Index
from mta.queue.journal import PAGE, Segment, content_crc, segment_path
from mta.queue.transaction import Move, contents

_NEEDED_AT_MOST: Final = 4  # a segment is copied when this share of it (one in ...) or less is needed
_WASTE_ALLOWED: Final = 4  # segments
_PIECE_BYTES: Final = 4_000_000
_PIECE_CONTENTS: Final = 2000


class Compactor:
    """Copies one segment at a time, in pieces."""

    def __init__(self, index: Index, journal: Path, segment_size: int, files: FileOps) -> None:
        self._index = index
        self._journal = journal
        self._segment_size = segment_size
        self._files = files
        self._segment: Segment | None = None
        self._offset = PAGE
        self._done: set[int] = set()  # segments that were copied and are not gone yet
        self._sizes: dict[int, int] = {}
        self._nothing_until = 0  # there was nothing to do when the journal was in this segment

    def piece(self) -> list[Move] | None:
        """The next few contents to move, which may be none at all; None when there is nothing to copy now.

        Raises OSError and lmdb.Error.
        """
        if self._segment is None:
            if self._nothing_until == self._index.state.segment:
                return None
            number = self._choose()
            if number is None:
                self._nothing_until = self._index.state.segment
                return None
            self._segment = Segment.open(self._journal, number, self._files)
            self._offset = PAGE
            self._done.add(number)
            if self._segment is None:
                return None
        moves: list[Move] = []
        looked_at = size = 0
        while size < _PIECE_BYTES and looked_at < _PIECE_CONTENTS:
            frame = self._segment.frame(self._offset)
            if frame is None:
                self.close()
                break
            self._offset = frame.end.offset
            found = dict(contents(frame.operations, frame.blobs))
            looked_at += 1 + len(found)
            for message_id, place in self._index.places(list(found)).items():
                if place == found[message_id]:
                    content = self._segment.content(place)
                    if content_crc(content) == place.crc:  # a damaged one stays where it is, for whoever reads it
                        moves.append(Move(message_id, place, content))
                        size += place.length
        return moves

    def close(self) -> None:
        """Stop copying the current segment."""
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.close()

    def _choose(self) -> int | None:
        """The segment with the least that is needed, if copying it is worth while."""
        uses = self._index.segments
        self._done &= uses.keys()
        waste = needed = 0
        best: tuple[float, int] | None = None
        sizes: dict[int, int] = {}
        for number, use in uses.items():
            if number >= self._index.state.segment:
                continue
            size = sizes[number] = self._sizes.get(number) or segment_path(self._journal, number).stat().st_size
            needed += use.bytes
            waste += size - use.bytes
            if use.bytes * _NEEDED_AT_MOST <= size and number not in self._done:
                best = min(best or (1.0, number), (use.bytes / size, number))
        self._sizes = sizes
        if best is None or waste <= needed + _WASTE_ALLOWED * self._segment_size:
            return None
        return best[1]
