"""What was learnt survives the end of the process: the file `SPOOL/learnt`.

In it are, of the table of limits (`mta.delivery.limits`), what lives longer than connections do:

* states of paths: what adaptation found, and suspensions and lowered limits until they end. Not the operator's: those
  have a file of their own, written before they are in force.
* counters of the period that goes on: what was sent today.
* tallies of rules: how often they took replies lately, and the outcomes that shares are of.
* buckets that are not at rest for some time yet: after a restart a rate of one per hour is one per hour.

All times in it are of the wall clock. The file is replaced as a whole (written, synced, renamed, directory synced), so
that there is always a whole one. What it says is worth something, but no mail depends on it: one that is damaged, or of
another version, is told in one line and not used.
"""

from __future__ import annotations

import logging
import os
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import lmdb
import msgpack

from mta.delivery import limit_table
from mta.delivery.adaptive import FORGET_S
from mta.delivery.counters import Counter
from mta.delivery.limits import BATCH, Limits
from mta.delivery.pathstate import SITE, PathState
from mta.delivery.rates import Record
from mta.delivery.shared_states import clocks_us
from mta.delivery.tally import Tally, decode_outcomes

NAME: Final = "learnt"
MAGIC: Final = b"mta learnt 1\n"
SLOW_S: Final = 0.5  # buckets that are at rest sooner are so before anything is sent after a restart
TALLIES: Final = 20_000  # of rules, and paths of which outcomes were told
OPERATOR: Final = "operator"
FAILED_US: Final = 3_600_000_000  # so long after its pause a failing site is forgotten, but by who has mail for it
_CRC: Final = struct.Struct("<I")

log = logging.getLogger(__name__)


class DamagedError(Exception):
    """The file is not what we wrote, or of another version."""


@dataclass(slots=True)
class Learnt:
    """The contents of the file. Two that say the same are equal, whenever they were gathered."""

    states: list[tuple[str, bytes]] = field(default_factory=list)
    counters: list[bytes] = field(default_factory=list)
    levels: list[tuple[bytes, int, float, float]] = field(default_factory=list)  # key, at rest (us), spacing, ahead
    tallies: list[bytes] = field(default_factory=list)
    outcomes: list[bytes] = field(default_factory=list)

    def encode(self, saved_us: int) -> bytes:
        """The file."""
        body: bytes = msgpack.packb(
            [saved_us, self.states, self.counters, self.levels, self.tallies, self.outcomes])
        return MAGIC + _CRC.pack(zlib.crc32(body)) + body

    @classmethod
    def decode(cls, data: bytes) -> tuple[Learnt, int]:
        """From the file, and when it was written. Raises DamagedError."""
        if not data.startswith(b"mta learnt "):
            raise DamagedError("not a file of ours")
        if not data.startswith(MAGIC):
            raise DamagedError("of another version")
        body = data[len(MAGIC) + _CRC.size:]
        if data[len(MAGIC):len(MAGIC) + _CRC.size] != _CRC.pack(zlib.crc32(body)):
            raise DamagedError("damaged")
        saved_us, states, counters, levels, *more = msgpack.unpackb(body)
        tallies, outcomes = more or ([], [])  # there was a time without
        return cls([(name, record) for name, record in states], counters, [tuple(level) for level in levels],
                   tallies, outcomes), saved_us


def path_of(spool: str) -> Path:
    """The file."""
    return Path(spool, NAME)


def gather(limits: Limits, now_us: int, pause: Callable[[], None] = lambda: None) -> Learnt:
    """What there is to keep, and remove from the table what is over. `pause` is called between pieces of the work.

    Raises lmdb.Error.
    """
    learnt = Learnt()
    env = limits.table
    clocks = clocks_us()
    for piece in limit_table.walk(env, limit_table.STATE, BATCH):
        over = []
        for key, record in piece:
            name, packed = msgpack.unpackb(record)
            if name.startswith(SITE):
                if all(hold.until_us + FAILED_US < now_us for hold in PathState.decode(packed, clocks).holds):
                    over.append((key, record))
                continue
            kept = _of_worth(PathState.decode(packed, clocks), now_us)
            if not kept.is_bare(now_us):
                learnt.states.append((name, kept.encode(0)))
            elif PathState.decode(packed, clocks).is_bare(now_us):
                over.append((key, record))
        _remove(env, over)
        pause()
    for piece in limit_table.walk(env, limit_table.COUNTER, BATCH):
        over = []
        for key, record in piece:
            counter = Counter.decode(record)
            if counter.is_over(now_us):
                over.append((key, record))
            elif counter.period_s > 0:
                learnt.counters.append(record)
        _remove(env, over)
        pause()
    now = time.monotonic()
    for piece in limit_table.walk(env, limit_table.LEVEL, BATCH):
        for key, record in piece:
            level = Record.decode(record)
            if level.used - now > SLOW_S:
                learnt.levels.append((key, int(level.used * 1_000_000) + clocks, level.spacing, level.ahead))
        pause()
    learnt.tallies = _kept(env, limit_table.TALLY, lambda record: Tally.decode(record).over_s, now_us, pause)
    learnt.outcomes = _kept(env, limit_table.OUTCOMES, lambda record: decode_outcomes(record)[2], now_us, pause)
    limit_table.works()  # nothing else says so in a process without leases
    return learnt


def _kept(env: Any, kind: bytes, over_s: Callable[[bytes], float], now_us: int,
          pause: Callable[[], None]) -> list[bytes]:
    """What is not over; of too many records those that would be over first are removed, too."""
    found: list[tuple[float, bytes, bytes]] = []
    for piece in limit_table.walk(env, kind, BATCH):
        found += [(over_s(record), key, record) for key, record in piece]
        pause()
    found.sort(reverse=True)
    kept = [record for end_s, _, record in found[:TALLIES] if end_s * 1e6 > now_us]
    for begin in range(len(kept), len(found), BATCH):
        _remove(env, [(key, record) for _, key, record in found[begin:begin + BATCH]])
        pause()
    return sorted(kept)


def _of_worth(state: PathState, now_us: int) -> PathState:
    holds = tuple(hold for hold in state.holds if hold.until_us > now_us and hold.by != OPERATOR)
    if state.adaptive_us < now_us - FORGET_S * 1_000_000:
        return PathState(holds)
    return replace(state, holds=holds, version=0)


def _remove(env: Any, over: list[tuple[bytes, bytes]]) -> None:
    def remove() -> None:
        with env.begin(write=True) as txn:
            for key, record in over:
                if txn.get(key) == record:
                    txn.delete(key)

    if over:
        limit_table.persist(env, remove)


def write(spool: str, data: bytes) -> None:
    """Replace the file. Waits for the disk. Raises OSError."""
    path = path_of(spool)
    temporary = path.with_name(f"{NAME}.new")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o600)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk has better use for the space
        raise
    temporary.replace(path)
    directory = os.open(spool, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def rescue(run: str, spool: str, now_us: int) -> None:
    """Write the file from the table that an earlier instance left, which knows what came after the file was last
    written if that instance was killed. Before the table is removed; whatever is wrong with it is logged."""
    if not limit_table.is_of_this_boot(Path(run, "limits")):
        return
    try:
        limits = Limits(run, None)
        try:
            write(spool, gather(limits, now_us).encode(now_us))
        finally:
            limits.close()
    except (OSError, lmdb.Error, ValueError, TypeError) as error:
        log.warning("%s: %s; what was learnt is as old as the file", Path(run, "limits"), error)


def restore(run: str, spool: str, now_us: int) -> None:
    """Put what the file says into the table, before workers start. Whatever is wrong with it is logged, in one line."""
    path = path_of(spool)
    try:
        learnt, saved_us = Learnt.decode(path.read_bytes())
        limits = Limits(run, None)
        try:
            limit_table.persist(limits.table, lambda: fill(limits, learnt, saved_us, now_us))
        finally:
            limits.close()
    except FileNotFoundError:
        return
    except (OSError, lmdb.Error, DamagedError, ValueError, TypeError) as error:
        log.warning("%s: %s; going on without what was learnt", path, error)
        return
    log.info("%s: %d paths, %d counters, %d rates as they were left", path, len(learnt.states), len(learnt.counters),
             len(learnt.levels))


def fill(limits: Limits, learnt: Learnt, saved_us: int, now_us: int) -> None:
    """What is still true goes into the table. If the clock was set back since then, all times are moved with it."""
    back_us = min(now_us - saved_us, 0)
    with limits.table.begin(write=True) as txn:
        for name, record in learnt.states:
            state = _of_worth(PathState.decode(record, back_us), now_us)
            if not state.is_bare(now_us):
                packed = replace(state, version=1).encode(clocks_us())
                txn.put(limit_table.STATE + limit_table.key_of(name), msgpack.packb([name, packed]))
        for record in learnt.counters:
            counter = Counter.decode(record)
            if not counter.is_over(now_us):
                txn.put(limit_table.COUNTER + limit_table.key_of(counter.name), record)
        for record in learnt.tallies:
            tally = Tally.decode(record)
            if back_us:
                tally.move(back_us / 1e6)
            packed_tally = tally.encode()
            if packed_tally is not None and not tally.is_over(now_us / 1e6):
                txn.put(limit_table.TALLY + limit_table.key_of(f"{tally.rule}\0{tally.key}"), packed_tally)
        for record in learnt.outcomes:
            txn.put(limit_table.OUTCOMES + limit_table.key_of(decode_outcomes(record)[0]), record)
        now = time.monotonic()
        for key, rest_us, spacing, ahead in learnt.levels:
            left_s = (rest_us + back_us - now_us) / 1_000_000
            if left_s > 0:
                txn.put(key, Record(now + left_s, 0.0, spacing, ahead).encode())
