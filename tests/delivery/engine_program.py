"""Runs one scenario of a real engine among hosts, limits and bugs, in a gevent process of its own (`world`).

    python -m tests.delivery.engine_program NAME

Prints nothing and ends with 0 when the rule held.
"""

from tests.delivery.world import CONTENT, FOREVER, HANGS_S, Unlimited, World, clock_us, listen, shaping  # noqa: I001 - patches first

import errno
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import gevent.select
from gevent.event import Event

from mta.config.loader import loads
from mta.config.schema import ShapingRules
from mta.config.schema import Delivery as DeliverySettings
from mta.config.shaping import DefaultLayer, ProviderLayer
from mta.config.units import Duration
from mta.delivery import (
    connecting,
    connection,
    controls,
    dispatch,
    ways,
    wire,
)
from mta.delivery.explain import standing, why_not_now
from mta.delivery.limits import Limits
from mta.delivery.routing import Route, RouteFailure
from mta.delivery.settle import Verdict
from mta.queue.orders import Order, Orders
from mta.queue.records import Delivery, Message, Recipient


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
    listening.emit = lambda record: said.append(record.getMessage())  # type: ignore
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

    world.engine.connecting._try_more = looks  # type: ignore[method-assign]

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


def a_bug_while_opening() -> None:
    """An exception on the way to a session pauses the path; it is not tried again and again at once."""
    world = World(pause=60)
    world.addresses_found = None  # type: ignore
    world.make()
    world.until(lambda: world.shelf.told("suspended"))
    gevent.sleep(0.05)
    assert world.asked["addresses"] == 1


def lost_before_a_cold_delivery() -> None:
    """A connection that breaks before content was read from disk gives the delivery back."""
    world = World(shaping=shaping(connections=1))
    real = connection.Connection._write
    broken: list[object] = []

    def write(self: Any) -> None:
        real(self)
        in_hand = sum(len(queue.in_flight) for queue in world.engine.scheduler.queues.values())
        if not broken and self.completed and in_hand > len(self.jobs):
            broken.append(self)
            raise wire.WireError("connection lost")

    world.make(fresh=False)
    world.make(fresh=False)
    connection.Connection._write = write  # type: ignore
    world.engine.scheduler.checkpoint(0, [("d.test", 0)])
    world.engine.scheduler._wake(0, "d.test", 0)
    world.until(world.drained)
    assert broken


def content_that_comes_late_from_disk() -> None:
    """What is decided while the disk is waited for counts: a message of a path that was suspended, of a queue that was
    paused or whose domain is suspended, or on a connection that is to end, goes back untouched and counts no attempt.
    When it may go it goes."""
    def suspend_path(world: World) -> Callable[[], None]:
        world.engine.holds.suspend("mx.d.test", 3600, "operator", "told meanwhile")
        return lambda: world.engine.holds.lift("mx.d.test", "operator")

    def suspend_domain(world: World) -> Callable[[], None]:
        world.engine.holds.suspend("domain:d.test", 3600, "operator", "told meanwhile")
        return lambda: world.engine.holds.lift("domain:d.test", "operator")

    def pause_queue(world: World) -> Callable[[], None]:
        hand = world.engine.controls
        hand.take(Orders(1, (Order(1, "pause", "ops", world.clock_us(), "domain=d.test"),)))
        return lambda: hand.take(Orders(2))  # type: ignore[return-value]

    def end_connection(world: World) -> Callable[[], None]:
        [one] = world.engine.paths["mx.d.test"].connections
        one.stopping = True
        return lambda: None

    controls.SETTLE_S = 0.0  # type: ignore[misc]
    for happens in (suspend_path, suspend_domain, pause_queue, end_connection):
        world = World(shaping=shaping(connections=1))
        world.make(domain="other.test")
        world.until(world.drained)
        reading, read = gevent.event.Event(), gevent.event.Event()

        def slowly(store: Any, message: Message, reading: Any = reading, read: Any = read) -> bytes:
            reading.set()
            read.wait(HANGS_S)
            return CONTENT

        world.engine.read_body = slowly  # type: ignore[assignment]
        taken = len(world.taken)
        world.make(fresh=False)
        world.engine.scheduler._wake(0, "d.test", 0)
        assert reading.wait(HANGS_S)
        lift = happens(world)
        read.set()
        if happens is not end_connection:
            world.until(lambda world=world: not world.engine.scheduler.queues)
            assert len(world.taken) == taken, happens.__name__
            assert world.shelf.told("delivered") == 1
        lift()
        world.until(world.drained)
        assert len(world.taken) == taken + 1
        assert [event["attempt"] for event in world.shelf.events if event["event"] == "delivered"] == [1, 1]
        if happens is end_connection:
            assert world.connections == 3, world.connections  # of which the second carried nothing


def a_bug_in_beginning() -> None:
    """An exception after a delivery was taken from its queue makes that one wait, and is logged; no attempt is counted,
    nothing stays in flight or counted for its tenant, and the others go over the same connection."""
    dispatch.PUT_OFF_S = 0.1
    said: list[str] = []
    dispatch.log.addHandler(listening := logging.Handler())
    listening.emit = lambda record: said.append(record.getMessage())  # type: ignore
    for place in ("expired", "transaction_for", "_goes_elsewhere"):
        world = World(shaping=shaping(connections=1))
        failed: list[Delivery] = []
        owner: Any = {"expired": world.settler, "transaction_for": dispatch,
                      "_goes_elsewhere": world.engine.dispatch}[place]
        real = getattr(owner, place)

        def fails(*args: Any, failed: Any = failed, real: Any = real) -> Any:
            if not failed:
                failed.append(args)
                raise RuntimeError("bug")
            return real(*args)

        setattr(owner, place, fails)
        said.clear()
        for _ in range(3):
            one = world.make(fresh=False)
            if place == "_goes_elsewhere":
                one.avoid = world.shelf.stored[one.key].avoid = ("host:mx.elsewhere.test",)
            world.engine.scheduler.add(0, one)
        world.until(world.drained)
        setattr(owner, place, real)
        assert [line.partition(":")[0] for line in said] == ["bug"], said
        assert len(world.taken) == 3
        assert world.connections <= 2, world.connections
        assert {event["attempt"] for event in world.shelf.events} == {1}


def a_bug_in_settling() -> None:
    """A delivery that cannot be settled waits and is read again; its connection goes on."""
    dispatch.PUT_OFF_S = 0.1
    world = World()
    real = world.settler.settle
    failed: list[Delivery] = []

    def settle(delivery: Delivery, *rest: Any) -> Verdict:
        if not failed:
            failed.append(delivery)
            delivery.recipients = []
            raise RuntimeError("bug")
        return real(delivery, *rest)

    world.settler.settle = settle  # type: ignore
    world.make()
    world.make()
    world.until(world.drained)
    assert world.shelf.told("delivered") == 2
    assert world.connections <= 2


def one_outage_is_one_failure() -> None:
    """However many connections a dead site ends, it is paused once, for the first pause."""
    world = World(pause=60)
    world.server.stop()
    for _ in range(50):
        world.make()
    world.until(lambda: world.shelf.told("suspended") and not world.engine.connections)
    assert world.shelf.told("suspended") == 1
    assert world.engine.paths["mx.d.test"].failures == 1


def a_poisonous_message() -> None:
    """One that makes the host hang up is deferred the third time, though the path paused in between."""
    world = World()
    world.hates = b"poison"
    world.make("poison@x.test")
    world.until(lambda: world.shelf.told("deferred"))
    assert (world.connections, world.shelf.told("suspended")) == (3, 2)


def a_failed_lookup_is_believed_as_long_as_it_is_remembered() -> None:
    """The path of a domain without a route pauses at least until the resolver would ask anew."""
    world = World()
    asked: list[str] = []

    class Failing:
        def route(self, domain: str) -> RouteFailure:
            asked.append(domain)
            return RouteFailure(False, 451, "4.4.3", "no answer", time.monotonic() + 30)

    world.engine.router = Failing()  # type: ignore
    world.make()
    world.until(lambda: world.shelf.told("suspended"))
    gevent.sleep(0.3)
    assert len(asked) == 1


def why_a_lookup_is_made_again() -> None:
    """While DNS is asked once more, what it said before is still told."""
    world = World()
    answers, known = Event(), RouteFailure(False, 451, "4.4.3", "MX of d.test: SERVFAIL", 0.0)

    class Failing:
        shortage = ""
        asked = 0

        def route(self, domain: str) -> RouteFailure:
            self.asked += 1
            if self.asked > 1:
                answers.wait()
            return known

    world.engine.router = failing = Failing()  # type: ignore
    world.make()
    world.until(lambda: failing.asked == 2)
    assert standing(world.engine, 0, "d.test", 1)[:2] == (
        "ready", "its route is being looked up again: MX of d.test: SERVFAIL")
    answers.set()


def a_host_that_trickles() -> None:
    """A deadline is for a whole reply: a host that sends it octet by octet cannot hold the connection longer."""
    world = World(pause=60, shaping=shaping(timeouts={"greeting": Duration(1)}))
    world.trickle_s = 0.4
    world.make()
    world.until(lambda: world.shelf.told("suspended"))
    assert "timeout while waiting for the greeting" in world.shelf.events[0]["text"]


def a_greeting_that_takes_longer_than_a_connection_lasts() -> None:
    """A connection carries a message, however old it was when the host had greeted: the next one would be as old."""
    world = World(pause=60, shaping=shaping(connection_age=Duration(0.05)))
    world.trickle_s = 0.01
    world.make()
    world.until(lambda: world.taken or world.connections > 3)
    assert (len(world.taken), world.connections) == (1, 1)


def a_host_that_is_slow_with_each_recipient() -> None:
    """Every reply has the time of its phase, however many are waited for."""
    world = World(pause=60, shaping=shaping(timeouts={"rcpt": Duration(4), "mail": Duration(4)}))
    world.slow_s = 0.8
    one = world.make(fresh=False)
    one.recipients = [Recipient(f"u{number}@d.test") for number in range(6)]
    world.engine.scheduler.add(0, one)
    world.until(world.drained)
    assert world.shelf.told("delivered") == 6


def a_reload_while_a_route_is_looked_up() -> None:
    """What the old rules said is not used after a reload."""
    world = World()
    asked: list[str] = []

    class Slow:
        def route(self, domain: str) -> Route:
            asked.append("old")
            gevent.sleep(0.1)
            return Route("wrong", (), FOREVER, False)

    world.engine.router = Slow()  # type: ignore
    world.make()
    gevent.sleep(0.02)
    assert asked
    world.engine.configure(world.config, world)  # type: ignore
    world.until(world.drained)
    assert len(world.taken) == 1


def nothing_is_begun_while_outcomes_cannot_be_written() -> None:
    """When the disk is so far behind that outcomes pile up, open connections get no more mail and no new one is opened;
    when it has caught up all goes on by itself."""
    connecting.STALL_S = 0.05
    world = World(shaping=shaping(connections=2))
    world.slow_s = 0.1
    for _ in range(3):
        world.make()
    world.until(lambda: world.connections == 2)
    world.shelf.choked = True
    world.until(lambda: not world.engine.connections)
    assert (len(world.taken), world.engine.scheduler.deliveries) == (2, 1)
    gevent.sleep(0.2)
    assert world.connections == 2
    world.shelf.choked = False
    world.until(world.drained)
    assert len(world.taken) == 3


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
        world.engine.connecting.kick = lambda lane: kicks.update([lane.name]) or kick(lane)  # type: ignore
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
    world.engine.connections.add(Untouchable())  # type: ignore
    world.engine.connecting._resting[Untouchable()] = None  # type: ignore
    nudged = []
    world.engine.pacing.nudged = nudged.append  # type: ignore
    world.engine.connecting.nudged(["tenant:acme"])
    assert nudged == ["tenant:acme"]


def a_hold_has_one_timer() -> None:
    """However often the state of something that is held changes, its end is waited for once; and it does end."""
    world = World()
    holds, hub = world.engine.holds, world.engine.hub
    timers: list[Any] = []
    later = hub.later
    hub.later = lambda *args: timers.append(later(*args)) or timers[-1]  # type: ignore
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
    world.lingers_s = world.slow_s = 0.5
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


def a_listed_address_stands_still_and_nothing_bounces() -> None:
    """A 550 to RCPT that means a listing: the mail waits, the path stands still for as long as the rule says, which is
    told once with the name of the rule, and no other mail is tried over it."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = World(limits=limits, rules=loads("hostname: mta.test").rules)
        gevent.spawn(listen, world, limits)
        world.answers[b"RCPT"] = b"550 5.7.1 Service unavailable; [192.0.2.1] blocked using zen.spamhaus.org"
        world.make()
        world.until(lambda: world.shelf.told("suspended"))
        world.make()
        world.make()
        gevent.sleep(0.2)
        assert world.connections == 1, world.connections
        kinds = Counter(event["event"] for event in world.shelf.events)
        assert kinds == {"deferred": 1, "suspended": 1, "alarm": 1}, kinds
        event = next(event for event in world.shelf.events if event["event"] == "deferred")
        assert (event["class"], event["rule"], event["failure"]) == ("blocklist", "listed", "recipient"), event
        path, = world.engine.paths.values()
        assert 3500e6 < path.suspended_until_us - clock_us() < 3601e6
        assert path.suspended_by == "rule listed"
        assert len(world.shelf.stored) == 3


def a_silent_close_after_some_messages_is_no_failure() -> None:
    """Yahoo hangs up after so many messages, without a word: the next connection takes the rest at once, no attempt is
    counted, however often one message meets it, and the path is not to blame."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = World(limits=limits, shaping=shaping(connections=1, pipelining=False),
                      rules=loads("hostname: mta.test").rules)
        world.providers["d.test"] = "yahoo"
        world.closes_after = 2
        gevent.spawn(listen, world, limits)
        for _ in range(9):
            world.make()
        world.until(world.drained)
        kinds = Counter(event["event"] for event in world.shelf.events)
        assert kinds == {"delivered": 9}, kinds
        assert {event["attempt"] for event in world.shelf.events} == {1}
        assert world.connections == 5, world.connections


def sites_that_failed_are_forgotten_in_time() -> None:
    """The memory of failed sites is bounded, and looking through it is rare also when all are busy."""
    ways.PATHS_KEPT = 100
    world = World(pause=3600)
    source = world.engine.sources.all[""]
    looks: list[int] = []
    forget = world.engine.ways._forget_paths
    world.engine.ways._forget_paths = lambda: looks.append(len(world.engine.paths)) or forget()  # type: ignore
    world.engine.ways._forget_above = 100
    for number in range(1000):
        world.engine.ways._named(f"idle{number}", source, "d.test")
        assert len(world.engine.paths) <= 100
    assert len(looks) <= 1000 / 10 + 1
    looks.clear()
    for number in range(1000):
        world.engine.ways._named(f"busy{number}", source, "d.test").connections.add(object())  # type: ignore
    assert len(looks) <= 1000 / 10 + 1
    assert sum(name.startswith("busy") for name in world.engine.paths) == 1000


def why_mail_waits() -> None:
    """A queue that does not move says why: its path is suspended, the disk is full, its path waits for a lease."""
    world = World(pause=60)
    shelf, scheduler = world.shelf, world.engine.scheduler
    world.server.stop()
    world.make()
    world.until(lambda: shelf.told("suspended"))
    state, reason, in_flight, _ = standing(world.engine, 0, "d.test", 1)
    assert (state, in_flight) == ("suspended", 0)
    assert reason.startswith("mx.d.test is suspended for another 59 s: 4.4.1 mx.d.test")
    assert why_not_now(world.engine, 0, "d.test") == reason
    world.until(lambda: not world.engine.connections)

    path = world.engine.paths["mx.d.test"]
    path.suspended_until_us = path.failures = 0
    shelf.problem = "no space left on the disk of the spool"
    assert standing(world.engine, 0, "d.test", 1)[:2] == ("ready", shelf.problem)
    assert standing(world.engine, 0, "d.test", clock_us() + 10**9)[:2] == ("waiting", "for its retry time")
    shelf.problem = None

    Unlimited.lacking = connecting.TOTAL
    scheduler._parked.clear()
    world.make()
    assert path.has_work
    assert standing(world.engine, 0, "d.test", 1)[:2] == ("ready", "limit of 5000 connections in all is reached")
    assert standing(world.engine, 0, "other.test", 1)[:2] == ("ready", "it is being read from disk")
    scheduler.starved = True
    assert standing(world.engine, 0, "other.test", 1)[:2] == ("ready", "waits for room in memory")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
