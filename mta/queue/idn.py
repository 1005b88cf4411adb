"""Domains as people write them: `bücher.example` and `XN--BCHER-KVA.example` are one, so are `[ipv6:2001:db8::1]` and
`[IPv6:2001:DB8:0::1]`.

Queues, targets and the lists of the configuration have A-labels (RFC 5890) in lower case; an envelope keeps what its
client wrote, in either form. What an operator writes is compared by both. Label by label, as a pattern of a name has
labels that are whole and others with a `*` in them; what is no label of a name stays as it is. An address literal has
one form, the configuration's. Pure.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Final

from mta.config.hosts import IDNA_DOTS, parse_domain
from mta.smtp.address import AddressError, domain_forms

_PREFIX: Final = "xn--"
_WILD: Final = re.compile(r"[*?\[]")
_NAME: Final = re.compile(r"\[[^\]]*\](?::[0-9]+)?|[^\s,:/?~+\[\]]+")  # in the name of a site; of a relay with its port


def in_a_labels(domain: str) -> str:
    """A domain, or a pattern of domains, in lower case and A-labels, without a final dot."""
    if domain.isascii():
        return literal(domain) or domain.lower().removesuffix(".")
    return _by_label(domain, 0)


def in_u_labels(domain: str) -> str:
    """The same in U-labels."""
    return literal(domain) or _by_label(domain, 1)


def literal(text: str) -> str:
    """An address literal in its one form; empty of all else."""
    if not (text.startswith("[") and text.endswith("]")):
        return ""
    try:
        return parse_domain(text)
    except ValueError:  # a pattern, as it has brackets, too
        return ""


def forms(text: str) -> tuple[str, ...]:
    """How a domain, a mailbox, or the name of a queue may be written, or a pattern of these; all in lower case, the one
    with A-labels first."""
    lower = text.lower()
    if lower.isascii() and _PREFIX not in lower and "[" not in lower:
        return (lower,)
    found = (_with_domain(lower, in_a_labels), _with_domain(lower, in_u_labels), lower)
    return tuple(dict.fromkeys(found))


def queue_called(name: str) -> str:
    """The name of a queue as it is kept, for one whose domain may be written in another form."""
    return _with_domain(name, in_a_labels)


def path_called(name: str) -> str:
    """The name of a path or a site as it is kept. Names of sources and pools are what they are."""
    source, arrow, site = name.rpartition(">")
    if site.startswith("?/"):  # there is no pool
        return name
    return f"{source}{arrow}{_NAME.sub(lambda found: in_a_labels(found[0]), site)}"


def _with_domain(text: str, convert: Callable[[str], str]) -> str:
    """Text with the domain in it converted: what follows the last @, up to the pool or priority of a queue."""
    before, at, rest = text.rpartition("@")
    end = min((place for place in map(rest.find, "/^") if place >= 0), default=len(rest))
    return f"{before}{at}{convert(rest[:end])}{rest[end:]}"


def _by_label(domain: str, form: int) -> str:
    name = domain.translate(IDNA_DOTS).removesuffix(".")
    return ".".join(_label(label, form) for label in name.split("."))


def _label(label: str, form: int) -> str:
    lower = unicodedata.normalize("NFC", label.lower())
    if _WILD.search(lower) or (lower.isascii() and not lower.startswith(_PREFIX)):
        return lower
    try:
        return domain_forms(label)[form]
    except (AddressError, UnicodeError, IndexError):  # none of IDNA's
        return lower
