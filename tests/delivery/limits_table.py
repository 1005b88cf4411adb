"""A table of limits whose workers all live in this process."""

from __future__ import annotations

import select
from pathlib import Path
from typing import NamedTuple

from mta.delivery import limit_table
from mta.delivery.limits import Limits


class Table:
    """A table with workers that all live in this process, over one environment (LMDB allows one per process)."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.workers: dict[int | None, Limits] = {}

    def __getitem__(self, worker: int | None) -> Limits:
        if worker not in self.workers:
            self.workers[worker] = Limits(str(self.run), worker)
        return self.workers[worker]

    def take(self, worker: int, name: str, limit: int, count: int = 1) -> None:
        for _ in range(count):
            assert self[worker].acquire([(name, limit)]) is None


class Usage(NamedTuple):
    """What the table says of one limit."""

    name: str
    limit: int
    held: dict[int, int]  # by worker
    waiting: set[int]


def usage(limits: Limits) -> list[Usage]:
    """All limits of which anybody holds or wants a lease."""
    with limits._env.begin(write=True) as txn:
        states, more = limit_table.some_limits(txn, limit_table.FIRST_LIMIT, 1000)
    assert more is None
    return [
        Usage(state.name, state.limit, {worker: share.held for worker, share in state.shares.items() if share.held},
              {worker for worker, share in state.shares.items() if share.want})
        for state in states
    ]


def nudged(worker: Limits) -> bool:
    """Whether the worker's bell has rung, without waiting."""
    return bool(select.select([worker.fileno()], [], [], 0)[0])
