"""Marks for the deliveries whose final dot may have been sent: what a crash may have delivered twice.

A small memory-mapped file of slots, written without system calls and synced at a clean end only: it outlives the
process, however that ends, but not the machine (`ShardState.dup_before_us` is for that).
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from struct import Struct
from typing import Final

from mta.queue.effects import Key
from mta.queue.fileops import FileOps

SLOT: Final = Struct("<QII")  # message id (0: free), index, nothing
LAST_INDEX: Final = 0xFFFF  # of a delivery in its message
_FIRST_SIZE: Final = 64 * 1024
_FREE: Final = bytes(SLOT.size)


class Inflight:
    """The marks of one shard. Raises OSError where it says so."""

    def __init__(self, path: Path, files: FileOps) -> None:
        """Open, or create. The marks that are found there are in `left_over`. Raises OSError."""
        self._path = path
        self._files = files
        self._fd = files.open(path, os.O_RDWR | os.O_CREAT)
        self._size = os.fstat(self._fd).st_size // SLOT.size * SLOT.size
        if self._size < _FIRST_SIZE:
            self._size = _FIRST_SIZE
            files.allocate(self._fd, self._size)  # a hole would be a SIGBUS when the disk is full
        self._map = mmap.mmap(self._fd, self._size)
        self._slots: dict[Key, int] = {}
        self._free: list[int] = []
        # Outcomes of a delivery that were submitted and are not durable, and how many of those belong to attempts
        # before the one that set its mark: they must not take it away.
        self._changing: dict[Key, int] = {}
        self._earlier: dict[Key, int] = {}
        for offset in range(self._size - SLOT.size, -1, -SLOT.size):
            message_id, index, nothing = SLOT.unpack_from(self._map, offset)
            if message_id and index <= LAST_INDEX and not nothing:
                self._slots[(message_id, index)] = offset
                continue
            self._free.append(offset)
            if message_id or index or nothing:  # a loss of power may leave anything here
                self._map[offset:offset + SLOT.size] = _FREE
        self.left_over: set[Key] = set(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def mark(self, key: Key) -> None:
        """Set a mark. Hot path. Raises OSError when there is no room for it."""
        earlier = self._changing.get(key)
        if earlier:
            self._earlier[key] = earlier
        if key in self._slots:
            return
        if not self._free:
            self._grow()
        offset = self._free.pop()
        self._slots[key] = offset
        SLOT.pack_into(self._map, offset, key[0], key[1], 0)

    def changing(self, key: Key) -> None:
        """An outcome of this delivery was submitted. Hot path."""
        self._changing[key] = self._changing.get(key, 0) + 1

    def changed(self, key: Key) -> None:
        """It is durable: the mark goes away, unless a later attempt has set it. Hot path."""
        left = self._changing.pop(key, 1) - 1
        if left:
            self._changing[key] = left
        earlier = self._earlier.pop(key, 0)
        if earlier > 1:
            self._earlier[key] = earlier - 1
        if not earlier:
            self.clear(key)

    def clear(self, key: Key) -> None:
        """Remove a mark, if it is set."""
        self._earlier.pop(key, None)
        offset = self._slots.pop(key, None)
        if offset is not None:
            self._map[offset:offset + SLOT.size] = _FREE
            self._free.append(offset)
            self.left_over.discard(key)

    def sync(self) -> None:
        """The marks that are set outlive the machine. Raises OSError."""
        if self._slots:
            self._files.fdatasync(self._fd)
            self._files.fsync_directory(self._path.parent)

    def close(self) -> None:
        """Unmap. The marks stay in the file."""
        self._map.close()
        self._files.close(self._fd)

    def _grow(self) -> None:
        self._files.allocate(self._fd, 2 * self._size)
        self._map.close()
        self._map = mmap.mmap(self._fd, 2 * self._size)
        self._free.extend(range(2 * self._size - SLOT.size, self._size - SLOT.size, -SLOT.size))
        self._size *= 2
