"""Every operation by which the store changes its files: one seam, where tests count, fail, tear and kill.

Subclasses override single methods. Whatever is durable went through `fdatasync`, `fsync_directory` or `commit`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

IOV_MAX: Final = os.sysconf("SC_IOV_MAX")

Buffer = bytes | memoryview


class FileOps:
    """The operating system's file operations. All raise OSError."""

    def open(self, path: Path, flags: int) -> int:
        """Open, or create with O_CREAT, for the owner alone: queued mail is private."""
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def set_mode(self, path: Path | int, mode: int) -> None:
        """Change who may read a file or a directory."""
        os.chmod(path, mode)

    def close(self, fd: int) -> None:
        """Close; the kernel may have closed it even if this raises."""
        os.close(fd)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write at `offset`; returns how much was written, which may be less."""
        return os.pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        """Everything written to the file, and its length, is on stable storage."""
        os.fdatasync(fd)

    def fsync_directory(self, path: Path) -> None:
        """The entries of the directory are on stable storage."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def allocate(self, fd: int, size: int) -> None:
        """Extend the file to `size` and take the space for it now."""
        os.posix_fallocate(fd, 0, size)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file."""
        os.ftruncate(fd, size)

    def rename(self, source: Path, target: Path) -> None:
        """Rename within one file system, replacing."""
        os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name within one file system."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        """Make a directory for the owner alone, unless it is there."""
        if not path.is_dir():
            os.mkdir(path, 0o700)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read up to `size` bytes; fewer at the end of the file only."""
        return os.pread(fd, size, offset)

    def commit(self, transaction: Any) -> None:
        """Commit a write transaction of the index, synced."""
        transaction.commit()

    def free_space(self, path: Path) -> tuple[int, int | None]:
        """Bytes and inodes that an ordinary user may still take; None when the file system does not count inodes."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None

    # What is made of the above.

    def write_all(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all of `buffers` at `offset`, in as few calls as the kernel allows."""
        left = list(buffers)
        while left:
            written = self.pwritev(fd, left[:IOV_MAX], offset)
            if not written and any(left[:IOV_MAX]):
                raise OSError(errno.EIO, "nothing was written")
            offset += written
            done = 0
            while done < len(left) and written >= len(left[done]):
                written -= len(left[done])
                done += 1
            del left[:done]
            if written:
                left[0] = memoryview(left[0])[written:]

    def create(self, path: Path, content: bytes) -> None:
        """A new file with `content`, durable; it appears whole or not at all."""
        temporary = path.with_name(path.name + ".new")
        fd = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.write_all(fd, [content], 0)
            self.fdatasync(fd)
        finally:
            self.close(fd)
        self.rename(temporary, path)
        self.fsync_directory(path.parent)
