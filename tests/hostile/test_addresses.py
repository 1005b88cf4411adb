"""Addresses by the diagnoses of is_email, and what no two parts of ours may read differently.

`MTA_ISEMAIL=DIRECTORY pytest tests/hostile/test_addresses.py` reads is_email's own `tests.xml` (Dominic Sayers,
3-clause BSD) from there. What is here beside that is a selection of ours with the same names of categories.

For an envelope (`parse_address`) what is valid in SMTP is taken and everything else refused; for a header, as the spool
directory and `sendmail -t` read it (`parse_list`, then `parse_address`), comments and folding are taken, too. Where we
decide otherwise EXCEPTIONS has the reason.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.inject import addresses
from mta.smtp.address import Address, AddressError, parse_address, parse_path

IN_SMTP = ("ISEMAIL_VALID_CATEGORY", "ISEMAIL_DNSWARN", "ISEMAIL_RFC5321")
"""Categories of what RFC 5321 has. DNSWARN is about names that did not exist when the tests were written."""

TAKEN, REFUSED, EITHER = "taken", "refused", "either in a header"
EXCEPTIONS = {
    # A domain whose last label is a number is an IPv4 address without its brackets, or one with a slip of the finger:
    # no top-level domain is a number (RFC 3696 2), and what is accepted could only come back.
    "ISEMAIL_RFC5321_TLDNUMERIC": REFUSED,
    # RFC 5321 4.5.3.1.1 says what everybody must take, 64 octets; we take 128. Senders of bulk mail put the recipient's
    # address into theirs (VERP), and its own host decides what a local part may be.
    "ISEMAIL_RFC5322_LOCAL_TOOLONG": TAKEN,
    # 254 octets follow from the length of a path that everybody must take (RFC 5321 4.5.3.1.3). A domain of 255 and a
    # local part of 128 are our limits, each for itself.
    "ISEMAIL_RFC5322_TOOLONG": TAKEN,
    # `::` for one group must not be written (RFC 5321 4.1.3), but everybody reads it (RFC 4291 2.2). It is sent in the
    # form that may be written.
    "ISEMAIL_RFC5321_IPV6DEPRECATED": TAKEN,
    # RFC 5322 4.4 wants it read: around the `@` it is. Inside of a domain or a local part a space may be between two
    # addresses, and is an error.
    "ISEMAIL_DEPREC_CFWS_NEAR_AT": EITHER,
    # Folding around an address is read, inside of it it is an error, as above.
    "ISEMAIL_DEPREC_FWS": EITHER,
}

OURS = [
    # address, category, diagnosis
    ("first.last@sub.do.example", "ISEMAIL_VALID_CATEGORY", "ISEMAIL_VALID"),
    ("a+b=c/d!e%f@example.org", "ISEMAIL_VALID_CATEGORY", "ISEMAIL_VALID"),
    ("0@x.example", "ISEMAIL_VALID_CATEGORY", "ISEMAIL_VALID"),
    ("a@xn--bcher-kva.example", "ISEMAIL_VALID_CATEGORY", "ISEMAIL_VALID"),
    ("a@1.2.3.example", "ISEMAIL_VALID_CATEGORY", "ISEMAIL_VALID"),
    ("l" * 64 + "@example.org", "ISEMAIL_VALID_CATEGORY", "ISEMAIL_VALID"),
    ("a@example", "ISEMAIL_RFC5321", "ISEMAIL_RFC5321_TLD"),
    ('"a b"@example.org', "ISEMAIL_RFC5321", "ISEMAIL_RFC5321_QUOTEDSTRING"),
    ('"a\\"\\\\b"@example.org', "ISEMAIL_RFC5321", "ISEMAIL_RFC5321_QUOTEDSTRING"),
    ('"<x@evil.example>"@example.org', "ISEMAIL_RFC5321", "ISEMAIL_RFC5321_QUOTEDSTRING"),
    ("a@[192.0.2.255]", "ISEMAIL_RFC5321", "ISEMAIL_RFC5321_ADDRESSLITERAL"),
    ("a@[IPv6:2001:db8::192.0.2.1]", "ISEMAIL_RFC5321", "ISEMAIL_RFC5321_ADDRESSLITERAL"),
    ("a@[IPv6:2001:db8:1:2:3:4::5]", "ISEMAIL_DEPREC", "ISEMAIL_RFC5321_IPV6DEPRECATED"),
    ("a@192.0.2.1", "ISEMAIL_RFC5321", "ISEMAIL_RFC5321_TLDNUMERIC"),
    ("l" * 65 + "@example.org", "ISEMAIL_RFC5322", "ISEMAIL_RFC5322_LOCAL_TOOLONG"),
    ("a@" + ".".join(["d" * 60] * 4) + ".example", "ISEMAIL_RFC5322", "ISEMAIL_RFC5322_TOOLONG"),
    ("a@" + "d" * 64 + ".example", "ISEMAIL_RFC5322", "ISEMAIL_RFC5322_LABEL_TOOLONG"),
    ("a@[192.0.2]", "ISEMAIL_RFC5322", "ISEMAIL_RFC5322_DOMAINLITERAL"),
    ("a@[192.0.2.1 ]", "ISEMAIL_RFC5322", "ISEMAIL_RFC5322_DOMAINLITERAL"),
    ("a@[0x7f.0.0.1]", "ISEMAIL_RFC5322", "ISEMAIL_RFC5322_DOMAINLITERAL"),
    ("a@[2130706433]", "ISEMAIL_RFC5322", "ISEMAIL_RFC5322_DOMAINLITERAL"),
    ("a@[IPv6:::ffff:1.2.3]", "ISEMAIL_RFC5322", "ISEMAIL_RFC5322_IPV6_GRPCOUNT"),
    ("a@[IPv6:1:2:3:4:5:6:7:8:9]", "ISEMAIL_RFC5322", "ISEMAIL_RFC5322_IPV6_GRPCOUNT"),
    ("a@[IPv6:1::2::3]", "ISEMAIL_RFC5322", "ISEMAIL_RFC5322_IPV6_2X2XCOLON"),
    ("a@exa/mple.org", "ISEMAIL_RFC5322", "ISEMAIL_RFC5322_DOMAIN"),
    ("(who)a@example.org", "ISEMAIL_CFWS", "ISEMAIL_CFWS_COMMENT"),
    ("a@example.org (what (ever))", "ISEMAIL_CFWS", "ISEMAIL_CFWS_COMMENT"),
    ("\r\n a@example.org", "ISEMAIL_CFWS", "ISEMAIL_CFWS_FWS"),
    ('"a".b@example.org', "ISEMAIL_DEPREC", "ISEMAIL_DEPREC_LOCALPART"),
    ("a . b@example.org", "ISEMAIL_DEPREC", "ISEMAIL_DEPREC_FWS"),
    ("a @example.org", "ISEMAIL_DEPREC", "ISEMAIL_DEPREC_CFWS_NEAR_AT"),
    ('"a\x07"@example.org', "ISEMAIL_DEPREC", "ISEMAIL_DEPREC_QTEXT"),
    ('"a\\\x00"@example.org', "ISEMAIL_DEPREC", "ISEMAIL_DEPREC_QP"),
    ("", "ISEMAIL_ERR", "ISEMAIL_ERR_NODOMAIN"),
    ("a", "ISEMAIL_ERR", "ISEMAIL_ERR_NODOMAIN"),
    ("a@", "ISEMAIL_ERR", "ISEMAIL_ERR_NODOMAIN"),
    ("@example.org", "ISEMAIL_ERR", "ISEMAIL_ERR_NOLOCALPART"),
    ("a@@example.org", "ISEMAIL_ERR", "ISEMAIL_ERR_EXPECTING_ATEXT"),
    ("a@b@example.org", "ISEMAIL_ERR", "ISEMAIL_ERR_EXPECTING_ATEXT"),
    (".a@example.org", "ISEMAIL_ERR", "ISEMAIL_ERR_DOT_START"),
    ("a.@example.org", "ISEMAIL_ERR", "ISEMAIL_ERR_DOT_END"),
    ("a..b@example.org", "ISEMAIL_ERR", "ISEMAIL_ERR_CONSECUTIVEDOTS"),
    ("a@example..org", "ISEMAIL_ERR", "ISEMAIL_ERR_CONSECUTIVEDOTS"),
    ("a@-example.org", "ISEMAIL_ERR", "ISEMAIL_ERR_DOMAINHYPHENSTART"),
    ("a@example-.org", "ISEMAIL_ERR", "ISEMAIL_ERR_DOMAINHYPHENEND"),
    ('"a@example.org', "ISEMAIL_ERR", "ISEMAIL_ERR_UNCLOSEDQUOTEDSTR"),
    ('"a"b@example.org', "ISEMAIL_ERR", "ISEMAIL_ERR_ATEXT_AFTER_QS"),
    ('"a\\\xe9"@example.org', "ISEMAIL_ERR", "ISEMAIL_ERR_EXPECTING_QPAIR"),
    ("a@[192.0.2.1", "ISEMAIL_ERR", "ISEMAIL_ERR_UNCLOSEDDOMLIT"),
    ("a@[192.0.2.1]b", "ISEMAIL_ERR", "ISEMAIL_ERR_ATEXT_AFTER_DOMLIT"),
    ("(a@example.org", "ISEMAIL_ERR", "ISEMAIL_ERR_UNCLOSEDCOMMENT"),
    ("a\rb@example.org", "ISEMAIL_ERR", "ISEMAIL_ERR_CR_NO_LF"),
    ("a@example.org\n", "ISEMAIL_ERR", "ISEMAIL_ERR_EXPECTING_ATEXT"),
    ("a@example.org\r\n", "ISEMAIL_ERR", "ISEMAIL_ERR_FWS_CRLF_END"),
    ("a\x7f@example.org", "ISEMAIL_ERR", "ISEMAIL_ERR_EXPECTING_ATEXT"),
    ("a@exam\x00ple.org", "ISEMAIL_ERR", "ISEMAIL_ERR_EXPECTING_ATEXT"),
]


def collected() -> Iterator[tuple[str, str, str]]:
    """Those of is_email. A control character stands there as its symbol, U+2400 and what follows."""
    directory = os.environ.get("MTA_ISEMAIL")
    if directory is None:
        return
    for test in ET.parse(Path(directory, "tests.xml")).iter("test"):
        text = (test.findtext("address") or "").replace("\u2421", "\x7f")
        text = re.sub("[\u2400-\u2420]", lambda match: chr(ord(match[0]) - 0x2400), text)
        yield text, test.findtext("category") or "", test.findtext("diagnosis") or ""


def taken(text: str) -> Address | None:
    """As the address of an envelope."""
    try:
        return parse_address(text)
    except AddressError:
        return None


def taken_from_header(text: str) -> bool:
    """As a field with one address."""
    try:
        return len([parse_address(one.address) for one in addresses.parse_list(text)]) == 1
    except (AddressError, addresses.AddressError):
        return False


def test_is_email_is_read() -> None:
    """The directory that was named has the tests that it should have."""
    if "MTA_ISEMAIL" not in os.environ:
        pytest.skip("MTA_ISEMAIL names no directory with tests.xml of is_email")
    assert len(list(collected())) > 150


@pytest.mark.parametrize(("text", "category", "diagnosis"), [*OURS, *collected()])
def test_diagnoses(text: str, category: str, diagnosis: str) -> None:
    """Valid ones are taken, all others refused, but for the exceptions; what is taken goes out as a valid one."""
    decided = EXCEPTIONS.get(diagnosis)
    address = taken(text)
    if decided in (TAKEN, REFUSED):
        assert (address is not None) == (decided is TAKEN)
    else:
        assert (address is not None) == (category in IN_SMTP)
        if decided is None:
            assert taken_from_header(text) == (category in (*IN_SMTP, "ISEMAIL_CFWS"))
    if address is not None:
        assert parse_path(f"<{address.text}>".encode()) == (address, len(address.text.encode()) + 2)
        assert address.domain.lower() == address.domain or address.domain.startswith("[IPv6:")


def test_every_exception_is_of_use() -> None:
    """An argument without a case would be out of date."""
    assert set(EXCEPTIONS) <= {diagnosis for _, _, diagnosis in OURS}


SPLITTERS = st.one_of(
    st.sampled_from([text for text, _, _ in OURS]),
    st.from_regex(r'("([^"\\]|\\.){0,8}"|[a-z!%@.,<>]{1,8})@(\[[0-9a-fIPv:.@]{1,20}\]|[a-z.@-]{1,12})', fullmatch=True))


@given(SPLITTERS)
def test_everybody_splits_an_address_alike(text: str) -> None:
    """Who may send, where it goes and what is sent are decided by the same domain: the rest of the code splits at the
    last `@`, which is the one that the parser found (CVE-2020-3811, CVE-2023-27043)."""
    address = taken(text)
    if address is not None and address.domain:
        assert address.text.rpartition("@")[::2] == (address.local, address.domain)
        assert address.text.encode().count(b"\n") == 0


def test_what_the_envelope_and_the_header_take_is_one_address() -> None:
    """Nothing is read as one address at the door and as another in a field."""
    for text, _, _ in OURS:
        address = taken(text)
        if address is None:
            continue
        try:
            found = addresses.parse_list(text)
        except addresses.AddressError:
            continue
        assert [parse_address(one.address) for one in found] == [address]
