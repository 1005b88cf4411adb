"""What one transaction means for each recipient and for the path: the classes of failure."""

from __future__ import annotations

from mta.delivery.outcome import End, Outcome, judge
from mta.queue.records import Recipient
from mta.smtp.client import Transaction
from mta.smtp.reply import Reply

OK = Reply(250, "2.0.0", ("ok",))
GO = Reply(354, "", ("go ahead",))


def transaction(count: int = 1) -> Transaction:
    return Transaction("s@x.test", [Recipient(f"u{index}@d.test") for index in range(count)], b"body")


def done(rcpts: list[Reply | None], final: Reply | None, data: Reply | None = GO,
         mail: Reply | None = OK) -> Transaction:
    made = transaction(len(rcpts))
    made.mail, made.rcpts, made.data, made.final = mail, rcpts, data, final
    made.dot_sent = final is not None
    return made


def ends(outcome: Outcome) -> list[tuple[str, str]]:
    return [(result.end.value, result.failure) for result in outcome.results]


def test_a_positive_final_reply_delivers_the_accepted_recipients() -> None:
    """2xx to the content is success for all whose RCPT was accepted, 251 and 252 included."""
    outcome = judge(done([OK, Reply(251, "", ("forwards",))], OK), True, 0)

    assert ends(outcome) == [("delivered", ""), ("delivered", "")]
    assert outcome.host_failure is None


def test_each_recipient_has_its_own_end() -> None:
    """A refused RCPT touches that recipient only."""
    outcome = judge(done([OK, Reply(550, "5.1.1", ("no",)), Reply(450, "4.2.0", ("later",))], OK), True, 0)

    assert ends(outcome) == [("delivered", ""), ("failed", "recipient"), ("deferred", "recipient")]


def test_refusal_of_mail_or_content_is_the_messages() -> None:
    """MAIL and the final reply decide for all recipients together; 4xx waits, 5xx is for good."""
    refused = judge(done([None, None], None, data=None, mail=Reply(554, "5.7.1", ("no",))), False, 0)
    deferred = judge(done([OK], Reply(451, "4.3.0", ("busy",))), False, 0)
    bounced = judge(done([OK], Reply(552, "5.2.3", ("big",))), False, 0)

    assert ends(refused) == [("failed", "message")] * 2
    assert ends(deferred) == [("deferred", "message")]
    assert ends(bounced) == [("failed", "message")]
    assert refused.host_failure is None


def test_data_refused_decides_for_accepted_recipients() -> None:
    """No 354: its reply is the verdict; recipients refused at RCPT keep theirs."""
    outcome = judge(done([OK, Reply(550, "5.1.1", ("no",))], None, data=Reply(451, "", ("not now",))), True, 0)

    assert ends(outcome) == [("deferred", "message"), ("failed", "recipient")]


def test_too_many_recipients_goes_on_in_the_next_transaction() -> None:
    """452, or 552 that says so, beside accepted recipients is no failure (RFC 5321 4.5.3.1.10)."""
    full = Reply(452, "4.5.3", ("too many",))
    old = Reply(552, "", ("Too many recipients",))

    assert ends(judge(done([OK, full, old], OK), True, 0)) == [
        ("delivered", ""), ("again", "recipient"), ("again", "recipient")]


def test_mailbox_full_is_not_too_many_recipients() -> None:
    """552 5.2.2 and 452 4.2.2 are about the mailbox: an end, or an attempt that counts."""
    outcome = judge(done([OK, Reply(552, "5.2.2", ("full",)), Reply(452, "4.2.2", ("full",))], OK), True, 0)

    assert ends(outcome)[1:] == [("failed", "recipient"), ("deferred", "recipient")]


def test_too_many_recipients_for_the_first_one_is_a_deferral() -> None:
    """With none accepted, trying again at once could go on for ever."""
    assert ends(judge(done([Reply(452, "4.5.3", ("no",))], None, data=None), True, 0)) == [("deferred", "recipient")]


def test_connection_lost_before_the_dot_is_the_hosts_fault() -> None:
    """Messages keep their place and attempt count; the path pauses unless the host had served before."""
    lost = transaction()
    lost.mail, lost.lost, lost.lost_phase = OK, "connection reset", "data"

    fresh, served = judge(lost, False, 0), judge(lost, True, 0)

    assert ends(fresh) == ends(served) == [("again", "host")]
    assert fresh.host_failure is not None
    assert str(fresh.host_failure) == "4.4.2 connection reset"
    assert served.host_failure is None


def test_the_third_loss_without_a_verdict_is_the_messages() -> None:
    """A message on which a host hangs up each time must not stop the others for ever."""
    lost = transaction()
    lost.mail, lost.lost, lost.lost_phase = OK, "connection reset", "dot"

    outcome = judge(lost, False, 2)

    assert ends(outcome) == [("deferred", "message")]
    assert outcome.host_failure is None


def test_421_keeps_the_message_in_place() -> None:
    """Whatever the stage, also after the content: the host is closing, the message is not at fault."""
    at_rcpt = transaction()
    at_rcpt.mail, at_rcpt.rcpts = OK, [Reply(421, "4.7.0", ("closing",))]
    at_rcpt.lost, at_rcpt.lost_phase = "the host ends the session", "rcpt"
    at_dot = done([OK], Reply(421, "4.7.0", ("closing",)))

    assert ends(judge(at_rcpt, False, 0)) == [("again", "host")]
    outcome = judge(at_dot, False, 0)
    assert ends(outcome) == [("again", "host")]
    assert outcome.host_failure == at_dot.final


def test_lost_after_the_dot_is_unknown() -> None:
    """The peer may have it: deferred as an attempt, no fault of the host; refused recipients stay refused."""
    lost = transaction(2)
    lost.mail, lost.rcpts, lost.data = OK, [OK, Reply(550, "5.1.1", ("no",))], GO
    lost.dot_sent, lost.lost, lost.lost_phase = True, "timeout", "dot"

    outcome = judge(lost, True, 0)

    assert ends(outcome) == [("deferred", "unknown"), ("failed", "recipient")]
    assert [result.reply.local for result in outcome.results] == [True, False]
    assert outcome.host_failure is None


def test_a_transaction_handed_back_untouched_blames_nobody() -> None:
    """Its predecessor's end took the connection; it simply goes again."""
    untouched = transaction()
    untouched.lost = "the host ends the session"

    outcome = judge(untouched, False, 0)

    assert ends(outcome) == [("again", "host")]
    assert outcome.host_failure is None


def test_what_cannot_be_sent_to_this_host_ends_locally() -> None:
    """Too large for the offered SIZE, or SMTPUTF8 missing: our own 5xx is the reply."""
    local = transaction()
    local.local_reply = Reply(552, "5.3.4", ("too large",))

    assert ends(judge(local, False, 0)) == [("failed", "message")]


def test_recipients_that_cannot_be_sent_to_this_host_leave_the_others() -> None:
    """The reply of ours is about those alone; the others go in the next transaction, which is no attempt."""
    local = transaction(3)
    local.local_reply = Reply(553, "5.6.7", ("not in ASCII",), local=True)
    local.unfit = [local.recipients[1]]

    outcome = judge(local, False, 0)

    assert ends(outcome) == [("again", "recipient"), ("failed", "recipient"), ("again", "recipient")]
    assert outcome.host_failure is None


def test_recipients_refused_for_good_are_settled_even_when_the_connection_is_lost() -> None:
    """A 5xx that was said is not asked for again."""
    lost = transaction(2)
    lost.mail, lost.rcpts = OK, [Reply(550, "5.1.1", ("no",)), None]
    lost.lost, lost.lost_phase = "connection reset", "rcpt"

    assert ends(judge(lost, True, 0)) == [("failed", "recipient"), ("again", "host")]


def test_unknown_codes_count_by_their_first_digit() -> None:
    """RFC 5321 4.3.2: 599 is permanent, 499 is not, and whatever else a peer invents waits."""
    assert ends(judge(done([Reply(599, "", ("?",))], None, data=None), True, 0)) == [("failed", "recipient")]
    assert ends(judge(done([Reply(499, "", ("?",))], None, data=None), True, 0)) == [("deferred", "recipient")]


def test_end_names_are_those_of_events() -> None:
    """The values appear in documentation and logs."""
    assert {end.value for end in End} == {"delivered", "failed", "deferred", "again"}
