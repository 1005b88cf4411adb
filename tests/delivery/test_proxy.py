"""What is said to proxies, byte by byte."""

from __future__ import annotations

import pytest

from mta.config.hosts import Proxy, parse_proxy
from mta.delivery.proxy import ProxyError, negotiate

V4, V6 = 2, 10


def converse(proxy: str, answers: list[bytes], family: int = V4, address: str = "192.0.2.9",
             source: str | None = None) -> list[bytes]:
    """What we say when the proxy answers so; each answer has just the octets that were asked for."""
    steps = negotiate(parse_proxy(proxy), family, address, 25, source)
    said, wanted = next(steps)
    sent = [said]
    stream = b"".join(answers)
    try:
        while True:
            answer, stream = stream[:wanted], stream[wanted:]
            assert len(answer) == wanted
            said, wanted = steps.send(answer)
            sent.append(said)
    except StopIteration:
        assert stream == b""
    return [one for one in sent if one]


def test_socks5_without_login() -> None:
    """RFC 1928: method, then CONNECT by address; the bound address that comes back is read whole."""
    sent = converse("socks5://10.0.0.1:1080", [b"\x05\x00", b"\x05\x00\x00\x01\x0a\x00\x00\x01\x12\x34"])
    assert sent == [b"\x05\x01\x00", b"\x05\x01\x00\x01\xc0\x00\x02\x09\x00\x19"]


def test_socks5_with_user_and_password_over_ipv6() -> None:
    """RFC 1929. A bound address may also be a name, or IPv6."""
    sent = converse("socks5://us:pass@10.0.0.1:1080",
                    [b"\x05\x02", b"\x01\x00", b"\x05\x00\x00\x03\x04name\x00\x00"], V6, "2001:db8::1")
    assert sent == [b"\x05\x01\x02", b"\x01\x02us\x04pass",
                    b"\x05\x01\x00\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\x00\x19"]
    converse("socks5://10.0.0.1:1080", [b"\x05\x00", b"\x05\x00\x00\x04" + bytes(18)])


@pytest.mark.parametrize(("proxy", "answers", "text", "by_peer"), [
    ("socks5://10.0.0.1:1080", [b"\x05\xff"], "the proxy wants user and password", False),
    ("socks5://u:p@10.0.0.1:1080", [b"\x05\xff"], "the proxy wants no user and password", False),
    ("socks5://10.0.0.1:1080", [b"HT"], "does not speak SOCKS5", False),
    ("socks5://u:p@10.0.0.1:1080", [b"\x05\x02", b"\x01\x01"], "refuses user and password", False),
    ("socks5://10.0.0.1:1080", [b"\x05\x00", b"\x05\x05\x00\x01"], "could not connect: connection refused", True),
    ("socks5://10.0.0.1:1080", [b"\x05\x00", b"\x05\x02\x00\x01"], "could not connect: not allowed", False),
    ("socks5://10.0.0.1:1080", [b"\x05\x00", b"\x05\x00\x00\x09"], "an address of an unknown kind", False),
])
def test_refusals(proxy: str, answers: list[bytes], text: str, by_peer: bool) -> None:
    """Whose fault it is decides who is suspended: a peer that refuses is the site's, all else is the source's."""
    with pytest.raises(ProxyError, match=text) as failed:
        converse(proxy, answers)
    assert failed.value.by_peer is by_peer


def test_proxy_protocol() -> None:
    """HAProxy's proxy-protocol.txt 2.2: signature, PROXY over TCP, length, addresses, ports; nothing comes back."""
    signature = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
    sent = converse("haproxy://10.0.0.1:5000", [], source="192.0.2.25")
    assert sent == [signature + b"\x21\x11\x00\x0c\xc0\x00\x02\x19\xc0\x00\x02\x09\x00\x00\x00\x19"]
    sent = converse("haproxy://10.0.0.1:5000", [], V6, "2001:db8::9", "2001:db8::25")
    assert sent[0].startswith(signature + b"\x21\x21\x00\x24\x20\x01\x0d\xb8")
    assert len(sent[0]) == 16 + 36


def test_how_proxies_are_written() -> None:
    """What is written is what is read; a password for a proxy that takes none is a mistake."""
    for text in ("socks5://192.0.2.1:1080", "socks5://user:p:w@[2001:db8::1]:1080", "haproxy://proxy.example.net:5000"):
        assert str(parse_proxy(text)) == text
    assert parse_proxy("socks5://u:p:w@h.example:1") == Proxy("socks5", "h.example", 1, "u", "p:w")
    for text in ("http://h.example:1", "socks5://h.example", "haproxy://u:p@h.example:1", "socks5://u@h.example:1"):
        with pytest.raises(ValueError, match=r"\w"):
            parse_proxy(text)
