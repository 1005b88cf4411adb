"""The event files of one shard: every event line of the journal exactly once, in order.

The journal has the events first, in the frame of the change that they tell; from there they are copied to
`events/YYYYMMDD-HHMMSS-NNN.jsonl` (UTC). A checkpoint syncs the current file and records how far it goes; after a
crash it is cut to that length and the rest is copied again from the journal: the same bytes, into files of the same
names, as a name comes from the time in the frame. So a reader that follows the files sees nothing twice.

A sync that failed is not repeated, as the next one may succeed without what the failed one was about. What lies beyond
the last checkpoint is written once more from the journal, in place: the same bytes again.

Names increase in the order in which the files were begun, even when the clock does not.
"""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from mta.queue.encoding import EventMark, Position
from mta.queue.fileops import FileOps

_NAME: Final = re.compile(r"(\d{8}-\d{6})-(\d{3})\.jsonl")
_STAMP: Final = "%Y%m%d-%H%M%S"
_BACKLOG: Final = 8_000_000


def event_files(directory: Path) -> list[str]:
    """The names of the event files in a directory, the oldest first."""
    return sorted(name for name in os.listdir(directory) if _NAME.fullmatch(name))


def next_name(time_us: int, last: str) -> str:
    """The name of a file begun at `time_us`, after the file `last` ("" when there is none)."""
    stamp = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).strftime(_STAMP)
    match = _NAME.fullmatch(last)
    if match is None or stamp > match[1]:
        return f"{stamp}-000.jsonl"
    number = int(match[2]) + 1
    if number < 1000:
        return f"{match[1]}-{number:03d}.jsonl"
    later = datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC) + timedelta(seconds=1)
    return f"{later.strftime(_STAMP)}-000.jsonl"


class EventLog:
    """Writes the event files. All of it belongs to the disk thread, but `mark` and what the index thread calls."""

    def __init__(self, directory: Path, size: int, files: FileOps, mark: EventMark, *,
                 group_readable: bool = False) -> None:
        """Go on after `mark`; what lies beyond it is removed, to be written again. Raises OSError."""
        self.mark = mark
        self.error: OSError | None = None  # why the files are behind the journal, while they are
        self.in_doubt = False  # a sync failed: nobody knows what is on the disk
        self._closing = False  # the disk thread syncs a file just now, which may fail: that is told to one of two only
        self._directory = directory
        self.size = size  # at which a file is closed
        self.group_readable = group_readable  # files that are begun from now on
        self._files = files
        self._fd = -1
        self._backlog: deque[tuple[bytes, int, Position]] = deque()
        self._backlog_size = 0
        self._closed: deque[EventMark] = deque()  # the ends of files that were closed after the last checkpoint
        for name in event_files(directory):
            if name > mark.file:
                files.unlink(directory / name)
        path = directory / mark.file
        if path.is_file() and path.stat().st_size >= mark.length:
            self._fd = files.open(path, os.O_WRONLY)
            files.truncate(self._fd, mark.length)
        # Else an operator took the file away: the next line begins a new one.

    def append(self, lines: bytes, time_us: int, end: Position) -> None:
        """Write the `lines` of a frame that is durable, has `time_us` and ends at `end`.

        When the disk does not let us, they wait, and `error` says why.
        """
        self._backlog.append((lines, time_us, end))
        self._backlog_size += len(lines)
        self.catch_up()

    def catch_up(self) -> None:
        """Write what waits."""
        try:
            while self._backlog:
                lines, time_us, end = self._backlog[0]
                self._write(lines, time_us, end)
                self._backlog.popleft()
                self._backlog_size -= len(lines)
            self.error = None
        except OSError as error:
            self.error = error

    @property
    def is_choked(self) -> bool:
        """Whether so much waits that the journal has to wait, too."""
        return self._backlog_size > _BACKLOG

    def close(self) -> None:
        """Close the current file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._files.close(fd)

    def _write(self, lines: bytes, time_us: int, end: Position) -> None:
        if lines:
            if self._fd < 0 or self.mark.length >= self.size:
                self._rotate(time_us)
            self._files.write_all(self._fd, [lines], self.mark.length)
        self.mark = EventMark(end, self.mark.file, self.mark.length + len(lines))

    def _rotate(self, time_us: int) -> None:
        """Begin a new file."""
        if self._fd >= 0:
            self._closing = True
            try:
                self._files.fdatasync(self._fd)  # a checkpoint syncs only the file that is current then
            except OSError:
                self.in_doubt = True
            self._closing = False
        name = next_name(time_us, self.mark.file)
        fd = self._files.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            if self.group_readable:
                self._files.set_mode(self._directory, 0o750)
                self._files.set_mode(fd, 0o640)
            self._files.fsync_directory(self._directory)
        except OSError:
            self._files.close(fd)
            raise
        if self._fd >= 0:
            self._closed.append(self.mark)
        self.close()
        self._fd = fd
        self.mark = EventMark(self.mark.journal, name, 0)

    # -- the index thread's ------------------------------------------------------------------------------------------

    def sync(self, mark: EventMark) -> bool:
        """Make the files durable up to `mark`. False when it cannot be tried now.

        Raises OSError when it failed, and from then on until `restore` has succeeded.
        """
        if self.in_doubt:
            raise OSError(errno.EIO, "a file of events could not be made durable")
        try:
            fd = self._files.open(self._directory / mark.file, os.O_WRONLY)
        except (FileNotFoundError, IsADirectoryError):
            return True  # there is none yet, or an operator took it away
        except OSError:
            return False  # no more files can be opened: nothing is lost by that, the next checkpoint tries again
        try:
            self._files.fdatasync(fd)
        except OSError:
            self.in_doubt = True
            raise
        finally:
            self._files.close(fd)
        if self._closing or self.in_doubt:
            return False
        while self._closed and self._closed[0].file < mark.file:
            self._closed.popleft()
        return True

    def restore(self, start: EventMark, lines: Callable[[Position, Position], Iterator[bytes]]) -> None:
        """Write everything after `start`, which is durable, once more and sync it: there is no doubt left.

        `lines` reads the event lines between two places of the journal. Raises OSError when it could not be done.
        """
        self.in_doubt = False  # if a sync fails from here on, it is again
        end = self.mark
        try:
            ends = [mark for mark in self._closed if start.file <= mark.file < end.file]
            source = lines(start.journal, end.journal)
            piece = b""
            for mark in (*ends, end):
                offset = start.length if mark.file == start.file else 0
                fd = self._open_again(mark.file)
                try:
                    while offset < mark.length:
                        piece = piece or next(source)
                        part, piece = piece[:mark.length - offset], piece[mark.length - offset:]
                        if fd >= 0:
                            self._files.write_all(fd, [part], offset)
                        offset += len(part)
                    if fd >= 0:
                        self._files.fdatasync(fd)
                finally:
                    if fd >= 0:
                        self._files.close(fd)
        except StopIteration:
            self.in_doubt = True
            raise OSError(errno.EIO, "the journal has fewer events than the files") from None
        except OSError:
            self.in_doubt = True
            raise

    def _open_again(self, name: str) -> int:
        """A file to write in; -1 when an operator took it away."""
        try:
            return self._files.open(self._directory / name, os.O_WRONLY)
        except (FileNotFoundError, IsADirectoryError):
            return -1

    def prune(self, current: str, keep: int) -> None:
        """Remove all files that were closed before `current`, but the last `keep`. Raises OSError."""
        closed = [name for name in event_files(self._directory) if name < current]
        for name in closed[:-keep]:
            self._files.unlink(self._directory / name)
