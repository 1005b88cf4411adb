"""What the rest of the machine did during a measurement: figures taken beside it are noise."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.loopback import cpu_s

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_USER, _NICE, _SYSTEM, _STEAL = 0, 1, 2, 7


class Others:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._busy_s = _busy_s()
        self._own_s = cpu_s()

    def cores(self, ours_s: float) -> float:
        """Cores in use, on average, by what is neither in `ours_s` (CPU seconds) nor this process; never below 0.

        Time that the hypervisor gave to other machines counts; time in interrupts, which nobody is charged with, not.
        """
        used_s = _busy_s() - self._busy_s - (cpu_s() - self._own_s) - ours_s
        return round(max(used_s / max(time.monotonic() - self._began_s, 0.01), 0.0), 2)


def _busy_s() -> float:
    """User, nice, system and stolen time of all processors (proc(5))."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (fields[_USER] + fields[_NICE] + fields[_SYSTEM] + fields[_STEAL]) * _TICK_S
