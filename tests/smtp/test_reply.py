"""Replies, written and read: RFC 5321 4.2, RFC 2034, RFC 3463, and hosts that follow none of them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.smtp.errors import RemoteProtocolError
from mta.smtp.reply import LINE_LIMIT, LINES_LIMIT, TEXT_LIMIT, Reply, ReplyParser
from tests.smtp.helpers import pieces


def read(pieces: Iterable[bytes]) -> list[Reply]:
    """The replies in these pieces; nothing may be left over."""
    parser = ReplyParser()
    replies = [reply for piece in pieces for reply in parser.feed(piece)]
    assert not parser.pending
    return replies


READ = {
    b"250 2.1.5 Ok\r\n": Reply(250, "2.1.5", ("Ok",)),
    b"250\r\n": Reply(250, "", ("",)),
    b"250 \r\n": Reply(250, "", ("",)),
    b"250 2.0.0\r\n": Reply(250, "2.0.0", ("",)),
    b"354 go ahead\r\n": Reply(354, "", ("go ahead",)),
    b"571 no\r\n": Reply(571, "", ("no",)),
    b"421 5.7.32 wrong class\r\n": Reply(421, "", ("5.7.32 wrong class",)),
    b"354 3.0.0 no such class\r\n": Reply(354, "", ("3.0.0 no such class",)),
    b"550 5.7.1234 four digits\r\n": Reply(550, "", ("5.7.1234 four digits",)),
    b"550 5.7.509 three digits\r\n": Reply(550, "5.7.509", ("three digits",)),
    b"550 5.1 short\r\n": Reply(550, "", ("5.1 short",)),
    b"250-2.1.0 a\r\n250 2.1.0 b\r\n": Reply(250, "2.1.0", ("a", "b")),
    b"550-look\r\n550 5.1.1 here\r\n": Reply(550, "5.1.1", ("look", "here")),
    b"550-5.1.1 a\r\n550 5.7.1 b\r\n": Reply(550, "5.1.1", ("a", "5.7.1 b")),
    b"250-\r\n250\r\n": Reply(250, "", ("", "")),
    b"250 a\tb\x1b[31m\x00c\r\n": Reply(250, "", ("a b?[31m?c",)),
    b"250 a\rb\r\n": Reply(250, "", ("a?b",)),
    "250 grüße\r\n".encode(): Reply(250, "", ("grüße",)),
    b"250 \xff\xfe\r\n": Reply(250, "", ("\ufffd\ufffd",)),
    "250 a\u2028b\u202ec\r\n".encode(): Reply(250, "", ("a?b?c",)),
}


@pytest.mark.parametrize("data", READ)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_read(data: bytes, size: int) -> None:
    """Every form of reply is read, in pieces or at once, and leaves nothing behind."""
    assert read(pieces(data, [size] * 1000)) == [READ[data]]


BROKEN = [
    b"hello\r\n", b"\r\n", b"25\r\n", b"2500 x\r\n", b"250x\r\n", b"250\tx\r\n", b"150 x\r\n", b"650 x\r\n",
    b"999 x\r\n", b"-250 x\r\n", b" 250 x\r\n", b"250 a\n", b"250 a\n250 b\r\n", b"250-a\n250 b\r\n",
    b"250-a\r\n251 b\r\n", b"250-a\r\nb\r\n", b"250-a\r\n\r\n", "２５０ x\r\n".encode(), b"\0\0\0\0\r\n",
    b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x01\x00\x02\x02F\r\n",
]  # fmt: skip


@pytest.mark.parametrize("data", BROKEN)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_reply(data: bytes, size: int) -> None:
    """Anything else is an error, with a text that can be logged; never a guess."""
    with pytest.raises(RemoteProtocolError) as error:
        read(pieces(data, [size] * 1000))
    assert str(error.value).isprintable()


def test_replies_before_an_error_are_given() -> None:
    """A 250 in front of garbage is a 250: its message must not be sent again."""
    replies = ReplyParser().feed(b"250 queued\r\ngarbage\r\n")
    assert next(replies) == Reply(250, "", ("queued",))
    with pytest.raises(RemoteProtocolError):
        next(replies)


def test_memory_is_bounded() -> None:
    """A line without end, and a reply without end, are errors long before they cost memory."""
    with pytest.raises(RemoteProtocolError, match="octets"):
        read([b"250 ", *[b"x" * 1000] * 5])
    with pytest.raises(RemoteProtocolError, match="octets"):
        read([b"250 " + b"x" * 10_000_000 + b"\r\n"])
    with pytest.raises(RemoteProtocolError, match="lines"):
        read([b"250-x\r\n" * 1_000_000])
    longest = b"250-" + b"x" * (LINE_LIMIT - 4) + b"\r\n"
    (reply,) = read([longest * (LINES_LIMIT - 1) + b"250 end\r\n"])
    assert max(map(len, reply.lines)) == TEXT_LIMIT
    assert len(str(reply)) == TEXT_LIMIT


def test_write() -> None:
    """Every line carries code and enhanced code; none is longer than RFC 5321 4.5.3.1.5 allows, none holds another."""
    assert Reply(250, "2.0.0", ("Ok",)).to_bytes() == b"250 2.0.0 Ok\r\n"
    assert Reply(354, "", ("go",)).to_bytes() == b"354 go\r\n"
    assert Reply(550, "5.7.1", ("a", "b")).to_bytes() == b"550-5.7.1 a\r\n550 5.7.1 b\r\n"
    assert Reply(550, "5.7.1", ("a\r\n250 2.0.0 Ok",)).to_bytes() == b"550 5.7.1 a??250 2.0.0 Ok\r\n"
    assert Reply(550, "5.7.1", ("grüße",)).to_bytes() == b"550 5.7.1 gr??e\r\n"
    assert len(Reply(550, "5.7.123", ("x" * 5000,)).to_bytes()) <= 512
    assert str(Reply(550, "5.7.1", ("a", "b"))) == "550 5.7.1 a b"
    assert str(Reply(250, "")) == "250"


texts = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30).filter(
    lambda text: not text[:1].isdigit()
)


@given(st.lists(texts, min_size=1, max_size=5), st.sampled_from(["", "5.7.1", "5.100.200"]), st.integers(1, 7))
def test_round_trip(lines: list[str], enhanced: str, size: int) -> None:
    """What is written is read as the same reply."""
    reply = Reply(550, enhanced, tuple(lines))
    assert read(pieces(reply.to_bytes(), [size] * 999)) == [reply]
