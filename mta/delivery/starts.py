"""How many lookups are begun at once: so many that are young, and so many in all.

A thousand names to be looked up are no thousand greenlets and no burst at the server, but a few at a time, which is as
fast where answers come soon. A lookup that lasts is slow: it holds up nobody else any more, so names for which nobody
answers do not stand in the way of the others, but for the bound on all.

Pure state, with the clock of the caller.
"""

from __future__ import annotations

from collections import deque

YOUNG_S = 0.2  # so long


class Start:
    """One that was begun."""

    __slots__ = ("is_young", "until_s")

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self.is_young = True


class Starts:
    """The lookups of one kind."""

    __slots__ = ("_line", "_most", "_most_young", "_young", "under_way")

    def __init__(self, most_young: int, most: int) -> None:
        self.under_way = 0
        self._most_young = most_young
        self._most = most
        self._young = 0
        self._line: deque[Start] = deque()  # the young ones, and of the others those behind one that is

    def has_room(self, now_s: float) -> bool:
        """Whether one more may begin."""
        self._look(now_s)
        return self._young < self._most_young and self.under_way < self._most

    def begin(self, now_s: float) -> Start:
        """One begins."""
        start = Start(now_s + YOUNG_S)
        self._line.append(start)
        self._young += 1
        self.under_way += 1
        return start

    def end(self, start: Start) -> None:
        """It is over."""
        self._grow_old(start)
        self.under_way -= 1

    def next_s(self, now_s: float) -> float | None:
        """In how many seconds the next one is young no more; None when none is."""
        self._look(now_s)
        return max(self._line[0].until_s - now_s, 0.001) if self._line else None

    def _look(self, now_s: float) -> None:
        """Who is young no more."""
        line = self._line
        while line and not (line[0].is_young and line[0].until_s > now_s):
            self._grow_old(line.popleft())

    def _grow_old(self, start: Start) -> None:
        if start.is_young:
            start.is_young = False
            self._young -= 1
