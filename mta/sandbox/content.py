"""What the sandbox looks for in a message and in the parameters of MAIL. Pure functions on bytes.

Test messages may carry `X-Test-Id`, a name by which duplicates are known, and `X-Test-Crc32`, the CRC-32 of the body in
hexadecimal, by which damage is.
"""

from __future__ import annotations

import re
import zlib
from hashlib import blake2b
from typing import Final

from mta.sandbox.settings import Behaviour

TEST_ID: Final = b"x-test-id"
TEST_CRC32: Final = b"x-test-crc32"
MAX_KEY: Final = 500
MAX_LINE: Final = 1000  # octets with the CRLF (RFC 5322 2.1.1)

_PARAMETER = re.compile(rb"([A-Za-z0-9-]+)(?:=([^ ]*))?")


def text(octets: bytes) -> str:
    """Octets of an envelope as text."""
    return octets.decode("utf-8", "replace")


def unstuffed(content: bytes) -> bytes:
    """Content without the dots that SMTP adds (RFC 5321 4.5.2)."""
    if content.startswith(b"."):
        content = content[1:]
    return content.replace(b"\r\n.", b"\r\n") if b"\r\n." in content else content


def header(content: bytes, name: bytes) -> bytes:
    """The value of the first header field of that name (lower case), unfolded; empty when there is none. Hot path."""
    end = content.find(b"\r\n\r\n")
    head = b"\r\n" + (content[:end] if end >= 0 else content[:65_536])
    at = head.lower().find(b"\r\n" + name + b":")
    if at < 0:
        return b""
    start = at + 3 + len(name)
    value = head[start : head.find(b"\r\n", start) if b"\r\n" in head[start:] else len(head)].strip()
    if not value:  # folded right after the name, as the e-mail package of Python does
        folded = re.compile(rb"[ \t]*\r\n[ \t]+([^\r\n]*)").match(head, start)
        value = folded[1].strip() if folded else b""
    return value


def message_key(content: bytes) -> bytes:
    """What a message is known by: `X-Test-Id`, else `Message-ID`, else a hash of the body."""
    key = header(content, TEST_ID) or header(content, b"message-id")
    if not key:
        key = b"body:" + blake2b(content[content.find(b"\r\n\r\n") + 4 :], digest_size=12).hexdigest().encode()
    return key[:MAX_KEY]


def is_damaged(content: bytes) -> bool:
    """Whether the body is not what `X-Test-Crc32` says it is."""
    wanted = header(content, TEST_CRC32)
    if not wanted:
        return False
    body = content[content.find(b"\r\n\r\n") + 4 :]
    try:
        return int(wanted, 16) != zlib.crc32(body)
    except ValueError:
        return True


def faults(content: bytes, eight_bit: bool) -> list[str]:
    """What no client should send as content. `eight_bit` is whether it was declared as such. Hot path."""
    found = []
    if not eight_bit and not content.isascii():
        found.append("eight_bit_not_declared")
    bare = content.replace(b"\r\n", b"")
    if b"\n" in bare:
        found.append("bare_lf")
    if b"\r" in bare:
        found.append("bare_cr")
    if b"\0" in bare:
        found.append("nul")
    position = 0
    while len(content) - position > MAX_LINE:
        position = content.rfind(b"\n", position, position + MAX_LINE) + 1
        if not position:
            found.append("long_line")
            break
    return found


def parameters(octets: bytes) -> dict[str, str]:
    """The ESMTP parameters of MAIL or RCPT, names in upper case."""
    return {text(name).upper(): text(value) for name, value in _PARAMETER.findall(octets)}


def not_offered(given: dict[str, str], behaviour: Behaviour | None) -> list[str]:
    """Parameters that a host did not offer; None stands for one that only heard HELO."""
    offered = {"SIZE", "BODY", "SMTPUTF8", "RET", "ENVID", "NOTIFY", "ORCPT"}
    if behaviour is None:
        return list(given)
    if behaviour.size is None:
        offered.discard("SIZE")
    if not behaviour.eight_bit:
        offered.discard("BODY")
    if not behaviour.smtputf8:
        offered.discard("SMTPUTF8")
    if not behaviour.dsn:
        offered -= {"RET", "ENVID", "NOTIFY", "ORCPT"}
    keywords = {line.split()[0].upper() for line in behaviour.extensions if line.strip()}
    offered |= {"BY" if keyword == "DELIVERBY" else keyword for keyword in keywords}
    return [name for name in given if name not in offered]
