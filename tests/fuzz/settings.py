"""What operators write: the configuration and its units. Hostile by accident only, but every mistake is to be told with
its place."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

from mta.config import forms, hosts, loader, reply_patterns, tree, units

_ROOT: Final = Path(__file__).parents[2]
PROBLEMS: Final = 1000


_HEAD: Final = b"hostname: mta.example\nproviders: none\nrules_file: none\n"


@cache
def config_seeds() -> tuple[bytes, ...]:
    """The files that we ship, and small ones that are quick."""
    return (
        (_ROOT / "conf" / "minimal.yaml").read_bytes(),
        _HEAD + b"listeners: [{listen: 127.0.0.1:25, relay_from: [10.0.0.0/8]}]\n",
        _HEAD + b"shaping:\n  domains:\n    example.org: {connections: 5, rate: 10/min}\n",
        b"hostname: &x mta.example\nspool: *x\nproviders: none\nrules_file: none\n", b"a: [1, {b: c\n", b"? [x]\n: y\n",
        _HEAD + b"retry: [5m, 1h]\nexpires: 2d\nlabels: {tenant: [X-T]}\ntenants: {acme: {weight: 2, rate: 5/s}}\n",
        _HEAD + b"users: {tim: {senders: ['@a.example']}}\nchecks: {from_domains: [a.example]}\n",
    )


CONFIG_WORDS: Final = (
    b"hostname: ", b"listeners:\n", b"- ", b": ", b"\n  ", b"&x ", b"*x", b"!!str ", b"<<: ", b"|\n", b"'", b'"',
    b"{", b"}", b"[",
    b"]", b"~", b"10/min", b"5m", b"1GB", b"off", b"providers: none\n", b"rules_file: none\n", b"sources:\n",
    b"pools:\n", b"routes:\n",
    b"shaping:\n", b"---\n", b"%YAML 1.2\n", b"\t", b"\xef\xbb\xbf",
)  # fmt: skip


def run_config(data: bytes) -> None:
    """A configuration, or at least one problem with a place that is in the file, each in one line; never both."""
    text = data.decode("utf-8", "replace")
    if "providers: none" not in text or "rules_file: none" not in text:
        text = f"providers: none\nrules_file: none\n{text}"  # which take a second
    reading = loader.read_text(text, "/etc/mta/x.yaml")
    assert (reading.config is None) == bool(reading.problems)
    lines = len(tree._LINE_END.findall(text)) + 2
    for problem in reading.problems:
        assert 0 <= problem.line <= lines or problem.file != "/etc/mta/x.yaml"
        assert problem.column >= 0
        assert str(problem).isprintable()
    assert len(reading.problems) <= PROBLEMS


_PARSERS: Final[tuple[Callable[[str], Any], ...]] = (
    units.parse_duration, units.parse_size, units.parse_rate, hosts.parse_domain, hosts.parse_route_key,
    hosts.parse_name,
    hosts.parse_host_pattern, hosts.parse_host_or_network, hosts.parse_host_name, hosts.parse_ipv4, hosts.parse_ipv6,
    hosts.parse_endpoint, forms.parse_label, forms.parse_header_name, hosts.parse_proxy, forms.parse_user_name,
    forms.parse_sender_pattern, forms.parse_http_url, hosts.parse_network, forms.parse_directory,
    reply_patterns.parse_code, reply_patterns.parse_enhanced, reply_patterns.parse_reply,
)  # fmt: skip
UNIT_SEEDS: Final = (
    b"\x001h30m", b"\x0150MB", b"\x02100/min", b"\x03example.org", b"\x04*.example.org", b"\x06mx*.example.org",
    b"\x0710.0.0.0/8",
    b"\x0b[::1]:25", b"\x0e192.0.2.1:1080", b"\x10*@example.org", b"\x11https://x.example/a?b",
    b"\x122001:db8::/32", b"\x13/var/spool",
    b"\x1445x", b"\x155.7.x", b"\x16550-5.7.1 a\n550 b", b"\x05b\xc3\xbccher.example", b"\x02max 5 per 10s", b"\x0c c",
)  # fmt: skip
UNIT_WORDS: Final = (
    b"/", b":", b".", b"[", b"]", b"%", b"xn--", b"1e9", b"\xe3\x80\x82", b"\xd9\xa3", b"ms", b"GB", b"*", b"@",
    b"\0",
)  # fmt: skip
_FORMATS: Final[dict[int, Callable[[Any], str]]] = {
    0: units.format_duration, 1: units.format_size, 2: units.format_rate, 11: hosts.format_endpoint,
    18: hosts.format_network,
}


def run_units(data: bytes) -> None:
    """A value is read or refused; written again it is the same value; names are read as what they are already."""
    if not data:
        return
    number = data[0] % len(_PARSERS)
    text = data[1:].decode("utf-8", "replace")
    parse = _PARSERS[number]
    try:
        value = parse(text)
    except ValueError as error:
        assert str(error)
        return
    shown = _FORMATS.get(number)
    if shown is not None:
        assert parse(shown(value)) == value, (value, shown(value))
    elif isinstance(value, str):
        assert parse(value) == value
