"""What operators have ordered: the orders themselves, which mail each one means, and how they are written down.

Pure. An *order* has an id, a number that goes up. *Standing* ones hold until they are ended or their time is over:

    pause, freeze   mail that matches stays in the queue and is not tried; it is accepted, and grows old, as ever
    reroute         queues that match use another pool; resolved at each attempt, nothing is rewritten
    suspend, limit  a path, `source:NAME`, `provider:NAME`, `domain:NAME` or `tenant:NAME` is not used, or used less

*Sweeps* do something to each delivery that matches and was accepted before them, once, and are over then:

    retry           it is due now
    expire, delete  it leaves the queue, with its event
    release         made by the end of a pause: what that held one by one may go on

A queue is decided as a whole where the filter allows: asked once per queue and change (`Book.ruling`). What depends on
the delivery is asked of each one when its turn has come (`Book.stops`).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal, NamedTuple, get_args

from mta.queue.filter import DeliveryFacts, Filter, FilterError, QueueFacts
from mta.queue.ids import parse_id
from mta.queue.records import Delivery

Kind = Literal["pause", "freeze", "reroute", "suspend", "limit", "retry", "expire", "delete", "release"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
HOLDS: Final[frozenset[Kind]] = frozenset(("pause", "freeze"))
ENDS: Final[frozenset[Kind]] = frozenset(("expire", "delete"))
SWEEPS: Final[frozenset[Kind]] = frozenset(("retry", "expire", "delete", "release"))
ON_TARGETS: Final[frozenset[Kind]] = frozenset(("suspend", "limit"))
TARGETS: Final = ("source", "provider", "domain", "tenant")  # what beside a path may be suspended or limited

HELD_US: Final = 1 << 60
"""Added to the due time of a delivery that an order holds by itself: then no look at what is due finds it."""
VERSION: Final = 1
MOST: Final = 1000  # orders at the same time
CHANGES_KEPT: Final = 200

_MESSAGE = re.compile(r'\s*message\s*=\s*"?([0-9a-zA-Z]{13})"?\s*')


class OrderError(ValueError):
    """An order that makes no sense; for the operator."""


@dataclass(frozen=True, slots=True)
class Order:
    """One order. Times in microseconds since the epoch."""

    number: int
    kind: Kind
    by: str  # who gave it: the user at the control socket
    at_us: int
    filter: str = ""  # which mail; of suspend and limit empty
    target: str = ""  # of suspend and limit
    until_us: int = 0  # 0: until it is ended
    reason: str = ""
    pool: str = ""  # reroute: to this one
    connections: int | None = None  # limit
    rate: float | None = None  # limit: messages per second
    notify: bool = False  # delete: senders get a notification
    now: bool = False  # retry: also where a path stands still for its failures

    @property
    def id(self) -> str:
        """As people and events call it."""
        return str(self.number)

    @property
    def is_sweep(self) -> bool:
        """Whether it is done once, and over then."""
        return self.kind in SWEEPS

    @property
    def message(self) -> int:
        """The id of the message when the filter names just one; 0 when it is about more."""
        found = _MESSAGE.fullmatch(self.filter)
        if found is None:
            return 0
        try:
            return parse_id(found[1])
        except ValueError:
            return 0

    def in_force(self, now_us: int) -> bool:
        """Whether its time is not over."""
        return not self.until_us or now_us < self.until_us

    def check(self) -> None:
        """Raise OrderError when it makes no sense."""
        if self.kind in ON_TARGETS:
            if not self.target:
                raise OrderError(f"{self.kind}: what? A path, or one of {', '.join(f'{one}=NAME' for one in TARGETS)}")
            if self.kind == "limit" and self.connections is None and self.rate is None:
                raise OrderError("limit: to what? connections=N, rate=10/min, or both")
            return
        try:
            found = Filter.parse(self.filter)
        except FilterError as error:
            raise OrderError(f"filter: {error}") from None
        if self.kind == "reroute":
            if not self.pool:
                raise OrderError("reroute: to which pool?")
            if not found.on_queues:
                raise OrderError("reroute works on whole queues: by domain, queue, tenant, campaign, pool, priority or "
                                 "provider")


class Change(NamedTuple):
    """An order was given, or is over: what the event says."""

    serial: int
    state: str  # "given", "ended", "done"
    order: Order
    by: str
    at_us: int


@dataclass(frozen=True, slots=True)
class Orders:
    """All that is in force, as it is written down. `serial` goes up by one with each change."""

    serial: int = 0
    orders: tuple[Order, ...] = ()
    changes: tuple[Change, ...] = ()  # the last ones

    def give(self, order: Order) -> tuple[Orders, Order]:
        """One more, and as it is called. Raises OrderError."""
        order.check()
        if len(self.orders) >= MOST:
            raise OrderError(f"there are {MOST} orders already: end some (`mta orders`)")
        order = replace(order, number=self.serial + 1)
        return self._changed("given", order, order.by, order.at_us, (*self.orders, order)), order

    def end(self, order: Order, state: Literal["ended", "done"], by: str, at_us: int) -> Orders:
        """One less. What a pause held one by one is released by a sweep."""
        left = tuple(one for one in self.orders if one.number != order.number)
        ended = self._changed(state, order, by, at_us, left)
        if order.kind in HOLDS and not Filter.parse(order.filter).on_queues:
            ended, _ = ended.give(Order(0, "release", by, at_us, order.filter, reason=f"order {order.number} ended"))
        return ended

    def find(self, number: int) -> Order | None:
        """The order of this number."""
        for one in self.orders:
            if one.number == number:
                return one
        return None

    def _changed(self, state: str, order: Order, by: str, at_us: int, orders: tuple[Order, ...]) -> Orders:
        change = Change(self.serial + 1, state, order, by, at_us)
        return Orders(self.serial + 1, orders, (*self.changes, change)[-CHANGES_KEPT:])

    def encode(self) -> bytes:
        """For the file: JSON, as people may want to look."""
        document = {
            "version": VERSION, "serial": self.serial, "orders": [asdict(one) for one in self.orders],
            "changes": [{**one._asdict(), "order": asdict(one.order)} for one in self.changes],
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> Orders:
        """From the file. Raises ValueError."""
        try:
            document = json.loads(content)
            if document["version"] > VERSION:
                raise ValueError(f"written by a newer version of this program (format {document['version']})")
            changes = tuple(Change(**{**one, "order": _order(one["order"])}) for one in document["changes"])
            return cls(int(document["serial"]), tuple(map(_order, document["orders"])), changes)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no file of orders: {type(error).__name__}: {error}") from None


def _order(fields: dict[str, object]) -> Order:
    if fields["kind"] not in KINDS:
        raise ValueError(f"unknown kind of order {fields['kind']!r:.40}")
    known = {name: value for name, value in fields.items() if name in Order.__slots__}
    return Order(**known)  # type: ignore[arg-type]  # as `encode` wrote them


class Meant(NamedTuple):
    """An order with its filter, ready to be asked."""

    order: Order
    filter: Filter
    by_provider: bool  # the filter asks for the provider
    message: int  # the one message that it is about; 0: several


class Ruling(NamedTuple):
    """What the orders say of a queue as a whole."""

    held: Order | None  # nothing of it may be tried
    pool: str | None  # it goes by this pool
    each: tuple[Meant, ...]  # these have to be asked of each delivery
    open: bool  # the provider was not known, and matters: ask again when it is


class Book:
    """Orders that are in force, compiled. One for each change: its identity tells whether a decision is still good."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.serial = orders.serial
        self.meant = {one.number: _meant(one) for one in orders.orders if one.kind not in ON_TARGETS}
        standing = [one for one in self.meant.values() if one.order.kind in HOLDS | ENDS]
        self._queues = [one for one in standing if not one.message]
        self._frozen: dict[int, list[Meant]] = {}
        for one in standing:
            if one.message:
                self._frozen.setdefault(one.message, []).append(one)
        self._routes = [one for one in self.meant.values() if one.order.kind == "reroute"]
        self._messages = tuple(one for ones in self._frozen.values() for one in ones)

    @property
    def is_empty(self) -> bool:
        """Whether no queue has to be asked."""
        return not (self._queues or self._frozen or self._routes)

    def ruling(self, queue: QueueFacts, now_us: int) -> Ruling:
        """What holds for all of a queue."""
        is_open = False
        each: list[Meant] = []
        held = None
        for one in self._queues:
            if not one.order.in_force(now_us):
                continue
            verdict = one.filter.of_queue(queue)
            if verdict is None and one.by_provider and queue.provider is None:
                is_open = True
            if verdict and one.order.kind in HOLDS:
                held = held or one.order
            elif verdict is not False:  # what is swept is what was there before: asked of each
                each.append(one)
        each += self._messages
        pool = None
        for one in self._routes:
            if one.order.in_force(now_us):
                verdict = one.filter.of_queue(queue)
                if verdict:
                    pool = one.order.pool  # the last one wins
                elif verdict is None and queue.provider is None:
                    is_open = True
        return Ruling(held, pool, tuple(each), is_open)

    def holds_singly(self, queue: QueueFacts, delivery: Delivery, now_us: int) -> Order | None:
        """The pause that holds a delivery, by itself or with its queue."""
        asked: list[Meant] = self._queues + self._frozen.get(delivery.message.id, [])
        for one in asked:
            if one.order.kind in HOLDS and one.order.in_force(now_us) \
                    and one.filter.matches(queue, facts_of(delivery, now_us)):
                return one.order
        return None


def _meant(order: Order) -> Meant:
    found = Filter.parse(order.filter)
    return Meant(order, found, "provider" in found.fields, order.message)


def queue_facts(name: str, provider: str | None = None) -> QueueFacts:
    """What the name of a queue (`mta.queue.records.queue_name`) says."""
    labels, _, rest = name.rpartition("@")
    rest, _, priority = rest.partition("^")
    domain, _, pool = rest.partition("/")
    campaign, _, tenant = labels.rpartition(":")
    return QueueFacts(name, domain, tenant, campaign, pool, priority or "normal", provider)


def facts_of(delivery: Delivery, now_us: int) -> DeliveryFacts:
    """What filters ask of a delivery, as of `now_us`."""
    message = delivery.message
    return DeliveryFacts(
        message.text_id, message.sender, [one.address for one in delivery.recipients],
        max((now_us - message.arrival_us) / 1e6, 0.0), delivery.attempts, message.size, delivery.source,
        delivery.history[-1].reply if delivery.history else "")


def due_of(due_us: int) -> int:
    """When a delivery is due, or would be, were it not held by itself."""
    return due_us - HELD_US if due_us >= HELD_US else due_us
