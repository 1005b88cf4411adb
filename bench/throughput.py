"""How fast, and at what cost: messages per second, CPU, syncs, memory and latency, with Postfix beside us if asked.

    python bench/throughput.py --scenario S2 --runs 3 --against postfix --json result.json

docs/performance.md tells the method, what the columns mean and how to read them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import yaml

if __package__ in (None, ""):
    # Run as a file: this checkout's packages, not the files beside this one, are what is imported.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import ours, profiler, report
from bench.candidates import CANDIDATES, DIRECT, OTHERS
from bench.machine import Machine, describe, file_system
from bench.measure import Plan, Run, measure
from bench.programs import LoadPrograms
from bench.scenarios import SCENARIOS, Scenario

_DEFAULT = ("S1", "S2", "S3", "S4", "S5", "S6")
_EPILOG = """\
scenarios:
{scenarios}

examples:
  python bench/throughput.py                                       S1 to S6, three runs each
  sudo python bench/throughput.py --against postfix --json r.json  with Postfix in turn with us, and syncs counted
  python bench/throughput.py --scenario S2 --runs 1 --profile py-spy
  python bench/throughput.py --scenario S2 --against direct --not-ours   the load alone, without an MTA
  python bench/throughput.py --scenario S1 --set memory.bodies=64MB --set shaping.default.connections=50

Exit code: 0 if every message of every run arrived exactly once, 1 if not, 2 for a wrong command line."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    scenarios = "\n".join(
        f"  {scenario.name}  {scenario.title}: {scenario.messages:,} messages of {scenario.size / 1000:g} KB, "
        f"recipients each: {scenario.recipients:,}, domains: {scenario.domains:,}" for scenario in SCENARIOS.values())
    parser = argparse.ArgumentParser(
        prog="bench/throughput.py", description="Measure the MTA on loopback.",
        epilog=_EPILOG.format(scenarios=scenarios), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", action="append", default=[], metavar="NAME[,NAME...]",
                        help=f"scenarios, or all ({','.join(_DEFAULT)})")
    parser.add_argument("--runs", type=positive, default=3, metavar="N", help="runs of each; medians are shown (3)")
    parser.add_argument("--messages", type=positive, metavar="N", help="messages per run instead of the scenario's")
    parser.add_argument("--sessions", type=positive, metavar="N", help="injecting sessions instead of the scenario's")
    parser.add_argument("--against", action="append", default=[], choices=OTHERS,
                        help="measure this in turn with us; direct: the source talks to the sink, no MTA")
    parser.add_argument("--not-ours", action="store_true", help="leave our MTA out")
    add_common(parser)
    parser.add_argument("--pipelining", action="store_true", help="the source pipelines its envelopes")
    parser.add_argument("--no-syncs", action="store_true", help="do not count syncs")
    parser.add_argument("--profile", choices=profiler.KINDS, help="profile our first worker during each run")
    parser.add_argument("--profiles", type=Path, default=Path(), metavar="DIR", help="where profiles go (here)")
    parser.add_argument("--keep", action="store_true", help="keep the directories of the runs")
    return parser


def add_common(parser: argparse.ArgumentParser, limit_s: int = 300) -> None:
    """Options that all benchmarks have that start our MTA."""
    parser.add_argument("--workers", type=worker_count, default="auto", metavar="N", help="our workers (auto)")
    parser.add_argument("--set", action="append", default=[], type=setting, dest="settings", metavar="OPTION=VALUE",
                        help="an option of our configuration by its dotted name, as it is written in YAML")
    parser.add_argument("--source", type=executable, metavar="PATH", help="a source with bench.source's command line")
    parser.add_argument("--sink", type=executable, metavar="PATH", help="a sink with bench.sink's command line")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), metavar="DIR",
                        help="the disk to measure: spools are made below it (%(default)s)")
    parser.add_argument("--timeout", type=positive, default=limit_s, metavar="S",
                        help="longest time for one run (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")


def executable_pair(parser: argparse.ArgumentParser, options: argparse.Namespace) -> LoadPrograms:
    """Source and sink as the command line names them; ends the program when only one of them is."""
    if (options.source is None) != (options.sink is None):
        parser.error("--source and --sink belong together: one counts what the other numbers")
    if options.source is None:
        return LoadPrograms()
    return LoadPrograms((options.source,), (options.sink,),
                        f"{Path(options.source).name} and {Path(options.sink).name}")


def positive(text: str) -> int:
    """A number above 0 on the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return int(text)


def worker_count(text: str) -> str:
    """A number of workers, or `auto`."""
    return text if text == "auto" else str(positive(text))


def executable(text: str) -> str:
    """The absolute path of a program."""
    path = shutil.which(text)
    if path is None:
        raise argparse.ArgumentTypeError(f"{text} is not an executable file")
    return str(Path(path).resolve())


def setting(text: str) -> tuple[str, object]:
    """An option of our configuration and its value."""
    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".")):
        raise argparse.ArgumentTypeError(f"expected OPTION=VALUE, not {text!r}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Scenario]:
    """The scenarios asked for; ends the program for one that does not exist."""
    names = [name.strip().upper() for text in options.scenario for name in text.split(",")]
    if not names or names == ["ALL"]:
        names = list(_DEFAULT)
    scenarios = []
    for name in names:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name}: there are {', '.join(SCENARIOS)}")
        scenario = SCENARIOS[name]
        scenarios.append(replace(scenario, messages=options.messages or scenario.messages,
                                 sessions=options.sessions or scenario.sessions))
    return scenarios


def candidates(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The MTAs to measure in turn, and why others cannot be; ends the program when there are none."""
    names = [] if options.not_ours else [ours.NAME]
    skipped = {}
    for name in dict.fromkeys(options.against):
        why_not = CANDIDATES[name].unavailable()
        if why_not is None:
            names.append(name)
        else:
            skipped[name] = why_not
    if not names:
        parser.error("nothing to measure" + "".join(f"; {name}: {reason}" for name, reason in skipped.items()))
    return names, skipped


@contextlib.contextmanager
def workplace(parent: Path, keep: bool) -> Iterator[Path]:
    """A directory of ours on the disk to measure, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="mta-bench-", dir=parent))
    path.chmod(0o755)
    try:
        yield path
    finally:
        if keep:
            print(f"kept: {path}", file=sys.stderr)
        else:
            shutil.rmtree(path, ignore_errors=True)


def run_all(plan: Plan, scenarios: list[Scenario], names: list[str], runs: int, place: Path, keep: bool) -> list[Run]:
    """Every scenario `runs` times, the MTAs in turn within each, so that a slow minute of the machine hits all."""
    done = []
    for scenario in scenarios:
        for number in range(1, runs + 1):
            for name in names:
                if (name == DIRECT and not scenario.receivers_up) or (
                        scenario.sync_delay_ms and not CANDIDATES[name].slowed):
                    continue
                directory = place / f"{scenario.name}-{name}-{number}"
                directory.mkdir(mode=0o755)
                run = measure(plan, scenario, name, number, directory)
                print(report.progress(run, runs), file=sys.stderr, flush=True)
                done.append(run)
                if not keep:
                    shutil.rmtree(directory, ignore_errors=True)
    return done


def write_json(path: Path, machine: Machine, options: argparse.Namespace, versions: dict[str, str],
               skipped: dict[str, str], load: LoadPrograms, runs: list[Run]) -> None:
    """Everything measured."""
    result = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "versions": versions,
        "skipped": skipped,
        "load": load.name,
        "settings": {"workers": options.workers, "pipelining": options.pipelining, "set": dict(options.settings),
                     "profiled": options.profile},
        "summary": [asdict(line) for line in report.summarize(runs)],
        "runs": [asdict(run) for run in runs],
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def main(words: list[str] | None = None) -> int:
    """Run the benchmark with this command line, the process's own without it; the exit code."""
    parser = arguments()
    options = parser.parse_args(words)
    scenarios = chosen(parser, options)
    load = executable_pair(parser, options)
    if not options.directory.is_dir():
        parser.error(f"--directory: {options.directory} is no directory")
    if options.profile is not None and (why_not := profiler.missing(options.profile)) is not None:
        parser.error(f"--profile: {why_not}")
    names, skipped = candidates(parser, options)
    if options.profile is not None:
        options.profiles.mkdir(parents=True, exist_ok=True)
    versions = {name: CANDIDATES[name].version() for name in names if name != DIRECT}

    with workplace(options.directory, options.keep) as place:
        machine = describe(place)
        plan = Plan(load, options.pipelining, options.workers, dict(options.settings), options.timeout,
                    not options.no_syncs, file_system(place), options.profile, options.profiles.resolve())
        for line in [*machine.lines(), *(f"{name}: {text}" for name, text in versions.items()),
                     f"load:    {load.name}{', pipelining' if options.pipelining else ''}",
                     *(f"warning: {text}" for text in machine.warnings()),
                     *(f"skipped: {name}: {reason}" for name, reason in skipped.items())]:
            print(line, flush=True)
        runs = run_all(plan, scenarios, names, options.runs, place, options.keep)
    show(runs)
    if options.json is not None:
        write_json(options.json, machine, options, versions, skipped, load, runs)
    return 1 if any(run.problems for run in runs) else 0


def show(runs: list[Run]) -> None:
    """The table, what there is to compare, and what was not measured."""
    lines = report.summarize(runs)
    print("", *report.table(lines), "", *report.comparisons(lines, ours.NAME), sep="\n")
    for reason in sorted({run.syncs_why_not for run in runs if run.syncs_why_not and run.mta != DIRECT}):
        print(f"syncs not measured: {reason}")
    for run in runs:
        for line in run.profile:
            print(line)
        for word, texts in (("note", run.notes), ("PROBLEM", run.problems)):
            for text in texts:
                print(f"{word}: {run.scenario} {run.mta} run {run.number}: {text}")


def exit_on_sigterm() -> None:
    """Make SIGTERM unwind the stack, so that what was started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
