"""The table that all workers share: a limit holds over all of them at every instant, and what one learns all know.

It is an LMDB environment in the runtime directory. Every operation is one write transaction of some microseconds
(`bench/limits.py`), which is atomic over all processes; a process that is killed inside one leaves no trace of it, and
its lock is recovered. Nothing is synced: the table lives as long as the instance (`mta.delivery.learnt` carries over
what has to live longer).

**Leases**: how many at once. `acquire` takes one of each of any number of limits, all or none; `release` gives the same
names back. A worker that is refused is entered in the same transaction as wanting (`mta.delivery.leases` has the
rules), and is nudged when a lease has been granted to it. Those who hold more than their part are nudged, too, so that
a connection at rest makes room (`mta.delivery.shared_leases`).

**Rates**: how many in a time (`mta.delivery.rates`). `reserve` says when:

    at = limits.reserve(buckets)  # the path's own, its provider's, source's, tenant's, in any order
    if not at: ...                # it is yours: send now, or `hand_back`
    else: ...                     # your place in line is kept: call `reserve` again at that time

**Counters**: how many in a day, and how many there are (`mta.delivery.counters`).

**States**: suspensions, lowered limits and what adaptation found (`mta.delivery.pathstate`), by the name of a path or
of whatever else may stand still. `state` is a look into a dict.

**Tallies**: how often rules took replies, and among how many outcomes (`mta.delivery.tally`).

**Numbers**: failed logins, by address and user (`mta.delivery.shared_numbers`).

Nobody polls. A nudge is an entry in the table, made in the transaction that caused it, plus a byte in the worker's
FIFO, which only says "look". So a nudge cannot be lost when a buffer is full; and if the nudging worker is killed
between the two, `clear_worker` or the next heartbeat makes up for it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import lmdb

from mta.delivery import limit_table
from mta.delivery.bells import Bells
from mta.delivery.counters import DAY_S
from mta.delivery.leases import Refusal
from mta.delivery.pathstate import PathState
from mta.delivery.rates import Bucket
from mta.delivery.shared_counters import SharedCounters
from mta.delivery.shared_leases import SharedLeases
from mta.delivery.shared_numbers import SharedNumbers
from mta.delivery.shared_rates import SharedRates
from mta.delivery.shared_states import SharedStates, all_states
from mta.delivery.shared_tallies import SharedTallies
from mta.delivery.tally import Tally

FOREVER: Final = float("inf")
ENTRIES_MOST: Final = 200_000  # some 100 MB, of the 256 that the table may have
BATCH: Final = 500  # limits looked at in one transaction when all are: others wait for its end

T = TypeVar("T")


def limited(leases: Iterable[tuple[str, int | None]]) -> tuple[str, ...]:
    """The names of those that are limited: what `release` has to give back."""
    return tuple([name for name, limit in leases if limit is not None])


class Limits:
    """The table as one worker sees it. Used from one thread; an operation waits for other processes' transactions."""

    def __init__(self, run: str, worker: int | None) -> None:
        """Open the table in the runtime directory, make it if need be. `worker` is None for the supervisor.

        What an earlier worker of this number held is given back. Raises OSError.
        """
        self._worker = -1 if worker is None else worker
        self._bells = Bells(run)
        directory = Path(run, "limits")
        try:
            self._env = limit_table.open_table(directory)
            self._leases = SharedLeases(self._env, self._worker, self._bells.ring)
            if worker is not None:
                self._bells.open(worker)
                self.clear_worker(worker)
                with self._env.begin(write=True) as txn:
                    limit_table.enter(txn, worker)
        except lmdb.Error as error:
            raise OSError(errno.EIO, f"table of limits: {error}", str(directory)) from error
        self._rates = SharedRates(self._env)
        self._counters = SharedCounters(self._env, self._worker)
        self._states = SharedStates(self._env, self._worker)
        self._tallies = SharedTallies(self._env, self._worker)
        self.numbers = SharedNumbers(self._env)
        """By names that strangers chose: failed logins."""

    @property
    def trouble(self) -> str:
        """Why the table cannot be written; empty when it can. Until then no lease and no right of a rate is given, as
        limits have to hold; who waits asks again within a second. What is counted is let through, and counted later.
        """
        return limit_table.trouble()

    @property
    def has_room(self) -> bool:
        """Whether there is room for what is good to know and no more. A table that is full gives no leases."""
        return bool(self._env.stat()["entries"] < ENTRIES_MOST)

    @property
    def table(self) -> Any:
        """The environment, for `mta.delivery.learnt`: one may be open only once in a process."""
        return self._env

    def close(self) -> None:
        """Give everything back and close the table."""
        if self._bells.fileno() != -1:
            self.clear_worker(self._worker)
        self._bells.close()
        self._env.close()

    # -- leases --------------------------------------------------------------------------------------------------

    def acquire(self, leases: Sequence[tuple[str, int | None]]) -> str | None:
        """Take one lease of each (name, limit), all or none. Returns None, or the name of the limit that is full.

        A limit of None is none, and costs nothing; 0 lets nobody through. When refused the worker waits for the limit
        that is named: it will be nudged, and until then is refused without a look.
        """
        return self._leases.acquire(leases)

    def served(self, name: str) -> None:
        """The receiver behind the limit `name` took a connection for which we hold a lease."""
        self._leases.served(name)

    def refused(self, name: str, begun: float, serves_us: bool) -> Refusal:
        """The receiver behind the limit `name` refused a connection that we began to open at `begun` (monotonic), and
        whose lease is still ours. If it serves others, ours (`serves_us`) or another worker's, then their number is the
        limit for a while, for all workers."""
        return self._leases.refused(name, begun, serves_us)

    def learned(self, name: str) -> int:
        """How many connections the receiver behind the limit `name` took when we last asked for a lease; 0: any."""
        return self._leases.learned(name)

    def holders(self, name: str) -> dict[int, int]:
        """How many leases of the limit `name` each worker holds; for people."""
        return self._leases.holders(name)

    def release(self, names: Sequence[str]) -> None:
        """Give one lease of each back: of those that were limited (`limited`). Those who wait are nudged."""
        self._leases.release(names)

    def waits(self, name: str) -> bool:
        """Whether we were refused a lease of `name`, and have neither been granted one nor given up since."""
        return self._leases.waits(name)

    def want(self, name: str, count: int) -> None:
        """This worker could use `count` more leases of `name`; 0: it does not wait any more.

        `acquire` says it by itself when it is refused, with a count of 1.
        """
        self._leases.want(name, count)

    def should_yield(self, name: str, limit: int, resting: bool = False) -> bool:
        """Whether this worker should give a lease of `name` back for another one; `resting`: one it does not use.

        When it says so it counts on it: until the next `release` of `name` it answers as if that had been done.
        """
        return self.gives_way(((name, limit),), resting) is not None

    def gives_way(self, leases: Sequence[tuple[str, int | None]], resting: bool = False) -> str | None:
        """Which of these limits asks this worker to give a lease back, as in `should_yield`, if any does.

        For the set of a connection, in one look. Give all of the set back then.
        """
        return self._leases.gives_way(leases, resting)

    def adopt(self, name: str, limit: int, count: int) -> bool:
        """Hold `count` leases of `name` for what is in use already, as its limit is new. They may be more than the
        limit: then nobody gets one until they have gone down to it. Whether the table took it."""
        return self._leases.adopt(name, limit, count)

    # -- rates and counters --------------------------------------------------------------------------------------

    def reserve(self, buckets: Sequence[Bucket], count: int = 1, urgent: bool = False) -> float:
        """When `count` messages may go by all these rates. Hot path (`bench/limits.py`).

        0.0: now, they are taken; send them, or `hand_back`. Else a time (monotonic seconds): nothing is taken, but a
        place in line is ours. Call it again with the same buckets at that time; earlier it gives the same answer for
        nothing, much later the place is lost. It may be put off once more, by another one of the buckets.

        The place belongs to this worker and these names: whoever calls first when it is due gets what it is for, so let
        one caller per path wait. `urgent`: before all that are not, which keep a tenth. Who waits and comes upon urgent
        mail may ask again for that, and keeps the place that it has.

        A bucket with another rate than before (a reload, adaptation) is in force at once: what waits is moved to the
        new rate. Then call again for all that wait.
        """
        return self._rates.reserve(buckets, count, urgent)

    def use_late(self, buckets: Sequence[Bucket], since: float) -> bool:
        """What `reserve` gave at `since` (monotonic seconds) is used only now: the next ones are reckoned from now on.
        False: others have gone since, ours among them, and this would come on top of them. Then begin anew."""
        return self._rates.use_late(buckets, since)

    def charge(self, buckets: Sequence[Bucket]) -> None:
        """A message has just gone that none of these rates was asked for, as they were not known yet: the next one goes
        no sooner than if they had been. Whoever else saw it go may say so, too."""
        self._rates.charge(buckets)

    def hand_back(self, buckets: Sequence[Bucket], count: int = 1, since: float = FOREVER) -> None:
        """What `reserve` gave is not used after all: the `count` messages that were taken, or the place in line.

        It is given to others if nobody has taken or come after; else it is lost, as the others have their times. Where
        we may have asked again ourselves meanwhile, `since` says when that was which is not used (monotonic seconds).
        """
        self._rates.hand_back(buckets, count, since)

    def count(self, name: str, number: int, limit: int | None, period_s: int = DAY_S) -> bool:
        """Count `number` more under `name`; False, and nothing counted, when that would be more than `limit`.

        Begins again with each period, which is reckoned from the epoch: a day is a calendar day in UTC
        (`counters.ends_us` tells when it ends). With a period of `counters.LEVEL` it never does: it is what there is
        now, as of sessions; a negative `number` counts down, and each worker's part goes with it when it dies. With
        `counters.STOCK` that stays, until `stock` says how much it is. Where the table cannot be written nobody is
        refused for what cannot be known: it is counted when it can.
        """
        return self._counters.count(name, number, limit, period_s)

    def stock(self, name: str, number: int | None) -> None:
        """This worker has so many under `name`, whatever was known of it; None: that is not counted any more. Raises
        lmdb.Error."""
        self._counters.stock(name, number)

    def stocked(self, name: str) -> int:
        """How many workers have said how much they have under `name`."""
        return self._counters.stocked(name)

    def counted(self, name: str) -> int:
        """How many there are now under `name`, over all workers, as far as the table can be read."""
        return self._counters.counted(name)

    # -- states --------------------------------------------------------------------------------------------------

    def state(self, name: str) -> PathState:
        """What all workers know of `name`. Costs nothing in the steady state: a nudge replaces our copy."""
        return self._states.state(name)

    def update(self, name: str, change: Callable[[PathState], PathState]) -> PathState:
        """Change what all workers know of `name`, and return it. `change` gets the newest state and returns another, by
        `replace`, `with_hold` and `without`; it runs inside the transaction, so it does no more than reckon.

        Others are nudged when they have to act (`PathState.differs`): not for a new `adaptive` alone. So do not round
        too finely what adaptation allows, and do not update for each message but for what was seen in a second or so.
        """
        state, nudged = self._states.update(name, change)
        self._bells.ring(nudged)
        return state

    def changed(self) -> list[str]:
        """The names whose state another worker, or the control process, has changed since the last call.

        For after `recv_nudges`. Also of names that this worker has never asked for.
        """
        return self._states.take_changed()

    def forget(self, name: str | None = None) -> None:
        """Drop our copy of a state that is not needed now; of all when the wall clock was set, which moves them."""
        self._states.forget(name)

    def states(self) -> Iterator[tuple[str, PathState]]:
        """All states that anybody has changed, in pieces. For the control process."""
        return all_states(self._env, BATCH)

    # -- tallies of rules ----------------------------------------------------------------------------------------

    def tally(self, rule: str, key: str, change: Callable[[Tally, int], T], path: str = "", more: int = 0) -> T:
        """Count `more` outcomes on `path`, and let `change` see and change what all counted for `rule` under `key`.

        `change` is also given the number of outcomes that were told of the path, 0 without one. It runs inside the
        transaction, so it does no more than reckon. Without a rule only the outcomes are counted.
        """
        return self._tallies.tally(rule, key, change, path, more)

    def tallied(self, names: Sequence[tuple[str, str]], path: str = "") -> tuple[list[Tally | None], int]:
        """What all counted for these rules under these keys, None for what nobody did, and the number of outcomes that
        were told of `path`. For people."""
        return self._tallies.tallied(names, path)

    def ask(self, path: str) -> bool:
        """Nudge the other workers to tell how many outcomes they had on `path`. Whether there are others."""
        others = self._tallies.ask(path)
        self._bells.ring(others)
        return bool(others)

    def asked(self) -> list[str]:
        """The paths of which other workers asked for the outcomes since the last call. For after `recv_nudges`."""
        return self._tallies.take_asked()

    # -- nudges --------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when there are nudges."""
        return self._bells.fileno()

    def recv_nudges(self) -> list[str]:
        """The limits to look at: a lease was granted to us (`acquire` takes it), or others want some of ours.

        Call it when `fileno` is readable, and on every heartbeat: it also sees to what went wrong in between. The names
        whose state was changed come from `changed`, afterwards.
        """
        self._bells.hush()
        now = time.monotonic()
        try:
            with self._env.begin(write=True) as txn:
                nudges = limit_table.nudges_of(txn, self._worker)
                for nudge in nudges:
                    txn.delete(nudge.key)
                    if nudge.changed:
                        self._states.nudged(txn, nudge.name)
            for nudge in nudges:  # not before they are gone from the table: a lease is granted once
                if nudge.asked:
                    self._tallies.nudged(nudge.name)
                if nudge.granted or nudge.wanted:
                    self._leases.nudged(nudge.name, nudge.granted, now)
            limit_table.works()
            self._counters.catch_up()
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
        return self._leases.take_nudged(now)

    # -- all limits ----------------------------------------------------------------------------------------------

    def clear_worker(self, worker: int) -> None:
        """Give back all that `worker`, which has ended, held or wanted. Wakes everybody it may not have woken. What it
        had on its disk it still has. Raises lmdb.Error."""
        limit_table.persist(self._env, lambda: self._clear_worker(worker))

    def _clear_worker(self, worker: int) -> None:
        self._leases.clear(worker, BATCH)
        SharedCounters(self._env, worker).clear(BATCH)
        with self._env.begin(write=True) as txn:
            limit_table.leave(txn, worker)
            for nudge in limit_table.nudges_of(txn, worker):
                txn.delete(nudge.key)
            left = limit_table.nudged_workers(txn)
        self._bells.ring(left)
