"""What `explain` answers over the control sockets (`mta.control.protocol`), and how the workers' parts become one.

A request names its subject: `kind` and `name`. A *subject* of kind `name` is a domain, a site or a path, whatever there
is of that name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from mta.control.protocol import AttemptRow, Missing
from mta.delivery import rule_progress
from mta.delivery.reason import Reason, merge
from mta.queue import idn
from mta.queue.ids import parse_id

KINDS: Final = ("message", "queue", "domain", "path", "provider", "source", "tenant")
SHOWN: Final = 50
_WITH_DOMAINS: Final = {"domain": idn.in_a_labels, "path": idn.path_called, "queue": idn.queue_called}
LIVELIEST: Final = ("active", "ready", "suspended", "paused", "waiting", "idle", "gone")


@dataclass(slots=True)
class Explained:
    """One thing, how it stands and why."""

    what: str  # "delivery", or one of KINDS
    name: str
    state: str  # "active", "ready" (due), "waiting" (not due), "suspended", "paused", "idle" (nothing to do)
    reasons: list[Reason] = field(default_factory=list)
    message: str = ""  # of a delivery
    recipients: list[str] = field(default_factory=list)  # of a delivery
    deliveries: int = 0
    in_flight: int = 0
    connections: int = 0
    next_due_us: int = 0
    arrival_us: int = 0
    expires_us: int = 0
    attempts: int = 0
    history: list[AttemptRow] = field(default_factory=list)  # the last attempts, oldest first
    rules: list[rule_progress.Progress] = field(default_factory=list)  # that count, and have not acted yet


@dataclass(slots=True)
class Explanation:
    """All that there is of what was asked for."""

    rows: list[Explained] = field(default_factory=list)
    more: int = 0  # that are not shown
    missing: list[Missing] = field(default_factory=list)


def subject_of(text: str) -> tuple[str, str]:
    """Kind and name of what a person wrote: `tenant=acme`, or a message, queue, path or domain by its form."""
    kind, equals, name = text.partition("=")
    if equals and kind in KINDS:
        if kind in _WITH_DOMAINS:
            return kind, _WITH_DOMAINS[kind](name)
        return kind, name.lower() if kind in ("message", "provider") else name
    try:
        parse_id(text)
        return "message", text.lower()
    except ValueError:
        pass
    if ">" in text or text.startswith("?"):
        return "path", idn.path_called(text)
    if any(mark in text for mark in "@/^"):
        return "queue", idn.queue_called(text)
    return "name", idn.in_a_labels(text)


def merged(answers: Iterable[Explanation], missing: list[Missing], limit: int = SHOWN) -> Explanation:
    """The parts of all workers as one: a row for each thing, with the reasons of all of them."""
    rows: dict[tuple[str, str, str], Explained] = {}
    more = 0
    for answer in answers:
        more = max(more, answer.more)
        for row in answer.rows:
            key = row.what, row.name, row.message
            known = rows.setdefault(key, row)
            if known is row:
                continue
            if "idle" in (known.state, row.state) and known.state != row.state:
                if known.state == "idle":
                    known.state, known.reasons = row.state, row.reasons
            else:
                known.reasons = merge(known.reasons, row.reasons)
                known.state = min(known.state, row.state, key=LIVELIEST.index)
            known.rules = rule_progress.merge(known.rules, row.rules)
            known.deliveries += row.deliveries
            known.in_flight += row.in_flight
            known.connections += row.connections
            due = [one for one in (known.next_due_us, row.next_due_us) if one]
            known.next_due_us = min(due, default=0)
    found = list(rows.values())
    return Explanation(found[:limit], more + max(len(found) - limit, 0), missing)
