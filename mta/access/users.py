"""The file of users: who may log in, and what their passwords are checked against.

One line per user, `NAME:HASH:SCRAM`. HASH is that of the password (`mta.access.passwords`), SCRAM the keys for
SCRAM-SHA-256 as RFC 5803 and PostgreSQL write them, `SCRAM-SHA-256$ITERATIONS:SALT$STORED:SERVER`. Either may be
empty; with both empty a user logs in by a client certificate alone. So a file of `htpasswd -B` is one. Empty lines and
those with `#` are comments. `*secret:BASE64` is what salts of users that do not exist are made of.

A file is read whole and believed whole or not at all. It is written beside and renamed, under a lock, so that two
commands at once lose nothing and nobody reads a half. What a user may do stands in the configuration, not here.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from mta.access import passwords
from mta.config.forms import parse_user_name
from mta.config.problems import Problem, printable
from mta.smtp.sasl import ScramKeys, prepare, scram_keys

SIZE_LIMIT: Final = 64_000_000
_SECRET: Final = "*secret"
_SALT_SIZE: Final = 16
_MOST_ITERATIONS: Final = 10_000_000

_SCRAM = re.compile(r"SCRAM-SHA-256\$([1-9][0-9]{0,8}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")

_HEAD: Final = "# Users of the MTA, one per line. `mta user` writes it; docs/security.md explains it.\n"


class UsersError(Exception):
    """The file cannot be used. `problems` says all that is wrong with it, none of it secret."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Entry:
    """One user. `hash` is empty and `keys` None where there is none."""

    hash: str = field(default="", repr=False)
    keys: ScramKeys | None = field(default=None, repr=False)

    @property
    def kinds(self) -> str:
        """How the user may log in, for people."""
        kind = self.hash.split("$")[1] if self.hash else ""
        kind = "bcrypt" if kind.startswith("2") else kind
        return ", ".join(filter(None, (kind, "scram" if self.keys else ""))) or "certificate only"


@dataclass(frozen=True, slots=True)
class Users:
    """What one state of the file says."""

    entries: dict[str, Entry] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)
    hashes: tuple[str, ...] = field(default=(), repr=False)  # of all who have one
    scram_for_all: bool = False  # there are keys of SCRAM, and nobody has a hash alone
    scram_forms: tuple[tuple[int, int], ...] = ()  # iterations and octets of salt, of all who have keys

    def stand_in(self, name: str) -> str:
        """The hash of some user, always the same one for a name: to be computed for who has none, so that it takes as
        long as it does for others, whatever kinds of hashes there are. Empty when nobody has one."""
        if not self.hashes:
            return ""
        return self.hashes[self._number(name) % len(self.hashes)]

    def stand_in_keys(self, name: str) -> ScramKeys | None:
        """Keys of SCRAM for who has none, which no password fits: they look like those of some user, and show the same
        salt whenever this name is tried. None when nobody has keys."""
        if not self.scram_forms:
            return None
        iterations, size = self.scram_forms[self._number(name) % len(self.scram_forms)]
        salt = hmac.digest(self.secret, b"salt\0" + name.encode(), "sha512")[:size]
        return ScramKeys(salt, iterations, secrets.token_bytes(32), secrets.token_bytes(32))

    def _number(self, name: str) -> int:
        return int.from_bytes(hmac.digest(self.secret, name.encode(), "sha256")[:8], "big")


def entry_of(password: str) -> Entry:
    """What is stored of a new password. Raises ValueError for what cannot be one. 30 ms."""
    prepared = prepare(password)
    if not prepared:
        raise ValueError("a password is not empty")
    if len(prepared.encode()) > 1024:
        raise ValueError("a password has at most 1024 octets")
    return Entry(passwords.hash_password(prepared), scram_keys(prepared, secrets.token_bytes(_SALT_SIZE)))


def parse(text: str, name: str) -> Users:
    """The users in `text`; `name` is what the file is called in messages. Raises UsersError."""
    problems: list[Problem] = []
    entries: dict[str, Entry] = {}
    secret = b""
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        user, _, rest = line.partition(":")
        try:
            if user == _SECRET:
                secret = _base64(rest)
                if len(secret) < 16:
                    raise ValueError("the secret has at least 16 octets")
                continue
            if parse_user_name(user) != user:
                raise ValueError("a space before or behind the name")
            if user in entries:
                raise ValueError(f"{user} is in the file already")
            entries[user] = _entry(rest)
        except ValueError as error:
            problems.append(Problem(name, number, 1, printable(str(error), 200)))
            if len(problems) >= 20:
                break
    if problems:
        raise UsersError(problems)
    # Without a secret of its own the file as a whole is one: nobody who does not know the hashes knows it.
    hashes = tuple(entry.hash for entry in entries.values() if entry.hash)
    forms = tuple((entry.keys.iterations, len(entry.keys.salt)) for entry in entries.values() if entry.keys)
    scram_for_all = bool(forms) and all(entry.keys for entry in entries.values() if entry.hash)
    return Users(entries, secret or hashlib.sha256(text.encode()).digest(), hashes, scram_for_all, forms)


def _entry(text: str) -> Entry:
    stored, _, scram = text.partition(":")
    if stored:
        passwords.check_form(stored)
    return Entry(stored, _keys(scram) if scram else None)


def _keys(text: str) -> ScramKeys:
    match = _SCRAM.fullmatch(text)
    if match is None:
        raise ValueError("behind the hash: not SCRAM-SHA-256$ITERATIONS:SALT$STORED:SERVER")
    iterations, salt, stored, server = int(match[1]), *map(_base64, match.groups()[1:])
    if len(stored) != 32 or len(server) != 32 or not 8 <= len(salt) <= 64:
        raise ValueError("keys of SCRAM-SHA-256 have 32 octets, and a salt 8 to 64")
    if not 4096 <= iterations <= _MOST_ITERATIONS:
        raise ValueError("the iterations of SCRAM-SHA-256 are 4096 or more (RFC 7677 4)")
    return ScramKeys(salt, iterations, stored, server)


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None


def format_entry(name: str, entry: Entry) -> str:
    """The line of a user, without its end."""
    scram = ""
    if entry.keys is not None:
        keys = entry.keys
        salt, stored, server = (base64.b64encode(part).decode() for part in
                                (keys.salt, keys.stored_key, keys.server_key))
        scram = f":SCRAM-SHA-256${keys.iterations}:{salt}${stored}:{server}"
    return f"{name}:{entry.hash}{scram}"


def read(path: str) -> Users:
    """The users in a file. Raises UsersError."""
    return parse(_text(path), path)


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise UsersError([Problem(path, 0, 0, f"cannot be read: {error.strerror}")]) from None
    if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IWOTH | stat.S_IROTH):
        raise UsersError([Problem(path, 0, 0, "anybody may read or write it, expected mode 0640 or 0600")])
    if len(data) > SIZE_LIMIT:
        raise UsersError([Problem(path, 0, 0, f"larger than {SIZE_LIMIT} bytes")])
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsersError([Problem(path, 0, 0, "not UTF-8")]) from None


def change(path: str, edit: Callable[[dict[str, Entry]], None]) -> None:
    """Let `edit` change the entries, and write the file if it has. Lines that are not changed stay as they are.

    The file keeps its mode and owner; a new one is 0640, and has the group of its directory when root makes it.
    Raises UsersError, OSError, and what `edit` raises.
    """
    with _locked(path):
        try:
            status: os.stat_result | None = os.stat(path)
        except FileNotFoundError:
            status = None
        text = _text(path) if status is not None else ""
        before = parse(text, path).entries
        after = dict(before)
        edit(after)
        if after != before or status is None:
            _write(path, _edited(text, before, after), status)


def _edited(text: str, before: dict[str, Entry], after: dict[str, Entry]) -> str:
    lines = text.removesuffix("\n").split("\n") if text else [_HEAD.rstrip("\n")]
    if not any(line.startswith(f"{_SECRET}:") for line in lines):
        lines.append(f"{_SECRET}:{base64.b64encode(secrets.token_bytes(32)).decode()}")
    result = []
    for line in lines:
        name = line.partition(":")[0]
        if name in before and not line.startswith("#"):
            if name not in after:
                continue
            if after[name] != before[name]:
                line = format_entry(name, after[name])
        result.append(line)
    result += [format_entry(name, entry) for name, entry in after.items() if name not in before]
    return "\n".join(result) + "\n"


def _write(path: str, text: str, status: os.stat_result | None) -> None:
    new = f"{path}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            if status is not None:
                os.fchown(fd, status.st_uid, status.st_gid)
            elif os.geteuid() == 0:
                os.fchown(fd, -1, _group_of(os.path.dirname(os.path.abspath(path))))
            os.fchmod(fd, stat.S_IMODE(status.st_mode) if status is not None else 0o640)
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.rename(new, path)
    except BaseException:
        os.unlink(new)
        raise
    directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _group_of(directory: str) -> int:
    """The group for a new file: that of a directory of root's, as /etc/mta belongs to the group of the MTA, which has
    to read the file; else none but root."""
    status = os.stat(directory)
    return status.st_gid if status.st_uid == 0 else 0


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Only one command changes the file at a time. The lock is a file beside it: the file itself is replaced."""
    fd = os.open(f"{path}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
