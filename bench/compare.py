"""The whole comparison by one command: all scenarios, ours beside the others, in one sitting.

    sudo python -m bench.compare --json result.json                     ours, Postfix and Haraka; about an hour
    sudo python -m bench.compare --json result.json --runs 1 --scale 0.1   a rehearsal of some minutes
    sudo python -m bench.compare --json result.json --parts queue,connections   these again, into the same result

Parts, in this order; after each of them the result is written, with what an earlier command left in it:

    scenarios     S1 to S6 and D1 with all MTAs in turn, S8 and S9 with ours
    latency       L1: one client, one message at a time, beside one fdatasync; the same with slower syncs
    connections   S10: ten thousand open connections in one worker
    queue         S7: 0 to 1,000,000 messages waiting for 1 to 50,000 domains, and live mail beside them

`python -m bench.figures result.json` makes tables and plots of it. docs/performance.md tells the method.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import figures, haraka, ours, postfix, report
from bench.backlog import IDLE_S, LENGTHS, LIVE, make_rows, measure_rows, numbers
from bench.candidates import CANDIDATES, OTHERS
from bench.connections import CONNECTIONS, HOLD_S, measure_connections
from bench.latency import MESSAGES, run_latencies
from bench.machine import describe, file_system
from bench.measure import Plan, Run
from bench.programs import ROOT, environment
from bench.scenarios import SCENARIOS, Scenario
from bench.throughput import add_common, executable_pair, exit_on_sigterm, positive, run_all, workplace

COMPARED = ("S1", "S2", "S3", "S4", "S5", "S6", "D1")
ALONE = ("S8", "S9")
DELAYS_MS = [0.0, 5.0]
DOMAINS = [1, 1_000, 50_000]
_OWN_FILES = ("--source", "--sink", "--json", "--directory", "--plots", "--markdown")
_LEAST = {"S4": 4}
"""A scaled scenario keeps so many messages, others a hundred."""


class Comparison:
    """One command: what it measures and the result so far."""

    def __init__(self, options: argparse.Namespace, plan: Plan, names: list[str], place: Path,
                 result: dict[str, Any]) -> None:
        self._options = options
        self._plan = plan
        self._names = names
        self._place = place
        self.result = result

    def scenarios(self) -> list[str]:
        """S1 to S6, D1, S8, S9; problems."""
        options = self._options
        compared = [self._scaled(SCENARIOS[name]) for name in COMPARED if self._wanted(name)]
        alone = [self._scaled(SCENARIOS[name]) for name in ALONE if self._wanted(name)]
        again = {scenario.name for scenario in [*compared, *alone]}
        kept = [run for run in self.result.get("runs", ()) if run["scenario"] not in again]
        done: list[Run] = []
        for scenario in [*compared, *alone]:
            names = self._names if scenario.name in COMPARED else [ours.NAME]
            done += run_all(self._plan, [scenario], names, options.runs, self._place, keep=False)
            # A profile is lines of text, and never taken here.
            runs = [*(Run(**run) for run in kept), *done]
            runs.sort(key=lambda run: ((*COMPARED, *ALONE).index(run.scenario), [*CANDIDATES].index(run.mta)))
            self.result |= {"runs": [asdict(run) for run in runs],
                            "summary": [asdict(line) for line in report.summarize(runs)]}
            self.write()
        if self._wanted("S9"):
            self.result["dns"] = self._dns()
        return [f"{run.scenario} {run.mta} run {run.number}: {text}" for run in done for text in run.problems]

    def _wanted(self, name: str) -> bool:
        return not self._options.only or name in self._options.only

    def _scaled(self, scenario: Scenario) -> Scenario:
        least = min(_LEAST.get(scenario.name, 100), scenario.messages)
        messages = max(int(scenario.messages * self._options.scale), least)
        # S9 is about domains, one for each message.
        domains = messages if scenario.domains == scenario.messages else scenario.domains
        return replace(scenario, messages=messages, domains=domains)

    def _dns(self) -> dict[str, float]:
        """What the names alone cost in S9: the same domains, asked for by a worker's resolver without any mail."""
        domains = self._scaled(SCENARIOS["S9"]).domains
        done = subprocess.run([sys.executable, "-m", "bench.dns", "-n", str(domains)], capture_output=True, text=True,
                              env=environment(), cwd=ROOT, timeout=self._plan.limit_s)
        if done.returncode:
            print(f"bench.dns: {done.stderr.strip()[-500:]}", file=sys.stderr)
            return {}
        found: dict[str, float] = json.loads(done.stdout)
        return found

    def latency(self) -> list[str]:
        """L1; problems."""
        names = [name for name in self._names if name in (ours.NAME, postfix.NAME)]
        messages = max(int(MESSAGES * self._options.scale), 100)
        done = run_latencies(self._plan, names, DELAYS_MS, self._options.runs, messages, self._place)
        self.result["latency"] = [asdict(one) for one in done]
        return [f"L1 {one.mta} run {one.number}: {text}" for one in done for text in one.problems]

    def connections(self) -> list[str]:
        """S10; problems."""
        directory = self._place / "connections"
        directory.mkdir()
        count = max(int(CONNECTIONS * self._options.scale), 100)
        hold_s = HOLD_S if count > 1000 else 10
        plan = replace(self._plan, limit_s=max(self._plan.limit_s, 20.0 * hold_s))
        found = measure_connections(plan, count, hold_s, directory)
        self.result["connections"] = asdict(found)
        return [f"S10: {text}" for text in found.problems]

    def queue(self) -> list[str]:
        """S7; problems."""
        options = self._options
        rows = make_rows(options.queued, options.domains)
        plan = replace(self._plan, limit_s=max(self._plan.limit_s, 1800.0), idle_s=IDLE_S)
        live = self._scaled(SCENARIOS[LIVE])
        measure_rows(plan, rows, options.size, live, options.runs, self._place)
        self.result["rows"] = [asdict(row) for row in rows]
        return [f"{row.queued:,} queued for {row.domains:,} domains: {text}" for row in rows for text in row.problems]

    def write(self) -> None:
        """The result so far, into its file."""
        path = self._options.json
        beside = path.with_name(path.name + ".new")
        beside.write_text(json.dumps(self.result, indent=1) + "\n")
        beside.replace(path)


PARTS: dict[str, Callable[[Comparison], list[str]]] = {
    "scenarios": Comparison.scenarios,
    "latency": Comparison.latency,
    "connections": Comparison.connections,
    "queue": Comparison.queue,
}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=_parts, default=[*PARTS], metavar="PART[,PART...]",
                        help=f"what to measure ({','.join(PARTS)})")
    parser.add_argument("--only", type=lambda text: text.upper().split(","), default=[], metavar="NAME[,NAME...]",
                        help="of the scenarios these only")
    parser.add_argument("--runs", type=positive, default=3, metavar="N", help="runs of each; medians are shown (3)")
    parser.add_argument("--scale", type=_share, default=1.0, metavar="X",
                        help="this share of the messages of every scenario (1)")
    parser.add_argument("--against", type=lambda text: text.split(","), default=[postfix.NAME, haraka.NAME],
                        metavar="NAME[,NAME...]", help=f"MTAs beside us, of {', '.join(OTHERS)} (postfix,haraka)")
    parser.add_argument("--queued", type=numbers, default=LENGTHS, metavar="N[,N...]",
                        help=f"lengths of the queue ({','.join(map(str, LENGTHS))})")
    parser.add_argument("--domains", type=numbers, default=DOMAINS, metavar="N[,N...]",
                        help=f"domains that it waits for ({','.join(map(str, DOMAINS))})")
    parser.add_argument("--size", type=positive, default=5000, metavar="BYTES", help="size of what waits (5000)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots into this directory (needs matplotlib)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    add_common(parser)
    return parser


def _parts(text: str) -> list[str]:
    found = text.split(",")
    unknown = [name for name in found if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    return [name for name in PARTS if name in found]


def _command(words: list[str]) -> str:
    """The command line for readers, without the names of this machine's files."""
    shown = ["sudo", "python", "-m", "bench.compare"]
    for before, word in zip(["", *words], words, strict=False):
        shown.append(before.lstrip("-").upper() if before in _OWN_FILES else word)
    return shlex.join(shown)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, not {text!r}")
    return share


def main(words: list[str] | None = None) -> int:
    """Run it with this command line; 0 if no message was lost or doubled and every program did its work."""
    parser = arguments()
    options = parser.parse_args(words)
    load = executable_pair(parser, options)
    if options.json is None:
        parser.error("--json FILE is needed: the result is written there")
    for name in options.only:
        if name not in (*COMPARED, *ALONE):
            parser.error(f"no scenario {name} here: there are {', '.join((*COMPARED, *ALONE))}")
    names, skipped = [ours.NAME], {}
    for name in options.against:
        if name not in OTHERS:
            parser.error(f"no MTA {name!r}: there are {', '.join(OTHERS)}")
        why_not = CANDIDATES[name].unavailable()
        if why_not is None:
            names.append(name)
        else:
            skipped[name] = why_not
    result: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    problems: list[str] = []
    with workplace(options.directory, keep=False) as place:
        machine = describe(place)
        plan = Plan(load, False, options.workers, dict(options.settings), options.timeout, True, file_system(place),
                    None, place)
        versions = {name: CANDIDATES[name].version() for name in names}
        command = _command(sys.argv[1:] if words is None else words)
        result |= {
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "machine": asdict(machine),
            "versions": {**result.get("versions", {}), **versions}, "skipped": skipped, "load": load.name,
            "commands": [*result.get("commands", ()), command], "scale": options.scale,
        }
        for line in [*machine.lines(), *(f"{name}: {text}" for name, text in versions.items()), f"load:    {load.name}",
                     *(f"warning: {text}" for text in machine.warnings()),
                     *(f"skipped: {name}: {reason}" for name, reason in skipped.items())]:
            print(line, flush=True)
        comparison = Comparison(options, plan, names, place, result)
        for part in options.parts:
            problems += PARTS[part](comparison)
            comparison.write()
    print("", *figures.text(result), sep="\n")
    for text in problems:
        print(f"PROBLEM: {text}")
    if options.markdown is not None:
        options.markdown.write_text(figures.markdown(result))
    if options.plots is not None:
        figures.draw(result, options.plots)
    return 1 if problems else 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
