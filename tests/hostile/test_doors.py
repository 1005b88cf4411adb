"""Header injection through every field of every door: what comes in by a field stays in that field.

CVE-2020-28021 and 28026 (line ends in AUTH= and ORCPT= into the spool), CVE-2020-7247 (an address that is a command),
CVE-2019-10149 and 2019-15846 (metacharacters, a backslash at the end), CVE-2024-6923 and GHSA-c7w3-x93f-qmm8 (line ends
in what becomes a header or a command). Each text goes into each field as it is. What is refused is fine; of what is
taken the stored header, the commands to the next host, the events and a notification are looked at.
"""

from __future__ import annotations

import email
import email.policy
import json
import re
import socket
import string
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mta.access import external
from mta.access.external import UnknownError
from mta.access.users import UsersError, parse
from mta.cli import main
from mta.config.forms import parse_user_name
from mta.config.schema import Config, Labels, SmtpIn
from mta.control.exits import OperatorError
from mta.inject import proxyheader
from mta.inject.batch import BatchReader
from mta.inject.certificates import _covers, names_of_client
from mta.inject.claims import shown
from mta.inject.formats import FormatError, Submission, parse_message
from mta.inject.intake import Accepted, Intake, Source
from mta.message import headers
from mta.queue import notices
from mta.queue.notices import Fate
from mta.queue.records import EIGHT_BIT, SMTPUTF8
from mta.sendmail import command, options
from mta.sendmail.message import Author
from mta.sendmail.settings import Settings
from mta.smtp import sasl
from mta.smtp.envelope import Envelope
from mta.smtp.peer import ALL_RIGHTS, Identity, Peer, SameForAll
from mta.smtp.reply import Reply
from mta.smtp.server import Authenticate, MessageReceived, Server, ServerSettings
from mta.smtp.transaction import Capabilities, Transaction, commands_for
from tests.sendmail.helpers import make_directory

CONFIG = Config(hostname="mx.example.net", labels=Labels(campaign=("X-Job",), tenant=("X-Tenant",)))
EVERYTHING = Capabilities(esmtp=True, eight_bit=True, smtputf8=True, dsn=True, size=0, mt_priority=True)
BODY = b"Subject: hello\r\n\r\nhello\r\n"
BREAKS = ("\r\n", "\n", "\r", "\r\n ", "\n\t", "\v", "\f", "\x1c", "\x1e", "\x85", "\u2028", "\u2029", "\0", "\x7f",
          "\x1b[2J", "\u202e", "+0D+0A", "+0A", "+0a", "%0D%0A", "=0D=0A", "\\r\\n", "\\x{0D}\\x{0A}", "\\x{202E}",
          "=?utf-8?q?=0D=0A?=")
EVIL = [
    *(f"x{one}Injected: y" for one in BREAKS), *(f"x{one}{one}Injected: y{one}" for one in BREAKS[:4]),
    "x> SIZE=1\r\nInjected: y", ";id;", "`id`", "${run{id}}", "%s%n", "{0.__class__}", "x\\", 'x"', "x<", "x>",
    "x+0D+0AInjected:y", "x+1B+5B2J", "x+00y", "+0A", "x\\x{0A}Injected:y",
    "'; drop", "x\r\nDATA\r\nInjected: y\r\n.\r\n", "\udcff\udcfe", "x" * 3000,
    "x\r\n.\r\nMAIL FROM:<Injected@evil.example>\r\nRCPT TO:<Injected@evil.example>\r\nDATA\r\nInjected: y\r\n.\r\n",
]  # fmt: skip


def intake() -> Intake:
    """The single door behind all others."""
    return Intake(CONFIG, iter(range(1 << 40, 1 << 41)).__next__, lambda: 1_136_214_245_000_000)


def names_of(content: bytes) -> list[str]:
    """The fields of a header section as a reader sees them who takes anything for a line end (`str.splitlines`)."""
    section = content[: max(headers.section_end(content), 0)].decode("utf-8", "replace")
    lines = re.split("\r\n|[\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029]", section)
    return [line.partition(":")[0].strip().lower() for line in lines if line and line[0] not in " \t"]


def check(accepted: Accepted, *more: str) -> None:
    """Nothing of a message, on its way on or back, is what the text wanted to be. `more`: fields that its author wrote.
    """
    content = accepted.message.content
    assert content is not None
    own = {"received", "date", "message-id", "from", "subject", *more}
    assert set(names_of(content)) <= own, content
    for delivery in accepted.deliveries:
        message = accepted.message
        transaction = Transaction(
            message.sender, delivery.recipients, content, EIGHT_BIT | SMTPUTF8, message.ret, message.envid)
        for line in commands_for(transaction, EVERYTHING):
            assert line.endswith("\r\n")
            assert line[:-2].isprintable(), line
            assert re.match("MAIL FROM:<|RCPT TO:<", line)
        assert accepted.event.isascii()
        json.loads(accepted.event)
        made = notices.notify(
            "failed", message, content, [Fate(one, Reply(550, "5.1.1", ("no",)), "mx [1.2.3.4:25]", 1)
                                         for one in delivery.recipients],
            queue=delivery.queue, config=CONFIG, next_id=lambda: 1 << 42, time_us=1)
        if made is not None:
            notification = made.message.content
            assert notification is not None
            assert "injected" not in names_of(notification)
            found = email.message_from_bytes(notification, policy=email.policy.SMTP)
            status = list(found.iter_parts())[1]
            text = status.as_bytes().partition(b"\r\n\r\n")[2]
            assert b"\nInjected" not in text
            assert b"\rInjected" not in text


def taken(envelope: Envelope, content: bytes, *more: str, source: Source | None = None) -> bool:
    """Whether the single door takes it; then it is checked."""
    prepared = intake().prepare(envelope, content, source or Source.smtp("192.0.2.1", 25, envelope.helo, user="x"))
    if isinstance(prepared, Reply):
        assert str(prepared).isprintable()
        return False
    check(prepared, *more)
    return True


# -- SMTP -----------------------------------------------------------------------------------------------------------

SMTP_FIELDS = {
    "EHLO": "EHLO $x", "HELO": "HELO $x", "local part": "MAIL FROM:<$x@example.com>", "domain": "MAIL FROM:<a@$x>",
    "quoted": 'MAIL FROM:<"$x"@example.com> SMTPUTF8', "literal": "MAIL FROM:<a@[$x]>",
    "route": "MAIL FROM:<@$x:a@b.example>", "ENVID": "MAIL FROM:<a@example.com> ENVID=$x",
    "AUTH": "MAIL FROM:<a@example.com> AUTH=$x", "RET": "MAIL FROM:<a@example.com> RET=$x",
    "BODY": "MAIL FROM:<a@example.com> BODY=$x", "SIZE": "MAIL FROM:<a@example.com> SIZE=$x",
    "unknown": "MAIL FROM:<a@b> $x=1",
    "HOLDUNTIL": "MAIL FROM:<a@example.com> HOLDUNTIL=$x", "HOLDFOR": "MAIL FROM:<a@example.com> HOLDFOR=$x",
    "MT-PRIORITY": "MAIL FROM:<a@example.com> MT-PRIORITY=$x", "BY": "MAIL FROM:<a@example.com> BY=$x",
    "recipient": "RCPT TO:<$x@example.org>", "quoted recipient": 'RCPT TO:<"$x"@example.org>',
    "recipient's domain": "RCPT TO:<a@$x>",
    "ORCPT": "RCPT TO:<a@example.org> ORCPT=rfc822;$x", "ORCPT in UTF-8": "RCPT TO:<a@example.org> ORCPT=utf-8;$x",
    "ORCPT's type": "RCPT TO:<a@example.org> ORCPT=$x;a@b", "NOTIFY": "RCPT TO:<a@example.org> NOTIFY=$x",
    "XCLIENT NAME": "XCLIENT NAME=$x", "XCLIENT ADDR": "XCLIENT ADDR=$x", "XCLIENT HELO": "XCLIENT HELO=$x",
    "XCLIENT LOGIN": "XCLIENT LOGIN=$x", "XCLIENT PORT": "XCLIENT PORT=$x", "XCLIENT": "XCLIENT $x",
    "PLAIN": "AUTH PLAIN $plain", "LOGIN": "AUTH LOGIN $base64", "SCRAM": "AUTH SCRAM-SHA-256 $scram",
    "mechanism": "AUTH $x",
    "VRFY": "VRFY $x", "NOOP": "NOOP $x", "verb": "$x",
}  # fmt: skip
ORDER = ("XCLIENT", "EHLO", "HELO", "AUTH", "VRFY", "NOOP", "MAIL", "RCPT")
USUAL = ["EHLO c.example", "MAIL FROM:<a@example.com> SMTPUTF8", "RCPT TO:<b@example.org> NOTIFY=SUCCESS,FAILURE"]


def conversation(template: str, text: str) -> list[bytes]:
    """The commands of a session with the text in its place."""
    raw = text.encode("utf-8", "surrogateescape")
    filled = string.Template(template).safe_substitute(
        x=text, plain=sasl.encode(b"\0" + raw + b"\0pw").decode(), base64=sasl.encode(raw).decode(),
        scram=sasl.encode(b"n,,n=" + raw + b",r=abc").decode())
    verb = template.partition(" ")[0]
    place = 0 if verb == "$x" else ORDER.index(verb)
    lines = [line for line in USUAL if ORDER.index(line.partition(" ")[0]) < place] if place else []
    lines.append(filled)
    lines += [line for line in USUAL if verb in ("XCLIENT", "$x") or ORDER.index(line.partition(" ")[0]) > place]
    return [line.encode("utf-8", "surrogateescape") for line in lines]


@pytest.mark.parametrize("field", SMTP_FIELDS)
def test_fields_of_smtp(field: str) -> None:
    """Each parameter, name and attribute; all extensions are honoured, the client may speak for others. Each message
    that comes of it, and there may be several, has no more in its header than came as its content."""
    for text in EVIL:
        settings = ServerSettings(
            "mx.example.net", permissions=SameForAll(ALL_RIGHTS), mechanisms=("PLAIN", "LOGIN", "SCRAM-SHA-256"),
            auth_without_tls=True, clock=lambda: 0.0, deliver_by_s=1,
            honours=("8BITMIME", "SMTPUTF8", "DSN", "FUTURERELEASE", "MT-PRIORITY", "DELIVERBY"))
        server = Server(settings, Peer("192.0.2.1", 4711, may_xclient=True))
        for line in [*conversation(SMTP_FIELDS[field], text), b"DATA", BODY + b"."]:
            pending = server.receive(line + b"\r\n")
            while pending:
                event = pending.pop(0)
                if isinstance(event, MessageReceived):
                    peer = server.peer
                    user = peer.identity.user if peer.identity is not None else ""
                    source = Source.smtp(peer.address, peer.port, event.envelope.helo, user=user)
                    taken(event.envelope, event.content, "injected", source=source)
                    assert ("Injected: y\r\n" in event.content.decode()) <= ("DATA" in text)
                    pending += server.answer(Reply(250, "2.0.0"))
                elif isinstance(event, Authenticate):
                    assert len(event.attempt.user) <= 1024
                    if isinstance(event.attempt, sasl.PasswordAttempt):
                        pending += server.authenticated(Identity(event.attempt.user, "password"))
                    else:
                        pending += server.keys_found(None)
            output = server.output()
            assert output == b"" or re.fullmatch(rb"(?:[2-5][0-9][0-9][ -][ -~]*\r\n)+", output), output
        assert server.helo.isprintable()
        assert server.peer.name.isprintable()
        assert server.peer.identity is None or server.peer.identity.user.isprintable()


# -- files ----------------------------------------------------------------------------------------------------------

FILES = {
    "X-Sender": "X-Sender: $x\nX-Receiver: a@b.example\n", "X-Receiver": "X-Sender: a@b.example\nX-Receiver: $x\n",
    "X-Sender in brackets": "X-Sender: <$x@c.example>\nX-Receiver: a@b.example\n",
    "X-Sender-Override": "X-Sender: a@b.example\nX-Sender-Override: $x\nX-Receiver: a@b.example\n",
    "X-Envid": "X-Sender: a@b.example\nX-Envid: $x\nX-Receiver: a@b.example\n",
    "X-Ret": "X-Sender: a@b.example\nX-Ret: $x\nX-Receiver: a@b.example\n",
    "X-Notify": "X-Sender: a@b.example\nX-Notify: NEVER$x\nX-Receiver: a@b.example\n",
    "MAIL parameter": "X-Sender: <a@b.example> ENVID=$x\nX-Receiver: a@b.example\n",
    "RCPT parameter": "X-Sender: a@b.example\nX-Receiver: <a@b.example> ORCPT=utf-8;$x\n",
    "X-Job": "X-Job: $x\nX-Sender: a@b.example\nX-Receiver: a@b.example\n",
    "X-Tenant": "X-Sender: a@b.example\nX-Tenant: $x\nX-Receiver: a@b.example\n",
    "From": "From: $x <a@b.example>\nTo: c@d.example\n", "To": "From: a@b.example\nTo: $x\n",
    "Bcc": "From: a@b.example\nBcc: $x\n", "Sender": "Sender: $x\nTo: c@d.example\n",
    "Return-Path": "Return-Path: $x\nFrom: a@b.example\nTo: c@d.example\n",
    "MAIL": "MAIL FROM:<$x@b.example>\nRCPT TO:<a@b.example>\nDATA\n",
    "MAIL's parameters": "MAIL FROM:<a@b.example> ENVID=$x\nRCPT TO:<a@b.example>\nDATA\n",
    "RCPT": "MAIL FROM:<a@b.example>\nRCPT TO:<$x>\nDATA\n",
    "RCPT's parameters": "MAIL FROM:<a@b.example>\nRCPT TO:<a@b.example> ORCPT=rfc822;$x\nDATA\n",
    "HELO": "HELO $x\nMAIL FROM:<a@b.example>\nRCPT TO:<a@b.example>\nDATA\n",
}  # fmt: skip
WRITTEN_BY_THE_AUTHOR = ("to", "bcc", "sender", "injected", "x-sender", "x-receiver")


@pytest.mark.parametrize("crlf", [False, True])
@pytest.mark.parametrize("field", FILES)
def test_fields_of_files(field: str, crlf: bool, tmp_path: Path) -> None:
    """Spool files and batches, with both line ends. Who writes a file writes its lines: a line end in it is one. What a
    line may not do is end anywhere else, or get into the envelope, the trace, or a command."""
    batch = field in ("MAIL", "MAIL's parameters", "RCPT", "RCPT's parameters", "HELO")
    for text in EVIL:
        raw = string.Template(FILES[field]).safe_substitute(x=text).encode("utf-8", "surrogateescape")
        raw += b"Subject: hello\n\nhello\n" + b".\n" * batch
        if crlf:
            raw = raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        for submission in read_all(raw, tmp_path, batch=batch):
            lines = [line.decode("utf-8", "replace") for line in re.split(rb"\r?\n", raw)]
            envelope = submission.envelope
            for address in (envelope.sender, *(one.address for one in envelope.recipients)):
                assert address.isprintable()
                assert "Injected" not in address or any("Injected" in line for line in lines)
            taken(envelope, submission.content, *WRITTEN_BY_THE_AUTHOR, source=Source.pickup("spool/x", 1000))


def read_all(raw: bytes, directory: Path, *, batch: bool) -> Iterator[Submission]:
    """The messages in a file, as far as they can be read."""
    if batch:
        path = directory / "x.bsmtp"
        path.write_bytes(raw)
        with path.open("rb") as file:
            reader = BatchReader(file, SmtpIn(), "mx.example.net")
            try:
                yield from iter(reader.next, None)
            except FormatError as error:
                assert str(error).isprintable()  # noqa: PT017 - it need not be raised
    else:
        try:
            yield parse_message(raw, SmtpIn())
        except FormatError as error:
            assert str(error).isprintable()  # noqa: PT017 - it need not be raised


@pytest.mark.parametrize("text", EVIL)
def test_names_of_files(text: str) -> None:
    """A name stands in the log and in events, made to print; the trace line has the owner's number alone."""
    name = shown(text)
    assert name.isprintable()
    envelope = Envelope("a@b.example", [notices.Recipient("c@d.example")])
    assert taken(envelope, BODY, source=Source.pickup(name, 1000))


# -- the sendmail command -------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, list[str]] = {
    "-f": ["-f", "$x", "a@b.example"], "-r": ["-r", "$x", "a@b.example"], "-F": ["-F", "$x", "a@b.example"],
    "-R": ["-R", "$x", "a@b.example"], "-V": ["-V", "$x", "a@b.example"], "-N": ["-N", "$x", "a@b.example"],
    "-O": ["-O", "$x", "a@b.example"], "-o": ["-o$x", "a@b.example"], "recipient": ["$x"],
    "-F with the null sender": ["-f", "<>", "-F", "$x", "a@b.example"],
    "-B": ["-B", "$x", "a@b.example"], "-X": ["-X", "$x", "a@b.example"], "-h": ["-h", "$x", "a@b.example"],
}  # fmt: skip


def submitted(arguments: list[str], author: Author, directory: Path) -> list[Submission]:
    """What the MTA reads of what the command writes for a message without a From."""
    try:
        wanted = options.parse("sendmail", arguments)
        name = command.send(wanted, Settings(str(directory), "host.example"), author, b"Subject: hello\n\nhello\n")
    except OperatorError as error:
        assert error.exit_code in (64, 65)  # noqa: PT017 - it need not be raised
        return []
    raw = directory.joinpath(name).read_bytes()
    directory.joinpath(name).unlink()
    found = list(read_all(raw, directory, batch=True))
    assert len(found) == 1, raw
    return found


@pytest.mark.parametrize("option", ARGUMENTS)
def test_options_of_sendmail(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options and recipients, as programs hand them on from a form in the web."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    directory = make_directory(tmp_path / "pickup")
    for text in EVIL:
        if "\0" in text:
            continue  # no argument of a program can hold it
        arguments = [one.replace("$x", text) for one in ARGUMENTS[option]]
        for submission in submitted(arguments, Author("joe", "Joe"), directory):
            assert names_of(submission.content) == ["from", "date", "message-id", "subject"], submission.content
            assert len(submission.envelope.recipients) == 1
            taken(submission.envelope, submission.content, source=Source.pickup("spool/x", 1000))


@pytest.mark.parametrize("arguments", [["a@b.example"], ["-f", "<>", "a@b.example"], ["-F", "", "a@b.example"]])
def test_names_in_passwd(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Login and full name come from a directory service, whose users may write the latter themselves (chfn)."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    directory = make_directory(tmp_path / "pickup")
    for text in EVIL:
        for author in (Author(text, "Joe"), Author("joe", text), Author(text, text)):
            for submission in submitted(arguments, author, directory):
                assert names_of(submission.content) == ["from", "date", "message-id", "subject"]
                taken(submission.envelope, submission.content, source=Source.pickup("spool/x", 1000))


def test_a_name_in_latin_1_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs write it still; the octets come as surrogates, and what they meant nobody knows."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    (submission,) = submitted(["-F", "J\udcf6rg", "a@b.example"], Author("joe"), make_directory(tmp_path / "pickup"))
    assert b"From: =?utf-8?" in submission.content


# -- who somebody is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", EVIL)
def test_names_of_users(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is no name gets neither into the file of users nor into the configuration, and is told harmless."""
    try:
        assert parse_user_name(text) == text.strip()
    except ValueError as error:
        assert str(error).isprintable()  # noqa: PT017 - it need not be raised
    path = tmp_path / "users"
    main(["user", "add", text, "--file", str(path), "--no-password"])
    main(["user", "list", "--file", str(path)])
    assert all(char == "\n" or char == "\t" or char.isprintable() for char in "".join(capsys.readouterr()))
    if path.exists():
        names = [line.partition(":")[0] for line in path.read_text().splitlines() if line[:1] not in ("", "#", "*")]
        assert names == [text]
    try:
        assert set(parse(f"{text}:\n", "x").entries) <= {text.strip(), "x", "Injected"}
    except UsersError as error:
        assert str(error.problems[0]).isprintable()  # noqa: PT017 - it need not be raised


@pytest.mark.parametrize("text", EVIL)
def test_names_in_certificates(text: str) -> None:
    """CVE-2009-4565: what is not visible to the end is no name, and a wildcard stands for one label of a name."""
    names = names_of_client({"subject": ((("commonName", f"good.example{text}"),),),
                             "subjectAltName": (("email", text), ("DNS", f"{text}.example"))})
    assert all(name.isascii() and name.isprintable() and " " not in name for name in names)
    assert not any("Injected" in name and re.search(r"\s|[^!-~]", name) for name in names)


def test_wildcards() -> None:
    """One label, at the left."""
    names = frozenset(("*.example.org", "*.*.example.net", "*.com", "mx*.example.edu", "*"))
    assert _covers(names, "mx.example.org")
    for name in ("example.org", "a.b.example.org", "a.b.example.net", "mx1.example.edu", "localhost", ".example.org",
                 "good.example\0.example.org"):
        assert not _covers(names, name) or name in (".example.org", "localhost"), name


def test_a_proxy_header_is_an_address_or_nothing() -> None:
    """In its own form; nothing that follows it is part of it."""
    for text in EVIL:
        for header in (f"PROXY TCP4 {text} 127.0.0.1 1 25\r\n", f"PROXY TCP4 192.0.2.1 127.0.0.1 {text} 25\r\n",
                       f"PROXY UNKNOWN {text}\r\n", f"PROXY TCP6 fe80::1%{text} ::1 1 25\r\n"):
            try:
                found = proxyheader.read(header.encode("utf-8", "surrogateescape"))
            except proxyheader.ProxyHeaderError as error:
                assert str(error).isprintable()  # noqa: PT017 - it need not be raised
                continue
            assert found is None or found.client in (None, ("192.0.2.1", 1))


# -- the login service ----------------------------------------------------------------------------------------------


def asked(user: str, password: str, answer: bytes) -> tuple[bytes, str]:
    """What the login service receives when asked, and what is made of its answer."""
    got = SimpleNamespace(request=b"")

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            while not got.request.endswith(b"}"):
                got.request += connection.recv(65_536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.getsockname()[1]}/x?y"
            outcome = str(external.ask(url, user, password, "192.0.2.1", "l", 20.0))
        except UnknownError as error:
            outcome = f"unknown: {error}"
        thread.join()
    return got.request, outcome


def test_a_login_is_asked_about_in_one_request() -> None:
    """User and password are JSON in the body, whatever they hold; no line of the request is theirs (CRLF injection)."""
    for text in EVIL:
        if "\udcff" in text:
            continue  # SASLprep lets no octets through that are no UTF-8
        request, outcome = asked(text, text, b"HTTP/1.1 200 OK\r\n\r\n")
        head, _, body = request.partition(b"\r\n\r\n")
        assert outcome == "True"
        assert [line.partition(b":")[0].lower() for line in head.split(b"\r\n")] == [
            b"post /x?y http/1.1", b"host", b"accept-encoding", b"content-length", b"content-type", b"connection"]
        assert json.loads(body)["user"] == json.loads(body)["password"] == text


@pytest.mark.parametrize("answer", [
    b"", b"\x1b[2J\r\n", b"HTTP/1.1 200\x1b[2J OK\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n", b"HTTP/1.1 999999 x\r\n\r\n",
    b"200 OK\r\n\r\n", b"HTTP/1.1 -200 OK\r\n\r\n", b"HTTP/1.1 200" + b"x" * 100_000,
    b"HTTP/1.1 302 Found\r\nLocation: /yes\r\n\r\n",
    b"HTTP/1.1 401 No\r\nX: y\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
])  # fmt: skip
def test_what_the_login_service_answers(answer: bytes) -> None:
    """Only 200 and 204 are yes, only 401 and 403 no. What is neither is unknown, in bounded words."""
    _, outcome = asked("a", "b", answer)
    assert (outcome == "True") <= (b" 200" in answer)
    assert (outcome == "False") == (b" 401 " in answer)
    assert len(outcome) < 300
