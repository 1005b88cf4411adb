"""The sources that mail leaves from, as a worker uses them."""

from __future__ import annotations

import ssl

from mta.config import schema
from mta.delivery.ourselves import AF_INET6
from mta.delivery.tls import opportunistic_context


class Source:
    """One source: addresses and EHLO name."""

    __slots__ = ("ehlo", "ipv4", "ipv6", "name", "tls_context")

    def __init__(self, name: str, ipv4: str | None, ipv6: str | None, ehlo: str, context: ssl.SSLContext) -> None:
        self.name = name
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.ehlo = ehlo
        self.tls_context = context

    def __repr__(self) -> str:
        return f"<Source {self.name or '(the system)'}>"

    def address(self, family: int) -> str | None:
        """The address of ours that the peer is to see; None: the system's choice."""
        return self.ipv6 if family == AF_INET6 else self.ipv4


class Sources:
    """All sources of a configuration, and the pools that they are in."""

    def __init__(self, config: schema.Config) -> None:
        delivery = config.delivery
        self.all = {"": Source("", delivery.source_ipv4, delivery.source_ipv6, delivery.ehlo or config.hostname,
                               opportunistic_context())}

    def pool(self, name: str) -> dict[str, int] | None:
        """Weights by source of a pool; "" is the default one. None: there is no such pool, and its mail waits."""
        return {"": 1} if not name else None
