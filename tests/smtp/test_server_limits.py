"""The server machine keeps its limits: what content may be, how much, how many recipients, errors and commands."""

from __future__ import annotations

from itertools import repeat

import pytest

from mta.smtp.budget import Budget
from mta.smtp.coming import Coming
from mta.smtp.reply import Reply
from mta.smtp.server import SKIP_LIMIT, Closed, MessageReceived
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
    talk,
)
from tests.smtp.server_helpers import TRANSACTION, outcome

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
