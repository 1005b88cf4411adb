"""Hashes of passwords: which are checked, and which are refused beforehand."""

from __future__ import annotations

import base64
import hashlib

import argon2
import bcrypt
import pytest

from mta.access import passwords
from mta.access.passwords import HashError, check_form, verify

# With fixed salts: names of tests have them, and several processes have to agree on these.
CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("secret", salt=b"salt" * 4)
BCRYPT = bcrypt.hashpw(b"secret", b"$2b$04$" + b"." * 22).decode()


def scrypt_hash(password: str) -> str:
    """As passlib writes it: no padding, `.` for `+`."""
    salt = b"\xfb\xef\xbe" * 5
    raw = hashlib.scrypt(password.encode(), salt=salt, n=16, r=8, p=1, dklen=32)
    texts = [base64.b64encode(part).decode().rstrip("=").replace("+", ".") for part in (salt, raw)]
    return f"$scrypt$ln=4,r=8,p=1${texts[0]}${texts[1]}"


@pytest.mark.parametrize("stored", [
    CHEAP, BCRYPT, BCRYPT.replace("$2b$", "$2y$"), scrypt_hash("secret"),
])
def test_the_right_password_and_no_other(stored: str) -> None:
    """argon2, bcrypt and scrypt say yes to the one password they were made of."""
    check_form(stored)
    assert verify(stored, "secret") is True
    for wrong in ("", "Secret", "secret ", "secret\0", "s" * 2000):
        assert verify(stored, wrong) is False


def test_new_hashes() -> None:
    """A new hash has argon2id's form, another salt each time, and is right; that of nobody is checkable and wrong."""
    stored = passwords.hash_password("påss")
    check_form(stored)
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert stored != passwords.hash_password("påss")
    assert verify(stored, "påss")
    check_form(passwords.DUMMY)
    assert stored.partition("p=1$")[0] == passwords.DUMMY.partition("p=1$")[0]  # takes as long
    assert verify(passwords.DUMMY, "påss") is False


@pytest.mark.parametrize("stored", [
    "secret", "$1$abc$def", "$5$rounds=5000$x$y", "{SSHA}xyz", "$argon2id$v=19$m=64,t=1$a$b", CHEAP + "\n", " " + CHEAP,
    "$argon2id$v=19$m=99999999,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAA", "$argon2id$v=19$m=64,t=999999,p=1$AAAAAAAA$AAAAAAA",
    "$argon2id$v=19$m=64,t=0,p=1$AAAAAAAA$AAAAAAA", "$2b$31$" + "a" * 53, "$2b$04$short",
    "$scrypt$ln=30,r=8,p=1$AAAA$AAAA", "$scrypt$ln=14,r=9999,p=1$AAAA$AAAA", "$scrypt$ln=99,r=1,p=1$AAAA$AAAA",
    "$scrypt$ln=4,r=8,p=1$A$AAAA",
])
def test_what_is_no_hash_or_costs_too_much(stored: str) -> None:
    """Such a line is an error of the file, whose text does not repeat the hash."""
    with pytest.raises(HashError) as error:
        check_form(stored)
    assert stored.strip() not in str(error.value)
