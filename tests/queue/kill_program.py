"""A store under load, to be killed: says on stdout what was confirmed to it. Run by test_kill.py.

Lines: `ready`; `a ID` accepted; `r ID` is about to be removed; `R ID` removed; `u ID DUE` due time changed.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from mta.queue.fileops import FileOps
from mta.queue.records import Delivery
from mta.queue.store import Transaction
from tests.queue.helpers import Bench, config, outcome


def say(*words: object) -> None:
    """One line, in one write."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def main(directory: Path, seed: int) -> None:
    """Until the end, which comes from outside."""
    rng = random.Random(seed)
    bench = Bench(directory, config(checkpoint=0.01), FileOps())
    store = bench.store
    mine: dict[int, Delivery] = {}
    woken = threading.Event()
    say("ready")
    store._disk_thread._wake = store._index_thread._wake = woken.set
    outstanding = 0

    def then(action: Callable[[], None]) -> Callable[[object], None]:
        def done(error: object) -> None:
            nonlocal outstanding
            assert error is None
            outstanding -= 1
            action()

        return done

    def accepted(delivery: Delivery) -> None:
        mine[delivery.message.id] = delivery
        say("a", delivery.message.id)

    while True:
        for _ in range(rng.randrange(1, 12)):
            outstanding += 1
            kind = rng.random()
            if kind < 0.5 or not mine:
                [delivery] = bench.make(f"d{rng.randrange(5)}.test", content=b"x" * rng.choice((10, 5000, 60_000)))
                store.submit(Transaction([(delivery.message, [delivery])], events=[b"a %d" % delivery.message.id]),
                             then(lambda d=delivery: accepted(d)))
            elif kind < 0.85:
                delivery = mine.pop(rng.choice(list(mine)))
                say("r", delivery.message.id)
                store.submit(Transaction(removes=[delivery], events=[b"r %d" % delivery.message.id]),
                             then(lambda d=delivery: say("R", d.message.id)))
            else:
                number = rng.choice(list(mine))
                mine[number] = later = outcome(mine[number], due_us=mine[number].due_us + 1)
                store.submit(Transaction(updates=[later]), then(lambda d=later: say("u", d.message.id, d.due_us)))
        store.flush()
        while outstanding > 20:
            woken.wait()
            woken.clear()
            store.collect()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
