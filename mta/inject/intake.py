"""The single door: an envelope and its content become a message of the queue, or a refusal.

Whatever mail comes by - SMTP, spool directory - passes through `Intake.prepare`: loops are stopped, the trace line
and a missing Date or Message-ID are added, recipients are grouped by domain into deliveries, the `received` event is
written. `submit` does that and commits it; the answer, `250` or not, is given when the store has it (I1).

Decisions of this door, with their reasons:

* More `Received` lines than `smtp.hops`: `554 5.4.6`, a loop (RFC 5321 6.3).
* A header section above 256 KiB: `550 5.6.0`. Large receivers refuse it, and it would hold up the hub.
* What `checks` asks for (`mta.inject.checking`): a message is refused, told of, or fields are added at the top.
* No header section at all: accepted. Our lines and an empty line are put before it, so that text does not become
  header. A mailbox separator (`From somebody Mon ...`) before the header section is dropped, as other MTAs do.
* Return-Path is removed: only the host of final delivery adds it (RFC 5321 4.4). So are a Date, From or Message-ID with
  nothing in them, which count as missing: beside one that is added they would be a second one. No other field is
  changed or moved, because the message may be signed; lines are added only at the top.
* The same mailbox twice in one transaction is one recipient, and the first one's DSN wishes hold. Local parts are
  compared exactly, domains without case.
* Labels (`mta.inject.labels`) become part of the queue's name, their header fields are removed. A pool that does not
  exist is refused with `550 5.7.1`, a value that is no name with `550 5.6.0`.
* A message that is to be held (FUTURERELEASE) is due when it is to be released. MT-PRIORITY above 0 is `transactional`,
  below 0 `bulk`, where no label says otherwise and labels of clients are believed (RFC 6710 4.1: a policy of ours).
* Content is not checked for CR and LF: the SMTP machine and the file formats refuse or repair that before.

Hot path: 15 µs for a message of 5 KB with one recipient (bench/throughput.py watches it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from mta.config.checks import NO_CHANGES, CheckChanges
from mta.config.schema import Config, LabelValues
from mta.inject.checking import Checker, unsubscribe_lines
from mta.inject.labels import Labeller, Labels
from mta.message import headers, trace
from mta.queue import events
from mta.queue.errors import StoreError, StoreFull
from mta.queue.ids import format_id
from mta.queue.records import EIGHT_BIT, SMTPUTF8, Delivery, Message, Recipient, Wishes, queue_name
from mta.smtp.address import domain_to_ascii, with_a_labels
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.smtp.envelope import Asked, Envelope


HONOURED: Final = frozenset(("FUTURERELEASE", "MT-PRIORITY"))
"""The extensions whose wishes the queue sees to, which needs nobody else: the scheduler and the dispatch let a message
wait until it is to be released, and a priority makes it overtake others here."""

_PRIORITIES: Final = ("bulk", "transactional")  # of an MT-PRIORITY below and above 0


class Source(NamedTuple):
    """Where mail comes from. Made once per session or file."""

    origin: str  # for `Message.origin` and events
    address: str = ""  # the client's IP address; empty for mail that came in no session
    hostname: str = ""  # the listener's own name, when it has one
    tls: bool = False
    labels: LabelValues | None = None  # of all that comes in there
    label_headers: bool = True  # whether header fields may give labels
    comment: str = ""  # in `Received`, where there is no address
    authenticated: bool = False  # the client has logged in
    checks: CheckChanges | None = None  # what is different in `checks`

    @classmethod
    def smtp(cls, address: str, port: int, helo: str, hostname: str = "", tls: bool = False,
             labels: LabelValues | None = None, label_headers: bool = True, user: str = "") -> Source:
        """The client of an SMTP session; without an address that of a Unix socket. `user`: who has logged in."""
        where = f"{address}:{port}" if address else "local"
        origin = f"smtp {where} {helo[:255]}{f' as {user}' if user else ''}"
        return cls(origin, address, hostname, tls, labels, label_headers, "(local socket)", bool(user))

    @classmethod
    def pickup(cls, path: str, uid: int, labels: LabelValues | None = None, checks: CheckChanges | None = None,
               ) -> Source:
        """A file of a spool directory, which the user `uid` wrote."""
        return cls(f"pickup {path} uid {uid}", labels=labels, comment=f"(spool directory, userid {uid})",
                   checks=checks if checks != NO_CHANGES else None)

    def checked(self, checks: CheckChanges) -> Source:
        """The same, where `checks` is changed so."""
        return self._replace(checks=checks) if checks != NO_CHANGES else self


@dataclass(slots=True)
class Accepted:
    """What is to be committed, in one transaction, for the message to be accepted."""

    message: Message
    deliveries: list[Delivery]
    event: bytes


Commit = Callable[[Accepted, Callable[[StoreError | None], None]], None]
"""Puts an accepted message into the store; calls back once it is durable, or with the store's error."""


class Intake:
    """Turns envelopes with content into messages and deliveries."""

    def __init__(
        self, config: Config, next_id: Callable[[], int], clock_us: Callable[[], int], commit: Commit | None = None,
        admit: Callable[[str, int], Reply | None] = lambda tenant, deliveries: None,
        direct: Callable[[list[Delivery]], object] = lambda deliveries: None,
    ) -> None:
        """`next_id` gives message ids; `commit` and `admit` are needed for `submit` only. The latter tells why one more
        message of a tenant, with so many deliveries, is not taken now. `direct` may give deliveries another queue."""
        self._admit = admit
        self._direct = direct
        self._next_id = next_id
        self._clock_us = clock_us
        self._commit = commit
        self.checker = Checker(config)
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take over the options of a new configuration; for messages from now on."""
        self._hostname = config.hostname
        self._hops = config.smtp.hops
        self._labeller = Labeller(config)
        self.checker.configure(config)

    def submit(self, envelope: Envelope, content: bytes, source: Source, done: Callable[[Reply], None]) -> None:
        """Accept a message and call `done` with the reply to its final dot, at once or when the store has it."""
        prepared = self.prepare(envelope, content, source)
        if isinstance(prepared, Reply):
            done(prepared)
            return
        tenant = prepared.message.tenant
        if tenant and (refusal := self._admit(tenant, len(prepared.deliveries))) is not None:
            done(refusal)
            return
        assert self._commit is not None
        taken = Reply(250, "2.0.0", (f"Ok: queued as {prepared.message.text_id}",))
        self._commit(prepared, lambda error: done(taken if error is None else store_reply(error)))

    def prepare(self, envelope: Envelope, content: bytes, source: Source) -> Accepted | Reply:
        """The records of a message, or the reply that refuses it.

        `content` has CRLF line ends and ends with one; `envelope` was checked by who read it. Hot path.
        """
        scan = headers.scan(content)
        if scan.end <= 0:
            if scan.end == 0:
                content = _with_header_section(content)
                scan = headers.scan(content)
            if scan.end < 0:
                return self.checker.refuse_size(headers.HEADER_LIMIT, source.origin)
        if scan.received > self._hops:
            return Reply(554, "5.4.6", (f"Too many hops: {scan.received} Received lines, this message loops",))
        labelled = self._labeller.read(content, scan.end, envelope.sender, source.labels, source.label_headers)
        if isinstance(labelled, Reply):
            return labelled
        labels, unwanted = labelled
        asked = envelope.asked
        priority = None if asked is None else asked.priority
        if labels.priority or priority is not None:
            labels = _with_class(labels, priority if source.label_headers else None)
        verdict = self.checker.check(content, scan, envelope, labels, source.checks, source.origin)
        if isinstance(verdict, Reply):
            return verdict
        size_before = len(content)
        if scan.has_return_path or unwanted or scan.empty:
            content = headers.remove(content, ("Return-Path", *unwanted, *scan.empty))

        hostname = source.hostname or self._hostname
        message_number = self._next_id()
        queue_id = format_id(message_number)
        now_us = self._clock_us()
        recipients = envelope.recipients
        if len(recipients) == 1:
            only = recipients[0].address
            groups = {self._mailbox(recipients[0])[1]: recipients}
            if not only.isascii():
                only = with_a_labels(only)
        else:
            only = ""
            groups = self._group(recipients)

        flags = envelope.flags
        if source.address:
            protocol = trace.protocol(envelope.esmtp, source.tls, source.authenticated, flags & SMTPUTF8 != 0)
            clause = trace.from_clause(envelope.helo, source.address)
            added = trace.received(clause, hostname, f"with {protocol}", queue_id, only, now_us, priority)
        else:
            added = trace.received("", hostname, source.comment, queue_id, only, now_us)
        message_id = scan.message_id
        if not message_id:
            message_id = trace.message_id(queue_id, hostname)
            added = f"{added}Message-ID: {message_id}\r\n"
        if not scan.has_date:
            added = f"{added}Date: {trace.date(now_us)}\r\n"
        if verdict.add_from:
            sender = with_a_labels(envelope.sender)
            added = f"{added}From: {sender if '@' in sender else f'{sender}@{hostname}'}\r\n"
        if verdict.unsubscribe_uri:
            added = f"{added}{unsubscribe_lines(verdict.unsubscribe_uri, queue_id, labels)}"
        content = added.encode() + content

        size = len(content)
        wishes = None if asked is None else _wishes(asked, now_us)
        if not content.isascii():
            flags |= EIGHT_BIT
        message = Message(
            message_number,
            envelope.sender,
            now_us,
            content,
            scan.end + size - size_before,
            message_id,
            flags,
            envelope.ret,
            envelope.envid,
            source.origin,
            labels.tenant,
            labels.campaign,
            labels.pool,
            size=size,
            deliveries=len(groups),
            wishes=wishes,
            id_text=queue_id,
        )
        if wishes is not None:
            now_us = max(now_us, wishes.release_us)
        deliveries = []
        for index, (domain, group) in enumerate(groups.items()):
            deliveries.append(Delivery(message, index, queue_name(domain, *labels), domain, group, now_us))
        self._direct(deliveries)
        return Accepted(message, deliveries, events.received(message, deliveries, verdict.warnings))

    def _mailbox(self, recipient: Recipient) -> tuple[str, str]:
        """The local part of a recipient, and the domain that it is routed by: lower case, A-labels. `postmaster` alone
        is ours (RFC 5321 4.5.1). Hot path: of one message there may be a thousand.

        Of a thousand domains beyond ASCII the A-labels are not looked for here: that would hold up the hub for a
        second. Who read the address knows them.
        """
        local, at, domain = recipient.address.rpartition("@")
        if recipient.a_labels:
            return local, recipient.a_labels
        if not at:
            return local, self._hostname
        return local, domain.lower() if domain.isascii() else domain_to_ascii(domain)

    def _group(self, recipients: list[Recipient]) -> dict[str, list[Recipient]]:
        """Recipients by domain, in the order in which domains first appear, each mailbox once. Hot path."""
        groups: dict[str, dict[str, Recipient]] = {}
        for recipient in recipients:
            local, domain = self._mailbox(recipient)
            group = groups.get(domain)
            if group is None:
                groups[domain] = {local: recipient}
            else:
                group.setdefault(local, recipient)
        return {domain: [*group.values()] for domain, group in groups.items()}


def _with_class(labels: Labels, wished: int | None) -> Labels:
    """Labels with the class that an MT-PRIORITY makes where they have none. Before the checks, as bulk mail has some of
    its own."""
    if labels.priority == "normal":
        return labels._replace(priority="")
    return labels._replace(priority=_PRIORITIES[wished > 0]) if wished and not labels.priority else labels


def _wishes(asked: Asked, now_us: int) -> Wishes:
    return Wishes(
        now_us + int(asked.hold_s * 1_000_000) if asked.hold_s else 0, asked.hold,
        now_us + asked.by_s * 1_000_000 if asked.by_s is not None else 0, asked.by_mode, asked.priority)


def store_reply(error: StoreError) -> Reply:
    """What a client is told when its message could not be stored: to come back."""
    if isinstance(error, StoreFull):
        return Reply(452, "4.3.1", ("Insufficient system storage, try again later",))
    return Reply(451, "4.3.0", ("The message could not be stored, try again later",))


def _with_header_section(content: bytes) -> bytes:
    """Content without a header section, changed so that lines put before it become one. Rare, so not fast."""
    if content.startswith((b"From ", b">From ")):
        _, _, rest = content.partition(b"\r\n")  # binary content may have no line end at all
        if headers.section_end(rest) != 0:
            return rest
    return content if content.startswith(b"\r\n") else b"\r\n" + content
