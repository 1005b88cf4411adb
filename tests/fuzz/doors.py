"""What stands before or beside SMTP: PROXY headers, XCLIENT, SASL, the file of users."""

from __future__ import annotations

import ipaddress
from typing import Final

from mta.access import users
from mta.inject import proxyheader
from mta.inject.proxyheader import ProxyHeader, ProxyHeaderError
from mta.smtp import replies, sasl
from mta.smtp.peer import Identity, Peer
from mta.smtp.xclient import HELO_NAME, AttributeValueError, read_attributes
from tests.smtp.scram import ScramClient

_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
PROXY_SEEDS: Final = (
    b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 25\r\nEHLO x\r\n", b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 1 65535\r\n",
    b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN x y z\r\n", _V2 + b"\x21\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\x12\x67\0\x19EHLO",
    _V2 + b"\x21\x21\0\x26" + bytes(range(38)), _V2 + b"\x20\0\0\0", _V2 + b"\x21\x11\0\x10" + bytes(16),
)  # fmt: skip
PROXY_WORDS: Final = (b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", _V2, b"\x21\x11\0\x0c", b"::ffff:", b"\r\n", b" 65536")


def run_proxy(data: bytes) -> None:
    """A header is read, refused, or not whole yet; what was said of a part holds for all that begins with it."""
    whole = _proxy(data)
    if isinstance(whole, ProxyHeader):
        assert 15 <= whole.size <= max(proxyheader.V1_LIMIT, proxyheader.V2_LIMIT)
        assert whole.size <= len(data)
        if whole.client is not None:
            address, port = whole.client
            assert str(ipaddress.ip_address(address)) == address
            assert 0 <= port < 65_536
    else:
        assert whole == "refused" or len(data) < proxyheader.V2_LIMIT
    for end in {1, 5, 12, 16, len(data) // 2, len(data) - 1}:
        if 0 < end < len(data):
            part = _proxy(data[:end])
            assert part is None or part == whole


def _proxy(data: bytes) -> ProxyHeader | str | None:
    try:
        return proxyheader.read(data)
    except ProxyHeaderError as error:
        assert str(error).isascii()
        return "refused"


XCLIENT_SEEDS: Final = (
    b"NAME=mail.example.org ADDR=192.0.2.1 PORT=4711 PROTO=ESMTP HELO=mx.example LOGIN=tim DESTADDR=x DESTPORT=25",
    b"ADDR=IPV6:2001:db8::1 NAME=[UNAVAILABLE] LOGIN=", b"addr=[TEMPUNAVAIL] helo=[192.0.2.1]",
    b"LOGIN=a+3Db+20c ADDR=::ffff:192.0.2.9",
)  # fmt: skip
XCLIENT_WORDS: Final = (
    b" ADDR=", b" NAME=", b" LOGIN=", b" HELO=", b" PORT=", b"[UNAVAILABLE]", b"IPV6:", b"+0D+0A", b"%eth0", b"+2B",
)  # fmt: skip


def run_xclient(data: bytes) -> None:
    """Attributes make a client that could have been one, or are refused."""
    before = Peer("198.51.100.7", 4711, identity=Identity("bob", "password"), may_xclient=True)
    try:
        peer, helo = read_attributes(data, before, "h.example")
    except AttributeValueError as error:
        assert replies.bad_xclient(str(error)).removesuffix(b"\r\n").decode().isprintable()
        return
    assert str(ipaddress.ip_address(peer.address)) == peer.address
    assert 0 <= peer.port < 65_536
    assert not helo or HELO_NAME.fullmatch(helo.encode())
    assert peer.name.isascii()
    assert peer.name.isprintable()
    assert " " not in peer.name
    assert (peer.may_xclient, peer.tls) == (True, None)
    if peer.identity is not None and peer.identity != before.identity:
        assert peer.identity.via == "xclient"
        assert peer.identity.user.isprintable()
        assert peer.identity.user


_KEYS: Final = sasl.scram_keys("pencil", b"salt", 1)
_BINDINGS: Final = {"tls-server-end-point": b"\1" * 32}
SASL_SEEDS: Final = (
    b"\0\0tim\0secret", b"\0whom\0t\xc3\xbcm\0p\xc2\xaass", b"\1tim\0secret", b"\2n,,n=tim,r=abc",
    b"\x12n,a=x,n=t=2Cm,r=abc,e=f",
    b"\x0ap=tls-server-end-point,,n=tim,r=abc", b"\2y,,n=tim,r=x", b"\3", b"\3\1\2\3", b"\4abcd====",
    b"\5\xc2\xad\xef\xac\x81",
    b"\x21", b"\x3f", b"\x33", b"\x39\1\1",
    b"\3\4\0\0\x40",
)  # fmt: skip
SASL_WORDS: Final = (
    b"n,,", b"p=", b"y,,", b"n=", b",r=", b"=2C", b"=3D", b"\0", b",m=x", b"tls-exporter", b"\xd7\x90",
    b"\xe2\x80\x8d",
)  # fmt: skip


def run_sasl(data: bytes) -> None:
    """Exchanges end in an attempt or a refusal; a proof is valid only of who knows the password and changed nothing."""
    if not data:
        return
    kind, rest = data[0] % 6, data[1:]
    try:
        if kind == 0:
            attempt = sasl.Plain().respond(rest)
            assert isinstance(attempt, sasl.PasswordAttempt)
            assert attempt.user
            assert attempt.password
        elif kind == 1:
            user, _, password = rest.partition(b"\0")
            login = sasl.Login()
            assert login.respond(user) == b"Password:"
            assert isinstance(login.respond(password), sasl.PasswordAttempt)
        elif kind == 2:
            plus = bool(data[0] & 8)
            scram = sasl.Scram(_BINDINGS, plus=plus, plus_offered=bool(data[0] & 16), fake_salt_key=b"k", iterations=1,
                               nonce=lambda: "n")
            first = scram.respond(rest)
            assert isinstance(first, sasl.ScramAttempt)
            challenge = scram.found(_KEYS)
            assert b"\0" not in challenge
            proof = scram.respond(b"c=biws,r=abcn,p=AAAA")
            assert proof == sasl.ScramProof(first.user, proof.authorize_as, False)
        elif kind == 3:
            _tamper(data)
        elif kind == 4:
            assert sasl.decode(sasl.encode(rest)) == rest
            octets = sasl.decode(rest)
            assert sasl.decode(sasl.encode(octets)) == octets
        else:
            prepared = sasl.prepare(rest.decode("utf-8", "replace"))
            assert "\0" not in prepared
            assert "\n" not in prepared
    except sasl.MalformedResponseError as error:
        assert str(error).isascii()


def _octets_of(final: bytes) -> bytes:
    return sasl.decode(final.rpartition(b",p=")[2])


def _tamper(data: bytes) -> None:
    """Who knows the password is believed if nothing was changed on the way, and not if anything was."""
    plus = bool(data[0] & 32)
    binding = (b"\2" if data[0] & 16 else b"\1") * 32  # the one is of another session
    client = ScramClient("tim", "pencil" if not data[0] & 64 else "pen", "p=tls-server-end-point" if plus else "n",
                         binding if plus else b"")
    scram = sasl.Scram(_BINDINGS, plus=plus, plus_offered=plus, fake_salt_key=b"k", iterations=1, nonce=lambda: "n")
    scram.respond(client.first())
    final = bytearray(client.final(scram.found(_KEYS if not data[0] & 128 else None)))
    before = bytes(final)
    for at in range(1, len(data) - 1, 2):
        final[data[at] % len(final)] ^= data[at + 1]
    proof = scram.respond(bytes(final))
    assert isinstance(proof, sasl.ScramProof)
    honest = not data[0] & 192 and not (plus and data[0] & 16)
    assert honest or not proof.valid
    if bytes(final) == before:
        assert proof.valid == honest
    elif proof.valid:  # the last digit of base64 has bits that say nothing
        assert before[:-2] == bytes(final[:-2])
        assert _octets_of(before) == _octets_of(bytes(final))
    if proof.valid:
        assert client.is_satisfied(scram.last_words)


_SCRAM: Final = b"SCRAM-SHA-256$4096:c2FsdA==$" + b"A" * 43 + b"=:" + b"A" * 43 + b"="
USERS_SEEDS: Final = (
    b"# x\ntim:$2b$12$" + b"a" * 53 + b":" + _SCRAM + b"\n*secret:" + b"A" * 24 + b"\nbob::\n",
    b"ann:$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$" + b"A" * 43 + b":\r\n",
    b"a:$scrypt$ln=16,r=8,p=1$c2FsdA$" + b"A" * 43 + b"\n",
    b"x:plain\n", b"a\nb:\n a:\n", b"t@x.example:::\n", b"a::" + _SCRAM.replace(b"4096", b"999999999"),
)  # fmt: skip
USERS_WORDS: Final = (
    b":", b"\n", b"$2b$", b"$argon2id$", b"SCRAM-SHA-256$", b"*secret:", b"$", b"m=99999999", b"\x00", b"\r\n",
)  # fmt: skip


def run_users(data: bytes) -> None:
    """A file of users is read whole, or all that is wrong with it is told, without what is secret."""
    text = data.decode("utf-8", "replace")
    try:
        found = users.parse(text, "users")
    except users.UsersError as error:
        assert 0 < len(error.problems) <= 20
        assert str(error).replace("\n", "").isprintable()
        return
    assert len(found.secret) >= 16
    for name, entry in found.entries.items():
        assert name.isprintable()
        assert ":" not in name
        assert entry.kinds
        assert "$" not in repr(entry)
