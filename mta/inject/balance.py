"""How many sessions each worker has, for all to see: so that a burst of connections is spread over them.

All workers accept from the same sockets. The one that wakes first would take a burst alone, and while its twenty
long sessions keep it busy, the other cores of the machine rest. So a worker that has more sessions than another one
lets that go first, for a moment (`mta.inject.listener`).

A small memory-mapped file in the runtime directory, one slot for each worker, written by that worker alone and without
system calls. What it says is a hint: a wrong number, such as that of a worker that was killed, costs a connection a
moment and nothing else.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final

_SLOT_SIZE: Final = 4  # a native unsigned number: 0 for a worker that takes no connections, else its sessions + 1


class Balance:
    """The sessions of the workers of one instance, as one of them sees it. Cost of a look: 1 µs."""

    def __init__(self, run: str, worker: int, workers: int) -> None:
        """Open the file in the runtime directory, make it if need be. Raises OSError."""
        self._worker = worker
        size = workers * _SLOT_SIZE
        fd = os.open(Path(run, "sessions"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)  # a hole would be a SIGBUS when the file system is full
            self._slots = memoryview(mmap.mmap(fd, size)).cast("I")
        finally:
            os.close(fd)
        self._slots[worker] = 0
        self._left = False

    def tell(self, sessions: int) -> None:
        """Say how many sessions we have."""
        if not self._left:
            self._slots[self._worker] = sessions + 1

    def leave(self) -> None:
        """We take no more."""
        self._left = True
        self._slots[self._worker] = 0

    @property
    def is_ahead(self) -> bool:
        """Whether another worker that takes connections has fewer sessions than we."""
        mine = self._slots[self._worker]
        return any(0 < sessions < mine for sessions in self._slots)
