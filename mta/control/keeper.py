"""Keeps what the workers learn of receivers over the end of the instance: every half minute, and at the end.

Runs in the control process, so that no message waits for it: the table of limits is read in pieces, and the disk is
waited for in a thread. The supervisor reads the file at the next start (`mta.delivery.learnt`). When the instance is
killed it first writes it from the table that was left; when the machine goes down, what was learnt since the last time
is lost, and will be learnt again.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import gevent
import lmdb

from mta.delivery import learnt
from mta.delivery.limits import Limits
from mta.loop.threads import in_thread
from mta.loop.turns import give_way

EVERY_S: Final = 30.0

log = logging.getLogger(__name__)


class Keeper:
    """One per instance."""

    def __init__(self, spool: str, limits: Limits) -> None:
        self._spool = spool
        self._limits = limits
        self._kept: learnt.Learnt | None = None
        self._trouble = ""
        self._greenlet: gevent.Greenlet[Any] | None = None

    def start(self) -> None:
        """Begin. Trouble with table or disk is logged, and tried again; it stops nothing else."""
        self._greenlet = gevent.spawn(self._go_on)

    def stop(self) -> None:
        """Keep what was learnt last. The workers have ended."""
        if self._greenlet is not None:
            self._greenlet.kill()
        self.keep()

    def keep(self) -> None:
        """Write the file if it would be another one."""
        try:
            now_us = time.time_ns() // 1000
            found = learnt.gather(self._limits, now_us, give_way)
            if found != self._kept:
                in_thread(learnt.write, self._spool, found.encode(now_us))
                self._kept = found
            self._trouble = ""
        except (OSError, lmdb.Error) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.error("what was learnt of receivers cannot be kept: %s", error)

    def _go_on(self) -> None:
        while True:
            gevent.sleep(EVERY_S)
            try:
                self.keep()
            except Exception:
                log.exception("bug: what was learnt of receivers cannot be kept")
