"""Looking for old mail, apart from an engine; `tests/delivery/test_engine.py` has it in one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mta.delivery.ageing import Ageing


class Stop(BaseException):
    """The test has seen enough."""


class Broken(Ageing):
    """Meets a bug in the first shard."""

    def give_up(self, shard: int) -> None:
        """Of the first."""
        self.asked.append(shard)
        if shard == 0:
            raise RuntimeError("as asked for")

    def warn(self, shard: int) -> None:
        """Nobody."""

    asked: list[int] = []  # noqa: RUF012


def test_a_bug_does_not_end_the_sweep(caplog: pytest.LogCaptureFixture) -> None:
    """Mail is given up the next minute as well, and in the other shards at once."""
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) > 2:
            raise Stop

    engine: Any = SimpleNamespace(hub=SimpleNamespace(sleep=sleep), stores={0: None, 1: None})
    ageing = Broken(engine, lambda queue, delivery, judged: None)
    with pytest.raises(Stop):
        ageing.run()
    assert ageing.asked == [0, 1, 0, 1]
    assert caplog.text.count("RuntimeError: as asked for") == 2


def test_the_reason_is_found_where_a_bug_is_borne() -> None:
    """What is taken to be given up is concluded one by one: `conclude` bears whatever goes wrong with one."""
    engine: Any = SimpleNamespace(hub=SimpleNamespace(sleep=lambda seconds: None))  # knows no lanes: a reason fails
    concluded: list[Any] = []
    ageing = Ageing(engine, lambda queue, delivery, judged: concluded.append(delivery))
    taken: Any = [("q", "one"), ("q", "two")]
    ageing._give_up(taken, None)
    assert concluded == ["one", "two"]
