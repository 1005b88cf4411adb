"""The doors: what a message costs that comes by one session, 20 or 500, in clear or in TLS, and by files and batches.

    python -m bench.sessions --json sessions.json                      everything: about ten minutes
    python -m bench.sessions --only kept-20,through-20 --rounds 5      what TLS costs, by two cases
    python -m bench.sessions --only files,batches,batch --json sessions.json     these again, into the same result

Cases:

    kept-1, kept-20, kept-500           so many sessions; receivers refuse connections, so mail is accepted and kept
    through-1, through-20, through-500  the same, delivered to a sink
    paced                               20 sessions, 2,000 messages a second in clear as in TLS, mail is kept
    connect                             one message in each connection, 20 connections at once, mail is kept
    files, batches, batch               the spool directory, delivered to a sink (`bench.pickup`)

No session pipelines. In each round a case is measured in clear, then in TLS 1.3 from the first byte (`connect` also
with sessions that are resumed), each time with an MTA of its own; what TLS costs is the median of the differences of
the rounds. A client that encrypts pauses longer before each command, which makes a message dearer in clear, too, where
that leaves the MTA idle: there a third client, in clear and as slow as one in TLS, is what TLS is compared with
(`bench.tlsclient`): with a pace, and with one session, where the three take turns in one MTA (`bench.alone`). Only the
MTA's CPU time counts. The source of the others is `bench.source`, in clear as in TLS, as it can do that: with one more
core than the MTA has workers it is what bounds the rates of many sessions, and its CPU time is in the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench import alone, pickup
from bench.machine import describe, file_system
from bench.measure import Plan, Run, measure
from bench.ours import NAME, version
from bench.programs import LoadPrograms
from bench.report import aligned
from bench.scenarios import Scenario
from bench.throughput import add_common, exit_on_sigterm, positive, workplace

CLEAR, SLOW, TLS, RESUMED = "clear", "clear, slow client", "TLS", "TLS resumed"
_OPTIONS = {CLEAR: "", SLOW: "-E{certificate}", TLS: "-S", RESUMED: "-U"}
_ROUNDS = 3
_FILES = 20_000


@dataclass(frozen=True, slots=True)
class Case:
    """One way to send."""

    name: str
    title: str
    sessions: int
    messages: int
    receivers_up: bool
    kinds: tuple[str, ...] = (CLEAR, TLS)
    per_connection: int = 0
    """Messages; 0: all."""
    pace: int = 0
    """Messages a second; 0: as fast as they are taken."""


CASES = {case.name: case for case in (
    *(Case(f"{door}-{sessions}", f"{title}, {sessions} session{'s' if sessions > 1 else ''}", sessions, messages, up,
           (CLEAR, TLS) if sessions > 1 else (CLEAR, SLOW, TLS))
      for door, title, up in (("kept", "accepted and kept", False), ("through", "delivered", True))
      for sessions, messages in ((1, 5_000), (20, 20_000), (500, 20_000))),
    Case("paced", "kept, 20 sessions, 2,000 a second", 20, 12_000, False, (CLEAR, SLOW, TLS), pace=2_000),
    Case("connect", "a connection for each message, kept", 20, 4_000, False, (CLEAR, TLS, RESUMED), 1),
)}


def make_certificate(directory: Path) -> Path:
    """A self-signed certificate (ECDSA P-256, what most servers have) with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mta.bench.test")])
    now = datetime.now(UTC)
    certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
                   .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
                   .not_valid_after(now + timedelta(days=1))
                   .add_extension(x509.SubjectAlternativeName([x509.DNSName("mta.bench.test")]), critical=False)
                   .sign(key, hashes.SHA256()))
    path = directory / "certificate.pem"
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                       serialization.NoEncryption()) +
                     certificate.public_bytes(serialization.Encoding.PEM))
    return path


def plan_of(plan: Plan, case: Case, kind: str, certificate: Path) -> Plan:
    """The same plan for one kind of session."""
    source = (*LoadPrograms().source, *_OPTIONS[kind].format(certificate=certificate).split(), "-q",
              str(case.per_connection), "-R", str(case.pace))
    settings = dict(plan.settings)
    if kind not in (CLEAR, SLOW):
        settings |= {"certificates": [{"certificate": str(certificate)}], "listeners": [
            {"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.0/8"], "tls": "implicit"}]}
    return replace(plan, load=replace(plan.load, source=source), settings=settings)


def measure_round(plan: Plan, case: Case, number: int, certificate: Path, place: Path) -> Iterator[Run]:
    """Its runs, in the order of the kinds."""
    scenario = Scenario(case.name, case.title, case.messages, sessions=case.sessions, receivers_up=case.receivers_up)
    if case.sessions == 1:
        with _directory(place / f"{case.name}-{number}") as directory:
            yield from alone.measure(plan, scenario, number, certificate, directory)
        return
    for kind in case.kinds:
        with _directory(place / f"{case.name}-{number}-{kind.replace(' ', '-')}") as directory:
            yield measure(plan_of(plan, case, kind, certificate), scenario, NAME, number, directory)


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[Path]:
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def measure_case(plan: Plan, case: Case, rounds: int, certificate: Path, place: Path) -> list[dict[str, Any]]:
    """All runs of one case, kinds in turn: each as JSON has it."""
    done = []
    for number in range(1, rounds + 1):
        for kind, run in zip(case.kinds, measure_round(plan, case, number, certificate, place), strict=True):
            print(f"{case.name} {kind} {number}: {run.rate:,.0f}/s, {run.cpu_ms:.3f} ms",
                  *(f"  {text}" for text in (*run.notes, *run.problems)), sep="\n", file=sys.stderr, flush=True)
            done.append({"case": case.name, "kind": kind, **asdict(run)})
    return done


def added_ms(runs: Sequence[dict[str, Any]], case: str, kind: str) -> float | None:
    """What a kind of TLS costs more than in clear, by a client as slow where there is one, CPU ms for a message: median
    over the rounds, or over all their turns where they have any."""
    cost = {(run["kind"], run["number"], turn): ms for run in runs if run["case"] == case and not run["problems"]
            for turn, ms in enumerate(run.get("turns_ms") or [run["cpu_ms"]])}
    base = SLOW if SLOW in CASES[case].kinds else CLEAR
    found = [ms - cost[base, *at] for (name, *at), ms in cost.items() if name == kind and (base, *at) in cost]
    return statistics.median(found) if found and kind not in (CLEAR, SLOW) else None


def sessions_table(result: dict[str, Any]) -> list[list[str]]:
    """Medians over the rounds, for `bench.figures` and for people."""
    runs = result.get("sessions") or ()
    rows = [["case", "", "messages/s", "least-most", "CPU ms each", "TLS adds ms", "syncs each",
             "`250` p50 / p99 ms", "source's CPU ms"]]
    for name, kind in dict.fromkeys((run["case"], run["kind"]) for run in runs):
        mine = [run for run in runs if (run["case"], run["kind"]) == (name, kind)]

        def middle(value: str, mine: list[dict[str, Any]] = mine) -> float:
            found = [run[value] for run in mine if run[value] is not None]
            return statistics.median(found) if found else 0.0

        rates = [run["rate"] for run in mine]
        added = added_ms(runs, name, kind)
        rows.append([CASES[name].title, kind, f"{middle('rate'):,.0f}", f"{min(rates):,.0f}-{max(rates):,.0f}",
                     f"{middle('cpu_ms'):.3f}", "" if added is None else f"{added:.3f}",
                     f"{middle('syncs_per_message'):.2f}" if mine[0]["syncs_per_message"] is not None else "",
                     f"{middle('ack_p50_ms'):.1f} / {middle('ack_p99_ms'):.1f}", f"{middle('source_cpu_ms'):.3f}"])
    return rows if len(rows) > 1 else []


def files_table(result: dict[str, Any]) -> list[list[str]]:
    """The spool directory."""
    words = {"files": "a file for each message", "batches": "a batch of one message each", "batch": "one batch"}
    rows = [["spool directory", "messages", "taken/s", "delivered/s", "CPU ms each", "largest process MB"]]
    rows += [[words[row["kind"]], f"{row['messages']:,}", f"{row['messages'] / row['taken_s']:,.0f}",
              f"{row['messages'] / row['arrived_s']:,.0f}", f"{row['cpu_ms']:.3f}", f"{row['anonymous'] / 1e6:.0f}"]
             for row in result.get("files") or () if row["taken_s"] and row["arrived_s"]]
    return rows if len(rows) > 1 else []


def problems(result: dict[str, Any]) -> list[str]:
    """What makes runs worthless."""
    return [f"{run['case']} {run['kind']} {run['number']}: {text}" for run in result.get("sessions") or ()
            for text in run["problems"]] + [
        f"{row['kind']}: {text}" for row in result.get("files") or () for text in row["problems"]]


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.sessions", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*CASES, *pickup.KINDS],
                        metavar="CASE[,CASE...]", help="these cases (all)")
    parser.add_argument("--rounds", type=positive, default=_ROUNDS, metavar="N", help="rounds of each (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="this share of the messages (1)")
    add_common(parser)
    return parser


def main(words: list[str] | None = None) -> int:
    """Run it with this command line; 0 if every message was accepted and arrived once."""
    parser = arguments()
    options = parser.parse_args(words)
    if options.source is not None:
        parser.error("the source is always ours, as others do not know TLS; --sink may be another one")
    for name in options.only:
        if name not in (*CASES, *pickup.KINDS):
            parser.error(f"no case {name!r}: there are {', '.join((*CASES, *pickup.KINDS))}")
    load = LoadPrograms() if options.sink is None else replace(
        LoadPrograms(), sink=(options.sink,), name=f"bench.source and {Path(options.sink).name}")
    result: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        result = json.loads(options.json.read_text())
    with workplace(options.directory, keep=False) as place:
        machine = describe(place)
        plan = Plan(load, False, options.workers, dict(options.settings), options.timeout, True, file_system(place),
                    None, place)
        result |= {"doors": {
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "machine": asdict(machine),
            "version": version(), "load": load.name, "workers": options.workers}}
        print(*machine.lines(), f"{NAME}: {version()}", f"load:    {load.name}",
              *(f"warning: {text}" for text in machine.warnings()), sep="\n", flush=True)
        certificate = make_certificate(place)
        for name in options.only:
            if name in CASES:
                case = replace(CASES[name], messages=max(int(CASES[name].messages * options.scale), 500))
                runs = measure_case(plan, case, options.rounds, certificate, place)
                kept = [run for run in result.get("sessions", ()) if run["case"] != name]
                result["sessions"] = sorted([*kept, *runs], key=lambda run: [*CASES].index(run["case"]))
            else:
                row = pickup.Row(name, max(int(_FILES * options.scale), 500), 5000)
                directory = place / name
                directory.mkdir(mode=0o755)
                pickup.measure(plan, row, directory)
                files = [one for one in result.get("files", ()) if one["kind"] != name]
                result["files"] = sorted([*files, asdict(row)], key=lambda one: pickup.KINDS.index(one["kind"]))
            if options.json is not None:
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    for rows in (sessions_table(result), files_table(result)):
        print("", *(aligned(rows, left=2) if rows else ()), sep="\n")
    found = problems(result)
    print(*(f"PROBLEM: {text}" for text in found), sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
