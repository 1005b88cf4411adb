"""What the figures depend on and readers cannot see: processors, disk, versions, and whether the machine was idle."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

_SYNCS = 100
_APPEND = 5000
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")
_BUSY = 0.3


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a measurement ran."""

    processor: str
    cores: int
    memory: int
    """Bytes."""
    kernel: str
    python: str
    file_system: str
    """Of the spool."""
    sync_ms: float
    """Median of appending 5 KB to a file there and fdatasync."""
    load: float
    """Load average of the last minute, before the first run."""

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"machine: {self.cores} x {self.processor}, {self.memory / 2**30:.0f} GiB",
            f"system:  Linux {self.kernel}, Python {self.python}",
            f"spool:   {self.file_system}, append of 5 KB with fdatasync {self.sync_ms:.2f} ms",
        ]

    def warnings(self) -> list[str]:
        """Why the figures may be worth little."""
        found = []
        if self.file_system in _MEMORY_FILE_SYSTEMS:
            found.append(f"the spool is on {self.file_system}, where syncs cost nothing: choose a disk by --directory")
        if self.load > _BUSY * self.cores:
            found.append(f"the machine was busy before the first run (load {self.load:.2f}): the figures are noise")
        return found


def describe(directory: Path) -> Machine:
    """This machine, with the disk of `directory`."""
    return Machine(
        processor=_processor(), cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), kernel=platform.release(),
        python=platform.python_version(), file_system=file_system(directory), sync_ms=round(_sync_ms(directory), 3),
        load=round(os.getloadavg()[0], 2),
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system(directory: Path) -> str:
    """The type of the file system that holds `directory` (proc(5), mountinfo)."""
    place = directory.resolve()
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount = Path(before.split()[4].replace("\\040", " "))
        if place.is_relative_to(mount) and mount.is_relative_to(best):
            best, kind = mount, after.split()[0]
    return kind


def _sync_ms(directory: Path) -> float:
    path = directory / "sync.probe"
    block = bytes(_APPEND)
    times: list[float] = []
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            os.write(fd, block)
            os.fdatasync(fd)
            times.append(time.perf_counter() - began)
    finally:
        os.close(fd)
        path.unlink()
    return statistics.median(times) * 1000
