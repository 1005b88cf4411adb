"""The circuit breaker of each path, over all workers: one finds out that a site fails, one probes it, all go on.

The pause of a failing site is a hold in the table of limits, on `site:PATH`: until when, since when, the reason, and as
its value the number of failures in a row. It stays there when the pause is over, until a transaction is completed. Who
makes it nudges the others, who then stand still as well. Who probes needs the lease of that name besides those of the
path, and there is one: the others wait for it as for any other, so it goes on to the next when the probe has come to
nothing or its worker was killed. Who has got it looks into the table itself before it connects.

* A worker that has sessions with the site, or is opening one just now, goes by what it sees itself.
* Nothing is written while a site works, and what is written is read by those who have mail for it alone.
* Where there is no room in the table each worker finds out by itself, and they probe one after the other.
* Paths without a route stand still for reasons of this worker's own: its resolver, its configuration.

It is forgotten with the instance (`mta.delivery.learnt` leaves it out): what failed may have been the network of this
machine, whose mending is what it was started again for, and to find out again costs one connection for each site. A
worker that is started anew beside others learns it from the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mta.delivery.path import Path
from mta.delivery.pathstate import SITE, Hold, PathState

if TYPE_CHECKING:
    from mta.delivery.engine import Engine

REASON_MOST: Final = 500  # characters, of what a peer said, in the table


class Breakers:
    """What one engine knows of failing sites."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def leases(self, path: Path) -> list[tuple[str, int]]:
        """What a connection of `path`, whose site failed, needs one of each."""
        return [*path.leases, (SITE + path.name, 1)]

    # -- what happens here ---------------------------------------------------------------------------------------

    def failed(self, path: Path, at_least_s: float = 0.0) -> bool:
        """The site of `path` has failed: it stands still. False if another worker said so before we heard of it."""
        engine, now_us = self._engine, self._engine.clock_us()
        hold: Hold | None = None
        is_ours = True

        def change(state: PathState) -> PathState:
            nonlocal hold, is_ours
            hold, is_ours = _pause(state), False
            if hold is not None and hold.until_us > now_us and _is_news(path, hold):
                return state
            hold, is_ours = _next_pause(path, hold, now_us, at_least_s), True
            return PathState((hold,))

        if path.route is None or not engine.limits.has_room:
            change(PathState())
        else:
            engine.limits.update(SITE + path.name, change)
        assert hold is not None
        if is_ours:
            path.failed(hold.until_us, int(hold.value), hold.since_us)
        else:
            _stop(path, hold)
        return is_ours

    def works(self, path: Path) -> None:
        """The site of `path`, which failed, completed a transaction. When that was a probe all go on at once; while the
        pause lasts it was begun before, and all go on without a probe when that is over."""
        engine, name = self._engine, SITE + path.name
        lasts = path.suspended_until_us > engine.clock_us()
        engine.limits.update(name, lambda state: PathState(
            tuple(replace(hold, value=0.0) for hold in state.holds) if lasts else ()))
        self._probes_no_more(path)

    def is_forestalled(self, path: Path) -> bool:
        """The lease for a probe of `path` has just become ours. Whether another worker has probed meanwhile, and found
        the site failing: then it stands still, and its mail leaves in a moment.

        All wake up from a pause at once, and one that is a little later than another finds the lease free again. Who
        had it wrote to the table before it gave it back, but the nudge may be unread here: our copy does not count.
        """
        engine, name = self._engine, SITE + path.name
        engine.limits.forget(name)
        hold = _pause(engine.limits.state(name))
        if hold is None or not self._is_stopped_by(path, hold):
            return False
        engine.hub.later(0.0, engine.keeper.clear, path)  # not here: callers are about to give it something
        return True

    def obeys(self, path: Path) -> bool:
        """Whether another worker has found out that the site of `path` fails, so that it stands still from now on. For
        when a connection has failed here, too."""
        hold = _pause(self._engine.limits.state(SITE + path.name))
        return hold is not None and self._hears(path, hold)

    def recall(self, path: Path) -> None:
        """`path` is new here."""
        hold = _pause(self._engine.limits.state(SITE + path.name))
        if hold is not None:
            _stop(path, hold)

    # -- what happens elsewhere ----------------------------------------------------------------------------------

    def changed(self, names: Iterable[str]) -> list[str]:
        """The state of these names is another one. Does what there is to do about sites; returns the others."""
        engine, others, freed = self._engine, [], set()
        for name in names:
            if not name.startswith(SITE):
                others.append(name)
                continue
            path = engine.paths.get(name.removeprefix(SITE))
            if path is None or path.route is None:
                continue
            hold = _pause(engine.limits.state(name))
            if hold is not None and hold.value:
                if not path.opening:
                    self._hears(path, hold)
            elif self._goes_on(path, at_once=hold is None):
                freed.add(path.name)
        if freed:
            engine.keeper.wake(lambda lane: any(path.name in freed for path in lane.paths))
        return others

    def _hears(self, path: Path, hold: Hold) -> bool:
        """Another worker found that the site fails. Whether `path` stands still because of it."""
        if not self._is_stopped_by(path, hold):
            return False
        self._engine.connecting.stop_waiting(path)
        self._engine.keeper.clear(path)
        return True

    def _is_stopped_by(self, path: Path, hold: Hold) -> bool:
        """The same, and what it has in hand or waits for is left as it is."""
        if path.established or not _is_news(path, hold):
            return False
        _stop(path, hold)
        return path.suspended_until_us > self._engine.clock_us()

    def _goes_on(self, path: Path, at_once: bool) -> bool:
        """Another worker found that the site works. Whether `path` stood still until now, and does so no more."""
        engine = self._engine
        path.failures = 0
        self._probes_no_more(path)
        is_freed = at_once and path.suspended_by == "site" and path.suspended_until_us > engine.clock_us()
        if is_freed:
            path.suspended_until_us = 0
            path.suspended_by = ""
            engine.holds.apply(path)
        if path.waiting_for == SITE + path.name:
            engine.connecting.stop_waiting(path)
        engine.connecting.kick_path(path)
        engine.ways.drop_path(path)  # if its failures were all that it was remembered for
        return is_freed

    def _probes_no_more(self, path: Path) -> None:
        """What probes goes on as any other connection: the lease is for whoever has to probe next."""
        name = SITE + path.name
        for connection in path.connections:
            if name in connection.leases:
                connection.leases.remove(name)
                self._engine.limits.release((name,))


def _pause(state: PathState) -> Hold | None:
    return state.holds[0] if state.holds else None


def _is_news(path: Path, hold: Hold) -> bool:
    """Whether another worker found out more than is known here: that the site failed once more, or that it works, of
    which we have not heard, and then failed anew."""
    return hold.value > path.failures or (hold.value > 0 and hold.since_us > path.since_us)


def _next_pause(path: Path, last: Hold | None, now_us: int, at_least_s: float) -> Hold:
    """Twice as long with each failure."""
    retry = path.shaping.retry
    failures, since_us = path.failures, path.since_us if path.suspended_by == "site" else now_us
    if last is not None and (last.value >= failures or last.since_us > path.since_us):
        failures, since_us = int(last.value), last.since_us
    wait_s = max(float(min(retry.site_first * 2 ** min(failures, 30), retry.site_cap)), at_least_s)
    return Hold("all", now_us + int(wait_s * 1_000_000), "failures", path.reason[:REASON_MOST],
                since_us if failures else now_us, float(failures + 1))


def _stop(path: Path, hold: Hold) -> None:
    """Stand still as another worker says, unless something else asks for more."""
    path.failures = int(hold.value)
    if not path.source.lost and hold.until_us > path.suspended_until_us:
        path.reason = hold.reason
        path.failed(hold.until_us, path.failures, hold.since_us)
