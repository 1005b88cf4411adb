"""Hashes of passwords: argon2id for new ones, and those that people bring along: bcrypt and scrypt.

Forms: `$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH` (argon2-cffi, PHC string), `$2b$12$...` (bcrypt, also `$2y$` of
`htpasswd -B`), `$scrypt$ln=14,r=8,p=1$SALT$HASH` (PHC string, as passlib writes it). What a hash may cost is bounded:
a line in a file must not take all memory, or a minute, of whoever checks it.

All of it is slow by intent and lets go of the GIL: for threads.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # both are imported where they are used: who has no users does without them
    import argon2

MEMORY_LIMIT: Final = 256 * 1024 * 1024
"""Octets that computing one hash may take."""
_ARGON2_PASSES: Final = 20
_BCRYPT_ROUNDS: Final = 16  # a power of two: seconds
_BCRYPT_LENGTH: Final = 72  # octets that bcrypt looks at

_BASE64: Final = "[A-Za-z0-9+/.]+"
_ARGON2: Final = re.compile(
    rf"\$argon2(id|i|d)\$v=19\$m=([0-9]{{1,9}}),t=([0-9]{{1,6}}),p=([0-9]{{1,4}})\${_BASE64}\${_BASE64}")
_BCRYPT: Final = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
_SCRYPT: Final = re.compile(
    rf"\$scrypt\$ln=([0-9]{{1,2}}),r=([0-9]{{1,4}}),p=([0-9]{{1,4}})\$({_BASE64})\$({_BASE64})")


class HashError(ValueError):
    """Not a hash that is known, or one that would cost too much; the text does not hold the hash."""


@functools.cache
def _hasher() -> argon2.PasswordHasher:
    from argon2 import PasswordHasher

    # OWASP's lesser memory: many may be checked at once, on a machine that has something else to do.
    return PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


def load() -> None:
    """Import what checks need, before a thread does: what a module does when it is imported is the hub's business."""
    import bcrypt  # noqa: F401

    _hasher()


def hash_password(password: str) -> str:
    """A new hash. 20 ms."""
    return _hasher().hash(password)


DUMMY: Final = "$argon2id$v=19$m=19456,t=2,p=1$" + "A" * 22 + "$" + "A" * 43
"""A hash of no password that anybody knows: checked for users who do not exist, so that they take as long."""


def check_form(stored: str) -> None:
    """Whether a hash can be checked. Raises HashError."""
    if match := _ARGON2.fullmatch(stored):
        memory, passes, lanes = int(match[2]) * 1024, int(match[3]), int(match[4])
        if memory > MEMORY_LIMIT or passes > _ARGON2_PASSES or not 0 < lanes <= 16 or not passes:
            raise HashError(f"an argon2 hash that costs too much, expected at most m={MEMORY_LIMIT // 1024},"
                            f"t={_ARGON2_PASSES},p=16")
    elif match := _BCRYPT.fullmatch(stored):
        if not 4 <= int(match[1]) <= _BCRYPT_ROUNDS:
            raise HashError(f"a bcrypt hash that costs too much, expected a cost of at most {_BCRYPT_ROUNDS}")
    elif match := _SCRYPT.fullmatch(stored):
        rounds, size, lanes = 1 << min(int(match[1]), 40), int(match[2]), int(match[3])
        if 128 * rounds * size > MEMORY_LIMIT or not 0 < lanes <= 16 or rounds < 2 or not size:
            raise HashError(f"a scrypt hash that costs too much, expected at most {MEMORY_LIMIT} bytes and p=16")
        try:
            _unpadded(match[4]), _unpadded(match[5])
        except ValueError:
            raise HashError("a scrypt hash that is not whole") from None
    else:
        raise HashError("not a hash of argon2, bcrypt or scrypt")


def verify(stored: str, password: str) -> bool:
    """Whether `password` is the one that the hash `stored`, whose form was checked, was made of. For a thread."""
    if "\0" in password:
        return False  # to HMAC, and so to scrypt, one at the end is none; SASLprep forbids them
    if stored.startswith("$argon2"):
        from argon2.exceptions import VerificationError

        try:
            return _hasher().verify(stored, password)
        except VerificationError:
            return False
    if stored.startswith("$2"):
        import bcrypt

        # bcrypt itself looks at no more; newer versions of the library raise instead.
        return bcrypt.checkpw(password.encode()[:_BCRYPT_LENGTH], stored.encode())
    match = _SCRYPT.fullmatch(stored)
    assert match is not None, "check_form was not asked"
    expected = _unpadded(match[5])
    found = hashlib.scrypt(password.encode(), salt=_unpadded(match[4]), n=1 << int(match[1]), r=int(match[2]),
                           p=int(match[3]), maxmem=MEMORY_LIMIT + 1_000_000, dklen=len(expected))
    return hmac.compare_digest(found, expected)


def _unpadded(text: str) -> bytes:
    """Base64 without its padding; passlib writes `.` for `+`. Raises ValueError."""
    try:
        return base64.b64decode(text.replace(".", "+") + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
