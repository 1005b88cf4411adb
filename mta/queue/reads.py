"""What a store answers: to the scheduler, to sweeps, and to those who ask what is in the queue.

The theory of what is read where is in `mta.queue.store`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from typing import Final, TypeVar

from mta.queue import sweeping
from mta.queue.checkpointing import Checkpointing, Counts
from mta.queue.effects import DeliveryState, Key
from mta.queue.encoding import QueueInfo
from mta.queue.passes import Listing, Pass, QueueTotals, TenantCount
from mta.queue.records import Delivery, Message
from mta.queue.unindexed import Unread, newest
from mta.queue.unindexed import read as read_unindexed

UNREADABLE_US: Final = 600_000_000  # after which mail is looked for again that a damage hides: it is no poll

P = TypeVar("P", bound=Pass)
_Loaded = tuple[list[Delivery], int | None, list[tuple[DeliveryState, Delivery]]]


class Reads(Checkpointing):
    """The questions. What they find is given to `done`, in `collect`."""

    # -- reads for the scheduler ------------------------------------------------------------------------------------

    def load_due(self, queue: str, before_us: int, limit: int, exclude: Container[Key],
                 done: Callable[[list[Delivery], int | None], None]) -> None:
        """Read up to `limit` indexed deliveries of `queue` due at or before `before_us`, the soonest first.

        `done` gets them, without content, and when the next one is due (None: there is no further one). Left out of
        both are keys in `exclude`, which is looked at until `done` is called, and what has changed since the last
        checkpoint; `on_checkpoint` tells of those. When that failed, what has changed is there, too.

        Mail that cannot be read for a damage counts as due in `UNREADABLE_US`: whoever asked keeps nothing for it.
        """
        unread: list[Unread] = []
        if self._unindexed:
            unread = self._unindexed.due(queue, before_us, (self._effects, self._checkpointing),
                                         (exclude, self._commits.changing))

        def hidden(key: Key) -> bool:
            # What is on its way to the disk is left out from the start. To drop it at the end alone would leave room
            # that whoever asks fills by asking again, for the same.
            return key in exclude or self._is_dirty(key)

        def late() -> list[tuple[DeliveryState, Delivery]]:
            # One more tells when the next one is due.
            return read_unindexed(self._index, unread[:limit + 1]) if unread else []

        def work() -> _Loaded:
            return *self._index.due(queue, before_us, limit, hidden), late()

        def found(result: _Loaded) -> None:
            deliveries = [one for one in self._still_there(result[0]) if one.key not in exclude]
            next_us = result[1]
            if result[2]:
                deliveries += self._as_they_were(result[2])
                deliveries.sort(key=lambda one: one.due_us)
                if len(deliveries) > limit:
                    cut_us = deliveries[limit].due_us
                    next_us = cut_us if next_us is None else min(next_us, cut_us)
            done(deliveries[:limit], next_us)

        later_us = before_us + UNREADABLE_US
        self._read(work, found, lambda: self._read(
            lambda: ([], later_us, late()), found, lambda: found(([], later_us, []))))

    def _as_they_were(self, late: list[tuple[DeliveryState, Delivery]]) -> list[Delivery]:
        """Those that are in the effects as they were when they were asked for, with nothing submitted since."""
        ages, submitted = (self._effects, self._checkpointing), self._commits.changing
        return [one for state, one in late if newest(state.key, ages) is state and state.key not in submitted]

    def due_queues(self, after: bytes, limit: int, done: Callable[[list[tuple[int, str]], bytes | None], None]) -> None:
        """Read the next `limit` queues in the order of (first due time, queue), after the key `after` (b"": from the
        start).

        `done` gets (due time, name) of each, and the key of the last; None when that was all, or all that is readable.
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

    def sweep_queues(self, after: bytes, limit: int,
                     done: Callable[[list[tuple[bytes, QueueInfo]], bytes | None, int], None]) -> None:
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
        self._after_checkpoint(lambda: sweeping.of_message(self._index, message_id),
                               lambda found: done(self._as_now(*found)))

    def _as_now(self, deliveries: list[Delivery], last: bytes | None, unreadable: int) -> sweeping.Piece:
        there = self._still_there(deliveries)
        known = {delivery.key for delivery in there}
        changing = [one for one in deliveries if one.key not in known and not self._is_gone(one.key)]
        return sweeping.Piece(there, changing, last, unreadable)

    # -- reads for others -------------------------------------------------------------------------------------------

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
        self._look_through(lambda: Listing(self._index, pattern, limit), lambda listing: done(*listing.result()))

    def count_of_tenants(self, tenants: Collection[str], done: Callable[[dict[str, int]], None]) -> None:
        """Count the deliveries of these tenants, as of a new checkpoint."""
        self._look_through(lambda: TenantCount(self._index, tenants), lambda count: done(count.found))

    def _look_through(self, make: Callable[[], P], done: Callable[[P], None]) -> None:
        """Look at all queues, as of a new checkpoint, with other reads between the pieces."""

        def begun(whole: P) -> None:
            def go_on(has_more: bool) -> None:
                if has_more:
                    self._read(whole.go_on, go_on)
                else:
                    done(whole)

            go_on(True)

        self._after_checkpoint(make, begun)

    def list_deliveries(self, queue: str, limit: int, done: Callable[[list[Delivery]], None]) -> None:
        """List the first `limit` deliveries of a queue by due time, as of a new checkpoint."""
        self._after_checkpoint(lambda: self._index.due(queue, 1 << 62, limit, lambda key: False)[0], done)

    def find_message(self, message_id: int, done: Callable[[Message | None, list[Delivery]], None]) -> None:
        """Look up a message and its deliveries, as of a new checkpoint."""
        self._after_checkpoint(lambda: self._index.message(message_id), lambda result: done(*result))
