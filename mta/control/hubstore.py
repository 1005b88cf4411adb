"""A store in a gevent process: its threads wake the hub, and what is submitted goes out at the end of the turn.

All sockets that were ready in one turn of the event loop are served first; what they submitted is then one group for
the disk. So the size of a group follows the load, and a single message waits for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gevent.hub import get_hub

from mta.config.schema import Config
from mta.queue.store import Store, StoreError, Transaction

log = logging.getLogger(__name__)


class HubStore(Store):
    """A `Store` that flushes and collects by itself. Its callbacks run on the hub: they must not wait."""

    _kicked = False
    _watcher: Any = None

    @classmethod
    def attach(cls, directory: Path, config: Config, shard: int, clock_us: Callable[[], int]) -> HubStore:
        """Open a shard and tie it to this thread's hub. Raises as `Store.open`."""
        loop = get_hub().loop
        watcher = loop.async_()
        store = cls.open(directory, config, shard, watcher.send, clock_us=clock_us)
        assert isinstance(store, HubStore)
        store._watcher = watcher
        watcher.start(store._collect)
        return store

    def submit(self, tx: Transaction, done: Callable[[StoreError | None], None] | None = None) -> None:
        """As `Store.submit`; flushed when the loop has served what is ready now. Hot path."""
        super().submit(tx, done)
        if not self._kicked:
            self._kicked = True
            get_hub().loop.run_callback(self._flush)

    def _flush(self) -> None:
        self._kicked = False
        self.flush()

    def _collect(self) -> None:
        try:
            self.collect()
        except Exception:
            log.exception("bug: the completion of a commit was not carried out")

    def close(self) -> None:
        """As `Store.close`, which blocks the hub."""
        super().close()
        self._watcher.stop()
        self._watcher.close()
