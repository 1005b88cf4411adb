"""Run by the tests of the rates: one worker that sends as fast as the shared rates let it, and writes down each time.

Arguments: runtime directory, worker number, seconds, then rates as COUNT/SECONDS. Each is a bucket of its own. In the
file `answers-N` stands for each question: which rate, when it had its answer, and the answer: 0 for a message that is
let through, else the time at which to come. What was written survives a kill. Line 1 of stdout says that it is ready;
it begins when its stdin ends.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mta.delivery.limits import Limits
from mta.delivery.rates import Bucket

ANSWER = struct.Struct("<idd")


def main(run: str, worker: int, seconds: float, rates: list[tuple[float, float]]) -> None:
    """Ask, wait until told, write down."""
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
            at = limits.reserve(bucket)
            now = time.monotonic()
            os.write(out, ANSWER.pack(number, now, at))
            told[number] = at
        if all(told):
            time.sleep(max(min(told) - time.monotonic(), 0.0))
    limits.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]),
         [(float(count), float(seconds)) for count, seconds in (rate.split("/") for rate in sys.argv[4:])])
