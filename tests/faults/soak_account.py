"""The account of a soak: what the events say and what the sandbox received, held against what was accepted.

Event files are read as they are closed, and removed, as an operator's shipper would do: so the spool of a long run
keeps to its small disk. One that comes back after a crash has to be the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

from mta.sandbox.client import Sandbox
from tests.faults.soak_load import Numbers

ENDS: Final = frozenset({"delivered", "bounced", "expired", "deleted", "quarantined"})
KEPT: Final = 3  # closed event files that stay: more than a crash can take a shard back

Key = tuple[str, str]  # X-Test-Id or Message-ID as the sandbox knows it, recipient


class Account:
    """What became of everything."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.received: Counter[str] = Counter()  # by Message-ID or message
        self.from_files: set[int] = set()
        self._ends: Counter[Key] = Counter()  # by internal message and recipient
        self._delivered: set[Key] = set()
        self._flagged: set[Key] = set()
        self._numbers: dict[str, int] = {}  # internal message -> our number
        self._notifications: set[str] = set()
        self._recipients: Counter[str] = Counter()  # of internal messages
        self._seen: dict[str, bytes] = {}  # event file -> hash

    def harvest(self, shards: Path, everything: bool = False) -> None:
        """Read the event files that are closed (or all of them), and remove them."""
        for directory in sorted(shards.glob("*/events")):
            files = sorted(directory.glob("*.jsonl"))
            for path in files if everything else files[:-1 - KEPT]:
                data = path.read_bytes()
                name = f"{directory.parent.name}/{path.name}"
                digest = hashlib.sha256(data).digest()
                known = self._seen.setdefault(name, digest)
                if known is digest:
                    for line in data.splitlines():
                        self._take(json.loads(line))
                elif known != digest:
                    self._problem(f"the event file {name} was written again, and differently")
                if not everything:
                    path.unlink()

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        self.kinds[kind] += 1
        if "message" not in event:
            return  # of a path, a source or an order
        message = event["message"]
        if kind == "received":
            self._recipients[message] += len(event["recipients"])
            origin = event["origin"]
            if origin == "dsn":
                self.received[message] += 1
                return
            number = int(event["message_id"][1:].partition("@")[0])
            self._numbers[message] = number
            self.received[str(number)] += 1
            if origin.startswith("pickup "):
                self.from_files.add(number)
        elif kind == "notified":
            self._notifications.add(event["notification"])
        ends = kind in ENDS
        if not ends and kind != "deferred":
            return
        for one in event["recipients"]:
            known_as = (event["message_id"][1:].partition("@")[0] if event.get("sender") else event.get("message_id"),
                        one)
            if ends:
                self._ends[(message, one)] += 1
                if kind == "delivered":
                    self._delivered.add(known_as)
            if event.get("maybe_duplicate"):
                self._flagged.add(known_as)

    def check(self, numbers: Numbers, sandbox: Sandbox) -> dict[str, int]:
        """Hold everything against everything, with an empty queue. `problems` has what is wrong; some figures."""
        for number, count in self.received.items():
            if count != 1:
                self._problem(f"message {number} was received {count} times")
        known = {int(number) for number in self.received if number.isdigit()}
        for number in numbers.accepted.keys() - known:
            self._problem(f"message {number} was accepted and is lost"
                          + (" (a file)" if number in numbers.files else ""))
        for number in known & numbers.refused:
            self._problem(f"message {number} was refused and taken")
        for number in known - numbers.accepted.keys() - numbers.unknown.keys() - numbers.refused:
            self._problem(f"message {number} was never offered")
        for number in numbers.files ^ self.from_files:
            self._problem(f"message {number} was {'not ' if number in numbers.files else ''}taken from a file")

        ends: Counter[str] = Counter()
        for (message, one), count in self._ends.items():
            ends[message] += 1
            if count != 1:
                self._problem(f"message {message} to {one} has {count} ends")
        for message, count in self._recipients.items():
            if ends[message] != count:
                self._problem(f"message {message} (number {self._numbers.get(message)}) has {count} recipients "
                              f"and {ends[message]} ends")
        sizes = numbers.accepted | numbers.unknown
        for message, number in self._numbers.items():
            if number in sizes and self._recipients[message] != sizes[number]:
                self._problem(f"message {message} (number {number}) lost a recipient")

        copies = repeated = of_files = 0
        arrived: set[Key] = set()
        for item in sandbox.received():
            key = (item.key, item.recipient)
            arrived.add(key)
            extra = item.count - (key in self._delivered)
            copies += max(extra, 0)
            repeated += item.count > 1
            of_files += item.count > 1 and item.key.isdigit() and int(item.key) in numbers.files
            if extra > 0 and key not in self._flagged:
                self._problem(f"{key} arrived {item.count} times, its end is "
                              f"{'delivered' if key in self._delivered else 'another'}, and nothing warned of that")
        for key in self._delivered - arrived:
            self._problem(f"{key} is said to be delivered and did not arrive")
        return {"accepted": len(numbers.accepted), "refused": len(numbers.refused), "unknown": len(numbers.unknown),
                "files": len(numbers.files), "arrived": len(arrived), "arrived twice": repeated,
                "of those files": of_files,
                "copies too many": copies, "flagged": len(self._flagged),
                **{f"events: {kind}": count for kind, count in sorted(self.kinds.items())}}

    def _problem(self, text: str) -> None:
        self.problems.append(text)
