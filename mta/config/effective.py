"""The configuration as it holds: every option with its value and where that comes from, and what a reload changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from mta.config.describe import Option, options_of, plain_value, section_of, written
from mta.config.problems import OptionPath, path_text, printable
from mta.config.reply_rules import ReplyRule
from mta.config.schema import Config, Route
from mta.config.shaping import Layer

# Mappings whose keys are the operator's.
_BY_NAME = ("routes", "domains", "senders", "sources", "pools", "tenants", "providers", "users")

# In these all that is set counts, also where it is what holds without it.
_LAYERED = ("shaping", "providers")

Places = Mapping[OptionPath, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One option that holds a value of its own (a section holds options)."""

    path: OptionPath
    option: Option
    value: Any
    place: tuple[int, int] | None  # line and column in the file; None: a default

    @property
    def text(self) -> str:
        """The value as it is written in the file."""
        return written(self.value, self.option.type)

    def source(self, file: str) -> str:
        """`default` or `FILE:LINE`."""
        return "default" if self.place is None else f"{printable(file)}:{self.place[0]}"

    def for_json(self, file: str) -> dict[str, Any]:
        """The same for programs."""
        value = self.text if isinstance(self.value, Route) else plain_value(self.value, self.option.type)
        result: dict[str, Any] = {"option": path_text(self.path), "value": value, "source": "default"}
        if self.place is not None:
            result |= {"source": "file", "file": file, "line": self.place[0], "column": self.place[1]}
        return result


def settings(config: Config, given: Places | None = None) -> Iterator[Setting]:
    """All options of `config` in the order of the schema. `given` is what `loader.read` noted."""
    yield from _section(config, (), given or {})


def _section(section: Any, path: OptionPath, given: Places) -> Iterator[Setting]:
    for name, option in options_of(section.__class__).items():
        value = getattr(section, name)
        here = (*path, name)
        inner = section_of(option.type)
        if isinstance(value, Layer):
            yield from _layer(value, here, given)
        elif inner is option.type:
            yield from _section(value, here, given)
        elif inner is not None and get_origin(option.type) is tuple and value:
            for index, item in enumerate(value):
                yield from _section(item, (*here, index), given)
        elif inner is not None and value:
            for key, item in value.items():
                if isinstance(item, Route):
                    yield Setting((*here, key), option, item, given.get((*here, key)))
                elif isinstance(item, Layer):
                    yield from _entry(item, (*here, key), option, given)
                else:
                    yield from _section(item, (*here, key), given)
        else:
            yield Setting(here, option, value, given.get(here))


def _entry(layer: Layer, path: OptionPath, option: Option, given: Places) -> Iterator[Setting]:
    """A layer by name. One that sets nothing says something, too: a domain has connections of its own."""
    found = list(_layer(layer, path, given))
    yield from found or [Setting(path, option, layer, given.get(path))]


def _layer(layer: Any, path: OptionPath, given: Places) -> Iterator[Setting]:
    """A layer of shaping holds what it sets, and nothing else."""
    for name, option in options_of(layer.__class__).items():
        here = (*path, name)
        if hasattr(layer, name):
            value = getattr(layer, name)
            if isinstance(value, dict):
                for key, inner in value.items():
                    yield from _entry(inner, (*here, key), option, given)
            elif value is not None:
                yield from _section(value, here, given)
        elif section_of(option.type) is option.type:
            for part, inner_option in options_of(option.type).items():
                if f"{name}.{part}" in layer.options:
                    place = given.get((*here, part)) or given.get(here)  # unset as a whole
                    yield Setting((*here, part), inner_option, layer.options[f"{name}.{part}"], place)
        elif name in layer.options:
            yield Setting(here, option, layer.options[name], given.get(here))


def as_yaml(config: Config, given: Places, file: str, only_given: bool = False) -> str:
    """The configuration as YAML that loads to the same, with the source of each value as a comment."""
    lines: list[tuple[str, str]] = []
    before: OptionPath = ()
    for path, text, source in _given_lines(config, given, file) if only_given else _all_lines(config, given, file):
        depth = 0
        while depth < len(path) - 1 and path[: depth + 1] == before[: depth + 1]:
            depth += 1
        for outer in range(depth, len(path) - 1):
            if isinstance(path[outer], str):
                lines.append((f"{_margin(path, outer, before)}{_name(path, outer)}:", ""))
                before = path[: outer + 1]
        depth = len(path) - 1
        lines.append((f"{_margin(path, depth, before)}{_name(path, depth)}: {text}", source))
        before = path
    width = min(max((len(text) for text, source in lines if source), default=0), 60)
    return "".join(f"{text:{width}}  # {source}\n" if source else f"{text}\n" for text, source in lines)


def _all_lines(config: Config, given: Places, file: str) -> Iterator[tuple[OptionPath, str, str]]:
    for setting in settings(config, given):
        yield setting.path, setting.text, setting.source(file)


def _given_lines(config: Config, given: Places, file: str) -> Iterator[tuple[OptionPath, str, str]]:
    """What the file sets, and sections that it names without setting anything in them."""
    filled = {path[:length] for path in given for length in range(len(path))}
    empty: OptionPath = ()
    for setting in settings(config, given):
        section = setting.path[:-1]
        if setting.place is not None:
            yield setting.path, setting.text, setting.source(file)
        elif section in given and section not in filled and section != empty:
            empty = section
            yield section, "{}", f"{printable(file)}:{given[section][0]}"


def _margin(path: OptionPath, depth: int, before: OptionPath) -> str:
    """Indentation of the name at `depth`; it begins a list item when the item differs from the one before."""
    if depth and isinstance(path[depth - 1], int) and before[:depth] != path[:depth]:
        return "  " * (depth - 1) + "- "
    return "  " * depth


def _name(path: OptionPath, depth: int) -> str:
    return written(path[depth], str) if depth and path[depth - 1] in _BY_NAME else str(path[depth])


@dataclass(frozen=True, slots=True)
class Change:
    """One option that differs between two configurations; the text is empty where it does not exist."""

    path: OptionPath
    old: str
    new: str
    needs_restart: bool


def changes(old: Config, new: Config) -> list[Change]:
    """What a reload from `old` to `new` means, in the order of the schema; what is gone comes last. Then what differs
    in the files that `providers` and `rules_file` name, below the names of these options."""
    return [*_differences(settings(old), settings(new)),
            *_differences(_section(old.shaping.shipped, ("providers",), {}),
                          _section(new.shaping.shipped, ("providers",), {})),
            *_rule_changes(old.rules.shipped, new.rules.shipped)]


def _differences(old: Iterable[Setting], new: Iterable[Setting]) -> list[Change]:
    before, after = (
        {one.path: one for one in found if one.value or section_of(one.option.type) is None} for found in (old, new))
    sections = _sections(before) & _sections(after)
    result: dict[OptionPath, Change] = {}
    for path in [*after, *(path for path in before if path not in after)]:
        one, other = before.get(path), after.get(path)
        old_text, new_text = one.text if one else "", other.text if other else ""
        if old_text == new_text:
            continue
        only = other if one is None else one
        if (one is None or other is None) and only is not None and path[0] not in _LAYERED:
            # Of a section that comes or goes only what it says; of one that says nothing, that it does.
            root = next((path[:length] for length in range(1, len(path)) if path[:length] not in sections
                         and path[length - 1] not in _BY_NAME and not isinstance(path[length], int)), None)
            if root is not None and only.value == only.option.default:
                empty = ("", "{}") if one is None else ("{}", "")
                result.setdefault(root, Change(root, *empty, _needs_restart(root, True)))
                continue
            if root is not None:
                result[root] = Change(root, "", "", False)
        result[path] = Change(path, old_text, new_text, _needs_restart(path, one is None or other is None))
    return [one for one in result.values() if one.old or one.new]


def _sections(found: Iterable[OptionPath]) -> set[OptionPath]:
    return {path[:length] for path in found for length in range(1, len(path))}


def _rule_changes(old: Sequence[ReplyRule], new: Sequence[ReplyRule]) -> Iterator[Change]:
    """What differs in a file of rules: rules that come and go, their options, and their order."""
    before, after = {one.name: one for one in old}, {one.name: one for one in new}
    for name in [*after, *(name for name in before if name not in after)]:
        options = [dict(one.written) if one is not None else {} for one in (before.get(name), after.get(name))]
        for option in {**options[0], **options[1]}:
            texts = [_rule_text(said[option]) if option in said else "" for said in options]
            if texts[0] != texts[1] and option != "name":
                yield Change(("rules_file", name, option), texts[0], texts[1], False)
    orders = [[name for name in one if name in other] for one, other in ((before, after), (after, before))]
    if orders[0] != orders[1]:
        first = next(place for place, name in enumerate(orders[1]) if name != orders[0][place])
        yield Change(("rules_file", "order"), f"... {orders[0][first]} ...", f"... {orders[1][first]} ...", False)


def _rule_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _needs_restart(path: OptionPath, appears: bool) -> bool:
    """Whether the option is fixed while the MTA runs, or the list is in which it `appears` or from which it goes."""
    section: Any = Config
    fixed = False
    for part in path:
        if isinstance(part, str) and part in options_of(section):
            option = options_of(section)[part]
            fixed = option.needs_restart or (fixed and appears)
            section = section_of(option.type) or section
    return fixed
