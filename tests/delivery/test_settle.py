"""What is committed after a transaction: ends, retries, events and notifications, all in one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mta.config.schema import Bounces, Config, Retry, ShapingRules
from mta.config.shaping import DomainLayer, ProviderLayer
from mta.config.units import Duration
from mta.delivery.clock import ClockWatch
from mta.delivery.outcome import End, Outcome, Result
from mta.delivery.settle import HISTORY, KEPT_REPLY, Peer, Settler, Verdict
from mta.queue import events
from mta.queue.records import (
    NOTIFY_FAILURE,
    NOTIFY_NEVER,
    NOTIFY_SUCCESS,
    Attempt,
    Delivery,
    Message,
    Recipient,
    Wishes,
)
from mta.smtp.reply import Reply

SECOND = 1_000_000
NOW_US = 1_000_000 * SECOND
CONTENT = b"From: a@x.test\r\nSubject: hello\r\n\r\nbody\r\n"
PEER = Peer(events.Remote("site", "mx.d.test", "192.0.2.1:25"), "mx.d.test [192.0.2.1:25]")
OK = Reply(250, "2.0.0", ("ok",))
LATER = Reply(451, "4.3.0", ("later",))
NEVER = Reply(550, "5.1.1", ("no such user",))


def settler(**options: Any) -> Settler:
    retry = Retry(first=Duration(300), jitter=0.0)
    config = Config(hostname="mta.test", retry=retry, **options)
    numbers = iter(range(5000 << 10, 6000 << 10, 1 << 10))
    return Settler(config, lambda shard: next(numbers), lambda message: CONTENT,
                   lambda: NOW_US, ClockWatch(lambda: NOW_US, dict, lambda: NOW_US))


def delivery(count: int = 1, sender: str = "a@x.test", notify: int = 0, age_s: int = 10) -> Delivery:
    message = Message(1 << 10, sender, NOW_US - age_s * SECOND, CONTENT, header_size=30, size=len(CONTENT))
    recipients = [Recipient(f"u{index}@d.test", notify) for index in range(count)]
    return Delivery(message, 0, "d.test", "d.test", recipients, NOW_US)


def outcome(one: Delivery, *ends: tuple[End, Reply]) -> Outcome:
    return Outcome([Result(recipient, end, reply, "" if end is End.DELIVERED else "recipient")
                    for recipient, (end, reply) in zip(one.recipients, ends, strict=False)])


def told(verdict: Verdict) -> list[tuple[str, list[str]]]:
    lines = [json.loads(line) for line in verdict.events]
    return [(line["event"], line["recipients"]) for line in lines]


def test_a_delivered_recipient_leaves_with_one_event() -> None:
    """All delivered: the delivery is removed and its event says to whom."""
    one = delivery()

    verdict = settler().settle(one, outcome(one, (End.DELIVERED, OK)), PEER, 0.1)

    assert told(verdict) == [("delivered", ["u0@d.test"])]
    assert verdict.removes == [one]
    assert not verdict.updates
    assert not verdict.again


def test_the_history_of_a_delivery_is_bounded_whatever_hosts_say() -> None:
    """So many attempts, so much of each reply: the queue holds many deliveries, and a host may say 2 KB each time."""
    one = delivery()
    verbose = Reply(451, "4.3.0", ("x" * 2000, "y" * 2000))

    for _ in range(HISTORY + 3):
        settler().settle(one, outcome(one, (End.DEFERRED, verbose)), PEER, 0.1)

    assert [len(attempt.reply) for attempt in one.history] == [KEPT_REPLY] * HISTORY
    assert one.history[0].reply.startswith("451 4.3.0 xxx")


def test_a_deferred_delivery_counts_the_attempt_and_gets_its_time() -> None:
    """Due time, attempts and history are updated together, and the event tells the due time."""
    one = delivery()

    verdict = settler().settle(one, outcome(one, (End.DEFERRED, LATER)), PEER, 0.1)

    assert verdict.updates == [one]
    assert (one.attempts, one.due_us) == (1, NOW_US + 300 * SECOND)
    assert one.history[-1].reply == "451 4.3.0 later"
    assert json.loads(verdict.events[0])["next_attempt"] == events.timestamp(one.due_us)


def test_mixed_ends_are_one_commit() -> None:
    """Delivered and failed recipients leave, the deferred one stays, the sender is told of the failure."""
    one = delivery(3)

    verdict = settler().settle(
        one, outcome(one, (End.DELIVERED, OK), (End.FAILED, NEVER), (End.DEFERRED, LATER)), PEER, 0.1)

    assert sorted(told(verdict)[:2] + told(verdict)[-1:]) == [
        ("bounced", ["u1@d.test"]), ("deferred", ["u2@d.test"]), ("delivered", ["u0@d.test"])]
    assert [recipient.address for recipient in one.recipients] == ["u2@d.test"]
    assert verdict.updates == [one]
    assert [notice.recipients[0].address for notice in verdict.notices] == ["a@x.test"]
    commit = verdict.commit()
    assert [message.sender for message, _ in commit.accepts] == [""]


def test_no_notification_for_a_null_sender_or_notify_never() -> None:
    """A bounce never bounces (RFC 5321 4.5.5), and NOTIFY=NEVER is obeyed (RFC 3461 5.2.6)."""
    for one in (delivery(sender=""), delivery(notify=NOTIFY_NEVER)):
        verdict = settler().settle(one, outcome(one, (End.FAILED, NEVER)), PEER, 0.1)

        assert not verdict.notices
        assert told(verdict) == [("bounced", ["u0@d.test"])]


def test_success_is_told_when_asked_and_the_next_host_will_not() -> None:
    """NOTIFY=SUCCESS towards a host without DSN makes a "relayed" notice; a host with DSN does that itself."""
    one, other = delivery(notify=NOTIFY_SUCCESS), delivery(notify=NOTIFY_SUCCESS)
    knows = Peer(PEER.remote, PEER.name, has_dsn=True)

    assert settler().settle(one, outcome(one, (End.DELIVERED, OK)), PEER, 0.1).notices
    assert not settler().settle(other, outcome(other, (End.DELIVERED, OK)), knows, 0.1).notices


def timed(mode: str, by_s: float, **options: Any) -> Delivery:
    """A delivery that is to be made within `by_s` seconds from now."""
    one = delivery(**options)
    one.message.wishes = Wishes(by_us=NOW_US + int(by_s * SECOND), by_mode=mode)
    return one


def test_a_time_that_is_over_ends_it() -> None:
    """Mode R: given up at the time, 5.4.7, with what was said last; the sender is told (RFC 2852 4.1.4). Not before,
    and not in mode N."""
    subject = settler()
    assert not subject.expired(timed("R", 1), NOW_US)
    assert not subject.expired(timed("N", 0), NOW_US)
    one = timed("R", 0)
    assert subject.expired(one, NOW_US)
    one.history.append(Attempt(NOW_US - 1, "mx.d.test [192.0.2.1:25]", "451 4.3.0 later"))
    verdict = subject.expire(one, "")
    assert told(verdict)[0] == ("expired", ["u0@d.test"])
    assert json.loads(verdict.events[0])["last_reply"] == (
        "5.4.7 The time for its delivery is over; at last: 451 4.3.0 later")
    content = verdict.notices[0].message.content
    assert content is not None
    assert b"Status: 5.4.7" in content
    assert b"Deliver-By-Date: Mon, 12 Jan 1970 13:46:40 +0000" in content


def test_old_age_and_orders_are_no_times() -> None:
    """What is too old before its time, or ended by an order, does not say that its time is over."""
    for one, order in ((timed("R", 60), ""), (timed("R", 0), "o7"), (timed("N", 0), "")):
        verdict = settler().expire(one, "why", order)
        assert "5.4.7" not in json.loads(verdict.events[0])["last_reply"]


@pytest.mark.parametrize(("mode", "has_it", "notify", "tells"), [
    ("N", False, 0, True), ("N", False, NOTIFY_FAILURE, True), ("N", False, NOTIFY_NEVER, False), ("N", True, 0, False),
    ("NT", True, 0, True), ("RT", True, 0, True), ("RT", True, NOTIFY_NEVER, False), ("R", False, 0, False)])
def test_a_hand_over_of_what_has_a_time(mode: str, has_it: bool, notify: int, tells: bool) -> None:
    """With N to a host that will not tell of delays, and with T in any case, the sender gets a "relayed" notice, unless
    NOTIFY=NEVER (RFC 2852 4.1.4)."""
    one = timed(mode, 60, notify=notify)
    peer = Peer(PEER.remote, PEER.name, has_dsn=True, has_deliver_by=has_it)
    verdict = settler().deliver(one, OK, peer, 0.1)
    assert bool(verdict.notices) is tells
    assert told(verdict)[0] == ("delivered", ["u0@d.test"])


def test_recipients_that_did_not_fit_go_on_at_once() -> None:
    """With untried recipients left it is no attempt yet: the delivery goes again, what ended is committed."""
    one = delivery(5)
    settle = settler()

    verdict = settle.settle(one, outcome(one, (End.DELIVERED, OK), (End.DEFERRED, LATER)), PEER, 0.1)
    assert verdict.again
    assert verdict.updates == [one]
    assert (one.attempts, one.tried) == (0, 1)
    assert [recipient.address for recipient in one.recipients] == [
        "u2@d.test", "u3@d.test", "u4@d.test", "u1@d.test"]

    verdict = settle.settle(one, outcome(one, *[(End.DELIVERED, OK)] * 3), PEER, 0.1)
    assert not verdict.again
    assert (one.attempts, one.tried, one.due_us) == (1, 0, NOW_US + 300 * SECOND)
    assert [recipient.address for recipient in one.recipients] == ["u1@d.test"]


def test_a_lost_reply_marks_the_next_attempt_as_a_possible_duplicate() -> None:
    """After `unknown` the delivery says maybe_duplicate (I2)."""
    one = delivery()
    unknown = Outcome([Result(one.recipients[0], End.DEFERRED, LATER, "unknown")])
    settle = settler()

    settle.settle(one, unknown, PEER, 0.1)
    verdict = settle.settle(one, outcome(one, (End.DELIVERED, OK)), PEER, 0.1)

    assert json.loads(verdict.events[0])["maybe_duplicate"] is True


def test_history_is_bounded() -> None:
    """Only the last few attempts are kept with a delivery."""
    one, settle = delivery(), settler()
    for _ in range(HISTORY + 5):
        settle.settle(one, outcome(one, (End.DEFERRED, LATER)), PEER, 0.1)

    assert len(one.history) == HISTORY
    assert one.attempts == HISTORY + 5


def test_expiry_is_an_end_with_the_last_reply_and_a_notice() -> None:
    """Given up for its age: the event and the notification say why it waited."""
    one, settle = delivery(age_s=6 * 86_400), settler()
    assert settle.expired(one, NOW_US)

    verdict = settle.expire(one, "connect: Connection refused")

    first = json.loads(verdict.events[0])
    assert (first["event"], first["last_reply"]) == ("expired", "connect: Connection refused")
    assert verdict.removes == [one]
    content = verdict.notices[0].message.content
    assert content is not None
    assert b"Connection refused" in content


def test_the_delay_warning_is_sent_once() -> None:
    """After `bounces.delay_warning` one "delayed" notice goes out, not one per attempt."""
    one, settle = delivery(age_s=7200), settler(bounces=Bounces(delay_warning=Duration(3600)))

    first = settle.settle(one, outcome(one, (End.DEFERRED, LATER)), PEER, 0.1)
    second = settle.settle(one, outcome(one, (End.DEFERRED, LATER)), PEER, 0.1)

    assert len(first.notices) == 1
    assert not second.notices


def test_a_warning_without_an_attempt_changes_nothing_else() -> None:
    """It tells why the delivery waits: how its last attempt failed, else what is known of its path."""
    settle = settler(bounces=Bounces(delay_warning=Duration(3600)))
    young, one = delivery(age_s=10), delivery(age_s=7200)
    assert not settle.wants_warning(young, NOW_US)
    assert settle.wants_warning(one, NOW_US)

    verdict = settle.warn(one, "4.4.1 connect: Connection refused", again=False)

    assert (verdict.updates, verdict.again, one.warned, one.attempts, one.due_us) == ([one], False, True, 0, NOW_US)
    assert [line for line, _ in told(verdict)] == ["received", "notified"]
    content = verdict.notices[0].message.content or b""
    assert b"Action: delayed" in content
    assert b"Diagnostic-Code: x-mta; connect: Connection refused" in content
    assert one.history == []
    assert not settle.wants_warning(one, NOW_US)

    other = delivery(age_s=7200)
    settle.settle(other, outcome(other, (End.DEFERRED, LATER)), PEER, 0.1)
    other.warned = False
    content = settle.warn(other, "4.4.1 connect: Connection refused", again=False).notices[0].message.content or b""
    assert b"Diagnostic-Code: smtp; 451 4.3.0 later" in content


def test_nobody_is_warned_who_did_not_want_it() -> None:
    """The null sender, NOTIFY without DELAY (RFC 3461 5.2.6), and everybody when the option is off."""
    on = settler(bounces=Bounces(delay_warning=Duration(3600)))
    for one in (delivery(age_s=7200, sender=""), delivery(age_s=7200, notify=NOTIFY_NEVER)):
        assert not on.wants_warning(one, NOW_US)
    assert not settler().wants_warning(delivery(age_s=7200), NOW_US)


def test_a_damaged_message_ends_with_an_event_and_no_notice() -> None:
    """Nothing of a damaged message is sent, not even back."""
    one = delivery()

    verdict = settler().quarantine(one, "checksum differs")

    assert told(verdict) == [("quarantined", ["u0@d.test"])]
    assert verdict.removes == [one]


def test_trouble_of_our_own_costs_an_attempt_and_says_why() -> None:
    """Mail whose content cannot be read now waits for its next attempt; it does not leave the queue."""
    one = delivery(2)

    verdict = settler().postpone(one, "00000001.seg cannot be read: Too many open files")

    assert told(verdict) == [("deferred", ["u0@d.test", "u1@d.test"])]
    assert verdict.updates == [one]
    assert one.history[-1].reply == "4.3.0 00000001.seg cannot be read: Too many open files"


def test_retry_and_expiry_by_destination() -> None:
    """The schedule and the age are those of the domain, or of the provider as its route last said; while nobody knows
    the provider, the schedule of all and the longest age that there is."""
    rules = ShapingRules(
        providers={"slow": ProviderLayer.of(retry={"first": Duration(900)}, expires=Duration(1000)),
                   "patient": ProviderLayer.of(expires=Duration(10**7))},
        domains={"own.test": DomainLayer.of(retry={"schedule": (Duration(7),)}, expires=Duration(50))})
    settle = settler(shaping=rules)
    settle.provider_of = {"s.test": "slow", "none.test": ""}.get

    def waits_s(domain: str) -> float:
        one = delivery()
        one.domain = domain
        settle.settle(one, outcome(one, (End.DEFERRED, LATER)), PEER, 0.1)
        assert settle.bring_forward(one).updates == [one]
        return (one.due_us - NOW_US) / SECOND

    assert [waits_s(domain) for domain in ("s.test", "none.test", "unknown.test", "own.test")] == [900, 300, 300, 7]
    assert [settle.expires_s(domain) for domain in ("s.test", "none.test", "unknown.test", "own.test")] == [
        1000, 5 * 86_400, 10**7, 50]
    one = delivery(age_s=2000)
    one.domain = "s.test"
    assert settle.expired(one, NOW_US)
    one.domain = "unknown.test"
    assert not settle.expired(one, NOW_US)
