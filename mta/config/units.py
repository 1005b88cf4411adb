"""Types of the configuration that carry a unit or a form: how they are written, read and printed.

Every type has a `parse_*` function, which raises ValueError with a text for the operator ("... needs a unit, as in
300s"), and a `format_*` function whose result parses to the same value. `KINDS` lists them for the loader and the
reference. Nothing here looks at the clock, the network or the file system.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, NewType, TypeAlias
from urllib.parse import urlsplit

import idna

from mta.config.problems import printable

Duration = NewType("Duration", float)
"""A length of time in seconds, a whole number of milliseconds."""

Size = NewType("Size", int)
"""A number of bytes."""

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
"""A range of addresses; one address is a network of one."""

HostName: TypeAlias = Annotated[str, "HostName"]
"""A fully qualified name of a host, lower case, A-labels."""

Domain: TypeAlias = Annotated[str, "Domain"]
"""A recipient domain: lower case, A-labels; or an address literal such as `[192.0.2.1]`."""

RouteKey: TypeAlias = Annotated[str, "RouteKey"]
"""A recipient domain, or `*` for all others."""

HostPattern: TypeAlias = Annotated[str, "HostPattern"]
"""A host name, or a pattern of names with `*` for any characters, such as `*.google.com`. Lower case, A-labels."""

HostOrNetwork: TypeAlias = Annotated[str, "HostOrNetwork"]
"""A host name or pattern of names, or a network, in canonical form."""

ProvidersFile: TypeAlias = Annotated[str, "ProvidersFile"]
"""`shipped`, `none`, or a path, which the loader makes absolute."""

IPv4: TypeAlias = Annotated[str, "IPv4"]
"""An IPv4 address as text, in canonical form."""

IPv6: TypeAlias = Annotated[str, "IPv6"]
"""An IPv6 address as text, in canonical form."""

Name: TypeAlias = Annotated[str, "Name"]
"""A name given by the operator to a source, pool, tenant or provider: letters, digits, `.`, `_` and `-`, at most 64."""

HeaderName: TypeAlias = Annotated[str, "HeaderName"]
"""The name of a header field (RFC 5322 2.2), in the case in which it was written."""

UserName: TypeAlias = Annotated[str, "UserName"]
"""The name of who logs in: 1 to 128 visible ASCII characters without a colon, not beginning with `#` or `*`."""

SenderPattern: TypeAlias = Annotated[str, "SenderPattern"]
"""A mailbox, a domain, or `*.domain` for all domains below it. Domains are lower case and A-labels."""

HttpUrl: TypeAlias = Annotated[str, "HttpUrl"]
"""A URL of HTTPS; HTTP to a loopback address alone. Without user, password and fragment."""

FilePath: TypeAlias = Annotated[str, "FilePath"]
"""A path of a file. The loader makes it absolute."""

Directory: TypeAlias = Annotated[str, "Directory"]
"""A path in the file system. The loader makes it absolute."""


class Endpoint(NamedTuple):
    """A host (name, or address without brackets) and a port. `str()` writes `host:port`, IPv6 in brackets.

    Of a listener it may be a Unix socket: its path is the host, the port 0, and `str()` writes `unix:/path`.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Endpoint:
        """Read `host:port`; without `:port` when there is a `default_port`. Raises ValueError."""
        return parse_endpoint(text, default_port)

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return self.host.startswith("/")

    def __str__(self) -> str:
        """As it is written in the configuration."""
        if self.is_unix:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Proxy(NamedTuple):
    """A proxy that connections leave through. `str()` writes it as in the configuration."""

    kind: str  # "socks5" or "haproxy"
    host: str
    port: int
    user: str = ""
    password: str = ""

    def __str__(self) -> str:
        """`socks5://user:password@host:port`."""
        login = f"{self.user}:{self.password}@" if self.user else ""
        return f"{self.kind}://{login}{Endpoint(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` things in every `per_s` seconds, evenly, or up to `burst` of them at once (0: nothing was said)."""

    count: int
    per_s: float
    burst: int = 0

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read `100/s`. Raises ValueError."""
        return parse_rate(text)

    @property
    def per_second(self) -> float:
        """The same as a number per second."""
        return self.count / self.per_s

    def __str__(self) -> str:
        """As it is written in the configuration."""
        return format_rate(self)


# --- durations -----------------------------------------------------------------------------------------------------

_MS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[wdhms]) ?)+", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[wdhms])", re.ASCII)
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_CLOCK = re.compile(r"[0-9]+:[0-5]?[0-9](?::[0-5]?[0-9])?", re.ASCII)
_MAX_DURATION_MS = 36_525 * _MS["d"]
_TOO_LONG = 64  # characters; more is no number that anybody meant


def parse_duration(text: str) -> Duration:
    """Read `30s`, `1h30m`, `1.5d`; units ms, s, m, h, d, w. Raises ValueError."""
    text = text.strip()
    if _NUMBER.fullmatch(text) and len(text) <= _TOO_LONG:
        if not Decimal(text):
            return Duration(0.0)
        raise ValueError(f"a duration needs a unit, as in {text}s or {text}m")
    if _CLOCK.fullmatch(text) and len(text) <= _TOO_LONG:
        parts = text.split(":")
        readings = ["hms"] if len(parts) == 3 else ["hm", "ms"]
        written = ["".join(map("".join, zip(parts, units, strict=True))) for units in readings]
        raise ValueError(f"a duration is written with units, as in {' or '.join(written)}")
    if not _DURATION.fullmatch(text) or len(text) > _TOO_LONG:
        if _DURATION.fullmatch(text.lower()) and len(text) <= _TOO_LONG:
            raise ValueError(f"units of time are lower case, as in {text.lower()}")
        raise ValueError("not a duration such as 30s, 10m, 4h or 5d")
    total = Decimal(0)
    last = max(_MS.values()) + 1
    for number, unit in _DURATION_PART.findall(text):
        if _MS[unit] >= last:
            raise ValueError("units of a duration go from large to small, each once, as in 1h30m")
        last = _MS[unit]
        total += Decimal(number) * last
    if total != int(total):
        raise ValueError("a duration is a whole number of milliseconds")
    if total > _MAX_DURATION_MS:
        raise ValueError("a duration is at most 36525d, a hundred years")
    return Duration(int(total) / 1000)


def format_duration(duration: float) -> str:
    """Write a duration so that `parse_duration` reads the same: `1h30m`."""
    ms = round(duration * 1000)
    if ms == 0:
        return "0s"
    parts = []
    for unit, length in _MS.items():
        if unit == "w":  # days are plainer: 30d, not 4w2d
            continue
        count, ms = divmod(ms, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


# --- sizes ---------------------------------------------------------------------------------------------------------

_BYTES = {
    "TB": 10**12, "TiB": 2**40, "GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20, "KB": 10**3, "KiB": 2**10, "B": 1,
}
_SIZE_UNITS = {unit.lower(): length for unit, length in _BYTES.items()}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]+)", re.ASCII)
_MAX_SIZE = 2**62


def parse_size(text: str) -> Size:
    """Read `25MB` (decimal) or `64MiB` (binary); units B, KB, MB, GB, TB and KiB, MiB, GiB, TiB. Raises ValueError."""
    text = text.strip()
    if _NUMBER.fullmatch(text) and len(text) <= _TOO_LONG:
        if not Decimal(text):
            return Size(0)
        raise ValueError(f"a size needs a unit, as in {text}B or {text}MB")
    match = _SIZE.fullmatch(text.lower())
    if match is None or len(text) > _TOO_LONG:
        raise ValueError("not a size such as 64KB, 25MB or 2GiB")
    number, unit = match.groups()
    if unit not in _SIZE_UNITS:
        letter = unit.upper()
        wanted = f"{number}{letter}B or {number}{letter}iB" if unit in "kmgt" else "KB, MB, GB or KiB, MiB, GiB"
        raise ValueError(f"{unit!r} is no unit of size, write {wanted}")
    size = Decimal(number) * _SIZE_UNITS[unit]
    if size != int(size):
        raise ValueError("a size is a whole number of bytes")
    if size > _MAX_SIZE:
        raise ValueError("a size is at most 4194304TiB")
    return Size(int(size))


def format_size(size: int) -> str:
    """Write a size with the largest unit that needs no fraction."""
    for unit, length in _BYTES.items():
        if size and size % length == 0:
            return f"{size // length}{unit}"
    return f"{size}B"


# --- rates ---------------------------------------------------------------------------------------------------------

_RATE = re.compile(
    r"([0-9][0-9_,]{0,15}(?:\.[0-9]{1,6})?) ?/ ?([^,]{1,32})(?:, ?burst ([0-9][0-9_,]{0,15}))?", re.ASCII)
_GROUPED = re.compile(r"[0-9]{1,12}|[0-9]{1,3}(?:[,_][0-9]{3})+", re.ASCII)
_PER = {
    "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "hr": 3600.0, "hour": 3600.0, "d": 86_400.0,
    "day": 86_400.0,
}
_PER_NAMES = {1.0: "s", 60.0: "min", 3600.0: "h", 86_400.0: "d"}
_MAX_COUNT = 10**12


def parse_rate(text: str) -> Rate:
    """Read `100/s`, `0.5/s`, `1,000/h`, `100/30s`, or with a burst, `100/min, burst 20`. Raises ValueError."""
    text = text.strip()
    match = _RATE.fullmatch(text)
    if match is None:
        if text.lower().startswith("burst"):
            raise ValueError(f'a burst belongs to its rate, in quotes, as in "100/min, {text.lower()}"')
        raise ValueError("not a rate such as 100/s, 0.5/s, 50/min or 1000/h")
    number, period, burst = match.groups()
    count = _count(number)
    if not count:
        raise ValueError("a rate is above zero, as in 1/h")
    period = period.strip()
    per = Decimal(_PER[period] if period in _PER else parse_duration(period))
    if not per:
        raise ValueError("the period of a rate is not 0")
    if count != int(count):  # 0.5/s is one in two seconds
        numerator, denominator = count.as_integer_ratio()
        count, per = Decimal(numerator), per * denominator
    if per > _MAX_DURATION_MS // 1000:
        raise ValueError("a rate is at least one in 36525d, a hundred years")
    at_once = _count(burst) if burst is not None else Decimal(0)
    if burst is not None and not at_once:
        raise ValueError("a burst is at least 1")
    return Rate(int(count), float(per), int(at_once))


def _count(text: str) -> Decimal:
    """`10`, `0.5`, `1,000` or `1_000`."""
    whole, point, rest = text.partition(".")
    if not _GROUPED.fullmatch(whole):
        raise ValueError(f"{text!r} is no number")
    count = Decimal(whole.replace(",", "").replace("_", "") + point + rest)
    if count > _MAX_COUNT:
        raise ValueError("a rate is at most 1000000000000 in its period")
    return count


def format_rate(rate: Rate) -> str:
    """Write a rate so that `parse_rate` reads the same."""
    burst = f", burst {rate.burst}" if rate.burst else ""
    return f"{rate.count}/{_PER_NAMES.get(rate.per_s) or format_duration(rate.per_s)}{burst}"


# --- names ---------------------------------------------------------------------------------------------------------

# Underscores are not host names by RFC 1123, but domains with them receive mail.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)


def parse_domain(text: str) -> Domain:
    """Read a recipient domain: lower case, A-labels (RFC 5890), no final dot; or `[192.0.2.1]`. Raises ValueError."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return _address_literal(text[1:-1])
    if "@" in text:
        raise ValueError(f"a domain is what follows the @, {text.rpartition('@')[2]!r}" if text.rpartition("@")[2]
                         else "not a domain such as example.org")
    if _is_address(text):
        raise ValueError(f"an address as a domain is written in brackets, \"[{text}]\"")
    return parse_name(text)


def parse_route_key(text: str) -> RouteKey:
    """Read a recipient domain or `*`. Raises ValueError."""
    text = text.strip()
    if text == "*":
        return text
    if "*" in text:
        raise ValueError('not a domain: "*" alone stands for all domains without an entry, there is no other wildcard')
    return parse_domain(text)


def parse_name(text: str) -> str:
    """Read a DNS name of one label or more: lower case, A-labels, no final dot. Raises ValueError."""
    name = text.strip().removesuffix(".")
    if not name:
        raise ValueError("a name is empty")
    if "*" in name:
        raise ValueError("not a name: it is written out, there are no wildcards here")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError, IndexError) as error:
            raise ValueError(f"not an internationalised domain name: {printable(str(error), 200)}") from error
    name = name.lower()
    if _is_address(name):  # where its dots were others of IDNA's
        raise ValueError("a name is no address")
    if len(name) > 253:
        raise ValueError("a name has at most 253 characters")
    for label in name.split("."):
        if not label:
            raise ValueError("a name has an empty label, two dots in a row")
        if len(label) > 63:
            raise ValueError("a label of a name has at most 63 characters")
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is no label of a name (letters, digits, and hyphens inside)")
    return name


def parse_host_pattern(text: str) -> HostPattern:
    """Read a host name, or a pattern of names such as `*.google.com`. Raises ValueError."""
    pattern = text.strip().removesuffix(".").lower()
    if _is_address(pattern.strip("[] ")) or "/" in pattern:
        raise ValueError("an address is no name of a host")
    if pattern.startswith("."):
        raise ValueError(f'a pattern has a * for what may stand there, as in "*{pattern}"')
    if "*" not in pattern:
        return parse_host_name(pattern)
    if "." not in pattern_suffix(pattern):
        raise ValueError("too wide a pattern, expected one that ends in a domain, as in *.example.net")
    labels = []
    for label in pattern.split("."):
        if "*" in label:
            parse_name(label.replace("*", "0"))  # what stands around the stars
            labels.append(label)
        else:
            labels.append(parse_name(label))
    return ".".join(labels)


def pattern_suffix(pattern: HostPattern) -> str:
    """The labels at the end of a pattern that have no star, nor touch one: `example.net` of `mx*.example.net`."""
    return pattern.rpartition("*")[2].partition(".")[2]


def parse_host_or_network(text: str) -> HostOrNetwork:
    """Read a network, an address, a host name or a pattern of names. Raises ValueError."""
    text = text.strip()
    address = text.partition("/")[0]
    if "/" in text or _is_address(address):
        return format_network(parse_network(text))
    return parse_host_pattern(text)


def parse_host_name(text: str) -> HostName:
    """Read a fully qualified host name. Raises ValueError."""
    if _is_address(text.strip("[] ")):
        raise ValueError("a host name is no address")
    name = parse_name(text)
    if "." not in name:
        raise ValueError(f"a host name is fully qualified, as in {name}.example.net")
    return name


def _address_literal(text: str) -> str:
    """The domain `[text]` in canonical form (RFC 5321 4.1.3)."""
    prefixed = text.lower().startswith("ipv6:")
    try:
        address = _address(text[5:] if prefixed else text)
    except ValueError:
        raise ValueError("not an address literal such as [192.0.2.1] or [IPv6:2001:db8::1]") from None
    if address.version == 6:
        return f"[IPv6:{address}]"
    if prefixed:
        raise ValueError(f"not an IPv6 address, write [{address}]")
    return f"[{address}]"


# --- addresses -----------------------------------------------------------------------------------------------------


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if "%" in text:
        raise ValueError("an address has no zone here (%...)")
    return ipaddress.ip_address(text)


def _is_address(text: str) -> bool:
    try:
        _address(text)
    except ValueError:
        return False
    return True


def parse_ipv4(text: str) -> IPv4:
    """Read one IPv4 address. Raises ValueError."""
    try:
        return str(ipaddress.IPv4Address(text.strip()))
    except ValueError:
        raise ValueError("not an IPv4 address such as 192.0.2.1") from None


def parse_ipv6(text: str) -> IPv6:
    """Read one IPv6 address, with or without brackets. Raises ValueError."""
    text = text.strip()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = _address(bare)
    except ValueError:
        address = None
    if address is None or address.version != 6:
        raise ValueError("not an IPv6 address such as 2001:db8::1")
    return str(address)


def parse_endpoint(text: str, default_port: int | None = None) -> Endpoint:
    """Read `192.0.2.1:25`, `[2001:db8::1]:25` or `relay.example.net:25`. Raises ValueError.

    Without `:port` the `default_port` is taken, if there is one. Port 0 is read: a listener may ask for any free port.
    """
    text = text.strip()
    if _is_address(text) and ":" in text and not text.startswith("["):
        raise ValueError("an IPv6 address is written in brackets, as in [2001:db8::1]:25")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("not host:port such as [2001:db8::1]:25")
        host, port_text = parse_ipv6(host), rest[1:] if rest else None
    else:
        host, colon, after = text.partition(":")
        port_text = after if colon else None
        host = host if _is_address(host) else _endpoint_name(host)
    if port_text is None:
        if default_port is None:
            raise ValueError(f"a port is missing, as in {Endpoint(host, 25)}")
        return Endpoint(host, default_port)
    if not re.fullmatch(r"[0-9]{1,5}", port_text, re.ASCII) or int(port_text) > 65_535:
        raise ValueError(f"{port_text!r} is no port, a number up to 65535" if len(port_text) < 20 else
                         "not host:port such as 192.0.2.1:25")
    return Endpoint(host, int(port_text))


def _endpoint_name(host: str) -> str:
    if not host:
        raise ValueError("the host is missing, as in 127.0.0.1:25")
    if host == "*":
        raise ValueError('all addresses are written 0.0.0.0:25, and "[::]:25" for IPv6')
    if re.fullmatch(r"[0-9.]+", host, re.ASCII):
        raise ValueError(f"{host!r} is no address" if len(host) < 40 else "not an address")
    return parse_name(host)


_LABEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def parse_label(text: str) -> Name:
    """Read the name of a source, pool, tenant or campaign. Raises ValueError."""
    text = text.strip()
    if not _LABEL_NAME.fullmatch(text):
        raise ValueError("a name has 1 to 64 letters, digits, dots, hyphens and underscores")
    return text


_HEADER_NAME = re.compile(r"[!-9;-~]{1,64}", re.ASCII)


def parse_header_name(text: str) -> HeaderName:
    """Read the name of a header field. Raises ValueError."""
    text = text.strip().removesuffix(":")
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError("not the name of a header field such as X-Tenant")
    return text


def parse_proxy(text: str) -> Proxy:
    """Read `socks5://host:port`, `socks5://user:password@host:port` or `haproxy://host:port`. Raises ValueError."""
    kind, found, rest = text.strip().partition("://")
    if not found or kind not in ("socks5", "haproxy"):
        raise ValueError("not a proxy such as socks5://192.0.2.1:1080 or haproxy://192.0.2.1:5000")
    login, at, address = rest.rpartition("@")
    if at and kind != "socks5":
        raise ValueError("only socks5 has user and password")
    user, _, password = login.partition(":")
    if at and not (1 <= len(user.encode()) <= 255 and 1 <= len(password.encode()) <= 255):
        raise ValueError("user and password have 1 to 255 octets each (RFC 1929)")
    endpoint = parse_endpoint(address)
    if endpoint.port == 0:
        raise ValueError("port 0 cannot be connected to")
    return Proxy(kind, endpoint.host, endpoint.port, user, password)


_USER_NAME = re.compile(r"(?![#*])[!-9;-~]{1,128}", re.ASCII)


def parse_user_name(text: str) -> UserName:
    """Read the name of who logs in. Raises ValueError."""
    text = text.strip()
    if not _USER_NAME.fullmatch(text):
        raise ValueError("a user has 1 to 128 visible ASCII characters without a colon, and begins with no # or *")
    return text


_LOCAL_PART = re.compile(r"[^\s@<>\"\\]{1,128}")


def parse_sender_pattern(text: str) -> SenderPattern:
    """Read `a@example.org`, `example.org` or `*.example.org`. Raises ValueError."""
    local, at, domain = text.strip().rpartition("@")
    if at and not _LOCAL_PART.fullmatch(local):
        raise ValueError("not a mailbox such as news@example.org, a domain, or *.example.org for those below it")
    below = domain.startswith("*.") and not at
    name = parse_domain(domain.removeprefix("*.") if below else domain)
    return f"{local}@{name}" if at else f"*.{name}" if below else name


def parse_http_url(text: str) -> HttpUrl:
    """Read a URL. Raises ValueError."""
    text = text.strip()
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("not a URL such as https://auth.example.net/smtp") from None
    if not url.hostname or url.scheme not in ("http", "https") or not text.isascii() or not text.isprintable() \
            or " " in text or port == 0:
        raise ValueError("not a URL such as https://auth.example.net/smtp")
    if url.username is not None or url.password is not None or url.fragment:
        raise ValueError("a URL has no user, password or fragment here")
    loopback = url.hostname == "localhost" or (_is_address(url.hostname) and _address(url.hostname).is_loopback)
    if url.scheme == "http" and not loopback:
        raise ValueError("passwords go there, expected https")
    return text


def format_endpoint(endpoint: Endpoint) -> str:
    """Write `host:port`."""
    return str(endpoint)


def parse_network(text: str) -> Network:
    """Read `10.0.0.0/8`, `2001:db8::/32` or one address. Raises ValueError; host bits that are set are explained."""
    text = text.strip()
    address_text, slash, length = text.partition("/")
    try:
        address = _address(address_text)
    except ValueError:
        raise ValueError("not a network such as 10.0.0.0/8, 2001:db8::/32 or one address") from None
    if slash and not re.fullmatch(r"[0-9]{1,3}", length, re.ASCII):
        raise ValueError(f"the length of a network is a number of bits, as in {address}/{address.max_prefixlen - 8}")
    if slash and int(length) > address.max_prefixlen:
        raise ValueError(f"the length of an IPv{address.version} network is at most {address.max_prefixlen}")
    network = ipaddress.ip_network((address, int(length) if slash else address.max_prefixlen), strict=False)
    if network.network_address != address:
        raise ValueError(f"{address} is not where a /{network.prefixlen} begins: write {network} for that network, "
                         f"or {address} for the one address")
    return network


def format_network(network: Network) -> str:
    """Write a network; a single address without its length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


# --- paths ---------------------------------------------------------------------------------------------------------


def parse_directory(text: str) -> Directory:
    """Read a path. Raises ValueError for what no path is."""
    if not text.strip():
        raise ValueError("a path is empty")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("a path has a control character in it")
    return text


# --- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """One type for the loader and the reference: its name for people, how it is read and printed."""

    name: str
    parse: Callable[[str], Any]
    format: Callable[[Any], str]


KINDS: dict[Any, Kind] = {
    Duration: Kind("a duration (30s, 10m, 4h, 5d)", parse_duration, format_duration),
    Size: Kind("a size (64KB, 25MB, 2GiB)", parse_size, format_size),
    Rate: Kind("a rate (100/s, 50/min, 1000/h)", parse_rate, format_rate),
    HostPattern: Kind("a host name or a pattern such as *.example.net", parse_host_pattern, str),
    HostOrNetwork: Kind("a host name, a pattern such as *.example.net, a network or an address",
                        parse_host_or_network, str),
    ProvidersFile: Kind("shipped, none or a file", parse_directory, str),
    Endpoint: Kind("host:port", parse_endpoint, format_endpoint),
    Network: Kind("a network (10.0.0.0/8) or an address", parse_network, format_network),
    UserName: Kind("the name of a user", parse_user_name, str),
    SenderPattern: Kind("a mailbox, a domain or *.domain", parse_sender_pattern, str),
    HttpUrl: Kind("a URL (https://...)", parse_http_url, str),
    HostName: Kind("a host name", parse_host_name, str),
    Domain: Kind("a domain", parse_domain, str),
    RouteKey: Kind("a domain or *", parse_route_key, str),
    IPv4: Kind("an IPv4 address", parse_ipv4, str),
    IPv6: Kind("an IPv6 address", parse_ipv6, str),
    Directory: Kind("a directory", parse_directory, str),
    FilePath: Kind("a file", parse_directory, str),
    Name: Kind("a name", parse_label, str),
    HeaderName: Kind("a header field's name", parse_header_name, str),
    Proxy: Kind("a proxy (socks5://host:port, haproxy://host:port)", parse_proxy, str),
}
