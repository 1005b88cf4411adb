"""Who the MTA runs as."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.control import exits, privileges
from mta.control.exits import StartError
from tests.control.helpers import Fixture

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")


def _nobody_can_run_python() -> bool:
    try:
        return not subprocess.run([sys.executable, "-c", "import mta.control.spool"], user="nobody", check=False,
                                  cwd="/").returncode
    except (OSError, subprocess.SubprocessError):
        return False


needs_python_for_all = pytest.mark.skipif(
    os.geteuid() != 0 or not _nobody_can_run_python(), reason="other users cannot run this Python"
)
CHILDREN = {"worker-0", "worker-1", "control"}


@pytest.fixture
def open_mta() -> Iterator[Fixture]:
    """As `mta`, in a directory that other users can get into."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o711)
    fixture = Fixture(directory)
    (directory / "reports").chmod(0o777)
    yield fixture
    fixture.close()
    shutil.rmtree(directory)


def test_an_unknown_user_is_named() -> None:
    """Exit code 67."""
    with pytest.raises(StartError, match="'no-such-user' does not exist") as caught:
        privileges.identity("no-such-user")
    assert caught.value.exit_code == exits.NO_USER


def test_the_own_user_needs_no_change() -> None:
    """`user` may name who we are, root or not."""
    assert privileges.identity(pwd.getpwuid(os.geteuid()).pw_name) is None


@pytest.mark.ordinary_user
def test_an_ordinary_user_cannot_become_another() -> None:
    """It is said, and who we are."""
    with pytest.raises(StartError, match="cannot become user 'root'"):
        privileges.identity("root")
    assert privileges.identity(None) is None


@needs_root
def test_a_user_who_cannot_run_python_is_said(open_mta: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """No child could be started; that is said before one is tried."""
    private = open_mta.directory / "private"
    private.mkdir(mode=0o700)
    python = private / "python"
    python.symlink_to(sys.executable)
    # By its new name it does not know where its packages are.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(sys, "executable", str(python))
    open_mta.write_config(user="nobody")
    running = open_mta.start()
    assert running.exit_code() == exits.NO_PERMISSION
    assert f"user 'nobody' may not execute {python}" in running.stderr()


@needs_root
def test_root_without_user_is_refused() -> None:
    """Root only on purpose."""
    with pytest.raises(StartError, match="`user` is not set") as caught:
        privileges.identity(None)
    assert caught.value.exit_code == exits.CONFIG


@needs_python_for_all
def test_root_becomes_the_user_for_good(open_mta: Fixture) -> None:
    """After binding: supervisor and children have its ids alone, the directories and the lock belong to it."""
    nobody = pwd.getpwnam("nobody")
    open_mta.write_config(user="nobody")
    open_mta.config.chmod(0o644)
    running = open_mta.start()
    running.ready()
    facts = open_mta.reports("started", CHILDREN)
    groups = os.getgrouplist("nobody", nobody.pw_gid)
    assert [fact["ids"] for fact in facts.values()] == [[nobody.pw_uid, nobody.pw_gid, groups]] * 3
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    ids = {line.split()[0]: set(line.split()[1:]) for line in status.splitlines() if line.startswith(("Uid:", "Gid:"))}
    assert ids == {"Uid:": {str(nobody.pw_uid)}, "Gid:": {str(nobody.pw_gid)}}
    for path in (open_mta.spool, open_mta.spool / "lock", open_mta.spool / "shards", open_mta.directory / "run"):
        assert path.stat().st_uid == nobody.pw_uid
    running.signal(signal.SIGTERM)
    assert running.exit_code() == exits.OK


@needs_python_for_all
def test_a_configuration_that_the_user_cannot_read_is_said(open_mta: Fixture) -> None:
    """It starts, but no reload would succeed: better said now."""
    open_mta.write_config(user="nobody")
    open_mta.config.chmod(0o600)
    running = open_mta.start()
    running.line("no reload will succeed")
    running.ready()


@needs_python_for_all
def test_a_spool_of_another_user_is_refused(open_mta: Fixture) -> None:
    """An existing directory is not given away; that it cannot be written is said."""
    open_mta.write_config(user="nobody")
    open_mta.spool.mkdir(mode=0o755)
    running = open_mta.start()
    assert running.exit_code() == exits.CANNOT_CREATE
    assert f"spool {open_mta.spool} is not writable" in running.stderr()
    assert open_mta.spool.stat().st_uid == 0


@needs_python_for_all
def test_there_is_no_way_back() -> None:
    """After `drop` neither user nor group nor supplementary groups of root can be had again."""
    code = """
import os
from mta.control.privileges import drop, identity
drop(identity("nobody"))
for attempt in (lambda: os.setuid(0), lambda: os.setresuid(-1, 0, -1), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try: attempt()
    except PermissionError: continue
    raise SystemExit("became root again")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
