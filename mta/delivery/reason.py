"""One reason for which mail does not move, as a record. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

MEANING: Final = {
    "order": "held by an order",
    "shutdown": "the MTA stops",
    "routing": "the route is looked up",
    "suspension": "suspended by a rule or an order",
    "dns": "no route",
    "pool": "no such pool",
    "source": "the source is gone",
    "site": "the site failed",
    "in-flight": "being delivered",
    "retry": "retry schedule",
    "held": "held as the sender wishes",
    "disk": "the spool's disk",
    "table": "the table of limits",
    "memory": "room in memory",
    "loading": "being read",
    "tenant-rate": "rate of the tenant",
    "tenant-concurrency": "limit of the tenant",
    "adaptation": "rate that the receiver takes",
    "rate": "rate",
    "connection-rate": "rate of connections",
    "sockets": "sockets of the machine",
    "descriptors": "descriptors of a worker",
    "openings": "many connections being opened",
    "opening": "a connection being opened",
    "refusals": "wait after a refused connection",
    "total": "connections in all",
    "limit": "limit of connections",
    "learned-limit": "connections that the receiver takes",
    "turn": "others' turn: the receiver's speed",
    "reroute": "another pool by an order, which holds up nothing",
}
KINDS: Final = tuple(MEANING)


@dataclass(slots=True)
class Reason:
    """What holds mail now. Times are microseconds since the epoch; 0: not known, or none."""

    kind: str  # one of KINDS
    text: str  # in words, without since and until
    since_us: int = 0
    until_us: int = 0
    remedy: str = ""  # what would change it: an option, a command
    numbers: dict[str, float] = field(default_factory=dict)

    def brief(self, now_us: int) -> str:
        """In one line."""
        if self.kind not in STANDSTILL or self.until_us <= now_us:
            return self.text
        subject, _, why = self.text.partition(": ")
        wait = f"for another {_rounded((self.until_us - now_us) // 1_000_000)}"
        return f"{subject} {wait}: {why}" if why else f"{subject} {wait}"


def _rounded(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"


STANDSTILL: Final = frozenset(("suspension", "dns", "pool", "source", "site"))


def merge(reasons: list[Reason], more: list[Reason], join: Callable[[int, int], int] = min) -> list[Reason]:
    """The reasons of several workers, each once: since the first of them saw it, until the first may go on."""
    known = {(one.kind, one.text): one for one in reasons}
    for one in more:
        same = known.setdefault((one.kind, one.text), one)
        if same is not one:
            same.since_us = join(same.since_us, one.since_us) if same.since_us and one.since_us else same.since_us
            same.until_us = join(same.until_us, one.until_us) if same.until_us and one.until_us else same.until_us
    return list(known.values())
