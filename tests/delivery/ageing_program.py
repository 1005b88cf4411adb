"""Runs one scenario of mail that is late, or whose time is over, in a gevent process of its own (`world`).

    python -m tests.delivery.ageing_program NAME

Prints nothing and ends with 0 when the rule held.
"""

from tests.delivery.world import Shelf, World, shaping  # noqa: I001 - patches first

import sys
from collections import Counter
from copy import deepcopy
from typing import Any

import gevent
import gevent.event
import gevent.select
from gevent.server import StreamServer

from mta.config.schema import Bounces, Config, ShapingRules
from mta.config.shaping import DefaultLayer, DomainLayer, ProviderLayer
from mta.config.units import Duration
from mta.delivery import ageing, deadlines, dispatch, engine
from mta.delivery.settle import Verdict
from mta.queue.records import Delivery, Wishes
from mta.queue.store import Transaction


def expired_once() -> None:
    """Old mail that the sweep and the queue come upon at the same time ends once, with one notification."""
    world = World(expires=Duration(100))
    for _ in range(5):
        world.make(age_s=200, fresh=False)
    world.engine.ageing.give_up(0)
    gevent.sleep(0.005)
    world.engine.scheduler._wake(0, "d.test", 0)
    gevent.sleep(0.005)
    world.engine.ageing.give_up(0)
    world.until(lambda: not [one for one in world.shelf.stored.values() if one.queue == "d.test"])
    world.until(lambda: not world.engine.scheduler.queues.get((0, "d.test")))
    assert (world.shelf.told("expired"), world.shelf.told("notified")) == (5, 5), world.shelf.events


def expiry_by_destination() -> None:
    """Mail leaves at the age that its domain or provider has; each message is looked at once for each shorter age, and
    anew after a reload. What nobody knows the provider of waits for the longest age there is."""
    ageing.BATCH = 2
    quick = ProviderLayer.of(expires=Duration(100))
    slow = ProviderLayer.of(expires=Duration(1000))
    rules = ShapingRules(default=DefaultLayer.of(expires=Duration(500)), providers={"quick": quick, "slow": slow},
                         domains={"short.test": DomainLayer.of(expires=Duration(50))})
    world = World(shaping=rules, expires=Duration(2000))
    world.settler.provider_of = {"q.test": "quick", "s.test": "slow", "n.test": ""}.get
    shelf = world.shelf
    for age_s in (60, 200, 600, 1500, 2500):
        for domain in ("short.test", "q.test", "s.test", "n.test", "unknown.test"):
            world.make(age_s=age_s, domain=domain, fresh=False)

    def left() -> dict[str, int]:
        return dict(Counter(one.domain for one in shelf.stored.values()))

    def sweep(expected: dict[str, int]) -> None:
        world.engine.ageing.give_up(0)
        world.until(lambda: left() == expected)
        gevent.sleep(0.05)
        assert left() == expected

    sweep({"q.test": 1, "s.test": 3, "n.test": 2, "unknown.test": 3})
    read = shelf.read
    sweep({"q.test": 1, "s.test": 3, "n.test": 2, "unknown.test": 3})
    assert shelf.read == read
    world.config = Config(hostname="mta.test", shaping=ShapingRules(
        default=DefaultLayer.of(expires=Duration(100))), expires=Duration(2000))
    world.settler.config = world.engine.config = world.config
    world.settler.provider_of = {"q.test": "", "s.test": "", "n.test": "", "unknown.test": ""}.get
    sweep({"q.test": 1, "s.test": 1, "n.test": 1, "unknown.test": 1})


def late_mail_of_a_dead_site() -> None:
    """Senders are warned once when their mail is late although nothing tries it, with what is known of the site. Nobody
    is warned who did not want it. Each message is read once for it, also when the worker is started anew in between."""
    ageing.BATCH = 2
    world = World(pause=3600, bounces=Bounces(delay_warning=Duration(100)))
    shelf = world.shelf
    world.server.stop()
    world.make()
    world.until(lambda: shelf.told("suspended") and not world.engine.connections)
    for _ in range(5):
        world.make(age_s=200)
    world.make(sender="", age_s=200)
    warn(world)
    assert shelf.told("notified") == 5, shelf.events
    assert (shelf.read, sum(one.warned for one in shelf.stored.values())) == (6, 5)
    assert world.engine.scheduler.deliveries == 0
    content = shelf.notices[-1][0].content or b""
    assert b"Connection refused" in content
    assert b"Action: delayed" in content
    warn(world)
    assert (shelf.read, shelf.told("notified")) == (6, 5)

    again = World(pause=3600, bounces=world.config.bounces, shelf=shelf)
    again.server.stop()
    again.number = world.number
    again.make(age_s=200, fresh=False)
    warn(again)
    assert (shelf.read, shelf.told("notified")) == (7, 6)


def warn(world: World) -> None:
    """One look at what is late."""
    world.engine.ageing.warn(0)
    world.until(lambda: not world.engine.ageing._warning)


def late_mail_whose_read_has_no_answer() -> None:
    """A read that breaks ends the warnings for a while only."""
    world = World(pause=3600, bounces=Bounces(delay_warning=Duration(100)))
    world.server.stop()
    world.make()
    world.until(lambda: world.shelf.told("suspended") and not world.engine.connections)
    world.make(age_s=200)
    real, asked = world.shelf.arrived_between, []
    world.shelf.arrived_between = lambda *args: asked.append(args)
    for _ in range(3):
        world.engine.ageing.warn(0)
        gevent.sleep(0.05)
    assert len(asked) == 1
    world.shelf.arrived_between = real
    ageing.LOST_S = 0.0
    warn(world)
    assert world.shelf.told("notified") == 1


def late_mail_in_memory() -> None:
    """What waits in memory for its turn is warned of as well, and keeps its place."""
    world = World(bounces=Bounces(delay_warning=Duration(100)), shaping=shaping(connections=1))
    world.answering.clear()
    for _ in range(3):
        world.make(age_s=200)
    queue = world.engine.scheduler.queues[(0, "d.test")]
    world.until(lambda: queue.in_flight)
    warn(world)
    in_flight = len(queue.in_flight)
    assert world.shelf.told("notified") == 3 - in_flight
    world.answering.set()
    world.until(lambda: world.drained() and world.shelf.told("delivered") == 6 - in_flight)
    delivered = [event for event in world.shelf.events if event["event"] == "delivered" and event["sender"]]
    assert [event["attempt"] for event in delivered] == [1, 1, 1]


def late_mail_in_flight_when_its_site_fails() -> None:
    """An attempt without a verdict is the last for a while: if the mail is late by then its sender is told at once."""
    world = World(pause=3600, bounces=Bounces(delay_warning=Duration(100)))
    world.hates = b"poison"
    world.make("poison@x.test", age_s=200)
    world.until(lambda: world.shelf.told("suspended") and not world.engine.connections)
    assert world.shelf.told("notified") == 1
    assert [one.warned for one in world.shelf.stored.values()] == [True]


def a_clock_set_forward_warns_of_nothing() -> None:
    """Mail that only seems late is not warned of, and not passed over, either: it is looked at until it is late."""
    world = World(pause=3600, bounces=Bounces(delay_warning=Duration(1000)))
    world.server.stop()
    world.make(age_s=10)
    world.until(lambda: world.shelf.told("suspended") and not world.engine.connections)
    warn(world)
    assert world.shelf.read == 0
    world.clock_off_us = 2_000 * 1_000_000
    world.watch.look()
    for _ in range(2):
        warn(world)
    assert (world.shelf.read, world.shelf.told("notified"), world.shelf.marks) == (2, 0, {})


def a_clock_that_is_set() -> None:
    """Forward: what waits is due, nothing expires, no warning is sent. Back: no pause of a path and no retry is longer
    for it than it would have been, also when both happen in the pause."""
    day_s = 86_400
    engine.LOOK_S = 0.02
    world = World(pause=0.3, expires=Duration(day_s), bounces=Bounces(delay_warning=Duration(3600)))
    world.server.stop()
    world.make()
    world.until(lambda: world.shelf.told("suspended"))
    late = world.make(fresh=False)
    late.due_us = world.shelf.stored[late.key].due_us = world.clock_us() + 3600 * 1_000_000
    for step_s in (2 * day_s, -2 * day_s, -2 * day_s):
        world.clock_off_us += step_s * 1_000_000
        world.make()
        gevent.sleep(0.1)
    StreamServer(("127.0.0.1", world.port), world.serve).start()
    world.until(world.drained)
    assert (world.shelf.told("delivered"), world.shelf.told("expired")) == (5, 0)
    assert world.shelf.told("notified") == 0


def timed(world: World, by_s: float, mode: str, sender: str = "a@x.test", domain: str = "d.test") -> Delivery:
    """A message that is to be delivered within `by_s`, as the door makes it."""
    one = world.make(sender, fresh=False, domain=domain)
    one.message.wishes = Wishes(by_us=world.clock_us() + int(by_s * 1_000_000), by_mode=mode)
    world.shelf.stored[one.key] = deepcopy(one)
    world.shelf.marks.update(deadlines.mark(one.message))
    world.engine.deadlines.accepted(0, one.message)
    world.engine.scheduler.add(0, one)
    return one


def times_that_are_over() -> None:
    """Mode R: what waits for its turn at its time is returned then. What is in flight is not: it ends by itself, and if
    it does not it is returned as well. Each once; and nothing is left of it."""
    deadlines.AGAIN_S = 0.05
    world = World(shaping=shaping(connections=1, pipelining=False))
    world.answers[b"EHLO"] = b"250-mx.d.test\r\n250 DELIVERBY"
    world.answering.clear()
    first = timed(world, 3.0, "R", "s0@x.test")
    world.until(lambda: world.engine.scheduler.queues[(0, "d.test")].in_flight)
    for number in (1, 2):
        timed(world, 0.5, "R", f"s{number}@x.test")
    world.until(lambda: world.shelf.told("expired") == 2)
    world.until(lambda: world.clock_us() > first.message.wishes.by_us + 100_000)
    world.answering.set()
    # The notifications are delivered, too.
    world.until(lambda: [event["sender"] for event in world.shelf.events
                         if event["event"] == "delivered" and event["sender"]] == ["s0@x.test"])
    world.until(lambda: not world.shelf.marks)
    world.until(lambda: not world.shelf.stored)
    world.answering.clear()
    world.answers[b"RCPT"] = b"451 later"
    last = timed(world, 3.0, "R", "s3@x.test")
    world.until(lambda: world.clock_us() > last.message.wishes.by_us + 100_000)
    assert (world.shelf.told("deferred"), world.shelf.told("expired")) == (0, 2)
    world.answering.set()
    world.until(lambda: world.shelf.told("expired") == 3 and not world.shelf.marks)
    assert world.shelf.told("deferred")


def a_time_behind_a_site_that_stands_still() -> None:
    """What left memory is found at its time: returned (R), or told of once and kept (N). One whose time was over when
    it came is nobody's concern, and a clock that is set forward makes nothing late."""
    deadlines.AGAIN_S = engine.LOOK_S = 0.05
    world = World(pause=3600)
    world.server.stop()
    world.make()
    world.until(lambda: world.shelf.told("suspended"))
    timed(world, 0.4, "R")
    timed(world, 0.4, "N")
    timed(world, -1, "N")
    timed(world, 3600, "R")
    assert len(world.shelf.marks) == 3
    world.until(lambda: world.shelf.told("expired") == 1 and world.shelf.told("notified") == 2)
    world.clock_off_us += 7200 * 1_000_000
    gevent.sleep(0.3)
    assert (world.shelf.told("expired"), world.shelf.told("notified")) == (1, 2)
    assert len(world.shelf.marks) == 1
    assert sorted(one.warned for one in world.shelf.stored.values()) == [False, False, False, True]


def a_time_that_is_over_while_the_disk_is_full() -> None:
    """The mark of a message that was delivered in time cannot be taken away yet: nobody asks for it again until it is
    gone."""
    full: list[tuple[Transaction, Any]] = []

    class Full(Shelf):
        looks = 0

        def submit(self, tx: Transaction, done: Any = None) -> None:
            if tx.unmarks:
                full.append((tx, done))
            else:
                super().submit(tx, done)

        def list_marks(self, after: bytes, limit: int, done: Any) -> None:
            self.looks += 1
            super().list_marks(after, limit, done)

    shelf = Full()
    world = World(shelf=shelf)
    timed(world, 3.0, "R")
    world.until(lambda: shelf.told("delivered") == 1)
    world.until(lambda: full)
    looks = shelf.looks
    gevent.sleep(0.3)
    assert (len(full), shelf.looks) == (1, looks), (len(full), shelf.looks)
    for tx, done in full:
        Shelf.submit(shelf, tx, done)
    world.until(lambda: shelf.looks > looks)
    assert not shelf.marks


def a_time_whose_look_goes_wrong() -> None:
    """A bug in returning mail whose time is over, and a read of the index that has no answer: it is returned all the
    same, a little later, and its mark stands until then."""
    deadlines.AGAIN_S = dispatch.PUT_OFF_S = 0.05
    deadlines.LOST_S = 1.0
    world = World(pause=3600)
    world.server.stop()
    world.make()
    world.until(lambda: world.shelf.told("suspended"))
    unanswered: list[object] = []
    for name in ("list_marks", "sweep_message"):
        real = getattr(world.shelf, name)

        def ask(*args: Any, name: str = name, real: Any = real) -> None:
            if name in unanswered:
                real(*args)
            else:
                unanswered.append(name)

        setattr(world.shelf, name, ask)
    expires = world.engine.ageing.expire
    failed: list[Delivery] = []

    def expire(delivery: Delivery) -> Verdict:
        assert len(world.shelf.marks) == 1
        if not failed:
            failed.append(delivery)
            raise RuntimeError("bug")
        return expires(delivery)

    world.engine.ageing.expire = expire
    timed(world, 0.2, "R")
    world.until(lambda: world.shelf.told("expired") == 1 and not world.shelf.marks)
    assert failed
    assert len(unanswered) == 2


if __name__ == "__main__":
    globals()[sys.argv[1]]()
