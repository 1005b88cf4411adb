"""The client machine against a host that answers as it likes, when it likes: no message twice, no half of two.

The host is a model of RFC 5321 with pipelining, chunks and TLS. It refuses anything at any place, keeps its replies
back while the machine goes ahead, is cut off in the middle of what is written to it, and holds the machine to the
protocol. Each transaction bears a number in all its parts. A host that lies (replies that nobody asked for, codes that
cannot be) comes in the end, and is believed no more than it must be.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mta.queue.records import Recipient
from mta.smtp.client import Client, ClientEvent, Finished, StartTls, Transaction
from mta.smtp.errors import RemoteProtocolError

NUMBER = re.compile(r"N(\d+)N")
ODD_LINES = (b"", b".\r\n", b"..\r\n.x\r\n", b"QUIT\r\nRSET\r\nMAIL FROM:<e@example.com>\r\n", b"\xff\xfe\r\n")
REFUSALS = (b"450 4.2.0 later", b"550 5.1.1 no", b"552-5.2.2 two\r\n552 5.2.2 lines", b"421 4.3.2 down", b"500 what",
            b"503 5.5.1 out of sequence", b"554 5.5.0 no pipelining here")
LIES = (b"250 2.0.0 queued as smuggled\r\n", b"354 go on\r\n", b"220 hello\r\n250 2.1.0 ok\r\n", b"999 x\r\n",
        b"250 ok\n", b"\r\n", b"250-a\r\n550 b\r\n", b"250", b"\xff\xff\xff\xff\r\n")  # fmt: skip


@dataclass
class Host:
    """Reads what a client writes, and has a reply to everything."""

    extensions: tuple[str, ...]
    decisions: deque[bytes] = field(default_factory=deque)  # for the next commands; empty: yes
    replies: bytes = b"220 mx.example.net\r\n"  # not delivered yet
    accepted: dict[int, list[tuple[str, list[str], bytes]]] = field(default_factory=dict)
    said: dict[tuple[str, str], bytes] = field(default_factory=dict)  # replies by verb and address, the last ones
    state: str = "start"  # or ready, mail, content, chunk, tls, gone
    buffer: bytes = b""
    sender: str = ""
    recipients: list[str] = field(default_factory=list)
    left: int = 0
    confused: bool = False  # RSET was refused
    refused_mail: bool = False  # what follows in its group means nothing

    def hear(self, data: bytes) -> None:
        """Octets of the client."""
        self.buffer += data
        while self.state not in ("gone", "tls"):
            if self.state == "content":
                start = -2 if self.buffer.startswith(b".\r\n") else self.buffer.find(b"\r\n.\r\n")
                if start == -1:
                    return
                content, self.buffer = self.buffer[: start + 2], self.buffer[start + 5 :]
                self.take(re.sub(rb"(?m)^\.", b"", content))
            elif self.state == "chunk":
                if len(self.buffer) < self.left:
                    return
                content, self.buffer = self.buffer[: self.left], self.buffer[self.left :]
                self.take(content)
            else:
                line, end, rest = self.buffer.partition(b"\r\n")
                if not end:
                    return
                self.buffer = rest
                self.obey(line)

    def decide(self, yes: bytes) -> bool:
        """Say yes, or what was decided."""
        reply = self.decisions.popleft() if self.decisions else b""
        self.replies += (reply or yes) + b"\r\n"
        if reply.startswith(b"421"):
            self.state = "gone"
        return not reply

    def obey(self, line: bytes) -> None:
        """A command: it must be one that may come now."""
        verb, _, rest = line.decode().partition(" ")
        assert re.fullmatch(rb"[ -~]+", line), line
        address = rest.partition("<")[2].partition(">")[0]
        if verb in ("EHLO", "HELO"):
            assert self.state in ("start", "ready"), (self.state, line)
            lines = ["mx.example.net", *self.extensions] if verb == "EHLO" else ["mx.example.net"]
            ends = [" " if number == len(lines) else "-" for number in range(1, len(lines) + 1)]
            if self.decide("\r\n".join(f"250{end}{one}" for one, end in zip(lines, ends, strict=True)).encode()):
                self.state = "ready"
        elif verb == "STARTTLS":
            assert self.state == "ready"
            assert not self.buffer
            if self.decide(b"220 2.0.0 go"):
                self.state = "tls"
        elif verb == "RSET":
            if self.decide(b"250 2.0.0 ok"):
                self.state, self.recipients = "ready", []
            else:
                self.confused = True  # what follows in the group goes into the transaction from before, and no further
        elif verb == "MAIL":
            if self.confused and self.state == "mail":
                self.replies += b"503 5.5.1 nested MAIL\r\n"
                return
            assert self.state == "ready", (self.state, line)
            self.recipients = []
            yes = self.decide(b"250 2.1.0 ok")
            self.refused_mail = not yes
            if yes:
                self.state, self.sender = "mail", address
        elif verb == "RCPT":
            if self.state != "mail":
                assert self.refused_mail, line
                self.replies += b"503 5.5.1 need MAIL\r\n"
            else:
                assert self.confused or NUMBER.findall(address) == NUMBER.findall(self.sender), (address, self.sender)
                if self.decide(b"250 2.1.5 ok"):
                    self.recipients.append(address)
        elif verb == "DATA":
            if self.state != "mail":
                assert self.refused_mail, line
                self.replies += b"503 5.5.1 need MAIL\r\n"
            elif self.recipients or len(self.said) % 2:  # without a recipient one host says yes, another no
                if self.decide(b"354 go on"):
                    self.state = "content"
            else:
                self.replies += b"554 5.5.1 no valid recipients\r\n"
        elif verb == "BDAT":
            assert self.state == "mail", (self.state, line)
            assert self.recipients
            assert "CHUNKING" in self.extensions
            size, last = rest.split(" ")
            assert last == "LAST"
            self.state, self.left = "chunk", int(size)
        else:
            assert verb == "QUIT", line
            self.replies += b"221 2.0.0 bye\r\n"
            self.state = "gone"

    def take(self, content: bytes) -> None:
        """A whole content."""
        self.state, recipients, self.recipients = "ready", self.recipients, []
        if recipients:
            assert set(NUMBER.findall(content.decode("latin-1"))) == set(NUMBER.findall(self.sender)), "two mixed"
        else:
            assert content == b"", "content for nobody"
        if self.decide(b"250 2.0.0 queued"):
            self.said[("taken", self.sender)] = content
            if recipients:
                number = int(NUMBER.findall(self.sender)[0])
                self.accepted.setdefault(number, []).append((self.sender, recipients, content))


class AnyHost(RuleBasedStateMachine):
    """A client, a host, and the wire between them."""

    extension_sets = st.builds(
        set.union, st.sampled_from([{"PIPELINING"}, {"PIPELINING"}, set()]),
        st.sets(st.sampled_from(["PIPELINING", "CHUNKING", "STARTTLS", "SIZE 1000000", "DSN"])))

    @initialize(extensions=extension_sets, tls=st.sampled_from(["opportunistic", "off"]),
                across=st.sampled_from([True, True, True, False]),
                options=st.booleans(), opened=st.sampled_from([True, True, True, False]))
    def connect(self, extensions: set[str], tls: str, across: bool, options: bool, opened: bool) -> None:
        """A new connection, mostly with its opening behind it."""
        self.host = Host(tuple(sorted(extensions)))
        self.client = Client("client.example", tls=tls, chunking=options)
        self.client.pipeline_across = across
        self.sent: list[Transaction] = []
        self.finished: list[Transaction] = []
        self.written = b""
        self.honest = True
        while opened and self.client.phase != "ready":
            size = self.host.replies.index(b"\r\n") + 2
            data, self.host.replies = self.host.replies[:size], self.host.replies[size:]
            self.read(data)

    @property
    def over(self) -> bool:
        """Whether the connection is."""
        return self.client.phase == "closed"

    def note(self, events: list[ClientEvent]) -> None:
        """What the machine tells."""
        for event in events:
            if isinstance(event, Finished):
                assert event.transaction not in self.finished, "finished twice"
                self.finished.append(event.transaction)
            elif isinstance(event, StartTls):
                assert self.honest
                self.host.state, self.host.replies, self.host.buffer = "ready", b"", b""
                self.client.tls_established()
        self.write()

    def write(self, cut: int | None = None) -> None:
        """Carry what the machine has to say; only `cut` octets of it, and the line is dead."""
        data = b"".join(self.client.output())
        said = data if cut is None else data[:cut]
        self.written += said
        if self.honest:
            self.host.hear(said)
        if cut is not None:
            self.client.unsent(len(data) - len(said))
            self.note(self.client.lost("connection lost"))

    def read(self, data: bytes) -> None:
        """Give the machine octets of the host."""
        try:
            self.note(self.client.receive(data))
        except RemoteProtocolError as error:
            if self.honest or not str(error).isprintable():
                raise AssertionError("an honest host is no liar") from error
            self.note(self.client.lost(str(error)))

    decisions = st.lists(st.sampled_from([b""] * 12 + [*REFUSALS]), max_size=6)

    # So many pieces of a size: all, at once or octet by octet; a few; none.
    paces = st.sampled_from(
        [(99, 100_000), (999, 1), (1, 100_000), (1, 100_000), (2, 100_000), (3, 30), (20, 1), (0, 1)])

    @precondition(lambda self: self.client.can_send)
    @rule(recipients=st.integers(1, 3), odd=st.sampled_from(ODD_LINES), decisions=decisions,
          end=st.sampled_from([b"", b"\r\n", b"x"]), cut=st.sampled_from([None] * 30 + [0, 20, 60, 100, 140, 200]),
          pace=paces)
    def send(self, recipients: int, odd: bytes, decisions: list[bytes], end: bytes, cut: int | None,
             pace: tuple[int, int]) -> None:
        """A message, of which not all may come to be written; and some of what is said to it arrives."""
        number = len(self.sent) + 1
        mark = f"N{number}N"
        content = f"Subject: {mark}\r\n\r\n{mark}\r\n".encode() + odd + end
        to = [Recipient(f"{mark}.{one}@example.org") for one in range(recipients)]
        transaction = Transaction(f"{mark}@example.com", to, content)
        self.sent.append(transaction)
        self.host.decisions.extend(decisions)
        events = self.client.send(transaction)
        if cut is None:
            self.note(events)
            self.answer(pace, [])
        else:
            self.write(cut)

    @precondition(lambda self: self.host.replies and not self.over)
    @rule(pace=paces, decisions=decisions)
    def answer(self, pace: tuple[int, int], decisions: list[bytes]) -> None:
        """Some of what the host has said arrives, piece by piece."""
        self.host.decisions.extend(decisions)
        pieces, size = pace
        for _ in range(pieces):
            if self.over or not self.host.replies:
                return
            end = self.host.replies.index(b"\n") + 1 if self.client.phase == "starttls" else size
            data, self.host.replies = self.host.replies[: min(size, end)], self.host.replies[min(size, end) :]
            self.read(data)

    seldom = st.sampled_from([False] * 15 + [True])

    @precondition(lambda self: not self.over)
    @rule(really=seldom)
    def hang_up(self, really: bool) -> None:
        """The host closes the connection; what it had said may be lost."""
        if really:
            self.note(self.client.eof())

    @precondition(lambda self: not self.over and self.client.phase == "ready")
    @rule(really=seldom)
    def quit(self, really: bool) -> None:
        """We are done."""
        if really:
            self.client.quit()
            self.write()

    @precondition(lambda self: not self.over and self.client.phase != "handshake")
    @rule(lie=st.sampled_from(LIES), again=st.integers(1, 3), really=seldom)
    def lie(self, lie: bytes, again: int, really: bool) -> None:
        """From now on the host says anything."""
        if not really:
            return
        self.honest = False
        for _ in range(again):
            if not self.over:
                self.read(lie)

    @precondition(lambda self: self.over)
    @rule(extensions=extension_sets)
    def connect_again(self, extensions: set[str]) -> None:
        """The account of this connection, and another one."""
        self.teardown()
        self.connect(extensions, "opportunistic", True, True, True)

    def teardown(self) -> None:
        """All are finished, once, and those that were taken are those that were told to be."""
        if not hasattr(self, "client"):
            return
        if not self.over:
            self.note(self.client.lost("the test ends"))
        assert len(self.finished) == len(self.sent)
        for transaction in self.sent:
            if transaction.final is not None and transaction.final.positive:
                mark = f"Subject: {transaction.sender.partition('@')[0]}".encode()
                assert mark in self.written, "success before content was written"
            if self.honest:
                self.check(transaction)

    def check(self, transaction: Transaction) -> None:
        """One message, with an honest host."""
        number = int(NUMBER.findall(transaction.sender)[0])
        taken = self.host.accepted.get(number, [])
        wanted = [to.address for to, reply in zip(transaction.recipients, transaction.rcpts, strict=True)
                  if reply is not None and reply.positive]
        for _, recipients, content in taken:
            whole = transaction.content if transaction.content.endswith(b"\r\n") else transaction.content + b"\r\n"
            assert content == whole
            if transaction.final is not None:
                assert recipients == wanted
        if transaction.final is not None and transaction.final.positive and wanted:
            assert len(taken) == 1
        elif transaction.dot_sent and transaction.final is None:
            assert len(taken) <= 1
        else:
            assert taken == [], transaction


AnyHost.TestCase.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)
TestAnyHost = AnyHost.TestCase
