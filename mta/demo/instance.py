"""The MTA of the demo: `mta run` in a directory of its own, what it says, and what it costs."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mta.config.hosts import Endpoint, parse_endpoint
from mta.control import exits
from mta.control.client import ControlClient
from mta.control.exits import OperatorError
from mta.demo.internet import CONNECTIONS
from mta.demo.signals import Interrupt
from mta.sandbox.client import environment

START_S: Final = 60.0
GRACE_S: Final = 5  # for transactions in flight when the demo is over
STOP_S: Final = GRACE_S + 8.0
_PR_SET_PDEATHSIG: Final = 1


@dataclass(slots=True)
class Usage:
    """What the processes of the MTA have used."""

    cpu_s: float = 0.0  # user and system, of all of them, those that died included
    peak_memory: list[int] = field(default_factory=list)  # bytes, of each worker
    restarts: int = 0


def configuration(directory: Path, dns: str, port: int, workers: int, expires_s: int) -> dict[str, Any]:
    """The configuration of the demo: everything as by default, but on loopback, in a hurry and in little space."""
    config: dict[str, Any] = {
        "hostname": "mta.demo.example",
        "workers": workers,
        "spool": str(directory / "spool"),
        "run": str(directory / "run"),
        "listeners": [{"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.0/8"]}],
        "dns": {"servers": [dns], "failure_ttl": "1s"},
        "delivery": {"allow_loopback": True},
        "shaping": {"default": {"connections": CONNECTIONS, "port": port, "families": "ipv4"}},
        "retry": {"schedule": ["2s", "3s", "3s"], "site_first": "1s", "site_cap": "3s"},
        "rules_file": "none",  # they have mail wait for minutes, which is a demo's eternity
        "expires": f"{expires_s}s",
        "store": {"segment_size": "16MB", "map_size": "1GB", "reserve": "20MB"},
        "shutdown": f"{GRACE_S}s",
    }
    if os.geteuid() == 0:
        config["user"] = "root"  # it has nothing to give up its rights for, and has to be told so
    return config


class Instance:
    """One `mta run`. It ends with this process, however that ends."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self.directory = directory
        self.config_path = directory / "mta.yaml"
        self.smtp = Endpoint("127.0.0.1", 0)
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self.complaints: deque[str] = deque(maxlen=8)  # the last of its warnings and errors
        self._last_lines: deque[str] = deque(maxlen=12)
        self._drain: threading.Thread | None = None
        self._news, self._tell = os.pipe2(os.O_CLOEXEC)  # a byte when it is ready, and one when it has ended

    def start(self, interrupt: Interrupt) -> None:
        """Start it and wait until it is ready, or until a signal. Raises OperatorError."""
        self._write_config()
        libc = ctypes.CDLL(None, use_errno=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mta", "run", "-c", str(self.config_path)], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment(), start_new_session=True,
            # The kernel tells it when we are killed. No thread has been started yet, so this is safe after the fork.
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM))
        self._drain = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._drain.start()
        if interrupt.wait(START_S, self._news):
            return
        if not self.smtp.port:
            raise OperatorError(exits.SOFTWARE, f"the MTA did not start; it said\n{self.said()}")
        os.read(self._news, 1)

    def _write_config(self) -> None:
        lines = [f"{key}: {json.dumps(value)}" for key, value in self._config.items()]
        self.config_path.write_text("# Made by `mta demo`.\n" + "\n".join(lines) + "\n")

    def reload(self, **changes: Any) -> None:
        """Change options at the top of the configuration while it runs."""
        assert self._process is not None
        self._config.update(changes)
        self._write_config()
        self._process.send_signal(signal.SIGHUP)

    @property
    def end(self) -> int:
        """A descriptor that can be read when it has ended by itself."""
        return self._news

    def check(self) -> None:
        """Raises OperatorError when it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            code = self._process.returncode
            raise OperatorError(exits.SOFTWARE, f"the MTA ended with {code}; it said\n{self.said()}")

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Keep what it says, and find out where it listens."""
        assert process.stderr is not None
        with process.stderr, (self.directory / "mta.log").open("wb", buffering=0) as log:
            for line in process.stderr:
                log.write(line)
                text = line.decode("utf-8", "replace").rstrip()
                self._last_lines.append(text)
                if not re.search(r"Z (debug|info) |^ready: ", text):
                    self.complaints.append(text)
                if not self.smtp.port and (found := re.search(r"ready: smtp ([\d.]+:\d+)", text)):
                    self.smtp = parse_endpoint(found[1])
                    os.write(self._tell, b"!")
        os.write(self._tell, b"!")

    def said(self) -> str:
        """Its last lines."""
        return "\n".join(f"    {line}" for line in self._last_lines)

    def client(self) -> ControlClient:
        """A connection to its control process. Raises OperatorError."""
        return ControlClient(str(self.directory / "run"))

    def usage(self) -> Usage:
        """What it has used until now; what cannot be found out any more is left out."""
        assert self._process is not None
        usage = Usage(cpu_s=_cpu_s(self._process.pid, children=True))
        try:
            with self.client() as client:
                family = client.status().family
        except OperatorError:
            return usage
        for member in family.members:
            usage.restarts += member.restarts
            usage.cpu_s += _cpu_s(member.pid)
            if member.role == "worker":
                usage.peak_memory.append(_peak_memory(member.pid))
        return usage

    def stop(self, at_once: bool) -> None:
        """End it, with what is in flight unless `at_once`."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT if at_once else signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        # Whatever may be left of it; workers end by themselves when their supervisor is gone, but not at once.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        process.wait()
        if self._drain is not None:
            self._drain.join(STOP_S)


def _environment() -> dict[str, str]:
    """Ours, without what systemd may have given us: the MTA is not its service."""
    kept = environment()
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        kept.pop(name, None)
    return kept


def _cpu_s(pid: int, children: bool = False) -> float:
    """User and system time of a process; with that of its children that have ended if `children`."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15] if children else fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _peak_memory(pid: int) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
