"""The control process: answers on `RUN/control.sock` for all workers, by asking each of them.

Started by the supervisor as `python -m mta.control.server`. What it knows of its own is in the spool, so that it can be
restarted at any time: the orders of operators (`mta.control.orders`), and what the workers learn
(`mta.control.keeper`). A worker that does not answer within `ASK_TIMEOUT_S` is named in the answer's `missing`; the
others' part is given all the same.
"""

from __future__ import annotations

import gevent.monkey

if __name__ == "__main__":
    gevent.monkey.patch_all()

import logging
import pwd
import re
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import gevent
import gevent.socket

from mta import __version__
from mta.control import protocol, ruled
from mta.control.causes import Page
from mta.control.channel import REPLY_LIMIT, Channel, FrameError, why
from mta.control.child import Child, run_child
from mta.control.exits import CANNOT_CREATE, USAGE, StartError
from mta.control.explanation import Explanation, merged
from mta.control.keeper import Keeper
from mta.control.orders import OrderKeeper, lacking
from mta.control.protocol import (
    DeliveryList,
    Family,
    LiftAnswer,
    Member,
    MessageDetail,
    Missing,
    Obeyed,
    OrderAnswer,
    OrderList,
    QueueList,
    RequestError,
    Status,
    SweepList,
    SweepRow,
    TouchList,
    TouchRow,
    WorkerStatus,
    from_wire,
)
from mta.control.service import RequestService
from mta.delivery.limits import Limits
from mta.queue.filter import Filter, FilterError
from mta.queue.ids import parse_id, shard_of
from mta.queue.orders import Order

ASK_TIMEOUT_S: Final = 5.0
log = logging.getLogger(__name__)
_PLACE: Final = re.compile(r"(?:(\d{1,5})/((?:\d+:[0-9a-f]*:[0-9a-f]*)?))?")  # worker, and where it goes on
SOCKET_MODE: Final = 0o660  # the group of the MTA's user are its operators

T = TypeVar("T")


class NoAnswerError(Exception):
    """A worker does not answer; `str()` says why."""


class ControlServer:
    """The answers of the control process. `family` and `hostname` tell how things are when a request comes, `lacks`
    what an order names that the configuration does not have."""

    def __init__(self, run: str, family: Callable[[], Family], hostname: Callable[[], str], spool: str = "",
                 lacks: Callable[[Order], str] = lambda order: "") -> None:
        self._run = run
        self._family = family
        self._hostname = hostname
        self._lacks = lacks
        self.limits: Limits | None = None  # the table that all workers share
        self.keeper = OrderKeeper(spool, self)

    def answer(self, command: str, arguments: dict[str, Any]) -> object:
        """Answer one request (`mta.control.protocol`). Raises RequestError."""
        match command:
            case "status":
                return self._status()
            case "queues":
                return self._queues(arguments)
            case "queue":
                return self._queue(arguments)
            case "message":
                detail = self._ask_owner("message", arguments)
                return None if detail is None else from_wire(MessageDetail, detail)
            case "body":
                return self._ask_owner("body", arguments)
            case "explain":
                return self._explain(arguments)
            case "page":
                return self._page(arguments)
            case "touched":
                return self._touched(arguments)
            case "order":
                return self._order(arguments)
            case "end":
                return self._end(arguments)
            case "lift":
                return self._lift(arguments)
            case "orders":
                return self._orders(bool(arguments.get("ruled")))
        raise RequestError(f"no such request: {command!r:.40}")

    def _status(self) -> Status:
        family = self._family()
        answers, missing = self._ask_all("status", {}, WorkerStatus, family)
        return Status(__version__, self._hostname(), family, answers, missing)

    def _queues(self, arguments: dict[str, Any]) -> QueueList:
        limit = _limit(arguments)
        order = arguments.get("order", "deliveries")
        if order not in protocol.QUEUE_ORDERS:
            raise RequestError(f"no such order: {order!r:.40}", USAGE)
        wanted = {"pattern": str(arguments.get("pattern", "")), "limit": limit, "order": order}
        answers, missing = self._ask_all("queues", wanted, QueueList)
        # A queue may be among the first of one worker and not of another: its rows there are fetched by name, so that
        # what is shown of a queue is right.
        names = sorted({row.name for answer in answers for row in answer.rows})
        if len(answers) > 1 and any(len(answer.rows) < answer.queues for answer in answers):
            answers_by_name, missing_by_name = self._ask_all("queues", {"names": names}, QueueList)
            rows = [row for answer in answers_by_name for row in answer.rows]
            missing = _once([*missing, *missing_by_name])
        else:
            rows = [row for answer in answers for row in answer.rows]
        merged = protocol.merged(rows, order)
        # Workers share most queues, so the sum would count them many times; more than one worker knows is certain.
        shown_all = all(len(answer.rows) == answer.queues for answer in answers)
        queues = len(merged) if shown_all else max([len(merged), *(answer.queues for answer in answers)])
        return QueueList(
            merged[:limit], queues, sum(answer.deliveries for answer in answers),
            sum(answer.recipients for answer in answers), missing,
        )  # fmt: skip

    def _queue(self, arguments: dict[str, Any]) -> DeliveryList:
        limit = _limit(arguments)
        name = arguments.get("name")
        if not isinstance(name, str):
            raise RequestError("which queue? `name` is missing", USAGE)
        answers, missing = self._ask_all("queue", {"name": name, "limit": limit}, DeliveryList)
        rows = protocol.merged(answer.row for answer in answers if answer.row is not None)
        deliveries = sorted(
            (delivery for answer in answers for delivery in answer.deliveries),
            key=lambda delivery: (delivery.due_us, delivery.message, delivery.index),
        )
        more = len(deliveries) > limit or any(answer.more for answer in answers)
        return DeliveryList(rows[0] if rows else None, deliveries[:limit], more, missing)

    def _explain(self, arguments: dict[str, Any]) -> Explanation:
        kind, name = arguments.get("kind"), arguments.get("name")
        if kind == "message":
            answer = self._ask_owner("explain", {**arguments, "id": name})
            return Explanation() if answer is None else from_wire(Explanation, answer)
        return merged(*self._ask_all("explain", {"kind": kind, "name": name}, Explanation))

    def _page(self, arguments: dict[str, Any]) -> Page:
        """The next page of `mta explain` over much mail: one worker after the other."""
        expression, after = str(arguments.get("filter", "")), str(arguments.get("after", ""))
        if expression:
            _check_filter(expression)
        place = _PLACE.fullmatch(after)
        if place is None:
            raise RequestError("no such place", USAGE)
        number = int(place[1] or -1)
        members = sorted((one for one in self._family().members if one.role == "worker" and one.number >= number),
                         key=lambda one: one.number)
        if not members:
            return Page()
        asked = {"filter": expression, "after": place[2] if members[0].number == number else "",
                 "causes": bool(arguments.get("causes"))}
        page = self._ask_for(members[0], "page", asked, Page)
        if isinstance(page, Missing):
            page = Page(missing=[page])
        if page.after:
            page.after = f"{members[0].number}/{page.after}"
        elif len(members) > 1:
            page.after = f"{members[1].number}/"
        return page

    # -- orders --------------------------------------------------------------------------------------------------

    def _touched(self, arguments: dict[str, Any]) -> TouchList:
        expression = str(arguments.get("filter"))
        _check_filter(expression)
        answers, missing = self._ask_all("touched", {"filter": expression}, TouchList)
        rows: dict[str, TouchRow] = {}
        for row in [row for answer in answers for row in answer.rows]:
            known = rows.setdefault(row.queue, TouchRow(row.queue, 0, 0))
            known.deliveries += row.deliveries
            known.recipients += row.recipients
        queues = max([len(rows), *(answer.queues for answer in answers)])
        return TouchList(
            sorted(rows.values(), key=lambda row: (-row.deliveries, row.queue))[:protocol.TOUCHED_ROWS], queues,
            sum(answer.deliveries for answer in answers), sum(answer.recipients for answer in answers),
            all(answer.exact for answer in answers), missing)

    def _order(self, arguments: dict[str, Any]) -> OrderAnswer:
        try:
            order = protocol.order_of(arguments, user_name(int(arguments["uid"])), time.time_ns() // 1000)
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"order: {error}", USAGE) from error
        lacks = self._lacks(order)
        if lacks:
            raise RequestError(f"{order.kind}: {lacks}; nothing was ordered", USAGE)
        given, obeyed, missing = self.keeper.give(order)
        return OrderAnswer([protocol.order_row(given)], sum(one.in_flight for one in obeyed), missing)

    def _end(self, arguments: dict[str, Any]) -> OrderAnswer:
        numbers = [number for number in arguments.get("numbers", []) if isinstance(number, int)]
        ended, _, missing = self.keeper.end(numbers, user_name(int(arguments["uid"])))
        return OrderAnswer([protocol.order_row(one) for one in ended], 0, missing)

    def _lift(self, arguments: dict[str, Any]) -> LiftAnswer:
        """End what rules decided about some targets."""
        by, now_us = user_name(int(arguments["uid"])), time.time_ns() // 1000
        if self.limits is None:
            raise RequestError("lift: there is no table of limits")
        targets = [str(one) for one in arguments.get("targets", [])]
        answer = LiftAnswer()
        for one in ruled.lift(self.limits, self.keeper, targets, str(arguments.get("what")), by, now_us):
            answer.ended.append(ruled.in_words(one))
            log.info("%s has ended the %s", by, answer.ended[-1])
        return answer

    def _orders(self, with_ruled: bool) -> OrderList:
        orders = self.keeper.orders
        has_sweeps = any(one.is_sweep or one.kind == "reroute" for one in orders.orders)
        rows, missing = self.ask_sweeps(orders.serial) if has_sweeps else ([], [])
        found = []
        for one in orders.orders:
            row = protocol.order_row(one)
            for sweep in rows:
                if sweep.order == one.number:
                    row.deliveries += sweep.deliveries
                    row.recipients += sweep.recipients
                    row.shards_done += sweep.finished
                    row.shards += 1
                    row.unreadable += sweep.unreadable
            found.append(row)
        decided = ruled.listed(self.limits, time.time_ns() // 1000) if with_ruled and self.limits is not None else []
        return OrderList(found, decided[:protocol.MAX_ROWS], max(len(decided) - protocol.MAX_ROWS, 0), missing)

    def tell_orders(self, serial: int) -> tuple[list[Obeyed], list[Missing]]:
        """Have all workers obey the orders as of `serial`."""
        return self._ask_all("obey", {"serial": serial}, Obeyed)

    def ask_sweeps(self, serial: int) -> tuple[list[SweepRow], list[Missing]]:
        """How far the sweeps are, in all shards; who does not know the orders as of `serial` yet is missing."""
        answers, missing = self._ask_all("sweeps", {"serial": serial}, SweepList)
        return [row for answer in answers for row in answer.rows], missing

    def _ask_owner(self, command: str, arguments: dict[str, Any]) -> Any:
        """Ask the worker that owns the shard of a message; None when there is no such shard."""
        try:
            shard = shard_of(parse_id(str(arguments.get("id", ""))))
        except ValueError as error:
            raise RequestError(str(error), USAGE) from error
        for member in self._family().members:
            if member.role == "worker" and shard in member.shards:
                try:
                    return self._ask(member, command, arguments)
                except NoAnswerError as error:
                    raise RequestError(f"worker {member.number}, which has this message, {error}") from error
        return None

    def _ask_all(
        self, command: str, arguments: dict[str, Any], kind: type[T], family: Family | None = None
    ) -> tuple[list[T], list[Missing]]:
        """Ask every worker at the same time."""
        members = [member for member in (family or self._family()).members if member.role == "worker"]
        asking = [gevent.spawn(self._ask_for, member, command, arguments, kind) for member in members]
        gevent.joinall(asking)
        answers: list[T] = []
        missing: list[Missing] = []
        for member, greenlet in zip(members, asking, strict=True):
            if isinstance(greenlet.value, Missing):
                missing.append(greenlet.value)
            elif greenlet.value is None:  # it raised: a bug, which gevent has printed
                missing.append(Missing(member.number, "could not be asked: a bug, see the log"))
            else:
                answers.append(greenlet.value)
        return answers, missing

    def _ask_for(self, member: Member, command: str, arguments: dict[str, Any], kind: type[T]) -> T | Missing:
        try:
            return from_wire(kind, self._ask(member, command, arguments))
        except (NoAnswerError, RequestError) as error:
            return Missing(member.number, str(error))

    def _ask(self, member: Member, command: str, arguments: dict[str, Any]) -> Any:
        """Ask one worker. Raises NoAnswerError; RequestError when it answers that it cannot."""
        if member.state in ("waiting", "ended"):
            raise NoAnswerError(f"is not running ({member.last_end or 'not started yet'})")
        with gevent.Timeout(ASK_TIMEOUT_S, False):
            try:
                with gevent.socket.socket(gevent.socket.AF_UNIX) as sock:
                    sock.connect(protocol.worker_socket(self._run, member.number))
                    channel = Channel(sock, REPLY_LIMIT)
                    channel.send([command, arguments])
                    reply = channel.receive()
            except (OSError, EOFError, FrameError) as error:
                if member.state == "starting":
                    raise NoAnswerError("is starting: it does not answer yet") from error
                raise NoAnswerError(f"does not answer: {why(error)}") from error
            match reply:
                case ["ok", result]:
                    return result
            refusal = RequestError.of_reply(reply)
            if refusal is not None:
                raise refusal
            raise NoAnswerError("gives an answer that is not understood")
        raise NoAnswerError(f"does not answer within {ASK_TIMEOUT_S:.0f} s")


def _check_filter(expression: str) -> None:
    try:
        Filter.parse(expression)
    except FilterError as error:
        raise RequestError(f"filter: {error}", USAGE) from error


def _limit(arguments: dict[str, Any]) -> int:
    limit = arguments.get("limit", 100)
    if not isinstance(limit, int) or not 1 <= limit <= protocol.MAX_ROWS:
        raise RequestError(f"`limit` is 1 to {protocol.MAX_ROWS}", USAGE)
    return limit


def user_name(uid: int) -> str:
    """What people call a user."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _once(missing: list[Missing]) -> list[Missing]:
    return list({entry.worker: entry for entry in reversed(missing)}.values())


def main(child: Child) -> None:
    """The life of the control process."""
    server = ControlServer(child.config.run, lambda: child.family, lambda: child.config.hostname, child.config.spool,
                           lambda order: lacking(child.config, order))
    service = RequestService(protocol.control_socket(child.config.run), server.answer, SOCKET_MODE)
    try:
        limits = Limits(child.config.run, None)
    except OSError as error:
        raise StartError(CANNOT_CREATE, str(error)) from None
    server.limits = limits
    service.start()
    keeper = Keeper(child.config.spool, limits)
    keeper.start()
    server.keeper.start()
    child.ready()
    child.stop_requested.wait()
    service.stop()
    keeper.stop()
    limits.close()


if __name__ == "__main__":
    sys.exit(run_child(main))
