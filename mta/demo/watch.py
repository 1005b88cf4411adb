"""Looks at everything while the campaign runs: the injection, the MTA's events, its status and its queues."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from mta.cli.eventreader import EventReader
from mta.control.exits import OperatorError
from mta.control.protocol import QueueRow
from mta.demo.injection import Injection
from mta.demo.instance import Instance
from mta.demo.tally import Tally

QUEUES_S: Final = 1.0  # how often queues are listed; it makes the MTA write a checkpoint
QUEUES: Final = 500
RATE_S: Final = 2.0  # rates are averages over this


@dataclass(slots=True)
class Load:
    """What the MTA has to do now, summed over its workers."""

    workers: int = 0
    missing: int = 0  # workers that do not answer
    queued: int = 0  # recipients, notices included
    in_flight: int = 0
    sessions: int = 0
    connections: int = 0
    intake: str = ""  # why no mail is taken, "" when it is


@dataclass(slots=True)
class Queues:
    """The fullest queues."""

    rows: list[QueueRow] = field(default_factory=list)
    count: int = 0  # of all queues


class Watch:
    """The state of the demo as it is known here. `look` brings it up to date."""

    def __init__(self, instance: Instance, injection: Injection) -> None:
        self.injection = injection
        self.tally = Tally()
        self.load = Load()
        self.queues = Queues()
        self.history: list[int] = []  # delivered in each second since the beginning
        self._instance = instance
        self._reader = EventReader(str(instance.directory / "spool"))
        self._queues_due_s = 0.0
        self._samples: deque[tuple[float, int, int]] = deque()

    def look(self, queues: bool) -> None:
        """See what has happened; with the queues, from time to time, if they are wanted."""
        self.read_events()
        now_s = time.monotonic()
        try:
            with self._instance.client() as client:
                status = client.status()
                if queues and now_s >= self._queues_due_s:
                    found = client.queues("", QUEUES, "deliveries")
                    self.queues = Queues(found.rows, found.queues)
                    self._queues_due_s = now_s + QUEUES_S
        except OperatorError:  # its control process was killed and is started again
            self.load.missing = self.load.workers
        else:
            self.load = Load(len(status.workers) + len(status.missing), len(status.missing))
            for worker in status.workers:
                self.load.queued += worker.queued_recipients
                self.load.in_flight += worker.in_flight
                self.load.sessions += worker.sessions
                self.load.connections += worker.connections
                self.load.intake = self.load.intake or worker.intake
        self._samples.append((now_s, self.injection.accepted_messages, self.tally.ended))
        while now_s - self._samples[0][0] > RATE_S and len(self._samples) > 2:
            self._samples.popleft()
        second = int(self.injection.seconds_since_start)
        delivered = self.tally.counts["delivered"]
        while len(self.history) <= second:
            self.history.append(0)
        self.history[second] = delivered - sum(self.history[:second])

    def read_events(self) -> None:
        """Count what the MTA has written since; works when it has ended, too."""
        for line in self._reader.read():
            self.tally.add(line)

    @property
    def rates(self) -> tuple[float, float]:
        """Messages accepted and recipients finished, in a second, lately."""
        if not self._samples:
            return 0.0, 0.0
        (began_s, accepted, ended), (now_s, accepted_now, ended_now) = self._samples[0], self._samples[-1]
        seconds = now_s - began_s
        return ((accepted_now - accepted) / seconds, (ended_now - ended) / seconds) if seconds > 0 else (0.0, 0.0)

    @property
    def finished(self) -> bool:
        """Whether everything that was injected has an end, as far as the MTA says; notices too. Queue and events were
        looked at a moment ago: what they did not show then, but was accepted, has no end yet."""
        return self.injection.done and not self.load.missing and not self.load.queued and not self.tally.open \
            and self.injection.accepted <= self.tally.accepted
