"""File operations that fail, tear, count and kill, for the tests of the store."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mta.queue.fileops import Buffer, FileOps


class Unsynced(FileOps):
    """The operations without waiting for the disk: what is on stable storage is not what most tests are about."""

    def fdatasync(self, fd: int) -> None:
        """Nothing."""

    def fsync_directory(self, path: Path) -> None:
        """Nothing."""


class Counting(Unsynced):
    """Counts calls by name."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """As it is."""
        self.calls["pwritev"] += 1
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        """As it is."""
        self.calls["fdatasync"] += 1

    def fsync_directory(self, path: Path) -> None:
        """As it is."""
        self.calls["fsync_directory"] += 1

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """As it is."""
        self.calls["pread"] += 1
        return super().pread(fd, size, offset)

    def commit(self, transaction: Any) -> None:
        """As it is."""
        self.calls["commit"] += 1
        super().commit(transaction)


class Failing(Unsynced):
    """Fails the named operations with `error` as long as that is set."""

    def __init__(self, *names: str, error: int = 0) -> None:
        self.names = set(names)
        self.error = error
        self.partial = 0  # how many bytes a failing write writes before it fails
        self.failures = 0

    def _fail(self, name: str) -> None:
        if self.error and name in self.names:
            self.failures += 1
            raise OSError(self.error, os.strerror(self.error))

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """A failing write leaves the first part of what it was to write."""
        if self.error and "pwritev" in self.names and self.partial:
            os.pwrite(fd, b"".join(buffers)[:self.partial], offset)
        self._fail("pwritev")
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        """May fail."""
        self._fail("fdatasync")

    def fsync_directory(self, path: Path) -> None:
        """May fail."""
        self._fail("fsync_directory")

    def allocate(self, fd: int, size: int) -> None:
        """May fail."""
        self._fail("allocate")
        super().allocate(fd, size)

    def truncate(self, fd: int, size: int) -> None:
        """May fail."""
        self._fail("truncate")
        super().truncate(fd, size)

    def rename(self, source: Path, target: Path) -> None:
        """May fail."""
        self._fail("rename")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        """May fail."""
        self._fail("unlink")
        super().unlink(path)

    def open(self, path: Path, flags: int) -> int:
        """Making a file may fail (`create`), and opening one that is there (`open`)."""
        if flags & os.O_CREAT and not path.exists():
            self._fail("create")
        elif not flags & os.O_CREAT:
            self._fail("open")
        return super().open(path, flags)

    def commit(self, transaction: Any) -> None:
        """May fail before anything is committed (`commit`), or after it (`committed`)."""
        self._fail("commit")
        super().commit(transaction)
        self._fail("committed")


NO_SPACE = errno.ENOSPC
BROKEN = errno.EIO


class Killed(BaseException):
    """The process was killed in this operation."""


class Deadly(FileOps):
    """Kills at the n-th operation that changes something, and loses power when `power` says so.

    After the kill nothing is done any more. `power_off` then makes the directory what it might be after a loss of
    power: each page that was written and not synced is there or not, as `keep` decides.
    """

    def __init__(self, at: int = 1 << 60) -> None:
        self.at = at
        self.operations = 0
        self.dead = False
        self._lock = threading.Lock()
        self._unsynced: list[tuple[Path, int, bytes, int]] = []  # file, offset, bytes before, size before
        self._entries: list[tuple[Path, str, Path, Path]] = []  # directory, what was done, path, other path
        self._paths: dict[int, Path] = {}
        self._graves = 0

    def _live(self) -> None:
        with self._lock:
            if self.dead:
                raise Killed
            self.operations += 1
            if self.operations == self.at:
                self.dead = True
                raise Killed

    def open(self, path: Path, flags: int) -> int:
        """Making a file is an operation, opening is not."""
        if flags & os.O_CREAT and not path.exists():
            self._live()
            self._entries.append((path.parent, "create", path, path))
        fd = super().open(path, flags)
        self._paths[fd] = path
        if flags & os.O_TRUNC:
            self._unsynced = [write for write in self._unsynced if write[0] != path]
        return fd

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """A kill tears the write in the middle."""
        data = b"".join(buffers)
        path = self._paths[fd]
        size = os.fstat(fd).st_size
        for start in range(offset - offset % 4096, offset + len(data), 4096):
            with open(path, "rb") as file:
                self._unsynced.append((path, start, os.pread(file.fileno(), 4096, start), size))
        try:
            self._live()
        except Killed:
            if self.operations == self.at:
                os.pwrite(fd, data[:len(data) // 2], offset)
            raise
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        """What was written to the file before is safe."""
        self._live()
        path = self._paths[fd]
        self._unsynced = [write for write in self._unsynced if write[0] != path]

    def fsync_directory(self, path: Path) -> None:
        """What was done to the entries before is safe."""
        self._live()
        self.bury(path)
        self._entries = [entry for entry in self._entries if entry[0] != path]

    def allocate(self, fd: int, size: int) -> None:
        """An operation."""
        self._live()
        super().allocate(fd, size)

    def truncate(self, fd: int, size: int) -> None:
        """An operation."""
        self._live()
        super().truncate(fd, size)

    def rename(self, source: Path, target: Path) -> None:
        """An operation."""
        self._live()
        super().rename(source, target)
        self._entries.append((target.parent, "rename", source, target))

    def link(self, source: Path, target: Path) -> None:
        """An operation."""
        self._live()
        super().link(source, target)
        self._entries.append((target.parent, "create", target, target))

    def unlink(self, path: Path) -> None:
        """An operation."""
        self._live()
        self._graves += 1
        grave = path.with_name(f"{path.name}.grave{self._graves}")
        super().rename(path, grave)
        self._entries.append((path.parent, "unlink", path, grave))

    def mkdir(self, path: Path) -> None:
        """Not an operation: the directories are there before anything is queued."""
        super().mkdir(path)

    def commit(self, transaction: Any) -> None:
        """A kill before it, or a kill after it: two operations."""
        self._live()
        super().commit(transaction)
        self._live()

    def power_off(self, keep: Any) -> None:
        """Undo what was not synced, as far as `keep()` is false for it."""
        for path, offset, before, size in reversed(self._unsynced):
            if path.exists() and not keep():
                with open(path, "r+b") as file:
                    os.pwrite(file.fileno(), before.ljust(4096, b"\0")[:max(0, path.stat().st_size - offset)], offset)
                    if path.suffix == ".jsonl":
                        os.ftruncate(file.fileno(), size)
        for _, what, path, other in reversed(self._entries):
            if keep():
                break  # a directory's changes reach the disk in their order
            if what == "create":
                path.unlink(missing_ok=True)
            else:
                other.rename(path)
        self.bury()

    def bury(self, directory: Path | None = None) -> None:
        """Really remove what was unlinked, in one directory or in all."""
        for where, what, _, grave in self._entries:
            if what == "unlink" and directory in (None, where):
                grave.unlink(missing_ok=True)
