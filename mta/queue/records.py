"""The records of the queue in memory: messages, deliveries, recipients.

A *message* is one accepted transaction. A *delivery* is what is scheduled: one message times one recipient domain.
The store turns them into bytes (`mta.queue.store`), the scheduler moves deliveries about, a connection delivers them.
Times are integers: microseconds since the epoch, by the wall clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mta.queue.ids import format_id

# The flags of a message, from its envelope to the transactions with other hosts
EIGHT_BIT = 1  # MAIL BODY=8BITMIME, or content with bytes above 127
SMTPUTF8 = 2  # MAIL SMTPUTF8
NOTIFICATION = 4  # a DSN that we made
DOTLESS = 8  # the content ends with CRLF, and no line begins with a dot: it goes over the wire as it is
REQUIRE_TLS = 16  # MAIL REQUIRETLS (RFC 8689)
BINARY = 32  # MAIL BODY=BINARYMIME: the content is no text

# Recipient.notify, the NOTIFY parameter of RFC 3461 4.1; 0 when it was not given
NOTIFY_NEVER = 1
NOTIFY_SUCCESS = 2
NOTIFY_FAILURE = 4
NOTIFY_DELAY = 8


class BodyRef(NamedTuple):
    """Where the content of a message lies on disk, and its CRC-32C."""

    segment: int
    offset: int
    length: int
    crc: int


@dataclass(slots=True)
class Recipient:
    """One envelope recipient and what the sender asked for it (RFC 3461)."""

    address: str
    notify: int = 0
    orcpt: str | None = None  # as received, "rfc822;..." still in xtext
    a_labels: str = field(default="", compare=False, repr=False)  # of its domain, if who read it knew; in memory only


class Attempt(NamedTuple):
    """One failed attempt, kept with the delivery for `mta message`."""

    time_us: int
    remote: str  # "mx1.example.org [192.0.2.1]:25", or "" when no host was reached
    reply: str  # as `str(Reply)`: "451 4.7.1 Greylisted", or our own description, "4.4.2 connection lost"


class Wishes(NamedTuple):
    """What the sender of a message asked for that few ask for."""

    release_us: int = 0  # not to be tried before (RFC 4865); 0: at once
    hold: str = ""  # as asked, `for;3600` or `until;2030-01-02T03:04:05Z`
    by_us: int = 0  # to be delivered by then (RFC 2852); 0: not asked
    by_mode: str = ""  # "R", "N", "RT" or "NT"
    priority: int | None = None  # MT-PRIORITY, -9 to 9 (RFC 6710)

    @property
    def returns(self) -> bool:
        """Whether it is to be returned when it was not delivered in time."""
        return self.by_us > 0 and self.by_mode[:1] == "R"


@dataclass(slots=True)
class Message:
    """One accepted message. `content` is the whole of it, CRLF line ends, never dot-stuffed; None when only on disk."""

    id: int
    sender: str  # "" is the null sender
    arrival_us: int
    content: bytes | None
    header_size: int = 0  # length of the header section, without the empty line
    message_id: str = ""  # the Message-ID header, for events
    flags: int = 0
    ret: str = ""  # "FULL", "HDRS" or not given
    envid: str | None = None  # as received, in xtext
    origin: str = ""  # "smtp 192.0.2.9:4711 helo.name", "pickup /dir/file uid 1000", "dsn"
    tenant: str = ""
    campaign: str = ""
    pool: str = ""
    body: BodyRef | None = None  # set by the store when the message is accepted
    size: int = 0
    deliveries: int = 0  # how many there were at acceptance
    wishes: Wishes | None = None
    held: int = 0  # the scheduler's: deliveries in memory that share `content`
    id_text: str = ""  # what `text_id` gives, once it is known

    def is_held(self, now_us: int) -> bool:
        """Whether it is not to be tried yet, as its sender wants."""
        return self.wishes is not None and self.wishes.release_us > now_us

    @property
    def text_id(self) -> str:
        """The id as people see it."""
        if not self.id_text:
            self.id_text = format_id(self.id)
        return self.id_text


@dataclass(slots=True)
class Delivery:
    """One message to one recipient domain: the unit that is scheduled."""

    message: Message
    index: int  # among the deliveries of the message
    queue: str  # name of the queue, `queue_name()`
    domain: str
    recipients: list[Recipient]  # those without an end yet
    due_us: int
    attempts: int = 0
    warned: bool = False  # the delay warning was sent
    history: list[Attempt] = field(default_factory=list)  # the last few failed attempts
    maybe_duplicate: bool = False  # a crash left it open whether the peer has it already
    losses: int = 0  # connections that ended under it without a verdict, since the last attempt that counted
    source: str = ""  # name of the source of the last attempt that deferred it: where possible the next one's, too
    avoid: tuple[str, ...] = ()  # the next attempt does not go by these, if it can: `source:NAME`, `host:NAME`
    tried: int = 0  # recipients at the end of the list that the attempt under way has deferred; in memory only

    @property
    def key(self) -> tuple[int, int]:
        """Identity over the life of the queue."""
        return (self.message.id, self.index)


def queue_name(domain: str, tenant: str = "", campaign: str = "", pool: str = "", priority: str = "") -> str:
    """The name of a queue, `campaign:tenant@domain/pool^priority`, with what is empty left out; `normal` is, too.

    Priorities have queues of their own, so that transactional mail never stands behind bulk, on disk either.
    """
    name = domain
    if tenant or campaign:
        name = f"{campaign}:{tenant}@{domain}" if campaign else f"{tenant}@{domain}"
    if pool:
        name = f"{name}/{pool}"
    return f"{name}^{priority}" if priority and priority != "normal" else name


def detour(name: str, number: int) -> str:
    """The name of the queue beside the queue `name` whose mail goes as the order of this number says:
    `campaign:tenant@domain/pool/number^priority`. For 0 that of the queue which it is beside."""
    labels, at, rest = name.rpartition("@")
    rest, caret, priority = rest.partition("^")
    domain, *names = rest.split("/")
    pool = names[0] if names else ""
    way = f"/{pool}/{number}" if number else f"/{pool}" if pool else ""
    return f"{labels}{at}{domain}{way}{caret}{priority}"
