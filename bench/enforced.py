"""Hard limits as the receiver counts them, with several workers, across a reload and kill -9 of a worker.

    python -m bench.enforced               1, 2 and 4 workers, 45 seconds each
    python -m bench.enforced --workers 2 --seconds 120 --json FILE

Our MTA starts with a backlog for six receivers of the sandbox, each with a limit of its own, all at the same time: 7
and 20 connections, 0.5, 10 and 1,000 messages a second, 10 new connections a second. After a third of the time comes a
reload, after two thirds one worker is killed. The sandbox writes down when its kernel had each MAIL, each end of
content and each connection; a limit is looked at in every window of its length, over all of the time. An end of
content is reckoned as if its receiver, which shares our processors, had asked for it at once. What was used is
reckoned from the third second to the kill: with one worker nobody uses anything after it. docs/shaping.md has a result.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.audit import open_share, used, windows
from bench.candidate import Setup, runtime_directory
from bench.fill import fill
from bench.ours import Ours
from bench.processes import Account, account
from mta.config.units import parse_rate
from mta.sandbox.client import Sandbox

WARM_S = 3.0
DOMAINS = 7  # of bench.fill; prime to any number of workers that is measured, so that all of them have mail for each
LATENCY = "200ms"
LIMITS: dict[str, dict[str, object]] = {
    "d0.dead": {"message_rate": "1000/s"},
    "d1.dead": {"message_rate": "10/s"},
    "d2.dead": {"message_rate": "0.5/s"},
    "d3.dead": {"connections": 7},
    "d4.dead": {"connections": 20},
    "d5.dead": {"connection_rate": "10/s", "messages_per_connection": 1},
}


@dataclass(slots=True)
class Audit:
    """One limit in one run."""

    workers: int
    limit: str
    counted: str  # what the receiver counts
    allowed: int
    most: int  # in any window, or at once
    exceeded: int  # windows
    spare_ms: float | None  # how much of the margin the closest call left
    used: float
    events: int


def audits(box: Sandbox, workers: int, begin: float, end: float) -> list[Audit]:
    """Everything that the sandbox knows, against `LIMITS`. `begin` and `end` are for what was used."""
    found = []
    arrivals, visits = box.arrivals(), box.visits()
    for domain, limits in LIMITS.items():
        own = [arrival for arrival in arrivals if arrival.domain == domain]
        came = [visit for visit in visits if visit.site == domain]
        if "connections" in limits:
            allowed = int(str(limits["connections"]))
            most = int(box.domain(domain)["max_open"])
            found.append(Audit(workers, f"{allowed} connections", "connections", allowed, most, int(most > allowed),
                               None, open_share(came, allowed, begin, end), len(came)))
            continue
        series = ([("MAIL", [arrival.mail_at for arrival in own]), ("end", [arrival.end_at for arrival in own])]
                  if "message_rate" in limits else [("connections", [visit.opened_at for visit in came])])
        text = str(limits.get("message_rate") or limits["connection_rate"])
        rate = parse_rate(text)
        allowed, period_s = max(round(rate.count), 1), rate.per_s / min(rate.count, 1.0)
        for counted, times in series:
            worst = windows(times, allowed, period_s)
            found.append(Audit(workers, text, counted, allowed, worst.most, worst.exceeded, worst.spare_s * 1000,
                               used(times, rate.per_second, begin, end), len(times)))
    return found


def kill_a_worker(processes: Account) -> None:
    """SIGKILL to one of them."""
    for pid in processes.pids():
        try:
            command = Path("/proc", str(pid), "cmdline").read_bytes()
        except OSError:
            continue
        if b"mta.control.worker" in command:
            os.kill(pid, signal.SIGKILL)
            return


def run(workers: int, seconds: float, disturb: bool = True) -> list[Audit]:
    """One run: start with a backlog, reload, kill a worker, stop; what came of it."""
    domains = {name: {"latency": LATENCY} if "connections" in limits else {} for name, limits in LIMITS.items()}
    with tempfile.TemporaryDirectory() as place, runtime_directory() as runtime, Sandbox(
            {"domains": domains, "times": 2_000_000, "log": 0, "check": False, "remember": 2_000_000}) as box:
        spool = Path(place, "spool")
        fill(spool, DOMAINS * int(120 * seconds), DOMAINS, workers, size=500, spread_s=0)
        fill(spool, int(1000 * seconds), 1, workers, size=500, spread_s=0)
        processes = account(f"enforced{workers}")
        host, _, port = box.dns.rpartition(":")
        mta = Ours(Setup(Path(place), runtime, processes, (host, int(port)), box.smtp_port, str(workers), None,
                         {"shaping.domains": LIMITS, "shaping.default.adaptive.enabled": False}))
        mta.start()
        try:
            for domain in LIMITS:
                box.wait({"messages": 1}, domain=domain, timeout_s=60)
            begin = time.time() + WARM_S
            time.sleep(seconds / 3)
            if disturb:
                mta.reload()
            time.sleep(seconds / 3)
            end = time.time()
            if disturb:
                kill_a_worker(processes)
            time.sleep(seconds / 3)
            return audits(box, workers, begin, end)
        finally:
            mta.stop()
            processes.close()


def main() -> int:
    """Run it; 1 when a limit was exceeded."""
    parser = argparse.ArgumentParser(prog="bench.enforced", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, action="append", metavar="N", help="may be repeated (1, 2 and 4)")
    parser.add_argument("--seconds", type=float, default=45.0, metavar="S", help="length of each run (%(default)g)")
    parser.add_argument("--quiet", action="store_true", help="no reload, no kill")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    found = []
    print("| workers | limit | counted | allowed | most | windows exceeded | spare | used |")
    print("|---|---|---|---|---|---|---|---|")
    for workers in options.workers or [1, 2, 4]:
        for one in run(workers, options.seconds, not options.quiet):
            found.append(one)
            spare = "" if one.spare_ms is None else f"{one.spare_ms:.1f} ms"
            print(f"| {one.workers} | {one.limit} | {one.counted} | {one.allowed} | {one.most} | {one.exceeded} of "
                  f"{one.events:,} | {spare} | {one.used:.1%} |", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    return int(any(one.exceeded for one in found))


if __name__ == "__main__":
    sys.exit(main())
