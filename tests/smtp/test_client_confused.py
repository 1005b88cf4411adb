"""The client machine against hosts that are hostile or confused: never success, never out of step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.smtp.client import Client, Finished, Transaction
from mta.smtp.errors import RemoteProtocolError
from tests.smtp.client_words import TAKEN
from tests.smtp.helpers import EHLO, PLAIN_EHLO, exchange, fails, finished, new_client, pieces, transaction, wire


@pytest.mark.parametrize(
    ("before", "nonsense"),
    [
        (b"", b"354 go\r\n"),
        (b"250 ok\r\n", b"354 go\r\n"),
        (b"", b"350 what\r\n"),
        (b"250 ok\r\n250 ok\r\n", b"250 no 354\r\n"),
        (b"250 ok\r\n250 ok\r\n", b"221 bye\r\n"),
        (TAKEN, b"354 again\r\n"),
        (TAKEN, b"250 ok\n"),
        (TAKEN, b"hello\r\n"),
        (TAKEN, b"150 x\r\n"),
        (TAKEN, b"999 x\r\n"),
        (TAKEN, b"250 " + b"x" * 10_000_000),
        (TAKEN, b"250-x\r\n" * 100_000),
        (TAKEN, b"250-x\r\n550 y\r\n"),
    ],
)
def test_nonsense_is_never_success(before: bytes, nonsense: bytes) -> None:
    """A reply that cannot be, or is none, ends the session; the message is in doubt at most, and never delivered."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    exchange(client, before)
    assert finished(fails(client, nonsense)) == [sent]
    assert sent.final is None
    assert sent.lost
    assert sent.dot_sent == (before == TAKEN)
    assert client.phase == "closed"


def test_reply_before_anything_was_asked() -> None:
    """A reply to nothing, also inside TLS, is an attack or a host out of step (CVE-2009-3555)."""
    client = new_client()
    with pytest.raises(RemoteProtocolError):
        client.receive(b"250 ok\r\n")
    client = Client("client.example")
    with pytest.raises(RemoteProtocolError):
        client.receive(b"220 hi\r\n" + EHLO + b"250 early\r\n")
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, TAKEN)
    assert finished(fails(client, b"250 queued\r\n250 surplus\r\n")) == [sent]
    assert sent.final is not None


def test_greeting_that_is_none() -> None:
    """An HTTP server or TLS on the other side is found at its first line."""
    for greeting in (b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x01\x00\x02\x02F\r\n", b"* OK IMAP\r\n", b"350 x\r\n"):
        with pytest.raises(RemoteProtocolError):
            Client("client.example").receive(greeting)


@pytest.mark.parametrize(
    "refusal",
    [b"503 5.5.1 nested MAIL\r\n", b"554 5.5.0 SMTP protocol synchronization\r\n", b"550 no pipelining here\r\n"],
)
def test_host_that_does_not_bear_pipelining_across(refusal: bytes) -> None:
    """The envelope is handed back as if it had not been sent, and the form is under suspicion."""
    client = new_client()
    first, second = transaction(), transaction()
    client.send(first)
    exchange(client, TAKEN)
    client.send(second)
    assert exchange(client, b"250 queued\r\n" + refusal) == [Finished(first), Finished(second)]
    assert first.final is not None
    assert first.final.code == 250
    assert (second.mail, second.rcpts, second.lost_phase) == (None, [None], "")
    assert "pipelining" in second.lost
    assert (client.pipelining_suspect, client.phase) == ("across", "closed")


def test_content_refused_because_of_its_successor() -> None:
    """When the host takes the early envelope for the fault of the content, neither message suffers."""
    client = new_client()
    first, second = transaction(), transaction()
    client.send(first)
    exchange(client, TAKEN)
    client.send(second)
    assert exchange(client, b"554 5.5.0 improper use of pipelining\r\n") == [Finished(first), Finished(second)]
    for sent in (first, second):
        assert (sent.final, sent.mail, sent.dot_sent) == (None, None, False)
        assert sent.lost
    assert client.pipelining_suspect == "across"


@pytest.mark.parametrize("replies", [b"250 ok\r\n503 need MAIL\r\n", b"250 ok\r\n250 ok\r\n503 need RCPT\r\n"])
def test_host_that_does_not_bear_pipelining_inside(replies: bytes) -> None:
    """A host that loses its place inside a group is suspected of that, and the message is handed back."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    assert exchange(client, replies) == [Finished(sent)]
    assert (sent.mail, sent.rcpts, sent.data) == (None, [None], None)
    assert sent.lost
    assert client.pipelining_suspect == "inside"


def test_503_without_pipelining_is_a_verdict() -> None:
    """Without pipelining, or to the first command of a group, 503 is what it says."""
    client = new_client(PLAIN_EHLO)
    sent = transaction()
    client.send(sent)
    exchange(client, b"250 ok\r\n", b"503 authenticate first\r\n")
    assert sent.rcpts[0] is not None
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, b"503 authenticate first\r\n503 no\r\n503 no\r\n")
    assert sent.mail is not None
    assert client.pipelining_suspect == ""


def test_hanging_up_at_an_envelope_sent_across() -> None:
    """A host that closes at its first such envelope is suspected; one that has taken some before is not."""
    client = new_client()
    client.send(transaction())
    exchange(client, TAKEN)
    client.send(transaction())
    exchange(client, b"250 queued\r\n")
    client.eof()
    assert client.pipelining_suspect == "across"
    client = new_client()
    client.send(transaction())
    for _ in range(3):
        exchange(client, TAKEN)
        client.send(transaction())
        exchange(client, b"250 queued\r\n")
    client.eof()
    assert client.pipelining_suspect == ""


REPLIES = [
    b"250 ok\r\n", b"250 2.0.0 ok\r\n", b"354 go\r\n", b"550 no\r\n", b"450 later\r\n", b"421 bye\r\n", b"503 what\r\n",
    b"250-a\r\n250 b\r\n", b"251 x\r\n", b"garbage\r\n", b"250 ok\n", b"221 x\r\n", b"25", b"554 pipelining\r\n",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(REPLIES), max_size=30),
    st.booleans(),
    st.lists(st.integers(1, 3), min_size=30, max_size=30),
    st.integers(1, 20),
)
def test_any_host(replies: list[bytes], pipelined: bool, recipients: list[int], size: int) -> None:
    """Whatever a host says, every transaction is finished exactly once, success needs a 250 after the dot was written,
    and no doubt remains where the dot was not."""
    client = new_client(EHLO if pipelined else PLAIN_EHLO)
    sent: list[Transaction] = []
    ended: list[Transaction] = []
    written = b""
    contents = (b"Subject: %d\r\n\r\nx\r\n" % number for number in range(1000))

    def fill() -> None:
        nonlocal written
        while client.can_send:
            new = transaction(*["b@example.org"] * recipients[len(sent) % 30], content=next(contents))
            sent.append(new)
            ended.extend(finished(client.send(new)))
            written += wire(client)
        written += wire(client)

    fill()
    try:
        for reply in replies:
            for piece in pieces(reply, [size] * 10):
                ended += finished(client.receive(piece))
                for done in ended:
                    if done.final is not None and done.final.positive:
                        assert done.content + b".\r\n" in written
                fill()
        ended += finished(client.eof())
    except RemoteProtocolError as error:
        ended += finished(client.lost(str(error)))
    assert ended == sent[: len(ended)]
    assert len(ended) == len(sent)
    for done in sent:
        if done.dot_sent:
            assert done.content + b".\r\n" in written
            assert done.mail is not None
            assert done.mail.positive
            assert any(reply is not None and reply.positive for reply in done.rcpts)
        elif done.content + b".\r\n" in written:
            assert done.final is None or not done.final.positive
