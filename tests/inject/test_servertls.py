"""The server's end of TLS, without a connection: whatever pieces the ciphertext comes in, the text is the same."""

from __future__ import annotations

import random
import ssl
from pathlib import Path

import pytest

from mta.config.access import Certificate
from mta.inject import servertls
from mta.inject.certificates import make_contexts
from mta.inject.servertls import ServerTls, TlsError
from tests.inject.access_helpers import make_pki


class Client:
    """The other end."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="mx.test")

    def shake_hands(self, server: ServerTls) -> None:
        """Until both are done."""
        done = False
        while not done:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            done = server.shake_hands(self.outgoing.read())
            self.incoming.write(server.output())


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Client, ServerTls]:
    """Both ends, after the handshake."""
    pki = make_pki(tmp_path)
    server = ServerTls(make_contexts([Certificate(certificate=pki.make("mx.test"))], None, "mx.test"))
    client = Client(pki.context())
    client.shake_hands(server)
    return client, server


@pytest.mark.parametrize("seed", range(10))
def test_text_is_the_same_whatever_pieces_it_comes_in(pair: tuple[Client, ServerTls], seed: int) -> None:
    """Records of any size, in pieces of any size: many records in one, records in many, cut anywhere."""
    client, server = pair
    random_of = random.Random(seed)
    text, ciphertext = b"", b""
    for _ in range(40):
        part = random_of.randbytes(random_of.choice((1, 30, 5000, 16_384, 40_000)))
        text += part
        client.tls.write(part)
        ciphertext += client.outgoing.read()
    got = b""
    while ciphertext:
        size = random_of.choice((1, 5, 100, servertls._PIECE, servertls._PIECE + 1, 65_536))
        piece, ended = server.decrypt(ciphertext[:size])
        assert not ended
        ciphertext = ciphertext[size:]
        got += piece
    assert got == text


def test_the_end_behind_text_is_seen(pair: tuple[Client, ServerTls]) -> None:
    """A client that says its last command and closes TLS, in one packet, is heard."""
    client, server = pair
    client.tls.write(b"QUIT\r\n")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    assert server.decrypt(client.outgoing.read()) == (b"QUIT\r\n", True)


def test_what_tls_has_to_say_stands_before_the_text(tmp_path: Path) -> None:
    """Who encrypts sends that, too: records are numbered, so text could not be read without the tickets before it."""
    pki = make_pki(tmp_path)
    server = ServerTls(make_contexts([Certificate(certificate=pki.make("mx.test"))], None, "mx.test"))
    client = Client(pki.context())
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    server.shake_hands(client.outgoing.read())
    client.incoming.write(server.output())
    client.tls.do_handshake()
    assert server.shake_hands(client.outgoing.read())
    client.incoming.write(server.encrypt(b"220 mx.test\r\n"))
    assert server.output() == b""
    assert client.tls.read(1000) == b"220 mx.test\r\n"


def test_the_last_octets_of_a_long_record_are_enough(pair: tuple[Client, ServerTls]) -> None:
    """What ends a record may be far less than what is in it: all of it is read at once, and nothing waits."""
    client, server = pair
    text = bytes(range(256)) * 64
    client.tls.write(text)
    ciphertext = client.outgoing.read()
    assert server.decrypt(ciphertext[:8000]) == (b"", False)
    assert server.decrypt(ciphertext[8000:-1]) == (b"", False)
    assert server.decrypt(ciphertext[-1:]) == (text, False)


def test_a_forged_record_ends_it(pair: tuple[Client, ServerTls]) -> None:
    """What was changed on the way is not read, nor what stands behind it."""
    client, server = pair
    client.tls.write(b"NOOP\r\n")
    forged = bytearray(client.outgoing.read())
    forged[-1] ^= 1
    with pytest.raises(TlsError):
        server.decrypt(bytes(forged))


def test_a_command_behind_the_handshake_is_read(tmp_path: Path) -> None:
    """A client need not wait for us to have seen the end of its handshake (RFC 8446 2): what came with that is asked
    for with nothing new."""
    pki = make_pki(tmp_path)
    server = ServerTls(make_contexts([Certificate(certificate=pki.make("mx.test"))], None, "mx.test"))
    client = Client(pki.context())
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    assert not server.shake_hands(client.outgoing.read())
    client.incoming.write(server.output())
    client.tls.do_handshake()
    client.tls.write(b"EHLO client.test\r\n")
    assert server.shake_hands(client.outgoing.read())
    assert server.decrypt(b"") == (b"EHLO client.test\r\n", False)
