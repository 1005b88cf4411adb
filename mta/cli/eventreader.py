"""Reads the event files of all shards as one stream, in the order of time.

The files are `SPOOL/shards/NNN/events/YYYYMMDD-HHMMSS-NNN.jsonl`; their names increase with time, and a file is written
no more once there is a later one. After a crash of the MTA the newest file may get shorter for a moment and then grow
again with the same bytes, so a reader who keeps its place in the file sees each line once.
"""

from __future__ import annotations

import heapq
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from mta.control.exits import NO_INPUT, NO_PERMISSION, OperatorError

LOOK_S: Final = 0.2  # how often a follower looks at the files; costs the MTA nothing

_FILE_NAME: Final = re.compile(r"(\d{8}-\d{6})-\d{3}\.jsonl")
_TIME: Final = b'"time":"'
_TIME_LENGTH: Final = 27  # 2026-01-31T12:00:00.123456Z


class EventReader:
    """The event lines of some shards, from a time on."""

    def __init__(self, spool: str, since: str = "", shard: int | None = None) -> None:
        """`since` is a time as events have it (RFC 3339, UTC); with `shard`, that one alone. Raises OperatorError."""
        self._spool = spool
        self._since = since.encode()
        self._only = shard
        self._shards: dict[str, _Shard] = {}
        self._find_shards()

    def _find_shards(self) -> None:
        shards = Path(self._spool, "shards")
        try:
            names = sorted(entry.name for entry in shards.iterdir() if entry.name.isdecimal())
        except FileNotFoundError:
            raise OperatorError(NO_INPUT, f"there is no spool {self._spool}: nothing has run here yet") from None
        except PermissionError:
            raise _refused(shards) from None
        for name in names:
            if name not in self._shards and (self._only is None or int(name) == self._only):
                self._shards[name] = _Shard(shards / name / "events", self._since)

    def read(self) -> Iterator[bytes]:
        """All lines that there are now, oldest first."""
        return self._merge(shard.lines() for shard in self._shards.values())

    def follow(self) -> Iterator[bytes]:
        """The lines that come after those that were read, as they come, for ever; also of shards that are new."""
        while True:
            self._find_shards()
            yield from self._merge(list(shard.lines()) for shard in self._shards.values())
            time.sleep(LOOK_S)

    def skip(self) -> None:
        """Leave out everything that there is now."""
        for shard in self._shards.values():
            shard.skip()

    def _merge(self, sources: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
        for line in heapq.merge(*sources, key=time_of):
            if time_of(line) >= self._since:
                yield line


class _Shard:
    """A place in the event files of one shard."""

    def __init__(self, directory: Path, since: bytes) -> None:
        self._directory = directory
        self._since = since
        self._name = ""
        self._offset = 0

    def lines(self) -> Iterator[bytes]:
        """The whole lines from the place on; moves it."""
        names = self._names()
        if not self._name and names:
            self._name = self._first(names)
        while self._name:
            try:
                with (self._directory / self._name).open("rb") as file:
                    yield from self._lines_of(file)
                gone = False
            except FileNotFoundError:
                gone = True  # by a crash, and about to be written again; or by rotation, if there are later ones
            except PermissionError:
                raise _refused(self._directory / self._name) from None
            later = [name for name in names if name > self._name]
            if not later:
                return
            if gone:
                print(f"mta: {self._directory / self._name} was removed before it was read to its end (events.keep): "
                      "events are missing here", file=sys.stderr)
            self._name, self._offset = later[0], 0

    def skip(self) -> None:
        """Move to the end of what there is now."""
        names = self._names()
        if names:
            self._name = names[-1]
            self._offset = (self._directory / self._name).stat().st_size

    def _lines_of(self, file: BinaryIO) -> Iterator[bytes]:
        file.seek(self._offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # being written
            self._offset += len(line)
            yield line

    def _names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in self._directory.iterdir() if _FILE_NAME.fullmatch(entry.name))
        except FileNotFoundError:
            return []  # a shard that has just been made
        except PermissionError:
            raise _refused(self._directory) from None

    def _first(self, names: list[str]) -> str:
        """The file in which `since` falls: the last one that was begun before it."""
        digits = re.sub(rb"[^0-9]", b"", self._since[:19]).decode()
        stamp = f"{digits[:8]}-{digits[8:]}"
        return max([name for name in names if name[:15] < stamp], default=names[0])


def time_of(line: bytes) -> bytes:
    """When an event happened; b"" when the line is none."""
    start = line.find(_TIME)
    return b"" if start < 0 else line[start + len(_TIME) : start + len(_TIME) + _TIME_LENGTH]


def _refused(path: Path) -> OperatorError:
    return OperatorError(NO_PERMISSION, f"you may not read {path}: be root, or the user that the MTA runs as")
