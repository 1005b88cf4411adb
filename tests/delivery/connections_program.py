"""Runs one scenario of a real engine that may open so many connections, in a gevent process of its own (`world`).

    python -m tests.delivery.connections_program NAME

Prints nothing and ends with 0 when the rule held.
"""

from tests.delivery.world import Unlimited, World, clock_us, listen, shaping  # noqa: I001 - patches first

import errno
import logging
import os
import sys
import tempfile
from collections import Counter
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import gevent.select

from mta.config.schema import ShapingRules
from mta.config.schema import Delivery as DeliverySettings
from mta.config.shaping import DefaultLayer, ProviderLayer
from mta.config.units import Duration
from mta.delivery import connecting, wire
from mta.delivery.explain import standing
from mta.delivery.limits import Limits
from mta.queue.records import Recipient


def a_family_that_the_kernel_lacks() -> None:
    """IPv6 addresses on a machine without IPv6 are passed over."""
    world = World()
    world.addresses_found = [(10, "::1"), (2, "127.0.0.1")]
    real = wire.socket

    def lacking(family: int, kind: int) -> Any:
        if family == 10:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, kind)

    wire.socket = lacking
    world.make()
    world.until(world.drained)
    assert (world.connections, world.shelf.told("delivered")) == (1, 1)


def no_descriptors() -> None:
    """When this machine has no socket, mail waits with that reason; no site is paused for it, and nothing goes round in
    circles. It goes on by itself, and all of it arrives."""
    connecting.SHORTAGE_S = 0.05
    said: list[str] = []
    connecting.log.addHandler(listening := logging.Handler())
    listening.emit = lambda record: said.append(record.getMessage())
    codes = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
    for code in codes:
        lack_sockets(code)
    # Once for each spell, and each world is one.
    assert said == [f"no socket for an outgoing connection: {os.strerror(code)}" for code in codes]


def lack_sockets(code: int) -> None:
    world = World(pause=60)
    real, left, tries, rounds = wire.socket, 3, 0, 0
    look = world.engine.connecting._try_more

    def looks() -> None:
        nonlocal rounds
        rounds += 1
        look()

    world.engine.connecting._try_more = looks

    def scarce(family: int, kind: int) -> Any:
        nonlocal left, tries
        tries += 1
        if not left:
            raise OSError(code, os.strerror(code))
        left -= 1
        return real(family, kind)

    wire.socket = scarce
    for number in range(20):
        world.make(domain=f"d{number}.test")
    world.until(lambda: len(world.taken) == 3 and world.engine.connecting.room.shortage)
    world.until(lambda: not world.engine.connections)
    world.until(lambda: rounds >= 4)
    assert tries <= 20 + 3 * rounds, (tries, rounds)
    waits = [standing(world.engine, 0, f"d{number}.test", 1)[:2] for number in range(20)]
    reason = f"this machine has no socket for one more connection: {os.strerror(code)}"
    assert waits.count(("ready", reason)) >= 16, waits
    left = 1000
    world.until(world.drained)
    assert world.shelf.told("suspended") == 0
    assert len(world.taken) == 20
    wire.socket = real


def a_bound_of_descriptors() -> None:
    """A worker has room for so many connections: those at rest make way for sites that have none, and all mail goes."""
    world = World()
    world.slow_s = 0.05
    world.engine.connecting.room.most = 2
    for number in range(20):
        world.make(domain=f"d{number}.test")
    reason = "the descriptors of a worker allow 2 connections, and there are as many"
    world.until(lambda: sum(standing(world.engine, 0, f"d{number}.test", 1)[1] == reason for number in range(20)) > 15)
    while not world.drained():
        assert len(world.engine.connections) <= 2
        gevent.sleep(0.001)
    assert len(world.taken) == 20
    assert world.shelf.told("suspended") == 0


def a_free_place_is_taken_by_one_who_can_use_it() -> None:
    """Connections are opened one at a time here. One that waits in line has no mail any more when its turn comes: the
    next one gets it, nobody waits for ever."""
    connecting.AT_ONCE = 1
    connecting.STALL_S = 3600.0
    world = World()
    world.trickle_s = 0.01
    for domain in ("a.test", "b.test", "c.test"):
        world.make(domain=domain)
        world.until(lambda domain=domain: f"mx.{domain}" in world.engine.paths)
    path = world.engine.paths["mx.b.test"]
    world.until(lambda: path in world.engine.connecting.opening)
    for queue in list(world.engine.lanes["mx.b.test"].turns):
        world.engine.scheduler.park(queue, clock_us() + 10**12)
    world.until(lambda: len(world.taken) == 2)


def many_sites_share_a_small_total() -> None:
    """Two connections in all for a hundred sites: what rests makes room for who waits, in turn, and each lease that
    becomes free is offered to the next in line only: the work does not grow with the number of those who wait."""
    sites = 100
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = World(delivery=DeliverySettings(connections=2), limits=limits)
        gevent.spawn(listen, world, limits)
        kicks = Counter[str]()
        kick = world.engine.connecting.kick
        world.engine.connecting.kick = lambda lane: kicks.update([lane.name]) or kick(lane)
        for number in range(sites):
            world.make(domain=f"d{number}.test")
        most = 0
        while not world.drained():
            gevent.sleep(0.001)
            most = max(most, len(world.engine.connections))
        assert (most, world.shelf.told("delivered")) == (2, sites)
        assert kicks.total() < 10 * sites, kicks.total()


def nobody_looks_while_all_wait_for_a_lease() -> None:
    """Mail of many sites waits for a lease of a limit over all of them, which calls them when there is one: none of
    them looks now and then, or that work would grow with their number. Whoever waits for a lease of its own does look,
    as a receiver may take more without a word."""
    full = Unlimited()
    full.lacking = connecting.TOTAL
    world = World(pause=60, limits=full)
    for number in range(50):
        world.make(domain=f"d{number}.test")
    lanes = world.engine.lanes
    world.until(lambda: len(lanes) == 50 and all(path.waiting_for for path in world.engine.paths.values()))
    assert not any(lane.stalled for lane in lanes.values())
    full.lacking = "mx.own.test"
    world.make(domain="own.test")
    world.until(lambda: "mx.own.test" in lanes and lanes["mx.own.test"].stalled)
    full.lacking = None
    world.engine.connecting.nudged([connecting.TOTAL])
    world.until(lambda: world.shelf.told("delivered") == 51)


def a_lease_of_a_tenant_costs_no_look_at_connections() -> None:
    """Messages of a tenant with a bound on those in flight are granted one by one, between workers by a nudge for each:
    however many connections there are, none of them is looked at."""

    class Untouchable:
        @property
        def leases(self) -> list[str]:
            raise AssertionError("it was looked at")

    world = World()
    world.engine.connections.add(Untouchable())
    world.engine.connecting._resting[Untouchable()] = None
    nudged = []
    world.engine.pacing.nudged = nudged.append
    world.engine.connecting.nudged(["tenant:acme"])
    assert nudged == ["tenant:acme"]


def a_lease_that_others_want_costs_a_look_at_those_who_have_one() -> None:
    """However many connections rest: of a limit over several paths those alone are asked that hold a lease of it."""

    class Untouchable:
        @property
        def leases(self) -> list[str]:
            raise AssertionError("it was looked at")

    class Resting:
        leases = ("mx", "source:one")

        def __init__(self, path: object) -> None:
            self.path = path

    world = World()
    connecting = world.engine.connecting
    world.engine.connections.add(Untouchable())
    connecting._resting[Untouchable()] = None
    path = SimpleNamespace(name="mx", leases=[("mx", 9), ("source:one", 5)])
    mine = Resting(path)
    connecting._holders.opened(mine)
    connecting._holders.rests(mine)
    asked = []
    connecting._end_rest = lambda name, limit, resting: asked.append((name, limit, list(resting)))
    connecting.nudged(["source:other", "source:one"])
    assert asked == [("source:one", 5, [mine])]
    assert connecting._contended == {"source:one"}


def a_hold_has_one_timer() -> None:
    """However often the state of something that is held changes, its end is waited for once; and it does end."""
    world = World()
    holds, hub = world.engine.holds, world.engine.hub
    timers: list[Any] = []
    later = hub.later
    hub.later = lambda *args: timers.append(later(*args)) or timers[-1]
    for _ in range(20):
        holds.limit("mx.d.test", "rate", 5.0, 3600, "test", "it wants it so")
    gevent.sleep(0)
    assert (len(timers), sum(not timer.dead for timer in timers)) == (20, 1)
    holds.suspend("source:", 0.3, "test", "for a moment")
    assert "source:" in holds._held
    world.until(lambda: "source:" not in holds._held)
    assert holds._timers.keys() == {"mx.d.test"}


def room_for_more_is_used_at_once() -> None:
    """A reload lets a process have more connections: those who wait for a place are called."""
    world = World(pause=60)
    world.answering.clear()
    room = world.engine.connecting.room
    room.most = 1
    for number in range(5):
        world.make(domain=f"d{number}.test")
    world.until(lambda: world.open == 1 and room.is_awaited)
    room.most = 5
    world.engine.connecting.fill_room()
    assert len(world.engine.connections) == 5


def a_limit_over_a_provider_holds_over_its_sites() -> None:
    """Two connections to all sites of a provider, another two from each source: what rests makes room for other sites
    at once, a site of nobody does not wait, and the reason of waiting names the limit."""
    sites = 60
    rules = ShapingRules(
        default=DefaultLayer.of(idle=Duration(3600)),
        providers={"big": ProviderLayer.of(total_connections=2), "other": ProviderLayer.of(source_connections=2)})
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = World(shaping=rules, limits=limits)
        world.providers = {**{f"b{number}.test": "big" for number in range(sites)},
                           **{f"o{number}.test": "other" for number in range(sites)}}
        gevent.spawn(listen, world, limits)
        for number in range(sites):
            for kind in ("b", "o"):
                world.make(domain=f"{kind}{number}.test")
        world.make(domain="alone.test")
        world.until(lambda: world.shelf.told("delivered") >= 3)
        waiting = {path.waiting_for for path in world.engine.paths.values()}
        assert waiting <= {"", "provider:big", "source:>provider:other"}, waiting
        held = next(path.name for path in world.engine.paths.values() if path.waiting_for == "provider:big")
        reason = standing(world.engine, 0, held.removeprefix("mx."), 1)[1]
        assert reason == "limit of 2 connections in all to provider:big is reached, over all workers", reason
        most = Counter[str]()
        while not world.drained():
            gevent.sleep(0.001)
            for kind in ("mx.b", "mx.o"):
                now = sum(one.path.name.startswith(kind) for one in world.engine.connections)
                most[kind] = max(most[kind], now)
        assert most == {"mx.b": 2, "mx.o": 2}, most
        assert world.shelf.told("delivered") == 2 * sites + 1
        gevent.sleep(0.05)
        assert sum(one.idle and one.path.name.startswith("mx.b") for one in world.engine.connections) == 2
        world.providers["new.test"] = "big"
        world.make(domain="new.test")
        world.until(world.drained)


def recipients_of_a_connection() -> None:
    """With a limit on them a connection takes no more recipients, and a message is divided for it."""
    world = World(shaping=shaping(connections=1, recipients_per_connection=5))
    one = world.make(fresh=False)
    one.recipients = [Recipient(f"u{number}@d.test") for number in range(12)]
    world.engine.scheduler.add(0, one)
    world.until(world.drained)
    assert (world.connections, len(world.taken)) == (3, 3), (world.connections, world.taken)


def what_rests_makes_room() -> None:
    """All connections that may be are at rest, each to its site. Mail to another site gets the lease of the one that
    has rested longest, at once, and only that."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = World(delivery=DeliverySettings(connections=3), shaping=shaping(idle=Duration(3600)), limits=limits)
        gevent.spawn(listen, world, limits)
        for domain in ("a.test", "b.test", "c.test", "d.test"):
            world.make(domain=domain)
            world.until(lambda domain=domain: any(one.idle for one in world.engine.connections
                                                  if one.path.name == f"mx.{domain}"))
        assert sorted(world.engine.paths) == ["mx.b.test", "mx.c.test", "mx.d.test"]
        assert len(world.engine.connections) == 3


def a_connection_counts_until_the_host_has_ended_it() -> None:
    """One connection at once is one as the host counts, also while it takes its time to say good-bye: the next one is
    opened when the host has closed."""
    world = World(shaping=shaping(connections=1, messages_per_connection=1))
    world.lingers_s = 0.05
    for _ in range(5):
        world.make()
    world.until(world.drained)
    assert (world.connections, world.most_open) == (5, 1)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
