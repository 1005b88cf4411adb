"""Debian's own mail servers as private instances on loopback: Postfix and Exim in a temporary directory."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from bench.programs import free_port

POSTFIX_DAEMONS = Path("/usr/lib/postfix/sbin")
EXIM = next((path for path in (os.environ.get("EXIM4", ""), "/usr/sbin/exim4") if path and os.path.exists(path)), "")


def wait_for_port(port: int, timeout_s: float = 20.0) -> None:
    """Wait until something accepts on `port`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.05)


class Postfix:
    """A Postfix of its own. `settings` are lines of main.cf; it listens on `port`."""

    def __init__(self, directory: Path, settings: list[str]) -> None:
        if shutil.which("postfix") is None or not POSTFIX_DAEMONS.exists():
            pytest.skip("needs Debian's package postfix")
        if os.getuid() != 0:
            pytest.skip("Postfix's master needs root")
        self.directory = directory
        self.port = free_port(["127.0.0.1"])
        self.log = directory / "log"
        for name in ("etc", "queue", "data"):
            (directory / name).mkdir(parents=True)
        os.chmod(directory, 0o755)
        shutil.chown(directory / "data", "postfix")
        main = [
            "compatibility_level = 3.6", f"queue_directory = {directory}/queue", f"data_directory = {directory}/data",
            "command_directory = /usr/sbin", f"daemon_directory = {POSTFIX_DAEMONS}", "mail_owner = postfix",
            "setgid_group = postdrop", f"maillog_file = {self.log}", f"maillog_file_prefixes = {directory}",
            "myhostname = postfix.test", "mydestination =", "mynetworks = 127.0.0.0/8", "inet_interfaces = 127.0.0.1",
            "inet_protocols = ipv4", "alias_maps =", "alias_database =", "smtputf8_enable = no",
            "smtp_dns_support_level = disabled", "smtp_host_lookup = native", *settings,
        ]
        (directory / "etc" / "main.cf").write_text("\n".join(main) + "\n")
        services = [f"127.0.0.1:{self.port} inet n - n - - smtpd", "cleanup unix n - n - 0 cleanup",
                    "qmgr unix n - n 300 1 qmgr", "rewrite unix - - n - - trivial-rewrite",
                    "bounce unix - - n - 0 bounce", "defer unix - - n - 0 bounce", "trace unix - - n - 0 bounce",
                    "smtp unix - - n - - smtp", "discard unix - - n - - discard", "error unix - - n - - error",
                    "retry unix - - n - - error", "anvil unix - - n - 1 anvil", "postlog unix-dgram n - n - 1 postlogd",
                    "tlsmgr unix - - n 1000? 1 tlsmgr", "proxymap unix - - n - - proxymap",
                    "flush unix n - n 1000? 0 flush", "verify unix - - n - 1 verify"]
        (directory / "etc" / "master.cf").write_text("\n".join(services) + "\n")

    def __enter__(self) -> Postfix:
        done = subprocess.run(["postfix", "-c", str(self.directory / "etc"), "start"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + (self.log.read_text() if self.log.exists() else "")
        wait_for_port(self.port)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["postfix", "-c", str(self.directory / "etc"), "stop"], check=False, capture_output=True)


class Exim:
    """An Exim of its own that takes mail for every domain and writes it to a file."""

    def __init__(self, directory: Path) -> None:
        if not EXIM:
            pytest.skip("needs Debian's package exim4-daemon-light, or its exim4 named by EXIM4")
        if os.getuid() != 0:
            pytest.skip("Exim with a configuration of its own needs root")
        try:
            pwd.getpwnam("Debian-exim")
        except KeyError:
            pytest.skip("needs the user Debian-exim that Debian's package makes")
        self.port = free_port(["127.0.0.1"])
        self.mailbox = directory / "mailbox"
        directory.mkdir(parents=True)
        shutil.chown(directory, "Debian-exim")
        self.config = directory / "exim.conf"
        self.config.write_text(f"""
exim_path = {EXIM}
primary_hostname = exim.test
spool_directory = {directory}/spool
log_file_path = {directory}/%slog
daemon_smtp_ports = {self.port}
local_interfaces = 127.0.0.1
host_lookup =
rfc1413_query_timeout = 0s
tls_advertise_hosts =
acl_smtp_rcpt = check_rcpt
never_users =
begin acl
check_rcpt:
  deny local_parts = ^no-
       message = no such user
  accept
begin routers
all:
  driver = accept
  transport = file
begin transports
file:
  driver = appendfile
  file = {self.mailbox}
  user = Debian-exim
  group = Debian-exim
begin retry
* * F,1h,1m
""")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Exim:
        self.process = subprocess.Popen([EXIM, "-C", str(self.config), "-bdf"])
        wait_for_port(self.port)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()
