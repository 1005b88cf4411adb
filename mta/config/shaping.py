"""Shaping: how mail to a destination is treated, in layers, the more specific of which win.

The layers of a path from a source to a site, from the weakest to the strongest: built-in, default, provider, domain,
source, source and provider, source and domain; at each step the shipped file before the configuration, which so wins.
`~` unsets an option: what weaker layers say is forgotten and the built-in value holds. Built in for `retry` and
`expires` is what the top level of the configuration says.

`effective` merges the layers and remembers the result, so that a look is one dictionary hit. It is asked for every
route, path and delivery that fails (hot path: bench S1, S2 by the engine).
"""

# ruff: noqa: RUF009 -- option() makes a dataclass field, as dataclasses.field() does

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeAlias

from mta.config.forms import Name
from mta.config.hosts import Domain, HostOrNetwork, HostPattern, Network
from mta.config.option import option
from mta.config.units import Duration, Rate

Families: TypeAlias = Literal["both", "ipv4", "ipv6", "ipv4-first", "ipv6-first"]
TlsPolicy: TypeAlias = Literal["opportunistic", "required", "off"]
MxOrder: TypeAlias = Literal["preference", "random", "sticky"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryTimeouts:
    """Deadlines per phase of an outgoing session, each for the whole phase (RFC 5321 4.5.3.2)."""

    connect: Duration = option(Duration(15), "TCP connect to one address.")
    greeting: Duration = option(Duration(120), "The `220` after the connect.")
    ehlo: Duration = option(Duration(120), "Answer to EHLO or HELO.")
    starttls: Duration = option(Duration(60), "STARTTLS and the handshake.")
    mail: Duration = option(Duration(300), "Answer to MAIL.")
    rcpt: Duration = option(Duration(300), "Answer to RCPT.")
    data: Duration = option(Duration(120), "The `354` after DATA.")
    block: Duration = option(Duration(180), "The peer takes the next block of content.")
    dot: Duration = option(Duration(600), "The answer after the final dot; a short one makes duplicates.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a deferred delivery is tried again: `schedule`, or `first` x `factor` per attempt up to `cap`."""

    first: Duration = option(Duration(300), "Wait after the first attempt.")
    factor: float = option(2.0, "Each wait is this many times the one before.", min=1.0, max=10.0)
    cap: Duration = option(Duration(14_400), "Longest wait.")
    schedule: tuple[Duration, ...] = option(
        (), "Waits written out; the last one repeats. Replaces `first`, `factor` and `cap`.", example="[5m, 15m, 1h]"
    )
    site_first: Duration = option(
        Duration(60), "Pause after a site as a whole refused or could not be reached; doubles with each failure. "
        "Meanwhile its messages keep their place and their attempt count."
    )
    site_cap: Duration = option(Duration(1800), "Longest such pause.")
    jitter: float = option(0.2, "Share by which a wait varies at random, so that an outage's mail spreads.",
                           min=0.0, max=0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """What is found out about a receiver by its answers, always within the limits of the configuration."""

    enabled: bool = option(
        True, "Whether connections and pace adapt to what the receiver takes. Off: the configured limits hold as they "
        "are.")
    connections_first: int = option(5, "Connections at once to a receiver of which nothing is known yet.", min=1)
    connections_least: int = option(1, "Connections that it is never cut below.", min=1)
    rate_least: Rate | None = option(
        None, "Messages in a time that the pace is never cut below; `off`: as low as the receiver asks for.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """For every destination, unless something more specific says otherwise."""

    connections: int = option(20, "Connections at once from one source to one site, over all workers.", min=1)
    connection_rate: tuple[Rate, ...] = option(
        (), "New connections from one source to one site, over all workers: one rate or several that all hold, each "
        "with a burst if wanted.", example='["2/s, burst 5", 100/min]')
    message_rate: tuple[Rate, ...] = option(
        (), "Messages from one source to one site, over all workers: one rate or several that all hold. They are "
        "spread evenly unless there is a burst.", example='[10/s, "20,000/h"]')
    messages_per_connection: int = option(100, "Messages on one connection before a new one is made.", min=1)
    recipients_per_connection: int | None = option(
        None, "Recipients on one connection before a new one is made; `off`: any number.", min=1)
    recipients_per_message: int = option(100, "Recipients in one transaction.", min=1)
    connection_age: Duration = option(
        Duration(300), "Age after which a connection takes no further message. A limit by messages alone draws mail to "
        "the slowest of several hosts, whose connections last the longest; age does not.")
    idle: Duration = option(Duration(5), "How long a connection with nothing to send stays open.", min=0)
    timeouts: DeliveryTimeouts = option(DeliveryTimeouts, "Deadlines.")
    tls: TlsPolicy = option(
        "opportunistic",
        "STARTTLS: `opportunistic` encrypts where it is offered and asks for no certificate, `required` waits rather "
        "than send in clear, `off` never encrypts.",
    )
    pipelining: bool = option(True, "Use PIPELINING where it is offered.")
    chunking: Literal["auto", "off"] = option(
        "auto", "`auto`: content goes in one chunk, without a round trip for DATA and without dots added, where "
        "CHUNKING is offered; a host that does not bear it gets DATA for an hour. `off`: always DATA.")
    eight_bit: Literal["as-is", "return"] = option(
        "as-is", "8-bit content for hosts that do not offer 8BITMIME: `as-is` sends it all the same, as nearly all "
        "bear it; `return` gives it back to its sender, `5.6.3` (RFC 6152). It is not converted: it may be signed.")
    deliver_by: Literal["required", "handover"] = option(
        "required", "Mail that is to be delivered in time or returned (`BY=...;R`), to hosts that do not offer "
        "DELIVERBY: `required` returns it (RFC 2852), `handover` takes its hand-over to such a host for its delivery.")
    port: int = option(25, "Port of MX hosts; relays have their own.", min=1, max=65_535,
                       destination_only=True)
    families: Families = option(
        "both", "Address families: `both` as they come, the one that failed lately for a host last; `ipv4-first` and "
        "`ipv6-first` prefer one; `ipv4` and `ipv6` use only that.")
    mx: MxOrder = option(
        "preference", "Order of a domain's hosts: `preference` as DNS says, equal ones in random order; `sticky` the "
        "same, but the host that served last goes before its equals; `random` whatever the preference.")
    addresses: int = option(5, "Addresses tried in one attempt to reach a site.", min=1)
    skip_hosts: tuple[HostOrNetwork, ...] = option(
        (), "Hosts that are passed over, by name, pattern or network; mail waits when no other is left.",
        example='[mx3.example.org, "*.slow.example.org", 192.0.2.0/24]')
    prohibited_hosts: tuple[HostOrNetwork, ...] = option(
        (), "Hosts by which a domain condemns its mail: when one of its hosts is of these, by name, pattern or "
        "network, mail to the domain fails, `550 5.4.4`. For the hosts of parked domains.",
        example='["*.parked.example.net", 198.51.100.7]', destination_only=True)
    retry: Retry = option(
        Retry, "Retry schedule. Built in is what `retry` at the top level says; a more specific `first`, `factor` or "
        "`cap` ends a less specific `schedule`.", destination_only=True)
    expires: Duration = option(
        Duration(5 * 86_400), "Age at which undelivered mail is given up. Built in is `expires` at the top level.",
        destination_only=True)
    adaptive: Adaptive = option(Adaptive, "Adaptation to what the receiver takes.")


# --- what one place of the configuration sets ----------------------------------------------------------------------


class Unset(enum.Enum):
    """The value of an option that is unset by `~`."""

    UNSET = "~"


UNSET: Final = Unset.UNSET


class Place(NamedTuple):
    """Where something is written; lines count from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How the sites of a provider are known; one of these is enough."""

    mx: tuple[HostPattern, ...] = option(
        (), "Names of MX hosts, or patterns such as `*.google.com`; the longest pattern that fits wins. All hosts of "
        "the best preference have to be the provider's.", example='["*.google.com", "*.googlemail.com"]')
    domains: tuple[Domain, ...] = option((), "Recipient domains, whatever their MX hosts.", example="[comcast.net]")
    networks: tuple[Network, ...] = option(
        (), "Networks in which all addresses of the hosts of the best preference lie; looked at when neither domain "
        "nor host name tells.", example="[192.0.2.0/24]")


@dataclass(frozen=True, slots=True)
class Layer:
    """What one place of the configuration sets, by the name of the option (`timeouts.connect`), and where."""

    options: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)

    own: ClassVar[tuple[Any, ...]] = ()  # sections whose options this kind has besides those of `Shaping`
    inner: ClassVar[bool] = True  # whether those of `Shaping` that do not hold for sources are options here

    @classmethod
    def of(cls, **options: Any) -> Layer:
        """A layer that sets `options`; sections as `timeouts={"connect": ...}`."""
        flat: dict[str, Any] = {}
        for name, value in options.items():
            if isinstance(value, Mapping):
                flat |= {f"{name}.{inner}": one for inner, one in value.items()}
            else:
                flat[name] = value
        return cls(flat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Limits over everything that the section is about."""

    total_connections: int | None = option(
        None, "Connections at once in all of this together, whatever the source, site or domain; `off`: no such limit.",
        min=1)
    total_message_rate: tuple[Rate, ...] = option(
        (), "Messages in all of this together: one rate or several that all hold.", example="[100/s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfEachSource:
    source_connections: int | None = option(
        None, "Connections at once from each source to all sites of the provider; `off`: no such limit.", min=1)
    source_message_rate: tuple[Rate, ...] = option(
        (), "Messages from each source to all sites of the provider: one rate or several that all hold.",
        example="[20/s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recognised:
    match: Match = option(
        Match, "How the provider's sites are known. What is set here replaces what the shipped file says.")


@dataclass(frozen=True, slots=True)
class DefaultLayer(Layer):
    """For every destination, unless something more specific says otherwise."""


@dataclass(frozen=True, slots=True)
class DomainLayer(Layer):
    """For mail to one domain, which gets connections of its own. Every option of `shaping.default`, and:"""

    own: ClassVar[tuple[Any, ...]] = (Totals,)


@dataclass(frozen=True, slots=True)
class ProviderLayer(Layer):
    """For all sites of one provider. Every option of `shaping.default`, and:"""

    match: Match | None = None  # None: as the shipped file says

    own: ClassVar[tuple[Any, ...]] = (_Recognised, Totals, _OfEachSource)


@dataclass(frozen=True, slots=True)
class SourceDestinationLayer(Layer):
    """For mail from one source to one provider or domain. The options of `shaping.default` without `port`,
    `prohibited_hosts`, `retry` and `expires`, and:"""

    own: ClassVar[tuple[Any, ...]] = (Totals,)
    inner: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Destinations:
    providers: dict[Name, SourceDestinationLayer] = option(dict, "Of mail from this source, by provider.")
    domains: dict[Domain, SourceDestinationLayer] = option(
        dict, "Of mail from this source, by recipient domain, which gets connections of its own from every source.")


@dataclass(frozen=True, slots=True)
class SourceLayer(Layer):
    """For mail from one source. The options of `shaping.default` without `port`, `prohibited_hosts`, `retry` and
    `expires`, and:"""

    providers: dict[str, SourceDestinationLayer] = field(default_factory=dict)
    domains: dict[str, SourceDestinationLayer] = field(default_factory=dict)

    own: ClassVar[tuple[Any, ...]] = (Totals, _Destinations)
    inner: ClassVar[bool] = False


# --- all layers together -------------------------------------------------------------------------------------------


class Origin(NamedTuple):
    """Where a value comes from."""

    layer: str  # `shaping.providers.google`, `retry`; or `built-in`
    place: Place | None  # None: built in

    def __str__(self) -> str:
        return self.layer if self.place is None else f"{self.place}, {self.layer}"


class Said(NamedTuple):
    """The value of an option, or UNSET, and who says so."""

    value: Any
    origin: Origin


class Step(NamedTuple):
    """Layers of the same strength."""

    limit: str  # name of the limit over everything that they are about: `provider:google`; "" for the default
    layers: list[tuple[str, Layer]]  # with their names; the shipped file before the configuration


class Total(NamedTuple):
    """A limit over more than the path, besides the path's own ones, whatever they say.

    Its name is `provider:google`, `domain:example.org`, `source:out1`, or of a source's mail to one of these
    `source:out1>provider:google`; the implicit source has an empty name.
    """

    name: str
    connections: int | None
    rates: tuple[Rate, ...]
    origin: Origin  # of the first of the two


BUILT_IN: Final = Origin("built-in", None)
_EXPONENTIAL: Final = ("retry.first", "retry.factor", "retry.cap")


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationRules:
    """Limits and policies by destination."""

    default: DefaultLayer = option(
        DefaultLayer, "For every destination, unless something more specific says otherwise.")
    providers: dict[Name, ProviderLayer] = option(
        dict, "By provider: the name is one of the shipped file (`mta shaping list`), or a new one with `match`.",
        example="{google: {connections: 3}}")
    domains: dict[Domain, DomainLayer] = option(
        dict, "By recipient domain. Such a domain gets connections of its own, even when it shares its MX hosts with "
        "others.", example="{example.org: {connections: 3}}", rest="default")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapingRules(DestinationRules):
    """Limits and policies by destination and source. What the file that `providers` names says comes first; see
    docs/shaping.md for the order."""

    sources: dict[Name, SourceLayer] = option(
        dict, "By source of mail, a name of `sources`.")

    # What the file that `providers` names says; configurations are compared by its name.
    shipped: DestinationRules = field(default_factory=DestinationRules, compare=False)
    # `retry` and `expires` of the top level
    top: Layer = field(default_factory=lambda: top_layer(Retry(), Shaping().expires, {}))
    _special: frozenset[str] = field(default=frozenset(), init=False, compare=False, repr=False)
    _merged: dict[tuple[str, str, str], Shaping] = field(default_factory=dict, init=False, compare=False, repr=False)
    _longest: dict[str, Duration] = field(default_factory=dict, init=False, compare=False, repr=False)
    _totals: dict[tuple[str, str, str], tuple[Total, ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Note the domains with shaping of their own."""
        special = {*self.domains, *self.shipped.domains}
        for source in self.sources.values():
            special.update(source.domains)
        object.__setattr__(self, "_special", frozenset(special))

    def separates(self, domain: str) -> bool:
        """Whether `domain` has shaping of its own, and so connections of its own."""
        return domain in self._special

    def effective(self, source: str = "", provider: str = "", domain: str = "") -> Shaping:
        """The options of the path from `source` to `domain`, whose site is `provider`'s; "" is none of each.

        Hot path: one look at a dictionary when it was asked before.
        """
        key = (source, provider, domain if domain in self._special else "")
        found = self._merged.get(key)
        if found is None:
            found = self._merged[key] = _build(self.said(*key))
        return found

    def totals(self, source: str = "", provider: str = "", domain: str = "") -> tuple[Total, ...]:
        """The limits over more than the path that hold for it besides. Hot path, as `effective`."""
        key = (source, provider, domain if domain in self._special else "")
        found = self._totals.get(key)
        if found is None:
            found = self._totals[key] = tuple(self._find_totals(*key).values())
        return found

    def origin(self, option: str, source: str = "", provider: str = "", domain: str = "") -> Origin:
        """Where the value of `option` (`connections`, `timeouts.connect`) comes from. Merges anew at every call."""
        said = self.said(source, provider, domain).get(option)
        if said is None:
            return BUILT_IN
        return _unset(said.origin) if said.value is UNSET else said.origin

    def said(self, source: str = "", provider: str = "", domain: str = "") -> dict[str, Said]:
        """All that the layers say together; an option that nobody names or that is unset has its built-in value.

        For `retry` and `expires` that is what the top level says, with its place where that is known.
        """
        found: dict[str, Said] = {}
        for step in self.steps(source, provider, domain):
            for name, layer in step.layers:
                found |= _said(name, layer)
        for option_name, said in _said("", self.top).items():
            before = found.get(option_name)
            if before is None or before.value is UNSET:
                where = BUILT_IN
                if said.origin.place is not None:
                    where = Origin(option_name.partition(".")[0], said.origin.place)
                elif before is not None:
                    where = _unset(before.origin)
                found[option_name] = Said(said.value, where)
        return found

    def steps(self, source: str, provider: str, domain: str) -> Iterator[Step]:
        """The layers that there are, the weakest step first."""
        own, shipped = self, self.shipped
        yield Step("", [("default", shipped.default), ("shaping.default", own.default)])
        tables: tuple[tuple[str, str, Mapping[str, Layer], Mapping[str, Layer]], ...] = (
            ("provider", provider, shipped.providers, own.providers), ("domain", domain, shipped.domains, own.domains))
        for kind, key, theirs, ours in tables:
            layers = [(f"{prefix}{kind}s.{key}", table[key])
                      for prefix, table in (("", theirs), ("shaping.", ours)) if key in table]
            if layers:
                yield Step(f"{kind}:{key}", layers)
        leaving = own.sources.get(source)
        if leaving is not None:
            name, limit = f"shaping.sources.{source}", f"source:{source}"
            yield Step(limit, [(name, leaving)])
            for kind, key, inner in (("provider", provider, leaving.providers), ("domain", domain, leaving.domains)):
                if key in inner:
                    yield Step(f"{limit}>{kind}:{key}", [(f"{name}.{kind}s.{key}", inner[key])])

    def _find_totals(self, source: str, provider: str, domain: str) -> dict[str, Total]:
        """By name. A section of the source on a provider replaces what the provider's own says of each source."""
        found: dict[str, Total] = {}
        for limit, layers in self.steps(source, provider, domain):
            said: dict[str, Said] = {}
            for name, layer in layers:
                said |= _said(name, layer)
            for limit_name, prefix in ((limit, "total"), (f"source:{source}>{limit}", "source")):
                given = {name: one for name, one in said.items()
                         if name.startswith(f"{prefix}_") and one.value is not UNSET and one.value}
                if given:
                    connections, rates = given.get(f"{prefix}_connections"), given.get(f"{prefix}_message_rate")
                    found[limit_name] = Total(limit_name, connections.value if connections else None,
                                              rates.value if rates else (), next(iter(given.values())).origin)
        return found

    def longest_expiry(self, domain: str) -> Duration:
        """The age at which mail to `domain` is given up while its provider is not known. Hot path, as `effective`."""
        domain = domain if domain in self._special else ""
        found = self._longest.get(domain)
        if found is None:
            providers = ("", *self.providers, *self.shipped.providers)
            found = self._longest[domain] = max(self.effective("", one, domain).expires for one in providers)
        return found

    @property
    def ports(self) -> frozenset[int]:
        """The ports of MX hosts that mail may go to by any of the layers."""
        return frozenset({self.effective().port, *self._all_values("port")})

    @property
    def expiries(self) -> list[Duration]:
        """The ages at which mail may be given up, by any of the layers, the shortest first."""
        return sorted({*self._all_values("expires"), self.top.options["expires"]})

    @property
    def longest_wait_s(self) -> float:
        """No wait between two attempts is longer, by whichever layers, in seconds."""
        options = self.top.options
        schedules = {options["retry.schedule"], *self._all_values("retry.schedule")}
        waits = {options["retry.cap"], *self._all_values("retry.cap"), *(wait for one in schedules for wait in one)}
        return float(max(waits)) * (1.0 + float(max({options["retry.jitter"], *self._all_values("retry.jitter")})))

    def _all_values(self, option: str) -> set[Any]:
        """What layers set `option` to."""
        layers: list[Layer] = []
        for rules in (self, self.shipped):
            layers += [rules.default, *rules.providers.values(), *rules.domains.values()]
        for source in self.sources.values():
            layers += [source, *source.providers.values(), *source.domains.values()]
        return {layer.options[option] for layer in layers if option in layer.options} - {UNSET}


TOTALS: Final = tuple(one.name for section in (Totals, _OfEachSource) for one in dataclasses.fields(section))


def top_layer(retry: Retry, expires: Duration, places: Mapping[str, Place]) -> Layer:
    """`retry` and `expires` of the top level as a layer."""
    options = {f"retry.{one.name}": getattr(retry, one.name) for one in dataclasses.fields(retry)}
    return Layer({**options, "expires": expires}, places)


def _unset(by: Origin) -> Origin:
    """Of a built-in value that holds because the option was unset."""
    return Origin(f"built-in, unset in {by.layer}", by.place)


def _said(name: str, layer: Layer) -> dict[str, Said]:
    """What one layer says. An exponential schedule ends one of weaker layers that is written out."""
    options = layer.options
    said = {option: Said(value, Origin(name, layer.places.get(option))) for option, value in options.items()}
    if "retry.schedule" not in options:
        ends = next((said[option] for option in _EXPONENTIAL if options.get(option, UNSET) is not UNSET), None)
        if ends is not None:
            said["retry.schedule"] = Said((), ends.origin)
    return said


def _build(said: Mapping[str, Said]) -> Shaping:
    values: dict[str, dict[str, Any]] = {"": {}}
    for name, one in said.items():
        if one.value is not UNSET and name not in TOTALS:
            section, _, inner = name.rpartition(".")
            values.setdefault(section, {})[inner] = one.value
    sections = {name: _SECTIONS[name](**inner) for name, inner in values.items() if name}
    return Shaping(**values[""], **sections)


_SECTIONS: Final[dict[str, Any]] = {"timeouts": DeliveryTimeouts, "retry": Retry, "adaptive": Adaptive}
