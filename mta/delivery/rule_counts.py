"""When the actions of rules begin: matches counted over time and over all workers, for each rule and what it holds for.

A rule without `after` acts on every match. `3 in 1h` counts matches under the key of the rule's first action; a share,
as in `20% of 50 in 10m`, is of the outcomes on one path, from the first match in that time on. After it has acted the
count begins anew. An alarm is told once in an hour for each rule and key.

The counts lie in the table of limits (`mta.delivery.tally`). Matches are written there as they come, one transaction
each. Outcomes are not: a worker counts its own, and tells how many there were when it has a match itself or another
worker asks. One asks when a new part of the time begins, and when the share seems to be reached: what is decided then
is decided `ASK_S` later, when the others have told. So a message that is taken costs nothing here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeVar

from mta.config.reply_rules import Action, After, ReplyRule, Scope
from mta.delivery.tally import Tally

KEPT: Final = 10_000  # paths whose outcomes were told, and alarms that were; what falls out begins anew
ALARM_S: Final = 3600.0
ASK_S: Final = 0.2  # for the others' answers, which take some milliseconds

T = TypeVar("T")


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


class Book(Protocol):
    """Where the tallies of all workers lie: `Limits`."""

    def tally(self, rule: str, key: str, change: Callable[[Tally, int], T], path: str = "", more: int = 0) -> T:
        """Let `change` see and change a tally, after `more` outcomes on `path`; it is given their number."""

    def ask(self, path: str) -> bool:
        """Have the other workers tell how many outcomes they had on `path`. Whether there are others."""


class RuleCounts:
    """Counts of a worker, in a book that all share. Times are of the wall clock, in seconds."""

    def __init__(self, book: Book, later: Callable[[float, Callable[[], None]], object],
                 fire: Callable[[list[Fired]], None]) -> None:
        """`later` calls in so many seconds; `fire` gets the actions of a share that was reached then."""
        self._book = book
        self._later = later
        self._fire = fire
        self._told: OrderedDict[str, int] = OrderedDict()  # by path, outcomes of ours that are in the book
        self._alarms: OrderedDict[tuple[str, str], float] = OrderedDict()  # until when none is told
        self._asked: set[tuple[str, str]] = set()  # shares that are looked at in a moment

    def match(self, rule: ReplyRule, place: Place, reason: str, outcomes: int, now_s: float) -> list[Fired]:
        """`rule` took a reply at `place`. The actions that are due now.

        `outcomes`: how many transactions of this worker ended on the path so far, however they did, this one included;
        only differences count.
        """
        if not rule.actions:
            return []
        after = rule.after
        if after is not None:
            counted = place.key(rule.actions[0].scope) or place.path
            if after.share:
                enough = self._share(rule, after, place, reason, outcomes, now_s)
            else:
                enough = self._book.tally(rule.name, counted, lambda tally, _: tally.number(after, now_s))
            if not enough:
                return []
        return self._actions(rule, place, reason, now_s)

    def tell(self, path: str, outcomes: int) -> None:
        """Another worker asks for the outcomes on `path`."""
        more = self._news(path, outcomes, outcomes)
        if more:
            self._book.tally("", "", lambda tally, total: None, path, more)

    def _news(self, path: str, outcomes: int, at_first: int) -> int:
        """How many outcomes the book does not know yet; of a path that is new all after `at_first`."""
        told = self._told.pop(path, at_first)
        if told > outcomes:  # the path was forgotten in between
            told = at_first
        self._told[path] = outcomes
        if len(self._told) > KEPT:
            self._told.popitem(last=False)
        return outcomes - told

    def _share(self, rule: ReplyRule, after: After, place: Place, reason: str, outcomes: int, now_s: float) -> bool:
        """One more match among the outcomes on the path. Whether the share is reached for sure."""
        path = place.path
        name = (rule.name, path)
        more = self._news(path, outcomes, outcomes - 1)
        begun, reached = self._book.tally(
            rule.name, path, lambda tally, total: tally.match(after, total, now_s), path, more)
        if not (begun or reached) or name in self._asked:
            return False
        if not self._book.ask(path):
            return reached and self._book.tally(rule.name, path, lambda tally, total: tally.end(after, total), path)
        self._asked.add(name)
        self._later(ASK_S, partial(self._answered, rule, after, place, reason, outcomes, now_s, begun))
        return False

    def _answered(self, rule: ReplyRule, after: After, place: Place, reason: str, outcomes: int, now_s: float,
                  begun: bool) -> None:
        """The others have told: what they had before the part of the time began does not count in it."""
        path = place.path
        self._asked.discard((rule.name, path))
        own = self._told.get(path, outcomes) - outcomes + 1  # outcomes in that part; the match began it

        def look(tally: Tally, total: int) -> bool:
            if begun:
                tally.begin_at(total - own)
            return tally.end(after, total)

        if self._book.tally(rule.name, path, look, path):
            self._fire(self._actions(rule, place, reason, now_s + ASK_S))

    def _actions(self, rule: ReplyRule, place: Place, reason: str, now_s: float) -> list[Fired]:
        counted = place.key(rule.actions[0].scope) or place.path
        fired = []
        for action in rule.actions:
            key = place.key(action.scope)
            if action.kind == "alarm":
                if not self._is_news(rule.name, key or counted, now_s):
                    continue
            elif not key:
                continue
            fired.append(Fired(action, key or counted, rule, reason))
        return fired

    def _is_news(self, rule: str, key: str, now_s: float) -> bool:
        """Whether no worker has told this alarm within the hour. It is told now."""
        name = (rule, key)
        until_s = self._alarms.get(name, 0.0)
        if until_s - ALARM_S <= now_s < until_s:
            return False

        def look(tally: Tally, _: int) -> bool:
            if tally.alarm_s - ALARM_S <= now_s < tally.alarm_s:
                self._alarms[name] = tally.alarm_s
                return False
            self._alarms[name] = tally.alarm_s = now_s + ALARM_S
            return True

        news = self._book.tally(rule, key, look)
        self._alarms.move_to_end(name)
        if len(self._alarms) > KEPT:
            self._alarms.popitem(last=False)
        return news
