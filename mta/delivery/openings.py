"""How many connections are being opened at once in a worker, and who waits to.

An address that does not answer holds a half-open connection for many seconds. Without a bound ten thousand dead
domains would be ten thousand greenlets; with one bound for all they would stand in the way of everybody else. So there
are two lines: sites that failed when last tried have a small one of their own.

A third one, `Room`, is for connections as long as they last: a process has so many descriptors and no more.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")

UNBOUNDED = 1 << 30
AT_ONCE = 1000
AT_ONCE_TO_FAILING = 200


class Line(Generic[T]):
    """A bound on connections being opened; those who find it reached stand in line, urgent ones before the others."""

    __slots__ = ("_limit", "_open", "_waiting")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = 0
        self._waiting: OrderedDict[T, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Line: {self._open} of {self._limit}, {len(self._waiting)} wait>"

    def __contains__(self, who: T) -> bool:
        return who in self._waiting

    def has_room(self, who: T, urgent: bool = False) -> bool:
        """Whether `who` may open a connection now. If not, it stands in line; `urgent`: at its beginning."""
        if self._open >= self._limit:
            self._waiting.setdefault(who)
            if urgent:
                self._waiting.move_to_end(who, last=False)
            return False
        self._waiting.pop(who, None)
        return True

    def begin(self) -> None:
        """A connection is being opened."""
        self._open += 1

    def end(self) -> None:
        """It is open, or failed to."""
        self._open -= 1

    def next(self) -> T | None:
        """Take the first one out of the line if there is room for it. Ask again: it may have no use for it any more."""
        return self._waiting.popitem(last=False)[0] if self._waiting and self._open < self._limit else None

    @property
    def is_awaited(self) -> bool:
        """Whether somebody stands in line."""
        return bool(self._waiting)


class Room(Line[T]):
    """A bound on connections at once in one process, for what the machine lets it have.

    Where a socket is refused all the same, as many as there are is the bound for now; it doubles with each `grow`.
    """

    __slots__ = ("_most", "shortage")

    def __init__(self) -> None:
        super().__init__(UNBOUNDED)
        self._most = UNBOUNDED
        self.shortage = ""  # what is lacking, in words; empty when nothing is

    @property
    def most(self) -> int:
        """The bound when nothing is lacking."""
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        self._most = most
        self._limit = min(self._limit, most) if self.shortage else most

    def lacks(self, why: str) -> None:
        """The machine refused a socket to one of those that have begun."""
        self.shortage = why
        self._limit = max(min(self._limit, self._open - 1), 0)

    def grow(self) -> bool:
        """Try with more. Whether the shortage is over as far as one can know."""
        self._limit = min(max(self._limit * 2, 1), self._most)
        if self._limit == self._most or (not self._waiting and self._open < self._limit // 2):
            self._limit = self._most
            self.shortage = ""
        return not self.shortage
