"""Gives memory back to the system when a worker that had much to do has less.

After a storm what was in memory is gone, but not its memory: between the things that stayed are holes, which malloc
keeps for later. `malloc_trim` (glibc) gives the pages in them back. It walks all free memory and holds up who wants
some, so it is done in a thread, when the worker is quiet, and only after it has worked.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from typing import Final

import gevent
from gevent.hub import get_hub

from mta.loop.ticker import Ticker

LOOK_S: Final = 10.0
QUIET: Final = 0.25
"""Share of a processor that a quiet worker may use."""
WORKED_S: Final = 0.5
"""CPU time since memory was last given back after which it is worth while again."""

log = logging.getLogger(__name__)


class Thrift(Ticker):
    """Looks once in a while whether memory should be given back; one per process."""

    def __init__(self, cpu_s: Callable[[], float] = time.process_time) -> None:
        """`cpu_s` tells the processor time used so far."""
        super().__init__(LOOK_S)
        self._cpu_s = cpu_s
        self._last_s = self._done_s = cpu_s()

    def look(self) -> None:
        """Called by the timer."""
        if self.is_due():
            # Not at once: the pool may be full, and a timer's callback cannot wait for it.
            gevent.spawn(_have_it_given_back)

    def is_due(self) -> bool:
        """Whether the worker was quiet since the last look, and has worked before."""
        now_s = self._cpu_s()
        used_s, self._last_s = now_s - self._last_s, now_s
        if used_s > QUIET * LOOK_S or now_s - self._done_s < WORKED_S:
            return False
        self._done_s = now_s
        return True


def _have_it_given_back() -> None:
    try:
        get_hub().threadpool.spawn(give_back)
    except (MemoryError, RuntimeError) as error:  # no thread can be started: there is no memory for its stack
        log.debug("memory is not given back: %s", error)


def trimmer() -> Callable[[int], int] | None:
    """The C library's `malloc_trim`."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None  # another C library: they have their own ways


def give_back() -> None:
    """Give the free pages of malloc back, in any thread; nothing happens with a C library that cannot."""
    trim = trimmer()
    if trim is not None:
        began_s = time.monotonic()
        trim(0)
        log.debug("memory was given back, in %.1f ms", (time.monotonic() - began_s) * 1000)
