"""Checks the event files: whole, in step with the journal, and one end for every recipient (I2).

What an operator has in the end is the event files up to the checkpoint and, behind it, the lines in the journal; that
is what is checked, as the next start will make it so. What the files have beyond the checkpoint are copies of those
lines, or remains of a crash that the next start cuts off.

Every recipient of a `received` event has to be in the queue, or to have exactly one end. More than one `delivered` is
a repetition that a crash allows, if the later ones say `maybe_duplicate`. Files are removed after a time, so that
ends may stand alone whose `received` is gone: but only of messages that are older than the first that is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mta.queue import events
from mta.queue.encoding import EventMark, Position
from mta.queue.eventlog import event_files
from mta.queue.ids import SHARD_BITS, format_id, parse_id
from mta.queue.journal import Frame, segment_path
from mta.queue.verify.join import Entry, Join
from mta.queue.verify.journal import event_lines
from mta.queue.verify.problems import Findings
from mta.queue.verify.receipts import Receipts
from mta.queue.verify.truth import Truth

ENDS: Final = ("delivered", "bounced", "expired", "deleted", "quarantined")

RECEIVED: Final = 0  # kinds of entries
END: Final = 1
QUEUED: Final = 2
_MAYBE_DUPLICATE: Final = 1
_DELIVERED: Final = 2
_BEFORE_US: Final = 10_000_000  # messages get their ids in about the order in which they are committed
_BYTES_PER_EVENT: Final = 300
_TOLD_EVERY: Final = 20_000


@dataclass(slots=True)
class Line:
    """An event line and where it lies."""

    file: int  # number of the place in EventCheck.files
    offset: int
    event: dict[str, Any]


class EventCheck:
    """The events of one shard."""

    def __init__(self, directory: Path, journal: Path, truth: Truth, findings: Findings, complete: bool,
                 receipts: Receipts | None) -> None:
        """`complete`: nothing was ever removed from the event files. `receipts` is told what events say."""
        self._directory = directory
        self._journal = journal
        self._truth = truth
        self._findings = findings
        self._complete = complete
        self._receipts = receipts
        self._mark: EventMark = truth.state.events
        self._files: list[Path] = []  # all that lines were read from
        self._first_received: int | None = None

    def run(self) -> None:
        """Check all of it. Raises OSError."""
        names = event_files(self._directory) if self._directory.is_dir() else []
        if not self._check_mark(names):
            return  # without the file that was current, there are ends that nobody knows of
        self._check_copies(names)
        expected = sum((self._directory / name).stat().st_size for name in names) // _BYTES_PER_EVENT
        with Join(expected + self._truth.state.recipients) as join:
            for line in self._lines(names):
                self._enter(join, line)
            for held in self._truth.messages():
                for delivery in held.deliveries:
                    if self._receipts is not None and self._truth.may_have_been_delivered(delivery):
                        self._receipts.queued(delivery)
                    for recipient in delivery.recipients:
                        join.add(held.message.id, hash(recipient.address), QUEUED, 0, delivery.index,
                                 _MAYBE_DUPLICATE if delivery.maybe_duplicate else 0)
            for group in join.groups():
                self._judge(group)

    # -- the files -----------------------------------------------------------------------------------------------------

    def _check_mark(self, names: list[str]) -> bool:
        mark = self._mark
        if not mark.file:
            return True
        path = self._directory / mark.file
        if mark.file not in names:
            self._findings.add("event file", str(path), f"the event file is missing, the index says that it has "
                               f"{mark.length} bytes; if somebody took it away on purpose all is well")
            return False
        if (size := path.stat().st_size) < mark.length:
            self._findings.add("event file", f"{path}:{size}", f"the event file ends here, the index says that it has "
                               f"{mark.length} bytes")
        return True

    def _check_copies(self, names: list[str]) -> None:
        """What the files have beyond the checkpoint must be a beginning of what the journal has there."""
        mark = self._mark
        behind = [(name, mark.length if name == mark.file else 0) for name in names if name >= mark.file]
        told = (line for _, lines in event_lines(self._journal, mark.journal, self._findings)
                for line in lines.splitlines(keepends=True))
        for name, start in behind:
            with (self._directory / name).open("rb") as file:
                file.seek(start)
                for line in file:
                    if line == next(told, b""):
                        continue
                    if _is_event(line):
                        self._findings.add("event file", f"{self._directory / name}:{file.tell() - len(line)}",
                                           "the event is not in the journal: its end was lost, or the files do not "
                                           "belong together")
                    return  # cut off by the next start

    def _lines(self, names: list[str]) -> Iterator[Line]:
        mark = self._mark
        total = sum((self._directory / name).stat().st_size for name in names)
        done = 0
        for name in names:
            if name > mark.file:
                break
            path = self._directory / name
            self._files.append(path)
            limit = mark.length if name == mark.file else path.stat().st_size
            yield from self._lines_of(path, limit, done, total)
            done += limit
        for frame, lines in event_lines(self._journal, mark.journal, self._findings):
            yield from self._journal_lines(frame, lines)

    def _lines_of(self, path: Path, limit: int, done: int, total: int) -> Iterator[Line]:
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if offset >= limit:
                    return
                if self._findings.summary.events % _TOLD_EVERY == 0:
                    self._findings.progress("events", done + offset, total)
                try:
                    if not line.endswith(b"\n") or offset + len(line) > limit:
                        raise ValueError("the line is cut off")
                    event = events.parse(line)
                except ValueError as error:
                    self._findings.add("event file", f"{path}:{offset}", f"this is no event: {error}")
                else:
                    yield Line(len(self._files) - 1, offset, event)
                offset += len(line)

    def _journal_lines(self, frame: Frame, lines: bytes) -> Iterator[Line]:
        path = segment_path(self._journal, frame.start.segment)
        if not self._files or self._files[-1] != path:
            self._files.append(path)
        for line in lines.splitlines():
            try:
                event = events.parse(line)
            except ValueError as error:
                self._findings.add("frame", f"{path}:{frame.start.offset}", f"an event in the frame is none: {error}")
            else:
                yield Line(len(self._files) - 1, frame.start.offset, event)

    # -- the accounts --------------------------------------------------------------------------------------------------

    def _enter(self, join: Join, line: Line) -> None:
        self._findings.summary.events += 1
        event = line.event
        kind = event["event"]
        try:
            if self._receipts is not None:
                self._receipts.event(self._receipts.file(str(self._files[line.file])), line.offset, event)
            if kind != "received" and kind not in ENDS:
                return
            message_id = parse_id(event["message"])
            recipients = list(map(str, event["recipients"]))
        except (ValueError, LookupError, TypeError) as error:
            self._findings.add("event file", f"{self._files[line.file]}:{line.offset}",
                               f"this is no whole event: {error!r}")
            return
        flags = (_MAYBE_DUPLICATE if event.get("maybe_duplicate") else 0) | (_DELIVERED if kind == "delivered" else 0)
        if kind == "received" and self._first_received is None:
            self._first_received = message_id
        for recipient in recipients:
            join.add(message_id, hash(recipient), RECEIVED if kind == "received" else END, line.file, line.offset,
                     flags)

    def _judge(self, group: list[Entry]) -> None:
        """Settle the account of one recipient of one message."""
        received, ends, queued = ([entry for entry in group if entry.kind == kind]
                                  for kind in (RECEIVED, END, QUEUED))
        more = ends[len(received) or 1:]
        for end in more:
            if not (end.flags & _DELIVERED and end.flags & _MAYBE_DUPLICATE):
                self._report("end", end, "has ended before", ends)
        if not received:
            if self._is_covered(group[0].first):
                entry = (ends or queued)[0]
                self._report("event file", entry, "has no event `received`", ends)
            return
        open_ones = len(received) - len(ends)
        if len(queued) < open_ones:
            self._report("lost", received[-1], "was accepted, is not in the queue and has no end", ends)
        elif len(queued) > max(open_ones, 0) and not any(entry.flags & _MAYBE_DUPLICATE for entry in queued):
            self._report("end", (ends or received)[-1], "has ended and is in the queue", ends)

    def _is_covered(self, message_id: int) -> bool:
        """Whether the event files reach back to where this message was accepted."""
        if self._complete:
            return True
        first = self._first_received
        return first is not None and message_id >> SHARD_BITS > (first >> SHARD_BITS) + _BEFORE_US

    def _report(self, kind: str, entry: Entry, what: str, ends: list[Entry]) -> None:
        name = f"message {format_id(entry.first)}"
        if entry.kind == QUEUED:
            self._findings.add(kind, f"{self._truth.where} messages {format_id(entry.first)}/{entry.offset}",
                               f"{name} {what}")
            return
        others = "; ".join(self._place(end) for end in ends if end != entry)
        self._findings.add(kind, self._place(entry), f"{name} to {self._recipient(entry)} {what}"
                           f"{f' (other ends: {others})' if others else ''}")

    def _place(self, entry: Entry) -> str:
        return f"{self._files[entry.file]}:{entry.offset}"

    def _recipient(self, entry: Entry) -> str:
        """The address that an entry is about: entries have a hash of it alone."""
        path = self._files[entry.file]
        if path.parent == self._directory:
            with path.open("rb") as file:
                file.seek(entry.offset)
                lines = file.readline()
        else:
            start = Position(int(path.stem), entry.offset)
            lines = next((lines for _, lines in event_lines(self._journal, start, self._findings)), b"")
        for line in lines.splitlines():
            recipients = events.parse(line).get("recipients")
            for recipient in recipients if isinstance(recipients, list) else ():
                if hash(recipient) == entry.second:
                    return str(recipient)
        return "?"


def _is_event(line: bytes) -> bool:
    try:
        events.parse(line)
    except ValueError:
        return False
    return line.endswith(b"\n")
