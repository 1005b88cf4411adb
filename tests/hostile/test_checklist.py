"""What is left of the checklist in the README beside this file: single rules that no other test states."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from mta.config.schema import Config, LabelValues
from mta.delivery import dns_wire
from mta.inject.certificates import Contexts
from mta.inject.checking import unsubscribe_lines
from mta.inject.intake import Accepted, Intake, Source
from mta.inject.labels import Labels
from mta.queue.encoding import name_key
from mta.queue.records import Recipient, queue_name
from mta.smtp import sasl
from mta.smtp.envelope import Envelope
from mta.smtp.peer import ALL_RIGHTS, Peer, SameForAll, Tls
from mta.smtp.reply import Reply
from mta.smtp.server import Authenticate, Closed, Server, ServerSettings
from mta.smtp.transaction import Capabilities

ROOT = Path(__file__).parents[2]


def server(**options: object) -> Server:
    """A session under TLS that has said EHLO."""
    settings = ServerSettings("mx.example.net", permissions=SameForAll(ALL_RIGHTS),
                              mechanisms=sasl.MECHANISMS, **options)
    machine = Server(settings, Peer("192.0.2.9", 4711, Tls("TLSv1.3", "x", bindings={"tls-server-end-point": b"x"})))
    machine.receive(b"EHLO c.example\r\n")
    machine.output()
    return machine


def test_only_mechanisms_that_are_pure_text() -> None:
    """CVE-2023-42114 to 42117: there is no SPA, NTLM, EXTERNAL or CRAM to get wrong."""
    assert set(sasl.MECHANISMS) == {"PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}
    machine = server()
    for name in (b"NTLM", b"EXTERNAL", b"CRAM-MD5", b"SPA", b"GSSAPI", b"SCRAM-SHA-1", b"plain\0", b"../PLAIN"):
        assert machine.receive(b"AUTH " + name + b"\r\n") == []
        assert machine.output().startswith(b"504 5.5.4 ")


def test_logins_begun_and_changed_a_hundred_times() -> None:
    """CVE-2011-1720: an attempt gets nothing of those before it, whatever was cancelled in which place."""
    machine = server(commands=10_000)
    first = sasl.encode(b"n,,n=eve,r=abc")
    for number in range(100):
        machine.receive(b"AUTH LOGIN\r\n")
        machine.receive(sasl.encode(b"eve") + b"\r\n")
        machine.receive(b"*\r\n")
        (event,) = machine.receive(b"AUTH SCRAM-SHA-256 " + first + b"\r\n")
        assert isinstance(event, Authenticate)
        machine.keys_found(None)
        machine.receive(b"*\r\n")
        machine.receive(b"AUTH LOGIN\r\n" if number % 2 else b"AUTH PLAIN\r\n")
        assert machine.state == "auth"
        machine.output()
        machine.receive(b"*\r\n")
        machine.output()
    assert machine.peer.identity is None
    (event,) = machine.receive(b"AUTH PLAIN " + sasl.encode(b"\0tim\0secret") + b"\r\n")
    assert event == Authenticate(sasl.PasswordAttempt("tim", "secret"))


@pytest.mark.parametrize("length", range(20))
def test_responses_of_every_length(length: int) -> None:
    """CVE-2018-6789: base64 is whole and in its alphabet, or there is no attempt."""
    whole = b"YWFh" * 5
    texts = (whole[:length], whole[: max(length - 1, 0)] + b"=", whole[: max(length - 2, 0)] + b"==", b"-_" * length,
             b"\xff" * length, b"=" * length)
    for text in texts:
        machine = server()
        machine.receive(b"AUTH LOGIN\r\n")
        machine.output()
        machine.receive(text + b"\r\n")
        reply = machine.output()
        good = re.fullmatch(rb"(?:[A-Za-z]{4})*(?:[A-Za-z]{4}|YQ==|YWE=|YW==|YWF=)", text) is not None
        assert reply.startswith(b"334 " if good else b"501 "), (text, reply)


@pytest.mark.parametrize("number", [1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, 10**19])
def test_sizes_that_overflow_elsewhere(number: int) -> None:
    """CVE-2005-1513: a size is a number of any length, never one that wraps: ours is refused, a host's is no limit."""
    machine = server()
    machine.receive(b"MAIL FROM:<a@example.com> SIZE=%d\r\n" % number)
    assert machine.output()[:4] in (b"552 ", b"501 ")
    can = Capabilities.from_reply(Reply(250, "", ("x", f"SIZE {number}", f"LIMITS RCPTMAX={number} MAILMAX=-1")))
    assert can.size == (number if number < 10**18 else 0)
    assert can.rcpt_max == (number if number < 10**18 else 0)
    assert can.mail_max == 0


@pytest.mark.parametrize("line", [
    "", " ", "=", "==", " = ", "SIZE", "SIZE=", "SIZE = 5 x", "SIZE -1", "SIZE \u0665", "AUTH=", "LIMITS", "LIMITS =",
    "LIMITS RCPTMAX RCPTMAX= =1", "\u0131", "8B\u0131TMIME", "\u017fIZE 5", "x" * 4000,
])
def test_odd_lines_in_an_answer_to_ehlo(line: str) -> None:
    """What is malformed is not offered, and no more than that; the lines behind it count."""
    can = Capabilities.from_reply(Reply(250, "", ("mx.example.org", line, "PIPELINING")))
    assert can.pipelining
    assert can.size in (None, 0, 5)
    assert (can.mail_max, can.rcpt_max) == (0, 0)


def test_a_session_that_is_over_is_over() -> None:
    """Whatever comes behind the end is not even looked at, and costs nothing."""
    machine = server()
    assert machine.receive(b"QUIT\r\n") == [Closed(by_client=True)]
    machine.output()
    for data in (b"MAIL FROM:<a@example.com>\r\n", b"\n", b"x" * 1_000_000, b"STARTTLS\r\n"):
        assert machine.receive(data) == []
        assert machine.output() == b""


@pytest.mark.parametrize("octet", range(256))
def test_every_octet_in_the_name_of_an_mx_host(octet: int) -> None:
    """CVE-2003-0161, "untrusted sources, which includes DNS": a name is text that prints, or the answer is none."""
    label = bytes((3, octet, 0x61, octet))
    question = dns_wire.question("example.org", "MX")
    rdata = b"\0\x0a" + label + b"\0"
    answer = b"\xc0\x0c" + struct.pack("!HHIH", 15, 1, 60, len(rdata)) + rdata
    message = struct.pack("!HHHHHH", 7, 0x8180, 1, 1, 0, 0) + question + answer
    try:
        (record,) = dns_wire.read(message).answers
    except dns_wire.MessageError as error:
        assert str(error).isprintable()  # noqa: PT017 - it need not be raised
        return
    assert isinstance(record.value, dns_wire.MailHost)
    assert record.value.host.isascii()
    assert record.value.host.isprintable()
    assert " " not in record.value.host


def test_names_for_sni_are_looked_up_and_kept_in_bounded_number() -> None:
    """CVE-2019-15846: any text is a name that nobody has."""
    contexts = Contexts.__new__(Contexts)
    contexts._shown, contexts._by_name = [], {}
    for name in ("", "\\", "x\\", "a" * 100_000, "*.example.org", "\x00", "%s", "..", "[::1]"):
        assert contexts._find(name) is None
    assert contexts._by_name == {}


def test_templates_are_filled_once_and_by_names_only() -> None:
    """CVE-2014-2972: what is put into a template is not looked at again, and only labels get there, without braces."""
    lines = unsubscribe_lines("https://x.example/{tenant}/{campaign}/{id}/{x}", "1", Labels("acme", "news"))
    assert "https://x.example/acme/news/1/{x}>" in lines
    config = Config(hostname="mx.example.net")
    for value in ("{id}", "a{tenant}", "a b", "a\r\nb", "x" * 65, "ü"):
        content = f"X-Job: {value}\r\nSubject: {{0.__class__}} %s\r\n\r\nx\r\n".encode()
        intake = Intake(config, lambda: 1 << 40, lambda: 1)
        made = intake.prepare(Envelope("a@b.example", [Recipient("c@d.example")]), content,
                              Source.smtp("192.0.2.1", 1, "c", labels=LabelValues(tenant="acme")))
        if isinstance(made, Accepted):
            assert b"{0.__class__} %s" in (made.message.content or b"")


def test_keys_are_never_longer_than_the_index_takes() -> None:
    """CVE-2025-67896: what strangers choose, the domain, is bounded, and a name that is too long is hashed."""
    keys = {name_key(queue_name(domain, "t" * 64, "c" * 64, "p" * 64, "transactional"))
            for domain in ("d" * 253, "e" * 253, "d" * 252, "[IPv6:" + "f" * 40 + "]", "'; drop", "a\0b")}
    assert len(keys) == 6
    assert max(map(len, keys)) <= 511


def test_lines_of_mail_are_never_split_by_python() -> None:
    """bpo-22233 and cpython #87290: `str.splitlines` ends lines at ten characters, eight of which are text in mail."""
    for package in ("smtp", "message", "inject", "sendmail", "delivery"):
        for path in sorted((ROOT / "mta" / package).rglob("*.py")):
            assert "splitlines" not in path.read_text("utf-8"), path


def test_no_parser_of_the_standard_library_reads_mail() -> None:
    """CVE-2023-27043: what others take for an address or a header is not asked."""
    for package in ("smtp", "message", "inject", "sendmail", "delivery", "queue"):
        for path in sorted((ROOT / "mta" / package).rglob("*.py")):
            text = path.read_text("utf-8")
            found = re.findall(r"^\s*(?:from|import) (email[\w.]*|smtplib|mailbox)", text, re.MULTILINE)
            assert set(found) <= {"email.header"}, path  # which writes a name, in sendmail


def test_the_tests_that_the_table_names_are_there() -> None:
    """A row stands on tests that exist."""
    text = (ROOT / "tests/hostile/README.md").read_text("utf-8")
    file = ""
    for name, test in re.findall(r"`([a-z_]+/test_\w+\.py|test_\w+\.py)?(?:::(test_\w+))?", text):
        if not (name or test):
            continue
        file = name or file
        path = ROOT / "tests" / (file if "/" in file else f"hostile/{file}")
        assert path.exists(), file
        assert not test or f"def {test}(" in path.read_text("utf-8"), (file, test)
