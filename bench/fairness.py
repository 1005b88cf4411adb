"""How a slow receiver is shared: by tenants with weights, by priorities, by sources, over workers. As it counts it.

    python -m bench.fairness
    python -m bench.fairness --case weights --seconds 60 --json FILE

Each case is one run of our MTA with two workers: tenants have mail for one receiver of the sandbox that is slow by a
limit on connections (4, a reply takes 100 ms) or on messages (50 a second). Mail is sent while a pause holds it, then
let go. Shares are counted in windows of ten seconds, by the kernel's times of the ends of content; each divided by its
tenant's weight, Jain's index tells how even they are: 1 is even, 1/n is one for all. Where one has so little that it is
done before, the one window is until then. Sources have a message per connection and seven connections at once in all,
so that each connection is a draw of the pool. docs/sources.md has a result.
"""

from __future__ import annotations

import argparse
import json
import smtplib
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.audit import jain
from bench.candidate import Setup, runtime_directory
from bench.ours import Ours
from bench.processes import account
from mta.sandbox.client import Sandbox

WINDOW_S = 10.0
WARM_S = 3.0
DOMAIN = "slow.test"
CONTENT = b"Subject: fair\r\n\r\n" + b"x" * 300 + b"\r\n"
WAYS: dict[str, dict[str, object]] = {"4 connections": {"connections": 4}, "50/s": {"message_rate": "50/s"}}


@dataclass(frozen=True, slots=True)
class Sender:
    """One share of the mail."""

    name: str
    weight: int
    messages: int
    priority: str = ""
    one_session: bool = False  # all of it into one worker
    address: str = ""  # it is a source of the pool, not a tenant


BRIEF = 1000  # messages that are gone before a window is over


CASES: dict[str, list[Sender]] = {
    "1:1:1": [Sender(name, 1, 1500) for name in ("a", "b", "c")],
    "1:2:4": [Sender("a", 1, 800), Sender("b", 2, 1200), Sender("c", 4, 2000)],
    "one has ten times as much": [Sender("a", 1, 10_000), Sender("b", 1, 1000), Sender("c", 1, 1000)],
    "all mail in one worker": [Sender(name, 1, 1500, one_session=True) for name in ("a", "b")],
    "transactional and bulk": [Sender("t", 1, 1500, "transactional"), Sender("b", 1, 1500, "bulk")],
    "100,000 beside 100": [Sender("big", 1, 100_000), Sender("small", 1, 100)],
    "sources 1:2:4": [Sender(f"s{weight}", weight, 1500, address=f"127.0.0.{weight + 10}") for weight in (1, 2, 4)],
}


@dataclass(slots=True)
class Result:
    """One case over one way."""

    case: str
    way: str
    shares: dict[str, float]  # of all that was taken
    jain_least: float  # of all windows
    jain_mean: float
    windows: int
    first_done_s: float  # when the first one had no mail left


def send(address: str, senders: list[Sender]) -> None:
    """All of the mail, over several sessions, so that both workers get some."""
    host, _, port = address.rpartition(":")
    sessions = [smtplib.SMTP(host, int(port)) for _ in range(8)]
    for sender in senders:
        lines = "" if sender.address else f"X-Tenant: {sender.name}\r\n"
        lines += (f"X-Priority-Class: {sender.priority}\r\n" if sender.priority else "")
        for number in range(sender.messages):
            session = sessions[0 if sender.one_session else number % len(sessions)]
            session.sendmail("a@sender.test", [f"{sender.name}-{number}@{DOMAIN}"], lines.encode() + CONTENT)
    for session in sessions:
        session.quit()


def run(case: str, way: str, seconds: float, workers: int = 2) -> Result:
    """One run."""
    senders = CASES[case]
    sources = [sender for sender in senders if sender.address]
    settings: dict[str, object] = {"shaping.domains": {DOMAIN: WAYS[way]}, "shaping.default.adaptive.enabled": False}
    if sources:
        settings["sources"] = {one.name: {"ipv4": one.address} for one in sources}
        settings["pools"] = {"default": {one.name: one.weight for one in sources}}
        settings["shaping.domains"] = {DOMAIN: {"total_connections": 7, "messages_per_connection": 1}}
    else:
        settings["tenants"] = {sender.name: {"weight": sender.weight} for sender in senders}
    with tempfile.TemporaryDirectory() as place, runtime_directory() as runtime, Sandbox(
            {"domains": {DOMAIN: {"latency": "100ms"}}, "times": 1_000_000, "log": 0}) as box:
        processes = account("fairness")
        host, _, port = box.dns.rpartition(":")
        mta = Ours(Setup(Path(place), runtime, processes, (host, int(port)), box.smtp_port, str(workers), None,
                         settings))
        address = mta.start()
        try:
            mta.command("pause", "--domain", DOMAIN, "--reason", "bench", "--yes")
            send(address, senders)
            mta.command("resume", f'domain="{DOMAIN}"')
            time.sleep(seconds)
            arrivals = box.arrivals()
        finally:
            mta.stop()
            processes.close()
    names = {one.address: one.name for one in sources}
    return judge(case, way, [(one.dot_at, names[one.client] if sources else one.recipient.partition("-")[0])
                             for one in arrivals])


def judge(case: str, way: str, arrivals: list[tuple[float, str]]) -> Result:
    """Shares in all windows in which everybody has mail left."""
    weights = {sender.name: sender.weight for sender in CASES[case]}
    first = min(at for at, _ in arrivals)
    is_brief = any(sender.messages < BRIEF for sender in CASES[case])
    begin = first if is_brief else first + WARM_S
    left = Counter({sender.name: sender.messages for sender in CASES[case]})
    end = max(at for at, _ in arrivals)
    for at, name in sorted(arrivals):
        left[name] -= 1
        if not left[name]:
            end = at
            break
    total: Counter[str] = Counter()
    indices = []
    length_s = end - first if is_brief else WINDOW_S
    while begin + length_s <= end:
        taken = Counter(name for at, name in arrivals if begin <= at < begin + length_s)
        total += taken
        indices.append(jain([taken[name] / weight for name, weight in weights.items()]))
        begin += length_s
    every = sum(total.values())
    return Result(case, way, {name: total[name] / every for name in weights} if every else {},
                  min(indices, default=0.0), sum(indices) / len(indices) if indices else 0.0, len(indices),
                  end - first)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="bench.fairness", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated (all)")
    parser.add_argument("--way", action="append", choices=WAYS, help="may be repeated (all)")
    parser.add_argument("--seconds", type=float, default=24.0, metavar="S", help="length of each run (%(default)g)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    found = []
    print("| case | slow by | shares | Jain's index, mean | least | windows | first done |")
    print("|---|---|---|---|---|---|---|")
    for case in options.case or CASES:
        for way in options.way or (list(WAYS)[:1] if CASES[case][0].address else WAYS):
            one = run(case, way, options.seconds)
            found.append(one)
            shares = ", ".join(f"{name} {share:.1%}" for name, share in one.shares.items())
            print(f"| {case} | {way} | {shares} | {one.jain_mean:.4f} | {one.jain_least:.4f} | {one.windows} | "
                  f"{one.first_done_s:.1f} s |",
                  flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
