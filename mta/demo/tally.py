"""What became of every message and recipient, counted from the MTA's events (docs/events.md)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from mta.queue.events import parse

ENDS: Final = ("delivered", "bounced", "expired", "deleted", "quarantined")

Pair = tuple[str, str]  # Message-ID and recipient


@dataclass(slots=True)
class Reason:
    """One reply that held mail up or ended it, and how often."""

    count: int = 0
    example: str = ""  # the domain or path that gave it last


@dataclass(slots=True)
class DomainTally:
    """What became of the mail of one domain."""

    accepted: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    deferrals: int = 0
    ages_s: list[float] = field(default_factory=list)  # of the delivered ones, from acceptance to delivery


class Tally:
    """All counts. Amounts are recipients, and of the campaign unless they say notices, which the MTA made itself."""

    def __init__(self) -> None:
        self.accepted: set[Pair] = set()
        self.ends: dict[Pair, str] = {}
        self.notices: set[Pair] = set()
        self.notice_ends: dict[Pair, str] = {}
        self.ended_twice: set[Pair] = set()
        self.unheard: set[Pair] = set()  # an end without an acceptance
        self.maybe_duplicates: set[Pair] = set()
        self.counts: Counter[str] = Counter()  # ends of the campaign, by kind of event
        self.deferrals = 0
        self.tls = 0  # delivered with TLS
        self.domains: dict[str, DomainTally] = {}
        self.waits: dict[str, Reason] = {}  # by reply, of deferred recipients
        self.pauses: dict[str, Reason] = {}  # by reply, of suspended paths
        self.failures: dict[str, Reason] = {}  # by reply, of what bounced
        self.last_wait = ""
        self._messages: dict[str, tuple[str, bool]] = {}  # by id: Message-ID, and whether it is a notice

    def add(self, line: bytes) -> None:
        """Count one line of an event file."""
        event: dict[str, Any] = parse(line)
        kind = event["event"]
        if kind == "received":
            self._received(event)
        elif kind == "suspended":
            _count(self.pauses, event["text"], event["path"].removeprefix("?"), 1)
        elif kind == "deferred":
            self._deferred(event)
        elif kind in ENDS:
            self._ended(kind, event)

    @property
    def ended(self) -> int:
        """Recipients of the campaign that have an end."""
        return len(self.ends)

    @property
    def open(self) -> int:
        """Recipients without an end, notices included."""
        return len(self.accepted) + len(self.notices) - len(self.ends) - len(self.notice_ends)

    def _received(self, event: dict[str, Any]) -> None:
        notice = event["origin"] == "dsn"
        self._messages[event["message"]] = (event["message_id"], notice)
        for recipient in event["recipients"]:
            (self.notices if notice else self.accepted).add((event["message_id"], recipient))
            if not notice:
                self._domain(recipient).accepted += 1

    def _deferred(self, event: dict[str, Any]) -> None:
        recipients = event["recipients"]
        message_id, notice = self._messages.get(event["message"], ("", False))
        if event["maybe_duplicate"] or event["failure"] == "unknown":
            self.maybe_duplicates.update((message_id, recipient) for recipient in recipients)
        if notice:
            return
        self.deferrals += len(recipients)
        self.last_wait = reply_of(event)
        _count(self.waits, self.last_wait, event["queue"], len(recipients))
        for recipient in recipients:
            self._domain(recipient).deferrals += 1

    def _ended(self, kind: str, event: dict[str, Any]) -> None:
        message_id, notice = self._messages.get(event["message"], ("", False))
        ends = self.notice_ends if notice else self.ends
        for recipient in event["recipients"]:
            pair = (message_id, recipient)
            if pair in ends:
                self.ended_twice.add(pair)
                continue
            if pair not in (self.notices if notice else self.accepted):
                self.unheard.add(pair)
            ends[pair] = kind
            if event.get("maybe_duplicate"):
                self.maybe_duplicates.add(pair)
            if notice:
                continue
            self.counts[kind] += 1
            domain = self._domain(recipient)
            domain.ends[kind] += 1
            if kind == "delivered":
                domain.ages_s.append(event["age_s"])
                self.tls += bool(event["tls"])
            elif kind == "bounced":
                _count(self.failures, reply_of(event), event["queue"], 1)
            elif kind == "expired":
                _count(self.failures, f"too old; last: {event['last_reply']}", event["queue"], 1)

    def _domain(self, recipient: str) -> DomainTally:
        name = recipient.rpartition("@")[2]
        found = self.domains.get(name)
        if found is None:
            found = self.domains[name] = DomainTally()
        return found


def reply_of(event: dict[str, Any]) -> str:
    """The reply of an attempt on one line: code, enhanced code, text."""
    return " ".join(filter(None, (str(event["code"] or ""), event["enhanced"], event["text"])))


def most(reasons: dict[str, Reason], limit: int) -> list[tuple[str, Reason]]:
    """The most frequent reasons."""
    return sorted(reasons.items(), key=lambda item: (-item[1].count, item[0]))[:limit]


def _count(reasons: dict[str, Reason], text: str, example: str, count: int) -> None:
    found = reasons.get(text)
    if found is None:
        found = reasons[text] = Reason()
    found.count += count
    found.example = example
