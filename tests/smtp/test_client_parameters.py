"""What the client machine says of a message in MAIL and RCPT, by what the host offers; and what it returns unsent."""

from __future__ import annotations

import pytest

from mta.queue.records import EIGHT_BIT, NOTIFY_DELAY, NOTIFY_FAILURE, NOTIFY_NEVER, SMTPUTF8, Recipient
from mta.smtp.client import Finished, Transaction
from tests.smtp.client_words import DATA, RCPT
from tests.smtp.helpers import CONTENT, EHLO, PLAIN_EHLO, new_client, transaction, wire


def test_parameters_only_when_offered() -> None:
    """SIZE, BODY, RET, ENVID, NOTIFY and ORCPT go to a host that offers them, and to no other (RFC 5321 4.1.1.3)."""
    to = Recipient("b@example.org", NOTIFY_FAILURE | NOTIFY_DELAY, "rfc822;B@example.org")
    sent = Transaction("", [to], CONTENT, EIGHT_BIT, ret="HDRS", envid="x+2By")
    client = new_client()
    client.send(sent)
    assert wire(client) == (
        b"MAIL FROM:<> SIZE=%d BODY=8BITMIME RET=HDRS ENVID=x+2By\r\n"
        b"RCPT TO:<b@example.org> NOTIFY=FAILURE,DELAY ORCPT=rfc822;B@example.org\r\nDATA\r\n" % len(CONTENT)
    )
    assert (sent.dsn_offered, sent.sent_8bit_unannounced) == (True, False)
    sent = Transaction("", [to], CONTENT, EIGHT_BIT, ret="HDRS", envid="x+2By")
    client = new_client(b"250-mx\r\n250 PIPELINING\r\n")
    client.send(sent)
    assert wire(client) == b"MAIL FROM:<>\r\n" + RCPT + DATA
    assert (sent.dsn_offered, sent.sent_8bit_unannounced) == (False, True)


def test_notify_never() -> None:
    """NOTIFY=NEVER is passed on as such."""
    client = new_client()
    client.send(Transaction("", [Recipient("b@example.org", NOTIFY_NEVER)], CONTENT))
    assert b"RCPT TO:<b@example.org> NOTIFY=NEVER\r\n" in wire(client)


def test_eight_bit_content_where_it_is_not_offered() -> None:
    """It goes as it is; where that is not wanted it does not (RFC 6152 3). What is ASCII after all goes in any case."""
    for content, offered, sent in ((b"\xe4\r\n", False, True), (b"\xe4\r\n", True, False), (b"a\r\n", True, True)):
        client = new_client(b"250 mx\r\n")
        one = transaction(content=content)
        one.flags, one.eight_bit_offered = EIGHT_BIT, offered
        assert bool(client.send(one)) is not sent
        assert wire(client) == (b"MAIL FROM:<a@example.com>\r\n" if sent else b"")
        assert sent or (one.local_reply is not None and one.local_reply.enhanced == "5.6.3")


BY_EHLO = b"250-mx\r\n250-DSN\r\n250 DELIVERBY 30\r\n"


@pytest.mark.parametrize(
    ("ehlo", "mode", "by_s", "notify", "said"),
    [
        (BY_EHLO, "R", 60, 0, "BY=60;R|"),
        (BY_EHLO, "NT", -5, 0, "BY=-5;NT|"),
        (BY_EHLO, "N", 5, NOTIFY_NEVER, "BY=5;N| NOTIFY=NEVER"),
        (b"250-mx\r\n250 DSN\r\n", "N", 60, 0, "| NOTIFY=FAILURE,DELAY"),
        (b"250-mx\r\n250 DSN\r\n", "N", 60, NOTIFY_FAILURE, "| NOTIFY=FAILURE,DELAY"),
        (b"250-mx\r\n250 DSN\r\n", "N", 60, NOTIFY_NEVER, "| NOTIFY=NEVER"),
        (b"250 mx\r\n", "N", 60, 0, "|"),
    ],
)
def test_what_is_left_of_the_time(ehlo: bytes, mode: str, by_s: int, notify: int, said: str) -> None:
    """A host with DELIVERBY gets what is left; one without is asked to tell of delays, if it can (RFC 2852 4.1.4)."""
    client = new_client(ehlo)
    sent = transaction()
    sent.by_mode, sent.by_s = mode, by_s
    sent.recipients[0].notify = notify
    client.send(sent)
    by, _, rcpt = said.partition("|")
    assert wire(client) == f"MAIL FROM:<a@example.com>{f' {by}' if by else ''}\r\n".encode()
    client.receive(b"250 ok\r\n")
    assert wire(client) == f"RCPT TO:<b@example.org>{rcpt}\r\n".encode()


@pytest.mark.parametrize(
    ("ehlo", "by_s", "required", "refusal"),
    [
        (b"250 mx\r\n", 60, True, (550, "5.3.3")),
        (b"250 mx\r\n", 60, False, None),
        (BY_EHLO, 29, True, (550, "5.4.7")),
        (BY_EHLO, 30, True, None),
    ],
)
def test_in_time_or_not_at_all(ehlo: bytes, by_s: int, required: bool, refusal: tuple[int, str] | None) -> None:
    """With R a message goes to no host that would not return it in time, unless that is wanted (RFC 2852 4.1.4.2)."""
    client = new_client(ehlo)
    sent = transaction()
    sent.by_mode, sent.by_s, sent.by_required = "R", by_s, required
    assert bool(client.send(sent)) is (refusal is not None)
    said = sent.local_reply and (sent.local_reply.code, sent.local_reply.enhanced)
    assert said == refusal


def test_message_above_the_size_of_the_host() -> None:
    """A message larger than the host's SIZE is not sent at all, and the session is as it was (RFC 1870 6.2)."""
    client = new_client(b"250-mx\r\n250-PIPELINING\r\n250 SIZE 1000\r\n")
    too_big, fits = transaction(content=b"x\r\n" * 334), transaction(content=b"x\r\n" * 333)
    assert client.send(too_big) == [Finished(too_big)]
    assert too_big.local_reply is not None
    assert (too_big.local_reply.code, too_big.local_reply.enhanced, too_big.local_reply.local) == (552, "5.3.4", True)
    assert wire(client) == b""
    assert client.send(fits) == []
    assert wire(client).startswith(b"MAIL FROM:<a@example.com> SIZE=999\r\n")


def smtputf8(sender: str, to: str, content: bytes = CONTENT) -> Transaction:
    """A transaction that was accepted with SMTPUTF8."""
    return Transaction(sender, [Recipient(to, 0, None)], content, SMTPUTF8)


def test_smtputf8_where_it_is_offered() -> None:
    """The parameter goes only with what needs it: a local part or a header beyond ASCII (RFC 6531 3.4)."""
    for sent, needed in [
        (smtputf8("jürgen@example.com", "b@example.org"), True),
        (smtputf8("a@example.com", "用户@例え.jp"), True),
        (smtputf8("a@example.com", "b@example.org", "Subject: grüße\r\n\r\nx\r\n".encode()), True),
        (smtputf8("a@example.com", "b@example.org", "Subject: x\r\n\r\ngrüße\r\n".encode()), False),
        (smtputf8("a@example.com", "b@bücher.example"), False),
    ]:
        client = new_client()
        assert client.send(sent) == []
        said = wire(client)
        assert (b" SMTPUTF8\r\n" in said) == needed
        assert said.isascii() or needed
    assert b"RCPT TO:<b@xn--bcher-kva.example>\r\n" in said


def test_smtputf8_where_it_is_not() -> None:
    """A message that needs SMTPUTF8 is not sent, and the reason is named (RFC 6531 3.5): the sender or the recipient,
    5.6.7, the header, 5.6.9. A domain goes as A-labels, which every host understands."""
    client = new_client(b"250-mx\r\n250 PIPELINING\r\n")
    for sent, code, enhanced, named in (
        (smtputf8("jürgen@example.com", "b@example.org"), 553, "5.6.7", "sender <jürgen@example.com>"),
        (smtputf8("jürgen@example.com", "ä@example.org"), 553, "5.6.7", "sender <jürgen@example.com>"),
        (smtputf8("a@example.com", "ä@bücher.example"), 553, "5.6.7", "<ä@bücher.example> is"),
        (smtputf8("a@example.com", "b@example.org", "Subject: grüße\r\n\r\nx\r\n".encode()), 554, "5.6.9", "header"),
        (smtputf8("a@example.com", "ä@example.org", "Subject: grüße\r\n\r\nx\r\n".encode()), 554, "5.6.9", "header"),
    ):
        assert client.send(sent) == [Finished(sent)]
        reply = sent.local_reply
        assert reply is not None
        assert (reply.code, reply.enhanced, reply.local) == (code, enhanced, True)
        assert named in reply.text
        assert [*sent.unfit] == ([] if "ä" not in named else sent.recipients)
    assert client.send(smtputf8("ä@example.com", "b@example.org"))
    assert client.send(smtputf8("a@bücher.example", "b@bücher.example")) == []
    assert wire(client) == (
        b"MAIL FROM:<a@xn--bcher-kva.example>\r\nRCPT TO:<b@xn--bcher-kva.example>\r\nDATA\r\n"
    )


def test_recipients_that_the_host_cannot_take_do_not_hold_up_the_others() -> None:
    """Only those beyond ASCII are refused by us, and the first of them is named."""
    client = new_client(b"250-mx\r\n250 PIPELINING\r\n")
    sent = transaction("b@x.example", "ä@x.example", "c@bücher.example", "ö@x.example")
    assert client.send(sent) == [Finished(sent)]
    assert [to.address for to in sent.unfit] == ["ä@x.example", "ö@x.example"]
    assert "<ä@x.example> and 1 more" in str(sent.local_reply)


@pytest.mark.parametrize("evil", ["a@example.com>\r\nRCPT TO:<x@y.example", "a\nb@example.com", "a\rb@example.com",
                                  "a\udc80@b.example"])
@pytest.mark.parametrize("ehlo", [EHLO, PLAIN_EHLO])
def test_no_command_injection(evil: str, ehlo: bytes) -> None:
    """An address with a line end, or that is no text, is never written, whoever let it into the queue
    (GHSA-c7w3-x93f-qmm8)."""
    client = new_client(ehlo)
    parameters = Transaction("", [Recipient("a@b.example", 0, evil)], b"", ret=evil)
    for sent in (transaction(evil), transaction(sender=evil), parameters):
        if sent.ret and ehlo is PLAIN_EHLO:
            continue  # there the parameters are not sent anyway
        assert client.send(sent) == [Finished(sent)]
        assert sent.local_reply is not None
        assert (sent.local_reply.code, sent.local_reply.local) == (553, True)
        assert wire(client) == b""
    assert client.can_send
