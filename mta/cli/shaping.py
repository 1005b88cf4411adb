"""`mta shaping`: what holds for mail to a destination, and from which line each value comes."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mta.cli.options import add_config, add_json, add_parser
from mta.config.describe import Option, options_of, plain_value, section_of, written
from mta.config.hosts import format_network, parse_domain
from mta.config.loader import load
from mta.config.problems import ConfigError, printable, quoted
from mta.config.providers import Providers, definitions
from mta.config.schema import Config
from mta.config.shaping import Layer, Match, Origin, Shaping, Total
from mta.control import exits
from mta.control.exits import OperatorError
from mta.queue.idn import path_called

_SHOW = """\
Print what holds for mail to a domain, to the sites of a provider, or for a path as `mta queue` names it: each option
with its value and where that comes from, FILE:LINE and the section, or `built-in`. For a domain DNS is asked who its
provider is, as `mta dns` does; the MTA need not run. A path of a single host is written `>HOST`, or it would be taken
for a domain. Below are the limits over more than the path, which hold besides.

exit codes:
  0   done
  64  there is no such provider or source
  75  DNS does not tell the provider now; what is printed is without one"""

_LIST = """\
Print all sections of shaping: of providers, domains and sources, by what a provider is known, and what is set where."""

_EXAMPLES: Final = """\
  mta shaping show example.org
  mta shaping show google --source out1
  mta shaping list -c new.yaml"""

_PATH: Final = re.compile(r"(?:([^>]*)>)?(\?|relay:)?([^+]+)(\+[0-9]+~[0-9a-f]{8})?(?:\+(.+))?", re.DOTALL)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its subcommands."""
    parser = add_parser(commands, "shaping", "show what holds for mail to a destination",
                        "Show how mail to a destination is treated, and why.", _EXAMPLES)
    verbs = parser.add_subparsers(metavar="WHAT", dest="what", required=True)

    show = add_parser(
        verbs, "show", "print each value with where it comes from", _SHOW,
        "  mta shaping show example.org\n  mta shaping show google\n"
        "  mta shaping show 'out1>mx1.example.org+1~0a1b2c3d'\n"
        "  mta shaping show example.org --json | jq '.options[] | select(.layer != \"built-in\")'")
    show.add_argument("subject", metavar="DOMAIN|PROVIDER|PATH", help="what mail goes to")
    show.add_argument("--source", metavar="NAME", help="source that the mail leaves from")
    add_config(show)
    add_json(show, "one JSON object: subject, source, site, provider, why, failure, options (option, value, layer, "
                   "file, line), totals (limit, connections, message_rate, layer, file, line)")
    show.set_defaults(run=run_show)

    lister = add_parser(verbs, "list", "print all sections", _LIST, "  mta shaping list\n  mta shaping list --json")
    add_config(lister)
    add_json(lister, "one JSON object per section and line: section, match, options (option, value, file, line)")
    lister.set_defaults(run=run_list)


@dataclass(slots=True)
class _Subject:
    """What is asked for, as `ShapingRules.effective` takes it."""

    name: str
    source: str = ""
    provider: str = ""
    domain: str = ""
    site: str = ""
    why: str = ""  # it is that provider
    failure: str = ""  # why the provider is not known


def _config(options: argparse.Namespace) -> Config:
    try:
        return load(options.config)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise OperatorError(exits.CONFIG, "the configuration has errors") from None


# --- show ----------------------------------------------------------------------------------------------------------


def run_show(options: argparse.Namespace) -> int:
    """Find out who is meant, and print what holds."""
    config = _config(options)
    subject = _subject(config, options.subject)
    if options.source is not None:
        if subject.source not in ("", options.source):
            raise OperatorError(exits.USAGE, f"the path is of source {subject.source}, not {options.source}")
        subject.source = options.source
    sources = config.sources
    if subject.source and subject.source not in sources:
        raise OperatorError(
            exits.USAGE, f"there is no source {quoted(subject.source)}{_nearest(subject.source, sources)}")
    print(json.dumps(_report(config, subject)) if options.json else _text(config, subject))
    return exits.TEMPORARY if subject.failure else exits.OK


def _subject(config: Config, text: str) -> _Subject:
    """A provider by its name, else a path by its form, else a domain."""
    providers = definitions(config.shaping)
    if text in providers:
        return _Subject(text, provider=text, why="by its name")
    if ">" in text or "~" in text or text.startswith(("relay:", "?")):
        return _path(config, text)
    if "." not in text and not text.startswith("["):
        raise OperatorError(exits.USAGE, f"there is no provider {quoted(text)}{_nearest(text, providers)}")
    name = text.rpartition("@")[2]
    try:
        domain = parse_domain(name)
    except ValueError as error:
        raise OperatorError(exits.USAGE, f"{quoted(name)}: {error}") from None
    return _domain(config, domain)


def _path(config: Config, text: str) -> _Subject:
    text = path_called(text)
    match = _PATH.fullmatch(text)
    if match is None:
        raise OperatorError(exits.USAGE, f"{quoted(text)} is no name of a path")
    source, kind, host, more, domain = match.groups(default="")
    if kind == "?":
        return _Subject(text, source, domain=host, failure="this path has no route")
    first = host.partition(",")[0].rpartition(":")[0].strip("[]") if kind else host
    found = Providers(config.shaping).find([first], domain, list)
    subject = _Subject(text, source, domain=domain, site=kind + host + more)
    if found is not None:
        subject.provider, subject.why = found
    return subject


def _domain(config: Config, domain: str) -> _Subject:
    """Ask DNS where its mail goes."""
    # Not before it is needed: gevent is slow to load.
    from mta.delivery.dns import Resolver
    from mta.delivery.routing import RouteFailure, Router

    resolver = Resolver(config.dns)
    route = Router(config, resolver).route(domain)
    resolver.close()
    if isinstance(route, RouteFailure):
        return _Subject(domain, domain=domain, failure=route.text)
    return _Subject(domain, "", route.provider, domain, route.site, route.provider_why)


def _nearest(name: str, names: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name.lower()[:64], list(names), 1, 0.6)
    return f"; did you mean {quoted(close[0])}?" if close else ""


def _values(shaping: Shaping) -> Iterator[tuple[str, Any, Option]]:
    """All options with their values, those of sections inside as `timeouts.connect`."""
    for name, option in options_of(Shaping).items():
        value = getattr(shaping, name)
        if section_of(option.type) is option.type:
            for inner, inner_option in options_of(option.type).items():
                yield f"{name}.{inner}", getattr(value, inner), inner_option
        else:
            yield name, value, option


def _key(subject: _Subject) -> tuple[str, str, str]:
    return subject.source, subject.provider, subject.domain


def _report(config: Config, subject: _Subject) -> dict[str, Any]:
    """For programs."""
    shaping = config.shaping
    return {
        "subject": subject.name, "source": subject.source or None, "site": subject.site or None,
        "provider": subject.provider or None, "why": subject.why or None, "failure": subject.failure or None,
        "options": [
            {"option": name, "value": plain_value(value, option.type), **_from(shaping.origin(name, *_key(subject)))}
            for name, value, option in _values(shaping.effective(*_key(subject)))],
        "totals": [
            {"limit": total.name, "connections": total.connections, "message_rate": list(map(str, total.rates)),
             **_from(total.origin)} for total in shaping.totals(*_key(subject))],
    }


def _from(origin: Origin) -> dict[str, Any]:
    place = origin.place
    return {"layer": origin.layer, "file": place.file if place else None, "line": place.line if place else None}


def _text(config: Config, subject: _Subject) -> str:
    """For people."""
    shaping = config.shaping
    lines = [printable(subject.name)]
    if subject.site:
        lines.append(f"  {'site':28}{printable(subject.site)}")
    if subject.source:
        lines.append(f"  {'source':28}{subject.source}")
    if subject.failure:
        lines.append(f"  {'provider':28}not known: {printable(subject.failure)}")
    else:
        lines.append(f"  {'provider':28}{subject.provider or 'none'}{f', {subject.why}' if subject.why else ''}")
    if subject.domain and shaping.separates(subject.domain):
        lines.append(f"  {'connections of its own':28}yes, {subject.domain} has a section of its own")
    values = [(name, written(value, option.type), shaping.origin(name, *_key(subject)))
              for name, value, option in _values(shaping.effective(*_key(subject)))]
    lines += ["", *_table(values)]
    totals = [(total.name, _limits(total), total.origin) for total in shaping.totals(*_key(subject))]
    if totals:
        lines += ["", "  besides, over more than this path:", *_table(totals)]
    return "\n".join(lines)


def _table(rows: list[tuple[str, str, Origin]]) -> Iterator[str]:
    width = min(max((len(value) for _, value, _ in rows), default=0), 40)
    return (f"  {name:26}  {value:{width}}  {printable(str(origin))}" for name, value, origin in rows)


def _limits(total: Total) -> str:
    said = [f"{total.connections} connections"] if total.connections else []
    return ", ".join([*said, *map(str, total.rates)])


# --- list ----------------------------------------------------------------------------------------------------------


def run_list(options: argparse.Namespace) -> int:
    """Print all sections, the shipped file's first."""
    for name, layer in _sections(_config(options)):
        match: Match | None = getattr(layer, "match", None)
        types = _types(layer)
        if options.json:
            print(json.dumps({
                "section": name, "match": _plain_match(match) if match else None,
                "options": [
                    {"option": option, "value": plain_value(value, types[option]), "file": layer.places[option].file,
                     "line": layer.places[option].line} for option, value in layer.options.items()]}))
            continue
        print(name)
        for kind, items in (_plain_match(match) if match else {}).items():
            print(f"  {kind:26}  {', '.join(items)}")
        for option, value in layer.options.items():
            print(f"  {option:26}  {written(value, types[option]):24}  {printable(str(layer.places[option]))}")
    return exits.OK


def _sections(config: Config) -> Iterator[tuple[str, Layer]]:
    rules = config.shaping
    for prefix, one in (("", rules.shipped), ("shaping.", rules)):
        if one.default.options:
            yield f"{prefix}default", one.default
        yield from ((f"{prefix}providers.{name}", layer) for name, layer in one.providers.items())
        yield from ((f"{prefix}domains.{name}", layer) for name, layer in one.domains.items())
    for name, source in rules.sources.items():
        yield f"shaping.sources.{name}", source
        yield from ((f"shaping.sources.{name}.providers.{inner}", layer) for inner, layer in source.providers.items())
        yield from ((f"shaping.sources.{name}.domains.{inner}", layer) for inner, layer in source.domains.items())


def _types(layer: Any) -> dict[str, Any]:
    """The types of all options that the layer may set."""
    types: dict[str, Any] = {}
    for name, option in options_of(layer.__class__).items():
        if section_of(option.type) is option.type and name != "match":
            types |= {f"{name}.{inner}": one.type for inner, one in options_of(option.type).items()}
        else:
            types[name] = option.type
    return types


def _plain_match(match: Match) -> dict[str, list[str]]:
    networks = list(map(format_network, match.networks))
    kinds = {"mx": list(match.mx), "domains": list(match.domains), "networks": networks}
    return {kind: items for kind, items in kinds.items() if items}
