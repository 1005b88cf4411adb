"""A store in memory and crashes at every step, for the tests of the spool directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mta.config.schema import Config, SmtpIn
from mta.inject import claims
from mta.inject.claims import SpoolDirectory
from mta.inject.intake import Accepted, Intake
from mta.inject.pickup import Pickup

NOW_US = 1_136_214_245_000_000


class Crash(BaseException):
    """The process is gone."""


class Steps:
    """Counts what a process does to the world, and lets it crash before or after the step of a given number."""

    def __init__(self) -> None:
        self.count = 0
        self.crash_at = -1
        self.before = True
        self.names: list[str] = []

    def do(self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """One step."""
        number, self.count = self.count, self.count + 1
        self.names.append(name)
        if number == self.crash_at and self.before:
            raise Crash(name)
        result = function(*arguments, **options)
        if number == self.crash_at:
            raise Crash(name)
        return result

    def watch_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every change that `claims` makes on disk is a step."""

        class Counting:
            """The os module, watched."""

            def __getattr__(proxy, name: str) -> Any:  # noqa: N805
                function = getattr(os, name)
                if name in ("rename", "unlink", "fsync"):
                    return lambda *arguments: self.do(name, function, *arguments)
                return function

        monkeypatch.setattr(claims, "os", Counting())


class MemoryStore:
    """A store whose commits survive the process, as the real one's do."""

    def __init__(self, steps: Steps | None = None) -> None:
        self.steps = steps or Steps()
        self.accepted: list[Accepted] = []
        self.kept_marks: dict[bytes, bytes] = {}
        self.commits = 0
        self.full = ""
        self.errors: list[Exception] = []

    def commit(self, accepted: Sequence[Accepted], marks: Sequence[tuple[bytes, bytes]]) -> None:
        """All or nothing."""
        self.steps.do("commit", self._commit, list(accepted), dict(marks))

    def _commit(self, accepted: list[Accepted], marks: dict[bytes, bytes]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.commits += 1
        self.accepted += accepted
        self.kept_marks |= marks

    def forget(self, keys: Sequence[bytes]) -> None:
        """Remove marks."""
        self.steps.do("forget", lambda: [self.kept_marks.pop(key, None) for key in keys])

    def mark(self, key: bytes) -> bytes | None:
        """One mark."""
        return self.kept_marks.get(key)

    def marks(self, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Marks in order."""
        return sorted(item for item in self.kept_marks.items() if item[0] > after)[:limit]

    def room(self) -> str | None:
        """Whether mail is taken."""
        return self.full or None

    def recipients(self) -> list[str]:
        """The addresses of all that was accepted, sorted."""
        return sorted(
            recipient.address
            for accepted in self.accepted
            for delivery in accepted.deliveries
            for recipient in delivery.recipients
        )


def run(function: Callable[..., Any], *arguments: object) -> Any:
    """What carries functions to a thread, without a thread."""
    return function(*arguments)


def make(
    directory: Path, store: MemoryStore, *, shard: int = 0, pause: Callable[[float], None] | None = None,
    takes_new: bool = True, **limits: Any,
) -> Pickup:
    """A process that takes files, with its directory open."""
    ids = iter(range(1 << 40, 1 << 41))
    config = Config(hostname="mta.example", smtp=SmtpIn(**limits))
    intake = Intake(config, lambda: next(ids), lambda: NOW_US)
    spool = SpoolDirectory(str(directory), shard)
    spool.open()
    return Pickup(spool, config, intake, store, run, pause or never, takes_new=takes_new)


def never(seconds: float) -> None:
    """Waiting that must not happen."""
    raise AssertionError("nothing should wait here")


def finish(pickup: Pickup) -> None:
    """All that there is to do."""
    pickup.adopt()
    while pickup.step():
        pass


def drop(directory: Path, name: str, content: str) -> None:
    """Rename a file into the directory."""
    directory.joinpath("tmp").mkdir(parents=True, exist_ok=True)
    temporary = directory / "tmp" / "new"
    temporary.write_text(content)
    temporary.rename(directory / name)


def message(recipient: str, sender: str = "a@a.example") -> str:
    """A message file to one recipient."""
    return f"X-Sender: {sender}\nX-Receiver: {recipient}\nSubject: x\n\nbody\n"


def transactions(*recipients: str) -> str:
    """A batch with one transaction of six lines for each."""
    return "".join(
        f"MAIL FROM:<a@a.example>\nRCPT TO:<{one}>\nDATA\nSubject: x\n\n.\n" for one in recipients
    )


def left(directory: Path) -> list[str]:
    """Files that are in the directory, failed or claimed."""
    ours = (".lock", ".settings")
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir() and path.name not in ours
    )


TOLERANT = (
    "XACK OFF\n" + transactions("1@x.example", "bad").replace("RCPT TO:<1@x", "RCPT TO:<worse>\nRCPT TO:<1@x")
    + transactions("2@x.example").replace("Subject: x", "Subject: x\n..")
)
