"""Addresses: RFC 5321 4.1.2 and 4.1.3, RFC 6531 3.3, and what hostile clients write instead."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.smtp.address import Address, AddressError, domain_to_ascii, parse_address, parse_path

GOOD = {
    b"<user@example.org>": Address("user", "example.org"),
    b"<User.Name+tag@Example.ORG>": Address("User.Name+tag", "example.org"),
    b"<!#$%&'*+-/=?^_`{|}~@example.org>": Address("!#$%&'*+-/=?^_`{|}~", "example.org"),
    b"<a@b>": Address("a", "b"),
    b"<a@1st.example>": Address("a", "1st.example"),
    b"<a@x-y_z.example>": Address("a", "x-y_z.example"),
    b"<a@xn--mller-kva.de>": Address("a", "xn--mller-kva.de"),
    b"<user%host@relay.example>": Address("user%host", "relay.example"),
    b"<host!user@relay.example>": Address("host!user", "relay.example"),
    b'<"a b"@example.org>': Address('"a b"', "example.org"),
    b'<""@example.org>': Address('""', "example.org"),
    b'<"user@host"@relay.example>': Address('"user@host"', "relay.example"),
    b'<"a\\"b\\\\>"@example.org>': Address('"a\\"b\\\\>"', "example.org"),
    b"<@a.example,@b.example:user@c.example>": Address("user", "c.example"),
    b"<a@[192.0.2.1]>": Address("a", "[192.0.2.1]"),
    b"<a@[ipv6:2001:DB8:0:0::1]>": Address("a", "[IPv6:2001:db8::1]"),
    b"<postmaster>": Address("postmaster", ""),
    b"<PostMaster>": Address("PostMaster", ""),
    b"<>": Address("", ""),
    "<jürgen@example.org>".encode(): Address("jürgen", "example.org"),
    "<a@Müller.Example>".encode(): Address("a", "müller.example"),
    "<用户@例え.jp>".encode(): Address("用户", "例え.jp"),
    '<"ü ü"@example.org>'.encode(): Address('"ü ü"', "example.org"),
    b"<%s@example.org>" % (b"l" * 128): Address("l" * 128, "example.org"),
    b"<l@%s>" % (b"d" * 63 + b".example"): Address("l", "d" * 63 + ".example"),
    b"<l@%s>" % b".".join([b"d" * 62] * 4 + [b"ex"]): Address("l", ".".join(["d" * 62] * 4 + ["ex"])),
}

BAD = [
    b"", b"<", b">", b"user@example.org", b"<user@example.org", b"user@example.org>", b"< user@example.org>",
    b"<user@example.org >", b"<user@>", b"<@example.org>", b"<user>", b"<user@@example.org>", b"<user@a@b>",
    b"<.user@example.org>", b"<user.@example.org>", b"<us..er@example.org>", b"<us er@example.org>",
    b"<user@.example.org>", b"<user@example..org>", b"<user@example.org.>", b"<user@-example.org>",
    b"<user@example-.org>", b"<user@exam ple.org>", b"<user@127.0.0.1>", b"<user@example.123>",
    b"<user@[127.0.0.1>", b"<user@[300.0.0.1]>", b"<user@[IPv6:xyz]>", b"<user@[IPv6:fe80::1%eth0]>",
    b"<user@[tag:x]>", b"<user@[]>", b'<"user@example.org>', b'<"us\ner"@example.org>', b'<"us\0er"@example.org>',
    b"<us\0er@example.org>", b"<us\rer@example.org>", b"<user@exam\nple.org>", b"<us\x7fer@example.org>",
    b"<user@exam\x00ple.org>", b"<\xff@example.org>", b"<user@\xff.org>", "<a\x85b@example.org>".encode(),
    "<a\u2028b@example.org>".encode(), b"<;id;>", b"<;sleep 66;@>", b"<|id@>", b"<user@%s>", b"<user@ex/ample.org>",
    "<a@\u2024.example>".encode(), b"<" + b"<" * 1000 + b">", b"<%s@example.org>" % (b"l" * 129),
    b"<l@%s.example>" % (b"d" * 64), b"<l@%s>" % b".".join([b"d" * 62] * 4 + [b"exam"]),
    b"<@a.example:>", b"<@a.example user@b.example>", b"<@:user@b.example>",
    "<a@example.org。>".encode(), "<a@bücher.example｡>".encode(),
]  # fmt: skip


@pytest.mark.parametrize("path", GOOD)
def test_good_paths(path: bytes) -> None:
    """Every form of path that the RFCs allow is read, and nothing behind its bracket."""
    assert parse_path(b"FROM:" + path + b" SIZE=5>", 5) == (GOOD[path], 5 + len(path))


@pytest.mark.parametrize("path", BAD)
def test_bad_paths(path: bytes) -> None:
    """What is no path is refused, with words that can be sent to the peer."""
    with pytest.raises(AddressError) as error:
        parse_path(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("address", [a for a in GOOD.values() if a.domain])
def test_text_is_a_path_again(address: Address) -> None:
    """The text of an address between brackets is that address: what was accepted can be sent on."""
    assert parse_path(f"<{address.text}>".encode())[0] == address
    assert parse_address(address.text) == address


@given(st.binary(max_size=40).map(lambda middle: b"<" + middle + b">"))
def test_whatever_is_accepted_is_safe_to_send(path: bytes) -> None:
    """No accepted path holds a control character, and its text is read as the same address again."""
    try:
        address, end = parse_path(path)
    except AddressError:
        return
    assert path[end - 1 : end] == b">"
    assert address.text.isprintable()
    assert parse_path(f"<{address.text}>".encode())[0] == address


_ATEXT = "abcXYZ019!#$%&'*+-/=?^_`{|}~"


@given(
    st.lists(st.text(_ATEXT, min_size=1, max_size=8), min_size=1, max_size=4).map(".".join),
    st.lists(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True), min_size=1, max_size=3),
)
def test_dot_strings(local: str, labels: list[str]) -> None:
    """Every dot-string with every domain of letters, digits and hyphens is accepted as it is (RFC 5321 4.1.2)."""
    labels = [label for label in labels if not re.match(r"..--", label)]
    domain = ".".join([*labels, "example"])
    assert parse_path(f"<{local}@{domain}>".encode())[0] == Address(local, domain)


def test_long_input_takes_linear_time() -> None:
    """A megabyte of anything is refused at once; were it quadratic this test would not end."""
    for filler in (b"a", b"a.", b"a-", b"-", b"\\", b"@a,", b'"', b"\xc3\xbc", b"[", b"a@"):
        for start in (b"<", b'<"', b"<a@", b"<@"):
            with pytest.raises(AddressError):
                parse_path(start + filler * (1_000_000 // len(filler)) + b"\n")


def test_addresses_without_brackets() -> None:
    """`parse_address` takes exactly one mailbox."""
    assert parse_address("user@example.org") == Address("user", "example.org")
    for text in ("", "a@b.example>", "a@b.example> SIZE=1", "a@b.example, c@d.example", "<a@b.example>", "\ud800@b"):
        with pytest.raises(AddressError):
            parse_address(text)


def test_domain_to_ascii() -> None:
    """A-labels as IDNA 2008 has them; an ASCII name only becomes lower case."""
    assert domain_to_ascii("Example.ORG") == "example.org"
    assert domain_to_ascii("Bücher.example") == "xn--bcher-kva.example"
    for domain in ("\u2024.example", "a\u200bü..example", "ü" * 70 + ".example"):
        with pytest.raises(AddressError):
            domain_to_ascii(domain)
