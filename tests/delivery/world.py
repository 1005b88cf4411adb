"""A real engine in a gevent process of its own: a loopback host, a played store, router and limits.

To be imported first: it patches.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable  # noqa: E402
from copy import deepcopy  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import gevent.event  # noqa: E402
import gevent.select  # noqa: E402
from gevent.server import StreamServer  # noqa: E402

from mta.config.schema import Config, Retry, ShapingRules  # noqa: E402
from mta.config.shaping import DefaultLayer, Shaping  # noqa: E402
from mta.config.units import Duration  # noqa: E402
from mta.delivery import (  # noqa: E402
    engine,
)
from mta.delivery.clock import ClockWatch  # noqa: E402
from mta.delivery.leases import Refusal  # noqa: E402
from mta.delivery.limits import Limits  # noqa: E402
from mta.delivery.pathstate import PathState  # noqa: E402
from mta.delivery.routing import Addresses, Host, Route  # noqa: E402
from mta.delivery.settle import Settler  # noqa: E402
from mta.delivery.tally import Tally  # noqa: E402
from mta.queue.errors import StoreError  # noqa: E402
from mta.queue.records import Delivery, Message, Recipient  # noqa: E402
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
        self.unmarked = 0  # the next so many marks find no room
        self.problem: str | None = None
        self.damage = ""
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

    def sweep_queues(self, after: bytes, limit: int, done: Any) -> None:
        gevent.spawn(done, [], None, 0)

    def sweep_message(self, message_id: int, done: Any) -> None:
        gevent.spawn(lambda: done(Piece(self._copies(lambda one: one.message.id == message_id), [], None)))

    def mark_inflight(self, delivery: Delivery) -> None:
        if self.unmarked:
            self.unmarked -= 1
            raise StoreError("no room")

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
    has_room = True

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

    def forget(self, name: str | None = None) -> None:
        """There are no copies."""

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
        self.answering = gevent.event.Event()  # RCPT is answered
        self.answering.set()
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
        self.engine = engine.Engine(self.config, {0: self.shelf}, self, limits, self.settler,
                                    lambda store, message: self.original(message), self.clock_us)
        self.engine.start()

    def clock_us(self) -> int:
        return clock_us() + self.clock_off_us

    def original(self, message: Message) -> bytes:
        gevent.sleep(0.01)
        return CONTENT

    def is_at_hand(self, domain: str) -> bool:
        """Nothing is."""
        return False

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
                self.answering.wait()
                gevent.sleep(self.slow_s)
            if verb == b"DATA":
                if self.hates in sender:
                    return
                sock.sendall(b"354 go\r\n")
                while (text := file.readline()) != b".\r\n":
                    if not text:
                        return  # it was cut off
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


def listen(world: World, limits: Limits) -> None:
    """As a worker does."""
    while True:
        gevent.select.select([limits.fileno()], [], [])
        world.engine.connecting.nudged(limits.recv_nudges())
