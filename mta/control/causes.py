"""Why mail waits, over many deliveries: causes with counts, and how pages of workers become one list.

A *page* (`Page`) is what a worker says about a bounded stretch of its queue: of each delivery a line of JSON, or of all
of them the causes with their numbers. Whoever asks goes on from `after`, so nobody keeps more than a page, but for the
causes: of those `MOST` are told apart, and what comes beyond is counted by kind alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from mta.control.protocol import Missing
from mta.delivery.reason import Reason
from mta.queue.scheduler import domain_of

MOST: Final = 5000
OTHERS: Final = "other causes of this kind, not told apart"
_CHANGES: Final = re.compile(
    r"https?://\S+|<[^<>\s]*@[^<>\s]*>|\S*@\S+|\b\d{1,3}(?:\.\d{1,3}){3}\b|\b(?=\w*\d)[\w-]{8,}\b")


@dataclass(slots=True)
class CauseRow:
    """One cause, and what waits for it."""

    kind: str  # one of `mta.delivery.reason.KINDS`
    text: str
    deliveries: int = 0
    recipients: int = 0
    queues: int = 0  # one that several shards have counts in each
    since_us: int = 0  # the earliest
    until_us: int = 0  # the next
    remedy: str = ""
    example: str = ""  # a delivery: ID/INDEX; or a queue
    example_queue: str = ""
    first_queue: str = ""  # that counted here, and the last one: a queue may go on on the next page
    last_queue: str = ""


@dataclass(slots=True)
class Page:
    """What a worker says of a stretch of its queue."""

    after: str = ""  # where it goes on; "" behind the last one
    deliveries: int = 0
    lines: bytes = b""  # of JSON, each as `mta.control.explanation.Explained`
    causes: list[CauseRow] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


class Causes:
    """Causes with their numbers, as they come."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], CauseRow] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> list[CauseRow]:
        """All of them, those that hold most mail first."""
        return sorted(self._rows.values(), key=lambda row: (-row.deliveries, row.kind, row.text))

    def count(self, reason: Reason, queue: str, example: str, recipients: int, deliveries: int = 1) -> None:
        """One more delivery, or several, of `queue`. The queues have to come one after the other."""
        row = self._row(reason.kind, general(reason))
        row.deliveries += deliveries
        row.recipients += recipients
        if row.last_queue != queue:
            row.queues += 1
            row.last_queue = queue
            row.first_queue = row.first_queue or queue
        row.since_us = _first(row.since_us, reason.since_us)
        row.until_us = _first(row.until_us, reason.until_us)
        if not row.example:
            row.example, row.example_queue, row.remedy = example, queue, reason.remedy
            if reason.kind == "retry" and reason.numbers:  # one message is what the reason itself names
                row.remedy = (f"`mta retry --domain {domain_of(queue)}` tries it now; `retry` in shaping sets the "
                              "schedule")

    def add(self, rows: Iterable[CauseRow]) -> None:
        """What the next page says."""
        for one in rows:
            row = self._row(one.kind, one.text)
            row.deliveries += one.deliveries
            row.recipients += one.recipients
            row.queues += one.queues - (one.first_queue == row.last_queue)
            row.since_us = _first(row.since_us, one.since_us)
            row.until_us = _first(row.until_us, one.until_us)
            row.last_queue = one.last_queue
            if not row.example:
                row.example, row.example_queue, row.remedy = one.example, one.example_queue, one.remedy

    def _row(self, kind: str, text: str) -> CauseRow:
        found = self._rows.get((kind, text))
        if found is None:
            if len(self._rows) >= MOST:
                text = OTHERS
            found = self._rows.setdefault((kind, text), CauseRow(kind, text))
        return found


def general(reason: Reason) -> str:
    """The cause without what is about one delivery alone: of a reply the parts that differ each time."""
    if reason.kind == "in-flight":
        return "being delivered"
    if reason.kind == "turn":
        return _SERVED.sub(r"its turn comes, among others of \1", reason.text)
    if reason.kind != "retry":
        return _SECONDS.sub("", reason.text)
    _, colon, rest = reason.text.partition(" was deferred")
    if not colon:
        return reason.text
    reply = rest.partition(": ")[2].rpartition("; attempt ")[0]
    return f"deferred: {_CHANGES.sub('…', reply)[:200]}"


_SERVED: Final = re.compile(r"its turn comes: \d+ connections of (\S+) serve .*")
_SECONDS: Final = re.compile(r", the next message goes in \d+(\.\d+)? s")


def _first(one_us: int, other_us: int) -> int:
    return min(one_us, other_us) if one_us and other_us else one_us or other_us
