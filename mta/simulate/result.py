"""What comes of a simulation, as numbers: for `--json`, for the text, and for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from mta.simulate.books import Books, Ends
from mta.simulate.receivers import Receivers

MOST_REPLIES = 5


@dataclass(frozen=True, slots=True)
class SiteResult:
    """One receiving site, and the domains behind it together."""

    site: str
    provider: str  # empty when that of none
    recipients: int
    delivered: int
    deferred: int
    bounced: int
    expired: int
    left: int
    last_s: float  # when the last one was delivered
    connections: int
    most_open: int
    refused_connections: int
    throttled: int  # messages refused for their rate
    greylisted: int
    refusals: dict[str, int]  # the most frequent replies
    share: float | None  # of what its rate let through while mail was due; None: it has no rate, or none was due
    held_h: dict[str, float]  # message-hours by reason


@dataclass(frozen=True, slots=True)
class Result:
    """The whole."""

    elapsed_s: float
    recipients: int
    delivered: int
    deferred: int
    bounced: int
    expired: int
    left: int
    reached_s: dict[str, float | None]  # when 50, 90, 99, 100 percent of all recipients were delivered
    held_h: dict[str, float]  # message-hours by reason
    sites: list[SiteResult]
    tenants: dict[str, dict[str, float]]
    priorities: dict[str, dict[str, float]]
    series: list[tuple[float, int, int, int]]  # seconds, delivered, due and not sent, waiting for a retry

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def result_of(books: Books, receivers: Receivers, provider_of: Callable[[str], str | None],
              elapsed_s: float) -> Result:
    """The numbers of a run; `provider_of` tells the provider of a domain, if it is known."""
    by_site: dict[str, list[str]] = {}
    for domain in books.domains:
        by_site.setdefault(_site_of(receivers, domain), []).append(domain)
    sites = [_site(name, provider_of(domains[0]) or "", domains, books, receivers) for name, domains in by_site.items()]
    sites.sort(key=lambda site: (-site.recipients, site.site))
    total = books.total
    return Result(
        round(elapsed_s, 3), total.recipients, total.delivered, total.deferred, total.bounced, total.expired,
        total.left, {str(share): _rounded(books.reached_s.get(share)) for share in (50, 90, 99, 100)},
        _hours(books.held_s), sites,
        {name: _ends(ends) for name, ends in sorted(books.tenants.items())},
        {name: _ends(ends) for name, ends in sorted(books.priorities.items())},
        [(round(row[0], 3), *row[1:]) for row in books.series],
    )


def _site_of(receivers: Receivers, domain: str) -> str:
    """The name under which the sandbox knows the hosts of a domain."""
    internet = receivers.internet
    domain = internet.entry(domain).behaviour().dns.cname or domain
    exchanges = [one for one in internet.exchanges(domain) if one.host != "."]
    return internet.locate(exchanges[0].host)[1] if exchanges else domain


def _site(name: str, provider: str, domains: list[str], books: Books, receivers: Receivers) -> SiteResult:
    book = receivers.site(name)
    ends = [books.domains[domain] for domain in domains]
    held: dict[str, float] = {}
    for domain in domains:
        for reason, seconds in books.domain_held_s.get(domain, {}).items():
            held[reason] = held.get(reason, 0.0) + seconds
    possible = books.possible.get(name)
    share = round(books.taken[name] / possible, 4) if possible else None
    return SiteResult(
        name, provider, sum(one.recipients for one in ends), sum(one.delivered for one in ends),
        sum(one.deferred for one in ends), sum(one.bounced for one in ends), sum(one.expired for one in ends),
        sum(one.left for one in ends), round(max(one.last_s for one in ends), 3), book.connections, book.most_open,
        book.refused_connections,
        book.throttled, book.greylisted, dict(book.refusals.most_common(MOST_REPLIES)),
        share, _hours(held))


def _hours(held_s: dict[str, float]) -> dict[str, float]:
    """By reason, the most first; without what would be shown as 0."""
    rows = sorted(((round(seconds / 3600, 3), reason) for reason, seconds in held_s.items()), reverse=True)
    return {reason: hours for hours, reason in rows if hours}


def _ends(ends: Ends) -> dict[str, float]:
    return {"recipients": ends.recipients, "delivered": ends.delivered, "deferred": ends.deferred,
            "bounced": ends.bounced, "expired": ends.expired, "left": ends.left, "last_s": round(ends.last_s, 3)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
