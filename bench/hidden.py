"""Receivers with limits that they tell nobody: how soon they are found, how well they are used, what is refused.

    python -m bench.hidden                    20 connections, then 200 messages a minute, 5, and 200 again; 55 minutes
    python -m bench.hidden --receivers 5      five at once, each with limits of its own kind; half an hour
    sudo python -m bench.hidden --mta postfix       Postfix with its own defaults at the same receivers
    python -m bench.hidden --phase 100/min:4 --phase any:5 --phase "fixed 60/min:4"

A phase is a limit and its minutes. The limit is a number of connections (`20`, whose receiver takes a second for each
reply), `any`, or a rate of messages: `200/min` counted with a bucket that holds a minute's, `"60/min, burst 10"` with
one that holds ten, `"fixed 120/min"` by the clock, `"sliding 300/min"` in any minute. There is more mail for the
receivers than they take; they are the sandbox's. Ours has its defaults, but may open a hundred connections.

Every `--every` seconds a line for the first receiver: messages that it took and refused, connections open. Then for
each phase and receiver, from two minutes on: the share of what was possible that was sent, and the share of refusals,
and how long it took until four fifths of what is possible were taken. docs/shaping.md has results; bench.hiddenplot
draws them.
"""

from __future__ import annotations

import argparse
import json
import smtplib
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import namespace, postfix
from bench.candidate import Candidate, Setup, runtime_directory
from bench.ours import Ours
from bench.postfix import Postfix
from bench.processes import account
from bench.throughput import exit_on_sigterm
from mta.config.units import parse_rate
from mta.sandbox.client import Sandbox

LEARN_S = 120.0
BACK = 0.8
BACK_OVER_S = 30.0
AHEAD = 5000
"""Messages that wait for each receiver: more than it takes for long, but no million."""
ALWAYS = 5.0
"""Messages a second that come for each besides: who has put off all that waits has new ones."""
CONTENT = b"Subject: hidden\r\n\r\n" + b"x" * 500 + b"\r\n"
ONE = ("20:4", "200/min:4", "5/min:30", "200/min:17")
FIVE = (
    ("20:4", "200/min:4", "5/min:20"),
    ("8:4", "fixed 120/min:4", "fixed 12/min:20"),
    ("30:4", "sliding 300/min:4", "sliding 20/min:20"),
    ("12:4", "90/min, burst 10:4", "15/min, burst 3:20"),
    ("40:4", "fixed 300/100s:4", "fixed 30/2m:20"),
)


@dataclass(frozen=True, slots=True)
class Phase:
    """What a receiver takes for a while."""

    limit: str  # `20`, `200/min`, `fixed 60/min`, `any`
    minutes: float

    @classmethod
    def parse(cls, text: str) -> Phase:
        """Read `200/min:4`. Raises ValueError."""
        limit, _, minutes = text.rpartition(":")
        phase = cls(limit or minutes, float(minutes) if limit else 4.0)
        _ = phase.possible
        return phase

    @property
    def window(self) -> str:
        """How the rate is counted."""
        first = self.limit.partition(" ")[0]
        return first if first in ("fixed", "sliding") else "bucket"

    @property
    def rate(self) -> str:
        """The rate, empty when it is a number of connections."""
        return self.limit.removeprefix(f"{self.window} ") if "/" in self.limit else ""

    @property
    def possible(self) -> float:
        """Messages per second, or connections; 0: any. Raises ValueError."""
        if self.limit == "any":
            return 0.0
        return parse_rate(self.rate).per_second if self.rate else float(int(self.limit))

    @property
    def behaviour(self) -> dict[str, object]:
        """The sandbox's personality for it."""
        if self.rate:
            return {"latency": "20ms", "rate": self.rate, "rate_window": self.window}
        # So slow that connections are wanted.
        return {"latency": "1s"} | ({} if self.limit == "any" else {"connections": int(self.limit)})


@dataclass(slots=True)
class Reading:
    """The counters of one receiver at one time."""

    at_s: float
    phase: str
    taken: int
    refused: int
    open: int


class Receiver:
    """One receiver and what was read of it."""

    def __init__(self, name: str, phases: Sequence[Phase]) -> None:
        self.name = name
        self.phases = phases
        self.number = 0  # of the phase that holds
        self.readings: list[Reading] = []
        self.fed = 0

    @property
    def begins(self) -> list[float]:
        """When each phase begins, and when the last one ends; seconds."""
        times = [0.0]
        for phase in self.phases:
            times.append(times[-1] + phase.minutes * 60)
        return times

    @property
    def taken(self) -> int:
        """Messages so far."""
        return self.readings[-1].taken if self.readings else 0

    def read(self, box: Sandbox, sites: Mapping[str, Mapping[str, Mapping[str, int]]], at_s: float) -> None:
        """The counters now; the next phase if it is time."""
        begins = self.begins
        while self.number + 1 < len(self.phases) and at_s >= begins[self.number + 1]:
            self.number += 1
            box.set(self.name, self.phases[self.number].behaviour)
        found = box.domain(self.name)
        replies = [reply for site, counts in sites.items() if self.name in site for reply in counts["replies"].items()]
        refused = sum(count for code, count in replies if str(code)[:1] in "45")
        self.readings.append(Reading(
            round(at_s, 1), self.phases[self.number].limit, int(found["messages"]), refused, int(found["open"])))

    def line(self) -> str:
        """The latest interval, for people."""
        before, now = self.readings[-2:]
        return (f"{now.at_s:6.0f} s  {now.phase:>16}  took {now.taken - before.taken:6,}, refused "
                f"{now.refused - before.refused:4,}, {now.open:3} open")

    def summary(self) -> list[dict[str, object]]:
        """What was reached in each phase."""
        begins = self.begins
        return [{"receiver": self.name, "phase": phase.limit, "minutes": phase.minutes,
                 **reached(self.readings, phase, begins[number], begins[number + 1])}
                for number, phase in enumerate(self.phases)]


def reached(readings: Sequence[Reading], phase: Phase, begun_s: float, ended_s: float) -> dict[str, object]:
    """The figures of one phase."""
    all_of_it = [one for one in readings if begun_s <= one.at_s <= ended_s]
    steady = [one for one in all_of_it if one.at_s >= begun_s + LEARN_S]
    result: dict[str, object] = {}
    if len(steady) < 2:
        return result
    first, last = steady[0], steady[-1]
    taken, refused = last.taken - first.taken, last.refused - first.refused
    result = {"learning_refused": first.refused - all_of_it[0].refused, "taken": taken, "refused": refused,
              "refused_share": refused / max(taken + refused, 1)}
    if phase.rate:
        result["used"] = taken / (phase.possible * (last.at_s - first.at_s))
    elif phase.possible:
        result["used"] = sum(one.open for one in steady) / len(steady) / phase.possible
    if phase.possible:
        for number, one in enumerate(all_of_it):
            then = next((two for two in all_of_it[number:] if two.at_s >= one.at_s + BACK_OVER_S), None)
            if then is None:
                break
            share = ((then.taken - one.taken) / (then.at_s - one.at_s) if phase.rate else one.open) / phase.possible
            if share >= BACK:
                result["reached_s"] = round(one.at_s - begun_s, 1)
                break
    return result


def feed(address: str, receivers: Sequence[Receiver], stop: threading.Event) -> None:
    """More mail than they take: so many messages beyond what each has taken, and always some more."""
    host, _, port = address.rpartition(":")
    begun_s, number = time.monotonic(), 0
    while not stop.is_set():
        with smtplib.SMTP(host, int(port)) as client:
            for _ in range(500):  # of one session
                more = ALWAYS * (time.monotonic() - begun_s)
                hungry = [one for one in receivers if one.fed - one.taken < AHEAD or one.fed < AHEAD + more]
                for one in hungry:
                    client.sendmail("a@sender.test", [f"u{number}@{one.name}"], CONTENT)
                    one.fed += 1
                number += 1
                if stop.wait(0.002 if hungry and number < AHEAD else 0.05):
                    break


def receivers_of(texts: Sequence[str], number: int) -> list[Receiver]:
    """As the command line wants them. Raises ValueError."""
    kinds: Sequence[Sequence[str]] = [texts] * number
    if not texts:
        kinds = [ONE] if number == 1 else [FIVE[position % len(FIVE)] for position in range(number)]
    return [Receiver(f"hidden{position}.test", [Phase.parse(text) for text in kind])
            for position, kind in enumerate(kinds)]


def candidate(name: str, setup: Setup) -> Candidate:
    """The MTA that is looked at."""
    return Postfix(setup, tuned=False) if name == postfix.NAME else Ours(setup)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="bench.hidden", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mta", choices=("ours", postfix.NAME), default="ours")
    parser.add_argument("--phase", action="append", default=[], metavar="LIMIT[:MINUTES]",
                        help="20, 200/min, ... or any; may be repeated")
    parser.add_argument("--receivers", type=int, default=1, metavar="N", help="so many at once")
    parser.add_argument("--connections", type=int, default=100, metavar="N", help="what we may open (%(default)s)")
    parser.add_argument("--every", type=float, default=10.0, metavar="S", help="between two lines (%(default)g)")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    try:
        receivers = receivers_of(options.phase, options.receivers)
    except ValueError as error:
        parser.error(f"--phase: {error}")
    settings: dict[str, object] = {"shaping.default.connections": options.connections}
    internet: dict[str, object] = {"domains": {one.name: one.phases[0].behaviour for one in receivers}}
    if options.mta == postfix.NAME:
        why_not = postfix.unavailable()
        if why_not is not None:
            parser.error(why_not)
        internet["dns"] = "{}:{}".format(*namespace.DNS_ADDRESS)
    with tempfile.TemporaryDirectory() as place, runtime_directory() as runtime, Sandbox(internet) as box:
        Path(place).chmod(0o755)  # Postfix' own user has to reach its queue
        processes = account(f"hidden-{options.mta}")
        host, _, port = box.dns.rpartition(":")
        mta = candidate(options.mta, Setup(
            Path(place), runtime, processes, (host, int(port)), box.smtp_port, options.workers, None, settings))
        stop = threading.Event()
        feeding = threading.Thread(target=feed, args=(mta.start(), receivers, stop))
        feeding.start()
        started_s = time.monotonic()
        end_s = max(one.begins[-1] for one in receivers)
        try:
            while (at_s := time.monotonic() - started_s) < end_s + options.every / 2:
                sites = box.sites()
                for one in receivers:
                    if at_s <= one.begins[-1] + options.every / 2:
                        one.read(box, sites, at_s)
                if len(receivers[0].readings) > 1:
                    print(receivers[0].line(), flush=True)
                time.sleep(max(started_s + at_s + options.every - time.monotonic(), 0.1))
        finally:
            stop.set()
            feeding.join()
            complaints = mta.stop()
            processes.close()
    found = [line for one in receivers for line in one.summary()]
    for line in found:
        print(json.dumps(line))
    for text in complaints:
        print(f"PROBLEM: {text}")
    if options.json is not None:
        options.json.write_text(json.dumps({
            "mta": options.mta, "version": postfix.version() if options.mta == postfix.NAME else "",
            "workers": options.workers, "phases": found,
            "readings": {one.name: [asdict(reading) for reading in one.readings] for one in receivers},
        }, indent=1) + "\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
