"""The client machine when a host refuses recipients, the sender, or the content, before or after it was sent."""

from __future__ import annotations

import pytest

from mta.smtp.client import Finished
from mta.smtp.reply import Reply
from tests.smtp.client_words import DATA, MAIL, RCPT, TAKEN
from tests.smtp.helpers import PLAIN_EHLO, exchange, fails, finished, new_client, transaction, wire

# -- refusals ------------------------------------------------------------------------------------------------


def test_replies_belong_to_recipients_by_position() -> None:
    """Some taken, some deferred, some refused: every recipient has its own reply, and the message goes to the rest."""
    client = new_client()
    sent = transaction("a@x.example", "b@x.example", "c@x.example", "d@x.example")
    client.send(sent)
    exchange(
        client,
        b"250 ok\r\n250 a\r\n450 b\r\n550-5.1.1 c\r\n550 5.1.1 cc\r\n250 d\r\n354 go\r\n",
    )
    assert sent.dot_sent
    assert finished(client.receive(b"250 queued\r\n")) == [sent]
    assert [str(reply) for reply in sent.rcpts] == ["250 a", "450 b", "550 5.1.1 c cc", "250 d"]
    assert sent.final is not None


@pytest.mark.parametrize("final", [b"250 ok\r\n", b"554 no recipients\r\n", b"451 what\r\n"])
def test_all_recipients_refused_but_data_allowed(final: bytes) -> None:
    """A lone dot, never the content, and its answer means nothing (RFC 2920 3.1)."""
    client = new_client()
    sent = transaction("a@x.example", "b@x.example")
    client.send(sent)
    wire(client)
    assert client.receive(b"250 ok\r\n550 a\r\n450 b\r\n354 go\r\n") == []
    assert wire(client) == b".\r\n"
    assert not client.can_send
    assert finished(client.receive(final)) == [sent]
    assert (sent.final, sent.dot_sent, sent.lost) == (None, False, "")
    assert [reply and reply.code for reply in sent.rcpts] == [550, 450]
    client.send(transaction())
    assert wire(client) == MAIL + RCPT + DATA  # no RSET: the dot has ended that transaction


@pytest.mark.parametrize("reply", [b"554 no valid recipients\r\n", b"503 need RCPT\r\n", b"451 later\r\n"])
def test_all_recipients_refused_and_data_too(reply: bytes) -> None:
    """The host's transaction is still open, so RSET goes before the next MAIL, in the same write."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    (event,) = exchange(client, b"250 ok\r\n550 no\r\n" + reply)
    assert event == Finished(sent)
    assert client.pipelining_suspect == ""
    following = transaction()
    client.send(following)
    assert client.phase == "rset"
    assert wire(client) == b"RSET\r\n" + MAIL + RCPT + DATA
    assert exchange(client, b"250 reset\r\n" + TAKEN, b"250 queued\r\n") == [Finished(following)]


def test_all_recipients_refused_without_pipelining() -> None:
    """DATA is not even asked; RSET waits for its own answer before the next MAIL."""
    client = new_client(PLAIN_EHLO)
    sent = transaction()
    client.send(sent)
    assert exchange(client, b"250 ok\r\n", b"550 no\r\n") == [Finished(sent)]
    assert sent.data is None
    client.send(transaction())
    assert wire(client) == b"RSET\r\n"
    client.receive(b"250 reset\r\n")
    assert wire(client) == b"MAIL FROM:<a@example.com>\r\n"


def test_data_refused() -> None:
    """4xx or 5xx to DATA is the verdict for those who were accepted; the session goes on after RSET."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    assert exchange(client, b"250 ok\r\n250 ok\r\n452 full\r\n") == [Finished(sent)]
    assert sent.data is not None
    assert (sent.data.code, sent.final, sent.dot_sent) == (452, None, False)
    client.send(transaction())
    assert wire(client).startswith(b"RSET\r\n")


@pytest.mark.parametrize("mail", [b"550 5.7.1 no\r\n", b"451 later\r\n"])
def test_mail_refused(mail: bytes) -> None:
    """The replies to RCPT and DATA that are under way are read and mean nothing; no RSET is needed."""
    client = new_client()
    sent = transaction("a@x.example", "b@x.example")
    client.send(sent)
    wire(client)
    assert client.receive(mail + b"503 need MAIL\r\n250 strange\r\n") == []
    assert finished(client.receive(b"503 need MAIL\r\n")) == [sent]
    assert sent.mail is not None
    assert (sent.rcpts, sent.data) == ([None, None], None)
    client.send(transaction())
    assert wire(client) == MAIL + RCPT + DATA


def test_mail_refused_without_pipelining() -> None:
    """The transaction is over with the reply."""
    client = new_client(PLAIN_EHLO)
    sent = transaction()
    client.send(sent)
    assert exchange(client, b"550 no\r\n") == [Finished(sent)]
    assert client.can_send


def test_mail_refused_but_data_allowed() -> None:
    """Even then nothing but a dot is sent."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    client.receive(b"550 no\r\n250 ok\r\n354 go\r\n")
    assert wire(client) == b".\r\n"
    assert finished(client.receive(b"250 ok\r\n")) == [sent]
    assert sent.mail is not None
    assert (sent.mail.code, sent.final, sent.dot_sent) == (550, None, False)


@pytest.mark.parametrize("code", [451, 550, 459, 591])
def test_content_refused(code: int) -> None:
    """Any 4xx or 5xx is the verdict, known or not; a successor that is under way is not touched by it."""
    client = new_client()
    first, second = transaction(), transaction()
    client.send(first)
    exchange(client, TAKEN)
    client.send(second)
    assert exchange(client, b"%d no\r\n" % code + TAKEN, b"250 ok\r\n") == [Finished(first), Finished(second)]
    assert first.final == Reply(code, "", ("no",))
    assert second.final == Reply(250, "", ("ok",))


def test_rset_refused() -> None:
    """A host that will not reset gives no session; the transaction is handed back."""
    client = new_client()
    client.send(transaction())
    exchange(client, b"250 ok\r\n550 no\r\n554 no\r\n")
    following = transaction()
    client.send(following)
    assert exchange(client, b"500 what\r\n") == [Finished(following)]
    assert (following.mail, following.lost_phase, client.phase) == (None, "", "closed")
    assert "RSET" in following.lost


# -- early replies to content --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [421, 451, 552])
def test_refused_in_mid_content(code: int) -> None:
    """A host that refuses content while it is being written is believed, and the session is over."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    client.receive(TAKEN)
    wire(client)
    client.unsent(20)
    assert finished(client.receive(b"%d enough\r\n" % code)) == [sent]
    assert sent.final == Reply(code, "", ("enough",))
    assert (sent.dot_sent, client.phase) == (False, "closed")


def test_refused_before_content_was_written() -> None:
    """The refusal came together with 354: the content stays here."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    assert finished(client.receive(TAKEN + b"554 changed my mind\r\n")) == [sent]
    assert wire(client) == b""
    assert (sent.dot_sent, client.phase) == (False, "closed")


def test_accepted_before_content_was_written() -> None:
    """250 for content that the host cannot have is no success."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    assert finished(fails(client, TAKEN + b"250 thank you\r\n")) == [sent]
    assert (sent.final, sent.dot_sent) == (None, False)
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    client.receive(TAKEN)
    wire(client)
    client.unsent(5)
    assert finished(fails(client, b"250 thank you\r\n")) == [sent]
    assert (sent.final, sent.dot_sent) == (None, False)
