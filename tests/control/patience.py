"""Prints in how many turns of the event loop a store flushes outcomes that nobody waits for: `early` or `patient`.

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
TURNS = 3


def main(directory: str) -> None:
    """Submit events alone, several times: each must find the whole of the store's patience, not what is left of it."""
    hubstore.PATIENCE_S = 0.3  # type: ignore[misc]
    store = HubStore.attach(Path(directory), Config(hostname="mta.example"), 0, lambda: time.time_ns() // 1000)
    for _ in range(ROUNDS):
        store.submit(Transaction(events=[b"{}"]))
        for _ in range(TURNS):
            gevent.sleep(0)
        print("patient" if store.pending else "early", flush=True)
        while store.statistics.groups == 0:
            gevent.sleep(0.001)
        store.statistics.groups = 0
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])
