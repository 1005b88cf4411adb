"""What the engine makes of an answer of the shared rates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mta.delivery.pacing import Pacing


class Rates:
    """Gives these answers, one after the other."""

    def __init__(self, *answers: float) -> None:
        self.answers = list(answers)

    def reserve(self, buckets: object) -> float:
        return self.answers.pop(0)


def test_a_place_whose_time_has_come_is_no_permission() -> None:
    """Between the answer and a look at the clock time goes on: nothing was taken, so it is asked again."""
    timers: list[float] = []
    engine: Any = SimpleNamespace(
        limits=Rates(99.9999, 0.0, 99.9999, 0.0), monotonic=lambda: 100.0,
        hub=SimpleNamespace(later=lambda seconds, *_: timers.append(seconds)))
    path: Any = SimpleNamespace(message_rates=(1,), connection_rates=(1,), not_before_s=0.0, open_not_before_s=0.0,
                                blocked=False)
    pacing = Pacing(engine)
    assert [pacing.may_send(path), pacing.may_send(path)] == [False, True]
    assert [pacing.may_open(path), pacing.may_open(path)] == [False, True]
    assert len(timers) == 2
    assert min(timers) >= 0
