"""Mail that is durable in the journal, and waits in vain for an index that cannot be written: found here all the same.

As a rule what has left memory is found in the index, which is a second behind at most. While no checkpoint succeeds
(the disk is full, the index's file is broken) it is found in the effects that the index does not have, so that it goes
on: deliveries are what makes room again. Nothing is copied for that. What is kept is the names: which deliveries of
the effects belong to which queue, as of the last attempt at a checkpoint.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

from mta.queue.checkpoint import Touched
from mta.queue.effects import DeliveryState, Effects, Key, NewMessage
from mta.queue.encoding import read_delivery, read_message
from mta.queue.index import DELIVERY_KEY, Index
from mta.queue.records import Delivery, Message

Ages = Sequence[Effects | None]
"""Effects, the newest first."""


class Unread(NamedTuple):
    """A delivery of the effects, to be read."""

    state: DeliveryState
    message: NewMessage | None  # None: the index has it
    is_there: bool  # else only the index knows whether it had not ended before


class Unindexed:
    """What the index of one store does not have, by queue. Empty as long as checkpoints succeed."""

    def __init__(self) -> None:
        self._keys: dict[str, list[Key]] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def note(self, effects: Effects) -> Touched:
        """A checkpoint of `effects` has failed: the queues in them, and when the first delivery of each is due.

        20,000 of them, the most there can be, take some 5 ms, once a second.
        """
        self._keys = {}
        soonest: dict[str, int] = {}
        for key, state in effects.deliveries.items():
            if state is None:
                continue
            keys = self._keys.get(state.queue)
            if keys is None:
                self._keys[state.queue] = [key]
                soonest[state.queue] = state.due_us
            else:
                keys.append(key)
                soonest[state.queue] = min(soonest[state.queue], state.due_us)
        return list(soonest.items())

    def forget(self) -> None:
        """The index has all of it."""
        self._keys = {}

    def due(self, queue: str, before_us: int, ages: Ages, without: Sequence[Container[Key]]) -> list[Unread]:
        """What is due of `queue`, the soonest first, as it is now; but for what is in one of `without`."""
        found = []
        for key in self._keys.get(queue, ()):
            state, is_there = _find(key, ages)
            if (state is not None and state.queue == queue and state.due_us <= before_us
                    and not any(key in some for some in without)):
                found.append(Unread(state, _message(key[0], ages), is_there))
        return sorted(found, key=lambda one: (one.state.due_us, one.state.key))


def newest(key: Key, ages: Ages) -> DeliveryState | None:
    """The delivery as it is now; None when the effects do not have it, or when it was removed."""
    return _find(key, ages)[0]


def _find(key: Key, ages: Ages) -> tuple[DeliveryState | None, bool]:
    """The same, and whether the effects themselves say that it is there: an update does not bring back what was removed
    (`mta.queue.effects`), be it in the effects before or in the index."""
    found: DeliveryState | None = None
    for effects in ages:
        if effects is not None and key in effects.deliveries:
            state = effects.deliveries[key]
            if state is None:
                return None, False
            found = found or state
            if state.born:
                return found, True
    return found, False


def _message(message_id: int, ages: Ages) -> NewMessage | None:
    for effects in ages:
        if effects is not None and message_id in effects.messages:
            return effects.messages[message_id]
    return None


def read(index: Index, unread: Sequence[Unread]) -> list[tuple[DeliveryState, Delivery]]:
    """The deliveries, without content. On the index thread. Raises lmdb.Error."""
    found = []
    known: dict[int, Message | None] = {}
    with index.env.begin() as txn:
        for state, new, is_there in unread:
            message_id, number = state.key
            if not is_there and index.record(txn, message_id, DELIVERY_KEY.pack(*state.key)) is None:
                continue
            if new is not None and message_id not in known:
                known[message_id] = read_message(new.record, message_id, new.body)
            message = index.message_in(txn, message_id, known)
            if message is not None:
                found.append((state, read_delivery(state.record, message, number)))
    return found
