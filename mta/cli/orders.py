"""`mta orders`: what operators have ordered, and rules on replies decided, and is in force."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence

from mta.cli.options import add_parser, connect
from mta.cli.ordering import add_ending, describe, end, no_such
from mta.cli.queue import tell_missing
from mta.cli.text import Column, age, count, print_table, until
from mta.control import exits
from mta.control.exits import OperatorError
from mta.control.protocol import OrderRow

_DESCRIPTION = """\
List what operators have ordered and is in force: pauses, suspensions, limits, and what is still being gone through,
with its progress; then what rules on replies suspend or limit just now, BY the rule, without a number: `mta unsuspend`
and `mta limit TARGET off` end that. All of it outlives restarts. `cancel` ends orders of any kind; what a sweep has
done stays done."""

_EXAMPLES = """\
  mta orders
  mta orders --json | jq -r 'select(.by | startswith("rule ")) | .target'
  mta orders cancel 12 14
  mta events --event order                who ordered what, and when"""

_COLUMNS = (
    Column("ORDER", right=True), Column("WHAT", shrinks=True), Column("BY"), Column("SINCE", right=True),
    Column("ENDS"), Column("DONE"), Column("REASON", shrinks=True),
)  # fmt: skip


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "orders", "list what operators ordered and rules decided", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("words", metavar="cancel NUMBER", nargs="*", help="end these orders")
    add_ending(parser, "one JSON object per order; `number` is 0 of what a rule decided")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """List, or cancel."""
    if options.words:
        return _cancel(options)
    return show(options)


def show(options: argparse.Namespace, kinds: Sequence[str] = ()) -> int:
    """List what is in force of operators and rules, all or of these kinds. The exit code."""
    with connect(options) as client:
        found = client.orders(ruled=True)
    rows = [one for one in (*found.orders, *found.ruled) if not kinds or one.kind in kinds]
    if options.json:
        for one in rows:
            print(json.dumps(dataclasses.asdict(one)))
    elif rows:
        now_us = time.time_ns() // 1000
        print_table(_COLUMNS, (_cells(one, now_us) for one in rows))
        if found.ruled_more:
            print(f"and {found.ruled_more:,} more that rules on replies decided")
    else:
        print(f"no {' or '.join(kinds)} is in force" if kinds else "no orders are in force")
    return tell_missing(found.missing)


def _cancel(options: argparse.Namespace) -> int:
    verb, *numbers = options.words
    if verb != "cancel" or not numbers or not all(word.isdecimal() for word in numbers):
        raise OperatorError(exits.USAGE, "expected nothing, or cancel and the numbers of orders")
    with connect(options) as client:
        found = [one for one in client.orders().orders if str(one.number) in numbers]
        if not found:
            raise no_such(client, ("order",), " ".join(numbers))
        return end(options, client, found)


def _cells(one: OrderRow, now_us: int) -> list[str]:
    done = ""
    if one.shards:
        done = f"{count(one.deliveries, 'delivery', 'deliveries')}, {one.shards_done} of {count(one.shards, 'shard')}"
        if one.unreadable:
            done += f", {count(one.unreadable, 'record')} cannot be read"
    since, ends = age(one.at_us, now_us), until(one.until_us, now_us)
    return [str(one.number) if one.number else "-", describe(one), one.by, since, ends, done, one.reason]
