"""The wishes of a sender in the record of a message: added later, so records without them are read as before."""

from __future__ import annotations

import pytest

from mta.queue.encoding import message_value, pack, pack_message, unpack, unpack_message
from mta.queue.records import BodyRef, Message, Wishes

BODY = BodyRef(1, 2, 3, 4)


def message(wishes: Wishes | None) -> Message:
    """A message with these."""
    return Message(7, "a@example.com", 10, None, body=BODY, size=3, deliveries=1, wishes=wishes)


def test_wishes_come_back() -> None:
    """What is packed is unpacked, and without wishes the record is as it was before there were any."""
    for wishes in (None, Wishes(), Wishes(5, "for;60", 9, "RT", -3)):
        assert unpack_message(message_value(pack_message(message(wishes)), BODY, 1), 7) == message(wishes)
    assert len(unpack(pack_message(message(None)))) == 14


def test_records_of_other_versions() -> None:
    """An older record has no wishes, a newer one may have more of them, and more behind them."""
    old = unpack(pack_message(message(None)))
    assert unpack_message(message_value(pack(old), BODY, 1), 7).wishes is None
    new = pack((*old, (5, "for;60"), "something new"))
    assert unpack_message(message_value(new, BODY, 1), 7).wishes == Wishes(5, "for;60")
    newer = pack((*old, (5, "for;60", 0, "", None, "something new")))
    assert unpack_message(message_value(newer, BODY, 1), 7).wishes == Wishes(5, "for;60")


def test_damaged_records() -> None:
    """What stands where the wishes should and is none makes the record bad, and nothing worse."""
    with pytest.raises(ValueError, match="wishes"):
        unpack_message(message_value(pack((*unpack(pack_message(message(None))), 5)), BODY, 1), 7)
