"""What a header section must be like to be taken by large receivers. Pure: bytes in, faults out.

Each function looks at one thing and gives what is wrong with it in words for who wrote the message, or "". What then
happens, a refusal or a warning, is not decided here. Text of the message never becomes part of these words, but for
domains in ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from mta.message import headers
from mta.smtp.address import AddressError, domain_to_ascii, parse_address


def size_fault(content: bytes, end: int, header_size: int, field_size: int, lines: int) -> str:
    """What is too large about the header section of `end` octets. Hot path."""
    if end > header_size:
        return f"The header section is larger than {header_size} octets, make it smaller"
    if end > 2 * lines and content.count(b"\r\n", 0, end) > lines:  # a line has two octets at least
        return f"The header section has more than {lines} lines, make it smaller"
    if end > field_size:
        for field in headers.fields(content, end):
            if field.end - field.start > field_size:
                return f"A header field is larger than {field_size} octets, make it smaller"
    return ""


def repeated_fault(name: str) -> str:
    """What is wrong with a field of `headers.ONCE` that is there more than once; `name` is in lower case."""
    spelled = "Message-ID" if name == "message-id" else name.title()
    return f"{spelled}: it is there more than once, leave one (RFC 5322 3.6)"


def from_fault(content: bytes, end: int, domains: Collection[str]) -> str:
    """Why the addresses in From are not all of these domains, or of domains below them."""
    seen = False
    for field in headers.fields(content, end):
        if field.name != b"from":
            continue
        seen = True
        found = domains_of(headers.value(content, field))
        if found is None:
            return "From: it has no addresses that can be read, write it as From: Name <user@domain>"
        for domain in found:
            if not _is_of(domain, domains):
                shown = domain if re.fullmatch(r"[a-z0-9._-]{1,100}", domain) else "one of its domains"
                return f"From: not allowed to send as {shown}, use an address of a domain of yours"
    return "" if seen else "From: it is missing, add it with an address of a domain of yours"


def _is_of(domain: str, domains: Collection[str]) -> bool:
    while domain:
        if domain in domains:
            return True
        domain = domain.partition(".")[2]
    return False


# Nothing in these is tried at length twice: whoever may send can choose what they see, and it is the hub that looks.
_QUOTED = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_PIECE = re.compile(rb"%b|[^\"(),\\]+|[(,]" % _QUOTED, re.DOTALL)
_IN_COMMENT = re.compile(rb"[^()\\]+|\\.|[()]", re.DOTALL)
# A display name is words and quoted strings; what looks like an address in it is none, and somebody may be deceived.
_NAMED = re.compile(rb"(?:%b|[^\"<>();:@\\\[\]])*<([^<>\r\n]*)>" % _QUOTED, re.DOTALL)
_VALUE_LIMIT = 16_384
_BEYOND_ASCII = 20  # addresses


def domains_of(value: bytes) -> list[str] | None:
    """The domains, in A-labels, of all mailboxes in an unfolded From (RFC 5322 3.4); None when it is no list of them.

    Strict, because readers differ on what is strange: a group, a source route, an address in the display name that
    is not in quotes, or one address behind another without a comma make it None; so do more than 20 addresses that are
    not ASCII, as each takes the hub up to half a millisecond. Linear in the length of the value.
    """
    parts = _parts(value) if len(value) <= _VALUE_LIMIT else None
    if parts is None:
        return None
    domains = []
    beyond_ascii = 0
    for part in parts:
        named = _NAMED.fullmatch(part)
        text = (part if named is None else named[1]).strip(b" \t")
        beyond_ascii += not text.isascii()
        if text.startswith(b"@") or beyond_ascii > _BEYOND_ASCII:
            return None
        try:
            address = parse_address(text.decode())
            domain = domain_to_ascii(address.domain)
        except (AddressError, UnicodeDecodeError):
            return None
        if not domain:
            return None
        domains.append(domain)
    return domains


def _parts(value: bytes) -> list[bytes] | None:
    """What stands between the commas, with a space for each comment; None when a quote or a comment has no end."""
    parts = [b""]
    pieces: list[bytes] = []
    position = 0
    while position < len(value):
        match = _PIECE.match(value, position)
        if match is None:
            return None
        piece, position = match[0], match.end()
        if piece == b",":
            parts[-1] = b"".join(pieces).strip(b" \t")
            parts.append(b"")
            pieces.clear()
        elif piece == b"(":
            position = _behind_comment(value, position)
            if position < 0:
                return None
            pieces.append(b" ")
        else:
            pieces.append(piece)
    parts[-1] = b"".join(pieces).strip(b" \t")
    return parts


def _behind_comment(value: bytes, position: int) -> int:
    """The offset behind a comment that has begun, with comments in it; -1 when it has no end."""
    depth = 1
    while depth:
        match = _IN_COMMENT.match(value, position)
        if match is None:
            return -1
        position = match.end()
        depth += {b"(": 1, b")": -1}.get(match[0], 0)
    return position


_ONE_CLICK = re.compile(rb"(?i:List-Unsubscribe=One-Click)")
_URI = re.compile(rb"<[ \t]*((?i:[a-z][a-z0-9+.-]*):[!-;=?-~]*)[ \t]*>")
_LIST_FIELDS = re.compile(rb"\r\n((?i:List-Unsubscribe(?:-Post)?))[ \t]*:")


def unsubscribe_fields(content: bytes, end: int) -> list[tuple[str, bytes]]:
    """Name in lower case and value of List-Unsubscribe and List-Unsubscribe-Post, as often as they are there."""
    section = b"\r\n" + content[:end]
    return [(match[1].decode().lower(), headers.unfolded(section, match.end()))
            for match in _LIST_FIELDS.finditer(section)]


def unsubscribe_fault(found: list[tuple[str, bytes]]) -> str:
    """Why these do not offer unsubscription by one click (RFC 8058 3.1). `found` is of `unsubscribe_fields`."""
    lists = [value for name, value in found if name == "list-unsubscribe"]
    posts = [value for name, value in found if name == "list-unsubscribe-post"]
    if not lists:
        return "List-Unsubscribe: it is missing, add it with one https URI (RFC 8058)"
    if len(lists) > 1:
        return "List-Unsubscribe: it is there more than once, leave one"
    secure = [uri for uri in _URI.findall(lists[0]) if uri[:8].lower() == b"https://"]
    if len(secure) != 1:
        return "List-Unsubscribe: expected one https URI in angle brackets, beside which a mailto may stand (RFC 8058)"
    if not posts:
        return "List-Unsubscribe-Post: it is missing, add List-Unsubscribe-Post: List-Unsubscribe=One-Click (RFC 8058)"
    if len(posts) > 1 or not _ONE_CLICK.fullmatch(posts[0]):
        return "List-Unsubscribe-Post: expected List-Unsubscribe=One-Click, once (RFC 8058)"
    return ""
