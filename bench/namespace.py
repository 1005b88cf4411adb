"""A mount namespace for programs that know one path only: the resolver of /etc/resolv.conf, a spool in /var.

Inside, files and directories of ours lie over the system's; outside nothing changes. Needs root.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.processes import program

DNS_ADDRESS = ("127.0.0.9", 53)
"""Where the name server has to listen for programs that read /etc/resolv.conf: a port cannot be named there."""

SMTP_PORT = 25
"""Where the sink has to listen for programs that cannot deliver to another port by MX."""

_SCRIPT = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 1; shift 2; done; shift; exec "$@"'


def with_resolver(server: str, directory: Path, command: Sequence[str],
                  over: Mapping[Path, str] | None = None) -> list[str]:
    """`command` so started that it asks `server`, and sees each path of ours over the system's that it names."""
    resolver = directory / "resolv.conf"
    resolver.write_text(f"nameserver {server}\n")
    mounts = [str(word) for pair in {resolver: "/etc/resolv.conf", **(over or {})}.items() for word in pair]
    return ["unshare", "--mount", "/bin/sh", "-c", _SCRIPT, "sh", *mounts, "--", *command]


def unavailable(name: str, smtp_port: bool = False) -> str | None:
    """Why the MTA `name` cannot have such a namespace here, or None. `smtp_port`: it needs the sink on port 25."""
    if os.geteuid() != 0:
        return f"{name} has to be started as root, to get a resolver of its own"
    if program("unshare") is None:
        return f"unshare (util-linux) is not installed: it gives {name} a resolver of its own"
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    if probe.returncode:
        return f"no mount namespace of its own: {probe.stderr.strip()}"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
            port.bind(DNS_ADDRESS)
    except OSError as error:
        return f"the name server cannot listen on {DNS_ADDRESS[0]}:53, the port that {name} asks: {error}"
    if smtp_port:
        try:
            with socket.socket() as port:
                port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                port.bind(("127.0.0.10", SMTP_PORT))
        except OSError as error:
            return f"the sink cannot listen on 127.0.0.10:{SMTP_PORT}, the port that {name} delivers to: {error}"
    return None
