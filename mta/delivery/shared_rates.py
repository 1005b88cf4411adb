"""Rates over all workers: the levels of buckets in the table of limits, and what this worker has in hand of them.

`mta.delivery.rates` is the arithmetic. In hand are places in line, one more where urgent mail waits besides, so that
asking too early costs no look at the table, and, where the rate is high and the worker has had to wait for it, some
further messages that were taken together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import lmdb

from mta.delivery import limit_table
from mta.delivery.rates import FORGIVEN_S, Bucket, Level, Place, is_at_rest, take

AGAIN_S: Final = 1.0  # when the table could not be written
HANDS_KEPT: Final = 20_000
SWEEP: Final = 4  # old levels looked at for each new one, so that their number stays in proportion to those in use
UNUSED_S: Final = 60.0  # one that has been at rest so long is removed

log = logging.getLogger(__name__)


class _Hand:
    """What this worker has in hand of one set of buckets."""

    __slots__ = ("amount", "asked", "batch", "buckets", "good_until", "last", "left", "place", "spacings", "taken",
                 "urgent", "used")

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self.buckets = buckets
        self.spacings = [bucket.spacing for bucket in buckets]
        self.place = Place()
        self.urgent: Place | None = None  # one among the urgent ones besides, once such mail had to wait
        self.last: Place | None = None  # the one that was given last; None: some were taken
        self.asked = 0.0  # when some were taken, or a place was given, last
        self.taken = 0.0  # when some were taken from the table
        self.amount = 0  # so many
        self.left = 0  # taken and not used
        self.good_until = 0.0  # they are
        self.used: list[float] = []  # the levels after we last took some
        self.batch = 1  # how many to take at once

    def is_for(self, buckets: Sequence[Bucket]) -> bool:
        """Whether these are the same, with the same rates."""
        return self.buckets is buckets or self.spacings == [bucket.spacing for bucket in buckets]

    def waits(self, now: float) -> bool:
        """Whether it has a place that is not due yet."""
        return self.place.at > now or (self.urgent is not None and self.urgent.at > now)

    def place_for_urgent(self) -> Place:
        """The one by which urgent mail asks. It leaves the other one alone, for which other mail has waited, perhaps
        that of another path: else it would have that part of the rate, too."""
        if self.urgent is None:
            self.urgent = Place(urgent=True)
        return self.urgent


class SharedRates:
    """Of one worker; used from one thread. `Limits` says what the methods promise."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._hands: dict[tuple[str, ...], _Hand] = {}
        self._swept = b""

    def reserve(self, buckets: Sequence[Bucket], count: int, urgent: bool = False) -> float:
        """See `Limits.reserve`. Hot path (`bench/limits.py`)."""
        if not buckets:
            return 0.0
        now = time.monotonic()
        key = tuple([bucket.name for bucket in buckets])
        hand = self._hands.get(key)
        if hand is None or not hand.is_for(buckets):
            hand = self._new_hand(key, buckets, now)
        if hand.left >= count and now < hand.good_until:
            hand.left -= count
            hand.asked = now
            return 0.0
        place = hand.place_for_urgent() if urgent else hand.place
        if place.at > now:
            return place.at
        if place.turns and now - place.at > max(FORGIVEN_S, *hand.spacings):
            place.turns.clear()
        waited = bool(place.turns)
        amount = max(count, place.count if waited else hand.batch)
        try:
            with self._env.begin(write=True) as txn:
                now = time.monotonic()  # others may have had the table for long: what is taken is taken now
                taken = self._take(txn, hand, place, buckets, amount, now)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return now + AGAIN_S
        hand.asked = now
        if not taken:
            hand.left, hand.last = 0, place
            if not waited:
                hand.batch = min(hand.batch * 2, *[bucket.batch for bucket in buckets])
            return place.at
        if not waited and hand.batch > 1:
            hand.batch //= 2
        hand.left, hand.last = amount - count, None
        hand.taken, hand.amount = now, amount
        if hand.left:
            hand.good_until = min([used - amount * bucket.spacing + bucket.keep
                                   for used, bucket in zip(hand.used, buckets, strict=True)])
        return 0.0

    def _take(self, txn: Any, hand: _Hand, place: Place, buckets: Sequence[Bucket], amount: int, now: float) -> bool:
        keys, levels, created = _levels(txn, buckets, now)
        holding = take(buckets, levels, amount, place, now)
        if holding is not None:
            number = buckets.index(holding)
            txn.put(keys[number], levels[number].encode(holding))
            return False
        hand.used = [level.used for level in levels]
        for key, bucket, level in zip(keys, buckets, levels, strict=True):
            txn.put(key, level.encode(bucket))
        if created:
            self._sweep(txn, created * SWEEP, now)
        return True

    def use_late(self, buckets: Sequence[Bucket], since: float) -> bool:
        """See `Limits.use_late`."""
        if not buckets:
            return True
        hand = self._hands.get(tuple([bucket.name for bucket in buckets]))
        if hand is None or not hand.is_for(buckets) or len(hand.used) != len(buckets) or hand.taken > since:
            return False
        try:
            with self._env.begin(write=True) as txn:
                now = time.monotonic()
                keys, levels, _ = _levels(txn, buckets, now)
                if [level.used for level in levels] != hand.used:
                    return False
                for key, bucket, level in zip(keys, buckets, levels, strict=True):
                    level.used = max(level.used, now + hand.amount * bucket.spacing)
                    txn.put(key, level.encode(bucket))
                hand.used = [level.used for level in levels]
                hand.left = 0
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return False
        return True

    def charge(self, buckets: Sequence[Bucket]) -> None:
        """See `Limits.charge`."""
        try:
            with self._env.begin(write=True) as txn:
                now = time.monotonic()
                keys, levels, created = _levels(txn, buckets, now)
                for key, bucket, level in zip(keys, buckets, levels, strict=True):
                    level.used = max(level.used, now + bucket.spacing)
                    txn.put(key, level.encode(bucket))
                if created:
                    self._sweep(txn, created * SWEEP, now)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)

    def hand_back(self, buckets: Sequence[Bucket], count: int, since: float) -> None:
        """See `Limits.hand_back`."""
        key = tuple([bucket.name for bucket in buckets])
        hand = self._hands.get(key)
        if hand is None or not buckets or hand.asked > since:
            return
        del self._hands[key]
        if not hand.is_for(buckets):
            return
        if hand.place.turns and hand.last is not hand.place:  # that was for other mail, and is kept
            self._hands[key] = _Hand(buckets)
            self._hands[key].place = hand.place
        if hand.last is None and not hand.used:
            return
        now = time.monotonic()
        try:
            with self._env.begin(write=True) as txn:
                for number, bucket in enumerate(buckets):
                    key_of_level = limit_table.LEVEL + limit_table.key_of(bucket.name)
                    record = txn.get(key_of_level)
                    if record is None:
                        continue
                    level = Level.decode(record, bucket, now)
                    if hand.last is not None:
                        hand.last.leave(bucket, level)
                    elif level.used == hand.used[number]:
                        level.used -= (count + hand.left) * bucket.spacing
                    txn.put(key_of_level, level.encode(bucket))
        except lmdb.Error as error:
            limit_table.cope(self._env, error)

    def _new_hand(self, key: tuple[str, ...], buckets: Sequence[Bucket], now: float) -> _Hand:
        """A place that was had at other rates is moved as the line is (`Level.decode`): else each change would send all
        who wait to the end of a line in which nobody stands any more."""
        if len(self._hands) >= HANDS_KEPT:
            self._hands = {name: hand for name, hand in self._hands.items() if hand.waits(now)}
        old, hand = self._hands.get(key), _Hand(buckets)
        if old is not None:
            hand.place, hand.urgent, hand.last, hand.asked = old.place, old.urgent, old.last, old.asked
            for place in (old.place, old.urgent):
                if place is not None and place.turns and place.at > now:
                    ratios = [new / before for new, before, bucket in zip(
                        hand.spacings, old.spacings, buckets, strict=True) if bucket.name in place.turns]
                    place.move(now + (place.at - now) * min(ratios))  # too early is no harm
                    self._move(buckets, now)
        self._hands[key] = hand
        return hand

    def _move(self, buckets: Sequence[Bucket], now: float) -> None:
        """Have what waits wait at these rates from now on."""
        try:
            with self._env.begin(write=True) as txn:
                for bucket in buckets:
                    key = limit_table.LEVEL + limit_table.key_of(bucket.name)
                    record = txn.get(key)
                    if record is not None:
                        txn.put(key, Level.decode(record, bucket, now).encode(bucket))
        except lmdb.Error as error:
            limit_table.cope(self._env, error)

    def _sweep(self, txn: Any, count: int, now: float) -> None:
        """Remove levels that nobody has used for long, some at a time."""
        piece, position = limit_table.records(txn, limit_table.LEVEL, self._swept, count)
        for key, record in piece:
            if is_at_rest(record, now - UNUSED_S):
                txn.delete(key)
        self._swept = position or b""


def _levels(txn: Any, buckets: Sequence[Bucket], now: float) -> tuple[list[bytes], list[Level], int]:
    """The levels of these buckets, the keys of their records, and how many have none yet. Hot path."""
    keys = [limit_table.LEVEL + limit_table.key_of(bucket.name) for bucket in buckets]
    levels = []
    created = 0
    for key, bucket in zip(keys, buckets, strict=True):
        record = txn.get(key)
        if record is None:
            created += 1
            levels.append(Level())
        else:
            levels.append(Level.decode(record, bucket, now))
    return keys, levels, created
