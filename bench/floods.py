"""What others get while there is a crowd, or somebody floods us from one address.

    python -m bench.floods                            all scenes: some five minutes
    python -m bench.floods --only nothing,close,login --json floods.json
    python -m bench.floods --only idle,idle-tls       what a client costs that says nothing

Scenes: `nothing`; `idle` and `idle-tls`, with 8,000 clients that have said EHLO and nothing more, from 81 addresses;
`crowd`, the same in clear beside 2,000 sessions that send; and the floods of `bench.strangers` from one address:
`close`, `hold`, `garbage`, `login`, `tls`.

In each scene an MTA of its own delivers mail at an even pace from 20 sessions (2,000 in `crowd`) to a sink, and a
newcomer connects for each message of its own: how long that takes tells whether the backlog is free. What legitimate
clients get is to be compared with `nothing`. Flood, load, sink and MTA share the processors, which a flood from
elsewhere would not: the flood gives way to the others (nice 5).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.candidate import CandidateError, Setup, runtime_directory
from bench.loopback import consecutive
from bench.machine import describe
from bench.measure import Plan, start_nameserver, start_sink
from bench.others import Others
from bench.ours import Ours, version
from bench.processes import Account, MemoryWatch, account, memory, role, wait_until_quiet
from bench.programs import LoadPrograms, Program, ProgramError, free_port
from bench.report import aligned
from bench.scenarios import FIRST_ADDRESS, Scenario
from bench.sessions import make_certificate
from bench.throughput import add_common, executable_pair, exit_on_sigterm, positive, workplace
from mta.access.users import change, entry_of

IDLE = 8_000
BUSY = 2_000
SECONDS = 12
RATE = 400.0
"""Messages a second."""
NEWCOMERS = 20.0
"""And of those that connect for each."""
FLOOD_RATE = 3_000.0
"""Connections a second that a flood tries."""
SCENES = ("nothing", "idle", "idle-tls", "crowd", "close", "hold", "garbage", "login", "tls")
WORDS = {"nothing": "nothing else", "idle": "{idle:,} idle clients", "idle-tls": "{idle:,} idle clients, TLS",
         "crowd": "{idle:,} idle, {busy:,} busy clients", "close": "flood: connects and closes",
         "hold": "flood: connects and stays", "garbage": "flood: sends garbage", "login": "flood: guesses passwords",
         "tls": "flood: begins handshakes"}
_SETTLE_S = 10.0
_PASSWORD = "correct horse battery staple"


@dataclass(slots=True)
class Scene:
    """What was seen in one."""

    name: str
    words: str
    messages: int = 0
    rate: float = 0.0
    """Messages a second that the legitimate sessions sent."""
    p50_ms: float = 0.0
    """From MAIL to the 250."""
    p99_ms: float = 0.0
    open_p50_ms: float = 0.0
    """Of newcomers, from connecting to the reply to EHLO."""
    open_p99_ms: float = 0.0
    new_p99_ms: float = 0.0
    """Of newcomers, from MAIL to the 250."""
    cpu_s: float = 0.0
    """Of all the MTA's processes."""
    resting_bytes: int = 0
    """RssAnon of all workers, before."""
    crowd_bytes: int = 0
    """The same with all idle clients there, before anybody sends."""
    idle: int = 0
    peak_bytes: int = 0
    """The largest RssAnon of a worker."""
    lag_p99_ms: float = 0.0
    lag_max_ms: float = 0.0
    descriptors: int = 0
    """Of the worker with most, at the end of the load."""
    log_bytes: int = 0
    events: int = 0
    """Of logins and refusals."""
    told: int = 0
    """What these stand for: the sum of their counts."""
    strangers: dict[str, float] = field(default_factory=dict)
    others: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def bytes_each(self) -> float:
        """Of an idle client."""
        return (self.crowd_bytes - self.resting_bytes) / self.idle if self.idle else 0.0


def measure_scene(options: argparse.Namespace, load: LoadPrograms, name: str, place: Path) -> Scene:
    """One scene in the directory `place`; what went wrong is in its `problems`."""
    scene = Scene(name, WORDS[name].format(idle=options.idle, busy=options.busy))
    processes = account(f"floods-{name}")
    with contextlib.ExitStack() as ends:
        ends.callback(processes.close)
        try:
            _measure(options, load, scene, processes, place, ends)
        except (ProgramError, CandidateError, OSError) as error:
            scene.problems.append(str(error))
    return scene


def configuration(options: argparse.Namespace, name: str, place: Path) -> dict[str, object]:
    """Two kinds of clients may send: those of the load, by their address, and who has the password."""
    users = place / "users"

    def add(entries: dict[str, Any]) -> None:
        entries["acme"] = entry_of(_PASSWORD)

    change(str(users), add)
    listener: dict[str, object] = {"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.1/32", "127.32.0.0/16"],
                                   "auth": "offered", "auth_without_tls": True}
    found: dict[str, object] = {"listeners": [listener], "access.users_file": str(users), "smtp.sessions": 20_000}
    if name in ("idle-tls", "tls"):
        listener["tls"] = "implicit"
        found["certificates"] = [{"certificate": str(make_certificate(place))}]
    return found | dict(options.settings)


def _measure(options: argparse.Namespace, load: LoadPrograms, scene: Scene, processes: Account, place: Path,
             ends: contextlib.ExitStack) -> None:
    messages = scene.messages = int(options.rate * options.seconds)
    newcomers = int(NEWCOMERS * options.seconds)
    scenario = Scenario(scene.name, scene.words, messages + newcomers)
    plan = Plan(load, False, options.workers, {}, options.timeout, False, "", None, place)
    port = free_port(consecutive(FIRST_ADDRESS, scenario.addresses))
    nameserver, dns = start_nameserver(scenario, place)
    ends.callback(nameserver.stop)
    sink = start_sink(plan, scenario, port, place)
    assert sink is not None
    ends.callback(sink.stop)
    directory = place / "mta"
    directory.mkdir(mode=0o755)
    runtime = ends.enter_context(runtime_directory())
    mta = Ours(Setup(directory, runtime, processes, dns, port, options.workers, None,
                     configuration(options, scene.name, place)))
    ends.callback(lambda: scene.problems.extend(mta.stop()))
    address = mta.start()
    wait_until_quiet(processes, _SETTLE_S)
    scene.resting_bytes = sum(_workers(processes).values())

    tls = ["-S"] if scene.name in ("idle-tls", "tls") else []
    others, before_s = Others(), processes.cpu_s()
    sources: list[Program] = []
    with MemoryWatch(processes) as watch:
        strangers = _strangers(options, scene, address, tls, place, ends)
        if scene.name in ("idle", "idle-tls", "crowd"):
            wait_until_quiet(processes, _SETTLE_S)
            scene.crowd_bytes = sum(_workers(processes).values())
        busy = options.busy if scene.name == "crowd" else 20
        common = ["-l", "5000", "-D", "50", "-T", str(options.timeout), *tls]
        for name, words in (
                ("source", ["-s", str(busy), "-m", str(messages), "-R", f"{options.rate:g}",
                            "-A", str(max(busy // 100, 1))]),
                ("newcomers", ["-s", "10", "-m", str(newcomers), "-R", f"{NEWCOMERS:g}", "-q", "1", "-N",
                               str(messages), "-A", "1"])):
            source = Program(name, [*LoadPrograms().source, "-a", address, *words, *common], place)
            ends.callback(source.stop)
            sources.append(source)
        for source in sources:
            source.wait(options.timeout)
        _look(scene, mta, processes)
        if strangers is not None:
            strangers.stop()
            scene.strangers = strangers.result()
        sink.wait(options.timeout)
    scene.cpu_s = processes.cpu_s() - before_s
    cpu_s = sum(one.cpu_s for one in (*sources, sink, *([strangers] if strangers is not None else [])))
    scene.others = others.cores(scene.cpu_s + cpu_s)
    scene.peak_bytes = max((peak.anonymous for peak in watch.peaks.values() if peak.role == "worker"), default=0)
    scene.problems += mta.stop()
    _account(scene, sources, sink, directory)


def _strangers(options: argparse.Namespace, scene: Scene, address: str, tls: list[str], place: Path,
               ends: contextlib.ExitStack) -> Program | None:
    """Those who send nothing, there."""
    if scene.name == "nothing":
        return None
    crowd = scene.name in ("idle", "idle-tls", "crowd")
    words = ["-k", "idle", "-n", str(options.idle), *tls] if crowd else [
        "-k", scene.name, "-R", f"{options.flood_rate:g}"]
    program = Program("strangers", [*([] if crowd else ["nice", "-n", "5"]), sys.executable, "-m", "bench.strangers",
                                    "-a", address, *words, "-T", str(options.timeout)], place)
    ends.callback(program.stop)
    said = program.wait_ready(options.timeout)
    if crowd:
        scene.idle = int(said.split("ready:")[1].split()[0])
        if scene.idle != options.idle:
            scene.problems.append(f"{scene.idle} of {options.idle} idle clients were let in")
    else:
        time.sleep(1.0)
    return program


def _workers(processes: Account) -> dict[int, int]:
    """RssAnon of each worker."""
    return {pid: memory(pid)[1] for pid in processes.pids() if role(pid) == "worker"}


def _look(scene: Scene, mta: Ours, processes: Account) -> None:
    """At the end of the load."""
    for worker in json.loads(mta.command("status", "--json"))["workers"]:
        scene.lag_p99_ms = max(scene.lag_p99_ms, worker["loop_lag_p99_ms"])
        scene.lag_max_ms = max(scene.lag_max_ms, worker["loop_lag_max_ms"])
    scene.descriptors = max(len(os.listdir(f"/proc/{pid}/fd")) for pid in _workers(processes))


def _account(scene: Scene, sources: Sequence[Program], sink: Program, directory: Path) -> None:
    """What the load programs saw, and what was written."""
    sent, new = (source.result() for source in sources)
    scene.rate = sent["accepted"] / max(sent["last"] - sent["start"], 0.001)
    scene.p50_ms, scene.p99_ms = sent["ack_p50_ms"], sent["ack_p99_ms"]
    scene.open_p50_ms, scene.open_p99_ms = new["open_p50_ms"], new["open_p99_ms"]
    scene.new_p99_ms = new["ack_p99_ms"]
    for source in sources:
        if source.result()["errors"]:
            scene.problems.append(f"{source.name}: {'; '.join(source.complaints()[:2])}")
    came = sink.result()
    if came["distinct"] != scene.messages + new["accepted"] or came["dups"]:
        scene.problems.append(f"{came['distinct']:.0f} messages arrived, {came['dups']:.0f} twice")
    scene.log_bytes = (directory / "log").stat().st_size
    for path in (directory / "spool" / "shards").glob("*/events/*.jsonl"):
        for line in path.read_bytes().splitlines():
            if b'"event":"refused"' in line or b'"event":"login"' in line:
                scene.events += 1
                scene.told += json.loads(line)["count"]


def floods_table(result: dict[str, Any]) -> list[list[str]]:
    """For `bench.figures` and for people."""
    rows = [["beside", "messages/s", "`250` p50 / p99 ms", "newcomers: EHLO p50 / p99 ms", "MTA's CPU s",
             "largest worker MB", "loop late p99 / max ms", "flood", "events (of)"]]
    for scene in result.get("floods") or ():
        tried = scene["strangers"].get("begun", 0)
        turned = scene["strangers"].get("told 421", 0)
        flood = f"{tried:,.0f} came, {turned:,.0f} told 421" if tried and not scene["idle"] else ""
        if scene["idle"]:
            each = (scene["crowd_bytes"] - scene["resting_bytes"]) / scene["idle"]
            flood = f"{scene['idle']:,} idle, {each / 1000:.1f} KB each"
        rows.append([
            scene["words"], f"{scene['rate']:,.0f}", f"{scene['p50_ms']:.1f} / {scene['p99_ms']:.1f}",
            f"{scene['open_p50_ms']:.1f} / {scene['open_p99_ms']:.1f}", f"{scene['cpu_s']:.1f}",
            f"{scene['peak_bytes'] / 1e6:.0f}", f"{scene['lag_p99_ms']:.1f} / {scene['lag_max_ms']:.0f}", flood,
            f"{scene['events']:,} ({scene['told']:,})" if scene["events"] else ""])
    return rows if len(rows) > 1 else []


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.floods", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SCENES), metavar="SCENE[,SCENE...]",
                        help="these scenes (all)")
    parser.add_argument("--idle", type=positive, default=IDLE, metavar="N", help="idle clients (%(default)s)")
    parser.add_argument("--busy", type=positive, default=BUSY, metavar="N", help="busy ones in `crowd` (%(default)s)")
    parser.add_argument("--seconds", type=positive, default=SECONDS, metavar="S", help="of load (%(default)s)")
    parser.add_argument("--rate", type=float, default=RATE, metavar="N", help="messages a second (%(default)s)")
    parser.add_argument("--flood-rate", type=float, default=FLOOD_RATE, metavar="N",
                        help="connections a second that a flood tries (%(default)s)")
    add_common(parser, 120)
    return parser


def main(words: list[str] | None = None) -> int:
    """Run it with this command line; 0 if all mail arrived and no client of the load was refused."""
    parser = arguments()
    options = parser.parse_args(words)
    for name in options.only:
        if name not in SCENES:
            parser.error(f"no scene {name!r}: there are {', '.join(SCENES)}")
    if options.source is not None:
        parser.error("the source is always ours; --sink may be another one")
    load = executable_pair(parser, options) if options.sink is None else LoadPrograms(sink=(options.sink,))
    result: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        result = json.loads(options.json.read_text())
    with workplace(options.directory, keep=False) as place:
        machine = describe(place)
        print(*machine.lines(), *(f"warning: {text}" for text in machine.warnings()), sep="\n", flush=True)
        result["flooded"] = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "machine": asdict(machine),
                             "version": version(), "workers": options.workers, "seconds": options.seconds,
                             "flood_rate": options.flood_rate, "rate": options.rate}
        for name in options.only:
            directory = place / name
            directory.mkdir(mode=0o755)
            scene = measure_scene(options, load, name, directory)
            shutil.rmtree(directory, ignore_errors=True)
            print(*(f"{name}: {text}" for text in scene.problems or ["done"]), sep="\n", flush=True)
            print(f"{name}: {asdict(scene)}", file=sys.stderr, flush=True)
            kept = [one for one in result.get("floods", ()) if one["name"] != name]
            result["floods"] = sorted([*kept, asdict(scene)], key=lambda one: SCENES.index(one["name"]))
            if options.json is not None:
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    print("", *aligned(floods_table(result), left=1), sep="\n")
    return 1 if any(scene["problems"] for scene in result["floods"]) else 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
