"""A control process made of canned answers, and the `mta` command run against it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mta.control.channel import REQUEST_LIMIT, Channel
from mta.control.protocol import RequestError, control_socket, to_wire

Handler = Callable[[str, dict[str, Any]], object]


class FakeControl:
    """Answers on `RUN/control.sock` in a thread. `requests` is what was asked."""

    def __init__(self, run: Path, handler: Handler) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._handler = handler
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(control_socket(str(run)))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client, contextlib.suppress(EOFError, OSError):
                channel = Channel(client, REQUEST_LIMIT)
                while True:
                    command, arguments = channel.receive()
                    self.requests.append((command, arguments))
                    try:
                        channel.send(["ok", to_wire(self._handler(command, arguments))])
                    except RequestError as error:
                        channel.send(error.reply)

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(60)
