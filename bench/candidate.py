"""What an MTA must offer to be measured."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.processes import Account
from bench.programs import environment

START_S = 60.0
STOP_S = 60.0
_LOOK_S = 0.005


class CandidateError(Exception):
    """The MTA did not start, or did not do what the measurement needs."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Where and how an MTA runs for one measurement."""

    directory: Path
    """Its own, empty, on the disk that is measured."""
    runtime: Path
    """For sockets and what need not last: memory, with a short name."""
    account: Account
    dns: tuple[str, int]
    sink_port: int
    """The port of all MX hosts."""
    workers: str = "auto"
    connections: int | None = None
    """Connections at once to a domain, when the scenario sets them."""
    settings: dict[str, object] = field(default_factory=dict)
    """Options of our configuration by their dotted names."""
    environment: dict[str, str] = field(default_factory=dict)
    """What the MTA's processes have in their environment besides."""


@contextlib.contextmanager
def runtime_directory() -> Iterator[Path]:
    """A directory as /run is: in memory where there is a tmpfs. Names of Unix sockets are short, so this one is."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(prefix="mta-bench-", dir=memory if os.access(memory, os.W_OK) else None) as path:
        yield Path(path)


class Candidate(Protocol):
    """One MTA for one measurement: started with an empty queue, stopped at its end."""

    def start(self) -> str:
        """Start it and wait until it accepts; the `ADDRESS:PORT` where. Raises CandidateError."""

    def queued(self) -> int:
        """Recipients (Postfix: messages) in the queue. Raises CandidateError."""

    def stop(self) -> list[str]:
        """Stop it; what there is to complain of."""


class Daemon:
    """A long-running process with its output in a file."""

    def __init__(self, setup: Setup, command: Sequence[str]) -> None:
        self.log = setup.directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                setup.account.wrap(command), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=environment() | setup.environment, cwd=setup.directory, start_new_session=True)
        setup.account.root(self.process.pid)

    def said(self) -> str:
        """Everything it wrote so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, word: str) -> str:
        """The first line with `word` in it. Raises CandidateError when it ends, or says nothing for long."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            for line in self.said().splitlines():
                if word in line:
                    return line
            if ended:
                raise CandidateError(f"ended with {self.process.returncode}: {self.tail()}")
            time.sleep(_LOOK_S)
        raise CandidateError(f"did not say {word!r} in {START_S:g} s: {self.tail()}")

    def tail(self) -> str:
        """The last words."""
        return "\n".join(self.said().splitlines()[-10:])

    def stop(self) -> list[str]:
        """SIGTERM and wait; complaints."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return [f"did not stop within {STOP_S:g} s of SIGTERM"]
        return [f"ended with exit code {code}"] if code else []


def wait_for_greeting(daemon: Daemon, port: int) -> None:
    """Wait until it greets on 127.0.0.1. Raises CandidateError."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and daemon.process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
            if probe.recv(100).startswith(b"220"):
                probe.sendall(b"QUIT\r\n")
                return
        time.sleep(0.05)
    raise CandidateError(f"did not start: {daemon.tail()}")


def check_reachable(directory: Path, user: str) -> None:
    """Whether a program that is not root can reach `directory`. Raises CandidateError."""
    for parent in (directory, *directory.parents):
        if not parent.stat().st_mode & 0o001:
            raise CandidateError(f"{parent} is closed to others; the user {user} has to reach its queue below it")
