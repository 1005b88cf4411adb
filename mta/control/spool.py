"""The directories of an instance: made, locked against a second instance, checked for their version.

    SPOOL/lock            flock(2), held by supervisor and children; the supervisor's pid in it
    SPOOL/version         layout version; a spool of a newer version is refused
    SPOOL/shards/NNN/     the durable queues, each of one worker at a time
    SPOOL/learnt          what was learnt of receivers (mta.delivery.learnt)
    RUN/lock              as above, so that two instances never share control sockets and the table of limits
    RUN/control.sock, RUN/worker-N.sock, RUN/worker-N.nudge, RUN/limits/, RUN/sessions

The locks are open files that every child inherits: the kernel releases them when the last process of an instance is
gone, however it went. A supervisor that was killed leaves children that stop by themselves within seconds; a new
instance waits for that.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Final

from mta.control.exits import CANNOT_CREATE, DATA, TEMPORARY, StartError
from mta.control.line import ALARM_MARGIN_S, ORPHAN_GRACE_S
from mta.control.privileges import Identity
from mta.queue.ids import MAX_SHARDS
from mta.queue.shard import SPOOL_VERSION

LOCK_WAIT_S: Final = ORPHAN_GRACE_S + ALARM_MARGIN_S + 3  # children of a dead supervisor are gone by then
DIRECTORY_MODE: Final = 0o750  # the group of the MTA's user are its operators
RUN_MODE: Final = 0o751  # others may have a socket of a listener in it; each socket has a mode of its own
_LOCK_LOOK_S: Final = 0.05

_log = logging.getLogger(__name__)


def make_directory(path: str, what: str, owner: Identity | None, mode: int = DIRECTORY_MODE) -> None:
    """Make a directory that is missing, with its parents, and give it to `owner`. Raises StartError.

    An existing one is left as it is: giving away what an option names by mistake would do harm.
    """
    directory = Path(path)
    try:
        if not directory.exists():
            for parent in reversed(directory.parents):
                if not parent.exists():
                    parent.mkdir()
                    parent.chmod(0o755)  # whatever the umask
            directory.mkdir()
            directory.chmod(mode)
            if owner is not None:
                os.chown(directory, owner.uid, owner.gid)
    except OSError as error:
        raise StartError(CANNOT_CREATE, f"cannot make {what} {path}: {error.strerror}") from error
    if not directory.is_dir():
        raise StartError(CANNOT_CREATE, f"{what} {path} is not a directory")


def check_writable(path: str, what: str) -> None:
    """Raise StartError unless this process, as the user that it is now, may work in a directory."""
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StartError(
            CANNOT_CREATE, f"{what} {path} is not writable for uid {os.getuid()}: it has to belong to the MTA's user"
        )
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise StartError(CANNOT_CREATE, f"{what} {path} is on a file system that is mounted read-only")


def take_lock(directory: str, what: str, owner: Identity | None, wait_s: float = LOCK_WAIT_S) -> int:
    """Lock `directory` for this instance and return the descriptor that holds the lock. Raises StartError.

    At once when another instance runs; after `wait_s` when processes that a dead one left behind do not end.
    """
    path = str(Path(directory, "lock"))
    fd = _open_lock(path, what, owner)
    give_up = time.monotonic() + wait_s
    told = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            pid = _read_pid(fd)
            if _runs(pid):
                held_by = holders(path)
                if pid in held_by or not held_by:  # nobody: of another user, so the file is to be believed
                    os.close(fd)
                    raise StartError(
                        TEMPORARY, f"another instance is running on {what} {directory} (pid {pid})"
                    ) from None
            if time.monotonic() >= give_up:
                os.close(fd)
                pids = ", ".join(map(str, sorted(holders(path)))) or "unknown"
                raise StartError(
                    TEMPORARY,
                    f"{what} {directory} is still held by processes of an instance that is gone (pid {pids}); "
                    "if they do not end, kill them",
                ) from None
            if not told:
                told = True
                _log.warning("%s %s: waiting for processes that an earlier instance left behind", what, directory)
            time.sleep(_LOCK_LOOK_S)  # flock(2) has no time-out of its own
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def holders(path: str) -> set[int]:
    """Processes that have a file open, as far as this user may see them."""
    try:
        wanted = os.stat(path)
    except OSError:
        return set()
    others = (int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid())
    return {pid for pid in others if _has_open(pid, (wanted.st_dev, wanted.st_ino))}


def check_version(spool: str) -> None:
    """Mark a new spool with our version; raise StartError for one that we cannot read."""
    path = Path(spool, "version")
    try:
        text = path.read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        if Path(spool, "shards").exists():
            raise StartError(DATA, f"spool {spool} has no file `version`: it is damaged, or not ours") from None
        _write_durably(path, f"{SPOOL_VERSION}\n")
        return
    except OSError as error:
        raise StartError(CANNOT_CREATE, f"cannot read {path}: {error.strerror}") from error
    if not text.isdecimal():
        raise StartError(DATA, f"{path} is damaged: {text[:20]!r} is no version")
    if int(text) > SPOOL_VERSION:
        raise StartError(
            DATA,
            f"spool {spool} is of version {int(text)}, this MTA knows {SPOOL_VERSION}: "
            "it was used by a newer one, which has to empty it",
        )


def assign_shards(spool: str, workers: int) -> list[list[int]]:
    """The shards of each worker: all that exist, and one for each worker. Shard k is of worker k mod N."""
    directory = Path(spool, "shards")
    try:
        directory.mkdir(mode=0o750, exist_ok=True)
        existing = {int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal() and entry.is_dir()}
    except OSError as error:
        raise StartError(CANNOT_CREATE, f"cannot read {directory}: {error.strerror}") from error
    if existing and max(existing) >= MAX_SHARDS:
        raise StartError(DATA, f"{directory}/{max(existing)} is no shard: numbers go up to {MAX_SHARDS - 1}")
    numbers = sorted(existing | set(range(workers)))
    return [[number for number in numbers if number % workers == worker] for worker in range(workers)]


def clean_run(run: str) -> None:
    """Remove what an earlier instance left in the runtime directory. Its lock is held by us."""
    try:
        for entry in Path(run).iterdir():
            if entry.name == "limits":
                shutil.rmtree(entry)
            elif entry.name == "control.sock" or (
                entry.name.startswith("worker-") and entry.name.endswith((".sock", ".nudge"))
            ):
                entry.unlink()
    except OSError as error:
        raise StartError(CANNOT_CREATE, f"cannot clean runtime directory {run}: {error}") from error


def _open_lock(path: str, what: str, owner: Identity | None) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o640)
            if owner is not None:
                os.fchown(fd, owner.uid, owner.gid)
        except FileExistsError:
            fd = os.open(path, flags)
    except OSError as error:
        hint = ": it has to belong to the MTA's user" if error.errno == errno.EACCES else ""
        raise StartError(CANNOT_CREATE, f"{what} is not writable: {path}: {error.strerror}{hint}") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        # We may be root here, in a directory where somebody else can write.
        os.close(fd)
        raise StartError(CANNOT_CREATE, f"{path} is not a plain file with one name")
    return fd


def _read_pid(fd: int) -> int:
    text = os.pread(fd, 20, 0).strip()
    return int(text) if text.isdigit() else 0


def _has_open(pid: int, device_and_inode: tuple[int, int]) -> bool:
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False  # it has just ended, or is not ours to look at
    for descriptor in descriptors:
        try:
            status = os.stat(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue  # closed in the meantime
        if (status.st_dev, status.st_ino) == device_and_inode:
            return True
    return False


def _runs(pid: int) -> bool:
    """Whether there is such a process and it is no zombie."""
    try:
        text = Path("/proc", str(pid), "stat").read_text("utf-8", "replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StartError(CANNOT_CREATE, f"cannot write {path}: {error.strerror}") from error
