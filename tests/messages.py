"""Messages that are hard to carry unchanged: made here, made by hypothesis, or collected by whoever runs the tests.

`MTA_MESSAGES=DIRECTORY` names a directory with collected ones: files that end in `.raw`, `.eml` or `.msg`.
"""

from __future__ import annotations

import email.policy
import os
import random
import re
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import strategies as st

LINES = ["", ".", "..", "...", ".x", ". ", " lead", "trail ", "\ttab\t", " \t ", "From x", ">From x", "text " * 20,
         "x" * 998, "." + "x" * 997, "ü" * 499, "MAIL FROM:<>", "QUIT", "BDAT 5 LAST", "-- ", "=", "=20",
         "\x01\x7f\x0b\x0c"]
_HEAD = b"From: a@a.example\r\nTo: b@b.example\r\n"


def generated(composed: int = 150) -> Iterator[bytes]:
    """Messages as mail programs write them, so many, and what only the standards allow. CRLF line ends; some lack the
    last one."""
    yield from _composed(composed)
    yield from _edges()
    yield from _nested()


def _composed(count: int) -> Iterator[bytes]:
    """As programs write them: parts, encodings, dots, white space, 8-bit text, odd endings."""
    chance = random.Random(4711)
    for number in range(count):
        message = EmailMessage(email.policy.SMTP.clone(cte_type="8bit", max_line_length=chance.choice((78, 500))))
        message["From"] = chance.choice(("a@a.example", "Jürgen A <a@a.example>", '"A, B" <a@a.example>'))
        message["To"] = "b@b.example"
        words = ("word", "wörter", "=?", "a" * 60)
        message["Subject"] = " ".join(chance.choice(words) for _ in range(chance.randrange(20)))
        if chance.random() < 0.5:
            message["Date"] = "Mon, 02 Jan 2006 15:04:05 +0000"
            message["Message-ID"] = f"<{number}@a.example>"
        text = "\n".join(chance.choice(LINES[:-1]) for _ in range(chance.randrange(40)))
        message.set_content(text, cte=chance.choice(("8bit", "quoted-printable", "base64")))
        if chance.random() < 0.3:
            message.add_alternative(f"<p>{text}", subtype="html", cte="quoted-printable")
        if chance.random() < 0.3:
            message.add_attachment(chance.randbytes(3000), maintype="application", subtype="octet-stream")
        raw = message.as_bytes()
        yield raw.removesuffix(b"\r\n") if chance.random() < 0.2 else raw


def _edges() -> Iterator[bytes]:
    """One oddity each."""
    yield _HEAD
    yield _HEAD + b"\r\n"
    yield _HEAD + b"\r\n\r\n\r\n"
    yield _HEAD + b"X-Folded: a\r\n \r\n\tb\r\nX-Empty:\r\nx-Space : c\r\n\r\n.\r\n"
    yield _HEAD + b"Subject: x\r\n\r\n" + b"".join(line.encode() + b"\r\n" for line in LINES)
    yield _HEAD + b"Subject: x\r\n\r\n" + bytes(octet for octet in range(1, 256) if octet not in b"\r\n")
    yield _HEAD + b"Subject: x\r\n\r\n" + b".\r\n" * 3000
    yield _HEAD + b"Subject: x\r\n\r\n" + b"\r\n" * 3000
    yield _HEAD + b"X-Long: " + b"y" * 990 + b"\r\n\r\nlong\r\n"
    yield _HEAD + b"X-Folded:" + b"\r\n " * 500 + b"z\r\n\r\nmany folds\r\n"
    yield _HEAD + b"".join(b"X-%d: %b\r\n" % (number, b"v" * 500) for number in range(400)) + b"\r\nhuge header\r\n"
    yield _HEAD + "Subject: grüße, こんにちは\r\nX-Wide: \U0001f4e7\r\n\r\nUTF-8 in the header\r\n".encode()
    yield _HEAD + b"Subject: \xe4\xf6\xfc\r\n\r\nLatin-1 in the header \xdf\r\n"
    yield _HEAD + b"X-White:  \t in front, behind \t \r\nX-Only-White: \t \r\n\r\n \t \r\n"
    yield _HEAD + b"Received: from x by y; Mon, 02 Jan 2006 15:04:05 +0000\r\n" * 20 + b"\r\nfar travelled\r\n"
    yield _HEAD + b"DKIM-Signature: v=1; a=rsa-sha256;\r\n\tb=abc\r\n\t def=\r\nContent-Length: 3\r\n\r\nsigned\r\n"
    yield _HEAD + b"X-Big: 1\r\n\r\n" + (b"0123456789abcdef" * 4 + b"\r\n") * 10_000


def _nested() -> Iterator[bytes]:
    """Parts in parts, with preamble and epilogue, boundaries like one another, a message in a message."""
    body = b"Content-Type: text/plain\r\n\r\n.the innermost\r\n"
    for depth in range(40):
        name = b"=_" + b"b" * (depth + 1)
        body = (b'Content-Type: multipart/mixed; boundary="%b"\r\n\r\npreamble %d\r\n--%b\r\n%b\r\n--%b\r\n\r\n.\r\n'
                b"--%b--\r\nepilogue\r\n" % (name, depth, name, body, name, name))
        if depth in (0, 3, 39):
            yield _HEAD + b"MIME-Version: 1.0\r\n" + body
    yield _HEAD + b"Content-Type: message/rfc822\r\n\r\n" + _HEAD + b"Subject: inner\r\n\r\n..\r\n"


def collected() -> Iterator[tuple[str, bytes]]:
    """Name and content of the messages in the directory that the environment names."""
    place = os.environ.get("MTA_MESSAGES")
    if not place:
        pytest.skip("MTA_MESSAGES names no directory with messages")
    for path in sorted(Path(place).rglob("*")):
        if path.is_file() and path.suffix in (".raw", ".eml", ".msg"):
            yield str(path.relative_to(place)), path.read_bytes()


def crlf(message: bytes) -> bytes:
    """With CRLF line ends, also at the end."""
    message = message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return message if message.endswith(b"\r\n") else message + b"\r\n"


def stuffed(content: bytes) -> bytes:
    """As behind DATA."""
    return re.sub(rb"(?m)^\.", b"..", content)


_octets = st.binary(max_size=998).map(lambda line: line.translate(None, b"\r\n\0"))
_lines = st.one_of(st.sampled_from([line.encode() for line in LINES]), _octets, st.text(max_size=80).map(
    lambda text: text.encode("utf-8", "ignore").translate(None, b"\r\n\0")))
bodies = st.builds(lambda lines, end: b"\r\n".join(lines) + end, st.lists(_lines, max_size=12),
                   st.sampled_from([b"", b"\r\n", b"\r\n\r\n"]))
"""Bodies with CRLF between their lines; what no message may have (RFC 5322 2.3) is not in them."""
