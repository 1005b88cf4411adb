"""What a repair makes of accounts that do not come out even, and of contents that are damaged.

An end that is known takes the recipient out of the queue. A recipient that is neither queued nor ended goes back into
the queue when the journal has the message and no removal of it, as a possible duplicate. What cannot be sent leaves
with one event `quarantined` for each recipient, its envelope and what is readable of it set aside.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mta.queue import events
from mta.queue.effects import DeliveryState, Effects, NewMessage
from mta.queue.encoding import (
    UNREADABLE,
    delivery_value,
    message_value,
    pack_delivery,
    pack_message,
    unpack_delivery,
    unpack_message,
)
from mta.queue.fileops import FileOps
from mta.queue.ids import SHARD_BITS, format_id
from mta.queue.index import Index
from mta.queue.journal import content_crc, segment_path
from mta.queue.records import BodyRef, Delivery, Message, Recipient
from mta.queue.repair.books import Accounts
from mta.queue.repair.quarantine import Quarantine
from mta.queue.repair.rebuild import Rebuild
from mta.queue.transaction import Encoded, Transaction, encode
from mta.queue.verify.truth import Truth


@dataclass(slots=True)
class Settled:
    """What is to be told in the journal, and what is to be copied to its end."""

    transactions: list[Encoded] = field(default_factory=list)
    moves: list[tuple[int, BodyRef]] = field(default_factory=list)


class Settler:
    """Settles one shard in its new index."""

    def __init__(self, rebuild: Rebuild, journal: Path, quarantine: Quarantine, files: FileOps, time_us: int) -> None:
        self.requeued = 0  # recipients
        self._rebuild = rebuild
        self._index: Index = rebuild.index
        self._journal = journal
        self._quarantine = quarantine
        self._files = files
        self._time_us = time_us
        self._settled = Settled()

    def accounts(self, accounts: Accounts) -> None:
        """Even out the accounts. Raises OSError and lmdb.Error."""
        effects = Effects()
        for (message_id, number), addresses in accounts.ended.items():
            if self._rebuild.is_doubtful(message_id):
                self._end(message_id, number, addresses, effects)
        self._rebuild.take(effects)
        if accounts.lost:
            self._find(accounts)
        for message_id, ended in accounts.unannounced.items():
            self._announce(message_id, ended, accounts.ends.get(message_id, {}))

    def contents(self, suspects: set[int] | None, damaged: set[int]) -> Settled:
        """Look at the contents of `suspects` (None: of all messages), and at those in the segments `damaged`.

        Gives all that is to be told in the end. Raises OSError and lmdb.Error.
        """
        bad: list[int] = []
        later: list[tuple[int, int]] = []
        for held in Truth(self._index, self._rebuild.state, Effects(), "", set()).messages():
            place = held.place
            if held.message.id in self._rebuild.replayed:
                later += [one.key for one in held.deliveries if one.due_us > self._time_us and not one.maybe_duplicate]
            if suspects is None or held.message.id in suspects or place.segment in damaged:
                if self._read(place)[1]:
                    if place.segment in damaged:
                        self._settled.moves.append((held.message.id, place))
                else:
                    bad.append(held.message.id)
        self._suspect(later)
        for message_id in bad:
            self._quarantine_message(message_id)
        return self._settled

    # -- accounts ------------------------------------------------------------------------------------------------------

    def _end(self, message_id: int, number: int, addresses: Counter[int], effects: Effects) -> None:
        """These recipients have their end already."""
        _, deliveries = self._index.message(message_id)
        left = Counter(addresses)
        for delivery in deliveries:
            if delivery.index != number:
                continue
            kept = []
            for recipient in delivery.recipients:
                if left[hash(recipient.address)] > 0:
                    left[hash(recipient.address)] -= 1
                else:
                    kept.append(recipient)
            self._quarantine.note(f"message {format_id(message_id)}/{number}",
                                  f"{len(delivery.recipients) - len(kept)} of its recipients had their end, as the "
                                  "event files say, and leave the queue")
            delivery.recipients = kept
            if kept:
                effects.update(_state(delivery, born=False))
            else:
                effects.remove(delivery.key)

    def _find(self, accounts: Accounts) -> None:
        """Put back into the queue what is in the journal; close the accounts of the others."""
        known = self._rebuild.find(set(accounts.lost))
        by_message: dict[int, list[DeliveryState]] = {}
        for key, state in known.deliveries.items():
            if state is not None and state.born:
                by_message.setdefault(key[0], []).append(state)
        places = self._rebuild.places(set(accounts.lost))
        for message_id, addresses in accounts.lost.items():
            lost = Counter(addresses)
            new = known.messages.get(message_id)
            if new is not None and self._read(new.body)[1]:
                self._requeue(new, by_message.get(message_id, []), lost)
            if lost.total():
                self._close(message_id, list(lost.elements()), accounts.facts[message_id],
                            places.get(message_id, (False, None))[1])

    def _requeue(self, new: NewMessage, states: list[DeliveryState], lost: Counter[str]) -> None:
        """Queue what is in `lost` again, and take it out of that."""
        try:
            message = unpack_message(message_value(new.record, new.body, new.left), new.id)
            found = [unpack_delivery(delivery_value(state.record, 0, state.due_us, state.recipients), message,
                                     state.key[1]) for state in states]
        except UNREADABLE:
            return
        known, queued = self._index.message(new.id)
        by_index = {delivery.index: delivery for delivery in queued}
        count = 0
        for delivery in found:
            back = []
            for recipient in delivery.recipients:
                if lost[recipient.address] > 0:
                    lost[recipient.address] -= 1
                    back.append(recipient)
            if not back:
                continue
            count += len(back)
            delivery.recipients = back
            delivery.maybe_duplicate = True
            there = by_index.setdefault(delivery.index, delivery)
            if there is not delivery:
                there.recipients.extend(back)
                there.maybe_duplicate = True
        if not count:
            return
        self._quarantine.note(f"message {format_id(new.id)}", f"{count} of its recipients had no end and were not "
                              "queued: they are queued again, as possible duplicates")
        self.requeued += count
        self._rebuild.replayed.add(new.id)
        gone = Effects()
        for delivery in queued:
            gone.remove(delivery.key)
        self._rebuild.take(gone)
        again = Effects()
        body = new.body if known is None or known.body is None else known.body
        again.accept(NewMessage(new.id, pack_message(known or message), len(by_index), body),
                     [_state(delivery, born=True) for delivery in by_index.values()])
        self._rebuild.take(again)

    def _close(self, message_id: int, addresses: list[str], facts: dict[str, Any], place: BodyRef | None) -> None:
        """Recipients that were accepted, and of whom nothing else is known, have their end."""
        known, _ = self._index.message(message_id)
        if known is not None:
            place = known.body
        content, whole = (b"", False) if place is None else self._read(place)
        recipients = [Recipient(address) for address in addresses]
        message = Message(message_id, str(facts["sender"]), message_id >> SHARD_BITS, None)
        queue = str(facts["queue"])
        delivery = Delivery(message, 0, queue, queue, recipients, self._time_us)
        why = "it was accepted, is not in the queue and has no end"
        where = self._quarantine.message(f"{format_id(message_id)}-lost", {
            "message": format_id(message_id), "sender": message.sender, "recipients": addresses, "queue": queue,
            "message_id": facts.get("message_id", ""), "origin": facts.get("origin", ""), "size": facts.get("size", 0),
            "content_is": _state_of(content, whole),
        }, content, why)
        self._tell(Transaction(events=[events.quarantined(message, [delivery], text=f"{why}; see {where}",
                                                          time_us=self._time_us)]))

    def _announce(self, message_id: int, ended: list[str], facts: dict[str, Any]) -> None:
        """Write the event `received` of a message that has none."""
        known, queued = self._index.message(message_id)
        message = known or Message(
            message_id, str(facts.get("sender", "")), message_id >> SHARD_BITS, None, size=int(facts.get("size", 0)),
            message_id=str(facts.get("message_id", "")), origin="repair")
        one = Delivery(message, 0, str(facts.get("queue", "")), "", [Recipient(address) for address in ended], 0)
        deliveries = [delivery for delivery in (one, *queued) if delivery.recipients]
        if deliveries:
            self._quarantine.note(f"message {format_id(message_id)}", "its event `received` is missing, and is written")
            self._tell(Transaction(events=[events.received(message, deliveries)]))

    # -- contents ------------------------------------------------------------------------------------------------------

    def _suspect(self, keys: list[tuple[int, int]]) -> None:
        """These are due later, so that the state of the shard does not make them possible duplicates."""
        effects = Effects()
        for message_id, number in keys:
            for delivery in self._index.message(message_id)[1]:
                if delivery.index == number:
                    delivery.maybe_duplicate = True
                    effects.update(_state(delivery, born=False))
        self._rebuild.take(effects)

    def _quarantine_message(self, message_id: int) -> None:
        """Its content is damaged: nothing of it can be sent."""
        message, deliveries = self._index.message(message_id)
        assert message is not None
        content = b"" if message.body is None else self._read(message.body)[0]
        state = _state_of(content, False)
        why = f"its content is {state}"
        where = self._quarantine.message(format_id(message_id), {
            "message": format_id(message_id), "sender": message.sender,
            "recipients": [one.address for delivery in deliveries for one in delivery.recipients],
            "deliveries": [{"queue": delivery.queue, "attempts": delivery.attempts,
                            "recipients": [[one.address, one.notify, one.orcpt] for one in delivery.recipients]}
                           for delivery in deliveries],
            "message_id": message.message_id, "origin": message.origin, "size": message.size, "ret": message.ret,
            "envid": message.envid, "tenant": message.tenant, "campaign": message.campaign, "pool": message.pool,
            "content_is": state,
        }, content, why)
        self._tell(Transaction(removes=deliveries, events=[
            events.quarantined(message, deliveries, text=f"{why}; see {where}", time_us=self._time_us)]))

    def _tell(self, transaction: Transaction) -> None:
        self._settled.transactions.append(encode(transaction))

    def _read(self, place: BodyRef) -> tuple[bytes, bool]:
        return read_content(self._journal, place, self._files)


def read_content(journal: Path, place: BodyRef, files: FileOps) -> tuple[bytes, bool]:
    """What is readable of a content, and whether that is all of it. Raises OSError when it cannot be looked at."""
    content = b""
    try:
        fd = files.open(segment_path(journal, place.segment), os.O_RDONLY)
        try:
            content = files.pread(fd, place.length, place.offset)
        finally:
            files.close(fd)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EIO):
            raise
    return content, len(content) == place.length and content_crc(content) == place.crc


def _state(delivery: Delivery, *, born: bool) -> DeliveryState:
    history = delivery.history
    return DeliveryState(delivery.key, delivery.queue, delivery.due_us, len(delivery.recipients),
                         pack_delivery(delivery), history[-1] if history else None, born)


def _state_of(content: bytes, whole: bool) -> str:
    return "whole" if whole else "damaged" if content else "missing"


