"""The counters of all workers in the table of limits (`mta.delivery.counters` is the arithmetic).

One transaction for each change. What could not be counted because the table could not be written is counted later:
`Limits` says what the methods promise.
"""

from __future__ import annotations

import time
from typing import Any

import lmdb

from mta.delivery import limit_table
from mta.delivery.counters import LEVEL, STOCK, Counter


class SharedCounters:
    """Of one worker."""

    def __init__(self, env: Any, worker: int) -> None:
        self._env = env
        self._worker = worker
        self._owed: dict[tuple[str, int], int] = {}  # by name and period: not counted yet

    def count(self, name: str, number: int, limit: int | None, period_s: int) -> bool:
        """See `Limits.count`."""
        try:
            return self._count(name, number, limit, period_s)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            self._owed[name, period_s] = self._owed.get((name, period_s), 0) + number
            return True

    def catch_up(self) -> None:
        """Count what could not be counted. Raises lmdb.Error."""
        for name, period_s in list(self._owed):
            self._count(name, 0, None, period_s)

    def _count(self, name: str, number: int, limit: int | None, period_s: int) -> bool:
        key = limit_table.COUNTER + limit_table.key_of(name)
        owed = self._owed.get((name, period_s), 0) if self._owed else 0
        with self._env.begin(write=True) as txn:
            record = txn.get(key)
            counter = Counter(name, period_s) if record is None else Counter.decode(record)
            counter.period_s = period_s
            counter.begin(time.time_ns() // 1000)
            if owed:
                counter.add(self._worker, owed, None)
            taken = counter.add(self._worker, number, limit)
            if taken or owed:
                _save(txn, key, counter)
        if self._owed:
            self._owed.pop((name, period_s), None)
        return taken

    def stock(self, name: str, number: int | None) -> None:
        """See `Limits.stock`."""
        key = limit_table.COUNTER + limit_table.key_of(name)

        def put() -> None:
            with self._env.begin(write=True) as txn:
                record = txn.get(key)
                counter = Counter(name, STOCK) if record is None else Counter.decode(record)
                counter.period_s = STOCK
                counter.parts.pop(self._worker, None)
                if number is not None:
                    counter.parts[self._worker] = number
                _save(txn, key, counter)

        self._owed.pop((name, STOCK), None)
        limit_table.persist(self._env, put)

    def stocked(self, name: str) -> int:
        """See `Limits.stocked`."""
        return len(self._load(name).parts)

    def counted(self, name: str) -> int:
        """See `Limits.counted`."""
        counter = self._load(name)
        return 0 if counter.is_over(time.time_ns() // 1000) else counter.total

    def clear(self, batch: int) -> None:
        """Forget what the worker had in hand, as it has ended. What it had on its disk it still has. Raises lmdb.Error.
        """
        for piece in limit_table.walk(self._env, limit_table.COUNTER, batch):
            with self._env.begin(write=True) as txn:
                for key, _ in piece:
                    record = txn.get(key)
                    counter = Counter("", LEVEL) if record is None else Counter.decode(record)
                    if counter.period_s != STOCK and counter.parts.pop(self._worker, None) is not None:
                        _save(txn, key, counter)

    def _load(self, name: str) -> Counter:
        try:
            with self._env.begin(write=True) as txn:  # not a reader: a killed one would keep old pages for ever
                record = txn.get(limit_table.COUNTER + limit_table.key_of(name))
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            record = None
        return Counter(name, LEVEL) if record is None else Counter.decode(record)


def _save(txn: Any, key: bytes, counter: Counter) -> None:
    record = counter.encode()
    if record is None:
        txn.delete(key)
    else:
        txn.put(key, record)
