"""A store in a gevent process: its threads wake the hub, and what is submitted is written when it is worth it.

Each group that goes to the disk has a price, in syncs and in turns of the threads. Messages that are just being sent to
us (`coming`) are worth a short wait, as one group can take them all; where there is none, a message that somebody waits
for goes out as soon as no socket has anything to read, and at once when there is no other client. So one that is alone
waits for its sync and nothing else, and twenty that send at once are one group. The wait is `HURRY_S` at most, and who
does not come in that time is not waited for again: a slow upload costs the others one such wait, not one for each of
their messages.

Outcomes of deliveries, which nobody waits for, go with the next such group, or by themselves after `PATIENCE_S`. What
is lost by a crash in that time is done again and announced as `maybe_duplicate`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gevent.hub import get_hub

from mta.config.schema import Config
from mta.queue.store import Store, StoreError, Transaction
from mta.smtp.coming import Coming

HURRY_S: Final = 0.002
PATIENCE_S: Final = 0.02

log = logging.getLogger(__name__)


class HubStore(Store):
    """A `Store` that flushes and collects by itself. Its callbacks run on the hub: they must not wait."""

    patient = True
    coming: Coming
    """The messages that are being sent to this process, for whoever receives them to count."""
    _hurries = False  # a flush is due soon
    _gathers = False  # or at all
    _watcher: Any = None
    _idle: Any = None
    _hurry: Any = None
    _patience: Any = None

    @classmethod
    def attach(cls, directory: Path, config: Config, shard: int, clock_us: Callable[[], int]) -> HubStore:
        """Open a shard and tie it to this thread's hub. Raises as `Store.open`."""
        loop = get_hub().loop
        watcher = loop.async_()
        store = cls.open(directory, config, shard, watcher.send, clock_us=clock_us)
        store.coming = Coming()
        store._watcher = watcher
        store._idle = loop.idle()
        # Repeating ones: only `again` waits anew each time, `start` goes on with what was left of the last wait.
        store._hurry = loop.timer(HURRY_S, HURRY_S)
        store._patience = loop.timer(PATIENCE_S, PATIENCE_S)
        watcher.start(store._collect)
        return store

    def submit(self, tx: Transaction, done: Callable[[StoreError | None], None] | None = None) -> None:
        """As `Store.submit`; flushed when it is worth it, or before long. Hot path (bench/throughput.py)."""
        super().submit(tx, done)
        if done is None:
            if not self._gathers:
                self._schedule()
        elif self.coming.clients == 1 and not self.coming.count:
            self._flush()  # nobody can begin another one: the only client waits for this
        elif not self._hurries:
            self._schedule()
        elif not self.coming.count:
            self._idle.start(self._rested)

    def _schedule(self) -> None:
        if self.awaited:
            self._hurries = True
            self._hurry.again(self._waited)
            if not self.coming.count:
                self._idle.start(self._rested)
        elif not self._gathers:  # else it has waited for a while already
            self._patience.again(self._flush)
        self._gathers = True

    def _rested(self) -> None:
        """There is nothing to read. If more has begun to come meanwhile, the last of it brings us here again."""
        if self.coming.count:
            self._idle.stop()
        else:
            self._flush()

    def _waited(self) -> None:
        self.coming.give_up()
        self._flush()

    def _flush(self) -> None:
        self._hurries = self._gathers = False
        self._idle.stop()
        self._hurry.stop()
        self._patience.stop()
        self.flush()

    def _collect(self) -> None:
        try:
            self.collect()
        except Exception:
            log.exception("bug: the completion of a commit was not carried out")
        if self.pending and not self._hurries:
            self._schedule()

    def close(self) -> None:
        """As `Store.close`, which blocks the hub."""
        super().close()
        for watcher in (self._watcher, self._idle, self._hurry, self._patience):
            watcher.stop()
            watcher.close()
