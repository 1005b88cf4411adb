"""Extensions of SMTP on their way through a real worker, in and out."""

from __future__ import annotations

import smtplib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from email import message_from_bytes
from typing import Any

import pytest

from mta.sandbox.client import Sandbox
from tests.integration.support import Mta, message

BODY = bytes(range(256)) * 300 + b"\r\n.\r\n..\n\r\0 no end of line"
BINARY = (b"From: a@sender.test\r\nSubject: binary\r\nMIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\n"
          b"Content-Transfer-Encoding: binary\r\nX-Test-Crc32: %08x\r\nDate: Mon, 02 Jan 2006 15:04:05 +0000\r\n"
          b"Message-ID: <1@sender.test>\r\n\r\n" % zlib.crc32(BODY)) + BODY
DOMAINS: dict[str, Any] = {
    "binary.test": {"chunking": "offered", "extensions": ["BINARYMIME"]},
    "chunks.test": {"chunking": "offered"},
    "plain.test": {},
    "limits.test": {"extensions": ["LIMITS MAILMAX=3 RCPTMAX=2"]},
}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Receivers with and without the extensions."""
    with Sandbox({"domains": DOMAINS, "log_content": "200kB"}) as running:
        yield running


def test_binary_content(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """BODY=BINARYMIME: in by chunks, out in one, not an octet changed; to a host that does not offer it the message is
    not converted but returned, with its header lines (RFC 3030 3)."""
    recipients = [f"u@{domain}" for domain in DOMAINS if domain != "limits.test"]
    with make_mta(workers=1) as mta:
        with smtplib.SMTP(*mta.smtp, timeout=30) as client:
            client.ehlo()
            assert client.has_extn("binarymime")
            assert client.mail("a@sender.test", ["BODY=BINARYMIME"])[0] == 250
            for to in recipients:
                assert client.rcpt(to)[0] == 250
            for piece, last in ((BINARY[:1000], b""), (BINARY[1000:], b" LAST")):
                client.send(b"BDAT %d%s\r\n" % (len(piece), last) + piece)
                assert client.getreply()[0] == 250
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    ends = {to: event for event in mta.events() for to in event.get("recipients", ())
            if event["event"] in ("delivered", "bounced")}
    assert {to: (end["event"], end["enhanced"]) for to, end in ends.items() if to != "a@sender.test"} == {
        "u@binary.test": ("delivered", "2.0.0"), "u@chunks.test": ("bounced", "5.6.3"),
        "u@plain.test": ("bounced", "5.6.3")}
    (taken,) = [one for one in sandbox.log() if one["recipients"] == ["u@binary.test"]]
    assert taken["parameters"]["BODY"] == "BINARYMIME"
    assert taken["content"].encode("latin-1").endswith(BINARY)
    assert sandbox.stats()["damaged"] == 0
    notices = [one["content"] for one in sandbox.log() if one["recipients"] == ["a@sender.test"]]
    assert notices
    for notice in notices:
        returned = message_from_bytes(notice.encode("latin-1")).get_payload()[-1]
        assert returned.get_content_type() == "text/rfc822-headers"


def test_limits_of_the_host_are_kept(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """LIMITS (RFC 9422): no more recipients in a transaction than RCPTMAX, no more transactions in a session than
    MAILMAX; the rest goes in the next one, without an error."""
    with make_mta(workers=1, shaping={"domains": {"limits.test": {"connections": 1}}}) as mta:
        for number in range(4):
            recipients = [f"u{number}-{index}@limits.test" for index in range(5)]
            mta.send("a@sender.test", recipients, message(number, "list@limits.test"))
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert {event["event"] for event in mta.events()} == {"received", "delivered"}
    log = sandbox.log()
    assert sum(len(one["recipients"]) for one in log) == 20
    assert max(len(one["recipients"]) for one in log) == 2
    assert max(Counter(one["connection"] for one in log).values()) == 3
