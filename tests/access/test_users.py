"""The file of users."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mta.access import users
from mta.access.users import Entry, UsersError, change, entry_of, format_entry, parse, read
from mta.smtp.sasl import scram_keys

HASH = "$2b$04$" + "a" * 53
SCRAM = ("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
         ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=")


def test_lines() -> None:
    """A user has a hash, keys of SCRAM, both or none; comments and empty lines are none."""
    found = parse(f"# users\n\na:{HASH}\nb::{SCRAM}\r\nc:{HASH}:{SCRAM}\nd:\nbob@example.org:{HASH}\n", "f").entries
    assert {name: entry.kinds for name, entry in found.items()} == {
        "a": "bcrypt", "b": "scram", "c": "bcrypt, scram", "d": "certificate only", "bob@example.org": "bcrypt"}
    keys = found["c"].keys
    assert keys is not None
    assert keys == scram_keys("pencil", keys.salt, 4096)  # RFC 7677 3
    assert [format_entry(name, found[name]) for name in "abc"] == [f"a:{HASH}", f"b::{SCRAM}", f"c:{HASH}:{SCRAM}"]


@pytest.mark.parametrize(("line", "message"), [
    ("a:secret", "not a hash of argon2, bcrypt or scrypt"), (" a:", "a space before"), ("a b:", "a user has 1 to 128"),
    (f"a:{HASH}:x", "not SCRAM-SHA-256"), ("a::" + SCRAM.replace("4096", "1000"), "4096 or more"),
    ("a::" + SCRAM.replace("W22ZaJ0SNY7soEsUEjb6gQ==", "AAAA"), "a salt 8 to 64"), ("*secret:AAAA", "at least 16"),
    ("*secret:%", "not base64"), ("\x1b[2J:", "a user has 1 to 128"),
])
def test_what_is_wrong(line: str, message: str) -> None:
    """Every wrong line is told with its number, printable and without what is secret in it."""
    with pytest.raises(UsersError) as error:
        parse(f"x:{HASH}\n{line}\nx:\n", "f")
    first, second = map(str, error.value.problems)
    assert first.startswith("f:2:1: ")
    assert message in first
    assert first.isprintable()
    assert "secret" not in first or line.startswith("*")
    assert second == "f:3:1: x is in the file already"


def test_the_secret() -> None:
    """The salts of users that do not exist are the same in all processes, and nobody can know them beforehand."""
    assert parse(f"*secret:{'A' * 44}\n", "f").secret == b"\0" * 33
    one, other = (parse(f"a:{text}\n", "f").secret for text in (HASH, "$2b$04$" + "b" * 53))
    assert one != other
    assert len(one) == 32


def test_a_stand_in_is_of_the_file() -> None:
    """Of a name that is no user always the same hash, of those there are; so it takes as long, whatever their kinds."""
    other = "$2b$05$" + "b" * 53
    found = parse(f"*secret:{'A' * 44}\na:{HASH}\nb:{other}\nc::{SCRAM}\n", "f")
    stand_ins = {name: found.stand_in(name) for name in map(str, range(50))}
    assert set(stand_ins.values()) == {HASH, other}
    assert all(found.stand_in(name) == stored for name, stored in stand_ins.items())
    assert parse(f"c::{SCRAM}\n", "f").stand_in("nobody") == ""
    assert HASH not in repr(found)


@pytest.mark.parametrize(("lines", "offered"), [
    ("", False), (f"a:{HASH}\n", False), (f"a:{HASH}:{SCRAM}\n", True), (f"a:{HASH}:{SCRAM}\nb:{HASH}\n", False),
    (f"a::{SCRAM}\nb:\n", True),
])
def test_scram_is_for_all_or_for_nobody(lines: str, offered: bool) -> None:
    """Clients choose it first, so it must be possible for all who have a password. It is found out when the file is
    read, in a thread: not by the hub for each listener."""
    assert parse(lines, "f").scram_for_all is offered


def test_keys_of_nobody_look_like_those_of_somebody() -> None:
    """Iterations and the size of the salt are those of a user there is, or who has come with keys of their own would be
    told from who does not exist; the salt is the same each time, and another one for another name."""
    own = SCRAM.replace("$4096:", "$5000:")
    found = parse(f"*secret:{'A' * 44}\na::{SCRAM}\nb::{own}\nc:{HASH}\n", "f")
    keys = [found.stand_in_keys(name) for name in map(str, range(50))]
    a, b = found.entries["a"].keys, found.entries["b"].keys
    assert a is not None
    assert b is not None
    assert {(one.iterations, len(one.salt)) for one in keys if one} == {
        (a.iterations, len(a.salt)), (b.iterations, len(b.salt))}
    assert len({one.salt for one in keys if one}) == 50
    again = found.stand_in_keys("7")
    assert again is not None
    assert keys[7] is not None
    assert (again.salt, again.stored_key == keys[7].stored_key) == (keys[7].salt, False)
    assert parse(f"c:{HASH}\n", "f").stand_in_keys("nobody") is None


def test_changes_keep_the_rest(tmp_path: Path) -> None:
    """Writing changes one line; comments, order and other users stay. Mode and owner stay, a new file is 0640."""
    path = str(tmp_path / "users")
    change(path, lambda entries: entries.update(acme=Entry(HASH)))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    head, secret, line = Path(path).read_text().splitlines()
    assert (head[:1], secret[:8], line) == ("#", "*secret:", f"acme:{HASH}")
    with open(path, "a") as file:
        file.write(f"# ours\nbob:{HASH}\n")
    os.chmod(path, 0o600)
    change(path, lambda entries: entries.update(acme=entry_of("new")))
    change(path, lambda entries: entries.pop("bob"))
    lines = Path(path).read_text().splitlines()
    assert (lines[:2], lines[3:]) == ([head, secret], ["# ours"])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    entry = read(path).entries["acme"]
    assert entry.kinds == "argon2id, scram"
    assert entry.keys is not None
    salted = hashlib.pbkdf2_hmac("sha256", b"new", entry.keys.salt, entry.keys.iterations)
    assert entry.keys.server_key == hmac.digest(salted, b"Server Key", "sha256")
    assert "argon2" not in repr(entry)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to give files away")
def test_a_file_that_root_makes_is_for_the_group_of_its_directory(tmp_path: Path) -> None:
    """/etc/mta is root's and the MTA's group has to read what is in it; in a directory of another user it is root's."""
    for owner, group in ((0, 12345), (12345, 0)):
        place = tmp_path / str(owner)
        place.mkdir()
        os.chown(place, owner, 12345)
        change(str(place / "users"), lambda entries: entries.update(a=Entry()))
        status = (place / "users").stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, group, 0o640)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """Hashes that anybody may read can be guessed by anybody."""
    path = tmp_path / "users"
    path.write_text(f"a:{HASH}\n")
    path.chmod(0o644)
    with pytest.raises(UsersError, match="anybody may read or write it, expected mode 0640"):
        read(str(path))
    with pytest.raises(UsersError, match="cannot be read: No such file"):
        read(str(tmp_path / "none"))


def test_two_commands_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each change is made to what the one before has left."""
    path = str(tmp_path / "users")
    code = ("import sys; from mta.access.users import Entry, change\n"
            "for n in range(20): change(sys.argv[1], lambda entries: entries.update({f'{sys.argv[2]}{n}': Entry()}))")
    root = str(Path(__file__).parents[2])
    running = [subprocess.Popen([sys.executable, "-c", code, path, name], cwd=root) for name in "ab"]
    assert [process.wait(60) for process in running] == [0, 0]
    assert len(users.read(path).entries) == 40


@pytest.mark.parametrize("password", ["", "\0", "a" * 1025, "\u0007"])
def test_what_is_no_password(password: str) -> None:
    """What SASLprep forbids could never be sent."""
    with pytest.raises(ValueError, match=r"password|character"):
        entry_of(password)
