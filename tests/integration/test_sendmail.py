"""Programs that call sendmail, calling ours: what they send arrives, while the MTA runs and while it does not."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mta.sandbox.client import Sandbox
from tests.integration.support import Mta

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recording() -> Iterator[Sandbox]:
    """A small Internet that keeps the content of what it takes."""
    with Sandbox({"log_content": "1MB"}) as sandbox:
        yield sandbox


@pytest.fixture
def mta(directory: Path, recording: Sandbox) -> Iterator[Mta]:
    """An MTA with a pickup directory, not started yet; `directory/sendmail` is its sendmail."""
    directory.chmod(0o755)
    one = Mta(directory / "mta", recording.dns, recording.smtp_port, pickup=[{"directory": str(directory / "pickup")}])
    one.write_config()
    command = directory / "sendmail"
    command.write_text(
        f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} MTA_CONFIG={shlex.quote(str(directory / 'mta/mta.yaml'))} "
        f'exec {shlex.quote(sys.executable)} -m mta.sendmail "$@"\n')
    command.chmod(0o755)
    yield one
    one.kill()


def run(arguments: list[str], content: bytes = b"", **environment: str) -> None:
    """Run a program, which must succeed."""
    done = subprocess.run(arguments, input=content, capture_output=True, timeout=60, check=False,
                          env={**os.environ, **environment})
    assert done.returncode == 0, (done.stdout, done.stderr)


def php(sendmail: Path, work: Path) -> None:
    """PHP's mail(), which the larger part of the world's web sites uses."""
    script = work / "mail.php"
    script.write_text(
        r"""<?php exit(mail("u@d.test", "the subject", "line one\nline two\n.\nafter the dot",
        "From: web@site.test\r\nBcc: hidden@e.test", "-fbounce@site.test") ? 0 : 1);""")
    run(["php", "-n", "-d", f"sendmail_path={sendmail} -t -i", str(script)])


def mutt(sendmail: Path, work: Path) -> None:
    """mutt as a script uses it."""
    run(["mutt", "-n", "-F", "/dev/null", "-e", f'set sendmail="{sendmail} -oem -oi"', "-e", "set copy=no", "-e",
         "set from=web@site.test", "-e", "set use_envelope_from", "-s", "the subject", "-b", "hidden@e.test", "--",
         "u@d.test"], b"line one\nline two\n.\nafter the dot\n", HOME=str(work))


def s_nail(sendmail: Path, work: Path) -> None:
    """s-nail, which is mailx on many systems."""
    run(["s-nail", "-:/", "-S", "v15-compat", "-S", f"mta=file://{sendmail}", "-S", "from=web@site.test", "-r",
         "bounce@site.test", "-s", "the subject", "-b", "hidden@e.test", "-.", "u@d.test"],
        b"line one\nline two\n .\nafter the dot\n", HOME=str(work))


def python(sendmail: Path, work: Path) -> None:
    """A program that writes to it itself."""
    run([str(sendmail), "-oi", "-t"], b"From: web@site.test\nTo: u@d.test\nBcc: hidden@e.test\nSubject: the subject\n\n"
        b"line one\nline two\n.\nafter the dot\n")


def swaks(sendmail: Path, work: Path) -> None:
    """swaks, through `-bs`."""
    run(["swaks", "--pipe", f"{sendmail} -bs", "--from", "bounce@site.test", "--to", "u@d.test,hidden@e.test",
         "--h-Subject", "the subject", "--h-From", "web@site.test", "--body",
         "line one\\nline two\\n.\\nafter the dot"])


def cron(sendmail: Path, work: Path) -> None:
    """cron: the output of a program to a local name, with its own header."""
    run([str(sendmail), "-FCronDaemon", "-i", "-B8BITMIME", "-oem", "u@d.test", "hidden@e.test"],
        b"From: root (Cron Daemon)\nSubject: the subject\n\nline one\nline two\n.\nafter the dot\n")


PROGRAMS: dict[Callable[[Path, Path], None], str] = {
    php: "php-cli", mutt: "mutt", s_nail: "s-nail", python: "", swaks: "swaks", cron: ""}


def skip_without(program: Callable[[Path, Path], None]) -> None:
    """Skip where the package is not installed."""
    package = PROGRAMS[program]
    if package and shutil.which(package.removesuffix("-cli")) is None:
        pytest.skip(f"needs Debian's package {package}")


def check(log: list[dict[str, Any]]) -> None:
    """The message reached both recipients, with all of its body and without a Bcc."""
    contents = [entry["content"] for entry in log if entry.get("content")]
    assert len(contents) == 2
    for content in contents:
        header, _, body = content.partition("\r\n\r\n")
        assert "\r\nSubject: the subject\r\n" in f"\r\n{header}\r\n"
        assert "hidden" not in header.partition("for <hidden@e.test>")[2]
        assert "Bcc" not in header
        assert f"(spool directory, userid {os.getuid()})" in header
        assert "line one\r\nline two\r\n" in body
        assert "after the dot" in body


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_programs_send(program: Callable[[Path, Path], None], mta: Mta, recording: Sandbox) -> None:
    """Each the way it does it by itself; the MTA takes the file at once."""
    skip_without(program)
    with mta:
        program(mta.directory.parent / "sendmail", mta.directory)
        recording.wait_for(lambda stats: bool(stats["recipients"] == 2))
        check(recording.log())


def test_mail_is_taken_while_the_mta_is_down(mta: Mta, recording: Sandbox) -> None:
    """The command says yes; the MTA sends when it runs again."""
    with mta:
        pass
    python(mta.directory.parent / "sendmail", mta.directory)
    assert recording.stats()["recipients"] == 0
    with mta:
        recording.wait_for(lambda stats: bool(stats["recipients"] == 2))
        check(recording.log())


def test_status_says_why_files_wait(mta: Mta, directory: Path) -> None:
    """A directory that is out of order is one line in the log, and in the status as long as it is so."""
    def said(text: str) -> bool:
        return any(text in door for worker in mta.status()["workers"] for door in worker["doors"])

    pickup = directory / "pickup"
    mta.start()
    for number in itertools.count():
        pickup.rename(directory / f"away{number}")
        try:
            pickup.write_text("no directory")
            break
        except IsADirectoryError:
            continue  # a worker was faster, and has made it anew
    mta.wait_until(lambda: said(f"{pickup}: File exists"), "the status says so")
    pickup.unlink()
    mta.wait_until(lambda: not said(str(pickup)), "it is in order again")
