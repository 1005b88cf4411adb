"""The client machine when a session ends, by 421 or a lost connection: what that says of each message."""

from __future__ import annotations

import pytest

from mta.smtp.client import Finished
from mta.smtp.reply import Reply
from tests.smtp.client_words import DATA, MAIL, RCPT, TAKEN
from tests.smtp.helpers import exchange, fails, finished, new_client, transaction, wire

POSITIONS = [
    (b"", "mail"), (b"250 ok\r\n", "rcpt"), (b"250 ok\r\n250 ok\r\n", "data"), (TAKEN, "dot"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "phase"), POSITIONS)
def test_421_anywhere(before: bytes, phase: str) -> None:
    """421 ends the present transaction where it is, and hands back a successor untouched."""
    client = new_client()
    sent, successor = transaction(), transaction()
    client.send(sent)
    exchange(client, before)
    expected = [sent]
    if phase == "dot":
        client.send(successor)
        wire(client)
        expected.append(successor)
    assert finished(client.receive(b"421 4.3.2 closing\r\n250 ignored\r\ngarbage\r\n")) == expected
    assert client.phase == "closed"
    assert client.receive(b"421 again\r\n") == []
    assert client.lost("connection closed") == []
    closing = {"mail": sent.mail, "rcpt": sent.rcpts[0], "data": sent.data, "dot": sent.final}[phase]
    assert closing == Reply(421, "4.3.2", ("closing",))
    if phase == "dot":
        assert sent.lost == ""
        assert (successor.mail, successor.dot_sent, successor.lost_phase) == (None, False, "")
        assert "4.3.2" in successor.lost
    else:
        assert (sent.lost_phase, sent.dot_sent, sent.final) == (phase, False, None)


def test_421_between_messages() -> None:
    """A host may say 421 unasked when it has had enough; that is no protocol error."""
    client = new_client()
    assert client.receive(b"421 idle for too long\r\n") == []
    assert client.phase == "closed"
    assert not client.can_send


@pytest.mark.parametrize(("before", "phase"), POSITIONS)
def test_connection_lost_anywhere(before: bytes, phase: str) -> None:
    """Only after the final dot may the host have the message; the phase is told."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, before)
    assert client.eof() == [Finished(sent)]
    assert (sent.lost_phase, sent.dot_sent, sent.final) == (phase, phase == "dot", None)
    assert "closed" in sent.lost
    assert client.eof() == []


def test_lost_with_a_successor() -> None:
    """The message with the dot is in doubt, its successor is not."""
    client = new_client()
    first, second = transaction(), transaction()
    client.send(first)
    exchange(client, TAKEN)
    client.send(second)
    wire(client)
    assert finished(client.lost("timeout")) == [first, second]
    assert (first.lost, first.lost_phase, first.dot_sent) == ("timeout", "dot", True)
    assert (second.lost, second.lost_phase, second.dot_sent) == ("timeout", "", False)


def test_lost_before_the_content_left() -> None:
    """Content that is still in the output was not sent."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    client.receive(TAKEN)
    assert sent.dot_sent
    assert client.phase == "body"
    client.lost("shutting down")
    assert (sent.dot_sent, sent.lost_phase) == (False, "body")


@pytest.mark.parametrize(("missing", "in_doubt"), [(0, True), (1, True), (5, False), (400, False)])
def test_lost_while_the_content_was_written(missing: int, in_doubt: bool) -> None:
    """When the dot could not be written the host cannot have the message, and another may get it at once."""
    client = new_client()
    sent, successor = transaction(), transaction()
    client.send(sent)
    wire(client)
    client.receive(TAKEN)
    client.send(successor)
    envelope = MAIL + RCPT + DATA
    wire(client)
    # `missing` counts from the final dot on: the envelope behind it is unsent in any case but the first.
    client.unsent(len(envelope) + missing if missing > 1 else missing)
    assert not client.can_send
    client.lost("connection reset")
    assert sent.dot_sent is in_doubt
    assert successor.dot_sent is False


def test_unsent_envelope_says_nothing_about_an_earlier_dot() -> None:
    """A dot that left with an earlier write is out, whatever happens to the next one."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, TAKEN)
    client.send(transaction())
    wire(client)
    client.unsent(10_000)
    client.lost("connection reset")
    assert sent.dot_sent


def test_verdict_before_the_connection_is_lost() -> None:
    """250 to the dot is success whatever follows; so is a refusal of all recipients."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, TAKEN)
    assert fails(client, b"250 queued\r\ngarbage\r\n") == [Finished(sent)]
    assert sent.final is not None
    assert sent.lost == ""
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, b"250 ok\r\n550 no\r\n")
    assert finished(client.eof()) == [sent]
    assert sent.lost == ""


def test_reply_without_its_end() -> None:
    """`250-` and then the end of the stream is no success."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, TAKEN, b"250-queued\r\n")
    client.eof()
    assert (sent.final, sent.dot_sent) == (None, True)
    assert sent.lost
