"""The server machine against a model of a session that is simple enough to be believed.

State that outlives a failure is the defect that still finds its way into old and famous servers: a second message
without MAIL, a recipient left over from a refused transaction, a login from before TLS. So commands come in any order,
well-formed and not, in groups and cut anywhere, and after each the replies, the messages and the client that the
machine believes in must be those of the model.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mta.smtp.peer import ALL_RIGHTS, NO_RIGHTS, Identity, Peer, Rights, Tls
from mta.smtp.reply import Reply
from mta.smtp.server import Authenticate, MessageReceived, PeerChanged, Server, StartTls
from tests.smtp.helpers import STRANGER, TRUSTED, pieces, server_settings

RECIPIENTS = 3
SIZE = 200
TLS = Tls("TLSv1.3", "x")

# Commands without effect on the session, and their codes.
HARMLESS = {
    b"NOOP": 250, b"NOOP x": 250, b"VRFY x": 252, b"VRFY": 501, b"HELP": 214, b"EXPN x": 502, b"FOO": 500, b"": 500,
    b"RSET x": 501, b"x" * 5000: 500, b"MAILFROM:<a@b>": 500,
}  # fmt: skip
CONTENTS = {
    b"": True, b"Subject: x\r\n\r\nx\r\n": True, b".\r\n": True, b"QUIT\r\n": True, b"x" * 190 + b"\r\n": True,
    b"x" * 250 + b"\r\n": False, b"\r\n.\nMAIL FROM:<e@example.com>\r\n": False, b"a\0b\r\n": False, b"a\rb\r\n": False,
}  # fmt: skip
LOGIN = b"AUTH PLAIN AHRpbQBz"  # tim, s


def chunk(content: bytes, last: bool = False) -> bytes:
    """BDAT with its chunk, to be followed by a line end that belongs to the chunk."""
    return b"BDAT %d%b\r\n%b" % (len(content) + 2, b" LAST" if last else b"", content)


class Users:
    """Permissions of TRUSTED and of users."""

    def rights_of(self, peer: Peer) -> Rights:
        """All or none."""
        return ALL_RIGHTS if peer.address == TRUSTED.address or peer.identity is not None else NO_RIGHTS


class Session(RuleBasedStateMachine):
    """The model: who the client is, whether EHLO was said, the sender, the recipients, what content has come."""

    @initialize(trusted=st.booleans())
    def begin(self, trusted: bool) -> None:
        """A new session."""
        limits = server_settings(
            recipients=RECIPIENTS, message_size=SIZE, errors=10**6, commands=10**6, auth_failures=10**6, starttls=True,
            mechanisms=("PLAIN",), auth_without_tls=True, permissions=Users(),
        )
        self.trusted = trusted
        peer = TRUSTED if trusted else STRANGER
        self.server = Server(limits, Peer(peer.address, peer.port, may_xclient=True))
        self.hello = self.esmtp = self.tls = False
        self.user: str | None = None
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.chunks: bytes | None = None
        self.content_due = False
        self.expected: list[tuple[str, list[str], bytes]] = []  # messages
        self.verdict = Reply(250, "2.0.0")
        self.believes = True  # the next login

    # -- what is expected -------------------------------------------------------------------------------------

    def forget(self) -> None:
        """The transaction is over."""
        self.sender, self.recipients, self.chunks, self.content_due = None, [], None, False

    def complete(self, content: bytes) -> int:
        """All content of the transaction has come: the code of the answer."""
        sender, recipients = self.sender, self.recipients
        assert sender is not None
        self.forget()
        if len(content) > SIZE:
            return 552
        if not CONTENTS.get(content, True):
            return 550
        self.expected.append((sender, recipients, content))
        return self.verdict.code

    def expect(self, command: bytes) -> int:
        """The code that the model says `command` must have; changes the model."""
        if command in HARMLESS:
            return HARMLESS[command]
        verb = command.upper().partition(b" ")[0]
        if verb in (b"EHLO", b"HELO"):
            if command[5:].strip() == b"":
                return 501
            self.hello, self.esmtp = True, verb == b"EHLO"
            self.forget()
            return 250
        if verb == b"RSET":
            self.forget()
            return 250
        return {
            b"MAIL": self.expect_mail, b"RCPT": self.expect_rcpt, b"DATA": self.expect_data, b"BDAT": self.expect_bdat,
            b"AUTH": self.expect_auth, b"STARTTLS": self.expect_starttls, b"XCLIENT": self.expect_xclient,
        }[verb](command)  # fmt: skip

    def expect_mail(self, command: bytes) -> int:
        """MAIL."""
        if not self.hello or self.sender is not None:
            return 503
        if b"SIZE=999" in command:
            return 552
        if b"@" not in command and b"<>" not in command:
            return 501
        self.sender = command.partition(b"<")[2].partition(b">")[0].decode()
        return 250

    def expect_rcpt(self, command: bytes) -> int:
        """RCPT."""
        if self.sender is None or self.chunks is not None:
            return 503
        if b"@" not in command:
            return 501
        if not (self.trusted or self.user):
            return 550
        if len(self.recipients) == RECIPIENTS:
            return 452
        self.recipients.append(command.partition(b"<")[2].partition(b">")[0].decode())
        return 250

    def expect_data(self, command: bytes) -> int:
        """DATA."""
        if self.sender is None or self.chunks is not None:
            return 503
        if not self.recipients:
            return 554
        self.content_due = True
        return 354

    def expect_bdat(self, command: bytes) -> int:
        """BDAT, with the chunk behind it."""
        if self.sender is None:
            return 503
        if not self.recipients:
            return 554
        self.chunks = (self.chunks or b"") + command.partition(b"\r\n")[2] + b"\r\n"
        if b" LAST\r" in command or len(self.chunks) > SIZE or not CONTENTS.get(self.chunks, True):
            return self.complete(self.chunks)
        return 250

    def expect_auth(self, command: bytes) -> int:
        """AUTH."""
        if not self.hello or self.sender is not None or self.user or not self.esmtp:
            return 503
        if command != LOGIN:
            return 501
        if not self.believes:
            return 535
        self.user = "tim"
        return 235

    def expect_starttls(self, command: bytes) -> int:
        """STARTTLS."""
        if self.tls:
            return 503 if self.hello and self.sender is None else 502
        if not self.hello or self.sender is not None:
            return 503
        self.tls, self.hello, self.user = True, False, None
        return 220

    def expect_xclient(self, command: bytes) -> int:
        """XCLIENT."""
        if self.sender is not None:
            return 503
        self.hello = self.esmtp = False
        self.user = "eve" if b"eve" in command else None
        return 220

    def talk(self, data: bytes, size: int, codes: list[int]) -> None:
        """Say `data` in pieces of `size`: the replies have these codes, one each, and the messages are as expected."""
        output = b""
        messages: list[tuple[str, list[str], bytes]] = []
        for piece in pieces(data, [size] * 100_000):
            pending = self.server.receive(piece)
            while pending:
                output += self.server.output()
                event = pending.pop(0)
                if isinstance(event, MessageReceived):
                    envelope = event.envelope
                    messages.append((envelope.sender, [one.address for one in envelope.recipients], event.content))
                    pending += self.server.answer(self.verdict)
                elif isinstance(event, Authenticate):
                    believed = Identity("tim", "password")
                    pending += self.server.authenticated(believed) if self.believes else self.server.refused()
                elif isinstance(event, StartTls):
                    pending += self.server.tls_started(TLS)
                else:
                    assert isinstance(event, PeerChanged), event
            output += self.server.output()
        lines = output.split(b"\r\n")
        assert lines.pop() == b""
        assert [int(line[:3]) for line in lines if line[3:4] == b" "] == codes
        assert messages == self.expected
        self.expected = []

    # -- what the client does ---------------------------------------------------------------------------------

    command = st.one_of(
        st.sampled_from(sorted(HARMLESS)),
        st.sampled_from([b"RSET", b"rset", b"MAIL FROM:<>", b"MAIL FROM:<a@example.com>", b"mail from:<b@example.com>",
                         b"MAIL FROM:<a@example.com> SIZE=999", b"MAIL FROM:<x>", b"RCPT TO:<r@example.org>",
                         b"RCPT TO:<s@example.org>", b"RCPT TO:<x>", b"RCPT TO:<r@example.org>"]),
        st.sampled_from([chunk(b"x"), chunk(b"QUIT"), chunk(b".", last=True), chunk(b"", last=True), chunk(b"x" * 90)]),
    )  # fmt: skip
    last = st.sampled_from([b"DATA", b"EHLO c.example", b"HELO c.example", b"EHLO", b"NOOP", b"RSET", LOGIN,
                            b"AUTH PLAIN x", b"STARTTLS", b"XCLIENT LOGIN=eve", b"XCLIENT NAME=x.example LOGIN="])
    verdicts = st.sampled_from([Reply(250, "2.0.0"), Reply(451, "4.3.0"), Reply(550, "5.7.1")])

    @precondition(lambda self: not self.content_due)
    @rule(group=st.lists(command, max_size=6), final=last, size=st.integers(1, 4000), verdict=verdicts,
          believes=st.booleans())
    def say(self, group: list[bytes], final: bytes, size: int, verdict: Reply, believes: bool) -> None:
        """A group of commands, with one that must be waited for at the end if anywhere."""
        self.verdict, self.believes = verdict, believes
        commands = [*group, final]
        codes = [self.expect(command) for command in commands]
        self.talk(b"".join(command + b"\r\n" for command in commands), size, codes)

    @precondition(lambda self: not self.content_due)
    @rule(kind=st.sampled_from(["data", "chunk", "last chunk"]), verdict=verdicts)
    def begin_message(self, kind: str, verdict: Reply) -> None:
        """The commands that lead to content, so that there is some now and then."""
        envelope = [b"RSET", b"MAIL FROM:<a@example.com>", b"RCPT TO:<r@example.org>"]
        if kind == "data":
            self.say(envelope, b"DATA", 4000, verdict, True)
        else:
            self.say([*envelope, chunk(b"x", kind == "last chunk")], b"NOOP", 4000, verdict, True)

    @precondition(lambda self: self.content_due)
    @rule(
        content=st.sampled_from(sorted(CONTENTS)),
        verdict=verdicts,
        group=st.lists(command, max_size=4),
        final=last,
        size=st.integers(1, 300),
        believes=st.booleans(),
    )
    def send_content(self, content: bytes, verdict: Reply, group: list[bytes], final: bytes, size: int,
                     believes: bool) -> None:
        """Content, its verdict, and behind it the next group."""
        self.verdict, self.believes = verdict, believes
        commands = [*group, final]
        codes = [self.complete(content)] + [self.expect(command) for command in commands]
        stuffed = b"." + content if content.startswith(b".") else content
        self.talk(stuffed + b".\r\n" + b"".join(command + b"\r\n" for command in commands), size, codes)

    @invariant()
    def nobody_is_somebody_else(self) -> None:
        """The machine knows of TLS and of a user what the model knows."""
        if not hasattr(self, "server"):
            return
        identity = self.server.peer.identity
        assert (self.server.peer.tls is not None) == self.tls
        assert (None if identity is None else identity.user) == self.user

    @invariant()
    def strangers_send_nothing(self) -> None:
        """Never is content due of who may not relay, nor without sender and recipient."""
        if self.server.receiving:
            assert self.trusted or self.user
            assert self.hello
            assert self.sender is not None
            assert self.recipients
        assert self.content_due == (self.server.state == "content")
        assert (self.chunks is not None) == (self.server.state == "chunked")


Session.TestCase.settings = settings(max_examples=150, stateful_step_count=12, deadline=None)
TestSession = Session.TestCase
