"""Checkpoints: what is durable in the journal goes into the index, and is known here until it is there.

Whoever reads the index does it through here, too, so that nobody is shown what was settled since.
The ground that `mta.queue.store` stands on, which has the theory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import lmdb

from mta.config.schema import Config
from mta.queue.checkpoint import Touched
from mta.queue.commits import RETRY_S, Commits
from mta.queue.effects import Effects, Key
from mta.queue.encoding import Position, ShardState
from mta.queue.errors import StoreError
from mta.queue.eventlog import EventLog
from mta.queue.index import DAMAGE, Index
from mta.queue.indexer import Checkpoint, Indexer
from mta.queue.inflight import Inflight
from mta.queue.native import Completions, WorkThread
from mta.queue.records import BodyRef, Delivery
from mta.queue.shard import Shard
from mta.queue.transaction import Move, encode_moves
from mta.queue.unindexed import Unindexed
from mta.queue.writer import Group, GroupWriter

CHECKPOINT_ENTRIES: Final = 2000  # changed deliveries after which a checkpoint is begun early
CHECKPOINT_BYTES: Final = 16_000_000  # length of journal after which one is begun even if nothing has changed
ENTRIES_MAX: Final = 20_000  # changed deliveries with which the journal waits for the index
DAMAGED_RETRY_S: Final = 10.0  # a damage does not go away: this is for what was taken for one
NEVER: Final = float("inf")

_FOR_GOOD: Final = "damaged"  # why something cannot be read
_log = logging.getLogger(__name__)

_Question = tuple[Callable[[], Any], Callable[[Any], None], Callable[[], None]]
"""The arguments of `_read`."""


def nothing() -> None:
    """The work of waiting one's turn, and what is done by who is not answered."""


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


class Checkpointing:
    """The threads of a shard, what they have not written yet, and what the index does not have. Not made by itself."""

    on_checkpoint: Callable[[Touched], None]
    """Called in `collect` after each checkpoint: touched queues, and when the first delivery of each is due that
    `load_due` would find."""

    def __init__(self, shard: Shard, config: Config, index: Index, indexer: Indexer, events: EventLog,
                 inflight: Inflight, writer: GroupWriter, end: Position, wake: Callable[[], None]) -> None:
        """The parts belong to the caller, and are open. `end` is where the journal ends, all of which the index has.
        `wake` is called by other threads when `collect` has something to do."""
        self.on_checkpoint = _nobody
        self.statistics = Statistics()
        self._shard = shard
        self._config = config
        self._index = index
        self._indexer = indexer
        self._events = events
        self._inflight = inflight
        self._completions: Completions = Completions()
        self._disk_thread = WorkThread(self._completions, wake)
        self._index_thread = WorkThread(self._completions, wake)
        self._commits = Commits(self._disk_thread, writer, self._durable, self._remind)  # what is not durable
        # What is durable, and not in the index.
        self._effects = Effects()
        self._position = end  # of the journal after the last of them
        self._journal_bytes = 0  # since the last checkpoint was begun
        self._checkpointing: Effects | None = None
        self._unindexed = Unindexed()  # of the effects, while no checkpoint succeeds
        self._checkpoint_at = NEVER  # when the next one is to be begun
        self._checkpoint_not_before = 0.0
        self._checkpoint_error = ""
        self._is_damaged = False  # that is why: the index takes nothing any more
        self._read_error = ""
        self._asked: list[_Question] = []  # for after the next checkpoint
        # What the index was like at the last checkpoint.
        self._counts = _counts(self._index.state)
        self._used_share = 0.0

        self._alarm_at = NEVER
        self._compacting = False
        self._closing = False
        self._released = False

    @property
    def _overfull(self) -> bool:
        """Whether the journal waits for the index. While that is tried again what is tried counts, too: else each
        attempt in vain would let some more in. Hot path (bench/store.py)."""
        size = self._effects.size
        if self._checkpoint_error and self._checkpointing is not None:
            size += self._checkpointing.size
        return size >= ENTRIES_MAX

    def flush(self) -> None:
        """Give what is pending to the disk thread, if that is idle. Call it at the end of each turn of the hub's loop.

        Hot path (bench/store.py).
        """
        if not self._overfull:  # else a checkpoint makes room first: it is under way, or tried again
            self._commits.flush()

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

    def _checkpointed(self, asked: list[_Question], result: Checkpoint) -> None:
        effects, self._checkpointing = self._checkpointing, None
        assert effects is not None
        if result.error:
            if self._checkpoint_error != result.error and not result.damaged:  # the index has told of that
                _log.error("%s: the index cannot be written: %s", self._shard.directory, result.error)
            effects.follow(self._effects)
            self._effects = effects
            self._checkpoint_not_before = time.monotonic() + (DAMAGED_RETRY_S if result.damaged else RETRY_S)
            self._journal_bytes = CHECKPOINT_BYTES
            touched = self._unindexed.note(effects)
        else:
            touched = result.touched
            self._unindexed.forget()
            self._counts = _counts(result.state)
            self._used_share = result.used_share
            self.statistics.checkpoints += 1
            self.statistics.checkpoint_s = result.seconds
        self._checkpoint_error, self._is_damaged = result.error, result.damaged
        for question in asked:
            self._read(*question)
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

    def _read(self, work: Callable[[], Any], deliver: Callable[[Any], None],
              unreadable: Callable[[], None] = nothing) -> None:
        """Have the index thread do `work`. If the index cannot be read, it is tried again after the next checkpoint,
        which opens it anew if need be: whoever asked waits for an answer. Messages on a damaged page are passed over.
        If the damage is elsewhere nobody knows the answer before a repair, and none is made up: mail that is not found
        stays where it is, and what was accepted is not accepted a second time. `unreadable` is called then.
        """

        def attempt() -> tuple[Any, str]:
            lost = -1
            try:
                while lost < len(self._index.lost):  # LMDB does not read on behind a damage: once more, without it
                    lost = len(self._index.lost)
                    try:
                        return work(), ""
                    except DAMAGE as error:
                        self._index.damaged("a part of it cannot be read", error)
            except (OSError, lmdb.Error) as error:
                return None, f"{type(error).__name__}: {error}"
            return None, _FOR_GOOD

        def take(outcome: tuple[Any, str]) -> None:
            result, error = outcome
            if error == _FOR_GOOD:
                unreadable()
                return
            if error and error != self._read_error:
                _log.error("%s: the index cannot be read: %s", self._shard.directory, error)
            self._read_error = error
            if error:
                self._checkpoint_not_before = time.monotonic() + RETRY_S
                self._asked.append((work, deliver, unreadable))
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
            self._disk_thread.post(nothing, lambda _: self._after_writing(groups - 1, go_on))

    def _read_anew(self, work: Callable[[], Any], deliver: Callable[[Any], None]) -> None:
        if self._is_damaged or (self._effects.size == 0 and self._checkpointing is None):
            self._read(work, deliver)
        else:
            self._asked.append((work, deliver, nothing))
            self._keep_checkpointing()

    def _is_dirty(self, key: Key) -> bool:
        """Whether the index is not to be asked about a delivery: something was submitted for it that the index does not
        have. Called on the index thread, too: from hand to hand it is looked for in the order in which it goes.
        """
        if key in self._commits.changing or key in self._effects.deliveries:
            return True
        checkpointing = self._checkpointing
        return checkpointing is not None and key in checkpointing.deliveries

    def _is_gone(self, key: Key) -> bool:
        """Whether a delivery of the index is known to have been removed since."""
        checkpointing = self._checkpointing
        return (self._effects.deliveries.get(key, self) is None
                or (checkpointing is not None and checkpointing.deliveries.get(key, self) is None))

    def _still_there(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Those that nothing has been submitted for since the index was read."""
        return [delivery for delivery in deliveries if not self._is_dirty(delivery.key)]

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


def _nobody(touched: Touched) -> None:
    """The default of `on_checkpoint`."""
