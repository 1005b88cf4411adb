"""Opens the listening sockets that all workers share.

One socket per listener, bound once, before root is given up, and inherited by every worker: connections that wait in
its backlog while a worker dies are accepted by the others, or by its successor. (A socket per worker with SO_REUSEPORT
would spread load more evenly but takes its own backlog with it.) Sockets of systemd are used where their address is
one that is configured.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from mta.config.schema import Config
from mta.config.units import Endpoint
from mta.control.exits import CONFIG, NO_PERMISSION, UNAVAILABLE, StartError

BACKLOG: Final = 4096  # the kernel lowers it to net.core.somaxconn


def listen(config: Config, passed: Sequence[socket.socket] = ()) -> list[socket.socket]:
    """A listening socket for each of `config.listeners`, in their order. Raises StartError, with all closed again."""
    activated = {endpoint(sock): sock for sock in passed}
    sockets: list[socket.socket] = []
    try:
        for listener in config.listeners:
            wanted = _canonical(listener.smtp)
            sockets.append(activated.pop(wanted) if wanted in activated else _bind(wanted))
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
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return Endpoint(str(sock.getsockname()), 0)
    host, port = sock.getsockname()[:2]
    return Endpoint(host, port)


def _canonical(wanted: Endpoint) -> Endpoint:
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
