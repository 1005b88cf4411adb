"""Leases over all workers: those of each limit in the table of limits, and what this worker waits for or was granted.

`mta.delivery.leases` is the arithmetic of one limit; `Limits` says what the methods promise. A granted lease that the
worker does not take within `GRANT_S` goes on to the next in line, unless the worker waits for a further limit of the
same set: those are taken in one order by everybody, the smaller limit first, among equals by name, so nobody waits in a
circle, and who has come so far does not begin anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import lmdb

from mta.delivery import limit_table
from mta.delivery.leases import FIRM_FIRST_S, Leases, Refusal

GRANT_S: Final = 1.0
FOREVER: Final = float("inf")


class _Wait(NamedTuple):
    """Refused for want of a lease."""

    limit: int
    until: float  # then it is worth another look, though nothing was heard; monotonic seconds


class SharedLeases:
    """Of one worker."""

    def __init__(self, env: Any, worker: int, ring: Callable[[Iterable[int]], None]) -> None:
        """`ring` wakes workers that have a nudge in the table."""
        self._env = env
        self._worker = worker
        self._ring = ring
        self._waiting: dict[str, _Wait] = {}  # wanted and not granted yet
        self._learned: dict[str, int] = {}  # of limits that we hold or want: `Leases.taken` where there is one
        self._granted: dict[str, tuple[int, float]] = {}  # not taken yet: how many, since when
        self._kept: dict[str, str] = {}  # of those, the ones that we keep while we wait for another limit of their set
        self._yielding: dict[str, int] = {}  # leases that we said we would give back
        self._owed: list[str] = []  # given back when the table could not be written
        self._told: set[str] = set()  # to be looked at: nudged, or refused because the table could not be written

    def acquire(self, leases: Sequence[tuple[str, int | None]]) -> str | None:
        """See `Limits.acquire`."""
        waiting = self._waiting
        wanted = []
        for name, limit in leases:
            if limit is not None:
                wanted.append((limit, name))
                wait = waiting.get(name)
                if wait is not None and wait.limit == limit and time.monotonic() < wait.until:
                    return name
        if not wanted:
            return None
        wanted.sort()
        try:
            with self._env.begin(write=True) as txn:
                full, nudged = self._acquire(txn, wanted)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            self._told.add(wanted[0][1])
            return wanted[0][1]
        if full is None:
            for _, name in wanted:
                waiting.pop(name, None)
                if name in self._granted:
                    self._take_granted(name)
        else:
            # A receiver's own limit may rise without a word: then it is looked at again, now and then.
            until = max(full.firm_until, full.now + FIRM_FIRST_S) if full.taken else FOREVER
            waiting[full.name] = _Wait(full.limit, until)
            for _, name in wanted:
                if name == full.name:
                    break
                if name in self._granted:
                    self._kept[name] = full.name
        self._ring(nudged)
        return full.name if full is not None else None

    def _acquire(self, txn: Any, leases: Sequence[tuple[int, str]]) -> tuple[Leases | None, set[int]]:
        """The smallest limit first. Returns the limit that is full, if any, and the workers to wake."""
        me = self._worker
        nudged: set[int] = set()
        taken: list[Leases] = []
        for limit, name in leases:
            if name in self._granted:
                continue
            state = limit_table.load(txn, name, limit)
            state.limit = limit
            waited = state.of(me).want
            took, granted = state.take(me, state.now)
            if state.taken:
                self._learned[name] = state.taken
            else:
                self._learned.pop(name, None)
            for worker in granted:
                self._grant_nudge(txn, worker, name, nudged)
            if not took:
                if not waited:
                    self._tell_holders(txn, state, nudged)
                limit_table.save(txn, state)
                for other in taken:  # what others were granted stays
                    other.give_back(me)
                    limit_table.save(txn, other)
                return state, nudged
            taken.append(state)
        for state in taken:
            limit_table.save(txn, state)
        return None, nudged

    def served(self, name: str) -> None:
        """See `Limits.served`."""
        nudged: set[int] = set()
        try:
            with self._env.begin(write=True) as txn:
                state = limit_table.load(txn, name, 0)
                state.served()
                self._give_back(txn, state, 0, nudged)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
        self._ring(nudged)

    def refused(self, name: str, begun: float, serves_us: bool) -> Refusal:
        """See `Limits.refused`."""
        try:
            with self._env.begin(write=True) as txn:
                state = limit_table.load(txn, name, 0)
                refusal = state.refused(self._worker, begun, serves_us)
                limit_table.save(txn, state)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return Refusal.WITHIN if serves_us else Refusal.ALONE
        return refusal

    def learned(self, name: str) -> int:
        """See `Limits.learned`."""
        return self._learned.get(name, 0)

    def holders(self, name: str) -> dict[int, int]:
        """See `Limits.holders`."""
        try:
            with self._env.begin(write=True) as txn:  # not a reader: a killed one would keep old pages for ever
                shares = limit_table.load(txn, name, 0).shares
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return {}
        return {worker: share.held for worker, share in sorted(shares.items()) if share.held}

    def release(self, names: Sequence[str]) -> None:
        """See `Limits.release`."""
        if not names and not self._owed:
            return
        nudged: set[int] = set()
        for name in names:
            yielding = self._yielding.pop(name, 0)
            if yielding > 1:
                self._yielding[name] = yielding - 1
        try:
            with self._env.begin(write=True) as txn:
                for name in (*names, *self._owed):
                    self._give_back(txn, limit_table.load(txn, name, 0), 1, nudged)
            self._owed.clear()
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            self._owed.extend(names)
        self._ring(nudged)

    def waits(self, name: str) -> bool:
        """See `Limits.waits`."""
        return name in self._waiting

    def want(self, name: str, count: int) -> None:
        """See `Limits.want`."""
        if name not in self._waiting and name not in self._granted:
            return
        nudged: set[int] = set()
        granted = 0
        if not count:
            granted = self._drop_granted(name)
            self._waiting.pop(name, None)
            for kept in [kept for kept, waited in self._kept.items() if waited == name]:
                self._owed.extend([kept] * self._drop_granted(kept))
        try:
            with self._env.begin(write=True) as txn:
                state = limit_table.load(txn, name, 0)
                if granted or state.of(self._worker).want != count:
                    state.want(self._worker, count, time.monotonic())
                    self._give_back(txn, state, granted, nudged)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            self._owed.extend([name] * granted)
        self._ring(nudged)
        self.release(())

    def gives_way(self, leases: Sequence[tuple[str, int | None]], resting: bool = False) -> str | None:
        """See `Limits.gives_way`."""
        states: list[Leases] = []
        try:
            with self._env.begin(write=True) as txn:  # not a reader: a killed one would keep old pages for ever
                for name, limit in leases:
                    if limit is not None:
                        states.append(state := limit_table.load(txn, name, limit))
                        state.limit = limit  # nobody may have asked for a lease since it is another one
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return None
        for state in states:
            yielding = self._yielding.get(state.name, 0)
            for _ in range(yielding):
                state.give_back(self._worker)
                state.grant()
            if state.should_yield(self._worker, resting):
                self._yielding[state.name] = yielding + 1
                return state.name
        return None

    def adopt(self, name: str, limit: int, count: int) -> bool:
        """See `Limits.adopt`."""
        try:
            with self._env.begin(write=True) as txn:
                state = limit_table.load(txn, name, limit)
                state.limit = limit
                state.of(self._worker).held += count
                limit_table.save(txn, state)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return False
        return True

    def nudged(self, name: str, granted: int, now: float) -> None:
        """So many leases of `name` are ours now; none: others want some of ours."""
        self._told.add(name)
        if granted:
            self._waiting.pop(name, None)
            self._granted[name] = (self._granted.get(name, (0, 0.0))[0] + granted, now)

    def take_nudged(self, now: float) -> list[str]:
        """The limits to look at since the last call. What was granted and is not taken in time goes on to others."""
        names = self._told
        self._told = set()
        late = [name for name, (_, since) in self._granted.items()
                if now - since > GRANT_S and self._kept.get(name) not in self._waiting]
        for name in late:
            self._owed.extend([name] * self._drop_granted(name))
        if self._owed:
            self.release(())
        return list(names)

    def clear(self, worker: int, batch: int) -> None:
        """Give back all that `worker` held or wanted, so many limits in one transaction. Raises lmdb.Error."""
        position: bytes | None = limit_table.FIRST_LIMIT
        while position is not None:
            nudged: set[int] = set()
            with self._env.begin(write=True) as txn:
                states, position = limit_table.some_limits(txn, position, batch)
                for state in states:
                    if state.shares.pop(worker, None) is not None:
                        for other in state.grant():
                            self._grant_nudge(txn, other, state.name, nudged)
                        limit_table.save(txn, state)
            self._ring(nudged)

    def _take_granted(self, name: str) -> None:
        count, since = self._granted.pop(name)
        if count > 1:
            self._granted[name] = (count - 1, since)
        else:
            self._kept.pop(name, None)

    def _drop_granted(self, name: str) -> int:
        self._kept.pop(name, None)
        return self._granted.pop(name, (0, 0.0))[0]

    def _give_back(self, txn: Any, state: Leases, count: int, nudged: set[int]) -> None:
        state.give_back(self._worker, count)
        mine = state.of(self._worker)
        if not mine.held and not mine.want:
            self._learned.pop(state.name, None)
        for worker in state.grant():
            self._grant_nudge(txn, worker, state.name, nudged)
        limit_table.save(txn, state)

    def _tell_holders(self, txn: Any, state: Leases, nudged: set[int]) -> None:
        for worker, share in state.shares.items():
            if share.held:  # us, too: one of our own connections may rest
                limit_table.add_nudge(txn, worker, state.name, wanted=True)
                nudged.add(worker)

    @staticmethod
    def _grant_nudge(txn: Any, worker: int, name: str, nudged: set[int]) -> None:
        limit_table.add_nudge(txn, worker, name, granted=1)
        nudged.add(worker)
