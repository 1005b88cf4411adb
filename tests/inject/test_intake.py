"""Rules of the single door through which all mail comes in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mta.config.loader import loads
from mta.config.schema import Config, SmtpIn
from mta.inject.formats import parse_message
from mta.inject.intake import Accepted, Intake, Source, store_reply
from mta.message.headers import HEADER_LIMIT
from mta.queue.errors import StoreError, StoreFull
from mta.queue.ids import format_id, parse_id
from mta.queue.records import BINARY, DOTLESS, EIGHT_BIT, REQUIRE_TLS, SMTPUTF8, Recipient, Wishes
from mta.smtp.address import parse_address
from mta.smtp.envelope import Asked, Envelope
from mta.smtp.reply import Reply
from mta.smtp.server import MessageReceived
from mta.smtp.transaction import Capabilities, Transaction, commands_for
from tests.smtp.helpers import new_server, talk

NOW_US = 1_136_214_245_123_456
ID = parse_id("0kx8zzg800001")
SOURCE = Source.smtp("192.0.2.9", 4711, "client.example")
WHOLE = b"Date: Mon, 02 Jan 2006 15:04:05 +0000\r\nMessage-ID: <one@sender.example>\r\nFrom: a@b.example\r\n"
ADDED_FROM = b"From: alice@sender.example\r\n"
TRACE = (
    b"Received: from client.example ([192.0.2.9])\r\n\tby mta.example with ESMTP id 0kx8zzg800001\r\n"
    b"\tfor <bob@example.org>;\r\n\tMon, 02 Jan 2006 15:04:05 +0000\r\n"
)


def intake(**options: Any) -> Intake:
    """The door of mta.example with a fixed id and time."""
    config = Config(hostname="mta.example", smtp=SmtpIn(**options))
    return Intake(config, lambda: ID, lambda: NOW_US)


def envelope(*recipients: str | Recipient, **changes: Any) -> Envelope:
    """An envelope from alice to `recipients`, else to bob."""
    listed = [one if isinstance(one, Recipient) else Recipient(one) for one in recipients or ("bob@example.org",)]
    return Envelope("alice@sender.example", listed, helo="client.example", esmtp=True, **changes)


def accept(content: bytes, given: Envelope | None = None, source: Source = SOURCE, **options: Any) -> Accepted:
    """What is accepted; it must be."""
    prepared = intake(**options).prepare(given or envelope(), content, source)
    assert isinstance(prepared, Accepted)
    return prepared


def stored(content: bytes, given: Envelope | None = None, source: Source = SOURCE) -> bytes:
    """The content that is stored for it."""
    kept = accept(content, given, source).message.content
    assert kept is not None
    return kept


def test_a_complete_message_gets_a_received_line_and_nothing_else() -> None:
    """RFC 5321 4.4: the trace line goes on top, every other byte stays."""
    content = WHOLE + b"Subject: x\r\n\r\n.body\r\n"
    assert stored(content) == TRACE + content


def test_date_and_message_id_are_added_when_missing() -> None:
    """RFC 6409 8.2, 8.3, and a From of the envelope sender: each by itself; the id is that of the message, the date
    that of its arrival."""
    date = b"Date: Mon, 02 Jan 2006 15:04:05 +0000\r\n"
    number = b"Message-ID: <0kx8zzg800001@mta.example>\r\n"
    assert stored(b"Subject: x\r\n\r\n") == TRACE + number + date + ADDED_FROM + b"Subject: x\r\n\r\n"
    assert stored(date + b"\r\n") == TRACE + number + ADDED_FROM + date + b"\r\n"
    assert stored(b"message-id: <x@y>\r\n\r\n") == TRACE + date + ADDED_FROM + b"message-id: <x@y>\r\n\r\n"


def test_the_records_say_what_was_accepted() -> None:
    """Message and delivery carry envelope, sizes, origin and times."""
    given = envelope(ret="FULL", envid="QQ1")
    accepted = accept(WHOLE + b"\r\nbody\r\n", given)
    message, (delivery,) = accepted.message, accepted.deliveries
    assert (message.id, message.sender, message.arrival_us) == (ID, "alice@sender.example", NOW_US)
    assert (message.ret, message.envid, message.message_id) == ("FULL", "QQ1", "<one@sender.example>")
    assert message.origin == "smtp 192.0.2.9:4711 client.example"
    assert message.content is not None
    assert message.size == len(message.content)
    assert message.content[: message.header_size] == TRACE + WHOLE
    assert (message.deliveries, message.flags) == (1, 0)
    assert (delivery.message, delivery.index, delivery.due_us) == (message, 0, NOW_US)
    assert (delivery.queue, delivery.domain) == ("example.org", "example.org")
    assert delivery.recipients == [Recipient("bob@example.org")]


def test_the_event_is_that_of_the_message() -> None:
    """`received` names id, sender, recipients and where it came from."""
    event = json.loads(accept(WHOLE + b"\r\n").event)
    assert (event["event"], event["message"]) == ("received", format_id(ID))
    assert (event["sender"], event["recipients"]) == ("alice@sender.example", ["bob@example.org"])


@pytest.mark.parametrize("written", ["[IPv6:2001:DB8::1]", "[ipv6:2001:db8:0:0::1]", "[IPV6:2001:db8::0001]"])
@pytest.mark.parametrize("configured", ["[IPv6:2001:db8::1]", "[2001:DB8:0:0::1]", "[ipv6:2001:db8:0::1]"])
def test_an_address_is_the_domain_of_its_section(written: str, configured: str) -> None:
    """However a client writes an address literal, and whatever the configuration does: options for it are in force."""
    config = loads(f"""
hostname: mta.example
routes: {{"{configured}": {{relay: "192.0.2.9:25"}}}}
shaping: {{domains: {{"{configured}": {{connections: 3}}}}}}
""")
    found = Intake(config, lambda: ID, lambda: NOW_US).prepare(
        envelope(parse_address(f"bob@{written}").text), WHOLE, SOURCE)
    assert isinstance(found, Accepted)
    domain = found.deliveries[0].domain
    assert config.shaping.separates(domain)
    assert config.shaping.effective(domain=domain).connections == 3
    assert domain in config.routes


def test_recipients_are_grouped_by_domain() -> None:
    """One delivery per domain in order of appearance, domains without case; local parts stay as they are."""
    given = envelope("bob@Example.org", "x@b.example", "Carol@example.ORG", "y@B.example", "z@[192.0.2.1]")
    deliveries = accept(WHOLE, given).deliveries
    assert [(one.index, one.domain, [r.address for r in one.recipients]) for one in deliveries] == [
        (0, "example.org", ["bob@Example.org", "Carol@example.ORG"]),
        (1, "b.example", ["x@b.example", "y@B.example"]),
        (2, "[192.0.2.1]", ["z@[192.0.2.1]"]),
    ]
    assert deliveries[0].message.deliveries == 3


def test_a_mailbox_is_one_recipient() -> None:
    """The same mailbox twice is delivered once, with the first one's wishes; a local part's case makes another."""
    first = Recipient("bob@example.org", 4, "rfc822;bob@example.org")
    (delivery,) = accept(WHOLE, envelope(first, "Bob@example.org", "bob@EXAMPLE.org", "bob@example.org")).deliveries
    assert [one.address for one in delivery.recipients] == ["bob@example.org", "Bob@example.org"]
    assert delivery.recipients[0] is first


def test_an_internationalized_domain_is_routed_by_its_a_labels() -> None:
    """The queue has the A-labels; the address stays as given. Both spellings of a domain are one."""
    given = envelope("a@bücher.example", "b@xn--bcher-kva.example", "a@xn--bcher-kva.example", flags=SMTPUTF8)
    accepted = accept(WHOLE, given)
    (delivery,) = accepted.deliveries
    assert delivery.queue == delivery.domain == "xn--bcher-kva.example"
    assert [one.address for one in delivery.recipients] == ["a@bücher.example", "b@xn--bcher-kva.example"]
    assert accepted.message.flags & SMTPUTF8


@pytest.mark.parametrize("door", ["smtp", "file", "header"])
def test_who_reads_an_address_finds_its_a_labels(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a message is stored no domain of its recipients is converted any more, however many other ones were since:
    that of all of them would hold up the hub for a second."""
    addresses = [f"ü{number}@Bücher{number}.example" for number in range(3)]
    if door == "smtp":
        server = new_server()
        group = "".join(f"RCPT TO:<{one}>\r\n" for one in addresses)
        talk(server, f"MAIL FROM:<alice@sender.example> SMTPUTF8\r\n{group}DATA\r\n".encode())
        (event,) = talk(server, WHOLE + b"\r\n.\r\n")[1]
        assert isinstance(event, MessageReceived)
        given = event.envelope
    else:
        field = "To" if door == "header" else "X-Receiver"
        first = "From: alice@sender.example\n" if door == "header" else "X-Sender: alice@sender.example\n"
        given = parse_message((first + "".join(f"{field}: {one}\n" for one in addresses) + "\n").encode(), SmtpIn()
                              ).envelope
    monkeypatch.setattr("mta.inject.intake.domain_to_ascii", None)
    deliveries = accept(WHOLE, given).deliveries
    assert [one.queue for one in deliveries] == ["xn--bcher0-3ya.example", "xn--bcher1-3ya.example",
                                                 "xn--bcher2-3ya.example"]
    assert [one.recipients[0].address for one in deliveries] == [one.replace("B", "b") for one in addresses]


def test_an_address_without_domain_is_ours() -> None:
    """`postmaster` needs no domain (RFC 5321 4.1.1.3) and is one of this host."""
    assert accept(WHOLE, envelope("postmaster")).deliveries[0].domain == "mta.example"


def test_received_names_the_recipient_only_when_there_is_one() -> None:
    """With several, each would learn of the others (RFC 5321 7.2)."""
    assert b"for <bob@example.org>" in stored(WHOLE)
    assert b"for <" not in stored(WHOLE, envelope("bob@example.org", "carol@example.org"))


def test_received_tells_the_protocol() -> None:
    """SMTP, ESMTP, with S under TLS, UTF8SMTP with SMTPUTF8; a file has no session."""
    plain = envelope()
    plain.esmtp = False
    assert b" with SMTP id " in stored(WHOLE, plain)
    assert b" with ESMTPS id " in stored(WHOLE, source=SOURCE._replace(tls=True))
    assert b" with UTF8SMTP id " in stored(WHOLE, envelope(flags=SMTPUTF8))
    assert stored(WHOLE, source=Source.pickup("/p/x", 1000)).startswith(
        b"Received: by mta.example (spool directory, userid 1000) id 0kx8zzg800001\r\n\tfor <bob@example.org>;"
    )


def test_a_listener_may_have_a_name_of_its_own() -> None:
    """It stands in Received and in a Message-ID that is made."""
    kept = stored(b"Subject: x\r\n", source=SOURCE._replace(hostname="other.example"))
    assert b"by other.example with" in kept
    assert b"@other.example>\r\n" in kept


@pytest.mark.parametrize(
    ("count", "accepted"), [(0, True), (10, True), (11, False)]
)
def test_a_loop_is_stopped(count: int, accepted: bool) -> None:
    """More Received lines than `smtp.hops` are a loop: 554 5.4.6 (RFC 5321 6.3)."""
    prepared = intake(hops=10).prepare(envelope(), b"Received: x\r\n" * count + WHOLE, SOURCE)
    assert isinstance(prepared, Accepted) is accepted
    if isinstance(prepared, Reply):
        assert (prepared.code, prepared.enhanced) == (554, "5.4.6")


def test_a_header_section_without_end_is_refused() -> None:
    """Above the limit of the scan: 550 5.6.0, also behind a mailbox separator."""
    huge = b"X: " + b"y" * HEADER_LIMIT + b"\r\n\r\n"
    for content in (huge, b"From x Mon\r\n" + huge):
        prepared = intake().prepare(envelope(), content, SOURCE)
        assert isinstance(prepared, Reply)
        assert (prepared.code, prepared.enhanced) == (550, "5.6.0")


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        (b"just text\r\nDate: not a header\r\n", b"\r\njust text\r\nDate: not a header\r\n"),
        (b" indented\r\n\r\nmore\r\n", b"\r\n indented\r\n\r\nmore\r\n"),
        (b"\r\nbody\r\n", b"\r\nbody\r\n"),
        (b"", b"\r\n"),
        (b"From someone Mon Jan 2\r\njust text\r\n", b"\r\nFrom someone Mon Jan 2\r\njust text\r\n"),
        (b"From someone Mon Jan 2\r\nSubject: x\r\n\r\nbody\r\n", b"Subject: x\r\n\r\nbody\r\n"),
        (b">From someone Mon Jan 2\r\nSubject: x\r\n", b"Subject: x\r\n"),
        (b"From binary content", b"\r\nFrom binary content"),
    ],
)
def test_text_never_becomes_header(content: bytes, rest: bytes) -> None:
    """Without a header section ours is put before the text with an empty line; a mailbox separator is dropped."""
    accepted = accept(content)
    assert accepted.message.content is not None
    assert accepted.message.content.startswith(b"Received:")
    assert accepted.message.content.endswith(b" +0000\r\n" + ADDED_FROM + rest)
    header = accepted.message.content[: accepted.message.header_size]
    assert header.endswith(b"\r\n")
    assert accepted.message.content[len(header) : len(header) + 2] in (b"\r\n", b"")


def test_return_path_is_removed() -> None:
    """Only the host of final delivery adds it (RFC 5321 4.4); the header size follows."""
    accepted = accept(b"Return-Path: <x@y>\r\n" + WHOLE + b"RETURN-path:\r\n <z>\r\n\r\nbody\r\n")
    assert accepted.message.content == TRACE + WHOLE + b"\r\nbody\r\n"
    assert accepted.message.header_size == len(TRACE + WHOLE)
    assert accepted.message.size == len(TRACE + WHOLE) + 8


def test_eight_bit_is_what_the_client_said_or_what_is_there() -> None:
    """BODY=8BITMIME, or any octet above 127."""
    assert accept(WHOLE).message.flags == 0
    assert accept(WHOLE, envelope(flags=EIGHT_BIT)).message.flags == EIGHT_BIT
    assert accept(WHOLE + b"\r\n\xfc\r\n").message.flags == EIGHT_BIT


def committed(error: StoreError | None) -> tuple[list[Reply], list[Accepted]]:
    """The replies and the commits of one submission, for what the store says."""
    commits: list[Accepted] = []
    replies: list[Reply] = []
    config = Config(hostname="mta.example", smtp=SmtpIn(hops=5))

    def commit(accepted: Accepted, done: Any) -> None:
        commits.append(accepted)
        assert replies == []
        done(error)

    Intake(config, lambda: ID, lambda: NOW_US, commit).submit(envelope(), WHOLE, SOURCE, replies.append)
    return replies, commits


def test_submit_answers_when_the_store_has_it() -> None:
    """250 with the id, and only after the commit (I1)."""
    replies, commits = committed(None)
    assert [str(reply) for reply in replies] == ["250 2.0.0 Ok: queued as 0kx8zzg800001"]
    assert len(commits) == 1


@pytest.mark.parametrize(
    ("error", "reply"), [(StoreFull("disk"), "452 4.3.1"), (StoreError("input/output error"), "451 4.3.0")]
)
def test_submit_asks_to_come_back_when_the_store_fails(error: StoreError, reply: str) -> None:
    """A store that is full or broken refuses for the time being, without details of ours."""
    replies, _ = committed(error)
    assert [str(one)[:9] for one in replies] == [reply]
    assert str(error) not in str(replies[0])
    assert store_reply(error) == replies[0]


def test_submit_refuses_without_the_store() -> None:
    """A refusal is answered at once and nothing is committed."""
    replies: list[Reply] = []
    one = intake(hops=5)
    one.submit(envelope(), b"Received: x\r\n" * 6, SOURCE, replies.append)
    assert [reply.code for reply in replies] == [554]


def test_a_new_configuration_holds_for_the_next_message() -> None:
    """`configure` changes host name and limits."""
    one = intake(hops=5)
    one.configure(Config(hostname="new.example", smtp=SmtpIn(hops=6)))
    prepared = one.prepare(envelope(), b"Received: x\r\n" * 6, SOURCE)
    assert isinstance(prepared, Accepted)
    assert prepared.message.content is not None
    assert b"by new.example" in prepared.message.content


def test_what_is_known_of_dots_is_kept_with_the_message() -> None:
    """Content that was seen to have no line with a dot at its beginning is not searched for one when it is sent."""
    assert accept(WHOLE, envelope(flags=DOTLESS)).message.flags & DOTLESS
    assert not accept(WHOLE).message.flags & DOTLESS


def test_a_message_to_be_held_is_due_when_it_is_to_be_released() -> None:
    """RFC 4865: counted from acceptance; what was asked stays with the message, for notifications."""
    accepted = accept(WHOLE + b"\r\n", envelope(asked=Asked(hold="for;3600", hold_s=3600.0)))
    assert accepted.message.wishes == Wishes(NOW_US + 3_600_000_000, "for;3600")
    assert [one.due_us for one in accepted.deliveries] == [NOW_US + 3_600_000_000]
    assert accepted.message.is_held(NOW_US)
    assert not accepted.message.is_held(NOW_US + 3_600_000_000)
    assert not accept(WHOLE + b"\r\n").message.is_held(NOW_US)


@pytest.mark.parametrize(
    ("priority", "queue"),
    [(9, "example.org^transactional"), (1, "example.org^transactional"), (0, "example.org"), (-1, "example.org^bulk"),
     (-9, "example.org^bulk")],
)  # fmt: skip
def test_mt_priority_makes_a_class(priority: int, queue: str) -> None:
    """RFC 6710: above 0 it overtakes, below 0 others do; the trace says what was asked, and the record keeps it."""
    accepted = accept(WHOLE + b"\r\n", envelope(asked=Asked(priority=priority)))
    assert [one.queue for one in accepted.deliveries] == [queue]
    assert accepted.message.wishes == Wishes(priority=priority)
    assert accepted.message.content is not None
    assert f"\tfor <bob@example.org>\r\n\tpriority {priority};\r\n".encode() in accepted.message.content


def test_our_lines_need_no_smtputf8() -> None:
    """What can go to a host without SMTPUTF8, with A-labels, still can behind our Received and From."""
    given = envelope("b@b\u00fccher.example", flags=SMTPUTF8)
    given.sender = "a@b\u00fccher.example"
    content = stored(b"Subject: x\r\n\r\nx\r\n", given)
    assert b"\r\n\tfor <b@xn--bcher-kva.example>;\r\n" in content
    assert b"\r\nFrom: a@xn--bcher-kva.example\r\n" in content
    transaction = Transaction(given.sender, given.recipients, content, SMTPUTF8)
    assert commands_for(transaction, Capabilities(esmtp=True)) == [
        "MAIL FROM:<a@xn--bcher-kva.example>\r\n", "RCPT TO:<b@xn--bcher-kva.example>\r\n"]
    assert transaction.local_reply is None
    local = stored(b"Subject: x\r\n\r\nx\r\n", envelope("\u00e4@b\u00fccher.example", flags=SMTPUTF8))
    assert "\r\n\tfor <\u00e4@b\u00fccher.example>;\r\n".encode() in local  # which needs it anyway


def test_mt_priority_yields_to_labels() -> None:
    """A label says more; and of clients whose labels are not believed the priority is not, either (RFC 6710 4.1)."""
    given = envelope(asked=Asked(priority=5))
    for label, queue in ((b"bulk", "example.org^bulk"), (b"normal", "example.org")):
        content = WHOLE + b"X-Priority-Class: " + label + b"\r\n\r\n"
        assert accept(content, given).deliveries[0].queue == queue
    stranger = SOURCE._replace(label_headers=False)
    assert accept(WHOLE + b"\r\n", given, stranger).deliveries[0].queue == "example.org"


def test_deliver_by_and_flags_are_kept() -> None:
    """What others have to see to stands in the record."""
    given = envelope(asked=Asked(by_s=60, by_mode="NT"), flags=REQUIRE_TLS | BINARY)
    message = accept(WHOLE + b"\r\n", given).message
    assert message.wishes == Wishes(by_us=NOW_US + 60_000_000, by_mode="NT")
    assert message.flags == REQUIRE_TLS | BINARY
