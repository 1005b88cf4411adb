"""One child process as the supervisor sees it: started by exec, spoken to over its line, signalled, reaped.

No policy here: when to start, stop or kill is the supervisor's. Nothing here waits, so a child that hangs cannot hold
up the others.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mta.control.channel import CONTROL_LIMIT, FrameError, FrameReader, encode
from mta.control.exits import SOFTWARE
from mta.control.line import ChildSetup
from mta.control.protocol import Member

_RECV_SIZE: Final = 65_536


@dataclass(slots=True)
class MemberProcess:
    """A place in the family, and the process that fills it at the moment, if any.

    `on_readable` and `on_writable` are for the supervisor's selector; times are monotonic seconds.
    """

    role: str  # "worker" or "control"
    number: int
    shards: list[int]
    state: str = "waiting"  # see protocol.Member
    process: subprocess.Popen[bytes] | None = None
    line: socket.socket | None = None
    outgoing: bytearray = field(default_factory=bytearray)  # frames that the child has not taken yet
    reader: FrameReader = field(default_factory=lambda: FrameReader(CONTROL_LIMIT))
    started: float = 0.0
    started_us: int = 0
    heard: float = 0.0  # when something came over the line
    restart_at: float = 0.0
    clear_at: float | None = None  # when what it held of limits is given back, after it has died
    kill_at: float | None = None  # SIGKILL then
    failure: tuple[int, str] | None = None  # what the child reported by "failed"
    quick_ends: int = 0  # in a row, soon after the start
    restarts: int = 0
    last_end: str = ""
    killed_by_us: bool = False

    @property
    def name(self) -> str:
        """`worker-0`, `control`."""
        return self.role if self.role == "control" else f"{self.role}-{self.number}"

    @property
    def pid(self) -> int:
        """Of the process, 0 when there is none."""
        return self.process.pid if self.process is not None else 0

    def start(
        self,
        command: Callable[[ChildSetup], Sequence[str]],
        workers: int,
        listeners: Sequence[tuple[int, socket.socket]],
        locks: Sequence[int],
        environment: Mapping[str, str],
    ) -> None:
        """Start a process. Raises OSError."""
        self.started = self.heard = time.monotonic()
        ours, theirs = socket.socketpair()
        setup = ChildSetup(
            self.role, self.number, workers, theirs.fileno(), list(locks),
            [(index, sock.fileno()) for index, sock in listeners], self.shards, self.restarts > 0,
        )  # fmt: skip
        inherited = [setup.line_fd, *setup.lock_fds, *(fd for _, fd in setup.listeners)]
        try:
            self.process = subprocess.Popen(
                list(command(setup)),
                stdin=subprocess.DEVNULL,
                pass_fds=inherited,
                env={**environment, "MTA_CHILD": setup.to_json()},
                process_group=0,  # Ctrl-C in a terminal is for the supervisor alone
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self.line = ours
        self.outgoing.clear()
        self.reader = FrameReader(CONTROL_LIMIT)
        self.state = "starting"
        self.started_us = time.time_ns() // 1000
        self.kill_at = None
        self.failure = None
        self.killed_by_us = False

    def send(self, message: list[Any]) -> None:
        """Say something to the child; what it does not take now waits for `flush()`. A dead child hears nothing."""
        if self.line is not None:
            self.outgoing += encode(message)
            self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the child takes it."""
        while self.line is not None and self.outgoing:
            try:
                del self.outgoing[: self.line.send(self.outgoing)]
            except BlockingIOError:
                return
            except OSError:  # it is dead; its end will be reaped
                self.outgoing.clear()

    def receive(self) -> list[Any]:
        """What the child has said since. Raises EOFError when its end of the line is closed."""
        messages: list[Any] = []
        while self.line is not None:
            try:
                data = self.line.recv(_RECV_SIZE)
            except BlockingIOError:
                break
            except OSError:  # it ended without reading all that we said
                data = b""
            if not data:
                if messages:
                    break  # the next call tells of the end
                raise EOFError("closed")
            try:
                messages += self.reader.feed(data)
            except FrameError as error:
                raise EOFError(str(error)) from error
        if messages:
            self.heard = time.monotonic()
        return messages

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it still runs."""
        if self.process is not None:
            if number in (signal.SIGABRT, signal.SIGKILL):
                self.killed_by_us = True
            self.process.send_signal(number)

    def reaped(self) -> bool:
        """Whether the process has ended; then `last_end` says how, the line is closed and the place is vacant."""
        if self.process is None or self.process.poll() is None:
            return False
        code = self.process.returncode
        self.last_end = _how_it_ended(code, self.failure, self.killed_by_us)
        if self.failure is None:
            self.failure = (SOFTWARE, self.last_end)
        self.close_line()
        self.process = None
        return True

    def close_line(self) -> None:
        """Close our end of the line."""
        if self.line is not None:
            self.line.close()
            self.line = None
        self.outgoing.clear()

    def view(self, now: float) -> Member:
        """The same for other processes."""
        waits_us = int((self.restart_at - now) * 1e6) if self.state == "waiting" and self.restart_at else None
        return Member(
            role=self.role,
            number=self.number,
            pid=self.pid,
            state=self.state,
            shards=self.shards,
            started_us=self.started_us if self.process is not None else 0,
            restarts=self.restarts,
            restart_us=0 if waits_us is None else time.time_ns() // 1000 + waits_us,
            last_end=self.last_end,
        )


def _how_it_ended(code: int, failure: tuple[int, str] | None, by_us: bool) -> str:
    if failure is not None:
        return failure[1]
    if code == 0:
        return "ended by itself"
    if code > 0:
        return f"exit code {code}, see the lines before"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (out of memory? the kernel's log tells)" if name == "SIGKILL" and not by_us else ""
    return f"killed by {name}{hint}"
