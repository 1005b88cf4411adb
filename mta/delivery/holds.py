"""What keeps mail back by a decision, over all workers: suspensions and lower limits, of rules, operators, adaptation.

A *hold* (`mta.delivery.pathstate`) is on a name: that of a path, or `source:NAME`, `provider:NAME`, `domain:NAME`,
`tenant:NAME`. It lies in the table of limits; a change nudges all workers, who act at once. A suspended path is passed
over by its lanes; the queues of a suspended domain or tenant leave memory, and cost nothing until it ends. A domain
with a limit gets connections of its own, as one with an entry in `shaping.domains` has; a tenant's limits are kept by
`Pacing`. Connections of a domain, and of a source, are counted over all their paths, by a lease of that name; of a
provider, or of a path, for each path by itself. A rate is one for all that the name is of.

Pauses of failing sites are not among these (`mta.delivery.breaker`), nor those of lost sources: each worker finds out
by itself (`PathKeeper`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Literal

from mta.delivery.hub import Timer
from mta.delivery.path import Path
from mta.delivery.pathstate import SITE, Hold, PathState, What
from mta.delivery.rates import Bucket
from mta.queue.scheduler import Queue, domain_of, tenant_of

if TYPE_CHECKING:
    from mta.delivery.engine import Engine

KINDS: Final = ("source", "provider", "domain", "tenant")
OF_QUEUES: Final = ("domain:", "tenant:")  # what no path tells, but the queue
TOGETHER: Final = ("source:", "domain:")
AGAIN_S: Final = 86_400.0  # timers are not longer

log = logging.getLogger(__name__)


class Holds:
    """The holds that are in force, as one engine knows them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held: dict[str, PathState] = {}  # by name, those with a hold that is not over
        self.on_queues = 0  # how many of them are of domains or tenants
        self.on_paths = False  # whether a path, source or provider is suspended
        self._limited: set[str] = set()  # domains with a limit
        self._timers: dict[str, Timer] = {}  # by name, until the first of its holds is over

    def start(self) -> None:
        """Take over what was decided before this worker started."""
        self.changed([name for name, state in self._engine.limits.states()
                      if state.holds and not name.startswith(SITE)])

    # -- deciding ------------------------------------------------------------------------------------------------

    def suspend(self, name: str, seconds: float, by: str, reason: str) -> None:
        """Nothing of what is called `name` goes for so long; all workers act at once."""
        self._add(name, "all", 0.0, seconds, by, reason)

    def limit(self, name: str, what: What, value: float, seconds: float, by: str, reason: str) -> None:
        """No more than so many `connections`, or messages per second (`rate`), for a time."""
        self._add(name, what, value, seconds, by, reason)

    def lift(self, name: str, by: str, what: What | None = None) -> None:
        """End the holds of one author, of one kind or all."""
        self._engine.limits.update(name, lambda state: state.without(by, what))
        self.changed([name])

    def _add(self, name: str, what: What, value: float, seconds: float, by: str, reason: str) -> None:
        now_us = self._engine.clock_us()
        hold = Hold(what, now_us + int(seconds * 1e6), by, reason, now_us, value)
        self._engine.limits.update(name, lambda state: state.with_hold(hold))
        log.info("%s: %s for %.0f s by %s: %s", name, _words(hold), seconds, by, reason)
        self.changed([name])

    # -- acting --------------------------------------------------------------------------------------------------

    def changed(self, names: Iterable[str]) -> None:
        """The state of these names is another one, or a hold of theirs has ended. Looks at all paths."""
        engine = self._engine
        changed = set(names)
        if not changed:
            return
        now_us = engine.clock_us()
        lifted = set()
        for name in changed:
            state, before = engine.limits.state(name), self._held.get(name)
            had = before is not None and any(hold.what == "all" for hold in before.holds)
            if had and state.suspension(now_us) is None:
                lifted.add(name)
            timer = self._timers.pop(name, None)
            if timer is not None:  # a state may change many times in the day that a hold lasts
                timer.cancel()
            ends = [hold.until_us for hold in state.holds if hold.until_us > now_us]
            if ends:
                self._held[name] = state
                # A suspension ends by itself; a limit has to be taken back.
                wait_s = min((min(ends) - now_us) / 1e6, AGAIN_S)
                self._timers[name] = engine.hub.later(wait_s + 0.01, self._ended, name, state.version)
            else:
                self._held.pop(name, None)
        self.on_queues = sum(name.startswith(OF_QUEUES) for name in self._held)
        self.on_paths = any(hold.what == "all" for name, state in self._held.items() if not name.startswith(OF_QUEUES)
                            for hold in state.holds)
        moved = self._note_limited(changed)
        for name in changed:
            self._count_in(name)
        stopped, freed = [], False
        for path in list(engine.paths.values()):
            if not changed.isdisjoint(names_of(path)):
                now = self._apply(path)
                if now == "stopped":
                    stopped.append(path)
                freed |= now == "freed"
            if path.name in changed:
                engine.adapting.changed(path)
        # All of them are in force. A source may have as many paths as there are sites.
        engine.keeper.clear_all(stopped)
        if freed or lifted:
            # By name: a path may have been forgotten since its last connection ended. Its mail is parked all the same.
            names = changed if freed else lifted
            engine.keeper.wake(lambda lane: any(not names.isdisjoint(names_of(path)) for path in lane.paths))
        if moved:
            engine.ways.find_again(moved)
        for name in changed:
            if name.startswith("tenant:"):
                engine.pacing.held(name.removeprefix("tenant:"))
        self._queues_changed({name for name in changed if name.startswith(OF_QUEUES)})

    def clock_was_set(self) -> None:
        """The table moves its times along with the wall clock."""
        self._engine.limits.forget()
        self.changed(list(self._held))

    def limits(self, domain: str) -> bool:
        """Whether a limit is on this domain, be it lower than others or not."""
        return domain in self._limited

    def _note_limited(self, names: Iterable[str]) -> set[str]:
        """Of these names the domains that have got a first limit, or lost the last one."""
        now_us, found = self._engine.clock_us(), set()
        for name in names:
            kind, _, domain = name.partition(":")
            state = self._held.get(name)
            is_limited = state is not None and any(
                hold.what != "all" and hold.until_us > now_us for hold in state.holds)
            if kind == "domain" and is_limited != (domain in self._limited):
                found.add(domain)
        self._limited ^= found
        return found

    def _count_in(self, name: str) -> None:
        """The connections of a source or domain that is limited count from now on, before another one is opened."""
        found = self.lowest("connections", (name,)) if counts_all(name) else None
        if found is not None:
            engine = self._engine
            engine.connecting.count_in(name, most_of(found[1]), [
                one for one in engine.connections if name in names_of(one.path)])

    def _ended(self, name: str, version: int) -> None:
        del self._timers[name]
        if name in self._held and self._engine.limits.state(name).version == version:
            self.changed([name])

    def apply(self, path: Path) -> None:
        """Have `path` keep to what holds for it now."""
        now = self._apply(path)
        if now == "stopped":
            self._engine.keeper.clear(path)
        elif now == "freed":
            self._engine.keeper.wake(lambda lane: path in lane.paths)

    def _apply(self, path: Path) -> Literal["stopped", "freed", ""]:
        """The same but for its mail: that has to be done when it was `stopped`, or `freed`."""
        if not self._held and not path.is_held:
            return ""
        engine, now_us = self._engine, self._engine.clock_us()
        until_us, why = 0, None
        most = path.allowed
        rates: list[Bucket] = []
        totals: dict[str, int] = {}
        for name in names_of(path):
            state = self._held.get(name)
            if state is None:
                continue
            is_domain = name.startswith("domain:")
            suspension = state.suspension(now_us) if not is_domain else None  # of a domain: its queues leave memory
            if suspension is not None and suspension.until_us > until_us:
                until_us, why = suspension.until_us, suspension
            connections = state.lowest("connections", now_us)
            if connections is not None and counts_all(name):
                totals[name] = most_of(connections)
            elif connections is not None:
                most = min(most, most_of(connections))
            rate = state.lowest("rate", now_us)
            if rate is not None and rate.value > 0:
                rates.append(Bucket(f"{name} held", rate.value, 1.0))
        path.is_held = bool(until_us or rates or totals or most < path.allowed)
        path.limit_to(most, totals)
        path.message_rates = (*path.own_rates, *path.paced, *rates)
        if why is not None:
            if until_us > path.suspended_until_us or path.suspended_by not in ("site", "source"):
                path.suspend(until_us, why.reason, why.by, why.since_us)
                return "stopped"
        elif path.suspended_until_us > now_us and path.suspended_by not in ("site", "source"):
            path.suspended_until_us = 0
            path.suspended_by = ""
            return "freed"
        else:
            path.not_before_s = 0.0  # the rates may be others
            engine.connecting.kick_path(path)
        return ""

    # -- queues --------------------------------------------------------------------------------------------------

    def until(self, queue: Queue) -> int:
        """Until when the domain or tenant of `queue` is suspended; 0: it is not. Ask when `on_queues` is not 0."""
        return self._until(queue.domain, queue.tenant)

    def suspension(self, names: Iterable[str]) -> tuple[str, Hold] | None:
        """Of the suspensions of these names the one that ends last, and what it is of."""
        now_us = self._engine.clock_us()
        found: tuple[str, Hold] | None = None
        for name in names:
            state = self._held.get(name)
            hold = state.suspension(now_us) if state is not None else None
            if hold is not None and (found is None or hold.until_us > found[1].until_us):
                found = name, hold
        return found

    def lowest(self, what: Literal["rate", "connections"], names: Iterable[str]) -> tuple[str, Hold] | None:
        """The lowest limit that holds put on these names, and what it is of."""
        now_us = self._engine.clock_us()
        found: tuple[str, Hold] | None = None
        for name in names:
            state = self._held.get(name)
            hold = state.lowest(what, now_us) if state is not None else None
            if hold is not None and (found is None or hold.value < found[1].value):
                found = name, hold
        return found

    def _until(self, domain: str, tenant: str) -> int:
        found = self.suspension((f"domain:{domain}", f"tenant:{tenant}"))
        return found[1].until_us if found is not None else 0

    def _queues_changed(self, names: set[str]) -> None:
        if not names:
            return
        engine, now_us = self._engine, self._engine.clock_us()
        for queue in list(engine.scheduler.queues.values()):
            until_us = self.until(queue)
            if until_us and queue.ready:
                engine.scheduler.park(queue, until_us)

        def new_time(name: str, until_us: int) -> int:
            of_it = names.intersection((f"domain:{domain_of(name)}", f"tenant:{tenant_of(name)}"))
            return now_us if of_it and not self._until(domain_of(name), tenant_of(name)) else until_us

        engine.scheduler.repark(new_time)


def counts_all(name: str) -> bool:
    """Whether the connections of all paths that `name` is of are counted together, by a lease of that name."""
    return name.startswith(TOGETHER) and ">" not in name


def most_of(hold: Hold) -> int:
    """How many connections a limit leaves."""
    return max(int(hold.value), 1)


def names_of(path: Path) -> tuple[str, ...]:
    """The names by which `path` may be held."""
    source, provider = f"source:{path.source.name}", f"provider:{path.provider}"
    names = (path.name, source, provider, f"{source}>{provider}")
    return (*names, f"domain:{path.domain}", path.beside or path.name) if path.domain else names


def _words(hold: Hold) -> str:
    if hold.what == "all":
        return "suspended"
    return f"{int(hold.value)} connections" if hold.what == "connections" else f"{hold.value:g} messages a second"
