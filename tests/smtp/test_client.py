"""The client machine against hosts of every kind: real bytes in, the very bytes out that RFC 5321 and 2920 want."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.queue.records import NOTIFY_DELAY, NOTIFY_FAILURE, NOTIFY_NEVER, Recipient
from mta.smtp.client import Client, Finished, Greeted, Ready, Refused, StartTls, Transaction
from mta.smtp.errors import LocalProtocolError, RemoteProtocolError
from mta.smtp.reply import Reply
from tests.smtp.helpers import (
    CONTENT,
    EHLO,
    PLAIN_EHLO,
    exchange,
    fails,
    finished,
    new_client,
    pieces,
    transaction,
    wire,
)

MAIL = b"MAIL FROM:<a@example.com> SIZE=%d\r\n" % len(CONTENT)
RCPT = b"RCPT TO:<b@example.org>\r\n"
DATA = b"DATA\r\n"
TAKEN = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 go\r\n"


# -- opening -------------------------------------------------------------------------------------------------


def test_opening() -> None:
    """Greeting in several lines and pieces, EHLO in upper case, capabilities, then the session is open."""
    client = Client("client.example")
    assert client.output() == []
    assert client.phase == "greeting"
    assert client.receive(b"220-mx.exa") == []
    assert not client.can_send
    (event,) = client.receive(b"mple.net\r\n220 SMTP\r\n")
    assert event == Greeted(Reply(220, "", ("mx.example.net", "SMTP")))
    assert wire(client) == b"EHLO client.example\r\n"
    assert client.phase == "ehlo"
    assert client.receive(EHLO) == [Ready()]
    assert client.phase == "ready"
    assert client.can_send
    assert "ready" in repr(client)
    can = client.capabilities
    assert (can.esmtp, can.pipelining, can.eight_bit, can.smtputf8, can.dsn, can.size) == (True,) * 5 + (10_000_000,)


def test_capabilities_of_every_spelling() -> None:
    """Keywords in any case, `=` for a space, SIZE that makes no sense, LIMITS; the first line is no keyword."""
    client = new_client(
        b"250-PIPELINING\r\n250-size\r\n250-AUTH=LOGIN PLAIN\r\n250-AUTH LOGIN\r\n250-\r\n250-SmtpUtf8\r\n"
        b"250-LIMITS RCPTMAX=20 MAILMAX=5 RCPTDOMAINMAX=x\r\n250-X-FOO bar\r\n250 chunking\r\n"
    )
    can = client.capabilities
    assert not can.pipelining
    assert (can.size, can.smtputf8, can.eight_bit, can.chunking) == (0, True, True, True)
    assert (can.rcpt_max, can.mail_max, can.rcpt_domain_max) == (20, 5, 0)


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "9" * 30, "1.5", "٣"])
def test_size_that_makes_no_sense_is_no_limit(value: str) -> None:
    """A SIZE of zero, below it, absurd or missing refuses no message."""
    client = new_client(f"250-mx\r\n250 SIZE {value}\r\n".encode())
    assert client.send(transaction()) == []


@pytest.mark.parametrize("refusal", [b"500 what\r\n", b"502 no\r\n", b"501 no\r\n", b"550 no\r\n", b"451 later\r\n"])
def test_ehlo_refused_falls_back_to_helo(refusal: bytes) -> None:
    """HELO on the same connection, and then no parameter and no pipelining."""
    client = Client("client.example")
    exchange(client, b"220 hi\r\n")
    client.receive(refusal)
    assert wire(client) == b"HELO client.example\r\n"
    assert client.phase == "helo"
    assert client.receive(b"250 mx\r\n") == [Ready()]
    client.send(transaction())
    assert wire(client) == b"MAIL FROM:<a@example.com>\r\n"


@pytest.mark.parametrize(
    ("replies", "phase"),
    [
        ([b"554 no\r\n"], "greeting"),
        ([b"450 not now\r\n"], "greeting"),
        ([b"421 busy\r\n"], "greeting"),
        ([b"220 hi\r\n", b"421 busy\r\n"], "ehlo"),
        ([b"220 hi\r\n", b"500 no\r\n", b"550 go away\r\n"], "helo"),
        ([b"220 hi\r\n", b"250-mx\r\n250 STARTTLS\r\n", b"421 no\r\n"], "starttls"),
    ],
)
def test_no_session(replies: list[bytes], phase: str) -> None:
    """Refusals of the session end it, with the reply and the phase."""
    client = Client("client.example")
    *_, event = exchange(client, *replies)
    assert isinstance(event, Refused)
    assert (event.phase, event.reply.local) == (phase, False)
    assert client.phase == "closed"
    assert not client.can_send
    client.quit()
    assert wire(client) == b""


def test_nothing_is_said_behind_the_end() -> None:
    """A host that refuses before it is asked is not asked any more."""
    client = Client("client.example")
    client.receive(b"220 hi\r\n421 busy\r\n")
    assert wire(client) == b""
    client = Client("client.example", esmtp=False)
    client.receive(b"220 hi\r\n550 go away\r\n")
    assert wire(client) == b""


def test_nothing_is_read_behind_the_end() -> None:
    """What comes behind a refusal of the session, or of content not yet sent, is not even parsed."""
    client = Client("client.example")
    (event,) = client.receive(b"554 no\r\ngarbage\r\n")
    assert isinstance(event, Refused)
    client = new_client()
    client.send(transaction())
    wire(client)
    (event,) = client.receive(TAKEN + b"554 changed my mind\r\ngarbage\r\n")
    assert isinstance(event, Finished)


def test_helo_at_once() -> None:
    """For a host that hangs up at EHLO the session begins with HELO."""
    client = Client("client.example", esmtp=False)
    client.receive(b"220 hi\r\n")
    assert wire(client) == b"HELO client.example\r\n"


# -- TLS -----------------------------------------------------------------------------------------------------

TLS_EHLO = b"250-mx\r\n250-PIPELINING\r\n250-DSN\r\n250 STARTTLS\r\n"


def test_starttls() -> None:
    """STARTTLS where it is offered; after the handshake everything is forgotten and EHLO said again (RFC 3207 4.2)."""
    client = new_client_before_tls()
    assert client.receive(b"220 2.0.0 go\r\n") == [StartTls()]
    assert client.phase == "handshake"
    assert not client.can_send
    with pytest.raises(LocalProtocolError):
        client.receive(b"250 x\r\n")
    with pytest.raises(LocalProtocolError):
        client.quit()
    client.tls_established()
    assert wire(client) == b"EHLO client.example\r\n"
    assert not client.capabilities.pipelining
    # STARTTLS offered once more is not used once more.
    assert client.receive(b"250-mx\r\n250-STARTTLS\r\n250 SIZE 1000\r\n") == [Ready()]
    assert (client.capabilities.dsn, client.capabilities.size) == (False, 1000)


def new_client_before_tls(tls: str = "opportunistic") -> Client:
    """A session that has said STARTTLS."""
    client = Client("client.example", tls=tls)  # type: ignore[arg-type]
    exchange(client, b"220 hi\r\n")
    assert client.receive(TLS_EHLO) == []
    assert wire(client) == b"STARTTLS\r\n"
    assert client.phase == "starttls"
    return client


@pytest.mark.parametrize(
    "injected", [b"250 ok\r\n", b"250-mx\r\n", b"2", b"421 bye\r\n", b"250-mx\r\n250 AUTH\r\n", b"\r\n"]
)
def test_text_behind_starttls(injected: bytes) -> None:
    """Text that came in clear behind the answer to STARTTLS is an attack, not an answer (CVE-2021-38371)."""
    client = new_client_before_tls()
    with pytest.raises(RemoteProtocolError):
        client.receive(b"220 go\r\n" + injected)


def test_failed_handshake_is_the_end() -> None:
    """Behind it the machine is closed like any other one: it takes no words and says none."""
    client = new_client_before_tls()
    client.receive(b"220 2.0.0 go\r\n")
    assert client.lost("handshake failed") == []
    assert client.phase == "closed"
    assert client.receive(b"250 x\r\n") == []
    client.quit()
    assert wire(client) == b""


def test_starttls_refused() -> None:
    """Opportunistic goes on in clear; required does not (CVE-2016-0772 is the opposite)."""
    client = new_client_before_tls()
    assert client.receive(b"454 not now\r\n") == [Ready()]
    client = new_client_before_tls("required")
    (event,) = client.receive(b"454 4.7.0 not now\r\n")
    assert isinstance(event, Refused)
    assert event.phase == "starttls"


def test_starttls_missing() -> None:
    """Required TLS that is not offered, or lost with a refused EHLO, is a refusal; `off` never asks for it."""
    client = Client("client.example", tls="required")
    *_, event = exchange(client, b"220 hi\r\n", EHLO)
    assert isinstance(event, Refused)
    assert event.reply.local
    assert event.reply.code == 454
    client = Client("client.example", tls="required")
    *_, event = exchange(client, b"220 hi\r\n", b"502 no\r\n")
    assert isinstance(event, Refused)
    assert event.reply.code == 502
    client = Client("client.example", tls="off")
    assert exchange(client, b"220 hi\r\n", TLS_EHLO)[-1] == Ready()


# -- the plain course of things ------------------------------------------------------------------------------


def test_without_pipelining() -> None:
    """One command at a time, each after the reply to the one before."""
    client = new_client(PLAIN_EHLO)
    sent = transaction("b@example.org", "c@example.org")
    client.send(sent)
    said = []
    for phase, reply in [
        ("mail", b"250 ok\r\n"), ("rcpt", b"250 ok\r\n"), ("rcpt", b"251 will forward\r\n"), ("data", b"354 go\r\n"),
    ]:  # fmt: skip
        assert client.phase == phase
        said.append(wire(client))
        assert client.receive(reply) == []
        assert not client.can_send
    assert said == [b"MAIL FROM:<a@example.com>\r\n", RCPT, b"RCPT TO:<c@example.org>\r\n", DATA]
    assert client.phase == "body"
    assert wire(client) == CONTENT + b".\r\n"
    assert client.phase == "dot"
    assert client.receive(b"250 queued\r\n") == [Finished(sent)]
    assert [reply.code for reply in sent.rcpts if reply] == [250, 251]
    assert sent.final == Reply(250, "", ("queued",))
    assert (sent.dot_sent, sent.lost, sent.pipelined) == (True, "", "")
    assert client.can_send


def test_pipelining_across_messages() -> None:
    """Content and dot of one message and the envelope of the next leave in one write (RFC 2920)."""
    client = new_client()
    first, second, third = transaction(), transaction(), transaction()
    client.send(first)
    assert not client.can_send
    assert wire(client) == MAIL + RCPT + DATA
    assert client.receive(TAKEN) == []
    assert client.can_send
    client.send(second)
    assert not client.can_send
    output = client.output()
    assert output[0] is CONTENT  # not copied
    assert b"".join(output) == CONTENT + b".\r\n" + MAIL + RCPT + DATA
    assert finished(client.receive(b"250 2.0.0 one\r\n" + TAKEN)) == [first]
    client.send(third)
    assert wire(client) == CONTENT + b".\r\n" + MAIL + RCPT + DATA
    # The replies come apart this time.
    assert finished(client.receive(b"250 2.0.0 two\r\n250 2")) == [second]
    assert client.phase == "mail"
    client.receive(b".1.0 Ok\r\n")
    assert client.phase == "rcpt"
    client.receive(b"250 2.1.5 Ok\r\n")
    assert client.phase == "data"
    client.receive(b"354 go\r\n")
    assert wire(client) == CONTENT + b".\r\n"
    assert finished(client.receive(b"250 2.0.0 three\r\n")) == [third]
    assert [t.final and t.final.text for t in (first, second, third)] == ["one", "two", "three"]
    assert [t.pipelined for t in (first, second, third)] == ["inside", "across", "across"]
    assert client.transactions == 3


def test_late_successor() -> None:
    """A message that turns up while the answer to the dot is waited for goes out at once."""
    client = new_client()
    client.send(transaction())
    exchange(client, TAKEN)
    assert client.phase == "dot"
    assert client.can_send
    client.send(transaction())
    assert wire(client) == MAIL + RCPT + DATA


def test_pipelining_inside_only() -> None:
    """With `pipeline_across` off the next envelope waits for the answer to the dot."""
    client = new_client()
    client.pipeline_across = False
    client.send(transaction())
    exchange(client, TAKEN)
    assert not client.can_send
    exchange(client, b"250 ok\r\n")
    assert client.can_send


def test_pipelining_off_by_us() -> None:
    """A host's offer is not used when we were told not to."""
    client = new_client(pipelining=False)
    client.send(transaction())
    assert wire(client) == MAIL


def test_send_when_not_possible() -> None:
    """`send`, `quit` and `tls_established` out of place are our bug."""
    client = Client("client.example")
    with pytest.raises(LocalProtocolError):
        client.send(transaction())
    with pytest.raises(LocalProtocolError):
        client.tls_established()
    client = new_client()
    client.send(transaction())
    with pytest.raises(LocalProtocolError):
        client.send(transaction())
    with pytest.raises(LocalProtocolError):
        client.quit()


def test_quit() -> None:
    """QUIT needs no answer, and takes any."""
    client = new_client()
    client.quit()
    client.quit()
    assert wire(client) == b"QUIT\r\n"
    assert client.phase == "quit"
    assert not client.can_send
    assert client.receive(b"500 never heard of it\r\n") == []
    assert client.phase == "closed"
    assert client.receive(b"garbage\r\n250 ok\r\n") == []


@pytest.mark.parametrize(
    ("content", "on_the_wire"),
    [
        (b".\r\n", b"..\r\n.\r\n"),
        (b"a\r\n.b\r\n..c\r\n", b"a\r\n..b\r\n...c\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"", b".\r\n"),
    ],
)
def test_dot_stuffing(content: bytes, on_the_wire: bytes) -> None:
    """Lines that begin with a dot get another one, the last line its CRLF; nothing else is added (RFC 5321 4.5.2)."""
    client = new_client()
    client.send(transaction(content=content))
    wire(client)
    client.receive(TAKEN)
    assert wire(client) == on_the_wire


# -- parameters ----------------------------------------------------------------------------------------------


def test_parameters_only_when_offered() -> None:
    """SIZE, BODY, RET, ENVID, NOTIFY and ORCPT go to a host that offers them, and to no other (RFC 5321 4.1.1.3)."""
    to = Recipient("b@example.org", NOTIFY_FAILURE | NOTIFY_DELAY, "rfc822;B@example.org")
    sent = Transaction("", [to], CONTENT, eight_bit=True, ret="HDRS", envid="x+2By")
    client = new_client()
    client.send(sent)
    assert wire(client) == (
        b"MAIL FROM:<> SIZE=%d BODY=8BITMIME RET=HDRS ENVID=x+2By\r\n"
        b"RCPT TO:<b@example.org> NOTIFY=FAILURE,DELAY ORCPT=rfc822;B@example.org\r\nDATA\r\n" % len(CONTENT)
    )
    assert (sent.dsn_offered, sent.sent_8bit_unannounced) == (True, False)
    sent = Transaction("", [to], CONTENT, eight_bit=True, ret="HDRS", envid="x+2By")
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
        one.eight_bit, one.eight_bit_offered = True, offered
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
    return Transaction(sender, [Recipient(to, 0, None)], content, smtputf8=True)


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
        assert sent.unfit == ([] if "ä" not in named else sent.recipients)
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


# -- refusals ------------------------------------------------------------------------------------------------


def test_replies_belong_to_recipients_by_position() -> None:
    """Some taken, some deferred, some refused: every recipient has its own reply, and the message goes to the rest."""
    client = new_client()
    sent = transaction("a@x.example", "b@x.example", "c@x.example", "d@x.example")
    client.send(sent)
    exchange(
        client,
        b"250 ok\r\n250 a\r\n450 b\r\n550-5.1.1 c\r\n550 5.1.1 cc\r\n250 d\r\n354 go\r\n",
    )
    assert sent.dot_sent
    assert finished(client.receive(b"250 queued\r\n")) == [sent]
    assert [str(reply) for reply in sent.rcpts] == ["250 a", "450 b", "550 5.1.1 c cc", "250 d"]
    assert sent.final is not None


@pytest.mark.parametrize("final", [b"250 ok\r\n", b"554 no recipients\r\n", b"451 what\r\n"])
def test_all_recipients_refused_but_data_allowed(final: bytes) -> None:
    """A lone dot, never the content, and its answer means nothing (RFC 2920 3.1)."""
    client = new_client()
    sent = transaction("a@x.example", "b@x.example")
    client.send(sent)
    wire(client)
    assert client.receive(b"250 ok\r\n550 a\r\n450 b\r\n354 go\r\n") == []
    assert wire(client) == b".\r\n"
    assert not client.can_send
    assert finished(client.receive(final)) == [sent]
    assert (sent.final, sent.dot_sent, sent.lost) == (None, False, "")
    assert [reply and reply.code for reply in sent.rcpts] == [550, 450]
    client.send(transaction())
    assert wire(client) == MAIL + RCPT + DATA  # no RSET: the dot has ended that transaction


@pytest.mark.parametrize("reply", [b"554 no valid recipients\r\n", b"503 need RCPT\r\n", b"451 later\r\n"])
def test_all_recipients_refused_and_data_too(reply: bytes) -> None:
    """The host's transaction is still open, so RSET goes before the next MAIL, in the same write."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    (event,) = exchange(client, b"250 ok\r\n550 no\r\n" + reply)
    assert event == Finished(sent)
    assert client.pipelining_suspect == ""
    following = transaction()
    client.send(following)
    assert client.phase == "rset"
    assert wire(client) == b"RSET\r\n" + MAIL + RCPT + DATA
    assert exchange(client, b"250 reset\r\n" + TAKEN, b"250 queued\r\n") == [Finished(following)]


def test_all_recipients_refused_without_pipelining() -> None:
    """DATA is not even asked; RSET waits for its own answer before the next MAIL."""
    client = new_client(PLAIN_EHLO)
    sent = transaction()
    client.send(sent)
    assert exchange(client, b"250 ok\r\n", b"550 no\r\n") == [Finished(sent)]
    assert sent.data is None
    client.send(transaction())
    assert wire(client) == b"RSET\r\n"
    client.receive(b"250 reset\r\n")
    assert wire(client) == b"MAIL FROM:<a@example.com>\r\n"


def test_data_refused() -> None:
    """4xx or 5xx to DATA is the verdict for those who were accepted; the session goes on after RSET."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    assert exchange(client, b"250 ok\r\n250 ok\r\n452 full\r\n") == [Finished(sent)]
    assert sent.data is not None
    assert (sent.data.code, sent.final, sent.dot_sent) == (452, None, False)
    client.send(transaction())
    assert wire(client).startswith(b"RSET\r\n")


@pytest.mark.parametrize("mail", [b"550 5.7.1 no\r\n", b"451 later\r\n"])
def test_mail_refused(mail: bytes) -> None:
    """The replies to RCPT and DATA that are under way are read and mean nothing; no RSET is needed."""
    client = new_client()
    sent = transaction("a@x.example", "b@x.example")
    client.send(sent)
    wire(client)
    assert client.receive(mail + b"503 need MAIL\r\n250 strange\r\n") == []
    assert finished(client.receive(b"503 need MAIL\r\n")) == [sent]
    assert sent.mail is not None
    assert (sent.rcpts, sent.data) == ([None, None], None)
    client.send(transaction())
    assert wire(client) == MAIL + RCPT + DATA


def test_mail_refused_without_pipelining() -> None:
    """The transaction is over with the reply."""
    client = new_client(PLAIN_EHLO)
    sent = transaction()
    client.send(sent)
    assert exchange(client, b"550 no\r\n") == [Finished(sent)]
    assert client.can_send


def test_mail_refused_but_data_allowed() -> None:
    """Even then nothing but a dot is sent."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    client.receive(b"550 no\r\n250 ok\r\n354 go\r\n")
    assert wire(client) == b".\r\n"
    assert finished(client.receive(b"250 ok\r\n")) == [sent]
    assert sent.mail is not None
    assert (sent.mail.code, sent.final, sent.dot_sent) == (550, None, False)


@pytest.mark.parametrize("code", [451, 550, 459, 591])
def test_content_refused(code: int) -> None:
    """Any 4xx or 5xx is the verdict, known or not; a successor that is under way is not touched by it."""
    client = new_client()
    first, second = transaction(), transaction()
    client.send(first)
    exchange(client, TAKEN)
    client.send(second)
    assert exchange(client, b"%d no\r\n" % code + TAKEN, b"250 ok\r\n") == [Finished(first), Finished(second)]
    assert first.final == Reply(code, "", ("no",))
    assert second.final == Reply(250, "", ("ok",))


def test_rset_refused() -> None:
    """A host that will not reset gives no session; the transaction is handed back."""
    client = new_client()
    client.send(transaction())
    exchange(client, b"250 ok\r\n550 no\r\n554 no\r\n")
    following = transaction()
    client.send(following)
    assert exchange(client, b"500 what\r\n") == [Finished(following)]
    assert (following.mail, following.lost_phase, client.phase) == (None, "", "closed")
    assert "RSET" in following.lost


# -- the end of sessions -------------------------------------------------------------------------------------

POSITIONS = [
    (b"", "mail"), (b"250 ok\r\n", "rcpt"), (b"250 ok\r\n250 ok\r\n", "data"), (TAKEN, "dot"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "phase"), POSITIONS)
def test_421_anywhere(before: bytes, phase: str) -> None:
    """421 ends the present transaction where it is, and hands back a successor untouched."""
    client = new_client()
    sent, successor = transaction(), transaction()
    client.send(sent)
    exchange(client, before)
    expected = [sent]
    if phase == "dot":
        client.send(successor)
        wire(client)
        expected.append(successor)
    assert finished(client.receive(b"421 4.3.2 closing\r\n250 ignored\r\ngarbage\r\n")) == expected
    assert client.phase == "closed"
    assert client.receive(b"421 again\r\n") == []
    assert client.lost("connection closed") == []
    closing = {"mail": sent.mail, "rcpt": sent.rcpts[0], "data": sent.data, "dot": sent.final}[phase]
    assert closing == Reply(421, "4.3.2", ("closing",))
    if phase == "dot":
        assert sent.lost == ""
        assert (successor.mail, successor.dot_sent, successor.lost_phase) == (None, False, "")
        assert "4.3.2" in successor.lost
    else:
        assert (sent.lost_phase, sent.dot_sent, sent.final) == (phase, False, None)


def test_421_between_messages() -> None:
    """A host may say 421 unasked when it has had enough; that is no protocol error."""
    client = new_client()
    assert client.receive(b"421 idle for too long\r\n") == []
    assert client.phase == "closed"
    assert not client.can_send


@pytest.mark.parametrize(("before", "phase"), POSITIONS)
def test_connection_lost_anywhere(before: bytes, phase: str) -> None:
    """Only after the final dot may the host have the message; the phase is told."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, before)
    assert client.eof() == [Finished(sent)]
    assert (sent.lost_phase, sent.dot_sent, sent.final) == (phase, phase == "dot", None)
    assert "closed" in sent.lost
    assert client.eof() == []


def test_lost_with_a_successor() -> None:
    """The message with the dot is in doubt, its successor is not."""
    client = new_client()
    first, second = transaction(), transaction()
    client.send(first)
    exchange(client, TAKEN)
    client.send(second)
    wire(client)
    assert finished(client.lost("timeout")) == [first, second]
    assert (first.lost, first.lost_phase, first.dot_sent) == ("timeout", "dot", True)
    assert (second.lost, second.lost_phase, second.dot_sent) == ("timeout", "", False)


def test_lost_before_the_content_left() -> None:
    """Content that is still in the output was not sent."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    client.receive(TAKEN)
    assert sent.dot_sent
    assert client.phase == "body"
    client.lost("shutting down")
    assert (sent.dot_sent, sent.lost_phase) == (False, "body")


@pytest.mark.parametrize(("missing", "in_doubt"), [(0, True), (1, True), (5, False), (400, False)])
def test_lost_while_the_content_was_written(missing: int, in_doubt: bool) -> None:
    """When the dot could not be written the host cannot have the message, and another may get it at once."""
    client = new_client()
    sent, successor = transaction(), transaction()
    client.send(sent)
    wire(client)
    client.receive(TAKEN)
    client.send(successor)
    envelope = MAIL + RCPT + DATA
    wire(client)
    # `missing` counts from the final dot on: the envelope behind it is unsent in any case but the first.
    client.unsent(len(envelope) + missing if missing > 1 else missing)
    assert not client.can_send
    client.lost("connection reset")
    assert sent.dot_sent is in_doubt
    assert successor.dot_sent is False


def test_unsent_envelope_says_nothing_about_an_earlier_dot() -> None:
    """A dot that left with an earlier write is out, whatever happens to the next one."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, TAKEN)
    client.send(transaction())
    wire(client)
    client.unsent(10_000)
    client.lost("connection reset")
    assert sent.dot_sent


def test_verdict_before_the_connection_is_lost() -> None:
    """250 to the dot is success whatever follows; so is a refusal of all recipients."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, TAKEN)
    assert fails(client, b"250 queued\r\ngarbage\r\n") == [Finished(sent)]
    assert sent.final is not None
    assert sent.lost == ""
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, b"250 ok\r\n550 no\r\n")
    assert finished(client.eof()) == [sent]
    assert sent.lost == ""


def test_reply_without_its_end() -> None:
    """`250-` and then the end of the stream is no success."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, TAKEN, b"250-queued\r\n")
    client.eof()
    assert (sent.final, sent.dot_sent) == (None, True)
    assert sent.lost


# -- early replies to content --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [421, 451, 552])
def test_refused_in_mid_content(code: int) -> None:
    """A host that refuses content while it is being written is believed, and the session is over."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    client.receive(TAKEN)
    wire(client)
    client.unsent(20)
    assert finished(client.receive(b"%d enough\r\n" % code)) == [sent]
    assert sent.final == Reply(code, "", ("enough",))
    assert (sent.dot_sent, client.phase) == (False, "closed")


def test_refused_before_content_was_written() -> None:
    """The refusal came together with 354: the content stays here."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    assert finished(client.receive(TAKEN + b"554 changed my mind\r\n")) == [sent]
    assert wire(client) == b""
    assert (sent.dot_sent, client.phase) == (False, "closed")


def test_accepted_before_content_was_written() -> None:
    """250 for content that the host cannot have is no success."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    assert finished(fails(client, TAKEN + b"250 thank you\r\n")) == [sent]
    assert (sent.final, sent.dot_sent) == (None, False)
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    client.receive(TAKEN)
    wire(client)
    client.unsent(5)
    assert finished(fails(client, b"250 thank you\r\n")) == [sent]
    assert (sent.final, sent.dot_sent) == (None, False)


# -- hostile and confused hosts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "nonsense"),
    [
        (b"", b"354 go\r\n"),
        (b"250 ok\r\n", b"354 go\r\n"),
        (b"", b"350 what\r\n"),
        (b"250 ok\r\n250 ok\r\n", b"250 no 354\r\n"),
        (b"250 ok\r\n250 ok\r\n", b"221 bye\r\n"),
        (TAKEN, b"354 again\r\n"),
        (TAKEN, b"250 ok\n"),
        (TAKEN, b"hello\r\n"),
        (TAKEN, b"150 x\r\n"),
        (TAKEN, b"999 x\r\n"),
        (TAKEN, b"250 " + b"x" * 10_000_000),
        (TAKEN, b"250-x\r\n" * 100_000),
        (TAKEN, b"250-x\r\n550 y\r\n"),
    ],
)
def test_nonsense_is_never_success(before: bytes, nonsense: bytes) -> None:
    """A reply that cannot be, or is none, ends the session; the message is in doubt at most, and never delivered."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    wire(client)
    exchange(client, before)
    assert finished(fails(client, nonsense)) == [sent]
    assert sent.final is None
    assert sent.lost
    assert sent.dot_sent == (before == TAKEN)
    assert client.phase == "closed"


def test_reply_before_anything_was_asked() -> None:
    """A reply to nothing, also inside TLS, is an attack or a host out of step (CVE-2009-3555)."""
    client = new_client()
    with pytest.raises(RemoteProtocolError):
        client.receive(b"250 ok\r\n")
    client = Client("client.example")
    with pytest.raises(RemoteProtocolError):
        client.receive(b"220 hi\r\n" + EHLO + b"250 early\r\n")
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, TAKEN)
    assert finished(fails(client, b"250 queued\r\n250 surplus\r\n")) == [sent]
    assert sent.final is not None


def test_greeting_that_is_none() -> None:
    """An HTTP server or TLS on the other side is found at its first line."""
    for greeting in (b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x01\x00\x02\x02F\r\n", b"* OK IMAP\r\n", b"350 x\r\n"):
        with pytest.raises(RemoteProtocolError):
            Client("client.example").receive(greeting)


@pytest.mark.parametrize(
    "refusal",
    [b"503 5.5.1 nested MAIL\r\n", b"554 5.5.0 SMTP protocol synchronization\r\n", b"550 no pipelining here\r\n"],
)
def test_host_that_does_not_bear_pipelining_across(refusal: bytes) -> None:
    """The envelope is handed back as if it had not been sent, and the form is under suspicion."""
    client = new_client()
    first, second = transaction(), transaction()
    client.send(first)
    exchange(client, TAKEN)
    client.send(second)
    assert exchange(client, b"250 queued\r\n" + refusal) == [Finished(first), Finished(second)]
    assert first.final is not None
    assert first.final.code == 250
    assert (second.mail, second.rcpts, second.lost_phase) == (None, [None], "")
    assert "pipelining" in second.lost
    assert (client.pipelining_suspect, client.phase) == ("across", "closed")


def test_content_refused_because_of_its_successor() -> None:
    """When the host takes the early envelope for the fault of the content, neither message suffers."""
    client = new_client()
    first, second = transaction(), transaction()
    client.send(first)
    exchange(client, TAKEN)
    client.send(second)
    assert exchange(client, b"554 5.5.0 improper use of pipelining\r\n") == [Finished(first), Finished(second)]
    for sent in (first, second):
        assert (sent.final, sent.mail, sent.dot_sent) == (None, None, False)
        assert sent.lost
    assert client.pipelining_suspect == "across"


@pytest.mark.parametrize("replies", [b"250 ok\r\n503 need MAIL\r\n", b"250 ok\r\n250 ok\r\n503 need RCPT\r\n"])
def test_host_that_does_not_bear_pipelining_inside(replies: bytes) -> None:
    """A host that loses its place inside a group is suspected of that, and the message is handed back."""
    client = new_client()
    sent = transaction()
    client.send(sent)
    assert exchange(client, replies) == [Finished(sent)]
    assert (sent.mail, sent.rcpts, sent.data) == (None, [None], None)
    assert sent.lost
    assert client.pipelining_suspect == "inside"


def test_503_without_pipelining_is_a_verdict() -> None:
    """Without pipelining, or to the first command of a group, 503 is what it says."""
    client = new_client(PLAIN_EHLO)
    sent = transaction()
    client.send(sent)
    exchange(client, b"250 ok\r\n", b"503 authenticate first\r\n")
    assert sent.rcpts[0] is not None
    client = new_client()
    sent = transaction()
    client.send(sent)
    exchange(client, b"503 authenticate first\r\n503 no\r\n503 no\r\n")
    assert sent.mail is not None
    assert client.pipelining_suspect == ""


def test_hanging_up_at_an_envelope_sent_across() -> None:
    """A host that closes at its first such envelope is suspected; one that has taken some before is not."""
    client = new_client()
    client.send(transaction())
    exchange(client, TAKEN)
    client.send(transaction())
    exchange(client, b"250 queued\r\n")
    client.eof()
    assert client.pipelining_suspect == "across"
    client = new_client()
    client.send(transaction())
    for _ in range(3):
        exchange(client, TAKEN)
        client.send(transaction())
        exchange(client, b"250 queued\r\n")
    client.eof()
    assert client.pipelining_suspect == ""


REPLIES = [
    b"250 ok\r\n", b"250 2.0.0 ok\r\n", b"354 go\r\n", b"550 no\r\n", b"450 later\r\n", b"421 bye\r\n", b"503 what\r\n",
    b"250-a\r\n250 b\r\n", b"251 x\r\n", b"garbage\r\n", b"250 ok\n", b"221 x\r\n", b"25", b"554 pipelining\r\n",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(REPLIES), max_size=30),
    st.booleans(),
    st.lists(st.integers(1, 3), min_size=30, max_size=30),
    st.integers(1, 20),
)
def test_any_host(replies: list[bytes], pipelined: bool, recipients: list[int], size: int) -> None:
    """Whatever a host says, every transaction is finished exactly once, success needs a 250 after the dot was written,
    and no doubt remains where the dot was not."""
    client = new_client(EHLO if pipelined else PLAIN_EHLO)
    sent: list[Transaction] = []
    ended: list[Transaction] = []
    written = b""
    contents = (b"Subject: %d\r\n\r\nx\r\n" % number for number in range(1000))

    def fill() -> None:
        nonlocal written
        while client.can_send:
            new = transaction(*["b@example.org"] * recipients[len(sent) % 30], content=next(contents))
            sent.append(new)
            ended.extend(finished(client.send(new)))
            written += wire(client)
        written += wire(client)

    fill()
    try:
        for reply in replies:
            for piece in pieces(reply, [size] * 10):
                ended += finished(client.receive(piece))
                for done in ended:
                    if done.final is not None and done.final.positive:
                        assert done.content + b".\r\n" in written
                fill()
        ended += finished(client.eof())
    except RemoteProtocolError as error:
        ended += finished(client.lost(str(error)))
    assert ended == sent[: len(ended)]
    assert len(ended) == len(sent)
    for done in sent:
        if done.dot_sent:
            assert done.content + b".\r\n" in written
            assert done.mail is not None
            assert done.mail.positive
            assert any(reply is not None and reply.positive for reply in done.rcpts)
        elif done.content + b".\r\n" in written:
            assert done.final is None or not done.final.positive
