"""Whose turn it is: priorities first, then deficit round robin over tenants, then over the queues of each.

A lane asks `next()` for the queue to take a delivery from. Of several priorities the highest goes first, but of
`ageing` turns one goes to lower ones that wait, so that they do not starve. Within a priority a tenant with weight 2
gets twice the turns of one with weight 1, however many queues it has; among a tenant's queues turns are equal. A tenant
that may not send now is *held*: its queues are passed over at no cost until it is freed. Every operation is O(1), but
for holding and freeing, which are O(number of priorities).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

PRIORITIES: Final = ("transactional", "normal", "bulk")  # by number, the first one first


class HasTurns(Protocol):
    """What can take turns: something that belongs to a tenant and has a priority."""

    tenant: str
    priority: int


T = TypeVar("T", bound=HasTurns)


class _Tenant(Generic[T]):
    """The queues of one tenant and priority."""

    __slots__ = ("deficit", "queues", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.deficit = weight
        self.queues: OrderedDict[T, None] = OrderedDict()


_Class = OrderedDict[str, _Tenant[T]]
_NONE: Final[tuple[_Class[Any], ...]] = tuple(OrderedDict() for _ in PRIORITIES)
"""Of those who have nothing in turn: three of one's own take 400 octets, and 700 when they were used."""


class Turns(Generic[T]):
    """A set of queues that take turns. The caller takes a queue out when it is empty."""

    __slots__ = ("_ageing", "_alternate", "_classes", "_held", "_members", "_overtaken", "_weights", "count")

    def __init__(self, weights: Mapping[str, int] | None = None, ageing: int = 10) -> None:
        self.count = 0  # queues that may have a turn
        self._members = 0  # those that are held included
        self._weights: Mapping[str, int] = weights or {}
        self._ageing = ageing
        self._alternate = False  # of two lower ones that wait the lowest had the last such turn
        self._overtaken = 0  # turns since a lower priority that waits had one
        self._classes: tuple[_Class[T], ...] = _NONE
        self._held: dict[str, tuple[_Class[T], ...]] = {}  # by tenant

    def __len__(self) -> int:
        return self._members

    def __iter__(self) -> Iterator[T]:
        yield from self.active()
        for classes in self._held.values():
            for tenants in classes:
                for tenant in tenants.values():
                    yield from tenant.queues

    def active(self) -> Iterator[T]:
        """Those that are not held."""
        for tenants in self._classes:
            for tenant in tenants.values():
                yield from tenant.queues

    def configure(self, weights: Mapping[str, int], ageing: int) -> None:
        """Take other weights; for turns from now on."""
        self._weights, self._ageing = weights, ageing
        for classes in (self._classes, *self._held.values()):
            for tenants in classes:
                for name, tenant in tenants.items():
                    tenant.weight = weights.get(name, 1)
                    tenant.deficit = min(tenant.deficit, tenant.weight)

    @property
    def best(self) -> int:
        """The highest priority that may have a turn; one below the lowest when there is none."""
        for number, tenants in enumerate(self._classes):
            if tenants:
                return number
        return len(PRIORITIES)

    def add(self, queue: T) -> None:
        """Let `queue` take turns, after those of its tenant that already do; nothing when it already does. Hot path."""
        held = self._held.get(queue.tenant) if self._held else None
        tenants = (held or self._classes)[queue.priority]
        tenant = tenants.get(queue.tenant)
        if tenant is None:
            tenants = (held or self._own())[queue.priority]
            tenant = tenants[queue.tenant] = _Tenant(self._weights.get(queue.tenant, 1))
        if queue not in tenant.queues:
            tenant.queues[queue] = None
            self._members += 1
            if held is None:
                self.count += 1

    def discard(self, queue: T) -> None:
        """Take `queue` out, if it is in. Hot path."""
        held = self._held.get(queue.tenant) if self._held else None
        tenants = (held or self._classes)[queue.priority]
        tenant = tenants.get(queue.tenant)
        if tenant is not None and queue in tenant.queues:
            del tenant.queues[queue]
            self._members -= 1
            if held is None:
                self.count -= 1
            if not tenant.queues:
                del tenants[queue.tenant]

    def next(self) -> T | None:
        """The queue whose turn it is, which goes to the end of its line; None when there is none. Hot path."""
        tenants = self._whose()
        if not tenants:
            return None
        name = next(iter(tenants))
        tenant = tenants[name]
        queue = next(iter(tenant.queues))
        tenant.queues.move_to_end(queue)
        tenant.deficit -= 1
        if tenant.deficit <= 0:
            tenant.deficit = tenant.weight
            tenants.move_to_end(name)
        return queue

    def _own(self) -> tuple[_Class[T], ...]:
        """The classes, to be written to."""
        if self._classes is _NONE:
            self._classes = tuple(OrderedDict() for _ in PRIORITIES)
        return self._classes

    def shrink(self) -> None:
        """It is kept, and nothing is in it for the time being."""
        if not self.count:
            self._classes = _NONE

    def _whose(self) -> _Class[T] | None:
        """The tenants of the priority whose turn it is."""
        first, second, third = self._classes
        if first:
            high, lower = first, (second or third)
        elif second:
            high, lower = second, third
        else:
            return third
        if not lower or not self._ageing:
            return high
        self._overtaken += 1
        if self._overtaken < self._ageing:
            return high
        self._overtaken = 0
        if first and second and third:  # both have waited: the lower ones in turn
            self._alternate = not self._alternate
            return third if self._alternate else second
        return lower

    # -- tenants that may not send now ---------------------------------------------------------------------------

    def has(self, tenant: str) -> bool:
        """Whether something of `tenant` may have a turn."""
        return any(tenant in tenants for tenants in self._classes)

    def best_held(self, tenant: str) -> int:
        """The highest priority of `tenant` that is held; one below the lowest when nothing is."""
        for number, tenants in enumerate(self._held.get(tenant, ())):
            if tenants:
                return number
        return len(PRIORITIES)

    def hold(self, tenant: str) -> None:
        """Pass the queues of `tenant` over until it is freed, and those that come."""
        if tenant not in self._held:
            held: tuple[_Class[T], ...] = tuple(OrderedDict() for _ in PRIORITIES)
            for tenants, kept in zip(self._classes, held, strict=True):
                found = tenants.pop(tenant, None)
                if found is not None:
                    kept[tenant] = found
                    self.count -= len(found.queues)
            self._held[tenant] = held

    def free(self, tenant: str) -> None:
        """Let `tenant` take turns again, after the others."""
        for tenants, kept in zip(self._own(), self._held.pop(tenant, ()), strict=False):
            for name, found in kept.items():
                tenants[name] = found
                self.count += len(found.queues)
