"""What one incoming session keeps in mind, and the commands that belong to no transaction.

The ground that `mta.smtp.server` stands on, which has the theory: the states and the one way into each, the replies,
and the counts of errors and of commands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, TypeAlias

from mta.smtp import replies
from mta.smtp.data import ChunkReader, DataReader
from mta.smtp.envelope import Envelope
from mta.smtp.events import Closed, ServerEvent
from mta.smtp.login import Login
from mta.smtp.peer import Peer, Rights
from mta.smtp.settings import ServerSettings
from mta.smtp.xclient import HELO_NAME

State: TypeAlias = str
START: Final = "start"
READY: Final = "ready"
MAIL: Final = "mail"
RCPT: Final = "rcpt"
CONTENT: Final = "content"
CHUNK: Final = "chunk"
CHUNKED: Final = "chunked"
AUTH: Final = "auth"
PAUSED: Final = "paused"
TLS: Final = "tls"
CLOSED: Final = "closed"
RECEIVING: Final = frozenset((CONTENT, CHUNK, CHUNKED))
_WITHOUT_ENVELOPE: Final = frozenset((START, READY, AUTH, PAUSED, TLS, CLOSED))

LONG_AT_ONCE = 10  # commands of one group that take half a millisecond each, before others have their turn
SKIP_LIMIT = 1_000_000  # octets of one over-long line that are read and dropped before the session ends

Handler: TypeAlias = Callable[[Any, bytes], None]
"""Does what a command with its argument means; the first is the machine."""


class Conversation:
    """One incoming session, but for what `Receiving` and `Identifying` know. Not made by itself."""

    __slots__ = (
        "_before_chunk", "_chunk_refusal", "_coming", "_commands", "_envelope", "_errors", "_esmtp", "_events",
        "_failures", "_handlers", "_held", "_helo", "_last_chunk", "_login", "_long", "_more", "_no_memory", "_offers",
        "_reader", "_replies", "_rest", "_rights", "_settings", "_skipped", "_stopping", "chunk_left", "peer", "state",
    )  # fmt: skip

    HANDLERS: ClassVar[Mapping[State, Mapping[bytes, Handler]]]
    """What every command does in each state; none where no command is expected."""

    def __init__(self, settings: ServerSettings, peer: Peer) -> None:
        self.peer = peer
        self._settings = settings
        self._offers = settings.offers(peer)
        self._rights: Rights | None = None  # of this peer; None: not asked yet
        self._helo = ""
        self._esmtp = False
        self._envelope: Envelope | None = None
        self._reader: DataReader | ChunkReader | None = None
        self.chunk_left = 0  # octets of the chunk under way that have not come
        self._last_chunk = False  # it is the last one
        self._before_chunk: State = START  # where a chunk that is refused leads back to
        self._chunk_refusal = b""  # what it is answered, when nothing of it is kept
        self._held = 0  # octets that are counted in the budget for the message under way
        self._coming = -1  # the number of the message under way in `settings.coming`
        self._no_memory = False  # the content under way is not kept
        self._errors = 0  # since the last message accepted
        self._commands = 0  # likewise, those that start no message
        self._failures = 0  # logins that were refused
        self._login: Login | None = None  # the one under way
        self._events: list[ServerEvent] = []
        self._replies: list[bytes] = []
        self._rest = b""  # input that could not be used yet: an incomplete line, or all while PAUSED
        self._skipped = 0  # octets dropped of the line that is too long
        self._more = False  # there is input behind the command at hand
        self._long = 0  # commands that took long, since others had their turn
        self._stopping: bytes | None = None
        self._enter(START)

    def __repr__(self) -> str:
        return f"<Server: {self.state}, client {self._helo or '?'} [{self.peer.address}]:{self.peer.port}>"

    @property
    def idle(self) -> bool:
        """Whether no transaction is under way."""
        return self.state in (START, READY)

    @property
    def receiving(self) -> bool:
        """Whether content of a message is being received."""
        return self.state in RECEIVING

    @property
    def helo(self) -> str:
        """What the client calls itself; empty until it said."""
        return self._helo

    def greet(self) -> None:
        """Begin: the greeting is to be written."""
        self._replies.append(self._settings.greeting)

    # -- states and replies -----------------------------------------------------------------------------------------

    def _enter(self, state: State) -> None:
        self.state = state
        self._handlers = self.HANDLERS[state]
        if state in _WITHOUT_ENVELOPE:
            if self._envelope is not None:
                self._transaction_ended()
            if self._held and state != PAUSED:
                self._release()
            if self._stopping is not None and state == READY:
                self._close(self._stopping)

    def _close(self, reply: bytes, *, by_client: bool = False) -> None:
        self._replies.append(reply)
        self._reader = self._login = None
        self._enter(CLOSED)
        self._events.append(Closed(by_client))

    def _refuse(self, reply: bytes, *, counts: bool = True) -> None:
        """Answer no. The error that crosses the limit ends the session; what is none counts as a command that starts no
        message."""
        if counts:
            self._errors += 1
            if self._errors > self._settings.errors:
                self._close(replies.TOO_MANY_ERRORS)
                return
        elif self._starts_no_message():
            return
        self._replies.append(reply)

    def _starts_no_message(self) -> bool:
        """Count a command of that kind. Whether it was one too many, and the session is over."""
        self._commands += 1
        if self._commands > self._settings.commands:
            self._close(replies.TOO_MANY_COMMANDS)
            return True
        return False

    def _release(self) -> None:
        self._settings.budget.give_back(self._held)
        self._held = 0

    def _transaction_ended(self) -> None:
        self._envelope = self._reader = None
        self._settings.coming.end(self._coming)

    # -- who it is --------------------------------------------------------------------------------------------------

    def _become(self, peer: Peer) -> None:
        self.peer = peer
        self._rights = None
        self._offers = self._settings.offers(peer)

    def _ask_rights(self) -> Rights:
        self._rights = self._settings.permissions.rights_of(self.peer)
        return self._rights

    # -- commands ---------------------------------------------------------------------------------------------------

    def _unknown(self, verb: bytes) -> None:
        if verb in (b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"):
            self._close(replies.NOT_HTTP)
        else:
            self._refuse(replies.UNKNOWN)

    def _do_ehlo(self, argument: bytes) -> None:
        self._hello(argument, esmtp=True)

    def _do_helo(self, argument: bytes) -> None:
        self._hello(argument, esmtp=False)

    def _hello(self, argument: bytes, *, esmtp: bool) -> None:
        if self._more:
            self._close(replies.OUT_OF_TURN)
        elif not self._starts_no_message():
            name = argument.strip(b" ")
            if HELO_NAME.fullmatch(name) is None:
                self._refuse(replies.BAD_HELO)
                return
            self._helo = name.decode()
            self._esmtp = esmtp
            self._replies.append(self._offers.ehlo() if esmtp else self._settings.helo)
            self._enter(READY)

    def _do_rset(self, argument: bytes) -> None:
        if argument.strip(b" "):
            self._refuse(replies.NO_ARGUMENT)
        elif not self._starts_no_message():
            self._replies.append(replies.OK)
            self._enter(START if self.state == START else READY)

    def _do_noop(self, argument: bytes) -> None:
        if not self._starts_no_message():
            self._replies.append(replies.OK)

    def _do_help(self, argument: bytes) -> None:
        if not self._starts_no_message():
            self._replies.append(self._offers.help)

    def _do_vrfy(self, argument: bytes) -> None:
        if not argument.strip(b" "):
            self._refuse(replies.NEEDS_ARGUMENT)
        elif not self._starts_no_message():
            self._replies.append(replies.NOT_VERIFIED)

    def _do_quit(self, argument: bytes) -> None:
        if argument.strip(b" "):
            self._refuse(replies.NO_ARGUMENT)
        else:
            self._close(replies.BYE, by_client=True)
