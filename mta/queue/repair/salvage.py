"""What is readable of an index, damaged or not: whole messages, fragments of others, and which keys are not known.

The file is read page by page (`mta.queue.verify.pages`), never by LMDB, which would follow the damage. A message is
whole when its record and those of all its deliveries are there and agree with each other; what else an index has
(schedule, queues, counts) follows from these, and is not read at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mta.queue.effects import DeliveryState, NewMessage
from mta.queue.encoding import (
    UNREADABLE,
    ShardState,
    delivery_head,
    delivery_record,
    message_head,
    message_record,
    summary_of,
    unpack_delivery,
    unpack_message,
    unpack_state,
)
from mta.queue.index import DELIVERY_KEY, MESSAGE_KEY, STATE_KEY
from mta.queue.records import BodyRef
from mta.queue.verify.pages import Gap, PageFile, Unusable


@dataclass(slots=True)
class Found:
    """A message of the index with those of its deliveries that are readable."""

    id: int
    value: bytes | None = None  # of the message
    left: int = -1  # deliveries that it says to have
    deliveries: list[DeliveryState] = field(default_factory=list)
    damaged: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing of it is missing."""
        return self.value is not None and not self.damaged and self.left == len(self.deliveries) > 0

    def message(self, place: BodyRef | None = None) -> NewMessage:
        """Its record, as if it came just now; `place`: where the content is, if not where the record says."""
        assert self.value is not None
        return NewMessage(self.id, message_record(self.value), len(self.deliveries),
                          place or message_head(self.value)[0])


class Remains:
    """An index as far as it can be read."""

    def __init__(self, path: Path) -> None:
        """`path` is the data file, which may be missing. Raises OSError."""
        self.state: ShardState | None = None  # None: it is not known
        self.fragments: list[Found] = []  # messages that are not whole, after `messages`
        self.gaps: list[Gap] = []  # keys of messages that may be missing, after `messages`
        self.marks_lost = False  # some may be missing, after `marks`
        self._pages: PageFile | None = None
        try:
            self._pages = PageFile(path, lambda offset, text: None)
        except (FileNotFoundError, Unusable, *UNREADABLE):
            return
        try:
            for key, value in self._entries(b"state", []):
                if key == STATE_KEY:
                    self.state = unpack_state(value)
        except UNREADABLE:
            self.state = None
        else:
            if self.state is None and self._is_new():
                self.state = ShardState()

    def close(self) -> None:
        """Close the file."""
        if self._pages is not None:
            self._pages.close()

    def messages(self, doubtful: set[int]) -> Iterator[Found]:
        """All that are whole, by id, but those in `doubtful`; these and the others are in `fragments` then."""
        found = Found(0)
        for key, value in self._entries(b"messages", self.gaps):
            if len(key) not in (MESSAGE_KEY.size, DELIVERY_KEY.size):
                continue
            message_id = MESSAGE_KEY.unpack_from(key)[0]
            if message_id != found.id:
                if found.whole and found.id not in doubtful:
                    yield found
                elif found.id:
                    self.fragments.append(found)
                found = Found(message_id)
            _take(found, key, value)
        if found.whole and found.id not in doubtful:
            yield found
        elif found.id:
            self.fragments.append(found)

    def marks(self) -> Iterator[tuple[bytes, bytes]]:
        """All that are readable."""
        gaps: list[Gap] = []
        yield from self._entries(b"marks", gaps)
        self.marks_lost = bool(gaps)

    def misses(self, message_id: int) -> bool:
        """Whether the index may have had a message which was not found."""
        key = MESSAGE_KEY.pack(message_id)
        return any(gap.first[:MESSAGE_KEY.size] <= key and (gap.end is None or key <= gap.end[:MESSAGE_KEY.size])
                   for gap in self.gaps)

    def _entries(self, name: bytes, gaps: list[Gap]) -> Iterator[tuple[bytes, bytes]]:
        if self._pages is None or name not in self._pages.trees:
            gaps.append(Gap(b"", None))
            return iter(())
        return self._pages.entries(self._pages.trees[name], gaps)

    def _is_new(self) -> bool:
        """Whether there was no checkpoint yet."""
        assert self._pages is not None
        return all(tree.entries == 0 for tree in self._pages.trees.values())


def _take(found: Found, key: bytes, value: bytes) -> None:
    """Enter a record, if it makes sense."""
    try:
        if len(key) == MESSAGE_KEY.size:
            place, left = message_head(value)
            found.damaged = unpack_message(value, found.id).size not in (place.length, 0)
            found.value, found.left = value, left
            return
        number = DELIVERY_KEY.unpack(key)[1]
        _, due_us, recipients = delivery_head(value)
        record = delivery_record(value)
        queue, its_due_us, its_recipients, last = summary_of(record)
        if found.value is not None:
            unpack_delivery(value, unpack_message(found.value, found.id), number)
        if (due_us, recipients) != (its_due_us, its_recipients) or not queue or not recipients:
            raise ValueError
    except UNREADABLE:
        found.damaged = True
        return
    found.deliveries.append(DeliveryState((found.id, number), queue, due_us, recipients, record, last, True))
