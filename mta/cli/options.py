"""Command line options that several commands share."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

from mta.config.schema import Config
from mta.control.client import ControlClient
from mta.control.exits import CONFIG, OperatorError

DEFAULT_CONFIG: Final = "/etc/mta/mta.yaml"


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    description: str,
    examples: str,
    **options: Any,
) -> argparse.ArgumentParser:
    """A parser whose help ends with `examples`, kept as they are written."""
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )


def default_config() -> str:
    """The configuration file that is meant when none is named: `MTA_CONFIG` of the environment, or the usual place."""
    return os.environ.get("MTA_CONFIG") or DEFAULT_CONFIG


def add_config(parser: argparse.ArgumentParser) -> argparse.Action:
    """`-c FILE`, as `options.config`."""
    return parser.add_argument(
        "-c", "--config", metavar="FILE", default=default_config(),
        help=f"configuration file (default: $MTA_CONFIG, or {DEFAULT_CONFIG})",
    )  # fmt: skip


def add_instance(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """`-c FILE` or `--run DIRECTORY`: which running MTA is meant; see `connect`."""
    directory = parser.add_argument(
        "--run", metavar="DIRECTORY", dest="run_directory",
        help="runtime directory of the MTA, instead of the one that the configuration names",
    )  # fmt: skip
    return [add_config(parser), directory]


def add_json(parser: argparse._ActionsContainer, what: str) -> argparse.Action:
    """`--json`, as `options.json`."""
    return parser.add_argument("--json", action="store_true", help=f"print {what}")


def positive(text: str) -> int:
    """A number from 1 on, for `type=` of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def load_config(path: str) -> Config:
    """The configuration, for a command that needs to know where things are. Raises OperatorError."""
    from mta.config.loader import check  # takes some time to import, and not every command needs it

    config, problems = check(path)
    if config is None:
        more = f" ({len(problems) - 1} more: `mta check -c {path}`)" if len(problems) > 1 else ""
        raise OperatorError(CONFIG, f"{problems[0]}{more}")
    return config


def connect(options: argparse.Namespace) -> ControlClient:
    """Connect to the running MTA that `add_instance` options name. Raises OperatorError."""
    if options.run_directory is not None:
        return ControlClient(options.run_directory)
    try:
        run = load_config(options.config).run
    except OperatorError as error:
        raise OperatorError(error.exit_code, f"{error}; --run DIRECTORY does without the configuration") from error
    return ControlClient(run)
