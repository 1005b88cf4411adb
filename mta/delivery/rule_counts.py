"""When the actions of rules begin: matches counted over time, for each rule and what it holds for.

A rule without `after` acts on every match. `3 in 1h` counts matches under the key of the rule's first action; a share,
as in `20% of 50 in 10m`, is of the outcomes on one path, from the first match in that time on. After it has acted the
count begins anew. An alarm is told once in an hour for each rule and key.

Pure: the time is given, in seconds. Memory is bounded by `KEYS`; the state is made of what msgpack can hold.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

from mta.config.reply_rules import Action, After, ReplyRule, Scope

KEYS = 10_000
SLICES = 10  # of the time over which a share is counted
ALARM_S = 3600.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reply came in: what the scopes of actions stand for."""

    path: str
    source: str = ""
    provider: str = ""
    tenant: str = ""
    domain: str = ""

    def key(self, scope: Scope) -> str:
        """The name of what is held, as in the table of limits; "" when there is no such thing here."""
        if scope == "path":
            return self.path
        if scope == "provider":
            return f"provider:{self.provider}" if self.provider else self.path
        if scope == "source":
            return f"source:{self.source}"
        if scope == "source-provider":
            return f"source:{self.source}>provider:{self.provider}" if self.provider else self.path
        if scope == "tenant":
            return f"tenant:{self.tenant}" if self.tenant else ""
        return f"domain:{self.domain}" if self.domain else ""


class Fired(NamedTuple):
    """An action that is due now."""

    action: Action
    key: str  # what it holds for: `Place.key`
    rule: ReplyRule
    reason: str  # the reply


class _Count:
    """Of one rule and key. `times` of matches; or of a share `slices`: number, matches, outcomes before it."""

    __slots__ = ("alarm_s", "slices", "times")

    def __init__(self) -> None:
        self.times: list[float] = []
        self.slices: list[list[int]] = []
        self.alarm_s = 0.0  # no alarm before that


class RuleCounts:
    """Counts of a worker."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, str], _Count] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def match(self, rule: ReplyRule, place: Place, reason: str, outcomes: int, now_s: float) -> list[Fired]:
        """`rule` took a reply at `place`. The actions that are due now.

        `outcomes`: how many transactions ended on the path so far, however they did; only differences count.
        """
        if not rule.actions:
            return []
        after = rule.after
        counted = place.key(rule.actions[0].scope) or place.path
        if after is not None:
            count = self._count(rule.name, place.path if after.share else counted)
            if not (_share(count, after, outcomes, now_s) if after.share else _number(count, after, now_s)):
                return []
        fired = []
        for action in rule.actions:
            key = place.key(action.scope)
            if action.kind == "alarm":
                count = self._count(rule.name, key or counted)
                if count.alarm_s - ALARM_S <= now_s < count.alarm_s:
                    continue
                count.alarm_s = now_s + ALARM_S
            elif not key:
                continue
            fired.append(Fired(action, key or counted, rule, reason))
        return fired

    def _count(self, rule: str, key: str) -> _Count:
        name = (rule, key)
        count = self._counts.get(name)
        if count is None:
            count = self._counts[name] = _Count()
            if len(self._counts) > KEYS:
                self._counts.popitem(last=False)
        else:
            self._counts.move_to_end(name)
        return count

    def state(self) -> list[Any]:
        """All of it, for msgpack."""
        return [[rule, key, count.times, count.slices, count.alarm_s]
                for (rule, key), count in self._counts.items()]

    def restore(self, state: list[Any]) -> None:
        """Go on from `state`. Raises ValueError for what is none."""
        counts: OrderedDict[tuple[str, str], _Count] = OrderedDict()
        try:
            for rule, key, times, slices, alarm_s in state[-KEYS:]:
                count = counts[str(rule), str(key)] = _Count()
                count.times = [float(time) for time in times]
                count.slices = [[int(number) for number in part] for part in slices]
                count.alarm_s = float(alarm_s)
        except TypeError as error:
            raise ValueError(f"no counts of rules: {error}") from None
        self._counts = counts


def _number(count: _Count, after: After, now_s: float) -> bool:
    """One more match. Whether there were enough."""
    begin_s = now_s - after.window_s
    # A time to come was measured before the clock was set back.
    count.times = [time for time in count.times if begin_s < time <= now_s]
    count.times.append(now_s)
    if len(count.times) < after.number:
        return False
    count.times = []
    return True


def _share(count: _Count, after: After, outcomes: int, now_s: float) -> bool:
    """One more match among so many outcomes. Whether the share was reached."""
    number = int(now_s / after.window_s * SLICES)
    slices = [part for part in count.slices if number - SLICES < part[0] <= number]
    if slices and outcomes < slices[0][2]:
        slices = []  # the path is another one now
    if not slices or slices[-1][0] != number:
        slices.append([number, 0, outcomes - 1])
    slices[-1][1] += 1
    count.slices = slices
    matches = sum(part[1] for part in slices)
    total = max(outcomes - slices[0][2], matches)
    if total < after.number or matches < after.share * total:
        return False
    count.slices = []
    return True
