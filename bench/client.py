"""One SMTP session on a blocking socket, that sends one message after the other and waits for each reply.

For what is measured one message at a time; `bench.source` has many sessions.
"""

from __future__ import annotations

import contextlib
import socket
import time

from bench.loopback import endpoint
from bench.source import Content

_LIMIT_S = 60.0


class Client:
    """A session in clear. Methods raise OSError when it is not served."""

    def __init__(self, address: str) -> None:
        """Connect, and greet."""
        self._socket = socket.create_connection(endpoint(address), timeout=_LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._hear()
        self.say(b"EHLO source.test\r\n")

    def send(self, content: Content, number: int) -> float:
        """Send this message; the seconds from its final dot to the 250."""
        self.say(b"MAIL FROM:<bounce@sender.test>\r\n")
        self.say(b"RCPT TO:<%b>\r\n" % content.recipient(number, 0))
        self.say(b"DATA\r\n")
        message = content.message(number)
        began_s = time.perf_counter()
        self.say(message)
        return time.perf_counter() - began_s

    def say(self, data: bytes) -> None:
        """Say this, and hear the reply."""
        self._write(data)
        self._hear()

    def close(self) -> None:
        """Say goodbye."""
        with contextlib.suppress(OSError):
            self.say(b"QUIT\r\n")
        self._socket.close()

    def _hear(self) -> None:
        reply = b""
        while reply[-1:] != b"\n" or reply[:-1].rpartition(b"\n")[2][3:4] == b"-":
            reply += self._read()
        if reply[:1] not in (b"2", b"3"):
            raise ConnectionError(f"refused: {reply.decode('utf-8', 'replace').rstrip()}")

    def _write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _read(self) -> bytes:
        data = self._socket.recv(65_536)
        if not data:
            raise ConnectionError("connection lost")
        return data
