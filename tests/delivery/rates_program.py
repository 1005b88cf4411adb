"""Run by the tests of the rates: one worker that sends as fast as the shared rates let it, and writes down each time.

Arguments: runtime directory, worker number, seconds, then rates as COUNT/SECONDS. Each is a bucket of its own. With
`urgent` before them its mail goes before that of others. In the file `answers-N` stands for each question: which rate,
when it was answered by the clock that the table is read with (how long we stand still behind that on a busy machine is
not the table's doing), and the answer: 0 for a message that is let through, else the time at which to come. What was
written survives a kill. Line 1 of stdout says that it is ready; it begins when its stdin ends.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mta.delivery import shared_rates
from mta.delivery.limits import Limits
from mta.delivery.rates import Bucket

ANSWER = struct.Struct("<idd")


class Clock:
    """In place of the module `time` there: it notes what it has told."""

    told = 0.0

    def monotonic(self) -> float:
        self.told = time.monotonic()
        return self.told


def main(run: str, worker: int, seconds: float, rates: list[tuple[float, float]], urgent: bool) -> None:
    """Ask, wait until told, write down."""
    clock = shared_rates.time = Clock()
    limits = Limits(run, worker)
    buckets = [(Bucket(f"rate{number}", *rate),) for number, rate in enumerate(rates)]
    told = [0.0] * len(rates)
    out = os.open(Path(run, f"answers-{worker}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    print("ready", flush=True)
    sys.stdin.read()
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        for number, bucket in enumerate(buckets):
            if told[number] > now:
                continue
            at = limits.reserve(bucket, urgent=urgent)
            os.write(out, ANSWER.pack(number, clock.told, at))
            told[number], now = at, time.monotonic()
        if all(told):
            time.sleep(max(min(told) - time.monotonic(), 0.0))
    limits.close()


if __name__ == "__main__":
    is_urgent = sys.argv[4] == "urgent"
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]),
         [(float(count), float(seconds)) for count, seconds in (rate.split("/") for rate in sys.argv[4 + is_urgent:])],
         is_urgent)
