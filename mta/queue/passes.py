"""Looks at all queues of an index, made in pieces, as there may be a million of them: listings, and counts.

A pass is made and used on the index thread. Between its pieces others read and checkpoints are written: it is of no one
instant. A record that cannot be read back is left out and told (`Index.damaged`).
"""

from __future__ import annotations

import heapq
import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from fnmatch import translate
from typing import Final, NamedTuple

from mta.queue import idn
from mta.queue.encoding import QueueInfo
from mta.queue.index import Index
from mta.queue.scheduler import tenant_of

_SLICE: Final = 5000  # queues looked at in one piece


class QueueTotals(NamedTuple):
    """The sums over all queues that a listing matched, shown or not."""

    queues: int
    deliveries: int
    recipients: int


class Pass(ABC):
    """A look at all queues. Raises lmdb.Error."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._after = b""

    def go_on(self) -> bool:
        """Look at the next piece; whether there is more."""
        with self._index.env.begin() as txn:
            cursor = txn.cursor(self._index.db["queues"])
            more = cursor.set_range(self._after) if self._after else cursor.first()
            looked_at = 0
            while more and looked_at < _SLICE:
                looked_at += 1
                queue = self._index.queue(cursor.key(), cursor.value())
                if queue is not None:
                    self.look(queue)
                more = cursor.next()
            if more:
                self._after = cursor.key()
        return more

    @abstractmethod
    def look(self, queue: QueueInfo) -> None:
        """What is wanted of each."""


class Listing(Pass):
    """The `limit` largest queues whose names match a shell pattern ("": all), and the sums over all that do."""

    def __init__(self, index: Index, pattern: str, limit: int) -> None:
        super().__init__(index)
        patterns = "|".join(map(translate, idn.forms(pattern or "*")))
        self._pattern = re.compile(patterns, re.DOTALL | re.IGNORECASE)
        self._limit = limit
        self._largest: list[tuple[int, str, QueueInfo]] = []
        self._queues = 0
        self._deliveries = 0
        self._recipients = 0

    def result(self) -> tuple[list[QueueInfo], QueueTotals]:
        """The queues, the largest first, and the sums over all that match."""
        rows = [queue for _, _, queue in sorted(self._largest, key=lambda entry: (-entry[0], entry[1]))]
        return rows, QueueTotals(self._queues, self._deliveries, self._recipients)

    def look(self, queue: QueueInfo) -> None:
        """Count it, and keep it while it is among the largest."""
        if not any(map(self._pattern.match, idn.forms(queue.name))):
            return
        self._queues += 1
        self._deliveries += queue.deliveries
        self._recipients += queue.recipients
        entry = (queue.deliveries, queue.name, queue)
        if len(self._largest) < self._limit:
            heapq.heappush(self._largest, entry)
        elif self._largest and entry[:2] > self._largest[0][:2]:
            heapq.heapreplace(self._largest, entry)


class TenantCount(Pass):
    """How many deliveries tenants have."""

    def __init__(self, index: Index, tenants: Collection[str]) -> None:
        super().__init__(index)
        self.found = dict.fromkeys(tenants, 0)

    def look(self, queue: QueueInfo) -> None:
        """Add it to its tenant's."""
        tenant = tenant_of(queue.name)
        if tenant in self.found:
            self.found[tenant] += queue.deliveries
