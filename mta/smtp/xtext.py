"""xtext (RFC 3461 4) and the address forms built on it (RFC 3461 4.2, RFC 6533 3): the values of ENVID and ORCPT.

xtext is printable ASCII in which `+`, `=` and whatever must be hidden are written `+HH`. What it hides can be
anything, so decoding checks that nothing but printable characters comes out: a decoded line end in a notification
would be a line of its own (CVE-2020-28021).
"""

from __future__ import annotations

import re

# No possessive groups here: see mta.smtp.address.
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_HIDDEN = re.compile(r"\+([0-9A-F]{2})")
_TO_HIDE = re.compile(r"[^!-*,-<>-~]")
# RFC 6533 3: utf-8-addr-xtext and utf-8-addr-unitext in one; code points are written \x{HEX}.
_UNITEXT = re.compile(r"(?:[!-*,-<>-\[\]-~\x80-\U0010ffff]|\\x\{[0-9A-F]{2,6}\})*")
_NOT_UNITEXT = re.compile(r"[^!-*,-<>-\[\]-~\x80-\U0010ffff]")
_CODE_POINT = re.compile(r"\\x\{([0-9A-F]{2,6})\}")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++")


def encode(text: str) -> str:
    """Write ASCII text as xtext. Raises ValueError when it is not ASCII."""
    if not text.isascii():
        raise ValueError("xtext holds ASCII only")
    return _TO_HIDE.sub(lambda match: f"+{ord(match[0]):02X}", text)


def decode(xtext: str) -> str:
    """Read xtext. Raises ValueError when it is malformed or hides something that does not print."""
    if _XTEXT.fullmatch(xtext) is None:
        raise ValueError("malformed xtext")
    text = _HIDDEN.sub(lambda match: chr(int(match[1], 16)), xtext)
    if not (text.isascii() and text.isprintable()):
        raise ValueError("xtext with characters that do not print")
    return text


def decode_orcpt(value: str) -> tuple[str, str]:
    """Read an ORCPT value, `rfc822;user@example.org`: the address type and the address, decoded.

    Raises ValueError. The type `utf-8` has a quoting of its own.
    """
    kind, semicolon, rest = value.partition(";")
    if not semicolon or not rest or _ADDRESS_TYPE.fullmatch(kind) is None:
        raise ValueError("not of the form type;address")
    if kind.lower() != "utf-8":
        return kind, decode(rest)
    if _UNITEXT.fullmatch(rest) is None:
        raise ValueError("malformed utf-8 address")
    try:
        text = _CODE_POINT.sub(lambda match: chr(int(match[1], 16)), rest)
        text.encode()
    except (ValueError, OverflowError):  # surrogates, and beyond Unicode
        raise ValueError("malformed utf-8 address") from None
    if not text.isprintable():
        raise ValueError("address with characters that do not print")
    return kind, text


def orcpt_in_unicode(value: str) -> str:
    """An ORCPT value of type rfc822 whose xtext hides UTF-8, as Postfix makes it where its own client gave none, in the
    form that RFC 6533 3 has for such addresses. Others come back as they are, malformed ones too: see `decode_orcpt`.
    """
    kind, _, rest = value.partition(";")
    if kind.lower() != "rfc822" or _XTEXT.fullmatch(rest) is None:
        return value
    try:
        text = _HIDDEN.sub(lambda match: chr(int(match[1], 16)), rest).encode("latin-1").decode()
    except ValueError:
        return value
    if text.isascii():
        return value
    return "utf-8;" + _NOT_UNITEXT.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", text)


def orcpt_to_ascii(value: str) -> str:
    r"""An ORCPT value for a session without SMTPUTF8: characters beyond ASCII become \x{HEX} (RFC 6533 3)."""
    return value if value.isascii() else "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in value)
