"""Which names exist in the sandbox, which personality holds for each, and on which address each host lives.

A *domain* is what stands behind the @ of a recipient; a *host* is a name that an MX record gives, with an address of
its own in 127.64.0.0/10, found from a hash of the name, so that it is the same in every run. The hosts of one domain
are a *site*, and so are the hosts that a personality lists by fixed names and several domains share.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import translate
from re import Pattern
from re import compile as compile_pattern
from typing import Final

from mta.config.hosts import parse_name
from mta.sandbox.ledger import DomainCounts, Ledger, SiteCounts
from mta.sandbox.rules import Conduct
from mta.sandbox.settings import HOME, HOME_IPV6, Behaviour, Exchange, Personality, Settings

MAX_DOMAINS_CACHED: Final = 50_000


@dataclass(slots=True, eq=False)
class Entry:
    """A personality under its name, with its own clock."""

    name: str  # of the personality, the domain or the pattern
    personality: Personality
    began: float
    clock: Callable[[], float] = time.monotonic
    conducts: dict[int, Conduct] = field(default_factory=dict)

    def behaviour(self) -> Behaviour:
        """What holds now."""
        return self.personality.at(self.clock() - self.began)

    def conduct(self) -> Conduct:
        """What holds now, made ready; rules keep their counters as long as the entry lives."""
        behaviour = self.behaviour()
        conduct = self.conducts.get(id(behaviour))
        if conduct is None:
            conduct = self.conducts[id(behaviour)] = Conduct.of(behaviour)
        return conduct

    def next_change(self, after: float) -> float | None:
        """When something else holds for the first time after `after`, by the clock."""
        return min((self.began + at for at in self.personality.changes() if self.began + at > after), default=None)


@dataclass(slots=True, eq=False)
class Domain:
    """A recipient domain. Valid until something changes; `Internet.domain` then gives another."""

    name: str
    conduct: Conduct
    counts: DomainCounts


@dataclass(slots=True, eq=False)
class Host:
    """One MX host. Lives as long as the sandbox; `conduct` and `state` change."""

    name: str
    address: str
    site: str
    state: str
    conduct: Conduct
    counts: SiteCounts
    domain: DomainCounts | None  # of the one domain that it serves, None when several do

    @property
    def open(self) -> bool:
        """Whether it accepts connections."""
        return self.state in ("up", "cname") and self.conduct.behaviour.listening


class Internet:
    """Everything that has a name. `on_host` is called when a host is new or may have changed."""

    def __init__(self, settings: Settings, ledger: Ledger, on_host: Callable[[Host], None],
                 clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds; what changes over time counts from now."""
        self.ledger = ledger
        self.clock = clock
        self.on_host = on_host
        self.on_change: list[Callable[[], None]] = []  # called after every `refresh`
        self._limit = settings.hosts
        now = self._refreshed = clock()
        self._default = Entry("default", settings.default, now, clock)
        self._named = [Entry(name, personality, now, clock) for name, personality in settings.personalities.items()]
        self._exact: dict[str, Entry] = {}
        self._patterns: list[tuple[Pattern[str], Entry]] = []
        for name, personality in settings.domains.items():
            if "*" in name:
                self._patterns.append((compile_pattern(translate(name)), Entry(name, personality, now, clock)))
            else:
                self._exact[name] = Entry(name, personality, now, clock)
        self._claims: dict[str, tuple[Entry, str]] = {}
        self._domains: dict[bytes, Domain] = {}
        self._hosts: dict[str, Host] = {}
        self._addresses: dict[str, Host] = {}
        self._claim()

    # --- names to personalities ------------------------------------------------------------------------------------

    def entry(self, name: str) -> Entry:
        """The entry that holds for a name: the exact one, the first pattern, the default."""
        entry = self._exact.get(name)
        if entry is not None:
            return entry
        for pattern, entry in self._patterns:
            if pattern.match(name):
                return entry
        return self._default

    def domain(self, name: bytes) -> Domain:
        """The recipient domain of that name, in any case. Hot path."""
        domain = self._domains.get(name)
        if domain is None:
            text = _domain_name(name)
            if len(self._domains) >= MAX_DOMAINS_CACHED:
                self._domains.clear()
            domain = self._domains[name] = Domain(text, self.entry(text).conduct(), self.ledger.domain(text))
        return domain

    def exchanges(self, domain: str) -> list[Exchange]:
        """The MX hosts of a domain; none when it is its own host."""
        return self.entry(domain).behaviour().exchanges(domain)

    def _claim(self) -> None:
        """Note which personality the hosts with fixed names belong to. The first that lists one has it."""
        self._claims = {}
        for entry in (*self._named, *self._exact.values(), *(entry for _, entry in self._patterns), self._default):
            mx = entry.behaviour().dns.mx
            for exchange in () if isinstance(mx, int) else map(Exchange.parse, mx):
                if exchange.host != "." and "{domain}" not in exchange.host:
                    self._claims.setdefault(exchange.host, (entry, exchange.state))

    # --- hosts -----------------------------------------------------------------------------------------------------

    def locate(self, name: str) -> tuple[Entry, str, str]:
        """The entry, the site and the state of a host by its name."""
        claim = self._claims.get(name)
        if claim is not None:
            entry = self._exact.get(name, claim[0])
            return entry, claim[0].name, claim[1]
        parent = name
        while "." in parent:
            parent = parent.partition(".")[2]
            for exchange in self.exchanges(parent):
                if exchange.host == name:
                    return self._exact.get(name) or self.entry(parent), parent, exchange.state
        return self.entry(name), name, "up"

    def host(self, name: str) -> Host:
        """The host of that name, which gets its address now if it is new. Beyond the limit it is the home host."""
        host = self._hosts.get(name)
        if host is not None:
            return host
        if name in (HOME, HOME_IPV6):
            entry, site, state, address = self.entry(name), name, "up", name
        elif len(self._hosts) >= self._limit:
            return self.host(HOME)
        else:
            entry, site, state = self.locate(name)
            address = self._free_address(name)
        shared = name in self._claims or name in (HOME, HOME_IPV6)
        host = Host(name, address, site, state, entry.conduct(), self.ledger.site(site),
                    None if shared else self.ledger.domain(site))
        self._hosts[name] = self._addresses[address] = host
        self.on_host(host)
        return host

    def host_at(self, address: str) -> Host | None:
        """The host that lives at an address."""
        return self._addresses.get(address)

    @property
    def hosts(self) -> list[Host]:
        """All hosts that have an address."""
        return list(self._hosts.values())

    def _free_address(self, name: str) -> str:
        number = zlib.crc32(name.encode())
        while True:
            number &= 0x3FFFFF
            address = f"127.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
            if address not in self._addresses:
                return address
            number += 1

    # --- change ----------------------------------------------------------------------------------------------------

    def set(self, name: str, personality: Personality) -> None:
        """Give a domain, a pattern, a host or `default` a personality, whose clock starts now."""
        entry = Entry(name, personality, self.clock(), self.clock)
        if name == "default":
            self._default = entry
        elif "*" in name:
            kept = [(pattern, old) for pattern, old in self._patterns if old.name != name]
            self._patterns = [(compile_pattern(translate(name)), entry), *kept]
        else:
            self._exact[name] = entry
        self.refresh()

    def refresh(self) -> None:
        """Apply what holds now: to domains at their next recipient, to hosts and their sockets at once."""
        self._refreshed = self.clock()
        self._domains.clear()
        self._claim()
        for host in self.hosts:
            if host.name in (HOME, HOME_IPV6):
                entry = self.entry(host.name)
            else:
                entry, _, host.state = self.locate(host.name)
            host.conduct = entry.conduct()
            self.on_host(host)
        for callback in self.on_change:
            callback()

    def next_change(self) -> float | None:
        """When `refresh` is due next, by the clock. It may be past: what changed while one was under way."""
        entries = (self._default, *self._named, *self._exact.values(), *(entry for _, entry in self._patterns))
        return min((at for entry in entries if (at := entry.next_change(self._refreshed)) is not None), default=None)


def _domain_name(octets: bytes) -> str:
    """A domain of an address as the settings have it: lower case, A-labels where there are such."""
    text = octets.decode("utf-8", "replace").lower()
    if text.isascii():
        return text
    try:
        return parse_name(text)
    except ValueError:
        return text
