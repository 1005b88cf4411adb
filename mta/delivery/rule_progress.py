"""How far the rules are that act only after so many matches, or a share of them: for people, before they act.

    of_path(engine, path)       for all that a reply over this path counts for
    of_path_name(engine, name)  the same of one that is not in memory
    of_name(engine, name)       for `source:NAME`, `provider:NAME`, `domain:NAME`, `tenant:NAME`
    ask(engine, paths)          have all workers tell their outcomes first: shares are of those

Only rules that have a match. Each call is one short look at the table of limits, a get for each rule that counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mta.config.reply_rules import ReplyRule
from mta.config.units import format_duration
from mta.delivery.rule_counts import ASK_S, Place
from mta.delivery.tally import Tally

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.path import Path


@dataclass(slots=True)
class Progress:
    """One rule and what it counts for. Times are microseconds since the epoch."""

    rule: str
    place: str  # FILE:LINE
    key: str  # what it counts for: a path, `provider:NAME`, ...
    text: str  # in words, without since and until
    matches: int
    number: int  # of matches when it acts; with a share: of outcomes from which on it does
    window_s: float
    share: float = 0.0  # of the outcomes; 0: the matches alone count
    outcomes: int = 0  # of all workers since the first match; with a share only
    since_us: int = 0  # the first match that counts
    until_us: int = 0  # when that one is forgotten
    actions: list[str] = field(default_factory=list)


def of_path(engine: Engine, path: Path) -> list[Progress]:
    """How far the rules are that a reply over `path` may count for: for itself, its provider and its source."""
    place = Place(path.name, path.source.name, path.provider, domain=path.domain)
    return _of(engine, [(rule, place.path if rule.after is not None and rule.after.share else
                         place.key(rule.actions[0].scope) or place.path)
                        for rule in _counting(engine) if not rule.providers or path.provider in rule.providers],
               path.name)


def of_path_name(engine: Engine, name: str) -> list[Progress]:
    """How far rules are for a path that need not be in memory any more."""
    return _of(engine, [(rule, name) for rule in _counting(engine)], name)


def of_name(engine: Engine, name: str) -> list[Progress]:
    """How far rules are for what is called so, on whichever path the replies came."""
    kind = name.partition(":")[0]
    return _of(engine, [(rule, name) for rule in _counting(engine) if rule.actions[0].scope == kind], "")


def ask(engine: Engine, paths: Iterable[str]) -> None:
    """Have the outcomes on these paths told, so that shares are of what all workers had. Waits, if a share counts."""
    waits = False
    for name in paths:
        if any(one.share for one in of_path_name(engine, name)):
            path = engine.paths.get(name)
            if path is not None:
                engine.reactions.counts.tell(name, path.outcomes)
            waits |= engine.limits.ask(name)
    if waits:
        engine.hub.sleep(ASK_S)


def merge(progress: list[Progress], more: list[Progress]) -> list[Progress]:
    """What two workers say, each rule once: who looked later knows of more."""
    known = {(one.rule, one.key): one for one in progress}
    for one in more:
        same = known.get((one.rule, one.key))
        if same is None or (one.outcomes, one.matches) > (same.outcomes, same.matches):
            known[one.rule, one.key] = one
    return list(known.values())


def _counting(engine: Engine) -> list[ReplyRule]:
    return [rule for rule in engine.config.rules.all() if rule.after is not None and rule.actions]


def _of(engine: Engine, wanted: Sequence[tuple[ReplyRule, str]], path: str) -> list[Progress]:
    tallies, outcomes = engine.limits.tallied([(rule.name, key) for rule, key in wanted], path)
    now_s = engine.clock_us() / 1e6
    found = [_progress(rule, key, tally, outcomes, now_s)
             for (rule, key), tally in zip(wanted, tallies, strict=True) if tally is not None]
    return [one for one in found if one.matches]


def _progress(rule: ReplyRule, key: str, tally: Tally, outcomes: int, now_s: float) -> Progress:
    after = rule.after
    assert after is not None
    then = ", ".join(map(str, rule.actions))
    if after.share:
        matches, total, since_s = tally.shared(after, outcomes, now_s)
        part = matches / total if total else 0.0
        text = (f"rule {rule.name} took {matches} of {total} outcomes ({part:.0%}) for {key} within "
                f"{format_duration(after.window_s)}; from {after.share * 100:g}% of {after.number} on: {then}")
    else:
        total = 0
        matches, since_s = tally.counted(after, now_s)
        text = (f"rule {rule.name} has {matches} of {after.number} matches for {key} within "
                f"{format_duration(after.window_s)}; with the last of them: {then}")
    return Progress(rule.name, rule.place, key, text, matches, after.number, after.window_s, after.share, total,
                    int(since_s * 1e6), int((since_s + after.window_s) * 1e6), [str(action) for action in rule.actions])
