"""A tenant with limits on what leaves, and the line of lanes whose mail waits for them.

Pure state. A lane that comes upon mail of a tenant which may not send now is *held*: it stands in the tenant's line,
and passes its mail over. When something may go, lanes are *called*, the one whose turn it is first: by the priority of
the mail that it holds, with ageing as in `mta.delivery.fairness`, then by how long it has stood there. A called lane
that comes too late gets its old place back. One that does not come in time is not waited for, and may still come.

Without a line whoever asks first would have all: the same few lanes, each time, whatever waits in the others.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from mta.config.schema import Tenant
from mta.delivery import calling
from mta.delivery.fairness import PRIORITIES
from mta.delivery.lane import Lane
from mta.delivery.rates import Bucket


class _Place(NamedTuple):
    number: int
    priority: int


class Limited:
    """A tenant with limits, by the configuration or an operator."""

    __slots__ = ("_line", "_numbers", "_overtaken", "_sparse_above", "buckets", "called", "concurrency", "held", "late",
                 "looks", "name", "not_before_s", "patience_s", "rates")

    def __init__(self, name: str, options: Tenant | None, buckets: Sequence[Bucket], most: int | None,
                 rate: float | None) -> None:
        """`buckets` are the configured rates. `most` messages in flight and `rate` of them per second is what an
        operator lowered it to."""
        self.name = name
        options = options or Tenant()
        self.concurrency = min((one for one in (options.concurrency, most) if one is not None), default=None)
        self.buckets = tuple(buckets)
        self.rates = list(map(str, options.message_rate))
        if rate is not None and rate > 0:
            self.buckets += (Bucket(f"tenant:{name} held", rate, 1.0),)
            self.rates.append(f"{rate:g}/s" if rate >= 1 else f"{rate * 60:g}/min")
        spacing_s = max((bucket.spacing for bucket in self.buckets), default=0.0)
        self.patience_s = calling.patience_for(spacing_s)
        self.not_before_s = 0.0
        self.looks = False  # it is looked whether those that were called have come
        self.held: dict[Lane, _Place] = {}  # lanes that pass it over
        self.called: dict[Lane, tuple[int, float]] = {}  # lanes that may ask, their numbers, and since when; in order
        self.late: dict[Lane, int] = {}  # those of them that are not waited for any more
        self._line: tuple[list[tuple[int, Lane]], ...] = tuple([] for _ in PRIORITIES)  # of those held; heaps
        self._numbers = itertools.count()
        self._overtaken = 0  # messages sent since a lower priority that waits had one
        self._sparse_above = 64

    def take_over(self, before: Limited) -> None:
        """The line of `before`, which had other limits."""
        self.held, self.called, self.late = before.held, before.called, before.late
        self._line, self._numbers, self._overtaken = before._line, before._numbers, before._overtaken

    @property
    def at_once(self) -> int:
        """How many lanes may be called and not have come yet."""
        most = calling.at_once(min((1 / bucket.spacing for bucket in self.buckets), default=math.inf))
        return most if self.concurrency is None else max(min(most, self.concurrency), 1)

    # -- the line ------------------------------------------------------------------------------------------------

    def may_ask(self, lane: Lane) -> bool:
        """Whether `lane` was called, or nobody else is before it."""
        return (lane in self.called or lane in self.late
                or (not self.held and (not self.called or len(self.called) < self.at_once)))

    def hold(self, lane: Lane) -> None:
        """`lane` may not send: it waits at its place, or behind all others."""
        called = self.called.pop(lane, None)
        late = self.late.pop(lane, None)
        number = called[0] if called is not None else late
        lane.turns.hold(self.name)
        if lane not in self.held:
            self._stand(lane, next(self._numbers) if number is None else number,
                        min(lane.turns.best_held(self.name), len(PRIORITIES) - 1))

    def came(self, lane: Lane, priority: int) -> None:
        """Mail of that priority came to `lane`."""
        place = self.held.get(lane)
        if place is not None and priority < place.priority:
            self._stand(lane, place.number, priority)

    def _stand(self, lane: Lane, number: int, priority: int) -> None:
        self.held[lane] = _Place(number, priority)
        heapq.heappush(self._line[priority], (number, lane))

    def sent(self, lane: Lane, priority: int) -> None:
        """A message of `lane` goes."""
        self.called.pop(lane, None)
        self.late.pop(lane, None)
        if not self.held:
            self._overtaken = 0
        elif any(self._line[priority + 1:]):
            self._overtaken += 1
        elif priority:
            self._overtaken = 0

    def call(self, ageing: int, now_s: float) -> Lane | None:
        """The lane whose turn it is, which is not held any more and may ask; None when there is none. Of so many
        messages (`ageing`) one is of a lower priority that waits; 0: none."""
        while self.held:
            number, lane = heapq.heappop(self._whose(ageing))
            place = self.held.get(lane)
            if place is None or place.number != number:  # it stood there before
                continue
            del self.held[lane]
            waits = lane.turns.best_held(self.name) < len(PRIORITIES)
            lane.turns.free(self.name)
            if waits:
                self.called[lane] = number, now_s
                return lane
        for heap in self._line:
            heap.clear()
        return None

    def _whose(self, ageing: int) -> list[tuple[int, Lane]]:
        first, *lower = [heap for heap in self._line if heap]
        if lower and ageing and self._overtaken >= ageing - 1:
            return min(lower, key=lambda heap: heap[0][0])
        return first

    def pass_over(self, lane: Lane) -> None:
        """Do not wait for `lane`, which was called."""
        self.late[lane], _ = self.called.pop(lane)

    def give_up(self, now_s: float) -> None:
        """Do not wait any longer for lanes that were called and did not come."""
        for lane, (number, since_s) in list(self.called.items()):
            if now_s - since_s < self.patience_s:
                break
            del self.called[lane]
            if lane.turns.has(self.name):
                self.late[lane] = number
        if len(self.late) > self._sparse_above:
            self.late = {lane: number for lane, number in self.late.items() if lane.turns.has(self.name)}
            self._sparse_above = max(64, 2 * len(self.late))

    def let_go(self) -> list[Lane]:
        """Hold none any more; those that were held."""
        lanes = list(self.held)
        for lane in lanes:
            lane.turns.free(self.name)
        self.held = {}
        self.called, self.late = {}, {}
        for heap in self._line:
            heap.clear()
        return lanes
