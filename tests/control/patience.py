"""Prints whether a store is as patient with outcomes that nobody waits for as it should be, and not more.

    python -m tests.control.patience DIRECTORY
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402

from mta.config.schema import Config  # noqa: E402
from mta.control import hubstore  # noqa: E402
from mta.control.hubstore import HubStore  # noqa: E402
from mta.queue.store import Transaction  # noqa: E402

ROUNDS = 2


def main(directory: str) -> None:
    """Submit events alone, several times: each must find the whole of the store's patience, not what is left of it.
    Then beside reads that never end: they must not make the wait begin anew."""
    hubstore.PATIENCE_S = 1.0  # final but for tests
    store = HubStore.attach(Path(directory), Config(hostname="mta.example"), 0, lambda: time.time_ns() // 1000)
    for _ in range(ROUNDS):
        store.submit(Transaction(events=[b"{}"]))
        gevent.sleep(0.01)
        print("patient" if store.pending else "early", flush=True)
        while store.statistics.groups == 0:
            gevent.sleep(0.001)
        store.statistics.groups = 0

    reads = 0

    def read_again(*_: object) -> None:
        nonlocal reads
        reads += 1
        if store.statistics.groups == 0 and time.monotonic() < until:
            gevent.get_hub().loop.run_callback(store.load_due, "a.test", 0, 1, (), read_again)

    until = time.monotonic() + 20
    store.submit(Transaction(events=[b"{}"]))
    read_again()
    while store.statistics.groups == 0 and time.monotonic() < until:
        gevent.sleep(0.001)
    print("busy:", "written" if store.statistics.groups and reads > 1 else "never")
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])
