"""Why mail does not move: the state of a queue and its reason in words, for `mta queue` and `mta message`.

It only looks, at what engine, path, store and scheduler know in memory; nothing is read from disk for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mta.delivery.connecting import TOTAL
from mta.queue import events
from mta.queue.orders import HELD_US, Order
from mta.queue.scheduler import domain_of, tenant_of

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.lane import Lane
    from mta.delivery.path import Path


class Standing(NamedTuple):
    """How a queue stands in one shard."""

    state: str  # "active", "ready" (due, waits for something of ours), "waiting" (not due), "suspended", "paused"
    reason: str  # why nothing moves, in words; empty when it moves
    in_flight: int  # deliveries handed to a connection
    connections: int  # of its lane


def standing(engine: Engine, shard: int, name: str, next_due_us: int) -> Standing:
    """How the queue `name` stands, whose first delivery is due at `next_due_us`."""
    queue = engine.scheduler.queues.get((shard, name))
    domain = domain_of(name)
    lane = engine.ways.lane_of(domain, engine.controls.pool_of(name))
    in_flight = len(queue.in_flight) if queue is not None else 0
    state, reason = _state(engine, shard, name, domain, tenant_of(name), lane, next_due_us, in_flight)
    return Standing(state, reason, in_flight, len(lane.connections) if lane is not None else 0)


def why_not_now(engine: Engine, shard: int, name: str) -> str:
    """Why a delivery of the queue `name` that is due is not being delivered."""
    found = standing(engine, shard, name, 0)
    return found.reason or "others of its queue go first"


def held_by(order: Order) -> str:
    """Which order holds mail, in words."""
    until = f" until {events.timestamp(order.until_us)[:19]}Z" if order.until_us else ""
    why = f": {order.reason}" if order.reason else ""
    return f"{'frozen' if order.kind == 'freeze' else 'paused'} by order {order.number} of {order.by}{until}{why}"


def _state(engine: Engine, shard: int, name: str, domain: str, tenant: str, lane: Lane | None,
           next_due_us: int, in_flight: int) -> tuple[str, str]:
    now_us = engine.clock_us()
    held = engine.controls.held(name)
    if held is not None:
        return "paused", held_by(held)
    if next_due_us >= HELD_US:
        return "paused", "all that is left of it is held by orders (`mta orders`)"
    if engine.stopping:
        return ("active", "") if in_flight else ("ready", "the MTA is stopping")
    if domain in engine.ways.routing:
        shortage = engine.router.shortage
        return "ready", "its route is being looked up" + (f"; no socket to ask DNS: {shortage}" if shortage else "")
    until_us, why = engine.holds.why(domain, tenant)
    if until_us:
        return "suspended", f"for another {(until_us - now_us) // 1_000_000} s: {why}"
    until_us = lane.suspended(now_us) if lane is not None else 0
    if lane is not None and until_us:
        path = min(lane.paths, key=lambda path: path.suspended_until_us)
        what = path.name if path.route is not None else "no route"
        which = f"{what} is suspended" if path.route is not None else what
        if len(lane.paths) > 1:
            which = f"all paths of {lane.name} are suspended, {what}"
        return "suspended", f"{which} for another {(until_us - now_us) // 1_000_000} s: {path.reason}"
    if in_flight:
        return "active", ""
    if next_due_us > now_us:
        return "waiting", "for its retry time"
    trouble = engine.stores[shard].trouble()
    if trouble is not None:
        return "ready", trouble
    if engine.choked():  # by another shard
        return "ready", "the spool's disk does not keep up, outcomes cannot be written down"
    if lane is None:
        return "ready", "waits for room in memory" if engine.scheduler.starved else "it is being read from disk"
    reason = engine.pacing.why(tenant)
    if reason:
        return "ready", reason
    if len(lane.paths) == 1:
        return "ready", _why(engine, lane.paths[0])
    return "ready", "; ".join(f"{path.source.name}: {_why(engine, path)}" for path in lane.paths)


def _why(engine: Engine, path: Path) -> str:
    """What keeps mail that is due from going over `path`."""
    connecting = engine.connecting
    if path.suspended_until_us > engine.clock_us():
        return f"suspended for another {(path.suspended_until_us - engine.clock_us()) // 1_000_000} s: {path.reason}"
    now_s = engine.monotonic()
    adapted = engine.adapting.why(path) if path.blocked or path.paced else ""
    if path.blocked:
        return f"{path.name}: {adapted}"
    if path.not_before_s > now_s:
        rates = ", ".join(one.name.rpartition(" ")[2] for one in path.message_rates)
        after = f"; {adapted}" if adapted else ""
        return (f"rate of {path.name} ({rates}) is used up, the next message goes in "
                f"{path.not_before_s - now_s:.1f} s{after}")
    if path.open_not_before_s > now_s:
        rates = ", ".join(one.name.rpartition(" ")[2] for one in path.connection_rates)
        return f"rate of new connections to {path.name} ({rates}) is used up"
    if path in connecting.room:
        if connecting.room.shortage:
            return f"this machine has no socket for one more connection: {connecting.room.shortage}"
        return f"the descriptors of a worker allow {connecting.room.most} connections, and there are as many"
    if path in connecting.opening or path in connecting.probing:
        return "many connections are being opened, its turn comes"
    if path.opening:
        return "a connection is being opened" + (f" as a probe, after: {path.reason}" if path.probing else "")
    if path.hold_until_s > engine.monotonic():
        return f"no further connection for a while: {path.reason}"
    if path.waiting_for:
        if path.waiting_for == TOTAL:
            return f"limit of {engine.config.delivery.connections} connections in all is reached"
        if path.waiting_for != path.lease:
            limit = dict(path.leases).get(path.waiting_for, 0)
            return f"limit of {limit} connections in all to {path.waiting_for} is reached, over all workers"
        learned = engine.limits.learned(path.lease)
        if learned:
            said = f": {path.reason}" if path.reason else ""
            return f"limit of {learned} connections to {path.name} is reached, the site takes no more{said}"
        return f"limit of {path.most} connections to {path.name} is reached, over all workers{_adapted(path)}"
    if len(path.connections) >= path.most:
        return f"limit of {path.most} connections to {path.name} is reached{_adapted(path)}"
    return "its turn comes"


def _adapted(path: Path) -> str:
    configured = path.shaping.connections
    return f" ({configured} are configured; more as it takes mail)" if path.most == path.allowed < configured else ""
