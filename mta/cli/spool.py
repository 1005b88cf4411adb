"""`mta spool`: what lies on disk, without the MTA."""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Final

import lmdb

from mta.cli.options import add_config, add_json, add_parser, load_config
from mta.cli.text import count, printable, size
from mta.control import exits
from mta.queue.errors import StoreLocked, StoreUnusable, StoreVersion
from mta.queue.repair import Repair, repair_spool
from mta.queue.verify import Problem, Summary, Verification
from mta.queue.verify.spool import Options, inspect

_DESCRIPTION = """\
Work on a spool while the MTA is stopped."""

_EXAMPLES = """\
  mta spool verify -c /etc/mta/mta.yaml
  mta spool verify -c /etc/mta/mta.yaml --repair"""

_VERIFY_DESCRIPTION = """\
Check a spool on which no MTA runs, and change nothing: every frame of the journals, every content with its checksum,
every page and record of the indexes, what the one says of the other, the event files, the marks of what was in flight.
For every recipient of a `received` event: it is in the queue, or has exactly one end.

Each problem is printed on a line of its own: where it is (file:offset, or the key of a record), what is wrong, what to
do. Exit codes: 0 the spool is sound, 1 something is damaged, 75 an MTA runs on it, 65 it is of a newer version or no
spool, 66 it is not there, 77 it may not be read. A crash of any kind leaves a spool sound.

With --repair what is damaged is set aside in `quarantine/` of its shard, with a list in `manifest.jsonl` there, so that
the rest is sound and the next start works; then the spool is checked again, and what is left is printed. A message
that can be read stays in the queue, or is queued again; one that cannot leaves it with one event `quarantined` for each
recipient, its envelope in `ID.json` and what is readable of it in `ID.eml`. Nothing that is damaged is deleted. It
needs as much space as the index takes, and the segments that are damaged. If it is killed, run it again before the MTA
is started. For root it is done as the user that owns the spool. docs/operations.md has a table of what is done about
each kind of problem."""

_VERIFY_EXAMPLES = """\
  mta spool verify -c /etc/mta/mta.yaml
  mta spool verify --spool /mnt/snapshot/mta      a copy, or a snapshot of the file system
  mta spool verify --quick                        without reading the contents of messages
  mta spool verify --repair --dry-run             what would be repaired
  mta spool verify --repair                       check, repair, check again
  mta spool verify --json | jq -r '.problems[].place'
  mta sandbox received --json > received && mta spool verify --received received"""

_LOOK_S: Final = 0.2
_LONGEST: Final = 4000  # characters of a line


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    parser = add_parser(commands, "spool", "check and repair what is on disk, while the MTA is stopped", _DESCRIPTION,
                        _EXAMPLES)
    verbs = parser.add_subparsers(metavar="verify", dest="verb", required=True)
    verify = add_parser(verbs, "verify", "check everything in a spool, and repair it", _VERIFY_DESCRIPTION,
                        _VERIFY_EXAMPLES)
    add_config(verify)
    verify.add_argument("--spool", metavar="DIRECTORY", help="spool, instead of the one that the configuration names")
    verify.add_argument("--quick", action="store_true", help="do not read the contents of messages")
    verify.add_argument("--repair", action="store_true", help="set aside what is damaged, make the rest sound, and "
                        "check again")
    verify.add_argument("--dry-run", action="store_true", help="with --repair: change nothing, tell what would be done")
    verify.add_argument("--received", metavar="FILE", help="compare with what receivers counted, as printed by `mta "
                        "sandbox received --json`")
    add_json(verify, "one JSON object: spool, sound, problems (kind, place, text, advice), shards (looked at), "
             "with --repair also found (the problems there were) and actions (place, text)")
    verify.set_defaults(run=run_verify)


def run_verify(options: argparse.Namespace) -> int:
    """Check a spool, and repair it if that was asked for. Raises OperatorError."""
    if options.dry_run and not options.repair:
        raise exits.OperatorError(exits.USAGE, "--dry-run goes with --repair")
    if options.repair and (options.quick or options.received):
        raise exits.OperatorError(exits.USAGE, "--repair looks at everything that is in the spool, and at nothing "
                                  "else: it goes with neither --quick nor --received")
    spool = Path(options.spool or load_config(options.config).spool)
    received = None if options.received is None else Path(options.received)
    progress = _Progress()
    repair = None
    try:
        if options.repair:
            _become_owner(spool)
            repair = repair_spool(spool, progress=progress, dry=options.dry_run)
            found = repair.after
        else:
            found = inspect(spool, Options(quick=options.quick, received=received), progress)
    except (StoreLocked, StoreVersion, StoreUnusable, OSError, ValueError, lmdb.Error) as error:
        raise _refused(error) from error
    finally:
        progress.end()
    if options.json:
        _print_json(spool, found, repair)
    else:
        _print(spool, found, repair, options)
    return exits.DAMAGED if found.problems else exits.OK


def _become_owner(spool: Path) -> None:
    """What root makes in a spool has to belong to the user that the MTA runs as. Raises OSError."""
    owner = spool.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        codecs.lookup("ascii")  # Python loads it when it is used, and that user may not read where it is
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)


def _print_json(spool: Path, found: Verification, repair: Repair | None) -> None:
    report: dict[str, object] = {
        "spool": str(spool), "sound": not found.problems,
        "problems": [_as_json(problem) for problem in found.problems],
        "shards": [dataclasses.asdict(summary) for summary in found.summaries],
    }
    if repair is not None:
        report["found"] = [_as_json(problem) for problem in repair.before.problems]
        report["actions"] = [dataclasses.asdict(action) for action in repair.actions]
    print(json.dumps(report))


def _print(spool: Path, found: Verification, repair: Repair | None, options: argparse.Namespace) -> None:
    if repair is not None:
        for problem in repair.before.problems:
            print(printable(f"{problem.place}: {problem.text}", _LONGEST))
        for action in repair.actions:
            print(("would be done: " if options.dry_run else "done: ") + printable(str(action), _LONGEST))
    if repair is None or (repair.actions and not options.dry_run):
        for problem in found.problems:
            print(printable(str(problem), _LONGEST))
    for summary in found.summaries:
        print(_line(summary, options.quick))
    repaired = repair is not None and repair.actions and not options.dry_run
    print(f"{printable(str(spool))}: {_verdict(found.problems)}{' after repair' if repaired else ''}")


def _refused(error: Exception) -> exits.OperatorError:
    """Why nothing could be found out."""
    if isinstance(error, StoreLocked):
        return exits.OperatorError(exits.TEMPORARY, str(error))
    if isinstance(error, StoreVersion):
        return exits.OperatorError(exits.DATA, str(error))
    if isinstance(error, FileNotFoundError):
        return exits.OperatorError(exits.NO_INPUT, f"{error.filename}: {error.strerror}")
    if isinstance(error, PermissionError):
        return exits.OperatorError(exits.NO_PERMISSION, f"you may not use {error.filename}: be root, or the user that "
                                   "the MTA runs as")
    if isinstance(error, OSError):
        return exits.OperatorError(exits.OS_ERROR, str(error))
    return exits.OperatorError(exits.DATA, str(error))


def _as_json(problem: Problem) -> dict[str, str]:
    return {"kind": problem.kind, "place": problem.place, "text": problem.text, "advice": problem.advice}


def _line(summary: Summary, quick: bool) -> str:
    contents = count(summary.contents, "content")
    read = f"{contents} found" if quick else f"{contents} read ({size(summary.content_bytes)})"
    return (f"shard {printable(Path(summary.shard).name)}: {count(summary.messages, 'message')}, "
            f"{count(summary.deliveries, 'delivery', 'deliveries')} to {count(summary.recipients, 'recipient')} in the "
            f"queue; {count(summary.segments, 'segment')}, {count(summary.frames, 'frame')}, {read}, "
            f"{count(summary.events, 'event')}")


def _verdict(problems: list[Problem]) -> str:
    return count(len(problems), "problem") if problems else "sound"


class _Progress:
    """Shows on a terminal what is being done."""

    def __init__(self) -> None:
        self._shown_at = 0.0
        self._on = sys.stderr.isatty()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._on and time.monotonic() - self._shown_at >= _LOOK_S:
            self._shown_at = time.monotonic()
            share = f"{min(100 * done // total, 100)}%" if total else ""
            print(f"\r{what:10} {share:5}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Wipe it."""
        if self._shown_at:
            print("\r                \r", end="", file=sys.stderr, flush=True)
