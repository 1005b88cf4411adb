"""From a queue to the lane that its mail takes: route, pool, and the paths that they lead to.

A queue keeps its lane as long as the route is believed. What pool a queue's label names is looked up whenever its lane
is, so a change of the configuration moves mail that waits. A lane and its paths are forgotten when they have nothing to
do, but for paths that remember that their site failed; those are bounded in number. For LANES_KEPT domains the lane is
kept all the same, for what is known of the way: shrunk, and no mail waits in it any more.

Mail that has no way now waits behind a path of its own that stands still: `?domain` when there is no route, `?/pool`
when the configuration has no such pool.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from mta.delivery.holders import TOTAL
from mta.delivery.lane import Lane
from mta.delivery.pacing import buckets
from mta.delivery.path import Path
from mta.delivery.routing import Route, RouteFailure
from mta.delivery.starts import Start, Starts
from mta.queue.scheduler import Queue, domain_of
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.sources import Source

LANES_KEPT = 50_000  # by domain and pool
PATHS_KEPT = 20_000  # of those that have nothing to do but remember that their site failed
YOUNG_ROUTES = 100  # routes that are looked up at once (`mta.delivery.starts`), each by a greenlet of some 15 KB
ROUTES = 2000
GIVE_UP_BATCH = 100
# How long mail sleeps whose pool does not exist, or that has no way by our configuration; a reload wakes it.
NO_WAY_S = 600.0

log = logging.getLogger(__name__)


class Ways:
    """The lanes of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lanes: OrderedDict[str, Lane] = OrderedDict()  # by `Queue.way`
        self._before: dict[str, Lane] = {}  # as of the last reload, where they have not been found anew since
        self._routes = engine.config.routes
        self.routing: dict[str, list[Queue]] = {}  # queues that wait for the route of a domain
        self._unrouted: OrderedDict[str, None] = OrderedDict()  # of those domains, the ones whose turn is yet to come
        self._starts = Starts(YOUNG_ROUTES, ROUTES)
        self._is_called = False  # for those that have to wait
        self._forget_above = PATHS_KEPT  # number of paths

    def configure(self) -> None:
        """Find all lanes anew: the configuration has changed."""
        engine = self._engine
        before = {**self._before, **self._lanes} if engine.config.routes == self._routes else {}
        kept = list(before.items())[-LANES_KEPT:]
        self._before = {way: lane for way, lane in kept if lane.pool not in engine.sources.changed}
        self._routes = engine.config.routes
        self._lanes.clear()
        for lane in engine.lanes.values():
            lane.turns.configure(engine.weights, engine.config.turns.ageing)
        for path in list(engine.paths.values()):
            if path.name.startswith("?"):  # there may be such a pool now, or a way
                path.suspended_until_us = path.failures = 0
        engine.scheduler.repark(
            lambda name, until_us: engine.clock_us() if (
                engine.controls.pool_of(name) in engine.sources.changed or f"?{domain_of(name)}" in engine.paths)
            else until_us)
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
        if self._engine.router.is_at_hand(queue.domain):  # it does not wait for those that are to be asked for
            self._engine.hub.spawn(self._route, queue.domain)
            return
        self._unrouted[queue.domain] = None
        self._look_up()

    def _look_up(self) -> None:
        """Begin to look up the routes that wait for it, as many as there is room for."""
        engine = self._engine
        now_s = engine.monotonic()
        while self._unrouted and self._starts.has_room(now_s):
            engine.hub.spawn(self._look_one_up, self._unrouted.popitem(last=False)[0], self._starts.begin(now_s))
        if self._unrouted and not self._is_called:
            wait_s = self._starts.next_s(now_s)
            if wait_s is not None:
                self._is_called = True
                engine.hub.later(wait_s, self._called)

    def ahead_of(self, domain: str) -> int:
        """How many lookups are under way while that of `domain` is not begun; 0 when it is, or nobody wants it."""
        return self._starts.under_way if domain in self._unrouted else 0

    def _called(self) -> None:
        self._is_called = False
        self._look_up()

    def _look_one_up(self, domain: str, start: Start) -> None:
        try:
            self._route(domain)
        finally:
            self._starts.end(start)
            self._look_up()

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
            wait_s = found.expires - engine.monotonic()
            engine.keeper.pause(path, NO_WAY_S if wait_s == math.inf else wait_s)
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

    def likely_lane_of(self, domain: str, pool: str = "") -> Lane | None:
        """The same, and after a reload the lane that it was before: mail that is not in memory will most likely take
        that again. To tell people, and to find what may be let go; not to hold anything."""
        return self.lane_of(domain, pool) or self._before.get(f"{domain}/{pool}" if pool else domain)

    def _remember(self, queue: Queue, route: Route) -> Lane:
        """The lane of `queue` by this route, made if need be."""
        lane = self._lane(route, queue.domain, queue.pool)
        self._before.pop(queue.way, None)
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
                engine.keeper.pause(path, NO_WAY_S)
            return lane
        site = self.site_of(route, domain)
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
            self.drop_path(path)
        return lane

    def site_of(self, route: Route, domain: str) -> str:
        """The site, in the names of paths, of mail to `domain`: one with shaping of its own has connections of its own,
        and so has one that an operator has limited."""
        is_apart = self._engine.config.shaping.separates(domain) or self._engine.holds.limits(domain)
        return f"{route.site}+{domain}" if is_apart else route.site

    @staticmethod
    def path_name(source: Source, site: str) -> str:
        """The name of the path from `source` to `site`."""
        return f"{source.name}>{site}" if source.name else site

    def lead(self, path: Path, site: str, route: Route, domain: str) -> None:
        """Have `path` lead to `site` by this route."""
        if site != route.site:
            path.domain = domain
            if not self._engine.config.shaping.separates(domain):
                path.beside = self.path_name(path.source, route.site)
        path.route = route
        path.provider = route.provider

    def find_again(self, domains: Collection[str]) -> None:
        """Mail to these domains takes other connections from now on. Looks at all queues in memory."""
        engine = self._engine
        left: dict[Lane, None] = {}
        for domain in domains:
            for pool in ("", *engine.config.pools):
                way = f"{domain}/{pool}" if pool else domain
                self._before.pop(way, None)
                lane = self._lanes.pop(way, None)
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
        name = self.path_name(source, site)
        is_new = name not in self._engine.paths
        path = self._named(name, source, domain)
        path.source = source
        self.lead(path, site, route, domain)
        rules = self._engine.config.shaping
        shaping = path.shaping = rules.effective(source.name, route.provider, domain)
        if is_new:
            self._engine.breakers.recall(path)
        if source.lost and path.suspended_by != "source":
            self._engine.keeper.hold_for_source(path)
        totals, counted = rules.totals(source.name, route.provider, domain), path.totals
        path.totals = {TOTAL: self._engine.config.delivery.connections, **{
            total.name: total.connections for total in totals if total.connections is not None}}
        if path.connections:
            for total_name, limit in path.totals.items() - counted.items():
                self._engine.connecting.count_in(total_name, limit, path.connections)
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
        """Forget a lane that has nothing to do, and those of its paths that nobody else needs. Those who knew it still
        know its route."""
        self._engine.lanes.pop(lane.name, None)
        lane.turns.shrink()
        for path in lane.paths:
            path.lanes.pop(lane, None)
            self.drop_path(path)

    def drop_path(self, path: Path) -> None:
        """Forget `path` if nobody needs it, and there is nothing to remember of it."""
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
