"""Who is notified of what: from the fates of recipients to a notification in the queue.

The rules of RFC 3461 5.2: never to the null sender; about a failure unless NOTIFY excludes it, about a delay likewise,
about a hand-over to a host without the DSN extension only when NOTIFY asked for success. Recipients of one message
that meet the same fate together are told of in one notification. The result is a message like any other, which the
caller commits together with the change that caused it, so that neither is lost without the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mta.config.schema import Config
from mta.message import dsn
from mta.queue import events
from mta.queue.ids import format_id
from mta.queue.records import (
    BINARY,
    EIGHT_BIT,
    NOTIFICATION,
    NOTIFY_DELAY,
    NOTIFY_FAILURE,
    NOTIFY_NEVER,
    NOTIFY_SUCCESS,
    REQUIRE_TLS,
    SMTPUTF8,
    Attempt,
    Delivery,
    Message,
    Recipient,
    queue_name,
)
from mta.smtp import xtext
from mta.smtp.address import domain_to_ascii
from mta.smtp.reply import Reply

_NOTIFY = {"failed": NOTIFY_FAILURE, "delayed": NOTIFY_DELAY, "relayed": NOTIFY_SUCCESS}
_EXPIRED = "4.4.7"  # RFC 3463 3.5: only when no code tells the actual problem
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_KEPT_REPLY = re.compile(r"(?:(\d{3})(?: |\Z))?(?:([245]\.\d{1,3}\.\d{1,3})(?: |\Z))?(.*)", re.DOTALL)
_KEPT_REMOTE = re.compile(r"([^\s\[\]]*) ?\[([^]]*)\]")


class Fate(NamedTuple):
    """What a recipient met, for the notification."""

    recipient: Recipient
    reply: Reply | None  # the last reply, or our own words (`reply.local`); None when no attempt was made
    remote: str = ""  # who replied, or whom our own words are about, as in `records.Attempt`; empty when nobody
    last_attempt_us: int = 0


@dataclass(slots=True)
class Notification:
    """A notification to be committed: the message, its only delivery, and the events `received` and `notified`."""

    message: Message
    delivery: Delivery
    events: list[bytes]


def wanted(message: Message, recipient: Recipient, action: dsn.Action, timed: bool = False) -> bool:
    """Whether the sender of `message` is to be told that `action` happened to `recipient`. `timed`: a hand-over is told
    of because the message is to be delivered by a time, unless that is not wanted at all (RFC 2852 4.1.4)."""
    if not message.sender:
        return False
    if timed and action == "relayed":
        return not recipient.notify & NOTIFY_NEVER
    if not recipient.notify:
        return action != "relayed"
    return bool(recipient.notify & _NOTIFY[action])


def fate(recipient: Recipient, attempt: Attempt | None) -> Fate:
    """The fate of a recipient that is given up or delayed: how the last attempt of its delivery failed."""
    if attempt is None:
        return Fate(recipient, None)
    kept = _KEPT_REPLY.fullmatch(attempt.reply)
    assert kept is not None  # it takes any text
    reply = Reply(int(kept[1] or 451), kept[2] or "", (kept[3],), local=kept[1] is None)
    return Fate(recipient, reply, attempt.remote, attempt.time_us)


def notify(
    action: dsn.Action,
    message: Message,
    content: bytes,
    fates: Sequence[Fate],
    *,
    queue: str,
    config: Config,
    next_id: Callable[[], int],
    time_us: int,
    retry_until_us: int = 0,
    timed: bool = False,
) -> Notification | None:
    """The notification about those of `fates` that are wanted, or None when there is none to send.

    `content` is the original's; without it (it may be damaged) nothing is returned to the sender. `queue` is the one
    of the deliveries concerned, for the event. `timed`: see `wanted`.
    """
    options = config.bounces
    told = [fate for fate in fates if wanted(message, fate.recipient, action, timed)] if options.send else []
    if not told:
        return None
    number = next_id()
    built = dsn.build(
        dsn.Notice(
            action,
            [_report(fate, action) for fate in told],
            format_id(number),
            time_us,
            config.hostname,
            options.from_name,
            format_id(message.id),
            message.sender,
            message.arrival_us,
            content,
            message.header_size,
            message.message_id,
            _envelope_id(message.envid),
            bool(message.flags & SMTPUTF8),
            _returns_full(action, message, content, config),
            "" if message.wishes is None else message.wishes.hold,
            retry_until_us,
            0 if message.wishes is None else message.wishes.by_us,
        )
    )
    flags = NOTIFICATION | (SMTPUTF8 if built.smtputf8 else 0) | (0 if built.content.isascii() else EIGHT_BIT)
    flags |= message.flags & REQUIRE_TLS  # it tells of what was to be protected (RFC 8689 5)
    notification = Message(
        number,
        "",
        time_us,
        built.content,
        built.header_size,
        built.message_id,
        flags,
        origin="dsn",
        size=len(built.content),
        deliveries=1,
    )
    domain = message.sender.rpartition("@")[2]
    domain = domain.lower() if domain.isascii() else domain_to_ascii(domain)
    recipient = Recipient(message.sender, NOTIFY_NEVER)  # the only value that RFC 3461 6.1 allows
    delivery = Delivery(notification, 0, queue_name(domain), domain, [recipient], time_us)
    recipients = [fate.recipient for fate in told]
    return Notification(
        notification,
        delivery,
        [
            events.received(notification, [delivery]),
            events.notified(message, queue, recipients, action=action, notification=number, time_us=time_us),
        ],
    )


def _returns_full(action: dsn.Action, message: Message, content: bytes, config: Config) -> bool:
    # Only a failure returns the content (RFC 3461 6.2), and no large one, whatever was asked. Content that is no text
    # would make the notification binary, too.
    # Mail that requires TLS comes back as header lines, whatever RET says (RFC 8689 5).
    if action != "failed" or len(content) > config.bounces.full_size or message.flags & (BINARY | REQUIRE_TLS):
        return False
    return message.ret == "FULL" or (not message.ret and config.bounces.returned == "full")


def _report(fate: Fate, action: dsn.Action) -> dsn.Report:
    reply = fate.reply
    remote = _KEPT_REMOTE.match(fate.remote)
    return dsn.Report(
        fate.recipient.address,
        _status(reply, action),
        _lines(reply) if reply else (),
        remote[1] if remote else "",
        remote[2] if remote else "",
        fate.last_attempt_us,
        _original_recipient(fate.recipient.orcpt),
        reply is not None and reply.local,
    )


def _status(reply: Reply | None, action: dsn.Action) -> str:
    """The status code: the reply's own when it has one, else the general one of its class (RFC 3461 6.3 g).

    A failure without a permanent reply is a message that became too old.
    """
    if reply is None:
        return "4.0.0" if action == "delayed" else _EXPIRED
    if _STATUS.fullmatch(reply.enhanced) and (action != "delayed" or reply.enhanced[0] == "4"):
        return reply.enhanced
    if action == "relayed":
        return "2.0.0"
    if action == "delayed":
        return "4.0.0"
    return "5.0.0" if reply.code >= 500 else _EXPIRED


def _lines(reply: Reply) -> tuple[str, ...]:
    """The reply as it stood on the wire; our own words without the codes, which nobody has said."""
    if reply.local:
        return reply.lines
    enhanced = f"{reply.enhanced} " if reply.enhanced else ""
    last = len(reply.lines) - 1
    return tuple(
        f"{reply.code}{' ' if index == last else '-'}{enhanced}{line}" for index, line in enumerate(reply.lines)
    )


def _original_recipient(orcpt: str | None) -> str:
    """ORCPT without its transport encoding."""
    try:
        return ";".join(xtext.decode_orcpt(orcpt)) if orcpt else ""
    except ValueError:  # no listener of ours lets it in
        return ""


def _envelope_id(envid: str | None) -> str | None:
    try:
        return None if envid is None else xtext.decode(envid)
    except ValueError:
        return None
