"""The SMTP door: accepts connections on one listening socket and carries each through `mta.smtp.server`.

A session is no greenlet but a handful of callbacks: everything in it happens in the order in which it came, and it
waits for one thing at a time, for input, for room to write, or for the store (until the message is durable). Replies
to a pipelined group leave in one write. That is cheaper per message by a fifth, and an idle client costs its socket
and a few hundred bytes.

* The sockets are plain non-blocking ones. The watcher of a session runs as long as it waits for input; while the store
  works it is stopped only if something comes, as from most clients nothing does.
* Deadlines cost nothing per wait: a session notes when its patience ends, and one timer looks at that note when it
  might have come to pass. While the store works there is no deadline: the client's patience decides (RFC 5321
  4.5.3.2.6 gives it ten minutes).
* A connection too many is told `421 4.3.2` and closed at once. Without a file descriptor left for it, a spare one is
  given up for a moment to do just that; otherwise it would wait in the backlog for ever and wake us for ever.
* A burst of connections is spread over all workers: who has more sessions than another one lets that go first, for
  `COURTESY_S`, and then takes one connection (`mta.inject.balance`).
* Whether the client is still there when `250` is written is not asked: see `mta.smtp.server`.
* A session that we end is not simply closed: unread input would make the kernel send a reset, which may overtake our
  last reply. Our side is shut first, and for a moment what still comes is read and dropped.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from gevent import monkey
from gevent.event import Event
from gevent.hub import get_hub

from mta.config.schema import Config, LabelValues, Listener
from mta.inject.balance import Balance
from mta.inject.intake import HONOURED, Source
from mta.inject.permissions import ListenerPermissions
from mta.queue.shortage import SHORTAGE, Spell
from mta.smtp.budget import Budget
from mta.smtp.coming import Coming
from mta.smtp.reply import Reply
from mta.smtp.server import (
    CLOSED,
    CONTENT,
    Closed,
    Envelope,
    MessageReceived,
    Peer,
    Server,
    ServerEvent,
    ServerSettings,
)
from mta.smtp.transaction import CARRIED

# In a patched process these names are gevent's, whose close() puts the closing off; these are the kernel's.
_socket: Final = monkey.get_original("socket", "socket")
_close: Final = monkey.get_original("os", "close")
_AF_INET6: Final = 10
_IPPROTO_TCP: Final = 6
_TCP_NODELAY: Final = 1
_SHUT_WR: Final = 1
_READ: Final = 1  # libev's EV_READ and EV_WRITE
_WRITE: Final = 2

CHUNK = 65_536
COURTESY_S = 0.001  # for a worker with fewer sessions to take a connection
ACCEPT_PAUSE_S = 0.1  # after a failure to accept that will not pass at once
CLOSING_S = 5.0  # patience with a client that is to take our last reply
DROPPED_AT_THE_END = 1_000_000  # octets read and dropped after our last reply

_TOO_MANY: Final = Reply(421, "4.3.2", ("Too many sessions, try again later",)).to_bytes()
_TOO_MANY_OF_YOURS: Final = Reply(421, "4.7.0", ("Too many sessions from your address",)).to_bytes()
_STOPPING: Final = Reply(421, "4.3.2", ("The server is going down, try again later",))
_TIMEOUT: Final = Reply(421, "4.4.2", ("Timeout, closing the connection",))
_NO_LABELS: Final = LabelValues()
_LOCAL_ERROR: Final = Reply(451, "4.3.0", ("Local error, try again later",))

Submit = Callable[[Envelope, bytes, Source, Callable[[Reply], None]], None]
"""Takes a message, and calls back with the reply once it is on stable storage or refused: at once, or later."""

log = logging.getLogger(__name__)


class Occupancy:
    """How many sessions there are, in all and by client, and what they hold. Several listeners may share one."""

    def __init__(self, coming: Coming | None = None, balance: Balance | None = None) -> None:
        self.total = 0
        self.most = math.inf  # what the descriptors of this process allow, whatever the configuration says
        self.content = Budget(math.inf)  # of the messages that they are receiving
        self.coming = coming or Coming()  # those messages
        self._by_client: Counter[str] = Counter()
        self._balance = balance
        if balance is not None:
            balance.tell(0)

    @property
    def is_ahead(self) -> bool:
        """Whether another worker has fewer sessions."""
        return self._balance is not None and self._balance.is_ahead

    def enter(self, address: str, limit: int, limit_per_client: int) -> bytes | None:
        """Count a session in. The refusal, if there are too many: then it is not counted."""
        if self.total >= limit or self.total >= self.most:
            return _TOO_MANY
        if self._by_client[address] >= limit_per_client:
            return _TOO_MANY_OF_YOURS
        self._by_client[address] += 1
        self._count(1)
        return None

    def leave(self, address: str) -> None:
        """Count a session out."""
        self._by_client[address] -= 1
        if not self._by_client[address]:
            del self._by_client[address]
        self._count(-1)

    def _count(self, difference: int) -> None:
        self.total += difference
        if self._balance is not None:
            self._balance.tell(self.total)


class SmtpListener:
    """Accepts mail on one listening socket. Must be used within one hub."""

    def __init__(
        self,
        sock: Any,
        config: Config,
        listener: Listener,
        submit: Submit,
        intake_closed: Callable[[], Reply | None],
        occupancy: Occupancy | None = None,
    ) -> None:
        """`sock` listens already and is taken over. `intake_closed` is asked at every MAIL (452 4.3.1: no room)."""
        self._sock = _socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._sock.setblocking(False)
        self._sock.setsockopt(_IPPROTO_TCP, _TCP_NODELAY, 1)  # accepted sockets inherit it
        self._submit = submit
        self._intake_closed = intake_closed
        self._listener = listener
        self._occupancy = occupancy if occupancy is not None else Occupancy()
        self._sessions: set[_Session] = set()
        self._empty = Event()
        self._empty.set()
        self._spare = _open_spare()
        self._descriptors = Spell(log, "cannot accept a connection", "connections are accepted")
        self._memory = Spell(log, "a session ends", "there is memory for sessions")
        loop = get_hub().loop
        self._readable = loop.io(self._sock.fileno(), _READ)
        self._pause = loop.timer(ACCEPT_PAUSE_S, ACCEPT_PAUSE_S)
        self._courtesy = loop.timer(COURTESY_S, COURTESY_S)
        self.configure(config)

    def __repr__(self) -> str:
        return f"<SmtpListener {self._listener.smtp}: {self.sessions} sessions>"

    @property
    def sessions(self) -> int:
        """How many sessions this listener has."""
        return len(self._sessions)

    def configure(self, config: Config) -> None:
        """Take the options of a new configuration for sessions that begin from now on."""
        for listener in config.listeners:
            if listener.smtp == self._listener.smtp:
                self._listener = listener
        self._limits = config.smtp
        self._occupancy.content.limit = config.memory.receiving
        self._settings = ServerSettings(
            self._listener.hostname or config.hostname,
            message_size=config.smtp.message_size,
            recipients=config.smtp.recipients,
            line_length=config.smtp.line_length,
            command_length=config.smtp.command_length,
            errors=config.smtp.errors,
            commands=config.smtp.commands,
            honours=CARRIED | HONOURED,
            future_release_s=_longest_hold_s(config),
            permissions=ListenerPermissions(self._listener.relay_from),
            intake_closed=self._intake_closed,
            budget=self._occupancy.content,
            coming=self._occupancy.coming,
        )

    def start(self) -> None:
        """Begin to accept."""
        self._readable.start(self._accept)

    def _go_on(self) -> None:
        self._pause.stop()
        self.start()

    def stop(self, deadline_s: float = math.inf) -> None:
        """Accept no more and end all sessions: those in a transaction may finish it until `deadline_s` (monotonic).

        Returns when all are gone, or a moment after the deadline.
        """
        self._pause.close()
        self._courtesy.close()
        self._readable.close()
        self._sock.close()
        self._give_up_spare()
        for session in list(self._sessions):
            session.stop()
        left_s = deadline_s - time.monotonic()
        if not self._empty.wait(None if left_s == math.inf else max(left_s, 0.0)):
            log.warning("%d sessions had to be cut off", len(self._sessions))
            for session in list(self._sessions):
                session.cut_off()
            self._empty.wait(1.0)

    # -- accepting; on the hub ----------------------------------------------------------------------------------

    def _accept(self) -> None:
        """There is a connection: ours, unless another worker takes it now."""
        if self._occupancy.is_ahead:
            self._readable.stop()
            self._courtesy.again(self._accept_after_all)
        else:
            self._take()

    def _accept_after_all(self) -> None:
        self._courtesy.stop()
        self.start()
        self._take()

    def _take(self) -> None:
        try:
            # Not accept(): in a patched process that makes a gevent socket.
            fd, address = self._sock._accept()
        except BlockingIOError:
            return  # another worker was faster
        except OSError as error:
            self._accept_failed(error)
            return
        if self._descriptors.lasts:
            self._descriptors.worked(time.monotonic())
        if self._memory.lasts:
            self._memory.worked(time.monotonic())
        sock = _socket(self._sock.family, self._sock.type, self._sock.proto, fileno=fd)
        sock.setblocking(False)
        client, port = address[:2]
        client = client.removeprefix("::ffff:") if "." in client else client
        refusal = self._occupancy.enter(client, self._limits.sessions, self._limits.sessions_per_client)
        if refusal is not None:
            _say_and_close(sock, refusal)
            return
        session = _Session(self, sock, Server(self._settings, Peer(client, port)))
        self._sessions.add(session)
        self._empty.clear()
        session.start()

    def _accept_failed(self, error: OSError) -> None:
        if error.errno in SHORTAGE:
            self._give_up_spare()
            try:
                fd, _ = self._sock._accept()
                _say_and_close(_socket(self._sock.family, self._sock.type, self._sock.proto, fileno=fd), _TOO_MANY)
            except OSError:
                pass  # another worker or another thread was faster, or the client is gone
            self._spare = _open_spare()
            self._descriptors.failed(str(error.strerror), time.monotonic())
            self._readable.stop()
            self._pause.again(self._go_on)
        else:
            log.warning("cannot accept a connection: %s", error.strerror)  # it was aborted before we got to it

    def _give_up_spare(self) -> None:
        """Close it, once: by the next time its number may belong to a file of the store."""
        spare, self._spare = self._spare, -1
        if spare >= 0:
            _close(spare)

    def _ended(self, session: _Session) -> None:
        self._sessions.discard(session)
        self._occupancy.leave(session.machine.peer.address)
        if not self._sessions:
            self._empty.set()


def _longest_hold_s(config: Config) -> int:
    """How long a client may have a message held: what is configured, but half of the time at least is for delivery."""
    return int(min(config.smtp.future_release or 0, config.shaping.expiries[0] / 2))


def _open_spare() -> int:
    """A descriptor to be given up in need; -1 when there is none left for that either."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _say_and_close(sock: Any, reply: bytes) -> None:
    """Tell a client that it cannot stay, without waiting for it."""
    try:
        sock.setblocking(False)
        sock.send(reply)
        sock.shutdown(_SHUT_WR)
    except OSError:
        pass  # it will see that the connection is closed
    finally:
        sock.close()


class _Session:
    """One connection of a client. All methods are callbacks on the hub, of the socket, the timer, the store and the
    listener: each does what can be done at once, and none waits.
    """

    __slots__ = (
        "_answer", "_by_client", "_content_until_s", "_deadline_s", "_dropped", "_io", "_limits", "_listener",
        "_parting", "_reading", "_sock", "_source", "_storing", "_tick_s", "_timer", "_timer_at_s", "_unsent",
        "machine",
    )  # fmt: skip

    def __init__(self, listener: SmtpListener, sock: Any, machine: Server) -> None:
        self.machine = machine
        self._listener = listener
        self._limits = listener._limits
        self._sock = sock
        self._io = get_hub().loop.io(sock.fileno(), _READ)
        self._reading = False  # the watcher runs, for input
        self._unsent = b""  # output that the client has not taken: until it has, nothing else is done
        self._storing = False  # the store works on a message: what the client sends meanwhile waits
        self._answer: Reply | None = None  # what `submit` said to a message before it returned
        self._parting = False  # our side is shut, and what the client still sends is dropped
        self._dropped = 0
        self._by_client = False  # it said QUIT
        self._source: tuple[str, Source] | None = None  # with the name it was made with: a client may say another one
        self._content_until_s = math.inf  # when the whole content of the present message must be there
        self._deadline_s = math.inf
        # The timer never sleeps longer than the shortest patience, so it is early for every deadline but odd ones.
        self._tick_s = min(self._limits.timeouts.command, self._limits.timeouts.data)
        self._timer: Any = None
        self._timer_at_s = math.inf

    # -- called by the listener ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Greet, and listen."""
        self._guard(self._say, self.machine.greeting())

    def stop(self) -> None:
        """End the session as soon as no transaction is under way."""
        self.machine.stop(_STOPPING)
        if self.machine.state == CLOSED and not self._parting:
            self._guard(self._go_on)

    def cut_off(self) -> None:
        """End the session now, unless it waits for the store: then the answer to the message ends it."""
        if not self._storing:
            self.machine.close(_STOPPING)
            self._guard(self._go_on)

    def _guard(self, step: Callable[..., None], *args: Any) -> None:
        try:
            step(*args)
        except OSError:
            self._end()  # the client is gone, or too slow for our last words; what it did not finish never happened
        except MemoryError:
            self._no_memory()
        except Exception:
            self._failed()

    def _no_memory(self) -> None:
        """The session ends, which gives back what it held. The client has no answer, so it comes again."""
        self._end()
        self._listener._memory.failed("there is no memory", time.monotonic())

    def _failed(self) -> None:
        log.exception("bug: %r ends", self.machine)
        self._end()

    # -- conversation -------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        """There is input. Hot path."""
        if self._storing:
            self._io.stop()
            self._reading = False
            return
        try:
            data = self._sock.recv(CHUNK)
            if not data:
                self._end()
            elif self._parting:
                self._dropped += len(data)
                if self._dropped >= DROPPED_AT_THE_END:
                    self._end()
            else:
                events = self.machine.receive(data)
                if events:
                    self._act(events)
                if not self._storing:
                    self._go_on()
        except BlockingIOError:
            pass
        except OSError:
            self._end()
        except MemoryError:
            self._no_memory()
        except Exception:
            self._failed()

    def _act(self, events: list[ServerEvent]) -> None:
        """Have messages stored, and go on with what was held behind them, until the store has to work."""
        while events:
            event = events.pop(0)
            if isinstance(event, Closed):
                self._by_client = event.by_client
                continue
            assert isinstance(event, MessageReceived), event  # nothing else is offered
            self._answer = None
            self._deadline_s = self._content_until_s = math.inf
            try:
                self._listener._submit(event.envelope, event.content, self._source_of(event.envelope), self._answered)
            except MemoryError:
                self._listener._memory.failed("there is no memory to take a message", time.monotonic())
                self._answer = _LOCAL_ERROR
            except Exception:
                log.exception("bug: a message of %r was not taken", self.machine)
                self._answer = _LOCAL_ERROR
            if self._answer is None:
                self._storing = True
                return
            events += self.machine.answer(self._answer)

    def _answered(self, reply: Reply) -> None:
        """The store has a message, or will not have it. Hot path."""
        if not self._storing:
            self._answer = reply  # `submit` has not returned
            return
        self._storing = False
        try:
            events = self.machine.answer(reply)
            if events:
                self._act(events)
            if not self._storing:
                self._go_on()
        except OSError:
            self._end()
        except MemoryError:
            self._no_memory()
        except Exception:
            self._failed()

    def _go_on(self) -> None:
        """Say what there is to say, and wait for what comes of it. Hot path."""
        output = self.machine.output()
        if output:
            self._say(output)
        else:
            self._listen(anew=False)

    def _say(self, data: bytes) -> None:
        """Send `data`, then listen again. Hot path."""
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._say_rest(data[sent:])
        elif self.machine.state != CLOSED:
            self._listen(anew=True)
        else:
            self._said_last()

    def _say_rest(self, data: bytes) -> None:
        """The client has to take more of our output before anything else is done."""
        self._unsent = data
        now_s = time.monotonic()
        self._deadline_s = now_s + (CLOSING_S if self.machine.state == CLOSED else self._limits.timeouts.command)
        self._start_timer(now_s)
        self._io.stop()
        self._reading = False
        self._io.events = _WRITE
        self._io.start(self._writable)

    def _writable(self) -> None:
        """The client takes more of our output."""
        try:
            sent = self._sock.send(self._unsent)
            self._unsent = self._unsent[sent:]
            if not self._unsent:
                self._io.stop()
                self._io.events = _READ
                if self.machine.state != CLOSED:
                    self._listen(anew=True)
                else:
                    self._said_last()
        except BlockingIOError:
            pass
        except OSError:
            self._end()
        except Exception:
            self._failed()

    def _listen(self, *, anew: bool) -> None:
        """Wait for input: each block of content has its time, and so has each command as a whole. Hot path."""
        if not (self._reading or self._unsent):
            self._reading = True
            self._io.start(self._readable)
        now_s = time.monotonic()
        timeouts = self._limits.timeouts
        if self.machine.receiving:
            if self._content_until_s == math.inf or (anew and self.machine.state == CONTENT):
                self._content_until_s = now_s + timeouts.transaction
            self._deadline_s = min(now_s + timeouts.data, self._content_until_s)
        elif anew:
            self._content_until_s = math.inf
            self._deadline_s = now_s + timeouts.command
        if self._deadline_s < self._timer_at_s:
            self._start_timer(now_s)

    def _source_of(self, envelope: Envelope) -> Source:
        known = self._source
        if known is None or known[0] != envelope.helo:
            peer = self.machine.peer
            listener = self._listener._listener
            labels = listener.labels if listener.labels != _NO_LABELS else None
            source = Source.smtp(peer.address, peer.port, envelope.helo, self._listener._settings.hostname,
                                 labels=labels, label_headers=listener.label_headers)
            known = self._source = (envelope.helo, source)
        return known[1]

    # -- the end ------------------------------------------------------------------------------------------------

    def _said_last(self) -> None:
        """Close; but see that our last reply is not lost by a reset, if the client may still be sending."""
        if self._by_client:
            self._end()
            return
        self._parting = True
        self._sock.shutdown(_SHUT_WR)
        now_s = time.monotonic()
        self._deadline_s = now_s + CLOSING_S
        self._start_timer(now_s)
        if not self._reading:
            self._reading = True
            self._io.start(self._readable)

    def _end(self) -> None:
        if self._sock is None:
            return
        if self._timer is not None:
            self._timer.close()
        self._io.close()
        self._sock.close()
        self._sock = None
        self.machine.gone()
        self._listener._ended(self)

    # -- time ---------------------------------------------------------------------------------------------------

    def _time_passed(self) -> None:
        now_s = time.monotonic()
        if now_s < self._deadline_s:
            self._start_timer(now_s)
        elif self._parting or self._unsent:
            self._end()  # it had its time to take our words
        else:
            self.machine.close(_TIMEOUT)
            self._guard(self._go_on)

    def _start_timer(self, now_s: float) -> None:
        """Look at the deadline when it comes, or earlier."""
        if self._timer is not None:
            self._timer.close()
        sleep_s = max(min(self._deadline_s - now_s, self._tick_s), 0.01)
        self._timer_at_s = now_s + sleep_s
        self._timer = get_hub().loop.timer(sleep_s)
        self._timer.start(self._time_passed)
