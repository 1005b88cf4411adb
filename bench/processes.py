"""The processes of the MTA under test: which they are, and what they use, those that came and went included.

Two ways to keep account, chosen by `account()`:

- a cgroup (version 2) of its own: the kernel counts the CPU time of everything that ever ran in it. Needs root;
- the process tree below the one that was started: the kernel adds a child's time to its parent's when it is reaped,
  so the sum over the living, with their reaped children, is the whole. Resolution: a clock tick, 10 ms as a rule.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LEFTOVER_S = 10.0
IDLE_S = 0.02
"""CPU time in half a second of an MTA that has nothing to do."""


class Account(Protocol):
    """The processes of one MTA."""

    how: str
    """How CPU time is counted, for the report."""

    def wrap(self, command: Sequence[str]) -> list[str]:
        """`command` as it has to be started to be counted."""

    def root(self, pid: int) -> None:
        """Say which process was started."""

    def pids(self) -> list[int]:
        """The processes that live."""

    def cpu_s(self) -> float:
        """User and system time in seconds of all processes so far."""

    def perf_target(self, events: int) -> list[str]:
        """The options that make perf(1) count `events` events of these processes only."""

    def close(self) -> None:
        """Kill what is left and end the account."""


class CgroupAccount:
    """A cgroup (version 2) made for one run."""

    how = "cgroup cpu.stat"

    def __init__(self, directory: Path) -> None:
        """Raises OSError when it cannot be made."""
        directory.mkdir()
        self._directory = directory

    def wrap(self, command: Sequence[str]) -> list[str]:
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._directory / "cgroup.procs"), *command]

    def root(self, pid: int) -> None:
        pass

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self._directory / "cgroup.procs").read_text().split()]

    def cpu_s(self) -> float:
        for line in (self._directory / "cpu.stat").read_text().splitlines():
            name, value = line.split()
            if name == "usage_usec":
                return int(value) / 1e6
        raise OSError(f"no usage_usec in {self._directory}/cpu.stat")

    def perf_target(self, events: int) -> list[str]:
        return ["-a", "-G", ",".join([self._directory.name] * events)]

    def close(self) -> None:
        kill(self)
        deadline = time.monotonic() + _LEFTOVER_S
        while True:
            try:
                self._directory.rmdir()
            except OSError:
                # The kernel takes its time to forget what was killed.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


class TreeAccount:
    """One process and its descendants."""

    how = "sum over the process tree, reaped children included"

    def __init__(self) -> None:
        self._root = 0

    def wrap(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def root(self, pid: int) -> None:
        self._root = pid

    def pids(self) -> list[int]:
        found = []
        waiting = [self._root] if self._root else []
        while waiting:
            pid = waiting.pop()
            if not (_PROC / str(pid)).exists():
                continue
            found.append(pid)
            for children in (_PROC / str(pid) / "task").glob("*/children"):
                with contextlib.suppress(OSError):
                    waiting += [int(child) for child in children.read_text().split()]
        return found

    def cpu_s(self) -> float:
        return sum(_ticks(pid, slice(11, 15)) for pid in self.pids()) * _TICK_S

    def perf_target(self, events: int) -> list[str]:
        # What these start later is counted too: perf's events are inherited.
        return ["-p", ",".join(map(str, self.pids()))]

    def close(self) -> None:
        kill(self)


def account(name: str) -> Account:
    """The best account this user may keep; `name` is unique among those at the same time."""
    for mount in _cgroup_mounts():
        try:
            return CgroupAccount(mount / f"mta-bench-{os.getpid()}-{name}")
        except OSError:
            continue
    return TreeAccount()


def _cgroup_mounts() -> Iterator[Path]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            yield Path(fields[1])


def _ticks(pid: int, fields: slice) -> int:
    """Sum of these fields of /proc/PID/stat, counted after the name (proc(5)); 0 when the process is gone."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0
    return sum(int(field) for field in stat.rpartition(")")[2].split()[fields])


def threads_cpu_s(pid: int) -> float:
    """User and system time of a living process's threads, by the scheduler's nanoseconds. Raises OSError."""
    return sum(int(path.read_text().split()[0]) for path in (_PROC / str(pid) / "task").glob("*/schedstat")) / 1e9


def ended_cpu_s(pid: int) -> float:
    """User and system time of an ended process that nobody has reaped yet."""
    return _ticks(pid, slice(11, 13)) * _TICK_S


def kill(processes: Account) -> None:
    """SIGKILL to what lives, until nothing does; what was killed is reaped by whoever started it."""
    deadline = time.monotonic() + _LEFTOVER_S
    while time.monotonic() < deadline:
        alive = [pid for pid in processes.pids() if not _is_zombie(pid)]
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _is_zombie(pid: int) -> bool:
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until_quiet(processes: Account, limit_s: float, idle_s: float = IDLE_S) -> bool:
    """Wait until the MTA has nothing left to do: in two half seconds it used at most `idle_s` each. False: never."""
    step_s = 0.5
    deadline = time.monotonic() + limit_s
    used = processes.cpu_s()
    quiet = 0
    while time.monotonic() < deadline:
        time.sleep(step_s)
        now = processes.cpu_s()
        quiet = quiet + 1 if now - used <= idle_s else 0
        if quiet == 2:
            return True
        used = now
    return False


@dataclass(slots=True)
class Peak:
    """The most memory a process used, in bytes."""

    role: str
    resident: int
    """VmHWM: the kernel's own record. Pages of mapped files count in it, the index of the queue among them."""
    anonymous: int
    """RssAnon: the process's own memory, the most that was seen at a look."""


class MemoryWatch:
    """Looks at the memory of all processes every 250 ms, or less often if looking takes more than 1 % of a core."""

    def __init__(self, processes: Account) -> None:
        self.peaks: dict[int, Peak] = {}
        self.together = 0
        """The largest sum of RssAnon over all processes at one look."""
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def _run(self) -> None:
        pause_s = 0.25
        while not self._stop.wait(pause_s):
            used = time.thread_time()
            self.look()
            pause_s = max(0.25, 100 * (time.thread_time() - used))

    def look(self) -> None:
        """Look once."""
        together = 0
        for pid in self._processes.pids():
            resident, anonymous = memory(pid)
            if not resident:
                continue
            peak = self.peaks.get(pid)
            if peak is None:
                peak = self.peaks[pid] = Peak(role(pid), 0, 0)
            peak.resident = max(peak.resident, resident)
            peak.anonymous = max(peak.anonymous, anonymous)
            together += anonymous
        self.together = max(self.together, together)

    def worst(self) -> Peak:
        """The largest process: the most resident, and of any process the most anonymous memory."""
        if not self.peaks:
            return Peak("", 0, 0)
        largest = max(self.peaks.values(), key=lambda peak: peak.resident)
        return Peak(largest.role, largest.resident, max(peak.anonymous for peak in self.peaks.values()))


def memory(pid: int) -> tuple[int, int]:
    """VmHWM and RssAnon in bytes; zeros when the process is gone."""
    resident = anonymous = 0
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return 0, 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            resident = int(line.split()[1]) * 1024
        elif line.startswith("RssAnon:"):
            anonymous = int(line.split()[1]) * 1024
            break
    return resident, anonymous


def role(pid: int) -> str:
    """A short name of what the process is."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return "?"
    if "-m" in words[:-1]:
        module = words[words.index("-m") + 1]
        return {"mta": "supervisor", "mta.control.server": "control"}.get(module, module.rpartition(".")[2])
    return os.path.basename(words[0]) or "?"


def find(processes: Account, wanted: str) -> int | None:
    """The first process in that role."""
    return min((pid for pid in processes.pids() if role(pid) == wanted), default=None)


def program(name: str) -> str | None:
    """The path of an installed program, the system administrator's directories included."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
