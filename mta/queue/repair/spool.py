"""Checks a spool, repairs what is damaged, checks again."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from mta.queue.fileops import FileOps
from mta.queue.repair.quarantine import Action, Quarantine
from mta.queue.repair.shard import ShardRepair
from mta.queue.shard import SPOOL_VERSION
from mta.queue.verify.problems import Findings, Progress
from mta.queue.verify.shard import held
from mta.queue.verify.spool import Options, Verification, check_version, inspect, shard_directories

_ROUNDS: Final = 3  # what was hidden behind damage is seen only when that is gone


@dataclass(slots=True)
class Repair:
    """What was found, what was done about it (or would be), what is left."""

    before: Verification
    after: Verification  # the same as `before` when nothing was done
    actions: list[Action] = field(default_factory=list)


def repair_spool(spool: Path, options: Options | None = None, progress: Progress | None = None, *, dry: bool = False,
                 files: FileOps | None = None, time_us: int | None = None) -> Repair:
    """Repair a spool on which no instance runs. `dry`: only find out what would be done.

    Raises StoreLocked, StoreVersion, StoreUnusable (it is no spool), OSError and lmdb.Error. If it is killed or fails,
    it can be run again; that has to be done before the next start.
    """
    files = files or FileOps()
    options = replace(options or Options(), quick=False, events=True, locked=True)
    now_us = time.time_ns() // 1000 if time_us is None else time_us
    with ExitStack() as stack:
        stack.enter_context(held(spool / "lock", f"spool {spool}", exclusive=not dry))
        for directory in shard_directories(spool):
            stack.enter_context(held(directory / "shard.lock", str(directory), exclusive=not dry))
        before = inspect(spool, options, progress)
        repair = Repair(before, before)
        for _ in range(1 if dry else _ROUNDS):
            actions: list[Action] = []
            for directory, findings in repair.after.shards:
                actions += repair_shard(directory, findings, options, files, now_us, dry=dry)
            if check_version(spool) is not None:
                actions.append(Action(str(spool / "version"), f"is written: {SPOOL_VERSION}"))
                if not dry:
                    files.create(spool / "version", b"%d\n" % SPOOL_VERSION)
            repair.actions += actions
            if dry or not actions:
                break
            left = repair.after.problems
            repair.after = inspect(spool, options, progress)
            if repair.after.problems in ([], left):
                break
    return repair


def repair_shard(directory: Path, findings: Findings, options: Options, files: FileOps, time_us: int, *,
                 dry: bool) -> list[Action]:
    """Repair one shard, which is locked, after it was checked with `findings`; what was done. Raises as above."""
    if not findings.problems:
        return []
    quarantine = Quarantine(directory / "quarantine", files, time_us, dry=dry)
    ShardRepair(directory, findings, quarantine, files, time_us, complete=options.complete).run()
    return quarantine.actions
