"""Byte transparency, the whole way: what goes in by any door goes out by DATA and by BDAT as it was, behind our fields.

`MTA_MESSAGES=DIRECTORY pytest -s tests/integration/test_transparency.py` sends the messages in that directory, too, and
tells which are refused where, and why. `MTA_COMPOSED=1000` and `MTA_BODIES=1000` have more of them made here.
"""

from __future__ import annotations

import os
import re
import smtplib
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from hypothesis import given, settings

from mta.message.headers import fields, get, remove, scan
from mta.sandbox.client import Sandbox
from mta.sendmail.command import send
from mta.sendmail.message import Author, MessageError, with_header
from mta.sendmail.options import Options
from mta.sendmail.session import Session
from mta.sendmail.settings import Settings
from tests.inject.access_helpers import make_pki, make_users
from tests.integration.support import Mta
from tests.messages import bodies, collected, crlf, generated, stuffed

OUT = ("data.test", "bdat.test")
OURS = re.compile(
    rb"Received: (?:from [^\r]*\r\n\t)?by mta\.test [^\r]* id \w+(?:\r\n\tfor <[^>]*>)?;\r\n\t[^\r]*\r\n"
    rb"(?P<added>(?:(?:Message-ID|Date|From): [^\r]*\r\n)*)")
AT_ONCE = 10


class Refused(Exception):  # noqa: N818 -- it is no error of ours
    """A door does not take a message; the text says why."""


class Way:
    """An MTA with all doors, and receivers for all ways out."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mta-")))
        self.sandbox = self._stack.enter_context(Sandbox({
            "log": 2000, "log_content": "20MB", "domains": {"bdat.test": {"chunking": "offered"}}}))
        self.pickup = directory / "pickup"
        self.socket = str(directory / "smtp.sock")
        pki = make_pki(directory)
        self.mta = self._stack.enter_context(Mta(
            directory / "mta", self.sandbox.dns, self.sandbox.smtp_port, workers=1,
            listeners=[{"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.0/8"]},
                       {"smtp": "127.0.0.1:0", "tls": "implicit", "relay_from": ["127.0.0.0/8"]},
                       {"smtp": f"unix:{self.socket}"}],
            certificates=[{"certificate": pki.make("localhost")}],
            access={"users_file": make_users(directory / "users", acme="secret")},
            pickup=[{"directory": str(self.pickup)}], checks={"repeated": "accept"}))
        ready = next(line for line in self.mta.log if "ready:" in line)
        clear, encrypted = map(int, re.findall(r"127\.0\.0\.1:(\d+)", ready))
        self.clear = self._stack.enter_context(smtplib.SMTP("127.0.0.1", clear, timeout=30))
        self.encrypted = self._stack.enter_context(
            smtplib.SMTP_SSL("localhost", encrypted, timeout=30, context=pki.context()))
        self.local = self._stack.enter_context(LocalSmtp(self.socket, timeout=30))
        self._number = 0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def recipients(self) -> list[str]:
        """One for each way out, that nothing was sent to before."""
        self._number += 1
        return [f"u{self._number}@{domain}" for domain in OUT]

    def arrivals(self, recipients: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What has come for each, once it is there for all, or a file with it was refused. Forgets all before."""
        wanted = set(recipients)
        found: dict[str, dict[str, Any]] = {}

        def all_there(stats: dict[str, Any]) -> bool:
            if stats["recipients"] < len(wanted) - len(refusals):
                refusals.update({to: why for to, why in self.refusals().items() if to in wanted})
                return False
            found.clear()
            found.update((to, entry) for entry in self.sandbox.log() if entry["end"] == "accepted"
                         for to in entry["recipients"] if to in wanted)
            return len(found) >= len(wanted) - len(refusals)

        refusals: dict[str, str] = {}
        self.sandbox.wait_for(all_there, 60)
        self.sandbox.reset()
        return found

    def refusals(self) -> dict[str, str]:
        """The recipients of files that were refused, with the reason."""
        found = {}
        for path in (self.pickup / "failed").glob("*.error"):
            try:
                content = path.with_suffix("").read_bytes()
            except FileNotFoundError:
                continue  # it comes after its reason
            reason = path.read_text().splitlines()[-1]
            found.update((to.decode(), reason) for to in re.findall(rb"u\d+@[a-z.]+", content))
        return found


class LocalSmtp(smtplib.SMTP):
    """By a Unix socket."""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(host)
        return sock


# -- doors for sessions ------------------------------------------------------------------------------------------------


def envelope(client: smtplib.SMTP, to: list[str]) -> None:
    """MAIL and RCPT."""
    client.ehlo_or_helo_if_needed()
    assert client.mail("a@a.example", ["BODY=8BITMIME"])[0] == 250
    for address in to:
        assert client.rcpt(address)[0] == 250


def final(client: smtplib.SMTP) -> None:
    """The verdict. Raises Refused."""
    code, text = client.getreply()
    if code != 250:
        client.rset()
        raise Refused(f"{code} {text.decode()}")


def by_data(client: smtplib.SMTP, to: list[str], message: bytes) -> None:
    """DATA."""
    envelope(client, to)
    assert client.docmd("DATA")[0] == 354
    client.send(stuffed(crlf_end(message)) + b".\r\n")
    final(client)


def by_bdat(client: smtplib.SMTP, to: list[str], message: bytes, chunks: int) -> None:
    """BDAT, all of the chunks in one go."""
    envelope(client, to)
    size = len(message) // chunks + 1
    cut = [message[start : start + size] for start in range(0, len(message), size)]
    client.send(b"".join(b"BDAT %d\r\n%b" % (len(chunk), chunk) for chunk in cut[:-1])
                + b"BDAT %d LAST\r\n%b" % (len(cut[-1]), cut[-1]))
    for number in range(len(cut) - 1):
        code, text = client.getreply()
        if code != 250:
            for _ in range(len(cut) - 1 - number):
                client.getreply()
            client.rset()
            raise Refused(f"{code} {text.decode()}")
    final(client)


def crlf_end(message: bytes) -> bytes:
    """With a line end at its end: DATA and a file by lines know no other message."""
    return message if message.endswith(b"\r\n") else message + b"\r\n"


def data(way: Way, to: list[str], message: bytes) -> None:
    """DATA in clear."""
    by_data(way.clear, to, message)


def bdat(way: Way, to: list[str], message: bytes) -> None:
    """One chunk."""
    by_bdat(way.clear, to, message, 1)


def bdat_pieces(way: Way, to: list[str], message: bytes) -> None:
    """Chunks that end anywhere, also between CR and LF."""
    by_bdat(way.clear, to, message, 7)


def tls_data(way: Way, to: list[str], message: bytes) -> None:
    """DATA over TLS."""
    by_data(way.encrypted, to, message)


def tls_bdat(way: Way, to: list[str], message: bytes) -> None:
    """A chunk over TLS."""
    by_bdat(way.encrypted, to, message, 1)


def unix_data(way: Way, to: list[str], message: bytes) -> None:
    """DATA by the Unix socket."""
    by_data(way.local, to, message)


def unix_bdat(way: Way, to: list[str], message: bytes) -> None:
    """A chunk by the Unix socket."""
    by_bdat(way.local, to, message, 1)


# -- doors for files ---------------------------------------------------------------------------------------------------


def put(way: Way, to: list[str], suffix: str, content: bytes) -> None:
    """A file renamed in."""
    name = f"{to[0].partition('@')[0]}{suffix}"
    (way.pickup / "tmp" / name).write_bytes(content)
    (way.pickup / "tmp" / name).rename(way.pickup / name)


def commands(to: list[str]) -> bytes:
    """MAIL and RCPT of a batch."""
    lines = ["MAIL FROM:<a@a.example> BODY=8BITMIME\r\n", *(f"RCPT TO:<{address}>\r\n" for address in to)]
    return "".join(lines).encode()


def in_front(way: Way, to: list[str], message: bytes) -> None:
    """PowerMTA's form: envelope lines before the message."""
    front = "".join(["X-Sender: a@a.example\r\n", *(f"X-Receiver: {address}\r\n" for address in to)]).encode()
    put(way, to, ".eml", front + message)


def in_front_lf(way: Way, to: list[str], message: bytes) -> None:
    """The same, with LF."""
    front = "".join(["X-Sender: a@a.example\n", *(f"X-Receiver: {address}\n" for address in to)]).encode()
    put(way, to, ".eml", front + message.replace(b"\r\n", b"\n"))


def in_header(way: Way, to: list[str], message: bytes) -> None:
    """The recipients are those of the header."""
    sender = b"" if get(message, "Return-Path") is not None else b"Return-Path: a@a.example\r\n"
    put(way, to, ".eml", sender + f"Bcc: {', '.join(to)}\r\n".encode() + message)


def batch(way: Way, to: list[str], message: bytes) -> None:
    """Batch SMTP, DATA, CRLF."""
    put(way, to, ".bsmtp", commands(to) + b"DATA\r\n" + stuffed(crlf_end(message)) + b".\r\n")


def batch_lf(way: Way, to: list[str], message: bytes) -> None:
    """Batch SMTP, DATA, LF."""
    content = commands(to) + b"DATA\r\n" + stuffed(crlf_end(message)) + b".\r\n"
    put(way, to, ".bsmtp", content.replace(b"\r\n", b"\n"))


def batch_bdat(way: Way, to: list[str], message: bytes) -> None:
    """Batch SMTP, BDAT."""
    put(way, to, ".bsmtp", commands(to) + b"BDAT %d LAST\r\n%b" % (len(message), message))


def sendmail(way: Way, to: list[str], message: bytes) -> None:
    """The sendmail command: its parts, without the start of a Python."""
    options = Options(sender="a@a.example", recipients=to, dots_are_text=True)
    try:
        send(options, Settings(str(way.pickup), "mta.test"), Author("a"), message.replace(b"\r\n", b"\n"))
    except MessageError as error:
        raise Refused(str(error)) from None


def sendmail_bs(way: Way, to: list[str], message: bytes) -> None:
    """`sendmail -bs`."""
    with tempfile.TemporaryFile() as script, tempfile.TemporaryFile() as replies:
        script.write(b"EHLO c.example\r\n" + commands(to) + b"DATA\r\n" + stuffed(crlf_end(message)) + b".\r\nQUIT\r\n")
        script.seek(0)
        Session(Settings(str(way.pickup), "mta.test"), script.fileno(), replies.fileno()).run()
        replies.seek(0)
        verdict = replies.read().splitlines()[-2].decode()
    if not verdict.startswith("250"):
        raise Refused(verdict)


Door = Callable[[Way, list[str], bytes], None]
SESSIONS: tuple[Door, ...] = (data, bdat, bdat_pieces, tls_data, tls_bdat, unix_data, unix_bdat)
FILES: tuple[Door, ...] = (in_front, in_front_lf, in_header, batch, batch_lf, batch_bdat, sendmail, sendmail_bs)
DOORS = SESSIONS + FILES


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    """One for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # of the sendmail command: not about power failures
        with Way() as one:
            yield one


# -- what is to have arrived -------------------------------------------------------------------------------------------


def expected(door: Door, message: bytes) -> bytes:
    """What of a message is to arrive; our lines come before it."""
    message = crlf_end(message)
    if door is sendmail:
        message, _ = with_header(message)
    message = remove(message, ["Return-Path", *scan(message).empty, *(["Bcc"] if door is in_header else [])])
    if not re.match(rb"[!-9;-~]+[ \t]*:", message) and not message.startswith(b"\r\n"):
        message = b"\r\n" + message  # it has no header: ours ends with an empty line
    return message


def fault(door: Door, message: bytes, entry: dict[str, Any]) -> str:
    """What is wrong with what arrived; empty when it is the message with nothing but our lines before it."""
    content, wanted = entry["content"].encode("latin-1"), expected(door, message)
    if not content.endswith(wanted):
        return f"it is not what was sent: {content[-200:]!r} for {wanted[-200:]!r}"
    ours = OURS.fullmatch(content[: len(content) - len(wanted)])
    if ours is None:
        return f"there is something else before it: {content[: len(content) - len(wanted)]!r}"
    added = {field.name for field in fields(ours["added"])}
    there = {field.name for field in fields(wanted)}
    if added & there:
        return f"added {added} to what has {there}"
    command = "BDAT" if entry["host"].endswith("bdat.test") else "354"
    return "" if entry["replies"][1] == command else f"it went out by {entry['replies'][1]}"


def carry(way: Way, doors: Iterable[Door], messages: list[bytes]) -> Counter[str]:
    """Send each message through each door; how many arrived, by door. Raises AssertionError."""
    sent = []
    for message in messages:
        for door in doors:
            to = way.recipients()
            door(way, to, message)
            sent.append((door, to, message))
    found = way.arrivals(address for _, to, _ in sent for address in to)
    count: Counter[str] = Counter()
    for door, to, message in sent:
        for address in to:
            assert address in found, f"{door.__name__}: {address}: {way.refusals().get(address)}: {message[:300]!r}"
            wrong = fault(door, message, found[address])
            assert wrong == "", f"{door.__name__}: {address}: {wrong}"
            count[door.__name__] += 1
    return count


def test_what_is_made_here_arrives(way: Way) -> None:
    """Hard messages: through each door, out by DATA and by BDAT, byte for byte."""
    messages = list(generated(int(os.environ.get("MTA_COMPOSED", "25"))))
    count: Counter[str] = Counter()
    for start in range(0, len(messages), AT_ONCE):
        count += carry(way, DOORS, messages[start : start + AT_ONCE])
    assert count == {door.__name__: len(messages) * len(OUT) for door in DOORS}


@settings(deadline=None, max_examples=int(os.environ.get("MTA_BODIES", "20")))
@given(bodies)
def test_any_body_arrives(way: Way, body: bytes) -> None:
    """Whatever has lines of no more than 998 octets with CRLF, without CR, LF and NUL in them; its last line end is
    made good."""
    carry(way, DOORS, [b"From: a@a.example\r\nSubject: x\r\n\r\n" + body])


@pytest.mark.parametrize(("flaw", "mended"), [
    (b"bare\rCR", b"bare CR\r\n"), (b"CR before CRLF\r", b"CR before CRLF\r\n"), (b"a NUL \0", b"a NUL  \r\n"),
    (b"long " + b"x" * 994, b"long " + b"x" * 993 + b"\r\n x\r\n"), (b"bare\nLF", b"bare\r\nLF\r\n"),
])
def test_what_no_host_must_be_sent(way: Way, flaw: bytes, mended: bytes) -> None:
    """Each door refuses it, but the sendmail command, which mends it as docs/sendmail.md says, and reads its input as
    lines that end with LF or CRLF, as files with one message do: there a bare LF is a line end."""
    message = b"From: a@a.example\r\nSubject: x\r\n\r\n" + flaw + b"\r\nend\r\n"
    for door in (*SESSIONS, sendmail_bs):
        with pytest.raises(Refused, match=r"550 5\.6\.0"):
            door(way, way.recipients(), message)
    refusing, taking = [batch, batch_bdat], [sendmail]
    (taking if b"\n" in flaw else refusing).extend((in_front, in_header))
    if b"\n" not in flaw and not flaw.endswith(b"\r"):  # which in a file of LF is no flaw
        refusing += [in_front_lf, batch_lf]
    refused = [(door, way.recipients()) for door in refusing]
    taken = [(door, way.recipients()) for door in taking]
    for door, to in refused + taken:
        door(way, to, message)
    found = way.arrivals(address for _, to in taken for address in to)
    for _, to in taken:
        assert found[to[0]]["content"].encode("latin-1").endswith(b"\r\n\r\n" + mended + b"end\r\n")
    files = {to[0] for _, to in refused}
    way.mta.wait_until(lambda: files <= {*way.refusals()}, "that all files are refused")
    assert files.isdisjoint(found)


def test_what_was_collected_arrives(way: Way) -> None:
    """Real messages and broken ones: each arrives as it was, or is refused; `-s` shows where and why."""
    taken: Counter[str] = Counter()
    refused: dict[tuple[str, str], list[str]] = {}
    wrong = []
    for name, message in collected():
        message = crlf(message)
        sent, given = {}, []
        for door in DOORS:
            to = way.recipients()
            try:
                door(way, to, message)
                sent[door] = to
                given += to
            except Refused as reason:
                refused.setdefault((name, str(reason)), []).append(door.__name__)
        found = way.arrivals(given)
        for door, to in sent.items():
            for address in to:
                if address not in found:
                    if address == to[0]:
                        reason_text = way.refusals()[address]
                        refused.setdefault((name, reason_text), []).append(door.__name__)
                    continue
                taken[door.__name__] += 1
                said = fault(door, message, found[address])
                if said and address == to[0]:
                    wrong.append(f"{name} by {door.__name__}: {said}")
    for (name, reason_text), doors in sorted(refused.items()):
        print(f"{name}: {', '.join(doors)}: {reason_text}")
    print(*wrong, sep="\n")
    print(dict(taken))
    assert sum(taken.values()) > len(OUT) * sum(map(len, refused.values()))
    # What sendmail changes, as it cannot be sent.
    assert [one for one in wrong if " by sendmail: " not in one] == []
