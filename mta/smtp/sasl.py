"""The server's side of SASL: PLAIN (RFC 4616), LOGIN, SCRAM-SHA-256 and its -PLUS (RFC 5802, 7677), as pure exchanges.

A mechanism takes the client's responses, decoded, and gives the next challenge or an attempt, which somebody else
decides: nothing here knows a user. Every exchange begins and ends in an object of its own, so nothing of an attempt
outlives it (CVE-2011-1720). Secrets are in no `repr`.

User names and passwords go through SASLprep (RFC 4013), so that it does not matter on which keyboard they were typed.
Characters that Unicode 3.2 does not know are let through: people have them in passwords.

Of a user that does not exist SCRAM shows a salt all the same, always the same one for the same name, and fails at the
end: who is a user cannot be found out by asking.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeAlias

MECHANISMS: Final = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN")
NAME_LIMIT: Final = 1024  # octets of a user name or a password
SCRAM_ITERATIONS: Final = 10_000


class MalformedResponseError(ValueError):
    """Not what the mechanism allows; the text says why and holds nothing of the response."""


@dataclass(frozen=True, slots=True)
class PasswordAttempt:
    """A user says who it is and what its password is."""

    user: str
    password: str = field(repr=False)
    authorize_as: str = ""  # whom it wants to act for, if that is another one


@dataclass(frozen=True, slots=True)
class ScramAttempt:
    """A user begins with SCRAM: its keys are wanted."""

    user: str


@dataclass(frozen=True, slots=True)
class ScramProof:
    """A user has proved by SCRAM that it knows its password, or has not."""

    user: str
    authorize_as: str
    valid: bool


Attempt: TypeAlias = PasswordAttempt | ScramAttempt | ScramProof


class ScramKeys(NamedTuple):
    """What is stored of a user for SCRAM-SHA-256. Nobody can log in with it, but a password can be guessed by it."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return f"<ScramKeys: {self.iterations} iterations>"


def scram_keys(password: str, salt: bytes, iterations: int = SCRAM_ITERATIONS) -> ScramKeys:
    """The keys of a password (RFC 5802 3). Slow by intent: milliseconds, without the GIL.

    Raises MalformedResponseError.
    """
    salted = hashlib.pbkdf2_hmac("sha256", prepare(password).encode(), salt, iterations)
    client_key = _hmac(salted, b"Client Key")
    return ScramKeys(salt, iterations, hashlib.sha256(client_key).digest(), _hmac(salted, b"Server Key"))


def prepare(text: str) -> str:
    """A user name or password in the form in which it is compared: SASLprep. Raises MalformedResponseError."""
    if text.isascii() and text.isprintable():
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c for c in text if not stringprep.in_table_b1(c)
    )
    normal = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if any(forbids(c) for c in normal for forbids in _FORBIDDEN):
        raise MalformedResponseError("a character that is not allowed")
    right_to_left = [stringprep.in_table_d1(c) for c in normal]
    if any(right_to_left) and not (
        right_to_left[0] and right_to_left[-1] and not any(map(stringprep.in_table_d2, normal))
    ):
        raise MalformedResponseError("characters of both directions")
    return normal


_FORBIDDEN: Final[tuple[Callable[[str], bool], ...]] = (  # RFC 4013 2.3
    stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4,
    stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8,
    stringprep.in_table_c9,
)  # fmt: skip


class Mechanism(Protocol):
    """One exchange."""

    first_challenge: bytes
    """What asks for the first response, when that did not come with the command."""
    last_words: bytes
    """What the client is told once it was believed, and answers with an empty response; empty: nothing."""

    def respond(self, response: bytes) -> bytes | Attempt:
        """Take a response: the next challenge, or an attempt. Raises MalformedResponseError."""


class Plain:
    """One response: whom to act for, user, password."""

    first_challenge = b""
    last_words = b""

    def respond(self, response: bytes) -> bytes | Attempt:
        """The attempt."""
        parts = response.split(b"\0")
        if len(parts) != 3:
            raise MalformedResponseError("not three parts")
        user = _name(parts[1])
        authorize_as = _name(parts[0]) if parts[0] else ""
        return PasswordAttempt(user, _name(parts[2]), "" if authorize_as == user else authorize_as)


class Login:
    """Two responses: user, password. Described nowhere but in an expired draft, and much used."""

    first_challenge = b"Username:"
    last_words = b""

    def __init__(self) -> None:
        self._user = ""

    def respond(self, response: bytes) -> bytes | Attempt:
        """The question for the password, then the attempt."""
        if not self._user:
            self._user = _name(response)
            return b"Password:"
        return PasswordAttempt(self._user, _name(response))


# RFC 5802 7. What a client adds to the attributes is overlooked, but `m=`, which it must not be.
_FIRST = re.compile(
    rb"(?P<header>(?:(?P<flag>[ny])|p=(?P<binding>[A-Za-z0-9.-]+)),(?:a=(?P<authzid>[^,\0]+))?,)"
    rb"(?P<bare>n=(?P<user>[^,\0]+),r=(?P<nonce>[!-+\--~]+)(?:,[A-Za-z]=[^,\0]+)*)"
)
_FINAL = re.compile(
    rb"(?P<unproved>c=(?P<binding>[A-Za-z0-9/+=]+),r=(?P<nonce>[!-+\--~]+)(?:,[A-Za-z]=[^,\0]+)*?)"
    rb",p=(?P<proof>[A-Za-z0-9/+=]+)"
)


class Scram:
    """SCRAM-SHA-256, and -PLUS, which ties the login to the TLS session that it came in."""

    first_challenge = b""

    def __init__(
        self, bindings: Mapping[str, bytes], *, plus: bool, plus_offered: bool, fake_salt_key: bytes, iterations: int,
        nonce: Callable[[], str] = lambda: secrets.token_urlsafe(24),
    ) -> None:
        """`plus`: the client asked for -PLUS, with `bindings` to choose from; `plus_offered`: it could have."""
        self._bindings = bindings
        self._plus = plus
        self._plus_offered = plus_offered
        self._fake_salt_key = fake_salt_key
        self._iterations = iterations
        self._nonce = nonce
        self._user = self._authorize_as = ""
        self._bound = b""  # what the client must show: its GS2 header, and the binding data
        self._client_first = self._server_first = b""
        self._whole_nonce = b""
        self._keys: ScramKeys | None = None
        self.last_words = b""

    def respond(self, response: bytes) -> bytes | Attempt:
        """The attempt, then the proof."""
        return self._finish(response) if self._keys is not None else self._begin(response)

    def found(self, keys: ScramKeys | None) -> bytes:
        """The challenge for a user with these keys, or for one that does not exist."""
        if keys is None:
            salt = _hmac(self._fake_salt_key, self._user.encode())[:16]
            keys = ScramKeys(salt, self._iterations, secrets.token_bytes(32), secrets.token_bytes(32))
        self._keys = keys
        salt_text = binascii.b2a_base64(keys.salt, newline=False)
        self._server_first = b"r=%b,s=%b,i=%d" % (self._whole_nonce, salt_text, keys.iterations)
        return self._server_first

    def _begin(self, response: bytes) -> ScramAttempt:
        match = _FIRST.fullmatch(response)
        if match is None:
            raise MalformedResponseError("not a first message of SCRAM")
        binding = match["binding"]
        if (binding is not None) != self._plus:
            raise MalformedResponseError("channel binding does not fit the mechanism")
        if match["flag"] == b"y" and self._plus_offered:
            # The client did not see our offer of -PLUS: somebody between us took it away (RFC 5802 6).
            raise MalformedResponseError("the offer of channel binding did not arrive")
        self._bound = match["header"]
        if binding is not None:
            data = self._bindings.get(binding.decode())
            if data is None:
                raise MalformedResponseError("a channel binding that is not supported")
            self._bound += data
        self._client_first = match["bare"]
        self._whole_nonce = match["nonce"] + self._nonce().encode()
        self._user = _sasl_name(match["user"])
        authorize_as = _sasl_name(match["authzid"]) if match["authzid"] else ""
        self._authorize_as = "" if authorize_as == self._user else authorize_as
        return ScramAttempt(self._user)

    def _finish(self, response: bytes) -> ScramProof:
        match = _FINAL.fullmatch(response)
        assert self._keys is not None
        if match is None:
            raise MalformedResponseError("not a final message of SCRAM")
        bound, proof = decode(match["binding"]), decode(match["proof"])
        text = b",".join((self._client_first, self._server_first, match["unproved"]))
        signature = _hmac(self._keys.stored_key, text)
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=False))
        valid = (
            len(proof) == len(signature)
            and hmac.compare_digest(hashlib.sha256(client_key).digest(), self._keys.stored_key)
            and hmac.compare_digest(bound, self._bound)
            and hmac.compare_digest(match["nonce"], self._whole_nonce)
        )
        if valid:
            self.last_words = b"v=" + binascii.b2a_base64(_hmac(self._keys.server_key, text), newline=False)
        return ScramProof(self._user, self._authorize_as, valid)


def decode(text: bytes) -> bytes:
    """A response as it comes in a line. Raises MalformedResponseError."""
    if len(text) % 4 or text.endswith(b"==="):  # which Python lets pass
        raise MalformedResponseError("not base64")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise MalformedResponseError("not base64") from None


def encode(challenge: bytes) -> bytes:
    """A challenge as it goes in a line."""
    return binascii.b2a_base64(challenge, newline=False)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _sasl_name(raw: bytes) -> str:
    """A name in SCRAM's spelling, in which a comma is =2C and an equals sign =3D."""
    if re.search(rb"=(?!2C|3D)", raw):
        raise MalformedResponseError("a name that is not spelled right")
    return _name(raw.replace(b"=2C", b",").replace(b"=3D", b"="))


def _name(raw: bytes) -> str:
    """A user name or a password, prepared."""
    if len(raw) > NAME_LIMIT:
        raise MalformedResponseError(f"more than {NAME_LIMIT} octets")
    try:
        text = prepare(raw.decode())
    except UnicodeDecodeError:
        raise MalformedResponseError("not UTF-8") from None
    if not text:
        raise MalformedResponseError("a name or password is empty")
    return text
