"""Message ids: 64 bits, unique over all shards and all restarts, increasing within a shard.

The upper 54 bits are a *sequence*, the microseconds since the epoch at which the message was accepted, made strictly
increasing; the lower 10 bits are the shard. In text an id is 13 characters of Crockford's base32 in lower case, which
sort like the numbers. The last two characters of an id are its shard.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

SHARD_BITS: Final = 10
MAX_SHARDS: Final = 1 << SHARD_BITS

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS: Final = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
_VALUES: Final = {character: value for value, character in enumerate(_ALPHABET)}
_ID_LENGTH: Final = 13


def format_id(message_id: int) -> str:
    """The text form of an id, 13 characters. Hot path: twice per message."""
    pairs = _PAIRS
    return (
        _upper(message_id >> 30)
        + pairs[message_id >> 20 & 1023]
        + pairs[message_id >> 10 & 1023]
        + pairs[message_id & 1023]
    )


@functools.lru_cache(maxsize=64)
def _upper(bits: int) -> str:
    """The first seven characters. The ids of a second have the same ones, or two of them."""
    return _ALPHABET[bits >> 30] + _PAIRS[bits >> 20 & 1023] + _PAIRS[bits >> 10 & 1023] + _PAIRS[bits & 1023]


def parse_id(text: str) -> int:
    """The id that `text` stands for, in either case.

    Raises ValueError, with a text for the operator, when it is not an id.
    """
    value = 0
    if len(text) != _ID_LENGTH:
        raise ValueError(f"{text!r} is no message id: those have {_ID_LENGTH} characters")
    for character in text.lower():
        try:
            value = value << 5 | _VALUES[character]
        except KeyError:
            raise ValueError(f"{text!r} is no message id: {character!r} does not occur in one") from None
    if value >> 64:
        raise ValueError(f"{text!r} is no message id: the number is too large")
    return value


def shard_of(message_id: int) -> int:
    """The shard that accepted the message."""
    return message_id & (MAX_SHARDS - 1)


class IdSource:
    """Gives out the ids of one shard, each larger than all before, whatever the clock does.

    `last` is the largest id that the shard may have used (0: none), `clock_us` the wall clock in microseconds.
    """

    def __init__(self, shard: int, last: int, clock_us: Callable[[], int]) -> None:
        if not 0 <= shard < MAX_SHARDS:
            raise ValueError(f"shard {shard} is not in 0..{MAX_SHARDS - 1}")
        self._shard = shard
        self._last_sequence = last >> SHARD_BITS
        self._clock_us = clock_us

    @property
    def last(self) -> int:
        """The largest id so far."""
        return self._last_sequence << SHARD_BITS | self._shard

    def next(self) -> int:
        """A new id."""
        sequence = self._clock_us()
        if sequence <= self._last_sequence:
            sequence = self._last_sequence + 1
        self._last_sequence = sequence
        return sequence << SHARD_BITS | self._shard
