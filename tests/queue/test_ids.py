"""Message ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.queue.ids import MAX_SHARDS, IdSource, format_id, parse_id, shard_of

IDS = st.integers(0, (1 << 64) - 1)


@given(IDS)
def test_text_form_can_be_read_back(number: int) -> None:
    """An id survives the way to text and back, in either case."""
    text = format_id(number)
    assert len(text) == 13
    assert parse_id(text) == parse_id(text.upper()) == number


@given(IDS, IDS)
def test_text_sorts_like_the_number(one: int, other: int) -> None:
    """Sorting ids as text sorts them by time."""
    assert (format_id(one) < format_id(other)) == (one < other)


@pytest.mark.parametrize(
    "text", ["", "0", "00000000000000", "000000000000u", "zzzzzzzzzzzzz", "0000 00000000", "é" * 13])
def test_what_is_no_id_is_refused(text: str) -> None:
    """A wrong length, a character that does not occur, or a number above 64 bits is a ValueError for the operator."""
    with pytest.raises(ValueError, match="is no message id"):
        parse_id(text)


@given(st.lists(st.integers(0, 2_000_000_000_000_000), min_size=1, max_size=50), st.integers(0, MAX_SHARDS - 1), IDS)
def test_ids_increase_whatever_the_clock_does(times: list[int], shard: int, last: int) -> None:
    """Each id is larger than all before, also when the clock jumps back or stands still, and names its shard."""
    last = min(last, 1 << 62)
    clock = iter(times)
    source = IdSource(shard, last, lambda: next(clock))
    ids = [source.next() for _ in times]
    assert ids == sorted(set(ids))
    assert ids[0] > last >> 10 << 10
    assert all(shard_of(number) == shard for number in ids)


def test_an_id_tells_the_time() -> None:
    """The upper bits are the microseconds of the clock."""
    assert IdSource(3, 0, lambda: 1_700_000_000_000_000).next() >> 10 == 1_700_000_000_000_000


def test_a_shard_that_does_not_fit_is_refused() -> None:
    """There are 1024 shards at most."""
    with pytest.raises(ValueError, match="shard 1024"):
        IdSource(1024, 0, lambda: 1)
