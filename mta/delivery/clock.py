"""The wall clock, watched: it may be set while we run, by an operator, or by NTP after a start with a wrong time.

When mail is due and how old it is are on the wall clock, as that has to outlive the process. So a step of the clock
touches all of it, and what is right then is this:

* What becomes due by a step forward is due. Limits bound what is done at once, as after an outage.
* Nothing expires by a step: for its age a message is as old as it was. An age that was wrong in the end would be a
  bounce, which nobody takes back. (A restart forgets steps, and believes the clock.)
* After a step backward no delivery waits longer than the retry schedule lets it (`Engine._bring_forward`).
* Pauses of paths take as long as they were to take.
* Ids stay unique and go up (`mta.queue.ids`), and so do the names of event files (`mta.queue.eventlog`).

The steady clock stands still while the machine is suspended: to us that is a step forward like any other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from mta.queue.ids import shard_of
from mta.queue.records import Message

STEP_US: Final = 1_000_000  # less than this between two looks is the clock being kept right
STEPS_KEPT: Final = 1000


class _Step(NamedTuple):
    """The clock was set, perhaps several times, between two looks."""

    us: int  # by so much; negative: backward
    before: dict[int, int]  # by shard, the newest message at the first of them
    newest: dict[int, int]  # and at the second
    noticed_us: int  # the time of the second, by the new clock


class ClockWatch:
    """Compares the wall clock with the steady one. Somebody has to `look` about once a second."""

    def __init__(self, wall_us: Callable[[], int], newest_ids: Callable[[], dict[int, int]],
                 steady_us: Callable[[], int] = lambda: time.monotonic_ns() // 1000) -> None:
        """`newest_ids` gives the largest message id of each shard so far."""
        self.on_step: Callable[[int], None] = _nobody
        self._wall_us = wall_us
        self.newest_ids = newest_ids
        self._steady_us = steady_us
        self._offset_us = wall_us() - steady_us()
        self._newest = newest_ids()
        self._steps: deque[_Step] = deque(maxlen=STEPS_KEPT)

    def look(self) -> None:
        """Find out whether the clock was set since the last look; if so, call `on_step` with microseconds."""
        now_us, newest = self._wall_us(), self.newest_ids()
        offset_us = now_us - self._steady_us()
        step_us, before = offset_us - self._offset_us, self._newest
        self._offset_us, self._newest = offset_us, newest
        if abs(step_us) >= STEP_US:
            self._steps.append(_Step(step_us, before, newest, now_us))
            self.on_step(step_us)

    def age_us(self, message: Message, now_us: int) -> int:
        """How old `message` is at `now_us`, whatever was done to the clock meanwhile. At most the time between two
        looks is missing: nobody knows by which clock a message was accepted that came between a step and the look.
        """
        age_us = now_us - message.arrival_us
        shard = shard_of(message.id)
        for step in self._steps:
            if message.id <= step.before.get(shard, 0):
                age_us -= step.us
            elif message.id <= step.newest.get(shard, 0):
                age_us = now_us - step.noticed_us
        return age_us


def _nobody(step_us: int) -> None:
    """The default of `on_step`."""
