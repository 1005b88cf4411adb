"""Rules of reading address lists."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.inject.addresses import AddressError, parse_list


def read(text: str) -> list[str]:
    """The addresses alone."""
    return [mailbox.address for mailbox in parse_list(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bob@example.org", ["bob@example.org"]),
        (" <bob@example.org> ", ["bob@example.org"]),
        ("Bob Smith <bob@example.org>, carol@example.org", ["bob@example.org", "carol@example.org"]),
        ('"Smith, Bob" <bob@example.org>', ["bob@example.org"]),
        ('"say \\"hi\\" <x@y>" <bob@example.org>', ["bob@example.org"]),
        ("John Q. Public <jqp@example.org>", ["jqp@example.org"]),
        ("=?utf-8?q?J=C3=BCrgen=2C_Dr=2E?= <j@example.org>", ["j@example.org"]),
        ("Jürgen <jürgen@bücher.example>", ["jürgen@bücher.example"]),
        ("bob (Bob, at <work@x>) @ (here (nested \\) )) example.org (end)", ["bob@example.org"]),
        ("Team: a@example.org, B <b@example.org>;, c@example.org", ["a@example.org", "b@example.org", "c@example.org"]),
        ("undisclosed-recipients:;", []),
        ("Empty list (really): , ,; ", []),
        ("", []),
        (" , a@example.org,, b@example.org, ", ["a@example.org", "b@example.org"]),
        ("a@example.org,\r\n\tb@example.org\r\n , c@example.org", ["a@example.org", "b@example.org", "c@example.org"]),
        ("Bob\r\n\t<bob@example.org>", ["bob@example.org"]),
        ('"odd local"@example.org', ['"odd local"@example.org']),
        ('"folded\r\n local"@example.org', ['"folded local"@example.org']),
        ("user@[192.0.2.1], user@[IPv6:2001:db8::1]", ["user@[192.0.2.1]", "user@[IPv6:2001:db8::1]"]),
        ("o'brien+tag=x/y@example.org", ["o'brien+tag=x/y@example.org"]),
    ],
)
def test_lists_of_rfc_5322(text: str, found: list[str]) -> None:
    """Mailboxes, names, groups, comments, quotes, folding, UTF-8, and empty elements."""
    assert read(text) == found


@pytest.mark.parametrize(
    ("text", "position", "what"),
    [
        ("bob", 0, "expected an address, found 'bob'"),
        ("Smith, Bob <bob@example.org>", 0, "must be in quotes"),
        ("alice@example.org)bob@evil.example", 17, "comma"),
        ("alice@example.org bob@evil.example", 18, "comma"),
        ("alice@example.org<bob@evil.example>", 17, "comma"),
        ("alice@example.org <bob@evil.example>", 18, "comma"),
        ("<alice@example.org>bob@evil.example", 19, "comma"),
        ('"alice@example.org"bob@evil.example', 0, "local part"),
        ("alice@example.org@evil.example", 17, "comma"),
        ("<alice@example.org@evil.example>", 18, "`>`"),
        ("<alice@example.org", 18, "`>`"),
        ("alice@example.org>", 17, "comma"),
        ("a@example.org; b@example.org", 13, "comma"),
        ("@example.org", 0, "local part"),
        ("a b@example.org", 0, "local part"),
        ("a..b@example.org", 0, "local part"),
        (".a@example.org", 0, "local part"),
        ("a.@example.org", 0, "local part"),
        ("a. b@example.org", 0, "local part"),
        ("a@", 2, "domain"),
        ("a@example..org", 9, "comma"),
        ("a@exa mple.org", 6, "comma"),
        ("<@a.example,@b.example:c@example.org>", 1, "source routes"),
        ("<>", 1, "after `<`"),
        ("x <>", 3, "after `<`"),
        ("Group: a@example.org", 20, "no `;`"),
        ("Group: Inner: a@example.org;;", 12, "inside a group"),
        (": a@example.org;", 0, "needs a name"),
        ('"open <a@example.org>', 0, "no end"),
        ("(open a@example.org", 0, "no end"),
        ("(a (b) a@example.org", 0, "no end"),
        ("a@example.org\r\nb@example.org", 13, "comma"),
        ("a\x00b@example.org", 0, "must be in quotes"),
        ("a\u00a0b@example.org", 0, "must be in quotes"),
        ('"a\x07b"@example.org', 0, "control character"),
        ("[192.0.2.1]", 0, "expected an address"),
        ("a,b@c,", 0, "expected an address"),
        ("foo@bar.example <foo@bar.example>", 16, "comma"),
    ],
)
def test_what_is_not_clear_is_an_error_with_its_place(text: str, position: int, what: str) -> None:
    """No text yields an address that a stricter reader would not see (CVE-2023-27043 and its kin)."""
    with pytest.raises(AddressError) as caught:
        parse_list(text)
    assert caught.value.position == position
    assert what in str(caught.value)


def test_positions_tell_where_each_mailbox_stands() -> None:
    """So that an address which is refused later can be named with its line."""
    assert [mailbox.position for mailbox in parse_list("A <a@example.org>,\r\n b@example.org")] == [3, 21]


tokens = st.lists(
    st.sampled_from(
        ["a", "b.c", "@", "<", ">", ",", ";", ":", "(", ")", '"', "\\", " ", "\r\n ", ".", "x@y.example", '"q r"'],
    )
    | st.sampled_from(["[1]", "ü", "\x00", "\r\n"]),
    max_size=14,
).map("".join)


@given(st.one_of(tokens, st.text(max_size=40)))
@settings(max_examples=500, deadline=None)
def test_nothing_but_its_own_error_is_raised(text: str) -> None:
    """Any text is a list or an AddressError with a place inside of it; an address has one unquoted @."""
    found, place = [], 0
    try:
        found = parse_list(text)
    except AddressError as error:
        place = error.position
    assert 0 <= place <= len(text)
    for mailbox in found:
        local, _, domain = mailbox.address.rpartition("@")
        assert local
        assert domain
        assert "@" not in local or local.startswith('"')
        assert not set("\r\n\0") & set(mailbox.address)


HARD = ["(" * 100_000, '"' + "\\" * 100_000, "a." * 50_000, ", " * 50_000, "a " * 50_000, "a@b," * 25_000]


@pytest.mark.parametrize("hard", HARD)
def test_reading_takes_linear_time(hard: str) -> None:
    """A hostile header of 100 KB takes well below a second."""
    before_s = time.process_time()
    try:
        parse_list(hard)
    except AddressError:
        pass
    assert time.process_time() - before_s < 10.0  # linear: milliseconds; quadratic: minutes
