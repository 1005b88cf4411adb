"""The server's side of one SMTP connection, without the connection: bytes in, events and replies out.

Theory of operation
-------------------
The caller owns the socket and the clock. It writes `greeting`, feeds what it reads to `receive`, acts on the events
and writes what `output` gives: one write for all replies of a pipelined group. When a message has come the event is
`MessageReceived` and the machine is PAUSED: it holds whatever the client sent behind the message until the caller
says with `answer` what became of it (I1: `250` only once it is durable). Likewise with `StartTls` and `Authenticate`,
which have answers of their own (`mta.smtp.events`). `Closed` means: write the output, then close.

The state is one of the names below, and `_HANDLERS` says for each state what every command does in it. All rules on
the order of commands are in that table; the functions in it know only what their command means. A state is entered by
`_enter` alone, and the envelope exists in MAIL, RCPT and CONTENT only: whatever ends a transaction forgets it.

    START    nothing but the greeting was said            EHLO, HELO -> READY
    READY    no transaction                               MAIL -> MAIL
    MAIL     a sender, no recipient                       RCPT -> RCPT     RSET, EHLO, HELO -> READY
    RCPT     a sender and recipients                      DATA -> CONTENT  BDAT -> CHUNK  RSET, EHLO, HELO -> READY
    CONTENT  the content of the message                   CRLF.CRLF -> PAUSED, or READY when it is refused
    CHUNK    a piece of the content of known size         its end -> CHUNKED, or as CONTENT when it was the last
    CHUNKED  some chunks have come                        BDAT -> CHUNK    RSET, EHLO, HELO -> READY
    AUTH     a response of the client's is expected       a response -> PAUSED, AUTH, or READY when it is no good
    PAUSED   the caller has something to decide           `answer`, `authenticated`, `refused`, `keys_found`
    TLS      the caller starts TLS                        `tls_started` -> START
    CLOSED   it is over

Decisions where the standards leave room
----------------------------------------
* Lines end with CRLF and only CRLF.CRLF ends content. A bare LF in a command is answered `521 5.5.2` and the
  connection closed at once, before a CRLF comes: the client has another idea of lines than we, and what follows might
  be a message to it and commands to us. In content a bare CR, bare LF or NUL is refused after the end of data with
  `550 5.6.0`; the session stays in step and goes on.
* Input behind EHLO, HELO, DATA or AUTH, before they were answered, breaks RFC 2920 3.1: `554 5.5.0` and the end. A
  client that writes a message without waiting for `354` has it read as commands when DATA is refused.
* A client that speaks HTTP is answered `521` at the first word; a browser can be made to send anything behind it.
* Commands other than EHLO and HELO want a greeting first (503), but for NOOP, RSET, HELP, VRFY, EXPN and QUIT.
* MAIL inside a transaction is 503 and changes nothing. DATA without an accepted recipient is `554 5.5.1`, and the
  transaction stays open, as the client may try another recipient.
* Errors are counted since the last message accepted (as Postfix does), so that a session that lives for days may have
  a bad address now and then. Only 5xx counts: a 4xx is our own state, and counted with the commands that start no
  message, so that a client that overlooks it does not go on for ever. So are RCPT and DATA that are out of place: they
  come in groups behind a MAIL that was refused. The refusal that crosses a limit is itself the 421.
* Enhanced codes stand in all replies but the greeting and those to EHLO and HELO (RFC 2034 4), and 3xx has none.
* A space behind `FROM:` and `TO:` is overlooked, addresses without angle brackets are not.
* Nothing is taken that was not offered (`mta.smtp.extensions`): a verb is `502 5.5.1`, a parameter `555 5.5.4`. What
  EHLO would offer counts, so that a client that said HELO may still give a SIZE.
* Input behind STARTTLS in the same read would be taken as if it had come under TLS (CVE-2011-0411): it is out of turn
  like input behind EHLO, and the session ends before TLS starts. TLS makes us forget all that the client said before,
  a login included (RFC 3207 4.2).
* AUTH wants an EHLO and no transaction, and happens once. A login that is refused counts as an error, and the session
  ends at `auth_failures` of them; so do responses that are none. A client that cancels has done no wrong.
* The octets of a chunk that is refused are read and dropped, then it is answered. A message whose chunk was refused is
  forgotten: what follows of it is `503`. A BDAT whose size cannot be read is the end of the session.
* A client that is trusted to (XCLIENT) may say for whom it speaks; then the session begins anew, with a greeting.
* What a client may send its `Rights` say. They are looked up once, and again when it becomes another `Peer`.
* Content above the limit is read and dropped, and answered `552 5.3.4`. A message and its SIZE are counted as RFC 1870
  6.1 does, with line ends and without stuffing.
* All sessions together hold a bounded amount of content (`mta.smtp.budget`). A message counts with the size that its
  MAIL declares, and MAIL is answered `452 4.3.1` when there is no room for it. One that turns out to be larger and
  finds no room is read to its end, not kept, and answered the same. So nobody waits for room that others hold.

Whether the client is still there when the `250` is written is not asked: if it is not, it will send the message
again, and no answer of ours could tell it otherwise (RFC 5321 6.1).

Cost: 20 µs for a transaction of 5 KB with one recipient (tests/smtp/timing.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

from mta.queue.records import Recipient
from mta.smtp import replies, sasl
from mta.smtp.address import AddressError, parse_path
from mta.smtp.data import ChunkReader, DataReader
from mta.smtp.envelope import Envelope, ParameterError, read_mail_parameters, read_rcpt_parameters
from mta.smtp.errors import LocalProtocolError
from mta.smtp.events import Authenticate, Closed, MessageReceived, PeerChanged, ServerEvent, StartTls
from mta.smtp.login import Login, begin
from mta.smtp.peer import Identity, Peer, Rights, Tls
from mta.smtp.reply import Reply
from mta.smtp.settings import ServerSettings
from mta.smtp.xclient import HELO_NAME, AttributeValueError, read_attributes

__all__ = [
    "Authenticate", "Closed", "Envelope", "MessageReceived", "Peer", "PeerChanged", "Server", "ServerEvent",
    "ServerSettings", "StartTls",
]  # fmt: skip

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

SKIP_LIMIT = 1_000_000  # octets of one over-long command line that are read and dropped before the session ends
RESPONSE_LIMIT = 12_288  # octets of a line of AUTH, RFC 4954 4


class Server:
    """One incoming session. The module's docstring says how it works."""

    __slots__ = (
        "_before_chunk", "_chunk_refusal", "_coming", "_commands", "_envelope", "_errors", "_esmtp", "_events",
        "_failures", "_handlers", "_held", "_helo", "_last_chunk", "_login", "_more", "_no_memory", "_offers",
        "_reader", "_replies", "_rest", "_rights", "_settings", "_skipped", "_stopping", "chunk_left", "peer", "state",
    )  # fmt: skip

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
        self._stopping: bytes | None = None
        self._enter(START)

    def __repr__(self) -> str:
        return f"<Server: {self.state}, client {self._helo or '?'} [{self.peer.address}]:{self.peer.port}>"

    # -- what the caller does ---------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no transaction is under way."""
        return self.state in (START, READY)

    @property
    def receiving(self) -> bool:
        """Whether content of a message is being received."""
        return self.state in (CONTENT, CHUNK, CHUNKED)

    @property
    def helo(self) -> str:
        """What the client calls itself; empty until it said."""
        return self._helo

    def greeting(self) -> bytes:
        """The first thing to be written."""
        return self._settings.greeting

    def receive(self, data: bytes) -> list[ServerEvent]:
        """Take bytes of the client. While PAUSED they are only kept, so do not read then.

        Hot path: once per message and command (tests/smtp/timing.py).
        """
        if self._rest:
            data = self._rest + data
        self._process(data)
        events = self._events
        if events:
            self._events = []
        return events

    def output(self) -> bytes:
        """The replies that are to be written now."""
        replies = self._replies
        if len(replies) == 1:
            return replies.pop()
        output = b"".join(replies)
        replies.clear()
        return output

    def answer(self, reply: Reply) -> list[ServerEvent]:
        """Say what became of the message, and go on with what the client sent behind it."""
        if self.state != PAUSED or self._login is not None:
            raise LocalProtocolError(f"no message waits for an answer: {self!r}")
        if reply.positive:
            self._errors = self._commands = 0
            self._replies.append(reply.to_bytes())
            self._enter(READY)
        elif reply.code == 421:
            self._close(reply.to_bytes())
        else:
            self._reject(reply.to_bytes(), counts=reply.code >= 500)
        return self.receive(b"")

    def tls_started(self, tls: Tls, identity: Identity | None = None) -> list[ServerEvent]:
        """The handshake that `StartTls` asked for is done. `identity`: of a client whose certificate is a login."""
        if self.state != TLS:
            raise LocalProtocolError(f"no TLS was asked for: {self!r}")
        self._helo = ""
        self._esmtp = False
        self._become(replace(self.peer, tls=tls, identity=identity))
        self._enter(START)
        if self._stopping is not None:
            self._close(self._stopping)
        return self.receive(b"")

    def keys_found(self, keys: sasl.ScramKeys | None) -> list[ServerEvent]:
        """The keys of the user of a `ScramAttempt`; None: there is no such user, which the client is not told."""
        login = self._login
        if login is None or not isinstance(login.waiting_for, sasl.ScramAttempt):
            raise LocalProtocolError(f"no keys were asked for: {self!r}")
        self._challenge(login.found(keys))
        return self.receive(b"")

    def authenticated(self, identity: Identity) -> list[ServerEvent]:
        """The attempt is good: the client is this user."""
        if self._login is None or not self._login.can_be_good:
            raise LocalProtocolError(f"no login that could be good: {self!r}")
        last_words = self._login.grant(identity)
        if last_words:
            self._challenge(last_words)
        else:
            self._login_done(identity)
        return self.receive(b"")

    def refused(self, reply: Reply | None = None) -> list[ServerEvent]:
        """The attempt is no good, for `reply`, or `535 5.7.8`. 421 ends the session."""
        if self._login is None or self._login.waiting_for is None:
            raise LocalProtocolError(f"no login waits for an answer: {self!r}")
        if reply is not None and reply.code == 421:
            self._close(reply.to_bytes())
        elif reply is not None and reply.code < 500:
            self._login_failed(reply.to_bytes(), counts=False)
        else:
            self._login_failed(replies.AUTH_REFUSED if reply is None else reply.to_bytes())
        return self.receive(b"")

    def gone(self) -> None:
        """The connection has ended: forget what has come of a message."""
        self._login = None
        self._release()
        self._transaction_ended()

    def stop(self, reply: Reply) -> list[ServerEvent]:
        """End the session with `reply` (421) as soon as no transaction is under way."""
        self._stopping = reply.to_bytes()
        if self.idle:
            self._close(self._stopping)
        events, self._events = self._events, []
        return events

    def close(self, reply: Reply) -> list[ServerEvent]:
        """End the session with `reply` (421) now."""
        if self.state != CLOSED:
            self._close(reply.to_bytes())
        events, self._events = self._events, []
        return events

    # -- lines and content ------------------------------------------------------------------------------------------

    def _process(self, data: bytes) -> None:
        """Use as much of the input as the state allows, keep the rest. Hot path."""
        position = 0
        while True:
            handlers = self._handlers
            if not handlers:  # no command is expected
                if self.state == CONTENT:
                    assert isinstance(self._reader, DataReader)
                    position = self._reader.feed(data, position)
                    if position >= 0:
                        self._content_ended(self._reader)
                        continue
                    self._count(self._reader)
                elif self.state == CHUNK:
                    position = self._take_chunk(data, position)
                    if self.state != CHUNK:
                        continue
                elif self.state == AUTH:
                    position = self._take_response(data, position)
                    if position >= 0:
                        continue
                    return
                self._rest = data[position:] if self.state == PAUSED else b""
                return
            end = data.find(b"\r\n", position)
            if end < 0:
                if position == len(data):
                    self._rest = b""
                else:
                    self._line_begun(data[position:])
                return
            line = data[position:end]
            position = end + 2
            if 10 in line:
                self._close(replies.BARE_LF)
                continue
            if self._skipped or (len(line) > self._settings.command_length - 2 and not _is_auth(line)):
                self._skipped = 0
                self._refuse(replies.LINE_TOO_LONG)
                continue
            self._more = position < len(data)
            verb, _, argument = line.partition(b" ")
            handler = handlers.get(verb.upper())
            if handler is not None:
                handler(self, argument)
            else:
                self._unknown(verb)

    def _line_begun(self, rest: bytes) -> None:
        """The input ends inside a line."""
        if b"\n" in rest:
            self._close(replies.BARE_LF)
        elif self._skipped or (len(rest) > self._settings.command_length and not _is_auth(rest)):
            self._skipped += len(rest)
            rest = b"\r" if rest.endswith(b"\r") else b""
            if self._skipped > SKIP_LIMIT:
                self._close(replies.LINE_WITHOUT_END)
        self._rest = rest

    def _take_response(self, data: bytes, position: int) -> int:
        """A response of AUTH begins at `position`: the offset behind it, or -1 when it is not complete."""
        end = data.find(b"\r\n", position)
        if end < 0:
            rest = data[position:]
            if b"\n" in rest:
                self._close(replies.BARE_LF)
            elif self._skipped or len(rest) > RESPONSE_LIMIT + 1:
                self._skipped += len(rest)
                rest = b"\r" if rest.endswith(b"\r") else b""
                if self._skipped > SKIP_LIMIT:
                    self._close(replies.LINE_WITHOUT_END)
            self._rest = rest
            return -1
        line = data[position:end]
        if b"\n" in line:
            self._close(replies.BARE_LF)
        elif end + 2 < len(data):
            self._close(replies.OUT_OF_TURN)
        elif self._skipped or len(line) > RESPONSE_LIMIT:
            self._skipped = 0
            self._login_failed(replies.AUTH_TOO_LONG)
        elif line == b"*":
            self._refuse(replies.AUTH_CANCELLED, counts=False)
            if self.state != CLOSED:
                self._login_over()
        else:
            assert self._login is not None
            self._responded(self._login, line)
        return end + 2

    def _take_chunk(self, data: bytes, position: int) -> int:
        """A piece of a chunk begins at `position`: the offset behind it."""
        piece = data[position : position + self.chunk_left] if position or len(data) > self.chunk_left else data
        self.chunk_left -= len(piece)
        reader = self._reader
        if reader is not None and piece:
            assert isinstance(reader, ChunkReader)
            reader.feed(piece)
            self._count(reader)
        if not self.chunk_left:
            self._chunk_ended(reader)
        return position + len(piece)

    def _chunk_ended(self, reader: ChunkReader | DataReader | None) -> None:
        if reader is None:
            refusal, self._chunk_refusal = self._chunk_refusal, b""
            self._refuse(refusal, counts=False)
            if self.state != CLOSED:
                self._enter(self._before_chunk)
            return
        assert isinstance(reader, ChunkReader)
        if self._last_chunk:
            reader.end()
        if self._last_chunk or self._no_memory or reader.too_big or reader.fault:
            self._content_ended(reader)
        else:
            self._enter(CHUNKED)
            self._replies.append(replies.CHUNK_TAKEN)

    def _count(self, reader: DataReader | ChunkReader) -> None:
        """A piece of content has come."""
        budget = self._settings.budget
        more = reader.kept - self._held
        if more > 0:
            if budget.take(more):
                self._held += more
            else:
                reader.drop()
                self._no_memory = True
                self._release()

    def _release(self) -> None:
        self._settings.budget.give_back(self._held)
        self._held = 0

    def _content_ended(self, reader: DataReader | ChunkReader) -> None:
        envelope = self._envelope
        assert envelope is not None
        self._reader = None
        if self._no_memory:
            self._no_memory = False
            self._reject(replies.NO_MEMORY, counts=False)
        elif reader.too_big:
            self._reject(replies.TOO_BIG)
        elif reader.fault:
            self._reject(replies.bad_content(reader.fault))
        else:
            envelope.dotless = reader.dotless
            self._enter(PAUSED)
            self._events.append(MessageReceived(envelope, reader.content()))

    def _reject(self, reply: bytes, *, counts: bool = True) -> None:
        """Refuse a message after its content."""
        self._refuse(reply, counts=counts)
        if self.state != CLOSED:
            self._enter(READY)

    def _transaction_ended(self) -> None:
        if self._envelope is not None:
            self._envelope = self._reader = None
            self._settings.coming.end(self._coming)

    # -- states and replies -----------------------------------------------------------------------------------------

    def _enter(self, state: State) -> None:
        self.state = state
        self._handlers = _HANDLERS[state]
        if state in _WITHOUT_ENVELOPE:
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

    def _do_mail(self, argument: bytes) -> None:
        """MAIL. Hot path."""
        if argument[:5].upper() != b"FROM:":
            self._refuse(replies.MAIL_SYNTAX)
            return
        start = 6 if argument[5:6] == b" " else 5
        try:
            sender, end = parse_path(argument, start)
        except AddressError as error:
            self._refuse(replies.bad_address("5.1.7", f"Bad sender: {error}"))
            return
        envelope = Envelope(sender.text, helo=self._helo, esmtp=self._esmtp)
        if end != len(argument):
            try:
                read_mail_parameters(envelope, argument[end:], self._offers)
            except ParameterError as error:
                self._refuse(error.reply.to_bytes())
                return
            if envelope.size > self._settings.message_size:
                self._refuse(replies.TOO_BIG)
                return
        if not (envelope.smtputf8 or envelope.sender.isascii()):
            self._refuse(replies.NEEDS_SMTPUTF8)
            return
        refusal = (self._rights or self._ask_rights()).check_sender(sender)
        if refusal is not None:
            self._refuse(refusal.to_bytes(), counts=refusal.code >= 500)
            return
        if self._settings.intake_closed is not None:
            closed = self._settings.intake_closed()
            if closed is not None:
                self._refuse(closed.to_bytes(), counts=False)
                return
        size = envelope.size or self._settings.unknown
        if not self._settings.budget.take(size):
            self._refuse(replies.NO_MEMORY, counts=False)
            return
        self._held = size
        self._envelope = envelope
        self._coming = self._settings.coming.begin()
        self._enter(MAIL)
        self._replies.append(replies.SENDER_OK)

    def _do_rcpt(self, argument: bytes) -> None:
        """RCPT. Hot path."""
        if argument[:3].upper() != b"TO:":
            self._refuse(replies.RCPT_SYNTAX)
            return
        start = 4 if argument[3:4] == b" " else 3
        try:
            address, end = parse_path(argument, start)
        except AddressError as error:
            self._refuse(replies.bad_address("5.1.3", f"Bad recipient: {error}"))
            return
        envelope = self._envelope
        settings = self._settings
        assert envelope is not None
        if not address.local:
            self._refuse(replies.bad_address("5.1.3", "Bad recipient: the null path takes no mail"))
            return
        if not address.domain:
            address.domain = settings.hostname
        recipient = Recipient(address.text)
        if end != len(argument):
            try:
                read_rcpt_parameters(recipient, argument[end:], utf8=envelope.smtputf8, offers=self._offers)
            except ParameterError as error:
                self._refuse(error.reply.to_bytes())
                return
        if not (envelope.smtputf8 or recipient.address.isascii()):
            self._refuse(replies.NEEDS_SMTPUTF8)
            return
        assert self._rights is not None
        refusal = self._rights.check_recipient(address)
        if refusal is not None:
            self._refuse(refusal.to_bytes(), counts=refusal.code >= 500)
            return
        if len(envelope.recipients) >= settings.recipients:
            self._refuse(replies.TOO_MANY_RECIPIENTS, counts=False)
            return
        envelope.recipients.append(recipient)
        self._enter(RCPT)
        self._replies.append(replies.RECIPIENT_OK)

    def _do_data(self, argument: bytes) -> None:
        if self._more:
            self._close(replies.OUT_OF_TURN)
        elif argument.strip(b" "):
            self._refuse(replies.NO_ARGUMENT)
        elif self._envelope is not None and self._envelope.binary:
            self._refuse(replies.BINARY_NEEDS_BDAT)
        else:
            self._reader = DataReader(self._settings.message_size, self._settings.line_length)
            self._enter(CONTENT)
            self._replies.append(replies.START_MAIL)

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

    def _do_bdat(self, argument: bytes) -> None:
        """BDAT (RFC 3030 2): chunks may come without a wait, as we know where they end."""
        match = _CHUNK.fullmatch(argument)
        if b"BDAT" not in self._offers.verbs or match is None:
            self._close(replies.BDAT_SYNTAX)
            return
        self.chunk_left = int(match[1])
        self._last_chunk = match[2] is not None
        if self.state in (RCPT, CHUNKED):
            assert self._envelope is not None
            if self.chunk_left == 0 and not self._last_chunk and self._starts_no_message():
                return
            if self._reader is None:
                settings = self._settings
                self._reader = ChunkReader(settings.message_size, settings.line_length, binary=self._envelope.binary)
        else:
            self._chunk_refusal = {
                START: replies.EHLO_FIRST, READY: replies.MAIL_FIRST, MAIL: replies.NO_RECIPIENT,
            }[self.state]  # fmt: skip
            self._before_chunk = self.state
        self._enter(CHUNK)

    # -- who it is --------------------------------------------------------------------------------------------------

    def _become(self, peer: Peer) -> None:
        self.peer = peer
        self._rights = None
        self._offers = self._settings.offers(peer)

    def _ask_rights(self) -> Rights:
        self._rights = self._settings.permissions.rights_of(self.peer)
        return self._rights

    def _do_starttls(self, argument: bytes) -> None:
        """STARTTLS (RFC 3207 4)."""
        if self.peer.tls is not None:
            self._refuse(replies.TLS_ALREADY)
        elif b"STARTTLS" not in self._offers.verbs:
            self._refuse(replies.NOT_HERE)
        elif self._more:
            self._close(replies.OUT_OF_TURN)
        elif argument.strip(b" "):
            self._refuse(replies.NO_ARGUMENT)
        elif not self._starts_no_message():
            self._replies.append(replies.START_TLS)
            self._enter(TLS)
            self._events.append(StartTls())

    def _do_auth(self, argument: bytes) -> None:
        """AUTH (RFC 4954 4)."""
        name, _, initial = argument.strip(b" ").partition(b" ")
        if self.peer.identity is not None:
            self._refuse(replies.AUTH_ALREADY)
        elif b"AUTH" not in self._offers.verbs:
            missing_tls = self._settings.mechanisms and self.peer.tls is None
            self._refuse(replies.AUTH_NEEDS_TLS if missing_tls else replies.NOT_HERE)
        elif not self._esmtp:
            self._refuse(replies.AUTH_NEEDS_EHLO)
        elif self._more:
            self._close(replies.OUT_OF_TURN)
        elif not name:
            self._refuse(replies.AUTH_SYNTAX)
        else:
            mechanism = name.decode("ascii", "replace").upper()
            self._login = begin(mechanism, self._offers, self.peer, self._settings)
            if self._login is None:
                self._refuse(replies.AUTH_UNKNOWN)
            elif initial:
                self._responded(self._login, b"" if initial == b"=" else initial)
            else:
                self._challenge(self._login.first_challenge)

    def _challenge(self, text: bytes) -> None:
        self._replies.append(b"334 " + sasl.encode(text) + b"\r\n")
        self._enter(AUTH)

    def _responded(self, login: Login, line: bytes) -> None:
        """The client gives a response."""
        try:
            answer = login.respond(line)
        except sasl.MalformedResponseError as error:
            self._login_failed(replies.bad_response(str(error)))
            return
        if isinstance(answer, bytes):
            self._challenge(answer)
        elif isinstance(answer, Identity):
            self._login_done(answer)
        else:
            self._enter(PAUSED)
            self._events.append(Authenticate(answer))

    def _login_done(self, identity: Identity) -> None:
        self._become(replace(self.peer, identity=identity))
        self._failures = 0
        self._replies.append(replies.AUTHENTICATED)
        self._login_over()

    def _login_failed(self, reply: bytes, *, counts: bool = True) -> None:
        self._failures += counts
        if self._failures > self._settings.auth_failures:
            self._close(replies.TOO_MANY_LOGINS)
            return
        self._refuse(reply, counts=counts)
        if self.state != CLOSED:
            self._login_over()

    def _login_over(self) -> None:
        """Forget the exchange."""
        self._login = None
        self._enter(READY)

    def _do_xclient(self, argument: bytes) -> None:
        """XCLIENT: the session begins anew, for another client."""
        if not self.peer.may_xclient:
            self._refuse(replies.XCLIENT_REFUSED)
        elif self._more:
            self._close(replies.OUT_OF_TURN)
        else:
            before = self.peer
            try:
                peer, helo = read_attributes(argument, before, self._helo)
            except AttributeValueError as error:
                self._refuse(replies.bad_xclient(str(error)))
                return
            if self._starts_no_message():
                return
            self._become(peer)
            self._helo = helo
            self._esmtp = False
            self._replies.append(self._settings.greeting)
            self._enter(START)
            self._events.append(PeerChanged(before))


_CHUNK: Final = re.compile(rb"[ ]*([0-9]{1,20})(?:[ ]+([Ll][Aa][Ss][Tt]))?[ ]*")


def _is_auth(line: bytes) -> bool:
    """Whether a line that is longer than commands may be is one, as AUTH may have a long initial response."""
    return line[:5].upper() == b"AUTH " and len(line.removesuffix(b"\r")) <= RESPONSE_LIMIT


Handler: TypeAlias = Callable[[Server, bytes], None]


def _always(reply: bytes) -> Handler:
    """The handler of a command that is refused whatever its argument is."""
    return lambda server, argument: server._refuse(reply)


def _rcpt_refused(reply: bytes) -> Handler:
    """RCPT without MAIL: mostly the wake of a MAIL that was refused, and counted, in the same group. So no error."""
    return lambda server, argument: None if server._starts_no_message() else server._replies.append(reply)


def _data_refused(reply: bytes) -> Handler:
    """DATA out of place, likewise; but who sends content behind it is cut off, or it would be read as commands."""
    refused = _rcpt_refused(reply)
    return lambda server, argument: server._close(replies.OUT_OF_TURN) if server._more else refused(server, argument)


def _out_of_place(verb: bytes, reply: bytes) -> Handler:
    """The handler of an extension's command where it cannot be said now; what is not offered never can."""
    return lambda server, argument: server._refuse(reply if verb in server._offers.verbs else replies.NOT_HERE)


_EVERYWHERE: dict[bytes, Handler] = {
    b"EHLO": Server._do_ehlo,
    b"HELO": Server._do_helo,
    b"RSET": Server._do_rset,
    b"NOOP": Server._do_noop,
    b"HELP": Server._do_help,
    b"VRFY": Server._do_vrfy,
    b"QUIT": Server._do_quit,
    b"BDAT": Server._do_bdat,
    **dict.fromkeys((b"EXPN", b"ETRN", b"TURN", b"ATRN", b"SEND", b"SOML", b"SAML"), _always(replies.NOT_HERE)),
}
_OUTSIDE: dict[bytes, Handler] = _EVERYWHERE | {b"XCLIENT": Server._do_xclient}
_INSIDE: dict[bytes, Handler] = _EVERYWHERE | {
    b"MAIL": _always(replies.NESTED),
    **{verb: _out_of_place(verb, replies.IN_TRANSACTION) for verb in (b"STARTTLS", b"AUTH", b"XCLIENT")},
}
_HANDLERS: dict[State, dict[bytes, Handler]] = {
    START: _OUTSIDE | {
        **{verb: _out_of_place(verb, replies.EHLO_FIRST) for verb in (b"STARTTLS", b"AUTH")},
        b"MAIL": _always(replies.EHLO_FIRST),
        b"RCPT": _rcpt_refused(replies.EHLO_FIRST),
        b"DATA": _data_refused(replies.EHLO_FIRST),
    },
    READY: _OUTSIDE | {
        b"STARTTLS": Server._do_starttls,
        b"AUTH": Server._do_auth,
        b"MAIL": Server._do_mail,
        b"RCPT": _rcpt_refused(replies.MAIL_FIRST),
        b"DATA": _data_refused(replies.MAIL_FIRST),
    },
    MAIL: _INSIDE | {b"RCPT": Server._do_rcpt, b"DATA": _data_refused(replies.NO_RECIPIENT)},
    RCPT: _INSIDE | {b"RCPT": Server._do_rcpt, b"DATA": Server._do_data},
    CHUNKED: _INSIDE | {b"RCPT": _always(replies.CHUNKS_ONLY), b"DATA": _always(replies.CHUNKS_ONLY)},
    **{state: {} for state in (CONTENT, CHUNK, AUTH, PAUSED, TLS, CLOSED)},
}  # fmt: skip
_WITHOUT_ENVELOPE: Final = frozenset((START, READY, AUTH, PAUSED, TLS, CLOSED))
