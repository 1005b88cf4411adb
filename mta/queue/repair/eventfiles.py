"""The event files of a shard that is repaired: what they have stays, what only the journal has is added.

Lines are written to the files after they are durable in the journal. So lines that the journal cannot give any more
(its frame is damaged) are true all the same, and the end of the last file is kept as it is, but for what is no line.
Files in which lines are missing or damaged are set aside with all older ones: the accounts of their recipients cannot
be settled any more, and those of later files can.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mta.queue import events
from mta.queue.encoding import EventMark, Position, ShardState
from mta.queue.eventlog import EventLog, event_files
from mta.queue.fileops import FileOps
from mta.queue.journal import Frame
from mta.queue.repair.quarantine import Quarantine

FILE_SIZE: Final = 100_000_000  # at which a file is closed
_STAMP: Final = ((0, 4), (4, 6), (6, 8), (9, 11), (11, 13), (13, 15))  # in the name of an event file

Frames = Callable[[Position], Iterator[tuple[Frame, bytes]]]
"""Every frame from a place on that can be read, with its event lines."""


class EventFiles:
    """The files, and what is to become of them."""

    def __init__(self, directory: Path, state: ShardState | None, frames: Frames, quarantine: Quarantine,
                 files: FileOps) -> None:
        """`state` is that of the old index, if it is known. Reads what lies beyond it. Raises OSError."""
        self.directory = directory
        self.names = event_files(directory) if directory.is_dir() else []
        self._frames = frames
        self._quarantine = quarantine
        self._files = files
        self._lossy = ""  # this file and the older ones have lost lines
        self._journal = Position(0, 0)  # lines from here on may not be in the files
        self._after_us = 0  # nor those of frames after this time
        self._known: set[int] = set()  # hashes of the lines in the files that those may be among
        self._torn: dict[str, int] = {}  # files with something beyond this length that is no line
        first, offset = self._begin(state)
        for name in self.names:
            if name >= first:
                self._look(name, offset if name == first else 0)
        self.length = self.size_of(self.names[-1]) if self.names else 0

    def _begin(self, state: ShardState | None) -> tuple[str, int]:
        """From which file, and from where in it, lines have to be compared with the journal."""
        mark = EventMark(Position(0, 0), "", 0) if state is None else state.events
        if state is not None and not mark.file:
            self._journal = mark.journal
            return "", 0
        if mark.file in self.names and (self.directory / mark.file).stat().st_size >= mark.length:
            self._journal = mark.journal
            return mark.file, mark.length
        if mark.file:
            self.loses(mark.file)
            self._journal = mark.journal
        if not self.names:
            return "", 0
        year, month, day, hour, minute, second = (int(self.names[-1][start:end]) for start, end in _STAMP)
        begun = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        self._after_us = int(begun.timestamp()) * 1_000_000
        return self.names[-1], 0

    def _look(self, name: str, offset: int) -> None:
        """Learn the lines of a file from `offset` on."""
        good = offset
        with (self.directory / name).open("rb") as file:
            file.seek(offset)
            for line in file:
                if is_event(line):
                    if offset != good:
                        if not self._after_us:
                            break  # the journal has all of it, and it is written again
                        self.loses(name)
                    self._known.add(hash(line))
                    good = offset + len(line)
                offset += len(line)
        if offset != good:
            self._torn[name] = good

    def size_of(self, name: str) -> int:
        """The length of a file, without what is no line at its end."""
        return self._torn[name] if name in self._torn else (self.directory / name).stat().st_size

    def loses(self, name: str) -> None:
        """Lines are missing in a file, or damaged."""
        self._lossy = max(self._lossy, name)

    def is_lossy(self, name: str) -> bool:
        """Whether a file is one of those that will be set aside."""
        return name in self.names and name <= self._lossy

    def missing(self) -> Iterator[tuple[Frame, bytes]]:
        """The frames of the journal with lines that are in no file, and these lines. Raises OSError."""
        for frame, lines in self._frames(self._journal):
            if lines and frame.time_us >= self._after_us:
                new = [line for line in lines.splitlines(keepends=True) if hash(line) not in self._known]
                if new:
                    yield frame, b"".join(new)

    def lines_at(self, start: Position) -> bytes:
        """The event lines of the frame of the journal that begins there. Raises OSError."""
        return next((lines for _, lines in self._frames(start)), b"")

    def append(self, lines: bytes, time_us: int, before: Position, end: Position) -> EventMark:
        """Write what is missing, and `lines`; returns where the files end then, durably. Raises OSError.

        `lines` are those that the journal has between `before` and its `end`.
        """
        for name, good in self._torn.items():
            path = self.directory / name
            self._quarantine.copy(path, good, path.stat().st_size, "no line of an event file")
            fd = self._files.open(path, os.O_WRONLY)
            try:
                self._files.truncate(fd, good)
                self._files.fdatasync(fd)
            finally:
                self._files.close(fd)
        last = self.names[-1] if self.names else ""
        readable = bool(self.directory.stat().st_mode & 0o040)
        log = EventLog(self.directory, FILE_SIZE, self._files, EventMark(end, last, self.length),
                       group_readable=readable)
        try:
            if last and self.is_lossy(last):
                log.size = 0
            for frame, more in self.missing():
                if frame.start < before:
                    self._put(log, more, frame.time_us, end)
            self._put(log, lines, time_us, end)
            if log.size == 0:
                log.mark = EventMark(end, "", 0)  # all files go; the next line begins one
            elif log.mark.file and not log.sync(log.mark):
                raise OSError("the event file cannot be opened")
            return log.mark
        finally:
            log.close()

    @staticmethod
    def _put(log: EventLog, lines: bytes, time_us: int, end: Position) -> None:
        if not lines:
            return
        log.append(lines, time_us, end)
        log.size = FILE_SIZE
        if log.error is not None:
            raise log.error

    def keep(self) -> None:
        """Have the files that have lost lines in quarantine, too. Raises OSError."""
        for name in filter(self.is_lossy, self.names):
            self._quarantine.link(self.directory / name, "lines of it, or of a later file, are missing or damaged: "
                                  "accounts that begin in it cannot be settled")

    def drop(self) -> None:
        """They are in quarantine alone. Raises OSError."""
        for name in filter(self.is_lossy, self.names):
            self._files.unlink(self.directory / name)
        if self._lossy:
            self._files.fsync_directory(self.directory)


def is_event(line: bytes) -> bool:
    """Whether this is a whole line of an event file."""
    try:
        events.parse(line)
    except ValueError:
        return False
    return line.endswith(b"\n")
