"""What is taken out of a spool: where it is put, and the list of it.

`quarantine/manifest.jsonl` has a line of JSON for each thing before it is put there: when, what it is called, where it
comes from, why. Nothing in `quarantine/` is ever read by the MTA, and nothing is removed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mta.queue import events
from mta.queue.fileops import FileOps

MANIFEST: Final = "manifest.jsonl"
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that was done, or would be."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


class Quarantine:
    """The directory `quarantine` of a shard. Its methods raise OSError."""

    def __init__(self, directory: Path, files: FileOps, time_us: int, *, dry: bool) -> None:
        """`dry`: only `actions` grows."""
        self.actions: list[Action] = []
        self.dry = dry
        self._directory = directory
        self._files = files
        self._time = events.timestamp(time_us)

    def note(self, place: Path | str, text: str) -> None:
        """Something is done that puts nothing aside."""
        self.actions.append(Action(str(place), text))

    def move(self, path: Path, why: str) -> None:
        """A whole file goes."""
        target = self._begin(path, path.name, why)
        if target is not None:
            self._files.rename(path, target)
            self._files.fsync_directory(self._directory)
            self._files.fsync_directory(path.parent)

    def link(self, path: Path, why: str) -> None:
        """A whole file is kept here, as another one will be renamed to its place."""
        target = self._begin(path, path.name, why)
        if target is not None:
            self._files.link(path, target)
            self._files.fsync_directory(self._directory)

    def copy(self, path: Path, start: int, end: int, why: str) -> None:
        """Some bytes of a file are kept here, as their place will be used again."""
        name = f"{path.stem}-{start}.bin"
        place = f"{path}:{start}"
        self.actions.append(Action(place, f"{end - start:,} bytes are copied to {self._directory / name}: {why}"))
        if self.dry:
            return
        self._list(name, place, why)
        source = self._files.open(path, os.O_RDONLY)
        try:
            self._write(name, (self._files.pread(source, min(_PIECE, end - offset), offset)
                               for offset in range(start, end, _PIECE)))
        finally:
            self._files.close(source)

    def message(self, name: str, facts: dict[str, object], content: bytes, why: str) -> str:
        """A message leaves the queue: envelope to NAME.json, what there is of its content to NAME.eml. Says where."""
        facts = {**facts, "why": why, "content": f"{name}.eml" if content else ""}
        self.actions.append(Action(str(self._directory / f"{name}.json"), why))
        if not self.dry:
            self._list(f"{name}.json", name, why)
            if content:
                self._write(f"{name}.eml", iter([content]))
            self._write(f"{name}.json", iter([json.dumps(facts, indent=1).encode() + b"\n"]))
        return str(self._directory / f"{name}.json")

    def _begin(self, path: Path, name: str, why: str) -> Path | None:
        """Where a file is to go; None when it is there, or nothing is to be done."""
        number = 0
        target = self._directory / name
        while target.exists():
            if target.samefile(path):
                return None
            number += 1
            target = self._directory / f"{name}.{number}"
        self.actions.append(Action(str(path), f"is set aside as {target}: {why}"))
        if self.dry:
            return None
        self._list(target.name, str(path), why)
        return target

    def _list(self, name: str, place: str, why: str) -> None:
        """Add a line to the manifest, durably."""
        self._files.mkdir(self._directory)
        path = self._directory / MANIFEST
        new = not path.exists()
        fd = self._files.open(path, os.O_RDWR | os.O_CREAT)
        try:
            size = os.fstat(fd).st_size
            torn = size > 0 and self._files.pread(fd, 1, size - 1) != b"\n"
            line = json.dumps({"time": self._time, "name": name, "from": place, "why": why}).encode() + b"\n"
            self._files.write_all(fd, [b"\n" + line if torn else line], size)
            self._files.fdatasync(fd)
        finally:
            self._files.close(fd)
        if new:
            self._files.fsync_directory(self._directory)
            self._files.fsync_directory(self._directory.parent)

    def _write(self, name: str, pieces: Iterator[bytes]) -> None:
        """A file that appears whole; the same again when it is there."""
        new = self._directory / f"{name}.new"
        fd = self._files.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            offset = 0
            for piece in pieces:
                self._files.write_all(fd, [piece], offset)
                offset += len(piece)
            self._files.fdatasync(fd)
        finally:
            self._files.close(fd)
        self._files.rename(new, self._directory / name)
        self._files.fsync_directory(self._directory)
