"""SMTP smuggling through every door, and never out of ours (CVE-2023-51764, 51765, 51766, 2024-27305).

In: whatever looks like an end of data and is none comes by SMTP, in chunks, by spool files and batches with either
line end, and by the sendmail command with and without `-bs`; on connections that are trusted as on others (Postfix
20260816). It is refused, or it is text of the one message that it came in. Out: what was taken is written to the next
host in a form in which the sloppiest receiver sees one end of data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mta.config.schema import SmtpIn
from mta.inject.batch import BatchReader
from mta.inject.formats import FormatError, parse_message
from mta.queue.records import Recipient
from mta.sendmail import command, options
from mta.sendmail.message import Author, MessageError
from mta.sendmail.session import Session
from mta.sendmail.settings import Settings
from mta.smtp.client import Client, Transaction
from mta.smtp.peer import ALL_RIGHTS, Identity, Peer, SameForAll, Tls
from mta.smtp.reply import Reply
from mta.smtp.server import MessageReceived, Server, ServerSettings
from tests.sendmail.helpers import make_directory
from tests.smtp.helpers import EHLO

ENDS = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\n.\r", b"\r.\r", b"\r.\n", b"\r\n.\r", b"\r.\r\n", b"\n\n.\n\n",
    b"\r\r\n.\r\r\n", b"\r\n.\r\r\n", b"\r\r\n.\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r\n\0\r\n.\n", b"\r\n.\n\r\n",
    b"\n\r.\n\r", b"\v.\v", b"\x85.\x85", b"\xe2\x80\xa8.\xe2\x80\xa8", b"\r\n .\r\n", b"\r\n. \r\n", b"\r\n.\t\r\n",
    b"\r\n..\r\n", b"\r\n. .\r\n", b"\r\n=2E\r\n",
]  # fmt: skip
SMUGGLED = (b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<evil@example.org>\r\nDATA\r\nSubject: evil\r\n\r\nevil\r\n.\r\n")
HEAD = b"Subject: hello\r\n\r\nhello"
SLOPPY = re.compile(rb"(?:\r\n|\n|\r)\.(?:\r\n|\n|\r)")
"""An end of data for who takes any line end for one."""
PEERS = {
    "a relay": Peer("192.0.2.9", 4711),
    "a user under TLS": Peer("192.0.2.9", 4711, Tls("TLSv1.3", "x"), Identity("acme", "password")),
    "a Unix socket": Peer("", 0, None, Identity("root", "socket")),
    "who may speak for others": Peer("192.0.2.9", 4711, may_xclient=True),
}


def of_session(peer: Peer, data: bytes) -> list[bytes]:
    """The contents that a session takes, of all that is written behind the 354 or BDAT."""
    server = Server(ServerSettings("mx.example.net", permissions=SameForAll(ALL_RIGHTS)), peer)
    taken: list[bytes] = []
    for piece in (b"EHLO c.example\r\n", b"MAIL FROM:<a@example.com>\r\n", b"RCPT TO:<b@example.org>\r\n", data):
        pending = server.receive(piece)
        while pending:
            event = pending.pop(0)
            if isinstance(event, MessageReceived):
                assert [one.address for one in event.envelope.recipients] == ["b@example.org"]
                taken.append(event.content)
                pending += server.answer(Reply(250, "2.0.0"))
    return taken


def of_data(end: bytes) -> list[bytes]:
    """By DATA."""
    server = Server(ServerSettings("mx.example.net", permissions=SameForAll(ALL_RIGHTS)), PEERS["a relay"])
    for line in (b"EHLO c.example\r\n", b"MAIL FROM:<a@example.com>\r\n", b"RCPT TO:<b@example.org>\r\n", b"DATA\r\n"):
        server.receive(line)
    taken: list[bytes] = []
    pending = server.receive(HEAD + end + SMUGGLED)
    while pending:
        event = pending.pop(0)
        if isinstance(event, MessageReceived):
            taken.append(event.content)
            pending += server.answer(Reply(250, "2.0.0"))
    return taken


def of_chunks(end: bytes) -> list[bytes]:
    """In two chunks, the end where they meet."""
    first, second = HEAD + end[: len(end) // 2], end[len(end) // 2 :] + SMUGGLED
    return of_session(PEERS["a relay"],
                      b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (len(first), first, len(second), second))


def of_file(end: bytes, newline: bytes = b"\r\n") -> list[bytes]:
    """A spool file."""
    raw = (b"X-Sender: a@example.com\r\nX-Receiver: b@example.org\r\n" + HEAD).replace(b"\r\n", newline)
    try:
        submission = parse_message(raw + end + SMUGGLED.replace(b"\r\n", newline), SmtpIn())
    except FormatError:
        return []
    assert [one.address for one in submission.envelope.recipients] == ["b@example.org"]
    return [submission.content]


def of_file_with_lf(end: bytes) -> list[bytes]:
    """One whose lines end with LF."""
    return of_file(end, b"\n")


def batch(path: Path, raw: bytes) -> list[tuple[str, bytes]]:
    """Sender and content of the messages in a batch, up to what is wrong with it."""
    path.write_bytes(raw)
    found: list[tuple[str, bytes]] = []
    with path.open("rb") as file:
        reader = BatchReader(file, SmtpIn(), "mx.example.net")
        try:
            while (submission := reader.next()) is not None:
                found.append((submission.envelope.sender, submission.content))
        except FormatError:
            pass
    return found


DOORS: dict[str, Callable[[bytes], list[bytes]]] = {
    "DATA": of_data, "BDAT": of_chunks, "file": of_file, "file with LF": of_file_with_lf,
}  # fmt: skip


def assert_one_message(taken: list[bytes]) -> None:
    """Nothing was taken, or one message with all of it, free of what others take for a line end."""
    assert len(taken) <= 1
    for content in taken:
        assert b"evil@example.org" in content
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content)
        assert sent(content) == 1


def sent(content: bytes) -> int:
    """How many ends of data the sloppiest host finds in a message that we send it."""
    client = Client("c.example", chunking=False)
    client.receive(b"220 x\r\n")
    client.receive(EHLO)
    client.output()
    client.send(Transaction("a@example.com", [Recipient("b@example.org")], content))
    client.output()
    client.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    wire = b"".join(client.output())
    assert wire.endswith(b"\r\n.\r\n")
    return len(SLOPPY.findall(wire))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("end", ENDS)
def test_doors(door: str, end: bytes) -> None:
    """SMTP and spool files."""
    assert_one_message(DOORS[door](end))


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("end", ENDS)
def test_trust_makes_nobody_less_strict(peer: str, end: bytes) -> None:
    """Whoever the client is, the same comes of it."""
    data = HEAD + end + SMUGGLED
    chunk = b"BDAT %d LAST\r\n%b" % (len(data), data)
    assert of_session(PEERS[peer], chunk) == of_session(PEERS["a relay"], chunk)
    assert_one_message(of_session(PEERS[peer], chunk))


@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
@pytest.mark.parametrize("end", ENDS)
def test_batches(end: bytes, newline: bytes, tmp_path: Path) -> None:
    """A message in a batch is ended by the file's own line end alone. Of LF that is LF.LF: then its writer ended it."""
    envelope = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
    raw = (envelope + HEAD).replace(b"\r\n", newline) + end + SMUGGLED.replace(b"\r\n", newline)
    found = batch(tmp_path / "x.bsmtp", raw)
    if newline == b"\n" and b"\n.\n" in end:
        assert [sender for sender, _ in found][:1] in ([], ["a@example.com"])
        return
    assert [sender for sender, _ in found] in ([], ["a@example.com"]), found
    assert_one_message([content for _, content in found])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("mode", ["-i", "-bs", "dots"])
def test_sendmail(end: bytes, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message on standard input is one message, without `-i` up to a line with a dot; -bs is SMTP, as strict as any.
    There a CR before a real end of data has the message refused, and what follows it is what it is: commands."""
    if mode == "-bs" and b"\r\n.\r\n" in end:
        return
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    directory = make_directory(tmp_path / "pickup")
    settings = Settings(str(directory), "host.example")
    if mode == "-bs":
        lines = b"EHLO c\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
        (tmp_path / "in").write_bytes(lines + HEAD + end + SMUGGLED)
        with (tmp_path / "in").open("rb") as read, (tmp_path / "out").open("wb") as write:
            Session(settings, read.fileno(), write.fileno()).run()
    else:
        wanted = options.parse("sendmail", ["-i", "b@example.org"] if mode == "-i" else ["b@example.org"])
        try:
            command.send(wanted, settings, Author("joe"), HEAD + end + SMUGGLED)
        except MessageError:
            return
    found = [one for path in sorted(directory.glob("*.bsmtp")) for one in batch(tmp_path / "x", path.read_bytes())]
    assert "evil@example.com" not in [sender for sender, _ in found]
    assert len(found) <= 1
    for _, content in found:
        assert sent(content) == 1
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content)


@pytest.mark.parametrize("end", ENDS)
def test_a_sloppy_host_sees_one_end(end: bytes) -> None:
    """Whatever may be stored is written so that nobody reads a second message in it; lines with a dot are stuffed."""
    content = HEAD + end + SMUGGLED
    if not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content):
        assert sent(content) == 1
