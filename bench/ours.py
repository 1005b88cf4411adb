"""Our MTA under measurement: `mta run` of this checkout with its defaults, on loopback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import yaml

from bench.candidate import Candidate, CandidateError, Daemon, Setup
from bench.processes import kill
from bench.programs import ROOT, environment
from mta.control.client import ControlClient
from mta.control.exits import OperatorError

NAME = "ours"
_BAD_SIGN = re.compile(r"^Traceback|^\S+ (error|critical) ")


class Ours(Candidate):
    """`mta run`."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._daemon: Daemon | None = None
        self._config = setup.directory / "mta.yaml"

    def start(self) -> str:
        self._config.write_text(yaml.safe_dump(configuration(self._setup)))
        self._daemon = Daemon(self._setup, [sys.executable, "-m", "mta", "run", "-c", str(self._config)])
        line = self._daemon.wait_for("ready:")
        found = re.search(r"127\.0\.0\.1:\d+", line)
        if found is None:
            raise CandidateError(f"no listening address in {line!r}")
        return found[0]

    def queued(self) -> int:
        # The list is as of a checkpoint that is made for it; the counts of `mta status` are as of the last one.
        try:
            with ControlClient(str(self._setup.runtime)) as client:
                found = client.queues("", 1, "deliveries")
        except OperatorError as error:
            raise CandidateError(f"the queues could not be listed: {error}") from error
        if found.missing:
            raise CandidateError(f"the list of queues is incomplete: {found.missing}")
        return found.recipients

    def command(self, *words: str) -> str:
        """What an `mta` command says. Raises CandidateError."""
        done = subprocess.run([sys.executable, "-m", "mta", *words, "-c", str(self._config)], capture_output=True,
                              text=True, timeout=60, env=environment(), cwd=ROOT)
        if done.returncode:
            raise CandidateError(f"mta {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def reload(self) -> None:
        """Have it read its configuration again."""
        assert self._daemon is not None
        self._daemon.process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """Kill all its processes at once, as a power cut would, but for what the kernel still writes."""
        kill(self._setup.account)
        if self._daemon is not None:
            self._daemon.process.wait()
            self._daemon = None

    def stop(self) -> list[str]:
        if self._daemon is None:
            return []
        complaints = self._daemon.stop()
        lines = [line for line in self._daemon.said().splitlines() if _BAD_SIGN.match(line)]
        self._daemon = None
        return [*complaints, f"its log has {len(lines)} errors, the first: {lines[0]}"] if lines else complaints


def configuration(setup: Setup) -> dict[str, object]:
    """What differs from the defaults: where it is, whom it asks, and what the scenario is about."""
    config: dict[str, object] = {
        "hostname": "mta.bench.test",
        "workers": setup.workers if setup.workers == "auto" else int(setup.workers),
        "spool": str(setup.directory / "spool"),
        "run": str(setup.runtime),
        "listeners": [{"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.0/8"]}],
        "dns": {"servers": ["{}:{}".format(*setup.dns)]},
        "delivery": {"allow_loopback": True},
        "shaping": {"default": {"port": setup.sink_port, "families": "ipv4"}},
    }
    if os.geteuid() == 0:
        config["user"] = "root"
    if setup.connections is not None:
        place(config, "shaping.default.connections", setup.connections)
    for name, value in setup.settings.items():
        place(config, name, value)
    return config


def workers(text: str) -> int:
    """How many workers `auto` or a number on the command line are."""
    return len(os.sched_getaffinity(0)) if text == "auto" else int(text)


def place(config: dict[str, object], name: str, value: object) -> None:
    """Set the option with the dotted `name`."""
    *sections, last = name.split(".")
    section = config
    for key in sections:
        inner = section.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{name}: {key} is no section")
        section = inner
    section[last] = value


def version() -> str:
    """The version of this checkout, with its commit where there is one."""
    text = (ROOT / "mta" / "__init__.py").read_text()
    found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return " ".join(part for part in (found[1] if found else "", commit.stdout.strip()) if part)
