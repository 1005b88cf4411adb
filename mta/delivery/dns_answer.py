"""What a DNS response means for the one who asked: an answer, a wish to ask elsewhere, or nothing of use.

No I/O and no clock. The rule behind all of it: only a server that really answered may make mail fail for good.
SERVFAIL, REFUSED, FORMERR, a referral or nonsense say something of the server, never of the domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from mta.config.schema import Dns
from mta.delivery import dns_wire
from mta.delivery.dns_wire import MailHost, Message, RecordType

MOST_ALIASES: Final = 10  # CNAMEs in a row (Postfix follows as many)
MOST_RECORDS: Final = 100  # kept of one answer: bounds what a hostile domain can make us remember

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What is known of one name and type.

    `ok`: there are `records`, MX sorted by preference. `nodata`: the name exists, without records of the type.
    `nxdomain`: there is no such name. `failure`: nobody knows now; `detail` says which server did what.
    """

    kind: Literal["ok", "nodata", "nxdomain", "failure"]
    records: tuple[T, ...]
    expires: float  # monotonic seconds
    detail: str = ""
    proven: bool = True  # of `nodata`: there was an SOA with it (RFC 2308 2.2); else it may be a resolver's own fault
    authentic: bool = False  # verified by DNSSEC, says a server whose word we take (`dns.validates`)


class Verdict(NamedTuple):
    """What one response means. `alias`: look for `text` instead. `unusable`: ask another server, `text` says why."""

    kind: Literal["ok", "nodata", "nxdomain", "alias", "unusable"]
    records: tuple[Any, ...] = ()
    ttl: int | None = None  # seconds; None when the response does not say
    text: str = ""


def judge(message: Message, name: str, record_type: RecordType) -> Verdict:
    """What `message`, a response to the question for `name`, says."""
    if message.rcode not in (dns_wire.NOERROR, dns_wire.NXDOMAIN):
        return Verdict("unusable", text=dns_wire.RCODES.get(message.rcode, f"response code {message.rcode}"))
    wanted = dns_wire.TYPES[record_type]
    ttl: int | None = None
    seen = [name]
    while True:
        found = [record for record in message.answers if record.name == seen[-1]]
        values = [record.value for record in found if record.type == wanted]
        if values:
            ttls = [record.ttl for record in found if record.type == wanted]
            return Verdict("ok", _tidy(values), min(ttls if ttl is None else [ttl, *ttls]))
        alias = next((record for record in found if record.type == dns_wire.CNAME), None)
        if alias is None:
            break
        target = str(alias.value)
        ttl = alias.ttl if ttl is None else min(ttl, alias.ttl)
        if target in seen or len(seen) > MOST_ALIASES:
            return Verdict("unusable", text=describe_aliases([*seen, target]))
        seen.append(target)
    if message.rcode == dns_wire.NXDOMAIN:
        return Verdict("nxdomain", ttl=_least(ttl, message.soa_ttl))
    if message.soa_ttl is not None:
        return Verdict("nodata", ttl=_least(ttl, message.soa_ttl))
    if len(seen) > 1:
        return Verdict("alias", ttl=ttl, text=seen[-1])
    if message.referral or not (message.recursion or message.authoritative):
        return Verdict("unusable", text="no recursion, it only refers to other servers")
    return Verdict("nodata")


def describe_aliases(names: Sequence[str]) -> str:
    """The text for CNAMEs that lead nowhere; the last name is the one too many."""
    what = "a loop of CNAMEs" if names[-1] in names[:-1] else f"more than {MOST_ALIASES} CNAMEs in a row"
    shown = [*names[:3], "..."] if len(names) > 4 else names
    return f"{what}, {' -> '.join(shown)}"


def believe_s(kind: str, ttl: int, settings: Dns) -> float:
    """For how many seconds to keep an answer of `kind`, within the bounds of the configuration."""
    longest = settings.max_ttl if kind == "ok" else min(settings.negative_ttl, settings.max_ttl)
    return max(min(ttl, longest), settings.min_ttl)


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _tidy(values: list[str | MailHost]) -> tuple[str | MailHost, ...]:
    """Each value once, mail hosts by preference, a bounded number. A host named twice keeps its best preference."""
    if len(values) == 1:
        return tuple(values)
    if not isinstance(values[0], MailHost):
        return tuple(dict.fromkeys(values))[:MOST_RECORDS]
    best: dict[str, MailHost] = {}
    for value in values:
        assert isinstance(value, MailHost)
        if value.host not in best or value.preference < best[value.host].preference:
            best[value.host] = value
    return tuple(sorted(best.values()))[:MOST_RECORDS]
