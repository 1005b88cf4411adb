"""The receiving end of a load test: MX hosts on consecutive loopback addresses that take everything and count it.

    python -m bench.sink -a FIRST_IP -k HOW_MANY_IPS -p PORT -n EXPECTED_RECIPIENTS -o out.json

Recipients are counted by the number in their address, `u123@...`: how many different ones came, and how often one
came again. One process, one epoll loop, bytes only, because what the sink takes from the processors the MTA under
test cannot have; its own CPU time is in the result. It ends 0.7 s after the last expected recipient, so that a
duplicate close behind is seen, or when nothing came for a while, or by SIGTERM.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import time
from collections import deque

from bench.loopback import Stop, announce, consecutive, cpu_s, raise_descriptor_limit, write_result, write_times

GRACE_S = 0.7
GATHER = 6
"""Delays of content for which connections are waited for."""
READ = 65_536  # recv() reserves this much first: above 128 KiB each call would map and unmap pages
_CAPABILITIES = (b"250-sink.test\r\n250-PIPELINING\r\n250-SIZE 100000000\r\n250-8BITMIME\r\n"
                 b"250 ENHANCEDSTATUSCODES\r\n")
_GREETING = b"220 sink.test ESMTP\r\n"
_LATER = b"451 4.3.0 try again later\r\n"
_END = b"\r\n.\r\n"


class Session:
    """One connection."""

    __slots__ = ("chunk", "closing", "content_done", "in_content", "recipients", "replies", "rest", "socket", "unsent",
                 "waiting")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.rest = b""
        self.replies: list[bytes] = [_GREETING]
        self.unsent = b""
        self.recipients: list[int] = []
        self.in_content = False
        self.chunk = 0  # octets of a chunk to come, the end of which is the end of content
        self.content_done = False
        """Among the replies to come is one to content."""
        self.closing = False
        self.waiting = False


class Counts:
    """What came."""

    def __init__(self) -> None:
        self.first_s = 0.0
        self.last_s = 0.0
        self.messages = 0
        self.recipients = 0
        self.duplicates = 0
        self.strangers = 0
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self.bytes = 0
        self.seen: set[int] = set()
        self.times: list[tuple[int, float]] | None = None
        """When each recipient came, if anybody wants to know."""

    def message(self, recipients: list[int], now_s: float) -> None:
        """One whole message for `recipients`; -1 is an address without a number."""
        if not self.messages:
            self.first_s = now_s
        self.last_s = now_s
        self.messages += 1
        self.recipients += len(recipients)
        if self.times is not None:
            self.times += [(number, now_s) for number in recipients]
        for number in recipients:
            if number < 0:
                self.strangers += 1
            elif number in self.seen:
                self.duplicates += 1
            else:
                self.seen.add(number)

    def result(self) -> dict[str, int | float]:
        """The names of the result file."""
        return {
            "first": self.first_s, "last": self.last_s, "msgs": self.messages, "rcpts": self.recipients,
            "distinct": len(self.seen), "dups": self.duplicates, "strangers": self.strangers,
            "conns": self.connections, "maxconc": self.most_open, "bytes": self.bytes, "cpu_s": round(cpu_s(), 3),
        }


class Sink:
    """The loop."""

    def __init__(self, addresses: list[str], port: int, delay_s: float, content_delay_s: float, refuse: bool,
                 gather: int = 0, chunking: bool = False) -> None:
        self.counts = Counts()
        self._delay_s = delay_s
        self._content_delay_s = content_delay_s
        self._refuse = refuse
        self._gather = gather
        self._gather_until_s = 0.0
        self._capabilities = b"250-CHUNKING\r\n" * chunking + _CAPABILITIES
        self._poll = select.epoll()
        self._stop = Stop(self._poll)
        self._listeners: dict[int, socket.socket] = {}
        self._sessions: dict[int, Session] = {}
        # Each in the order of time, as each has one delay.
        self._delayed: deque[tuple[float, Session]] = deque()
        self._contents: deque[tuple[float, Session]] = deque()
        for address in addresses:
            listener = socket.create_server((address, port), backlog=4096)
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener
            self._poll.register(listener.fileno(), select.EPOLLIN)

    def run(self, expected: int, idle_s: float, limit_s: float) -> None:
        """Serve until all `expected` recipients came, nothing came for `idle_s`, or `limit_s` are over."""
        started_s = heard_s = now_s = time.monotonic()
        counts, seen, sessions = self.counts, self.counts.seen, self._sessions
        while not self._stop.asked:
            wait_s = 0.2
            lines = (self._delayed,) if self._gather else (self._delayed, self._contents)
            for line in lines:
                if line:
                    wait_s = min(max(line[0][0] - now_s, 0.0), wait_s)
            for fd, mask in self._poll.poll(wait_s):
                session = sessions.get(fd)
                if session is not None:
                    if mask & select.EPOLLOUT:
                        self._write(session)
                    if mask & ~select.EPOLLOUT:
                        self._read(session)
                elif fd in self._listeners:
                    self._accept(self._listeners[fd])
                else:
                    continue
                heard_s = now_s
            now_s = time.monotonic()
            if self._gather:
                self._gathering(now_s)
            for line in lines:
                while line and line[0][0] <= now_s:
                    session = line.popleft()[1]
                    session.waiting = session.content_done = False
                    self._write(session)
                    heard_s = now_s
            answered = not (self._delayed or self._contents)
            if expected and answered and len(seen) >= expected and now_s - counts.last_s > GRACE_S:
                break
            if now_s - heard_s > idle_s or now_s - started_s > limit_s:
                break

    def _gathering(self, now_s: float) -> None:
        """No content is answered before enough connections were open at once; all that came till then have to wait as
        long as those that come at that moment. After some time without it, we give up and answer."""
        if not self._gather_until_s and self._contents:
            self._gather_until_s = now_s + GATHER * self._content_delay_s
        if self.counts.most_open >= self._gather:
            self._gather = 0
            due_s = now_s + self._content_delay_s
            self._contents = deque((due_s, session) for _, session in self._contents)
        elif self._gather_until_s and now_s >= self._gather_until_s:
            self._gather = 0

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            session = self._sessions[connection.fileno()] = Session(connection)
            self._poll.register(connection.fileno(), select.EPOLLIN)
            counts = self.counts
            counts.connections += 1
            counts.open += 1
            counts.most_open = max(counts.most_open, counts.open)
            self._answer(session)

    def _read(self, session: Session) -> None:
        try:
            chunk = session.socket.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            # A client that closed one half only may still read: delayed replies leave now.
            session.waiting = False
            self._write(session)
            self._close(session)
            return
        self.counts.bytes += len(chunk)
        self._take(session, session.rest + chunk if session.rest else chunk)
        if session.replies:
            self._answer(session)

    def _take(self, session: Session, data: bytes) -> None:
        """Everything whole in `data`; what is not whole yet becomes `session.rest`."""
        position = 0
        while not session.closing:
            if session.chunk:
                taken = min(session.chunk, len(data) - position)
                position += taken
                session.chunk -= taken
                if session.chunk:
                    session.rest = b""
                    return
                self._content_came(session)
                continue
            if session.in_content:
                # The search begins at the CRLF before the content, so that a lone dot is found too.
                end = data.find(_END, position)
                if end < 0:
                    session.rest = data[max(position, len(data) - len(_END) + 1):]
                    return
                position = end + len(_END)
                session.in_content = False
                self._content_came(session)
                continue
            end = data.find(b"\n", position) + 1
            if not end:
                break
            self._command(session, data[position:end])
            position = end - 2 if session.in_content else end
        session.rest = data[position:]

    def _content_came(self, session: Session) -> None:
        self.counts.message(session.recipients, time.monotonic())
        session.recipients = []
        session.replies.append(b"250 2.0.0 ok\r\n")
        session.content_done = True

    def _command(self, session: Session, line: bytes) -> None:
        verb = line[:4].upper()
        replies = session.replies
        if verb == b"RCPT":
            if self._refuse:
                replies.append(_LATER)
                return
            session.recipients.append(_number(line))
            replies.append(b"250 2.1.5 ok\r\n")
        elif verb == b"MAIL":
            session.recipients = []
            replies.append(_LATER if self._refuse else b"250 2.1.0 ok\r\n")
        elif verb == b"DATA":
            session.in_content = bool(session.recipients)
            replies.append(b"354 go ahead\r\n" if session.in_content else b"503 5.5.1 no recipients\r\n")
        elif verb == b"BDAT":  # always the last chunk, and not an empty one
            session.chunk = int(line.split()[1])
        elif verb == b"EHLO":
            replies.append(self._capabilities)
        elif verb == b"HELO":
            replies.append(b"250 sink.test\r\n")
        elif verb in (b"RSET", b"NOOP"):
            session.recipients = []
            replies.append(b"250 2.0.0 ok\r\n")
        elif verb == b"QUIT":
            session.closing = True
            replies.append(b"221 2.0.0 bye\r\n")
        else:
            replies.append(b"500 5.5.2 what?\r\n")

    def _answer(self, session: Session) -> None:
        """The replies so far, now or after the delay; one burst of replies is delayed once."""
        if session.waiting:
            return
        if session.content_done and self._content_delay_s > 0:
            session.waiting = True
            self._contents.append((time.monotonic() + self._content_delay_s, session))
        elif self._delay_s > 0:
            session.waiting = True
            self._delayed.append((time.monotonic() + self._delay_s, session))
        else:
            session.content_done = False
            self._write(session)

    def _write(self, session: Session) -> None:
        if session.waiting:
            return
        data = session.unsent + b"".join(session.replies)
        session.replies.clear()
        if not data:
            return
        before = bool(session.unsent)
        try:
            session.unsent = data[session.socket.send(data):]
        except BlockingIOError:
            session.unsent = data
        except OSError:
            self._close(session)
            return
        if session.unsent:
            self._poll.modify(session.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        elif session.closing:
            self._close(session)
        elif before:
            self._poll.modify(session.socket.fileno(), select.EPOLLIN)

    def _close(self, session: Session) -> None:
        if self._sessions.pop(session.socket.fileno(), None) is not None:
            self.counts.open -= 1
            session.socket.close()


def _number(line: bytes) -> int:
    """The 123 of `RCPT TO:<u123@d4.test>`, -1 for another address."""
    start = line.find(b"<u") + 2
    digits = line[start:line.find(b"@", start)]
    return int(digits) if start > 1 and digits.isdigit() else -1


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.sink", description="Receive everything and count it.")
    parser.add_argument("-a", dest="first", default="127.0.0.10", metavar="IP", help="first address (%(default)s)")
    parser.add_argument("-k", dest="addresses", type=int, default=1, metavar="N", help="consecutive addresses")
    parser.add_argument("-p", dest="port", type=int, required=True, metavar="PORT", help="port on all of them")
    parser.add_argument("-w", dest="delay_ms", type=float, default=0, metavar="MS", help="delay of each reply burst")
    parser.add_argument("-W", dest="content_delay_ms", type=float, default=0, metavar="MS",
                        help="delay of replies to content instead")
    parser.add_argument("-g", dest="gather", type=int, default=0, metavar="N",
                        help="and answer no content before N connections were open at once")
    parser.add_argument("-n", dest="expected", type=int, default=0, metavar="N", help="recipients expected")
    parser.add_argument("-i", dest="idle_s", type=float, default=60, metavar="S", help="end when nothing comes for S")
    parser.add_argument("-X", dest="limit_s", type=float, default=900, metavar="S", help="end after S in any case")
    parser.add_argument("-t", dest="refuse", action="store_true", help="answer 451 to every MAIL and RCPT")
    parser.add_argument("--chunking", action="store_true", help="offer CHUNKING")
    parser.add_argument("-c", dest="times", metavar="FILE", help="when each recipient came, as JSON")
    parser.add_argument("-o", dest="output", metavar="FILE", help="result as JSON; stdout without it")
    return parser


def main() -> int:
    """Run the sink."""
    options = arguments().parse_args()
    raise_descriptor_limit()
    try:
        addresses = consecutive(options.first, options.addresses)
        sink = Sink(addresses, options.port, options.delay_ms / 1000,
                    options.content_delay_ms / 1000, options.refuse, options.gather, options.chunking)
    except (ValueError, OSError) as error:
        print(f"bench.sink: {error}", file=sys.stderr)
        return 2
    if options.times is not None:
        sink.counts.times = []
    announce(f"{addresses[0]}:{options.port}, {len(addresses)} addresses")
    sink.run(options.expected, options.idle_s, options.limit_s)
    write_times(options.times, sink.counts.times or [])
    write_result(options.output, sink.counts.result())
    return 0


if __name__ == "__main__":
    sys.exit(main())
