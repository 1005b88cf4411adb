"""The server machine and the envelope: addresses and parameters, and who is refused by policy (RFC 1870, 3461)."""

from __future__ import annotations

import pytest

from mta.queue.records import (
    DOTLESS,
    EIGHT_BIT,
    NOTIFY_DELAY,
    NOTIFY_FAILURE,
    NOTIFY_NEVER,
    NOTIFY_SUCCESS,
    SMTPUTF8,
    Recipient,
)
from mta.smtp.address import Address
from mta.smtp.peer import AllRights, SameForAll
from mta.smtp.reply import Reply
from mta.smtp.server import Closed, Envelope, MessageReceived
from tests.smtp.helpers import CONTENT, QUEUED, STRANGER, deliver, new_server, open_transaction, say, talk
from tests.smtp.server_helpers import TRANSACTION

# -- addresses and parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("MAIL FROM:<>", "250 2.1.0"),
        ("MAIL FROM:a@example.com", "501 5.1.7"),
        ("MAIL FROM:<a@example.com", "501 5.1.7"),
        ("MAIL FROM:<postmaster>", "501 5.1.7"),
        ("MAIL FROM:<;id;>", "501 5.1.7"),
        ("MAIL FROM:<a\rb@example.com>", "501 5.1.7"),
        ("MAIL FROM:<a\x00b@example.com>", "501 5.1.7"),
        ("MAIL FROM:<a@example.com>SIZE=1", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> SIZE=1000", "250"),
        ("MAIL FROM:<a@example.com> size=1000", "250"),
        ("MAIL FROM:<a@example.com>  SIZE=1000  BODY=8bitmime ", "250"),
        ("MAIL FROM:<a@example.com> SIZE=1001", "552 5.3.4"),
        ("MAIL FROM:<a@example.com> SIZE=99999999999999999999", "552 5.3.4"),
        ("MAIL FROM:<a@example.com> SIZE=999999999999999999999", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> SIZE=-1", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> SIZE=+1", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> SIZE=1_0", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> SIZE=", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> SIZE", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> SIZE=1 SIZE=1", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> BODY=7BIT", "250"),
        ("MAIL FROM:<a@example.com> BODY=BINARYMIME", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> SMTPUTF8=1", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> RET=FULL ENVID=a+2Bb", "250"),
        ("MAIL FROM:<a@example.com> RET=SOME", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> RET=FULL RET=FULL", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> ENVID=" + "x" * 100, "250"),
        ("MAIL FROM:<a@example.com> ENVID=" + "x" * 101, "501 5.5.4"),
        ("MAIL FROM:<a@example.com> ENVID=a=b", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> ENVID=a+0D+0Ab", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> ENVID=a+zz", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> AUTH=<>", "555 5.5.4"),
        ("MAIL FROM:<a@example.com> FOO", "555 5.5.4"),
        ("MAIL FROM:<a@example.com> =x", "555 5.5.4"),
        ("MAIL FROM:<a@example.com> SIZE=1\tBODY=7BIT", "501 5.5.4"),
        ("MAIL FROM:<ü@example.com>", "553 5.6.7"),
        ("MAIL FROM:<a@ü.example>", "553 5.6.7"),
        ("MAIL FROM:<ü@example.com> SMTPUTF8", "250"),
    ],
)
def test_mail(line: str, reply: str) -> None:
    """MAIL and its parameters; a MAIL that is refused begins nothing."""
    server = new_server(message_size=1000)
    assert say(server, line)[0].startswith(reply)
    assert server.idle == (not reply.startswith("250"))


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("RCPT TO:<>", "501 5.1.3"),
        ("RCPT TO:b@example.org", "501 5.1.3"),
        ("RCPT TO:<b>", "501 5.1.3"),
        ("RCPT TO:<b@@example.org>", "501 5.1.3"),
        ("RCPT TO:<@a,@b:c@example.org>", "250 2.1.5"),
        ("RCPT TO:<b@example.org>x", "501 5.5.4"),
        ("RCPT TO:<b@example.org> NOTIFY=NEVER", "250"),
        ("RCPT TO:<b@example.org> NOTIFY=success,FAILURE,Delay", "250"),
        ("RCPT TO:<b@example.org> NOTIFY=NEVER,FAILURE", "501 5.5.4"),
        ("RCPT TO:<b@example.org> NOTIFY=FAILURE,NEVER", "501 5.5.4"),
        ("RCPT TO:<b@example.org> NOTIFY=FAILURE,FAILURE", "501 5.5.4"),
        ("RCPT TO:<b@example.org> NOTIFY=FAILURE,", "501 5.5.4"),
        ("RCPT TO:<b@example.org> NOTIFY=", "501 5.5.4"),
        ("RCPT TO:<b@example.org> NOTIFY", "501 5.5.4"),
        ("RCPT TO:<b@example.org> NOTIFY=FAILURE NOTIFY=FAILURE", "501 5.5.4"),
        ("RCPT TO:<b@example.org> ORCPT=rfc822;b+2Bc@example.org", "250"),
        ("RCPT TO:<b@example.org> ORCPT=rfc822;" + "x" * 493, "250"),
        ("RCPT TO:<b@example.org> ORCPT=rfc822;" + "x" * 494, "501 5.5.4"),
        ("RCPT TO:<b@example.org> ORCPT=b@example.org", "501 5.5.4"),
        ("RCPT TO:<b@example.org> ORCPT=rfc822;a+0Ab", "501 5.5.4"),
        ("RCPT TO:<b@example.org> ORCPT=rfc822;a ORCPT=rfc822;b", "501 5.5.4"),
        ("RCPT TO:<b@example.org> ORCPT=utf-8;ü@example.org", "501 5.5.4"),
        ("RCPT TO:<b@example.org> SIZE=5", "555 5.5.4"),
        ("RCPT TO:<ü@example.org>", "553 5.6.7"),
    ],
)
def test_rcpt(line: str, reply: str) -> None:
    """RCPT and its parameters; a refused RCPT leaves the transaction without that recipient."""
    server = new_server()
    say(server, "MAIL FROM:<a@example.com>")
    assert say(server, line)[0].startswith(reply)
    assert say(server, "DATA")[0].startswith("354" if reply.startswith("250") else "554 5.5.1")


def test_envelope() -> None:
    """All that the client said is in the envelope, in the form the queue wants."""
    server = new_server()
    say(
        server,
        "MAIL FROM:<Jürgen@Bücher.Example> SIZE=99 BODY=8BITMIME SMTPUTF8 RET=hdrs ENVID=x+2By",
        "RCPT TO:<B@Example.ORG> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Old@Example.ORG",
        "RCPT TO:<b@example.org> NOTIFY=NEVER",
        "RCPT TO:<c@example.org> NOTIFY=FAILURE ORCPT=utf-8;ü@example.org",
        "RCPT TO:<Postmaster>",
        "DATA",
    )
    (event,) = server.receive(b".\r\n")
    assert event == MessageReceived(
        Envelope(
            "Jürgen@bücher.example",
            [
                Recipient("B@example.org", NOTIFY_SUCCESS | NOTIFY_DELAY, "rfc822;Old@Example.ORG"),
                Recipient("b@example.org", NOTIFY_NEVER),
                Recipient("c@example.org", NOTIFY_FAILURE, "utf-8;ü@example.org"),
                Recipient("Postmaster@mx.example.net"),
            ],
            size=99,
            flags=EIGHT_BIT | SMTPUTF8 | DOTLESS,
            ret="HDRS",
            envid="x+2By",
            helo="client.example",
            esmtp=True,
        ),
        b"",
    )


def test_minimum_sizes() -> None:
    """What RFC 5321 4.5.3.1 says everybody must take is taken: local part, domain, path, line, recipients, content."""
    server = new_server()
    local, domain = "l" * 64, ".".join(["d" * 63] * 3 + ["d" * 59, "ex"])
    assert len(domain) == 254
    assert say(server, f"MAIL FROM:<{local}@{domain}> ENVID={'x' * 100}")[0].startswith("250")
    for number in range(100):
        assert say(server, f"RCPT TO:<r{number}@example.org> ORCPT=rfc822;{'x' * 493}")[0].startswith("250")
    assert say(server, "DATA")[0].startswith("354")
    content = (b"x" * 998 + b"\r\n") * 66
    assert len(content) > 64 * 1024
    (event,) = server.receive(content + b".\r\n")
    assert isinstance(event, MessageReceived)
    assert len(event.envelope.recipients) == 100
    server.answer(QUEUED)
    server.output()
    assert say(server, "NOOP " + "x" * 505)[0].startswith("250")


# -- policy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["<b@example.org>", "<postmaster>", "<@mx.example.net:b@example.org>", "<b%example.org@mx.example.net>",
     '<"b@example.org"@mx.example.net>', "<b@[192.0.2.1]>", "<b@mx.example.net>"],
)  # fmt: skip
def test_strangers_may_not_relay(path: str) -> None:
    """Who is not in `relay_from` is refused every recipient, in whatever way it is written (RFC 2505, RFC 5321 7)."""
    server = new_server(STRANGER)
    assert say(server, "MAIL FROM:<a@example.com>", f"RCPT TO:{path}", "DATA")[1:] == [
        "550 5.7.1 Relaying denied", "554 5.5.1 No valid recipients",
    ]  # fmt: skip


def test_recipients_may_be_refused_one_by_one() -> None:
    """`Rights` see each address as it was parsed."""
    seen = []

    class Careful(AllRights):
        def check_recipient(self, recipient: Address) -> Reply | None:
            seen.append(recipient)
            return Reply(550, "5.1.1", ("No such user",)) if recipient.local == "bad" else None

    server = new_server(permissions=SameForAll(Careful()))
    say(server, "MAIL FROM:<a@example.com>")
    assert say(server, "RCPT TO:<bad@Example.org>", "RCPT TO:<good@example.org>") == [
        "550 5.1.1 No such user", "250 2.1.5 Ok",
    ]  # fmt: skip
    assert seen == [Address("bad", "example.org"), Address("good", "example.org")]


def test_no_room() -> None:
    """When the intake is closed MAIL is refused, before any content; that is not the client's error, but nobody may try
    without end."""
    closed: list[Reply | None] = [Reply(452, "4.3.1", ("Disk is nearly full",))]
    server = new_server(intake_closed=lambda: closed[0], errors=3)
    for _ in range(10):
        assert say(server, "MAIL FROM:<a@example.com>") == ["452 4.3.1 Disk is nearly full"]
    assert server.idle
    closed[0] = None
    deliver(server)
    closed[0] = Reply(452, "4.3.1", ("Disk is nearly full",))
    replies = say(server, *["MAIL FROM:<a@example.com>"] * 1001)
    assert set(replies[:1000]) == {"452 4.3.1 Disk is nearly full"}
    assert replies[1000].startswith("421 4.7.0")


def test_no_room_for_a_client_that_pipelines() -> None:
    """The RCPT and DATA behind the refused MAIL are no errors of the client either, but not without end."""
    server = new_server(intake_closed=lambda: Reply(452, "4.3.1", ("full",)), errors=3, commands=151)
    for _ in range(50):
        output, _ = talk(server, TRANSACTION)
        assert [line[:3] for line in output.split(b"\r\n")[:-1]] == [b"452", b"503", b"503"]
    assert talk(server, TRANSACTION)[0].startswith(b"421 4.7.0")


def test_messages_refused_for_a_while_are_counted() -> None:
    """Whoever sends its content again and again to a store that is full is sent away some time."""
    server = new_server(errors=3, commands=4)
    for _ in range(3):
        open_transaction(server)
        server.receive(CONTENT + b".\r\n")
        assert server.answer(Reply(452, "4.3.1", ("full",))) == []
    assert server.output().startswith(b"452")
    open_transaction(server)
    server.receive(CONTENT + b".\r\n")
    assert server.answer(Reply(452, "4.3.1", ("full",))) == [Closed(by_client=False)]
    assert server.output().startswith(b"421 4.7.0")


@pytest.mark.parametrize("reply", [Reply(452, "4.3.1", ("full",)), Reply(554, "5.4.6", ("Too many hops",))])
def test_message_refused_by_the_caller(reply: Reply) -> None:
    """The caller's refusal goes out, the transaction is over, the session goes on."""
    server = new_server()
    open_transaction(server)
    server.receive(CONTENT + b".\r\n")
    assert server.answer(reply) == []
    assert server.output() == reply.to_bytes()
    assert say(server, "DATA", "RCPT TO:<b@example.org>") == ["503 5.5.1 Send MAIL first"] * 2
    deliver(server)


def test_caller_ends_the_session_with_421() -> None:
    """421 as an answer is the last one."""
    server = new_server()
    open_transaction(server)
    server.receive(CONTENT + b".\r\n" + TRANSACTION)
    assert server.answer(Reply(421, "4.3.0", ("trouble",))) == [Closed(by_client=False)]
    assert server.output() == b"421 4.3.0 trouble\r\n"
