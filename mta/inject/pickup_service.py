"""The spool directory in a worker: wakes `mta.inject.pickup` when a file arrives, and joins it to the store.

One greenlet per directory and shard. It waits for the kernel's word that something was moved into the directory
(inotify), or for the periodic scan; everything that touches the disk runs in the hub's threads. Without inotify (all
watches of the system in use, a file system without it) the directory is scanned every second instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import gevent
from gevent.event import AsyncResult, Event
from gevent.hub import get_hub

from mta.config.schema import Config
from mta.inject.claims import DirectoryError, SpoolDirectory
from mta.inject.inotify import Watch
from mta.inject.intake import Accepted, Intake
from mta.inject.pickup import Pickup, Statistics, Stopping
from mta.loop.threads import in_thread
from mta.queue.store import Store, StoreError, Transaction

SCAN_WITHOUT_WATCH_S: Final = 1.0
TROUBLE_S: Final = 5.0
"""How long to leave a directory alone that is out of order."""

log = logging.getLogger(__name__)


class PickupService:
    """Takes the files of one directory into one shard."""

    def __init__(
        self,
        directory: str,
        shard: int,
        config: Config,
        intake: Intake,
        store: Store,
        schedule: Callable[[Sequence[Accepted]], None],
        *,
        takes_new: bool = True,
    ) -> None:
        """`intake` and `store` are those of the shard; `schedule` is told of what is durable and must not wait.

        `takes_new` is off for a shard that this worker only empties.
        """
        self._directory = SpoolDirectory(directory, shard)
        self._pickup = Pickup(
            self._directory, config, intake, _HubStore(store, schedule), in_thread, self._pause, takes_new=takes_new
        )
        self._takes_new = takes_new
        self._stopping = Event()
        self._changed = Event()
        self._greenlet: gevent.Greenlet[Any] | None = None
        self._trouble = ""
        self.configure(config)

    @property
    def statistics(self) -> Statistics:
        """What was done since the start."""
        return self._pickup.statistics

    @property
    def waiting(self) -> str:
        """Why files are not taken, or not all of them, in words; empty when they are."""
        return self._pickup.statistics.waiting or self._trouble or self._directory.problem

    @property
    def name(self) -> str:
        """As it is called in the configuration."""
        return self._directory.directory

    def configure(self, config: Config) -> None:
        """Take over the options of a new configuration."""
        self._pickup.configure(config)
        scans = [one.scan for one in config.pickup if one.directory == self._directory.directory]
        self._scan_s: float = scans[0] if scans else 30.0

    def start(self) -> None:
        """Begin. Raises DirectoryError when the directory cannot be used."""
        self._directory.open()
        self._greenlet = gevent.spawn(self._run)

    def stop(self, deadline: float) -> None:
        """Take nothing new and wait, until `deadline` (time.monotonic), for what is under way.

        What is not done by then is finished by the next start.
        """
        self._stopping.set()
        self._changed.set()
        if self._greenlet is not None:
            self._greenlet.join(max(deadline - time.monotonic(), 0.0))

    def _run(self) -> None:
        watch: Watch | None = None
        in_order = True  # the directory is open, as `start` left it
        adopted = False
        try:
            while True:
                try:
                    # The watch is drained before the directory is read: what comes later wakes us again.
                    if watch is not None and not watch.drain():
                        log.warning("spool directory %s was moved or removed", self._directory.directory)
                        watch.close()
                        watch = None
                        in_order = False
                    if not in_order:
                        self._directory.close()
                        self._directory.open()
                        in_order, adopted = True, False
                    if watch is None and self._takes_new:
                        watch = self._open_watch()
                    if not adopted:
                        self._pickup.adopt()  # what was begun and not done is found again
                        adopted = True
                    self._take_all()
                    self._trouble = ""
                except (OSError, DirectoryError, MemoryError) as error:
                    self._report(error)
                    in_order = False
                    self._pause(TROUBLE_S)
                    continue
                except Stopping:
                    raise
                except Exception:  # whatever it was, files must not wait in silence
                    log.exception("bug: spool directory %s", self._directory.directory)
                    self._trouble = "internal error; the log has more"
                    in_order = False
                    self._pause(TROUBLE_S)
                    continue
                if not self._takes_new:
                    return
                self._wait(watch)
        except Stopping:
            pass
        finally:
            if watch is not None:
                watch.close()
            self._pickup.close()

    def _take_all(self) -> None:
        begun_s = time.monotonic()
        while self._pickup.step():
            if self._stopping.is_set():
                raise Stopping
        # A directory that is full of what is not taken costs half of the time at most.
        self._pause(min(time.monotonic() - begun_s, 0.2))

    def _wait(self, watch: Watch | None) -> None:
        """Until something was moved in, or it is time to look anyway."""
        self._changed.clear()
        if watch is None:
            self._pause(min(self._scan_s, SCAN_WITHOUT_WATCH_S))
            return
        readable = get_hub().loop.io(watch.fileno(), 1)
        readable.start(self._changed.set)
        try:
            if not self._stopping.is_set():
                self._changed.wait(self._scan_s)
        finally:
            readable.stop()
            readable.close()
        if self._stopping.is_set():
            raise Stopping

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Stopping

    def _open_watch(self) -> Watch | None:
        try:
            return Watch(self._directory.directory)
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning("%s: no inotify (%s); looking every second", self._directory.directory, error.strerror)
            return None

    def _report(self, error: OSError | DirectoryError | MemoryError) -> None:
        trouble = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error) or "no memory"
        if trouble != self._trouble:
            log.error("spool directory %s: %s", self._directory.directory, trouble)
        self._trouble = trouble


class _HubStore:
    """The store of a shard, as `PickupStore` wants it: its methods wait for the disk, and the hub goes on."""

    def __init__(self, store: Store, schedule: Callable[[Sequence[Accepted]], None]) -> None:
        self._store = store
        self._schedule = schedule

    def commit(self, accepted: Sequence[Accepted], marks: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises StoreError."""
        result: AsyncResult[StoreError | None] = AsyncResult()

        def done(error: StoreError | None) -> None:
            try:
                if error is None:
                    self._schedule(accepted)
            finally:
                result.set(error)

        transaction = Transaction(
            accepts=[(one.message, one.deliveries) for one in accepted],
            events=[one.event for one in accepted],
            marks=marks,
        )
        self._store.submit(transaction, done)
        error = result.get()
        if error is not None:
            raise error

    def forget(self, keys: Sequence[bytes]) -> None:
        """Returns at once."""
        self._store.submit(Transaction(unmarks=keys))

    def mark(self, key: bytes) -> bytes | None:
        """The value of a mark."""
        result: AsyncResult[bytes | None] = AsyncResult()
        self._store.has_mark(key, result.set)
        value: bytes | None = result.get()
        return value

    def marks(self, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Marks in order."""
        result: AsyncResult[list[tuple[bytes, bytes]]] = AsyncResult()
        self._store.list_marks(after, limit, result.set)
        found: list[tuple[bytes, bytes]] = result.get()
        return found

    def room(self) -> str | None:
        """Why no mail is taken."""
        return self._store.room()
