"""Why mail does not move: the state of a queue and its reason in words, for `mta queue` and `mta message`.

It only looks, at what engine, path, store and scheduler know in memory; nothing is read from disk for it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from mta.queue.scheduler import domain_of

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.path import Path


class Standing(NamedTuple):
    """How a queue stands in one shard."""

    state: str  # "active", "ready" (due, waits for something of ours), "waiting" (not due), "suspended"
    reason: str  # why nothing moves, in words; empty when it moves
    in_flight: int  # deliveries handed to a connection
    connections: int  # of its path


def standing(engine: Engine, shard: int, name: str, next_due_us: int) -> Standing:
    """How the queue `name` stands, whose first delivery is due at `next_due_us`."""
    queue = engine.scheduler.queues.get((shard, name))
    domain = domain_of(name)
    path = engine.path_of(domain)
    in_flight = len(queue.in_flight) if queue is not None else 0
    state, reason = _state(engine, shard, domain, path, next_due_us, in_flight)
    return Standing(state, reason, in_flight, len(path.connections) if path is not None else 0)


def why_not_now(engine: Engine, shard: int, name: str) -> str:
    """Why a delivery of the queue `name` that is due is not being delivered."""
    found = standing(engine, shard, name, 0)
    return found.reason or "others of its queue go first"


def _state(engine: Engine, shard: int, domain: str, path: Path | None, next_due_us: int,
           in_flight: int) -> tuple[str, str]:
    now_us = engine.clock_us()
    if engine.stopping:
        return ("active", "") if in_flight else ("ready", "the MTA is stopping")
    if domain in engine.routing:
        shortage = engine.router.shortage
        return "ready", "its route is being looked up" + (f"; no socket to ask DNS: {shortage}" if shortage else "")
    if path is not None and path.suspended_until_us > now_us:
        seconds = (path.suspended_until_us - now_us) // 1_000_000
        what = "no route" if path.route is None else f"{path.name} is suspended"
        return "suspended", f"{what} for another {seconds} s: {path.reason}"
    if in_flight:
        return "active", ""
    if next_due_us > now_us:
        return "waiting", "for its retry time"
    trouble = engine.stores[shard].trouble()
    if trouble is not None:
        return "ready", trouble
    if engine.choked():  # by another shard
        return "ready", "the spool's disk does not keep up, outcomes cannot be written down"
    if path is None:
        return "ready", "waits for room in memory" if engine.scheduler.starved else "it is being read from disk"
    return "ready", _why(engine, path)


def _why(engine: Engine, path: Path) -> str:
    """What keeps mail that is due from going over `path`."""
    if path in engine.room:
        if engine.room.shortage:
            return f"this machine has no socket for one more connection: {engine.room.shortage}"
        return f"the descriptors of a worker allow {engine.room.most} connections, and there are as many"
    if path in engine.opening or path in engine.probing:
        return "many connections are being opened, its turn comes"
    if path.opening:
        return "a connection is being opened" + (f" as a probe, after: {path.reason}" if path.probing else "")
    if path.hold_until_s > time.monotonic():
        return f"no further connection for a while: {path.reason}"
    if path.waiting_for:
        if path.waiting_for != path.lease:
            return f"limit of {engine.config.delivery.connections} connections in all is reached"
        learned = engine.limits.learned(path.lease)
        if learned:
            said = f": {path.reason}" if path.reason else ""
            return f"limit of {learned} connections to {path.name} is reached, the site takes no more{said}"
        return f"limit of {path.shaping.connections} connections to {path.name} is reached, over all workers"
    if len(path.connections) >= path.shaping.connections:
        return f"limit of {path.shaping.connections} connections to {path.name} is reached"
    return "its turn comes"
