"""The course of the demo: start the sandbox and the MTA, let the campaign run, account for it, clean up."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from mta.control import exits
from mta.control.exits import OperatorError
from mta.demo import hints, summary, view
from mta.demo.account import compare
from mta.demo.campaign import Campaign
from mta.demo.injection import Injection
from mta.demo.instance import Instance, configuration
from mta.demo.internet import KINDS, Internet
from mta.demo.signals import Interrupt
from mta.demo.summary import Summary
from mta.demo.terminal import Terminal
from mta.demo.watch import Watch
from mta.sandbox.client import Sandbox, SandboxError

SESSIONS: Final = 6
EXPIRES_S: Final = 11  # beyond the time that taking the mail in may need
LIMIT_S: Final = 60
KEPT_EXPIRES: Final = "1d"  # with --keep: time to look at mail that waits
USUAL: Final = 5000  # messages that the times of the demo are made for
PACE: Final = 400  # messages in a second, of those beyond
SETTLE_S: Final = 3.0  # for the last events to be written when the queue is empty
LONGEST_BASE: Final = 50  # of the path above our directory: the name of a Unix socket ends at 107 octets


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    messages: int
    workers: int
    seed: int
    limit_s: float | None
    keep: bool
    as_json: bool


class Director:
    """One demo. `run` is its whole life; after it nothing is left, neither process nor file."""

    def __init__(self, options: Options, output: TextIO, errors: TextIO) -> None:
        """With `as_json` only the JSON goes to `output`, all else to `errors`."""
        self._options = options
        self._output = output
        self._terminal = Terminal(errors if options.as_json else output)
        self._interrupt = Interrupt()
        self._internet = Internet(random.Random(f"internet {options.seed}"))
        self._directory: Path | None = None
        self._sandbox: Sandbox | None = None
        self._instance: Instance | None = None
        self._injection: Injection | None = None
        patience_s = max(options.messages - USUAL, 0) // PACE
        self._expires_s = EXPIRES_S + patience_s
        self._limit_s = options.limit_s if options.limit_s is not None else LIMIT_S + 2 * patience_s

    def run(self) -> int:
        """Play; returns the exit code. Raises OperatorError."""
        with self._interrupt as interrupt:
            try:
                code = self._play()
            except KeyboardInterrupt:
                code = exits.INTERRUPTED
            except SandboxError as error:
                raise OperatorError(exits.SOFTWARE, f"the sandbox: {error}") from error
            finally:
                interrupt.hold()
                self._terminal.leave()
                self._clean_up()
        if code == exits.INTERRUPTED:
            self._say_goodbye("Stopped: all")
        elif self._options.keep:
            self._say_goodbye("All")
        return code

    def _play(self) -> int:
        say, options, interrupt = self._terminal.say, self._options, self._interrupt
        domains = sum(kind.domains for kind in KINDS)
        say(f"Starting a small Internet on loopback: {domains} domains of {len(KINDS)} kinds.")
        directory = self._directory = _make_directory()
        sandbox = self._sandbox = Sandbox(self._internet.sandbox_settings())
        if interrupt.wait(0):
            return exits.INTERRUPTED
        say(f"Starting the MTA: {options.workers} workers, spool in {directory}.")
        config = configuration(directory, sandbox.dns, sandbox.smtp_port, options.workers, self._expires_s)
        instance = self._instance = Instance(directory, config)
        instance.start(interrupt)
        if interrupt.wait(0):
            return exits.INTERRUPTED
        say(f"Sending it {options.messages:,} messages by SMTP to {instance.smtp}.")
        say()
        for name, personality in self._internet.late_personalities():
            sandbox.set(name, dict(personality))
        cpu_s = instance.usage().cpu_s
        campaign = Campaign(options.messages, options.seed, self._internet)
        injection = self._injection = Injection(instance.smtp, campaign, SESSIONS)
        watch = Watch(instance, injection)
        if not self._watch(watch):
            return exits.INTERRUPTED
        result = self._account(watch, cpu_s)
        if options.as_json:
            print(json.dumps(summary.as_json(result)), file=self._output, flush=True)
        else:
            for line in summary.as_text(self._terminal, result):
                say(line)
        if options.keep:
            instance.reload(expires=KEPT_EXPIRES)
            say()
            for line in hints.kept(self._terminal, instance, sandbox, self._internet):
                say(line)
            interrupt.wait(None, instance.end)
            instance.check()
        elif not options.as_json:
            say()
            for line in hints.next_steps(self._terminal):
                say(line)
        if result.account.good:
            return exits.OK
        return exits.SOFTWARE if result.account.problems else exits.TEMPORARY

    def _watch(self, watch: Watch) -> bool:
        """Let it run until everything has an end or time is over; False when it was interrupted."""
        live = self._terminal.live
        injection = watch.injection
        injection.start()
        next_line_s = empty_s = 0.0
        while True:
            assert self._instance is not None
            self._instance.check()
            watch.look(queues=live)
            now_s = time.monotonic()
            if live:
                self._terminal.show(view.frame(self._terminal, watch, self._options.messages, self._limit_s))
            elif now_s >= next_line_s or watch.finished:
                self._terminal.say(view.line(watch))
                next_line_s = now_s + view.LINE_S
            if watch.finished or injection.seconds_since_start >= self._limit_s:
                break
            if not injection.done or watch.load.queued or watch.load.missing:
                empty_s = now_s
            elif now_s - empty_s > SETTLE_S:  # the queue is empty, but an end was never told
                break
            if self._interrupt.wait(view.FRAME_S if live else view.LOOK_S):
                return False
        injection.stop()
        self._terminal.leave()
        if not live:
            self._terminal.say()
        return True

    def _account(self, watch: Watch, cpu_before_s: float) -> Summary:
        assert self._instance is not None
        assert self._sandbox is not None
        injection = watch.injection
        seconds = injection.seconds_since_start
        if not watch.finished:
            injection.stop(SETTLE_S)
            watch.look(queues=True)
        usage = self._instance.usage()
        at_rest = watch.finished or not self._options.keep
        if not watch.finished and at_rest:
            self._instance.stop(at_once=False)
            watch.read_events()
        stats = self._sandbox.stats()
        account = compare(self._options.messages, injection, watch.tally, self._sandbox.received(), stats,
                          at_rest=at_rest)
        return Summary(
            account, watch.tally, summary.by_kind(watch.tally, self._internet, self._sandbox.sites()),
            self._options.seed, seconds, injection.seconds, injection.octets, stats["connections"],
            stats["max_open"], usage, usage.cpu_s - cpu_before_s,
            self._expires_s, [] if account.settled else view.grouped(watch.queues.rows),
            list(self._instance.complaints), injection.refused.most_common(5))

    def _clean_up(self) -> None:
        """End what runs and remove what was written."""
        if self._injection is not None:
            self._injection.stop()
        if self._instance is not None:
            self._instance.stop(at_once=self._interrupt.count > 0 or self._options.keep)
        if self._sandbox is not None:
            self._sandbox.stop()
        tempfile.tempdir = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _say_goodbye(self, how: str) -> None:
        try:
            self._terminal.say(f"\n{how} processes of the demo have ended, its directory is removed")
        except OSError:
            pass  # the terminal is gone, too


def _make_directory() -> Path:
    """A directory for everything, the sandbox's files included. Raises OperatorError."""
    base = tempfile.gettempdir()
    try:
        directory = tempfile.mkdtemp(prefix="mta-demo-", dir=base if len(base) <= LONGEST_BASE else "/tmp")
    except OSError as error:
        raise OperatorError(exits.CANNOT_CREATE, f"no directory for the demo: {error}") from error
    tempfile.tempdir = directory
    return Path(directory)
