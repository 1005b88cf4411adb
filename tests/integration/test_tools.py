"""Debian's own tools and servers work with us, as clients and as receivers."""

from __future__ import annotations

import shutil
import smtplib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mta.sandbox.client import Sandbox
from tests.integration.servers import Exim, Postfix
from tests.integration.support import Mta, message


def test_swaks_delivers(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """swaks, pipelined, gets its 250 with our queue id, and the message arrives."""
    if shutil.which("swaks") is None:
        pytest.skip("needs Debian's package swaks")
    with make_mta() as mta:
        done = subprocess.run(
            ["swaks", "--server", f"127.0.0.1:{mta.smtp[1]}", "--from", "a@x.test", "--to", "u@d.test,v@d.test",
             "--pipeline", "--body", "hello"], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stdout
        assert "queued as" in done.stdout
        sandbox.wait_for(lambda stats: bool(stats["recipients"] == 2))


def test_smtp_source_delivers(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Postfix's smtp-source: many sessions, several recipients each."""
    source = shutil.which("smtp-source") or shutil.which("smtp-source", path="/usr/sbin")
    if source is None:
        pytest.skip("needs smtp-source of Debian's package postfix")
    with make_mta() as mta:
        subprocess.run([source, "-s", "10", "-m", "200", "-r", "2", "-l", "2000", "-N", "-t", "u@d.test",
                        f"inet:127.0.0.1:{mta.smtp[1]}"], check=True, timeout=60)
        sandbox.wait_for(lambda stats: bool(stats["recipients"] == 400))


def test_smtplib_is_told_of_each_recipient(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """A syntactically wrong recipient is refused alone; the others are accepted."""
    with make_mta() as mta, smtplib.SMTP(*mta.smtp) as client:
        client.ehlo()
        assert {"pipelining", "size", "8bitmime", "enhancedstatuscodes", "dsn"} <= set(client.esmtp_features)
        refused = client.sendmail("a@x.test", ["u@d.test", "v@-bad-.test"], message(1, "u@d.test"))
        assert set(refused) == {"v@-bad-.test"}
        sandbox.wait_for(lambda stats: bool(stats["recipients"] == 1))


def test_postfix_relays_through_us(make_mta: Callable[..., Mta], sandbox: Sandbox, open_directory: Path) -> None:
    """Postfix as a client: what it takes comes to us and arrives."""
    with make_mta() as mta, Postfix(open_directory / "postfix", [f"relayhost = [127.0.0.1]:{mta.smtp[1]}"]) as postfix:
        with smtplib.SMTP("127.0.0.1", postfix.port) as client:
            for number in range(20):
                client.sendmail("a@x.test", [f"u{number}@d{number % 3}.test"], message(number, "list@x.test"))
        sandbox.wait_for(lambda stats: bool(stats["messages"] == 20))
    assert sandbox.stats()["duplicates"] == 0


def test_postfix_takes_our_mail(make_mta: Callable[..., Mta], open_directory: Path) -> None:
    """Postfix as a receiver: every recipient is in its log as delivered."""
    settings = ["default_transport = discard:", "relay_domains = static:all", "relay_transport = discard:"]
    with Postfix(open_directory / "postfix", settings) as postfix:
        with make_mta(routes={"*": {"relay": f"127.0.0.1:{postfix.port}"}}) as mta:
            for number in range(20):
                mta.send("a@x.test", [f"u{number}@d{number % 3}.test"], message(number, "list@x.test"))
            mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        mta.wait_until(lambda: postfix.log.read_text().count("status=sent") == 20, "20 deliveries in Postfix's log")


def test_exim_takes_our_mail(make_mta: Callable[..., Mta], open_directory: Path) -> None:
    """Exim as a receiver: contents arrive in its mailbox, and its refusals are bounces."""
    with (Exim(open_directory / "exim") as exim,
          make_mta(routes={"*": {"relay": f"127.0.0.1:{exim.port}"}}) as mta):
        for number in range(10):
            mta.send("", [f"u{number}@d.test", f"no-{number}@d.test"], message(number, "list@x.test"))
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        mta.wait_until(lambda: exim.mailbox.exists() and exim.mailbox.read_text().count("X-Test-Id: ") == 10,
                       "10 messages in Exim's mailbox")
    ends = [event["event"] for event in mta.events() if event["event"] in ("delivered", "bounced")]
    assert (ends.count("delivered"), ends.count("bounced")) == (10, 10)
