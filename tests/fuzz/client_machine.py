"""The client machine against hosts that say anything at any time.

What the client says is counted as questions: as many as it has said, less the answers that it took, it must wait for.
So it never waits for an answer to something that it did not say, and never stands still with nothing to wait for.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Final

from mta.delivery.outcome import End, judge
from mta.queue.records import BINARY, EIGHT_BIT, REQUIRE_TLS, SMTPUTF8, Recipient
from mta.smtp.client import Client, ClientEvent, Finished, Greeted, Ready, Refused, StartTls
from mta.smtp.data import stuff
from mta.smtp.errors import RemoteProtocolError
from mta.smtp.transaction import Transaction
from tests.fuzz.script import LIMIT

_CONTENTS: Final = (
    b"Subject: x\r\n\r\nx\r\n", b".\r\n..\r\nQUIT\r\n", b"", b"no end", "Subject: ü\r\n\r\n".encode(),
    b"x" * 3000 + b"\r\n",
)  # fmt: skip
_SENDERS: Final = ("a@example.com", "", "ä@example.com", "a@bücher.example", "a@x>\r\nRCPT TO:<b@example.org")
_RECIPIENTS: Final = (
    Recipient("b@example.org"), Recipient("c@example.org", 2, "rfc822;d+2Bd"), Recipient("ü@example.org"),
    Recipient('"q > "@bücher.example', 1), Recipient("b@example.org\n"), Recipient("x@" + "a" * 60 + ".\udcff"),
)  # fmt: skip

# What a host may say. The first ones depend on what it was asked.
_FITTING: Final = {
    "greeting": b"220 mx.example.net ESMTP\r\n",
    "ehlo": b"250-mx.example.net\r\n250-PIPELINING\r\n250-SIZE 10000\r\n250-8BITMIME\r\n250-DSN\r\n250-SMTPUTF8\r\n"
            b"250-MT-PRIORITY\r\n250-BINARYMIME\r\n250-REQUIRETLS\r\n250-DELIVERBY 100\r\n"
            b"250-CHUNKING\r\n250 STARTTLS\r\n",
    "data": b"354 go\r\n",
}  # fmt: skip
_ANSWERS: Final = (
    b"", b"", b"", b"", b"550 5.1.1 no\r\n", b"450 4.2.1 later\r\n", b"421 4.3.2 bye\r\n",
    b"503 5.5.1 out of sequence\r\n",
    b"554 pipelining is not for you\r\n", b"500 what\r\n", b"552 5.3.4 too big\r\n", b"452 4.5.3 too many\r\n",
    b"250 2.0.0 ok\r\n", b"354 go\r\n", b"220 go\r\n", b"250-one\r\n250 two\r\n", b"250-one\r\n550 two\r\n",
    b"250-x\r\n",
    b"250", b"\r\n", b"250 ok\n", b"250\r\n", b"250ok\r\n", b"199 no\r\n", b"600 no\r\n", b"334 x\r\n", b"221 bye\r\n",
    b"250 " + b"x" * 5000 + b"\r\n", b"250 " + b"x" * 2100 + b"\r\n", b"250-x\r\n" * 130, b"\xff\xfe\r\n", b"\0",
    b"250 \x1b[2J\tx\x85\r\n", b"251 2.1.5 forwarded\r\n", b"250 5.1.1 contradiction\r\n",
    b"250-mx\r\n250 HELP\r\n", b"250-mx\r\n250-PIPELINING\r\n250 LIMITS RCPTMAX=2 MAILMAX=x\r\n",
    b"250-mx\r\n250-SIZE 99999999999999999999999\r\n250-AUTH=LOGIN\r\n250-\r\n250 CHUNKING\r\n",
    b"250-mx\r\n250-STARTTLS\r\n250 SIZE=1\r\n", b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n",
    b"HTTP/1.1 400 Bad\r\n", b"220-mx\r\n220 x\r\n", b"521 5.3.2 no mail here\r\n", b"535 5.7.8 x\r\n",
)  # fmt: skip

WORDS: Final = (
    b"250 ", b"250-", b"550 5.7.1 ", b"421 ", b"354 ", b"503 ", b"PIPELINING", b"SIZE ", b"CHUNKING", b"STARTTLS",
    b"LIMITS ", b"RCPTMAX=", b"pipelin", b"synchroni", b"\r\n", b"\n",
)  # fmt: skip
# Flags, the seed of what we do, then what the host says: octets from 128 on are the answers above.
SEEDS: Final = (
    b"\x0e\0" + b"\x80" * 24, b"\x06\0" + b"\x80" * 24, b"\x02\3" + b"\x80" * 24, b"\x0f\5" + b"\x80" * 32,
    b"\x0e\7" + b"\x80\x80\x80\x84\x80\x85\x80\x80\x80\x86", b"\x0e\x09" + b"\x80" * 8 + b"\x87\x80\x80\x88",
    b"\x04\1\x80\xa3" + b"\x80" * 16, b"\x0c\2\x80\xa7" + b"\x80" * 16,
    b"\x4c\4" + b"\x80" * 40, b"\x0e\4\x80\x89\x80\x80\x80\x80\x80",
)  # fmt: skip


class Host:
    """A host, the client that talks to it, and what they have done so far."""

    def __init__(self, flags: int, seed: int) -> None:
        self.random = Random(seed)
        self.wishes = Random(seed) if flags & 64 else None  # what few senders ask for
        self.client = Client(
            "client.example", tls=("opportunistic", "required", "off")[(flags & 3) % 3], pipelining=not flags & 16,
            chunking=bool(flags & 8), esmtp=not flags & 32,
        )
        self.client.pipeline_across = bool(flags & 4)
        self.greeted = self.ready = False
        self.refused: Refused | None = None
        self.handshakes = 0
        self.questions = 1  # the greeting
        self.taken = 0  # answers, before those of the present machine
        self.sent: list[Transaction] = []
        self.done: list[Transaction] = []
        self.wire: set[bytes] = set()  # contents that were written whole
        self.over = False

    def fitting(self) -> bytes:
        """What a host that wishes us well answers now."""
        return _FITTING.get(self.client.phase, b"250 2.0.0 Ok\r\n")

    def hear(self, said: bytes) -> None:
        """The host says something."""
        client = self.client
        if client.phase == "handshake":
            if self.random.random() < 0.1:
                self.note(client.lost("handshake failed"))
            else:
                client.tls_established()
            self.check()
            return
        try:
            events = client.receive(said)
        except RemoteProtocolError as error:
            assert str(error).isprintable()
            self.note(client.lost(str(error)))
            assert client.phase == "closed"
        else:
            self.note(events)
        self.check()

    def note(self, events: list[ClientEvent]) -> None:
        """What the machine tells."""
        for event in events:
            if isinstance(event, Greeted):
                assert not self.greeted
                self.greeted = True
            elif isinstance(event, Ready):
                assert self.greeted
                assert not self.ready
                self.ready = True
            elif isinstance(event, Refused):
                assert self.refused is None
                assert not self.ready
                self.refused = event
            elif isinstance(event, StartTls):
                self.handshakes += 1
                assert self.handshakes == 1
                assert self.client.phase in ("handshake", "closed")
            else:
                self.finished(event)

    def finished(self, event: Finished) -> None:
        done = event.transaction
        assert all(done is not one for one in self.done), "finished twice"
        self.done.append(done)

    def act(self) -> None:
        """Send what may be sent, and write what is to be written; sometimes not yet, sometimes not all."""
        client, random = self.client, self.random
        chance = random.random()
        if chance < 0.1:
            return
        while client.can_send and len(self.sent) < 8:
            transaction = Transaction(
                random.choice(_SENDERS) if random.random() < 0.3 else "a@example.com",
                [random.choice(_RECIPIENTS) if random.random() < 0.2 else _RECIPIENTS[0]
                 for _ in range(random.choice((1, 1, 2, 3)))],
                random.choice(_CONTENTS), EIGHT_BIT * (random.random() < 0.3) | SMTPUTF8 * (random.random() < 0.2),
                ret=random.choice(("", "FULL")), envid=random.choice((None, "id+2B")),
                priority=random.choice((None, 3)),
            )  # fmt: skip
            if self.wishes is not None:
                transaction.flags |= BINARY * (self.wishes.random() < 0.2) | REQUIRE_TLS * (self.wishes.random() < 0.2)
                transaction.eight_bit_offered = self.wishes.random() < 0.2
                transaction.by_mode = self.wishes.choice(("", "", "R", "N", "RT", "NT"))
                transaction.by_s = self.wishes.choice((-5, 50, 500))
                transaction.by_required = self.wishes.random() < 0.5
            self.sent.append(transaction)
            self.note(client.send(transaction))
        if chance < 0.15 and self.ready and client.current is None and client.phase != "closed":
            client.quit()
        self.write(client.output())
        if chance > 0.97 and client.phase != "closed":
            client.unsent(random.choice((1, 5, 100, 10_000)))
            assert not client.can_send

    def write(self, pieces: list[bytes]) -> None:
        """Count the questions in what is written."""
        ends = {id(piece) for piece, following in pairwise(pieces) if following == b".\r\n"}
        chunk = False
        for piece in pieces:
            if chunk:
                assert piece in _CONTENTS or piece[:-2] in _CONTENTS
                self.wire.add(piece)
                chunk = False
            elif piece.startswith(b"BDAT "):
                self.questions += 1
                chunk = True
            elif id(piece) in ends and piece in _STUFFED:
                self.wire.add(piece)
            else:
                assert piece == b".\r\n" or piece.endswith(b"\r\n")
                assert piece.count(b"\r\n") == piece.count(b"\n") == piece.count(b"\r"), "a line of its own"
                self.questions += piece.count(b"\r\n")
        assert not chunk

    def check(self) -> None:
        """What must hold after each step."""
        client = self.client
        phase = client.phase
        if phase == "closed":
            assert not client.can_send
            assert client.current is None
            assert len(self.done) == len(self.sent)
            self.over = True
            return
        under_way = len(self.sent) - len(self.done)
        assert under_way == (client.current is not None) + (client._next is not None)
        if phase in ("ready", "handshake"):
            assert not client._asked
            assert under_way == 0
            assert phase != "ready" or client.can_send or client._cut or client._quitting, "it stands still"
        else:
            said = self.questions + _questions(client._output)
            assert said - client.answers == len(client._asked) > 0, (said, client.answers, client._asked)
        assert _asked_of_the_host(self.done) == _asked_of_the_host(self.sent)[: len(_asked_of_the_host(self.done))]

    def end(self) -> None:
        """The host is gone: every transaction has come to one end, each recipient to one."""
        self.note(self.client.eof())
        self.check()
        assert sorted(map(id, self.done)) == sorted(map(id, self.sent)), "each finished once"
        for one in self.sent:
            _check_end(one, self.wire, self.random.random() < 0.5)
        self.client.receive(b"250 late\r\n")
        assert not self.client.output() or self.client._quitting
        self.client.quit()


_STUFFED: Final = frozenset(map(stuff, _CONTENTS)) | frozenset(_CONTENTS)


def _asked_of_the_host(transactions: list[Transaction]) -> list[int]:
    """Those that were sent: the others are finished at once."""
    return [id(one) for one in transactions if one.local_reply is None]


def _questions(pieces: list[bytes]) -> int:
    host = Host(0, 0)
    host.write(pieces)
    return host.questions - 1


def _check_end(done: Transaction, wire: set[bytes], good: bool) -> None:
    outcome = judge(done, good, 0)
    assert [result.recipient for result in outcome.results] == done.recipients, "one outcome for each recipient"
    written = stuff(done.content) in wire or done.content in wire or done.content + b"\r\n" in wire
    for result in outcome.results:
        if result.end is End.DELIVERED:
            assert done.final is not None
            assert done.final.positive
            assert done.dot_sent
            assert written
        assert str(result.reply).isprintable()
    if done.dot_sent:
        assert written
        assert not done.flags & BINARY or (done.chunked and done.content in wire), "binary content goes as it is"
        assert done.mail is not None
        assert done.mail.positive
        assert any(reply is not None and reply.positive for reply in done.rcpts)
    assert len(done.rcpts) == len(done.recipients)


def run(data: bytes) -> None:
    """One session with one host."""
    if len(data) < 2:
        return
    host = Host(data[0], data[1])
    said = b""
    for octet in data[2:LIMIT]:
        if octet < 128:
            said += bytes((octet,))
            if octet != 10:
                continue
        else:
            said += _ANSWERS[(octet - 128) % len(_ANSWERS)] or (b"" if said else host.fitting())
        if host.random.random() < 0.1 and len(said) > 3:
            middle = host.random.randrange(1, len(said))
            host.hear(said[:middle])
            said = said[middle:]
        if not host.over:
            host.hear(said)
        said = b""
        if host.over:
            break
        host.act()
        host.check()
    host.end()
