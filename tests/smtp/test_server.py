"""The server machine: every command in every state, limits, hostile clients (RFC 5321, 1870, 2034, 2920, 3461)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import repeat

import pytest

from mta.queue.records import NOTIFY_DELAY, NOTIFY_FAILURE, NOTIFY_NEVER, NOTIFY_SUCCESS, Recipient
from mta.smtp.address import Address
from mta.smtp.budget import Budget
from mta.smtp.coming import Coming
from mta.smtp.errors import LocalProtocolError
from mta.smtp.peer import AllRights, SameForAll
from mta.smtp.reply import Reply
from mta.smtp.server import SKIP_LIMIT, Closed, Envelope, MessageReceived, Server, TakesLong
from tests.smtp.helpers import (
    CONTENT,
    QUEUED,
    STRANGER,
    TRUSTED,
    deliver,
    new_server,
    open_transaction,
    pieces,
    say,
    server_settings,
    talk,
)

TRANSACTION = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"


def outcome(server: Server, chunks: Iterable[bytes]) -> tuple[bytes, list[tuple[Envelope, bytes]], bool]:
    """Feed chunks, accepting every message: all replies, the messages, and whether the session is over."""
    replies = b""
    messages = []
    over = False
    for chunk in chunks:
        pending = server.receive(chunk)
        while pending:
            event = pending.pop(0)
            if isinstance(event, MessageReceived):
                messages.append((event.envelope, event.content))
                pending += server.answer(QUEUED)
            else:
                over = True
        replies += server.output()
    return replies, messages, over


# -- the plain course of things -------------------------------------------------------------------------------


def test_session() -> None:
    """Greeting, EHLO with all that is offered, one message, QUIT."""
    server = Server(server_settings(message_size=1000, recipients=50), TRUSTED)
    assert server.greeting() == b"220 mx.example.net ESMTP\r\n"
    output, _ = talk(server, b"EHLO client.example\r\n")
    lines = output.decode().split("\r\n")[:-1]
    assert lines[0] == "250-mx.example.net"
    assert lines[-1].startswith("250 ")
    assert {line[4:] for line in lines[1:]} == {
        "PIPELINING", "SIZE 1000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING", "DSN",
        "LIMITS RCPTMAX=50", "HELP",
    }  # fmt: skip
    assert say(server, "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA") == [
        "250 2.1.0 Ok", "250 2.1.5 Ok", "354 End data with <CR><LF>.<CR><LF>",
    ]  # fmt: skip
    output, (event,) = talk(server, CONTENT + b".\r\n")
    assert output == b""
    envelope = Envelope("a@example.com", [Recipient("b@example.org")], helo="client.example", esmtp=True)
    assert event == MessageReceived(envelope, CONTENT)
    assert server.answer(QUEUED) == []
    assert server.output() == b"250 2.0.0 Ok: queued as 1\r\n"
    assert talk(server, b"QUIT\r\n") == (b"221 2.0.0 Bye\r\n", [Closed(by_client=True)])
    assert talk(server, b"NOOP\r\n") == (b"", [])


def test_helo() -> None:
    """HELO offers nothing, and the envelope says so."""
    server = Server(server_settings(), TRUSTED)
    assert say(server, "HELO client.example") == ["250 mx.example.net"]
    assert deliver(server).envelope.esmtp is False


def test_pipelined_group_has_one_output() -> None:
    """The replies of a group leave together, in order."""
    server = new_server()
    output, _ = talk(server, TRANSACTION)
    assert [line[:3] for line in output.split(b"\r\n")[:-1]] == [b"250", b"250", b"354"]


def test_input_behind_a_message_is_held() -> None:
    """While the message is being stored what came behind it waits; then all is answered at once, in order."""
    server = new_server()
    open_transaction(server)
    output, (event,) = talk(server, CONTENT + b".\r\n" + TRANSACTION)
    assert isinstance(event, MessageReceived)
    assert output == b""
    assert talk(server, b"") == (b"", [])
    assert server.answer(QUEUED) == []
    assert [line[:3] for line in server.output().split(b"\r\n")[:-1]] == [b"250", b"250", b"250", b"354"]
    (event,) = server.receive(CONTENT + b".\r\nQUIT\r\n")
    assert server.answer(QUEUED) == [Closed(by_client=True)]
    assert server.output() == QUEUED.to_bytes() + b"221 2.0.0 Bye\r\n"


def test_answer_out_of_place() -> None:
    """An answer without a message is our bug."""
    with pytest.raises(LocalProtocolError):
        new_server().answer(QUEUED)


@pytest.mark.parametrize("command", ["ehlo x.example", "Helo x.example", "noop", "rSET", "vrfy x", "Help", "quit"])
def test_verbs_in_any_case(command: str) -> None:
    """Verbs are not case-sensitive (RFC 5321 2.4)."""
    assert say(new_server(), command)[0][0] == "2"


def test_arguments_of_mail_and_rcpt_in_any_form() -> None:
    """FROM: and TO: in any case, with a space behind them or at the end of the line."""
    server = new_server()
    for line in (
        "mail from:<a@example.com>", "rcpt to:<b@example.org>", "RSET", "MAIL FROM: <a@example.com>",
        "RCPT To: <b@example.org> ", "RSET ",
    ):  # fmt: skip
        assert say(server, line)[0].startswith("250"), line


# -- the order of commands ------------------------------------------------------------------------------------

STATES = {
    "start": [],
    "ready": ["EHLO client.example"],
    "mail": ["EHLO client.example", "MAIL FROM:<a@example.com>"],
    "rcpt": ["EHLO client.example", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>"],
}
EXPECTED = {
    "EHLO x.example": "250 250 250 250",
    "HELO x.example": "250 250 250 250",
    "MAIL FROM:<a@example.com>": "503 250 503 503",
    "RCPT TO:<b@example.org>": "503 503 250 250",
    "DATA": "503 503 554 354",
    "RSET": "250 250 250 250",
    "NOOP": "250 250 250 250",
    "NOOP with text": "250 250 250 250",
    "VRFY user": "252 252 252 252",
    "VRFY": "501 501 501 501",
    "HELP": "214 214 214 214",
    "HELP MAIL": "214 214 214 214",
    "EXPN list": "502 502 502 502",
    "STARTTLS": "502 502 502 502",
    "AUTH PLAIN AAAA": "502 502 502 502",
    "ETRN x": "502 502 502 502",
    "TURN": "502 502 502 502",
    "QUIT": "221 221 221 221",
    "EHLO": "501 501 501 501",
    "HELO": "501 501 501 501",
    "RSET x": "501 501 501 501",
    "QUIT x": "501 501 501 501",
    "DATA x": "503 503 554 501",
    "MAIL": "503 501 503 503",
    "MAIL TO:<a@example.com>": "503 501 503 503",
    "RCPT": "503 503 501 501",
    "FOO": "500 500 500 500",
    "": "500 500 500 500",
    " NOOP": "500 500 500 500",
    "NOOP\tx": "500 500 500 500",
    "\x00\xff": "500 500 500 500",
}
TRANSACTION_SURVIVES = {  # for a DATA that follows
    "start": "503", "ready": "503", "mail": "554", "rcpt": "354",
}  # fmt: skip


@pytest.mark.parametrize("command", EXPECTED)
@pytest.mark.parametrize("state", STATES)
def test_every_command_in_every_state(command: str, state: str) -> None:
    """One reply to each, as the table says, and the transaction is as the table of states in `server` has it."""
    server = Server(server_settings(), TRUSTED)
    say(server, *STATES[state])
    assert server.state == state
    expected = EXPECTED[command].split()[list(STATES).index(state)]
    output, events = talk(server, command.encode("latin-1") + b"\r\n")
    last_line = output.split(b"\r\n")[-2]
    assert last_line.startswith(expected.encode() + b" ")
    if command == "QUIT":
        assert isinstance(events[0], Closed)
        return
    assert events == []
    after = state
    if expected in ("250", "354"):
        after = {"M": "mail", "R": "rcpt", "D": "content", "E": "ready", "H": "ready", "N": state}[command[0]]
        if command == "RSET":
            after = "start" if state == "start" else "ready"
    assert server.state == after
    if after != "content":
        assert say(server, "DATA")[0].startswith(TRANSACTION_SURVIVES[after])


def test_enhanced_codes_on_every_reply() -> None:
    """Every 2xx, 4xx and 5xx has one of its class on every line, but the greeting and those to EHLO and HELO."""
    for state, commands in STATES.items():
        for command in EXPECTED:
            server = Server(server_settings(), TRUSTED)
            say(server, *commands)
            output, _ = talk(server, command.encode("latin-1") + b"\r\n")
            for line in output.decode().split("\r\n")[:-1]:
                has = re.match(r"([245])\d\d[ -]\1\.\d{1,3}\.\d{1,3} ", line) is not None
                assert has == (command[:4] not in ("EHLO", "HELO") and not line.startswith("354")), (state, line)


@pytest.mark.parametrize("name", ["client.example", "[192.0.2.1]", "[IPv6:2001:db8::1]", "a_b", "localhost", "x" * 255])
def test_helo_names(name: str) -> None:
    """Host names and address literals; what a name is not checked for by any look-up (RFC 5321 4.1.4)."""
    server = Server(server_settings(), TRUSTED)
    assert say(server, f"EHLO {name}")[0].startswith("250")
    assert server.helo == name


@pytest.mark.parametrize("name", ["", "a b", "(a)", "a;b", "ü", "<a>", "x" * 256, "a\rb", "a\x00b", "%s%n", "-a"])
def test_bad_helo_names(name: str) -> None:
    """A name that might do harm in a trace line is none."""
    server = Server(server_settings(), TRUSTED)
    assert say(server, f"EHLO {name}") == ["501 A host name or address literal is needed"]
    assert say(server, "MAIL FROM:<a@example.com>")[0].startswith("503")


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
            eight_bit=True,
            smtputf8=True,
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


# -- content --------------------------------------------------------------------------------------------------

# What other software takes for the end of data (CVE-2023-51764 and its kin), with the word the refusal must have.
SMUGGLING = {
    b"\n.\n": "line feed", b"\n.\r\n": "line feed", b"\r\n.\n": "line feed", b"\n\n.\r\n": "line feed",
    b"\r.\r": "carriage return", b"\r.\r\n": "carriage return", b"\r\n.\r": "carriage return", b"\n.\r": "line feed",
    b"\r.\n": "line feed", b"\r\r\n.\r\r\n": "carriage return", b"\r\n.\r\r\n": "carriage return",
    b"\r\n\0.\r\n": "NUL", b"\r\n.\0\r\n": "NUL", b"\0\r\n.\n": "NUL", b"\0": "NUL", b"x\ry": "carriage return",
    b"x\ny": "line feed", b"\r": "carriage return", b"\n": "line feed",
}  # fmt: skip


@pytest.mark.parametrize("sequence", SMUGGLING)
@pytest.mark.parametrize("size", [1, 4096])
def test_smuggling(sequence: bytes, size: int) -> None:
    """Nothing but CRLF.CRLF ends data; content with anything like it is refused, whole, and the session is in step."""
    server = new_server()
    open_transaction(server)
    data = b"Subject: x\r\n\r\nhello" + sequence + TRANSACTION + b"evil\r\n.\r\nNOOP\r\n"
    replies, messages, over = outcome(server, pieces(data, repeat(size)))
    first, second, rest = replies.decode().split("\r\n")
    assert first.startswith("550 5.6.0 ")
    word = SMUGGLING[sequence]
    assert word in first or (word == "line feed" and "carriage return" in first)
    assert (second, rest, messages, over) == ("250 2.0.0 Ok", "", [], False)
    assert say(server, "DATA")[0].startswith("503")
    deliver(server)


@pytest.mark.parametrize("sequence", [b"\r\n..\r\n", b"\r\n .\r\n", b"\r\n. \r\n", b"\r\n.\t\r\n", b"\r\n.x\r\n"])
def test_lines_with_dots_are_content(sequence: bytes) -> None:
    """A line that begins with a dot and goes on is content, without that dot."""
    server = new_server()
    open_transaction(server)
    (event,) = server.receive(b"hello" + sequence + b".\r\n")
    assert isinstance(event, MessageReceived)
    assert event.content == b"hello" + sequence.replace(b"\n.", b"\n")


def test_message_too_big() -> None:
    """Above the limit: 552 after the dot, bounded memory, the session in step; at the limit it is taken."""
    server = new_server(message_size=2000)
    lines = b"x" * 98 + b"\r\n"
    open_transaction(server)
    for _ in range(1000):
        assert server.receive(lines * 10) == []
    assert talk(server, b".\r\nRSET\r\n") == (
        b"552 5.3.4 The message is too big\r\n250 2.0.0 Ok\r\n", [],
    )  # fmt: skip
    assert say(server, "DATA")[0].startswith("503")
    deliver(server, lines * 20)
    deliver(server, b".." + lines * 19 + b"x" * 97 + b"\r\n")  # 2001 octets on the wire
    open_transaction(server)
    assert talk(server, lines * 20 + b"\r\n.\r\n")[0].startswith(b"552 5.3.4")


def test_line_too_long() -> None:
    """A content line above the limit is refused after the dot; one at the limit is not."""
    server = new_server()
    open_transaction(server)
    output, _ = talk(server, b"x" * 999 + b"\r\n.\r\n")
    assert output == b"550 5.6.0 A line is longer than 998 octets\r\n"
    deliver(server, b"x" * 998 + b"\r\n")


def test_eight_bit_content() -> None:
    """Octets above 127 pass unchanged, declared or not."""
    content = bytes(range(1, 256)).replace(b"\n", b"").replace(b"\r", b"") + b"\r\n"
    assert deliver(new_server(), content).content == content


# -- limits ---------------------------------------------------------------------------------------------------


def test_too_many_recipients() -> None:
    """452 4.5.3 for those above the limit: an orderly end, not an error (RFC 5321 4.5.3.1.8); but not without end."""
    server = new_server(recipients=2, errors=3, commands=21)
    assert say(server, "MAIL FROM:<a@example.com>", *["RCPT TO:<b@example.org>"] * 2)[2].startswith("250")
    assert say(server, *["RCPT TO:<c@example.org>"] * 20) == ["452 4.5.3 Too many recipients"] * 20
    assert say(server, "DATA")[0].startswith("354")
    (event,) = server.receive(CONTENT + b".\r\n")
    assert isinstance(event, MessageReceived)
    assert len(event.envelope.recipients) == 2
    server.answer(Reply(250, "2.0.0", ("ok",)))
    server.output()
    say(server, "MAIL FROM:<a@example.com>", *["RCPT TO:<b@example.org>"] * 23)
    assert say(server, "RCPT TO:<c@example.org>")[0].startswith("421 4.7.0")


def test_sessions_share_what_they_may_hold() -> None:
    """A message counts with its declared size from its first recipient on, as long as it is being received and stored;
    452 4.3.1 to MAIL when there is no room, and the place is free again however a transaction ends."""
    budget = Budget(1000)
    one, two, three = (new_server(budget=budget, message_size=1000) for _ in range(3))
    for server, size in ((one, 600), (two, 400)):
        assert say(server, f"MAIL FROM:<a@example.com> SIZE={size}", "RCPT TO:<b@example.org>")[1].startswith("250")
    assert say(three, "MAIL FROM:<a@example.com> SIZE=1")[0].startswith("452 4.3.1 Too much mail")
    assert budget.trouble() is not None
    say(two, "RSET")
    assert say(three, "MAIL FROM:<a@example.com> SIZE=400", "RCPT TO:<b@example.org>")[1].startswith("250")
    say(three, "EHLO again.example")
    assert say(one, "RCPT TO:<c@example.org>", "DATA")[1].startswith("354")
    assert one.receive(CONTENT + b".\r\n")
    assert budget.used == 600
    one.answer(Reply(250, "2.0.0", ("ok",)))
    assert (budget.used, budget.trouble()) == (0, None)
    for end in ("QUIT", "DATA"):
        say(two, "MAIL FROM:<a@example.com> SIZE=400", "RCPT TO:<b@example.org>", end)
    two.close(Reply(421, "4.4.2", ("Timeout",)))
    say(three, "MAIL FROM:<a@example.com> SIZE=400", "RCPT TO:<b@example.org>")
    three.gone()
    assert budget.used == 0


def test_who_may_not_send_takes_no_room() -> None:
    """A stranger whose recipients are refused holds nothing, whatever size it declares; who gets its recipient when the
    room is gone is told to come again, and so is who pipelines."""
    budget = Budget(1000)
    stranger, one, two = (new_server(peer, budget=budget, message_size=1000) for peer in (STRANGER, TRUSTED, TRUSTED))
    assert say(stranger, "MAIL FROM:<a@example.com> SIZE=1000", "RCPT TO:<b@example.org>") == [
        "250 2.1.0 Ok", "550 5.7.1 Relaying denied"]
    assert budget.used == 0
    for server in (one, two):
        assert say(server, "MAIL FROM:<a@example.com> SIZE=600")[0].startswith("250")
    assert say(one, *["RCPT TO:<b@example.org>"] * 3) == ["250 2.1.5 Ok"] * 3
    assert say(two, "RCPT TO:<b@example.org>")[0].startswith("452 4.3.1 Too much mail")
    assert budget.used == 600
    one.gone()
    assert say(two, "RCPT TO:<b@example.org>")[0].startswith("250")
    assert budget.used == 600


def test_the_messages_that_clients_are_sending_are_counted() -> None:
    """A message counts from its MAIL until its content is there, or until it will not come; once, whatever happens.
    One that was given up does not count again when it ends."""
    coming = Coming()
    one, two = new_server(coming=coming), new_server(coming=coming)
    open_transaction(one)
    assert coming.count == 1
    open_transaction(two)
    assert coming.count == 2
    one.receive(CONTENT + b".\r\n")
    assert coming.count == 1
    one.answer(QUEUED)
    two.gone()
    assert coming.count == 0
    two = new_server(coming=coming)
    for end in ("RSET", "EHLO again.example", "DATA x", "QUIT"):
        say(two, "MAIL FROM:<a@example.com>")
        assert coming.count == 1
        say(two, end)
        assert coming.count == (end == "DATA x")
        say(two, "RSET")
    two.gone()
    say(one, "MAIL FROM:<a@example.com>")
    coming.give_up()
    two = new_server(coming=coming)
    say(two, "MAIL FROM:<a@example.com>")
    assert coming.count == 1
    one.close(Reply(421, "4.4.2", ("Timeout",)))
    one.gone()
    assert coming.count == 1


@pytest.mark.parametrize("declared", ["", " SIZE=100"])
def test_content_that_finds_no_room_is_read_to_its_end(declared: str) -> None:
    """Content that is larger than was declared, when all sessions hold as much as they may: nothing of it is kept, the
    session stays in step, and the client is told to come back. It waits for nobody."""
    budget = Budget(200_000)
    one, two = new_server(budget=budget), new_server(budget=budget)
    say(one, "MAIL FROM:<a@example.com> SIZE=100000", "RCPT TO:<b@example.org>")
    assert say(two, f"MAIL FROM:<a@example.com>{declared}", "RCPT TO:<b@example.org>", "DATA")[2].startswith("354")
    line = b"x" * 98 + b"\r\n"
    for _ in range(100):
        two.receive(line * 10)
    assert budget.used == 200_000
    two.receive(line)
    assert budget.used == 100_000
    assert say(two, "x\r\n.") == ["452 4.3.1 Too much mail is being received at once, try again later"]
    assert budget.used == 100_000
    one.gone()
    deliver(two, line * 1500)
    assert budget.used == 0


def test_too_many_errors() -> None:
    """The error above the limit is answered 421 and ends the session, in mid-batch too."""
    server = new_server(errors=3)
    assert say(server, *["FOO"] * 3) == ["500 5.5.1 Unknown command"] * 3
    assert talk(server, b"FOO\r\nNOOP\r\n") == (b"421 4.7.0 Too many errors\r\n", [Closed(by_client=False)])
    assert talk(server, b"NOOP\r\n") == (b"", [])
    server = new_server(errors=3)
    output, events = talk(server, b"FOO\r\n" * 100)
    assert output.count(b"\r\n") == 4
    assert events == [Closed(by_client=False)]


def test_errors_are_forgiven_by_a_message() -> None:
    """Errors count since the last message: a session that works may make some now and then."""
    server = new_server(errors=3)
    for _ in range(5):
        say(server, "FOO", "FOO", "FOO")
        deliver(server)
    open_transaction(server)
    server.receive(CONTENT + b".\r\n")
    assert server.answer(Reply(550, "5.7.1", ("no",))) == []
    say(server, "FOO", "FOO")
    assert talk(server, b"FOO\r\n")[0].startswith(b"421 4.7.0")


def test_deferred_messages_are_no_errors() -> None:
    """A 4xx for a message is our own trouble and ends no session."""
    server = new_server(errors=1)
    for _ in range(5):
        open_transaction(server)
        server.receive(CONTENT + b".\r\n")
        assert server.answer(Reply(451, "4.3.0", ("later",))) == []
        assert server.output() == b"451 4.3.0 later\r\n"


def test_too_many_errors_by_content() -> None:
    """Messages that are refused count as errors."""
    server = new_server(errors=1)
    for code in (b"550", b"421"):
        output, events = talk(server, TRANSACTION)
        assert output.endswith(b"<CR><LF>.<CR><LF>\r\n")
        output, events = talk(server, b"a\0b\r\n.\r\n")
        assert output.startswith(code)
    assert events == [Closed(by_client=False)]


@pytest.mark.parametrize("command", ["NOOP", "RSET", "HELP", "VRFY x", "EHLO x.example", "HELO x.example"])
def test_too_many_commands(command: str) -> None:
    """Commands that start no message are limited, since the last message."""
    server = new_server(commands=11)  # the EHLO of new_server is one of them
    assert not any(reply.startswith("4") for reply in say(server, *[command] * 10))
    assert talk(server, command.encode() + b"\r\n") == (
        b"421 4.7.0 Too many commands without a message\r\n", [Closed(by_client=False)],
    )  # fmt: skip
    server = new_server(commands=11)
    say(server, *["NOOP"] * 10)
    deliver(server)
    assert not any(reply.startswith("4") for reply in say(server, *[command] * 11))


@pytest.mark.parametrize("size", [1, 7, 65536])
def test_command_line_length(size: int) -> None:
    """A line at the limit is read, one above it is answered 500 when it ends, and the session goes on."""
    server = new_server(command_length=600)
    lines = b"NOOP " + b"x" * 593 + b"\r\n" + b"NOOP " + b"x" * 594 + b"\r\n" + b"NOOP " + b"x" * 9999 + b"\r\nNOOP\r\n"
    replies, _, over = outcome(server, pieces(lines, repeat(size)))
    assert replies == b"250 2.0.0 Ok\r\n" + b"500 5.5.2 Line too long\r\n" * 2 + b"250 2.0.0 Ok\r\n"
    assert not over


def test_endless_command_line() -> None:
    """A line without end costs no memory, and after a while the session ends."""
    server = new_server()
    for _ in range(SKIP_LIMIT // 1000):
        assert talk(server, b"x" * 1000) == (b"", [])
        assert len(server._rest) <= 2048
    assert talk(server, b"x" * 1000) == (b"421 4.7.0 Line too long\r\n", [Closed(by_client=False)])


# -- clients out of step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b"NOOP\n", b"\n", b"NOOP\nNOOP\r\n", b"RCPT TO:<a@b>\nDATA\r\n", b"x" * 5000 + b"\n"])
@pytest.mark.parametrize("size", [1, 65536])
def test_bare_line_feed_in_commands(line: bytes, size: int) -> None:
    """Who ends lines with LF has another idea of lines than we: 521 at once, and nothing of it is executed."""
    server = new_server()
    replies, _, over = outcome(server, pieces(b"NOOP\r\n" + line + b"NOOP\r\n", repeat(size)))
    assert replies == b"250 2.0.0 Ok\r\n521 5.5.2 Bare line feed; lines end with CR LF\r\n"
    assert over


@pytest.mark.parametrize("line", [b"NOOP\rRSET", b"RSET\r", b"MAIL FROM:<a@b>\r", b"DATA\r", b"QUIT\r", b"\r"])
def test_bare_carriage_return_in_commands(line: bytes) -> None:
    """A bare CR ends no line and is part of no command but a comment to NOOP."""
    server = new_server()
    output, events = talk(server, line + b"\r\n")
    assert output[:1] == b"5"
    assert output.count(b"\r\n") == 1
    assert events == []


@pytest.mark.parametrize("command", [b"EHLO x.example\r\n", b"HELO x.example\r\n", b"EHLO\r\n"])
def test_input_behind_ehlo(command: bytes) -> None:
    """Nothing can be pipelined behind a command that must be waited for (RFC 2920 3.1): 554, and the end."""
    server = new_server()
    output, events = talk(server, command + b"NOOP\r\n")
    assert output.startswith(b"554 5.5.0 ")
    assert output.count(b"\r\n") == 1
    assert events == [Closed(by_client=False)]


@pytest.mark.parametrize("before", [TRANSACTION, b"MAIL FROM:<a@example.com>\r\nDATA\r\n", b"DATA\r\n"])
def test_content_before_354(before: bytes) -> None:
    """Content that does not wait for 354 would be read as commands if DATA were refused: the session ends instead."""
    server = new_server()
    output, events = talk(server, before + b"RSET\r\n.\r\n")
    assert output.split(b"\r\n")[-2].startswith(b"554 5.5.0 ")
    assert events == [Closed(by_client=False)]
    assert output.count(b"\r\n") == before.count(b"\r\n")


@pytest.mark.parametrize("request_line", ["GET / HTTP/1.1", "POST /x HTTP/1.0", "CONNECT mx:25 HTTP/1.1"])
def test_http(request_line: str) -> None:
    """A browser is cut off before its body can be taken for commands."""
    server = Server(server_settings(), TRUSTED)
    body = "\r\nHost: mx\r\n\r\nEHLO x\r\nMAIL FROM:<a@example.com>\r\n"
    output, events = talk(server, (request_line + body).encode())
    assert output == b"521 5.5.1 This is SMTP\r\n"
    assert events == [Closed(by_client=False)]


def test_garbage() -> None:
    """Octets of every value as a command are an unknown command."""
    server = new_server(errors=1000)
    for octet in set(range(256)) - {10}:
        assert talk(server, bytes((octet, octet)) + b"\r\n")[0] == b"500 5.5.1 Unknown command\r\n"


# -- the end --------------------------------------------------------------------------------------------------


def test_stop_when_idle() -> None:
    """A session without a transaction ends at once."""
    server = new_server()
    assert server.stop(Reply(421, "4.3.2", ("Stopping",))) == [Closed(by_client=False)]
    assert server.output() == b"421 4.3.2 Stopping\r\n"


@pytest.mark.parametrize("behind", [b"", TRANSACTION])
def test_stop_inside_a_transaction(behind: bytes) -> None:
    """A transaction is finished first; what is pipelined behind it is not begun."""
    server = new_server()
    open_transaction(server)
    assert server.stop(Reply(421, "4.3.2", ("Stopping",))) == []
    (event,) = server.receive(CONTENT + b".\r\n" + behind)
    assert isinstance(event, MessageReceived)
    assert server.answer(QUEUED) == [Closed(by_client=False)]
    assert server.output() == QUEUED.to_bytes() + b"421 4.3.2 Stopping\r\n"


@pytest.mark.parametrize("end", [b"RSET\r\n", b"EHLO x.example\r\n"])
def test_stop_when_the_transaction_is_given_up(end: bytes) -> None:
    """RSET ends a transaction too."""
    server = new_server()
    say(server, "MAIL FROM:<a@example.com>")
    server.stop(Reply(421, "4.3.2", ("Stopping",)))
    output, events = talk(server, end)
    assert output.startswith(b"250")
    assert output.endswith(b"421 4.3.2 Stopping\r\n")
    assert events == [Closed(by_client=False)]


def test_stop_with_content_refused() -> None:
    """The refusal of the message comes before the 421."""
    server = new_server()
    open_transaction(server)
    server.stop(Reply(421, "4.3.2", ("Stopping",)))
    output, _ = talk(server, b"a\0b\r\n.\r\n")
    assert re.fullmatch(rb"550 5\.6\.0 .*\r\n421 4\.3\.2 Stopping\r\n", output)


def test_close() -> None:
    """`close` ends a session anywhere, once."""
    server = new_server()
    open_transaction(server)
    timeout = Reply(421, "4.4.2", ("Timeout",))
    assert server.close(timeout) == [Closed(by_client=False)]
    assert server.output() == b"421 4.4.2 Timeout\r\n"
    assert server.close(timeout) == []
    assert server.output() == b""
    assert talk(server, CONTENT + b".\r\n") == (b"", [])


def test_repr() -> None:
    """A session can be told from another in a log."""
    assert repr(new_server()) == "<Server: ready, client client.example [192.0.2.9]:4711>"


@pytest.mark.parametrize(("size", "expected"), [(1, 0), (700, 3), (1_000_000, 3)])
def test_a_group_that_takes_long_is_taken_in_turns(size: int, expected: int) -> None:
    """Each address beyond ASCII costs the hub up to a millisecond: after ten in a group others have their turn, and
    what is answered is the same. Commands that come alone are no group."""
    to = [f"b@b\u00fccher{number}.example" for number in range(35)]
    group = b"MAIL FROM:<a@example.com> SMTPUTF8\r\n" + b"".join(
        f"RCPT TO:<{one}>\r\n".encode() for one in to) + b"DATA\r\n"
    server = new_server()
    turns = 0
    replies = b""
    for start in range(0, len(group), size):
        events = server.receive(group[start : start + size])
        while events:
            assert events == [TakesLong()]
            turns += 1
            replies += server.output()
            events = server.go_on()
        replies += server.output()
    assert [line[:3] for line in replies.splitlines()] == [b"250"] * 36 + [b"354"]
    assert turns == expected
    (event,) = server.receive(CONTENT + b".\r\n")
    assert isinstance(event, MessageReceived)
    assert [one.address for one in event.envelope.recipients] == to


def test_the_end_in_a_group_that_takes_long() -> None:
    """Who is sent away, or has come to the content, is not asked to go on."""
    wrong = "RCPT TO:<b@b\u00fccher..example>\r\n".encode() * 50
    server = new_server(errors=9)
    output, events = talk(server, b"MAIL FROM:<> SMTPUTF8\r\n" + wrong)
    assert events == [Closed(by_client=False)]
    assert output.count(b"\r\n") == 11
    server = new_server()
    output, events = talk(server, b"MAIL FROM:<> SMTPUTF8\r\n" + wrong[: len(wrong) // 5] + b"NOOP\r\n")
    assert events == [TakesLong()]
    server.stop(Reply(421, "4.3.2", ("Stopping",)))
    assert server.close(Reply(421, "4.4.2", ("Timeout",))) == [Closed(by_client=False)]
    assert server.go_on() == []
