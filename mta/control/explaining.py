"""A worker's part of `mta explain`: what is asked for, looked up in its shards and in what its engine knows."""

from __future__ import annotations

import glob
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent.event

from mta.control.explanation import SHOWN, Explained, Explanation
from mta.control.protocol import MAX_ROWS, AttemptRow
from mta.delivery import explain, pathreasons, rule_progress
from mta.delivery.path import Path
from mta.delivery.reason import Reason
from mta.queue.ids import format_id, parse_id, shard_of
from mta.queue.orders import due_of
from mta.queue.records import Delivery, Message
from mta.queue.scheduler import domain_of, tenant_of
from mta.queue.store import QueueInfo

if TYPE_CHECKING:
    from mta.control.worker import Worker
    from mta.delivery.engine import Engine

DELIVERIES = 5  # of a queue, those that are due first


class Explaining:
    """Explains what one worker does not do."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._engine = worker.engine

    def answer(self, kind: str, name: str) -> Explanation:
        """All that there is here of what is asked for. Waits. Raises ValueError for what cannot be asked for."""
        rows: list[Explained]
        match kind:
            case "message":
                rows = self._message(parse_id(name))
            case "queue":
                rows = self._queues(glob.escape(name), lambda queue: True, with_deliveries=True)
            case "domain" | "name":
                held = self._held(f"domain:{name}")
                rows = [held] if held.reasons or held.rules else []
                rows += self._queues(f"*{glob.escape(name)}*", lambda queue: domain_of(queue) == name, True)
                paths = self._paths(lambda path: _is_called(path, name)) if kind == "name" else []
                rows += paths
                rows = rows or self._forgotten(name)
            case "path":
                rows = self._paths(lambda path: path.name == name) or self._forgotten(name)
            case "provider":
                rows = [self._held(f"provider:{name}"), *self._paths(lambda path: path.provider == name)]
            case "source":
                rows = [self._source(name), *self._paths(lambda path: path.source.name == name)]
            case "tenant":
                rows = [self._tenant(name), *self._queues(
                    f"*{glob.escape(name)}@*", lambda queue: tenant_of(queue) == name, False)]
            case _:
                raise ValueError(f"nothing is known about a {kind!r:.40}")
        self._count_rules(rows[:SHOWN])
        return Explanation(rows[:SHOWN], max(len(rows) - SHOWN, 0))

    # -- mail ----------------------------------------------------------------------------------------------------

    def _message(self, number: int) -> list[Explained]:
        store = self._worker.stores.get(shard_of(number))
        if store is None:
            return []
        found: tuple[Message | None, list[Delivery]] = _ask(store.find_message, number)
        explain.foresee(self._engine, [one.queue for one in found[1][:SHOWN]])
        return [self._delivery(one) for one in found[1]]

    def _delivery(self, one: Delivery) -> Explained:
        return delivery_row(self._engine, one, *explain.of_delivery(self._engine, one))

    def _queues(self, pattern: str, is_meant: Callable[[str], bool], with_deliveries: bool) -> list[Explained]:
        rows, deliveries = [], []
        for shard, store in self._worker.stores.items():
            found: list[QueueInfo] = _ask(store.list_queues, pattern, MAX_ROWS)[0]
            meant = [one for one in found if is_meant(one.name)][:SHOWN]
            explain.foresee(self._engine, [one.name for one in meant])
            for info in meant:
                rows.append(self._queue(shard, info))
                if with_deliveries:
                    first: list[Delivery] = _ask(store.list_deliveries, info.name, DELIVERIES)[0]
                    deliveries += [self._delivery(one) for one in first]
        return rows + deliveries

    def _queue(self, shard: int, info: QueueInfo) -> Explained:
        state, reasons = explain.of_queue(self._engine, shard, info.name, info.next_due_us)
        stands = explain.standing(self._engine, shard, info.name, info.next_due_us)
        last = info.last
        reasons = [*reasons, *explain.rerouted(self._engine, info.name)]
        return Explained(
            "queue", info.name, state, reasons, deliveries=info.deliveries, in_flight=stands.in_flight,
            connections=stands.connections, next_due_us=max(due_of(info.next_due_us), 0),
            history=[AttemptRow(last.time_us, last.remote, last.reply)] if last is not None else [])

    # -- what it goes by -----------------------------------------------------------------------------------------

    def _paths(self, is_meant: Callable[[Path], bool]) -> list[Explained]:
        return [self._path(path) for path in list(self._engine.paths.values()) if is_meant(path)]

    def _path(self, path: Path) -> Explained:
        reasons = pathreasons.of_path(self._engine, path)
        in_flight = sum(len(connection.jobs) for connection in path.connections)
        if path.suspended_until_us > self._engine.clock_us():
            state = "suspended"
        elif not path.has_work:
            state, reasons = "active" if in_flight else "idle", [one for one in reasons if one.kind != "turn"]
        else:
            state = "active" if in_flight else "ready"
        return Explained("path", path.name, state, reasons, in_flight=in_flight, connections=len(path.connections))

    def _count_rules(self, rows: list[Explained]) -> None:
        """How far the rules that count are, for the paths among `rows`. Waits for what other workers had."""
        paths = [path for row in rows if row.what == "path" and (path := self._engine.paths.get(row.name)) is not None]
        rule_progress.ask(self._engine, [path.name for path in paths])
        counted = {path.name: rule_progress.of_path(self._engine, path) for path in paths}
        for row in rows:
            if row.what == "path":
                row.rules = counted.get(row.name, row.rules)

    def _forgotten(self, name: str) -> list[Explained]:
        """A path that is not in memory any more, or not again since a start, when rules count for it or something was
        decided about it."""
        rules, reasons = rule_progress.of_path_name(self._engine, name), explain.of_name(self._engine, name)
        state = "suspended" if any(one.kind == "suspension" for one in reasons) else "idle"
        return [Explained("path", name, state, reasons, rules=rules)] if rules or reasons else []

    def _held(self, name: str) -> Explained:
        kind, _, rest = name.partition(":")
        reasons = explain.of_name(self._engine, name)
        return Explained(kind, rest, "suspended" if any(one.kind == "suspension" for one in reasons) else
                         "ready" if reasons else "idle", reasons, rules=rule_progress.of_name(self._engine, name))

    def _source(self, name: str) -> Explained:
        row = self._held(f"source:{name}")
        source = self._engine.sources.all.get(name)
        if source is None:
            row.reasons.append(Reason("source", f"the configuration has no source {name}", remedy="`sources`"))
        elif source.lost or source.absent:
            row.reasons.append(Reason("source", source.lost or source.reason,
                                      remedy=f"give the machine the address back, or change `sources.{name}`"))
            row.state = "suspended" if source.lost else row.state
        return row

    def _tenant(self, name: str) -> Explained:
        row = self._held(f"tenant:{name}")
        limited = explain.of_tenant(self._engine, name)
        if limited is not None:
            row.reasons.append(limited)
            row.state = "ready" if row.state == "idle" else row.state
        return row


def delivery_row(engine: Engine, one: Delivery, state: str, reasons: list[Reason]) -> Explained:
    """A delivery that stands so, for the answer."""
    message = one.message
    expires_us = message.arrival_us + int(engine.settler.expires_s(one.domain) * 1_000_000)
    reasons = [*reasons, *explain.rerouted(engine, one.queue)]
    return Explained(
        "delivery", one.queue, state, reasons, f"{format_id(message.id)}/{one.index}",
        [recipient.address for recipient in one.recipients], 1, int(state == "active"),
        next_due_us=due_of(one.due_us), arrival_us=message.arrival_us, expires_us=expires_us, attempts=one.attempts,
        history=[AttemptRow(attempt.time_us, attempt.remote, attempt.reply) for attempt in one.history])


def _is_called(path: Path, name: str) -> bool:
    """Whether `path` is the one that a person means by a site or a domain."""
    site = path.name.rpartition(">")[2]
    return name in (site, site.rpartition("+")[2], site.removeprefix("?")) or any(
        lane.domain == name for lane in path.lanes)


def _ask(question: Callable[..., None], *arguments: Any) -> Any:
    """Ask a store and wait for its answer, a tuple."""
    answer = gevent.event.AsyncResult()
    question(*arguments, lambda *found: answer.set(found))
    return answer.get()


