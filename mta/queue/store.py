"""The durable queue of one shard: the journal is the truth, the index is its checkpoint.

What is submitted gathers until the disk thread is free; then all of it is one frame of the journal, one write and one
`fdatasync`. When that is durable it is entered into the net effect (`Effects`) and confirmed. From time to time the
net effect goes to the index thread as a checkpoint, and the next one is begun. So truth has four ages:

    pending, writing    submitted, not confirmed to anyone
    effects             durable in the journal since the last checkpoint was begun
    checkpointing       what the running checkpoint takes into the index
    index               as of the last checkpoint, with the place in the journal where it was

Reads run on the index thread, in one line with the checkpoints, and what is known better here (a delivery changed or
removed since) is taken out of their results: a read never brings back what was settled.

The hub never waits. Two native threads do the disk's work; what they finish is carried out by `collect`, after `wake`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Self

import lmdb

from mta.config.schema import Config
from mta.queue.bodies import Bodies
from mta.queue.checkpointing import Counts, Statistics, nothing
from mta.queue.compaction import Compactor
from mta.queue.effects import Key
from mta.queue.encoding import QueueInfo
from mta.queue.errors import (
    BodyDamaged,
    BodyUnreadable,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreUnusable,
    StoreVersion,
)
from mta.queue.eventlog import EventLog
from mta.queue.fileops import FileOps
from mta.queue.index import DAMAGE, REPAIR, Index
from mta.queue.indexer import Indexer
from mta.queue.inflight import Inflight
from mta.queue.journal import Journal
from mta.queue.native import run
from mta.queue.reads import Reads
from mta.queue.records import Delivery, Message
from mta.queue.recovery import JournalReader, begin_life, recover
from mta.queue.room import Room
from mta.queue.shard import Shard
from mta.queue.shard import boot_id as this_boot
from mta.queue.transaction import Done, Transaction, encode
from mta.queue.writer import GroupWriter

__all__ = [
    "BodyDamaged", "BodyUnreadable", "Counts", "Key", "QueueInfo", "Statistics", "Store", "StoreError", "StoreFull",
    "StoreLocked", "StoreUnusable", "StoreVersion", "Transaction",
]

MAP_SHARE_MAX: Final = 0.9

_log = logging.getLogger(__name__)


class Store(Reads):
    """One shard. All methods belong to the thread that opened it (the hub), but `body`."""

    patient = False
    """Whether the owner says when to flush, so that groups get larger; else `collect` flushes whatever is pending."""
    last_id: int
    """The largest id ever accepted here, for `IdSource`."""

    @classmethod
    def open(cls, directory: Path, config: Config, shard: int, wake: Callable[[], None], *,
             clock_us: Callable[[], int], files: FileOps | None = None, boot_id: str | None = None) -> Self:
        """Open the shard in `directory`, or make it, and recover. It blocks, for a time bounded by a checkpoint's work.

        `wake` is called by other threads when `collect` has something to do. Raises StoreLocked, StoreVersion and
        StoreUnusable, each with one line for the operator.
        """
        files = files or FileOps()
        try:
            place = Shard(directory, files)
        except OSError as error:
            raise StoreUnusable(f"{directory} cannot be used: {error}") from error
        try:
            return cls(place, config, wake, clock_us, files, boot_id or this_boot())
        except DAMAGE as error:
            place.close()
            raise StoreUnusable(f"{place.index / 'data.mdb'} is damaged: {error}; {REPAIR}") from error
        except (OSError, lmdb.Error) as error:
            place.close()
            raise StoreUnusable(f"{directory} cannot be opened: {error}") from error
        except BaseException:
            place.close()
            raise

    def __init__(self, shard: Shard, config: Config, wake: Callable[[], None], clock_us: Callable[[], int],
                 files: FileOps, boot_id: str) -> None:
        with ExitStack() as undo:
            index = Index(shard.index, config.store.map_size, files)
            undo.callback(index.close)
            files.fsync_directory(shard.index)
            events = EventLog(shard.events, config.events.size, files, index.state.events,
                              group_readable=config.events.group_readable)
            undo.callback(events.close)
            end = recover(index, events, JournalReader(shard.journal, shard.quarantine, files, _log.error))
            begin_life(index, boot_id, clock_us())
            self._journal = Journal(shard.journal, config.store.segment_size, files, end)
            undo.callback(self._journal.close)
            compactor = Compactor(index, shard.journal, config.store.segment_size, files)
            indexer = Indexer(shard, index, self._journal, events, compactor, config.events.keep)
            indexer.sweep()
            inflight = Inflight(shard.inflight, files)
            undo.pop_all()
        for key in list(inflight.left_over):
            with suppress(*DAMAGE):  # what cannot be read stays suspect
                if not index.has_delivery(key):
                    inflight.clear(key)
        index.suspects = inflight.left_over
        self._writer = GroupWriter(self._journal, events, clock_us)
        self._writer.finish()
        super().__init__(shard, config, index, indexer, events, inflight, self._writer, end, wake)
        self._room = Room(shard.directory, config.store.kept_free, files)
        self._bodies = Bodies(shard.journal, shard.quarantine, files, self._place_now)
        self.last_id = index.state.last_id

    # -- changes ----------------------------------------------------------------------------------------------------

    def submit(self, tx: Transaction, done: Done | None = None) -> None:
        """Put `tx`, as it is now, into the next group commit; `done` is called in `collect` when it is durable.

        `done` gets None, or the StoreError for which nothing of `tx` was done. Only a transaction that does nothing
        but accept can fail; one that settles something is tried again until it succeeds. Messages that are accepted
        get their `body`. Raises ValueError for a transaction that makes no sense.

        Hot path (bench/store.py).
        """
        if self._released:
            raise StoreError(f"{self._shard.directory} is closed")
        encoded = encode(tx, done)
        self._commits.add(encoded)
        self._room.take(encoded.size)

    def collect(self) -> None:
        """Carry out what the threads have finished, then flush unless `patient`. Hot path (bench/store.py)."""
        completions = self._completions
        while completions:
            try:
                run(completions)
            except Exception:
                _log.exception("bug: the completion of a piece of work failed")
        problems = self._indexer.problems
        while problems:
            _log.error("%s: %s", self._shard.directory, problems.pop(0))
        self._keep_checkpointing()
        if not self.patient:
            self.flush()

    @property
    def pending(self) -> bool:
        """Whether something is submitted that was not given to the disk thread."""
        return self._commits.pending

    @property
    def choked(self) -> bool:
        """Whether the disk takes no outcomes or marks, or is far behind: no delivery should be begun. Hot path."""
        return self._commits.choked or self._inflight.is_full or (self._is_damaged and self._overfull)

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for something pending."""
        return self._commits.awaited

    def mark_inflight(self, delivery: Delivery) -> None:
        """The final dot of `delivery` is about to be sent: after a crash it may be a duplicate.

        The mark goes away when an update or the removal of the delivery is durable. Raises StoreError when there is no
        room for it: then the dot may not be sent. Hot path.
        """
        key = delivery.key
        try:
            self._inflight.mark(key, self._commits.changing.get(key, 0))
        except OSError as error:
            raise StoreError(f"a delivery in flight cannot be marked: {error.strerror}") from None

    def clear_inflight(self, delivery: Delivery) -> None:
        """The attempt ended before the final dot, and without an update: what was suspected before it still is."""
        if not delivery.maybe_duplicate:
            self._inflight.clear(delivery.key)

    def quarantine(self, message: Message, events: Sequence[bytes], done: Done | None = None) -> None:
        """Take a damaged message with all its deliveries out of the queue; what is readable goes to `quarantine/`."""

        def found(result: tuple[Message | None, list[Delivery]]) -> None:
            self.submit(Transaction(removes=result[1], events=events), done)

        def work() -> tuple[Message | None, list[Delivery]]:
            self._bodies.set_aside(message)
            return self._index.message(message.id)

        self._after_checkpoint(work, found)

    def body(self, message: Message) -> bytes:
        """The content of a message. Blocks; from any thread.

        Raises BodyDamaged, with the remains in `quarantine/`, or BodyUnreadable when it may be readable later.
        """
        return self._bodies.read(message)

    def room(self) -> str | None:
        """None, or why no new mail may be taken."""
        trouble = self._commits.trouble()
        if trouble is not None:
            return trouble
        if self._is_damaged:  # what room there is in memory is for what becomes of the mail that is here
            return "the index of the spool is damaged"
        if self._overfull:
            return f"the index does not keep up: {self._checkpoint_error or 'its disk is slow'}"
        if self._used_share > MAP_SHARE_MAX:
            return "the index is full (store.map_size)"
        return self._room.reason()

    def trouble(self) -> str | None:
        """None, or why what became of mail is not written down: then what is due is not told, either."""
        trouble = self._commits.trouble()
        if trouble is None and self._inflight.is_full:
            trouble = "no space left on the disk of the spool to mark more deliveries as under way"
        if trouble is None and self._is_damaged:
            trouble = self.damage
        if trouble is None and self._checkpoint_error:
            trouble = f"the index of the spool cannot be written: {self._checkpoint_error}"
        return trouble

    @property
    def damage(self) -> str:
        """What in the index was found damaged first, and what the operator is to do; "" when nothing was."""
        return self._index.damage

    # -- the end ----------------------------------------------------------------------------------------------------

    def configure(self, config: Config) -> None:
        """Take new values of the options that can change while the shard is open."""
        self._config = config
        self._room.reserve = config.store.kept_free
        self._events.size = config.events.size
        self._events.group_readable = config.events.group_readable
        self._indexer.keep = config.events.keep

    def close(self) -> None:
        """Write everything down, note that this was a clean end, and let go of the shard. It blocks.

        Raises StoreError when something could not be written; then the end is not a clean one.
        """
        self._closing = True
        failures = 0
        while (self._commits or self._checkpointing is not None) and failures < 3:
            self._commits.finish()
            self._index_thread.call(nothing)
            self.collect()
            failures += bool(self._commits.held_back or self._checkpoint_error)
        left = len(self._commits)
        self._disk_thread.call(self._writer.finish)
        try:
            self._inflight.sync()  # what has no outcome stays suspect, even if the machine goes down now
            marked = True
        except OSError:
            marked = False
        last = self._index_thread.call(lambda: self._indexer.checkpoint(
            self._effects, self._position, self._events.mark, clean=marked and not left))
        trouble = self._commits.trouble()
        self._release()
        if left:
            raise StoreError(f"{left} transactions could not be written: {trouble}")
        if last.error:
            raise StoreError(f"the index could not be written: {last.error}")

    def abandon(self) -> None:
        """Let go of the shard as a kill would, with nothing more written. For tests."""
        self._closing = True
        self._release()

    def _release(self) -> None:
        self._released = True
        self._disk_thread.stop()
        self._index_thread.stop()
        self._indexer.close()
        self._journal.close()
        self._events.close()
        self._inflight.close()
        self._index.close()
        self._shard.close()
