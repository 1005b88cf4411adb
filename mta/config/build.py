"""Tree to `Config`, guided by the types of the schema.

The type of an option decides how its text is read, so quotes never matter and `no`, `1.10` or `12:30` are what the
option makes of them. A faulty option is reported with its place and its default taken, so that the rest is checked.
"""

from __future__ import annotations

import difflib
import functools
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, Union, get_args, get_origin

from mta.config import tree
from mta.config.build_layer import read_layer
from mta.config.describe import expected_text, one_of, options_of, section_of
from mta.config.forms import Directory, FilePath, ProvidersFile, SenderPattern, UserName, parse_directory
from mta.config.hosts import Domain, Endpoint, HostOrNetwork, HostPattern, Network, RouteKey
from mta.config.kinds import KINDS
from mta.config.problems import Fault, OptionPath, Problem, path_text, printable, quoted
from mta.config.reply_book import ReplyRules
from mta.config.reply_rules import read_rules
from mta.config.schema import Config, Route
from mta.config.shaping import DestinationRules, Layer
from mta.config.tree import Node, Scalar, Sequence
from mta.config.units import Duration, Rate, Size

MAX_PROBLEMS = 500
_LISTED_ONCE: Final = (Endpoint, Network, HostPattern, HostOrNetwork, Domain, Rate, SenderPattern)
MAX_SOCKET_PATH = 107  # bytes, unix(7)


_ENTRIES: dict[Any, str] = {
    Domain: "domains, each with its options", RouteKey: "domains, each with its options",
    UserName: "users, each with its options",
}


class TooManyProblems(Exception):  # noqa: N818 -- ends the reading; nothing more to say than what was reported
    """There is no use in looking on."""


class Builder:
    """One pass over the tree, guided by the types of the schema. `report` and `config` are its interface.

    `given` notes line and column of all that the file sets, `faulty` what was reported.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.given: dict[OptionPath, tuple[int, int]] = {}
        self.faulty: set[OptionPath] = set()

    # --- reporting

    def report(self, line: int, column: int, message: str) -> None:
        if len(self.problems) >= MAX_PROBLEMS:
            self.problems.append(Problem(self.file, line, column, "too many problems, the rest is not shown"))
            raise TooManyProblems
        self.problems.append(Problem(self.file, line, column, printable(message, 1000)))

    def fault(self, node: Node, path: OptionPath, message: str) -> Fault:
        if not (isinstance(node, Scalar) and node.broken):
            self.report(node.line, node.column, f"{path_text(path)}: {message}" if path else message)
        return Fault()

    def config(self, node: Node) -> Config | None:
        """The whole; None when nothing of it can be used.

        What is faulty has its default, or None where there is no default and in lists: look into `faulty` first.
        """
        try:
            config: Config = self.section(node, Config, ())
        except Fault:
            return None
        return config

    def destination_rules(self, node: Node) -> DestinationRules:
        """A file of providers as a whole; what is faulty is left out."""
        try:
            rules: DestinationRules = self.section(node, DestinationRules, ())
        except Fault:
            return DestinationRules()
        return rules

    # --- collections

    def section(self, node: Node, cls: Any, path: OptionPath) -> Any:
        """An instance of the dataclass `cls`."""
        if cls is Route:
            return self.route(node, path)
        if issubclass(cls, Layer):
            return read_layer(self, node, cls, path)
        entries = self.entries(node, path, f"options such as {', '.join(list(options_of(cls))[:3])}")
        options = options_of(cls)
        meant = self.unknown_options(entries, path, options)
        values: dict[str, Any] = {}
        for name, option in options.items():
            if option.required:
                values[name] = None
            if name not in entries:
                if option.required:
                    self.faulty.add((*path, name))
                    if name not in meant:
                        example = f", as in {option.example}" if option.example else ""
                        self.report(node.line, node.column, f"{path_text((*path, name))}: missing, expected "
                                                            f"{expected_text(option.type, option.metadata)}{example}")
                continue
            key, value = entries[name]
            try:
                values[name] = self.option(key, value, option.type, (*path, name), option.metadata)
            except Fault:
                self.faulty.add((*path, name))
        return cls(**values)

    def unknown_options(self, entries: Mapping[str, tuple[Scalar, Node]], path: OptionPath,
                        options: Iterable[str]) -> set[str]:
        """Report the names that are no options; returns those that were probably meant."""
        meant: set[str] = set()
        for name in entries:
            if name in options:
                continue
            wanted = name.lower().replace("-", "_")[:64]
            here = path_text(path)
            homes = [home for home in _homes().get(wanted, []) if home != here]
            close = difflib.get_close_matches(wanted, list(options), 1, 0.7)
            if homes and wanted not in options:
                close = []
            meant.update(close)
            if close:
                rest = "unknown option" + _did_you_mean(close)
            elif homes:
                rest = f"unknown option here; it belongs to {one_of(tuple(homes))}"
            else:
                rest = f"unknown option, expected {one_of(tuple(options))}"
            key = entries[name][0]
            self.report(key.line, key.column, f"{here}{'.' if here else ''}{printable(name, 60)}: {rest}")
        return meant

    def option(self, key: Scalar, node: Node, wanted: Any, path: OptionPath, metadata: Mapping[str, Any]) -> Any:
        """The value of one option, its place noted: of the value when it is one text, else of its name."""
        self.given[path] = (node.line, node.column) if isinstance(node, Scalar) else (key.line, key.column)
        if get_origin(wanted) is dict:
            return self.mapping(node, wanted, path, metadata)
        return self.value(node, wanted, path, metadata)

    def mapping(self, node: Node, wanted: Any, path: OptionPath, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Sections or values by domain, or by name."""
        key_type, item_type = get_args(wanted)
        result: dict[str, Any] = {}
        expected = _ENTRIES.get(key_type, "names, each with its value")
        for name, (key, value) in self.entries(node, path, expected).items():
            try:
                domain = KINDS[key_type].parse(name)
            except ValueError as error:
                rest = f"not a domain; {path_text((*path[:-1], metadata['rest']))} holds for all others" \
                    if "*" in name and "rest" in metadata else error
                self.report(key.line, key.column, f"{path_text(path)}: {quoted(name)}: {rest}")
                continue
            if domain in result:
                self.report(key.line, key.column, f"{path_text(path)}: {quoted(name)} is {domain}, which is given "
                                                  f"already in line {self.given[(*path, domain)][0]}")
                continue
            self.given[(*path, domain)] = (key.line, key.column)
            try:
                if section_of(item_type) is item_type:
                    result[domain] = self.section(value, item_type, (*path, domain))
                else:
                    result[domain] = self.option(key, value, item_type, (*path, domain), metadata)
            except Fault:
                self.faulty.add((*path, domain))
        return result

    def entries(self, node: Node, path: OptionPath, expected: str) -> dict[str, tuple[Scalar, Node]]:
        if isinstance(node, Scalar) and node.is_null:
            return {}
        if not isinstance(node, tree.Mapping):
            what = quoted(node.text) if isinstance(node, Scalar) else "a list"
            raise self.fault(node, path, f"{what}, expected {expected}, each as name: value")
        return node.entries

    def items(self, node: Node, wanted: Any, path: OptionPath, metadata: Mapping[str, Any]) -> tuple[Any, ...]:
        """A list. One item may be written without the brackets."""
        if isinstance(node, Scalar) and node.is_null:
            return ()
        nodes = node.items if isinstance(node, Sequence) else [node]
        if wanted is not Rate and isinstance(node, Scalar) and len(words := re.split(r"[,\s]+", node.text.strip())) > 1:
            written = printable(", ".join(words), 80)
            raise self.fault(node, path, f"{quoted(node.text)}, expected a list; did you mean [{written}]?")
        result: list[Any] = []
        for index, item in enumerate(nodes):
            here = (*path, index)
            self.given[here] = (item.line, item.column)
            try:
                value = self.value(item, wanted, here, metadata)
                if wanted in _LISTED_ONCE and value in result:
                    raise self.fault(item, here, f"{KINDS[wanted].format(value)} is in the list already")
                result.append(value)
            except Fault:
                self.faulty.add(here)
                result.append(None)  # keeps the positions of the others
        return tuple(result)

    def route(self, node: Node, path: OptionPath) -> Route:
        """`mx`, or a mapping with `relay`."""
        if isinstance(node, Scalar):
            if node.text == "mx":
                return Route()
            hint = _relay_hint(node.text)
            raise self.fault(node, path, f"{quoted(node.text)}, expected mx or {{relay: host:port}}{hint}")
        entries = self.entries(node, path, "mx or {relay: host:port}")
        options = options_of(Route)
        meant = self.unknown_options(entries, path, options)
        if "relay" in meant:
            raise Fault
        if "relay" not in entries:
            raise self.fault(node, path, "no relay, expected mx or {relay: host:port}")
        key, value = entries["relay"]
        relay = self.option(key, value, options["relay"].type, (*path, "relay"), options["relay"].metadata)
        if not relay:
            raise self.fault(value, (*path, "relay"), "an empty list, expected host:port or several")
        return Route(relay=relay)

    # --- values

    def value(self, node: Node, wanted: Any, path: OptionPath, metadata: Mapping[str, Any]) -> Any:
        if wanted is ReplyRules:
            return ReplyRules(read_rules(node, self.report, self.file, path_text(path)))
        origin = get_origin(wanted)
        if origin is tuple:
            return self.items(node, get_args(wanted)[0], path, metadata)
        if wanted is section_of(wanted):
            return self.section(node, wanted, path)
        if wanted not in KINDS and origin in (Union, types.UnionType):
            return self.alternative(node, wanted, path, metadata)
        expected = expected_text(wanted, metadata)
        text = self.text(node, path, expected)
        if wanted in KINDS:
            return self.unit(node, text, wanted, path, metadata)
        if origin is Literal:
            return self.choice(node, text, get_args(wanted), path)
        if wanted is bool:
            return self.boolean(node, text, path)
        if wanted is int or wanted is float:
            return self.bounded(node, text, self.number(node, text, wanted, path, expected), path, metadata, str)
        assert wanted is str, wanted
        if not text.isprintable():
            raise self.fault(node, path, f"{quoted(text)} has line breaks or invisible characters, expected plain text")
        return text

    def alternative(self, node: Node, wanted: Any, path: OptionPath, metadata: Mapping[str, Any]) -> Any:
        """An optional value, or one with a few words for special values."""
        kinds = list(get_args(wanted))
        if type(None) in kinds:
            kinds.remove(type(None))
            words = ("off", "never", "no") if kinds[0] in (Duration, Size, Rate, int, float) else ()
            if isinstance(node, Scalar) and (node.is_null or node.text.lower() in words):
                return None
            return self.value(node, kinds[0], path, metadata)
        words = get_args(next(kind for kind in kinds if get_origin(kind) is Literal))
        kind = next(kind for kind in kinds if get_origin(kind) is not Literal)
        expected = expected_text(wanted, metadata)
        text = self.text(node, path, expected)
        if text in words:
            return text
        return self.bounded(node, text, self.number(node, text, kind, path, expected), path, metadata, str)

    def text(self, node: Node, path: OptionPath, expected: str) -> str:
        if not isinstance(node, Scalar):
            what = "a list" if isinstance(node, Sequence) else "options"
            raise self.fault(node, path, f"{what}, expected {expected}")
        if node.is_null:
            raise self.fault(node, path, f"no value, expected {expected}; without the line the default holds")
        return node.text

    def unit(self, node: Node, text: str, wanted: Any, path: OptionPath, metadata: Mapping[str, Any]) -> Any:
        kind = KINDS[wanted]
        try:
            if wanted is Rate and metadata.get("whole_seconds"):
                return _whole_seconds(kind.parse(text))
            if wanted is Endpoint:
                return _endpoint(text, metadata)
            if wanted in (Directory, FilePath) or (wanted is ProvidersFile and text not in ("shipped", "none")):
                return _directory(text, self.file)
            value = kind.parse(text)
        except ValueError as error:
            raise self.fault(node, path, f"{quoted(text)}: {error}") from None
        if wanted is Duration or wanted is Size:
            metadata = {"min": 0.001 if wanted is Duration else 1, **metadata}
            return self.bounded(node, text, value, path, metadata, kind.format)
        return value

    def choice(self, node: Node, text: str, choices: tuple[str, ...], path: OptionPath) -> str:
        if text in choices:
            return text
        close = difflib.get_close_matches(text.lower()[:64], choices, 1)
        if not close and "off" in choices and text.lower() in ("no", "false", "none"):
            close = ["off"]
        raise self.fault(node, path, f"{quoted(text)}, expected {one_of(choices)}" + _did_you_mean(close))

    def boolean(self, node: Node, text: str, path: OptionPath) -> bool:
        word = text.lower()
        if word in ("true", "yes", "on"):
            return True
        if word in ("false", "no", "off"):
            return False
        meant = {"y": ["yes"], "n": ["no"], "1": ["true"], "0": ["false"], "t": ["true"], "f": ["false"]}
        raise self.fault(node, path, f"{quoted(text)}, expected true or false" + _did_you_mean(
            meant.get(word) or difflib.get_close_matches(word[:64], ("true", "false"), 1)))

    def number(self, node: Node, text: str, kind: type[int | float], path: OptionPath, expected: str) -> int | float:
        if kind is int and re.fullmatch(r"[+-]?(0|[1-9][0-9]{0,2}(_[0-9]{3})+|[1-9][0-9]{0,17})", text, re.ASCII):
            return int(text)
        if kind is float and re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?", text, re.ASCII):
            return float(text)
        hint = ""
        if kind is int and re.fullmatch(r"0[0-9]{1,18}", text, re.ASCII):
            hint = f"; did you mean {int(text)}?"
        elif re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+", text, re.ASCII) and kind is int:
            hint = f"; did you mean {text.replace(',', '_')}?"
        elif kind is float and re.fullmatch(r"[0-9]{1,3}%", text, re.ASCII):
            hint = f"; did you mean {int(text[:-1]) / 100:g}?"
        raise self.fault(node, path, f"{quoted(text)}, expected {expected}{hint}")

    def bounded(self, node: Node, text: str, value: Any, path: OptionPath, metadata: Mapping[str, Any],
                show: typing.Callable[[Any], str]) -> Any:
        low, high = metadata.get("min", -math.inf), metadata.get("max", math.inf)
        if value < low:
            raise self.fault(node, path, f"{quoted(text)} is too small, expected {show(low)} or more")
        if value > high:
            raise self.fault(node, path, f"{quoted(text)} is too large, expected {show(high)} or less")
        return value


def _endpoint(text: str, metadata: Mapping[str, Any]) -> Endpoint:
    if metadata.get("listens") and text.strip().startswith("unix:"):
        path = parse_directory(text.strip().removeprefix("unix:"))
        if not path.startswith("/") or len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ValueError(f"a Unix socket has an absolute path of at most {MAX_SOCKET_PATH} bytes, as in "
                             "unix:/run/mta/smtp")
        return Endpoint(os.path.normpath(path), 0)
    endpoint = Endpoint.parse(text, metadata.get("default_port"))
    if (metadata.get("listens") or metadata.get("address_only")) and not re.search(r":|^[0-9.]+$", endpoint.host):
        meant = f'; did you mean 127.0.0.1:{endpoint.port}?' if endpoint.host == "localhost" else ""
        raise ValueError(f"a host name, expected an address{meant}")
    if endpoint.port == 0 and not metadata.get("listens"):
        raise ValueError("port 0 cannot be connected to")
    return endpoint


def _whole_seconds(rate: Rate) -> Rate:
    if rate.per_s % 1 or rate.burst:
        raise ValueError("expected a number in a period of whole seconds, without a burst, as in 1000/h")
    return rate


def _relay_hint(text: str) -> str:
    """For a route that names a host without `relay`."""
    try:
        return f'; did you mean {{relay: "{Endpoint.parse(text, 25)}"}}?'
    except ValueError:
        return ""


def _directory(text: str, file: str) -> str:
    """Absolute, from the directory of the configuration file; `~` is the home directory."""
    path = os.path.expanduser(parse_directory(text))
    if path.startswith("~"):
        raise ValueError("there is no such home directory")
    return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(file)), path))


# --- help with names -----------------------------------------------------------------------------------------------


@functools.cache
def _homes() -> dict[str, list[str]]:
    """Option names and the sections that have them, to help with what stands in the wrong place."""
    homes: dict[str, list[str]] = {}

    def visit(cls: Any, path: str) -> None:
        for name, option in options_of(cls).items():
            homes.setdefault(name, []).append(path or "the top level")
            if (inner := section_of(option.type)) is not None:
                visit(inner, f"{path}.{name}" if path else name)

    visit(Config, "")
    return homes


def _did_you_mean(words: list[str]) -> str:
    return f'; did you mean "{words[0]}"?' if words else ""
