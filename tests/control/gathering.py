"""Prints whether a store waits for messages that are being sent, and for none that does not come.

    python -m tests.control.gathering DIRECTORY
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402

from mta.config.schema import Config  # noqa: E402
from mta.control import hubstore  # noqa: E402
from mta.control.hubstore import HubStore  # noqa: E402
from mta.queue.store import Transaction  # noqa: E402


def attach(directory: str, hurry_s: float) -> HubStore:
    """A store that waits so long for messages that are coming."""
    hubstore.HURRY_S = hurry_s  # final but for tests
    return HubStore.attach(Path(directory), Config(hostname="mta.example"), 0, lambda: time.time_ns() // 1000)


def submit(store: HubStore) -> Callable[[], None]:
    """Submit what somebody waits for; call the result to wait until it is durable."""
    durable = Event()
    store.submit(Transaction(events=[b"{}"]), lambda error: durable.set())
    return lambda: durable.wait() and None


def main(directory: str) -> None:
    """With a wait that never ends, and with a short one."""
    store = attach(directory, 3600.0)
    submit(store)()
    print("nobody comes: as soon as nothing is to be read", flush=True)
    store.coming.clients = 1
    only = submit(store)
    print("the only client:", "waits" if store.pending else "at once", flush=True)
    only()
    store.coming.clients = 2
    one = submit(store)
    print("one of two:", "waits" if store.pending else "early", flush=True)
    one()
    number = store.coming.begin()
    first = submit(store)
    gevent.sleep(0.01)
    print("one comes:", "waits" if store.pending else "early", flush=True)
    store.coming.end(number)
    second = submit(store)
    first()
    second()
    print("it has come:", store.statistics.groups - 3, "group", flush=True)
    store.close()
    store = attach(directory, 0.002)
    number = store.coming.begin()
    submit(store)()
    print("it does not come:", store.coming.count, "to wait for", flush=True)
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])
