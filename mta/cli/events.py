"""`mta events`: what became of every message and recipient."""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from mta.cli.eventreader import EventReader
from mta.cli.options import add_config, add_json, add_parser, load_config, positive
from mta.cli.text import printable
from mta.config.units import parse_duration
from mta.control import exits
from mta.queue.events import KINDS, parse
from mta.queue.idn import in_a_labels
from mta.queue.ids import SHARD_BITS, parse_id, shard_of

_DESCRIPTION = """\
Print the events of all shards in order of time: a message was received, an attempt was deferred, a recipient was
delivered, bounced or expired, ... (docs/events.md has them all, field by field). It reads the event files and works
whether the MTA runs or not."""

_EXAMPLES = """\
  mta events --since 10m
  mta events --follow --event deferred --event bounced
  mta events --follow --domain example.org
  mta events --message 01hq3z8k2v4x0
  mta events --since 1h --event bounced --json | jq -r '[.code, .text] | @tsv' | sort | uniq -c | sort -n
  mta events -n 20                      the last twenty"""

FOLLOW_SHOWS: Final = 10  # events before it begins to wait, as `tail -f` has it

Event = dict[str, Any]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "events", "print what became of messages and recipients", _DESCRIPTION, _EXAMPLES)
    add_config(parser)
    parser.add_argument("--spool", metavar="DIRECTORY", help="spool, instead of the one that the configuration names")
    parser.add_argument("-f", "--follow", action="store_true", help="print events as they happen, until Ctrl-C")
    parser.add_argument(
        "--event", action="append", choices=list(KINDS), metavar="KIND", default=[],
        help=f"only this kind, may be repeated: {', '.join(KINDS)}",
    )  # fmt: skip
    parser.add_argument("--domain", metavar="DOMAIN", help="only of recipients in this domain")
    parser.add_argument("--message", metavar="ID", help="only of this message")
    parser.add_argument(
        "--since", metavar="TIME", help="only later ones: `10m`, `4h`, `2d` ago, or since `2026-01-31T12:00` (UTC)"
    )
    parser.add_argument("-n", "--limit", metavar="N", type=positive, help="only the last N of them")
    add_json(parser, "the events as they are in the files, one JSON object per line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print events."""
    spool = options.spool or load_config(options.config).spool
    shard = None
    since = _since(options.since) if options.since else ""
    if options.message:
        number = _message(options.message)
        shard, since = shard_of(number), max(since, _accepted(number))
    reader = EventReader(spool, since, shard)
    wanted = _Filter(options.event, options.domain, options.message)
    show = _show_json if options.json else _show
    limit = options.limit
    if options.follow and limit is None and not options.since and not options.message:
        limit = FOLLOW_SHOWS
    found = wanted.of(reader.read())
    for line, event in found if limit is None else deque(found, limit):
        show(line, event)
    if options.follow:
        sys.stdout.flush()
        for line, event in wanted.of(reader.follow()):
            show(line, event)
            sys.stdout.flush()
    return exits.OK


def events_of(spool: str, message_id: str) -> Iterator[tuple[bytes, Event]]:
    """The events of one message."""
    number = _message(message_id)
    reader = EventReader(spool, _accepted(number), shard_of(number))
    return _Filter([], None, message_id).of(reader.read())


class _Filter:
    """Which events are wanted. The cheap tests on the bytes of the line come first: event files are large."""

    def __init__(self, kinds: list[str], domain: str | None, message: str | None) -> None:
        self._kinds = [f'"event":"{kind}"'.encode() for kind in kinds]
        self._message = f'"message":"{message.lower()}"'.encode() if message else b""
        self._domain = in_a_labels(domain) if domain else ""

    def of(self, lines: Iterator[bytes]) -> Iterator[tuple[bytes, Event]]:
        """The wanted ones among `lines`."""
        for line in lines:
            if self._kinds and not any(kind in line for kind in self._kinds):
                continue
            if self._message not in line:
                continue
            try:
                event = parse(line)
            except ValueError:
                print(f"mta: skipped a line that is no event: {printable(repr(line), 80)}", file=sys.stderr)
                continue
            if not self._domain or self._concerns(event):
                yield line, event

    def _concerns(self, event: Event) -> bool:
        domains = (recipient.rpartition("@")[2] for recipient in event.get("recipients", []))
        return any(in_a_labels(domain) == self._domain for domain in domains)


def print_event(event: Event) -> None:
    """Print one event on one line. A field that the event does not have is left out."""
    kind = str(event["event"])
    parts = [_time(_text(event, "time")), f"{kind:<9}", _text(event, "message")]
    if kind == "received":
        parts.append(f"from {_text(event, 'sender') or '<>'}")
    recipients = event.get("recipients")
    if recipients:
        more = f" (+{len(recipients) - 1})" if len(recipients) > 1 else ""
        parts.append(f"to {recipients[0]}{more}")
    parts += _DETAILS.get(kind, _other)(event)
    print(printable("  ".join(part for part in parts if part), limit=2000))


def _attempt(event: Event) -> list[str]:
    host, address = _text(event, "remote_host"), _text(event, "remote_address")
    remote = f"via {host} [{address}]" if address else f"via {host}" if host else ""
    reply = " ".join(filter(None, (_text(event, "code"), _text(event, "enhanced"), _text(event, "text"))))
    parts = [remote, reply, f"attempt {_text(event, 'attempt')}, {float(event.get('duration_s', 0)):.1f}s"]
    if event.get("maybe_duplicate"):
        parts.append("maybe a duplicate")
    if event.get("next_attempt"):
        avoid = event.get("avoid")
        elsewhere = f", not by {', '.join(map(str, avoid))}" if isinstance(avoid, list) and avoid else ""
        parts.append(f"next {_time(_text(event, 'next_attempt'))}{elsewhere}")
    return parts


def _client(event: Event) -> list[str]:
    client, user = _text(event, "client"), _text(event, "user")
    return [f"of {user}" if user else "", f"from [{client}]" if client else ""]


def _times(event: Event) -> str:
    return f"{event['count']} times" if event.get("count", 1) != 1 else ""


def _suspended(event: Event) -> list[str]:
    return [_text(event, "path"), _text(event, "text"), f"until {_time(_text(event, 'next_attempt'))}"]


def _order(event: Event) -> list[str]:
    what = " ".join(filter(None, (_text(event, name) for name in ("command", "filter", "target", "limit"))))
    rule, number = _text(event, "rule"), _text(event, "order")
    until = _text(event, "until")
    return [f"{number or f'of rule {rule}'} {_text(event, 'state')}: {what}", f"by {_text(event, 'operator')}",
            f"until {_time(until)}" if until else "", _text(event, "reason")]


def _other(event: Event) -> list[str]:
    return [_text(event, "text")]


_DETAILS: Final[dict[str, Callable[[Event], list[str]]]] = {
    "received": lambda event: [f"{_text(event, 'size')} bytes", _text(event, "origin")],
    "delivered": _attempt,
    "deferred": _attempt,
    "bounced": _attempt,
    "expired": lambda event: [f"after {_text(event, 'attempt')} attempts", _text(event, "last_reply")],
    "deleted": lambda event: [f"by {_text(event, 'operator')}", _text(event, "reason")],
    "notified": lambda event: [f"{_text(event, 'action')}: notification {_text(event, 'notification')}"],
    "suspended": _suspended,
    "alarm": lambda event: [_text(event, "subject"), _text(event, "text")],
    "order": _order,
    "login": lambda event: [*_client(event), f"by {_text(event, 'via')}", _times(event)],
    "refused": lambda event: [_text(event, "what"), *_client(event), _text(event, "text"), _times(event)],
}


def _text(event: Event, name: str) -> str:
    """A field as text; "" when there is none or it is 0."""
    return str(event.get(name) or "")


def _show(_line: bytes, event: Event) -> None:
    print_event(event)


def _show_json(line: bytes, _event: Event) -> None:
    sys.stdout.write(line.decode("utf-8", "replace"))


def _time(text: str) -> str:
    """To the millisecond."""
    return f"{text[:23]}Z" if len(text) == 27 else text


def _since(text: str) -> str:
    """A time as events have it, from `10m` or a date."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        moment = now - datetime.timedelta(seconds=parse_duration(text))
    except ValueError:
        if not re.match(r"\d{4}-\d\d-\d\d", text):
            raise exits.OperatorError(
                exits.USAGE, f"--since {text!r}: not a length of time (10m, 4h, 2d) nor a time (2026-01-31T12:00)"
            ) from None
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError as error:
            raise exits.OperatorError(exits.USAGE, f"--since {text!r}: {error}") from error
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
    return _event_time(moment)


def _event_time(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _message(text: str) -> int:
    try:
        return parse_id(text)
    except ValueError as error:
        raise exits.OperatorError(exits.USAGE, str(error)) from error


def _accepted(message_id: int) -> str:
    """No event of a message is older than this: its id tells when it was accepted, except for a clock set back."""
    accepted = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    try:
        accepted += datetime.timedelta(microseconds=message_id >> SHARD_BITS) - datetime.timedelta(days=1)
    except OverflowError:
        return ""
    return _event_time(accepted)
