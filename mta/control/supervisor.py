"""Starts the workers and the control process, keeps them alive, passes on reload and stop. Plain Python, no gevent.

One loop over a selector. Signal handlers do nothing but exist: the interpreter writes the number of the signal into a
pipe (`signal.set_wakeup_fd`) that the loop reads. Nothing in the loop waits for a child. It parses nothing that
comes from the network, and from its children only what `mta.control.line` lists.

    SIGTERM          stop: children finish what is in flight within `shutdown`
    SIGINT           the same; a second one ends them at once
    SIGQUIT          stop at once
    SIGHUP           read and check the configuration again, pass it on if it has no error
    SIGCHLD          a child has ended: start it again, after a back-off

A child whose heartbeat is older than `Timing.heartbeat_limit` gets SIGABRT (its stacks go to stderr), then SIGKILL.
If the supervisor itself is killed, its children see the end of their line and stop by themselves.
"""

from __future__ import annotations

import enum
import functools
import logging
import os
import pickle
import random
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import mta
from mta.config.effective import Change, changes
from mta.config.loader import load
from mta.config.problems import ConfigError, path_text
from mta.control import exits, listen, log, reload, startup, systemd
from mta.control.line import ChildSetup
from mta.control.member import MemberProcess
from mta.control.protocol import Family, to_wire

LOGGED_CHANGES: Final = 50  # a reload may change thousands of domains

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """The supervisor's patience, in seconds."""

    heartbeat_limit: float = 30.0
    boot_limit: float = 300.0  # from the start of a child to its "ready"; recovery of a shard takes seconds
    abort_grace: float = 5.0  # from SIGABRT to SIGKILL
    restart_first: float = 0.2  # back-off: doubled by each quick end, up to the cap, with jitter of a half
    restart_cap: float = 30.0
    linger: float = 0.25  # until the leases of a dead worker are given back: a receiver hears of its end after us
    stable: float = 60.0  # a child that lived so long ends the back-off
    stop_margin: float = 5.0  # beyond `shutdown`, before SIGKILL
    quick: float = 3.0  # to stop at once, before SIGKILL
    echo: float = 0.1  # a SIGINT so soon after the first is the same one, passed on by a wrapper such as timeout(1)


class Phase(enum.Enum):
    """What the whole MTA is doing."""

    STARTING = "starting"  # a child that fails now ends the start
    RUNNING = "running"
    STOPPING = "stopping"


def child_command(setup: ChildSetup) -> list[str]:
    """How a child is started. `-P`: the current directory is no place to import from. The name is for `ps`."""
    module = "mta.control.server" if setup.role == "control" else "mta.control.worker"
    return [sys.executable, "-P", "-m", module, setup.name]


def clear_limits(run: str, worker: int) -> None:
    """Give back the leases of a worker that has died."""
    from mta.delivery.limits import Limits  # not needed unless something dies

    limits = Limits(run, None)
    try:
        limits.clear_worker(worker)
    finally:
        limits.close()


class Supervisor:
    """One running MTA. `run()` is its whole life. `command`, `clear` and `timing` are replaced in tests."""

    def __init__(
        self,
        config_path: str,
        command: Callable[[ChildSetup], Sequence[str]] = child_command,
        clear: Callable[[str, int], None] = clear_limits,
        timing: Timing | None = None,
    ) -> None:
        self._config_path = os.path.abspath(config_path)
        self._command = command
        self._clear = clear
        self._timing = timing or Timing()
        self._phase = Phase.STARTING
        self._exit_code: int = exits.OK
        self._members: list[MemberProcess] = []
        self._selector = selectors.DefaultSelector()
        self._family_changed = False
        self._reload_wanted = False
        self._interrupted: float | None = None
        self._next_watchdog = 0.0

    def run(self) -> int:
        """Start, run until stopped, return the exit code. Raises StartError, ConfigError while no child runs yet."""
        self._notifier = systemd.Notifier(os.environ)
        self._config = load(self._config_path)
        log.set_up("supervisor", self._config.log)
        self._resources = startup.prepare(self._config, os.environ)
        if not os.access(self._config_path, os.R_OK):
            _log.warning("%s is not readable for the user we run as: no reload will succeed", self._config_path)
        self._environment = _child_environment()
        self._started_us = time.time_ns() // 1000
        self._catch_signals()
        self._members = [
            *(MemberProcess("worker", number, shards) for number, shards in enumerate(self._resources.shards)),
            MemberProcess("control", 0, []),
        ]
        for member in self._members:
            if self._phase is Phase.STARTING:
                self._start(member)
        while not (self._phase is Phase.STOPPING and all(member.process is None for member in self._members)):
            for key, _ in self._selector.select(self._wait_s()):
                key.data()
            self._look_at_clock()
        return self._exit_code

    # --- signals ---------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._signal_pipe = (reader, writer)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, _do_nothing)
        self._selector.register(reader, selectors.EVENT_READ, self._on_signals)

    def _on_signals(self) -> None:
        for number in self._signal_pipe[0].recv(4096):
            match number:
                case signal.SIGCHLD:
                    self._reap()
                case signal.SIGTERM:
                    self._stop("SIGTERM")
                case signal.SIGINT:
                    self._on_interrupt()
                case signal.SIGQUIT:
                    self._stop_at_once("SIGQUIT")
                case signal.SIGHUP:
                    if self._phase is Phase.STARTING:
                        self._reload_wanted = True
                    elif self._phase is Phase.RUNNING:
                        self._reload()

    def _on_interrupt(self) -> None:
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            self._stop("SIGINT; once more to stop at once")
        elif now - self._interrupted >= self._timing.echo:
            self._stop_at_once("second SIGINT")

    # --- children --------------------------------------------------------------------------------------------------

    def _start(self, member: MemberProcess) -> None:
        try:
            member.start(
                self._command, len(self._resources.shards),
                self._resources.listeners if member.role == "worker" else (), self._resources.locks, self._environment,
            )  # fmt: skip
        except OSError as error:
            member.failure = (exits.OS_ERROR, f"cannot start a process: {error.strerror}")
            member.last_end = member.failure[1]
            self._ended(member, time.monotonic())
            return
        assert member.line is not None
        self._watch(member)
        member.send(["config", pickle.dumps(self._config)])
        self._watch(member)
        self._family_changed = True

    def _watch(self, member: MemberProcess) -> None:
        """Have the selector wait for what the line of `member` can tell."""
        if member.line is None:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if member.outgoing else 0)
        data = functools.partial(self._on_line, member)
        if member.line in self._selector.get_map():
            self._selector.modify(member.line, events, data)
        else:
            self._selector.register(member.line, events, data)

    def _unwatch(self, member: MemberProcess) -> None:
        if member.line is not None and member.line in self._selector.get_map():
            self._selector.unregister(member.line)

    def _say(self, member: MemberProcess, message: list[Any]) -> None:
        member.send(message)
        self._watch(member)

    def _on_line(self, member: MemberProcess) -> None:
        if member.line is None:
            return
        member.flush()
        try:
            for message in member.receive():
                self._on_message(member, message)
        except EOFError:
            # It is ending, and SIGCHLD is on its way; unless it goes on without its line, which is no life.
            self._unwatch(member)
            member.close_line()
            if member.kill_at is None:
                member.kill_at = time.monotonic() + self._timing.abort_grace
            return
        self._watch(member)

    def _on_message(self, member: MemberProcess, message: Any) -> None:
        match message:
            case ["heartbeat", *_]:
                pass  # heard, which is all there is to it
            case ["ready"]:
                if member.state == "starting":
                    member.state = "ready"
                    self._family_changed = True
                    _log.debug("%s (pid %d) is ready", member.name, member.pid)
                    self._when_all_ready()
            case ["failed", int(code), str(text)]:
                member.failure = (code, text)
            case _:
                _log.error("%s said something unknown: %.80r", member.name, message)

    def _when_all_ready(self) -> None:
        if self._phase is not Phase.STARTING or any(member.state != "ready" for member in self._members):
            return
        self._phase = Phase.RUNNING
        self._tell_family(time.monotonic())  # first: who reads that we are ready asks the control process at once
        where = ", ".join(f"smtp {listen.endpoint(sock)}" for _, sock in self._resources.listeners) or "no listeners"
        log.announce(f"ready: {where}")
        self._notifier.ready(self._summary())
        if self._reload_wanted:
            self._reload()

    def _reap(self) -> None:
        now = time.monotonic()
        for member in self._members:
            if member.process is not None and member.process.poll() is not None:
                self._on_line(member)  # its last words
                self._unwatch(member)
                pid = member.pid
                member.reaped()
                _log.debug("%s (pid %d): %s", member.name, pid, member.last_end)
                self._ended(member, now, pid)

    def _ended(self, member: MemberProcess, now: float, pid: int = 0) -> None:
        """The process of `member` is no more, or could not be started."""
        self._family_changed = True
        if member.role == "worker" and self._phase is Phase.RUNNING:
            member.clear_at = now + self._timing.linger
        if self._phase is Phase.STOPPING:
            member.state = "ended"
            self._when_workers_ended()
        elif self._phase is Phase.STARTING:
            assert member.failure is not None
            member.state = "ended"
            code, text = member.failure
            _log.error("cannot start: %s: %s", member.name, text)
            self._exit_code = code or exits.SOFTWARE
            self._stop_at_once(f"{member.name} cannot start")
        else:
            lived_s = now - member.started
            member.quick_ends = 1 if lived_s >= self._timing.stable else member.quick_ends + 1
            delay_s = max(restart_delay(member.quick_ends, self._timing), self._timing.linger)
            member.state = "waiting"
            member.restart_at = now + delay_s
            _log.error(
                "%s (pid %d) is gone after %.0f s: %s; starting it again in %.1f s", member.name, pid, lived_s,
                member.last_end, delay_s,
            )  # fmt: skip
            self._notifier.status(self._summary())

    # --- time ------------------------------------------------------------------------------------------------------

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        limits = self._timing
        for member in self._members:
            if member.clear_at is not None and now >= member.clear_at:
                self._clear_limits(member)
            if member.state == "waiting" and self._phase is Phase.RUNNING and now >= member.restart_at:
                member.restarts += 1
                self._start(member)
            if member.process is None:
                continue
            if self._silence(member, now):
                # If it is we who were stopped for a while (SIGSTOP), its heartbeats wait to be read.
                self._on_line(member)
            if member.kill_at is None and (silence := self._silence(member, now)):
                _log.error("%s (pid %d) %s: SIGABRT", member.name, member.pid, silence)
                member.signal(signal.SIGABRT)
                member.kill_at = now + limits.abort_grace
            elif member.kill_at is not None and now >= member.kill_at:
                _log.error("%s (pid %d) does not end: SIGKILL", member.name, member.pid)
                member.signal(signal.SIGKILL)
                member.kill_at = now + limits.abort_grace
        if self._notifier.watchdog_s is not None and now >= self._next_watchdog:
            self._notifier.alive()
            self._next_watchdog = now + self._notifier.watchdog_s
        if self._family_changed:
            self._family_changed = False
            self._tell_family(now)

    def _clear_limits(self, member: MemberProcess) -> None:
        """Give back what a dead worker held. Before it is started again, as its leases are by its number."""
        member.clear_at = None
        try:
            self._clear(self._config.run, member.number)
        except Exception:
            _log.exception("limits held by %s are not given back", member.name)

    def _silence(self, member: MemberProcess, now: float) -> str:
        """What is wrong with a child that should have been heard of."""
        if member.state == "starting" and now - member.started >= self._timing.boot_limit:
            return f"is not ready after {self._timing.boot_limit:.0f} s"
        if member.state == "ready" and now - member.heard >= self._timing.heartbeat_limit:
            return f"hangs: no heartbeat for {self._timing.heartbeat_limit:.0f} s"
        return ""

    def _wait_s(self) -> float | None:
        """Until something is due, at most; None when nothing ever is."""
        times: list[float] = []
        for member in self._members:
            if member.clear_at is not None:
                times.append(member.clear_at)
            if member.state == "waiting" and self._phase is Phase.RUNNING:
                times.append(member.restart_at)
            elif member.kill_at is not None and member.process is not None:
                times.append(member.kill_at)
            elif member.state == "starting":
                times.append(member.started + self._timing.boot_limit)
            elif member.state == "ready":
                times.append(member.heard + self._timing.heartbeat_limit)
        if self._notifier.watchdog_s is not None:
            times.append(self._next_watchdog)
        return max(0.0, min(times) - time.monotonic()) if times else None

    # --- reload ----------------------------------------------------------------------------------------------------

    def _reload(self) -> None:
        self._reload_wanted = False
        self._notifier.reloading()
        try:
            new = load(self._config_path)
        except ConfigError as error:
            for problem in error.problems:
                _log.error("reload: %s", problem)
            _log.error("reload: the configuration has errors; the old one stays in force")
        else:
            merged = reload.merge(self._config, new)
            in_force, waiting = changes(self._config, merged), changes(merged, new)
            _log_changes("in force now", in_force)
            _log_changes("takes effect when the MTA is restarted", waiting)
            if in_force:
                self._config = merged
                log.set_level(merged.log)
                pickled = pickle.dumps(merged)
                for member in self._members:
                    self._say(member, ["reload", pickled])
            elif not waiting:
                _log.info("reload: nothing was changed")
        self._notifier.ready(self._summary())

    # --- stop ------------------------------------------------------------------------------------------------------

    def _stop(self, why: str) -> None:
        """Let the workers finish what is in flight; the control process answers until they are gone."""
        if self._phase is Phase.STOPPING:
            return
        grace_s = self._config.shutdown
        _log.info("stopping: %s; work in flight has %.0f s", why, grace_s)
        self._begin_stop()
        self._stop_members(self._workers(), grace_s, self._timing.stop_margin)
        self._notifier.stopping("stopping", grace_s + 2 * self._timing.stop_margin)
        self._when_workers_ended()

    def _stop_at_once(self, why: str) -> None:
        _log.info("stopping at once: %s", why)
        is_news = self._phase is not Phase.STOPPING
        if is_news:
            self._begin_stop()
        self._stop_members(self._members, 0.0, self._timing.quick)
        if is_news:
            self._notifier.stopping("stopping")

    def _begin_stop(self) -> None:
        self._phase = Phase.STOPPING
        for _, sock in self._resources.listeners:
            sock.close()
        for member in self._members:
            if member.process is None:
                member.state = "ended"

    def _stop_members(self, members: Iterable[MemberProcess], grace_s: float, margin_s: float) -> None:
        now = time.monotonic()
        for member in members:
            if member.process is not None:
                member.state = "stopping"
                member.kill_at = now + grace_s + margin_s
                self._say(member, ["stop", grace_s])
        self._family_changed = True

    def _when_workers_ended(self) -> None:
        if any(member.process is not None for member in self._workers()):
            return
        self._stop_members([member for member in self._members if member.role == "control" and
                            member.state != "stopping"], 1.0, self._timing.quick)

    # --- what others see -------------------------------------------------------------------------------------------

    def _workers(self) -> list[MemberProcess]:
        return [member for member in self._members if member.role == "worker"]

    def _tell_family(self, now: float) -> None:
        family = Family(os.getpid(), self._started_us, [member.view(now) for member in self._members])
        for member in self._members:
            if member.role == "control":
                self._say(member, ["family", to_wire(family)])

    def _summary(self) -> str:
        workers = self._workers()
        ready = sum(member.state == "ready" for member in workers)
        where = ", ".join(str(listen.endpoint(sock)) for _, sock in self._resources.listeners) or "no listeners"
        return f"{ready} of {len(workers)} workers; {where}"


def restart_delay(quick_ends: int, timing: Timing) -> float:
    """Seconds before a child is started again that has ended soon after its start `quick_ends` times in a row."""
    exponent = min(quick_ends - 1, 32)
    return min(timing.restart_first * 2.0**exponent, timing.restart_cap) * random.uniform(0.5, 1.5)


def _log_changes(when: str, found: list[Change]) -> None:
    for change in found[:LOGGED_CHANGES]:
        option = path_text(change.path)
        _log.info("reload: %s: %s: %s -> %s", when, option, change.old or "nothing", change.new or "nothing")
    if len(found) > LOGGED_CHANGES:
        _log.info("reload: %s: %d more options", when, len(found) - LOGGED_CHANGES)


def _do_nothing(_number: int, _frame: object) -> None:
    """A handler has to exist for the wake-up descriptor to be written; the loop does the work."""


def _child_environment() -> dict[str, str]:
    environment = dict(os.environ)
    environment["GEVENT_TRACK_GREENLET_TREE"] = "0"  # costs time and memory for each greenlet, and nobody looks
    environment.setdefault("MALLOC_ARENA_MAX", "1")  # threads that come and go would leave heaps of their own
    root = os.path.dirname(os.path.dirname(os.path.abspath(mta.__file__)))
    if sys.path and os.path.abspath(sys.path[0]) == root:
        # Run from a checkout (`python -m mta`): children do not search the current directory, so they are told.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH", ""))))
    return environment
