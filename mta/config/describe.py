"""What the schema says about itself: the options of a section, and how values are called and written."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from mta.config.forms import Directory, FilePath, HeaderName, HttpUrl, Name, ProvidersFile, SenderPattern, UserName
from mta.config.hosts import (
    Domain,
    Endpoint,
    HostName,
    HostOrNetwork,
    HostPattern,
    IPv4,
    IPv6,
    Network,
    Proxy,
    RouteKey,
)
from mta.config.kinds import KINDS
from mta.config.reply_book import ReplyRules
from mta.config.schema import Route
from mta.config.shaping import UNSET, DefaultLayer, Layer, Shaping
from mta.config.units import Duration, Rate, Size


@dataclass(frozen=True, slots=True)
class Option:
    """One field of a section. `default` is MISSING when the option is required."""

    name: str
    type: Any
    default: Any
    metadata: Mapping[str, Any]

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def doc(self) -> str:
        return str(self.metadata.get("doc", ""))

    @property
    def example(self) -> str:
        """A value as it is written, or an empty text."""
        return str(self.metadata.get("example", ""))

    @property
    def needs_restart(self) -> bool:
        """Whether a reload leaves it as it was."""
        return self.metadata.get("reload") == "restart"


@functools.cache
def options_of(section: Any) -> dict[str, Option]:
    """The options of a section, a dataclass of the schema, by name and in order."""
    if issubclass(section, Layer):
        return own_options_of(section) | {
            name: option for name, option in options_of(Shaping).items()
            if section.inner or not option.metadata.get("destination_only")}
    hints = typing.get_type_hints(section, include_extras=True)
    result = {}
    for field in dataclasses.fields(section):
        if "doc" not in field.metadata:
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        result[field.name] = Option(field.name, hints[field.name], default, field.metadata)
    return result


def own_options_of(section: Any) -> dict[str, Option]:
    """Those options of a section that are to be told: of a layer of shaping, those that `Shaping` does not have."""
    if not issubclass(section, Layer):
        return options_of(section)
    sections = section.own if section is not DefaultLayer else (Shaping,)
    return {name: option for own in sections for name, option in options_of(own).items()}


def section_of(wanted: Any) -> Any:
    """The section that a type is, or holds in a list or mapping; None for other types."""
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted) and wanted not in KINDS:
        return wanted
    if get_origin(wanted) in (tuple, dict):
        return next((section for section in map(section_of, get_args(wanted)) if section is not None), None)
    return None


def is_optional(wanted: Any) -> bool:
    """Whether the option may be unset."""
    return wanted not in KINDS and type(None) in get_args(wanted)


def without_none(wanted: Any) -> Any:
    """The type of an optional option when it is set; other types unchanged."""
    return next(kind for kind in get_args(wanted) if kind is not type(None)) if is_optional(wanted) else wanted


def expected_text(wanted: Any, metadata: Mapping[str, Any]) -> str:
    """What a value of this type is called in a message."""
    if wanted in KINDS:
        return KINDS[wanted].name
    origin = get_origin(wanted)
    if origin is tuple:
        return "a list"
    if origin is Literal:
        return one_of(get_args(wanted))
    if origin in (Union, types.UnionType):
        return " or ".join(expected_text(kind, metadata) for kind in get_args(wanted) if kind is not type(None))
    if wanted is bool:
        return "true or false"
    if wanted is int or wanted is float:
        low, high = metadata.get("min"), metadata.get("max")
        bounds = "" if low is None else f" from {low} up" if high is None else f" from {low} to {high}"
        return ("a whole number" if wanted is int else "a number") + bounds
    if origin is dict:
        return f"{KINDS[get_args(wanted)[0]].name.removeprefix('a ')}: {expected_text(get_args(wanted)[1], metadata)}"
    return "a text" if wanted is str else "options"


_NOUNS = {
    ReplyRules: "list of rules",
    Duration: "duration", Size: "size", Rate: "rate", Endpoint: "host:port", Network: "network", HostName: "host name",
    Domain: "domain", RouteKey: "domain or `*`", IPv4: "IPv4 address", IPv6: "IPv6 address", Directory: "directory",
    FilePath: "file", Name: "name", Proxy: "proxy",
    HeaderName: "header field",
    HostPattern: "host name or pattern", HostOrNetwork: "host name, pattern or network",
    ProvidersFile: "`shipped`, `none` or file",
    UserName: "user", SenderPattern: "sender", HttpUrl: "URL",
    bool: "true or false", int: "whole number", float: "number", str: "text",
}


_PLURALS = {
    Endpoint: "host:port", HostPattern: "host names or patterns",
    HostOrNetwork: "host names, patterns or networks",
}


def type_text(wanted: Any) -> str:
    """What the reference calls a type."""
    if wanted in _NOUNS:
        return _NOUNS[wanted]
    origin = get_origin(wanted)
    if origin is tuple:
        inner = get_args(wanted)[0]
        return f"list of {'sections' if section_of(inner) else _PLURALS.get(inner, type_text(inner) + 's')}"
    if origin is dict:
        key, inner = get_args(wanted)
        return f"{'section' if section_of(inner) else type_text(inner)} by {type_text(key)}"
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in get_args(wanted))
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(kind) for kind in get_args(wanted) if kind is not type(None))
    return "section"


def one_of(words: tuple[str, ...]) -> str:
    """`a, b or c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


# --- values as they are written ------------------------------------------------------------------------------------

_PLAIN = re.compile(r"[A-Za-z0-9/][A-Za-z0-9._/:-]*[A-Za-z0-9._/-]|[A-Za-z0-9/]", re.ASCII)
# Texts that YAML readers take for something else.
_NOT_A_TEXT = re.compile(r"(?i)[0-9.:_-]+|0[xo].*|[0-9.]+e[0-9]+|y|n|yes|no|on|off|true|false|null", re.ASCII)


def plain_value(value: Any, wanted: Any) -> Any:
    """A value for JSON: what has a unit or a form is text as in the configuration."""
    wanted = without_none(wanted)
    if value is None:
        return None
    if value is UNSET:
        return "~"
    if isinstance(value, Layer):
        return {}
    if isinstance(value, ReplyRules):
        return [dict(rule.written) for rule in value.own]
    if wanted in KINDS:
        return KINDS[wanted].format(value)
    if get_origin(wanted) is tuple:
        return [plain_value(item, get_args(wanted)[0]) for item in value]
    if get_origin(wanted) is dict:
        return {key: plain_value(item, get_args(wanted)[1]) for key, item in value.items()}
    return value


def written(value: Any, wanted: Any) -> str:
    """A value as one writes it in YAML; reading it gives the same value."""
    if isinstance(value, Route):
        return "mx" if value.mx else f"{{relay: {written(value.relay, tuple[Endpoint, ...])}}}"
    if isinstance(value, ReplyRules):
        return f"[{', '.join(_written_rule(dict(rule.written)) for rule in value.own)}]"
    inner = without_none(wanted)
    if value is UNSET:
        return "~"
    if value is None:
        return "off" if inner in (Duration, Size, Rate, int, float) else "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if inner in KINDS:
        return _quoted_unless(_PLAIN, KINDS[inner].format(value))
    if get_origin(inner) is tuple:
        return f"[{', '.join(written(item, get_args(inner)[0]) for item in value)}]"
    if isinstance(value, str):
        text = _quoted_unless(_PLAIN, value)
        literal = get_origin(inner) in (Literal, Union, types.UnionType)
        return f'"{text}"' if text == value and not literal and _NOT_A_TEXT.fullmatch(text) else text
    if isinstance(value, Layer):
        return "{}"
    if isinstance(value, dict):
        inside = ((written(key, str), written(item, get_args(inner)[1])) for key, item in value.items())
        return "{" + ", ".join(f"{key}: {item}" for key, item in inside) + "}" if section_of(inner) is None else "{}"
    return str(value)


def _written_rule(options: dict[str, Any]) -> str:
    """One rule on one line."""
    def text(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(text, value))}]"
        return _quoted_unless(_PLAIN, value)
    return "{" + ", ".join(f"{name}: {text(value)}" for name, value in options.items()) + "}"


def _quoted_unless(plain: re.Pattern[str], text: str) -> str:
    if plain.fullmatch(text):
        return text
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
