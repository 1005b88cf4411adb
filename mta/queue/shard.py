"""The directory of a shard: what lies where, who owns it, and which version wrote it.

    shard.lock    flock(2), held by the owner as long as it lives; its pid for the operator
    version       the version of all that is here
    journal/      segments: frames of operations and contents (mta.queue.journal)
    queue.mdb/    the index (mta.queue.index)
    events/       event files (mta.queue.eventlog)
    quarantine/   what is readable of damaged messages and of a damaged journal
    inflight      deliveries that may have been delivered (mta.queue.inflight)
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from mta.queue.errors import StoreLocked, StoreUnusable, StoreVersion
from mta.queue.fileops import FileOps

VERSION: Final = 2
SPOOL_VERSION: Final = 1  # of the directory that the shards are in


class Shard:
    """An owned shard directory."""

    def __init__(self, directory: Path, files: FileOps) -> None:
        """Lock the directory, and make what is missing in it.

        Raises StoreLocked, StoreVersion, StoreUnusable and OSError.
        """
        self.directory = directory
        self.journal = directory / "journal"
        self.index = directory / "queue.mdb"
        self.events = directory / "events"
        self.quarantine = directory / "quarantine"
        self.inflight = directory / "inflight"
        files.mkdir(directory)
        self._lock = os.open(directory / "shard.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip()
                raise StoreLocked(f"{directory} is in use by process {owner}") from None
            self._check_version(files)
            for path in (self.journal, self.index, self.events, self.quarantine):
                files.mkdir(path)
            files.fsync_directory(directory)
            files.fsync_directory(directory.parent)
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the shard up."""
        os.close(self._lock)

    def _check_version(self, files: FileOps) -> None:
        path = self.directory / "version"
        try:
            text = path.read_text("ascii", "replace").strip()
        except FileNotFoundError:
            if self.journal.exists() or self.index.exists():
                raise StoreUnusable(f"{path} is missing, but there is a queue beside it") from None
            files.create(path, b"%d\n" % VERSION)
            return
        if not text.isdecimal():
            raise StoreUnusable(f"{path} holds {text!r}, which is no version")
        check_format(self.directory, int(text))


def check_format(directory: Path, version: int) -> None:
    """Raise StoreVersion for a shard that this program cannot read."""
    if version > VERSION:
        raise StoreVersion(f"{directory} was written by a newer version of this program (format {version}, this one "
                           f"knows {VERSION})")
    if version < VERSION:
        raise StoreVersion(f"{directory} was written by an older version of this program (format {version}), and this "
                           f"one reads format {VERSION} only: let that version empty it")


def boot_id() -> str:
    """What the machine calls the time since it was started last. Raises OSError."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
