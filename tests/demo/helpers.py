"""A demo without processes: books filled by hand, and a screen that is only text."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mta.config.hosts import Endpoint
from mta.demo.injection import Injection
from mta.demo.instance import Instance
from mta.demo.tally import Tally
from mta.demo.watch import Watch

NO_FAULTS: dict[str, Any] = {"damaged": 0, "violations": {}}


class Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """As a terminal would."""
        return True


def injection(accepted: Iterable[tuple[str, str]] = ()) -> Injection:
    """One that was never started and has these (Message-ID, recipient) accepted, a message each."""
    made = Injection(Endpoint("127.0.0.1", 9), [], 1)
    made.accepted.update(accepted)
    made.accepted_messages = len(made.accepted)
    made.started_s = time.monotonic()
    return made


def watch(directory: Path, tally: Tally | None = None) -> Watch:
    """One that looks at nothing."""
    (directory / "spool" / "shards").mkdir(parents=True)
    made = Watch(Instance(directory, {}), injection())
    made.tally = tally or Tally()
    return made


class Events:
    """Writes event lines and has them counted."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._ids: dict[str, str] = {}

    def received(self, message_id: str, *recipients: str, origin: str = "smtp 127.0.0.1:1 app") -> Events:
        """A message was accepted."""
        self._ids[message_id] = f"id{len(self._ids)}"
        return self._add("received", message_id, recipients, origin=origin)

    def delivered(self, message_id: str, *recipients: str, maybe_duplicate: bool = False) -> Events:
        """It was delivered."""
        return self._attempt("delivered", message_id, recipients, code=250, enhanced="2.0.0", text="Ok",
                             maybe_duplicate=maybe_duplicate)

    def bounced(self, message_id: str, *recipients: str, text: str = "no such user") -> Events:
        """It failed for good."""
        return self._attempt("bounced", message_id, recipients, code=550, enhanced="5.1.1", text=text)

    def deferred(self, message_id: str, *recipients: str, text: str = "later", reason: str = "recipient") -> Events:
        """It has to wait."""
        return self._attempt("deferred", message_id, recipients, code=451, enhanced="4.7.1", text=text,
                             failure=reason)

    def suspended(self, path: str, text: str) -> Events:
        """A site is paused."""
        return self._add("suspended", "", (), path=path, text=text)

    def _attempt(self, kind: str, message_id: str, recipients: Iterable[str], **fields: Any) -> Events:
        return self._add(kind, message_id, recipients,
                         **{"age_s": 0.5, "tls": "", "maybe_duplicate": False, "failure": "recipient", **fields})

    def _add(self, kind: str, message_id: str, recipients: Iterable[str], **fields: Any) -> Events:
        listed = list(recipients)
        event = {"event": kind, "message": self._ids.get(message_id, ""), "message_id": message_id,
                 "recipients": listed, "queue": listed[0].rpartition("@")[2] if listed else "", **fields}
        self.tally.add(json.dumps(event).encode() + b"\n")
        return self


def plain(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
