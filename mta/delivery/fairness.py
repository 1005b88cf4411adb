"""Whose turn it is: deficit round robin over tenants, then over the queues of each.

A path asks `next()` for the queue to take a delivery from. A tenant with weight 2 gets twice the turns of one with
weight 1, however many queues it has; among a tenant's queues turns are equal. Every operation is O(1).
(Shreedhar and Varghese, "Efficient fair queueing using deficit round robin", 1995; the quantum is one delivery.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class HasTenant(Protocol):
    """What can take turns: something that belongs to a tenant."""

    tenant: str


T = TypeVar("T", bound=HasTenant)


class _Tenant(Generic[T]):
    __slots__ = ("deficit", "queues", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.deficit = weight
        self.queues: OrderedDict[T, None] = OrderedDict()


class Turns(Generic[T]):
    """A set of queues that take turns. The caller takes a queue out when it is empty."""

    __slots__ = ("_tenants", "_weights", "count")

    def __init__(self, weights: dict[str, int] | None = None) -> None:
        self.count = 0  # queues in the set
        self._weights = weights or {}
        self._tenants: OrderedDict[str, _Tenant[T]] = OrderedDict()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[T]:
        for tenant in self._tenants.values():
            yield from tenant.queues

    def add(self, queue: T) -> None:
        """Let `queue` take turns, after those of its tenant that already do; nothing when it already does."""
        tenant = self._tenants.get(queue.tenant)
        if tenant is None:
            tenant = self._tenants[queue.tenant] = _Tenant(self._weights.get(queue.tenant, 1))
        if queue not in tenant.queues:
            tenant.queues[queue] = None
            self.count += 1

    def discard(self, queue: T) -> None:
        """Take `queue` out, if it is in."""
        tenant = self._tenants.get(queue.tenant)
        if tenant is not None and queue in tenant.queues:
            del tenant.queues[queue]
            self.count -= 1
            if not tenant.queues:
                del self._tenants[queue.tenant]

    def next(self) -> T | None:
        """The queue whose turn it is, which goes to the end of its line; None when there is none."""
        if not self._tenants:
            return None
        name = next(iter(self._tenants))
        tenant = self._tenants[name]
        queue = next(iter(tenant.queues))
        tenant.queues.move_to_end(queue)
        tenant.deficit -= 1
        if tenant.deficit <= 0:
            tenant.deficit = tenant.weight
            self._tenants.move_to_end(name)
        return queue
