"""How late the event loop is: whether something blocks it, or there is simply too much to do.

Ten times a second a timer asks to be called and notes how much later than that it was. What a client of this process
waits for its turn is the same, whatever the reason. It costs one call of some 10 µs each time.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Any, Final

from gevent.hub import get_hub

INTERVAL_S: Final = 0.1
WINDOW: Final = 600
"""Looks that are remembered: the last minute."""


class LoopLag:
    """The lateness of this thread's hub in the last minute."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        # Of raw numbers in one place: small objects that stay for a minute each would pin memory all over the heap.
        self._late_s = array("d")
        self._looks = 0
        self._due_s = 0.0
        self._timer: Any = None

    def start(self) -> None:
        """Begin to look."""
        self._timer = get_hub().loop.timer(INTERVAL_S, INTERVAL_S)
        self._wait()

    def look(self) -> None:
        """Note how late it is; called by the timer."""
        late_s = max(self._clock_s() - self._due_s, 0.0)
        if self._looks < WINDOW:
            self._late_s.append(late_s)
        else:
            self._late_s[self._looks % WINDOW] = late_s
        self._looks += 1
        self._wait()

    def _wait(self) -> None:
        self._due_s = self._clock_s() + INTERVAL_S
        if self._timer is not None:
            # `update`: counted from now, not from the beginning of this turn of the loop, which may be long ago.
            self._timer.again(self.look, update=True)

    def late_ms(self, share: float) -> float:
        """The lateness, in milliseconds, that this share of the looks of the last minute did not exceed; 0 at first."""
        ordered = sorted(self._late_s)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000 if ordered else 0.0

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
