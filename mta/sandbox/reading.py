"""The sandbox's YAML to `Settings`, or to every problem in it at once with its place.

Built on the position-keeping tree and the unit types of `mta.config`. What the product's own loader has no need for is
here: personalities that take what they leave out from another one, patterns as names, and replies of several lines.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
from collections.abc import Mapping
from typing import Any, Final, Literal, NoReturn, Union, get_args, get_origin

from mta.config import tree
from mta.config.describe import Option, expected_text, is_optional, options_of, section_of, without_none
from mta.config.hosts import parse_endpoint, parse_name
from mta.config.kinds import KINDS
from mta.config.problems import ConfigError, Problem, printable, quoted
from mta.config.textfile import file_text
from mta.config.tree import Node, Scalar, Sequence
from mta.sandbox.settings import HOME, HOME_IPV6, Personality, Phase, Rule, Settings


def read_settings(path: str) -> Settings:
    """The settings in the file `path`. Raises ConfigError with all problems."""
    text, problem = file_text(path)
    if problem is not None:
        raise ConfigError([problem])
    return read_text(text, path)


def read_text(text: str, name: str = "<text>") -> Settings:
    """The settings in `text`. Raises ConfigError with all problems."""
    reader = _Reader(name)
    root = tree.parse(text, reader.report)
    settings = Settings()
    if root is not None:
        try:
            settings = reader.settings(root)
        except _Fault:
            pass
    reader.finish()
    return settings


def read_personality(description: Mapping[str, Any] | str, settings: Settings) -> Personality:
    """A personality as JSON has it, or the name of one of `settings`. Raises ConfigError with all problems."""
    reader = _Reader("<personality>")
    reader.known = settings
    root = tree.parse(json.dumps(description), reader.report)
    personality = settings.default
    if root is not None:
        try:
            personality = reader.personality(root, "personality")
        except _Fault:
            pass
    reader.finish()
    return personality

def read_name(text: str) -> str:
    """A domain, host, pattern, or the address of a host that is always there. Raises ValueError."""
    if "*" in text or text in (HOME, HOME_IPV6):
        return text.lower()
    return parse_name(text)


_TRUTH: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _Fault(Exception):  # noqa: N818 -- never leaves this module; the fault was reported
    """What is being read is of no use."""


class _Reader:
    """One pass over the tree, guided by the types of the settings."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.known: Settings | None = None  # personalities that exist already
        self.nodes: dict[str, Node] = {}  # of the named personalities, and of `default`
        self.done: dict[str, Personality] = {}
        self.reading: list[str] = []  # names whose personality is being read, to find circles
        self.phases: dict[int, Node] = {}  # of the personalities read, by identity: they are read again over heirs

    def report(self, line: int, column: int, message: str) -> None:
        self.problems.append(Problem(self.file, line, column, printable(message, 1000)))

    def fail(self, node: Node, where: str, message: str) -> NoReturn:
        self.report(node.line, node.column, f"{where}: {message}")
        raise _Fault

    def finish(self) -> None:
        """Raises ConfigError if there are problems."""
        if self.problems:
            raise ConfigError(sorted(set(self.problems), key=lambda problem: problem[1:]))

    # --- personalities

    def settings(self, node: Node) -> Settings:
        entries = self.entries(node, "the file")
        if "default" in entries:
            self.nodes["default"] = entries["default"][1]
        if "personalities" in entries:
            for name, (key, value) in self.entries(entries["personalities"][1], "personalities").items():
                if name == "default":
                    self.report(key.line, key.column, "personalities: default is a section of its own")
                self.nodes[name] = value
        for name in self.nodes:
            try:
                self.named(name)
            except _Fault:
                self.done.setdefault(name, Personality())
        domains: dict[str, Personality] = {}
        for name, (key, value) in self.entries(*_value(entries, "domains", node)).items():
            domain = self.domain_name(key, name)
            if domain in domains:
                self.report(key.line, key.column, f"domains: {quoted(name)} is given twice")
            try:
                domains[domain] = self.personality(value, f"domains[{name}]")
            except _Fault:
                pass
        rest = {name: entry for name, entry in entries.items() if name not in ("default", "personalities", "domains")}
        settings: Settings = self.section(tree.Mapping(node.line, node.column, rest), Settings, "")
        if settings.control is not None:
            self.check_control(entries["control"][1], settings.control)
        default = self.done.pop("default", Personality())
        return dataclasses.replace(settings, default=default, personalities=self.done, domains=domains)

    def check_control(self, node: Node, text: str) -> None:
        if "/" not in text:
            try:
                parse_endpoint(text)
            except ValueError as error:
                self.report(node.line, node.column, f"control: {quoted(text)}: {error}; a path has a / in it")

    def domain_name(self, key: Scalar, name: str) -> str:
        try:
            return read_name(name)
        except ValueError as error:
            self.report(key.line, key.column, f"domains: {quoted(name)}: {error}")
            return name

    def named(self, name: str) -> Personality:
        """The personality `name`, read when first asked for."""
        if name in self.done:
            return self.done[name]
        node = self.nodes[name]
        if name in self.reading:
            self.fail(node, name, f"is like itself: {' like '.join([*self.reading, name])}")
        self.reading.append(name)
        try:
            personality = self.personality(node, name)
        finally:
            self.reading.pop()
        self.done[name] = personality
        return personality

    def personality(self, node: Node, where: str) -> Personality:
        """A mapping of options, or the name of a personality."""
        if isinstance(node, Scalar) and not node.is_null:
            return self.like(node, where)
        entries = self.entries(node, where)
        if "like" in entries:
            base = self.like(entries["like"][1], f"{where}.like")
        elif where == "default" or (self.known is None and "default" not in self.nodes):
            base = Personality()
        else:
            base = self.known.default if self.known is not None else self.named("default")
        plain = {name: entry for name, entry in entries.items() if name != "phases"}
        result: Personality = self.section(tree.Mapping(node.line, node.column, plain), Personality, where, base)
        phases = entries["phases"][1] if "phases" in entries else self.phases.get(id(base))
        if phases is not None:
            result = dataclasses.replace(result, phases=self.phase_list(phases, f"{where}.phases", result))
            self.phases[id(result)] = phases
        return result

    def like(self, node: Node, where: str) -> Personality:
        name = self.text(node, where, "the name of a personality")
        known = {} if self.known is None else {**self.known.personalities, "default": self.known.default}
        names = [*known, *self.nodes, "default"]
        if name not in names:
            self.fail(node, where, f"there is no personality {quoted(name)}{_did_you_mean(name, names)}")
        if name in known:
            return known[name]
        return self.named(name) if name in self.nodes else Personality()

    def phase_list(self, node: Node, where: str, base: Personality) -> tuple[Phase, ...]:
        items = node.items if isinstance(node, Sequence) else [node]
        phases = []
        for index, item in enumerate(items):
            phase: Phase = self.section(item, Phase, f"{where}[{index}]", base)
            if phase.until is not None and phase.until <= phase.since:
                self.report(item.line, item.column, f"{where}[{index}]: ends before it begins")
            phases.append(phase)
        return tuple(phases)

    # --- collections

    def entries(self, node: Node, where: str) -> dict[str, tuple[Scalar, Node]]:
        if isinstance(node, Scalar) and node.is_null:
            return {}
        if not isinstance(node, tree.Mapping):
            self.fail(node, where, "expected options, each as name: value")
        return node.entries

    def section(self, node: Node, cls: Any, where: str, base: object = None) -> Any:
        """An instance of the dataclass `cls`; what is not set comes from `base` if that has it."""
        entries = self.entries(node, where)
        options = options_of(cls)
        values: dict[str, Any] = {}
        for name, (key, _) in entries.items():
            if name not in options:
                hint = _did_you_mean(name, list(options)) or f", expected one of {', '.join(options)}"
                self.report(key.line, key.column, f"{_join(where, name)}: unknown option{hint}")
        for name, option in options.items():
            if base is not None and hasattr(base, name):
                values[name] = getattr(base, name)
            if name in entries:
                try:
                    values[name] = self.value(entries[name][1], option.type, _join(where, name), option.metadata,
                                              values.get(name))
                except _Fault:
                    if option.required:
                        raise
            elif option.required and name not in values:
                self.fail(node, _join(where, name), f"missing, expected {_expected(option)}")
        result = cls(**values)
        if isinstance(result, Rule):
            self.check_rule(node, where, result)
        return result

    def check_rule(self, node: Node, where: str, rule: Rule) -> None:
        if rule.after and rule.at != "body":
            self.report(node.line, node.column, f"{where}: after is for rules at body")
        if rule.keep and rule.at != "dot":
            self.report(node.line, node.column, f"{where}: keep is for rules at dot")
        if not (rule.delay or rule.reply or rule.raw or rule.drop or rule.hang):
            self.report(node.line, node.column, f"{where}: does nothing, expected delay, reply, raw, drop or hang")
        if rule.reply and rule.raw:
            self.report(node.line, node.column, f"{where}: reply and raw exclude each other")
        if rule.hang and (rule.reply or rule.raw or rule.drop):
            self.report(node.line, node.column, f"{where}: hang goes with nothing but delay")

    def items(self, node: Node, wanted: Any, where: str, metadata: Mapping[str, Any]) -> tuple[Any, ...]:
        if isinstance(node, Scalar) and node.is_null:
            return ()
        nodes = node.items if isinstance(node, Sequence) else [node]
        result = []
        for index, item in enumerate(nodes):
            try:
                result.append(self.value(item, wanted, f"{where}[{index}]", metadata, None))
            except _Fault:
                pass
        if len(result) < len(nodes):
            raise _Fault
        return tuple(result)

    # --- values

    def value(self, node: Node, wanted: Any, where: str, metadata: Mapping[str, Any], inherited: object) -> Any:
        if is_optional(wanted):
            if isinstance(node, Scalar) and (node.is_null or node.text.lower() in ("off", "never", "no")):
                return None
            wanted = without_none(wanted)
        origin = get_origin(wanted)
        if origin in (Union, types.UnionType):  # one value, or a list
            is_list = isinstance(node, Sequence)
            wanted = next(kind for kind in get_args(wanted) if (get_origin(kind) is tuple) == is_list)
            origin = get_origin(wanted)
        if origin is tuple:
            return self.items(node, get_args(wanted)[0], where, metadata)
        if section_of(wanted) is not None:
            return self.section(node, wanted, where, inherited)
        text = self.text(node, where, expected_text(wanted, metadata))
        try:
            if wanted in KINDS:
                value = KINDS[wanted].parse(text)
            elif origin is Literal:
                value = text if text in get_args(wanted) else self.refuse(node, text, where, wanted, metadata)
            elif wanted is bool:
                value = _TRUTH.get(text.lower())
                if value is None:
                    self.refuse(node, text, where, wanted, metadata)
            elif wanted in (int, float):
                value = self.number(node, text, where, wanted, metadata)
            else:
                value = text
            if "check" in metadata and isinstance(value, str):
                metadata["check"](value)
        except _Fault:
            raise
        except Exception as error:  # of a parser or check: a ValueError, or re.error
            self.fail(node, where, f"{quoted(text)}: {error}")
        return value

    def number(self, node: Node, text: str, where: str, wanted: type[int] | type[float],
               metadata: Mapping[str, Any]) -> int | float:
        try:
            number = wanted(text)
        except ValueError:
            self.refuse(node, text, where, wanted, metadata)
        low, high = metadata.get("min"), metadata.get("max")
        if not (low is None or number >= low) or not (high is None or number <= high):
            self.refuse(node, text, where, wanted, metadata)
        return number

    def refuse(self, node: Node, text: str, where: str, wanted: Any, metadata: Mapping[str, Any]) -> NoReturn:
        hint = _did_you_mean(text, [*get_args(wanted)]) if get_origin(wanted) is Literal else ""
        self.fail(node, where, f"{quoted(text)}, expected {expected_text(wanted, metadata)}{hint}")

    def text(self, node: Node, where: str, expected: str) -> str:
        if not isinstance(node, Scalar):
            self.fail(node, where, f"expected {expected}")
        if node.is_null:
            self.fail(node, where, f"no value, expected {expected}")
        return node.text


def _value(entries: dict[str, tuple[Scalar, Node]], name: str, node: Node) -> tuple[Node, str]:
    return (entries[name][1] if name in entries else tree.Mapping(node.line, node.column)), name


def _join(where: str, name: str) -> str:
    return f"{where}.{printable(name, 60)}" if where else printable(name, 60)


def _expected(option: Option) -> str:
    return expected_text(option.type, option.metadata)


def _did_you_mean(text: str, words: list[str]) -> str:
    close = difflib.get_close_matches(text, words, 1, 0.6)
    return f'; did you mean "{close[0]}"?' if close else ""
