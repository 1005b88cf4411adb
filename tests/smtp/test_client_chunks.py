"""Content in chunks by the client machine: real bytes in, the very bytes out that RFC 3030 wants."""

from __future__ import annotations

import pytest

from mta.queue.records import BINARY, EIGHT_BIT
from mta.smtp.client import Client, Finished
from mta.smtp.errors import RemoteProtocolError
from mta.smtp.reply import Reply
from mta.smtp.transaction import Transaction
from tests.smtp.helpers import CONTENT, exchange, fails, finished, new_client, transaction, wire

PIPELINING = b"250-mx.example.net\r\n250-PIPELINING\r\n250 CHUNKING\r\n"
ALONE = b"250-mx.example.net\r\n250 CHUNKING\r\n"
ENVELOPE = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\n"
TAKEN = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n"
CHUNK = b"BDAT %d LAST\r\n" % len(CONTENT) + CONTENT


def proven(ehlo: bytes = PIPELINING) -> Client:
    """A session with a host that has taken a chunk."""
    client = new_client(ehlo)
    client.send(transaction())
    replies = TAKEN.splitlines(keepends=True) if ehlo is ALONE else [TAKEN]
    assert len(finished(exchange(client, *replies, b"250 ok\r\n"))) == 1
    return client


def test_one_write() -> None:
    """Command and content are one write, as soon as the recipients are answered; the next envelope follows."""
    client = new_client(PIPELINING)
    first, second = transaction(), transaction()
    client.send(first)
    assert wire(client) == ENVELOPE
    assert client.receive(b"250 ok\r\n") == []
    assert wire(client) == b""
    assert not client.can_send
    assert client.receive(b"250 ok\r\n") == []
    assert (client.phase, client.can_send, first.dot_sent) == ("body", True, True)
    client.send(second)
    output = client.output()
    assert b"".join(output) == CHUNK + ENVELOPE
    assert any(piece is first.content for piece in output)  # not copied
    assert client.phase == "dot"
    assert client.receive(b"250 queued\r\n" + TAKEN) == [Finished(first)]
    assert wire(client) == CHUNK
    assert client.receive(b"250 queued\r\n") == [Finished(second)]
    assert first.final == Reply(250, "", ("queued",))
    assert (first.chunked, first.data, second.pipelined) == (True, None, "across")


def test_without_pipelining() -> None:
    """One command at a time; content follows the reply to the last RCPT at once."""
    client = new_client(ALONE)
    sent = transaction("b@example.org", "c@example.org")
    client.send(sent)
    said = []
    for reply in (b"250 ok\r\n", b"250 b\r\n", b"550 c\r\n"):
        said.append(wire(client))
        assert client.receive(reply) == []
    assert said == [*ENVELOPE.splitlines(keepends=True), b"RCPT TO:<c@example.org>\r\n"]
    assert wire(client) == CHUNK
    assert client.receive(b"250 queued\r\n") == [Finished(sent)]
    assert [reply and reply.code for reply in sent.rcpts] == [250, 550]


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b".\r\n..\r\nx\r\n", b"BDAT 10 LAST\r\n.\r\n..\r\nx\r\n"),
        (b"\r\n.\r\n", b"BDAT 5 LAST\r\n\r\n.\r\n"),
        (b"", b"BDAT 0 LAST\r\n"),
        (b"x", b"BDAT 3 LAST\r\nx\r\n"),
    ],
)
def test_content_is_counted_not_stuffed(content: bytes, sent: bytes) -> None:
    """No dot is added, and the count is of what follows; a last line without its end gets one, as with DATA."""
    client = new_client(PIPELINING)
    client.send(transaction(content=content))
    exchange(client)
    client.receive(TAKEN)
    assert wire(client) == sent


@pytest.mark.parametrize(
    ("ehlo", "replies", "reset"),
    [
        (PIPELINING, [b"250 ok\r\n", b"550 b\r\n", b"450 c\r\n"], True),
        (ALONE, [b"250 ok\r\n", b"550 b\r\n", b"450 c\r\n"], True),
        (PIPELINING, [b"550 no\r\n", b"503 b\r\n", b"250 c\r\n"], False),
        (ALONE, [b"550 no\r\n"], False),
    ],
    ids=["recipients", "recipients, alone", "sender", "sender, alone"],
)
def test_nobody_wants_it(ehlo: bytes, replies: list[bytes], reset: bool) -> None:
    """No content goes to a host that took no recipient; what stays open there is reset before the next MAIL."""
    client = new_client(ehlo)
    sent = transaction("b@example.org", "c@example.org")
    client.send(sent)
    assert exchange(client, *replies) == [Finished(sent)]
    assert (sent.dot_sent, sent.final, sent.lost) == (False, None, "")
    assert client.can_send
    client.send(transaction())
    assert wire(client).startswith(b"RSET\r\n" if reset else b"MAIL ")


@pytest.mark.parametrize("options", [{"chunking": False}, {}])
def test_data_where_chunks_are_not_wanted_or_offered(options: dict[str, bool]) -> None:
    """Then content goes by DATA."""
    client = new_client(PIPELINING if options else b"250-mx\r\n250 PIPELINING\r\n", **options)
    sent = transaction()
    client.send(sent)
    assert wire(client) == ENVELOPE + b"DATA\r\n"
    assert not sent.chunked


@pytest.mark.parametrize("code", [450, 452, 550, 552, 554])
def test_content_refused(code: int) -> None:
    """A verdict on the content; the next transaction begins with RSET, as nothing says what a refused chunk leaves."""
    client = new_client(PIPELINING)
    sent = transaction()
    client.send(sent)
    assert exchange(client, TAKEN, b"%d no\r\n" % code) == [Finished(sent)]
    assert (sent.final and sent.final.code, client.chunking_suspect) == (code, False)
    client.send(transaction())
    assert wire(client) == b"RSET\r\n" + ENVELOPE


def test_content_refused_with_a_successor_under_way() -> None:
    """The successor is not touched, and no RSET comes behind."""
    client = new_client(PIPELINING)
    first, second, third = transaction(), transaction(), transaction()
    client.send(first)
    exchange(client, TAKEN)
    client.send(second)
    assert exchange(client, b"550 no\r\n" + TAKEN, b"250 ok\r\n") == [Finished(first), Finished(second)]
    client.send(third)
    assert wire(client) == ENVELOPE


@pytest.mark.parametrize("code", [500, 501, 502, 503, 504])
def test_a_host_that_does_not_know_bdat(code: int) -> None:
    """Its first chunk answered so: it may read the content as commands, so the session ends at once, and both
    transactions are handed back as they were."""
    client = new_client(PIPELINING)
    first, second = transaction(), transaction()
    client.send(first)
    exchange(client, TAKEN)
    client.send(second)
    assert exchange(client, b"%d what\r\n250 ok\r\n" % code) == [Finished(first), Finished(second)]
    assert client.chunking_suspect
    assert client.pipelining_suspect == ""
    for sent in (first, second):
        assert (sent.mail, sent.rcpts, sent.final, sent.dot_sent, sent.lost_phase) == (None, [None], None, False, "")
    assert (client.phase, client.can_send) == ("closed", False)


def test_a_host_that_has_taken_chunks_means_what_it_says() -> None:
    """Then 500 to 504 are about the content."""
    client = proven()
    sent = transaction()
    client.send(sent)
    assert exchange(client, TAKEN, b"501 5.6.0 bad header\r\n") == [Finished(sent)]
    assert (sent.final and sent.final.code, client.chunking_suspect) == (501, False)
    assert client.can_send


@pytest.mark.parametrize("written", [True, False])
def test_a_host_that_hangs_up_at_bdat(written: bool) -> None:
    """It is suspected; the message may have arrived if all of it was written."""
    client = new_client(PIPELINING)
    sent = transaction()
    client.send(sent)
    exchange(client, TAKEN)
    if not written:
        client.unsent(1)
    assert client.eof() == [Finished(sent)]
    assert client.chunking_suspect
    assert (sent.dot_sent, sent.lost_phase) == (written, "dot")


@pytest.mark.parametrize("when", ["before", "proven", "data"])
def test_other_losses_are_no_sign(when: str) -> None:
    """Lost before the chunk, after one that was taken, or at DATA: not for the sake of chunks."""
    client = proven() if when == "proven" else new_client(PIPELINING, chunking=when != "data")
    client.send(transaction())
    if when != "before":
        exchange(client, TAKEN + (b"354 go\r\n" if when == "data" else b""))
    client.output()
    client.eof()
    assert not client.chunking_suspect


def test_421_to_a_chunk() -> None:
    """The host ends the session: its reply is the verdict on the content, and no sign against chunks."""
    client = new_client(PIPELINING)
    sent = transaction()
    client.send(sent)
    assert exchange(client, TAKEN, b"421 4.3.2 bye\r\n") == [Finished(sent)]
    assert (sent.final and sent.final.code, client.chunking_suspect, client.phase) == (421, False, "closed")


@pytest.mark.parametrize("reply", [b"354 go\r\n", b"250 ok\r\n250 ok\r\n"])
def test_nonsense_to_a_chunk(reply: bytes) -> None:
    """A 354, or one reply too many, is no answer; nothing is resynchronised."""
    client = new_client(PIPELINING)
    client.send(transaction())
    exchange(client, TAKEN)
    with pytest.raises(RemoteProtocolError):
        client.receive(reply)


def test_accepted_before_it_was_sent() -> None:
    """A positive reply that comes before the content left is never success."""
    client = new_client(PIPELINING)
    sent = transaction()
    client.send(sent)
    wire(client)
    client.receive(TAKEN)
    assert [one.final for one in finished(fails(client, b"250 ok\r\n"))] == [None]


NO_TEXT = b"Subject: x\r\n\r\n" + bytes(range(256)) + b"\r\n.\r\nno end of line"
BOTH = b"250-mx.example.net\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-CHUNKING\r\n250 BINARYMIME\r\n"


def binary() -> Transaction:
    made = transaction(content=NO_TEXT)
    made.flags = BINARY | EIGHT_BIT
    return made


def test_binary_content_goes_as_it_is() -> None:
    """BODY=BINARYMIME, and the very octets in a chunk: no line end is added to them (RFC 3030 3)."""
    client = new_client(BOTH)
    sent = binary()
    client.send(sent)
    assert wire(client).startswith(b"MAIL FROM:<a@example.com> BODY=BINARYMIME\r\n")
    client.receive(TAKEN)
    assert wire(client) == b"BDAT %d LAST\r\n" % len(NO_TEXT) + NO_TEXT
    assert client.receive(b"250 queued\r\n") == [Finished(sent)]


@pytest.mark.parametrize(
    ("ehlo", "options", "code", "enhanced"),
    [
        (b"250-mx\r\n250-8BITMIME\r\n250 CHUNKING\r\n", {}, 554, "5.6.3"),
        (b"250-mx\r\n250-8BITMIME\r\n250 BINARYMIME\r\n", {}, 554, "5.6.3"),
        (b"250 mx\r\n", {}, 554, "5.6.3"),
        (BOTH, {"chunking": False}, 451, "4.6.3"),
    ],
)
def test_binary_content_goes_to_no_other_host(ehlo: bytes, options: dict[str, bool], code: int, enhanced: str) -> None:
    """Never without the offer: it is returned, as nothing is converted on the way. Where chunks are not used just now
    it waits."""
    client = new_client(ehlo, **options)
    sent = binary()
    assert client.send(sent) == [Finished(sent)]
    assert sent.local_reply is not None
    assert (sent.local_reply.code, sent.local_reply.enhanced) == (code, enhanced)
    assert wire(client) == b""
    assert client.can_send
