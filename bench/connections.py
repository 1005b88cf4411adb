"""What open connections cost: ten thousand at once in one worker, to receivers that take their time (S10).

    python -m bench.connections
    python -m bench.connections --connections 2000 --hold 10

The receivers answer the content of a message `--hold` seconds late, everything else at once, and no content before all
connections are open (or for six times as long), so that all are open at the same time with a message on each and the
replies come together. Three times as many messages as connections are injected. Measured in the one worker: its own
memory (RssAnon) with all connections open less that at rest, for each connection, messages in memory included; how
late its event loop was, as `mta status` tells it (p99 and worst of the last minute); and what memory is left when it
has been at rest again for a while.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.candidate import CandidateError, Setup, runtime_directory
from bench.loopback import consecutive
from bench.machine import describe, file_system
from bench.measure import Plan, Run, evaluate, start_nameserver
from bench.ours import NAME, Ours, version
from bench.processes import Account, account, find, memory, wait_until_quiet
from bench.programs import LoadPrograms, Program, ProgramError, free_port
from bench.scenarios import FIRST_ADDRESS, Scenario
from bench.throughput import add_common, executable_pair, exit_on_sigterm, positive, workplace
from mta.control.client import ControlClient
from mta.control.exits import OperatorError
from mta.control.protocol import WorkerStatus

CONNECTIONS = 10_000
HOLD_S = 20
DOMAINS = 50
_SPARE_FILES = 500
_DELIVERIES = 20_000
"""What a worker keeps in memory by default."""
_LOOK_S = 0.5
_SETTLE_S = 10.0
REST_S = 45.0
"""What a worker has to return memory when all is over."""


@dataclass(slots=True)
class Connections:
    """What was seen."""

    asked: int
    opened: int = 0
    """The most at one time, as the sink saw it."""
    open_when_measured: int = 0
    resting_bytes: int = 0
    """RssAnon of the worker before."""
    open_bytes: int = 0
    """The same with that many open."""
    bytes_each: float = 0.0
    rested_bytes: int = 0
    """The same some time after the last message."""
    lag_p99_ms: float = 0.0
    """The largest p99 of a minute while nine tenths of them were open."""
    lag_max_ms: float = 0.0
    seconds_to_open: float = 0.0
    """From the first message on."""
    run: Run | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def measure_connections(plan: Plan, count: int, hold_s: int, directory: Path) -> Connections:
    """One measurement in `directory`; what went wrong is in its `problems`."""
    found = Connections(count)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most_files != resource.RLIM_INFINITY and most_files < count + _SPARE_FILES:
        found.asked = max(most_files - _SPARE_FILES, 1)
        found.notes.append(f"a process may open {most_files} files: {found.asked} connections instead of {count} "
                           "(ulimit -Hn)")
    scenario = Scenario("S10", f"{found.asked:,} connections in one worker", 3 * found.asked, domains=DOMAINS)
    with contextlib.ExitStack() as ends:
        processes = account("connections")
        ends.callback(processes.close)
        try:
            _measure(plan, scenario, found, hold_s, directory, processes, ends)
        except (ProgramError, CandidateError, OperatorError, OSError) as error:
            found.problems.append(str(error))
    if not found.problems and found.opened < found.asked:
        found.problems.append(f"{found.opened} connections were open at once instead of {found.asked}")
    return found


def _measure(plan: Plan, scenario: Scenario, found: Connections, hold_s: int, directory: Path, processes: Account,
             ends: contextlib.ExitStack) -> None:
    port = free_port(consecutive(FIRST_ADDRESS, scenario.addresses))
    nameserver, dns = start_nameserver(scenario, directory)
    ends.callback(nameserver.stop)
    # Always ours: no other knows -W.
    sink = Program("sink", [
        *LoadPrograms().sink, "-a", FIRST_ADDRESS, "-k", str(scenario.addresses), "-p", str(port),
        "-W", str(hold_s * 1000), "-g", str(found.asked), "-n", str(scenario.expected), "-i", str(9 * hold_s + 30),
        "-X", f"{plan.limit_s:g}",
    ], directory)
    ends.callback(sink.stop)
    sink.wait_ready()
    place = directory / NAME
    place.mkdir()
    runtime = ends.enter_context(runtime_directory())
    # A path opens a connection while more deliveries wait in memory than it has connections: so all are kept there. Of
    # the memory some is for transactional mail, and a site has a share only.
    settings = {"delivery.connections": found.asked, "shaping.default.connections": found.asked // DOMAINS + 1,
                # Or it would begin with five to a site, and wait for the answers before there are more.
                "shaping.default.adaptive.enabled": False,
                "shaping.default.connection_age": f"{10 * hold_s}s",
                "memory.deliveries": max(2 * scenario.messages, _DELIVERIES), **plan.settings}
    mta = Ours(Setup(place, runtime, processes, dns, port, "1", None, settings))
    ends.callback(lambda: found.problems.extend(mta.stop()))
    address = mta.start()
    wait_until_quiet(processes, _SETTLE_S)
    worker = find(processes, "worker")
    if worker is None:
        raise CandidateError("its worker is not to be found")
    found.resting_bytes = memory(worker)[1]

    run = found.run = Run(scenario.name, NAME, 1, scenario.expected, cpu_how=processes.how)
    before_s = processes.cpu_s()
    began_s = time.monotonic()
    source = Program("source", [
        *plan.load.source, "-a", address, "-s", "20", "-m", str(scenario.messages), "-l", str(scenario.size),
        "-D", str(scenario.domains), "-r", "1", "-T", f"{plan.limit_s:g}",
    ], directory)
    ends.callback(source.stop)
    deadline = began_s + plan.limit_s
    with ControlClient(str(runtime)) as client:
        def look() -> WorkerStatus:
            status = client.status().workers
            if not status:
                raise CandidateError("its worker does not answer")
            return status[0]

        while not sink.ended():
            _look(found, look, worker, began_s)
            if time.monotonic() > deadline:
                raise ProgramError(f"not done in {plan.limit_s:g} s")
            time.sleep(_LOOK_S)
        sink.wait(1)
        source.wait(_SETTLE_S)
    run.cpu_s = processes.cpu_s() - before_s
    wait_until_quiet(processes, _SETTLE_S)
    run.queued = mta.queued()
    deadline = time.monotonic() + REST_S
    while time.monotonic() < deadline and memory(worker)[1] > 2 * found.resting_bytes:
        time.sleep(_LOOK_S)
    found.rested_bytes = memory(worker)[1]
    evaluate(scenario, run, source, sink)
    found.opened = run.most_connections
    found.problems += run.problems
    if found.open_when_measured:
        found.bytes_each = (found.open_bytes - found.resting_bytes) / found.open_when_measured


def _look(found: Connections, ask: Callable[[], WorkerStatus], worker: int, began_s: float) -> None:
    status = ask()
    anonymous = memory(worker)[1]
    if status.connections >= found.open_when_measured:
        if status.connections > found.open_when_measured:
            found.seconds_to_open = time.monotonic() - began_s
        found.open_when_measured = status.connections
        found.open_bytes = max(found.open_bytes, anonymous)
    if status.connections >= 0.9 * found.asked:
        found.lag_p99_ms = max(found.lag_p99_ms, status.loop_lag_p99_ms)
        found.lag_max_ms = max(found.lag_max_ms, status.loop_lag_max_ms)


def lines(found: Connections) -> list[str]:
    """For people."""
    said = [
        f"{found.opened:,} connections open at once, after {found.seconds_to_open:.1f} s",
        f"memory: {found.resting_bytes / 1e6:.0f} MB at rest, {found.open_bytes / 1e6:.0f} MB with all open",
        f"        {found.bytes_each / 1000:.1f} KB for each of {found.open_when_measured:,}",
        f"        {found.rested_bytes / 1e6:.0f} MB when all is over",
        f"event loop late: p99 {found.lag_p99_ms:.1f} ms, at most {found.lag_max_ms:.0f} ms",
    ]
    if found.run is not None:
        said.append(f"{found.run.arrived:,} of {found.run.expected:,} messages arrived, {found.run.cpu_ms:.3f} ms CPU "
                    "each")
    return [*said, *(f"note: {text}" for text in found.notes), *(f"PROBLEM: {text}" for text in found.problems)]


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.connections", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=positive, default=CONNECTIONS, metavar="N", help="(%(default)s)")
    parser.add_argument("--hold", type=positive, default=HOLD_S, metavar="S",
                        help="how late content is answered (%(default)s)")
    add_common(parser, limit_s=600)
    return parser


def main(words: list[str] | None = None) -> int:
    """Run it with this command line; 0 if all were open at once and every message arrived once."""
    parser = arguments()
    options = parser.parse_args(words)
    load = executable_pair(parser, options)
    with workplace(options.directory, keep=False) as place:
        machine = describe(place)
        plan = Plan(load, False, "1", dict(options.settings), options.timeout, False, file_system(place), None, place)
        print(*machine.lines(), *(f"warning: {text}" for text in machine.warnings()), sep="\n", flush=True)
        found = measure_connections(plan, options.connections, options.hold, place)
    print(*lines(found), sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": asdict(machine), "version": version(),
                                            "connections": asdict(found)}, indent=1) + "\n")
    return 1 if found.problems else 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
