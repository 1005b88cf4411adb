"""Why mail does not move: of a queue, a delivery, a path. Every state has a reason.

    standing(engine, shard, name, due_us)   for `mta queue`: state and reason in one line
    of_queue(engine, shard, name, due_us)   state, and all reasons as records
    of_delivery(engine, delivery)           the same of one delivery, its retry included
    of_path(engine, path)                   what keeps mail from going over it now

It only looks, at what the engine knows in memory and at the table of limits; nothing is read from disk for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from mta.delivery.connecting import TOTAL
from mta.delivery.holds import names_of
from mta.delivery.pace import per_time
from mta.delivery.reason import Reason
from mta.queue import events
from mta.queue.ids import format_id, shard_of
from mta.queue.orders import HELD_US, Order, due_of
from mta.queue.records import Delivery
from mta.queue.scheduler import Queue, domain_of, tenant_of

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.lane import Lane
    from mta.delivery.path import Path
    from mta.delivery.pathstate import Hold
    from mta.delivery.rates import Bucket


class Standing(NamedTuple):
    """How a queue stands in one shard."""

    state: str  # "active", "ready" (due, waits for something of ours), "waiting" (not due), "suspended", "paused"
    reason: str  # why nothing moves, in words; empty when it moves
    in_flight: int  # deliveries handed to a connection
    connections: int  # of its lane


def standing(engine: Engine, shard: int, name: str, next_due_us: int) -> Standing:
    """How the queue `name` stands, whose first delivery is due at `next_due_us`."""
    state, reasons = of_queue(engine, shard, name, next_due_us)
    queue = engine.scheduler.queues.get((shard, name))
    lane = engine.ways.lane_of(domain_of(name), engine.controls.pool_of(name))
    return Standing(state, "" if state == "active" else brief(engine, reasons),
                    len(queue.in_flight) if queue is not None else 0,
                    len(lane.connections) if lane is not None else 0)


def why_not_now(engine: Engine, shard: int, name: str) -> str:
    """Why a delivery of the queue `name` that is due is not being delivered, in one line."""
    return brief(engine, of_due(engine, shard, name)[1])


def brief(engine: Engine, reasons: list[Reason]) -> str:
    """Reasons in one line."""
    now_us = engine.clock_us()
    return "; ".join(one.brief(now_us) for one in reasons)


def of_delivery(engine: Engine, delivery: Delivery) -> tuple[str, list[Reason]]:
    """How a delivery stands, and why it is not delivered now; what holds it longest first where more than one thing
    does."""
    return Look(engine, shard_of(delivery.message.id), delivery.queue).of(delivery)


class Look:
    """A look at one queue: what all of its deliveries have in common is found out once. Good for a moment."""

    def __init__(self, engine: Engine, shard: int, name: str) -> None:
        self._engine = engine
        self._shard = shard
        self._name = name
        self._queue = engine.scheduler.queues.get((shard, name))
        self._due: tuple[str, list[Reason]] | None = None  # of a delivery that is due
        self._whole: tuple[str, list[Reason]] | None = None  # of the queue
        self.in_flight = len(self._queue.in_flight) if self._queue is not None else 0

    def whole(self) -> tuple[str, list[Reason]]:
        """How the queue stands, something of which is due or comes to be."""
        if self._whole is None:
            self._whole = of_queue(self._engine, self._shard, self._name, self._engine.clock_us())
        return self._whole

    def due(self) -> tuple[str, list[Reason]]:
        """How what is due of it stands."""
        if self._due is None:
            self._due = of_due(self._engine, self._shard, self._name)
        return self._due

    def of(self, delivery: Delivery) -> tuple[str, list[Reason]]:
        """As `of_delivery`."""
        if self._queue is not None and delivery.key in self._queue.in_flight:
            return "active", [in_flight(len(self._queue.in_flight))]
        order = self._engine.controls.held(self._name, delivery)
        if order is not None:
            return "paused", [_ordered(order)]
        now_us = self._engine.clock_us()
        if due_of(delivery.due_us) > now_us:
            state, reasons = self.whole()
            further = reasons if state in ("paused", "suspended") else []
            return "waiting", [_held(delivery) if delivery.message.is_held(now_us) else retry_of(delivery), *further]
        return self.due()


def main_of(state: str, reasons: list[Reason]) -> Reason:
    """Of several reasons the one that a delivery counts with: what all of its queue waits for before its own retry;
    of several paths the one that may go first."""
    common = reasons[1:] if len(reasons) > 1 and state == "waiting" else reasons
    return min(common, key=lambda one: (one.until_us == 0, one.until_us))


def of_due(engine: Engine, shard: int, name: str) -> tuple[str, list[Reason]]:
    """The same of a delivery that is due, of the queue `name`."""
    state, reasons = of_queue(engine, shard, name, 0)
    if state != "active":
        return state, reasons
    # Others of its queue are under way. What keeps the queue from having more of them keeps this one.
    lane = engine.ways.lane_of(domain_of(name), engine.controls.pool_of(name))
    general = _ours(engine, shard, lane) or of_tenant(engine, tenant_of(name))
    if general is not None:
        return "ready", [general]
    paths = lane.paths if lane is not None else []
    others = [one for path in paths for one in of_path(engine, path, lane) if one.kind != "turn"]
    return "ready", others or [_in_turn(lane, engine.scheduler.queues.get((shard, name)))]


def _held(delivery: Delivery) -> Reason:
    """Why a delivery is not due whose sender wants it so."""
    wishes = delivery.message.wishes
    assert wishes is not None
    return Reason("held", f"its sender asked for it to be held ({wishes.hold})", delivery.message.arrival_us,
                  wishes.release_us, f"`mta delete message={format_id(delivery.message.id)}` takes it back")


def retry_of(delivery: Delivery) -> Reason:
    """Why a delivery that has been tried is not due."""
    last = delivery.history[-1] if delivery.history else None
    until_us = due_of(delivery.due_us)
    remedy = f"`mta retry message={format_id(delivery.message.id)}` tries it now; `retry` in shaping sets the schedule"
    if last is None:
        return Reason("retry", "it is to be tried later, for no attempt of its own", 0, until_us, remedy)
    remote = f" by {last.remote}" if last.remote else ""
    how = "follows by the retry schedule or the rule on this reply"
    if delivery.avoid:
        how = f"goes another way as the rule on this reply says, not by {_ways(delivery.avoid)}"
    return Reason("retry", f"attempt {delivery.attempts} was deferred{remote}: {last.reply}; attempt "
                  f"{delivery.attempts + 1} {how}",
                  last.time_us, until_us, remedy, {"attempts": delivery.attempts})


def _ways(avoid: tuple[str, ...]) -> str:
    return ", ".join(one.replace(":", " ", 1) for one in avoid)


def held_by(order: Order) -> str:
    """Which order holds mail, in words."""
    until = f" until {events.timestamp(order.until_us)[:19]}Z" if order.until_us else ""
    why = f": {order.reason}" if order.reason else ""
    return f"{'frozen' if order.kind == 'freeze' else 'paused'} by order {order.number} of {order.by}{until}{why}"


def of_queue(engine: Engine, shard: int, name: str, next_due_us: int) -> tuple[str, list[Reason]]:
    """How the queue `name` stands in `shard`, whose first delivery is due at `next_due_us`, and why."""
    now_us, domain, tenant = engine.clock_us(), domain_of(name), tenant_of(name)
    queue = engine.scheduler.queues.get((shard, name))
    flying = len(queue.in_flight) if queue is not None else 0
    lane = engine.ways.lane_of(domain, engine.controls.pool_of(name))
    held = engine.controls.held(name)
    if held is not None:
        return "paused", [_ordered(held)]
    if next_due_us >= HELD_US:
        return "paused", [Reason("order", "all that is left of it is held by orders (`mta orders`)",
                                 remedy="`mta resume`")]
    if engine.stopping:
        return ("active", [in_flight(flying)]) if flying else (
            "ready", [Reason("shutdown", "the MTA is stopping", remedy="it goes on when the MTA is started again")])
    if domain in engine.ways.routing:
        return "ready", [_routing(engine, domain)]
    found = engine.holds.suspension((f"domain:{domain}", f"tenant:{tenant}"))
    if found is not None:
        return "suspended", [_suspension(engine, *found)]
    if lane is not None and lane.suspended(now_us):
        return "suspended", [_standstill(engine, path) for path, weight in zip(lane.paths, lane.weights, strict=True)
                             if weight]
    if flying:
        return "active", [in_flight(flying)]
    if next_due_us > now_us:
        return "waiting", [Reason("retry", "for its retry time", 0, next_due_us,
                                  "`mta retry` tries it now; `retry` in shaping sets the schedule")]
    ours = _ours(engine, shard, lane)
    if ours is not None or lane is None:
        return "ready", [ours or Reason("loading", "it is being read from disk")]
    limited = of_tenant(engine, tenant)
    if limited is not None:
        return "ready", [limited]
    reasons = [one for path in lane.paths for one in of_path(engine, path, lane, queue)]
    if len(lane.paths) > 1:
        for one, path in zip(reasons, lane.paths, strict=True):
            one.text = f"{path.source.name}: {one.text}"
    return "ready", reasons


def of_path(engine: Engine, path: Path, lane: Lane | None = None, queue: Queue | None = None) -> list[Reason]:
    """What keeps mail that is due from going over `path`."""
    if path.suspended_until_us > engine.clock_us():
        return [_standstill(engine, path)]
    return [_rate(engine, path) or _connection(engine, path) or _limit(engine, path) or _in_turn(lane, queue)]


def of_name(engine: Engine, name: str) -> list[Reason]:
    """What is decided about `source:NAME`, `provider:NAME`, `domain:NAME`, `tenant:NAME`, and how its limit is used."""
    reasons = []
    found = engine.holds.suspension((name,))
    if found is not None:
        reasons.append(_suspension(engine, *found))
    connections, rate = engine.holds.lowest("connections", (name,)), engine.holds.lowest("rate", (name,))
    for held, what in ((connections, "connections"), (rate, "messages a second")):
        if held is not None:
            hold = held[1]
            reasons.append(Reason("limit", f"{name} is held to {hold.value:g} {what}: {hold.reason} "
                                  f"(by {_author(engine, name, hold)})", hold.since_us, hold.until_us,
                                  _lift(name, hold)))
    held_by = engine.limits.holders(name)
    if held_by:
        reasons.append(Reason("limit", f"{sum(held_by.values())} leases of {name} are in use: " + ", ".join(
            f"{count} by worker {worker}" for worker, count in held_by.items())))
    return reasons


def of_tenant(engine: Engine, name: str) -> Reason | None:
    """A limit of the tenant that is reached, the operator's included."""
    tenant, target = engine.pacing.tenants.get(name), f"tenant:{name}"
    if tenant is None:
        return None
    most = tenant.concurrency
    limited = engine.pacing.why(name)
    # Between a lease that was freed and one that is taken again no lane passes it over.
    if limited is None and most is not None and sum(engine.limits.holders(target).values()) >= most:
        limited = Reason("tenant-concurrency", f"limit of {most} messages of tenant {name} in flight is reached",
                         remedy=f"`tenants.{name}.concurrency`", numbers={"limit": most})
    if limited is None:
        return None
    lowered = engine.holds.lowest("rate" if limited.kind == "tenant-rate" else "connections", (target,))
    if lowered is not None and (limited.kind == "tenant-rate" or max(int(lowered[1].value), 1) == most):
        hold = lowered[1]
        limited.text += f"; {target} is limited: {hold.reason} (by {_author(engine, target, hold)})"
        limited.since_us = limited.since_us or hold.since_us
        limited.remedy = _lift(target, hold)
    return limited


# -- what it may be ----------------------------------------------------------------------------------------------


def in_flight(count: int) -> Reason:
    """So many deliveries are under way."""
    return Reason("in-flight", f"being delivered: {count} under way", numbers={"in_flight": count})


def _ordered(order: Order) -> Reason:
    what = f"`mta resume '{order.filter}'`" if order.filter else "`mta resume`"
    return Reason("order", held_by(order), order.at_us, order.until_us, f"{what} ends the order",
                  {"order": order.number})


def _routing(engine: Engine, domain: str) -> Reason:
    shortage = engine.router.shortage
    more = f"; no socket to ask DNS: {shortage}" if shortage else ""
    text, since_us, failed = "its route is being looked up", 0, engine.paths.get(f"?{domain}")
    if failed is not None and failed.reason:
        text, since_us = f"{text} again: {failed.reason}", failed.since_us
    return Reason("routing", f"{text}{more}", since_us, remedy=f"`mta dns {domain}` shows what DNS says")


def _suspension(engine: Engine, name: str, hold: Hold) -> Reason:
    """A decision of a rule or an operator."""
    return Reason("suspension", f"{name} is suspended: {hold.reason} (by {_author(engine, name, hold)})", hold.since_us,
                  hold.until_us, _lift(name, hold))


def _author(engine: Engine, name: str, hold: Hold) -> str:
    if hold.by == "operator":
        for order in engine.controls.orders.orders:
            if order.target == name and order.kind in ("suspend", "limit"):
                return f"order {order.number} of {order.by}"
    return hold.by


def _lift(name: str, hold: Hold) -> str:
    if hold.by.startswith("rule "):
        return f"`mta rules show {hold.by[5:]}` shows the rule"
    kind, colon, rest = name.partition(":")
    target = f"{kind}={rest}" if colon and ">" not in name else f"'{name}'"
    return f"`mta unsuspend {target}`" if hold.what == "all" else f"`mta limit {target} off`"


def _standstill(engine: Engine, path: Path) -> Reason:
    """`path` stands still: its site failed, its source is gone, there is no way at all, or somebody decided so."""
    until_us, since_us, why = path.suspended_until_us, path.since_us, path.reason
    numbers: dict[str, float] = {"failures": path.failures} if path.failures else {}
    if path.name.startswith("?/"):
        return Reason("pool", f"no pool: {why}", since_us, until_us, "`pools` in the configuration, or `mta reroute`",
                      numbers)
    if path.route is None:
        domain = path.name.removeprefix("?")
        return Reason("dns", f"no route: {why}", since_us, until_us, f"`mta dns {domain}` shows what DNS says", numbers)
    if path.suspended_by == "source":
        return Reason("source", f"{path.name} is suspended: {why}", since_us, until_us,
                      f"give the machine the address back, or change `sources.{path.source.name}`")
    if path.suspended_by == "site":
        return Reason("site", f"{path.name} is suspended: {why}", since_us, until_us,
                      "it is tried again by itself; `mta retry --now` tries it at once", numbers)
    found = engine.holds.suspension(names_of(path))
    if found is None:
        return Reason("suspension", f"{path.name} is suspended: {why}", since_us, until_us)
    return _suspension(engine, *found)


def _ours(engine: Engine, shard: int, lane: Lane | None) -> Reason | None:
    """What this machine lacks."""
    trouble = engine.stores[shard].trouble()
    if trouble is not None:
        return Reason("disk", trouble, remedy="make room on the spool's disk")
    if engine.limits.trouble:
        return Reason("table", f"the table of limits cannot be written: {engine.limits.trouble}",
                      remedy="make room in the runtime directory (`run`)")
    if engine.choked():  # by another shard
        return Reason("disk", "the spool's disk does not keep up, outcomes cannot be written down",
                      remedy="a faster disk, or less other use of it")
    if lane is None and engine.scheduler.starved:
        return Reason("memory", "waits for room in memory", remedy="`memory.deliveries`",
                      numbers={"deliveries": engine.scheduler.deliveries})
    return None




def _rate(engine: Engine, path: Path) -> Reason | None:
    now_s, now_us = engine.monotonic(), engine.clock_us()
    adapted = engine.adapting.why(path) if path.blocked or path.paced else ""

    def at_us(time_s: float) -> int:
        return now_us + int((time_s - now_s) * 1e6)

    if path.blocked:
        return Reason("adaptation", f"{path.name}: {adapted}", 0, at_us(path.not_before_s),
                      "it finds out by itself when the receiver takes more; `adaptive` in shaping")
    if path.not_before_s > now_s:
        wait_s = path.not_before_s - now_s
        after = f"; {adapted}" if adapted else ""
        text = (f"rate of {path.name} ({_rates(path.message_rates)}) is used up, the next message goes in "
                f"{wait_s:.1f} s{after}")
        slowest = max(path.message_rates, key=lambda one: one.spacing, default=None)
        held = engine.holds.lowest("rate", names_of(path))
        if held is not None and slowest is not None and slowest.name == f"{held[0]} held":
            name, hold = held
            return Reason("rate", f"{text}; {name} is held to {hold.value:g}/s: {hold.reason} "
                          f"(by {_author(engine, name, hold)})", hold.since_us, at_us(path.not_before_s),
                          _lift(name, hold))
        if slowest in path.paced:
            return Reason("adaptation", text, 0, at_us(path.not_before_s), "`adaptive` in shaping")
        return Reason("rate", text, 0, at_us(path.not_before_s), "`message_rate` in shaping (`mta shaping show`)")
    if path.open_not_before_s > now_s:
        return Reason("connection-rate", f"rate of new connections to {path.name} ({_rates(path.connection_rates)}) is "
                      "used up", 0, at_us(path.open_not_before_s), "`connection_rate` in shaping (`mta shaping show`)")
    return None


def _rates(buckets: Iterable[Bucket]) -> str:
    return ", ".join(_rate_in_words(one) for one in buckets)


def _rate_in_words(bucket: Bucket) -> str:
    """As it is configured; of what a hold or adaptation says the number."""
    text = bucket.name.rpartition(" ")[2]
    return per_time(bucket.count / bucket.period_s) if text in ("held", "pace") else text


def _connection(engine: Engine, path: Path) -> Reason | None:
    """What about the opening of connections makes it wait."""
    connecting = engine.connecting
    if path in connecting.room:
        if connecting.room.shortage:
            return Reason("sockets", "this machine has no socket for one more connection: "
                          f"{connecting.room.shortage}", remedy="LimitNOFILE, net.ipv4.ip_local_port_range")
        most = connecting.room.most
        return Reason("descriptors", f"the descriptors of a worker allow {most} connections, and there are as many",
                      remedy="LimitNOFILE, more `workers`", numbers={"connections": most})
    if path in connecting.opening or path in connecting.probing:
        return Reason("openings", "many connections are being opened, its turn comes")
    if path.opening:
        probe = f" as a probe, after: {path.reason}" if path.probing else ""
        return Reason("opening", f"a connection is being opened{probe}", path.since_us if path.probing else 0,
                      remedy="`timeouts.connect` in shaping", numbers={"opening": path.opening})
    wait_s = path.hold_until_s - engine.monotonic()
    if wait_s > 0:
        return Reason("refusals", f"no further connection for a while: {path.reason}", 0,
                      engine.clock_us() + int(wait_s * 1e6), "the site refuses more connections than it has",
                      {"connections": len(path.connections)})
    return None


def _limit(engine: Engine, path: Path) -> Reason | None:
    """Which limit of connections is reached."""
    limit = path.waiting_for
    if not limit:
        if len(path.connections) < path.most:
            return None
        limit = path.lease
    held = engine.limits.holders(limit)
    numbers: dict[str, float] = {f"held_by_worker_{worker}": count for worker, count in held.items()}
    if limit == TOTAL:
        most = engine.config.delivery.connections
        return Reason("total", f"limit of {most} connections in all is reached", remedy="`delivery.connections`",
                      numbers={"limit": most, **numbers})
    if limit != path.lease:
        most = dict(path.leases).get(limit, 0)
        lower = engine.holds.lowest("connections", (limit,))
        if lower is not None and limit not in path.totals:
            hold = lower[1]
            return Reason("limit", f"limit of {most} connections in all to {limit} is reached, over all workers: "
                          f"{hold.reason} (by {_author(engine, limit, hold)})", hold.since_us, hold.until_us,
                          _lift(limit, hold), {"limit": most, **numbers})
        return Reason("limit", f"limit of {most} connections in all to {limit} is reached, over all workers",
                      remedy="`total_connections` in shaping (`mta shaping show`)", numbers={"limit": most, **numbers})
    learned = engine.limits.learned(path.lease)
    if path.waiting_for and learned:
        said = f": {path.reason}" if path.reason else ""
        return Reason("learned-limit", f"limit of {learned} connections to {path.name} is reached, the site takes no "
                      f"more{said}", remedy="it is tried again by itself whether the site takes more",
                      numbers={"limit": learned, **numbers})
    over = ", over all workers" if path.waiting_for else ""
    numbers["limit"] = path.most
    text = f"limit of {path.most} connections to {path.name} is reached{over}"
    configured = path.shaping.connections
    lowered = engine.holds.lowest("connections", names_of(path))
    if lowered is not None and path.most < path.allowed:
        name, hold = lowered
        return Reason("limit", f"{text}; lowered by {_author(engine, name, hold)}: {hold.reason}", hold.since_us,
                      hold.until_us, _lift(name, hold), numbers)
    if path.most == path.allowed < configured:
        return Reason("limit", f"{text} ({configured} are configured; more as it takes mail)",
                      remedy="it grows by itself; `adaptive.connections_first` in shaping", numbers=numbers)
    return Reason("limit", text, remedy="`connections` in shaping (`mta shaping show`)", numbers=numbers)


def _in_turn(lane: Lane | None, queue: Queue | None) -> Reason:
    """Nothing forbids it: connections pull one after the other."""
    if lane is None:
        return Reason("turn", "others of its queue go first")
    queues, backlog = lane.turns.count, lane.backlog(10_000)
    before = list(lane.turns.active())
    numbers: dict[str, float] = {"queues": queues, "deliveries": backlog, "connections": len(lane.connections)}
    if queue is not None and queue in before:
        numbers["queues_before"] = before.index(queue)
    return Reason("turn", f"its turn comes: {len(lane.connections)} connections of {lane.name} serve "
                  f"{backlog} deliveries of {queues} queues", remedy="`connections` in shaping, `tenants.NAME.weight`",
                  numbers=numbers)
