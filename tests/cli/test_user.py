"""`mta user` on a file, as an operator types it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from mta.access import passwords
from mta.access.users import read
from mta.cli import main
from mta.control import exits
from tests.inject.access_helpers import make_pki


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Where the file of users is to be."""
    return str(tmp_path / "users")


def test_add_change_list_remove(file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A user is added once, gets another password, is listed, and goes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("first\nsecond\n"))
    assert main(["user", "add", "acme", "--stdin", "--file", file]) == exits.OK
    first = read(file).entries["acme"].hash
    assert passwords.verify(first, "first")
    assert main(["user", "add", "acme", "--stdin", "--file", file]) == exits.DATA
    assert "there is a user acme already" in capsys.readouterr().err
    assert main(["user", "passwd", "acme", "--stdin", "--file", file]) == exits.OK
    assert passwords.verify(read(file).entries["acme"].hash, "second")
    assert main(["user", "add", "host.example", "--no-password", "--file", file]) == exits.OK
    assert main(["user", "list", "--file", file, "--json"]) == exits.OK
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"user": "acme", "kinds": "argon2id, scram"}, {"user": "host.example", "kinds": "certificate only"}]
    assert main(["user", "remove", "acme", "--file", file]) == exits.OK
    assert main(["user", "remove", "acme", "--file", file]) == exits.DATA
    assert main(["user", "passwd", "acme", "--generate", "--file", file]) == exits.DATA


def test_a_password_is_made(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--generate` prints it once; only its hash is kept."""
    assert main(["user", "add", "acme", "--generate", "--file", file]) == exits.OK
    password = capsys.readouterr().out.strip()
    assert len(password) >= 24
    assert password not in Path(file).read_text()
    assert passwords.verify(read(file).entries["acme"].hash, password)


def test_the_configured_file(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is the one that the configuration names; without one it is said which option is missing."""
    config = tmp_path / "mta.yaml"
    config.write_text(f"hostname: mta.example.net\naccess: {{users_file: {file}}}\n")
    assert main(["user", "add", "acme", "--generate", "-c", str(config)]) == exits.OK
    assert main(["check", "-c", str(config)]) == exits.OK
    assert f"1 users in {file}" in capsys.readouterr().out
    config.write_text("hostname: mta.example.net\n")
    assert main(["user", "list", "-c", str(config)]) == exits.CONFIG
    assert "set access.users_file" in capsys.readouterr().err


def test_check_looks_into_the_files(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would keep the MTA from starting is a problem; a file that is not here, as on another machine, a warning."""
    pki = make_pki(tmp_path)
    certificate, other = pki.make("mta.example.net"), pki.make("other.example.net")
    config = tmp_path / "mta.yaml"

    def check(key: str, quiet: bool = False) -> tuple[int, str]:
        config.write_text(f"hostname: mta.example.net\naccess: {{users_file: {file}}}\n"
                          f"certificates: [{{certificate: {certificate}, key: {key}}}]\n"
                          "listeners: [{smtp: '127.0.0.1:0', tls: required, auth: required, "
                          f"client_ca: {pki.ca_file}}}]\n")
        code = main(["check", "-c", str(config), *(["-q"] if quiet else [])])
        return code, capsys.readouterr().out

    code, text = check(f"{tmp_path}/nothing.key")
    assert code == exits.OK
    assert f"warning: {file}: cannot be read: No such file" in text
    assert f"warning: {tmp_path}/nothing.key is not here, or you may not read it" in text
    Path(file).write_text("acme:secret\n")
    Path(file).chmod(0o600)
    assert check(other, quiet=True) == (exits.CONFIG, (
        f"{file}:1:1: not a hash of argon2, bcrypt or scrypt\n"
        f"{other}: the key does not belong to the certificate\n"))
    Path(file).write_text("acme:\n")
    assert check(certificate, quiet=True) == (exits.OK, "")


@pytest.mark.parametrize("arguments", [["add", "a b", "--generate"], ["add", "a:b", "--generate"], ["add", "*secret"]])
def test_names(file: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A name that the file could not hold is a mistake in the command, and nothing is written."""
    assert main(["user", *arguments, "--file", file]) == exits.USAGE
    assert "a user has 1 to 128 visible ASCII characters" in capsys.readouterr().err
    assert not Path(file).exists()
