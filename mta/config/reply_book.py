"""All rules in their order: which of them fits a reply, and which are of no use.

The configuration's own rules come before the shipped ones. `problems` runs every sample: a rule has to win each of its
samples at every provider and stage that it names, or it is shadowed, or wrong.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Iterator, Sequence

from mta.config import tree
from mta.config.problems import Problem, printable, quoted
from mta.config.reply_patterns import Said
from mta.config.reply_rules import STAGES, ReplyRule, Stage, read_rules

_FOUND_LIMIT = 4096


class ReplyRules:
    """Rules in order; those of the configuration itself are `own`, those of the file that it names `shipped`."""

    __slots__ = ("_by_code", "own", "shipped")

    def __init__(self, own: Sequence[ReplyRule] = (), shipped: Sequence[ReplyRule] = ()) -> None:
        self.own = tuple(own)
        self.shipped = tuple(shipped)
        self._by_code: dict[tuple[str, str, int], tuple[tuple[tuple[str, ...], ReplyRule], ...]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReplyRules) and self.own == other.own

    def __hash__(self) -> int:
        return hash(self.own)

    def __repr__(self) -> str:
        return f"<ReplyRules: {len(self.own)} own, {len(self.shipped)} shipped>"

    def all(self) -> Iterator[ReplyRule]:
        """Every rule in the order in which they are asked."""
        yield from self.own
        yield from self.shipped

    def find(self, provider: str, stage: Stage, reply: Said) -> ReplyRule | None:
        """The first rule that fits; None when none does. `provider` is "" for what belongs to none."""
        key = (provider, stage, reply.code)
        candidates = self._by_code.get(key)
        if candidates is None:
            if len(self._by_code) >= _FOUND_LIMIT:
                self._by_code.clear()
            candidates = self._by_code[key] = tuple(
                (rule.words, rule) for rule in self.all()
                if rule.takes_code(reply.code) and (not rule.providers or provider in rule.providers)
                # What a host did not say is judged only by rules that ask for it.
                and (stage in rule.stages or (not rule.stages and stage not in ("connect", "lost"))))
        lower = reply.lower
        for words, rule in candidates:
            if words:  # the same look as in `TextPattern.matches`, for all texts of a rule at once
                for word in words:
                    if word in lower:
                        break
                else:
                    continue
            if rule.fits(reply):
                return rule
        return None


def read_file(text: str, name: str) -> tuple[tuple[ReplyRule, ...], list[Problem]]:
    """The rules of a file with `rules:`, and what is wrong with it."""
    problems: list[Problem] = []

    def report(line: int, column: int, message: str) -> None:
        if len(problems) < 500:
            problems.append(Problem(name, line, column, printable(message, 1000)))

    root = tree.parse(text, report)
    rules: tuple[ReplyRule, ...] = ()
    if root is not None:
        if not isinstance(root, tree.Mapping):
            report(root.line, root.column, "expected rules: and a list of rules")
        else:
            for option, (key, node) in root.entries.items():
                if option == "rules":
                    rules = read_rules(node, report, name)
                else:
                    report(key.line, key.column, f"unknown option {quoted(option)}, expected rules")
    if not problems:
        problems = list(sample_problems(rules, ReplyRules(rules)))
    return rules, sorted(set(problems), key=lambda problem: problem[1:])


def sample_problems(rules: Sequence[ReplyRule], book: ReplyRules) -> Iterator[Problem]:
    """What is wrong with `rules`, judged by their samples in `book`."""
    for rule in rules:
        for sample in rule.samples:
            reason = _misses(rule, sample.said)
            if reason:
                yield Problem(rule.file, sample.line, sample.column,
                              f"rule {rule.name}: it does not match its own sample: {reason}")
                continue
            for winner, provider, stage in _winners(rule, book, sample.said):
                if winner is not rule:
                    assert winner is not None
                    where = f" of {provider}" if provider else ""
                    yield Problem(
                        rule.file, sample.line, sample.column,
                        f"rule {rule.name}: the rule {winner.name} in {winner.place} takes this sample{where} at the "
                        f"stage {stage} before it; move one of them, or give one of them an unless")
                    break


def provider_problems(rules: Sequence[ReplyRule], known: Collection[str]) -> Iterator[Problem]:
    """Rules for providers that are defined nowhere."""
    for rule in rules:
        for name, line, column in rule.places:
            if name not in known:
                close = _closest(name, tuple(sorted(known)))
                yield Problem(rule.file, line, column,
                              f"rule {rule.name}: there is no provider {quoted(name)}" + (
                                  f"; did you mean {close}?" if close else ", so it can never match"))


def _misses(rule: ReplyRule, reply: Said) -> str:
    """Why a rule does not match a reply; "" when it does."""
    if not rule.takes_code(reply.code):
        return f"the code {reply.code} is none of {', '.join(code.text for code in rule.codes)}"
    if rule.enhanced and (reply.enhanced is None or not any(one.matches(reply.enhanced) for one in rule.enhanced)):
        found = "there is no enhanced code in it" if reply.enhanced is None else (
            f"its enhanced code is {'.'.join(map(str, reply.enhanced))}")
        return f"{found}, expected {', '.join(one.text for one in rule.enhanced)}"
    if rule.texts and not any(pattern.matches(reply) for pattern in rule.texts):
        return f"text: {quoted(rule.texts[0].text)} is not found in it"
    for pattern in rule.unless:
        if pattern.matches(reply):
            return f"unless: {quoted(pattern.text)} is found in it"
    return ""


def _winners(rule: ReplyRule, book: ReplyRules, reply: Said) -> Iterator[tuple[ReplyRule | None, str, Stage]]:
    everywhere = tuple(stage for stage in STAGES if stage not in ("connect", "lost"))
    for provider in rule.providers or ("",):
        for stage in rule.stages or everywhere:
            yield book.find(provider, stage, reply), provider, stage


@functools.lru_cache(maxsize=256)
def _closest(name: str, known: tuple[str, ...]) -> str:

    return next(iter(difflib.get_close_matches(name, known, 1, 0.6)), "")
