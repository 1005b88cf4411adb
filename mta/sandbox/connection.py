"""One connection to an MX host of the sandbox: input by lines, replies in groups, its end, and where it is counted.

Replies gather in `out` and leave when there is nothing more to read: a pipelined group is answered by one write.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from typing import Any, Final, NoReturn

import gevent

from mta.sandbox.internet import Host
from mta.sandbox.ledger import Presence
from mta.sandbox.replies import Reply

READ: Final = 65_536  # octets asked of the kernel at once
MAX_LINE: Final = 65_536
LINGER_S: Final = 2.0  # wait for the client's end after ours, so that a reset does not eat the last reply
SLOW_BUFFER: Final = 8192  # receive buffer of a host that reads slowly

_TIMESTAMPNS: Final = 35  # SO_TIMESTAMPNS, socket(7)
_ACK_AT: Final = 8 + 12 * 4  # offset of tcpi_last_ack_recv in struct tcp_info

_LEFT: Final = (7, 8, 9, 11)  # TCP_CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING: the client's end has arrived
_IDLE: Final = Reply(421, b"421 4.4.2 Idle for too long\r\n")
_TOO_LONG: Final = Reply(421, b"421 5.5.2 Line too long\r\n")


class Ended(Exception):  # noqa: N818 -- the way out of a session
    """We have ended the connection; nothing more is to be sent."""


class Connection:
    """One accepted socket. Methods raise Ended when they end it, EOFError and OSError when the client does."""

    def __init__(self, accepted: socket.socket, host: Host, timed: bool = False) -> None:
        """`timed`: note when what is read had arrived."""
        self.host = host
        self.buffer = b""
        self.position = 0  # of what is not read yet, in `buffer`
        self.out: list[bytes] = []
        self.writes = 0
        self.tls = ""  # version of the protocol
        self._socket: Any = accepted
        self._present: list[Presence] = []
        self.written_at = 0.0  # when something was last written, and
        self.read_at = 0.0  # when the last octets that were read reached the kernel; seconds since the epoch
        self._timed = timed
        if timed:
            accepted.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)

    # --- being counted ---------------------------------------------------------------------------------------------

    def enter(self, presence: Presence) -> None:
        """Be counted there, once, until the connection ends."""
        if presence not in self._present:
            presence.enter(self)
            self._present.append(presence)

    def has_left(self) -> bool:
        """Whether the client's FIN or RST has arrived, read or not."""
        try:
            state: int = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:
            return True
        return state in _LEFT

    def leave(self) -> None:
        """Be counted no more, anywhere."""
        for presence in self._present:
            presence.sessions.discard(self)
        self._present.clear()

    # --- writing ---------------------------------------------------------------------------------------------------

    def say(self, reply: Reply) -> None:
        """Put a reply into the output; a 421 also ends the connection."""
        self.out.append(reply.wire)
        self.host.counts.replies[reply.code] += 1
        if reply.closes:
            self.finish()

    def flush(self) -> None:
        """Write what is in the output, after the host's latency."""
        if self.out:
            latency = self.host.conduct.behaviour.latency
            if latency:
                gevent.sleep(latency)
            self.send()

    def send(self) -> None:
        """Write what is in the output at once."""
        data = self.out[0] if len(self.out) == 1 else b"".join(self.out)
        self.out.clear()
        self.writes += 1
        if self._timed:
            self.written_at = time.time()
        sent = self._socket.send(data)  # all of it, but for a full buffer; gevent's sendall() costs more
        if sent < len(data):
            self._socket.sendall(data[sent:])

    # --- reading ---------------------------------------------------------------------------------------------------

    @property
    def has_input(self) -> bool:
        """Whether there is input that was received but not read."""
        return self.position < len(self.buffer)

    def line(self) -> bytes:
        """The next line with its end; answers what is to be answered before it waits."""
        while True:
            end = self.buffer.find(b"\n", self.position)
            if end >= 0:
                line = self.buffer[self.position : end + 1]
                self.position = end + 1
                return line
            self.read_more()

    def read_more(self) -> None:
        """Wait for more input, with everything answered that came before."""
        if self.out:
            self.flush()
        rest = self.buffer[self.position :]
        if len(rest) > MAX_LINE:
            self.say(_TOO_LONG)
        data = self.receive(READ)
        self.buffer = rest + data if rest else data
        self.position = 0

    def receive(self, limit: int) -> bytes:
        """Wait for octets, past the buffer."""
        idle = self.host.conduct.behaviour.idle
        if idle is not None:
            self._socket.settimeout(idle)
        try:
            data: bytes = self._receive_timed(limit) if self._timed else self._socket.recv(limit)
        except TimeoutError:
            self.say(_IDLE)
            raise
        if not data:
            raise EOFError
        return data

    def _receive_timed(self, limit: int) -> bytes:
        """As `recv`, with the time at which the last of the octets came."""
        data: bytes
        if self.tls:
            data = self._socket.recv(limit)
            self.read_at = time.time()
            return data
        data, notes, _, _ = self._socket.recvmsg(limit, 64)
        if notes:
            seconds, nanoseconds = struct.unpack("qq", notes[0][2])
            self.read_at = seconds + nanoseconds / 1e9
        return data

    def opened_at(self) -> float:
        """When the handshake of TCP was complete, to be asked before anything was read; seconds since the epoch."""
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACK_AT + 4)
        return time.time() - float(struct.unpack_from("I", info, _ACK_AT)[0]) / 1000

    def look(self) -> bool:
        """Receive what has arrived without waiting; gives `has_input`."""
        self._socket.settimeout(0.0)
        try:
            self.buffer = self.buffer[self.position :] + self._socket.recv(READ)
            self.position = 0
        except OSError:  # nothing has arrived, in the words of a plain or a TLS socket
            pass
        finally:
            self._socket.settimeout(None)
        return self.has_input

    def read_slowly(self) -> None:
        """Make the receive buffer small, so that a host that reads slowly is felt."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)

    # --- TLS -------------------------------------------------------------------------------------------------------

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Do the handshake. What came before it in clear is forgotten (RFC 3207 4.2)."""
        self.buffer, self.position = b"", 0
        self._socket = context.wrap_socket(self._socket, server_side=True)
        self.tls = self._socket.version() or ""

    # --- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> NoReturn:
        """Write what is left and end the connection in order."""
        self.flush()
        self.leave()
        socket.socket.shutdown(self._socket, socket.SHUT_WR)
        with gevent.Timeout(LINGER_S, False):
            while self._socket.recv(READ):
                pass
        raise Ended

    def abort(self) -> NoReturn:
        """Write what is left and end the connection by a reset."""
        self.flush()
        self._reset_on_close()
        raise Ended

    def hang(self) -> NoReturn:
        """Write what is left, then answer nothing any more."""
        self.flush()
        while self._socket.recv(READ):
            pass
        raise EOFError

    def cut(self) -> None:
        """End the connection by a reset, from another greenlet: the one that reads gets the end and closes."""
        try:
            self._reset_on_close()
            socket.socket.shutdown(self._socket, socket.SHUT_RD)
        except OSError:
            pass

    def close(self) -> None:
        """Give the socket back."""
        self.leave()
        self._socket.close()

    def _reset_on_close(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
