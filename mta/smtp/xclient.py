"""XCLIENT: a trusted host in front of us says for whom it speaks (Postfix, XCLIENT_README)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from typing import Final

from mta.smtp.peer import Identity, Peer
from mta.smtp.xtext import decode

HELO_NAME: Final = re.compile(rb"[A-Za-z0-9\[](?:[A-Za-z0-9._:\]-]{0,254})")
"""What a client may call itself."""

_UNKNOWN: Final = ("[UNAVAILABLE]", "[TEMPUNAVAIL]", "")
_NOWHERE: Final = "0.0.0.0"  # an address that is in no network and no Unix socket
_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253})")
_OVERLOOKED: Final = ("PROTO", "DESTADDR", "DESTPORT")  # nothing of ours depends on them


class AttributeValueError(ValueError):
    """An attribute that is wrong; the text says which."""


def read_attributes(argument: bytes, peer: Peer, helo: str) -> tuple[Peer, str]:
    """The client that `argument`, `NAME=value ...`, makes of `peer`, and what it calls itself.

    A login of the host in front of us is its own, not that of its clients: these are who LOGIN says, or nobody. Raises
    AttributeValueError.
    """
    items = argument.split()
    if not items:
        raise AttributeValueError("no attributes")
    if peer.identity is not None and peer.identity.via != "xclient":
        peer = replace(peer, identity=None)
    for item in items:
        name_raw, equals, value_raw = item.partition(b"=")
        name = name_raw.decode("ascii", "replace").upper()
        try:
            value = decode(value_raw.decode("ascii"))
        except ValueError:
            raise AttributeValueError(f"bad value of {name[:40]}") from None
        known = value.upper() not in _UNKNOWN
        if not equals:
            raise AttributeValueError(f"{name[:40]} has no value")
        if name == "ADDR":
            peer = replace(peer, address=_address(value) if known else _NOWHERE)
        elif name == "PORT":
            peer = replace(peer, port=_port(value) if known else 0)
        elif name == "NAME":
            if known and _NAME.fullmatch(value) is None:
                raise AttributeValueError("bad value of NAME")
            peer = replace(peer, name=value if known else "")
        elif name == "LOGIN":
            peer = replace(peer, identity=Identity(value, "xclient") if known else None)
        elif name == "HELO":
            if known and HELO_NAME.fullmatch(value.encode()) is None:
                raise AttributeValueError("bad value of HELO")
            helo = value if known else ""
        elif name not in _OVERLOOKED:
            raise AttributeValueError(f"{name[:40]} is not known")
    return peer, helo


def _address(value: str) -> str:
    text = value[5:] if value[:5].upper() == "IPV6:" else value
    if "%" in text:  # a zone means something to its own host only
        raise AttributeValueError("bad value of ADDR")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise AttributeValueError("bad value of ADDR") from None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _port(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 5 and 0 < int(value) < 65_536):
        raise AttributeValueError("bad value of PORT")
    return int(value)
