"""The accounts of recipients in a shard that is repaired: who has an end, who is queued, who is neither or both.

The checker's own reading (`mta.queue.verify.events`), whose verdicts are gathered here as what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mta.queue import events
from mta.queue.effects import Effects, Key
from mta.queue.encoding import EventMark, Position, ShardState
from mta.queue.ids import parse_id
from mta.queue.index import Index
from mta.queue.repair.eventfiles import EventFiles
from mta.queue.verify.events import END, QUEUED, RECEIVED, EventCheck, Line
from mta.queue.verify.join import Entry
from mta.queue.verify.problems import Findings
from mta.queue.verify.truth import Truth


@dataclass(slots=True)
class Accounts:
    """Recipients whose account does not come out even."""

    lost: dict[int, list[str]] = field(default_factory=dict)  # message id: neither queued nor ended
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)  # the event `received` of those messages
    ended: dict[Key, Counter[int]] = field(default_factory=dict)  # queued, but ended: hashes of addresses
    unannounced: dict[int, list[str]] = field(default_factory=dict)  # ended, or queued, without `received`
    ends: dict[int, dict[str, Any]] = field(default_factory=dict)  # an end of those, if there is one


class Books(EventCheck):
    """One pass over the event files and the new index."""

    def __init__(self, files: EventFiles, journal: Path, index: Index, findings: Findings, complete: bool) -> None:
        """`findings` is not told anything of use. `complete` as for the checker."""
        last = files.names[-1] if files.names else ""
        state = ShardState(clean=True)
        state.move_to(Position(0, 0), EventMark(Position(0, 0), last, files.length))
        super().__init__(files.directory, journal, Truth(index, state, Effects(), "", set()), findings, complete, None)
        self.accounts = Accounts()
        self.last_id = 0  # the largest one that events or records tell of
        self._event_files = files

    def run(self) -> None:
        """Fill `accounts`. Raises OSError."""
        problems = len(self._findings.problems)
        super().run()
        for problem in self._findings.problems[problems:]:
            path, _, _ = problem.place.rpartition(":")
            if problem.kind == "event file" and Path(path).name in self._event_files.names:
                self._event_files.loses(Path(path).name)
        accounts = self.accounts
        accounts.lost = {number: addresses for number, addresses in accounts.lost.items()
                         if not self._began_in_lossy(number)}
        if any(map(self._event_files.is_lossy, self._event_files.names)):
            accounts.unannounced = {}  # what is missing goes with the files that are set aside

    def _check_copies(self, names: list[str]) -> None:
        """The files are right as they are."""

    def _lines(self, names: list[str]) -> Iterator[Line]:
        total = sum((self._directory / name).stat().st_size for name in names)
        done = 0
        for name in names:
            path = self._directory / name
            self._files.append(path)
            size = self._event_files.size_of(name)
            yield from self._lines_of(path, size, done, total)
            done += size
        for frame, lines in self._event_files.missing():
            yield from self._journal_lines(frame, lines)

    def _judge(self, group: list[Entry]) -> None:
        received, ends, queued = ([entry for entry in group if entry.kind == kind]
                                  for kind in (RECEIVED, END, QUEUED))
        message_id = group[0].first
        self.last_id = max(self.last_id, message_id)
        open_ones = max((len(received) or 1) - len(ends), 0)
        if len(queued) > open_ones:
            for entry in queued[open_ones:]:
                self.accounts.ended.setdefault((message_id, entry.offset), Counter())[entry.second] += 1
        elif len(queued) < open_ones and received:
            event, address = self._event(received[-1])
            self.accounts.facts[message_id] = {**event, "file": self._files[received[-1].file].name}
            self.accounts.lost.setdefault(message_id, []).extend([address] * (open_ones - len(queued)))
        if not received and self._is_covered(message_id):
            if ends:
                self.accounts.ends[message_id], address = self._event(ends[0])
                self.accounts.unannounced.setdefault(message_id, []).append(address)
            else:
                self.accounts.unannounced.setdefault(message_id, [])

    def _event(self, entry: Entry) -> tuple[dict[str, Any], str]:
        """The event that an entry comes from, and the address that it is about."""
        path = self._files[entry.file]
        if path.parent == self._directory:
            with path.open("rb") as file:
                file.seek(entry.offset)
                lines = file.readline()
        else:
            lines = self._event_files.lines_at(Position(int(path.stem), entry.offset))
        for line in lines.splitlines():
            event: dict[str, Any] = events.parse(line)
            if "message" not in event or parse_id(event["message"]) != entry.first:
                continue
            for address in event["recipients"]:
                if hash(address) == entry.second:
                    return event, address
        raise ValueError(f"there is no event of {entry.first} at {path}:{entry.offset} any more")

    def _began_in_lossy(self, message_id: int) -> bool:
        return self._event_files.is_lossy(str(self.accounts.facts[message_id]["file"]))
