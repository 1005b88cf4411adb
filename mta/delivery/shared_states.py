"""What all workers know of each path, in the table of limits, and this worker's copy of it.

Reading is a look into a dict. A change is one transaction, and a nudge for every other worker if it has to act on it;
the nudge replaces its copy. `Limits` says what the methods promise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import lmdb
import msgpack

from mta.delivery import limit_table
from mta.delivery.pathstate import PathState

KEPT: Final = 50_000  # copies; further ones are read again when asked for
UNKNOWN: Final = PathState()

log = logging.getLogger(__name__)


def clocks_us() -> int:
    """By how much wall and monotonic clock differ, microseconds: constant until somebody sets the wall clock."""
    return (time.time_ns() - time.monotonic_ns()) // 1000


def load(txn: Any, name: str) -> PathState:
    """The state in the table."""
    record = txn.get(limit_table.STATE + limit_table.key_of(name))
    return UNKNOWN if record is None else PathState.decode(msgpack.unpackb(record)[1], clocks_us())


def save(txn: Any, name: str, state: PathState) -> None:
    """Write it back."""
    txn.put(limit_table.STATE + limit_table.key_of(name), msgpack.packb([name, state.encode(clocks_us())]))


def all_states(env: Any, batch: int) -> Iterator[tuple[str, PathState]]:
    """All states that anybody has changed, by name; the table is free for others now and then."""
    clocks = clocks_us()
    for piece in limit_table.walk(env, limit_table.STATE, batch):
        for _, record in piece:
            name, state = msgpack.unpackb(record)
            yield name, PathState.decode(state, clocks)


class SharedStates:
    """Of one worker; `worker` is -1 for who hears no nudges, and so keeps no copies."""

    def __init__(self, env: Any, worker: int) -> None:
        self._env = env
        self._worker = worker
        self._copies: dict[str, PathState] = {}
        self._changed: set[str] = set()

    def state(self, name: str) -> PathState:
        """See `Limits.state`. Hot path."""
        copy = self._copies.get(name)
        if copy is not None:
            return copy
        try:
            with self._env.begin(write=True) as txn:
                state = load(txn, name)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return UNKNOWN
        self._keep(name, state)
        return state

    def update(self, name: str, change: Callable[[PathState], PathState]) -> tuple[PathState, set[int]]:
        """See `Limits.update`. Also returns the workers to wake."""
        nudged: set[int] = set()
        try:
            with self._env.begin(write=True) as txn:
                before = load(txn, name)
                after = change(before)
                if after != before:
                    after = replace(after, version=before.version + 1)
                    save(txn, name, after)
                    if after.differs(before):
                        nudged = {worker for worker in limit_table.workers(txn) if worker != self._worker}
                        for worker in nudged:
                            limit_table.add_nudge(txn, worker, name, changed=True)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            after, nudged = change(self._copies.get(name, UNKNOWN)), set()
        self._keep(name, after)
        return after, nudged

    def nudged(self, txn: Any, name: str) -> None:
        """Another worker changed it."""
        self._changed.add(name)
        if name in self._copies:
            self._copies[name] = load(txn, name)

    def take_changed(self) -> list[str]:
        """See `Limits.changed`."""
        changed = list(self._changed)
        self._changed.clear()
        return changed

    def forget(self, name: str | None) -> None:
        """Drop the copy of one, or of all."""
        if name is None:
            self._copies.clear()
        else:
            self._copies.pop(name, None)

    def _keep(self, name: str, state: PathState) -> None:
        if self._worker < 0:
            return
        if len(self._copies) >= KEPT and name not in self._copies:
            del self._copies[next(iter(self._copies))]
        self._copies[name] = state
