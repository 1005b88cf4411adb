"""Nobody sends through us who may not: the tricks that open relays fell for, against real workers."""

from __future__ import annotations

import smtplib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.inject.access_helpers import make_pki, make_users
from tests.integration.support import Mta

OURS = "mta.test"
TRICKS = [  # sender, recipient; RFC 2505, RFC 5321 7, and what relay testers have tried for thirty years
    ("a@x.test", "<u@d.test>"),
    ("", "<u@d.test>"),
    ("a@mta.test", "<u@d.test>"),
    ("postmaster@mta.test", "<u@d.test>"),
    ("postmaster", "<u@d.test>"),
    ("a@[127.0.0.1]", "<u@d.test>"),
    ("u@d.test", "<u@d.test>"),
    ("a@localhost", "<u@d.test>"),
    ("a@x.test", "<u%d.test@mta.test>"),
    ("a@x.test", "<u%d.test@[127.0.0.1]>"),
    ("a@x.test", '<"u@d.test"@mta.test>'),
    ("a@x.test", '<"u%d.test">'),
    ("a@x.test", "<u%d.test>"),
    ("a@x.test", "<d.test!u@mta.test>"),
    ("a@x.test", "<d.test!u@[127.0.0.1]>"),
    ("a@x.test", "<mta.test!d.test!u>"),
    ("a@x.test", "<@mta.test:u@d.test>"),
    ("a@x.test", "<@[127.0.0.1]:u@d.test>"),
    ("a@x.test", "<@mta.test,@d.test:u@d.test>"),
    ("a@x.test", "<u@d.test@mta.test>"),
    ("a@x.test", '<"u@d.test">'),
    ("a@x.test", "<u@[127.0.0.1]>"),
    ("a@x.test", "<u@[IPv6:::1]>"),
    ("a@x.test", "<u@mta.test>"),
    ("a@x.test", "<postmaster>"),
    ("a@x.test", "<postmaster@mta.test>"),
    ("a@x.test", "<>"),
    ("a@x.test", "u@d.test"),
    ("a@x.test", "<u@d.test> NOTIFY=NEVER"),
    ("a@x.test", "<u@d.test> ORCPT=rfc822;u@mta.test"),
    ("a@x.test", "<u@d.test.>"),
    ("a@x.test", "<u\tu@d.test>"),
]


@pytest.mark.parametrize("listener", [{}, {"relay_from": ["10.0.0.0/8"]}, {"tls": "offered", "auth": "offered"},
                                      {"tls": "required", "relay_from": ["127.0.0.0/8"]}])
def test_tricks(make_mta: Callable[..., Mta], tmp_path: Path, listener: dict[str, Any]) -> None:
    """Whatever a stranger writes, it is refused with an enhanced code, DATA and BDAT take nothing, and nothing is in
    the queue. On a listener that requires TLS that is for everybody in clear."""
    access = {"users_file": make_users(tmp_path / "users", acme="secret")}
    certificates = [{"certificate": make_pki(tmp_path).make(OURS)}]
    with make_mta(listeners=[{"smtp": "127.0.0.1:0", **listener}], access=access, certificates=certificates) as mta:
        for sender, recipient in TRICKS:
            with smtplib.SMTP(*mta.smtp, timeout=30) as client:
                client.ehlo()
                client.docmd(f"MAIL FROM:<{sender}>")
                code, text = client.docmd(f"RCPT TO:{recipient}")
                assert 500 <= code < 600, (sender, recipient, code, text)
                assert text.startswith(b"5."), (recipient, text)
                assert client.docmd("DATA")[0] >= 500, recipient
            with socket.create_connection(mta.smtp, timeout=30) as sock:
                envelope = f"MAIL FROM:<{sender}>\r\nRCPT TO:{recipient}\r\nBDAT 21 LAST\r\n"
                for part in ("EHLO c.test\r\n", envelope + "Subject: x\r\n\r\nhello\r\n"):
                    sock.recv(4096)
                    sock.sendall(part.encode())
                sock.shutdown(socket.SHUT_WR)
                said = b"".join(iter(lambda: sock.recv(65_536), b""))
                assert b"queued as" not in said
    assert [event for event in mta.events() if event["event"] == "received"] == []


def test_submission_over_two_workers(make_mta: Callable[..., Mta], sandbox: Any, tmp_path: Path) -> None:
    """Logins, and limits that hold over all workers; what was taken is delivered, and its events name the user."""
    pki = make_pki(tmp_path)
    options: dict[str, Any] = {
        "listeners": [{"smtp": "127.0.0.1:0", "tls": "required", "auth": "required"}],
        "access": {"users_file": make_users(tmp_path / "users", acme="secret"), "failure_delay": 0},
        "certificates": [{"certificate": pki.make(OURS)}],
        "users": {"acme": {"senders": ["x.test"], "limits": {"messages": "6/d"}, "labels": {"tenant": "acme"}}},
    }
    taken = refused = 0
    with make_mta(**options) as mta:
        for _ in range(10):
            with smtplib.SMTP(*mta.smtp, timeout=30) as client:
                client._host = OURS
                client.starttls(context=pki.context())
                client.login("acme", "secret")
                assert client.mail("a@elsewhere.test")[0] == 550
                client.rset()
                try:
                    client.sendmail("a@x.test", ["u@d.test"], b"Subject: x\r\n\r\nx\r\n")
                    taken += 1
                except smtplib.SMTPDataError as error:
                    refused += error.smtp_code == 452
        assert (taken, refused) == (6, 4)
        sandbox.wait_for(lambda stats: bool(stats["recipients"] == 6))
    received = [event for event in mta.events() if event["event"] == "received"]
    assert len(received) == 6
    assert all(event["queue"] == "acme@d.test" for event in received), received
