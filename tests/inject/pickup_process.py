"""A process that takes the files of a spool directory into a real store: a worker's part of it, alone.

    python -m tests.inject.pickup_process DIRECTORY SPOOL SHARD [FOREIGN-SHARD...]

It prints `ready` when it has begun, and ends on SIGTERM.
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402

import mta.inject.pickup  # noqa: E402
import mta.inject.pickup_service  # noqa: E402
from mta.config.schema import Config, Pickup  # noqa: E402
from mta.control.hubstore import HubStore  # noqa: E402
from mta.inject.intake import Intake  # noqa: E402
from mta.inject.pickup_service import PickupService  # noqa: E402
from mta.queue.ids import IdSource  # noqa: E402


def clock_us() -> int:
    """The wall clock."""
    return time.time_ns() // 1000


def fail_once() -> None:
    """The first step raises what nobody expects; the directory is left alone for a moment only."""
    step = mta.inject.pickup.Pickup.step
    mta.inject.pickup_service.TROUBLE_S = 0.01

    def fail(self: mta.inject.pickup.Pickup) -> bool:
        mta.inject.pickup.Pickup.step = step
        raise RuntimeError("as asked for")

    mta.inject.pickup.Pickup.step = fail


def main(directory: str, spool: str, shard: int, foreign: list[int]) -> None:
    """Run until SIGTERM."""
    config = Config(hostname="mta.example", pickup=(Pickup(directory=directory),))
    if "FAIL_ONCE" in os.environ:
        fail_once()
    stores, services = [], []
    for number in (shard, *foreign):
        path = Path(spool, f"{number:03d}")
        path.mkdir(parents=True, exist_ok=True)
        store = HubStore.attach(path, config, number, clock_us)
        intake = Intake(config, IdSource(number, store.last_id, clock_us).next, clock_us)
        service = PickupService(
            directory, number, config, intake, store, lambda accepted: None, takes_new=number == shard
        )
        service.start()
        stores.append(store)
        services.append(service)
    stop = Event()
    gevent.signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    stop.wait()
    for service in services:
        service.stop(time.monotonic() + 10)
    for store in stores:
        store.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(number) for number in sys.argv[4:]])
