"""YAML and its traps: what is a node, what is refused, where, and within which bounds."""

from __future__ import annotations

import time

import pytest
import yaml

from mta.config import tree
from mta.config.tree import Mapping, Node, Scalar, Sequence


def parse(text: str) -> tuple[Node | None, list[str]]:
    found: list[str] = []
    return tree.parse(text, lambda line, column, message: found.append(f"{line}:{column}: {message}")), found


def plain(node: Node | None) -> object:
    """The tree as lists, dicts and texts."""
    if isinstance(node, Mapping):
        return {name: plain(value) for name, (_, value) in node.entries.items()}
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return None if node is None else node.text


def test_scalars_stay_text() -> None:
    """Nothing is converted: what `no` or `1.10` mean is the option's affair."""
    text = "a: no\nb: 1.10\nc: 12:30:00\nd: 0o17\ne: 2024-01-01\nf: ~\ng: 'no'\n"
    root, found = parse(text)
    assert not found
    assert plain(root) == {"a": "no", "b": "1.10", "c": "12:30:00", "d": "0o17", "e": "2024-01-01", "f": "~", "g": "no"}


def test_null_is_plain() -> None:
    """Nothing, `~` and `null` are null; in quotes they are texts."""
    root, _ = parse("[~, null, '~', 'null', '']")
    assert isinstance(root, Sequence)
    assert [item.is_null for item in root.items if isinstance(item, Scalar)] == [True, True, False, False, False]


def test_places() -> None:
    """Lines and columns count from 1, columns in characters."""
    root, _ = parse("a: 1\nbücher: {x: [2, 3]}\n")
    assert isinstance(root, Mapping)
    key, value = root.entries["bücher"]
    assert (key.line, key.column) == (2, 1)
    assert isinstance(value, Mapping)
    items = value.entries["x"][1]
    assert isinstance(items, Sequence)
    assert [(item.line, item.column) for item in items.items] == [(2, 14), (2, 17)]


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n# nothing\n"])
def test_empty(text: str) -> None:
    """An empty document is nothing, or null after `---`."""
    root, found = parse(text)
    assert not found
    assert root is None or (isinstance(root, Scalar) and root.is_null)


@pytest.mark.parametrize(("text", "message"), [
    ("a: 1\nb: 2\na: 3", '3:1: "a" is given twice, first in line 1'),
    ("a: {x: 1, x: 2}", '1:11: "x" is given twice, first in line 1'),
    ("a: 1\n---\nb: 2", "2:1: a second document begins (---), expected one document in the file"),
    ("a: !!str 5", '1:4: the tag "tag:yaml.org,2002:str" has no use here, expected the value alone'),
    ("a: !!python/object/apply:os.system [x]", "1:4: the tag "),
    ("a: *x", '1:4: the alias "*x" has no anchor "&x" above it; a text that begins with * needs quotes'),
    ("a: &a [*a]", '1:8: the alias "*a" is part of what it stands for'),
    ("a: &a {<<: *a}", '1:12: the alias "*a" is part of what it stands for'),
    ("a: {<<: 5}", "1:5: << merges mappings, expected an alias of one or a list of them"),
    ("? [a]\n: b",
     "1:3: a list or mapping stands where a name is expected; a name with brackets or braces needs quotes"),
    ("a:\n\tb: 1", "2:1: a tab, expected spaces for indentation"),
    ("a: |\n\tb", "2:1: a tab, expected spaces for indentation"),
    ("a: @x", '1:4: a value cannot begin with "@", expected it in quotes'),
    ("a: %x", '1:4: a value cannot begin with "%", expected it in quotes'),
    ("routes: {*: mx}", '1:10: * alone means something else in YAML, expected it in quotes, "*"'),
    ("a: b: c",
     '1:5: a ":" that does not belong here: the line is indented wrongly, or a value with ": " needs quotes'),
    ("a: 1\nb", '2:1: a name without a value, expected "name: value" with a space after the colon'),
    ("a: 1\nb:2\nc: 3", '2:1: a name without a value, expected "name: value" with a space after the colon'),
    ("a: 'x\nb: 1", "1:4: a quote that is never closed"),
    ("a: [1, 2\nb: 3", "expected a comma or the closing bracket of the list or mapping begun in line 1"),
    ("a: [::1]", "1:5: a value is missing, or the brackets around it are not closed; an IPv6 address needs quotes"),
    ("a:\n  - 1\n b: 2", "3:2: the indentation does not fit the lines above, which begin in line 1 column 1"),
    ('a: "\\q"', "1:5: an unknown escape with \\; in single quotes a \\ stands for itself"),
    ("a: \x00", "1:4: the character U+0000 is not allowed, expected plain text"),
    ("a: 1\r\nb: \x1b[0m", "2:4: the character U+001B is not allowed, expected plain text"),
    ("a: \ud800", "1:4: the character U+D800 is not allowed, expected plain text"),
    ("%YAML 9.9\n---\na: 1", "1:1: not YAML: "),
])
def test_refused(text: str, message: str) -> None:
    """Each trap is one message that says where and what to do."""
    _, found = parse(text)
    assert len(found) == 1
    assert message in found[0]


def test_tags_are_all_reported() -> None:
    """What does not end the parsing does not end the report."""
    assert len(parse("a: !x 1\na: !y 2\n")[1]) == 3


def test_both_parsers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libyaml the slower parser gives the same tree."""
    text = "a: 1\nb: [x, 'y', \"z\"]\nc: &c {d: ~}\ne: {<<: *c, f: 'no'}\n"
    fast = parse(text)
    monkeypatch.setattr(tree, "_Loader", yaml.SafeLoader)
    assert parse(text) == fast


def test_byte_order_mark() -> None:
    """Editors on Windows put one in front; it is skipped."""
    assert plain(parse("\ufeffa: 1\r\n")[0]) == {"a": "1"}


def test_merge_keys() -> None:
    """What is written in the mapping itself wins, then the first of several merged; in quotes `<<` is a name."""
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {y: 3, <<: [*a, *b]}\nd: {'<<': x}\n"
    root, found = parse(text)
    assert not found
    assert plain(root) == {
        "a": {"x": "1", "y": "1"}, "b": {"y": "2", "z": "2"}, "c": {"x": "1", "y": "3", "z": "2"}, "d": {"<<": "x"},
    }


def test_redefined_anchor() -> None:
    """An anchor may be given anew; an alias means the last one above it."""
    assert plain(parse("a: &x 1\nb: *x\nc: &x 2\nd: *x\n")[0]) == {"a": "1", "b": "1", "c": "2", "d": "2"}


def _bomb() -> str:
    """Each list holds the one before ten times."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))]
    return "\n".join(lines)


def _merge_bomb() -> str:
    """Five thousand small mappings, each of which merges the same ten names ten thousand times."""
    names = ", ".join(f"k{n}: 1" for n in range(10))
    aliases = ", ".join(["*m"] * 10_000)
    return f"m: &m {{{names}}}\nl: &l [{aliases}]\n" + "".join(f"m{n}: {{<<: *l}}\n" for n in range(5000))


@pytest.mark.parametrize("text", [
    _bomb(), _merge_bomb(),
    "[" * 200_000, "- " * 200_000, "{a: " * 200_000, "[" * 200_000 + "]" * 200_000,
])
def test_bombs(text: str) -> None:
    """A few lines that stand for billions of values, and nesting that would overflow the C stack, end soon."""
    begin = time.monotonic()
    root, found = parse(text)
    assert root is None
    assert len(found) == 1
    assert "more than 1000000 values, with aliases written out" in found[0] or "nested deeper than 32" in found[0]
    assert time.monotonic() - begin < 60  # a bomb would take for ever


def test_merging_does_not_multiply() -> None:
    """Names that are merged over and over are one name each, so a long chain of merges is no bomb."""
    lines = ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 30))]
    root, found = parse("\n".join(lines))
    assert not found
    assert isinstance(root, Mapping)
    assert plain(root.entries["a29"][1]) == {"x": "1"}


def test_nesting_that_is_allowed() -> None:
    """32 levels are, 33 are not."""
    assert not parse("[" * 32 + "]" * 32)[1]
    assert parse("[" * 33 + "]" * 33)[1] == ["1:33: nested deeper than 32 levels"]
