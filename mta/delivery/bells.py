"""The FIFOs by which workers wake each other. A byte in one only says "look": what there is to see is in the table.

So a nudge is not lost when a FIFO is full, and nothing has to be read from it in whole.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path


class Bells:
    """Those that one process rings, and its own if it has one."""

    def __init__(self, run: str) -> None:
        """They are in the runtime directory."""
        self._run = run
        self._own = -1
        self._others: dict[int, int] = {}  # of workers, open for writing

    def open(self, worker: int) -> None:
        """Have one of one's own, that of this worker. Raises OSError."""
        self._own = _open(self._path(worker))

    def fileno(self) -> int:
        """Readable when one's own has been rung; -1 without one."""
        return self._own

    def hush(self) -> None:
        """One has heard it."""
        try:
            while os.read(self._own, 4096):
                pass
        except BlockingIOError:
            pass

    def ring(self, workers: Iterable[int]) -> None:
        """Wake workers. One that is full of rings is awake; one that is not there will look when it starts."""
        for worker in workers:
            try:
                fd = self._others.get(worker)
                if fd is None:
                    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                    fd = self._others[worker] = os.open(self._path(worker), flags)
                os.write(fd, b"!")
            except BlockingIOError:
                pass
            except OSError:
                stale = self._others.pop(worker, None)
                if stale is not None:
                    os.close(stale)

    def close(self) -> None:
        """Close them all."""
        if self._own != -1:
            os.close(self._own)
            self._own = -1
        for fd in self._others.values():
            os.close(fd)
        self._others.clear()

    def _path(self, worker: int) -> str:
        return str(Path(self._run, f"worker-{worker}.nudge"))


def _open(path: str) -> int:
    """The FIFO that wakes a worker. Open for writing too, so that it never comes to an end."""
    try:
        if not stat.S_ISFIFO(os.lstat(path).st_mode):
            os.unlink(path)
            os.mkfifo(path, 0o600)
    except FileNotFoundError:
        os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
