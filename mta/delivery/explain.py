"""Why mail does not move: of a queue, a delivery, a tenant. Every state has a reason.

    standing(engine, shard, name, due_us)   for `mta queue`: state and reason in one line
    of_queue(engine, shard, name, due_us)   state, and all reasons as records
    of_delivery(engine, delivery)           the same of one delivery, its retry included
    of_name(engine, name)                   what is decided about a source, provider, domain or tenant

It only looks, at what the engine knows in memory and at the table of limits; nothing is read from disk for it. Where
mail would go whose lane is not in memory is looked up before, if it is to be told (`foresee`). Paths are in
`mta.delivery.pathreasons`; how what was decided is told, in `mta.delivery.decisions`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from mta.delivery.decisions import decided, end_of, lifted_by, ordered, state_of, suspension, value_of
from mta.delivery.holds import most_of
from mta.delivery.pathreasons import in_turn, of_path, standstill, stopped_paths
from mta.delivery.reason import Reason
from mta.queue.ids import format_id, shard_of
from mta.queue.orders import HELD_US, due_of
from mta.queue.records import Delivery
from mta.queue.scheduler import domain_of, tenant_of

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.lane import Lane


class Standing(NamedTuple):
    """How a queue stands in one shard."""

    state: str  # "active", "ready" (due, waits for something of ours), "waiting" (not due), "suspended", "paused"
    reason: str  # why nothing moves, in words; empty when it moves
    in_flight: int  # deliveries handed to a connection
    connections: int  # of its lane
    until_us: int = 0  # until when it is suspended or paused; 0: not known, or not at all


def standing(engine: Engine, shard: int, name: str, next_due_us: int) -> Standing:
    """How the queue `name` stands, whose first delivery is due at `next_due_us`."""
    state, reasons = of_queue(engine, shard, name, next_due_us)
    queue = engine.scheduler.queues.get((shard, name))
    lane = engine.ways.lane_of(domain_of(name), engine.controls.pool_of(name))
    return Standing(state, brief(engine, [*(reasons if state != "active" else ()), *rerouted(engine, name)]),
                    len(queue.in_flight) if queue is not None else 0,
                    len(lane.connections) if lane is not None else 0,
                    min((one.until_us for one in reasons), default=0) if state in ("suspended", "paused") else 0)


def foresee(engine: Engine, queues: Iterable[str], in_list: bool = False) -> None:
    """Find out where mail of these queues would go, so that what stands still for it can be told. Waits for DNS, a
    moment only when they are part of a list."""
    look = engine.foresight.look_in_list if in_list else engine.foresight.look
    look((domain_of(name), engine.controls.pool_of(name)) for name in queues)


def why_not_now(engine: Engine, shard: int, name: str) -> str:
    """Why a delivery of the queue `name` that is due is not being delivered, in one line."""
    return brief(engine, of_due(engine, shard, name)[1])


def rerouted(engine: Engine, name: str) -> list[Reason]:
    """That the queue `name` goes by another pool than its label says, which holds up nothing."""
    order = engine.controls.rerouted(name)
    if order is None:
        return []
    why = f": {order.reason}" if order.reason else ""
    return [Reason("reroute", f"it goes by pool {order.pool} by order {order.number} of {order.by}{why}", order.at_us,
                   order.until_us, f"`mta orders cancel {order.number}` has it go by its own pool again")]


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
            return state_of(order), [ordered(order)]
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
    return "ready", others or [in_turn(lane, engine.scheduler.queues.get((shard, name)))]


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


def of_queue(engine: Engine, shard: int, name: str, next_due_us: int) -> tuple[str, list[Reason]]:
    """How the queue `name` stands in `shard`, whose first delivery is due at `next_due_us`, and why."""
    now_us, domain, tenant = engine.clock_us(), domain_of(name), tenant_of(name)
    queue = engine.scheduler.queues.get((shard, name))
    flying = len(queue.in_flight) if queue is not None else 0
    lane = engine.ways.lane_of(domain, engine.controls.pool_of(name))
    held = engine.controls.held(name)
    if held is not None:
        return state_of(held), [ordered(held)]
    if next_due_us >= HELD_US:
        return "paused", [Reason("order", "all that is left of it is held by orders (`mta orders`)",
                                 remedy="`mta orders cancel NUMBER` ends one")]
    if engine.stopping:
        return ("active", [in_flight(flying)]) if flying else (
            "ready", [Reason("shutdown", "the MTA is stopping", remedy="it goes on when the MTA is started again")])
    if domain in engine.ways.routing:
        return "ready", [_routing(engine, domain)]
    found = engine.holds.suspension((f"domain:{domain}", f"tenant:{tenant}"))
    if found is not None:
        return "suspended", [suspension(engine, *found)]
    pool = engine.controls.pool_of(name)
    likely = engine.ways.likely_lane_of(domain, pool) or engine.foresight.lane_of(domain, pool)
    if likely is not None and (stopped := stopped_paths(engine, likely)):
        return "suspended", [standstill(engine, path, domain) for path in stopped]
    if flying:
        return "active", [in_flight(flying)]
    if next_due_us > now_us:
        return "waiting", [Reason("retry", "for its retry time", 0, next_due_us,
                                  f"`mta retry --queue '{name}'` tries it now; `retry` in shaping sets the schedule")]
    ours = _ours(engine, shard, lane)
    if ours is not None or lane is None:
        damage = engine.stores[shard].damage  # what lies there is never read
        return "ready", [ours or (Reason("disk", damage) if damage else
                                  Reason("loading", "it is being read from disk"))]
    limited = of_tenant(engine, tenant)
    if limited is not None:
        return "ready", [limited]
    reasons = [one for path in lane.paths for one in of_path(engine, path, lane, queue)]
    if len(lane.paths) > 1:
        for one, path in zip(reasons, lane.paths, strict=True):
            one.text = f"{path.source.name}: {one.text}"
        if any(one.kind == "opening" for one in reasons):  # what could go by another source waits for this one
            reasons = [one for one in reasons if one.kind != "turn"]
    return "ready", reasons


def of_name(engine: Engine, name: str) -> list[Reason]:
    """What is decided about `source:NAME`, `provider:NAME`, `domain:NAME`, `tenant:NAME`, and how its limit is used."""
    reasons = []
    found = engine.holds.suspension((name,))
    if found is not None:
        reasons.append(suspension(engine, *found))
    connections, rate = engine.holds.lowest("connections", (name,)), engine.holds.lowest("rate", (name,))
    for held in (connections, rate):
        if held is not None:
            hold = held[1]
            reasons.append(Reason("limit", f"{name} is held to {value_of(hold)}: {decided(engine, name, hold)}",
                                  hold.since_us, end_of(hold), lifted_by(name, hold)))
    held_by = engine.limits.holders(name)
    if held_by:
        count = sum(held_by.values())
        reasons.append(Reason("limit", f"{count} lease{'s are' if count > 1 else ' is'} in use of {name}: " + ", ".join(
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
    if lowered is not None and (limited.kind == "tenant-rate" or most_of(lowered[1]) == most):
        hold = lowered[1]
        limited.text += f"; {target} is limited: {decided(engine, target, hold)}"
        limited.since_us = limited.since_us or hold.since_us
        limited.remedy = lifted_by(target, hold)
    return limited


# -- what it may be ----------------------------------------------------------------------------------------------


def in_flight(count: int) -> Reason:
    """So many deliveries are under way."""
    return Reason("in-flight", f"being delivered: {count} under way", numbers={"in_flight": count})


def _routing(engine: Engine, domain: str) -> Reason:
    shortage = engine.router.shortage
    more = f"; no socket to ask DNS: {shortage}" if shortage else ""
    text, since_us, failed = "its route is being looked up", 0, engine.paths.get(f"?{domain}")
    if ahead := engine.ways.ahead_of(domain):
        text = f"its route is to be looked up, those of {ahead} other domains are being"
    if failed is not None and failed.reason:
        text, since_us = f"{text} again: {failed.reason}", failed.since_us
    return Reason("routing", f"{text}{more}", since_us, remedy=f"`mta dns {domain}` shows what DNS says")


def _ours(engine: Engine, shard: int, lane: Lane | None) -> Reason | None:
    """What this machine lacks."""
    for store in (engine.stores[shard], *engine.stores.values()):
        trouble = store.trouble()
        if trouble is not None:
            return Reason("disk", trouble, remedy="" if trouble == store.damage else
                          "make room on the spool's disk, or see what slows it down")
    if engine.limits.trouble:
        return Reason("table", f"the table of limits cannot be written: {engine.limits.trouble}",
                      remedy="make room in the runtime directory (`run`)")
    if lane is None and engine.scheduler.starved:
        return Reason("memory", "waits for room in memory", remedy="`memory.deliveries`",
                      numbers={"deliveries": engine.scheduler.deliveries})
    return None


