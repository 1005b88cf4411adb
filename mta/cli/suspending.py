"""`mta suspend`, `unsuspend`, `limit`: paths and the like that are not used, or used less."""

from __future__ import annotations

import argparse
from typing import Any

from mta.cli.options import add_instance, add_json, add_parser, connect
from mta.cli.ordering import add_giving, end, end_of, give, no_such, target_of, until_of
from mta.cli.orders import show
from mta.config.units import parse_rate
from mta.control import exits
from mta.control.exits import OperatorError

_TARGET = """\
TARGET is the name of a path as in `mta queue`, or source=NAME, provider=NAME, domain=NAME or tenant=NAME."""

_SUSPEND = f"""\
Open no connection and send nothing over a path, from a source, to a provider or a domain, or for a tenant. Mail of a
path goes by the other sources of its pool, else it waits at no cost. {_TARGET}"""

_SUSPEND_EXAMPLES = """\
  mta suspend source=out1 --for 1h --reason 'listed at Example'
  mta suspend provider=microsoft
  mta suspend 'out1>mx.example.org'"""

_UNSUSPEND = f"""\
End suspensions that an operator ordered, by target or by number of the order. {_TARGET}"""

_UNSUSPEND_EXAMPLES = """\
  mta unsuspend source=out1
  mta unsuspend --all"""

_LIMIT = f"""\
Lower limits for a while: connections=N, rate=N/TIME (messages), or both, and `for TIME`; `off` ends it. A configured
limit that is lower stays in force. Without TARGET the limits in force are listed.

{_TARGET} Connections are counted for each path; of a domain for all its paths together, and it gets connections of its
own meanwhile; of a tenant it is messages in flight. All limits hold over all workers."""

_LIMIT_EXAMPLES = """\
  mta limit provider=google connections=2 rate=10/min for 1h
  mta limit mx.example.org connections=1
  mta limit domain=example.org connections=1 --reason 'ticket 17'
  mta limit tenant=acme rate=1000/h
  mta limit provider=google off
  mta limit                               what is limited now"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    suspend = add_parser(commands, "suspend", "do not use a path, source, provider, ...", _SUSPEND, _SUSPEND_EXAMPLES)
    suspend.add_argument("target", metavar="TARGET", help="what, see above")
    add_giving(suspend, lasting=True)
    suspend.set_defaults(run=run_suspend)
    unsuspend = add_parser(commands, "unsuspend", "end suspensions", _UNSUSPEND, _UNSUSPEND_EXAMPLES)
    unsuspend.add_argument("targets", metavar="TARGET", nargs="*", help="what, see above")
    unsuspend.add_argument("--all", action="store_true", help="end all that operators ordered")
    add_json(unsuspend, "one JSON object: orders, missing")
    add_instance(unsuspend)
    unsuspend.set_defaults(run=run_unsuspend)
    limit = add_parser(commands, "limit", "lower limits for a while", _LIMIT, _LIMIT_EXAMPLES)
    limit.add_argument("target", metavar="TARGET", nargs="?", help="what, see above")
    limit.add_argument("words", metavar="connections=N|rate=N/TIME|for TIME|off", nargs="*", help="to what")
    add_giving(limit, lasting=True)
    limit.set_defaults(run=run_limit)


def run_suspend(options: argparse.Namespace) -> int:
    """Suspend."""
    return give(options, "suspend", "suspended", target=target_of(options.target), until_us=until_of(options))


def run_unsuspend(options: argparse.Namespace) -> int:
    """End suspensions."""
    if not options.targets and not options.all:
        raise OperatorError(exits.USAGE, "which? TARGET, number of the order, or --all")
    numbers = {int(word) for word in options.targets if word.isdecimal()}
    targets = {target_of(word) for word in options.targets if not word.isdecimal()}
    with connect(options) as client:
        found = [one for one in client.orders().orders
                 if one.kind == "suspend" and (options.all or one.number in numbers or one.target in targets)]
        if not found:
            raise no_such(client, ("suspend",), " ".join(options.targets) or "--all")
        return end(options, client, found)


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
        if not found:
            raise no_such(client, ("limit",), options.target)
        return end(options, client, found)


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
