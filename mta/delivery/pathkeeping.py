"""When a path stands still: failing sites, suspensions by whoever may ask for one, and what becomes of the mail then.

The mail of a path that stands still goes over the other paths of its lane. When all of them stand still the queues of
the lane leave memory until the first one may be tried again, and cost nothing until then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

import gevent.socket

from mta.delivery.connection import Connection
from mta.delivery.leases import Refusal
from mta.delivery.path import Path
from mta.queue import events
from mta.queue.scheduler import domain_of
from mta.queue.store import Transaction
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.config.hosts import Proxy
    from mta.delivery.engine import Engine
    from mta.delivery.lane import Lane
    from mta.delivery.sources import Source

LOOK_S = 30.0  # how often it is looked whether a source that was lost is back
LOST_S = 600.0  # how long mail that has no other source sleeps, unless that look wakes it
PARKED_AT_ONCE = 200  # queues of a lane that stands still; a few ms, with their deliveries
CLEARED_AT_ONCE = 20  # paths that are held together, most of which have few queues
LOOKED_AT_ONCE = 500  # parked queues, for whose lanes they are
PROXY_S = 10.0  # patience with a proxy in that look

log = logging.getLogger(__name__)


class PathKeeper:
    """Looks after the paths of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._looking: set[str] = set()  # sources that are looked at again in a while
        self._emptying: set[Lane] = set()  # that have queues left to be parked

    def connection_failed(self, connection: Connection, reply: Reply) -> None:
        """No address of the site gave a session."""
        if not self._engine.stopping and not connection.path.source.lost:
            judge = self._engine.reactions.judge_of(connection.path)
            kind = "" if reply.local else judge("greeting", reply).kind
            self.site_failed(connection.path, str(reply), connection, kind)
            self._engine.reactions.to_refusal(connection.path, reply)

    def site_failed(self, path: Path, reason: str, refused: Connection | None = None, kind: str = "") -> None:
        """The site broke a session before it served, or `refused` a connection, with a reply of that class.

        When that reply asks for less, no fault of the site's is found: adaptation sees to it that it gets less.
        """
        engine = self._engine
        if path.suspended_until_us > engine.clock_us() or engine.breakers.obeys(path):
            return  # one outage, however many connections it ends
        now_s = engine.monotonic()
        if refused is None:
            stand_still = path.broken(reason, now_s)
        else:
            refusal = engine.limits.refused(path.lease, refused.opened_s, path.established > 0)
            stand_still = path.refused(reason, now_s, refusal)
            if refusal in (Refusal.ALONE, Refusal.UNCLEAR) and engine.adapting.to_refusal(
                    path, kind, refused.opened_s, alone=refusal is Refusal.ALONE):
                stand_still = False
        if stand_still:
            self.pause(path)

    def pause(self, path: Path, at_least_s: float = 0.0) -> None:
        """Suspend a path that fails, for longer with each failure; a probe then goes first. Told by the worker that
        found it out, once."""
        engine = self._engine
        engine.settler.watch.look()
        now_us = engine.clock_us()
        if engine.breakers.failed(path, at_least_s):
            # Once is news; while it stays so the events tell.
            level = logging.INFO if path.failures == 1 else logging.DEBUG
            wait_s = (path.suspended_until_us - now_us) / 1e6
            log.log(level, "%s: suspended for %.0f s: %s", path.name, wait_s, path.reason)
            self._commit(events.suspended(
                path.name, text=path.reason, until_us=path.suspended_until_us, time_us=now_us))
        self.clear(path)

    def _commit(self, event: bytes) -> None:
        next(iter(self._engine.stores.values())).submit(Transaction(events=[event]))

    # -- sources -------------------------------------------------------------------------------------------------

    def source_failed(self, source: Source, family: int, reason: str) -> None:
        """A connection could not leave from `source`: its address is not there, or its proxy fails."""
        if source.proxy is not None:
            source.lost = reason
        else:
            source.look()
            if not source.lost and not source.absent:
                source.absent.add(family)  # it came back just now: the next look tells
        self.miss(source, reason)

    def miss(self, source: Source, reason: str = "") -> None:
        """`source` lacks something. If it cannot be used at all its paths stand still until it is back."""
        self._abandon(source)
        if source.lost:
            self._lose(source)
        elif source.absent and source.name not in self._looking:
            self._alarm(source, f"{reason or source.reason}; it sends by its other address")
            self._look_later(source)

    def _lose(self, source: Source) -> None:
        """`source` cannot be used: its paths stand still until it is back. Told once."""
        engine = self._engine
        if source.name not in self._looking:
            self._alarm(source, f"{source.lost}; nothing leaves from it until it is back")
            self._look_later(source)
        for path in list(engine.paths.values()):
            if path.source is source:
                self.hold_for_source(path)

    def hold_for_source(self, path: Path) -> None:
        """`path` stands still with its source. No failure of its site's."""
        since_us = path.since_us if path.suspended_by == "source" else self._engine.clock_us()
        path.suspend(self.lost_until_us(), path.source.lost, "source", since_us)
        self.clear(path)

    def lost_until_us(self) -> int:
        """Until when the paths of a source that is lost stand still, unless it is back before."""
        return self._engine.clock_us() + int(LOST_S * 1_000_000)

    def _alarm(self, source: Source, text: str) -> None:
        log.error("source %s: %s", source.name, text)
        self._commit(events.alarm(f"source {source.name}", text=text, time_us=self._engine.clock_us()))

    def _abandon(self, source: Source) -> None:
        """Connections that leave from an address which is gone: what they send goes nowhere, and without this they
        would wait for an answer for minutes."""
        for path in list(self._engine.paths.values()):
            if path.source is source:
                for connection in list(path.connections):
                    if connection.target is not None and connection.target.family in source.absent:
                        connection.abandon()

    def start(self) -> None:
        """Look now and then whether all sources are there; open connections do not tell."""
        self._engine.hub.later(LOOK_S, self._watch)

    def _watch(self) -> None:
        engine = self._engine
        if engine.stopping:
            return
        for source in list(engine.sources.all.values()):
            if source.proxy is None and source.name not in self._looking:
                source.look()
                if source.lost or source.absent:
                    self.miss(source)
        engine.hub.later(LOOK_S, self._watch)

    def _look_later(self, source: Source) -> None:
        self._looking.add(source.name)
        self._engine.hub.later(LOOK_S, self._look, source)

    def _look(self, source: Source) -> None:
        """Whether a source that was lost, or lacks an address, is whole again."""
        engine = self._engine
        self._looking.discard(source.name)
        if engine.sources.all.get(source.name) is not source or engine.stopping:
            return
        if source.proxy is not None and source.lost and not reaches(source.proxy):
            self._look_later(source)
            return
        source.look()
        if source.lost or source.absent:
            self._look_later(source)
        else:
            log.info("source %s is back", source.name)
        if source.lost:
            self._lose(source)  # for longer
        else:
            self.free("source", lambda path: path.source is source)

    def free(self, by: str, which: Callable[[Path], bool]) -> None:
        """Let the paths that stand still because of `by` go on at once, those of them that are meant, unless something
        else holds them. Looks at all."""
        for path in list(self._engine.paths.values()):
            if path.suspended_by == by and which(path):
                path.suspended_until_us = 0
                path.suspended_by = ""
                self._engine.holds.apply(path)
        self.wake(lambda lane: any(map(which, lane.paths)))

    def wake(self, which: Callable[[Lane], bool]) -> None:
        """Have the parked queues of these lanes come back now, or soon where many are parked. Looks at all of them that
        are in memory."""
        names = self._engine.scheduler.parked()
        if len(names) > LOOKED_AT_ONCE:
            self._engine.hub.spawn(self._wake, names, which)
        else:
            self._wake(names, which)

    def _wake(self, names: list[str], which: Callable[[Lane], bool]) -> None:
        engine = self._engine
        awake = set()
        for count, name in enumerate(names, 1):
            lane = engine.ways.likely_lane_of(domain_of(name), engine.controls.pool_of(name))
            if lane is not None and which(lane):
                awake.add(name)
            if count % LOOKED_AT_ONCE == 0 and count < len(names):
                engine.hub.sleep(0)
        if awake:
            now_us = engine.clock_us()
            engine.scheduler.repark(lambda name, until_us: now_us if name in awake else until_us)

    def clear_all(self, paths: list[Path]) -> None:
        """The same for paths that are held together: some now, the others in pieces."""
        for number, path in enumerate(paths, 1):
            if path.suspended_until_us:
                self.clear(path)
            if number % CLEARED_AT_ONCE == 0 and number < len(paths):
                self._engine.hub.later(0.0, self.clear_all, paths[number:])
                return

    def clear(self, path: Path) -> None:
        """`path` may not be used now: its mail goes elsewhere, or leaves memory."""
        engine = self._engine
        engine.dispatch.return_claims(path)
        for lane in list(path.lanes):
            if lane not in self._emptying:
                self._empty(lane)
        for connection in list(path.idle):
            connection.wake()

    def _empty(self, lane: Lane) -> None:
        """Park the queues of `lane`, if it stands still: some now, the rest in pieces. Meanwhile it stands still, too;
        when that is over before all are parked, those left may go."""
        engine = self._engine
        self._emptying.discard(lane)
        until_us = lane.suspended(engine.clock_us())
        if not until_us:
            if lane.turns.count:
                engine.connecting.kick(lane)
            return
        for queue in list(islice(lane.turns, PARKED_AT_ONCE)):
            engine.scheduler.park(queue, until_us)
        if lane.turns:
            self._emptying.add(lane)
            engine.hub.later(0.0, self._empty, lane)

    def no_address(self, path: Path) -> Reply:
        """Why there was no address to try."""
        assert path.route is not None
        found = [self._engine.router.addresses(host, path.shaping) for host in path.route.hosts]
        texts = dict.fromkeys(one.failure for one in found if one.failure)
        # While one name may only be slow to resolve, the site is not known to be without addresses.
        enhanced = min((one.enhanced for one in found if one.failure), default="4.4.4")
        return Reply(451, enhanced, ("; ".join(texts) or "no host has an address",), local=True)


def reaches(proxy: Proxy) -> bool:
    """Whether a proxy takes a connection. Waits."""
    try:
        gevent.socket.create_connection((proxy.host, proxy.port), PROXY_S).close()
    except OSError:
        return False
    return True
