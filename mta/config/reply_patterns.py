"""Patterns over replies: codes, enhanced codes, texts. Each is read from text and raises ValueError for the operator.

Texts come from strangers, so a regular expression may cost only so much: at most `TEXT_LIMIT` characters are looked at,
and the choices that repeats leave open may not multiply to more than `CHOICES`. That bounds the steps of Python's
backtracking matcher, which has no bound of its own.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, NamedTuple

TEXT_LIMIT = 1024  # characters of a reply that patterns see
CHOICES = 2000

_parser: Any = re._parser  # type: ignore[attr-defined]  # no other way to a parsed pattern, and not typed
_ANY = (0, 999)


class Said(NamedTuple):
    """A reply as patterns see it. `enhanced` is (class, subject, detail), also when it stands inside the text."""

    code: int
    enhanced: tuple[int, int, int] | None
    text: str
    lower: str = ""  # the text in lower case


class TextPattern(NamedTuple):
    """A regular expression over the text, whatever its case."""

    regex: re.Pattern[str]
    needs: tuple[str, ...]  # at least one of these is in every text that it matches; none: not known

    @property
    def text(self) -> str:
        """As it is written."""
        return self.regex.pattern

    def matches(self, reply: Said) -> bool:
        """Whether it is found in the reply."""
        needs = self.needs
        if needs:
            lower = reply.lower
            for word in needs:  # looking for words is many times faster than the expression
                if word in lower:
                    break
            else:
                return False
        return self.regex.search(reply.text) is not None


class CodePattern(NamedTuple):
    """`550`, `55x`, `5xx`: codes from `low` to `high`."""

    text: str
    low: int
    high: int


class EnhancedPattern(NamedTuple):
    """`5.7.28`, `x.7.28`, `x.7.x`, `5.7.606-649`. Class 0 is any."""

    text: str
    status: int
    subject: tuple[int, int]
    detail: tuple[int, int]

    def matches(self, enhanced: tuple[int, int, int]) -> bool:
        """Whether it is one of these."""
        return ((self.status == 0 or self.status == enhanced[0])
                and self.subject[0] <= enhanced[1] <= self.subject[1]
                and self.detail[0] <= enhanced[2] <= self.detail[1])


def parse_code(text: str) -> CodePattern:
    """Read `550`, `55x` or `5xx`. Raises ValueError."""
    word = text.strip().lower()
    if not re.fullmatch(r"[0-9](?:xx|[0-9]x|[0-9]{2})", word, re.ASCII):
        raise ValueError("not a reply code such as 550, 55x or 5xx")
    if word[0] not in "45":
        raise ValueError("rules are about refusals, so a code begins with 4 or 5")
    return CodePattern(word, int(word.replace("x", "0")), int(word.replace("x", "9")))


def parse_enhanced(text: str) -> EnhancedPattern:
    """Read `5.7.28`, `x.7.28`, `x.7.x` or `5.7.606-649`. Raises ValueError."""
    word = text.strip().lower()
    found = re.fullmatch(r"([45x])\.(x|[0-9]{1,3})\.(?:(x)|([0-9]{1,3})(?:-([0-9]{1,3}))?)", word, re.ASCII)
    if found is None:
        raise ValueError("not an enhanced code such as 5.7.28, x.7.28 (4 or 5), x.7.x or 5.7.606-649")
    status, subject, any_detail, low, high = found.groups()
    detail = _ANY if any_detail else (int(low), int(high or low))
    if detail[0] > detail[1]:
        raise ValueError(f"the range {low}-{high} is empty")
    return EnhancedPattern(
        word, 0 if status == "x" else int(status), _ANY if subject == "x" else (int(subject), int(subject)), detail)


def parse_regex(text: str) -> TextPattern:
    """Read a regular expression; case does not matter. Raises ValueError, also for one that may take too long."""
    if not text.strip():
        raise ValueError("an empty expression matches everything")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a set such as [[ will mean something else one day
            tree = _parser.parse(text, re.IGNORECASE)
            compiled = re.compile(text, re.IGNORECASE)
    except (re.error, FutureWarning, DeprecationWarning, OverflowError, RecursionError) as error:
        position = getattr(error, "pos", None)
        where = f" at character {position + 1}" if position is not None else ""
        raise ValueError(f"not a regular expression: {getattr(error, 'msg', error)}{where}") from None
    choices = _choices(tree)
    if choices > CHOICES:
        raise ValueError(f"its repeats leave {choices} choices, at most {CHOICES}: bound them, as in .{{0,40}}")
    if compiled.search("") is not None:
        raise ValueError("it matches an empty text, so it matches everything")
    return TextPattern(compiled, _needs(tree))


def _needs(tree: Any) -> tuple[str, ...]:
    """Words in lower case of which a match has at least one, the longest that can be told; none when none can."""
    best: tuple[str, ...] = ()
    word = ""
    for operation, argument in [*tree, (None, None)]:
        name = str(operation)
        if name == "LITERAL":
            word += chr(argument)
            continue
        found: tuple[str, ...] = ()
        if name == "SUBPATTERN":
            found = _needs(argument[-1])
        elif name == "BRANCH":
            each = [_needs(branch) for branch in argument[1]]
            found = tuple(one for needs in each for one in needs) if all(each) else ()
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and int(argument[0]) > 0:
            found = _needs(argument[2])
        best = max(best, (word.lower(),) if word else (), found, key=lambda needs: min(map(len, needs), default=0))
        word = ""
    # One letter is nearly everywhere; and only of ASCII is it certain what lower case is.
    return best if best and all(len(one) > 1 and one.isascii() for one in best) else ()


def _choices(tree: Any) -> int:
    """In how many ways the matcher may go through `tree` from one place, at most. Raises ValueError."""
    total = 1
    for operation, argument in tree:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, inner = argument
            ways = _choices(inner)
            if ways > 1 and int(high) > 1:
                raise ValueError("a repeat of something that itself can match in several ways takes too long")
            total *= min(int(high), TEXT_LIMIT) - min(int(low), TEXT_LIMIT) + ways
        elif name == "BRANCH":
            total *= _branches(argument[1])
        elif name == "SUBPATTERN":
            total *= _choices(argument[-1])
        elif name == "ATOMIC_GROUP":
            total *= _choices(argument)
        elif name in ("ASSERT", "ASSERT_NOT"):
            total *= _choices(argument[1])
        elif name in ("GROUPREF", "GROUPREF_EXISTS", "GROUPREF_IGNORE"):
            raise ValueError("references to groups are not supported")
        if total > 10**9:
            return total
    return total


def _branches(branches: Any) -> int:
    """Alternatives that begin with different letters cannot both match at one place."""
    by_letter: dict[str, int] = {}
    anything = 0
    for branch in branches:
        ways = _choices(branch)
        first = next(iter(branch), None)
        if first is not None and str(first[0]) == "LITERAL":
            letter = chr(first[1]).lower()
            by_letter[letter] = by_letter.get(letter, 0) + ways
        else:
            anything += ways
    return anything + max(by_letter.values(), default=0)


# Behind the start of the text, "#" or a bracket, where hosts put it that do not know RFC 2034; no part of an address.
_INSIDE = re.compile(r"(?:^|[\s#(\[])([45])\.([0-9]{1,3})\.([0-9]{1,3})(?![.0-9])", re.ASCII)


def said(code: int, enhanced: str, lines: tuple[str, ...]) -> Said:
    """A reply for patterns, cut to what they may see."""
    text = lines[0] if len(lines) == 1 else " ".join(lines[:32])
    text = text[:TEXT_LIMIT]
    if enhanced:
        status, subject, detail = enhanced.split(".")
        return Said(code, (int(status), int(subject), int(detail)), text, text.lower())
    found = _INSIDE.search(text)
    inside = (int(found[1]), int(found[2]), int(found[3])) if found is not None else None
    return Said(code, inside, text, text.lower())


_LINE = re.compile(r"([2-5][0-9][0-9])(?:[ -](.*))?", re.ASCII)
_ENHANCED = re.compile(r"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?: +|\Z)", re.ASCII)


def parse_reply(text: str) -> Said:
    """Read a whole reply as a host sends it, each line with its code; as the SMTP client does. Raises ValueError."""
    enhanced, lines = "", []
    codes = set()
    for line in text.strip().splitlines():
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError("not a reply such as 550 5.1.1 No such user; each line begins with the code")
        codes.add(found[1])
        rest = found[2] or ""
        inner = _ENHANCED.match(rest)
        if inner is not None and inner[1] == found[1][0]:
            code = inner[0].rstrip()
            if not enhanced or enhanced == code:
                enhanced, rest = code, rest[inner.end():]
        lines.append(rest.rstrip())
    if len(codes) != 1:
        raise ValueError("the lines of one reply have one code" if codes else "an empty text, expected a whole reply")
    code_text = codes.pop()
    if code_text[0] not in "45":
        raise ValueError("no refusal: a code that begins with 4 or 5 is expected")
    return said(int(code_text), enhanced, tuple(lines))
