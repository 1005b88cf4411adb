"""A shortage of something of our own: descriptors, or memory of the kernel. It passes, and nobody else is to blame.

Whoever meets one waits and tries again. The log tells of a spell when it begins and when it is over, not of each try.
"""

from __future__ import annotations

import errno
import logging
from typing import Final

SHORTAGE: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""Error numbers that mean one (accept(2), socket(2))."""

QUIET_S: Final = 10.0  # without a failure, after which a spell is over


class Spell:
    """The times of one kind of shortage. Two lines in the log for each, however many failures there are in it."""

    def __init__(self, log: logging.Logger, what: str, over: str) -> None:
        """`what` cannot be done, as in "cannot accept a connection"; `over` says that it can, as in "accepting"."""
        self._log = log
        self._what = what
        self._over = over
        self._failures = 0
        self._last_s = 0.0
        self._began_s = 0.0

    @property
    def lasts(self) -> bool:
        """Whether there is one."""
        return self._failures > 0

    def failed(self, why: str, now_s: float) -> None:
        """It could not be done. `now_s` is monotonic."""
        self.worked(now_s)
        if not self._failures:
            self._began_s = now_s
            self._log.error("%s: %s", self._what, why)
        self._failures += 1
        self._last_s = now_s

    def worked(self, now_s: float) -> None:
        """It could. Call it at least while the spell `lasts`."""
        if self._failures and now_s - self._last_s >= QUIET_S:
            self._log.info("%s again: for %.0f s that failed now and then, %d times in all", self._over,
                           self._last_s - self._began_s, self._failures)
            self._failures = 0
