"""`mta status`: is it running, and how does it go."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

from mta.cli.options import add_instance, add_json, add_parser, connect
from mta.cli.queue import tell_missing
from mta.cli.text import Column, count, duration, print_table, printable, size, until
from mta.control.protocol import SUMMED, Member, SourceRow, Status, WorkerStatus

_DESCRIPTION = """\
Show the state of the running MTA: what is in the queue, what is being done, what was done since the workers were
started, and each process. LAG is how late a worker's event loop was in the last minute, but for its worst hundredth:
everything that it has to do waits so long. Exit code 0: all processes answer; 75: not all of them; 69: the MTA is not
running."""

_EXAMPLES = """\
  mta status
  mta status --json | jq .total.queued_messages
  mta status >/dev/null || echo 'look at the MTA'"""

_COLUMNS = (
    Column("PROCESS"),
    Column("PID", right=True),
    Column("STATE"),
    Column("UP", right=True),
    Column("SHARDS", shrinks=True),
    Column("MEMORY", right=True),
    Column("CPU", right=True),
    Column("LAG", right=True),
    Column("IN", right=True),
    Column("OUT", right=True),
    Column("QUEUED", right=True),
    Column("RESTARTS", right=True),
)


_SOURCE_COLUMNS = (
    Column("SOURCE"),
    Column("OUT", right=True),
    Column("PATHS", right=True),
    Column("SUSPENDED", right=True),
    Column("TROUBLE", shrinks=True),
)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "status", "show the state of the running MTA", _DESCRIPTION, _EXAMPLES)
    add_instance(parser)
    add_json(parser, "one JSON object: version, hostname, family (processes), workers, total, missing")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the state."""
    with connect(options) as client:
        status = client.status()
    total = _total(status)
    if options.json:
        print(json.dumps({**dataclasses.asdict(status), "total": dataclasses.asdict(total)}))
    else:
        _print(status, total, time.time_ns() // 1000)
    return tell_missing(status.missing)


def _total(status: Status) -> WorkerStatus:
    total = WorkerStatus(-1, status.family.pid, time.time() - status.family.started_us / 1e6)
    for name in SUMMED:
        setattr(total, name, sum(getattr(worker, name) for worker in status.workers))
    total.shards = sorted(shard for worker in status.workers for shard in worker.shards)
    for name in ("loop_lag_p99_ms", "loop_lag_max_ms"):
        setattr(total, name, max((getattr(worker, name) for worker in status.workers), default=0.0))
    total.intake = next((worker.intake for worker in status.workers if worker.intake), "")
    total.damage = next((worker.damage for worker in status.workers if worker.damage), "")
    return total


def _print(status: Status, total: WorkerStatus, now_us: int) -> None:
    print(
        f"{printable(status.hostname)}: mta {printable(status.version)}, "
        f"up {duration(total.uptime_s)}, pid {status.family.pid}"
    )
    print(
        f"queue      {count(total.queued_messages, 'message')}, "
        f"{count(total.queued_deliveries, 'delivery', 'deliveries')} "
        f"to {count(total.queued_recipients, 'recipient')}; {total.in_flight:,} being delivered"
    )
    print(f"sessions   {total.sessions:,} in, {total.connections:,} out")
    print(f"accepted   {count(total.accepted_messages, 'message')}, {count(total.accepted_recipients, 'recipient')}")
    if total.check_refusals or total.check_warnings:
        print(f"checks     {count(total.check_refusals, 'message')} refused, "
              f"{count(total.check_warnings, 'message')} taken with a warning")
    print(
        f"outcomes   {total.delivered:,} delivered, {total.bounced:,} bounced, {total.expired:,} expired, "
        f"{total.deleted:,} deleted; {count(total.deferred, 'attempt')} deferred"
    )
    for worker in status.workers:
        if worker.intake:
            print(f"worker {worker.worker} takes no new mail: {printable(worker.intake)}")
        if worker.damage:
            print(f"worker {worker.worker}: {printable(worker.damage)}")
        for door in worker.doors:
            print(f"worker {worker.worker}: {printable(door)}")
    print()
    answers = {worker.worker: worker for worker in status.workers}
    print_table(_COLUMNS, (
        _cells(member, answers.get(member.number) if member.role == "worker" else None, now_us)
        for member in status.family.members
    ))
    _print_sources(status)
    for member in status.family.members:
        if member.last_end:
            print(f"\n{_name(member)} ended last time: {printable(member.last_end)}")


def _print_sources(status: Status) -> None:
    """The sources over all workers, when there are some by name."""
    rows: dict[str, SourceRow] = {}
    for worker in status.workers:
        for source in worker.sources:
            row = rows.setdefault(source.name, SourceRow(source.name))
            row.connections += source.connections
            row.paths = max(row.paths, source.paths)
            row.suspended = max(row.suspended, source.suspended)
            row.trouble = row.trouble or source.trouble
    if any(rows):
        print()
        print_table(_SOURCE_COLUMNS, (
            [printable(row.name), f"{row.connections:,}", f"{row.paths:,}", f"{row.suspended:,}",
             printable(row.trouble) or "-"]
            for row in rows.values()
        ))


def _cells(member: Member, worker: WorkerStatus | None, now_us: int) -> list[str]:
    state = member.state
    if state == "waiting" and member.restart_us:
        state = f"restart {until(member.restart_us, now_us)}"
    up = duration((now_us - member.started_us) / 1e6) if member.started_us else "-"
    shards = " ".join(map(str, member.shards))
    numbers = ["-"] * 6
    if worker is not None:
        numbers = [
            size(worker.memory), duration(worker.cpu_s), duration(worker.loop_lag_p99_ms / 1000),
            f"{worker.sessions:,}", f"{worker.connections:,}",
            f"{worker.queued_messages:,}",
        ]  # fmt: skip
    return [_name(member), str(member.pid or "-"), state, up, shards, *numbers, f"{member.restarts:,}"]


def _name(member: Member) -> str:
    return f"worker {member.number}" if member.role == "worker" else printable(member.role)
