"""Virtual time: a hub whose clock jumps to the next thing that happens, so a day passes as fast as it can be reckoned.

What happens is a heap of (time, number, function); of things at the same time the one that was asked for first is done
first. Nothing here looks at a real clock or draws a number, so a run depends on what runs in it alone. Greenlets are
plain ones, without gevent: who sleeps switches to the loop, which switches back when the time has come.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any, Final

from greenlet import getcurrent, greenlet

BEGIN_US: Final = 1_767_571_200_000_000  # Monday, 2026-01-05 00:00 UTC
STEADY_S: Final = 1_000_000.0  # of the steady clock at the beginning: it has no meaning, but is not 0


class _Timer:
    """Something that will happen. Its greenlet is made when it does."""

    __slots__ = ("_hub", "_run")

    def __init__(self, hub: VirtualHub, run: Callable[..., object]) -> None:
        self._hub = hub
        self._run: Callable[..., object] | None = run

    def fire(self, *args: Any) -> None:
        """The time has come."""
        run, self._run = self._run, None
        if run is not None:
            self._hub.begin(run, args)

    def cancel(self) -> None:
        """See `mta.delivery.hub.Timer`."""
        self._run = None


class VirtualEvent:
    """A flag that greenlets wait for."""

    __slots__ = ("_hub", "_is_set", "_waiting")

    def __init__(self, hub: VirtualHub) -> None:
        self._hub = hub
        self._is_set = False
        self._waiting: dict[int, greenlet] = {}

    def set(self) -> None:
        """Wake all who wait, and those to come."""
        self._is_set = True
        for number in list(self._waiting):
            self._hub.call_later(0.0, self._wake, number)

    def clear(self) -> None:
        """Have them wait again."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or so many seconds. Whether it is set."""
        if not self._is_set:
            hub = self._hub
            number = next(hub.numbers)
            self._waiting[number] = getcurrent()
            if timeout is not None:
                hub.call_later(timeout, self._wake, number)
            hub.main.switch()
        return self._is_set

    def _wake(self, number: int) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.switch()


class VirtualHub:
    """As `mta.delivery.hub.Hub`. Use it from the greenlet that made it, which runs the loop."""

    def __init__(self) -> None:
        self.main = getcurrent()
        self.now = STEADY_S
        self.numbers = itertools.count()
        self._queue: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._stopped = False

    # -- clocks --------------------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """The steady clock, seconds."""
        return self.now

    def clock_us(self) -> int:
        """The wall clock, microseconds since the epoch. It is never set."""
        return BEGIN_US + int((self.now - STEADY_S) * 1e6 + 0.5)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.now - STEADY_S

    # -- the engine's --------------------------------------------------------------------------------------------

    def spawn(self, run: Callable[..., object], *args: Any) -> object:
        """Run it in a greenlet of its own, after the one that runs now."""
        self.call_later(0.0, self.begin, run, args)
        return None

    def later(self, seconds: float, run: Callable[..., object], *args: Any) -> _Timer:
        """The same in so many seconds."""
        timer = _Timer(self, run)
        self.call_later(seconds, timer.fire, *args)
        return timer

    def sleep(self, seconds: float) -> None:
        """Let others run; at least so many seconds. Hot path."""
        heapq.heappush(self._queue, (self.now + seconds if seconds > 0 else self.now, next(self.numbers),
                                     getcurrent().switch, ()))
        self.main.switch()

    def event(self) -> VirtualEvent:
        """A new event, not set."""
        return VirtualEvent(self)

    # -- the loop ------------------------------------------------------------------------------------------------

    def call_later(self, seconds: float, run: Callable[..., object], *args: Any) -> None:
        """Call a function that does not wait, in the loop."""
        heapq.heappush(self._queue, (self.now + seconds if seconds > 0 else self.now, next(self.numbers), run, args))

    def begin(self, run: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Run it in a greenlet of its own until it waits or ends. What it raises ends the whole run."""
        greenlet(run, self.main).switch(*args)

    def run(self, until_s: float) -> None:
        """Let things happen until `stop`, or until `until_s` seconds have passed since the beginning. Raises what a
        greenlet raises."""
        queue = self._queue
        end = STEADY_S + until_s
        self._stopped = False
        while not self._stopped:
            if not queue or queue[0][0] > end:
                self.now = end
                return
            self.now, _, run, args = heapq.heappop(queue)
            run(*args)

    def stop(self) -> None:
        """Have `run` return after what is being done now."""
        self._stopped = True
