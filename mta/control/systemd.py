"""What systemd gives and wants, without its library: passed sockets, notifications, the watchdog.

Sources: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3). Outside systemd every function does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
TELLING_S: Final = 1.0  # how long a service manager that takes nothing is waited for with a change of state


def take_sockets(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """The listening sockets passed by socket activation, once: the variables are removed from `environment`.

    Each descriptor becomes close-on-exec, so that it reaches no child unasked.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = []
    for fd in range(FIRST_FD, FIRST_FD + int(count)):
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
    return sockets


class Notifier:
    """Sends our state to the service manager."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """The variables are removed from `environment`: children are not to speak in our name."""
        address = environment.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds = environment.pop("WATCHDOG_USEC", "")
        mine = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Half of the time allowed, as sd_watchdog_enabled(3) advises; None: no watchdog.
        self.watchdog_s: float | None = int(microseconds) / 2e6 if mine and microseconds.isdecimal() else None

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is complete."""
        self._send("READY=1", f"STATUS={status}", patience_s=TELLING_S)

    def reloading(self) -> None:
        """A reload begins; `ready()` ends it. The time lets systemd tell it from an earlier one."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", patience_s=TELLING_S)

    def stopping(self, status: str, seconds: float = 0.0) -> None:
        """The stop begins. `seconds`: it may take as long."""
        more = (f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}",) if seconds else ()
        self._send("STOPPING=1", f"STATUS={status}", *more, patience_s=TELLING_S)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str, patience_s: float = 0.0) -> None:
        if not self._address:
            return
        text = "\n".join(assignment.replace("\n", " ") for assignment in assignments)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(patience_s)  # a stuck service manager does not stop the mail
                sender.connect(self._address)  # unconnected, it would count as ready to write, and be tried without end
                sender.send(text.encode("utf-8", "replace"))
        except OSError:
            pass  # nobody to tell: without READY=1 the service manager notices by itself
