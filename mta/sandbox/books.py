"""What a session of an MX host knows of its transaction, and how that is entered in the ledger when it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mta.sandbox import content as contents
from mta.sandbox.connection import Connection
from mta.sandbox.content import text
from mta.sandbox.internet import Domain, Host
from mta.sandbox.ledger import Arrival, DomainCounts, Transaction, Visit
from mta.sandbox.replies import Reply

if TYPE_CHECKING:
    from mta.sandbox.receiver import Receiver


class Books:
    """The transaction of one session, and its entries. The way of a message that is taken is a hot path."""

    def __init__(self, receiver: Receiver, host: Host, wire: Connection, client: tuple[str, int], number: int) -> None:
        self.receiver = receiver
        self.ledger = receiver.ledger
        self.host = host
        self.wire = wire
        self.client, self.client_port = client
        self.number = number  # among all connections
        self._place = ""  # number among the connections to this site: the subject of rules before MAIL
        self._greeted = False  # EHLO or HELO was accepted
        self._esmtp = False
        self._helo = ""
        self._messages = 0
        self._answered_body = -1  # `wire.writes` when a body was answered: what is read before the next is pipelined
        self._refused_across = -1  # the same, when an envelope was refused for that
        self._visit: Visit | None = None
        if receiver.times:
            self._visit = Visit(number, wire.opened_at(), 0.0, host.site, self.client)
            self.ledger.visits.append(self._visit)
        self._clear()

    def _clear(self) -> None:
        """Begin a transaction anew."""
        self._sender: bytes | None = None
        self._parameters: dict[str, str] = {}
        self._accepted: list[tuple[bytes, DomainCounts]] = []
        self._domain: Domain | None = None  # of the first accepted recipient
        self._first = ""  # that recipient: the subject of rules from DATA on
        self._asked: list[tuple[str, str, str]] = []
        self._name = ""  # of the domain of the latest recipient asked for
        self._pipelined = self._across = False
        self._data_reply = ""
        self._mail_at = 0.0
        self._chunks: list[bytes] | None = None  # of content, once there is one

    def _blame(self, kind: str, line: bytes) -> None:
        self.ledger.violation(kind, f"{self.client}:{self.client_port} {line[:100]!r}")

    def _keep(self, content: bytes, reply: Reply | None) -> None:
        """Take a message. Without a reply the client is not told. Hot path."""
        ledger = self.ledger
        key = contents.message_key(content)
        ledger.accept(key, self._accepted, len(content))
        if self._visit is not None and self._domain is not None:
            ledger.arrivals.append(Arrival(self._mail_at, self.wire.read_at, self._domain.name, self._first,
                                           self.number, self.client, self.wire.written_at))
        if self.receiver.checks:
            if self._parameters.get("BODY", "").upper() != "BINARYMIME":  # which may have anything in it
                for fault in contents.faults(content, "BODY" in self._parameters or "SMTPUTF8" in self._parameters):
                    self._blame(fault, key)
            if contents.is_damaged(content):
                ledger.totals.damaged += 1
                self._blame("damaged", key)
        if reply is None:
            ledger.totals.unanswered += len(self._accepted)
            for _, counts in self._accepted:
                counts.unanswered += 1
        elif self._domain is not None:
            self._domain.counts.replies[reply.code] += 1
        if self.receiver.capture is not None:
            self.receiver.capture.write(self._sender or b"", self._accepted, content)
        self._record("accepted", "", reply, key, content)
        self._clear()

    def _lose(self, reply: Reply | None) -> None:
        """Refuse the message to all recipients accepted so far; without a reply it is dropped."""
        for _, counts in self._accepted:
            self._count_lost(reply, counts)
        if reply is not None and self._domain is not None:
            self._domain.counts.replies[reply.code] += 1
        self._record("dropped" if reply is None else "refused", "", reply)
        self._clear()

    def _count_lost(self, reply: Reply | None, counts: DomainCounts) -> None:
        totals = self.ledger.totals
        if reply is None:
            counts.dropped += 1
            totals.dropped += 1
        elif reply.code < 500:
            counts.deferred += 1
            totals.deferred += 1
        else:
            counts.rejected += 1
            totals.rejected += 1

    def _end(self, how: str, mail_reply: Reply | None = None) -> None:
        """Note that a transaction, if there is one, ended before its content."""
        if self._sender is None:
            return
        if how == "dropped":
            for _, counts in self._accepted:
                self._count_lost(None, counts)
        elif how == "abandoned" and self._asked and not self._accepted:
            how = "refused"
        self._record(how, mail_reply.text if mail_reply is not None else "")
        self._clear()

    def _record(self, how: str, mail_reply: str, reply: Reply | None = None, key: bytes = b"",
                content: bytes = b"") -> None:
        receiver, wire = self.receiver, self.wire
        number = self.ledger.record(self._pipelined, self._across)
        if receiver.logs:
            self.ledger.log.append(Transaction(
                number=number, time=time.time(), client=f"{self.client}:{self.client_port}",
                server=self.host.address, host=self.host.name, connection=self.number, helo=self._helo,
                esmtp=self._esmtp, tls=wire.tls, sender=text(self._sender or b""), parameters=self._parameters,
                recipients=[text(address) for address, _ in self._accepted], answers=self._asked,
                replies=(mail_reply or "250", self._data_reply, reply.text if reply else ""),
                end=how, key=text(key), size=len(content), pipelined=self._pipelined, pipelined_across=self._across,
                content=content[: receiver.log_content].decode("latin-1") if receiver.log_content else None,
            ))
