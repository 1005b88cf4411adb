"""The time of sessions in a test's hands: it passes when the test says so, however long the machine stands still."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from gevent.hub import get_hub

import mta.inject.connection
import mta.inject.listener


class Timer:
    """Stands for one of libev's."""

    def __init__(self, at_s: float, timers: list[Timer]) -> None:
        self.at_s = at_s
        self.call: Callable[[], None] = lambda: None
        self._timers = timers

    def start(self, call: Callable[[], None]) -> None:
        """Have it called when the time has come."""
        self.call = call
        self._timers.append(self)

    def close(self) -> None:
        """Forget it."""
        if self in self._timers:
            self._timers.remove(self)


class HandClock:
    """What `mta.inject.connection` takes for the clock from now on. It also counts what sessions read and cannot send,
    so that a test has time pass when the listener has what was sent before."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.heard = 0  # octets
        self.choked = 0  # how often a client did not take what it was to be sent
        self._timers: list[Timer] = []
        loop = get_hub().loop
        connection: Any = mta.inject.connection
        connection.time = SimpleNamespace(monotonic=lambda: self.now_s)
        connection.get_hub = lambda: SimpleNamespace(loop=SimpleNamespace(io=loop.io, timer=self._timer))
        listener: Any = mta.inject.listener
        listener._socket = self._counting(listener._socket)

    def _timer(self, after_s: float) -> Timer:
        return Timer(self.now_s + after_s, self._timers)

    def go_on(self, seconds: float) -> None:
        """So much time passes, and what is to happen meanwhile happens."""
        until_s = self.now_s + seconds
        while self._timers and (first := min(self._timers, key=lambda timer: timer.at_s)).at_s <= until_s:
            self._timers.remove(first)
            self.now_s = max(self.now_s, first.at_s)
            first.call()
        self.now_s = until_s

    def _counting(self, base: type) -> type:
        clock = self

        class Counting(base):
            """A socket of which is known what was read."""

            def recv(self, *args: Any) -> bytes:
                data: bytes = super().recv(*args)
                clock.heard += len(data)
                return data

            def send(self, data: bytes) -> int:
                try:
                    sent: int = super().send(data)
                except BlockingIOError:
                    clock.choked += 1
                    raise
                clock.choked += sent < len(data)
                return sent

        return Counting
