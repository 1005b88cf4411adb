"""Rules of the control process's orders: written down first, told to all, told again, over when they are over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mta.config.loader import loads
from mta.control import exits
from mta.control.answers import Answers
from mta.control.orders import OrderKeeper, lacking, orders_file, read_orders
from mta.control.protocol import Missing, Obeyed, RequestError, SweepRow
from mta.queue.fileops import FileOps
from mta.queue.orders import Order, Orders

NOW_US = 1_700_000_000_000_000


class Workers:
    """Two workers that hear what they are told, if they can."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.told: list[tuple[int, int]] = []  # the serial, and that on disk just then
        self.missing: list[Missing] = []
        self.sweeps: list[SweepRow] = []
        self.asked: list[int] = []  # as of which serial

    def tell_orders(self, serial: int) -> tuple[list[Obeyed], list[Missing]]:
        """They obey, or some are missing."""
        self.told.append((serial, read_orders(str(self.spool)).serial))
        return [Obeyed(serial)], self.missing

    def ask_sweeps(self, serial: int) -> tuple[list[SweepRow], list[Missing]]:
        """How far they are."""
        self.asked.append(serial)
        return self.sweeps, self.missing


class Disk(FileOps):
    """Takes down what is done, and fails when told to."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails = ""

    def fdatasync(self, fd: int) -> None:
        """Sync."""
        self._do("sync")
        super().fdatasync(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename."""
        self._do("rename")
        super().rename(source, target)

    def fsync_directory(self, path: Path) -> None:
        """Sync a directory."""
        self._do("sync directory")
        super().fsync_directory(path)

    def _do(self, what: str) -> None:
        if what == self.fails:
            raise OSError(5, os.strerror(5))
        self.done.append(what)


def given(kind: str = "pause", expression: str = "tenant=acme", **fields: object) -> Order:
    """An order of root's."""
    return Order(0, kind, "root", NOW_US, expression, **fields)


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    """The workers of a spool in `tmp_path`."""
    return Workers(tmp_path)


def keeper(workers: Workers, now_us: int = NOW_US, files: FileOps | None = None) -> OrderKeeper:
    """A control process on that spool."""
    return OrderKeeper(str(workers.spool), workers, files, lambda: now_us)


def test_an_order_is_on_disk_before_anybody_is_told(workers: Workers) -> None:
    """With the syncs that make it outlive the machine: file, then its name, then the directory."""
    disk = Disk()
    order, _, missing = keeper(workers, files=disk).give(given())
    assert (order.number, missing, workers.told) == (1, [], [(1, 1)])
    assert disk.done[-3:] == ["sync", "rename", "sync directory"]
    assert json.loads(orders_file(str(workers.spool)).read_bytes())["orders"][0]["filter"] == "tenant=acme"


@pytest.mark.parametrize("fails", ["sync", "rename"])
def test_what_cannot_be_written_is_not_ordered(workers: Workers, fails: str) -> None:
    """Nobody is told, and what was in force stays."""
    disk = Disk()
    orders = keeper(workers, files=disk)
    orders.give(given())
    disk.fails = fails
    with pytest.raises(RequestError, match="nothing was ordered") as caught:
        orders.give(given("delete"))
    assert caught.value.exit_code == exits.CANNOT_CREATE
    assert workers.told == [(1, 1)]
    assert [one.kind for one in orders.orders.orders] == ["pause"]


def test_a_control_process_that_is_started_anew_knows_the_orders(workers: Workers) -> None:
    """And tells them again, once, as it cannot know who was told."""
    keeper(workers).give(given())
    again = keeper(workers)
    assert not again.look()
    assert workers.told == [(1, 1), (1, 1)]
    assert not again.look()
    assert len(workers.told) == 2


def test_who_was_missing_is_told_again(workers: Workers) -> None:
    """Until all know it."""
    orders = keeper(workers)
    workers.missing = [Missing(1, "is not running")]
    assert orders.give(given())[2] == workers.missing
    assert orders.look()
    workers.missing = []
    assert not orders.look()
    assert len(workers.told) == 3


def test_a_sweep_is_done_when_all_shards_are(workers: Workers) -> None:
    """And not while a worker does not answer."""
    orders = keeper(workers)
    orders.give(given("delete"))
    workers.sweeps = [SweepRow(1, 0, 5, 5, True), SweepRow(1, 1, 5, 5, False)]
    assert orders.look()
    workers.sweeps[1].finished = True
    workers.sweeps[0].unreadable, workers.sweeps[1].unreadable = 2, 1
    workers.missing = [Missing(1, "")]
    assert orders.look()
    workers.missing = []
    assert not orders.look()
    assert orders.orders.orders == ()
    assert (orders.orders.changes[-1].state, orders.orders.changes[-1].unreadable) == ("done", 3)


def test_a_worker_that_starts_ends_no_sweep(workers: Workers) -> None:
    """Workers are asked as of the orders that stand, and one that has not read them yet has no answer: with an empty
    one a sweep would be over when the others have done their part, and what is left of it would stay for ever."""
    orders = keeper(workers)
    orders.give(given("delete"))
    workers.sweeps = [SweepRow(1, 0, 5, 5, False)]
    orders.look()
    assert workers.asked == [orders.orders.serial]

    controls = SimpleNamespace(orders=Orders(), sweeps=SimpleNamespace(progress={}))
    answers = Answers(cast(Any, SimpleNamespace(engine=SimpleNamespace(controls=controls))))
    with pytest.raises(RequestError, match="does not know all orders yet"):
        answers.answer("sweeps", {"serial": orders.orders.serial})
    controls.orders = orders.orders
    controls.sweeps.progress[(1, 1)] = SimpleNamespace(deliveries=3, recipients=4, finished=False,
                                                       unreadable=2)
    assert answers.answer("sweeps", {"serial": orders.orders.serial}).rows == [SweepRow(1, 1, 3, 4, False, 2)]


def test_an_order_ends_when_its_time_is_over(workers: Workers) -> None:
    """By itself."""
    keeper(workers).give(given(until_us=NOW_US + 10))
    keeper(workers, NOW_US + 9).look()
    assert len(read_orders(str(workers.spool)).orders) == 1
    keeper(workers, NOW_US + 10).look()
    assert read_orders(str(workers.spool)).orders == ()


def test_the_same_order_again_replaces_the_former(workers: Workers) -> None:
    """A limit on the same target, a pause of the same mail; sweeps are each their own."""
    orders = keeper(workers)
    for one in (given(), given(expression=" Tenant=acme "), given("limit", "", target="a", rate=1.0),
                given("limit", "", target="a", connections=2), given("limit", "", target="b", connections=2),
                given("retry"), given("retry")):
        orders.give(one)
    assert [(one.kind, one.target) for one in orders.orders.orders] == [
        ("pause", ""), ("limit", "a"), ("limit", "b"), ("retry", ""), ("retry", "")]


def test_a_broken_file_is_not_overwritten(workers: Workers) -> None:
    """It may say what was held: somebody has to look."""
    orders_file(str(workers.spool)).parent.mkdir()
    orders_file(str(workers.spool)).write_bytes(b"{")
    with pytest.raises(RequestError, match="operator/orders") as caught:
        keeper(workers).give(given())
    assert caught.value.exit_code == exits.OS_ERROR
    assert orders_file(str(workers.spool)).read_bytes() == b"{"


@pytest.mark.parametrize(("order", "said"), [
    (Order(0, "reroute", "ann", 0, "pool=news", pool="clan"), "there is no pool clan in the configuration"),
    (Order(0, "reroute", "ann", 0, "pool=news", pool="clean"), ""),
    (Order(0, "reroute", "ann", 0, "pool=news", pool="out1"), ""),  # a source alone is a pool, too
    (Order(0, "suspend", "ann", 0, target="provider:gogle"), "there is no provider gogle in the configuration"),
    (Order(0, "limit", "ann", 0, target="provider:google", connections=1), ""),
    (Order(0, "suspend", "ann", 0, target="source:out2"), "there is no source out2 in the configuration"),
    (Order(0, "suspend", "ann", 0, target="source:out1"), ""),
    (Order(0, "suspend", "ann", 0, target="out1>mx.example.org"), ""),
    (Order(0, "suspend", "ann", 0, target="tenant:anybody"), ""),
])
def test_a_slip_of_the_pen_orders_nothing(order: Order, said: str) -> None:
    """A pool that there is none of would stop the mail, and a provider that there is none of would not be suspended."""
    config = loads("hostname: mta.test\nsources: {out1: {ipv4: 127.0.0.1}}\npools: {clean: {out1: 1}}\n")
    assert lacking(config, order) == said
