"""One session of a client: its socket, and the server machine that says what is to be said (`mta.smtp.server`).

A session is no greenlet but a handful of callbacks: everything in it happens in the order in which it came, and it
waits for one thing at a time, for input, for room to write, for the store (until the message is durable), or for a
login to be looked at. Replies to a pipelined group leave in one write. That is cheaper per message by a fifth than a
greenlet, and an idle client costs its socket and a few hundred bytes.

* The socket is a plain non-blocking one. Its watcher runs as long as the session waits for input; while the store works
  it is stopped only if something comes, as from most clients nothing does.
* Deadlines cost nothing per wait: a session notes when its patience ends, and one timer looks at that note when it
  might have come to pass. While the store works there is no deadline: the client's patience decides (RFC 5321
  4.5.3.2.6 gives it ten minutes).
* TLS runs on memory buffers (`mta.inject.servertls`) between socket and machine. Without it nothing is different.
* Whether the client is still there when `250` is written is not asked: see `mta.smtp.server`.
* A session that we end is not simply closed: unread input would make the kernel send a reset, which may overtake our
  last reply. Our side is shut first, and for a moment what still comes is read and dropped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gevent.hub import get_hub

from mta.inject import proxyheader
from mta.inject.intake import Source
from mta.inject.logins import Keys, Outcome
from mta.inject.proxyheader import V2_LIMIT, ProxyHeaderError
from mta.inject.servertls import ServerTls, TlsError
from mta.inject.usage import Account
from mta.smtp.envelope import Envelope
from mta.smtp.events import Authenticate, Closed, MessageReceived, PeerChanged, ServerEvent, StartTls
from mta.smtp.peer import Identity, Peer
from mta.smtp.reply import Reply
from mta.smtp.server import CLOSED, CONTENT, TLS, Server

if TYPE_CHECKING:
    from mta.inject.listener import SmtpListener

_SHUT_WR: Final = 1
_READ: Final = 1  # libev's EV_READ and EV_WRITE
_WRITE: Final = 2

CHUNK = 65_536
CLOSING_S = 5.0  # patience with a client that is to take our last reply
DROPPED_AT_THE_END = 1_000_000  # octets read and dropped after our last reply

_STOPPING: Final = Reply(421, "4.3.2", ("The server is going down, try again later",))
_TIMEOUT: Final = Reply(421, "4.4.2", ("Timeout, closing the connection",))
_LOCAL_ERROR: Final = Reply(451, "4.3.0", ("Local error, try again later",))
_TOO_MANY_OF_USER: Final = Reply(421, "4.7.0", ("Too many sessions of this user",))
_NOTHING: Final = object()

log = logging.getLogger(__name__)


def _nothing_to_read() -> None:
    """The session is over."""


class Session:
    """One connection of a client. All methods are callbacks on the hub, of the socket, the timer, the store and the
    listener: each does what can be done at once, and none waits.
    """

    __slots__ = (
        "_accounts", "_answer", "_balancer", "_by_client", "_content_until_s", "_deadline_s", "_dropped", "_input",
        "_io", "_limits", "_listener", "_on_readable", "_parting", "_permissions", "_reading", "_sessions_of",
        "_settings", "_sock", "_source", "_storing", "_talks", "_tick_s", "_timer", "_timer_at_s", "_tls", "_unsent",
        "client", "machine",
    )  # fmt: skip

    def __init__(self, listener: SmtpListener, sock: Any, peer: Peer, *, balancer: bool) -> None:
        """`balancer`: it is a load balancer, which is going to say who the client is."""
        self.client = peer.address  # by which it is counted; what the machine knows may become another one
        self._listener = listener
        self._permissions = listener.permissions
        self._settings = listener.settings
        self._limits = listener.limits
        self.machine = Server(self._settings, peer)
        self._sock = sock
        self._io = get_hub().loop.io(sock.fileno(), _READ)
        self._reading = False  # the watcher runs, for input
        self._on_readable: Callable[[], None] = self._readable
        self._tls: ServerTls | None = None
        self._talks = False  # the greeting was said, and no handshake is under way
        self._balancer = balancer
        self._input = b""  # of a PROXY header, which is not whole yet; then what came behind it
        self._unsent = b""  # output that the client has not taken: until it has, nothing else is done
        self._storing = False  # the store works on a message, or a login is looked at: what the client sends waits
        self._answer: Any = _NOTHING  # what `submit` said to a message before it returned; or what a login came to
        self._parting = False  # our side is shut, and what the client still sends is dropped
        self._dropped = 0
        self._by_client = False  # it said QUIT
        # With the name and the peer that it was made with: both may change.
        self._source: tuple[str, Peer, Source] | None = None
        self._accounts: tuple[Account, ...] = ()  # that messages are counted for; made with the source
        self._sessions_of: Account | None = None  # the user for whom this session counts
        self._content_until_s = math.inf  # when the whole content of the present message must be there
        self._deadline_s = math.inf
        # The timer never sleeps longer than the shortest patience, so it is early for every deadline but odd ones.
        self._tick_s = min(self._limits.timeouts.command, self._limits.timeouts.data)
        self._timer: Any = None
        self._timer_at_s = math.inf

    def __repr__(self) -> str:
        return f"<Session: {self.machine!r}>"

    # -- called by the listener ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Greet, and listen; but for who has to say something first."""
        if self._balancer:
            self._await(self._proxy_readable)
        else:
            self._guard(self._begin)

    def stop(self) -> None:
        """End the session as soon as no transaction is under way."""
        self.machine.stop(_STOPPING)
        if self.machine.state == CLOSED and not self._parting:
            if self._talks:
                self._guard(self._go_on)
            else:
                self._end()  # it cannot be told, as it expects something else

    def cut_off(self) -> None:
        """End the session now, unless it waits for the store: then the answer to the message ends it."""
        if not self._talks:
            self._end()
        elif not self._storing:
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
        self._listener.memory.failed("there is no memory", time.monotonic())

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
            elif self._tls is None:
                self._took(data)
            else:
                self._take_ciphertext(data)
        except BlockingIOError:
            pass
        except OSError:
            self._end()
        except MemoryError:
            self._no_memory()
        except Exception:
            self._failed()

    def _took(self, data: bytes) -> None:
        """The client's words. Hot path."""
        events = self.machine.receive(data)
        if events:
            self._act(events)
        if not self._storing and self._sock is not None:
            self._go_on()

    def _act(self, events: list[ServerEvent]) -> None:
        """Have messages stored, and go on with what was held behind them, until the store has to work. Hot path."""
        while events:
            event = events.pop(0)
            if isinstance(event, MessageReceived):
                self._answer = _NOTHING
                self._deadline_s = self._content_until_s = math.inf
                self._submit(event)
                if self._answer is _NOTHING:
                    self._storing = True
                    return
                events += self.machine.answer(self._answer)
            elif isinstance(event, Authenticate):
                self._answer = _NOTHING
                self._deadline_s = math.inf
                self._listener.logins.attempt(
                    event.attempt, self.machine.peer, self._listener.name, self._permissions, self._decided)
                if self._answer is _NOTHING:
                    self._storing = True
                    return
                events += self._log_in(self._answer)
            elif isinstance(event, Closed):
                self._by_client = event.by_client
            elif isinstance(event, StartTls):
                self._start_tls()
            else:
                events += self._speaks_for(event)

    def _submit(self, event: MessageReceived) -> None:
        """Hand a message over; `_answer` is set if that is done at once. Hot path."""
        envelope, answered = event.envelope, self._answered
        source = self._source_of(envelope)
        try:
            if self._accounts:
                refusal = self._listener.usage.admit(self._accounts, len(envelope.recipients), len(event.content))
                if refusal is not None:
                    log.info("refused: a message of [%s]: %s", self.client or "local", refusal.lines[0])
                    self._answer = refusal
                    return
                answered = partial(self._answered_counted, self._accounts, len(envelope.recipients))
            self._listener.submit(envelope, event.content, source, answered)
        except MemoryError:
            self._listener.memory.failed("there is no memory to take a message", time.monotonic())
            self._answer = _LOCAL_ERROR
        except Exception:
            log.exception("bug: a message of %r was not taken", self.machine)
            self._answer = _LOCAL_ERROR

    def _answered_counted(self, accounts: tuple[Account, ...], recipients: int, reply: Reply) -> None:
        """As below, of a message that counts for somebody."""
        if not reply.positive:
            self._listener.usage.give_back(accounts, recipients)
        self._answered(reply)

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

    def _decided(self, outcome: Outcome) -> None:
        """What became of a login."""
        if not self._storing:
            self._answer = outcome
        elif self._sock is None:
            self._storing = False  # the client did not wait for it
        else:
            self._storing = False
            self._guard(self._go_on_after, outcome)

    def _go_on_after(self, outcome: Outcome) -> None:
        self._act(self._log_in(outcome))
        if not self._storing:
            self._go_on()

    def _log_in(self, outcome: Outcome) -> list[ServerEvent]:
        if isinstance(outcome, Keys):
            return self.machine.keys_found(outcome.keys)
        if isinstance(outcome, Identity):
            refusal = self._enter_as(outcome)
            return self.machine.authenticated(outcome) if refusal is None else self.machine.refused(refusal)
        return self.machine.refused(outcome)

    def _speaks_for(self, event: PeerChanged) -> list[ServerEvent]:
        """The client speaks for somebody else (XCLIENT)."""
        peer = self.machine.peer
        log.debug("[%s] speaks for [%s]", event.before.address, peer.address)
        self._leave_user()
        refusal = self._enter_as(peer.identity) if peer.identity is not None else None
        return self.machine.close(refusal) if refusal is not None else []

    def _enter_as(self, identity: Identity) -> Reply | None:
        """Count the session for a user; the refusal if it has too many."""
        self._leave_user()
        account = self._listener.account_of(identity)
        if account is not None and account.allowance.sessions is not None:
            if not self._listener.usage.enter(account):
                log.info("refused: a session of [%s]: too many of %s", self.client or "local", account.words)
                return _TOO_MANY_OF_USER
            self._sessions_of = account
        return None

    def _leave_user(self) -> None:
        if self._sessions_of is not None:
            self._listener.usage.leave(self._sessions_of)
            self._sessions_of = None

    def _go_on(self) -> None:
        """Say what there is to say, and wait for what comes of it. Hot path."""
        output = self.machine.output()
        if output:
            self._say(output)
        else:
            self._listen(anew=False)

    def _say(self, data: bytes) -> None:
        """Send `data`, then listen again. Hot path."""
        if self._tls is not None:
            data = self._tls.encrypt(data)
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
                if not self._talks:
                    self._await(self._on_readable)
                elif self.machine.state != CLOSED:
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
            self._io.start(self._on_readable)
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
        known, peer = self._source, self.machine.peer
        if known is None or known[0] != envelope.helo or known[1] is not peer:
            source, self._accounts = self._listener.source_of(peer, envelope.helo)
            known = self._source = (envelope.helo, peer, source)
        return known[2]

    # -- before the conversation, and TLS -------------------------------------------------------------------------

    def _await(self, readable: Callable[[], None]) -> None:
        """Have `readable` called for input, within the time of a handshake."""
        if self._reading:
            self._io.stop()
        self._on_readable = readable
        self._reading = True
        self._io.start(readable)
        now_s = time.monotonic()
        self._deadline_s = now_s + self._limits.timeouts.handshake
        self._start_timer(now_s)

    def _proxy_readable(self) -> None:
        """A piece of the PROXY header. No more is read than there can be of it: what follows may be TLS."""
        self._guard(self._read_proxy_header)

    def _read_proxy_header(self) -> None:
        try:
            data = self._sock.recv(V2_LIMIT)
        except BlockingIOError:
            return
        self._input += data
        try:
            header = proxyheader.read(self._input)
        except ProxyHeaderError as error:
            log.warning("[%s] is in proxy_from: %s", self.client, error)
            self._end()
            return
        if header is None:
            if not data:
                self._end()
            return
        self._input = self._input[header.size :]
        if header.client is not None and not self._listener.entered(self, *header.client):
            return
        self._balancer = False
        self._begin()

    def _begin(self) -> None:
        """The client is known: greet, or do the handshake first. A client that has nothing to say goes by itself."""
        if self._listener.contexts is not None and self._listener.implicit_tls:
            self._tls = ServerTls(self._listener.contexts)
            self._await(self._handshake_readable)
            self._shake_hands(self._input)
            return
        if self._reading:
            self._io.stop()
            self._reading = False
            self._on_readable = self._readable
        self._talks = True
        rest, self._input = self._input, b""
        self._say(self.machine.greeting())
        if rest:  # it did not wait for the greeting: as with others, that is read as if it had
            self._took(rest)

    def turn_away(self, reply: bytes) -> None:
        """There is no room for the client of the balancer."""
        self._send_raw(reply)
        self._end()

    def is_from(self, peer: Peer) -> None:
        """The balancer has said for whom it speaks."""
        self.client = peer.address
        self.machine = Server(self._settings, peer)

    def _start_tls(self) -> None:
        """STARTTLS: our last words in clear, then the handshake. Nothing of it was read yet: what stood behind the
        command was refused by the machine (RFC 3207 6, CVE-2011-0411)."""
        assert self._listener.contexts is not None
        self._say(self.machine.output())
        self._talks = False
        self._tls = ServerTls(self._listener.contexts)
        if self._unsent:
            self._on_readable = self._handshake_readable  # once the client has taken them
        else:
            self._await(self._handshake_readable)

    def _handshake_readable(self) -> None:
        self._guard(self._read_handshake)

    def _read_handshake(self) -> None:
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        if data:
            self._shake_hands(data)
        else:
            self._end()

    def _shake_hands(self, data: bytes) -> None:
        assert self._tls is not None
        self._input = b""
        try:
            done = self._tls.shake_hands(data)
        except TlsError as error:
            log.info("no TLS with [%s]: %s", self.client, error)
            self._send_raw(self._tls.output())
            self._end()
            return
        self._send_raw(self._tls.output())
        if done and self._sock is not None:
            self._handshake_done(self._tls)

    def _handshake_done(self, session: ServerTls) -> None:
        tls, names = session.description()
        before = self.machine.peer
        peer = replace(before, tls=tls, identity=None)
        identity = self._listener.user_of_certificate(names, peer)
        refusal = self._enter_as(identity) if identity is not None else None
        self._await(self._readable)
        self._talks = True
        if self.machine.state == TLS:
            self._act(self.machine.tls_started(tls, identity))
            if refusal is not None:
                self.machine.close(refusal)
            if not self._storing:
                self._say_or_listen()
        else:
            self.machine = Server(self._settings, replace(peer, identity=identity))
            if refusal is not None:
                self.machine.close(refusal)
                self._go_on()
            else:
                self._say(self.machine.greeting())
        if not self._parting:
            self._take_ciphertext(b"")  # what came with the last of the handshake

    def _say_or_listen(self) -> None:
        output = self.machine.output()
        if output:
            self._say(output)
        else:
            self._listen(anew=True)

    def _take_ciphertext(self, data: bytes) -> None:
        assert self._tls is not None
        if self._sock is None:
            return
        try:
            text, ended = self._tls.decrypt(data)
        except TlsError as error:
            log.info("TLS with [%s] ends: %s", self.client or "local", error)
            self._end()
            return
        self._send_raw(self._tls.output())
        if text:
            self._took(text)
        if ended:
            self._end()

    def _send_raw(self, data: bytes) -> None:
        """Send what is encrypted, or belongs to TLS itself. A client that does not even take that is gone."""
        if not data:
            return
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._say_rest(data[sent:])

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
        if not self._reading:
            self._reading = True
            self._io.start(self._on_readable)

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
        self._leave_user()
        self.machine.gone()
        self._listener.ended(self)

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
