"""The delivery engine of a worker: brings queues to paths, opens connections, and settles what they did.

It is the gevent side of scheduler (`mta.queue.scheduler`: which deliveries are in memory), router (where a domain's
mail goes), paths (how each site is treated) and limits (what all workers may do together). Everything happens on an
event: a delivery that became ready, a route that was found, a transaction that ended, a lease that became free, a
time that came. Nothing looks around for work.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from functools import partial

import gevent
from gevent.event import Event

from mta.config.schema import Config
from mta.delivery.ageing import Ageing
from mta.delivery.connection import Connection, Job, patience, transaction_for
from mta.delivery.limits import Limits
from mta.delivery.openings import AT_ONCE, AT_ONCE_TO_FAILING, Line, Room
from mta.delivery.outcome import delivered_to_all, judge
from mta.delivery.path import Path
from mta.delivery.routing import Route, RouteFailure, Router
from mta.delivery.settle import Settler, Verdict
from mta.delivery.tls import HostMemory, opportunistic_context
from mta.delivery.wire import AF_INET6, Sweeper
from mta.queue import events
from mta.queue.ids import SHARD_BITS, format_id
from mta.queue.records import Delivery, Message
from mta.queue.scheduler import FOREVER_US, Queue, Scheduler
from mta.queue.shortage import Spell
from mta.queue.store import BodyDamaged, BodyUnreadable, Store, Transaction
from mta.smtp.reply import Reply

TOTAL = "*"  # name of the limit on outgoing connections in all; no site has it
ROUTES_KEPT = 50_000
PATHS_KEPT = 20_000  # of those that have nothing to do but remember that their site failed
STALL_S = 1.0  # a delivery that waited this long behind busy connections gets one of its own
TURN_S = 1.0  # what a connection may do before it gives way to another worker
SHORTAGE_S = 1.0  # after a socket was refused by this machine, until more connections are tried
TELL_S = 5.0  # how often other workers are told that a site takes connections
BRING_BATCH = 500
LOOK_S = 1.0  # how often it is asked whether the clock was set
LOOKS_FOR_LATE_S = (0.0, 5.0, 60.0)  # after it was set back; the later ones find what was not on disk yet
GIVE_UP_BATCH = 100
PUT_OFF_S = 300.0

log = logging.getLogger(__name__)


class Engine:
    """One per worker."""

    def __init__(self, config: Config, stores: dict[int, Store], router: Router, limits: Limits, settler: Settler,
                 read_body: Callable[[Store, Message], bytes], clock_us: Callable[[], int]) -> None:
        """`read_body` waits for the disk without blocking the hub."""
        self.stores = stores
        self.router = router
        self.limits = limits
        self.settler = settler
        self.clock_us = clock_us
        self.scheduler = Scheduler(self, config.memory, stores, clock_us)
        self.sweeper = Sweeper()
        self.ageing = Ageing(self, self._conclude)
        self.tls_context = opportunistic_context()
        self.broken_tls = HostMemory()
        self.no_pipelining = HostMemory()
        self.no_pipelining_across = HostMemory()
        self.paths: dict[str, Path] = {}
        self.connections: set[Connection] = set()
        self.stopping = False
        self._read_body = read_body
        self._routes: OrderedDict[str, Path] = OrderedDict()  # by domain
        self.routing: dict[str, list[Queue]] = {}  # queues that wait for the route of a domain
        self._forget_above = PATHS_KEPT  # number of paths
        self._waiting: dict[str, OrderedDict[Path, None]] = {}  # paths that wait for a lease, by the name of the limit
        self._resting: OrderedDict[Connection, None] = OrderedDict()  # connections without work, the longest first
        self._contended = False  # more connections in all are wanted than may be
        self.opening: Line[Path] = Line(AT_ONCE)
        self.probing: Line[Path] = Line(AT_ONCE_TO_FAILING)
        self.room: Room[Path] = Room()  # in this process; its owner knows how much there is
        self._shortage = Spell(log, "no socket for an outgoing connection", "outgoing connections are opened")
        self._bringing: set[int] = set()  # shards that are being looked through for what is due too late
        self._alarm = Event()
        self._empty = Event()
        self.configure(config)

    def configure(self, config: Config, router: Router | None = None) -> None:
        """Take a new configuration; connections under way go on as they were begun."""
        self.config = config
        self.router = router or self.router
        self.settler.config = config
        self.ehlo_name = config.delivery.ehlo or config.hostname
        self.patience = patience(config.delivery.timeouts)
        self.scheduler.configure(config.memory)
        self._routes.clear()
        for queue in list(self.scheduler.queues.values()):
            self.withdraw(queue)
            queue.path = None
            if queue.ready:
                self._find_route(queue)

    def start(self) -> None:
        """Begin: find what is due in the stores, and keep time."""
        for shard, store in self.stores.items():
            store.on_checkpoint = partial(self.scheduler.checkpoint, shard)
            if store.last_id >> SHARD_BITS > self.clock_us():  # it was set back while nobody watched
                self._bring_forward(shard)
        self.settler.watch.on_step = self._clock_was_set
        gevent.spawn(self._keep_time)
        gevent.spawn(self.ageing.run)
        self._alarm.set()

    def stop(self) -> Event:
        """Take no more deliveries. The event is set when the last connection has ended."""
        self.stopping = True
        for connection in list(self.connections):
            connection.stopping = True
            if not connection.jobs:
                connection.wake()
        if not self.connections:
            self._empty.set()
        return self._empty

    # -- the scheduler's I/O -------------------------------------------------------------------------------------

    def load(self, queue: Queue, limit: int) -> None:
        """Scheduler: read what is due of `queue`."""
        exclude = {delivery.key for delivery in queue.ready}
        exclude.update(queue.in_flight)
        self.stores[queue.shard].load_due(
            queue.name, self.clock_us(), limit, exclude,
            lambda deliveries, next_us: self.scheduler.loaded(queue, deliveries, next_us))

    def scan(self, shard: int, after: bytes, limit: int) -> None:
        """Scheduler: read the next queues in the order of their due time."""
        self.stores[shard].due_queues(after, limit, partial(self._scanned, shard))

    def _scanned(self, shard: int, found: list[tuple[int, str]], last: bytes | None) -> None:
        if found and found[-1][0] > self._latest_due_us():
            self._bring_forward(shard)
        self.scheduler.scanned(shard, found, last)

    def alarm(self) -> None:
        """Scheduler: something is due sooner than was known."""
        self._alarm.set()

    def offer(self, queue: Queue) -> None:
        """Scheduler: `queue` has deliveries in memory. Hot path."""
        path = queue.path
        if isinstance(path, Path) and path.route is not None and path.route.expires > time.monotonic():
            self._bring(queue, path)
        else:
            self._find_route(queue)

    def withdraw(self, queue: Queue) -> None:
        """Scheduler: `queue` has nothing in memory any more."""
        if isinstance(queue.path, Path):
            queue.path.turns.discard(queue)

    def _keep_time(self) -> None:
        while True:
            soonest_us = self.scheduler.next_wake_us()
            wait_s = None if soonest_us == FOREVER_US else max((soonest_us - self.clock_us()) / 1e6, 0.0)
            self._alarm.wait(LOOK_S if wait_s is None else min(wait_s, LOOK_S))
            self._alarm.clear()
            try:
                self.settler.watch.look()
                self.scheduler.run()
            except Exception:
                log.exception("bug: queues whose time has come")
                gevent.sleep(1.0)

    def _clock_was_set(self, step_us: int) -> None:
        """The wall clock is another one now (`mta.delivery.clock` has the rules)."""
        log.warning("the clock was set %s by %.0f s", "forward" if step_us > 0 else "back", abs(step_us) / 1e6)
        for path in self.paths.values():
            if path.suspended_until_us:
                path.suspended_until_us += step_us
        self.scheduler.repark(lambda name, until_us: until_us + step_us)
        if step_us < 0:
            for wait_s in LOOKS_FOR_LATE_S:
                for shard in self.stores:
                    gevent.spawn_later(wait_s, self._bring_forward, shard)

    def _latest_due_us(self) -> int:
        return self.clock_us() + int(self.settler.retry.longest_s * 1_000_000)

    def _bring_forward(self, shard: int, start: bytes = b"") -> None:
        """Find the deliveries that are due later than the retry schedule can say, and let them wait less long."""
        if start or shard not in self._bringing:
            self._bringing.add(shard)
            self.stores[shard].due_after(self._latest_due_us(), start, BRING_BATCH, partial(self._found_late, shard))

    def _found_late(self, shard: int, deliveries: list[Delivery], go_on: bytes | None) -> None:
        for queue, delivery in self.scheduler.take(shard, deliveries):
            self._conclude(queue, delivery, partial(self.settler.bring_forward, delivery))
        self._bringing.discard(shard)
        if go_on is not None:
            self._bring_forward(shard, go_on)

    # -- routes and paths ----------------------------------------------------------------------------------------

    def _find_route(self, queue: Queue) -> None:
        path = self._routes.get(queue.domain)
        if path is not None and path.route is not None and path.route.expires > time.monotonic():
            queue.path = path
            self._bring(queue, path)
            return
        waiting = self.routing.get(queue.domain)
        if waiting is not None:
            if queue not in waiting:
                waiting.append(queue)
            return
        self.routing[queue.domain] = [queue]
        gevent.spawn(self._route, queue.domain)

    def _route(self, domain: str) -> None:
        """Find the way for mail to `domain`, and bring the queues that wait for it there."""
        try:
            router = None
            while router is not self.router:  # a reload in between may have changed the rules
                router = self.router
                found = router.route(domain)
        except Exception as error:
            log.exception("bug: the route of %s", domain)
            found = RouteFailure(False, 451, "4.3.5", f"internal error: {error}", time.monotonic())
        queues = self.routing.pop(domain)
        if isinstance(found, RouteFailure):
            if found.permanent:
                self._unroutable(queues, Reply(found.code, found.enhanced, (found.text,), local=True))
                return
            self._routes.pop(domain, None)
            path = self._path(f"?{domain}", None, domain)
            path.reason = found.text
            self._suspend(path, max(self._pause_s(path), found.expires - time.monotonic()))
        else:
            path = self._path(self._path_name(found, domain), found, domain)
            self._routes[domain] = path
            self._routes.move_to_end(domain)
            if len(self._routes) > ROUTES_KEPT:
                self._routes.popitem(last=False)
            failing = self.paths.get(f"?{domain}")
            if failing is not None:
                del self.paths[failing.name]
        for queue in queues:
            if isinstance(queue.path, Path) and queue.path is not path:
                queue.path.turns.discard(queue)
            queue.path = path
            if queue.ready:
                self._bring(queue, path)

    def _path_name(self, route: Route, domain: str) -> str:
        """A domain with shaping of its own has connections of its own."""
        return f"{route.site}+{domain}" if domain in self.config.shaping.domains else route.site

    def _path(self, name: str, route: Route | None, domain: str) -> Path:
        shaping = self.config.shaping.for_domain(domain)
        path = self.paths.get(name)
        if path is None:
            if len(self.paths) >= self._forget_above:
                self._forget_paths()
            path = self.paths[name] = Path(name, route, shaping)
        path.route = route
        path.shaping = shaping
        return path

    def _forget_paths(self) -> None:
        """Drop the memory of the sites that failed longest ago. Looks at all, so only after many have been added."""
        idle = [path for path in self.paths.values() if not path.connections and not path.turns]
        for path in idle[: max(len(self.paths) - PATHS_KEPT * 9 // 10, 0)]:
            del self.paths[path.name]
        self._forget_above = max(PATHS_KEPT, len(self.paths) + PATHS_KEPT // 10)

    def _unroutable(self, queues: list[Queue], reply: Reply) -> None:
        """No route will ever lead there: give the mail up, a little at a time."""
        given_up = 0
        for queue in queues:
            while (delivery := self.scheduler.pop(queue)) is not None:
                self._conclude(queue, delivery, partial(self.settler.fail, delivery, reply))
                given_up += 1
                if given_up % GIVE_UP_BATCH == 0:
                    gevent.sleep(0)

    def path_of(self, domain: str) -> Path | None:
        """Where mail to `domain` goes, as far as that is known in memory."""
        return self._routes.get(domain) or self.paths.get(f"?{domain}")

    def _bring(self, queue: Queue, path: Path) -> None:
        known = self.paths.setdefault(path.name, path)
        if known is not path:  # it was forgotten while it had nothing to do, and made anew for another domain
            known.route = path.route
            queue.path = self._routes[queue.domain] = path = known
        if path.suspended_until_us and path.suspended_until_us > self.clock_us():
            self.scheduler.park(queue, path.suspended_until_us)
            return
        path.turns.add(queue)
        self.kick(path)

    # -- connections ---------------------------------------------------------------------------------------------

    def kick(self, path: Path) -> None:
        """There is work on `path`: wake a connection that rests, or open one. Hot path."""
        if path.idle:
            connection = path.idle.pop()
            del self._resting[connection]
            connection.wake()
            return
        now_s = time.monotonic()
        while path.wants_connection(now_s):
            if not self._open(path):
                break
        if path.turns and not path.stalled:
            path.stalled = True
            gevent.spawn_later(STALL_S, self._look_again, path, path.head())

    def _look_again(self, path: Path, head: object) -> None:
        """Deliveries wait behind busy connections: if not even the first one has moved on, open another."""
        path.stalled = False
        if not path.turns or self.stopping:
            return
        if path.head() is head and path.wants_connection(time.monotonic(), forced=True):
            self._open(path)
        self.kick(path)

    def _open(self, path: Path) -> bool:
        """Open a connection if all limits allow it; else wait for a lease."""
        line = self.probing if path.probing else self.opening
        if self.stopping or path.route is None or self.choked():
            return False
        if not self.room.has_room(path):
            if self._resting:
                self._end_one_rest(next(iter(self._resting)))
            return False
        if not line.has_room(path):
            return False
        lacking = self.limits.acquire([(path.lease, path.shaping.connections),
                                       (TOTAL, self.config.delivery.connections)])
        if lacking is not None:
            if path.waiting_for != lacking:
                self._stop_waiting(path)
                path.waiting_for = lacking
                self._waiting.setdefault(lacking, OrderedDict())[path] = None
            return False
        self._stop_waiting(path)
        connection = Connection(self, path)
        path.connections.add(connection)
        path.opening += 1
        self.room.begin()
        line.begin()
        connection.line = line
        self.connections.add(connection)
        gevent.spawn(connection.run)
        return True

    def _stop_waiting(self, path: Path) -> None:
        if path.waiting_for:
            paths = self._waiting[path.waiting_for]
            del paths[path]
            if not paths:
                del self._waiting[path.waiting_for]
                self.limits.want(path.waiting_for, 0)
            path.waiting_for = ""

    def nudged(self, names: Iterable[str]) -> None:
        """Leases of these limits became free, or another worker wants some of ours."""
        for name in names:
            self._serve_waiting(name)
            path = self.paths.get(name)
            if path is not None:
                path.contended = True
                self._end_rest(name, path.shaping.connections, path.idle)
            if name == TOTAL:
                self._contended = True
                self._end_rest(TOTAL, self.config.delivery.connections, self._resting)

    def _serve_waiting(self, name: str) -> None:
        """Leases of `name` may be free: the paths that wait for one try again in turn, until one is refused."""
        waiting = self._waiting.get(name)
        while waiting:
            path, _ = waiting.popitem(last=False)
            path.waiting_for = ""
            had = len(path.connections)
            self.kick(path)
            if path.waiting_for == name:
                if len(path.connections) == had:
                    waiting.move_to_end(path, last=False)
                return
        if waiting is not None:
            del self._waiting[name]
            self.limits.want(name, 0)

    def _end_rest(self, name: str, limit: int, resting: Collection[Connection]) -> None:
        """Close as many connections at rest as others have need for their leases, the longest at rest first."""
        while resting and self.limits.should_yield(name, limit, resting=True):
            self._end_one_rest(next(iter(resting)))

    def _end_one_rest(self, connection: Connection) -> None:
        connection.stopping = True
        self.rested(connection)
        connection.wake()

    def lacking(self, why: str) -> None:
        """This machine has no socket for one more connection. No site is at fault: paths wait, none is paused."""
        self._shortage.failed(why, time.monotonic())
        if not self.room.shortage:
            gevent.spawn_later(SHORTAGE_S, self._try_more)
        self.room.lacks(why)

    def _try_more(self) -> None:
        """The shortage may be over, or not as bad: go on with twice as many connections as there could be."""
        if not self.room.grow():
            gevent.spawn_later(SHORTAGE_S, self._try_more)
        self._fill_room()

    def _fill_room(self) -> None:
        while (successor := self.room.next()) is not None:
            self.kick(successor)

    def established(self, connection: Connection) -> None:
        """The peer took our EHLO."""
        self._opened(connection)
        path = connection.path
        path.took()
        now_s = time.monotonic()
        if now_s >= path.tell_s or self.limits.learned(path.lease):
            path.tell_s = now_s + TELL_S
            self.limits.served(path.lease)

    def _opened(self, connection: Connection) -> None:
        """It is no longer being opened, whatever came of it: the next one in line may."""
        connection.path.opening -= 1
        line = connection.line
        assert line is not None
        line.end()
        while (successor := line.next()) is not None:
            self.kick(successor)

    def connection_failed(self, connection: Connection, reply: Reply) -> None:
        """No address of the site gave a session."""
        if not self.stopping:
            self._site_failed(connection.path, str(reply), connection)

    def closed(self, connection: Connection) -> None:
        """The connection has ended, however it did."""
        path = connection.path
        path.connections.discard(connection)
        self.connections.discard(connection)
        self.limits.release([path.lease, TOTAL])
        self.room.end()
        if not connection.established:
            self._opened(connection)
        elif self._shortage.lasts:
            self._shortage.worked(time.monotonic())
        if self.stopping:
            if not self.connections:
                self._empty.set()
        elif path.turns:
            self.kick(path)
        elif not path.connections:
            self._stop_waiting(path)
            if not path.failures:
                self.paths.pop(path.name, None)
        if self.room.is_awaited:
            self._fill_room()

    def is_wanted(self, connection: Connection) -> bool:
        """Whether the lease of `connection`, which ends, will be another one's at once."""
        path = connection.path
        return (path.contended or self._contended or path.waiting_for != ""
                or (bool(path.turns) and len(path.connections) >= path.shaping.connections))

    def may_rest(self, connection: Connection) -> bool:
        """`connection` has nothing to do. Whether it may stay open to wait for work; it then counts as idle."""
        path = connection.path
        if self.stopping or connection.stopping or self._spent(connection) or path.turns or self.room.is_awaited:
            return False
        if path.suspended_until_us and path.suspended_until_us > self.clock_us():
            return False
        if self._gives_way(connection, resting=True):
            return False
        connection.idle = True
        path.idle.append(connection)
        self._resting[connection] = None
        return True

    def rested(self, connection: Connection) -> None:
        """The rest is over: work, the peer, time, or somebody else who needs the lease."""
        connection.idle = False
        if connection in self._resting:  # else it was taken out to be given work
            del self._resting[connection]
            connection.path.idle.remove(connection)

    def choked(self) -> bool:
        """Whether outcomes cannot be written down: what is delivered now would be delivered again after a crash."""
        for store in self.stores.values():  # noqa: SIM110 - asked for every message, and a generator costs
            if store.choked:
                return True
        return False

    def _spent(self, connection: Connection) -> bool:
        shaping = connection.path.shaping
        mail_max = connection.client.capabilities.mail_max
        return (connection.messages >= shaping.messages_per_connection
                or 0 < mail_max <= connection.messages
                or time.monotonic() - connection.opened_s >= shaping.connection_age)

    def _gives_way(self, connection: Connection, resting: bool) -> bool:
        """Whether another worker should have this connection's lease now. One at work is asked once in its turn."""
        path = connection.path
        if not path.contended and not self._contended:
            return False
        if not resting:
            now_s = time.monotonic()
            if now_s - connection.turn_s < TURN_S:
                return False
            connection.turn_s = now_s
        limits, total = self.limits, self.config.delivery.connections
        if ((path.contended and limits.should_yield(path.lease, path.shaping.connections, resting))
                or (self._contended and limits.should_yield(TOTAL, total, resting))):
            connection.stopping = True
            return True
        if resting:  # not even one at rest is wanted
            path.contended = self._contended = False
        return False

    # -- deliveries ----------------------------------------------------------------------------------------------

    def next_job(self, connection: Connection) -> Job | None:
        """The next transaction for `connection`, fairly among the queues of its path. Hot path (bench S1, S2)."""
        path = connection.path
        if self.stopping or connection.stopping or self.choked() or self._spent(connection):
            return None
        now_us = self.clock_us()
        if path.suspended_until_us > now_us or self._gives_way(connection, resting=False):
            return None
        turns, scheduler = path.turns, self.scheduler
        while (queue := turns.next()) is not None:
            delivery = scheduler.pop(queue)
            if not queue.ready:
                turns.discard(queue)
            if delivery is None:
                continue
            if self.settler.expired(delivery, now_us):
                self._conclude(queue, delivery, partial(self.settler.expire, delivery, path.reason))
                continue
            at_most = path.shaping.recipients_per_message
            rcpt_max = connection.client.capabilities.rcpt_max
            if rcpt_max and rcpt_max < at_most:
                at_most = rcpt_max
            transaction = transaction_for(delivery, at_most)
            return Job(queue, delivery, transaction, time.monotonic(), delivery.message.content is None)
        return None

    def read_content(self, job: Job) -> bool:
        """Read the content of a message that is not in memory. Whether there is one; if not, its delivery is settled.

        A damaged one leaves the queue; one that cannot be read now waits for its next attempt.
        """
        store = self.stores[job.queue.shard]
        try:
            job.transaction.content = self._read_body(store, job.delivery.message)
        except BodyDamaged as damage:
            log.error("%s", damage)
            self._conclude(job.queue, job.delivery, partial(self.settler.quarantine, job.delivery, str(damage)))
            return False
        except BodyUnreadable as trouble:
            log.error("%s", trouble)
            self._conclude(job.queue, job.delivery, partial(self.settler.postpone, job.delivery, str(trouble)))
            return False
        except Exception:
            log.exception("bug: the content of %s cannot be read", format_id(job.delivery.message.id))
            self._put_off(job.queue, job.delivery)
            return False
        return True

    def untouched(self, job: Job) -> None:
        """The connection cannot carry `job` after all."""
        self.scheduler.put_back(job.queue, job.delivery)

    def mark_in_flight(self, job: Job) -> None:
        """The end of the content is about to be sent: from here on a crash may leave a duplicate."""
        self.stores[job.queue.shard].mark_inflight(job.delivery)

    def settle(self, connection: Connection, job: Job) -> None:
        """A transaction has ended. Hot path (bench S1, S2)."""
        transaction, delivery, path = job.transaction, job.delivery, connection.path
        now_s = time.monotonic()
        reply = delivered_to_all(transaction)
        if reply is not None and transaction.recipients is delivery.recipients:
            connection.completed += 1
            path.succeeded(now_s)
            self._conclude(job.queue, delivery, partial(
                self.settler.deliver, delivery, reply, connection.peer, now_s - job.started_s))
            return
        outcome = judge(transaction, connection.completed > 0, delivery.losses)
        if not transaction.lost and outcome.host_failure is None:
            connection.completed += 1
            path.succeeded(now_s)
        elif transaction.mail is not None or transaction.lost_phase:
            delivery.losses += 1
        if outcome.host_failure is not None:  # first, so that what goes back to its queue opens no connection
            self._site_failed(path, str(outcome.host_failure))
        self._conclude(job.queue, delivery, partial(
            self.settler.settle, delivery, outcome, connection.peer, now_s - job.started_s), job.marked)

    def _conclude(self, queue: Queue, delivery: Delivery, judged: Callable[[], Verdict], marked: bool = False) -> None:
        """Commit the verdict on a delivery in flight. What it says becomes true when it is durable; until then a crash
        undoes it. A bug on the way makes this delivery wait, and nothing else."""
        try:
            verdict = judged()
            if verdict.updates or verdict.removes:
                shard, notices = queue.shard, verdict.notices
                self.stores[shard].submit(
                    verdict.commit(), (lambda error: self._schedule(shard, notices, error)) if notices else None)
            elif marked:
                self.stores[queue.shard].clear_inflight(delivery)  # refused after all, and nothing to write down
        except Exception:
            log.exception("bug: %s for %s cannot be settled", format_id(delivery.message.id), delivery.domain)
            self._put_off(queue, delivery)
            return
        if verdict.again:
            self.scheduler.put_back(queue, delivery)
        else:
            self.scheduler.done(queue, delivery)

    def _put_off(self, queue: Queue, delivery: Delivery) -> None:
        """Leave a delivery that a bug keeps from being settled alone for a while, then read it again."""
        gevent.spawn_later(PUT_OFF_S, self.scheduler.let_go, queue, delivery)

    def _schedule(self, shard: int, deliveries: list[Delivery], error: Exception | None) -> None:
        if error is None:
            for delivery in deliveries:
                self.scheduler.add(shard, delivery)

    # -- failing sites -------------------------------------------------------------------------------------------

    def _site_failed(self, path: Path, reason: str, refused: Connection | None = None) -> None:
        """The site broke a session before it served, or `refused` a connection."""
        if path.suspended_until_us > self.clock_us():
            return  # one outage, however many connections it ends
        now_s = time.monotonic()
        if refused is None:
            stand_still = path.broken(reason, now_s)
        else:
            refusal = self.limits.refused(path.lease, refused.opened_s, path.established > 0)
            stand_still = path.refused(reason, now_s, refusal)
        if stand_still:
            self._suspend(path, self._pause_s(path))

    def _pause_s(self, path: Path) -> float:
        retry = self.config.retry
        return float(min(retry.site_first * 2 ** min(path.failures, 30), retry.site_cap))

    def _suspend(self, path: Path, wait_s: float) -> None:
        """Stop a path: its mail leaves memory and comes back when the pause is over; a probe then goes first."""
        self.settler.watch.look()
        path.suspend(self.clock_us() + int(wait_s * 1_000_000))
        # Once is news; while it stays so the events tell.
        level = logging.INFO if path.failures == 1 else logging.DEBUG
        log.log(level, "%s: suspended for %.0f s: %s", path.name, wait_s, path.reason)
        event = events.suspended(
            path.name, text=path.reason, until_us=path.suspended_until_us, time_us=self.clock_us())
        next(iter(self.stores.values())).submit(Transaction(events=[event]))
        for queue in list(path.turns):
            self.scheduler.park(queue, path.suspended_until_us)
        for connection in list(path.idle):
            connection.wake()

    # -- what connections ask ------------------------------------------------------------------------------------

    def source_address(self, family: int) -> str | None:
        """The local address to send from."""
        delivery = self.config.delivery
        return delivery.source_ipv6 if family == AF_INET6 else delivery.source_ipv4

    def no_address(self, path: Path) -> Reply:
        """Why there was no address to try."""
        assert path.route is not None
        found = [self.router.addresses(host) for host in path.route.hosts]
        texts = dict.fromkeys(one.failure for one in found if one.failure)
        # While one name may only be slow to resolve, the site is not known to be without addresses.
        enhanced = min((one.enhanced for one in found if one.failure), default="4.4.4")
        return Reply(451, enhanced, ("; ".join(texts) or "no host has an address",), local=True)
