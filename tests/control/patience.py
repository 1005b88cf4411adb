"""Prints whether a store is as patient with outcomes that nobody waits for as it should be.

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
    """Submit events alone, several times: each must find the whole of the store's patience, not what is left of it."""
    hubstore.PATIENCE_S = 1.0  # type: ignore[misc]
    store = HubStore.attach(Path(directory), Config(hostname="mta.example"), 0, lambda: time.time_ns() // 1000)
    for _ in range(ROUNDS):
        store.submit(Transaction(events=[b"{}"]))
        gevent.sleep(0.01)
        print("patient" if store.pending else "early", flush=True)
        while store.statistics.groups == 0:
            gevent.sleep(0.001)
        store.statistics.groups = 0
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])
