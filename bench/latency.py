"""How long one client waits for its `250`, one message at a time, beside one fdatasync on the same disk (L1).

    python -m bench.latency
    python -m bench.latency --against postfix --sync-delay 5

One session sends a message, waits for the `250`, sends the next. Measured is the time from the final dot to its `250`,
and in between, block by block in the same minutes on the same disk, that of appending 5 KB to a file and fdatasync.
With `--sync-delay` every sync of the MTA takes so much longer, and counts as that in the comparison: what is kept
then shows that a message waits for one sync, and no more. Receivers take what comes meanwhile, so the MTA delivers
beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import ours, slowdisk
from bench.candidate import CandidateError, Setup, runtime_directory
from bench.candidates import CANDIDATES, DIRECT, OTHERS
from bench.client import Client
from bench.loopback import consecutive
from bench.machine import describe, file_system
from bench.measure import Plan, start_nameserver, start_sink
from bench.namespace import DNS_ADDRESS
from bench.processes import account, wait_until_quiet
from bench.programs import ProgramError, free_port
from bench.scenarios import FIRST_ADDRESS, Scenario
from bench.source import Content
from bench.throughput import add_common, executable_pair, exit_on_sigterm, positive, workplace

MESSAGES = 2000
BLOCK = 100
_SIZE = 5000
_QUIET_S = 10.0


@dataclass(slots=True)
class Latency:
    """One run."""

    mta: str
    number: int
    sync_delay_ms: float
    dot_p50_ms: float = 0.0
    """From the final dot to its 250."""
    dot_p99_ms: float = 0.0
    sync_p50_ms: float = 0.0
    """Append of 5 KB and fdatasync, the delay added."""
    ratio: float = 0.0
    """The first for one of the last."""
    problems: list[str] = field(default_factory=list)


class SyncProbe:
    """Appends 5 KB to a file and syncs it, as the plainest durable queue would."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._block = bytes(_SIZE)

    def sync(self) -> float:
        """Do it once; the seconds."""
        began = time.perf_counter()
        os.write(self._fd, self._block)
        os.fdatasync(self._fd)
        return time.perf_counter() - began

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def measure_latency(plan: Plan, name: str, number: int, messages: int, sync_delay_ms: float,
                    directory: Path) -> Latency:
    """One run in `directory`; what went wrong is in its `problems`."""
    found = Latency(name, number, sync_delay_ms)
    with contextlib.ExitStack() as ends:
        processes = account(f"latency-{name}-{number}")
        ends.callback(processes.close)
        try:
            scenario = Scenario("L1", "one at a time", messages, domains=1, addresses=1)
            kind = CANDIDATES[name]
            port = kind.sink_port or free_port(consecutive(FIRST_ADDRESS, 1))
            nameserver, dns = start_nameserver(scenario, directory, DNS_ADDRESS if kind.own_resolver else None)
            ends.callback(nameserver.stop)
            sink = start_sink(plan, scenario, port, directory)
            assert sink is not None
            ends.callback(sink.stop)
            place = directory / name
            place.mkdir(mode=0o755)
            runtime = ends.enter_context(runtime_directory())
            mta = kind.make(Setup(place, runtime, processes, dns, port, plan.workers, None, plan.settings,
                                  slowdisk.environment(sync_delay_ms, directory)))
            ends.callback(lambda: found.problems.extend(mta.stop()))
            address = mta.start()
            wait_until_quiet(processes, _QUIET_S)
            _alternate(found, address, messages, directory)
            sink.wait(plan.limit_s)
            arrived = int(sink.result()["distinct"])
            if arrived != messages:
                found.problems.append(f"{arrived} of {messages} arrived")
        except (ProgramError, CandidateError, slowdisk.NoCompilerError, OSError) as error:
            found.problems.append(str(error))
    return found


def _alternate(found: Latency, address: str, messages: int, directory: Path) -> None:
    """Blocks of messages and blocks of syncs, in turn."""
    dots: list[float] = []
    syncs: list[float] = []
    probe = SyncProbe(directory / "sync.probe")
    client, content, numbers = Client(address), Content(_SIZE, 1, 1, "test"), iter(range(messages))
    try:
        while len(dots) < messages:
            dots += [client.send(content, number) for number in itertools.islice(numbers, BLOCK)]
            syncs += [probe.sync() for _ in range(BLOCK // 4)]
    finally:
        client.close()
        probe.close()
    dots.sort()
    found.dot_p50_ms = round(statistics.median(dots) * 1000, 3)
    found.dot_p99_ms = round(dots[min(int(len(dots) * 0.99), len(dots) - 1)] * 1000, 3)
    found.sync_p50_ms = round(statistics.median(syncs) * 1000 + found.sync_delay_ms, 3)
    found.ratio = round(found.dot_p50_ms / found.sync_p50_ms, 3)


def run_latencies(plan: Plan, names: list[str], delays_ms: list[float], runs: int, messages: int,
                  place: Path) -> list[Latency]:
    """Each MTA with each delay, `runs` times, in turn."""
    done = []
    for delay_ms in delays_ms:
        for number in range(1, runs + 1):
            for name in names:
                if delay_ms and not CANDIDATES[name].slowed:
                    continue
                directory = place / f"L1-{delay_ms:g}-{name}-{number}"
                directory.mkdir(mode=0o755)
                found = measure_latency(plan, name, number, messages, delay_ms, directory)
                print(line(found), *found.problems, sep="\n  ", file=sys.stderr, flush=True)
                done.append(found)
    return done


def line(found: Latency) -> str:
    """One run, for people."""
    slow = f" (syncs {found.sync_delay_ms:g} ms longer)" if found.sync_delay_ms else ""
    return (f"L1 {found.mta} {found.number}{slow}: 250 after {found.dot_p50_ms:.3f} ms, p99 {found.dot_p99_ms:.3f}; "
            f"one fdatasync {found.sync_p50_ms:.3f} ms: {found.ratio:.2f} of it")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.latency", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=positive, default=MESSAGES, metavar="N", help="messages (%(default)s)")
    parser.add_argument("--runs", type=positive, default=3, metavar="N", help="runs of each (3)")
    parser.add_argument("--against", action="append", default=[], choices=[name for name in OTHERS if name != DIRECT],
                        help="measure this in turn with us")
    parser.add_argument("--sync-delay", type=float, default=0.0, metavar="MS",
                        help="every sync of the MTA takes so much longer")
    add_common(parser)
    return parser


def main(words: list[str] | None = None) -> int:
    """Run it with this command line; 0 if every message arrived."""
    parser = arguments()
    options = parser.parse_args(words)
    load = executable_pair(parser, options)
    names = [ours.NAME]
    for name in options.against:
        why_not = CANDIDATES[name].unavailable()
        if why_not is None:
            names.append(name)
        else:
            print(f"skipped: {name}: {why_not}")
    with workplace(options.directory, keep=False) as place:
        machine = describe(place)
        plan = Plan(load, False, options.workers, dict(options.settings), options.timeout, False, file_system(place),
                    None, place)
        print(*machine.lines(), *(f"warning: {text}" for text in machine.warnings()), sep="\n", flush=True)
        done = run_latencies(plan, names, [options.sync_delay], options.runs, options.messages, place)
    for name in names:
        ratios = [found.ratio for found in done if found.mta == name and not found.problems]
        if ratios:
            print(f"{name}: {statistics.median(ratios):.2f} times one fdatasync")
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": asdict(machine), "latency": [asdict(found) for found in done]},
                                           indent=1) + "\n")
    return 1 if any(found.problems for found in done) else 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
