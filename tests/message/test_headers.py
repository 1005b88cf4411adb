"""Rules of the header scan and of editing header sections."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mta.message import headers
from mta.message.headers import HEADER_LIMIT, HeaderScan

MESSAGE = (
    b"Received: from a.example ([192.0.2.1])\r\n\tby b.example id 1;\r\n\tMon, 02 Jan 2006 15:04:05 +0000\r\n"
    b"RECEIVED : by c.example; Mon, 02 Jan 2006 15:04:05 +0000\r\n"
    b"Subject: a Date: in a subject\r\n Received: in a continuation\r\n"
    b"date:\tMon, 02 Jan 2006 15:04:05 +0000\r\n"
    b"Message-Id:\r\n <one@b.example> \r\n"
    b"Message-ID: <two@b.example>\r\n"
    b"\r\n"
    b"Return-Path: <in@the.body>\r\nReceived: in the body\r\n"
)


def slow_section(content: bytes) -> bytes:
    """The header section, found line by line as RFC 5322 says it."""
    taken: list[bytes] = []
    for line in re.findall(rb"[^\n]*\n|[^\n]+$", content):
        if line == b"\r\n":
            break
        if not taken and not re.match(rb"[!-9;-~]+[ \t]*:", line):
            return b""
        taken.append(line)
    return b"".join(taken)


def slow_fields(content: bytes) -> list[tuple[str, str]]:
    """Names and values, by plain splitting."""
    found: list[list[bytes]] = []
    in_value = False
    for line in slow_section(content).split(b"\r\n"):
        if re.match(rb"[!-9;-~]+[ \t]*:", line):
            name, _, text = line.partition(b":")
            found.append([name.rstrip(b" \t").lower(), text])
            in_value = True
        else:
            in_value = in_value and line[:1] in (b" ", b"\t")
            if in_value:
                found[-1][1] += line
    return [(name.decode(), text.strip(b" \t").decode("utf-8", "replace")) for name, text in found]


def slow_scan(content: bytes) -> HeaderScan:
    """What `scan` promises, from the slow reading."""
    names = [name for name, _ in slow_fields(content)]
    ids = [text for name, text in slow_fields(content) if name == "message-id" and text]
    told = {name for name, text in slow_fields(content) if text}
    repeated = next((name.decode() for name in headers.ONCE if names.count(name.decode()) > 1), "")
    empty = () if repeated else tuple(
        name for name in names if name in ("date", "from", "message-id") and name not in told)
    return HeaderScan(
        len(slow_section(content)),
        names.count("received"),
        "date" in names and "date" not in empty,
        ids[0] if ids else "",
        "return-path" in names,
        "from" in names and "from" not in empty,
        repeated,
        empty,
    )


def test_scan_sees_the_header_section_and_nothing_else() -> None:
    """Names count in any case and with a space before the colon; values, continuations and the body do not count."""
    assert headers.scan(MESSAGE) == HeaderScan(
        MESSAGE.index(b"\r\n\r\n") + 2, 2, True, "<one@b.example>", False, has_from=False, repeated="message-id")


names = st.sampled_from([b"Received", b"DATE", b"Date", b"Message-ID", b"message-id", b"Return-Path", b"X-Date", b"To",
                         b"FROM", b"From", b"Reply-to", b"Reply-To", b"In-Reply-To", b"References", b"Subject"])
values = st.sampled_from(
    [b"", b" ", b" <a@b>", b"\t<c@d> x", b" Date: no", b" \xc3\xa4", b" a\r\n\t<e@f>", b"\r\n <g@h>"]
)
lines = st.one_of(
    st.tuples(names, st.sampled_from([b":", b" :", b"\t:", b""]), values).map(b"".join),
    st.sampled_from([b"", b" ", b"no field", b" Received: folded", b"From a Mon", b":", b"Received", b"Received:"]),
)
messages = st.lists(lines, max_size=12).map(lambda some: b"".join(line + b"\r\n" for line in some))


@given(messages)
@example(b"")
@example(b"\r\n")
@example(b"Date: x\r\n")
@example(b"Date:\r\nFrom: \r\n \r\nMessage-ID:\r\n")
@example(MESSAGE)
@settings(max_examples=400, deadline=None)
def test_scan_agrees_with_a_slow_reading(content: bytes) -> None:
    """The fast scan finds the same as reading line by line."""
    assert headers.scan(content) == slow_scan(content)


@given(messages)
@settings(max_examples=300, deadline=None)
def test_fields_agree_with_a_slow_reading_and_cover_the_section(content: bytes) -> None:
    """`fields` finds the same names and values, and its spans are the header section without gap or overlap."""
    found = list(headers.fields(content))
    decoded = [(field.name.decode(), headers.value(content, field).decode("utf-8", "replace")) for field in found]
    assert decoded == slow_fields(content)
    assert b"".join(content[field.start : field.end] for field in found) == slow_section(content)


@given(messages)
@settings(max_examples=300, deadline=None)
def test_remove_takes_the_named_fields_and_keeps_every_other_byte(content: bytes) -> None:
    """What `remove` leaves is the content without the spans of those fields."""
    spans = [field for field in headers.fields(content) if field.name == b"received"]
    expected = content
    for field in reversed(spans):
        expected = expected[: field.start] + expected[field.end :]
    assert headers.remove(content, ["RECEIVED"]) == expected


def test_remove_takes_continuation_lines_along() -> None:
    """A folded field goes whole; the others, their order and the body stay."""
    left = headers.remove(MESSAGE, ["received", "message-id"])
    assert left == (
        b"Subject: a Date: in a subject\r\n Received: in a continuation\r\n"
        b"date:\tMon, 02 Jan 2006 15:04:05 +0000\r\n\r\n"
        b"Return-Path: <in@the.body>\r\nReceived: in the body\r\n"
    )


def test_remove_of_nothing_returns_the_same_object() -> None:
    """Content without such a field is not copied."""
    assert headers.remove(MESSAGE, ["bcc"]) is MESSAGE


def test_get_unfolds_the_first_field_of_that_name() -> None:
    """A value is unfolded (RFC 5322 2.2.3); a missing field is None, an empty one is not."""
    assert headers.get(MESSAGE, "subject") == b"a Date: in a subject Received: in a continuation"
    assert headers.get(MESSAGE, "MESSAGE-ID") == b"<one@b.example>"
    assert headers.get(MESSAGE, "Return-Path") is None
    assert headers.get(b"Bcc:\r\n\r\n", "bcc") == b""


@pytest.mark.parametrize(
    ("content", "end"),
    [
        (b"just text\r\n", 0),
        (b"\r\nbody\r\n", 0),
        (b" folded: first line\r\n\r\n", 0),
        (b"From someone Mon Jan  2\r\nTo: a@b\r\n\r\n", 0),
        (b"", 0),
        (b"To: a@b\r\n", 9),
        (b"To: a@b\r\n\r\n", 9),
        (b"To: a@b\r\nno field\r\nCc: c@d\r\n\r\n\r\n\r\n", 28),
    ],
)
def test_section_end(content: bytes, end: int) -> None:
    """A section begins with a field or is none; it ends at the first empty line, or with the content."""
    assert headers.section_end(content) == end


def test_a_header_section_has_a_limit() -> None:
    """A section of exactly the limit is read, one byte more is not, with and without a body behind it."""
    exact = b"X: " + b"x" * (HEADER_LIMIT - 5) + b"\r\n"
    assert headers.scan(exact).end == HEADER_LIMIT
    assert headers.scan(exact + b"\r\nbody\r\n").end == HEADER_LIMIT
    assert headers.scan(b"X" + exact).end == -1
    assert headers.scan(b"X" + exact + b"\r\nbody\r\n").end == -1
    assert headers.scan(b"no field" + exact.replace(b":", b"") + b"body\r\n").end == 0


def test_a_message_id_is_kept_in_part_only_when_it_is_absurd() -> None:
    """It is stored and logged with every event, so its length has a bound."""
    content = b"Message-ID: <" + b"x" * 5000 + b">\r\n"
    assert headers.scan(content).message_id == "<" + "x" * (headers.MESSAGE_ID_LIMIT - 1)
