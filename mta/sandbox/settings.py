"""The sandbox's configuration file: every option, its default and its documentation.

Same conventions as `mta.config.schema`. A *personality* is how one domain and its MX hosts behave; each option of it
that an entry leaves out comes from the personality it is `like`, else from `default`.
"""

# ruff: noqa: RUF009 -- option() makes a dataclass field, as dataclasses.field() does

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple

from mta.config.hosts import Endpoint
from mta.config.option import option
from mta.config.units import Duration, Rate, Size
from mta.sandbox.quota import Window
from mta.sandbox.replies import Reply

HOME: Final = "127.0.0.1"  # the host that is always there: for fixed relays, and for hosts beyond `Settings.hosts`
HOME_IPV6: Final = "::1"
HOST_STATES: Final = ("up", "closed", "unreachable", "noaddress", "nxdomain", "servfail", "timeout", "cname")


def on_loopback(wanted: Endpoint) -> Endpoint:
    """`wanted`, if only this machine can reach it. Raises ValueError: a sandbox for all the world would do harm."""
    if not ip_address(wanted.host).is_loopback:
        raise ValueError(f"{wanted} is not on loopback, where the sandbox has to stay")
    return wanted


class Exchange(NamedTuple):
    """One MX host as a personality lists it."""

    preference: int
    host: str  # "." is the null MX; may contain {domain}
    state: str  # one of HOST_STATES, or addresses parted by commas

    @classmethod
    def parse(cls, text: str) -> Exchange:
        """Read `10 mx1.example.net closed`. Raises ValueError."""
        words = text.lower().split()
        if len(words) not in (2, 3) or not words[0].isdigit() or int(words[0]) > 65_535:
            raise ValueError('an MX host is written "PREFERENCE HOST [STATE]", as in "10 mx1.{domain} closed"')
        state = words[2] if len(words) == 3 else "up"
        if state not in HOST_STATES:
            try:
                state = ",".join(str(ip_address(address)) for address in state.split(","))
            except ValueError:
                raise ValueError(f"{words[2]!r} is no address and none of {', '.join(HOST_STATES)}") from None
        return cls(int(words[0]), words[1] if words[1] == "." else words[1].rstrip("."), state)


def _reply_or_nothing(text: str) -> Reply | None:
    return Reply.parse(text) if text else None


Stage = Literal["connect", "ehlo", "starttls", "mail", "rcpt", "data", "body", "dot", "rset", "quit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What happens at one stage of the session. Rules are tried in order; the first that ends the stage is the last.

    `reply`, `raw`, `drop` and `hang` end the stage; a rule with none of them only waits for its `delay`.
    """

    at: Stage = option(
        doc="The stage: `connect` (the greeting), `ehlo` (and HELO), `starttls`, `mail`, `rcpt`, `data`, `body` (while "
        "content arrives), `dot` (after the final dot), `rset`, `quit`."
    )
    match: str | None = option(
        None, "Regular expression that must be found in the subject of the stage, see `share`; any when unset.",
        example="^full-", check=re.compile)
    share: float = option(
        1.0, "Share of the subjects that the rule holds for. A hash of the subject decides, the same each "
        "time (`mta.sandbox.draws.chosen`). The subject is the recipient at `rcpt`; the first accepted recipient "
        "from `data` to `dot`; the sender at `mail`, `rset` and `quit`; the number of the connection to this site, "
        "from 1, before that.", min=0.0, max=1.0)
    times: int | None = option(
        None, "How often the rule holds for one subject (before MAIL: for one site) until it is spent; any number when "
        "unset. With `times: 1` the second attempt succeeds.", min=1)
    delay: Duration = option(Duration(0), "Wait before anything else.")
    reply: str | None = option(
        None, "The answer: a code and a text, lines parted by `\\n`. A 421 also closes the connection. At `body` it is "
        "sent while the client still writes.", example='"550 5.1.1 no such user"', check=Reply.parse)
    raw: str | None = option(None, "Sent as it is instead of a reply: garbage.", example='"what?\\r\\n"')
    drop: Literal["fin", "rst"] | None = option(
        None, "Ends the connection, after the reply if there is one: orderly, or by a reset.")
    hang: bool = option(False, "Never answers again; what still comes is thrown away, and the client has to give up.")
    after: Size = option(Size(0), "At `body`: after how much content it happens.")
    keep: bool = option(
        False, "At `dot`: the message counts as delivered although the client is not told: the unknown outcome.")


DnsAnswer = Literal["normal", "nxdomain", "servfail", "refused", "formerr", "timeout", "garbage", "wrong-id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """What the DNS server says about a domain and its MX hosts."""

    answer: DnsAnswer = option(
        "normal", "The answer to questions for the MX of the domain, `nxdomain` also to those for its address. "
        "`timeout`: none; `garbage`: what cannot be read; `wrong-id`: a reply to some other question.")
    address_answer: DnsAnswer = option(
        "normal", "The answer to questions for the address of the domain itself, which has one even beside MX hosts.")
    mx: int | tuple[str, ...] = option(
        1, "How many MX hosts, `mx1.DOMAIN` with preference 10, `mx2.DOMAIN` with 20 ...; or the list of them, each "
        "\"PREFERENCE HOST [STATE]\", where HOST may contain `{domain}`. States: `up`; `closed` (connection refused), "
        "`unreachable` (no answer to a connect), `noaddress`, `nxdomain`, `servfail`, `timeout` (what a lookup of the "
        "host gives), `cname` (the host is an alias), or addresses, parted by commas. An empty list or 0: no MX, the "
        "domain is its own host. `[\"0 .\"]`: null MX (RFC 7505).",
        example='["10 mx1.{domain}", "10 mx2.{domain} closed", "20 backup.example.net 192.0.2.1"]',
        check=Exchange.parse, min=0, max=100)
    cname: str | None = option(None, "The domain is an alias of this name; of itself: a loop.")
    ttl: Duration = option(Duration(60), "Time to live of the answers, whole seconds.")
    delay: Duration = option(Duration(0), "Wait before an answer.")
    truncate: bool = option(False, "Answers by UDP carry nothing but the sign to come again by TCP.")
    tcp: bool = option(True, "Whether questions by TCP are answered.")
    ipv4: bool = option(True, "Hosts have an A record.")
    ipv6: bool = option(False, "Hosts have an AAAA record, ::1, which all of them share.")
    authentic: bool = option(False, "Answers are said to be verified by DNSSEC (AD).")


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How a domain is found and how its MX hosts speak SMTP."""

    dns: Dns = option(Dns, "The domain in the DNS.")

    # Of the host: decided by the name under which it was found
    listening: bool = option(
        True, "Off: connections are refused and the open ones are reset, until it is on again.")
    banner: str = option("ESMTP sandbox", "Text of the greeting after the name of the host.")
    esmtp: bool = option(True, "Off: EHLO is answered 502, only HELO works.")
    pipelining: bool = option(True, "PIPELINING is offered. Off, each command that comes too early is counted.")
    pipelining_across: Literal["accepted", "refused", "dropped"] = option(
        "accepted", "What an envelope meets that arrives in one go with the body before it: nothing, `503` to each of "
        "its commands, or the end of the connection after the reply to the body.")
    eight_bit: bool = option(True, "8BITMIME is offered.")
    smtputf8: bool = option(True, "SMTPUTF8 is offered.")
    dsn: bool = option(True, "DSN is offered.")
    chunking: Literal["off", "offered", "refused", "dropped"] = option(
        "off", "CHUNKING; `refused`: offered, yet BDAT is answered 502 and its content taken for commands; `dropped`: "
        "offered, yet the connection ends with a reset at BDAT.")
    data_always: bool = option(False, "DATA is answered 354 even when every recipient was refused.")
    size: Size | None = option(
        Size(50_000_000), "SIZE is offered with this limit, and a larger message gets `552 5.3.4`; `off`: not offered.")
    extensions: tuple[str, ...] = option((), "More lines of the EHLO reply.", example='["LIMITS RCPTMAX=10"]')
    starttls: Literal["off", "offered", "required", "refused", "broken"] = option(
        "off", "STARTTLS, with a `certificate`; `required`: `530 5.7.0` to MAIL without it; `refused`: "
        "offered, then `454 4.7.0`; `broken`: the handshake fails.")
    certificate: Literal["self-signed", "trusted", "other-name"] = option(
        "self-signed", "For STARTTLS. `trusted`: by the sandbox's `authority`, of the name of the host; `other-name`: "
        "of another one.")
    latency: Duration = option(Duration(0), "Wait before each burst of replies, as by a long way.")
    idle: Duration | None = option(None, "A client silent for this long gets `421 4.4.2`; `off`: never.")
    read_rate: Size | None = option(None, "Content is read no faster than this in one second; `off`: at once.")
    connections: int | None = option(None, "Connections at once from one address to one site; `off`: any.", min=0)
    connections_reply: str = option(
        "421 4.7.0 Too many connections from your address", "Greeting above that; empty: closed without a word.",
        check=_reply_or_nothing)
    messages: int | None = option(None, "Messages on one connection; `off`: any.", min=1)
    messages_reply: str = option(
        "421 4.7.0 Too many messages on this connection", "Reply to the next MAIL; empty: the connection is closed "
        "without a word once the last one is answered.", check=_reply_or_nothing)
    recipients: int | None = option(None, "Recipients of one transaction; `off`: any.", min=1)
    recipients_reply: str = option("452 4.5.3 Too many recipients", "Reply to each above that.", check=Reply.parse)
    connection_rate: Rate | None = option(
        None, "New connections from one address to one site in a time; `off`: any.")
    connection_rate_reply: str = option(
        "421 4.7.0 Error: connection rate limit exceeded", "Greeting above that.", check=Reply.parse)
    rate: Rate | None = option(
        None, "Messages from one address to one site; `off`: any. With a burst, as in `\"200/min, burst 20\"`, a "
        "bucket holds that.")
    rate_window: Window = option(
        "bucket", "How both rates are counted: with a `bucket` that fills evenly and holds what one period brings; "
        "`fixed`: in periods, of which the first begins with the first message; `sliding`: in any time as long as "
        "the period.")
    rate_reply: str = option(
        "421 4.7.28 Unusual rate of mail from your address, try again later", "Reply above that.", check=Reply.parse)

    # Of the recipient's domain
    greylist: Duration | None = option(
        None, "The first attempt of a (client, sender, recipient), and every one until this time is over, is deferred; "
        "`off`: none.")
    greylist_reply: str = option("451 4.7.1 Greylisted, try again later", "Reply meanwhile.", check=Reply.parse)
    rules: tuple[Rule, ...] = option(
        (), "What else happens, by stage. `connect`, `ehlo`, `starttls`, `mail`, `rset` and `quit` are decided by the "
        "host, `rcpt` by the domain of the recipient, `data`, `body` and `dot` by that of the first one accepted.")


    def exchanges(self, domain: str) -> list[Exchange]:
        """The MX hosts of a domain that behaves so; none when it is its own host."""
        if isinstance(self.dns.mx, int):
            return [Exchange(10 * n, f"mx{n}.{domain}", "up") for n in range(1, self.dns.mx + 1)]
        listed = map(Exchange.parse, self.dns.mx)
        return [exchange._replace(host=exchange.host.replace("{domain}", domain)) for exchange in listed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase(Behaviour):
    """A time in which a personality is different; options left out are those of the personality."""

    since: Duration = option(Duration(0), "When it begins, counted from the start of the sandbox, or from when the "
                             "personality was set through the control socket.")
    until: Duration | None = option(None, "When it ends; `off`: never.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Personality(Behaviour):
    """How one domain and its MX hosts behave."""

    like: str | None = option(
        None, "Name of the personality that the options left out are taken from; `default` when unset.")
    phases: tuple[Phase, ...] = option(
        (), "Changes over time. The first phase whose time it is holds.",
        example="[{since: 10s, until: 60s, listening: false}]")

    def at(self, elapsed_s: float) -> Behaviour:
        """The behaviour `elapsed_s` seconds after the beginning."""
        for phase in self.phases:
            if phase.since <= elapsed_s and (phase.until is None or elapsed_s < phase.until):
                return phase
        return self

    def changes(self) -> list[float]:
        """The times, in seconds from the beginning, at which `at` gives something else."""
        return sorted({time for phase in self.phases for time in (phase.since, phase.until) if time})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole file."""

    dns: Endpoint = option(
        Endpoint("127.0.0.1", 5353), "Where the DNS server listens, UDP and TCP; port 0: any free one.")
    smtp_port: int = option(2626, "Port of all MX hosts; 0: any free one.", min=0, max=65_535)
    control: str | None = option(
        None, "Socket for statistics and changes: a path, or `127.0.0.1:PORT`; a path in the directory for temporary "
        "files when unset.")
    hosts: int = option(
        400, "MX hosts with an address and a listening socket of their own; hosts named later share `127.0.0.1`.",
        min=1, max=10_000)
    log: int = option(1000, "Transactions kept with their whole envelope.", min=0, max=1_000_000)
    times: int = option(
        0, "Messages, and connections, kept with the times at which they came (`arrivals`, `visits`). Times are those "
        "at which octets reached the kernel, so they do not depend on when the sandbox is given a processor.",
        min=0, max=10_000_000)
    log_content: Size = option(Size(0), "How much of each message's content is kept with them.")
    remember: int = option(
        1_000_000, "Pairs of message and recipient kept to find duplicates and for `received`; above it the oldest are "
        "forgotten, and counted.", min=1000)
    check: bool = option(
        True, "Every message is looked through for what no client should send: bare LF or CR, NUL, lines of more than "
        "998 octets, octets above 127 that were not declared, a body that is not what `X-Test-Crc32` says.")
    authority: str | None = option(
        None, "File into which the certificate of the sandbox's authority is written, for who is to trust it.")
    capture: str | None = option(None, "Directory into which every accepted message is written as a file.")
    default: Personality = option(Personality, "For every domain without an entry.")
    personalities: dict[str, Personality] = option(
        dict, "Personalities by name, for `like`.", example="{slow: {latency: 500ms}}")
    domains: dict[str, Personality] = option(
        dict, "Domains, or patterns with `*`: a personality, or the name of one. The exact name comes first, then the "
        "patterns in the order of the file.", example='{example.org: {connections: 3}, "*.slow.test": slow}')
