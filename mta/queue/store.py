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
import time
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import lmdb

from mta.config.schema import Config
from mta.queue import sweeping
from mta.queue.bodies import Bodies
from mta.queue.checkpoint import Touched
from mta.queue.commits import RETRY_S, Commits
from mta.queue.compaction import Compactor
from mta.queue.effects import DeliveryState, Effects, Key
from mta.queue.encoding import QueueInfo, ShardState
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
from mta.queue.index import Index, Listing, QueueTotals
from mta.queue.indexer import Checkpoint, Indexer
from mta.queue.inflight import Inflight
from mta.queue.journal import Journal
from mta.queue.native import Completions, WorkThread, run
from mta.queue.records import BodyRef, Delivery, Message
from mta.queue.recovery import JournalReader, begin_life, recover
from mta.queue.room import Room
from mta.queue.shard import Shard
from mta.queue.shard import boot_id as this_boot
from mta.queue.transaction import Done, Move, Transaction, encode, encode_moves
from mta.queue.unindexed import Unindexed, Unread, newest
from mta.queue.unindexed import read as read_unindexed
from mta.queue.writer import Group, GroupWriter

__all__ = [
    "BodyDamaged", "BodyUnreadable", "Counts", "Key", "QueueInfo", "Statistics", "Store", "StoreError", "StoreFull",
    "StoreLocked", "StoreUnusable", "StoreVersion", "Transaction",
]

CHECKPOINT_ENTRIES: Final = 2000  # changed deliveries after which a checkpoint is begun early
CHECKPOINT_BYTES: Final = 16_000_000  # length of journal after which one is begun even if nothing has changed
ENTRIES_MAX: Final = 20_000  # changed deliveries with which the journal waits for the index
MAP_SHARE_MAX: Final = 0.9
NEVER: Final = float("inf")

_log = logging.getLogger(__name__)


class Counts(NamedTuple):
    """How much is in the queue."""

    messages: int
    deliveries: int
    recipients: int


@dataclass(slots=True)
class Statistics:
    """What a store has done since it was opened."""

    transactions: int = 0
    groups: int = 0  # frames of the journal, one sync each
    checkpoints: int = 0
    checkpoint_s: float = 0.0  # how long the last one took


class Store:
    """One shard. All methods belong to the thread that opened it (the hub), but `body`."""

    on_checkpoint: Callable[[Touched], None]
    """Called in `collect` after each checkpoint: touched queues, and when the first delivery of each is due that
    `load_due` would find."""
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
        except (OSError, lmdb.Error) as error:
            place.close()
            raise StoreUnusable(f"{directory} cannot be opened: {error}") from error
        except BaseException:
            place.close()
            raise

    def __init__(self, shard: Shard, config: Config, wake: Callable[[], None], clock_us: Callable[[], int],
                 files: FileOps, boot_id: str) -> None:
        self.on_checkpoint = _nobody
        self.statistics = Statistics()
        self._shard = shard
        self._config = config

        with ExitStack() as undo:
            self._index = Index(shard.index, config.store.map_size, files)
            undo.callback(self._index.close)
            files.fsync_directory(shard.index)
            self._events = EventLog(shard.events, config.events.size, files, self._index.state.events,
                                    group_readable=config.events.group_readable)
            undo.callback(self._events.close)
            end = recover(self._index, self._events, JournalReader(shard.journal, shard.quarantine, files, _log.error))
            begin_life(self._index, boot_id, clock_us())
            self._journal = Journal(shard.journal, config.store.segment_size, files, end)
            undo.callback(self._journal.close)
            compactor = Compactor(self._index, shard.journal, config.store.segment_size, files)
            self._indexer = Indexer(shard, self._index, self._journal, self._events, compactor, config.events.keep)
            self._indexer.sweep()
            self._inflight = Inflight(shard.inflight, files)
            undo.pop_all()
        for key in list(self._inflight.left_over):
            if not self._index.has_delivery(key):
                self._inflight.clear(key)
        self._index.suspects = self._inflight.left_over
        self._writer = GroupWriter(self._journal, self._events, clock_us)
        self._writer.finish()
        self._room = Room(shard.directory, config.store.reserve, files)
        self.last_id = self._index.state.last_id

        self._completions: Completions = Completions()
        self._disk_thread = WorkThread(self._completions, wake)
        self._index_thread = WorkThread(self._completions, wake)
        self._bodies = Bodies(shard.journal, shard.quarantine, files, self._place_now)

        self._commits = Commits(self._disk_thread, self._writer, self._durable, self._remind)  # what is not durable
        # What is durable, and not in the index.
        self._effects = Effects()
        self._position = end  # of the journal after the last of them
        self._journal_bytes = 0  # since the last checkpoint was begun
        self._checkpointing: Effects | None = None
        self._unindexed = Unindexed()  # of the effects, while no checkpoint succeeds
        self._checkpoint_at = NEVER  # when the next one is to be begun
        self._checkpoint_not_before = 0.0
        self._checkpoint_error = ""
        self._read_error = ""
        self._asked: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []  # work for after the next checkpoint
        # What the index was like at the last checkpoint.
        self._counts = _counts(self._index.state)
        self._used_share = 0.0

        self._alarm_at = NEVER
        self._compacting = False
        self._closing = False
        self._released = False

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
        for key in encoded.changed:
            self._inflight.changing(key)
        self._commits.add(encoded)
        self._room.take(encoded.size)

    def flush(self) -> None:
        """Give what is pending to the disk thread, if that is idle. Call it at the end of each turn of the hub's loop.

        Hot path (bench/store.py).
        """
        if self._effects.size < ENTRIES_MAX:  # else a checkpoint makes room first: it is under way, or tried again
            self._commits.flush()

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
        """Whether the disk is so far behind that no delivery should be begun: it would only add to that."""
        return self._commits.choked

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for something pending."""
        return self._commits.awaited

    def mark_inflight(self, delivery: Delivery) -> None:
        """The final dot of `delivery` is about to be sent: after a crash it may be a duplicate.

        The mark goes away when an update or the removal of the delivery is durable. Hot path.
        """
        try:
            self._inflight.mark(delivery.key)
        except OSError as error:
            _log.error("%s: a delivery in flight cannot be marked: %s", self._shard.inflight, error)

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

    # -- reads for the scheduler ------------------------------------------------------------------------------------

    def load_due(self, queue: str, before_us: int, limit: int, exclude: Container[Key],
                 done: Callable[[list[Delivery], int | None], None]) -> None:
        """Read up to `limit` indexed deliveries of `queue` due at or before `before_us`, the soonest first.

        `done` gets them, without content, and when the next one is due (None: there is no further one). Left out of
        both are keys in `exclude`, which is looked at until `done` is called, and what has changed since the last
        checkpoint; `on_checkpoint` tells of those. When that failed, what has changed is there, too.
        """
        unread: list[Unread] = []
        if self._unindexed:
            unread = self._unindexed.due(queue, before_us, (self._effects, self._checkpointing),
                                         (exclude, self._commits.changed()))

        def hidden(key: Key) -> bool:
            return key in exclude or self._is_dirty(key)

        def work() -> tuple[list[Delivery], int | None, list[tuple[DeliveryState, Delivery]]]:
            # One more tells when the next one is due.
            late = read_unindexed(self._index, unread[:limit + 1]) if unread else []
            return *self._index.due(queue, before_us, limit, hidden), late

        def found(result: tuple[list[Delivery], int | None, list[tuple[DeliveryState, Delivery]]]) -> None:
            deliveries = [one for one in self._still_there(result[0]) if one.key not in exclude]
            next_us = result[1]
            if result[2]:
                deliveries += self._as_they_were(result[2])
                deliveries.sort(key=lambda one: one.due_us)
                if len(deliveries) > limit:
                    cut_us = deliveries[limit].due_us
                    next_us = cut_us if next_us is None else min(next_us, cut_us)
            done(deliveries[:limit], next_us)

        self._read(work, found)

    def _as_they_were(self, late: list[tuple[DeliveryState, Delivery]]) -> list[Delivery]:
        """Those that are in the effects as they were when they were asked for, with nothing submitted since."""
        ages, submitted = (self._effects, self._checkpointing), self._commits.changed()
        return [one for state, one in late if newest(state.key, ages) is state and state.key not in submitted]

    def due_queues(self, after: bytes, limit: int, done: Callable[[list[tuple[int, str]], bytes | None], None]) -> None:
        """Read the next `limit` queues in the order of (first due time, queue), after the key `after` (b"": from the
        start).

        `done` gets (due time, name) of each, and the key of the last; None when that was all.
        """
        self._read(lambda: self._index.due_queues(after, limit), lambda result: done(*result))

    def arrived_before(self, before_us: int, limit: int, done: Callable[[list[Delivery]], None]) -> None:
        """Read up to `limit` indexed deliveries of messages accepted before `before_us`, the oldest first."""
        self._read(lambda: self._index.arrived_before(before_us, limit, self._is_dirty),
                   lambda found: done(self._still_there(found)))

    def arrived_between(self, after: bytes, before_us: int, limit: int,
                        done: Callable[[list[Delivery], bytes | None], None]) -> None:
        """The same from behind the key `after` (b"": the first) on, as of a new checkpoint.

        `done` gets them, and the key to go on after; None when there was nothing left to look at.
        """
        self._after_checkpoint(lambda: self._index.arrived_between(after, before_us, limit, self._is_dirty),
                               lambda found: done(self._still_there(found[0]), found[1]))

    def due_after(self, after_us: int, start: bytes, limit: int,
                  done: Callable[[list[Delivery], bytes | None], None]) -> None:
        """Read up to `limit` deliveries of any queue that are due after `after_us`, as of a new checkpoint.

        `done` gets them, and the key to go on from as `start` (at first b""); None at the end. Looks at every queue.
        """
        self._after_checkpoint(lambda: self._index.due_after(after_us, start, limit, self._is_dirty),
                               lambda found: done(self._still_there(found[0]), found[1]))

    def sweep_queues(self, after: bytes, limit: int, done: Callable[[list[tuple[bytes, QueueInfo]], bytes | None], None]
                     ) -> None:
        """Read the next `limit` queues behind the key `after` (`mta.queue.sweeping.names`), as of a new checkpoint."""
        self._after_checkpoint(lambda: sweeping.names(self._index, after, limit), lambda found: done(*found))

    def sweep_queue(self, queue: bytes, start: bytes, limit: int, done: Callable[[sweeping.Piece], None]) -> None:
        """Read a stretch of the queue with the key `queue` (`mta.queue.sweeping.piece`).

        What has left it since the last checkpoint is left out. It is true while `done` runs, and no longer.
        """
        self._read(lambda: sweeping.piece(self._index, queue, start, limit),
                   lambda found: done(self._as_now(*found)))

    def sweep_due(self, queue: bytes, before_us: int, limit: int, done: Callable[[int, bytes | None], None]) -> None:
        """Count what is due of the queue with the key `queue` (`mta.queue.sweeping.count_due`)."""
        self._read(lambda: sweeping.count_due(self._index, queue, before_us, limit), lambda found: done(*found))

    def sweep_message(self, message_id: int, done: Callable[[sweeping.Piece], None]) -> None:
        """The same of the deliveries of one message, as of a new checkpoint."""
        self._after_checkpoint(lambda: self._index.message(message_id),
                               lambda found: done(self._as_now(found[1], None)))

    def _as_now(self, deliveries: list[Delivery], last: bytes | None) -> sweeping.Piece:
        there = self._still_there(deliveries)
        known = {delivery.key for delivery in there}
        changing = [one for one in deliveries if one.key not in known and not self._is_gone(one.key)]
        return sweeping.Piece(there, changing, last)

    def body(self, message: Message) -> bytes:
        """The content of a message. Blocks; from any thread.

        Raises BodyDamaged, with the remains in `quarantine/`, or BodyUnreadable when it may be readable later.
        """
        return self._bodies.read(message)

    # -- reads for others -------------------------------------------------------------------------------------------

    def room(self) -> str | None:
        """None, or why no new mail may be taken."""
        trouble = self._commits.trouble()
        if trouble is not None:
            return trouble
        if self._effects.size >= ENTRIES_MAX:
            return f"the index does not keep up: {self._checkpoint_error or 'its disk is slow'}"
        if self._used_share > MAP_SHARE_MAX:
            return "the index is full (store.map_size)"
        return self._room.reason()

    def trouble(self) -> str | None:
        """None, or why what became of mail is not written down: then what is due is not told, either."""
        trouble = self._commits.trouble()
        if trouble is None and self._checkpoint_error:
            trouble = f"the index of the spool cannot be written: {self._checkpoint_error}"
        return trouble

    def counts(self) -> Counts:
        """What is in the queue. Messages and recipients that leave it count until the next checkpoint."""
        messages, deliveries, recipients = self._counts
        for effects in (self._effects, self._checkpointing):
            if effects is not None:
                messages += len(effects.messages)
                deliveries += effects.born - effects.removed
                recipients += effects.born_recipients
        return Counts(messages, deliveries, recipients)

    def has_mark(self, key: bytes, done: Callable[[bytes | None], None]) -> None:
        """Look up a mark; `done` gets its value, or None. A mark counts once its transaction is durable."""

        def found(value: bytes | None) -> None:
            for effects in (self._checkpointing, self._effects):
                if effects is not None and key in effects.marks:
                    value = effects.marks[key]
            done(value)

        self._read(lambda: self._index.mark(key), found)

    def list_marks(self, after: bytes, limit: int, done: Callable[[list[tuple[bytes, bytes]]], None]) -> None:
        """Read up to `limit` marks in the order of their keys, after the key `after`, as of a new checkpoint."""
        self._after_checkpoint(lambda: self._index.marks(after, limit), done)

    def list_queues(self, pattern: str, limit: int, done: Callable[[list[QueueInfo], QueueTotals], None]) -> None:
        """List the `limit` largest queues whose names match a shell pattern ("": all), as of a new checkpoint.

        `done` gets them, and the sums over all that match.
        """

        def begun(listing: Listing) -> None:
            def go_on(has_more: bool) -> None:
                if has_more:
                    self._read(listing.go_on, go_on)
                else:
                    done(*listing.result())

            go_on(True)

        self._after_checkpoint(lambda: self._index.listing(pattern, limit), begun)

    def list_deliveries(self, queue: str, limit: int, done: Callable[[list[Delivery]], None]) -> None:
        """List the first `limit` deliveries of a queue by due time, as of a new checkpoint."""
        self._after_checkpoint(lambda: self._index.due(queue, 1 << 62, limit, lambda key: False)[0], done)

    def find_message(self, message_id: int, done: Callable[[Message | None, list[Delivery]], None]) -> None:
        """Look up a message and its deliveries, as of a new checkpoint."""
        self._after_checkpoint(lambda: self._index.message(message_id), lambda result: done(*result))

    # -- the end ----------------------------------------------------------------------------------------------------

    def configure(self, config: Config) -> None:
        """Take new values of the options that can change while the shard is open."""
        self._config = config
        self._room.reserve = config.store.reserve
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
            self._index_thread.call(_nothing)
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

    def _durable(self, group: Group) -> None:
        """Carry out what is in the journal now. Hot path (bench/store.py)."""
        effects = self._effects
        blobs = iter(group.blobs)
        for encoded in group.committed:
            encoded.apply(effects, blobs)
        inflight = self._inflight
        for encoded in group.committed:
            for key in encoded.changed:
                inflight.changed(key)
        self._position = group.end
        self._journal_bytes += group.size
        self.statistics.groups += 1
        self.statistics.transactions += len(group.committed)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _keep_checkpointing(self) -> None:
        """Begin a checkpoint if it is time for one, else see to it that it will be. Hot path (bench/store.py)."""
        if self._checkpointing is not None:
            return
        size = self._effects.size
        wanted = size >= CHECKPOINT_ENTRIES or self._journal_bytes >= CHECKPOINT_BYTES or bool(self._asked)
        if not (size or wanted):
            return
        now = time.monotonic()
        if self._checkpoint_at == NEVER:
            self._checkpoint_at = now + self._config.store.checkpoint
        at = self._checkpoint_not_before if wanted else max(self._checkpoint_at, self._checkpoint_not_before)
        if now >= at:
            self._begin_checkpoint()
        else:
            self._remind(at)

    def _begin_checkpoint(self) -> None:
        # The place in the journal is that of what was carried out here, not that of the disk thread, which may be
        # ahead. The events may be ahead as well: recovery reads each from its own place.
        self._checkpointing, self._effects = self._effects, Effects()
        asked, self._asked = self._asked, []
        self._checkpoint_at = NEVER
        self._journal_bytes = 0
        self._index_thread.post(
            partial(self._indexer.checkpoint, self._checkpointing, self._position, self._events.mark),
            partial(self._checkpointed, asked))

    def _checkpointed(self, asked: list[tuple[Callable[[], Any], Callable[[Any], None]]], result: Checkpoint) -> None:
        effects, self._checkpointing = self._checkpointing, None
        assert effects is not None
        if result.error:
            if self._checkpoint_error != result.error:
                _log.error("%s: the index cannot be written: %s", self._shard.directory, result.error)
            effects.follow(self._effects)
            self._effects = effects
            self._checkpoint_not_before = time.monotonic() + RETRY_S
            self._journal_bytes = CHECKPOINT_BYTES
            touched = self._unindexed.note(effects)
        else:
            touched = result.touched
            self._unindexed.forget()
            self._counts = _counts(result.state)
            self._used_share = result.used_share
            self.statistics.checkpoints += 1
            self.statistics.checkpoint_s = result.seconds
        self._checkpoint_error = result.error
        for work, deliver in asked:
            self._read(work, deliver)
        if not self._compacting and not self._closing:
            self._compacting = True
            self._read(self._indexer.compact, self._copy)
        self.on_checkpoint(touched)

    def _copy(self, moves: list[Move] | None) -> None:
        """A piece of an old segment has been read: write it to the end of the journal, and go on."""
        if moves is None or self._closing:
            self._compacting = False
        elif moves:
            self._commits.add(encode_moves(moves, self._copied))
        else:
            self._read(self._indexer.compact, self._copy)

    def _copied(self, error: StoreError | None) -> None:
        self._copy(None if error else [])

    # -- reading ----------------------------------------------------------------------------------------------------

    def _read(self, work: Callable[[], Any], deliver: Callable[[Any], None]) -> None:
        """Have the index thread do `work`. If the index cannot be read, it is tried again after the next checkpoint,
        which opens it anew if need be: whoever asked waits for an answer.
        """

        def attempt() -> tuple[Any, str]:
            try:
                return work(), ""
            except (OSError, lmdb.Error) as error:
                return None, f"{type(error).__name__}: {error}"

        def take(outcome: tuple[Any, str]) -> None:
            result, error = outcome
            if error and error != self._read_error:
                _log.error("%s: the index cannot be read: %s", self._shard.directory, error)
            self._read_error = error
            if error:
                self._checkpoint_not_before = time.monotonic() + RETRY_S
                self._asked.append((work, deliver))
            else:
                deliver(result)

        self._index_thread.post(attempt, take)

    def _after_checkpoint(self, work: Callable[[], Any], deliver: Callable[[Any], None]) -> None:
        """Read when all that was submitted before is in the index. (If the disk does not take it, or the checkpoint
        fails, as of what there is.)
        """
        self._after_writing(2, partial(self._read_anew, work, deliver))

    def _after_writing(self, groups: int, go_on: Callable[[], None]) -> None:
        """Go on when so many groups have been written: the one on its way, and what has gathered meanwhile."""
        if not groups or not self._commits or self._commits.held_back or self._closing:
            go_on()
        else:
            self.flush()
            self._disk_thread.post(_nothing, lambda _: self._after_writing(groups - 1, go_on))

    def _read_anew(self, work: Callable[[], Any], deliver: Callable[[Any], None]) -> None:
        if self._effects.size == 0 and self._checkpointing is None:
            self._read(work, deliver)
        else:
            self._asked.append((work, deliver))
            self._keep_checkpointing()

    def _is_dirty(self, key: Key) -> bool:
        """Whether the index is not to be asked about a delivery. Called on the index thread, too: it takes one look at
        each attribute, and `_still_there` has the last word.
        """
        checkpointing = self._checkpointing
        return (key in self._effects.deliveries or key in self._commits.held_back
                or (checkpointing is not None and key in checkpointing.deliveries))

    def _is_gone(self, key: Key) -> bool:
        """Whether a delivery of the index is known to have been removed since."""
        checkpointing = self._checkpointing
        return (self._effects.deliveries.get(key, self) is None
                or (checkpointing is not None and checkpointing.deliveries.get(key, self) is None))

    def _still_there(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Those that nothing has been submitted for since the index was read."""
        submitted = self._commits.changed()
        return [delivery for delivery in deliveries
                if delivery.key not in submitted and not self._is_dirty(delivery.key)]

    def _place_now(self, message_id: int) -> BodyRef | None:
        """For other threads."""
        if self._closing:
            return None
        return self._index_thread.call(partial(self._index.place, message_id))

    # -- time -------------------------------------------------------------------------------------------------------

    def _remind(self, at: float) -> None:
        """Have `collect` called at `at` (monotonic seconds)."""
        if at < self._alarm_at:
            self._alarm_at = at
            self._index_thread.set_alarm(at, self._reminded)

    def _reminded(self, _: None) -> None:
        self._alarm_at = NEVER


def _counts(state: ShardState) -> Counts:
    return Counts(state.messages, state.deliveries, state.recipients)


def _nothing() -> None:
    """The work of waiting one's turn."""


def _nobody(touched: Touched) -> None:
    """The default of `on_checkpoint`."""
