"""Haraka beside us: an instance in a directory of its own, on loopback, from a scratch installation by npm.

    npm install --prefix /tmp/haraka Haraka@3        (apt-get install npm; nothing else of the bench needs it)

Found by the environment variable HARAKA (the program), on the PATH, or in /tmp/haraka. Two processes ("nodes"),
`concurrency_max` 500, no TLS, relaying for loopback, every message synced before its 250 as it comes. It asks the
resolver in /etc/resolv.conf and delivers to port 25, so it lives in a mount namespace and the sink listens there.
Needs root.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from bench import namespace
from bench.candidate import Candidate, Daemon, Setup, wait_for_greeting
from bench.processes import program
from bench.programs import free_port

NAME = "haraka"
NODES = 2
CONCURRENCY = 500
_SCRATCH = "/tmp/haraka/node_modules/.bin/haraka"
_INSTALL = "npm install --prefix /tmp/haraka Haraka@3"
_FILES = {
    "me": "haraka.bench.test\n",
    "plugins": "relay\n",
    "relay.ini": "[relay]\nacl=true\nforce_routing=false\nall=false\ndest_domains=false\n",
    "relay_acl_allow": "127.0.0.0/8\n",
    "host_list": "haraka.bench.test\n",
    "log.ini": "[main]\nlevel=ERROR\n",
    "loglevel": "ERROR\n",
    # Its own defaults of these are not taken when a directory of configuration is named.
    "connection.ini": "[main]\n[haproxy]\nhosts[] =\n[headers]\nmax_lines=1000\nmax_received=100\n"
                      "[max]\nbytes=100000000\nmime_parts=1000\nline_length=512\ndata_line_length=992\n"
                      "[message]\nhelo=Haraka\nclose=bye\n[uuid]\nbanner_chars=6\ndeny_chars=0\n",
    "smtp.ini": "listen=127.0.0.1:{port}\nnodes={nodes}\ndaemonize=false\n",
    "outbound.ini": "concurrency_max={concurrency}\nenable_tls=false\nlocal_mx_ok=true\ninet_prefer=v4\n"
                    "[TLS]\nenabled=false\n",
}


class Haraka(Candidate):
    """An instance."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._daemon: Daemon | None = None

    def start(self) -> str:
        port = free_port(["127.0.0.1"])
        config = self._setup.directory / "config"
        config.mkdir()
        (self._setup.directory / "queue").mkdir()
        concurrency = self._setup.connections or CONCURRENCY
        for name, text in _FILES.items():
            (config / name).write_text(text.format(port=port, nodes=NODES, concurrency=concurrency))
        where = _where()
        assert where is not None
        self._daemon = Daemon(self._setup, namespace.with_resolver(
            self._setup.dns[0], self._setup.directory, [where, "-c", str(self._setup.directory)]))
        wait_for_greeting(self._daemon, port)
        return f"127.0.0.1:{port}"

    def queued(self) -> int:
        queue = self._setup.directory / "queue"
        return sum(1 for path in queue.rglob("*") if path.is_file() and not path.name.startswith("__tmp__"))

    def stop(self) -> list[str]:
        if self._daemon is None:
            return []
        return [text for text in self._daemon.stop() if not re.search(r"exit code -?(15|143)$", text)]


def unavailable() -> str | None:
    """Why Haraka cannot run here, or None."""
    if _where() is None:
        return f"Haraka is not installed: {_INSTALL}, or set HARAKA to its program"
    return namespace.unavailable("Haraka", smtp_port=True)


def version() -> str:
    """Its version."""
    where = _where()
    assert where is not None
    said = subprocess.run([where, "--version"], capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"\d+\.\d+\.\d+", said)
    return found[0] if found else said.strip()


def _where() -> str | None:
    named = os.environ.get("HARAKA")
    if named:
        return named if os.access(named, os.X_OK) else None
    return program("haraka") or (_SCRATCH if Path(_SCRATCH).exists() else None)
