"""What is looked at once in a while, on the hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from gevent.hub import get_hub


class Ticker(ABC):
    """Looks every so many seconds, from `start` to `stop`."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._timer: Any = None

    @abstractmethod
    def look(self) -> None:
        """What is done each time; a callback, which may not wait."""

    def start(self) -> None:
        """Begin to look."""
        self._timer = get_hub().loop.timer(self._every_s, self._every_s)
        self._timer.start(self.look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
