"""A lane: where the queues of one pool to one site wait for their turn, and from which connections pull.

Pure state. A lane leads to one path for each source of its pool. When it wants one more connection a source is chosen
among the paths that may open one now, by smooth weighted round robin (nginx's: over any stretch each gets its share,
and the heavy one does not come in bursts). With one source a lane has one path, and that is as cheap as no choice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mta.delivery.fairness import Turns
from mta.delivery.path import Path
from mta.queue.scheduler import Queue

if TYPE_CHECKING:
    from mta.delivery.connection import Connection
    from mta.delivery.routing import Route

PHASES: Final = 100  # of the turns of sources, from which one is drawn to begin with


class Lane:
    """One (pool, site), or that of a domain with shaping of its own."""

    __slots__ = ("_current", "connections", "domain", "name", "paths", "pool", "route", "stalled", "turns",
                 "weights")

    def __init__(self, name: str, pool: str, domain: str) -> None:
        self.name = name
        self.pool = pool  # as the label says, "" for the default one
        self.domain = domain  # the last one that led here; for a lane without a route the only one
        self.route: Route | None = None
        self.paths: list[Path] = []
        self.weights: list[int] = []  # of the sources of the paths
        self._current: list[int] = []
        self.turns: Turns[Queue] = Turns()
        self.connections: set[Connection] = set()  # over all its paths
        self.stalled = False  # a check for deliveries that wait behind busy connections is due

    def __repr__(self) -> str:
        return f"<Lane {self.name}: {len(self.connections)} connections, {len(self.turns)} queues>"

    def lead_to(self, paths: list[Path], weights: list[int]) -> list[Path]:
        """Use these paths from now on; a weight of 0 means that its source is not chosen. Returns those no longer used.
        """
        gone = [path for path in self.paths if path not in paths]
        for path in gone:
            path.lanes.pop(self, None)
        for path in paths:
            path.lanes.setdefault(self)
        if self.paths != paths or self.weights != weights:
            self.paths, self.weights, self._current = paths, weights, [0] * len(paths)
            # A lane is forgotten when it has nothing to do, and most domains get a message now and then: if each began
            # with the same source that one would get all of their mail.
            for _ in range(random.randrange(min(sum(weights), PHASES)) if any(weights) and len(paths) > 1 else 0):
                first, *others = self.candidates(lambda path: True)
                self.took(first, others)
        return gone

    def backlog(self, at_most: int) -> int:
        """Deliveries in memory that wait for a connection, counted up to `at_most`."""
        count = 0
        for queue in self.turns.active():
            count += len(queue.ready)
            if count >= at_most:
                return at_most
        return count

    def head(self) -> object:
        """The first delivery that waits, to see later whether it still does."""
        for queue in self.turns.active():
            if queue.ready:
                return queue.ready[0]
        return None

    def wants_connection(self, forced: bool = False) -> bool:
        """Whether one more connection would help.

        One is opened for the first delivery; more as long as deliveries wait in larger number than there are
        connections, so that a fast site is served by few and a slow one by many. `forced` is for a delivery that has
        waited behind busy connections for a while. Those that are still being opened are not busy: a host that greets
        late gets no more of them than deliveries wait.
        """
        if not self.turns.count:
            return False
        have = sum(path.opening for path in self.paths) if forced else len(self.connections)
        return have == 0 or self.backlog(have + 1) > have

    def suspended(self, now_us: int) -> int:
        """Until when nothing can go, because all its paths stand still; 0 when something can."""
        soonest = 0
        for path, weight in zip(self.paths, self.weights, strict=True):
            if weight:
                until_us = path.suspended_until_us
                if until_us <= now_us:
                    return 0
                if not soonest or until_us < soonest:
                    soonest = until_us
        return soonest

    def candidates(self, usable: Callable[[Path], bool]) -> list[Path]:
        """The paths for one more connection among those that are usable, the one whose turn it is first."""
        if len(self.paths) == 1:
            return self.paths if usable(self.paths[0]) else []
        turn = [
            (-self._current[index] - weight, index) for index, weight in enumerate(self.weights)
            if weight and usable(self.paths[index])
        ]
        return [self.paths[index] for _, index in sorted(turn)]

    def took(self, path: Path, others: list[Path]) -> None:
        """One more connection goes over `path`; `others` could have had it."""
        if len(self.paths) == 1:
            return
        chosen = self.paths.index(path)
        total = 0
        for index in (chosen, *map(self.paths.index, others)):
            self._current[index] += self.weights[index]
            total += self.weights[index]
        self._current[chosen] -= total

    @property
    def reason(self) -> str:
        """Why one of its paths last stood still; empty when none did."""
        return next((path.reason for path in self.paths if path.reason), "")

    def path_from(self, source: str) -> Path | None:
        """Its path from the source of this name, if it has one."""
        for path in self.paths:
            if path.source.name == source:
                return path
        return None
