"""When a deferred delivery is tried again."""

from __future__ import annotations

import random

from mta.config.schema import Retry


class RetryClock:
    """Waits by a retry schedule: a list, or exponential with a cap, both with jitter.

    Jitter spreads the mail of an outage: without it all of it would come due together, again and again.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()

    def wait_s(self, retry: Retry, attempts: int) -> float:
        """Seconds to wait after failed attempt number `attempts` (1 is the first)."""
        if retry.schedule:
            base = float(retry.schedule[min(attempts, len(retry.schedule)) - 1])
        else:
            # The exponent is bounded so that a delivery with thousands of attempts cannot overflow the float.
            base = min(retry.first * retry.factor ** min(attempts - 1, 64), retry.cap)
        return base * (1.0 + retry.jitter * self._random.uniform(-1.0, 1.0))

    def next_us(self, retry: Retry, attempts: int, now_us: int) -> int:
        """When the attempt after number `attempts` is due."""
        return now_us + int(self.wait_s(retry, attempts) * 1_000_000)

    def after_us(self, retry: Retry, wait_s: float, now_us: int) -> int:
        """When it is due if it is to wait for `wait_s`: that long at least, as who comes a moment too early is refused
        again, and up to the jitter longer; never later than the schedule can say."""
        longest_s = float(max(retry.schedule) if retry.schedule else retry.cap)
        wait_s = min(wait_s, longest_s) * (1.0 + retry.jitter * self._random.random())
        return now_us + int(wait_s * 1_000_000)
