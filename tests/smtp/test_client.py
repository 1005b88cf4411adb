"""The client machine opens sessions, with TLS and without, and sends: the very bytes that RFC 5321 and 2920 want."""

from __future__ import annotations

import pytest

from mta.smtp.client import Client, Finished, Greeted, Ready, Refused, StartTls
from mta.smtp.errors import LocalProtocolError, RemoteProtocolError
from mta.smtp.reply import Reply
from tests.smtp.client_words import DATA, MAIL, RCPT, TAKEN
from tests.smtp.helpers import CONTENT, EHLO, PLAIN_EHLO, exchange, finished, new_client, transaction, wire

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
    client = Client("client.example", tls=tls)
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
