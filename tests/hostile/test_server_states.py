"""The server machine in any order of anything: the same words in any pieces, a message once, and never two mixed.

Beside `tests/smtp/test_server_model.py`, which knows what every reply must be. Here nothing is known but what must
never happen: every transaction bears a number in its sender, its recipients and its content, so a message that is made
of two is seen. Two machines hear the same octets cut in two ways, and are interrupted at the same places: timeouts, a
stop, the connection gone (CVE-2006-0058, CVE-2020-28018, CVE-2017-16943, and the state that outlives a failure).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mta.queue.records import BINARY
from mta.smtp.budget import Budget
from mta.smtp.coming import Coming
from mta.smtp.peer import ALL_RIGHTS, NO_RIGHTS, Identity, Peer, Rights, Tls
from mta.smtp.reply import Reply
from mta.smtp.sasl import ScramAttempt, ScramProof
from mta.smtp.server import (
    Authenticate,
    Closed,
    MessageReceived,
    PeerChanged,
    Server,
    ServerEvent,
    ServerSettings,
    StartTls,
    TakesLong,
)  # fmt: skip

TLS = Tls("TLSv1.3", "x")
TIMEOUT = Reply(421, "4.4.2", ("Timeout",))
CLIENT = Peer("192.0.2.9", 4711, may_xclient=True)
SIZE = 4000

# What needs no number. Those of the second kind must be waited for; in the first, all may be written at once.
PIPELINED = [
    b"NOOP", b"RSET", b"rset", b"RSET x", b"VRFY x", b"HELP", b"EXPN l", b"FOO", b"", b" ", b"MAIL FROM:<>x",
    b"x" * 3000,
    b"MAIL FROM:<@a,@b:c@d.example> BODY=8BITMIME SIZE=0", b"RCPT TO:<postmaster>", b"RCPT TO:<>", b"MAIL FROM:<;id;>",
    b"RCPT TO:<\xc3\xbc@example.org>", b"RCPT TO:<a\rb@example.org>", b"RCPT TO:<a\0b@example.org>", b"MAIL\0",
    b"MAIL FROM:<a@example.com> SIZE=99999999999999999999", b"MAIL FROM:<a@example.com> AUTH=<> AUTH=<>",
    b"MAIL FROM:<a@example.com> ENVID=a+0D+0Ab", b"RCPT TO:<a@example.org> ORCPT=rfc822;a+0Ab@example.org",
    b"MAIL FROM:<a@example.com> SMTPUTF8 RET=HDRS ENVID=x HOLDFOR=60", b"RCPT TO:<a@example.org> NOTIFY=NEVER,DELAY",
    b"BDAT 0", b"BDAT 0 LAST",
]  # fmt: skip
AWAITED = [
    b"EHLO c.example", b"HELO c.example", b"EHLO", b"EHLO " + b"a" * 1500, b"DATA", b"DATA x", b"STARTTLS",
    b"STARTTLS x", b"AUTH PLAIN AHRpbQBz", b"AUTH PLAIN", b"AUTH LOGIN", b"AUTH LOGIN dGlt", b"AUTH SCRAM-SHA-256",
    b"AUTH SPA x", b"AUTH", b"AUTH SCRAM-SHA-256 biwsbj10aW0scj1hYmM=", b"XCLIENT LOGIN=eve", b"XCLIENT ADDR=x",
    b"XCLIENT NAME=a+0Ab", b"*", b"=",
    b"dGlt", b"AHRpbQBz", b"Yz1iaXdzLHI9YWJjLHA9eA==", b"BDAT", b"BDAT -1", b"BDAT x LAST", b"GET / HTTP/1.1",
    b"NOOP\nNOOP", b"QUIT", b"MAIL FROM:<a@example.com>\nRCPT TO:<b@example.org>",
]  # fmt: skip
ODD_CONTENT = [b"", b".", b"..\r\n", b"a\nb", b"a\rb", b"a\0b", b"x" * 1200, b"\xff\x00\xfe", b"QUIT\r\nRSET\r\n",
               b"y\r\n" * 900]
NUMBER = re.compile(rb"N(\d+)N")


class Users:
    """Permissions of who was not renamed, and of users."""

    def rights_of(self, peer: Peer) -> Rights:
        """All or none."""
        return ALL_RIGHTS if peer.identity is not None or peer.address == CLIENT.address else NO_RIGHTS


@dataclass
class Ear:
    """One machine with all that it said and did."""

    budget: Budget = field(default_factory=lambda: Budget(9000))
    coming: Coming = field(default_factory=Coming)
    said: bytes = b""
    taken: list[tuple[str, list[str], bytes, bool]] = field(default_factory=list)  # the last: it is no text
    other: list[str] = field(default_factory=list)  # events of other kinds
    closed: int = 0

    def __post_init__(self) -> None:
        self.connect()

    def connect(self) -> None:
        """A new session, with the budget of the one before."""
        self.closed = 0
        limits = ServerSettings(
            "mx.example.net", permissions=Users(), message_size=SIZE, recipients=3, line_length=998, errors=200,
            commands=500, starttls=True, mechanisms=("PLAIN", "LOGIN", "SCRAM-SHA-256"), auth_without_tls=True,
            auth_failures=50, fake_salt_key=b"k", budget=self.budget, coming=self.coming,
            honours=("8BITMIME", "SMTPUTF8", "DSN", "FUTURERELEASE", "MT-PRIORITY", "BINARYMIME"), clock=lambda: 0.0)
        self.server = Server(limits, CLIENT)

    def hear(self, piece: bytes, verdict: Reply, believes: bool) -> None:
        """A piece, and what comes of it."""
        self.go_on(self.server.receive(piece), verdict, believes)

    def go_on(self, pending: list[ServerEvent], verdict: Reply, believes: bool) -> None:
        """Act as a caller does."""
        server = self.server
        while pending:
            event = pending.pop(0)
            self.said += server.output()
            if isinstance(event, MessageReceived):
                to = [one.address for one in event.envelope.recipients]
                self.taken.append((event.envelope.sender, to, event.content, event.envelope.flags & BINARY))
                pending += server.answer(verdict)
            elif isinstance(event, Authenticate):
                attempt = event.attempt
                self.other.append(repr(attempt))
                if isinstance(attempt, ScramAttempt):
                    pending += server.keys_found(None)
                elif believes and not isinstance(attempt, ScramProof):
                    pending += server.authenticated(Identity(attempt.user, "password"))
                else:
                    pending += server.refused()
            elif isinstance(event, StartTls):
                self.other.append("starttls")
                pending += server.tls_started(TLS) if believes else []
                if not believes:
                    server.gone()
            elif isinstance(event, TakesLong):
                pending += server.go_on()
            elif isinstance(event, Closed):
                self.closed += 1
            else:
                assert isinstance(event, PeerChanged), event
                self.other.append(repr(event))
        self.said += server.output()


class AnyOrder(RuleBasedStateMachine):
    """Two machines, one story."""

    @initialize()
    def begin(self) -> None:
        """A new session."""
        self.whole, self.cut = Ear(), Ear()
        self.number = 0
        self.failed_tls = False

    @property
    def over(self) -> bool:
        """Whether the session is."""
        return self.whole.server.state == "closed" or self.failed_tls

    def say(self, data: bytes, sizes: list[int], verdict: Reply = TIMEOUT, believes: bool = True) -> None:
        """The same octets to both, to one of them in pieces."""
        before = self.whole.server.state
        self.whole.hear(data, verdict, believes)
        position = 0
        for size in [*sizes, len(data)]:
            if position < len(data) and self.cut.server.state != "tls":
                self.cut.hear(data[position : position + size], verdict, believes)
                position += size
        if before != "tls" and self.whole.server.state == "tls":
            self.failed_tls = True

    numbers = st.lists(st.integers(1, 50), max_size=40)
    fine = Reply(250, "2.0.0")
    verdicts = st.sampled_from([fine, fine, Reply(451, "4.3.0"), Reply(554, "5.7.1"), TIMEOUT])

    @precondition(lambda self: not self.over)
    @rule(before=st.lists(st.sampled_from(PIPELINED), max_size=5), last=st.sampled_from(PIPELINED + AWAITED),
          sizes=numbers, believes=st.booleans())
    def speak(self, before: list[bytes], last: bytes, sizes: list[int], believes: bool) -> None:
        """Commands, of which only the last may be one that has to be waited for. In the middle of content they are
        content."""
        if self.whole.server.state in ("auth", "content") or self.whole.server.chunk_left:
            before = []  # a response must be waited for, too, and content must end before a command
        self.say(b"".join(one + b"\r\n" for one in [*before, last]), sizes, self.fine, believes)

    @precondition(lambda self: not self.over and self.whole.server.chunk_left)
    @rule(sizes=numbers, verdict=verdicts)
    def finish_chunk(self, sizes: list[int], verdict: Reply) -> None:
        """What was promised of a chunk."""
        self.say(b"z" * self.whole.server.chunk_left, sizes, verdict)

    @precondition(lambda self: not self.over and self.whole.server.state == "content")
    @rule(sizes=numbers, verdict=verdicts)
    def finish_content(self, sizes: list[int], verdict: Reply) -> None:
        """The end of content that was begun."""
        self.say(b"\r\n.\r\n", sizes, verdict)

    @precondition(lambda self: not self.over and self.whole.server.state not in ("auth", "content", "chunk"))
    @rule(recipients=st.integers(0, 4), kind=st.sampled_from(["data", "chunk", "chunks", "open", "half"]),
          verdict=verdicts, odd=st.one_of(st.none(), st.sampled_from(ODD_CONTENT)), sizes=numbers,
          parameters=st.sampled_from([b"", b"", b" SIZE=4001", b" SIZE=10", b" BODY=8BITMIME", b" BODY=BINARYMIME"]))
    def send(self, recipients: int, kind: str, verdict: Reply, odd: bytes | None, sizes: list[int],
             parameters: bytes) -> None:
        """A numbered transaction, whole, begun only, or with half of its content."""
        self.number += 1
        mark = b"N%dN" % self.number
        if self.whole.server.state == "start":
            self.say(b"EHLO c.example\r\n", sizes)
        envelope = b"RSET\r\nMAIL FROM:<%b@example.com>%b\r\n" % (mark, parameters)
        envelope += b"".join(b"RCPT TO:<%b.%d@example.org>\r\n" % (mark, one) for one in range(recipients))
        content = b"Subject: %b\r\n\r\n%b\r\n" % (mark, mark) if odd is None else mark + b"\r\n" + odd
        if kind == "open":
            self.say(envelope, sizes)
        elif kind == "data":
            self.say(envelope + b"DATA\r\n", sizes)
            if self.whole.server.state == "content":
                end = b"" if content.endswith(b"\r\n") else b"\r\n"
                self.say(content.replace(b"\r\n.", b"\r\n..") + end + b".\r\n", sizes, verdict)
        elif kind == "half":
            self.say(envelope + b"BDAT %d\r\n" % (len(content) + 10) + content, sizes)
        elif kind == "chunk":
            self.say(envelope + b"BDAT %d LAST\r\n" % len(content) + content, sizes, verdict)
        else:
            half = len(content) // 2
            first, second = content[:half], content[half:]
            chunks = b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (len(first), first, len(second), second)
            self.say(envelope + chunks, sizes, verdict)

    @precondition(lambda self: not self.over and self.whole.server.state != "paused")
    @rule(how=st.sampled_from(["timeout", "stop", "gone"]))
    def interrupt(self, how: str) -> None:
        """The caller's patience ends, the process does, or the client is gone: at any place."""
        for ear in (self.whole, self.cut):
            if how == "timeout":
                ear.go_on(ear.server.close(TIMEOUT), TIMEOUT, True)
            elif how == "stop":
                ear.go_on(ear.server.stop(TIMEOUT), TIMEOUT, True)
            else:
                ear.server.gone()
                self.failed_tls = True

    @precondition(lambda self: self.over)
    @rule(data=st.sampled_from([b"", b"NOOP\r\n", b"MAIL FROM:<a@example.com>\r\n", b"x" * 9000]))
    def begin_again(self, data: bytes) -> None:
        """Nothing is heard any more; then the next client comes."""
        if not self.failed_tls:
            before = len(self.whole.said), len(self.whole.taken)
            self.say(data, [])
            assert (len(self.whole.said), len(self.whole.taken)) == before
            assert self.whole.closed == self.cut.closed == 1
        for ear in (self.whole, self.cut):
            assert (ear.budget.used, ear.coming.count) == (0, 0)
            ear.said = b""
            ear.connect()
        self.failed_tls = False

    @invariant()
    def the_cut_makes_no_difference(self) -> None:
        """Same replies, messages, attempts and state."""
        if not hasattr(self, "whole"):
            return
        one, other = self.whole, self.cut
        if not self.failed_tls:
            assert _codes(one.said) == _codes(other.said)
            assert one.server.state == other.server.state
            assert one.server.peer == other.server.peer
        assert one.taken == other.taken
        assert one.other == other.other

    @invariant()
    def a_message_is_one_transaction(self) -> None:
        """Its number is in all parts of it, and each number comes once."""
        if not hasattr(self, "whole"):
            return
        seen: list[bytes] = []
        for sender, recipients, content, binary in self.whole.taken:
            numbers = {found for text in (sender, *recipients) for found in NUMBER.findall(text.encode())}
            in_content = set(NUMBER.findall(content))
            assert recipients
            assert len(numbers) <= 1, (sender, recipients)
            assert in_content <= numbers or not numbers or not in_content, (sender, recipients, content)
            assert binary or not re.search(rb"\0|\r(?!\n)|(?<!\r)\n", content), content
            seen += numbers
        assert len(seen) == len(set(seen))

    @invariant()
    def nothing_is_held_without_a_transaction(self) -> None:
        """What is counted for a message is given back with it."""
        if not hasattr(self, "whole"):
            return
        for ear in (self.whole, self.cut):
            assert 0 <= ear.budget.used <= ear.budget.limit
            assert 0 <= ear.coming.count <= 1
            if ear.server.idle or ear.server.state in ("closed", "auth"):
                assert ear.budget.used == 0
                assert ear.coming.count == 0


def _codes(said: bytes) -> list[bytes]:
    """All lines, but for a challenge, which holds what was made at random."""
    return [line[:4] if line.startswith(b"334 ") else line for line in said.split(b"\r\n")]


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=15, deadline=None)
TestAnyOrder = AnyOrder.TestCase
