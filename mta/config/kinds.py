"""The types of the configuration that are written as a text: how the loader reads each, how the reference names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mta.config import forms, hosts, units


@dataclass(frozen=True, slots=True)
class Kind:
    """One type for the loader and the reference: its name for people, how it is read and printed."""

    name: str
    parse: Callable[[str], Any]
    format: Callable[[Any], str]


KINDS: dict[Any, Kind] = {
    units.Duration: Kind("a duration (30s, 10m, 4h, 5d)", units.parse_duration, units.format_duration),
    units.Size: Kind("a size (64KB, 25MB, 2GiB)", units.parse_size, units.format_size),
    units.Rate: Kind("a rate (100/s, 50/min, 1000/h)", units.parse_rate, units.format_rate),
    hosts.HostPattern: Kind("a host name or a pattern such as *.example.net", hosts.parse_host_pattern, str),
    hosts.HostOrNetwork: Kind("a host name, a pattern such as *.example.net, a network or an address",
                              hosts.parse_host_or_network, str),
    forms.ProvidersFile: Kind("shipped, none or a file", forms.parse_directory, str),
    hosts.Endpoint: Kind("host:port", hosts.parse_endpoint, hosts.format_endpoint),
    hosts.Network: Kind("a network (10.0.0.0/8) or an address", hosts.parse_network, hosts.format_network),
    forms.UserName: Kind("the name of a user", forms.parse_user_name, str),
    forms.SenderPattern: Kind("a mailbox, a domain or *.domain", forms.parse_sender_pattern, str),
    forms.HttpUrl: Kind("a URL (https://...)", forms.parse_http_url, str),
    hosts.HostName: Kind("a host name", hosts.parse_host_name, str),
    hosts.Domain: Kind("a domain", hosts.parse_domain, str),
    hosts.RouteKey: Kind("a domain or *", hosts.parse_route_key, str),
    hosts.IPv4: Kind("an IPv4 address", hosts.parse_ipv4, str),
    hosts.IPv6: Kind("an IPv6 address", hosts.parse_ipv6, str),
    forms.Directory: Kind("a directory", forms.parse_directory, str),
    forms.FilePath: Kind("a file", forms.parse_directory, str),
    forms.Name: Kind("a name", forms.parse_label, str),
    forms.HeaderName: Kind("a header field's name", forms.parse_header_name, str),
    hosts.Proxy: Kind("a proxy (socks5://host:port, haproxy://host:port)", hosts.parse_proxy, str),
}
