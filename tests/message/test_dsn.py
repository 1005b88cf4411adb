"""Rules of notifications, read back by the standard library's email package."""

from __future__ import annotations

import email
import email.header
import email.policy
import email.utils
import quopri
from dataclasses import replace
from email.message import Message
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.message import dsn
from mta.message.dsn import Notice, Report

ARRIVAL_US = 1_136_214_245_000_000  # Mon, 02 Jan 2006 15:04:05
HEADER = b"Received: by mta.example id 0orig;\r\n\tMon, 02 Jan 2006\r\nSubject: hello\r\nTo: bob@example.org\r\n"
ORIGINAL = HEADER + b"\r\nThe body.\r\n--boundary-like line\r\n"
REFUSED = Report(
    "bob@example.org",
    "5.1.1",
    ("550-5.1.1 The account does not exist.", "550 5.1.1 See https://mail.example.org/help"),
    "mx1.example.org",
    "192.0.2.25",
    ARRIVAL_US + 60_000_000,
    "rfc822;bob+tag@example.net",
)


def notice(**changes: object) -> Notice:
    """A failed notice with a single recipient, with `changes`."""
    base = Notice(
        "failed",
        [REFUSED],
        "0notice",
        ARRIVAL_US + 120_000_000,
        "mta.example",
        "Mail Delivery System",
        "0orig",
        "alice@sender.example",
        ARRIVAL_US,
        ORIGINAL,
        len(HEADER),
        "<one@sender.example>",
        "QQ 314159",
    )
    return replace(base, **changes)  # keywords of the test, by name


class Read:
    """A notification read back. It has no defects, and only lines that every host takes."""

    def __init__(self, content: bytes) -> None:
        assert content.endswith(b"\r\n")
        rest = content.replace(b"\r\n", b"")
        assert b"\r" not in rest
        assert b"\n" not in rest
        assert max(map(len, content.split(b"\r\n"))) <= 998
        self.message = email.message_from_bytes(content, policy=email.policy.compat32)
        payload = self.message.get_payload()
        self.parts = [part for part in payload if isinstance(part, Message)]
        assert not self.message.defects
        assert not any(part.defects for part in self.parts)
        self.bodies = self._bodies(content)
        self.text = self.bodies[0].decode()
        self.groups = [_fields(group) for group in self.bodies[1].decode().removesuffix("\r\n").split("\r\n\r\n")]

    def _bodies(self, content: bytes) -> list[bytes]:
        # Cut at the boundary by hand: the library reads on inside of message types.
        found = []
        for piece in content.split(f"\r\n--{self.message.get_boundary()}".encode())[1:-1]:
            header, _, body = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            encoded = b"Content-Transfer-Encoding: quoted-printable" in header
            found.append(quopri.decodestring(body) if encoded else body)
        return found


def _fields(group: str) -> dict[str, list[str]]:
    """The fields of one group of a status part, unfolded."""
    found: dict[str, list[str]] = {}
    for line in group.replace("\r\n ", " ").split("\r\n"):
        name, colon, text = line.partition(": ")
        assert colon
        found.setdefault(name, []).append(text)
    return found


def test_a_failure_has_the_header_of_a_report() -> None:
    """RFC 3464 2, RFC 3834: multipart/report to the envelope sender, from the postmaster, never answered by robots."""
    built = dsn.build(notice())
    read = Read(built.content)
    assert read.message["To"] == "<alice@sender.example>"
    assert email.utils.parseaddr(read.message["From"]) == ("Mail Delivery System", "postmaster@mta.example")
    assert read.message["Subject"] == "Delivery Status Notification (Failure)"
    assert read.message["Auto-Submitted"] == "auto-replied"
    assert read.message["Message-ID"] == built.message_id == "<0notice@mta.example>"
    assert read.message["In-Reply-To"] == read.message["References"] == "<one@sender.example>"
    assert read.message["Date"] == "Mon, 02 Jan 2006 15:06:05 +0000"
    assert read.message["MIME-Version"] == "1.0"
    assert read.message.get_content_type() == "multipart/report"
    assert read.message.get_param("report-type") == "delivery-status"
    assert [part.get_content_type() for part in read.parts] == [
        "text/plain", "message/delivery-status", "text/rfc822-headers"
    ]
    assert built.content[built.header_size :].startswith(b"\r\n")
    assert built.content[: built.header_size].endswith(b"\r\n")
    assert not built.smtputf8


def test_the_status_part_has_every_field() -> None:
    """RFC 3464 2.2 and 2.3, RFC 3461 6.3: what the message and each recipient met, field by field."""
    read = Read(dsn.build(notice()).content)
    assert read.groups == [
        {
            "Original-Envelope-Id": ["QQ 314159"],
            "Reporting-MTA": ["dns; mta.example"],
            "Arrival-Date": ["Mon, 02 Jan 2006 15:04:05 +0000"],
        },
        {
            "Original-Recipient": ["rfc822;bob+tag@example.net"],
            "Final-Recipient": ["rfc822; bob@example.org"],
            "Action": ["failed"],
            "Status": ["5.1.1"],
            "Remote-MTA": ["dns; mx1.example.org"],
            "Diagnostic-Code": [
                "smtp; 550-5.1.1 The account does not exist. 550 5.1.1 See https://mail.example.org/help"
            ],
            "Last-Attempt-Date": ["Mon, 02 Jan 2006 15:05:05 +0000"],
            "Final-Log-ID": ["0orig"],
        },
    ]


def test_what_is_not_known_has_no_field() -> None:
    """Original-Recipient and Original-Envelope-Id only if given (RFC 3461 6.3), no Remote-MTA for our own verdict."""
    own = Report("bob@example.org", "5.1.10", ("The domain does not accept mail",), local=True)
    read = Read(dsn.build(notice(reports=[own], original_envelope_id=None)).content)
    message, recipient = read.groups
    assert set(message) == {"Reporting-MTA", "Arrival-Date"}
    assert set(recipient) == {"Final-Recipient", "Action", "Status", "Diagnostic-Code", "Final-Log-ID"}
    assert recipient["Diagnostic-Code"] == ["x-mta; The domain does not accept mail"]
    assert "Our own mail system said:" in read.text


def test_several_recipients_share_one_notification() -> None:
    """Each has a group of its own in the status part, in order, and is named in the text."""
    reports = [REFUSED, Report("carol@example.org", "5.2.2", ("552 5.2.2 Mailbox full",), "mx2.example.org")]
    read = Read(dsn.build(notice(reports=reports)).content)
    groups = read.groups
    assert [group["Final-Recipient"] for group in groups[1:]] == [
        ["rfc822; bob@example.org"], ["rfc822; carol@example.org"]
    ]
    text = read.text
    assert "2 recipients" in text
    assert "<bob@example.org>" in text
    assert "<carol@example.org>" in text
    assert "The recipient's mailbox is full." in text


def test_the_text_says_what_happened_in_plain_english() -> None:
    """Who could not be reached, what that means, who said so and in which words, and which message it was."""
    read = Read(dsn.build(notice()).content)
    text = read.text
    for expected in (
        "This is the mail system at mta.example.",
        "could not be delivered to one recipient. It will not be tried again.",
        "There is no such address. Look for a spelling mistake before the @.",
        "mx1.example.org [192.0.2.25] said:",
        "550-5.1.1 The account does not exist.",
        "<one@sender.example>",
    ):
        assert expected in " ".join(text.split())
    assert max(map(len, text.split("\r\n"))) <= 78


def test_who_said_it() -> None:
    """A host is quoted only with what it replied; what we found out ourselves is said to be ours, about the host."""
    def text(**fields: Any) -> str:
        return Read(dsn.build(notice(reports=[Report("bob@example.org", "4.4.2", ("lost",), **fields)])).content).text

    host = {"remote_host": "mx1.example.org", "remote_address": "192.0.2.25"}
    assert "mx1.example.org [192.0.2.25] said at the last attempt:" in text(**host)
    assert "Our own mail system said at the last attempt about mx1.example.org\r\n    [192.0.2.25]:" in text(
        **host, local=True)
    assert "The mail host of the domain said at the last attempt:" in text()
    assert "Our own mail system said at the last attempt:" in text(local=True)


def test_what_became_too_old_says_so() -> None:
    """A failure whose last reply was not permanent: the sender learns that it was tried, and how that ended."""
    old = Report("bob@example.org", "4.7.1", ("451 4.7.1 Greylisted",), "mx1.example.org")
    text = " ".join(Read(dsn.build(notice(reports=[old])).content).text.split())
    assert "The message has become too old" in text
    assert "mx1.example.org said at the last attempt: 451 4.7.1 Greylisted" in text


def test_a_delay_says_until_when_it_is_tried() -> None:
    """Action delayed with Will-Retry-Until (RFC 3464 2.3.9), which no other action may have."""
    until_us = ARRIVAL_US + 5 * 86_400_000_000
    late = Report("bob@example.org", "4.4.1", ("No answer",), local=True)
    built = dsn.build(notice(action="delayed", reports=[late], retry_until_us=until_us))
    read = Read(built.content)
    recipient = read.groups[1]
    assert recipient["Action"] == ["delayed"]
    assert recipient["Will-Retry-Until"] == ["Sat, 07 Jan 2006 15:04:05 +0000"]
    assert "do not need to send it again" in " ".join(read.text.split())
    assert read.message["Subject"] == "Delivery Status Notification (Delay)"
    failed = dsn.build(notice(retry_until_us=until_us))
    assert "Will-Retry-Until" not in Read(failed.content).groups[1]


def test_a_relayed_notice_promises_nothing() -> None:
    """Action relayed, status 2.x: handed over to a host that reports no further (RFC 3461 5.2.2 b)."""
    done = Report("bob@example.org", "2.0.0", ("250 2.0.0 Ok",), "mx1.example.org")
    read = Read(dsn.build(notice(action="relayed", reports=[done])).content)
    recipient = read.groups[1]
    assert (recipient["Action"], recipient["Status"]) == (["relayed"], ["2.0.0"])
    assert "may be the last you hear of it" in " ".join(read.text.split())


def test_headers_or_the_whole_message_come_back_unchanged() -> None:
    """The third part is the header section, or the message, byte for byte (RFC 3461 6.2)."""
    headers_only = dsn.build(notice()).content
    assert b"Content-Type: text/rfc822-headers\r\n" in headers_only
    assert b"\r\n\r\n" + HEADER + b"\r\n--" in headers_only
    assert b"The body." not in headers_only
    full = dsn.build(notice(return_full=True)).content
    assert b"Content-Type: message/rfc822\r\n" in full
    assert b"\r\n\r\n" + ORIGINAL + b"\r\n--" in full


def test_without_the_original_there_are_two_parts() -> None:
    """A message that cannot be read any more is told of all the same."""
    read = Read(dsn.build(notice(original=b"", original_header_size=0)).content)
    assert [part.get_content_type() for part in read.parts] == ["text/plain", "message/delivery-status"]


def test_an_original_in_eight_bits_makes_the_notification_eight_bit() -> None:
    """Every level says 8bit when the original does; with header lines alone it is seven bits again."""
    original = HEADER + b"\r\nGr\xfc\xdfe\r\n"
    read = Read(dsn.build(notice(original=original, return_full=True)).content)
    assert read.message["Content-Transfer-Encoding"] == read.parts[2]["Content-Transfer-Encoding"] == "8bit"
    read = Read(dsn.build(notice(original=original)).content)
    assert read.message["Content-Transfer-Encoding"] == read.parts[2]["Content-Transfer-Encoding"] == "7bit"


def test_an_internationalized_message_uses_the_global_types() -> None:
    """RFC 6533: utf-8 addresses as they are; encoded for a sender whose way back may not know SMTPUTF8."""
    header = "Subject: Grüße\r\nTo: jürgen@bücher.example\r\n".encode()
    report = Report(
        "jürgen@bücher.example", "5.1.1", ("550 5.1.1 Unbekannter Empfänger",), "mx.example", "",
        0, "utf-8;jürgen@bücher.example",
    )
    original = {"original": header + b"\r\nx\r\n", "original_header_size": len(header), "original_smtputf8": True}
    built = dsn.build(notice(reports=[report], **original))
    assert built.content.isascii()
    assert not built.smtputf8
    read = Read(built.content)
    assert [part.get_content_type() for part in read.parts] == [
        "text/plain", "message/global-delivery-status", "message/global-headers"
    ]
    assert {part["Content-Transfer-Encoding"] for part in read.parts} == {"quoted-printable"}
    assert read.message["Content-Transfer-Encoding"] == "7bit"
    recipient = read.groups[1]
    assert recipient["Original-Recipient"] == ["utf-8;jürgen@bücher.example"]
    assert recipient["Final-Recipient"] == ["utf-8; jürgen@bücher.example"]
    assert recipient["Diagnostic-Code"] == ["smtp; 550 5.1.1 Unbekannter Empfänger"]
    assert read.bodies[2] == header
    assert "jürgen@bücher.example" in read.text


def test_a_sender_with_a_utf8_address_gets_utf8_as_it_is() -> None:
    """Its way back supports SMTPUTF8 or there is none: parts in 8bit, the notification needs SMTPUTF8."""
    header = "Subject: Grüße\r\n".encode()
    built = dsn.build(
        notice(
            original_sender="älice@sender.example", reports=[Report("jürgen@example.org", "5.1.1")],
            original=header + b"\r\nx\r\n", original_header_size=len(header), original_smtputf8=True, return_full=True,
        )
    )
    assert built.smtputf8
    read = Read(built.content)
    assert [part["Content-Transfer-Encoding"] for part in read.parts] == ["8bit", "8bit", "8bit"]
    assert read.parts[2].get_content_type() == "message/global"
    assert "To: <älice@sender.example>\r\n".encode() in built.content
    assert "Final-Recipient: utf-8; jürgen@example.org\r\n".encode() in built.content


def test_a_sender_at_an_internationalized_domain_needs_no_smtputf8() -> None:
    """Its local part is ASCII, so the way back need not know of SMTPUTF8: A-labels in To, and nothing in UTF-8."""
    header = "Subject: Gr\u00fc\u00dfe\r\n".encode()
    built = dsn.build(notice(
        original_sender="a@b\u00fccher.example", reports=[Report("j\u00fcrgen@example.org", "5.1.1")],
        original=header + b"\r\nx\r\n", original_header_size=len(header), original_smtputf8=True, return_full=True))
    assert not built.smtputf8
    assert b"\r\nTo: <a@xn--bcher-kva.example>\r\n" in built.content
    assert built.content.isascii()


def test_a_utf8_address_of_a_plain_message_is_written_in_ascii() -> None:
    """RFC 6533 3: in message/delivery-status an address beyond ASCII has its seven bit form."""
    read = Read(dsn.build(notice(reports=[Report("j\xfcrgen+x@example.org", "5.1.1")])).content)
    assert read.parts[1].get_content_type() == "message/delivery-status"
    assert read.groups[1]["Final-Recipient"] == [r"utf-8; j\x{FC}rgen\x{2B}x@example.org"]


def test_eight_bit_header_lines_of_a_plain_message_keep_their_type() -> None:
    """Raw Latin-1 in the header of a message that is not SMTPUTF8 goes back as it came, labelled 8bit."""
    header = b"Subject: Gr\xfc\xdfe\r\n"
    built = dsn.build(notice(original=header + b"\r\nx\r\n", original_header_size=len(header)))
    read = Read(built.content)
    assert read.parts[2].get_content_type() == "text/rfc822-headers"
    assert read.parts[2]["Content-Transfer-Encoding"] == "8bit"
    assert header in built.content


@pytest.mark.parametrize("changes", [{"reports": []}, {"original_sender": ""}])
def test_no_notification_without_sender_or_recipient(changes: dict[str, object]) -> None:
    """A notification to the null sender must never exist (RFC 3461 5.2)."""
    with pytest.raises(ValueError, match="needs a sender"):
        dsn.build(notice(**changes))


HOSTILE = [
    "550 x\r\nAction: delivered",
    "550 x\r\n\r\n--boundary",
    "550 \x00\x1b[31m\x07\u2028\x85",
    "550 " + "x" * 5000,
    "550 " + " " * 3000 + "y" + " " * 500 + "z",
    "550 " + "ü€😀" * 900,
    "550 \ud800 surrogate",
    "",
]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("smtputf8", [False, True])
def test_remote_text_stays_data(hostile: str, smtputf8: bool) -> None:
    """Whatever a host says, it makes no field, part or line of its own and no line that is too long (I7)."""
    report = Report("bob@example.org", "5.1.1", (hostile, hostile), hostile, hostile, 0, f"rfc822;{hostile}")
    built = dsn.build(
        notice(reports=[report], original_message_id=hostile, original_envelope_id=hostile, original_smtputf8=smtputf8)
    )
    read = Read(built.content)
    assert len(read.parts) == 3
    groups = read.groups
    assert len(groups) == 2
    assert groups[1]["Action"] == ["failed"]
    assert len(groups[1]["Final-Recipient"]) == 1
    assert read.message["In-Reply-To"] is None


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_reply_text_gives_a_sound_notification(text: str, smtputf8: bool) -> None:
    """No text breaks the structure, and printable ASCII comes back whole but for folding and wide gaps."""
    report = Report("bob@example.org", "5.0.0", (f"550 {text}",), "mx.example")
    built = dsn.build(notice(reports=[report], original_smtputf8=smtputf8))
    read = Read(built.content)
    groups = read.groups
    assert len(groups) == 2
    assert groups[1]["Action"] == ["failed"]
    if text.isascii() and text.isprintable() and len(text) < 200:
        assert "".join(groups[1]["Diagnostic-Code"][0].split()) == "smtp;550" + "".join(text.split())


@pytest.mark.parametrize("name", ["Mail Delivery System", 'a "b" \\', "Zustellung für Grüße", ""])
def test_the_display_name_is_quoted(name: str) -> None:
    """Any configured name makes one valid From, encoded when it is not ASCII (RFC 2047)."""
    read = Read(dsn.build(notice(from_name=name)).content)
    found, address = email.utils.parseaddr(read.message["From"])
    assert address == "postmaster@mta.example"
    assert str(email.header.make_header(email.header.decode_header(found))) == name
