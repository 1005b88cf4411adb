"""The server's side of one SMTP connection, without the connection: bytes in, events and replies out.

Theory of operation
-------------------
The caller owns the socket and the clock. It writes `greeting`, feeds what it reads to `receive`, acts on the events
and writes what `output` gives: one write for all replies of a pipelined group. When a message has come the event is
`MessageReceived` and the machine is PAUSED: it holds whatever the client sent behind the message until the caller
says with `answer` what became of it (I1: `250` only once it is durable). `Closed` means: write the output,
then close.

The state is one of the names below, and `_HANDLERS` says for each state what every command does in it. All rules on
the order of commands are in that table; the functions in it know only what their command means. A state is entered by
`_enter` alone, and the envelope exists in MAIL, RCPT and CONTENT only: whatever ends a transaction forgets it.

    START    nothing but the greeting was said            EHLO, HELO -> READY
    READY    no transaction                               MAIL -> MAIL
    MAIL     a sender, no recipient                       RCPT -> RCPT     RSET, EHLO, HELO -> READY
    RCPT     a sender and recipients                      DATA -> CONTENT  RSET, EHLO, HELO -> READY
    CONTENT  the content of the message                   CRLF.CRLF -> PAUSED, or READY when it is refused
    PAUSED   the caller has the message                   `answer` -> READY
    CLOSED   it is over

Decisions where the standards leave room
----------------------------------------
* Lines end with CRLF and only CRLF.CRLF ends content. A bare LF in a command is answered `521 5.5.2` and the
  connection closed at once, before a CRLF comes: the client has another idea of lines than we, and what follows might
  be a message to it and commands to us. In content a bare CR, bare LF or NUL is refused after the end of data with
  `550 5.6.0`; the session stays in step and goes on.
* Input behind EHLO, HELO, DATA or BDAT, before they were answered, breaks RFC 2920 3.1: `554 5.5.0` and the end. A
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
* STARTTLS and AUTH are known, not offered, and `502 5.5.1`. BDAT too, and then the connection is closed, because its
  chunk cannot be told from commands.
* Who may not relay is refused at RCPT, `postmaster` too: this is no host that takes mail for itself.
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
from dataclasses import dataclass
from math import inf
from typing import Final, TypeAlias

from mta.queue.records import Recipient
from mta.smtp.address import Address, AddressError, parse_path
from mta.smtp.budget import UNKNOWN, Budget
from mta.smtp.coming import Coming
from mta.smtp.data import DataReader
from mta.smtp.envelope import Envelope, ParameterError, read_mail_parameters, read_rcpt_parameters
from mta.smtp.errors import LocalProtocolError
from mta.smtp.reply import Reply

__all__ = ["Closed", "Envelope", "MessageReceived", "Peer", "Server", "ServerEvent", "ServerSettings"]

State: TypeAlias = str
START: Final = "start"
READY: Final = "ready"
MAIL: Final = "mail"
RCPT: Final = "rcpt"
CONTENT: Final = "content"
PAUSED: Final = "paused"
CLOSED: Final = "closed"

SKIP_LIMIT = 1_000_000  # octets of one over-long command line that are read and dropped before the session ends


@dataclass(frozen=True, slots=True)
class Peer:
    """The client of a session."""

    address: str
    port: int
    may_relay: bool  # whether it may send to any domain; else every recipient is refused


class ServerSettings:
    """What the sessions of one listener have in common. Made once, with the replies that depend on it."""

    __slots__ = (
        "budget", "check_recipient", "coming", "command_length", "commands", "ehlo", "errors", "greeting", "helo",
        "hostname", "intake_closed", "line_length", "message_size", "recipients", "unknown",
    )  # fmt: skip

    def __init__(
        self,
        hostname: str,
        *,
        message_size: int = 50_000_000,
        recipients: int = 1000,
        line_length: int = 998,
        command_length: int = 2048,
        errors: int = 20,
        commands: int = 1000,
        check_recipient: Callable[[Address], Reply | None] | None = None,
        intake_closed: Callable[[], Reply | None] | None = None,
        budget: Budget | None = None,
        coming: Coming | None = None,
    ) -> None:
        """The limits are those of `mta.config.schema.SmtpIn`. `budget` is what all sessions hold together, and
        `coming` counts their transactions.

        `check_recipient` may refuse a recipient; `intake_closed` is asked at every MAIL and may refuse it, with
        `452 4.3.1` when there is no room.
        """
        self.hostname = hostname
        self.message_size = message_size
        self.recipients = recipients
        self.line_length = line_length
        self.command_length = command_length
        self.errors = errors
        self.commands = commands
        self.check_recipient = check_recipient
        self.intake_closed = intake_closed
        self.budget = budget or Budget(inf)
        self.coming = coming or Coming()
        self.unknown = min(UNKNOWN, message_size)
        self.greeting = Reply(220, "", (f"{hostname} ESMTP",)).to_bytes()
        self.helo = Reply(250, "", (hostname,)).to_bytes()
        offers = (
            hostname, "PIPELINING", f"SIZE {message_size}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN",
            f"LIMITS RCPTMAX={recipients}", "HELP",
        )  # fmt: skip
        self.ehlo = Reply(250, "", offers).to_bytes()


@dataclass(slots=True)
class MessageReceived:
    """A whole message has come. `answer` it."""

    envelope: Envelope
    content: bytes  # not stuffed, CRLF line ends, without NUL; ends with CRLF unless it is empty


@dataclass(slots=True)
class Closed:
    """The session is over. Write the output and close."""

    by_client: bool  # it said QUIT; else something was wrong with it, and it may still be sending


ServerEvent: TypeAlias = MessageReceived | Closed


def _reply(code: int, enhanced: str, *lines: str) -> bytes:
    return Reply(code, enhanced, lines).to_bytes()


_OK = _reply(250, "2.0.0", "Ok")
_SENDER_OK = _reply(250, "2.1.0", "Ok")
_RECIPIENT_OK = _reply(250, "2.1.5", "Ok")
_START_MAIL = _reply(354, "", "End data with <CR><LF>.<CR><LF>")
_BYE = _reply(221, "2.0.0", "Bye")
_VRFY = _reply(252, "2.5.0", "Not verified; send the message and see")
_HELP = _reply(
    214, "2.0.0",
    "EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT",
    "RFC 5321, 1870, 2034, 2920, 3461, 6152, 6531",
)  # fmt: skip
_UNKNOWN = _reply(500, "5.5.1", "Unknown command")
_NOT_HERE = _reply(502, "5.5.1", "Not available")
_LINE_TOO_LONG = _reply(500, "5.5.2", "Line too long")
_NO_ARGUMENT = _reply(501, "5.5.4", "No argument allowed")
_NEEDS_ARGUMENT = _reply(501, "5.5.4", "An argument is needed")
_BAD_HELO = _reply(501, "", "A host name or address literal is needed")
_MAIL_SYNTAX = _reply(501, "5.5.4", "Syntax: MAIL FROM:<address> [parameters]")
_RCPT_SYNTAX = _reply(501, "5.5.4", "Syntax: RCPT TO:<address> [parameters]")
_EHLO_FIRST = _reply(503, "5.5.1", "Send EHLO or HELO first")
_NESTED = _reply(503, "5.5.1", "A transaction is open; send RSET first")
_MAIL_FIRST = _reply(503, "5.5.1", "Send MAIL first")
_NO_RECIPIENT = _reply(554, "5.5.1", "No valid recipients")
_NO_RELAY = _reply(550, "5.7.1", "Relaying denied")
_NO_MEMORY = _reply(452, "4.3.1", "Too much mail is being received at once, try again later")
_TOO_MANY_RECIPIENTS = _reply(452, "4.5.3", "Too many recipients")
_NEEDS_SMTPUTF8 = _reply(553, "5.6.7", "An address beyond ASCII needs SMTPUTF8")
_TOO_BIG = _reply(552, "5.3.4", "The message is too big")
_TOO_MANY_ERRORS = _reply(421, "4.7.0", "Too many errors")
_TOO_MANY_COMMANDS = _reply(421, "4.7.0", "Too many commands without a message")
_LINE_WITHOUT_END = _reply(421, "4.7.0", "Line too long")
_BARE_LF = _reply(521, "5.5.2", "Bare line feed; lines end with CR LF")
_OUT_OF_TURN = _reply(554, "5.5.0", "Input before the reply to the last command; see RFC 2920 3.1")
_NOT_HTTP = _reply(521, "5.5.1", "This is SMTP")

_HELO_NAME = re.compile(rb"[A-Za-z0-9\[](?:[A-Za-z0-9._:\]-]{0,254})")


class Server:
    """One incoming session. The module's docstring says how it works."""

    __slots__ = (
        "_coming", "_commands", "_envelope", "_errors", "_esmtp", "_events", "_handlers", "_held", "_helo", "_more",
        "_no_memory", "_reader", "_replies", "_rest", "_settings", "_skipped", "_stopping", "peer", "state",
    )  # fmt: skip

    def __init__(self, settings: ServerSettings, peer: Peer) -> None:
        self.peer = peer
        self._settings = settings
        self._helo = ""
        self._esmtp = False
        self._envelope: Envelope | None = None
        self._reader: DataReader | None = None
        self._held = 0  # octets that are counted in the budget for the message under way
        self._coming = -1  # the number of the message under way in `settings.coming`
        self._no_memory = False  # the content under way is not kept
        self._errors = 0  # since the last message accepted
        self._commands = 0  # likewise, those that start no message
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
        if self.state != PAUSED:
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

    def gone(self) -> None:
        """The connection has ended: forget what has come of a message."""
        self._reader = None
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
                    assert self._reader is not None
                    position = self._reader.feed(data, position)
                    if position >= 0:
                        self._content_ended(self._reader)
                        continue
                    self._count(self._reader)
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
                self._close(_BARE_LF)
                continue
            if self._skipped or len(line) > self._settings.command_length - 2:
                self._skipped = 0
                self._refuse(_LINE_TOO_LONG)
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
            self._close(_BARE_LF)
        elif self._skipped or len(rest) > self._settings.command_length:
            self._skipped += len(rest)
            rest = b"\r" if rest.endswith(b"\r") else b""
            if self._skipped > SKIP_LIMIT:
                self._close(_LINE_WITHOUT_END)
        self._rest = rest

    def _count(self, reader: DataReader) -> None:
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

    def _content_ended(self, reader: DataReader) -> None:
        envelope = self._envelope
        assert envelope is not None
        self._reader = None
        if self._no_memory:
            self._no_memory = False
            self._reject(_NO_MEMORY, counts=False)
        elif reader.too_big:
            self._reject(_TOO_BIG)
        elif reader.fault:
            self._reject(_reply(550, "5.6.0", reader.fault))
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
            self._envelope = None
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
        self._reader = None
        self._enter(CLOSED)
        self._events.append(Closed(by_client))

    def _refuse(self, reply: bytes, *, counts: bool = True) -> None:
        """Answer no. The error that crosses the limit ends the session; what is none counts as a command that starts no
        message."""
        if counts:
            self._errors += 1
            if self._errors > self._settings.errors:
                self._close(_TOO_MANY_ERRORS)
                return
        elif self._starts_no_message():
            return
        self._replies.append(reply)

    def _starts_no_message(self) -> bool:
        """Count a command of that kind. Whether it was one too many, and the session is over."""
        self._commands += 1
        if self._commands > self._settings.commands:
            self._close(_TOO_MANY_COMMANDS)
            return True
        return False

    # -- commands ---------------------------------------------------------------------------------------------------

    def _unknown(self, verb: bytes) -> None:
        if verb in (b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"):
            self._close(_NOT_HTTP)
        else:
            self._refuse(_UNKNOWN)

    def _do_ehlo(self, argument: bytes) -> None:
        self._hello(argument, esmtp=True)

    def _do_helo(self, argument: bytes) -> None:
        self._hello(argument, esmtp=False)

    def _hello(self, argument: bytes, *, esmtp: bool) -> None:
        if self._more:
            self._close(_OUT_OF_TURN)
        elif not self._starts_no_message():
            name = argument.strip(b" ")
            if _HELO_NAME.fullmatch(name) is None:
                self._refuse(_BAD_HELO)
                return
            self._helo = name.decode()
            self._esmtp = esmtp
            self._replies.append(self._settings.ehlo if esmtp else self._settings.helo)
            self._enter(READY)

    def _do_mail(self, argument: bytes) -> None:
        """MAIL. Hot path."""
        if argument[:5].upper() != b"FROM:":
            self._refuse(_MAIL_SYNTAX)
            return
        start = 6 if argument[5:6] == b" " else 5
        try:
            sender, end = parse_path(argument, start)
        except AddressError as error:
            self._refuse(_reply(501, "5.1.7", f"Bad sender: {error}"))
            return
        envelope = Envelope(sender.text, helo=self._helo, esmtp=self._esmtp)
        if end != len(argument):
            try:
                read_mail_parameters(envelope, argument[end:])
            except ParameterError as error:
                self._refuse(error.reply.to_bytes())
                return
            if envelope.size > self._settings.message_size:
                self._refuse(_TOO_BIG)
                return
        if not (envelope.smtputf8 or envelope.sender.isascii()):
            self._refuse(_NEEDS_SMTPUTF8)
            return
        if self._settings.intake_closed is not None:
            closed = self._settings.intake_closed()
            if closed is not None:
                self._refuse(closed.to_bytes(), counts=False)
                return
        size = envelope.size or self._settings.unknown
        if not self._settings.budget.take(size):
            self._refuse(_NO_MEMORY, counts=False)
            return
        self._held = size
        self._envelope = envelope
        self._coming = self._settings.coming.begin()
        self._enter(MAIL)
        self._replies.append(_SENDER_OK)

    def _do_rcpt(self, argument: bytes) -> None:
        """RCPT. Hot path."""
        if argument[:3].upper() != b"TO:":
            self._refuse(_RCPT_SYNTAX)
            return
        start = 4 if argument[3:4] == b" " else 3
        try:
            address, end = parse_path(argument, start)
        except AddressError as error:
            self._refuse(_reply(501, "5.1.3", f"Bad recipient: {error}"))
            return
        envelope = self._envelope
        settings = self._settings
        assert envelope is not None
        if not address.local:
            self._refuse(_reply(501, "5.1.3", "Bad recipient: the null path takes no mail"))
            return
        if not address.domain:
            address.domain = settings.hostname
        recipient = Recipient(address.text)
        if end != len(argument):
            try:
                read_rcpt_parameters(recipient, argument[end:], utf8=envelope.smtputf8)
            except ParameterError as error:
                self._refuse(error.reply.to_bytes())
                return
        if not (envelope.smtputf8 or recipient.address.isascii()):
            self._refuse(_NEEDS_SMTPUTF8)
            return
        if not self.peer.may_relay:
            self._refuse(_NO_RELAY)
            return
        if len(envelope.recipients) >= settings.recipients:
            self._refuse(_TOO_MANY_RECIPIENTS, counts=False)
            return
        if settings.check_recipient is not None:
            refusal = settings.check_recipient(address)
            if refusal is not None:
                self._refuse(refusal.to_bytes(), counts=refusal.code >= 500)
                return
        envelope.recipients.append(recipient)
        self._enter(RCPT)
        self._replies.append(_RECIPIENT_OK)

    def _do_data(self, argument: bytes) -> None:
        if self._more:
            self._close(_OUT_OF_TURN)
        elif argument.strip(b" "):
            self._refuse(_NO_ARGUMENT)
        else:
            self._reader = DataReader(self._settings.message_size, self._settings.line_length)
            self._enter(CONTENT)
            self._replies.append(_START_MAIL)

    def _do_rset(self, argument: bytes) -> None:
        if argument.strip(b" "):
            self._refuse(_NO_ARGUMENT)
        elif not self._starts_no_message():
            self._replies.append(_OK)
            self._enter(START if self.state == START else READY)

    def _do_noop(self, argument: bytes) -> None:
        if not self._starts_no_message():
            self._replies.append(_OK)

    def _do_help(self, argument: bytes) -> None:
        if not self._starts_no_message():
            self._replies.append(_HELP)

    def _do_vrfy(self, argument: bytes) -> None:
        if not argument.strip(b" "):
            self._refuse(_NEEDS_ARGUMENT)
        elif not self._starts_no_message():
            self._replies.append(_VRFY)

    def _do_quit(self, argument: bytes) -> None:
        if argument.strip(b" "):
            self._refuse(_NO_ARGUMENT)
        else:
            self._close(_BYE, by_client=True)

    def _do_bdat(self, argument: bytes) -> None:
        self._close(_NOT_HERE)


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
    return lambda server, argument: server._close(_OUT_OF_TURN) if server._more else refused(server, argument)


_ANYTIME: dict[bytes, Handler] = {
    b"EHLO": Server._do_ehlo,
    b"HELO": Server._do_helo,
    b"RSET": Server._do_rset,
    b"NOOP": Server._do_noop,
    b"HELP": Server._do_help,
    b"VRFY": Server._do_vrfy,
    b"QUIT": Server._do_quit,
    b"BDAT": Server._do_bdat,
    **dict.fromkeys(
        (b"EXPN", b"STARTTLS", b"AUTH", b"ETRN", b"TURN", b"ATRN", b"SEND", b"SOML", b"SAML"), _always(_NOT_HERE)
    ),
}
_HANDLERS: dict[State, dict[bytes, Handler]] = {
    START: _ANYTIME
    | {b"MAIL": _always(_EHLO_FIRST), b"RCPT": _rcpt_refused(_EHLO_FIRST), b"DATA": _data_refused(_EHLO_FIRST)},
    READY: _ANYTIME
    | {b"MAIL": Server._do_mail, b"RCPT": _rcpt_refused(_MAIL_FIRST), b"DATA": _data_refused(_MAIL_FIRST)},
    MAIL: _ANYTIME
    | {b"MAIL": _always(_NESTED), b"RCPT": Server._do_rcpt, b"DATA": _data_refused(_NO_RECIPIENT)},
    RCPT: _ANYTIME
    | {b"MAIL": _always(_NESTED), b"RCPT": Server._do_rcpt, b"DATA": Server._do_data},
    CONTENT: {},
    PAUSED: {},
    CLOSED: {},
}  # fmt: skip
_WITHOUT_ENVELOPE: Final = frozenset((START, READY, PAUSED, CLOSED))
