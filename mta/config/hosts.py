"""Hosts in the configuration: names, patterns of names, domains, addresses, endpoints, proxies, networks.

How they are written, read and printed: every `parse_*` raises ValueError with a text for the operator. Nothing here
asks the network.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, NamedTuple, TypeAlias

import idna

from mta.config.problems import printable

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
"""A range of addresses; one address is a network of one."""

HostName: TypeAlias = Annotated[str, "HostName"]
"""A fully qualified name of a host, lower case, A-labels."""

Domain: TypeAlias = Annotated[str, "Domain"]
"""A recipient domain: lower case, A-labels; or an address literal, `[192.0.2.1]` or `[ipv6:2001:db8::1]`."""

RouteKey: TypeAlias = Annotated[str, "RouteKey"]
"""A recipient domain, or `*` for all others."""

HostPattern: TypeAlias = Annotated[str, "HostPattern"]
"""A host name, or a pattern of names with `*` for any characters, such as `*.google.com`. Lower case, A-labels."""

HostOrNetwork: TypeAlias = Annotated[str, "HostOrNetwork"]
"""A host name or pattern of names, or a network, in canonical form."""

IPv4: TypeAlias = Annotated[str, "IPv4"]
"""An IPv4 address as text, in canonical form."""

IPv6: TypeAlias = Annotated[str, "IPv6"]
"""An IPv6 address as text, in canonical form."""


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


# --- names ---------------------------------------------------------------------------------------------------------

# Underscores are not host names by RFC 1123, but domains with them receive mail.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
IDNA_DOTS: Final = str.maketrans("\u3002\uff0e\uff61", "...")
"""The dots that IDNA has beside the usual one, as that; for `str.translate`."""


def parse_domain(text: str) -> Domain:
    """Read a recipient domain: lower case, A-labels (RFC 5890), no final dot; or `[192.0.2.1]`. Raises ValueError.

    What it gives is what queues, paths and targets have: a domain is one however it is written, and so is an address.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return _address_literal(text[1:-1])
    if "@" in text:
        raise ValueError(f"a domain is what follows the @, {text.rpartition('@')[2]!r}" if text.rpartition("@")[2]
                         else "not a domain such as example.org")
    if is_address(text):
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
    if is_address(name):  # where its dots were others of IDNA's
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
    """Read a host name, or a pattern of names such as `*.google.com`. Raises ValueError.

    Hosts have A-labels, and what begins with `bü` has nothing in common there: a label with a star in it is ASCII.
    """
    pattern = text.strip().translate(IDNA_DOTS).removesuffix(".").lower()
    if is_address(pattern.strip("[] ")) or "/" in pattern:
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
            if not label.isascii():
                raise ValueError(f"{label!r} fits no host: hosts are compared as A-labels (xn--...), of which it is no "
                                 "part; expected the names written out, or a * for the whole label")
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
    if "/" in text or is_address(address):
        return format_network(parse_network(text))
    return parse_host_pattern(text)


def parse_host_name(text: str) -> HostName:
    """Read a fully qualified host name. Raises ValueError."""
    if is_address(text.strip("[] ")):
        raise ValueError("a host name is no address")
    name = parse_name(text)
    if "." not in name:
        raise ValueError(f"a host name is fully qualified, as in {name}.example.net")
    return name


def _address_literal(text: str) -> str:
    """The domain `[text]` (RFC 5321 4.1.3) in the one form of a domain: lower case, as `ipaddress` writes it."""
    prefixed = text.lower().startswith("ipv6:")
    try:
        address = address_of(text[5:] if prefixed else text)
    except ValueError:
        raise ValueError("not an address literal such as [192.0.2.1] or [IPv6:2001:db8::1]") from None
    if address.version == 6:
        return f"[ipv6:{address}]"
    if prefixed:
        raise ValueError(f"not an IPv6 address, write [{address}]")
    return f"[{address}]"


# --- addresses -----------------------------------------------------------------------------------------------------


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address of either family. Raises ValueError."""
    if "%" in text:
        raise ValueError("an address has no zone here (%...)")
    return ipaddress.ip_address(text)


def is_address(text: str) -> bool:
    """Whether the text is an address of either family."""
    try:
        address_of(text)
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
        address = address_of(bare)
    except ValueError:
        address = None
    if address is None or address.version != 6:
        raise ValueError("not an IPv6 address such as 2001:db8::1")
    return str(address)


# --- endpoints, proxies, networks ------------------------------------------------------------------------------------


def parse_endpoint(text: str, default_port: int | None = None) -> Endpoint:
    """Read `192.0.2.1:25`, `[2001:db8::1]:25` or `relay.example.net:25`. Raises ValueError.

    Without `:port` the `default_port` is taken, if there is one. Port 0 is read: a listener may ask for any free port.
    """
    text = text.strip()
    if is_address(text) and ":" in text and not text.startswith("["):
        raise ValueError("an IPv6 address is written in brackets, as in [2001:db8::1]:25")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("not host:port such as [2001:db8::1]:25")
        host, port_text = parse_ipv6(host), rest[1:] if rest else None
    else:
        host, colon, after = text.partition(":")
        host = host.strip()
        port_text = after if colon else None
        host = host if is_address(host) else _endpoint_name(host)
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


def format_endpoint(endpoint: Endpoint) -> str:
    """Write `host:port`."""
    return str(endpoint)


def parse_network(text: str) -> Network:
    """Read `10.0.0.0/8`, `2001:db8::/32` or one address. Raises ValueError; host bits that are set are explained."""
    text = text.strip()
    address_text, slash, length = text.partition("/")
    try:
        address = address_of(address_text)
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
