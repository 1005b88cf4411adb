"""A wall clock that a test can set while an MTA runs by it: `clock_shim.c` is loaded into its processes."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.integration.support import Mta

HOUR_S = 3600
DAY_S = 24 * HOUR_S


class Clock:
    """The wall clock of some MTAs. It is right at first."""

    def __init__(self, directory: Path) -> None:
        """Skips the test when there is no C compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("needs a C compiler, cc")
        self._shim = directory / "clock_shim.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(self._shim),
                        str(Path(__file__).with_name("clock_shim.c")), "-ldl"], check=True)
        self._path = directory / "clock_offset"
        self._path.write_bytes(bytes(8))
        with self._path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)
        self.offset_s = 0.0

    def rule(self, mta: Mta) -> Mta:
        """Have `mta` go by this clock from its next start on."""
        mta.environment = {"LD_PRELOAD": str(self._shim), "CLOCK_OFFSET": str(self._path)}
        return mta

    def step(self, seconds: float) -> None:
        """Set it so much forward, or back."""
        self.set(self.offset_s + seconds)

    def set(self, offset_s: float) -> None:
        """Set it so far from the right time."""
        self.offset_s = offset_s
        self._map[:] = struct.pack("<q", int(offset_s * 1e9))
