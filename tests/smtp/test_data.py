"""Content framing: stuffing, the end of data, and what content may not contain."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mta.smtp.data import DataReader, fault, stuff, unstuff
from tests.smtp.helpers import pieces

# Content made of what matters: dots, line ends, their halves, and something else.
parts = st.lists(st.sampled_from([b".", b"..", b"\r\n", b"\r", b"\n", b"x", b"\0", b"\r\n.", b"\n.\n", b"\r\n.\r"]))
anything = parts.map(b"".join)
good_content = st.lists(st.sampled_from([b"", b".", b"..", b"x", b".x", b"x.", b"x" * 300])).map(
    lambda lines: b"".join(line + b"\r\n" for line in lines)
)


def read(data: bytes, sizes: list[int], limit: int = 10**6, line_length: int = 998) -> tuple[DataReader, bytes]:
    """Feed `data` in pieces: the reader that found the end, and what lies behind it."""
    reader = DataReader(limit, line_length)
    position = 0
    for piece in pieces(data, sizes):
        end = reader.feed(b"12345" + piece, 5) - 5
        if end >= 0:
            return reader, data[position + end :]
        position += len(piece)
    raise AssertionError("no end of data")


def read_good(data: bytes, sizes: list[int], limit: int = 10**6) -> tuple[bytes, bytes]:
    """The same for content with which nothing is wrong: the content, and what lies behind it."""
    reader, behind = read(data, sizes, limit)
    assert (reader.fault, reader.too_big) == ("", False)
    return reader.content(), behind


@given(good_content)
@example(b"")
@example(b".\r\n")
@example(b"..\r\n.\r\n")
def test_stuffing_round_trip(content: bytes) -> None:
    """Unstuffing undoes stuffing, and stuffed content never ends data (RFC 5321 4.5.2)."""
    stuffed = stuff(content)
    assert unstuff(stuffed) == content
    assert b"\r\n.\r\n" not in b"\r\n" + stuffed


def test_stuffing_copies_only_when_it_must() -> None:
    """Content without a dot at the start of a line is the same object; without a final CRLF it gets one."""
    content = b"a\r\nb.\r\n"
    assert stuff(content) is content
    assert stuff(b"a") == b"a\r\n"
    assert stuff(b"") == b""
    assert stuff(b".a\r\n.\r\n") == b"..a\r\n..\r\n"


@given(good_content, st.lists(st.integers(1, 9), max_size=200), anything)
def test_reader_in_pieces(content: bytes, sizes: list[int], behind: bytes) -> None:
    """Whatever the pieces, the content is what was stuffed, and nothing behind the dot is touched."""
    assert read_good(stuff(content) + b".\r\n" + behind, sizes) == (content, behind)


@given(anything, st.lists(st.integers(1, 5), max_size=60))
def test_reader_is_a_search_for_the_first_end(data: bytes, sizes: list[int]) -> None:
    """The content ends at the first CRLF.CRLF, where DATA's own CRLF counts, and at nothing else."""
    whole = data + b"\r\n.\r\nrest"
    end = (b"\r\n" + whole).index(b"\r\n.\r\n") - 2 + 5
    content = unstuff(whole[: end - 3])
    reader, behind = read(whole, sizes)
    assert behind == whole[end:]
    assert bool(reader.fault) == bare(content)
    if not reader.fault:
        assert reader.content() == content


NOT_THE_END = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r", b"\r.\n", b"\r\n\0.\r\n",
    b"\r\n.\0\r\n", b"\0\r\n.\n", b"\r\r\n.\r\r\n", b"\r\n.\r\r\n", b"\n\n.\r\n", b"\r\n .\r\n", b"\r\n. \r\n",
    b"\r\n.\t\r\n", b"\r\n..\r\n",
]  # fmt: skip


@pytest.mark.parametrize("almost", NOT_THE_END)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_smuggling(almost: bytes, size: int) -> None:
    """None of the sequences that other software takes for the end of data ends it (CVE-2023-51764 and its kin)."""
    smuggled = b"hello" + almost + b"MAIL FROM:<evil@example.org>\r\n"
    reader, behind = read(smuggled + b".\r\n", [size] * 200)
    assert behind == b""
    assert bool(reader.fault) == bare(smuggled)
    if not reader.fault:
        assert reader.content() == unstuff(smuggled)


def bare(content: bytes) -> bool:
    """Whether content has a bare CR, bare LF or NUL, as a regular expression sees it."""
    return re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content) is not None


@given(anything)
@example(b"a\rb\n")
@example(b"\n\r")
@example(b"\r\r\n\n")
def test_fault_finds_every_bare_line_end(content: bytes) -> None:
    """A bare CR, bare LF or NUL anywhere is a fault, and nothing else in short lines is."""
    assert bool(fault(content, 998)) == bare(content)


def test_fault_says_what() -> None:
    """The fault is named."""
    assert "NUL" in fault(b"a\0b\r\n", 998)
    assert "carriage return" in fault(b"a\rb\r\n", 998)
    assert "line feed" in fault(b"a\nb\r\n", 998)
    assert fault(b"a\r\n", 998) == ""
    assert fault(b"", 998) == ""


@given(st.lists(st.integers(0, 12)), st.integers(1, 10))
def test_fault_finds_every_long_line(lengths: list[int], limit: int) -> None:
    """A line longer than the limit, not counting its CRLF, is a fault, wherever it is."""
    content = b"".join(b"x" * length + b"\r\n" for length in lengths)
    assert bool(fault(content, limit)) == any(length > limit for length in lengths)


@given(st.lists(st.integers(0, 12)), st.integers(1, 10), st.lists(st.integers(1, 30), max_size=50))
def test_reader_finds_every_long_line(lengths: list[int], limit: int, sizes: list[int]) -> None:
    """So does the reader, whatever the pieces, and stays in step; a dot of stuffing does not count."""
    content = b"".join(b"." * length + b"\r\n" for length in lengths)
    reader, behind = read(stuff(content) + b".\r\nQUIT\r\n", sizes, line_length=limit)
    assert bool(reader.fault) == any(length > limit for length in lengths)
    assert behind == b"QUIT\r\n"


@given(good_content, st.integers(0, 400), st.lists(st.integers(1, 50), max_size=50))
def test_limit_counts_content_without_stuffing(content: bytes, limit: int, sizes: list[int]) -> None:
    """Exactly the content above the limit is too big, and the session stays in step (RFC 1870 6.1)."""
    reader, behind = read(stuff(content) + b".\r\nQUIT\r\n", sizes, limit)
    assert reader.too_big == (len(content) > limit)
    assert behind == b"QUIT\r\n"
    if not reader.too_big:
        assert reader.content() == content


@given(st.integers(1, 60), st.integers(1, 80), st.lists(st.integers(1, 50), max_size=50))
@example(length=20, limit=28, sizes=[12] * 10)
@example(length=20, limit=27, sizes=[12] * 10)
def test_size_counts_also_in_long_lines(length: int, limit: int, sizes: list[int]) -> None:
    """A line that is too long counts in full, so that the verdict does not depend on the pieces."""
    content = b"a\r\n" + b"." * length + b"\r\nb\r\n"
    reader, _ = read(stuff(content) + b".\r\n", sizes, limit, line_length=5)
    assert reader.too_big == (len(content) > limit)
    if not reader.too_big:
        assert bool(reader.fault) == (length > 5)


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_nothing_but_dots(size: int) -> None:
    """Content of nothing but dots is a third longer on the wire, and still taken when it is not above the limit."""
    content = b".\r\n" * 10_000
    assert read_good(stuff(content) + b".\r\n", [size] * 100, len(content)) == (content, b"")


def test_end_of_a_long_line_in_halves() -> None:
    """A line that is too long ends where it ends, also when its CRLF comes in two pieces."""
    reader = DataReader(10**6, 998)
    assert reader.feed(b"x" * 2000 + b"\r") == -1
    assert reader.feed(b"\n.\r\n") == 4


def test_faulty_content_is_not_kept() -> None:
    """From the fault on nothing is kept, nor what came before it."""
    reader = DataReader(10**6, 998)
    for piece in (b"fine\r\n", b"a\nb\r\n", b"fine\r\n"):
        assert reader.feed(piece) == -1
    assert reader._blocks == []
    assert reader.fault


@pytest.mark.parametrize("piece", [b"x" * 998 + b"\r\n", b"x" * 1000, b"x\ny\r\n"])
def test_memory_is_bounded(piece: bytes) -> None:
    """Of a message, a line, or a faulty message without end nothing is kept."""
    reader = DataReader(1000, 998)
    for _ in range(10_000):
        assert reader.feed(piece) == -1
        assert sum(map(len, reader._blocks)) + len(reader._line) <= 2000
    assert reader.feed(b"\r\n.\r\n") == 5
    assert reader.too_big


@given(st.lists(st.sampled_from([b"a", b".", b"\r\n", b"..", b"x" * 10]), max_size=40), st.integers(1, 60))
def test_dotless_content_needs_no_stuffing(parts: list[bytes], size: int) -> None:
    """Whatever the pieces it comes in; and content that would need it is never called so."""
    content = b"".join(parts) + b"\r\n"
    wire = stuff(content) + b".\r\n"
    reader = DataReader(10_000, 998)
    for at in range(0, len(wire), size):
        end = reader.feed(wire[at:at + size])
    assert end > 0
    assert reader.content() == content
    assert not reader.dotless or stuff(content) == content
    assert reader.dotless or b"." in content
