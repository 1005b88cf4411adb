"""`mta config`: the reference of all options, the configuration as it holds, and what a change means."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from mta.cli.options import add_config, add_json, add_parser
from mta.config.describe import written
from mta.config.effective import Setting, as_yaml, changes, settings
from mta.config.loader import Reading, read
from mta.config.problems import path_text, quoted
from mta.config.reference import markdown
from mta.config.schema import Route
from mta.config.units import parse_domain
from mta.control import exits

_EXAMPLES = """\
  mta config reference | less
  mta config show -c /etc/mta/mta.yaml --given
  mta config domain example.org
  mta config diff /etc/mta/mta.yaml new.yaml"""

_SHOW = """\
Print every option with its value and, as a comment, where that comes from: `default`, FILE:LINE, or the section that it
is inherited from. The output is YAML that loads to the same configuration."""

_DOMAIN = """\
Print what holds for mail to one domain: its route, and its limits with where each comes from."""

_DIFF = """\
Print what differs between two configurations, whatever their layout: `option: old -> new`. What a reload does not
change is marked `(restart)`. The exit code is 0, also when they differ."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its subcommands."""
    parser = add_parser(
        commands, "config", "explain the options and show what holds", "Explain and show the configuration.", _EXAMPLES)
    verbs = parser.add_subparsers(metavar="WHAT", dest="what", required=True)

    reference = add_parser(
        verbs, "reference", "print the reference of all options", "Print the reference of all options as Markdown.",
        "  mta config reference > docs/configuration.md")
    reference.set_defaults(run=run_reference)

    show = add_parser(
        verbs, "show", "print every option with its value and source", _SHOW,
        "  mta config show -c conf/mta.yaml\n  mta config show --given\n"
        "  mta config show --json | jq '.options[] | select(.source == \"file\")'")
    add_config(show)
    show.add_argument("--given", action="store_true", help="only what the file sets itself")
    add_json(show, "one JSON object: file, options (option, value, source, file, line, column, inherited_from)")
    show.set_defaults(run=run_show)

    domain = add_parser(
        verbs, "domain", "print what holds for one domain", _DOMAIN,
        "  mta config domain example.org\n  mta config domain -c new.yaml bücher.example --json")
    add_config(domain)
    domain.add_argument("domain", metavar="DOMAIN", help="recipient domain")
    add_json(domain, "one JSON object: domain, options (as of `mta config show --json`)")
    domain.set_defaults(run=run_domain)

    diff = add_parser(
        verbs, "diff", "print what a change means", _DIFF, "  mta config diff /etc/mta/mta.yaml new.yaml")
    diff.add_argument("old", metavar="OLD", help="configuration file")
    diff.add_argument("new", metavar="NEW", help="configuration file")
    add_json(diff, "one JSON list of objects: option, old, new, restart")
    diff.set_defaults(run=run_diff)


def run_reference(options: argparse.Namespace) -> int:
    """Print the reference."""
    print(markdown(), end="")
    return exits.OK


def run_show(options: argparse.Namespace) -> int:
    """Print the configuration as it holds."""
    reading = _read(options.config)
    if reading.config is None:
        return exits.CONFIG
    if options.json:
        shown = [
            setting.for_json(reading.file) for setting in settings(reading.config, reading.given)
            if not options.given or (setting.place is not None and setting.inherited_from is None)
        ]
        print(json.dumps({"file": reading.file, "options": shown}))
    else:
        print(as_yaml(reading.config, reading.given, reading.file, options.given), end="")
    return exits.OK


def run_domain(options: argparse.Namespace) -> int:
    """Print what holds for a domain."""
    try:
        domain = parse_domain(options.domain)
    except ValueError as error:
        print(f"mta: {quoted(options.domain)}: {error}", file=sys.stderr)
        return exits.USAGE
    reading = _read(options.config)
    if reading.config is None:
        return exits.CONFIG
    found = _for_domain(reading, domain)
    if options.json:
        print(json.dumps({"domain": domain, "options": [setting.for_json(reading.file) for setting in found]}))
        return exits.OK
    for setting in found:
        text = f"{path_text(setting.path)}: {setting.text}"
        print(f"{text:58}  # {setting.source(reading.file)}")
    if not any(isinstance(setting.value, Route) for setting in found):
        print(f"{'route: ' + written(Route(), Route):58}  # default")
    return exits.OK


def _for_domain(reading: Reading, domain: str) -> list[Setting]:
    """Its route, if one is configured, and its shaping."""
    assert reading.config is not None
    routes = reading.config.routes
    route_key = domain if domain in routes else "*"
    section: Any = ("shaping", "domains", domain)
    if domain not in reading.config.shaping.domains:
        section = ("shaping", "default")
    return [
        setting for setting in settings(reading.config, reading.given)
        if setting.path == ("routes", route_key) or setting.path[: len(section)] == section
    ]


def run_diff(options: argparse.Namespace) -> int:
    """Print what differs."""
    old, new = _read(options.old), _read(options.new)
    if old.config is None or new.config is None:
        return exits.CONFIG
    found = changes(old.config, new.config)
    if options.json:
        print(json.dumps([
            {"option": path_text(change.path), "old": change.old or None, "new": change.new or None,
             "restart": change.needs_restart} for change in found
        ]))
        return exits.OK
    for change in found:
        mark = " (restart)" if change.needs_restart else ""
        print(f"{path_text(change.path)}: {change.old or 'nothing'} -> {change.new or 'nothing'}{mark}")
    return exits.OK


def _read(path: str) -> Reading:
    """The file; its problems go to stderr."""
    reading = read(path)
    for problem in reading.problems:
        print(problem, file=sys.stderr)
    return reading
