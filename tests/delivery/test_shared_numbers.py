"""Numbers by names that strangers chose, which all workers keep together in a fixed room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from mta.access.attempts import Attempts
from mta.delivery import limit_table, shared_numbers
from mta.delivery.limits import Limits
from mta.delivery.shared_numbers import WIDTH, add, find, read, write


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[Limits]]:
    """The table as two workers see it. LMDB opens one only once in a process, so they share the environment."""
    table = Limits(str(tmp_path), 0)
    other = shared_numbers.SharedNumbers(table.table)
    yield [table, _Other(other)]
    table.close()


class _Other:
    """What the second worker has of it."""

    def __init__(self, numbers: shared_numbers.SharedNumbers) -> None:
        self.numbers = numbers


def test_failed_logins_count_over_all_workers(two: list[Limits]) -> None:
    """Two at one worker and one at the other close an address that may fail three times, at both."""
    here, there = (Attempts(3, 100, 60, 0, one.numbers) for one in two)
    for limits in (here, there, here):
        assert not here.address_is_closed("192.0.2.1", 0)
        assert not there.address_is_closed("192.0.2.1", 0)
        limits.failed("acme", "192.0.2.1", 0)
    assert here.address_is_closed("192.0.2.1", 1)
    assert there.address_is_closed("192.0.2.1", 1)
    assert not there.address_is_closed("192.0.2.1", 60)


def test_a_user_is_known_at_all_workers(two: list[Limits]) -> None:
    """Who has logged in at one worker is not shut out at another one."""
    here, there = (Attempts(100, 2, 60, 0, one.numbers) for one in two)
    here.succeeded("acme", "192.0.2.1", 0)
    for n in range(2):
        here.failed("acme", f"198.51.100.{n}", 1)
    assert there.user_is_closed("acme", "198.51.100.7", 2)
    assert not there.user_is_closed("acme", "192.0.2.1", 2)


def test_a_key_that_could_not_be_written_is_not_used(tmp_path: Path) -> None:
    """When the first write fails, the worker takes the key that another one has written since."""
    table = Limits(str(tmp_path), 0)

    class Unwilling:
        """Loses the first transaction."""

        willing = False

        @contextmanager
        def begin(self, **options: bool) -> Iterator[lmdb.Transaction]:
            with table.table.begin(**options) as transaction:
                yield transaction
                if not self.willing:
                    self.willing = True
                    raise lmdb.MapResizedError

        def set_mapsize(self, size: int) -> None:
            """As an environment has it."""

    here, there = shared_numbers.SharedNumbers(Unwilling()), shared_numbers.SharedNumbers(table.table)
    here.add("a", "192.0.2.1", 0, 60)
    there.add("a", "192.0.2.1", 0, 60)
    assert here.add("a", "192.0.2.1", 0, 60) == 2
    table.close()


def test_a_number_ends_with_the_time_of_the_first() -> None:
    """More of them do not make it longer, unless they are to renew it."""
    entries: list[shared_numbers.Entry] = []
    assert [add(entries, 7, now_s, now_s + 10, False) for now_s in (0.0, 5.0)] == [1, 2]
    assert find(entries, 7, 9.9) == (2, 10.0)
    assert find(entries, 7, 10.0) == (0, 0.0)
    assert add(entries, 7, 9.0, 19.0, True) == 3
    assert find(entries, 7, 10.0) == (3, 19.0)
    assert read(write(entries)) == entries


def test_a_flood_of_names_does_not_push_out_who_comes_often() -> None:
    """A full cell gives up what is over, then the smallest number, then what ends first."""
    entries = [(1, 5, 50.0), (2, 1, 40.0), (3, 1, 30.0), (4, 1, 5.0)]
    add(entries, 10, 10.0, 60.0, False)
    assert {entry[0] for entry in entries} == {1, 2, 3, 10}
    for mark in range(11, 100):
        add(entries, mark, 10.0, 60.0, False)
        assert len(entries) == WIDTH
    assert find(entries, 1, 10.0) == (5, 50.0)


def test_the_room_is_fixed(two: list[Limits], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names are made up, there are so many records, each so long."""
    monkeypatch.setattr(shared_numbers, "CELLS", 16)
    numbers = two[0].numbers
    for n in range(1000):
        numbers.add("a", f"name {n}", 0.0, 10.0)
    records = [one for piece in limit_table.walk(two[0].table, limit_table.NUMBER, 100) for one in piece]
    assert len(records) == 16 + 1
    assert all(len(record) <= 100 for _, record in records)
    assert numbers.get("a", "name 999", 1.0) == (1, 10.0)
