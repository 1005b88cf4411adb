"""A spool directory on disk: which files are ours, how they are read, and where they go.

    DIRECTORY/              files are renamed into it by whoever sends; nothing is read here
    DIRECTORY/tmp/          for writing them: on the same file system, so that the rename is atomic
    DIRECTORY/failed/       files that were refused, each with a `.error` file beside it
    DIRECTORY/.claimed/003/ files taken by the owner of shard 003, as TOKEN-NAME
    DIRECTORY/.settings     what programs that write files may want to know, such as the limits (JSON)

A file is *claimed* by renaming it, so of several workers one gets it and the others do not. The random token in its
new name is its identity from then on: the key of its mark in the store (`mta.inject.pickup`).

What stands in the directory is not trusted. Only regular files with a single link are read, opened without following
links and without blocking; symbolic links, pipes, devices and sockets go to `failed/` unopened. Directories, names
that begin with a dot, `tmp` and `failed` are left alone. A file that changes while it is read was not renamed in: it
is refused rather than sent in half. Whose file it was is passed on: the kernel lets nobody but root give a file away,
so that is who wrote it, whatever the message says.

Every method blocks on the disk: call them in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple, Protocol

from mta.inject.batch import BEGIN, Position
from mta.queue.shortage import SHORTAGE

_TOKEN_BYTES: Final = 8
_NAME_LIMIT: Final = 230  # octets kept of a name: the token in front and `.error` behind must fit into 255
_STEM_LIMIT: Final = 200  # octets kept of the name of a batch that is put aside in part
_COPY: Final = 1_048_576


class _Entries(Protocol):
    """What os.scandir returns."""

    def __next__(self) -> os.DirEntry[str]: ...

    def __iter__(self) -> Iterator[os.DirEntry[str]]: ...

    def close(self) -> None: ...


class DirectoryError(Exception):
    """The spool directory cannot be used; one line for the operator."""


class FileError(Exception):
    """This file cannot be a message; the text says why."""


class Claim(NamedTuple):
    """A file that is ours."""

    token: str
    name: str  # the one it came with, perhaps shortened

    @property
    def is_batch(self) -> bool:
        """Whether it is batch SMTP."""
        return self.name.lower().endswith(".bsmtp")


class Content(NamedTuple):
    """What a file holds, and the user whose file it is."""

    data: bytes
    uid: int


class SpoolDirectory:
    """One spool directory, as the owner of one shard sees it."""

    def __init__(self, directory: str, shard: int) -> None:
        self.directory = directory
        self.claimed = os.path.join(directory, ".claimed", f"{shard:03d}")
        self.failed = os.path.join(directory, "failed")
        self.problem = ""  # why files stay that should not, for the operator
        self._lock = -1
        self._entries: _Entries | None = None

    def open(self) -> None:
        """Make what is missing and take possession of our claims. Raises DirectoryError."""
        try:
            os.makedirs(self.directory, mode=0o750, exist_ok=True)
            for path in (os.path.join(self.directory, "tmp"), self.failed):
                os.makedirs(path, mode=0o750, exist_ok=True)
            os.makedirs(os.path.dirname(self.claimed), mode=0o700, exist_ok=True)
            os.makedirs(self.claimed, mode=0o700, exist_ok=True)
            for path in (os.path.dirname(self.claimed), self.claimed, self.failed):
                _check_owner(path)
            self._lock = os.open(os.path.join(self.claimed, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise DirectoryError(f"{self.claimed}: in use by another instance with a spool of its own") from None
        except OSError as error:
            self.close()
            raise DirectoryError(f"{error.filename or self.directory}: {error.strerror}") from None

    def close(self) -> None:
        """Give up possession."""
        if self._entries is not None:
            self._entries.close()
            self._entries = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def publish(self, settings: str) -> None:
        """Write `.settings`, for everybody to read. Whoever can write into the directory may also remove it, not change
        it: a reader believes only what belongs to the owner of the directory."""
        path = os.path.join(self.directory, ".settings")
        new = os.path.join(self.claimed, ".settings")
        with open(new, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(settings)
        os.rename(new, path)

    # -- claiming ---------------------------------------------------------------------------------------------------

    def leftovers(self) -> list[Claim]:
        """Claims of a process that ended before it was done with them."""
        found = []
        for name in os.listdir(self.claimed):
            token, dash, original = name.partition("-")
            if dash and original and len(token) == 2 * _TOKEN_BYTES:
                found.append(Claim(token, original))
        return found

    def claim(self, limit: int) -> list[Claim]:
        """Up to `limit` files; an empty list ends the pass over the directory, and the next call begins a new one.

        The pass is kept open between calls, so that taking 100,000 files reads the directory once. When the list is
        returned the claims are on disk: what is accepted under their tokens cannot come back under its old name.
        """
        if self._entries is None:
            self.problem = ""
            self._entries = os.scandir(self.directory)
        claims: list[Claim] = []
        while len(claims) < limit:
            entry = next(self._entries, None)
            if entry is None:
                if not claims:
                    self._entries = None
                break
            if entry.name.startswith(".") or entry.name in ("tmp", "failed") or entry.is_dir(follow_symlinks=False):
                continue
            claim = Claim(os.urandom(_TOKEN_BYTES).hex(), _shortened(entry.name))
            try:
                os.rename(entry.path, self.path(claim))
            except FileNotFoundError:
                if not os.path.isdir(self.claimed):
                    raise
                continue  # another worker has it, or whoever wrote it took it back
            except OSError as error:
                self.problem = f"{shown(entry.path)}: {error.strerror}"
                continue
            claims.append(claim)
        if claims:
            _sync(self.claimed)
            _sync(self.directory)
        return claims

    def path(self, claim: Claim) -> str:
        """Where the file is now."""
        return os.path.join(self.claimed, f"{claim.token}-{claim.name}")

    # -- reading ----------------------------------------------------------------------------------------------------

    def open_file(self, claim: Claim) -> BinaryIO:
        """The file, checked to be one. Raises FileError; FileNotFoundError when somebody took it away; OSError when we
        lack a descriptor or memory for it, which is not the file's fault."""
        path = self.path(claim)
        try:
            # Not even opened when it is no file: opening a device may do something.
            _check(os.lstat(path))
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
            raise FileError(f"it cannot be read: {error.strerror}") from None
        try:
            _check(os.fstat(descriptor))
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise

    def read(self, claim: Claim, limit: int) -> Content:
        """The whole of a file of at most `limit` octets. Raises as `open_file`, and MemoryError."""
        with self.open_file(claim) as file:
            before = os.fstat(file.fileno())
            if before.st_size > limit:
                raise FileError(f"it has {before.st_size} octets, more than smtp.message_size ({limit})")
            try:
                data = file.read(before.st_size + 1)
                after = os.fstat(file.fileno())
            except OSError as error:
                raise FileError(f"it cannot be read: {error.strerror}") from None
        if len(data) != before.st_size or before.st_mtime_ns != after.st_mtime_ns:
            raise FileError("it changed while it was read; write it in tmp/ and rename it into the directory")
        return Content(data, before.st_uid)

    # -- being done -------------------------------------------------------------------------------------------------

    def remove(self, claims: list[Claim]) -> None:
        """Remove files that were accepted; on return they are gone for good."""
        for claim in claims:
            try:
                os.unlink(self.path(claim))
            except FileNotFoundError:
                pass
        _sync(self.claimed)

    def fail(self, claim: Claim, reason: str) -> str:
        """Put a file into `failed/` beside a `.error` file with the reason; return where it is now."""
        target = self._free_name(claim)
        _write(f"{target}.error", self._report(claim, reason))
        try:
            os.rename(self.path(claim), target)
        except FileNotFoundError:
            os.unlink(f"{target}.error")
        return target

    def fail_rest(self, claim: Claim, position: Position, reason: str) -> str:
        """Put what follows `position` into `failed/`, with the reason beside it; return where it is.

        The claim itself stays, to be removed. The name has the token in it: doing this again after a crash replaces
        the file rather than adding one.
        """
        target = self._name_with(claim, claim.token)
        with self.open_file(claim) as source, open(f"{target}.part", "wb") as rest:
            if position.goes_on:
                rest.write(b"XACK OFF\r\n" if source.readline(_COPY).endswith(b"\r\n") else b"XACK OFF\n")
            source.seek(position.offset)
            while chunk := source.read(_COPY):
                rest.write(chunk)
            _finish(rest)
        self._put_aside(target, claim, reason)
        return target

    def fail_some(self, claim: Claim, line: int, content: Iterable[bytes], reasons: list[str]) -> str:
        """Put something made of a batch, from what begins at `line`, into `failed/`, with the reason beside it; return
        where it is. As with `fail_rest`, doing it again replaces it."""
        target = self._name_with(claim, f"{claim.token}-{line}")
        with open(f"{target}.part", "wb") as file:
            file.writelines(content)
            _finish(file)
        self._put_aside(target, claim, *reasons)
        return target

    def _name_with(self, claim: Claim, more: str) -> str:
        stem, dot, suffix = claim.name.rpartition(".")
        stem = os.fsdecode(os.fsencode(stem)[-_STEM_LIMIT:])
        return os.path.join(self.failed, f"{stem}.{more}{dot}{suffix}")

    def _put_aside(self, target: str, claim: Claim, *reasons: str) -> None:
        _write(f"{target}.error", self._report(claim, *reasons))
        os.rename(f"{target}.part", target)
        _sync(self.failed)

    def _free_name(self, claim: Claim) -> str:
        """A path in `failed/` that nothing has; whoever makes the `.error` file has the name."""
        target = os.path.join(self.failed, claim.name)
        try:
            os.close(os.open(f"{target}.error", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))
            if not os.path.lexists(target):
                return target
            os.unlink(f"{target}.error")
        except FileExistsError:
            pass
        return os.path.join(self.failed, f"{claim.token}-{claim.name}")

    def _report(self, claim: Claim, *reasons: str) -> str:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return f"file: {shown(os.path.join(self.directory, claim.name))}\ntime: {now}\n" + "".join(
            f"{shown(reason)}\n" for reason in reasons)


def shown(path: str) -> str:
    """Text that may come from a file name, for people and records: no control characters, nothing that is not UTF-8."""
    text = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _check_owner(path: str) -> None:
    """Who may write into the spool directory could have made it before us. Raises DirectoryError, OSError."""
    for status in (os.lstat(path), os.stat(path)):
        if status.st_uid not in (os.geteuid(), 0):
            raise DirectoryError(f"{path}: made by uid {status.st_uid}, expected the user of the MTA; remove it")


def _check(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FileError("it is not a regular file")
    if status.st_nlink > 1:
        raise FileError("it has other names (hard links), so it might change; give it only one")


def _shortened(name: str) -> str:
    """The end of a name that is too long: the end has the suffix."""
    octets = os.fsencode(name)
    return name if len(octets) <= _NAME_LIMIT else os.fsdecode(octets[-_NAME_LIMIT:])


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _finish(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS):  # a file system that cannot sync directories
            raise
    finally:
        os.close(descriptor)


__all__ = ["BEGIN", "Claim", "Content", "DirectoryError", "FileError", "SpoolDirectory", "shown"]
