"""The bytes of the table of limits: its LMDB environment, the records in it, and the FIFOs that wake workers.

Two kinds of records: `L` and the name of a limit holds its leases (`mta.delivery.leases`); `N`, the number of a worker
in two bytes, and the name of a limit is a nudge for that worker: [number of leases granted, name].
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import struct
import time
from pathlib import Path
from typing import Any, Final

import lmdb
import msgpack

from mta.delivery.leases import Leases

MAP_SIZE: Final = 256_000_000  # address space; some 150 bytes are used for a limit that anybody holds or wants
PREALLOCATED: Final = 4_000_000  # so that a full disk stops no delivery
FIRST_LIMIT: Final = b"L"  # the position to begin at with `some_limits`

_LIMIT: Final = b"L"
_NUDGE: Final = b"N"
_LONGEST_KEY: Final = 500  # LMDB takes 511

log = logging.getLogger(__name__)


def open_table(directory: Path) -> Any:
    """The environment, made if need be. Raises OSError and lmdb.Error."""
    directory.mkdir(mode=0o700, exist_ok=True)
    env = lmdb.open(str(directory), map_size=MAP_SIZE, sync=False, metasync=False, mode=0o600, max_spare_txns=0)
    _preallocate(directory / "data.mdb")
    return env


def _key(name: str) -> bytes:
    """A key that LMDB takes, whatever the length of the name."""
    encoded = name.encode()
    if len(encoded) <= _LONGEST_KEY:
        return encoded
    return encoded[: _LONGEST_KEY - 32] + hashlib.blake2b(encoded, digest_size=32).digest()


def load(txn: Any, name: str, limit: int) -> Leases:
    """The leases of the limit `name`; `limit` is for one without a record."""
    record = txn.get(_LIMIT + _key(name))
    now = time.monotonic()
    return Leases(name, limit, now=now) if record is None else Leases.decode(record, now)


def save(txn: Any, state: Leases) -> None:
    """Write the leases back; no record when nobody holds or wants any."""
    key = _LIMIT + _key(state.name)
    record = state.encode()
    if record is None:
        txn.delete(key)
    else:
        txn.put(key, record)


def some_limits(txn: Any, position: bytes, count: int) -> tuple[list[Leases], bytes | None]:
    """Up to `count` limits from the key `position` on, and the key to go on from; None at the end."""
    states: list[Leases] = []
    now = time.monotonic()
    with txn.cursor() as cursor:
        found = cursor.set_range(position)
        while found and cursor.key().startswith(_LIMIT):
            if len(states) == count:
                return states, bytes(cursor.key())
            states.append(Leases.decode(cursor.value(), now))
            found = cursor.next()
    return states, None


def add_nudge(txn: Any, worker: int, name: str, granted: int) -> None:
    """Nudge `worker`: `granted` more leases of `name` are its own now; with 0, others want some that it holds."""
    key = _NUDGE + struct.pack("!H", worker) + _key(name)
    record = txn.get(key)
    if record is not None:
        granted += msgpack.unpackb(record)[0]
    txn.put(key, msgpack.packb([granted, name]))


def nudges_of(txn: Any, worker: int) -> list[tuple[bytes, int, str]]:
    """The nudges of `worker`: key in the table, number of leases granted, name of the limit."""
    prefix = _NUDGE + struct.pack("!H", worker)
    nudges = []
    with txn.cursor() as cursor:
        found = cursor.set_range(prefix)
        while found and cursor.key().startswith(prefix):
            count, name = msgpack.unpackb(cursor.value())
            nudges.append((bytes(cursor.key()), count, name))
            found = cursor.next()
    return nudges


def nudged_workers(txn: Any) -> list[int]:
    """The workers that have nudges, each once."""
    workers = []
    with txn.cursor() as cursor:
        found = cursor.set_range(_NUDGE)
        while found and cursor.key().startswith(_NUDGE):
            worker: int = struct.unpack("!H", cursor.key()[1:3])[0]
            workers.append(worker)
            found = cursor.set_range(_NUDGE + struct.pack("!H", worker + 1)) if worker < 0xFFFF else False
    return workers


# --- files ---------------------------------------------------------------------------------------------------------


def open_bell(path: str) -> int:
    """The FIFO that wakes this worker. Open for writing too, so that it never comes to an end."""
    try:
        if not stat.S_ISFIFO(os.lstat(path).st_mode):
            os.unlink(path)
            os.mkfifo(path, 0o600)
    except FileNotFoundError:
        os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _preallocate(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, PREALLOCATED)
    except OSError as error:
        # A file system that cannot do it, or is full already: the table grows as it can.
        log.debug("%s: %s", path, error)
    finally:
        os.close(fd)
