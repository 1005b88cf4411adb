"""What a disk may hold after a loss of power: the model behind tests/faults/store_power.py.

A `Disk` is fed with the calls that diskshim.c recorded. It knows for each whether a sync has covered it. What is
covered is there after the loss; of the rest any part may be, in any order:

- of a write each sector by itself, so that later writes may be there and earlier ones not, and all may be torn;
- a change of a file's size (by a truncation, an allocation, a write beyond the end) or not;
- a new, renamed or removed name or not, until its directory was synced, each by itself.

A sync of a file that fails is taken at its worst: what it was to cover stays in doubt for ever, later syncs do not help
(Linux drops the error and the dirty state of the pages), until it is written once more. Names are metadata: a file
system that could not write those takes nothing more, so a later sync of the directory does cover them.

What was written through a memory map is not recorded: `materialize` leaves such files to the caller.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.diskshim import Op, Record

SECTOR: Final = 512
PAGE: Final = 4096
_FEW: Final = 4  # changes in doubt of which every subset is tried


@dataclass(eq=False, slots=True)
class File:
    """A file, with all that was done to it since what it is known to have."""

    content: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)
    is_mapped: bool = False  # writable, so what is in it is not known
    mapped: bytes | None = None  # its content when it was last synced

    def settle(self) -> None:
        """Forget the history of what is certain."""
        while self.changes and self.changes[0].durable:
            self.changes.pop(0).apply(self.content, _whole)


@dataclass(eq=False, slots=True)
class Change:
    """One call that changed a file's content or size."""

    offset: int = 0
    data: bytes = b""
    size: int | None = None  # for a truncation (or an allocation: `grows`) to this size
    grows: bool = False
    number: int = 0  # in the order of all calls
    durable: bool = False
    lost: bool = False  # a sync of it failed: no later one makes it certain

    def apply(self, content: bytearray, keep: Keep) -> None:
        """Do it to `content`, as far as `keep` lets it."""
        if self.size is not None:
            if keep(self, 0):
                if self.size < len(content) and not self.grows:
                    del content[self.size:]
                content.extend(bytes(self.size - len(content)))
            return
        end = self.offset + len(self.data)
        start = self.offset
        while start < end:
            stop = min(end, start - start % SECTOR + SECTOR)
            if keep(self, start // SECTOR):
                if stop > len(content):
                    content.extend(bytes(stop - len(content)))
                content[start:stop] = self.data[start - self.offset:stop - self.offset]
            start = stop


Keep = Callable[[Change, int], bool]
"""Whether a sector of a change has reached the disk."""


def _whole(change: Change, sector: int) -> bool:
    return True


@dataclass(eq=False, slots=True)
class Naming:
    """One call that changed names in a directory: what each is from then on (None: nothing)."""

    names: list[tuple[str, File | Directory | None]]
    number: int = 0
    durable: bool = False


@dataclass(eq=False, slots=True)
class Directory:
    """A directory, with all that was done to its names since what it is known to have."""

    names: dict[str, File | Directory] = field(default_factory=dict)
    now: dict[str, File | Directory] = field(default_factory=dict)
    changes: list[Naming] = field(default_factory=list)

    def change(self, number: int, *names: tuple[str, File | Directory | None]) -> None:
        """Names are bound and unbound by one call."""
        self.changes.append(Naming(list(names), number))
        _bind(self.now, self.changes[-1])

    def settle(self) -> None:
        """Forget the history of what is certain."""
        while self.changes and self.changes[0].durable:
            _bind(self.names, self.changes.pop(0))


def _bind(names: dict[str, File | Directory], change: Naming) -> None:
    for name, node in change.names:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """The files below one directory."""

    def __init__(self, root: Path, *, load: bool = False) -> None:
        """Empty, or what is in `root` now (`load`), all of it certain."""
        self._root = str(root)
        self.top = Directory()
        self._open: dict[int, File | Directory] = {}
        self._covered: dict[int, list[Change] | list[Naming]] = {}
        self._number = 0
        if load:
            self._load(root, self.top)

    def _load(self, path: Path, directory: Directory) -> None:
        for entry in path.iterdir():
            node: File | Directory
            if entry.is_dir():
                node = Directory()
                self._load(entry, node)
            else:
                node = File(bytearray(entry.read_bytes()))
            directory.names[entry.name] = directory.now[entry.name] = node

    # -- what happened -------------------------------------------------------------------------------------------------

    def take(self, record: Record) -> bool:
        """Go one call further. Whether that changed what is possible."""
        op = record.op
        self._number += 1
        if op is Op.OPEN:
            return self._take_open(record)
        if op is Op.CLOSE:
            self._open.pop(record.fd, None)
            return False
        if op in (Op.RENAME, Op.UNLINK, Op.MKDIR):
            return self._take_naming(record)
        node = self._open.get(record.fd)
        if node is None:
            return False
        if op is Op.SYNC_BEGIN:
            if isinstance(node, File) and node.is_mapped:
                node.mapped = record.data
            self._covered[record.fd] = list(node.changes)
            return False
        if op is Op.SYNC_END:
            return self._take_sync(record, node)
        assert isinstance(node, File)
        if op is Op.MMAP:
            node.is_mapped = True
            return False
        if op is Op.WRITE:
            node.changes.append(Change(record.a, record.data, number=self._number))
        elif op is Op.TRUNCATE:
            node.changes.append(Change(size=record.a, number=self._number))
        else:
            node.changes.append(Change(size=record.a + record.b, grows=True, number=self._number))
        return True

    def _take_open(self, record: Record) -> bool:
        directory, name = self._place(record.data)
        if not name:
            self._open[record.fd] = self.top
            return False
        if record.result:
            directory.change(self._number, (name, File()))
        node = directory.now[name]
        self._open[record.fd] = node
        if record.a & os.O_TRUNC and isinstance(node, File):
            node.changes.append(Change(size=0, number=self._number))
            return True
        return bool(record.result)

    def _take_naming(self, record: Record) -> bool:
        if record.op is Op.RENAME:
            source, _, target = record.data.partition(b"\0")
            (directory, old), (other, new) = self._place(source), self._place(target)
            assert directory is other, "only within one directory"
            directory.change(self._number, (new, directory.now[old]), (old, None))
        else:
            directory, name = self._place(record.data)
            directory.change(self._number, (name, None if record.op is Op.UNLINK else Directory()))
        return True

    def _take_sync(self, record: Record, node: File | Directory) -> bool:
        if record.a >= 0:  # the end of a write with O_DSYNC: that write only
            assert isinstance(node, File)
            write = next(c for c in reversed(node.changes) if c.offset == record.a and len(c.data) == record.b)
            write.durable = True
        else:
            for change in self._covered.pop(record.fd):
                if isinstance(change, Change) and (record.result or change.lost):
                    change.lost = not change.durable
                elif not record.result:
                    change.durable = True
        node.settle()
        return True

    def _place(self, path: bytes) -> tuple[Directory, str]:
        text = os.fsdecode(path)
        assert text.startswith(self._root)
        *parents, name = [part for part in text[len(self._root):].split("/") if part] or [""]
        directory = self.top
        for parent in parents:
            node = directory.now[parent]
            assert isinstance(node, Directory)
            directory = node
        return directory, name

    # -- what may be there ---------------------------------------------------------------------------------------------

    def doubts(self) -> tuple[list[Change], list[Naming]]:
        """What may or may not be there: of files that can be reached, and of names."""
        changes: list[Change] = []
        namings: list[Naming] = []
        seen: set[int] = set()

        def walk(directory: Directory) -> None:
            namings.extend(change for change in directory.changes if not change.durable)
            nodes = [*directory.names.values(), *directory.now.values()]
            nodes += [node for change in directory.changes for _, node in change.names if node is not None]
            for node in nodes:
                if id(node) in seen:
                    continue
                seen.add(id(node))
                if isinstance(node, Directory):
                    walk(node)
                elif not node.is_mapped:
                    changes.extend(change for change in node.changes if not change.durable)

        walk(self.top)
        return sorted(changes, key=lambda change: change.number), sorted(namings, key=lambda change: change.number)

    def is_as_in(self, root: Path) -> bool:
        """Whether all that was done comes to what is in `root` now, so that no call was overlooked."""

        def same(path: Path, directory: Directory) -> bool:
            if {entry.name for entry in path.iterdir()} != directory.now.keys():
                return False
            for name, node in directory.now.items():
                if isinstance(node, Directory):
                    if not same(path / name, node):
                        return False
                elif not node.is_mapped:
                    content = bytearray(node.content)
                    for change in node.changes:
                        change.apply(content, _whole)
                    if content != (path / name).read_bytes():
                        return False
            return True

        return same(root, self.top)

    def materialize(self, target: Path, keep: Keep, keep_name: Callable[[Naming], bool]) -> list[Path]:
        """Make the directory `target` as the disk would be. The files in it that were mapped and never synced."""
        unknown: list[Path] = []

        def make(path: Path, directory: Directory) -> None:
            path.mkdir()
            names = dict(directory.names)
            for change in directory.changes:
                if change.durable or keep_name(change):
                    _bind(names, change)
            for name, node in names.items():
                if isinstance(node, Directory):
                    make(path / name, node)
                    continue
                content = bytearray(node.content)
                for written in node.changes:
                    written.apply(content, _whole if written.durable else keep)
                if node.is_mapped and node.mapped is None:
                    unknown.append(path / name)
                elif node.mapped is not None:
                    content = bytearray(node.mapped)
                with open(path / name, "wb") as file:
                    file.write(content)

        make(target, self.top)
        return unknown

    def possibilities(self, chance: random.Random, samples: int) -> Iterator[tuple[Keep, Callable[[Naming], bool]]]:
        """Ways in which it may have come out: every one for a few doubts (but for tearing), and samples of it."""
        changes, namings = self.doubts()
        doubts = [*changes, *namings]
        if len(doubts) <= _FEW:
            for choice in itertools.product((False, True), repeat=len(doubts)):
                kept = {id(doubt) for doubt, is_kept in zip(doubts, choice, strict=True) if is_kept}
                yield (lambda change, sector, kept=kept: id(change) in kept,
                       lambda naming, kept=kept: id(naming) in kept)
        else:
            yield (lambda change, sector: False, lambda naming: False)
            yield (lambda change, sector: True, lambda naming: True)
        if doubts:
            for _ in range(samples):
                yield self._sample(chance.randrange(1 << 60), changes, namings)

    def _sample(self, seed: int, changes: list[Change],
                namings: list[Naming]) -> tuple[Keep, Callable[[Naming], bool]]:
        """One way: in order up to somewhere, by calls, by pages, or by sectors."""
        chance = random.Random(seed)
        share = chance.choice((0.1, 0.5, 0.9))
        how = chance.choice(("order", "calls", "pages", "sectors", "sectors"))
        order = {id(change): change.number for change in changes}
        stop = chance.choice([doubt.number for doubt in (*changes, *namings)])
        kept_names = {id(naming) for naming in namings
                      if (naming.number <= stop if how == "order" else chance.random() < share)}
        dice: dict[tuple[int, int], bool] = {}

        def thrown(change: Change, part: int) -> bool:
            # Not in the order of the questions: the same state comes out however it is asked for.
            key = (order[id(change)], part)
            if key not in dice:
                dice[key] = random.Random(f"{seed} {key}").random() < share
            return dice[key]

        def keep(change: Change, sector: int) -> bool:
            number = order.get(id(change))
            if number is None:
                return True
            if how == "order":
                return number < stop or (number == stop and thrown(change, sector))
            if how == "calls":
                return thrown(change, -1)
            return thrown(change, sector if how == "sectors" else sector // (PAGE // SECTOR))

        return keep, lambda naming: id(naming) in kept_names
