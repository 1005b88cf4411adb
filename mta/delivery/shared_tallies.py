"""The tallies of rules on replies that all workers keep together, in the table of limits.

A change is one transaction. What a worker knows of outcomes on a path it tells when it is asked, by a nudge. `Limits`
says what the methods promise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import lmdb

from mta.delivery import limit_table
from mta.delivery.tally import Tally, decode_outcomes, encode_outcomes

OUTCOMES_S: Final = 8 * 86_400.0  # longer than the longest time of a rule

T = TypeVar("T")


class SharedTallies:
    """Of one worker."""

    def __init__(self, env: Any, worker: int) -> None:
        self._env = env
        self._worker = worker
        self._asked: set[str] = set()

    def tally(self, rule: str, key: str, change: Callable[[Tally, int], T], path: str, more: int) -> T:
        """See `Limits.tally`."""
        try:
            with self._env.begin(write=True) as txn:
                total = _outcomes(txn, path, more) if path else 0
                if not rule:
                    return change(Tally(), total)
                at = limit_table.TALLY + limit_table.key_of(f"{rule}\0{key}")
                record = txn.get(at)
                tally = Tally(rule, key) if record is None else Tally.decode(record)
                result = change(tally, total)
                after = tally.encode()
                if after is None:
                    txn.delete(at)
                elif after != record:
                    txn.put(at, after)
                return result
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return change(Tally(rule, key), more)

    def tallied(self, names: Sequence[tuple[str, str]], path: str) -> tuple[list[Tally | None], int]:
        """See `Limits.tallied`."""
        try:
            with self._env.begin(write=True) as txn:  # not a reader: a killed one would keep old pages for ever
                records = [txn.get(limit_table.TALLY + limit_table.key_of(f"{rule}\0{key}")) for rule, key in names]
                total = _outcomes(txn, path, 0) if path else 0
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return [None] * len(names), 0
        return [None if record is None else Tally.decode(record) for record in records], total

    def ask(self, path: str) -> set[int]:
        """See `Limits.ask`. Returns the workers to wake."""
        try:
            with self._env.begin(write=True) as txn:
                others = {worker for worker in limit_table.workers(txn) if worker != self._worker}
                for worker in others:
                    limit_table.add_nudge(txn, worker, path, asked=True)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return set()
        return others

    def nudged(self, path: str) -> None:
        """Another worker asks."""
        self._asked.add(path)

    def take_asked(self) -> list[str]:
        """See `Limits.asked`."""
        asked = list(self._asked)
        self._asked.clear()
        return asked


def _outcomes(txn: Any, path: str, more: int) -> int:
    """The number of outcomes told of `path`, with `more`."""
    at = limit_table.OUTCOMES + limit_table.key_of(path)
    record = txn.get(at)
    total = (0 if record is None else decode_outcomes(record)[1]) + more
    if more:
        txn.put(at, encode_outcomes(path, total, time.time() + OUTCOMES_S))
    return total
