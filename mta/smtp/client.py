"""The client's side of one SMTP connection, without the connection: bytes in, events and bytes out.

Theory of operation
-------------------
The caller owns the socket and the clock. It feeds what it reads to `receive`, acts on the events, and writes what
`output` gives. Once `Ready` has come it hands in transactions with `send` whenever `can_send` says so; each comes
back once, in a `Finished`, with the peer's replies in it. `phase` names what the machine waits for, so that the
caller can choose a deadline.

The machine is a queue of questions. Whatever it says puts the phase of the expected reply at the end of `_asked`;
every reply answers the question at the front, and the function that `_ANSWERED` names for that phase decides what is
said next. Everything that depends on the order of things is in those functions.

    greeting -> ehlo [-> helo] [-> starttls -> handshake -> ehlo] -> ready
    [rset ->] mail -> rcpt ... -> data -> dot -> ready              one transaction
    [rset ->] mail -> rcpt ... -> dot -> ready                      the same in a chunk (CHUNKING, RFC 3030)
    quit -> closed

With PIPELINING the questions of one envelope are asked in one write, and those of the next one right behind the
content of the present one (RFC 2920 3.1), so at most two transactions are under way: `current`, and one whose envelope
is out but has no answer yet.

With CHUNKING content is one chunk, `BDAT n LAST`, as it is, in one write with its command, as soon as a recipient is
accepted. It waits for the replies to RCPT, though it need not: so content never goes to a host that wants no recipient
of it, a connection that breaks before leaves no doubt whether the message arrived, and it costs no time between
messages, as these replies come with the one to the content before, where DATA would have its 354. Between the first
RCPT of a session and its content lies one round trip, as with DATA; without PIPELINING it is one less.

Rules
-----
* The first digit of a reply decides (RFC 5321 4.2). 3xx answers DATA and nothing else; 2xx to DATA is no answer.
* 421 is an answer to anything, and the end: the present transaction is over, its successor is handed back untouched.
* A reply to nothing (but 421), or what is no reply, raises RemoteProtocolError. Nothing is ever resynchronised: a
  reply taken for the answer to another question is a lost message. The caller drops the connection and calls `lost`.
* A reply to content that comes before the content was sent can only be a refusal, and ends the session.
* RCPT replies belong to recipients by position. All refused, yet DATA allowed: a lone dot (RFC 2920 3.1). MAIL
  refused: the replies to the rest of the envelope are read and mean nothing.
* RSET is sent only before a MAIL that follows a transaction which DATA, the end of the recipients or a refused chunk
  left open.
* Binary content (BODY=BINARYMIME) goes as it is, in a chunk, to hosts that offer that; to others not at all.
* No parameter that EHLO did not offer. SMTPUTF8 only where an address or the header needs it; a domain in UTF-8 goes
  as A-labels where that is enough.
* A chunk refused with 500 to 504 by a host that has taken none in this session: the host does not bear chunks, and may
  take their content for commands. The session ends, the transaction is handed back untouched, `chunking_suspect` is
  set. It is also set when such a host hangs up instead of an answer; then the message may have arrived.
* A refused transaction is the peer's verdict, unless it says that commands came out of step (503, or words about
  pipelining or synchronisation) when they had been pipelined: that is the fault of the form. The transaction is handed
  back untouched, `pipelining_suspect` says which form the host did not bear, and the session is over. A host that
  hangs up at the first envelope sent across is suspected likewise.

What it does not do: AUTH; conversion of 8-bit content for hosts without 8BITMIME (it is sent as it is, see
`Transaction.sent_8bit_unannounced`, or not at all); checks of content for bare CR and LF (every way into the queue
refuses them).

Cost: 10 µs for a transaction of 5 KB, pipelined (tests/smtp/timing.py).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Final, Literal

from mta.queue.records import BINARY, DOTLESS
from mta.smtp.client_events import ClientEvent, Finished, Greeted, Phase, Ready, Refused, StartTls
from mta.smtp.data import stuff
from mta.smtp.errors import LocalProtocolError, RemoteProtocolError
from mta.smtp.reply import Reply, ReplyParser
from mta.smtp.transaction import Capabilities, Pipelining, Transaction, commands_for

__all__ = [
    "Capabilities", "Client", "ClientEvent", "Finished", "Greeted", "Phase", "Pipelining", "Ready", "Refused",
    "StartTls", "Transaction",
]  # fmt: skip

_DATA: Final = "DATA\r\n"
_DOT: Final = b".\r\n"
_RSET: Final = "RSET\r\n"


class Client:
    """One outgoing session. The module's docstring says how it works."""

    __slots__ = (
        "_after_dot", "_asked", "_chunking", "_chunks_taken", "_closed", "_content_waits", "_current", "_cut",
        "_dot_at", "_ehlo", "_esmtp",
        "_events", "_handshaking", "_index", "_next", "_open", "_output", "_parser", "_pipelining", "_proven",
        "_quitting", "_reset", "_secured", "_taken", "_tls", "_unasked", "answers", "capabilities", "chunking_suspect",
        "pipeline_across", "pipelining_suspect", "transactions",
    )  # fmt: skip

    def __init__(
        self,
        ehlo: str,
        *,
        tls: Literal["opportunistic", "required", "off"] = "opportunistic",
        pipelining: bool = True,
        chunking: bool = True,
        esmtp: bool = True,
    ) -> None:
        """`ehlo` is our name. Without `esmtp` it begins with HELO, for a host that hung up at EHLO."""
        self.capabilities = Capabilities()
        self.pipeline_across = True  # whether an envelope may follow the content of the message before it
        self.pipelining_suspect: Pipelining = ""  # the form of pipelining that the host does not seem to bear
        self.chunking_suspect = False  # the host does not seem to bear chunks though it offers them
        self.transactions = 0  # that were begun with MAIL
        self.answers = 0  # whole replies that came
        self._ehlo = ehlo
        self._tls = tls
        self._pipelining = pipelining
        self._chunking = chunking
        self._esmtp = esmtp
        self._parser = ReplyParser()
        self._asked: deque[Phase] = deque(("greeting",))
        self._events: list[ClientEvent] = []
        self._output: list[bytes] = []
        self._current: Transaction | None = None
        self._next: Transaction | None = None  # its envelope was sent behind the content of the current one
        self._index = 0  # of the recipient whose reply comes next
        self._taken = False  # the peer has accepted a recipient of the current transaction
        self._unasked: deque[str] = deque()  # commands of the current envelope still to be sent, without pipelining
        self._open = False
        self._handshaking = False
        self._secured = False
        self._closed = False
        self._quitting = False
        self._reset = False  # the peer's transaction is open and must not be: RSET before the next MAIL
        self._proven = False  # the host has taken an envelope sent across
        self._chunks_taken = False  # the host has taken a chunk
        self._content_waits = False  # content is in the output and was not fetched from there
        self._dot_at = 0  # where in the output the first thing after its dot would be
        self._after_dot = 0  # octets behind the dot in what `output` gave last
        self._cut = False  # some output could not be written: nothing can be sent any more

    def __repr__(self) -> str:
        under_way = (self._current is not None) + (self._next is not None)
        return f"<Client: {self.phase}, {self.transactions} transactions, {under_way} under way>"

    # -- what the caller asks ---------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """What is waited for: the oldest question without an answer; else `ready`, `handshake` or `closed`.

        `body`: content is in the output and was not fetched; `dot`: it was, and its reply is waited for.
        """
        if self._closed:
            return "closed"
        if self._asked:
            phase = self._asked[0]
            return "body" if phase == "dot" and self._content_waits else phase
        return "handshake" if self._handshaking else "ready"

    @property
    def closed(self) -> bool:
        """Whether the session is over, as `phase` says, too."""
        return self._closed

    @property
    def current(self) -> Transaction | None:
        """The oldest transaction under way."""
        return self._current

    @property
    def can_send(self) -> bool:
        """Whether `send` takes a transaction now."""
        if not self._open or self._closed or self._quitting or self._cut:
            return False
        if self._current is None:
            return True
        return (
            self._next is None
            and self._current.dot_sent
            and self.pipeline_across
            and self._pipelining
            and self.capabilities.pipelining
        )

    # -- what the caller tells --------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[ClientEvent]:
        """Take bytes of the peer. Raises RemoteProtocolError; `lost` must follow then, and gives what came before.

        Hot path: once per message (tests/smtp/timing.py).
        """
        if self._handshaking:
            raise LocalProtocolError("bytes for the TLS layer were given to the machine")
        if self._closed:
            return []
        asked = self._asked
        for reply in self._parser.feed(data):
            self.answers += 1
            if reply.code == 421 and not self._handshaking:
                self._close(reply)
                break
            if not asked:
                raise RemoteProtocolError(f"a reply to nothing: {reply}")
            phase = asked.popleft()
            if reply.code < 400 and (reply.code >= 300) != (phase == "data"):
                asked.appendleft(phase)
                raise RemoteProtocolError(f"a reply that {phase.upper()} cannot have: {reply}")
            _ANSWERED[phase](self, reply)
            if self._closed:
                break
        if self._handshaking and self._parser.pending:
            raise RemoteProtocolError("text behind the answer to STARTTLS")  # CVE-2021-38371: it was not encrypted
        events, self._events = self._events, []
        return events

    def output(self) -> list[bytes]:
        """What is to be written now, in order. Content that needs no stuffing is the caller's own object."""
        output, self._output = self._output, []
        if self._content_waits:
            self._content_waits = False
            self._after_dot = sum(map(len, output[self._dot_at :]))
        elif output:
            self._after_dot = -1  # a dot that was sent earlier is safely out
        return output

    def unsent(self, octets: int) -> None:
        """Say that the last `octets` of what `output` gave last could not be written, before `receive` and `lost`.

        When the final dot is among them the peer cannot have the message: `dot_sent` is taken back.
        """
        self._cut = True
        if self._current is not None and 0 <= self._after_dot < octets:
            self._current.dot_sent = False

    def send(self, transaction: Transaction) -> list[ClientEvent]:
        """Begin a transaction. It is finished at once when it cannot be sent to this host (`local_reply`).

        Raises LocalProtocolError unless `can_send`. Hot path: once per message (tests/smtp/timing.py).
        """
        if not self.can_send:
            raise LocalProtocolError(f"no transaction can be sent now: {self!r}")
        commands = commands_for(transaction, self.capabilities, self._chunking)
        text = "".join(commands)
        count = len(commands)
        if text.count("\n") != count or text.count("\r") != count:
            # It should never have come so far; and it must not end as a command of its own.
            text = "An address or a parameter holds a line end"
            transaction.local_reply = Reply(553, "5.1.3", (text,), local=True)
        if transaction.local_reply is not None:
            return [Finished(transaction)]
        self.transactions += 1
        asked = self._asked
        chunked = transaction.chunked = self._chunking and self.capabilities.chunking
        if not chunked:
            commands.append(_DATA)
            text += _DATA
        if self._current is None:
            self._begin(transaction)
            if self._reset:
                self._reset = False
                asked.append("rset")
                commands.insert(0, _RSET)
                text = _RSET + text
        else:
            self._next = transaction
            transaction.pipelined = "across"
        if self._pipelining and self.capabilities.pipelining:
            transaction.pipelined = transaction.pipelined or "inside"
            self._output.append(text.encode())
            asked.append("mail")
            asked.extend(["rcpt"] * len(transaction.recipients))
            if not chunked:
                asked.append("data")
        else:
            if not asked:
                asked.append("mail")
            self._unasked = deque(commands)
            self._output.append(self._unasked.popleft().encode())
        return []

    def tls_established(self) -> None:
        """The handshake is done: forget all that was said in clear and begin again (RFC 3207 4.2)."""
        if not self._handshaking:
            raise LocalProtocolError("there was no handshake to do")
        self._handshaking = False
        self._secured = True
        self.capabilities = Capabilities()
        self._greet()

    def quit(self) -> None:
        """Say QUIT; the answer need not be waited for. Raises LocalProtocolError inside a transaction."""
        if self._current is not None or self._handshaking:
            raise LocalProtocolError(f"QUIT cannot be said now: {self!r}")
        if not self._closed and not self._quitting:
            self._quitting = True
            self._ask("quit", "QUIT\r\n")

    def lost(self, reason: str) -> list[ClientEvent]:
        """The connection is gone, or given up: all transactions are finished. `reason` is for the operator."""
        if not self._closed:
            phase = self.phase
            self._closed = True
            self._handshaking = False
            current, successor = self._current, self._next
            if current is not None:
                if self._content_waits:
                    current.dot_sent = False
                if phase in ("body", "dot") and current.chunked and not self._chunks_taken:
                    self.chunking_suspect = True
                across = successor is not None or (current.pipelined == "across" and current.mail is None)
                if across and not self._proven:
                    self.pipelining_suspect = "across"
                if not self._decided(current):
                    current.lost, current.lost_phase = reason, phase
            self._finish_all(reason)
        events, self._events = self._events, []
        return events

    def eof(self) -> list[ClientEvent]:
        """The peer has closed the connection."""
        return self.lost("connection closed by the host")

    # -- opening ----------------------------------------------------------------------------------------------------

    def _greeting(self, reply: Reply) -> None:
        if not reply.positive:
            self._refuse(reply, "greeting")
            return
        self._events.append(Greeted(reply))
        self._greet()

    def _greet(self) -> None:
        if self._esmtp:
            self._ask("ehlo", f"EHLO {self._ehlo}\r\n")
        else:
            self._ask("helo", f"HELO {self._ehlo}\r\n")

    def _ehlo_answered(self, reply: Reply) -> None:
        if reply.positive:
            self.capabilities = Capabilities.from_reply(reply)
            if self._tls != "off" and not self._secured and self.capabilities.starttls:
                self._ask("starttls", "STARTTLS\r\n")
            else:
                self._opened()
        elif self._tls == "required" and not self._secured:
            self._refuse(reply, "ehlo")  # there is no STARTTLS after HELO
        else:
            self._ask("helo", f"HELO {self._ehlo}\r\n")

    def _helo_answered(self, reply: Reply) -> None:
        if reply.positive:
            self._opened()
        else:
            self._refuse(reply, "helo")

    def _starttls_answered(self, reply: Reply) -> None:
        if reply.positive:
            self._handshaking = True
            self._events.append(StartTls())
        elif self._tls == "required":
            self._refuse(reply, "starttls")
        else:
            self._opened()

    def _opened(self) -> None:
        if self._tls == "required" and not self._secured:
            text = "TLS is required, but the host does not offer STARTTLS"
            self._refuse(Reply(454, "4.7.0", (text,), local=True), "starttls")
            return
        self._open = True
        self._events.append(Ready())

    def _refuse(self, reply: Reply, phase: Phase) -> None:
        self._closed = True
        self._output.clear()  # a host that answers before it was asked
        self._events.append(Refused(reply, phase))

    # -- a transaction ----------------------------------------------------------------------------------------------

    def _rset_answered(self, reply: Reply) -> None:
        if not reply.positive:
            self._give_up(f"RSET refused: {reply}")
        elif self._unasked:
            self._ask("mail", self._unasked.popleft())

    def _mail_answered(self, reply: Reply) -> None:
        transaction = self._present()
        if reply.positive:
            transaction.mail = reply
            if transaction.pipelined == "across":
                self._proven = True
            elif self._unasked:
                self._ask("rcpt", self._unasked.popleft())
        elif transaction.pipelined and _out_of_step(reply, first=transaction.pipelined == "inside"):
            self._does_not_bear(transaction.pipelined, reply)
        else:
            transaction.mail = reply
            if self._unasked:
                self._unasked.clear()
                self._finish()

    def _rcpt_answered(self, reply: Reply) -> None:
        transaction = self._present()
        mail = transaction.mail
        if mail is not None and mail.positive:
            if reply.positive:
                self._taken = True
            elif transaction.pipelined and _out_of_step(reply):
                self._does_not_bear("inside", reply)
                return
            transaction.rcpts[self._index] = reply
        self._index += 1
        if transaction.chunked:
            if self._index == len(transaction.recipients):
                self._send_chunk(transaction)
            elif self._unasked:
                self._ask("rcpt", self._unasked.popleft())
        elif self._unasked:
            if len(self._unasked) > 1:
                self._ask("rcpt", self._unasked.popleft())
            elif self._taken:
                self._ask("data", self._unasked.popleft())
            else:
                self._unasked.clear()
                self._reset = True
                self._finish()

    def _send_chunk(self, transaction: Transaction) -> None:
        """Everything is answered that comes before the content: the whole of it as one chunk (RFC 3030 2)."""
        if self._taken:
            content = transaction.content
            if not (transaction.flags & (DOTLESS | BINARY) or content.endswith(b"\r\n") or not content):
                content += b"\r\n"
            self._asked.append("dot")
            self._output += (b"BDAT %d LAST\r\n" % len(content), content)
            self._dot_at = len(self._output)
            self._content_waits = True
            transaction.dot_sent = True
        else:
            self._reset = transaction.mail is not None and transaction.mail.positive
            self._finish()

    def _data_answered(self, reply: Reply) -> None:
        transaction = self._present()
        mail_accepted = transaction.mail is not None and transaction.mail.positive
        if reply.code < 400:
            transaction.data = reply
            self._asked.append("dot")
            if self._taken:
                content = transaction.content
                self._output += (content if transaction.flags & DOTLESS else stuff(content), _DOT)
                self._dot_at = len(self._output)
                self._content_waits = True
                transaction.dot_sent = True
            else:
                self._output.append(_DOT)
        elif self._taken and transaction.pipelined and _out_of_step(reply):
            self._does_not_bear("inside", reply)
        else:
            if mail_accepted:
                transaction.data = reply
                self._reset = True
            self._finish()

    def _dot_answered(self, reply: Reply) -> None:
        transaction = self._present()
        if not self._taken:  # a lone dot, and whatever is said of it
            self._finish()
            return
        early = self._content_waits or not transaction.dot_sent
        if early and reply.positive:
            self._asked.appendleft("dot")
            raise RemoteProtocolError(f"content was accepted before it was sent: {reply}")
        if transaction.chunked:
            if reply.positive:
                self._chunks_taken = True
            elif not self._chunks_taken and 500 <= reply.code <= 504:
                self.chunking_suspect = True
                self._give_up(f"the host does not bear chunks: {reply}")
                return
            else:
                self._reset = self._next is None  # RFC 3030 leaves open what a refused chunk leaves behind
        if not reply.positive and self._next is not None and _out_of_step(reply):
            self._does_not_bear("across", reply)
            return
        transaction.final = reply
        if early:
            transaction.dot_sent = False
            self._closed = True
            self._finish_all(f"content was refused before it was sent: {reply}")
        else:
            self._finish()

    def _quit_answered(self, reply: Reply) -> None:
        self._closed = True

    def _present(self) -> Transaction:
        """The transaction that a reply of the phases from MAIL to the dot belongs to."""
        assert self._current is not None
        return self._current

    def _begin(self, transaction: Transaction | None) -> None:
        self._current = transaction
        self._index = 0
        self._taken = False

    def _finish(self) -> None:
        """The current transaction is over; the next one, if there is one, takes its place."""
        self._events.append(Finished(self._present()))
        successor, self._next = self._next, None
        self._begin(successor)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _close(self, reply: Reply) -> None:
        """421: the host ends the session, whatever was asked."""
        self._closed = True
        phase = self._asked[0] if self._asked else "ready"
        if phase in ("greeting", "ehlo", "helo", "starttls"):
            self._events.append(Refused(reply, phase))
        reason = f"the host ends the session: {reply}"
        current = self._current
        if current is not None:
            if phase == "dot" and self._taken:
                current.final = reply
                current.dot_sent = current.dot_sent and not self._content_waits
            elif not self._decided(current):
                current.lost, current.lost_phase = reason, phase
                if phase == "mail":
                    current.mail = reply
                elif phase == "rcpt":
                    current.rcpts[self._index] = reply
                elif phase == "data":
                    current.data = reply
        self._finish_all(reason)

    def _decided(self, transaction: Transaction) -> bool:
        """Whether the current transaction has its verdict, though replies that mean nothing are still to come."""
        mail = transaction.mail
        if mail is None:
            return False
        return not mail.positive or (self._index == len(transaction.recipients) and not self._taken)

    def _does_not_bear(self, form: Pipelining, reply: Reply) -> None:
        self.pipelining_suspect = form
        self._give_up(f"the host does not bear pipelining: {reply}")

    def _give_up(self, reason: str) -> None:
        """End the session and hand back the current transaction as if nothing had been said of it."""
        self._closed = True
        transaction = self._present()
        transaction.forget()
        transaction.lost = reason
        self._finish_all(reason)

    def _finish_all(self, reason: str) -> None:
        """Finish what is under way; the current transaction bears its mark already."""
        self._output.clear()
        self._content_waits = False
        self._asked.clear()
        if self._current is not None:
            self._events.append(Finished(self._current))
        if self._next is not None:
            self._next.lost = reason
            self._events.append(Finished(self._next))
        self._current = self._next = None

    # -- what is said -----------------------------------------------------------------------------------------------

    def _ask(self, phase: Phase, command: str) -> None:
        self._asked.append(phase)
        self._output.append(command.encode())


_ANSWERED: dict[Phase, Callable[[Client, Reply], None]] = {
    "greeting": Client._greeting,
    "ehlo": Client._ehlo_answered,
    "helo": Client._helo_answered,
    "starttls": Client._starttls_answered,
    "rset": Client._rset_answered,
    "mail": Client._mail_answered,
    "rcpt": Client._rcpt_answered,
    "data": Client._data_answered,
    "dot": Client._dot_answered,
    "quit": Client._quit_answered,
}

_STEP = re.compile(r"pipelin|synchroni[sz]|out of (?:sequence|order)", re.IGNORECASE)


def _out_of_step(reply: Reply, *, first: bool = False) -> bool:
    """Whether a refusal says that a command came at the wrong time. To the `first` of a group, 503 does not."""
    return (reply.code == 503 and not first) or (reply.code >= 500 and _STEP.search(reply.text) is not None)
