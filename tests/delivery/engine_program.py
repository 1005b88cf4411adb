"""Runs one scenario of a real engine among hosts, limits and bugs, in a gevent process of its own (`world`).

    python -m tests.delivery.engine_program NAME

Prints nothing and ends with 0 when the rule held.
"""

from tests.delivery.world import CONTENT, FOREVER, HANGS_S, Unlimited, World, clock_us, listen, shaping  # noqa: I001 - patches first

import logging
import re
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
from mta.delivery.pathreasons import of_path
from mta.delivery.routing import Route, RouteFailure
from mta.delivery.settle import Verdict
from mta.queue.orders import Order, Orders
from mta.queue.records import Delivery, Message, Recipient


def a_bug_while_opening() -> None:
    """An exception on the way to a session pauses the path; it is not tried again and again at once."""
    world = World(pause=60)
    world.addresses_found = None
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
    connection.Connection._write = write
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
        return lambda: hand.take(Orders(2))

    def end_connection(world: World) -> Callable[[], None]:
        [one] = world.engine.paths["mx.d.test"].connections
        one.stopping = True
        return lambda: None

    controls.SETTLE_S = 0.0
    for happens in (suspend_path, suspend_domain, pause_queue, end_connection):
        world = World(shaping=shaping(connections=1))
        world.make(domain="other.test")
        world.until(world.drained)
        reading, read = gevent.event.Event(), gevent.event.Event()

        def slowly(store: Any, message: Message, reading: Any = reading, read: Any = read) -> bytes:
            reading.set()
            read.wait(HANGS_S)
            return CONTENT

        world.engine.read_body = slowly
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


def what_is_rerouted_by_itself() -> None:
    """A delivery that an order has go by another pool is written into the queue of that, untried, when its turn comes;
    with what its attempt came to when that makes it match. At the end of the order it goes by its own pool from there.
    """
    world = World()
    hand = world.engine.controls

    def reroute(number: int, expression: str) -> None:
        hand.take(Orders(number, (Order(number, "reroute", "ops", world.clock_us(), expression, pool="other"),)))

    def queues() -> dict[tuple[int, int], str]:
        return {key: one.queue for key, one in world.shelf.stored.items()}

    reroute(1, "age>1h")
    old, _ = world.make(age_s=7200), world.make()
    world.until(lambda: queues() == {old.key: "d.test//1"})
    assert (len(world.taken), world.shelf.stored[old.key].attempts) == (1, 0)

    reroute(2, "attempts>0")
    world.answers[b"RCPT"] = b"451 4.3.0 later"
    tried = world.make()
    world.until(lambda: queues() == {old.key: "d.test//1", tried.key: "d.test//2"})
    world.answers.clear()
    assert (world.shelf.told("deferred"), len(world.taken)) == (1, 1)
    world.until(lambda: world.shelf.stored[tried.key].due_us <= world.clock_us())
    world.engine.scheduler._wake(0, "d.test//2", 0)
    world.until(lambda: world.engine.paths.get("?/other") is not None)  # there is no such pool here
    assert len(world.taken) == 1

    hand.take(Orders(3))
    for name in queues().values():
        world.engine.scheduler._wake(0, name, 0)
    world.until(world.drained)
    assert (len(world.taken), world.shelf.told("delivered")) == (3, 3)


def a_bug_in_beginning() -> None:
    """An exception after a delivery was taken from its queue makes that one wait, and is logged; no attempt is counted,
    nothing stays in flight or counted for its tenant, and the others go over the same connection."""
    dispatch.PUT_OFF_S = 0.1
    said: list[str] = []
    dispatch.log.addHandler(listening := logging.Handler())
    listening.emit = lambda record: said.append(record.getMessage())
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

    world.settler.settle = settle
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
        def is_at_hand(self, _domain: str) -> bool:
            return False

        def route(self, domain: str) -> RouteFailure:
            asked.append(domain)
            return RouteFailure(False, 451, "4.4.3", "no answer", time.monotonic() + 30)

    world.engine.router = Failing()
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

        def is_at_hand(self, _domain: str) -> bool:
            return False

        def route(self, domain: str) -> RouteFailure:
            self.asked += 1
            if self.asked > 1:
                answers.wait()
            return known

    world.engine.router = failing = Failing()
    world.make()
    world.until(lambda: failing.asked == 2)
    assert standing(world.engine, 0, "d.test", 1)[:2] == (
        "ready", "its route is being looked up again: MX of d.test: SERVFAIL")
    answers.set()


def what_is_told_at_the_moment_a_pause_ends() -> None:
    """A pause is over, and the mail that waited for that has not come to its lane yet: what failed before is still
    told, of a host and of a route."""

    def told(world: World) -> str:
        world.make()
        world.until(lambda: world.shelf.told("suspended"))
        [path] = world.engine.paths.values()
        end_us = path.suspended_until_us
        world.engine.clock_us = lambda: end_us + 1
        state, reason = standing(world.engine, 0, "d.test", 1)[:2]
        assert state == "ready"
        assert [one.kind for one in of_path(world.engine, path)] == ["turn"]  # for nobody's mail nothing is tried
        return reason

    class Failing:
        def is_at_hand(self, _domain: str) -> bool:
            return False

        def route(self, _domain: str) -> RouteFailure:
            return RouteFailure(False, 451, "4.4.3", "MX of d.test: SERVFAIL", 0.0)

    dead, lost = World(pause=60), World(pause=60)
    dead.server.stop()
    lost.engine.router = Failing()
    assert told(dead).startswith("mx.d.test is tried again now, after: 4.4.1 mx.d.test")
    assert told(lost) == "its route is being looked up again, after: MX of d.test: SERVFAIL"


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
    asked, answers = Event(), Event()

    class Slow:
        def is_at_hand(self, _domain: str) -> bool:
            return False

        def route(self, domain: str) -> Route:
            asked.set()
            answers.wait()
            return Route("wrong", (), FOREVER, False)

    world.engine.router = Slow()
    world.make()
    assert asked.wait(HANGS_S)
    world.engine.configure(world.config, world)
    answers.set()
    world.until(world.drained)
    assert len(world.taken) == 1


def nothing_is_begun_while_outcomes_cannot_be_written() -> None:
    """When the disk is so far behind that outcomes pile up, open connections get no more mail and no new one is opened;
    when it has caught up all goes on by itself."""
    connecting.STALL_S = 0.05
    world = World(shaping=shaping(connections=2))
    world.answering.clear()
    for _ in range(3):
        world.make()
    world.until(lambda: sum(connection.messages for connection in world.engine.connections) == 2)  # both are at work
    world.shelf.choked = True
    world.answering.set()
    world.until(lambda: not world.engine.connections)
    assert (len(world.taken), world.engine.scheduler.deliveries) == (2, 1)
    gevent.sleep(0.2)
    assert world.connections == 2
    world.shelf.choked = False
    world.until(world.drained)
    assert len(world.taken) == 3


def no_message_ends_without_its_mark() -> None:
    """A message that cannot be marked as on its way is not ended: the connection is cut, the message goes later, and
    none of it is an attempt, or a failure of the site."""
    world = World(shaping=shaping(connections=1))
    world.shelf.unmarked = 2
    world.make()
    world.until(world.drained)
    assert (world.connections, len(world.taken)) == (3, 1)
    assert [(event["event"], event.get("attempt")) for event in world.shelf.events] == [("delivered", 1)]
    assert world.engine.paths["mx.d.test"].failures == 0


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
    world.engine.ways._forget_paths = lambda: looks.append(len(world.engine.paths)) or forget()
    world.engine.ways._forget_above = 100
    for number in range(1000):
        world.engine.ways._named(f"idle{number}", source, "d.test")
        assert len(world.engine.paths) <= 100
    assert len(looks) <= 1000 / 10 + 1
    looks.clear()
    for number in range(1000):
        world.engine.ways._named(f"busy{number}", source, "d.test").connections.add(object())
    assert len(looks) <= 1000 / 10 + 1
    assert sum(name.startswith("busy") for name in world.engine.paths) == 1000


def why_mail_waits() -> None:
    """A queue that does not move says why: its path is suspended, the disk is full, its path waits for a lease."""
    world = World(pause=60)
    shelf, scheduler = world.shelf, world.engine.scheduler
    world.server.stop()
    world.make()
    world.until(lambda: shelf.told("suspended"))
    state, reason, in_flight, *_ = standing(world.engine, 0, "d.test", 1)
    assert (state, in_flight) == ("suspended", 0)
    assert re.match(r"mx\.d\.test is suspended for another 5\d s: 4\.4\.1 mx\.d\.test", reason), reason
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
