"""What has become durable in the journal and is not in the index yet: the net effect, by message and delivery.

Mail that comes and goes between two checkpoints leaves no trace here and never costs the index anything.

An operation on what is gone does nothing: an update does not bring back what was removed, a second removal counts
once. Where only the index can know (the delivery was stored before), `mta.queue.index` applies the same rule when it
takes the effects in.
"""

from __future__ import annotations

from dataclasses import dataclass

from mta.queue.records import Attempt, BodyRef

Key = tuple[int, int]
"""Delivery.key: message id and index."""


@dataclass(slots=True)
class NewMessage:
    """A message that the index does not have."""

    id: int
    record: bytes
    left: int
    body: BodyRef


@dataclass(slots=True)
class DeliveryState:
    """A delivery as it is now."""

    key: Key
    queue: str
    due_us: int
    recipients: int
    record: bytes
    last: Attempt | None  # its last failed attempt
    born: bool  # the index does not have it


class Effects:
    """The net effect of a stretch of the journal."""

    __slots__ = ("born", "born_recipients", "deliveries", "last_id", "marks", "messages", "moves", "removed")

    def __init__(self) -> None:
        self.messages: dict[int, NewMessage] = {}
        self.deliveries: dict[Key, DeliveryState | None] = {}  # None: removed, if it was there
        self.moves: dict[int, tuple[BodyRef, BodyRef]] = {}  # content of messages in the index: from, to
        self.marks: dict[bytes, bytes | None] = {}  # None: removed
        self.last_id = 0
        self.removed = 0  # how many deliveries are None
        self.born = 0  # how many deliveries the index does not have,
        self.born_recipients = 0  # and their recipients

    @property
    def size(self) -> int:
        """How many entries there are, which bounds memory and the work of a checkpoint."""
        return len(self.deliveries) + len(self.moves) + len(self.marks)

    def accept(self, message: NewMessage, deliveries: list[DeliveryState]) -> None:
        """A message and its deliveries are in the queue. Hot path (bench/store.py)."""
        if message.id > self.last_id:
            self.last_id = message.id
        self.messages[message.id] = message
        for delivery in deliveries:
            self.deliveries[delivery.key] = delivery
            self.born += 1
            self.born_recipients += delivery.recipients

    def update(self, state: DeliveryState) -> None:
        """A delivery has changed."""
        deliveries = self.deliveries
        if state.key in deliveries:
            old = deliveries[state.key]
            if old is None:
                return
            if old.born:
                state.born = True
                self.born_recipients += state.recipients - old.recipients
        deliveries[state.key] = state

    def remove(self, key: Key) -> None:
        """A delivery has left the queue; with the last one, its message. Hot path (bench/store.py)."""
        deliveries = self.deliveries
        if key in deliveries:
            state = deliveries[key]
            if state is None:
                return
            if state.born:
                del deliveries[key]
                self.born -= 1
                self.born_recipients -= state.recipients
                message = self.messages[key[0]]
                message.left -= 1
                if not message.left:
                    del self.messages[key[0]]
                return
        deliveries[key] = None
        self.removed += 1

    def move(self, message_id: int, old: BodyRef, new: BodyRef) -> None:
        """The content of a message has been copied from `old` to `new`."""
        message = self.messages.get(message_id)
        if message is not None:
            if message.body == old:
                message.body = new
            return
        known = self.moves.get(message_id)
        if known is None:
            self.moves[message_id] = (old, new)
        elif known[1] == old:
            self.moves[message_id] = (known[0], new)

    def mark(self, key: bytes, value: bytes | None) -> None:
        """A mark is set, or removed."""
        self.marks[key] = value

    def follow(self, later: Effects) -> None:
        """Add what came after, when this could not be taken into the index."""
        self.last_id = max(self.last_id, later.last_id)
        for message in later.messages.values():
            self.messages[message.id] = message
        for key, state in later.deliveries.items():
            if state is None:
                self.remove(key)
            elif state.born:
                self.deliveries[key] = state
                self.born += 1
                self.born_recipients += state.recipients
            else:
                self.update(state)
        for message_id, (old, new) in later.moves.items():
            self.move(message_id, old, new)
        self.marks.update(later.marks)
