"""Whether every message is accounted for: what was injected, what the MTA says of it, and what the receivers counted.

Three books are compared recipient by recipient: the injection's (a 250 was given), the MTA's events, and the
sandbox's, which counts on its own what arrived.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mta.demo.injection import Injection
from mta.demo.tally import Pair, Tally
from mta.sandbox.client import Received


@dataclass(slots=True)
class Account:
    """The comparison. Amounts are recipients unless they say messages; notices are those of the MTA to senders."""

    messages_accepted: int = 0
    messages_refused: int = 0  # for good, at the door
    messages_not_taken: int = 0  # offered in vain, or not yet when time was over
    messages_in_doubt: int = 0  # the reply to the final dot was lost
    accepted: int = 0
    delivered: int = 0
    bounced: int = 0
    expired: int = 0
    other_ends: int = 0  # deleted by an operator, quarantined
    queued: int = 0
    notices: int = 0
    notices_delivered: int = 0
    notices_queued: int = 0
    arrived: int = 0  # at the receivers: different pairs of message and recipient
    notices_arrived: int = 0
    twice: int = 0  # arrived more than once
    twice_announced: int = 0  # of those, the ones whose events say `maybe_duplicate`
    problems: list[str] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Whether everything has an end."""
        return not (self.queued or self.notices_queued or self.messages_not_taken)

    @property
    def good(self) -> bool:
        """Whether every message is accounted for."""
        return self.settled and not self.problems


def compare(messages: int, injection: Injection, tally: Tally, received: Iterable[Received],
            stats: dict[str, Any], *, at_rest: bool) -> Account:
    """Compare the books. `stats` are the sandbox's.

    Unless everything is `at_rest`, mail arrives while the books are read, and what has no event yet is no problem.
    """
    queued = tally.accepted - tally.ends.keys()
    unknown = injection.accepted - tally.accepted
    if not at_rest:
        queued |= unknown
    account = Account(
        injection.accepted_messages, injection.refused_messages, messages - injection.settled,
        injection.messages_in_doubt, len(tally.accepted), tally.counts["delivered"], tally.counts["bounced"],
        tally.counts["expired"], queued=len(queued), notices=len(tally.notices),
        notices_delivered=sum(end == "delivered" for end in tally.notice_ends.values()),
        notices_queued=len(tally.notices - tally.notice_ends.keys()),
    )
    account.other_ends = len(tally.ends) - account.delivered - account.bounced - account.expired
    if at_rest:
        _check(account, unknown, "accepted, but the MTA has no record of it")
    _check(account, tally.accepted - injection.accepted - injection.in_doubt, "never accepted, but recorded")
    _check(account, tally.ended_twice, "ended twice")
    _check(account, tally.unheard, "ended without having been accepted")

    arrived = {(one.key, one.recipient): one.count for one in received}
    account.arrived = len(arrived.keys() & tally.accepted)
    account.notices_arrived = len(arrived.keys() & tally.notices)
    ends = {**tally.ends, **tally.notice_ends}
    delivered = {pair for pair, end in ends.items() if end == "delivered"}
    _check(account, delivered - arrived.keys(), "delivered by the MTA's events, but the receivers have not got it")
    unexplained = arrived.keys() - delivered - tally.maybe_duplicates
    if at_rest:
        # What was in flight when the MTA was stopped, with mail still queued, may have arrived just then.
        in_flight = (tally.accepted - tally.ends.keys()) | (tally.notices - tally.notice_ends.keys())
        _check(account, unexplained - in_flight, "arrived without an event that says so")
    twice = {pair for pair, count in arrived.items() if count > 1}
    account.twice, account.twice_announced = len(twice), len(twice & tally.maybe_duplicates)
    _check(account, twice - tally.maybe_duplicates, "arrived twice, and no event says that it may have")
    if stats["damaged"]:
        account.problems.append(f"{stats['damaged']:,} messages arrived damaged")
    for kind, violation in stats["violations"].items():
        account.problems.append(f"the receivers saw {violation['count']:,} x {kind}, as in {violation['example']}")
    return account


def _check(account: Account, pairs: set[Pair], what: str) -> None:
    if pairs:
        message_id, recipient = min(pairs)
        account.problems.append(f"{len(pairs):,} {what}, such as {message_id} to {recipient}")
