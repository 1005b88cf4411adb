"""Who the MTA runs as: the change from root to the configured user."""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import dataclass

from mta.control.exits import CONFIG, NO_PERMISSION, NO_USER, StartError


@dataclass(frozen=True, slots=True)
class Identity:
    """A user to run as."""

    name: str
    uid: int
    gid: int


def identity(user: str | None) -> Identity | None:
    """The user to become; None when we stay who we are. Raises StartError.

    Started as root, `user` must be set: root only on purpose, by `user: root`. Started as an ordinary user, `user` may
    name that very user.
    """
    if user is None:
        if os.geteuid() == 0:
            raise StartError(
                CONFIG, "started as root, but `user` is not set: name the user to run as (`user: root` to stay root)"
            )
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise StartError(NO_USER, f"user {user!r} does not exist: create it (see systemd/) or change `user`") from None
    if os.geteuid() == entry.pw_uid:
        return None
    if os.geteuid() != 0:
        raise StartError(
            NO_PERMISSION, f"cannot become user {user!r}: not started as root, but as {_name(os.geteuid())!r}"
        )
    return Identity(user, entry.pw_uid, entry.pw_gid)


def drop(to: Identity) -> None:
    """Become `to` for good, with its supplementary groups. Raises StartError."""
    try:
        os.initgroups(to.name, to.gid)
        os.setresgid(to.gid, to.gid, to.gid)
        os.setresuid(to.uid, to.uid, to.uid)
    except OSError as error:
        raise StartError(NO_PERMISSION, f"cannot become user {to.name!r}: {error.strerror}") from error
    if not os.access(sys.executable, os.X_OK):
        # As with an interpreter below /root: no child could be started, and the reason would be hard to see.
        raise StartError(NO_PERMISSION, f"user {to.name!r} may not execute {sys.executable}: install it elsewhere")
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise StartError(NO_PERMISSION, f"became user {to.name!r}, but could become root again")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
