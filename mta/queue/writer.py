"""The disk thread's work: one group of transactions becomes one frame, and its events go to the event files."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mta.queue.encoding import Position
from mta.queue.errors import StoreError, StoreFull
from mta.queue.eventlog import EventLog
from mta.queue.journal import Journal
from mta.queue.records import BodyRef
from mta.queue.transaction import Encoded, encode_events

_PREPARE_AGAIN_S: Final = 5.0


@dataclass(slots=True)
class Group:
    """What became of a group of transactions."""

    committed: list[Encoded]  # in the order in which they were submitted
    failed: list[Encoded]
    error: StoreError | None  # why those failed
    end: Position  # of the journal
    size: int  # of what was written
    blobs: list[BodyRef]  # where the contents of the committed ones are, in order


class GroupWriter:
    """Writes groups. All of it belongs to the disk thread."""

    def __init__(self, journal: Journal, events: EventLog, clock_us: Callable[[], int]) -> None:
        self._journal = journal
        self._events = events
        self._clock_us = clock_us
        self._lines: tuple[bytes, int, Position] | None = None
        self._prepare_at = 0.0

    def write(self, group: list[Encoded]) -> Group:
        """Make a group durable. If that fails, at least those in it that settle something, as they are small."""
        try:
            return self._write(group, [], None)
        except OSError as error:
            failure = _explained(error)
        except MemoryError:
            failure = StoreError("there is no memory to write with")
        settling = [encoded for encoded in group if encoded.must]
        others = [encoded for encoded in group if not encoded.must]
        if settling and others:
            try:
                return self._write(settling, others, failure)
            except (OSError, MemoryError):
                pass
        return Group([], group, failure, self._journal.end, 0, [])

    def finish(self) -> None:
        """What has to be done after a group, but for which nobody should wait: events, and the next segment."""
        if self._lines is not None:
            self._events.append(*self._lines)
            self._lines = None
        elif self._events.error is not None:
            self._events.catch_up()
        now = time.monotonic()
        if now >= self._prepare_at:
            try:
                self._journal.prepare()
            except OSError:
                self._prepare_at = now + _PREPARE_AGAIN_S  # and when it is needed, where it counts
        self._journal.write_ahead()

    def _write(self, group: list[Encoded], failed: list[Encoded], failure: StoreError | None) -> Group:
        if self._events.is_choked and self._events.error is not None:
            raise self._events.error
        time_us = self._clock_us()
        contents = [content for encoded in group for content in encoded.blobs]
        lines = b"".join([encoded.events for encoded in group])
        operations = [encoded.operations for encoded in group]
        operations.append(encode_events(lines))
        written = self._journal.append(b"".join(operations), contents, time_us)
        self._lines = (lines, time_us, written.end)
        return Group(group, failed, failure, written.end, written.size, written.blobs)


def _explained(error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("no space left on the disk of the spool")
    return StoreError(f"the journal cannot be written: {error}")
