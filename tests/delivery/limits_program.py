"""Run by the tests of the limits: one worker that uses the table as hard as it can and reports what it saw.

Arguments: runtime directory, worker number, name of the limit, the limit, mode, seconds. While it holds a lease the
worker counts it in its byte of the file `watch`; the sum of all bytes is what a receiver would see.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mta.delivery.limits import Limits, limited


def main(run: str, worker: int, name: str, limit: int, mode: str, seconds: float) -> None:
    """`hammer`: take and give back without a pause. `turns`: hold each lease until another worker should have it.
    `products`: like `turns`, with every other time a further limit beside it, in any order."""
    limits = Limits(run, worker)
    with open(Path(run, "watch"), "r+b") as file:
        watch = mmap.mmap(file.fileno(), 256)
    print("ready", flush=True)
    sys.stdin.readline()  # all begin together
    end = time.monotonic() + seconds
    turns = most = 0
    longest = 0.0
    while (now := time.monotonic()) < end:
        wanted: list[tuple[str, int | None]] = [(name, limit), ("total", 1000), ("unlimited", None)]
        if mode == "products":
            wanted += [("provider", 2), (f"path{(turns + worker) % 3}", 1)][turns % 2:]
            wanted = wanted[turns % 3:] + wanted[:turns % 3]
        if limits.acquire(wanted) is not None:
            select.select([limits.fileno()], [], [], end - now)
            longest = max(longest, time.monotonic() - now)
            limits.recv_nudges()
            continue
        watch[worker] += 1
        most = max(most, sum(watch[:]))
        turns += 1
        if mode == "hammer" and turns % 4 == 0:
            time.sleep(0.0005)  # so that holders meet, on few cores too
        if mode in ("turns", "products"):
            while time.monotonic() < end and limits.gives_way(wanted) is None:
                select.select([limits.fileno()], [], [], 0.002)  # one message
                limits.recv_nudges()
        most = max(most, sum(watch[:]))
        watch[worker] -= 1
        limits.release(limited(wanted))
    print(turns, most, longest, flush=True)
    limits.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5], float(sys.argv[6]))
    os._exit(0)
