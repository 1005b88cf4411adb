"""Why mail that is due does not go over a path: it stands still, or waits for a rate, a connection, a limit, its turn.

The first of these that holds is told. It only looks, at what the engine knows in memory and at the table of limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mta.delivery.decisions import decided, end_of, lifted_by, suspension, value_of
from mta.delivery.holders import TOTAL
from mta.delivery.holds import counts_all, most_of, names_of
from mta.delivery.pace import per_time
from mta.delivery.pathstate import SITE
from mta.delivery.reason import Reason

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.lane import Lane
    from mta.delivery.path import Path
    from mta.delivery.rates import Bucket
    from mta.queue.scheduler import Queue


def of_path(engine: Engine, path: Path, lane: Lane | None = None, queue: Queue | None = None) -> list[Reason]:
    """What keeps mail that is due from going over `path`."""
    if path.suspended_until_us > engine.clock_us():
        return [standstill(engine, path, lane.domain if lane is not None else "")]
    return [_rate(engine, path) or _connection(engine, path) or _limit(engine, path) or _again(path, lane)
            or in_turn(lane, queue)]


def stopped_paths(engine: Engine, lane: Lane) -> list[Path]:
    """The paths of `lane` when all of them stand still. What was decided since a lane that had nothing to do was
    forgotten its paths do not know; those that remember a failure are still in use."""
    now_us, live = engine.clock_us(), engine.lanes.get(lane.name) is lane
    used = [path for path, weight in zip(lane.paths, lane.weights, strict=True) if weight]
    stopped = [path for path in used if (
        (path.suspended_until_us > now_us and (live or path.suspended_by in ("site", "source")))
        or (not live and engine.holds.suspension(names_of(path)) is not None))]
    return stopped if len(stopped) == len(used) else []


def standstill(engine: Engine, path: Path, domain: str = "") -> Reason:
    """`path` stands still: its site failed, its source is gone, there is no way at all, or somebody decided so."""
    until_us, since_us, why = path.suspended_until_us, path.since_us, path.reason
    numbers: dict[str, float] = {"failures": path.failures} if path.failures else {}
    if path.name.startswith("?/"):
        return Reason("pool", f"no pool: {why}", since_us, until_us, "`pools` in the configuration, or `mta reroute`",
                      numbers)
    if path.route is None:
        domain = path.name.removeprefix("?")
        remedy = f"`mta dns {domain}` shows what DNS says; `mta retry --domain {domain} --now` asks again at once"
        return Reason("dns", f"no route: {why}", since_us, until_us, remedy, numbers)
    is_over = until_us <= engine.clock_us()  # then it is a decision, of which a path that is not in use does not know
    if path.suspended_by == "source" and not is_over:
        return Reason("source", f"{path.name} is suspended: {why}", since_us, until_us,
                      f"give the machine the address back, or change `sources.{path.source.name}`")
    if path.suspended_by == "site" and not is_over:
        now = f"`mta retry --domain {domain or _domain_of(path)} --now`"
        return Reason("site", f"{path.name} is suspended: {why}", since_us, until_us,
                      f"it is tried again by itself; {now} tries it at once", numbers)
    found = engine.holds.suspension(names_of(path))
    if found is None:
        return Reason("suspension", f"{path.name} is suspended: {why}", since_us, until_us)
    return suspension(engine, *found)


def _domain_of(path: Path) -> str:
    """One whose mail goes over it."""
    return path.domain or next((lane.domain for lane in path.lanes), "DOMAIN")


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
        if not path.overtakes and any(not one.name.startswith(f"{path.name} ") for one in path.message_rates):
            after = f", later if transactional mail to other sites comes first{after}"
        text = (f"rate of {path.name} ({_rates(path.message_rates)}) is used up, the next message goes in "
                f"{wait_s:.1f} s{after}")
        slowest = max(path.message_rates, key=lambda one: one.spacing, default=None)
        held = engine.holds.lowest("rate", names_of(path))
        if held is not None and slowest is not None and slowest.name == f"{held[0]} held":
            name, hold = held
            return Reason("rate", f"{text}; {name} is held to {value_of(hold)}: {decided(engine, name, hold)}",
                          hold.since_us, at_us(path.not_before_s), lifted_by(name, hold))
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
        return _opening(engine, path)
    wait_s = path.hold_until_s - engine.monotonic()
    if wait_s > 0:
        return Reason("refusals", f"no further connection for a while: {path.reason}", 0,
                      engine.clock_us() + int(wait_s * 1e6), "the site refuses more connections than it has",
                      {"connections": len(path.connections)})
    return None


_OPENING = (("greeting", "greeting"), ("HELO", "ehlo"), ("EHLO", "ehlo"), ("TLS", "starttls"))  # what it waits for


def _opening(engine: Engine, path: Path) -> Reason:
    """What the connection that has been opened longest waits for."""
    first = min((one for one in path.connections if not one.established), key=lambda one: one.opened_s, default=None)
    waits = first.wire.waiting_for if first is not None else ""
    since_us = engine.clock_us() - int((engine.monotonic() - first.opened_s) * 1e6) if first is not None else 0
    how = f" as a probe, after: {path.reason}" if path.probing else f", and waits for {waits}" if waits else ""
    limit = next((name for word, name in _OPENING if word in waits), "connect")
    return Reason("opening", f"a connection is being opened{how}", since_us,
                  remedy=f"it is given up after `timeouts.{limit}` in shaping", numbers={"opening": path.opening})


def _limit(engine: Engine, path: Path) -> Reason | None:
    """Which limit of connections is reached."""
    limit = path.waiting_for
    if not limit:
        if len(path.connections) < path.most:
            return None
        limit = path.lease
    held = engine.limits.holders(limit)
    if limit.startswith(SITE):
        by = f" by worker {next(iter(held))}" if held else ""
        return Reason("site", f"{path.name} is being tried{by}, after: {path.reason}", path.since_us,
                      remedy="it goes on when that is taken", numbers={"failures": path.failures})
    numbers: dict[str, float] = {f"held_by_worker_{worker}": count for worker, count in held.items()}
    if limit == TOTAL:
        most = engine.config.delivery.connections
        return Reason("total", f"limit of {most} connections in all is reached", remedy="`delivery.connections`",
                      numbers={"limit": most, **numbers})
    if limit != path.lease:
        most = dict(path.leases).get(limit, 0)
        lower = engine.holds.lowest("connections", (limit,)) if counts_all(limit) else None
        if lower is not None and most == most_of(lower[1]):
            hold = lower[1]
            return Reason("limit", f"limit of {most} connections in all to {limit} is reached, over all workers: "
                          f"{decided(engine, limit, hold)}", hold.since_us, end_of(hold),
                          lifted_by(limit, hold), {"limit": most, **numbers})
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
        return Reason("limit", f"{text}; lowered: {decided(engine, name, hold)}", hold.since_us,
                      end_of(hold), lifted_by(name, hold), numbers)
    if path.most == path.allowed < configured:
        return Reason("limit", f"{text} ({configured} are configured; more as it takes mail)",
                      remedy="it grows by itself; `adaptive.connections_first` in shaping", numbers=numbers)
    return Reason("limit", text, remedy="`connections` in shaping (`mta shaping show`)", numbers=numbers)


def _again(path: Path, lane: Lane | None) -> Reason | None:
    """The pause after a failure has just ended, and what waited for that has not come to its lane yet. Nothing is to be
    told of a path that nobody has mail for, or while another one of its lane serves."""
    if not path.failures or not path.reason or lane is None or any(one.connections for one in lane.paths):
        return None
    numbers: dict[str, float] = {"failures": path.failures}
    if path.route is None:
        return Reason("routing", f"its route is being looked up again, after: {path.reason}", path.since_us,
                      numbers=numbers)
    return Reason("site", f"{path.name} is tried again now, after: {path.reason}", path.since_us, numbers=numbers)


def in_turn(lane: Lane | None, queue: Queue | None) -> Reason:
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
