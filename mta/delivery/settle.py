"""From the outcome of a transaction to what is committed: who left the queue, who waits, what is told to whom.

Everything that one transaction decided goes into one `Verdict`, which the store commits as a whole: the events, the
recipients that are done, the new due time of the others, and the notification to the sender. So a bounce is never
recorded without its DSN, and no DSN is sent twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mta.config.schema import Config, Retry
from mta.config.units import Duration
from mta.delivery.clock import ClockWatch
from mta.delivery.outcome import End, Outcome, Result, by_codes
from mta.message.dsn import Action
from mta.queue import events, notices
from mta.queue.ids import shard_of
from mta.queue.orders import Order
from mta.queue.records import NOTIFY_SUCCESS, Attempt, Delivery, Message, Recipient
from mta.queue.retry import RetryClock
from mta.queue.store import BodyDamaged, BodyUnreadable
from mta.queue.store import Transaction as Commit
from mta.smtp.reply import Reply

HISTORY = 8  # failed attempts kept with a delivery
KEPT_REPLY = 600  # characters of the reply to each: the queue holds many, and hosts may say 2 KB every time
EARLY = 4  # attempts that may go elsewhere at once
SOONER = 2  # attempts after which a rule may ask for the next one sooner than the schedule does
ELSEWHERE_S = 1.0  # before another way is tried
_IN_TIME = "5.4.7"  # RFC 3463 3.5, RFC 2852 4.1.4
SOON_US = 5_000_000  # a failed attempt warns that much ahead: the sweep does not see what was changed just now


@dataclass(slots=True)
class Verdict:
    """What to commit for one delivery, and how it goes on."""

    events: list[bytes] = field(default_factory=list)
    updates: list[Delivery] = field(default_factory=list)
    removes: list[Delivery] = field(default_factory=list)
    notices: list[Delivery] = field(default_factory=list)  # notifications made here, to be committed and scheduled
    again: bool = False  # recipients are left to do now, in the next transaction

    def commit(self) -> Commit:
        """For the store, as one."""
        accepts = [(delivery.message, [delivery]) for delivery in self.notices]
        return Commit(accepts, self.updates, self.removes, self.events)


@dataclass(slots=True, frozen=True)
class Peer:
    """The far end of a transaction, as events, history and notifications show it."""

    remote: events.Remote
    name: str = ""  # host, address and port, as in `mx1.example.org [192.0.2.1:25]`
    has_dsn: bool = False  # it sends notifications itself (RFC 3461)
    source: str = ""  # name of the source that we are connected from
    has_deliver_by: bool = False  # it keeps to the time by which mail is to be delivered, too (RFC 2852)


NOBODY = Peer(events.Remote(""))


@dataclass(slots=True)
class Counters:
    """What a worker did since it started, in recipients; `deferred` counts attempts."""

    accepted_messages: int = 0
    accepted_recipients: int = 0
    delivered: int = 0
    deferred: int = 0
    bounced: int = 0
    expired: int = 0
    deleted: int = 0


class Settler:
    """Turns outcomes into verdicts."""

    def __init__(self, config: Config, next_id: Callable[[int], int],
                 original: Callable[[Message], bytes], clock_us: Callable[[], int], watch: ClockWatch) -> None:
        """`next_id` gives message ids of a shard; `original` reads a message, which may make the caller wait."""
        self.config = config
        self.retry = RetryClock()
        self.provider_of: Callable[[str], str | None] = lambda domain: None  # of a domain's site, if that is known
        self.counters = Counters()
        self.watch = watch
        self._next_id = next_id
        self._original = original
        self._clock_us = clock_us

    def deliver(self, delivery: Delivery, reply: Reply, peer: Peer, duration_s: float) -> Verdict:
        """What `settle` says when `reply` took the message for all that were left. Hot path (bench S1, S2, S4)."""
        recipients = delivery.recipients
        if delivery.message.wishes is not None and _tells_of_time(delivery.message, peer):
            return self.settle(delivery, Outcome([Result(one, End.DELIVERED, reply, "") for one in recipients]), peer,
                               duration_s)
        if not peer.has_dsn:
            for recipient in recipients:
                if recipient.notify & NOTIFY_SUCCESS:
                    results = [Result(one, End.DELIVERED, reply, "") for one in recipients]
                    return self.settle(delivery, Outcome(results), peer, duration_s)
        self.counters.delivered += len(recipients)
        event = events.delivered(delivery, recipients, reply, peer.remote, attempt=delivery.attempts + 1,
                                 time_us=self._clock_us(), duration_s=duration_s)
        delivery.recipients = []
        return Verdict([event], removes=[delivery])

    def settle(self, delivery: Delivery, outcome: Outcome, peer: Peer, duration_s: float) -> Verdict:
        """Apply `outcome` to `delivery` (it is changed) and say what to commit."""
        now_us = self._clock_us()
        attempt = delivery.attempts + 1
        delivered: list[Result] = []
        failed: list[Result] = []
        deferred: list[Result] = []
        for result in outcome.results:
            if result.end is End.DELIVERED:
                delivered.append(result)
            elif result.end is End.FAILED:
                failed.append(result)
            elif result.end is End.DEFERRED:
                deferred.append(result)
        verdict = Verdict()

        for result, recipients in _grouped(delivered):
            self.counters.delivered += len(recipients)
            verdict.events.append(events.delivered(
                delivery, recipients, result.reply, peer.remote, attempt=attempt, time_us=now_us,
                duration_s=duration_s))
        timed = _tells_of_time(delivery.message, peer)
        if timed or (not peer.has_dsn and any(one.recipient.notify & NOTIFY_SUCCESS for one in delivered)):
            self._notify(verdict, "relayed", delivery, _fates(delivered, peer, now_us), timed=timed)
        for result, recipients in _grouped(failed):
            self.counters.bounced += len(recipients)
            ruling = result.ruling or by_codes("rcpt", result.reply)
            verdict.events.append(events.bounced(
                delivery, recipients, result.reply, peer.remote, failure=result.failure, kind=ruling.kind,
                rule=ruling.name, attempt=attempt, time_us=now_us, duration_s=duration_s))
        if failed:
            self._notify(verdict, "failed", delivery, _fates(failed, peer, now_us))
        ended = {id(result.recipient) for result in delivered + failed}
        if len(ended) == len(delivery.recipients):
            delivery.recipients = []
        elif ended:
            delivery.recipients = [one for one in delivery.recipients if id(one) not in ended]
        if deferred:
            self._defer(verdict, delivery, outcome, deferred, peer, attempt, now_us, duration_s)

        if not delivery.recipients:
            verdict.removes.append(delivery)
        elif len(delivery.recipients) > delivery.tried:
            verdict.again = True
            if outcome.host_failure is not None and self.wants_warning(delivery, now_us + SOON_US):
                again = [result for result in outcome.results if result.end is End.AGAIN]
                self._warn(verdict, delivery, _fates(again, peer, now_us))
            # Losses outlive the pause of the path, which ends this in memory.
            if ended or deferred or delivery.losses or verdict.notices:
                verdict.updates.append(delivery)
        else:
            delivery.attempts = attempt
            delivery.tried = 0
            delivery.losses = 0
            verdict.updates.append(delivery)
        return verdict

    def _defer(self, verdict: Verdict, delivery: Delivery, outcome: Outcome, deferred: list[Result], peer: Peer,
               attempt: int, now_us: int, duration_s: float) -> None:
        """Recipients that wait for the next attempt go to the end of the list, counted by `tried`."""
        self.counters.deferred += len(deferred)
        waiting = {id(result.recipient) for result in deferred}
        if len(waiting) < len(delivery.recipients):
            # Stable, so that the others keep their order.
            delivery.recipients.sort(key=lambda one: id(one) in waiting)
        if delivery.tried == 0:
            delivery.due_us = self._due_us(delivery, outcome, deferred, attempt, now_us)
            delivery.avoid = ()
        delivery.tried += len(deferred)
        delivery.avoid = tuple(dict.fromkeys((*delivery.avoid, *outcome.avoid)))
        delivery.source = "" if f"source:{peer.source}" in delivery.avoid else peer.source
        for result, recipients in _grouped(deferred):
            ruling = result.ruling or by_codes("rcpt", result.reply)
            verdict.events.append(events.deferred(
                delivery, recipients, result.reply, peer.remote, failure=result.failure, kind=ruling.kind,
                rule=ruling.name, attempt=attempt, time_us=now_us, duration_s=duration_s, next_us=delivery.due_us,
                avoid=delivery.avoid))
        delivery.maybe_duplicate |= any(result.failure == "unknown" for result in deferred)
        said = str(deferred[-1].reply)[:KEPT_REPLY]
        delivery.history = [*delivery.history[1 - HISTORY:], Attempt(now_us, peer.name, said)]
        if self.wants_warning(delivery, now_us + SOON_US):
            self._warn(verdict, delivery, _fates(deferred, peer, now_us))

    def _due_us(self, delivery: Delivery, outcome: Outcome, deferred: list[Result], attempt: int, now_us: int) -> int:
        """When to try again: by the retry schedule, or when the rule on the reply says; the soonest of several.

        A rule that asks for less than the schedule is followed for the first attempts only, so that one that will never
        come true does not go on for days at that pace.
        """
        retry = self._retry(delivery)
        scheduled_us = self.retry.next_us(retry, attempt, now_us)
        waits = []
        for result in deferred:
            ruling = result.ruling
            elsewhere = ruling is not None and ruling.elsewhere and outcome.avoid
            wait_s = ELSEWHERE_S if elsewhere else ruling.wait_s if ruling is not None else 0.0
            if not wait_s:
                return scheduled_us
            waits.append(wait_s)
        soonest_s = min(waits)
        wanted_us = self.retry.after_us(retry, soonest_s, now_us)
        early = EARLY if soonest_s == ELSEWHERE_S else SOONER
        return wanted_us if attempt <= early else max(wanted_us, scheduled_us)

    def fail(self, delivery: Delivery, reply: Reply) -> Verdict:
        """Give up all recipients of `delivery`: no route will ever lead to them."""
        results = [Result(one, End.FAILED, reply, "recipient") for one in delivery.recipients]
        return self.settle(delivery, Outcome(results), NOBODY, 0.0)

    def expired(self, delivery: Delivery, now_us: int) -> bool:
        """Whether the time of `delivery` is over. Hot path."""
        if delivery.message.wishes is not None and delivery.message.wishes.returns and self.is_past(
                delivery.message, now_us):
            return True
        return self.is_older(delivery.message, self.expires_s(delivery.domain), now_us)

    def is_past(self, message: Message, now_us: int) -> bool:
        """Whether the time by which `message` was to be delivered is over (RFC 2852), as `is_older` reckons."""
        wishes = message.wishes
        if wishes is None or not wishes.by_us:
            return False
        return self.is_older(message, (wishes.by_us - message.arrival_us) / 1_000_000, now_us)

    def expires_s(self, domain: str) -> Duration:
        """The age at which mail to `domain` is given up; the longest that it may be while its provider is not known."""
        shaping, provider = self.config.shaping, self.provider_of(domain)
        if provider is None:
            return shaping.longest_expiry(domain)
        return shaping.effective("", provider, domain).expires

    def _retry(self, delivery: Delivery) -> Retry:
        domain = delivery.domain
        return self.config.shaping.effective("", self.provider_of(domain) or "", domain).retry

    def is_older(self, message: Message, limit_s: float, now_us: int) -> bool:
        """Whether `message` is that old, whatever was done to the clock. Hot path: no by a look at the clock alone."""
        if 0 <= now_us - message.arrival_us < limit_s * 1_000_000:
            return False
        self.watch.look()  # it may have been set just now
        return self.watch.age_us(message, now_us) >= limit_s * 1_000_000

    def late(self, delivery: Delivery, now_us: int) -> bool:
        """Whether `delivery` has waited so long that its sender is to be told."""
        wait_s = self.config.bounces.delay_warning
        return wait_s is not None and self.is_older(delivery.message, wait_s, now_us)

    def wants_warning(self, delivery: Delivery, now_us: int) -> bool:
        """Whether the sender is to be told that `delivery` is late, and has not been."""
        if delivery.warned or not self.late(delivery, now_us) or self._was_held(delivery.message, now_us):
            return False
        return any(notices.wanted(delivery.message, one, "delayed") for one in delivery.recipients)

    def _was_held(self, message: Message, now_us: int) -> bool:
        """Whether what seems late was held until a short time ago, as its sender wanted (RFC 4865)."""
        wait_s = self.config.bounces.delay_warning
        return message.wishes is not None and message.wishes.release_us + int((wait_s or 0) * 1_000_000) > now_us

    def hold(self, delivery: Delivery) -> Verdict:
        """Let `delivery` wait until its message is to be released, whatever made it due before that."""
        assert delivery.message.wishes is not None
        delivery.due_us = delivery.message.wishes.release_us
        return Verdict(updates=[delivery])

    def warn(self, delivery: Delivery, reason: str, again: bool) -> Verdict:
        """Tell the sender that `delivery` is late; nothing else about it changes. `reason` is why it waits, when no
        attempt of its own says so."""
        verdict = Verdict(updates=[delivery], again=again)
        attempt = Attempt(self._clock_us(), "", reason) if reason else None
        if delivery.history:
            attempt = delivery.history[-1]
        self._warn(verdict, delivery, [notices.fate(one, attempt) for one in delivery.recipients])
        return verdict

    def _warn(self, verdict: Verdict, delivery: Delivery, fates: Sequence[notices.Fate]) -> None:
        delivery.warned = True
        until_us = delivery.message.arrival_us + int(self.expires_s(delivery.domain) * 1_000_000)
        self._notify(verdict, "delayed", delivery, fates, until_us)

    def bring_forward(self, delivery: Delivery) -> Verdict:
        """`delivery` is due later than can be: let it wait as if it had failed now."""
        now_us = self._clock_us()
        delivery.due_us = now_us
        if delivery.attempts:
            delivery.due_us = self.retry.next_us(self._retry(delivery), delivery.attempts, now_us)
        return Verdict(updates=[delivery])

    def delete(self, delivery: Delivery, order: Order) -> Verdict:
        """Take `delivery` out of the queue, as an operator wants. Its sender hears of it if that is wanted, too."""
        now_us = self._clock_us()
        self.counters.deleted += len(delivery.recipients)
        verdict = Verdict([events.deleted(delivery, delivery.recipients, reason=order.reason, operator=order.by,
                                          order=order.id, time_us=now_us)], removes=[delivery])
        if order.notify:
            reply = Reply(550, "5.7.0", (order.reason or "deleted by the administrator",), local=True)
            self._notify(verdict, "failed", delivery,
                         [notices.Fate(one, reply, "", now_us) for one in delivery.recipients])
        delivery.recipients = []
        return verdict

    def expire(self, delivery: Delivery, reason: str, order: str = "") -> Verdict:
        """Give up `delivery` for its age, or by an `order`. `reason` is why it waited, when no attempt of its own says
        so."""
        now_us = self._clock_us()
        if not delivery.history and reason:
            delivery.history = [Attempt(now_us, "", reason)]
        wishes = delivery.message.wishes
        if not order and wishes is not None and wishes.returns and self.is_past(delivery.message, now_us):
            last = delivery.history[-1] if delivery.history else Attempt(now_us, "", "it was not tried")
            text = f"{_IN_TIME} The time for its delivery is over; at last: {last.reply}"
            delivery.history = [*delivery.history[1 - HISTORY:], last._replace(reply=text)]
        self.counters.expired += len(delivery.recipients)
        event = events.expired(delivery, delivery.recipients, order=order, time_us=now_us)
        verdict = Verdict([event], removes=[delivery])
        self._notify(verdict, "failed", delivery,
                     [notices.fate(one, delivery.history[-1] if delivery.history else None)
                      for one in delivery.recipients])
        delivery.recipients = []
        return verdict

    def postpone(self, delivery: Delivery, trouble: str) -> Verdict:
        """Try `delivery` later, for a trouble of our own."""
        reply = Reply(451, "4.3.0", (trouble,), local=True)
        results = [Result(one, End.DEFERRED, reply, "message") for one in delivery.recipients]
        return self.settle(delivery, Outcome(results), NOBODY, 0.0)

    def quarantine(self, delivery: Delivery, damage: str) -> Verdict:
        """Take a delivery whose message is damaged out of the queue. Nothing of it can be sent, not even back."""
        event = events.quarantined(delivery.message, [delivery], text=damage, time_us=self._clock_us())
        return Verdict([event], removes=[delivery])

    def _notify(self, verdict: Verdict, action: Action, delivery: Delivery, fates: Sequence[notices.Fate],
                retry_until_us: int = 0, timed: bool = False) -> None:
        message = delivery.message
        if not any(notices.wanted(message, fate.recipient, action, timed) for fate in fates):
            return
        try:
            content = message.content if message.content is not None else self._original(message)
        except (BodyDamaged, BodyUnreadable):
            content = b""
        made = notices.notify(
            action, message, content, fates, queue=delivery.queue, config=self.config,
            next_id=lambda: self._next_id(shard_of(message.id)), time_us=self._clock_us(),
            retry_until_us=retry_until_us, timed=timed)
        if made is not None:
            verdict.notices.append(made.delivery)
            verdict.events.extend(made.events)


def _tells_of_time(message: Message, peer: Peer) -> bool:
    """Whether the sender is to hear that `peer` took a message that is to be delivered by a time: when it asked to be
    told of each hand-over (T), or when `peer` is not going to tell it of delays (RFC 2852 4.1.4)."""
    mode = message.wishes.by_mode if message.wishes is not None else ""
    return "T" in mode or (mode == "N" and not peer.has_deliver_by)


def _fates(results: list[Result], peer: Peer, now_us: int) -> list[notices.Fate]:
    return [notices.Fate(one.recipient, one.reply, peer.name, now_us) for one in results]


def _grouped(results: list[Result]) -> list[tuple[Result, list[Recipient]]]:
    """Recipients that met the same together, with the first one's result: almost always one group."""
    if not results:
        return []
    first = results[0]
    if len(results) == 1:
        return [(first, [first.recipient])]
    groups: dict[tuple[str, str], tuple[Result, list[Recipient]]] = {}
    for result in results:
        key = (str(result.reply) if result.reply is not first.reply else "", result.failure)
        groups.setdefault(key, (result, []))[1].append(result.recipient)
    return list(groups.values())
