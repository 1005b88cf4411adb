"""The socket of one client: its input when that is wanted, our output as it is taken, and the ends of its patience.

The ground that `mta.inject.session` stands on; it says what input means, and what is to be said. What is here knows of
the machine only whether it receives content and whether all is over.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any, Final

from gevent.hub import get_hub

from mta.inject.servertls import ServerTls
from mta.smtp.conversation import RECEIVING
from mta.smtp.peer import Peer
from mta.smtp.reply import Reply
from mta.smtp.server import CLOSED, CONTENT, Server

if TYPE_CHECKING:
    from mta.inject.listener import SmtpListener

_SHUT_WR: Final = 1
_MSG_TRUNC: Final = 0x20
_NOWHERE: Final = bytearray(262_144)  # for what is dropped; of a TCP socket it is not written
_READ: Final = 1  # libev's EV_READ and EV_WRITE
_WRITE: Final = 2

CHUNK = 65_536
CLOSING_S = 5.0  # patience with a client that is to take our last reply
DROPPED_AT_THE_END = 1_000_000  # octets read and dropped after our last reply

_TIMEOUT: Final = Reply(421, "4.4.2", ("Timeout, closing the connection",))

log = logging.getLogger(__name__)


def _nothing_to_read() -> None:
    """The session is over."""


class Connection(ABC):
    """One connection of a client. All methods are callbacks on the hub, of the socket, the timer, the store and the
    listener: each does what can be done at once, and none waits. Not made by itself: see `Session`.
    """

    __slots__ = (
        "_by_client", "_content_until_s", "_deadline_s", "_dropped", "_io", "_listener", "_on_readable", "_parting",
        "_reading", "_settings", "_sock", "_storing", "_talks", "_tick_s", "_timeouts", "_timer", "_timer_at_s", "_tls",
        "_unsent", "machine",
    )  # fmt: skip

    def __init__(self, listener: SmtpListener, sock: Any, peer: Peer) -> None:
        self._listener = listener
        self._settings = listener.settings
        self._timeouts = listener.limits.timeouts
        self.machine = Server(self._settings, peer)
        self._sock = sock
        self._io = get_hub().loop.io(sock.fileno(), _READ)
        self._reading = False  # the watcher runs, for input
        self._on_readable: Callable[[], None] = self._readable
        self._tls: ServerTls | None = None
        self._talks = False  # the greeting was said, and no handshake is under way
        self._unsent = b""  # output that the client has not taken: until it has, nothing else is done
        # The store works on a message, a login is looked at, or others have their turn: what the client sends waits.
        self._storing = False
        self._parting = False  # our side is shut, and what the client still sends is dropped
        self._dropped = 0
        self._by_client = False  # it said QUIT
        self._content_until_s = inf  # when the whole content of the present message must be there
        self._deadline_s = inf
        # The timer never sleeps longer than the shortest patience, so it is early for every deadline but odd ones.
        self._tick_s = min(self._timeouts.command, self._timeouts.data)
        self._timer: Any = None
        self._timer_at_s = inf

    def __repr__(self) -> str:
        return f"<Session: {self.machine!r}>"

    # -- input ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _readable(self) -> None:
        """There is input."""

    @abstractmethod
    def _gone(self) -> None:
        """The connection has ended: nothing is to be kept of it."""

    def _listen(self, anew: bool) -> None:
        """Wait for input: each block of content has its time, and so has each command as a whole. Hot path."""
        if not (self._reading or self._unsent):
            self._reading = True
            self._io.start(self._on_readable)
        now_s = time.monotonic()
        if self.machine.state in RECEIVING:
            if self._content_until_s == inf or (anew and self.machine.state == CONTENT):
                self._content_until_s = now_s + self._timeouts.transaction
            self._deadline_s = min(now_s + self._timeouts.data, self._content_until_s)
        elif anew:
            self._content_until_s = inf
            self._deadline_s = now_s + self._timeouts.command
        if self._deadline_s < self._timer_at_s:
            self._start_timer(now_s)

    def _await(self, readable: Callable[[], None]) -> None:
        """Have `readable` called for input, within the time of a handshake; but for output that waits first."""
        self._on_readable = readable
        if not self._unsent:
            if self._reading:
                self._io.stop()
            self._reading = True
            self._io.start(readable)
        now_s = time.monotonic()
        self._deadline_s = now_s + self._timeouts.handshake
        self._start_timer(now_s)

    # -- output -----------------------------------------------------------------------------------------------------

    def _go_on(self, *, anew: bool = False) -> None:
        """Say what there is to say, and wait for what comes of it; `anew`: with the time of a new wait. Hot path."""
        data = self.machine.output()
        if data:
            anew = True
            if self._tls is not None:
                data = self._tls.encrypt(data)
            if not self._send(data):
                return
            if self.machine.state == CLOSED:
                self._said_last()
                return
        self._listen(anew)

    def _say_rest(self, data: bytes) -> None:
        """The client has to take more of our output before anything else is done."""
        self._unsent = data
        now_s = time.monotonic()
        self._deadline_s = now_s + (CLOSING_S if self.machine.state == CLOSED else self._timeouts.command)
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
                if not self._talks:
                    self._await(self._on_readable)
                elif self.machine.state == CLOSED:
                    self._said_last()
                elif not self._storing:
                    self._listen(anew=True)
        except BlockingIOError:
            pass
        except OSError:
            self._end()
        except Exception:
            self._failed()

    def _send(self, data: bytes) -> bool:
        """Send `data` as it is; whether the client has taken all that we ever said. Hot path."""
        if self._unsent:
            self._unsent += data
            return False
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._say_rest(data[sent:])
            return False
        return True

    def _send_own(self, tls: ServerTls) -> None:
        """Send what belongs to TLS itself, if there is anything. Hot path."""
        data = tls.output()
        if data:
            self._send(data)

    # -- the end ------------------------------------------------------------------------------------------------

    def _said_last(self) -> None:
        """Close; but see that our last reply is not lost by a reset, if the client may still be sending."""
        if self._by_client:
            if self._tls is not None:
                try:
                    self._sock.send(self._tls.farewell())
                except OSError:
                    pass  # it does not wait for it
            self._end()
            return
        self._parting = True
        if self._tls is not None:
            try:
                self._sock.send(self._tls.farewell())
            except BlockingIOError:
                pass  # it will see that the connection is closed
        self._sock.shutdown(_SHUT_WR)
        now_s = time.monotonic()
        self._deadline_s = now_s + CLOSING_S
        self._start_timer(now_s)
        self._io.stop()
        self._reading = True
        self._on_readable = self._drop
        self._io.start(self._drop)

    def _drop(self) -> None:
        """Read what still comes, and drop it where it is (tcp(7), MSG_TRUNC): garbage is not even copied."""
        try:
            dropped = self._sock.recv_into(_NOWHERE, 0, _MSG_TRUNC)
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        self._dropped += dropped
        if not dropped or self._dropped >= DROPPED_AT_THE_END:
            self._end()

    def _end(self) -> None:
        if self._sock is None:
            return
        if self._timer is not None:
            self._timer.close()
        self._io.close()
        self._sock.close()
        self._sock = None
        self._tls = None
        self._on_readable = _nothing_to_read  # we are no longer in our own hands
        self._gone()

    # -- time ---------------------------------------------------------------------------------------------------

    def _time_passed(self) -> None:
        now_s = time.monotonic()
        if now_s < self._deadline_s:
            self._start_timer(now_s)
        elif self._parting or self._unsent or not self._talks:
            self._end()  # it had its time to take our words, or to say its first
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

    # -- when something goes wrong ----------------------------------------------------------------------------------

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
        self._listener.memory.failed("there is no memory", time.monotonic())

    def _failed(self) -> None:
        log.exception("bug: %r ends", self.machine)
        self._end()
