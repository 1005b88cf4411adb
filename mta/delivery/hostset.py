"""A set of hosts as the configuration lists them: names, patterns of names, and networks."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Sequence

from mta.config.hosts import HostOrNetwork


class HostSet:
    """Asked for names and addresses. Small: it is looked through."""

    def __init__(self, items: Sequence[HostOrNetwork]) -> None:
        self._names: set[str] = set()
        self._patterns: list[re.Pattern[str]] = []
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for item in items:
            if "*" in item:
                self._patterns.append(re.compile(".*".join(map(re.escape, item.split("*")))))
            elif ":" in item or item.replace(".", "").replace("/", "").isdigit():
                self._networks.append(ipaddress.ip_network(item))
            else:
                self._names.add(item)

    def has_name(self, name: str) -> bool:
        """Whether a host of this name, lower case, is in it."""
        return name in self._names or any(pattern.fullmatch(name) for pattern in self._patterns)

    def has_address(self, text: str) -> bool:
        """Whether this address is in it."""
        if not self._networks:
            return False
        address = ipaddress.ip_address(text)
        return any(address in network for network in self._networks)


@functools.lru_cache(maxsize=1024)
def host_set(items: tuple[HostOrNetwork, ...]) -> HostSet:
    """The set of what an option lists; the same for the same list."""
    return HostSet(items)
