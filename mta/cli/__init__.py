"""The `mta` command: finds the module of the command given and lets it do the work.

Each command is a module `mta.cli.NAME` with `register(commands)`; some share one (`MODULES`). Only the module of the
command that was typed is imported: `mta run` must not load gevent, and `mta queue` should answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Final

from mta import __version__
from mta.config.problems import printable
from mta.control import exits

# In the order of `mta --help`.
COMMANDS: Final = (
    "run", "check", "config", "shaping", "status", "queue", "explain", "message", "events",
    "pause", "resume", "freeze", "reroute", "retry", "expire", "delete", "suspend", "unsuspend", "limit", "orders",
    "spool", "user", "send", "dns", "rules", "sandbox", "demo", "simulate",
)  # fmt: skip

# Of commands that share a module with others.
MODULES: Final = {
    "pause": "holding", "resume": "holding", "freeze": "holding", "reroute": "holding",
    "retry": "ending", "expire": "ending", "delete": "ending",
    "suspend": "suspending", "unsuspend": "suspending", "limit": "suspending",
}  # fmt: skip

_EPILOG = """\
`mta COMMAND --help` explains a command and shows examples.

examples:
  mta demo                              see it work, on loopback, in a temporary spool
  mta check -c /etc/mta/mta.yaml        report every error of a configuration
  mta run -c /etc/mta/mta.yaml          start in the foreground
  mta queue                             what waits, for how long, and why
  mta events --follow --event bounced   watch what fails
"""


def build_parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the commands `names`, as far as they exist; imports their modules."""
    parser = argparse.ArgumentParser(
        prog="mta",
        description="An outbound mail transfer agent for bulk senders.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mta {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for module in dict.fromkeys(MODULES.get(name, name) for name in names):
        module_name = f"mta.cli.{module}"
        if importlib.util.find_spec(module_name) is not None:
            importlib.import_module(module_name).register(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (`mta.control.exits`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    typed = arguments[0] if arguments else ""
    parser = build_parser((typed,) if typed in COMMANDS else COMMANDS)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse printed the reason; its own code for a usage error is 2
        return exits.USAGE if stop.code == 2 else exits.OK
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except exits.OperatorError as error:
        print(f"mta: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. Nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK
    return code
