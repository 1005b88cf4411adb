"""The DNS wire format (RFC 1035 4): questions to bytes, bytes to the records that mail routing needs.

Our own reader does the plain messages, which is nearly all of them, in a twentieth of dnspython's time (measured by
`bench/dns.py`): MX, A, AAAA, CNAME, SOA and NS, names of letters, digits, hyphens and underscores. Whatever it finds
odd is read again by dnspython, whose word is final; a test compares the two.

Names are text in lower case without the final dot; the root is ".". Nothing here trusts a byte of the message.
"""

from __future__ import annotations

import re
import struct
from socket import AF_INET6, inet_ntoa, inet_ntop
from typing import Final, Literal, NamedTuple, TypeAlias

import dns.exception
import dns.message
import dns.rdatatype

RecordType: TypeAlias = Literal["MX", "A", "AAAA"]

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16
RCODES: Final = {
    NOERROR: "NOERROR", FORMERR: "FORMERR", SERVFAIL: "SERVFAIL", NXDOMAIN: "NXDOMAIN", NOTIMP: "NOTIMP",
    REFUSED: "REFUSED", BADVERS: "BADVERS",
}

TYPES: Final[dict[RecordType, int]] = {"A": 1, "MX": 15, "AAAA": 28}
A: Final = 1
NS: Final = 2
CNAME: Final = 5
SOA: Final = 6
MX: Final = 15
AAAA: Final = 28
OPT: Final = 41
CLASS_IN: Final = 1

UDP_SIZE: Final = 1232  # what we announce (RFC 6891); fits the smallest IPv6 packet, so nothing is fragmented
ODD_SIZE: Final = 4096  # dnspython takes milliseconds for a large message, and the caller must not wait

_HEADER: Final = struct.Struct("!HHHHHH")
_RECORD: Final = struct.Struct("!HHIH")  # type, class, TTL, length; after the owner's name
_OPT: Final = b"\0" + _RECORD.pack(OPT, UDP_SIZE, 0, 0)
_RESPONSE: Final = 0x8000  # flags of the header: QR, opcode, AA, TC, RD, RA
_OPCODE: Final = 0x7800
_AUTHORITATIVE: Final = 0x0400
_TRUNCATED: Final = 0x0200
_RECURSE: Final = 0x0100
_RECURSION: Final = 0x0080
_AUTHENTIC: Final = 0x0020
_PLAIN: Final = re.compile(rb"[A-Za-z0-9_.-]+").fullmatch
_LABEL: Final = re.compile(r"[!-\[\]-~]{1,63}", re.ASCII).fullmatch  # printable, no backslash
_LONGEST_NAME: Final = 255  # octets (RFC 1035 2.3.4)
_MOST_JUMPS: Final = 16  # a name of a real server needs one


class MessageError(ValueError):
    """The bytes are no DNS message that makes sense. The text says why."""


class MailHost(NamedTuple):
    """One MX record. `host` is "." in a null MX (RFC 7505)."""

    preference: int
    host: str


class Record(NamedTuple):
    """One record of the answer section. `value` is an address, a MailHost, or the target of a CNAME."""

    name: str
    type: int
    ttl: int
    value: str | MailHost


class Message(NamedTuple):
    """What a response says. Records of other types and classes are left out."""

    id: int
    rcode: int
    truncated: bool
    authoritative: bool
    recursion: bool  # RA: the server looks things up for us
    question: bytes  # as it stands in the message, letters lower-case; see `question()`
    answers: list[Record]
    soa_ttl: int | None  # how long a negative answer may be believed (RFC 2308 5); None without an SOA
    referral: bool  # NS records in the authority section: "ask somebody else"
    authentic: bool = False  # AD: the server has verified all of it by DNSSEC, says the server (RFC 4035 3.2.3)


# --- asking --------------------------------------------------------------------------------------------------------


def question(name: str, record_type: RecordType) -> bytes:
    """The question section for `name`, lower case. Raises ValueError when there can be no such name."""
    labels = name.removesuffix(".").lower().split(".")
    parts = []
    for label in labels:
        if not _LABEL(label):
            raise ValueError(f"{name!r} is no name that DNS could know")
        parts.append(bytes((len(label),)) + label.encode("ascii"))
    encoded = b"".join(parts) + b"\0"
    if len(encoded) > _LONGEST_NAME:
        raise ValueError(f"{name[:60]!r}... is longer than a name can be")
    return encoded + struct.pack("!HH", TYPES[record_type], CLASS_IN)


def query(identifier: int, question_section: bytes, edns: bool = True, authentic: bool = False) -> bytes:
    """A recursive query for one question, with EDNS (RFC 6891) unless the server does not know it. `authentic`: the
    server is to say whether the answer is verified (AD in the question, RFC 6840 5.7)."""
    header = _HEADER.pack(identifier, _RECURSE | (_AUTHENTIC if authentic else 0), 1, 0, 0, 1 if edns else 0)
    return header + question_section + (_OPT if edns else b"")


# --- reading -------------------------------------------------------------------------------------------------------


def read(wire: bytes) -> Message:
    """The response in `wire`. Raises MessageError, nothing else."""
    try:
        return _read_plain(wire)
    except _OddError:
        return read_by_dnspython(wire)


class _OddError(Exception):
    """Not for the plain reader."""


def _read_plain(wire: bytes) -> Message:
    """Hot path (bench/dns.py). Raises _OddError for whatever is not plain or not sound."""
    size = len(wire)
    if size < 12:
        raise _OddError
    identifier, flags, questions, answers, authorities, additional = _HEADER.unpack_from(wire)
    if questions != 1 or not flags & _RESPONSE or flags & _OPCODE:
        raise _OddError
    names: dict[int, str] = {}
    _, offset = _name(wire, 12, names)
    if offset + 4 > size:
        raise _OddError
    asked = wire[12 : offset + 4].lower()
    offset += 4
    truncated = bool(flags & _TRUNCATED)
    rcode = flags & 0x000F
    found: list[Record] = []
    soa_ttl = None
    referral = False
    # RFC 2181 9: what comes with TC set is not to be used, and may end anywhere. That goes for the OPT record, too.
    counts = (0, 0, 0) if truncated else (answers, authorities, additional)
    for section, count in enumerate(counts):
        for _ in range(count):
            owner, offset = _name(wire, offset, names)
            if offset + 10 > size:
                raise _OddError
            kind, rdclass, ttl, length = _RECORD.unpack_from(wire, offset)
            offset += 10
            end = offset + length
            if end > size:
                raise _OddError
            if kind == OPT and section == 2:
                rcode |= ttl >> 24 << 4
            elif rdclass == CLASS_IN and section < 2:
                if ttl > 0x7FFFFFFF:
                    ttl = 0
                if section == 0:
                    value = _value(wire, offset, end, kind, names)
                    if value is not None:
                        found.append(Record(owner, kind, ttl, value))
                elif kind == SOA:
                    soa_ttl = min(ttl, _soa_minimum(wire, offset, end, names))
                elif kind == NS:
                    referral = True
            offset = end
    if offset != size and not truncated:
        raise _OddError
    return Message(
        identifier, rcode, truncated, bool(flags & _AUTHORITATIVE), bool(flags & _RECURSION), asked, found, soa_ttl,
        referral, bool(flags & _AUTHENTIC),
    )


def _value(wire: bytes, offset: int, end: int, kind: int, names: dict[int, str]) -> str | MailHost | None:
    """The content of one answer record; None when its type is not ours."""
    length = end - offset
    if kind == A:
        if length != 4:
            raise _OddError
        return inet_ntoa(wire[offset:end])
    if kind == AAAA:
        if length != 16:
            raise _OddError
        return inet_ntop(AF_INET6, wire[offset:end])
    if kind == MX:
        if length < 3:
            raise _OddError
        host, after = _name(wire, offset + 2, names)
        if after != end:
            raise _OddError
        return MailHost(wire[offset] << 8 | wire[offset + 1], host)
    if kind == CNAME:
        host, after = _name(wire, offset, names)
        if after != end:
            raise _OddError
        return host
    return None


def _soa_minimum(wire: bytes, offset: int, end: int, names: dict[int, str]) -> int:
    _, offset = _name(wire, offset, names)
    _, offset = _name(wire, offset, names)
    if offset + 20 != end:
        raise _OddError
    minimum: int = struct.unpack_from("!I", wire, offset + 16)[0]
    return minimum


def _name(wire: bytes, offset: int, names: dict[int, str]) -> tuple[str, int]:
    """The name at `offset` and the offset behind it. `names` keeps those already read, by offset.

    A compression pointer has to point before the name that it is in, so there are no loops.
    """
    size = len(wire)
    start = lowest = offset
    after = 0  # behind the first pointer
    labels: list[bytes] = []
    tail = ""
    jumps = 0
    while True:
        if offset >= size:
            raise _OddError
        length = wire[offset]
        if length >= 0xC0:
            if offset + 1 >= size:
                raise _OddError
            after = after or offset + 2
            offset = (length & 0x3F) << 8 | wire[offset + 1]
            jumps += 1
            if offset >= lowest or jumps > _MOST_JUMPS:
                raise _OddError
            if offset in names:
                tail = names[offset]
                break
            lowest = offset
            continue
        offset += 1
        if length == 0:
            break
        if length > 63 or len(labels) > 127:
            raise _OddError
        labels.append(wire[offset : offset + length])
        offset += length
    if labels:
        joined = b".".join(labels)
        # A label with a dot in it would show as one dot too many.
        if not _PLAIN(joined) or joined.count(b".") != len(labels) - 1 or offset > size:
            raise _OddError
        name = joined.decode("ascii").lower()
        if tail and tail != ".":
            name = f"{name}.{tail}"
        if len(name) > _LONGEST_NAME - 2:  # two octets more on the wire than as text
            raise _OddError
    else:
        name = tail or "."
    names[start] = name
    return name, after or offset


def read_by_dnspython(wire: bytes) -> Message:
    """As `read`, by dnspython alone. Raises MessageError."""
    if len(wire) > ODD_SIZE:
        raise MessageError(f"odd message of {len(wire)} bytes")
    try:
        message = dns.message.from_wire(wire, raise_on_truncation=False, one_rr_per_rrset=True)
    except (dns.exception.DNSException, ValueError) as error:
        raise MessageError(f"{type(error).__name__}: {error}") from None
    if not message.flags & _RESPONSE or message.opcode() != 0:
        raise MessageError("not a response to a query")
    if len(message.question) > 1 or (not message.question and message.rcode() in (NOERROR, NXDOMAIN)):
        raise MessageError(f"an answer to {len(message.question)} questions")
    asked = b""
    for rrset in message.question:
        wire_name = rrset.name.to_wire() or b""
        asked = (wire_name + struct.pack("!HH", rrset.rdtype, rrset.rdclass)).lower()
    truncated = bool(message.flags & _TRUNCATED)
    found: list[Record] = []
    soa_ttl = None
    referral = False
    for rrset in () if truncated else message.answer:
        value: str | MailHost
        rdata = rrset[0]
        if rdata.rdclass != CLASS_IN:
            continue
        if rdata.rdtype in (A, AAAA):
            value = rdata.address
        elif rdata.rdtype == MX:
            value = MailHost(rdata.preference, _text(rdata.exchange))
        elif rdata.rdtype == CNAME:
            value = _text(rdata.target)
        else:
            continue
        found.append(Record(_text(rrset.name), int(rdata.rdtype), _ttl(rrset.ttl), value))
    for rrset in () if truncated else message.authority:
        if rrset.rdclass == CLASS_IN and rrset.rdtype == SOA:
            soa_ttl = min(_ttl(rrset.ttl), rrset[0].minimum)
        elif rrset.rdclass == CLASS_IN and rrset.rdtype == NS:
            referral = True
    rcode = int(message.rcode()) & (0x000F if truncated else 0x0FFF)
    return Message(
        message.id, rcode, truncated, bool(message.flags & _AUTHORITATIVE), bool(message.flags & _RECURSION), asked,
        found, soa_ttl, referral, bool(message.flags & _AUTHENTIC),
    )


def _ttl(ttl: int) -> int:
    """RFC 2181 8: with the highest bit set it is as if it were zero."""
    return ttl if ttl <= 0x7FFFFFFF else 0


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()
