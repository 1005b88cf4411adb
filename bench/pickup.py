"""The spool directory as a way in: files per second, CPU per message, and memory, for many small files and a huge one.

    python -m bench.pickup                                    20,000 of each kind, 5 KB a message
    python -m bench.pickup --kinds files --messages 1000000 --size 2000
    python -m bench.pickup --kinds batch --messages 2000000   one file of 10 GB

Kinds: `files`, a message with its envelope in front in each; `batches`, a batch of one transaction in each, which is
what the sendmail command writes; `batch`, all of them in one file. They are written beside the directory first, then
the MTA is started and they are moved in, all of them at once. Every message goes out to a sink, which counts: nothing
may be lost or come twice. Memory is that of the process that used most, so that a column that grows with the number of
messages shows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.candidate import CandidateError, Setup, runtime_directory
from bench.loopback import consecutive
from bench.machine import describe, file_system
from bench.measure import Plan, start_nameserver, start_sink
from bench.others import Others
from bench.ours import NAME, Ours, version
from bench.processes import Account, MemoryWatch, account, wait_until_quiet
from bench.programs import Program, ProgramError, free_port
from bench.scenarios import FIRST_ADDRESS, Scenario
from bench.throughput import add_common, executable_pair, exit_on_sigterm, positive, workplace

KINDS = ("files", "batches", "batch")
DOMAINS = 50
_OTHERS_MOST = 0.3
_QUIET_S = 20.0
_LOOK_S = 0.05
_HEADER = (b"From: Bulk Sender <news@sender.test>\r\nTo: %b\r\nSubject: message %d\r\n"
           b"Date: Mon, 05 Jan 2026 11:00:00 +0000\r\nMessage-ID: <%d.bench@sender.test>\r\n\r\n")
_LINE = b"It is the content of a test, seventy-six characters wide, and means nothing."


@dataclass(slots=True)
class Row:
    """One kind."""

    kind: str
    messages: int
    size: int
    bytes: int = 0
    """Of all files."""
    write_s: float = 0.0
    """How long writing them took, which nobody waits for here."""
    taken_s: float = 0.0
    """From the first file in the directory to none left there: all is accepted."""
    arrived_s: float = 0.0
    """To the last message at the sink."""
    cpu_ms: float = 0.0
    """Of all processes of the MTA per message, delivery included."""
    anonymous: int = 0
    """RssAnon of the largest process, the most that was seen."""
    together: int = 0
    """The same of all processes at one time."""
    resident: int = 0
    """VmHWM of the largest: pages of the index count in it."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def message(number: int, size: int) -> tuple[bytes, bytes]:
    """The address of a message, and its content of about so many bytes."""
    address = b"u%d@d%d.test" % (number, number % DOMAINS)
    header = _HEADER % (address, number, number)
    body = _LINE + b"\r\n"
    return address, header + body * max((size - len(header)) // len(body), 1)


def write(kind: str, messages: int, size: int, place: Path) -> tuple[list[str], int]:
    """Write the files into `place`; their names and their size together."""
    envelope = b"X-Sender: bounce@sender.test\r\nX-Receiver: %b\r\n"
    commands = b"MAIL FROM:<bounce@sender.test>\r\nRCPT TO:<%b>\r\nDATA\r\n"
    total = 0
    if kind == "batch":
        with (place / "all.bsmtp").open("wb", buffering=1_048_576) as file:
            for number in range(messages):
                address, content = message(number, size)
                file.write(commands % address + content + b".\r\n")
            total = file.tell()
        return ["all.bsmtp"], total
    names = []
    for number in range(messages):
        address, content = message(number, size)
        if kind == "files":
            name, text = f"{number}.eml", envelope % address + content
        else:
            name, text = f"{number}.bsmtp", commands % address + content + b".\r\n"
        descriptor = os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        os.write(descriptor, text)
        os.close(descriptor)
        names.append(name)
        total += len(text)
    return names, total


def measure(plan: Plan, row: Row, directory: Path) -> None:
    """One kind in `directory`, which is empty. What went wrong is in the row."""
    processes = account(row.kind)
    with contextlib.ExitStack() as ends:
        ends.callback(processes.close)
        try:
            _measure(plan, row, processes, directory, ends)
        except (ProgramError, CandidateError, OSError) as error:
            row.problems.append(str(error))


def _measure(plan: Plan, row: Row, processes: Account, directory: Path, ends: contextlib.ExitStack) -> None:
    scenario = Scenario(row.kind, "files", row.messages, row.size, domains=DOMAINS, addresses=DOMAINS)
    pickup = directory / "pickup"
    (pickup / "tmp").mkdir(parents=True)
    began_s = time.monotonic()
    names, row.bytes = write(row.kind, row.messages, row.size, pickup / "tmp")
    os.sync()
    row.write_s = time.monotonic() - began_s
    port = free_port(consecutive(FIRST_ADDRESS, DOMAINS))
    nameserver, dns = start_nameserver(scenario, directory)
    ends.callback(nameserver.stop)
    sink = start_sink(plan, scenario, port, directory)
    assert sink is not None
    ends.callback(sink.stop)
    place = directory / NAME
    place.mkdir(mode=0o755)
    settings = {**plan.settings, "pickup": [{"directory": str(pickup)}]}
    runtime = ends.enter_context(runtime_directory())
    mta = Ours(Setup(place, runtime, processes, dns, port, plan.workers, None, settings))
    ends.callback(lambda: row.problems.extend(mta.stop()))
    mta.start()
    wait_until_quiet(processes, _QUIET_S)

    before_s, others = processes.cpu_s(), Others()
    with MemoryWatch(processes) as memory:
        began_s = time.monotonic()
        for name in names:
            os.rename(pickup / "tmp" / name, pickup / name)
        _wait(lambda: not _has_files(pickup), plan.limit_s, sink)
        row.taken_s = time.monotonic() - began_s
        sink.wait(plan.limit_s)
        wait_until_quiet(processes, _QUIET_S)
    used_s = processes.cpu_s() - before_s
    row.cpu_ms = used_s * 1000 / row.messages
    worst = memory.worst()
    row.anonymous, row.resident, row.together = worst.anonymous, worst.resident, memory.together
    cores = others.cores(used_s + sink.cpu_s)
    if cores > _OTHERS_MOST:
        row.notes.append(f"others used {cores:.1f} cores meanwhile: not to be trusted")
    _check(row, mta, sink, began_s, pickup)


def _check(row: Row, mta: Ours, sink: Program, began_s: float, pickup: Path) -> None:
    """Every message once at the sink, nothing left anywhere."""
    came = sink.result()
    row.arrived_s = max(came["last"] - began_s, 0.0)
    if int(came["distinct"]) != row.messages:
        row.problems.append(f"{came['distinct']:.0f} of {row.messages} messages arrived")
    if came["dups"]:
        row.problems.append(f"{came['dups']:.0f} messages arrived twice")
    if queued := mta.queued():
        row.problems.append(f"{queued} in the queue at the end")
    if failed := os.listdir(pickup / "failed"):
        row.problems.append(f"{len(failed)} files were refused, such as {failed[0]}")


def _has_files(pickup: Path) -> bool:
    """Whether something is in the directory, or claimed and not done with. It is looked at no further than needed."""
    claimed = (path for path in (pickup / ".claimed").iterdir())
    for directory in (pickup, *claimed):
        with os.scandir(directory) as entries:
            if any(entry.is_file(follow_symlinks=False) and not entry.name.startswith(".") for entry in entries):
                return True
    return False


def _wait(done: Callable[[], bool], limit_s: float, sink: Program) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > deadline or sink.ended():
            raise ProgramError("the files were not taken in time")
        time.sleep(_LOOK_S)


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as text."""
    lines = ["kind      messages      MB  taken/s  arrived/s  CPU ms/msg  largest MB  together MB"]
    lines += [
        f"{row.kind:8}{row.messages:10,}{row.bytes / 1e6:8,.0f}"
        f"{row.messages / row.taken_s if row.taken_s else 0:9,.0f}"
        f"{row.messages / row.arrived_s if row.arrived_s else 0:11,.0f}{row.cpu_ms:12.3f}{row.anonymous / 1e6:12,.0f}"
        f"{row.together / 1e6:13,.0f}"
        for row in rows
    ]
    return lines


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND",
                        help=f"{', '.join(KINDS)} (all)")
    parser.add_argument("--messages", type=positive, default=20_000, metavar="N", help="of each kind (%(default)s)")
    parser.add_argument("--size", type=positive, default=5000, metavar="BYTES", help="of a message (%(default)s)")
    add_common(parser, 600)
    return parser


def main(words: list[str] | None = None) -> int:
    """Run the benchmark with this command line; 0 if nothing was lost."""
    parser = arguments()
    options = parser.parse_args(words)
    load = executable_pair(parser, options)
    rows = [Row(kind, options.messages, options.size) for kind in options.kinds]
    with workplace(options.directory, keep=False) as place:
        machine = describe(place)
        plan = Plan(load, False, options.workers, dict(options.settings), options.timeout, False, file_system(place),
                    None, place)
        for line in [*machine.lines(), f"{NAME}: {version()}", f"load:    {load.name}",
                     *(f"warning: {text}" for text in machine.warnings())]:
            print(line, flush=True)
        for row in rows:
            directory = place / row.kind
            directory.mkdir(mode=0o755)
            measure(plan, row, directory)
    print("", *table(rows), sep="\n")
    for row in rows:
        for word, texts in (("note", row.notes), ("PROBLEM", row.problems)):
            for text in texts:
                print(f"{word}: {row.kind}: {text}")
    if options.json is not None:
        result = {"machine": asdict(machine), "version": version(), "load": load.name,
                  "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
