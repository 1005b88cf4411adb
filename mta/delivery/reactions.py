"""What an engine does about refusals beside the message: the actions of rules, as holds over all workers and alarms.

`judge_of` gives the rulings for a path's provider, `to` and `to_refusal` count what was refused, `apply_actions` is the
one place where an action becomes something: a hold on a path, source, provider, tenant or domain
(`mta.delivery.holds`), an event, a line in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mta.config.problems import printable
from mta.delivery.outcome import Judge, Outcome
from mta.delivery.path import Path
from mta.delivery.rule_counts import Fired, Place, RuleCounts
from mta.delivery.rules import RuleBook, Ruling
from mta.queue import events
from mta.queue.orders import RULE
from mta.queue.scheduler import Queue
from mta.queue.store import Transaction
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.delivery.engine import Engine

FRESH = 0.9  # a hold that still has this share of its time before it is not made anew: all connections hear the same

log = logging.getLogger(__name__)


class Reactions:
    """The rules on replies of one engine, at work."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.book = RuleBook(engine.config.rules)
        self.counts = RuleCounts(engine.limits, engine.hub.later, self.apply_actions)

    def configure(self) -> None:
        """Take new rules; what was counted for rules of the same name goes on."""
        if self.book.rules is not self._engine.config.rules:
            self.book = RuleBook(self._engine.config.rules)

    def judge_of(self, path: Path) -> Judge:
        """What judges refusals by the hosts of `path`."""
        return partial(self.book.judge, path.provider)

    def to(self, outcome: Outcome, path: Path, queue: Queue) -> None:
        """A transaction ended with refusals. It counts among the outcomes of the path already."""
        refusals = outcome.refusals()
        if refusals:
            place = Place(path.name, path.source.name, path.provider, queue.tenant, queue.domain)
            for ruling, reply in refusals.values():
                self._count(ruling, reply, path, place)

    def to_refusal(self, path: Path, reply: Reply) -> None:
        """No session came about: the greeting or EHLO was refused, or nobody was reached."""
        ruling = self.book.judge(path.provider, "connect" if reply.local else "greeting", reply)
        self._count(ruling, reply, path, Place(path.name, path.source.name, path.provider))

    def asked(self, names: Iterable[str]) -> None:
        """Other workers ask how many outcomes there were on these paths."""
        for name in names:
            path = self._engine.paths.get(name)
            self.counts.tell(name, path.outcomes if path is not None else 0)

    def _count(self, ruling: Ruling, reply: Reply, path: Path, place: Place) -> None:
        if ruling.rule is not None and ruling.rule.actions:
            now_s = self._engine.clock_us() / 1e6
            self.apply_actions(self.counts.match(ruling.rule, place, str(reply), path.outcomes, now_s))

    def apply_actions(self, fired: Sequence[Fired]) -> None:
        """Do what rules ask for."""
        holds = self._engine.holds
        for action, key, rule, reason in fired:
            by = RULE + rule.name
            if action.kind == "alarm":
                self._alarm(key, f"{rule.name} ({rule.place}): {reason}")
            elif self._is_fresh(key, by, action.kind, action.for_s):
                continue
            elif action.kind == "suspend":
                holds.suspend(key, action.for_s, by, reason)
                until_us = self._engine.clock_us() + int(action.for_s * 1e6)
                self._commit(events.suspended(
                    key, text=f"{by}: {reason}", until_us=until_us, time_us=self._engine.clock_us()))
            elif action.kind == "connections":
                holds.limit(key, "connections", action.connections, action.for_s, by, reason)
            elif action.rate is not None:
                holds.limit(key, "rate", action.rate.per_second, action.for_s, by, reason)

    def _is_fresh(self, key: str, by: str, kind: str, for_s: float) -> bool:
        what = {"suspend": "all", "slow": "rate"}.get(kind, kind)
        least_us = self._engine.clock_us() + int(for_s * FRESH * 1e6)
        return any(hold.by == by and hold.what == what and hold.until_us >= least_us
                   for hold in self._engine.limits.state(key).holds)

    def _alarm(self, subject: str, text: str) -> None:
        log.warning("%s: %s", printable(subject), printable(text, 500))
        self._commit(events.alarm(subject, text=text, time_us=self._engine.clock_us()))

    def _commit(self, event: bytes) -> None:
        next(iter(self._engine.stores.values())).submit(Transaction(events=[event]))
