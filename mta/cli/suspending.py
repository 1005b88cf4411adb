"""`mta suspend`, `unsuspend`, `limit`: paths and the like that are not used, or used less."""

from __future__ import annotations

import argparse
import re
from typing import Any, Final

from mta.cli.options import add_parser, connect
from mta.cli.ordering import (
    FILTER_HELP,
    add_ending,
    add_filter,
    add_giving,
    end,
    end_of,
    expression_of,
    give,
    is_name,
    no_such,
    target_of,
    text_of,
    until_of,
)
from mta.cli.orders import show
from mta.config.units import parse_rate
from mta.control import exits
from mta.control.client import ControlClient
from mta.control.exits import OperatorError
from mta.control.protocol import OrderRow
from mta.queue.orders import same_mail

_NAMED: Final = re.compile(r'(?:source|provider|domain|tenant)=(?:"[^\s"*?\\]+"|[^\s"*?()=!<>~]+)')
_JOINS: Final = frozenset(("and", "or", "not"))

_TARGET = """\
TARGET is the name of a path as in `mta explain`, or source=NAME, provider=NAME, domain=NAME or tenant=NAME."""

_SUSPEND = f"""\
Open no connection and send nothing over a path, from a source, to a provider or a domain, or for a tenant. Mail of a
path goes by the other sources of its pool, else it waits at no cost. {_TARGET}

Any other expression, as `mta pause` takes it, says which mail is not tried, as after `mta pause`. For mail that left
last from a source that is `mta pause source=NAME`, as `mta suspend source=NAME` is about the source.

{FILTER_HELP}"""

_SUSPEND_EXAMPLES = """\
  mta suspend source=out1 --for 1h --reason 'listed at Example'
  mta suspend provider=microsoft
  mta suspend 'out1>mx.example.org'
  mta suspend campaign=spring-sale
  mta suspend 'tenant=acme and domain=*.example.org' --dry-run"""

_UNSUSPEND = f"""\
End suspensions: those that an operator ordered, of a target, with an expression, or by number of the order; and of a
target also those of a rule on replies, as `mta explain` names it. The next reply that the rule fits suspends again.
Mail that waits for its retry time goes on waiting for it (`mta retry`). {_TARGET}"""

_UNSUSPEND_EXAMPLES = """\
  mta unsuspend source=out1
  mta unsuspend campaign=spring-sale
  mta unsuspend 12 14
  mta unsuspend 'out1>mx.example.org'     as when a listing is over that a rule suspended the path for
  mta unsuspend --all"""

_LIMIT = f"""\
Lower limits for a while: connections=N, rate=N/TIME (messages), or both, and `for TIME`; `off` ends it, and what
rules on replies limited. A configured limit that is lower stays in force. Without TARGET what operators and rules
on replies limited is listed.

{_TARGET} Connections are counted for each path; of a source and of a domain for all their paths together, and a domain
gets connections of its own meanwhile; of a tenant it is messages in flight. A rate is for all of TARGET together. What
is open above a new or lower limit of a source or domain ends after a message, within a second, of others when it has no
more to do. All limits hold over all workers."""

_LIMIT_EXAMPLES = """\
  mta limit provider=google connections=2 rate=10/min for 1h
  mta limit source=out1 connections=20 rate=100/s
  mta limit mx.example.org connections=1
  mta limit domain=example.org connections=1 --reason 'ticket 17'
  mta limit tenant=acme rate=1000/h
  mta limit provider=google off
  mta limit                               what is limited now"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    suspend = add_parser(commands, "suspend", "do not use a path, source, provider, ...", _SUSPEND, _SUSPEND_EXAMPLES)
    add_filter(suspend, "TARGET|FILTER")
    add_giving(suspend, lasting=True)
    suspend.set_defaults(run=run_suspend)
    unsuspend = add_parser(commands, "unsuspend", "end suspensions", _UNSUSPEND, _UNSUSPEND_EXAMPLES)
    add_filter(unsuspend, "TARGET|FILTER")
    unsuspend.add_argument("--all", action="store_true", help="end all that operators ordered")
    add_ending(unsuspend, "one JSON object: orders, missing, lifted (what rules had suspended, in words)")
    unsuspend.set_defaults(run=run_unsuspend)
    limit = add_parser(commands, "limit", "lower limits for a while", _LIMIT, _LIMIT_EXAMPLES)
    limit.add_argument("target", metavar="TARGET", nargs="?", help="what, see above")
    limit.add_argument("words", metavar="connections=N|rate=N/TIME|for TIME|off", nargs="*", help="to what")
    add_giving(limit, lasting=True)
    limit.set_defaults(run=run_limit)


def run_suspend(options: argparse.Namespace) -> int:
    """Suspend."""
    return give(options, "suspend", "suspended", **_meant(options), until_us=until_of(options))


def run_unsuspend(options: argparse.Namespace) -> int:
    """End suspensions."""
    words = options.filter
    numbers = [int(word) for word in words if word.isdecimal()]
    wanted: list[dict[str, str]] = []
    if not options.all and (not words or len(numbers) < len(words)):
        several = len(words) > 1 and all(map(_target, words)) and _JOINS.isdisjoint(map(str.lower, words))
        wanted = [{"target": _target(word)} for word in words] if several else [_meant(options)]
    with connect(options) as client:
        suspensions = [one for one in client.orders().orders if one.kind == "suspend"]
        found = [one for one in suspensions if options.all or (not wanted and one.number in numbers)
                 or any(_is_meant(one, meant) for meant in wanted)]
        targets = sorted(one["target"] for one in wanted if "target" in one)
        lifted = _lift(options, client, targets, "suspension") if targets else []
        if not found and not lifted:
            what = [one.get("filter") or one["target"].replace(":", "=", 1) for one in wanted] or words or ["--all"]
            raise no_such(client, ("suspend",), " ".join(what))
        return end(options, client, found, lifted)


def _lift(options: argparse.Namespace, client: ControlClient, targets: list[str], what: str) -> list[str]:
    """End what rules on replies decided about `targets`, `suspension`s or `limit`s, but for a dry run. That, in words.
    """
    if not options.dry_run:
        return client.lift(targets, what).ended
    kind = "suspend" if what == "suspension" else what
    return [f"{what} of {one.target} by {one.by}: {one.reason}"
            for one in client.orders(ruled=True).ruled if one.kind == kind and one.target in targets]


def _meant(options: argparse.Namespace) -> dict[str, str]:
    """What is to be suspended: a `target`, or the mail of a `filter`. Raises OperatorError."""
    text = text_of(options)
    target = _target(text)
    return {"target": target} if target else {"filter": expression_of(options)}


def _target(text: str) -> str:
    """The target that `text` names: a path, or `source=NAME` and the like without a pattern; "" for an expression."""
    if _NAMED.fullmatch(text):
        return target_of(text.replace('"', ""))
    return target_of(text) if is_name(text) else ""


def _is_meant(one: OrderRow, meant: dict[str, str]) -> bool:
    if "target" in meant:
        return one.target == meant["target"]
    return one.filter != "" and same_mail(one.filter, meant["filter"])


def run_limit(options: argparse.Namespace) -> int:
    """Limit, or stop that, or list what is limited."""
    if options.target is None:
        return show(options, ("limit",))
    target = target_of(options.target)
    if options.words != ["off"]:
        fields = limits_of(options.words)
        if not fields.get("until_us"):
            fields["until_us"] = until_of(options)
        return give(options, "limit", "limited", target=target, **fields)
    with connect(options) as client:
        found = [one for one in client.orders().orders if one.kind == "limit" and one.target == target]
        lifted = _lift(options, client, [target], "limit")
        if not found and not lifted:
            raise no_such(client, ("limit",), options.target)
        return end(options, client, found, lifted)


def limits_of(words: list[str]) -> dict[str, Any]:
    """What `connections=2 rate=10/min for 1h` says. Raises OperatorError."""
    fields: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        name, _, value = word.partition("=")
        if name == "connections" and value.isdecimal():
            fields["connections"] = int(value)
        elif name == "rate":
            try:
                fields["rate"] = parse_rate(value).per_second
            except ValueError as error:
                raise OperatorError(exits.USAGE, f"{word}: {error}") from error
        elif word == "for":
            fields["until_us"] = end_of(next(rest, ""))
        else:
            raise OperatorError(exits.USAGE, f"{word}: expected connections=N, rate=10/min, for 1h, or off alone")
    if not fields.keys() - {"until_us"}:
        raise OperatorError(exits.USAGE, "to what? connections=N, rate=10/min, or both")
    return fields
