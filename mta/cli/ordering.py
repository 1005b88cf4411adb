"""What the commands that give orders share: which mail is meant, what that would touch, whether to go on."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from typing import Any, Final

from mta.cli.options import add_instance, add_json, connect
from mta.cli.queue import tell_missing
from mta.cli.text import Column, count, print_table, printable
from mta.config.units import parse_duration
from mta.control import exits
from mta.control.client import ControlClient
from mta.control.exits import OperatorError
from mta.control.protocol import OrderAnswer, OrderRow, TouchList
from mta.queue.filter import Filter, FilterError
from mta.queue.orders import TARGETS

FIELDS: Final = ("domain", "provider", "queue", "tenant", "campaign", "pool", "priority", "sender", "recipient")
FILTER_HELP: Final = """\
Which mail is meant is said by an expression, `tenant=acme and age>2h and not campaign=welcome*`, by options that all
have to match, or both. Fields: domain, provider, queue, tenant, campaign, pool, priority, sender, recipient, message,
source, age, attempts, size, reply; operators: = != ~ (regular expression) < <= > >=. Quote it from the shell."""

_SHOWN: Final = 10
_COLUMNS: Final = (Column("QUEUE", shrinks=True), Column("DELIVERIES", right=True), Column("RCPTS", right=True))


def add_filter(parser: argparse.ArgumentParser) -> None:
    """FILTER and the options that are short for parts of one; see `expression_of`."""
    parser.add_argument("filter", metavar="FILTER", nargs="*", help="expression, see above")
    for name in FIELDS:
        parser.add_argument(f"--{name}", metavar="NAME", help=f"the same as {name}=NAME")
    parser.add_argument("--older", metavar="TIME", help="the same as age>TIME, such as 2h")


def add_giving(parser: argparse.ArgumentParser, lasting: bool) -> None:
    """The options of every command that gives an order."""
    if lasting:
        parser.add_argument("--for", dest="lasts", metavar="TIME", help="end by itself after that time, such as 2h")
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for colleagues and events")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only show what would be touched")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask; needed where there is no terminal")
    add_json(parser, "one JSON object: touched, orders, in_flight, missing")
    add_instance(parser)


def expression_of(options: argparse.Namespace) -> str:
    """The filter that the command line means. Raises OperatorError."""
    parts = [" ".join(options.filter)] if options.filter else []
    for name in FIELDS:
        value = getattr(options, name)
        if value is not None:
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            parts.append(f'{name}="{escaped}"')
    if options.older is not None:
        parts.append(f'age>"{options.older}"')
    if not parts:
        raise OperatorError(exits.USAGE, "which mail? An expression such as tenant=acme, or options such as --tenant; "
                            "all of it is queue=*")
    text = parts[0] if len(parts) == 1 else " and ".join(f"({part})" for part in parts)
    try:
        Filter.parse(text)
    except FilterError as error:
        raise OperatorError(exits.USAGE, f"{text}: {error}") from error
    return text


def until_of(options: argparse.Namespace) -> int:
    """When the order is to end by itself, 0 for never. Raises OperatorError."""
    return 0 if options.lasts is None else end_of(options.lasts)


def end_of(text: str) -> int:
    """The time after a duration from now. Raises OperatorError."""
    try:
        return time.time_ns() // 1000 + int(parse_duration(text) * 1_000_000)
    except ValueError as error:
        raise OperatorError(exits.USAGE, f"{text}: {error}") from error


def target_of(text: str) -> str:
    """The name of what is suspended or limited: a path as it is, `source=out1` as `source:out1`. Raises OperatorError.
    """
    kind, sign, name = text.partition("=")
    if not sign:
        return text
    if kind not in TARGETS or not name:
        raise OperatorError(exits.USAGE, f"{text}: expected a path, or one of "
                            + ", ".join(f"{one}=NAME" for one in TARGETS))
    return f"{kind}:{name}"


def give(options: argparse.Namespace, kind: str, done: str, **fields: Any) -> int:
    """Show what an order touches, ask, give it, and say what came of it. The exit code."""
    expression = fields.get("filter", "")
    with connect(options) as client:
        touched = client.touched(expression) if expression else None
        if not options.json:
            _print_touched(touched, kind, fields)
        if options.dry_run:
            if options.json:
                _print_json(touched, OrderAnswer())
            return tell_missing(touched.missing) if touched is not None else exits.OK
        if not options.yes:
            _confirm(f"{kind}: go on?")
        answer = client.order(kind, reason=options.reason, **fields)
    if options.json:
        _print_json(touched, answer)
    else:
        print(f"order {answer.orders[0].number}: {done}")
        if answer.in_flight:
            print(f"{count(answer.in_flight, 'delivery', 'deliveries')} being delivered just now run to their end")
    return tell_missing(answer.missing)


def end(options: argparse.Namespace, client: ControlClient, found: list[OrderRow]) -> int:
    """End these orders. The exit code."""
    answer = client.end([one.number for one in found])
    if options.json:
        _print_json(None, answer)
    else:
        for one in answer.orders:
            print(f"order {one.number} is ended: {describe(one)}")
    return tell_missing(answer.missing)


def no_such(client: ControlClient, kinds: tuple[str, ...], wanted: str) -> OperatorError:
    """Nothing to end: what there is instead."""
    there = [f"{one.number} ({describe(one)})" for one in client.orders().orders if one.kind in kinds]
    return OperatorError(exits.NO_INPUT, f"there is no such order: {wanted}; "
                         + (f"in force: {', '.join(there)}" if there else f"no {' or '.join(kinds)} is in force"))


def describe(one: OrderRow) -> str:
    """An order in a few words."""
    what = one.target.replace(":", "=", 1) if one.target else one.filter
    words = [printable(one.kind), printable(what)]
    if one.pool:
        words.append(f"to pool {printable(one.pool)}")
    if one.connections is not None:
        words.append(f"connections={one.connections}")
    if one.rate is not None:
        words.append(f"rate={one.rate:g}/s" if one.rate >= 1 else f"rate={one.rate * 60:g}/min")
    return " ".join(words)


def same_filter(one: str, other: str) -> bool:
    """Whether two expressions are the same but for spaces and case."""
    return one.lower().split() == other.lower().split()


def _print_touched(touched: TouchList | None, kind: str, fields: dict[str, Any]) -> None:
    if touched is None:
        print(f"{kind} {printable(fields['target']).replace(':', '=', 1)}")
        return
    if touched.rows:
        print_table(_COLUMNS, ([row.queue, f"{row.deliveries:,}", f"{row.recipients:,}"]
                               for row in touched.rows[:_SHOWN]))
    at_least = "" if touched.exact else "at least "
    print(f"{printable(fields['filter'])} is {at_least}{count(touched.deliveries, 'delivery', 'deliveries')} to "
          f"{count(touched.recipients, 'recipient')} in {count(touched.queues, 'queue')} now")


def _print_json(touched: TouchList | None, answer: OrderAnswer) -> None:
    print(json.dumps({"touched": dataclasses.asdict(touched) if touched is not None else None,
                      **dataclasses.asdict(answer)}))


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise OperatorError(exits.USAGE, "nothing was done: without a terminal to ask on it needs --yes")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise OperatorError(exits.USAGE, "nothing was done")
