"""Rates over all workers: the levels of buckets in the table of limits, and what this worker has in hand of them.

`mta.delivery.rates` is the arithmetic. In hand are places in line, so that asking too early costs no look at the table,
and, where the rate is high and the worker has had to wait for it, some further messages that were taken together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import lmdb

from mta.delivery import limit_table
from mta.delivery.rates import Bucket, Level, is_at_rest, take

AGAIN_S: Final = 1.0  # when the table could not be written
FORGIVEN_S: Final = 1.0  # a place for which one comes later than this, or than the next one's time, is lost
HANDS_KEPT: Final = 20_000
SWEEP: Final = 4  # old levels looked at for each new one, so that their number stays in proportion to those in use
UNUSED_S: Final = 60.0  # one that has been at rest so long is removed

log = logging.getLogger(__name__)


class _Hand:
    """What this worker has in hand of one set of buckets."""

    __slots__ = ("at", "batch", "buckets", "count", "good_until", "left", "line", "places", "spacings", "used")

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self.buckets = buckets
        self.spacings = [bucket.spacing for bucket in buckets]
        self.places: set[str] = set()  # buckets in which we have a place
        self.at = 0.0  # when it is due
        self.count = 1  # for how many it is
        self.line = 0.0  # the end of the line when we had joined it
        self.left = 0  # taken and not used
        self.good_until = 0.0  # they are
        self.used: list[float] = []  # the levels after we last took some
        self.batch = 1  # how many to take at once

    def is_for(self, buckets: Sequence[Bucket]) -> bool:
        """Whether these are the same, with the same rates."""
        return self.buckets is buckets or self.spacings == [bucket.spacing for bucket in buckets]


class SharedRates:
    """Of one worker; used from one thread. `Limits` says what the methods promise."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._hands: dict[tuple[str, ...], _Hand] = {}
        self._swept = b""

    def reserve(self, buckets: Sequence[Bucket], count: int) -> float:
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
            return 0.0
        if hand.at > now:
            return hand.at
        if hand.places and now - hand.at > max(FORGIVEN_S, *hand.spacings):
            hand.places.clear()
        waited = bool(hand.places)
        amount = max(count, hand.count if waited else hand.batch)
        try:
            with self._env.begin(write=True) as txn:
                at = self._take(txn, hand, buckets, amount, now)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return now + AGAIN_S
        if at > now:
            hand.at, hand.count, hand.left = at, amount, 0
            if not waited:
                hand.batch = min(hand.batch * 2, *[bucket.batch for bucket in buckets])
            return at
        if not waited and hand.batch > 1:
            hand.batch //= 2
        hand.left = amount - count
        if hand.left:
            hand.good_until = now + min([bucket.keep for bucket in buckets])
        return 0.0

    def _take(self, txn: Any, hand: _Hand, buckets: Sequence[Bucket], amount: int, now: float) -> float:
        keys, levels, created = _levels(txn, buckets, now)
        at, holding = take(buckets, levels, amount, hand.places, now)
        if holding is None:
            hand.used = [level.used for level in levels]
            if hand.places:
                hand.places.clear()
            for key, bucket, level in zip(keys, buckets, levels, strict=True):
                txn.put(key, level.encode(bucket))
            if created:
                self._sweep(txn, created * SWEEP, now)
        else:
            number = buckets.index(holding)
            hand.places.add(holding.name)
            hand.line = levels[number].line
            txn.put(keys[number], levels[number].encode(holding))
        return at

    def use_late(self, buckets: Sequence[Bucket]) -> bool:
        """See `Limits.use_late`."""
        if not buckets:
            return True
        hand = self._hands.get(tuple([bucket.name for bucket in buckets]))
        if hand is None or not hand.is_for(buckets) or len(hand.used) != len(buckets):
            return False
        now = time.monotonic()
        try:
            with self._env.begin(write=True) as txn:
                keys, levels, _ = _levels(txn, buckets, now)
                if [level.used for level in levels] != hand.used:
                    return False
                for key, bucket, level in zip(keys, buckets, levels, strict=True):
                    level.used = max(level.used, now + bucket.spacing)
                    txn.put(key, level.encode(bucket))
                hand.used = [level.used for level in levels]
                hand.left = 0
        except lmdb.Error as error:
            limit_table.cope(self._env, error)
            return False
        return True

    def charge(self, buckets: Sequence[Bucket]) -> None:
        """See `Limits.charge`."""
        now = time.monotonic()
        try:
            with self._env.begin(write=True) as txn:
                keys, levels, created = _levels(txn, buckets, now)
                for key, bucket, level in zip(keys, buckets, levels, strict=True):
                    level.used = max(level.used, now + bucket.spacing)
                    txn.put(key, level.encode(bucket))
                if created:
                    self._sweep(txn, created * SWEEP, now)
        except lmdb.Error as error:
            limit_table.cope(self._env, error)

    def hand_back(self, buckets: Sequence[Bucket], count: int) -> None:
        """See `Limits.hand_back`."""
        hand = self._hands.pop(tuple([bucket.name for bucket in buckets]), None)
        if hand is None or not buckets or not hand.is_for(buckets) or not (hand.places or hand.used):
            return
        now = time.monotonic()
        try:
            with self._env.begin(write=True) as txn:
                for number, bucket in enumerate(buckets):
                    key = limit_table.LEVEL + limit_table.key_of(bucket.name)
                    record = txn.get(key)
                    if record is None:
                        continue
                    level = Level.decode(record, bucket, now)
                    if hand.places:
                        if bucket.name in hand.places and level.line == hand.line:
                            level.line -= hand.count * bucket.spacing
                    elif level.used == hand.used[number]:
                        level.used -= (count + hand.left) * bucket.spacing
                    txn.put(key, level.encode(bucket))
        except lmdb.Error as error:
            limit_table.cope(self._env, error)

    def _new_hand(self, key: tuple[str, ...], buckets: Sequence[Bucket], now: float) -> _Hand:
        """A place that was had at other rates is moved as the line is (`Level.decode`): else each change would send all
        who wait to the end of a line in which nobody stands any more."""
        if len(self._hands) >= HANDS_KEPT:
            self._hands = {name: hand for name, hand in self._hands.items() if hand.at > now}
        old, hand = self._hands.get(key), _Hand(buckets)
        if old is not None and old.places:
            hand.places, hand.count, hand.at = old.places, old.count, old.at
            if old.at > now:
                ratios = [new / before for new, before, bucket in zip(
                    hand.spacings, old.spacings, buckets, strict=True) if bucket.name in old.places]
                hand.at = now + (old.at - now) * min(ratios)  # too early is no harm
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
