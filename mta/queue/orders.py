"""What operators have ordered: the orders themselves, which mail each one means, and how they are written down.

Pure. An *order* has an id, a number that goes up. *Standing* ones hold until they are ended or their time is over:

    pause, freeze   mail that matches stays in the queue and is not tried; it is accepted, and grows old, as ever
    reroute         queues that match use another pool; resolved at each attempt, nothing is rewritten. Where it depends
                    on the delivery those that match go into a queue beside their own, a *detour* that bears the number
                    of the order (`mta.queue.records.detour`), and stay there: it goes by the pool of the order as long
                    as that is in force, then by its own again
    suspend, limit  a path, `source:NAME`, `provider:NAME`, `domain:NAME` or `tenant:NAME` is not used, or used less;
                    a suspension by an expression holds mail as a pause does

*Sweeps* do something to each delivery that matches and was accepted before them, once, and are over then:

    retry           it is due now
    expire, delete  it leaves the queue, with its event
    release         made by the end of a pause: what that held one by one may go on

A queue is decided as a whole where the filter allows: asked once per queue and change (`Book.ruling`). What depends on
the delivery is asked of each one when its turn has come (`Controls.stops`).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, NamedTuple, get_args

from mta.queue.filter import DeliveryFacts, Filter, FilterError, QueueFacts
from mta.queue.ids import parse_id
from mta.queue.records import Delivery, detour

Kind = Literal["pause", "freeze", "reroute", "suspend", "limit", "retry", "expire", "delete", "release"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
HOLDS: Final[frozenset[Kind]] = frozenset(("pause", "freeze"))
ENDS: Final[frozenset[Kind]] = frozenset(("expire", "delete"))
SWEEPS: Final[frozenset[Kind]] = frozenset(("retry", "expire", "delete", "release"))
ON_TARGETS: Final[frozenset[Kind]] = frozenset(("suspend", "limit"))
TARGETS: Final = ("source", "provider", "domain", "tenant")  # what beside a path may be suspended or limited

HELD_US: Final = 1 << 60
"""Added to the due time of a delivery that an order holds by itself: then no look at what is due finds it."""
RULE: Final = "rule "  # before its name: the author of what a rule on replies decided
VERSION: Final = 1
MOST: Final = 1000  # orders at the same time
CHANGES_KEPT: Final = 200

_MESSAGE = re.compile(r'\s*message\s*=\s*"?([0-9a-zA-Z]{13})"?\s*')


def limit_words(connections: int | None, rate: float | None) -> str:
    """To what a limit is set, as it is typed: `connections=2 rate=30/min`. The rate is in messages per second."""
    words = [] if connections is None else [f"connections={connections}"]
    if rate is not None:
        count, unit = (rate, "s") if rate >= 1 else (rate * 60, "min") if rate * 60 >= 1 else (rate * 3600, "h")
        words.append(f"rate={count:g}/{unit}")
    return " ".join(words)


class OrderError(ValueError):
    """An order that makes no sense; for the operator."""


@dataclass(frozen=True, slots=True)
class Order:
    """One order. Times in microseconds since the epoch."""

    number: int
    kind: Kind
    by: str  # who gave it: the user at the control socket
    at_us: int
    filter: str = ""  # which mail; empty of what has a target
    target: str = ""  # of limit, and of suspend that has no filter
    until_us: int = 0  # 0: until it is ended
    reason: str = ""
    pool: str = ""  # reroute: to this one
    connections: int | None = None  # limit
    rate: float | None = None  # limit: messages per second
    notify: bool = False  # delete: senders get a notification
    now: bool = False  # retry: also where a path stands still for its failures

    @property
    def id(self) -> str:
        """As people and events call it; empty of what was not ordered."""
        return str(self.number) if self.number else ""

    @property
    def by_rule(self) -> str:
        """Of what a rule on replies decided, and is shown as an order, the name of the rule; else empty."""
        return self.by.removeprefix(RULE) if not self.number and self.by.startswith(RULE) else ""

    @property
    def is_sweep(self) -> bool:
        """Whether it is done once, and over then."""
        return self.kind in SWEEPS

    @property
    def holds(self) -> bool:
        """Whether it keeps the mail that its filter means."""
        return self.kind in HOLDS or (self.kind == "suspend" and self.filter != "")

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
        if self.kind in ON_TARGETS and not (self.kind == "suspend" and self.filter):
            if not self.target:
                raise OrderError(f"{self.kind}: what? A path, or one of {', '.join(f'{one}=NAME' for one in TARGETS)}")
            if self.kind == "limit" and self.connections is None and self.rate is None:
                raise OrderError("limit: to what? connections=N, rate=10/min, or both")
            return
        try:
            found = Filter.parse(self.filter)
        except FilterError as error:
            raise OrderError(f"filter: {error}") from None
        if self.kind == "suspend" and self.target:
            raise OrderError("suspend: a target or an expression, not both")
        if self.kind == "suspend" and "source" in found.fields:
            raise OrderError(
                f"suspend: a source is suspended by its name alone, as in `mta suspend source=NAME`; `mta pause "
                f"{shlex.quote(self.filter)}` keeps mail that left last from such a source")
        if self.kind == "reroute" and not self.pool:
            raise OrderError("reroute: to which pool?")


class Change(NamedTuple):
    """An order was given, or is over: what the event says."""

    serial: int
    state: str  # "given", "ended", "done"
    order: Order
    by: str
    at_us: int
    unreadable: int = 0  # of a sweep that is done: records of the index that could not be read


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

    def end(self, order: Order, state: Literal["ended", "done"], by: str, at_us: int, unreadable: int = 0) -> Orders:
        """One less. What it held one by one is released by a sweep."""
        left = tuple(one for one in self.orders if one.number != order.number)
        ended = self._changed(state, order, by, at_us, left, unreadable)
        if order.holds and not Filter.parse(order.filter).on_queues:
            ended, _ = ended.give(Order(0, "release", by, at_us, order.filter, reason=f"order {order.number} ended"))
        return ended

    def lifted(self, decided: Iterable[Order], by: str, at_us: int) -> Orders:
        """An operator has ended what rules on replies decided, written as orders without a number. It is no order that
        ends, but an event all the same."""
        orders = self
        for one in decided:
            orders = orders._changed("ended", one, by, at_us, orders.orders)
        return orders

    def find(self, number: int) -> Order | None:
        """The order of this number."""
        for one in self.orders:
            if one.number == number:
                return one
        return None

    def _changed(self, state: str, order: Order, by: str, at_us: int, orders: tuple[Order, ...],
                 unreadable: int = 0) -> Orders:
        change = Change(self.serial + 1, state, order, by, at_us, unreadable)
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


def _order(fields: dict[str, Any]) -> Order:
    if fields["kind"] not in KINDS:
        raise ValueError(f"unknown kind of order {fields['kind']!r:.40}")
    known = {name: value for name, value in fields.items() if name in Order.__slots__}
    return Order(**known)


class Meant(NamedTuple):
    """An order with its filter, ready to be asked."""

    order: Order
    filter: Filter
    by_provider: bool  # the filter asks for the provider
    message: int  # the one message that it is about; 0: several

    @property
    def is_swept(self) -> bool:
        """Whether all mail is gone through for it, when it is given."""
        return self.order.is_sweep or self.reroutes_singly

    @property
    def reroutes_singly(self) -> bool:
        """Whether it reroutes single deliveries, and not queues as a whole."""
        return self.order.kind == "reroute" and not self.filter.on_queues


class Ruling(NamedTuple):
    """What the orders say of a queue as a whole."""

    held: Order | None  # nothing of it may be tried
    reroute: Order | None  # it goes by the pool of this one
    each: tuple[Meant, ...]  # these have to be asked of each delivery
    open: bool  # the provider was not known, and matters: ask again when it is

    @property
    def pool(self) -> str | None:
        """It goes by this pool; None: as its label says."""
        return self.reroute.pool if self.reroute is not None else None


class Book:
    """Orders that are in force, compiled. One for each change: its identity tells whether a decision is still good."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.serial = orders.serial
        self.meant = {one.number: _meant(one) for one in orders.orders if not one.target}
        standing = [one for one in self.meant.values() if one.order.holds or one.order.kind in ENDS]
        self._queues = [one for one in standing if not one.message]
        self._frozen: dict[int, list[Meant]] = {}
        for one in standing:
            if one.message:
                self._frozen.setdefault(one.message, []).append(one)
        self._routes = [one for one in self.meant.values() if one.order.kind == "reroute"]
        self._routes.reverse()  # the last one wins
        self.has_detours = any(one.reroutes_singly for one in self._routes)
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
            if verdict and one.order.holds:
                held = held or one.order
            elif verdict is not False:  # what is swept is what was there before: asked of each
                each.append(one)
        each += self._messages
        reroute = None
        for one in self._routes:
            if not one.order.in_force(now_us):
                continue
            verdict = one.order.number == queue.detour or one.filter.of_queue(queue)
            if verdict:
                reroute = one.order
                break
            if verdict is None:
                is_open = is_open or (one.by_provider and queue.provider is None)
                if one.reroutes_singly:
                    each.append(one)
        return Ruling(held, reroute, tuple(each), is_open)

    def detour(self, queue: QueueFacts, delivery: Delivery, now_us: int) -> Order | None:
        """The order by which a delivery of this queue goes from now on, apart from others of it; None: by none, or as
        it does already."""
        for one in self._routes:
            if one.order.in_force(now_us):
                if one.order.number == queue.detour:
                    return None
                if not one.reroutes_singly:
                    if one.filter.of_queue(queue):
                        return None
                elif (not one.message or one.message == delivery.message.id) \
                        and one.filter.matches(queue, facts_of(delivery, now_us)):
                    return one.order
        return None

    def holds_singly(self, queue: QueueFacts, delivery: Delivery, now_us: int) -> Order | None:
        """The order that holds a delivery, by itself or with its queue."""
        asked: list[Meant] = self._queues + self._frozen.get(delivery.message.id, [])
        for one in asked:
            if one.order.holds and one.order.in_force(now_us) \
                    and one.filter.matches(queue, facts_of(delivery, now_us)):
                return one.order
        return None


def _meant(order: Order) -> Meant:
    found = Filter.parse(order.filter)
    return Meant(order, found, "provider" in found.fields, order.message)


def same_mail(one: str, other: str) -> bool:
    """Whether two expressions are the same but for spaces, case and quotes. Raises FilterError."""
    return one == other or (bool(one and other) and Filter.parse(one).words == Filter.parse(other).words)


def queue_facts(name: str, provider: str | None = None) -> QueueFacts:
    """What the name of a queue (`mta.queue.records.queue_name`) says."""
    labels, _, rest = name.rpartition("@")
    rest, _, priority = rest.partition("^")
    domain, _, pool = rest.partition("/")
    pool, _, number = pool.partition("/")
    campaign, _, tenant = labels.rpartition(":")
    return QueueFacts(name, domain, tenant, campaign, pool, priority or "normal", provider,
                      int(number) if number.isdecimal() else 0, detour(name, 0) if number else "")


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
