"""What a long queue costs: start-up, listing, memory, and the speed of mail that has nothing to do with it.

    python -m bench.backlog --queued 0,10000,200000            messages that wait for one dead domain
    python -m bench.backlog --queued 100000 --domains 50000    the same for many

For each length: an MTA is started with an empty queue and filled with mail for domains whose hosts refuse connections;
it is stopped and started again, killed and started again, asked for the list of queues; then live mail for 50 other
domains goes through it. A cost that grows with the queue shows as a column that is not flat. Nothing may be lost: the
backlog has to be whole after each start and at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench.candidate import CandidateError, Setup, runtime_directory
from bench.loopback import consecutive
from bench.machine import describe, file_system
from bench.measure import Plan, Run, evaluate, start_nameserver, start_sink, through
from bench.ours import NAME, Ours, version
from bench.processes import Account, MemoryWatch, account, wait_until_quiet
from bench.programs import LoadPrograms, ProgramError, free_port
from bench.scenarios import FIRST_ADDRESS, SCENARIOS, Scenario
from bench.throughput import executable, exit_on_sigterm, positive, setting, worker_count, workplace

_MB = 1e6
_QUIET_S = 120.0


@dataclass(slots=True)
class Row:
    """One length of the queue."""

    queued: int
    domains: int
    fill: Run | None = None
    """Accepting and deferring the backlog; None without one."""
    start_s: float = 0.0
    """From exec to `ready` after an orderly stop."""
    recovery_s: float = 0.0
    """The same after kill -9 of everything."""
    listing_s: float = 0.0
    """`mta queue` as a command, its own start included."""
    resting_bytes: int = 0
    """RssAnon of the largest process, after the start, when all is quiet."""
    live: Run | None = None
    """Mail to other domains meanwhile."""
    problems: list[str] = field(default_factory=list)
    """What makes the row worthless: a message lost or twice, a program that failed."""
    notes: list[str] = field(default_factory=list)
    """What to know when reading its figures."""


def measure_row(plan: Plan, row: Row, size: int, live: Scenario, directory: Path) -> None:
    """Fill in `row`; what went wrong is in its `problems`."""
    processes = account(f"backlog-{row.queued}")
    with contextlib.ExitStack() as ends:
        ends.callback(processes.close)
        try:
            _measure(plan, row, size, live, directory, processes, ends)
        except (ProgramError, CandidateError, OSError) as error:
            row.problems.append(str(error))
    for run in (row.fill, row.live):
        if run is not None:
            row.problems += run.problems
            row.notes += [f"{run.scenario}: {note}" for note in run.notes]


def _measure(plan: Plan, row: Row, size: int, live: Scenario, directory: Path, processes: Account,
             ends: contextlib.ExitStack) -> None:
    port = free_port(consecutive(FIRST_ADDRESS, live.addresses))
    nameserver, dns = start_nameserver(live, directory)
    ends.callback(nameserver.stop)
    runtime = ends.enter_context(runtime_directory())
    mta = Ours(Setup(directory, runtime, processes, dns, port, plan.workers, None, plan.settings))
    ends.callback(lambda: row.problems.extend(mta.stop()))
    address = mta.start()
    if row.queued:
        fill = Scenario("fill", "mail for the dead", row.queued, size, domains=row.domains, receivers_up=False,
                        zone="dead")
        row.fill = _load(plan, fill, mta, processes, address, port, directory, before=0)

    row.problems += mta.stop()
    row.start_s, address = _timed(mta.start)
    _look(row, mta, processes)

    mta.kill()
    row.recovery_s, address = _timed(mta.start)
    with MemoryWatch(processes) as memory:
        _look(row, mta, processes)
    row.resting_bytes = memory.worst().anonymous
    row.listing_s, _ = _timed(lambda: mta.command("queue"))

    row.live = _load(plan, live, mta, processes, address, port, directory, before=row.queued)


def _load(plan: Plan, scenario: Scenario, mta: Ours, processes: Account, address: str, port: int, directory: Path,
          before: int) -> Run:
    """One load through the running MTA that has `before` recipients in its queue."""
    place = directory / scenario.name
    place.mkdir()
    run = Run(scenario.name, NAME, 1, scenario.expected, cpu_how=processes.how)
    sink = start_sink(plan, scenario, port, place)
    try:
        source = through(plan, scenario, run, processes, address, sink, place)
    finally:
        if sink is not None:
            sink.stop()
    run.queued = mta.queued() - before
    evaluate(scenario, run, source, sink)
    return run


def _look(row: Row, mta: Ours, processes: Account) -> None:
    """Wait until the start is over, and see that the queue is whole."""
    if not wait_until_quiet(processes, _QUIET_S):
        row.notes.append(f"still busy with the backlog {_QUIET_S:g} s after its start")
    queued = mta.queued()
    if queued != row.queued:
        row.problems.append(f"{queued} in the queue after a start instead of {row.queued}")


def _timed(action: Callable[[], str]) -> tuple[float, str]:
    began = time.monotonic()
    result = action()
    return time.monotonic() - began, result


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("queued", lambda row: f"{row.queued:,}"),
    ("domains", lambda row: f"{row.domains:,}" if row.queued else ""),
    ("fill/s", lambda row: f"{row.fill.rate:,.0f}" if row.fill else ""),
    ("start s", lambda row: f"{row.start_s:.2f}"),
    ("after kill s", lambda row: f"{row.recovery_s:.2f}"),
    ("mta queue s", lambda row: f"{row.listing_s:.2f}"),
    ("own MB at rest", lambda row: f"{row.resting_bytes / _MB:.0f}"),
    ("live rcpt/s", lambda row: f"{row.live.rate:,.0f}" if row.live else ""),
    ("CPU ms", lambda row: f"{row.live.cpu_ms:.3f}" if row.live else ""),
    ("peak MB", lambda row: f"{row.live.peak / _MB:.0f}" if row.live else ""),
    ("own MB", lambda row: f"{row.live.peak_anonymous / _MB:.0f}" if row.live else ""),
    ("sound", lambda row: "NO" if row.problems else "yes"),
)


def table(rows: Sequence[Row]) -> list[str]:
    """The table as text."""
    cells = [[title for title, _ in _COLUMNS]] + [[cell(row) for _, cell in _COLUMNS] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.backlog", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=_lengths, default=[0, 10_000, 200_000], metavar="N[,N...]",
                        help="messages that wait (0,10000,200000)")
    parser.add_argument("--domains", type=positive, default=1, metavar="N", help="dead domains they wait for (1)")
    parser.add_argument("--size", type=positive, default=5000, metavar="BYTES", help="size of a waiting message (5000)")
    parser.add_argument("--messages", type=positive, default=20_000, metavar="N", help="live messages (20000)")
    parser.add_argument("--workers", type=worker_count, default="auto", metavar="N", help="workers (auto)")
    parser.add_argument("--set", action="append", default=[], type=setting, dest="settings", metavar="OPTION=VALUE",
                        help="an option of our configuration by its dotted name, as it is written in YAML")
    parser.add_argument("--source", type=executable, metavar="PATH", help="a source with bench.source's command line")
    parser.add_argument("--sink", type=executable, metavar="PATH", help="a sink with bench.sink's command line")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), metavar="DIR",
                        help="the disk to measure (%(default)s)")
    parser.add_argument("--timeout", type=positive, default=1800, metavar="S", help="longest time for one load (1800)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser


def _lengths(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers, not {text!r}")
    return [int(part) for part in parts]


def main(words: list[str] | None = None) -> int:
    """Run the benchmark with this command line; 0 if nothing was lost in any row."""
    parser = arguments()
    options = parser.parse_args(words)
    if (options.source is None) != (options.sink is None):
        parser.error("--source and --sink belong together: one counts what the other numbers")
    load = LoadPrograms()
    if options.source is not None:
        load = LoadPrograms((options.source,), (options.sink,), f"{options.source} and {options.sink}")
    live = replace(SCENARIOS["S2"], messages=options.messages)
    rows: list[Row] = []
    with workplace(options.directory, keep=False) as place:
        machine = describe(place)
        plan = Plan(load, False, options.workers, dict(options.settings), options.timeout, True, file_system(place),
                    None, place)
        for line in [*machine.lines(), f"{NAME}: {version()}", f"load:    {load.name}",
                     *(f"warning: {text}" for text in machine.warnings())]:
            print(line, flush=True)
        for queued in options.queued:
            row = Row(queued, options.domains)
            rows.append(row)
            directory = place / f"queued-{queued}"
            directory.mkdir()
            measure_row(plan, row, options.size, live, directory)
            print("\n".join([f"{queued:,} queued: done", *row.problems]), file=sys.stderr, flush=True)
            shutil.rmtree(directory, ignore_errors=True)
    print("", *table(rows), sep="\n")
    for row in rows:
        for word, texts in (("note", row.notes), ("PROBLEM", row.problems)):
            for text in texts:
                print(f"{word}: {row.queued:,} queued: {text}")
    if options.json is not None:
        result = {"machine": asdict(machine), "version": version(), "load": load.name,
                  "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
