"""Mailboxes and paths of the SMTP envelope: RFC 5321 4.1.2 and 4.1.3, with UTF-8 as RFC 6531 3.3.

The parser works on bytes as they come from the wire, in one pass and in linear time. What it accepts is safe to write
between `<` and `>` of a later MAIL or RCPT: no control characters, no bare `>`, nothing outside the grammar.

Decisions where the standard leaves room or practice differs:

* A local part is kept as it was written, quotes and case included: only its own host may interpret it (2.3.11).
* A domain is lower-cased. An internationalised one is kept as U-labels, in the form that IDNA maps it to; its A-labels
  come from `domain_to_ascii`. A name whose last label is a number is refused: it would be an address gone astray.
* `_` is allowed in a domain: such names exist and resolve.
* A source route (`<@a,@b:user@c>`) is read and dropped (RFC 5321 4.1.1.3, appendix C).
* Local parts may have 128 octets, not only the 64 that everybody must take: bulk senders put the recipient's address
  into the sender's (VERP), and refusing that here would help nobody.
* `postmaster` is the only address that needs no domain (4.1.1.3).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from functools import lru_cache

LOCAL_LIMIT = 128  # octets
DOMAIN_LIMIT = 255  # octets, RFC 5321 4.5.3.1.2
LABEL_LIMIT = 63  # octets, RFC 1035 2.3.4


class AddressError(ValueError):
    """Not an address; the text says what is wrong with it, for the peer and the operator."""


@dataclass(slots=True)
class Address:
    """A mailbox. Both parts are empty in the null path `<>`; the domain alone is empty in `<postmaster>`."""

    local: str  # as written, perhaps in quotes
    domain: str  # lower case; or an address literal, `[192.0.2.1]` or `[IPv6:2001:db8::1]`
    a_labels: str = field(default="", compare=False, repr=False)  # of a domain beyond ASCII

    @property
    def text(self) -> str:
        """The mailbox as it goes between the brackets of a path; empty for the null path."""
        return f"{self.local}@{self.domain}" if self.domain else self.local

    def __str__(self) -> str:
        return self.text


_ATOM = rb"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]++"
_LABEL = rb"[A-Za-z0-9_](?:-*+[A-Za-z0-9_]++)*"
_UTF8_ATOM = _ATOM.replace(b"[", b"[\\x80-\\xff", 1)
_UTF8_LABEL = _LABEL.replace(b"[", b"[\\x80-\\xff")

# Nearly every path there is. Nothing is tried at length twice: what repeats begins with a character that cannot stand
# behind it. Single characters are repeated possessively, groups are not: Python 3.11.2 (Debian 12's) loses its place
# when the last round of a possessive group fails, and takes `<user.@example.org>`.
_COMMON = re.compile(
    rb"<(?P<local>%(atom)b(?:\.%(atom)b)*)@(?P<domain>%(label)b(?:\.%(label)b)*)>"
    % {b"atom": _ATOM, b"label": _LABEL}
)
_PATH = re.compile(
    rb"""<
    (?: @ %(name)b (?: ,@ %(name)b )* : )?                              # a source route
    (?P<local> %(atom)b (?: \. %(atom)b )*
             | " (?: [ !#-\[\]-~\x80-\xff] | \\[ -~] )* " )
    (?: @ (?P<domain> %(name)b | \[ [!-Z^-~]*+ \] ) )?
    >"""
    % {b"atom": _UTF8_ATOM, b"name": rb"(?:%b(?:\.%b)*|\[[!-Z^-~]*+\])" % (_UTF8_LABEL, _UTF8_LABEL)},
    re.VERBOSE,
)


def parse_path(data: bytes, start: int = 0) -> tuple[Address, int]:
    """Read the path at `data[start:]`: the address in it, and the offset behind its `>`.

    UTF-8 is accepted; whether the session allows it is for the caller to ask (`Address.text.isascii()`). Raises
    AddressError. Hot path: twice per message (tests/smtp/timing.py).
    """
    match = _COMMON.match(data, start)
    if match is not None:
        local, domain = match.group(1, 2)
        if len(domain) <= LABEL_LIMIT and len(local) <= LOCAL_LIMIT and domain[-1] > 57:  # not a digit, which end at 57
            return Address(local.decode(), domain.decode().lower()), match.end()
    elif data.startswith(b"<>", start):
        return Address("", ""), start + 2
    else:
        match = _PATH.match(data, start)
        if match is None:
            raise AddressError(_complaint(data[start:]))
    return _address(match["local"], match["domain"] or b""), match.end()


def parse_address(text: str) -> Address:
    """Read a mailbox written without brackets, as in `user@example.org`. Raises AddressError."""
    path = f"<{text}>".encode(errors="surrogatepass")
    address, end = parse_path(path)
    if end != len(path) or not text:
        raise AddressError("not one address")
    return address


def domain_to_ascii(domain: str) -> str:
    """The domain in A-labels (RFC 5890) and lower case, fit for DNS. Raises AddressError for what IDNA forbids."""
    return domain.lower() if domain.isascii() else _forms(domain)[0]


def domain_forms(domain: str) -> tuple[str, str]:
    """A domain in A-labels and in U-labels, for one that has either. Raises AddressError for what IDNA forbids."""
    return _forms(domain.lower() if domain.isascii() else domain)


def with_a_labels(address: str) -> str:
    """A mailbox for a header line of ours: its domain in A-labels where the rest is ASCII. Else what can go to a host
    without SMTPUTF8 could not, because of that line. Raises AddressError for what IDNA forbids."""
    if address.isascii():
        return address
    local, _, domain = address.rpartition("@")
    return f"{local}@{domain_to_ascii(domain)}" if local.isascii() else address


@lru_cache(maxsize=4096)
def _forms(domain: str) -> tuple[str, str]:
    """A domain beyond ASCII in A-labels and in U-labels. Raises AddressError.

    Remembered, as it takes half a millisecond, and is asked for again when mail is delivered.
    """
    import idna  # here, because its tables cost 2 MB and few need them

    try:
        ascii_form = idna.encode(domain, uts46=True).decode()
        return ascii_form, idna.decode(ascii_form)
    except idna.IDNAError as error:
        raise AddressError(f"not a domain name: {error}") from None


def _address(raw_local: bytes, raw_domain: bytes) -> Address:
    """What has the form of an address, checked for all that the form does not say."""
    if len(raw_local) > LOCAL_LIMIT:
        raise AddressError(f"the local part has more than {LOCAL_LIMIT} octets")
    try:
        local, domain = raw_local.decode(), raw_domain.decode()
    except UnicodeDecodeError:
        raise AddressError("neither ASCII nor UTF-8") from None
    if not local.isprintable():
        raise AddressError("the local part has characters that do not print")
    if not domain:
        if local.lower() != "postmaster":
            raise AddressError("the domain is missing")
        return Address(local, "")
    if domain.startswith("["):
        return Address(local, _literal(domain))
    return Address(local, *_domain_name(domain))


def _domain_name(domain: str) -> tuple[str, str]:
    """A domain as it is kept, and its A-labels if it is beyond ASCII."""
    if len(domain.encode()) > DOMAIN_LIMIT:
        raise AddressError(f"the domain has more than {DOMAIN_LIMIT} octets")
    ascii_form = domain_to_ascii(domain)
    labels = ascii_form.split(".")
    if max(map(len, labels)) > LABEL_LIMIT:
        raise AddressError(f"a label of the domain has more than {LABEL_LIMIT} octets")
    if not labels[-1]:  # IDNA has more dots than one
        raise AddressError("the domain ends in a dot")
    if labels[-1].isdigit():
        raise AddressError("the domain ends in a number; write an address as [192.0.2.1]")
    if domain.isascii():
        return ascii_form, ""
    unicode_form = _forms(domain)[1]
    domain_to_ascii(unicode_form)  # by which it is asked for again
    return unicode_form, "" if unicode_form.isascii() else ascii_form


def _literal(domain: str) -> str:
    """The canonical form of an address literal (RFC 5321 4.1.3)."""
    inner = domain[1:-1]
    try:
        if inner[:5].lower() == "ipv6:" and "%" not in inner:  # a zone means something to its own host only
            return f"[IPv6:{ipaddress.IPv6Address(inner[5:])}]"
        return f"[{ipaddress.IPv4Address(inner)}]"
    except ValueError:
        raise AddressError("not an IPv4 or IPv6 address in the brackets") from None


def _complaint(text: bytes) -> str:
    """The likeliest mistake in something that is no path."""
    if not text.startswith(b"<"):
        return "the address is not in angle brackets"
    if b">" not in text:
        return "the closing angle bracket is missing"
    return "bad address syntax"
