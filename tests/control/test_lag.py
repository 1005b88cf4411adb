"""How late the event loop is, by a given clock."""

from __future__ import annotations

from mta.control.lag import INTERVAL_S, WINDOW, LoopLag


class Clock:
    """Stands still until told."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_lateness_is_measured_from_when_the_look_was_due() -> None:
    """A look on time is not late at all; early ones count as on time; the worst hundredth is not in the p99."""
    clock = Clock()
    lag = LoopLag(clock)
    assert lag.late_ms(0.99) == 0.0
    lag._wait()
    for late_s in [0.0] * 150 + [0.004] * 47 + [-0.001, 0.5, 0.25]:
        clock.now_s += INTERVAL_S + late_s
        lag.look()
    assert round(lag.late_ms(0.5), 6) == 0.0
    assert round(lag.late_ms(0.9), 6) == 4.0
    assert round(lag.late_ms(0.99), 6) == 250.0
    assert round(lag.late_ms(1.0), 6) == 500.0


def test_only_the_last_minute_counts() -> None:
    """What was before is forgotten."""
    clock = Clock()
    lag = LoopLag(clock)
    lag._wait()
    clock.now_s += INTERVAL_S + 5.0
    lag.look()
    for _ in range(WINDOW):
        clock.now_s += INTERVAL_S
        lag.look()
    assert round(lag.late_ms(1.0), 6) == 0.0
