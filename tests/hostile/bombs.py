"""Content that is made to cost time or memory, for everything of ours that reads some; and a program that reads it all.

Nothing of ours reads MIME or unpacks anything, so nested parts and archives are octets like others; what is read is
the header section, addresses, replies, and lines. `python -m tests.hostile.bombs` gives each reader each of its bombs
at the largest size that can come to it, and prints what was held at most. It is run with a limit on processor time.
"""

from __future__ import annotations

import base64
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mta.config.schema import Config, Labels, SmtpIn
from mta.inject import addresses, formats, proxyheader
from mta.inject.intake import Intake, Source
from mta.message import checks, dsn, headers
from mta.queue.records import Recipient
from mta.sendmail import message as sendmail
from mta.smtp import sasl, xtext
from mta.smtp.address import AddressError, parse_path
from mta.smtp.envelope import Envelope
from mta.smtp.errors import RemoteProtocolError
from mta.smtp.reply import ReplyParser
from mta.smtp.transaction import Capabilities

HEADER = headers.HEADER_LIMIT
FIELD = 102_400  # `checks.field_size`
VALUE = 16_384  # of From


class Bomb(NamedTuple):
    """`read` is given `make(size)`; `largest` is the size that a door lets through to it."""

    name: str
    read: Callable[[Any], object]
    make: Callable[[int], Any]
    largest: int


def repeated(unit: bytes, before: bytes = b"", behind: bytes = b"") -> Callable[[int], bytes]:
    """`unit` as often as it fits."""
    return lambda size: before + unit * ((size - len(before) - len(behind)) // len(unit)) + behind


def text(unit: str, before: str = "", behind: str = "") -> Callable[[int], str]:
    """The same as text."""
    return lambda size: before + unit * ((size - len(before) - len(behind)) // len(unit)) + behind


def prepare(content: bytes) -> object:
    """All that intake does."""
    config = Config(hostname="mx.example.net")
    intake = Intake(config, iter(range(1 << 40, 1 << 41)).__next__, lambda: 1)
    envelope = Envelope("a@example.com", [Recipient("b@example.org")], esmtp=True)
    return intake.prepare(envelope, content, Source.smtp("192.0.2.1", 25, "client.example"))


def scan(content: bytes) -> object:
    """What all of the header section costs, were there no limit on lines and fields."""
    found = headers.scan(content)
    headers.remove(content, ("Return-Path", "X-Job"))
    headers.get(content, "nothing")
    return found, checks.size_fault(content, len(content), 10, 998, 1 << 30), list(headers.fields(content))


def unsubscribe(content: bytes) -> object:
    """RFC 8058."""
    return checks.unsubscribe_fault(checks.unsubscribe_fields(content, len(content)))


def labels(content: bytes) -> object:
    """Of the tenant, the campaign and so on."""
    from mta.inject.labels import Labeller

    names = Labels(campaign=("X-Job",), tenant=("X-Tenant",), invalid="ignore")
    return Labeller(Config(hostname="mx.example.net", labels=names)).read(content, len(content), "", None, True)


def path(data: bytes) -> object:
    """Of MAIL and RCPT."""
    with suppress(AddressError):
        return parse_path(data)
    return None


def address_list(value: str) -> object:
    """As the spool directory and sendmail -t read it."""
    with suppress(addresses.AddressError):
        return addresses.parse_list(value)
    return None


def file(data: bytes) -> object:
    """Of the spool directory."""
    with suppress(formats.FormatError):
        return formats.parse_message(data, SmtpIn())
    return None


def command_line(raw: bytes) -> object:
    """What mta-sendmail makes of its input."""
    with suppress(sendmail.MessageError):
        content, end = sendmail.with_header(sendmail.lines_of(raw, dots_are_text=True))
        content = sendmail.without_strays(content, end)
        return sendmail.folded(content, end, 998), sendmail.recipients_in(content, end, "example.org")
    return None


def replies(data: bytes) -> object:
    """Of a host."""
    with suppress(RemoteProtocolError):
        return [(reply, Capabilities.from_reply(reply)) for reply in ReplyParser().feed(data)]
    return None


def notification(lines: list[str]) -> object:
    """About a hundred recipients, each refused with these lines."""
    report = dsn.Report("b@example.org", "5.1.1", tuple(lines), "mx.example.org", "192.0.2.1:25", 1)
    return dsn.build(dsn.Notice("failed", [report] * 100, "1", 1, "mx.example.net", "Mail", "2", "a@example.com", 1,
                                b"Subject: x\r\n", 12))


def orcpt(value: str) -> object:
    """The value of ORCPT."""
    with suppress(ValueError):
        return xtext.decode_orcpt(value)
    return None


def login(response: bytes) -> object:
    """A response of SCRAM, and a name."""
    with suppress(sasl.MalformedResponseError):
        sasl.prepare(response.decode("utf-8", "replace"))
    with suppress(sasl.MalformedResponseError):
        sasl.Scram({}, plus=False, plus_offered=False, fake_salt_key=b"", iterations=1).respond(response)
    return None


def balancer(data: bytes) -> object:
    """A PROXY header."""
    with suppress(proxyheader.ProxyHeaderError):
        return proxyheader.read(data)
    return None


def nested_parts(size: int) -> bytes:
    """A multipart in a multipart in a multipart."""
    part = b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n"
    return b"MIME-Version: 1.0\r\n" + b"".join(part % (one, one) for one in range(size // len(part)))


def archive(size: int) -> bytes:
    """A thousand times as much, packed and written as base64."""
    packed = base64.encodebytes(zlib.compress(b"\0" * 1_000_000, 9)).replace(b"\n", b"\r\n")
    head = b"Content-Type: application/zip\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    return head + packed * (size // len(packed))


_READERS: tuple[tuple[str, Callable[[Any], object], int, dict[str, Callable[[int], Any]]], ...] = (
    ("header", scan, HEADER, {
        "short fields": repeated(b"a:\r\n"), "folded": repeated(b"\r\n x", b"Subject:", b"\r\n"),
        "no colon": repeated(b"x" * 990 + b"\r\n", b"a: b\r\n"),
        "spaces": repeated(b"To" + b" " * 990 + b"\r\n", b"a:\r\n"),
        "received": repeated(b"Received: x\r\n"), "ids": repeated(b"Message-ID:\r\n"),
        "jobs": repeated(b"X-Job: a\r\n"),
        "long": repeated(b"x" * 990 + b"\r\n ", b"Subject: ", b"\r\n"),
        "8 bit": repeated(b"\xff\xfe: \xff\r\n", b"a:\r\n"),
    }),
    ("intake", prepare, HEADER, {
        "short fields": repeated(b"a:\r\n"), "jobs": repeated(b"X-Job: a\r\n", b"From: a\r\n"),
        "megabyte": repeated(b"x", b"a:", b"\r\n"),
        "comments": repeated(b"(", b"From: ", b"\r\n"), "nested parts": nested_parts, "archive": archive,
        "angles": repeated(b"<>", b"From: ", b"\r\n"), "returns": repeated(b"Return-Path: <>\r\n"),
    }),
    ("labels", labels, HEADER, {
        "empty": repeated(b"X-Job:\r\n"), "wrong": repeated(b"X-Job: (\r\n"),
        "folded": repeated(b"\r\n x", b"X-Job:", b"\r\n"),
    }),
    ("from", checks.domains_of, VALUE, {
        "quotes": repeated(b'"'), "escaped quotes": repeated(b'\\"', b'"'), "open": repeated(b"("),
        "spaces": repeated(b" ", b"<"),
        "escaped comments": repeated(b"\\(", b"("), "comments": repeated(b"()"), "strings": repeated(b'"a"b'),
        "commas": repeated(b","),
        "spaces behind": repeated(b" ", b"a", b"<"), "many": repeated(b"a@b.example,", b"", b"a@b.example"),
        "umlauts": repeated("a@ä.example,".encode(), b"", b"a@b"), "backslashes": repeated(b"\\"),
        "angles": repeated(b"<"),
    }),
    ("unsubscribe", unsubscribe, FIELD, {
        "angles": repeated(b"<a:", b"List-Unsubscribe: ", b"\r\n"),
        "spaces": repeated(b" ", b"List-Unsubscribe: <a:", b"\r\n"),
        "scheme": repeated(b"a", b"List-Unsubscribe: <", b"\r\n"),
        "colons": repeated(b":", b"List-Unsubscribe: <a", b"\r\n"),
        "fields": repeated(b"List-Unsubscribe: <https:x>\r\n"),
    }),
    ("path", path, 2048, {
        "comments": repeated(b"(", b"<a", b"@b>"), "angles": repeated(b"<", b"", b">"),
        "route": repeated(b"@a,", b"<", b":b@c>"),
        "umlauts": repeated("ä.".encode(), b"<a@", b"x>"), "dots": repeated(b"a.", b"<", b"@b>"),
        "quoted": repeated(b'\\"', b'<"'),
    }),
    ("address list", address_list, HEADER, {
        "open": text("("), "nested": lambda size: "(" * (size // 2) + ")" * (size // 2), "quotes": text('"'),
        "spaces": text(" ", "a"),
        "folds": text("\r\n ", "a"), "groups": text("a:;,"), "commas": text(","), "escaped": text('\\"', '"'),
        "dots": text("a ."),
        "words": text("a "), "mailboxes": text("a@b.example,", "", "a@b.example"), "comments": text("()", "a"),
    }),
    ("file", file, HEADER, {
        "receivers": repeated(b"X-Receiver: a@b.example\n", b"X-Sender: a@b\n"),
        "bcc": repeated(b"Bcc: a@b\n", b"From: a@b\n"),
        "short fields": repeated(b"a:\n"),
        "notify": repeated(b" ", b"X-Sender: a@b\nX-Receiver: c@d\nX-Notify: NEVER", b"x\n"),
        "brackets": repeated(b" ", b"X-Sender: <a@b>", b"x\n"),
    }),
    ("sendmail", command_line, 2_000_000, {
        "one line": repeated(b"x"), "spaces": repeated(b" ", b"\n\n"), "short lines": repeated(b"x\n", b"\n"),
        "folded": repeated(b" x\n", b"To: a@b\n"), "resent": repeated(b"Resent-To: a@b\n"),
        "umlauts": repeated("ä".encode(), b"\n"),
    }),
    ("folding", lambda raw: sendmail.folded(raw, 0, 78), 20_000_000, {"one line": repeated(b"x")}),
    ("replies", replies, 2_000_000, {
        "lines": repeated(b"250-" + b"x" * 4000 + b"\r\n"), "short": repeated(b"250-\r\n"),
        "one": repeated(b"x", b"250 "),
        "many": repeated(b"250 " + b"x" * 300 + b"\r\n"),
        "umlauts": repeated(b"250-" + "ä".encode() * 1000 + b"\r\n"),
        "equals": repeated(b"250-=\r\n", b"", b"250 =\r\n"),
        "LIMITS": repeated(b"=", b"250-a\r\n250 LIMITS ", b"\r\n"),
    }),
    ("notification", notification, 12_000, {
        "words": lambda size: ["550 " + "a " * (size // 2)], "lines": lambda size: ["550-x"] * (size // 94),
        "one word": lambda size: ["550 " + "a" * size], "spaces": lambda size: ["550 a" + " " * size + "b"],
        "umlauts": lambda size: ["550 " + "ä " * (size // 2)], "empty lines": lambda size: [""] * (size // 94),
    }),
        ("orcpt", orcpt, 2048, {"points": text("\\x{41}", "utf-8;"), "braces": text("\\x{", "utf-8;"),
        "plus": text("+41", "rfc822;")}),
    ("login", login, 12_288, {
        "attributes": repeated(b",a=b", b"n,,n=a,r=b"), "commas": repeated(b",", b"n,,n=a,r=b"),
        "marks": repeated(b"\xcc\x81", b"a"),
        "names": repeated(b"=2C", b"n,,n=", b",r=b"),
    }),
    ("balancer", balancer, 4096, {
        "spaces": repeated(b" ", b"PROXY TCP4"), "digits": repeated(b"1", b"PROXY TCP4 "),
        "values": repeated(b"\x04\0\0", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x08\0" + b"\0" * 12),
    }),
)  # fmt: skip

BOMBS = [Bomb(f"{reader}: {name}", read, make, largest) for reader, read, largest, cases in _READERS
         for name, make in cases.items()]


def peak_bytes() -> int:
    """The most memory that this program has had. `ru_maxrss` is of no use: it begins with what the parent had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    """Read them all; print each one's name, and the most memory that the process has had so far, in octets."""
    for bomb in BOMBS:
        bomb.read(bomb.make(bomb.largest))
        print(f"{bomb.name}\t{peak_bytes()}", flush=True)


def steps(bomb: Bomb, size: int) -> int:
    """Lines of Python that reading takes."""
    data = bomb.make(size)
    count = 0

    def trace(frame: Any, event: str, arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        bomb.read(data)
    finally:
        sys.settrace(before)
    return count


def names() -> Iterator[str]:
    """Of all bombs."""
    return (bomb.name for bomb in BOMBS)


if __name__ == "__main__":
    main()
