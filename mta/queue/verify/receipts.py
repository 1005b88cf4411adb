"""Compares what receivers have counted with what the events say: `mta sandbox received --json`.

The file has one JSON array per line: the name by which the receiver knows the message, the recipient, and how often
that pair was accepted. The name is the Message-ID, or what stands before the `@` in it (as the `X-Test-Id` of test
messages does).

What events call delivered has to have been received at least so often. Received more often is allowed when the events
say that it may be a duplicate, or when the delivery is still in the queue and the next attempt will say so.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from mta.queue.records import Delivery
from mta.queue.verify.join import Entry, Join
from mta.queue.verify.problems import Findings

_GOT: Final = 0
_DELIVERED: Final = 1
_SUSPICION: Final = 2
_LINE_BYTES: Final = 40
_MASK: Final = (1 << 64) - 1
_NAME: Final = re.compile(r"<?([^@>]*)")


class Receipts:
    """The receivers' counts, and what all shards say about them."""

    def __init__(self, path: Path, complete: bool) -> None:
        """Read the file. Raises OSError, and ValueError when it is no such file."""
        self._path = path
        self._complete = complete
        self._places: list[str] = [str(path)]
        self._join = Join(2 * path.stat().st_size // _LINE_BYTES)
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        with self._path.open("rb") as file:
            offset = 0
            for line in file:
                try:
                    name, recipient, count = json.loads(line)
                    self._add(str(name), str(recipient), _GOT, 0, offset, min(int(count), 255))
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{self._path}:{offset}: {error}") from None
                offset += len(line)

    def close(self) -> None:
        """Forget everything."""
        self._join.close()

    def file(self, place: str) -> int:
        """A number for a file that events come from."""
        if self._places[-1] != place:
            self._places.append(place)
        return len(self._places) - 1

    def event(self, file: int, offset: int, event: dict[str, Any]) -> None:
        """What an event says; `file` as from `file()`."""
        kind = event["event"]
        suspicious = bool(event.get("maybe_duplicate") or event.get("failure") == "unknown")
        if kind != "delivered" and not suspicious:
            return
        for recipient in event["recipients"]:
            if kind == "delivered":
                self._add(event["message_id"], recipient, _DELIVERED, file, offset)
            if suspicious:
                self._add(event["message_id"], recipient, _SUSPICION, file, offset)

    def queued(self, delivery: Delivery) -> None:
        """A delivery in the queue that may have been delivered already."""
        for recipient in delivery.recipients:
            self._add(delivery.message.message_id, recipient.address, _SUSPICION, 0, 0)

    def judge(self, findings: Findings) -> None:
        """Report what does not agree."""
        for group in self._join.groups():
            self._judge(group, findings)

    def _add(self, name: str, recipient: str, kind: int, file: int, offset: int, count: int = 0) -> None:
        found = _NAME.match(name)
        key = found[1] if found is not None else name
        self._join.add(hash(key) & _MASK, hash(recipient), kind, file, offset, count)

    def _judge(self, group: list[Entry], findings: Findings) -> None:
        got, delivered, suspicions = ([entry for entry in group if entry.kind == kind]
                                      for kind in (_GOT, _DELIVERED, _SUSPICION))
        count = sum(entry.flags for entry in got)
        if count < len(delivered):
            place = delivered[-1]
            findings.add("received", f"{self._places[place.file]}:{place.offset}",
                         f"an event says that this was delivered, but it was received {count} times for "
                         f"{len(delivered)} such events")
        elif count > len(delivered) and not suspicions and (delivered or self._complete):
            findings.add("received", f"{self._path}:{got[0].offset}",
                         f"received {count} times, but {len(delivered)} events say that it was delivered, and none "
                         "that it may be a duplicate")
