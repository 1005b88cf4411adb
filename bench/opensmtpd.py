"""OpenSMTPD beside us: the installed binary as a private instance, on loopback.

Found by the environment variable OPENSMTPD (the program smtpd), or where Debian's package puts it. Its paths are
compiled in (/var/spool/smtpd, /run/smtpd.sock) and it delivers to port 25 by MX: it lives in a mount namespace in
which /var/spool is in the run's directory, and the sink listens on port 25. Its users are made up there when the
system lacks them. It does not sync what it accepts. Needs root.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from pathlib import Path

from bench import namespace
from bench.candidate import Candidate, Daemon, Setup, check_reachable, wait_for_greeting
from bench.programs import free_port

NAME = "opensmtpd"
_USERS = (("opensmtpd", 64_101), ("opensmtpq", 64_102))
"""Debian's names."""
_SPOOL = "/var/spool"
_RUN = "/run"
_EMPTY = "/var/lib"
"""Debian's smtpd locks itself into /var/lib/opensmtpd/empty."""
_CONFIG = """\
queue ttl 4d
smtp max-message-size 100M
smtp limit max-mails 1000000
smtp limit max-rcpt 50000
listen on 127.0.0.1 port {port}
table bench {{ 127.0.0.0/8 }}
action "out" relay helo "opensmtpd.bench.test"
match from any for any action "out"
"""


class OpenSmtpd(Candidate):
    """A private instance."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._daemon: Daemon | None = None
        self._spool = setup.directory / "spool"

    def start(self) -> str:
        port = free_port(["127.0.0.1"])
        directory = self._setup.directory
        check_reachable(directory, NAME)
        run, state = directory / "run", directory / "lib"
        for path in (self._spool, run, state, state / "opensmtpd", state / "opensmtpd" / "empty"):
            path.mkdir(mode=0o755)
        over = {self._spool: _SPOOL, run: _RUN, state: _EMPTY, **users(directory)}
        config = directory / "smtpd.conf"
        config.write_text(_CONFIG.format(port=port))
        config.chmod(0o600)
        program = where()
        assert program is not None
        self._daemon = Daemon(self._setup, namespace.with_resolver(
            self._setup.dns[0], directory, [program, "-d", "-f", str(config)], over))
        wait_for_greeting(self._daemon, port)
        return f"127.0.0.1:{port}"

    def queued(self) -> int:
        # queue/AB/ABCDEF12/ABCDEF12...: an envelope for each recipient beside the message.
        return sum(1 for path in (self._spool / "smtpd" / "queue").rglob("*")
                   if path.is_file() and re.fullmatch(r"[0-9a-f]{16}", path.name))

    def stop(self) -> list[str]:
        if self._daemon is None:
            return []
        return [text for text in self._daemon.stop() if not re.search(r"exit code (-?15|143|0|1)$", text)]


def users(directory: Path) -> dict[Path, str]:
    """/etc/passwd and /etc/group with the users that are missing."""
    found: dict[Path, str] = {}
    missing = [(name, number) for name, number in _USERS if not _is_user(name)]
    if missing:
        passwd, group = directory / "passwd", directory / "group"
        passwd.write_text(Path("/etc/passwd").read_text() + "".join(
            f"{name}:x:{number}:{number}::{_EMPTY}/opensmtpd/empty:/usr/sbin/nologin\n"
            for name, number in missing))
        group.write_text(Path("/etc/group").read_text() + "".join(
            f"{name}:x:{number}:\n" for name, number in missing))
        found = {passwd: "/etc/passwd", group: "/etc/group"}
    return found


def unavailable() -> str | None:
    """Why OpenSMTPD cannot run here, or None."""
    if where() is None:
        return "OpenSMTPD is not installed (Debian: apt-get install opensmtpd); OPENSMTPD names an smtpd elsewhere"
    return namespace.unavailable("OpenSMTPD", smtp_port=True)


def version() -> str:
    """Its version."""
    program = where()
    assert program is not None
    done = subprocess.run([program, "-h"], capture_output=True, text=True)
    found = re.search(r"OpenSMTPD (\S+)", done.stdout + done.stderr)
    return found[1] if found else "?"


def where() -> str | None:
    """Its program, or None."""
    named = os.environ.get("OPENSMTPD")
    if named:
        return named if os.access(named, os.X_OK) else None
    # Other programs are called smtpd, too: Postfix's is not on the PATH, Python's is a module.
    path = "/usr/sbin/smtpd"
    return path if os.access(path, os.X_OK) else None


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
