"""The table of limits that all workers share: a limit on connections holds over all of them at every instant.

It is an LMDB environment in the runtime directory. Every operation is one write transaction of some microseconds
(`bench/limits.py`), which is atomic over all processes; a process that is killed inside one leaves no trace of it, and
its lock is recovered. Nothing is synced: the table lives as long as the instance.

Nobody polls. A worker that is refused is entered in the same transaction as wanting (`mta.delivery.leases` has the
rules), and is nudged when a lease has been granted to it. Those who hold more than their part are nudged, too, so
that a connection at rest makes room. A nudge is an entry in the table, made in the transaction that caused it, plus
a byte in the worker's FIFO, which only says "look". So a nudge cannot be lost when a buffer is full; and if the nudging
worker is killed between the two, `clear_worker` or the next heartbeat makes up for it.

A granted lease that the worker does not take within `GRANT_S` goes on to the next in line.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb

from mta.delivery import limit_table
from mta.delivery.leases import FIRM_FIRST_S, Leases, Refusal

GRANT_S: Final = 1.0
FOREVER: Final = float("inf")
BATCH: Final = 500  # limits looked at in one transaction when all are: others wait for its end

log = logging.getLogger(__name__)


class _Wait(NamedTuple):
    """Refused for want of a lease."""

    limit: int
    until: float  # then it is worth another look, though nothing was heard; monotonic seconds


class Limits:
    """The table as one worker sees it. Used from one thread; an operation waits for other processes' transactions."""

    def __init__(self, run: str, worker: int | None) -> None:
        """Open the table in the runtime directory, make it if need be. `worker` is None for the supervisor.

        What an earlier worker of this number held is given back. Raises OSError.
        """
        self._run = run
        self._worker = -1 if worker is None else worker
        self._bell = -1
        self._bells: dict[int, int] = {}  # FIFOs of workers, open for writing
        self._waiting: dict[str, _Wait] = {}  # wanted and not granted yet
        self._learned: dict[str, int] = {}  # of limits that we hold or want: `Leases.taken` where there is one
        self._granted: dict[str, tuple[int, float]] = {}  # not taken yet: how many, since when
        self._yielding: dict[str, int] = {}  # leases that we said we would give back
        self._owed: list[str] = []  # given back when the table could not be written
        self._again: set[str] = set()  # refused because the table could not be written
        directory = Path(run, "limits")
        try:
            self._env = limit_table.open_table(directory)
            if worker is not None:
                self._bell = limit_table.open_bell(self._bell_path(worker))
                self.clear_worker(worker)
        except lmdb.Error as error:
            raise OSError(errno.EIO, f"table of limits: {error}", str(directory)) from error

    def close(self) -> None:
        """Give everything back and close the table."""
        if self._bell != -1:
            self.clear_worker(self._worker)
            os.close(self._bell)
            self._bell = -1
        for fd in self._bells.values():
            os.close(fd)
        self._bells.clear()
        self._env.close()

    # -- leases --------------------------------------------------------------------------------------------------

    def acquire(self, leases: Sequence[tuple[str, int]]) -> str | None:
        """Take one lease of each (name, limit), all or none. Returns None, or the name of the limit that is full.

        The worker then waits for that limit: it will be nudged, and until then is refused without a look.
        """
        waiting = self._waiting
        for name, limit in leases:
            wait = waiting.get(name)
            if wait is not None and wait.limit == limit and time.monotonic() < wait.until:
                return name
        try:
            with self._env.begin(write=True) as txn:
                full, nudged = self._acquire(txn, sorted(leases, key=itemgetter(1)))
        except lmdb.Error as error:
            log.error("table of limits: %s", error)
            self._again.add(leases[0][0])
            return leases[0][0]
        if full is None:
            for name, _ in leases:
                waiting.pop(name, None)
                if name in self._granted:
                    self._take_granted(name)
        else:
            # A receiver's own limit may rise without a word: then it is looked at again, now and then.
            until = max(full.firm_until, full.now + FIRM_FIRST_S) if full.taken else FOREVER
            waiting[full.name] = _Wait(full.limit, until)
        self._ring(nudged)
        return full.name if full is not None else None

    def _acquire(self, txn: Any, leases: Sequence[tuple[str, int]]) -> tuple[Leases | None, set[int]]:
        """The smallest limit first. Returns the limit that is full, if any, and the workers to wake."""
        me = self._worker
        nudged: set[int] = set()
        taken: list[Leases] = []
        for name, limit in leases:
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
                self._nudge(txn, worker, name, 1, nudged)
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
        """The receiver behind the limit `name` took a connection for which we hold a lease."""
        nudged: set[int] = set()
        try:
            with self._env.begin(write=True) as txn:
                state = limit_table.load(txn, name, 0)
                state.served()
                self._give_back(txn, state, 0, nudged)
        except lmdb.Error as error:
            log.error("table of limits: %s", error)
        self._ring(nudged)

    def refused(self, name: str, begun: float, serves_us: bool) -> Refusal:
        """The receiver behind the limit `name` refused a connection that we began to open at `begun` (monotonic), and
        whose lease is still ours. If it serves others, ours (`serves_us`) or another worker's, then their number is the
        limit for a while, for all workers."""
        try:
            with self._env.begin(write=True) as txn:
                state = limit_table.load(txn, name, 0)
                refusal = state.refused(self._worker, begun, serves_us)
                limit_table.save(txn, state)
        except lmdb.Error as error:
            log.error("table of limits: %s", error)
            return Refusal.WITHIN if serves_us else Refusal.ALONE
        return refusal

    def learned(self, name: str) -> int:
        """How many connections the receiver behind the limit `name` took when we last asked for a lease; 0: any."""
        return self._learned.get(name, 0)

    def release(self, names: Sequence[str]) -> None:
        """Give one lease of each back. Those who wait are nudged."""
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
            log.error("table of limits: %s", error)
            self._owed.extend(names)
        self._ring(nudged)

    def want(self, name: str, count: int) -> None:
        """This worker could use `count` more leases of `name`; 0: it does not wait any more.

        `acquire` says it by itself when it is refused, with a count of 1.
        """
        if name not in self._waiting and name not in self._granted:
            return
        nudged: set[int] = set()
        granted = self._granted.pop(name, (0, 0.0))[0] if not count else 0
        if not count:
            self._waiting.pop(name, None)
        try:
            with self._env.begin(write=True) as txn:
                state = limit_table.load(txn, name, 0)
                if granted or state.of(self._worker).want != count:
                    state.want(self._worker, count, time.monotonic())
                    self._give_back(txn, state, granted, nudged)
        except lmdb.Error as error:
            log.error("table of limits: %s", error)
            self._owed.extend([name] * granted)
        self._ring(nudged)

    def should_yield(self, name: str, limit: int, resting: bool = False) -> bool:
        """Whether this worker should give a lease of `name` back for another one; `resting`: one it does not use.

        When it says so it counts on it: until the next `release` of `name` it answers as if that had been done.
        """
        try:
            with self._env.begin(write=True) as txn:  # not a reader: a killed one would keep old pages for ever
                state = limit_table.load(txn, name, limit)
        except lmdb.Error as error:
            log.error("table of limits: %s", error)
            return False
        yielding = self._yielding.get(name, 0)
        for _ in range(yielding):
            state.give_back(self._worker)
            state.grant()
        if not state.should_yield(self._worker, resting):
            return False
        self._yielding[name] = yielding + 1
        return True

    # -- nudges --------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when there are nudges."""
        return self._bell

    def recv_nudges(self) -> list[str]:
        """The limits to look at: a lease was granted to us (`acquire` takes it), or others want some of ours.

        Call it when `fileno` is readable, and on every heartbeat: it also sees to what went wrong in between.
        """
        try:
            while os.read(self._bell, 4096):
                pass
        except BlockingIOError:
            pass
        names = self._again
        self._again = set()
        now = time.monotonic()
        try:
            with self._env.begin(write=True) as txn:
                for key, count, name in limit_table.nudges_of(txn, self._worker):
                    txn.delete(key)
                    names.add(name)
                    if count:
                        self._waiting.pop(name, None)
                        self._granted[name] = (self._granted.get(name, (0, 0.0))[0] + count, now)
        except lmdb.Error as error:
            log.error("table of limits: %s", error)
        late = [name for name, (_, since) in self._granted.items() if now - since > GRANT_S]
        for name in late:
            self._owed.extend([name] * self._granted.pop(name)[0])
        if self._owed:
            self.release(())
        return list(names)

    def _take_granted(self, name: str) -> None:
        count, since = self._granted.pop(name)
        if count > 1:
            self._granted[name] = (count - 1, since)

    def _give_back(self, txn: Any, state: Leases, count: int, nudged: set[int]) -> None:
        state.give_back(self._worker, count)
        mine = state.of(self._worker)
        if not mine.held and not mine.want:
            self._learned.pop(state.name, None)
        for worker in state.grant():
            self._nudge(txn, worker, state.name, 1, nudged)
        limit_table.save(txn, state)

    def _tell_holders(self, txn: Any, state: Leases, nudged: set[int]) -> None:
        for worker, share in state.shares.items():
            if share.held:  # us, too: one of our own connections may rest
                self._nudge(txn, worker, state.name, 0, nudged)

    def _nudge(self, txn: Any, worker: int, name: str, granted: int, nudged: set[int]) -> None:
        limit_table.add_nudge(txn, worker, name, granted)
        nudged.add(worker)

    def _ring(self, workers: Iterable[int]) -> None:
        """Wake workers. One that is full of rings is awake; one that is not there will look when it starts."""
        for worker in workers:
            try:
                fd = self._bells.get(worker)
                if fd is None:
                    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                    fd = self._bells[worker] = os.open(self._bell_path(worker), flags)
                os.write(fd, b"!")
            except BlockingIOError:
                pass
            except OSError:
                stale = self._bells.pop(worker, None)
                if stale is not None:
                    os.close(stale)

    def _bell_path(self, worker: int) -> str:
        return str(Path(self._run, f"worker-{worker}.nudge"))

    # -- all limits ----------------------------------------------------------------------------------------------

    def clear_worker(self, worker: int) -> None:
        """Give back all that `worker`, which has ended, held or wanted. Wakes everybody it may not have woken."""
        position: bytes | None = limit_table.FIRST_LIMIT
        while position is not None:
            nudged: set[int] = set()
            with self._env.begin(write=True) as txn:
                states, position = limit_table.some_limits(txn, position, BATCH)
                for state in states:
                    if state.shares.pop(worker, None) is not None:
                        for other in state.grant():
                            self._nudge(txn, other, state.name, 1, nudged)
                        limit_table.save(txn, state)
            self._ring(nudged)
        with self._env.begin(write=True) as txn:
            for key, _, _ in limit_table.nudges_of(txn, worker):
                txn.delete(key)
            left = limit_table.nudged_workers(txn)
        self._ring(left)
