"""The server's side of one SMTP connection, without the connection: bytes in, events and replies out.

Theory of operation
-------------------
The caller owns the socket and the clock. It has it `greet`, feeds what it reads to `receive`, acts on the events
and writes what `output` gives: one write for all replies of a pipelined group. When a message has come the event is
`MessageReceived` and the machine is PAUSED: it holds whatever the client sent behind the message until the caller
says with `answer` what became of it (I1: `250` only once it is durable). Likewise with `StartTls` and `Authenticate`,
which have answers of their own (`mta.smtp.events`). `Closed` means: write the output, then close.

The state is one of the names below, and the table in `mta.smtp.order` says for each state what every command does in
it. All rules on the order of commands are in that table; the functions in it know only what their command means: those
on messages are in `mta.smtp.receiving`, those on who the client is in `mta.smtp.identifying`, the others in
`mta.smtp.conversation`. A state is entered by `_enter` alone, and the envelope exists in MAIL, RCPT, CONTENT, CHUNK
and CHUNKED only: whatever ends a transaction forgets it.

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
* Of a binary message (BODY=BINARYMIME) the header lines are text all the same, and looked at like others.
* The octets of a chunk that is refused are read and dropped, then it is answered. A message whose chunk was refused is
  forgotten: what follows of it is `503`. A BDAT whose size cannot be read is the end of the session.
* A client that is trusted to (XCLIENT) may say for whom it speaks; then the session begins anew, with a greeting.
* What a client may send its `Rights` say. They are looked up once, and again when it becomes another `Peer`.
* Content above the limit is read and dropped, and answered `552 5.3.4`. A message and its SIZE are counted as RFC 1870
  6.1 does, with line ends and without stuffing.
* All sessions together hold a bounded amount of content (`mta.smtp.budget`). A message counts with the size that its
  MAIL declares, once it has a recipient, so that strangers take no room; MAIL, or RCPT, is answered `452 4.3.1` when
  there is none for it. One that turns out to be larger and finds no room is read to its end, not kept, and answered the
  same. So nobody waits for room that others hold.
* An address beyond ASCII takes up to a millisecond. After ten of them in a group of commands the caller is asked to let
  others have their turn (`TakesLong`): hundreds fit into one packet.

Whether the client is still there when the `250` is written is not asked: if it is not, it will send the message
again, and no answer of ours could tell it otherwise (RFC 5321 6.1).

Cost: 20 µs for a transaction of 5 KB with one recipient (tests/smtp/timing.py).
"""

from __future__ import annotations

from dataclasses import replace

from mta.smtp import order, replies, sasl
from mta.smtp.conversation import (
    AUTH,
    CHUNK,
    CHUNKED,
    CLOSED,
    CONTENT,
    LONG_AT_ONCE,
    MAIL,
    PAUSED,
    RCPT,
    READY,
    SKIP_LIMIT,
    START,
    TLS,
)
from mta.smtp.data import DataReader
from mta.smtp.envelope import Envelope
from mta.smtp.errors import LocalProtocolError
from mta.smtp.events import Authenticate, Closed, MessageReceived, PeerChanged, ServerEvent, StartTls, TakesLong
from mta.smtp.identifying import Identifying, is_auth
from mta.smtp.peer import Identity, Peer, Tls
from mta.smtp.receiving import Receiving
from mta.smtp.reply import Reply
from mta.smtp.settings import ServerSettings

__all__ = [
    "AUTH", "CHUNK", "CHUNKED", "CLOSED", "CONTENT", "MAIL", "PAUSED", "RCPT", "READY", "SKIP_LIMIT", "START", "TLS",
    "Authenticate", "Closed", "Envelope", "MessageReceived", "Peer", "PeerChanged", "Server", "ServerEvent",
    "ServerSettings", "StartTls", "TakesLong",
]  # fmt: skip


class Server(Receiving, Identifying):
    """One incoming session. The module's docstring says how it works."""

    __slots__ = ()
    HANDLERS = order.HANDLERS

    # -- what the caller does ---------------------------------------------------------------------------------------

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
        if self._rest:
            return self.receive(b"")
        events, self._events = self._events, []
        return events

    def go_on(self) -> list[ServerEvent]:
        """Others had their turn: take what is left of the group that takes long."""
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
        if self._envelope is not None:
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
            if self._skipped or (len(line) > self._settings.command_length - 2 and not is_auth(line)):
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
            if not self._more:
                if self.state != CHUNK:  # one may be empty
                    self._rest = b""
                    return
            elif self._long >= LONG_AT_ONCE and self._handlers:
                self._long = 0
                self._rest = data[position:]
                self._events.append(TakesLong())
                return

    def _line_begun(self, rest: bytes) -> None:
        """The input ends inside a line."""
        if b"\n" in rest:
            self._close(replies.BARE_LF)
            rest = b""
        elif self._skipped or (len(rest) > self._settings.command_length and not is_auth(rest)):
            self._skipped += len(rest)
            rest = b"\r" if rest.endswith(b"\r") else b""
            if self._skipped > SKIP_LIMIT:
                self._close(replies.LINE_WITHOUT_END)
        self._rest = rest
