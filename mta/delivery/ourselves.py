"""Which hosts are this MTA, so that mail is not delivered to itself (RFC 5321 5.1).

No I/O but one question to the kernel. Behind NAT or a proxy DNS shows no address of ours; there the name of the host
tells. What slips through is stopped by the count of `Received` lines.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from mta.config import schema

AF_INET: Final = int(socket.AF_INET)
AF_INET6: Final = int(socket.AF_INET6)
_ALL: Final = ("0.0.0.0", "::")


class Ourselves:
    """Which hosts are this MTA: mail for them would come back (RFC 5321 5.1).

    Only a listener on the port that mail is delivered to counts. Our name or address with another server behind that
    port is a host like any other: a separate MTA for incoming mail on the same machine is usual.
    """

    def __init__(self, config: schema.Config, is_local: Callable[[str], bool]) -> None:
        self._is_local = is_local
        self._listening = {(listener.smtp.host, listener.smtp.port) for listener in config.listeners}
        # A listener on loopback is reached by no MX host, unless loopback is believed.
        ports = config.shaping.ports
        public = [
            listener for listener in config.listeners if listener.smtp.port in ports
            and (listener.smtp.host in _ALL or config.delivery.allow_loopback or not is_loopback(listener.smtp.host))
        ]
        self.take_mail = bool(public)  # whether an MX host can be this MTA at all
        self._named = {(name, listener.smtp.port) for listener in public
                       for name in (config.hostname, listener.hostname) if name}

    def is_named(self, name: str, port: int) -> bool:
        """Whether mail for the MX host `name` comes to us, by the name alone (behind NAT no address tells)."""
        return (name, port) in self._named

    def listens_at(self, address: str, port: int) -> bool:
        """Whether one of our listeners is at `address` and `port`. A name is never recognised."""
        listening = self._listening
        if (address, port) in listening:
            return True
        if ("::", port) in listening or (":" not in address and ("0.0.0.0", port) in listening):
            return family_of(address) is not None and (is_loopback(address) or self._is_local(address))
        return False


def is_loopback(address: str) -> bool:
    """Whether connecting to `address` leads to this machine by its very form: 127/8, ::1, and the unspecified ones."""
    return address.startswith("127.") or address in ("::1", "::", "0.0.0.0")


def is_local_address(address: str) -> bool:
    """Whether `address` is one of this machine: the kernel would talk to it from itself. Sends nothing."""
    family = family_of(address)
    if family is None:
        return False
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((address, 25))
        except OSError:  # no way there: certainly not here
            return False
        name: str = sock.getsockname()[0]
        return name == address


def family_of(host: str) -> int | None:
    """The address family when `host` is an address, None when it is a name."""
    if not host[-1:].isdigit() and ":" not in host:
        return None
    family = AF_INET6 if ":" in host else AF_INET
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError):
        return None
    return family
