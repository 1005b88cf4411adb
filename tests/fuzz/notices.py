"""Notifications: whatever hosts, senders and messages say, one stays a message with the parts that it has."""

from __future__ import annotations

import email
import email.policy
from typing import Final

from mta.message import headers
from mta.message.dsn import Action, Notice, Report, build
from mta.smtp.reply import Reply, ReplyParser
from tests.fuzz.header import as_content

_ACTIONS: Final[tuple[Action, ...]] = ("failed", "delayed", "relayed")

SEEDS: Final = (
    (b"\0|a@example.com|b@example.org|5.1.1|550 5.1.1 No|mx.example.org|192.0.2.1|rfc822;c@d.example|id|<x@y>|"
     b"Subject: x\n\nbody\n"),
    "\x0d|ä@example.com|ü@example.org|4.4.7|4.4.7 old|||utf-8;ü@x|ü|<ü>|Subject: ü\n\n".encode() + b"\xff\n",
    b"\x13|a@b.example|c@d.example|5.7.1|550-\\ \xe2\x80\xa8 --x\t\n\nSubject: y|m\nx|::1|x;y z|z" + b"e" * 300 +
    b"|no|no header\n",
    b"\x26|a@b.example|" + b"d" * 200 + b"@" + b"e" * 250 + b"|x|" + b"550 " + b"w" * 2000 + b"|h|a|||<a b>|\n--=x--\n",
)  # fmt: skip
WORDS: Final = (
    b"|", b"\n", b"\r\n", b"\n--=", b"Content-Type: x", b"\xe2\x80\xa8", b"\x85", b"  ", b"\xf0\x9f\x98\x80",
    b"550-", b"4.", b"5.",
)  # fmt: skip


def run(data: bytes) -> None:
    """Python's reader finds the report with its parts, the fields of each recipient once, and lines as RFC 5322 has
    them; the original is there as it was."""
    if not data:
        return
    flags, rest = data[0], data[1:]
    fields = [part.decode("utf-8", "replace") for part in rest.split(b"|", 10)[1:]]
    fields += [""] * (10 - len(fields))
    sender, address, status, diagnostic, host, remote, orcpt, envid, message_id, text = fields
    original = as_content(text.encode())
    lines = _lines(diagnostic)
    report = Report(address, status, lines, host, remote, 1_700_000_000_000_000, orcpt, local=bool(flags & 64))
    reports = [report] * (1 + (flags >> 4 & 1))
    action = _ACTIONS[(flags & 3) % 3]
    notice = Notice(
        action, reports, "0kx8zzg800001", 1_700_000_000_000_000, "mta.example",
        'Mail ü "x"\n' if flags & 32 else "Mail", "0kx8zzg800002", sender or "s@example.com", 1_600_000_000_000_000,
        original, max(headers.section_end(original), 0), message_id, envid or None,
        original_smtputf8=bool(flags & 4), return_full=bool(flags & 8),
    )
    if not _is_address(notice.original_sender):
        notice.original_sender = "s@example.com"
    built = build(notice)
    content = built.content
    assert headers.section_end(content) == built.header_size
    # What we write ourselves; lines of the original are as long as they were.
    own = content.partition(original)[0] if flags & 8 and original else content
    assert max(map(len, own.split(b"\r\n"))) <= max(998, *map(len, original.split(b"\r\n")))
    assert b"\0" not in content
    assert content.count(b"\n") == content.count(b"\r") == content.count(b"\r\n")
    assert built.smtputf8 or content[: built.header_size].isascii()
    _compare(content, notice, original)


def _lines(diagnostic: str) -> tuple[str, ...]:
    """As replies give them: `mta.smtp.reply` has seen to it that they print."""
    found = []
    try:
        for reply in ReplyParser().feed(diagnostic.replace("\n", "\r\n").encode()):
            found += [f"{reply.code} {line}" for line in reply.lines]
    except Exception:  # no reply: what we might say ourselves
        return (str(Reply(451, "4.4.2", (diagnostic,), local=True)),) if diagnostic else ()
    return tuple(found)


def _is_address(text: str) -> bool:
    from mta.smtp.address import AddressError, parse_address

    try:
        return parse_address(text).text == text
    except AddressError:
        return False


def _compare(content: bytes, notice: Notice, original: bytes) -> None:
    message = email.message_from_bytes(content, policy=email.policy.compat32)
    assert message.get_content_type() == "multipart/report"
    assert not message.defects
    parts = message.get_payload()
    assert isinstance(parts, list)
    assert len(parts) == (3 if original else 2)
    assert parts[1].get_content_type() in ("message/delivery-status", "message/global-delivery-status")
    status = parts[1].get_payload(decode=True) if not isinstance(parts[1].get_payload(), list) else b"\r\n".join(
        block.as_bytes() for block in parts[1].get_payload())
    blocks = status.replace(b"\r\n", b"\n").split(b"\n")
    for name in (b"Final-Recipient:", b"Action:", b"Status:"):
        assert sum(line.startswith(name) for line in blocks) == len(notice.reports), name
    if original and notice.return_full and str(parts[2]["Content-Transfer-Encoding"]) != "quoted-printable":
        assert original in content
