"""The client's end of TLS on a wire, without its socket: whatever pieces the ciphertext comes in, the text is the same.
"""

from __future__ import annotations

import random
import ssl
from pathlib import Path
from typing import Any

import pytest

from mta.config.access import Certificate
from mta.delivery.wire import TlsError, Wire
from mta.inject.certificates import make_contexts
from mta.inject.servertls import ServerTls
from tests.inject.access_helpers import make_pki


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Wire, ServerTls]:
    """Both ends, after the handshake."""
    pki = make_pki(tmp_path)
    server = ServerTls(make_contexts([Certificate(certificate=pki.make("mx.test"))], None, "mx.test"))
    wire = Wire.__new__(Wire)  # no socket, and no hub that would wait for it
    wire._incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = wire._tls = pki.context().wrap_bio(wire._incoming, outgoing, server_hostname="mx.test")
    while not server.done:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        server.shake_hands(outgoing.read())
        wire._incoming.write(server.output())
    return wire, server


@pytest.mark.parametrize("seed", range(10))
def test_text_is_the_same_whatever_pieces_it_comes_in(pair: tuple[Wire, ServerTls], seed: int) -> None:
    """Records of any size, in pieces of any size: many records in one, records in many, cut anywhere. While there is
    no whole record it is not the end."""
    wire, server = pair
    random_of = random.Random(seed)
    text, ciphertext = b"", b""
    for _ in range(40):
        part = random_of.randbytes(random_of.choice((1, 30, 479, 5000, 16_384, 40_000)))
        text += part
        ciphertext += server.encrypt(part)
    got = b""
    while ciphertext:
        size = random_of.choice((1, 5, 100, 8192, 65_536))
        piece = wire._decrypted(ciphertext[:size])
        assert piece != b""
        got += piece or b""
        ciphertext = ciphertext[size:]
    assert got == text


def test_the_last_reply_is_read_before_the_end(pair: tuple[Wire, ServerTls]) -> None:
    """A peer that says its last reply and closes TLS, in one packet, is heard; then comes the end."""
    wire, server = pair
    last = server.encrypt(b"421 4.3.2 Going down\r\n") + server.farewell()
    assert wire._decrypted(last) == b"421 4.3.2 Going down\r\n"
    assert wire._decrypted(b"") == b""


def test_what_stands_before_a_forged_record_is_read(pair: tuple[Wire, ServerTls]) -> None:
    """A reply in a whole record is one, whatever comes behind it; the next look says what is wrong."""
    wire, server = pair
    reply, forged = server.encrypt(b"250 OK\r\n"), bytearray(server.encrypt(b"250 2.0.0 Queued\r\n"))
    forged[-1] ^= 1
    assert wire._decrypted(reply + forged) == b"250 OK\r\n"
    with pytest.raises(TlsError):
        wire._decrypted(b"")


def test_the_last_octet_of_a_large_record_costs_no_read_for_each_of_its_octets(pair: tuple[Wire, ServerTls]) -> None:
    """Room is asked for by what has come, but not only by that: a peer chooses its packets."""
    wire, server = pair
    text = random.Random(0).randbytes(16_384)
    ciphertext = server.encrypt(text)
    assert wire._decrypted(ciphertext[:-1]) is None
    counted = wire._tls = Counting(wire._tls)
    assert wire._decrypted(ciphertext[-1:]) == text
    assert counted.reads == 2


class Counting:
    """A TLS object that counts how often it is read."""

    def __init__(self, tls: Any) -> None:
        self._tls = tls
        self.reads = 0

    def read(self, size: int) -> bytes:
        """As the object does."""
        self.reads += 1
        data: bytes = self._tls.read(size)
        return data
