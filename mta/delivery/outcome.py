"""What one SMTP transaction means: for each recipient, and for the path it went over.

Failures are classed before anything else is decided, because the class says who is punished (Exim's specification,
"Errors in outgoing SMTP"):

* *host*: the peer refuses or fails as such. The path pauses; messages keep their place and their attempt count.
* *message*: this message is refused (MAIL, DATA or the content). Its recipients are deferred or failed together.
* *recipient*: one address is refused (RCPT). Only that one is deferred or failed.
* *unknown*: the connection was lost after the final dot. The peer may have the message: normal retry with the same
  Message-ID, and the next event says `maybe_duplicate`.

What a refusal means beside that is said by the rules on replies (`mta.delivery.rules`): they may have mail wait that
the code would fail, or fail what the code would have wait.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from mta.config.reply_book import ReplyRules
from mta.config.reply_rules import Stage
from mta.delivery.rules import RuleBook, Ruling
from mta.queue.records import Recipient
from mta.smtp.client import Transaction
from mta.smtp.reply import Reply

Judge: TypeAlias = Callable[[Stage, Reply], Ruling]
"""What gives the ruling on a refusal, of the provider at hand."""

# Refusals of these classes are about the path. Of others with a rule that says what happens to the message, it is not.
OF_THE_PATH = frozenset(("rate", "connections", "reputation", "blocklist", "reverse-dns", "host-refused", "system",
                         "network"))

_NO_RULES = RuleBook(ReplyRules())


def by_codes(stage: Stage, reply: Reply) -> Ruling:
    """The ruling without any rules."""
    return _NO_RULES.judge("", stage, reply)


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
    ruling: Ruling | None = None  # of a refusal


@dataclass(slots=True)
class Outcome:
    """The results of one transaction, and whether the path as such is at fault."""

    results: list[Result] = field(default_factory=list)
    host_failure: Reply | None = None
    reconnect: bool = False  # the session is used up: what is left goes over a new connection
    forgiven: bool = False  # the connection was lost as may be expected of this host
    avoid: tuple[str, ...] = ()  # the next attempt goes at once, and not by these: `source:NAME`, `host:NAME`

    def elsewhere(self) -> str:
        """What the rules want of the next attempt of those that wait: `elsewhere host`, `elsewhere`, or nothing."""
        found = ""
        for result in self.results:
            if result.end is End.DEFERRED and result.ruling is not None and result.ruling.elsewhere:
                found = max(found, result.ruling.message)
        return found

    def refusals(self) -> dict[str, tuple[Ruling, Reply]]:
        """Each rule that took a reply of this transaction once, by its name, with the reply."""
        found: dict[str, tuple[Ruling, Reply]] = {}
        for result in self.results:
            if result.ruling is not None and result.ruling.rule is not None:
                found.setdefault(result.ruling.rule.name, (result.ruling, result.reply))
        return found


def delivered_to_all(transaction: Transaction) -> Reply | None:
    """The reply that took the message for every recipient of `transaction`, as most do; None when it went otherwise."""
    final = transaction.final
    if final is None or final.code >= 300:
        return None
    for reply in transaction.rcpts:
        if reply is None or reply.code >= 300:
            return None
    return final


def judge(transaction: Transaction, peer_is_good: bool, losses: int, ruling_of: Judge = by_codes) -> Outcome:
    """Class the outcome of `transaction`.

    `peer_is_good`: the connection had completed another transaction before, so losing it now is the end of a
    session, not a sick host. `losses`: how often this delivery has seen a connection end under it without a verdict;
    after the third time it is the message that is at fault (some hosts hang up when they dislike content).
    """
    return _Judging(transaction, peer_is_good, losses, ruling_of).outcome()


@dataclass(slots=True)
class _Judging:
    """One transaction under judgement."""

    transaction: Transaction
    peer_is_good: bool
    losses: int
    ruling_of: Judge
    reconnect: bool = False

    def outcome(self) -> Outcome:
        transaction = self.transaction
        local = transaction.local_reply
        if local is not None:
            return self.unsendable(local)
        closing = _closing_reply(transaction)
        if transaction.final is None and transaction.dot_sent and transaction.lost:
            return self.unknown()
        if closing is not None:
            return self.interrupted(*closing)
        if transaction.lost:
            return self.interrupted("lost", _local(transaction.lost))
        if transaction.mail is not None and not _good(transaction.mail):
            return self.all("mail", transaction.mail, "message")
        return self.by_recipient()

    def refused(self, recipient: Recipient, stage: Stage, reply: Reply, failure: str) -> Result:
        """A verdict of the peer's: by the rule that takes it, else by its code."""
        ruling = self.ruling_of(stage, reply)
        # Only a 5xx is for good; whatever else a peer may invent is tried again (RFC 5321 4.3.2).
        end = End.FAILED if 500 <= reply.code < 600 else End.DEFERRED
        if ruling.message == "bounce":
            end = End.FAILED
        elif ruling.message == "again" and self.peer_is_good:  # else it could go on like that for ever
            end, self.reconnect = End.AGAIN, True
        elif ruling.message:
            end = End.DEFERRED
        return Result(recipient, end, reply, failure, ruling)

    def by_recipient(self) -> Outcome:
        """Every recipient by its own reply; those that were accepted by the reply to the content (or to DATA)."""
        transaction = self.transaction
        final = transaction.final
        verdict = final if final is not None else transaction.data
        stage: Stage = "content" if final is not None else "data"
        taken = any(reply is not None and _good(reply) for reply in transaction.rcpts)
        results = []
        for recipient, reply in zip(transaction.recipients, transaction.rcpts, strict=True):
            if reply is None:  # the machine did not get to ask
                results.append(Result(recipient, End.AGAIN, verdict or _local("not asked"), "host"))
            elif not _good(reply):
                if taken and too_many_recipients(reply):
                    results.append(Result(recipient, End.AGAIN, reply, "recipient", self.ruling_of("rcpt", reply)))
                else:
                    results.append(self.refused(recipient, "rcpt", reply, "recipient"))
            elif verdict is not None and _good(verdict):
                results.append(Result(recipient, End.DELIVERED, verdict, ""))
            else:
                results.append(self.refused(recipient, stage, verdict or _local("no answer to DATA"), "message"))
        return Outcome(results, reconnect=self.reconnect)

    def all(self, stage: Stage, reply: Reply, failure: str) -> Outcome:
        results = [self.refused(recipient, stage, reply, failure) for recipient in self.transaction.recipients]
        return Outcome(results, reconnect=self.reconnect)

    def unsendable(self, reply: Reply) -> Outcome:
        """We sent nothing because of the message, or because of some recipients: then the others go without them."""
        unfit = self.transaction.unfit
        if not unfit:
            return self.all("mail", reply, "message")
        return Outcome([
            self.refused(recipient, "rcpt", reply, "recipient") if recipient in unfit
            else Result(recipient, End.AGAIN, reply, "recipient")
            for recipient in self.transaction.recipients])

    def unknown(self) -> Outcome:
        """Lost after the dot: recipients that were refused at RCPT are settled, the others are in doubt."""
        transaction = self.transaction
        doubt = _local(f"{transaction.lost} after the final dot; the message may have been delivered")
        ruling = by_codes("lost", doubt)
        results = []
        for recipient, reply in zip(transaction.recipients, transaction.rcpts, strict=True):
            if reply is not None and not _good(reply):
                results.append(self.refused(recipient, "rcpt", reply, "recipient"))
            else:
                results.append(Result(recipient, End.DEFERRED, doubt, "unknown", ruling))
        return Outcome(results)

    def interrupted(self, stage: Stage, reply: Reply) -> Outcome:
        """421, or the connection lost, before the peer could have taken the message."""
        transaction = self.transaction
        ruling = self.ruling_of(stage, reply)
        forgiven = ruling.message == "again" and self.peer_is_good
        if self.losses >= 2 and not forgiven:
            outcome = self.all(stage, reply, "message")
            return Outcome(outcome.results)
        decided = (ruling.message in ("defer", "bounce") or ruling.elsewhere) and stage != "lost"
        results = []
        for recipient, answer in zip(transaction.recipients, transaction.rcpts, strict=True):
            if answer is not None and answer.code // 100 == 5 and not too_many_recipients(answer):
                results.append(self.refused(recipient, "rcpt", answer, "recipient"))
            elif decided:
                results.append(self.refused(recipient, stage, reply, "message"))
            else:
                results.append(Result(recipient, End.AGAIN, reply, "host", ruling))
        untouched = transaction.mail is None and not transaction.lost_phase
        of_the_message = decided and ruling.kind not in OF_THE_PATH
        spared = self.peer_is_good or untouched or of_the_message
        return Outcome(results, None if spared else reply, forgiven=forgiven or decided)


def _closing_reply(transaction: Transaction) -> tuple[Stage, Reply] | None:
    """The 421 with which the peer ended this transaction, and the stage at which it came."""
    final, data, mail = transaction.final, transaction.data, transaction.mail
    if final is not None and final.code == 421:
        return "content", final
    if data is not None and data.code == 421:
        return "data", data
    if mail is not None and mail.code == 421:
        return "mail", mail
    for reply in transaction.rcpts:
        if reply is not None and reply.code == 421:
            return "rcpt", reply
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
