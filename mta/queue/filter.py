"""Which deliveries an operator means: `tenant=acme and age>2h and not campaign=welcome*`.

    Filter.parse(text)             raises FilterError, which says at which column and what was expected
    found.of_queue(queue)          True, False, or None when it depends on the delivery: three-valued logic, so that a
                                   queue that is out as a whole (or in) is decided without reading it
    found.matches(queue, one)      of one delivery
    found.on_queues                whether `of_queue` always knows, the provider given
    found.words                    what two expressions share that are the same but for spaces, case and quotes

    expression   term { "and" term } { "or" ... }, "not" term, "(" expression ")"; `and` binds closer than `or`
    term         FIELD OPERATOR VALUE without spaces around the operator, or with them
    VALUE        a word, or "in double quotes" with \\" and \\\\ for what has spaces, parentheses or nothing in it

Words are compared without regard to case; `*` and `?` stand for any characters and any one. `~` is a regular
expression that is searched for. A domain beyond ASCII is found by its U-labels and by its A-labels (`mta.queue.idn`).
No I/O, and the clock is given.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from mta.config.units import parse_duration, parse_size
from mta.queue import idn

LONGEST: Final = 4000  # characters of an expression
DEEPEST: Final = 50  # parentheses and `not` within each other


class FilterError(ValueError):
    """An expression that cannot be understood; `column` counts from 1."""

    def __init__(self, column: int, text: str) -> None:
        super().__init__(f"column {column}: {text}")
        self.column = column


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """What is known of all deliveries of a queue."""

    name: str
    domain: str
    tenant: str = ""
    campaign: str = ""
    pool: str = ""
    priority: str = "normal"
    provider: str | None = None  # None: not looked up
    detour: int = 0  # number of the order by which its mail is rerouted, apart from that of the queue `beside`
    beside: str = ""


@dataclass(frozen=True, slots=True)
class DeliveryFacts:
    """What is known of one delivery. Ages in seconds, sizes in bytes."""

    message: str  # its id as people see it
    sender: str
    recipients: Sequence[str]
    age_s: float
    attempts: int
    size: int
    source: str = ""  # that it left from last
    reply: str = ""  # that it got last


Facts: TypeAlias = tuple[QueueFacts, DeliveryFacts | None]
Verdict: TypeAlias = "bool | None"
_Check: TypeAlias = Callable[[Facts], Verdict]


class _Text(NamedTuple):
    """A field with words. `of` is None where the facts do not say."""

    of: Callable[[Facts], Sequence[str] | None]
    doc: str


class _Number(NamedTuple):
    of: Callable[[Facts], float | None]
    parse: Callable[[str], float]
    doc: str


def _queue(name: str) -> Callable[[Facts], Sequence[str] | None]:
    def of(facts: Facts) -> Sequence[str] | None:
        value = getattr(facts[0], name)
        return None if value is None else (value,)

    return of


def _delivery(name: str) -> Callable[[Facts], Sequence[str] | None]:
    def of(facts: Facts) -> Sequence[str] | None:
        return None if facts[1] is None else (getattr(facts[1], name),)

    return of


def _amount(name: str) -> Callable[[Facts], float | None]:
    def of(facts: Facts) -> float | None:
        return None if facts[1] is None else float(getattr(facts[1], name))

    return of


def _whole(text: str) -> float:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"expected a whole number, not {text[:40]!r}")
    return float(text)


FIELDS: Final[dict[str, _Text | _Number]] = {
    "domain": _Text(_queue("domain"), "recipient domain"),
    "queue": _Text(lambda facts: (facts[0].name, facts[0].beside or facts[0].name),
                   "name of the queue, as `mta queue` shows it"),
    "tenant": _Text(_queue("tenant"), "tenant; \"\" for mail without one"),
    "campaign": _Text(_queue("campaign"), "campaign"),
    "pool": _Text(_queue("pool"), "pool that the label asks for"),
    "priority": _Text(_queue("priority"), "transactional, normal or bulk"),
    "provider": _Text(_queue("provider"), "provider of the site, as in `mta shaping`"),
    "sender": _Text(_delivery("sender"), "envelope sender; @example.org: any of that domain; \"\": the null sender"),
    "recipient": _Text(lambda facts: None if facts[1] is None else facts[1].recipients,
                       "any envelope recipient that is left; @example.org: any of that domain"),
    "message": _Text(_delivery("message"), "id of the message"),
    "source": _Text(_delivery("source"), "source that it left from last"),
    "reply": _Text(_delivery("reply"), "the last reply, as in reply~5\\.7\\.1"),
    "age": _Number(_amount("age_s"), parse_duration, "since it was accepted, as in age>2h"),
    "attempts": _Number(_amount("attempts"), _whole, "attempts that failed"),
    "size": _Number(_amount("size"), parse_size, "of the message, as in size>1MB"),
}

WITH_DOMAINS: Final = frozenset(("domain", "queue", "sender", "recipient"))  # in their values
OF_QUEUES: Final = frozenset(("domain", "queue", "tenant", "campaign", "pool", "priority", "provider"))

_TOKEN = re.compile(r"""\s*(?:
    (?P<paren>[()]) | (?P<op>!=|>=|<=|=|~|>|<) | "(?P<quoted>(?:[^"\\]|\\.)*)" | (?P<word>[^\s()=!<>~"]+)
)""", re.VERBOSE)
_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    "=": lambda one, other: one == other, "!=": lambda one, other: one != other,
    ">": lambda one, other: one > other, ">=": lambda one, other: one >= other,
    "<": lambda one, other: one < other, "<=": lambda one, other: one <= other,
}


class Filter:
    """An expression, ready to be asked."""

    def __init__(self, text: str, check: _Check, fields: frozenset[str] = frozenset(),
                 words: tuple[str, ...] = ()) -> None:
        """Use `parse`."""
        self.text = text
        self.fields = fields  # that it asks for
        self.words = words
        self._check = check

    def __repr__(self) -> str:
        return f"<Filter {self.text}>"

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Read an expression. Raises FilterError."""
        if len(text) > LONGEST:
            raise FilterError(LONGEST, f"longer than {LONGEST} characters")
        reader = _Reader(text)
        check = reader.read()
        return cls(text, check, frozenset(reader.fields), reader.words)

    @property
    def on_queues(self) -> bool:
        """Whether it asks for nothing but what is the same for all of a queue."""
        return self.fields <= OF_QUEUES

    def of_queue(self, queue: QueueFacts) -> Verdict:
        """Whether all deliveries of `queue` are meant, or none; None: some may be."""
        return self._check((queue, None))

    def matches(self, queue: QueueFacts, delivery: DeliveryFacts) -> bool:
        """Whether a delivery is meant. What is not known (`provider` without a look) does not match."""
        return self._check((queue, delivery)) is True


class _Token(NamedTuple):
    kind: str  # "paren", "op", "quoted", "word"; "" at the end
    text: str
    column: int


class _Reader:
    """One pass over an expression."""

    def __init__(self, text: str) -> None:
        self.fields: set[str] = set()
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0

    def read(self) -> _Check:
        """The whole of it."""
        check = self._any()
        if self._next.kind:
            raise self._error(self._next, "expected `and`, `or` or the end")
        return check

    @property
    def words(self) -> tuple[str, ...]:
        """The tokens, but for what makes no difference; a value has a mark, as it may be called `and`. The case of a
        regular expression counts: it tells `\\d` from `\\D`."""
        found, before, field = [], "", ""
        for token in self._tokens[:-1]:
            text = token.text if before == "~" else token.text.lower()
            if before and token.kind != "op":
                has_domain = field in WITH_DOMAINS and before != "~"
                text = f"={idn.forms(text)[0] if has_domain else text}"
            found.append(text)
            if token.kind != "op":
                field = text
            before = token.text if token.kind == "op" else ""
        return tuple(found)

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _takes_word(self, word: str) -> bool:
        if self._next.kind == "word" and self._next.text.lower() == word:
            self._at += 1
            return True
        return False

    @staticmethod
    def _error(token: _Token, expected: str) -> FilterError:
        found = f"not {token.text[:40]!r}" if token.kind else "not the end"
        return FilterError(token.column, f"{expected}, {found}")

    def _any(self) -> _Check:
        checks = [self._all()]
        while self._takes_word("or"):
            checks.append(self._all())
        return checks[0] if len(checks) == 1 else lambda facts: _either(checks, facts)

    def _all(self) -> _Check:
        checks = [self._one()]
        while self._takes_word("and"):
            checks.append(self._one())
        return checks[0] if len(checks) == 1 else lambda facts: _every(checks, facts)

    def _one(self) -> _Check:
        self._depth += 1
        try:
            if self._depth > DEEPEST:
                raise FilterError(self._next.column, f"more than {DEEPEST} levels deep")
            if self._takes_word("not"):
                check = self._one()
                return lambda facts: _opposite(check(facts))
            if self._next.kind == "paren" and self._next.text == "(":
                self._take()
                inner = self._any()
                closing = self._take()
                if closing.text != ")" or closing.kind != "paren":
                    raise self._error(closing, "expected `)`")
                return inner
            return self._term()
        finally:
            self._depth -= 1

    def _term(self) -> _Check:
        name = self._take()
        if name.kind != "word":
            raise self._error(name, "expected a field, such as domain, tenant or age")
        field = FIELDS.get(name.text.lower())
        if field is None:
            close = difflib.get_close_matches(name.text.lower()[:40], FIELDS, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(FIELDS)}"
            raise FilterError(name.column, f"no field {name.text[:40]!r}: {hint}")
        self.fields.add(name.text.lower())
        operator = self._take()
        if operator.kind != "op":
            raise self._error(operator, f"expected an operator behind {name.text}, as in {name.text}=")
        value = self._take()
        if value.kind not in ("word", "quoted"):
            raise self._error(value, f"expected a value behind {name.text}{operator.text}")
        if isinstance(field, _Number):
            return _number_check(name.text, field, operator, value)
        return _text_check(name.text, field, operator, value)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            column = at + len(text[at:]) - len(text[at:].lstrip()) + 1
            raise FilterError(column, f"cannot be read: {text[column - 1:][:20]!r}")
        kind = found.lastgroup or ""
        value = found[kind]
        if kind == "quoted":
            value = re.sub(r"\\(.)", r"\1", value)
        tokens.append(_Token(kind, value, found.start(kind) + 1))
        at = found.end()
    tokens.append(_Token("", "", end + 1))
    return tokens


def _text_check(name: str, field: _Text, operator: _Token, value: _Token) -> _Check:
    forms = idn.forms if name.lower() in WITH_DOMAINS else _one_form
    if operator.text == "~":
        try:
            search = re.compile(value.text, re.IGNORECASE).search
        except re.error as error:
            raise FilterError(value.column, f"no regular expression: {error}") from None
        return _on_words(field, lambda word: any(map(search, (word, *forms(word)))), wanted=True)
    if operator.text not in ("=", "!="):
        raise FilterError(operator.column, f"{name} is text, which is compared by =, != or ~")
    text = value.text.lower()
    if name.lower() in ("sender", "recipient") and text.startswith("@"):
        text = "*" + text
    patterns = forms(text)
    wanted = operator.text == "="
    if "*" in text or "?" in text:
        translated = "|".join(fnmatch.translate(one.replace("[", "[[]")) for one in patterns)
        matches = re.compile(translated).match
        return _on_words(field, lambda word: any(map(matches, forms(word))), wanted)
    return _on_words(field, lambda word: forms(word)[0] == patterns[0], wanted)


def _one_form(word: str) -> tuple[str, ...]:
    return (word.lower(),)


def _on_words(field: _Text, test: Callable[[str], bool], wanted: bool) -> _Check:
    of = field.of

    def check(facts: Facts) -> Verdict:
        words = of(facts)
        return None if words is None else any(map(test, words)) is wanted

    return check


def _number_check(name: str, field: _Number, operator: _Token, value: _Token) -> _Check:
    if operator.text == "~":
        raise FilterError(operator.column, f"{name} is a number, which is compared by =, !=, <, <=, > or >=")
    try:
        bound = field.parse(value.text)
    except ValueError as error:
        raise FilterError(value.column, str(error)) from None
    of, compare = field.of, _COMPARE[operator.text]

    def check(facts: Facts) -> Verdict:
        number = of(facts)
        return None if number is None else compare(number, bound)

    return check


# Kleene's logic: what is not known decides nothing unless the rest does.


def _every(checks: Sequence[_Check], facts: Facts) -> Verdict:
    known = True
    for check in checks:
        verdict = check(facts)
        if verdict is False:
            return False
        known = known and verdict is not None
    return True if known else None


def _either(checks: Sequence[_Check], facts: Facts) -> Verdict:
    known = True
    for check in checks:
        verdict = check(facts)
        if verdict is True:
            return True
        known = known and verdict is not None
    return False if known else None


def _opposite(verdict: Verdict) -> Verdict:
    return None if verdict is None else not verdict
