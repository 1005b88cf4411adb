"""The server machine against a model of a session that is simple enough to be believed.

State that outlives a failure is the defect that still finds its way into old and famous servers: a second message
without MAIL, a recipient left over from a refused transaction. So commands come in any order, well-formed and not,
in groups and cut anywhere, and after each the replies and the messages must be those of the model.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mta.smtp.reply import Reply
from mta.smtp.server import MessageReceived, Server
from tests.smtp.helpers import STRANGER, TRUSTED, pieces, server_settings

RECIPIENTS = 3
SIZE = 200

# Commands without effect on the transaction, and their codes.
HARMLESS = {
    b"NOOP": 250, b"NOOP x": 250, b"VRFY x": 252, b"VRFY": 501, b"HELP": 214, b"EXPN x": 502, b"STARTTLS": 502,
    b"AUTH PLAIN x": 502, b"FOO": 500, b"": 500, b"RSET x": 501, b"x" * 5000: 500, b"MAILFROM:<a@b>": 500,
}  # fmt: skip
CONTENTS = {
    b"": True, b"Subject: x\r\n\r\nx\r\n": True, b".\r\n": True, b"QUIT\r\n": True, b"x" * 190 + b"\r\n": True,
    b"x" * 250 + b"\r\n": False, b"\r\n.\nMAIL FROM:<e@example.com>\r\n": False, b"a\0b\r\n": False, b"a\rb\r\n": False,
}  # fmt: skip


class Session(RuleBasedStateMachine):
    """The model: who may relay, whether EHLO was said, the sender, the recipients, whether content is due."""

    @initialize(trusted=st.booleans())
    def begin(self, trusted: bool) -> None:
        """A new session."""
        limits = server_settings(
            recipients=RECIPIENTS, message_size=SIZE, errors=10**6, commands=10**6
        )
        self.trusted = trusted
        self.server = Server(limits, TRUSTED if trusted else STRANGER)
        self.hello = False
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.content_due = False
        self.sent = 0

    # -- what is expected -------------------------------------------------------------------------------------

    def forget(self) -> None:
        """The transaction is over."""
        self.sender, self.recipients, self.content_due = None, [], False

    def expect(self, command: bytes) -> int:
        """The code that the model says `command` must have; changes the model."""
        if command in HARMLESS:
            return HARMLESS[command]
        verb = command[:4].upper()
        if verb in (b"EHLO", b"HELO"):
            if command[5:].strip() == b"":
                return 501
            self.hello = True
            self.forget()
            return 250
        if command.upper() == b"RSET":
            self.forget()
            return 250
        if verb == b"MAIL":
            if not self.hello or self.sender is not None:
                return 503
            if b"SIZE=999" in command:
                return 552
            if b"@" not in command and b"<>" not in command:
                return 501
            self.sender = command.partition(b"<")[2].partition(b">")[0].decode()
            return 250
        if verb == b"RCPT":
            if self.sender is None:
                return 503
            if b"@" not in command:
                return 501
            if not self.trusted:
                return 550
            if len(self.recipients) == RECIPIENTS:
                return 452
            self.recipients.append(command.partition(b"<")[2].partition(b">")[0].decode())
            return 250
        assert verb == b"DATA"
        if self.sender is None:
            return 503
        if not self.recipients:
            return 554
        self.content_due = True
        return 354

    def check(self, command_codes: list[int], output: bytes) -> None:
        """One reply per command, with these codes."""
        lines = output.split(b"\r\n")
        assert lines.pop() == b""
        assert [int(line[:3]) for line in lines if line[3:4] == b" "] == command_codes

    # -- what the client does ---------------------------------------------------------------------------------

    command = st.one_of(
        st.sampled_from(sorted(HARMLESS)),
        st.sampled_from([b"RSET", b"rset", b"MAIL FROM:<>", b"MAIL FROM:<a@example.com>", b"mail from:<b@example.com>",
                         b"MAIL FROM:<a@example.com> SIZE=999", b"MAIL FROM:<x>", b"RCPT TO:<r@example.org>",
                         b"RCPT TO:<s@example.org>", b"RCPT TO:<x>", b"RCPT TO:<r@example.org>"]),
    )  # fmt: skip
    last = st.sampled_from([b"DATA", b"EHLO c.example", b"HELO c.example", b"EHLO", b"NOOP", b"RSET"])

    @precondition(lambda self: not self.content_due)
    @rule(group=st.lists(command, max_size=6), final=last, size=st.integers(1, 4000))
    def say(self, group: list[bytes], final: bytes, size: int) -> None:
        """A group of commands, with one that must be waited for at the end if anywhere."""
        commands = [*group, final]
        codes = [self.expect(command) for command in commands]
        output = b""
        for piece in pieces(b"".join(command + b"\r\n" for command in commands), [size] * 100_000):
            assert self.server.receive(piece) == []
            output += self.server.output()
        self.check(codes, output)

    @precondition(lambda self: not self.content_due)
    @rule()
    def begin_message(self) -> None:
        """The commands that lead to content, so that there is some now and then."""
        self.say([b"RSET", b"MAIL FROM:<a@example.com>", b"RCPT TO:<r@example.org>"], b"DATA", 4000)

    @precondition(lambda self: self.content_due)
    @rule(
        content=st.sampled_from(sorted(CONTENTS)),
        verdict=st.sampled_from([Reply(250, "2.0.0"), Reply(451, "4.3.0"), Reply(550, "5.7.1")]),
        group=st.lists(command, max_size=4),
        final=last,
        size=st.integers(1, 300),
    )
    def send_content(self, content: bytes, verdict: Reply, group: list[bytes], final: bytes, size: int) -> None:
        """Content, its verdict, and behind it the next group."""
        sender, recipients = self.sender, self.recipients
        good = CONTENTS[content]
        self.forget()
        first = verdict.code if good else 552 if len(content) > SIZE else 550
        commands = [*group, final]
        codes = [first] + [self.expect(command) for command in commands]
        stuffed = b"." + content if content.startswith(b".") else content
        data = stuffed + b".\r\n" + b"".join(command + b"\r\n" for command in commands)
        output = b""
        messages = []
        for piece in pieces(data, [size] * 100_000):
            for event in self.server.receive(piece):
                assert isinstance(event, MessageReceived)
                messages.append(event)
                assert self.server.answer(verdict) == []
            output += self.server.output()
        self.check(codes, output)
        assert len(messages) == good
        for message in messages:
            assert message.content == content
            assert message.envelope.sender == sender
            assert [recipient.address for recipient in message.envelope.recipients] == recipients

    @invariant()
    def strangers_send_nothing(self) -> None:
        """Never is content due of who may not relay, nor without sender and recipient."""
        if self.server.state == "content":
            assert self.trusted
            assert self.hello
            assert self.sender is not None
            assert self.recipients
        assert self.content_due == (self.server.state == "content")


Session.TestCase.settings = settings(max_examples=150, stateful_step_count=12, deadline=None)
TestSession = Session.TestCase
