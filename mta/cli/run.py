"""`mta run`: start the MTA in the foreground."""

from __future__ import annotations

import argparse
import sys

from mta.cli.options import add_config, add_parser
from mta.control import exits

_DESCRIPTION = """\
Start the MTA in the foreground: supervisor, workers and control process. When everything accepts, a line that begins
with `ready:` and names the listening addresses is written to stderr, and systemd is told. It runs until it is stopped.

signals:
  SIGTERM, SIGINT   stop: accept nothing more, finish what is in flight within `shutdown`, exit 0
  SIGINT (second)   stop at once
  SIGHUP            read the configuration again; with errors in it the old one stays

Exit codes are listed in docs/cli.md."""

_EXAMPLES = """\
  mta run -c /etc/mta/mta.yaml
  sudo mta run -c /etc/mta/mta.yaml     bind port 25, then become the configured `user`
  systemctl start mta                   the same under systemd, see systemd/mta.service"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "run", "start the MTA in the foreground", _DESCRIPTION, _EXAMPLES)
    add_config(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the MTA until it is stopped."""
    # Not before the command is known: only `mta run` needs these.
    from mta.config.problems import ConfigError
    from mta.control.supervisor import Supervisor

    try:
        return Supervisor(options.config).run()
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        print(f"mta: not started: {options.config} has {_count(len(error.problems))}", file=sys.stderr)
        return exits.CONFIG
    except exits.StartError as error:
        print(f"mta: not started: {error}", file=sys.stderr)
        return error.exit_code


def _count(errors: int) -> str:
    return "an error" if errors == 1 else f"{errors} errors"
