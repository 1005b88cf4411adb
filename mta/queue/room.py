"""Whether the disk has room for more mail."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from mta.queue.fileops import FileOps

_BELIEVED_S: Final = 1.0
_INODES: Final = 1000


class Room:
    """Looks at the free space of a file system, at most once a second."""

    def __init__(self, directory: Path, reserve: int, files: FileOps) -> None:
        self.reserve = reserve  # bytes that are to be left free
        self._directory = directory
        self._files = files
        self._reason: str | None = None
        self._believed_until = 0.0

    def reason(self) -> str | None:
        """None, or why no more mail can be taken."""
        now = time.monotonic()
        if now >= self._believed_until:
            self._believed_until = now + _BELIEVED_S
            self._reason = self._look()
        return self._reason

    def _look(self) -> str | None:
        try:
            free, inodes = self._files.free_space(self._directory)
        except OSError as error:
            return f"the spool's disk does not answer: {error}"
        if free < self.reserve:
            return f"{free // 1_000_000} MB are free on the spool's disk, {self.reserve // 1_000_000} MB are reserved"
        if inodes is not None and inodes < _INODES:
            return f"{inodes} inodes are free on the spool's disk"
        return None
