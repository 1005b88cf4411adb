"""The server machine: every command in every state, clients out of step, the end of sessions (RFC 5321, 2034, 2920)."""

from __future__ import annotations

import re
from itertools import repeat

import pytest

from mta.queue.records import DOTLESS, Recipient
from mta.smtp.errors import LocalProtocolError
from mta.smtp.reply import Reply
from mta.smtp.sasl import MECHANISMS
from mta.smtp.server import Closed, Envelope, MessageReceived, Server, TakesLong
from tests.smtp.helpers import (
    CONTENT,
    QUEUED,
    TRUSTED,
    deliver,
    new_server,
    open_transaction,
    pieces,
    say,
    server_settings,
    talk,
)
from tests.smtp.server_helpers import TRANSACTION, outcome

# -- the plain course of things -------------------------------------------------------------------------------


def test_session() -> None:
    """Greeting, EHLO with all that is offered, one message, QUIT."""
    server = Server(server_settings(message_size=1000, recipients=50), TRUSTED)
    server.greet()
    assert server.output() == b"220 mx.example.net ESMTP\r\n"
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
    envelope = Envelope("a@example.com", [Recipient("b@example.org")], flags=DOTLESS, helo="client.example", esmtp=True)
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


# -- clients out of step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b"NOOP\n", b"\n", b"NOOP\nNOOP\r\n", b"RCPT TO:<a@b>\nDATA\r\n", b"x" * 5000 + b"\n"])
@pytest.mark.parametrize("size", [1, 65536])
def test_bare_line_feed_in_commands(line: bytes, size: int) -> None:
    """Who ends lines with LF has another idea of lines than we: 521 at once, and nothing of it is executed."""
    server = new_server()
    replies, _, over = outcome(server, pieces(b"NOOP\r\n" + line + b"NOOP\r\n", repeat(size)))
    assert replies == b"250 2.0.0 Ok\r\n521 5.5.2 Bare line feed; lines end with CR LF\r\n"
    assert over


@pytest.mark.parametrize("before", [b"", b"EHLO c.example\r\n", b"AUTH PLAIN\r\n"], ids=["start", "ready", "auth"])
def test_nothing_is_held_behind_a_bare_line_feed(before: bytes) -> None:
    """What came in the same read as the line feed is let go with the session, not held until the connection ends."""
    server = new_server(auth_without_tls=True, mechanisms=MECHANISMS)
    for part in ((b"EHLO c.example\r\n", before) if before.startswith(b"AUTH") else (before,)):
        talk(server, part)
    assert talk(server, b"\n" + b"x" * 100_000)[1] == [Closed(by_client=False)]
    assert not server._rest


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
