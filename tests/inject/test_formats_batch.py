"""Rules of batch files (`.bsmtp`): SMTP transactions one after the other."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.config.schema import SmtpIn
from mta.config.units import Size
from mta.inject import batch
from mta.inject.batch import BatchReader, Position
from mta.inject.formats import FormatError, Submission
from mta.queue.records import DOTLESS, EIGHT_BIT, NOTIFY_NEVER, SMTPUTF8, Recipient


def reader(data: bytes, position: Position | None = None, **limits: Any) -> BatchReader:
    """A reader of `data`."""
    return BatchReader(io.BytesIO(data), SmtpIn(**limits), "mta.example", position or Position())


def read_all(data: bytes, **limits: Any) -> list[Submission]:
    """All transactions of a file without an error."""
    one = reader(data, **limits)
    return list(iter(one.next, None))


def problem(data: bytes, **limits: Any) -> tuple[int, FormatError]:
    """How many transactions there were before the error, and the error."""
    one = reader(data, **limits)
    count = 0
    with pytest.raises(FormatError) as caught:  # noqa: PT012 - what comes before it counts
        while one.next() is not None:
            count += 1
    return count, caught.value


def transaction(number: int, body: str = "text") -> str:
    """One transaction of six lines."""
    return f"MAIL FROM:<a@a.example>\nRCPT TO:<b{number}@b.example>\nDATA\nSubject: {number}\n\n{body}\n.\n"


TWO = transaction(1) + transaction(2)
CHUNKED = "MAIL FROM:<a@a.example>\nRCPT TO:<b@b.example>\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("hello", ["", "HELO client.example\n", "EHLO client.example\n"])
def test_transactions_are_read_in_order(newline: str, hello: str) -> None:
    """With and without a greeting, with either line end; content has CRLF."""
    found = read_all((hello + TWO + "QUIT\n").replace("\n", newline).encode())
    assert [(one.envelope.sender, one.envelope.recipients, one.content) for one in found] == [
        ("a@a.example", [Recipient(f"b{n}@b.example")], f"Subject: {n}\r\n\r\ntext\r\n".encode()) for n in (1, 2)
    ]


def test_parameters_are_those_of_smtp() -> None:
    """BODY, SMTPUTF8, RET, ENVID, NOTIFY, ORCPT and SIZE, in any case."""
    (one,) = read_all(
        "mail from:<ä@a.example> ret=full ENVID=Q+2B1 BODY=8BITMIME SMTPUTF8 SIZE=1000\n"
        "rcpt to:<b@b.example> notify=never ORCPT=rfc822;B@b.example\ndata\nx\n.\n".encode()
    )
    found = one.envelope
    assert (found.sender, found.ret, found.envid) == ("ä@a.example", "FULL", "Q+2B1")
    assert found.flags == EIGHT_BIT | SMTPUTF8 | DOTLESS
    assert found.recipients == [Recipient("b@b.example", NOTIFY_NEVER, "rfc822;B@b.example")]


def test_content_is_unstuffed() -> None:
    """The first dot of a line goes; a dot alone ends the message; empty content is content."""
    start = "MAIL FROM:<>\nRCPT TO:<b@b.example>\nDATA\n"
    contents = [one.content for one in read_all(f"{start}..a\n.b\n...\n.\n{start}.\n{start}\n.\n".encode())]
    assert contents == [b".a\r\nb\r\n..\r\n", b"", b"\r\n"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_content_with_dots_is_known_to_have_them(newline: str) -> None:
    """What is marked as dotless is sent without stuffing: a dot alone would end it there, and the rest be commands."""
    data = transaction(1, "one\n..\nMAIL FROM:<x@x.example>") + transaction(2) + transaction(3, "..begins")
    found = read_all(data.replace("\n", newline).encode())
    assert [one.envelope.flags & DOTLESS for one in found] == [0, DOTLESS, 0]
    assert b"\r\n.\r\nMAIL" in found[0].content


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_content_in_chunks(newline: str) -> None:
    """BDAT counts octets of the file, needs no stuffing, and several chunks are one message (RFC 3030)."""
    parts = [part.replace("\n", newline) for part in ("Subject: x\n\n.\n..a\n", "end", "\nMAIL FROM:<x@x.example>\n")]
    data = CHUNKED.replace("\n", newline)
    for part, last in zip(parts, ("", "", " last"), strict=True):
        data += f"BDAT {len(part)}{last}{newline}{part}"
    found = read_all((data + TWO.replace("\n", newline)).encode())
    assert len(found) == 3
    assert found[0].content == "".join(parts).replace("\r", "").replace("\n", "\r\n").encode()
    assert not found[0].envelope.flags & DOTLESS


def test_a_last_chunk_without_a_line_end() -> None:
    """It gets one, as every message has."""
    (found,) = read_all(CHUNKED.replace("\n", "\r\n").encode() + b"BDAT 4 LAST\r\ntextQUIT\r\n")
    assert found.content == b"text\r\n"
    (empty,) = read_all((CHUNKED + "BDAT 0 LAST\n").encode())
    assert empty.content == b""


def test_refused_recipients_do_not_end_a_batch_that_says_so() -> None:
    """XACK OFF: they are told with their transaction, also when they are all it had; the others are accepted."""
    one = reader(
        b"XACK OFF\nMAIL FROM:<a@a.example>\nRCPT TO:<b@>\nRCPT TO:<c@c.example>\nDATA\nx\n.\n"
        b"MAIL FROM:<a@a.example> RET=FULL\nRCPT TO:<d>\nDATA\n..y\n.\n"
        b"MAIL FROM:<>\nRCPT TO:<e@e.example>\nBDAT 0 LAST\n")
    found = []
    while (submission := one.next()) is not None:
        found.append(([to.address for to in submission.envelope.recipients], submission.content,
                      [refused[:2] for refused in one.refused], one.mail))
    assert found == [
        (["c@c.example"], b"x\r\n", [(3, b"RCPT TO:<b@>")], b"MAIL FROM:<a@a.example>"),
        ([], b".y\r\n", [(9, b"RCPT TO:<d>")], b"MAIL FROM:<a@a.example> RET=FULL"),
        (["e@e.example"], b"", [], b"MAIL FROM:<>"),
    ]


def test_rset_noop_quit_and_empty_lines_pass() -> None:
    """RSET forgets a transaction; the others change nothing."""
    found = read_all(b"\nNOOP\nMAIL FROM:<x@x.example>\nRSET\n\nQUIT\n" + TWO.encode() + b"\n")
    assert [one.envelope.sender for one in found] == ["a@a.example", "a@a.example"]


@pytest.mark.parametrize(
    ("data", "count", "line", "what"),
    [
        (TWO + "MAIL FROM:<a@a.example>\nRCPT TO:<b@b.example>\n", 2, 17, "DATA is missing"),
        (TWO + "MAIL FROM:<a@a.example>\n", 2, 16, "DATA is missing"),
        (TWO + "MAIL FROM:<a@a.example>", 2, 15, "the last line has no end"),
        (TWO + "RCPT TO:<b@b.example>\n", 2, 15, "503 5.5.1"),
        (TWO + "MAIL FROM:a@a.example\n", 2, 15, "501 5.1.7"),
        (transaction(1) + "MAIL FROM:<a@a.example>\nRCPT TO:<b@>\n" + transaction(2), 1, 9, "501 5.1.3"),
        (transaction(1) + "MAIL FROM:<a@a.example>\nRCPT TO:<b@b.example> X=Y\n", 1, 9, "555 5.5.4"),
        (transaction(1) + "MAIL FROM:<a@a.example>\nDATA\nx\n.\n", 1, 9, "554 5.5.1"),
        (transaction(1) + "MAIL FROM:<ä@a.example>\n", 1, 8, "553 5.6.7"),
        (transaction(1) + "ETRN x\n", 1, 8, "expected an SMTP command"),
        (transaction(1) + "XMRG FROM:<a@a.example>\n", 1, 8, "mail merge is not supported"),
        (transaction(1) + "STARTTLS\n", 1, 8, "no meaning in a file"),
        (transaction(1) + "XACK MAYBE\n", 1, 8, "expected XACK ON or XACK OFF"),
        ("XACK OFF\nXACK ON\nMAIL FROM:<>\nRCPT TO:<b@>\n", 0, 4, "501 5.1.3"),
        ("XACK OFF\nMAIL FROM:<a@>\n", 0, 2, "501 5.1.7"),
        (CHUNKED + "BDAT 5\n12345", 0, 4, "a BDAT command with LAST is missing"),
        (CHUNKED + "BDAT 5 LAST\n1234", 0, 3, "the file ends inside this chunk of 5 octets"),
        (CHUNKED + "BDAT 5 LAST\n1234567\n", 1, 4, "expected an SMTP command"),
        (CHUNKED + "BDAT 5 FIRST\n1234\n", 0, 3, "expected BDAT with a number"),
        (CHUNKED + "BDAT 2\n1\nDATA\n", 0, 5, "expected BDAT with a number"),
        (CHUNKED + "BDAT 9999999999 LAST\n", 0, 3, "smtp.message_size"),
        (CHUNKED + "BDAT 4 LAST\n1\r2\n", 0, 4, "a carriage return"),
        ("MAIL FROM:<>\nBDAT 2 LAST\n1\n", 0, 2, "554 5.5.1"),
        ("BDAT 2 LAST\n1\n", 0, 1, "503 5.5.1"),
        (transaction(1) + "Subject: not a batch\n", 1, 8, "expected an SMTP command"),
        (transaction(1)[:-2], 0, 4, "the line with a dot is missing"),
        (transaction(1)[:-1], 0, 4, "the line with a dot is missing"),
        (transaction(1) + "MAIL FROM:<a@a.example> " + "x" * 3000 + "\n", 1, 8, "smtp.command_length"),
        (transaction(1) + transaction(2, "x" * 999), 1, 13, "longer than 998"),
        (transaction(1) + transaction(2, "a\n\0b"), 1, 14, "NUL"),
    ],
)
def test_errors_name_the_line_and_spare_what_came_before(data: str, count: int, line: int, what: str) -> None:
    """The transactions before the error are given; the error has the line in the file."""
    found, error = problem(data.encode())
    assert (found, error.line) == (count, line)
    assert what in error.what


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (TWO.replace("text", "one\r\ntwo"), 6),
        (TWO.replace("Subject: 2\n", "Subject: 2\r\n"), 11),
        (TWO.replace("\nRCPT TO:<b2", "\r\nRCPT TO:<b2"), 8),
        (TWO.replace("\n", "\r\n").replace("Subject: 2\r\n", "Subject: 2\n"), 11),
        (TWO.replace("\n", "\r\n").replace("text\r\n", "te\rxt\r\n"), 6),
        (TWO.replace("\n", "\r\n").replace("DATA\r\n", "DATA\n"), 3),
        # The end of data written with the other line end is content, not an end.
        (TWO.replace("\n", "\r\n").replace("text\r\n", "text\n.\nMAIL FROM:<forged@a.example>\r\n"), 6),
    ],
)
def test_line_ends_of_two_kinds_are_an_error(data: str, line: int) -> None:
    """A file has one kind; the other in it is no line end, and never the end of a message (SMTP smuggling)."""
    assert problem(data.encode())[1].line == line


def test_limits_of_smtp_hold() -> None:
    """Size and recipients; the size counts content with CRLF and without stuffing."""
    body = transaction(1, "..\n" * 20)
    size = len(read_all(body.encode())[0].content)
    assert read_all(body.encode(), message_size=Size(size))
    assert "smtp.message_size" in problem(body.encode(), message_size=Size(size - 1))[1].what
    two = "MAIL FROM:<>\nRCPT TO:<a@b.example>\nRCPT TO:<b@b.example>\nDATA\n.\n"
    error = problem(two.encode(), recipients=1)[1]
    assert (error.line, "452 4.5.3" in error.what) == (3, True)


def test_a_reader_goes_on_where_another_stopped() -> None:
    """`position` after any number of transactions leads a new reader to the rest, lines counted from the file."""
    data = ("HELO x\n" + "".join(transaction(n, "y" * n) for n in range(1, 9)) + "BAD\n").encode()
    whole = reader(data)
    for done in range(1, 9):
        assert whole.next() is not None
        rest = reader(data, whole.position)
        found = [rest.next() for _ in range(8 - done)]
        assert [one.envelope.recipients[0].address for one in found if one] == [
            f"b{n}@b.example" for n in range(done + 1, 9)
        ]
        with pytest.raises(FormatError) as caught:
            rest.next()
        assert caught.value.line == 1 + 8 * 7 + 1


@pytest.mark.parametrize("size", [*range(1, 30), 100])
def test_pieces_of_the_file_may_end_anywhere(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """However the file is cut when it is read, its transactions are the same."""
    data = (transaction(1, "..a") + transaction(2).replace("Subject: 2\n\ntext\n", "") + TWO).replace("\n", "\r\n")
    whole = read_all(data.encode())
    assert [one.content for one in whole][:2] == [b"Subject: 1\r\n\r\n.a\r\n", b""]
    monkeypatch.setattr(batch, "_CHUNK", size)
    assert read_all(data.encode()) == whole


def test_begin_is_the_line_of_the_transaction() -> None:
    """For errors found later, such as a loop."""
    one = reader(TWO.encode())
    lines = []
    while one.next() is not None:
        lines.append(one.begin)
    assert lines == [1, 8]


def test_a_huge_file_needs_the_memory_of_one_message() -> None:
    """3 MB of transactions are read in bounded memory, and a message without end is refused."""

    class Endless(io.RawIOBase):
        """Transactions that nobody wrote down."""

        def __init__(self, block: bytes, count: int) -> None:
            self.block, self.count, self.offset = block, count, 0

        def readline(self, size: int | None = -1, /) -> bytes:
            return self.block[: self.block.index(b"\n") + 1]

        def seek(self, offset: int, whence: int = 0, /) -> int:
            self.offset = 0
            return offset

        def read(self, size: int = -1, /) -> bytes:
            self.offset += 1
            return self.block if self.offset <= self.count else b""

    block = transaction(1, "y" * 70 + "\n" * 2000).encode() * 20
    tracemalloc.start()
    try:
        stream = BatchReader(Endless(block, 60), SmtpIn(message_size=Size(100_000)), "mta.example")  # reads like one
        count = sum(1 for _ in iter(stream.next, None))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 1200
    assert peak < 1_500_000
    start = "MAIL FROM:<>\nRCPT TO:<b@b.example>\nDATA\n"
    assert "larger than" in problem((start + "text\n" * 200_000).encode(), message_size=Size(100_000))[1].what


lines = st.sampled_from(
    ["MAIL FROM:<a@a.example>", "RCPT TO:<b@b.example>", "DATA", ".", "..", "text", "", "RSET", "QUIT", "HELO x",
     "EHLO", "MAIL FROM:<>", "x\r", "\0", "ü", "NOOP", ". ", "DATA x",
     "XACK OFF", "XACK ON", "RCPT TO:<bad>", "BDAT 6", "BDAT 4 LAST", "BDAT 0 LAST", "VRFY x", "XMRG FROM:<>"]
)  # fmt: skip


@given(st.lists(lines, max_size=25), st.sampled_from(["\n", "\r\n"]), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_file_is_read_or_refused(some: list[str], newline: str, ended: bool) -> None:
    """Nothing but FormatError comes out of any file; what comes before it is sound and in the file."""
    data = (newline.join(some) + (newline if ended else "")).encode()
    one = reader(data)
    submission: Submission | None = None
    try:
        while (submission := one.next()) is not None:
            assert submission.envelope.recipients or one.refused
            rest = submission.content.replace(b"\r\n", b"")
            assert b"\r" not in rest
            assert b"\n" not in rest
            assert 0 < one.position.offset <= len(data)
            assert data[: one.position.offset].count(b"\n") == one.position.line - 1
    except FormatError as error:
        assert 1 <= error.line <= data.count(b"\n") + 2  # noqa: PT017 - it need not be raised
