"""Behaviours made ready for use: rules by stage with their counters, replies as bytes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from mta.sandbox.draws import chosen
from mta.sandbox.replies import Reply
from mta.sandbox.settings import Behaviour, Rule

MAX_SUBJECTS: Final = 1_000_000  # for which one rule counts its `times`; then it begins anew


@dataclass(slots=True, eq=False)
class ReadyRule:
    """A rule with what it needs at run time."""

    rule: Rule
    position: int
    pattern: re.Pattern[str] | None
    reply: Reply | None
    raw: bytes | None
    ends: bool  # the stage, so that no later rule is asked
    times: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, rule: Rule, position: int) -> ReadyRule:
        """Prepare a rule. The settings were checked, so nothing is raised."""
        return cls(
            rule,
            position,
            re.compile(rule.match) if rule.match is not None else None,
            Reply.parse(rule.reply) if rule.reply is not None else None,
            rule.raw.encode("latin-1", "replace") if rule.raw is not None else None,
            rule.reply is not None or rule.raw is not None or rule.drop is not None or rule.hang,
        )

    def holds(self, subject: str, counted: str) -> bool:
        """Whether the rule holds for `subject` now; if so, counts it as one of the `times` of `counted`."""
        if self.pattern is not None and not self.pattern.search(subject):
            return False
        if not chosen(self.rule.share, subject, self.position):
            return False
        if self.rule.times is not None:
            if self.times[counted] >= self.rule.times:
                return False
            if len(self.times) > MAX_SUBJECTS:
                self.times.clear()
            self.times[counted] += 1
        return True


@dataclass(slots=True, eq=False)
class Conduct:
    """A behaviour made ready."""

    behaviour: Behaviour
    rules: dict[str, tuple[ReadyRule, ...]]
    connections_reply: Reply | None
    messages_reply: Reply | None
    recipients_reply: Reply
    connection_rate_reply: Reply
    rate_reply: Reply
    greylist_reply: Reply

    @classmethod
    def of(cls, behaviour: Behaviour) -> Conduct:
        """Prepare a behaviour."""
        rules: dict[str, list[ReadyRule]] = {}
        for position, rule in enumerate(behaviour.rules):
            rules.setdefault(rule.at, []).append(ReadyRule.of(rule, position))
        return cls(
            behaviour,
            {stage: tuple(ready) for stage, ready in rules.items()},
            Reply.parse(behaviour.connections_reply) if behaviour.connections_reply else None,
            Reply.parse(behaviour.messages_reply) if behaviour.messages_reply else None,
            Reply.parse(behaviour.recipients_reply),
            Reply.parse(behaviour.connection_rate_reply),
            Reply.parse(behaviour.rate_reply),
            Reply.parse(behaviour.greylist_reply),
        )
