"""From a queue to the lane that its mail takes: route, pool, and the paths that they lead to.

A queue keeps its lane as long as the route is believed. What pool a queue's label names is looked up whenever its lane
is, so a change of the configuration moves mail that waits. A lane and its paths are forgotten when they have nothing to
do, but for paths that remember that their site failed; those are bounded in number.

Mail that has no way now waits behind a path of its own that stands still: `?domain` when there is no route, `?/pool`
when the configuration has no such pool.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from mta.delivery.connecting import TOTAL
from mta.delivery.lane import Lane
from mta.delivery.pacing import buckets
from mta.delivery.path import Path
from mta.delivery.routing import Route, RouteFailure
from mta.queue.scheduler import Queue, pool_of
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.sources import Source

LANES_KEPT = 50_000  # by domain and pool
PATHS_KEPT = 20_000  # of those that have nothing to do but remember that their site failed
GIVE_UP_BATCH = 100
NO_POOL_S = 600.0  # how long mail for a pool that does not exist sleeps; a reload wakes it

log = logging.getLogger(__name__)


class Ways:
    """The lanes of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lanes: OrderedDict[str, Lane] = OrderedDict()  # by `Queue.way`
        self.routing: dict[str, list[Queue]] = {}  # queues that wait for the route of a domain
        self._forget_above = PATHS_KEPT  # number of paths

    def configure(self) -> None:
        """Find all lanes anew: the configuration has changed."""
        self._lanes.clear()
        engine = self._engine
        for lane in engine.lanes.values():
            lane.turns.configure(engine.weights, engine.config.turns.ageing)
        for path in list(engine.paths.values()):
            if path.name.startswith("?/"):  # there may be such a pool now
                path.suspended_until_us = path.failures = 0
        engine.scheduler.repark(
            lambda name, until_us: engine.clock_us() if pool_of(name) in engine.sources.changed else until_us)
        for queue in list(engine.scheduler.queues.values()):
            engine.withdraw(queue)
            queue.lane = None
            if queue.ready:
                self.find(queue)

    # -- routes --------------------------------------------------------------------------------------------------

    def find(self, queue: Queue) -> None:
        """Bring `queue` to its lane as soon as that is known."""
        lane = self._lanes.get(queue.way)
        if lane is not None and lane.route is not None and lane.route.expires > self._engine.monotonic():
            queue.lane = lane
            self.bring(queue, lane)
            return
        waiting = self.routing.get(queue.domain)
        if waiting is not None:
            if queue not in waiting:
                waiting.append(queue)
            return
        self.routing[queue.domain] = [queue]
        self._engine.hub.spawn(self._route, queue.domain)

    def _route(self, domain: str) -> None:
        """Find the way for mail to `domain`, and bring the queues that wait for it there."""
        engine = self._engine
        try:
            router = None
            while router is not engine.router:  # a reload in between may have changed the rules
                router = engine.router
                found = router.route(domain)
        except Exception as error:
            log.exception("bug: the route of %s", domain)
            found = RouteFailure(False, 451, "4.3.5", f"internal error: {error}", engine.monotonic())
        queues = self.routing.pop(domain)
        if isinstance(found, RouteFailure):
            if found.permanent:
                self._unroutable(queues, Reply(found.code, found.enhanced, (found.text,), local=True))
                return
            for queue in queues:
                self._lanes.pop(queue.way, None)
            lane = self._dead_end(f"?{domain}", domain)
            path = lane.paths[0]
            path.reason = found.text
            engine.keeper.pause(path, found.expires - engine.monotonic())
        else:
            failing = engine.lanes.get(f"?{domain}")
            if failing is not None:
                self.drop(failing)
                engine.paths.pop(failing.name, None)
        for queue in queues:
            if isinstance(found, Route):
                lane = self._remember(queue, found)
            if isinstance(queue.lane, Lane) and queue.lane is not lane:
                queue.lane.turns.discard(queue)
            queue.lane = lane
            if queue.ready:
                self.bring(queue, lane)

    def _unroutable(self, queues: list[Queue], reply: Reply) -> None:
        """No route will ever lead there: give the mail up, a little at a time."""
        engine = self._engine
        given_up = 0
        for queue in queues:
            while (delivery := engine.scheduler.pop(queue)) is not None:
                engine.dispatch.conclude(queue, delivery, partial(engine.settler.fail, delivery, reply))
                given_up += 1
                if given_up % GIVE_UP_BATCH == 0:
                    engine.hub.sleep(0)

    # -- lanes and paths -----------------------------------------------------------------------------------------

    def bring(self, queue: Queue, lane: Lane) -> None:
        """`queue` has deliveries in memory, and `lane` is its lane. Hot path."""
        engine = self._engine
        if queue.book is not engine.controls.book and not engine.controls.admits(queue):  # with its provider known now
            return
        if engine.lanes.get(lane.name) is not lane:  # it was forgotten while it had nothing to do
            if lane.route is None:
                self.find(queue)
                return
            lane = queue.lane = self._remember(queue, lane.route)
        if engine.holds.on_queues and (until_us := engine.holds.until(queue)):
            engine.scheduler.park(queue, until_us)
            return
        if queue.part.name != lane.name and not engine.scheduler.share(queue, lane.name):
            return
        until_us = lane.suspended(engine.clock_us())
        if until_us:
            engine.scheduler.park(queue, until_us)
            return
        lane.turns.add(queue)
        if queue.tenant in engine.pacing.tenants:
            engine.pacing.came(queue, lane)
        engine.connecting.kick(lane)

    def part_of(self, queue: Queue) -> str:
        """The lane of `queue`, by name, or its domain while that is not known. Hot path."""
        lane = self._lanes.get(queue.way)
        return queue.domain if lane is None else lane.name

    def lane_of(self, domain: str, pool: str = "") -> Lane | None:
        """Where mail to `domain` by `pool` goes, as far as that is known in memory."""
        lanes = self._engine.lanes
        return (self._lanes.get(f"{domain}/{pool}" if pool else domain) or lanes.get(f"?{domain}")
                or (lanes.get(f"?/{pool}") if pool else None))

    def _remember(self, queue: Queue, route: Route) -> Lane:
        """The lane of `queue` by this route, made if need be."""
        lane = self._lane(route, queue.domain, queue.pool)
        if lane.route is not None:
            self._lanes[queue.way] = lane
            self._lanes.move_to_end(queue.way)
            if len(self._lanes) > LANES_KEPT:
                self._lanes.popitem(last=False)
        return lane

    def _lane(self, route: Route, domain: str, pool: str) -> Lane:
        engine = self._engine
        weights = engine.sources.pool(pool)
        if weights is None:
            lane = self._dead_end(f"?/{pool}", domain)
            path = lane.paths[0]
            if path.suspended_until_us <= engine.clock_us():
                path.reason = f"the configuration has no pool {pool}"
                engine.keeper.pause(path, NO_POOL_S)
            return lane
        # A domain with shaping of its own has connections of its own, and so has one that an operator has limited.
        is_apart = engine.config.shaping.separates(domain) or engine.holds.limits(domain)
        site = f"{route.site}+{domain}" if is_apart else route.site
        name = f"{pool}/{site}" if pool else site
        lane = engine.lanes.get(name) or Lane(name, pool, domain)
        if name not in engine.lanes:
            engine.lanes[name] = lane
            lane.turns.configure(engine.weights, engine.config.turns.ageing)
        lane.route = route
        paths = [self._path(engine.sources.all[source], site, route, domain) for source in weights]
        for path in lane.lead_to(paths, list(weights.values())):
            for connection in [one for one in lane.connections if one.path is path]:
                connection.stopping = True
                if connection.idle:
                    connection.wake()
            self._drop_path(path)
        return lane

    def find_again(self, domains: Collection[str]) -> None:
        """Mail to these domains takes other connections from now on. Looks at all queues in memory."""
        engine = self._engine
        left: dict[Lane, None] = {}
        for domain in domains:
            for pool in ("", *engine.config.pools):
                lane = self._lanes.pop(f"{domain}/{pool}" if pool else domain, None)
                if lane is not None:
                    left[lane] = None
        for queue in list(engine.scheduler.queues.values()):
            if queue.domain in domains:
                if isinstance(queue.lane, Lane):
                    left[queue.lane] = None
                engine.withdraw(queue)
                queue.lane = None
                if queue.ready:
                    self.find(queue)
        for lane in left:
            for path in lane.paths:
                engine.dispatch.return_claims(path)
            if not lane.connections and not lane.turns and engine.lanes.get(lane.name) is lane:
                self.drop(lane)

    def _path(self, source: Source, site: str, route: Route, domain: str) -> Path:
        path = self._named(f"{source.name}>{site}" if source.name else site, source, domain)
        if site != route.site:
            path.domain = domain
            if not self._engine.config.shaping.separates(domain):
                path.beside = f"{source.name}>{route.site}" if source.name else route.site
        path.route = route
        path.source = source
        path.provider = route.provider
        rules = self._engine.config.shaping
        shaping = path.shaping = rules.effective(source.name, route.provider, domain)
        if source.lost and path.suspended_by != "source":
            self._engine.keeper.hold_for_source(path)
        totals = rules.totals(source.name, route.provider, domain)
        path.totals = {TOTAL: self._engine.config.delivery.connections, **{
            total.name: total.connections for total in totals if total.connections is not None}}
        before = path.own_rates, path.connection_rates
        path.own_rates = (*buckets(path.name, shaping.message_rate),
                          *(bucket for total in totals for bucket in buckets(total.name, total.rates)))
        path.connection_rates = buckets(f"{path.name} connections", shaping.connection_rate)
        if path.own_rates != before[0] and not path.blocked:
            path.not_before_s = 0.0  # what waited for the old rates asks by these
        if path.connection_rates != before[1]:
            path.open_not_before_s = 0.0
        self._engine.adapting.adopt(path)
        path.unheld()
        self._engine.holds.apply(path)
        return path

    def _dead_end(self, name: str, domain: str) -> Lane:
        """A lane that leads nowhere now."""
        engine = self._engine
        lane = engine.lanes.get(name)
        if lane is None:
            lane = engine.lanes[name] = Lane(name, "", domain)
            lane.lead_to([self._named(name, next(iter(engine.sources.all.values())), domain)], [1])
        return lane

    def _named(self, name: str, source: Source, domain: str) -> Path:
        paths = self._engine.paths
        path = paths.get(name)
        if path is None:
            if len(paths) >= self._forget_above:
                self._forget_paths()
            path = paths[name] = Path(name, source, self._engine.config.shaping.effective(source.name, "", domain))
        return path

    def drop(self, lane: Lane) -> None:
        """Forget a lane that has nothing to do, and those of its paths that nobody else needs."""
        self._engine.lanes.pop(lane.name, None)
        for path in lane.paths:
            path.lanes.pop(lane, None)
            self._drop_path(path)

    def _drop_path(self, path: Path) -> None:
        if not path.lanes and not path.connections:
            self._engine.connecting.stop_waiting(path)
            if not path.failures and self._engine.paths.get(path.name) is path:
                del self._engine.paths[path.name]

    def _forget_paths(self) -> None:
        """Drop the memory of the sites that failed longest ago. Looks at all, so only after many have been added."""
        engine = self._engine
        idle = [path for path in engine.paths.values()
                if not (path.connections or path.claims or any(lane.connections or lane.turns for lane in path.lanes))]
        for path in idle[: max(len(engine.paths) - PATHS_KEPT * 9 // 10, 0)]:
            for lane in list(path.lanes):  # with its other paths, which may be among these
                self.drop(lane)
            engine.paths.pop(path.name, None)
        self._forget_above = max(PATHS_KEPT, len(engine.paths) + PATHS_KEPT // 10)
