"""Put mail into a pickup directory, durably, as a batch of one message.

On return the file is in the directory and on stable storage; the MTA takes it from there, now or when it runs again.
The form is batch SMTP (`mta.inject.batch`): unlike lines before the header it cannot be mistaken for part of the
message, and it carries everything that an envelope can have.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from typing import Final

from mta.control import exits
from mta.queue.records import Recipient
from mta.smtp.data import stuff
from mta.smtp.envelope import Envelope
from mta.smtp.transaction import Capabilities, Transaction, commands_for

_EVERYTHING: Final = Capabilities(esmtp=True, eight_bit=True, smtputf8=True, dsn=True)


def batch(envelope: Envelope, content: bytes, most: int) -> Iterator[bytes]:
    """A message as batch SMTP, in as many transactions as `most` recipients in each ask for. Raises OperatorError."""
    stuffed = stuff(content)
    for start in range(0, len(envelope.recipients), most):
        recipients: list[Recipient] = envelope.recipients[start : start + most]
        transaction = Transaction(envelope.sender, recipients, content, envelope.flags, envelope.ret, envelope.envid)
        commands = commands_for(transaction, _EVERYTHING)
        if transaction.local_reply is not None:
            raise exits.OperatorError(exits.DATA, str(transaction.local_reply))
        yield "".join(commands).encode()
        yield b"DATA\r\n"
        yield stuffed
        yield b".\r\n"


def put(directory: str, pieces: Iterator[bytes]) -> str:
    """Write a file into the directory and return its name. Raises OperatorError."""
    name = f"sendmail.{time.time_ns() // 1000}.{os.getpid()}.{os.urandom(4).hex()}.bsmtp"
    written = os.path.join(directory, "tmp", name)
    try:
        descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise _trouble(directory, error) from None
    try:
        try:
            os.fchmod(descriptor, 0o640)  # whatever the umask
            _let_it_be_read(directory, descriptor)
            with os.fdopen(os.dup(descriptor), "wb", buffering=1_048_576) as file:
                for piece in pieces:
                    file.write(piece)
            os.fsync(descriptor)
            os.rename(written, os.path.join(directory, name))
        except BaseException:
            os.unlink(written)
            raise
        _sync(directory, descriptor)
    except OSError as error:
        raise _trouble(directory, error) from None
    finally:
        os.close(descriptor)
    return name


def _let_it_be_read(directory: str, descriptor: int) -> None:
    """See to it that the MTA, which owns the directory, can read our file: by its group, which should be that of the
    directory. The setgid bit of `tmp/` does that; root and members of the group can do it themselves."""
    place, file = os.stat(directory), os.fstat(descriptor)
    if file.st_uid == place.st_uid or file.st_gid == place.st_gid:
        return
    try:
        os.fchown(descriptor, -1, place.st_gid)
    except PermissionError:
        raise exits.OperatorError(
            exits.NO_PERMISSION,
            f"{directory}: the MTA could not read a file of yours; `chmod g+s` for it and its tmp/ mends that",
        ) from None


def _sync(directory: str, descriptor: int) -> None:
    """Make the rename durable. Who may write into the directory need not be allowed to open it; then the file is synced
    once more: its journaling file system (ext4, XFS, btrfs) has the new name in the log by then."""
    try:
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        os.fsync(descriptor)
        return
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _trouble(directory: str, error: OSError) -> exits.OperatorError:
    """What to tell the user, and whether trying again makes sense."""
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "this user may not send mail here; docs/pickup.md has the permissions that it takes"
        return exits.OperatorError(exits.NO_PERMISSION, f"{directory}: {error.strerror}: {hint}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        hint = "is it the pickup directory of an MTA? `mta run` makes it, with tmp/ in it"
        return exits.OperatorError(exits.CANNOT_CREATE, f"{directory}/tmp: {error.strerror}; {hint}")
    return exits.OperatorError(exits.TEMPORARY, f"{directory}: {error.strerror}")
