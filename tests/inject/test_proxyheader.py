"""The PROXY header: what real balancers send, and what nobody should."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.inject.proxyheader import V1_LIMIT, V2_LIMIT, ProxyHeader, ProxyHeaderError, read

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int = 0x21, family: int = 0x11, body: bytes | None = None, more: bytes = b"") -> bytes:
    """A header of version 2, of 192.0.2.7:4711 unless said otherwise."""
    if body is None:
        body = b"\xc0\0\x02\x07\x7f\0\0\x01" + struct.pack("!HH", 4711, 25)
    body += more
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


IPV6 = bytes.fromhex("20010db8000000000000000000000001") * 2 + struct.pack("!HH", 4711, 25)


@pytest.mark.parametrize(("header", "client"), [
    (b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 25\r\n", ("192.0.2.7", 4711)),
    (b"PROXY TCP6 2001:DB8::1 ::1 4711 25\r\n", ("2001:db8::1", 4711)),
    (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 4711 25\r\n", ("192.0.2.7", 4711)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
    (v2(), ("192.0.2.7", 4711)),
    (v2(more=b"\x04\0\x03abc"), ("192.0.2.7", 4711)),  # a TLV
    (v2(family=0x21, body=IPV6), ("2001:db8::1", 4711)),
    (v2(command=0x20), None),  # LOCAL: a health check
    (v2(command=0x20, family=0, body=b""), None),
    (v2(family=0x31, body=b"x" * 216), None),  # a Unix socket
    (v2(family=0x12), None),  # UDP
])
def test_headers(header: bytes, client: tuple[str, int] | None) -> None:
    """A header is known when it is whole, not before, and what follows is left alone."""
    assert read(header + b"EHLO x\r\n") == ProxyHeader(client, len(header))
    for end in range(len(header)):
        assert read(header[:end]) is None


@pytest.mark.parametrize("data", [
    b"EHLO client.example\r\n", b"GET / HTTP/1.1\r\n", b"\n", b"PROXY\r\n", b"PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
    b"PROXY TCP4 192.0.2.7 127.0.0.1 4711\r\n", b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 25 26\r\n",
    b"PROXY TCP4 2001:db8::1 ::1 1 1\r\n", b"PROXY TCP6 192.0.2.7 127.0.0.1 1 1\r\n", b"PROXY TCP5 a b 1 1\r\n",
    b"PROXY TCP4 192.0.2.256 127.0.0.1 1 1\r\n", b"PROXY TCP4 192.0.2.7 127.0.0.1 65536 1\r\n",
    b"PROXY TCP4 192.0.2.7 127.0.0.1 -1 1\r\n", b"PROXY TCP4 192.0.2.7 127.0.0.1 1 1\n",
    b"PROXY TCP4 192.0.2.7 127.0.0.1 1 1 \r\n", b"PROXY TCP4 192.0.2.7\0 127.0.0.1 1 1\r\n", b"proxy TCP4 1 1 1 1\r\n",
    b"PROXY UNKNOWN" + b" " * V1_LIMIT, b"PROXY " + b"x" * 200, b"PROXY UNKNOWN \x1b[2J\r\n",
    SIGNATURE + b"\x11\x11\0\0", SIGNATURE + b"\x22\x11\0\0", SIGNATURE + b"\x21\x11" + struct.pack("!H", V2_LIMIT),
    SIGNATURE + b"\x21\x11\xff\xff", v2(body=b"\xc0\0\x02\x07"), v2(family=0x21), b"\r\n\r\nQUIT\r\n",
])
def test_what_is_no_header(data: bytes) -> None:
    """Anything else is an error at once: a client of a balancer must not be taken for the balancer, nor the reverse."""
    with pytest.raises(ProxyHeaderError) as error:
        read(data)
    assert str(error.value).isprintable()


@given(st.binary(max_size=300) | st.builds(lambda tail: b"PROXY " + tail, st.binary(max_size=200))
       | st.builds(lambda tail: SIGNATURE + tail, st.binary(max_size=300)))
def test_any_bytes(data: bytes) -> None:
    """Whatever comes, the answer is a header within the input, not yet, or an error; more input changes no answer."""
    try:
        found = read(data)
    except ProxyHeaderError:
        with pytest.raises(ProxyHeaderError):
            read(data + b"more")
        return
    if found is None:
        assert len(data) < V2_LIMIT
    else:
        assert 0 < found.size <= len(data)
        assert read(data + b"more") == found
