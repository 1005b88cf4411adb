"""Bytes of DNS: our reader against dnspython, and against bytes that mean harm."""

from __future__ import annotations

import struct
import time
from typing import Any

import dns.flags
import dns.message
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.delivery import dns_wire
from mta.delivery.dns_wire import MailHost, MessageError, Record, query, question, read, read_by_dnspython
from tests.delivery.dns_helpers import response

PLAIN = st.one_of(st.text("abcXYZ019-_", min_size=1, max_size=12), st.just("a" * 63)).map(str.encode)
ODD = st.binary(min_size=1, max_size=6)


def _name(labels: list[bytes]) -> dns.name.Name:
    while sum(len(label) + 1 for label in labels) > 250:
        labels.pop()
    return dns.name.Name([*labels, b""])


PLAIN_NAMES = st.lists(PLAIN, max_size=5).map(_name)
ODD_NAMES = st.lists(st.one_of(PLAIN, ODD), max_size=5).map(_name)
TTLS = st.one_of(st.integers(0, 2**31 - 1), st.sampled_from([0, 1, 2**31 - 1]))


@st.composite
def records(draw: Any, names: list[dns.name.Name]) -> dns.rrset.RRset:
    """One record of a type that a response to us may have."""
    owner = draw(st.sampled_from(names))
    kind = draw(st.sampled_from(["A", "AAAA", "MX", "CNAME", "NS", "SOA", "TXT"]))
    target = draw(st.sampled_from(names)).to_text()
    text = {
        "A": ".".join(str(part) for part in draw(st.binary(min_size=4, max_size=4))),
        "AAAA": "2001:db8::" + format(draw(st.integers(0, 0xFFFF)), "x"),
        "MX": f"{draw(st.integers(0, 65_535))} {target}",
        "CNAME": target,
        "NS": target,
        "SOA": f"{target} {target} 1 2 3 4 {draw(st.integers(0, 2**31 - 1))}",
        "TXT": '"v=spf1 -all"',
    }[kind]
    return dns.rrset.from_text(owner, draw(TTLS), "IN", kind, text)


@st.composite
def responses(draw: Any) -> bytes:
    """A well-formed response, compressed as dnspython does it."""
    names = draw(st.lists(draw(st.sampled_from([PLAIN_NAMES, PLAIN_NAMES, ODD_NAMES])), min_size=1, max_size=4))
    message = dns.message.make_response(dns.message.make_query(names[0], "MX", use_edns=draw(st.booleans())))
    message.id = draw(st.integers(0, 65_535))
    message.set_rcode(draw(st.sampled_from([0, 1, 2, 3, 4, 5])))
    message.flags |= draw(st.sampled_from([0, dns.flags.AA, dns.flags.RA, dns.flags.AA | dns.flags.RA, dns.flags.TC,
                                           dns.flags.AD]))
    message.answer = draw(st.lists(records(names), min_size=draw(st.integers(0, 3)), max_size=6))
    message.authority = draw(st.lists(records(names), max_size=2))
    return message.to_wire(max_size=65_535)


@settings(max_examples=150, deadline=None)
@given(responses())
def test_reads_what_dnspython_reads(wire: bytes) -> None:
    """Every well-formed response means the same to our reader and to dnspython."""
    assert read(wire) == read_by_dnspython(wire)


@settings(max_examples=150, deadline=None)
@given(responses(), st.data())
def test_damaged_bytes_are_refused_or_mean_the_same(wire: bytes, data: Any) -> None:
    """Changed, cut and lengthened messages: never anything but MessageError, and no meaning that dnspython denies."""
    damaged = bytearray(wire)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        damaged[position] = data.draw(st.integers(0, 255))
    mangled = bytes(damaged[: data.draw(st.integers(0, len(damaged)))]) if data.draw(st.booleans()) else bytes(damaged)
    try:
        ours = read(mangled)
    except MessageError:
        with pytest.raises(MessageError):
            read_by_dnspython(mangled)
        return
    try:
        theirs = read_by_dnspython(mangled)
    except MessageError:
        return  # dnspython looks into records that we pass over, such as TXT
    assert ours == theirs


@given(st.binary(max_size=80))
def test_noise_is_refused(noise: bytes) -> None:
    """Random bytes raise MessageError or are read; nothing else happens."""
    try:
        read(noise)
    except MessageError:
        pass


def test_plain_messages_need_no_dnspython(monkeypatch: pytest.MonkeyPatch) -> None:
    """The common answers are read by our own reader: that is where the speed is."""
    monkeypatch.setattr(dns_wire, "read_by_dnspython", None)
    asked = dns.message.make_query("example.org", "MX", use_edns=0)
    message = read(response(asked, answer=[
        ("example.org", 300, "MX", "10 mx1.Example.ORG."), ("example.org", 200, "MX", "20 mx2.other-host.net."),
        ("mx1.example.org", 100, "A", "192.0.2.1"), ("mx1.example.org", 100, "AAAA", "2001:db8::1"),
        ("www.example.org", 100, "CNAME", "example.org."),
    ]))
    assert message.answers == [
        Record("example.org", 15, 300, MailHost(10, "mx1.example.org")),
        Record("example.org", 15, 200, MailHost(20, "mx2.other-host.net")),
        Record("mx1.example.org", 1, 100, "192.0.2.1"), Record("mx1.example.org", 28, 100, "2001:db8::1"),
        Record("www.example.org", 5, 100, "example.org"),
    ]
    assert read(response(asked, 3, soa=60)).soa_ttl == 60
    assert read(response(asked, answer=[("example.org", 300, "MX", "0 .")])).answers[0].value == MailHost(0, ".")


def test_every_cut_of_a_message_is_refused() -> None:
    """A message that ends anywhere before its end is not believed in part."""
    asked = dns.message.make_query("example.org", "MX", use_edns=0)
    wire = response(asked, answer=[("example.org", 300, "MX", f"{n} mx{n}.example.org.") for n in range(3)], soa=60)
    for end in range(len(wire)):
        with pytest.raises(MessageError):
            read(wire[:end])


def test_pointers_in_circles_and_long_chains_end() -> None:
    """Compression pointers may neither loop nor run deep: no endless loop, no exhausted stack, no lost time."""
    header = struct.pack("!HHHHHH", 1, 0x8180, 1, 1, 0, 0)
    started = time.perf_counter()
    loop = header + b"\xc0\x0c" + b"\0\x0f\0\x01"
    with pytest.raises(MessageError):
        read(loop)
    # A name behind thousands of pointers, each to the one before.
    chain = header + b"\0" + b"\0\x0f\0\x01"
    chain += b"\0" + struct.pack("!HHIH", 16, 1, 60, 60_000)
    first = len(chain) - 11
    for step in range(8000):
        chain += struct.pack("!H", 0xC000 | (first if step == 0 else len(chain) - 2))
    chain += struct.pack("!H", 0xC000 | (len(chain) - 2) & 0x3FFF)
    with pytest.raises(MessageError):
        read(chain)
    assert time.perf_counter() - started < 10.0  # linear: milliseconds; quadratic: minutes


def test_slack_is_refused() -> None:
    """Bytes behind the name of an MX record, or behind the message, mean that something is not what it seems."""
    asked = dns.message.make_query("example.org", "MX", use_edns=0)
    wire = response(dns.message.make_query("example.org", "MX", use_edns=False),
                    answer=[("example.org", 300, "MX", "10 mx.example.net.")])
    with pytest.raises(MessageError):
        read(wire + b"\0")
    length = wire.rindex(struct.pack("!I", 300)) + 4
    longer = wire[:length] + struct.pack("!H", int.from_bytes(wire[length : length + 2], "big") + 1)
    with pytest.raises(MessageError):
        read(longer + wire[length + 2 :] + b"\0")
    assert read(response(asked)).answers == []


def test_odd_names_are_kept_apart() -> None:
    """A label with a dot or a NUL in it is written with escapes, so it cannot pass for another name."""
    asked = dns.message.make_query("example.org", "MX", use_edns=0)
    message = read(response(asked, answer=[("example.org", 300, "MX", r"10 mx\.one.example.org.")]))
    assert message.answers[0].value == MailHost(10, r"mx\.one.example.org")


def test_large_odd_messages_are_refused_unread() -> None:
    """dnspython is slow, so it gets no message that would hold up a worker."""
    asked = dns.message.make_query("example.org", "MX", use_edns=0)
    answer = [("example.org", 300, "MX", rf"{n} m\.x{n}.example.org.") for n in range(400)]
    with pytest.raises(MessageError, match="odd message"):
        read(response(asked, answer=answer))


def test_negative_ttls_count_as_zero() -> None:
    """RFC 2181 8: a TTL with its highest bit set is zero."""
    asked = dns.message.make_query("example.org", "A", use_edns=0)
    wire = bytearray(response(asked, answer=[("example.org", 300, "A", "192.0.2.1")]))
    at = wire.index(struct.pack("!I", 300))
    wire[at] = 0x80
    assert read(bytes(wire)).answers[0].ttl == 0


def test_queries_are_what_dnspython_would_send() -> None:
    """A query has recursion desired, one question, and EDNS with a size that is not fragmented."""
    for kind in ("MX", "A", "AAAA"):
        message = dns.message.from_wire(query(4711, question("Example.org", kind)))
        assert message.id == 4711
        assert message.flags == dns.flags.RD
        assert message.question[0].to_text() == f"example.org. IN {kind}"
        assert (message.edns, message.payload) == (0, 1232)
        assert dns.message.from_wire(query(1, question("example.org", kind), edns=False)).edns == -1
        verified = dns.message.from_wire(query(1, question("example.org", kind), authentic=True))
        assert verified.flags == dns.flags.RD | dns.flags.AD  # RFC 6840 5.7


@pytest.mark.parametrize("name", ["", ".", "a..b", "x" * 64 + ".org", "é.org", "a b.org", r"a\.b.org",
                                  ".".join(["abcdefgh"] * 29)])
def test_impossible_names_are_not_asked_for(name: str) -> None:
    """Names that DNS cannot hold raise ValueError instead of making bytes."""
    with pytest.raises(ValueError, match="name"):
        question(name, "MX")


def test_name_of_greatest_length() -> None:
    """255 octets on the wire are allowed, one more is not (RFC 1035 2.3.4)."""
    longest = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    assert dns.message.from_wire(query(1, question(longest, "A"))).question[0].name.to_text() == longest + "."
    with pytest.raises(ValueError, match="longer"):
        question(longest + "e", "A")
