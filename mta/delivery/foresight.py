"""Where mail would go that is not in memory, for people who ask why it waits.

A lane is made when mail is due. After a restart mail that waits for its retry has none, though what stands still for it
is known: suspensions are in the table of limits, by the names of paths. So whoever asks has the routes looked up
(`look`, which waits for DNS), and gets a lane of its own to look at (`lane_of`): nothing is ever sent by it, no engine
has it, and it is forgotten at once.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import gevent
import gevent.pool

from mta.delivery.lane import Lane
from mta.delivery.path import Path
from mta.delivery.routing import Route

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.sources import Source

KEPT: Final = 10_000  # routes
AT_ONCE: Final = 50  # looked up at the same time
ASKED_S: Final = 2.0  # patience with DNS where one thing is asked for
LISTED_S: Final = 0.2  # and for each part of a long list; what comes later is known the next time

log = logging.getLogger(__name__)


class Foresight:
    """The routes that one engine was asked about."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._routes: OrderedDict[str, Route] = OrderedDict()  # by domain

    def configure(self) -> None:
        """Forget them: the configuration has changed."""
        self._routes.clear()

    def look(self, ways: Iterable[tuple[str, str]], wait_s: float = ASKED_S) -> None:
        """Look up the routes of these domains, each with the pool that its mail goes by, where no lane tells, for so
        long at most."""
        engine = self._engine
        domains = {domain: None for domain, pool in ways
                   if engine.ways.likely_lane_of(domain, pool) is None and self._route_of(domain) is None}
        if domains:
            with gevent.Timeout(wait_s, False):  # those that are asked go on
                gevent.pool.Pool(AT_ONCE).map(self._look, domains)

    def look_in_list(self, ways: Iterable[tuple[str, str]]) -> None:
        """The same for a part of a list, which may be long: only while something is suspended that needs it."""
        if self._engine.holds.on_paths:
            self.look(ways, LISTED_S)

    def lane_of(self, domain: str, pool: str = "") -> Lane | None:
        """The lane of this mail as it would be now; None when its route was not looked up, or nothing leads there."""
        engine, route = self._engine, self._route_of(domain)
        weights = engine.sources.pool(pool)
        if route is None or weights is None:
            return None
        site = engine.ways.site_of(route, domain)
        lane = Lane(f"{pool}/{site}" if pool else site, pool, domain)
        lane.route = route
        lane.paths = [self._path(engine.sources.all[name], site, route, domain) for name in weights]
        lane.weights = list(weights.values())
        return lane

    def _look(self, domain: str) -> None:
        try:
            route = self._engine.router.route(domain)
        except Exception:
            log.exception("bug: the route of %s", domain)
            return
        if isinstance(route, Route):
            self._routes[domain] = route
            self._routes.move_to_end(domain)
            if len(self._routes) > KEPT:
                self._routes.popitem(last=False)

    def _route_of(self, domain: str) -> Route | None:
        found = self._routes.get(domain)
        return found if found is not None and found.expires > self._engine.monotonic() else None

    def _path(self, source: Source, site: str, route: Route, domain: str) -> Path:
        """The path of this name, or a copy of what it would be."""
        engine = self._engine
        name = engine.ways.path_name(source, site)
        path = engine.paths.get(name)
        if path is None:
            path = Path(name, source, engine.config.shaping.effective(source.name, route.provider, domain))
            engine.ways.lead(path, site, route, domain)
            engine.breakers.recall(path)
            if source.lost:
                path.suspend(engine.keeper.lost_until_us(), source.lost, "source")
        return path
