"""The SASL mechanisms by themselves: vectors of the RFCs, and everything that a response may have wrong."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.smtp.sasl import (
    NAME_LIMIT,
    Login,
    MalformedResponseError,
    PasswordAttempt,
    Plain,
    Scram,
    ScramAttempt,
    ScramKeys,
    ScramProof,
    decode,
    encode,
    prepare,
    scram_keys,
)
from tests.smtp.scram import ScramClient

SALT = decode(b"W22ZaJ0SNY7soEsUEjb6gQ==")
KEYS = scram_keys("pencil", SALT, 4096)
BINDINGS = {"tls-server-end-point": b"\x01" * 32, "tls-exporter": b"\x02" * 32}


def scram(plus: bool = False, plus_offered: bool = False, nonce: str = "server") -> Scram:
    """An exchange."""
    return Scram(BINDINGS, plus=plus, plus_offered=plus_offered, fake_salt_key=b"secret", iterations=4096,
                 nonce=lambda: nonce)


# -- PLAIN and LOGIN ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "attempt"),
    [
        (b"\0tim\0tanstaaftanstaaf", PasswordAttempt("tim", "tanstaaftanstaaf")),  # RFC 4616 4
        (b"Ursel\0Kurt\0xipj3plmq", PasswordAttempt("Kurt", "xipj3plmq", "Ursel")),
        (b"tim\0tim\0x", PasswordAttempt("tim", "x")),
        ("\0jürgen\0größe".encode(), PasswordAttempt("jürgen", "größe")),
        (b"\0a@b.example\0x", PasswordAttempt("a@b.example", "x")),
        ("\0I\u00adX\0\u00aa".encode(), PasswordAttempt("IX", "a")),  # RFC 4013 3
        ("\0a\0\U0001f600".encode(), PasswordAttempt("a", "\U0001f600")),  # younger than Unicode 3.2
    ],
)
def test_plain(response: bytes, attempt: PasswordAttempt) -> None:
    """Whom to act for, user and password (RFC 4616 2), prepared."""
    assert Plain().respond(response) == attempt


@pytest.mark.parametrize(
    "response",
    [b"", b"\0", b"\0\0", b"\0a\0", b"\0\0x", b"a", b"a\0b", b"\0a\0b\0c", b"\0a\0\xff", b"\0a\0\x07",
     b"\0" + b"a" * (NAME_LIMIT + 1) + b"\0x", b"\0a\0" + b"x" * (NAME_LIMIT + 1), "\0\u00ad\0x".encode()],
)  # fmt: skip
def test_malformed_plain(response: bytes) -> None:
    """Anything else is refused, and what is said of it holds nothing of it."""
    with pytest.raises(MalformedResponseError) as error:
        Plain().respond(response)
    assert str(error.value).isascii()
    assert len(str(error.value)) < 60


def test_login() -> None:
    """User, then password."""
    mechanism = Login()
    assert mechanism.first_challenge == b"Username:"
    assert mechanism.respond(b"tim") == b"Password:"
    assert mechanism.respond(b"secret") == PasswordAttempt("tim", "secret")
    with pytest.raises(MalformedResponseError):
        Login().respond(b"")


def test_secrets_are_not_shown() -> None:
    """No `repr` has a password or a key in it."""
    shown = repr([PasswordAttempt("tim", "hunter2"), KEYS, ScramProof("tim", "", True)])
    assert "tim" in shown
    assert "hunter2" not in shown
    assert repr(KEYS.stored_key) not in shown
    assert repr(KEYS.salt) not in shown


# -- names and base64 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_text", "prepared"),
    [  # RFC 4013 3
        ("I\u00adX", "IX"), ("user", "user"), ("USER", "USER"), ("\u00aa", "a"), ("\u2168", "IX"), ("a\u00a0b", "a b"),
        ("\u0627\u0628", "\u0627\u0628"),
    ],
)  # fmt: skip
def test_prepare(given_text: str, prepared: str) -> None:
    """SASLprep maps what looks alike to one form."""
    assert prepare(given_text) == prepared


@pytest.mark.parametrize("text", ["\u0007", "a\x7f", "\u0627\u0031", "\ue000", "a\u202eb", "\ud800", "\u0627a\u0627"])
def test_prepare_refuses(text: str) -> None:
    """Control characters, private ones, and those of two directions (RFC 4013 2.3 and 2.4)."""
    with pytest.raises(MalformedResponseError):
        prepare(text)


@pytest.mark.parametrize(
    "text", [b"=", b"A", b"AA", b"AAA", b"AA=A", b"AAAA=", b"AAAA====", b"A A A A", b"A-_A", b"\xff" * 4, b"AAAA\r",
             b"AA==AAAA", b"*", b"AAAAA"],
)  # fmt: skip
def test_base64_that_is_none(text: bytes) -> None:
    """Every length but a multiple of four, and every other alphabet, is refused (CVE-2018-6789)."""
    with pytest.raises(MalformedResponseError):
        decode(text)


@given(st.binary(max_size=200))
def test_base64(data: bytes) -> None:
    """What is encoded is decoded."""
    assert decode(encode(data)) == data


# -- SCRAM --------------------------------------------------------------------------------------------------------


def test_scram_vector() -> None:
    """The exchange of RFC 7677 3, octet by octet."""
    mechanism = scram(nonce="%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    assert mechanism.respond(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO") == ScramAttempt("user")
    challenge = mechanism.found(KEYS)
    assert challenge == (
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    final = (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert mechanism.respond(final) == ScramProof("user", "", valid=True)
    assert mechanism.last_words == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.mark.parametrize("flag", ["n", "y", "p=tls-server-end-point", "p=tls-exporter"])
@pytest.mark.parametrize("password", ["pencil", "pencil ", ""])
def test_scram(flag: str, password: str) -> None:
    """The right password proves itself, with channel binding and without, and both sides learn it; another does not."""
    client = ScramClient("user", password, flag, BINDINGS.get(flag[2:], b""))
    mechanism = scram(plus=flag.startswith("p="))
    assert mechanism.respond(client.first()) == ScramAttempt("user")
    proof = mechanism.respond(client.final(mechanism.found(KEYS)))
    assert proof == ScramProof("user", "", valid=password == "pencil")
    assert client.is_satisfied(mechanism.last_words) == (password == "pencil")


def test_scram_names() -> None:
    """Commas and equals signs have a spelling of their own, and another user may be named to act for."""
    mechanism = scram()
    assert mechanism.respond(b"n,a=b=2Cc,n=a=3Db,r=x") == ScramAttempt("a=b")
    challenge = mechanism.found(None)
    final = b"c=" + encode(b"n,a=b=2Cc,") + b",r=xserver,p=" + encode(b"x" * 32)
    assert challenge.startswith(b"r=xserver,")
    assert mechanism.respond(final) == ScramProof("a=b", "b,c", valid=False)


@pytest.mark.parametrize(
    ("first", "plus", "plus_offered"),
    [
        (b"", False, False), (b"n,,", False, False), (b"n,,n=user", False, False), (b"n,,n=,r=x", False, False),
        (b"n,,n=user,r=", False, False), (b"n,n=user,r=x", False, False), (b"z,,n=user,r=x", False, False),
        (b"n,,m=1,n=user,r=x", False, False),  # an extension that must not be overlooked
        (b"n,,n=us=er,r=x", False, False), (b"n,,n=us=2cer,r=x", False, False), (b"n,,n=us\0er,r=x", False, False),
        (b"n,,n=user,r=x\n", False, False), (b"n,,n=\xff,r=x", False, False), (b"n,,n=\x07,r=x", False, False),
        (b"n,user,n=user,r=x", False, False),
        (b"p=tls-server-end-point,,n=user,r=x", False, False),  # binding without -PLUS
        (b"n,,n=user,r=x", True, True), (b"y,,n=user,r=x", True, True),  # -PLUS without binding
        (b"p=tls-unique,,n=user,r=x", True, True),  # one that we do not have
        (b"y,,n=user,r=x", False, True),  # somebody took our offer of -PLUS away (RFC 5802 6)
    ],
)  # fmt: skip
def test_malformed_first_message(first: bytes, plus: bool, plus_offered: bool) -> None:
    """What is no first message, or lets channel binding be talked away, is refused."""
    with pytest.raises(MalformedResponseError):
        scram(plus, plus_offered).respond(first)


@pytest.mark.parametrize(
    "change",
    [lambda f: f.replace(b"c=biws", b"c=eSws"), lambda f: f.replace(b"c=biws", b"c=" + encode(b"n,a=root,")),
     lambda f: f.replace(b"r=x", b"r=y"), lambda f: f.replace(b"server", b"serve"), lambda f: f[:-8] + b"AAAAAA==",
     lambda f: f.partition(b",p=")[0] + b",p=" + encode(b"x" * 31), lambda f: f.replace(b",p=", b",x=1,p="),
     lambda f: f.partition(b",p=")[0] + b",p=" + encode(b"\0" * 64)],
)  # fmt: skip
def test_changed_final_message(change: object) -> None:
    """A proof holds for its very exchange: another nonce, header, binding or text, and it is none."""
    client = ScramClient("user", "pencil", nonce="x")
    mechanism = scram()
    mechanism.respond(client.first())
    final = client.final(mechanism.found(KEYS))
    changed = change(final)
    assert changed != final
    assert mechanism.respond(changed) == ScramProof("user", "", valid=False)
    assert mechanism.last_words == b""


@pytest.mark.parametrize(
    "final", [b"", b"c=biws", b"c=biws,r=xserver", b"c=biws,r=xserver,p=", b"r=xserver,c=biws,p=AAAA",
              b"c=b,r=xserver,p=AAAA", b"c=biws,r=xserver,p=A", b"c=biws,r=x\0,p=AAAA"],
)  # fmt: skip
def test_malformed_final_message(final: bytes) -> None:
    """What is no final message is refused."""
    mechanism = scram()
    mechanism.respond(b"n,,n=user,r=x")
    mechanism.found(KEYS)
    with pytest.raises(MalformedResponseError):
        mechanism.respond(final)


def test_unknown_users_look_like_others() -> None:
    """They are shown a salt, always the same, another for another name, and fail at the end."""

    def salt(user: bytes) -> bytes:
        mechanism = scram()
        mechanism.respond(b"n,,n=%b,r=x" % user)
        challenge = mechanism.found(None)
        assert mechanism.respond(b"c=biws,r=xserver,p=" + encode(b"x" * 32)) == ScramProof(user.decode(), "", False)
        return challenge

    assert salt(b"nobody") == salt(b"nobody")
    assert salt(b"nobody") != salt(b"somebody")
    assert len(salt(b"nobody")) == len(b"r=xserver,s=,i=4096") + len(encode(SALT))


def test_keys() -> None:
    """They are those of RFC 5802 3, and of the prepared password."""
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", SALT, 4096)
    assert ScramKeys(SALT, 4096, hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest(),
                             hmac.digest(salted, b"Server Key", "sha256")) == KEYS
    assert scram_keys("\u2168", SALT, 10) == scram_keys("IX", SALT, 10)


@given(st.binary(max_size=100), st.booleans(), st.booleans())
def test_any_first_message(response: bytes, plus: bool, plus_offered: bool) -> None:
    """Whatever comes is an attempt or malformed."""
    for mechanism in (scram(plus, plus_offered), Plain(), Login()):
        try:
            mechanism.respond(response)
        except MalformedResponseError:
            pass
