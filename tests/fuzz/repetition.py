"""The same again and again: whatever is repeated, the time of a parser grows with the length, not with its square.

An input says which parser, then what comes first, what is repeated, and what comes last, with NULs between. A parser
that takes the square of the time is at this for some seconds, where all others take milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from mta.config.loader import loads
from mta.config.schema import SmtpIn
from mta.delivery.rules import RuleBook
from mta.inject import addresses, proxyheader
from mta.inject.formats import FormatError, parse_message
from mta.message import checks, headers
from mta.queue.filter import Filter, FilterError
from mta.queue.records import Recipient
from mta.sendmail import message as sendmail
from mta.smtp import data as smtp_data
from mta.smtp import sasl, xtext
from mta.smtp.address import AddressError, parse_path
from mta.smtp.envelope import Envelope, ParameterError, read_mail_parameters, read_rcpt_parameters
from mta.smtp.errors import RemoteProtocolError
from mta.smtp.peer import Peer
from mta.smtp.reply import ReplyParser
from mta.smtp.server import Server
from mta.smtp.settings import ServerSettings
from mta.smtp.xclient import AttributeValueError, read_attributes
from tests.fuzz.header import as_content

LENGTH: Final = 50_000
PATIENCE_S: Final = 2.0
_COMMAND: Final = 2048
REFUSALS: Final = (
    AddressError, addresses.AddressError, ParameterError, ValueError, FormatError, FilterError, AttributeValueError,
    RemoteProtocolError, sendmail.MessageError, proxyheader.ProxyHeaderError, sasl.MalformedResponseError,
)  # fmt: skip


def _header(raw: bytes) -> None:
    content = as_content(raw)
    end = headers.scan(content).end
    if end > 0:
        headers.remove(content, ("subject", "x"))
        checks.from_fault(content, end, ("a.example",))
        checks.unsubscribe_fault(checks.unsubscribe_fields(content, end))


def _sendmail(raw: bytes) -> None:
    content, end = sendmail.with_header(sendmail.lines_of(raw, dots_are_text=False))
    sendmail.folded(sendmail.without_strays(content, end), end, 998)
    sendmail.recipients_in(content, end, "local.example")


def _content(raw: bytes) -> None:
    reader = smtp_data.DataReader(10 * LENGTH, 998)
    for start in range(0, len(raw), 1000):
        if reader.feed(raw[start : start + 1000]) >= 0:
            return


def _session(raw: bytes) -> None:
    server = Server(_settings(), Peer("192.0.2.9", 1))
    for start in range(0, len(raw), 1000):
        server.receive(raw[start : start + 1000])
        server.output()


@cache
def _settings() -> ServerSettings:
    return ServerSettings("mx.example.net", errors=10**9, commands=10**9)


@cache
def _rules() -> RuleBook:
    return RuleBook(loads("hostname: mta.example\n").rules)


def _replies(raw: bytes) -> None:
    parser = ReplyParser()
    for start in range(0, len(raw), 1000):
        for reply in parser.feed(raw[start : start + 1000]):
            _rules().judge("google", "content", reply)


PARSERS: Final[tuple[Callable[[bytes], Any], ...]] = (
    parse_path,
    lambda raw: addresses.parse_list(raw.decode("utf-8", "replace"), "local.example"),
    checks.domains_of,
    lambda raw: read_mail_parameters(Envelope(), raw[:_COMMAND]),
    lambda raw: read_rcpt_parameters(Recipient(""), raw[:_COMMAND], utf8=True),
    lambda raw: xtext.decode_orcpt(raw.decode("utf-8", "replace")),
    _header,
    lambda raw: parse_message(raw, SmtpIn()),
    _sendmail,
    _content,
    _session,
    _replies,
    proxyheader.read,
    lambda raw: read_attributes(raw[:_COMMAND], Peer("192.0.2.9", 1), ""),
    lambda raw: Filter.parse(raw.decode("utf-8", "replace")),
    lambda raw: sasl.Scram({}, plus=False, plus_offered=False, fake_salt_key=b"", iterations=1).respond(raw),
)

SEEDS: Final = (
    b"\0<\0a.\0@b>", b"\0<@a\0,@a\0:c@d>", b"\0<\"\0\\\"\0\"@b>", b"\1\0a \0<a@b.example>", b"\1\0(\0",
    b"\1\"\0\\\"\0", b"\1\0a@b.example,\0",
    b"\2\0\"a\" \0<a@b.example>", b"\2\0a,\0", b"\2(\0\\(\0", b"\3\0 SIZE=1\0", b"\4 NOTIFY=\0SUCCESS,\0",
    b"\5rfc822;\0+20\0",
    b"\5utf-8;\0\\x{FC}\0", b"\6\0X: y\n\0\n", b"\6From: \0 \n \0\n", b"\6From: \0a@b.example,\n \0\n",
    b"\7X-Sender: <>\n\0X-Receiver: a@b.example\n\0\n",
    b"\7To: \0a@b.example,\n\t\0\n", b"\x08To: \0(\0\n", b"\x08\0\r\0\n", b"\x09\0.\r\n\0", b"\x09\0\r\0",
    b"\x0a\0NOOP\r\n\0", b"\x0a\0x\0\r\n",
    b"\x0b550 \0a \0\r\n", b"\x0b\x00550-too many \0\r\n", b"\x0c\0PROXY \0", b"\x0d\0ADDR=1 \0",
    b"\x0e\0not (\0x=y", b"\x0e\0(a=b or \0",
    b"\x0fn,,n=a,r=b\0,x=y\0",
)  # fmt: skip
WORDS: Final = (
    b"\0", b"(", b")", b'"', b"\\", b" ", b"\n ", b",", b"<", b">", b"@", b".", b"a@b.example", b"\r\n", b"5.7.1 ",
    b"blocked ",
)  # fmt: skip


def run(data: bytes) -> None:
    """Two seconds of CPU for fifty thousand octets is a finding: nothing else is near."""
    if not data:
        return
    first, unit, last = [*data[1:].split(b"\0", 2), b"", b""][:3]
    begun = time.thread_time()
    try:
        PARSERS[data[0] % len(PARSERS)](first + unit * (LENGTH // max(len(unit), 1)) + last)
    except REFUSALS:
        pass
    assert time.thread_time() - begun < PATIENCE_S, "it takes the square of the time"
