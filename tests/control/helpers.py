"""A running supervisor with fake children, and what it and they say."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0  # only a failing test waits so long
ROOT = Path(__file__).resolve().parents[2]
# Short where something happens after it; what only ends a test that fails is long.
FAST = {"abort_grace": 10.0, "restart_first": 0.05, "stop_margin": 10.0, "quick": 10.0, "echo": 0.0, "linger": 0.0}


class Fixture:
    """A directory with a configuration, and the supervisors started on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "mta.yaml"
        self.spool = directory / "spool"
        self.write_config()
        self._reports = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reports.bind(str(directory / "reports"))
        self._facts: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._pids: set[int] = set()
        # Read at once: ten datagrams fill the socket, and then children would wait in the middle of what they do.
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()
        self.running: list[Running] = []

    def write_config(self, **options: Any) -> None:
        """Write the configuration, with other values or further options."""
        values: dict[str, Any] = {
            "hostname": "mta.example.net",
            "workers": 2,
            "spool": str(self.spool),
            "run": str(self.directory / "run"),
            "shutdown": "2s",
            "listeners": [{"smtp": "127.0.0.1:0"}],
            **({"user": "root"} if os.geteuid() == 0 else {}),
            **options,
        }
        self.config.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))

    def behave(self, **names: str) -> None:
        """Set how children behave that start from now on, by name with `_` for `-`. One that starts just then finds
        all of it or what was before."""
        words = {name.replace("_", "-"): word for name, word in names.items()}
        new = self.directory / "behaviour.new"
        new.write_text(json.dumps(words))
        new.rename(self.directory / "behaviour")

    def start(self, timing: dict[str, float] | None = None, environment: dict[str, str] | None = None,
              listen_fd: int | None = None) -> Running:
        """Start a supervisor."""
        running = Running(self, FAST | (timing or {}), environment or {}, listen_fd)
        self.running.append(running)
        return running

    def _receive(self) -> None:
        while data := self._reports.recv(65_536):
            fact = json.loads(data)
            if fact["what"] == "started":
                self._pids.add(fact["pid"])
            self._facts.put(fact)

    def report(self, child: str, what: str) -> dict[str, Any]:
        """Wait for a report of a child; others before it are passed over."""
        return self.reports(what, {child})[child]

    def reports(self, what: str, children: set[str]) -> dict[str, dict[str, Any]]:
        """Wait for the same report of several children, in whatever order."""
        found: dict[str, dict[str, Any]] = {}
        seen: list[str] = []
        deadline = time.monotonic() + PATIENCE_S
        while set(found) != children:
            try:
                fact = self._facts.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {what!r} of {children - set(found)}; seen: {seen}") from None
            seen.append(f"{fact['child']} {fact['what']}")
            if fact["what"] == what and fact["child"] in children:
                found[fact["child"]] = fact
        return found

    def close(self) -> None:
        """End everything, also children of a broken supervisor."""
        for running in self.running:
            running.kill()
        for pid in list(self._pids):  # the reader may still add to it
            try:
                if b"_child.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass  # as it should be
        for running in self.running:
            running.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.directory / "reports"))  # ends the thread
        self._thread.join(PATIENCE_S)
        self._reports.close()


class Running:
    """One supervisor process."""

    def __init__(self, fixture: Fixture, timing: dict[str, float], environment: dict[str, str],
                 listen_fd: int | None) -> None:
        self.fixture = fixture
        arguments = [sys.executable, str(Path(__file__).with_name("supervise.py")), str(fixture.config),
                     json.dumps(timing)]
        if listen_fd is not None:
            arguments.append(str(listen_fd))
        self.process = subprocess.Popen(
            arguments,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[] if listen_fd is None else [listen_fd],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
                 "FAKE_REPORT": str(fixture.directory / "reports"), **environment},
        )
        self.lines: list[str] = []
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def line(self, part: str) -> str:
        """Wait for a line on stderr that contains `part`."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, f"no line with {part!r} in {self.lines}"
            self.lines.append(line)
            if part in line:
                return line

    def ready(self) -> list[tuple[str, int]]:
        """Wait for the ready line; returns the addresses."""
        words = self.line("ready:").replace(",", "").split()
        return [(word.rpartition(":")[0].strip("[]"), int(word.rpartition(":")[2])) for word in words[2::2]]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def exit_code(self) -> int:
        """Wait for the end."""
        return self.process.wait(PATIENCE_S)

    def stderr(self) -> str:
        """Everything on stderr, after the end."""
        self.exit_code()
        self._thread.join(PATIENCE_S)
        while (line := self._queue.get()) is not None:
            self.lines.append(line)
        return "\n".join(self.lines)

    def kill(self) -> None:
        """End the supervisor; its children follow."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """Wait until nobody can write to stderr any more."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "a child of the supervisor outlived the test"
        assert self.process.stderr is not None
        self.process.stderr.close()
