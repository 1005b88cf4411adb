"""What a worker answers on its control socket (`mta.control.protocol`): its status, its queues, its messages."""

from __future__ import annotations

import fnmatch
import resource
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent.event

from mta.control import protocol
from mta.control.protocol import RequestError
from mta.queue.ids import format_id, parse_id, shard_of
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
from mta.queue.store import BodyDamaged, QueueInfo

if TYPE_CHECKING:
    from mta.control.worker import Worker

HEADERS_SHOWN = 256_000
_NOTIFY = ((NOTIFY_NEVER, "NEVER"), (NOTIFY_SUCCESS, "SUCCESS"), (NOTIFY_FAILURE, "FAILURE"), (NOTIFY_DELAY, "DELAY"))
_FLAGS = ((EIGHT_BIT, "8BITMIME"), (SMTPUTF8, "SMTPUTF8"), (NOTIFICATION, "NOTIFICATION"))


class Answers:
    """Answers requests about one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def answer(self, command: str, arguments: dict[str, Any]) -> object:
        """The result of one request. Runs in a greenlet of its own and may wait. Raises RequestError."""
        try:
            match command:
                case "status":
                    return self._status()
                case "queues":
                    return self._queues(arguments)
                case "queue":
                    return self._queue(str(arguments["name"]), _rows(arguments))
                case "message":
                    return self._message(str(arguments["id"]))
                case "body":
                    return self._body(str(arguments["id"]), int(arguments["offset"]), int(arguments["length"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{command}: wrong arguments: {error}") from None
        raise RequestError(f"unknown command {command!r:.60}")

    def _status(self) -> protocol.WorkerStatus:
        worker = self._worker
        counters = worker.settler.counters
        scheduler = worker.engine.scheduler
        usage = resource.getrusage(resource.RUSAGE_SELF)
        counts = [store.counts() for store in worker.stores.values()]
        return protocol.WorkerStatus(
            worker.number, worker.child.pid, time.monotonic() - worker.started_s, list(worker.stores),
            memory=worker.memory(), cpu_s=usage.ru_utime + usage.ru_stime,
            queued_messages=sum(count.messages for count in counts),
            queued_deliveries=sum(count.deliveries for count in counts),
            queued_recipients=sum(count.recipients for count in counts),
            in_flight=sum(len(queue.in_flight) for queue in scheduler.queues.values()),
            sessions=sum(listener.sessions for listener in worker.listeners),
            connections=len(worker.engine.connections),
            intake=worker.store.room() or "",
            accepted_messages=counters.accepted_messages, accepted_recipients=counters.accepted_recipients,
            delivered=counters.delivered, deferred=counters.deferred, bounced=counters.bounced,
            expired=counters.expired, deleted=counters.deleted,
        )

    def _queues(self, arguments: dict[str, Any]) -> protocol.QueueList:
        limit = _rows(arguments)
        order = arguments.get("order", "deliveries")
        if order not in protocol.QUEUE_ORDERS:
            raise RequestError(f"queues: order must be one of {', '.join(protocol.QUEUE_ORDERS)}")
        names = arguments.get("names")
        result = protocol.QueueList()
        for shard, store in self._worker.stores.items():
            if names is not None:
                found = _ask(store.find_queues, [str(name) for name in names])
                result.queues += len(found)
                result.deliveries += sum(info.deliveries for info in found)
                result.recipients += sum(info.recipients for info in found)
            else:
                found, totals = _ask2(store.list_queues, str(arguments.get("pattern", "")), order, limit)
                result.queues += totals.queues
                result.deliveries += totals.deliveries
                result.recipients += totals.recipients
            result.rows += [self._row(shard, info) for info in found]
        result.rows = protocol.merged(result.rows, order)[:limit]
        return result

    def _row(self, shard: int, info: QueueInfo) -> protocol.QueueRow:
        state, reason, in_flight, connections = self._worker.engine.state(shard, info.name, info.next_due_us)
        last = info.last
        return protocol.QueueRow(
            info.name, domain_of(info.name), info.deliveries, info.recipients, info.next_due_us,
            in_flight=in_flight, connections=connections, state=state, reason=reason,
            last_reply=last.reply if last is not None else "", last_reply_us=last.time_us if last is not None else 0)
