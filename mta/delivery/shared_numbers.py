"""Small numbers that all workers keep together, by kind and name, each until a time: such as failed logins by address.

The names come from strangers, who may make up as many as they like. So the room is fixed: a name has its place in one
of `CELLS` cells, by a keyed hash, and a cell holds `WIDTH` names. In a full cell the new name takes the place of what
is over, else of the smallest number, among equals of that which ends first. So a flood of names that come once pushes
out others that came once, and not the number of one that comes all the time.

In the table of limits; each look is one transaction of some microseconds, a cell is one record of at most 100 bytes.
Times are monotonic, which is one clock for all processes, and the table does not outlive a boot.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import Any, Final

import lmdb

from mta.delivery import limit_table

CELLS: Final = 8_192  # of each kind
WIDTH: Final = 4

_ENTRY: Final = struct.Struct("<QId")  # mark of the name, number, until when
_MOST: Final = 0xFFFFFFFF
_KEY: Final = limit_table.NUMBER  # without anything behind it: the key of the hash

Entry = tuple[int, int, float]


def read(record: bytes | None) -> list[Entry]:
    """The entries of a cell."""
    return list(_ENTRY.iter_unpack(record)) if record else []


def write(entries: list[Entry]) -> bytes:
    """The record of a cell."""
    return b"".join([_ENTRY.pack(*entry) for entry in entries])


def find(entries: list[Entry], mark: int, now_s: float) -> tuple[int, float]:
    """The number of a name and until when it counts; zeros when there is none."""
    for known, number, until_s in entries:
        if known == mark and until_s > now_s:
            return number, until_s
    return 0, 0.0


def add(entries: list[Entry], mark: int, now_s: float, until_s: float, renew: bool) -> int:
    """Count one more in a cell, and return the number."""
    number, before_s = find(entries, mark, now_s)
    entries[:] = [entry for entry in entries if entry[0] != mark and entry[2] > now_s]
    if len(entries) >= WIDTH:
        entries.remove(min(entries, key=lambda entry: entry[1:]))
    entries.append((mark, min(number + 1, _MOST), until_s if renew or not number else before_s))
    return number + 1


class SharedNumbers:
    """Of one worker. `mta.access.attempts.Keeper` says what the methods promise."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._secret = b""

    def get(self, kind: str, name: str, now_s: float) -> tuple[int, float]:
        """See there."""
        try:
            with self._env.begin(write=True) as txn:  # not a reader: a killed one would keep old pages for ever
                key, mark = self._place(txn, kind, name)
                return find(read(txn.get(key)), mark, now_s)
        except lmdb.Error as error:
            self._secret = b""  # perhaps it was not written, and another worker makes another one
            limit_table.cope(self._env, error)
            return 0, 0.0

    def add(self, kind: str, name: str, now_s: float, until_s: float, *, renew: bool = False) -> int:
        """See there."""
        try:
            with self._env.begin(write=True) as txn:
                key, mark = self._place(txn, kind, name)
                entries = read(txn.get(key))
                number = add(entries, mark, now_s, until_s, renew)
                txn.put(key, write(entries))
                return number
        except lmdb.Error as error:
            self._secret = b""  # perhaps it was not written, and another worker makes another one
            limit_table.cope(self._env, error)
            return 1

    def _place(self, txn: Any, kind: str, name: str) -> tuple[bytes, int]:
        """The cell of a name, and what tells it from others there. Nobody outside can reckon which names share one."""
        if not self._secret:
            known = txn.get(_KEY)
            self._secret = bytes(known) if known is not None else os.urandom(32)
            if known is None:
                txn.put(_KEY, self._secret)
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), key=self._secret, digest_size=12).digest()
        cell, mark = struct.unpack("<IQ", digest)
        return _KEY + kind.encode() + struct.pack("<H", cell % CELLS), mark
