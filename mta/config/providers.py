"""Which provider a site belongs to: by recipient domain, by the names of its MX hosts, or by their addresses.

A site is a provider's when all hosts of the best preference are: mail goes to these, a spare one elsewhere does not
matter. The more telling wins, whatever the order in the file: the recipient domain before host names, these before
addresses; of several patterns the longest, of several networks the narrowest. What the configuration says about a
domain, pattern or network wins over the shipped file.

Pure. A look costs a dictionary hit for each label of the host names, however many providers there are.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mta.config.hosts import Network, format_network, pattern_suffix
from mta.config.shaping import DestinationRules, Match, ShapingRules


class Found(NamedTuple):
    """A provider, and what made a site its own."""

    provider: str
    why: str  # `MX mx1.example.net matches *.example.net`


class _Pattern(NamedTuple):
    text: str
    regex: re.Pattern[str] | None  # None: any host under the suffix
    provider: str


def definitions(rules: ShapingRules) -> dict[str, Match]:
    """How each provider is known, the shipped ones first."""
    found = {name: layer.match or Match() for name, layer in rules.shipped.providers.items()}
    found |= {name: layer.match for name, layer in rules.providers.items() if layer.match is not None}
    return found


def own_names(rules: DestinationRules) -> list[str]:
    """The providers that these rules define."""
    return [name for name, layer in rules.providers.items() if layer.match is not None]


class Providers:
    """All providers of a configuration."""

    def __init__(self, rules: ShapingRules) -> None:
        self._domains: dict[str, str] = {}
        self._hosts: dict[str, str] = {}  # names without a star
        self._patterns: dict[str, list[_Pattern]] = {}  # by suffix, the longest pattern first
        self._networks: dict[tuple[int, int], dict[int, tuple[str, Network]]] = {}  # by version and prefix length
        by_pattern: dict[str, str] = {}
        known = definitions(rules)
        shipped_first = sorted(known, key=set(own_names(rules)).__contains__)
        for provider in shipped_first:
            match = known[provider]
            self._domains |= dict.fromkeys(match.domains, provider)
            by_pattern |= dict.fromkeys(match.mx, provider)
            for network in match.networks:
                table = self._networks.setdefault((network.version, network.prefixlen), {})
                table[int(network.network_address)] = (provider, network)
        for text, provider in by_pattern.items():
            if "*" not in text:
                self._hosts[text] = provider
                continue
            suffix = pattern_suffix(text)
            regex = None if text == f"*.{suffix}" else re.compile(".*".join(map(re.escape, text.split("*"))))
            self._patterns.setdefault(suffix, []).append(_Pattern(text, regex, provider))
        for patterns in self._patterns.values():
            patterns.sort(key=lambda pattern: -len(pattern.text))
        self._networks = dict(sorted(self._networks.items(), key=lambda item: -item[0][1]))

    @property
    def need_addresses(self) -> bool:
        """Whether addresses tell anything."""
        return bool(self._networks)

    def of(self, mx_hosts: Sequence[str], domain: str, addresses: Sequence[str] = ()) -> str:
        """The provider of the site with these hosts of the best preference, for mail to `domain`; "" when none is."""
        found = self.find(mx_hosts, domain, lambda: addresses)
        return found.provider if found is not None else ""

    def find(self, mx_hosts: Sequence[str], domain: str, addresses: Callable[[], Sequence[str]]) -> Found | None:
        """The same with the reason. `addresses` of the hosts are asked for only when they matter."""
        provider = self._domains.get(domain)
        if provider is not None:
            return Found(provider, f"the domain is {domain}")
        first = self._by_name(mx_hosts[0]) if mx_hosts else None
        if first is not None:
            others = [self._by_name(host) for host in mx_hosts[1:]]
            if all(other is not None and other[0] == first[0] for other in others):
                return Found(first[0], f"MX {mx_hosts[0]} matches {first[1]}" + _and_others(others))
        if self._networks:
            return self._by_addresses(addresses())
        return None

    def _by_name(self, host: str) -> tuple[str, str] | None:
        """Provider and pattern."""
        provider = self._hosts.get(host)
        if provider is not None:
            return provider, host
        suffix = host
        while suffix:
            suffix = suffix.partition(".")[2]
            for pattern in self._patterns.get(suffix, ()):
                if pattern.regex is None or pattern.regex.fullmatch(host):
                    return pattern.provider, pattern.text
        return None

    def _by_addresses(self, addresses: Sequence[str]) -> Found | None:
        found = [self._by_address(address) for address in addresses]
        if not found or found[0] is None or any(one is None or one[0] != found[0][0] for one in found):
            return None
        first = f"address {addresses[0]} is in {format_network(found[0][1])}"
        return Found(found[0][0], first + _and_others(found[1:]))

    def _by_address(self, text: str) -> tuple[str, Network] | None:
        address = ipaddress.ip_address(text)
        for (version, length), table in self._networks.items():
            if version == address.version:
                host_bits = address.max_prefixlen - length
                found = table.get(int(address) >> host_bits << host_bits)
                if found is not None:
                    return found
        return None


def _and_others(others: Sequence[object]) -> str:
    return f", and so for {len(others)} more" if others else ""
