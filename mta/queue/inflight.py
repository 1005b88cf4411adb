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
        # How many outcomes of a delivery that are not durable belong to attempts before the one that set its mark: they
        # must not take it away. Few have any.
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
        self.is_full = False
        """The last mark found no room, and there has been none since."""

    def __len__(self) -> int:
        return len(self._slots)

    def mark(self, key: Key, earlier: int = 0) -> None:
        """Set a mark; `earlier`: outcomes of this delivery that were submitted before and are not durable. Hot path.
        Raises OSError when there is no room for it."""
        if earlier:
            self._earlier[key] = earlier
        if key in self._slots:
            return
        if not self._free:
            self.is_full = True
            self._grow()
            self.is_full = False
        offset = self._free.pop()
        self._slots[key] = offset
        SLOT.pack_into(self._map, offset, key[0], key[1], 0)

    def changed(self, key: Key) -> None:
        """An outcome of this delivery is durable: the mark goes away, unless a later attempt has set it. Hot path."""
        if self._earlier:
            earlier = self._earlier.pop(key, 0)
            if earlier > 1:
                self._earlier[key] = earlier - 1
            if earlier:
                return
        self.clear(key)

    def clear(self, key: Key) -> None:
        """Remove a mark, if it is set. Hot path."""
        if self._earlier:
            self._earlier.pop(key, None)
        offset = self._slots.pop(key, None)
        if offset is not None:
            self._map[offset:offset + SLOT.size] = _FREE
            self._free.append(offset)
            self.is_full = False
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
