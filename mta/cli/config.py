"""`mta config`: the reference of all options, the configuration as it holds, and what a change means."""

from __future__ import annotations

import argparse
import json
import sys

from mta.cli.options import add_config, add_json, add_parser
from mta.config.effective import as_yaml, changes, settings
from mta.config.loader import Reading, read
from mta.config.problems import path_text
from mta.config.reference import markdown
from mta.control import exits

_EXAMPLES = """\
  mta config reference | less
  mta config show -c /etc/mta/mta.yaml --given
  mta config diff /etc/mta/mta.yaml new.yaml"""

_SHOW = """\
Print every option with its value and, as a comment, where that comes from: `default` or FILE:LINE. The output is YAML
that loads to the same configuration. Of shaping only what is set is printed; `mta shaping show` prints what holds."""

_DIFF = """\
Print what differs between two configurations, whatever their layout: `option: old -> new`. What differs in the files
that `providers` and `rules_file` name is printed below these names, as in `providers.default.connections`. What a
reload does not change is marked `(restart)`. The exit code is 0, also when they differ."""


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
    add_json(show, "one JSON object: file, options (option, value, source, file, line, column)")
    show.set_defaults(run=run_show)

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
            if not options.given or setting.place is not None
        ]
        print(json.dumps({"file": reading.file, "options": shown}))
    else:
        print(as_yaml(reading.config, reading.given, reading.file, options.given), end="")
    return exits.OK


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
