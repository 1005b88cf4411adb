"""Checks a spool: what lies in its directory, and every shard."""

from __future__ import annotations

import errno
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from mta.queue.errors import StoreUnusable, StoreVersion
from mta.queue.shard import SPOOL_VERSION
from mta.queue.verify.problems import Findings, Problem, Progress, Summary
from mta.queue.verify.receipts import Receipts
from mta.queue.verify.shard import ShardCheck, held


@dataclass(slots=True)
class Verification:
    """All that was found, and what was looked at."""

    problems: list[Problem] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    shards: list[tuple[Path, Findings]] = field(default_factory=list)  # for who wants to know more


@dataclass(frozen=True, slots=True)
class Options:
    """How much is checked."""

    quick: bool = False  # contents are not read
    events: bool = True  # the event files are read, too
    complete: bool = False  # nothing was ever removed from the event files, so that every end has its `received`
    received: Path | None = None  # what receivers have counted (`mta.queue.verify.receipts`)
    locked: bool = False  # the caller holds the locks


def verify_spool(spool: Path | str, *, quick: bool = False, events: bool = True, complete: bool = False,
                 received: Path | None = None) -> list[Problem]:
    """Every problem of a spool on which no instance runs; nothing is changed. An empty list says that it is sound.

    For the arguments see `Options`. Raises StoreLocked, StoreVersion, StoreUnusable (it is no spool), OSError, and
    ValueError (for `received`): then nothing was found out.
    """
    return inspect(Path(spool), Options(quick, events, complete, received)).problems


def verify_shard(directory: Path | str, *, quick: bool = False, events: bool = True,
                 complete: bool = False) -> list[Problem]:
    """The same of one shard directory."""
    return inspect_shard(Path(directory), Options(quick, events, complete), silent).result()


def inspect(spool: Path, options: Options, progress: Progress | None = None) -> Verification:
    """As `verify_spool`; with what was looked at."""
    if not spool.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such spool", str(spool))
    verification = Verification()
    with ExitStack() as stack:
        if not options.locked:
            stack.enter_context(held(spool / "lock", f"spool {spool}"))
        if (problem := check_version(spool)) is not None:
            verification.problems.append(problem)
        receipts = None
        if options.received is not None:
            receipts = stack.enter_context(closing(Receipts(options.received, options.complete)))
        for directory in shard_directories(spool):
            findings = inspect_shard(directory, options, progress or silent, receipts)
            verification.problems += findings.result()
            verification.summaries.append(findings.summary)
            verification.shards.append((directory, findings))
        if receipts is not None:
            findings = Findings(Summary(str(options.received)), progress or silent)
            receipts.judge(findings)
            verification.problems += findings.result()
    return verification


def inspect_shard(directory: Path, options: Options, progress: Progress, receipts: Receipts | None = None) -> Findings:
    """What is found in one shard."""
    findings = Findings(Summary(str(directory)), progress)
    try:
        ShardCheck(directory, findings, quick=options.quick, events=options.events, complete=options.complete,
                   receipts=receipts, locked=options.locked).run()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        findings.add("unreadable", error.filename or str(directory), f"the disk cannot read this: {error.strerror}")
    return findings


def shard_directories(spool: Path) -> list[Path]:
    """The shards of a spool, by number."""
    shards = spool / "shards"
    if not shards.is_dir():
        return []
    return sorted((entry for entry in shards.iterdir() if entry.name.isdecimal() and entry.is_dir()),
                  key=lambda entry: int(entry.name))


def check_version(spool: Path) -> Problem | None:
    """What is wrong with the version of a spool. Raises StoreUnusable for what is no spool, and StoreVersion."""
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


def silent(what: str, done: int, total: int) -> None:
    """Nobody wants to know."""
