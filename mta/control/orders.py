"""The control process's part of orders (`mta.queue.orders`): written down first, then told to all workers.

They are in `SPOOL/operator/orders`, replaced as a whole, with the syncs that make it outlive the machine. A worker
reads the file when it starts and obeys before it tries anything; one that runs is told of each change and answers when
it obeys and that is durable. Who could not be told is told again. Sweeps are over when all workers have gone through
their mail, other orders when they are ended or their time has come.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import gevent
from gevent.event import Event
from gevent.lock import RLock

from mta.config.providers import definitions
from mta.config.schema import Config
from mta.control.exits import CANNOT_CREATE, OS_ERROR, USAGE
from mta.control.protocol import Missing, Obeyed, RequestError, SweepRow
from mta.queue.fileops import FileOps
from mta.queue.orders import Order, OrderError, Orders, same_mail

LOOKS_S: Final = (0.2, 3.0)  # how often workers are asked for their sweeps, and told what they do not know
ITSELF: Final = "mta"  # who ends what is over

log = logging.getLogger(__name__)


class Workers(Protocol):
    """How the keeper talks to workers."""

    def tell_orders(self, serial: int) -> tuple[list[Obeyed], list[Missing]]:
        """Have all workers obey the orders as of `serial`."""

    def ask_sweeps(self, serial: int) -> tuple[list[SweepRow], list[Missing]]:
        """How far the sweeps are, in all shards; who does not know the orders as of `serial` yet is missing."""


def orders_file(spool: str) -> Path:
    """Where they are written down."""
    return Path(spool, "operator", "orders")


def read_orders(spool: str) -> Orders:
    """What is written down. Raises ValueError and OSError."""
    try:
        return Orders.decode(orders_file(spool).read_bytes())
    except FileNotFoundError:
        return Orders()


class OrderKeeper:
    """Keeps the orders of one instance. Runs in the control process; `files` is for tests."""

    def __init__(self, spool: str, workers: Workers, files: FileOps | None = None,
                 clock_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._spool = spool
        self._workers = workers
        self._files = files or FileOps()
        self._clock_us = clock_us
        self._lock = RLock()
        self._awake = Event()
        self._untold = True  # some worker may not know of the last change

    def start(self) -> None:
        """Look after what is in force, for ever."""
        gevent.spawn(self._look_after)

    @property
    def orders(self) -> Orders:
        """What is in force. Raises RequestError when it cannot be read."""
        try:
            return read_orders(self._spool)
        except (OSError, ValueError) as error:
            raise RequestError(f"{orders_file(self._spool)}: {error}", OS_ERROR) from error

    def give(self, order: Order) -> tuple[Order, list[Obeyed], list[Missing]]:
        """A new order. When this returns it is durable, and all workers but those that are missing obey it.

        Raises RequestError.
        """
        with self._lock:
            try:
                orders = self.orders
                for one in orders.orders:
                    if _replaces(order, one):
                        orders = orders.end(one, "ended", order.by, order.at_us)
                orders, given = orders.give(order)
            except OrderError as error:
                raise RequestError(str(error), USAGE) from None
            return given, *self._change(orders)

    def end(self, numbers: list[int], by: str) -> tuple[list[Order], list[Obeyed], list[Missing]]:
        """End these orders; those that there were. Raises RequestError."""
        with self._lock:
            orders = self.orders
            ended = [one for one in map(orders.find, numbers) if one is not None]
            for one in ended:
                try:
                    orders = orders.end(one, "ended", by, self._clock_us())
                except OrderError as error:
                    raise RequestError(str(error), USAGE) from None
            return ended, *(self._change(orders) if ended else ([], []))

    def lifted(self, decided: list[Order], by: str, act: Callable[[], None]) -> None:
        """An operator ends what rules on replies decided: `act` does so, once it is written down. Raises RequestError.
        """
        with self._lock:
            self._change(self.orders.lifted(decided, by, self._clock_us()), act)

    def _change(self, orders: Orders, act: Callable[[], None] = lambda: None) -> tuple[list[Obeyed], list[Missing]]:
        path = orders_file(self._spool)
        try:
            if not path.parent.is_dir():
                self._files.mkdir(path.parent)
                self._files.fsync_directory(path.parent.parent)
            self._files.create(path, orders.encode())
        except OSError as error:
            raise RequestError(
                f"{path} cannot be written: {error.strerror}; nothing was ordered", CANNOT_CREATE) from error
        self._untold = True
        self._awake.set()
        act()
        return self._tell(orders.serial)

    def _tell(self, serial: int) -> tuple[list[Obeyed], list[Missing]]:
        obeyed, missing = self._workers.tell_orders(serial)
        self._untold = bool(missing)
        return obeyed, missing

    # -- what ends by itself -------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        wait_s = LOOKS_S[0]
        while True:
            try:
                busy = self.look()
            except RequestError as error:
                log.error("orders: %s", error)
                busy = True
            except Exception:
                log.exception("bug: orders")
                busy = True
            if self._awake.wait(wait_s if busy else self._idle_s()):
                wait_s = LOOKS_S[0]
                self._awake.clear()
            else:
                wait_s = min(2 * wait_s, LOOKS_S[1])

    def _idle_s(self) -> float | None:
        """Until an order ends by itself."""
        ends = [one.until_us for one in self.orders.orders if one.until_us]
        return max((min(ends) - self._clock_us()) / 1e6, 0.0) if ends else None

    def look(self) -> bool:
        """End what is over, and tell who does not know. Whether it is worth to look again soon."""
        with self._lock:
            before = orders = self.orders
            now_us = self._clock_us()
            sweeps = [one for one in orders.orders if one.is_sweep]
            if sweeps and not self._untold:
                rows, missing = self._workers.ask_sweeps(orders.serial)
                for one in sweeps if not missing else []:
                    states = [row for row in rows if row.order == one.number]
                    if states and all(row.finished for row in states):
                        orders = orders.end(one, "done", ITSELF, now_us, sum(row.unreadable for row in states))
            for one in before.orders:
                if not one.in_force(now_us):
                    orders = orders.end(one, "ended", ITSELF, now_us)
            if orders is not before:
                self._change(orders)
            elif self._untold:
                self._tell(orders.serial)
            return self._untold or any(one.is_sweep for one in orders.orders)


def lacking(config: Config, order: Order) -> str:
    """What `order` names that the configuration does not have, so that a slip of the pen stops no mail, and nobody
    believes that something is suspended that is not; empty: nothing."""
    kind, _, name = order.target.partition(":")
    if order.kind == "reroute":
        kind, name, known = "pool", order.pool, {*config.pools, *config.sources}
    elif kind == "source" and ">" not in name:
        known = set(config.sources)
    elif kind == "provider":
        known = set(definitions(config.shaping))
    else:
        return ""
    return "" if name in known else f"there is no {kind} {name} in the configuration"


def _replaces(new: Order, old: Order) -> bool:
    """Whether `old` has no meaning beside `new`."""
    if new.kind != old.kind or new.is_sweep:
        return False
    return new.target == old.target and same_mail(new.filter, old.filter)
