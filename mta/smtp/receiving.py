"""One message after the other, as the server takes it: MAIL, RCPT, and the content by DATA or BDAT.

The theory, and the decisions where the standards leave room, are in `mta.smtp.server`.
"""

from __future__ import annotations

import re
from typing import Final

from mta.queue.records import BINARY, DOTLESS, SMTPUTF8, Recipient
from mta.smtp import replies
from mta.smtp.address import AddressError, parse_path
from mta.smtp.conversation import CHUNK, CHUNKED, CLOSED, CONTENT, MAIL, PAUSED, RCPT, READY, START, Conversation
from mta.smtp.data import ChunkReader, DataReader, header_fault
from mta.smtp.envelope import Envelope, ParameterError, read_mail_parameters, read_rcpt_parameters
from mta.smtp.events import MessageReceived

_CHUNK: Final = re.compile(rb"[ ]*([0-9]{1,20})(?:[ ]+([Ll][Aa][Ss][Tt]))?[ ]*")


class Receiving(Conversation):
    """Takes messages."""

    __slots__ = ()

    # -- the envelope -----------------------------------------------------------------------------------------------

    def _do_mail(self, argument: bytes) -> None:
        """MAIL. Hot path."""
        plain = argument.isascii()
        if not plain:
            self._long += 1  # IDNA
        if argument[:5].upper() != b"FROM:":
            self._refuse(replies.MAIL_SYNTAX)
            return
        start = 6 if argument[5:6] == b" " else 5
        try:
            sender, end = parse_path(argument, start)
        except AddressError as error:
            self._refuse(replies.bad_address("5.1.7", f"Bad sender: {error}"))
            return
        if sender.local and not sender.domain:  # only a recipient needs none (RFC 5321 4.1.1.3)
            self._refuse(replies.bad_address("5.1.7", "Bad sender: the domain is missing"))
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
        if not (plain or envelope.flags & SMTPUTF8 or envelope.sender.isascii()):
            self._refuse(replies.NEEDS_SMTPUTF8)
            return
        refusal = (self._rights or self._ask_rights()).check_sender(sender)
        if refusal is not None:
            self._refuse(refusal.to_bytes(), counts=refusal.code >= 500)
            return
        settings = self._settings
        if settings.intake_closed is not None:
            closed = settings.intake_closed()
            if closed is not None:
                self._refuse(closed.to_bytes(), counts=False)
                return
        if not settings.budget.has_room(envelope.size or settings.unknown):
            self._refuse(replies.NO_MEMORY, counts=False)
            return
        self._envelope = envelope
        self._coming = settings.coming.begin()
        self._enter(MAIL)
        self._replies.append(replies.SENDER_OK)

    def _do_rcpt(self, argument: bytes) -> None:
        """RCPT. Hot path: of one message there may be a thousand."""
        plain = argument.isascii()
        if not plain:
            self._long += 1  # IDNA
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
        if not plain:
            recipient.a_labels = address.a_labels
        if end != len(argument):
            try:
                utf8 = envelope.flags & SMTPUTF8 != 0
                read_rcpt_parameters(recipient, argument[end:], utf8=utf8, offers=self._offers)
            except ParameterError as error:
                self._refuse(error.reply.to_bytes())
                return
        if not (plain or envelope.flags & SMTPUTF8 or recipient.address.isascii()):
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
        if not envelope.recipients:
            size = envelope.size or settings.unknown
            if not settings.budget.take(size):
                self._refuse(replies.NO_MEMORY, counts=False)
                return
            self._held = size
            self._enter(RCPT)
        envelope.recipients.append(recipient)
        self._replies.append(replies.RECIPIENT_OK)

    # -- the content ------------------------------------------------------------------------------------------------

    def _do_data(self, argument: bytes) -> None:
        if self._more:
            self._close(replies.OUT_OF_TURN)
        elif argument.strip(b" "):
            self._refuse(replies.NO_ARGUMENT)
        elif self._envelope is not None and self._envelope.flags & BINARY:
            self._refuse(replies.BINARY_NEEDS_BDAT)
        else:
            self._reader = DataReader(self._settings.message_size, self._settings.line_length)
            self._enter(CONTENT)
            self._replies.append(replies.START_MAIL)

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
                self._reader = ChunkReader(settings.message_size, settings.line_length,
                                           binary=self._envelope.flags & BINARY != 0)
        else:
            self._chunk_refusal = {
                START: replies.EHLO_FIRST, READY: replies.MAIL_FIRST, MAIL: replies.NO_RECIPIENT,
            }[self.state]  # fmt: skip
            self._before_chunk = self.state
        self._enter(CHUNK)

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
            content = reader.content()
            if envelope.flags & BINARY:
                wrong = header_fault(content, self._settings.line_length)
                if wrong:
                    self._reject(replies.bad_content(wrong))
                    return
            if reader.dotless:
                envelope.flags |= DOTLESS
            self._enter(PAUSED)
            self._events.append(MessageReceived(envelope, content))

    def _reject(self, reply: bytes, *, counts: bool = True) -> None:
        """Refuse a message after its content."""
        self._refuse(reply, counts=counts)
        if self.state != CLOSED:
            self._enter(READY)
