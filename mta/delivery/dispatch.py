"""Which delivery goes next over a connection, and what becomes of it: jobs out, verdicts in.

A delivery that was deferred goes by the source that it left from before, as long as that may be used: greylisting and
reputation are kept by address. A connection from another source that comes upon it leaves it to that path as a *claim*.
One that a rule on replies sends elsewhere is left to another source in the same way; for another host the connection
ends, and the next one of its path prefers others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from mta.delivery.connection import Connection, Job, ask_for_time, transaction_for
from mta.delivery.fairness import PRIORITIES
from mta.delivery.lane import Lane
from mta.delivery.outcome import Outcome, delivered_to_all, judge
from mta.delivery.pacing import Right
from mta.delivery.path import Path
from mta.delivery.settle import EARLY, Verdict
from mta.queue.ids import format_id
from mta.queue.records import EIGHT_BIT, Delivery
from mta.queue.scheduler import Queue
from mta.queue.store import BodyDamaged, BodyUnreadable

if TYPE_CHECKING:
    from mta.delivery.engine import Engine

PUT_OFF_S = 300.0
SLOW_S = 0.5  # a message that takes so long does not need the next one right behind it
CLAIMS = 100  # deliveries kept for one path that other sources came upon

log = logging.getLogger(__name__)


class Dispatch:
    """Hands out the deliveries of one engine, and settles them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # -- out -----------------------------------------------------------------------------------------------------

    def next_job(self, connection: Connection) -> Job | None:
        """The next transaction for `connection`, fairly among the queues of its lane. Hot path (bench S1, S2)."""
        engine, path = self._engine, connection.path
        if engine.stopping or connection.stopping or engine.choked() or engine.connecting.spent(connection):
            return None
        now_us = engine.clock_us()
        if path.suspended_until_us > now_us or engine.connecting.gives_way(connection, resting=False):
            return None
        if len(path.lanes) > 1:
            self._take_turns(connection)
        lane, scheduler, pacing = connection.lane, engine.scheduler, engine.pacing
        turns, claims, controls = lane.turns, path.claims, engine.controls
        if (path.message_rates or path.blocked) and (not (turns.count or claims) or not pacing.may_send(
                path, not turns.best or bool(claims and not claims[0][0].priority))):
            return None  # without mail nothing is asked for, and nothing may be handed back
        while True:
            right: Right | None = None
            if claims and self._goes_first(connection, claims[0][0]):
                queue, delivery = claims.pop(0)
                if queue.book is not controls.book and not controls.admits(queue):
                    scheduler.put_back(queue, delivery)
                    continue
                if queue.tenant in pacing.tenants:
                    right = pacing.take(queue, lane)
                    if right is None:
                        scheduler.put_back(queue, delivery)
                        continue
            else:
                ready = turns.next()
                if ready is None:
                    if path.message_rates:
                        pacing.send_back(path)
                    return None
                queue = ready
                if queue.book is not controls.book and not controls.admits(queue):
                    continue
                if queue.tenant in pacing.tenants:
                    right = pacing.take(queue, lane)
                    if right is None:
                        continue
                popped = scheduler.pop(queue)
                if not queue.ready:
                    turns.discard(queue)
                if popped is None:
                    self._not_taken(right)
                    continue
                delivery = popped
                if delivery.source and delivery.source != path.source.name and self._claimed(lane, queue, delivery):
                    self._not_taken(right)
                    continue
            try:
                job = self._begin(connection, queue, delivery, right, now_us)
            except Exception:
                log.exception("bug: %s for %s cannot be begun", format_id(delivery.message.id), delivery.domain)
                self._not_taken(right)
                self._leave_alone(lane, queue, delivery)
                continue
            if job is not None:
                return job
            self._not_taken(right)
            if connection.stopping:
                if path.message_rates:
                    pacing.send_back(path)
                return None

    def _begin(self, connection: Connection, queue: Queue, delivery: Delivery, right: Right | None,
               now_us: int) -> Job | None:
        """The transaction of a delivery whose turn has come; None when it is not to be tried now, which is done then.
        Hot path."""
        engine, path = self._engine, connection.path
        if delivery.avoid and self._goes_elsewhere(connection, queue, delivery):
            return None
        if queue.each and engine.controls.stops(queue, delivery):
            return None
        settler = engine.settler
        if settler.expired(delivery, now_us):
            self.conclude(queue, delivery, partial(settler.expire, delivery, path.reason))
            return None
        if delivery.message.wishes is not None and delivery.message.is_held(now_us):
            self.conclude(queue, delivery, partial(settler.hold, delivery))
            return None
        at_most = path.shaping.recipients_per_message
        in_all = path.shaping.recipients_per_connection
        if in_all is not None and in_all - connection.recipients < at_most:
            at_most = in_all - connection.recipients
        rcpt_max = connection.client.capabilities.rcpt_max
        if rcpt_max and rcpt_max < at_most:
            at_most = rcpt_max
        transaction = transaction_for(delivery, at_most)
        if transaction.flags & EIGHT_BIT:
            transaction.eight_bit_offered = path.shaping.eight_bit == "return"
        if delivery.message.wishes is not None:
            ask_for_time(transaction, delivery.message.wishes, path.shaping, now_us)
        return Job(queue, delivery, transaction, engine.monotonic(), delivery.message.content is None, right)

    def _leave_alone(self, lane: Lane, queue: Queue, delivery: Delivery) -> None:
        """A bug came in the way of a delivery in flight. Wherever that was, nobody else has it, and it waits."""
        for path in lane.paths:
            if (queue, delivery) in path.claims:
                path.claims.remove((queue, delivery))
        if queue.in_flight.get(delivery.key) is delivery:  # else it was ended or put back before
            self._put_off(queue, delivery)

    def _not_taken(self, right: Right | None) -> None:
        if right is not None:
            self._engine.pacing.give_back(right)

    def _take_turns(self, connection: Connection) -> None:
        """Several pools use this path: of the lanes with mail of the highest priority each has one message in turn."""
        lanes, ageing = connection.path.lanes, self._engine.config.turns.ageing
        best = min(lane.turns.best for lane in lanes)
        if ageing and connection.messages % ageing == ageing - 1:
            best = len(PRIORITIES) - 1
        for lane in lanes:
            if lane.turns.count and lane.turns.best <= best:
                del lanes[lane]
                lanes[lane] = None
                self._engine.connecting.lend(connection, lane)
                return

    def _goes_first(self, connection: Connection, queue: Queue) -> bool:
        """Whether what its path has a claim on, of `queue`, goes before what waits in the lane of `connection`."""
        turns, ageing = connection.lane.turns, self._engine.config.turns.ageing
        return (not turns.count or turns.best >= queue.priority
                or (ageing > 0 and connection.messages % ageing == ageing - 1))

    def _claimed(self, lane: Lane, queue: Queue, delivery: Delivery) -> bool:
        """Leave `delivery` to the path of the source that it left from before, if that can be used now."""
        path = lane.path_from(delivery.source)
        if path is None or len(path.claims) >= CLAIMS or path.suspended_until_us > self._engine.clock_us():
            return False
        path.claims.append((queue, delivery))
        if self._engine.connecting.serve_claims(lane, path):
            return True
        path.claims.pop()
        return False

    def _goes_elsewhere(self, connection: Connection, queue: Queue, delivery: Delivery) -> bool:
        """A rule wants `delivery` to go another way than this one: leave it to that. False when there is none now."""
        engine, path, lane = self._engine, connection.path, connection.lane
        if f"source:{path.source.name}" in delivery.avoid:
            for other in self._others(lane, delivery.avoid):
                if len(other.claims) < CLAIMS:
                    other.claims.append((queue, delivery))
                    if engine.connecting.serve_claims(lane, other):
                        return True
                    other.claims.pop()
        host = connection.target.host.name if connection.target is not None else ""
        if f"host:{host}" not in delivery.avoid or engine.reachability.is_avoided(
                path.name, host, connection.opened_s):
            return False
        # The next connection of this path prefers other hosts; one that comes to this all the same carries it.
        engine.reachability.avoid(path.name, host, engine.monotonic())
        connection.stopping = True
        engine.scheduler.put_back(queue, delivery)
        return True

    def _others(self, lane: Lane, avoid: Collection[str]) -> list[Path]:
        """The paths of `lane` from other sources than these that may be used now."""
        now_us = self._engine.clock_us()
        return [path for path, weight in zip(lane.paths, lane.weights, strict=True)
                if weight and f"source:{path.source.name}" not in avoid and path.suspended_until_us <= now_us]

    def _look_elsewhere(self, connection: Connection, delivery: Delivery, outcome: Outcome) -> None:
        """A rule wants the next attempt of `delivery` to go another way than this one: say what it has to avoid, if
        there is another way. For the first attempts only, and no way is tried twice."""
        path, target = connection.path, connection.target
        if delivery.attempts >= EARLY:
            return
        tried = (*delivery.avoid, f"source:{path.source.name}")
        avoid = [*tried] if self._others(connection.lane, tried) else []
        if outcome.elsewhere() == "elsewhere host" and target is not None and path.route is not None:
            hosts = (*delivery.avoid, f"host:{target.host.name}")
            if any(f"host:{host.name}" not in hosts for host in path.route.hosts):
                self._engine.reachability.avoid(path.name, target.host.name, self._engine.monotonic())
                avoid += hosts
        outcome.avoid = tuple(dict.fromkeys(avoid))

    def return_claims(self, path: Path) -> None:
        """What was kept for `path` may go by another source."""
        while path.claims:
            queue, delivery = path.claims.pop()
            delivery.source = ""
            self._engine.scheduler.put_back(queue, delivery)

    def read_content(self, connection: Connection, job: Job) -> bool:
        """Read the content of a message that is not in memory. Whether `job` may go over `connection` then; if not, all
        is done about its delivery. Waits.

        A damaged one leaves the queue; one that cannot be read now waits for its next attempt. While the disk was
        waited for its path may have been suspended, its queue paused, the connection told to end: then it goes back.
        """
        path = connection.path
        was_blocked = path.blocked
        if not self._read(job):
            self._not_begun(path, job)
            return False
        engine, queue, controls = self._engine, job.queue, self._engine.controls
        in_time = engine.pacing.await_sending(path, job.right, job.started_s, not queue.priority)
        if (not in_time or engine.stopping or connection.stopping or engine.choked()
                or path.suspended_until_us > engine.clock_us() or (path.blocked and not was_blocked)
                or engine.pacing.lacks(queue.tenant, job.right)
                or (queue.book is not controls.book and not controls.admits(queue))
                or (engine.holds.on_queues and engine.holds.until(queue))):
            self.put_back(path, job)
            return False
        if queue.each and controls.stops(queue, job.delivery):
            self._not_begun(path, job)
            return False
        job.started_s = engine.monotonic()  # the time of our disk is not the receiver's
        return True

    def put_back(self, path: Path, job: Job) -> None:
        """`job` is not begun after all: nothing of it has been sent, and the rights that it had are given back."""
        self._not_begun(path, job)
        self._engine.scheduler.put_back(job.queue, job.delivery)

    def _not_begun(self, path: Path, job: Job) -> None:
        if path.message_rates:
            self._engine.pacing.send_back(path, job.started_s)
        self._not_taken(job.right)

    def _read(self, job: Job) -> bool:
        engine = self._engine
        store, settler = engine.stores[job.queue.shard], engine.settler
        try:
            job.transaction.content = engine.read_body(store, job.delivery.message)
        except BodyDamaged as damage:
            log.error("%s", damage)
            self.conclude(job.queue, job.delivery, partial(settler.quarantine, job.delivery, str(damage)))
            return False
        except BodyUnreadable as trouble:
            log.error("%s", trouble)
            self.conclude(job.queue, job.delivery, partial(settler.postpone, job.delivery, str(trouble)))
            return False
        except Exception:
            log.exception("bug: the content of %s cannot be read", format_id(job.delivery.message.id))
            self._put_off(job.queue, job.delivery)
            return False
        return True

    def untouched(self, job: Job) -> None:
        """The connection cannot carry `job` after all."""
        self._not_taken(job.right)
        self._engine.scheduler.put_back(job.queue, job.delivery)

    def mark_in_flight(self, job: Job) -> None:
        """The end of the content is about to be sent: from here on a crash may leave a duplicate. Raises StoreError
        when there is no room to note that."""
        self._engine.stores[job.queue.shard].mark_inflight(job.delivery)

    # -- in ------------------------------------------------------------------------------------------------------

    def settle(self, connection: Connection, job: Job) -> None:
        """A transaction has ended. A bug in what follows for others does not undo a delivery, and one that failed waits
        then. Hot path (bench S1, S2)."""
        transaction, delivery = job.transaction, job.delivery
        took_s = self._engine.monotonic() - job.started_s
        reply = delivered_to_all(transaction)
        if reply is not None and transaction.recipients is delivery.recipients:
            try:
                self._was_taken(connection, job, took_s)
            finally:
                self.conclude(job.queue, delivery, partial(
                    self._engine.settler.deliver, delivery, reply, connection.peer, took_s))
            return
        try:
            outcome = self._judge(connection, job, took_s)
        except Exception:
            self._put_off(job.queue, delivery)
            raise
        self.conclude(job.queue, delivery, partial(
            self._engine.settler.settle, delivery, outcome, connection.peer, took_s), job.marked)

    def _was_taken(self, connection: Connection, job: Job, took_s: float) -> None:
        """What follows for others from a message that all of its recipients got. Hot path."""
        path, now_s = connection.path, job.started_s + took_s
        if job.right is not None:
            self._engine.pacing.ended(job.right)
        connection.completed += 1
        if path.failures:
            self._engine.breakers.works(path)
        path.succeeded(now_s)
        if took_s >= SLOW_S or not path.prompt:
            _look_how_prompt(connection, took_s)
        self._engine.adapting.taken(path, job.started_s, now_s)

    def _judge(self, connection: Connection, job: Job, took_s: float) -> Outcome:
        """What came of any other transaction, and what follows for others from that."""
        transaction, delivery, path = job.transaction, job.delivery, connection.path
        now_s = job.started_s + took_s
        if job.right is not None:
            self._engine.pacing.ended(job.right)
        outcome = judge(transaction, connection.completed > 0, delivery.losses,
                        self._engine.reactions.judge_of(path))
        if not transaction.lost and outcome.host_failure is None:
            connection.completed += 1
            if path.failures:
                self._engine.breakers.works(path)
            path.succeeded(now_s)
        else:
            path.outcomes += 1
            if not outcome.forgiven and (transaction.mail is not None or transaction.lost_phase):
                delivery.losses += 1
        if outcome.elsewhere():
            self._look_elsewhere(connection, delivery, outcome)
        if outcome.reconnect:
            connection.stopping = True
        self._engine.reactions.to(outcome, path, job.queue)
        paced = self._engine.adapting.to(outcome, path, job.started_s, now_s)
        if outcome.host_failure is not None and not paced:
            # First, so that what goes back to its queue opens no connection.
            self._engine.keeper.site_failed(path, str(outcome.host_failure))
        return outcome

    def conclude(self, queue: Queue, delivery: Delivery, judged: Callable[[], Verdict], marked: bool = False) -> bool:
        """Commit the verdict on a delivery in flight. What it says becomes true when it is durable; until then a crash
        undoes it. A bug on the way makes this delivery wait, and nothing else: False then."""
        stores, scheduler = self._engine.stores, self._engine.scheduler
        try:
            verdict = judged()
            if verdict.updates or verdict.removes:
                if queue.tenant and verdict.removes:
                    self._engine.pacing.left(queue.tenant)
                shard, notices = queue.shard, verdict.notices
                if (verdict.updates or notices) and self._engine.controls.book is not None:
                    self._direct(shard, verdict)
                stores[shard].submit(
                    verdict.commit(), (lambda error: self._schedule(shard, notices, error)) if notices else None)
            elif marked:
                stores[queue.shard].clear_inflight(delivery)  # refused after all, and nothing to write down
        except Exception:
            log.exception("bug: %s for %s cannot be settled", format_id(delivery.message.id), delivery.domain)
            self._put_off(queue, delivery)
            return False
        if verdict.again:
            scheduler.put_back(queue, delivery)
        else:
            scheduler.done(queue, delivery)
        return True

    def _direct(self, shard: int, verdict: Verdict) -> None:
        """Orders may want what leaves memory in another queue than it was in, where a sweep may have been already."""
        controls = self._engine.controls
        controls.direct(verdict.notices)
        if not verdict.again and controls.direct(verdict.updates):
            controls.sweeps.unsettle(shard, min(one.message.id for one in verdict.updates))

    def _put_off(self, queue: Queue, delivery: Delivery) -> None:
        """Leave a delivery that a bug keeps from being settled alone for a while, then read it again."""
        self._engine.hub.later(PUT_OFF_S, self._engine.scheduler.let_go, queue, delivery)

    def _schedule(self, shard: int, deliveries: list[Delivery], error: Exception | None) -> None:
        if error is None:
            for delivery in deliveries:
                self._engine.scheduler.add(shard, delivery)


def _look_how_prompt(connection: Connection, took_s: float) -> None:
    """Whether the next message is to be sent ahead over this path, while the receiver thinks about the one before.

    That saves a round trip for each. Where a receiver thinks for long it saves next to nothing, and what has been sent
    ahead cannot be overtaken any more: transactional mail would wait for one message more. How long a session took to
    open, some four round trips, tells a receiver that is slow from one that is far away. Half of the bound on the way
    back, as a message that was sent ahead counts from then.
    """
    path = connection.path
    if path.prompt:
        path.prompt = took_s < 2 * connection.opening_s
    elif took_s < SLOW_S / 2:
        path.prompt = True
