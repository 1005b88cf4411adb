"""The controlling end of diskshim.c: compile it, load it into a process, tell it what to do, read what it recorded."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from enum import IntEnum, IntFlag
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).with_name("diskshim.c")
COMPILERS: Final = ("cc", "gcc", "clang")
EVER: Final = (1 << 64) - 1


class Kind(IntFlag):
    """Calls that can fail."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 4
    ALLOCATE = 8
    SYNC = 16
    RENAME = 32
    UNLINK = 64
    MKDIR = 128
    OPEN = 256
    READ = 512


TAKES_SPACE: Final = Kind.CREATE | Kind.WRITE | Kind.ALLOCATE | Kind.MKDIR
"""What a full disk refuses."""


class Tear(IntEnum):
    """How much of a write is done by a process that is killed in it."""

    NOTHING = 0
    HALF = 1
    ALL = 2


class Op(IntEnum):
    """What a record tells of."""

    OPEN = 1
    CLOSE = 2
    WRITE = 3
    TRUNCATE = 4
    ALLOCATE = 5
    SYNC_BEGIN = 6
    SYNC_END = 7
    RENAME = 8
    UNLINK = 9
    MKDIR = 10
    MMAP = 11


class Record(NamedTuple):
    """One call, as diskshim.c logs it."""

    op: Op
    dsync: bool  # the descriptor is open with O_DSYNC
    fd: int
    result: int
    a: int  # offset, size or flags
    b: int
    data: bytes


_RECORD: Final = Struct("<BB2xiiIqq")
_FIELDS: Final = {  # struct control: format and offset
    "calls": ("<Q", 0), "kill_at": ("<Q", 8), "tear": ("<I", 16), "kinds": ("<I", 20), "error": ("<i", 24),
    "partial": ("<I", 28), "matched": ("<Q", 32), "from": ("<Q", 40), "until": ("<Q", 48), "failed": ("<Q", 56),
    "delay_us": ("<I", 64), "unsynced": ("<I", 68),
}
_WHERE: Final = (72, 64)


def compiler() -> str | None:
    """A C compiler, if there is one."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def build(directory: Path) -> Path:
    """Compile the shim into `directory`; the library."""
    command = compiler()
    assert command is not None
    library = directory / "diskshim.so"
    subprocess.run([command, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-o", str(library),
                    str(SOURCE), "-ldl"], check=True)
    return library


class Shim:
    """The page by which processes that have the shim loaded are told what to do. It lies beside `root`."""

    def __init__(self, library: Path, root: Path) -> None:
        """Make it, for files below the directory `root`."""
        self.library = library
        self.root = root
        self.page = root.with_name(root.name + ".control")
        with self.page.open("wb") as file:
            file.truncate(mmap.PAGESIZE)
        self.page.chmod(0o666)  # processes may change their user
        with self.page.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    @classmethod
    def attach(cls) -> Shim:
        """In a process that has the shim loaded: the page that its environment names."""
        self = cls.__new__(cls)
        self.root = Path(os.environ["DISKSHIM_ROOT"])
        self.page = Path(os.environ["DISKSHIM_CONTROL"])
        self.library = Path(os.environ["LD_PRELOAD"])
        with self.page.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        return self

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process that is to have the shim."""
        return {**base, "LD_PRELOAD": str(self.library), "DISKSHIM_ROOT": str(self.root),
                "DISKSHIM_CONTROL": str(self.page)}

    def __getitem__(self, name: str) -> int:
        """The value of a field."""
        form, offset = _FIELDS[name]
        value: int = struct.unpack_from(form, self._map, offset)[0]
        return value

    def __setitem__(self, name: str, value: int) -> None:
        form, offset = _FIELDS[name]
        struct.pack_into(form, self._map, offset, value)

    def reset(self) -> None:
        """Count from nothing, kill and fail nothing."""
        self._map[:] = bytes(len(self._map))

    def fail(self, kinds: Kind, error: int, first: int = 1, count: int = EVER, *, where: str = "",
             partial: int = 0) -> None:
        """From now on fail calls of `kinds` on files with `where` in their paths: the `first` and `count` in all."""
        self["kinds"] = 0
        offset, size = _WHERE
        self._map[offset:offset + size] = where.encode().ljust(size, b"\0")
        self["matched"] = self["failed"] = 0
        self["error"], self["partial"] = error, partial
        self["from"], self["until"] = first, min(first + count, EVER)
        self["kinds"] = kinds

    def heal(self) -> None:
        """Fail nothing any more."""
        self["kinds"] = 0


def record(path: Path | None) -> None:
    """Record the calls of this process, which has the shim loaded, into a file; None: stop."""
    ctypes.CDLL(None).diskshim_record(None if path is None else os.fsencode(path))


def read_log(path: Path) -> Iterator[Record]:
    """What was recorded."""
    raw = path.read_bytes()
    at = 0
    while at < len(raw):
        op, dsync, fd, result, length, a, b = _RECORD.unpack_from(raw, at)
        at += _RECORD.size
        yield Record(Op(op), bool(dsync), fd, result, a, b, raw[at:at + length])
        at += length
