"""The DNS resolver of a worker: asks recursive servers over UDP and TCP, remembers what they say.

Promises: `query` never raises for what a server or the network does, always returns within about `dns.attempts` x
`dns.timeout` (and a moment more behind very many others; while this machine has no socket for a question it waits, as
no server is to blame for that), and asks for a name once however many greenlets want it.
Every question has a source port and an id of its own, both random, and an answer counts only if both and the question
match. Names are looked up as they are: no search list, no hosts file.

The decisions are in `dns_lookup`, which has no I/O; here they meet sockets and timers. UDP runs in callbacks of the
hub, without a greenlet: an answer costs about 0.1 ms of CPU in all (`bench/dns.py`). Only TCP has greenlets.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, Literal, overload

import gevent
from gevent import monkey
from gevent import socket as gevent_socket
from gevent.event import AsyncResult
from gevent.hub import get_hub

from mta.config.hosts import Endpoint
from mta.config.schema import Dns
from mta.delivery.dns_answer import Answer
from mta.delivery.dns_cache import Cache
from mta.delivery.dns_lookup import Ask, Lookup, Servers
from mta.delivery.dns_wire import MailHost, RecordType
from mta.delivery.starts import Start, Starts
from mta.queue.shortage import SHORTAGE, Spell

MOST_UNDER_WAY: Final = 1000  # lookups at once, with a socket or two each; the others wait
MOST_YOUNG: Final = 100  # of those, for a moment: a burst of more could overflow a server's socket buffer
MOST_SOCKETS: Final = 2  # of one lookup: for the question under way, and for the one before, which may yet be answered
UNSENT_S: Final = 0.2  # after this a question for which there was no socket is tried again
_RECEIVE: Final = 4096  # three times what we say we take; a datagram that is longer is read as broken
_READ: Final = 1  # libev's EV_READ
_AF_INET: Final = 2
_AF_INET6: Final = 10
_SOCK_DGRAM: Final = 2

# Non-blocking sockets of the system: waiting is done by watchers of the hub, also where gevent has patched.
_socket = monkey.get_original("socket", "socket")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Statistics:
    """What the resolver has done since it was made."""

    queries: int = 0  # calls of `query`
    cached: int = 0  # of those, answered from the cache
    questions: int = 0  # sent to servers
    over_tcp: int = 0  # of those
    failures: int = 0  # lookups that ended without an answer


@dataclass(slots=True, eq=False)
class _Flight:
    """A lookup under way, its sockets, and those who wait for it."""

    key: tuple[str, RecordType]
    lookup: Lookup
    result: Any  # AsyncResult[Answer]
    sockets: list[tuple[Any, Any]] = field(default_factory=list)  # socket and watcher
    start: Start | None = None  # once it has begun
    done: bool = False


class Resolver:
    """The resolver. Used from the greenlets of one hub; `close` it when it is replaced."""

    def __init__(self, settings: Dns, most_under_way: int = MOST_UNDER_WAY) -> None:
        """`most_under_way` bounds the lookups at once: each takes one descriptor or two.

        Raises ValueError when a server in `settings` is not given by its address.
        """
        self._settings = settings
        self.servers = Servers(settings.servers or system_servers())
        for server in self.servers.all:
            if not _is_address(server.endpoint.host):
                raise ValueError(f"dns.servers: {server.endpoint.host} is not an address")
        self.statistics = Statistics()
        self._cache = Cache(settings.cache)
        self._flights: dict[tuple[str, RecordType], _Flight] = {}
        self._waiting: deque[_Flight] = deque()
        self._starts = Starts(MOST_YOUNG, most_under_way)
        self._pace = get_hub().loop.timer(0.0)
        self._deadlines: deque[tuple[float, _Flight, Ask]] = deque()  # in order, since all wait equally long
        self._timer = get_hub().loop.timer(0.0)
        self._closed = False
        self.shortage: str = ""  # what is lacking to ask, in words; empty when nothing is
        self._unsent: deque[tuple[_Flight, Ask]] = deque()
        self._spell = Spell(log, "no socket for a question to DNS", "DNS is asked")

    # -- the interface -------------------------------------------------------------------------------------------

    @overload
    def query(self, name: str, record_type: Literal["MX"]) -> Answer[MailHost]: ...

    @overload
    def query(self, name: str, record_type: Literal["A", "AAAA"]) -> Answer[str]: ...

    def query(self, name: str, record_type: RecordType) -> Answer[Any]:
        """The records of `name`: from the cache, or wait for them. `name` is ASCII, as in `example.org`."""
        self.statistics.queries += 1
        key = (name, record_type)
        answer = self._cache.get(key, time.monotonic())
        if answer is not None:
            self.statistics.cached += 1
            return answer
        try:
            flight = self._flights.get(key) or self._take_off(key)
        except ValueError as error:
            return Answer("nxdomain", (), time.monotonic() + self._settings.negative_ttl, str(error))
        found: Answer[Any] = flight.result.get()
        return found

    def knows(self, name: str, record_type: RecordType) -> bool:
        """Whether a `query` would not wait."""
        return self._cache.get((name, record_type), time.monotonic()) is not None

    def prefetch(self, name: str, record_type: RecordType) -> None:
        """Begin to look `name` up, without waiting: a `query` will follow."""
        key = (name, record_type)
        if key not in self._flights and self._cache.get(key, time.monotonic()) is None:
            try:
                self._take_off(key)
            except ValueError:
                pass  # `query` will say so

    def forget(self) -> None:
        """Drop everything that is remembered."""
        self._cache.clear()

    def close(self) -> None:
        """End all lookups; those who wait get a failure."""
        self._closed = True
        self._timer.stop()
        self._pace.stop()
        self._waiting.clear()
        self._unsent.clear()
        now = time.monotonic()
        for flight in list(self._flights.values()):
            self._land(flight, Answer("failure", (), now, "the resolver was closed"))

    # -- one lookup ----------------------------------------------------------------------------------------------

    def _take_off(self, key: tuple[str, RecordType]) -> _Flight:
        """Raises ValueError for a name that cannot be."""
        now = time.monotonic()
        if self._spell.lasts:
            self._spell.worked(now)
        flight = _Flight(key, Lookup(*key, self._settings, self.servers.in_order(now)), AsyncResult())
        self._flights[key] = flight
        if self._closed:
            self._land(flight, Answer("failure", (), now, "the resolver was closed"))
        elif not self._waiting and self._may_start(now):
            self._start(flight, now)
        else:
            self._waiting.append(flight)
            self._start_waiting()
        return flight

    def _go_on(self, flight: _Flight, step: Ask | Answer[Any] | None, now: float) -> None:
        """Do what the lookup says. Hot path (bench/dns.py)."""
        if isinstance(step, Ask):
            self._expect(flight, step, now)
            self.statistics.questions += 1
            if step.over_tcp:
                self.statistics.over_tcp += 1
                gevent.spawn(self._ask_over_tcp, flight, step)
            else:
                self._ask_over_udp(flight, step, now)
        elif step is not None:
            self._land(flight, step)
            if self._waiting:
                get_hub().loop.run_callback(self._start_waiting)  # not here: it could go on and on into itself

    def _land(self, flight: _Flight, answer: Answer[Any]) -> None:
        flight.done = True
        while flight.sockets:
            self._drop_socket(flight)
        if flight.start is not None:
            self._starts.end(flight.start)
        del self._flights[flight.key]
        if answer.kind == "failure":
            self.statistics.failures += 1
        if not self._closed:
            self._cache.put(flight.key, answer)
        flight.result.set(answer)

    # -- pace ----------------------------------------------------------------------------------------------------

    def _may_start(self, now: float) -> bool:
        return not self._unsent and self._starts.has_room(now)

    def _start(self, flight: _Flight, now: float) -> None:
        flight.start = self._starts.begin(now)
        self._go_on(flight, flight.lookup.begin(now), now)

    def _start_waiting(self) -> None:
        """Begin the lookups that waited, as far as the pace allows; come back when it allows more."""
        now = time.monotonic()
        while self._waiting and self._may_start(now):
            self._start(self._waiting.popleft(), now)
        if self._waiting and not self._pace.active:
            wait_s = self._starts.next_s(now)
            if wait_s is not None:
                self._pace.close()
                loop = get_hub().loop
                loop.update_now()
                self._pace = loop.timer(wait_s)
                self._pace.start(self._start_waiting)

    # -- UDP -----------------------------------------------------------------------------------------------------

    def _ask_over_udp(self, flight: _Flight, ask: Ask, now: float) -> None:
        endpoint = ask.server.endpoint
        sock = None
        if len(flight.sockets) == MOST_SOCKETS or (self.shortage and flight.sockets):
            self._drop_socket(flight)
        try:
            sock = _socket(_AF_INET6 if ":" in endpoint.host else _AF_INET, _SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect(endpoint)  # so that the kernel drops what comes from elsewhere, and tells of ICMP errors
            sock.send(ask.wire)
        except OSError as error:
            if sock is not None:
                sock.close()
            if error.errno in SHORTAGE:
                self._put_off(flight, ask, _describe(error), now)
            else:
                self._go_on(flight, flight.lookup.broken(ask, _describe(error), now), now)
            return
        watcher = get_hub().loop.io(sock.fileno(), _READ)
        flight.sockets.append((sock, watcher))
        watcher.start(self._readable, flight, ask, sock)

    def _drop_socket(self, flight: _Flight) -> None:
        """Close the oldest one."""
        sock, watcher = flight.sockets.pop(0)
        watcher.stop()
        watcher.close()
        sock.close()

    def _readable(self, flight: _Flight, ask: Ask, sock: Any) -> None:
        """A callback of the hub: a datagram or an ICMP error has come for `ask`."""
        if flight.done:
            return
        now = time.monotonic()
        try:
            step = flight.lookup.received(ask, sock.recv(_RECEIVE), now)
        except BlockingIOError:
            return
        except OSError as error:
            step = flight.lookup.broken(ask, _describe(error), now)
        self._go_on(flight, step, now)

    # -- TCP -----------------------------------------------------------------------------------------------------

    def _ask_over_tcp(self, flight: _Flight, ask: Ask) -> None:
        """A greenlet: one question on a connection of its own (RFC 7766 allows it; it is rare)."""
        endpoint = ask.server.endpoint
        wire: bytes | None = None
        why = "connection closed"
        with gevent.Timeout(self._settings.timeout, False):
            try:
                with gevent_socket.socket(_AF_INET6 if ":" in endpoint.host else _AF_INET) as sock:
                    sock.connect(endpoint)
                    sock.sendall(len(ask.wire).to_bytes(2, "big") + ask.wire)
                    wire = _receive_message(sock)
            except OSError as error:
                why = _describe(error)
                if error.errno in SHORTAGE and not flight.done:
                    self._put_off(flight, ask, why, time.monotonic())
                    return
            if not flight.done:
                now = time.monotonic()
                lookup = flight.lookup
                step = lookup.broken(ask, why, now) if wire is None else lookup.received(ask, wire, now)
                self._go_on(flight, step, now)

    # -- a shortage of sockets -----------------------------------------------------------------------------------

    def _put_off(self, flight: _Flight, ask: Ask, why: str, now: float) -> None:
        """This machine had no socket for `ask`. It is tried again, and no server is blamed."""
        ask.unsent = True
        self.shortage = why
        self._spell.failed(why, now)
        if not self._unsent:
            gevent.spawn_later(UNSENT_S, self._send_again)
        self._unsent.append((flight, ask))

    def _send_again(self) -> None:
        """Questions that were put off, in turn, until there is no socket again."""
        now = time.monotonic()
        unsent, self._unsent = self._unsent, deque()
        while unsent and not self._unsent:
            flight, ask = unsent.popleft()
            if not flight.done and ask is flight.lookup.current:
                ask.unsent = False
                self._expect(flight, ask, now)
                if ask.over_tcp:
                    gevent.spawn(self._ask_over_tcp, flight, ask)
                else:
                    self._ask_over_udp(flight, ask, now)
        self._unsent += unsent
        if not self._unsent:
            self.shortage = ""
            self._spell.worked(now)
            self._start_waiting()

    # -- time ----------------------------------------------------------------------------------------------------

    def _expect(self, flight: _Flight, ask: Ask, now: float) -> None:
        """Have `ask` time out. One timer serves all, because all wait equally long."""
        ask.due = now + self._settings.timeout
        deadlines = self._deadlines
        while deadlines and deadlines[0][1].done:
            deadlines.popleft()
        deadlines.append((ask.due, flight, ask))
        if not self._timer.active:
            self._start_timer(now)

    def _start_timer(self, now: float) -> None:
        loop = get_hub().loop
        loop.update_now()  # a timer counts from the loop's idea of now, which may lag
        self._timer.close()
        self._timer = loop.timer(max(self._deadlines[0][0] - now, 0.0))
        self._timer.start(self._run_late)

    def _run_late(self) -> None:
        """A callback of the hub: the first deadline has come."""
        now = time.monotonic()
        deadlines = self._deadlines
        while deadlines and (deadlines[0][1].done or deadlines[0][0] <= now):
            _, flight, ask = deadlines.popleft()
            if not flight.done and not ask.unsent and ask.due <= now:
                self._go_on(flight, flight.lookup.timed_out(ask, now), now)
        if deadlines and not self._closed:
            self._start_timer(now)


def system_servers(path: str = "/etc/resolv.conf") -> tuple[Endpoint, ...]:
    """The name servers of the system; the local machine when none is given (resolv.conf(5))."""
    found = []
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver" and _is_address(words[1]):
                    found.append(Endpoint(words[1], 53))
    except OSError:
        pass
    return tuple(found) or (Endpoint("127.0.0.1", 53),)


def _is_address(host: str) -> bool:
    family = _AF_INET6 if ":" in host else _AF_INET
    try:
        gevent_socket.inet_pton(family, host.partition("%")[0])
    except OSError:
        return False
    return True


def _receive_message(sock: Any) -> bytes | None:
    """One message with its two octets of length (RFC 1035 4.2.2); None when the peer closed before its end."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        chunk = sock.recv(65_536)
        if not chunk:
            return None
        data += chunk
    return data[2 : 2 + int.from_bytes(data[:2], "big")]


def _describe(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)
