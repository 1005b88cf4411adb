"""Events: what became of every message and recipient, one line of JSON each.

A function per kind builds the line as bytes, without the newline; the store writes it in the same commit as the
change that it tells (I2). Each kind has a fixed set of fields: what is not known is `""`, `0` or `[]`, so that a
reader finds the same columns in every line. `KINDS` and `FIELDS` define them, `markdown` prints them for
docs/events.md, and a test holds the functions to the tables.

Remote text appears only as a JSON string: pure ASCII, control characters escaped, bounded in length (I7).

Hot path: 3 to 5 µs a line. What is the same for a whole connection is encoded once, in `Remote`.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import time
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as _quoted
from typing import Final, Literal, NamedTuple

from mta.queue.ids import format_id
from mta.queue.orders import Change, limit_words
from mta.queue.records import Delivery, Message, Recipient
from mta.smtp.reply import Reply

TEXT_LIMIT: Final = 2000
"""Longest `text`, `reason` or `last_reply` in characters; the rest is cut off."""

KINDS: Final = {
    "received": "A message was accepted: by now it is on stable storage.",
    "deferred": "An attempt failed for the time being; these recipients are tried again.",
    "delivered": "The next host took the message for these recipients. An end.",
    "bounced": "These recipients failed for good. An end.",
    "expired": "These recipients were given up: the message became older than `expires`, the time that its sender gave "
    "for delivery was over (DELIVERBY), or an operator did not wait for that. An end.",
    "deleted": "An operator removed these recipients. An end.",
    "quarantined": "The stored message is damaged. It left the queue; what is readable was set aside. An end.",
    "notified": "A notification (DSN) to the sender was put into the queue.",
    "suspended": "A path stands still: its site refused as such or could not be reached. Its messages keep their place "
    "and their attempt count. Or a rule suspends a path, or more (`provider:NAME`, ...).",
    "alarm": "Something that an operator has to see to, such as a source whose address is gone. The mail waits or goes "
    "another way.",
    "order": "An operator gave an order, or one ended.",
    "login": "A client logged in.",
    "refused": "A client was refused at a door: its session, its login or its mail, of which nothing was accepted.",
}
"""Every kind of event and what it says. The ends are those of I2: exactly one names each recipient."""


class Field(NamedTuple):
    """One field of events, for readers and for the test."""

    name: str
    kinds: str  # names of kinds, "all", or "attempts": the kinds that tell of a transaction or an attempt at one
    type: type
    doc: str


_ATTEMPTS: Final = ("deferred", "delivered", "bounced")
_ABOUT_NO_MESSAGE: Final = ("order", "suspended", "alarm", "login", "refused")
_ABOUT_A_MESSAGE: Final = tuple(kind for kind in KINDS if kind not in _ABOUT_NO_MESSAGE)

FIELDS: Final = (
    Field("id", "all", str, "Identity of this event, unique over all workers, machines and restarts."),
    Field("time", "all", str, "When it happened: RFC 3339, UTC, microseconds."),
    Field("event", "all", str, "The kind."),
    Field("message", "messages", str, "Id of the message, as in `queued as ID` and `mta message ID`."),
    Field("queue", "messages", str, "Name of the queue; empty when the event concerns several queues."),
    Field("sender", "messages", str, "Envelope sender; empty for the null sender."),
    Field("recipients", "messages", list, "Envelope recipients that the event is about, as they were given."),
    Field("size", "received attempts", int, "Size of the message in bytes, with the header lines we added."),
    Field("message_id", "received attempts", str, "Value of the Message-ID header, with its brackets."),
    Field("origin", "received", str, "Where it came from: `smtp ADDRESS:PORT HELO`, `pickup FILE uid USER`, or `dsn`."),
    Field("warnings", "received", list, "What `checks` would have otherwise: `size`, `date`, `message-id`, `repeated`, "
          "`from`, `from-domain`, `unsubscribe`."),
    Field("attempt", "attempts expired", int, "Number of this attempt, from 1; for `expired`, how many there were."),
    Field("age_s", "attempts expired", float, "Seconds since the message was accepted."),
    Field("duration_s", "attempts", float, "Seconds from the start of the transaction to the reply that ended it."),
    Field("path", "attempts suspended", str, "The path: source and site. Empty when no route was found. What a "
          "rule suspends may be more: `source:NAME`, `provider:NAME`, `source:NAME>provider:NAME`, "
          "`tenant:NAME`, `domain:NAME`."),
    Field("remote_host", "attempts", str, "Name of the remote host; empty when none was reached."),
    Field("remote_address", "attempts", str, "Its address and port, `192.0.2.1:25` or `[2001:db8::1]:25`."),
    Field("source_address", "attempts", str, "Our address on that connection."),
    Field("tls", "attempts", str, "Protocol version, such as `TLSv1.3`; empty when the connection was in clear."),
    Field("tls_cipher", "attempts", str, "Cipher suite; empty when in clear."),
    Field("code", "attempts", int, "Reply code: the remote host's, or the one that fits when we decided ourselves."),
    Field("enhanced", "attempts", str, "Enhanced status code (RFC 3463); empty when the remote host gave none."),
    Field("text", "attempts quarantined suspended alarm refused", str, "Text of the reply, or our own description."),
    Field("failure", "deferred bounced", str, "What failed: `host`, `message`, `recipient`, or `unknown` when the "
          "connection was lost after the final dot, so that the host may have the message."),
    Field("class", "deferred bounced", str, "What the reply means: `unknown-user`, `mailbox-full`, `blocklist`, ... "
          "The classes are in [rules.md](rules.md)."),
    Field("rule", "deferred bounced order", str, "Name of the rule that says so; empty when the codes of the reply do. "
          "Of an order: of the rule whose decision an operator ended, else empty."),
    Field("maybe_duplicate", "attempts", bool, "A crash or a lost reply left it open whether an earlier attempt had "
          "already delivered: the recipient may see the message twice."),
    Field("next_attempt", "deferred suspended", str, "Not before this time it is tried again: RFC 3339, UTC."),
    Field("avoid", "deferred", list, "By what the next attempt does not go, as the rule asks for another way: "
          "`source:NAME`, `host:NAME`. Empty when any way will do."),
    Field("last_reply", "expired", str, "How the last attempt failed."),
    Field("last_remote", "expired", str, "Where the last attempt went; empty when no host was reached."),
    Field("order", "expired deleted order", str, "Number of an operator's order; for `expired` empty when it was the "
          "age; empty when what a rule on replies decided was ended."),
    Field("reason", "deleted order", str, "What the operator gave as the reason; of what a rule decided the reply."),
    Field("operator", "deleted order", str, "Who did it: the user at the control socket."),
    Field("command", "order", str, "`pause`, `freeze`, `reroute`, `suspend`, `limit`, `retry`, `expire`, `delete`; "
          "`release` follows a pause that held single deliveries."),
    Field("state", "order", str, "`given`; `ended` by an operator or by time; `done`: all mail was gone through."),
    Field("filter", "order", str, "Which mail it is about."),
    Field("target", "order", str, "What is suspended or limited, or the pool that mail is rerouted to."),
    Field("limit", "order", str, "Of a limit to what, as it is typed: `connections=2 rate=30/min`; else empty."),
    Field("until", "order", str, "When it ends by itself; empty when it does not."),
    Field("unreadable", "order", int, "Of one that is `done`: how many records of the queue could not be read, and "
          "were passed over."),
    Field("subject", "alarm", str, "What it is about: `source NAME`, or the name of a path."),
    Field("what", "refused", str, "What was refused: `session`, `login`, `mail` (a sender, a recipient or a message); "
          "empty for what is too much to be told one by one."),
    Field("user", "login refused", str, "Who logged in, or said so; empty when nobody did."),
    Field("client", "login refused", str, "Address of the client; empty for a Unix socket, and for what is too much "
          "to be told one by one."),
    Field("listener", "login refused", str, "The listener, as it is called in the configuration."),
    Field("via", "login", str, "How: `password`, `scram` or `certificate`."),
    Field("count", "login refused", int, "How many there were: 1 when it is told for the first time, then how many "
          "followed in a minute."),
    Field("notification", "notified", str, "Id of the message that carries the notification."),
    Field("action", "notified", str, "What it tells: `failed`, `delayed` or `relayed`."),
)

_process = os.urandom(8).hex()
_counter = itertools.count(1)


def _renew_process() -> None:
    global _process
    _process = os.urandom(8).hex()


# A forked child would repeat our ids.
os.register_at_fork(after_in_child=_renew_process)


class Remote:
    """The far end of a connection as events show it. Make one per connection; it is encoded once."""

    __slots__ = ("json",)

    def __init__(
        self, path: str, host: str = "", address: str = "", source: str = "", tls: str = "", tls_cipher: str = ""
    ) -> None:
        self.json = (
            f'"path":{_quoted(path)},"remote_host":{_quoted(host)},"remote_address":{_quoted(address)},'
            f'"source_address":{_quoted(source)},"tls":{_quoted(tls)},"tls_cipher":{_quoted(tls_cipher)}'
        )


def received(message: Message, deliveries: Sequence[Delivery], warnings: Sequence[str] = ()) -> bytes:
    """The message was accepted with these deliveries, at its arrival time. `warnings` are plain words."""
    if len(deliveries) == 1:
        queue, addresses = deliveries[0].queue, _addresses(deliveries[0].recipients)
    else:
        queue, addresses = "", _addresses([r for delivery in deliveries for r in delivery.recipients])
    return (
        f'{_head("received", message.arrival_us, message, queue, addresses)},"size":{message.size},'
        f'"message_id":{_quoted(message.message_id)},"origin":{_quoted(message.origin)},'
        f'"warnings":[{",".join(map(_quoted, warnings)) if warnings else ""}]}}'
    ).encode()


def delivered(
    delivery: Delivery,
    recipients: Sequence[Recipient],
    reply: Reply,
    remote: Remote,
    *,
    attempt: int,
    time_us: int,
    duration_s: float,
) -> bytes:
    """The next host answered the final dot with `reply`: these recipients are done."""
    head = _attempt("delivered", delivery, recipients, reply, remote, attempt, time_us, duration_s)
    return f"{head}}}".encode()


def deferred(
    delivery: Delivery,
    recipients: Sequence[Recipient],
    reply: Reply,
    remote: Remote,
    *,
    failure: str,
    kind: str,
    rule: str,
    attempt: int,
    time_us: int,
    duration_s: float,
    next_us: int,
    avoid: Sequence[str] = (),
) -> bytes:
    """An attempt failed with `reply`, which is our own words when no host answered. `kind` is its class."""
    head = _attempt("deferred", delivery, recipients, reply, remote, attempt, time_us, duration_s)
    what = f'"failure":"{failure}","class":"{kind}","rule":"{rule}"'
    avoided = ",".join(map(_quoted, avoid))
    return f'{head},{what},"next_attempt":"{timestamp(next_us)}","avoid":[{avoided}]}}'.encode()


def bounced(
    delivery: Delivery,
    recipients: Sequence[Recipient],
    reply: Reply,
    remote: Remote,
    *,
    failure: str,
    kind: str,
    rule: str,
    attempt: int,
    time_us: int,
    duration_s: float,
) -> bytes:
    """These recipients failed for good with `reply`. `kind` is its class."""
    head = _attempt("bounced", delivery, recipients, reply, remote, attempt, time_us, duration_s)
    return f'{head},"failure":"{failure}","class":"{kind}","rule":"{rule}"}}'.encode()


def expired(delivery: Delivery, recipients: Sequence[Recipient], *, order: str = "", time_us: int) -> bytes:
    """The message is too old, or given up by an order; the last attempt of its history is told along."""
    last = delivery.history[-1] if delivery.history else None
    return (
        f'{_head("expired", time_us, delivery.message, delivery.queue, _addresses(recipients))},'
        f'"attempt":{delivery.attempts},"age_s":{_age(delivery, time_us)},'
        f'"last_reply":{_quoted(last.reply[:TEXT_LIMIT] if last else "")},'
        f'"last_remote":{_quoted(last.remote if last else "")},"order":{_quoted(order)}}}'
    ).encode()


def deleted(
    delivery: Delivery, recipients: Sequence[Recipient], *, reason: str, operator: str, order: str, time_us: int
) -> bytes:
    """An operator removed these recipients from the queue."""
    return (
        f'{_head("deleted", time_us, delivery.message, delivery.queue, _addresses(recipients))},'
        f'"order":{_quoted(order)},"reason":{_quoted(reason[:TEXT_LIMIT])},"operator":{_quoted(operator)}}}'
    ).encode()


def quarantined(message: Message, deliveries: Sequence[Delivery], *, text: str, time_us: int) -> bytes:
    """The stored message does not match its checksum. `text` says what is damaged and where the remains are."""
    queue = deliveries[0].queue if len(deliveries) == 1 else ""
    addresses = _addresses([r for delivery in deliveries for r in delivery.recipients])
    return (
        f'{_head("quarantined", time_us, message, queue, addresses)},"text":{_quoted(text[:TEXT_LIMIT])}}}'
    ).encode()


def notified(
    message: Message,
    queue: str,
    recipients: Sequence[Recipient],
    *,
    action: Literal["failed", "delayed", "relayed"],
    notification: int,
    time_us: int,
) -> bytes:
    """The message `notification` tells the sender of `message` about these recipients."""
    return (
        f'{_head("notified", time_us, message, queue, _addresses(recipients))},'
        f'"notification":"{format_id(notification)}","action":"{action}"}}'
    ).encode()


def suspended(path: str, *, text: str, until_us: int, time_us: int) -> bytes:
    """The path stands still until then; `text` is what its site said, or how it could not be reached."""
    return (
        f'{_start("suspended", time_us)},"path":{_quoted(path)},"text":{_quoted(text[:TEXT_LIMIT])},'
        f'"next_attempt":"{timestamp(until_us)}"}}'
    ).encode()


def alarm(subject: str, *, text: str, time_us: int) -> bytes:
    """An operator has to see to `subject`; `text` says why and what happens meanwhile."""
    return f'{_start("alarm", time_us)},"subject":{_quoted(subject)},"text":{_quoted(text[:TEXT_LIMIT])}}}'.encode()


def order(change: Change) -> bytes:
    """An operator's order was given, or is over."""
    one = change.order
    return (
        f'{_start("order", change.at_us)},"order":{_quoted(one.id)},"command":"{one.kind}","state":"{change.state}",'
        f'"filter":{_quoted(one.filter[:TEXT_LIMIT])},"target":{_quoted(one.target or one.pool)},'
        f'"limit":{_quoted(limit_words(one.connections, one.rate))},"rule":{_quoted(one.by_rule)},'
        f'"until":"{timestamp(one.until_us) if one.until_us else ""}","reason":{_quoted(one.reason[:TEXT_LIMIT])},'
        f'"operator":{_quoted(change.by)},"unreadable":{change.unreadable}}}'
    ).encode()


def login(*, user: str, client: str, listener: str, via: str, count: int, time_us: int) -> bytes:
    """A client logged in, so many times."""
    return (
        f'{_start("login", time_us)},"user":{_quoted(user[:TEXT_LIMIT])},"client":{_quoted(client)},'
        f'"listener":{_quoted(listener)},"via":{_quoted(via)},"count":{count}}}'
    ).encode()


def refused(*, what: str, user: str, client: str, listener: str, text: str, count: int, time_us: int) -> bytes:
    """A client was refused, so many times; `text` says why."""
    return (
        f'{_start("refused", time_us)},"what":{_quoted(what)},"user":{_quoted(user[:TEXT_LIMIT])},'
        f'"client":{_quoted(client)},"listener":{_quoted(listener)},"text":{_quoted(text[:TEXT_LIMIT])},'
        f'"count":{count}}}'
    ).encode()


def timestamp(time_us: int) -> str:
    """RFC 3339 in UTC with microseconds: `2006-01-02T15:04:05.000000Z`."""
    second, fraction = divmod(time_us, 1_000_000)
    return f"{_second(second)}.{fraction:06d}Z"


@functools.lru_cache(maxsize=64)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _start(kind: str, time_us: int) -> str:
    return f'{{"id":"{_process}-{next(_counter):x}","time":"{timestamp(time_us)}","event":"{kind}"'


def _head(kind: str, time_us: int, message: Message, queue: str, addresses: str) -> str:
    return (
        f'{_start(kind, time_us)},"message":"{message.text_id}","queue":{_quoted(queue)},'
        f'"sender":{_quoted(message.sender)},"recipients":{addresses}'
    )


def _attempt(
    kind: str,
    delivery: Delivery,
    recipients: Sequence[Recipient],
    reply: Reply,
    remote: Remote,
    attempt: int,
    time_us: int,
    duration_s: float,
) -> str:
    message = delivery.message
    return (
        f'{_head(kind, time_us, message, delivery.queue, _addresses(recipients))},"size":{message.size},'
        f'"message_id":{_quoted(message.message_id)},"attempt":{attempt},"age_s":{_age(delivery, time_us)},'
        f'"duration_s":{duration_s:.3f},{remote.json},"code":{reply.code},"enhanced":{_quoted(reply.enhanced)},'
        f'"text":{_quoted(reply.text[:TEXT_LIMIT])},"maybe_duplicate":{"true" if delivery.maybe_duplicate else "false"}'
    )


def _addresses(recipients: Sequence[Recipient]) -> str:
    if len(recipients) == 1:
        return f"[{_quoted(recipients[0].address)}]"
    return f"[{','.join([_quoted(recipient.address) for recipient in recipients])}]"


def _age(delivery: Delivery, time_us: int) -> str:
    age_us = time_us - delivery.message.arrival_us
    return f"{age_us / 1e6:.3f}" if age_us > 0 else "0.000"


def kinds_of(field: Field) -> tuple[str, ...]:
    """The kinds that carry `field`, in the order of KINDS."""
    names: set[str] = set()
    for word in field.kinds.split():
        names.update({"all": tuple(KINDS), "messages": _ABOUT_A_MESSAGE, "attempts": _ATTEMPTS}.get(word, (word,)))
    return tuple(kind for kind in KINDS if kind in names)


def markdown() -> str:
    """The tables of kinds and fields for docs/events.md."""
    json_types = {str: "string", int: "integer", float: "number", bool: "boolean", list: "list of strings"}
    lines = ["| event | what it says |", "|---|---|"]
    lines += [f"| `{kind}` | {doc} |" for kind, doc in KINDS.items()]
    lines += ["", "| field | type | in | meaning |", "|---|---|---|---|"]
    for field in FIELDS:
        kinds = kinds_of(field)
        where = "all" if kinds == tuple(KINDS) else ", ".join(kinds)
        where = f"all but {', '.join(_ABOUT_NO_MESSAGE)}" if kinds == _ABOUT_A_MESSAGE else where
        lines.append(f"| `{field.name}` | {json_types[field.type]} | {where} | {field.doc} |")
    return "\n".join(lines) + "\n"


def parse(line: bytes) -> dict[str, object]:
    """An event line as a mapping, for readers. Raises ValueError when it is not one."""
    event = json.loads(line)
    if not isinstance(event, dict) or event.get("event") not in KINDS:
        raise ValueError("not an event line")
    return event
