"""The command as a process: what it makes of a message, where it puts it, and what it answers when it cannot."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mta.config.schema import SmtpIn
from mta.queue.records import EIGHT_BIT, NOTIFY_SUCCESS, SMTPUTF8
from mta.sendmail import main
from mta.sendmail.settings import Settings
from tests.sendmail.helpers import addresses, run, sent, taken

WHOLE = b"From: A <a@a.example>\nDate: Mon, 02 Jan 2006 15:04:05 +0000\nMessage-ID: <1@a.example>\n"
LOGIN = pwd.getpwuid(os.getuid()).pw_name


def test_a_whole_message_is_sent_as_it_is(pickup: Path) -> None:
    """Nothing is added to it and nothing changed but the line ends."""
    submission = sent(pickup, ["-f", "s@s.example", "b@b.example"], WHOLE + b"\n.dot\n\n8-bit: \xfc\n")
    assert submission.content == (WHOLE + b"\n.dot\n\n8-bit: \xfc\n").replace(b"\n", b"\r\n")
    assert submission.envelope.sender == "s@s.example"
    assert submission.envelope.flags & EIGHT_BIT
    assert addresses(submission) == ["b@b.example"]


def test_what_is_missing_is_added(pickup: Path) -> None:
    """From with the caller's name, Date, Message-ID; a text without header becomes the body."""
    submission = sent(pickup, ["-F", "Joe (ops)", "root", "b@b.example, C <c@c.example>"], b"disk full\n")
    pattern = (
        rb'From: "Joe \(ops\)" <%b@host\.example>\r\nDate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000\r\n'
        rb"Message-ID: <[\w.]+@host\.example>\r\n\r\ndisk full\r\n" % re.escape(LOGIN.encode()))
    assert re.fullmatch(pattern, submission.content)
    assert submission.envelope.sender == f"{LOGIN}@host.example"
    assert addresses(submission) == ["root@host.example", "b@b.example", "c@c.example"]


def test_the_recipients_of_the_header(pickup: Path) -> None:
    """-t: To, Cc and Bcc, with those of the command line, each once; Bcc is removed."""
    content = WHOLE + (
        b"To: b@b.example, \"C, D\" <c@c.example>\nBcc: hidden@d.example,\n B <b@b.example>\nCc: b@b.example\n\nx\n")
    pickup.joinpath(".settings").write_text('{"hostname": "host.example"}')
    submission = sent(pickup, ["-t", "e@e.example"], content)
    assert addresses(submission) == ["e@e.example", "b@b.example", "c@c.example", "hidden@d.example"]
    assert b"Bcc" not in submission.content
    assert b"hidden" not in submission.content
    assert b"Cc: b@b.example\r\n\r\nx\r\n" in submission.content


def test_a_message_that_was_resent_goes_to_those_it_is_resent_to(pickup: Path) -> None:
    """The Resent- fields of the last time, which come first; not those of the message or of earlier times."""
    content = (
        b"Resent-From: r@r.example\nResent-To: 2@x.example\nResent-Bcc: 3@x.example\nResent-From: q@q.example\n"
        b"Resent-To: 1@x.example\n" + WHOLE + b"To: 0@x.example\n\nx\n")
    submission = sent(pickup, ["-t"], content)
    assert addresses(submission) == ["2@x.example", "3@x.example"]
    assert b"Resent-Bcc" not in submission.content


def test_wishes_for_notifications_are_passed_on(pickup: Path) -> None:
    """-N, -R and -V are those of RFC 3461."""
    submission = sent(pickup, ["-N", "success", "-R", "hdrs", "-V", "a b", "b@b.example"], WHOLE)
    assert submission.envelope.recipients[0].notify == NOTIFY_SUCCESS
    assert (submission.envelope.ret, submission.envelope.envid) == ("HDRS", "a+20b")


@pytest.mark.parametrize("sender", ["", "<>"])
def test_the_null_sender(pickup: Path, sender: str) -> None:
    """No notification comes back; From is the caller nevertheless."""
    submission = sent(pickup, ["-f", sender, "b@b.example"], b"Subject: x\n\n")
    assert submission.envelope.sender == ""
    assert f"{LOGIN}@host.example".encode() in submission.content


@pytest.mark.parametrize(
    ("arguments", "given", "body"),
    [
        ([], b"a\n.\nb\n", b"a\r\n"),
        ([], b"a\r\n.\r\nb\r\n", b"a\r\n"),
        (["-i"], b"a\n.\nb\n", b"a\r\n.\r\nb\r\n"),
        (["-oi"], b"..\n.a", b"..\r\n.a\r\n"),
        (["-i"], b"a\r\nb\nc", b"a\r\nb\r\nc\r\n"),
        (["-i"], b"10%\r20%\r\nNUL \0\r", b"10% 20%\r\nNUL  \r\n"),
        (["-i"], b"", b""),
    ],
)
def test_lines(pickup: Path, arguments: list[str], given: bytes, body: bytes) -> None:
    """Line ends become CRLF; a dot alone ends the message but for -i; what cannot be sent becomes a space."""
    assert sent(pickup, [*arguments, "b@b.example"], WHOLE + b"\n" + given).content.partition(b"\r\n\r\n")[2] == body


def test_long_lines_are_folded(pickup: Path) -> None:
    """At white space in the header, between characters in the body; unfolded, the header is what it was."""
    subject = b"Subject: " + b"word " * 400 + b"end"
    text = "ü".encode() * 2000
    content = sent(pickup, ["b@b.example"], WHOLE + subject + b"\n\n" + text + b"\n").content
    assert max(map(len, content.split(b"\r\n"))) <= 998
    header, _, body = content.partition(b"\r\n\r\n")
    assert subject in header.replace(b"\r\n", b"")
    assert body.replace(b"\r\n ", b"") == text + b"\r\n"
    body.decode()


def test_a_header_without_an_empty_line_behind_it(pickup: Path) -> None:
    """The first line that is no field begins the body; a mailbox separator before it all is dropped."""
    content = b"From me Mon Jan  2\n" + WHOLE + b"Subject: x\n folded\nHello you: all\n"
    submission = sent(pickup, ["b@b.example"], content)
    assert submission.content.endswith(b"Subject: x\r\n folded\r\n\r\nHello you: all\r\n")


def test_many_recipients_are_several_transactions(pickup: Path) -> None:
    """As many as the MTA takes at once in each, and all of them in one file: all or none."""
    done = run(pickup, [f"u{number}@b.example" for number in range(7)], WHOLE)
    assert done.returncode == 0
    found = taken(pickup)
    assert [len(one.envelope.recipients) for one in found] == [3, 3, 1]
    assert len(list(pickup.glob("*.bsmtp"))) == 1


def test_addresses_beyond_ascii(pickup: Path) -> None:
    """A domain goes in A-labels, a local part asks for SMTPUTF8."""
    submission = sent(pickup, ["-f", "a@bücher.example", "b@bücher.example"], WHOLE)
    assert (submission.envelope.sender, submission.envelope.flags & SMTPUTF8) == ("a@xn--bcher-kva.example", 0)
    for path in pickup.glob("*.bsmtp"):
        path.unlink()
    submission = sent(pickup, ["jürgen@b.example"], "From: Jürgen <a@a.example>\n\n".encode())
    assert submission.envelope.flags & SMTPUTF8


def test_a_name_beyond_ascii_is_encoded(pickup: Path) -> None:
    """-F by RFC 2047, and it cannot bring in a field of its own."""
    content = sent(pickup, ["-F", "Jürgen\r\nBcc: x@x.example", "b@b.example"], b"x\n").content
    assert re.match(rb"From: =\?utf-8\?[bq]\?[^ ]+\?=(\r\n =[^ ]+)* <", content)
    assert b"\nBcc" not in content


@pytest.mark.parametrize(
    ("arguments", "content", "code", "what"),
    [
        ([], b"x", 64, b"no recipients: name them"),
        (["-t"], WHOLE + b"To: nobody:;\n\n", 64, b"no recipients: there is no address"),
        (["-k"], b"x", 64, b"no option -k"),
        (["-t"], WHOLE + b"To: Smith <a\n\n", 65, b"line 4: To: "),
        (["-t"], WHOLE + b"To: a@b.example\rBcc: c@c.example\n\n", 65, b"line 4: a carriage return in the header"),
        (["b@b.example"], WHOLE + b"X: \0\n\n", 65, b"line 4: a NUL in the header"),
        (["b@-b-.example"], WHOLE, 65, b"'b@-b-.example': "),
        (["a b@c.example"], WHOLE, 65, b"'a b@c.example': "),
        (["b@b.example\nRCPT TO:<c@c.example>"], WHOLE, 65, b"'b@b.example"),
        (["-f", "a@a.example, b@a.example", "c@c.example"], WHOLE, 65, b"expected one address"),
        (["b@b.example"], b"x" * 100_001, 65, b"smtp.message_size"),
        (["b@b.example"], b"\n" * 99_990, 65, b"smtp.message_size"),
    ],
)
def test_refusals_have_their_exit_code(
    pickup: Path, arguments: list[str], content: bytes, code: int, what: bytes
) -> None:
    """EX_USAGE for the command line, EX_DATAERR for the message; one line that says what, and no file is left."""
    done = run(pickup, arguments, content)
    assert done.returncode == code
    assert what in done.stderr
    assert done.stderr.startswith(b"sendmail: ")
    assert done.stderr.count(b"\n") == 1
    assert taken(pickup) == []
    assert os.listdir(pickup / "tmp") == []


def test_a_bug_has_an_exit_code_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """EX_SOFTWARE: 1 means nothing to who reads sysexits.h, and some take it for a refusal."""
    monkeypatch.setattr("mta.sendmail.command.send", lambda *_: {}["nothing"])
    monkeypatch.setattr("mta.sendmail.command._read", lambda limit: WHOLE)
    monkeypatch.setenv("MTA_PICKUP", "/nowhere")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["sendmail", "b@b.example"]) == 70
    assert "sendmail: bug: KeyError" in capsys.readouterr().err


def test_the_file_is_durable_before_it_is_there(pickup: Path) -> None:
    """Content synced, then renamed, then the name synced: in that order, and before the exit."""
    trace = pickup.parent / "trace"
    if shutil.which("strace") is None:
        pytest.skip("needs Debian's package strace")
    done = run(pickup, ["b@b.example"], WHOLE, strace=str(trace))
    assert done.returncode == 0
    calls = [line for line in trace.read_text().splitlines() if re.search(r"fsync|rename|/tmp/sendmail", line)]
    kinds = [re.search(r"(openat|fsync|rename)", line)[1] for line in calls]  # all match
    assert kinds == ["openat", "fsync", "rename", "fsync"]


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    """EX_CANTCREAT, and what it should be."""
    done = run(tmp_path / "none", ["b@b.example"], WHOLE)
    assert done.returncode == 73
    assert b"is it the pickup directory of an MTA?" in done.stderr


def test_a_full_disk_is_for_later(pickup: Path) -> None:
    """EX_TEMPFAIL, and nothing is left behind."""
    done = run(pickup, ["b@b.example"], WHOLE + b"\n" + b"x\n" * 5000, limit_file_size=4096)
    assert done.returncode == 75
    assert b"File too large" in done.stderr
    assert os.listdir(pickup / "tmp") == []


def test_where_the_directory_comes_from(pickup: Path, tmp_path: Path) -> None:
    """The first of `pickup` in the configuration, whatever else is wrong in that; its host name without `.settings`."""
    config = tmp_path / "mta.yaml"
    config.write_text("hostname: conf.example\npickup:\n  - directory: pickup\nwrong: 1\n")
    pickup.joinpath(".settings").unlink()
    for arguments, environment in ((["-C", str(config)], {}), ([], {"MTA_CONFIG": str(config)})):
        done = run(pickup, [*arguments, "b"], WHOLE, environment={"MTA_PICKUP": "", **environment})
        assert (done.returncode, done.stderr) == (0, b"")
    assert [addresses(one) for one in taken(pickup)] == [["b@conf.example"]] * 2


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hostname: x.example\n", b"has no directory in `pickup`"),
        ("a: [secret\n", b"not YAML"),
        (None, b"MTA_PICKUP=DIRECTORY"),
    ],
)
def test_a_configuration_that_says_nothing(tmp_path: Path, text: str | None, what: bytes) -> None:
    """EX_CONFIG. Nothing of the file is shown: it might be one that others should not see."""
    config = tmp_path / "mta.yaml"
    if text is not None:
        config.write_text(text)
    done = run(tmp_path, ["-C", str(config), "b@b.example"], WHOLE, environment={"MTA_PICKUP": ""})
    assert done.returncode == 78
    assert what in done.stderr
    assert b"secret" not in done.stderr


def test_settings_of_somebody_else_are_not_believed(pickup: Path) -> None:
    """Where all may write, `.settings` counts only as the owner's; what is odd in it is overlooked."""
    pickup.joinpath(".settings").unlink()
    os.mkfifo(pickup / ".settings")
    assert run(pickup, ["b@b.example"], WHOLE).returncode == 0
    pickup.joinpath(".settings").unlink()
    pickup.joinpath(".settings").write_text('{"hostname": 7, "recipients": "x", "line_length": -1}')
    assert run(pickup, ["b@b.example"], WHOLE).returncode == 0


@pytest.mark.parametrize(("refused", "header", "fault"), [
    ({"repeated": True}, b"To: a@a.example\nTo: b@b.example\n", b"To: it is there more than once"),
    ({"field_size": 1000}, b"X: " + b"y " * 600 + b"\n", b"A header field is larger than 1000 octets"),
    ({"header_size": 1000}, b"X: " + b"y " * 600 + b"\n", b"The header section is larger than 1000 octets"),
    ({"fields": 20}, b"X: y\n" * 21, b"The header section has more than 20 lines"),
    ({"from_domains": ["b.example"]}, b"From: a@a.example\n", b"From: not allowed to send as a.example"),
])
def test_what_checks_would_refuse_is_told_at_once(
    pickup: Path, refused: dict[str, object], header: bytes, fault: bytes
) -> None:
    """EX_DATAERR, or 550 with -bs, while there is somebody to tell: by what the MTA says that it refuses."""
    raw = header + b"\nx\n"
    smtp = b"EHLO a\r\nMAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\nDATA\r\n" \
        + raw.replace(b"\n", b"\r\n") + b".\r\nQUIT\r\n"
    path = pickup / ".settings"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "line_length": 5000, "refused": refused}))
    done = run(pickup, ["-f", "a@a.example", "b@b.example"], raw)
    assert (done.returncode, done.stderr[:10]) == (65, b"sendmail: ")
    assert fault in done.stderr
    assert b"550 5.6.0 " + fault in run(pickup, ["-bs"], smtp).stdout
    assert taken(pickup) == []
    odd = {"repeated": 1, "fields": "x", "from_domains": 7}
    path.write_text(json.dumps({**told, "line_length": 5000, "refused": odd}))
    assert run(pickup, ["-f", "a@a.example", "b@b.example"], raw).returncode == 0


def test_the_defaults_are_those_of_the_configuration() -> None:
    """Written down twice, because the command is to start fast."""
    given, defaults = Settings("", ""), SmtpIn()
    for name in ("message_size", "recipients", "line_length", "command_length"):
        assert getattr(given, name) == getattr(defaults, name)


def test_nothing_heavy_is_loaded() -> None:
    """A program that sends many messages starts it for each: no gevent, no YAML, no store."""
    heavy = ("gevent", "yaml", "lmdb", "mta.config.schema")
    code = f"import sys, mta.sendmail; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("program", ["newaliases", "sendmail"])
def test_other_names_and_modes(pickup: Path, program: str) -> None:
    """There are no aliases, and nothing waits for a command to be flushed."""
    done = run(pickup, ["-bi"] if program == "sendmail" else [], program=f"/usr/bin/{program}")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = run(pickup, ["-q"])
    assert done.returncode == 0
    assert b"mta retry" in done.stderr


def test_mailq_asks_the_mta(tmp_path: Path) -> None:
    """It is `mta queue`; with nobody there EX_UNAVAILABLE."""
    config = tmp_path / "mta.yaml"
    config.write_text(f"hostname: x.example\nspool: {tmp_path}/spool\nrun: {tmp_path}/run\n")
    done = run(tmp_path, ["-C", str(config)], program="/usr/bin/mailq")
    assert done.returncode == 69, done.stderr


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")


@needs_root
def test_another_user_sends_and_is_known(open_pickup: Path) -> None:
    """A directory that all may write into and nobody may read (3733): the file stays his, the MTA's group reads."""
    done = run(open_pickup, ["b@b.example"], WHOLE, become=65534)
    assert (done.returncode, done.stderr) == (0, b"")
    (path,) = open_pickup.glob("*.bsmtp")
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, os.stat(open_pickup).st_gid, 0o640)


@needs_root
def test_who_may_not_write_is_told(open_pickup: Path) -> None:
    """EX_NOPERM, and where to read on."""
    open_pickup.joinpath("tmp").chmod(0o750)
    done = run(open_pickup, ["b@b.example"], WHOLE, become=65534)
    assert done.returncode == 77
    assert b"docs/pickup.md" in done.stderr


@needs_root
def test_a_file_that_the_mta_could_not_read_is_an_error_now(open_pickup: Path) -> None:
    """Without the setgid bit it would go to `failed/` later, with nobody there to be told."""
    open_pickup.joinpath("tmp").chmod(0o1777)
    done = run(open_pickup, ["b@b.example"], WHOLE, become=65534)
    assert done.returncode == 77
    assert b"chmod g+s" in done.stderr
    assert os.listdir(open_pickup / "tmp") == []
