"""What a long queue for one slow provider does to all other mail: fresh mail to many domains, and transactional mail.

    python -m bench.crowd                               1,000,000 queued, fresh mail to 10,000 domains
    python -m bench.crowd --queued 20000 --domains 500  the same small, in a minute

The backlog is tenant `bulk`'s mail for 20 domains of one provider, whose one host takes a second for each message, over
`--connections` connections at most; all of it is due. Beside it come, at an even pace for half a minute,

    fresh           tenant `news`: one message to each of `--domains` domains, with routes and connections to be made
    transactional   tenant `shop`, priority transactional, to 50 of these domains
    to the slow     the same to the domains of the slow provider, whose connections are all in use

and an operator's commands. For each class: how long from the `250` to the arrival. The same load goes through the MTA
without a backlog first, and once more while an operator has half of the backlog deleted (`--only` takes one of these).
Facts, too: all arrives once, and how many messages of the backlog arrive at the slow host
between the `250` of a transactional message and its own arrival; those are what is on its connections already, if
nothing goes first that should not.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import json
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.candidate import CandidateError, Setup, runtime_directory
from bench.fill import FillError, fill
from bench.loopback import consecutive
from bench.machine import describe
from bench.nameserver import SLOW_ADDRESS
from bench.others import Others
from bench.ours import Ours, version, workers
from bench.processes import Account, MemoryWatch, account, wait_until_quiet
from bench.programs import LoadPrograms, Program, ProgramError, free_port
from bench.report import aligned
from bench.scenarios import FIRST_ADDRESS
from bench.throughput import add_common, exit_on_sigterm, positive, workplace

KINDS = ("nothing", "backlog", "sweep")
QUEUED = 1_000_000
DOMAINS = 10_000
ADDRESSES = 50
BACKLOG_DOMAINS = 20
SLOW_MS = 1000
CONNECTIONS = 20
LOAD_S = 30
TRANSACTIONAL_S = 30.0
"""Messages a second to the domains of the fresh mail."""
TO_SLOW_S = 3.0
"""And to those of the slow provider, which takes 20 a second."""
SIZE = 5000
FILLED_S = 5.0
"""What the MTA has to get hold of the slow provider before the load comes."""
ROUNDS = 3
_FIRST = {"fresh": 0, "transactional": 10_000_000, "to the slow": 20_000_000}
"""Numbers of recipients, by class; those of the backlog end below."""
_BACKLOG_FIRST = 100_000_000
_ARRIVE_S = 60.0
_LOOK_S = 0.2


@dataclass(slots=True)
class Class:
    """One kind of fresh mail."""

    name: str
    messages: int
    p50_ms: float = 0.0
    """From the 250 to the arrival."""
    p99_ms: float = 0.0
    max_ms: float = 0.0
    overtaken: int = 0
    """The most messages of the backlog that arrived at the same host between the 250 of one and its arrival."""


@dataclass(slots=True)
class Crowd:
    """One run."""

    queued: int
    """Messages of the backlog."""
    sweep: bool = False
    """Whether half of it is deleted meanwhile."""
    fill_s: float = 0.0
    classes: list[Class] = field(default_factory=list)
    cpu_ms: float = 0.0
    """CPU time of all the MTA's processes while the load came, for each message that was delivered."""
    delivered: int = 0
    from_backlog: int = 0
    """Of these."""
    worker_bytes: int = 0
    """The most memory of its own that a worker had."""
    lag_p99_ms: float = 0.0
    """How late the event loop of a worker was at most, in a minute that ended with the load."""
    lag_max_ms: float = 0.0
    deleted: int = 0
    """By the sweep, when the load was over."""
    commands: dict[str, list[float]] = field(default_factory=dict)
    """Seconds that each command took, its own start included."""
    others: float = 0.0
    """Cores that others used."""
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.queued:,} queued{', sweep' if self.sweep else ''}"


def settings(connections: int) -> dict[str, object]:
    """What the MTA has to know of the slow provider. Its window does not adapt: it is known what it takes."""
    slow = "shaping.providers.slow"
    return {f"{slow}.match.mx": "mx.slow", f"{slow}.connections": connections, f"{slow}.adaptive.enabled": False}


def measure_crowd(options: argparse.Namespace, queued: int, sweep: bool, place: Path) -> Crowd:
    """One run in the directory `place`; what went wrong is in its `problems`."""
    found = Crowd(queued, sweep)
    with contextlib.ExitStack() as ends:
        processes = account(f"crowd-{place.name}")
        ends.callback(processes.close)
        try:
            _measure(options, found, processes, place, ends)
        except (ProgramError, CandidateError, FillError, OSError) as error:
            found.problems.append(str(error))
    return found


def _measure(options: argparse.Namespace, found: Crowd, processes: Account, place: Path,
             ends: contextlib.ExitStack) -> None:
    addresses = [SLOW_ADDRESS, *consecutive(FIRST_ADDRESS, ADDRESSES)]
    port = free_port(addresses)
    spool = place / "mta"
    spool.mkdir()
    if found.queued:
        found.fill_s = fill(spool / "spool", found.queued, BACKLOG_DOMAINS, workers(options.workers), size=SIZE,
                            spread_s=0, zone="slow", tenant="bulk", first=_BACKLOG_FIRST)
    nameserver = Program("nameserver", [sys.executable, "-m", "bench.nameserver", "-f", FIRST_ADDRESS, "-k",
                                        str(ADDRESSES)], place)
    ends.callback(nameserver.stop)
    host, _, dns_port = nameserver.wait_ready().split()[-1].rpartition(":")
    sinks = {name: Program(f"sink-{name}", [
        *LoadPrograms().sink, "-a", first, "-k", str(count), "-p", str(port), "-W", str(delay_ms),
        "-i", str(options.timeout), "-X", str(options.timeout), "-c", str(place / f"arrived-{name}.json")], place)
        for name, first, count, delay_ms in (("fast", FIRST_ADDRESS, ADDRESSES, 0), ("slow", SLOW_ADDRESS, 1, SLOW_MS))}
    for sink in sinks.values():
        ends.callback(sink.stop)
        sink.wait_ready()
    runtime = ends.enter_context(runtime_directory())
    mta = Ours(Setup(spool, runtime, processes, (host, int(dns_port)), port, options.workers, None,
                     {**settings(options.connections), **dict(options.settings)}))
    ends.callback(lambda: found.problems.extend(mta.stop()))
    address = mta.start()
    if found.queued:
        time.sleep(FILLED_S)
    else:
        wait_until_quiet(processes, FILLED_S)
    _load(options, found, mta, processes, address, place)
    for sink in sinks.values():
        sink.stop()
    _account(found, place, {name: sink.result() for name, sink in sinks.items()})


def _load(options: argparse.Namespace, found: Crowd, mta: Ours, processes: Account, address: str,
          place: Path) -> None:
    """The load, with an operator's commands meanwhile; returns when all of it has been delivered, or never will be."""
    loads = {"fresh": (options.domains, "test", ["X-Tenant: news"], options.domains / options.seconds),
             "transactional": (ADDRESSES, "test", _SHOP, TRANSACTIONAL_S),
             "to the slow": (BACKLOG_DOMAINS, "slow", _SHOP, TO_SLOW_S)}
    found.classes = [Class(name, round(rate * options.seconds)) for name, (_, _, _, rate) in loads.items()]
    if found.sweep:
        mta.command("delete", "domain=d?.slow", "--yes")
    others, before_s = Others(), processes.cpu_s()
    with MemoryWatch(processes) as memory, contextlib.ExitStack() as ends:
        sources = []
        for one in found.classes:
            domains, zone, fields, rate = loads[one.name]
            name = one.name.replace(" ", "-")
            source = Program(f"source-{name}", [
                *LoadPrograms().source, "-a", address, "-s", "10", "-m", str(one.messages), "-l", str(SIZE), "-D",
                str(domains), "-z", zone, "-R", f"{rate:g}", "-N", str(_FIRST[one.name]), "-T", str(options.timeout),
                "-c", str(place / f"accepted-{name}.json"), *(word for text in fields for word in ("-H", text))], place)
            ends.callback(source.stop)
            sources.append(source)
        operator = threading.Thread(target=_operate, args=(found, mta))
        operator.start()
        for source in sources:
            source.wait(options.timeout)
        operator.join()
        for worker in json.loads(mta.command("status", "--json"))["workers"]:
            found.lag_p99_ms = max(found.lag_p99_ms, worker["loop_lag_p99_ms"])
            found.lag_max_ms = max(found.lag_max_ms, worker["loop_lag_max_ms"])
        if found.sweep:
            left = sum(int(json.loads(line)["deliveries"])
                       for line in mta.command("queue", "list", "bulk@d?.slow", "--json").splitlines())
            found.deleted = found.queued // 2 - left
        _await_arrival(found, mta)
        used_s = processes.cpu_s() - before_s
        found.others = others.cores(used_s + sum(source.cpu_s for source in sources))
    found.cpu_ms = used_s * 1000
    found.worker_bytes = max((peak.anonymous for peak in memory.peaks.values() if peak.role == "worker"), default=0)
    for source in sources:
        if source.result()["errors"]:
            found.problems.append(f"errors while injecting: {'; '.join(source.complaints()[:2])}")


_SHOP = ["X-Tenant: shop", "X-Priority-Class: transactional"]


def _operate(found: Crowd, mta: Ours) -> None:
    """What an operator does meanwhile, a few times; how long each command takes."""
    commands = {"queue": ["queue"], "explain": ["explain", "d15.slow"],
                "pause": ["pause", "domain=d16.slow", "--yes"], "resume": ["resume", "domain=d16.slow"]}
    for _ in range(ROUNDS):
        for name, words in commands.items():
            began_s = time.monotonic()
            try:
                mta.command(*words)
            except CandidateError as error:
                if found.queued or name != "explain":  # there may be nothing to explain
                    found.problems.append(str(error))
            found.commands.setdefault(name, []).append(time.monotonic() - began_s)
            time.sleep(0.5)


def _await_arrival(found: Crowd, mta: Ours) -> None:
    """Wait until no fresh message is in the queue: what is left is the backlog's."""
    deadline = time.monotonic() + _ARRIVE_S
    while time.monotonic() < deadline:
        left = sum(int(json.loads(line)["recipients"]) for pattern in ("news@*", "shop@*")
                   for line in mta.command("queue", "list", pattern, "--json").splitlines())
        if not left:
            return
        time.sleep(_LOOK_S)
    found.problems.append(f"mail that came beside the backlog is still queued after {_ARRIVE_S:g} s")


def _account(found: Crowd, place: Path, sinks: dict[str, dict[str, float]]) -> None:
    """Latencies, and whether everything arrived once."""
    arrived: dict[int, float] = {}
    backlog: list[float] = []
    for name in sinks:
        for number, at_s in json.loads((place / f"arrived-{name}.json").read_text()):
            if number >= _BACKLOG_FIRST:
                backlog.append(at_s)
            else:
                arrived[number] = at_s
    backlog.sort()
    found.from_backlog = len(backlog)
    found.delivered = len(arrived) + len(backlog)
    found.cpu_ms /= max(found.delivered, 1)
    for one in found.classes:
        accepted = json.loads((place / f"accepted-{one.name.replace(' ', '-')}.json").read_text())
        if len(accepted) != one.messages:
            found.problems.append(f"{one.name}: {len(accepted)} of {one.messages} accepted")
        missing = sum(number not in arrived for number, _ in accepted)
        if missing:
            found.problems.append(f"{one.name}: {missing} did not arrive")
        _latencies(one, [(at_s, arrived[number]) for number, at_s in accepted if number in arrived], backlog)
    for name, result in sinks.items():
        if result["dups"] or result["strangers"]:
            found.problems.append(f"{name}: {result['dups']:.0f} arrived twice, {result['strangers']:.0f} are unknown")
    if found.queued and len(backlog) + found.deleted >= found.queued:
        found.problems.append("the backlog did not last: more --queued, or fewer --connections")


def _latencies(one: Class, times: Sequence[tuple[float, float]], backlog: Sequence[float]) -> None:
    # A message may arrive before the source has read the 250.
    waits = sorted(max(came_s - at_s, 0.0) * 1000 for at_s, came_s in times)
    if waits:
        one.p50_ms, one.max_ms = round(statistics.median(waits), 1), round(waits[-1], 1)
        one.p99_ms = round(waits[min(int(len(waits) * 0.99), len(waits) - 1)], 1)
    if one.name == "to the slow":
        one.overtaken = max((bisect.bisect(backlog, came_s) - bisect.bisect(backlog, at_s)
                             for at_s, came_s in times), default=0)


def _took(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} / {max(seconds):.2f}" if seconds else ""


def lines(runs: Sequence[Crowd]) -> list[str]:
    """The table: without and with the backlog side by side."""
    titles = ["", *(run.name for run in runs)]

    def row(title: str, value: Callable[[Crowd], str]) -> list[str]:
        return [title, *map(value, runs)]

    rows = [titles]
    rows += [[f"{kinds[0].name} ({kinds[0].messages:,}): p50 / p99 / max ms",
              *(f"{one.p50_ms:,.1f} / {one.p99_ms:,.1f} / {one.max_ms:,.1f}" for one in kinds)]
             for kinds in zip(*(run.classes for run in runs), strict=False)]
    rows.append(row("backlog that went before one to the slow",
                    lambda run: f"{max((one.overtaken for one in run.classes), default=0)}"))
    rows.append(row("delivered, of the backlog", lambda run: f"{run.delivered:,}, {run.from_backlog:,}"))
    rows.append(row("CPU ms for each", lambda run: f"{run.cpu_ms:.3f}"))
    rows.append(row("event loop late, ms: p99 / max", lambda run: f"{run.lag_p99_ms:.1f} / {run.lag_max_ms:.1f}"))
    if any(run.sweep for run in runs):
        rows.append(row("deleted by the sweep meanwhile", lambda run: f"{run.deleted:,}" if run.sweep else ""))
    rows.append(row("MB of the largest worker", lambda run: f"{run.worker_bytes / 1e6:.0f}"))
    rows += [[f"mta {name}, s: median / max", *(_took(run.commands.get(name, [])) for run in runs)]
             for name in runs[0].commands]
    rows.append(row("cores used by others", lambda run: f"{run.others:.1f}"))
    said = aligned(rows, left=1)
    said += [f"PROBLEM: {run.name}: {text}" for run in runs for text in run.problems]
    return said


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.crowd", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=positive, default=QUEUED, metavar="N", help="the backlog (%(default)s)")
    parser.add_argument("--domains", type=positive, default=DOMAINS, metavar="N",
                        help="domains that fresh mail goes to (%(default)s)")
    parser.add_argument("--connections", type=positive, default=CONNECTIONS, metavar="N",
                        help="connections to the slow provider (%(default)s)")
    parser.add_argument("--seconds", type=positive, default=LOAD_S, metavar="S", help="for so long (%(default)s)")
    parser.add_argument("--only", action="append", choices=KINDS, help="this run alone; may be repeated")
    add_common(parser)
    return parser


def main(words: list[str] | None = None) -> int:
    """Run it with this command line; 0 if everything arrived once."""
    parser = arguments()
    options = parser.parse_args(words)
    if options.source is not None or options.sink is not None:
        parser.error("only our own source and sink tell when each message came")
    with workplace(options.directory, keep=False) as place:
        machine = describe(place)
        print(*machine.lines(), *(f"warning: {text}" for text in machine.warnings()), sep="\n", flush=True)
        runs = []
        for kind in options.only or KINDS:
            directory = place / kind
            directory.mkdir()
            runs.append(measure_crowd(options, 0 if kind == "nothing" else options.queued, kind == "sweep", directory))
            print(*(f"{runs[-1].name}: {text}" for text in runs[-1].problems or ["done"]), sep="\n", flush=True)
            shutil.rmtree(directory, ignore_errors=True)
    print(*lines(runs), sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": asdict(machine), "version": version(),
                                            "runs": [asdict(run) for run in runs]}, indent=1) + "\n")
    return 1 if any(run.problems for run in runs) else 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
