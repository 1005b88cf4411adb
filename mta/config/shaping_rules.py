"""Contradictions in the layers of shaping, entries for what does not exist, and options that can never take effect.

Gives one (path, message) per finding, as `mta.config.rules`. A layer holds no faulty values, so that what it has may
be compared.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from itertools import combinations
from typing import Any, Final, NamedTuple

from mta.config.hosts import format_network
from mta.config.problems import OptionPath, path_text, quoted
from mta.config.providers import definitions, own_names
from mta.config.schema import Config
from mta.config.shaping import UNSET, DestinationRules, Layer, Match, Shaping
from mta.config.units import Rate, format_duration, format_rate

Finding = tuple[OptionPath, str]

_BUILT_IN: Final = Shaping()
_RATES: Final = ("connection_rate", "message_rate", "total_message_rate", "source_message_rate")
_REPLACED: Final = ("retry.first", "retry.factor", "retry.cap")
# The first is above the second only by mistake.
_ORDERED: Final = (("retry.first", "retry.cap"), ("retry.site_first", "retry.site_cap"),
                   ("adaptive.connections_least", "adaptive.connections_first"),
                   ("adaptive.connections_least", "connections"))


class _Entry(NamedTuple):
    """A layer and for what it is."""

    path: OptionPath
    layer: Layer
    source: str = ""
    provider: str = ""
    domain: str = ""

    def option(self, name: str) -> OptionPath:
        return (*self.path, *name.split("."))


def contradictions(config: Config, given: Collection[OptionPath], faulty: Collection[OptionPath]) -> Iterator[Finding]:
    """What is wrong in the section `shaping` beyond its single values."""
    entries = list(_entries(config))
    for entry in entries:
        yield from _alone(entry)
        yield from _in_all(entry, config, faulty)
        yield from _in_effect(entry, config)
    yield from _twice(config.shaping, ("shaping",), faulty)
    yield from _unknown(entries, config, faulty)


def in_file(rules: DestinationRules, faulty: Collection[OptionPath]) -> Iterator[Finding]:
    """What is wrong in a file of providers beyond its single values."""
    for entry in _destinations(rules, ()):
        yield from _alone(entry)
        if entry.provider and rules.providers[entry.provider].match is None and (*entry.path, "match") not in faulty:
            yield entry.path, "a provider without match is known by nothing"
    yield from _twice(rules, (), faulty)


def _entries(config: Config) -> Iterator[_Entry]:
    yield from _destinations(config.shaping, ("shaping",))
    for name, source in config.shaping.sources.items():
        path: OptionPath = ("shaping", "sources", name)
        yield _Entry(path, source, name)
        for provider, layer in source.providers.items():
            yield _Entry((*path, "providers", provider), layer, name, provider)
        for domain, layer in source.domains.items():
            yield _Entry((*path, "domains", domain), layer, name, "", domain)


def _destinations(rules: DestinationRules, path: OptionPath) -> Iterator[_Entry]:
    yield _Entry((*path, "default"), rules.default)
    for name, provider in rules.providers.items():
        yield _Entry((*path, "providers", name), provider, "", name)
    for name, domain in rules.domains.items():
        yield _Entry((*path, "domains", name), domain, "", "", name)


# --- values --------------------------------------------------------------------------------------------------------


def _alone(entry: _Entry) -> Iterator[Finding]:
    """What one layer says against itself."""
    options = {name: value for name, value in entry.layer.options.items() if value is not UNSET and value is not None}
    for name in _RATES:
        yield from _useless_rates(entry.option(name), options.get(name, ()))
    if options.get("retry.schedule"):
        for name in _REPLACED:
            if name in options and options[name] != _value(_BUILT_IN, name):
                yield entry.option(name), "has no effect, the schedule beside it replaces it"
    message, connection = options.get("recipients_per_message"), options.get("recipients_per_connection")
    if message and connection and message > connection:
        yield entry.option("recipients_per_message"), (
            f"{message} can never be reached, recipients_per_connection is {connection}")
    for low, high in (("connections", "source_connections"), ("connections", "total_connections"),
                      ("source_connections", "total_connections")):
        one, other = options.get(low), options.get(high)
        if one and other and one > other:
            yield entry.option(low), f"{one} can never be reached, {high} is {other}"
    if options.get("adaptive.enabled") is False:
        for name in options:
            if name.startswith("adaptive.") and name != "adaptive.enabled":
                yield entry.option(name), "has no effect, adaptive.enabled is off"


def _useless_rates(path: OptionPath, rates: Iterable[Rate]) -> Iterator[Finding]:
    """Of several rates that all hold, a longer window is for a lower rate."""
    for one, other in combinations(sorted(rates, key=lambda rate: rate.per_s), 2):
        if one.per_second <= other.per_second and not one.burst:
            yield path, f"{format_rate(other)} can never be reached beside {format_rate(one)}"


def _in_all(entry: _Entry, config: Config, faulty: Collection[OptionPath]) -> Iterator[Finding]:
    """Against the limit over everything."""
    total = config.delivery.connections
    if ("delivery", "connections") in faulty or ("delivery",) in faulty:
        return
    for name in ("connections", "source_connections", "total_connections"):
        value = entry.layer.options.get(name)
        if isinstance(value, int) and total < value != getattr(_BUILT_IN, name, None):
            yield entry.option(name), f"{value} can never be reached, delivery.connections is {total}"


def _in_effect(entry: _Entry, config: Config) -> Iterator[Finding]:
    """What one layer makes of those below it."""
    said = entry.layer.options
    if not said:
        return
    shaping = config.shaping.effective(entry.source, entry.provider, entry.domain)
    retry = shaping.retry
    for low, high in _ORDERED:
        name = next((name for name in (low, high) if name in said), None)
        if name is None or (low == "retry.first" and retry.schedule):
            continue
        one, other = _value(shaping, low), _value(shaping, high)
        if one > other and not (low.startswith("adaptive.") and name == "connections" and one == 1):
            show = format_duration if low.startswith("retry.") else str
            yield entry.option(name), f"{low} ({show(one)}) is above {high} ({show(other)})"
    name = next((name for name in ("expires", "retry.schedule", "retry.first") if name in said), None)
    first = retry.schedule[0] if retry.schedule else retry.first
    if name is not None and shaping.expires <= first:
        yield entry.option(name), (
            f"mail expires after {format_duration(shaping.expires)}, before the first retry "
            f"({format_duration(first)}): nothing would be tried twice")
    route = config.routes.get(entry.domain) if entry.domain else None
    if route is not None and not route.mx:
        for name in ("port", "mx"):
            if name in said and said[name] is not UNSET:
                yield entry.option(name), f"has no effect, {path_text(('routes', entry.domain))} names relays"


def _value(shaping: Shaping, name: str) -> Any:
    value: Any = shaping
    for part in name.split("."):
        value = getattr(value, part)
    return value


# --- names ---------------------------------------------------------------------------------------------------------


def _unknown(entries: Iterable[_Entry], config: Config, faulty: Collection[OptionPath]) -> Iterator[Finding]:
    """Entries for providers and sources that do not exist."""
    providers = definitions(config.shaping)
    judge_providers = not {("providers",), ("shaping", "providers")} & set(faulty)
    sources = config.sources
    told: set[str] = set()
    for entry in entries:
        if entry.provider and entry.provider not in providers and judge_providers \
                and (*entry.path, "match") not in faulty:
            new = "" if entry.source else "; a new one needs match"
            yield entry.path, f"there is no provider {quoted(entry.provider)}{_nearest(entry.provider, providers)}{new}"
        if entry.source and entry.source not in sources and entry.source not in told and ("sources",) not in faulty:
            told.add(entry.source)
            yield ("shaping", "sources", entry.source), (
                f"there is no source {quoted(entry.source)} in sources{_nearest(entry.source, sources)}")


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower()[:64], list(names), 1, 0.6)
    return f"; did you mean {quoted(close[0])}?" if close else ""


def _twice(rules: DestinationRules, path: OptionPath, faulty: Collection[OptionPath]) -> Iterator[Finding]:
    """What two providers of one file both claim: the second would never have it."""
    owners: dict[tuple[str, object], str] = {}
    for name in own_names(rules):
        match = rules.providers[name].match or Match()
        for kind in ("mx", "domains", "networks"):
            for index, item in enumerate(getattr(match, kind)):
                here = (*path, "providers", name, "match", kind, index)
                owner = owners.setdefault((kind, item), name)
                if item is not None and here not in faulty and owner != name:
                    text = item if isinstance(item, str) else format_network(item)
                    yield here, f"{text} is of provider {owner} already, expected it once"
