"""`mta message`: everything about one message."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

from mta.cli.deliveries import print_of_message
from mta.cli.events import events_of, print_event
from mta.cli.options import add_instance, add_json, add_parser, connect, load_config
from mta.cli.text import age, count, printable, size, stamp
from mta.control import exits
from mta.control.client import ControlClient
from mta.control.protocol import MessageDetail
from mta.queue.ids import parse_id

_DESCRIPTION = """\
Show a message of the queue: envelope, what is left of its deliveries with their failed attempts, and its header
section. Of a message that has left the queue, the events tell what became of it; they are shown instead, and the exit
code is 66."""

_EXAMPLES = """\
  mta message 01hq3z8k2v4x0                      the id is in the reply `250 2.0.0 ... queued as ID`
  mta message 01hq3z8k2v4x0 --body > mail.eml    the whole content as it is stored
  mta message 01hq3z8k2v4x0 --json | jq '.deliveries[].history'
  mta events --message 01hq3z8k2v4x0             what became of its recipients"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        commands, "message", "show a message: envelope, attempts, history, headers", _DESCRIPTION, _EXAMPLES
    )
    add_instance(parser)
    parser.add_argument("id", metavar="ID", help="id of the message")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--body", action="store_true",
        help="print the whole content: byte by byte into a file or pipe, made harmless on a terminal",
    )  # fmt: skip
    add_json(form, "one JSON object; header bytes that are no UTF-8 are replaced")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the message."""
    try:
        parse_id(options.id)
    except ValueError as error:
        raise exits.OperatorError(exits.USAGE, str(error)) from error
    message_id = options.id.lower()
    with connect(options) as client:
        if options.body:
            return _print_body(client, message_id)
        detail = client.message(message_id)
    if detail is None:
        return _print_events(options, message_id)
    if options.json:
        headers = detail.headers.decode("utf-8", "replace")
        print(json.dumps({**dataclasses.asdict(detail), "headers": headers}))
    else:
        _print(detail, time.time_ns() // 1000)
    return exits.OK


def _print(detail: MessageDetail, now_us: int) -> None:
    print(f"message    {printable(detail.id)}")
    print(f"from       {printable(detail.sender) or '<>'}")
    print(f"arrived    {stamp(detail.arrival_us)}, {age(detail.arrival_us, now_us)} ago")
    print(f"origin     {printable(detail.origin)}")
    print(f"size       {size(detail.size)}")
    if detail.message_id:
        print(f"header id  {printable(detail.message_id)}")
    asked = [*detail.flags, *([f"RET={detail.ret}"] if detail.ret else [])]
    asked += [f"ENVID={detail.envid}"] if detail.envid else []
    if asked:
        print(f"asked for  {' '.join(map(printable, asked))}")
    done = detail.deliveries_accepted - len(detail.deliveries)
    if done > 0:
        print(f"done       {count(done, 'delivery', 'deliveries')} of {detail.deliveries_accepted:,}, "
              f"see `mta events --message {printable(detail.id)}`")
    if detail.damaged:
        print(f"damaged    {printable(detail.damaged)}")
    for delivery in detail.deliveries:
        print()
        print_of_message(delivery, now_us)
    if detail.headers:
        print()
        _print_text(detail.headers)


def _print_text(content: bytes) -> None:
    """Print lines from outside so that they cannot do anything to a terminal."""
    for line in content.decode("utf-8", "replace").split("\n"):
        print(printable(line.rstrip("\r").replace("\t", "    "), limit=100_000))


def _print_body(client: ControlClient, message_id: str) -> int:
    pieces = client.body(message_id)
    if pieces is None:
        print(f"mta: message {message_id} is not in the queue", file=sys.stderr)
        return exits.NO_INPUT
    if sys.stdout.isatty():
        _print_text(b"".join(pieces))
        return exits.OK
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return exits.OK


def _print_events(options: argparse.Namespace, message_id: str) -> int:
    print(f"mta: message {message_id} is not in the queue", file=sys.stderr)
    try:
        config = load_config(options.config)
        for line, event in events_of(config.spool, message_id):
            if options.json:
                print(line.decode().rstrip("\n"))
            else:
                print_event(event)
    except exits.OperatorError as error:
        print(f"mta: its events cannot be shown: {printable(str(error))}", file=sys.stderr)
    return exits.NO_INPUT
