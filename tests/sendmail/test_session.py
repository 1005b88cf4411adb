"""`sendmail -bs`: a whole SMTP session whose mail is in the pickup directory when it is answered 250."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mta.queue.records import NOTIFY_NEVER, SMTPUTF8
from mta.sendmail import session as session_module
from mta.sendmail.session import Session
from mta.sendmail.settings import Settings
from tests.sendmail.helpers import ROOT, addresses, run, taken

COMMANDS = (
    b"EHLO client.example\r\n"
    b"MAIL FROM:<a@a.example> RET=HDRS ENVID=e1 SMTPUTF8\r\n"
    + "RCPT TO:<jürgen@b.example> NOTIFY=NEVER ORCPT=rfc822;c@c.example\r\n".encode()
    + b"RCPT TO:<bad@-b-.example>\r\nDATA\r\n"
)


def test_all_at_once(pickup: Path) -> None:
    """A script that does not wait for replies; what looks like commands in a message is none."""
    content = b"Subject: x\r\n\r\n..dot\r\nMAIL FROM:<x@x.example>\r\n"
    second = b"MAIL FROM:<>\r\nRCPT TO:<d@d.example>\r\nDATA\r\n.\r\nQUIT\r\n"
    done = run(pickup, ["-bs"], COMMANDS + content + b".\r\n" + second)
    assert [line[:3] for line in done.stdout.splitlines() if line[3:4] != b"-"] == [
        b"220", b"250", b"250", b"250", b"501", b"354", b"250", b"250", b"250", b"354", b"250", b"221"]
    assert done.returncode == 0
    assert [one.content for one in taken(pickup)] == [content.replace(b"..", b"."), b""]


def test_a_message_after_a_refused_data_is_no_commands(pickup: Path) -> None:
    """Nobody got 354, but the client writes on: the session ends instead of obeying the message."""
    refused = b"EHLO a.example\r\nMAIL FROM:<a@a.example>\r\nRCPT TO:<bad>\r\nDATA\r\n"
    hidden = b"RSET\r\nMAIL FROM:<x@x.example>\r\nRCPT TO:<b@b.example>\r\nDATA\r\nx\r\n.\r\n.\r\nQUIT\r\n"
    done = run(pickup, ["-bs"], refused + hidden)
    assert done.returncode == 65
    assert done.stdout.splitlines()[-1].startswith(b"421 4.7.0")
    assert taken(pickup) == []


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_pieces_may_end_anywhere(pickup: Path, size: int) -> None:
    """The same session in small pieces: same replies, same messages."""
    read, write = os.pipe()
    replies, answers = os.pipe()
    text = COMMANDS + b".\r\nMAIL FROM:<>\r\nRCPT TO:<d@d.example>\r\nDATA\r\n..\r\na\r\n.b\r\n.\r\nNOOP\r\nQUIT\r\n"
    session = Session(Settings(str(pickup), "host.example"), read, answers)
    with contextlib.ExitStack() as stack:
        for descriptor in (read, write, replies, answers):
            stack.callback(os.close, descriptor)
        given = iter([text[start : start + size] for start in range(0, len(text), size)])
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(session_module.os, "read", lambda *_: next(given))
        assert session.run() == 0
    assert [one.content for one in taken(pickup)] == [b"", b".\r\na\r\nb\r\n"]


def test_a_session_that_waits_for_its_replies(pickup: Path) -> None:
    """As a client has it, that goes on when it was answered."""
    with subprocess.Popen(
        [sys.executable, "-m", "mta.sendmail", "-bs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        env={"PYTHONPATH": str(ROOT), "MTA_PICKUP": str(pickup)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def reply() -> bytes:
            line = process.stdout.readline()  # see above
            while line[3:4] == b"-":
                line = process.stdout.readline()  # see above
            return line

        def say(text: bytes, code: bytes) -> None:
            process.stdin.write(text)  # see above
            answer = reply()
            assert answer.startswith(code), answer

        assert reply().startswith(b"220 host.example")
        say(b"EHLO client.example\r\n", b"250")
        for line, code in zip(COMMANDS.splitlines(keepends=True)[1:], (b"250", b"250", b"501", b"354"), strict=True):
            say(line, code)
        say(b"Subject: x\r\n\r\n..dot\r\n\xfc\r\n.\r\n", b"250 2.0.0 Ok: queued as sendmail.")
        assert len(taken(pickup)) == 1
        pickup.joinpath("tmp").rmdir()  # now nothing can be stored
        say(b"MAIL FROM:<>\r\n", b"250")
        say(b"RCPT TO:<d@d.example>\r\n", b"250")
        say(b"DATA\r\n", b"354")
        say(b"no header\r\n.\r\n", b"451 4.3.0")
        say(b"QUIT\r\n", b"221")
        assert process.wait(20) == 0
    (submission,) = taken(pickup)
    envelope = submission.envelope
    assert (envelope.sender, envelope.ret, envelope.envid) == ("a@a.example", "HDRS", "e1")
    assert envelope.flags & SMTPUTF8
    assert addresses(submission) == ["jürgen@b.example"]
    assert (envelope.recipients[0].notify, envelope.recipients[0].orcpt) == (NOTIFY_NEVER, "rfc822;c@c.example")
    assert submission.content == b"Subject: x\r\n\r\n.dot\r\n\xfc\r\n"


def test_a_client_that_goes_away(pickup: Path) -> None:
    """What was not ended was not sent."""
    done = run(pickup, ["-bs"], b"EHLO a.example\r\nMAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\n")
    assert done.returncode == 0
    assert taken(pickup) == []
