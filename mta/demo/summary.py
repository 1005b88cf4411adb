"""The end of the demo: the books side by side, where the mail went, why some of it waited or failed, what it cost."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mta.cli.text import count, printable, size
from mta.control.protocol import QueueRow
from mta.demo.account import Account
from mta.demo.instance import Usage
from mta.demo.internet import KINDS, Internet, Kind
from mta.demo.tally import DomainTally, Reason, Tally, most
from mta.demo.terminal import Terminal, cut
from mta.demo.view import by_essence

REASONS: Final = 6


@dataclass(slots=True)
class KindRow:
    """What became of the mail of one kind of receivers."""

    kind: Kind
    domains: int = 0  # that got mail
    recipients: int = 0
    delivered: int = 0
    failed: int = 0
    queued: int = 0
    deferrals: int = 0
    most_connections: int = 0  # at once to one site, as the receivers saw it
    median_s: float = 0.0  # from acceptance to delivery
    last_s: float = 0.0


@dataclass(slots=True)
class Summary:
    """All that is told at the end."""

    account: Account
    tally: Tally
    kinds: list[KindRow]
    seed: int
    seconds: float  # from the first session to the last end
    accepting_s: float
    octets: int
    connections: int  # that the receivers saw
    most_connections: int  # of them at once
    usage: Usage
    cpu_s: float  # of the MTA, from the first session to the last end
    expires_s: int
    queued_why: list[tuple[str, list[QueueRow]]]  # reasons, and the queues that wait for each
    complaints: list[str]  # the last of the MTA's warnings and errors
    refused: list[tuple[str, int]]  # replies to what was refused at the door

    @property
    def ages_s(self) -> list[float]:
        """All times from acceptance to delivery, in order."""
        return sorted(age for domain in self.tally.domains.values() for age in domain.ages_s)

    @property
    def cpu_ms(self) -> float:
        """CPU time for each message accepted, in ms."""
        return self.cpu_s * 1000 / max(self.account.messages_accepted, 1)


def by_kind(tally: Tally, internet: Internet, sites: Mapping[str, Mapping[str, Any]]) -> list[KindRow]:
    """One row for each kind of receivers that got mail. `sites` are the sandbox's."""
    rows = []
    for kind in KINDS:
        found = [tally.domains[name] for name in internet.domains[kind.key] if name in tally.domains]
        if found:
            row = _row(kind, found)
            names = (kind.key, *internet.domains[kind.key])  # a site has the name of its personality or its domain
            row.most_connections = max((sites[name]["max_open"] for name in names if name in sites), default=0)
            rows.append(row)
    return rows


def _row(kind: Kind, found: Sequence[DomainTally]) -> KindRow:
    ends: Counter[str] = Counter()
    for domain in found:
        ends.update(domain.ends)
    ages_s = sorted(age for domain in found for age in domain.ages_s)
    accepted = sum(domain.accepted for domain in found)
    return KindRow(
        kind, len(found), accepted, ends["delivered"], ends.total() - ends["delivered"], accepted - ends.total(),
        sum(domain.deferrals for domain in found), median_s=share_of(ages_s, 0.5),
        last_s=ages_s[-1] if ages_s else 0.0)


def share_of(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie; 0 when there are none."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


# -- for programs ---------------------------------------------------------------------------------------------------


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary as JSON has it. Amounts are recipients unless they say messages; times are seconds."""
    account, tally = summary.account, summary.tally
    ages_s = summary.ages_s
    return {
        "accounted_for": account.good,
        **dataclasses.asdict(account),
        "seed": summary.seed,
        "seconds": round(summary.seconds, 3),
        "accepting_s": round(summary.accepting_s, 3),
        "accepted_per_s": round(account.messages_accepted / max(summary.accepting_s, 0.001), 1),
        "octets": summary.octets,
        "connections": summary.connections,
        "most_connections": summary.most_connections,
        "age_s": {name: round(share_of(ages_s, share), 3) for name, share in (("p50", 0.5), ("p90", 0.9), ("max", 1))},
        "deferrals": tally.deferrals,
        "with_tls": tally.tls,
        "cpu_ms_per_message": round(summary.cpu_ms, 3),
        "peak_memory_per_worker": summary.usage.peak_memory,
        "restarts": summary.usage.restarts,
        "receivers": [_kind_as_json(row) for row in summary.kinds],
        "deferred_by": _reasons(tally.waits),
        "paused_by": _reasons(tally.pauses),
        "failed_by": _reasons(tally.failures),
        "complaints": summary.complaints,
        "queued_because": [{"reason": why, "recipients": sum(row.recipients for row in rows),
                            "queues": [row.name for row in rows]} for why, rows in summary.queued_why],
    }


def _kind_as_json(row: KindRow) -> dict[str, Any]:
    return {
        "key": row.kind.key, "title": row.kind.title, "story": row.kind.story, "domains": row.domains,
        "recipients": row.recipients, "delivered": row.delivered, "failed": row.failed, "queued": row.queued,
        "deferrals": row.deferrals, "most_connections": row.most_connections, "median_s": round(row.median_s, 3),
        "last_s": round(row.last_s, 3),
    }


def _reasons(reasons: dict[str, Reason]) -> list[dict[str, Any]]:
    return [{"reply": text, "count": reason.count, "example": reason.example} for text, reason in most(reasons, 50)]


# -- for people -----------------------------------------------------------------------------------------------------


def as_text(terminal: Terminal, summary: Summary) -> Iterator[str]:
    """The summary as lines."""
    width = terminal.width
    yield from _table(terminal, summary, width)
    for title, reasons in (
        ("Why mail had to wait: each was tried again", summary.tally.waits),
        ("Why a whole site was paused, its messages untouched", by_essence(summary.tally.pauses)),
        ("Why mail failed: its senders were told", summary.tally.failures),
    ):
        if reasons:
            yield ""
            yield terminal.paint(title, "bold")
            for text, reason in most(reasons, REASONS):
                example = f" ({reason.example})" if len(text) + len(reason.example) < width - 15 else ""
                yield f"{reason.count:>7,} x  {cut(text, width - 11)}{terminal.paint(printable(example), 'dim')}"
    yield ""
    yield from _cost(terminal, summary, width)
    yield ""
    yield from _books(terminal, summary, width)
    yield ""
    yield from _verdict(terminal, summary, width)


def _verdict(terminal: Terminal, summary: Summary, width: int) -> Iterator[str]:
    account = summary.account
    if account.good:
        yield terminal.paint("Every message is accounted for.", "green")
        return
    if account.problems:
        yield terminal.paint("NOT every message is accounted for:", "red")
        for problem in account.problems:
            yield from _paragraph(f"- {problem}", width, "  ")
    if not account.settled:
        yield terminal.paint("Time was over before everything had an end.", "yellow")
        if account.messages_not_taken:
            yield f"  {count(account.messages_not_taken, 'message')} had not been taken in yet."
        if account.queued or account.notices_queued:
            yield (f"  {count(account.queued, 'recipient')} and {count(account.notices_queued, 'notice')} to senders "
                   "are still in the queue:")
            for why, rows in summary.queued_why[:10]:
                more = f" +{len(rows) - 1}" if len(rows) > 1 else ""
                text = cut(f"{rows[0].name}{more}: {why}", width - 11)
                yield f"  {sum(row.recipients for row in rows):>7,}  {text}"
    for line in summary.complaints:
        yield terminal.paint(f"  the MTA said: {cut(line, width - 17)}", "dim")


def _books(terminal: Terminal, summary: Summary, width: int) -> Iterator[str]:
    account = summary.account
    yield terminal.paint("What became of it", "bold")
    rate = account.messages_accepted / max(summary.accepting_s, 0.001)
    yield _book(account.accepted, "accepted", f"recipients of {account.messages_accepted:,} messages, in "
                f"{summary.accepting_s:.1f} s ({rate:,.0f}/s)", width)
    yield _book(account.delivered, "delivered", _speed(summary.ages_s), width, "=")
    yield _book(account.bounced, "bounced", "refused for good: no such user, domain, ...", width, "+")
    yield _book(account.expired, "too old", f"given up after {summary.expires_s} s (5 days unless configured)", width,
                "+")
    if account.other_ends:
        yield _book(account.other_ends, "other ends", "deleted or quarantined", width, "+")
    yield _book(account.queued, "still queued", "", width, "+")
    for reply, number in summary.refused:
        yield _book(number, "refused", f"at the door: {reply}", width)
    if account.messages_in_doubt:
        yield _book(account.messages_in_doubt, "in doubt", "messages: the answer was lost with the session", width)
    yield ""
    yield from _paragraph(_counted(account), width)


def _book(number: int, name: str, what: str, width: int, sign: str = "") -> str:
    return f"{sign:>2}{number:>7,}  {name:<12}  {cut(what, width - 25)}".rstrip()


def _speed(ages_s: Sequence[float]) -> str:
    if not ages_s:
        return ""
    half, most_of_them, all_of_them = (_seconds(share_of(ages_s, share)) for share in (0.5, 0.9, 1.0))
    return f"half in {half}, 9 of 10 in {most_of_them}, all in {all_of_them}"


def _counted(account: Account) -> str:
    text = f"The receivers counted on their own: {account.arrived:,} arrived"
    if not account.twice:
        text += ", none twice, none damaged."
    elif account.twice == account.twice_announced:
        text += f", {account.twice:,} of them twice; the events of each say that it may be so (`maybe_duplicate`)."
    else:
        text += f", {account.twice:,} of them twice; the events of {account.twice_announced:,} say that it may be so."
    if account.notices:
        text += (f" Senders were told of what failed by {count(account.notices, 'notice')}; "
                 f"{account.notices_arrived:,} arrived.")
    return text


def _table(terminal: Terminal, summary: Summary, width: int) -> Iterator[str]:
    wide = width >= 96
    title = f"{'receivers':<30}" + (f"{'domains':>8}{'mail':>8}" if wide else f"{'mail':>6}")
    title += f"{'failed':>8}{'deferrals':>11}" if wide else f"{'fail':>6}{'defer':>7}"
    title += f"{'at once':>9}{'half in':>10}{'last in':>10}" if wide else f"{'last in':>9}"
    yield terminal.paint(title, "bold")
    for row in summary.kinds:
        failed, deferrals = f"{row.failed:,}" if row.failed else "-", f"{row.deferrals:,}" if row.deferrals else "-"
        half = _seconds(row.median_s) if row.delivered else "-"
        last = _seconds(row.last_s) if row.delivered else "-"
        if wide:
            yield (f"{row.kind.title:<30}{row.domains:>8,}{row.recipients:>8,}{failed:>8}{deferrals:>11}"
                   f"{row.most_connections:>9,}{half:>10}{last:>10}")
        else:
            yield f"{row.kind.title:<30}{row.recipients:>6,}{failed:>6}{deferrals:>7}{last:>9}"
    if wide:
        yield terminal.paint("half in, last in: time from acceptance to delivery; at once: connections to one site",
                             "dim")


def _cost(terminal: Terminal, summary: Summary, width: int) -> Iterator[str]:
    usage, tally = summary.usage, summary.tally
    yield terminal.paint("What it took", "bold")
    tries = len(tally.ends) + tally.deferrals
    until = "for all, retries and pauses included" if summary.account.settled else "until time was over"
    text = f"{summary.seconds:.1f} s {until}. "
    text += f"{summary.cpu_ms:.2f} ms of CPU for a message, by all processes of the MTA; "
    text += f"{tries / max(len(tally.ends), 1):.2f} attempts for a recipient. "
    if usage.peak_memory:
        text += f"At most {size(max(usage.peak_memory))} of memory in each of {len(usage.peak_memory)} workers. "
    text += (f"{summary.connections:,} connections were made, never more than {summary.most_connections:,} at once. "
             f"{tally.tls:,} recipients were reached over TLS.")
    if usage.restarts:
        text += f" A process had died and was started again, {count(usage.restarts, 'time')}."
    yield from _paragraph(text, width)


def _paragraph(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width - 1, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
