"""Checks of our own on what comes in: a message is refused, told of or mended, as `checks` of the configuration says.

`mta.message.checks` finds the faults. Which options hold for a message: those of `checks`, changed by its tenant,
then by its listener or spool directory, then by its user: a client may only claim to be of some tenant. What is
told goes into counts, into the event `received`, and into the log at most once in ten minutes for each fault.

Hot path: under 1 µs for a message without fault that is not bulk (bench/throughput.py).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from mta.config.checks import NO_CHANGES, CheckChanges, Checks, changed
from mta.config.problems import printable
from mta.config.schema import Config
from mta.inject.labels import Labels
from mta.message import checks
from mta.message.headers import HeaderScan
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.smtp.envelope import Envelope

WARNINGS: Final = ("size", "date", "message-id", "repeated", "from", "from-domain", "unsubscribe")
"""What `warnings` of an event may have."""

QUIET_S: Final = 600.0
"""Between two lines of the log about the same fault."""

LINES_LIMIT: Final = 5000
"""Of a header section that is warned of: what reads them line by line is on the hub."""

log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """What is to be done with a message that is taken."""

    warnings: tuple[str, ...] = ()
    add_from: bool = False
    unsubscribe_uri: str = ""  # to be added, with the names in it still to be filled in


FINE: Final = Verdict()


class Checker:
    """The checks by one configuration, and how often they found something."""

    def __init__(self, config: Config, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.warned = 0  # messages
        self.refused = 0
        self._clock_s = clock_s
        self._told: dict[str, float] = {}  # when the log had this fault last
        self._since: Counter[str] = Counter()  # how often it was found since
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take over the options of a new configuration."""
        self._top = config.checks
        self._harmless = _harmless(config.checks)
        self._tenants = {name: one.checks for name, one in config.tenants.items() if one.checks != NO_CHANGES}
        self._changed: dict[tuple[CheckChanges | None, str], Checks] = {}

    def rules(self, place: CheckChanges | None, tenant: str) -> Checks:
        """The options for mail of `tenant` that comes in at this place. Hot path."""
        if tenant not in self._tenants:
            if place is None:
                return self._top
            tenant = ""
        key = (place, tenant)
        rules = self._changed.get(key)
        if rules is None:
            rules = self._changed[key] = changed(self._top, self._tenants.get(tenant), place)
        return rules

    def check(self, content: bytes, scan: HeaderScan, envelope: Envelope, labels: Labels, place: CheckChanges | None,
              origin: str) -> Verdict | Reply:
        """What becomes of a message, or the reply that refuses it. Hot path.

        `place` is what its listener or spool directory changes, `origin` is told in the log.
        """
        if place is None and not self._tenants:
            if (scan.end <= self._harmless and scan.has_from and scan.has_date and scan.message_id
                    and not scan.repeated and labels.priority != "bulk"):
                return FINE
            rules = self._top
        else:
            rules = self.rules(place, labels.tenant)
        warnings: list[str] = []
        fault = checks.size_fault(content, scan.end, rules.header_size, rules.field_size, rules.fields)
        if fault:
            if rules.oversized == "refuse" or content.count(b"\r\n", 0, scan.end) > LINES_LIMIT:
                return self._refuse("size", fault, origin)
            self._warn("size", fault, origin, warnings)
        if not scan.has_date and rules.missing_date != "add":
            fault = "Date: it is missing, add it (RFC 5322 3.6.1)"
            if rules.missing_date == "refuse":
                return self._refuse("date", fault, origin)
            self._warn("date", fault, origin, warnings)
        if not scan.message_id and rules.missing_message_id != "add":
            fault = "Message-ID: it is missing, add it (RFC 5322 3.6.4)"
            if rules.missing_message_id == "refuse":
                return self._refuse("message-id", fault, origin)
            self._warn("message-id", fault, origin, warnings)
        needs_unsubscribe = rules.unsubscribe != "accept" and (
            labels.priority == "bulk" or rules.unsubscribe_for == "all")
        if scan.has_from and not (scan.repeated or rules.from_domains or needs_unsubscribe or warnings):
            return FINE

        add_from = False
        uri = ""
        if scan.repeated and rules.repeated != "accept":
            fault = checks.repeated_fault(scan.repeated)
            if rules.repeated == "refuse":
                return self._refuse("repeated", fault, origin)
            self._warn("repeated", fault, origin, warnings)
        if rules.from_domains:
            fault = checks.from_fault(content, scan.end, rules.from_domains)
            if fault and rules.foreign_from == "refuse":
                return self._refuse("from-domain", fault, origin, "5.7.1")
            if fault:
                self._warn("from-domain", fault, origin, warnings)
        if not scan.has_from:
            fault = "From: it is missing, add it with the author's address (RFC 5322 3.6.2)"
            if rules.missing_from == "refuse":
                return self._refuse("from", fault, origin)
            if rules.missing_from == "add" and envelope.sender:
                add_from = True
            elif rules.missing_from != "accept":
                self._warn("from", fault, origin, warnings)
        if needs_unsubscribe:
            found = checks.unsubscribe_fields(content, scan.end)
            fault = checks.unsubscribe_fault(found)
            if fault and rules.unsubscribe == "add" and not found and len(envelope.recipients) == 1:
                uri = rules.unsubscribe_uri or ""
            elif fault and rules.unsubscribe != "warn":
                return self._refuse("unsubscribe", fault, origin)
            elif fault:
                self._warn("unsubscribe", fault, origin, warnings)
        if warnings:
            self.warned += 1
        return Verdict(tuple(warnings), add_from, uri)

    def refuse_size(self, limit: int, origin: str) -> Reply:
        """The reply to a header section that is too large to be looked at."""
        return self._refuse("size", f"The header section is larger than {limit} octets, make it smaller", origin)

    def _refuse(self, kind: str, fault: str, origin: str, status: str = "5.6.0") -> Reply:
        self.refused += 1
        self._tell(f"refused, {kind}", fault, origin)
        return Reply(550, status, (fault,))

    def _warn(self, kind: str, fault: str, origin: str, warnings: list[str]) -> None:
        warnings.append(kind)
        self._tell(f"warning, {kind}", fault, origin)

    def _tell(self, kind: str, fault: str, origin: str) -> None:
        """A line in the log for the first one, then one for all of ten minutes with the next one behind them."""
        self._since[kind] += 1
        now_s = self._clock_s()
        last_s = self._told.get(kind)
        if last_s is not None and now_s - last_s < QUIET_S:
            return
        number, self._since[kind], self._told[kind] = self._since[kind], 0, now_s
        often = f", {number} of them since the last line" if number > 1 else ""
        log.warning("checks: %s%s: %s: %s", kind, often, printable(origin, 300), fault)


def _harmless(rules: Checks) -> int:
    """The length up to which a header section that has all fields once breaks none of these rules, when the mail is not
    bulk: it is below all sizes, as a line has two octets at least. -1: something is asked of all mail."""
    if rules.from_domains or (rules.unsubscribe != "accept" and rules.unsubscribe_for == "all"):
        return -1
    return min(rules.header_size, rules.field_size, 2 * rules.fields)


def unsubscribe_lines(uri: str, queue_id: str, labels: Labels) -> str:
    """The fields of RFC 8058 to add; the values of labels are fit for a URI."""
    for name, value in (("id", queue_id), ("tenant", labels.tenant), ("campaign", labels.campaign)):
        uri = uri.replace(f"{{{name}}}", value)
    return f"List-Unsubscribe: <{uri}>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
