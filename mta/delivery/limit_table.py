"""The bytes of the table of limits: its LMDB environment, and the records in it.

Records by the first byte of their key, behind which stands a name or the number of a worker in two bytes:

    L name          the leases of a limit (`mta.delivery.leases`)
    R name          the level of a bucket (`mta.delivery.rates`)
    C name          a counter (`mta.delivery.counters`)
    S name          the state of a path: [name, record] (`mta.delivery.pathstate`)
    M rule, key     how often a rule took a reply lately (`mta.delivery.tally`)
    O path          how many outcomes were told of a path, for shares of them
    F kind, cell    numbers by names that strangers chose, such as failed logins (`mta.delivery.shared_numbers`)
    W worker        this worker lives, and wants to hear of changes of states
    N worker, name  a nudge for that worker: [leases granted, whether others want some, whether the state changed, name,
                    whether its outcomes are asked for]
    B               id of the boot in which all this was written: monotonic times mean nothing in another one
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import lmdb
import msgpack

from mta.delivery.leases import Leases

SIZE_FIRST: Final = 1 << 22  # some 150 bytes are used for a limit that anybody holds or wants
SIZE_MOST: Final = 1 << 28
FIRST_LIMIT: Final = b"L"  # the position to begin at with `some_limits`
LEVEL: Final = b"R"
COUNTER: Final = b"C"
STATE: Final = b"S"
TALLY: Final = b"M"
OUTCOMES: Final = b"O"
NUMBER: Final = b"F"

QUIET_S: Final = 10.0  # without a failure, after which the trouble is over

BOOT_FILE: Final = "boot"  # beside the table: whether that may be opened at all (`is_of_this_boot`)

_LIMIT: Final = b"L"
_NUDGE: Final = b"N"
_WORKER: Final = b"W"
_BOOT: Final = b"B"
_LONGEST_KEY: Final = 500  # LMDB takes 511

log = logging.getLogger(__name__)

T = TypeVar("T")


def open_table(directory: Path) -> Any:
    """The environment, made if need be. Raises OSError and lmdb.Error.

    Writers change the pages of the map itself, which takes a third of the time of writing to the file. What the map is
    as large as has to be on the disk already for that, else a full disk would end the process (SIGBUS) instead of an
    operation; so the map is small, and grows when it is full (`cope`).
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / "data.mdb"
    size = max(path.stat().st_size if path.exists() else 0, SIZE_FIRST)
    env = _open(directory, size, True)
    if not _allocate(path, size):
        env.close()
        env = _open(directory, SIZE_MOST, False)
    boot = boot_id()
    if not (directory / BOOT_FILE).exists():
        (directory / BOOT_FILE).write_bytes(boot)
    with env.begin(write=True) as txn:
        if txn.get(_BOOT) != boot:
            txn.drop(env.open_db(txn=txn), delete=False)
            txn.put(_BOOT, boot)
    return env


def _open(directory: Path, size: int, writemap: bool) -> Any:
    return lmdb.open(str(directory), map_size=size, sync=False, metasync=False, mode=0o600, max_spare_txns=0,
                     writemap=writemap)


def cope(env: Any, error: lmdb.Error) -> bool:
    """An operation failed and left no trace. Do what helps the next one: give the table more room if it is full.
    Whether that helped; if not, `trouble` says what is wrong, and the log did when it began."""
    why = str(error)
    try:
        if isinstance(error, lmdb.MapResizedError):  # another process gave it more
            env.set_mapsize(0)
            return True
        if isinstance(error, lmdb.MapFullError):
            path = Path(env.path(), "data.mdb")
            size = min(max(env.info()["map_size"] * 2, path.stat().st_size), SIZE_MOST)
            if size > env.info()["map_size"] and _allocate(path, size):
                env.set_mapsize(size)
                return True
    except (lmdb.Error, OSError) as trouble:
        why = f"{why}; {trouble}"
    _trouble.failed(why)
    return False


def persist(env: Any, operation: Callable[[], T]) -> T:
    """Do what is done once and cannot be put off, again as long as the table can be given more room. Raises lmdb.Error.
    """
    while True:
        try:
            return operation()
        except lmdb.Error as error:
            if not cope(env, error):
                raise


def trouble() -> str:
    """Why this process could not write the table lately; empty when it can."""
    return _trouble.why


def works() -> None:
    """An operation succeeded. Call it now and then."""
    _trouble.worked()


class _Trouble:
    """The times when the table could not be written: one line in the log when one begins, one when it is over."""

    def __init__(self) -> None:
        self.why = ""
        self._failures = 0
        self._last_s = 0.0

    def failed(self, why: str) -> None:
        self._failures += 1
        self._last_s = time.monotonic()
        if not self.why:
            log.error("the table of limits cannot be written: %s; no new connections and no messages by a rate until "
                      "it can, and what comes in is counted later", why)
        self.why = why

    def worked(self) -> None:
        # A full one takes what needs no room, so that one success says little.
        if self.why and time.monotonic() - self._last_s >= QUIET_S:
            log.warning("the table of limits can be written again, after %d failures: %s", self._failures, self.why)
            self.why, self._failures = "", 0


_trouble = _Trouble()  # one table is open in a process


def boot_id() -> bytes:
    """Of this boot of the machine; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b""


def is_of_this_boot(directory: Path) -> bool:
    """Whether there is a table that was written since the machine started. One that was not may be damaged, as nothing
    in it is synced, and has nothing to say."""
    try:
        return (directory / BOOT_FILE).read_bytes() == boot_id() != b""
    except OSError:
        return False


def key_of(name: str) -> bytes:
    """A key that LMDB takes, whatever the length of the name."""
    encoded = name.encode()
    if len(encoded) <= _LONGEST_KEY:
        return encoded
    return encoded[: _LONGEST_KEY - 32] + hashlib.blake2b(encoded, digest_size=32).digest()


def load(txn: Any, name: str, limit: int) -> Leases:
    """The leases of the limit `name`; `limit` is for one without a record."""
    record = txn.get(_LIMIT + key_of(name))
    now = time.monotonic()
    return Leases(name, limit, now=now) if record is None else Leases.decode(record, now)


def save(txn: Any, state: Leases) -> None:
    """Write the leases back; no record when nobody holds or wants any."""
    key = _LIMIT + key_of(state.name)
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


def records(txn: Any, kind: bytes, position: bytes, count: int) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    """Up to `count` records of a kind from the key `position` on, as (key, record), and the key to go on from; None at
    the end. An empty position is the beginning."""
    found_rows: list[tuple[bytes, bytes]] = []
    with txn.cursor() as cursor:
        found = cursor.set_range(position or kind)
        while found and cursor.key()[:1] == kind:
            if len(found_rows) == count:
                return found_rows, bytes(cursor.key())
            found_rows.append((bytes(cursor.key()), bytes(cursor.value())))
            found = cursor.next()
    return found_rows, None


def walk(env: Any, kind: bytes, batch: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """All records of a kind, in pieces; the table is free for others between two of them."""
    def read(position: bytes) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        with env.begin(write=True) as txn:  # not a reader: a killed one would keep old pages for ever
            return records(txn, kind, position, batch)

    position: bytes | None = kind
    while position is not None:
        piece, position = persist(env, partial(read, position))
        yield piece


class Nudge(NamedTuple):
    """What a worker is told about a name."""

    key: bytes  # in the table
    granted: int  # so many more leases are its own now
    wanted: bool  # others want leases that it holds
    changed: bool  # another worker changed the state
    name: str
    asked: bool = False  # another worker asks how many outcomes there were on this path


def add_nudge(txn: Any, worker: int, name: str, granted: int = 0, wanted: bool = False, changed: bool = False,
              asked: bool = False) -> None:
    """Nudge `worker`."""
    key = _NUDGE + struct.pack("!H", worker) + key_of(name)
    record = txn.get(key)
    if record is not None:
        before = msgpack.unpackb(record)
        granted, wanted, changed = granted + before[0], wanted or before[1], changed or before[2]
        asked = asked or before[4]
    txn.put(key, msgpack.packb([granted, wanted, changed, name, asked]))


def nudges_of(txn: Any, worker: int) -> list[Nudge]:
    """The nudges of `worker`."""
    prefix = _NUDGE + struct.pack("!H", worker)
    nudges = []
    with txn.cursor() as cursor:
        found = cursor.set_range(prefix)
        while found and cursor.key().startswith(prefix):
            nudges.append(Nudge(bytes(cursor.key()), *msgpack.unpackb(cursor.value())))
            found = cursor.next()
    return nudges


def enter(txn: Any, worker: int) -> None:
    """`worker` lives."""
    txn.put(_WORKER + struct.pack("!H", worker), b"")


def leave(txn: Any, worker: int) -> None:
    """It does not any more."""
    txn.delete(_WORKER + struct.pack("!H", worker))


def workers(txn: Any) -> list[int]:
    """Those that live."""
    return [struct.unpack("!H", key[1:])[0] for key, _ in records(txn, _WORKER, b"", 0x10000)[0]]


def nudged_workers(txn: Any) -> list[int]:
    """The workers that have nudges, each once."""
    nudged = []
    with txn.cursor() as cursor:
        found = cursor.set_range(_NUDGE)
        while found and cursor.key().startswith(_NUDGE):
            worker: int = struct.unpack("!H", cursor.key()[1:3])[0]
            nudged.append(worker)
            found = cursor.set_range(_NUDGE + struct.pack("!H", worker + 1)) if worker < 0xFFFF else False
    return nudged


def _allocate(path: Path, size: int) -> bool:
    """Whether the file has that size on the disk now."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        log.warning("%s: %s", path, error)
        return False
    finally:
        os.close(fd)
    return True
