"""The load programs as subprocesses: starting them, waiting for their word, their result and their CPU time.

Source and sink may be others than ours, if they take the same command line and write the same JSON; a program in a
compiled language takes less of the processors that it shares with the MTA.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import ended_cpu_s

ROOT = Path(__file__).resolve().parents[1]
START_S = 20.0
_LOOK_S = 0.02
_PORTS_FROM = 10_000  # below are those that services are known by
_PORTS_LEAST = 1_000  # to choose from: a system may give away nearly all


class ProgramError(Exception):
    """A load program did not start, failed, or did not end."""


@dataclass(frozen=True, slots=True)
class LoadPrograms:
    """What sends and what receives."""

    source: tuple[str, ...] = (sys.executable, "-m", "bench.source")
    sink: tuple[str, ...] = (sys.executable, "-m", "bench.sink")
    name: str = "bench.source and bench.sink"


class Program:
    """One load program."""

    def __init__(self, name: str, command: Sequence[str], directory: Path) -> None:
        """Start it; it writes `NAME.json` and `NAME.log` in `directory`."""
        self.name = name
        self.cpu_s = 0.0
        """User and system time, known when it has ended."""
        self._result = directory / f"{name}.json"
        self._log = directory / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([*command, "-o", str(self._result)], stdout=log, stderr=log,
                                             stdin=subprocess.DEVNULL, env=environment(), cwd=ROOT)

    def wait_ready(self, limit_s: float = START_S) -> str:
        """Wait until it says `ready` on stderr; that line. Raises ProgramError."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            for line in self._said().splitlines():
                if "ready" in line:
                    return line
            if self.ended():
                break
            time.sleep(_LOOK_S)
        raise ProgramError(f"{self.name} did not start: {self._said().strip() or 'no word of it'}")

    def wait(self, limit_s: float) -> None:
        """Wait until it ends. Raises ProgramError when it does not, or with an exit code that is not 0."""
        deadline = time.monotonic() + limit_s
        while not self.ended():
            if time.monotonic() > deadline:
                self.stop()
                raise ProgramError(f"{self.name} did not end in {limit_s:g} s: {self._said().strip()}")
            time.sleep(_LOOK_S)
        self._reap()
        if self._process.returncode:
            raise ProgramError(f"{self.name} ended with {self._process.returncode}: {self._said().strip()}")

    def stop(self) -> None:
        """End it, if it has not; its result is written by then."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + START_S
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        if not self.ended():
            self._process.kill()
        self._reap()

    def result(self) -> dict[str, float]:
        """Its numbers. Raises ProgramError when there are none."""
        try:
            numbers: dict[str, float] = json.loads(self._result.read_text())
        except (OSError, ValueError) as error:
            raise ProgramError(f"{self.name} gave no result: {error}; {self._said().strip()}") from error
        return numbers

    def complaints(self) -> list[str]:
        """What it wrote besides `ready`."""
        return [line for line in self._said().splitlines() if "ready" not in line]

    def _said(self) -> str:
        return self._log.read_text(errors="replace")

    def ended(self) -> bool:
        """Whether it has; unlike poll(), leaves the zombie whose CPU time is to be read."""
        if self._process.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is not None

    def _reap(self) -> None:
        if self._process.returncode is None:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self.cpu_s = ended_cpu_s(self._process.pid)
            self._process.wait()


def environment() -> dict[str, str]:
    """The environment in which this checkout, and not an installed copy, is what runs."""
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{path}" if path else str(ROOT)}


def free_port(addresses: Sequence[str]) -> int:
    """A TCP port that is free on all of these addresses. The system gives it to nobody who asks for any port: till its
    server starts it stays free (ip(7), `ip_local_port_range`); unless it gives away nearly all of them."""
    given_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(_PORTS_FROM, given_from) if given_from > _PORTS_FROM + _PORTS_LEAST else 0
        with contextlib.ExitStack() as held:
            try:
                for address in addresses:
                    probe = held.enter_context(socket.socket())
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((address, port))
                    port = probe.getsockname()[1]
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return port
