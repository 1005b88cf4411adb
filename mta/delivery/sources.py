"""The sources that mail leaves from, as a worker uses them: addresses, EHLO name, client certificate, proxy, exit.

A source whose addresses this machine does not have (any more) is not used: it is *lost*. That is noticed when a
connection cannot be bound to the address, told once as an event and in the log, and looked at again every `LOOK_S`.
Meanwhile its paths stand still; mail goes by the other sources of the pool, or waits. It is never the mail's fault.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from collections.abc import Mapping
from typing import Final

from mta.config import schema
from mta.config.hosts import Proxy
from mta.delivery.ourselves import AF_INET, AF_INET6
from mta.delivery.tls import opportunistic_context

LOOK_S: Final = 30.0

IMPLICIT: Final = ""  # name of the source when none is configured: the system chooses the address

log = logging.getLogger(__name__)


class Source:
    """One source. Unchanging but for what it lacks just now."""

    __slots__ = ("absent", "ehlo", "ipv4", "ipv6", "lost", "name", "options", "port", "proxy", "tls_context")

    def __init__(self, name: str, options: schema.Source, hostname: str, context: ssl.SSLContext) -> None:
        self.name = name
        self.options = options
        self.ipv4 = options.ipv4
        self.ipv6 = options.ipv6
        self.ehlo = options.ehlo or hostname
        self.port = options.port  # of MX hosts; None: the usual one
        self.proxy: Proxy | None = options.proxy
        self.tls_context = context
        self.absent: set[int] = set()  # address families whose address this machine does not have just now
        self.lost = ""  # why it cannot be used at all now; empty when it can

    def __repr__(self) -> str:
        return f"<Source {self.name or '(the system)'}{': ' + self.lost if self.lost else ''}>"

    def serves(self, family: int) -> bool:
        """Whether mail may leave from it by this address family. One without addresses leaves the choice to the system,
        one with a single address has just that."""
        if family in self.absent:
            return False
        if self.ipv4 is None and self.ipv6 is None:
            return True
        return (self.ipv6 if family == AF_INET6 else self.ipv4) is not None

    def address(self, family: int) -> str | None:
        """The address of ours that the peer is to see; None: the system's choice."""
        return self.ipv6 if family == AF_INET6 else self.ipv4

    @property
    def families(self) -> list[tuple[int, str]]:
        """The families of which it has an address, with that."""
        both = ((AF_INET, self.ipv4), (AF_INET6, self.ipv6))
        return [(family, address) for family, address in both if address is not None]

    def look(self) -> None:
        """See which of its addresses this machine has now. Asks the kernel, sends nothing."""
        if self.proxy is not None:
            self.lost = ""  # the next connection will tell
            return
        families = self.families
        self.absent = {family for family, address in families if not is_ours(family, address)}
        self.lost = self.reason if families and len(self.absent) == len(families) else ""

    @property
    def reason(self) -> str:
        """Which of its addresses this machine does not have, in words."""
        return "this machine does not have the address " + " nor ".join(
            address for family, address in self.families if family in self.absent)


def is_ours(family: int, address: str) -> bool:
    """Whether one can bind to `address` here. What keeps us from asking is no answer: then it counts as there."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((address, 0))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


class Sources:
    """All sources of a configuration, and the pools that they are in."""

    def __init__(self, config: schema.Config, known: Mapping[str, Source] | None = None) -> None:
        """`known` are the sources so far: what did not change stays the same object. Files of certificates are read
        anew all the same, as they are renewed in their place."""
        plain = opportunistic_context()
        self.all: dict[str, Source] = {}
        options = config.sources or {IMPLICIT: schema.Source()}
        for name, one in options.items():
            old = (known or {}).get(name)
            if old is not None and old.options == one and old.ehlo == (one.ehlo or config.hostname):
                old.tls_context = _context(name, one, old.tls_context)
                self.all[name] = old
            else:
                self.all[name] = Source(name, one, config.hostname, _context(name, one, plain))
        self.pools = config.pools
        self.changed: set[str] = set()  # pools that are others than before
        self._fallback = config.pools.get("default") or dict.fromkeys(self.all, 1)
        self._strict = config.delivery.unknown_pool == "wait"

    def pool(self, name: str) -> dict[str, int] | None:
        """Weights by source of a pool; "" is the default one, and a source alone is one, too. None: there is no such
        pool, and its mail waits."""
        if not name:
            return self._fallback
        found = self.pools.get(name) or ({name: 1} if name in self.all else None)
        if found is None and not self._strict:
            return self._fallback
        return found


def _context(name: str, options: schema.Source, otherwise: ssl.SSLContext) -> ssl.SSLContext:
    """TLS with the source's certificate, should the peer ask for one. Where it cannot be read, mail goes `otherwise`:
    with the one that was read before, or without any."""
    if options.tls_certificate is None:
        return otherwise
    context = opportunistic_context()
    try:
        context.load_cert_chain(options.tls_certificate, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        log.error("sources.%s: the client certificate cannot be used: %s", name, error)
        return otherwise
    return context
