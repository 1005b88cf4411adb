"""A receiver with limits that it tells nobody: how soon they are found, how well they are used, what is refused.

    python -m bench.hidden                 three phases of four minutes: 20 connections, 200 and 5 messages a minute
    python -m bench.hidden --phase 100/min --phase any --minutes 3 --receivers 5

Each phase is a number of connections (`20`), a rate of messages (`200/min`) or `any`. Our MTA, with its defaults, has
more mail for the receivers than they take; they are the sandbox's. Every `--every` seconds a line for the first one:
messages that it took and refused, connections open. Then for each phase and receiver, from two minutes on: the share of
what was possible that was sent, and the share of refusals. docs/shaping.md has a result.
"""

from __future__ import annotations

import argparse
import json
import smtplib
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.candidate import Setup, runtime_directory
from bench.ours import Ours
from bench.processes import account
from mta.config.units import parse_rate
from mta.sandbox.client import Sandbox

LEARN_S = 120.0
CONTENT = b"Subject: hidden\r\n\r\n" + b"x" * 500 + b"\r\n"


@dataclass(slots=True)
class Reading:
    """The counters of one receiver at one time."""

    at_s: float
    phase: str
    taken: int
    refused: int
    open: int


def behaviour(phase: str) -> dict[str, object]:
    """The sandbox's personality for a phase."""
    if phase == "any":
        return {"latency": "20ms"}
    if "/" in phase:
        return {"latency": "20ms", "rate": phase}
    return {"latency": "1s", "connections": int(phase)}  # so that all of them are wanted


def read(box: Sandbox, name: str, phase: str, at_s: float) -> Reading:
    """The counters now."""
    found = box.domain(name)
    replies = [reply for site, counts in box.sites().items() if name in site for reply in counts["replies"].items()]
    refused = sum(count for code, count in replies if str(code)[:1] in "45")
    return Reading(at_s, phase, int(found["messages"]), refused, int(found["open"]))


def feed(address: str, names: list[str], stop: threading.Event) -> None:
    """More mail than they take, but not without bound: a message for each in turn, as fast as it is accepted."""
    host, _, port = address.rpartition(":")
    number = 0
    with smtplib.SMTP(host, int(port)) as client:
        while not stop.is_set():
            for name in names:
                client.sendmail("a@sender.test", [f"u{number}@{name}"], CONTENT)
            number += 1
            stop.wait(0.002 if number < 2000 else 0.02)


def summary(readings: list[Reading], phase: str, begun_s: float, ended_s: float) -> dict[str, float]:
    """What was reached in a phase once it was learnt."""
    steady = [one for one in readings if begun_s + LEARN_S <= one.at_s <= ended_s]
    if len(steady) < 2:
        return {}
    first, last = steady[0], steady[-1]
    taken, refused = last.taken - first.taken, last.refused - first.refused
    result = {"taken": taken, "refused": refused, "refused_share": refused / max(taken + refused, 1)}
    if "/" in phase:
        result["used"] = taken / (parse_rate(phase).per_second * (last.at_s - first.at_s))
    elif phase != "any":
        result["used"] = sum(one.open for one in steady) / len(steady) / int(phase)
    return result


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="bench.hidden", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", action="append", metavar="WHAT", help="20, 200/min or any; may be repeated")
    parser.add_argument("--minutes", type=float, default=4.0, help="length of each phase (%(default)g)")
    parser.add_argument("--receivers", type=int, default=1, metavar="N", help="so many of that kind at once")
    parser.add_argument("--every", type=float, default=10.0, metavar="S", help="between two lines (%(default)g)")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    phases: list[str] = options.phase or ["20", "200/min", "5/min"]
    names = [f"hidden{number}.test" for number in range(options.receivers)]
    readings: dict[str, list[Reading]] = {name: [] for name in names}
    found = []
    domains = {name: behaviour(phases[0]) for name in names}
    with tempfile.TemporaryDirectory() as place, runtime_directory() as runtime, Sandbox({"domains": domains}) as box:
        processes = account("hidden")
        host, _, port = box.dns.rpartition(":")
        mta = Ours(Setup(Path(place), runtime, processes, (host, int(port)), box.smtp_port, options.workers, None,
                         {"retry.first": "30s", "retry.cap": "2m"}))
        stop = threading.Event()
        address = mta.start()
        feeding = threading.Thread(target=feed, args=(address, names, stop))
        feeding.start()
        try:
            started_s = time.monotonic()
            for number, phase in enumerate(phases):
                begun_s = number * options.minutes * 60
                if number:
                    for name in names:
                        box.set(name, behaviour(phase))
                while (at_s := time.monotonic() - started_s) < begun_s + options.minutes * 60:
                    for name in names:
                        readings[name].append(read(box, name, phase, round(at_s, 1)))
                    line = readings[names[0]][-2:]
                    if len(line) == 2:
                        print(f"{at_s:6.0f} s  {phase:>8}  took {line[1].taken - line[0].taken:6,}, refused "
                              f"{line[1].refused - line[0].refused:4,}, {line[1].open:3} open", flush=True)
                    time.sleep(max(started_s + at_s + options.every - time.monotonic(), 0.1))
                for name in names:
                    reached = summary(readings[name], phase, begun_s, begun_s + options.minutes * 60)
                    found.append({"phase": phase, "receiver": name, **reached})
        finally:
            stop.set()
            feeding.join()
            mta.stop()
    for one in found:
        print(json.dumps(one))
    if options.json is not None:
        options.json.write_text(json.dumps({"phases": found, "readings": {
            name: [asdict(one) for one in some] for name, some in readings.items()}}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
