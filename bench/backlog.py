"""What a long queue costs: start-up, listing, memory, and the speed of mail that has nothing to do with it (S7).

    python -m bench.backlog                                   0, 1,000, 100,000 and 1,000,000 messages for 50 domains
    python -m bench.backlog --domains 1,1000,50000 --runs 3   the same for one, a thousand and fifty thousand
    python -m bench.backlog --queued 200000 --by-smtp         injected, with receivers down, instead of `bench.fill`

The backlog waits for domains whose hosts refuse connections; what `bench.fill` makes becomes due bit by bit within
four hours, what is injected is due when the retry schedule says. For each length and number of domains: the MTA is
started on it, killed and started again, asked for the list of queues. Then, in turn, round by round, each is started
once more and live mail for 50 other domains goes through it. A cost that grows with the queue shows as a column that
is not flat. Nothing may be lost: the backlog has to be whole after each start and at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench.candidate import CandidateError, Setup, runtime_directory
from bench.fill import FillError, fill
from bench.loopback import consecutive
from bench.machine import describe, file_system
from bench.measure import Plan, Run, evaluate, start_nameserver, start_sink, through
from bench.ours import NAME, Ours, version, workers
from bench.processes import Account, MemoryWatch, account, wait_until_quiet
from bench.programs import LoadPrograms, ProgramError, free_port
from bench.scenarios import FIRST_ADDRESS, SCENARIOS, Scenario
from bench.throughput import add_common, executable_pair, exit_on_sigterm, positive, workplace

_MB = 1e6
_QUIET_S = 120.0
IDLE_S = 0.04
"""A queue in which something becomes due all the time is not quite idle."""
SPREAD_S = 4 * 3600
LENGTHS = [0, 1_000, 100_000, 1_000_000]
LIVE = "S2"


@dataclass(slots=True)
class Row:
    """One length of the queue."""

    queued: int
    domains: int
    fill_s: float = 0.0
    """How long making the backlog took."""
    start_s: float = 0.0
    """From exec to `ready` after an orderly stop."""
    recovery_s: float = 0.0
    """The same after kill -9 of everything."""
    listing_s: float = 0.0
    """`mta queue` as a command, its own start included."""
    resting_bytes: int = 0
    """RssAnon of the largest process, after the start, when all is quiet."""
    resident_bytes: int = 0
    """Its VmHWM then: pages of the index that were read count in it."""
    lives: list[Run] = field(default_factory=list)
    """Mail to other domains meanwhile, once for each round."""
    problems: list[str] = field(default_factory=list)
    """What makes the row worthless: a message lost or twice, a program that failed."""
    notes: list[str] = field(default_factory=list)
    """What to know when reading its figures."""

    @property
    def name(self) -> str:
        """For people and directories."""
        return f"{self.queued}-for-{self.domains}"

    def middle(self, value: Callable[[Run], float]) -> float:
        """The median of `value` over the live runs; 0 without any."""
        return statistics.median(map(value, self.lives)) if self.lives else 0.0


class Backlog:
    """One row's queue on disk, and what is measured with it."""

    def __init__(self, plan: Plan, row: Row, directory: Path) -> None:
        self.row = row
        self._plan = plan
        self._directory = directory
        self._place = directory / "mta"
        self._place.mkdir(parents=True)

    def make(self, size: int, by_smtp: bool) -> None:
        """Fill it, then measure start, start after a kill, listing and memory. What went wrong is in the row."""
        with self._problems():
            began_s = time.monotonic()
            if self.row.queued and not by_smtp:
                fill(self._place / "spool", self.row.queued, self.row.domains, workers(self._plan.workers), size=size,
                     spread_s=SPREAD_S)
            with self._running("look") as (mta, processes, port):
                address = mta.start()
                if self.row.queued and by_smtp:
                    self._inject(size, mta, processes, address, port)
                self.row.fill_s = time.monotonic() - began_s
                self._look(mta, processes)
                self.row.problems += mta.stop()
                self.row.start_s = _timed(mta.start)
                self._look(mta, processes)
                mta.kill()
                self.row.recovery_s = _timed(mta.start)
                with MemoryWatch(processes) as memory:
                    self._look(mta, processes)
                worst = memory.worst()
                self.row.resting_bytes, self.row.resident_bytes = worst.anonymous, worst.resident
                self.row.listing_s = _timed(lambda: mta.command("queue"))

    def live(self, scenario: Scenario, number: int) -> None:
        """Start on it and send mail to others; the run goes into the row."""
        with self._problems(), self._running(f"live-{number}") as (mta, processes, port):
            address = mta.start()
            self._look(mta, processes)
            run = self._load(scenario, number, mta, processes, address, port, before=self.row.queued)
            self.row.lives.append(run)
            self._take_over(run)

    def _inject(self, size: int, mta: Ours, processes: Account, address: str, port: int) -> None:
        scenario = Scenario("fill", "mail for the dead", self.row.queued, size, domains=self.row.domains,
                            receivers_up=False, zone="dead")
        self._take_over(self._load(scenario, 1, mta, processes, address, port, before=0))

    def _load(self, scenario: Scenario, number: int, mta: Ours, processes: Account, address: str, port: int,
              before: int) -> Run:
        """One load through the running MTA that has `before` recipients in its queue."""
        place = self._directory / f"{scenario.name}-{number}"
        place.mkdir()
        run = Run(scenario.name, NAME, number, scenario.expected, cpu_how=processes.how)
        sink = start_sink(self._plan, scenario, port, place)
        try:
            source = through(self._plan, scenario, run, processes, address, sink, place)
        finally:
            if sink is not None:
                sink.stop()
        run.queued = mta.queued() - before
        evaluate(scenario, run, source, sink)
        return run

    def _take_over(self, run: Run) -> None:
        self.row.problems += run.problems
        self.row.notes += [f"{run.scenario} {run.number}: {note}" for note in run.notes]

    def _look(self, mta: Ours, processes: Account) -> None:
        """Wait until the start is over, and see that the queue is whole."""
        if not wait_until_quiet(processes, _QUIET_S, self._plan.idle_s):
            self.row.notes.append(f"still busy with the backlog {_QUIET_S:g} s after its start")
        queued = mta.queued()
        if queued != self.row.queued:
            self.row.problems.append(f"{queued} in the queue after a start instead of {self.row.queued}")

    @contextlib.contextmanager
    def _running(self, what: str) -> Iterator[tuple[Ours, Account, int]]:
        """An MTA on the spool, to be started; stopped at the end."""
        addresses = consecutive(FIRST_ADDRESS, SCENARIOS[LIVE].addresses)
        port = free_port(addresses)
        place = self._directory / what
        place.mkdir()
        with contextlib.ExitStack() as ends:
            processes = account(f"backlog-{self.row.name}-{what}")
            ends.callback(processes.close)
            nameserver, dns = start_nameserver(SCENARIOS[LIVE], place)
            ends.callback(nameserver.stop)
            runtime = ends.enter_context(runtime_directory())
            mta = Ours(Setup(self._place, runtime, processes, dns, port, self._plan.workers, None,
                             self._plan.settings))
            ends.callback(lambda: self.row.problems.extend(mta.stop()))
            yield mta, processes, port

    @contextlib.contextmanager
    def _problems(self) -> Iterator[None]:
        try:
            yield
        except (ProgramError, CandidateError, FillError, OSError) as error:
            self.row.problems.append(str(error))


def measure_rows(plan: Plan, rows: Sequence[Row], size: int, live: Scenario, rounds: int, place: Path,
                 by_smtp: bool = False) -> None:
    """Fill in `rows`; their spools are on disk together, below `place`, so that the live runs take turns."""
    backlogs = []
    for row in rows:
        backlog = Backlog(plan, row, place / row.name)
        backlog.make(size, by_smtp)
        backlogs.append(backlog)
        print(f"{row.queued:,} for {row.domains:,} domains: made in {row.fill_s:.0f} s, ready in {row.start_s:.2f} s",
              *row.problems, sep="\n  ", file=sys.stderr, flush=True)
    for number in range(1, rounds + 1):
        for backlog in backlogs:
            if backlog.row.problems:
                continue
            backlog.live(live, number)
            if backlog.row.lives:
                run = backlog.row.lives[-1]
                print(f"{backlog.row.queued:,} for {backlog.row.domains:,} domains, live mail {number}/{rounds}: "
                      f"{run.rate:,.0f}/s, {run.cpu_ms:.3f} ms CPU", *run.problems, *run.notes, sep="\n  ",
                      file=sys.stderr, flush=True)
    for row in rows:
        shutil.rmtree(place / row.name, ignore_errors=True)


def make_rows(lengths: Sequence[int], domains: Sequence[int]) -> list[Row]:
    """A row for each length and number of domains that makes sense: no more domains than messages, 0 once."""
    return [Row(queued, number) for queued in lengths for position, number in enumerate(domains)
            if (number <= queued or (not queued and position == 0))]


def _timed(action: Callable[[], str]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("queued", lambda row: f"{row.queued:,}"),
    ("domains", lambda row: f"{row.domains:,}" if row.queued else ""),
    ("made s", lambda row: f"{row.fill_s:.0f}" if row.queued else ""),
    ("start s", lambda row: f"{row.start_s:.2f}"),
    ("after kill s", lambda row: f"{row.recovery_s:.2f}"),
    ("mta queue s", lambda row: f"{row.listing_s:.2f}"),
    ("own MB at rest", lambda row: f"{row.resting_bytes / _MB:.0f}"),
    ("live rcpt/s", lambda row: f"{row.middle(lambda run: run.rate):,.0f}" if row.lives else ""),
    ("CPU ms", lambda row: f"{row.middle(lambda run: run.cpu_ms):.3f}" if row.lives else ""),
    ("least-most", lambda row: f"{min(run.cpu_ms for run in row.lives):.3f}-"
                               f"{max(run.cpu_ms for run in row.lives):.3f}" if row.lives else ""),
    ("peak MB", lambda row: f"{max(run.peak for run in row.lives) / _MB:.0f}" if row.lives else ""),
    ("own MB", lambda row: f"{max(run.peak_anonymous for run in row.lives) / _MB:.0f}" if row.lives else ""),
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
    parser.add_argument("--queued", type=numbers, default=LENGTHS, metavar="N[,N...]",
                        help="messages that wait (0,1000,100000,1000000)")
    parser.add_argument("--domains", type=numbers, default=[50], metavar="N[,N...]",
                        help="dead domains they wait for (50)")
    parser.add_argument("--size", type=positive, default=5000, metavar="BYTES", help="size of a waiting message (5000)")
    parser.add_argument("--by-smtp", action="store_true", help="inject the backlog instead of filling the store")
    parser.add_argument("--messages", type=positive, default=20_000, metavar="N", help="live messages (20000)")
    parser.add_argument("--runs", type=positive, default=1, metavar="N", help="rounds of live mail (1)")
    add_common(parser, limit_s=1800)
    return parser


def numbers(text: str) -> list[int]:
    """Numbers between commas on the command line."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers, not {text!r}")
    return [int(part) for part in parts]


def main(words: list[str] | None = None) -> int:
    """Run the benchmark with this command line; 0 if nothing was lost in any row."""
    parser = arguments()
    options = parser.parse_args(words)
    load: LoadPrograms = executable_pair(parser, options)
    rows = make_rows(options.queued, options.domains)
    if not rows:
        parser.error("nothing to measure: fewer messages than domains")
    with workplace(options.directory, keep=False) as place:
        machine = describe(place)
        plan = Plan(load, False, options.workers, dict(options.settings), options.timeout, True, file_system(place),
                    None, place, IDLE_S)
        for line in [*machine.lines(), f"{NAME}: {version()}", f"load:    {load.name}",
                     *(f"warning: {text}" for text in machine.warnings())]:
            print(line, flush=True)
        measure_rows(plan, rows, options.size, replace(SCENARIOS[LIVE], messages=options.messages), options.runs,
                     place, options.by_smtp)
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
