"""TLS on sessions of a real process: STARTTLS and implicit, versions, certificates that are renewed, clients' own."""

from __future__ import annotations

import contextlib
import json
import smtplib
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.inject.access_helpers import Pki, configuration, make_pki, make_users
from tests.inject.submitting import RIGHT, TLS, client, submission, unnamed
from tests.inject.test_listener import CONTENT, Peer, Process, listening
from tests.inject.tls12_records import ALERT, APPLICATION, HANDSHAKE, Records


def test_required_tls(pki: Pki, users: str) -> None:
    """`tls: required` takes nothing in clear, not even from `relay_from`."""
    listener = {"tls": "required", "relay_from": ["127.0.0.0/8"]}
    with submission(pki, users, listener) as process:
        with Peer(process) as peer:
            assert peer.say("MAIL FROM:<a@example.com>").startswith("530 5.7.0 Must issue a STARTTLS")
        with client(process, pki) as smtp:
            smtp.sendmail("a@example.com", ["b@example.org"], CONTENT)
            process.expect("message")


def test_implicit_tls(pki: Pki, users: str) -> None:
    """TLS from the first byte, with logins and without STARTTLS. Who speaks in clear gets no words of ours."""
    with submission(pki, users, {"tls": "implicit", "auth": "required"}) as process:
        with smtplib.SMTP_SSL("127.0.0.1", process.port, "c.example", timeout=20, context=unnamed(pki)) as smtp:
            smtp.ehlo()
            assert "starttls" not in smtp.esmtp_features
            smtp.login("acme", "secret")
            smtp.sendmail("a@x.example", ["b@example.org"], CONTENT * 30_000)
            process.expect("message")
        with socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock:
            sock.sendall(b"EHLO client.example\r\n")
            data = b"".join(iter(lambda: sock.recv(1000), b""))
            assert b"220" not in data


def test_what_stands_behind_starttls_is_not_obeyed(pki: Pki, users: str) -> None:
    """Commands in the same packet as STARTTLS would be run as if they had come under TLS (CVE-2011-0411)."""
    with submission(pki, users) as process, Peer(process) as peer:
        reply = peer.say("STARTTLS", "RSET", "NOOP")
        assert reply.startswith("554")
        assert peer.ended()


def test_a_handshake_has_its_time(pki: Pki, users: str) -> None:
    """Who says nothing, or drips, in the place of a handshake is cut off."""
    smtp = {"timeouts": {"handshake": "10s"}}
    for tls in ("implicit", "offered"):
        with submission(pki, users, {"tls": tls, "auth": "required"}, smtp=smtp, clock=True) as process, \
                Peer(process, greet=tls == "offered") as peer:
            if tls == "offered":
                assert peer.say("STARTTLS").startswith("220 2.0.0")
            for octet in (b"\x16", b"\x03", b"\x01"):
                peer.put(octet)  # which is read: the session goes on till then
                process.time_passes(3.4)
            assert peer.ended()


def test_who_has_shut_its_side_of_tls_is_answered(pki: Pki, users: str) -> None:
    """A client that says that no more will come (close_notify) right behind its message hears what became of it."""
    with submission(pki, users, {"tls": "implicit", "relay_from": "127.0.0.0/8"}) as process, \
            socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = pki.context().wrap_bio(incoming, outgoing, server_hostname="mx.example.net")

        def until(call: Any) -> Any:
            while True:
                try:
                    return call()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(65_536) or pytest.fail("the connection is closed"))

        def say(*lines: bytes) -> bytes:
            tls.write(b"".join(line + b"\r\n" for line in lines))
            return until(lambda: tls.read(1000))

        until(tls.do_handshake)
        assert until(lambda: tls.read(1000)).startswith(b"220")
        assert say(b"EHLO client.example").startswith(b"250")
        assert say(b"MAIL FROM:<hold@example.com>", b"RCPT TO:<b@example.org>", b"DATA").endswith(b"<CR><LF>\r\n")
        tls.write(b"Subject: x\r\n\r\n.\r\n")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        sock.sendall(outgoing.read())
        process.expect("message")
        process.tell("release")
        assert until(lambda: tls.read(1000)).startswith(b"250 2.0.0")


def test_what_ends_the_handshake_may_wait(pki: Pki, users: str) -> None:
    """The last of a handshake may be more than the client takes at once: it is sent before anything is read."""
    names = [f"host{number}.department-of-long-names.example" for number in range(600)]
    certificate = pki.make(*names, file="long")  # which comes back in the session ticket
    listener = {"tls": "implicit", "auth": "offered", "client_ca": pki.ca_file}
    with listening(config=configuration(listener, certificates=[{"certificate": pki.make("mx.example.net")}]),
                   sndbuf=4096) as process:
        smtp = smtplib.SMTP_SSL(context=pki.context(certificate), timeout=20)
        smtp._host = "mx.example.net"
        assert smtp.connect("127.0.0.1", process.port)[0] == 220
        assert smtp.ehlo()[0] == 250
        smtp.quit()


def test_a_reload_reads_only_what_has_changed(pki: Pki, users: str) -> None:
    """With the same files the contexts stay, and so do their session tickets; with others they are new."""
    path = pki.make("mx.example.net", file="reloaded")
    options: dict[str, Any] = {"certificates": [{"certificate": path}], "access": {"users_file": users}}
    with submission(pki, users, certificates=options["certificates"]) as process:
        context = pki.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # which has the ticket in the handshake

        def connect(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
            with Peer(process) as peer:
                assert peer.say("STARTTLS").startswith("220")
                with context.wrap_socket(peer.sock, server_hostname="mx.example.net", session=session) as sock:
                    return sock.session, bool(sock.session_reused)

        session, _ = connect(None)
        process.tell("config " + json.dumps(configuration(TLS, **options)))
        process.expect("ok")
        assert connect(session)[1]
        pki.make("mx.example.net", file="reloaded")
        process.tell("config " + json.dumps(configuration(TLS, **options)))
        process.expect("ok")
        process.tell("refresh")
        process.expect("ok")
        assert not connect(session)[1]


@pytest.mark.parametrize("broken", ["users", "certificate"])
def test_a_worker_that_is_started_again_waits_for_what_is_broken(pki: Pki, tmp_path: Path, broken: str) -> None:
    """Files that were spoilt since the start keep no worker from coming back, as mail waits for it; its listeners leave
    connections to others until the files can be used."""
    users = Path(make_users(tmp_path / "users", acme="secret"))
    certificate = Path(pki.make("mx.example.net", file="again"))
    spoilt = {"users": users, "certificate": certificate}[broken]
    good = spoilt.read_bytes()
    spoilt.write_bytes(b"a:nonsense\n")
    config = configuration(TLS, access={"users_file": str(users)}, certificates=[{"certificate": str(certificate)}])
    with listening(config=config, lenient=True) as process:
        assert b"cannot be used" in process.complaint()
        with Peer(process, greet=False) as peer:
            process.tell("sessions")
            assert process.expect("sessions") == [0]
            spoilt.write_bytes(good)
            process.tell("refresh")
            process.expect("ok")
            assert peer.reply().startswith("220")
        with client(process, pki) as smtp:
            assert smtp.docmd("AUTH", RIGHT)[0] == 235


def test_a_session_keeps_its_certificates(pki: Pki, users: str) -> None:
    """TLS goes on being there for who was offered it, when a reload has taken it away."""
    with submission(pki, users) as process:
        smtp = smtplib.SMTP("127.0.0.1", process.port, "client.example", 20)
        smtp.ehlo()
        process.tell("config " + json.dumps(configuration({"tls": "off"})))
        process.expect("ok")
        smtp._host = "mx.example.net"
        assert smtp.starttls(context=pki.context())[0] == 220
        assert smtp.ehlo()[0] == 250
        smtp.quit()


def test_old_versions_are_refused(pki: Pki, users: str) -> None:
    """TLS 1.1 is no more (RFC 8996); 1.2 and 1.3 are, with forward secrecy."""
    with submission(pki, users, {"tls": "implicit", "auth": "required"}) as process:
        for version, expected in (("tls1_1", False), ("tls1_2", True), ("tls1_3", True)):
            done = subprocess.run(
                ["openssl", "s_client", "-connect", f"127.0.0.1:{process.port}", f"-{version}", "-cipher",
                 "ALL:@SECLEVEL=0", "-quiet"],
                input=b"QUIT\r\n", capture_output=True, timeout=30, check=False)
            assert (b"220 mx.example.net" in done.stdout) is expected, (version, done.stderr)
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{process.port}", "-tls1_2", "-cipher", "AES128-SHA"],
            input=b"", capture_output=True, timeout=30, check=False)
        assert b"handshake failure" in done.stderr


def test_several_certificates(pki: Pki, users: str) -> None:
    """A client is shown the certificate with the name it asks for, else that of the listener's name."""
    certificates = [{"certificate": pki.make(*names)} for names in (
        ("first.example",), ("mx.example.net",), ("*.wild.example", "wild.example"))]
    with submission(pki, users, {"tls": "implicit", "auth": "required"}, certificates=certificates) as process:
        for asked, shown in (("first.example", "first.example"), ("FIRST.example", "first.example"),
                             ("a.wild.example", "*.wild.example"), ("a.b.wild.example", "mx.example.net"),
                             ("other.example", "mx.example.net"), (None, "mx.example.net")):
            with socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock:
                tls = unnamed(pki).wrap_socket(sock, server_hostname=asked)
                assert shown in [name for _, name in tls.getpeercert()["subjectAltName"]], asked
                tls.close()


def test_new_certificates(pki: Pki, users: str) -> None:
    """A certificate that was renewed is shown without a restart; one that is broken is told, and the old one stays."""
    path = pki.make("mx.example.net", file="renewed")

    def serial(process: Process) -> str:
        with socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock, \
                unnamed(pki).wrap_socket(sock) as tls:
            return str(tls.getpeercert()["serialNumber"])

    shown = [{"certificate": path}]
    with submission(pki, users, {"tls": "implicit", "auth": "required"}, certificates=shown) as process:
        first = serial(process)
        Path(path).write_text("nonsense")
        process.tell("refresh")
        process.expect("ok")
        assert b"a changed certificate cannot be used" in process.complaint()
        assert serial(process) == first
        pki.make("mx.example.net", file="renewed")
        process.tell("refresh")
        process.expect("ok")
        assert serial(process) != first


def test_client_certificates(pki: Pki, users: str) -> None:
    """A verified certificate whose name is a user is a login; another one is none, and no certificate is no error."""
    listener = {"tls": "required", "auth": "required", "client_ca": pki.ca_file}
    with submission(pki, users, listener) as process:
        with client(process, pki, pki.make("certonly")) as smtp:
            smtp.sendmail("a@x.example", ["b@example.org"], CONTENT)
            assert process.expect("message")[3].endswith(" as certonly")
        other = make_pki(pki.directory / "..")
        for certificate in ("", pki.make("stranger.example")):
            with client(process, pki, certificate) as smtp:
                assert smtp.mail("a@x.example")[0] == 530
        forged = other.make("certonly", file="forged")
        with pytest.raises((smtplib.SMTPException, OSError)), client(process, pki, forged) as smtp:
            smtp.mail("a@x.example")


def test_who_asks_for_handshakes_within_a_line_is_told_no_at_once(pki: Pki, users: str, tmp_path: Path) -> None:
    """Each try to renegotiate has an answer of TLS itself. It does not wait, and pile up, until a reply is due."""
    with submission(pki, users, {"tls": "implicit", "auth": "required"}) as process, \
            socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock:
        client = Records(pki.context(), tmp_path / "keys", "mx.example.net")
        sent, done = client.shake_hands(b"")
        while not done:
            sock.sendall(sent)
            sent, done = client.shake_hands(sock.recv(65_536) or pytest.fail("the connection is closed"))
        if not client.incoming.pending:
            sock.recv(65_536)  # the greeting, which did not come with the end of the handshake
        for _ in range(3):
            sock.sendall(client.record(HANDSHAKE, b"\x01\0\0\0") + client.record(APPLICATION, b"x"))
            assert sock.recv(1) == bytes([ALERT])
            sock.recv(65_536)
