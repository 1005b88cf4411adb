"""Directories, locks, versions and shards of an instance."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mta.control import exits, spool
from mta.control.exits import StartError


def refusal(*arguments: object) -> str:
    """The text of the StartError that a call raises, with its code."""
    function, *rest = arguments
    with pytest.raises(StartError) as caught:
        function(*rest)  # a function of mta.control.spool
    return f"{caught.value.exit_code} {caught.value}"


def test_a_new_spool_gets_our_version(tmp_path: Path) -> None:
    """And is accepted with it from then on."""
    spool.check_version(str(tmp_path))
    assert (tmp_path / "version").read_text() == "1\n"
    spool.check_version(str(tmp_path))


def test_a_spool_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """One clear line that names both versions."""
    (tmp_path / "version").write_text("7\n")
    text = refusal(spool.check_version, str(tmp_path))
    assert text.startswith(f"{exits.DATA} ")
    assert "is of version 7, this MTA knows 1" in text


def test_a_directory_that_is_no_spool_is_refused(tmp_path: Path) -> None:
    """Shards without a version, or a version that is none, are not touched."""
    (tmp_path / "shards").mkdir()
    assert "no file `version`" in refusal(spool.check_version, str(tmp_path))
    (tmp_path / "version").write_text("\x1b[2J")
    text = refusal(spool.check_version, str(tmp_path))
    assert "is damaged" in text
    assert "\x1b" not in text


def test_directories_are_made_with_parents(tmp_path: Path) -> None:
    """The umask does not matter; an existing directory keeps its mode."""
    before = os.umask(0o077)
    try:
        spool.make_directory(str(tmp_path / "a" / "b"), "spool", None)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o750
    spool.make_directory(str(tmp_path / "run"), "runtime directory", None, spool.RUN_MODE)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o751
    (tmp_path / "a").chmod(0o700)
    spool.make_directory(str(tmp_path / "a"), "spool", None)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_what_cannot_be_a_directory_is_said(tmp_path: Path) -> None:
    """A file in the way, or a file system that takes none."""
    (tmp_path / "file").write_text("")
    assert "is not a directory" in refusal(spool.make_directory, str(tmp_path / "file"), "spool", None)
    text = refusal(spool.make_directory, str(tmp_path / "file" / "x"), "spool", None)
    assert text.startswith(f"{exits.CANNOT_CREATE} cannot make spool {tmp_path}/file/x: ")
    assert "cannot make spool /proc/x: " in refusal(spool.make_directory, "/proc/x", "spool", None)


@pytest.mark.ordinary_user
def test_a_spool_that_is_not_writable_is_said(tmp_path: Path) -> None:
    """As the user that we are."""
    tmp_path.chmod(0o500)
    assert "is not writable for uid" in refusal(spool.check_writable, str(tmp_path), "spool")


def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    """The pid is in the file, and whoever has the file open is found."""
    fd = spool.take_lock(str(tmp_path), "spool", None)
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    code = f"from mta.control.spool import take_lock; take_lock({str(tmp_path)!r}, 'spool', None)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"another instance is running on spool {tmp_path} (pid {os.getpid()})" in result.stderr
    os.close(fd)


def test_what_a_dead_instance_left_is_waited_for_and_named(tmp_path: Path) -> None:
    """The pid in the file is gone but somebody holds the lock: after the wait, the line names who."""
    with (tmp_path / "lock").open("w+") as lock, subprocess.Popen(["true"]) as gone:
        gone.wait()
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{gone.pid}\n")
        lock.flush()
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()]) as heir:
            lock.close()
            with pytest.raises(StartError, match=rf"gone \(pid {heir.pid}\)"):
                spool.take_lock(str(tmp_path), "spool", None, wait_s=0.1)
            assert heir.stdin is not None
            heir.stdin.close()
            heir.wait()
            os.close(spool.take_lock(str(tmp_path), "spool", None))


def test_a_lock_that_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    """Root writes into it, so neither a link nor a second name of something else will do."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    refusal(spool.take_lock, str(tmp_path), "spool", None)
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").hardlink_to(tmp_path / "precious")
    assert "not a plain file" in refusal(spool.take_lock, str(tmp_path), "spool", None)
    assert (tmp_path / "precious").read_text() == "precious"


def test_every_shard_has_one_owner(tmp_path: Path) -> None:
    """All that exist and one per worker, each exactly once; other entries are none."""
    for name in ("000", "007", "1023", "notes", "12.old"):
        (tmp_path / "shards" / name).mkdir(parents=True)
    assert spool.assign_shards(str(tmp_path), 3) == [[0, 1023 // 3 * 3], [1, 7], [2]]
    assert spool.assign_shards(str(tmp_path), 1) == [[0, 7, 1023]]
    (tmp_path / "shards" / "1024").mkdir()
    assert "is no shard" in refusal(spool.assign_shards, str(tmp_path), 1)


def test_the_runtime_directory_is_cleaned_of_ours_alone(tmp_path: Path) -> None:
    """Sockets, bells and the table of limits of an earlier instance go; the lock and strangers stay."""
    (tmp_path / "limits").mkdir()
    ours = ("limits/data.mdb", "control.sock", "worker-0.sock", "worker-11.nudge")
    for name in (*ours, "lock", "worker-0.txt", "x.sock"):
        (tmp_path / name).write_text("")
    spool.clean_run(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "worker-0.txt", "x.sock"]
