"""What one SMTP transaction means: for each recipient, and for the path it went over.

Failures are classed before anything else is decided, because the class says who is punished (Exim's specification,
"Errors in outgoing SMTP"):

* *host*: the peer refuses or fails as such. The path pauses; messages keep their place and their attempt count.
* *message*: this message is refused (MAIL, DATA or the content). Its recipients are deferred or failed together.
* *recipient*: one address is refused (RCPT). Only that one is deferred or failed.
* *unknown*: the connection was lost after the final dot. The peer may have the message: normal retry with the same
  Message-ID, and the next event says `maybe_duplicate`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from mta.queue.records import Recipient
from mta.smtp.client import Transaction
from mta.smtp.reply import Reply


class End(enum.Enum):
    """What becomes of a recipient after one transaction."""

    DELIVERED = "delivered"
    FAILED = "failed"  # for good: a bounce
    DEFERRED = "deferred"  # an attempt that counts; tried again by the retry schedule
    AGAIN = "again"  # not its fault, or no room in this transaction: next transaction, no attempt counted


class Result(NamedTuple):
    """The end of one recipient, with the reply that decided it and the class of the failure."""

    recipient: Recipient
    end: End
    reply: Reply
    failure: str  # "host", "message", "recipient", "unknown"; "" when delivered


@dataclass(slots=True)
class Outcome:
    """The results of one transaction, and whether the path as such is at fault."""

    results: list[Result] = field(default_factory=list)
    host_failure: Reply | None = None


def delivered_to_all(transaction: Transaction) -> Reply | None:
    """The reply that took the message for every recipient of `transaction`, as most do; None when it went otherwise."""
    final = transaction.final
    if final is None or final.code >= 300:
        return None
    for reply in transaction.rcpts:
        if reply is None or reply.code >= 300:
            return None
    return final


def judge(transaction: Transaction, peer_is_good: bool, losses: int) -> Outcome:
    """Class the outcome of `transaction`.

    `peer_is_good`: the connection had completed another transaction before, so losing it now is the end of a
    session, not a sick host. `losses`: how often this delivery has seen a connection end under it without a verdict;
    after the third time it is the message that is at fault (some hosts hang up when they dislike content).
    """
    local = transaction.local_reply
    if local is not None:
        end = End.FAILED if local.code >= 500 else End.DEFERRED
        return Outcome([Result(recipient, end, local, "message") for recipient in transaction.recipients])

    closing = _closing_reply(transaction)
    if transaction.final is None and transaction.dot_sent and transaction.lost:
        return _unknown(transaction)
    if closing is not None or transaction.lost:
        reply = closing or _local(transaction.lost)
        return _interrupted(transaction, reply, peer_is_good, losses)
    if transaction.mail is not None and not _good(transaction.mail):
        return _all(transaction, transaction.mail, "message")
    return _by_recipient(transaction)


def _by_recipient(transaction: Transaction) -> Outcome:
    """Every recipient by its own reply; those that were accepted by the reply to the content (or to DATA)."""
    verdict = transaction.final if transaction.final is not None else transaction.data
    taken = any(reply is not None and _good(reply) for reply in transaction.rcpts)
    results = []
    for recipient, reply in zip(transaction.recipients, transaction.rcpts, strict=True):
        if reply is None:  # the machine did not get to ask
            results.append(Result(recipient, End.AGAIN, verdict or _local("not asked"), "host"))
        elif not _good(reply):
            if taken and too_many_recipients(reply):
                results.append(Result(recipient, End.AGAIN, reply, "recipient"))
            else:
                results.append(Result(recipient, _refused(reply), reply, "recipient"))
        elif verdict is not None and _good(verdict):
            results.append(Result(recipient, End.DELIVERED, verdict, ""))
        else:
            bad = verdict or _local("no answer to DATA")
            results.append(Result(recipient, _refused(bad), bad, "message"))
    return Outcome(results)


def _all(transaction: Transaction, reply: Reply, failure: str) -> Outcome:
    end = _refused(reply)
    return Outcome([Result(recipient, end, reply, failure) for recipient in transaction.recipients])


def _unknown(transaction: Transaction) -> Outcome:
    """Lost after the dot: recipients that were refused at RCPT are settled, the others are in doubt."""
    doubt = _local(f"{transaction.lost} after the final dot; the message may have been delivered")
    results = []
    for recipient, reply in zip(transaction.recipients, transaction.rcpts, strict=True):
        if reply is not None and not _good(reply):
            results.append(Result(recipient, _refused(reply), reply, "recipient"))
        else:
            results.append(Result(recipient, End.DEFERRED, doubt, "unknown"))
    return Outcome(results)


def _interrupted(transaction: Transaction, reply: Reply, peer_is_good: bool, losses: int) -> Outcome:
    """421, or the connection lost, before the peer could have taken the message."""
    if losses >= 2:
        return _all(transaction, reply, "message")
    results = []
    for recipient, answer in zip(transaction.recipients, transaction.rcpts, strict=True):
        if answer is not None and answer.code // 100 == 5 and not too_many_recipients(answer):
            results.append(Result(recipient, End.FAILED, answer, "recipient"))
        else:
            results.append(Result(recipient, End.AGAIN, reply, "host"))
    untouched = transaction.mail is None and not transaction.lost_phase
    return Outcome(results, None if peer_is_good or untouched else reply)


def _closing_reply(transaction: Transaction) -> Reply | None:
    """The 421 with which the peer ended this transaction, at whatever stage it came."""
    for reply in (transaction.final, transaction.data, transaction.mail, *transaction.rcpts):
        if reply is not None and reply.code == 421:
            return reply
    return None


def too_many_recipients(reply: Reply) -> bool:
    """Whether a refusal of RCPT means that this transaction is full (RFC 5321 4.5.3.1.10: 452, from old hosts 552).

    552 is also "mailbox full", so it counts only with the enhanced code x.5.3 or words that say so.
    """
    if reply.code not in (452, 552):
        return False
    if reply.enhanced.endswith(".5.3"):
        return True
    if reply.code == 452 and not reply.enhanced:
        return True
    return "too many recipients" in reply.text.lower()


def _local(text: str) -> Reply:
    """Our own description of what went wrong without a reply from the peer."""
    return Reply(451, "4.4.2", (text,), local=True)


def _good(reply: Reply) -> bool:
    return 200 <= reply.code < 300


def _refused(reply: Reply) -> End:
    # Only a 5xx is for good; whatever else a peer may invent is tried again (RFC 5321 4.3.2).
    return End.FAILED if 500 <= reply.code < 600 else End.DEFERRED
