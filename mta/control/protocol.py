"""What is asked over the control sockets, and what is answered.

A request is the frame `[command, {argument: value}]`, a reply `["ok", result]` or `["error", text]`, which
may have the exit code as its third part (`mta.control.exits`; UNAVAILABLE without). A connection may carry any number
of them, one at a time. Each worker answers on `RUN/worker-N.sock` for its own shards; the
control process answers on `RUN/control.sock` for all of them, merged:

| command   | arguments                             | result of a worker     | result of control      |
|-----------|---------------------------------------|------------------------|------------------------|
| `status`  |                                       | `WorkerStatus`         | `Status`               |
| `queues`  | `pattern`, `limit`, `order`; `names`  | `QueueList`            | `QueueList`            |
| `queue`   | `name`, `limit`                       | `DeliveryList`         | `DeliveryList`         |
| `message` | `id` (text form)                      | `MessageDetail` or nil | `MessageDetail` or nil |
| `body`    | `id`, `offset`, `length`              | bytes or nil           | bytes or nil           |
| `explain` | `kind`, `name`                        | `Explanation`          | `Explanation`          |
| `page`    | `filter`, `after`, `causes`           | `Page`                 | `Page`                 |
| `touched` | `filter`                              | `TouchList`            | `TouchList`            |
| `order`   | `kind`, `filter`, ... as in `Order`   |                        | `OrderAnswer`          |
| `end`     | `numbers`                             |                        | `OrderAnswer`          |
| `orders`  | `ruled`                               |                        | `OrderList`            |
| `obey`    | `serial`                              | `Obeyed`               |                        |
| `sweeps`  | `serial`                              | `SweepList`            |                        |

An order is given by whoever is at the other end of the socket, as the kernel says.

`limit` is 1 to `MAX_ROWS`, `length` 1 to `BODY_CHUNK`; nil means that there is no such message.

A result dataclass travels as a map of its fields (`to_wire`, `from_wire`). A reader ignores fields that it does not
know and takes the default of fields that are missing, so that an upgraded command line can talk to the MTA that
still runs. Times are microseconds since the epoch, as in the queue; 0 stands for "none".
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from mta.control import exits
from mta.queue.orders import KINDS, Order

MAX_ROWS: Final = 10_000  # of a listing, so that a reply stays within channel.REPLY_LIMIT
BODY_CHUNK: Final = 4_000_000
TOUCHED_ROWS: Final = 50
REASON_MAX: Final = 500

QueueOrder = Literal["deliveries", "next", "name"]
QUEUE_ORDERS: Final[tuple[QueueOrder, ...]] = ("deliveries", "next", "name")

T = TypeVar("T")


class RequestError(Exception):
    """A request cannot be answered; `str()` says why, and `exit_code` who has to do what: USAGE when it makes no sense.
    """

    def __init__(self, text: str, exit_code: int = exits.UNAVAILABLE) -> None:
        super().__init__(text)
        self.exit_code = exit_code

    @property
    def reply(self) -> list[str | int]:
        """The reply that says so."""
        return ["error", str(self)] if self.exit_code == exits.UNAVAILABLE else ["error", str(self), self.exit_code]

    @classmethod
    def of_reply(cls, reply: object) -> RequestError | None:
        """What a reply says; None when it is none of an error."""
        match reply:
            case ["error", str(text)]:
                return cls(text)
            case ["error", str(text), int(exit_code)]:
                return cls(text, exit_code)
        return None


def control_socket(run: str) -> str:
    """Path of the control process's socket."""
    return str(Path(run, "control.sock"))


def worker_socket(run: str, number: int) -> str:
    """Path of a worker's socket."""
    return str(Path(run, f"worker-{number}.sock"))


@dataclass(slots=True)
class Missing:
    """A worker whose part is not in the answer."""

    worker: int
    reason: str


@dataclass(slots=True)
class Member:
    """What the supervisor knows of one child."""

    role: str  # "worker" or "control"
    number: int
    pid: int  # 0 while it does not run
    state: str  # "starting", "ready", "stopping", "waiting" (to be restarted), "ended"
    shards: list[int]
    started_us: int = 0
    restarts: int = 0
    restart_us: int = 0  # when it will be started again, while waiting
    last_end: str = ""  # how it ended last time: "killed by SIGKILL", "exit code 70: ..."


@dataclass(slots=True)
class Family:
    """The supervisor and its children; it sends this to the control process whenever it changes."""

    pid: int
    started_us: int
    members: list[Member] = field(default_factory=list)


@dataclass(slots=True)
class SourceRow:
    """One source as a worker uses it."""

    name: str  # "" when none is configured
    connections: int = 0
    paths: int = 0  # sites that it has to do with now
    suspended: int = 0  # of those, the ones that stand still
    trouble: str = ""  # why it cannot be used, or what it lacks; "" when it is whole


@dataclass(slots=True)
class WorkerStatus:
    """One worker now, and what it did since it was started. Amounts of mail are recipients unless they say messages."""

    worker: int
    pid: int
    uptime_s: float
    shards: list[int] = field(default_factory=list)
    memory: int = 0  # resident bytes
    cpu_s: float = 0.0  # user and system
    # now
    queued_messages: int = 0
    queued_deliveries: int = 0
    queued_recipients: int = 0
    in_flight: int = 0  # deliveries handed to a connection
    sessions: int = 0  # incoming SMTP
    connections: int = 0  # outgoing SMTP
    intake: str = ""  # why no new mail is taken, "" when it is
    # since the start
    accepted_messages: int = 0
    accepted_recipients: int = 0
    delivered: int = 0
    deferred: int = 0  # attempts, so one recipient may count many times
    bounced: int = 0
    expired: int = 0
    deleted: int = 0
    check_refusals: int = 0  # messages that `checks` refused, or warned of
    check_warnings: int = 0
    # of the event loop, in the last minute
    loop_lag_p99_ms: float = 0.0  # how late it was, but for its worst hundredth
    loop_lag_max_ms: float = 0.0  # and at its worst
    sources: list[SourceRow] = field(default_factory=list)
    doors: list[str] = field(default_factory=list)  # what keeps a listener or a spool directory from taking mail
    damage: str = ""  # what is damaged in its shards, and what to do; "" when nothing was found to be


# Fields of WorkerStatus that make sense as a sum over the workers.
SUMMED: Final = (
    "memory", "cpu_s", "queued_messages", "queued_deliveries", "queued_recipients", "in_flight", "sessions",
    "connections", "accepted_messages", "accepted_recipients", "delivered", "deferred", "bounced", "expired", "deleted",
    "check_refusals", "check_warnings",
)  # fmt: skip


@dataclass(slots=True)
class Status:
    """The whole MTA."""

    version: str
    hostname: str
    family: Family
    workers: list[WorkerStatus] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


@dataclass(slots=True)
class QueueRow:
    """One queue."""

    name: str
    domain: str
    deliveries: int
    recipients: int
    next_due_us: int = 0  # when the next delivery may be tried: in the past when it waits for something else
    oldest_us: int = 0  # arrival of the oldest delivery that is known without reading the queue
    in_flight: int = 0
    connections: int = 0
    state: str = "waiting"  # "active", "ready" (due, waits for a connection), "waiting" (not due), "suspended", ...
    reason: str = ""  # why nothing moves, in words: "limit of 3 connections to example.org reached"
    last_reply: str = ""  # the last reply that deferred something, or our own description
    last_reply_us: int = 0


@dataclass(slots=True)
class QueueList:
    """Queues whose name matches, in the order asked for, at most `limit`; and the totals over all of them.

    Request: `pattern` ("" or a shell pattern, or a part of the name), `order`: "deliveries" (most first), "next" (due
    first), "name"; `limit` (1 to MAX_ROWS). With `names` (a list), exactly those queues, where they exist, and nothing
    else counts.
    """

    rows: list[QueueRow] = field(default_factory=list)
    queues: int = 0  # that match, shown or not
    deliveries: int = 0
    recipients: int = 0
    missing: list[Missing] = field(default_factory=list)


@dataclass(slots=True)
class RecipientRow:
    """One recipient that has no end yet."""

    address: str
    notify: str = ""  # "NEVER", "SUCCESS,FAILURE", as RFC 3461 writes it
    orcpt: str = ""


@dataclass(slots=True)
class AttemptRow:
    """One failed attempt."""

    time_us: int
    remote: str
    reply: str


@dataclass(slots=True)
class DeliveryRow:
    """One delivery: a message to one domain."""

    message: str  # text form of the id
    index: int
    queue: str
    domain: str
    sender: str
    recipients: list[RecipientRow]
    size: int
    arrival_us: int
    due_us: int
    attempts: int = 0
    in_flight: bool = False
    maybe_duplicate: bool = False
    history: list[AttemptRow] = field(default_factory=list)  # the last few, oldest first
    expires_us: int = 0
    reason: str = ""  # why it is not being delivered although it is due
    way: str = ""  # which order has it go by another pool


@dataclass(slots=True)
class DeliveryList:
    """The deliveries of one queue, due first, at most `limit`. `row` is None when there is no such queue."""

    row: QueueRow | None = None
    deliveries: list[DeliveryRow] = field(default_factory=list)
    more: bool = False
    missing: list[Missing] = field(default_factory=list)


@dataclass(slots=True)
class MessageDetail:
    """One message and what of it is still in the queue."""

    id: str
    worker: int
    sender: str
    arrival_us: int
    size: int
    message_id: str = ""  # the header
    origin: str = ""
    flags: list[str] = field(default_factory=list)  # "8BITMIME", "SMTPUTF8", "NOTIFICATION"
    ret: str = ""
    envid: str = ""
    deliveries_accepted: int = 0
    deliveries: list[DeliveryRow] = field(default_factory=list)  # that are left
    headers: bytes = b""  # the header section, at most 256 KB of it
    damaged: str = ""  # why the content cannot be read, "" when it can


@dataclass(slots=True)
class TouchRow:
    """What an order would touch in one queue."""

    queue: str
    deliveries: int
    recipients: int


@dataclass(slots=True)
class TouchList:
    """What an order with a filter would touch now: the largest queues, and the sums over all."""

    rows: list[TouchRow] = field(default_factory=list)
    queues: int = 0
    deliveries: int = 0
    recipients: int = 0
    exact: bool = True  # False: counting was cut short, there may be more
    missing: list[Missing] = field(default_factory=list)


@dataclass(slots=True)
class SweepRow:
    """How far a sweep is in one shard."""

    order: int
    shard: int
    deliveries: int  # done
    recipients: int
    finished: bool
    unreadable: int = 0  # records of the index that could not be read


@dataclass(slots=True)
class SweepList:
    """All sweeps of a worker."""

    rows: list[SweepRow] = field(default_factory=list)


@dataclass(slots=True)
class Obeyed:
    """A worker obeys the orders up to `serial`."""

    serial: int
    in_flight: int = 0  # deliveries meant by new orders that were being delivered, and still are


@dataclass(slots=True)
class OrderRow:
    """One order, as in `mta.queue.orders.Order`, and how far it is."""

    number: int
    kind: str
    by: str
    at_us: int
    filter: str = ""
    target: str = ""
    until_us: int = 0
    reason: str = ""
    pool: str = ""
    connections: int | None = None
    rate: float | None = None  # messages per second
    notify: bool = False
    now: bool = False
    deliveries: int = 0  # done by a sweep
    recipients: int = 0
    shards_done: int = 0  # of a sweep
    shards: int = 0
    unreadable: int = 0  # records of the index that a sweep passed over, as they could not be read


@dataclass(slots=True)
class OrderAnswer:
    """Orders that were given or ended. They are durable, and all workers but those that are missing obey."""

    orders: list[OrderRow] = field(default_factory=list)
    in_flight: int = 0  # deliveries that they mean and that are just being delivered: those run to their end
    missing: list[Missing] = field(default_factory=list)


@dataclass(slots=True)
class LiftAnswer:
    """What rules on replies had decided and an operator ended, in words."""

    ended: list[str] = field(default_factory=list)


@dataclass(slots=True)
class OrderList:
    """All orders in force; with `ruled` in the request also what rules on replies suspend or limit now, as if it were
    ordered: by `rule NAME`, without a number, the reply is the reason; MAX_ROWS of it at most, what ends last first."""

    orders: list[OrderRow] = field(default_factory=list)
    ruled: list[OrderRow] = field(default_factory=list)
    ruled_more: int = 0  # that are not listed
    missing: list[Missing] = field(default_factory=list)


def order_row(order: Order) -> OrderRow:
    """An order for the answer."""
    return OrderRow(**dataclasses.asdict(order))


_GIVEN: Final = ("filter", "target", "until_us", "reason", "pool", "connections", "rate", "notify", "now")


def order_of(arguments: dict[str, Any], by: str, at_us: int) -> Order:
    """The order that a request gives. Raises ValueError and TypeError for what is none."""
    if arguments.get("kind") not in KINDS or arguments["kind"] == "release":
        raise ValueError(f"no such order: {arguments.get('kind')!r:.40}")
    row = from_wire(OrderRow, {"number": 0, "kind": arguments["kind"], "by": by, "at_us": at_us,
                               **{name: arguments[name] for name in _GIVEN if name in arguments}})
    if len(row.reason) > REASON_MAX or len(row.target) > REASON_MAX or len(row.pool) > REASON_MAX:
        raise ValueError(f"a reason or a name has at most {REASON_MAX} characters")
    return Order(0, arguments["kind"], by, at_us, *(getattr(row, name) for name in _GIVEN))


def merged(rows: Iterable[QueueRow], order: QueueOrder = "name") -> list[QueueRow]:
    """One row per queue, out of the rows of several shards or workers, in `order`."""
    found: dict[str, QueueRow] = {}
    for row in rows:
        known = found.get(row.name)
        if known is None:
            found[row.name] = row
            continue
        known.deliveries += row.deliveries
        known.recipients += row.recipients
        known.in_flight += row.in_flight
        known.connections += row.connections
        known.next_due_us = _earliest(known.next_due_us, row.next_due_us)
        known.oldest_us = _earliest(known.oldest_us, row.oldest_us)
        if row.last_reply_us > known.last_reply_us:
            known.last_reply, known.last_reply_us = row.last_reply, row.last_reply_us
        if _liveliness(row) > _liveliness(known):
            known.state, known.reason = row.state, row.reason
    return sorted(found.values(), key=_QUEUE_KEYS[order])


def _earliest(one_us: int, other_us: int) -> int:
    return min(one_us, other_us) if one_us and other_us else one_us or other_us


def _liveliness(row: QueueRow) -> int:
    """Of the states that they see, the one that says most: mail that moves, then what holds it up."""
    return {"active": 3, "waiting": 0, "ready": 1}.get(row.state, 2)


_QUEUE_KEYS: Final[dict[QueueOrder, Callable[[QueueRow], Any]]] = {
    "deliveries": lambda row: (-row.deliveries, row.name),
    "next": lambda row: (row.next_due_us == 0, row.next_due_us, row.name),
    "name": lambda row: row.name,
}


def to_wire(value: object) -> Any:
    """A dataclass as a map of its fields, for `channel.encode`; bytes, numbers and None as they are."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def from_wire(cls: type[T], fields: dict[str, Any]) -> T:
    """Build a result dataclass from its map. Raises RequestError when it cannot be one."""
    known: Any = cls
    try:
        values = {name: _convert(kind, fields[name]) for name, kind in _fields(known).items() if name in fields}
        return cls(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise RequestError(f"the answer is not understood ({cls.__name__}: {error}); is the MTA of another version?") \
            from error


@cache
def _fields(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def _convert(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_wire(kind, value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [_convert(arguments[0], item) for item in value]
    if origin is dict:
        return {_convert(arguments[0], key): _convert(arguments[1], item) for key, item in value.items()}
    if origin is types.UnionType:  # `X | None`
        return None if value is None else _convert(arguments[0], value)
    if kind is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value
