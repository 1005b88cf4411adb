"""What a refusal means without a rule, with one, and when actions begin."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.config.loader import loads
from mta.config.reply_book import ReplyRules, read_file
from mta.config.reply_patterns import Said, parse_reply
from mta.config.reply_rules import STAGES, ReplyRule
from mta.delivery.adapting import FOR_LESS
from mta.delivery.outcome import End, judge
from mta.delivery.rule_counts import ALARM_S, Place, RuleCounts
from mta.delivery.rules import REMEMBERED, RuleBook, Ruling, class_by_code, ruling_on
from mta.queue.records import Recipient
from mta.simulate.kernel import VirtualHub
from mta.simulate.limits import SimulatedLimits
from mta.smtp.client import Transaction
from mta.smtp.reply import Reply

BOOK = RuleBook(loads("hostname: mta.example.net").rules)
PATH = Place("out1>mx.test", "out1", "google", "acme", "example.org")


def rule(text: str) -> ReplyRule:
    rules, problems = read_file(f"rules:\n  - {{name: a, code: '550', samples: ['550 no'], {text}}}\n", "r")
    assert problems == []
    return rules[0]


def by_codes(text: str, stage: str = "rcpt") -> str:
    return class_by_code(parse_reply(text), stage)


@pytest.mark.parametrize(("reply", "kind"), [
    ("550 5.1.1 x", "unknown-user"), ("550 5.1.2 x", "bad-domain"), ("553 5.1.3 x", "bad-address"),
    ("551 5.1.6 x", "moved"), ("556 5.1.10 x", "bad-domain"), ("550 5.2.1 x", "inactive"),
    ("550 5.7.17 x", "inactive"), ("552 5.2.2 x", "mailbox-full"), ("452 4.3.1 x", "system"),
    ("554 5.4.6 x", "network"),
    ("550 5.7.1 x", "policy"), ("550 5.7.25 x", "reverse-dns"), ("550 5.7.26 x", "authentication"),
    ("550 x", "refused"),
    ("450 x", "temporary"), ("552 x", "mailbox-full"), ("503 x", "protocol"), ("421 x", "system"),
])
def test_the_enhanced_code_decides_then_the_code(reply: str, kind: str) -> None:
    """RFC 3463 first; a bare 550 says nothing."""
    assert by_codes(reply) == kind


def test_only_addresses_that_do_not_exist_are_suppressed() -> None:
    """Of all codes, only x.1.1, x.1.2, x.1.3, x.1.6, x.1.10, x.2.1 and RFC 7293, and 556; nothing else of x.7."""
    blaming = set()
    for subject in range(10):
        for detail in range(1000):
            ruling = Ruling(class_by_code(Said(550, (5, subject, detail), ""), "rcpt"))
            if ruling.suppresses(550):
                blaming.add((subject, detail))
            assert not ruling.suppresses(450)  # it may be mended
    assert blaming == {(1, 1), (1, 2), (1, 3), (1, 6), (1, 10), (2, 1), (7, 17), (7, 18)}
    for code in range(400, 600):
        for stage in STAGES:
            assert Ruling(class_by_code(Said(code, None, ""), stage)).decision != "suppress" or code == 556


def test_stages_tell_what_a_code_does_not() -> None:
    """A greeting with 5xx refuses us; 552 is a full mailbox for RCPT and a large message for content."""
    assert by_codes("554 no", "greeting") == "host-refused"
    assert by_codes("421 no", "greeting") == "system"
    assert by_codes("552 no", "content") == "too-big"
    assert by_codes("451 lost", "lost") == "network"


def test_our_own_words_are_no_hosts() -> None:
    """A text that we made ourselves is judged by its code, even where a rule would take it."""
    ours = Reply(552, "5.3.4", ("blocked using zen.spamhaus.org",), local=True)
    assert BOOK.judge("", "mail", ours) == Ruling("too-big")


def test_verdicts_are_remembered_and_memory_is_bounded() -> None:
    """The same reply gives the same object; no number of replies makes the memory grow without end."""
    reply = Reply(550, "5.1.1", ("User unknown",))
    assert BOOK.judge("", "rcpt", reply) is BOOK.judge("", "rcpt", Reply(550, "5.1.1", ("User unknown",)))
    book = RuleBook(ReplyRules())
    for number in range(3 * REMEMBERED):
        book.judge("", "rcpt", Reply(550, "", (str(number),)))
    book.judge("", "rcpt", Reply(550, "", ("x" * 5000,)))
    assert len(book._new) + len(book._old) <= 2 * REMEMBERED
    assert all(len(key[2].lines[0]) < 1000 for key in book._new)


@settings(max_examples=200, deadline=None)
@given(st.integers(400, 599), st.sampled_from(["", "5.7.1", "4.0.999"]), st.lists(st.text(max_size=80), min_size=1))
def test_no_reply_raises(code: int, enhanced: str, lines: list[str]) -> None:
    """Every refusal has a ruling."""
    assert BOOK.judge("yahoo", "content", Reply(code, enhanced, tuple(lines))).kind


# -- outcomes -------------------------------------------------------------------------------------------------------

OK = Reply(250, "2.0.0", ("ok",))
GO = Reply(354, "", ("go ahead",))


def transaction(mail: Reply | None = OK, rcpt: Reply | None = OK, data: Reply | None = GO,
                final: Reply | None = None, lost: str = "") -> Transaction:
    made = Transaction("s@x.test", [Recipient("u@d.test")], b"body")
    made.mail, made.rcpts, made.data, made.final = mail, [rcpt], data, final
    made.dot_sent = final is not None
    made.lost, made.lost_phase = lost, "mail" if lost else ""
    return made


def judged(one: Transaction, provider: str = "", good: bool = True, losses: int = 0) -> Any:
    def judge_reply(stage: Any, reply: Reply) -> Ruling:
        return BOOK.judge(provider, stage, reply)
    return judge(one, good, losses, judge_reply)


def test_a_550_that_means_a_listing_does_not_bounce() -> None:
    """The address that sends is on a list: the mail waits, and the rule asks for a suspension and an alarm."""
    reply = Reply(550, "5.7.1", ("Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",))
    for one in (transaction(rcpt=reply, data=None), transaction(mail=reply, rcpt=None, data=None),
                transaction(final=reply)):
        outcome = judged(one)
        assert [result.end for result in outcome.results] == [End.DEFERRED]
        (ruling, _), = outcome.refusals().values()
        assert ruling.kind == "blocklist"
        assert [action.kind for action in ruling.rule.actions] == ["suspend", "alarm"]


def test_a_rule_may_bounce_what_the_code_would_retry() -> None:
    """`bounce` fails a 4xx for good."""
    book = RuleBook(ReplyRules([rule("class: policy, message: bounce")._replace(codes=())]))
    refused = transaction(final=Reply(450, "", ("no",)))
    outcome = judge(refused, True, 0, lambda stage, reply: book.judge("", stage, reply))
    assert [result.end for result in outcome.results] == [End.FAILED]


def test_what_gmail_says_of_a_domain_slows_no_path() -> None:
    """A limit on a sender's domain, URL or Message-ID is no limit of the address: its mail waits, that of others goes
    on. One on the address slows the path."""
    book = RuleBook(loads("hostname: mta.test").rules)

    def ruling(text: str) -> Ruling:
        said = f"Gmail has detected an unusual rate of unsolicited mail originating from {text}"
        return book.judge("google", "content", Reply(421, "4.7.28", (said,)))

    domain, address = ruling("your DKIM domain [example.net 36]."), ruling("your IP address [192.0.2.25 19].")
    assert FOR_LESS.isdisjoint((domain.kind,))
    assert (domain.decision, domain.message) == ("slow", "defer")
    transaction = Transaction("a@x.test", [Recipient("u@gmail.com")], b"x")
    transaction.mail = transaction.data = Reply(250, "", ("ok",))
    transaction.rcpts = [Reply(250, "", ("ok",))]
    transaction.final = Reply(421, "4.7.28", ("unusual rate ... originating from your DKIM domain",))
    assert judge(transaction, False, 0, lambda stage, reply: book.judge("google", stage, reply)).host_failure is None
    assert address.kind in FOR_LESS


def test_every_refusal_has_a_class() -> None:
    """With a rule or without."""
    for reply in (Reply(550, "5.1.1", ("no such user",)), Reply(450, "", ("hm",)), Reply(554, "", ("hm",))):
        result, = judged(transaction(final=reply)).results
        assert result.ruling.kind


def test_a_silent_close_of_yahoo_is_no_failure() -> None:
    """After completed messages: a new connection, nothing counted. On a fresh connection it is a failure as ever."""
    closed = transaction(mail=None, rcpt=None, data=None, lost="connection closed by the host")
    outcome = judged(closed, "yahoo", good=True, losses=5)
    assert [result.end for result in outcome.results] == [End.AGAIN]
    assert (outcome.host_failure, outcome.forgiven) == (None, True)
    fresh = judged(closed, "yahoo", good=False)
    assert fresh.host_failure is not None
    assert not fresh.forgiven
    assert not judged(closed, "google", good=True).forgiven


def test_a_session_limit_goes_on_over_a_new_connection_and_never_in_a_circle() -> None:
    """`again` counts no attempt, once the connection has carried a message; else it waits as by the schedule."""
    reply = Reply(452, "4.3.2", ("Maximum number of messages per connection exceeded",))
    outcome = judged(transaction(mail=reply, rcpt=None, data=None))
    assert ([result.end for result in outcome.results], outcome.reconnect) == ([End.AGAIN], True)
    fresh = judged(transaction(mail=reply, rcpt=None, data=None), good=False)
    assert ([result.end for result in fresh.results], fresh.reconnect) == ([End.DEFERRED], False)


def test_a_421_about_the_message_spares_the_path() -> None:
    """Failed authentication is the sender's; a rate is the path's."""
    spf = Reply(421, "4.7.27", ("Your email has been rate limited because SPF authentication didn't pass",))
    outcome = judged(transaction(final=spf), "google", good=False)
    assert [result.end for result in outcome.results] == [End.DEFERRED]
    assert outcome.host_failure is None
    rate = Reply(421, "4.7.28", ("unusual rate of unsolicited mail originating from your IP address",))
    assert judged(transaction(final=rate), "google", good=False).host_failure is rate


# -- when actions begin ---------------------------------------------------------------------------------------------


def fresh_counts() -> RuleCounts:
    """Of a single worker, with nobody to ask."""
    return RuleCounts(SimulatedLimits(VirtualHub()), lambda seconds, run: None, lambda fired: None)


def kinds(fired: list[Any]) -> list[tuple[str, str]]:
    return [(one.action.kind, one.key) for one in fired]


def test_without_after_every_match_acts() -> None:
    """Scopes become names in the table of limits; an alarm is told once in an hour."""
    counts = fresh_counts()
    one = rule("suspend: source-provider for 2h, slow: 10/min for 1h, alarm: true")
    begun = [("suspend", "source:out1>provider:google"), ("slow", "out1>mx.test")]
    assert kinds(counts.match(one, PATH, "550 no", 1, 100.0)) == [*begun, ("alarm", "source:out1>provider:google")]
    assert kinds(counts.match(one, PATH, "550 no", 2, 101.0)) == begun
    assert len(counts.match(one, PATH, "550 no", 3, 100.0 + ALARM_S)) == 3
    assert len(counts.match(one, PATH, "550 no", 3, 50.0)) == 3  # the clock was set back


def test_scopes_without_a_name() -> None:
    """No provider: the path. No tenant: nothing is held, but the alarm is told."""
    bare = Place("mx.test", "", "")
    assert bare.key("source-provider") == bare.key("provider") == "mx.test"
    assert kinds(fresh_counts().match(rule("suspend: tenant for 1h, alarm: true"), bare, "", 1, 1.0)) == [
        ("alarm", "mx.test")]


def test_a_number_in_a_time() -> None:
    """`3 in 1h`: the third within the hour, then anew; older ones fall out; other keys are counted apart."""
    counts = fresh_counts()
    one = rule("after: 3 in 1h, suspend: path for 1h")
    times = [0.0, 10.0, 3605.0, 3606.0, 3607.0, 3608.0, 3609.0]
    assert [bool(counts.match(one, PATH, "", 1, time)) for time in times] == [
        False, False, False, True, False, False, True]
    other = Place("mx2.test")
    assert not counts.match(one, other, "", 1, 3610.0)


def test_a_share_of_the_outcomes() -> None:
    """`20% of 50 in 10m`: not before 50 outcomes, not below a fifth of them, not with those of ten minutes ago."""
    counts = fresh_counts()
    one = rule("after: 20% of 50 in 10m, suspend: path for 1h")
    fired = [bool(counts.match(one, PATH, "", 5 * number, float(number))) for number in range(1, 15)]
    assert fired.index(True) == 10  # the 11th match, of 51 outcomes from the first match on
    rare = fresh_counts()
    assert not any(rare.match(one, PATH, "", 10 * number, float(number)) for number in range(1, 59))
    slow = fresh_counts()
    assert not any(slow.match(one, PATH, "", 4 * number, 120.0 * number) for number in range(1, 100))


# -- labelled replies -----------------------------------------------------------------------------------------------

# Replies as hosts say them, each with the decision that is right. Beside the samples of the rules, and other ones.
LABELLED = (
    ("550 5.1.1 <bob@example.com>: Recipient address rejected: User unknown in virtual mailbox table", "suppress"),
    ("550 No such user here", "suppress"), ("553 5.3.0 bob... User unknown", "suppress"),
    ("554 5.1.1 unknown recipient (#5.1.1)", "suppress"), ("550 5.2.1 Mailbox disabled for this recipient", "suppress"),
    ("550 user bob@example.com doesn't exist", "suppress"), ("556 5.1.10 Recipient address has null MX", "suppress"),
    ("452 4.2.2 Mailbox full", "retry"), ("552 5.2.2 Over quota", "retry"), ("450 4.2.0 greylisted for 60 s", "retry"),
    ("451 4.3.0 Internal server error", "retry"), ("554 5.6.0 message header malformed", "retry"),
    ("552 5.3.4 message too large", "retry"), ("550 hello", "retry"), ("550 5.7.1 Relaying denied", "retry"),
    ("554 5.7.1 192.0.2.1 listed on bl.example.org", "slow"), ("421 too many connections from your network", "slow"),
    ("550 5.7.1 SPF fail: not authorized", "slow"), ("554 no reverse DNS for 192.0.2.1", "slow"),
    ("421 4.7.0 too many messages, slow down", "slow"), ("554 5.7.1 rejected as spam", "slow"),
    ("550 your host 192.0.2.1 is blacklisted", "slow"), ("550 5.1.8 sender address rejected: domain not found", "slow"),
)


@pytest.mark.parametrize(("text", "decision"), LABELLED)
def test_the_decision_is_right(text: str, decision: str) -> None:
    """Suppress the recipient, retry the message, or slow down and stop the path."""
    reply = parse_reply(text)
    assert ruling_on(BOOK.rules.find("", "rcpt", reply), reply, "rcpt").decision == decision


DECISION_OF = {
    "recipient_invalid": "suppress", "recipient_inactive": "suppress", "mailbox_full": "retry", "temporary": "retry",
    "policy": "retry", "size": "retry", "reputation_block": "slow", "rate_limited": "slow", "auth_failure": "slow",
    "spam_content": "slow",
}
PROVIDERS = (
    ("google", "google"), ("gmail", "google"), ("yahoo", "yahoo"), ("aol", "yahoo"), ("apple", "apple"),
    ("exchangeonline", "microsoft365"), ("outlook", "microsoft"), ("microsoft", "microsoft"), ("qq", "qq"),
    ("mailru", "mailru"), ("mimecast", "mimecast"), ("proofpoint", "proofpoint"), ("barracuda", "barracuda"),
    ("gmx", "gmx"), ("comcast", "comcast"),
)


def test_labelled_replies_from_elsewhere() -> None:
    """`MTA_REPLIES` names a file of replies as JSON lines (`text`, `code`, `enhanced`, `provider`, `silver_class`):
    of those with a silver class at least 95 % get the right decision. The table is printed (`pytest -s`)."""
    name = os.environ.get("MTA_REPLIES", "")
    if not name:
        pytest.skip("MTA_REPLIES names no file of labelled replies")
    table: dict[str, dict[str, int]] = {}
    misses = []
    for line in Path(name).read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["silver_class"]:
            wanted = DECISION_OF[row["silver_class"]]
            provider = next((ours for word, ours in PROVIDERS if row["provider"].startswith(word)), "")
            reply = _reply_of(row)
            ruling = ruling_on(BOOK.rules.find(provider, "rcpt", reply), reply, "rcpt")
            counts = table.setdefault(wanted, {})
            counts[ruling.decision] = counts.get(ruling.decision, 0) + 1
            if ruling.decision != wanted:
                misses.append(f"wanted {wanted}, got {ruling.decision} ({ruling.kind}, {ruling.name or 'by codes'}): "
                              f"{row['text'][:160]}")
    print(f"\n{'wanted':10}{'suppress':>10}{'retry':>10}{'slow':>10}")
    for wanted, counts in sorted(table.items()):
        print(f"{wanted:10}" + "".join(f"{counts.get(got, 0):10}" for got in ("suppress", "retry", "slow")))
    total = sum(sum(counts.values()) for counts in table.values())
    print(f"{total - len(misses)} of {total} right, {100 * (1 - len(misses) / total):.1f} %")
    print("\n".join(misses))
    assert len(misses) <= 0.05 * total


def _reply_of(row: dict[str, Any]) -> Said:
    """Some texts lack the code, others have it inside of one line: as much as can be made of them."""
    text = row["text"].replace("\n", " ")
    found = re.match(r"([45][0-9][0-9])[ -]", text)
    code = found[1] if found else row["code"] or ("550" if row["enhanced"].startswith("5") else "450")
    reply = parse_reply(text if found else f"{code} {text}")
    if reply.enhanced is None and row["enhanced"] and not row["enhanced"].startswith("5.0.9"):
        first, second, third = map(int, row["enhanced"].split("."))
        reply = reply._replace(enhanced=(first, second, third))
    return reply
