"""YAML text to a tree of nodes that know their place; the traps of YAML end here.

Scalars stay text: what `no`, `1.10` or `12:30` mean is decided by the type of the option, not by their looks. Refused
are duplicate names, tags, documents after the first, aliases to oneself, and nesting or alias expansion beyond what
any configuration needs (a few lines of aliases can stand for billions of nodes). The parser's events are read rather
than `yaml.compose` used, since libyaml's composer recurses in C and deep nesting crashes the process.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from mta.config.problems import printable, quoted

MAX_BYTES = 16_000_000
MAX_DEPTH = 32
MAX_NODES = 1_000_000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What YAML 1.2 5.1 does not allow; U+FEFF only as the very first character.
_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")

Report: TypeAlias = Callable[[int, int, str], None]
"""Called with line, column and message."""


@dataclass(slots=True)
class Scalar:
    """One value. `plain`: written without quotes, so that it may stand for null. `broken`: its fault was reported."""

    line: int
    column: int
    text: str
    plain: bool
    broken: bool = False

    @property
    def size(self) -> int:
        """Nodes in it, as of the other kinds."""
        return 1

    @property
    def is_null(self) -> bool:
        """Whether nothing, `~` or `null` is written."""
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(slots=True)
class Sequence:
    """A list."""

    line: int
    column: int
    items: list[Node] = field(default_factory=list)
    size: int = 1


@dataclass(slots=True)
class Mapping:
    """`name: value` pairs in order, each name once; merge keys (`<<`) are resolved."""

    line: int
    column: int
    entries: dict[str, tuple[Scalar, Node]] = field(default_factory=dict)
    size: int = 1


Node: TypeAlias = Scalar | Sequence | Mapping


def parse(text: str, report: Report) -> Node | None:
    """Read one YAML document. None when it is empty, or when its syntax is broken, which is reported."""
    text = text.removeprefix("\ufeff")
    bad = _NOT_TEXT.search(text)
    if bad is not None:
        line, column = position(text, bad.start())
        report(line, column, f"the character U+{ord(bad[0]):04X} is not allowed, expected plain text")
        return None
    builder = _Builder(report)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        report(*_syntax_problem(error, text))
        return None
    except yaml.YAMLError as error:
        report(1, 1, f"not YAML: {printable(str(error), 200)}")
        return None
    except _TooMuch:
        return None
    return builder.root


def position(text: str, index: int) -> tuple[int, int]:
    """Line and column, from 1, of the character at `index`."""
    line, start = 1, 0
    for end in _LINE_END.finditer(text, 0, index):
        line, start = line + 1, end.end()
    return line, index - start + 1


class _TooMuch(Exception):  # noqa: N818 -- ends the reading; the error was reported
    """The document goes beyond a bound."""


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come yet."""

    node: Sequence | Mapping
    anchor: str | None
    key: Scalar | None = None  # of a mapping: the name that waits for its value
    skip: bool = False  # the waiting name cannot be used, its value is dropped
    expects_key: bool = True
    merges: list[tuple[Scalar, Node]] = field(default_factory=list)


class _Builder:
    """Turns parser events into a tree without recursion. `size` of a node counts it with aliases written out."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.root: Node | None = None
        self.stack: list[_Open] = []
        self.anchors: dict[str, Node | None] = {}  # None: still open
        self.documents = 0
        self.merged = 0  # entries looked at for `<<`

    def take(self, event: Any) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.ScalarEvent):
            self.refuse_tag(event)
            node = Scalar(line, column, event.value, plain=not event.style)  # None or ""
            if event.anchor is not None:
                self.anchors[event.anchor] = node
            self.add(node, line, column)
        elif isinstance(event, yaml.AliasEvent):
            self.add(self.target(str(event.anchor), line, column), line, column)
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            self.refuse_tag(event)
            if len(self.stack) >= MAX_DEPTH:
                self.report(line, column, f"nested deeper than {MAX_DEPTH} levels")
                raise _TooMuch
            opened = Sequence(line, column) if isinstance(event, yaml.SequenceStartEvent) else Mapping(line, column)
            if event.anchor is not None:
                self.anchors[event.anchor] = None
            self.stack.append(_Open(opened, event.anchor))
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            closed = self.stack.pop()
            self.merge(closed)
            if closed.anchor is not None:
                self.anchors[closed.anchor] = closed.node
            self.add(closed.node, closed.node.line, closed.node.column)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self.report(line, column, "a second document begins (---), expected one document in the file")
                raise _TooMuch

    def refuse_tag(self, event: Any) -> None:
        if event.tag is not None:
            self.report(event.start_mark.line + 1, event.start_mark.column + 1,
                        f"the tag {quoted(event.tag)} has no use here, expected the value alone")

    def target(self, anchor: str, line: int, column: int) -> Node:
        node = self.anchors.get(anchor)
        if node is None:
            known = anchor in self.anchors
            self.report(line, column, f'the alias {quoted("*" + anchor)} '
                        + ("is part of what it stands for" if known else
                           f'has no anchor {quoted("&" + anchor)} above it; a text that begins with * needs quotes'))
            return Scalar(line, column, "", plain=False, broken=True)
        return node

    def add(self, node: Node, line: int, column: int) -> None:
        """Put a finished node where it belongs. `line` and `column` are where it is used."""
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        if isinstance(parent.node, Sequence):
            parent.node.items.append(node)
            self.grow(parent.node, node.size, line, column)
        elif parent.expects_key:
            parent.expects_key = False
            self.add_key(parent, parent.node, node, line, column)
            self.grow(parent.node, 1, line, column)
        else:
            parent.expects_key = True
            if parent.key is not None and not parent.skip:
                if parent.key.plain and parent.key.text == "<<":
                    parent.merges.append((parent.key, node))
                else:
                    parent.node.entries[parent.key.text] = (parent.key, node)
                    self.grow(parent.node, node.size, line, column)

    def grow(self, node: Sequence | Mapping, size: int, line: int, column: int) -> None:
        node.size += size
        if node.size > MAX_NODES or self.merged > MAX_NODES:
            self.report(line, column, f"more than {MAX_NODES} values, with aliases written out")
            raise _TooMuch

    def add_key(self, parent: _Open, mapping: Mapping, node: Node, line: int, column: int) -> None:
        parent.key, parent.skip = None, True
        if not isinstance(node, Scalar):
            self.report(line, column, "a list or mapping stands where a name is expected; a name with brackets or "
                                      "braces needs quotes")
            return
        if node.broken:
            return
        parent.key = Scalar(line, column, node.text, node.plain)
        before = mapping.entries.get(node.text)
        if before is not None:
            self.report(line, column, f"{quoted(node.text)} is given twice, first in line {before[0].line}")
            return
        parent.skip = False

    def merge(self, closed: _Open) -> None:
        """Resolve `<<`: what is written in the mapping itself wins, then the earlier of several merged ones."""
        if not isinstance(closed.node, Mapping):
            return
        for key, value in closed.merges:
            for source in value.items if isinstance(value, Sequence) else [value]:
                if isinstance(source, Scalar) and source.broken:
                    continue
                if not isinstance(source, Mapping):
                    self.report(key.line, key.column, "<< merges mappings, expected an alias of one or a list of them")
                    continue
                self.merged += len(source.entries)
                for name, entry in source.entries.items():
                    if name not in closed.node.entries:
                        closed.node.entries[name] = entry
                        self.grow(closed.node, 1 + entry[1].size, key.line, key.column)
                self.grow(closed.node, 0, key.line, key.column)


# --- syntax errors -------------------------------------------------------------------------------------------------


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> tuple[int, int, str]:
    """Line, column and a message that says what to change; libyaml's own words where we know no better."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return 1, 1, f"not YAML: {printable(str(error), 200)}"
    line, column, message = _explain(error, mark, text)
    if "::" in _line(text, mark.line):
        message += "; an IPv6 address needs quotes"
    return line, column, message


def _explain(error: yaml.MarkedYAMLError, mark: yaml.Mark, text: str) -> tuple[int, int, str]:
    problem, context = error.problem or "", error.context or ""
    begun = error.context_mark or mark
    here = (mark.line + 1, mark.column + 1)
    start = (begun.line + 1, begun.column + 1)
    character = _line(text, mark.line)[mark.column : mark.column + 1]
    if character == "\t" or "tab character" in problem:
        return *here, "a tab, expected spaces for indentation"
    if "maximum nesting depth" in problem:  # of libyaml itself, from 0.2.6 on
        return *here, f"nested deeper than {MAX_DEPTH} levels"
    if "cannot start any token" in problem:
        return *here, f"a value cannot begin with {quoted(character)}, expected it in quotes"
    if "nesting depth" in problem:  # libyaml's own bound, which is above ours but may come first
        return *here, f"nested deeper than {MAX_DEPTH} levels"
    if "alphabetic or numeric" in problem:
        sign = "&" if "anchor" in context else "*"
        return *start, f'{sign} alone means something else in YAML, expected it in quotes, "{sign}"'
    if "mapping values are not allowed" in problem:
        return *here, 'a ":" that does not belong here: the line is indented wrongly, or a value with ": " needs quotes'
    if "could not find expected ':'" in problem:
        return *start, 'a name without a value, expected "name: value" with a space after the colon'
    if "end of stream" in problem and "quoted" in context:
        return *start, "a quote that is never closed"
    if "flow node" in context:
        return *here, "a value is missing, or the brackets around it are not closed"
    if "',' or ']'" in problem or "',' or '}'" in problem:
        return *here, f"expected a comma or the closing bracket of the list or mapping begun in line {start[0]}"
    if "block end" in problem or "expected key" in problem or "'-' indicator" in problem:
        return *here, f"the indentation does not fit the lines above, which begin in line {start[0]} column {start[1]}"
    if "unknown escape" in problem:
        return *here, "an unknown escape with \\; in single quotes a \\ stands for itself"
    return *here, f"not YAML: {printable(', '.join(filter(None, (problem, context))), 200)}"


def _line(text: str, line: int) -> str:
    """A line of the text, counted from 0; empty behind the end."""
    lines = _LINE_END.split(text)
    return lines[line] if line < len(lines) else ""
