"""Postfix beside us: the installed binaries as a private instance in a directory of its own, on loopback.

It is tuned as a bulk relay: no input throttle, many processes, wide concurrency, connection caching, a large active
queue, no rewriting maps, no TLS, no chroot. Durability is as it comes: every message synced before its 250.

Nothing of the system's Postfix is touched: configuration, queue, lock and log are in the directory, the listening
port is a free one. Postfix asks the resolver in /etc/resolv.conf and at port 53 only, so this instance lives in a
mount namespace in which that file names the bench's name server. Needs root.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import subprocess
from pathlib import Path

from bench import namespace
from bench.candidate import Candidate, CandidateError, Daemon, Setup, check_reachable, wait_for_greeting
from bench.processes import program
from bench.programs import free_port

NAME = "postfix"

_QUEUE = ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "maildrop", "pid", "private",
          "public", "saved", "trace")
_WAITING = ("active", "deferred", "incoming")
_MAIN = """\
compatibility_level = 3.6
config_directory = {directory}/etc
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/maillog
maillog_file_prefixes = {directory}
myhostname = postfix.bench.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
biff = no
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_tls_security_level = none
smtp_tls_security_level = none
smtp_tcp_port = {port}
import_environment = MAIL_CONFIG TZ LANG=C {environment}
export_environment = TZ MAIL_CONFIG LANG {environment}
"""
_TUNED = """\
in_flow_delay = 0
default_process_limit = 200
default_destination_concurrency_limit = {concurrency}
initial_destination_concurrency = {initial}
smtp_destination_recipient_limit = 50
smtp_connection_cache_on_demand = yes
qmgr_message_active_limit = 40000
qmgr_message_recipient_limit = 40000
"""
_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
"""


class Postfix(Candidate):
    """A private instance. Not `tuned`: what concerns speed and delivery is as Postfix comes."""

    def __init__(self, setup: Setup, tuned: bool = True) -> None:
        self._setup = setup
        self._main = _MAIN + (_TUNED if tuned else "")
        self._queue = setup.directory / "queue"
        self._daemon: Daemon | None = None

    def start(self) -> str:
        port = free_port(["127.0.0.1"])
        master = self._prepare(port)
        self._daemon = Daemon(self._setup, namespace.with_resolver(
            self._setup.dns[0], self._setup.directory, [master, "-c", str(self._setup.directory / "etc"), "-s"]))
        try:
            wait_for_greeting(self._daemon, port)
        except CandidateError as error:
            log = self._setup.directory / "maillog"
            raise CandidateError(f"{error}\n{log.read_text() if log.exists() else ''}") from None
        return f"127.0.0.1:{port}"

    def queued(self) -> int:
        return sum(1 for name in _WAITING for path in (self._queue / name).rglob("*") if path.is_file())

    def stop(self) -> list[str]:
        if self._daemon is None:
            return []
        # The master passes SIGTERM to its process group, itself included.
        complaints = [text for text in self._daemon.stop() if "exit code -15" not in text]
        with contextlib.suppress(OSError):
            log = (self._setup.directory / "maillog").read_text(errors="replace")
            lines = [line for line in log.splitlines() if any(word in line for word in ("fatal:", "panic:"))]
            complaints += [f"its log has {len(lines)} fatal errors, the first: {lines[0]}"] if lines else []
        return complaints

    def _prepare(self, port: int) -> str:
        """Directories and configuration; the path of the master program."""
        directory = self._setup.directory
        owner, group = pwd.getpwnam("postfix"), grp.getgrnam("postdrop")
        check_reachable(directory, "postfix")
        for path in (directory / "etc", self._queue, directory / "data"):
            path.mkdir()
        os.chown(directory / "data", owner.pw_uid, owner.pw_gid)
        for name in _QUEUE:
            path = self._queue / name
            path.mkdir(mode=0o700)
            if name != "pid":
                os.chown(path, owner.pw_uid, -1)
        for name, mode in (("public", 0o2710), ("maildrop", 0o1730)):
            os.chown(self._queue / name, owner.pw_uid, group.gr_gid)
            (self._queue / name).chmod(mode)
        (self._queue / "pid").chmod(0o755)
        concurrency = self._setup.connections
        (directory / "etc" / "main.cf").write_text(self._main.format(
            directory=directory, port=self._setup.sink_port,
            concurrency=100 if concurrency is None else concurrency,
            initial=20 if concurrency is None else concurrency,
            environment=" ".join(f"{name}={value}" for name, value in self._setup.environment.items()),
        ))
        (directory / "etc" / "master.cf").write_text(_MASTER.format(port=port))
        return str(Path(_default("daemon_directory")) / "master")


def unavailable() -> str | None:
    """Why Postfix cannot run here, or None."""
    if program("postconf") is None:
        return "Postfix is not installed (Debian: apt-get install postfix)"
    if not _default("smtp_tcp_port"):
        return f"Postfix {version()} cannot deliver to another port than 25 by MX; 3.7 and later can"
    return namespace.unavailable("Postfix")


def version() -> str:
    """Its version."""
    return _default("mail_version")


def _default(name: str) -> str:
    """Its built-in default of a parameter, empty when there is none."""
    postconf = program("postconf")
    assert postconf is not None
    done = subprocess.run([postconf, "-dh", name], capture_output=True, text=True)
    return done.stdout.strip()
