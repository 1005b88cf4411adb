"""xtext and ORCPT: RFC 3461 4, RFC 6533 3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.smtp.xtext import decode, decode_orcpt, encode, orcpt_in_unicode, orcpt_to_ascii


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_round_trip(text: str) -> None:
    """Printable ASCII survives encoding and decoding, and xtext has no space, `+` or `=` of its own."""
    xtext = encode(text)
    assert decode(xtext) == text
    assert " " not in xtext
    assert "=" not in xtext


@pytest.mark.parametrize(
    "xtext", ["a b", "a=b", "a+", "a+4", "a+zz", "a+2b", "a+0D+0Ab", "a+00", "a+0A", "a+7F", "a+FF", "ü", "a\n", "\t"]
)
def test_malformed_xtext(xtext: str) -> None:
    """Malformed xtext, lower-case hex, and anything that does not print when decoded are refused (CVE-2020-28021)."""
    with pytest.raises(ValueError, match="xtext"):
        decode(xtext)


def test_encode_is_for_ascii() -> None:
    """There is no xtext for characters beyond ASCII."""
    with pytest.raises(ValueError, match="ASCII"):
        encode("ü")


def test_orcpt() -> None:
    """The address type and the decoded address; `utf-8` has its own quoting, raw or escaped."""
    assert decode_orcpt("rfc822;user+2Btag@example.org") == ("rfc822", "user+tag@example.org")
    assert decode_orcpt("X400;c=us;a=x".replace("=", "+3D")) == ("X400", "c=us;a=x")
    assert decode_orcpt(r"utf-8;j\x{FC}rgen@example.org") == ("utf-8", "jürgen@example.org")
    assert decode_orcpt("UTF-8;jürgen@example.org") == ("UTF-8", "jürgen@example.org")


@pytest.mark.parametrize(
    "value",
    [
        "user@example.org", "rfc822;", ";user", "rfc 822;user", "rfc822;a b", "rfc822;a+0Ab", "utf-8;a+2Bb",
        r"utf-8;a\x{D800}b", r"utf-8;a\x{110000}b", r"utf-8;a\x{0A}b", r"utf-8;a\x{fc}b", r"utf-8;a\b", "rfc822;ü",
    ],
)  # fmt: skip
def test_malformed_orcpt(value: str) -> None:
    """What is not type;address in the quoting of its type, or hides a control character, is refused."""
    with pytest.raises(ValueError, match=r"address|xtext"):
        decode_orcpt(value)


def test_orcpt_of_postfix() -> None:
    """UTF-8 in xtext is the same address as one of type utf-8, and no way to hide what does not print."""
    assert orcpt_in_unicode("rfc822;gr+C3+BCn+2B1@example.org") == r"utf-8;grün\x{2B}1@example.org"
    for same in ("rfc822;a+2Bb@example.org", "rfc822;a+FCb", "rfc822;a+C3", "rfc822;a b", "x400;gr+C3+BCn", "rfc822"):
        assert orcpt_in_unicode(same) == same
    for hidden in ("rfc822;+C3+BC+0A", "rfc822;+C2+85", "rfc822;+E2+80+A8"):
        with pytest.raises(ValueError, match="print"):
            decode_orcpt(orcpt_in_unicode(hidden))


@given(st.text(st.characters(min_codepoint=33, exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp", "Cn", "Co", "Cf"])))
def test_orcpt_in_unicode_keeps_the_address(text: str) -> None:
    """Whatever is in xtext, as octets of UTF-8, is the address that is read from the other form."""
    xtext = "".join(f"+{octet:02X}" for octet in text.encode())
    if not text.isascii():
        assert decode_orcpt(orcpt_in_unicode(f"rfc822;{xtext}")) == ("utf-8", text)


def test_orcpt_for_a_session_in_ascii() -> None:
    """Without SMTPUTF8 the characters beyond ASCII go escaped, and mean the same."""
    value = orcpt_to_ascii("utf-8;jürgen@example.org")
    assert value == r"utf-8;j\x{FC}rgen@example.org"
    assert decode_orcpt(value)[1] == "jürgen@example.org"
