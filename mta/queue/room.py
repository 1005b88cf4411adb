"""Whether the disk has room for more mail."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from mta.queue.fileops import FileOps

_BELIEVED_S: Final = 1.0
_SHARE: Final = 16  # the part of what is free that we take before we look again; others take, too
_INODES: Final = 1000


class Room:
    """Looks at the free space of a file system: once a second, and more often the less is left."""

    def __init__(self, directory: Path, reserve: int, files: FileOps) -> None:
        self.reserve = reserve  # bytes that are to be left free
        self._directory = directory
        self._files = files
        self._reason: str | None = None
        self._believed_until = 0.0
        self._taken = 0  # bytes since the last look
        self._margin = 0  # those that may be taken until the next one

    def take(self, size: int) -> None:
        """So many bytes are going to be written. Hot path (bench/store.py)."""
        self._taken += size

    def reason(self) -> str | None:
        """None, or why no more mail can be taken."""
        now = time.monotonic()
        if now >= self._believed_until or (self._taken > self._margin and self._reason is None):
            self._believed_until = now + _BELIEVED_S
            self._taken = 0
            self._reason = self._look()
        return self._reason

    def _look(self) -> str | None:
        try:
            free, inodes = self._files.free_space(self._directory)
        except OSError as error:
            return f"the spool's disk does not answer: {error}"
        self._margin = (free - self.reserve) // _SHARE
        if free < self.reserve:
            return f"{free // 1_000_000} MB are free on the spool's disk, {self.reserve // 1_000_000} MB are reserved"
        if inodes is not None and inodes < _INODES:
            return f"{inodes} inodes are free on the spool's disk"
        return None
