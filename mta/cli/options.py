"""Command line options that several commands share."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

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


def add_config(parser: argparse.ArgumentParser) -> None:
    """`-c FILE`, as `options.config`."""
    parser.add_argument(
        "-c", "--config", metavar="FILE", default=default_config(),
        help=f"configuration file (default: $MTA_CONFIG, or {DEFAULT_CONFIG})",
    )  # fmt: skip


def add_run(parser: argparse.ArgumentParser) -> None:
    """`-c FILE` or `--run DIRECTORY`, as `options.config` and `options.run_directory`: which running MTA is meant."""
    add_config(parser)
    parser.add_argument(
        "--run", metavar="DIRECTORY", dest="run_directory",
        help="runtime directory of the MTA, instead of the one that the configuration names",
    )  # fmt: skip


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """`--json`, as `options.json`."""
    parser.add_argument("--json", action="store_true", help=f"print {what}")
