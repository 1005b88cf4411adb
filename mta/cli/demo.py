"""`mta demo`: see it work, on loopback, in a temporary spool."""

from __future__ import annotations

import argparse
import os
import sys

from mta.cli.options import add_json, add_parser, positive
from mta.config.units import parse_duration

_DESCRIPTION = """\
Start a small Internet and the MTA on free ports of loopback, in a temporary directory. Send a campaign of a few
thousand messages through them, to several hundred domains: big providers with limits, greylisting ones, slow ones, a
dead one that comes back, unknown users, full mailboxes, domains that do not exist. Show how it goes, and at the end
account for every message: what was accepted, what became of it by the MTA's events, and what the receivers counted on
their own.

On a terminal the view is redrawn a few times a second, else a line is printed every second. Nothing leaves the machine,
and nothing is left behind. Retries come after seconds instead of minutes, and mail is given up after some seconds
instead of days, so that it is over in about 20 s.

Exit code 0: every message is accounted for; 75: time was over before; 70: the books do not agree; 130: Ctrl-C."""

_EXAMPLES = """\
  mta demo
  mta demo --keep                       stay up, and tell how to send, look and break things
  mta demo --messages 20000 --workers 4
  mta demo --json 2>/dev/null | jq .receivers
  mta demo | cat                        without the live view"""

MESSAGES = 3000
MOST_MESSAGES = 1_000_000
MOST_WORKERS = 64


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "demo", "see it work, on loopback, in a temporary spool", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--messages", metavar="N", type=_messages, default=MESSAGES,
                        help=f"how many messages to send (default: {MESSAGES})")
    parser.add_argument("--workers", metavar="N", type=_workers,
                        help="worker processes of the MTA (default: one per processor core, at least 2, at most 4)")
    parser.add_argument("--seed", metavar="N", type=int, default=1,
                        help="another number makes other domains and messages (default: 1)")
    parser.add_argument("--limit", metavar="TIME", type=_limit,
                        help="end after this time and tell what still waits, and why (default: 60s, more for more than "
                        "5000 messages)")
    parser.add_argument("--keep", action="store_true", help="leave everything running after the summary, until Ctrl-C")
    add_json(parser, "the summary as one JSON object on stdout, and all else on stderr")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Play the demo. Raises OperatorError."""
    from mta.demo.director import Director, Options  # takes some time to import; `mta --help` has to be quick

    workers = options.workers or min(max(len(os.sched_getaffinity(0)), 2), 4)
    wanted = Options(options.messages, workers, options.seed, options.limit, options.keep, options.json)
    return Director(wanted, sys.stdout, sys.stderr).run()


def _messages(text: str) -> int:
    return _at_most(text, MOST_MESSAGES)


def _workers(text: str) -> int:
    return _at_most(text, MOST_WORKERS)


def _at_most(text: str, most: int) -> int:
    number = positive(text)
    if number > most:
        raise argparse.ArgumentTypeError(f"{text} is more than {most}")
    return number


def _limit(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
