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
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mta.inject.connection import CHUNK
from mta.inject.intake import Source
from mta.inject.logins import Keys, Outcome
from mta.inject.opening import Opening
from mta.inject.usage import Account
from mta.smtp.envelope import Envelope
from mta.smtp.events import Authenticate, Closed, MessageReceived, PeerChanged, ServerEvent, StartTls, TakesLong
from mta.smtp.peer import Identity, Peer
from mta.smtp.reply import Reply
from mta.smtp.server import CLOSED

if TYPE_CHECKING:
    from mta.inject.listener import SmtpListener

_STOPPING: Final = Reply(421, "4.3.2", ("The server is going down, try again later",))
_LOCAL_ERROR: Final = Reply(451, "4.3.0", ("Local error, try again later",))
_TOO_MANY_OF_USER: Final = Reply(421, "4.7.0", ("Too many sessions of this user",))
_NOTHING: Final = object()
GROUP: Final = 8192  # octets of commands at once that may stand in line, as IDNA may: 1,000 RCPT take 3 ms
IN_LINE: Final = 200  # sessions with that in hand, which is up to 64 KB each

log = logging.getLogger(__name__)


class Session(Opening):
    """One connection of a client. All methods are callbacks on the hub, of the socket, the timer, the store and the
    listener: each does what can be done at once, and none waits.
    """

    __slots__ = ("_accounts", "_answer", "_permissions", "_sessions_of", "_source")

    def __init__(self, listener: SmtpListener, sock: Any, peer: Peer, *, balancer: bool) -> None:
        """`balancer`: it is a load balancer, which is going to say who the client is."""
        super().__init__(listener, sock, peer, balancer=balancer)
        self._permissions = listener.permissions
        self._answer: Any = _NOTHING  # what `submit` said to a message before it returned; or what a login came to
        # With the name and the peer that it was made with: both may change.
        self._source: tuple[str, Peer, Source] | None = None
        self._accounts: tuple[Account, ...] = ()  # that messages are counted for; made with the source
        self._sessions_of: Account | None = None  # the user for whom this session counts

    # -- called by the listener ---------------------------------------------------------------------------------

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
        if (len(data) > GROUP or not data.isascii()) and not self.machine.receiving:
            burst = self._listener.burst
            if burst.is_over() and len(burst) < IN_LINE:
                self._storing = True  # as far as reading goes
                burst.later(self._take_in_turn, data)
                return
        events = self.machine.receive(data)
        if not events:
            self._go_on()
            return
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
            elif isinstance(event, TakesLong):
                self._storing = True  # as far as reading goes
                self._listener.burst.later(self._go_on_in_turn)
                return
            elif isinstance(event, Closed):
                self._by_client = event.by_client
            elif isinstance(event, StartTls):
                self._start_tls()
            else:
                events += self._speaks_for(event)

    def _take_in_turn(self, data: bytes) -> None:
        """Commands that take a while, of which others had as many just before."""
        self._storing = False
        if self._sock is not None and self.machine.state != CLOSED:
            self._guard(self._go_on_with, partial(self.machine.receive, data))

    def _go_on_in_turn(self) -> None:
        """The rest of a group that takes long."""
        self._storing = False
        if self._sock is not None and self.machine.state != CLOSED:
            self._guard(self._go_on_with, self.machine.go_on)

    def _go_on_with(self, step: Callable[[], list[ServerEvent]]) -> None:
        self._act(step())
        if not self._storing:
            self._go_on()

    def _submit(self, event: MessageReceived) -> None:
        """Hand a message over; `_answer` is set if that is done at once. Hot path."""
        envelope, answered = event.envelope, self._answered
        source = self._source_of(envelope)
        try:
            if self._accounts:
                refusal = self._listener.usage.admit(self._accounts, len(envelope.recipients), len(event.content))
                if refusal is not None:
                    self._tell("mail", refusal.lines[0])
                    self._answer = refusal
                    return
                answered = partial(self._answered_counted, self._accounts, len(envelope.recipients))
            self._listener.submit(envelope, event.content, source, answered)
        except MemoryError:
            self._listener.memory.failed("there is no memory to take a message", time.monotonic())
            answered(_LOCAL_ERROR)
        except Exception:
            log.exception("bug: a message of %r was not taken", self.machine)
            answered(_LOCAL_ERROR)

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
        if self._sock is None:
            return  # the client did not wait for it
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
            self._guard(self._go_on_with, partial(self._log_in, outcome))

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
        refusal = self._enter_as(peer.identity)
        return self.machine.close(refusal) if refusal is not None else []

    def _enter_as(self, identity: Identity | None) -> Reply | None:
        """Count the session for a user, or for none any more; the refusal if it has too many."""
        self._leave_user()
        account = self._listener.account_of(identity) if identity is not None else None
        if account is not None and account.allowance.sessions is not None:
            if not self._listener.usage.enter(account):
                self._tell("session", f"too many of {account.words}")
                return _TOO_MANY_OF_USER
            self._sessions_of = account
        return None

    def _tell(self, what: str, why: str) -> None:
        peer = self.machine.peer
        self._listener.logins.incidents.refused(what, peer.address, self._listener.name, why,
                                                user=peer.identity.user if peer.identity is not None else "")

    def _leave_user(self) -> None:
        if self._sessions_of is not None:
            self._listener.usage.leave(self._sessions_of)
            self._sessions_of = None

    def _source_of(self, envelope: Envelope) -> Source:
        known, peer = self._source, self.machine.peer
        if known is None or known[0] != envelope.helo or known[1] is not peer:
            source, self._accounts = self._listener.source_of(peer, envelope.helo)
            known = self._source = (envelope.helo, peer, source)
        return known[2]

    def _gone(self) -> None:
        self._leave_user()
        self.machine.gone()
        self._listener.ended(self)
