"""Asks the running MTA over its control socket. Plain blocking sockets, for the command line."""

from __future__ import annotations

import errno
import grp
import os
import socket
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from mta.control import protocol
from mta.control.causes import Page
from mta.control.channel import REPLY_LIMIT, Channel, FrameError, why
from mta.control.exits import NO_PERMISSION, SOFTWARE, TEMPORARY, UNAVAILABLE, OperatorError
from mta.control.explanation import Explanation
from mta.control.protocol import (
    DeliveryList,
    LiftAnswer,
    MessageDetail,
    OrderAnswer,
    OrderList,
    QueueList,
    QueueOrder,
    RequestError,
    Status,
    TouchList,
    from_wire,
)

TIMEOUT_S: Final = 30.0  # the control process itself gives a worker 5 s, twice at most

T = TypeVar("T")


class ControlClient:
    """A connection to the control process. All methods raise OperatorError."""

    def __init__(self, run: str) -> None:
        """Connect to the MTA whose runtime directory is `run`."""
        path = protocol.control_socket(run)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT_S)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise _not_connected(run, path, error) from error
        self._channel = Channel(self._socket, REPLY_LIMIT)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def status(self) -> Status:
        """How it is."""
        return self._typed(Status, "status", {})

    def queues(self, pattern: str, limit: int, order: QueueOrder) -> QueueList:
        """Queues whose name matches, and the totals."""
        return self._typed(QueueList, "queues", {"pattern": pattern, "limit": limit, "order": order})

    def queue(self, name: str, limit: int) -> DeliveryList:
        """The deliveries of one queue."""
        return self._typed(DeliveryList, "queue", {"name": name, "limit": limit})

    def message(self, message_id: str) -> MessageDetail | None:
        """One message; None when it is not in the queue."""
        result = self._ask("message", {"id": message_id})
        return None if result is None else self._convert(MessageDetail, result)

    def body(self, message_id: str) -> Iterator[bytes] | None:
        """The content of a message, header section included, in pieces; None when it is not in the queue."""
        first = self._ask("body", {"id": message_id, "offset": 0, "length": protocol.BODY_CHUNK})
        return None if first is None else self._rest_of_body(message_id, first)

    def _rest_of_body(self, message_id: str, piece: Any) -> Iterator[bytes]:
        offset = 0
        while True:
            if not isinstance(piece, bytes):  # nil: it left the queue in the meantime
                raise OperatorError(TEMPORARY, f"message {message_id} left the queue while it was read")
            yield piece
            if len(piece) < protocol.BODY_CHUNK:
                return
            offset += len(piece)
            piece = self._ask("body", {"id": message_id, "offset": offset, "length": protocol.BODY_CHUNK})

    def explain(self, kind: str, name: str) -> Explanation:
        """Why what is called so does not move; `kind` as in `mta.control.explanation.subject_of`."""
        return self._typed(Explanation, "explain", {"kind": kind, "name": name})

    def pages(self, expression: str, causes: bool) -> Iterator[Page]:
        """Why the mail that a filter means ("": all) waits, page by page: its causes, or a line for each delivery."""
        after = ""
        while True:
            page = self._typed(Page, "page", {"filter": expression, "after": after, "causes": causes})
            yield page
            after = page.after
            if not after:
                return

    def touched(self, expression: str) -> TouchList:
        """What an order with this filter would touch."""
        return self._typed(TouchList, "touched", {"filter": expression})

    def order(self, kind: str, **fields: Any) -> OrderAnswer:
        """Give an order; `fields` are those of `mta.queue.orders.Order`."""
        return self._typed(OrderAnswer, "order", {"kind": kind, **fields})

    def end(self, numbers: list[int]) -> OrderAnswer:
        """End orders."""
        return self._typed(OrderAnswer, "end", {"numbers": numbers})

    def lift(self, targets: list[str], what: str) -> LiftAnswer:
        """End what rules on replies decided about these targets: `suspension`s or `limit`s. All workers act at once."""
        return self._typed(LiftAnswer, "lift", {"targets": targets, "what": what})

    def orders(self, ruled: bool = False) -> OrderList:
        """All orders in force, and what rules on replies suspend or limit now if that is asked for."""
        return self._typed(OrderList, "orders", {"ruled": True} if ruled else {})

    def _typed(self, kind: type[T], command: str, arguments: dict[str, Any]) -> T:
        return self._convert(kind, self._ask(command, arguments))

    def _convert(self, kind: type[T], result: Any) -> T:
        try:
            return from_wire(kind, result)
        except RequestError as error:
            raise OperatorError(SOFTWARE, str(error)) from error

    def _ask(self, command: str, arguments: dict[str, Any]) -> Any:
        try:
            self._channel.send([command, arguments])
            reply = self._channel.receive()
        except TimeoutError as error:
            raise OperatorError(UNAVAILABLE, f"the MTA does not answer within {TIMEOUT_S:.0f} s") from error
        except (OSError, EOFError, FrameError) as error:
            raise OperatorError(UNAVAILABLE, f"the MTA broke the connection off: {why(error)}") from error
        match reply:
            case ["ok", result]:
                return result
        refusal = RequestError.of_reply(reply)
        if refusal is not None:
            raise OperatorError(refusal.exit_code, str(refusal))
        raise OperatorError(SOFTWARE, "the answer is not understood; is the MTA of another version?")


def _not_connected(run: str, path: str, error: OSError) -> OperatorError:
    start = "start it with `mta run` or `systemctl start mta`, or name its configuration with -c"
    match error.errno:
        case errno.ENOENT:
            return OperatorError(UNAVAILABLE, f"the MTA is not running: there is no {path}; {start}")
        case errno.ECONNREFUSED:
            return OperatorError(UNAVAILABLE, f"the MTA is not running: nobody listens on {path}; {start}")
        case errno.EACCES:
            return OperatorError(
                NO_PERMISSION, f"you may not talk to the MTA ({path}): be root or a member of the group {_group(run)}"
            )
    return OperatorError(UNAVAILABLE, f"cannot talk to the MTA ({path}): {error.strerror or error}")


def _group(run: str) -> str:
    try:
        gid = os.stat(run).st_gid
        return repr(grp.getgrgid(gid).gr_name)
    except (OSError, KeyError):
        return "of the user it runs as"
