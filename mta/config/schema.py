"""Every option of the configuration: its name, type, default and documentation.

The dataclasses here are the single source of truth. `loader` builds them from YAML, `reference` prints them as
`docs/configuration.md`, `mta check` reports against them. An option is a field made by `option()`, whose `doc` is
what the operator reads. Nested dataclasses are sections; lists and mappings of them nest likewise. The options of
shaping are in `mta.config.shaping`.

Types that are written as a text are in `mta.config.units` (`Duration`: seconds, "30s"; `Size`: bytes, "25MB"; `Rate`),
`hosts` (`Endpoint`: "127.0.0.1:25"; `Network`, `Domain` ...) and `forms` (`Name`, `FilePath` ...); `kinds` lists them.
"""

# ruff: noqa: RUF009 -- option() makes a dataclass field, as dataclasses.field() does

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from mta.config.access import Access, Allowance, Certificate
from mta.config.checks import CheckChanges, Checks
from mta.config.forms import Directory, FilePath, HeaderName, Name, ProvidersFile, SenderPattern, UserName
from mta.config.hosts import Domain, Endpoint, HostName, IPv4, IPv6, Network, Proxy, RouteKey
from mta.config.option import option
from mta.config.reply_book import ReplyRules
from mta.config.shaping import Adaptive, DeliveryTimeouts, Retry, Shaping, ShapingRules, top_layer
from mta.config.units import Duration, Rate, Size

__all__ = [
    "Access", "Adaptive", "Allowance", "Bounces", "Certificate", "CheckChanges", "Checks", "Config", "Delivery",
    "DeliveryTimeouts", "Dns", "Events", "Listener", "Memory", "Pickup", "Retry", "Route", "Shaping", "ShapingRules",
    "SmtpIn", "SmtpTimeouts", "Store", "User",
]


Priority = Literal["transactional", "normal", "bulk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelValues:
    """Labels of a message that nothing more specific gives."""

    tenant: Name | None = option(None, "Whose mail it is: tenants share each site fairly.")
    campaign: Name | None = option(None, "What it is part of. Campaigns of a tenant take turns.")
    pool: Name | None = option(None, "The pool of `pools` whose sources it leaves from.")
    priority: Priority | None = option(
        None, "`transactional` overtakes `normal`, and that `bulk`, everywhere; see `turns`.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One address on which mail is accepted by SMTP."""

    smtp: Endpoint = option(
        doc="Address and port to listen on; `0.0.0.0` and `[::]` are all addresses, port 0 is any free one. Or a Unix "
            "socket, `unix:/path`: who may open it may send to any domain, which its mode decides.",
        example="127.0.0.1:2525", listens=True, reload="restart")
    relay_from: tuple[Network, ...] = option(
        (),
        "Networks whose clients may send to any domain. Empty, the default: nobody may who does not log in; every "
        "recipient is answered `550 5.7.1`. So the default configuration is never an open relay. Networks that are "
        "much of the Internet are refused. [security.md](security.md) says in full who may send what.",
        example="[127.0.0.0/8, 10.1.0.0/16]",
    )
    tls: Literal["off", "offered", "required", "implicit"] = option(
        "off", "`offered`: STARTTLS. `required`: nothing is taken before it, `530 5.7.0`. `implicit`: TLS from the "
        "first byte, as on port 465 (RFC 8314). All need `certificates`.")
    auth: Literal["off", "offered", "required"] = option(
        "off", "Whether clients may log in. `required`: who did not may send nothing, `530 5.7.0`, also from "
        "`relay_from`; this is what port 587 is (RFC 6409). Under TLS only, unless `auth_without_tls`.")
    auth_without_tls: bool = option(
        False, "Whether passwords may come in clear. Only for networks that nobody else listens to.")
    client_ca: FilePath | None = option(
        None, "PEM file of the authorities whose client certificates are a login: of the user in `users` whose name is "
        "an e-mail address, a DNS name or the common name in the certificate. Clients without one are taken, too.",
        example="/etc/mta/clients.pem")
    proxy_from: tuple[Network, ...] = option(
        (), "Load balancers that begin each connection with a PROXY header, version 1 or 2, which says who the client "
        "is. Who is in here must send one, from all others it is an error.", example="[10.0.0.7]")
    xclient_from: tuple[Network, ...] = option(
        (), "Networks whose clients may say by XCLIENT for whom they speak.", example="[10.0.0.8]")
    senders: tuple[SenderPattern, ...] = option(
        (), "Envelope senders that clients in `relay_from` may use, `550 5.7.1` for others; empty: all. The null "
        "sender is always allowed.", example='[example.org, "*.example.org", news@example.net]')
    limits: Allowance = option(Allowance, "For all clients of this listener together.")
    mode: Literal["0600", "0660", "0666"] = option(
        "0660", "Permissions of a Unix socket. It belongs to the user of the MTA.", reload="restart")
    group: str | None = option(None, "Group of a Unix socket, by name; that of the user when unset.", reload="restart")
    hostname: HostName | None = option(
        None, "Name in the greeting and in `Received`; the global `hostname` when unset.")
    labels: LabelValues = option(LabelValues, "Labels of mail that comes in here, where no header field gives them.")
    label_headers: bool = option(
        True, "Whether the fields of `labels` in the header are believed. Off, they are only removed.")
    checks: CheckChanges = option(CheckChanges, "What is different in `checks` for mail that comes in here.")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """What holds for one who logs in, on every listener. Users that are not named here may send as anybody."""

    senders: tuple[SenderPattern, ...] = option(
        (), "Envelope senders that the user may use, `550 5.7.1` for others; empty: all. The null sender is always "
        "allowed.", example='[example.org, "*.example.org", news@example.net]')
    networks: tuple[Network, ...] = option((), "Networks from which the user may log in; empty: all.")
    labels: LabelValues = option(LabelValues, "Labels of the user's mail, before those of the listener.")
    label_headers: bool = option(
        True, "Whether the fields of `labels` in the header are believed. Off, they are only removed.")
    limits: Allowance = option(Allowance, "How much the user may send.")
    checks: CheckChanges = option(
        CheckChanges, "What is different in `checks` for the user's mail, such as `from_domains`; before the listener.")
    enabled: bool = option(True, "Off: the user cannot log in.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpTimeouts:
    """How long a client may take. RFC 5321 4.5.3.2.7 asks for at least five minutes between commands."""

    command: Duration = option(Duration(300), "Wait for the next command.")
    handshake: Duration = option(Duration(30), "Wait for a PROXY header, and for the handshake of TLS.")
    data: Duration = option(Duration(180), "Wait for the next block of message content.")
    transaction: Duration = option(
        Duration(3600), "Whole time for the content of one message, so that a trickle cannot hold a session for ever."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpIn:
    """Limits of incoming SMTP, the same on all listeners."""

    message_size: Size = option(Size(50_000_000), "Largest message; announced as SIZE, `552 5.3.4` above it.")
    recipients: int = option(
        1000, "Recipients of one transaction; `452 4.5.3` above it. What is done for all of them when the message has "
        "come, or when some are delivered, is one turn of the worker's event loop: 4 ms for each thousand in as many "
        "domains. So with the default nobody else notices; 50,000 hold up the others for 0.2 s.", min=1, max=50_000)
    line_length: int = option(
        998, "Longest content line without its CRLF (RFC 5322 2.1.1); `550 5.6.0` above it.", min=78, max=1_000_000
    )
    command_length: int = option(2048, "Longest command line; `500 5.5.2` above it.", min=512, max=65_536)
    errors: int = option(20, "Refused commands in one session before `421 4.7.0` and the end of it.", min=1)
    commands: int = option(
        1000, "Commands in a row that start no message (NOOP, RSET, VRFY, ..., those that were answered 452) before "
        "`421 4.7.0`.", min=10
    )
    hops: int = option(100, "`Received` lines above which a message is a loop, `554 5.4.6` (RFC 5321 6.3).", min=5)
    deliver_by: Duration | None = option(
        Duration(0), "Shortest time for delivery that a client may ask for (DELIVERBY, RFC 2852, `BY=...;R`); `off`: "
        "it may ask for none.", min=0)
    future_release: Duration | None = option(
        Duration(86_400), "How long a client may have a message held (FUTURERELEASE, RFC 4865), never more than half "
        "of the shortest `expires`, which counts from acceptance; `off`: it is not offered.", min=60)
    sessions: int = option(4000, "Sessions at once in one worker; `421 4.3.2` above it.", min=1)
    sessions_per_client: int = option(
        500, "Sessions at once from one address (IPv6: from one /64), in one worker; `421 4.7.0` above it.", min=1)
    connections_per_client: int = option(
        3000, "Connections from one address, likewise, in a minute; `421 4.7.0` above it. Who is in `relay_from` may "
        "connect as often as it likes.", min=1)
    timeouts: SmtpTimeouts = option(SmtpTimeouts, "Patience with clients.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pickup:
    """One spool directory: a file renamed into it is a message to send."""

    directory: Directory = option(
        doc="The directory. It is made when missing, with `tmp/` and `failed/` in it.", example="/var/spool/mta-pickup",
        reload="restart")
    scan: Duration = option(Duration(30), "How often to look even if the kernel announced nothing.", min=1)
    labels: LabelValues = option(LabelValues, "Labels of mail that comes in here, where no header field gives them.")
    checks: CheckChanges = option(CheckChanges, "What is different in `checks` for mail that comes in here.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """Name resolution. The MTA asks recursive resolvers itself and never uses the search list."""

    servers: tuple[Endpoint, ...] = option(
        (), "Recursive resolvers, tried in turn, port 53 unless given; those of /etc/resolv.conf when empty.",
        example='["127.0.0.1:53"]', default_port=53, address_only=True)
    timeout: Duration = option(Duration(3), "Wait for one answer of one server.")
    attempts: int = option(4, "Questions asked in all, over the servers, before a name counts as failing.", min=1)
    cache: int = option(50_000, "Names kept in the cache of each worker.", min=100)
    max_ttl: Duration = option(Duration(86_400), "Longest time to believe an answer.", min=0)
    min_ttl: Duration = option(Duration(5), "Shortest time to believe an answer.", min=0)
    negative_ttl: Duration = option(Duration(300), "Longest time to believe that a name does not exist.", min=0)
    failure_ttl: Duration = option(Duration(30), "Time to remember that no server answered (RFC 9520).", min=0)
    validates: bool = option(
        False, "Whether these resolvers verify DNSSEC, and nobody can change their answers on the way to here, as when "
        "they run on this machine. Mail that requires TLS (REQUIRETLS) goes to MX hosts only when they say that the "
        "MX records are authentic.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where the mail of a domain goes. Written `mx` for the domain's own MX hosts, or as a mapping with `relay`."""

    relay: tuple[Endpoint, ...] = option(
        (), "Fixed hosts, tried in order, instead of the domain's MX: one `host:port` or a list; port 25 unless given.",
        default_port=25, example='["10.0.0.1:25", "relay.example.net:2525"]',
    )

    @property
    def mx(self) -> bool:
        """Whether the domain's own MX hosts are used."""
        return not self.relay


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Outgoing SMTP in general."""

    allow_loopback: bool = option(
        False, "Whether MX hosts on loopback are believed. Off, such a host is skipped: it would be ourselves."
    )
    unknown_pool: Literal["wait", "default"] = option(
        "wait", "Mail whose pool is no longer in `pools`: it waits until there is one, or it takes the default pool.")
    connections: int = option(5000, "Outgoing connections in all, over all workers.", min=1)
    ca_file: FilePath | None = option(
        None, "PEM file with the certificates of the authorities that are trusted where a host's certificate has to be "
        "verified (REQUIRETLS); the system's when unset. Read anew at a reload.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where mail leaves from. Without `sources` the system chooses the address, and EHLO says `hostname`."""

    ipv4: IPv4 | None = option(
        None, "Local IPv4 address; with a proxy, the one that the proxy has. A source with an address of one family "
        "only sends by that family; one without any leaves the choice to the system.", example="192.0.2.25")
    ipv6: IPv6 | None = option(None, "The same for IPv6.", example='"2001:db8::25"')
    ehlo: HostName | None = option(None, "Name in EHLO; the global `hostname` when unset.")
    tls_certificate: FilePath | None = option(
        None, "PEM file with the certificate, and its chain, for hosts that ask a client for one. Read anew at a "
        "reload.")
    tls_key: FilePath | None = option(None, "PEM file with its key, when that is not in `tls_certificate`.")
    proxy: Proxy | None = option(
        None, "Connect through a proxy: `socks5://[user:password@]host:port` (RFC 1928, 1929), or "
        "`haproxy://host:port`, which is told source and destination by a PROXY header of version 2.", example="socks5://10.0.0.5:1080")
    port: int | None = option(
        None, "Port of MX hosts for this source; the one of `shaping` when unset.", min=1, max=65_535)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """What holds for the mail of one tenant, over all workers. Tenants that are not named here have a weight of 1."""

    weight: int = option(1, "Turns for each one of a tenant of weight 1.", min=1, max=1000)
    pool: Name | None = option(None, "Pool of its mail that names none.")
    priority: Priority | None = option(None, "Priority of its mail that names none.")
    message_rate: tuple[Rate, ...] = option((), "Messages that leave, in all.", example="[1000/min, 20000/h]")
    concurrency: int | None = option(None, "Messages in flight at once.", min=1)
    queue_size: int | None = option(None, "Messages in the queue, each once per recipient domain; `452 4.2.2` for "
                                  "more. Spool directories refuse none, but what comes by them counts.", min=1)
    daily_volume: int | None = option(
        None, "Messages taken in one day (UTC) by SMTP; `452 4.7.1` for more.", min=1)
    checks: CheckChanges = option(CheckChanges, "What is different in `checks` for its mail.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Where tenant, campaign, pool and priority of a message come from: the first of its header fields named here, the
    user who logged in, the listener or spool directory, the domain of its sender, what its tenant says, the default.
    The fields are removed. A value has 1 to 64 letters, digits, dots, hyphens and underscores."""

    tenant: tuple[HeaderName, ...] = option(("X-Tenant",), "Header fields that name the tenant, by precedence.")
    campaign: tuple[HeaderName, ...] = option(("X-Campaign", "X-Job"), "Header fields that name the campaign.")
    pool: tuple[HeaderName, ...] = option(("X-Pool", "X-Virtual-MTA"), "Header fields that name the pool.")
    priority: tuple[HeaderName, ...] = option(("X-Priority-Class",), "Header fields that name the priority.")
    invalid: Literal["refuse", "ignore"] = option(
        "refuse", "A field whose value is none, or a pool that does not exist: refuse the message with `550 5.6.0`, or "
        "go on as if the field were not there.")
    senders: dict[Domain, LabelValues] = option(
        dict, "By domain of the envelope sender.", example="{news.example.org: {tenant: acme, priority: bulk}}")
    default: LabelValues = option(LabelValues, "For all others.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """Who goes first when more mail waits than may go. Priorities are strict but for `ageing`."""

    ageing: int = option(
        10, "Of so many turns one goes to lower priorities that wait, so that they do not starve; 0: none does.", min=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounces:
    """Delivery status notifications (RFC 3464) to the envelope sender."""

    returned: Literal["headers", "full"] = option(
        "headers", "What of the original goes back when the sender did not say with RET."
    )
    full_size: Size = option(
        Size(50_000), "Originals above this size go back as headers only, whatever was asked.", min=0)
    delay_warning: Duration | None = option(
        None, "Warn the sender once when mail has waited this long, or up to a minute later, also while its site "
        "stands still and nothing tries it; `off`: never.")
    from_name: str = option("Mail Delivery System", "Display name in the From header of notifications.")
    send: bool = option(True, "Whether notifications are made at all; the events tell of every failure anyway.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """The log of what became of every recipient, one JSON line per event."""

    size: Size = option(Size(100_000_000), "Size at which an event file is closed and the next one begun.")
    keep: int = option(50, "Closed event files kept per shard; older ones are removed.", min=1)
    group_readable: bool = option(
        False, "New event files may be read by the group of the MTA's user, and by whom an access list on their "
        "directory names (mode 0640 instead of 0600): for log shippers.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The durable queue. One shard per worker under `spool`."""

    segment_size: Size = option(
        Size(64_000_000), "Size of one segment file of the journal.", min=1_000_000, reload="restart")
    map_size: Size = option(
        Size(64_000_000_000), "Address space of the index; a sparse file, so large costs nothing.", min=10_000_000,
        reload="restart")
    reserve: Size = option(
        Size(500_000_000), "Free space on the spool's disk below which no new mail is taken (`452 4.3.1`). Four "
        "segments are left in any case, to write down what becomes of the mail that is there.", min=0)
    checkpoint: Duration = option(Duration(1), "Longest time between two index commits.")

    @property
    def kept_free(self) -> Size:
        """Bytes of the disk that no new mail may take. Without some for outcomes a spool that is full stays full."""
        return Size(max(self.reserve, 4 * self.segment_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bounds on what one worker keeps in memory; the rest waits on disk at no cost."""

    bodies: Size = option(Size(24_000_000), "Content of messages kept for immediate delivery.")
    receiving: Size = option(
        Size(256_000_000), "Content of messages that clients are sending just now, over all sessions; `452 4.3.1` to "
        "MAIL when there is no room for another one.")
    deliveries: int = option(20_000, "Deliveries kept in memory.", min=100)
    window: int = option(1000, "Deliveries of one queue kept in memory.", min=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration."""

    hostname: HostName = option(
        doc="Our fully qualified name: in greetings, EHLO, `Received` and notifications. It should resolve to the "
            "sending address and back.", example="mta1.example.net")
    workers: int | Literal["auto"] = option(
        "auto", "Worker processes; `auto`: one per processor core.", min=1, max=256, reload="restart")
    user: str | None = option(
        None, "User to become after the ports are bound, when started as root.", reload="restart")
    spool: Directory = option("/var/spool/mta", "Directory of the queue. Local disk, never NFS.", reload="restart")
    run: Directory = option(
        "/run/mta", "Runtime directory: control sockets and the table of limits; tmpfs is best.", reload="restart")
    listeners: tuple[Listener, ...] = option((), "Addresses that accept mail.", reload="restart")
    certificates: tuple[Certificate, ...] = option(
        (), "Certificates of the listeners. A client is shown the first that has the name it asks for (SNI), else the "
        "first that has the listener's `hostname`, else the first.")
    access: Access = option(Access, "Logins.")
    users: dict[UserName, User] = option(
        dict, "Rights and limits of users, by name.", example="{acme: {senders: [acme.example], limits: {messages: "
        "[10000/d]}}}")
    smtp: SmtpIn = option(SmtpIn, "Limits of incoming SMTP.")
    checks: Checks = option(Checks, "What mail must be like to be taken.")
    pickup: tuple[Pickup, ...] = option((), "Spool directories that accept mail as files.", reload="restart")
    dns: Dns = option(Dns, "Name resolution.")
    routes: dict[RouteKey, Route] = option(
        dict, "Where mail goes, by recipient domain: `mx`, or `{relay: host:port}`. `*` is for all others; without "
        "it they use MX.", example='{example.org: {relay: "127.0.0.1:2626"}, "*": mx}')
    delivery: Delivery = option(Delivery, "Outgoing SMTP.")
    sources: dict[Name, Source] = option(
        dict, "Where mail leaves from, by name.", example='{out1: {ipv4: 192.0.2.25, ehlo: out1.example.net}}')
    pools: dict[Name, dict[Name, int]] = option(
        dict, "Sources that are used together, each with its weight; 0: not chosen. Mail without a pool takes the one "
        "named `default`, or all sources alike when there is none.", example="{marketing: {out1: 3, out2: 1}}", min=0,
        max=1000)
    labels: Labels = option(Labels, "Where the labels of a message come from.")
    tenants: dict[Name, Tenant] = option(dict, "Weights and limits by tenant.", example="{acme: {weight: 3}}")
    turns: Turns = option(Turns, "Who goes first.")
    providers: ProvidersFile = option(
        "shipped", "File that says how the sites of large providers are known and how they are treated: `shipped`, the "
        "one that comes with the MTA (`mta shaping list` shows it), `none`, or one of your own of the same form: the "
        "sections `default`, `providers` and `domains` of `shaping`.")
    shaping: ShapingRules = option(ShapingRules, "Limits by destination and source.")
    rules: ReplyRules = option(
        ReplyRules, "Rules on replies of your own: what a refusal means and what is done about it. They are asked "
        "before those of `rules_file`; the first that fits decides. The form is in [rules.md](rules.md).",
        example='[{name: closed, text: "we are closed on Sundays", message: defer for 4h, '
                'samples: ["450 We are closed on Sundays"]}]')
    rules_file: ProvidersFile = option(
        "shipped", "File of the rules that are asked after your own: `shipped`, the one that comes with the MTA "
        "(`mta rules list` shows it), `none`, or one of your own of the same form.")
    retry: Retry = option(Retry, "Retry schedule, where `shaping` does not say otherwise.")
    expires: Duration = option(
        Duration(5 * 86_400), "Age at which undelivered mail is given up, where `shaping` does not say otherwise.")
    bounces: Bounces = option(Bounces, "Notifications to senders.")
    events: Events = option(Events, "Event log.")
    store: Store = option(Store, "Durable queue.")
    memory: Memory = option(Memory, "Memory bounds.")
    shutdown: Duration = option(Duration(30), "Time for transactions in flight to finish when stopping.", min=0)
    log: Literal["debug", "info", "warning", "error"] = option("info", "Least severe diagnostics written to stderr.")

    def __post_init__(self) -> None:
        """What the top level says about retries is what shaping falls back to."""
        top = top_layer(self.retry, self.expires, self.shaping.top.places)
        object.__setattr__(self, "shaping", dataclasses.replace(self.shaping, top=top))
