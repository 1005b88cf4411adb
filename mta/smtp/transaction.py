"""One outgoing transaction: what is sent, what came of it, and its commands for a host with given capabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mta.queue.records import (
    BINARY,
    EIGHT_BIT,
    NOTIFY_DELAY,
    NOTIFY_FAILURE,
    NOTIFY_NEVER,
    NOTIFY_SUCCESS,
    REQUIRE_TLS,
    SMTPUTF8,
    Recipient,
)
from mta.smtp.address import AddressError, domain_to_ascii
from mta.smtp.reply import Reply
from mta.smtp.xtext import orcpt_to_ascii

NO_REQUIRETLS: Final = "The message requires TLS (REQUIRETLS), and the host does not offer to require it, too"

Pipelining: TypeAlias = Literal["", "inside", "across"]

CARRIED: Final = frozenset(("8BITMIME", "BINARYMIME", "SMTPUTF8", "DSN", "REQUIRETLS", "DELIVERBY"))
"""The extensions whose wishes this side carries on to the next host, or answers for when that does not offer them. Of
those that ask for it (`mta.smtp.extensions`) our server offers no other."""


@dataclass(slots=True)
class Capabilities:
    """What the host offers in its answer to EHLO."""

    esmtp: bool = False
    pipelining: bool = False
    eight_bit: bool = False
    smtputf8: bool = False
    dsn: bool = False
    starttls: bool = False
    chunking: bool = False
    require_tls: bool = False  # REQUIRETLS
    binary: bool = False  # BINARYMIME, which goes in chunks only
    mt_priority: bool = False
    deliver_by: int | None = None  # the least time to deliver, in seconds, of a host that offers DELIVERBY; 0: any
    size: int | None = None  # largest message in octets; 0: no limit, or none that makes sense
    mail_max: int = 0  # transactions in one session (RFC 9422); 0: unknown, like the next two
    rcpt_max: int = 0  # recipients in one transaction
    rcpt_domain_max: int = 0  # recipient domains in one transaction

    @classmethod
    def from_reply(cls, reply: Reply) -> Capabilities:
        """Read a positive answer to EHLO. What is malformed counts as not offered."""
        found = cls(esmtp=True)
        for line in reply.lines[1:]:
            # `AUTH=LOGIN` and the like: some hosts put `=` where the keyword ends.
            keyword, *values = line.replace("=", " ", 1).upper().split() or [""]
            if keyword == "PIPELINING":
                found.pipelining = True
            elif keyword == "8BITMIME":
                found.eight_bit = True
            elif keyword == "SMTPUTF8":
                found.smtputf8 = found.eight_bit = True  # RFC 6531 3.1 makes the one imply the other
            elif keyword == "DSN":
                found.dsn = True
            elif keyword == "STARTTLS":
                found.starttls = True
            elif keyword == "CHUNKING":
                found.chunking = True
            elif keyword == "BINARYMIME":
                found.binary = True
            elif keyword == "REQUIRETLS":
                found.require_tls = True
            elif keyword == "DELIVERBY":
                found.deliver_by = _number(values[0].partition(",")[0]) if values else 0
            elif keyword == "MT-PRIORITY":
                found.mt_priority = True
            elif keyword == "SIZE":
                found.size = _number(values[0]) if values else 0
            elif keyword == "LIMITS":
                limits = dict(value.partition("=")[::2] for value in line.upper().split()[1:])
                found.mail_max = _number(limits.get("MAILMAX", ""))
                found.rcpt_max = _number(limits.get("RCPTMAX", ""))
                found.rcpt_domain_max = _number(limits.get("RCPTDOMAINMAX", ""))
        return found


def _number(text: str) -> int:
    """A limit as an EHLO line has it; 0 for what is none, not positive or absurd."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


class Results:
    """What came of a transaction. Attributes of the class, so that what is not there yet costs nothing: hot path."""

    # Replies are None where the machine did not get to ask, or the peer to answer.
    mail: Reply | None = None
    rcpts: list[Reply | None]  # by position in `recipients`
    data: Reply | None = None
    final: Reply | None = None  # to the content: the verdict for every recipient that was accepted
    dot_sent: bool = False  # content and its end were put into the output: the peer may have the message
    lost: str = ""  # why the session ended before the transaction did
    lost_phase: str = ""  # the phase it was lost in; empty when it is handed back untouched
    local_reply: Reply | None = None  # nothing was sent, because this stands in the way
    unfit: Sequence[Recipient] = ()  # whom alone `local_reply` is about; empty: all
    sent_8bit_unannounced: bool = False  # 8-bit content went to a host without 8BITMIME
    dsn_offered: bool = False  # the host takes over what RET, ENVID, NOTIFY and ORCPT ask for (RFC 3461 5.2)
    pipelined: Pipelining = ""  # how its envelope was sent
    chunked: bool = False  # its content goes as a chunk (RFC 3030)


@dataclass(eq=False, repr=False)
class Transaction(Results):
    """One message to some recipients: what is to be sent, and what came of it. Each is equal to itself alone."""

    sender: str  # "" is the null sender
    recipients: list[Recipient]
    content: bytes  # CRLF line ends, not stuffed
    flags: int = 0  # those of the message: `mta.queue.records`
    ret: str = ""
    envid: str | None = None
    priority: int | None = None  # MT-PRIORITY, for a host that knows of it (RFC 6710 4.2)
    by_mode: str = ""  # DELIVERBY: "R", "N", "RT" or "NT"; empty when it was not asked for (RFC 2852)
    by_s: int = 0  # what is left of the time to deliver; with N it may be over
    by_required: bool = True  # with R, it goes only to hosts that keep to it, too (RFC 2852 4.1.4.2)
    eight_bit_offered: bool = False  # 8-bit content goes only to hosts with 8BITMIME, as RFC 6152 3 has it

    def __repr__(self) -> str:
        return f"<Transaction {vars(self)}>"

    def __post_init__(self) -> None:
        self.rcpts = [None] * len(self.recipients)

    def forget(self) -> None:
        """Take back what the peer said: it is as if the transaction had not been sent."""
        self.mail = self.data = self.final = None
        self.rcpts = [None] * len(self.recipients)
        self.dot_sent = False


def commands_for(transaction: Transaction, can: Capabilities, chunking: bool = True) -> list[str]:
    """MAIL and RCPT of an envelope, with the parameters that the host offers. May set `local_reply` instead.
    `chunking`: chunks are used where they are offered."""
    sender = transaction.sender
    recipients = transaction.recipients
    parameters = ""
    if can.size is not None:
        size = len(transaction.content)
        if 0 < can.size < size:
            text = f"The message has {size} octets, the host takes {can.size}"
            transaction.local_reply = Reply(552, "5.3.4", (text,), local=True)
            return []
        parameters = f" SIZE={size}"
    flags = transaction.flags
    if flags & REQUIRE_TLS:  # the session is known to be good for it, but for the offer (RFC 8689)
        if not can.require_tls:
            transaction.local_reply = Reply(550, "5.7.30", (NO_REQUIRETLS,), local=True)
            return []
        parameters += " REQUIRETLS"
    untimed = False
    if transaction.by_mode:
        untimed = can.deliver_by is None
        transaction.local_reply = _time_refusal(transaction, can)
        if transaction.local_reply is not None:
            return []
        if not untimed:
            parameters += f" BY={transaction.by_s};{transaction.by_mode}"
    if flags & BINARY:  # as it is in chunks, or not at all (RFC 3030 3)
        transaction.local_reply = _binary_refusal(can, chunking)
        if transaction.local_reply is not None:
            return []
        parameters += " BODY=BINARYMIME"
    elif flags & EIGHT_BIT:
        if can.eight_bit:
            parameters += " BODY=8BITMIME"
        elif transaction.eight_bit_offered and not transaction.content.isascii():
            text = "The message has 8-bit content, and the host does not offer 8BITMIME"
            transaction.local_reply = Reply(554, "5.6.3", (text,), local=True)
            return []
        else:
            transaction.sent_8bit_unannounced = True
    if transaction.priority is not None and can.mt_priority:
        parameters += f" MT-PRIORITY={transaction.priority}"
    if can.dsn:
        transaction.dsn_offered = True
        if transaction.ret:
            parameters += f" RET={transaction.ret}"
        if transaction.envid:
            parameters += f" ENVID={transaction.envid}"
        commands = [f"RCPT TO:<{to.address}>{_dsn(to, untimed) if to.notify or to.orcpt or untimed else ''}\r\n"
                    for to in recipients]
    else:
        commands = [f"RCPT TO:<{to.address}>\r\n" for to in recipients]
    commands.insert(0, f"MAIL FROM:<{sender}>{parameters}\r\n")
    if flags & SMTPUTF8 or not "".join(commands).isascii():
        return _international(transaction, can, commands)
    return commands


def _time_refusal(transaction: Transaction, can: Capabilities) -> Reply | None:
    """Why a message that is to be delivered by a time cannot go to this host; None when it can."""
    if transaction.by_mode[0] != "R":
        return None
    if can.deliver_by is None:
        if not transaction.by_required:
            return None
        text = "The message is to be delivered in time or returned (BY with R), and the host does not offer DELIVERBY"
        return Reply(550, "5.3.3", (text,), local=True)
    if transaction.by_s < can.deliver_by:
        text = f"The message is to be delivered in {transaction.by_s} seconds, the host takes at least {can.deliver_by}"
        return Reply(550, "5.4.7", (text,), local=True)
    return None


def _binary_refusal(can: Capabilities, chunking: bool) -> Reply | None:
    """Why content that is no text cannot go to this host; None when it can."""
    if not (can.binary and can.chunking):
        text = "The message is binary (BODY=BINARYMIME), and the host does not offer BINARYMIME and CHUNKING"
        return Reply(554, "5.6.3", (text,), local=True)
    if not chunking:  # for an hour after it did not bear them, or by the configuration
        text = "The message is binary (BODY=BINARYMIME), and chunks are not used with this host"
        return Reply(451, "4.6.3", (text,), local=True)
    return None


def _international(transaction: Transaction, can: Capabilities, commands: list[str]) -> list[str]:
    """The envelope of a message with addresses or headers in UTF-8 (RFC 6531 3.4)."""
    try:
        "".join(commands).encode()
    except UnicodeEncodeError:  # it should never have come so far
        text = "An address or a parameter is neither ASCII nor UTF-8"
        transaction.local_reply = Reply(553, "5.1.3", (text,), local=True)
        return []
    addresses = [transaction.sender, *(to.address for to in transaction.recipients)]
    needed = not all(address.rpartition("@")[0].isascii() for address in addresses)
    utf8_header = False
    if transaction.flags & SMTPUTF8 and (not needed or not can.smtputf8):
        end = transaction.content.find(b"\r\n\r\n")
        utf8_header = not (transaction.content[:end] if end >= 0 else transaction.content).isascii()
    if needed or utf8_header:
        if not can.smtputf8:
            _cannot_be_sent(transaction, utf8_header)
        commands[0] = f"{commands[0][:-2]} SMTPUTF8\r\n"
        return commands
    try:
        for number, address in enumerate(addresses):
            local, at, domain = address.rpartition("@")
            ascii_form = f"{local}{at}{domain_to_ascii(domain)}" if at else address
            verb, _, parameters = commands[number][:-2].partition(f"<{address}>")
            commands[number] = f"{verb}<{ascii_form}>{orcpt_to_ascii(parameters)}\r\n"
    except AddressError as error:
        transaction.local_reply = Reply(550, "5.6.7", (f"No form in ASCII: {error}",), local=True)
    return commands


def _cannot_be_sent(transaction: Transaction, utf8_header: bool) -> None:
    """Say what needs SMTPUTF8, which the host does not offer (RFC 6531 3.5): the header or the sender; else some of the
    recipients, which is none of the others' business."""
    if utf8_header:
        code, enhanced, what = 554, "5.6.9", "The header of the message is in UTF-8"
    elif not transaction.sender.rpartition("@")[0].isascii():
        code, enhanced, what = 553, "5.6.7", f"The sender <{transaction.sender}> is not in ASCII"
    else:
        transaction.unfit = [to for to in transaction.recipients if not to.address.rpartition("@")[0].isascii()]
        named = f"<{transaction.unfit[0].address}>"
        others = len(transaction.unfit) - 1
        code, enhanced, what = 553, "5.6.7", f"{named} is not in ASCII" if not others else (
            f"{named} and {others} more of the recipients are not in ASCII")
    text = f"{what}, and the host does not offer SMTPUTF8"
    transaction.local_reply = Reply(code, enhanced, (text,), local=True)


_NOTIFY = ((NOTIFY_NEVER, "NEVER"), (NOTIFY_SUCCESS, "SUCCESS"), (NOTIFY_FAILURE, "FAILURE"), (NOTIFY_DELAY, "DELAY"))


def _dsn(recipient: Recipient, untimed: bool) -> str:
    """The parameters of RCPT that RFC 3461 4 defines. `untimed`: the host does not know that it is to be delivered by
    a time, and is asked to tell at least of delays (RFC 2852 4.1.4.2)."""
    text = ""
    notify = recipient.notify
    if untimed and not notify & NOTIFY_NEVER:
        notify = notify | NOTIFY_DELAY if notify else NOTIFY_FAILURE | NOTIFY_DELAY
    if notify:
        text = " NOTIFY=" + ",".join(name for bit, name in _NOTIFY if notify & bit)
    if recipient.orcpt:
        text += f" ORCPT={recipient.orcpt}"
    return text
