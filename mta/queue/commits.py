"""Group commit, as the hub sees it: what was submitted, what is being written, what the disk would not take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from mta.queue.effects import Key
from mta.queue.errors import StoreError
from mta.queue.native import WorkThread
from mta.queue.transaction import Done, Encoded
from mta.queue.writer import Group, GroupWriter

GROUP_BYTES: Final = 8_000_000  # of one frame, unless a single transaction has more
GROUP_TRANSACTIONS: Final = 1000  # in one frame, as all of them are carried out in one turn of the hub
PENDING_MAX: Final = 64_000_000  # submitted bytes at which no new mail is taken
RETRY_S: Final = 1.0

_log = logging.getLogger(__name__)


class Commits:
    """Gathers transactions; while one group is on its way to the disk, the next one grows."""

    def __init__(self, thread: WorkThread, writer: GroupWriter, durable: Callable[[Group], None],
                 remind: Callable[[float], None]) -> None:
        """`durable` carries out what is on the disk, before anyone is told; `remind` has `flush` called at a time."""
        self.held_back: frozenset[Key] = frozenset()  # deliveries whose settling the disk did not take
        self.awaited = False  # somebody waits for something that was not given to the disk thread
        self._thread = thread
        self._writer = writer
        self._durable = durable
        self._remind = remind
        self.changing: dict[Key, int] = {}
        """The deliveries that have been submitted for a change that is not durable, and for how many."""
        self._pending: list[Encoded] = []
        self._pending_bytes = 0  # and those being written
        self._writing: list[Encoded] | None = None
        self._again_at = 0.0
        self._refused: tuple[float, str] | None = None  # when the disk last refused to take something, and why

    def __len__(self) -> int:
        """How many transactions are not durable."""
        return len(self._pending) + len(self._writing or ())

    @property
    def pending(self) -> bool:
        """Whether there is something that was not given to the disk thread."""
        return bool(self._pending)

    def add(self, encoded: Encoded) -> None:
        """Put a transaction in the line. Hot path (bench/store.py)."""
        if encoded.done is not None:
            self.awaited = True
        changing = self.changing
        for key in encoded.changed:
            changing[key] = changing.get(key, 0) + 1
        self._pending.append(encoded)
        self._pending_bytes += encoded.size

    def flush(self) -> None:
        """Give what is pending to the disk thread, if that is idle. Hot path (bench/store.py)."""
        if self._writing is not None or not self._pending:
            return
        if self._again_at:
            if time.monotonic() < self._again_at:
                self._remind(self._again_at)
                return
            self._again_at = 0.0
        self._writing = group = self._next_group()
        self._thread.post(lambda: self._writer.write(group), self._written)
        self._thread.post(self._writer.finish)

    def finish(self) -> None:
        """Try what was put off at once, and wait for the disk thread."""
        self._again_at = 0.0
        self.flush()
        self._thread.call(self._writer.finish)

    @property
    def choked(self) -> bool:
        """Whether the disk does not take what became of mail, or so much waits for it, that nothing should be begun
        which ends in a transaction: a crash would have it done again. Hot path."""
        return bool(self.held_back) or self._pending_bytes > PENDING_MAX

    def trouble(self) -> str | None:
        """None, or why no new mail should be taken."""
        if self._refused is not None:
            refused_at, reason = self._refused
            if self.held_back:
                return f"{reason}; nothing is sent while what becomes of it cannot be written down"
            if time.monotonic() < refused_at + RETRY_S:
                return reason
        if self.choked:
            return "the spool's disk does not keep up"
        return None

    def _next_group(self) -> list[Encoded]:
        pending = self._pending
        if self._pending_bytes <= GROUP_BYTES and len(pending) <= GROUP_TRANSACTIONS:
            self._pending = []
            self.awaited = False
            return pending
        size = count = 0
        for encoded in pending:
            if count and (size + encoded.size > GROUP_BYTES or count == GROUP_TRANSACTIONS):
                break
            size += encoded.size
            count += 1
        self._pending = pending[count:]
        return pending[:count]

    def _written(self, group: Group) -> None:
        """The disk thread is done with a group. Hot path (bench/store.py)."""
        self._writing = None
        if group.committed:
            self._durable(group)
            self._ended(group.committed)
        if group.error is not None:
            self._put_off(group.failed, group.error)
        elif self._refused is not None:
            _log.info("the disk of the spool takes what is written again")
            self._refused = None
            self.held_back = frozenset()
        for encoded in group.committed:
            if encoded.done is not None:
                _tell(encoded.done, None)

    def _put_off(self, failed: list[Encoded], error: StoreError) -> None:
        """The disk did not take these. What settles something goes to the head of the line."""
        now = time.monotonic()
        if self._refused is None or self._refused[1] != str(error):
            _log.error("%s", error)
        self._refused = (now, str(error))
        kept = [encoded for encoded in failed if encoded.must]
        self._pending[:0] = kept
        self.held_back = frozenset(key for encoded in kept for key in encoded.changed)
        if kept:
            self._again_at = now + RETRY_S
        for encoded in failed:
            if not encoded.must:
                self._pending_bytes -= encoded.size
                if encoded.done is not None:
                    _tell(encoded.done, error)

    def _ended(self, committed: list[Encoded]) -> None:
        """These are durable. Hot path (bench/store.py)."""
        changing = self.changing
        for encoded in committed:
            self._pending_bytes -= encoded.size
            for key in encoded.changed:
                left = changing[key] - 1
                if left:
                    changing[key] = left
                else:
                    del changing[key]


def _tell(done: Done, error: StoreError | None) -> None:
    try:
        done(error)
    except Exception:
        _log.exception("bug: what was to follow a commit failed")
