"""Repairs one shard: a new index is made beside the old one, and takes its place when all else is durable.

The order is what makes a kill harmless. First everything is found out, in a new index that nobody uses yet. Then what
is damaged is copied to quarantine. Then come frames at the end of the journal: contents that are copied out of damaged
segments, removals and events. They are a part of what a later repair finds. Then event files, at their end. Then the
new index is renamed to its place; only what is of no use from then on is taken away after that.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from mta.queue.checkpoint import write_checkpoint
from mta.queue.effects import Effects
from mta.queue.encoding import Position, ShardState
from mta.queue.fileops import FileOps
from mta.queue.ids import SHARD_BITS
from mta.queue.journal import PAGE, Journal, Segment, is_spare, segment_numbers, segment_path
from mta.queue.records import BodyRef
from mta.queue.repair.books import Books
from mta.queue.repair.eventfiles import EventFiles
from mta.queue.repair.quarantine import Quarantine
from mta.queue.repair.rebuild import NewIndex, Rebuild
from mta.queue.repair.salvage import Remains
from mta.queue.repair.settle import Settled, Settler, read_content
from mta.queue.shard import VERSION, boot_id
from mta.queue.transaction import Encoded, Move, Transaction, encode, encode_events, encode_moves
from mta.queue.verify.problems import Findings

_MAP_SIZE: Final = 1 << 36  # address space alone; the next start sets its own
_FRAME_BYTES: Final = 8_000_000
_FRAME_TRANSACTIONS: Final = 1000
_SEGMENT_SIZE: Final = 16_000_000  # when there is none to go by
_NAMES_FOR_INDEX: Final = ("segment", "frame", "content", "index", "record", "counts", "state", "inflight",
                           "event file", "lost")
"""Kinds of problems for which a shard gets a new index."""


class ShardRepair:
    """The repair of one shard, which the caller has locked."""

    def __init__(self, directory: Path, findings: Findings, quarantine: Quarantine, files: FileOps, time_us: int, *,
                 complete: bool) -> None:
        """`findings` is what the checker found; `complete` as for that."""
        self._directory = directory
        self._journal = directory / "journal"
        self._data = directory / "queue.mdb" / "data.mdb"
        self._findings = findings
        self._quarantine = quarantine
        self._files = files
        self._time_us = time_us
        self._complete = complete

    def run(self) -> None:
        """Do it. Raises OSError and lmdb.Error; then it can be begun again."""
        if self._findings.has(*_NAMES_FOR_INDEX):
            with self._workplace() as place, contextlib.closing(Remains(self._data)) as remains:
                self._renew(place, remains)
        if self._findings.has("version"):
            self._write_version()

    @contextlib.contextmanager
    def _workplace(self) -> Iterator[Path]:
        """Where the new index is made."""
        if self._quarantine.dry:
            with tempfile.TemporaryDirectory() as name:
                yield Path(name)
            return
        place = self._directory / "repair"
        for path in (self._journal, self._data.parent, self._directory / "events", place):
            self._files.mkdir(path)
        for path in place.iterdir():
            self._files.unlink(path)
        yield place
        for path in place.iterdir():
            self._files.unlink(path)
        place.rmdir()

    # -- finding out ---------------------------------------------------------------------------------------------------

    def _renew(self, place: Path, remains: Remains) -> None:
        with contextlib.closing(NewIndex(place, _MAP_SIZE, self._files)) as index:
            rebuild = Rebuild(index, remains, self._journal, self._findings)
            rebuild.run()
            events = EventFiles(self._directory / "events", remains.state, rebuild.frames, self._quarantine,
                                self._files)
            books = Books(events, self._journal, index, self._aside(), self._complete)
            books.run()
            settler = Settler(rebuild, self._journal, self._quarantine, self._files, self._time_us)
            settler.accounts(books.accounts)
            settled = settler.contents(self._suspects(rebuild), set(self._findings.damage))
            state = self._state(remains.state, rebuild, books.last_id)
            self._explain(rebuild, state, settled)
            self._keep_damage()
            events.keep()
            if self._data.exists():
                self._quarantine.link(self._data, "the index is made anew")
            if self._quarantine.dry:
                return
            self._write(index, rebuild, events, settled, state)
        self._files.rename(place / "data.mdb", self._data)
        self._files.fsync_directory(self._data.parent)
        events.drop()
        if self._findings.has("inflight"):
            self._quarantine.move(self._directory / "inflight", "some of its marks make no sense")

    def _aside(self) -> Findings:
        return Findings(replace(self._findings.summary), self._findings.progress)

    def _suspects(self, rebuild: Rebuild) -> set[int] | None:
        """Messages of which nobody has looked at the content yet, or found it damaged; None: all."""
        if self._findings.contents is None:
            return None
        return self._findings.contents | rebuild.replayed | rebuild.doubtful

    def _state(self, old: ShardState | None, rebuild: Rebuild, last_id: int) -> ShardState:
        """The state of the new index, but for the places in journal and event files."""
        state = replace(old or ShardState())
        state.last_id = max(state.last_id, rebuild.last_id, last_id)
        unclean = not state.clean and state.boot_id != boot_id()
        if old is None or unclean or rebuild.unsure or rebuild.replayed or self._findings.has("inflight"):
            # Rather too many warnings than a silent duplicate.
            state.dup_before_us = max(state.dup_before_us, self._time_us, state.last_id >> SHARD_BITS)
        state.clean = True
        return state

    def _explain(self, rebuild: Rebuild, state: ShardState, settled: Settled) -> None:
        """Tell what the new index is made of."""
        now = rebuild.index.state
        replayed = f", {len(rebuild.replayed)} messages of it from the journal alone" if rebuild.replayed else ""
        self._quarantine.note(self._data, f"the index is made anew: {now.messages} messages, {now.deliveries} "
                              f"deliveries to {now.recipients} recipients{replayed}")
        if state.dup_before_us >= self._time_us:
            self._quarantine.note(self._data, "what is due by now is tried as a possible duplicate: whether it was "
                                  "delivered already is not known for sure")
        if settled.moves:
            self._quarantine.note(self._journal, f"{len(settled.moves)} contents are copied out of damaged segments")

    def _keep_damage(self) -> None:
        """Have the damaged parts of the journal in quarantine: their segments will be used again."""
        for number, ranges in sorted(self._findings.damage.items()):
            path = segment_path(self._journal, number)
            if path.exists():
                for start, end in sorted(ranges):
                    self._quarantine.copy(path, start, end or path.stat().st_size, "this part of the journal is "
                                          "damaged, and nothing in it that is not named elsewhere can be used")

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write(self, index: NewIndex, rebuild: Rebuild, events: EventFiles, settled: Settled,
               state: ShardState) -> None:
        """Append to the journal and to the event files, and finish the new index."""
        lines = b"".join(encoded.events for encoded in settled.transactions)
        before = self._end(rebuild)
        journal = Journal(self._journal, self._segment_size(), self._files, before)
        try:
            for group in self._groups(settled):
                operations = [encoded.operations for encoded in group]
                operations.append(encode_events(b"".join(encoded.events for encoded in group)))
                blobs = [content for encoded in group for content in encoded.blobs]
                written = journal.append(b"".join(operations), blobs, self._time_us)
                effects = Effects()
                places = iter(written.blobs)
                for encoded in group:
                    encoded.apply(effects, places)
                rebuild.take(effects)
        finally:
            journal.close()
        mark = events.append(lines, self._time_us, before, journal.end)
        final = replace(index.state, last_id=state.last_id, clean=True, boot_id=state.boot_id,
                        dup_before_us=state.dup_before_us)
        final.move_to(journal.end, mark)
        write_checkpoint(index, Effects(), final)
        index.sync()

    def _groups(self, settled: Settled) -> Iterator[list[Encoded]]:
        """What goes into each frame; there is at least one, so that the index has a place to go on from."""
        group: list[Encoded] = [encode(Transaction())]
        size = 0
        for encoded in self._encoded(settled):
            if size + encoded.size > _FRAME_BYTES or len(group) > _FRAME_TRANSACTIONS:
                yield group
                group, size = [], 0
            group.append(encoded)
            size += encoded.size
        yield group

    def _encoded(self, settled: Settled) -> Iterable[Encoded]:
        yield from settled.transactions
        for message_id, place in settled.moves:
            content, whole = read_content(self._journal, BodyRef(*place), self._files)
            if whole:
                yield encode_moves([Move(message_id, place, content)])

    def _end(self, rebuild: Rebuild) -> Position:
        """Behind which the journal goes on: all files that may have something in them stay as they are."""
        numbers = segment_numbers(self._journal)
        while numbers and is_spare(self._journal, numbers[-1], self._files):
            numbers.pop()
        if not numbers:
            return Position(0, 0)
        last = numbers[-1]
        end = Position(last, PAGE)
        if rebuild.end.segment == last:
            return rebuild.end
        for frame, _ in rebuild.frames(Position(last, 0)):
            end = frame.end
        return end

    def _segment_size(self) -> int:
        sizes = [segment_path(self._journal, number).stat().st_size for number in segment_numbers(self._journal)]
        return max(sizes, default=_SEGMENT_SIZE)

    def _write_version(self) -> None:
        """If what is there is of the format that this program knows."""
        numbers = segment_numbers(self._journal) if self._journal.is_dir() else []
        begun = [number for number in numbers if not is_spare(self._journal, number, self._files)]
        if begun and not any(map(self._is_readable, begun)):
            return
        self._quarantine.note(self._directory / "version", f"is written: {VERSION}, as the segments say")
        if not self._quarantine.dry:
            self._files.create(self._directory / "version", b"%d\n" % VERSION)

    def _is_readable(self, number: int) -> bool:
        segment = Segment.open(self._journal, number, self._files)
        if segment is not None:
            segment.close()
        return segment is not None
