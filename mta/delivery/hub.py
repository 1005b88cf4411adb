"""What the engine takes its time from and what runs its greenlets: gevent's hub, or the virtual clock of a simulation.

The engine and its rooms use nothing else for that, so hours of retries pass in a moment under `mta simulate` and in
tests. The wall clock is given apart, as that may be set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import gevent
import gevent.event

from mta.loop.turns import SHORTEST_S


class Timer(Protocol):
    """Something that will happen."""

    def cancel(self) -> None:
        """It shall not. Nothing when it already has."""


class Event(Protocol):
    """A flag that greenlets wait for; as `threading.Event`."""

    def set(self) -> None:
        """Wake all who wait, and those to come."""

    def clear(self) -> None:
        """Have them wait again."""

    def wait(self, timeout: float | None = None) -> object:
        """Wait until it is set, or so many seconds."""


class Hub(Protocol):
    """One per engine."""

    @property
    def monotonic(self) -> Callable[[], float]:
        """The steady clock, seconds. A property, so that hot paths can keep the function."""

    def spawn(self, run: Callable[..., object], *args: Any) -> object:
        """Run it in a greenlet of its own, after the one that runs now."""

    def later(self, seconds: float, run: Callable[..., object], *args: Any) -> Timer:
        """The same in so many seconds."""

    def sleep(self, seconds: float) -> None:
        """Let others run; at least so many seconds."""

    def event(self) -> Event:
        """A new event, not set."""


class _Later(gevent.Greenlet):  # type: ignore[misc]  # gevent is not typed
    """A greenlet that begins later, if nothing comes in between."""

    def cancel(self) -> None:
        """See `Timer`."""
        self.kill(block=False)


class GeventHub:
    """The real one."""

    monotonic = staticmethod(time.monotonic)

    def spawn(self, run: Callable[..., object], *args: Any) -> object:
        """See `Hub`. Hot path."""
        return gevent.spawn(run, *args)

    def later(self, seconds: float, run: Callable[..., object], *args: Any) -> Timer:
        """See `Hub`."""
        # The loop reckons from the beginning of its turn, which may be long ago on a busy machine: it would be early.
        gevent.get_hub().loop.update_now()
        timer: Timer = _Later.spawn_later(seconds, run, *args)
        return timer

    def sleep(self, seconds: float) -> None:
        """See `Hub`. Always by a timer (`mta.loop.turns`)."""
        gevent.sleep(max(seconds, SHORTEST_S))

    def event(self) -> Event:
        """See `Hub`."""
        event: Event = gevent.event.Event()
        return event
