"""Both machines wired back to back: what one says the other understands, in pieces of any size."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.queue.records import EIGHT_BIT, SMTPUTF8, Recipient
from mta.smtp.client import Client, Ready, Transaction
from mta.smtp.reply import Reply
from mta.smtp.server import Envelope, MessageReceived, Server
from tests.smtp.helpers import TRUSTED, converse, finished, server_settings


class Pair:
    """A client and a server, and what arrived."""

    def __init__(self, cut: int = 1 << 30, pipelining: bool = True, across: bool = True, chunks: bool = True,
                 **limits: int) -> None:
        self.cut = cut
        self.server = Server(server_settings(**limits), TRUSTED)
        self.client = Client("client.example", tls="off", pipelining=pipelining, chunking=chunks)
        self.client.pipeline_across = across
        self.server.greet()
        self.client.receive(self.server.output())
        self.arrived: list[tuple[Envelope, bytes]] = []
        self.verdicts: list[Reply] = []
        assert converse(self.server, self.client, self.answer, cut) == [Ready()]

    def answer(self, message: MessageReceived) -> Reply:
        """Take a message, with the next verdict there is."""
        self.arrived.append((message.envelope, message.content))
        return self.verdicts.pop(0) if self.verdicts else Reply(250, "2.0.0", ("Ok",))

    def deliver(self, transactions: list[Transaction]) -> list[Transaction]:
        """Send all of them, each as soon as the client takes it."""
        waiting = list(transactions)
        done: list[Transaction] = []
        while len(done) < len(transactions):
            while waiting and self.client.can_send:
                done += finished(self.client.send(waiting.pop(0)))
            done += finished(converse(self.server, self.client, self.answer, self.cut))
        return done


lines = st.lists(st.sampled_from([b"", b".", b"..", b".x", b"hello", b"QUIT", b"x" * 500, "ü".encode()]), max_size=8)
addresses = st.sampled_from(
    ["a@example.org", '"q \\" @>"@example.org', "ü@example.org", "a@bücher.example", "x@[192.0.2.1]"]
)
recipients = st.builds(
    Recipient, addresses, st.sampled_from([0, 1, 2, 4, 8, 14]), st.sampled_from([None, "rfc822;a+2Bb"])
)
transactions = st.builds(
    Transaction,
    st.sampled_from(["", "s@example.com", "ä@example.com"]),
    st.lists(recipients, min_size=1, max_size=4),
    lines.map(lambda found: b"".join(line + b"\r\n" for line in found)),
    st.sampled_from([0, EIGHT_BIT]),
    ret=st.sampled_from(["", "FULL", "HDRS"]),
    envid=st.sampled_from([None, "id+2B"]),
)


@settings(deadline=None)
@given(
    st.lists(transactions, min_size=1, max_size=5), st.integers(1, 600), st.sampled_from(["none", "inside", "across"]),
    st.booleans(),
)
def test_what_is_sent_arrives(sent: list[Transaction], cut: int, pipelining: str, chunks: bool) -> None:
    """Every message arrives once, in order, with sender, recipients, parameters and content as they were; by DATA or in
    chunks."""
    pair = Pair(cut, pipelining != "none", pipelining == "across", chunks)
    assert pair.deliver(sent) == sent
    assert len(pair.arrived) == len(sent)
    for transaction, (envelope, content) in zip(sent, pair.arrived, strict=True):
        assert content == transaction.content
        international = not all(
            address.rpartition("@")[0].isascii()
            for address in (transaction.sender, *(to.address for to in transaction.recipients))
        )
        assert bool(envelope.flags & SMTPUTF8) == international
        expected = transaction.recipients
        if not international:
            expected = [
                Recipient(to.address.replace("bücher", "xn--bcher-kva"), to.notify, to.orcpt) for to in expected
            ]
        assert (envelope.sender, envelope.recipients) == (transaction.sender, expected)
        assert (envelope.flags & EIGHT_BIT, envelope.ret, envelope.envid, envelope.size) == (
            transaction.flags, transaction.ret, transaction.envid, len(content),
        )  # fmt: skip
        assert transaction.final == Reply(250, "2.0.0", ("Ok",))
        assert not transaction.lost
        assert transaction.chunked == chunks


@pytest.mark.parametrize("cut", [1, 50, 1 << 30])
@pytest.mark.parametrize("pipelining", ["none", "inside", "across"])
@pytest.mark.parametrize("chunks", [True, False])
def test_refusals_do_not_hurt_the_neighbours(cut: int, pipelining: str, chunks: bool) -> None:
    """A mixture of accepted, refused and partly refused messages on one connection: each gets its own replies."""
    pair = Pair(cut, pipelining != "none", pipelining == "across", chunks, message_size=1000, recipients=2)
    pair.verdicts = [Reply(250, "2.0.0", ("one",)), Reply(451, "4.3.0", ("two",)), Reply(250, "2.0.0", ("three",))]

    def message(*to: str, content: bytes = b"x\r\n", sender: str = "s@example.com") -> Transaction:
        return Transaction(sender, [Recipient(address) for address in to], content)

    fine, deferred = message("a@example.org"), message("b@example.org")
    bad_sender = message("c@example.org", sender="s@.example")
    bad_recipients = message("d@.example", "e@.example")
    crowded = message("f@example.org", "g@.example", "h@example.org", "i@example.org")
    bare = message("j@example.org", content=b"a\nb\r\n")
    too_big = message("k@example.org", content=b"x" * 999 + b"\r\n")
    last = message("l@example.org")
    sent = [fine, deferred, bad_sender, bad_recipients, crowded, bare, too_big, last]
    assert sorted(map(id, pair.deliver(sent))) == sorted(map(id, sent))
    assert [str(t.final) for t in (fine, deferred, crowded, last)] == [
        "250 2.0.0 one", "451 4.3.0 two", "250 2.0.0 three", "250 2.0.0 Ok",
    ]  # fmt: skip
    assert bad_sender.mail is not None
    assert bad_sender.mail.enhanced == "5.1.7"
    assert [reply and reply.enhanced for reply in bad_recipients.rcpts] == ["5.1.3", "5.1.3"]
    assert [reply and reply.code for reply in crowded.rcpts] == [250, 501, 250, 452]
    assert bare.final is not None
    assert bare.final.enhanced == "5.6.0"
    assert too_big.local_reply is not None
    assert [len(envelope.recipients) for envelope, _ in pair.arrived] == [1, 1, 2, 1]
    assert (pair.client.pipelining_suspect, pair.client.chunking_suspect) == ("", False)
    assert not any(t.lost for t in sent)


def test_one_round_trip_per_message() -> None:
    """In steady state each side writes once per message: content with the next envelope, and all replies to those."""
    pair = Pair()
    messages = [Transaction("s@example.com", [Recipient("a@example.org")], b"x\r\n") for _ in range(20)]
    done: list[Transaction] = []
    writes = 0
    while len(done) < len(messages):
        while messages[len(done) :] and pair.client.can_send and pair.client.transactions < len(messages):
            pair.client.send(messages[pair.client.transactions])
        pending = pair.server.receive(b"".join(pair.client.output()))
        writes += 1
        while pending:
            message = pending.pop(0)
            assert isinstance(message, MessageReceived)
            pending += pair.server.answer(pair.answer(message))
        done += finished(pair.client.receive(pair.server.output()))
    assert writes == len(messages) + 1
    assert len(pair.arrived) == len(messages)


def test_server_ends_the_session() -> None:
    """A server that stops finishes the message, says 421, and the client hands back the next message untouched."""
    pair = Pair()
    first, second = (Transaction("s@example.com", [Recipient("a@example.org")], b"x\r\n") for _ in range(2))
    pair.client.send(first)
    pair.server.receive(b"".join(pair.client.output()))
    pair.client.receive(pair.server.output())
    pair.server.stop(Reply(421, "4.3.2", ("Stopping",)))
    pair.client.send(second)
    assert finished(converse(pair.server, pair.client, pair.answer)) == [first, second]
    assert first.final == Reply(250, "2.0.0", ("Ok",))
    assert (second.mail, second.lost_phase, second.dot_sent) == (None, "", False) or (
        second.mail is not None and second.mail.code == 421
    )
    assert pair.client.phase == "closed"
    assert len(pair.arrived) == 1
