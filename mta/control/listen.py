"""Opens the listening sockets that all workers share.

One socket per listener, bound once, before root is given up, and inherited by every worker: connections that wait in
its backlog while a worker dies are accepted by the others, or by its successor. (A socket per worker with SO_REUSEPORT
would spread load more evenly but takes its own backlog with it.) Sockets of systemd are used where their address is
one that is configured.
"""

from __future__ import annotations

import errno
import grp
import ipaddress
import os
import socket
import stat
from collections.abc import Sequence
from typing import Final

from mta.config.hosts import Endpoint
from mta.config.schema import Config, Listener
from mta.control.exits import CONFIG, NO_PERMISSION, UNAVAILABLE, StartError
from mta.control.privileges import Identity

BACKLOG: Final = 4096  # the kernel lowers it to net.core.somaxconn


def listen(config: Config, passed: Sequence[socket.socket] = (), owner: Identity | None = None) -> list[socket.socket]:
    """A listening socket for each of `config.listeners`, in their order. Unix sockets become `owner`'s, unless systemd
    made them. Raises StartError, with all closed again."""
    activated = {endpoint(sock): sock for sock in passed}
    sockets: list[socket.socket] = []
    try:
        for listener in config.listeners:
            wanted = _canonical(listener.smtp)
            if wanted in activated:
                sockets.append(activated.pop(wanted))
            elif wanted.is_unix:
                sockets.append(_bind_unix(listener, owner))
            else:
                sockets.append(_bind(wanted))
        if activated:
            names = ", ".join(str(unused) for unused in activated)
            # Accepting nothing on it would leave its clients hanging in the backlog for ever.
            raise StartError(CONFIG, f"systemd passed a socket on {names}, but no listener has this address")
    except StartError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def endpoint(sock: socket.socket) -> Endpoint:
    """The address a socket is bound to; the port is the actual one where 0 was asked for."""
    if sock.family == socket.AF_UNIX and isinstance(sock.getsockname(), str):
        return Endpoint(sock.getsockname(), 0)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return Endpoint(str(sock.getsockname()), 0)
    host, port = sock.getsockname()[:2]
    return Endpoint(host, port)


def _canonical(wanted: Endpoint) -> Endpoint:
    if wanted.is_unix:
        return wanted
    try:
        return Endpoint(str(ipaddress.ip_address(wanted.host)), wanted.port)
    except ValueError:
        raise StartError(CONFIG, f"cannot listen on {wanted}: a listener needs an address, not a name") from None


def _bind(wanted: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise StartError(UNAVAILABLE, f"cannot listen on {wanted}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `[::]:25` and `0.0.0.0:25` are two listeners, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((wanted.host, wanted.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _refused(wanted, error) from error
    return sock


def _bind_unix(listener: Listener, owner: Identity | None) -> socket.socket:
    """A Unix socket with the mode that the listener wants. One that a dead instance has left is replaced; one that
    somebody listens on is not. Nobody can connect before owner and mode are right, as it does not listen yet."""
    wanted = listener.smtp
    try:
        gid = grp.getgrnam(listener.group).gr_gid if listener.group is not None else owner.gid if owner else -1
    except KeyError:
        raise StartError(CONFIG, f"cannot listen on {wanted}: there is no group {listener.group!r}") from None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_free(wanted.host)
        before = os.umask(0o777 & ~int(listener.mode, 8))  # not chmod, which would follow a link put in its place
        try:
            sock.bind(wanted.host)
        finally:
            os.umask(before)
        try:
            if owner is not None or gid != -1:
                os.chown(wanted.host, owner.uid if owner else -1, gid, follow_symlinks=False)
        except PermissionError:
            raise StartError(NO_PERMISSION, f"cannot listen on {wanted}: our user is no member of the group "
                             f"{listener.group!r}, so it cannot give it the socket") from None
        sock.listen(BACKLOG)
    except StartError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise StartError(NO_PERMISSION if error.errno in (errno.EACCES, errno.EPERM) else UNAVAILABLE,
                         f"cannot listen on {wanted}: {error.strerror or error}") from error
    return sock


def _make_free(path: str) -> None:
    """Remove a socket that nobody listens on. Raises OSError for anything else."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "there is something else than a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "somebody listens on it")


def _refused(wanted: Endpoint, error: OSError) -> StartError:
    match error.errno:
        case errno.EADDRINUSE:
            return StartError(
                UNAVAILABLE,
                f"cannot listen on {wanted}: the port is taken (`ss -ltnp sport = :{wanted.port}` shows by whom)",
            )
        case errno.EACCES:
            return StartError(
                NO_PERMISSION,
                f"cannot listen on {wanted}: permission denied; ports below 1024 need root (with `user` set), "
                "CAP_NET_BIND_SERVICE, or systemd socket activation",
            )
        case errno.EADDRNOTAVAIL:
            return StartError(UNAVAILABLE, f"cannot listen on {wanted}: this machine does not have the address")
    return StartError(UNAVAILABLE, f"cannot listen on {wanted}: {error.strerror}")
