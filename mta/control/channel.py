"""Frames over Unix sockets: a 4-byte big-endian length, then one msgpack value.

The same framing serves the supervisor's line to each child, the control process asking workers, and the command
line asking the control process. Each reader says how long a frame may be, so a wrong or hostile peer costs it a
bounded buffer. No gevent here: the sockets are the caller's.
"""

from __future__ import annotations

import struct
from typing import Any, Final, Protocol

import msgpack

# Supervisor to child: a configuration with tens of thousands of domains fits. Child to supervisor: `failed` texts.
CONTROL_LIMIT: Final = 64 * 1024 * 1024
REQUEST_LIMIT: Final = 256 * 1024
REPLY_LIMIT: Final = 32 * 1024 * 1024

_LENGTH: Final = struct.Struct(">I")


class FrameError(Exception):
    """The peer does not speak this protocol, or the frame is longer than allowed. The connection is of no more use."""


def why(error: Exception) -> str:
    """Why nothing came over a channel, for people."""
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return "nobody listens on its socket"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


class StreamSocket(Protocol):
    """What a channel needs of a socket: the standard one and gevent's both have it."""

    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> None: ...


def encode(value: object) -> bytes:
    """One frame. Values are None, bool, int, float, str, bytes, lists and maps of them.

    Text that came from outside as undecodable bytes (`surrogateescape`) travels unchanged.
    """
    packed: bytes = msgpack.packb(value, unicode_errors="surrogateescape")
    return _LENGTH.pack(len(packed)) + packed


class FrameReader:
    """Cuts a stream of bytes into frames."""

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[Any]:
        """The values whose frames are complete with `data`. Raises FrameError."""
        self._buffer += data
        values: list[Any] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > self._limit:
                raise FrameError(f"frame of {length} bytes, the limit is {self._limit}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            packed = bytes(memoryview(self._buffer)[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                values.append(msgpack.unpackb(packed, strict_map_key=False, unicode_errors="surrogateescape"))
            except (ValueError, TypeError, msgpack.UnpackException) as error:  # TypeError: a list as a key
                raise FrameError(f"not a msgpack value: {error}") from error
        return values

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._buffer)


class Channel:
    """Whole frames over a blocking (or gevent) stream socket, whose own time-out holds."""

    __slots__ = ("_reader", "_socket", "_values")

    def __init__(self, socket: StreamSocket, limit: int) -> None:
        self._socket = socket
        self._reader = FrameReader(limit)
        self._values: list[Any] = []

    def send(self, value: object) -> None:
        """Send one frame. Raises OSError."""
        self._socket.sendall(encode(value))

    def receive(self) -> Any:
        """Wait for the next frame. Raises EOFError when the peer is gone, OSError, FrameError."""
        while not self._values:
            data = self._socket.recv(262_144)
            if not data:
                if self._reader.pending:
                    raise FrameError("the peer went away inside a frame")
                raise EOFError("the peer closed the connection")
            self._values.extend(self._reader.feed(data))
        return self._values.pop(0)
