"""One tally: how often a rule took a reply in the last time, for one path or whatever else its actions hold for.

Pure arithmetic on a record that all workers share (`mta.delivery.shared_tallies`). Times are of the wall clock, in
seconds, as they outlive the process. A share counts matches and outcomes in `SLICES` parts of its time; the outcomes
are a number that only grows, and of which the differences count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgpack

from mta.config.reply_rules import After

SLICES: Final = 10  # of the time over which a share is counted
EXACT: Final = 100  # matches with a time each; of more, those in a hundredth of the time have that of the first


@dataclass(slots=True)
class Tally:
    """Of one rule and key."""

    rule: str = ""
    key: str = ""
    runs: list[list[float]] = field(default_factory=list)  # time, matches
    slices: list[list[int]] = field(default_factory=list)  # number, matches, outcomes before it
    alarm_s: float = 0.0  # no alarm before that
    over_s: float = 0.0  # then it says nothing any more

    def encode(self) -> bytes | None:
        """The form in the table and in the file of what was learnt; None when it says nothing."""
        if not self.runs and not self.slices and not self.alarm_s:
            return None
        over_s = max(self.over_s, self.alarm_s) if self.runs or self.slices else self.alarm_s
        packed: bytes = msgpack.packb([self.rule, self.key, self.runs, self.slices, self.alarm_s, over_s])
        return packed

    @classmethod
    def decode(cls, record: bytes) -> Tally:
        """From that. Raises ValueError for what it cannot be."""
        try:
            rule, key, runs, slices, alarm_s, over_s = msgpack.unpackb(record)
            return cls(str(rule), str(key), [[float(time), int(count)] for time, count in runs],
                       [[int(number), int(matches), int(before)] for number, matches, before in slices],
                       float(alarm_s), float(over_s))
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise ValueError(f"no tally: {error}") from None

    def is_over(self, now_s: float) -> bool:
        """Whether it says nothing any more."""
        return self.over_s <= now_s

    def move(self, step_s: float) -> None:
        """The clock was set by that much. Shares begin anew: their parts are counted from the epoch."""
        for run in self.runs:
            run[0] += step_s
        self.slices = []
        self.alarm_s = self.alarm_s + step_s if self.alarm_s else 0.0
        self.over_s += step_s

    def number(self, after: After, now_s: float) -> bool:
        """One more match. Whether there were enough; then they are forgotten."""
        runs = self._runs(after, now_s)
        if len(runs) >= EXACT and now_s - runs[-1][0] < after.window_s / EXACT:
            runs[-1][1] += 1
        else:
            runs.append([now_s, 1])
        self.runs = runs
        self.over_s = now_s + after.window_s
        if sum(run[1] for run in runs) < after.number:
            return False
        self.runs = []
        return True

    def match(self, after: After, outcomes: int, now_s: float) -> tuple[bool, bool]:
        """One more match among so many outcomes. Whether a part of the time begins with it, and whether the share seems
        to be reached: `end` decides."""
        number, slices = self._slices(after, outcomes, now_s)
        begun = not slices or slices[-1][0] != number
        if begun:
            slices.append([number, 0, outcomes - 1])
        slices[-1][1] += 1
        self.slices = slices
        self.over_s = now_s + after.window_s
        return begun, self._reached(after, outcomes)

    def counted(self, after: After, now_s: float) -> tuple[int, float]:
        """How many matches there are now, and when the first of them was."""
        runs = self._runs(after, now_s)
        return int(sum(run[1] for run in runs)), runs[0][0] if runs else 0.0

    def shared(self, after: After, outcomes: int, now_s: float) -> tuple[int, int, float]:
        """How many matches there are now among how many outcomes, and when the part of the time with the first began.
        """
        _, slices = self._slices(after, outcomes, now_s)
        if not slices:
            return 0, 0, 0.0
        matches = sum(part[1] for part in slices)
        return matches, max(outcomes - slices[0][2], matches), slices[0][0] * after.window_s / SLICES

    def begin_at(self, outcomes: int) -> None:
        """So many outcomes were before the last part, all workers' told."""
        if self.slices and outcomes > self.slices[-1][2]:
            self.slices[-1][2] = outcomes

    def end(self, after: After, outcomes: int) -> bool:
        """Whether the share is reached; then the count begins anew."""
        if not self._reached(after, outcomes):
            return False
        self.slices = []
        return True

    def _runs(self, after: After, now_s: float) -> list[list[float]]:
        """Those that count now. A time to come was measured before the clock was set back."""
        begin_s = now_s - after.window_s
        return [run for run in self.runs if begin_s < run[0] <= now_s]

    def _slices(self, after: After, outcomes: int, now_s: float) -> tuple[int, list[list[int]]]:
        """The number of the part of the time that is now, and the parts that count."""
        number = int(now_s / after.window_s * SLICES)
        return number, [part for part in self.slices
                        if number - SLICES < part[0] <= number and part[2] <= outcomes]

    def _reached(self, after: After, outcomes: int) -> bool:
        if not self.slices:
            return False
        matches = sum(part[1] for part in self.slices)
        total = max(outcomes - self.slices[0][2], matches)
        return total >= after.number and matches >= after.share * total


def encode_outcomes(path: str, number: int, over_s: float) -> bytes:
    """How many outcomes were told of a path."""
    packed: bytes = msgpack.packb([path, number, over_s])
    return packed


def decode_outcomes(record: bytes) -> tuple[str, int, float]:
    """Path, number, and when nobody will ask for it any more. Raises ValueError for what it cannot be."""
    try:
        path, number, over_s = msgpack.unpackb(record)
        return str(path), int(number), float(over_s)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"no number of outcomes: {error}") from None


