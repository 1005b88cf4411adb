"""Rules of what a header section must be like."""

from __future__ import annotations

import pytest

from mta.message import checks, headers


@pytest.mark.parametrize(("value", "domains"), [
    (b"bob@Example.org", ["example.org"]),
    (b"Bob <bob@example.org>", ["example.org"]),
    (b'"Bob, <x@evil.example>" <bob@example.org>', ["example.org"]),
    (b"Bob (a (nested, x@evil.example) comment) <bob@example.org>, c@d.example", ["example.org", "d.example"]),
    (b"(((((((deep))))))) bob@example.org (\\)\", <x@evil.example>)", ["example.org"]),
    (b"=?utf-8?q?B=C3=B6b?= <bob@example.org>", ["example.org"]),
    ("Böb <bob@bücher.example>".encode(), ["xn--bcher-kva.example"]),
    (b'"a@b"@example.org', ["example.org"]),
    (b'"a \\"b\\" <x@evil.example>"\t<"c, d"@example.org>(x\\))', ["example.org"]),
    (b"(" * 5 + b"x@evil.example" + b")" * 5 + b" < a@example.org > ", ["example.org"]),
    (b"<a@example.org>,b@example.net (,)", ["example.org", "example.net"]),
])
def test_domains_of_from(value: bytes, domains: list[str]) -> None:
    """RFC 5322 3.4: what a receiver takes as the addresses, whatever stands in names and comments."""
    assert checks.domains_of(value) == domains


@pytest.mark.parametrize("value", [
    b"", b"bob", b"Bob <>", b"a@b.example c@d.example", b"<a@b.example> <c@d.example>", b"x@evil.example <a@b.example>",
    b"<a@b.example> x@evil.example", b"group: a@b.example;", b"<@relay.example:a@b.example>", b"a@b.example,",
    b"a@b.example, , c@d.example", b'"open <a@b.example>', b"(open a@b.example", b"<a@b.example", b"a@b.example>",
    b"a@b.example)", b"a\\ <a@b.example>", b"a@b.example <c@d.example",
    b"a@b.example\x00", b"\xff@b.example", b"postmaster", b"<a@b.example>;x",
])
def test_a_from_that_readers_may_take_differently_is_none(value: bytes) -> None:
    """Not one list of mailboxes: so nobody shows another address than the one that was checked."""
    assert checks.domains_of(value) is None


@pytest.mark.parametrize("value", [b'"' * 60_000, b"(" * 60_000, b"<" * 60_000, b"a@b.example," * 5000, b" " * 60_000,
                                   b'""' * 30_000, b"a\\" * 30_000, b"x" * 70_000, b"()" * 8000, b"(" * 16_000,
                                   b'"' + b'\\"' * 8000, b"a" + b" " * 16_000 + b"b", b"<a" + b" " * 16_000 + b"b>",
                                   b"a " * 8000 + b"<a@b.example", b'"" ' * 5000 + b"x@y",
                                   b"a@b.example," * 1300 + b"<"])
def test_a_long_from_ends(value: bytes) -> None:
    """No input makes the expressions try for ever; what is too long is none."""
    found = checks.domains_of(value)
    assert found is None or set(found) == {"b.example"}


@pytest.mark.parametrize("value", [
    b"(" + b"\\(" * 32_000, b"(" * 65_000, b"()" * 32_000 + b"(", b'"' + b'\\"' * 32_000, b'(" \\' * 16_000,
    b"<" * 65_000,
])
def test_a_long_from_is_read_at_once(value: bytes) -> None:
    """It comes from a client, on the event loop: what took the square of the time was there for ten seconds."""
    assert checks.domains_of(value) is None
    assert checks.domains_of(value + b" a@b.example") is None


def test_addresses_beyond_ascii_are_bounded() -> None:
    """Each may take half a millisecond, and it is the hub that looks: twenty are read, display names do not count."""
    one = "grün <a@ü%d.example>".encode()
    twenty = b", ".join(one % number for number in range(20))
    found = checks.domains_of(twenty + b", \xc3\xbc <b@b.example>" * 50)
    assert found is not None
    assert (len(found), found[0]) == (70, "xn--0-dha.example")
    assert checks.domains_of(twenty + b", " + one % 20) is None


@pytest.mark.parametrize(("name", "fault"), [
    (b"a@example.org", ""), (b"a@news.example.org", ""), (b"a@example.net", ""),
    (b"a@notexample.org", "From: not allowed to send as notexample.org, use"),
    (b"a@example.org, b@evil.example", "From: not allowed to send as evil.example, use"),
    (b"a@org", "From: not allowed to send as org, use"),
    (b"nobody", "From: it has no addresses that can be read"),
])
def test_every_address_of_from_is_of_the_domains(name: bytes, fault: str) -> None:
    """The domains and those below them; one foreign address among several is one too many."""
    content = b"Subject: x\r\nFROM: " + name + b"\r\n\r\n"
    found = checks.from_fault(content, headers.section_end(content), ("example.org", "example.net"))
    assert found.startswith(fault) if fault else found == ""


def test_every_from_is_looked_at() -> None:
    """A second field is no way around, nor is none."""
    content = b"From: a@example.org\r\nFrom: b@evil.example\r\n"
    assert "evil.example" in checks.from_fault(content, len(content), ("example.org",))
    assert "missing" in checks.from_fault(b"To: x@example.org\r\n", 19, ("example.org",))


def test_sizes() -> None:
    """The whole section, one field with its continuation lines, the lines: taken at the limit, not above it."""
    content = b"Subject: x\r\n y\r\nTo: z\r\n"
    end = len(content)
    assert checks.size_fault(content + b"\r\n" + b"b\r\n" * 99, end, end, 16, 3) == ""
    assert "section is larger than 22 octets" in checks.size_fault(content, end, end - 1, 16, 3)
    assert "field is larger than 15 octets" in checks.size_fault(content, end, end, 15, 3)
    assert "more than 2 lines" in checks.size_fault(content, end, end, 16, 2)


POST = b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
LIST = b"List-Unsubscribe: <https://x.example/u?1>\r\n"


@pytest.mark.parametrize(("content", "fault"), [
    (LIST + POST, ""),
    (b"LIST-unsubscribe:\r\n <mailto:u@x.example>,\r\n <HTTPS://x.example/u>\r\n" + POST, ""),
    (b"Subject: x\r\n", "List-Unsubscribe: it is missing"),
    (POST, "List-Unsubscribe: it is missing"),
    (b"List-Unsubscribe: <mailto:u@x.example>\r\n" + POST, "List-Unsubscribe: expected one https URI"),
    (b"List-Unsubscribe: <http://x.example/u>\r\n" + POST, "List-Unsubscribe: expected one https URI"),
    (b"List-Unsubscribe: https://x.example/u\r\n" + POST, "List-Unsubscribe: expected one https URI"),
    (b"List-Unsubscribe: <https://a.example/>, <https://b.example/>\r\n" + POST, "List-Unsubscribe: expected one"),
    (LIST + LIST + POST, "List-Unsubscribe: it is there more than once"),
    (LIST, "List-Unsubscribe-Post: it is missing"),
    (LIST + POST + POST, "List-Unsubscribe-Post: expected"),
    (LIST + b"List-Unsubscribe-Post: One-Click\r\n", "List-Unsubscribe-Post: expected"),
])
def test_unsubscription_by_one_click(content: bytes, fault: str) -> None:
    """RFC 8058 3.1: one https URI, and the other field with the one value there is."""
    found = checks.unsubscribe_fault(checks.unsubscribe_fields(content + b"\r\n" + LIST + POST, len(content)))
    assert found.startswith(fault) if fault else found == ""


def test_a_long_list_of_uris_ends() -> None:
    """What only looks like the begin of a URI is looked at once."""
    found = [("list-unsubscribe", b"<a:" * 33_000 + b" <https://x.example/u>"),
             ("list-unsubscribe-post", b"List-Unsubscribe=One-Click")]
    assert checks.unsubscribe_fault(found) == ""
