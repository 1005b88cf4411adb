"""`mta explain`: why mail waits, since when, until when, and what would change it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

from mta.cli.causes import is_filter, run_over
from mta.cli.options import add_instance, add_json, add_parser, connect
from mta.cli.queue import tell_missing
from mta.cli.text import age, count, printable, stamp, until
from mta.control import exits
from mta.control.exits import OperatorError
from mta.control.explanation import Explained, subject_of
from mta.delivery.reason import Reason

_DESCRIPTION = """\
Say in plain sentences why mail waits: which limit, suspension, rule, reply, DNS answer or schedule holds it now, since
when, until when, what would change that, and how the last attempts ended.

WHAT is a message, a queue, a path or a domain, told apart by their form; or `provider=NAME`, `source=NAME`,
`tenant=NAME`, and `domain=`, `queue=`, `path=`, `message=` where the form would mislead.

With `--all`, or an expression as `mta pause` takes it (`tenant=acme and age>2h`), the causes are counted over all that
mail: what holds how many deliveries of how many queues, the most first; with --json one line for each delivery. A
delivery counts for one cause: where its whole queue is held up, for that. A queue that several workers have counts in
each."""

_EXAMPLES = """\
  mta explain example.org             its queues, their first deliveries, and its paths
  mta explain 01hq3z8k2v4x0           one message: each of its deliveries
  mta explain news:acme@example.org   one queue
  mta explain 'out1>mx.example.org'   one path
  mta explain provider=gmail          what holds for a provider, and all its paths
  mta explain --all                   why mail waits: causes with counts
  mta explain 'tenant=acme and age>2h' --json
  mta explain --all --summary --json # the causes as JSON
  mta explain tenant=acme --json | jq -r '.reasons[].kind'"""

_STATES = {
    "active": "is being delivered", "ready": "is due, and waits", "waiting": "is not due yet",
    "suspended": "stands still", "paused": "is held by an order", "idle": "nothing holds it, nothing waits for it",
}  # fmt: skip


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "explain", "say why mail waits, and what would change it", _DESCRIPTION, _EXAMPLES)
    add_instance(parser)
    parser.add_argument("what", metavar="WHAT", nargs="*", help="DOMAIN, QUEUE, PATH, MESSAGE, provider=NAME, "
                        "source=NAME, tenant=NAME, or an expression")
    parser.add_argument("--all", action="store_true", help="all mail")
    parser.add_argument("--summary", action="store_true", help="the causes with counts, also with --json")
    add_json(parser, "one JSON object per line, for each thing that is explained")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Explain it."""
    text = " ".join(options.what)
    if options.all or options.summary or is_filter(text):
        return run_over(options, "" if options.all and not text else text)
    if not text:
        raise OperatorError(exits.USAGE, "what? DOMAIN, QUEUE, PATH, MESSAGE, an expression, or --all")
    kind, name = subject_of(text)
    with connect(options) as client:
        found = client.explain(kind, name)
    now_us = time.time_ns() // 1000
    for index, row in enumerate(found.rows):
        if options.json:
            print(json.dumps(dataclasses.asdict(row)))
        else:
            print("\n" * (index > 0) + _headline(row, now_us))
            _print(row, now_us)
    if found.more and not options.json:
        print(f"\nand {found.more:,} more")
    code = tell_missing(found.missing)
    if not found.rows and not found.missing:
        more = f": see `mta events --message {printable(name)}`" if kind == "message" else ", and no path of this name"
        print(f"mta: nothing of {printable(text)!r} is in the queue{more}", file=sys.stderr)
        return exits.NO_INPUT
    return code


def _headline(row: Explained, now_us: int) -> str:
    state = _STATES.get(row.state, printable(row.state))
    if row.what == "delivery":
        to = ", ".join(map(printable, row.recipients[:3]))
        others = f" and {count(len(row.recipients) - 3, 'more recipient')}" if len(row.recipients) > 3 else ""
        return (f"message {printable(row.message)} to {to}{others}, queue {printable(row.name)}: {state}; "
                f"{age(row.arrival_us, now_us)} old, given up {until(row.expires_us, now_us)}")
    parts = [count(row.deliveries, "delivery", "deliveries")] if row.deliveries else []
    parts += [f"{row.in_flight:,} under way"] if row.in_flight else []
    parts += [count(row.connections, "connection")] if row.connections else []
    numbers = f" ({', '.join(parts)})" if parts else ""
    return f"{printable(row.what)} {printable(row.name)}{numbers}: {state}"


def _print(row: Explained, now_us: int) -> None:
    for reason in row.reasons:
        print(f"  {printable(reason.text, 500)}{_when(reason, now_us)}")
        numbers = ", ".join(f"{printable(name).replace('_', ' ')} {value:g}" for name, value in reason.numbers.items())
        if numbers:
            print(f"    numbers: {numbers}")
        if reason.remedy:
            print(f"    to change it: {printable(reason.remedy, 500)}")
    for one in row.rules:
        print(f"  {printable(one.text, 500)}; counted since {stamp(one.since_us)}")
        print(f"    to change it: `mta rules show {printable(one.rule)}` shows the rule")
    for attempt in row.history:
        remote = f"{printable(attempt.remote)}: " if attempt.remote else ""
        print(f"  attempt {stamp(attempt.time_us)}  {remote}{printable(attempt.reply, 500)}")


def _when(reason: Reason, now_us: int) -> str:
    parts = [f"since {stamp(reason.since_us)}"] if reason.since_us else []
    parts += [f"until {stamp(reason.until_us)} ({until(reason.until_us, now_us)})"] if reason.until_us else []
    return f"; {', '.join(parts)}" if parts else ""
