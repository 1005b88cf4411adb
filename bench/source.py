"""The sending end of a load test: many SMTP sessions that inject numbered messages as fast as they are taken.

    python -m bench.source -a IP:PORT -s SESSIONS -m MESSAGES -l BYTES -D DOMAINS -r RECIPIENTS -o out.json

Recipient N of the run is `uN@dK.ZONE` with K = N modulo the number of domains. With `-R` messages go at an even pace
instead, as long as they are taken; with `-S` everything is in TLS, with `-E` in clear, as slowly. One process, one
epoll loop, bytes only; its own CPU time is in the result. A refused message is offered again after a pause, one whose
session is lost in a new session: every message is accepted in the end or the time is over. Times are of
CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import argparse
import select
import socket
import ssl
import sys
import time
from array import array
from collections import deque
from collections.abc import Sequence
from enum import Enum, auto

from bench.loopback import (
    Stop,
    announce,
    consecutive,
    cpu_s,
    endpoint,
    raise_descriptor_limit,
    write_result,
    write_times,
)
from bench.tlsclient import ForNobody, TlsClient, TlsEnd

PAUSE_S = 0.1
MOST_ERRORS_SAID = 8
CLIENT_FIRST = "127.32.0.1"
_HEADER = (b"From: Bulk Sender <news@sender.test>\r\nTo: %b\r\nSubject: message %d\r\n"
           b"Date: Mon, 05 Jan 2026 11:00:00 +0000\r\nMessage-ID: <%d.bench@sender.test>\r\nMIME-Version: 1.0\r\n"
           b"Content-Type: text/plain; charset=us-ascii\r\n\r\n")
_LINE = b"It is the content of a test, seventy-six characters wide, and means nothing."


class Phase(Enum):
    """What a session waits for."""

    TIME = auto()
    """That of its next message, where there is a pace."""
    GREETING = auto()
    EHLO = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    ENVELOPE = auto()
    """All replies of a pipelined MAIL, RCPT and DATA."""
    FINAL = auto()
    RESET = auto()
    QUIT = auto()


class Session:
    """One connection slot: it reconnects until the work is done."""

    __slots__ = ("asked", "began_s", "connected_s", "done", "dot_s", "nobody", "number", "phase", "replies", "rest",
                 "sent", "socket", "tls", "unsent")

    def __init__(self, nobody: ForNobody | None = None) -> None:
        self.nobody = nobody
        """For whom all is encrypted, in clear."""
        self.socket: socket.socket | None = None
        self.phase = Phase.GREETING
        self.number = -1
        """The message in hand."""
        self.asked = 0
        """Recipients offered so far."""
        self.replies = 0
        """Replies of a pipelined envelope still to come."""
        self.sent = 0
        """Messages accepted in this connection."""
        self.rest = b""
        self.unsent = b""
        self.tls: TlsEnd | ForNobody | None = None
        self.connected_s = 0.0
        self.began_s = 0.0
        self.dot_s = 0.0
        self.done = False


class Content:
    """Messages of one size."""

    def __init__(self, size: int, domains: int, recipients: int, zone: str, first: int = 0,
                 fields: Sequence[str] = ()) -> None:
        """`first` is the number of the first recipient; `fields` are further header fields."""
        self._first = first
        self._fields = "".join(f"{field}\r\n" for field in fields).encode("ascii")
        self._size = size
        self._domains = domains
        self._recipients = recipients
        self._zone = zone.encode("ascii")
        self._lines = (_LINE + b"\r\n") * (size // (len(_LINE) + 2) + 1)

    def number(self, message: int) -> int:
        """The number of the first recipient of message number `message`."""
        return self._first + message * self._recipients

    def recipient(self, message: int, index: int) -> bytes:
        """Address number `index` of message number `message`."""
        number = self._first + message * self._recipients + index
        return b"u%d@d%d.%b" % (number, number % self._domains, self._zone)

    def message(self, message: int) -> bytes:
        """Header, text in whole lines up to the size, and the final dot."""
        header = self._fields + _HEADER % (self.recipient(message, 0), message, message)
        width = len(_LINE) + 2
        room = max(self._size - len(header), 0) // width * width
        return header + self._lines[:room] + b".\r\n"


class Source:
    """The loop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._address: tuple[str, int] = options.address
        self._messages: int = options.messages
        self._recipients: int = options.recipients
        self._pipelining: bool = options.pipelining
        self._per_session: int = options.per_session
        self._rate: float = options.rate
        self._from = consecutive(CLIENT_FIRST, options.clients) if options.clients else []
        self._tls = TlsClient(options.resume) if options.tls or options.resume else None
        self._content = Content(options.size, options.domains, options.recipients, options.zone, options.first,
                                options.fields)
        sessions = min(options.sessions, options.messages)
        replies = 2 * (options.messages // sessions + 1) * (options.recipients + 3)  # twice an even share
        self._sessions = [Session(ForNobody(options.certificate, replies) if options.certificate else None)
                          for _ in range(sessions)]
        self._poll = select.epoll()
        self._stop = Stop(self._poll)
        self._open: dict[int, Session] = {}
        self._paused: deque[tuple[float, Session]] = deque()
        self._early: deque[tuple[float, Session]] = deque()
        """Sessions whose message has its time later; in the order of time, as the messages are."""
        self.times: list[tuple[int, float]] = []
        """When each message was accepted, by the number of its first recipient."""
        self._next = 0
        self._working = len(self._sessions)
        self.started_s = 0.0
        self.first_s = 0.0
        self.last_s = 0.0
        self.errors = 0
        self.reconnects = 0
        self.connected = 0
        self.open_s = array("d")
        """Per connection: from its beginning to the reply to EHLO."""
        self.whole_s = array("d")
        """Per message: from MAIL to the final 250."""
        self.final_s = array("d")
        """Per message: from the final dot to its 250."""

    def run(self, limit_s: float) -> bool:
        """Send everything; False when time was over before."""
        self.started_s = time.monotonic()
        for session in self._sessions:
            self._connect(session)
        while self._working and not self._stop.asked:
            now_s = time.monotonic()
            if now_s - self.started_s > limit_s:
                return False
            while self._paused and self._paused[0][0] <= now_s:
                self._resume(self._paused.popleft()[1])
            while self._early and self._early[0][0] <= now_s:
                session = self._early.popleft()[1]
                if session.phase is Phase.TIME:
                    self._offer(session)
            wait_s = PAUSE_S if self._paused else 1.0
            if self._early:
                wait_s = min(wait_s, self._early[0][0] - now_s)
            for fd, mask in self._poll.poll(wait_s):
                ready = self._open.get(fd)
                if ready is None:
                    continue
                if mask & select.EPOLLOUT:
                    self._write(ready, b"")
                if mask & ~select.EPOLLOUT and self._open.get(fd) is ready:
                    self._read(ready)
        return not self._working

    # -- one connection --------------------------------------------------------------------------------------------

    def _connect(self, session: Session) -> None:
        session.phase = Phase.GREETING
        session.sent = 0
        session.connected_s = time.monotonic()
        session.rest = session.unsent = b""
        connection = session.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._from:
                connection.bind((self._from[self.connected % len(self._from)], 0))
            self.connected += 1
            connection.connect(self._address)
        except BlockingIOError:
            pass
        except OSError as error:
            self._lost(session, str(error))
            return
        self._open[connection.fileno()] = session
        self._poll.register(connection.fileno(), select.EPOLLIN)
        if session.nobody is not None:
            session.tls = session.nobody
        elif self._tls is not None:
            session.tls = self._tls.connect()
            session.tls.decrypt(b"")
            self._send(session, session.tls.output())

    def _close(self, session: Session) -> None:
        if session.tls is not None:
            session.tls.close()
            session.tls = None
        if session.socket is not None:
            self._open.pop(session.socket.fileno(), None)
            session.socket.close()
            session.socket = None

    def _lost(self, session: Session, why: str) -> None:
        """The connection ended: done, or again after a pause."""
        self._close(session)
        if session.number < 0 and self._next >= self._messages:
            session.done = True
            self._working -= 1
            return
        if session.phase is not Phase.QUIT:
            self._error(f"{session.phase.name}, message {session.number}: connection lost: {why}")
        self.reconnects += 1
        self._paused.append((time.monotonic() + (0 if session.phase is Phase.QUIT else PAUSE_S), session))

    def _resume(self, session: Session) -> None:
        if session.socket is None:
            self._connect(session)
        else:
            self._begin(session)

    def _read(self, session: Session) -> None:
        assert session.socket is not None
        try:
            chunk = session.socket.recv(65_536)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(session, str(error))
            return
        if not chunk:
            self._lost(session, "end of file")
            return
        if session.tls is not None:
            try:
                chunk = session.tls.decrypt(chunk)
            except ssl.SSLError as error:
                self._lost(session, str(error))
                return
            if output := session.tls.output():
                self._send(session, output)
        data = session.rest + chunk
        position = 0
        connection = session.socket
        while session.socket is connection:
            end = data.find(b"\n", position) + 1
            if not end:
                session.rest = data[position:]
                return
            line = data[position:end]
            position = end
            if line[3:4] != b"-":
                self._reply(session, line)

    def _write(self, session: Session, data: bytes) -> None:
        self._send(session, data if session.tls is None or not data else session.tls.encrypt(data))

    def _send(self, session: Session, data: bytes) -> None:
        """Bytes as they go through the socket."""
        if session.socket is None:
            return
        before = bool(session.unsent)
        if before:
            data = session.unsent + data
        try:
            sent = session.socket.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            # The reading side says why.
            return
        session.unsent = data[sent:] if sent < len(data) else b""
        if bool(session.unsent) != before:
            wanted = select.EPOLLIN | select.EPOLLOUT if session.unsent else select.EPOLLIN
            self._poll.modify(session.socket.fileno(), wanted)

    # -- SMTP ------------------------------------------------------------------------------------------------------

    def _begin(self, session: Session) -> None:
        """The next message, or QUIT."""
        if session.number < 0 and self._next < self._messages:
            session.number = self._next
            self._next += 1
            due_s = self.started_s + session.number / self._rate if self._rate else 0.0
            if due_s > time.monotonic():
                session.phase = Phase.TIME
                self._early.append((due_s, session))
                return
        self._offer(session)

    def _offer(self, session: Session) -> None:
        """The message in hand, or QUIT."""
        if session.number < 0 or (self._per_session and session.sent >= self._per_session):
            session.phase = Phase.QUIT
            self._write(session, b"QUIT\r\n")
            return
        session.began_s = time.monotonic()
        commands = b"MAIL FROM:<bounce@sender.test>\r\n"
        session.asked = 0
        if self._pipelining:
            recipient = self._content.recipient
            commands += b"".join([b"RCPT TO:<%b>\r\n" % recipient(session.number, index)
                                  for index in range(self._recipients)]) + b"DATA\r\n"
            session.replies = self._recipients + 2
            session.phase = Phase.ENVELOPE
        else:
            session.phase = Phase.MAIL
        self._write(session, commands)

    def _reply(self, session: Session, line: bytes) -> None:
        """The last line of one reply."""
        refused = line[:1] not in (b"2", b"3")
        phase = session.phase
        if refused and phase is not Phase.QUIT:
            self._error(f"{phase.name}, message {session.number}: {line.decode('utf-8', 'replace').rstrip()}")
            if line[:3] == b"421" or phase in (Phase.GREETING, Phase.EHLO, Phase.RESET):
                self._lost(session, "refused")
                return
        if phase is Phase.ENVELOPE:
            session.replies -= 1
            if session.replies:
                return
            phase = Phase.DATA
        if refused and phase is not Phase.QUIT:
            session.phase = Phase.RESET
            self._write(session, b"RSET\r\n")
            return
        if phase in (Phase.MAIL, Phase.RCPT):
            if session.asked < self._recipients:
                session.phase = Phase.RCPT
                recipient = self._content.recipient(session.number, session.asked)
                session.asked += 1
                self._write(session, b"RCPT TO:<%b>\r\n" % recipient)
            else:
                session.phase = Phase.DATA
                self._write(session, b"DATA\r\n")
        elif phase is Phase.DATA:
            session.phase = Phase.FINAL
            content = self._content.message(session.number)
            session.dot_s = time.monotonic()
            self._write(session, content)
        elif phase is Phase.FINAL:
            self._accepted(session)
            self._begin(session)
        elif phase is Phase.GREETING:
            session.phase = Phase.EHLO
            self._write(session, b"EHLO source.test\r\n")
        elif phase is Phase.EHLO:
            self.open_s.append(time.monotonic() - session.connected_s)
            self._begin(session)
        elif phase is Phase.RESET:
            self._paused.append((time.monotonic() + PAUSE_S, session))
        else:
            self._lost(session, "quit")

    def _accepted(self, session: Session) -> None:
        now_s = time.monotonic()
        if not self.whole_s:
            self.first_s = now_s
        self.last_s = now_s
        if self._rate:
            self.times.append((self._content.number(session.number), now_s))
        self.whole_s.append(now_s - session.began_s)
        self.final_s.append(now_s - session.dot_s)
        session.sent += 1
        session.number = -1

    def _error(self, what: str) -> None:
        self.errors += 1
        if self.errors <= MOST_ERRORS_SAID:
            print(f"bench.source: {what}", file=sys.stderr)

    def result(self) -> dict[str, int | float]:
        """The names of the result file."""
        return {
            "start": self.started_s, "first": self.first_s, "last": self.last_s, "accepted": len(self.whole_s),
            "errors": self.errors, "reconnects": self.reconnects,
            "ack_p50_ms": quantile_ms(self.whole_s, 0.50), "ack_p99_ms": quantile_ms(self.whole_s, 0.99),
            "dot_p50_ms": quantile_ms(self.final_s, 0.50), "dot_p99_ms": quantile_ms(self.final_s, 0.99),
            "open_p50_ms": quantile_ms(self.open_s, 0.50), "open_p99_ms": quantile_ms(self.open_s, 0.99),
            "resumed": self._tls.resumed if self._tls is not None else 0, "cpu_s": round(cpu_s(), 3),
        }


def quantile_ms(values_s: array[float], share: float) -> float:
    """The value, in milliseconds, that this share of them is below; 0 of none."""
    ordered = sorted(values_s)
    return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000, 3) if ordered else 0.0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.source", description="Inject numbered messages.")
    parser.add_argument("-a", dest="address", type=endpoint, required=True, metavar="IP:PORT", help="where to send")
    parser.add_argument("-s", dest="sessions", type=int, default=20, metavar="N", help="sessions (%(default)s)")
    parser.add_argument("-m", dest="messages", type=int, default=1000, metavar="N", help="messages (%(default)s)")
    parser.add_argument("-l", dest="size", type=int, default=5000, metavar="BYTES", help="size (%(default)s)")
    parser.add_argument("-D", dest="domains", type=int, default=1, metavar="N", help="recipient domains (%(default)s)")
    parser.add_argument("-r", dest="recipients", type=int, default=1, metavar="N",
                        help="recipients of one message (%(default)s)")
    parser.add_argument("-z", dest="zone", default="test", help="their top-level domain (%(default)s)")
    parser.add_argument("-R", dest="rate", type=float, default=0, metavar="N", help="messages a second, 0: all it can")
    parser.add_argument("-N", dest="first", type=int, default=0, metavar="N", help="number of the first recipient")
    parser.add_argument("-H", dest="fields", action="append", default=[], metavar="FIELD", help="one more header field")
    parser.add_argument("-c", dest="times", metavar="FILE", help="with -R: when each was accepted, as JSON")
    parser.add_argument("-P", dest="pipelining", action="store_true", help="MAIL, RCPT and DATA in one write")
    parser.add_argument("-S", dest="tls", action="store_true", help="TLS from the first byte")
    parser.add_argument("-E", dest="certificate", metavar="FILE",
                        help="in clear, but encrypt and decrypt as much as in TLS, by this certificate")
    parser.add_argument("-U", dest="resume", action="store_true", help="the same, connections resume the last session")
    parser.add_argument("-A", dest="clients", type=int, default=0, metavar="N",
                        help=f"connect from N addresses, from {CLIENT_FIRST} on; 0: from whichever the system takes")
    parser.add_argument("-q", dest="per_session", type=int, default=0, metavar="N",
                        help="messages per connection, 0: all (%(default)s)")
    parser.add_argument("-T", dest="limit_s", type=float, default=600, metavar="S", help="give up after S")
    parser.add_argument("-o", dest="output", metavar="FILE", help="result as JSON; stdout without it")
    return parser


def main() -> int:
    """Run the source."""
    parser = arguments()
    options = parser.parse_args()
    if min(options.sessions, options.messages, options.domains, options.recipients) < 1:
        parser.error("-s, -m, -D and -r are at least 1")
    raise_descriptor_limit()
    source = Source(options)
    announce("sending")
    finished = source.run(options.limit_s)
    write_times(options.times, source.times)
    write_result(options.output, source.result())
    if not finished:
        print(f"bench.source: not finished in {options.limit_s:g} s", file=sys.stderr)
    return 0 if finished else 3


if __name__ == "__main__":
    sys.exit(main())
