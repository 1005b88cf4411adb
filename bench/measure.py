"""One run: an MTA started with an empty queue, one scenario's load through it, and what that took.

Order: name server, sink, MTA; wait until the MTA is quiet; begin to count; source; wait for source and sink; wait
until the MTA is quiet again, so that what it puts off (removals, checkpoints) is counted; stop counting; look into
its queue; stop it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import ours, slowdisk
from bench.candidate import CandidateError, Setup, runtime_directory
from bench.candidates import CANDIDATES, DIRECT
from bench.loopback import consecutive
from bench.namespace import DNS_ADDRESS
from bench.others import Others
from bench.processes import IDLE_S, Account, MemoryWatch, TreeAccount, account, find, wait_until_quiet
from bench.profiler import ProfileError, Profiler
from bench.programs import LoadPrograms, Program, ProgramError, free_port
from bench.scenarios import FIRST_ADDRESS, Scenario
from bench.syncs import NotMeasuredError, SyncCounter

_QUIET_BEFORE_S = 10.0
_QUIET_AFTER_S = 60.0
_SINK_IDLE_S = 30.0
_OTHERS_MOST = 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure, the same for all runs."""

    load: LoadPrograms
    pipelining: bool
    workers: str
    settings: dict[str, object]
    limit_s: float
    """Time for one run's mail to be injected, and again to arrive."""
    count_syncs: bool
    file_system: str
    profile: str | None
    profiles: Path
    """Where profiles go."""
    idle_s: float = IDLE_S
    """CPU time in half a second up to which the MTA counts as quiet."""


@dataclass(slots=True)
class Run:
    """What one run took. Rates and costs are per recipient; where a message has one, that is per message."""

    scenario: str
    mta: str
    number: int
    expected: int
    """Recipients."""
    accepted: int = 0
    """Messages that the MTA took."""
    arrived: int = 0
    """Different recipients at the sink."""
    duplicates: int = 0
    queued: int = 0
    """In the MTA's queue at the end, besides what was there before the run."""
    seconds: float = 0.0
    """From the source's first connection to the last arrival; to the last 250 when receivers are down."""
    rate: float = 0.0
    """Recipients a second in that time."""
    cpu_s: float = 0.0
    cpu_ms: float = 0.0
    """CPU time of all the MTA's processes, for one recipient."""
    cpu_how: str = ""
    turns_ms: list[float] = field(default_factory=list)
    """The same in each of its turns, where it has turns with others (`bench.alone`)."""
    syncs: int | None = None
    syncs_per_message: float | None = None
    syncs_why_not: str = ""
    ack_p50_ms: float = 0.0
    """From MAIL to the final 250."""
    ack_p99_ms: float = 0.0
    dot_p50_ms: float | None = None
    """From the final dot to its 250, where the source tells."""
    dot_p99_ms: float | None = None
    largest: str = ""
    """The process with the most resident memory."""
    peak: int = 0
    """Its peak, bytes."""
    peak_anonymous: int = 0
    """The most memory of its own that any process had, bytes."""
    together: int = 0
    """The same summed over all processes at one time."""
    source_cpu_ms: float = 0.0
    sink_cpu_ms: float = 0.0
    dns_cpu_ms: float = 0.0
    dns_queries: int = 0
    connections: int = 0
    most_connections: int = 0
    per_round_trip: float | None = None
    """Messages per round trip and connection."""
    others: float = 0.0
    """Processor cores that were used meanwhile by none of ours, or taken by the hypervisor."""
    problems: list[str] = field(default_factory=list)
    """What makes the run worthless: a message lost or twice, a program that failed."""
    notes: list[str] = field(default_factory=list)
    """What to know when reading its figures."""
    profile: list[str] = field(default_factory=list)

    @property
    def load_cpu_ms(self) -> float:
        """CPU time of source, sink and name server for one recipient."""
        return self.source_cpu_ms + self.sink_cpu_ms + self.dns_cpu_ms


def measure(plan: Plan, scenario: Scenario, mta: str, number: int, directory: Path) -> Run:
    """One run in `directory`, which is empty. What went wrong is in its `problems`."""
    run = Run(scenario.name, mta, number, scenario.expected)
    processes = TreeAccount() if mta == DIRECT else account(f"{scenario.name}-{mta}-{number}")
    run.cpu_how = processes.how
    with contextlib.ExitStack() as ends:
        ends.callback(processes.close)
        try:
            _measure(plan, scenario, run, processes, directory, ends)
        except (ProgramError, CandidateError, ProfileError, slowdisk.NoCompilerError, OSError) as error:
            run.problems.append(str(error))
    return run


def _measure(plan: Plan, scenario: Scenario, run: Run, processes: Account, directory: Path,
             ends: contextlib.ExitStack) -> None:
    kind = CANDIDATES[run.mta]
    port = kind.sink_port or free_port(consecutive(FIRST_ADDRESS, scenario.addresses))
    nameserver, dns = start_nameserver(scenario, directory, DNS_ADDRESS if kind.own_resolver else None)
    ends.callback(nameserver.stop)
    sink = start_sink(plan, scenario, port, directory)
    if sink is not None:
        ends.callback(sink.stop)
    place = directory / run.mta
    place.mkdir(mode=0o755)
    runtime = ends.enter_context(runtime_directory())
    mta = kind.make(Setup(place, runtime, processes, dns, port, plan.workers, scenario.connections, plan.settings,
                          slowdisk.environment(scenario.sync_delay_ms, directory)))
    ends.callback(lambda: run.problems.extend(mta.stop()))
    address = mta.start()
    wait_until_quiet(processes, _QUIET_BEFORE_S)

    source = through(plan, scenario, run, processes, address, sink, directory)

    run.queued = mta.queued()
    nameserver.stop()
    evaluate(scenario, run, source, sink)
    run.dns_queries = int(nameserver.result()["queries"])
    if run.arrived or run.queued:
        run.dns_cpu_ms = nameserver.cpu_s * 1000 / (run.arrived or run.queued)


def start_nameserver(scenario: Scenario, directory: Path,
                     address: tuple[str, int] | None = None) -> tuple[Program, tuple[str, int]]:
    """A name server that answers, and where: at `address` or at a free port. Raises ProgramError."""
    nameserver = Program("nameserver", [
        sys.executable, "-m", "bench.nameserver", "-a", "{}:{}".format(*(address or ("127.0.0.1", 0))),
        "-f", FIRST_ADDRESS, "-k", str(scenario.addresses),
    ], directory)
    try:
        host, _, port = nameserver.wait_ready().split()[-1].rpartition(":")
    except ProgramError:
        nameserver.stop()
        raise
    return nameserver, (host, int(port))


def start_sink(plan: Plan, scenario: Scenario, port: int, directory: Path) -> Program | None:
    """A sink that accepts; None when the scenario's receivers are down. Raises ProgramError."""
    if not scenario.receivers_up:
        return None
    sink = Program("sink", [
        *plan.load.sink, "-a", FIRST_ADDRESS, "-k", str(scenario.addresses), "-p", str(port),
        "-w", str(scenario.delay_ms), "-n", str(scenario.expected), "-i", f"{_SINK_IDLE_S:g}",
        "-X", f"{2 * plan.limit_s:g}",
    ], directory)
    try:
        sink.wait_ready()
    except ProgramError:
        sink.stop()
        raise
    return sink


def through(plan: Plan, scenario: Scenario, run: Run, processes: Account, address: str, sink: Program | None,
            directory: Path) -> Program:
    """Send the load through the MTA at `address` and count what that takes, into `run`; the source, ended.

    Raises ProgramError and ProfileError.
    """
    with _counting_syncs(plan, run, processes, directory):
        before_s = processes.cpu_s()
        others = Others()
        with MemoryWatch(processes) as memory, _profiling(plan, run, processes):
            source = Program("source", [
                *plan.load.source, "-a", address, "-s", str(scenario.sessions), "-m", str(scenario.messages),
                "-l", str(scenario.size), "-D", str(scenario.domains), "-r", str(scenario.recipients),
                "-z", scenario.zone, "-T", f"{plan.limit_s:g}", *(["-P"] if plan.pipelining else []),
            ], directory)
            try:
                source.wait(plan.limit_s + 10)
            finally:
                source.stop()
            if sink is not None:
                sink.wait(plan.limit_s + _SINK_IDLE_S)
        if run.mta != DIRECT and not wait_until_quiet(processes, _QUIET_AFTER_S, plan.idle_s):
            run.notes.append(f"still busy {_QUIET_AFTER_S:g} s after the last message; what came later is not counted")
        memory.look()
        run.cpu_s = processes.cpu_s() - before_s
        run.others = others.cores(run.cpu_s + source.cpu_s + (sink.cpu_s if sink is not None else 0.0))
        if run.others > _OTHERS_MOST:
            run.notes.append(f"others used {run.others:.1f} cores meanwhile: not to be trusted")
    worst = memory.worst()
    run.largest, run.peak, run.peak_anonymous = worst.role, worst.resident, worst.anonymous
    run.together = memory.together
    return source


@contextlib.contextmanager
def _counting_syncs(plan: Plan, run: Run, processes: Account, directory: Path) -> Iterator[None]:
    if not plan.count_syncs or run.mta == DIRECT:
        run.syncs_why_not = "not asked for"
        yield
        return
    try:
        counter = SyncCounter(processes, plan.file_system, directory / "perf.out")
    except NotMeasuredError as error:
        run.syncs_why_not = str(error)
        yield
        return
    try:
        yield
    finally:
        try:
            run.syncs = counter.stop()
        except NotMeasuredError as error:
            run.syncs_why_not = str(error)


@contextlib.contextmanager
def _profiling(plan: Plan, run: Run, processes: Account) -> Iterator[None]:
    worker = find(processes, "worker") if plan.profile and run.mta == ours.NAME else None
    if plan.profile is None or worker is None:
        yield
        return
    profiler = Profiler(plan.profile, worker, plan.profiles / f"profile-{run.scenario}-{run.number}")
    try:
        yield
    finally:
        run.profile = profiler.stop()


def evaluate(scenario: Scenario, run: Run, source: Program, sink: Program | None) -> None:
    """Rates and costs from what the load programs report, and whether nothing was lost. Raises ProgramError."""
    sent = source.result()
    run.accepted = int(sent["accepted"])
    run.ack_p50_ms, run.ack_p99_ms = sent["ack_p50_ms"], sent["ack_p99_ms"]
    run.dot_p50_ms, run.dot_p99_ms = sent.get("dot_p50_ms"), sent.get("dot_p99_ms")
    last = sent["last"]
    done = run.accepted * scenario.recipients
    if sink is not None:
        came = sink.result()
        last = came["last"]
        run.arrived = done = int(came["distinct"])
        run.duplicates = int(came["dups"])
        run.connections, run.most_connections = int(came["conns"]), int(came["maxconc"])
        span = came["last"] - came["first"]
        if scenario.connections is not None and span > 0:
            round_trips = span / (scenario.delay_ms / 1000)
            run.per_round_trip = came["msgs"] / round_trips / scenario.connections
    run.seconds = max(last - sent["start"], 0.0)
    if done and run.seconds:
        run.rate = done / run.seconds
        run.cpu_ms = run.cpu_s * 1000 / done
        run.source_cpu_ms = source.cpu_s * 1000 / done
        run.sink_cpu_ms = sink.cpu_s * 1000 / done if sink is not None else 0.0
    if run.syncs is not None and run.accepted:
        run.syncs_per_message = run.syncs / run.accepted
    check(scenario, run, sent, source.complaints())


def check(scenario: Scenario, run: Run, sent: dict[str, float], said: list[str]) -> None:
    """Every recipient exactly once: at the sink, or in the queue when there is no sink."""
    if run.accepted != scenario.messages:
        run.problems.append(f"accepted {run.accepted} of {scenario.messages} messages")
    if sent["errors"]:
        run.problems.append(f"{sent['errors']:.0f} errors while injecting: {'; '.join(said[:2])}")
    in_queue = 0 if scenario.receivers_up else scenario.expected
    if scenario.receivers_up and run.arrived != scenario.expected:
        run.problems.append(f"{run.arrived} of {scenario.expected} recipients arrived")
    if run.duplicates:
        run.problems.append(f"{run.duplicates} recipients arrived twice")
    if run.queued != in_queue:
        run.problems.append(f"{run.queued} in the queue at the end instead of {in_queue}")
