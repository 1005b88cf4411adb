"""What the commands that give orders share: which mail is meant, what that would touch, whether to go on."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from mta.cli.options import add_instance, add_json, connect
from mta.cli.queue import tell_missing
from mta.cli.text import Column, count, print_table, printable
from mta.config.units import parse_duration
from mta.control import exits
from mta.control.client import ControlClient
from mta.control.exits import OperatorError
from mta.control.protocol import OrderAnswer, OrderRow, TouchList
from mta.queue import idn
from mta.queue.filter import FIELDS as FILTER_FIELDS
from mta.queue.filter import Filter, FilterError
from mta.queue.orders import TARGETS, Kind, Order, OrderError, limit_words, same_mail

FIELDS: Final = ("domain", "provider", "queue", "tenant", "campaign", "pool", "priority", "source", "sender",
                 "recipient")
FILTER_HELP: Final = """\
Which mail is meant is said by an expression, `tenant=acme and age>2h and not campaign=welcome*`, by options that all
have to match, or both. Fields: domain, provider, queue, tenant, campaign, pool, priority, sender, recipient, message,
source, age, attempts, size, reply; operators: = != ~ (regular expression) < <= > >=. Quote it from the shell. Case does
not matter, and a domain is found as bücher.example and as xn--bcher-kva.example."""

_SHOWN: Final = 10
_OPERATORS: Final = re.compile(r"[=~<>]")
_COUNTED: Final = ("domain", "provider", "tenant")  # of what may be a target: those that say which mail it holds
_COLUMNS: Final = (Column("QUEUE", shrinks=True), Column("DELIVERIES", right=True), Column("RCPTS", right=True))


def add_filter(parser: argparse.ArgumentParser, metavar: str = "FILTER") -> None:
    """FILTER and the options that are short for parts of one; see `expression_of`."""
    parser.add_argument("filter", metavar=metavar, nargs="*", help="see above")
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


def text_of(options: argparse.Namespace) -> str:
    """What the command line says of which mail is meant, unread. Raises OperatorError when that is nothing."""
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
    return parts[0] if len(parts) == 1 else " and ".join(f"({part})" for part in parts)


def expression_of(options: argparse.Namespace) -> str:
    """The filter that the command line means. Raises OperatorError."""
    text = text_of(options)
    try:
        Filter.parse(text)
    except FilterError as error:
        hint = ""
        if is_name(text):
            hint = f"; a path is kept from being used by `mta suspend {shlex.quote(text)}`"
            if ">" not in text:
                hint = f"; mail to a domain is meant by `mta {options.command} domain={text}`{hint}"
        raise OperatorError(exits.USAGE, f"{text}: {error}{hint}") from error
    return text


def is_name(text: str) -> bool:
    """Whether it may be the name of a path or a domain, and is no expression that went wrong."""
    name, operator, _ = text.partition(">")
    return not (" " in text or _OPERATORS.search(text.replace(">", "", 1)) or (operator and name in FILTER_FIELDS))


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
    """The name of what is suspended or limited: of a path as it is kept, `source=out1` as `source:out1`. Raises
    OperatorError."""
    kind, sign, name = text.partition("=")
    if not sign:
        return idn.path_called(text)
    if kind not in TARGETS or not name:
        hint = ""
        if kind in FILTER_FIELDS and name:
            mail = shlex.quote(text)
            hint = f"; `mta pause {mail}` keeps that mail, `mta reroute POOL {mail}` has it go from other sources"
        raise OperatorError(exits.USAGE, f"{text}: expected a path, or one of "
                            + ", ".join(f"{one}=NAME" for one in TARGETS) + hint)
    if kind == "domain":
        name = idn.in_a_labels(name)
    return f"{kind}:{name.lower() if kind == 'provider' else name}"


def give(options: argparse.Namespace, kind: Kind, done: str, **fields: Any) -> int:
    """Show what an order touches, ask, give it, and say what came of it. The exit code."""
    try:
        Order(0, kind, "", 0, **fields).check()
    except OrderError as error:
        raise OperatorError(exits.USAGE, str(error)) from error
    expression = fields.get("filter", "") or _mail_of(fields["target"])
    with connect(options) as client:
        touched = client.touched(expression) if expression else None
        if not options.json:
            _print_touched(touched, expression, kind, fields)
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


def _mail_of(target: str) -> str:
    """The expression for the mail that a target holds, "" when it depends on the way that this goes."""
    kind, _, name = target.partition(":")
    return f'{kind}="{name}"' if kind in _COUNTED and ">" not in name else ""


def end(options: argparse.Namespace, client: ControlClient, found: list[OrderRow], lifted: Sequence[str] = ()) -> int:
    """End these orders, and tell what of rules was `lifted`. The exit code. A dry run tells what would be."""
    if options.dry_run:
        answer = OrderAnswer(found)
    else:
        answer = client.end([one.number for one in found]) if found else OrderAnswer()
    is_ended = "would be ended" if options.dry_run else "is ended"
    if options.json:
        print(json.dumps({"touched": None, **dataclasses.asdict(answer), "lifted": list(lifted)}))
    else:
        for one in answer.orders:
            print(f"order {one.number} {is_ended}: {describe(one)}")
        for text in lifted:
            print(f"{is_ended.removeprefix('is ')}: {printable(text)}")
    return tell_missing(answer.missing)


def add_ending(parser: argparse.ArgumentParser, json: str) -> None:
    """The options of every command that ends orders; `json` says what its answer is."""
    parser.add_argument("-n", "--dry-run", action="store_true", help="only show what would be ended")
    add_json(parser, json)
    add_instance(parser)


def no_such(client: ControlClient, kinds: tuple[str, ...], wanted: str) -> OperatorError:
    """Nothing to end: what there is instead, first of all an order of another kind about the same."""
    orders = client.orders().orders
    for one in orders:
        if one.kind not in kinds and is_about(one, wanted):
            return OperatorError(exits.NO_INPUT, f"there is no such order: {wanted}; order {one.number} "
                                 f"({describe(one)}) is ended by `mta {_ending(one)}`")
    there = [f"{one.number} ({describe(one)})" for one in orders if one.kind in kinds]
    return OperatorError(exits.NO_INPUT, f"there is no such order: {wanted}; "
                         + (f"in force: {', '.join(there)}" if there else f"no {' or '.join(kinds)} is in force"))


def is_about(one: OrderRow, wanted: str) -> bool:
    """Whether an order is about the mail, or the target, that `wanted` names."""
    try:
        return one.target == target_of(wanted) if one.target else same_mail(one.filter, wanted)
    except (OperatorError, FilterError):
        return False


def _ending(one: OrderRow) -> str:
    """The words that end an order."""
    what = shlex.quote(_typed(one.target) if one.target else one.filter)
    words = {"pause": f"resume {what}", "freeze": f"resume {what}", "suspend": f"unsuspend {what}",
             "limit": f"limit {what} off", "reroute": f"reroute off {what}"}
    return words.get(one.kind, f"orders cancel {one.number}")


def _typed(target: str) -> str:
    """A target as it is typed; the name of a path as it is, which may have the address of a host in it."""
    kind, _, name = target.partition(":")
    return f"{kind}={name}" if kind in TARGETS and ">" not in name else target


def describe(one: OrderRow) -> str:
    """An order in a few words."""
    what = _typed(one.target) if one.target else one.filter
    words = [printable(one.kind), printable(what)]
    if one.pool:
        words.append(f"to pool {printable(one.pool)}")
    limited = limit_words(one.connections, one.rate)
    return " ".join([*words, limited] if limited else words)


def _print_touched(touched: TouchList | None, expression: str, kind: str, fields: dict[str, Any]) -> None:
    if touched is None:
        print(f"{kind} {printable(_typed(fields['target']))}")
        return
    if touched.rows:
        print_table(_COLUMNS, ([row.queue, f"{row.deliveries:,}", f"{row.recipients:,}"]
                               for row in touched.rows[:_SHOWN]))
    at_least = "" if touched.exact else "at least "
    print(f"{printable(expression)} is {at_least}{count(touched.deliveries, 'delivery', 'deliveries')} to "
          f"{count(touched.recipients, 'recipient')} in {count(touched.queues, 'queue')} now")


def _print_json(touched: TouchList | None, answer: OrderAnswer) -> None:
    print(json.dumps({"touched": dataclasses.asdict(touched) if touched is not None else None,
                      **dataclasses.asdict(answer)}))


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise OperatorError(exits.USAGE, "nothing was done: without a terminal to ask on it needs --yes")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise OperatorError(exits.USAGE, "nothing was done")
