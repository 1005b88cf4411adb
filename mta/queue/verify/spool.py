"""Checks a spool: what lies in its directory, and every shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mta.queue.errors import StoreUnusable, StoreVersion
from mta.queue.shard import SPOOL_VERSION
from mta.queue.verify.problems import Findings, Problem, Progress, Summary
from mta.queue.verify.shard import ShardCheck, held


@dataclass(slots=True)
class Verification:
    """All that was found, and what was looked at."""

    problems: list[Problem] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)


def verify_spool(spool: Path | str, *, quick: bool = False, events: bool = True,
                 complete: bool = False) -> list[Problem]:
    """Every problem of a spool on which no instance runs; nothing is changed. An empty list says that it is sound.

    `quick`: contents are not read. `events`: whether the event files are read, too. `complete`: nothing was ever
    removed from the event files, so that every end has its `received`.

    Raises StoreLocked, StoreVersion, StoreUnusable (it is no spool) and OSError: then nothing was found out.
    """
    return inspect(Path(spool), quick=quick, events=events, complete=complete).problems


def verify_shard(directory: Path | str, *, quick: bool = False, events: bool = True,
                 complete: bool = False) -> list[Problem]:
    """The same of one shard directory."""
    findings = Findings(Summary(str(directory)), _silent)
    ShardCheck(Path(directory), findings, quick=quick, events=events, complete=complete).run()
    return findings.result()


def inspect(spool: Path, *, quick: bool = False, events: bool = True, complete: bool = False,
            progress: Progress | None = None) -> Verification:
    """As `verify_spool`; with what was looked at."""
    if not spool.is_dir():
        raise StoreUnusable(f"there is no spool {spool}")
    verification = Verification()
    with held(spool / "lock", f"spool {spool}"):
        if (problem := _check_version(spool)) is not None:
            verification.problems.append(problem)
        for directory in shard_directories(spool):
            findings = Findings(Summary(str(directory)), progress or _silent)
            ShardCheck(directory, findings, quick=quick, events=events, complete=complete).run()
            verification.problems += findings.result()
            verification.summaries.append(findings.summary)
    return verification


def shard_directories(spool: Path) -> list[Path]:
    """The shards of a spool, by number."""
    shards = spool / "shards"
    if not shards.is_dir():
        return []
    return sorted((entry for entry in shards.iterdir() if entry.name.isdecimal() and entry.is_dir()),
                  key=lambda entry: int(entry.name))


def _check_version(spool: Path) -> Problem | None:
    path = spool / "version"
    try:
        text = path.read_text("ascii", "replace").strip()
    except FileNotFoundError:
        if not (spool / "shards").exists():
            raise StoreUnusable(f"{spool} is no spool: it has neither a file `version` nor shards") from None
        return Problem("version", str(path), "the file is missing")
    if not text.isdecimal():
        return Problem("version", str(path), f"{text[:20]!r} is no version")
    if int(text) > SPOOL_VERSION:
        raise StoreVersion(f"spool {spool} is of version {int(text)}, this program knows {SPOOL_VERSION}")
    return None


def _silent(what: str, done: int, total: int) -> None:
    """Nobody wants to know."""
