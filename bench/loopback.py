"""What the load programs share: loopback addresses, their life as a process, their result as one JSON object."""

from __future__ import annotations

import json
import resource
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address

Number = int | float


class NotLoopbackError(ValueError):
    """An address outside 127.0.0.0/8: the load programs refuse to talk to the world."""


def endpoint(text: str) -> tuple[str, int]:
    """`127.0.0.1:2525` as host and port. Raises ValueError, also for an address that is not loopback."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"expected ADDRESS:PORT, not {text!r}")
    return loopback(host), int(port)


def loopback(text: str) -> str:
    """The IPv4 address `text`, which must be loopback. Raises ValueError."""
    address = IPv4Address(text)
    if not address.is_loopback:
        raise NotLoopbackError(f"{text} is not loopback: load goes to 127.0.0.0/8 only")
    return str(address)


def consecutive(first: str, count: int) -> list[str]:
    """`count` loopback addresses from `first` on. Raises ValueError when they leave 127.0.0.0/8."""
    start = IPv4Address(loopback(first))
    return [loopback(str(start + number)) for number in range(count)]


def cpu_s() -> float:
    """User and system time of this process in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def raise_descriptor_limit() -> None:
    """As many file descriptors as this user may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def announce(what: str) -> None:
    """Tell the starter that this program accepts: one line on stderr with the word `ready`."""
    sys.stderr.write(f"ready: {what}\n")
    sys.stderr.flush()


def write_result(path: str | None, result: Mapping[str, Number]) -> None:
    """One JSON object into the file `path`, or on stdout."""
    text = json.dumps(result) + "\n"
    if path is None:
        sys.stdout.write(text)
        return
    with open(path, "w", encoding="ascii") as out:
        out.write(text)


def write_times(path: str | None, times: Sequence[tuple[int, float]]) -> None:
    """Numbers of messages, each with a time of CLOCK_MONOTONIC, into the file `path`, if there is one."""
    if path is not None:
        with open(path, "w", encoding="ascii") as out:
            json.dump(times, out)


class Stop:
    """Turns SIGTERM and SIGINT into a flag that wakes the epoll object it is registered with."""

    def __init__(self, poll: select.epoll) -> None:
        # PEP 475 restarts an interrupted wait, so the signal has to come as a readable descriptor.
        self.asked = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        poll.register(self._reader.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._reader.fileno()

    def _handle(self, *_: object) -> None:
        self.asked = True
