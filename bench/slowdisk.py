"""A slower disk, simulated by a library in LD_PRELOAD (`slowdisk.c`), so that group commit can be seen at work.

A sync of the disk at hand takes so much longer; what does not sync is as fast as before.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.processes import program

_SOURCE = Path(__file__).with_name("slowdisk.c")


class NoCompilerError(Exception):
    """The library cannot be made; the text says why."""


def missing() -> str | None:
    """Why a slower disk cannot be simulated here, or None."""
    return None if program("cc") else "no C compiler (cc) for the library that slows syncs (apt-get install gcc)"


def environment(delay_ms: float, directory: Path) -> dict[str, str]:
    """What a process needs in its environment for its syncs to take `delay_ms` longer; nothing for 0.

    The library is put into `directory`. Raises NoCompilerError.
    """
    if delay_ms <= 0:
        return {}
    why_not = missing()
    if why_not is not None:
        raise NoCompilerError(why_not)
    library = directory / "slowdisk.so"
    if not library.exists():
        done = subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"],
                              capture_output=True, text=True)
        if done.returncode:
            raise NoCompilerError(f"the library that slows syncs does not compile: {done.stderr.strip()[:300]}")
        library.chmod(0o755)
    return {"LD_PRELOAD": str(library), "MTA_BENCH_SYNC_US": f"{delay_ms * 1000:.0f}"}
