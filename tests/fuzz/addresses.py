"""Addresses and what stands beside them in commands: paths, lists in headers, parameters, xtext."""

from __future__ import annotations

from typing import Final

from mta.inject import addresses
from mta.message import checks
from mta.queue.records import EIGHT_BIT, SMTPUTF8, Recipient
from mta.smtp import xtext
from mta.smtp.address import Address, AddressError, domain_to_ascii, parse_address, parse_path
from mta.smtp.envelope import Asked, Envelope, ParameterError, read_mail_parameters, read_rcpt_parameters
from mta.smtp.extensions import BEYOND, Offers
from mta.smtp.transaction import Capabilities, Transaction, commands_for
from tests.fuzz.script import expand

PATH_SEEDS: Final = (
    b"<a@example.org>", b"<>", b"<postmaster>", b"<@a.example,@b.example:c@d.example>", b'<"q \\" @>"@example.org>',
    "<ü.é@bücher.example>".encode(), b"<a@[192.0.2.1]>", b"<a@[IPv6:2001:db8::ffff:192.0.2.1]>",
    "<a@ＥＸＡＭＰＬＥ。org> SIZE=1".encode(), b"<a.b+c=d@xn--bcher-kva.example>", b"<a@x_y.-z.1>",
    "<a@faß.example>".encode(), b"\xff\x80\x87\x82\x9f\x83\x89\x81",
    b"\xff\x80\x84\x87\x85\x84\x84\x82\x91\x93\x94\x92\x81",
    "<a@\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.example>".encode(),
)  # fmt: skip
PATH_WORDS: Final = (
    b"@", b"<", b">", b"[IPv6:", b"xn--", b"xn--a", b'"', b'\\"', b"..", b".@", b"::", b"%eth0", b"\xe3\x80\x82",
    b"\xc2\xad", b"\xe2\x80\x8d", b"\xef\xbd\xa1", b"\xc3\x9f", b"postmaster", b"@[", b":", b",@",
)  # fmt: skip

# Behind 255 octets from 128 on stand for these (`tests.fuzz.script`): most of what octets alone make is no path.
_SNIPPETS: Final = (
    b"<", b">", b"@", b".", b'"', b"\\", b" ", b"a", b"example", b"org", b"xn--", b"xn--bcher-kva", b"x" * 63,
    b"x" * 64, b"-",
    b"_", b"1", b"[", b"]", b"IPv6:", b"::1", b"192.0.2.1", b"%", b",", b";", b":", b"(", b")", b"\r\n ", b"\t",
    b"=?utf-8?Q?x?=",
    "ü".encode(), "ß".encode(), "。".encode(), "．".encode(), "｡".encode(), "\u00ad".encode(), "\u200c".encode(),
    "\u200d".encode(), "א".encode(), "ب".encode(), "١".encode(), "ﷺ".encode(), "\u212a".encode(), "ⅷ".encode(),
    "\u0301".encode(),
    "\u0378".encode(), "\U0001f600".encode(), "＠".encode(), "＜".encode(), "\u2028".encode(), "\u0085".encode(),
    "क्".encode(), "·".encode(), "・".encode(), "ー".encode(), "\ue000".encode(), b"\xff", b"\xed\xa0\x80",
    b"a@b.example",
    b"<a@b.example>", b"@b.example>", b'"x y"', b"(c)", b"Name ", b"g:", b";",
)  # fmt: skip


def _script(data: bytes) -> bytes:
    return expand(data[1:], _SNIPPETS) if data.startswith(b"\xff") else data


def run_path(data: bytes) -> None:
    """A path is read or refused; what was read is written and read again as the very same, whatever stands behind."""
    data = _script(data)
    try:
        address, end = parse_path(data)
    except AddressError as error:
        assert str(error).isprintable()
        return
    assert 2 <= end <= len(data)
    assert data.startswith(b"<")
    assert data[end - 1 : end] == b">"
    shifted = parse_path(b"MAIL FROM:" + data, 10)
    assert shifted == (address, end + 10)
    assert parse_path(data[:end]) == (address, end), "it depends on what stands behind"
    check_address(address)


def check_address(address: Address) -> None:
    """An address that was read is safe between brackets, and stays what it is."""
    text = address.text
    assert address.local.isprintable()
    assert address.domain.replace("\u200c", "").replace("\u200d", "").isprintable()  # joiners, which RFC 5892 A allows
    text.encode()
    again, end = parse_path(f"<{text}> SIZE=1".encode())
    assert (again, end) == (address, len(text.encode()) + 2)
    if not text:
        return
    assert parse_address(text) == address
    if address.domain:
        ascii_form = domain_to_ascii(address.domain)
        assert ascii_form.isascii()
        assert domain_to_ascii(ascii_form) == ascii_form
        other = parse_address(f"{address.local}@{ascii_form}")
        assert domain_to_ascii(other.domain) == ascii_form


MAILBOX_SEEDS: Final = (
    b"a@example.org", b"Name <a@example.org>, b@example.org", b'"Name, B." <"q q"@example.org>',
    b"Group: a@example.org, B <b@example.net>;", b"a@example.org (comment (in comment))", b"A. B. Name <a@b.example>",
    b"undisclosed-recipients:;",
    b"=?utf-8?Q?=C3=BC?= <a@example.org>,\r\n b@example.org", "Ü <ü@bücher.example>".encode(),
    b"a@[192.0.2.1], <c@d.example>", b'"a@b.example" <c@d.example>', b"a@b.example, ", b"root", b"\xff\xbd\xbb\x97\xba",
)  # fmt: skip
MAILBOX_WORDS: Final = (
    b"<", b">", b", ", b";", b":", b'"', b"\\", b"(", b")", b"\r\n ", b"@example.org", b"@", b"<a@b.example>",
    b"[", b"]",
    b"\xc2\xa0", b"\xe2\x80\xa8", b"a@b.example",
)  # fmt: skip


def run_mailboxes(data: bytes) -> None:
    """A list of mailboxes is read or refused. Each that is found stands for itself, and the two readers of From agree
    on whose mail it is."""
    text = _script(data).decode("utf-8", "replace")
    try:
        found = addresses.parse_list(text)
    except addresses.AddressError as error:
        assert 0 <= error.position <= len(text)
        found = None
    else:
        for mailbox in found:
            assert 0 <= mailbox.position < len(text)
            alone = addresses.parse_list(mailbox.address)
            assert [one.address for one in alone] == [mailbox.address]
    try:
        with_domain = addresses.parse_list(text, "local.example")
    except addresses.AddressError:
        assert found is None
    else:
        assert found is None or with_domain == found
    value = text.replace("\r\n", "")
    domains = checks.domains_of(value.encode())
    if domains is None or found is None:
        return
    try:
        ours = [domain_to_ascii(parse_address(mailbox.address).domain) for mailbox in found]
    except AddressError:
        return
    assert set(domains) == set(ours), "two readers, two meanings"


XTEXT_SEEDS: Final = (
    b"a+2Bb", b"rfc822;a+2Bb@example.org", b"utf-8;\\x{FC}@example.org", "utf-8;ü@example.org".encode(), b"+0D+0A",
    b"utf-8;\\x{D800}", b"x;", b"rfc822;+20", b"utf-8;\\x{10FFFF}", b"utf-8;\\x{110000}",
)  # fmt: skip
XTEXT_WORDS: Final = (b"+2B", b"+0D", b"\\x{", b"}", b";", b"utf-8;", b"rfc822;", b"+", b"=", b"UTF-8;")


def run_xtext(data: bytes) -> None:
    """What is decoded prints, and comes back when it is written again."""
    text = data.decode("utf-8", "replace")
    try:
        plain = xtext.decode(text)
    except ValueError:
        pass
    else:
        assert plain.isascii()
        assert plain.isprintable()
        assert xtext.decode(xtext.encode(plain)) == plain
    try:
        kind, address = xtext.decode_orcpt(text)
    except ValueError:
        pass
    else:
        assert address.isprintable()
        assert kind.isascii()
        assert kind.isprintable()
        plain_form = xtext.orcpt_to_ascii(text)
        assert plain_form.isascii()
        assert xtext.decode_orcpt(plain_form) == (kind, address)
    if text.isascii():
        encoded = xtext.encode(text)
        if text.isprintable():
            assert xtext.decode(encoded) == text


PARAMETER_SEEDS: Final = (
    b" SIZE=1000 BODY=8BITMIME", b" SMTPUTF8 RET=FULL ENVID=x+2B",
    b" NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;a@b.example",
    b" HOLDFOR=60 MT-PRIORITY=-3", b" HOLDUNTIL=2023-11-15T00:00:00Z BY=120;RT",
    b" REQUIRETLS AUTH=a+2Bb@c.example BODY=7BIT",
    "  NOTIFY=NEVER ORCPT=utf-8;ü@example.org".encode(), b" BODY=BINARYMIME AUTH=<>", b" BY=-5;N",
)  # fmt: skip
PARAMETER_WORDS: Final = (
    b" SIZE=", b" BODY=", b" RET=", b" ENVID=", b" NOTIFY=", b" ORCPT=", b" AUTH=", b" HOLDFOR=", b" HOLDUNTIL=",
    b" BY=",
    b" MT-PRIORITY=", b" REQUIRETLS", b" SMTPUTF8", b"2023-11-15T00:00:00+00:00", b";RT", b"NEVER", b"SUCCESS",
    b"rfc822;",
    b"9999-12-31T23:59:60Z", b"0001-01-01T00:00:00+23:59",
)  # fmt: skip

_OFFERS: Final = Offers(
    "mx.example.net", {"SIZE": "", "AUTH": "PLAIN"} | dict.fromkeys(BEYOND, ""), 86_400, 100, lambda: 1_700_000_000.0)
_CAN: Final = Capabilities(esmtp=True, eight_bit=True, smtputf8=True, dsn=True, mt_priority=True)


def run_parameters(data: bytes) -> None:
    """Parameters are read or refused; those that go on to the next host are read there as what they were here."""
    envelope = Envelope("a@example.com")
    try:
        read_mail_parameters(envelope, data, _OFFERS)
    except ParameterError as error:
        _check_reply(error)
    else:
        asked = envelope.asked
        assert asked != Asked(), "nothing was asked for"
        if asked is not None:
            assert 0 <= asked.hold_s <= 86_400
            assert asked.hold.isprintable()
        priority = asked and asked.priority
        passed_on = envelope.flags & (EIGHT_BIT | SMTPUTF8)
        sent = Transaction(envelope.sender, [], b"", passed_on, envelope.ret, envelope.envid, priority)
        (command,) = commands_for(sent, _CAN)
        again = Envelope("a@example.com")
        read_mail_parameters(again, command[len("MAIL FROM:<a@example.com>") : -2].encode() or b" ", _OFFERS)
        assert (again.flags & EIGHT_BIT, again.ret, again.envid, again.asked and again.asked.priority) == (
            passed_on & EIGHT_BIT, envelope.ret, envelope.envid, priority)
    for utf8 in (False, True):
        recipient = Recipient("b@example.org")
        try:
            read_rcpt_parameters(recipient, data, utf8=utf8, offers=_OFFERS)
        except ParameterError as error:
            _check_reply(error)
            continue
        _, command = commands_for(Transaction("a@example.com", [recipient], b"", SMTPUTF8), _CAN)
        again_recipient = Recipient("b@example.org")
        text = command[len("RCPT TO:<b@example.org>") : -2].encode() or b" "
        read_rcpt_parameters(again_recipient, text, utf8=utf8, offers=_OFFERS)
        assert again_recipient.notify == recipient.notify
        if recipient.orcpt is None or again_recipient.orcpt is None:
            assert recipient.orcpt is again_recipient.orcpt
        else:
            assert xtext.decode_orcpt(again_recipient.orcpt) == xtext.decode_orcpt(recipient.orcpt)


def _check_reply(error: ParameterError) -> None:
    assert error.reply.code in (501, 555)
    assert error.reply.to_bytes().count(b"\r\n") == 1
