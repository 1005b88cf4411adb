"""Rules on replies as they are written: what a refusal looks like, what it means, and what is done about it.

A rule names providers, stages, codes, enhanced codes and texts, each optional; all that it names have to fit, of each
list one item. The first rule that fits decides. docs/rules.md is the manual.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

from mta.config.problems import printable, quoted
from mta.config.reply_classes import CLASSES
from mta.config.reply_patterns import (
    CodePattern,
    EnhancedPattern,
    Said,
    TextPattern,
    parse_code,
    parse_enhanced,
    parse_regex,
    parse_reply,
)
from mta.config.tree import Mapping, Node, Report, Scalar, Sequence
from mta.config.units import Rate, format_duration, parse_duration

Stage: TypeAlias = Literal["connect", "greeting", "mail", "rcpt", "data", "content", "lost"]
Scope: TypeAlias = Literal["path", "provider", "source", "source-provider", "tenant", "domain"]
Fate: TypeAlias = Literal["", "defer", "bounce", "again", "elsewhere", "elsewhere host"]

STAGES: dict[Stage, str] = {
    "connect": "no address could be reached, or the session broke before the host said anything; the text is ours",
    "greeting": "the greeting, or the answer to EHLO or STARTTLS",
    "mail": "the answer to MAIL",
    "rcpt": "the answer to RCPT",
    "data": "the answer to DATA",
    "content": "the answer to the content, after the final dot",
    "lost": "the connection was lost before an answer; the text is ours",
}
SCOPES: dict[Scope, str] = {
    "path": "this source to this site",
    "provider": "all mail to the provider, from whatever source",
    "source": "all mail from this source, wherever it goes",
    "source-provider": "this source to all sites of the provider",
    "tenant": "all mail of the tenant; mail that belongs to none is not held",
    "domain": "all mail to the recipient domain",
}
FATES: dict[str, str] = {
    "defer": "the message waits, whatever the code says; `defer for 4h`: that long",
    "bounce": "the message fails, whatever the code says",
    "again": "no attempt is counted: a new connection takes it at once. Only on a connection that has carried a "
             "message before, else it is `defer`",
    "elsewhere": "the next attempt goes at once from another source of the pool; where no other can be used it is "
                 "`defer`",
    "elsewhere host": "the same, and to another host of the site; where there is only another source or only another "
                      "host, that has to do",
}


class After(NamedTuple):
    """When the actions of a rule begin: `number` matches in `window_s`; with a `share`, that part of `number` or more
    outcomes."""

    number: int
    share: float
    window_s: float

    def __str__(self) -> str:
        """As it is written."""
        share = f"{self.share * 100:g}% of " if self.share else ""
        return f"{share}{self.number} in {format_duration(self.window_s)}"


class Action(NamedTuple):
    """One thing to do about a path or a wider scope, for `for_s` seconds."""

    kind: Literal["suspend", "slow", "connections", "alarm"]
    scope: Scope = "path"
    for_s: float = 0.0
    rate: Rate | None = None  # of `slow`
    connections: int = 0  # of `connections`

    def __str__(self) -> str:
        """For people: `suspend source-provider for 2h`, `slow path to 10/min for 30m`."""
        if self.kind == "alarm":
            return "alarm"
        what = f"{self.kind} {self.scope}"
        if self.rate is not None:
            what += f" to {self.rate}"
        elif self.connections:
            what = f"connections of {self.scope} to {self.connections}"
        return f"{what} for {format_duration(self.for_s)}"


class Sample(NamedTuple):
    """A whole reply that a rule must match."""

    line: int
    column: int
    text: str
    said: Said


class ReplyRule(NamedTuple):
    """One rule."""

    name: str
    file: str
    line: int
    column: int
    providers: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    codes: tuple[CodePattern, ...] = ()
    enhanced: tuple[EnhancedPattern, ...] = ()
    texts: tuple[TextPattern, ...] = ()
    unless: tuple[TextPattern, ...] = ()
    kind: str = ""  # a class of `CLASSES`; "": what the codes say
    after: After | None = None
    actions: tuple[Action, ...] = ()
    message: Fate = ""
    wait_s: float = 0.0  # of `defer for`
    samples: tuple[Sample, ...] = ()
    written: tuple[tuple[str, Any], ...] = ()  # the options as texts and lists of texts, in their order
    places: tuple[tuple[str, int, int], ...] = ()  # of the providers: name, line, column

    @property
    def place(self) -> str:
        """`FILE:LINE`."""
        return f"{printable(self.file)}:{self.line}"

    @property
    def words(self) -> tuple[str, ...]:
        """Of these at least one is in every text that the rule takes; none: not known."""
        if not all(pattern.needs for pattern in self.texts):
            return ()
        return tuple(dict.fromkeys(word for pattern in self.texts for word in pattern.needs))

    def takes_code(self, code: int) -> bool:
        """Whether replies with this code may match."""
        if not self.codes:
            return True
        for pattern in self.codes:  # noqa: SIM110 -- plain beats clever
            if pattern.low <= code <= pattern.high:
                return True
        return False

    def fits(self, reply: Said) -> bool:
        """Whether enhanced code and text are as the rule says."""
        if self.enhanced:
            status = reply.enhanced
            if status is None or not any(pattern.matches(status) for pattern in self.enhanced):
                return False
        if self.texts:
            for pattern in self.texts:
                if pattern.matches(reply):
                    break
            else:
                return False
        return not any(pattern.matches(reply) for pattern in self.unless)


class _Fault(Exception):  # noqa: N818 -- never leaves this module; the fault was reported
    """What is being read is of no use."""


def read_rules(node: Node, report: Report, file: str, path: str = "rules") -> tuple[ReplyRule, ...]:
    """The rules in a list. Every fault is reported; a rule with one is left out."""
    if isinstance(node, Scalar) and node.is_null:
        return ()
    if not isinstance(node, Sequence):
        if not (isinstance(node, Scalar) and node.broken):
            report(node.line, node.column, f"{path}: expected a list of rules, each begun with a dash")
        return ()
    found: dict[str, ReplyRule] = {}
    for index, item in enumerate(node.items):
        rule = _Reader(report, file, f"{path}[{index}]").rule(item)
        if rule is None:
            continue
        before = found.get(rule.name)
        if before is not None:
            report(rule.line, rule.column,
                   f"{path}[{index}]: {quoted(rule.name)} is already the name of the rule in line {before.line}")
            continue
        found[rule.name] = rule
    return tuple(found.values())


_OPTIONS = ("name", "provider", "stage", "code", "enhanced", "text", "unless", "class", "after", "suspend", "slow",
            "connections", "alarm", "message", "samples")
_NAME = re.compile(r"[a-z0-9]+(?:[-.][a-z0-9]+)*", re.ASCII)
_PROVIDER = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*", re.ASCII)


class _Reader:
    """Reads one rule."""

    def __init__(self, report: Report, file: str, path: str) -> None:
        self.report = report
        self.file = file
        self.path = path
        self.faulty = False

    def fault(self, node: Node, option: str, message: str) -> _Fault:
        self.faulty = True
        if not (isinstance(node, Scalar) and node.broken):
            self.report(node.line, node.column, f"{self.path}{'.' if option else ''}{option}: {message}")
        return _Fault()

    def rule(self, node: Node) -> ReplyRule | None:
        """The rule, or None when something of it is wrong."""
        if not isinstance(node, Mapping):
            self.fault(node, "", "expected a rule with options such as name, code, text and samples")
            return None
        entries: dict[str, Node] = {}
        for option, (key, value) in node.entries.items():
            if option in _OPTIONS:
                entries[option] = value
            else:
                close = difflib.get_close_matches(option.lower()[:64], _OPTIONS, 1, 0.6)
                hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(_OPTIONS)}"
                self.fault(key, "", f"unknown option {quoted(option)}; {hint}")
        read = self._try
        name = read(entries, "name", self.name, "")
        providers = read(entries, "provider", lambda at, o: self.each(at, o, _provider), ())
        stages = read(entries, "stage", lambda at, o: self.each(at, o, _word(get_args(Stage))), ())
        codes = read(entries, "code", lambda at, o: self.each(at, o, parse_code), ())
        enhanced = read(entries, "enhanced", lambda at, o: self.each(at, o, parse_enhanced), ())
        texts = read(entries, "text", lambda at, o: self.each(at, o, parse_regex), ())
        unless = read(entries, "unless", lambda at, o: self.each(at, o, parse_regex), ())
        kind = read(entries, "class", lambda at, o: self.one(at, o, _word(tuple(CLASSES))), "")
        after = read(entries, "after", lambda at, o: self.one(at, o, parse_after), None)
        actions = [
            *read(entries, "suspend", lambda at, o: self.each(at, o, parse_suspend), ()),
            *read(entries, "slow", lambda at, o: self.each(at, o, parse_slow), ()),
            *read(entries, "connections", lambda at, o: self.each(at, o, parse_connections), ()),
        ]
        if read(entries, "alarm", lambda at, o: self.one(at, o, _truth), False):
            actions.append(Action("alarm", actions[0].scope if actions else "path"))
        message, wait_s = read(entries, "message", lambda at, o: self.one(at, o, parse_fate), ("", 0.0))
        samples = read(entries, "samples", self.samples, ())
        for option in ("name", "samples"):
            if option not in entries:
                self.fault(node, "", f"no {option}; " + (
                    "it is needed to speak of the rule" if option == "name" else
                    "at least one whole reply that it must match is needed"))
        if not (codes or enhanced or texts or stages) and not self.faulty:
            self.fault(node, "", "it would match every refusal: expected a code, enhanced, text or stage")
        if not (kind or actions or message) and not self.faulty:
            self.fault(node, "", "it says nothing: expected a class, a message or an action")
        if after is not None and not actions and not self.faulty:
            self.fault(entries["after"], "after", "there is no action that it could begin")
        if message == "bounce" and stages and set(stages) <= {"connect", "greeting", "lost"}:
            self.fault(entries["message"], "message", "no message is at fault at this stage, so none can bounce")
        if self.faulty:
            return None
        places = tuple((text.text, text.line, text.column) for text in _scalars(entries.get("provider")))
        return ReplyRule(
            name, self.file, node.line, node.column, providers, stages, codes, enhanced, texts, unless, kind, after,
            tuple(actions), message, wait_s, samples,
            tuple((option, _plain(value)) for option, value in entries.items()), places)

    def _try(self, entries: dict[str, Node], option: str, read: Callable[[Node, str], Any], default: Any) -> Any:
        if option not in entries:
            return default
        try:
            return read(entries[option], option)
        except _Fault:
            return default

    def name(self, node: Node, option: str) -> str:
        def parse(text: str) -> str:
            if not _NAME.fullmatch(text) or len(text) > 60:
                raise ValueError("a name has lower case letters, digits and dashes, as in google-rate")
            return text
        return str(self.one(node, option, parse))

    def one(self, node: Node, option: str, parse: Callable[[str], Any]) -> Any:
        if not isinstance(node, Scalar) or node.is_null:
            raise self.fault(node, option, "expected one value")
        try:
            return parse(node.text)
        except ValueError as error:
            raise self.fault(node, option, f"{quoted(node.text)}: {error}") from None

    def each(self, node: Node, option: str, parse: Callable[[str], Any]) -> tuple[Any, ...]:
        items = node.items if isinstance(node, Sequence) else [node]
        if not items:
            raise self.fault(node, option, "an empty list")
        result = []
        for item in items:
            try:
                result.append(self.one(item, option, parse))
            except _Fault:
                continue
        if len(result) < len(items):
            raise _Fault
        return tuple(result)

    def samples(self, node: Node, option: str) -> tuple[Sample, ...]:
        found = []
        for item in node.items if isinstance(node, Sequence) else [node]:
            reply = self._try({option: item}, option, lambda at, o: self.one(at, o, parse_reply), None)
            if reply is not None and isinstance(item, Scalar):
                found.append(Sample(item.line, item.column, item.text, reply))
        if not found and not self.faulty:
            raise self.fault(node, option, "an empty list, expected at least one whole reply")
        return tuple(found)


def _scalars(node: Node | None) -> list[Scalar]:
    items: list[Any] = [] if node is None else list(node.items) if isinstance(node, Sequence) else [node]
    return [item for item in items if isinstance(item, Scalar)]


def _plain(node: Node) -> Any:
    if isinstance(node, Sequence):
        return [_plain(item) for item in node.items]
    return node.text if isinstance(node, Scalar) else ""


def _word(words: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text in words:
            return text
        close = difflib.get_close_matches(text.lower()[:64], words, 1, 0.6)
        raise ValueError(f"did you mean {close[0]}?" if close else f"expected one of {', '.join(words)}")
    return parse


def _provider(text: str) -> str:
    if not _PROVIDER.fullmatch(text):
        raise ValueError("not the name of a provider, such as google")
    return text


def _truth(text: str) -> bool:
    word = text.lower()
    if word in ("true", "yes", "on"):
        return True
    if word in ("false", "no", "off"):
        return False
    raise ValueError("expected true or false")


_AFTER = re.compile(r"(?:([0-9]{1,3}(?:\.[0-9]{1,3})?)% of )?([1-9][0-9]{0,3}) in (.+)", re.ASCII)


def parse_after(text: str) -> After:
    """Read `3 in 1h` or `20% of 50 in 10m`. Raises ValueError."""
    found = _AFTER.fullmatch(" ".join(text.split()))
    if found is None:
        raise ValueError("expected a number of matches as in 3 in 1h, or a share as in 20% of 50 in 10m")
    share = float(found[1]) / 100 if found[1] else 0.0
    if found[1] and not 0 < share <= 1:
        raise ValueError("a share is above 0% and at most 100%")
    return After(int(found[2]), share, _time(found[3], 7 * 86_400))


def _time(text: str, most_s: float = 7 * 86_400) -> float:
    seconds = parse_duration(text)
    if not 0 < seconds <= most_s:
        raise ValueError(f"a time is above zero and at most {format_duration(most_s)}")
    return float(seconds)


def _held(text: str, example: str) -> tuple[list[str], float]:
    """The words before `for`, and the time behind it."""
    before, found, time = " ".join(text.split()).rpartition(" for ")
    if not found:
        raise ValueError(f"expected what and how long, as in {example}")
    return before.split(" "), _time(time)


def _scope(word: str) -> Scope:
    return cast(Scope, _word(tuple(SCOPES))(word))


def parse_suspend(text: str) -> Action:
    """Read `path for 2h`. Raises ValueError."""
    words, for_s = _held(text, "path for 2h")
    if len(words) != 1:
        raise ValueError("expected a scope and how long, as in path for 2h")
    return Action("suspend", _scope(words[0]), for_s)


def parse_slow(text: str) -> Action:
    """Read `10/min for 30m`, or with a scope `source-provider 10/min for 30m`. Raises ValueError."""
    words, for_s = _held(text, "10/min for 30m")
    if len(words) > 2:
        raise ValueError("expected a rate and how long, as in 10/min for 30m")
    return Action("slow", _scope(words[0]) if len(words) == 2 else "path", for_s, Rate.parse(words[-1]))


def parse_connections(text: str) -> Action:
    """Read `2 for 1h`, or with a scope `source-provider 2 for 1h`. Raises ValueError."""
    words, for_s = _held(text, "1 for 30m")
    if len(words) > 2 or not re.fullmatch(r"[1-9][0-9]{0,3}", words[-1], re.ASCII):
        raise ValueError("expected a number of connections and how long, as in 1 for 30m")
    return Action("connections", _scope(words[0]) if len(words) == 2 else "path", for_s, None, int(words[-1]))


def parse_fate(text: str) -> tuple[str, float]:
    """Read `defer`, `defer for 4h`, `bounce`, `again`, `elsewhere` or `elsewhere host`. Raises ValueError."""
    text = " ".join(text.split())
    word, found, time = text.partition(" for ")
    if found and word == "defer":
        return word, _time(time)
    return _word(tuple(FATES))(text), 0.0
