"""The connections of one worker by the limits that they hold leases of, those at rest apart, the longest first.

Another worker that wants a lease names the limit: then only connections that have one are looked at, however many
there are. The limit of a path is not kept here, as a path knows its connections, nor that on all of them together.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection
from typing import Final, Generic, Protocol, TypeVar

from mta.delivery.pathstate import SITE

TOTAL: Final = "*"  # name of the limit on outgoing connections in all; no site has it


class Named(Protocol):
    """A path, or whatever has a name."""

    name: str


class Holder(Protocol):
    """A connection, as far as it matters here."""

    shared: tuple[str, ...]  # what `opened` found, as long as it is there

    @property
    def leases(self) -> Collection[str]:
        """The limits that it has leases of."""

    @property
    def path(self) -> Named:
        """The path that it belongs to."""


H = TypeVar("H", bound=Holder)


class Holders(Generic[H]):
    """Who holds leases, and who of them rests."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()  # by limit: connections
        self._resting: dict[str, OrderedDict[H, None]] = {}  # by limit

    def holds(self, name: str) -> bool:
        """Whether a connection has a lease of this limit."""
        return name in self._count

    def resting(self, name: str) -> Collection[H]:
        """Those at rest that have one, the longest at rest first."""
        return self._resting.get(name, ())

    def opened(self, connection: H) -> None:
        """One more. Of its limits those over more than its path count; not a probe's, which goes when it is taken."""
        own = connection.path.name
        connection.shared = tuple(
            name for name in connection.leases if name != own and name != TOTAL and not name.startswith(SITE))
        self._count.update(connection.shared)

    def joined(self, connection: H, name: str, rests: bool) -> None:
        """One that is there has got a lease of one more limit."""
        connection.shared = (*connection.shared, name)
        self._count[name] += 1
        if rests:
            self._resting.setdefault(name, OrderedDict())[connection] = None

    def closed(self, connection: H) -> None:
        """One less, which does not rest any more."""
        for name in connection.shared:
            self._count[name] -= 1
            if not self._count[name]:
                del self._count[name]

    def rests(self, connection: H) -> None:
        """It has nothing to do. Hot path."""
        for name in connection.shared:
            self._resting.setdefault(name, OrderedDict())[connection] = None

    def works(self, connection: H) -> None:
        """It does not rest any more. Hot path."""
        for name in connection.shared:
            resting = self._resting[name]
            del resting[connection]
            if not resting:
                del self._resting[name]
