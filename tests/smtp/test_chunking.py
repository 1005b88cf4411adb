"""BDAT: content in chunks of a size that is told before (RFC 3030), within the same bounds as DATA."""

from __future__ import annotations

from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.queue.records import BINARY, DOTLESS, EIGHT_BIT, Recipient
from mta.smtp.budget import Budget
from mta.smtp.data import ChunkReader, DataReader, stuff
from mta.smtp.reply import Reply
from mta.smtp.server import Closed, MessageReceived, Server
from mta.smtp.transaction import CARRIED
from tests.smtp.helpers import CONTENT, QUEUED, STRANGER, deliver, new_server, pieces, say, talk

ENVELOPE = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\n"
ENVELOPE_OK = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n"
TAKEN = b"250 2.0.0 Chunk taken\r\n"
OK = b"250 2.0.0 Ok\r\n"
NO_MAIL = b"503 5.5.1 Send MAIL first\r\n"


def bdat(chunk: bytes, last: bool = False) -> bytes:
    """A chunk with its command."""
    return b"BDAT %d%b\r\n%b" % (len(chunk), b" LAST" if last else b"", chunk)


def conversation(server: Server, data: bytes, cut: int = 1 << 30) -> tuple[bytes, list[bytes], bool]:
    """Give the server `data` in pieces, accepting every message: the replies, the contents, and whether it is over."""
    replies, contents, over = b"", [], False
    for piece in pieces(data, repeat(cut)):
        pending = server.receive(piece)
        while pending:
            event = pending.pop(0)
            if isinstance(event, MessageReceived):
                contents.append(event.content)
                pending += server.answer(QUEUED)
            else:
                over = True
        replies += server.output()
    return replies, contents, over


DONE = QUEUED.to_bytes()
CASES = {
    # RFC 3030 4.1: the message in one chunk, and 4.2: pipelined, in several
    "one chunk": (ENVELOPE + bdat(CONTENT, True), ENVELOPE_OK + DONE, [CONTENT]),
    "three chunks": (
        ENVELOPE + bdat(CONTENT[:5]) + bdat(CONTENT[5:20]) + bdat(CONTENT[20:], True),
        ENVELOPE_OK + TAKEN * 2 + DONE, [CONTENT],
    ),
    # 2: a last chunk may be empty, and so may others
    "empty last chunk": (
        ENVELOPE + bdat(CONTENT) + bdat(b"") + bdat(b"", True), ENVELOPE_OK + TAKEN * 2 + DONE, [CONTENT],
    ),
    "nothing at all": (ENVELOPE + bdat(b"", True), ENVELOPE_OK + DONE, [b""]),
    # 2: the data is not stuffed, and a dot alone is a line like any other
    "dots": (ENVELOPE + bdat(b"\r\n.\r\n.\r\n", True), ENVELOPE_OK + DONE, [b"\r\n.\r\n.\r\n"]),
    "commands in it": (
        ENVELOPE + bdat(b"\r\nRSET\r\nMAIL FROM:<e@example.com>\r\n", True), ENVELOPE_OK + DONE,
        [b"\r\nRSET\r\nMAIL FROM:<e@example.com>\r\n"],
    ),
    "no line end": (ENVELOPE + bdat(b"\r\nhello", True), ENVELOPE_OK + DONE, [b"\r\nhello\r\n"]),
    "in small letters": (ENVELOPE + b"bdat 2 last\r\n\r\n", ENVELOPE_OK + DONE, [b"\r\n"]),
    # 2: no BDAT without a transaction; its chunk is dropped, and nothing in it is a command
    "no MAIL": (bdat(b"QUIT\r\n", True) + b"NOOP\r\n", NO_MAIL + OK, []),
    "no RCPT": (
        b"MAIL FROM:<a@example.com>\r\n" + bdat(b"QUIT\r\n") + b"RCPT TO:<b@example.org>\r\n" + bdat(b"\r\n", True),
        b"250 2.1.0 Ok\r\n554 5.5.1 No valid recipients\r\n250 2.1.5 Ok\r\n" + DONE, [b"\r\n"],
    ),
    "BDAT after BDAT LAST": (
        ENVELOPE + bdat(b"\r\n", True) + bdat(b"QUIT\r\n", True), ENVELOPE_OK + DONE + NO_MAIL, [b"\r\n"],
    ),
    # 2: DATA and BDAT cannot be mixed, nor can the envelope change once content has come
    "DATA after BDAT": (
        ENVELOPE + bdat(b"\r\n") + b"DATA\r\n" + bdat(b"", True),
        ENVELOPE_OK + TAKEN + b"503 5.5.1 The message has begun with BDAT; go on with BDAT\r\n" + DONE, [b"\r\n"],
    ),
    "RCPT after BDAT": (
        ENVELOPE + bdat(b"\r\n") + b"RCPT TO:<c@example.org>\r\n" + bdat(b"", True),
        ENVELOPE_OK + TAKEN + b"503 5.5.1 The message has begun with BDAT; go on with BDAT\r\n" + DONE, [b"\r\n"],
    ),
    # 2: RSET ends it
    "RSET between chunks": (
        ENVELOPE + bdat(b"one\r\n") + b"RSET\r\n" + bdat(b"two\r\n", True),
        ENVELOPE_OK + TAKEN + OK + NO_MAIL, [],
    ),
    "RSET between chunks, then another message": (
        ENVELOPE + bdat(b"one\r\n") + b"RSET\r\n" + ENVELOPE + bdat(b"two\r\n", True),
        ENVELOPE_OK + TAKEN + OK + ENVELOPE_OK + DONE, [b"two\r\n"],
    ),
    "another envelope between chunks": (
        ENVELOPE + bdat(b"one\r\n") + ENVELOPE + bdat(b"two\r\n", True),
        ENVELOPE_OK + TAKEN + b"503 5.5.1 A transaction is open; send RSET first\r\n"
        b"503 5.5.1 The message has begun with BDAT; go on with BDAT\r\n" + DONE, [b"one\r\ntwo\r\n"],
    ),
    "NOOP between chunks": (
        ENVELOPE + bdat(b"\r\n") + b"NOOP\r\n" + bdat(b"x\r\n", True), ENVELOPE_OK + TAKEN + OK + DONE,
        [b"\r\nx\r\n"],
    ),
    # 2: a chunk that fails ends the message; the rest of it is dropped, and the next message finds nothing of it
    "bare LF": (
        ENVELOPE + bdat(b"a\nb\r\n") + bdat(b"QUIT\r\n", True) + ENVELOPE + bdat(b"\r\n", True),
        ENVELOPE_OK + b"550 5.6.0 Bare line feed in the message; lines end with CR LF\r\n" + NO_MAIL + ENVELOPE_OK
        + DONE,
        [b"\r\n"],
    ),
    "CR and LF in two chunks": (
        ENVELOPE + bdat(b"a\r") + bdat(b"\nb\r\n", True), ENVELOPE_OK + TAKEN + DONE, [b"a\r\nb\r\n"],
    ),
    "bare CR at the end": (
        ENVELOPE + bdat(b"a\r", True),
        ENVELOPE_OK + b"550 5.6.0 Bare carriage return in the message; lines end with CR LF\r\n", [],
    ),
    "NUL": (ENVELOPE + bdat(b"a\0\r\n", True), ENVELOPE_OK + b"550 5.6.0 NUL in the message\r\n", []),
    "long line": (
        ENVELOPE + bdat(b"x" * 500) + bdat(b"x" * 499, True),
        ENVELOPE_OK + TAKEN + b"550 5.6.0 A line is longer than 998 octets\r\n", [],
    ),
    "line that just fits": (
        ENVELOPE + bdat(b"x" * 500) + bdat(b"x" * 498, True), ENVELOPE_OK + TAKEN + DONE, [b"x" * 998 + b"\r\n"],
    ),
    "too big": (
        ENVELOPE + bdat(b"x" * 98 + b"\r\n") * 11 + bdat(b"x" * 98 + b"\r\n") + bdat(b"QUIT\r\n", True),
        ENVELOPE_OK + TAKEN * 11 + b"552 5.3.4 The message is too big\r\n" + NO_MAIL, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("cut", [1 << 30, 1, 7])
@pytest.mark.parametrize("case", CASES)
def test_conversations(case: str, cut: int) -> None:
    """These octets have these replies, in whatever pieces they come."""
    data, replies, contents = CASES[case]
    assert conversation(new_server(message_size=1100), data, cut) == (replies, contents, False)


def test_envelope() -> None:
    """The message has its envelope, and whether a line begins with a dot is known."""
    server = new_server()
    (event,) = server.receive(ENVELOPE + bdat(b"\r\n.x\r\n", True))
    assert isinstance(event, MessageReceived)
    assert event.envelope.sender == "a@example.com"
    assert event.envelope.recipients == [Recipient("b@example.org")]
    assert not event.envelope.flags & DOTLESS
    server.answer(QUEUED)
    (event,) = server.receive(ENVELOPE + bdat(b"\r") + bdat(b"\nx.\r\n", True))
    assert isinstance(event, MessageReceived)
    assert event.envelope.flags & DOTLESS


@pytest.mark.parametrize(
    "command", ["BDAT", "BDAT ", "BDAT x", "BDAT -1", "BDAT +1", "BDAT 1 FIRST", "BDAT 1LAST", "BDAT 1 LAST x",
                "BDAT 0x10", "BDAT 1.0", "BDAT 999999999999999999999", "BDAT 1_0"],
)  # fmt: skip
def test_size_that_is_none(command: str) -> None:
    """Where such a chunk ends nobody knows, so the session does (CVE-2017-16943)."""
    server = new_server()
    talk(server, ENVELOPE)
    output, events = talk(server, command.encode() + b"\r\nRSET\r\nMAIL FROM:<e@example.com>\r\n")
    assert output.startswith(b"521 5.5.4 ")
    assert output.count(b"\r\n") == 1
    assert events == [Closed(by_client=False)]


@pytest.mark.parametrize("size", [2**31, 2**32, 2**63, 2**64 - 1])
def test_sizes_that_overflow_elsewhere(size: int) -> None:
    """A chunk of an absurd size is read and dropped as it comes; memory holds nothing of it (CVE-2005-1513)."""
    budget = Budget(10**9)
    server = new_server(budget=budget, message_size=1000)
    talk(server, ENVELOPE + b"BDAT %d LAST\r\n" % size)
    for _ in range(100):
        assert talk(server, b"x" * 1000) == (b"", [])
    assert budget.used <= 1000
    server.gone()
    assert budget.used == 0


def test_strangers_send_no_chunks() -> None:
    """Who may not relay has no recipients, and so no chunks."""
    server = new_server(STRANGER)
    replies, contents, _ = conversation(server, ENVELOPE + bdat(b"\r\n", True))
    assert replies.endswith(b"550 5.7.1 Relaying denied\r\n554 5.5.1 No valid recipients\r\n")
    assert contents == []


def test_chunks_count_in_the_budget() -> None:
    """When there is no room for more the message is read to the end of its chunk, not kept, and answered 452."""
    budget = Budget(70_000)
    server = new_server(budget=budget)
    line = b"x" * 98 + b"\r\n"
    talk(server, ENVELOPE)
    assert budget.used == 65_536
    assert talk(server, bdat(line * 600))[0] == TAKEN
    assert budget.used == 65_536
    output, _ = talk(server, bdat(line * 200))
    assert output == b"452 4.3.1 Too much mail is being received at once, try again later\r\n"
    assert budget.used == 0
    assert talk(server, bdat(line, True))[0] == NO_MAIL
    deliver(server)
    assert budget.used == 0


def test_single_lines_take_no_more_than_they_count() -> None:
    """A message in chunks of one short line each is kept in few pieces: the memory that counts is what it takes."""
    for reader in (ChunkReader(10**7, 998), DataReader(10**7, 998)):
        for _ in range(10_000):
            reader.feed(b"x\r\n")
        assert len(reader._blocks) < 10
        assert reader.kept == 30_000


def test_chunks_without_octets_come_to_an_end() -> None:
    """Nobody may send empty chunks without end (memory of many tiny BDATs, Postfix 3.11)."""
    server = new_server(commands=50)
    replies, _, over = conversation(server, ENVELOPE + bdat(b"") * 60)
    assert replies.endswith(TAKEN + b"421 4.7.0 Too many commands without a message\r\n")
    assert over


def test_refused_chunks_come_to_an_end() -> None:
    """Chunks that are out of place are no errors, as they are the wake of one, but are counted."""
    server = new_server(commands=50, errors=3)
    replies, _, over = conversation(server, bdat(b"x") * 60)
    assert replies == NO_MAIL * 49 + b"421 4.7.0 Too many commands without a message\r\n"
    assert over


def test_stop_between_chunks() -> None:
    """A message that has begun may be finished when the server stops."""
    server = new_server()
    talk(server, ENVELOPE + bdat(b"\r\n"))
    assert server.receiving
    assert server.stop(Reply(421, "4.3.2", ("Bye",))) == []
    replies, contents, over = conversation(server, bdat(b"x\r\n", True))
    assert (replies, contents, over) == (DONE + b"421 4.3.2 Bye\r\n", [b"\r\nx\r\n"], True)


BINARY_BODY = b"MAIL FROM:<a@example.com> BODY=BINARYMIME\r\nRCPT TO:<b@example.org>\r\n"


def test_binary() -> None:
    """BODY=BINARYMIME: content that is no text comes as it is, by BDAT only (RFC 3030 3)."""
    server = new_server(honours=CARRIED | {"BINARYMIME"})
    content = b"Subject: x\r\n\r\n" + bytes(range(256)) * 20 + b"\r\n.\r\n\n\r\0"
    replies, contents, _ = conversation(server, BINARY_BODY + bdat(content[:100]) + bdat(content[100:], True), cut=50)
    assert (replies, contents) == (ENVELOPE_OK + TAKEN + DONE, [content])
    assert say(server, *BINARY_BODY.decode().split("\r\n")[:2], "DATA")[2] == "503 5.5.1 BODY=BINARYMIME needs BDAT"
    (event,) = server.receive(bdat(b"\r\n\0", True))
    assert isinstance(event, MessageReceived)
    assert event.envelope.flags & BINARY
    assert event.envelope.flags & EIGHT_BIT
    assert not event.envelope.flags & DOTLESS


@pytest.mark.parametrize(
    "header", [b"A: b\nC: d\r\n\r\n", b"A: \0\r\n\r\n", b"A: b\rC: d\r\n\r\n", b"no end \0", b"\0"])
def test_header_lines_of_binary_content_are_text(header: bytes) -> None:
    """A binary body does not make its header binary: that is quoted elsewhere, and goes through text hosts."""
    server = new_server(honours=CARRIED)
    replies, contents, _ = conversation(server, BINARY_BODY + bdat(header, True))
    assert replies.startswith(ENVELOPE_OK + b"550 5.6.0 ")
    assert contents == []
    assert conversation(server, BINARY_BODY + bdat(b"A: b\r\n\r\n\0\n", True))[1] == [b"A: b\r\n\r\n\0\n"]


def test_binary_is_not_offered_in_files() -> None:
    """A listener offers it; a batch file, which has DATA as a rule, does not; and what is not offered is not taken."""
    server = new_server()
    assert b"BINARYMIME" not in talk(server, b"EHLO x.example\r\n")[0]
    assert say(server, "MAIL FROM:<a@example.com> BODY=BINARYMIME")[0].startswith("501 5.5.4")


text = st.lists(st.sampled_from([b"a", b".", b"\r\n", b"x" * 40, b"\r", b"\n", b"\0"]), max_size=30).map(b"".join)


@given(content=text, cuts=st.lists(st.integers(1, 50), max_size=20), size=st.integers(1, 60))
def test_chunks_are_as_data(content: bytes, cuts: list[int], size: int) -> None:
    """What comes by BDAT is taken, refused and kept as if it had come by DATA, wherever it is cut."""
    by_data, by_chunks = DataReader(200, 30), ChunkReader(200, 30)
    whole = content if content.endswith(b"\r\n") or not content else content + b"\r\n"
    stuffed = stuff(whole) + b".\r\n"
    odd = b"\r\n.\r\n" in stuffed[:-5]  # an end of data in the middle, which DATA alone has
    for chunk in pieces(content, cuts):
        for piece in pieces(chunk, repeat(size)):
            by_chunks.feed(piece)
    by_chunks.end()
    if not odd:
        assert by_data.feed(stuffed) == len(stuffed)
        assert bool(by_data.fault or by_data.too_big) == bool(by_chunks.fault or by_chunks.too_big)
        if not (by_data.fault or by_data.too_big):
            assert by_data.dotless == by_chunks.dotless
            assert by_chunks.content() == by_data.content() == whole
