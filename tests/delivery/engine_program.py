"""Runs one scenario of a real engine in a gevent process of its own: loopback hosts, played store, router and limits.

    python -m tests.delivery.engine_program NAME

Prints nothing and ends with 0 when the rule held.
"""

from gevent import monkey

monkey.patch_all()

import errno  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable  # noqa: E402
from copy import deepcopy  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import gevent.event  # noqa: E402
import gevent.select  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.server import StreamServer  # noqa: E402

from mta.config.loader import loads  # noqa: E402
from mta.config.schema import Bounces, Config, Retry, ShapingRules  # noqa: E402
from mta.config.schema import Delivery as DeliverySettings  # noqa: E402
from mta.config.shaping import DefaultLayer, DomainLayer, ProviderLayer, Shaping  # noqa: E402
from mta.config.units import Duration  # noqa: E402
from mta.delivery import (  # noqa: E402
    ageing,
    connecting,
    connection,
    controls,
    deadlines,
    dispatch,
    engine,
    ways,
    wire,
)
from mta.delivery.clock import ClockWatch  # noqa: E402
from mta.delivery.explain import standing, why_not_now  # noqa: E402
from mta.delivery.leases import Refusal  # noqa: E402
from mta.delivery.limits import Limits  # noqa: E402
from mta.delivery.pathstate import PathState  # noqa: E402
from mta.delivery.routing import Addresses, Host, Route, RouteFailure  # noqa: E402
from mta.delivery.settle import Settler, Verdict  # noqa: E402
from mta.delivery.tally import Tally  # noqa: E402
from mta.queue.orders import Order, Orders  # noqa: E402
from mta.queue.records import Delivery, Message, Recipient, Wishes  # noqa: E402
from mta.queue.store import Transaction  # noqa: E402
from mta.queue.sweeping import Piece  # noqa: E402

CONTENT = b"From: a@x.test\r\nSubject: hello\r\n\r\nbody\r\n"
FOREVER = float("inf")
HANGS_S = 100.0  # then something will not happen at all, however busy the machine is


def clock_us() -> int:
    """Microseconds."""
    return time.time_ns() // 1000


class Shelf:
    """The store: what is queued, and the events. Answers come a moment later, commits at once."""

    def __init__(self) -> None:
        self.stored: dict[tuple[int, int], Delivery] = {}
        self.events: list[dict[str, Any]] = []
        self.notices: list[tuple[Message, Delivery]] = []
        self.marks: dict[bytes, bytes] = {}
        self.read = 0  # deliveries, by age
        self.choked = False
        self.problem: str | None = None
        self.last_id = 0
        self.on_checkpoint: Callable[..., None] = print

    def submit(self, tx: Transaction, done: Callable[[None], None] | None = None) -> None:
        for one in tx.updates:
            self.stored[one.key] = deepcopy(one)
        for one in tx.removes:
            self.stored.pop(one.key, None)
        for message, deliveries in tx.accepts:
            self.notices += [(message, one) for one in deliveries]
        self.marks.update(tx.marks)
        for name in tx.unmarks:
            del self.marks[name]
        self.events += [json.loads(line) for line in tx.events]
        if done is not None:
            done(None)

    def _copies(self, wanted: Callable[[Delivery], bool]) -> list[Delivery]:
        copies = [deepcopy(one) for one in self.stored.values() if wanted(one)]
        for one in copies:
            one.tried = 0
            one.message.content, one.message.held = None, 0
        return copies

    def load_due(self, queue: str, before_us: int, limit: int, exclude: set[tuple[int, int]], done: Any) -> None:
        gevent.spawn(lambda: done(
            self._copies(lambda one: one.queue == queue and one.due_us <= before_us and one.key not in exclude), None))

    def due_queues(self, after: bytes, limit: int, done: Any) -> None:
        gevent.spawn(done, [], None)

    def arrived_before(self, before_us: int, limit: int, done: Any) -> None:
        gevent.spawn(lambda: done(self._copies(lambda one: one.message.arrival_us < before_us)))

    def due_after(self, after_us: int, start: bytes, limit: int, done: Any) -> None:
        gevent.spawn(lambda: done(self._copies(lambda one: one.due_us > after_us), None))

    def arrived_between(self, after: bytes, before_us: int, limit: int, done: Any) -> None:
        def answer() -> None:
            found = self._copies(lambda one: one.message.arrival_us < before_us and key(one) > after)[:limit]
            self.read += len(found)
            done(found, key(found[-1]) if found else None)

        def key(one: Delivery) -> bytes:
            return one.message.id.to_bytes(8, "big")

        gevent.spawn(answer)

    def count_of_tenants(self, tenants: Any, done: Any) -> None:
        gevent.spawn(done, dict.fromkeys(tenants, 0))

    def has_mark(self, key: bytes, done: Any) -> None:
        gevent.spawn(lambda: done(self.marks.get(key)))

    def list_marks(self, after: bytes, limit: int, done: Any) -> None:
        gevent.spawn(lambda: done(sorted(item for item in self.marks.items() if item[0] > after)[:limit]))

    def sweep_message(self, message_id: int, done: Any) -> None:
        gevent.spawn(lambda: done(Piece(self._copies(lambda one: one.message.id == message_id), [], None)))

    def mark_inflight(self, delivery: Delivery) -> None:
        """Nothing."""

    def clear_inflight(self, delivery: Delivery) -> None:
        """Nothing."""

    def trouble(self) -> str | None:
        return self.problem

    def told(self, kind: str) -> int:
        return sum(len(event.get("recipients", [1])) for event in self.events if event["event"] == kind)


class Unlimited:
    """There are none, unless one is said to be full."""

    lacking: str | None = None
    trouble = ""

    def __init__(self) -> None:
        self._states: dict[str, PathState] = {}
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._outcomes: dict[str, int] = {}

    def acquire(self, leases: object) -> str | None:
        """Always, or never."""
        return self.lacking

    def release(self, names: object) -> None:
        """Nothing."""

    def served(self, name: str) -> None:
        """Nothing."""

    def refused(self, name: str, begun: float, serves_us: bool) -> Refusal:
        """There are no other workers."""
        return Refusal.BEYOND if serves_us else Refusal.ALONE

    def learned(self, name: str) -> int:
        """Nothing."""
        return 0

    def holders(self, name: str) -> dict[int, int]:
        """Nobody."""
        return {}

    def want(self, name: str, count: int) -> None:
        """Nothing."""

    def gives_way(self, leases: object, resting: bool = False) -> str | None:
        """Nobody else wants any."""
        return None

    def forget(self) -> None:
        """Nothing."""

    def states(self) -> list[tuple[str, PathState]]:
        """None."""
        return []

    def state(self, name: str) -> PathState:
        """What was last made of it."""
        return self._states.get(name, PathState())

    def update(self, name: str, change: Callable[[PathState], PathState]) -> PathState:
        """Nobody else has to know."""
        state = self._states[name] = change(self.state(name))
        return state

    def changed(self) -> list[str]:
        """None."""
        return []

    def tally(self, rule: str, key: str, change: Callable[[Tally, int], Any], path: str = "", more: int = 0) -> Any:
        """Of this worker alone."""
        total = self._outcomes[path] = self._outcomes.get(path, 0) + more
        return change(self._tallies.setdefault((rule, key), Tally(rule, key)), total)

    def ask(self, path: str) -> bool:
        """There are no others."""
        return False

    def asked(self) -> list[str]:
        """Nobody asks."""
        return []


def shaping(**options: Any) -> ShapingRules:
    """For every destination."""
    return ShapingRules(default=DefaultLayer.of(**options))


class World:
    """An engine, and a host that behaves as `data` says: whether the client gets an answer to DATA."""

    shortage = ""  # as a router

    def __init__(self, **options: Any) -> None:
        limits = options.pop("limits", None) or Unlimited()
        retry = Retry(first=Duration(0.05), site_first=Duration(options.pop("pause", 0.05)), site_cap=Duration(3600),
                      jitter=0.0)
        self.shelf: Shelf = options.pop("shelf", None) or Shelf()
        self.config = Config(hostname="mta.test", retry=retry, **options)
        self.number = 0
        self.clock_off_us = 0
        self.taken: list[bytes] = []
        self.hates = b"nothing"
        self.connections = 0
        self.trickle_s = 0.0  # between the octets of the greeting
        self.slow_s = 0.0  # before each answer to RCPT
        self.lingers_s = 0.0  # before the answer to QUIT
        self.answers: dict[bytes, bytes] = {}  # by verb, in place of 250
        self.closes_after = 0  # messages, without a word
        self.open = self.most_open = 0
        self.server = StreamServer(("127.0.0.1", 0), self.serve)
        self.server.start()
        self.port = self.server.server_port
        self.addresses_found: list[tuple[int, str]] = [(2, "127.0.0.1")]
        self.asked: Counter[str] = Counter()
        self.providers: dict[str, str] = {}  # of domains
        self.watch = ClockWatch(self.clock_us, lambda: {0: self.number << 10})
        self.settler = Settler(self.config, lambda shard: clock_us() << 10, self.original,
                               self.clock_us, self.watch)
        self.engine = engine.Engine(self.config, {0: self.shelf}, self, limits, self.settler,  # type: ignore
                                    lambda store, message: self.original(message), self.clock_us)
        self.engine.start()

    def clock_us(self) -> int:
        return clock_us() + self.clock_off_us

    def original(self, message: Message) -> bytes:
        gevent.sleep(0.01)
        return CONTENT

    def route(self, domain: str) -> Route:
        self.asked["route"] += 1
        return Route(f"mx.{domain}", (Host(f"mx.{domain}", self.port, 0),), FOREVER, False,
                     provider=self.providers.get(domain, ""))

    def addresses(self, host: Host, shaping: Shaping) -> Addresses:
        self.asked["addresses"] += 1
        return Addresses(self.addresses_found, "", "", FOREVER, ())

    def serve(self, sock: Any, peer: object) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            self.converse(sock)
        finally:
            self.open -= 1

    def took(self, sock: Any, sender: bytes) -> None:
        self.taken.append(sender)

    def converse(self, sock: Any) -> None:
        file = sock.makefile("rb")
        for octet in b"220 mx.d.test\r\n":
            gevent.sleep(self.trickle_s)
            sock.sendall(bytes([octet]))
        sender = b""
        messages = 0
        for line in file:
            verb = line[:4].upper()
            if verb == b"MAIL":
                messages += 1
                if messages - 1 == self.closes_after > 0:
                    return
            if verb == b"QUIT":
                gevent.sleep(self.lingers_s)
                sock.sendall(b"221 bye\r\n")
                return
            if verb == b"MAIL":
                sender = line
            if verb == b"RCPT":
                gevent.sleep(self.slow_s)
            if verb == b"DATA":
                if self.hates in sender:
                    return
                sock.sendall(b"354 go\r\n")
                while file.readline() != b".\r\n":
                    pass
                self.took(sock, sender)
            sock.sendall(self.answers.get(verb, b"250 ok") + b"\r\n")

    def make(self, sender: str = "a@x.test", age_s: float = 0.0, fresh: bool = True,
             domain: str = "d.test") -> Delivery:
        self.number += 1
        now_us = self.clock_us()
        message = Message(self.number << 10, sender, now_us - int(age_s * 1e6), CONTENT, header_size=30,
                          size=len(CONTENT))
        one = Delivery(message, 0, domain, domain, [Recipient(f"u@{domain}")], now_us)
        self.shelf.stored[one.key] = deepcopy(one)
        if fresh:
            self.engine.scheduler.add(0, one)
        return one

    def until(self, happened: Callable[[], object]) -> None:
        with gevent.Timeout(HANGS_S):
            while not happened():
                gevent.sleep(0.01)

    def drained(self) -> bool:
        return not self.shelf.stored and not self.engine.scheduler.deliveries


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
    ageing.BATCH = 2  # type: ignore
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
    ageing.BATCH = 2  # type: ignore
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
    ageing.LOST_S = 0.2  # type: ignore
    world = World(pause=3600, bounces=Bounces(delay_warning=Duration(100)))
    world.server.stop()
    world.make()
    world.until(lambda: world.shelf.told("suspended") and not world.engine.connections)
    world.make(age_s=200)
    real, asked = world.shelf.arrived_between, []  # type: ignore
    world.shelf.arrived_between = lambda *args: asked.append(args)  # type: ignore
    for _ in range(3):
        world.engine.ageing.warn(0)
        gevent.sleep(0.05)
    assert len(asked) == 1
    world.shelf.arrived_between = real  # type: ignore
    gevent.sleep(0.2)
    warn(world)
    assert world.shelf.told("notified") == 1


def late_mail_in_memory() -> None:
    """What waits in memory for its turn is warned of as well, and keeps its place."""
    world = World(bounces=Bounces(delay_warning=Duration(100)), shaping=shaping(connections=1))
    world.slow_s = 0.2
    for _ in range(3):
        world.make(age_s=200)
    world.until(lambda: world.open)
    warn(world)
    in_flight = len(world.engine.scheduler.queues[(0, "d.test")].in_flight)
    assert in_flight
    assert world.shelf.told("notified") == 3 - in_flight
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


def one_outage_is_one_failure() -> None:
    """However many connections a dead site ends, it is paused once, for the first pause."""
    world = World(pause=60)
    world.server.stop()
    for _ in range(50):
        world.make()
    world.until(lambda: world.shelf.told("suspended") and not world.engine.connections)
    assert world.shelf.told("suspended") == 1
    assert world.engine.paths["mx.d.test"].failures == 1


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


def timed(world: World, by_s: float, mode: str, sender: str = "a@x.test", domain: str = "d.test") -> None:
    """A message that is to be delivered within `by_s`, as the door makes it."""
    one = world.make(sender, fresh=False, domain=domain)
    one.message.wishes = Wishes(by_us=world.clock_us() + int(by_s * 1_000_000), by_mode=mode)
    world.shelf.stored[one.key] = deepcopy(one)
    world.shelf.marks.update(deadlines.mark(one.message))
    world.engine.deadlines.accepted(0, one.message)
    world.engine.scheduler.add(0, one)


def times_that_are_over() -> None:
    """Mode R: what waits for its turn at its time is returned then. What is in flight is not: it ends by itself, and if
    it does not it is returned as well. Each once; and nothing is left of it."""
    deadlines.AGAIN_S = 0.05
    world = World(shaping=shaping(connections=1, pipelining=False))
    world.slow_s = 0.5
    world.answers[b"EHLO"] = b"250-mx.d.test\r\n250 DELIVERBY"
    for number in range(3):
        timed(world, 0.3, "R", f"s{number}@x.test")
    world.until(lambda: world.shelf.told("delivered") == 1 and world.shelf.told("expired") == 2)
    world.until(lambda: not world.shelf.marks)
    assert not world.shelf.stored
    world.answers[b"RCPT"] = b"451 later"
    timed(world, 0.3, "R", "s3@x.test")
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
    timed(world, 0.1, "R")
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

    world.engine.ageing.expire = expire  # type: ignore
    timed(world, 0.2, "R")
    world.until(lambda: world.shelf.told("expired") == 1 and not world.shelf.marks)
    assert failed
    assert len(unanswered) == 2


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


def listen(world: World, limits: Limits) -> None:
    """As a worker does."""
    while True:
        gevent.select.select([limits.fileno()], [], [])
        world.engine.connecting.nudged(limits.recv_nudges())


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
