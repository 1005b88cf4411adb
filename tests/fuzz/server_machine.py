"""The server machine against everything that a client may say, in any pieces.

What is said is one stream of octets. It is said line by line, and again in pieces, with the same answers of the store
and of whoever looks at logins: replies and events must be the same, but for what RFC 2920 3.1 forbids to be sent ahead,
which the machine sees only in larger pieces; then they are the same up to there.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Final

from mta.queue.records import BINARY, DOTLESS, SMTPUTF8
from mta.smtp import replies, sasl
from mta.smtp.address import Address, parse_address
from mta.smtp.budget import Budget
from mta.smtp.coming import Coming
from mta.smtp.events import Authenticate, Closed, MessageReceived, PeerChanged, ServerEvent, StartTls, TakesLong
from mta.smtp.extensions import BEYOND
from mta.smtp.identifying import RESPONSE_LIMIT
from mta.smtp.peer import Identity, Peer, Rights, Tls
from mta.smtp.reply import Reply
from mta.smtp.server import CHUNKED, CLOSED, CONTENT, MAIL, PAUSED, RCPT, Server
from mta.smtp.settings import ServerSettings
from tests.fuzz.script import cut, expand, lines
from tests.smtp.scram import ScramClient

PASSWORD: Final = "secret"
NONCE: Final = "servers-nonce"
KEYS: Final = sasl.scram_keys(PASSWORD, b"salt", 1)
TLS: Final = Tls("TLSv1.3", "x", bindings={"tls-server-end-point": b"certificate"})
SIZE: Final = 3000
RECIPIENTS: Final = 4
LINE: Final = 300
COMMAND: Final = 600


def _scram(flag: str, binding: bytes = b"") -> tuple[bytes, bytes]:
    """What a client that knows the password says first and last, when the nonce is NONCE."""
    client = ScramClient("tim", PASSWORD, flag, binding)
    first = client.first()
    salt = b64encode(KEYS.salt)
    return b64encode(first), b64encode(client.final(b"r=client%b,s=%b,i=1" % (NONCE.encode(), salt)))


_PLAIN: Final = b64encode(b"\0tim\0secret")
_SCRAM: Final = _scram("n")
_PLUS: Final = _scram("p=tls-server-end-point", b"certificate")

SNIPPETS: Final = (
    b"EHLO c.example\r\n", b"HELO c.example\r\n", b"MAIL FROM:<a@example.com>\r\n", b"RCPT TO:<b@example.org>\r\n",
    b"DATA\r\n", b".\r\n", b"\r\n.\r\n", b"\r\n", b"QUIT\r\n", b"RSET\r\n", b"NOOP\r\n", b"VRFY x\r\n", b"HELP\r\n",
    b"MAIL FROM:<>\r\n", b"MAIL FROM:<no@example.com>\r\n", b"MAIL FROM:<later@example.com>\r\n",
    b"RCPT TO:<no@example.org>\r\n", b"RCPT TO:<later@example.org>\r\n", b"RCPT TO:<postmaster>\r\n",
    "RCPT TO:<ü@bücher.example>\r\n".encode(), b'RCPT TO:<"q \\" @>"@[192.0.2.1]>\r\n',
    b"MAIL FROM:<a@example.com> SIZE=2000 BODY=8BITMIME RET=HDRS ENVID=x+2B\r\n",
    b"MAIL FROM:<a@example.com> BODY=BINARYMIME\r\n", b"MAIL FROM:<a@example.com> SMTPUTF8\r\n",
    b"MAIL FROM:<a@example.com> HOLDFOR=60 MT-PRIORITY=3 BY=120;R\r\n", b"MAIL FROM:<a@example.com> AUTH=<>\r\n",
    b"RCPT TO:<c@example.org> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;d@example.org\r\n",
    b"BDAT 10\r\n", b"BDAT 10 LAST\r\n", b"BDAT 0 LAST\r\n", b"BDAT 2\r\n", b"BDAT 3200 LAST\r\n", b"12345678\r\n",
    b"BDAT 12 LAST\r\nhello world\n", b"BDAT x\r\n", b"BDAT 99999999999999999999\r\n",
    b"STARTTLS\r\n", b"AUTH PLAIN\r\n", b"AUTH PLAIN %b\r\n" % _PLAIN, b"AUTH LOGIN\r\n", b"AUTH LOGIN dGlt\r\n",
    b"dGlt\r\n", b"c2VjcmV0\r\n", _PLAIN + b"\r\n", b"AUTH SCRAM-SHA-256 %b\r\n" % _SCRAM[0], _SCRAM[1] + b"\r\n",
    b"AUTH SCRAM-SHA-256-PLUS %b\r\n" % _PLUS[0], _PLUS[1] + b"\r\n", b"*\r\n", b"=\r\n", b"AUTH X\r\n",
    b"XCLIENT ADDR=192.0.2.9 LOGIN=eve\r\n", b"XCLIENT NAME=x.example PORT=25 PROTO=ESMTP HELO=h\r\n",
    b"From: a@example.com\r\n", b"Subject: x\r\n\r\n", b"body\r\n", b"..\r\n", b".x\r\n", b"\0", b"\r", b"\n",
    b"\n.\n", b"\r.\r", b"\r\n.\n", b"\n.\r\n", b"\xff", "ü".encode(), b"x" * 250, b"x" * 900 + b"\r\n",
    (b"x" * 250 + b"\r\n") * 5, b"A" * 6000, b"GET / HTTP/1.1\r\n", b"RCPT TO:<a@[IPv6:::1]>\r\n", b"RCPT TO:<",
    b"MAIL FROM:<", b"@example.org>\r\n", b"=FROM:<>\r\n",
    b"EHLO c.example\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n",
    b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\nx\r\n.\r\n",
    b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nBDAT 4 LAST\r\nx\r\n\r\n",
)  # fmt: skip

WORDS: Final = (
    b"SIZE=", b"BODY=", b"7BIT", b"8BITMIME", b"BINARYMIME", b"SMTPUTF8", b"RET=", b"FULL", b"HDRS", b"ENVID=",
    b"NOTIFY=", b"NEVER", b"SUCCESS", b"FAILURE", b"DELAY", b"ORCPT=", b"rfc822;", b"utf-8;", b"\\x{FC}", b"AUTH=",
    b"REQUIRETLS", b"HOLDFOR=", b"HOLDUNTIL=", b"2030-01-02T03:04:05Z", b"MT-PRIORITY=", b"BY=", b";R", b";NT", b"LAST",
    b"MAIL FROM:", b"RCPT TO:", b"BDAT ", b"XCLIENT ", b"ADDR=", b"[UNAVAILABLE]", b"IPV6:", b"LOGIN=", b"NAME=",
    b"\r\n", b"\r\n.\r\n", b"postmaster",
)  # fmt: skip

# The settings in the first octets, then the script.
SEEDS: Final = (
    b"\0\0\0\0" + bytes((128, 130, 131, 132, 181, 182, 183, 133, 136)),
    b"\x07\1\2\0" + bytes((128, 130, 131, 131, 156, 160, 155, 160, 130, 136)),
    b"\x03\4\5\1" + bytes((128, 166, 130, 147, 132, 133, 164, 128, 172, 173)),
    b"\x13\4\5\1" + bytes((128, 167, 168, 169, 170, 178, 130, 131, 159)),
    b"\x2f\4\5\1" + bytes((179, 128, 151, 154, 161, 192, 193, 133, 205, 206, 136)),
    b"\x0f\4\5\2" + bytes((128, 164, 128, 174, 175, 178, 149, 154, 132, 186, 187, 188, 134)),
)


class _Rights:
    """The rights of a client, and a list of what they were asked since the last MAIL."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.may_send = peer.address.startswith("192.0.2.") or peer.identity is not None
        self.sender: str | None = None
        self.granted: list[str] = []

    def check_sender(self, sender: Address) -> Reply | None:
        self.sender, self.granted = None, []
        if sender.local in ("no", "later"):
            return Reply(550 if sender.local == "no" else 451, "", ("Not this one",))
        self.sender = sender.text
        return None

    def check_recipient(self, recipient: Address) -> Reply | None:
        assert self.sender is not None, "a recipient without a sender"
        if not self.may_send or recipient.local in ("no", "later"):
            return Reply(450 if recipient.local == "later" else 550, "", ("Not this one",))
        self.granted.append(recipient.text)
        return None


class _Permissions:
    def __init__(self) -> None:
        self.last: _Rights | None = None

    def rights_of(self, peer: Peer) -> Rights:
        self.last = _Rights(peer)
        return self.last


_REPLY: Final = re.compile(rb"(?:[2-5][0-9][0-9](?:-[ -~]*\r\n|(?: [ -~]*)?\r\n))*")
_FAULT: Final = re.compile(rb"550 5\.6\.0[^\r]*")
_ANSWERS: Final = (
    Reply(250, "2.0.0", ("Ok",)), Reply(250, "2.0.0", ("Ok",)), Reply(451, "4.3.0", ("Later",)),
    Reply(550, "5.7.1", ("No",)), Reply(421, "4.3.2", ("Stopping",)),
)  # fmt: skip
_REFUSALS: Final = (None, Reply(454, "4.7.0", ("Later",)), Reply(535, "5.7.8", ("No",)), Reply(421, "4.7.0", ("No",)))
_STATES: Final = frozenset(
    ("start", "ready", "mail", "rcpt", "content", "chunk", "chunked", "auth", "paused", "tls", "closed"))
_WITH_ENVELOPE: Final = frozenset((MAIL, RCPT, CONTENT, "chunk", CHUNKED))
_STABLE_SECRETS: Final = SimpleNamespace(token_urlsafe=lambda size: NONCE, token_bytes=bytes)


@cache
def _settings(starttls: bool, auth_without_tls: bool) -> ServerSettings:
    """Made once, as they cost more than a session; who uses them puts in what sessions count in."""
    return ServerSettings(
        "mx.example.net", message_size=SIZE, recipients=RECIPIENTS, line_length=LINE, command_length=COMMAND,
        errors=5, commands=20, starttls=starttls, mechanisms=sasl.MECHANISMS, auth_without_tls=auth_without_tls,
        auth_failures=2, fake_salt_key=b"key", scram_iterations=1, honours=BEYOND, deliver_by_s=100,
        clock=lambda: 1_700_000_000.0,
    )


class Session:
    """One session with a client, and what it came to."""

    def __init__(self, flags: int, seed: int, stream: bytes) -> None:
        self.unstuffed = b"" if b"BDAT" in stream.upper() else b"\r\n" + stream.replace(b"\r\n.", b"\r\n")
        self.permissions = _Permissions()
        self.budget = Budget(100_000 if flags & 64 else SIZE)
        self.coming = Coming()
        limits = _settings(bool(flags & 1), bool(flags & 2))
        limits.permissions, limits.budget, limits.coming = self.permissions, self.budget, self.coming
        trusted = Peer("192.0.2.9", 4711, may_xclient=bool(flags & 4))
        self.machine = Server(limits, Peer("198.51.100.7", 4711, may_xclient=bool(flags & 4)) if flags & 8 else trusted)
        self.random = Random(seed)
        self.output = b""
        self.events: list[ServerEvent] = []
        self.believed: set[str | None] = {None}
        self.closed = False

    def give(self, piece: bytes) -> None:
        """The client says `piece`, and what is to be decided is decided."""
        machine = self.machine
        events = self.check(machine.receive(piece), len(piece))
        while events:
            events = self.check(self.decide(events[-1]), 0)

    def decide(self, event: ServerEvent) -> list[ServerEvent]:
        """Say what became of the last event."""
        machine, random = self.machine, self.random
        if isinstance(event, MessageReceived):
            assert machine.state == PAUSED
            return machine.answer(random.choice(_ANSWERS))
        if isinstance(event, StartTls):
            if random.random() < 0.1:
                machine.gone()
                self.closed = True
                return []
            identity = Identity("certified", "certificate") if random.random() < 0.3 else None
            self.believed = {None, "certified" if identity else None}
            return machine.tls_started(TLS, identity)
        if isinstance(event, Authenticate):
            return self.login(event.attempt)
        if isinstance(event, TakesLong):
            return machine.go_on()
        return []

    def login(self, attempt: sasl.Attempt) -> list[ServerEvent]:
        machine, random = self.machine, self.random
        assert PASSWORD not in repr(attempt) or PASSWORD in attempt.user
        if random.random() < 0.2:
            return machine.refused(random.choice(_REFUSALS))
        if isinstance(attempt, sasl.ScramAttempt):
            return machine.keys_found(KEYS if attempt.user == "tim" else None)
        if isinstance(attempt, sasl.ScramProof):
            right = attempt.valid
            assert not right or attempt.user == "tim"
        else:
            right = (attempt.user, attempt.password) == ("tim", PASSWORD)
        if right and not attempt.authorize_as:
            self.believed.add(attempt.user)
            return machine.authenticated(Identity(attempt.user, "password"))
        return machine.refused()

    def check(self, events: list[ServerEvent], given: int) -> list[ServerEvent]:
        """What must hold after each step."""
        machine = self.machine
        output = machine.output()
        if output:
            self.output += output
            assert _REPLY.fullmatch(output), output
            assert max(map(len, output.split(b"\r\n"))) <= 510, "RFC 5321 4.5.3.1.5"
        assert machine.state in _STATES
        assert not (self.closed and (events or output)), "words behind the end"
        for event in events[:-1]:
            assert isinstance(event, PeerChanged), "the machine went on without an answer"
        for event in events:
            if isinstance(event, Closed):
                assert machine.state == CLOSED
                self.closed = True
            elif isinstance(event, MessageReceived):
                self.check_message(event)
            elif isinstance(event, PeerChanged):
                assert event.before.may_xclient
                self.believed = {None, machine.peer.identity.user if machine.peer.identity else None}
        self.events += events
        identity = machine.peer.identity
        assert (identity and identity.user) in self.believed
        envelope, reader = machine._envelope, machine._reader
        assert (envelope is not None) == (machine.state in _WITH_ENVELOPE and (
            machine.state != "chunk" or reader is not None or machine._before_chunk == MAIL))
        if machine.receiving and reader is not None:
            assert envelope is not None
            assert 0 < len(envelope.recipients) <= RECIPIENTS
            assert reader.kept <= SIZE + LINE + 2
            assert sum(map(len, reader._blocks)) <= SIZE
        assert 0 <= self.budget.used <= self.budget.limit
        assert self.coming.count == (envelope is not None)
        assert len(machine._rest) <= max(COMMAND + 2, RESPONSE_LIMIT + 2, given)
        return events

    def check_message(self, message: MessageReceived) -> None:
        envelope, content = message.envelope, message.content
        rights = self.permissions.last
        assert rights is not None
        assert rights.may_send
        assert rights.peer is self.machine.peer, "the rights of somebody else"
        assert envelope.sender == rights.sender
        assert 0 < len(envelope.recipients) <= RECIPIENTS
        assert [to.address for to in envelope.recipients] == rights.granted[: len(envelope.recipients)]
        for address in (envelope.sender, *(to.address for to in envelope.recipients)):
            assert not address or parse_address(address).text == address
            assert envelope.flags & SMTPUTF8 or address.isascii()
        assert len(content) <= SIZE
        if not envelope.flags & BINARY:
            assert not content or content.endswith(b"\r\n")
            assert b"\0" not in content
            assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
            assert max(map(len, content.split(b"\r\n"))) <= LINE
        if self.unstuffed:
            assert b"\r\n%b\r\n" % content in self.unstuffed, "content between CRLF and CRLF.CRLF"
        starts_with_dot = content.startswith(b".") or b"\r\n." in content
        assert not envelope.flags & DOTLESS or not starts_with_dot

    def end(self) -> None:
        """The client goes: nothing is left of it."""
        if self.random.random() < 0.5:
            stopped = self.machine.stop(Reply(421, "4.3.2", ("Stopping",)))
            assert self.closed or bool(stopped) == (self.machine.state == CLOSED)
            self.closed = self.machine.state == CLOSED
        self.machine.gone()
        assert self.budget.used == self.coming.count == 0


def talk(pieces: Iterable[bytes], flags: int, seed: int, stream: bytes) -> Session:
    """A whole session."""
    session = Session(flags, seed, stream)
    for piece in pieces:
        session.give(piece)
        if session.closed:
            session.give(b"NOOP\r\n")  # to deaf ears
            break
    session.end()
    return session


def run(data: bytes) -> None:
    """One session, said twice."""
    if len(data) < 4:
        return
    flags, answers, pieces = data[0], data[1], data[2] | data[3] << 8
    stream = expand(data[4:], SNIPPETS)
    real, sasl.secrets = sasl.secrets, _STABLE_SECRETS
    try:
        one = talk(lines(stream), flags, answers, stream)
        other = talk(cut(stream, pieces), flags, answers, stream)
    finally:
        sasl.secrets = real
    if replies.NO_MEMORY in other.output + one.output:
        return  # how much is held at a time depends on the pieces
    # Of several faults of one content the first that is seen is told.
    expected, output = (_FAULT.sub(b"550 5.6.0", said) for said in (one.output, other.output))
    events = other.events
    if replies.OUT_OF_TURN in output:
        assert replies.OUT_OF_TURN not in expected, "out of turn though it waited"
        assert output.endswith(replies.OUT_OF_TURN)
        assert isinstance(events[-1], Closed)
        assert expected.startswith(output.removesuffix(replies.OUT_OF_TURN)), (expected, output)
        assert one.events[: len(events) - 1] == events[:-1]
    else:
        assert (output, events) == (expected, one.events)
