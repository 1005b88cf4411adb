"""`mta spool`: what lies on disk, without the MTA."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Final

from mta.cli.options import add_config, add_json, add_parser, load_config
from mta.cli.text import count, printable, size
from mta.control import exits
from mta.queue.errors import StoreLocked, StoreUnusable, StoreVersion
from mta.queue.verify import Problem, Summary
from mta.queue.verify.spool import Options, inspect

_DESCRIPTION = """\
Work on a spool while the MTA is stopped."""

_EXAMPLES = """\
  mta spool verify -c /etc/mta/mta.yaml"""

_VERIFY_DESCRIPTION = """\
Check a spool on which no MTA runs, and change nothing: every frame of the journals, every content with its checksum,
every page and record of the indexes, what the one says of the other, the event files, the marks of what was in flight.
For every recipient of a `received` event: it is in the queue, or has exactly one end.

Each problem is printed on a line of its own: where it is (file:offset, or the key of a record), what is wrong, what to
do. Exit codes: 0 the spool is sound, 1 something is damaged, 75 an MTA runs on it, 65 it is of a newer version or no
spool, 66 it is not there, 77 it may not be read. A crash of any kind leaves a spool sound."""

_VERIFY_EXAMPLES = """\
  mta spool verify -c /etc/mta/mta.yaml
  mta spool verify --spool /mnt/snapshot/mta      a copy, or a snapshot of the file system
  mta spool verify --quick                        without reading the contents of messages
  mta spool verify --json | jq -r '.problems[].place'
  mta sandbox received --json > received && mta spool verify --received received"""

_LOOK_S: Final = 0.2


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    parser = add_parser(commands, "spool", "check what is on disk, while the MTA is stopped", _DESCRIPTION, _EXAMPLES)
    verbs = parser.add_subparsers(metavar="verify", dest="verb", required=True)
    verify = add_parser(verbs, "verify", "check everything in a spool", _VERIFY_DESCRIPTION, _VERIFY_EXAMPLES)
    add_config(verify)
    verify.add_argument("--spool", metavar="DIRECTORY", help="spool, instead of the one that the configuration names")
    verify.add_argument("--quick", action="store_true", help="do not read the contents of messages")
    verify.add_argument("--received", metavar="FILE", help="compare with what receivers counted, as printed by `mta "
                        "sandbox received --json`")
    add_json(verify, "one JSON object: spool, sound, problems (kind, place, text, advice), shards (what was looked at)")
    verify.set_defaults(run=run_verify)


def run_verify(options: argparse.Namespace) -> int:
    """Check a spool. Raises OperatorError."""
    spool = Path(options.spool or load_config(options.config).spool)
    received = None if options.received is None else Path(options.received)
    progress = _Progress()
    try:
        found = inspect(spool, Options(quick=options.quick, received=received), progress)
    except (StoreLocked, StoreVersion, StoreUnusable, OSError, ValueError) as error:
        raise _refused(error) from error
    finally:
        progress.end()
    if options.json:
        print(json.dumps({
            "spool": str(spool), "sound": not found.problems,
            "problems": [_as_json(problem) for problem in found.problems],
            "shards": [dataclasses.asdict(summary) for summary in found.summaries],
        }))
    else:
        for problem in found.problems:
            print(printable(str(problem), 4000))
        for summary in found.summaries:
            print(_line(summary, options.quick))
        print(f"{printable(str(spool))}: {_verdict(found.problems)}")
    return exits.DAMAGED if found.problems else exits.OK


def _refused(error: Exception) -> exits.OperatorError:
    """Why nothing could be found out."""
    if isinstance(error, StoreLocked):
        return exits.OperatorError(exits.TEMPORARY, str(error))
    if isinstance(error, StoreVersion):
        return exits.OperatorError(exits.DATA, str(error))
    if isinstance(error, FileNotFoundError):
        return exits.OperatorError(exits.NO_INPUT, f"{error.filename}: {error.strerror}")
    if isinstance(error, PermissionError):
        return exits.OperatorError(exits.NO_PERMISSION, f"you may not read {error.filename}: be root, or the user that "
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
