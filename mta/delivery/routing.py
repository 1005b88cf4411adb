"""Where the mail of a domain goes: from the domain to a site and its hosts, from a host to addresses.

The rules are those of RFC 5321 5 and RFC 7505, with what Postfix learned in practice. Two principles decide doubtful
cases. Mail fails for good only on the word of the domain itself (it does not exist, it wants no mail, it has no way
in, its way leads back to us); whatever a resolver, a network or our own configuration is to blame for, waits. And
whatever is left out is said: in the failure's text, in `Route.notes`, and by `mta dns`.

| the domain has                                  | result                                                    |
|-------------------------------------------------|-----------------------------------------------------------|
| an entry in `routes`, or `*` has                | its relays in their order; MX is not asked                |
| an address for a name, `[192.0.2.1]`            | that address                                              |
| MX records                                      | those hosts; never the domain's own address besides       |
| only `MX 0 .`                                   | 556 5.1.10 (RFC 7505)                                     |
| us among its MX hosts                           | the hosts preferred to us; none: 550 5.4.6                |
| no MX, but an address                           | that address                                              |
| neither, proven by the SOA in the answers       | 550 5.4.4                                                 |
| neither, by empty answers (RFC 2308 2.2)        | 451 4.4.4: some resolver's fault, for all we know         |
| no existence (NXDOMAIN), or an impossible name  | 550 5.1.2                                                 |
| servers that fail (SERVFAIL, REFUSED, silence)  | 451 4.4.3, also when only the MX question fails           |
| MX hosts without a usable address               | a route; no host of it has addresses: 451 4.4.4 or 4.4.3  |

No sockets of its own; `route` and `addresses` wait for the resolver, so they are for greenlets.
"""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol, overload

from mta.config import schema
from mta.config.hosts import Endpoint, parse_domain
from mta.config.providers import Providers
from mta.config.shaping import Shaping
from mta.delivery.dns_answer import Answer
from mta.delivery.dns_wire import MailHost, RecordType
from mta.delivery.hostset import host_set
from mta.delivery.ourselves import AF_INET, AF_INET6, Ourselves, family_of, is_local_address, is_loopback

FOREVER: Final = float("inf")
PROVIDERS_KEPT: Final = 50_000  # domains
LOOPBACK: Final = "loopback, and delivery.allow_loopback is off"
SKIPPED: Final = "of shaping's skip_hosts"
ONLY_IPV4: Final = "shaping's families is ipv4"
ONLY_IPV6: Final = "shaping's families is ipv6"


class Host(NamedTuple):
    """One host that takes mail. `name` is a DNS name or an address; `fixed`: named by the configuration, not by DNS."""

    name: str
    port: int
    preference: int  # lower is better; among equals the order is random for each connection
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """Where a domain's mail goes. Domains with the same `site` share its connections."""

    site: str
    hosts: tuple[Host, ...]  # by preference, each name once
    expires: float  # monotonic seconds; ask again then
    fixed: bool  # by the configuration, not by MX
    notes: tuple[str, ...] = ()  # what was left out and why, for operators
    provider: str = ""  # whose site it is; "" when that of none
    provider_why: str = ""  # what tells so, for operators
    authentic: bool = False  # nobody else can have named these hosts: DNSSEC says so, or no DNS was asked for them


@dataclass(frozen=True, slots=True)
class RouteFailure:
    """Why there is no way now (`permanent`: never) and how that is said in a reply."""

    permanent: bool
    code: int
    enhanced: str
    text: str
    expires: float  # monotonic seconds; ask again then


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a host can be reached: (family, address) in the order to try, newly drawn at every call."""

    addresses: list[tuple[int, str]]
    failure: str  # why there are none; empty when there are some
    enhanced: str  # of a failure: 4.4.3 when servers failed, 4.4.4 when this is what DNS says; never permanent
    expires: float  # monotonic seconds
    skipped: tuple[str, ...] = ()  # addresses left out, each with its reason


class Resolver(Protocol):
    """What is needed of `mta.delivery.dns.Resolver`."""

    @overload
    def query(self, name: str, record_type: Literal["MX"]) -> Answer[MailHost]: ...

    @overload
    def query(self, name: str, record_type: Literal["A", "AAAA"]) -> Answer[str]: ...

    def knows(self, name: str, record_type: RecordType) -> bool:
        """Whether a `query` would not wait."""

    def prefetch(self, name: str, record_type: RecordType) -> None:
        """Begin a lookup without waiting for it."""

    @property
    def shortage(self) -> str:
        """What this machine lacks to ask; empty when nothing."""


class Router:
    """Routes by one configuration; made anew when it changes."""

    def __init__(
        self, config: schema.Config, resolver: Resolver, is_local: Callable[[str], bool] | None = None
    ) -> None:
        """`is_local` tells whether an address is one of this machine; by default the kernel is asked."""
        self._resolver = resolver
        self._allow_loopback = config.delivery.allow_loopback
        self._shaping = config.shaping
        self._providers = Providers(config.shaping)
        self._known: OrderedDict[str, str] = OrderedDict()  # providers by domain
        self._routes = config.routes
        self._ourselves = Ourselves(config, is_local or is_local_address)

    @property
    def shortage(self) -> str:
        """Why nothing can be looked up now, for a lack of this machine; empty when it can."""
        return self._resolver.shortage

    def provider_of(self, domain: str) -> str | None:
        """The provider of the site of `domain`, as its route last said; None when that is not known."""
        return self._known.get(domain)

    # -- from a domain to hosts ----------------------------------------------------------------------------------

    def is_at_hand(self, domain: str) -> bool:
        """Whether `route` need not ask which hosts the domain has: it knows, or the configuration says."""
        try:
            name = parse_domain(domain)
        except ValueError:
            return True
        rule = self._routes.get(name) or self._routes.get("*")
        return (rule is not None and not rule.mx) or name.startswith("[") or self._resolver.knows(name, "MX")

    def route(self, domain: str) -> Route | RouteFailure:
        """The way for mail to `domain`, a recipient's (U-labels and address literals too). Waits for DNS."""
        found = self._route(domain)
        if isinstance(found, Route):
            self._known[domain] = found.provider
            self._known.move_to_end(domain)
            if len(self._known) > PROVIDERS_KEPT:
                self._known.popitem(last=False)
        return found

    def _route(self, domain: str) -> Route | RouteFailure:
        try:
            name = parse_domain(domain)
        except ValueError as error:
            return RouteFailure(True, 550, "5.1.2", f"domain {domain[:100]} cannot exist: {error}", FOREVER)
        rule = self._routes.get(name) or self._routes.get("*")
        if rule is not None and not rule.mx:
            return self._by_relay(name, rule.relay)
        if name.startswith("["):
            return self._by_literal(name)
        return self._by_mx(name)

    def _by_relay(self, domain: str, relays: Sequence[Endpoint]) -> Route | RouteFailure:
        hosts = []
        notes = []
        for preference, relay in enumerate(relays):
            if self._ourselves.listens_at(relay.host, relay.port):
                notes.append(f"relay {relay} is skipped: it is this MTA itself")
            else:
                hosts.append(Host(relay.host, relay.port, preference, fixed=True))
        if not hosts:  # our own mistake: the mail waits until it is mended
            return RouteFailure(
                False, 451, "4.3.5", f"every relay in the route for {domain} is this MTA itself", FOREVER
            )
        site = "relay:" + ",".join(map(str, relays))
        # The domain tells nothing about who stands behind a relay.
        provider, why = self._provider("", hosts[:1])
        return Route(site, tuple(hosts), FOREVER, True, tuple(notes), provider, why, authentic=True)

    def _by_literal(self, literal: str) -> Route | RouteFailure:
        """RFC 5321 4.1.3: `[192.0.2.1]`, `[ipv6:2001:db8::1]`."""
        [host], provider, why = self._with_port(literal, [(literal[1:-1].removeprefix("ipv6:"), 0)])
        if self._ourselves.listens_at(host.name, host.port):
            return _loop(literal, host.name, FOREVER)
        shaping = self._shaping.effective("", provider, literal)
        condemned = self._prohibited(literal, [host], shaping, FOREVER)
        if condemned is not None:
            return condemned
        found = self.addresses(host, shaping)
        if found.failure:
            return RouteFailure(False, 451, found.enhanced, found.failure, found.expires)
        return Route(literal, (host,), FOREVER, False, (), provider, why, authentic=True)

    def _by_mx(self, domain: str) -> Route | RouteFailure:
        answer = self._resolver.query(domain, "MX")
        if answer.kind == "failure":
            text = f"MX of {domain} cannot be looked up: {answer.detail}"
            return RouteFailure(False, 451, "4.4.3", text, answer.expires)
        if answer.kind == "nxdomain":
            return RouteFailure(True, 550, "5.1.2", f"domain {domain} does not exist", answer.expires)
        if answer.kind == "nodata":
            return self._by_address(domain, answer)
        listed = [(record.host, record.preference) for record in answer.records if record.host != "."]
        if not listed:
            return RouteFailure(True, 556, "5.1.10", f"domain {domain} takes no mail (null MX)", answer.expires)
        notes = []
        if len(listed) < len(answer.records):
            notes.append("a null MX beside other MX hosts is ignored (RFC 7505 3)")
        literals = [name for name, _ in listed if family_of(name) is not None]
        if literals:
            notes.append(f"an address for a name is no proper MX host, but is tried: {', '.join(literals[:5])}")
        return self._without_us(domain, listed, answer.expires, notes, answer.authentic)

    def _by_address(self, domain: str, no_mx: Answer[MailHost]) -> Route | RouteFailure:
        """No MX: the domain itself is the host, if it has an address (RFC 5321 5.1)."""
        [host], provider, _ = self._with_port(domain, [(domain, 0)])
        found = self.addresses(host, self._shaping.effective("", provider, domain))
        expires = min(no_mx.expires, found.expires)
        if found.failure:
            families: tuple[Literal["A", "AAAA"], ...] = ("A", "AAAA")  # one may be off, but the word is the domain's
            answers: list[Answer[str]] = [self._resolver.query(domain, family) for family in families]
            if {answer.kind for answer in answers} <= {"nodata", "nxdomain"}:
                text = f"domain {domain} has neither MX nor address records"
                if not (no_mx.proven and all(answer.proven for answer in answers)):
                    text = f"{text}, says the resolver, but the SOA that would prove it is not in its answer"
                    return RouteFailure(False, 451, "4.4.4", text, expires)
                return RouteFailure(True, 550, "5.4.4", text, expires)
            return RouteFailure(False, 451, found.enhanced, found.failure, expires)
        return self._without_us(domain, [(domain, 0)], expires, ["no MX: its own address is used"], no_mx.authentic)

    def _with_port(self, domain: str, listed: Sequence[tuple[str, int]]) -> tuple[list[Host], str, str]:
        """The hosts of these names and preferences, their provider, and what tells it."""
        best = min(preference for _, preference in listed)
        usual = [Host(name, 0, preference) for name, preference in listed]
        provider, why = self._provider(domain, [host for host in usual if host.preference == best])
        port = self._shaping.effective("", provider, domain).port
        return [host._replace(port=port) for host in usual], provider, why

    def _provider(self, domain: str, best: Sequence[Host]) -> tuple[str, str]:
        """The provider of the site with these hosts of the best preference, and what tells so."""
        found = self._providers.find([host.name for host in best], domain, lambda: self._all_addresses(best))
        return (found.provider, found.why) if found is not None else ("", "")

    def _all_addresses(self, hosts: Iterable[Host]) -> list[str]:
        """All addresses of `hosts`, whether or not they are connected to."""
        found: list[str] = []
        for host in hosts:
            if family_of(host.name) is not None:
                found.append(host.name)
                continue
            self._resolver.prefetch(host.name, "AAAA")
            found += self._resolver.query(host.name, "A").records
            found += self._resolver.query(host.name, "AAAA").records
        return found

    def _prohibited(self, domain: str, hosts: Iterable[Host], shaping: Shaping, expires: float) -> RouteFailure | None:
        """The failure of a domain one of whose hosts is prohibited."""
        if not shaping.prohibited_hosts:
            return None
        prohibited = host_set(shaping.prohibited_hosts)
        for host in hosts:
            what = host.name if prohibited.has_name(host.name) else ""
            for address in [] if what else self._all_addresses([host]):
                if prohibited.has_address(address):
                    what = f"{host.name} [{address}]"
            if what:
                text = f"MX host {what} of {domain} is prohibited by our configuration (shaping prohibited_hosts)"
                return RouteFailure(True, 550, "5.4.4", text, expires)
        return None

    def _without_us(
        self, domain: str, listed: Sequence[tuple[str, int]], expires: float, notes: list[str],
        authentic: bool,
    ) -> Route | RouteFailure:
        """Leave out ourselves and every host that is no better (RFC 5321 5.1)."""
        hosts, provider, why = self._with_port(domain, listed)
        condemned = self._prohibited(domain, hosts, self._shaping.effective("", provider, domain), expires)
        if condemned is not None:
            return condemned
        if self._ourselves.take_mail:
            for host in hosts:
                if not self._ourselves.is_named(host.name, host.port):
                    self._resolver.prefetch(host.name, "A")
                    self._resolver.prefetch(host.name, "AAAA")
            for host in hosts:
                ours, until = self._is_us(host)
                expires = min(expires, until)
                if ours:
                    better = [other for other in hosts if other.preference < host.preference]
                    if not better:
                        return _loop(domain, host.name, expires)
                    notes.append(f"MX host {host.name} is this MTA: it is skipped, and those that are no better")
                    hosts = better
                    break
        return Route(site_name(hosts), tuple(hosts), expires, False, tuple(notes), provider, why, authentic)

    def _is_us(self, host: Host) -> tuple[bool, float]:
        """Whether `host` is this MTA, and until when that is known."""
        if self._ourselves.is_named(host.name, host.port):
            return True, FOREVER
        if family_of(host.name) is not None:
            return self._ourselves.listens_at(host.name, host.port), FOREVER
        a, aaaa = self._resolver.query(host.name, "A"), self._resolver.query(host.name, "AAAA")
        ours = any(self._ourselves.listens_at(address, host.port) for address in (*a.records, *aaaa.records))
        return ours, min(a.expires, aaaa.expires)

    # -- from a host to addresses --------------------------------------------------------------------------------

    def addresses(self, host: Host, shaping: Shaping) -> Addresses:
        """Where `host` is reached: each family in random order, the families in turn. Waits for DNS."""
        if shaping.skip_hosts and host_set(shaping.skip_hosts).has_name(host.name):
            return Addresses([], f"{_who(host)} is passed over: {SKIPPED}", "4.4.4", FOREVER)
        if family_of(host.name) is not None:
            return self._usable(host, shaping, [host.name], [], FOREVER)
        answers: list[Answer[str]] = []
        if shaping.families != "ipv4":
            self._resolver.prefetch(host.name, "AAAA")
        if shaping.families != "ipv6":
            answers.append(self._resolver.query(host.name, "A"))
        if shaping.families != "ipv4":
            answers.append(self._resolver.query(host.name, "AAAA"))
        expires = min(answer.expires for answer in answers)
        found = [address for answer in answers for address in answer.records]
        return self._usable(host, shaping, found, answers, expires)

    def _usable(self, host: Host, shaping: Shaping, found: Iterable[str], answers: Sequence[Answer[str]],
                expires: float) -> Addresses:
        """Those of `found` that may be connected to, in the order to try."""
        by_family: dict[int, list[str]] = {AF_INET: [], AF_INET6: []}
        skipped: dict[str, str] = {}
        for text in found:
            address = text[7:] if text.startswith("::ffff:") and "." in text else text  # v4-mapped (RFC 4291 2.5.5.2)
            reason = self._refuses(address, host, shaping)
            if reason:
                skipped[text] = reason
            else:
                by_family[AF_INET6 if ":" in address else AF_INET].append(address)
        ipv4, ipv6 = by_family[AF_INET], by_family[AF_INET6]
        for addresses in (ipv4, ipv6):
            if len(addresses) > 1:
                random.shuffle(addresses)
        failure, enhanced = ("", "") if ipv4 or ipv6 else self._no_address(host, shaping, answers, skipped)
        reasons = tuple(f"{text}: {why}" for text, why in skipped.items())
        return Addresses(_in_turn(ipv4, ipv6), failure, enhanced, expires, reasons)

    def _refuses(self, address: str, host: Host, shaping: Shaping) -> str:
        """Why `address` is not connected to; empty when it may be."""
        if ":" in address:
            if shaping.families == "ipv4":
                return ONLY_IPV4
            if address.startswith("ff"):
                return "multicast"
            if address.startswith("fe") and address[2:3] in ("8", "9", "a", "b"):
                return "link-local"
        else:
            if shaping.families == "ipv6":
                return ONLY_IPV6
            first = int(address.partition(".")[0])
            if first >= 224:
                return "multicast or reserved"
            if first == 0 and address != "0.0.0.0":
                return "of no host"
        if is_loopback(address) and not host.fixed and not self._allow_loopback:
            return LOOPBACK
        if shaping.skip_hosts and host_set(shaping.skip_hosts).has_address(address):
            return SKIPPED
        return ""

    def _no_address(self, host: Host, shaping: Shaping, answers: Sequence[Answer[str]],
                    skipped: dict[str, str]) -> tuple[str, str]:
        """Why there is no address: text and enhanced code. A failing server weighs more than what others said."""
        failing = [answer for answer in answers if answer.kind == "failure"]
        who = _who(host)
        if failing:
            return f"the address of {who} cannot be looked up: {failing[0].detail}", "4.4.3"
        if skipped:
            reasons = ", ".join(dict.fromkeys(skipped.values()))
            if family_of(host.name) is not None:
                return f"address {host.name} is not connected to: {reasons}", "4.4.4"
            listed = ", ".join(list(skipped)[:3]) + (", ..." if len(skipped) > 3 else "")
            if all(why == LOOPBACK for why in skipped.values()):
                return f"{who} resolves only to loopback addresses ({listed}); delivery.allow_loopback is off", "4.4.4"
            return f"{who} resolves only to unusable addresses ({listed}): {reasons}", "4.4.4"
        if all(answer.kind == "nxdomain" for answer in answers):
            return f"{who} does not exist", "4.4.4"
        only = {"ipv4": f" ({ONLY_IPV4})", "ipv6": f" ({ONLY_IPV6})"}.get(shaping.families, "")
        return f"{who} has no address{only}", "4.4.4"


def _who(host: Host) -> str:
    return f"{'relay' if host.fixed else 'MX host'} {host.name}"


def site_name(hosts: Sequence[Host]) -> str:
    """The name of the set of MX hosts: the same for all domains with the same hosts in the same order.

    The preferences count by their order only: 10, 20 and 1, 5 are the same.
    """
    if len(hosts) == 1:
        return hosts[0].name
    ranks = {preference: rank for rank, preference in enumerate(sorted({host.preference for host in hosts}))}
    listed = sorted((ranks[host.preference], host.name) for host in hosts)
    digest = hashlib.blake2s(repr(listed).encode(), digest_size=4).hexdigest()
    return f"{listed[0][1]}+{len(hosts) - 1}~{digest}"


def _loop(domain: str, host: str, expires: float) -> RouteFailure:
    text = f"mail for {domain} loops back to us: its best MX host {host} is this MTA"
    return RouteFailure(True, 550, "5.4.6", text, expires)


def _in_turn(ipv4: list[str], ipv6: list[str]) -> list[tuple[int, str]]:
    """Both families alternately, either one first, so that a broken family costs every second try only."""
    first, second = [(AF_INET, address) for address in ipv4], [(AF_INET6, address) for address in ipv6]
    if random.random() < 0.5:
        first, second = second, first
    both = [address for pair in zip(first, second, strict=False) for address in pair]
    return both + first[len(second) :] + second[len(first) :]
