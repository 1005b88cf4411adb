"""`mta sandbox`: a small Internet on loopback, and questions to one that runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from mta.cli.options import add_json, add_parser
from mta.cli.text import Column, count, print_table, printable, size
from mta.control import exits
from mta.sandbox.client import Control, SandboxError, SandboxGoneError, default_control, environment
from mta.sandbox.reference import markdown

_DESCRIPTION = """\
Start a small Internet on loopback: a DNS server that answers for any domain, and MX hosts whose behaviour per domain
comes from a YAML file. An MTA that is pointed at it delivers as it would in the world, and nothing leaves the machine.
When it is ready it prints one JSON line with its addresses on stdout, and on stderr what to put into the MTA's
configuration. It runs until SIGTERM, Ctrl-C or `mta sandbox stop`.

With an action it asks a sandbox that is running, or changes it."""

_EXAMPLES = """\
  mta sandbox                                        every domain accepts everything
  mta sandbox -c conf/sandbox.yaml                   providers, greylisting, dead hosts, ...
  mta sandbox -c conf/sandbox.yaml --dns 127.0.0.1:5300 --port 2600
  mta sandbox stats                                  what has arrived
  mta sandbox domains                                the same by domain
  mta sandbox set example.org '{"latency": "2s"}'    from now on
  mta sandbox set example.org greylisting            as the personality of that name
  mta sandbox log --json | tail -1 | jq              the last transaction, envelope and replies
  mta sandbox received --json                        every message and recipient, and how often
  mta sandbox reset                                  counts from zero
  mta sandbox options                                all options of the file"""

_ACTIONS: Final = (
    "run", "stats", "domains", "sites", "log", "received", "questions", "set", "reset", "stop", "options",
)  # fmt: skip

_DOMAIN_COLUMNS = (
    Column("DOMAIN", shrinks=True),
    Column("MESSAGES", right=True),
    Column("RECIPIENTS", right=True),
    Column("TWICE", right=True),
    Column("DEFERRED", right=True),
    Column("REJECTED", right=True),
    Column("DROPPED", right=True),
    Column("OPEN", right=True),
    Column("MOST", right=True),
)
_SITE_COLUMNS = (
    Column("SITE", shrinks=True),
    Column("CONNECTIONS", right=True),
    Column("OPEN", right=True),
    Column("MOST", right=True),
    Column("REFUSED", right=True),
    Column("REPLIES", shrinks=True),
)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "sandbox", "run a small Internet on loopback, to send into", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("action", nargs="?", choices=_ACTIONS, default="run", metavar="ACTION",
                        help=f"one of {', '.join(_ACTIONS)} (default: run)")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="of set: DOMAIN PERSONALITY")
    parser.add_argument("-c", "--config", metavar="FILE", help="how domains behave; see conf/sandbox.yaml")
    parser.add_argument("--dns", metavar="ADDRESS:PORT", help="where the DNS server listens (default: 127.0.0.1:5353)")
    parser.add_argument("--port", type=int, metavar="PORT", help="port of all MX hosts (default: 2626)")
    parser.add_argument("--stats", metavar="SOCKET", help="path or ADDRESS:PORT of the control socket "
                        f"(default: {default_control()})")
    parser.add_argument("--capture", metavar="DIRECTORY", help="write every accepted message into this Maildir")
    add_json(parser, "JSON: one object, or one object or list per line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run a sandbox in place of this process, or do the action. Raises OperatorError."""
    if options.action == "set" and len(options.arguments) != 2:
        raise exits.OperatorError(
            exits.USAGE, "set takes DOMAIN and PERSONALITY, as in set example.org '{\"latency\": \"2s\"}'")
    if options.action != "set" and options.arguments:
        raise exits.OperatorError(exits.USAGE, f"{options.action} takes no arguments")
    if options.action == "run":
        _exec(options)
    if options.action == "options":
        print(markdown(), end="")
        return exits.OK
    try:
        _act(Control(options.stats or default_control()), options)
    except SandboxGoneError as error:
        raise exits.OperatorError(exits.UNAVAILABLE, f"{error}; `mta sandbox` starts one") from error
    except SandboxError as error:
        raise exits.OperatorError(exits.CONFIG, str(error)) from error
    return exits.OK


def _exec(options: argparse.Namespace) -> None:
    """Become the sandbox: gevent has to be patched in before anything else is imported."""
    command = [sys.executable, "-m", "mta.sandbox"]
    for name in ("config", "dns", "port", "stats", "capture"):
        value = getattr(options, name)
        if value is not None:
            command += [f"--{name}", str(value)]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment())


def _act(control: Control, options: argparse.Namespace) -> None:
    action = options.action
    if action == "set":
        name, text = options.arguments
        try:
            personality = json.loads(text) if text.lstrip().startswith("{") else text
        except ValueError as error:
            raise exits.OperatorError(exits.USAGE, f"the personality is no JSON: {error}") from error
        control.ask("set", {"name": name, "personality": personality})
    elif action in ("reset", "stop"):
        control.ask(action)
    elif action == "stats":
        stats = control.ask("stats")
        if options.json:
            print(json.dumps(stats))
        else:
            _print_stats(stats)
    elif options.json or action in ("log", "received", "questions"):
        for item in control.listing(action):
            print(json.dumps(item) if options.json else _line(action, item))
    elif action == "domains":
        rows = sorted(control.listing(action), key=lambda item: -item[1]["messages"])
        print_table(_DOMAIN_COLUMNS, ([name, *(f"{counts[field]:,}" for field in (
            "messages", "recipients", "duplicates", "deferred", "rejected", "dropped", "open", "max_open"
        ))] for name, counts in rows))
    else:
        rows = sorted(control.listing(action), key=lambda item: -item[1]["connections"])
        print_table(_SITE_COLUMNS, ([
            name, *(f"{counts[field]:,}" for field in ("connections", "open", "max_open", "refused")),
            _replies(counts["replies"]),
        ] for name, counts in rows))


def _line(action: str, item: Any) -> str:
    if action == "log":
        answers = ", ".join(f"{address} {reply.split(' ')[0]}" for address, _, reply in item["answers"])
        reply = item["replies"][2] or item["replies"][0]
        return printable(f"{item['client']} {item['host']} <{item['sender']}> {answers}: {item['end']}, {reply}")
    return printable(" ".join(map(str, item)), 1000)


def _print_stats(stats: Mapping[str, Any]) -> None:
    print(f"accepted     {count(stats['messages'], 'message')} to {count(stats['recipients'], 'recipient')}, "
          f"{size(stats['octets'])}; {stats['duplicates']:,} of them twice, {stats['damaged']:,} damaged")
    print(f"not accepted {stats['deferred']:,} recipients deferred, {stats['rejected']:,} rejected, "
          f"{stats['dropped']:,} dropped; {stats['unanswered']:,} accepted without a reply")
    print(f"connections  {stats['connections']:,}, {stats['open']:,} open, {stats['max_open']:,} at most, "
          f"{stats['tls_connections']:,} with TLS")
    print(f"replies      {_replies(stats['replies'])}")
    print(f"DNS          {stats['dns_udp']:,} questions by UDP, {stats['dns_tcp']:,} by TCP")
    for kind, violation in stats["violations"].items():
        print(f"violation    {kind}: {violation['count']:,}, such as {printable(violation['example'], 200)}")


def _replies(replies: Mapping[str, int]) -> str:
    return ", ".join(f"{code}: {number:,}" for code, number in replies.items())
