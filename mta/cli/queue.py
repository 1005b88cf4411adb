"""`mta queue`: what waits, for how long, and why."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

from mta.cli.deliveries import print_in_queue
from mta.cli.options import add_instance, add_json, add_parser, connect, positive
from mta.cli.text import Column, count, print_table, printable, until
from mta.control import exits
from mta.control.protocol import MAX_ROWS, QUEUE_ORDERS, Missing, QueueRow

_DESCRIPTION = """\
List the queues of the running MTA, one line each: its deliveries (a delivery is a message to one domain), their
recipients, how many are being delivered, when the next is tried, and why nothing moves: a limit, a pause, or, while it
waits for its retry time, the last reply that deferred something."""

_EXAMPLES = """\
  mta queue                           the fullest queues
  mta queue list gmail                queues with `gmail` in their name
  mta queue list '*.example.org'      or by a shell pattern
  mta queue --sort next --limit 20    what is tried next
  mta queue show example.org          the deliveries of one queue, with their last replies
  mta queue --json | jq -r 'select(.deliveries > 1000) | .name'"""

_LIST_DESCRIPTION = """\
As `mta queue` alone, which lists them all; with PATTERN those whose name it is a part of, or that it matches as a
shell pattern."""

_LIST_EXAMPLES = """\
  mta queue list gmail
  mta queue list '*.example.org' --sort next"""

_SHOW_DESCRIPTION = """\
Show one queue and its deliveries, those that are due first: message, sender, recipients, attempts and replies."""

_SHOW_EXAMPLES = """\
  mta queue show example.org
  mta queue show example.org --limit 5
  mta queue show example.org --json | jq -r '.message'"""

_JSON = "one JSON object per line"
_COLUMNS = (
    Column("QUEUE", shrinks=True),
    Column("DELIVERIES", right=True),
    Column("RCPTS", right=True),
    Column("ACTIVE", right=True),
    Column("NEXT"),
    Column("STATE"),
    Column("WHY", shrinks=True),
)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    parser = add_parser(commands, "queue", "list queues: counts, next attempt, last reply", _DESCRIPTION, _EXAMPLES)
    _add_options(parser, sort=True)
    parser.set_defaults(run=run_list, pattern="")
    verbs = parser.add_subparsers(metavar="[list|show]", dest="verb")
    listing = add_parser(verbs, "list", "list queues that match", _LIST_DESCRIPTION, _LIST_EXAMPLES)
    pattern = listing.add_argument("pattern", nargs="?", help="part of a name, or a shell pattern")
    listing.set_defaults(run=run_list)
    show = add_parser(verbs, "show", "show one queue and its deliveries", _SHOW_DESCRIPTION, _SHOW_EXAMPLES)
    show.add_argument("queue", metavar="QUEUE", help="name of the queue, as `mta queue` prints it")
    show.set_defaults(run=run_show)
    for action in [pattern, *_add_options(listing, sort=True), *_add_options(show, sort=False)]:
        # What is given before the verb holds for it, too: the verb's own parser must not put its defaults over it.
        action.default = argparse.SUPPRESS


def _add_options(parser: argparse.ArgumentParser, sort: bool) -> list[argparse.Action]:
    actions = [*add_instance(parser), add_json(parser, _JSON)]
    actions.append(parser.add_argument(
        "-n", "--limit", type=positive, metavar="N", help=f"show at most N (default: 50, at most {MAX_ROWS})"
    ))
    if sort:
        actions.append(parser.add_argument(
            "--sort", choices=QUEUE_ORDERS, help="most deliveries first (default), next due first, by name"
        ))
    return actions


def run_list(options: argparse.Namespace) -> int:
    """List queues."""
    limit = min(options.limit or 50, MAX_ROWS)
    with connect(options) as client:
        found = client.queues(options.pattern or "", limit, options.sort or "deliveries")
    if options.json:
        for row in found.rows:
            print(json.dumps(dataclasses.asdict(row)))
    elif found.rows:
        now_us = time.time_ns() // 1000
        print_table(_COLUMNS, (_cells(row, now_us) for row in found.rows))
        print()
        if len(found.rows) < found.queues:
            print(f"{len(found.rows):,} of {found.queues:,} queues are shown (--limit)")
        print(
            f"{count(found.queues, 'queue')}, {count(found.deliveries, 'delivery', 'deliveries')}, "
            f"{count(found.recipients, 'recipient')}"
        )
    elif not found.missing or options.pattern:
        print(f"no queue matches {printable(options.pattern)!r}" if options.pattern else "the queue is empty")
    return tell_missing(found.missing)


def run_show(options: argparse.Namespace) -> int:
    """Show one queue."""
    limit = min(options.limit or 50, MAX_ROWS)
    with connect(options) as client:
        found = client.queue(options.queue, limit)
    code = tell_missing(found.missing)
    if options.json:
        for delivery in found.deliveries:
            print(json.dumps(dataclasses.asdict(delivery)))
    if found.row is None:
        if not found.missing:  # they were named: it may be there
            print(f"mta: there is no queue {printable(options.queue)!r}: it is empty, or never was", file=sys.stderr)
        return code or exits.NO_INPUT
    if not options.json:
        now_us = time.time_ns() // 1000
        print_table(_COLUMNS, [_cells(found.row, now_us)])
        for delivery in found.deliveries:
            print()
            print_in_queue(delivery, now_us)
        if found.more:
            print(f"\n{len(found.deliveries):,} of {found.row.deliveries:,} deliveries are shown (--limit)")
    return code


def tell_missing(missing: list[Missing]) -> int:
    """Say on stderr whose part is not in an answer; the exit code that follows from it."""
    for entry in missing:
        print(f"mta: incomplete: worker {entry.worker} {printable(entry.reason)}", file=sys.stderr)
    return exits.TEMPORARY if missing else exits.OK


def _cells(row: QueueRow, now_us: int) -> list[str]:
    is_held = row.state in ("paused", "suspended") and row.next_due_us <= now_us  # until somebody ends it
    return [
        row.name,
        f"{row.deliveries:,}",
        f"{row.recipients:,}",
        f"{row.in_flight:,}",
        "-" if is_held else until(row.next_due_us, now_us),
        row.state,
        (row.state != "waiting" and row.reason) or row.last_reply or row.reason,
    ]
