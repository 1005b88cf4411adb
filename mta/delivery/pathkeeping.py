"""When a path stands still: failing sites, suspensions by whoever may ask for one, and what becomes of the mail then.

The mail of a path that stands still goes over the other paths of its lane. When all of them stand still the queues of
the lane leave memory until the first one may be tried again, and cost nothing until then.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from mta.delivery.connection import Connection
from mta.delivery.path import Path
from mta.queue import events
from mta.queue.store import Transaction
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.delivery.engine import Engine

log = logging.getLogger(__name__)


class PathKeeper:
    """Looks after the paths of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def connection_failed(self, connection: Connection, reply: Reply) -> None:
        """No address of the site gave a session."""
        if not self._engine.stopping:
            self.site_failed(connection.path, str(reply), connection)

    def site_failed(self, path: Path, reason: str, refused: Connection | None = None) -> None:
        """The site broke a session before it served, or `refused` a connection."""
        engine = self._engine
        if path.suspended_until_us > engine.clock_us():
            return  # one outage, however many connections it ends
        now_s = time.monotonic()
        if refused is None:
            stand_still = path.broken(reason, now_s)
        else:
            refusal = engine.limits.refused(path.lease, refused.opened_s, path.established > 0)
            stand_still = path.refused(reason, now_s, refusal)
        if stand_still:
            self.pause(path)

    def pause(self, path: Path, at_least_s: float = 0.0) -> None:
        """Suspend a path that fails, for longer with each failure; a probe then goes first."""
        engine, retry = self._engine, self._engine.config.retry
        wait_s = max(float(min(retry.site_first * 2 ** min(path.failures, 30), retry.site_cap)), at_least_s)
        engine.settler.watch.look()
        path.failed(engine.clock_us() + int(wait_s * 1_000_000))
        # Once is news; while it stays so the events tell.
        level = logging.INFO if path.failures == 1 else logging.DEBUG
        log.log(level, "%s: suspended for %.0f s: %s", path.name, wait_s, path.reason)
        self._suspended(path)

    def _suspended(self, path: Path) -> None:
        """`path` stands still from now on."""
        engine = self._engine
        event = events.suspended(
            path.name, text=path.reason, until_us=path.suspended_until_us, time_us=engine.clock_us())
        next(iter(engine.stores.values())).submit(Transaction(events=[event]))
        self.clear(path)

    def clear(self, path: Path) -> None:
        """`path` may not be used now: its mail goes elsewhere, or leaves memory."""
        engine = self._engine
        engine.dispatch.return_claims(path)
        now_us = engine.clock_us()
        for lane in list(path.lanes):
            until_us = lane.suspended(now_us)
            if until_us:
                for queue in list(lane.turns):
                    engine.scheduler.park(queue, until_us)
            elif lane.turns.count:
                engine.connecting.kick(lane)
        for connection in list(path.idle):
            connection.wake()

    def no_address(self, path: Path) -> Reply:
        """Why there was no address to try."""
        assert path.route is not None
        found = [self._engine.router.addresses(host) for host in path.route.hosts]
        texts = dict.fromkeys(one.failure for one in found if one.failure)
        # While one name may only be slow to resolve, the site is not known to be without addresses.
        enhanced = min((one.enhanced for one in found if one.failure), default="4.4.4")
        return Reply(451, enhanced, ("; ".join(texts) or "no host has an address",), local=True)
