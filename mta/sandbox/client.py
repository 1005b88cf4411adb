"""The sandbox for tests, demo and benchmarks: starts one in a process of its own and talks to it. No gevent here.

    with Sandbox({"domains": {"slow.test": {"latency": "500ms"}}}) as sandbox:
        # dns: {servers: [sandbox.dns]}, delivery: {allow_loopback: true}, shaping: {default: {port: sandbox.smtp_port}}
        assert sandbox.stats()["duplicates"] == 0
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from mta.sandbox.ledger import Arrival, Visit

START_S: Final = 20.0
ANSWER_S: Final = 60.0  # beyond what is asked to take time
LOOK_S: Final = 0.5  # for conditions on what is no transaction: connections, DNS


def default_control() -> str:
    """Where the control socket is unless the settings say so: one per user."""
    return os.path.join(tempfile.gettempdir(), f"mta-sandbox-{os.getuid()}.sock")


class SandboxError(Exception):
    """The sandbox did not start, or refuses a request. `str()` says why."""


class SandboxGoneError(SandboxError):
    """No sandbox answers."""


@dataclass(frozen=True, slots=True)
class Received:
    """One pair of message and recipient that the sandbox accepted, and how often."""

    key: str  # X-Test-Id, else Message-ID
    recipient: str
    count: int


class Control:
    """Questions to a running sandbox over its control socket (`mta.sandbox.control`).

    Each has a connection of its own, so that threads may ask side by side. Raises SandboxError.
    """

    def __init__(self, where: str) -> None:
        """`where` is a path or `host:port`."""
        self.where = where

    def ask(self, do: str, request: Mapping[str, Any] | None = None) -> Any:
        """Ask for something that has one answer."""
        result = None
        for answer in self._answers(do, request or {}):
            result = answer["result"]
        return result

    def listing(self, do: str) -> Iterator[Any]:
        """Ask for a list, which comes in portions."""
        for answer in self._answers(do, {}):
            yield from answer.get("part", ())

    def _answers(self, do: str, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            with self._connect(ANSWER_S + float(request.get("timeout", 0))) as connection:
                connection.sendall(json.dumps({**request, "do": do}).encode() + b"\n")
                with connection.makefile("rb") as stream:
                    for line in stream:
                        answer = json.loads(line)
                        if not answer.get("ok", True):
                            raise SandboxError(answer["error"])
                        yield answer
                        if "ok" in answer:
                            return
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SandboxGoneError(f"no sandbox answers on {self.where}: {reason}") from error
        raise SandboxGoneError(f"the sandbox on {self.where} has ended")

    def _connect(self, timeout_s: float) -> socket.socket:
        if "/" not in self.where:
            host, _, port = self.where.rpartition(":")
            return socket.create_connection((host.strip("[]"), int(port)), timeout_s)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connection.connect(self.where)
        except OSError:
            connection.close()
            raise
        return connection


class Sandbox:
    """A sandbox in a process of its own, on free ports, that ends with the `with` block or with this process."""

    def __init__(self, config: Mapping[str, Any] | str | None = None, *, capture: str | None = None) -> None:
        """`config` is the content of a configuration file, which may set the ports, or the path of one, whose ports
        are not used. Raises SandboxError when it does not start, with all that is wrong with the configuration."""
        self._directory = tempfile.TemporaryDirectory(prefix="mta-sandbox-")
        path = os.path.join(self._directory.name, "sandbox.yaml")
        command = [sys.executable, "-m", "mta.sandbox", "--lifeline",
                   "--stats", os.path.join(self._directory.name, "control.sock")]
        if isinstance(config, str):
            command += ["--config", config, "--dns", "127.0.0.1:0", "--port", "0"]
        else:
            with open(path, "w", encoding="utf-8") as file:
                json.dump({"dns": "127.0.0.1:0", "smtp_port": 0, **(config or {})}, file)
            command += ["--config", path]
        if capture is not None:
            command += ["--capture", capture]
        with open(os.path.join(self._directory.name, "stderr"), "wb") as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment(),
                start_new_session=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(START_S)
            raise SandboxError(self.stop() or "the sandbox did not start")
        ready = json.loads(line)
        self.dns: str = ready["dns"]
        self.smtp_port: int = ready["smtp_port"]
        self.control = Control(ready["control"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        said = self.stop()
        if error is None and self.process.returncode != 0:
            raise SandboxError(f"the sandbox ended with {self.process.returncode}: {said}")

    def stop(self) -> str:
        """End the process; what it wrote for people. May be called twice."""
        for stream in (self.process.stdin, self.process.stdout):  # its lifeline is stdin
            if stream is not None:
                stream.close()
        try:
            self.process.wait(START_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if os.path.isdir(self._directory.name):
            self._said = self.stderr()
            self._directory.cleanup()
        return self._said

    def stderr(self) -> str:
        """What the process has written for people."""
        with open(os.path.join(self._directory.name, "stderr"), encoding="utf-8", errors="replace") as file:
            return file.read().strip()

    # --- questions -------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """The sums over everything; see docs/sandbox.md."""
        result: dict[str, Any] = self.control.ask("stats")
        return result

    def domain(self, name: str) -> dict[str, Any]:
        """The counts of one recipient domain."""
        result: dict[str, Any] = self.control.ask("domain", {"name": name})
        return result

    def domains(self) -> dict[str, dict[str, Any]]:
        """The counts of all recipient domains."""
        return dict(self.control.listing("domains"))

    def sites(self) -> dict[str, dict[str, Any]]:
        """The connections by site, and by client of each."""
        return dict(self.control.listing("sites"))

    def received(self) -> list[Received]:
        """Every pair of message and recipient that was accepted, with how often."""
        return [Received(*item) for item in self.control.listing("received")]

    def log(self) -> list[dict[str, Any]]:
        """The last transactions, the oldest first, with the whole envelope and all replies."""
        return list(self.control.listing("log"))

    def arrivals(self) -> list[Arrival]:
        """When messages came, the oldest first; as many as the setting `times` says."""
        return [Arrival(*item) for item in self.control.listing("arrivals")]

    def visits(self) -> list[Visit]:
        """When connections came and went, likewise."""
        return [Visit(*item) for item in self.control.listing("visits")]

    def questions(self) -> dict[str, int]:
        """How often each DNS question was asked, by `name type`."""
        return dict(self.control.listing("questions"))

    def host(self, name: str) -> dict[str, Any]:
        """A host by its name: address, site, state. It gets its address now if it has none yet."""
        result: dict[str, Any] = self.control.ask("host", {"name": name})
        return result

    def address(self, name: str) -> str:
        """The address of a host, `mx1.DOMAIN` for the first of a domain."""
        address: str = self.host(name)["address"]
        return address

    # --- changes ---------------------------------------------------------------------------------------------------

    def set(self, name: str, personality: Mapping[str, Any] | str) -> None:
        """Give a domain (or a pattern, a host, `default`) a personality from now on; its phases count from now."""
        self.control.ask("set", {"name": name, "personality": personality})

    def reset(self) -> None:
        """Forget all counts, greylisted triplets and spent rates; personalities and open connections stay."""
        self.control.ask("reset")

    def wait(self, at_least: Mapping[str, int], *, domain: str | None = None,
             timeout_s: float = 30.0) -> dict[str, Any]:
        """Wait until counts are reached, of `domain()` if one is named, else of `stats()`; returns those.

        Raises TimeoutError with what they are then.
        """
        reached = self._wait(at_least, domain, timeout_s)
        counts = self.stats() if domain is None else self.domain(domain)
        if not reached:
            raise TimeoutError(f"waited {timeout_s} s for {dict(at_least)}, the sandbox says {counts}")
        return counts

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 30.0) -> dict[str, Any]:
        """The first `stats` for which `condition` holds, looked at whenever a transaction has ended.

        Raises TimeoutError with the last ones.
        """
        deadline = time.monotonic() + timeout_s
        while not condition(stats := self.stats()):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"waited {timeout_s} s, the sandbox still says {stats}")
            self._wait({"transactions": stats["transactions"] + 1}, None, min(left, LOOK_S))
        return stats

    def _wait(self, at_least: Mapping[str, int], domain: str | None, timeout_s: float) -> bool:
        reached: bool = self.control.ask("wait", {"at_least": dict(at_least), "domain": domain, "timeout": timeout_s})
        return reached


def environment() -> dict[str, str]:
    """Ours, with this package first on the path of imports, installed or not."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
