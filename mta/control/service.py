"""Answers requests (`mta.control.protocol`) on a Unix socket, in a gevent process: a worker or the control process."""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Final

import gevent
import gevent.pool
import gevent.server
import gevent.socket

from mta.control.channel import REQUEST_LIMIT, Channel, FrameError
from mta.control.exits import CANNOT_CREATE, StartError
from mta.control.protocol import RequestError, to_wire
from mta.queue.shortage import SHORTAGE, Spell

CONNECTIONS: Final = 64  # further ones wait in the backlog
ACCEPT_PAUSE_S: Final = 0.2  # after a failure to accept for want of a descriptor
IDLE_S: Final = 60.0  # a client that asks nothing, or does not take its answer, for this long is cut off

_log = logging.getLogger(__name__)

Handler = Callable[[str, dict[str, Any]], object]


class _Server(gevent.server.StreamServer):  # type: ignore[misc]  # gevent is not typed
    """For which a lack of descriptors is no bug: those who ask wait in the backlog."""

    def __init__(self, listener: Any, serve: Any, path: str) -> None:
        super().__init__(listener, serve, spawn=gevent.pool.Pool(CONNECTIONS))
        self._spell = Spell(_log, f"control socket {path}: cannot accept", f"control socket {path}: accepting")

    def do_read(self) -> Any:
        try:
            accepted = super().do_read()
        except OSError as error:
            if error.errno not in SHORTAGE:
                raise
            self._spell.failed(str(error.strerror), time.monotonic())
            self.stop_accepting()
            gevent.spawn_later(ACCEPT_PAUSE_S, self._go_on)
            return None
        if self._spell.lasts:
            self._spell.worked(time.monotonic())
        return accepted

    def _go_on(self) -> None:
        if self.started:
            self.start_accepting()


class RequestService:
    """A Unix socket at `path` whose requests `handler` answers.

    `handler(command, arguments)` gets the user at the other end as `uid` among the arguments. It returns a dataclass of
    `protocol`, bytes or None, or raises RequestError; it runs in a greenlet of its own and may wait. Anything else that
    it raises is a bug: logged, and answered as an error.
    """

    def __init__(self, path: str, handler: Handler, mode: int = 0o600) -> None:
        self._path = path
        self._handler = handler
        self._mode = mode
        self._server: Any = None

    def start(self) -> None:
        """Bind (a socket left by a dead process is replaced) and begin to answer. Raises StartError."""
        if len(os.fsencode(self._path)) > 107:  # sockaddr_un
            raise StartError(CANNOT_CREATE, f"cannot create socket {self._path}: the path is longer than 107 bytes, "
                             "choose a shorter `run`")
        try:
            if os.path.lexists(self._path):
                os.unlink(self._path)
            listener = gevent.socket.socket(gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM)
            # The mode is right from the first instant: nobody connects between bind and chmod.
            before = os.umask(0o777 & ~self._mode)
            try:
                listener.bind(self._path)
            finally:
                os.umask(before)
            listener.listen(64)
        except OSError as error:
            raise StartError(CANNOT_CREATE, f"cannot create socket {self._path}: {error.strerror}") from error
        self._server = _Server(listener, self._serve, self._path)
        self._server.start()

    def stop(self) -> None:
        """Close and remove the socket; answers under way are cut off."""
        if self._server is not None:
            self._server.stop(timeout=0)
            self._server = None
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass

    def _serve(self, client: Any, _address: object) -> None:
        client.settimeout(IDLE_S)
        channel = Channel(client, REQUEST_LIMIT)
        try:
            peer = _peer(client)
            while True:
                channel.send(self._answer(channel.receive(), peer))
        except (EOFError, OSError):
            pass
        except FrameError as error:
            _log.warning("control socket %s: %s", self._path, error)

    def _answer(self, request: Any, peer: int) -> list[Any]:
        match request:
            case [str(command), dict(arguments)]:
                pass
            case _:
                return ["error", "a request is [command, {argument: value}]"]
        try:
            return ["ok", to_wire(self._handler(command, {**arguments, "uid": peer}))]
        except RequestError as error:
            return error.reply
        except Exception as error:
            _log.exception("bug: request %.40r", command)
            return ["error", f"bug, see the log: {type(error).__name__}"]


def _peer(client: Any) -> int:
    """The user id of the process at the other end."""
    _pid, uid, _gid = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    found: int = uid
    return found
