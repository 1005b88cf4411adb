"""What the table of limits costs: microseconds per operation, alone and with other processes on the same table.

    python -m bench.limits                  one process, then four at once
    python -m bench.limits --run /run/mta   in another directory; /dev/shm by default, since it belongs on tmpfs
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

from bench.loopback import cpu_s
from mta.config.reply_rules import After
from mta.delivery.limits import Limits
from mta.delivery.rates import Bucket

ROUNDS = 20_000


def timed(operation: Callable[[int], object]) -> dict[str, float]:
    """CPU and wall time of one call, in microseconds."""
    began, used = time.monotonic(), cpu_s()
    for number in range(ROUNDS):
        operation(number)
    return {
        "cpu_us": round((cpu_s() - used) / ROUNDS * 1e6, 2),
        "wall_us": round((time.monotonic() - began) / ROUNDS * 1e6, 2),
    }


def connection(limits: Limits, number: int) -> None:
    """What one connection does: a lease of its path and one of the total, taken and given back."""
    names = (f"site{number % 1000}.example", "total")
    if limits.acquire([(names[0], 20), (names[1], 5000)]) is not None:
        raise RuntimeError("refused")
    limits.release(names)


def sender(limits: Limits) -> Callable[[int], object]:
    """What one message does where rates are limited: its path, a provider and a source, none of which holds it up."""
    wide = [Bucket(name, 1000, 1.0, burst=10_000_000) for name in ("provider", "source")]
    sets = [(Bucket(f"site{number}.example", 1000, 1.0, burst=10_000_000), *wide) for number in range(1000)]
    return lambda number: limits.reserve(sets[number % 1000])


def paced(limits: Limits, seconds: float = 2.0) -> dict[str, float]:
    """A path of 1,000 messages per second, used without end: per message, both the waiting for a turn and the turn."""
    bucket = (Bucket("paced", 1000, 1.0),)
    used, sent, until = cpu_s(), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        at = limits.reserve(bucket)
        if at:
            time.sleep(max(at - time.monotonic(), 0.0))
        else:
            sent += 1
    return {"cpu_us": round((cpu_s() - used) / sent * 1e6, 2), "wall_us": round(seconds / sent * 1e6, 2)}


def alone(run: str) -> dict[str, dict[str, float]]:
    """Every operation, with nobody else on the table."""
    limits = Limits(run, 0)
    results = {"acquire and release of two": timed(lambda number: connection(limits, number))}
    for _ in range(20):
        limits.acquire([("full", 20)])
    results["should_yield"] = timed(lambda _: limits.should_yield("full", 20))

    def refused(_: int) -> None:
        limits.acquire([("full", 20)])
        limits.want("full", 0)

    results["refused, then not waiting"] = timed(refused)
    limits.acquire([("full", 20)])
    results["refused again"] = timed(lambda _: limits.acquire([("full", 20)]))
    results["recv_nudges, none"] = timed(lambda _: limits.recv_nudges())
    one = [(Bucket(f"path{number}", 1000, 1.0, burst=10_000_000),) for number in range(1000)]
    results["reserve, one bucket"] = timed(lambda number: limits.reserve(one[number % 1000]))
    results["reserve, three buckets"] = timed(sender(limits))
    slow = (Bucket("slow", 1, 3600.0),)
    limits.reserve(slow)
    results["reserve, not my turn yet"] = timed(lambda _: limits.reserve(slow))
    results["1,000/s used without end, each message"] = paced(limits)
    results["count"] = timed(lambda _: limits.count("volume:tenant", 1, 1 << 40))
    results["state"] = timed(lambda _: limits.state("path"))
    results["update"] = timed(lambda number: limits.update("path", lambda state: replace(state, rate=float(number))))
    often = After(1_000_000, 0.0, 3600.0)
    results["a match of a rule with after"] = timed(
        lambda number: limits.tally("rule", f"path{number % 100}", lambda tally, _: tally.number(often, time.time())))
    results["the same for a share"] = timed(
        lambda number: limits.tally("share", f"path{number % 100}", lambda tally, total: tally.match(
            often, total, time.time()), f"path{number % 100}", 1))
    limits.close()
    return results


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="bench.limits", description="Cost of the shared limits.")
    parser.add_argument("--run", default="/dev/shm", help="where to make the table (%(default)s)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        limits = Limits(options.run, options.worker)
        print(json.dumps([timed(lambda number: connection(limits, number)), timed(sender(limits))]))
        return 0
    with tempfile.TemporaryDirectory(dir=options.run) as run:
        for what, cost in alone(run).items():
            print(f"{what:40}{cost['cpu_us']:8.2f} us CPU {cost['wall_us']:8.2f} us")
        crew = [
            subprocess.Popen([sys.executable, "-m", "bench.limits", "--run", run, "--worker", str(number)],
                             stdout=subprocess.PIPE, text=True)
            for number in range(4)
        ]
        for number, process in enumerate(crew):
            costs = json.loads(process.communicate()[0])
            for what, cost in zip(("acquire and release of two", "reserve, three buckets"), costs, strict=True):
                print(f"{what + f', {number + 1} of 4':40}{cost['cpu_us']:8.2f} us CPU {cost['wall_us']:8.2f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
