"""What a worker answers on its control socket (`mta.control.protocol`): its status, its queues, its messages."""

from __future__ import annotations

import glob
import os
import resource
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
import gevent.event

from mta.control import protocol
from mta.control.exits import OS_ERROR, USAGE
from mta.control.explaining import Explaining
from mta.control.explanation import Explanation
from mta.control.paging import Paging
from mta.control.protocol import RequestError
from mta.delivery.decisions import held_by
from mta.delivery.explain import brief, foresee, rerouted, standing, why_not_now
from mta.queue import idn
from mta.queue.filter import Filter
from mta.queue.ids import format_id, parse_id, shard_of
from mta.queue.orders import due_of
from mta.queue.passes import QueueTotals
from mta.queue.records import (
    EIGHT_BIT,
    NOTIFICATION,
    NOTIFY_DELAY,
    NOTIFY_FAILURE,
    NOTIFY_NEVER,
    NOTIFY_SUCCESS,
    SMTPUTF8,
    Delivery,
    Message,
)
from mta.queue.scheduler import domain_of
from mta.queue.store import BodyDamaged, BodyUnreadable, QueueInfo, Store

if TYPE_CHECKING:
    from mta.control.worker import Worker

HEADERS_SHOWN = 256_000
ANSWER_S = 4.0  # less than the control process waits (`server.ASK_TIMEOUT_S`)
_READING = ("queues", "queue", "message", "body", "touched", "explain", "page")  # the index, to answer
_NOTIFY = ((NOTIFY_NEVER, "NEVER"), (NOTIFY_SUCCESS, "SUCCESS"), (NOTIFY_FAILURE, "FAILURE"), (NOTIFY_DELAY, "DELAY"))
_FLAGS = ((EIGHT_BIT, "8BITMIME"), (SMTPUTF8, "SMTPUTF8"), (NOTIFICATION, "NOTIFICATION"))


class Answers:
    """Answers requests about one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def answer(self, command: str, arguments: dict[str, Any]) -> object:
        """The result of one request. Runs in a greenlet of its own and may wait. Raises RequestError."""
        damage = self._damage() if command in _READING else ""
        # What lies on a damaged page of an index is never answered (`mta.queue.checkpointing`).
        with gevent.Timeout(ANSWER_S if damage else None, RequestError(damage)):
            found = self._answer(command, arguments)
        if _is_nothing(found) and (damage := self._damage()):
            raise RequestError(f"not found, but {damage}")
        return found

    def _answer(self, command: str, arguments: dict[str, Any]) -> object:
        try:
            match command:
                case "status":
                    return self._status()
                case "queues":
                    return self._queues(arguments)
                case "queue":
                    return self._queue(idn.queue_called(str(arguments["name"])), _rows(arguments))
                case "message":
                    return self._message(str(arguments["id"]))
                case "body":
                    return self._body(str(arguments["id"]), int(arguments["offset"]), int(arguments["length"]))
                case "touched":
                    return self._touched(str(arguments["filter"]))
                case "explain":
                    return Explaining(self._worker).answer(str(arguments["kind"]), str(arguments["name"]))
                case "page":
                    return Paging(self._worker).answer(
                        Filter.parse(str(arguments["filter"])) if arguments["filter"] else None,
                        str(arguments["after"]), bool(arguments["causes"]))
                case "obey":
                    return self._obey(int(arguments["serial"]))
                case "sweeps":
                    return self._sweeps(int(arguments["serial"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{command}: wrong arguments: {error}", USAGE) from None
        raise RequestError(f"unknown command {command!r:.60}")

    def _damage(self) -> str:
        return "; ".join(store.damage for store in self._worker.stores.values() if store.damage)

    def _status(self) -> protocol.WorkerStatus:
        worker = self._worker
        counters = worker.settler.counters
        scheduler = worker.engine.scheduler
        usage = resource.getrusage(resource.RUSAGE_SELF)
        counts = [store.counts() for store in worker.stores.values()]
        return protocol.WorkerStatus(
            worker.number, os.getpid(), time.monotonic() - worker.started_s, list(worker.stores),
            memory=worker.memory(), cpu_s=usage.ru_utime + usage.ru_stime,
            loop_lag_p99_ms=round(worker.lag.late_ms(0.99), 3), loop_lag_max_ms=round(worker.lag.late_ms(1.0), 3),
            queued_messages=sum(count.messages for count in counts),
            queued_deliveries=sum(count.deliveries for count in counts),
            queued_recipients=sum(count.recipients for count in counts),
            in_flight=sum(len(queue.in_flight) for queue in scheduler.queues.values()),
            sessions=sum(listener.sessions for listener in worker.listeners),
            connections=len(worker.engine.connections),
            intake=worker.store.room() or worker.occupancy.content.trouble() or "",
            damage=self._damage(),
            accepted_messages=counters.accepted_messages, accepted_recipients=counters.accepted_recipients,
            delivered=counters.delivered, deferred=counters.deferred, bounced=counters.bounced,
            expired=counters.expired, deleted=counters.deleted, check_refusals=worker.intake.checker.refused,
            check_warnings=worker.intake.checker.warned, sources=self._sources(),
            doors=list(dict.fromkeys(f"{door.name}: {door.waiting}" for door in worker.doors if door.waiting)),
        )

    def _sources(self) -> list[protocol.SourceRow]:
        engine = self._worker.engine
        now_us = engine.clock_us()
        rows = {name: protocol.SourceRow(name, trouble=source.lost or (source.reason if source.absent else ""))
                for name, source in engine.sources.all.items()}
        for path in engine.paths.values():
            row = rows.get(path.source.name)
            if row is not None and path.route is not None:
                row.connections += len(path.connections)
                row.paths += 1
                row.suspended += path.suspended_until_us > now_us
        return list(rows.values())

    def _queues(self, arguments: dict[str, Any]) -> protocol.QueueList:
        limit = _rows(arguments)
        order = arguments.get("order", "deliveries")
        if order not in protocol.QUEUE_ORDERS:
            raise RequestError(f"queues: order must be one of {', '.join(protocol.QUEUE_ORDERS)}", USAGE)
        names = arguments.get("names")
        patterns = [glob.escape(str(name)) for name in names] if names is not None else [
            as_pattern(str(arguments.get("pattern", "")))]
        rows: list[protocol.QueueRow] = []
        result = protocol.QueueList()
        for shard, store in self._worker.stores.items():
            for pattern in patterns:
                found: list[QueueInfo]
                totals: QueueTotals
                found, totals = _ask_pair(store.list_queues, pattern, limit)
                foresee(self._worker.engine, [info.name for info in found], in_list=True)
                rows += [self._row(shard, info) for info in found]
                result.queues += totals.queues
                result.deliveries += totals.deliveries
                result.recipients += totals.recipients
        result.rows = protocol.merged(rows, order)
        if len(self._worker.stores) > 1 and len(result.rows) < limit:
            result.queues = len(result.rows)  # the same queue may be in several shards
        del result.rows[limit:]
        return result

    def _row(self, shard: int, info: QueueInfo) -> protocol.QueueRow:
        stands = standing(self._worker.engine, shard, info.name, info.next_due_us)
        last = info.last
        return protocol.QueueRow(
            info.name, domain_of(info.name), info.deliveries, info.recipients,
            max(due_of(info.next_due_us), stands.until_us, 0),
            in_flight=stands.in_flight, connections=stands.connections, state=stands.state, reason=stands.reason,
            last_reply=last.reply if last is not None else "", last_reply_us=last.time_us if last is not None else 0)

    def _queue(self, name: str, limit: int) -> protocol.DeliveryList:
        found = self._queues({"names": [name]})
        deliveries: list[Delivery] = []
        for store in self._worker.stores.values():
            deliveries += _ask(store.list_deliveries, name, limit + 1)
        deliveries.sort(key=lambda delivery: delivery.due_us)
        return protocol.DeliveryList(
            found.rows[0] if found.rows else None, [self._delivery(one) for one in deliveries[:limit]],
            len(deliveries) > limit)

    def _find(self, text: str) -> tuple[Store, Message, list[Delivery]] | None:
        number = parse_id(text)
        store = self._worker.stores.get(shard_of(number))
        if store is None:
            return None
        message, deliveries = _ask_pair(store.find_message, number)
        return (store, message, deliveries) if message is not None else None

    def _message(self, text: str) -> protocol.MessageDetail | None:
        found = self._find(text)
        if found is None:
            return None
        store, message, deliveries = found
        headers, damaged = b"", ""
        try:
            headers = self._worker.read_body(store, message)[: min(message.header_size, HEADERS_SHOWN)]
        except (BodyDamaged, BodyUnreadable) as damage:
            damaged = str(damage)
        return protocol.MessageDetail(
            format_id(message.id), self._worker.number, message.sender, message.arrival_us, message.size,
            message.message_id, message.origin, [name for bit, name in _FLAGS if message.flags & bit], message.ret,
            message.envid or "", message.deliveries, [self._delivery(one) for one in deliveries], headers, damaged)

    def _body(self, text: str, offset: int, length: int) -> bytes | None:
        if not 1 <= length <= protocol.BODY_CHUNK or offset < 0:
            raise RequestError(f"body: length must be 1 to {protocol.BODY_CHUNK}", USAGE)
        found = self._find(text)
        if found is None:
            return None
        try:
            return self._worker.read_body(found[0], found[1])[offset : offset + length]
        except (BodyDamaged, BodyUnreadable) as damage:
            raise RequestError(str(damage), OS_ERROR) from None

    # -- orders --------------------------------------------------------------------------------------------------

    def _touched(self, text: str) -> protocol.TouchList:
        expression, sweeps = Filter.parse(text), self._worker.engine.controls.sweeps
        result = protocol.TouchList()
        for shard in self._worker.stores:
            found = sweeps.survey(shard, expression)
            result.rows += [protocol.TouchRow(*row) for row in found.rows]
            result.exact = result.exact and found.exact
        result.queues = len({row.queue for row in result.rows})
        result.deliveries = sum(row.deliveries for row in result.rows)
        result.recipients = sum(row.recipients for row in result.rows)
        result.rows = sorted(result.rows, key=lambda row: -row.deliveries)[:protocol.MAX_ROWS]
        return result

    def _obey(self, serial: int) -> protocol.Obeyed:
        controls = self._worker.engine.controls
        in_flight = controls.take(self._worker.written_orders()) if serial > controls.orders.serial else 0
        return protocol.Obeyed(controls.orders.serial, in_flight)

    def _sweeps(self, serial: int) -> protocol.SweepList:
        controls = self._worker.engine.controls
        if controls.orders.serial < serial:  # a sweep that is not known here yet is not over: we are starting, say
            raise RequestError("does not know all orders yet")
        return protocol.SweepList([
            protocol.SweepRow(number, shard, one.deliveries, one.recipients, one.finished, one.unreadable)
            for (shard, number), one in controls.sweeps.progress.items()])

    def _delivery(self, one: Delivery) -> protocol.DeliveryRow:
        message = one.message
        engine = self._worker.engine
        shard = shard_of(message.id)
        queue = engine.scheduler.queues.get((shard, one.queue))
        in_flight = queue is not None and one.key in queue.in_flight
        held = engine.controls.held(one.queue, one)
        is_due = not in_flight and due_of(one.due_us) <= engine.clock_us()
        reason = why_not_now(engine, shard, one.queue) if is_due and held is None else ""
        expires_us = message.arrival_us + int(engine.settler.expires_s(one.domain) * 1_000_000)
        return protocol.DeliveryRow(
            format_id(message.id), one.index, one.queue, one.domain, message.sender,
            [protocol.RecipientRow(
                to.address, ",".join(name for bit, name in _NOTIFY if to.notify & bit), to.orcpt or "")
             for to in one.recipients],
            message.size, message.arrival_us, due_of(one.due_us), one.attempts,
            in_flight, one.maybe_duplicate,
            [protocol.AttemptRow(attempt.time_us, attempt.remote, attempt.reply) for attempt in one.history],
            expires_us, held_by(held) if held is not None else reason,
            brief(engine, rerouted(engine, one.queue)))


def _is_nothing(found: object) -> bool:
    """Whether an answer says that something is not there."""
    if isinstance(found, protocol.DeliveryList):
        return found.row is None
    return found is None or (isinstance(found, Explanation) and not found.rows)


def as_pattern(text: str) -> str:
    """A part of a name as a shell pattern; one that is a pattern already as it is, but for an address literal."""
    if idn.literal(text):
        return f"*{glob.escape(idn.literal(text))}*"
    return text if not text or any(mark in text for mark in "*?[") else f"*{text}*"


def _rows(arguments: dict[str, Any]) -> int:
    limit = int(arguments.get("limit", 100))
    if not 1 <= limit <= protocol.MAX_ROWS:
        raise ValueError(f"limit must be 1 to {protocol.MAX_ROWS}")
    return limit


def _ask(question: Callable[..., None], *arguments: Any) -> Any:
    """Ask a store and wait for its answer."""
    answer = gevent.event.AsyncResult()
    question(*arguments, answer.set)
    return answer.get()


def _ask_pair(question: Callable[..., None], *arguments: Any) -> tuple[Any, Any]:
    """The same for an answer of two values."""
    answer = gevent.event.AsyncResult()
    question(*arguments, lambda first, second: answer.set((first, second)))
    first, second = answer.get()
    return first, second
