"""The life of a child process that is the same for workers and the control process.

What passes between it and the supervisor: `mta.control.line`.

When the line ends without a `stop`, the supervisor is dead: the child stops by itself within `ORPHAN_GRACE_S`. Until
it is gone it holds the locks of spool and runtime directory (open files inherited from the supervisor, flock(2)), so
that no new instance starts beside it.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import pickle
import signal
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import gevent.lock
import gevent.socket

from mta.config.schema import Config
from mta.control import exits, log
from mta.control.channel import CONTROL_LIMIT, FrameError, FrameReader, encode
from mta.control.line import ALARM_MARGIN_S, HEARTBEAT_S, ORPHAN_GRACE_S, ChildSetup
from mta.control.protocol import Family, from_wire

_log = logging.getLogger(__name__)


class Child:
    """A child's end of the line to the supervisor.

    `config` is the configuration in force. `stop_requested` is set when it is time to finish, `deadline` (monotonic)
    says by when and may move nearer. `on_reload` is called with each new configuration; what it raises is logged.
    `family` is what the supervisor last said of all children (to the control process alone).
    """

    def __init__(self, setup: ChildSetup) -> None:
        self.setup = setup
        self.config: Config  # attach() sets it before anyone sees us
        self.stop_requested = gevent.event.Event()
        self.deadline = math.inf
        self.orphaned = False
        self.family = Family(os.getppid(), time.time_ns() // 1000)
        self.on_reload: Callable[[Config], None] | None = None
        self._deadline_moved = gevent.event.Event()
        self._line = gevent.socket.socket(fileno=setup.line_fd)
        self._reader = FrameReader(CONTROL_LIMIT)
        self._sending = gevent.lock.Semaphore()

    @property
    def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    @classmethod
    def attach(cls) -> Child:
        """Take the line over from the environment, wait for the configuration, begin to listen and to send heartbeats.

        Heartbeats begin when the hub first runs; the supervisor expects them from `ready()` on.
        """
        child = cls(ChildSetup.from_json(os.environ.pop("MTA_CHILD")))
        for fd in (child.setup.line_fd, *child.setup.lock_fds, *(fd for _, fd in child.setup.listeners)):
            os.set_inheritable(fd, False)
        faulthandler.enable()  # the supervisor aborts a child that hangs: its stacks go to stderr
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        rest: list[Any] = []
        while not (rest and rest[0][0] == "config"):
            data = child._line.recv(262_144)
            if not data:
                raise SystemExit(exits.OK)  # the supervisor is gone before we began
            rest += child._reader.feed(data)
        child.config = pickle.loads(rest.pop(0)[1])
        log.set_up(child.setup.name, child.config.log)
        for message in rest:
            child._handle(message)
        gevent.signal_handler(signal.SIGTERM, child._on_sigterm)
        gevent.spawn(child._listen)
        gevent.spawn(child._beat)
        return child

    def sockets(self) -> list[tuple[int, Any]]:
        """The listening sockets, shared with all workers, as (index in config.listeners, gevent socket)."""
        return [(index, gevent.socket.socket(fileno=fd)) for index, fd in self.setup.listeners]

    def ready(self) -> None:
        """Tell the supervisor that we are recovered and accepting."""
        self._send(["ready"])

    def failed(self, exit_code: int, text: str) -> None:
        """Tell the supervisor why we cannot start. The caller ends the process with `exit_code`."""
        self._send(["failed", exit_code, text[:4000]])

    def finish(self, done: gevent.event.Event) -> bool:
        """Wait for `done` until the deadline, also when that moves. Returns whether it was in time."""
        while not done.is_set():
            left = self.deadline - time.monotonic()
            if left <= 0:
                return False
            self._deadline_moved.clear()
            gevent.wait([done, self._deadline_moved], timeout=None if left == math.inf else left, count=1)
        return True

    def stop(self, grace_s: float) -> None:
        """Ask ourselves to finish within `grace_s`. A later call can shorten the time, not prolong it."""
        deadline = time.monotonic() + grace_s
        if deadline < self.deadline:
            self.deadline = deadline
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(math.ceil(grace_s) + ALARM_MARGIN_S)
        self.stop_requested.set()
        self._deadline_moved.set()

    def _listen(self) -> None:
        try:
            while data := self._line.recv(262_144):
                for message in self._reader.feed(data):
                    self._handle(message)
        except ConnectionResetError:
            pass  # it was killed with something of ours unread
        except (OSError, FrameError) as error:
            _log.error("line to the supervisor: %s", error)
        self.orphaned = True
        if not self.stop_requested.is_set():
            _log.error("the supervisor is gone, stopping")
        self.stop(ORPHAN_GRACE_S)

    def _handle(self, message: list[Any]) -> None:
        match message:
            case ["reload", pickled]:
                config = pickle.loads(pickled)
                log.set_level(config.log)
                self.config = config
                if self.on_reload is not None:
                    try:
                        self.on_reload(config)
                    except Exception:
                        _log.exception("bug: the new configuration was not taken over in full")
            case ["stop", grace_s]:
                self.stop(grace_s)
            case ["family", dict(fields)]:
                self.family = from_wire(Family, fields)
            case _:
                _log.error("the supervisor said something unknown: %.80r", message)

    def _on_sigterm(self) -> None:
        _log.info("SIGTERM: stopping")
        self.stop(self.config.shutdown)

    def _beat(self) -> None:
        while not self.orphaned:
            self._send(["heartbeat", time.monotonic()])
            gevent.sleep(HEARTBEAT_S)

    def _send(self, message: list[Any]) -> None:
        # While the supervisor is stopped (SIGSTOP) this waits, which holds up nothing but the next heartbeat.
        try:
            with self._sending:
                self._line.sendall(encode(message))
        except OSError:
            pass  # the supervisor is gone: _listen() sees the end of the line and acts
        except MemoryError:
            pass  # one heartbeat less: if it stays like that we shall be ended


def run_child(main: Callable[[Child], None]) -> int:
    """The whole life of a child process: attach, run `main`, report a failed start. Returns the exit code.

    `main` calls `child.ready()` when it is, and returns when it has finished after `stop_requested`. A StartError is
    reported to the supervisor with its code; any other exception is a bug: the traceback goes to stderr, the code is
    `exits.SOFTWARE`.
    """
    _end_without_memory()
    child = Child.attach()
    try:
        main(child)
    except exits.StartError as error:
        child.failed(error.exit_code, str(error))
        return error.exit_code
    except Exception as error:
        _log.exception("bug: %s ends", child.setup.name)
        child.failed(exits.SOFTWARE, f"bug: {type(error).__name__}: {error}")
        return exits.SOFTWARE
    return exits.OK


def _end_without_memory() -> None:
    """End the process when something of ours finds no memory, and nobody there knows what to do without it.

    Else a greenlet that keeps time or watches deadlines would be gone, and the process go on without it. To be started
    anew costs nothing that was accepted, as kill -9 does not (Postfix's mymalloc has the same rule).
    """
    hub: Any = gevent.get_hub()
    usual = hub.handle_error
    text = b"error: there is no memory: this process ends, and is started again\n"  # made while there was some

    def handle(context: object, kind: type[BaseException], value: object, trace: object) -> None:
        if kind is not None and issubclass(kind, MemoryError):
            os.write(2, text)
            os._exit(exits.OS_ERROR)
        usual(context, kind, value, trace)

    hub.handle_error = handle
