"""Byte transparency of the doors for files, as far as the store: many more messages than go the whole way in
`tests/integration/test_transparency.py`, and what the store is told of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mta.message.headers import remove, scan
from mta.queue.records import DOTLESS, EIGHT_BIT
from mta.sendmail.command import send
from mta.sendmail.message import Author, with_header
from mta.sendmail.options import Options
from mta.sendmail.session import Session
from mta.sendmail.settings import Settings
from tests.inject.pickup_helpers import MemoryStore, finish, make
from tests.messages import crlf, generated, stuffed

OURS = re.compile(
    rb"Received: by mta\.example \(spool directory, userid \d+\) id \w+(?:\r\n\tfor <[^>]*>)?;\r\n\t[^\r]*\r\n"
    rb"(?:(?:Message-ID|Date): [^\r]*\r\n)*(?:From: [^\r]*\r\n)?(?:(?:Message-ID|Date): [^\r]*\r\n)*"
)
COMMANDS = b"MAIL FROM:<a@a.example> SMTPUTF8\r\nRCPT TO:<b@b.example>\r\n"


def put(directory: Path, name: str, content: bytes) -> None:
    """A file renamed in."""
    (directory / "tmp" / name).write_bytes(content)
    (directory / "tmp" / name).rename(directory / name)


def in_front(directory: Path, message: bytes) -> None:
    """Envelope lines before the message, which must have a header."""
    put(directory, "x.eml", b"X-Sender: a@a.example\r\nX-Receiver: b@b.example\r\n" + message)


def in_front_lf(directory: Path, message: bytes) -> None:
    """The same with LF."""
    put(directory, "x.eml", b"X-Sender: a@a.example\nX-Receiver: b@b.example\n" + message.replace(b"\r\n", b"\n"))


def in_header(directory: Path, message: bytes) -> None:
    """The envelope is in the header."""
    put(directory, "x.eml", message)


def batch(directory: Path, message: bytes) -> None:
    """DATA, CRLF."""
    put(directory, "x.bsmtp", COMMANDS + b"DATA\r\n" + stuffed(message) + b".\r\n")


def batch_lf(directory: Path, message: bytes) -> None:
    """DATA, LF."""
    put(directory, "x.bsmtp", (COMMANDS + b"DATA\r\n" + stuffed(message) + b".\r\n").replace(b"\r\n", b"\n"))


def chunks(directory: Path, message: bytes) -> None:
    """BDAT, in three chunks."""
    content = b""
    cut = max(len(message) // 3, 1)
    for start, last in ((0, b""), (cut, b""), (2 * cut, b" LAST")):
        chunk = message[start : start + cut] if not last else message[start:]
        content += b"BDAT %d%b\r\n%b" % (len(chunk), last, chunk)
    put(directory, "x.bsmtp", COMMANDS + content)


def sendmail(directory: Path, message: bytes) -> None:
    """The sendmail command, with the recipient on its command line."""
    options = Options(sender="a@a.example", recipients=["b@b.example"], dots_are_text=True)
    send(options, Settings(str(directory), "mta.example"), Author("a"), message.replace(b"\r\n", b"\n"))


def session(directory: Path, message: bytes) -> None:
    """`sendmail -bs`."""
    script = directory.parent / "script"
    script.write_bytes(b"EHLO c.example\r\n" + COMMANDS + b"DATA\r\n" + stuffed(message) + b".\r\nQUIT\r\n")
    with script.open("rb") as commands, script.with_name("replies").open("wb") as replies:
        assert Session(Settings(str(directory), "mta.example"), commands.fileno(), replies.fileno()).run() == 0


DOORS: tuple[Callable[[Path, bytes], None], ...] = (
    in_front, in_front_lf, in_header, batch, batch_lf, chunks, sendmail, session)


@pytest.fixture(autouse=True)
def _disks_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are not about what survives a power failure."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def arrived(door: Callable[[Path, bytes], None], message: bytes, place: Path) -> bytes:
    """What the store has of a message sent through a door."""
    store = MemoryStore()
    pickup = make(place, store)
    try:
        door(place, message)
        finish(pickup)
    finally:
        pickup.close()
    assert list((place / "failed").iterdir()) == []
    (accepted,) = store.accepted
    stored = accepted.message
    assert stored.content is not None
    # What leaves is stored content, stuffed only where it is not marked as in no need of that.
    assert not (stored.flags & DOTLESS and re.search(rb"(?m)^\.", stored.content))
    assert bool(stored.flags & EIGHT_BIT) >= (not stored.content.isascii())
    return stored.content


def lost(door: Callable[[Path, bytes], None], sent: bytes, content: bytes) -> str:
    """What is wrong with what arrived; empty when it is the message with nothing but our lines before it."""
    if door is sendmail:
        sent, _ = with_header(sent)
    expected = remove(sent, ["Return-Path", *scan(sent).empty, *(["Bcc"] if door is in_header else [])])
    if not re.match(rb"[!-9;-~]+[ \t]*:", expected) and not expected.startswith(b"\r\n"):
        expected = b"\r\n" + expected  # it has no header: ours ends with an empty line
    if not content.endswith(expected):
        return "it is not what was sent"
    return "" if OURS.fullmatch(content[: len(content) - len(expected)]) else "there is something else before it"


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_what_is_made_here_arrives(door: Callable[[Path, bytes], None], tmp_path: Path) -> None:
    """Each message, through each door, byte for byte."""
    for number, message in enumerate(generated()):
        content = arrived(door, crlf(message), tmp_path / "pickup")
        assert lost(door, crlf(message), content) == "", f"message {number}"
