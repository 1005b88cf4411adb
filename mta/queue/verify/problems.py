"""What the checker finds: problems by kind, each with its place and with what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

KINDS: Final = {
    "version": "make sure that this is the spool that was meant; `--repair` writes it anew if the segments say that it "
    "is of this version",
    "unreadable": "check the disk and the permissions, then verify again",
    "segment": "bring the file back if there is a copy; `--repair` goes on without it, and mail that was only there is "
    "lost",
    "frame": "`--repair` sets the bytes aside in `quarantine/`; what was accepted or settled in them is lost, unless "
    "the index or the event files know of it",
    "content": "`--repair` takes the message out of the queue with an event `quarantined` and sets aside what is "
    "readable of it",
    "index": "`--repair` makes the index anew from what is readable of it and from the journal, and sets the old one "
    "aside",
    "record": "`--repair` makes the index anew and sets the old one aside; the message comes from the journal",
    "counts": "`--repair` makes the index anew; no mail is concerned",
    "state": "`--repair` makes the index anew",
    "inflight": "`--repair` sets the file aside and counts every delivery that is due as a possible duplicate",
    "event file": "`--repair` sets this event file and the older ones aside; no mail is concerned",
    "lost": "`--repair` queues it again if the journal has it and no removal of it; else it closes the account with an "
    "event `quarantined`, and backups are where to look",
    "end": "please report it: this is a bug, or the event files were edited; nothing can repair it",
    "received": "please report it with the output of `mta sandbox log`: nothing can repair it",
}
"""Every kind of problem, and what to do about it."""

SHOWN: Final = 1000
"""Problems of one kind in one shard that are kept; the others are counted."""

Progress = Callable[[str, int, int], None]
"""Is told now and then what is being done, and how much of it: (what, done, total)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be."""

    kind: str  # of KINDS
    place: str  # file, or file:offset, or file and key of the record
    text: str

    @property
    def advice(self) -> str:
        """What to do."""
        return KINDS[self.kind]

    def __str__(self) -> str:
        return f"{self.place}: {self.text}; {self.advice}"


@dataclass(slots=True)
class Summary:
    """What was looked at in one shard, for the operator."""

    shard: str
    messages: int = 0
    deliveries: int = 0
    recipients: int = 0
    segments: int = 0
    frames: int = 0
    contents: int = 0  # that were read and agree with their checksum
    content_bytes: int = 0
    events: int = 0


@dataclass(slots=True)
class Findings:
    """Gathers the problems of one shard, each once."""

    summary: Summary
    progress: Progress
    problems: list[Problem] = field(default_factory=list)
    damage: dict[int, set[tuple[int, int]]] = field(default_factory=dict)  # segment: ranges; (0, 0): the header
    doubtful: set[int] = field(default_factory=set)  # messages whose record is not to be believed
    contents: set[int] | None = None  # messages with a damaged content; None when that was not looked at
    more: Counter[str] = field(default_factory=Counter)  # by kind: those above SHOWN
    _known: set[tuple[str, str, str]] = field(default_factory=set)
    _counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, place: str, text: str) -> None:
        """There is a problem."""
        if (kind, place, text) in self._known:
            return
        if self._counts[kind] >= SHOWN:
            self.more[kind] += 1
            return
        self._counts[kind] += 1
        self._known.add((kind, place, text))
        self.problems.append(Problem(kind, place, text))

    def damaged(self, segment: int, start: int = 0, end: int = 0) -> None:
        """These bytes of a segment are of no use; without them its header is not."""
        self.damage.setdefault(segment, set()).add((start, end))

    def has(self, *kinds: str) -> bool:
        """Whether there is a problem of one of these kinds."""
        return any(self._counts[kind] for kind in kinds)

    def has_place(self, kind: str, prefix: str) -> bool:
        """Whether there is a problem of this kind at a place that begins so."""
        return any(known == kind and place.startswith(prefix) for known, place, _ in self._known)

    def result(self) -> list[Problem]:
        """All of them, with one line for those of a kind that were only counted."""
        rest = [Problem(kind, self.summary.shard, f"{count:,} more of the kind `{kind}`")
                for kind, count in self.more.items()]
        return [*self.problems, *rest]
