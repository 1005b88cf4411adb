"""How much of one turn of the event loop connections may take when many have something to say at once.

All sockets that are ready when the loop looks are served in one turn, however many they are: replies of ten thousand
receivers in the same instant would keep every timer, client and other connection waiting for a second. So a turn ends
after `TURN_S` of them; those whose turn did not come stand in line, and of the line a part goes first in each of the
following turns. It costs one look at the clock for each socket that is ready. Handshakes of incoming sessions, and
groups of commands that take long or are large, are served likewise, in a line of their own (`mta.inject.opening`,
`mta.inject.session`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from gevent.hub import get_hub

TURN_S: Final = 0.010
LINE_S: Final = 0.005
"""Of that for those in line; so new ones get something too."""


class Burst:
    """One for each of these lines. Hot path (bench S1, S2, S10)."""

    __slots__ = ("_clock_s", "_ends_s", "_line", "_loop", "_timer", "_turn")

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._loop = get_hub().loop
        self._turn = -1  # the loop's number of it
        self._ends_s = 0.0
        self._line: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timer = self._loop.timer(0.0)  # not a callback of the hub's: others would wait behind it in that line

    def __len__(self) -> int:
        return len(self._line)

    def is_over(self) -> bool:
        """Whether this turn of the loop has taken long enough."""
        now_s = self._clock_s()
        if self._loop.iteration != self._turn:
            self._turn = self._loop.iteration
            self._ends_s = now_s + TURN_S
            return False
        return now_s >= self._ends_s

    def later(self, call: Callable[..., object], *args: object) -> None:
        """Call this in one of the next turns; first come, first served."""
        self._line.append((call, args))
        if len(self._line) == 1:
            self._timer.start(self._serve)

    def _serve(self) -> None:
        self._timer.stop()
        line = self._line
        ends_s = self._clock_s() + LINE_S
        self._turn, self._ends_s = self._loop.iteration, ends_s + TURN_S - LINE_S
        try:
            while line:
                call, args = line.popleft()
                call(*args)
                if self._clock_s() >= ends_s:
                    break
        finally:
            if line:
                self._timer.start(self._serve)
