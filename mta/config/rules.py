"""Contradictions between options that are each correct alone, and rules that can never take effect.

`contradictions` gives one (path, message) per finding; the path is what the operator should look at. A rule is left
out when an option it compares is itself faulty.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias, TypeVar

from mta.config import access_rules, shaping_rules
from mta.config.checks import CheckChanges, changed, uri_fault
from mta.config.hosts import Endpoint, Network
from mta.config.problems import OptionPath, path_text
from mta.config.schema import Config, Retry, SmtpIn
from mta.config.units import Duration, format_duration, format_size

Finding: TypeAlias = tuple[OptionPath, str]
_T = TypeVar("_T")

# A default that is written out does no harm where it has no effect.
_RETRY, _SMTP = Retry(), SmtpIn()

# Unix socket addresses end at 107 bytes (unix(7)); the longest name that is put into the runtime directory has 17.
MAX_RUN_BYTES = 107 - len("/worker-255.nudge")

_PRIVATE = ipaddress.IPv6Network("fc00::/7")
# IPv6 networks that hold all of IPv4: IPv4-mapped (RFC 4291 2.5.5.2) and NAT64 (RFC 6052 2.1).
_IPV4_IN_IPV6 = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))


def contradictions(
    config: Config, given: Mapping[OptionPath, tuple[int, int]], faulty: Iterable[OptionPath]
) -> Iterator[Finding]:
    """What does not fit together. `given` holds the paths that the file sets, `faulty` those already reported."""
    view = _View(given, set(faulty))
    yield from _listeners(config, view)
    yield from access_rules.contradictions(config, view)
    yield from _directories(config, view)
    yield from _limits(config, view)
    yield from _checks(config, view)
    yield from _delivery(config, view)
    yield from _pools(config, view)
    yield from _routes(config, view)
    yield from _times(config, view)
    yield from shaping_rules.contradictions(config, set(given), view.faulty)


class _View:
    """Which options may be compared."""

    def __init__(self, given: Mapping[OptionPath, tuple[int, int]], faulty: set[OptionPath]) -> None:
        self.given = given
        self.faulty = faulty

    def sound(self, *paths: OptionPath) -> bool:
        """Whether none of these options was reported, nor a section around one."""
        return not any(path[:length] in self.faulty for path in paths for length in range(1, len(path) + 1))

    def items(self, path: OptionPath, items: tuple[_T, ...]) -> Iterator[tuple[int, _T]]:
        """The items of the list at `path` that were not reported, with their positions."""
        if self.sound(path):
            yield from (pair for pair in enumerate(items) if (*path, pair[0]) not in self.faulty)

    def first_given(self, *paths: OptionPath) -> OptionPath | None:
        """The first of these that the file sets, if all are sound."""
        if not self.sound(*paths):
            return None
        return next((path for path in paths if path in self.given), None)


def _listeners(config: Config, view: _View) -> Iterator[Finding]:
    seen: list[tuple[int, Endpoint]] = []
    for index, listener in view.items(("listeners",), config.listeners):
        here: OptionPath = ("listeners", index)
        networks = [network for _, network in view.items((*here, "relay_from"), listener.relay_from)]
        for network in wide_networks(networks):
            yield (*here, "relay_from"), (
                f"{network} is much of the Internet and makes an open relay, which is soon used by everybody who sends "
                "spam; expected the networks of your own clients"
            )
        if not view.sound((*here, "smtp")):
            continue
        clash = next((number for number, endpoint in seen if _same_port(endpoint, listener.smtp)), None)
        if clash is not None:
            other = config.listeners[clash].smtp
            yield (*here, "smtp"), f"{listener.smtp} is taken already by listeners[{clash}], {other}"
        seen.append((index, listener.smtp))


def wide_networks(networks: Iterable[Network]) -> list[str]:
    """Those networks, once adjacent ones are joined, that are too wide to be one's own: above IPv4 /8 or IPv6 /17."""
    v4 = [network for network in networks if isinstance(network, ipaddress.IPv4Network)]
    v6 = [network for network in networks if isinstance(network, ipaddress.IPv6Network)]
    wide: list[str] = []
    for network in v6:
        for embedding in _IPV4_IN_IPV6:
            if network.subnet_of(embedding):
                v4.append(ipaddress.IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96)))
            elif network.supernet_of(embedding):
                wide.append(str(network))
    wide += [str(joined) for joined in ipaddress.collapse_addresses(v4) if joined.prefixlen < 8]
    wide += [
        str(joined) for joined in ipaddress.collapse_addresses(v6)
        if joined.prefixlen < 17 and not joined.subnet_of(_PRIVATE)
    ]
    return list(dict.fromkeys(wide))


def _same_port(one: Endpoint, other: Endpoint) -> bool:
    """Whether both cannot be listened on at once."""
    if one.is_unix or other.is_unix:
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    first, second = ipaddress.ip_address(one.host), ipaddress.ip_address(other.host)
    return first.version == second.version and (first == second or first.is_unspecified or second.is_unspecified)


def _directories(config: Config, view: _View) -> Iterator[Finding]:
    if view.sound(("run",)) and len(config.run.encode()) > MAX_RUN_BYTES:
        yield ("run",), f"too long for the names of the sockets in it, expected at most {MAX_RUN_BYTES} bytes"
    places: list[tuple[OptionPath, str]] = []
    if view.sound(("spool",)):
        places.append((("spool",), config.spool))
    if view.sound(("run",)):
        places.append((("run",), config.run))
    shards = os.path.join(config.spool, "shards")
    for index, pickup in view.items(("pickup",), config.pickup):
        path: OptionPath = ("pickup", index, "directory")
        if not view.sound(path):
            continue
        if _inside(pickup.directory, shards):
            yield path, f"{pickup.directory} is where the queue is kept, expected a directory of its own"
        else:
            places.append((path, pickup.directory))
    for number, (path, directory) in enumerate(places):
        for other_path, other in places[:number]:
            if directory == other:
                yield path, f"{directory} is {path_text(other_path)} already, expected a directory of its own"
            elif path[0] == other_path[0] == "pickup" and (_inside(directory, other) or _inside(other, directory)):
                yield path, f"{directory} and {path_text(other_path)}, {other}, are one inside the other"


def _inside(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def _limits(config: Config, view: _View) -> Iterator[Finding]:
    smtp = config.smtp
    path = view.first_given(("smtp", "sessions_per_client"))
    if path and smtp.sessions < smtp.sessions_per_client != _SMTP.sessions_per_client \
            and view.sound(("smtp", "sessions")):
        yield path, f"{smtp.sessions_per_client} can never be reached, smtp.sessions is {smtp.sessions}"
    path = view.first_given(("memory", "window"), ("memory", "deliveries"))
    if path and config.memory.window > config.memory.deliveries:
        yield path, (
            f"memory.window ({config.memory.window}), one queue's part, is above memory.deliveries "
            f"({config.memory.deliveries}), that of all queues"
        )
    path = view.first_given(("memory", "receiving"), ("smtp", "message_size"))
    if path and config.memory.receiving < smtp.message_size:
        yield path, (
            f"memory.receiving ({format_size(config.memory.receiving)}), for all sessions, is below smtp.message_size "
            f"({format_size(smtp.message_size)}), which one message may have"
        )


def _checks(config: Config, view: _View) -> Iterator[Finding]:
    places: list[tuple[OptionPath, CheckChanges | None]] = [
        (("checks",), None),
        *((("tenants", name, "checks"), one.checks) for name, one in config.tenants.items()),
        *((("listeners", index, "checks"), one.checks) for index, one in view.items(("listeners",), config.listeners)),
        *((("pickup", index, "checks"), one.checks) for index, one in view.items(("pickup",), config.pickup)),
        *((("users", name, "checks"), one.checks) for name, one in config.users.items()),
    ]
    for path, changes in places:
        rules = changed(config.checks, changes)
        uri = view.first_given((*path, "unsubscribe_uri"))
        if uri and rules.unsubscribe_uri is not None:
            fault = uri_fault(rules.unsubscribe_uri)
            if fault:
                yield uri, fault
        adds = view.first_given((*path, "unsubscribe"))
        if adds and rules.unsubscribe == "add" and not rules.unsubscribe_uri and view.sound((*path, "unsubscribe_uri")):
            yield adds, "add has nothing to add without unsubscribe_uri"
        foreign = view.first_given((*path, "foreign_from"))
        if foreign and changes is not None and changes.foreign_from is not None and not rules.from_domains \
                and view.sound((*path, "from_domains")):
            yield foreign, "has no effect without from_domains"
        if changes is not None and changes.field_size is not None and changes.field_size > rules.header_size \
                and view.sound((*path, "field_size"), (*path, "header_size"), ("checks", "header_size")):
            yield (*path, "field_size"), (f"{format_size(changes.field_size)} is above header_size "
                                          f"({format_size(rules.header_size)}), of which it is a part")
    size = view.first_given(("checks", "field_size"), ("checks", "header_size"))
    if size and config.checks.field_size > config.checks.header_size:
        yield size, (f"checks.field_size ({format_size(config.checks.field_size)}) is above checks.header_size "
                     f"({format_size(config.checks.header_size)}), of which it is a part")


def _delivery(config: Config, view: _View) -> Iterator[Finding]:
    for name, source in config.sources.items():
        families = config.shaping.effective(name).families
        for version, local in (("ipv4", source.ipv4), ("ipv6", source.ipv6)):
            path = view.first_given(("sources", name, version))
            if not path or local is None:
                continue
            if {version, families} == {"ipv4", "ipv6"}:
                yield path, f"{local} can never be used, shaping uses only {families} from it"
            address = ipaddress.ip_address(local)
            if address.is_unspecified or address.is_multicast:
                yield path, f"nothing can be sent from {local}, expected an address of this host"
        path = view.first_given(("sources", name, "tls_key"))
        if path and source.tls_certificate is None and view.sound(("sources", name, "tls_certificate")):
            yield path, "has no effect without tls_certificate"
        path = view.first_given(("sources", name, "proxy"))
        if path and source.proxy is not None and source.proxy.kind == "haproxy" \
                and source.ipv4 is None and source.ipv6 is None:
            yield path, "a haproxy is told the address to send from, expected ipv4 or ipv6 beside it"


def _pools(config: Config, view: _View) -> Iterator[Finding]:
    for name, pool in config.pools.items():
        path: OptionPath = ("pools", name)
        if not view.sound(path):
            continue
        for source in pool:
            if source not in config.sources and view.sound(("sources",)):
                yield (*path, source), f"there is no source {source} in sources"
        if not any(pool.values()):
            yield path, "no source of this pool has a weight, nothing could be sent from it"
    places: list[tuple[OptionPath, str | None]] = [
        (("labels", "default", "pool"), config.labels.default.pool),
        *((("labels", "senders", domain, "pool"), one.pool) for domain, one in config.labels.senders.items()),
        *((("tenants", name, "pool"), tenant.pool) for name, tenant in config.tenants.items()),
        *((("listeners", index, "labels", "pool"), listener.labels.pool)
          for index, listener in view.items(("listeners",), config.listeners)),
        *((("pickup", index, "labels", "pool"), one.labels.pool)
          for index, one in view.items(("pickup",), config.pickup)),
    ]
    for path, wanted in places:
        if wanted is not None and wanted not in config.pools and view.sound(path, ("pools",)):
            yield path, f"there is no pool {wanted} in pools"
    fields: dict[str, OptionPath] = {}
    for label in ("tenant", "campaign", "pool", "priority"):
        for index, field in view.items(("labels", label), getattr(config.labels, label)):
            other = fields.setdefault(field.lower(), ("labels", label, index))
            if other != ("labels", label, index):
                yield ("labels", label, index), f"{field} is {path_text(other)} already"


def _routes(config: Config, view: _View) -> Iterator[Finding]:
    listening = [
        (index, listener.smtp) for index, listener in view.items(("listeners",), config.listeners)
        if view.sound(("listeners", index, "smtp"))
    ]
    for key, route in config.routes.items():
        for index, relay in view.items(("routes", key, "relay"), route.relay):
            path: OptionPath = ("routes", key, "relay", index)
            own = next((number for number, endpoint in listening if _reaches(relay, endpoint)), None)
            if own is not None:
                yield path, f"{relay} is our own listeners[{own}], mail would go round in a circle"
            version = "ipv6" if ":" in relay.host else "ipv4" if relay.host.replace(".", "").isdigit() else ""
            families = config.shaping.effective(domain="" if key == "*" else key).families
            if {version, families} == {"ipv4", "ipv6"}:
                yield path, f"{relay} can never be reached, shaping uses only {families} for it"


def _reaches(relay: Endpoint, listener: Endpoint) -> bool:
    """Whether connecting to `relay` arrives at `listener`, as far as that can be known without asking anybody."""
    if listener.is_unix or relay.port != listener.port:
        return False
    if relay.host == listener.host:
        return True
    host = {"localhost": "127.0.0.1"}.get(relay.host, relay.host)
    bound = ipaddress.ip_address(listener.host)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.version == bound.version and (address == bound or (bound.is_unspecified and address.is_loopback))


def _times(config: Config, view: _View) -> Iterator[Finding]:
    smtp, dns, retry, bounces = config.smtp, config.dns, config.retry, config.bounces
    path = view.first_given(("smtp", "timeouts", "data"), ("smtp", "timeouts", "transaction"))
    if path and smtp.timeouts.data > smtp.timeouts.transaction:
        yield path, _above("smtp.timeouts.data", smtp.timeouts.data,
                           "smtp.timeouts.transaction", smtp.timeouts.transaction)
    path = view.first_given(("dns", "min_ttl"), ("dns", "max_ttl"))
    if path and dns.min_ttl > dns.max_ttl:
        yield path, _above("dns.min_ttl", dns.min_ttl, "dns.max_ttl", dns.max_ttl)
    if retry.schedule:
        for name in ("first", "factor", "cap"):
            unused = view.first_given(("retry", name))
            if unused and getattr(retry, name) != getattr(_RETRY, name):
                yield unused, "has no effect, retry.schedule is given and replaces it"
    else:
        path = view.first_given(("retry", "cap"), ("retry", "first"))
        if path and retry.cap < retry.first:
            yield path, _above("retry.first", retry.first, "retry.cap", retry.cap)
    path = view.first_given(("retry", "site_cap"), ("retry", "site_first"))
    if path and retry.site_cap < retry.site_first:
        yield path, _above("retry.site_first", retry.site_first, "retry.site_cap", retry.site_cap)
    waits, name = (retry.schedule, "retry.schedule[0]") if retry.schedule else ((retry.first,), "retry.first")
    path = view.first_given(("expires",), ("retry", "schedule", 0), ("retry", "first"))
    if path and config.expires <= waits[0]:
        yield path, (f"mail expires after {format_duration(config.expires)}, before the first retry "
                     f"({name}, {format_duration(waits[0])}): nothing would be tried twice")
    path = view.first_given(("bounces", "delay_warning"))
    if path and bounces.delay_warning is not None:
        if bounces.delay_warning >= config.expires and view.sound(("expires",)):
            yield path, (f"no mail waits {format_duration(bounces.delay_warning)}, it expires after "
                         f"{format_duration(config.expires)}")
        if not bounces.send and view.sound(("bounces", "send")):
            yield path, "has no effect, bounces.send is off"


def _above(name: str, value: Duration, limit_name: str, limit: Duration) -> str:
    return f"{name} ({format_duration(value)}) is above {limit_name} ({format_duration(limit)})"
