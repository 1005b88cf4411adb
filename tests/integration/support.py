"""A real MTA as a subprocess, for tests: its configuration, its life, what it says, what it recorded."""

from __future__ import annotations

import json
import os
import re
import signal
import smtplib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

START_S = 60.0
ENDS = ("delivered", "bounced", "expired", "deleted", "quarantined")


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, mapping by mapping."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


class Mta:
    """`mta run` in a directory of its own, with loopback listeners, asking the resolver `dns` ("127.0.0.1:port")."""

    def __init__(self, directory: Path, dns: str, port: int, /, **changes: Any) -> None:
        """`port` is the port of MX hosts. `changes` are merged over a configuration that suits tests."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        # Unix sockets have short names; a test's directory may be deep.
        self.config = merge({
            "hostname": "mta.test",
            "workers": 2,
            "spool": str(directory / "spool"),
            "run": str(directory / "run"),
            "listeners": [{"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.0/8"]}],
            "dns": {"servers": [dns]},
            "delivery": {"allow_loopback": True},
            "shaping": {"default": {"port": port, "families": "ipv4"}},
            "retry": {"first": "1s", "factor": 1.5, "cap": "10s", "site_first": "1s", "site_cap": "5s"},
            "store": {"reserve": "1MB"},
            "shutdown": "10s",
        }, changes)
        if os.getuid() == 0:
            self.config.setdefault("user", "root")
        self.environment: dict[str, str] = {}  # beside ours
        self.prefix: list[str] = []  # what the command is run by
        self.process: subprocess.Popen[str] | None = None
        self.smtp = ("127.0.0.1", 0)
        self.log: list[str] = []
        self._reader: threading.Thread | None = None

    def write_config(self) -> Path:
        """Write the configuration file."""
        path = self.directory / "mta.yaml"
        path.write_text(yaml.safe_dump(self.config))
        return path

    def start(self, wait: bool = True) -> Mta:
        """Start it, and wait until it is ready."""
        path = self.write_config()
        ready = threading.Event()  # one each: children of a killed supervisor write to its pipe for a while
        self.smtp = ("127.0.0.1", 0)
        self.process = subprocess.Popen([*self.prefix, sys.executable, "-m", "mta", "run", "-c", str(path)],
                                        env={**os.environ, **self.environment}, stderr=subprocess.PIPE, text=True,
                                        start_new_session=True)
        self._reader = threading.Thread(target=self._read, args=(self.process, ready), daemon=True)
        self._reader.start()
        if wait and (not ready.wait(START_S) or self.smtp[1] == 0):
            self.kill()
            raise AssertionError("the MTA did not start:\n" + "\n".join(self.log[-50:]))
        return self

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self.log.append(line.rstrip("\n"))
                found = re.search(r"ready:.*?127\.0\.0\.1:(\d+)", line)
                if found:
                    self.smtp = ("127.0.0.1", int(found[1]))
                    ready.set()
        ready.set()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(START_S)
        self._finish()
        return code

    def kill(self) -> None:
        """SIGKILL to supervisor, workers and control process at once."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
            self._finish()

    def _finish(self) -> None:
        if self._reader is not None:
            self._reader.join(START_S)

    def __enter__(self) -> Mta:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    # -- processes -----------------------------------------------------------------------------------------------

    def children(self) -> dict[str, list[int]]:
        """Pids by role: "worker", "server" (the control process)."""
        assert self.process is not None
        found: dict[str, list[int]] = {"worker": [], "server": []}
        for task in Path("/proc", str(self.process.pid), "task").glob("*/children"):
            for pid in task.read_text().split():
                try:
                    command = Path("/proc", pid, "cmdline").read_bytes()
                except OSError:
                    continue
                for role in found:
                    if f"mta.control.{role}".encode() in command:
                        found[role].append(int(pid))
        return found

    def cpu_s(self) -> float:
        """User and system time of all processes, those that ended included."""
        assert self.process is not None
        ticks = 0
        for pid in [self.process.pid, *self.children()["worker"], *self.children()["server"]]:
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    # -- what it says --------------------------------------------------------------------------------------------

    def command(self, *arguments: str, check: bool = True) -> str:
        """Run an `mta` command with this configuration; its standard output."""
        done = subprocess.run([sys.executable, "-m", "mta", *arguments, "-c", str(self.directory / "mta.yaml")],
                              capture_output=True, text=True, timeout=60)
        if check:
            assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        """`mta status --json`; `missing` names the workers that did not answer."""
        status: dict[str, Any] = json.loads(self.command("status", "--json", check=False))
        return status

    def queued(self) -> int:
        """Recipients in the queue, over all workers; -1 while not all of them answer."""
        status = self.status()
        return -1 if status["missing"] else sum(worker["queued_recipients"] for worker in status["workers"])

    def events(self) -> Iterator[dict[str, Any]]:
        """All events on disk, shard by shard; of a line that is being written just now there may be a part only."""
        for path in sorted((self.directory / "spool" / "shards").glob("*/events/*")):
            with path.open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):
                        yield json.loads(line)

    def wait_until(self, happened: Any, what: str, timeout_s: float = 60.0) -> None:
        """Wait for `happened()`; for states of other processes that announce nothing."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < deadline, f"{what} did not happen in {timeout_s} s\n" + "\n".join(self.log[-30:])
            time.sleep(0.05)

    # -- injecting -----------------------------------------------------------------------------------------------

    def send(self, sender: str, recipients: list[str], content: bytes, **options: Any) -> dict[str, tuple[int, bytes]]:
        """One message by smtplib; the recipients that were refused."""
        with smtplib.SMTP(*self.smtp, timeout=30) as client:
            return client.sendmail(sender, recipients, content, **options)


def message(number: int, to: str, size: int = 300) -> bytes:
    """A message with the test id that the sandbox counts by."""
    head = (f"From: sender@client.test\r\nTo: {to}\r\nSubject: message {number}\r\nX-Test-Id: {number}\r\n"
            f"Date: Mon, 02 Jan 2006 15:04:05 +0000\r\nMessage-ID: <{number}@client.test>\r\n\r\n")
    line = "The quick brown fox jumps over the lazy dog, and back again.\r\n"
    return (head + line * max((size - len(head)) // len(line), 1)).encode()


class Injector:
    """Sends numbered messages from several threads and remembers which were accepted; survives a dying MTA.

    A number whose answer was lost is not sent again: whether it was accepted is unknown, and either is right.
    """

    def __init__(self, mta: Mta, domains: list[str], sessions: int = 8) -> None:
        self.mta = mta
        self.domains = domains
        self.accepted: set[int] = set()
        self.offered: set[int] = set()
        self._numbers = iter(range(1 << 60))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._limit = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(sessions)]

    def start(self, limit: int) -> None:
        """Send up to `limit` messages."""
        self._limit = limit
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float = 120.0) -> None:
        """Wait until all are sent."""
        for thread in self._threads:
            thread.join(timeout_s)
            assert not thread.is_alive(), "the injector hangs"

    def finish(self) -> None:
        """Stop sending."""
        self._stop.set()
        self.wait()

    def recipient(self, number: int) -> str:
        """The recipient of message `number`."""
        return f"u{number}@{self.domains[number % len(self.domains)]}"

    def _next(self) -> int | None:
        with self._lock:
            number = next(self._numbers)
        return number if number < self._limit else None

    def _run(self) -> None:
        client: smtplib.SMTP | None = None
        while not self._stop.is_set():
            try:
                if client is None:
                    client = smtplib.SMTP(*self.mta.smtp, timeout=60)
            except (OSError, smtplib.SMTPException):
                self._stop.wait(0.02)
                continue
            number = self._next()
            if number is None:
                break
            to = self.recipient(number)
            self.offered.add(number)
            try:
                client.sendmail("sender@client.test", [to], message(number, to))
                self.accepted.add(number)
            except (OSError, smtplib.SMTPException):
                client.close()
                client = None
        if client is not None:
            client.close()


def ends_of(events: Iterator[dict[str, Any]]) -> tuple[Counter[tuple[str, str]], dict[tuple[str, str], dict[str, Any]]]:
    """How many ends each (message, recipient) has in the events, and the last of them."""
    count: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event["event"] in ENDS:
            for recipient in event["recipients"]:
                count[(event["message"], recipient)] += 1
                last[(event["message"], recipient)] = event
    return count, last
