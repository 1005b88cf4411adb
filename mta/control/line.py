"""The line between the supervisor and a child: a socket pair, with frames (`mta.control.channel`) both ways.

    supervisor → child   ["config", pickle]        first of all: the configuration as the supervisor accepted it
                         ["reload", pickle]        the same after a SIGHUP
                         ["stop", grace seconds]   finish; may come again with less time
                         ["family", map]           to the control process only: `protocol.Family`
    child → supervisor   ["ready"]                 recovered and accepting
                         ["failed", code, text]    cannot start or go on; the child ends with that code
                         ["heartbeat", monotonic]  each second, sent from the hub: a hub that hangs stops it

A child is started by exec with `MTA_CHILD` in its environment: a `ChildSetup` as JSON.

Only the supervisor reads configuration files, so a worker that is restarted after a bad edit comes up with what its
siblings run on. The pickle goes one way, from the parent that started us; nothing a child sends is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Final

HEARTBEAT_S: Final = 1.0
ORPHAN_GRACE_S: Final = 2.0  # transactions whose final dot is out may still get their reply
# A child that has not ended this long after its deadline is killed by its own alarm clock, also when nobody is left
# to kill it.
ALARM_MARGIN_S: Final = 10


@dataclass(slots=True)
class ChildSetup:
    """What a child is told at its start. All descriptors are inherited."""

    role: str  # "worker" or "control"
    number: int  # of the worker; 0 for the control process
    workers: int  # how many workers there are
    line_fd: int
    lock_fds: list[int]
    listeners: list[tuple[int, int]]  # (index in config.listeners, descriptor of the listening socket)
    shards: list[int]  # numbers of the shards that this worker owns
    again: bool = False  # it takes the place of one that has ended: mail waits for it

    @property
    def name(self) -> str:
        """`worker-0`, `control`: in the log, and what sockets are called."""
        return self.role if self.role == "control" else f"{self.role}-{self.number}"

    def to_json(self) -> str:
        """The value of MTA_CHILD."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ChildSetup:
        """Read MTA_CHILD."""
        fields = json.loads(text)
        fields["listeners"] = [(index, fd) for index, fd in fields["listeners"]]
        return cls(**fields)
