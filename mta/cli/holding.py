"""`mta pause`, `resume`, `freeze`, `reroute`: mail stays where it is, or goes another way, until further notice."""

from __future__ import annotations

import argparse

from mta.cli.options import add_parser, connect
from mta.cli.ordering import (
    FILTER_HELP,
    add_ending,
    add_filter,
    add_giving,
    end,
    expression_of,
    give,
    no_such,
    until_of,
)
from mta.control import exits
from mta.control.exits import OperatorError
from mta.queue.ids import parse_id
from mta.queue.orders import same_mail

_PAUSE = f"""\
Keep mail in the queue without trying it. It is accepted as before, and grows old as before: what exceeds `expires` is
given up. In force in all workers when the command returns; mail that is being delivered just then runs to its end. A
pause outlives restarts, until `mta resume` or its time is over.

{FILTER_HELP}"""

_PAUSE_EXAMPLES = """\
  mta pause tenant=acme --reason 'abuse desk, ticket 17'
  mta pause --domain example.org --for 2h
  mta pause 'tenant=acme and not priority=transactional' --dry-run"""

_RESUME = """\
End pauses: those with this filter, or by number of the order or id of a frozen message; see `mta orders`."""

_RESUME_EXAMPLES = """\
  mta resume tenant=acme
  mta resume 12
  mta resume --all"""

_FREEZE = """\
Keep one message in the queue, as `mta pause message=ID` does. `mta resume ID` lets it go."""

_FREEZE_EXAMPLES = """\
  mta freeze 01hq3z8k2v4x0 --reason 'looks like phishing'
  mta resume 01hq3z8k2v4x0"""

_REROUTE = f"""\
Send mail by another pool, mail that waits and what comes. A filter that asks for what all of a queue has in common
(domain, provider, queue, tenant, campaign, pool, priority) is about whole queues. By another one (sender, source, age,
...) deliveries that match go into a queue beside their own, named by the number of the order, and stay rerouted. With
`off` instead of a pool the order ends, and what has not left goes by its own pool again.

{FILTER_HELP}"""

_REROUTE_EXAMPLES = """\
  mta reroute backup pool=marketing --for 4h
  mta reroute clean 'tenant=acme and provider=microsoft'
  mta reroute backup 'sender=@news.example and age>2h'
  mta reroute off pool=marketing"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    pause = add_parser(commands, "pause", "keep mail in the queue, untried", _PAUSE, _PAUSE_EXAMPLES)
    add_filter(pause)
    add_giving(pause, lasting=True)
    pause.set_defaults(run=run_pause)
    resume = add_parser(commands, "resume", "end pauses", _RESUME, _RESUME_EXAMPLES)
    resume.add_argument("--all", action="store_true", help="end all pauses, frozen messages too")
    add_filter(resume)
    add_ending(resume, "one JSON object: orders, missing")
    resume.set_defaults(run=run_resume)
    freeze = add_parser(commands, "freeze", "keep one message in the queue", _FREEZE, _FREEZE_EXAMPLES)
    freeze.add_argument("id", metavar="ID", help="id of the message")
    add_giving(freeze, lasting=True)
    freeze.set_defaults(run=run_freeze)
    reroute = add_parser(commands, "reroute", "send mail by another pool", _REROUTE, _REROUTE_EXAMPLES)
    reroute.add_argument("pool_to", metavar="POOL", help="the pool, or off")
    add_filter(reroute)
    add_giving(reroute, lasting=True)
    reroute.set_defaults(run=run_reroute)


def run_pause(options: argparse.Namespace) -> int:
    """Pause."""
    return give(options, "pause", "paused", filter=expression_of(options), until_us=until_of(options))


def run_freeze(options: argparse.Namespace) -> int:
    """Freeze."""
    return give(options, "freeze", "frozen", filter=f"message={_message(options.id)}", until_us=until_of(options))


def run_reroute(options: argparse.Namespace) -> int:
    """Reroute, or stop that."""
    expression = expression_of(options)
    if options.pool_to != "off":
        return give(options, "reroute", f"goes by pool {options.pool_to}", filter=expression, pool=options.pool_to,
                    until_us=until_of(options))
    with connect(options) as client:
        found = [one for one in client.orders().orders if one.kind == "reroute" and same_mail(one.filter, expression)]
        if not found:
            raise no_such(client, ("reroute",), expression)
        return end(options, client, found)


def run_resume(options: argparse.Namespace) -> int:
    """End pauses."""
    words, expression = options.filter, ""
    with connect(options) as client:
        pauses = [one for one in client.orders().orders if one.kind in ("pause", "freeze")]
        if options.all:
            found = pauses
        elif words and all(word.isdecimal() for word in words):
            found = [one for one in pauses if one.number in map(int, words)]
        else:
            if len(words) == 1 and len(words[0]) == 13 and words[0].isalnum():
                expression = f"message={_message(words[0])}"
            else:
                expression = expression_of(options)
            found = [one for one in pauses if same_mail(one.filter, expression)]
        if not found:
            raise no_such(client, ("pause", "freeze"), " ".join(words) or expression or "--all")
        return end(options, client, found)


def _message(text: str) -> str:
    try:
        parse_id(text)
    except ValueError as error:
        raise OperatorError(exits.USAGE, str(error)) from error
    return text.lower()
