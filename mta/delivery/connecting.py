"""When connections are opened, rest, make room for others, and end: needs, leases, and lines of those who wait.

A lane says whether one more connection would help, its paths whether one may be opened; a lease of every limit that
holds for the path is needed as well, and a place among the connections that are being opened just now. Who lacks
something is called when it may have become free; nobody looks around.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from mta.delivery.connection import Connection
from mta.delivery.holders import TOTAL, Holders
from mta.delivery.openings import AT_ONCE, AT_ONCE_TO_FAILING, Line, Room
from mta.delivery.path import Path
from mta.delivery.pathstate import SITE
from mta.queue.shortage import Spell

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.lane import Lane

STALL_S = 1.0  # a delivery that waited this long behind busy connections gets one of its own
TURN_S = 1.0  # what a connection may do before it gives way to another worker
SHORTAGE_S = 1.0  # after a socket was refused by this machine, until more connections are tried
OPENED_PER_CALL = 50  # of many, so that they do not hold up the event loop: some 50 µs each
TELL_S = 5.0  # how often other workers are told that a site takes connections

log = logging.getLogger(__name__)


class Connecting:
    """The connections of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: dict[str, OrderedDict[Path, None]] = {}  # paths that wait for a lease, by the name of the limit
        self._resting: OrderedDict[Connection, None] = OrderedDict()  # connections without work, the longest first
        self._holders: Holders[Connection] = Holders()
        self._contended: set[str] = set()  # limits over more than a path of which others want connections
        self.opening: Line[Path] = Line(AT_ONCE)
        self.probing: Line[Path] = Line(AT_ONCE_TO_FAILING)
        self.room: Room[Path] = Room()  # in this process; its owner knows how much there is
        self._shortage = Spell(log, "no socket for an outgoing connection", "outgoing connections are opened")

    # -- opening -------------------------------------------------------------------------------------------------

    def kick(self, lane: Lane) -> None:
        """There is work in `lane`: wake a connection that rests, or open one. Hot path."""
        for path in lane.paths:
            if path.not_before_s and not lane.turns.best:
                self._engine.pacing.hasten(path)
            if path.idle and not (path.not_before_s and path.not_before_s > self._engine.monotonic()):
                connection = path.idle.pop()
                self._works(connection)
                self.lend(connection, lane)
                connection.wake()
                return
        opened = 0
        while lane.wants_connection() and self._open_one(lane):
            opened += 1
            if opened == OPENED_PER_CALL:
                self._engine.hub.spawn(self.kick, lane)
                break
        if lane.turns.count and not lane.stalled and not self._is_called(lane):
            lane.stalled = True
            self._engine.hub.later(STALL_S, self._look_again, lane, lane.head())

    def _is_called(self, lane: Lane) -> bool:
        """Whether all paths of `lane` are called when they may send or open: held back by rates, in line for a lease
        that is not theirs alone, for a place or for a socket. Then nobody looks, however many lanes there are. What a
        receiver takes may rise without a word, so who waits for a lease of its own looks now and then."""
        now_s = self._engine.monotonic()
        return all(max(path.not_before_s, path.open_not_before_s) > now_s or path.waiting_for not in ("", path.lease)
                   or path in self.opening or path in self.probing or path in self.room for path in lane.paths)

    def kick_path(self, path: Path, others: Sequence[Path] = ()) -> None:
        """There may be room on `path` now: it is used before others. `others` of its lane could have had it, too."""
        for lane in tuple(path.lanes):
            if not lane.turns.count:
                continue
            if len(lane.paths) > 1 and lane.wants_connection() and self._may_open(path) and self._open(lane, path):
                lane.took(path, [one for one in others if one in lane.paths])
            self.kick(lane)

    def _look_again(self, lane: Lane, head: object) -> None:
        """Deliveries wait behind busy connections: if not even the first one has moved on, open another."""
        lane.stalled = False
        if not lane.turns.count or self._engine.stopping:
            return
        if lane.head() is head and lane.wants_connection(forced=True):
            self._open_one(lane)
        self.kick(lane)

    def _may_open(self, path: Path) -> bool:
        """Whether nothing about `path` itself forbids one more connection."""
        if path.suspended_until_us and path.suspended_until_us > self._engine.clock_us():
            return False
        if len(path.connections) >= path.allowed < path.shaping.connections:
            path.learns = True
        return path.may_open(self._engine.monotonic())

    def _open_one(self, lane: Lane) -> bool:
        """Open one connection for `lane`, over the path whose turn it is among those that may have one."""
        candidates = lane.candidates(self._may_open)
        for number, path in enumerate(candidates, 1):
            if self._open(lane, path):
                lane.took(path, candidates[number:])
                return True
        return False

    def _open(self, lane: Lane, path: Path) -> bool:
        """Open a connection if all limits allow it; else wait for a lease."""
        engine = self._engine
        line = self.probing if path.probing else self.opening
        urgent = not lane.turns.best  # transactional mail overtakes
        if engine.stopping or path.route is None or engine.choked():
            return False
        if not self.room.has_room(path, urgent):
            if self._resting:
                self._end_one_rest(next(iter(self._resting)))
            return False
        if not line.has_room(path, urgent):
            return False
        if path.connection_rates and not engine.pacing.may_open(path):
            return False
        leases = engine.breakers.leases(path) if path.probing else path.leases
        lacking = engine.limits.acquire(leases)
        if lacking is not None:
            if path.connection_rates:
                engine.limits.hand_back(path.connection_rates)
            if path.waiting_for != lacking:
                self.stop_waiting(path)
                path.waiting_for = lacking
                waiting = self._waiting.setdefault(lacking, OrderedDict())
                waiting[path] = None
                if urgent:
                    waiting.move_to_end(path, last=False)
            return False
        self.stop_waiting(path)
        if path.probing and engine.breakers.is_forestalled(path):
            engine.limits.release([name for name, _ in leases])
            if path.connection_rates:
                engine.limits.hand_back(path.connection_rates)
            return False
        connection = engine.connect(engine, path, lane)
        connection.leases = [name for name, _ in leases]
        path.connections.add(connection)
        lane.connections.add(connection)
        path.opening += 1
        self.room.begin()
        line.begin()
        connection.line = line
        engine.connections.add(connection)
        self._holders.opened(connection)
        engine.hub.spawn(connection.run)
        return True

    def serve_claims(self, lane: Lane, path: Path) -> bool:
        """Something waits for `path` alone: see that a connection takes it. False when none can."""
        if path.idle:
            connection = path.idle.pop()
            self._works(connection)
            connection.wake()
            return True
        return bool(path.connections) or (self._may_open(path) and self._open(lane, path))

    def established(self, connection: Connection) -> None:
        """The peer took our EHLO."""
        self._opened(connection)
        path, limits = connection.path, self._engine.limits
        path.took()
        now_s = self._engine.monotonic()
        connection.opening_s = now_s - connection.opened_s
        if now_s >= path.tell_s or limits.learned(path.lease):
            path.tell_s = now_s + TELL_S
            limits.served(path.lease)

    def _opened(self, connection: Connection) -> None:
        """It is no longer being opened, whatever came of it: the next one in line may."""
        connection.path.opening -= 1
        line = connection.line
        assert line is not None
        line.end()
        while (successor := line.next()) is not None:
            self.kick_path(successor)

    def count_in(self, name: str, limit: int, connections: Iterable[Connection]) -> None:
        """A limit over more than a path is new, or another one: these count in it, also above it. Then those too many
        end after a message, each within TURN_S, and none is opened until there are as few."""
        others = [one for one in connections if name not in one.leases]
        if others and self._engine.limits.adopt(name, limit, len(others)):
            for one in others:
                one.leases.append(name)
                self._holders.joined(one, name, one in self._resting)
        if self._holders.holds(name):
            self._contended.add(name)
            self._end_rest(name, limit, self._holders.resting(name))

    def lend(self, connection: Connection, lane: Lane) -> None:
        """Have `connection` pull from `lane` from now on."""
        if connection.lane is not lane:
            connection.lane.connections.discard(connection)
            connection.lane = lane
            lane.connections.add(connection)

    def closed(self, connection: Connection) -> None:
        """The connection has ended, however it did."""
        engine, path = self._engine, connection.path
        path.connections.discard(connection)
        connection.lane.connections.discard(connection)
        engine.connections.discard(connection)
        self._holders.closed(connection)
        engine.limits.release(connection.leases)
        self.room.end()
        if not connection.established:
            self._opened(connection)
        elif self._shortage.lasts:
            self._shortage.worked(engine.monotonic())
        if engine.stopping:
            if not engine.connections:
                engine.empty.set()
            return
        for lane in {connection.lane: None, **path.lanes}:
            if lane.turns.count:
                self.kick(lane)
            elif not lane.connections and not lane.turns:
                engine.ways.drop(lane)
        if not path.connections:
            if path.claims and not self.serve_claims(connection.lane, path):
                engine.dispatch.return_claims(path)
            if not path.has_work:
                self.stop_waiting(path)
        if self.room.is_awaited:
            self.fill_room()

    # -- leases --------------------------------------------------------------------------------------------------

    def stop_waiting(self, path: Path) -> None:
        """`path` has no more use for the lease that it waits for."""
        if path.waiting_for:
            paths = self._waiting[path.waiting_for]
            del paths[path]
            if not paths:
                del self._waiting[path.waiting_for]
                self._engine.limits.want(path.waiting_for, 0)
            path.waiting_for = ""

    def nudged(self, names: Iterable[str]) -> None:
        """Leases of these limits became free, or another worker wants some of ours; or states have changed."""
        self._engine.holds.changed(self._engine.breakers.changed(self._engine.limits.changed()))
        self._engine.reactions.asked(self._engine.limits.asked())
        for name in names:
            if name.startswith("tenant:"):  # there may be one for each message: no look at all connections
                self._engine.pacing.nudged(name)
                continue
            self._serve_waiting(name)
            if name.startswith(SITE):  # nobody makes room for a probe
                continue
            path = self._engine.paths.get(name)
            if path is not None:
                path.contended = True
                self._end_rest(name, path.most, path.idle)
            elif name == TOTAL:
                self._contended.add(name)
                self._end_rest(TOTAL, self._engine.config.delivery.connections, self._resting)
            elif self._holders.holds(name):
                self._contended.add(name)
                resting = self._holders.resting(name)
                if resting:
                    self._end_rest(name, dict(next(iter(resting)).path.leases).get(name), resting)

    def _serve_waiting(self, name: str) -> None:
        """Leases of `name` may be free: the paths that wait for one try again in turn, until one is refused."""
        had_before = len(self._engine.connections)
        while waiting := self._waiting.get(name):  # a path that is called may end the wait of others with its lane
            if len(self._engine.connections) - had_before >= OPENED_PER_CALL:
                self._engine.hub.spawn(self._serve_waiting, name)
                return
            path, others = self._drawn(next(iter(waiting)), waiting)
            del waiting[path]
            path.waiting_for = ""
            had = len(path.connections)
            self.kick_path(path, others)
            if path.waiting_for == name:
                if len(path.connections) == had:
                    self._waiting[name].move_to_end(path, last=False)
                return
        if self._waiting.pop(name, None) is not None:
            self._engine.limits.want(name, 0)

    def _drawn(self, path: Path, waiting: Collection[Path]) -> tuple[Path, list[Path]]:
        """`path` is first in the line for a lease. Of its lane several may wait for the same, and the weights of their
        sources decide which of them has it: that one, and the others. In line they would be served alike."""
        for lane in path.lanes:
            if len(lane.paths) > 1 and lane.turns.count:
                drawn = [one for one in lane.candidates(self._may_open) if one in waiting]
                if drawn:
                    return drawn[0], drawn[1:]
        return path, []

    def is_wanted(self, connection: Connection) -> bool:
        """Whether the lease of `connection`, which ends, will be another one's at once."""
        path = connection.path
        return (path.contended or not self._contended.isdisjoint(connection.leases) or path.waiting_for != ""
                or (path.has_work and len(path.connections) >= path.most))

    def gives_way(self, connection: Connection, resting: bool) -> bool:
        """Whether another worker should have this connection's lease now. One at work is asked once in its turn."""
        path = connection.path
        if not path.contended and not self._contended:
            return False
        if not resting:
            now_s = self._engine.monotonic()
            if now_s - connection.turn_s < TURN_S:
                return False
            connection.turn_s = now_s
        contended = self._contended
        asked = [(name, limit) for name, limit in path.leases if name in connection.leases
                 and (name in contended or (path.contended and name == path.lease))]
        if asked and self._engine.limits.gives_way(asked, resting) is not None:
            connection.stopping = True
            return True
        if resting:  # not even one at rest is wanted
            path.contended = False
            contended.difference_update(connection.leases)
        return False

    # -- resting -------------------------------------------------------------------------------------------------

    def may_rest(self, connection: Connection) -> bool:
        """`connection` has nothing to do. Whether it may stay open to wait for work; it then counts as idle."""
        engine, path = self._engine, connection.path
        if engine.stopping or connection.stopping or self.spent(connection) or self.room.is_awaited:
            return False
        wait_s = path.not_before_s - engine.monotonic() if path.not_before_s else 0.0
        if wait_s > path.shaping.idle or (path.has_work and wait_s <= 0.0):
            return False
        if path.suspended_until_us and path.suspended_until_us > engine.clock_us():
            return False
        if self.gives_way(connection, resting=True):
            return False
        connection.idle = True
        path.idle.append(connection)
        self._resting[connection] = None
        self._holders.rests(connection)
        return True

    def rested(self, connection: Connection) -> None:
        """The rest is over: work, the peer, time, or somebody else who needs the lease."""
        connection.idle = False
        if connection in self._resting:  # else it was taken out to be given work
            self._works(connection)
            connection.path.idle.remove(connection)

    def _works(self, connection: Connection) -> None:
        del self._resting[connection]
        self._holders.works(connection)

    def _end_rest(self, name: str, limit: int | None, resting: Collection[Connection]) -> None:
        """Close as many connections at rest as others have need for their leases, the longest at rest first."""
        for connection in list(resting):
            if limit is None or not self._engine.limits.should_yield(name, limit, resting=True):
                break
            self._end_one_rest(connection)

    def _end_one_rest(self, connection: Connection) -> None:
        connection.stopping = True
        self.rested(connection)
        connection.wake()

    # -- sockets of this machine ---------------------------------------------------------------------------------

    def lacking(self, why: str) -> None:
        """This machine has no socket for one more connection. No site is at fault: paths wait, none is paused."""
        self._shortage.failed(why, self._engine.monotonic())
        if not self.room.shortage:
            self._engine.hub.later(SHORTAGE_S, self._try_more)
        self.room.lacks(why)

    def _try_more(self) -> None:
        """The shortage may be over, or not as bad: go on with twice as many connections as there could be."""
        if not self.room.grow():
            self._engine.hub.later(SHORTAGE_S, self._try_more)
        self.fill_room()

    def fill_room(self) -> None:
        """There may be room for more connections."""
        while (successor := self.room.next()) is not None:
            self.kick_path(successor)

    def spent(self, connection: Connection) -> bool:
        """Whether `connection` has carried what one may carry, or is too old."""
        shaping = connection.path.shaping
        mail_max = connection.client.capabilities.mail_max
        in_all = shaping.recipients_per_connection
        return (connection.messages >= shaping.messages_per_connection
                or (in_all is not None and connection.recipients >= in_all)
                or (mail_max and mail_max <= connection.messages)
                # One message it takes in any case: a host may need longer than that for its greeting, each time.
                or (connection.messages > 0
                    and self._engine.monotonic() - connection.opened_s >= shaping.connection_age))
