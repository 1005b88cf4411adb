"""Build delivery status notifications: the mail that tells a sender what became of his (RFC 3464, 3461 section 6).

`build` makes one `multipart/report` for one message and one action, about all the recipients that share it. Its parts:
a text in plain English; `message/delivery-status`; the header section of the original or the whole of it. Who gets
one, and for which recipients, is decided in `mta.queue.notices`.

Text from remote hosts is quoted as data: control characters are replaced, lines are folded, nothing of it can begin a
field, a part or a header line.

Internationalized mail (RFC 6533): what cannot be said in ASCII about an SMTPUTF8 message is said with the `global`
media types. To a sender with an ASCII address they are encoded, so that the notification itself needs no SMTPUTF8 on
its way back; to a sender with a UTF-8 address they go as they are.
"""

from __future__ import annotations

import binascii
import os
import re
import textwrap
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from mta.message import trace
from mta.smtp.address import with_a_labels

Action = Literal["failed", "delayed", "relayed"]

_LINE = 76  # columns of text we wrap
_LONGEST = 230  # characters in a line that has no place to break it: at most 920 bytes, RFC 5322 2.1.1 allows 998
_QUOTED = 40_000  # characters of replies in one notification, which its recipients share
_QUOTED_LEAST = 500  # of each of them, however many there are
_LONG_WORD = re.compile(rf"\S{{{_LONGEST}}}")
_LONG_GAP = re.compile(r" {8,}")
_BEFORE_SPACE = re.compile(r"(?<=[^ ])(?= [^ ])")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_REFERENCE = re.compile(r"<[!-;=?-~]{1,900}>")


@dataclass(slots=True)
class Report:
    """What became of one recipient."""

    address: str
    status: str  # RFC 3463, such as "5.1.1"
    diagnostic: tuple[str, ...] = ()  # the reply, line by line with its codes: "550-5.1.1 No such user"
    remote_host: str = ""  # the host that said so, or, of a local diagnostic, that it is about
    remote_address: str = ""
    last_attempt_us: int = 0  # 0: there was none
    original_recipient: str = ""  # "rfc822;someone@example.org", decoded from ORCPT; empty when none was given
    local: bool = False  # the diagnostic is in our own words: no host replied so


@dataclass(slots=True)
class Notice:
    """One notification to be built. The `original_*` describe the message it is about."""

    action: Action
    reports: list[Report]
    queue_id: str  # of the notification
    time_us: int
    hostname: str
    from_name: str
    original_queue_id: str
    original_sender: str
    original_arrival_us: int
    original: bytes  # content, CRLF line ends
    original_header_size: int
    original_message_id: str = ""
    original_envelope_id: str | None = None  # decoded from ENVID
    original_smtputf8: bool = False
    return_full: bool = False  # else the header section only
    original_hold: str = ""  # as asked, `for;3600` (RFC 4865)
    retry_until_us: int = 0  # for "delayed": when we give up
    deliver_by_us: int = 0  # when it was to be delivered, if its sender said so (RFC 2852)


class Built(NamedTuple):
    """A notification ready for the queue."""

    content: bytes
    header_size: int
    message_id: str
    smtputf8: bool  # it needs SMTPUTF8 on its way


class _Part(NamedTuple):
    type: str
    encoding: str
    description: str
    body: bytes


@dataclass(slots=True)
class _Words:
    """The sentences that differ by action."""

    subject: str
    opening: str
    closing: str = ""
    said: str = "said"
    advice: bool = False
    timed: str = ""  # instead of `opening`, of a message that was to be delivered by a time


_SAID_LAST = "said at the last attempt"
_WORDS: dict[Action, _Words] = {
    "failed": _Words(
        "Delivery Status Notification (Failure)",
        "Your message could not be delivered to {whom}. It will not be tried again.",
        "{returned} of your message {are} attached to this notification.",
        advice=True,
    ),
    "delayed": _Words(
        "Delivery Status Notification (Delay)",
        "Your message has not been delivered yet to {whom}. You do not need to send it again: "
        "we keep trying until {until}, and you are told if that fails.",
        "{returned} of your message {are} attached to this notification.",
        said=_SAID_LAST,
        advice=True,
    ),
    "relayed": _Words(
        "Delivery Status Notification (Relayed)",
        "Your message was handed over for {whom}. You asked to be told of its delivery; the host that took it does "
        "not send such notifications, so this may be the last you hear of it.",
        timed="Your message was handed over for {whom}. You asked for its delivery by {by}; the host that took it may "
        "not keep to that, so this may be the last you hear of it.",
    ),
}

_TOO_OLD = "The message has become too old: it was tried again and again, without success."
_ADVICE = {
    # What a status means for a human being, by subject and detail of RFC 3463, or by subject alone.
    "1.1": "There is no such address. Look for a spelling mistake before the @.",
    "1.2": "There is no such domain. Look for a spelling mistake after the @.",
    "1.3": "The address is not written as an address has to be.",
    "1.6": "The recipient has moved and left no other address.",
    "1.8": "The recipient's host does not accept the address you send from.",
    "1.10": "The domain does not accept mail.",
    "1": "The recipient's host does not accept this address.",
    "2.1": "The recipient's mailbox is disabled.",
    "2.2": "The recipient's mailbox is full.",
    "2.3": "The message is too large for this recipient.",
    "2": "There is a problem with the recipient's mailbox.",
    "3.4": "The message is too large for the recipient's host.",
    "3": "There is a problem with the recipient's mail system.",
    "4.4": "No mail host of the domain could be found.",
    "4.6": "The mail goes round in a circle between hosts.",
    "4.7": "It took too long to deliver the message.",
    "4": "The recipient's mail host could not be reached, or did not answer as it should.",
    "5": "The hosts did not understand each other.",
    "6.7": "The recipient's host does not support addresses beyond ASCII.",
    "6": "The recipient's host does not accept the content of the message.",
    "7.1": "The recipient's host refused the message by its policy.",
    "7": "The recipient's host refused the message for reasons of security or policy.",
}


def build(notice: Notice) -> Built:
    """The content of the notification.

    Raises ValueError for a notice without reports or to the null sender, which must never get one (RFC 3461 5.2).
    """
    if not notice.reports or not notice.original_sender:
        raise ValueError("a notification needs a sender to go to and a recipient to tell of")
    share = max(_QUOTED // len(notice.reports), _QUOTED_LEAST)
    notice = replace(notice, reports=[_shortened(report, share) for report in notice.reports])
    # The way back has to carry UTF-8 in any case, so nothing needs to be hidden from it.
    sender = with_a_labels(notice.original_sender)
    transparent = not sender.isascii()
    parts = [_explanation(notice, transparent), _status(notice, transparent)]
    if notice.original:
        parts.append(_returned(notice, transparent))
    eight_bit = any(part.encoding == "8bit" for part in parts)
    boundary = f"={notice.queue_id}.{os.urandom(8).hex()}"
    message_id = trace.message_id(notice.queue_id, notice.hostname)
    header = [
        trace.received("", notice.hostname, "(notification)", notice.queue_id, "", notice.time_us),
        f"Date: {trace.date(notice.time_us)}\r\n",
        f"From: {_display_name(notice.from_name)} <postmaster@{notice.hostname}>\r\n",
        f"To: <{sender}>\r\n",
        f"Subject: {_WORDS[notice.action].subject}\r\n",
        f"Message-ID: {message_id}\r\n",
    ]
    if _REFERENCE.fullmatch(notice.original_message_id):
        header.append(f"In-Reply-To: {notice.original_message_id}\r\n")
        header.append(f"References: {notice.original_message_id}\r\n")
    header += [
        "Auto-Submitted: auto-replied\r\n",  # RFC 3834
        "MIME-Version: 1.0\r\n",
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="{boundary}"\r\n',
        f"Content-Transfer-Encoding: {'8bit' if eight_bit else '7bit'}\r\n",
    ]
    head = "".join(header).encode()
    pieces = [head, b"\r\nThis is a notification in MIME format (RFC 3464).\r\n"]
    for part in parts:
        pieces.append(
            f"\r\n--{boundary}\r\nContent-Type: {part.type}\r\nContent-Description: {part.description}\r\n"
            f"Content-Transfer-Encoding: {part.encoding}\r\n\r\n".encode()
        )
        pieces.append(part.body)
    pieces.append(f"\r\n--{boundary}--\r\n".encode())
    return Built(b"".join(pieces), len(head), message_id, transparent)


def _shortened(report: Report, most: int) -> Report:
    """The report with at most `most` characters of its diagnostic; a line counts at least as one of 20."""
    lines: list[str] = []
    for line in report.diagnostic:
        if most <= 0:
            return replace(report, diagnostic=(*lines[:-1], f"{lines[-1]}..."))
        lines.append(line[:most])
        most -= max(len(line), 20)
    return report if most >= 0 else replace(report, diagnostic=(*lines[:-1], f"{lines[-1]}..."))


def _explanation(notice: Notice, transparent: bool) -> _Part:
    """The part for human eyes."""
    words = _WORDS[notice.action]
    several = len(notice.reports) > 1
    text = [f"This is the mail system at {notice.hostname}.", ""]
    opening = words.timed if notice.deliver_by_us and words.timed else words.opening
    text += _wrapped(
        opening.format(
            by=trace.date(notice.deliver_by_us),
            whom=f"{len(notice.reports)} recipients" if several else "one recipient",
            until=trace.date(notice.retry_until_us) if notice.retry_until_us else "it is delivered or too old",
        )
    )
    for report in notice.reports:
        text += ["", f"  <{_shown(report.address)}>"]
        # A failure with a code that is not permanent: we gave up in the end.
        expired = notice.action == "failed" and report.status.startswith("4")
        advice = _TOO_OLD if expired else _advice(report.status) if words.advice else ""
        text += _wrapped(advice, "    ") if advice else []
        if report.diagnostic:
            text += _wrapped(_who_said(report, _SAID_LAST if expired else words.said), "    ")
            for line in report.diagnostic:
                text += _wrapped(_shown(line), "      ")
    text += ["", f"Your message was accepted on {trace.date(notice.original_arrival_us)}"]
    text += [f"as {notice.original_queue_id} and has the Message-ID", f"  {_shown(notice.original_message_id)[:900]}"]
    if words.closing:
        returned, are = ("The whole", "is") if notice.return_full else ("The header lines", "are")
        text += ["", *_wrapped(words.closing.format(returned=returned, are=are))]
    body = "\r\n".join([*text, ""]).encode()
    return _encoded("text/plain; charset={}", "Explanation", body, transparent)


def _who_said(report: Report, said: str) -> str:
    """The line before a diagnostic: the host's name only where the words are the host's."""
    where = f" [{_shown(report.remote_address)}]" if report.remote_address else ""
    host = f"{_shown(report.remote_host)}{where}" if report.remote_host else ""
    if report.local:
        return f"Our own mail system {said}{f' about {host}' if host else ''}:"
    return f"{host or 'The mail host of the domain'} {said}:"


def _status(notice: Notice, transparent: bool) -> _Part:
    """The part for programs: fields per message, then fields per recipient (RFC 3464 2.2, 2.3)."""
    utf8 = notice.original_smtputf8
    clean = _shown if utf8 else _ascii
    lines: list[str] = []
    if notice.original_envelope_id:
        lines += _field("Original-Envelope-Id", clean(notice.original_envelope_id))
    lines += _field("Reporting-MTA", f"dns; {notice.hostname}")
    lines += _field("Arrival-Date", trace.date(notice.original_arrival_us))
    if notice.deliver_by_us:
        lines += _field("Deliver-By-Date", trace.date(notice.deliver_by_us))  # RFC 2852 5
    if notice.original_hold:
        lines += _field("Future-Release-Request", notice.original_hold)
    for report in notice.reports:
        lines.append("")
        if report.original_recipient:
            kind, _, address = report.original_recipient.partition(";")
            lines += _field("Original-Recipient", f"{_ascii(kind)};{_typed(address, utf8)[1]}")
        kind, address = _typed(report.address, utf8)
        lines += _field("Final-Recipient", f"{kind}; {address}")
        lines += _field("Action", notice.action)
        lines += _field("Status", _ascii(report.status))
        if report.remote_host and not report.local:
            # Of the host that reported this status, if one did (RFC 3464 2.3.5).
            lines += _field("Remote-MTA", f"dns; {_ascii(report.remote_host)}")
        if report.diagnostic:
            # Line by line as it came, each but the first after a space (RFC 3461 9.2). Type `smtp` is for what a host
            # replied; our own words have a type of ours (RFC 3464 2.3.6).
            first, *rest = [clean(line) for line in report.diagnostic]
            lines += _field("Diagnostic-Code", f"{'x-mta' if report.local else 'smtp'}; {first}")
            for line in rest:
                lines += _folded(f" {line}") if line.strip() else []
        if report.last_attempt_us:
            lines += _field("Last-Attempt-Date", trace.date(report.last_attempt_us))
        lines += _field("Final-Log-ID", notice.original_queue_id)
        if notice.action == "delayed" and notice.retry_until_us:
            lines += _field("Will-Retry-Until", trace.date(notice.retry_until_us))
    body = "\r\n".join([*lines, ""]).encode()
    if body.isascii():
        return _Part("message/delivery-status", "7bit", "Delivery status", body)
    return _encoded("message/global-delivery-status", "Delivery status", body, transparent)


def _returned(notice: Notice, transparent: bool) -> _Part:
    """The original message, or its header section."""
    if notice.return_full:
        body, description = notice.original, "Undelivered message"
        kind = "message/rfc822"
        unicode_kind = "message/global"
    else:
        body, description = notice.original[: notice.original_header_size], "Header lines of the message"
        kind = "text/rfc822-headers"
        unicode_kind = "message/global-headers"
    # A message that was not sent as SMTPUTF8 keeps the traditional type even if its header lines hold 8-bit text: it
    # is no internationalized mail, and what charset its author meant is not ours to say.
    header = notice.original[: notice.original_header_size]
    if notice.original_smtputf8 and not header.isascii():
        return _encoded(unicode_kind, description, body, transparent)
    return _Part(kind, "7bit" if body.isascii() else "8bit", description, body)


def _encoded(kind: str, description: str, body: bytes, transparent: bool) -> _Part:
    """A part whose body may hold UTF-8; `{}` in `kind` is the place of the charset."""
    if body.isascii():
        return _Part(kind.format("us-ascii"), "7bit", description, body)
    kind = kind.format("utf-8")
    if transparent:
        return _Part(kind, "8bit", description, body)
    return _Part(kind, "quoted-printable", description, binascii.b2a_qp(body, istext=True))


def _advice(status: str) -> str:
    _, _, rest = status.partition(".")
    return _ADVICE.get(rest) or _ADVICE.get(rest.partition(".")[0], "")


def _typed(address: str, utf8: bool) -> tuple[str, str]:
    """An address and its type for Final-Recipient (RFC 6533 section 3)."""
    if address.isascii():
        return "rfc822", _ascii(address)
    if utf8:
        return "utf-8", _shown(address)
    return "utf-8", "".join(
        char if "!" <= char <= "~" and char not in "\\+=" else f"\\x{{{ord(char):02X}}}" for char in address
    )


def _display_name(name: str) -> str:
    """A display name as a quoted string; beyond ASCII as an encoded word (RFC 2047), cut to fit one."""
    if name.isascii():
        escaped = _ascii(name).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"' if escaped else ""
    short = _shown(name).encode()[:45].decode(errors="ignore")
    return f"=?utf-8?B?{binascii.b2a_base64(short.encode(), newline=False).decode()}?="


def _field(name: str, value: str) -> list[str]:
    return _folded(f"{name}: {value}")


def _folded(line: str) -> list[str]:
    """A field folded before spaces, so that unfolding gives it back; only a word beyond all measure is broken."""
    lines = []
    current = ""
    for word in _BEFORE_SPACE.split(_LONG_GAP.sub("  ", line.rstrip())):
        if current and len(current) + len(word) > _LINE:
            lines.append(current)
            current = ""
        current += word
        while len(current) > _LONGEST:
            lines.append(current[:_LONGEST])
            current = f" {current[_LONGEST:]}"
    lines.append(current)
    return lines


def _wrapped(text: str, indent: str = "") -> list[str]:
    broken = _LONG_WORD.sub(r"\g<0> ", text)
    return textwrap.wrap(
        broken, _LINE, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _ascii(text: str) -> str:
    return _UNPRINTABLE.sub("?", text.replace("\t", " "))


def _shown(text: str) -> str:
    # Not only what breaks lines: a mark that turns the direction of writing makes a reader see another address.
    return text if text.isprintable() else "".join(
        char if char.isprintable() else "?" for char in text.replace("\t", " "))
