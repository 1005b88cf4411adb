"""An external join: entries by key in any number, gathered in bounded memory.

Entries are written to temporary files, partitioned by their key so that each partition fits into memory, which is
then sorted. With a few hundred thousand entries nothing is written to disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from struct import Struct
from typing import IO, Final, NamedTuple

ENTRIES_AT_ONCE: Final = 500_000  # some 50 MB
_ENTRY: Final = Struct(">QqBIQB")  # the fields of Entry, in an order that sorts
_KEY_SIZE: Final = 16
_IN_MEMORY: Final = 32_000_000  # bytes, over all partitions


class Entry(NamedTuple):
    """One thing that is known about a key."""

    first: int  # the key: 64 bits without sign,
    second: int  # and 64 bits with sign
    kind: int
    file: int
    offset: int
    flags: int


class Join:
    """Gathers entries, then gives them out key by key."""

    def __init__(self, expected: int) -> None:
        """`expected` is about how many entries there will be."""
        self._count = expected // ENTRIES_AT_ONCE + 1
        size = _IN_MEMORY // self._count
        self._partitions: list[IO[bytes]] = [
            tempfile.SpooledTemporaryFile(max_size=size) for _ in range(self._count)  # noqa: SIM115 -- see `close`
        ]

    def __enter__(self) -> Join:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything."""
        for partition in self._partitions:
            partition.close()

    def add(self, first: int, second: int, kind: int, file: int, offset: int, flags: int = 0) -> None:
        """One more. Kinds, files and offsets come out in their order within a key. Raises OSError."""
        entry = _ENTRY.pack(first, second, kind, file, offset, flags)
        self._partitions[(first ^ second) % self._count].write(entry)

    def groups(self) -> Iterator[list[Entry]]:
        """All entries of each key. Raises OSError."""
        size = _ENTRY.size
        for partition in self._partitions:
            partition.seek(0)
            raw = partition.read()
            entries = sorted([raw[start:start + size] for start in range(0, len(raw), size)])
            del raw
            group: list[bytes] = []
            for entry in entries:
                if group and group[0][:_KEY_SIZE] != entry[:_KEY_SIZE]:
                    yield [Entry(*_ENTRY.unpack(one)) for one in group]
                    group = []
                group.append(entry)
            if group:
                yield [Entry(*_ENTRY.unpack(one)) for one in group]
